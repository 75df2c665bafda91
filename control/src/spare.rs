//! Whether the loss of any one node would still fit: for each node, its tasks are placed on the others by the very
//! orchestrator and scheduler that would do it, on a copy of the state. Nothing is changed.

use crate::ids::{NodeId, ServiceId};
use crate::model::{Node, NodeStatus, Observed, OnNodeLoss, Slot, Task};
use crate::plan::Draft;
use crate::state::{Change, State};
use crate::time::Timestamp;
use crate::{convergence, orchestrator, tick};
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// How much may be looked at, in nodes, tasks and scores: all there is of a cluster of some hundreds of nodes. Of a
/// larger one the fullest nodes are looked at, whose loss is the hardest to make up for.
const WORK_MAX: usize = 4_000_000;

/// What the loss of one node would leave without a place.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Spare {
    /// The nodes whose loss would not fit, by host name.
    pub losses: Vec<Loss>,
    /// How many nodes were looked at: the fullest.
    pub examined: usize,
    /// How many nodes have tasks that others would take over.
    pub of: usize,
}

/// A node whose loss would not fit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Loss {
    /// Which.
    pub node: NodeId,
    /// As the machine calls itself.
    pub hostname: String,
    /// What would find no place, by the service's name.
    pub shortfalls: Vec<Shortfall>,
}

/// Tasks of one service that would find no place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shortfall {
    /// Whose.
    pub service: ServiceId,
    /// The service's name.
    pub name: String,
    /// How many.
    pub tasks: usize,
    /// What lacks, in the words in which one of them would say why it waits.
    pub why: String,
}

/// Whether the loss of any one node would still fit at this moment. Tasks that stay where they are told to wait for
/// their node, and those that belong to it, are not asked about: nobody takes them over.
pub fn spare(state: &State, now: Timestamp) -> Spare {
    within(state, now, WORK_MAX)
}

fn within(state: &State, now: Timestamp, mut work: usize) -> Spare {
    let nodes = state.nodes().count();
    let movable = |node: &Arc<Node>| {
        let tasks: Vec<Arc<Task>> = state.tasks_on(node.id).filter(|t| moves(state, t)).cloned().collect();
        (!tasks.is_empty()).then(|| (node.clone(), tasks))
    };
    let mut asked: Vec<_> = state.nodes().filter(|node| !node.status.is_lost()).filter_map(movable).collect();
    asked.sort_by_key(|(node, tasks)| (Reverse(fullness(node, tasks)), Reverse(tasks.len()), node.id));
    let all: usize = state.nodes().map(|node| state.tasks_on(node.id).count()).sum();
    let mut spare = Spare { of: asked.len(), ..Spare::default() };
    for (node, tasks) in asked {
        let services: BTreeSet<ServiceId> = tasks.iter().map(|task| task.service).collect();
        let Some(left) = work.checked_sub(nodes + all + services.len() * nodes) else { break };
        work = left;
        spare.examined += 1;
        let shortfalls = without(state, now, &node, &tasks, &services);
        if !shortfalls.is_empty() {
            spare.losses.push(Loss { node: node.id, hostname: node.hostname.clone(), shortfalls });
        }
    }
    spare.losses.sort_by(|one, other| (&one.hostname, one.node).cmp(&(&other.hostname, other.node)));
    spare
}

/// Whether another node is to take over from a task if its node is lost.
fn moves(state: &State, task: &Task) -> bool {
    let waits = |service: &crate::model::Service| service.spec.task.node_loss() == OnNodeLoss::Wait;
    task.is_live()
        && task.is_wanted()
        && task.slot.node().is_none()
        && state.service(task.service).is_some_and(|service| !waits(service))
}

