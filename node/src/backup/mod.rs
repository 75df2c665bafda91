//! Backups: the whole state of a cluster, its CA's key and its join secrets among it, as one sealed file.
//!
//! A file is, in this order: eight bytes of magic; the header's length in four bytes, little-endian; the header, a
//! message in the clear; SHA-256 of all that; and chunks, each its length in four bytes, of which the top bit marks the
//! last, and that many sealed bytes. This much is the same in every format, so that a file that is too new says by
//! which version it was written. Plain, the chunks are a snapshot ([`rswarm_proto::store`]).
//!
//! The chunks' key depends on the header, their nonces count them, and the mark of the last is sealed along, so
//! that nothing can be changed, moved or cut off unnoticed. Bytes are untrusted until a chunk has opened, and no more
//! of them are held than a chunk.

pub mod key;

use anyhow::{Context as _, Result};
use key::Key;
use prost::Message;
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use rswarm_control::state::State;
use rswarm_proto::store::{self, SnapshotError};
use rswarm_proto::v1::store::BackupHeader;
use sha2::{Digest, Sha256};
use std::io::{self, Read, Write};

const MAGIC: &[u8; 8] = b"RSWBACK\n";
/// The format of what follows the header.
pub const FORMAT: u32 = 1;
/// Of this program.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");
const HEADER_BYTES_MAX: usize = 4096;
const SUM_BYTES: usize = 32;
/// The plain bytes of a chunk.
const CHUNK_BYTES: usize = 256 << 10;
const TAG_BYTES: usize = 16;
const LAST: u32 = 1 << 31;

/// Why a file is not a backup that can be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unusable {
    /// It begins with something else.
    #[error("this is not a backup made by `rswarm backup`")]
    Foreign,
    /// It was written by a version whose files may hold what this one would lose.
    #[error(
        "the backup was written by rswarm {0}, and this is rswarm {VERSION}: restore it with {0} or a newer one"
    )]
    Newer(String),
    /// It is not what was written.
    #[error("the backup is damaged at byte {at}: {what}; use another copy of it")]
    Damaged {
        /// Where in the file.
        at: u64,
        /// What is wrong there.
        what: String,
    },
    /// It ends too early.
    #[error(
        "the backup ends at byte {0}, before its end was reached: it was cut short; use another copy of it"
    )]
    Cut(u64),
    /// The key is another's.
    #[error("the recovery key is not that of this backup")]
    WrongKey,
    /// The passphrase is another's.
    #[error("the passphrase is not that of this backup")]
    WrongPassphrase,
}

impl From<Unusable> for io::Error {
    fn from(unusable: Unusable) -> Self {
        io::Error::new(io::ErrorKind::InvalidData, unusable)
    }
}

/// What stands before the sealed part.
#[derive(Clone, Debug, PartialEq)]
pub struct Head {
    /// The header.
    pub header: BackupHeader,
    /// Everything up to the first chunk.
    pub bytes: Vec<u8>,
}

impl Head {
    fn new(header: BackupHeader) -> Self {
        let body = header.encode_to_vec();
        let length = u32::try_from(body.len()).expect("a header is far below 4 GiB");
        let mut bytes = MAGIC.to_vec();
        bytes.extend(length.to_le_bytes());
        bytes.extend(body);
        bytes.extend(Sha256::digest(&bytes));
        Self { header, bytes }
    }

    /// Reads a file up to the first chunk.
    ///
    /// # Errors
    /// [`Unusable`], or that of `from`.
    pub fn read(from: &mut dyn Read) -> Result<Self> {
        let mut from = Counted { from, at: 0 };
        let mut bytes = vec![0; MAGIC.len() + 4];
        let begun = from.fill(&mut bytes[..MAGIC.len()]);
        anyhow::ensure!(bytes.starts_with(MAGIC), Unusable::Foreign);
        begun?;
        from.fill(&mut bytes[MAGIC.len()..])?;
        let length = u32::from_le_bytes(bytes[MAGIC.len()..].try_into().expect("four bytes")) as usize;
        let damaged = |at: usize, what: &str| Unusable::Damaged { at: at as u64, what: what.into() };
        anyhow::ensure!(length <= HEADER_BYTES_MAX, damaged(MAGIC.len(), "the header's length cannot be"));
        let start = bytes.len();
        bytes.resize(start + length + SUM_BYTES, 0);
        from.fill(&mut bytes[start..])?;
        let (body, sum) = bytes.split_at(start + length);
        anyhow::ensure!(
            Sha256::digest(body).as_slice() == sum,
            damaged(start, "the header fails its checksum")
        );
        let header =
            BackupHeader::decode(&body[start..]).map_err(|_| damaged(start, "the header is no message"))?;
        if header.format > FORMAT || newer(&header.version) {
            return Err(Unusable::Newer(header.version).into());
        }
        Ok(Self { header, bytes })
    }

