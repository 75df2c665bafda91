//! `rswarm service`

pub mod apply_plan;
pub mod create;
pub mod dry_run;
pub mod flags;
pub mod health;
pub mod inspect;
pub mod logs;
pub mod ls;
pub mod pace;
pub mod placement;
pub mod profile;
pub mod ps;
pub mod reach;
pub mod rebalance;
pub mod revisions;
pub mod rm;
pub mod scale;
pub mod update;
pub mod wait;
pub mod words;

use super::context::Context;
use anyhow::Result;
use clap::Subcommand;

/// Manage what the cluster runs
#[derive(Debug, Subcommand)]
#[allow(missing_docs, clippy::large_enum_variant, reason = "each is described by its type, and there is one")]
pub enum ServiceCommand {
    Create(create::Create),
    #[command(visible_alias = "list")]
    Ls(ls::Ls),
    Ps(ps::Ps),
    Inspect(inspect::Inspect),
    Update(update::Update),
    Scale(scale::Scale),
    Rollback(revisions::Rollback),
    ApplyPlan(apply_plan::ApplyPlan),
    History(revisions::History),
    Pause(revisions::Pause),
    Resume(revisions::Resume),
    #[command(visible_alias = "remove")]
    Rebalance(rebalance::Rebalance),
    Rm(rm::Rm),
    Logs(logs::Logs),
}

impl ServiceCommand {
    /// Carries the command out.
    ///
    /// # Errors
    /// With the words for the user.
    pub async fn run(self, cx: &mut Context) -> Result<()> {
        match self {
            Self::Create(command) => command.run(cx).await,
            Self::Ls(command) => command.run(cx).await,
            Self::Ps(command) => command.run(cx).await,
            Self::Inspect(command) => command.run(cx).await,
            Self::Update(command) => command.run(cx).await,
            Self::Scale(command) => command.run(cx).await,
            Self::Rollback(command) => command.run(cx).await,
            Self::ApplyPlan(command) => command.run(cx).await,
            Self::History(command) => command.run(cx).await,
            Self::Pause(command) => command.run(cx).await,
            Self::Resume(command) => command.run(cx).await,
            Self::Rebalance(command) => command.run(cx).await,
            Self::Rm(command) => command.run(cx).await,
            Self::Logs(command) => command.run(cx).await,
        }
    }
}
