//! Named volumes of this machine: directories that outlive the containers they are mounted into.
//!
//! ```text
//! <name>/volume.json        when it was made, its labels, whether it still waits for an image's files
//! <name>/_data/             what containers see
//! <name>/snapshots/<name>/  copies made by `volume snapshot`
//! tmp/                      what is not finished, or going
//! ```

mod copy;

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use rustix::fs::{Mode, OFlags, RenameFlags, ResolveFlags, openat2, renameat_with};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsconfig_set_string, fsmount, fsopen,
};
use serde::{Deserialize, Serialize};

use crate::identity::write_atomically;

const NAME_MAX: usize = 128;
const DATA: &str = "_data";
const RECORD: &str = "volume.json";
const SNAPSHOTS: &str = "snapshots";
const TMP: &str = "tmp";

/// Why something could not be done with a volume.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No name for a volume or snapshot.
    #[error(
        "`{0}` is no name for a volume: write 2 to 128 letters, digits, `_`, `.` and `-`, a letter or digit first"
    )]
    Name(String),
    /// There is none of this name.
    #[error("no volume `{0}` on this node: `rswarm volume ls` shows those that there are")]
    NotFound(String),
    /// There is no such snapshot.
    #[error("volume `{volume}` has no snapshot `{snapshot}`: it has {has}")]
    NoSnapshot {
        /// Of which volume.
        volume: String,
        /// Which one.
        snapshot: String,
        /// Those that there are.
        has: String,
    },
    /// The snapshot is there already.
    #[error("volume `{volume}` has a snapshot `{snapshot}` already: choose another name")]
    SnapshotExists {
        /// Of which volume.
        volume: String,
        /// Which one.
        snapshot: String,
    },
    /// Containers use it.
    #[error("volume `{volume}` is used by {users}: remove them first")]
    InUse {
        /// Which one.
        volume: String,
        /// Containers, comma separated.
        users: String,
    },
    /// It was made with other labels.
    #[error("there is a volume `{0}` with other labels: remove it first, or choose another name")]
    Differs(String),
    /// The disk.
    #[error("volume `{volume}`: cannot {what}: {source}")]
    Io {
        /// Which one.
        volume: String,
        /// What was being done.
        what: String,
        /// The operating system's answer.
        source: io::Error,
    },
}

/// A result of this module.
pub type Result<T> = std::result::Result<T, Error>;

/// A volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Volume {
    /// Its name on this machine.
    pub name: String,
    /// When it was made, in milliseconds since the Unix epoch.
    pub created_at_ms: u64,
    /// What its maker says of it.
    pub labels: BTreeMap<String, String>,
    /// Where its files are.
    pub path: PathBuf,
    /// Names of its snapshots, sorted.
    pub snapshots: Vec<String>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Record {
    created_at_ms: u64,
    labels: BTreeMap<String, String>,
    /// It is empty and has never been in a container: the first one fills it with what its image has there.
    fresh: bool,
}

/// The volumes of this machine. Methods block on the disk: call them from a blocking thread.
pub struct Volumes {
    directory: PathBuf,
    /// Held while volumes come, go or are filled, so that one step does not meet half of another.
    changing: Mutex<()>,
    /// Volumes that tasks in preparation count on, whose containers cannot be seen yet.
    held: Mutex<BTreeMap<String, usize>>,
}

/// Keeps a volume from being removed until it is dropped.
pub struct Hold {
    volumes: Arc<Volumes>,
    name: String,
}

impl Drop for Hold {
    fn drop(&mut self) {
        let mut held = self.volumes.held.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = held.get_mut(&self.name) {
            *count -= 1;
            if *count == 0 {
                held.remove(&self.name);
            }
        }
    }
}

/// Whether a text can name a volume: Docker's rule.
fn check(name: &str) -> Result<()> {
    let word = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-');
    let sound = (2..=NAME_MAX).contains(&name.len())
        && name.bytes().all(word)
        && name.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric());
    if sound { Ok(()) } else { Err(Error::Name(name.chars().take(200).collect())) }
}

