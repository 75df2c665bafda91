//! The one form in which votes, log ids, entries and memberships are written, on disk and on the wire.
//!
//! Messages are prost's, so fields can be added; what a decoder does not know it ignores. Decoding checks
//! everything openraft takes for granted, because both a disk and a peer may hand us anything.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use prost::Message;
use prost::encoding::{self, WireType};

use crate::types::{
    Command, Contact, Entry, LeaderId, LogId, Membership, Payload, SnapshotMeta, StoredMembership, Vote,
};

/// Why a message could not be understood.
#[derive(Debug, thiserror::Error)]
#[error("malformed message: {0}")]
pub(crate) struct Malformed(pub(crate) &'static str);

impl From<prost::DecodeError> for Malformed {
    fn from(_: prost::DecodeError) -> Self {
        Malformed("not a protobuf message of the expected kind")
    }
}

#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
pub(crate) struct LogIdPb {
    #[prost(uint64, tag = "1")]
    term: u64,
    #[prost(uint64, tag = "2")]
    leader: u64,
    #[prost(uint64, tag = "3")]
    index: u64,
}

impl From<LogId> for LogIdPb {
    fn from(id: LogId) -> Self {
        Self { term: id.leader_id.term, leader: id.leader_id.node_id, index: id.index }
    }
}

impl From<LogIdPb> for LogId {
    fn from(id: LogIdPb) -> Self {
        LogId { leader_id: LeaderId { term: id.term, node_id: id.leader }, index: id.index }
    }
}

#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
pub(crate) struct VotePb {
    #[prost(uint64, tag = "1")]
    term: u64,
    #[prost(uint64, tag = "2")]
    leader: u64,
    #[prost(bool, tag = "3")]
    committed: bool,
}

impl From<Vote> for VotePb {
    fn from(vote: Vote) -> Self {
        Self { term: vote.leader_id.term, leader: vote.leader_id.node_id, committed: vote.committed }
    }
}

impl From<VotePb> for Vote {
    fn from(vote: VotePb) -> Self {
        Vote { leader_id: LeaderId { term: vote.term, node_id: vote.leader }, committed: vote.committed }
    }
}

#[derive(Clone, PartialEq, Eq, prost::Message)]
pub(crate) struct ContactPb {
    #[prost(uint64, tag = "1")]
    id: u64,
    #[prost(string, tag = "2")]
    addr: String,
    #[prost(string, tag = "3")]
    node: String,
}

#[derive(Clone, PartialEq, Eq, prost::Message)]
pub(crate) struct VotersPb {
    #[prost(uint64, repeated, tag = "1")]
    ids: Vec<u64>,
}

#[derive(Clone, PartialEq, Eq, prost::Message)]
pub(crate) struct MembershipPb {
    /// One set of voters; two while a change is under way.
    #[prost(message, repeated, tag = "1")]
    voters: Vec<VotersPb>,
    #[prost(message, repeated, tag = "2")]
    members: Vec<ContactPb>,
}

impl From<&Membership> for MembershipPb {
    fn from(membership: &Membership) -> Self {
        let voters = membership
            .get_joint_config()
            .iter()
            .map(|ids| VotersPb { ids: ids.iter().copied().collect() })
            .collect();
        let members = membership
            .nodes()
            .map(|(id, contact)| ContactPb {
                id: *id,
                addr: contact.addr.clone(),
                node: contact.node.clone(),
            })
            .collect();
        Self { voters, members }
    }
}

impl TryFrom<MembershipPb> for Membership {
    type Error = Malformed;

    fn try_from(membership: MembershipPb) -> Result<Self, Malformed> {
        if membership.voters.is_empty() && membership.members.is_empty() {
            return Ok(Membership::default());
        }
        let members: BTreeMap<u64, Contact> = membership
            .members
            .into_iter()
            .map(|member| (member.id, Contact { addr: member.addr, node: member.node }))
            .collect();
        let voters: Vec<BTreeSet<u64>> =
            membership.voters.into_iter().map(|set| set.ids.into_iter().collect()).collect();
        Membership::new(voters, members)
            .map_err(|_| Malformed("a membership without voters, or with a voter that has no address"))
    }
}

#[derive(Clone, PartialEq, Eq, prost::Message)]
pub(crate) struct StoredMembershipPb {
    #[prost(message, optional, tag = "1")]
    id: Option<LogIdPb>,
    #[prost(message, optional, tag = "2")]
    membership: Option<MembershipPb>,
}

impl From<&StoredMembership> for StoredMembershipPb {
    fn from(stored: &StoredMembership) -> Self {
        Self {
            id: stored.log_id().map(LogIdPb::from),
            membership: Some(MembershipPb::from(stored.membership())),
        }
    }
}

impl TryFrom<StoredMembershipPb> for StoredMembership {
    type Error = Malformed;

    fn try_from(stored: StoredMembershipPb) -> Result<Self, Malformed> {
        let membership = match stored.membership {
            Some(membership) => membership.try_into()?,
            None => Membership::default(),
        };
        Ok(StoredMembership::new(stored.id.map(LogId::from), membership))
    }
}

#[derive(Clone, PartialEq, Eq, prost::Message)]
pub(crate) struct EntryPb {
    #[prost(message, required, tag = "1")]
    id: LogIdPb,
    /// Neither of the two following: a blank entry.
    #[prost(bytes = "bytes", optional, tag = "2")]
    command: Option<Bytes>,
    #[prost(message, optional, tag = "3")]
    membership: Option<MembershipPb>,
}

impl From<&Entry> for EntryPb {
    fn from(entry: &Entry) -> Self {
        let (command, membership) = match &entry.payload {
            Payload::Blank => (None, None),
            Payload::Normal(command) => (Some(command.0.clone()), None),
            Payload::Membership(membership) => (None, Some(MembershipPb::from(membership))),
        };
        Self { id: entry.log_id.into(), command, membership }
    }
}

impl EntryPb {
    /// A blanket conversion of openraft's stands in the way of `TryFrom`.
    pub(crate) fn into_entry(self) -> Result<Entry, Malformed> {
        let payload = match (self.command, self.membership) {
            (None, None) => Payload::Blank,
            (Some(command), None) => Payload::Normal(Command(command)),
            (None, Some(membership)) => Payload::Membership(membership.try_into()?),
            (Some(_), Some(_)) => return Err(Malformed("an entry that is both command and membership")),
        };
        Ok(Entry { log_id: self.id.into(), payload })
    }
}

/// An entry as a field of a message, encoded from where it lies. The bytes are those of an [`EntryPb`], but nothing
/// is cloned on the way: of most of what a log does, that would be the larger part.
pub(crate) struct EntryField<'a> {
    entry: &'a Entry,
    id: LogIdPb,
    /// Only of a membership, which is rare.
    other: Option<EntryPb>,
    len: usize,
}

