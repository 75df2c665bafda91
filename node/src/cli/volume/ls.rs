//! `rswarm volume ls`

use crate::cli::context::Context;
use crate::cli::output::filter;
use crate::cli::output::listing::{Listing, Options};
use crate::cli::output::value::{Struct, Value};
use anyhow::Result;
use rswarm_proto::v1 as pb;

/// List the volumes on this node
#[derive(Debug, clap::Args)]
pub struct Ls {
    #[command(flatten)]
    options: Options,
}

/// How volumes are listed.
pub const LISTING: Listing = Listing {
    columns: &[
        ("Driver", "DRIVER"),
        ("Name", "VOLUME NAME"),
        ("Scope", "SCOPE"),
        ("Mountpoint", "MOUNTPOINT"),
        ("Labels", "LABELS"),
        ("CreatedAt", "CREATED AT"),
        ("UsedBy", "USED BY"),
        ("Snapshots", "SNAPSHOTS"),
    ],
    table: "{{.Driver}}\t{{.Name}}",
    raw: "name: {{.Name}}\ndriver: {{.Driver}}\n",
};

impl Ls {
    /// Carries the command out.
    ///
    /// # Errors
    /// If the daemon refuses, or the options make no sense.
    pub async fn run(self, cx: &mut Context) -> Result<()> {
        filter::known(&self.options.filters, &["name", "label", "dangling", "driver"])?;
        let volumes = super::volumes(cx, Vec::new()).await?;
        cx.out.write_all(render(&volumes, &self.options)?.as_bytes())?;
        Ok(())
    }
}

fn render(volumes: &[pb::Volume], options: &Options) -> Result<String> {
    let filters = &options.filters;
    let shown = |volume: &&pb::Volume| {
        let dangling = |wanted: &str| matches!(wanted, "true" | "1") == volume.users.is_empty();
        let labels = volume.labels.iter().map(|(key, value)| (key.clone(), value.clone())).collect();
        filter::any(filters, "name", |part| volume.name.contains(part))
            && filter::any(filters, "driver", |driver| driver == "local")
            && filter::any(filters, "dangling", dangling)
            && filter::labels(filters, "label", &labels)
    };
    let rows: Vec<Struct> = volumes.iter().filter(shown).map(row).collect();
    LISTING.print(&rows, "Name", options)
}

fn row(volume: &pb::Volume) -> Struct {
    let mut labels: Vec<String> = volume.labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
    labels.sort();
    Struct::new("volume")
        .with("CreatedAt", Value::time_ms(volume.created_at_ms))
        .with("Driver", "local")
        .with("Labels", labels.join(","))
        .with("Mountpoint", &volume.path)
        .with("Name", &volume.name)
        .with("Scope", "local")
        .with("Snapshots", volume.snapshots.join(","))
        .with("UsedBy", volume.users.join(","))
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::expect;

    #[test]
    fn those_that_nobody_has_can_be_asked_for() {
        let volume = |name: &str, users: &[&str]| pb::Volume {
            name: name.into(),
            users: users.iter().map(ToString::to_string).collect(),
            ..Default::default()
        };
        let volumes = [volume("data", &["db.1"]), volume("old", &[])];
        expect![[r"
            DRIVER    VOLUME NAME
            local     data
            local     old
        "]]
        .assert_eq(&render(&volumes, &Options::default()).expect("it renders"));
        let filters = vec!["dangling=true".parse().expect("a filter")];
        let options = Options { quiet: true, filters, ..Options::default() };
        assert_eq!(render(&volumes, &options).expect("it renders"), "old\n");
    }
}
