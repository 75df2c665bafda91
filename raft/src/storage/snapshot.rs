//! Snapshots as files: sealed in chunks, written aside and renamed when complete, never whole in memory.
//!
//! A file is a header, a sealed description of what it covers, and chunks. The last chunk is marked in what its
//! seal covers, so a file that was cut short does not open.

use std::fs::{File, OpenOptions};
use std::io::{self, BufReader, BufWriter, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use prost::Message;

use super::medium::no_space;
use super::seal::{FileKey, SALT_BYTES, TAG_BYTES, random, sync_dir};
use super::{Dir, FORMAT};
use crate::OpenError;
use crate::format::SnapshotMetaPb;
use crate::point::reach;
use crate::types::{LogId, SnapshotMeta};

const MAGIC: &[u8; 8] = b"RSWRSNP\n";
const HEADER_BYTES: usize = 64;
/// The plain bytes of a chunk.
pub(crate) const CHUNK_BYTES: usize = 1 << 20;
/// How many complete snapshots stay: the newest, and one to fall back on.
const KEPT: usize = 2;
const META_BYTES_MAX: usize = 1 << 20;

/// A complete snapshot file, or one that was received and awaits its installation.
#[derive(Clone, Debug)]
pub(crate) struct SnapshotFile {
    pub(crate) path: PathBuf,
    pub(crate) meta: SnapshotMeta,
}

/// The snapshots in a directory.
#[derive(Clone)]
pub(crate) struct Snapshots {
    dir: Arc<Dir>,
    state: Arc<Mutex<State>>,
}

struct State {
    newest: Option<SnapshotFile>,
    /// Set when the log shuts down: what is still being written then must not replace anything.
    closed: bool,
}

impl Snapshots {
    /// Looks at what is there. Files that do not open are passed over in favour of older ones.
    pub(crate) fn open(dir: Arc<Dir>) -> Result<Self, OpenError> {
        let io = |error| OpenError::io(&dir.path, error);
        for file in std::fs::read_dir(&dir.path).map_err(io)? {
            let path = file.map_err(io)?.path();
            if path.extension().is_some_and(|extension| extension == "tmp") {
                std::fs::remove_file(&path).map_err(|error| OpenError::io(&path, error))?;
            }
        }
        let mut newest = None;
        let mut last_error = None;
        for path in complete(&dir.path).map_err(io)?.into_iter().rev() {
            match Reader::verify(&dir, &path) {
                Ok(meta) => {
                    newest = Some(SnapshotFile { path, meta });
                    break;
                }
                Err(error) => {
                    tracing::error!(file = %path.display(), %error, "passing over an unusable snapshot");
                    last_error.get_or_insert(error);
                }
            }
        }
        if let (None, Some(error)) = (&newest, last_error) {
            return Err(error);
        }
        let state = Mutex::new(State { newest, closed: false });
        Ok(Self { dir, state: Arc::new(state) })
    }

    pub(crate) fn newest(&self) -> Option<SnapshotFile> {
        self.state().newest.clone()
    }

    /// That the newest one covers what is no longer in the log. One that had to be passed over may have been the
    /// only one that did.
    pub(crate) fn reach(&self, purged: Option<LogId>) -> Result<(), OpenError> {
        let newest = self.newest();
        if newest.as_ref().and_then(|file| file.meta.last_log_id) >= purged {
            return Ok(());
        }
        let path = newest.map_or_else(|| self.dir.path.clone(), |file| file.path);
        Err(OpenError::damaged(&path, 0, "no readable snapshot covers the entries that were compacted"))
    }

    /// Begins a new file aside.
    pub(crate) fn create(&self, meta: SnapshotMeta) -> io::Result<Writer> {
        self.create_file(meta, None)
    }

    /// The same, but without room for what is written it waits until there is, or the log is closed.
    pub(crate) fn create_patiently(&self, meta: SnapshotMeta) -> io::Result<Writer> {
        self.create_file(meta, Some(self.state.clone()))
    }

    fn create_file(&self, meta: SnapshotMeta, until: Option<Arc<Mutex<State>>>) -> io::Result<Writer> {
        reach("snapshot.create")?;
        // Random, because a writer that outlived its log must not touch a file of the next one.
        let name = format!("snapshot-{:016x}.tmp", u64::from_le_bytes(random()));
        Writer::create(&self.dir, self.dir.path.join(name), meta, until)
    }

    pub(crate) fn read(&self, file: &SnapshotFile) -> io::Result<Reader> {
        reach("snapshot.read")?;
        Reader::open(&self.dir, &file.path).map_err(io::Error::other)
    }

    /// Makes a file that [`Writer::finish`] completed the newest, unless a newer one is there already.
    pub(crate) fn adopt(&self, file: SnapshotFile) -> io::Result<SnapshotFile> {
        let mut state = self.state();
        if state.closed {
            drop(std::fs::remove_file(&file.path));
            return Err(io::Error::other("the log is closed"));
        }
        if let Some(newest) = &state.newest
            && newest.meta.last_log_id >= file.meta.last_log_id
        {
            if newest.path != file.path {
                std::fs::remove_file(&file.path)?;
            }
            return Ok(newest.clone());
        }
        let path = self.dir.path.join(file_name(&file.meta));
        reach("snapshot.adopt")?;
        std::fs::rename(&file.path, &path)?;
        reach("snapshot.named")?;
        sync_dir(&self.dir.path)?;
        reach("snapshot.durable")?;
        let file = SnapshotFile { path, meta: file.meta };
        state.newest = Some(file.clone());
        let mut old = complete(&self.dir.path)?;
        old.truncate(old.len().saturating_sub(KEPT));
        for path in old {
            std::fs::remove_file(path)?;
            reach("snapshot.old")?;
        }
        Ok(file)
    }

    /// From now on nothing in the directory changes through this, and others may use it.
    pub(crate) fn close(&self) {
        self.state().closed = true;
        self.dir.release();
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().expect("nothing panics while it holds this lock")
    }
}

/// Sorts by what the snapshot covers.
fn file_name(meta: &SnapshotMeta) -> String {
    let (index, term) = meta.last_log_id.map_or((0, 0), |id| (id.index, id.leader_id.term));
    format!("{index:016x}-{term:016x}.snapshot")
}

/// The complete files in `dir`, oldest first.
fn complete(dir: &Path) -> io::Result<Vec<PathBuf>> {
    let mut paths = Vec::new();
    for file in std::fs::read_dir(dir)? {
        let path = file?.path();
        if path.extension().is_some_and(|extension| extension == "snapshot") {
            paths.push(path);
        }
    }
    paths.sort_unstable();
    Ok(paths)
}

fn file_key(dir: &Dir, salt: &[u8; SALT_BYTES]) -> FileKey {
    let mut purpose = b"rswarm raft snapshot".to_vec();
    purpose.extend_from_slice(&dir.identity.encode());
    dir.key.derive(salt, &purpose)
}

/// What the seal of a chunk covers besides its bytes.
fn aad(last: bool) -> [u8; 1] {
    [last.into()]
}

/// How often it is looked whether there is room again.
const RETRY: Duration = Duration::from_secs(1);

/// The file beneath a [`Writer`].
struct Out {
    file: File,
    /// Where it is read that the log is closed, by one that waits for room.
    until: Option<Arc<Mutex<State>>>,
}

impl Write for Out {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        loop {
            let written = self.file.write(bytes);
            let (Err(error), Some(until)) = (&written, &self.until) else { return written };
            let closed = || until.lock().expect("nothing panics while it holds this lock").closed;
            if !no_space(error) || closed() {
                return written;
            }
            tracing::warn!("no space left for a snapshot, waiting for some");
            std::thread::sleep(RETRY);
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

/// Writes a snapshot; dropping it unfinished removes the file.
pub(crate) struct Writer {
    file: Option<BufWriter<Out>>,
    path: PathBuf,
    meta: SnapshotMeta,
    key: FileKey,
    chunk: Vec<u8>,
    chunks: u64,
}

impl Writer {
    fn create(
        dir: &Dir,
        path: PathBuf,
        meta: SnapshotMeta,
        until: Option<Arc<Mutex<State>>>,
    ) -> io::Result<Self> {
        let salt = random();
        let mut header = [0; HEADER_BYTES];
        header[..8].copy_from_slice(MAGIC);
        header[8..12].copy_from_slice(&FORMAT.to_le_bytes());
        header[12..28].copy_from_slice(&dir.identity.encode());
        header[28..44].copy_from_slice(&salt);
        let sum = crc32c::crc32c(&header[..60]);
        header[60..].copy_from_slice(&sum.to_le_bytes());

        let file = OpenOptions::new().create(true).truncate(true).write(true).mode(0o600).open(&path)?;
        let mut writer = Self {
            file: Some(BufWriter::new(Out { file, until })),
            path,
            key: file_key(dir, &salt),
            chunk: Vec::with_capacity(CHUNK_BYTES + TAG_BYTES),
            chunks: 0,
            meta,
        };
        writer.out().write_all(&header)?;
        SnapshotMetaPb::from(&writer.meta).encode(&mut writer.chunk).map_err(io::Error::other)?;
        writer.seal(false)?;
        Ok(writer)
    }

    /// Completes the file and makes it durable, still under its temporary name.
    pub(crate) fn finish(mut self) -> io::Result<SnapshotFile> {
        reach("snapshot.finish")?;
        self.seal(true)?;
        let file = self.file.take().expect("only finish takes it");
        file.into_inner().map_err(io::IntoInnerError::into_error)?.file.sync_all()?;
        reach("snapshot.synced")?;
        Ok(SnapshotFile { path: std::mem::take(&mut self.path), meta: self.meta.clone() })
    }

    fn seal(&mut self, last: bool) -> io::Result<()> {
        reach("snapshot.chunk")?;
        let mut chunk = std::mem::take(&mut self.chunk);
        self.key.seal(self.chunks, &aad(last), &mut chunk, 0);
        self.chunks += 1;
        // The top bit of the length marks the last chunk for the reader; the seal proves it.
        let len = chunk.len() as u32 | if last { 1 << 31 } else { 0 };
        self.out().write_all(&len.to_le_bytes())?;
        self.out().write_all(&chunk)?;
        chunk.clear();
        self.chunk = chunk;
        Ok(())
    }

    fn out(&mut self) -> &mut BufWriter<Out> {
        self.file.as_mut().expect("only finish takes it")
    }
}

impl Write for Writer {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.chunk.len() == CHUNK_BYTES {
            self.seal(false)?;
        }
        let len = bytes.len().min(CHUNK_BYTES - self.chunk.len());
        self.chunk.extend_from_slice(&bytes[..len]);
        Ok(len)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        if self.file.take().is_some() {
            drop(std::fs::remove_file(&self.path));
        }
    }
}

fn unreadable(path: &Path, error: io::Error) -> OpenError {
    match error.kind() {
        io::ErrorKind::InvalidData => OpenError::damaged(path, 0, "a chunk is not what was sealed"),
        _ => OpenError::io(path, error),
    }
}

/// Reads a snapshot's plain bytes. It ends only behind a last chunk that was proven to be the last.
pub(crate) struct Reader {
    file: BufReader<File>,
    path: PathBuf,
    key: FileKey,
    chunk: Vec<u8>,
    at: usize,
    chunks: u64,
    ended: bool,
    pub(crate) meta: SnapshotMeta,
}

impl Reader {
    fn open(dir: &Dir, path: &Path) -> Result<Self, OpenError> {
        let io = |error| OpenError::io(path, error);
        let damaged = |what| OpenError::damaged(path, 0, what);
        let mut file = BufReader::new(File::open(path).map_err(io)?);
        let mut header = [0; HEADER_BYTES];
        file.read_exact(&mut header).map_err(|_| damaged("it is too short for a header"))?;
        if &header[..8] != MAGIC || header[60..] != crc32c::crc32c(&header[..60]).to_le_bytes() {
            return Err(damaged("its header fails the checksum"));
        }
        let format = u32::from_le_bytes(header[8..12].try_into().expect("four bytes"));
        if format != FORMAT {
            return Err(OpenError::Format { file: path.to_owned(), found: format, known: FORMAT });
        }
        dir.identity.check(&header[12..28], path)?;
        let salt = header[28..44].try_into().expect("sixteen bytes");
        let mut reader = Self {
            file,
            path: path.to_owned(),
            key: file_key(dir, &salt),
            chunk: Vec::new(),
            at: 0,
            chunks: 0,
            ended: false,
            meta: SnapshotMeta::default(),
        };
        reader.next_chunk().map_err(|error| unreadable(path, error))?;
        if reader.chunk.len() > META_BYTES_MAX {
            return Err(damaged("its description is too long"));
        }
        let meta =
            SnapshotMetaPb::decode(&*reader.chunk).map_err(|_| damaged("its description is unreadable"))?;
        reader.meta = meta.try_into().map_err(|_| damaged("its description makes no sense"))?;
        reader.at = reader.chunk.len();
        Ok(reader)
    }

    /// Reads the whole file and answers what it covers.
    fn verify(dir: &Dir, path: &Path) -> Result<SnapshotMeta, OpenError> {
        let mut reader = Self::open(dir, path)?;
        while !reader.ended {
            reader.next_chunk().map_err(|error| unreadable(path, error))?;
        }
        Ok(reader.meta)
    }

    fn next_chunk(&mut self) -> io::Result<()> {
        let damaged = |path: &Path, chunk: u64| {
            let what = format!("chunk {chunk} of {} is damaged", path.display());
            io::Error::new(io::ErrorKind::InvalidData, what)
        };
        let cut = |error: io::Error| match error.kind() {
            io::ErrorKind::UnexpectedEof => damaged(&self.path, self.chunks),
            _ => error,
        };
        let mut len = [0; 4];
        self.file.read_exact(&mut len).map_err(cut)?;
        let len = u32::from_le_bytes(len);
        let (last, len) = (len >> 31 == 1, (len & !(1 << 31)) as usize);
        if len > CHUNK_BYTES + TAG_BYTES {
            return Err(damaged(&self.path, self.chunks));
        }
        self.chunk.resize(len, 0);
        self.file.read_exact(&mut self.chunk).map_err(cut)?;
        let plain = self
            .key
            .open(self.chunks, &aad(last), &mut self.chunk)
            .ok_or_else(|| damaged(&self.path, self.chunks))?
            .len();
        self.chunk.truncate(plain);
        self.at = 0;
        self.chunks += 1;
        self.ended = last;
        Ok(())
    }
}

impl Read for Reader {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        while self.at == self.chunk.len() {
            if self.ended {
                return Ok(0);
            }
            self.next_chunk()?;
        }
        let len = out.len().min(self.chunk.len() - self.at);
        out[..len].copy_from_slice(&self.chunk[self.at..self.at + len]);
        self.at += len;
        Ok(len)
    }
}
