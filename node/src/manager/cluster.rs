//! The replicated state as the rest of a manager sees it: read it, wait for it, and change it by a rule.

use super::clock;
use arc_swap::ArcSwap;
use bytes::Bytes;
use rswarm_control::admission::{self, Answer, Refused, Request};
use rswarm_control::level;
use rswarm_control::state::{Change, Proposal, RequestId, State};
use rswarm_control::time::Timestamp;
use rswarm_proto::store;
use rswarm_raft::{Entry, Frozen, Full, Log, ProposeError, StateMachine};
use std::io::{self, Read, Write};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Mutex, MutexGuard, watch};
use tonic::Status;

/// How often a rule is tried again when the state moved under it.
const RETRIES: usize = 16;
/// Requests that concern the same object take turns; two objects seldom share one.
const TURNS: usize = 64;
/// How long a write may take, a change of leader included.
const WRITE: Duration = Duration::from_secs(10);

/// A cheap handle on the replicated state of this manager.
#[derive(Clone)]
pub struct Cluster {
    log: Arc<Log>,
    view: View,
    numbers: Arc<Mutex<()>>,
    turns: Arc<[Mutex<()>; TURNS]>,
}

/// The state as applied here, without the right to change it.
#[derive(Clone)]
pub struct View {
    state: Arc<ArcSwap<State>>,
    index: watch::Receiver<u64>,
}

impl View {
    /// The state as of the last applied entry.
    pub fn state(&self) -> Arc<State> {
        self.state.load_full()
    }

    /// Changes with each applied batch; its value is the index of the last applied entry.
    pub fn watch(&self) -> watch::Receiver<u64> {
        self.index.clone()
    }

    /// Waits until an entry has been applied here.
    pub async fn reached(&self, index: u64) {
        let mut watch = self.index.clone();
        // An error means that the state machine is gone, and with it everybody who waits here.
        let _ = watch.wait_for(|applied| *applied >= index).await;
    }
}

/// Why a rule could not be carried out.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// The rule itself said no.
    #[error("{0}")]
    Refused(#[from] Refused),
    /// No quorum, no leader, or not this manager.
    #[error(transparent)]
    Propose(#[from] ProposeError),
    /// Somebody was faster each time.
    #[error("update out of sequence: the cluster is changing too fast, try again")]
    Stale,
    /// What came back cannot be read.
    #[error("the log gave an answer that cannot be read")]
    Answer,
    /// The leader is newer than another manager, and has forgotten that.
    #[error(
        "that belongs to level {0} of the log, which not all managers understand yet: upgrade them (see `rswarm status`)"
    )]
    Level(u32),
    /// No verdict in time. It may still be carried out.
    #[error(
        "no answer within {} s: more than half of the managers must be online (see `rswarm status`)",
        WRITE.as_secs()
    )]
    Timeout,
}

/// How long a read looks for a leader.
const FRESH: Duration = Duration::from_secs(3);

/// What a user is told when nothing can be decided.
const NO_QUORUM: &str = "the cluster has no leader that reaches more than half of the managers: nothing can be \
                         changed until they are online and reach each other; containers go on running (see \
                         `rswarm status`)";

/// What a user is told when the leader has no room for its log, and nobody else can lead.
fn no_room(full: &Full) -> String {
    format!(
        "{}: no space left in {} for the manager's log, which wants {} MiB more, so nothing can be changed; {FREE}; \
         containers go on running",
        crate::machine::hostname(),
        full.dir.display(),
        full.wanted >> 20
    )
}

/// What to do where there is no room for a manager's log.
pub const FREE: &str = "free some there (`rswarm image prune` and `rswarm volume prune` remove what is not used), and \
                        it goes on by itself";

