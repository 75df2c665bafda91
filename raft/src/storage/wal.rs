//! The write-ahead log: votes, entries and bookkeeping, in the order they were given, durable when they say so.
//!
//! One thread writes. Whatever is queued while it waits for the disk goes out together with one `fdatasync`.
//! Segments are filled with zeros before their turn comes, so that a sync need not wait for the file system's
//! own journal.
//!
//! A segment is a header of [`HEADER_BYTES`] and then frames: magic, length of the body, number of the frame,
//! how much of the segment was durable when it was written, checksum, and the sealed body. The first frame
//! carries the state at that point, so older segments can be deleted whole.
//!
//! **Invariant:** a frame that ends before some later frame's durable mark was synced, so if it is unreadable
//! the file is damaged and must not be used. An unreadable frame that no later frame vouches for was being
//! written when the machine stopped: nobody was told it is there, and it is cut off.

use std::collections::VecDeque;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use bytes::Bytes;
use openraft::storage::IOFlushed;
use prost::Message;
use tokio::sync::oneshot;

use super::seal::{FileKey, MasterKey, SALT_BYTES, TAG_BYTES, random, sync_dir};
use super::{FORMAT, Identity};
use crate::OpenError;
use crate::format::{EntryPb, LogIdPb, Malformed, VotePb};
use crate::types::{Entry, LogId, Types, Vote};

const MAGIC: &[u8; 8] = b"RSWRWAL\n";
const HEADER_BYTES: usize = 64;
const FRAME_MAGIC: [u8; 4] = [0xd7, b'r', b'e', b'c'];
const FRAME_BYTES: usize = 20;
/// How much is gathered for one write.
const BATCH_BYTES: usize = 4 << 20;
const SPARE: &str = "spare.tmp";

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
    /// The last one: syncs, marks the end and lets the files go.
    Close,
}

/// What the files say.
#[derive(Debug, Default)]
pub(crate) struct Recovered {
    pub(crate) vote: Option<Vote>,
    pub(crate) committed: Option<LogId>,
    pub(crate) purged: Option<LogId>,
    /// The log id before `next`, if any entry was ever written.
    pub(crate) last: Option<LogId>,
    pub(crate) entries: VecDeque<Entry>,
    /// The index the next entry will have.
    next: u64,
    began: bool,
}

/// The handle to the writer thread.
pub(crate) struct Wal {
    ops: Sender<Op>,
    thread: Mutex<Option<JoinHandle<()>>>,
    #[cfg(test)]
    pub(crate) fail_sync: Arc<std::sync::atomic::AtomicBool>,
}

impl Wal {
    /// Reads what is in `dir` and starts writing behind it, in a new segment.
    pub(crate) fn open(
        dir: &Path,
        identity: Identity,
        key: Arc<MasterKey>,
        segment_bytes: u64,
    ) -> Result<(Self, Recovered), OpenError> {
        match std::fs::remove_file(dir.join(SPARE)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(OpenError::io(&dir.join(SPARE), error));
            }
            _ => {}
        }
        let (recovered, old) = recover(dir, identity, &key)?;

