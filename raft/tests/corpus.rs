//! What a manager left on disk, damaged in many ways: it is opened to what was there before the damage, or refused.
//! Nothing panics, and nothing that was never written is believed.
//!
//! `tests/corpus/VERSION` is what a manager of that version wrote: its log, votes and a membership in it, a snapshot,
//! its key. `ADD_FORMS=1 cargo test -p rswarm-raft --test corpus` adds that of today's version, if it is missing; what
//! is there stays as it is.

use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use rswarm_raft::memory::Network;
use rswarm_raft::{ClusterTag, Config, Entry, Frozen, Log, Member, OpenError, RaftId, StateMachine};

const PATIENCE: Duration = Duration::from_secs(20);
/// The commands the manager took, of which the snapshot covers some.
const COMMANDS: u64 = 60;
const IN_SNAPSHOT: u64 = 25;
/// How many kinds of damage are tried on each file.
const DAMAGES: u64 = 60;

fn corpus() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/corpus")
}

/// Remembers every command by its number.
#[derive(Clone, Default)]
struct Numbers(Arc<Mutex<Vec<u64>>>);

fn number(bytes: &[u8]) -> u64 {
    bytes.first_chunk().map_or(u64::MAX, |word| u64::from_le_bytes(*word))
}

impl StateMachine for Numbers {
    fn apply(&mut self, entries: Vec<Entry>) -> Vec<Bytes> {
        let mut numbers = self.0.lock().unwrap();
        numbers.extend(entries.iter().map(|entry| number(&entry.bytes)));
        vec![Bytes::new(); entries.len()]
    }

    fn freeze(&self) -> Box<dyn Frozen> {
        Box::new(FrozenNumbers(self.0.lock().unwrap().clone()))
    }

    fn restore(&mut self, _: u64, from: &mut dyn Read) -> io::Result<()> {
        let mut bytes = Vec::new();
        from.read_to_end(&mut bytes)?;
        *self.0.lock().unwrap() = bytes.chunks(8).map(number).collect();
        Ok(())
    }
}

struct FrozenNumbers(Vec<u64>);

impl Frozen for FrozenNumbers {
    fn write(self: Box<Self>, to: &mut dyn Write) -> io::Result<()> {
        self.0.iter().try_for_each(|number| to.write_all(&number.to_le_bytes()))
    }
}

fn config(dir: &Path) -> Config {
    let mut config = Config::new(dir, RaftId(1), ClusterTag(7));
    config.segment_bytes = 64 << 10;
    config.keep_entries = 5;
    config.heartbeat = Duration::from_millis(10);
    config.election_min = Duration::from_millis(20);
    config.election_max = Duration::from_millis(40);
    config
}

async fn open(dir: &Path) -> Result<(Log, Numbers), OpenError> {
    let numbers = Numbers::default();
    let log = Log::open(config(dir), numbers.clone(), Network::new().transport(RaftId(1))).await?;
    Ok((log, numbers))
}

fn copy(from: &Path, to: &Path) {
    for file in std::fs::read_dir(from).unwrap() {
        let file = file.unwrap();
        std::fs::copy(file.path(), to.join(file.file_name())).unwrap();
    }
}

/// Writes what a manager that was killed leaves behind.
async fn write_corpus(to: &Path) {
    let root = tempfile::tempdir().unwrap();
    let (log, _) = open(root.path()).await.unwrap();
    let me = Member { id: RaftId(1), addr: "10.0.0.1:2377".into(), node: "n1".into() };
    log.bootstrap(me).await.unwrap();
    for number in 0..COMMANDS {
        let command: Vec<u8> = number.to_le_bytes().into_iter().chain([7; 40]).collect();
        let proposed = log.propose(command.into()).await.unwrap();
        if number + 1 == IN_SNAPSHOT {
            log.snapshot().await.unwrap();
            log.wait(PATIENCE, |status| status.snapshot >= proposed.index).await.unwrap();
        }
    }
    std::fs::create_dir_all(to).unwrap();
    copy(root.path(), to);
    log.shutdown().await;
    for file in std::fs::read_dir(to).unwrap() {
        let path = file.unwrap().path();
        if path.extension().is_none_or(|extension| extension == "tmp") {
            std::fs::remove_file(path).unwrap();
            continue;
        }
        // Segments are filled with zeros in advance; those say nothing.
        let mut bytes = std::fs::read(&path).unwrap();
        if path.extension().is_some_and(|extension| extension == "wal") {
            bytes.truncate(bytes.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1));
        }
        std::fs::write(&path, bytes).unwrap();
    }
}

