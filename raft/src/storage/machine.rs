//! openraft's view of the state machine: applies entries in batches, and keeps its snapshots as files.

use std::io::{self, Write};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, MutexGuard};

use bytes::Bytes;
use futures_util::{Stream, StreamExt};
use openraft::OptionalSend;
use openraft::storage::{EntryResponder, RaftSnapshotBuilder, RaftStateMachine, Snapshot};
use tokio::sync::watch;

use super::snapshot::{SnapshotFile, Snapshots};
use crate::point::reach;
use crate::types::{LogId, Payload, SnapshotMeta, StoredMembership, Types};
use crate::{Entry, Frozen, StateMachine};

/// How many entries are applied at most before those who wait for them are answered.
const BATCH_ENTRIES: usize = 1024;

/// A handle to the state machine; clones share it.
#[derive(Clone)]
pub(crate) struct Machine {
    shared: Arc<Mutex<State>>,
    /// How far `shared` is, for those who wait for it.
    applied: Arc<watch::Sender<u64>>,
    snapshots: Snapshots,
}

struct State {
    machine: Box<dyn StateMachine>,
    applied: Option<LogId>,
    membership: StoredMembership,
    /// A panic left the machine in a state nobody knows.
    poisoned: bool,
}

impl Machine {
    pub(crate) fn new(machine: Box<dyn StateMachine>, snapshots: Snapshots) -> Self {
        let state =
            State { machine, applied: None, membership: StoredMembership::default(), poisoned: false };
        Self { shared: Arc::new(Mutex::new(state)), applied: Arc::default(), snapshots }
    }

    /// The index of the last entry that was applied, as soon as it is.
    pub(crate) fn applied(&self) -> watch::Receiver<u64> {
        self.applied.subscribe()
    }

