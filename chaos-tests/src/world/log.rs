//! The replicated log, abstract but honest: terms, quorums, leases. A committed entry is never lost; one
//! that was only proposed may be, and its proposer may never learn what became of it.

use super::office::{Office, Ticket};
use super::{Event, M, Planted, World};
use crate::invariants::{self, Check, Step};
use rswarm_control::model::Rebalance;
use rswarm_control::state::{EventKind, Object};
use rswarm_control::{Change, Proposal, RaftId, Stale, State, assignment, endpoints, membership, touched};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

/// How often leases are looked at.
const WATCH: u64 = 50;
/// How long a leader that is not heard is believed to lead: the longest election timeout.
const LEASE: u64 = 400;
/// States that are kept to compare replicas with.
const RECENT: usize = 64;

#[derive(Default)]
pub(super) struct Log {
    pub term: u64,
    /// What is committed; entry `n` has index `n + 1`.
    pub entries: Vec<Entry>,
    /// What the leader has proposed and is not committed yet.
    tail: VecDeque<Pending>,
    pub voters: BTreeMap<RaftId, M>,
    pub leader: Option<M>,
    lease_from: u64,
    election_at: Option<u64>,
    membership_at: u64,
    /// The state after all that is committed.
    pub truth: State,
    recent: VecDeque<State>,
}

#[derive(Clone)]
pub(super) struct Entry {
    pub proposal: Arc<Proposal>,
    stale: Option<Stale>,
}

impl Entry {
    pub(super) fn is_stale(&self) -> bool {
        self.stale.is_some()
    }
}

struct Pending {
    proposal: Arc<Proposal>,
    ticket: u64,
    /// Who has written it.
    holders: BTreeSet<M>,
}

/// A manager's copy.
pub(super) struct Replica {
    pub state: State,
    pub applied: usize,
    /// Entries on its disk.
    pub held: usize,
    /// Whom it takes for the leader.
    pub leader: Option<M>,
}

impl World {
    /// The first manager has a log of its own.
    pub(super) fn found_log(&mut self, m: M, proposal: Proposal) {
        self.log.voters.insert(RaftId::FIRST, m);
        self.machines[m].replica =
            Some(Replica { state: State::default(), applied: 0, held: 0, leader: None });
        self.commit(Arc::new(proposal));
        self.apply(m, 1);
        self.after(0, Event::Raft);
    }

    fn quorum(&self) -> usize {
        self.log.voters.len() / 2 + 1
    }

    /// Whether a quorum would confirm that this manager leads.
    pub(super) fn leads_for_certain(&self, m: M, term: u64) -> bool {
        self.log.leader == Some(m) && self.log.term == term && self.group(m).len() >= self.quorum()
    }

    /// The voters that a voter and they hear from each other, itself included.
    fn group(&self, m: M) -> Vec<M> {
        let hears = |other: &M| self.acts(*other) && self.reach_each_other(m, *other);
        self.log.voters.values().copied().filter(hears).collect()
    }

    pub(super) fn raft(&mut self) {
        self.after(WATCH, Event::Raft);
        if let Some(leader) = self.log.leader
            && self.acts(leader)
            && self.office_of_term(leader)
        {
            let group = self.group(leader);
            if group.len() >= self.quorum() && group.contains(&leader) {
                self.log.lease_from = self.now;
                self.log.election_at = None;
                self.catch_up(leader, &group);
                self.follow_roles(leader);
            }
        }
        if self.now.saturating_sub(self.log.lease_from) > LEASE {
            let wait = self.rng.between(200, 400);
            let at = *self.log.election_at.get_or_insert(self.now.saturating_sub(WATCH) + wait);
            if at <= self.now {
                self.elect(None);
            }
        }
        self.depose();
    }

    fn office_of_term(&self, m: M) -> bool {
        self.machines[m].office.as_ref().is_some_and(|office| office.term == self.log.term)
    }

