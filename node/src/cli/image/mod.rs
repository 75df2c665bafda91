//! `rswarm image`

pub mod history;
pub mod inspect;
pub mod load;
pub mod ls;
pub mod prune;
pub mod pull;
pub mod push;
pub mod rm;
pub mod save;
pub mod tag;

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
    Push(push::Push),
    Load(load::Load),
    Save(save::Save),
    Tag(tag::Tag),
    Inspect(inspect::Inspect),
    History(history::History),
    #[command(visible_alias = "remove")]
    Rm(rm::Rm),
    Prune(prune::Prune),
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
            Self::Push(command) => command.run(cx).await,
            Self::Load(command) => command.run(cx).await,
            Self::Save(command) => command.run(cx).await,
            Self::Tag(command) => command.run(cx).await,
            Self::Inspect(command) => command.run(cx).await,
            Self::History(command) => command.run(cx).await,
            Self::Prune(command) => command.run(cx).await,
            Self::Rm(command) => command.run(cx).await,
        }
    }
}