    fn reached(&self, id: Option<LogId>) {
        self.applied.send_replace(id.map_or(0, |id| id.index));
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // A panic inside is caught where it can happen, and remembered.
        self.shared.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

impl State {
    fn guarded<T>(&mut self, what: &str, act: impl FnOnce(&mut dyn StateMachine) -> T) -> io::Result<T> {
        if self.poisoned {
            return Err(io::Error::other("the state machine panicked before; the log must be opened anew"));
        }
        let machine = &mut *self.machine;
        catch_unwind(AssertUnwindSafe(|| act(machine))).map_err(|_| {
            self.poisoned = true;
            io::Error::other(format!("the state machine panicked while it was to {what}"))
        })
    }

    /// Applies a batch and answers what is to be told to the proposer of each entry.
    fn apply(&mut self, batch: Vec<crate::types::Entry>) -> io::Result<Vec<Bytes>> {
        let count = batch.len();
        let mut answers = vec![Bytes::new(); count];
        let mut places = Vec::with_capacity(count);
        let mut entries = Vec::with_capacity(count);
        let mut applied = self.applied;
        let mut membership = None;
        for (place, entry) in batch.into_iter().enumerate() {
            applied = Some(entry.log_id);
            match entry.payload {
                Payload::Blank => {}
                Payload::Normal(command) => {
                    places.push(place);
                    let (index, term) = (entry.log_id.index, entry.log_id.leader_id.term);
                    entries.push(Entry { index, term, bytes: command.0 });
                }
                Payload::Membership(new) => membership = Some(StoredMembership::new(applied, new)),
            }
        }
        if !entries.is_empty() {
            let given = self.guarded("apply entries", |machine| machine.apply(entries))?;
            if given.len() != places.len() {
                self.poisoned = true;
                return Err(io::Error::other("the state machine did not answer each entry"));
            }
            for (place, answer) in places.into_iter().zip(given) {
                answers[place] = answer;
            }
        }
        self.applied = applied;
        if let Some(membership) = membership {
            self.membership = membership;
        }
        Ok(answers)
    }
}

/// Writes one snapshot of a frozen state.
pub(crate) struct Builder {
    /// Behind a lock only because openraft wants to share builders, which it never does.
    frozen: Mutex<Option<io::Result<Box<dyn Frozen>>>>,
    meta: SnapshotMeta,
    snapshots: Snapshots,
}

impl RaftSnapshotBuilder<Types> for Builder {
    type SnapshotData = SnapshotFile;

    async fn build_snapshot(&mut self) -> io::Result<openraft::alias::SnapshotOf<Types, SnapshotFile>> {
        let frozen = self.frozen.get_mut().unwrap_or_else(std::sync::PoisonError::into_inner).take();
        let frozen = frozen.ok_or_else(|| io::Error::other("a builder builds once"))??;
        let (meta, snapshots) = (self.meta.clone(), self.snapshots.clone());
        let file = blocking(move || {
            let mut writer = snapshots.create_patiently(meta)?;
            frozen.write(&mut writer)?;
            writer.flush()?;
            snapshots.adopt(writer.finish()?)
        })
        .await?;
        Ok(Snapshot { meta: file.meta.clone(), snapshot: file })
    }
}

impl RaftStateMachine<Types> for Machine {
    type SnapshotData = SnapshotFile;
    type SnapshotBuilder = Builder;

    async fn applied_state(&mut self) -> io::Result<(Option<LogId>, StoredMembership)> {
        let state = self.state();
        Ok((state.applied, state.membership.clone()))
    }

    async fn apply<S>(&mut self, entries: S) -> io::Result<()>
    where
        S: Stream<Item = io::Result<EntryResponder<Types>>> + Unpin + OptionalSend,
    {
        let mut batches = entries.ready_chunks(BATCH_ENTRIES);
        while let Some(batch) = batches.next().await {
            let mut entries = Vec::with_capacity(batch.len());
            let mut responders = Vec::with_capacity(batch.len());
            for item in batch {
                let (entry, responder) = item?;
                entries.push(entry);
                responders.push(responder);
            }
            reach("apply")?;
            let (answers, applied) = {
                let mut state = self.state();
                (state.apply(entries)?, state.applied)
            };
            self.reached(applied);
            reach("applied")?;
            for (responder, answer) in responders.into_iter().zip(answers) {
                if let Some(responder) = responder {
                    responder.send(answer);
                }
            }
        }
        Ok(())
    }

    async fn get_snapshot_builder(&mut self) -> Builder {
        let mut state = self.state();
        let meta = SnapshotMeta { last_log_id: state.applied, last_membership: state.membership.clone() };
        let frozen = state.guarded("freeze its state", |machine| machine.freeze());
        Builder { frozen: Mutex::new(Some(frozen)), meta, snapshots: self.snapshots.clone() }
    }

    async fn install_snapshot(&mut self, _: &SnapshotMeta, snapshot: SnapshotFile) -> io::Result<()> {
        let machine = self.clone();
        blocking(move || {
            let file = machine.snapshots.adopt(snapshot)?;
            let mut reader = machine.snapshots.read(&file)?;
            let index = file.meta.last_log_id.map_or(0, |id| id.index);
            let mut state = machine.state();
            reach("state.restore")?;
            let restored =
                state.guarded("restore a snapshot", |machine| machine.restore(index, &mut reader))?;
            if let Err(error) = restored {
                // It may have been half restored.
                state.poisoned = true;
                let path = file.path.display();
                return Err(io::Error::new(error.kind(), format!("cannot restore {path}: {error}")));
            }
            reach("state.restored")?;
            state.applied = file.meta.last_log_id;
            state.membership = file.meta.last_membership;
            machine.reached(state.applied);
            Ok(())
        })
        .await
    }

    async fn get_current_snapshot(
        &mut self,
    ) -> io::Result<Option<openraft::alias::SnapshotOf<Types, SnapshotFile>>> {
        Ok(self.snapshots.newest().map(|file| Snapshot { meta: file.meta.clone(), snapshot: file }))
    }
}

/// Runs what waits for the disk where it holds up nobody.
pub(crate) async fn blocking<T: Send + 'static>(
    act: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    super::off_thread(act).await.unwrap_or_else(|error| Err(io::Error::other(error)))
}
