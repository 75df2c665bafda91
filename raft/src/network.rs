//! The way out: what openraft wants to say, put into frames and handed to a [`Transport`].
//!
//! Whatever goes wrong on the way is reported to openraft as unreachable, which makes it wait before the next
//! try. Every exchange has a bound on how long nothing may happen.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::future::BoxFuture;
use futures_util::stream::{BoxStream, Stream, StreamExt};
use openraft::OptionalSend;
use openraft::errors::{RPCError, ReplicationClosed, StreamingError};
use openraft::network::{
    Backoff, NetAppend, NetBackoff, NetSnapshot, NetStreamAppend, NetTransferLeader, NetVote, RPCOption,
    RaftNetworkFactory, stream_append_sequential,
};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, StreamAppendError, StreamAppendResult,
    TransferLeaderError, TransferLeaderRequest, TransferLeaderResponse, VoteRequest, VoteResponse,
};
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout};

use crate::disk::Disk;
use crate::format::LogIdPb;
use crate::leap::{self, Leap};
use crate::status::Heard;
use crate::storage::log::LogStore;
use crate::storage::simulated;
use crate::storage::snapshot::{CHUNK_BYTES, SnapshotFile, Snapshots};
use crate::types::{Contact, LogId, Types, Vote};
use crate::wire::{self, Body, Life, SnapshotBeginPb, SnapshotEndPb, TransferPb};
use crate::{Incarnation, Member, RaftId};

/// Frames on their way to a peer.
pub type Frames = Pin<Box<dyn Stream<Item = Bytes> + Send>>;
/// Frames that come back, until the connection breaks.
pub type Answers = Pin<Box<dyn Stream<Item = Result<Bytes, Unreachable>> + Send>>;

/// A peer could not be reached, or the exchange broke off.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{0}")]
pub struct Unreachable(
    /// What happened, in words.
    pub String,
);

impl Unreachable {
    /// From whatever the transport calls its error.
    pub fn new(reason: impl std::fmt::Display) -> Self {
        Self(reason.to_string())
    }
}

/// Moves frames (opaque bytes, at most [`crate::FRAME_BYTES_MAX`]) to other managers, and what they answer back.
///
/// A transport connects as needed, authenticates the peer as [`Member::node`], and hands what arrives to
/// [`crate::Log::handle_call`], [`crate::Log::handle_append`] and [`crate::Log::handle_snapshot`] there. Append
/// and snapshot streams should have connections of their own, so that neither holds up a call. Dropping a
/// future or an answer stream ends the exchange.
pub trait Transport: Send + Sync + 'static {
    /// One frame there, one back, within `deadline`.
    fn call<'a>(
        &'a self,
        to: &'a Member,
        frame: Bytes,
        deadline: Duration,
    ) -> BoxFuture<'a, Result<Bytes, Unreachable>>;

    /// Frames there and back, in order, until either side ends its stream. Must not wait for the first answer
    /// before it sends the second frame.
    fn append<'a>(&'a self, to: &'a Member, frames: Frames) -> BoxFuture<'a, Result<Answers, Unreachable>>;

    /// Many large frames there, one back.
    fn snapshot<'a>(&'a self, to: &'a Member, frames: Frames) -> BoxFuture<'a, Result<Bytes, Unreachable>>;
}

/// What every exchange with a peer needs.
pub(crate) struct Ties {
    pub(crate) me: RaftId,
    pub(crate) life: Life,
    #[cfg(feature = "sim")]
    pub(crate) flaws: crate::sim::Flaws,
    pub(crate) transport: Arc<dyn Transport>,
    /// How long an append stream may owe an answer.
    pub(crate) append_patience: Duration,
    /// How long a snapshot may make no progress, its installation included.
    pub(crate) snapshot_patience: Duration,
    pub(crate) snapshots: Snapshots,
    pub(crate) log: LogStore,
    /// How many snapshots were begun to be sent.
    pub(crate) snapshots_sent: AtomicU64,
    /// The index of a committed membership, heard from a peer, that leaves us out.
    pub(crate) removed_by: AtomicU64,
    pub(crate) heard: Heard,
    /// When each peer last said something that was meant for us.
    pub(crate) seen: Mutex<BTreeMap<RaftId, std::time::Instant>>,
    /// The later life of the cluster that a peer belongs to; 0 while none was heard of. From then on this manager
    /// neither says nor hears anything more.
    pub(crate) superseded: AtomicU64,
    /// How the disks of those fare that follow this manager, as they last said.
    pub(crate) disks: Mutex<BTreeMap<RaftId, Disk>>,
    /// Who has no room for its log, as the leader last said.
    pub(crate) full: Mutex<BTreeSet<RaftId>>,
}

