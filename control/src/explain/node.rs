//! Why a node is as it is: whether it is heard, what runs there, what keeps work away, and what keeps it from
//! being empty.

use super::{Asked, Explanation, Past, Wait, cut, words};
use crate::model::{Availability, Effect, Node, NodeStatus, Task};
use crate::plan::Whom;
use crate::scheduler::{Bytes, Cpus};
use std::collections::BTreeMap;
use std::sync::Arc;

impl Asked<'_> {
    pub(super) fn node(&self, node: &Arc<Node>) -> Explanation {
        let (name, id) = (node.hostname.clone(), node.id.to_string());
        let live: Vec<&Arc<Task>> = self.state.tasks_on(node.id).filter(|task| task.is_live()).collect();
        let mut told = Explanation { id, name, summary: how(node, live.len()), ..Explanation::default() };
        let status = format!("{:?}", node.status).to_lowercase();
        let message = if node.message.is_empty() { String::new() } else { format!(": {}", node.message) };
        told.facts.push(("Status", format!("{status}{message}")));
        told.facts.push(("Availability", format!("{:?}", node.availability).to_lowercase()));
        if let Some(last) = self.heard.last(node.id) {
            told.facts.push(("Heard", format!("{:.1} s ago", self.now.since(last).as_secs_f32())));
        }
        told.facts.push(("Reserved", reserved(node, &live)));
        let mut services: BTreeMap<&str, u32> = BTreeMap::new();
        for task in live.iter().filter(|task| task.is_wanted()) {
            *services.entry(&task.service_name).or_default() += 1;
        }
        let runs: Vec<String> = services.iter().map(|(name, count)| format!("{name} ×{count}")).collect();
        told.facts.push(("Tasks", if runs.is_empty() { "none".into() } else { runs.join(", ") }));
        for reason in closed(node) {
            told.refusals.push((reason, 1));
        }
        told.waits = cut(self.waits_of_node(node, &live));
        told.past = vec![
            past(node, node.meta.created_at, 0, "joined".into(), ""),
            past(node, node.status_since, 0, status, &node.message),
        ];
        told
    }

    fn waits_of_node(&self, node: &Arc<Node>, live: &[&Arc<Task>]) -> Vec<Wait> {
        let mut waits = Vec::new();
        let who = node.hostname.clone();
        if node.status == NodeStatus::Suspect {
            let until = self.holds(Whom::Node(node.id)).find_map(|hold| hold.until);
            let why = self.brake().map_or(String::new(), |brake| format!("; {brake}"));
            let what = format!("a sign of life, before its tasks are replaced{why}");
            waits.push(Wait { who: who.clone(), what, since: Some(node.status_since), next: until });
        }
        if node.availability != Availability::Drain && !node.status.is_lost() {
            return waits;
        }
        // What stays although it shall go.
        for task in live {
            let mut found = if task.is_wanted() { Vec::new() } else { self.waits_of(task) };
            let successor = self.state.tasks_of(task.service).find(|other| {
                other.slot == task.slot && other.meta.number > task.meta.number && other.is_live()
            });
            if let Some(successor) = successor {
                let mut of = self.waits_of(successor);
                of.iter_mut()
                    .for_each(|wait| wait.what = format!("its successor, which waits for {}", wait.what));
                found.extend(of);
            }
            if found.is_empty() {
                let whom = Whom::Slot(task.service, task.slot);
                found.extend(self.holds(whom).map(|hold| Wait {
                    who: task.name(),
                    what: words(hold.why).into(),
                    since: Some(node.meta.updated_at),
                    next: hold.until,
                }));
            }
            waits.extend(found);
        }
        waits
    }
}

fn how(node: &Node, live: usize) -> String {
    let tasks = if live == 1 { "1 task".into() } else { format!("{live} tasks") };
    let are = if live == 1 { "is" } else { "are" };
    match (node.status, node.availability) {
        (NodeStatus::Ready, Availability::Active) => format!("is ready and takes work; it has {tasks}"),
        (NodeStatus::Ready, Availability::Pause) => format!("keeps its {tasks} and takes no other"),
        (NodeStatus::Ready, Availability::Drain) if live == 0 => "is drained and empty".into(),
        (NodeStatus::Ready, Availability::Drain) => format!("is being drained; {tasks} {are} still there"),
        (NodeStatus::Unknown, _) => "has joined, and was not heard from yet".into(),
        (NodeStatus::Suspect, _) => format!("is silent; nothing new is sent to its {tasks}"),
        (NodeStatus::Down, _) => format!("is down; {tasks} of it {are} replaced, or will be"),
        (NodeStatus::Left, _) => "has left the cluster".into(),
    }
}

/// What keeps all, or most, work away from it.
fn closed(node: &Node) -> Vec<String> {
    let mut reasons = Vec::new();
    if node.status != NodeStatus::Ready {
        reasons.push("it is not ready".into());
    }
    match node.availability {
        Availability::Active => {}
        Availability::Pause => reasons.push("it is paused".into()),
        Availability::Drain => reasons.push("it is drained".into()),
    }
    for taint in node.taints.iter().filter(|taint| taint.effect != Effect::PreferNoSchedule) {
        reasons.push(format!("taint {taint}, unless it is tolerated"));
    }
    reasons
}

fn reserved(node: &Node, live: &[&Arc<Task>]) -> String {
    let sum = |of: fn(&Task) -> u64| live.iter().map(|task| of(task)).fold(0u64, u64::saturating_add);
    let cpus = sum(|task| task.spec.resources.reservations.nano_cpus);
    let memory = sum(|task| task.spec.resources.reservations.memory_bytes);
    let capacity = node.description.capacity;
    format!(
        "{} of {} CPUs, {} of {}",
        Cpus(cpus),
        Cpus(capacity.nano_cpus),
        Bytes(memory),
        Bytes(capacity.memory_bytes)
    )
}

fn past(node: &Node, at: crate::time::Timestamp, index: u64, what: String, why: &str) -> Past {
    Past { at, index, whom: node.hostname.clone(), what, by: "managers".into(), why: why.to_owned() }
}
