//! Which nodes have taken over which tables: what lets a task be asked to end only when nobody routes to it any
//! more.

use rswarm_control::ids::NodeId;
use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::Notify;

/// How long a task that is to end waits for nodes that do not answer.
const PATIENCE: Duration = Duration::from_secs(1);

/// How far the sessions of a term of office are.
#[derive(Default)]
pub struct Routes {
    sessions: Mutex<BTreeMap<NodeId, Progress>>,
    news: Notify,
}

#[derive(Clone, Copy, Default)]
struct Progress {
    session: u64,
    /// Up to which index the node's table was looked at.
    seen: u64,
    /// The generation of the last table it was sent.
    sent: u64,
    /// The last that it has in force.
    taken: u64,
}

impl Progress {
    fn has(&self, index: u64) -> bool {
        self.seen >= index && (self.taken >= self.sent || self.taken >= index)
    }
}

impl Routes {
    /// A session has begun; it ends an earlier one of the same node.
    pub fn open(&self, node: NodeId, session: u64) {
        self.change(|sessions| {
            sessions.insert(node, Progress { session, ..Progress::default() });
        });
    }

    /// A session has ended.
    pub fn close(&self, node: NodeId, session: u64) {
        self.change(|sessions| {
            if sessions.get(&node).is_some_and(|progress| progress.session == session) {
                sessions.remove(&node);
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
        let wait = async {
            loop {
                let news = self.news.notified();
                tokio::pin!(news);
                news.as_mut().enable();
                if self
                    .sessions
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .values()
                    .all(|it| it.has(index))
                {
                    return;
                }
                news.await;
            }
        };
        if tokio::time::timeout(PATIENCE, wait).await.is_err() {
            tracing::debug!(index, "some nodes have not taken over their routes in time");
        }
    }

    fn update(&self, node: NodeId, session: u64, with: impl FnOnce(&mut Progress)) {
        self.change(|sessions| {
            if let Some(progress) = sessions.get_mut(&node).filter(|progress| progress.session == session) {
                with(progress);
            }
        });
    }

    fn change(&self, with: impl FnOnce(&mut BTreeMap<NodeId, Progress>)) {
        with(&mut self.sessions.lock().unwrap_or_else(PoisonError::into_inner));
        self.news.notify_waiters();
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
