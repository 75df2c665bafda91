//! The write-ahead log: votes, entries and bookkeeping, in the order they were given, durable when they say so.
//!
//! One thread writes. Whatever is queued while it waits for the disk goes out together with one `fdatasync`.
//! Segments are filled with zeros before their turn comes, so that a sync need not wait for the file system's
//! own journal, and that no record ever meets a full disk: when there is no room for the next segment, a whole one
//! is still to be written. After that the writer waits for room, and those who wait for it with it.
//!
//! A segment is a header of [`HEADER_BYTES`] and then frames: magic, length of the body, number of the frame,
//! how much of the segment was durable when it was written, checksum, and the sealed body. The first frame
//! carries the state at that point, so older segments can be deleted whole.
//!
//! **Invariant:** a frame that ends before some later frame's durable mark was synced, so if it is unreadable
//! the file is damaged and must not be used. An unreadable frame that no later frame vouches for was being
//! written when the machine stopped: nobody was told it is there, and it is cut off.

#[cfg(any(test, feature = "fuzz"))]
pub(crate) mod fuzz;
mod recover;
mod segment;
#[cfg(feature = "sim")]
mod simulated;
mod spares;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use openraft::storage::IOFlushed;
use prost::Message;
use tokio::sync::oneshot;

use self::recover::{Old, recover};
use self::segment::{
    FRAME_BYTES, Forced, HEADER_BYTES, Header, Kind, MaybeLogId, Record, Segment, State, segment_path,
};
use self::spares::{SPARE, Spares};
use super::Identity;
use super::medium::{Media, Medium};
use super::seal::{MasterKey, TAG_BYTES, random, sync_dir};
use crate::format::{LogIdPb, VotePb};
use crate::point::reach;
use crate::types::{Entry, LogId, Payload, Types, Vote};
use crate::{Incarnation, OpenError};

pub(crate) use self::recover::Recovered;
pub(crate) use self::segment::segments;

/// How much is gathered for one write.
const BATCH_BYTES: usize = 4 << 20;

/// What is told when an operation has reached the disk.
pub(crate) enum Done {
    Flushed(IOFlushed<Types>),
    Told(oneshot::Sender<io::Result<()>>),
}

impl Done {
    fn tell(self, result: io::Result<()>) {
        match self {
            Done::Flushed(flushed) => flushed.io_completed(result),
            Done::Told(sender) => drop(sender.send(result)),
        }
    }
}

/// What can be asked of the log.
pub(crate) enum Op {
    Append {
        entries: Vec<Entry>,
        done: Done,
    },
    Vote {
        vote: Vote,
        done: Done,
    },
    /// Remembered for a faster restart; not synced.
    Committed(Option<LogId>),
    /// Forget what comes after `after`.
    Truncate {
        after: Option<LogId>,
        done: Done,
    },
    /// Forget what comes up to and with `upto`, which a durable snapshot covers.
    Purge {
        upto: LogId,
        done: Done,
    },
    /// Begins a new life of the cluster: its number, a vote for ourselves, and the entry that makes us the only
    /// member.
    Force {
        incarnation: Incarnation,
        vote: Vote,
        entry: Entry,
        done: Done,
    },
    /// The last one: syncs, marks the end and lets the files go.
    Close,
}

/// The handle to the writer thread.
pub(crate) struct Wal {
    ops: Sender<Op>,
    thread: Mutex<Option<JoinHandle<()>>>,
    /// Set when the writer need not wait for room any more.
    closing: Arc<AtomicBool>,
    /// In place of the thread.
    #[cfg(feature = "sim")]
    simulated: Option<simulated::Simulated>,
    #[cfg(test)]
    pub(crate) fail_sync: Arc<std::sync::atomic::AtomicBool>,
}

