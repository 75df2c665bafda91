//! `rswarm node inspect self`

use super::{all, find};
use crate::cli::context::Context;
use crate::cli::output::{inspect, units};
use crate::cli::view;
use crate::cli::view::node::Manager;
use anyhow::Result;
use rswarm_control::model::{Node, Resources, Role, stock_texts};
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
        let mut client = cx.client().await?;
        let (nodes, answer) = all(&mut client).await?;
        let named = self.nodes.iter().map(|name| find(&nodes, &answer.self_id, name));
        let named: Vec<&Node> = named.collect::<Result<_, _>>()?;
        let ids = named.iter().map(|node| node.id.to_string()).collect();
        let tasks = client.tasks(pb::ListTasksRequest { nodes: ids, ..Default::default() }).await?.tasks;
        let text = if self.pretty {
            named
                .iter()
                .map(|node| {
                    let reserved = reserved(node, &tasks);
                    pretty(node, manager(node, &answer), &remaining(node, &answer), &reserved)
                })
                .collect::<Result<Vec<_>, _>>()?
                .join("\n")
        } else {
            let view = |node: &Node| {
                let reserved = reserved(node, &tasks);
                view::node::node(node, manager(node, &answer), &remaining(node, &answer), Some(&reserved))
            };
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

/// What is still on a drained node, and why.
fn remaining<'a>(node: &Node, answer: &'a pb::ListNodesResponse) -> Vec<&'a pb::Remaining> {
    let id = node.id.to_string();
    answer.remaining.iter().filter(|left| left.node_id == id).collect()
}

/// What its tasks have reserved of it, until they have ended.
fn reserved(node: &Node, tasks: &[pb::Task]) -> Resources {
    let id = node.id.to_string();
    let here = tasks.iter().filter(|task| task.node == id && task.observed() <= pb::Observed::Running);
    let each = here.filter_map(|task| task.spec.as_ref()?.resources.as_ref()?.reservations);
    each.map(Resources::from).fold(Resources::default(), |sum, one| Resources {
        nano_cpus: sum.nano_cpus.saturating_add(one.nano_cpus),
        memory_bytes: sum.memory_bytes.saturating_add(one.memory_bytes),
    })
}

fn pretty(
    node: &Node,
    manager: Option<Manager>,
    remaining: &[&pb::Remaining],
    reserved: &Resources,
) -> Result<String, std::fmt::Error> {
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
    if !remaining.is_empty() {
        writeln!(text, "Still to leave:")?;
        for left in remaining {
            writeln!(text, " - {}: {}", left.name, left.why)?;
        }
    }
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
    writeln!(text, " Reserved CPUs:\t\t{}", units::cpus(reserved.nano_cpus))?;
    writeln!(text, " Reserved Memory:\t{}", units::memory(reserved.memory_bytes))?;
    for stock in stock_texts(&description.generic) {
        writeln!(text, " Generic:\t\t{stock}")?;
    }
    for device in &description.devices {
        writeln!(text, " Device:\t\t{device}")?;
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
        let text = pretty(&node, Some(Manager { leader: true, reachable: true }), &[], &Resources::default());
        let text = text.expect("it renders");
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
             Reserved CPUs:		0
             Reserved Memory:	0B
            Engine Version:		0.1.0
            Warning:		cannot enforce memory limits
        "]]
        .assert_eq(&text);
    }

    #[test]
    fn what_tasks_have_reserved_is_told_until_they_have_ended() {
        let node = samples::node("n1", 1);
        let task = |node: &Node, observed: pb::Observed| pb::Task {
            node: node.id.to_string(),
            observed: observed.into(),
            spec: Some(pb::TaskSpec {
                resources: Some(pb::TaskResources {
                    reservations: Some(pb::Resources { nano_cpus: 500_000_000, memory_bytes: 1 << 30 }),
                    ..Default::default()
                }),
                ..Default::default()
            }),
            ..Default::default()
        };
        let tasks = [
            task(&node, pb::Observed::Running),
            task(&node, pb::Observed::Assigned),
            task(&node, pb::Observed::Failed),
            task(&samples::node("n2", 2), pb::Observed::Running),
        ];
        let text = pretty(&node, None, &[], &reserved(&node, &tasks)).expect("it renders");
        assert!(text.contains(" Reserved CPUs:\t\t1\n Reserved Memory:\t2GiB\n"), "{text}");
    }

    #[test]
    fn it_is_told_what_keeps_a_drained_node_from_being_empty() {
        let node = samples::node("n1", 1);
        let left = |node_id: &Node, name: &str| pb::Remaining {
            node_id: node_id.id.to_string(),
            task_id: "0000000000009".into(),
            name: name.into(),
            why: "it is being stopped".into(),
        };
        let remaining_all = vec![left(&node, "web.1"), left(&samples::node("n2", 2), "web.2")];
        let answer = pb::ListNodesResponse { remaining: remaining_all, ..Default::default() };
        let left = remaining(&node, &answer);
        let text = pretty(&node, None, &left, &Resources::default()).expect("it renders");
        assert!(text.contains("Still to leave:\n - web.1: it is being stopped\nPlatform"), "{text}");
        let json = view::node::node(&node, None, &left, None).to_json();
        let part = r#""Remaining":[{"Task":"web.1","TaskID":"0000000000009","Why":"it is being stopped"}]"#;
        assert!(json.contains(part), "{json}");
    }
}
