//! `rswarm node update --availability drain n2`

use super::{AvailabilityArg, RoleArg};
use crate::cli::context::Context;
use crate::cli::failure::refused;
use crate::cli::service::dry_run::DryRun;
use crate::cli::service::flags::Label;
use anyhow::{Context as _, Result};
use rswarm_control::model::{Taint, Toleration};
use rswarm_proto::v1 as pb;
use rswarm_proto::v1::planned_request::What;

/// Change a node
#[derive(Debug, clap::Args)]
pub struct Update {
    /// Id, beginning of an id, host name, or `self`
    node: String,
    /// Whether the node may be given tasks
    #[arg(long, value_enum)]
    availability: Option<AvailabilityArg>,
    /// What the node is for
    #[arg(long, value_enum)]
    role: Option<RoleArg>,
    /// Add or replace a label
    #[arg(long, value_name = "KEY[=VALUE]")]
    label_add: Vec<Label>,
    /// Remove a label
    #[arg(long, value_name = "KEY")]
    label_rm: Vec<String>,
    /// Keep tasks away that do not tolerate it; the effects are no-schedule, prefer-no-schedule and no-execute
    #[arg(long, value_name = "KEY[=VALUE]:EFFECT")]
    taint_add: Vec<Taint>,
    /// Remove the taints of this key
    #[arg(long, value_name = "KEY[=VALUE][:EFFECT]")]
    taint_rm: Vec<Toleration>,
    #[command(flatten)]
    dry: DryRun,
}

impl Update {
    /// Carries the command out.
    ///
    /// # Errors
    /// If there is no such node, or the manager refuses.
    pub async fn run(self, cx: &mut Context) -> Result<()> {
        let mut client = cx.client().await?;
        let request = pb::UpdateNodeRequest {
            node: client.node(&self.node).await?,
            version: 0,
            availability: self.availability.map(|availability| pb::Availability::from(availability).into()),
            role: self.role.map(|role| pb::Role::from(role).into()),
            labels_add: self.label_add.into_iter().map(|label| (label.key, label.value)).collect(),
            labels_rm: self.label_rm,
            taints_add: self.taint_add.iter().map(ToString::to_string).collect(),
            taints_rm: self.taint_rm.iter().map(ToString::to_string).collect(),
        };
        if self.dry.is_asked() {
            let what = || format!("cannot update `{}`", self.node);
            return self.dry.rehearse(cx, &mut client, What::UpdateNode(request)).await.with_context(what);
        }
        let updated = client.control.update_node(request).await;
        updated
            .map_err(|status| refused(&status))
            .with_context(|| format!("cannot update `{}`", self.node))?;
        writeln!(cx.out, "{}", self.node)?;
        Ok(())
    }
}
