//! `rswarm volume inspect data`

use crate::cli::context::Context;
use crate::cli::output::inspect;
use crate::cli::output::value::{Struct, Value};
use anyhow::Result;
use rswarm_proto::v1 as pb;

/// Show all there is to know of volumes on this node
#[derive(Debug, clap::Args)]
pub struct Inspect {
    /// Names
    #[arg(required = true, value_name = "VOLUME")]
    volumes: Vec<String>,
    /// `json`, or a template such as '{{.Mountpoint}}'
    #[arg(short, long, value_name = "FORMAT")]
    format: Option<String>,
}

impl Inspect {
    /// Carries the command out.
    ///
    /// # Errors
    /// If there is no such volume.
    pub async fn run(self, cx: &mut Context) -> Result<()> {
        let volumes = super::volumes(cx, self.volumes).await?;
        let views: Vec<Value> = volumes.iter().map(view).collect();
        cx.out.write_all(inspect::print(&views, self.format.as_deref())?.as_bytes())?;
        Ok(())
    }
}

fn view(volume: &pb::Volume) -> Value {
    let labels = volume.labels.iter().map(|(key, value)| (key.clone(), Value::Str(value.clone())));
    Struct::new("Volume")
        .with("CreatedAt", Value::time_ms(volume.created_at_ms))
        .with("Driver", "local")
        .with("Labels", Value::Map(labels.collect()))
        .with("Mountpoint", &volume.path)
        .with("Name", &volume.name)
        .with("Scope", "local")
        .with("Snapshots", volume.snapshots.clone())
        .with("UsedBy", volume.users.clone())
        .into()
}
