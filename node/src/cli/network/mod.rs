//! `rswarm network`

pub mod can;
pub mod create;
pub mod doctor;
pub mod inspect;
pub mod ls;
pub mod rm;
pub mod update;

use super::context::Context;
use anyhow::Result;
use clap::Subcommand;

/// Manage the networks that containers join
#[derive(Debug, Subcommand)]
#[allow(missing_docs, reason = "each variant is described by its type")]
pub enum NetworkCommand {
    Can(can::Can),
    Create(create::Create),
    Doctor(doctor::Doctor),
    #[command(visible_alias = "list")]
    Ls(ls::Ls),
    Inspect(inspect::Inspect),
    #[command(visible_alias = "remove")]
    Rm(rm::Rm),
    Update(update::Update),
}

impl NetworkCommand {
    /// Carries the command out.
    ///
    /// # Errors
    /// With the words for the user.
    pub async fn run(self, cx: &mut Context) -> Result<()> {
        match self {
            Self::Can(command) => command.run(cx).await,
            Self::Create(command) => command.run(cx).await,
            Self::Doctor(command) => command.run(cx).await,
            Self::Ls(command) => command.run(cx).await,
            Self::Inspect(command) => command.run(cx).await,
            Self::Rm(command) => command.run(cx).await,
            Self::Update(command) => command.run(cx).await,
        }
    }
}
