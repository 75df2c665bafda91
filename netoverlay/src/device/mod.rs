//! The Linux half: network namespaces, links, routes, TUN devices, packet filter and connection tracking.
//!
//! Everything is spoken to the kernel directly; no program is called. Operations named `ensure_…` may be
//! repeated at will and leave alone what is already right.

use std::{fmt, io};

pub mod conntrack;
pub mod link;
mod netlink;
pub mod netns;
pub mod nft;
pub mod tun;

/// What the kernel refused: the act, where, and its answer as the source.
#[derive(Debug, thiserror::Error)]
#[error("cannot {action} in {place}")]
pub struct Error {
    action: String,
    place: String,
    source: io::Error,
}

/// The result of a device operation.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// An error of `action` ("create link ov0") in `place` ("netns /run/…").
    pub fn new(action: impl Into<String>, place: impl fmt::Display, source: impl Into<io::Error>) -> Self {
        Self { action: action.into(), place: place.to_string(), source: source.into() }
    }

    /// The kernel's error number, if the kernel it was.
    pub fn errno(&self) -> Option<i32> {
        self.source.raw_os_error()
    }

    /// Whether the thing acted on does not exist.
    pub fn is_missing(&self) -> bool {
        self.source.kind() == io::ErrorKind::NotFound
            || matches!(self.errno(), Some(libc::ENOENT | libc::ENODEV | libc::ESRCH | libc::EADDRNOTAVAIL))
    }

    /// Whether the thing to be made exists already.
    pub fn is_present(&self) -> bool {
        self.errno() == Some(libc::EEXIST)
    }
}
