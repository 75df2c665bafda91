//! What the log promises about its files.

use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;
use std::sync::atomic::Ordering;

use proptest::prelude::*;

use super::super::seal::SALT_BYTES;
use super::segment::{FRAME_MAGIC, Frame, checksum};
use super::*;
use crate::types::{Command, LeaderId, Payload};
use crate::{ClusterTag, RaftId};

const IDENTITY: Identity = Identity { cluster: ClusterTag(1), id: RaftId(2) };

fn log_id(term: u64, index: u64) -> LogId {
    LogId { leader_id: LeaderId { term, node_id: 1 }, index }
}

fn entry(term: u64, index: u64, len: usize) -> Entry {
    let payload = Payload::Normal(Command(vec![index as u8; len].into()));
    Entry { log_id: log_id(term, index), payload }
}

fn open(dir: &Path) -> Result<(Wal, Recovered), OpenError> {
    let key = Arc::new(MasterKey::load_or_create(dir, true).unwrap());
    Wal::open(dir, IDENTITY, key, 16 << 10, Incarnation::FIRST, &Media::default())
}

type Told = oneshot::Receiver<io::Result<()>>;

fn told(op: impl FnOnce(Done) -> Op, wal: &Wal) -> Told {
    let (done, told) = oneshot::channel();
    wal.push(op(Done::Told(done)));
    told
}

fn append(wal: &Wal, entries: Vec<Entry>) -> Told {
    told(|done| Op::Append { entries, done }, wal)
}

fn newest(dir: &Path) -> PathBuf {
    segment_path(dir, *segments(dir).unwrap().last().unwrap())
}

fn indexes(recovered: &Recovered) -> Vec<u64> {
    recovered.entries.iter().map(|entry| entry.log_id.index).collect()
}

/// What a process that is killed leaves behind: the files as they are, without the mark of the end.
fn copy(from: &Path) -> tempfile::TempDir {
    let to = tempfile::tempdir().unwrap();
    for file in std::fs::read_dir(from).unwrap() {
        let file = file.unwrap();
        std::fs::copy(file.path(), to.path().join(file.file_name())).unwrap();
    }
    to
}

#[test]
fn everything_comes_back_in_the_order_it_was_given() {
    let dir = tempfile::tempdir().unwrap();
    let vote = Vote::new_committed(3, 1);
    {
        let (wal, recovered) = open(dir.path()).unwrap();
        assert_eq!(recovered.next, 0);
        append(&wal, (0..10).map(|index| entry(1, index, 100)).collect());
        told(|done| Op::Truncate { after: Some(log_id(1, 5)), done }, &wal);
        append(&wal, (6..9).map(|index| entry(2, index, 100)).collect());
        told(|done| Op::Vote { vote, done }, &wal);
        wal.push(Op::Committed(Some(log_id(1, 4))));
        let purged = told(|done| Op::Purge { upto: log_id(1, 2), done }, &wal);
        purged.blocking_recv().unwrap().unwrap();
    }
    for _ in 0..3 {
        let (_, recovered) = open(dir.path()).unwrap();
        let expected: Vec<Entry> = (3..6)
            .map(|index| entry(1, index, 100))
            .chain((6..9).map(|index| entry(2, index, 100)))
            .collect();
        assert_eq!(recovered.entries, expected);
        assert_eq!(recovered.vote, Some(vote));
        assert_eq!(recovered.committed, Some(log_id(1, 4)));
        assert_eq!(recovered.purged, Some(log_id(1, 2)));
        assert_eq!(recovered.last, Some(log_id(2, 8)));
    }
}

#[test]
fn segments_that_are_no_longer_needed_are_deleted() {
    let dir = tempfile::tempdir().unwrap();
    let (wal, _) = open(dir.path()).unwrap();
    for index in 0..200 {
        append(&wal, vec![entry(1, index, 1000)]).blocking_recv().unwrap().unwrap();
    }
    assert!(segments(dir.path()).unwrap().len() > 10);
    told(|done| Op::Purge { upto: log_id(1, 197), done }, &wal).blocking_recv().unwrap().unwrap();
    assert!(segments(dir.path()).unwrap().len() <= 2);
    drop(wal);
    let (_, recovered) = open(dir.path()).unwrap();
    assert_eq!(indexes(&recovered), [198, 199]);
}

#[test]
fn a_snapshot_may_reach_beyond_the_log() {
    let dir = tempfile::tempdir().unwrap();
    let (wal, _) = open(dir.path()).unwrap();
    append(&wal, vec![entry(1, 0, 10), entry(1, 1, 10)]);
    told(|done| Op::Purge { upto: log_id(2, 50), done }, &wal);
    append(&wal, vec![entry(2, 51, 10)]).blocking_recv().unwrap().unwrap();
    drop(wal);
    let (_, recovered) = open(dir.path()).unwrap();
    assert_eq!(indexes(&recovered), [51]);
    assert_eq!(recovered.purged, Some(log_id(2, 50)));
}

