//! Network namespaces: pinned at a path by a bind mount, entered only by threads that end afterwards.

use std::{
    fmt, fs, io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd},
    path::Path,
    sync::Arc,
    thread,
};

use nix::{
    mount::{MntFlags, MsFlags, mount, umount2},
    sched::{CloneFlags, setns, unshare},
};

use super::{Error, Result};

/// The magic number of the file system on which namespaces live.
const NSFS_MAGIC: i64 = 0x6e73_6673;

/// An open network namespace. It lives as long as this handle, its pin, or a process in it does.
#[derive(Clone)]
pub struct Netns {
    file: Arc<fs::File>,
    place: Arc<str>,
}

impl Netns {
    /// Makes a new namespace and pins it at `path`, whose parent directories are made if missing.
    /// Fails with `EEXIST` if a namespace is pinned there; a plain file left by a crash is taken over.
    pub fn create(path: &Path) -> Result<Self> {
        Self::create_with(path, &[])
    }

    /// As [`Netns::create`], with these settings below `/proc/sys` made before anyone can find the namespace.
    pub fn create_with(path: &Path, settings: &[(&str, &str)]) -> Result<Self> {
        let failed = |source: io::Error| Error::new("create a network namespace", place_of(path), source);
        if is_pinned(path) {
            return Err(failed(io::Error::from_raw_os_error(libc::EEXIST)));
        }
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent).map_err(failed)?;
        }
        fs::OpenOptions::new().create(true).append(true).open(path).map_err(failed)?;
        on_thread("netns-create", || {
            unshare(CloneFlags::CLONE_NEWNET)?;
            for (key, value) in settings {
                write_sysctl(key, value)?;
            }
            mount(Some("/proc/thread-self/ns/net"), path, None::<&str>, MsFlags::MS_BIND, None::<&str>)?;
            Ok(())
        })
        .inspect_err(|_| {
            // Best effort: the file is ours and empty.
            let _ = fs::remove_file(path);
        })
        .map_err(failed)?;
        Self::open(path)
    }

    /// Opens the namespace at `path`: a pin, or a `/proc/…/ns/net` link.
    pub fn open(path: &Path) -> Result<Self> {
        let place = place_of(path);
        let file = fs::File::open(path).map_err(|source| Error::new("open the namespace", &place, source))?;
        if !is_nsfs(&file) {
            let source = io::Error::new(io::ErrorKind::NotFound, "the file is no namespace");
            return Err(Error::new("open the namespace", place, source));
        }
        Ok(Self { file: Arc::new(file), place: place.into() })
    }

    /// Opens the namespace pinned at `path`, made if it is not there.
    pub fn ensure(path: &Path) -> Result<Self> {
        Self::ensure_with(path, &[])
    }

    /// As [`Netns::ensure`]; a namespace that has to be made gets these settings, one that is there keeps its own.
    pub fn ensure_with(path: &Path, settings: &[(&str, &str)]) -> Result<Self> {
        match Self::open(path) {
            Err(error) if error.is_missing() => Self::create_with(path, settings),
            opened => opened,
        }
    }

    /// The namespace of the calling thread.
    pub fn current() -> Result<Self> {
        let place = "the current netns";
        let file = fs::File::open("/proc/thread-self/ns/net")
            .map_err(|source| Error::new("open the namespace", place, source))?;
        Ok(Self { file: Arc::new(file), place: place.into() })
    }

    /// Takes away the pin at `path`, if there is one. The namespace dies when nothing else holds it;
    /// the kernel does that later, so its links' names may be taken for some milliseconds more.
    pub fn remove(path: &Path) -> Result<()> {
        let failed = |source: io::Error| Error::new("remove the pin", place_of(path), source);
        while is_pinned(path) {
            match umount2(path, MntFlags::MNT_DETACH) {
                Ok(()) => {}
                Err(nix::Error::EINVAL | nix::Error::ENOENT) => break,
                Err(error) => return Err(failed(error.into())),
            }
        }
        match fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed(error)),
            _ => Ok(()),
        }
    }

    /// Runs `act` on a fresh thread inside the namespace and waits for it. The thread ends afterwards, so
    /// no other code ever runs in the wrong namespace. Sockets made by `act` stay in this namespace.
    ///
    /// Blocks the caller; a panic of `act` is passed on.
    pub fn run<T: Send>(&self, act: impl FnOnce() -> T + Send) -> Result<T> {
        on_thread("netns", || {
            setns(&*self.file, CloneFlags::CLONE_NEWNET)?;
            Ok(act())
        })
        .map_err(|source| Error::new("enter the namespace", self, source))
    }

    /// Writes settings below `/proc/sys`, such as `("net/ipv4/ip_forward", "1")`, where they differ.
    pub fn set_sysctls(&self, settings: &[(&str, &str)]) -> Result<()> {
        self.run(|| {
            settings.iter().try_for_each(|(key, value)| {
                write_sysctl(key, value)
                    .map_err(|source| Error::new(format!("set {key} = {value}"), self, source))
            })
        })?
    }

    /// Reads the setting `key` below `/proc/sys`, without its final newline.
    pub fn sysctl(&self, key: &str) -> Result<String> {
        self.run(|| fs::read_to_string(Path::new("/proc/sys").join(key)))?
            .map(|value| value.trim_end().to_owned())
            .map_err(|source| Error::new(format!("read {key}"), self, source))
    }

    /// Whether both handles mean the same namespace.
    pub fn is_same(&self, other: &Self) -> bool {
        use std::os::unix::fs::MetadataExt;
        match (self.file.metadata(), other.file.metadata()) {
            (Ok(a), Ok(b)) => (a.dev(), a.ino()) == (b.dev(), b.ino()),
            _ => false,
        }
    }
}

/// Runs `act` on a fresh thread inside `netns`: see [`Netns::run`].
pub fn run_in<T: Send>(netns: &Netns, act: impl FnOnce() -> T + Send) -> Result<T> {
    netns.run(act)
}

impl AsFd for Netns {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl AsRawFd for Netns {
    fn as_raw_fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }
}

impl fmt::Display for Netns {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.place)
    }
}

impl fmt::Debug for Netns {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Netns({})", self.place)
    }
}

fn place_of(path: &Path) -> String {
    format!("netns {}", path.display())
}

fn is_pinned(path: &Path) -> bool {
    fs::File::open(path).is_ok_and(|file| is_nsfs(&file))
}

fn is_nsfs(file: &fs::File) -> bool {
    nix::sys::statfs::fstatfs(file).is_ok_and(|stat| stat.filesystem_type().0 == NSFS_MAGIC)
}

/// Writes a setting of the calling thread's namespace, unless it is so already.
fn write_sysctl(key: &str, value: &str) -> io::Result<()> {
    let path = Path::new("/proc/sys").join(key);
    let now = fs::read_to_string(&path)?;
    if now.split_whitespace().eq(value.split_whitespace()) { Ok(()) } else { fs::write(&path, value) }
}

/// Runs `act` on a thread of its own that is gone when this returns.
fn on_thread<T: Send>(name: &str, act: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
    thread::scope(|scope| {
        let worker = thread::Builder::new().name(name.to_owned()).spawn_scoped(scope, act)?;
        match worker.join() {
            Ok(done) => done,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    })
}
