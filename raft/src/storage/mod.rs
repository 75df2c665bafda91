//! What a manager keeps on disk: its key, the log's segments and the last snapshots, in one locked directory.

pub(crate) mod log;
pub(crate) mod machine;
pub(crate) mod medium;
mod seal;
pub(crate) mod snapshot;
pub(crate) mod wal;

use std::fs::{File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use tokio::runtime::{Handle, RuntimeFlavor};
use tokio::task::JoinError;

pub(crate) use seal::{MasterKey, sync_dir};

use crate::disk::Gauge;
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
    /// How the disk fares that it is on.
    pub(crate) gauge: Gauge,
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
        Ok(Self {
            path: path.to_owned(),
            identity,
            key: Arc::new(key),
            gauge: Gauge::default(),
            lock: Mutex::new(Some(lock)),
        })
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

/// Runs what waits for the disk where it holds up nobody; in a simulation, which knows no other threads, at once.
pub(crate) async fn off_thread<T: Send + 'static>(
    act: impl FnOnce() -> T + Send + 'static,
) -> Result<T, JoinError> {
    match simulated() {
        true => Ok(act()),
        false => tokio::task::spawn_blocking(act).await,
    }
}

/// Whether this is a simulation.
pub(crate) fn simulated() -> bool {
    cfg!(feature = "sim") && Handle::current().runtime_flavor() == RuntimeFlavor::CurrentThread
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
                [".wal", ".snapshot", ".tmp", ".spare"].iter().any(|suffix| name.ends_with(suffix))
            });
            if ours {
                std::fs::remove_file(file.path())?;
            }
        }
        sync_dir(dir)
    };
    remove().map_err(|error| OpenError::io(dir, error))
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};

    use bytes::Bytes;
    use openraft::StorageError;
    use openraft::testing::log::{StoreBuilder, Suite};

    use super::log::LogStore;
    use super::machine::Machine;
    use super::medium::Media;
    use super::snapshot::{CHUNK_BYTES, Snapshots};
    use super::wal::Wal;
    use super::*;
    use crate::types::{LeaderId, LogId, SnapshotMeta, StoredMembership, Types};
    use crate::{Entry, Frozen, Incarnation, StateMachine};

    const IDENTITY: Identity = Identity { cluster: ClusterTag(1), id: RaftId(0) };

    struct Nothing;

    impl StateMachine for Nothing {
        fn apply(&mut self, entries: Vec<Entry>) -> Vec<Bytes> {
            vec![Bytes::new(); entries.len()]
        }

        fn freeze(&self) -> Box<dyn Frozen> {
            Box::new(Nothing)
        }

        fn restore(&mut self, _: u64, from: &mut dyn Read) -> io::Result<()> {
            io::copy(from, &mut io::sink()).map(drop)
        }
    }

    impl Frozen for Nothing {
        fn write(self: Box<Self>, _: &mut dyn Write) -> io::Result<()> {
            Ok(())
        }
    }

    /// All its stores have the same key, because the suite hands a snapshot's file from one to another.
    struct Builder(tempfile::TempDir);

    impl StoreBuilder<Types, LogStore, Machine, tempfile::TempDir> for Builder {
        async fn build(&self) -> Result<(tempfile::TempDir, LogStore, Machine), StorageError<Types>> {
            let root = tempfile::tempdir().unwrap();
            std::fs::copy(self.0.path().join("raft.key"), root.path().join("raft.key")).unwrap();
            let dir = Arc::new(Dir::open(root.path(), IDENTITY).unwrap());
            let snapshots = Snapshots::open(dir.clone()).unwrap();
            let (wal, recovered) = Wal::open(
                &dir.path,
                IDENTITY,
                dir.key.clone(),
                64 << 10,
                Incarnation::FIRST,
                &Media::default(),
            )
            .unwrap();
            let machine = Machine::new(Box::new(Nothing), snapshots);
            Ok((root, LogStore::new(wal, recovered, dir.gauge.clone()), machine))
        }
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn openraft_finds_no_fault_with_the_storage() {
        let key = tempfile::tempdir().unwrap();
        MasterKey::load_or_create(key.path(), true).unwrap();
        Suite::test_all(Builder(key)).await.unwrap();
    }

    fn snapshot_of(index: u64) -> SnapshotMeta {
        let last = LogId { leader_id: LeaderId { term: 1, node_id: 1 }, index };
        SnapshotMeta { last_log_id: Some(last), last_membership: StoredMembership::default() }
    }

    fn make(snapshots: &Snapshots, index: u64, bytes: &[u8]) -> snapshot::SnapshotFile {
        let mut writer = snapshots.create(snapshot_of(index)).unwrap();
        writer.write_all(bytes).unwrap();
        snapshots.adopt(writer.finish().unwrap()).unwrap()
    }

    #[test]
    fn the_last_two_snapshots_are_kept_and_the_newest_is_found_again() {
        let root = tempfile::tempdir().unwrap();
        let dir = Arc::new(Dir::open(root.path(), IDENTITY).unwrap());
        let snapshots = Snapshots::open(dir.clone()).unwrap();
        let bytes = vec![7; 2 * CHUNK_BYTES + 5];
        for index in [3, 5, 9] {
            make(&snapshots, index, &bytes);
        }
        // One that comes late does not replace a newer one.
        assert_eq!(make(&snapshots, 4, b"old").meta, snapshot_of(9));
        // One that was never finished leaves nothing.
        drop(snapshots.create(snapshot_of(20)).unwrap());
        let files = std::fs::read_dir(root.path()).unwrap();
        let names = files.map(|file| file.unwrap().file_name().into_string().unwrap());
        assert_eq!(names.filter(|name| name.contains("snapshot")).count(), 2);

        let newest = Snapshots::open(dir.clone()).unwrap().newest().unwrap();
        assert_eq!(newest.meta, snapshot_of(9));
        let mut read = Vec::new();
        snapshots.read(&newest).unwrap().read_to_end(&mut read).unwrap();
        assert!(read == bytes);
    }

    #[test]
    fn a_damaged_snapshot_is_passed_over_for_the_one_before() {
        let root = tempfile::tempdir().unwrap();
        let dir = Arc::new(Dir::open(root.path(), IDENTITY).unwrap());
        let snapshots = Snapshots::open(dir.clone()).unwrap();
        make(&snapshots, 3, b"good");
        let newest = make(&snapshots, 5, &[1; 100]);
        let good = std::fs::read(&newest.path).unwrap();
        for at in 0..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 4;
            std::fs::write(&newest.path, &bad).unwrap();
            let found = Snapshots::open(dir.clone()).unwrap().newest().unwrap();
            assert_eq!(found.meta, snapshot_of(3), "a flip at {at} went unnoticed");
            std::fs::write(&newest.path, &good[..at]).unwrap();
            let found = Snapshots::open(dir.clone()).unwrap().newest().unwrap();
            assert_eq!(found.meta, snapshot_of(3), "a cut at {at} went unnoticed");
        }
    }

    #[test]
    fn a_closed_log_adopts_no_snapshot() {
        let root = tempfile::tempdir().unwrap();
        let dir = Arc::new(Dir::open(root.path(), IDENTITY).unwrap());
        let snapshots = Snapshots::open(dir).unwrap();
        let late = snapshots.create(snapshot_of(3)).unwrap().finish().unwrap();
        snapshots.close();
        assert!(snapshots.adopt(late).is_err());
        let next = Dir::open(root.path(), IDENTITY).expect("the directory is free");
        assert!(Snapshots::open(Arc::new(next)).unwrap().newest().is_none());
    }

    #[test]
    fn a_directory_is_used_by_one_at_a_time() {
        let root = tempfile::tempdir().unwrap();
        let first = Dir::open(root.path(), IDENTITY).unwrap();
        assert!(matches!(Dir::open(root.path(), IDENTITY), Err(OpenError::Busy { .. })));
        assert!(matches!(wipe(root.path()), Err(OpenError::Busy { .. })));
        drop(first);
        Dir::open(root.path(), IDENTITY).unwrap();
    }
}