    fn chunk_key(&self, key: &Key) -> LessSafeKey {
        let file = key.derive(&[b"rswarm backup file", Sha256::digest(&self.bytes).as_slice()]);
        LessSafeKey::new(UnboundKey::new(&AES_256_GCM, &file).expect("the key has the cipher's length"))
    }
}

fn proof(key: &Key, salt: &[u8]) -> Vec<u8> {
    key.derive(&[b"rswarm backup proof", salt])[..16].to_vec()
}

/// Whether `version` is later than this program's. One that cannot be read is of a later way to count.
fn newer(version: &str) -> bool {
    let parts = |text: &str| -> Option<[u64; 3]> {
        let plain = text.split(['-', '+']).next()?;
        let parts: Vec<u64> = plain.split('.').map(|part| part.parse().ok()).collect::<Option<_>>()?;
        parts.try_into().ok()
    };
    match (parts(version), parts(VERSION)) {
        (Some(its), Some(ours)) => its > ours,
        _ => version != VERSION,
    }
}

fn nonce(chunk: u64) -> Nonce {
    let mut bytes = [0; 12];
    bytes[4..].copy_from_slice(&chunk.to_be_bytes());
    Nonce::assume_unique_for_key(bytes)
}

/// Writes the backup of a state. Of `header`, format, version, salt, proof and what the state itself says are filled
/// in. Blocks.
///
/// # Errors
/// Those of `to`.
pub fn write(state: &State, header: BackupHeader, key: &Key, to: &mut dyn Write) -> io::Result<()> {
    write_with(state, header, key, crate::identity::random::<16>(), to)
}

fn write_with(
    state: &State,
    header: BackupHeader,
    key: &Key,
    salt: [u8; 16],
    to: &mut dyn Write,
) -> io::Result<()> {
    let cluster = state.cluster();
    let head = Head::new(BackupHeader {
        format: FORMAT,
        version: VERSION.into(),
        cluster_id: cluster.map(|cluster| cluster.id.to_string()).unwrap_or_default(),
        cluster_name: cluster.map(|cluster| cluster.name.clone()).unwrap_or_default(),
        index: state.index(),
        incarnation: cluster.map_or(0, |cluster| cluster.incarnation),
        salt: salt.to_vec().into(),
        proof: proof(key, &salt).into(),
        ..header
    });
    seal(&head, key, to, |to| store::write_snapshot(state, to))
}

fn seal(
    head: &Head,
    key: &Key,
    to: &mut dyn Write,
    write: impl FnOnce(&mut dyn Write) -> io::Result<()>,
) -> io::Result<()> {
    to.write_all(&head.bytes)?;
    let mut chunks = Sealing {
        to,
        key: head.chunk_key(key),
        chunk: Vec::with_capacity(CHUNK_BYTES + TAG_BYTES),
        count: 0,
    };
    write(&mut chunks)?;
    chunks.put(true)?;
    chunks.to.flush()
}

/// Seals what is written, chunk by chunk.
struct Sealing<'a> {
    to: &'a mut dyn Write,
    key: LessSafeKey,
    chunk: Vec<u8>,
    count: u64,
}

impl Sealing<'_> {
    fn put(&mut self, last: bool) -> io::Result<()> {
        self.key
            .seal_in_place_append_tag(nonce(self.count), Aad::from([last.into()]), &mut self.chunk)
            .map_err(|_| io::Error::other("a chunk cannot be sealed"))?;
        self.count += 1;
        let length = u32::try_from(self.chunk.len()).expect("a chunk is small") | if last { LAST } else { 0 };
        self.to.write_all(&length.to_le_bytes())?;
        self.to.write_all(&self.chunk)?;
        self.chunk.clear();
        Ok(())
    }
}

