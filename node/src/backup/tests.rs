//! What can be wrong with a backup, and is said. The files in `node/tests/data/backups` are written by
//! `cargo test -p rswarm --lib backup::tests::write_the_files -- --ignored`; those that are there stay as they are, so
//! that what was written once is read for good.

use super::*;
use rswarm_control::admission;
use rswarm_control::model::{Availability, Description, JoinTokens, Secret, Settings};
use rswarm_control::state::{Proposal, Snapshot};
use rswarm_control::time::Timestamp;
use rswarm_proto::v1 as pb;
use std::collections::BTreeMap;
use std::path::PathBuf;

const NOW: Timestamp = Timestamp(1_795_000_000_000);

fn files() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/data/backups")
}

fn key() -> Key {
    Key::from_bytes(&[7; 32]).unwrap()
}

fn cluster() -> State {
    let mut state = State::default();
    let init = admission::Init {
        name: "corpus".into(),
        id_seed: 7,
        ca_cert_pem: "cert".into(),
        ca_key_pem: Secret("key".into()),
        tokens: JoinTokens { worker: Secret("w".repeat(16)), manager: Secret("m".repeat(16)) },
        settings: Settings::default(),
        hostname: "n1".into(),
        addr: "192.0.2.1:2377".into(),
        availability: Availability::Active,
        description: Description::default(),
    };
    let (changes, _) = admission::init(&state, &init, NOW).unwrap();
    state.apply(1, &Proposal { changes, at: NOW }).unwrap();
    state
}

fn plain() -> Vec<u8> {
    let mut bytes = Vec::new();
    store::write_snapshot(&cluster(), &mut bytes).unwrap();
    bytes
}

fn head() -> Head {
    let salt = [9; 16];
    Head::new(BackupHeader {
        format: FORMAT,
        version: VERSION.into(),
        made_at_ms: NOW.0,
        cluster_name: "corpus".into(),
        index: 1,
        incarnation: 1,
        salt: salt.to_vec().into(),
        proof: proof(&key(), &salt).into(),
        ..Default::default()
    })
}

/// The file of this head whose chunks hold these plain bytes.
fn sealed(head: &Head, chunks: &[&[u8]]) -> Vec<u8> {
    let mut bytes = head.bytes.clone();
    let mut to = Sealing { to: &mut bytes, key: head.chunk_key(&key()), chunk: Vec::new(), count: 0 };
    for (at, chunk) in chunks.iter().enumerate() {
        to.chunk.extend_from_slice(chunk);
        to.put(at + 1 == chunks.len()).unwrap();
    }
    bytes
}

fn good() -> Vec<u8> {
    let plain = plain();
    let (first, rest) = plain.split_at(100);
    sealed(&head(), &[first, rest])
}

/// Each file by its name.
fn cases() -> BTreeMap<&'static str, Vec<u8>> {
    let (good, plain) = (good(), plain());
    let chunks = head().bytes.len();
    let second = chunks + 4 + 100 + TAG_BYTES;
    let altered = |change: &dyn Fn(&mut BackupHeader)| {
        let mut header = head().header;
        change(&mut header);
        sealed(&Head::new(header), &[&plain])
    };
    let changed = |change: &dyn Fn(&mut Vec<u8>)| {
        let mut bytes = good.clone();
        change(&mut bytes);
        bytes
    };
    let swapped = [&good[..chunks], &good[second..], &good[chunks..second]].concat();
    let doubled = [&good[..second], &good[chunks..]].concat();
    BTreeMap::from([
        ("good", good.clone()),
        ("empty", Vec::new()),
        ("foreign", b"SQLite format 3\0".to_vec()),
        ("cut-in-the-magic", good[..5].to_vec()),
        ("cut-in-the-header", good[..40].to_vec()),
        ("cut-before-the-chunks", good[..chunks].to_vec()),
        ("cut-in-a-chunk", good[..chunks + 50].to_vec()),
        ("cut-between-chunks", good[..second].to_vec()),
        ("cut-by-one-byte", good[..good.len() - 1].to_vec()),
        ("bit-in-the-header", changed(&|bytes| bytes[20] ^= 1)),
        ("bit-in-a-chunk", changed(&|bytes| bytes[second + 30] ^= 1)),
        ("bit-in-the-mark-of-the-last", changed(&|bytes| bytes[second + 3] ^= 0x80)),
        ("long-header", changed(&|bytes| bytes[8..12].copy_from_slice(&u32::MAX.to_le_bytes()))),
        ("long-chunk", changed(&|bytes| bytes[chunks..chunks + 4].copy_from_slice(&[0xff; 4]))),
        ("chunks-swapped", swapped),
        ("chunk-doubled", doubled),
        ("more-behind-the-end", changed(&|bytes| bytes.push(0))),
        ("newer-version", altered(&|header| header.version = "999.1.0".into())),
        ("newer-format", altered(&|header| (header.format, header.version) = (FORMAT + 1, "999.2.0".into()))),
        ("another-key", altered(&|header| header.proof = vec![1; 16].into())),
        (
            "another-passphrase",
            altered(&|header| {
                header.proof = vec![1; 16].into();
                let salt = vec![1; 16].into();
                header.passphrase = Some(pb::Argon2id { salt, memory_kib: 64, passes: 1, lanes: 1 });
            }),
        ),
        ("state-cut", sealed(&head(), &[&plain[..plain.len() - 9]])),
        ("state-of-a-newer-format", sealed(&head(), &[b"RSWSNAP2", &plain[8..]])),
        ("state-and-more", sealed(&head(), &[&plain, b"more"])),
    ])
}