/// How much of a node these tasks reserve, in millionths, of what they reserve most of.
fn fullness(node: &Node, tasks: &[Arc<Task>]) -> u128 {
    let sum = |of: fn(&Task) -> u64| tasks.iter().map(|task| u128::from(of(task))).sum::<u128>();
    let share = |used: u128, all: u64| (used * 1_000_000).checked_div(u128::from(all)).unwrap_or(0);
    let capacity = node.description.capacity;
    let cpus = share(sum(|task| task.spec.resources.reservations.nano_cpus), capacity.nano_cpus);
    cpus.max(share(sum(|task| task.spec.resources.reservations.memory_bytes), capacity.memory_bytes))
}

/// What would find no place if a node with these tasks were lost for good.
fn without(
    state: &State,
    now: Timestamp,
    node: &Node,
    tasks: &[Arc<Task>],
    services: &BTreeSet<ServiceId>,
) -> Vec<Shortfall> {
    let mut draft = Draft::new(state, now);
    let (id, was, status) = (node.id, node.status, NodeStatus::Down);
    draft.propose(Change::SetNodeStatus { node: id, was, status, message: String::new() });
    let ends = |task: &&Arc<Task>| {
        let policy = state.service(task.service).map(|service| service.spec.task.node_loss());
        policy.is_some_and(|policy| policy != OnNodeLoss::Replace)
    };
    for task in tasks.iter().filter(ends) {
        let (observed, message) = (Observed::Orphaned, String::new());
        draft.propose(Change::EndTask { task: task.id, observed, message });
    }
    services.iter().for_each(|service| orchestrator::reconcile(&mut draft, *service));
    tick::place(&mut draft);

    let after = draft.state();
    let mut short: BTreeMap<ServiceId, Shortfall> = BTreeMap::new();
    let slots: BTreeSet<(ServiceId, Slot)> = tasks.iter().map(|task| (task.service, task.slot)).collect();
    for (service, slot) in slots {
        let in_slot = after.tasks_of(service).filter(|task| task.slot == slot);
        let next: Vec<&Arc<Task>> =
            in_slot.filter(|task| task.is_live() && task.is_wanted() && !after.is_lost(task)).collect();
        let Some(waiting) = next.last().filter(|_| next.iter().all(|task| task.node.is_none())) else {
            continue;
        };
        let new = || Shortfall {
            service,
            name: waiting.service_name.clone(),
            tasks: 0,
            why: convergence::words(waiting),
        };
        short.entry(service).or_insert_with(new).tasks += 1;
    }
    let mut shortfalls: Vec<Shortfall> = short.into_values().collect();
    shortfalls.sort_by(|one, other| one.name.cmp(&other.name));
    shortfalls
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Mode, ServiceSpec};
    use crate::testing::{Bed, MIB, spec, with_task};
    use expect_test::{Expect, expect};

    /// Nodes of so much memory in MiB, services that all run, and what is said of it.
    #[allow(clippy::needless_pass_by_value, reason = "reads better in a table")]
    fn case(nodes: &[(&str, u64)], services: Vec<ServiceSpec>, said: Expect) {
        let mut bed = Bed::new();
        for (host, memory) in nodes {
            let node = bed.node(host, *memory);
            let disk = if *memory > 4000 { "ssd" } else { "hdd" };
            bed.alter(node, |node| drop(node.labels.insert("disk".into(), disk.into())));
        }
        for spec in services {
            bed.service(spec);
        }
        bed.tick();
        bed.all_run();
        let before = bed.state.clone();
        said.assert_eq(&words(&spare(&bed.state, bed.now)));
        assert_eq!(bed.state.snapshot(), before.snapshot(), "nothing is changed");
    }

    fn words(spare: &Spare) -> String {
        let mut lines = vec![format!("{} of {} nodes", spare.examined, spare.of)];
        for Loss { hostname, shortfalls, .. } in &spare.losses {
            let tasks =
                shortfalls.iter().map(|short| format!("{} of {}: {}", short.tasks, short.name, short.why));
            lines.push(format!("{hostname}: {}", tasks.collect::<Vec<_>>().join(", ")));
        }
        lines.join("\n")
    }

    fn of_memory(name: &str, replicas: u32, mib: u64) -> ServiceSpec {
        with_task(spec(name, replicas), |task| task.resources.reservations.memory_bytes = mib * MIB)
    }

    #[test]
    fn tasks_of_a_lost_node_fit_on_the_others_or_it_is_said_what_lacks() {
        let three = [("n1", 1024), ("n2", 1024), ("n3", 1024)];
        case(&three, vec![of_memory("web", 6, 300)], expect!["3 of 3 nodes"]);
        case(
            &three,
            vec![of_memory("web", 6, 400)],
            expect![[r#"
            3 of 3 nodes
            n1: 2 of web: no suitable node (2 nodes not ready; insufficient memory on 2 nodes; n2 lacks 176 MiB)
            n2: 2 of web: no suitable node (2 nodes not ready; insufficient memory on 2 nodes; n1 lacks 176 MiB)
            n3: 2 of web: no suitable node (2 nodes not ready; insufficient memory on 2 nodes; n2 lacks 176 MiB)"#]],
        );
        let one_is_large = [("n1", 8000), ("n2", 1024), ("n3", 1024)];
        case(
            &one_is_large,
            vec![of_memory("db", 1, 2000), of_memory("web", 2, 100)],
            expect![[r#"
            3 of 3 nodes
            n1: 1 of db: no suitable node (2 nodes not ready; insufficient memory on 2 nodes; n2 lacks 1076 MiB)"#]],
        );
    }

    #[test]
    fn every_rule_of_placement_counts() {
        let two = [("n1", 8000), ("n2", 1024)];
        let on_ssd = with_task(spec("db", 1), |task| {
            task.placement.constraints.push("node.labels.disk==ssd".parse().expect("a constraint"));
        });
        case(
            &two,
            vec![on_ssd],
            expect![[r#"
            1 of 1 nodes
            n1: 1 of db: no suitable node (2 nodes not ready; node.labels.disk==ssd does not hold on 1 node; n2 has node.labels.disk=hdd)"#]],
        );
        let one_each = with_task(spec("web", 2), |task| task.placement.max_per_node = 1);
        case(
            &two,
            vec![one_each],
            expect![[r#"
            2 of 2 nodes
            n1: 1 of web: no suitable node (2 nodes not ready; max replicas per node (1) reached on 1 node)
            n2: 1 of web: no suitable node (2 nodes not ready; max replicas per node (1) reached on 1 node)"#]],
        );
    }

    #[test]
    fn what_nobody_takes_over_is_not_asked_about() {
        let mut global = spec("agent", 1);
        global.mode = Mode::Global;
        let waits = with_task(of_memory("db", 1, 900), |task| task.on_node_loss = Some(OnNodeLoss::Wait));
        case(&[("n1", 1024), ("n2", 512)], vec![global, waits], expect!["0 of 0 nodes"]);
        let fenced = with_task(of_memory("db", 1, 900), |task| task.on_node_loss = Some(OnNodeLoss::Fence));
        case(
            &[("n1", 1024), ("n2", 512)],
            vec![fenced],
            expect![[r#"
            1 of 1 nodes
            n1: 1 of db: no suitable node (2 nodes not ready; insufficient memory on 1 node; n2 lacks 388 MiB)"#]],
        );
    }

    #[test]
    fn of_more_than_can_be_looked_at_the_fullest_nodes_are() {
        let mut bed = Bed::new();
        for node in 0..9 {
            bed.node(&format!("n{node}"), if node == 7 { 4096 } else { 1024 });
        }
        bed.service(of_memory("web", 8, 100));
        bed.service(of_memory("db", 1, 4000));
        bed.tick();
        bed.all_run();
        let spare = within(&bed.state, bed.now, 30);
        assert_eq!((spare.examined, spare.of, spare.losses[0].hostname.as_str()), (1, 9, "n7"));
        assert_eq!(super::spare(&bed.state, bed.now).examined, 9);
    }
}
