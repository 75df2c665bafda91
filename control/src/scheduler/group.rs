//! Equal tasks: those of one service and spec. All nodes are scored for the first of them; for the next only the
//! nodes that have been given something since.
//!
//! Nodes fall into *leaves*, which are alike in everything that is spread over or ruled by. What a leaf's nodes
//! have in common (how many of the service are in this zone, whether a task of another is) is counted once for
//! the leaf; each leaf keeps its own nodes in a heap. The best node is the best of the leaves' best, so one
//! decision costs as many steps as there are leaves, and not as there are nodes.

use super::board::{Board, Touch};
use super::constraint;
use super::filter::{self, Refusal};
use super::seat::{HostPorts, Seat, host_ports};
use crate::ids::{NodeId, ServiceId};
use crate::model::{AffinityRule, ConstraintKey, Effect, Filling, Preference, Task, TaskSpec};
use crate::state::State;
use std::cmp::{Ordering, Reverse};
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};
use std::sync::Arc;

/// What a node is worth less if it should only be used where there is no other: more than all weights together.
const AVOIDED: i64 = 1_000_000;

/// What a node brings to its score; lower is better.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Own {
    /// The service keeps failing here.
    faulty: bool,
    /// Weights that speak for it.
    soft: Reverse<i64>,
    /// How it is filled: see [`tail`].
    tail: [u64; 3],
    node: NodeId,
}

/// What speaks for a node, in the order in which it counts: as [`Group::compare`] has it. Lower is better.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Stand {
    pub(super) faulty: bool,
    pub(super) weight: Reverse<i64>,
    /// Tasks of the service on its branch, for each level of spreading.
    pub(super) crowd: Vec<u32>,
    pub(super) tail: [u64; 3],
    pub(super) node: NodeId,
}

/// A node in its leaf's heap. It is out of date when its stamp is not the node's.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Entry {
    own: Own,
    place: u32,
    stamp: u32,
}

struct Leaf {
    /// The domain of these nodes in each of the group's columns.
    domains: Vec<u32>,
    /// For each level of spreading, which branch of the tree it is on.
    branches: Vec<u32>,
    heap: BinaryHeap<Reverse<Entry>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Demand {
    Near,
    Far,
    Prefer(i64),
}

/// A rule about the tasks of a service.
struct Term {
    /// `None` where there is no such service.
    target: Option<ServiceId>,
    /// One of the group's columns; `None` is the node itself.
    over: Option<usize>,
    demand: Demand,
    /// For people, before "on 3 nodes".
    words: String,
    /// Tasks of the target in each domain.
    near: Vec<u32>,
    /// Tasks of the target altogether.
    total: u32,
}

/// Where tasks of one service and spec may go, best first.
pub(super) struct Group {
    service: ServiceId,
    spec_version: u64,
    pub(super) spec: Arc<TaskSpec>,
    pub(super) ports: HostPorts,
    filling: Filling,
    terms: Vec<Term>,
    /// The board's columns that this group looks at.
    columns: Vec<usize>,
    /// Of the service's tasks, how many are on each branch, for each level.
    counts: Vec<Vec<u32>>,
    leaves: Vec<Leaf>,
    /// Of each node: its leaf, what nothing changes of its score, and the current stamp.
    leaf_of: Vec<u32>,
    fixed: Vec<Fixed>,
    stamps: Vec<u32>,
    /// How much of what the board was given is counted here.
    seen: usize,
}

/// What nothing that happens in a turn changes of a node's score.
#[derive(Clone, Copy)]
struct Fixed {
    open: bool,
    faulty: bool,
    soft: i64,
}

impl Group {
    pub(super) fn new(board: &mut Board, state: &State, task: &Task) -> Self {
        let spec = task.spec.clone();
        let mut columns = Vec::new();
        let mut column = |board: &mut Board, key: &ConstraintKey| {
            let column = board.column(key);
            columns.iter().position(|known| *known == column).unwrap_or_else(|| {
                columns.push(column);
                columns.len() - 1
            })
        };
        let spread = spec.placement.preferences.iter().filter_map(|preference| match preference {
            Preference::Spread(key) => Some(key),
            Preference::Weighted { .. } => None,
        });
        let levels: Vec<usize> = spread.map(|key| column(board, key)).collect();
        let terms = terms(board, state, task, &mut column);
        let service = state.service(task.service);
        let mut group = Self {
            service: task.service,
            spec_version: task.spec_version,
            ports: host_ports(service.map(AsRef::as_ref)),
            filling: spec.placement.filling.unwrap_or(board.filling),
            spec,
            terms,
            columns,
            counts: Vec::new(),
            leaves: Vec::new(),
            leaf_of: Vec::new(),
            fixed: Vec::new(),
            stamps: vec![0; board.seats.len()],
            seen: board.touched.len(),
        };
        group.grow_leaves(board, &levels);
        group.take_stock(board, state);
        group.fixed = board.seats.iter().map(|seat| group.fixed(seat)).collect();
        group.fill_heaps(board);
        group
    }

