//! How this node and its cluster fare, as far as can be told from here without asking anybody.

use super::quorum::{self, Voter};
use crate::daemon::{Daemon, Membership};
use crate::manager::cluster::FREE;
use crate::manager::{self, Manager};
use crate::member::{GIVE_UP, Member, believed};
use crate::wall;
use rswarm_control::model::{Availability, NodeStatus, Observed, Role};
use rswarm_control::state::State;
use rswarm_control::{convergence, drain, liveness, spare};
use rswarm_proto::v1 as pb;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Who has not been heard from for so long is missing.
const SILENT: Duration = Duration::from_secs(3);

fn millis(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}

fn ago(time: Duration) -> u64 {
    millis(wall::now()).saturating_sub(time.as_millis() as u64)
}

/// Answers `rswarm status`.
pub(super) fn status(daemon: &Daemon) -> pb::StatusResponse {
    let mut answer = pb::StatusResponse {
        hostname: crate::machine::hostname(),
        version: env!("CARGO_PKG_VERSION").into(),
        started_at_ms: millis(daemon.started_at),
        state_dir: daemon.ground.config.state_dir.display().to_string(),
        ..Default::default()
    };
    let member = match daemon.membership() {
        Membership::Inactive => {
            answer.state = pb::status_response::State::Inactive.into();
            return answer;
        }
        Membership::Failed(why) => {
            answer.state = pb::status_response::State::Error.into();
            answer.problems.push(why.clone());
            answer.error = why;
            return answer;
        }
        Membership::Active(member) => member,
    };
    let identity = member.identity();
    answer.state = pb::status_response::State::Active.into();
    answer.node_id = identity.node;
    answer.cluster_id = identity.cluster;
    answer.addr = identity.advertise_addr;
    answer.incarnation = rswarm_raft::Incarnation(identity.incarnation).number();
    answer.role = pb::Role::Worker.into();
    if let Some(denial) = member.refused() {
        answer.state = pb::status_response::State::Error.into();
        answer.problems.push(denial.words.clone());
        answer.cures.push(denial.cure.clone());
        answer.error = denial.to_string();
    }
    if let Some(lost) = member.lost() {
        answer.problems.push(format!(
            "this manager has lost what it knew ({lost}) and does not vote; it is made whole by the others as soon \
             as they have a leader"
        ));
        answer.cures.push(format!(
            "if other managers are there, nothing but bringing more than half of them online; only if there are none, \
             the state is lost, and {GIVE_UP}"
        ));
    }
    match member.manager() {
        Some(manager) => {
            answer.level = manager.cluster().state().level();
            manager_status(&manager, &mut answer, daemon.started_at);
        }
        None => node_status(&member, &mut answer),
    }
    answer
}

/// A node without a manager knows where the managers are, and whether they answer.
fn node_status(member: &Member, answer: &mut pb::StatusResponse) {
    let silent = member.agent().silent_for();
    answer.leader_id = member.agent().leader().map(|leader| leader.node).unwrap_or_default();
    answer.quorum = silent.is_some_and(|silent| silent < SILENT);
    let managers = member.agent().managers();
    answer.managers = managers
        .iter()
        .map(|manager| {
            let missing = member.agent().missing_for(&manager.node).filter(|_| !answer.quorum);
            pb::ManagerStatus {
                leader: manager.node == answer.leader_id,
                node_id: manager.node.clone(),
                addr: manager.addr.clone(),
                voter: true,
                reachable: missing.is_none(),
                missing_since_ms: missing.map_or(0, ago),
                ..Default::default()
            }
        })
        .collect();
    if answer.quorum || !answer.error.is_empty() {
        return;
    }
    answer.leaderless_since_ms = silent.map_or(answer.started_at_ms, ago);
    let voters: Vec<Voter> = managers
        .into_iter()
        .map(|manager| Voter {
            missing: member.agent().missing_for(&manager.node),
            name: manager.addr.clone(),
            addr: manager.addr,
        })
        .collect();
    let words = quorum::without_contact(&voters, silent);
    answer.problems.extend(words.problems);
    answer.cures.extend(words.cures);
}

