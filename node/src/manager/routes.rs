//! The sessions of a term of office: which are to look at the state again, and which nodes have taken over which
//! tables, which is what lets a task be asked to end only when nobody routes to it any more.

use rswarm_control::ids::NodeId;
use rswarm_control::touched::Touched;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;

/// How long a task that is to end waits for nodes that do not answer, or have not found this leader yet.
const PATIENCE: Duration = Duration::from_secs(1);

/// How far the sessions of a term of office are.
pub struct Routes {
    sessions: Mutex<Sessions>,
    /// As of which entry of the log every node routes.
    settled: watch::Sender<u64>,
    /// How many nodes have not done yet what they were woken for.
    behind: watch::Sender<usize>,
    /// Until when nodes are expected that have no session yet.
    expected_until: Instant,
}

#[derive(Default)]
struct Sessions {
    of: BTreeMap<NodeId, Progress>,
    /// Those that have nothing to do, by the index up to which they have looked.
    idle: BTreeSet<(u64, NodeId)>,
    /// The others, by the index as of which they route.
    busy: BTreeSet<(u64, NodeId)>,
    /// How many of those have not done yet what they were woken for.
    behind: usize,
    /// Nodes that will have a session soon, and route as a former leader said.
    expected: BTreeSet<NodeId>,
    /// Up to which index it was looked at whom the state concerns.
    passed: u64,
}

#[derive(Default)]
struct Progress {
    session: u64,
    wake: Arc<Notify>,
    /// The last index that concerns the node.
    due: u64,
    /// The last for which it was woken.
    woken: u64,
    /// Up to which index the node's table was looked at.
    seen: u64,
    /// The generation of the last table it was sent.
    sent: u64,
    /// The last that it has in force.
    taken: u64,
}

impl Progress {
    fn is_idle(&self) -> bool {
        self.seen >= self.due && self.taken >= self.sent
    }

    /// Whether it has not done yet what it was woken for.
    fn is_behind(&self) -> bool {
        self.seen < self.woken || self.taken < self.sent
    }

    /// As of which entry the node routes, at least.
    fn settled(&self) -> u64 {
        if self.taken >= self.sent { self.seen } else { self.seen.min(self.taken) }
    }
}

impl Sessions {
    /// Does something to a node's progress, and files it anew.
    fn update(&mut self, node: NodeId, with: impl FnOnce(&mut Progress)) {
        let Some(mut progress) = self.take(node) else { return };
        with(&mut progress);
        self.put(node, progress);
    }

    fn take(&mut self, node: NodeId) -> Option<Progress> {
        let progress = self.of.remove(&node)?;
        self.list(&progress).remove(&(progress.settled(), node));
        self.behind -= usize::from(progress.is_behind());
        Some(progress)
    }

    fn put(&mut self, node: NodeId, progress: Progress) {
        self.list(&progress).insert((progress.settled(), node));
        self.behind += usize::from(progress.is_behind());
        self.of.insert(node, progress);
    }

    /// Has a node look, if it is to.
    fn wake(&mut self, node: NodeId) {
        self.update(node, |progress| {
            if progress.woken < progress.due {
                progress.woken = progress.due;
                progress.wake.notify_one();
            }
        });
    }

    fn list(&mut self, progress: &Progress) -> &mut BTreeSet<(u64, NodeId)> {
        if progress.is_idle() { &mut self.idle } else { &mut self.busy }
    }

    /// As of which entry every node routes. Whom what has passed does not concern, routes as of that.
    fn settled(&self) -> u64 {
        if !self.expected.is_empty() {
            return 0;
        }
        let least = |list: &BTreeSet<(u64, NodeId)>| list.first().map_or(u64::MAX, |(index, _)| *index);
        least(&self.busy).min(least(&self.idle).max(self.passed))
    }
}

impl Routes {
    /// Of a term of office that begins now. These nodes are there, and will open a session.
    pub fn new(expected: impl IntoIterator<Item = NodeId>) -> Self {
        let sessions = Sessions { expected: expected.into_iter().collect(), ..Sessions::default() };
        Self {
            sessions: Mutex::new(sessions),
            settled: watch::channel(0).0,
            behind: watch::channel(0).0,
            expected_until: Instant::now() + PATIENCE,
        }
    }

    /// A session has begun; it ends an earlier one of the same node. It is to look at the state now, and whenever it
    /// is woken.
    pub fn open(&self, node: NodeId, session: u64) -> Arc<Notify> {
        let progress = Progress { session, due: 1, woken: 1, ..Progress::default() };
        let wake = progress.wake.clone();
        self.change(|sessions| {
            sessions.expected.remove(&node);
            sessions.take(node);
            sessions.put(node, progress);
        });
        wake
    }

    /// A session has ended.
    pub fn close(&self, node: NodeId, session: u64) {
        self.change(|sessions| {
            if sessions.of.get(&node).is_some_and(|progress| progress.session == session) {
                sessions.take(node);
            }
        });
    }

    /// How many sessions there are.
    pub fn sessions(&self) -> usize {
        self.lock().of.len()
    }

    /// There is an edition of the state as of `index`, and some nodes are to look at it: those that it touches, and, if
    /// it has news of tables, all others. Only those that are `hurried` are woken, and the others by [`Self::wake`].
    pub fn pass(&self, index: u64, touched: &Touched, is_news: bool, hurried: &BTreeSet<NodeId>) {
        self.change(|sessions| {
            sessions.passed = index;
            let concerned: Vec<NodeId> = match touched {
                Touched::These(nodes) if !is_news => nodes.iter().copied().collect(),
                _ => sessions.of.keys().copied().collect(),
            };
            for node in concerned {
                sessions.update(node, |progress| progress.due = index);
            }
            hurried.iter().for_each(|node| sessions.wake(*node));
        });
    }

