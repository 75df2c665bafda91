//! A network that delays, loses, and is cut one way or both, between managers in one process.
//!
//! It carries connections: what comes over one of them comes in order, and once something on it was lost nothing
//! more comes.

use super::record::Record;
use super::rng::Rng;
use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::stream::{self, StreamExt};
use rswarm_raft::{Answers, Frames, Log, Member, RaftId, Transport, Unreachable};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::Instant;

#[derive(Clone)]
pub struct Network(Arc<Mutex<State>>);

struct State {
    /// Who runs, and for which time since the beginning.
    running: BTreeMap<u64, (Log, u64)>,
    runs: u64,
    /// What the first says, the second does not hear.
    cut: BTreeSet<(u64, u64)>,
    loss_percent: u64,
    /// How long a message takes, in microseconds.
    delay: (u64, u64),
    rng: Rng,
    record: Record,
}

/// How long a message takes on an ordinary day.
const ORDINARY: (u64, u64) = (500, 3000);

impl Network {
    pub fn new(rng: Rng, record: Record) -> Self {
        Self(Arc::new(Mutex::new(State {
            running: BTreeMap::new(),
            runs: 0,
            cut: BTreeSet::new(),
            loss_percent: 0,
            delay: ORDINARY,
            rng,
            record,
        })))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap()
    }

    /// The transport of the next run of a manager, and the number of that run.
    pub fn port(&self, me: u64) -> (Arc<dyn Transport>, u64) {
        let mut state = self.state();
        state.runs += 1;
        let run = state.runs;
        (Arc::new(Port { network: self.clone(), me, run }), run)
    }

    pub fn plug(&self, id: u64, log: Log, run: u64) {
        self.state().running.insert(id, (log, run));
    }

    pub fn unplug(&self, id: u64) {
        self.state().running.remove(&id);
    }

    pub fn cut(&self, from: u64, to: u64) {
        self.state().cut.insert((from, to));
    }

    pub fn lose(&self, percent: u64) {
        self.state().loss_percent = percent;
    }

    pub fn slow(&self, low_ms: u64, high_ms: u64) {
        self.state().delay = (low_ms * 1000, high_ms * 1000);
    }

    /// All is as on an ordinary day.
    pub fn heal(&self) {
        let mut state = self.state();
        state.cut.clear();
        state.loss_percent = 0;
        state.delay = ORDINARY;
    }

    /// How long this message takes; none if it is lost.
    fn fate(&self, from: u64, to: u64, bytes: usize) -> Option<Duration> {
        let mut state = self.state();
        let chance = state.loss_percent;
        let lost = state.cut.contains(&(from, to)) || state.rng.percent(chance);
        let (low, high) = state.delay;
        let delay = Duration::from_micros(state.rng.between(low, high));
        let fate = if lost { "lost" } else { "sent" };
        state.record.note(format_args!("{from}>{to} {bytes} {fate} {delay:?}"));
        (!lost).then_some(delay)
    }

    /// The log of `to`, and which run of it that is, as long as the sender still runs.
    fn reach(&self, me: u64, run: u64, to: u64) -> Result<(Log, u64), Unreachable> {
        let state = self.state();
        let alive = state.running.get(&me).is_some_and(|(_, now)| *now == run);
        match state.running.get(&to).cloned() {
            Some(peer) if alive => Ok(peer),
            _ => Err(Unreachable::new("nobody is there")),
        }
    }

    fn runs(&self, id: u64, run: u64) -> bool {
        self.state().running.get(&id).is_some_and(|(_, now)| *now == run)
    }

    /// One way of a connection: delivers in order until something is lost, `me` or `to` ends, or `give_up` does; then
    /// nothing more comes, and nobody is told.
    fn wire<T: Send + 'static>(
        &self,
        mut from: impl futures_util::Stream<Item = T> + Send + Unpin + 'static,
        ends: [(u64, u64); 2],
        bytes: impl Fn(&T) -> usize + Send + 'static,
    ) -> mpsc::UnboundedReceiver<(Instant, T)> {
        let (sender, receiver) = mpsc::unbounded_channel();
        let network = self.clone();
        tokio::spawn(async move {
            let mut due = Instant::now();
            loop {
                let item = tokio::select! {
                    biased;
                    () = sender.closed() => return,
                    item = from.next() => item,
                };
                let Some(item) = item else { return };
                let alive = ends.iter().all(|(id, run)| network.runs(*id, *run));
                let fate = network.fate(ends[0].0, ends[1].0, bytes(&item)).filter(|_| alive);
                let Some(delay) = fate else { break };
                due = due.max(Instant::now() + delay);
                if sender.send((due, item)).is_err() {
                    return;
                }
            }
            // A cable that is out says nothing.
            sender.closed().await;
        });
        receiver
    }
}

/// What comes out of a wire, when it is due.
fn arriving<T: Send + 'static>(
    wire: mpsc::UnboundedReceiver<(Instant, T)>,
) -> std::pin::Pin<Box<dyn futures_util::Stream<Item = T> + Send>> {
    Box::pin(stream::unfold(wire, |mut wire| async move {
        let (due, item) = wire.recv().await?;
        tokio::time::sleep_until(due).await;
        Some((item, wire))
    }))
}

struct Port {
    network: Network,
    me: u64,
    run: u64,
}

impl Port {
    /// Carries one message; for ever, if it is lost.
    async fn carry(&self, from: u64, to: u64, bytes: usize) {
        match self.network.fate(from, to, bytes) {
            Some(delay) => tokio::time::sleep(delay).await,
            None => std::future::pending().await,
        }
    }

    /// Asks and carries the answer, if both still run by then.
    async fn exchange<F: Future<Output = Bytes>>(
        &self,
        to: RaftId,
        bytes: usize,
        ask: impl FnOnce(Log) -> F,
    ) -> Result<Bytes, Unreachable> {
        self.carry(self.me, to.0, bytes).await;
        let (peer, run) = self.network.reach(self.me, self.run, to.0)?;
        let answer = ask(peer).await;
        if !self.network.runs(to.0, run) {
            return Err(Unreachable::new("it ended"));
        }
        self.carry(to.0, self.me, answer.len()).await;
        Ok(answer)
    }
}

impl Transport for Port {
    fn call<'a>(
        &'a self,
        to: &'a Member,
        frame: Bytes,
        _: Duration,
    ) -> BoxFuture<'a, Result<Bytes, Unreachable>> {
        let bytes = frame.len();
        Box::pin(self.exchange(to.id, bytes, |peer| async move { peer.handle_call(frame).await }))
    }

    fn append<'a>(&'a self, to: &'a Member, frames: Frames) -> BoxFuture<'a, Result<Answers, Unreachable>> {
        Box::pin(async move {
            self.carry(self.me, to.id.0, 0).await;
            let (peer, run) = self.network.reach(self.me, self.run, to.id.0)?;
            let (here, there) = ((self.me, self.run), (to.id.0, run));
            let there_wire = self.network.wire(frames, [here, there], Bytes::len);
            let answers = peer.handle_append(arriving(there_wire));
            drop(peer);
            let back = self.network.wire(answers, [there, here], Bytes::len);
            Ok(Box::pin(arriving(back).map(Ok)) as Answers)
        })
    }

    fn snapshot<'a>(&'a self, to: &'a Member, frames: Frames) -> BoxFuture<'a, Result<Bytes, Unreachable>> {
        Box::pin(self.exchange(to.id, 0, |peer| async move { peer.handle_snapshot(frames).await }))
    }
}
