//! How a new leader finds out in two exchanges how much of its log a follower has.
//!
//! openraft searches by halves, one exchange after the other: a dozen of them in a log of fifty thousand entries, and
//! nothing is committed before the search is over. But a follower nearly always has all that came before the new
//! term, so after the first step of the search it is asked just that. If it says yes, openraft is told that the search
//! is over where it stands, and sends everything behind; of that, what the follower is known to have is left out
//! of the messages, which say only where it ends, and which it confirms one by one.

use std::sync::atomic::{AtomicU64, Ordering};

use openraft::raft::{AppendEntriesRequest, AppendEntriesResponse, StreamAppendError};

use crate::storage::log::LogStore;
use crate::types::{LogId, Types};

type AppendRequest = AppendEntriesRequest<Types>;

/// The search for the end of one follower's log, during one term of one leader.
pub(crate) struct Leap {
    /// What openraft knows the follower to have; 0 for nothing. Right only while no snapshot was sent.
    pub(crate) matched: AtomicU64,
    /// How many snapshots had been sent, to whomever, when the search began.
    snapshots: u64,
    /// The follower has everything up to this.
    pub(crate) known: Option<LogId>,
    /// What it is being asked for.
    asked: Option<LogId>,
    /// It was asked once; that is enough.
    over: bool,
}

impl Leap {
    /// Of a client that begins when so many snapshots have been sent.
    pub(crate) fn new(snapshots: u64) -> Self {
        Self { matched: AtomicU64::new(0), snapshots, known: None, asked: None, over: false }
    }

    /// What to ask before a stream that begins with `first`, if that is a step of a search, and so many snapshots
    /// have been sent by now.
    pub(crate) fn probe(
        &mut self,
        first: &AppendRequest,
        log: &LogStore,
        snapshots: u64,
    ) -> Option<AppendRequest> {
        self.over |= snapshots != self.snapshots;
        let matched = self.matched.load(Ordering::Relaxed);
        let prev = first.prev_log_id.map_or(0, |id| id.index);
        let last = first.entries.last()?.log_id;
        if self.over || matched == 0 || prev == matched {
            return None;
        }
        self.over = true;
        let asked = log.last_before(first.vote.leader_id.term).filter(|id| id.index > last.index)?;
        self.asked = Some(asked);
        Some(AppendRequest {
            vote: first.vote,
            prev_log_id: Some(asked),
            leader_commit: first.leader_commit,
            entries: Vec::new(),
        })
    }

    /// What openraft is told after the answer, unless it is to go on searching: a conflict right behind what is
    /// known to match, which is how a search ends.
    pub(crate) fn landed(
        &mut self,
        answer: AppendEntriesResponse<Types>,
    ) -> Option<StreamAppendError<Types>> {
        match answer {
            AppendEntriesResponse::HigherVote(vote) => Some(StreamAppendError::HigherVote(vote)),
            AppendEntriesResponse::Conflict => None,
            AppendEntriesResponse::Success | AppendEntriesResponse::PartialSuccess(_) => {
                let known = self.asked?;
                self.known = Some(known);
                let index = self.matched.load(Ordering::Relaxed) + 1;
                Some(StreamAppendError::Conflict(LogId { index, ..known }))
            }
        }
    }
}

/// Leaves out the entries that the follower has.
pub(crate) fn without_known(mut request: AppendRequest, known: Option<LogId>) -> AppendRequest {
    let count = request.entries.partition_point(|entry| Some(entry.log_id) <= known);
    if let Some(last) = request.entries.drain(..count).next_back() {
        request.prev_log_id = Some(last.log_id);
    }
    request
}
