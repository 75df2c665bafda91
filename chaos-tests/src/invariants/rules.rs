//! The newer rules of placement, written anew on purpose: a check that calls the code it checks finds nothing.

use super::{Finding, Step, fail};
use rswarm_control::model::{AffinityRule, Effect, Node, Placement, Stock, Task};
use rswarm_control::{Change, NodeId, ServiceId, State};
use std::collections::BTreeSet;

/// Whether one of a node's taints sends away, or keeps away, a task that is placed so.
pub(super) fn is_tainted(node: &Node, placement: &Placement, effects: &[Effect]) -> bool {
    node.taints.iter().filter(|taint| effects.contains(&taint.effect)).any(|taint| {
        !placement.tolerations.iter().any(|tolerated| {
            let is = |wanted: &Option<String>, is: &String| wanted.as_ref().is_none_or(|wanted| wanted == is);
            is(&tolerated.key, &taint.key)
                && is(&tolerated.value, &taint.value)
                && tolerated.effect.is_none_or(|effect| effect == taint.effect)
        })
    })
}

/// How many tasks of a service stay on a node, but for one.
fn others(state: &State, node: NodeId, service: ServiceId, but: &Task) -> usize {
    let stays = |task: &&std::sync::Arc<Task>| {
        task.service == service && task.id != but.id && task.is_live() && task.is_wanted()
    };
    state.tasks_on(node).filter(stays).count()
}

/// What a task asks of its neighbours, as far as nobody but the leader can have changed that since it decided.
pub(super) fn neighbours(step: &Step<'_>) -> Finding {
    let state = step.after;
    for change in &step.proposal.changes {
        let Change::Assign { task, node, .. } = change else { continue };
        let (Some(task), Some(node)) = (state.task(*task), state.node(*node)) else { continue };
        let placement = &task.spec.placement;
        if is_tainted(node, placement, &[Effect::NoExecute]) {
            return fail(format!("{} was given to {}, which is tainted", task.name(), node.hostname));
        }
        let max = placement.max_per_node as usize;
        let same = others(state, node.id, task.service, task);
        if max > 0 && same >= max {
            return fail(format!("{} is number {} on {}, of {max}", task.name(), same + 1, node.hostname));
        }
        let hard = |rule: &&rswarm_control::model::Affinity| {
            rule.rule == AffinityRule::Apart && rule.weight.is_none() && rule.over.is_none()
        };
        for rule in placement.affinities.iter().filter(hard) {
            let Some(target) = state.service_named(&rule.service) else { continue };
            if others(state, node.id, target.id, task) > 0 {
                let (name, host) = (&rule.service, &node.hostname);
                return fail(format!("{} is on {host}, beside {name}", task.name()));
            }
        }
    }
    Ok(())
}

/// How much of a kind a node's live tasks have.
fn held(state: &State, node: NodeId, kind: &str) -> u64 {
    let live = state.tasks_on(node).filter(|task| task.is_live());
    live.filter_map(|task| task.spec.resources.generic.get(kind)).sum()
}

/// No node gives more than it has, and no named thing twice.
pub(super) fn generic(state: &State) -> Finding {
    for node in state.nodes() {
        for (kind, stock) in &node.description.generic {
            let (used, all) = (held(state, node.id, kind), stock.len());
            if used > all {
                return fail(format!("{} has {all} {kind}, of which {used} are given", node.hostname));
            }
            let Stock::Named(names) = stock else { continue };
            let mut given = BTreeSet::new();
            for task in state.tasks_on(node.id).filter(|task| task.is_live()) {
                for name in task.claims.get(kind).into_iter().flatten() {
                    if !names.contains(name) || !given.insert(name) {
                        return fail(format!("{} was given {kind} {name} of {}", task.name(), node.hostname));
                    }
                }
            }
        }
    }
    Ok(())
}

/// Whether these rules, those between services apart, let a waiting task on a node.
pub(super) fn allow(state: &State, node: &Node, task: &Task) -> bool {
    let placement = &task.spec.placement;
    let max = placement.max_per_node as usize;
    !is_tainted(node, placement, &[Effect::NoExecute, Effect::NoSchedule])
        && (max == 0 || others(state, node.id, task.service, task) < max)
        && task.spec.resources.generic.iter().all(|(kind, count)| {
            let all = node.description.generic.get(kind).map_or(0, Stock::len);
            held(state, node.id, kind) + count <= all
        })
}

/// Whether a task may have to wait for what other services do.
pub(super) fn minds_others(state: &State, task: &Task) -> bool {
    let keeps_apart =
        |placement: &Placement| placement.affinities.iter().any(|rule| rule.service == task.service_name);
    !task.spec.placement.affinities.is_empty()
        || state.services().any(|service| keeps_apart(&service.spec.task.placement))
}
