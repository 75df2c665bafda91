//! Files as a stream of tar, out of a root and into one, as `cp` copies them. Every path is resolved beneath the root
//! by descriptor, so that no link in it, and nobody who changes it meanwhile, leads elsewhere.

mod ids;
mod pack;
mod unpack;

pub use ids::Ids;
pub use pack::pack;
pub use unpack::{Target, unpack};

use rustix::fs::{Mode, OFlags, ResolveFlags, openat2};
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

/// The deepest tree that is copied.
const DEPTH_MAX: usize = 200;

/// A directory that paths are resolved beneath, and whose users own what is in it.
#[derive(Debug)]
pub struct Root {
    directory: OwnedFd,
    ids: Option<Ids>,
}

impl Root {
    /// With users that have a range of the machine's ids.
    #[must_use]
    pub fn with_ids(self, ids: Option<Ids>) -> Self {
        Self { ids, ..self }
    }
}

impl From<OwnedFd> for Root {
    fn from(directory: OwnedFd) -> Self {
        Self { directory, ids: None }
    }
}

/// Opens the root directory of this machine.
///
/// # Errors
/// If the system refuses.
pub fn root() -> io::Result<Root> {
    directory(Path::new("/")).map(Root::from)
}

/// Opens a directory to resolve paths beneath.
///
/// # Errors
/// If it is none.
pub fn directory(path: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    Ok(rustix::fs::open(path, flags, Mode::empty())?)
}

/// Whatever is at `path` beneath the root, itself a link or not.
fn find(root: &OwnedFd, path: &Path, flags: OFlags) -> rustix::io::Result<OwnedFd> {
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    openat2(root, path, OFlags::PATH | OFlags::CLOEXEC | flags, Mode::empty(), resolve)
}

fn bad(why: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why.into())
}

#[cfg(test)]
mod tests;
