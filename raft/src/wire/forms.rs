//! What managers once said to each other is understood for good. `tests/forms/VERSION` holds a message of each kind as
//! that version said it; `ADD_FORMS=1 cargo test -p rswarm-raft forms` adds those that are missing, under the version
//! of today. What is there stays as it is.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use super::*;
use crate::types::{Command, Contact, LeaderId, Membership, Payload, SnapshotMeta, StoredMembership, Vote};

const LIFE: Life = Life { cluster: ClusterTag(0x0102_0304), incarnation: Incarnation(1 << 32 | 7) };

fn name(body: &Body) -> &'static str {
    match body {
        Body::Append(_) => "append",
        Body::AppendDone(_) => "append-done",
        Body::Vote(_) => "vote",
        Body::PreVote(_) => "pre-vote",
        Body::VoteDone(_) => "vote-done",
        Body::Transfer(_) => "transfer",
        Body::TransferDone(_) => "transfer-done",
        Body::ReadIndex(_) => "read-index",
        Body::ReadIndexDone(_) => "read-index-done",
        Body::SnapshotBegin(_) => "snapshot-begin",
        Body::SnapshotChunk(_) => "snapshot-chunk",
        Body::SnapshotEnd(_) => "snapshot-end",
        Body::SnapshotDone(_) => "snapshot-done",
        Body::Change(_) => "change",
        Body::ChangeDone(_) => "change-done",
        Body::Refused(_) => "refused",
        Body::NotLeader(_) => "not-leader",
    }
}

/// One of each kind, with all that it can say.
fn bodies() -> Vec<Body> {
    let vote: VotePb = Vote::new_committed(5, 2).into();
    let id = |index| LogId { leader_id: LeaderId { term: 4, node_id: 3 }, index };
    let pb = |index| LogIdPb::from(id(index));
    let members = [1, 2, 3].map(|number| {
        (number, Contact { addr: format!("192.0.2.{number}:2377"), node: format!("node{number}") })
    });
    let joint = vec![BTreeSet::from([1, 2]), BTreeSet::from([1, 3])];
    let membership = Membership::new(joint, BTreeMap::from(members)).unwrap();
    let payloads = [
        Payload::Blank,
        Payload::Normal(Command(b"put".to_vec().into())),
        Payload::Membership(membership.clone()),
    ];
    let entries = payloads.into_iter().zip(8..).map(|(payload, index)| Entry { log_id: id(index), payload });
    let append = AppendPb {
        vote,
        prev: Some(pb(7)),
        committed: Some(pb(6)),
        entries: entries.map(|entry| EntryPb::from(&entry)).collect(),
        full: vec![3],
    };
    let ask = AskVotePb { vote, last: Some(pb(7)), transfer: true };
    let meta = SnapshotMeta {
        last_log_id: Some(id(7)),
        last_membership: StoredMembership::new(Some(id(5)), membership),
    };
    vec![
        Body::Append(append),
        Body::AppendDone(AppendDonePb {
            matched: Some(pb(9)),
            conflict: Some(pb(8)),
            higher: Some(vote),
            full: true,
            waiting_us: 700,
            median_us: 80,
        }),
        Body::Vote(ask),
        Body::PreVote(ask),
        Body::VoteDone(VoteDonePb { vote, granted: true, last: Some(pb(7)), removed_by: Some(6) }),
        Body::Transfer(TransferPb { from: vote, to: 3, last: Some(pb(7)) }),
        Body::TransferDone(TransferDonePb {
            vote_changed: Some(vote),
            not_flushed: Some(FlushedPb { actual: Some(pb(7)) }),
        }),
        Body::ReadIndex(Empty {}),
        Body::ReadIndexDone(ReadIndexDonePb { index: 9 }),
        Body::SnapshotBegin(SnapshotBeginPb { vote, meta: (&meta).into() }),
        Body::SnapshotChunk(b"a part".to_vec().into()),
        Body::SnapshotEnd(SnapshotEndPb { bytes: 1 << 33, crc32c: 77 }),
        Body::SnapshotDone(SnapshotDonePb { vote }),
        Body::Change(ChangePb {
            id: 4,
            addr: "192.0.2.4:2377".into(),
            node: "node4".into(),
            what: 1,
            within_ms: 5000,
        }),
        Body::ChangeDone(ChangeDonePb { error: 4, detail: "no".into() }),
        Body::Refused(RefusedPb { reason: "no".into() }),
        Body::NotLeader(NotLeaderPb { id: Some(3), addr: "192.0.2.3:2377".into(), node: "node3".into() }),
    ]
}

/// The body as openraft understood it, where that says all of it.
fn understood(body: Body) -> Body {
    match body {
        Body::Append(append) => {
            let full = append.full.clone();
            let request = AppendRequest::try_from(append).expect("it made sense once");
            Body::Append(AppendPb { full, ..request.into() })
        }
        Body::Vote(ask) => Body::Vote(VoteRequest::from(ask).into()),
        Body::PreVote(ask) => Body::PreVote(VoteRequest::from(ask).into()),
        Body::VoteDone(done) => Body::VoteDone(VoteDonePb::new(done.into(), done.removed_by)),
        Body::SnapshotBegin(begin) => {
            let meta = SnapshotMeta::try_from(begin.meta).expect("it made sense once");
            Body::SnapshotBegin(SnapshotBeginPb { vote: begin.vote, meta: (&meta).into() })
        }
        body => body,
    }
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/forms")
}

#[test]
fn forms_of_messages_are_understood_for_good() {
    let here = root().join(env!("CARGO_PKG_VERSION"));
    let mut missing: BTreeMap<&str, Body> = bodies().into_iter().map(|body| (name(&body), body)).collect();
    assert_eq!(missing.len(), 17, "one of each kind");
    let versions = std::fs::read_dir(root()).into_iter().flatten().map(|version| version.unwrap().path());
    for path in versions.flat_map(|version| std::fs::read_dir(version).unwrap()) {
        let path = path.unwrap().path();
        let stored = path.file_stem().unwrap().to_str().unwrap();
        let bytes = Bytes::from(std::fs::read(&path).unwrap());
        let (from, body) =
            open(LIFE, RaftId(3), bytes.clone()).unwrap_or_else(|why| panic!("{path:?}: {}", why.words));
        assert_eq!(name(&body), stored);
        assert_eq!(
            seal(LIFE, from, RaftId(3), understood(body)),
            bytes,
            "{path:?} says something else today"
        );
        missing.remove(stored);
    }
    if std::env::var_os("ADD_FORMS").is_some() {
        std::fs::create_dir_all(&here).unwrap();
        for (name, body) in std::mem::take(&mut missing) {
            std::fs::write(here.join(name).with_extension("bin"), seal(LIFE, RaftId(2), RaftId(3), body))
                .unwrap();
        }
    }
    assert!(missing.is_empty(), "run this with ADD_FORMS=1 and commit what it adds: {:?}", missing.keys());
}
