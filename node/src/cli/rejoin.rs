//! `rswarm rejoin`

use super::context::Context;
use super::failure::refused;
use anyhow::{Context as _, Result};
use rswarm_proto::v1 as pb;

/// Take part again with a node that was away when the cluster was started anew or restored
#[derive(Debug, clap::Args)]
pub struct Rejoin {
    /// Where a manager is now, if none is where this node remembers them
    #[arg(value_name = "IP[:PORT]")]
    addrs: Vec<String>,
}

impl Rejoin {
    /// Carries the command out.
    ///
    /// # Errors
    /// If this node takes part already, or the cluster's leader does not answer.
    pub async fn run(self, cx: &mut Context) -> Result<()> {
        let rejoined = cx.client().await?.local.rejoin(pb::RejoinRequest { addrs: self.addrs }).await;
        let rejoined = rejoined.map_err(|status| refused(&status)).context("cannot rejoin the cluster")?;
        let role = if rejoined.into_inner().role() == pb::Role::Manager { "manager" } else { "worker" };
        writeln!(cx.out, "This node takes part in the cluster again, as a {role}.")?;
        Ok(())
    }
}
