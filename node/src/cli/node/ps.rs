//! `rswarm node ps`

use super::{all, find};
use crate::cli::context::Context;
use crate::cli::service::ps::{self, PsOptions};
use anyhow::Result;
use rswarm_proto::v1 as pb;

/// List the tasks of nodes
#[derive(Debug, clap::Args)]
pub struct Ps {
    /// Ids, beginnings of ids, host names, or `self`
    #[arg(value_name = "NODE", default_value = "self")]
    nodes: Vec<String>,
    #[command(flatten)]
    options: PsOptions,
}

impl Ps {
    /// Carries the command out.
    ///
    /// # Errors
    /// If there is no such node, or the manager refuses.
    pub async fn run(self, cx: &mut Context) -> Result<()> {
        self.options.check()?;
        let mut client = cx.client().await?;
        let (known, answer) = all(&mut client).await?;
        let ids =
            self.nodes.iter().map(|name| find(&known, &answer.self_id, name).map(|node| node.id.to_string()));
        let nodes = ids.collect::<Result<_, _>>()?;
        let tasks = client.tasks(pb::ListTasksRequest { nodes, ..Default::default() }).await?;
        ps::print(cx, tasks, self.options)
    }
}
