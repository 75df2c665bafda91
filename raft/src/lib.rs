//! AGREES: a replicated, durable log of bytes.
//!
//! A [`Log`] on each manager keeps the same entries in the same order, feeds them to a [`StateMachine`], and
//! answers a proposal once a quorum has it on disk and it was applied. What the bytes mean, and how frames
//! travel to other managers ([`Transport`]), is somebody else's business. The consensus is openraft's, the
//! write-ahead log, the snapshots and the messages are ours; openraft's types reach neither this crate's API
//! nor disk nor wire.
#![forbid(unsafe_code)]

mod begin;
mod config;
mod disk;
mod error;
mod force;
mod format;
#[cfg(any(test, feature = "fuzz"))]
pub mod fuzz;
mod leap;
mod log;
mod membership;
pub mod memory;
mod network;
mod point;
mod reads;
mod serve;
#[cfg(feature = "sim")]
pub mod sim;
mod status;
mod storage;
mod types;
mod wire;

use std::fmt;
use std::io::{self, Read, Write};

use bytes::Bytes;

pub use begin::begin_with;
pub use config::Config;
pub use disk::{Disk, Full};
pub use error::{ChangeError, OpenError, ProposeError, ReadError, TransferError};
pub use force::force_new_cluster;
pub use log::{Log, Proposed};
pub use membership::AsWhat;
pub use network::{Answers, Frames, Transport, Unreachable};
pub use status::{Role, Status};
pub use storage::{exists, wipe};
pub use wire::{COMMAND_BYTES_MAX, FRAME_BYTES_MAX};

/// A manager in the log's eyes. **Invariant:** never given to another, not even to the same machine after its
/// directory was wiped; the index of the entry that decided the join is a good choice.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RaftId(pub u64);

impl fmt::Display for RaftId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Tells clusters apart: random, and the same on all its managers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ClusterTag(pub u64);

impl fmt::Display for ClusterTag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// Tells the lives of one cluster apart: each [`force_new_cluster`] begins another, whose managers have nothing to
/// do with those of earlier ones. The upper half counts, the lower is random, because two managers may have
/// been forced without knowing of each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Incarnation(pub u64);

impl Incarnation {
    /// Of a cluster that was never forced.
    pub const FIRST: Self = Self(1);

    /// The next one; `tail` is random.
    pub fn next(self, tail: u32) -> Self {
        Self(((self.0 >> 32) + 1) << 32 | u64::from(tail))
    }

    /// Counts from 1.
    pub fn number(self) -> u64 {
        (self.0 >> 32) + 1
    }

    /// Whether `other` came after it. Of two that were begun from the same one, neither precedes the other.
    pub fn precedes(self, other: Self) -> bool {
        self.number() < other.number()
    }
}

impl Default for Incarnation {
    fn default() -> Self {
        Self::FIRST
    }
}

impl fmt::Display for Incarnation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.number().fmt(f)
    }
}

/// A manager that takes part in the log.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Member {
    /// Its id in the log.
    pub id: RaftId,
    /// "ip:port" of its control port.
    pub addr: String,
    /// The node id it must prove when it is connected to.
    pub node: String,
}

impl Member {
    fn new(id: u64, contact: &types::Contact) -> Self {
        Self { id: RaftId(id), addr: contact.addr.clone(), node: contact.node.clone() }
    }

    fn contact(&self) -> types::Contact {
        types::Contact { addr: self.addr.clone(), node: self.node.clone() }
    }
}

impl fmt::Display for Member {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "manager {} at {}", self.id, self.addr)
    }
}

/// A committed command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its place in the log. Grows from entry to entry, with gaps where the log keeps its own records.
    pub index: u64,
    /// The term of the leader that proposed it.
    pub term: u64,
    /// The command, as it was proposed.
    pub bytes: Bytes,
}

/// What the entries mean.
///
/// Every manager applies the same entries in the same order, so `apply` must depend on nothing else: no clock,
/// no randomness. After a restart the newest snapshot is restored and the entries behind it are applied again.
/// A panic in any of these stops the log; [`Status::failed`] says so.
pub trait StateMachine: Send + 'static {
    /// Applies a batch and answers each entry, in order; the answers go to the proposers. Runs on an async
    /// worker, so it must not block. What readers see is best published once, at the end.
    fn apply(&mut self, entries: Vec<Entry>) -> Vec<Bytes>;

    /// A view of the state as it is now. Must be cheap: nothing is applied meanwhile.
    fn freeze(&self) -> Box<dyn Frozen>;

    /// Replaces the state by what [`Frozen::write`] wrote, which covers everything up to `index`.
    ///
    /// # Errors
    /// If the bytes cannot be read or make no sense; the log then stops.
    fn restore(&mut self, index: u64, from: &mut dyn Read) -> io::Result<()>;
}

/// A view of the state that no longer changes.
pub trait Frozen: Send + 'static {
    /// Writes it out. Runs on a thread that may block, while entries are applied to the live state.
    ///
    /// # Errors
    /// Those of `to`; the log then stops, since it cannot be compacted.
    fn write(self: Box<Self>, to: &mut dyn Write) -> io::Result<()>;
}
