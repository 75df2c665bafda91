//! What managers say to each other: a versioned envelope with sender, receiver and cluster, around one message.

use std::time::Duration;

use bytes::Bytes;
use prost::Message;

use crate::disk::Disk;
use crate::format::{EntryPb, LogIdPb, Malformed, SnapshotMetaPb, VotePb};
use crate::types::{Entry, LogId, Types};
use crate::{ClusterTag, Incarnation, RaftId};

type AppendRequest = openraft::raft::AppendEntriesRequest<Types>;
type AppendResult = openraft::raft::StreamAppendResult<Types>;
type VoteRequest = openraft::raft::VoteRequest<Types>;
type VoteResponse = openraft::raft::VoteResponse<Types>;

/// The version of the messages. A receiver refuses what is newer than it knows.
pub(crate) const VERSION: u32 = 1;

/// The largest command, so that a frame always fits what transports and peers accept.
pub const COMMAND_BYTES_MAX: usize = 4 << 20;
/// The largest frame any message is put into.
pub const FRAME_BYTES_MAX: usize = COMMAND_BYTES_MAX + (2 << 20);

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Envelope {
    #[prost(uint32, tag = "1")]
    pub(crate) version: u32,
    #[prost(uint64, tag = "2")]
    pub(crate) cluster: u64,
    #[prost(uint64, tag = "3")]
    pub(crate) from: u64,
    #[prost(uint64, tag = "4")]
    pub(crate) to: u64,
    #[prost(oneof = "Body", tags = "5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21")]
    pub(crate) body: Option<Body>,
    /// 0 from managers that know of no incarnations: the first.
    #[prost(uint64, tag = "22")]
    pub(crate) incarnation: u64,
}

#[derive(Clone, PartialEq, prost::Oneof)]
pub(crate) enum Body {
    #[prost(message, tag = "5")]
    Append(AppendPb),
    #[prost(message, tag = "6")]
    AppendDone(AppendDonePb),
    #[prost(message, tag = "7")]
    Vote(AskVotePb),
    #[prost(message, tag = "8")]
    PreVote(AskVotePb),
    #[prost(message, tag = "9")]
    VoteDone(VoteDonePb),
    #[prost(message, tag = "10")]
    Transfer(TransferPb),
    #[prost(message, tag = "11")]
    TransferDone(TransferDonePb),
    #[prost(message, tag = "12")]
    ReadIndex(Empty),
    #[prost(message, tag = "13")]
    ReadIndexDone(ReadIndexDonePb),
    #[prost(message, tag = "14")]
    SnapshotBegin(SnapshotBeginPb),
    #[prost(bytes = "bytes", tag = "15")]
    SnapshotChunk(Bytes),
    #[prost(message, tag = "16")]
    SnapshotEnd(SnapshotEndPb),
    #[prost(message, tag = "17")]
    SnapshotDone(SnapshotDonePb),
    #[prost(message, tag = "18")]
    Change(ChangePb),
    #[prost(message, tag = "19")]
    ChangeDone(ChangeDonePb),
    #[prost(message, tag = "20")]
    Refused(RefusedPb),
    #[prost(message, tag = "21")]
    NotLeader(NotLeaderPb),
}

#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
pub(crate) struct Empty {}

#[derive(Clone, PartialEq, Eq, prost::Message)]
pub(crate) struct AppendPb {
    #[prost(message, required, tag = "1")]
    vote: VotePb,
    #[prost(message, optional, tag = "2")]
    prev: Option<LogIdPb>,
    #[prost(message, optional, tag = "3")]
    committed: Option<LogIdPb>,
    #[prost(message, repeated, tag = "4")]
    entries: Vec<EntryPb>,
    /// Followers without room for their log, so that all know of them.
    #[prost(uint64, repeated, tag = "5")]
    pub(crate) full: Vec<u64>,
}

impl From<AppendRequest> for AppendPb {
    fn from(request: AppendRequest) -> Self {
        Self {
            vote: request.vote.into(),
            prev: request.prev_log_id.map(LogIdPb::from),
            committed: request.leader_commit.map(LogIdPb::from),
            entries: request.entries.iter().map(EntryPb::from).collect(),
            full: Vec::new(),
        }
    }
}

impl TryFrom<AppendPb> for AppendRequest {
    type Error = Malformed;