        let spares = Spares::new(dir, segment_bytes).map_err(|error| OpenError::io(dir, error))?;
        let mut writer = Writer {
            dir: dir.to_owned(),
            identity,
            key,
            segment_bytes,
            spares,
            old,
            state: State {
                vote: recovered.vote.map(VotePb::from),
                committed: recovered.committed.map(LogIdPb::from),
                purged: recovered.purged.map(LogIdPb::from),
                last: recovered.last.map(LogIdPb::from),
                next: recovered.next,
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
        let thread = std::thread::Builder::new()
            .name("raft-wal".into())
            .spawn(move || writer.run(&queue))
            .map_err(|error| OpenError::io(dir, error))?;
        let wal = Self {
            ops,
            thread: Mutex::new(Some(thread)),
            #[cfg(test)]
            fail_sync,
        };
        Ok((wal, recovered))
    }

    /// Queues an operation. If the writer is gone, whoever waits for it is told.
    pub(crate) fn push(&self, op: Op) {
        if let Err(unsent) = self.ops.send(op) {
            refuse(unsent.0, closed);
        }
    }

    /// Writes what is queued and ends the thread. Blocks until the disk has answered.
    pub(crate) fn close(&self) {
        let thread = self.thread.lock().expect("nothing panics while it holds this lock").take();
        if let Some(thread) = thread {
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
        | Op::Purge { done, .. } => done.tell(Err(error())),
        Op::Committed(_) | Op::Close => {}
    }
}

/// What the first frame of a segment says: all that older segments would have.
#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
struct State {
    #[prost(message, optional, tag = "1")]
    vote: Option<VotePb>,
    #[prost(message, optional, tag = "2")]
    committed: Option<LogIdPb>,
    #[prost(message, optional, tag = "3")]
    purged: Option<LogIdPb>,
    #[prost(message, optional, tag = "4")]
    last: Option<LogIdPb>,
    #[prost(uint64, tag = "5")]
    next: u64,
}

#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
struct MaybeLogId {
    #[prost(message, optional, tag = "1")]
    id: Option<LogIdPb>,
}

#[derive(Clone, PartialEq, prost::Oneof)]
enum Kind {
    #[prost(message, tag = "1")]
    State(State),
    #[prost(message, tag = "2")]
    Entry(EntryPb),
    #[prost(message, tag = "3")]
    Vote(VotePb),
    #[prost(message, tag = "4")]
    Committed(MaybeLogId),
    #[prost(message, tag = "5")]
    Truncate(MaybeLogId),
    #[prost(message, tag = "6")]
    Purge(LogIdPb),
    #[prost(bool, tag = "7")]
    Closed(bool),
}

#[derive(Clone, PartialEq, prost::Message)]
struct Record {
    #[prost(oneof = "Kind", tags = "1, 2, 3, 4, 5, 6, 7")]
    kind: Option<Kind>,
}

struct Segment {
    number: u64,
    file: File,
    key: FileKey,
    /// Where the next frame goes.
    end: u64,
    durable: u64,
    frames: u32,
    /// The highest index ever written here; none if only bookkeeping was.
    max_index: Option<u64>,
}

struct Old {
    number: u64,
    max_index: Option<u64>,
}

struct Writer {
    dir: PathBuf,
    identity: Identity,
    key: Arc<MasterKey>,
    segment_bytes: u64,
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
        self.spares.finish();
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
                let put = self.put(Kind::Vote(vote.into()));
                self.state.vote = Some(vote.into());
                (Some(done), put)
            }
            Op::Committed(id) => {
                let id = id.map(LogIdPb::from);
                let put = self.put(Kind::Committed(MaybeLogId { id }));
                self.state.committed = id;
                (None, put)
            }
            Op::Truncate { after, done } => {
                let put = self.put(Kind::Truncate(MaybeLogId { id: after.map(LogIdPb::from) }));
                self.state.next = after.map_or(0, |id| id.index + 1);
                self.state.last = after.map(LogIdPb::from);
                (Some(done), put)
            }
            Op::Purge { upto, done } => (Some(done), self.purge(upto)),
            Op::Close => unreachable!("the caller ends its loop on it"),
        };
        if let Some(done) = done {
            self.dirty = true;
            self.waiting.push(done);
        }
        self.settle(taken);
    }

    fn append(&mut self, entries: &[Entry]) -> io::Result<()> {
        for entry in entries {
            self.put(Kind::Entry(entry.into()))?;
            let index = entry.log_id.index;
            self.state.next = index + 1;
            self.state.last = Some(entry.log_id.into());
            let segment = self.segment.as_mut().expect("put leaves a segment");
            segment.max_index = segment.max_index.max(Some(index));
        }
        Ok(())
    }

    fn purge(&mut self, upto: LogId) -> io::Result<()> {
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
        while let Some(old) = self.old.pop_front_if(|old| covered(old)) {
            std::fs::remove_file(segment_path(&self.dir, old.number))?;
        }
        sync_dir(&self.dir)
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

    /// Writes the buffer, syncs if something in it must be, and tells those who wait.
    fn flush(&mut self) -> io::Result<()> {
        let segment = self.segment.as_mut().expect("open begins with a segment");
        if !self.buffer.is_empty() {
            segment.file.write_all_at(&self.buffer, segment.end)?;
            segment.end += self.buffer.len() as u64;
            self.buffer.clear();
            if self.buffer.capacity() > 2 * BATCH_BYTES {
                self.buffer = Vec::with_capacity(64 << 10);
            }
        }
        if self.dirty {
            #[cfg(test)]
            if self.fail_sync.load(std::sync::atomic::Ordering::Relaxed) {
                return Err(io::Error::other("the disk is on fire"));
            }
            segment.file.sync_data()?;
            segment.durable = segment.end;
            self.dirty = false;
        }
        for done in self.waiting.drain(..) {
            done.tell(Ok(()));
        }
        Ok(())
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
        let number = match self.segment.take() {
            Some(segment) => {
                self.old.push_back(Old { number: segment.number, max_index: segment.max_index });
                segment.number + 1
            }
            None => self.old.back().map_or(1, |old| old.number + 1),
        };
        let file = self.spares.take()?;
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
        segment.file.sync_data()?;
        segment.end = bytes.len() as u64;
        segment.durable = segment.end;
        // Only a segment with a whole first frame ever gets a segment's name.
        std::fs::rename(self.dir.join(SPARE), segment_path(&self.dir, number))?;
        sync_dir(&self.dir)?;
        self.spares.prepare();
        self.segment = Some(segment);
        Ok(())
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

impl Segment {
    fn seal(&mut self, record: &Record, out: &mut Vec<u8>) {
        let start = out.len();
        out.resize(start + FRAME_BYTES, 0);
        record.encode(out).expect("a vector grows");
        let mut aad = [0; 8];
        aad[..4].copy_from_slice(&self.frames.to_le_bytes());
        aad[4..].copy_from_slice(&(self.durable as u32).to_le_bytes());
        self.key.seal(self.frames.into(), &aad, out, start + FRAME_BYTES);
        let body = (out.len() - start - FRAME_BYTES) as u32;
        let frame = &mut out[start..];
        frame[..4].copy_from_slice(&FRAME_MAGIC);
        frame[4..8].copy_from_slice(&body.to_le_bytes());
        frame[8..16].copy_from_slice(&aad);
        let sum = checksum(frame);
        frame[16..20].copy_from_slice(&sum.to_le_bytes());
        self.frames += 1;
    }
}

/// Over the whole frame but the checksum itself.
fn checksum(frame: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&frame[..16]), &frame[FRAME_BYTES..])
}

