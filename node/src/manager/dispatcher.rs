//! The leader's end of the nodes' sessions: what a node should hold and know goes down, what it sees comes up.

use super::cluster::{Cluster, WriteError};
use super::roster::Roster;
use super::tables::{Edition, Latest};
use super::told::Told;
use super::{Manager, Office, clock};
use crate::member::believed;
use crate::rpc::access;
use bytes::Bytes;
use prost::Message;
use rswarm_control::admission::{self, Answer, Refused};
use rswarm_control::assignment::{self, AssignedTask, Assignment};
use rswarm_control::ids::{NodeId, RaftId};
use rswarm_control::model::Role;
use rswarm_control::state::{Change, Report, State};
use rswarm_proto::convert;
use rswarm_proto::v1 as pb;
use rswarm_proto::v1::to_node::What as Down;
use rswarm_raft::Incarnation;
use std::collections::{BTreeMap, VecDeque};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::{Notify, mpsc, watch};
use tokio_stream::StreamExt;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};

/// How long reports gather before they are proposed.
const GATHER: Duration = Duration::from_millis(20);
/// How many reports one proposal carries.
const BATCH: usize = 2_000;
/// Heartbeats of a session that are remembered until they are confirmed: some seconds' worth.
const BEATS_MAX: usize = 64;
/// What is said of a table and has more bytes than this is large: few are on their way at once, each until the node
/// has it in force, so that a leader that tells a thousand nodes everything needs no memory for all of that.
const LARGE: usize = 256 << 10;
/// How long others wait for a node that does not answer.
const LARGE_PATIENCE: Duration = Duration::from_millis(250);
/// Reports that one message may hold.
const REPORTS_MAX: usize = 10_000;

/// Reports that wait to be proposed: of each task the latest.
#[derive(Clone)]
pub struct Reports {
    waiting: Arc<Mutex<BTreeMap<(rswarm_control::ids::TaskId, NodeId), Report>>>,
    arrived: Arc<Notify>,
}

impl Reports {
    /// None yet.
    pub fn new() -> Self {
        Self { waiting: Arc::default(), arrived: Arc::new(Notify::new()) }
    }

    fn add(&self, reports: impl IntoIterator<Item = Report>) {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        for report in reports {
            let key = (report.task, report.node);
            // Of a task's reports the later one counts; observed states only move forward.
            match waiting.get(&key) {
                Some(known) if known.observed > report.observed => {}
                _ => {
                    waiting.insert(key, report);
                }
            }
        }
        drop(waiting);
        self.arrived.notify_one();
    }

    /// Has those proposed again that were not recorded. What came in meanwhile is newer.
    fn put_back(&self, reports: Vec<Report>) {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        for report in reports {
            match waiting.get(&(report.task, report.node)) {
                Some(newer) if newer.observed >= report.observed => {}
                _ => {
                    waiting.insert((report.task, report.node), report);
                }
            }
        }
        drop(waiting);
        self.arrived.notify_one();
    }

    fn take(&self) -> Vec<Report> {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        let keys: Vec<_> = waiting.keys().take(BATCH).copied().collect();
        keys.iter().filter_map(|key| waiting.remove(key)).collect()
    }
}

impl Default for Reports {
    fn default() -> Self {
        Self::new()
    }
}

