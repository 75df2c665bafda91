//! `rswarm update --placement binpack`

use super::context::Context;
use super::failure::{Failure, refused};
use anyhow::{Context as _, Result};
use clap::ValueEnum;
use rswarm_proto::v1 as pb;

/// Change the settings of the cluster
#[derive(Debug, clap::Args)]
pub struct Update {
    /// How nodes are filled with the tasks of services that do not say so themselves
    #[arg(long, value_enum)]
    placement: Option<FillingArg>,
    /// Ended tasks remembered for each slot
    #[arg(long, value_name = "N")]
    task_history_limit: Option<u32>,
    /// When a node has been back for a minute, move tasks to where they would be placed then: one at a time, as
    /// `rswarm service rebalance` does. Off by default
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    rebalance_on_return: Option<bool>,
}

/// How nodes are filled, as an option's value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum FillingArg {
    /// The node with the fewest tasks first
    Spread,
    /// The node of which the most is reserved first
    Binpack,
}

impl Update {
    /// Carries the command out.
    ///
    /// # Errors
    /// If nothing is asked for, or the manager refuses.
    pub async fn run(self, cx: &mut Context) -> Result<()> {
        if self.placement.is_none() && self.task_history_limit.is_none() && self.rebalance_on_return.is_none()
        {
            let failure = Failure::failed("nothing to change");
            return Err(failure.help("`rswarm update --help` shows what can be changed").into());
        }
        let placement = self.placement.map(|filling| match filling {
            FillingArg::Spread => pb::Filling::Spread.into(),
            FillingArg::Binpack => pb::Filling::BinPack.into(),
        });
        let (task_history_limit, rebalance_on_return) = (self.task_history_limit, self.rebalance_on_return);
        let request = pb::UpdateClusterRequest { placement, task_history_limit, rebalance_on_return };
        let mut client = cx.client().await?;
        let updated = client.control.update_cluster(request).await;
        updated.map_err(|status| refused(&status)).context("cannot update the cluster")?;
        writeln!(cx.out, "Cluster updated.")?;
        Ok(())
    }
}