    /// Those who hold an office of an earlier term learn it as soon as they hear anybody who knows.
    fn depose(&mut self) {
        let old: Vec<M> = (0..self.machines.len())
            .filter(|m| self.machines[*m].office.as_ref().is_some_and(|office| office.term < self.log.term))
            .filter(|m| self.acts(*m))
            .collect();
        for m in old {
            let knows = self.log.leader.into_iter().chain(self.log.voters.values().copied());
            let told = knows.into_iter().any(|other| {
                other != m && self.acts(other) && self.reach_each_other(m, other) && {
                    let replica = self.machines[other].replica.as_ref();
                    replica.is_some_and(|replica| replica.leader == self.log.leader)
                }
            });
            if told {
                self.note(|| format!("m{m} learns that it no longer leads"));
                self.drop_office(m);
            }
        }
    }

    fn catch_up(&mut self, leader: M, group: &[M]) {
        let len = self.log.entries.len();
        for m in group.iter().copied() {
            let Some(replica) = self.machines[m].replica.as_mut() else { continue };
            replica.leader = Some(leader);
            if replica.applied < len && m != leader {
                let (delay, boot) = (self.rng.between(1, 40), self.machines[m].boot);
                self.after(delay, Event::Deliver { m, boot, upto: len });
            }
        }
    }

    /// A new leader: `wished` if it can be, else one of those who can.
    pub(super) fn elect(&mut self, wished: Option<M>) {
        let key = |m: &M| {
            let held = self.machines[*m].replica.as_ref().map_or(0, |replica| replica.held);
            let tail = self.log.tail.iter().take_while(|pending| pending.holders.contains(m)).count();
            (held, tail)
        };
        let able = |m: &M| {
            let group = self.group(*m);
            let behind = group.iter().filter(|other| key(other) <= key(m)).count();
            self.acts(*m) && self.machines[*m].replica.is_some() && behind >= self.quorum()
        };
        let candidates: Vec<M> = self.log.voters.values().copied().filter(able).collect();
        let chosen = wished.filter(|wished| candidates.contains(wished));
        let Some(winner) = chosen.or_else(|| self.rng.pick(&candidates)) else {
            self.log.election_at = None;
            return;
        };
        self.log.term += 1;
        let term = self.log.term;
        // What the winner has on its disk it carries on; the rest was never committed, and is lost.
        let carried = key_tail(&self.log.tail, winner);
        let lost = self.log.tail.len() - carried;
        self.log.tail.truncate(carried);
        for pending in &mut self.log.tail {
            (pending.ticket, pending.holders) = (0, BTreeSet::from([winner]));
        }
        self.note(|| format!("m{winner} leads term {term}; {carried} carried on, {lost} lost"));
        self.log.leader = Some(winner);
        (self.log.lease_from, self.log.election_at) = (self.now, None);
        if self.machines[winner].office.is_some() {
            self.drop_office(winner);
        }
        let office = Office::new(term, self.log.entries.len() + carried);
        self.machines[winner].office = Some(office);
        self.after(2, Event::Round { m: winner, term });
    }

    /// Proposes; what becomes of it is told to the ticket's holder, if it is still in office then.
    pub(super) fn propose(&mut self, m: M, proposal: Proposal, ticket: Ticket) {
        let number = self.fresh();
        let current = self.log.term;
        let Some(office) = self.machines[m].office.as_mut() else { return };
        let term = office.term;
        office.tickets.insert(number, ticket);
        if term != current {
            // It thinks it leads, and waits for a quorum that has gone on without it.
            return;
        }
        let idle = self.log.tail.is_empty();
        let (proposal, holders) = (Arc::new(proposal), BTreeSet::from([m]));
        self.log.tail.push_back(Pending { proposal, ticket: number, holders });
        if idle {
            let delay = self.rng.between(1, 6);
            self.after(delay, Event::Round { m, term });
        }
    }