/// Proposes what gathers, until the term of office ends.
pub async fn pump(cluster: Cluster, reports: Reports, stop: CancellationToken) {
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = reports.arrived.notified() => tokio::time::sleep(GATHER).await,
        }
        loop {
            let batch = reports.take();
            if batch.is_empty() {
                break;
            }
            // What the state already knows is not news, and does not belong in the log.
            let state = cluster.state();
            let batch: Vec<Report> = batch.into_iter().filter(|report| is_news(&state, report)).collect();
            if batch.is_empty() {
                continue;
            }
            let changes = batch.iter().cloned().map(Change::Report).collect();
            let now = clock::after(state.clock());
            let committed = tokio::select! {
                () = stop.cancelled() => return,
                committed = cluster.commit(changes, now) => committed,
            };
            if let Err(error) = committed {
                tracing::warn!(%error, "cannot record what nodes report, trying again");
                reports.put_back(batch);
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

fn is_news(state: &State, report: &Report) -> bool {
    state.task(report.task).is_some_and(|task| report.is_news(task))
}

/// The service `Dispatcher`.
pub struct Dispatcher {
    manager: Arc<dyn Fn() -> Option<Arc<Manager>> + Send + Sync>,
}

impl Dispatcher {
    /// `manager` says which manager runs here now, if any.
    pub fn new(manager: Arc<dyn Fn() -> Option<Arc<Manager>> + Send + Sync>) -> Self {
        Self { manager }
    }
}

type Stream = Pin<Box<dyn tokio_stream::Stream<Item = Result<pb::ToNode, Status>> + Send>>;

#[tonic::async_trait]
impl pb::dispatcher_server::Dispatcher for Dispatcher {
    type SessionStream = Stream;

    async fn session(&self, request: Request<Streaming<pb::FromNode>>) -> Result<Response<Stream>, Status> {
        let node = access::node(&request)?;
        let manager = (self.manager)().ok_or_else(|| Status::unavailable("this node is not a manager"))?;
        let mut incoming = request.into_inner();
        let Some(office) = manager.office().filter(|_| reaches_quorum(&manager)) else {
            let state = manager.cluster().state();
            let known = state.node(node);
            return Ok(once(vec![
                // What this node should be is for the leader to say.
                Down::Managers(pb::ManagerList {
                    role: pb::Role::Unspecified.into(),
                    ..Roster::of(manager.cluster()).told_to(&node.to_string(), known.map(AsRef::as_ref))
                }),
                refusal(pb::refusal::Reason::NotLeader, "this manager does not lead"),
            ]));
        };
        let hello = match incoming.message().await? {
            Some(pb::FromNode { what: Some(pb::from_node::What::Hello(hello)) }) => hello,
            _ => return Err(Status::invalid_argument("a session begins with a hello")),
        };
        let (epoch, from) = match open(&manager, node, &hello).await? {
            Ok(opened) => opened,
            Err(words) => return Ok(once(vec![words])),
        };
        mind_seat(&manager, node, &hello).await?;
        office.ears.hear(node, clock::after(manager.cluster().state().clock()));
        tracing::info!(%node, hostname = %hello.hostname, "session opened");

        let (sender, receiver) = mpsc::channel(16);
        let session = Session {
            node,
            name: node.to_string(),
            epoch,
            from,
            follows_news: hello.follows_news,
            missed: AtomicBool::new(false),
            taken: watch::channel(0).0,
            manager,
            office,
            sender,
        };
        tokio::spawn(session.run(incoming));
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }

    async fn goodbye(
        &self,
        request: Request<pb::GoodbyeRequest>,
    ) -> Result<Response<pb::GoodbyeResponse>, Status> {
        let node = access::node(&request)?;
        let manager = (self.manager)().ok_or_else(|| Status::unavailable("this node is not a manager"))?;
        manager.cluster().admit(&admission::Request::Leave { node, force: false }).await?;
        Ok(Response::new(pb::GoodbyeResponse {}))
    }
}

/// Records the session and returns its number and that of the entry. The inner error is what the node is told instead of being served.
async fn open(
    manager: &Manager,
    node: NodeId,
    hello: &pb::Hello,
) -> Result<Result<(u64, u64), Down>, Status> {
    let description = hello.description.clone().unwrap_or_default();
    let description = description
        .try_into()
        .map_err(|error| Status::invalid_argument(format!("hello.description.{error}")))?;
    let state = manager.cluster().state();
    if state.removed_at(node).is_none()
        && let Some(refusal) = outdated(manager.cluster().log().status().incarnation, hello)?
    {
        return Ok(Err(refusal));
    }
    let known = match state.node(node) {
        Some(known) => known,
        None if state.removed_at(node).is_some() => {
            return Ok(Err(refusal(pb::refusal::Reason::Removed, "this node was removed from the cluster")));
        }
        // A leader that has been deposed and does not know it yet may simply not have heard of the node.
        None => return Err(Status::unavailable("this manager does not know the node yet")),
    };
    let session =
        admission::Session { node, hostname: hello.hostname.clone(), addr: known.addr.clone(), description };
    match manager.cluster().admit(&admission::Request::OpenSession(session)).await {
        Ok((Answer::Session { epoch }, index)) => Ok(Ok((epoch, index))),
        Ok(_) => Err(Status::internal("a session was asked for, and something else was answered")),
        Err(WriteError::Refused(Refused::Denied(words)))
            if manager.cluster().state().removed_at(node).is_some() =>
        {
            Ok(Err(refusal(pb::refusal::Reason::Removed, &words)))
        }
        Err(error) => Err(error.into()),
    }
}

/// What a manager of an earlier life of the cluster is told; workers simply follow. The error is for nodes that know
/// of a later life than this one.
fn outdated(now: Incarnation, hello: &pb::Hello) -> Result<Option<Down>, Status> {
    let its = Incarnation(hello.incarnation.max(Incarnation::FIRST.0));
    if now.precedes(its) {
        return Err(Status::failed_precondition(format!(
            "this manager is of incarnation {now} of the cluster, the node has taken part in {its}"
        )));
    }
    let rival = its != now && !its.precedes(now);
    if rival {
        return Err(Status::failed_precondition(format!(
            "two clusters were forced from the same one, both as incarnation {now}, and the node is of the other: \
             give one of them up, and let its nodes leave and join this one"
        )));
    }
    let outdated = its.precedes(now) && hello.seat != 0;
    Ok(outdated.then(|| {
        Down::Refusal(pb::Refusal {
            reason: pb::refusal::Reason::Outdated.into(),
            words: String::new(),
            incarnation: now.0,
        })
    }))
}

/// Gives a manager another seat if it has none, or says that it has lost the log of the one it has.
async fn mind_seat(manager: &Manager, node: NodeId, hello: &pb::Hello) -> Result<(), Status> {
    let said = (hello.seat != 0).then_some(RaftId(hello.seat));
    let state = manager.cluster().state();
    let Some(known) = state.node(node) else { return Ok(()) };
    let without = known.raft.is_none() && said.is_none();
    let lost = hello.seat_lost && known.raft == said;
    if known.role == Role::Manager && (without || lost) {
        tracing::warn!(%node, hostname = %known.hostname, "a manager without its log gets another seat");
        manager.cluster().admit(&admission::Request::Reseat { node, lost: said }).await?;
    }
    Ok(())
}

/// What a node is to hold, and how it is told.
struct Hold {
    assignment: Assignment,
    message: Option<Down>,
    /// Whether a task is asked to end by that.
    ends: bool,
}

impl Hold {
    fn of(state: &State, node: NodeId, told: Option<&Assignment>) -> Self {
        let (assignment, generation) = (assignment::of(state, node), state.index());
        let is_to_end = AssignedTask::is_to_end;
        let Some(told) = told else {
            let message = Down::Assignment(pb::Assignment { generation, ..(&assignment).into() });
            let ends = assignment.tasks.values().any(is_to_end);
            return Self { assignment, message: Some(message), ends };
        };
        let news = assignment.since(told);
        let message = || Down::Difference(pb::AssignmentDifference { generation, ..(&news).into() });
        let message = (!news.is_empty()).then(message);
        Self { assignment, message, ends: news.tasks.iter().any(is_to_end) }
    }
}

fn is_large(table: &Down) -> bool {
    match table {
        Down::News(news) => news.parts.iter().map(Bytes::len).sum::<usize>() > LARGE,
        Down::Table(table) => table.encoded_len() > LARGE,
        _ => false,
    }
}

/// Whether a leader may still be one. A node that holds on to one without a quorum would not look for its successor, nor
/// tell its users what is wrong.
fn reaches_quorum(manager: &Manager) -> bool {
    believed(&manager.cluster().log().status()).is_some()
}

fn refusal(reason: pb::refusal::Reason, words: &str) -> Down {
    Down::Refusal(pb::Refusal { reason: reason.into(), words: words.to_owned(), incarnation: 0 })
}

fn once(messages: Vec<Down>) -> Response<Stream> {
    let messages = messages.into_iter().map(|what| Ok(pb::ToNode { what: Some(what) }));
    Response::new(Box::pin(tokio_stream::iter(messages.collect::<Vec<_>>())))
}

struct Session {
    node: NodeId,
    name: String,
    epoch: u64,
    /// The entry that recorded it.
    from: u64,
    /// Whether the node is told news of its table, or whole ones.
    follows_news: bool,
    /// The node has lost track of the news.
    missed: AtomicBool,
    /// The generation of the table that the node has in force.
    taken: watch::Sender<u64>,
    manager: Arc<Manager>,
    office: Arc<Office>,
    sender: mpsc::Sender<Result<pb::ToNode, Status>>,
}

impl Session {
    async fn run(self, mut incoming: Streaming<pb::FromNode>) {
        let wake = self.office.routes.open(self.node, self.epoch);
        let why = tokio::select! {
            () = self.office.stop.cancelled() => "this manager no longer leads",
            () = self.push(&wake) => "the node does not take its messages",
            why = self.hear(&mut incoming, &wake) => why,
        };
        self.office.routes.close(self.node, self.epoch);
        tracing::info!(node = %self.node, why, "session closed");
    }

    /// Sends what the node should hold and know, at once and whenever it changes, which `wake` tells.
    async fn push(&self, wake: &Notify) {
        let tables = &self.office.tables;
        // A session is served when the edition knows of it.
        tables.want(self.from);
        let mut roster = self.office.roster.clone();
        let mut told = Told::default();
        loop {
            let list = roster.borrow_and_update().clone();
            let (latest, editions) = tables.since(told.edition);
            let (state, index) = (&latest.state, latest.state.index());
            if index >= self.from {
                match state.node(self.node) {
                    None => {
                        if state.removed_at(self.node).is_some() {
                            let words = "this node was removed from the cluster";
                            let _ = self.send(refusal(pb::refusal::Reason::Removed, words)).await;
                        }
                        return;
                    }
                    Some(node) if node.session > self.epoch => {
                        let words = "another daemon has this node's identity and is newer";
                        let _ = self.send(refusal(pb::refusal::Reason::Superseded, words)).await;
                        return;
                    }
                    // The leader took the session for dead while it was not: it is heard from, so say it again.
                    Some(node) => {
                        let list = list.told_to(&self.name, Some(node));
                        if told.managers.as_ref() != Some(&list) {
                            if self.send(Down::Managers(list.clone())).await.is_err() {
                                return;
                            }
                            told.managers = Some(list);
                        }
                    }
                }
                let missed = self.missed.swap(false, Ordering::Relaxed);
                let is_news = told.edition < latest.number;
                if (is_news || missed) && self.tell(&mut told, &latest, editions, missed).await.is_err() {
                    return;
                }
            }
            // Who waits does not hold on to a state of long ago.
            drop(latest);
            tokio::select! {
                () = wake.notified() => {}
                changed = roster.changed() => if changed.is_err() { return },
            }
        }
    }

    /// Sends the table, or what has changed of it, then the same of what the node should hold.
    async fn tell(
        &self,
        told: &mut Told,
        latest: &Latest,
        editions: Option<Vec<Arc<Edition>>>,
        missed: bool,
    ) -> Result<(), ()> {
        let (state, index) = (&latest.state, latest.state.index());
        let is_touched = told.held.is_none()
            || editions.as_ref().is_none_or(|all| all.iter().any(|edition| edition.touches(self.node)));
        let table = match self.follows_news {
            true => {
                let news = told.news(latest, editions.filter(|_| !missed), self.node).await;
                let news = news
                    .inspect_err(|error| tracing::error!(node = %self.node, %error, "cannot say its table"));
                news.map_err(drop)?.map(Down::News)
            }
            false => told.table(latest, self.node).map(Down::Table),
        };
        let hold = is_touched.then(|| Hold::of(state, self.node, told.held.as_ref()));

        self.send_table(table, index).await?;
        told.edition = latest.number;
        let Some(Hold { assignment, message, ends }) = hold else { return Ok(()) };
        if ends {
            // A task is asked to end when nobody sends it anything new.
            self.office.routes.settled(index).await;
        }
        told.held = Some(assignment);
        match message {
            Some(message) => self.send(message).await,
            None => Ok(()),
        }
    }

    async fn send_table(&self, table: Option<Down>, index: u64) -> Result<(), ()> {
        let is_news = table.is_some();
        let turn = match &table {
            Some(table) if is_large(table) => self.office.tables.turn().await,
            _ => None,
        };
        if let Some(table) = table {
            self.send(table).await?;
        }
        self.office.routes.seen(self.node, self.epoch, index, is_news);
        if let Some(turn) = turn {
            let mut taken = self.taken.subscribe();
            let _ = tokio::time::timeout(LARGE_PATIENCE, taken.wait_for(|taken| *taken >= index)).await;
            drop(turn);
        }
        Ok(())
    }

    async fn send(&self, what: Down) -> Result<(), ()> {
        self.sender.send(Ok(pb::ToNode { what: Some(what) })).await.map_err(|_| ())
    }

    async fn hear(&self, incoming: &mut Streaming<pb::FromNode>, wake: &Notify) -> &'static str {
        use pb::from_node::What as Up;
        // Heartbeats that were heard, and when.
        let mut beats: VecDeque<(u64, Instant)> = VecDeque::new();
        while let Some(message) = incoming.next().await {
            let Ok(message) = message else { return "the connection broke" };
            let heard_at = Instant::now();
            let state = self.manager.cluster().state();
            self.office.ears.hear(self.node, clock::after(state.clock()));
            let ready = rswarm_control::model::NodeStatus::Ready;
            if state.node(self.node).is_some_and(|node| node.status != ready) {
                self.office.ears.wake();
            }
            match message.what {
                Some(Up::Heartbeat(_)) if !reaches_quorum(&self.manager) => {
                    let words = "this manager reaches no quorum";
                    self.office.ears.sent_away();
                    let _ = self.send(refusal(pb::refusal::Reason::NotLeader, words)).await;
                    return words;
                }
                Some(Up::Heartbeat(heartbeat)) => {
                    beats.push_back((heartbeat.sequence, heard_at));
                    let led = self.office.leads.confirmed();
                    let known = |(_, heard): &&(u64, Instant)| led.is_some_and(|led| *heard <= led);
                    let confirmed = beats.iter().take_while(known).last().map_or(0, |(number, _)| *number);
                    beats.retain(|(number, _)| *number >= confirmed);
                    if beats.len() > BEATS_MAX {
                        beats.pop_front();
                    }
                    let reply = pb::HeartbeatReply { sequence: heartbeat.sequence, confirmed };
                    // A node that does not read its replies will find its session slow by itself.
                    let _ = self.sender.try_send(Ok(pb::ToNode { what: Some(Down::Heartbeat(reply)) }));
                }
                Some(Up::Reports(reports)) => {
                    if reports.reports.len() > REPORTS_MAX {
                        return "too many reports in one message";
                    }
                    let reports: Result<Vec<Report>, _> = reports
                        .reports
                        .into_iter()
                        .map(|report| convert::report(self.node, report))
                        .collect();
                    match reports {
                        Ok(reports) => self.office.reports.add(reports),
                        Err(error) => {
                            tracing::warn!(node = %self.node, %error, "a report cannot be read");
                            return "a report cannot be read";
                        }
                    }
                }
                Some(Up::Taken(generation)) => {
                    self.office.routes.taken(self.node, self.epoch, generation);
                    self.taken.send_replace(generation);
                }
                Some(Up::Missed(generation)) => {
                    tracing::warn!(node = %self.node, generation, "news did not follow its table; it is told the whole");
                    self.missed.store(true, Ordering::Relaxed);
                    wake.notify_one();
                }
                // Said again when something about its seat has changed.
                Some(Up::Hello(hello)) => {
                    if let Err(error) = mind_seat(&self.manager, self.node, &hello).await {
                        tracing::warn!(node = %self.node, %error, "cannot give the manager another seat");
                        return "it needs another seat";
                    }
                }
                None => {}
            }
        }
        "the node hung up"
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rswarm_control::ids::TaskId;
    use rswarm_control::model::{Health, Observed};

    #[test]
    fn what_could_not_be_recorded_does_not_replace_what_came_after_it() {
        let report = |number, health| Report {
            task: TaskId(number),
            node: NodeId(1),
            observed: Observed::Running,
            message: String::new(),
            error: String::new(),
            exit_code: None,
            pid: None,
            health,
            ready: None,
        };
        let reports = Reports::new();
        reports.add([report(1, Health::Healthy), report(2, Health::Healthy)]);
        let lost = reports.take();
        reports.add([report(1, Health::Unhealthy)]);
        reports.put_back(lost);
        assert_eq!(reports.take(), [report(1, Health::Unhealthy), report(2, Health::Healthy)]);
    }
}
