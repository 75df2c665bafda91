//! The sessions of a term of office: which are to look at the state again, and which nodes have taken over which
//! tables, which is what lets a task be asked to end only when nobody routes to it any more.

use rswarm_control::ids::NodeId;
use rswarm_control::touched::Touched;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::{Notify, watch};

/// How long a task that is to end waits for nodes that do not answer.
const PATIENCE: Duration = Duration::from_secs(1);

/// How far the sessions of a term of office are.
pub struct Routes {
    sessions: Mutex<Sessions>,
    /// As of which entry of the log every node routes.
    settled: watch::Sender<u64>,
}

#[derive(Default)]
struct Sessions {
    of: BTreeMap<NodeId, Progress>,
    /// Up to which index it was looked at whom the state concerns.
    passed: u64,
}

#[derive(Default)]
struct Progress {
    session: u64,
    wake: Arc<Notify>,
    /// The last index that concerns the node.
    due: u64,
    /// Up to which index the node's table was looked at.
    seen: u64,
    /// The generation of the last table it was sent.
    sent: u64,
    /// The last that it has in force.
    taken: u64,
}

impl Progress {
    /// As of which entry the node routes, if it was looked at up to `passed` whom the state concerns.
    fn settled(&self, passed: u64) -> u64 {
        let seen = if self.seen >= self.due { self.seen.max(passed) } else { self.seen };
        if self.taken >= self.sent { seen } else { seen.min(self.taken) }
    }
}

impl Default for Routes {
    fn default() -> Self {
        Self { sessions: Mutex::default(), settled: watch::channel(0).0 }
    }
}

impl Routes {
    /// A session has begun; it ends an earlier one of the same node. It is to look at the state now, and whenever it
    /// is woken.
    pub fn open(&self, node: NodeId, session: u64) -> Arc<Notify> {
        let progress = Progress { session, due: 1, ..Progress::default() };
        let wake = progress.wake.clone();
        self.change(|sessions| {
            sessions.of.insert(node, progress);
        });
        wake
    }

    /// A session has ended.
    pub fn close(&self, node: NodeId, session: u64) {
        self.change(|sessions| {
            if sessions.of.get(&node).is_some_and(|progress| progress.session == session) {
                sessions.of.remove(&node);
            }
        });
    }

    /// How many sessions there are.
    pub fn sessions(&self) -> usize {
        self.lock().of.len()
    }

    /// There is an edition of the state as of `index`, and some nodes are to look at it.
    pub fn pass(&self, index: u64, touched: &Touched) {
        self.change(|sessions| {
            sessions.passed = index;
            for (_, progress) in sessions.of.iter_mut().filter(|(node, _)| touched.has(**node)) {
                progress.due = index;
                progress.wake.notify_one();
            }
        });
    }

    /// A node's table was looked at for this index, and sent if it had changed.
    pub fn seen(&self, node: NodeId, session: u64, index: u64, sent: bool) {
        self.update(node, session, |progress| {
            progress.seen = index;
            if sent {
                progress.sent = index;
            }
        });
    }

    /// A node has a table in force.
    pub fn taken(&self, node: NodeId, session: u64, generation: u64) {
        self.update(node, session, |progress| progress.taken = progress.taken.max(generation));
    }

    /// Waits until every node routes as of `index`, but not for ever.
    pub async fn settled(&self, index: u64) {
        let mut settled = self.settled.subscribe();
        let wait = settled.wait_for(|settled| *settled >= index);
        if tokio::time::timeout(PATIENCE, wait).await.is_err() {
            tracing::debug!(index, "some nodes have not taken over their routes in time");
        }
    }

    fn update(&self, node: NodeId, session: u64, with: impl FnOnce(&mut Progress)) {
        self.change(|sessions| {
            let progress = sessions.of.get_mut(&node);
            if let Some(progress) = progress.filter(|progress| progress.session == session) {
                with(progress);
            }
        });
    }

    fn change(&self, with: impl FnOnce(&mut Sessions)) {
        let mut sessions = self.lock();
        with(&mut sessions);
        let passed = sessions.passed;
        let settled = sessions.of.values().map(|progress| progress.settled(passed)).min();
        self.settled.send_if_modified(|known| {
            let now = settled.unwrap_or(u64::MAX);
            std::mem::replace(known, now) != now
        });
    }

    fn lock(&self) -> MutexGuard<'_, Sessions> {
        self.sessions.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::time::Instant;

    const A: NodeId = NodeId(1);
    const B: NodeId = NodeId(2);

    #[tokio::test(start_paused = true)]
    async fn a_node_that_has_not_taken_its_table_is_waited_for_a_second_at_the_most() {
        let routes = Routes::default();
        routes.open(A, 1);
        routes.open(B, 1);
        routes.seen(A, 1, 5, true);
        routes.seen(B, 1, 5, false);
        let began = Instant::now();
        routes.settled(5).await;
        assert_eq!(began.elapsed(), PATIENCE);

        routes.taken(A, 1, 5);
        let began = Instant::now();
        routes.settled(5).await;
        assert_eq!(began.elapsed(), Duration::ZERO);
    }

    #[tokio::test(start_paused = true)]
    async fn a_node_that_a_change_does_not_concern_need_not_look() {
        let routes = Routes::default();
        let (wakes_a, wakes_b) = (routes.open(A, 1), routes.open(B, 1));
        routes.seen(A, 1, 5, false);
        routes.seen(B, 1, 5, false);
        routes.pass(6, &Touched::These([A].into()));
        wakes_a.notified().await;
        assert!(tokio::time::timeout(PATIENCE, wakes_b.notified()).await.is_err(), "it is not woken");

        let began = Instant::now();
        routes.settled(6).await;
        assert_eq!(began.elapsed(), PATIENCE, "the other is waited for");
        routes.seen(A, 1, 6, false);
        let began = Instant::now();
        routes.settled(6).await;
        assert_eq!(began.elapsed(), Duration::ZERO);
    }

    #[tokio::test(start_paused = true)]
    async fn a_node_whose_session_ended_is_not_waited_for() {
        let routes = Routes::default();
        routes.open(A, 1);
        routes.open(A, 2);
        routes.close(A, 1);
        let began = Instant::now();
        let closing = async {
            tokio::time::sleep(Duration::from_millis(100)).await;
            routes.close(A, 2);
        };
        tokio::join!(routes.settled(5), closing);
        assert_eq!(began.elapsed(), Duration::from_millis(100));
    }
}