impl Wal {
    /// Reads what is in `dir` and starts writing behind it, in a new segment. A log that begins here is of the given
    /// incarnation.
    pub(crate) fn open(
        dir: &Path,
        identity: Identity,
        key: Arc<MasterKey>,
        segment_bytes: u64,
        incarnation: Incarnation,
        media: &Media,
    ) -> Result<(Self, Recovered), OpenError> {
        let (mut recovered, old) = recover(dir, identity, &key)?;
        if old.is_empty() {
            recovered.incarnation = incarnation;
        }

        let spares = Spares::new(dir, segment_bytes, media.gauge.clone())
            .map_err(|error| OpenError::io(dir, error))?;
        let closing = spares.closing();
        let mut writer = Writer {
            dir: dir.to_owned(),
            identity,
            key,
            segment_bytes,
            media: media.clone(),
            spares,
            old,
            state: State {
                vote: recovered.vote.map(VotePb::from),
                committed: recovered.committed.map(LogIdPb::from),
                purged: recovered.purged.map(LogIdPb::from),
                last: recovered.last.map(LogIdPb::from),
                next: recovered.next,
                incarnation: recovered.incarnation.0,
            },
            segment: None,
            buffer: Vec::with_capacity(64 << 10),
            waiting: Vec::new(),
            dirty: false,
            failed: None,
            #[cfg(test)]
            fail_sync: Arc::default(),
        };
        #[cfg(test)]
        let fail_sync = writer.fail_sync.clone();
        writer.roll().map_err(|error| OpenError::io(dir, error))?;

        let (ops, queue) = channel();
        #[cfg(feature = "sim")]
        if let Some(disk) = media.sim.disk.clone() {
            let simulated = simulated::Simulated::start(writer, disk, media.sim.clone());
            let wal = Self {
                ops,
                thread: Mutex::new(None),
                closing,
                simulated: Some(simulated),
                #[cfg(test)]
                fail_sync,
            };
            return Ok((wal, recovered));
        }
        let thread = std::thread::Builder::new()
            .name("raft-wal".into())
            .spawn(move || writer.run(&queue))
            .map_err(|error| OpenError::io(dir, error))?;
        let wal = Self {
            ops,
            thread: Mutex::new(Some(thread)),
            closing,
            #[cfg(feature = "sim")]
            simulated: None,
            #[cfg(test)]
            fail_sync,
        };
        Ok((wal, recovered))
    }

    /// Queues an operation. If the writer is gone, whoever waits for it is told.
    pub(crate) fn push(&self, op: Op) {
        #[cfg(feature = "sim")]
        if let Some(simulated) = &self.simulated {
            return simulated.push(op);
        }
        if let Err(unsent) = self.ops.send(op) {
            refuse(unsent.0, closed);
        }
    }

    /// Writes what is queued and ends the thread. Blocks until the disk has answered.
    pub(crate) fn close(&self) {
        #[cfg(feature = "sim")]
        if let Some(simulated) = &self.simulated {
            return simulated.close();
        }
        let thread = self.thread.lock().expect("nothing panics while it holds this lock").take();
        if let Some(thread) = thread {
            self.closing.store(true, Ordering::Relaxed);
            drop(self.ops.send(Op::Close));
            if thread.join().is_err() {
                tracing::error!("the log's writer panicked");
            }
        }
    }
}

impl Drop for Wal {
    fn drop(&mut self) {
        self.close();
    }
}

fn closed() -> io::Error {
    io::Error::other("the log is closed")
}

fn refuse(op: Op, error: impl Fn() -> io::Error) {
    match op {
        Op::Append { done, .. }
        | Op::Vote { done, .. }
        | Op::Truncate { done, .. }
        | Op::Force { done, .. }
        | Op::Purge { done, .. } => done.tell(Err(error())),
        Op::Committed(_) | Op::Close => {}
    }
}

struct Writer {
    dir: PathBuf,
    identity: Identity,
    key: Arc<MasterKey>,
    segment_bytes: u64,
    media: Media,
    spares: Spares,
    old: VecDeque<Old>,
    state: State,
    segment: Option<Segment>,
    /// Frames that are sealed and not yet written.
    buffer: Vec<u8>,
    waiting: Vec<Done>,
    /// Something in the buffer or the file must be synced before those who wait are told.
    dirty: bool,
    failed: Option<String>,
    #[cfg(test)]
    fail_sync: Arc<std::sync::atomic::AtomicBool>,
}

impl Writer {
    fn run(mut self, queue: &Receiver<Op>) {
        while let Ok(first) = queue.recv() {
            let mut next = Some(first);
            let mut closing = false;
            while let Some(op) = next.take() {
                if matches!(op, Op::Close) {
                    closing = true;
                    break;
                }
                self.take(op);
                if self.buffer.len() < BATCH_BYTES {
                    next = queue.try_recv().ok();
                }
            }
            let flushed = self.flush();
            self.settle(flushed);
            if closing {
                break;
            }
        }
        self.finish();
        drop(self.spares);
        while let Ok(op) = queue.try_recv() {
            refuse(op, closed);
        }
    }