    pub(super) fn round(&mut self, m: M, term: u64) {
        if self.log.term != term || !self.office_of_term(m) || !self.acts(m) {
            return;
        }
        let group = self.group(m);
        let (quorum, seats) = (self.quorum(), self.log.voters.len());
        while let Some(front) = self.log.tail.front() {
            let acknowledged = group.iter().filter(|voter| front.holders.contains(voter)).count();
            if acknowledged < quorum.min(seats) {
                break;
            }
            let Some(pending) = self.log.tail.pop_front() else { break };
            self.commit(pending.proposal);
            let len = self.log.entries.len();
            for voter in pending.holders {
                if let Some(replica) = self.machines[voter].replica.as_mut() {
                    replica.held = len;
                }
            }
            self.apply(m, len);
            self.committed(m, pending.ticket);
        }
        if !self.office_of_term(m) {
            return;
        }
        for voter in group {
            let flaky = self.rng.percent(5);
            let held = self.machines[voter].replica.as_ref().map_or(0, |replica| replica.held);
            if voter != m && (flaky || held < self.log.entries.len()) {
                continue;
            }
            for pending in &mut self.log.tail {
                pending.holders.insert(voter);
            }
        }
        self.seat(m);
        if !self.log.tail.is_empty() {
            let delay = self.rng.between(2, 8);
            self.after(delay, Event::Round { m, term });
        }
    }

    /// Entry `upto` and all before it are on a follower's disk.
    pub(super) fn deliver_entries(&mut self, m: M, boot: u64, upto: usize) {
        let machine = &mut self.machines[m];
        let reached = self
            .log
            .leader
            .is_some_and(|leader| leader == m || !self.cuts.values().any(|cut| cut.contains(&(leader, m))));
        if machine.boot != boot || !reached {
            return;
        }
        let Some(replica) = machine.replica.as_mut() else { return };
        replica.held = replica.held.max(upto);
        self.apply(m, upto);
    }

    fn commit(&mut self, proposal: Arc<Proposal>) {
        let before = self.log.truth.clone();
        let index = before.index() + 1;
        let applied = self.log.truth.apply(index, &proposal);
        match &applied {
            Ok(applied) => {
                let words = proposal.changes.iter().map(brief).collect::<Vec<_>>().join(", ");
                self.note(|| format!("#{index} {words}"));
                self.account(&before, &proposal, applied);
            }
            Err(stale) => self.note(|| format!("#{index} {stale}")),
        }
        self.log.entries.push(Entry { proposal, stale: applied.err() });
        if self.log.recent.len() == RECENT {
            self.log.recent.pop_front();
        }
        self.log.recent.push_back(self.log.truth.clone());
    }

    /// Keeps the books, and checks what must hold after each entry.
    fn account(&mut self, before: &State, proposal: &Proposal, applied: &rswarm_control::Applied) {
        let touched = touched::between(before, &self.log.truth);
        let is_news = !endpoints::between(before, &self.log.truth).is_empty();
        for node in before.nodes().map(|node| node.id) {
            let held = |state| assignment::of(state, node);
            let known = |state| endpoints::of(state, node);
            if !touched.has(node) && held(before) != held(&self.log.truth)
                || !is_news && known(before) != known(&self.log.truth)
            {
                let detail = format!("node {node} does not hear of {:?}", proposal.changes);
                self.broken.get_or_insert((invariants::TOLD_WHAT_CONCERNS, detail));
            }
        }
        for event in &applied.events {
            let id = match event.object {
                Object::Cluster => continue,
                Object::Node(id) => id.0,
                Object::Service(id) => id.0,
                Object::Network(id) => id.0,
                Object::Task(id) => id.0,
            };
            if event.kind == EventKind::Created && !self.ids.insert(id) {
                self.fail(invariants::IDS_NEVER_REPEAT, format!("{:?}", event.object));
            }
            if let (Object::Task(id), Some(task)) = (
                event.object,
                match event.object {
                    Object::Task(id) => self.log.truth.task(id),
                    _ => None,
                },
            ) {
                self.of.insert(id, (task.service, task.slot));
                if let Some(node) = task.node {
                    self.assigned.insert(id, node);
                }
                self.facts_stale = true;
            }
            if let Object::Node(id) = event.object {
                let lost = self.log.truth.node(id).is_none_or(|node| node.status.is_lost());
                if lost {
                    let tasks = before.tasks_on(id).filter(|task| task.is_live()).map(|task| task.id);
                    self.excused.extend(tasks.collect::<Vec<_>>());
                }
            }
        }
        let step = Step { before, proposal, after: &self.log.truth };
        let broken = invariants::ALL.iter().find_map(|invariant| {
            let finding = match invariant.check {
                Check::State(check) => check(&self.log.truth),
                Check::Step(check) => check(&step),
                _ => Ok(()),
            };
            finding.err().map(|detail| (*invariant, detail))
        });
        if let Some((invariant, detail)) = broken {
            self.fail(invariant, detail);
        }
    }

