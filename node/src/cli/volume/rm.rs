//! `rswarm volume rm data`

use crate::cli::context::Context;
use crate::cli::failure::refused;
use anyhow::{Context as _, Result};
use rswarm_proto::v1 as pb;

/// Remove volumes with their files and snapshots from this node
#[derive(Debug, clap::Args)]
pub struct Rm {
    /// Names
    #[arg(required = true, value_name = "VOLUME")]
    volumes: Vec<String>,
    /// Volumes that are not there are no error
    #[arg(short, long)]
    force: bool,
}

impl Rm {
    /// Carries the command out.
    ///
    /// # Errors
    /// If there is no such volume, or a container has it.
    pub async fn run(self, cx: &mut Context) -> Result<()> {
        let mut client = cx.client().await?;
        for name in self.volumes {
            let request = pb::RemoveVolumeRequest { name: name.clone(), force: self.force };
            let removed = client.local.remove_volume(request).await.map_err(|status| refused(&status));
            removed.with_context(|| format!("cannot remove `{name}`"))?;
            writeln!(cx.out, "{name}")?;
        }
        Ok(())
    }
}