struct Header {
    identity: Identity,
    number: u64,
    salt: [u8; SALT_BYTES],
}

impl Header {
    fn encode(&self) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        bytes[..8].copy_from_slice(MAGIC);
        bytes[8..12].copy_from_slice(&FORMAT.to_le_bytes());
        bytes[12..28].copy_from_slice(&self.identity.encode());
        bytes[28..36].copy_from_slice(&self.number.to_le_bytes());
        bytes[36..52].copy_from_slice(&self.salt);
        let sum = crc32c::crc32c(&bytes[..60]);
        bytes[60..].copy_from_slice(&sum.to_le_bytes());
        bytes
    }

    fn decode(bytes: &[u8], path: &Path, number: u64, identity: Identity) -> Result<Self, OpenError> {
        let damaged = |what| OpenError::damaged(path, 0, what);
        let bytes: &[u8; HEADER_BYTES] =
            bytes.first_chunk().ok_or(damaged("it is too short for a header"))?;
        if &bytes[..8] != MAGIC || bytes[60..] != crc32c::crc32c(&bytes[..60]).to_le_bytes() {
            return Err(damaged("its header fails the checksum"));
        }
        let format = u32::from_le_bytes(bytes[8..12].try_into().expect("four bytes"));
        if format != FORMAT {
            return Err(OpenError::Format { file: path.to_owned(), found: format, known: FORMAT });
        }
        identity.check(&bytes[12..28], path)?;
        if bytes[28..36] != number.to_le_bytes() {
            return Err(damaged("it is another segment under this name"));
        }
        let mut salt = [0; SALT_BYTES];
        salt.copy_from_slice(&bytes[36..52]);
        Ok(Self { identity, number, salt })
    }

    fn key(&self, master: &MasterKey) -> FileKey {
        let mut purpose = b"rswarm raft segment".to_vec();
        purpose.extend_from_slice(&self.identity.encode());
        purpose.extend_from_slice(&self.number.to_le_bytes());
        master.derive(&self.salt, &purpose)
    }
}

fn segment_path(dir: &Path, number: u64) -> PathBuf {
    dir.join(format!("{number:016x}.wal"))
}

/// The numbers of the segments in `dir`, oldest first.
pub(crate) fn segments(dir: &Path) -> io::Result<Vec<u64>> {
    let mut numbers = Vec::new();
    for file in std::fs::read_dir(dir)? {
        let name = file?.file_name();
        let number = name.to_str().and_then(|name| name.strip_suffix(".wal"));
        if let Some(number) = number.and_then(|hex| u64::from_str_radix(hex, 16).ok()) {
            numbers.push(number);
        }
    }
    numbers.sort_unstable();
    Ok(numbers)
}