/// One damage of a kind and at a place that follow from `seed`.
fn damage(bytes: &mut Vec<u8>, seed: u64) {
    let draw = |salt: u64| {
        let mut x = (seed ^ salt.rotate_left(40)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        (x ^ (x >> 27)) as usize
    };
    let len = bytes.len().max(1);
    let (at, other) = (draw(1) % len, draw(2) % len);
    match seed % 6 {
        0 => bytes[at] ^= 1 << (draw(3) % 8),
        1 => bytes.truncate(at),
        2 => bytes[at..(at + 64).min(len)].fill(0),
        3 => bytes.extend_from_within(at..(at + 200).min(len)),
        4 => {
            let piece: Vec<u8> = bytes[at..(at + 100).min(len)].to_vec();
            let end = (other + piece.len()).min(len);
            bytes[other..end].copy_from_slice(&piece[..end - other]);
        }
        _ => bytes[at..(at + 4).min(len)].fill(0xff),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_manager_left_behind_is_read_or_refused_however_damaged() {
    let today = corpus().join(env!("CARGO_PKG_VERSION"));
    if std::env::var_os("ADD_FORMS").is_some() && !today.exists() {
        write_corpus(&today).await;
    }
    for version in std::fs::read_dir(corpus()).unwrap() {
        read_or_refused(&version.unwrap().path()).await;
    }
}

async fn read_or_refused(corpus: &Path) {
    let whole: Vec<u64> = (0..COMMANDS).collect();
    let files: Vec<_> = std::fs::read_dir(corpus).unwrap().map(|file| file.unwrap().file_name()).collect();
    let kinds = |suffix: &str| files.iter().filter(|name| name.to_str().unwrap().ends_with(suffix)).count();
    assert!(kinds(".wal") > 0 && kinds(".snapshot") > 0 && kinds(".key") > 0, "the corpus is incomplete");

    let (mut opened, mut refused) = (0, 0);
    // Seed 0 of the first file leaves all as it is.
    for (number, name) in (0..).zip(&files) {
        for seed in 0..DAMAGES {
            let untouched = (number, seed) == (0, 0);
            let dir = tempfile::tempdir().unwrap();
            copy(corpus, dir.path());
            let path = dir.path().join(name);
            let mut bytes = std::fs::read(&path).unwrap();
            let before = bytes.clone();
            if !untouched {
                damage(&mut bytes, number * 1000 + seed);
                std::fs::write(&path, &bytes).unwrap();
            }
            let (log, numbers) = match open(dir.path()).await {
                Ok(opened) => opened,
                Err(error) => {
                    assert!(bytes != before, "what is whole was refused: {error}");
                    refused += 1;
                    continue;
                }
            };
            opened += 1;
            // It leads alone, so all that is in its log counts.
            let deadline = Instant::now() + PATIENCE;
            let led = log.wait(PATIENCE, |status| status.is_leader() || status.failed.is_some()).await;
            let status = led.expect("it leads or says why not");
            assert_eq!(status.failed, None, "{name:?}, damage {seed}");
            while log.read_index().await.is_err() {
                assert!(Instant::now() < deadline, "{name:?}, damage {seed}: it cannot be read");
            }
            let seen = numbers.0.lock().unwrap().clone();
            assert!(whole.starts_with(&seen), "{name:?}, damage {seed}: {seen:?}");
            assert!(seen.len() as u64 >= IN_SNAPSHOT, "{name:?}, damage {seed}: what was compacted is gone");
            if untouched {
                assert_eq!(seen, whole);
            }
            log.shutdown().await;
        }
    }
    assert!(opened > 10 && refused > 100, "{opened} were read and {refused} refused");
}
