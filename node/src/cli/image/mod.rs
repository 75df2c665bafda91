//! `rswarm image`

pub mod load;
pub mod ls;
pub mod pull;
pub mod rm;

use super::context::Context;
use anyhow::Result;
use clap::Subcommand;

/// Manage this node's images
#[derive(Debug, Subcommand)]
#[allow(missing_docs, reason = "each variant is described by its type")]
pub enum ImageCommand {
    #[command(visible_alias = "list")]
    Ls(ls::Ls),
    Pull(pull::Pull),
    Load(load::Load),
    #[command(visible_alias = "remove")]
    Rm(rm::Rm),
}

impl ImageCommand {
    /// Carries the command out.
    ///
    /// # Errors
    /// With the words for the user.
    pub async fn run(self, cx: &mut Context) -> Result<()> {
        match self {
            Self::Ls(command) => command.run(cx).await,
            Self::Pull(command) => command.run(cx).await,
            Self::Load(command) => command.run(cx).await,
            Self::Rm(command) => command.run(cx).await,
        }
    }
}