    fn try_from(append: AppendPb) -> Result<Self, Malformed> {
        let entries: Vec<Entry> =
            append.entries.into_iter().map(EntryPb::into_entry).collect::<Result<_, _>>()?;
        let prev = append.prev.map(LogId::from);
        let mut next = prev.map_or(0, |id| id.index.saturating_add(1));
        for entry in &entries {
            if entry.log_id.index != next {
                return Err(Malformed("entries that do not follow one another"));
            }
            next = next.saturating_add(1);
        }
        Ok(AppendRequest {
            vote: append.vote.into(),
            prev_log_id: prev,
            leader_commit: append.committed.map(LogId::from),
            entries,
        })
    }
}

#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
pub(crate) struct AppendDonePb {
    #[prost(message, optional, tag = "1")]
    matched: Option<LogIdPb>,
    #[prost(message, optional, tag = "2")]
    conflict: Option<LogIdPb>,
    #[prost(message, optional, tag = "3")]
    higher: Option<VotePb>,
    /// How the follower's disk fares.
    #[prost(bool, tag = "4")]
    full: bool,
    #[prost(uint64, tag = "5")]
    waiting_us: u64,
    #[prost(uint64, tag = "6")]
    median_us: u64,
}

impl AppendDonePb {
    pub(crate) fn new(result: AppendResult, disk: Disk) -> Self {
        let micros = |time: Duration| u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        Self {
            full: disk.full,
            waiting_us: micros(disk.waiting),
            median_us: micros(disk.median),
            ..result.into()
        }
    }

    pub(crate) fn disk(&self) -> Disk {
        Disk {
            full: self.full,
            waiting: Duration::from_micros(self.waiting_us),
            median: Duration::from_micros(self.median_us),
        }
    }
}

impl From<AppendResult> for AppendDonePb {
    fn from(result: AppendResult) -> Self {
        use openraft::raft::StreamAppendError::{Conflict, HigherVote};
        let mut done = Self::default();
        match result {
            Ok(matched) => done.matched = matched.map(LogIdPb::from),
            Err(Conflict(id)) => done.conflict = Some(id.into()),
            Err(HigherVote(vote)) => done.higher = Some(vote.into()),
        }
        done
    }
}

