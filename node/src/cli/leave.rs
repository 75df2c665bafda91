//! `rswarm leave`

use super::context::Context;
use super::failure::refused;
use anyhow::{Context as _, Result};
use rswarm_proto::v1 as pb;

/// Take this machine out of its cluster
#[derive(Debug, clap::Args)]
pub struct Leave {
    /// Leave although this node is a manager, or nobody can be told
    #[arg(short, long)]
    force: bool,
}

impl Leave {
    /// Carries the command out.
    ///
    /// # Errors
    /// If the daemon refuses: a manager leaves only by force.
    pub async fn run(self, cx: &mut Context) -> Result<()> {
        let left = cx.client().await?.local.leave(pb::LeaveRequest { force: self.force }).await;
        left.map_err(|status| refused(&status)).context("cannot leave the cluster")?;
        writeln!(cx.out, "Node left the cluster.")?;
        Ok(())
    }
}
