//! The log itself: opened from a directory, proposed to, watched, shut down.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Display;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use openraft::Instant as _;
use openraft::errors::{ClientWriteError, ForwardReason, ForwardToLeader, InitializeError, RaftError};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout};

use crate::disk::{self, Disk, Full};
use crate::network::{Network, Ties};
use crate::reads::Reads;
use crate::status::{Heard, Metrics, WatchReceiverOf};
use crate::storage::log::LogStore;
use crate::storage::machine::Machine;
use crate::storage::snapshot::Snapshots;
use crate::storage::wal::{Recovered, Wal};
use crate::storage::{Dir, Identity, off_thread};
use crate::types::{Command, Types};
use crate::wire::{COMMAND_BYTES_MAX, Life};
use crate::{
    Config, Incarnation, Member, OpenError, ProposeError, RaftId, Role, StateMachine, Status, TransferError,
    Transport, membership, reads, status,
};

pub(crate) type Raft = openraft::Raft<Types, Machine>;

/// A committed and applied proposal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Proposed {
    /// Its place in the log.
    pub index: u64,
    /// What the state machine answered.
    pub answer: Bytes,
}

/// A manager's handle to the replicated log; clones share it.
///
/// It runs on the tokio runtime it was opened on until [`Log::shutdown`] is called or the last clone is gone. If it
/// fails ([`Status::failed`]), shut it down and open it again: what it acknowledged is on disk.
#[derive(Clone)]
pub struct Log(Arc<Handle>);

struct Handle {
    core: Arc<Core>,
    /// The last clone may be dropped anywhere.
    runtime: tokio::runtime::Handle,
    tasks: Mutex<Vec<JoinHandle<()>>>,
}

impl Drop for Handle {
    fn drop(&mut self) {
        drop(self.stop_tasks());
        // Nobody waits for this; whoever cares calls `shutdown`.
        let core = self.core.clone();
        self.runtime.spawn(async move { core.stop().await });
    }
}

impl Handle {
    fn stop_tasks(&self) -> Vec<JoinHandle<()>> {
        let tasks = std::mem::take(&mut *self.tasks.lock().expect("nothing panics while it holds this lock"));
        tasks.iter().for_each(JoinHandle::abort);
        tasks
    }
}

/// What the log's parts and tasks share.
pub(crate) struct Core {
    pub(crate) config: Config,
    pub(crate) raft: Raft,
    pub(crate) ties: Arc<Ties>,
    pub(crate) status: watch::Receiver<Status>,
    publisher: Arc<watch::Sender<Status>>,
    /// Held while the membership is being changed.
    pub(crate) changing: tokio::sync::Mutex<()>,
    /// The index of the last entry that was applied here; ahead of the status.
    pub(crate) applied: watch::Receiver<u64>,
    proposals: Semaphore,
    reads: Reads,
    store: LogStore,
    snapshots: Snapshots,
}

