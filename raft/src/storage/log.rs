//! openraft's view of the log: entries in memory for reading, the write-ahead log for keeps.

use std::collections::VecDeque;
use std::fmt::Debug;
use std::io;
use std::ops::{Bound, RangeBounds};
use std::sync::{Arc, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::Duration;

use openraft::OptionalSend;
use openraft::storage::{IOFlushed, LogState, RaftLogReader, RaftLogStorage};
use tokio::sync::oneshot;

use super::wal::{Done, Op, Recovered, Wal};
use crate::disk::Gauge;
use crate::format::payload_len;
use crate::types::{Entry, LogId, Types, Vote};

/// How many payload bytes one message to a follower carries, unless a single entry is larger.
const MESSAGE_BYTES: usize = 1 << 20;
/// How long the mark of what is committed waits to be written: it only makes the next start faster, and a write of its
/// own for each would wake the writer once more for every proposal.
const MARK_PAUSE: Duration = Duration::from_millis(100);

/// A handle to the log; clones share it.
#[derive(Clone)]
pub(crate) struct LogStore(Arc<Shared>);

struct Shared {
    memory: RwLock<Memory>,
    wal: Wal,
    gauge: Gauge,
}

/// **Invariant:** `entries` are consecutive, and the first follows `purged`. (The first of all has index 0; that it
/// may be another is for openraft's test suite alone.)
struct Memory {
    vote: Option<Vote>,
    committed: Option<LogId>,
    /// The mark of that is still to be written, and will be.
    unmarked: bool,
    purged: Option<LogId>,
    entries: VecDeque<Entry>,
    bytes: usize,
}

impl Memory {
    fn first(&self) -> u64 {
        match self.purged {
            Some(id) => id.index + 1,
            None => self.entries.front().map_or(0, |entry| entry.log_id.index),
        }
    }

    /// The index the next entry must have.
    fn next(&self) -> Option<u64> {
        self.last().map(|id| id.index + 1)
    }

    fn last(&self) -> Option<LogId> {
        self.entries.back().map(|entry| entry.log_id).or(self.purged)
    }

    fn range(&self, range: &impl RangeBounds<u64>) -> std::ops::Range<usize> {
        let first = self.first();
        let start = match range.start_bound() {
            Bound::Included(index) => *index,
            Bound::Excluded(index) => index + 1,
            Bound::Unbounded => 0,
        };
        let end = match range.end_bound() {
            Bound::Included(index) => index + 1,
            Bound::Excluded(index) => *index,
            Bound::Unbounded => u64::MAX,
        };
        let len = self.entries.len() as u64;
        let start = start.saturating_sub(first).min(len);
        let end = end.saturating_sub(first).min(len);
        start as usize..end.max(start) as usize
    }
}

impl LogStore {
    pub(crate) fn new(wal: Wal, recovered: Recovered, gauge: Gauge) -> Self {
        let Recovered { vote, committed, purged, mut entries, .. } = recovered;
        let first = purged.map_or(0, |id| id.index + 1);
        while entries.front().is_some_and(|entry| entry.log_id.index < first) {
            entries.pop_front();
        }
        let bytes = entries.iter().map(payload_len).sum();
        let memory = Memory { vote, committed, unmarked: false, purged, entries, bytes };
        Self(Arc::new(Shared { memory: RwLock::new(memory), wal, gauge }))
    }

    /// The payload bytes held in memory.
    pub(crate) fn bytes(&self) -> usize {
        self.read().bytes
    }

    /// How the disk fares that the log is on.
    pub(crate) fn gauge(&self) -> &Gauge {
        &self.0.gauge
    }

    /// The last entry of a term before `term`.
    pub(crate) fn last_before(&self, term: u64) -> Option<LogId> {
        let memory = self.read();
        let end = memory.entries.partition_point(|entry| entry.log_id.leader_id.term < term);
        let last = end.checked_sub(1).and_then(|at| memory.entries.get(at));
        last.map(|entry| entry.log_id)
    }

    /// Syncs, ends the writer and lets the files go; every later write fails. Blocks.
    pub(crate) fn close(&self) {
        self.0.mark();
        self.0.wal.close();
    }

    fn read(&self) -> RwLockReadGuard<'_, Memory> {
        self.0.memory.read().expect("nothing panics while it holds this lock")
    }

    fn write(&self) -> RwLockWriteGuard<'_, Memory> {
        self.0.write()
    }
}

impl Shared {
    fn write(&self) -> RwLockWriteGuard<'_, Memory> {
        self.memory.write().expect("nothing panics while it holds this lock")
    }

    /// Writes what is committed, unless that is written.
    fn mark(&self) {
        let mut memory = self.write();
        if std::mem::take(&mut memory.unmarked) {
            self.wal.push(Op::Committed(memory.committed));
        }
    }
}