impl From<WriteError> for Status {
    fn from(error: WriteError) -> Self {
        match error {
            WriteError::Refused(refused) => refused_status(&refused),
            WriteError::Propose(ProposeError::NotLeader { .. } | ProposeError::Unavailable) => {
                Status::unavailable(NO_QUORUM)
            }
            WriteError::Propose(ProposeError::Full(full)) => Status::resource_exhausted(no_room(&full)),
            WriteError::Propose(_) | WriteError::Timeout => Status::unavailable(error.to_string()),
            WriteError::Stale => Status::aborted(error.to_string()),
            WriteError::Level(_) => Status::failed_precondition(error.to_string()),
            WriteError::Answer => Status::internal(error.to_string()),
        }
    }
}

/// The only place where refusals become gRPC's.
pub fn refused_status(refused: &Refused) -> Status {
    let text = refused.to_string();
    match refused {
        Refused::NotFound(_) => Status::not_found(text),
        Refused::AlreadyExists(_) => Status::already_exists(text),
        Refused::Invalid(_) => Status::invalid_argument(text),
        Refused::FailedPrecondition(_) => Status::failed_precondition(text),
        Refused::Conflict(_) => Status::aborted(text),
        Refused::Denied(_) => Status::permission_denied(text),
    }
}

impl Cluster {
    /// Ties a log to the view of its state machine.
    pub fn new(log: Arc<Log>, view: View) -> Self {
        let turns = Arc::new(std::array::from_fn(|_| Mutex::default()));
        Self { log, view, numbers: Arc::default(), turns }
    }

    /// The right to create objects, whose numbers follow each other: who decides on a state while somebody else creates
    /// decides in vain. Given in the order in which it is asked for.
    pub async fn numbers(&self) -> MutexGuard<'_, ()> {
        self.numbers.lock().await
    }

    /// The log beneath.
    pub fn log(&self) -> &Arc<Log> {
        &self.log
    }

    /// The view.
    pub fn view(&self) -> &View {
        &self.view
    }

    /// The state as of the last applied entry.
    pub fn state(&self) -> Arc<State> {
        self.view.state()
    }

    /// The state, at least as new as anything that was acknowledged before this call.
    pub async fn fresh(&self) -> Result<Arc<State>, Status> {
        let deadline = tokio::time::Instant::now() + FRESH;
        loop {
            // It returns once everything up to there has been applied here.
            let read = tokio::time::timeout(WRITE, self.log.read_index()).await;
            let Err(error) = read.map_err(|_| Status::unavailable(WriteError::Timeout.to_string()))? else {
                break;
            };
            tracing::debug!(%error, "cannot read");
            if tokio::time::Instant::now() >= deadline {
                return Err(Status::unavailable(NO_QUORUM));
            }
            // The leader may just have come back, and this manager not have found it again.
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        Ok(self.state())
    }

    /// Carries out a request: it is decided on the newest state, and again if the state moved meanwhile. Returns
    /// the answer and the index of the entry, which has been applied here.
    pub async fn admit(&self, request: &Request) -> Result<(Answer, u64), WriteError> {
        self.admit_once(None, request).await
    }

    /// The same for a request that may be a repetition: if it was carried out before, it is answered as it was then.
    pub async fn admit_once(
        &self,
        id: Option<RequestId>,
        request: &Request,
    ) -> Result<(Answer, u64), WriteError> {
        let work = async {
            let (mut numbers, mut turn) = (None, None);
            for _ in 0..RETRIES {
                let state = self.state();
                let now = clock::after(state.clock());
                let (changes, answer) = admission::admit_once(&state, id, request, now)?;
                if changes.is_empty() {
                    return Ok((answer, state.index()));
                }
                if changes.iter().any(Change::takes_number) {
                    if numbers.is_none() {
                        // Nobody waits for the one while holding the other.
                        turn = None;
                        numbers = Some(self.numbers().await);
                        continue;
                    }
                } else if turn.is_none()
                    && let Some(object) = changes.iter().find_map(Change::versioned)
                {
                    // Of those who decide on the same object at once, all but one would do so in vain.
                    let place = &self.turns[(object % TURNS as u64) as usize];
                    match place.try_lock() {
                        Ok(free) => turn = Some(free),
                        Err(_) => {
                            numbers = None;
                            turn = Some(place.lock().await);
                            continue;
                        }
                    }
                }
                if let Some(index) = self.commit(changes, now).await? {
                    return Ok((answer, index));
                }
            }
            Err(WriteError::Stale)
        };
        tokio::time::timeout(WRITE, work).await.unwrap_or(Err(WriteError::Timeout))
    }

    /// Proposes changes as they are. `None` when they were stale; else the index, applied here.
    pub async fn commit(&self, changes: Vec<Change>, at: Timestamp) -> Result<Option<u64>, WriteError> {
        if let Some(level) = level::beyond(&self.state(), &changes) {
            return Err(WriteError::Level(level));
        }
        let bytes = store::encode_proposal(&Proposal { changes, at });
        let proposed = self.log.propose(bytes).await?;
        self.view.reached(proposed.index).await;
        match proposed.answer.first() {
            Some(&APPLIED) => Ok(Some(proposed.index)),
            Some(&STALE) => {
                tracing::debug!(why = %String::from_utf8_lossy(&proposed.answer[1..]), "stale proposal");
                Ok(None)
            }
            _ => Err(WriteError::Answer),
        }
    }
}