fn doing<T>(volume: &str, what: &str, result: io::Result<T>) -> Result<T> {
    result.map_err(|source| Error::Io { volume: volume.into(), what: what.into(), source })
}

impl Volumes {
    /// Opens the volumes in `directory`; what a crash left unfinished goes.
    ///
    /// # Errors
    /// If the directory cannot be made or written.
    pub fn open(directory: PathBuf) -> io::Result<Self> {
        let tmp = directory.join(TMP);
        if tmp.exists() {
            fs::remove_dir_all(&tmp)?;
        }
        fs::create_dir_all(tmp)?;
        Ok(Self { directory, changing: Mutex::default(), held: Mutex::default() })
    }

    /// Makes a volume, or finds the one that is there.
    ///
    /// # Errors
    /// [`Error::Name`]; [`Error::Differs`] if there is one with other labels.
    pub fn create(&self, name: &str, labels: BTreeMap<String, String>, now_ms: u64) -> Result<Volume> {
        check(name)?;
        let _changing = self.changing();
        match self.record(name)? {
            Some(record) if record.labels != labels => Err(Error::Differs(name.into())),
            Some(_) => self.get(name),
            None => self.make(name, labels, now_ms),
        }
    }

    /// The volume for a container, made if there is none, and what keeps it until the container is there. A new
    /// one is filled with what the image has at `target`, unless `image` is `None`.
    ///
    /// # Errors
    /// [`Error::Name`], and if the disk refuses; a volume that could not be filled is tried again the next time.
    pub fn ready(
        self: &Arc<Self>,
        name: &str,
        image: Option<&[PathBuf]>,
        target: &str,
        now_ms: u64,
    ) -> Result<(PathBuf, Hold)> {
        check(name)?;
        let _changing = self.changing();
        let record = match self.record(name)? {
            Some(record) => record,
            None => {
                self.make(name, BTreeMap::new(), now_ms)?;
                Record { created_at_ms: now_ms, labels: BTreeMap::new(), fresh: true }
            }
        };
        if record.fresh {
            if let Some(layers) = image {
                self.fill(name, layers, target)?;
            }
            self.write(name, &Record { fresh: false, ..record })?;
        }
        *self.held.lock().unwrap_or_else(PoisonError::into_inner).entry(name.into()).or_default() += 1;
        Ok((self.path(name).join(DATA), Hold { volumes: self.clone(), name: name.into() }))
    }

    /// All volumes, by name.
    ///
    /// # Errors
    /// If the disk refuses.
    pub fn list(&self) -> Result<Vec<Volume>> {
        let entries = doing("*", "list the volumes", names(&self.directory))?;
        let volumes = entries.iter().filter(|name| *name != TMP && check(name).is_ok());
        volumes.filter(|name| self.path(name).join(RECORD).exists()).map(|name| self.get(name)).collect()
    }

    /// One volume.
    ///
    /// # Errors
    /// [`Error::NotFound`].
    pub fn get(&self, name: &str) -> Result<Volume> {
        check(name)?;
        let record = self.record(name)?.ok_or_else(|| Error::NotFound(name.into()))?;
        let mut snapshots = names(&self.path(name).join(SNAPSHOTS)).unwrap_or_default();
        snapshots.sort();
        Ok(Volume {
            name: name.into(),
            created_at_ms: record.created_at_ms,
            labels: record.labels,
            path: self.path(name).join(DATA),
            snapshots,
        })
    }

    /// Removes a volume with its snapshots. `users` names the containers that have it now.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::InUse`].
    pub fn remove(&self, name: &str, users: impl FnOnce() -> Vec<String>) -> Result<()> {
        let _changing = self.changing();
        self.get(name)?;
        self.unused(name, users)?;
        let going = self.tmp();
        doing(name, "remove it", fs::rename(self.path(name), &going))?;
        doing(name, "remove it", fs::remove_dir_all(going))
    }

