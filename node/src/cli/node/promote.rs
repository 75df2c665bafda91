//! `rswarm node promote n2`

use super::set_role;
use crate::cli::context::Context;
use anyhow::Result;
use rswarm_proto::v1 as pb;

/// Make nodes managers
#[derive(Debug, clap::Args)]
pub struct Promote {
    /// Ids, beginnings of ids, or host names
    #[arg(required = true, value_name = "NODE")]
    nodes: Vec<String>,
}

impl Promote {
    /// Carries the command out.
    ///
    /// # Errors
    /// If there is no such node, or the manager refuses.
    pub async fn run(self, cx: &mut Context) -> Result<()> {
        set_role(cx, &self.nodes, pb::Role::Manager).await
    }
}
