//! Editions of the state, as the nodes' sessions see it: what has changed of the tables since the edition before is
//! worked out and put into bytes once for all of them. They come the slower the more there is to send, so that a large
//! cluster does not drown its leader; what takes a task out of its services comes sooner.

use super::cluster::View;
use super::routes::Routes;
use bytes::Bytes;
use rswarm_control::endpoints::{self, Part};
use rswarm_control::ids::NodeId;
use rswarm_control::state::State;
use rswarm_control::touched::{self, Touched};
use rswarm_proto::convert;
use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::{Notify, OnceCell, Semaphore, SemaphorePermit};
use tokio::task::JoinError;
use tokio::time::Instant;

/// Editions that are kept for sessions that are behind; who is further behind is told everything anew.
const KEPT: usize = 32;
/// Nodes that are told much at once.
const LARGE_AT_ONCE: usize = 16;
/// What all sessions together are sent in a second, at the most.
const BYTES_PER_SECOND: u64 = 100_000_000;
/// What each message costs beside its bytes, in bytes.
const MESSAGE: u64 = 2_000;
/// How long an edition is put off at the most.
const PUT_OFF_MAX: Duration = Duration::from_millis(250);
/// The same, where somebody waits for it or a task is to get no more connections.
const PUT_OFF_URGENT: Duration = Duration::from_millis(50);
/// How long an edition waits, if nothing is urgent, until the nodes have taken the one before.
const REST_MAX: Duration = Duration::from_millis(500);
/// Nodes that need not have taken it, however few there are: small clusters never wait.
const REST_BUT: usize = 16;
/// The same as a part of all.
const REST_BUT_PART: usize = 8;

/// The editions of a term of office.
pub struct Tables {
    editions: Mutex<Editions>,
    wanted: Notify,
    /// To be held by who tells a node much.
    turns: Semaphore,
}

struct Editions {
    /// Those before the latest, and it, oldest first. There is at least one.
    kept: VecDeque<Arc<Edition>>,
    /// Of those that are not kept any more and had news of tables, the last.
    forgotten: u64,
    latest: Latest,
    /// An entry that somebody waits to see.
    wanted: u64,
}

/// What has changed since the edition before.
#[derive(Clone, Debug)]
pub struct Edition {
    /// Editions are counted.
    pub number: u64,
    /// Whose assignment may differ.
    pub touched: Touched,
    /// What is new of the parts of which anything is.
    pub parts: BTreeMap<Part, Bytes>,
}

/// Everything, as of the latest edition.
#[derive(Clone)]
pub struct Latest {
    /// Its number.
    pub number: u64,
    /// The state.
    pub state: Arc<State>,
    /// Whether any port is published.
    pub is_published: bool,
    whole: Arc<Mutex<BTreeMap<Part, Arc<OnceCell<Bytes>>>>>,
}

impl Latest {
    fn new(number: u64, state: Arc<State>) -> Self {
        let is_published = endpoints::is_published(&state);
        Self { number, state, is_published, whole: Arc::default() }
    }

    /// All there is to say of a part. It may be large, so it is put into words once, and where that holds up nobody.
    ///
    /// # Errors
    /// If that went wrong.
    pub async fn whole(&self, part: Part) -> Result<Bytes, JoinError> {
        let said = {
            let mut whole = self.whole.lock().unwrap_or_else(PoisonError::into_inner);
            whole.entry(part).or_default().clone()
        };
        let say = || {
            let state = self.state.clone();
            tokio::task::spawn_blocking(move || convert::part(&endpoints::whole(&state, part)))
        };
        said.get_or_try_init(say).await.cloned()
    }
}

impl Tables {
    /// The first edition is of `state`.
    pub fn new(state: Arc<State>) -> Self {
        let first = Edition { number: 1, touched: Touched::Everyone, parts: BTreeMap::new() };
        let latest = Latest::new(first.number, state);
        let editions = Editions { kept: [Arc::new(first)].into(), latest, forgotten: 0, wanted: 0 };
        let turns = Semaphore::new(LARGE_AT_ONCE);
        Self { editions: Mutex::new(editions), wanted: Notify::new(), turns }
    }