    /// Wakes all that are to look at the latest edition: first those that it is known to touch.
    pub fn wake(&self, touched: &Touched) {
        self.change(|sessions| {
            let (first, others): (Vec<_>, Vec<_>) =
                sessions.busy.iter().map(|(_, node)| *node).partition(|node| touched.has(*node));
            first.into_iter().chain(others).for_each(|node| sessions.wake(node));
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
        let wait = async {
            tokio::select! {
                _ = settled.wait_for(|settled| *settled >= index) => return,
                () = tokio::time::sleep_until(self.expected_until) => {}
            }
            self.change(|sessions| sessions.expected.clear());
            // An error means that the office is over.
            let _ = settled.wait_for(|settled| *settled >= index).await;
        };
        if tokio::time::timeout(PATIENCE, wait).await.is_err() {
            tracing::debug!(index, "some nodes have not taken over their routes in time");
        }
    }

    /// Waits until all but so many nodes have done what they had to.
    pub async fn rested(&self, but: usize) {
        let mut behind = self.behind.subscribe();
        // An error means that the office is over.
        let _ = behind.wait_for(|behind| *behind <= but).await;
    }

    fn update(&self, node: NodeId, session: u64, with: impl FnOnce(&mut Progress)) {
        self.change(|sessions| {
            if sessions.of.get(&node).is_some_and(|progress| progress.session == session) {
                sessions.update(node, with);
            }
        });
    }

    fn change(&self, with: impl FnOnce(&mut Sessions)) {
        let mut sessions = self.lock();
        with(&mut sessions);
        let (settled, behind) = (sessions.settled(), sessions.behind);
        self.settled.send_if_modified(|known| std::mem::replace(known, settled) != settled);
        self.behind.send_if_modified(|known| std::mem::replace(known, behind) != behind);
    }

    fn lock(&self) -> MutexGuard<'_, Sessions> {
        self.sessions.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::FutureExt;

    const A: NodeId = NodeId(1);
    const B: NodeId = NodeId(2);

    fn none() -> BTreeSet<NodeId> {
        BTreeSet::new()
    }

    #[tokio::test(start_paused = true)]
    async fn the_hurried_are_woken_first_and_the_others_are_not_forgotten() {
        let routes = Routes::new([]);
        let wakes = [A, B].map(|node| routes.open(node, 1));
        for node in [A, B] {
            routes.seen(node, 1, 5, false);
        }
        routes.pass(6, &Touched::default(), true, &[A].into());
        wakes[0].notified().await;
        assert!(wakes[1].notified().now_or_never().is_none());
        routes.seen(A, 1, 6, true);
        routes.taken(A, 1, 6);
        let began = Instant::now();
        routes.rested(0).await;
        assert_eq!(began.elapsed(), Duration::ZERO, "who was not woken does not keep others waiting");
        routes.settled(6).await;
        assert_eq!(began.elapsed(), PATIENCE, "but it does not route as of this entry yet");

        routes.wake(&Touched::default());
        wakes[1].notified().await;
        assert!(wakes[0].notified().now_or_never().is_none(), "who has looked is not woken again");
        routes.seen(B, 1, 6, true);
        routes.taken(B, 1, 6);
        let began = Instant::now();
        routes.settled(6).await;
        assert_eq!(began.elapsed(), Duration::ZERO);
    }

    #[tokio::test(start_paused = true)]
    async fn a_node_that_has_not_taken_its_table_is_waited_for_a_second_at_the_most() {
        let routes = Routes::new([]);
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
        let routes = Routes::new([]);
        let (wakes_a, wakes_b) = (routes.open(A, 1), routes.open(B, 1));
        routes.seen(A, 1, 5, false);
        routes.seen(B, 1, 5, false);
        routes.pass(6, &Touched::These([A].into()), false, &none());
        routes.wake(&Touched::default());
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
        let routes = Routes::new([]);
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

    #[tokio::test(start_paused = true)]
    async fn a_new_leader_expects_the_nodes_that_are_there_for_a_second() {
        let routes = Routes::new([A, B]);
        let began = Instant::now();
        routes.open(A, 1);
        routes.seen(A, 1, 5, true);
        routes.taken(A, 1, 5);
        let opening = async {
            tokio::time::sleep(PATIENCE / 4).await;
            routes.open(B, 1);
            routes.seen(B, 1, 5, true);
            tokio::time::sleep(PATIENCE / 4).await;
            routes.taken(B, 1, 5);
        };
        tokio::join!(routes.settled(5), opening);
        assert_eq!(began.elapsed(), PATIENCE / 2, "the other was waited for");

        let routes = Routes::new([A, B]);
        let began = Instant::now();
        routes.open(A, 1);
        routes.seen(A, 1, 5, false);
        tokio::time::sleep(PATIENCE / 2).await;
        routes.settled(5).await;
        assert_eq!(began.elapsed(), PATIENCE, "who has not come by then is not expected any more");
    }

    #[tokio::test(start_paused = true)]
    async fn what_comes_next_can_wait_until_most_nodes_have_done_what_they_had_to() {
        let routes = Routes::new([]);
        for node in [A, B] {
            routes.open(node, 1);
            routes.seen(node, 1, 5, true);
            routes.taken(node, 1, 5);
        }
        routes.rested(0).await;
        routes.pass(6, &Touched::default(), true, &none());
        routes.wake(&Touched::default());
        routes.rested(2).await;
        let began = Instant::now();
        let taking = async {
            routes.seen(A, 1, 6, false);
            routes.seen(B, 1, 6, true);
            tokio::time::sleep(PATIENCE).await;
            routes.taken(B, 1, 6);
        };
        tokio::join!(routes.rested(0), taking);
        assert_eq!(began.elapsed(), PATIENCE);
    }
}
