//! `rswarm network update --isolated backend`

use crate::cli::context::Context;
use crate::cli::failure::refused;
use anyhow::{Context as _, Result};
use rswarm_proto::v1 as pb;

/// Change who may connect to whom on a network; tasks go on
#[derive(Debug, clap::Args)]
pub struct Update {
    /// Id, beginning of an id, or name
    network: String,
    /// Let containers connect only to services that allow theirs
    #[arg(long, num_args = 0..=1, default_missing_value = "true", require_equals = true, required = true)]
    isolated: Option<bool>,
}

impl Update {
    /// Carries the command out.
    ///
    /// # Errors
    /// If there is no such network, or the manager refuses.
    pub async fn run(self, cx: &mut Context) -> Result<()> {
        let Self { network, isolated } = self;
        let request = pb::UpdateNetworkRequest { network: network.clone(), isolated };
        let updated = cx.client().await?.control.update_network(request).await;
        updated.map_err(|status| refused(&status)).with_context(|| format!("cannot update `{network}`"))?;
        writeln!(cx.out, "{network}")?;
        Ok(())
    }
}
