//! `rswarm service rebalance web --dry-run`

use super::dry_run::DryRun;
use super::wait;
use crate::cli::context::Context;
use crate::cli::failure::refused;
use anyhow::{Context as _, Result};
use rswarm_proto::v1 as pb;
use rswarm_proto::v1::planned_request::What;

/// Move tasks to where they would be placed now, within their services' update settings
#[derive(Debug, clap::Args)]
pub struct Rebalance {
    /// Names or ids; all that can be moved where none is named
    #[arg(value_name = "SERVICE")]
    services: Vec<String>,
    #[command(flatten)]
    dry: DryRun,
    #[command(flatten)]
    wait: wait::Options,
}

impl Rebalance {
    /// Carries the command out: all services begin first, then they are waited for.
    ///
    /// # Errors
    /// If there is no such service, its tasks cannot be moved, or do not come to run.
    pub async fn run(self, cx: &mut Context) -> Result<()> {
        let request = pb::RebalanceRequest { services: self.services, author: crate::cli::author() };
        let mut client = cx.client().await?;
        if self.dry.is_asked() {
            let told = self.dry.rehearse(cx, &mut client, What::Rebalance(request)).await;
            return told.context("cannot rebalance");
        }
        let answer = client.control.rebalance(request).await.map_err(|status| refused(&status));
        let answer = answer.context("cannot rebalance")?.into_inner();
        if answer.services.is_empty() {
            writeln!(cx.out, "Every task is where it would be placed now.")?;
        }
        for service in &answer.services {
            writeln!(cx.out, "{}", service.name)?;
        }
        cx.out.flush()?;
        for service in answer.services {
            let updated = service.service.unwrap_or_default();
            wait::revised(cx, &mut client, &service.name, &updated, &self.wait).await?;
        }
        Ok(())
    }
}
