//! The node's end of its session with the leader: says it is alive, says what became of its tasks, and hears
//! what it should hold and know. Looks for the leader again whenever the session ends.

use super::Heard;
use crate::identity::ManagerAddr;
use crate::rpc::dial::{Dialer, Line};
use anyhow::{Context, Result, bail};
use rswarm_control::ids::TaskId;
use rswarm_control::time::Timestamp;
use rswarm_proto::v1 as pb;
use rswarm_proto::v1::dispatcher_client::DispatcherClient;
use rswarm_proto::v1::from_node::What as Up;
use rswarm_proto::v1::to_node::What as Down;
use rswarm_raft::Incarnation;
use rswarm_shim::protocol::boot_ms;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::{Notify, mpsc, watch};
use tokio::time::MissedTickBehavior;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;

/// After so long without a word the node says that it is alive.
const HEARTBEAT: Duration = Duration::from_millis(250);
/// Whatever else it says, it asks for an answer once this time is over.
const UNANSWERED: Duration = Duration::from_millis(500);
/// Heartbeats that are remembered until a leader confirms them: some seconds' worth.
const UNCONFIRMED_MAX: usize = 64;
/// A leader that has not answered for so long is looked for again.
const SILENCE: Duration = Duration::from_millis(1500);
/// How long opening a session may take: at first, and after some managers have not answered.
const OPEN: std::ops::Range<Duration> = Duration::from_millis(500)..Duration::from_millis(2000);
/// One that has failed is not turned to for so long, if there are others: as long as these may believe in it.
const AVOID: Duration = Duration::from_millis(1500);
/// Between attempts, doubling.
const BACKOFF: std::ops::Range<Duration> = Duration::from_millis(50)..Duration::from_millis(1000);

/// What the node has to say of its tasks: the latest of each, until it is forgotten.
#[derive(Clone, Default)]
pub struct Outbox {
    reports: Arc<Mutex<Reports>>,
    news: Arc<Notify>,
}

#[derive(Default)]
struct Reports {
    latest: BTreeMap<TaskId, pb::TaskReport>,
    unsent: BTreeSet<TaskId>,
    /// The generation of the table that came into force, until it is said.
    taken: Option<u64>,
    /// That of the table that news did not follow, until it is said.
    missed: Option<u64>,
}

impl Outbox {
    /// Says something of a task.
    pub fn put(&self, task: TaskId, report: pb::TaskReport) {
        let mut reports = self.reports.lock().unwrap_or_else(PoisonError::into_inner);
        if reports.latest.get(&task) == Some(&report) {
            return;
        }
        reports.unsent.insert(task);
        reports.latest.insert(task, report);
        drop(reports);
        self.news.notify_one();
    }

    /// Has nothing more to say of tasks that the managers have forgotten.
    pub fn keep(&self, known: impl Fn(&TaskId) -> bool) {
        let mut reports = self.reports.lock().unwrap_or_else(PoisonError::into_inner);
        reports.latest.retain(|task, _| known(task));
        reports.unsent.retain(|task| known(task));
    }

    /// A table has come into force.
    pub fn taken(&self, generation: u64) {
        self.reports.lock().unwrap_or_else(PoisonError::into_inner).taken = Some(generation);
        self.news.notify_one();
    }

    /// News did not follow the table that is had.
    pub fn missed(&self, generation: u64) {
        self.reports.lock().unwrap_or_else(PoisonError::into_inner).missed = Some(generation);
        self.news.notify_one();
    }

    fn everything_is_news(&self) {
        let mut reports = self.reports.lock().unwrap_or_else(PoisonError::into_inner);
        reports.unsent = reports.latest.keys().copied().collect();
        drop(reports);
        self.news.notify_one();
    }

    pub(super) fn take(&self) -> Vec<Up> {
        let mut reports = self.reports.lock().unwrap_or_else(PoisonError::into_inner);
        let unsent = std::mem::take(&mut reports.unsent);
        let said: Vec<_> = unsent.iter().filter_map(|task| reports.latest.get(task).cloned()).collect();
        let said = (!said.is_empty()).then_some(Up::Reports(pb::TaskReports { reports: said }));
        let taken = reports.taken.take().map(Up::Taken);
        said.into_iter().chain(taken).chain(reports.missed.take().map(Up::Missed)).collect()
    }
}

