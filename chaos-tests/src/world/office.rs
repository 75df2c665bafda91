//! The leader's side: a term of office with what is heard in it, the sessions of the nodes, and the three
//! things a leader does: think, push, and propose what is reported.

use super::machine::{Down, Up};
use super::{Event, M, Planted, World, not_before};
use crate::invariants;
use rswarm_control::admission::{self, Answer, Refused, Request, Session};
use rswarm_control::assignment::{self, Assignment};
use rswarm_control::endpoints::{self, Table};
use rswarm_control::model::{Description, Desired, Health, NodeStatus, Observed, Role};
use rswarm_control::{Change, Heard, NewTask, NodeId, Proposal, Report, State, TaskId, Timestamp};
use rswarm_control::{Crank, tick};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

/// How long reports gather.
const GATHER: u64 = 20;
/// The leader looks at least this often.
const SLEEP_MAX: u64 = 5_000;
/// Longer than any world lasts.
const FOR_GOOD: u64 = 1 << 40;
/// A leader that woke this much later than it meant to, or whose clock jumped as much, was not listening.
const ABSENT: u64 = 500;
/// A leader that no quorum has followed for so long sends its nodes away.
const FAITH: u64 = 1_500;
/// If a quorum follows again, they have so long to come back.
const RETURN: u64 = 3_000;

/// Gone with the leadership.
pub(super) struct Office {
    pub term: u64,
    /// So many entries must be applied before anything is decided.
    seat_at: usize,
    pub seated: bool,
    heard: Heard,
    crank: Crank,
    pub tickets: BTreeMap<u64, Ticket>,
    pub sessions: BTreeMap<NodeId, Served>,
    reports: BTreeMap<(TaskId, NodeId), Report>,
    pumping: bool,
    thinking: bool,
    pushing: bool,
    turn: u64,
    due: u64,
    /// When a quorum was last seen to follow.
    quorum_at: u64,
    /// Nodes have been sent away, for want of a quorum.
    sent_away: bool,
    /// How far the wall clock was from the true time when it was last looked at.
    offset: i64,
}

/// Who waits for what becomes of a proposal.
#[derive(Clone, Debug)]
pub(super) enum Ticket {
    Think,
    Pump,
    Open { stream: u64, node: NodeId, tries: u32, epoch: u64 },
    User { request: u64, answer: Answer },
}

/// A node's session.
pub(super) struct Served {
    pub stream: u64,
    epoch: u64,
    held: Option<Assignment>,
    known: Option<Table>,
    listed: Option<(Vec<M>, Option<M>)>,
    /// What was sent a while ago, for a world that makes mistakes.
    old: Option<Assignment>,
}

impl Office {
    pub(super) fn new(term: u64, seat_at: usize) -> Self {
        Self {
            term,
            seat_at,
            seated: false,
            heard: Heard::new(Timestamp(0)),
            crank: Crank::default(),
            tickets: BTreeMap::new(),
            sessions: BTreeMap::new(),
            reports: BTreeMap::new(),
            pumping: false,
            thinking: false,
            pushing: false,
            turn: 0,
            due: u64::MAX,
            quorum_at: 0,
            sent_away: false,
            offset: 0,
        }
    }
}

impl World {
    fn office(&mut self, m: M, term: u64) -> Option<&mut Office> {
        self.machines[m].office.as_mut().filter(|office| office.term == term && office.seated)
    }

    /// Takes up office, once what the predecessors committed is applied.
    pub(super) fn seat(&mut self, m: M) {
        let committed = self.log.entries.len();
        let Some(office) = self.machines[m].office.as_ref() else { return };
        if office.seated || committed < office.seat_at {
            return;
        }
        self.apply(m, committed);
        let (wall, offset) = (self.wall(m), self.machines[m].clock_offset);
        let machine = &mut self.machines[m];
        let (Some(office), Some(replica)) = (machine.office.as_mut(), machine.replica.as_ref()) else {
            return;
        };
        office.heard = Heard::new(not_before(&replica.state, wall));
        office.offset = offset;
        office.seated = true;
        office.quorum_at = self.now;
        let term = office.term;
        self.note(|| format!("m{m} takes up office, term {term}"));
        self.look_again(m);
    }

