//! A segment's layout: header, frames and the records in them, and how they are read back.

use std::io;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use prost::Message;

use super::super::medium::Medium;
use super::super::seal::{FileKey, MasterKey, SALT_BYTES};
use super::super::{FORMAT, Identity};
use crate::OpenError;
use crate::format::{EntryField, EntryPb, LogIdPb, VotePb};

const MAGIC: &[u8; 8] = b"RSWRWAL\n";
pub(super) const HEADER_BYTES: usize = 64;
pub(super) const FRAME_MAGIC: [u8; 4] = [0xd7, b'r', b'e', b'c'];
pub(super) const FRAME_BYTES: usize = 20;

/// What the first frame of a segment says: all that older segments would have.
#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
pub(super) struct State {
    #[prost(message, optional, tag = "1")]
    pub(super) vote: Option<VotePb>,
    #[prost(message, optional, tag = "2")]
    pub(super) committed: Option<LogIdPb>,
    #[prost(message, optional, tag = "3")]
    pub(super) purged: Option<LogIdPb>,
    #[prost(message, optional, tag = "4")]
    pub(super) last: Option<LogIdPb>,
    #[prost(uint64, tag = "5")]
    pub(super) next: u64,
    /// 0 in logs that know of no incarnations: the first.
    #[prost(uint64, tag = "6")]
    pub(super) incarnation: u64,
}

/// What begins a new life of the cluster, all or nothing: one record.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub(super) struct Forced {
    #[prost(uint64, tag = "1")]
    pub(super) incarnation: u64,
    #[prost(message, required, tag = "2")]
    pub(super) vote: VotePb,
    /// The membership of the only member.
    #[prost(message, required, tag = "3")]
    pub(super) entry: EntryPb,
}

#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
pub(super) struct MaybeLogId {
    #[prost(message, optional, tag = "1")]
    pub(super) id: Option<LogIdPb>,
}

#[derive(Clone, PartialEq, prost::Oneof)]
pub(super) enum Kind {
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
    #[prost(message, tag = "8")]
    Forced(Forced),
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Record {
    #[prost(oneof = "Kind", tags = "1, 2, 3, 4, 5, 6, 7, 8")]
    pub(super) kind: Option<Kind>,
}

/// What a frame holds.
pub(super) trait Body {
    /// How many bytes it takes.
    fn size(&self) -> usize;
    /// Appends them.
    fn put(&self, out: &mut Vec<u8>);
}

impl Body for Record {
    fn size(&self) -> usize {
        self.encoded_len()
    }

    fn put(&self, out: &mut Vec<u8>) {
        self.encode(out).expect("a vector grows");
    }
}

const ENTRY_TAG: u32 = 2;

/// A [`Record`] of [`Kind::Entry`].
impl Body for EntryField<'_> {
    fn size(&self) -> usize {
        self.encoded_len(ENTRY_TAG)
    }

    fn put(&self, out: &mut Vec<u8>) {
        self.encode(ENTRY_TAG, out);
    }
}

pub(super) struct Segment {
    pub(super) number: u64,
    pub(super) file: Medium,
    pub(super) key: FileKey,
    /// Where the next frame goes.
    pub(super) end: u64,
    pub(super) durable: u64,
    pub(super) frames: u32,
    /// The highest index ever written here; none if only bookkeeping was.
    pub(super) max_index: Option<u64>,
}

impl Segment {
    pub(super) fn seal(&mut self, record: &impl Body, out: &mut Vec<u8>) {
        let start = out.len();
        out.resize(start + FRAME_BYTES, 0);
        record.put(out);
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
pub(super) fn checksum(frame: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&frame[..16]), &frame[FRAME_BYTES..])
}

pub(super) struct Header {
    pub(super) identity: Identity,
    pub(super) number: u64,
    pub(super) salt: [u8; SALT_BYTES],
}

impl Header {
    pub(super) fn encode(&self) -> [u8; HEADER_BYTES] {
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

    pub(super) fn decode(
        bytes: &[u8],
        path: &Path,
        number: u64,
        identity: Identity,
    ) -> Result<Self, OpenError> {
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

    pub(super) fn key(&self, master: &MasterKey) -> FileKey {
        let mut purpose = b"rswarm raft segment".to_vec();
        purpose.extend_from_slice(&self.identity.encode());
        purpose.extend_from_slice(&self.number.to_le_bytes());
        master.derive(&self.salt, &purpose)
    }
}

pub(super) fn segment_path(dir: &Path, number: u64) -> PathBuf {
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

/// Feeds the frames of a segment to `each`, and answers where they end.
pub(super) fn read_frames(
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
pub(super) fn vouched(bytes: &[u8], offset: usize) -> bool {
    (offset..bytes.len().saturating_sub(FRAME_BYTES))
        .filter(|at| bytes[*at..].starts_with(&FRAME_MAGIC))
        .filter_map(|at| Frame::at(bytes, at))
        .any(|frame| frame.durable as usize > offset)
}

pub(super) struct Frame {
    pub(super) number: u32,
    pub(super) durable: u32,
    pub(super) end: usize,
}

impl Frame {
    /// The frame at `offset`, if one is there and whole.
    pub(super) fn at(bytes: &[u8], offset: usize) -> Option<Self> {
        let head: &[u8; FRAME_BYTES] = bytes.get(offset..)?.first_chunk()?;
        let word = |at: usize| u32::from_le_bytes(head[at..at + 4].try_into().expect("four bytes"));
        let end = (offset + FRAME_BYTES).checked_add(word(4) as usize)?;
        let frame = bytes.get(offset..end)?;
        let whole = head[..4] == FRAME_MAGIC && word(16) == checksum(frame);
        whole.then(|| Self { number: word(8), durable: word(12), end })
    }
}