impl Ties {
    /// Asks a peer something.
    pub(crate) async fn ask(&self, to: &Member, body: Body, deadline: Duration) -> Result<Body, Unreachable> {
        self.exchange(to, wire::seal(self.life, self.me, to.id, body), deadline).await
    }

    async fn exchange(&self, to: &Member, frame: Bytes, deadline: Duration) -> Result<Body, Unreachable> {
        let answer = timeout(deadline, self.transport.call(to, frame, deadline))
            .await
            .map_err(|_| Unreachable(format!("no answer from {to} within {deadline:?}")))??;
        self.read(to, answer)
    }

    fn read(&self, from: &Member, frame: Bytes) -> Result<Body, Unreachable> {
        let (sender, body) = self.open(frame).map_err(Unreachable)?;
        if sender != from.id {
            return Err(Unreachable(format!("{from} answered as manager {sender}")));
        }
        match body {
            Body::AppendDone(done) => {
                let mut disks = self.disks.lock().expect("nothing panics while it holds this lock");
                disks.insert(sender, done.disk());
                Ok(body)
            }
            Body::Refused(refused) => Err(Unreachable(format!("{from} refused: {}", refused.reason))),
            body => Ok(body),
        }
    }

    /// Takes a message out of its envelope, and takes note if it says that this manager's life is over.
    pub(crate) fn open(&self, frame: Bytes) -> Result<(RaftId, Body), String> {
        if let Some(now) = self.superseded() {
            return Err(format!(
                "this manager is of incarnation {}, the cluster goes on as {now}",
                self.life.incarnation
            ));
        }
        let opened = wire::open(self.life, self.me, frame).map_err(|unfit| {
            if let Some(newer) = unfit.newer {
                self.superseded.fetch_max(newer.0, Ordering::Relaxed);
            }
            unfit.words
        });
        if let Ok((from, _)) = &opened {
            let mut seen = self.seen.lock().expect("nothing panics while it holds this lock");
            seen.insert(*from, std::time::Instant::now());
        }
        opened
    }

    /// What is to be appended, and what a leader tells with it.
    fn append(&self, to: RaftId, request: &AppendEntriesRequest<Types>) -> Bytes {
        let full = self.full_members(true).into_iter().map(|id| id.0).collect();
        wire::seal_append(self.life, self.me, to, request, full)
    }

    /// Who has no room for its log: as a leader knows it, or as it was told by one.
    pub(crate) fn full_members(&self, leads: bool) -> BTreeSet<RaftId> {
        if leads {
            let disks = self.disks.lock().expect("nothing panics while it holds this lock");
            return disks.iter().filter(|(_, disk)| disk.full).map(|(id, _)| *id).collect();
        }
        self.full.lock().expect("nothing panics while it holds this lock").clone()
    }

    /// The later life of the cluster, if one was heard of.
    pub(crate) fn superseded(&self) -> Option<Incarnation> {
        Some(self.superseded.load(Ordering::Relaxed)).filter(|by| *by != 0).map(Incarnation)
    }
}

fn unexpected(from: &Member) -> Unreachable {
    Unreachable(format!("{from} answered something else than was asked"))
}

fn rpc_error(error: Unreachable) -> RPCError<Types> {
    RPCError::Unreachable(openraft::errors::Unreachable::from_string(error))
}

/// Makes a [`Client`] for each peer openraft wants to speak to.
pub(crate) struct Network(pub(crate) Arc<Ties>);

impl RaftNetworkFactory<Types> for Network {
    type Network = Client;

    async fn new_client(&mut self, target: u64, contact: &Contact) -> Client {
        Client::new(self.0.clone(), Member::new(target, contact), true)
    }

    async fn new_heartbeat_client(&mut self, target: u64, contact: &Contact) -> Client {
        // A heartbeat is one message: not worth a stream.
        Client::new(self.0.clone(), Member::new(target, contact), false)
    }
}

