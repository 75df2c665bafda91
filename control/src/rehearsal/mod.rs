//! What a request would come to. It is admitted and carried out on a copy of the state, by the very turns of the
//! leader's crank, with nodes that do at once what they are asked and never fail: so what is told is what is done,
//! as long as nothing else happens. Nothing is changed.

pub mod difference;
mod stage;

use crate::admission::{Answer, Refused, Request, admit};
use crate::convergence;
use crate::ids::{NodeId, ServiceId};
use crate::model::{Mode, Node, Resources, Service, ServiceSpec, Task};
use crate::state::State;
use crate::time::Timestamp;
use difference::Difference;
use stage::Stage;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

/// What a request comes to.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Outcome {
    /// What differs in what is asked for, path by path.
    pub differences: Vec<Difference>,
    /// Where the tasks of all services that it touches are, slot by slot.
    pub places: Vec<Place>,
    /// What is reserved on the way, on each node where that changes.
    pub peaks: Vec<Peak>,
    /// How long it takes at least: the delays alone, since nodes are taken to need no time.
    pub took: Duration,
    /// Whether everything is as asked for then.
    pub settled: bool,
}

/// Where a slot was, and is.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// `web.1`
    pub name: String,
    /// The node it was on; empty if it had none.
    pub before: String,
    /// The node it is on; empty if it has none.
    pub after: String,
    /// What becomes of it.
    pub fate: Fate,
    /// Why it has no node, if it waits for one.
    pub note: String,
}

/// What becomes of a slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fate {
    /// Its task stays as it is.
    Stays,
    /// It has a task where it had none.
    Starts,
    /// Its task is replaced by another.
    Replaced,
    /// Its task ends, and no other follows.
    Stops,
}

/// What is reserved on a node.
#[derive(Clone, Debug, PartialEq)]
pub struct Peak {
    /// Its host name.
    pub node: String,
    /// At first.
    pub before: Resources,
    /// At most: of each, not necessarily at the same moment.
    pub most: Resources,
    /// In the end.
    pub after: Resources,
    /// What it has.
    pub capacity: Resources,
}

/// What a request would come to.
///
/// # Errors
/// If it is refused.
pub fn rehearse(state: &State, request: &Request, now: Timestamp) -> Result<(Outcome, Answer), Refused> {
    let (changes, answer) = admit(state, request, now)?;
    let mut stage = Stage::new(state, now);
    if !changes.is_empty() {
        stage
            .commit(changes)
            .map_err(|stale| Refused::Conflict(format!("the cluster changes too fast: {stale}")))?;
    }
    let asked = stage.state().clone();
    let finished = stage.play();
    let end = stage.state();
    let mut touched = touched(state, &asked, end, stage.moved());
    // What moves anyway is not this request's doing.
    let asked_for = |id: &ServiceId| spec(state, *id) != spec(&asked, *id);
    if !touched.iter().all(asked_for) {
        let mut without = Stage::new(state, now);
        without.play();
        touched.retain(|id| asked_for(id) || places(state, without.state(), *id) != places(state, end, *id));
    }
    let settled = finished && touched.iter().all(|service| is_settled(end, *service));
    let outcome = Outcome {
        differences: differences(state, &asked),
        places: touched.iter().flat_map(|service| places(state, end, *service)).collect(),
        peaks: stage.peaks(),
        took: stage.took(),
        settled,
    };
    Ok((outcome, answer))
}

impl Outcome {
    /// What is told differently by another outcome of the same request, in words; nothing if none of it matters:
    /// reservations and times do not.
    pub fn moved(&self, now: &Self) -> Option<String> {
        if let Some(other) = other(&self.differences, &now.differences) {
            return Some(format!("what it changes is no longer the same: {other}"));
        }
        let then: BTreeMap<&str, &Place> =
            self.places.iter().map(|place| (place.name.as_str(), place)).collect();
        for place in &now.places {
            let name = &place.name;
            let on = |node: &str| if node.is_empty() { "no node".to_owned() } else { node.to_owned() };
            let Some(planned) = then.get(name.as_str()) else {
                return Some(format!("{name} would be touched, which the plan does not know"));
            };
            if planned.after != place.after {
                return Some(format!(
                    "{name} would come to {}, not to {}",
                    on(&place.after),
                    on(&planned.after)
                ));
            }
            if planned.before != place.before {
                return Some(format!(
                    "{name} is on {} now, not on {}",
                    on(&place.before),
                    on(&planned.before)
                ));
            }
            if planned.fate != place.fate {
                return Some(format!(
                    "{name}: {:?} is planned, and {:?} it would be",
                    planned.fate, place.fate
                ));
            }
        }
        let names: BTreeSet<&str> = now.places.iter().map(|place| place.name.as_str()).collect();
        let gone = self.places.iter().find(|place| !names.contains(place.name.as_str()))?;
        Some(format!("{} would not be touched", gone.name))
    }
}

fn other(then: &[Difference], now: &[Difference]) -> Option<String> {
    let fresh = now.iter().find(|difference| !then.contains(difference));
    fresh.or_else(|| then.iter().find(|difference| !now.contains(difference))).map(ToString::to_string)
}

