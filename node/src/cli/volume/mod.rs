//! `rswarm volume`

pub mod create;
pub mod inspect;
pub mod ls;
pub mod prune;
pub mod restore;
pub mod rm;
pub mod snapshot;

use super::context::Context;
use super::failure::refused;
use anyhow::Result;
use clap::Subcommand;
use rswarm_proto::v1 as pb;

/// Manage this node's volumes
#[derive(Debug, Subcommand)]
#[allow(missing_docs, reason = "each variant is described by its type")]
pub enum VolumeCommand {
    Create(create::Create),
    #[command(visible_alias = "list")]
    Ls(ls::Ls),
    Inspect(inspect::Inspect),
    #[command(visible_alias = "remove")]
    Rm(rm::Rm),
    Prune(prune::Prune),
    Snapshot(snapshot::Snapshot),
    Restore(restore::Restore),
}

impl VolumeCommand {
    /// Carries the command out.
    ///
    /// # Errors
    /// With the words for the user.
    pub async fn run(self, cx: &mut Context) -> Result<()> {
        match self {
            Self::Create(command) => command.run(cx).await,
            Self::Ls(command) => command.run(cx).await,
            Self::Inspect(command) => command.run(cx).await,
            Self::Rm(command) => command.run(cx).await,
            Self::Prune(command) => command.run(cx).await,
            Self::Snapshot(command) => command.run(cx).await,
            Self::Restore(command) => command.run(cx).await,
        }
    }
}

/// The volumes named, or all.
async fn volumes(cx: &Context, names: Vec<String>) -> Result<Vec<pb::Volume>> {
    let answer = cx.client().await?.local.list_volumes(pb::ListVolumesRequest { names }).await;
    Ok(answer.map_err(|status| refused(&status))?.into_inner().volumes)
}
