//! `rswarm network inspect backend`

use crate::cli::client::checked;
use crate::cli::context::Context;
use crate::cli::output::inspect;
use crate::cli::view;
use anyhow::Result;
use rswarm_control::model::Network;

/// Show all there is to know of networks
#[derive(Debug, clap::Args)]
pub struct Inspect {
    /// Ids, beginnings of ids, or names
    #[arg(required = true, value_name = "NETWORK")]
    networks: Vec<String>,
    /// `json`, or a template such as '{{(index .IPAM.Config 0).Subnet}}'
    #[arg(short, long, value_name = "FORMAT")]
    format: Option<String>,
}

impl Inspect {
    /// Carries the command out.
    ///
    /// # Errors
    /// If there is no such network, or the manager refuses.
    pub async fn run(self, cx: &mut Context) -> Result<()> {
        let networks: Vec<Network> = checked(cx.client().await?.networks(&self.networks).await?)?;
        let view = |network: &Network| inspect::dated(view::network::network(network), cx.age());
        let views: Vec<_> = networks.iter().map(view).collect();
        cx.out.write_all(inspect::print(&views, self.format.as_deref())?.as_bytes())?;
        Ok(())
    }
}