impl Write for Sealing<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.chunk.len() == CHUNK_BYTES {
            self.put(false)?;
        }
        let length = bytes.len().min(CHUNK_BYTES - self.chunk.len());
        self.chunk.extend_from_slice(&bytes[..length]);
        Ok(length)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Reads a backup: its header, and the state. Blocks.
///
/// # Errors
/// [`Unusable`], or that of `from`. Never panics, whatever the bytes.
pub fn read(from: &mut dyn Read, key: &Key) -> Result<(BackupHeader, State)> {
    let head = Head::read(from)?;
    let header = &head.header;
    if proof(key, &header.salt) != header.proof {
        return Err(match header.passphrase {
            Some(_) => Unusable::WrongPassphrase.into(),
            None => Unusable::WrongKey.into(),
        });
    }
    let mut chunks = Opening {
        from: Counted { from, at: head.bytes.len() as u64 },
        key: head.chunk_key(key),
        chunk: Vec::new(),
        plain: 0..0,
        count: 0,
        ended: false,
    };
    let state = store::read_snapshot(&mut chunks).map_err(|error| chunks.explain(error))?;
    chunks.finish()?;
    Ok((head.header, state))
}

/// Opens what was sealed, chunk by chunk.
struct Opening<'a> {
    from: Counted<'a>,
    key: LessSafeKey,
    chunk: Vec<u8>,
    plain: std::ops::Range<usize>,
    count: u64,
    ended: bool,
}

impl Opening<'_> {
    fn next(&mut self) -> io::Result<()> {
        let at = self.from.at;
        let damaged = |what: &str| Unusable::Damaged { at, what: what.into() };
        let mut length = [0; 4];
        self.from.fill(&mut length)?;
        let length = u32::from_le_bytes(length);
        let (last, length) = (length & LAST != 0, (length & !LAST) as usize);
        if length > CHUNK_BYTES + TAG_BYTES {
            return Err(damaged("the length of a chunk cannot be").into());
        }
        self.chunk.resize(length, 0);
        self.from.fill(&mut self.chunk)?;
        let opened = self.key.open_in_place(nonce(self.count), Aad::from([last.into()]), &mut self.chunk);
        let plain = opened.map_err(|_| damaged("a chunk is not what was sealed"))?.len();
        (self.plain, self.ended) = (0..plain, last);
        self.count += 1;
        Ok(())
    }

    /// That nothing follows what was read.
    fn finish(&mut self) -> Result<()> {
        let what = "something follows the state";
        let at = self.from.at;
        let over = Unusable::Damaged { at, what: what.into() };
        anyhow::ensure!(self.read(&mut [0])? == 0, over);
        let more = self.from.from.read(&mut [0]).context("cannot read the backup")?;
        anyhow::ensure!(more == 0, over);
        Ok(())
    }

    /// What has gone wrong with the file, where it is not the snapshot in it.
    fn explain(&self, error: SnapshotError) -> anyhow::Error {
        let SnapshotError::Io(error) = error else {
            return anyhow::Error::new(error).context("the backup is whole, but its state cannot be read");
        };
        match error.get_ref().and_then(|inner| inner.downcast_ref::<Unusable>()) {
            Some(unusable) => unusable.clone().into(),
            None if error.kind() == io::ErrorKind::UnexpectedEof => Unusable::Cut(self.from.at).into(),
            None => anyhow::Error::new(error).context("cannot read the backup"),
        }
    }
}

impl Read for Opening<'_> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        while self.plain.is_empty() {
            if self.ended {
                return Ok(0);
            }
            self.next()?;
        }
        let length = out.len().min(self.plain.len());
        out[..length].copy_from_slice(&self.chunk[self.plain.start..self.plain.start + length]);
        self.plain.start += length;
        Ok(length)
    }
}

/// Knows how far it has read.
struct Counted<'a> {
    from: &'a mut dyn Read,
    at: u64,
}

impl Counted<'_> {
    /// Fills all of `out`, or says where the file ends.
    fn fill(&mut self, out: &mut [u8]) -> io::Result<()> {
        let mut filled = 0;
        while filled < out.len() {
            match self.from.read(&mut out[filled..]) {
                Ok(0) => return Err(Unusable::Cut(self.at).into()),
                Ok(read) => {
                    filled += read;
                    self.at += read as u64;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
