//! openraft's type parameters, fixed once. Nothing here leaves the crate.

use std::fmt;

use bytes::Bytes;
use openraft::alias;

/// A proposed command: bytes that only the state machine understands.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Command(pub(crate) Bytes);

impl fmt::Debug for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes", self.0.len())
    }
}

impl fmt::Display for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// Where a member is reached and who it must prove to be.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Contact {
    pub(crate) addr: String,
    pub(crate) node: String,
}

#[cfg(not(feature = "sim"))]
openraft::declare_raft_types!(
    pub(crate) Types: D = Command, R = Bytes, NodeId = u64, Node = Contact,
);

#[cfg(feature = "sim")]
openraft::declare_raft_types!(
    pub(crate) Types: D = Command, R = Bytes, NodeId = u64, Node = Contact, AsyncRuntime = crate::sim::Runtime,
);

pub(crate) type LeaderId = alias::LeaderIdOf<Types>;
pub(crate) type Vote = alias::VoteOf<Types>;
pub(crate) type LogId = alias::LogIdOf<Types>;
pub(crate) type Entry = alias::EntryOf<Types>;
pub(crate) type Payload = openraft::EntryPayload<Command, u64, Contact>;
pub(crate) type Membership = openraft::Membership<u64, Contact>;
pub(crate) type StoredMembership = alias::StoredMembershipOf<Types>;
pub(crate) type SnapshotMeta = alias::SnapshotMetaOf<Types>;