/// Speaks to one peer.
pub(crate) struct Client {
    ties: Arc<Ties>,
    to: Member,
    streams: bool,
    leap: Leap,
}

impl Client {
    fn new(ties: Arc<Ties>, to: Member, streams: bool) -> Self {
        let leap = Leap::new(ties.snapshots_sent.load(Ordering::Relaxed));
        Self { ties, to, streams, leap }
    }
}

impl NetBackoff<Types> for Client {
    fn backoff(&self) -> Option<Backoff> {
        None
    }
}

impl NetAppend<Types> for Client {
    async fn append_entries(
        &mut self,
        request: AppendEntriesRequest<Types>,
        option: RPCOption,
    ) -> Result<AppendEntriesResponse<Types>, RPCError<Types>> {
        let asked = self.ties.append(self.to.id, &request);
        match self.ties.exchange(&self.to, asked, option.hard_ttl()).await.map_err(rpc_error)? {
            Body::AppendDone(done) => Ok(match StreamAppendResult::<Types>::from(done) {
                Ok(matched) => AppendEntriesResponse::PartialSuccess(matched),
                Err(StreamAppendError::Conflict(_)) => AppendEntriesResponse::Conflict,
                Err(StreamAppendError::HigherVote(vote)) => AppendEntriesResponse::HigherVote(vote),
            }),
            _ => Err(rpc_error(unexpected(&self.to))),
        }
    }
}

impl NetStreamAppend<Types> for Client {
    fn stream_append<'s, S>(
        &'s mut self,
        input: S,
        option: RPCOption,
    ) -> BoxFuture<
        's,
        Result<BoxStream<'s, Result<StreamAppendResult<Types>, RPCError<Types>>>, RPCError<Types>>,
    >
    where
        S: Stream<Item = AppendEntriesRequest<Types>> + OptionalSend + Unpin + 'static,
    {
        if !self.streams {
            return stream_append_sequential(self, input, option);
        }
        Box::pin(async move {
            // openraft waits out its backoff where the first request is drawn, so that comes before connecting;
            // else a manager that is gone would be dialled without a pause.
            let mut input = input.peekable();
            let first = Pin::new(&mut input).peek().await;
            let sent = self.ties.snapshots_sent.load(Ordering::Relaxed);
            if let Some(probe) = first.and_then(|first| self.leap.probe(first, &self.ties.log, sent)) {
                let answer = self.append_entries(probe, option).await?;
                if let Some(found) = self.leap.landed(answer) {
                    return Ok(
                        Box::pin(futures_util::stream::once(async { Ok(Err(found)) })) as BoxStream<'s, _>
                    );
                }
            }
            let owed = Arc::new(AtomicU64::new(0));
            let frames = {
                let (ties, to, owed) = (self.ties.clone(), self.to.id, owed.clone());
                let known = self.leap.known;
                input.map(move |request| {
                    owed.fetch_add(1, Ordering::Relaxed);
                    ties.append(to, &leap::without_known(request, known))
                })
            };
            let patience = self.ties.append_patience;
            let answers = timeout(patience, self.ties.transport.append(&self.to, Box::pin(frames)))
                .await
                .map_err(|_| rpc_error(Unreachable(format!("{} takes no append stream", self.to))))?
                .map_err(rpc_error)?;
            let state = Some((answers, owed));
            let (ties, from, matched) = (&*self.ties, &self.to, &self.leap.matched);
            let results = futures_util::stream::unfold(state, move |state| async move {
                let (mut answers, owed) = state?;
                let answer = patient_next(&mut answers, &owed, patience, from).await?;
                let result = answer.and_then(|frame| match ties.read(from, frame)? {
                    Body::AppendDone(done) => Ok(StreamAppendResult::<Types>::from(done)),
                    _ => Err(unexpected(from)),
                });
                owed.fetch_sub(1, Ordering::Relaxed);
                if let Ok(Ok(upto)) = &result {
                    matched.fetch_max(upto.map_or(0, |id| id.index), Ordering::Relaxed);
                }
                let state = result.is_ok().then_some((answers, owed));
                Some((result.map_err(rpc_error), state))
            });
            Ok(Box::pin(results) as BoxStream<'s, _>)
        })
    }
}

