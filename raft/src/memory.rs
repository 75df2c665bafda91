//! A transport without a network, for tests and simulations: managers in one process, and cuts between them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::stream::StreamExt;
use tokio::sync::{mpsc, watch};

use crate::{Answers, Frames, Log, Member, RaftId, Transport, Unreachable};

/// A network in memory; clones share it. Managers are found by their [`RaftId`].
#[derive(Clone, Default)]
pub struct Network(Arc<Shared>);

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    /// Counts changes of `state`, so that streams notice cuts.
    changes: watch::Sender<u64>,
}

#[derive(Default)]
struct State {
    logs: BTreeMap<RaftId, Log>,
    /// Directed: what the first sends, the second does not get.
    cut: BTreeSet<(RaftId, RaftId)>,
    /// Calls across a cut hang.
    silent: bool,
    calls: BTreeMap<(RaftId, RaftId), u64>,
}

impl Network {
    /// An empty network.
    pub fn new() -> Self {
        Self::default()
    }

    /// The transport of one manager.
    pub fn transport(&self, me: RaftId) -> Arc<dyn Transport> {
        Arc::new(Port { network: self.clone(), me })
    }

    /// Makes a log reachable.
    pub fn plug(&self, id: RaftId, log: Log) {
        self.change(|state| drop(state.logs.insert(id, log)));
    }

    /// Makes it unreachable, as if its process had ended.
    pub fn unplug(&self, id: RaftId) {
        self.change(|state| drop(state.logs.remove(&id)));
    }

    /// Loses everything `from` sends to `to`.
    pub fn cut(&self, from: RaftId, to: RaftId) {
        self.change(|state| {
            state.cut.insert((from, to));
        });
    }

    /// Divides the plugged managers: those in `apart` and the others no longer reach one another.
    pub fn partition(&self, apart: &[RaftId]) {
        self.change(|state| {
            let (inside, outside): (Vec<RaftId>, Vec<RaftId>) =
                state.logs.keys().partition(|id| apart.contains(id));
            for &one in &inside {
                for &other in &outside {
                    state.cut.extend([(one, other), (other, one)]);
                }
            }
        });
    }

    /// The same, and whoever calls across is not told that it is in vain, as when a machine has lost its power.
    pub fn silence(&self, apart: &[RaftId]) {
        self.change(|state| state.silent = true);
        self.partition(apart);
    }

    /// How many calls the first has made to the second, streams apart.
    pub fn calls(&self, from: RaftId, to: RaftId) -> u64 {
        self.state().calls.get(&(from, to)).copied().unwrap_or(0)
    }

    /// Undoes all cuts.
    pub fn heal(&self) {
        self.change(|state| {
            state.cut.clear();
            state.silent = false;
        });
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.state());
        self.0.changes.send_modify(|changes| *changes += 1);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().expect("nothing panics while it holds this lock")
    }

    /// The peer, if both directions are open and it is there.
    fn reach(&self, from: RaftId, to: RaftId) -> Option<Log> {
        let state = self.state();
        let cut = state.cut.contains(&(from, to)) || state.cut.contains(&(to, from));
        state.logs.get(&to).filter(|_| !cut).cloned()
    }

    fn connect(&self, from: RaftId, to: &Member) -> Result<Log, Unreachable> {
        self.reach(from, to.id).ok_or_else(|| Unreachable::new(format!("no way to {to}")))
    }

    /// The frames, up to the moment of a cut.
    fn guarded(&self, frames: Frames, from: RaftId, to: RaftId) -> Frames {
        let network = self.clone();
        Box::pin(frames.take_while(move |_| std::future::ready(network.reach(from, to).is_some())))
    }

    /// Ends once the peer is out of reach.
    async fn broken(&self, from: RaftId, to: RaftId) {
        let mut changes = self.0.changes.subscribe();
        while self.reach(from, to).is_some() && changes.changed().await.is_ok() {}
    }
}

struct Port {
    network: Network,
    me: RaftId,
}

impl Transport for Port {
    fn call<'a>(
        &'a self,
        to: &'a Member,
        frame: Bytes,
        patience: Duration,
    ) -> BoxFuture<'a, Result<Bytes, Unreachable>> {
        Box::pin(async move {
            let answer = match self.network.connect(self.me, to) {
                Err(error) => Err(error),
                Ok(peer) => {
                    *self.network.state().calls.entry((self.me, to.id)).or_default() += 1;
                    tokio::select! {
                        answer = peer.handle_call(frame) => Ok(answer),
                        () = self.network.broken(self.me, to.id) => {
                            Err(Unreachable::new("the connection broke"))
                        }
                    }
                }
            };
            let silent = self.network.state().silent;
            if answer.is_err() && silent {
                tokio::time::sleep(patience).await;
            }
            answer
        })
    }

    fn append<'a>(&'a self, to: &'a Member, frames: Frames) -> BoxFuture<'a, Result<Answers, Unreachable>> {
        Box::pin(async move {
            let peer = self.network.connect(self.me, to)?;
            let mut answers = peer.handle_append(self.network.guarded(frames, self.me, to.id));
            let (network, me, to) = (self.network.clone(), self.me, to.id);
            let (out, answered) = mpsc::channel(64);
            tokio::spawn(async move {
                loop {
                    let answer = tokio::select! {
                        answer = answers.next() => answer.map(Ok),
                        () = network.broken(me, to) => Some(Err(Unreachable::new("the connection broke"))),
                        () = out.closed() => return,
                    };
                    let Some(answer) = answer else { return };
                    let broken = answer.is_err();
                    if out.send(answer).await.is_err() || broken {
                        return;
                    }
                }
            });
            let answers = futures_util::stream::unfold(answered, |mut answered| async move {
                Some((answered.recv().await?, answered))
            });
            Ok(Box::pin(answers) as Answers)
        })
    }

    fn snapshot<'a>(&'a self, to: &'a Member, frames: Frames) -> BoxFuture<'a, Result<Bytes, Unreachable>> {
        Box::pin(async move {
            let peer = self.network.connect(self.me, to)?;
            tokio::select! {
                answer = peer.handle_snapshot(self.network.guarded(frames, self.me, to.id)) => Ok(answer),
                () = self.network.broken(self.me, to.id) => Err(Unreachable::new("the connection broke")),
            }
        })
    }
}