impl Log {
    /// Continues the log in [`Config::dir`], or prepares an empty one, which then waits for [`Log::bootstrap`] or for
    /// a leader that [adds](Log::add) it.
    ///
    /// # Errors
    /// See [`OpenError`]. A torn last write is cut off; any other damage is refused.
    pub async fn open(
        config: Config,
        machine: impl StateMachine,
        transport: Arc<dyn Transport>,
    ) -> Result<Self, OpenError> {
        let settings = Arc::new(config.to_openraft()?);
        let (store, snapshots, incarnation) = {
            let config = config.clone();
            off_thread(move || open_storage(&config))
                .await
                .map_err(|error| OpenError::Start { dir: Default::default(), reason: error.to_string() })??
        };
        let ties = Arc::new(Ties {
            me: config.id,
            life: Life { cluster: config.cluster, incarnation },
            #[cfg(feature = "sim")]
            flaws: config.sim.flaws,
            transport,
            append_patience: config.append_patience,
            snapshot_patience: config.snapshot_patience,
            snapshots: snapshots.clone(),
            log: store.clone(),
            snapshots_sent: AtomicU64::new(0),
            removed_by: AtomicU64::new(0),
            heard: Heard::default(),
            seen: Mutex::default(),
            superseded: AtomicU64::new(0),
            disks: Mutex::default(),
            full: Mutex::default(),
        });
        let machine = Machine::new(Box::new(machine), snapshots.clone());
        let applied = machine.applied();
        let started = Raft::new(config.id.0, settings, Network(ties.clone()), store.clone(), machine).await;
        let raft = match started {
            Ok(raft) => raft,
            Err(error) => {
                drop(off_thread(move || store.close()).await);
                snapshots.close();
                return Err(OpenError::Start { dir: config.dir, reason: error.to_string() });
            }
        };

        let me = config.id.0;
        let alone =
            raft.with_raft_state(move |state| state.membership_state.effective().voter_ids().eq([me]));
        if alone.await.unwrap_or(false) && raft.trigger().elect(false).await.is_ok() {
            tracing::debug!("the only voter waits for nobody before it leads");
        }

        let heartbeat = config.heartbeat;
        let first =
            Status { id: config.id, role: Role::Learner, incarnation, heartbeat, ..Status::default() };
        let (publisher, status) = watch::channel(first);
        let publisher = Arc::new(publisher);
        let (metrics, turns) = (raft.metrics(), raft.server_metrics());
        let publishing =
            status::publish(metrics, turns, publisher.clone(), ties.clone(), (heartbeat, config.stall));
        let mut tasks = vec![tokio::spawn(publishing)];
        let (reads, asked) = Reads::new();
        let core = Arc::new(Core {
            proposals: Semaphore::new(config.proposals_max),
            changing: tokio::sync::Mutex::new(()),
            config,
            raft,
            ties,
            status,
            applied,
            publisher,
            reads,
            store,
            snapshots,
        });
        tasks.push(tokio::spawn(reads::serve(core.clone(), asked)));
        tasks.push(tokio::spawn(membership::finish_changes(core.clone())));
        tasks.push(tokio::spawn(limit_memory(core.clone())));
        tasks.push(tokio::spawn(leave_a_bad_disk(core.clone())));
        let runtime = tokio::runtime::Handle::current();
        Ok(Self(Arc::new(Handle { core, runtime, tasks: Mutex::new(tasks) })))
    }

    /// Makes this manager the first and only member of a new cluster, and waits until it leads. Does nothing if the
    /// log has begun already.
    ///
    /// # Errors
    /// [`OpenError::Start`] if it does not come to lead.
    pub async fn bootstrap(&self, me: Member) -> Result<(), OpenError> {
        let core = &self.0.core;
        let failed = |reason: String| OpenError::Start { dir: core.config.dir.clone(), reason };
        if me.id != core.config.id {
            return Err(failed(format!("it belongs to manager {}, not {}", core.config.id, me.id)));
        }
        let members = BTreeMap::from([(me.id.0, me.contact())]);
        match core.raft.initialize(members).await {
            Ok(()) | Err(RaftError::APIError(InitializeError::NotAllowed(_))) => {}
            Err(error) => return Err(failed(error.to_string())),
        }
        // Only once its own first entry is committed can a leader take others in.
        let ready = |status: &Status| status.leader.is_some() && status.applied > 0;
        if core.wait(core.config.patience, ready).await.is_none() {
            return Err(failed("no manager came to lead".into()));
        }
        Ok(())
    }

    /// Appends a command, and answers once a quorum has it on disk and it was applied here. Many may be under way
    /// at once; they are committed in batches.
    ///
    /// # Errors
    /// See [`ProposeError`], which tells whether the command may still be committed.
    pub async fn propose(&self, command: Bytes) -> Result<Proposed, ProposeError> {
        self.0.core.propose(command).await
    }

    /// An index that covers everything acknowledged before this call, and that has been applied here: what is
    /// read from the state machine afterwards is linearizable. Works on any member.
    ///
    /// # Errors
    /// See [`crate::ReadError`]; without a quorum there is no such read.
    pub async fn read_index(&self) -> Result<u64, crate::ReadError> {
        self.0.core.reads.ask(self.0.core.config.patience).await
    }

    /// The state, and each change of it.
    pub fn watch(&self) -> watch::Receiver<Status> {
        self.0.core.status.clone()
    }

    /// The state now.
    pub fn status(&self) -> Status {
        self.0.core.status()
    }

    /// When another member last said something here. Those that follow hear one another only while there is no leader.
    pub fn heard_from(&self, id: RaftId) -> Option<std::time::Instant> {
        let seen = self.0.core.ties.seen.lock().expect("nothing panics while it holds this lock");
        seen.get(&id).copied()
    }

    /// How the disk fares that this log is on.
    pub fn disk(&self) -> Disk {
        self.0.core.disk()
    }

    /// If there is no room for this log: where, and how much is wanted. Proposals are refused then, until there is.
    pub fn full(&self) -> Option<Full> {
        self.0.core.full()
    }

    /// The other members without room for their log, as far as it has got about.
    pub fn full_members(&self) -> BTreeSet<RaftId> {
        self.0.core.ties.full_members(self.status().is_leader())
    }

