//! `rswarm service apply-plan FILE`

use super::dry_run;
use super::wait;
use crate::cli::context::Context;
use crate::cli::failure::refused;
use anyhow::{Context as _, Result};
use rswarm_proto::v1 as pb;
use std::path::PathBuf;

/// Do what a plan says, if it still holds
#[derive(Debug, clap::Args)]
pub struct ApplyPlan {
    /// What --plan-out wrote
    #[arg(value_name = "FILE")]
    file: PathBuf,
    #[command(flatten)]
    wait: wait::Options,
}

impl ApplyPlan {
    /// Carries the command out.
    ///
    /// # Errors
    /// If the file is no plan, the cluster has moved in what matters, or a service does not come to run.
    pub async fn run(self, cx: &mut Context) -> Result<()> {
        let plan = dry_run::read(&self.file)?;
        let mut client = cx.client().await?;
        let answer = client.insight.apply_plan(pb::ApplyPlanRequest { plan: plan.into() }).await;
        let answer = answer.map_err(|status| refused(&status));
        let answer = answer.with_context(|| format!("cannot apply {}", self.file.display()))?.into_inner();
        writeln!(cx.out, "{}", answer.name)?;
        cx.out.flush()?;
        match answer.service {
            Some(service) => wait::revised(cx, &mut client, &answer.name, &service, &self.wait).await,
            None => Ok(()),
        }
    }
}