    pub(super) fn is_of(&self, task: &Task) -> bool {
        self.service == task.service && self.spec_version == task.spec_version
    }

    /// Sorts the nodes into leaves, and the leaves onto the branches of each level.
    fn grow_leaves(&mut self, board: &Board, levels: &[usize]) {
        let mut leaves: BTreeMap<Vec<u32>, u32> = BTreeMap::new();
        let mut branches: Vec<BTreeMap<Vec<u32>, u32>> = vec![BTreeMap::new(); levels.len()];
        for place in 0..board.seats.len() {
            let domains: Vec<u32> =
                self.columns.iter().map(|column| board.columns()[*column].of[place]).collect();
            if let Some(leaf) = leaves.get(&domains) {
                self.leaf_of.push(*leaf);
                continue;
            }
            let mut path = Vec::new();
            let mut on = Vec::new();
            for (level, known) in levels.iter().zip(&mut branches) {
                path.push(domains[*level]);
                let next = known.len() as u32;
                on.push(*known.entry(path.clone()).or_insert(next));
            }
            let leaf = leaves.len() as u32;
            self.leaf_of.push(leaf);
            leaves.insert(domains.clone(), leaf);
            self.leaves.push(Leaf { domains, branches: on, heap: BinaryHeap::new() });
        }
        self.counts = branches.iter().map(|branches| vec![0; branches.len()]).collect();
        for term in &mut self.terms {
            let domains = term.over.map_or(0, |over| board.columns()[self.columns[over]].domains);
            term.near = vec![0; domains];
        }
    }

    /// Counts the tasks that are there already.
    fn take_stock(&mut self, board: &Board, state: &State) {
        let mut targets: Vec<ServiceId> = self.terms.iter().filter_map(|term| term.target).collect();
        targets.push(self.service);
        targets.sort_unstable();
        targets.dedup();
        for target in targets {
            for (place, count) in board.places_of(state, target) {
                self.note(place, target, i32::try_from(count).unwrap_or(i32::MAX));
            }
        }
    }

    /// Counts tasks that a node has been given, or lost.
    fn note(&mut self, place: u32, service: ServiceId, count: i32) {
        let leaf = &self.leaves[self.leaf_of[place as usize] as usize];
        if service == self.service {
            for (counts, branch) in self.counts.iter_mut().zip(&leaf.branches) {
                let count_there = &mut counts[*branch as usize];
                *count_there = count_there.saturating_add_signed(count);
            }
        }
        for term in self.terms.iter_mut().filter(|term| term.target == Some(service)) {
            term.total = term.total.saturating_add_signed(count);
            if let Some(over) = term.over {
                let near = &mut term.near[leaf.domains[over] as usize];
                *near = near.saturating_add_signed(count);
            }
        }
    }

    fn fixed(&self, seat: &Seat) -> Fixed {
        let placement = &self.spec.placement;
        let open = filter::closed(seat, &self.spec).is_none();
        let avoided = constraint::untolerated(placement, &seat.node)
            .filter(|taint| taint.effect == Effect::PreferNoSchedule)
            .count();
        let weights = placement.preferences.iter().map(|preference| match preference {
            Preference::Weighted { when, weight } if constraint::holds(when, &seat.node) => {
                i64::from(*weight)
            }
            Preference::Weighted { .. } | Preference::Spread(_) => 0,
        });
        let soft = weights.sum::<i64>() - avoided as i64 * AVOIDED;
        Fixed { open, faulty: seat.is_faulty(self.service, self.spec_version), soft }
    }

    fn fill_heaps(&mut self, board: &Board) {
        let mut entries: Vec<Vec<Reverse<Entry>>> = self.leaves.iter().map(|_| Vec::new()).collect();
        for (place, seat) in (0u32..).zip(&board.seats) {
            let stamp = &mut self.stamps[place as usize];
            *stamp += 1;
            let stamp = *stamp;
            if let Some(own) = self.own(seat, place) {
                entries[self.leaf_of[place as usize] as usize].push(Reverse(Entry { own, place, stamp }));
            }
        }
        for (leaf, entries) in self.leaves.iter_mut().zip(entries) {
            leaf.heap = BinaryHeap::from(entries);
        }
    }

