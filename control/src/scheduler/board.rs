//! All nodes of the cluster, and the tasks that are put on them one after another.

use super::constraint;
use super::filter::{Refusal, Refusals};
use super::group::{Group, Stand};
use super::seat::{Seat, host_ports};
use crate::ids::{NodeId, ServiceId, TaskId};
use crate::model::{AffinityRule, Claims, ConstraintKey, Filling, Node, Slot, Task};
use crate::state::State;
use crate::time::Timestamp;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// Groups whose scores are remembered. Tasks come in the order of their age, those of one service mostly together.
const GROUPS_MAX: usize = 8;

/// The nodes as they would be after what was placed so far.
pub(crate) struct Board {
    pub(super) seats: Vec<Seat>,
    pub(super) filling: Filling,
    /// Who got a task, or lost one, and of which service, in order.
    pub(super) touched: Vec<(u32, ServiceId, Touch)>,
    columns: Vec<Column>,
    places: BTreeMap<NodeId, u32>,
    /// What moves to another node.
    movers: BTreeSet<(ServiceId, Slot)>,
    /// Nodes that something moves away from: what it holds there until it has ended makes them look fuller than they
    /// are, so that nothing moves to them before.
    pub(super) left: BTreeSet<u32>,
    keep_apart: BTreeMap<String, Vec<(ServiceId, Option<ConstraintKey>)>>,
    groups: Vec<Group>,
}

/// What has happened to a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Touch {
    Given,
    Taken,
}

/// All nodes as they stand for one task.
#[derive(Default)]
pub(super) struct Stands {
    pub(super) able: Vec<(Stand, Arc<Node>)>,
    pub(super) unable: Vec<(Refusal, NodeId)>,
    pub(super) filling: Filling,
}

/// The nodes by what they have in one place: the domains over which a service is spread.
pub(super) struct Column {
    key: ConstraintKey,
    /// The domain of each seat.
    pub(super) of: Vec<u32>,
    /// How many domains there are.
    pub(super) domains: usize,
}

impl Board {
    /// The nodes as they are, but `without` one of the tasks.
    pub(crate) fn new(state: &State, now: Timestamp, without: Option<TaskId>) -> Self {
        let seats: Vec<Seat> = state.nodes().map(|node| Seat::new(state, node, now, without)).collect();
        let places: BTreeMap<NodeId, u32> =
            (0u32..).zip(&seats).map(|(place, seat)| (seat.node.id, place)).collect();
        let mut keep_apart: BTreeMap<String, Vec<_>> = BTreeMap::new();
        for service in state.services() {
            let rules = service.spec.task.placement.affinities.iter();
            for rule in rules.filter(|rule| rule.rule == AffinityRule::Apart && rule.weight.is_none()) {
                keep_apart.entry(rule.service.clone()).or_default().push((service.id, rule.over.clone()));
            }
        }
        let filling = state.cluster().map_or(Filling::default(), |cluster| cluster.settings.placement);
        let moving = state.services().filter_map(|service| service.rebalance.as_ref());
        let moving =
            moving.flat_map(|rebalance| rebalance.moving.keys()).filter_map(|task| state.task(*task));
        let (mut movers, mut left) = (BTreeSet::new(), BTreeSet::new());
        for task in moving.filter(|task| task.is_live()) {
            movers.insert((task.service, task.slot));
            left.extend(task.node.and_then(|node| places.get(&node).copied()));
        }
        Self {
            seats,
            filling,
            touched: Vec::new(),
            columns: Vec::new(),
            places,
            movers,
            left,
            keep_apart,
            groups: Vec::new(),
        }
    }

    /// Puts a task on the best node, or on the one it belongs to, if that can take it.
    pub(crate) fn place(&mut self, state: &State, task: &Task) -> Option<(NodeId, Claims)> {
        self.prepare(state, task);
        let group = self.groups.last_mut()?;
        let place = match task.slot.node() {
            None => {
                let moves = self.movers.contains(&(task.service, task.slot));
                let elsewhere = if moves { group.best(&self.left) } else { None };
                elsewhere.or_else(|| group.best(&BTreeSet::new()))?
            }
            Some(node) => {
                let place = *self.places.get(&node)?;
                group.refusal(&self.seats[place as usize], place).is_none().then_some(place)?
            }
        };
        let seat = &mut self.seats[place as usize];
        let claims = seat.claims(&group.spec);
        seat.occupy(&group.spec, &group.ports, &claims);
        seat.count(task.service);
        self.touched.push((place, task.service, Touch::Given));
        Some((seat.node.id, claims))
    }

    /// The number of a node on the board.
    pub(super) fn place_of(&self, node: NodeId) -> Option<u32> {
        self.places.get(&node).copied()
    }

