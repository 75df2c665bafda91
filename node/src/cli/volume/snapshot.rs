//! `rswarm volume snapshot data monday`

use crate::cli::context::Context;
use crate::cli::failure::refused;
use anyhow::{Context as _, Result};
use rswarm_proto::v1 as pb;

/// Copy a volume on this node as it is now
#[derive(Debug, clap::Args)]
pub struct Snapshot {
    /// Name of the volume
    #[arg(value_name = "VOLUME")]
    volume: String,
    /// Name of the snapshot
    #[arg(value_name = "SNAPSHOT")]
    snapshot: String,
}

impl Snapshot {
    /// Carries the command out.
    ///
    /// # Errors
    /// If there is no such volume, it has such a snapshot, or the disk is full.
    pub async fn run(self, cx: &mut Context) -> Result<()> {
        let Self { volume, snapshot } = self;
        let request = pb::SnapshotVolumeRequest { name: volume.clone(), snapshot: snapshot.clone() };
        let done = cx.client().await?.local.snapshot_volume(request).await.map_err(|status| refused(&status));
        done.with_context(|| format!("cannot copy `{volume}`"))?;
        writeln!(cx.out, "{snapshot}")?;
        Ok(())
    }
}
