//! What a manager keeps on disk: its key, the log's segments and the last snapshots, in one locked directory.

pub(crate) mod log;
pub(crate) mod machine;
mod seal;
pub(crate) mod snapshot;
pub(crate) mod wal;

use std::fs::{File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

pub(crate) use seal::{MasterKey, sync_dir};

use crate::{ClusterTag, OpenError, RaftId};

/// The version of everything on disk. Files of another version are refused.
const FORMAT: u32 = 1;

const LOCK: &str = "lock";

/// Whose files these are. Stands in each of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Identity {
    pub(crate) cluster: ClusterTag,
    pub(crate) id: RaftId,
}

impl Identity {
    fn encode(self) -> [u8; 16] {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&self.cluster.0.to_le_bytes());
        bytes[8..].copy_from_slice(&self.id.0.to_le_bytes());
        bytes
    }

    fn check(self, bytes: &[u8], path: &Path) -> Result<(), OpenError> {
        if bytes == self.encode() {
            return Ok(());
        }
        let word = |at: usize| {
            bytes.get(at..at + 8).and_then(|word| word.try_into().ok()).map_or(0, u64::from_le_bytes)
        };
        Err(OpenError::Foreign { file: path.to_owned(), cluster: ClusterTag(word(0)), id: RaftId(word(8)) })
    }
}

/// A manager's directory, locked until this is released or dropped.
pub(crate) struct Dir {
    pub(crate) path: PathBuf,
    pub(crate) identity: Identity,
    pub(crate) key: Arc<MasterKey>,
    lock: Mutex<Option<File>>,
}

impl Dir {
    pub(crate) fn open(path: &Path, identity: Identity) -> Result<Self, OpenError> {
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(path)
            .map_err(|error| OpenError::io(path, error))?;
        let lock = lock(path)?;
        let used = !wal::segments(path).map_err(|error| OpenError::io(path, error))?.is_empty();
        let key = MasterKey::load_or_create(path, !used)?;
        Ok(Self { path: path.to_owned(), identity, key: Arc::new(key), lock: Mutex::new(Some(lock)) })
    }

    /// Lets others use the directory. Nothing may be written to it afterwards but temporary files.
    pub(crate) fn release(&self) {
        self.lock.lock().expect("nothing panics while it holds this lock").take();
    }
}

fn lock(dir: &Path) -> Result<File, OpenError> {
    let path = dir.join(LOCK);
    let file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .mode(0o600)
        .open(&path)
        .map_err(|error| OpenError::io(&path, error))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(OpenError::Busy { dir: dir.to_owned() }),
        Err(TryLockError::Error(error)) => Err(OpenError::io(&path, error)),
    }
}

/// Whether `dir` holds a log that [`crate::Log::open`] would continue.
///
/// # Errors
/// When the directory exists and cannot be read.
pub fn exists(dir: &Path) -> io::Result<bool> {
    match wal::segments(dir) {
        Ok(segments) => Ok(!segments.is_empty()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

/// Forgets everything in `dir`, which a removed or demoted manager must do before it may join again, under a
/// new [`RaftId`]. The key goes first, so that what a crash leaves behind is unreadable.
///
/// # Errors
/// [`OpenError::Busy`] while a log is open there; [`OpenError::Io`] if something cannot be removed.
pub fn wipe(dir: &Path) -> Result<(), OpenError> {
    if !dir.try_exists().map_err(|error| OpenError::io(dir, error))? {
        return Ok(());
    }
    let _lock = lock(dir)?;
    let remove = || -> io::Result<()> {
        seal::forget(dir)?;
        for file in std::fs::read_dir(dir)? {
            let file = file?;
            let name = file.file_name();
            let ours = name.to_str().is_some_and(|name| {
                [".wal", ".snapshot", ".tmp"].iter().any(|suffix| name.ends_with(suffix))
            });
            if ours {
                std::fs::remove_file(file.path())?;
            }
        }
        sync_dir(dir)
    };
    remove().map_err(|error| OpenError::io(dir, error))
}
