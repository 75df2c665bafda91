//! `rswarm volume restore data monday`

use crate::cli::context::Context;
use crate::cli::failure::refused;
use anyhow::{Context as _, Result};
use rswarm_proto::v1 as pb;

/// Put a snapshot in the place of a volume on this node that no container has
#[derive(Debug, clap::Args)]
pub struct Restore {
    /// Name of the volume
    #[arg(value_name = "VOLUME")]
    volume: String,
    /// Name of the snapshot
    #[arg(value_name = "SNAPSHOT")]
    snapshot: String,
}

impl Restore {
    /// Carries the command out.
    ///
    /// # Errors
    /// If there is no such volume or snapshot, or a container has it.
    pub async fn run(self, cx: &mut Context) -> Result<()> {
        let Self { volume, snapshot } = self;
        let request = pb::SnapshotVolumeRequest { name: volume.clone(), snapshot: snapshot.clone() };
        let done = cx.client().await?.local.restore_volume(request).await.map_err(|status| refused(&status));
        done.with_context(|| format!("cannot restore `{volume}`"))?;
        writeln!(cx.out, "{snapshot}")?;
        Ok(())
    }
}