    /// Counts what was placed since, and scores anew the nodes that were touched.
    pub(super) fn catch_up(&mut self, board: &Board) {
        let news = &board.touched[self.seen..];
        self.seen = board.touched.len();
        // The first task of a service that is to be near itself makes every other node wrong.
        let began = self.begins_anywhere();
        for (place, service, touch) in news {
            self.note(*place, *service, if *touch == Touch::Given { 1 } else { -1 });
        }
        if news.len() > board.seats.len() || began != self.begins_anywhere() {
            return self.fill_heaps(board);
        }
        for (place, ..) in news {
            self.stamps[*place as usize] += 1;
            let stamp = self.stamps[*place as usize];
            if let Some(own) = self.own(&board.seats[*place as usize], *place) {
                let leaf = &mut self.leaves[self.leaf_of[*place as usize] as usize];
                leaf.heap.push(Reverse(Entry { own, place: *place, stamp }));
            }
        }
    }

    /// Whether it is to be near itself, and is nowhere yet.
    fn begins_anywhere(&self) -> bool {
        self.terms.iter().any(|term| term.demand == Demand::Near && self.is_first(term))
    }

    fn is_first(&self, term: &Term) -> bool {
        term.target == Some(self.service) && term.total == 0
    }

    /// What a node brings to its score; nothing if it cannot take a task.
    fn own(&self, seat: &Seat, place: u32) -> Option<Own> {
        let fixed = self.fixed[place as usize];
        let same = seat.of(self.service);
        if !fixed.open || filter::full(seat, &self.spec, same, &self.ports).is_some() {
            return None;
        }
        let mut soft = fixed.soft;
        for term in self.terms.iter().filter(|term| term.over.is_none()) {
            let near = term.target.is_some_and(|target| seat.of(target) > 0);
            match term.demand {
                Demand::Prefer(weight) => soft += if near { weight } else { 0 },
                demand if self.meets(term, demand, near) => {}
                Demand::Near | Demand::Far => return None,
            }
        }
        let tail = tail(self.filling, seat, &self.spec, same);
        Some(Own { faulty: fixed.faulty, soft: Reverse(soft), tail, node: seat.node.id })
    }

    /// Whether a demand is met where its target is, or is not, `near`.
    fn meets(&self, term: &Term, demand: Demand, near: bool) -> bool {
        match demand {
            Demand::Near => near || self.is_first(term),
            Demand::Far => !near,
            Demand::Prefer(_) => true,
        }
    }

    /// What all nodes of a leaf have in common: whether they are allowed, and the weights that speak for them.
    fn common(&self, leaf: &Leaf) -> Result<i64, &Term> {
        let mut soft = 0;
        for term in &self.terms {
            let Some(over) = term.over else { continue };
            let near = term.near[leaf.domains[over] as usize] > 0;
            match term.demand {
                Demand::Prefer(weight) => soft += if near { weight } else { 0 },
                demand if self.meets(term, demand, near) => {}
                Demand::Near | Demand::Far => return Err(term),
            }
        }
        Ok(soft)
    }

    /// The best node, if one can take a task, of those that are not to be `avoided`.
    pub(super) fn best(&mut self, avoided: &BTreeSet<u32>) -> Option<u32> {
        let mut best: Option<(Own, u32, usize)> = None;
        for number in 0..self.leaves.len() {
            let Ok(soft) = self.common(&self.leaves[number]) else { continue };
            let stamps = &self.stamps;
            let heap = &mut self.leaves[number].heap;
            let mut passed = Vec::new();
            while let Some(Reverse(top)) = heap.peek() {
                let is_valid = stamps[top.place as usize] == top.stamp;
                if is_valid && !avoided.contains(&top.place) {
                    break;
                }
                passed.extend(heap.pop().filter(|_| is_valid));
            }
            let top = heap.peek().map(|Reverse(top)| (top.own, top.place));
            heap.extend(passed);
            let Some((own, place)) = top else { continue };
            let own = Own { soft: Reverse(own.soft.0 + soft), ..own };
            let better = best.as_ref().is_none_or(|(other, _, leaf)| {
                self.compare((&own, number), (other, *leaf)) == Ordering::Less
            });
            if better {
                best = Some((own, place, number));
            }
        }
        best.map(|(_, place, _)| place)
    }