fn manager_status(manager: &Manager, answer: &mut pb::StatusResponse, started_at: SystemTime) {
    let state = manager.cluster().state();
    let raft = manager.cluster().log().status();
    answer.role = pb::Role::Manager.into();
    answer.leader_id = believed(&raft).map(|leader| leader.node).unwrap_or_default();
    answer.term = raft.term;
    answer.applied = raft.applied;
    answer.quorum = believed(&raft).is_some();
    answer.nodes = state.nodes().map(|node| (&**node).into()).collect();
    answer.services = state.services().count() as u32;
    answer.tasks_running =
        state.tasks().filter(|task| task.observed == Observed::Running && task.is_wanted()).count() as u32;
    answer.tasks_wanted = state.services().map(|service| convergence::wanted(&state, service)).sum();

    let up = started_at.elapsed().unwrap_or_default();
    let leaderless = raft.quorum_heard_at.map_or(up, |at| at.elapsed());
    let missing = |seat: rswarm_raft::RaftId| -> Option<Duration> {
        let heard = manager.cluster().log().heard_from(seat);
        let silent = heard.map_or(up, |at| Instant::now().saturating_duration_since(at));
        // Followers hear one another only while there is no leader; before that they heard from it about all.
        (seat != raft.id && silent >= SILENT).then(|| silent.min(leaderless))
    };
    answer.managers = state
        .nodes()
        .filter(|node| node.role == Role::Manager)
        .map(|node| {
            let id = node.id.to_string();
            // An earlier seat of the same node does not count.
            let seat = node.raft.map(|seat| rswarm_raft::RaftId(seat.0));
            let voter = raft.voters.iter().find(|voter| Some(voter.id) == seat);
            let missing = voter.and_then(|voter| missing(voter.id)).filter(|_| !answer.quorum);
            let as_written = matches!(node.status, NodeStatus::Ready | NodeStatus::Unknown);
            pb::ManagerStatus {
                hostname: node.hostname.clone(),
                addr: node.addr.clone(),
                leader: id == answer.leader_id,
                // As the leader last wrote it down; without one, as found out from here.
                reachable: if answer.quorum { as_written } else { voter.is_some() && missing.is_none() },
                voter: voter.is_some(),
                missing_since_ms: missing.map_or(0, ago),
                node_id: id,
            }
        })
        .collect();
    if !answer.quorum {
        answer.leaderless_since_ms = ago(leaderless);
        let voters: Vec<Voter> = raft
            .voters
            .iter()
            .map(|voter| Voter {
                name: hostname(&state, &voter.node).unwrap_or_else(|| voter.addr.clone()),
                addr: voter.addr.clone(),
                missing: missing(voter.id),
            })
            .collect();
        let words = quorum::without_leader(&voters, leaderless);
        answer.problems.extend(words.problems);
        answer.cures.extend(words.cures);
    }
    answer.spare = Some((&spare::spare(&state, manager::clock::after(state.clock()))).into());
    disk_problems(manager, &state, answer);
    node_problems(&state, answer);
    task_problems(&state, answer);
}

fn hostname(state: &State, node: &str) -> Option<String> {
    Some(state.node(node.parse().ok()?)?.hostname.clone())
}

fn disk_problems(manager: &Manager, state: &State, answer: &mut pb::StatusResponse) {
    let log = manager.cluster().log();
    let raft = log.status();
    if let Some(reason) = &raft.failed {
        answer.problems.push(format!("this manager does not vote, because its log has failed: {reason}"));
        answer.cures.push("see to the disk; the log is opened again by itself as soon as it can be".into());
    }
    if let Some(full) = log.full() {
        answer.problems.push(format!(
            "this manager has no room for its log: {} wants {} MiB more; it takes no changes and leaves it to \
             others to lead",
            full.dir.display(),
            full.wanted >> 20
        ));
        answer.cures.push(FREE.into());
    }
    for member in log.full_members().iter().filter(|id| **id != raft.id).filter_map(|id| raft.member(*id)) {
        let name = hostname(state, &member.node).unwrap_or_else(|| member.node.clone());
        answer.problems.push(format!("manager {name} ({}) has no room for its log", member.addr));
        answer.cures.push(format!("on {name}, see `rswarm status`, and {FREE}"));
    }
}

fn node_problems(state: &State, answer: &mut pb::StatusResponse) {
    if let Some(brake) = liveness::brake_by(state, manager::clock::after(state.clock())) {
        answer.problems.push(format!(
            "{} of {} nodes fell silent at once, which is more likely the network than the machines: nothing is \
             replaced for {} s",
            brake.silent,
            brake.nodes,
            liveness::BRAKE_HOLD.as_secs()
        ));
        answer.cures.push(
            "look at the network between this node and the silent ones; if they are really gone, their tasks are \
             replaced by themselves when that time is over"
                .into(),
        );
    }
    for node in state.nodes().filter(|node| node.availability == Availability::Drain) {
        let left = drain::remaining(state, node.id);
        for task in left.iter().take(5) {
            answer
                .problems
                .push(format!("drained node {} still has task {}: {}", node.hostname, task.name, task.words));
        }
        if left.len() > 5 {
            answer.problems.push(format!(
                "drained node {} still has {} more tasks",
                node.hostname,
                left.len() - 5
            ));
        }
    }
    for node in state.nodes() {
        if matches!(node.status, NodeStatus::Down | NodeStatus::Suspect) {
            let seconds = manager::clock::now().0.saturating_sub(node.status_since.0) / 1000;
            answer.problems.push(format!(
                "node {} is {:?} since {seconds} s: {}",
                node.hostname, node.status, node.message
            ));
        }
        if node.role == Role::Manager && node.raft.is_none() {
            answer.problems.push(format!(
                "manager {} was away when the cluster was started anew, and has no vote: `rswarm rejoin` on it when it \
                 is back, or `rswarm node rm --force {0}` here if it never will be",
                node.hostname
            ));
        }
    }
}

fn task_problems(state: &State, answer: &mut pb::StatusResponse) {
    let waiting: Vec<_> =
        state.tasks().filter(|task| task.is_live() && task.is_wanted() && !task.note.is_empty()).collect();
    for task in waiting.iter().take(5) {
        answer.problems.push(format!("task {} waits: {}", task.name(), task.note));
    }
    if waiting.len() > 5 {
        answer.problems.push(format!("{} more tasks wait", waiting.len() - 5));
    }
}
