//! The policy once more, as plainly as can be: for each task every node is looked at anew, and everything about it
//! is counted from the list of all tasks. The scheduler must decide likewise, always.

use crate::ids::{NodeId, ServiceId};
use crate::model::*;
use crate::state::{Change, State, Turn};
use crate::time::Timestamp;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

/// Where the pending tasks go, in the order in which they are decided on.
pub(super) fn assignments(state: &State, now: Timestamp) -> Vec<Change> {
    let mut turn = Turn::new(state.clone(), state.index() + 1, now);
    let waits =
        |task: &&Arc<Task>| task.observed == Observed::Pending && task.node.is_none() && task.is_wanted();
    let mut pending: Vec<Arc<Task>> = state.tasks().filter(waits).cloned().collect();
    pending.sort_by_key(|task| task.meta.number);
    let mut changes = Vec::new();
    let mut place = |task: &Arc<Task>| {
        let state = &turn.state;
        let able = state.nodes().filter(|node| can(state, node, task));
        let Some(node) = able.min_by_key(|node| score(state, node, task, now)) else { return false };
        let change = Change::Assign { task: task.id, node: node.id, claims: claims(state, node, task) };
        turn.apply(&change).expect("a free place");
        changes.push(change);
        true
    };
    pending.retain(|task| !place(task));
    // Those that are to be near others ask again, as long as somebody finds a place.
    let is_drawn = |task: &Task| {
        task.spec.placement.affinities.iter().any(|affinity| affinity.rule == AffinityRule::Together)
    };
    while {
        let before = pending.len();
        pending.retain(|task| !is_drawn(task) || !place(task));
        pending.len() < before
    } {}
    changes
}

fn meets(node: &Node, constraint: &Constraint) -> bool {
    let value = read(node, &constraint.key).to_lowercase();
    let wanted = |value: &String| match constraint.key {
        ConstraintKey::PlatformArch => value.replace("amd64", "x86_64").replace("arm64", "aarch64"),
        _ => value.to_lowercase(),
    };
    let listed = constraint.values.iter().any(|text| wanted(text) == value);
    listed == (constraint.op == ConstraintOp::Equal)
}

fn read(node: &Node, key: &ConstraintKey) -> String {
    match key {
        ConstraintKey::NodeId => node.id.to_string(),
        ConstraintKey::Hostname => node.hostname.clone(),
        ConstraintKey::Role => node.role.to_string(),
        ConstraintKey::Label(key) => node.labels.get(key).cloned().unwrap_or_default(),
        ConstraintKey::EngineLabel(key) => node.description.labels.get(key).cloned().unwrap_or_default(),
        ConstraintKey::PlatformOs => node.description.os.clone(),
        ConstraintKey::PlatformArch => node.description.arch.clone(),
    }
}

/// The nodes of the tasks of a service that stay where they are.
fn homes(state: &State, service: ServiceId) -> Vec<Arc<Node>> {
    let stays = |task: &&Arc<Task>| task.service == service && task.is_live() && task.is_wanted();
    let homes = state.tasks().filter(stays).filter_map(|task| state.node(task.node?));
    homes.filter(|node| !node.status.is_lost()).cloned().collect()
}

/// How many tasks of a service are near a node.
fn near(state: &State, node: &Node, service: ServiceId, over: Option<&ConstraintKey>) -> usize {
    let same = |other: &&Arc<Node>| match over {
        None => other.id == node.id,
        Some(key) => read(other, key) == read(node, key),
    };
    homes(state, service).iter().filter(same).count()
}

fn held(state: &State, node: NodeId) -> Vec<Arc<Task>> {
    state.tasks().filter(|task| task.node == Some(node) && task.is_live()).cloned().collect()
}

fn ports(state: &State, task: &Task) -> BTreeSet<(u16, Protocol)> {
    let ports = state.service(task.service).into_iter().flat_map(|service| &service.endpoint.ports);
    ports.filter(|port| port.mode == PortMode::Host).map(|port| (port.published, port.protocol)).collect()
}

/// The names of a kind that nobody on the node has.
fn free_names(state: &State, node: &Node, kind: &str) -> BTreeSet<String> {
    let Some(Stock::Named(names)) = node.description.generic.get(kind) else { return BTreeSet::new() };
    let mut names = names.clone();
    for task in held(state, node.id) {
        names.retain(|name| !task.claims.get(kind).is_some_and(|claimed| claimed.contains(name)));
    }
    names
}

fn claims(state: &State, node: &Node, task: &Task) -> Claims {
    let named = |kind: &&String| matches!(node.description.generic.get(*kind), Some(Stock::Named(_)));
    let kinds = task.spec.resources.generic.keys().filter(named);
    let first = |kind: &String| {
        let count = task.spec.resources.generic[kind] as usize;
        (kind.clone(), free_names(state, node, kind).into_iter().take(count).collect())
    };
    kinds.map(first).collect()
}