    /// Ends a term of office: whoever waited is told nothing, or that it is over.
    pub(super) fn drop_office(&mut self, m: M) {
        let Some(office) = self.machines[m].office.take() else { return };
        for ticket in office.tickets.into_values() {
            match ticket {
                Ticket::User { request, .. } => self.unanswered(request),
                Ticket::Open { stream, .. } => self.hang_up(stream),
                Ticket::Think | Ticket::Pump => {}
            }
        }
        for served in office.sessions.into_values() {
            self.hang_up(served.stream);
        }
    }

    /// The state of a leader has changed, or a node is heard again.
    pub(super) fn look_again(&mut self, m: M) {
        let (think, push) = (self.rng.below(3), self.rng.between(1, 15));
        let now = self.now;
        let Some(office) = self.machines[m].office.as_mut() else { return };
        let term = office.term;
        let (thinking, pushing) = (office.thinking, std::mem::replace(&mut office.pushing, true));
        if !thinking {
            office.turn += 1;
            office.due = now + think;
            let turn = office.turn;
            self.after(think, Event::Think { m, term, turn });
        }
        if !pushing {
            self.after(push, Event::Push { m, term });
        }
    }

    pub(super) fn think(&mut self, m: M, term: u64, turn: u64) {
        let (now, wall, offset) = (self.now, self.wall(m), self.machines[m].clock_offset);
        let is_followed = self.is_followed(m, term);
        let machine = &mut self.machines[m];
        let (Some(office), Some(replica)) = (machine.office.as_mut(), machine.replica.as_ref()) else {
            return;
        };
        if office.term != term || office.turn != turn || office.thinking || !office.seated {
            return;
        }
        let at = not_before(&replica.state, wall);
        if now > office.due.saturating_add(ABSENT) || office.offset.abs_diff(offset) > ABSENT {
            office.heard.resumed(at);
        }
        office.offset = offset;
        if is_followed && std::mem::take(&mut office.sent_away) {
            office.heard.resumed(at.after(Duration::from_millis(RETURN)));
        }
        let state = replica.state.clone();
        let believed = match self.options.planted {
            Some(Planted::OneFailureMore) => one_failure_more(&state),
            _ => state.clone(),
        };
        let plan = office.crank.turn(&believed, &office.heard, at);
        let heard = office.heard.clone();
        let afresh = tick(&believed, &heard, at);
        if plan != afresh {
            self.fail(invariants::MEMORY_MATTERS_NOT, format!("{plan:?} is not {afresh:?}"));
        }
        let Some(office) = self.machines[m].office.as_mut() else { return };
        if plan.changes.is_empty() {
            let nap = plan.wake_at.map_or(SLEEP_MAX, |wake| wake.0.saturating_sub(at.0)).clamp(1, SLEEP_MAX);
            let asleep = self.options.planted == Some(Planted::LostWakeUp) && term > 1;
            let nap = if asleep { FOR_GOOD } else { nap };
            office.turn += 1;
            office.due = now + nap;
            let turn = office.turn;
            return self.after(nap, Event::Think { m, term, turn });
        }
        let proposal = Proposal { changes: plan.changes, at };
        let mut next = state.clone();
        if let Err(stale) = next.apply(state.index() + 1, &proposal) {
            self.fail(invariants::PLAN_IS_FIXPOINT, format!("{stale}: {:?}", proposal.changes));
        }
        let again = match self.options.planted {
            Some(Planted::OneFailureMore) => rswarm_control::Plan::default(),
            _ => tick(&next, &heard, at),
        };
        if !again.changes.is_empty() {
            let detail = format!("{:?} is left after {:?}", again.changes, proposal.changes);
            self.fail(invariants::PLAN_IS_FIXPOINT, detail);
        }
        let proposal = self.blunder(&state, proposal);
        if let Some(office) = self.machines[m].office.as_mut() {
            office.thinking = true;
        }
        self.propose(m, proposal, Ticket::Think);
    }

