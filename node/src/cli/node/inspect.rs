//! `rswarm node inspect self`

use super::{all, find};
use crate::cli::context::Context;
use crate::cli::output::{inspect, units};
use crate::cli::view;
use crate::cli::view::node::Manager;
use anyhow::Result;
use rswarm_control::model::{Node, Role, stock_texts};
use rswarm_proto::v1 as pb;
use std::fmt::Write as _;

/// Show all there is to know of nodes
#[derive(Debug, clap::Args)]
pub struct Inspect {
    /// Ids, beginnings of ids, host names, or `self`
    #[arg(required = true, value_name = "NODE")]
    nodes: Vec<String>,
    /// `json`, or a template such as '{{.Description.Hostname}}'
    #[arg(short, long, value_name = "FORMAT", conflicts_with = "pretty")]
    format: Option<String>,
    /// Print for people
    #[arg(long)]
    pretty: bool,
}

impl Inspect {
    /// Carries the command out.
    ///
    /// # Errors
    /// If there is no such node, or the manager refuses.
    pub async fn run(self, cx: &mut Context) -> Result<()> {
        let (nodes, answer) = all(&mut cx.client().await?).await?;
        let named = self.nodes.iter().map(|name| find(&nodes, &answer.self_id, name));
        let named: Vec<&Node> = named.collect::<Result<_, _>>()?;
        let text = if self.pretty {
            named
                .iter()
                .map(|node| pretty(node, manager(node, &answer)))
                .collect::<Result<Vec<_>, _>>()?
                .join("\n")
        } else {
            let view = |node: &&Node| view::node::node(node, manager(node, &answer));
            let views: Vec<_> = named.iter().map(|node| inspect::dated(view(node), cx.age())).collect();
            inspect::print(&views, self.format.as_deref())?
        };
        cx.out.write_all(text.as_bytes())?;
        Ok(())
    }
}

fn manager(node: &Node, answer: &pb::ListNodesResponse) -> Option<Manager> {
    let id = node.id.to_string();
    let leader = id == answer.leader_id;
    (node.role == Role::Manager)
        .then(|| Manager { leader, reachable: leader || answer.reachable_managers.contains(&id) })
}

fn pretty(node: &Node, manager: Option<Manager>) -> Result<String, std::fmt::Error> {
    let mut text = String::new();
    writeln!(text, "ID:\t\t\t{}", node.id)?;
    if !node.labels.is_empty() {
        writeln!(text, "Labels:")?;
        for (key, value) in &node.labels {
            writeln!(text, " - {key}={value}")?;
        }
    }
    if !node.taints.is_empty() {
        writeln!(text, "Taints:")?;
        for taint in &node.taints {
            writeln!(text, " - {taint}")?;
        }
    }
    writeln!(text, "Hostname:\t\t{}", node.hostname)?;
    writeln!(text, "Joined at:\t\t{}", units::long_time(node.meta.created_at.0.saturating_mul(1_000_000)))?;
    writeln!(text, "Status:")?;
    writeln!(text, " State:\t\t\t{}", super::status_name(node.status))?;
    if !node.message.is_empty() {
        writeln!(text, " Message:\t\t{}", node.message)?;
    }
    writeln!(text, " Availability:\t\t{}", super::availability_name(node.availability))?;
    writeln!(text, " Address:\t\t{}", node.addr)?;
    if let Some(manager) = manager {
        writeln!(text, "Manager Status:")?;
        writeln!(text, " Raft Status:\t\t{}", if manager.reachable { "Reachable" } else { "Unreachable" })?;
        writeln!(text, " Leader:\t\t{}", if manager.leader { "Yes" } else { "No" })?;
    }
    let description = &node.description;
    writeln!(text, "Platform:")?;
    writeln!(text, " Operating System:\t{}", description.os)?;
    writeln!(text, " Architecture:\t\t{}", description.arch)?;
    writeln!(text, " Kernel:\t\t{}", description.kernel)?;
    writeln!(text, "Resources:")?;
    writeln!(text, " CPUs:\t\t\t{}", units::cpus(description.capacity.nano_cpus))?;
    writeln!(text, " Memory:\t\t{}", units::memory(description.capacity.memory_bytes))?;
    for stock in stock_texts(&description.generic) {
        writeln!(text, " Generic:\t\t{stock}")?;
    }
    if !description.labels.is_empty() {
        writeln!(text, "Engine Labels:")?;
        for (key, value) in &description.labels {
            writeln!(text, " - {key}={value}")?;
        }
    }
    writeln!(text, "Engine Version:\t\t{}", description.engine_version)?;
    for warning in &description.warnings {
        writeln!(text, "Warning:\t\t{warning}")?;
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::view::samples;
    use expect_test::expect;

    #[test]
    fn a_node_is_told_to_people() {
        let mut node = samples::node("n1", 1);
        node.description.warnings = vec!["cannot enforce memory limits".into()];
        let text = pretty(&node, Some(Manager { leader: true, reachable: true })).expect("it renders");
        expect![[r"
            ID:			0000000000001
            Hostname:		n1
            Joined at:		2026-11-20 23:04:07 +0000 UTC
            Status:
             State:			Ready
             Availability:		Active
             Address:		10.0.0.1:2377
            Manager Status:
             Raft Status:		Reachable
             Leader:		Yes
            Platform:
             Operating System:	linux
             Architecture:		x86_64
             Kernel:		6.1.0
            Resources:
             CPUs:			2
             Memory:		4GiB
            Engine Version:		0.1.0
            Warning:		cannot enforce memory limits
        "]]
        .assert_eq(&text);
    }
}