/// The next answer; an error once one has been owed for longer than `patience` without any coming.
async fn patient_next(
    answers: &mut Answers,
    owed: &AtomicU64,
    patience: Duration,
    from: &Member,
) -> Option<Result<Bytes, Unreachable>> {
    loop {
        let in_debt = owed.load(Ordering::Relaxed) > 0;
        match timeout(patience, answers.next()).await {
            Ok(answer) => return answer,
            Err(_) if in_debt => {
                return Some(Err(Unreachable(format!("{from} owes an answer since {patience:?}"))));
            }
            Err(_) => {}
        }
    }
}

impl Client {
    async fn ask_vote(
        &self,
        asked: Body,
        option: &RPCOption,
    ) -> Result<VoteResponse<Types>, RPCError<Types>> {
        match self.ties.ask(&self.to, asked, option.hard_ttl()).await.map_err(rpc_error)? {
            Body::VoteDone(done) => {
                if let Some(index) = done.removed_by {
                    self.ties.removed_by.fetch_max(index, Ordering::Relaxed);
                }
                Ok(done.into())
            }
            _ => Err(rpc_error(unexpected(&self.to))),
        }
    }
}

#[cfg(feature = "sim")]
impl Client {
    /// The fault of counting one's own vote twice: it stands for that of the first of the others.
    fn own_vote(&self, request: &VoteRequest<Types>) -> Option<VoteResponse<Types>> {
        let first = RaftId(if self.ties.me == RaftId(1) { 2 } else { 1 });
        let twice = self.ties.flaws.vote_twice && self.to.id == first;
        twice.then_some(VoteResponse {
            vote: request.vote,
            vote_granted: true,
            last_log_id: request.last_log_id,
        })
    }
}

impl NetVote<Types> for Client {
    async fn vote(
        &mut self,
        request: VoteRequest<Types>,
        option: RPCOption,
    ) -> Result<VoteResponse<Types>, RPCError<Types>> {
        #[cfg(feature = "sim")]
        if let Some(granted) = self.own_vote(&request) {
            return Ok(granted);
        }
        self.ask_vote(Body::Vote(request.into()), &option).await
    }

    async fn pre_vote(
        &mut self,
        request: VoteRequest<Types>,
        option: RPCOption,
    ) -> Result<VoteResponse<Types>, RPCError<Types>> {
        #[cfg(feature = "sim")]
        if let Some(granted) = self.own_vote(&request) {
            return Ok(granted);
        }
        self.ask_vote(Body::PreVote(request.into()), &option).await
    }
}

impl NetTransferLeader<Types> for Client {
    async fn transfer_leader(
        &mut self,
        request: TransferLeaderRequest<Types>,
        option: RPCOption,
    ) -> Result<TransferLeaderResponse<Types>, RPCError<Types>> {
        let asked = Body::Transfer(TransferPb {
            from: (*request.from_leader()).into(),
            to: *request.to_node_id(),
            last: request.last_log_id().copied().map(LogIdPb::from),
        });
        match self.ties.ask(&self.to, asked, option.hard_ttl()).await.map_err(rpc_error)? {
            Body::TransferDone(done) => Ok(match (done.vote_changed, done.not_flushed) {
                (Some(actual), _) => Err(TransferLeaderError::VoteChanged {
                    expected: *request.from_leader(),
                    actual: actual.into(),
                }),
                (None, Some(flushed)) => Err(TransferLeaderError::LogNotFlushed {
                    expected: request.last_log_id().copied(),
                    actual: flushed.actual.map(LogId::from),
                }),
                (None, None) => Ok(()),
            }),
            _ => Err(rpc_error(unexpected(&self.to))),
        }
    }
}

impl NetSnapshot<Types> for Client {
    type SnapshotData = SnapshotFile;

