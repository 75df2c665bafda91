//! `rswarm network rm backend`

use crate::cli::context::Context;
use crate::cli::failure::refused;
use anyhow::{Context as _, Result};
use rswarm_proto::v1 as pb;

/// Remove networks that nothing uses
#[derive(Debug, clap::Args)]
pub struct Rm {
    /// Ids, beginnings of ids, or names
    #[arg(required = true, value_name = "NETWORK")]
    networks: Vec<String>,
}

impl Rm {
    /// Carries the command out.
    ///
    /// # Errors
    /// If there is no such network, or something uses it.
    pub async fn run(self, cx: &mut Context) -> Result<()> {
        let mut client = cx.client().await?;
        for network in self.networks {
            let request = pb::RemoveNetworkRequest { network: network.clone() };
            let removed = client.control.remove_network(request).await;
            removed
                .map_err(|status| refused(&status))
                .with_context(|| format!("cannot remove `{network}`"))?;
            writeln!(cx.out, "{network}")?;
        }
        Ok(())
    }
}