    /// The latest, and all editions after that of this number, if they are still kept.
    pub fn since(&self, number: u64) -> (Latest, Option<Vec<Arc<Edition>>>) {
        let editions = self.editions();
        let later = || editions.kept.iter().filter(|edition| edition.number > number).cloned().collect();
        (editions.latest.clone(), (number >= editions.forgotten).then(later))
    }

    /// The right to tell a node much; others wait until it is given back.
    pub async fn turn(&self) -> Option<SemaphorePermit<'_>> {
        // Nobody closes it.
        self.turns.acquire().await.ok()
    }

    /// Asks for an edition in which an entry of the log is applied, without putting it off.
    pub fn want(&self, index: u64) {
        let mut editions = self.editions();
        if editions.latest.state.index() < index {
            editions.wanted = editions.wanted.max(index);
            drop(editions);
            self.wanted.notify_one();
        }
    }

    /// Brings editions out, and wakes the sessions that they concern, for as long as it is polled.
    pub async fn publish(&self, view: View, routes: &Routes) {
        let mut watch = view.watch();
        let mut last = self.editions().latest.state.clone();
        routes.pass(last.index(), &Touched::Everyone, false);
        let mut looked_at = last.clone();
        let mut is_urgent = false;
        let mut pace = Pace::default();
        loop {
            let state = view.state();
            if state.index() > last.index() {
                is_urgent = is_urgent || endpoints::takes_out(&looked_at, &state);
                looked_at = state.clone();
                let is_urgent_now = is_urgent || self.editions().wanted > last.index();
                tokio::select! {
                    biased;
                    () = pace.wait(is_urgent_now, routes) => {
                        let began = Instant::now();
                        let size = self.bring_out(&last, &state, routes).await;
                        tracing::debug!(index = state.index(), size, took = ?began.elapsed(), is_urgent_now, "an edition");
                        pace = Pace::after(size, routes.sessions());
                        (last, is_urgent) = (state, false);
                    }
                    () = self.wanted.notified() => {}
                    changed = watch.changed() => if changed.is_err() { return },
                }
            } else if watch.changed().await.is_err() {
                return;
            }
        }
    }

    /// Returns how large it is, in bytes.
    pub(super) async fn bring_out(&self, last: &Arc<State>, state: &Arc<State>, routes: &Routes) -> u64 {
        let (last, now) = (last.clone(), state.clone());
        let made = tokio::task::spawn_blocking(move || {
            let pieces = endpoints::between(&last, &now);
            let parts: BTreeMap<Part, Bytes> =
                pieces.iter().map(|(part, piece)| (*part, convert::part(piece))).collect();
            (touched::between(&last, &now), parts)
        });
        self.put_out(made.await, state, routes)
    }

    /// Where the difference could not be made, everybody is told everything anew: none may be lost.
    fn put_out(
        &self,
        made: Result<(Touched, BTreeMap<Part, Bytes>), JoinError>,
        state: &Arc<State>,
        routes: &Routes,
    ) -> u64 {
        let (size, touched, is_news) = {
            let mut editions = self.editions();
            let number = editions.latest.number + 1;
            let (touched, parts) = made.unwrap_or_else(|error| {
                tracing::error!(%error, "what nodes are to be told could not be worked out; they are told everything");
                editions.kept.clear();
                editions.forgotten = number;
                (Touched::Everyone, BTreeMap::new())
            });
            let size = parts.values().map(|part| part.len() as u64).sum();
            let (concerned, is_news) = (touched.clone(), !parts.is_empty());
            editions.kept.push_back(Arc::new(Edition { number, touched, parts }));
            editions.forget();
            editions.latest = Latest::new(number, state.clone());
            (size, concerned, is_news)
        };
        routes.pass(state.index(), &touched, is_news);
        size
    }

    fn editions(&self) -> MutexGuard<'_, Editions> {
        self.editions.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Editions {
    /// Keeps only so many. Whom one without news of tables touched, the next one does: who was not woken for long is
    /// told no more than what is new.
    fn forget(&mut self) {
        while self.kept.len() > KEPT {
            let (Some(old), Some(next)) = (self.kept.pop_front(), self.kept.pop_front()) else { return };
            let touched = old.touched.clone().with(&next.touched);
            if !old.parts.is_empty() {
                self.forgotten = old.number;
            }
            self.kept.push_front(Arc::new(Edition { touched, ..(*next).clone() }));
        }
    }
}