    /// Copies a volume as it is at this moment, while containers may go on writing.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::SnapshotExists`], and if the disk refuses; then nothing is left of it.
    pub fn snapshot(&self, name: &str, snapshot: &str) -> Result<()> {
        check(snapshot)?;
        let _changing = self.changing();
        if self.get(name)?.snapshots.iter().any(|known| known == snapshot) {
            return Err(Error::SnapshotExists { volume: name.into(), snapshot: snapshot.into() });
        }
        let home = self.path(name).join(SNAPSHOTS);
        self.copy(name, &self.path(name).join(DATA), |made| {
            fs::create_dir_all(&home)?;
            fs::rename(made, home.join(snapshot))
        })
    }

    /// Puts a snapshot in the place of a volume that no container uses. The snapshot stays.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::NoSnapshot`], [`Error::InUse`].
    pub fn restore(&self, name: &str, snapshot: &str, users: impl FnOnce() -> Vec<String>) -> Result<()> {
        check(snapshot)?;
        let _changing = self.changing();
        let volume = self.get(name)?;
        if !volume.snapshots.iter().any(|known| known == snapshot) {
            let has = match volume.snapshots.is_empty() {
                true => "none".into(),
                false => volume.snapshots.join(", "),
            };
            return Err(Error::NoSnapshot { volume: name.into(), snapshot: snapshot.into(), has });
        }
        self.unused(name, users)?;
        let from = self.path(name).join(SNAPSHOTS).join(snapshot);
        self.copy(name, &from, |made| {
            let here = rustix::fs::CWD;
            renameat_with(here, made, here, &volume.path, RenameFlags::EXCHANGE)?;
            fs::remove_dir_all(made)
        })?;
        match self.record(name)? {
            Some(record) => self.write(name, &Record { fresh: false, ..record }),
            None => Ok(()),
        }
    }