    /// Waits until the status satisfies `wanted`, and answers it; `None` if it did not within `patience`.
    pub async fn wait(&self, patience: Duration, wanted: impl FnMut(&Status) -> bool) -> Option<Status> {
        self.0.core.wait(patience, wanted).await
    }

    /// The payload bytes of the entries held in memory.
    pub fn bytes_in_memory(&self) -> usize {
        self.0.core.store.bytes()
    }

    /// Asks for a snapshot now, and for the entries it covers, but the last [`Config::keep_entries`], to be let go.
    ///
    /// # Errors
    /// [`ProposeError::Stopped`].
    pub async fn snapshot(&self) -> Result<(), ProposeError> {
        let asked = self.0.core.raft.trigger().snapshot().await;
        asked.map_err(|error| ProposeError::Stopped(error.to_string()))
    }

    /// Hands leadership to `to`, or to the voter that is furthest, and answers who leads once it is another.
    /// Proposals meanwhile are turned away as [`ProposeError::NotLeader`].
    ///
    /// # Errors
    /// See [`TransferError`].
    pub async fn transfer(&self, to: Option<RaftId>) -> Result<Member, TransferError> {
        self.0.core.transfer(to).await
    }

    /// Hands leadership over if it is held and somebody can take it, stops, and lets the directory go; what was
    /// acknowledged is on disk.
    pub async fn shutdown(&self) {
        let core = &self.0.core;
        if self.status().is_leader()
            && let Err(error) = core.transfer(None).await
        {
            tracing::info!(reason = %error, "shutting down without handing over leadership");
        }
        for task in self.0.stop_tasks() {
            // Only for it to have ended, so that it publishes nothing behind us.
            drop(task.await);
        }
        core.stop().await;
    }

    /// Ends it as a crash would, once its disk takes no more writes: nothing is handed over.
    #[cfg(feature = "sim")]
    pub async fn kill(&self) {
        for task in self.0.stop_tasks() {
            drop(task.await);
        }
        self.0.core.stop().await;
    }

    pub(crate) fn core(&self) -> &Arc<Core> {
        &self.0.core
    }
}

pub(crate) fn open_wal(dir: &Dir, config: &Config) -> Result<(Wal, Recovered), OpenError> {
    let media = config.media(dir.gauge.clone());
    Wal::open(&dir.path, dir.identity, dir.key.clone(), config.segment_bytes, config.incarnation, &media)
}

fn open_storage(config: &Config) -> Result<(LogStore, Snapshots, Incarnation), OpenError> {
    let identity = Identity { cluster: config.cluster, id: config.id };
    let dir = Arc::new(Dir::open(&config.dir, identity)?);
    let snapshots = Snapshots::open(dir.clone())?;
    let (wal, recovered) = open_wal(&dir, config)?;
    let incarnation = recovered.incarnation;
    if incarnation.precedes(config.incarnation) {
        let known = config.incarnation;
        return Err(OpenError::Outdated { dir: config.dir.clone(), found: incarnation, known });
    }
    snapshots.reach(recovered.purged)?;
    Ok((LogStore::new(wal, recovered, dir.gauge.clone()), snapshots, incarnation))
}

/// Hands over while this manager leads with a disk that is stuck, full, or slow beside the others'. Runs as a task.
async fn leave_a_bad_disk(core: Arc<Core>) {
    let mut status = core.status.clone();
    loop {
        let Ok(term) = status.wait_for(Status::is_leader).await.map(|status| status.term) else { return };
        let since = Instant::now();
        let left = |status: &Status| !status.is_leader() || status.term != term;
        let pause = 2 * core.config.heartbeat;
        while timeout(pause, status.wait_for(left)).await.map(drop).is_err() {
            let (mine, others) = (core.disk(), core.disks_of_voters());
            let Some(to) = disk::successor(mine, &others, since.elapsed()) else { continue };
            tracing::warn!(%to, ?mine, "handing over because of the disk");
            if let Err(error) = core.transfer(Some(to)).await {
                tracing::warn!(%error, "cannot hand over");
            }
        }
    }
}

/// The entries that stay even when they are large.
const LARGE_KEPT: u64 = 1000;