impl From<AppendDonePb> for AppendResult {
    fn from(done: AppendDonePb) -> Self {
        use openraft::raft::StreamAppendError::{Conflict, HigherVote};
        match (done.higher, done.conflict) {
            (Some(vote), _) => Err(HigherVote(vote.into())),
            (None, Some(id)) => Err(Conflict(id.into())),
            (None, None) => Ok(done.matched.map(LogId::from)),
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
pub(crate) struct AskVotePb {
    #[prost(message, required, tag = "1")]
    vote: VotePb,
    #[prost(message, optional, tag = "2")]
    last: Option<LogIdPb>,
    #[prost(bool, tag = "3")]
    transfer: bool,
}

impl From<VoteRequest> for AskVotePb {
    fn from(request: VoteRequest) -> Self {
        Self {
            vote: request.vote.into(),
            last: request.last_log_id.map(LogIdPb::from),
            transfer: request.leadership_transfer,
        }
    }
}

impl From<AskVotePb> for VoteRequest {
    fn from(ask: AskVotePb) -> Self {
        let mut request = VoteRequest::new(ask.vote.into(), ask.last.map(LogId::from));
        request.leadership_transfer = ask.transfer;
        request
    }
}

#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
pub(crate) struct VoteDonePb {
    #[prost(message, required, tag = "1")]
    vote: VotePb,
    #[prost(bool, tag = "2")]
    granted: bool,
    #[prost(message, optional, tag = "3")]
    last: Option<LogIdPb>,
    /// Set when the asker is not a member by a committed membership: the index of that.
    #[prost(uint64, optional, tag = "4")]
    pub(crate) removed_by: Option<u64>,
}

impl VoteDonePb {
    pub(crate) fn new(response: VoteResponse, removed_by: Option<u64>) -> Self {
        Self {
            vote: response.vote.into(),
            granted: response.vote_granted,
            last: response.last_log_id.map(LogIdPb::from),
            removed_by,
        }
    }
}

impl From<VoteDonePb> for VoteResponse {
    fn from(done: VoteDonePb) -> Self {
        VoteResponse {
            vote: done.vote.into(),
            vote_granted: done.granted,
            last_log_id: done.last.map(LogId::from),
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
pub(crate) struct TransferPb {
    #[prost(message, required, tag = "1")]
    pub(crate) from: VotePb,
    #[prost(uint64, tag = "2")]
    pub(crate) to: u64,
    #[prost(message, optional, tag = "3")]
    pub(crate) last: Option<LogIdPb>,
}

/// One of the two when the transfer was declined.
#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
pub(crate) struct TransferDonePb {
    #[prost(message, optional, tag = "1")]
    pub(crate) vote_changed: Option<VotePb>,
    #[prost(message, optional, tag = "2")]
    pub(crate) not_flushed: Option<FlushedPb>,
}

#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
pub(crate) struct FlushedPb {
    #[prost(message, optional, tag = "1")]
    pub(crate) actual: Option<LogIdPb>,
}

#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
pub(crate) struct ReadIndexDonePb {
    #[prost(uint64, tag = "1")]
    pub(crate) index: u64,
}

#[derive(Clone, PartialEq, Eq, prost::Message)]
pub(crate) struct SnapshotBeginPb {
    #[prost(message, required, tag = "1")]
    pub(crate) vote: VotePb,
    #[prost(message, required, tag = "2")]
    pub(crate) meta: SnapshotMetaPb,
}

#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
pub(crate) struct SnapshotEndPb {
    #[prost(uint64, tag = "1")]
    pub(crate) bytes: u64,
    #[prost(uint32, tag = "2")]
    pub(crate) crc32c: u32,
}

#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
pub(crate) struct SnapshotDonePb {
    #[prost(message, required, tag = "1")]
    pub(crate) vote: VotePb,
}

/// A change of membership, sent on to the leader.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub(crate) struct ChangePb {
    #[prost(uint64, tag = "1")]
    pub(crate) id: u64,
    #[prost(string, tag = "2")]
    pub(crate) addr: String,
    #[prost(string, tag = "3")]
    pub(crate) node: String,
    #[prost(uint32, tag = "4")]
    pub(crate) what: u32,
    #[prost(uint64, tag = "5")]
    pub(crate) within_ms: u64,
}

#[derive(Clone, PartialEq, Eq, prost::Message)]
pub(crate) struct ChangeDonePb {
    #[prost(uint32, tag = "1")]
    pub(crate) error: u32,
    #[prost(string, tag = "2")]
    pub(crate) detail: String,
}

#[derive(Clone, PartialEq, Eq, prost::Message)]
pub(crate) struct RefusedPb {
    #[prost(string, tag = "1")]
    pub(crate) reason: String,
}

#[derive(Clone, PartialEq, Eq, prost::Message)]
pub(crate) struct NotLeaderPb {
    #[prost(uint64, optional, tag = "1")]
    pub(crate) id: Option<u64>,
    #[prost(string, tag = "2")]
    pub(crate) addr: String,
    #[prost(string, tag = "3")]
    pub(crate) node: String,
}

impl Body {
    pub(crate) fn refused(reason: impl std::fmt::Display) -> Self {
        Body::Refused(RefusedPb { reason: reason.to_string() })
    }
}

/// What a message must be of to be understood.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Life {
    pub(crate) cluster: ClusterTag,
    pub(crate) incarnation: Incarnation,
}

/// Why a message was not taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Unfit {
    pub(crate) words: String,
    /// Set when it came from a later life of the cluster than ours.
    pub(crate) newer: Option<Incarnation>,
}

impl From<String> for Unfit {
    fn from(words: String) -> Self {
        Self { words, newer: None }
    }
}

impl From<&str> for Unfit {
    fn from(words: &str) -> Self {
        words.to_owned().into()
    }
}

/// Puts a body into an envelope.
pub(crate) fn seal(life: Life, from: RaftId, to: RaftId, body: Body) -> Bytes {
    let envelope = Envelope {
        version: VERSION,
        cluster: life.cluster.0,
        from: from.0,
        to: to.0,
        body: Some(body),
        incarnation: life.incarnation.0,
    };
    envelope.encode_to_vec().into()
}

/// Takes a message out of its envelope if it is meant for `me`; answers who sent it and what it says.
pub(crate) fn open(life: Life, me: RaftId, frame: Bytes) -> Result<(RaftId, Body), Unfit> {
    if frame.len() > FRAME_BYTES_MAX {
        return Err(format!("a frame of {} bytes; at most {FRAME_BYTES_MAX} are read", frame.len()).into());
    }
    let envelope = Envelope::decode(frame).map_err(|error| Malformed::from(error).to_string())?;
    if envelope.version != VERSION {
        return Err(format!(
            "the message has format {}, this manager speaks {VERSION}; upgrade the older of the two",
            envelope.version
        )
        .into());
    }
    if envelope.cluster != life.cluster.0 {
        let theirs = ClusterTag(envelope.cluster);
        return Err(format!("the message is from cluster {theirs}, this is {}", life.cluster).into());
    }
    let theirs = Incarnation(envelope.incarnation.max(Incarnation::FIRST.0));
    if theirs != life.incarnation {
        return Err(other_life(life.incarnation, theirs));
    }
    if envelope.to != me.0 {
        return Err(format!("the message is meant for manager {}, this is {me}", RaftId(envelope.to)).into());
    }
    if envelope.from == me.0 {
        return Err(format!("manager {me} is talking to itself; check the addresses of the managers").into());
    }
    let body = envelope.body.ok_or("an envelope without a message this version knows")?;
    Ok((RaftId(envelope.from), body))
}

/// Makes of a message what openraft is handed.
#[cfg(any(test, feature = "fuzz"))]
pub(crate) fn understand(body: Body) {
    use crate::types::{SnapshotMeta, Vote};
    match body {
        Body::Append(append) => drop(AppendRequest::try_from(append)),
        Body::AppendDone(done) => {
            let _ = done.disk();
            drop(AppendResult::from(done));
        }
        Body::Vote(ask) | Body::PreVote(ask) => drop(VoteRequest::from(ask)),
        Body::VoteDone(done) => drop(VoteResponse::from(done)),
        Body::Transfer(transfer) => drop((Vote::from(transfer.from), transfer.last.map(LogId::from))),
        Body::SnapshotBegin(begin) => drop((Vote::from(begin.vote), SnapshotMeta::try_from(begin.meta))),
        _ => {}
    }
}

fn other_life(ours: Incarnation, theirs: Incarnation) -> Unfit {
    let newer = ours.precedes(theirs).then_some(theirs);
    let words = match (newer, theirs.precedes(ours)) {
        (Some(_), _) => format!("this manager is of incarnation {ours}, the cluster goes on as {theirs}"),
        (None, true) => format!("the message is of incarnation {theirs}, the cluster goes on as {ours}"),
        (None, false) => format!(
            "two clusters were forced from the same one, both as incarnation {ours}; give one of them up"
        ),
    };
    Unfit { words, newer }
}

#[cfg(test)]
mod forms;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::types::Vote;

    #[test]
    fn a_message_for_another_is_refused() {
        let body = || Body::ReadIndex(Empty {});
        let life = |cluster| Life { cluster: ClusterTag(cluster), incarnation: Incarnation::FIRST };
        let frame = seal(life(1), RaftId(2), RaftId(3), body());
        assert_eq!(open(life(1), RaftId(3), frame.clone()), Ok((RaftId(2), body())));
        assert!(open(life(9), RaftId(3), frame.clone()).unwrap_err().words.contains("cluster"));
        assert!(open(life(1), RaftId(4), frame).unwrap_err().words.contains("meant for"));
        let mirror = seal(life(1), RaftId(3), RaftId(3), body());
        assert!(open(life(1), RaftId(3), mirror).unwrap_err().words.contains("itself"));
    }

    #[test]
    fn a_message_of_another_life_is_refused_and_only_a_later_one_says_that_ours_has_ended() {
        let life = |incarnation| Life { cluster: ClusterTag(1), incarnation };
        let (first, second) = (Incarnation::FIRST, Incarnation::FIRST.next(7));
        let sealed = |of| seal(life(of), RaftId(2), RaftId(3), Body::ReadIndex(Empty {}));
        let heard = |of, by| open(life(by), RaftId(3), sealed(of)).map_err(|unfit| unfit.newer);
        assert!(heard(second, second).is_ok());
        assert_eq!(heard(second, first), Err(Some(second)));
        assert_eq!(heard(first, second), Err(None));
        // Forced twice from the same one: neither is told to give up.
        assert_eq!(heard(first.next(8), second), Err(None));
        assert_eq!(heard(second.next(0), first.next(8)), Err(Some(second.next(0))));
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            crate::fuzz::frame(&bytes);
        }
    }

    #[test]
    fn entries_with_a_hole_are_refused() {
        let vote: Vote = Vote::new_committed(1, 1);
        let entry = |index| {
            EntryPb::from(&Entry {
                log_id: LogId { leader_id: vote.leader_id, index },
                payload: crate::types::Payload::Blank,
            })
        };
        let append =
            |entries| AppendPb { vote: vote.into(), prev: None, committed: None, entries, full: Vec::new() };
        assert!(AppendRequest::try_from(append(vec![entry(0), entry(1)])).is_ok());
        assert!(AppendRequest::try_from(append(vec![entry(0), entry(2)])).is_err());
        assert!(AppendRequest::try_from(append(vec![entry(1)])).is_err());
    }
}
