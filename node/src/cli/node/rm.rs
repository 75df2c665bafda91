//! `rswarm node rm n3`

use crate::cli::context::Context;
use crate::cli::failure::refused;
use anyhow::{Context as _, Result};
use rswarm_proto::v1 as pb;

/// Remove nodes that are down or have left
#[derive(Debug, clap::Args)]
pub struct Rm {
    /// Ids, beginnings of ids, or host names
    #[arg(required = true, value_name = "NODE")]
    nodes: Vec<String>,
    /// Remove them although they are up
    #[arg(short, long)]
    force: bool,
}

impl Rm {
    /// Carries the command out.
    ///
    /// # Errors
    /// If there is no such node, or the manager refuses.
    pub async fn run(self, cx: &mut Context) -> Result<()> {
        let mut client = cx.client().await?;
        for node in self.nodes {
            let request = pb::RemoveNodeRequest { node: client.node(&node).await?, force: self.force };
            let removed = client.control.remove_node(request).await;
            removed.map_err(|status| refused(&status)).with_context(|| format!("cannot remove `{node}`"))?;
            writeln!(cx.out, "{node}")?;
        }
        Ok(())
    }
}