/// Compacts the log before its time while its entries, which are all in memory, are large. Runs as a task.
async fn limit_memory(core: Arc<Core>) {
    let mut status = core.status.clone();
    let too_much = |_: &Status| core.store.bytes() as u64 > core.config.log_bytes_max;
    loop {
        let Ok(now) = status.wait_for(too_much).await.map(|status| status.clone()) else { return };
        let keep = core.config.keep_entries.min(LARGE_KEPT);
        let upto = now.applied.saturating_sub(keep).min(now.snapshot);
        let trigger = core.raft.trigger();
        let asked = match upto > now.purged {
            true => trigger.purge_log(upto).await,
            false if now.applied > now.snapshot + keep => trigger.snapshot().await,
            false => Ok(()),
        };
        if asked.is_err() || status.changed().await.is_err() {
            return;
        }
    }
}

impl Core {
    pub(crate) fn status(&self) -> Status {
        let mut status = self.status.borrow().clone();
        match status.role {
            Role::Leader if status.voters.len() == 1 => {
                status.quorum_heard_at = Some(std::time::Instant::now())
            }
            Role::Leader => {}
            _ => status.quorum_heard_at = self.ties.heard.at(),
        }
        status
    }

    pub(crate) async fn wait(
        &self,
        patience: Duration,
        wanted: impl FnMut(&Status) -> bool,
    ) -> Option<Status> {
        let mut status = self.status.clone();
        let found = timeout(patience, status.wait_for(wanted)).await.ok()?.ok()?;
        Some(found.clone())
    }

    async fn propose(&self, command: Bytes) -> Result<Proposed, ProposeError> {
        if command.len() > COMMAND_BYTES_MAX {
            return Err(ProposeError::TooLarge { bytes: command.len() });
        }
        let deadline = Instant::now() + self.config.patience;
        self.room().await?;
        let _turn = match self.proposals.try_acquire() {
            Ok(turn) => turn,
            Err(_) => match tokio::time::timeout_at(deadline, self.proposals.acquire()).await {
                Ok(Ok(turn)) => turn,
                Ok(Err(_)) => return Err(ProposeError::Stopped("it was shut down".into())),
                Err(_) => return Err(ProposeError::Unavailable),
            },
        };
        let mut write = std::pin::pin!(self.raft.client_write(Command(command)));
        let written = loop {
            let pause = deadline.min(Instant::now() + self.config.election_max);
            match tokio::time::timeout_at(pause, &mut write).await {
                Ok(written) => break written,
                Err(_) if Instant::now() >= deadline => {
                    let patience = self.config.patience;
                    let reason = format!("no majority confirmed it within {patience:?}");
                    return Err(ProposeError::Unknown(reason));
                }
                Err(_) if self.quorum_is_lost() => {
                    let reason = "a majority of the managers went out of reach".into();
                    return Err(ProposeError::Unknown(reason));
                }
                Err(_) => {}
            }
        };
        match written {
            Ok(written) => Ok(Proposed { index: written.log_id.index, answer: written.data }),
            Err(RaftError::APIError(ClientWriteError::ForwardToLeader(forward))) => {
                Err(match self.elsewhere(&forward) {
                    Some(leader) => ProposeError::NotLeader { leader },
                    None => ProposeError::Unavailable,
                })
            }
            Err(RaftError::APIError(error)) => Err(ProposeError::Unknown(error.to_string())),
            Err(RaftError::Fatal(error)) => Err(self.stopped(error)),
        }
    }

    /// Without room, it is for another to lead; and where nobody else can, nothing is taken.
    async fn room(&self) -> Result<(), ProposeError> {
        let full = || self.full().filter(|_| self.status.borrow().is_leader());
        if full().is_none() {
            return Ok(());
        }
        let patience = self.config.patience.min(2 * self.config.election_max);
        self.wait(patience, |status| !status.is_leader()).await;
        full().map_or(Ok(()), |full| Err(ProposeError::Full(full)))
    }

    pub(crate) fn full(&self) -> Option<Full> {
        #[cfg(feature = "sim")]
        if self.config.sim.disk.as_ref().is_some_and(crate::sim::Disk::is_full) {
            return Some(Full { dir: self.config.dir.clone(), wanted: self.config.segment_bytes });
        }
        self.store.gauge().full()
    }

    pub(crate) fn disk(&self) -> Disk {
        Disk { full: self.full().is_some(), ..self.store.gauge().disk() }
    }

    /// Of the other voters that are heard.
    fn disks_of_voters(&self) -> BTreeMap<RaftId, Disk> {
        let metrics = self.raft.metrics().current();
        let heard = self.heard_within(&metrics, self.config.election_max);
        let disks = self.ties.disks.lock().expect("nothing panics while it holds this lock");
        let voters = metrics.membership_config.voter_ids().filter(|id| heard.contains(id)).map(RaftId);
        voters.map(|id| (id, disks.get(&id).copied().unwrap_or_default())).collect()
    }

