//! `rswarm status`

mod spare;

use super::client::checked;
use super::context::Context;
use super::output::inspect;
use super::output::table;
use super::output::units::{self, rough};
use super::output::value::{Struct, Value};
use anyhow::Result;
use rswarm_control::model::{Node, Role};
use rswarm_proto::v1 as pb;
use std::fmt::Write as _;
use std::time::Duration;

/// Say how the cluster fares: who leads, who is missing, what is wrong
#[derive(Debug, clap::Args)]
pub struct StatusArgs {
    /// `json`, or a template such as '{{.State}}'
    #[arg(short, long, value_name = "FORMAT")]
    format: Option<String>,
}

impl StatusArgs {
    /// Carries the command out.
    ///
    /// # Errors
    /// If no daemon answers.
    pub async fn run(self, cx: &mut Context) -> Result<()> {
        let status = cx.client().await?.status().await?;
        let text = match self.format {
            Some(format) => inspect::print(&[view(&status)?], Some(&format))?,
            None => render(&status, units::now_ms())?,
        };
        cx.out.write_all(text.as_bytes())?;
        Ok(())
    }
}

fn state_name(state: pb::status_response::State) -> &'static str {
    use pb::status_response::State;
    match state {
        State::Inactive => "inactive",
        State::Pending => "pending",
        State::Active => "active",
        State::Error => "error",
        State::Unspecified => "unknown",
    }
}

fn render(status: &pb::StatusResponse, now_ms: u64) -> Result<String> {
    use pb::status_response::State;
    match status.state() {
        State::Active => active(status, now_ms),
        State::Inactive => Ok("This node is not part of a cluster.\n\n\
             Start one here with `rswarm init`, or join one with `rswarm join --token TOKEN HOST:2377`.\n"
            .into()),
        State::Pending => {
            let mut text = "This node belongs to a cluster but has not reached it yet.\n".to_owned();
            problems(&mut text, &status.problems);
            Ok(text)
        }
        State::Error if !status.cures.is_empty() => {
            let mut text = "This node does not take part in its cluster.\n".to_owned();
            problems(&mut text, &status.problems);
            cures(&mut text, &status.cures);
            Ok(text)
        }
        State::Error | State::Unspecified => Ok(format!(
            "This node has failed: {}\n\n\
             If that cannot be mended, give the membership up with `rswarm leave --force`.\n",
            if status.error.is_empty() { "the daemon does not say why; see its log" } else { &status.error }
        )),
    }
}

fn active(status: &pb::StatusResponse, now_ms: u64) -> Result<String> {
    let nodes: Vec<Node> = checked(status.nodes.clone())?;
    let mut text = String::new();
    let (managers, workers): (Vec<_>, Vec<_>) = nodes.iter().partition(|node| node.role == Role::Manager);
    let (wanted, running) = (status.tasks_wanted, status.tasks_running);
    let counted = |count: usize, what: &str| format!("{count} {what}{}", if count == 1 { "" } else { "s" });
    // Of a lone node there is nothing to say.
    let others = status.spare.as_ref().filter(|_| nodes.len() > 1);
    writeln!(text, "Cluster\t{}", status.cluster_id)?;
    if status.role() == pb::Role::Manager {
        writeln!(
            text,
            "Nodes\t{}, {}",
            counted(managers.len(), "manager"),
            counted(workers.len(), "worker")
        )?;
        writeln!(
            text,
            "Services\t{}, {running} of {} running",
            status.services,
            counted(wanted as usize, "task")
        )?;
        writeln!(text, "Leader\t{}", leader(status))?;
        writeln!(text, "Quorum\t{}", quorum(status))?;
        if let Some(spare) = others.and_then(spare::summary) {
            writeln!(text, "Spare\t{spare}")?;
        }
    } else {
        // A worker knows where the managers are, and whether one of them answers it.
        let addrs: Vec<&str> = status.managers.iter().map(|manager| manager.addr.as_str()).collect();
        writeln!(
            text,
            "Managers\t{}",
            if addrs.is_empty() { "none known".into() } else { addrs.join(", ") }
        )?;
        writeln!(
            text,
            "Contact\t{}",
            if status.quorum { "yes" } else { "LOST: no leader answers this node" }
        )?;
    }
    let role = if status.role() == pb::Role::Manager { "manager" } else { "worker" };
    let up = rough(Duration::from_millis(now_ms.saturating_sub(status.started_at_ms))).to_lowercase();
    writeln!(text, "This node\t{} ({}), {role}, daemon up for {up}", status.hostname, status.node_id)?;
    text = table::align(&text);
    if !nodes.is_empty() {
        text.push('\n');
        text.push_str(&node_table(status, &nodes, now_ms)?);
    }
    problems(&mut text, &status.problems);
    cures(&mut text, &status.cures);
    if let Some(told) = others {
        spare::details(&mut text, told);
    }
    Ok(text)
}