    /// Lets a manager's copy follow.
    pub(super) fn apply(&mut self, m: M, upto: usize) {
        let planted = self.options.planted == Some(Planted::SkipsEntry);
        let machine = &mut self.machines[m];
        let Some(replica) = machine.replica.as_mut() else { return };
        let mut moved = false;
        while replica.applied < upto.min(self.log.entries.len()) {
            let entry = &self.log.entries[replica.applied];
            replica.applied += 1;
            let index = replica.applied as u64;
            if planted && !self.once && index > 40 && self.log.leader != Some(m) {
                self.once = true;
                continue;
            }
            let stale = replica.state.apply(index, &entry.proposal).err();
            if stale != entry.stale {
                let detail =
                    format!("entry {index} is {stale:?} on {}, {:?} elsewhere", machine.name, entry.stale);
                self.broken.get_or_insert((invariants::REPLICAS_AGREE, detail));
                return;
            }
            moved = true;
        }
        let index = replica.state.index();
        let first = self.log.recent.front().map_or(0, State::index);
        if moved && index.is_multiple_of(8) && index >= first {
            let expected = self.log.recent.get((index - first) as usize);
            if expected.is_some_and(|expected| *expected != replica.state) {
                let detail = format!("{} holds something else after entry {index}", machine.name);
                self.broken.get_or_insert((invariants::REPLICAS_AGREE, detail));
            }
        }
        if moved && machine.office.as_ref().is_some_and(|office| office.seated) {
            self.look_again(m);
        }
    }

    /// The group follows the managers' roles, one seat at a time.
    fn follow_roles(&mut self, leader: M) {
        let office = self.machines[leader].office.as_ref();
        if self.now < self.log.membership_at || !office.is_some_and(|office| office.seated) {
            return;
        }
        self.log.membership_at = self.now + 500;
        let Some(replica) = self.machines[leader].replica.as_ref() else { return };
        let seats = membership::raft_membership(&replica.state);
        let new = seats.iter().find(|(seat, _)| !self.log.voters.contains_key(seat));
        if let Some((seat, place)) = new {
            let (seat, node) = (*seat, place.node);
            let machine = (0..self.machines.len()).find(|m| self.machines[*m].node == Some(node));
            let Some(m) = machine.filter(|m| self.acts(*m) && self.reach_each_other(leader, *m)) else {
                return;
            };
            // One that was demoted a moment ago still has its old seat.
            if self.machines[m].replica.is_some() {
                return;
            }
            let state = State::restore(replica.state.snapshot());
            let (applied, same) = (replica.applied, state == replica.state);
            self.note(|| format!("m{m} takes seat {seat}"));
            self.machines[m].replica = Some(Replica { state, applied, held: applied, leader: Some(leader) });
            self.log.voters.insert(seat, m);
            if !same {
                self.fail(invariants::SNAPSHOT_WHOLE, format!("at entry {applied}"));
            }
            return;
        }
        let gone = self.log.voters.iter().find(|(seat, _)| !seats.contains_key(seat));
        if let Some((seat, m)) = gone.map(|(seat, m)| (*seat, *m)) {
            let left = self.log.voters.len() - 1;
            let reached = self.group(leader).iter().filter(|other| **other != m).count();
            if left == 0 || reached < left / 2 + 1 {
                return;
            }
            // Those that stay must hold what is committed.
            let len = self.log.entries.len();
            let holds = |m: &M| self.machines[*m].replica.as_ref().is_some_and(|replica| replica.held == len);
            if self.group(leader).iter().filter(|other| **other != m && holds(other)).count() < left / 2 + 1 {
                return;
            }
            self.note(|| format!("m{m} loses seat {seat}"));
            self.log.voters.remove(&seat);
            if self.machines[m].office.is_some() {
                self.drop_office(m);
            }
            self.machines[m].replica = None;
            if self.log.leader == Some(m) {
                self.log.leader = None;
                self.log.lease_from = self.now.saturating_sub(LEASE);
            }
        }
    }
}