    /// Whether this leader has not heard from a quorum for so long that it will hardly do so in time.
    fn quorum_is_lost(&self) -> bool {
        let metrics = self.raft.metrics().current();
        let patience = self.config.quorum_patience();
        let silent = metrics.last_quorum_acked.is_some_and(|at| at.elapsed() > patience);
        // Alone, it is its own quorum, and may take its time.
        silent && metrics.state.is_leader() && metrics.membership_config.voter_ids().count() > 1
    }

    /// Had it stopped before, nothing was proposed; else nobody knows.
    fn stopped(&self, error: impl Display) -> ProposeError {
        match self.status.borrow().role {
            Role::Stopped => ProposeError::Stopped(error.to_string()),
            _ => ProposeError::Unknown(error.to_string()),
        }
    }

    /// Whom openraft points to instead of us; none if we lead, without a quorum.
    pub(crate) fn elsewhere(&self, forward: &ForwardToLeader<Types>) -> Option<Option<Member>> {
        let me = self.config.id;
        match (&forward.leader_id, &forward.leader_node) {
            (Some(id), Some(contact)) if *id != me.0 => Some(Some(Member::new(*id, contact))),
            _ if forward.reason == ForwardReason::LeaseExpired => None,
            _ => Some(self.status.borrow().leader.clone().filter(|leader| leader.id != me)),
        }
    }

    pub(crate) async fn transfer(&self, to: Option<RaftId>) -> Result<Member, TransferError> {
        let status = self.status();
        if !status.is_leader() {
            return Err(TransferError::NotLeader { leader: status.leader });
        }
        let to = match to {
            Some(to) if to == self.config.id => return Err(TransferError::NoCandidate),
            Some(to) if !status.voters.iter().any(|voter| voter.id == to) => {
                return Err(TransferError::NotVoter(to));
            }
            Some(to) => to,
            None => {
                self.wait_to_hear(|metrics| self.successor(metrics).is_some()).await;
                let metrics = self.raft.metrics().current();
                self.successor(&metrics).ok_or(TransferError::NoCandidate)?
            }
        };
        let asked = self.raft.trigger().transfer_leader(to.0).await;
        asked.map_err(|error| TransferError::Stopped(error.to_string()))?;
        let patience = self.config.quorum_patience();
        let me = self.config.id;
        let others = |status: &Status| status.leader.as_ref().is_some_and(|leader| leader.id != me);
        let status = self.wait(patience, others).await;
        status.and_then(|status| status.leader).ok_or(TransferError::TimedOut(patience))
    }

    /// The voter that would lose the least time to take over.
    fn successor(&self, metrics: &Metrics) -> Option<RaftId> {
        let replication = metrics.replication.as_ref()?;
        let reachable = self.heard_within(metrics, self.config.election_max);
        metrics
            .membership_config
            .voter_ids()
            .filter(|id| reachable.contains(id))
            .max_by_key(|id| replication.get(id).copied().flatten())
            .map(RaftId)
    }

    /// Gives the members time to be heard from: openraft forgets when it last was each time the membership changes.
    pub(crate) async fn wait_to_hear(&self, enough: impl Fn(&Metrics) -> bool) -> bool {
        let deadline = Instant::now() + self.config.election_max + self.config.heartbeat;
        let mut metrics = self.raft.metrics();
        loop {
            if enough(&metrics.current()) {
                return true;
            }
            if !matches!(tokio::time::timeout_at(deadline, metrics.news()).await, Ok(true)) {
                return false;
            }
        }
    }

    /// The other members that acknowledged something this leader sent within that time.
    pub(crate) fn heard_within(&self, metrics: &Metrics, time: Duration) -> BTreeSet<u64> {
        let heard = metrics.heartbeat.iter().flatten();
        heard
            .filter(|(id, at)| **id != self.config.id.0 && at.is_some_and(|at| at.elapsed() < time))
            .map(|(id, _)| *id)
            .collect()
    }

    async fn stop(&self) {
        self.proposals.close();
        if let Err(error) = self.raft.shutdown().await {
            tracing::error!(%error, "the consensus ended badly");
        }
        let store = self.store.clone();
        if let Err(error) = off_thread(move || store.close()).await {
            tracing::error!(%error, "the log could not be closed");
        }
        self.snapshots.close();
        self.publisher.send_modify(|status| {
            status.role = Role::Stopped;
            status.leader = None;
        });
    }
}