/// Whether a service is as asked for; a job that has begun is, since its end is not rehearsed.
fn is_settled(state: &State, id: ServiceId) -> bool {
    let Some(service) = state.service(id) else { return true };
    match service.spec.mode {
        Mode::Replicated { .. } | Mode::Global => {
            convergence::progress(state, id).is_none_or(|progress| progress.is_settled())
        }
        Mode::ReplicatedJob { .. } | Mode::GlobalJob { .. } => {
            state.tasks_of(id).all(|task| !task.is_wanted() || task.node.is_some())
        }
    }
}

fn spec(state: &State, id: ServiceId) -> Option<ServiceSpec> {
    state.service(id).map(|service| service.spec.clone())
}

/// The services that were changed, or whose tasks were.
fn touched(before: &State, asked: &State, after: &State, moved: &BTreeSet<ServiceId>) -> Vec<ServiceId> {
    let mut ids: BTreeSet<ServiceId> = before.service_ids();
    ids.extend(after.service_ids());
    let changed = |id: &ServiceId| spec(before, *id) != spec(asked, *id);
    let mut ids: Vec<ServiceId> = ids.into_iter().filter(|id| changed(id) || moved.contains(id)).collect();
    let name = |id: &ServiceId| {
        let known = after.service(*id).or_else(|| before.service(*id));
        known.map(|service| service.spec.name.clone())
    };
    ids.sort_by_key(|id| name(id));
    ids
}

/// What differs in what is asked for, of services and of nodes.
fn differences(before: &State, asked: &State) -> Vec<Difference> {
    let mut all = Vec::new();
    let spec = |service: Option<&Arc<Service>>| service.map(|service| service.spec.clone());
    let mut services = before.service_ids();
    services.extend(asked.service_ids());
    for id in services {
        let (old, new) = (spec(before.service(id)), spec(asked.service(id)));
        if old != new {
            let name =
                new.as_ref().or(old.as_ref()).map_or(String::new(), |spec: &ServiceSpec| spec.name.clone());
            all.extend(difference::between(&format!("service {name}"), old.as_ref(), new.as_ref()));
        }
    }
    for new in asked.nodes() {
        let Some(old) = before.node(new.id) else { continue };
        let wishes = |node: &Node| (node.role, node.availability, node.labels.clone(), node.taints.clone());
        if wishes(old) != wishes(new) {
            // What the machine says of itself is not asked for.
            let new = Node { meta: old.meta, raft: old.raft, ..Node::clone(new) };
            all.extend(difference::between(&format!("node {}", new.hostname), Some(&**old), Some(&new)));
        }
    }
    all
}

/// Where each slot of a service was, and is.
fn places(before: &State, after: &State, service: ServiceId) -> Vec<Place> {
    let (old, new) = (fillers(before, service), fillers(after, service));
    let mut slots: BTreeSet<_> = old.keys().collect();
    slots.extend(new.keys());
    let host = |state: &State, task: Option<&Arc<Task>>| {
        let node = task.and_then(|task| task.node);
        node.map_or(String::new(), |node| {
            state.node(node).map_or_else(|| node.to_string(), |node| node.hostname.clone())
        })
    };
    let place = |slot| {
        let (was, is) = (old.get(slot), new.get(slot));
        let id = |task: Option<&Arc<Task>>| task.map(|task| task.id);
        let fate = match (id(was), id(is)) {
            (Some(was), Some(is)) if was == is => Fate::Stays,
            (Some(_), Some(_)) => Fate::Replaced,
            (None, _) => Fate::Starts,
            (Some(_), None) => Fate::Stops,
        };
        let name = is.or(was).map_or(String::new(), |task| task.name());
        let note = is.filter(|task| task.node.is_none()).map_or(String::new(), |task| task.note.clone());
        Place { name, before: host(before, was), after: host(after, is), fate, note }
    };
    let mut places: Vec<(_, Place)> = slots.into_iter().map(|slot| (*slot, place(slot))).collect();
    places.sort_by_key(|(slot, _)| *slot);
    places.into_iter().map(|(_, place)| place).collect()
}

/// The task that fills each slot of a service, or is to.
fn fillers(state: &State, service: ServiceId) -> BTreeMap<crate::model::Slot, Arc<Task>> {
    let mut fillers: BTreeMap<_, Arc<Task>> = BTreeMap::new();
    let wanted = |task: &&Arc<Task>| task.is_live() && task.is_wanted() && !state.is_lost(task);
    for task in state.tasks_of(service).filter(wanted) {
        let rank = |task: &Task| (task.observed, task.meta.number);
        match fillers.get(&task.slot) {
            Some(other) if rank(other) >= rank(task) => {}
            _ => drop(fillers.insert(task.slot, task.clone())),
        }
    }
    fillers
}

/// What is reserved on a node.
fn reserved(state: &State, node: NodeId) -> Resources {
    let live = state.tasks_on(node).filter(|task| task.is_live());
    live.fold(Resources::default(), |sum, task| {
        let more = task.spec.resources.reservations;
        Resources {
            nano_cpus: sum.nano_cpus.saturating_add(more.nano_cpus),
            memory_bytes: sum.memory_bytes.saturating_add(more.memory_bytes),
        }
    })
}

#[cfg(test)]
mod tests;