fn leader(status: &pb::StatusResponse) -> String {
    match status.managers.iter().find(|manager| manager.leader) {
        Some(manager) => format!("{} ({}), term {}", manager.hostname, manager.addr, status.term),
        None if status.leader_id.is_empty() => "none".into(),
        None => status.leader_id.clone(),
    }
}

fn quorum(status: &pb::StatusResponse) -> String {
    let voters = status.managers.iter().filter(|manager| manager.voter).count();
    let reachable = status.managers.iter().filter(|manager| manager.voter && manager.reachable).count();
    if voters == 0 {
        return if status.quorum { "yes".into() } else { "no".into() };
    }
    let needed = voters / 2 + 1;
    if !status.quorum {
        return format!(
            "LOST: fewer than {needed} of {voters} managers reach each other; changes are refused"
        );
    }
    let spare = reachable.saturating_sub(needed);
    let spare = match spare {
        0 => "none may fail".into(),
        1 => "1 more may fail".into(),
        spare => format!("{spare} more may fail"),
    };
    format!("{reachable} of {voters} managers reachable, {spare}")
}

fn node_table(status: &pb::StatusResponse, nodes: &[Node], now_ms: u64) -> Result<String> {
    let mut nodes: Vec<&Node> = nodes.iter().collect();
    nodes.sort_by(|a, b| super::node::natural(&a.hostname, &b.hostname).then(a.id.cmp(&b.id)));
    let mut text = "NODE\tROLE\tSTATUS\tAVAILABILITY\tADDRESS\tSINCE\n".to_owned();
    for node in nodes {
        let leads = status.leader_id == node.id.to_string();
        writeln!(
            text,
            "{}\t{}{}\t{}\t{}\t{}\t{}",
            node.hostname,
            node.role,
            if leads { " (leader)" } else { "" },
            super::node::status_name(node.status),
            super::node::availability_name(node.availability),
            node.addr,
            units::ago(node.status_since.0, now_ms).to_lowercase(),
        )?;
    }
    Ok(table::align(&text))
}

fn cures(text: &mut String, cures: &[String]) {
    if cures.is_empty() {
        return;
    }
    text.push_str("\nWhat to do:\n");
    for cure in cures {
        text.push_str(&format!("  - {cure}\n"));
    }
}

fn problems(text: &mut String, problems: &[String]) {
    if problems.is_empty() {
        return;
    }
    text.push_str("\nWhat is wrong:\n");
    for problem in problems {
        text.push_str(&format!("  - {problem}\n"));
    }
}

/// A moment, where there is one.
fn since(at_ms: u64) -> Value {
    if at_ms == 0 { Value::Nil } else { Value::time_ms(at_ms) }
}