#[test]
fn a_record_larger_than_a_segment_is_kept() {
    let dir = tempfile::tempdir().unwrap();
    let (wal, _) = open(dir.path()).unwrap();
    append(&wal, vec![entry(1, 0, 10), entry(1, 1, 100_000), entry(1, 2, 10)]);
    append(&wal, vec![entry(1, 3, 10)]).blocking_recv().unwrap().unwrap();
    drop(wal);
    let (_, recovered) = open(dir.path()).unwrap();
    assert_eq!(indexes(&recovered), [0, 1, 2, 3]);
}

#[test]
fn a_torn_tail_is_cut_off() {
    let dir = tempfile::tempdir().unwrap();
    let (wal, _) = open(dir.path()).unwrap();
    for index in 0..3 {
        append(&wal, vec![entry(1, index, 100)]).blocking_recv().unwrap().unwrap();
    }
    let killed = copy(dir.path());
    let path = newest(killed.path());
    let bytes = std::fs::read(&path).unwrap();
    let end = bytes.iter().rposition(|byte| *byte != 0).unwrap();
    let file = OpenOptions::new().write(true).open(&path).unwrap();
    file.write_all_at(&[0; 40], end as u64 - 39).unwrap();
    let (wal, recovered) = open(killed.path()).unwrap();
    assert_eq!(indexes(&recovered), [0, 1]);
    append(&wal, vec![entry(2, 2, 100)]).blocking_recv().unwrap().unwrap();
    drop(wal);
    let (_, recovered) = open(killed.path()).unwrap();
    assert_eq!(recovered.entries.back(), Some(&entry(2, 2, 100)));
}

#[test]
fn a_flipped_bit_anywhere_in_a_closed_log_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let (wal, _) = open(dir.path()).unwrap();
    for index in 0..5 {
        append(&wal, vec![entry(1, index, 30)]).blocking_recv().unwrap().unwrap();
    }
    drop(wal);
    let path = newest(dir.path());
    let good = std::fs::read(&path).unwrap();
    let key = MasterKey::load_or_create(dir.path(), false).unwrap();
    let end = good.iter().rposition(|byte| *byte != 0).unwrap();
    // The mark of the end itself may be lost: then nothing else is.
    let mark = (0..end).rfind(|at| good[*at..].starts_with(&FRAME_MAGIC)).unwrap();
    for at in 0..mark {
        let mut bad = good.clone();
        bad[at] ^= 0x10;
        std::fs::write(&path, &bad).unwrap();
        let error = recover(dir.path(), IDENTITY, &key).map(drop).expect_err("it must not be used");
        let named = error.to_string();
        assert!(named.contains("0000000000000001.wal"), "{named}");
    }
}

#[test]
fn damage_in_an_older_segment_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let (wal, _) = open(dir.path()).unwrap();
    for index in 0..100 {
        append(&wal, vec![entry(1, index, 1000)]).blocking_recv().unwrap().unwrap();
    }
    drop(wal);
    let first = segment_path(dir.path(), 2);
    let bytes = std::fs::read(&first).unwrap();
    let end = bytes.iter().rposition(|byte| *byte != 0).unwrap() as u64;
    std::fs::remove_file(segment_path(dir.path(), 1)).unwrap();
    let file = OpenOptions::new().write(true).open(&first).unwrap();
    assert!(matches!(open(dir.path()), Err(OpenError::Damaged { .. })), "its beginning is missing");
    file.set_len(end - 5).unwrap();
    assert!(matches!(open(dir.path()), Err(OpenError::Damaged { .. })), "its end is missing");
    std::fs::remove_file(segment_path(dir.path(), 3)).unwrap();
    assert!(matches!(open(dir.path()), Err(OpenError::Damaged { .. })), "a whole one is missing");
}

#[test]
fn a_record_moved_to_another_place_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let (wal, _) = open(dir.path()).unwrap();
    for index in 0..3 {
        append(&wal, vec![entry(1, index, 100)]).blocking_recv().unwrap().unwrap();
    }
    drop(wal);
    let path = newest(dir.path());
    let good = std::fs::read(&path).unwrap();
    let starts: Vec<usize> = (0..good.len()).filter(|at| good[*at..].starts_with(&FRAME_MAGIC)).collect();
    // Swap two bodies of the same length, with checksums made right.
    let mut bad = good.clone();
    let (one, other) = (starts[2], starts[3]);
    let len = Frame::at(&good, one).unwrap().end - one;
    assert_eq!(len, Frame::at(&good, other).unwrap().end - other);
    bad[one + FRAME_BYTES..one + len].copy_from_slice(&good[other + FRAME_BYTES..other + len]);
    let sum = checksum(&bad[one..one + len]);
    bad[one + 16..one + 20].copy_from_slice(&sum.to_le_bytes());
    std::fs::write(&path, &bad).unwrap();
    assert!(matches!(open(dir.path()), Err(OpenError::Damaged { .. })));
}