    fn take(&mut self, op: Op) {
        if let Some(reason) = &self.failed {
            return refuse(op, || io::Error::other(reason.clone()));
        }
        // Whoever waits is noted after its records are in the buffer: putting them there may flush.
        let (done, taken) = match op {
            Op::Append { entries, done } => (Some(done), self.append(&entries)),
            Op::Vote { vote, done } => {
                let put = reach("log.vote")
                    .and_then(|()| self.put(Kind::Vote(vote.into())))
                    .and_then(|()| reach("log.voted"));
                self.state.vote = Some(vote.into());
                (Some(done), put)
            }
            Op::Committed(id) => {
                let id = id.map(LogIdPb::from);
                let put = self.put(Kind::Committed(MaybeLogId { id })).and_then(|()| reach("log.committed"));
                self.state.committed = id;
                (None, put)
            }
            Op::Truncate { after, done } => {
                let put = reach("log.truncate")
                    .and_then(|()| self.put(Kind::Truncate(MaybeLogId { id: after.map(LogIdPb::from) })))
                    .and_then(|()| reach("log.truncated"));
                self.state.next = after.map_or(0, |id| id.index + 1);
                self.state.last = after.map(LogIdPb::from);
                (Some(done), put)
            }
            Op::Purge { upto, done } => (Some(done), self.purge(upto)),
            Op::Force { incarnation, vote, entry, done } => {
                (Some(done), self.force(incarnation, vote, &entry))
            }
            Op::Close => unreachable!("the caller ends its loop on it"),
        };
        if let Some(done) = done {
            self.dirty = true;
            self.waiting.push(done);
        }
        self.settle(taken);
    }

    fn append(&mut self, entries: &[Entry]) -> io::Result<()> {
        reach("log.append")?;
        for entry in entries {
            self.put(Kind::Entry(entry.into()))?;
            self.appended(entry.log_id);
            if let Payload::Membership(membership) = &entry.payload {
                let joint = membership.get_joint_config().len() > 1;
                reach(if joint { "member.joint" } else { "member.uniform" })?;
            }
        }
        reach("log.appended")
    }

    fn appended(&mut self, id: LogId) {
        self.state.next = id.index + 1;
        self.state.last = Some(id.into());
        let segment = self.segment.as_mut().expect("put leaves a segment");
        segment.max_index = segment.max_index.max(Some(id.index));
    }

    fn force(&mut self, incarnation: Incarnation, vote: Vote, entry: &Entry) -> io::Result<()> {
        let forced = Forced { incarnation: incarnation.0, vote: vote.into(), entry: entry.into() };
        self.put(Kind::Forced(forced))?;
        self.state.incarnation = incarnation.0;
        self.state.vote = Some(vote.into());
        self.appended(entry.log_id);
        Ok(())
    }

    fn purge(&mut self, upto: LogId) -> io::Result<()> {
        reach("log.purge")?;
        self.put(Kind::Purge(upto.into()))?;
        self.state.purged = Some(upto.into());
        if upto.index + 1 > self.state.next {
            self.state.next = upto.index + 1;
            self.state.last = Some(upto.into());
        }
        let covered = |old: &Old| old.max_index.is_none_or(|index| index <= upto.index);
        if !self.old.front().is_some_and(covered) {
            return Ok(());
        }
        // Without the mark on disk, the remaining segments would seem to lack their beginning.
        self.dirty = true;
        self.flush()?;
        reach("log.purge.marked")?;
        while let Some(old) = self.old.pop_front_if(|old| covered(old)) {
            std::fs::remove_file(segment_path(&self.dir, old.number))?;
            reach("log.purge.removed")?;
        }
        sync_dir(&self.dir)?;
        reach("log.purged")
    }

    /// Seals a record into the buffer, beginning a new segment if it does not fit into this one.
    fn put(&mut self, kind: Kind) -> io::Result<()> {
        let record = Record { kind: Some(kind) };
        let len = FRAME_BYTES + record.encoded_len() + TAG_BYTES;
        let segment = self.segment.as_ref().expect("open begins with a segment");
        let end = segment.end + (self.buffer.len() + len) as u64;
        if segment.frames > 1 && end > self.segment_bytes {
            self.dirty = true;
            self.flush()?;
            self.roll()?;
        }
        let segment = self.segment.as_mut().expect("roll leaves a segment");
        segment.seal(&record, &mut self.buffer);
        Ok(())
    }