fn view(status: &pb::StatusResponse) -> Result<Value> {
    let nodes: Vec<Node> = checked(status.nodes.clone())?;
    let leader = Some(status.leader_id.as_str()).filter(|id| !id.is_empty());
    let manager = |manager: &pb::ManagerStatus| {
        Struct::new("manager")
            .with("NodeID", &manager.node_id)
            .with("Hostname", &manager.hostname)
            .with("Addr", &manager.addr)
            .with("Leader", manager.leader)
            .with("Reachable", manager.reachable)
            .with("Voter", manager.voter)
            .with("MissingSince", since(manager.missing_since_ms))
    };
    let nodes: Vec<Value> = nodes.iter().map(|node| super::view::node::node(node, None, &[], None)).collect();
    Ok(Struct::new("status")
        .with("State", state_name(status.state()))
        .with("NodeID", &status.node_id)
        .with("ClusterID", &status.cluster_id)
        .with("Hostname", &status.hostname)
        .with("Role", if status.role() == pb::Role::Manager { "manager" } else { "worker" })
        .with("Addr", &status.addr)
        .with("LeaderID", leader.unwrap_or_default())
        .with("Term", status.term)
        .with("Applied", status.applied)
        .with("Quorum", status.quorum)
        .with("Managers", Value::from(status.managers.iter().map(manager).collect::<Vec<_>>()))
        .with("Nodes", Value::List(nodes))
        .with("Services", status.services)
        .with("TasksRunning", status.tasks_running)
        .with("TasksWanted", status.tasks_wanted)
        .with("Problems", status.problems.as_slice())
        .with("Cures", status.cures.as_slice())
        .with("Spare", status.spare.as_ref().map_or(Value::Nil, spare::view))
        .with("Incarnation", status.incarnation)
        .with("Level", status.level)
        .with("LeaderlessSince", since(status.leaderless_since_ms))
        .with("Version", &status.version)
        .with("Error", &status.error)
        .with("StartedAt", Value::time_ms(status.started_at_ms))
        .with("StateDir", &status.state_dir)
        .into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::view::samples;
    use expect_test::expect;
    use pb::status_response::State;

    fn response() -> pb::StatusResponse {
        let manager = |name: &str, leader, reachable| pb::ManagerStatus {
            hostname: name.into(),
            addr: format!("10.0.0.{}:2377", &name[1..]),
            leader,
            reachable,
            voter: true,
            ..Default::default()
        };
        pb::StatusResponse {
            state: State::Active.into(),
            node_id: samples::node("n1", 1).id.to_string(),
            leader_id: samples::node("n1", 1).id.to_string(),
            cluster_id: "0000000000clu".into(),
            hostname: "n1".into(),
            role: pb::Role::Manager.into(),
            term: 4,
            quorum: true,
            managers: vec![
                manager("n1", true, true),
                manager("n2", false, true),
                manager("n3", false, false),
            ],
            nodes: [("n10", 10), ("n1", 1), ("n2", 2)]
                .map(|(name, id)| (&samples::node(name, id)).into())
                .to_vec(),
            services: 2,
            tasks_running: 4,
            tasks_wanted: 5,
            problems: vec!["manager n3 has not been heard from for 8 s".into()],
            started_at_ms: samples::NOW - 7_200_000,
            ..Default::default()
        }
    }

    #[test]
    fn it_says_who_leads_and_what_is_wrong() {
        expect![[r#"
            Cluster     0000000000clu
            Nodes       2 managers, 1 worker
            Services    2, 4 of 5 tasks running
            Leader      n1 (10.0.0.1:2377), term 4
            Quorum      2 of 3 managers reachable, none may fail
            This node   n1 (0000000000001), manager, daemon up for 2 hours

            NODE      ROLE               STATUS    AVAILABILITY   ADDRESS          SINCE
            n1        manager (leader)   Ready     Active         10.0.0.1:2377    3 minutes ago
            n2        manager            Ready     Active         10.0.0.2:2377    3 minutes ago
            n10       worker             Ready     Active         10.0.0.10:2377   3 minutes ago

            What is wrong:
              - manager n3 has not been heard from for 8 s
        "#]]
        .assert_eq(&render(&response(), samples::NOW).expect("it renders"));
    }

    #[test]
    fn a_lost_quorum_is_said_loudly() {
        let mut lost = response();
        lost.quorum = false;
        lost.managers[1].reachable = false;
        assert_eq!(quorum(&lost), "LOST: fewer than 2 of 3 managers reach each other; changes are refused");
    }

    #[test]
    fn a_worker_says_only_what_it_knows() {
        let mut worker = response();
        worker.role = pb::Role::Worker.into();
        (worker.nodes, worker.problems, worker.quorum) = (vec![], vec![], false);
        expect![[r"
            Cluster     0000000000clu
            Managers    10.0.0.1:2377, 10.0.0.2:2377, 10.0.0.3:2377
            Contact     LOST: no leader answers this node
            This node   n1 (0000000000001), worker, daemon up for 2 hours
        "]]
        .assert_eq(&render(&worker, samples::NOW).expect("it renders"));
    }

    #[test]
    fn a_node_that_is_not_wanted_as_what_it_is_is_told_what_to_type() {
        let outdated = pb::StatusResponse {
            state: State::Error.into(),
            error: "outdated: `rswarm rejoin`".into(),
            problems: vec!["the cluster was started anew".into()],
            cures: vec!["`rswarm rejoin`".into()],
            ..Default::default()
        };
        expect![[r"
            This node does not take part in its cluster.

            What is wrong:
              - the cluster was started anew

            What to do:
              - `rswarm rejoin`
        "]]
        .assert_eq(&render(&outdated, 0).expect("it renders"));
    }

    #[test]
    fn a_lone_node_is_told_what_to_do() {
        let alone = pb::StatusResponse { state: State::Inactive.into(), ..Default::default() };
        assert!(render(&alone, 0).expect("it renders").contains("`rswarm init`"));
    }
}