fn recover(dir: &Path, identity: Identity, key: &MasterKey) -> Result<(Recovered, VecDeque<Old>), OpenError> {
    let numbers = segments(dir).map_err(|error| OpenError::io(dir, error))?;
    let mut recovered = Recovered::default();
    let mut old = VecDeque::new();
    for (at, &number) in numbers.iter().enumerate() {
        let path = segment_path(dir, number);
        if at > 0 && numbers[at - 1] + 1 != number {
            return Err(OpenError::damaged(&path, 0, "the segment before it is missing"));
        }
        let mut bytes = std::fs::read(&path).map_err(|error| OpenError::io(&path, error))?;
        let header = Header::decode(&bytes, &path, number, identity)?;
        let newest = at + 1 == numbers.len();
        let mut max_index = None;
        let end = read_frames(&mut bytes, &header.key(key), &path, newest, |offset, record| {
            let index = recovered
                .replay(record)
                .map_err(|Malformed(what)| OpenError::damaged(&path, offset as u64, what))?;
            max_index = max_index.max(index);
            Ok(())
        })?;
        if newest && end < bytes.len() {
            // What follows is cut off for good: this segment will not be the newest again.
            let cut = || -> io::Result<()> {
                let file = OpenOptions::new().write(true).open(&path)?;
                file.set_len(end as u64)?;
                file.sync_all()
            };
            cut().map_err(|error| OpenError::io(&path, error))?;
        }
        old.push_back(Old { number, max_index });
    }
    let missing = match recovered.entries.front() {
        Some(first) => first.log_id.index > recovered.purged.map_or(0, |id| id.index + 1),
        None => recovered.next > recovered.purged.map_or(0, |id| id.index + 1),
    };
    if missing {
        let path = numbers.first().map_or(dir.to_owned(), |number| segment_path(dir, *number));
        return Err(OpenError::damaged(&path, 0, "entries before it are missing, and were not compacted"));
    }
    Ok((recovered, old))
}

/// Feeds the frames of a segment to `each`, and answers where they end.
fn read_frames(
    bytes: &mut [u8],
    key: &FileKey,
    path: &Path,
    newest: bool,
    mut each: impl FnMut(usize, Record) -> Result<(), OpenError>,
) -> Result<usize, OpenError> {
    let mut offset = HEADER_BYTES;
    let mut number = 0;
    while let Some(frame) = Frame::at(bytes, offset).filter(|frame| frame.number == number) {
        let mut aad = [0; 8];
        aad[..4].copy_from_slice(&frame.number.to_le_bytes());
        aad[4..].copy_from_slice(&frame.durable.to_le_bytes());
        let body = &mut bytes[offset + FRAME_BYTES..frame.end];
        let record = key.open(number.into(), &aad, body).ok_or(OpenError::damaged(
            path,
            offset as u64,
            "a record was not sealed with this key",
        ))?;
        // One copy, which all entries of this record then share.
        let record = Record::decode(Bytes::copy_from_slice(record))
            .map_err(|_| OpenError::damaged(path, offset as u64, "a record cannot be decoded"))?;
        each(offset, record)?;
        offset = frame.end;
        number += 1;
    }
    if number == 0 {
        return Err(OpenError::damaged(path, offset as u64, "its first record is unreadable"));
    }
    let rest = &bytes[offset..];
    if rest.iter().all(|byte| *byte == 0) {
        return Ok(offset);
    }
    if !newest || vouched(bytes, offset) {
        return Err(OpenError::damaged(path, offset as u64, "a record that was once durable is unreadable"));
    }
    tracing::warn!(file = %path.display(), offset, "cut off a record that was being written at the crash");
    Ok(offset)
}

/// Whether some readable frame behind `offset` says that what is at `offset` was durable.
fn vouched(bytes: &[u8], offset: usize) -> bool {
    (offset..bytes.len().saturating_sub(FRAME_BYTES))
        .filter(|at| bytes[*at..].starts_with(&FRAME_MAGIC))
        .filter_map(|at| Frame::at(bytes, at))
        .any(|frame| frame.durable as usize > offset)
}

struct Frame {
    number: u32,
    durable: u32,
    end: usize,
}

impl Frame {
    /// The frame at `offset`, if one is there and whole.
    fn at(bytes: &[u8], offset: usize) -> Option<Self> {
        let head: &[u8; FRAME_BYTES] = bytes.get(offset..)?.first_chunk()?;
        let word = |at: usize| u32::from_le_bytes(head[at..at + 4].try_into().expect("four bytes"));
        let end = (offset + FRAME_BYTES).checked_add(word(4) as usize)?;
        let frame = bytes.get(offset..end)?;
        let whole = head[..4] == FRAME_MAGIC && word(16) == checksum(frame);
        whole.then(|| Self { number: word(8), durable: word(12), end })
    }
}

