//! Segments made of arbitrary bytes, and what must hold of what is read from them.

use super::*;
use crate::{ClusterTag, RaftId};

const IDENTITY: Identity = Identity { cluster: ClusterTag(7), id: RaftId(1) };
/// In place of a length: the next segment begins.
const NEXT: u16 = u16::MAX;

/// The bytes as the only segment.
pub(crate) fn as_it_is(dir: &Path, bytes: &[u8]) {
    std::fs::write(segment_path(dir, 1), bytes).expect("the fuzzer has room");
}

/// Those of the bytes that are records, sealed as the writer does.
pub(crate) fn sealed(dir: &Path, mut bytes: &[u8]) {
    let mut number = 1;
    let (mut segment, mut content) = begin(dir, number);
    while let Some((length, rest)) = bytes.split_first_chunk() {
        let length = u16::from_le_bytes(*length);
        if length == NEXT {
            finish(dir, number, &content);
            number += 1;
            (segment, content) = begin(dir, number);
            bytes = rest;
            continue;
        }
        let (record, behind) = rest.split_at(rest.len().min(length.into()));
        if let Ok(record) = Record::decode(record) {
            segment.durable = content.len() as u64;
            segment.seal(&record, &mut content);
        }
        bytes = behind;
    }
    finish(dir, number, &content);
}

fn begin(dir: &Path, number: u64) -> (Segment, Vec<u8>) {
    let header = Header { identity: IDENTITY, number, salt: [1; 16] };
    let file = std::fs::File::create(segment_path(dir, number)).expect("the fuzzer has room");
    let segment = Segment {
        number,
        file: Medium::new(file, &Media::default()),
        key: header.key(&MasterKey::FUZZ),
        end: 0,
        durable: 0,
        frames: 0,
        max_index: None,
    };
    (segment, header.encode().to_vec())
}

fn finish(dir: &Path, number: u64, content: &[u8]) {
    std::fs::write(segment_path(dir, number), content).expect("the fuzzer has room");
}

/// Reads the log, twice: what was cut off is gone, the rest says the same.
pub(crate) fn recover_twice(dir: &Path) {
    let Ok((first, _)) = recover(dir, IDENTITY, &MasterKey::FUZZ) else { return };
    let indexes = || first.entries.iter().map(|entry| entry.log_id.index);
    assert!(indexes().zip(indexes().skip(1)).all(|(one, next)| one.checked_add(1) == Some(next)), "a hole");
    if let Some(last) = first.entries.back() {
        assert_eq!(first.last, Some(last.log_id));
        assert_eq!(last.log_id.index.checked_add(1), Some(first.next));
    }
    let (second, _) = recover(dir, IDENTITY, &MasterKey::FUZZ).expect("it was just read");
    let what = |log: &Recovered| format!("{log:?}");
    assert_eq!(what(&first), what(&second));
}