fn key_tail(tail: &VecDeque<Pending>, m: M) -> usize {
    tail.iter().take_while(|pending| pending.holders.contains(&m)).count()
}

/// A change in a few words, for the trace.
fn brief(change: &Change) -> String {
    match change {
        Change::Init(_) => "init".into(),
        Change::SetTokens { .. } => "tokens".into(),
        Change::SetLevel { level, .. } => format!("level {level}"),
        Change::Once { request, .. } => format!("once {request}"),
        Change::SetSettings { .. } => "settings".into(),
        Change::CreateNode(node) => format!("node {} ({})", node.hostname, node.id),
        Change::UpdateNode { node, role, availability, .. } => format!("node {node} {role} {availability:?}"),
        Change::OpenSession { node, epoch, .. } => format!("session {node}/{epoch}"),
        Change::SetNodeStatus { node, was, status, .. } => format!("node {node} {was:?}→{status:?}"),
        Change::RemoveNode { node, .. } => format!("node {node} removed"),
        Change::StartAnew { incarnation, node, .. } => format!("{node} starts anew ({incarnation})"),
        Change::Reseat { node, .. } => format!("node {node} gets another seat"),
        Change::CreateService(service) => {
            let image = &service.spec.task.containers[0].image;
            format!("service {} ×{} {image}", service.spec.name, size(&service.spec.mode))
        }
        Change::UpdateService { spec, .. } => {
            format!("update {} ×{} {}", spec.name, size(&spec.mode), spec.task.containers[0].image)
        }
        Change::SetRebalance { service, rebalance, .. } => match rebalance {
            Some(Rebalance { moving, .. }) => format!("rebalance {service}, {} tasks", moving.len()),
            None => format!("{service} is balanced"),
        },
        Change::ExpireJob { service, .. } => format!("job {service} is over time"),
        Change::SetUpdateStatus { service, status, .. } => format!("update of {service} {:?}", status.state),
        Change::RemoveService { service, .. } => format!("service {service} removed"),
        Change::CreateNetwork(network) => format!("network {} {}", network.name, network.subnet),
        Change::UpdateNetwork { network, isolated, .. } => format!("network {network} isolated: {isolated}"),
        Change::RemoveNetwork { network } => format!("network {network} removed"),
        Change::CreateTask(new) => format!("task {} {}.{} {}", new.id, new.service, new.slot, new.desired),
        Change::Allocate { task, .. } => format!("allocate {task}"),
        Change::Assign { task, node, .. } => format!("{task}→{node}"),
        Change::Note { task, note } => format!("{task} waits: {note}"),
        Change::SetDesired { task, desired } => format!("{task} wanted {desired}"),
        Change::Retune { task, .. } => format!("{task} retuned"),
        Change::Report(report) => format!("{} is {}", report.task, report.observed),
        Change::EndTask { task, observed, .. } => format!("{task} ends {observed}"),
        Change::RemoveTask { task } => format!("{task} forgotten"),
    }
}

/// How many tasks a mode asks for, or its name.
fn size(mode: &rswarm_control::model::Mode) -> String {
    mode.replicas().map_or(mode.name().into(), |replicas| replicas.to_string())
}