/// Where the managers are, as last heard.
pub struct Managers {
    /// All of them.
    pub known: Vec<ManagerAddr>,
    /// The node id of the one that leads, if it was said.
    pub leader: Option<String>,
    /// Since when those that were asked have not answered; `None` for one that did, last time.
    pub missing: BTreeMap<String, Option<Instant>>,
}

impl Managers {
    /// Whom to turn to: the leader if it is known, else one after the other with each `turn`. One that has just
    /// `failed` comes last, also if it is said to lead: who says so may not have noticed yet.
    fn choose(&self, turn: usize, failed: Option<&str>) -> Option<&ManagerAddr> {
        let has_failed = |manager: &&ManagerAddr| Some(manager.node.as_str()) == failed;
        let leads = |manager: &&ManagerAddr| Some(&manager.node) == self.leader.as_ref();
        if let Some(leader) = self.known.iter().find(|manager| leads(manager) && !has_failed(manager)) {
            return Some(leader);
        }
        // All of them in turn, whoever is left out: each comes up, whatever the order of failures.
        let count = self.known.len();
        let in_turn = || (0..count).filter_map(|next| self.known.get(turn.wrapping_add(next) % count));
        in_turn().find(|manager| !has_failed(manager)).or_else(|| in_turn().next())
    }
}

/// What a session needs.
pub struct Session {
    /// Makes the connections.
    pub dialer: Arc<Dialer>,
    /// What there is to say.
    pub outbox: Outbox,
    /// Takes what is heard.
    pub heard: mpsc::Sender<Heard>,
    /// Where to look for the leader.
    pub managers: Arc<Mutex<Managers>>,
    /// This machine's name and means.
    pub hello: Box<dyn Fn() -> pb::Hello + Send + Sync>,
    /// When the leader was last heard.
    pub contact: watch::Sender<Option<Instant>>,
    /// What this node is in the Raft group's eyes, and has taken part in.
    pub standing: watch::Receiver<Standing>,
    /// Told when the leader is to be looked for elsewhere.
    pub elsewhere: Arc<Notify>,
}

/// What a node says of itself so that it is not taken for what it no longer is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Standing {
    /// The incarnation of the cluster that it last took part in.
    pub incarnation: Incarnation,
    /// Its seat in the Raft group; 0 for none.
    pub seat: u64,
    /// The log of that seat is gone or damaged.
    pub lost: bool,
}