    async fn full_snapshot(
        &mut self,
        vote: Vote,
        snapshot: openraft::alias::SnapshotOf<Types, SnapshotFile>,
        cancel: impl Future<Output = ReplicationClosed> + OptionalSend + 'static,
        _: RPCOption,
    ) -> Result<SnapshotResponse<Types>, StreamingError<Types>> {
        self.ties.snapshots_sent.fetch_add(1, Ordering::Relaxed);
        let taken = Arc::new(AtomicU64::new(0));
        let (frames, reader) = self.snapshot_frames(vote, snapshot.snapshot, taken.clone());
        let sending = self.ties.transport.snapshot(&self.to, frames);
        let sent = tokio::select! {
            biased;
            closed = cancel => return Err(StreamingError::Closed(closed)),
            sent = while_progress(sending, &taken, self.ties.snapshot_patience) => sent,
        };
        let answered = sent.and_then(|frame| match self.ties.read(&self.to, frame)? {
            Body::SnapshotDone(done) => Ok(SnapshotResponse::new(done.vote.into())),
            _ => Err(unexpected(&self.to)),
        });
        answered.map_err(|error| {
            if reader.load(Ordering::Relaxed) {
                tracing::error!(to = %self.to, "a snapshot could not be read and was not sent");
            }
            StreamingError::Unreachable(openraft::errors::Unreachable::from_string(error))
        })
    }
}

impl Client {
    /// The frames of a snapshot, read as they are taken; and whether reading failed.
    fn snapshot_frames(
        &self,
        vote: Vote,
        file: SnapshotFile,
        taken: Arc<AtomicU64>,
    ) -> (Frames, Arc<AtomicBool>) {
        let failed = Arc::new(AtomicBool::new(false));
        let (frames, out) = mpsc::channel(2);
        let (ties, to, unread) = (self.ties.clone(), self.to.id, failed.clone());
        let read = move |send: &dyn Fn(Bytes) -> bool| {
            let send = |body| send(wire::seal(ties.life, ties.me, to, body));
            if let Err(error) = read_snapshot(&ties.snapshots, &file, vote, send) {
                tracing::error!(file = %file.path.display(), %error, "cannot read a snapshot");
                unread.store(true, Ordering::Relaxed);
            }
        };
        if simulated() {
            // There, it is small.
            let all = RefCell::new(Vec::new());
            read(&|frame| {
                all.borrow_mut().push(frame);
                true
            });
            let frames = futures_util::stream::iter(all.into_inner());
            return (
                Box::pin(frames.inspect(move |_| {
                    taken.fetch_add(1, Ordering::Relaxed);
                })),
                failed,
            );
        }
        tokio::task::spawn_blocking(move || read(&|frame| frames.blocking_send(frame).is_ok()));
        let frames = futures_util::stream::unfold(out, move |mut out| {
            let taken = taken.clone();
            async move {
                let frame = out.recv().await?;
                taken.fetch_add(1, Ordering::Relaxed);
                Some((frame, out))
            }
        });
        (Box::pin(frames), failed)
    }
}

/// Without its end, which a failure leaves out, the receiver refuses what it got.
fn read_snapshot(
    snapshots: &Snapshots,
    file: &SnapshotFile,
    vote: Vote,
    send: impl Fn(Body) -> bool,
) -> std::io::Result<()> {
    let mut reader = snapshots.read(file)?;
    let begin = SnapshotBeginPb { vote: vote.into(), meta: (&reader.meta).into() };
    if !send(Body::SnapshotBegin(begin)) {
        return Ok(());
    }
    let mut end = SnapshotEndPb { bytes: 0, crc32c: 0 };
    loop {
        let mut chunk = BytesMut::zeroed(CHUNK_BYTES);
        let mut len = 0;
        while len < chunk.len() {
            match reader.read(&mut chunk[len..])? {
                0 => break,
                read => len += read,
            }
        }
        chunk.truncate(len);
        if len == 0 {
            send(Body::SnapshotEnd(end));
            return Ok(());
        }
        end.bytes += len as u64;
        end.crc32c = crc32c::crc32c_append(end.crc32c, &chunk);
        if !send(Body::SnapshotChunk(chunk.freeze())) {
            return Ok(());
        }
    }
}

/// Waits for as long as frames keep being taken.
async fn while_progress<T>(
    sending: impl Future<Output = Result<T, Unreachable>>,
    taken: &AtomicU64,
    patience: Duration,
) -> Result<T, Unreachable> {
    let mut sending = std::pin::pin!(sending);
    let mut before = taken.load(Ordering::Relaxed);
    let mut since = Instant::now();
    loop {
        if let Ok(sent) = timeout(patience / 4, &mut sending).await {
            return sent;
        }
        let now = taken.load(Ordering::Relaxed);
        if now != before {
            (before, since) = (now, Instant::now());
        } else if since.elapsed() > patience {
            return Err(Unreachable(format!("a snapshot made no progress for {patience:?}")));
        }
    }
}