fn can(state: &State, node: &Node, task: &Task) -> bool {
    let placement = &task.spec.placement;
    let held = held(state, node.id);
    let sum = |of: fn(&Task) -> u64| held.iter().map(|task| of(task)).sum::<u64>() + of(task);
    let fits = sum(|task| task.spec.resources.reservations.nano_cpus) <= node.description.capacity.nano_cpus
        && sum(|task| task.spec.resources.reservations.memory_bytes)
            <= node.description.capacity.memory_bytes;
    let generic =
        task.spec.resources.generic.iter().all(|(kind, count)| match node.description.generic.get(kind) {
            None => false,
            Some(Stock::Named(_)) => free_names(state, node, kind).len() as u64 >= *count,
            Some(Stock::Count(there)) => {
                let used: u64 = held.iter().filter_map(|task| task.spec.resources.generic.get(kind)).sum();
                used + count <= *there
            }
        });
    let tainted = node.taints.iter().any(|taint| {
        taint.effect != Effect::PreferNoSchedule && !placement.tolerations.iter().any(|t| t.covers(taint))
    });
    let devices = task.spec.containers.iter().flat_map(|container| &container.profile.devices);
    let equipped = devices
        .filter(|device| device.is_cdi())
        .all(|device| node.description.devices.contains(&device.source));
    let same = near(state, node, task.service, None);
    let built = placement.platforms.is_empty()
        || placement.platforms.iter().any(|p| p.runs_on(&node.description.os, &node.description.arch));
    node.status == NodeStatus::Ready
        && node.availability == Availability::Active
        && placement.constraints.iter().all(|constraint| meets(node, constraint))
        && built
        && !tainted
        && equipped
        && related(state, node, task)
        && (placement.max_per_node == 0 || same < placement.max_per_node as usize)
        && fits
        && generic
        && held.iter().all(|other| ports(state, other).is_disjoint(&ports(state, task)))
}

/// Whether the rules of the task about other services, and theirs about it, allow the node.
fn related(state: &State, node: &Node, task: &Task) -> bool {
    let own = task.spec.placement.affinities.iter().filter(|rule| rule.weight.is_none()).all(|rule| {
        let target = state.service_named(&rule.service).map(|service| service.id);
        let there = target.map_or(0, |target| near(state, node, target, rule.over.as_ref()));
        match rule.rule {
            AffinityRule::Apart => there == 0,
            AffinityRule::Together => {
                there > 0 || target == Some(task.service) && homes(state, task.service).is_empty()
            }
        }
    });
    let others = state.services().filter(|service| service.id != task.service).all(|service| {
        let rules = service.spec.task.placement.affinities.iter();
        let against = |rule: &&Affinity| {
            rule.weight.is_none() && rule.rule == AffinityRule::Apart && rule.service == task.service_name
        };
        rules.filter(against).all(|rule| near(state, node, service.id, rule.over.as_ref()) == 0)
    });
    own && others
}

type Score = (bool, i64, Vec<usize>, Vec<u64>, NodeId);

fn score(state: &State, node: &Node, task: &Task, now: Timestamp) -> Score {
    let placement = &task.spec.placement;
    let failed = |other: &&Arc<Task>| {
        other.node == Some(node.id)
            && other.service == task.service
            && other.spec_version == task.spec_version
            && matches!(other.observed, Observed::Failed | Observed::Rejected)
            && now.since(other.status.at) < Duration::from_secs(300)
    };
    let faulty = state.tasks().filter(failed).count() >= 5;
    let mut soft = 0;
    let mut levels = Vec::new();
    let mut keys: Vec<&ConstraintKey> = Vec::new();
    for preference in &placement.preferences {
        match preference {
            Preference::Weighted { when, weight } => {
                soft += i64::from(*weight) * i64::from(meets(node, when))
            }
            Preference::Spread(key) => {
                keys.push(key);
                let alike = |other: &&Arc<Node>| keys.iter().all(|key| read(other, key) == read(node, key));
                levels.push(homes(state, task.service).iter().filter(alike).count());
            }
        }
    }
    for rule in &placement.affinities {
        let target = state.service_named(&rule.service).map(|service| service.id);
        let there = target.is_some_and(|target| near(state, node, target, rule.over.as_ref()) > 0);
        let sign = if rule.rule == AffinityRule::Apart { -1 } else { 1 };
        soft += sign * i64::from(rule.weight.unwrap_or(0)) * i64::from(there);
    }
    let avoided = node.taints.iter().filter(|taint| {
        taint.effect == Effect::PreferNoSchedule && !placement.tolerations.iter().any(|t| t.covers(taint))
    });
    soft -= 1_000_000 * avoided.count() as i64;
    (faulty, -soft, levels, filled(state, node, task), node.id)
}

fn filled(state: &State, node: &Node, task: &Task) -> Vec<u64> {
    let held = held(state, node.id);
    let total = held.iter().filter(|task| task.is_wanted()).count() as u64;
    let same = near(state, node, task.service, None) as u64;
    let settings = &state.cluster().expect("a cluster").settings;
    match task.spec.placement.filling.unwrap_or(settings.placement) {
        Filling::Spread => vec![same, total],
        Filling::BinPack => {
            let share = |of: fn(&Resources) -> u64| {
                let tasks = held.iter().map(AsRef::as_ref).chain([task]);
                let used: u64 = tasks.map(|task| of(&task.spec.resources.reservations)).sum();
                let capacity = of(&node.description.capacity);
                if capacity == 0 { 0 } else { (u128::from(used) * 1_000_000 / u128::from(capacity)) as u64 }
            };
            let full = share(|r| r.nano_cpus) + share(|r| r.memory_bytes);
            vec![u64::MAX - full, u64::MAX - total, same]
        }
    }
}

/// What is reserved on each node, and how many tasks it has of each service, to be compared with its capacity.
pub(super) fn overcommitted(state: &State) -> BTreeMap<String, Resources> {
    let mut over = BTreeMap::new();
    for node in state.nodes() {
        let held = held(state, node.id);
        let used = Resources {
            nano_cpus: held.iter().map(|task| task.spec.resources.reservations.nano_cpus).sum(),
            memory_bytes: held.iter().map(|task| task.spec.resources.reservations.memory_bytes).sum(),
        };
        let capacity = node.description.capacity;
        if used.nano_cpus > capacity.nano_cpus || used.memory_bytes > capacity.memory_bytes {
            over.insert(node.hostname.clone(), used);
        }
    }
    over
}