#[test]
fn after_a_failed_sync_nothing_is_acknowledged() {
    let dir = tempfile::tempdir().unwrap();
    let (wal, _) = open(dir.path()).unwrap();
    append(&wal, vec![entry(1, 0, 10)]).blocking_recv().unwrap().unwrap();
    wal.fail_sync.store(true, Ordering::Relaxed);
    assert!(append(&wal, vec![entry(1, 1, 10)]).blocking_recv().unwrap().is_err());
    wal.fail_sync.store(false, Ordering::Relaxed);
    let refused = append(&wal, vec![entry(1, 2, 10)]).blocking_recv().unwrap().unwrap_err();
    assert!(refused.to_string().contains("opened anew"), "{refused}");
    drop(wal);
    let (_, recovered) = open(dir.path()).unwrap();
    assert!(indexes(&recovered).starts_with(&[0]));
}

#[test]
fn arbitrary_bytes_as_a_segment_never_panic() {
    let dir = tempfile::tempdir().unwrap();
    let key = MasterKey::load_or_create(dir.path(), true).unwrap();
    let path = segment_path(dir.path(), 1);
    let header = Header { identity: IDENTITY, number: 1, salt: [0; SALT_BYTES] };
    proptest!(|(bytes in prop::collection::vec(any::<u8>(), 0..300), with_header: bool)| {
        let mut file = if with_header { header.encode().to_vec() } else { Vec::new() };
        file.extend_from_slice(&bytes);
        std::fs::write(&path, &file).unwrap();
        prop_assert!(recover(dir.path(), IDENTITY, &key).is_err());
    });
}

/// Writes batches, each acknowledged before the next, and then one more that is not: of what it wrote the disk
/// keeps some pages and loses others.
fn power_cut(batches: &[Vec<usize>], last: &[usize], page: usize, keep: &[bool], junk: bool) {
    let dir = tempfile::tempdir().unwrap();
    let (wal, _) = open(dir.path()).unwrap();
    let mut next = 0;
    let mut batch = |lens: &[usize]| {
        let entries = lens.iter().zip(next..).map(|(len, index)| entry(1, index, *len)).collect();
        next += lens.len() as u64;
        append(&wal, entries)
    };
    for lens in batches {
        batch(lens).blocking_recv().unwrap().unwrap();
    }
    let acknowledged: usize = batches.iter().map(Vec::len).sum();
    let before = copy(dir.path());
    batch(last).blocking_recv().unwrap().unwrap();
    let after = copy(dir.path());
    // A roll syncs on its own; the cut is meant within a segment.
    if segments(before.path()).unwrap() != segments(after.path()).unwrap() {
        return;
    }
    let path = newest(after.path());
    let old = std::fs::read(newest(before.path())).unwrap();
    let mut new = std::fs::read(&path).unwrap();
    let mut old_padded = old.clone();
    old_padded.resize(new.len(), 0);
    for (at, chunk) in new.chunks_mut(page).enumerate() {
        let was = &old_padded[at * page..at * page + chunk.len()];
        if !keep[at % keep.len()] && chunk != was {
            // What was durable in that page stays; the rest is as before, or garbage.
            for (byte, was) in chunk.iter_mut().zip(was) {
                if *byte != *was {
                    *byte = if junk { *byte ^ 0x5a } else { *was };
                }
            }
        }
    }
    std::fs::write(&path, &new).unwrap();

    let (_, recovered) = open(after.path()).unwrap();
    let found = indexes(&recovered);
    assert!(found.len() >= acknowledged, "{} of {acknowledged} came back", found.len());
    assert!(found.len() <= acknowledged + last.len());
    let all = batches.iter().flatten().chain(last);
    for (found, (index, len)) in recovered.entries.iter().zip(all.enumerate()) {
        assert_eq!(found, &entry(1, index as u64, *len));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn a_power_cut_loses_nothing_that_was_acknowledged(
        batches in prop::collection::vec(prop::collection::vec(0usize..600, 1..5), 0..12),
        last in prop::collection::vec(0usize..3000, 1..8),
        page in prop::sample::select(vec![1usize, 64, 512, 4096]),
        keep in prop::collection::vec(any::<bool>(), 1..9),
        junk: bool,
    ) {
        power_cut(&batches, &last, page, &keep, junk);
    }
}