impl Recovered {
    /// Does again what the record says was done; answers the index of an entry.
    fn replay(&mut self, record: Record) -> Result<Option<u64>, Malformed> {
        match record.kind.ok_or(Malformed("a record of a kind this version does not know"))? {
            Kind::State(state) => self.replay_state(state)?,
            Kind::Entry(entry) => {
                let entry = entry.into_entry()?;
                let index = entry.log_id.index;
                if index != self.next {
                    return Err(Malformed("an entry does not follow the one before it"));
                }
                self.next = index + 1;
                self.last = Some(entry.log_id);
                self.entries.push_back(entry);
                return Ok(Some(index));
            }
            Kind::Vote(vote) => self.vote = Some(vote.into()),
            Kind::Committed(committed) => self.committed = committed.id.map(LogId::from),
            Kind::Truncate(after) => {
                let after = after.id.map(LogId::from);
                self.next = after.map_or(0, |id| id.index + 1);
                self.last = after;
                while self.entries.back().is_some_and(|entry| entry.log_id.index >= self.next) {
                    self.entries.pop_back();
                }
            }
            Kind::Purge(upto) => {
                let upto = LogId::from(upto);
                self.purged = Some(upto);
                while self.entries.front().is_some_and(|entry| entry.log_id.index <= upto.index) {
                    self.entries.pop_front();
                }
                if upto.index + 1 > self.next {
                    self.next = upto.index + 1;
                    self.last = Some(upto);
                }
            }
            Kind::Closed(_) => {}
        }
        Ok(None)
    }

    fn replay_state(&mut self, state: State) -> Result<(), Malformed> {
        if self.began && state.next != self.next {
            return Err(Malformed("a segment does not follow the one before it"));
        }
        self.began = true;
        self.vote = state.vote.map(Vote::from);
        self.committed = state.committed.map(LogId::from);
        self.purged = state.purged.map(LogId::from);
        self.last = state.last.map(LogId::from);
        self.next = state.next;
        Ok(())
    }
}

/// The next segment, made ready by a thread of its own: filled with zeros, synced, under the name [`SPARE`].
struct Spares {
    wanted: Sender<()>,
    ready: Receiver<io::Result<File>>,
    thread: JoinHandle<()>,
}

impl Spares {
    fn new(dir: &Path, segment_bytes: u64) -> io::Result<Self> {
        let (wanted, wishes) = channel();
        let (spares, ready) = channel();
        let path = dir.join(SPARE);
        let thread = std::thread::Builder::new().name("raft-spare".into()).spawn(move || {
            while wishes.recv().is_ok() {
                let spare = prepare_spare(&path, segment_bytes);
                if spares.send(spare).is_err() {
                    break;
                }
            }
            drop(std::fs::remove_file(&path));
        })?;
        let spares = Self { wanted, ready, thread };
        spares.prepare();
        Ok(spares)
    }

    /// Asks for a spare; the last one must have been taken and renamed.
    fn prepare(&self) {
        // If the thread is gone, `take` says so.
        let _ = self.wanted.send(());
    }

    fn take(&self) -> io::Result<File> {
        self.ready.recv().map_err(|_| io::Error::other("nobody prepares segments any more"))?
    }

    fn finish(self) {
        let Self { wanted, ready, thread } = self;
        drop((wanted, ready));
        if thread.join().is_err() {
            tracing::error!("the preparer of segments panicked");
        }
    }
}