    /// Makes the mistake that was planted, if one of the leader's was.
    fn blunder(&mut self, state: &State, mut proposal: Proposal) -> Proposal {
        match self.options.planted {
            Some(Planted::DeafToSilence) => proposal
                .changes
                .retain(|change| !matches!(change, Change::SetNodeStatus { status: NodeStatus::Down, .. })),
            Some(Planted::NeverStops) => proposal.changes.retain(
                |change| !matches!(change, Change::SetDesired { desired, .. } if *desired >= Desired::Shutdown),
            ),
            Some(Planted::KeepsSurplus) => {
                let has_other = |id: &TaskId| {
                    let task = state.task(*id);
                    task.is_some_and(|task| {
                        state.tasks_of(task.service).any(|other| {
                            other.slot == task.slot && other.id != *id && other.observed == Observed::Running
                        })
                    })
                };
                proposal.changes.retain(|change| {
                    !matches!(change, Change::SetDesired { task, desired } if *desired >= Desired::Shutdown && has_other(task))
                });
            }
            Some(Planted::DoubleCreate) => {
                let last = proposal.changes.iter().rev().find_map(|change| match change {
                    Change::CreateTask(new) => Some(new.clone()),
                    _ => None,
                });
                if let Some(mut new) = last {
                    new.number += 1;
                    new.id = TaskId::mint(state.id_seed(), new.number);
                    proposal.changes.push(Change::CreateTask(new));
                }
            }
            Some(Planted::RunsAgain) => {
                let done = state.tasks().find(|task| {
                    let service = state.service(task.service);
                    task.observed == Observed::Completed
                        && task.desired != Desired::Remove
                        && service.is_some_and(|s| s.spec.mode.is_job() && s.spec_version == task.spec_version)
                });
                let created = |change: &&Change| matches!(change, Change::CreateTask(_));
                if let Some(done) = done
                    && !proposal.changes.iter().any(|change| created(&change))
                {
                    let number = state.next_number();
                    proposal.changes.push(Change::CreateTask(NewTask {
                        id: TaskId::mint(state.id_seed(), number),
                        number,
                        service: done.service,
                        slot: done.slot,
                        spec_version: done.spec_version,
                        desired: Desired::Running,
                        start_at: Timestamp::default(),
                        restarts: 0,
                        failures: 0,
                    }));
                }
            }
            Some(Planted::AnyNode) => {
                let nodes: Vec<NodeId> = state.nodes().map(|node| node.id).collect();
                for change in &mut proposal.changes {
                    if let Change::Assign { node, .. } = change {
                        *node = self.rng.pick(&nodes).unwrap_or(*node);
                    }
                }
            }
            _ => {}
        }
        proposal
    }

    /// An entry that this leader proposed is applied here.
    pub(super) fn committed(&mut self, m: M, ticket: u64) {
        let stale = self.log.entries.last().is_some_and(super::log::Entry::is_stale);
        let Some(office) = self.machines[m].office.as_mut() else { return };
        let term = office.term;
        match office.tickets.remove(&ticket) {
            None => {}
            Some(Ticket::Think) => {
                office.thinking = false;
                self.look_again(m);
            }
            Some(Ticket::Pump) => {
                office.pumping = false;
                if !office.reports.is_empty() {
                    office.pumping = true;
                    self.after(1, Event::Pump { m, term });
                }
            }
            Some(Ticket::Open { stream, node, tries, .. }) if stale => self.open(m, stream, node, tries + 1),
            Some(Ticket::Open { stream, node, epoch, .. }) => self.opened(m, stream, node, epoch),
            Some(Ticket::User { request, .. }) if stale => self.after(0, Event::Ask { request }),
            Some(Ticket::User { request, answer }) => self.answered(request, answer),
        }
    }

    /// A node says hello.
    fn open(&mut self, m: M, stream: u64, node: NodeId, tries: u32) {
        let Some(peer) = self.streams.get(&stream).map(|stream| stream.node) else { return };
        let wall = self.wall(m);
        let (hostname, addr) = (self.machines[peer].name.clone(), self.machines[peer].addr.clone());
        let description: Description = self.machines[peer].description.clone();
        let Some(replica) = self.machines[m].replica.as_ref() else { return };
        let at = not_before(&replica.state, wall);
        let request = Request::OpenSession(Session { node, hostname, addr, description });
        match admission::admit(&replica.state, &request, at) {
            _ if tries > 16 => self.hang_up(stream),
            Ok((changes, Answer::Session { epoch })) => {
                self.propose(m, Proposal { changes, at }, Ticket::Open { stream, node, tries, epoch });
            }
            // A leader that was deposed without knowing it may never have heard of a node that has joined:
            // only one that was removed is told so.
            Err(Refused::Denied(_)) if replica.state.removed_at(node).is_some() => {
                self.send_down(stream, Down::Removed);
            }
            Ok(_) | Err(_) => self.hang_up(stream),
        }
    }

