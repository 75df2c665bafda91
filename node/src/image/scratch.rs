//! Things in the making: locks, blobs on their way in, and directories that go if they are not finished.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::{FlockOperation, flock, syncfs};
use rustix::io::Errno;

use super::digest::Hasher;
use super::{Digest, Doing, Result, Store, refused};

/// Files of a tree that is made durable file by file.
const SYNCED_ONE_BY_ONE_MAX: usize = 64;

/// Held while something is added; nothing is collected meanwhile.
pub(super) type Adding = Lock;

/// A held `flock`. It is given up explicitly, since a process being started may share the descriptor for a moment.
pub(super) struct Lock(File);

impl Lock {
    /// Takes the lock, or returns `None` if `how` does not wait and somebody else has it.
    pub fn take(path: &Path, how: FlockOperation) -> Result<Option<Self>> {
        let file = File::options().create(true).truncate(false).write(true).open(path);
        let file = file.doing(|| format!("open {}", path.display()))?;
        loop {
            match flock(&file, how) {
                Ok(()) => return Ok(Some(Self(file))),
                Err(Errno::WOULDBLOCK) => return Ok(None),
                Err(Errno::INTR) => {}
                Err(error) => return Err(error).doing(|| format!("lock {}", path.display())),
            }
        }
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        let _ = flock(&self.0, FlockOperation::Unlock);
    }
}

/// A blob on its way in: hashed as it is written, gone if it is not committed.
pub(super) struct Ingest {
    store: Store,
    scratch: Scratch,
    file: File,
    hasher: Hasher,
    size: u64,
    max: u64,
}

impl Ingest {
    /// Begins a blob of at most `max` bytes.
    pub fn new(store: &Store, max: u64) -> Result<Self> {
        let scratch = Scratch(store.tmp_path());
        let file = File::options().read(true).write(true).create_new(true).open(&scratch.0);
        let file = file.doing(|| format!("create {}", scratch.0.display()))?;
        Ok(Self { store: store.clone(), scratch, file, hasher: Hasher::default(), size: 0, max })
    }

    /// Bytes written so far.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Forgets what was written.
    pub fn restart(&mut self) -> io::Result<()> {
        self.file.set_len(0)?;
        io::Seek::rewind(&mut self.file)?;
        self.hasher = Hasher::default();
        self.size = 0;
        Ok(())
    }

    /// Puts the blob in its place, if it is what was `expected`.
    pub fn commit(self, expected: Option<&Digest>) -> Result<Digest> {
        let digest = self.hasher.clone().finish();
        if let Some(expected) = expected.filter(|expected| **expected != digest) {
            return refused(
                format!("blob {expected}"),
                format!("its content is damaged (it has digest {digest})"),
            );
        }
        let path = self.store.blob_path(&digest);
        if !path.is_file() {
            let place = || {
                self.file.sync_all()?;
                fs::rename(&self.scratch.0, &path)?;
                sync_directory(path.parent().expect("a blob lies in a directory"))
            };
            place().doing(|| format!("create {}", path.display()))?;
        }
        Ok(digest)
    }
}

impl Write for Ingest {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.size + bytes.len() as u64 > self.max {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                format!("it is larger than {} bytes", self.max),
            ));
        }
        let n = self.file.write(bytes)?;
        self.hasher.update(&bytes[..n]);
        self.size += n as u64;
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

/// A path in `tmp` that is removed with all beneath it, unless it has been renamed away.
pub(super) struct Scratch(pub PathBuf);

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Err(error) = discard(&self.0) {
            tracing::warn!("cannot remove {}: {error}", self.0.display());
        }
    }
}

