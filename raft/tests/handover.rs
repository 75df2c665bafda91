//! What it costs a new leader to take over: how often it asks, and how much it sends.

use std::io::{self, Read, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::future::{BoxFuture, join_all};
use rswarm_raft::memory::Network;
use rswarm_raft::{
    Answers, AsWhat, ClusterTag, Config, Entry, Frames, Frozen, Log, Member, RaftId, StateMachine, Transport,
    Unreachable,
};

const PATIENCE: Duration = Duration::from_secs(20);
const ENTRIES: usize = 4000;
const ENTRY_BYTES: usize = 200;

struct Nothing;

impl StateMachine for Nothing {
    fn apply(&mut self, entries: Vec<Entry>) -> Vec<Bytes> {
        vec![Bytes::new(); entries.len()]
    }

    fn freeze(&self) -> Box<dyn Frozen> {
        Box::new(Nothing)
    }

    fn restore(&mut self, _: u64, _: &mut dyn Read) -> io::Result<()> {
        Ok(())
    }
}

impl Frozen for Nothing {
    fn write(self: Box<Self>, _: &mut dyn Write) -> io::Result<()> {
        Ok(())
    }
}

/// A transport that counts what goes out by it.
struct Counted {
    inner: Arc<dyn Transport>,
    streams: AtomicUsize,
    bytes: Arc<AtomicUsize>,
}

impl Transport for Counted {
    fn call<'a>(
        &'a self,
        to: &'a Member,
        frame: Bytes,
        deadline: Duration,
    ) -> BoxFuture<'a, Result<Bytes, Unreachable>> {
        self.inner.call(to, frame, deadline)
    }

    fn append<'a>(&'a self, to: &'a Member, frames: Frames) -> BoxFuture<'a, Result<Answers, Unreachable>> {
        self.streams.fetch_add(1, Ordering::Relaxed);
        let bytes = self.bytes.clone();
        let frames = frames.inspect(move |frame| {
            bytes.fetch_add(frame.len(), Ordering::Relaxed);
        });
        self.inner.append(to, Box::pin(frames))
    }

    fn snapshot<'a>(&'a self, to: &'a Member, frames: Frames) -> BoxFuture<'a, Result<Bytes, Unreachable>> {
        self.inner.snapshot(to, frames)
    }
}

fn member(id: u64) -> Member {
    Member { id: RaftId(id), addr: format!("10.0.0.{id}:2377"), node: format!("node{id}") }
}

/// A leader on a busy machine may be without its majority for a moment.
async fn taken(log: &Log, command: &Bytes) -> u64 {
    let until_taken = async {
        loop {
            if let Ok(proposed) = log.propose(command.clone()).await {
                return proposed.index;
            }
        }
    };
    tokio::time::timeout(PATIENCE, until_taken).await.expect("the leader takes it")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_leader_finds_out_what_the_others_have_in_a_few_exchanges() {
    let root = tempfile::tempdir().unwrap();
    let network = Network::new();
    let mut logs = Vec::new();
    let mut counts = Vec::new();
    for id in 1..=3 {
        let config = Config::new(root.path().join(id.to_string()), RaftId(id), ClusterTag(1));
        let counted = Arc::new(Counted {
            inner: network.transport(RaftId(id)),
            streams: AtomicUsize::default(),
            bytes: Arc::default(),
        });
        let log = Log::open(config, Nothing, counted.clone()).await.unwrap();
        network.plug(RaftId(id), log.clone());
        logs.push(log);
        counts.push(counted);
    }
    logs[0].bootstrap(member(1)).await.unwrap();
    for id in 2..=3 {
        logs[0].add(member(id), AsWhat::Voter, PATIENCE).await.unwrap();
    }
    let command = Bytes::from(vec![7; ENTRY_BYTES]);
    for _ in 0..ENTRIES / 100 {
        join_all((0..100).map(|_| taken(&logs[0], &command))).await;
    }
    let last = logs[0].status().last_log;
    for log in &logs {
        log.wait(PATIENCE, |status| status.last_log >= last).await.expect("everybody follows");
    }

    logs[0].transfer(Some(RaftId(2))).await.unwrap();
    logs[1].wait(PATIENCE, |status| status.is_leader()).await.expect("it has taken over");
    let index = taken(&logs[1], &command).await;
    for log in &logs {
        log.wait(PATIENCE, |status| status.applied >= index).await.expect("everybody follows");
    }
    let (streams, bytes) =
        (counts[1].streams.load(Ordering::Relaxed), counts[1].bytes.load(Ordering::Relaxed));
    assert!(streams <= 2 * 4, "{streams} streams to two followers");
    assert!(bytes < ENTRIES * ENTRY_BYTES / 10, "{bytes} bytes to followers that had everything");
    for log in logs {
        network.unplug(log.status().id);
        log.shutdown().await;
    }
}