/// Files that were written before there were events have none.
fn without_events(state: &State) -> State {
    State::restore(Snapshot { events: Vec::new(), ..state.snapshot() })
}

fn outcome(bytes: &[u8]) -> String {
    match read(&mut &*bytes, &key()) {
        Ok((header, state)) => {
            assert_eq!(without_events(&state), without_events(&cluster()));
            format!("cluster {}, index {}", header.cluster_name, header.index)
        }
        Err(error) => format!("{error:#}"),
    }
}

/// What is said of each file.
fn verdicts() -> String {
    let mut names: Vec<_> = std::fs::read_dir(files())
        .unwrap()
        .map(|file| file.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "backup"))
        .collect();
    names.sort();
    let lines = names.iter().map(|path| {
        let name = path.file_stem().unwrap().to_string_lossy();
        format!("{name}: {}\n", outcome(&std::fs::read(path).unwrap()))
    });
    lines.collect()
}

#[test]
#[ignore = "writes the files that the other tests read"]
fn write_the_files() {
    std::fs::create_dir_all(files()).unwrap();
    for (name, bytes) in cases() {
        let path = files().join(name).with_extension("backup");
        if !path.exists() {
            std::fs::write(path, bytes).unwrap();
        }
    }
    std::fs::write(files().join("verdicts.txt"), verdicts()).unwrap();
}

#[test]
fn each_damaged_file_is_told_for_what_it_is_and_what_was_written_once_is_read_for_good() {
    let expected = std::fs::read_to_string(files().join("verdicts.txt")).unwrap();
    assert_eq!(verdicts().replace(VERSION, "{ours}"), expected.replace("0.1.0", "{ours}"));
    let missing: Vec<_> =
        cases().into_keys().filter(|name| !expected.contains(&format!("{name}: "))).collect();
    assert!(missing.is_empty(), "write the files {missing:?}");
}

#[test]
fn no_bit_can_be_changed_and_no_byte_cut_off_unnoticed() {
    let good = good();
    for at in 0..good.len() {
        let mut bad = good.clone();
        bad[at] ^= 1 << (at % 8);
        assert!(read(&mut &*bad, &key()).is_err(), "a flip at {at}");
        let cut = read(&mut &good[..at], &key()).unwrap_err();
        let told = cut.downcast_ref::<Unusable>();
        let told = told.or_else(|| cut.downcast_ref::<io::Error>()?.get_ref()?.downcast_ref());
        assert!(matches!(told, Some(Unusable::Cut(_) | Unusable::Foreign)), "a cut at {at}: {cut:#}");
    }
}

#[test]
fn what_is_written_is_read_and_nothing_of_it_can_be_seen_from_outside() {
    let (state, mut bytes) = (cluster(), Vec::new());
    write(&state, BackupHeader { made_at_ms: 5, ..Default::default() }, &key(), &mut bytes).unwrap();
    let (header, restored) = read(&mut &*bytes, &key()).unwrap();
    assert_eq!((restored, header.made_at_ms, header.index), (state, 5, 1));
    let secret = "m".repeat(16);
    assert!(!bytes.windows(16).any(|window| window == secret.as_bytes()), "the token stands there");
    let other = Key::generate();
    let wrong = read(&mut &*bytes, &other).unwrap_err();
    assert_eq!(wrong.downcast_ref(), Some(&Unusable::WrongKey));
}

#[test]
fn a_large_state_is_many_chunks() {
    let plain: Vec<u8> = (0..3 * CHUNK_BYTES + 5).map(|n| n as u8).collect();
    let head = head();
    let mut bytes = Vec::new();
    seal(&head, &key(), &mut bytes, |to| to.write_all(&plain)).unwrap();
    let mut from = &bytes[head.bytes.len()..];
    let mut chunks = Opening {
        from: Counted { from: &mut from, at: 0 },
        key: head.chunk_key(&key()),
        chunk: Vec::new(),
        plain: 0..0,
        count: 0,
        ended: false,
    };
    let mut read = Vec::new();
    chunks.read_to_end(&mut read).unwrap();
    assert!(read == plain && chunks.count == 4);
}

#[test]
fn versions_are_numbers() {
    for (version, is_newer) in
        [("0.0.9", false), (VERSION, false), ("0.10.0", true), ("1.0.0-rc.1", true), ("tomorrow", true)]
    {
        assert_eq!(newer(version), is_newer, "{version}");
    }
}