impl Session {
    /// Holds a session until `stop`, with one leader after the other.
    pub async fn keep(mut self, stop: CancellationToken) {
        let mut turn = 0usize;
        let mut failed: Option<(String, Instant)> = None;
        let mut patience = OPEN.start;
        let mut backoff = BACKOFF.start;
        while !stop.is_cancelled() {
            turn = turn.wrapping_add(1);
            failed = failed.filter(|(_, at)| at.elapsed() < AVOID);
            let avoided = failed.as_ref().map(|(node, _)| node.as_str());
            let Some(manager) = self.managers().choose(turn, avoided).cloned() else {
                tracing::error!("no manager is known: this node needs to leave and join again");
                tokio::select! {
                    () = stop.cancelled() => return,
                    () = tokio::time::sleep(BACKOFF.end) => continue,
                }
            };
            let began = Instant::now();
            let ended = tokio::select! {
                () = stop.cancelled() => return,
                () = self.elsewhere.notified() => {
                    (patience, backoff) = (OPEN.start, BACKOFF.start);
                    continue;
                }
                ended = self.hold(&manager, patience) => ended,
            };
            self.note_answer(&manager.node, ended.is_ok());
            let held = began.elapsed() > SILENCE;
            match ended {
                Ok(Ended::Final) => return,
                Ok(Ended::UntilNews) => tokio::select! {
                    () = stop.cancelled() => return,
                    () = self.elsewhere.notified() => {}
                    changed = self.standing.changed() => if changed.is_err() { return },
                },
                Ok(Ended::AskAnother) => tracing::debug!(manager = %manager.addr, "does not lead"),
                Err(error) => {
                    tracing::info!(manager = %manager.addr, error = format!("{error:#}"), "session ended");
                    self.forget_leader(&manager.node);
                    failed = Some((manager.node, Instant::now()));
                    patience = (patience * 2).min(OPEN.end);
                }
            }
            if held {
                (patience, backoff) = (OPEN.start, BACKOFF.start);
            }
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(backoff) => {}
            }
            backoff = (backoff * 2).min(BACKOFF.end);
            if self.managers().leader.is_some() {
                backoff = BACKOFF.start;
            }
        }
    }

    fn managers(&self) -> MutexGuard<'_, Managers> {
        self.managers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn forget_leader(&self, node: &str) {
        let mut managers = self.managers();
        if managers.leader.as_deref() == Some(node) {
            managers.leader = None;
        }
    }

    fn note_answer(&self, node: &str, answered: bool) {
        let mut managers = self.managers();
        let missing = managers.missing.entry(node.to_owned()).or_default();
        *missing = if answered { None } else { missing.or_else(|| Some(Instant::now())) };
    }

    async fn hold(&self, manager: &ManagerAddr, patience: Duration) -> Result<Ended> {
        let channel = self.dialer.channel(&manager.node, &manager.addr, Line::Calls)?;
        let (up, messages) = mpsc::channel(64);
        let mut standing = self.standing.clone();
        let hello = self.introduction(*standing.borrow_and_update());
        up.send(pb::FromNode { what: Some(hello) }).await.context("a new channel is open")?;
        let mut client = DispatcherClient::new(channel).max_decoding_message_size(64 << 20);
        let opened = tokio::time::timeout(patience, client.session(ReceiverStream::new(messages)));
        let mut down = opened.await.context("the manager does not answer")??.into_inner();

        self.outbox.everything_is_news();
        let mut beat = tokio::time::interval(HEARTBEAT);
        beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut sequence = 0;
        // When heartbeats were sent that no leader has confirmed yet.
        let mut unconfirmed: VecDeque<(u64, Timestamp)> = VecDeque::new();
        let (mut last, mut beaten) = (Instant::now(), Instant::now());
        loop {
            // What came in first: what is said of it, and of what came with it, goes out together.
            tokio::select! {
                biased;
                _ = beat.tick() => {
                    if last.elapsed() > SILENCE {
                        bail!("the leader has not answered for {} ms", last.elapsed().as_millis());
                    }
                    sequence += 1;
                    unconfirmed.push_back((sequence, Timestamp(boot_ms())));
                    if unconfirmed.len() > UNCONFIRMED_MAX {
                        unconfirmed.pop_front();
                    }
                    beaten = Instant::now();
                    let heartbeat = Up::Heartbeat(pb::Heartbeat { sequence });
                    up.try_send(pb::FromNode { what: Some(heartbeat) }).context("the connection is stuck")?;
                }
                Ok(()) = standing.changed() => {
                    let hello = self.introduction(*standing.borrow_and_update());
                    up.send(pb::FromNode { what: Some(hello) }).await.context("the leader hung up")?;
                }
                message = down.message() => {
                    last = Instant::now();
                    let Some(message) = message.context("the connection broke")? else {
                        bail!("the leader hung up");
                    };
                    match message.what {
                        Some(Down::Refusal(refusal)) => return self.refused(refusal).await,
                        Some(Down::Heartbeat(reply)) => {
                            self.contact.send_replace(Some(last));
                            let sent = unconfirmed.iter().take_while(|(number, _)| *number <= reply.confirmed);
                            if let Some((_, said)) = sent.last().copied() {
                                unconfirmed.retain(|(number, _)| *number > reply.confirmed);
                                self.heard.send(Heard::Confirmed(said)).await.context("the agent has stopped")?;
                            }
                        }
                        Some(what) => {
                            // Also one that does not lead says where the managers are; the leader says more.
                            if !matches!(what, Down::Managers(_)) {
                                self.contact.send_replace(Some(last));
                            }
                            self.take(what).await?;
                        }
                        None => {}
                    }
                }
                () = self.outbox.news.notified() => {
                    for what in self.outbox.take() {
                        up.send(pb::FromNode { what: Some(what) }).await.context("the leader hung up")?;
                        if beaten.elapsed() < UNANSWERED {
                            beat.reset();
                        }
                    }
                }
            }
        }
    }

    fn introduction(&self, standing: Standing) -> Up {
        let Standing { incarnation, seat, lost } = standing;
        let hello = (self.hello)();
        Up::Hello(pb::Hello {
            incarnation: incarnation.0,
            seat,
            seat_lost: lost,
            follows_news: true,
            ..hello
        })
    }

    async fn take(&self, what: Down) -> Result<()> {
        let heard = match what {
            Down::Assignment(assignment) => Heard::Assignment(assignment),
            Down::Difference(difference) => Heard::Difference(difference),
            Down::Table(table) => Heard::Table(table),
            Down::News(news) => Heard::News(news),
            Down::Managers(list) => {
                let (its, ours) = (Incarnation(list.incarnation), self.standing.borrow().incarnation);
                if its.precedes(ours) {
                    bail!("the manager is of incarnation {its} of the cluster, which goes on as {ours}");
                }
                let known: Vec<ManagerAddr> = list
                    .managers
                    .iter()
                    .map(|manager| ManagerAddr {
                        node: manager.node_id.clone(),
                        addr: manager.addr.clone(),
                        raft_id: manager.raft_id,
                    })
                    .collect();
                let mut managers = self.managers();
                managers.leader = Some(list.leader_id.clone()).filter(|leader| !leader.is_empty());
                if !known.is_empty() {
                    managers.known = known;
                }
                drop(managers);
                Heard::Managers(list)
            }
            Down::Heartbeat(_) | Down::Refusal(_) => return Ok(()),
        };
        self.heard.send(heard).await.context("the agent has stopped")
    }

    async fn refused(&self, refusal: pb::Refusal) -> Result<Ended> {
        use pb::refusal::Reason;
        match refusal.reason() {
            Reason::NotLeader | Reason::Unspecified => Ok(Ended::AskAnother),
            Reason::Outdated => {
                let by = Incarnation(refusal.incarnation);
                tracing::error!(incarnation = %by, "the cluster was started anew without this manager");
                let _ = self.heard.send(Heard::Outdated(by)).await;
                Ok(Ended::UntilNews)
            }
            reason @ (Reason::Removed | Reason::Superseded) => {
                tracing::error!(why = %refusal.words, "the cluster has refused this node");
                let removed = reason == Reason::Removed;
                let _ = self.heard.send(Heard::Refused { removed, words: refusal.words }).await;
                Ok(Ended::Final)
            }
        }
    }
}