const APPLIED: u8 = 1;
const STALE: u8 = 2;
const UNREADABLE: u8 = 3;

/// The state machine under the log.
pub struct Fsm {
    state: State,
    shown: Arc<ArcSwap<State>>,
    index: watch::Sender<u64>,
}

impl Fsm {
    /// An empty state, and the view of it.
    pub fn new() -> (Self, View) {
        let shown = Arc::new(ArcSwap::from_pointee(State::default()));
        let (index, watch) = watch::channel(0);
        (Self { state: State::default(), shown: shown.clone(), index }, View { state: shown, index: watch })
    }

    fn show(&self, index: u64) {
        self.shown.store(Arc::new(self.state.clone()));
        self.index.send_replace(index);
    }
}

impl StateMachine for Fsm {
    fn apply(&mut self, entries: Vec<Entry>) -> Vec<Bytes> {
        let mut answers = Vec::with_capacity(entries.len());
        let mut last = None;
        for entry in entries {
            last = Some(entry.index);
            answers.push(match store::decode_proposal(&entry.bytes) {
                Ok(proposal) => match self.state.apply(entry.index, &proposal) {
                    Ok(_) => Bytes::from_static(&[APPLIED]),
                    Err(stale) => [&[STALE], stale.to_string().as_bytes()].concat().into(),
                },
                Err(error) => {
                    // Every manager of this version refuses it alike, so they stay the same.
                    tracing::error!(index = entry.index, %error, "a log entry cannot be read; passed over");
                    Bytes::from_static(&[UNREADABLE])
                }
            });
        }
        if let Some(index) = last {
            self.show(index);
        }
        answers
    }

    fn freeze(&self) -> Box<dyn Frozen> {
        Box::new(FrozenState(self.state.clone()))
    }

    fn restore(&mut self, index: u64, reader: &mut dyn Read) -> io::Result<()> {
        let state = store::read_snapshot(reader).map_err(io::Error::other)?;
        if state.level() > level::LATEST {
            return Err(io::Error::other(format!(
                "the managers of this cluster have gone on to level {}, and this rswarm understands the log up to \
                 level {}: install the version here that they run",
                state.level(),
                level::LATEST
            )));
        }
        self.state = state;
        self.show(index);
        Ok(())
    }
}

/// A state as the log's snapshots hold it.
pub fn frozen(state: State) -> Box<dyn Frozen> {
    Box::new(FrozenState(state))
}

struct FrozenState(State);

impl Frozen for FrozenState {
    fn write(self: Box<Self>, writer: &mut dyn Write) -> io::Result<()> {
        store::write_snapshot(&self.0, writer)
    }
}