    fn opened(&mut self, m: M, stream: u64, node: NodeId, epoch: u64) {
        if !self.streams.contains_key(&stream) {
            return;
        }
        self.hear(m, node);
        let served = Served { stream, epoch, held: None, known: None, listed: None, old: None };
        if let Some(office) = self.machines[m].office.as_mut() {
            office.sessions.insert(node, served);
        }
        self.send_down(stream, Down::Welcome);
        self.look_again(m);
    }

    /// Whether a quorum has followed this leader lately.
    fn is_followed(&mut self, m: M, term: u64) -> bool {
        let (now, certain) = (self.now, self.leads_for_certain(m, term));
        let Some(office) = self.machines[m].office.as_mut() else { return false };
        if certain {
            office.quorum_at = now;
        }
        now - office.quorum_at < FAITH
    }

    fn hear(&mut self, m: M, node: NodeId) {
        let wall = self.wall(m);
        let machine = &mut self.machines[m];
        let (Some(office), Some(replica)) = (machine.office.as_mut(), machine.replica.as_ref()) else {
            return;
        };
        office.heard.beat(node, not_before(&replica.state, wall));
        if replica.state.node(node).is_some_and(|node| node.status != NodeStatus::Ready) {
            self.look_again(m);
        }
    }

    /// A message of a node has arrived.
    pub(super) fn take(&mut self, m: M, stream: u64, node: NodeId, message: Up) {
        let Some(office) = self.machines[m].office.as_mut().filter(|office| office.seated) else {
            let leader = self.machines[m].replica.as_ref().and_then(|replica| replica.leader);
            return match message {
                Up::Hello => self.send_down(stream, Down::NotLeader(leader.filter(|leader| *leader != m))),
                _ => self.hang_up(stream),
            };
        };
        let term = office.term;
        if !self.is_followed(m, term) {
            if let Some(office) = self.machines[m].office.as_mut() {
                office.sent_away = true;
                office.sessions.retain(|_, served| served.stream != stream);
            }
            return self.send_down(stream, Down::NotLeader(None));
        }
        let Some(office) = self.office(m, term) else { return };
        match message {
            Up::Hello => self.open(m, stream, node, 0),
            Up::Beat(said) => {
                self.hear(m, node);
                let confirmed = self.leads_for_certain(m, term).then_some(said);
                self.send_down(stream, Down::Reply(confirmed));
            }
            Up::Reports(reports) => {
                for report in reports {
                    let key = (report.task, report.node);
                    match office.reports.get(&key) {
                        Some(known) if known.observed > report.observed => {}
                        _ => drop(office.reports.insert(key, report)),
                    }
                }
                if !std::mem::replace(&mut office.pumping, true) {
                    self.after(GATHER, Event::Pump { m, term });
                }
                self.hear(m, node);
            }
        }
    }

    pub(super) fn pump(&mut self, m: M, term: u64) {
        let (wall, twice) = (self.wall(m), self.rng.percent(2) && !self.quiet);
        let Some(office) = self.office(m, term) else { return };
        let reports = std::mem::take(&mut office.reports);
        let Some(replica) = self.machines[m].replica.as_ref() else { return };
        let (state, at) = (&replica.state, not_before(&replica.state, wall));
        let news = reports.values().filter(|report| is_news(state, report) || twice);
        let mut news: Vec<Report> = news.cloned().collect();
        if self.options.planted == Some(Planted::RunsTooSoon) {
            for report in news.iter_mut().filter(|report| report.observed == Observed::Starting) {
                (report.observed, report.health) = (Observed::Running, Health::Healthy);
            }
        }
        let changes: Vec<Change> = news.into_iter().map(Change::Report).collect();
        if changes.is_empty() {
            if let Some(office) = self.office(m, term) {
                office.pumping = false;
            }
            return;
        }
        // An answer that was lost makes the leader say it again.
        if twice && let Some(office) = self.office(m, term) {
            office.reports = reports;
        }
        self.propose(m, Proposal { changes, at }, Ticket::Pump);
    }