enum Ended {
    AskAnother,
    /// This node is refused as what it is now.
    UntilNews,
    Final,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn managers(leader: Option<&str>) -> Managers {
        let known = ["a", "b", "c"].map(|node| ManagerAddr {
            node: node.into(),
            addr: format!("{node}:2377"),
            raft_id: 1,
        });
        Managers { known: known.into(), leader: leader.map(str::to_owned), missing: BTreeMap::new() }
    }

    fn chosen(managers: &Managers, failed: Option<&str>) -> Vec<String> {
        (0..4).filter_map(|turn| managers.choose(turn, failed)).map(|manager| manager.node.clone()).collect()
    }

    #[test]
    fn the_leader_is_asked_and_without_one_all_in_turn() {
        assert_eq!(chosen(&managers(Some("b")), None), ["b", "b", "b", "b"]);
        assert_eq!(chosen(&managers(Some("b")), Some("a")), ["b", "b", "b", "b"]);
        assert_eq!(chosen(&managers(None), None), ["a", "b", "c", "a"]);
        assert_eq!(chosen(&managers(Some("gone")), None), ["a", "b", "c", "a"]);
    }

    #[test]
    fn one_that_has_just_failed_is_left_out_even_if_it_is_said_to_lead() {
        assert_eq!(chosen(&managers(Some("a")), Some("a")), ["b", "b", "c", "b"]);
        assert_eq!(chosen(&managers(None), Some("b")), ["a", "c", "c", "a"]);
        let mut alone = managers(None);
        alone.known.truncate(1);
        assert_eq!(chosen(&alone, Some("a")), ["a", "a", "a", "a"]);
        alone.known.clear();
        assert!(chosen(&alone, None).is_empty());
    }

    #[test]
    fn the_only_one_that_answers_is_found_whichever_failed_before_it() {
        let managers = managers(None);
        for (begin, alive) in (0..3).flat_map(|begin| ["a", "b", "c"].map(|alive| (begin, alive))) {
            let mut failed = None;
            let asked = (begin..begin + 3).map(|turn| {
                failed = managers.choose(turn, failed.as_deref()).map(|manager| manager.node.clone());
                failed.clone().unwrap_or_default()
            });
            assert!(asked.collect::<Vec<_>>().contains(&alive.to_owned()), "{alive} from turn {begin}");
        }
    }
}
