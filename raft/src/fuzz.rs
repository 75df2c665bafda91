//! What hostile bytes are handed to: by the fuzzer (`fuzz/` beside the workspace), and by the tests that replay what
//! it found. Whatever the bytes, nothing panics, and what is taken is taken the same way again.

use std::path::Path;

use bytes::Bytes;
use prost::Message;

use crate::format::SnapshotMetaPb;
use crate::storage::snapshot::Snapshots;
use crate::storage::wal;
use crate::storage::{Dir, Identity};
use crate::types::SnapshotMeta;
use crate::wire::{self, Envelope, Life};
use crate::{ClusterTag, Incarnation, RaftId};

/// A frame from another manager, of whatever cluster and life it says.
pub fn frame(bytes: &[u8]) {
    let frame = Bytes::copy_from_slice(bytes);
    let Ok(envelope) = Envelope::decode(frame.clone()) else { return };
    let life = Life {
        cluster: ClusterTag(envelope.cluster),
        incarnation: Incarnation(envelope.incarnation.max(Incarnation::FIRST.0)),
    };
    let me = RaftId(envelope.to);
    let Ok((from, body)) = wire::open(life, me, frame) else { return };
    let again = wire::open(life, me, wire::seal(life, from, me, body.clone()));
    assert_eq!(again, Ok((from, body.clone())), "what was said is not what is heard");
    wire::understand(body);
}

/// The files of a log, in `dir`, which is empty and is left so. The first byte says whether the rest is a segment as
/// it is, or records that are sealed as they should be: each its length in two bytes, then a message; a length of
/// 0xffff begins the next segment.
pub fn log(dir: &Path, bytes: &[u8]) {
    let Some((first, rest)) = bytes.split_first() else { return };
    match first % 2 {
        0 => wal::fuzz::as_it_is(dir, rest),
        _ => wal::fuzz::sealed(dir, rest),
    }
    wal::fuzz::recover_twice(dir);
    clear(dir);
}

/// A snapshot's file, in `dir`, which is empty and is left so; and the description of what it covers.
pub fn snapshot(dir: &Path, bytes: &[u8]) {
    if let Ok(Ok(meta)) = SnapshotMetaPb::decode(bytes).map(SnapshotMeta::try_from) {
        let back = SnapshotMeta::try_from(SnapshotMetaPb::from(&meta));
        assert_eq!(back.ok(), Some(meta), "what was covered is not what is covered");
    }
    let identity = Identity { cluster: ClusterTag(7), id: RaftId(1) };
    let path = dir.join("0000000000000001-0000000000000001.snapshot");
    std::fs::write(path, bytes).expect("the fuzzer has room");
    if let Ok(opened) = Dir::open(dir, identity) {
        drop(Snapshots::open(opened.into()));
    }
    clear(dir);
}

fn clear(dir: &Path) {
    for file in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        drop(std::fs::remove_file(file.path()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each file that the fuzzer has kept for this target.
    fn replay(target: &str, each: impl Fn(&Path, &[u8])) {
        let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus").join(target);
        let dir = tempfile::tempdir().unwrap();
        let mut count = 0;
        for file in std::fs::read_dir(&corpus).unwrap() {
            let path = file.unwrap().path();
            println!("{}", path.display());
            each(dir.path(), &std::fs::read(path).unwrap());
            count += 1;
        }
        assert!(count >= 5, "{} is nearly empty", corpus.display());
    }

    #[test]
    fn frames_that_the_fuzzer_kept_do_no_harm() {
        replay("raft_frame", |_, bytes| frame(bytes));
    }

    #[test]
    fn logs_that_the_fuzzer_kept_do_no_harm() {
        replay("raft_log", log);
    }

    #[test]
    fn snapshots_that_the_fuzzer_kept_do_no_harm() {
        replay("raft_snapshot", snapshot);
    }
}