const ID_TAG: u32 = 1;
const COMMAND_TAG: u32 = 2;

impl<'a> EntryField<'a> {
    pub(crate) fn new(entry: &'a Entry) -> Self {
        let id = LogIdPb::from(entry.log_id);
        let other = matches!(entry.payload, Payload::Membership(_)).then(|| EntryPb::from(entry));
        let len = match (&other, &entry.payload) {
            (Some(other), _) => other.encoded_len(),
            (None, Payload::Normal(command)) => {
                let bytes = command.0.len();
                let head = encoding::key_len(COMMAND_TAG) + encoding::encoded_len_varint(bytes as u64);
                encoding::message::encoded_len(ID_TAG, &id) + head + bytes
            }
            (None, _) => encoding::message::encoded_len(ID_TAG, &id),
        };
        Self { entry, id, other, len }
    }

    /// The bytes it takes, its tag and length included.
    pub(crate) fn encoded_len(&self, tag: u32) -> usize {
        encoding::key_len(tag) + encoding::encoded_len_varint(self.len as u64) + self.len
    }

    pub(crate) fn encode(&self, tag: u32, out: &mut Vec<u8>) {
        encoding::encode_key(tag, WireType::LengthDelimited, out);
        encoding::encode_varint(self.len as u64, out);
        if let Some(other) = &self.other {
            return other.encode_raw(out);
        }
        encoding::message::encode(ID_TAG, &self.id, out);
        if let Payload::Normal(command) = &self.entry.payload {
            encoding::encode_key(COMMAND_TAG, WireType::LengthDelimited, out);
            encoding::encode_varint(command.0.len() as u64, out);
            out.extend_from_slice(&command.0);
        }
    }
}

/// The number of payload bytes in an entry: what bounds batches and memory.
pub(crate) fn payload_len(entry: &Entry) -> usize {
    match &entry.payload {
        Payload::Blank => 0,
        Payload::Normal(command) => command.0.len(),
        Payload::Membership(_) => 256,
    }
}

/// What a snapshot covers.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub(crate) struct SnapshotMetaPb {
    #[prost(message, optional, tag = "1")]
    last: Option<LogIdPb>,
    #[prost(message, optional, tag = "2")]
    membership: Option<StoredMembershipPb>,
}

impl From<&SnapshotMeta> for SnapshotMetaPb {
    fn from(meta: &SnapshotMeta) -> Self {
        Self {
            last: meta.last_log_id.map(LogIdPb::from),
            membership: Some(StoredMembershipPb::from(&meta.last_membership)),
        }
    }
}

impl TryFrom<SnapshotMetaPb> for SnapshotMeta {
    type Error = Malformed;

    fn try_from(meta: SnapshotMetaPb) -> Result<Self, Malformed> {
        Ok(SnapshotMeta {
            last_log_id: meta.last.map(LogId::from),
            last_membership: match meta.membership {
                Some(membership) => membership.try_into()?,
                None => StoredMembership::default(),
            },
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[derive(Clone, PartialEq, prost::Message)]
    struct Around {
        #[prost(message, repeated, tag = "4")]
        entries: Vec<EntryPb>,
    }

    fn payload() -> impl Strategy<Value = Payload> {
        let members = BTreeMap::from([(3, Contact { addr: "192.0.2.1:2377".into(), node: "n".into() })]);
        let membership = Membership::new(vec![BTreeSet::from([3])], members).unwrap();
        let command = prop::collection::vec(any::<u8>(), 0..300);
        prop_oneof![
            Just(Payload::Blank),
            Just(Payload::Membership(membership)),
            command.prop_map(|bytes| Payload::Normal(Command(bytes.into()))),
        ]
    }

    proptest! {
        #[test]
        fn an_entry_is_encoded_the_same_where_it_lies(
            term in any::<u64>(), leader in any::<u64>(), index in any::<u64>(), payload in payload(),
        ) {
            let entry = Entry { log_id: LogId { leader_id: LeaderId { term, node_id: leader }, index }, payload };
            let field = EntryField::new(&entry);
            let mut bytes = Vec::new();
            field.encode(4, &mut bytes);
            prop_assert_eq!(bytes.len(), field.encoded_len(4));
            prop_assert_eq!(bytes, Around { entries: vec![EntryPb::from(&entry)] }.encode_to_vec());
        }
    }
}