    /// Takes a task from its node.
    pub(super) fn lift(&mut self, state: &State, task: &Task, place: u32) {
        let ports = host_ports(state.service(task.service).map(AsRef::as_ref));
        let seat = &mut self.seats[place as usize];
        seat.vacate(&task.spec, &ports, &task.claims);
        seat.discount(task.service);
        self.touched.push((place, task.service, Touch::Taken));
    }

    /// Gives a task that was taken away to a node.
    pub(super) fn put(&mut self, state: &State, task: &Task, place: u32, claims: &Claims) {
        let ports = host_ports(state.service(task.service).map(AsRef::as_ref));
        let seat = &mut self.seats[place as usize];
        seat.occupy(&task.spec, &ports, claims);
        seat.count(task.service);
        self.touched.push((place, task.service, Touch::Given));
    }

    /// Gives what runs in the place of a task to another node, as the scheduler will: the task no longer counts where
    /// it is, but has what it holds until it has ended.
    pub(super) fn succeed(&mut self, state: &State, task: &Task, from: u32, to: u32) {
        self.seats[from as usize].discount(task.service);
        self.touched.push((from, task.service, Touch::Taken));
        self.left.insert(from);
        let claims = self.seats[to as usize].claims(&task.spec);
        self.put(state, task, to, &claims);
    }

    /// How nodes stand for tasks of one service and spec, the nodes, and those that something moves away from.
    pub(super) fn group(&mut self, state: &State, task: &Task) -> (&mut Group, &[Seat], &BTreeSet<u32>) {
        self.prepare(state, task);
        let group = self.groups.last_mut().expect("it was just prepared");
        (group, &self.seats, &self.left)
    }

    /// Why no node can take a task; nothing if one can.
    pub(crate) fn refusals(&mut self, state: &State, task: &Task) -> Option<Refusals> {
        self.prepare(state, task);
        let group = self.groups.last()?;
        let mut refusals = Refusals::default();
        let asked = |seat: &&Seat| task.slot.node().is_none_or(|node| node == seat.node.id);
        for (place, seat) in (0u32..).zip(&self.seats).filter(|(_, seat)| asked(seat)) {
            refusals.add(group.refusal(seat, place)?, seat, &group.spec);
        }
        Some(refusals)
    }

    /// How the nodes stand for a task, best first, and why the others cannot take it.
    pub(super) fn stands(&mut self, state: &State, task: &Task) -> Stands {
        self.prepare(state, task);
        let mut stands = Stands::default();
        let Some(group) = self.groups.last() else { return stands };
        for (place, seat) in (0u32..).zip(&self.seats) {
            match (group.stand(seat, place), group.refusal(seat, place)) {
                (Some(stand), _) => stands.able.push((stand, seat.node.clone())),
                (None, Some(refusal)) => stands.unable.push((refusal, seat.node.id)),
                (None, None) => {}
            }
        }
        stands.able.sort_by(|(one, _), (other, _)| one.cmp(other));
        stands.filling = group.filling();
        stands
    }

    /// Makes the group of a task the last one, and brings it up to date.
    fn prepare(&mut self, state: &State, task: &Task) {
        let known = self.groups.iter().position(|group| group.is_of(task));
        let mut group = match known {
            Some(position) => self.groups.remove(position),
            None => {
                if self.groups.len() == GROUPS_MAX {
                    self.groups.remove(0);
                }
                Group::new(self, state, task)
            }
        };
        group.catch_up(self);
        self.groups.push(group);
    }

    /// The nodes by one of their attributes; the number of the column.
    pub(super) fn column(&mut self, key: &ConstraintKey) -> usize {
        if let Some(known) = self.columns.iter().position(|column| column.key == *key) {
            return known;
        }
        let mut numbers = BTreeMap::new();
        let mut of = Vec::with_capacity(self.seats.len());
        for seat in &self.seats {
            let next = u32::try_from(numbers.len()).unwrap_or(u32::MAX);
            of.push(*numbers.entry(constraint::value(key, &seat.node).into_owned()).or_insert(next));
        }
        self.columns.push(Column { key: key.clone(), of, domains: numbers.len() });
        self.columns.len() - 1
    }

    pub(super) fn columns(&self) -> &[Column] {
        &self.columns
    }

    /// The services that want none of this one's tasks near theirs.
    pub(super) fn keep_apart(&self, service: &str) -> Vec<(ServiceId, Option<ConstraintKey>)> {
        self.keep_apart.get(service).cloned().unwrap_or_default()
    }

    /// Where the tasks of a service are that stay, each once.
    pub(super) fn places_of(&self, state: &State, service: ServiceId) -> Vec<(u32, u32)> {
        let nodes: BTreeSet<NodeId> =
            state.tasks_of(service).filter(|task| task.is_live()).filter_map(|task| task.node).collect();
        let places = nodes.iter().filter_map(|node| self.places.get(node).copied());
        let counted = places.map(|place| (place, self.seats[place as usize].of(service)));
        counted.filter(|(_, count)| *count > 0).collect()
    }
}
