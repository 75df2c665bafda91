//! `rswarm service rm web`

use super::wait;
use crate::cli::context::Context;
use crate::cli::failure::refused;
use anyhow::{Context as _, Result};
use rswarm_proto::v1 as pb;

/// Remove services and stop their tasks
#[derive(Debug, clap::Args)]
pub struct Rm {
    /// Ids, beginnings of ids, or names
    #[arg(required = true, value_name = "SERVICE")]
    services: Vec<String>,
    #[command(flatten)]
    wait: wait::Options,
}

impl Rm {
    /// Carries the command out: all are removed first, then waited for.
    ///
    /// # Errors
    /// If there is no such service, the manager refuses, or tasks do not stop in time.
    pub async fn run(self, cx: &mut Context) -> Result<()> {
        let mut client = cx.client().await?;
        let mut removed = Vec::new();
        for name in self.services {
            let answer =
                client.control.remove_service(pb::RemoveServiceRequest { service: name.clone() }).await;
            let answer = answer.map_err(|status| refused(&status));
            removed.push(answer.with_context(|| format!("cannot remove `{name}`"))?.into_inner());
            writeln!(cx.out, "{name}")?;
        }
        cx.out.flush()?;
        for service in removed {
            wait::removed(cx, &mut client, &service, &self.wait).await?;
        }
        Ok(())
    }
}
