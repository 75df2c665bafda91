//! `rswarm network ls`

use crate::cli::client::checked;
use crate::cli::context::Context;
use crate::cli::output::filter;
use crate::cli::output::listing::{Listing, Options};
use crate::cli::output::value::{Struct, Value};
use anyhow::Result;
use rswarm_control::model::Network;

/// List the networks
#[derive(Debug, clap::Args)]
pub struct Ls {
    #[command(flatten)]
    options: Options,
    /// Ids are always whole; taken for compatibility
    #[arg(long, hide = true)]
    no_trunc: bool,
}

/// How networks are listed.
pub const LISTING: Listing = Listing {
    columns: &[
        ("ID", "NETWORK ID"),
        ("Name", "NAME"),
        ("Driver", "DRIVER"),
        ("Scope", "SCOPE"),
        ("Subnet", "SUBNET"),
        ("Internal", "INTERNAL"),
        ("Isolated", "ISOLATED"),
        ("Labels", "LABELS"),
        ("CreatedAt", "CREATED AT"),
    ],
    table: "{{.ID}}\t{{.Name}}\t{{.Driver}}\t{{.Scope}}",
    raw: "network_id: {{.ID}}\nname: {{.Name}}\ndriver: {{.Driver}}\nscope: {{.Scope}}\n",
};

impl Ls {
    /// Carries the command out.
    ///
    /// # Errors
    /// If the manager refuses, or the options make no sense.
    pub async fn run(mut self, cx: &mut Context) -> Result<()> {
        filter::known(&self.options.filters, &["id", "name", "label", "driver", "scope"])?;
        let networks = checked(cx.client().await?.networks(&[]).await?)?;
        self.options.age = cx.age();
        cx.out.write_all(render(networks, &self.options)?.as_bytes())?;
        Ok(())
    }
}

fn render(mut networks: Vec<Network>, options: &Options) -> Result<String> {
    let filters = &options.filters;
    networks.retain(|network| {
        filter::any(filters, "id", |id| network.id.to_string().starts_with(id))
            && filter::any(filters, "name", |name| network.name.contains(name))
            && filter::any(filters, "driver", |driver| driver == "overlay")
            && filter::any(filters, "scope", |scope| scope == "swarm")
            && filter::labels(filters, "label", &network.labels)
    });
    networks.sort_by(|a, b| a.name.cmp(&b.name));
    let rows: Vec<Struct> = networks.iter().map(row).collect();
    LISTING.print(&rows, "ID", options)
}

fn row(network: &Network) -> Struct {
    let labels: Vec<String> = network.labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
    Struct::new("network")
        .with("CreatedAt", Value::time_ms(network.meta.created_at.0))
        .with("Driver", "overlay")
        .with("ID", network.id.to_string())
        .with("Internal", network.internal)
        .with("Isolated", network.isolated)
        .with("Labels", labels.join(","))
        .with("Name", &network.name)
        .with("Scope", "swarm")
        .with("Subnet", network.subnet.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::view::samples;
    use expect_test::expect;
    use rswarm_control::NetworkId;

    #[test]
    fn networks_are_listed_by_name() {
        let network = |id, name: &str| Network { id: NetworkId(id), name: name.into(), ..samples::network() };
        let networks = vec![network(2, "default"), network(1, "backend")];
        expect![[r"
            NETWORK ID      NAME      DRIVER    SCOPE
            0000000000001   backend   overlay   swarm
            0000000000002   default   overlay   swarm
        "]]
        .assert_eq(&render(networks, &Options::default()).expect("it renders"));
    }
}