    fn changing(&self) -> std::sync::MutexGuard<'_, ()> {
        self.changing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn unused(&self, name: &str, users: impl FnOnce() -> Vec<String>) -> Result<()> {
        // In this order: a task in preparation is held until its container can be seen.
        let held = self.held.lock().unwrap_or_else(PoisonError::into_inner).contains_key(name);
        let mut users = users();
        if held {
            users.push("a task that is being prepared".into());
        }
        match users.is_empty() {
            true => Ok(()),
            false => Err(Error::InUse { volume: name.into(), users: users.join(", ") }),
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    fn tmp(&self) -> PathBuf {
        static SERIAL: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(0);
        let serial = SERIAL.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        self.directory.join(TMP).join(format!("{}-{serial}", std::process::id()))
    }

    fn make(&self, name: &str, labels: BTreeMap<String, String>, now_ms: u64) -> Result<Volume> {
        let made = self.tmp();
        doing(name, "make it", fs::create_dir_all(made.join(DATA)))?;
        let record = Record { created_at_ms: now_ms, labels, fresh: true };
        let bytes = serde_json::to_vec(&record).map_err(io::Error::other);
        let write = bytes.and_then(|bytes| {
            write_atomically(&made.join(RECORD), &bytes).map_err(io::Error::other)?;
            fs::rename(&made, self.path(name))
        });
        doing(name, "make it", write)?;
        self.get(name)
    }

    fn record(&self, name: &str) -> Result<Option<Record>> {
        match fs::read(self.path(name).join(RECORD)) {
            Ok(bytes) => {
                doing(name, "read what it is", serde_json::from_slice(&bytes).map_err(io::Error::from))
                    .map(Some)
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => doing(name, "read what it is", Err(error)),
        }
    }

    fn write(&self, name: &str, record: &Record) -> Result<()> {
        let bytes = serde_json::to_vec(record).map_err(io::Error::other);
        let path = self.path(name).join(RECORD);
        let written = bytes.and_then(|bytes| write_atomically(&path, &bytes).map_err(io::Error::other));
        doing(name, "write what it is", written)
    }

    /// Copies a tree aside, and lets `place` move the copy where it belongs.
    fn copy(&self, name: &str, from: &Path, place: impl FnOnce(&Path) -> io::Result<()>) -> Result<()> {
        let made = self.tmp();
        let copy = || {
            fs::create_dir(&made)?;
            copy::tree(&copy::directory(from)?, &copy::directory(&made)?)?;
            place(&made)
        };
        let copied = copy();
        if copied.is_err() {
            // The next start removes what this could not.
            let _ = fs::remove_dir_all(&made);
        }
        doing(name, "copy it", copied)
    }

    /// Puts into a new volume what the image has at `target`, with the directory's owner and mode.
    fn fill(&self, name: &str, layers: &[PathBuf], target: &str) -> Result<()> {
        let data = self.path(name).join(DATA);
        let fill = || {
            let image = shown(layers, &self.directory.join(TMP))?;
            let how = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
            let from = match openat2(&image, target, flags, Mode::empty(), how) {
                Ok(from) => from,
                // The image has nothing there, or no directory.
                Err(rustix::io::Errno::NOENT | rustix::io::Errno::NOTDIR) => return Ok(()),
                Err(error) => return Err(error.into()),
            };
            // Whatever an attempt that failed has left.
            fs::remove_dir_all(&data)?;
            fs::create_dir(&data)?;
            copy::tree(&from, &copy::directory(&data)?)
        };
        doing(
            name,
            &format!("fill it with what the image has at {target} (volume-nocopy leaves it empty)"),
            fill(),
        )
    }
}

/// The layers as one tree, mounted nowhere.
fn shown(layers: &[PathBuf], empty: &Path) -> io::Result<OwnedFd> {
    let overlay = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC)?;
    // Overlayfs wants at least two, and a deletion in the lowest is one only if something is below it.
    let lowest = empty.join("nothing");
    fs::create_dir_all(&lowest)?;
    for layer in layers.iter().chain([&lowest]) {
        fsconfig_set_string(overlay.as_fd(), "lowerdir+", layer)?;
    }
    fsconfig_create(overlay.as_fd())?;
    Ok(fsmount(overlay.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::MOUNT_ATTR_RDONLY)?)
}

/// The names in a directory that are text; none if it is not there.
fn names(directory: &Path) -> io::Result<Vec<String>> {
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let mut names: Vec<String> = entries
        .filter_map(|entry| entry.map(|entry| entry.file_name().into_string().ok()).transpose())
        .collect::<io::Result<_>>()?;
    names.sort();
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};

    fn room() -> (tempfile::TempDir, Arc<Volumes>) {
        let directory = tempfile::tempdir().unwrap();
        let volumes = Volumes::open(directory.path().join("volumes")).unwrap();
        (directory, Arc::new(volumes))
    }

    fn nobody() -> Vec<String> {
        Vec::new()
    }

    #[test]
    fn a_volume_is_made_once_and_removed_when_nobody_has_it() {
        let (_directory, volumes) = room();
        let labels = BTreeMap::from([("tier".to_owned(), "db".to_owned())]);
        let made = volumes.create("data", labels.clone(), 7).unwrap();
        assert_eq!(volumes.create("data", labels.clone(), 9).unwrap(), made);
        assert!(matches!(volumes.create("data", BTreeMap::new(), 9), Err(Error::Differs(_))));
        let (path, hold) = volumes.ready("data", None, "/x", 9).unwrap();
        assert_eq!(path, made.path);
        let error = volumes.remove("data", nobody).unwrap_err().to_string();
        assert!(error.contains("being prepared"), "{error}");
        drop(hold);
        assert!(matches!(volumes.remove("data", || vec!["web.1".into()]), Err(Error::InUse { .. })));
        volumes.remove("data", nobody).unwrap();
        assert!(volumes.list().unwrap().is_empty());
        assert!(matches!(volumes.remove("data", nobody), Err(Error::NotFound(_))));
        for name in ["", "x", "../x", "a/b", ".a", "tmp/..", &"x".repeat(200)] {
            assert!(matches!(volumes.create(name, BTreeMap::new(), 0), Err(Error::Name(_))), "{name}");
        }
    }

    #[test]
    fn a_snapshot_brings_back_what_was() {
        let (directory, volumes) = room();
        let path = volumes.create("data", BTreeMap::new(), 0).unwrap().path;
        fs::create_dir(path.join("deep")).unwrap();
        fs::write(path.join("deep/file"), "one").unwrap();
        fs::set_permissions(path.join("deep/file"), fs::Permissions::from_mode(0o640)).unwrap();
        symlink("/etc/passwd", path.join("link")).unwrap();
        rustix::fs::setxattr(path.join("deep"), "user.note", b"x", rustix::fs::XattrFlags::empty()).unwrap();
        volumes.snapshot("data", "before").unwrap();
        assert!(matches!(volumes.snapshot("data", "before"), Err(Error::SnapshotExists { .. })));
        fs::write(path.join("deep/file"), "two").unwrap();
        fs::remove_file(path.join("link")).unwrap();
        fs::write(path.join("new"), "").unwrap();
        assert!(matches!(volumes.restore("data", "before", || vec!["w".into()]), Err(Error::InUse { .. })));
        assert!(matches!(volumes.restore("data", "other", nobody), Err(Error::NoSnapshot { .. })));
        for _ in 0..2 {
            volumes.restore("data", "before", nobody).unwrap();
            assert_eq!(fs::read_to_string(path.join("deep/file")).unwrap(), "one");
            assert_eq!(fs::metadata(path.join("deep/file")).unwrap().mode() & 0o777, 0o640);
            assert_eq!(fs::read_link(path.join("link")).unwrap(), Path::new("/etc/passwd"));
            let mut value = [0; 8];
            assert_eq!(rustix::fs::getxattr(path.join("deep"), "user.note", &mut value[..]), Ok(1));
            assert!(!path.join("new").exists());
        }
        assert_eq!(volumes.get("data").unwrap().snapshots, ["before"]);
        assert_eq!(fs::read_dir(directory.path().join("volumes/tmp")).unwrap().count(), 0);
    }

    #[test]
    fn the_first_container_fills_it_from_all_layers_of_its_image() {
        if !rustix::process::geteuid().is_root() {
            eprintln!("skipped: an overlay needs root");
            return;
        }
        let (directory, volumes) = room();
        let (upper, lower) = (directory.path().join("upper"), directory.path().join("lower"));
        fs::create_dir_all(lower.join("usr/share/www")).unwrap();
        fs::create_dir_all(upper.join("usr/share/www")).unwrap();
        symlink("usr/share", lower.join("srv")).unwrap();
        fs::write(lower.join("usr/share/www/a"), "low").unwrap();
        fs::write(lower.join("usr/share/www/b"), "low").unwrap();
        fs::write(upper.join("usr/share/www/b"), "high").unwrap();
        rustix::fs::chown(upper.join("usr/share/www"), Some(rustix::fs::Uid::from_raw(33)), None).unwrap();
        let layers = [upper, lower];
        let (path, _hold) = volumes.ready("www", Some(&layers), "/srv/www", 0).unwrap();
        let read = |name: &str| fs::read_to_string(path.join(name)).unwrap();
        assert_eq!((read("a"), read("b")), ("low".into(), "high".into()));
        assert_eq!(fs::metadata(&path).unwrap().uid(), 33);
        // Only once: what its containers removed stays removed.
        fs::remove_file(path.join("a")).unwrap();
        volumes.ready("www", Some(&layers), "/srv/www", 0).unwrap();
        assert!(!path.join("a").exists());
        let (empty, _hold) = volumes.ready("empty", Some(&layers), "/nothing/there", 0).unwrap();
        assert_eq!(fs::read_dir(empty).unwrap().count(), 0);
        let (empty, _hold) = volumes.ready("nocopy", None, "/srv/www", 0).unwrap();
        assert_eq!(fs::read_dir(empty).unwrap().count(), 0);
    }
}