fn prepare_spare(path: &Path, segment_bytes: u64) -> io::Result<File> {
    let file = OpenOptions::new().create_new(true).read(true).write(true).mode(0o600).open(path)?;
    let zeros = vec![0; 256 << 10];
    let mut offset = 0;
    while offset < segment_bytes {
        let len = (segment_bytes - offset).min(zeros.len() as u64);
        file.write_all_at(&zeros[..len as usize], offset)?;
        offset += len;
    }
    file.sync_all()?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering;

    use proptest::prelude::*;

    use super::*;
    use crate::types::{Command, LeaderId, Payload};
    use crate::{ClusterTag, RaftId};

    const IDENTITY: Identity = Identity { cluster: ClusterTag(1), id: RaftId(2) };

    fn log_id(term: u64, index: u64) -> LogId {
        LogId { leader_id: LeaderId { term, node_id: 1 }, index }
    }

    fn entry(term: u64, index: u64, len: usize) -> Entry {
        let payload = Payload::Normal(Command(vec![index as u8; len].into()));
        Entry { log_id: log_id(term, index), payload }
    }

    fn open(dir: &Path) -> Result<(Wal, Recovered), OpenError> {
        let key = Arc::new(MasterKey::load_or_create(dir, true).unwrap());
        Wal::open(dir, IDENTITY, key, 16 << 10)
    }

    type Told = oneshot::Receiver<io::Result<()>>;

    fn told(op: impl FnOnce(Done) -> Op, wal: &Wal) -> Told {
        let (done, told) = oneshot::channel();
        wal.push(op(Done::Told(done)));
        told
    }

    fn append(wal: &Wal, entries: Vec<Entry>) -> Told {
        told(|done| Op::Append { entries, done }, wal)
    }

    fn newest(dir: &Path) -> PathBuf {
        segment_path(dir, *segments(dir).unwrap().last().unwrap())
    }

    fn indexes(recovered: &Recovered) -> Vec<u64> {
        recovered.entries.iter().map(|entry| entry.log_id.index).collect()
    }

    /// What a process that is killed leaves behind: the files as they are, without the mark of the end.
    fn copy(from: &Path) -> tempfile::TempDir {
        let to = tempfile::tempdir().unwrap();
        for file in std::fs::read_dir(from).unwrap() {
            let file = file.unwrap();
            std::fs::copy(file.path(), to.path().join(file.file_name())).unwrap();
        }
        to
    }

    #[test]
    fn everything_comes_back_in_the_order_it_was_given() {
        let dir = tempfile::tempdir().unwrap();
        let vote = Vote::new_committed(3, 1);
        {
            let (wal, recovered) = open(dir.path()).unwrap();
            assert_eq!(recovered.next, 0);
            append(&wal, (0..10).map(|index| entry(1, index, 100)).collect());
            told(|done| Op::Truncate { after: Some(log_id(1, 5)), done }, &wal);
            append(&wal, (6..9).map(|index| entry(2, index, 100)).collect());
            told(|done| Op::Vote { vote, done }, &wal);
            wal.push(Op::Committed(Some(log_id(1, 4))));
            let purged = told(|done| Op::Purge { upto: log_id(1, 2), done }, &wal);
            purged.blocking_recv().unwrap().unwrap();
        }
        for _ in 0..3 {
            let (_, recovered) = open(dir.path()).unwrap();
            let expected: Vec<Entry> = (3..6)
                .map(|index| entry(1, index, 100))
                .chain((6..9).map(|index| entry(2, index, 100)))
                .collect();
            assert_eq!(recovered.entries, expected);
            assert_eq!(recovered.vote, Some(vote));
            assert_eq!(recovered.committed, Some(log_id(1, 4)));
            assert_eq!(recovered.purged, Some(log_id(1, 2)));
            assert_eq!(recovered.last, Some(log_id(2, 8)));
        }
    }

    #[test]
    fn segments_that_are_no_longer_needed_are_deleted() {
        let dir = tempfile::tempdir().unwrap();
        let (wal, _) = open(dir.path()).unwrap();
        for index in 0..200 {
            append(&wal, vec![entry(1, index, 1000)]).blocking_recv().unwrap().unwrap();
        }
        assert!(segments(dir.path()).unwrap().len() > 10);
        told(|done| Op::Purge { upto: log_id(1, 197), done }, &wal).blocking_recv().unwrap().unwrap();
        assert!(segments(dir.path()).unwrap().len() <= 2);
        drop(wal);
        let (_, recovered) = open(dir.path()).unwrap();
        assert_eq!(indexes(&recovered), [198, 199]);
    }

    #[test]
    fn a_snapshot_may_reach_beyond_the_log() {
        let dir = tempfile::tempdir().unwrap();
        let (wal, _) = open(dir.path()).unwrap();
        append(&wal, vec![entry(1, 0, 10), entry(1, 1, 10)]);
        told(|done| Op::Purge { upto: log_id(2, 50), done }, &wal);
        append(&wal, vec![entry(2, 51, 10)]).blocking_recv().unwrap().unwrap();
        drop(wal);
        let (_, recovered) = open(dir.path()).unwrap();
        assert_eq!(indexes(&recovered), [51]);
        assert_eq!(recovered.purged, Some(log_id(2, 50)));
    }

    #[test]
    fn a_record_larger_than_a_segment_is_kept() {
        let dir = tempfile::tempdir().unwrap();
        let (wal, _) = open(dir.path()).unwrap();
        append(&wal, vec![entry(1, 0, 10), entry(1, 1, 100_000), entry(1, 2, 10)]);
        append(&wal, vec![entry(1, 3, 10)]).blocking_recv().unwrap().unwrap();
        drop(wal);
        let (_, recovered) = open(dir.path()).unwrap();
        assert_eq!(indexes(&recovered), [0, 1, 2, 3]);
    }

    #[test]
    fn a_torn_tail_is_cut_off() {
        let dir = tempfile::tempdir().unwrap();
        let (wal, _) = open(dir.path()).unwrap();
        for index in 0..3 {
            append(&wal, vec![entry(1, index, 100)]).blocking_recv().unwrap().unwrap();
        }
        let killed = copy(dir.path());
        let path = newest(killed.path());
        let bytes = std::fs::read(&path).unwrap();
        let end = bytes.iter().rposition(|byte| *byte != 0).unwrap();
        let file = OpenOptions::new().write(true).open(&path).unwrap();
        file.write_all_at(&[0; 40], end as u64 - 39).unwrap();
        let (wal, recovered) = open(killed.path()).unwrap();
        assert_eq!(indexes(&recovered), [0, 1]);
        append(&wal, vec![entry(2, 2, 100)]).blocking_recv().unwrap().unwrap();
        drop(wal);
        let (_, recovered) = open(killed.path()).unwrap();
        assert_eq!(recovered.entries.back(), Some(&entry(2, 2, 100)));
    }

    #[test]
    fn a_flipped_bit_anywhere_in_a_closed_log_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let (wal, _) = open(dir.path()).unwrap();
        for index in 0..5 {
            append(&wal, vec![entry(1, index, 30)]).blocking_recv().unwrap().unwrap();
        }
        drop(wal);
        let path = newest(dir.path());
        let good = std::fs::read(&path).unwrap();
        let key = MasterKey::load_or_create(dir.path(), false).unwrap();
        let end = good.iter().rposition(|byte| *byte != 0).unwrap();
        // The mark of the end itself may be lost: then nothing else is.
        let mark = (0..end).rfind(|at| good[*at..].starts_with(&FRAME_MAGIC)).unwrap();
        for at in 0..mark {
            let mut bad = good.clone();
            bad[at] ^= 0x10;
            std::fs::write(&path, &bad).unwrap();
            let error = recover(dir.path(), IDENTITY, &key).map(drop).expect_err("it must not be used");
            let named = error.to_string();
            assert!(named.contains("0000000000000001.wal"), "{named}");
        }
    }

    #[test]
    fn damage_in_an_older_segment_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let (wal, _) = open(dir.path()).unwrap();
        for index in 0..100 {
            append(&wal, vec![entry(1, index, 1000)]).blocking_recv().unwrap().unwrap();
        }
        drop(wal);
        let first = segment_path(dir.path(), 2);
        let bytes = std::fs::read(&first).unwrap();
        let end = bytes.iter().rposition(|byte| *byte != 0).unwrap() as u64;
        std::fs::remove_file(segment_path(dir.path(), 1)).unwrap();
        let file = OpenOptions::new().write(true).open(&first).unwrap();
        assert!(matches!(open(dir.path()), Err(OpenError::Damaged { .. })), "its beginning is missing");
        file.set_len(end - 5).unwrap();
        assert!(matches!(open(dir.path()), Err(OpenError::Damaged { .. })), "its end is missing");
        std::fs::remove_file(segment_path(dir.path(), 3)).unwrap();
        assert!(matches!(open(dir.path()), Err(OpenError::Damaged { .. })), "a whole one is missing");
    }

    #[test]
    fn a_record_moved_to_another_place_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let (wal, _) = open(dir.path()).unwrap();
        for index in 0..3 {
            append(&wal, vec![entry(1, index, 100)]).blocking_recv().unwrap().unwrap();
        }
        drop(wal);
        let path = newest(dir.path());
        let good = std::fs::read(&path).unwrap();
        let starts: Vec<usize> = (0..good.len()).filter(|at| good[*at..].starts_with(&FRAME_MAGIC)).collect();
        // Swap two bodies of the same length, with checksums made right.
        let mut bad = good.clone();
        let (one, other) = (starts[2], starts[3]);
        let len = Frame::at(&good, one).unwrap().end - one;
        assert_eq!(len, Frame::at(&good, other).unwrap().end - other);
        bad[one + FRAME_BYTES..one + len].copy_from_slice(&good[other + FRAME_BYTES..other + len]);
        let sum = checksum(&bad[one..one + len]);
        bad[one + 16..one + 20].copy_from_slice(&sum.to_le_bytes());
        std::fs::write(&path, &bad).unwrap();
        assert!(matches!(open(dir.path()), Err(OpenError::Damaged { .. })));
    }

    #[test]
    fn after_a_failed_sync_nothing_is_acknowledged() {
        let dir = tempfile::tempdir().unwrap();
        let (wal, _) = open(dir.path()).unwrap();
        append(&wal, vec![entry(1, 0, 10)]).blocking_recv().unwrap().unwrap();
        wal.fail_sync.store(true, Ordering::Relaxed);
        assert!(append(&wal, vec![entry(1, 1, 10)]).blocking_recv().unwrap().is_err());
        wal.fail_sync.store(false, Ordering::Relaxed);
        let refused = append(&wal, vec![entry(1, 2, 10)]).blocking_recv().unwrap().unwrap_err();
        assert!(refused.to_string().contains("opened anew"), "{refused}");
        drop(wal);
        let (_, recovered) = open(dir.path()).unwrap();
        assert!(indexes(&recovered).starts_with(&[0]));
    }

    #[test]
    fn arbitrary_bytes_as_a_segment_never_panic() {
        let dir = tempfile::tempdir().unwrap();
        let key = MasterKey::load_or_create(dir.path(), true).unwrap();
        let path = segment_path(dir.path(), 1);
        let header = Header { identity: IDENTITY, number: 1, salt: [0; SALT_BYTES] };
        proptest!(|(bytes in prop::collection::vec(any::<u8>(), 0..300), with_header: bool)| {
            let mut file = if with_header { header.encode().to_vec() } else { Vec::new() };
            file.extend_from_slice(&bytes);
            std::fs::write(&path, &file).unwrap();
            prop_assert!(recover(dir.path(), IDENTITY, &key).is_err());
        });
    }

    /// Writes batches, each acknowledged before the next, and then one more that is not: of what it wrote the disk
    /// keeps some pages and loses others.
    fn power_cut(batches: &[Vec<usize>], last: &[usize], page: usize, keep: &[bool], junk: bool) {
        let dir = tempfile::tempdir().unwrap();
        let (wal, _) = open(dir.path()).unwrap();
        let mut next = 0;
        let mut batch = |lens: &[usize]| {
            let entries = lens.iter().zip(next..).map(|(len, index)| entry(1, index, *len)).collect();
            next += lens.len() as u64;
            append(&wal, entries)
        };
        for lens in batches {
            batch(lens).blocking_recv().unwrap().unwrap();
        }
        let acknowledged: usize = batches.iter().map(Vec::len).sum();
        let before = copy(dir.path());
        batch(last).blocking_recv().unwrap().unwrap();
        let after = copy(dir.path());
        // A roll syncs on its own; the cut is meant within a segment.
        if segments(before.path()).unwrap() != segments(after.path()).unwrap() {
            return;
        }
        let path = newest(after.path());
        let old = std::fs::read(newest(before.path())).unwrap();
        let mut new = std::fs::read(&path).unwrap();
        let mut old_padded = old.clone();
        old_padded.resize(new.len(), 0);
        for (at, chunk) in new.chunks_mut(page).enumerate() {
            let was = &old_padded[at * page..at * page + chunk.len()];
            if !keep[at % keep.len()] && chunk != was {
                // What was durable in that page stays; the rest is as before, or garbage.
                for (byte, was) in chunk.iter_mut().zip(was) {
                    if *byte != *was {
                        *byte = if junk { *byte ^ 0x5a } else { *was };
                    }
                }
            }
        }
        std::fs::write(&path, &new).unwrap();

        let (_, recovered) = open(after.path()).unwrap();
        let found = indexes(&recovered);
        assert!(found.len() >= acknowledged, "{} of {acknowledged} came back", found.len());
        assert!(found.len() <= acknowledged + last.len());
        let all = batches.iter().flatten().chain(last);
        for (found, (index, len)) in recovered.entries.iter().zip(all.enumerate()) {
            assert_eq!(found, &entry(1, index as u64, *len));
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]

        #[test]
        fn a_power_cut_loses_nothing_that_was_acknowledged(
            batches in prop::collection::vec(prop::collection::vec(0usize..600, 1..5), 0..12),
            last in prop::collection::vec(0usize..3000, 1..8),
            page in prop::sample::select(vec![1usize, 64, 512, 4096]),
            keep in prop::collection::vec(any::<bool>(), 1..9),
            junk: bool,
        ) {
            power_cut(&batches, &last, page, &keep, junk);
        }
    }
}