    /// Writes the buffer.
    fn write(&mut self) -> io::Result<()> {
        let segment = self.segment.as_mut().expect("open begins with a segment");
        if !self.buffer.is_empty() {
            reach("log.write")?;
            segment.file.write_all_at(&self.buffer, segment.end)?;
            segment.end += self.buffer.len() as u64;
            self.buffer.clear();
            if self.buffer.capacity() > 2 * BATCH_BYTES {
                self.buffer = Vec::with_capacity(64 << 10);
            }
            reach("log.written")?;
        }
        Ok(())
    }

    /// Writes the buffer, syncs if something in it must be, and tells those who wait.
    fn flush(&mut self) -> io::Result<()> {
        self.write()?;
        if self.dirty {
            #[cfg(test)]
            if self.fail_sync.load(std::sync::atomic::Ordering::Relaxed) {
                return Err(io::Error::other("the disk is on fire"));
            }
            let segment = self.segment.as_mut().expect("open begins with a segment");
            reach("log.sync")?;
            segment.file.sync_data()?;
            reach("log.synced")?;
            segment.durable = segment.end;
            self.dirty = false;
        }
        self.acknowledge();
        Ok(())
    }

    /// Tells those who wait that it is done.
    fn acknowledge(&mut self) {
        for done in self.waiting.drain(..) {
            done.tell(Ok(()));
        }
    }

    /// After a failed write or sync nobody knows what is on the disk, so nothing more is written to it.
    fn settle(&mut self, result: io::Result<()>) {
        let Err(error) = result else { return };
        let segment = self.segment.as_ref().map_or(0, |segment| segment.number);
        let path = segment_path(&self.dir, segment);
        let reason = format!("cannot write {}: {error}; the log must be opened anew", path.display());
        tracing::error!(file = %path.display(), %error, "the log cannot be written any more");
        for done in self.waiting.drain(..) {
            done.tell(Err(io::Error::new(error.kind(), reason.clone())));
        }
        self.buffer.clear();
        self.failed = Some(reason);
    }

    /// Begins the next segment. Everything before it must have been flushed.
    fn roll(&mut self) -> io::Result<()> {
        reach("log.roll")?;
        let number = match self.segment.take() {
            Some(segment) => {
                self.old.push_back(Old { number: segment.number, max_index: segment.max_index });
                segment.number + 1
            }
            None => self.old.back().map_or(1, |old| old.number + 1),
        };
        let file = Medium::new(self.spares.take()?, &self.media);
        reach("log.roll.spare")?;
        let header = Header { identity: self.identity, number, salt: random() };
        let mut segment = Segment {
            number,
            file,
            key: header.key(&self.key),
            end: HEADER_BYTES as u64,
            durable: HEADER_BYTES as u64,
            frames: 0,
            max_index: None,
        };
        let mut bytes = header.encode().to_vec();
        segment.seal(&Record { kind: Some(Kind::State(self.state)) }, &mut bytes);
        segment.file.write_all_at(&bytes, 0)?;
        reach("log.roll.header")?;
        segment.file.sync_data()?;
        reach("log.roll.synced")?;
        segment.end = bytes.len() as u64;
        segment.durable = segment.end;
        // Only a segment with a whole first frame ever gets a segment's name.
        std::fs::rename(self.dir.join(SPARE), segment_path(&self.dir, number))?;
        reach("log.roll.named")?;
        sync_dir(&self.dir)?;
        reach("log.rolled")?;
        self.spares.prepare();
        self.segment = Some(segment);
        Ok(())
    }

    /// Whether what comes next may need another segment.
    #[cfg(feature = "sim")]
    fn near_the_end(&self) -> bool {
        let used = self.segment.as_ref().map_or(0, |segment| segment.end) + self.buffer.len() as u64;
        used + self.segment_bytes / 8 > self.segment_bytes
    }

    /// Marks the end, by which damage to any record before it can be told from a torn write.
    fn finish(&mut self) {
        if self.failed.is_some() {
            return;
        }
        self.dirty = true;
        let closed = self.flush().and_then(|()| {
            self.put(Kind::Closed(true))?;
            self.dirty = true;
            self.flush()
        });
        self.settle(closed);
    }
}