    /// Sends every node what has changed for it.
    pub(super) fn push(&mut self, m: M, term: u64) {
        let Some(office) = self.office(m, term) else { return };
        office.pushing = false;
        let mut sessions = std::mem::take(&mut office.sessions);
        sessions.retain(|_, served| self.streams.contains_key(&served.stream));
        let Some(replica) = self.machines[m].replica.as_ref() else { return };
        let state = replica.state.clone();
        let managers: Vec<NodeId> =
            state.nodes().filter(|node| node.role == Role::Manager).map(|node| node.id).collect();
        let places = |node: &NodeId| self.machines.iter().position(|machine| machine.node == Some(*node));
        let managers: Vec<M> = managers.iter().filter_map(places).collect();
        let mut ended = Vec::new();
        for (node, served) in &mut sessions {
            match state.node(*node) {
                None => {
                    self.send_down(served.stream, Down::Removed);
                    ended.push(*node);
                    continue;
                }
                Some(known) if known.session > served.epoch => {
                    self.hang_up(served.stream);
                    ended.push(*node);
                    continue;
                }
                Some(_) => {}
            }
            let list = (managers.clone(), Some(m));
            if served.listed.as_ref() != Some(&list) {
                self.send_down(served.stream, Down::Managers(list.0.clone(), list.1));
                served.listed = Some(list);
            }
            let table = endpoints::of(&state, *node);
            if served.known.as_ref() != Some(&table) {
                self.send_down(served.stream, Down::Table(Box::new(table.clone())));
                served.known = Some(table);
            }
            let hold = assignment::of(&state, *node);
            match &served.held {
                None => self.send_down(served.stream, Down::Full(Box::new(hold.clone()))),
                Some(before) => {
                    let news = hold.since(before);
                    if !news.is_empty() {
                        self.send_down(served.stream, Down::Difference(Box::new(news)));
                    }
                }
            }
            if self.options.planted == Some(Planted::StaleAssignment) {
                self.repeat_old(served, &hold);
            }
            served.held = Some(hold);
        }
        for node in ended {
            sessions.remove(&node);
        }
        if let Some(office) = self.office(m, term) {
            office.sessions = sessions;
        }
    }

    /// Sends an assignment of long ago once more, then the present one.
    fn repeat_old(&mut self, served: &mut Served, hold: &Assignment) {
        let wanted = |old: &Assignment| {
            old.tasks
                .iter()
                .any(|(id, task)| task.is_wanted() && !task.started && !hold.tasks.contains_key(id))
        };
        match &served.old {
            Some(old) if wanted(old) => {
                self.send_down(served.stream, Down::Full(Box::new(old.clone())));
                self.note(|| "an old assignment is sent once more".into());
                served.old = None;
                // The present one follows much later.
                served.held = None;
            }
            Some(_) => {}
            None => {
                served.old = hold.tasks.values().any(|t| t.is_wanted() && !t.started).then(|| hold.clone())
            }
        }
    }
}

fn is_news(state: &State, report: &Report) -> bool {
    state.task(report.task).is_some_and(|task| report.is_news(task))
}

/// The state as a leader sees it that allows each update one failure more than was asked for.
fn one_failure_more(state: &State) -> State {
    let moves = |service: &rswarm_control::model::Service| {
        service.update_status.as_ref().is_some_and(|status| status.state.is_moving())
    };
    if !state.services().any(|service| moves(service)) {
        return state.clone();
    }
    let mut snapshot = state.snapshot();
    for service in &mut snapshot.services {
        let service = Arc::make_mut(service);
        let slots: std::collections::BTreeSet<_> = state.tasks_of(service.id).map(|task| task.slot).collect();
        let one = u16::try_from(1000usize.div_ceil(slots.len().max(1))).unwrap_or(1000);
        service.spec.update.max_failure_permille += one;
        service.spec.rollback.max_failure_permille += one;
    }
    State::restore(snapshot)
}