impl Edition {
    /// Whether a node's assignment may differ.
    pub fn touches(&self, node: NodeId) -> bool {
        self.touched.has(node)
    }
}

/// When the next edition may come out.
struct Pace {
    /// If something is urgent.
    soon: Instant,
    /// If not, and the nodes have taken the one before.
    late: Instant,
    /// If not, and they have not.
    latest: Instant,
    /// How many of them need not.
    but: usize,
}

impl Default for Pace {
    fn default() -> Self {
        Self::after(0, 0)
    }
}

impl Pace {
    /// After an edition of this size for so many sessions.
    fn after(size: u64, sessions: usize) -> Self {
        let sent = (size + MESSAGE) * sessions as u64;
        let pause = match size {
            0 => Duration::ZERO,
            _ => Duration::from_micros(sent * 1_000_000 / BYTES_PER_SECOND),
        };
        let now = Instant::now();
        Self {
            soon: now + pause.min(PUT_OFF_URGENT),
            late: now + pause.min(PUT_OFF_MAX),
            latest: now + REST_MAX,
            but: REST_BUT.max(sessions / REST_BUT_PART),
        }
    }

    async fn wait(&self, is_urgent: bool, routes: &Routes) {
        if is_urgent {
            return tokio::time::sleep_until(self.soon).await;
        }
        tokio::time::sleep_until(self.late).await;
        // Who does not answer is not waited for.
        let _ = tokio::time::timeout_at(self.latest, routes.rested(self.but)).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_difference_that_could_not_be_made_is_not_lost_to_anybody() {
        let tables = Tables::new(Arc::default());
        let routes = Routes::new([]);
        let (first, _) = tables.since(0);
        let empty = || Ok((Touched::These([].into()), BTreeMap::new()));
        tables.put_out(empty(), &first.state, &routes);
        assert!(tables.since(first.number).1.is_some_and(|editions| editions.len() == 1));

        let broken = tokio::task::spawn_blocking(|| std::panic::resume_unwind(Box::new("a bug"))).await;
        tables.put_out(broken, &first.state, &routes);
        let (latest, editions) = tables.since(first.number + 1);
        assert!(editions.is_none(), "who had the one before is told everything");
        assert!(tables.since(latest.number).1.is_some_and(|editions| editions.is_empty()));
        tables.put_out(empty(), &first.state, &routes);
        assert!(tables.since(latest.number).1.is_some_and(|editions| editions.len() == 1));
    }

    #[tokio::test]
    async fn who_was_not_woken_for_long_is_told_what_is_new_and_not_everything() {
        let tables = Tables::new(Arc::default());
        let routes = Routes::new([]);
        let (first, _) = tables.since(0);
        let (one, another) = (NodeId(1), NodeId(2));
        let put_out = |node, parts: &[Part]| {
            let parts = parts.iter().map(|part| (*part, Bytes::from_static(b"news"))).collect();
            tables.put_out(Ok((Touched::These([node].into()), parts)), &first.state, &routes);
        };
        put_out(one, &[]);
        for _ in 0..3 * KEPT {
            put_out(another, &[]);
        }
        put_out(another, &[Part::Nodes]);
        let editions = tables.since(first.number).1.expect("nothing that it needs is forgotten");
        assert!(editions.len() <= KEPT);
        assert_eq!(editions.iter().filter(|edition| !edition.parts.is_empty()).count(), 1);
        assert!(editions.iter().any(|edition| edition.touches(one)), "nor that it is to look at its tasks");
        for _ in 0..KEPT {
            put_out(another, &[Part::Nodes]);
        }
        assert!(tables.since(first.number).1.is_none());
        assert!(tables.since(first.number + 1).1.is_none());
    }
}