pub(super) fn discard(path: &Path) -> io::Result<()> {
    match fs::symlink_metadata(path) {
        Ok(metadata) if metadata.is_dir() => remove_tree(path),
        Ok(_) => fs::remove_file(path),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}

/// Whether an error is about this machine's disk and not about the bytes unpacked.
pub(super) fn is_disk(error: &io::Error) -> bool {
    use io::ErrorKind::{PermissionDenied, QuotaExceeded, ReadOnlyFilesystem, StorageFull};
    matches!(error.kind(), PermissionDenied | QuotaExceeded | ReadOnlyFilesystem | StorageFull)
}

pub(super) fn sync_directory(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

/// Makes a tree durable: file by file if it is small, since the whole file system may have much else to write.
pub(super) fn sync_tree(root: &Path) -> io::Result<()> {
    match sync_small_tree(root) {
        Ok(true) => Ok(()),
        // Without root's rights not every file of an image can be opened.
        Err(error) if error.kind() != io::ErrorKind::PermissionDenied => Err(error),
        Ok(false) | Err(_) => Ok(syncfs(File::open(root)?)?),
    }
}

/// Returns `false` if the tree is too large.
fn sync_small_tree(root: &Path) -> io::Result<bool> {
    let mut waiting = vec![root.to_path_buf()];
    let mut files = Vec::new();
    while let Some(directory) = waiting.pop() {
        for entry in fs::read_dir(&directory)? {
            let entry = entry?;
            let kind = entry.file_type()?;
            if kind.is_dir() {
                waiting.push(entry.path());
            } else if kind.is_file() {
                files.push(entry.path());
            }
            if files.len() + waiting.len() > SYNCED_ONE_BY_ONE_MAX {
                return Ok(false);
            }
        }
        files.push(directory);
    }
    files.iter().try_for_each(|path| File::open(path)?.sync_all())?;
    Ok(true)
}

/// Bytes that a tree takes on the disk; what cannot be read is not counted.
pub(super) fn tree_bytes(root: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt as _;
    let (mut waiting, mut bytes) = (vec![root.to_path_buf()], 0_u64);
    while let Some(directory) = waiting.pop() {
        for entry in fs::read_dir(&directory).into_iter().flatten().flatten() {
            let Ok(metadata) = entry.metadata() else { continue };
            bytes += metadata.blocks() * 512;
            if metadata.is_dir() {
                waiting.push(entry.path());
            }
        }
    }
    bytes
}

/// The names in a directory that are valid text; the store makes no others.
pub(super) fn names(directory: &Path) -> Result<Vec<String>> {
    let list = || -> io::Result<Vec<String>> {
        let entries = fs::read_dir(directory)?;
        entries
            .filter_map(|entry| entry.map(|entry| entry.file_name().into_string().ok()).transpose())
            .collect()
    };
    list().doing(|| format!("list {}", directory.display()))
}

/// A name nobody else has, in this process or another.
pub(super) fn unique() -> String {
    static SERIAL: AtomicU64 = AtomicU64::new(0);
    let mut random = [0; 8];
    // Without randomness (it does not fail on the kernels we run on) process and serial number still tell apart.
    let _ = rustix::rand::getrandom(&mut random, rustix::rand::GetRandomFlags::empty());
    let serial = SERIAL.fetch_add(1, Ordering::Relaxed);
    format!("{:016x}-{}-{serial}", u64::from_ne_bytes(random), std::process::id())
}

/// Removes a directory and all in it without following links and without holding more than two directories open,
/// however deep it is: directories found inside are first moved to the top.
fn remove_tree(path: &Path) -> io::Result<()> {
    let parent = path.parent().ok_or_else(|| io::Error::other("the root directory is not removed"))?;
    let (unique, mut serial) = (unique(), 0_u64);
    let mut waiting = vec![path.to_path_buf()];
    while let Some(directory) = waiting.pop() {
        let entries = match std::fs::read_dir(&directory) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(error),
        };
        for entry in entries {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                serial += 1;
                let moved = parent.join(format!("gone-{unique}-{serial}"));
                std::fs::rename(entry.path(), &moved)?;
                waiting.push(moved);
            } else {
                std::fs::remove_file(entry.path())?;
            }
        }
        match std::fs::remove_dir(&directory) {
            // Some file systems skip entries while others are removed: look again.
            Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => waiting.push(directory),
            result => result?,
        }
    }
    Ok(())
}
