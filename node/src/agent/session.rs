//! The node's end of its session with the leader: says it is alive, says what became of its tasks, and hears
//! what it should hold and know. Looks for the leader again whenever the session ends.

use super::Heard;
use crate::identity::ManagerAddr;
use crate::rpc::dial::{Dialer, Line};
use anyhow::{Context, Result, bail};
use rswarm_control::ids::TaskId;
use rswarm_proto::v1 as pb;
use rswarm_proto::v1::dispatcher_client::DispatcherClient;
use rswarm_proto::v1::from_node::What as Up;
use rswarm_proto::v1::to_node::What as Down;
use rswarm_raft::Incarnation;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::{Notify, mpsc, watch};
use tokio::time::MissedTickBehavior;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;

/// How often the node says that it is alive.
const HEARTBEAT: Duration = Duration::from_millis(250);
/// A leader that has not answered for so long is looked for again.
const SILENCE: Duration = Duration::from_millis(1500);
/// How long opening a session may take.
const OPEN: Duration = Duration::from_millis(1500);
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

    fn everything_is_news(&self) {
        let mut reports = self.reports.lock().unwrap_or_else(PoisonError::into_inner);
        reports.unsent = reports.latest.keys().copied().collect();
        drop(reports);
        self.news.notify_one();
    }

    fn take(&self) -> Vec<Up> {
        let mut reports = self.reports.lock().unwrap_or_else(PoisonError::into_inner);
        let unsent = std::mem::take(&mut reports.unsent);
        let said: Vec<_> = unsent.iter().filter_map(|task| reports.latest.get(task).cloned()).collect();
        let said = (!said.is_empty()).then_some(Up::Reports(pb::TaskReports { reports: said }));
        said.into_iter().chain(reports.taken.take().map(Up::Taken)).collect()
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
        let mut backoff = BACKOFF.start;
        while !stop.is_cancelled() {
            let Some(manager) = self.next(&mut turn) else {
                tracing::error!("no manager is known: this node needs to leave and join again");
                tokio::select! {
                    () = stop.cancelled() => return,
                    () = tokio::time::sleep(BACKOFF.end) => continue,
                }
            };
            let began = Instant::now();
            let ended = tokio::select! {
                () = stop.cancelled() => return,
                ended = self.hold(&manager) => ended,
            };
            self.note_answer(&manager.node, ended.is_ok());
            match ended {
                Ok(Ended::Final) => return,
                Ok(Ended::UntilNews) => tokio::select! {
                    () = stop.cancelled() => return,
                    changed = self.standing.changed() => if changed.is_err() { return },
                },
                Ok(Ended::AskAnother) => tracing::debug!(manager = %manager.addr, "does not lead"),
                Err(error) => {
                    tracing::info!(manager = %manager.addr, error = format!("{error:#}"), "session ended");
                    self.forget_leader(&manager.node);
                }
            }
            if began.elapsed() > SILENCE {
                backoff = BACKOFF.start;
            }
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(backoff) => {}
            }
            backoff = (backoff * 2).min(BACKOFF.end);
            if self.managers.lock().unwrap_or_else(PoisonError::into_inner).leader.is_some() {
                backoff = BACKOFF.start;
            }
        }
    }

    /// The leader, if it is known, else one manager after the other.
    fn next(&self, turn: &mut usize) -> Option<ManagerAddr> {
        let managers = self.managers.lock().unwrap_or_else(PoisonError::into_inner);
        let leader = managers.known.iter().find(|manager| Some(&manager.node) == managers.leader.as_ref());
        if let Some(leader) = leader {
            return Some(leader.clone());
        }
        *turn = turn.wrapping_add(1);
        managers.known.get(*turn % managers.known.len().max(1)).cloned()
    }

    fn forget_leader(&self, node: &str) {
        let mut managers = self.managers.lock().unwrap_or_else(PoisonError::into_inner);
        if managers.leader.as_deref() == Some(node) {
            managers.leader = None;
        }
    }

    fn note_answer(&self, node: &str, answered: bool) {
        let mut managers = self.managers.lock().unwrap_or_else(PoisonError::into_inner);
        let missing = managers.missing.entry(node.to_owned()).or_default();
        *missing = if answered { None } else { missing.or_else(|| Some(Instant::now())) };
    }

    async fn hold(&self, manager: &ManagerAddr) -> Result<Ended> {
        let channel = self.dialer.channel(&manager.node, &manager.addr, Line::Calls)?;
        let (up, messages) = mpsc::channel(64);
        let mut standing = self.standing.clone();
        let hello = self.introduction(*standing.borrow_and_update());
        up.send(pb::FromNode { what: Some(hello) }).await.context("a new channel is open")?;
        let mut client = DispatcherClient::new(channel).max_decoding_message_size(64 << 20);
        let opened = tokio::time::timeout(OPEN, client.session(ReceiverStream::new(messages)));
        let mut down = opened.await.context("the manager does not answer")??.into_inner();

        self.outbox.everything_is_news();
        let mut beat = tokio::time::interval(HEARTBEAT);
        beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut sequence = 0;
        let mut last = Instant::now();
        loop {
            tokio::select! {
                _ = beat.tick() => {
                    if last.elapsed() > SILENCE {
                        bail!("the leader has not answered for {} ms", last.elapsed().as_millis());
                    }
                    sequence += 1;
                    let heartbeat = Up::Heartbeat(pb::Heartbeat { sequence });
                    up.try_send(pb::FromNode { what: Some(heartbeat) }).context("the connection is stuck")?;
                }
                Ok(()) = standing.changed() => {
                    let hello = self.introduction(*standing.borrow_and_update());
                    up.send(pb::FromNode { what: Some(hello) }).await.context("the leader hung up")?;
                }
                () = self.outbox.news.notified() => {
                    for what in self.outbox.take() {
                        up.send(pb::FromNode { what: Some(what) }).await.context("the leader hung up")?;
                    }
                }
                message = down.message() => {
                    last = Instant::now();
                    let Some(message) = message.context("the connection broke")? else {
                        bail!("the leader hung up");
                    };
                    match message.what {
                        Some(Down::Refusal(refusal)) => return self.refused(refusal).await,
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
            }
        }
    }

    fn introduction(&self, standing: Standing) -> Up {
        let Standing { incarnation, seat, lost } = standing;
        Up::Hello(pb::Hello { incarnation: incarnation.0, seat, seat_lost: lost, ..(self.hello)() })
    }

    async fn take(&self, what: Down) -> Result<()> {
        let heard = match what {
            Down::Assignment(assignment) => Heard::Assignment(assignment),
            Down::Difference(difference) => Heard::Difference(difference),
            Down::Table(table) => Heard::Table(table),
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
                let mut managers = self.managers.lock().unwrap_or_else(PoisonError::into_inner);
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