async fn told(answer: oneshot::Receiver<io::Result<()>>) -> io::Result<()> {
    answer.await.unwrap_or_else(|_| Err(io::Error::other("the log's writer ended without an answer")))
}

impl RaftLogReader<Types> for LogStore {
    async fn try_get_log_entries<R>(&mut self, range: R) -> io::Result<Vec<Entry>>
    where
        R: RangeBounds<u64> + Clone + Debug + OptionalSend,
    {
        let memory = self.read();
        Ok(memory.entries.range(memory.range(&range)).cloned().collect())
    }

    async fn read_vote(&mut self) -> io::Result<Option<Vote>> {
        Ok(self.read().vote)
    }

    async fn limited_get_log_entries(&mut self, start: u64, end: u64) -> io::Result<Vec<Entry>> {
        let memory = self.read();
        let mut room = MESSAGE_BYTES;
        let mut entries = Vec::new();
        for entry in memory.entries.range(memory.range(&(start..end))) {
            let len = payload_len(entry);
            if len > room && !entries.is_empty() {
                break;
            }
            room = room.saturating_sub(len);
            entries.push(entry.clone());
        }
        Ok(entries)
    }
}

// Each write changes the memory and queues for the disk under one lock, so that both see one order.
impl RaftLogStorage<Types> for LogStore {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> io::Result<LogState<Types>> {
        let memory = self.read();
        Ok(LogState { last_purged_log_id: memory.purged, last_log_id: memory.last() })
    }

    async fn get_log_reader(&mut self) -> Self {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote) -> io::Result<()> {
        let (done, answer) = oneshot::channel();
        {
            let mut memory = self.write();
            memory.vote = Some(*vote);
            self.0.wal.push(Op::Vote { vote: *vote, done: Done::Told(done) });
        }
        told(answer).await
    }

    async fn save_committed(&mut self, committed: Option<LogId>) -> io::Result<()> {
        let mut memory = self.write();
        if memory.committed != committed {
            memory.committed = committed;
            if !std::mem::replace(&mut memory.unmarked, true) {
                let shared = Arc::downgrade(&self.0);
                tokio::spawn(async move {
                    tokio::time::sleep(MARK_PAUSE).await;
                    if let Some(shared) = shared.upgrade() {
                        shared.mark();
                    }
                });
            }
        }
        Ok(())
    }

    async fn read_committed(&mut self) -> io::Result<Option<LogId>> {
        let memory = self.read();
        // The mark may have outlived entries that were truncated or replaced by a snapshot.
        Ok(memory.committed.min(memory.last()))
    }

    async fn append<I>(&mut self, entries: I, callback: IOFlushed<Types>) -> io::Result<()>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let entries: Vec<Entry> = entries.into_iter().collect();
        let mut memory = self.write();
        let first = entries.first().map_or(0, |entry| entry.log_id.index);
        let next = memory.next().unwrap_or(first);
        if let Some((entry, hole)) =
            entries.iter().zip(next..).find(|(entry, next)| entry.log_id.index != *next)
        {
            let index = entry.log_id.index;
            return Err(io::Error::other(format!("entry {index} would leave a hole at {hole}")));
        }
        memory.bytes += entries.iter().map(payload_len).sum::<usize>();
        memory.entries.extend(entries.iter().cloned());
        self.0.wal.push(Op::Append { entries, done: Done::Flushed(callback) });
        Ok(())
    }

    async fn truncate_after(&mut self, last: Option<LogId>) -> io::Result<()> {
        let (done, answer) = oneshot::channel();
        {
            let mut memory = self.write();
            let next = last.map_or(0, |id| id.index + 1);
            while memory.entries.back().is_some_and(|entry| entry.log_id.index >= next) {
                let entry = memory.entries.pop_back().expect("there is a last one");
                memory.bytes -= payload_len(&entry);
            }
            self.0.wal.push(Op::Truncate { after: last, done: Done::Told(done) });
        }
        told(answer).await
    }

    async fn purge(&mut self, upto: LogId) -> io::Result<()> {
        let (done, answer) = oneshot::channel();
        {
            let mut memory = self.write();
            if memory.purged >= Some(upto) {
                return Ok(());
            }
            while memory.entries.front().is_some_and(|entry| entry.log_id.index <= upto.index) {
                let entry = memory.entries.pop_front().expect("there is a first one");
                memory.bytes -= payload_len(&entry);
            }
            memory.purged = Some(upto);
            self.0.wal.push(Op::Purge { upto, done: Done::Told(done) });
        }
        told(answer).await
    }
}