    /// Which of two nodes, each with its leaf, is better: the whole policy, in order. First come nodes on which the
    /// service does not keep failing, then weights, then the branches with the fewest of its tasks, then how nodes are
    /// filled.
    fn compare(&self, (one, its): (&Own, usize), (other, others): (&Own, usize)) -> Ordering {
        let crowd = |leaf: usize| {
            let branches = self.leaves[leaf].branches.iter();
            self.counts.iter().zip(branches).map(|(counts, branch)| counts[*branch as usize])
        };
        (one.faulty, one.soft)
            .cmp(&(other.faulty, other.soft))
            .then_with(|| crowd(its).cmp(crowd(others)))
            .then_with(|| (one.tail, one.node).cmp(&(other.tail, other.node)))
    }

    /// What speaks for a node; nothing if it cannot take a task.
    pub(super) fn stand(&self, seat: &Seat, place: u32) -> Option<Stand> {
        let leaf = &self.leaves[self.leaf_of[place as usize] as usize];
        let common = self.common(leaf).ok()?;
        let Own { faulty, soft, tail, node } = self.own(seat, place)?;
        let crowd = self.counts.iter().zip(&leaf.branches).map(|(counts, branch)| counts[*branch as usize]);
        Some(Stand { faulty, weight: Reverse(soft.0 + common), crowd: crowd.collect(), tail, node })
    }

    pub(super) fn filling(&self) -> Filling {
        self.filling
    }

    /// Why a node cannot take a task; nothing if it can.
    pub(super) fn refusal(&self, seat: &Seat, place: u32) -> Option<Refusal> {
        if let Some(closed) = filter::closed(seat, &self.spec) {
            return Some(closed);
        }
        let affinity = |term: &Term| Refusal::Affinity(term.words.clone());
        if let Err(term) = self.common(&self.leaves[self.leaf_of[place as usize] as usize]) {
            return Some(affinity(term));
        }
        let unmet = self.terms.iter().filter(|term| term.over.is_none()).find(|term| {
            let near = term.target.is_some_and(|target| seat.of(target) > 0);
            !self.meets(term, term.demand, near)
        });
        if let Some(term) = unmet {
            return Some(affinity(term));
        }
        filter::full(seat, &self.spec, seat.of(self.service), &self.ports)
    }
}

/// How nodes are filled that are equally good otherwise; lower is better.
fn tail(filling: Filling, seat: &Seat, spec: &TaskSpec, same: u32) -> [u64; 3] {
    let (same, total) = (u64::from(same), u64::from(seat.total));
    match filling {
        Filling::Spread => [same, total, 0],
        Filling::BinPack => [u64::MAX - seat.fullness(spec), u64::MAX - total, same],
    }
}

/// A task's rules about other services, and theirs about it.
fn terms(
    board: &mut Board,
    state: &State,
    task: &Task,
    column: &mut impl FnMut(&mut Board, &ConstraintKey) -> usize,
) -> Vec<Term> {
    let mut terms = Vec::new();
    let term = |target, over, demand, words| Term { target, over, demand, words, near: Vec::new(), total: 0 };
    for rule in &task.spec.placement.affinities {
        let target = state.service_named(&rule.service).map(|service| service.id);
        let over = rule.over.as_ref().map(|key| column(board, key));
        let place = rule.over.as_ref().map_or(String::new(), |key| format!(" in the same {key}"));
        let name = &rule.service;
        let (demand, words) = match (rule.rule, rule.weight) {
            (AffinityRule::Together, None) => (Demand::Near, format!("no task of {name}{place}")),
            (AffinityRule::Apart, None) => (Demand::Far, format!("a task of {name}{place}")),
            (AffinityRule::Together, Some(weight)) => (Demand::Prefer(i64::from(weight)), String::new()),
            (AffinityRule::Apart, Some(weight)) => (Demand::Prefer(-i64::from(weight)), String::new()),
        };
        terms.push(term(target, over, demand, words));
    }
    for (other, over) in board.keep_apart(&task.service_name) {
        if other == task.service {
            continue;
        }
        let name = state.service(other).map_or(String::new(), |service| service.spec.name.clone());
        let over = over.as_ref().map(|key| column(board, key));
        terms.push(term(Some(other), over, Demand::Far, format!("{name}, which keeps apart from it,")));
    }
    terms
}
