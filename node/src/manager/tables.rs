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
use tokio::sync::Notify;
use tokio::time::Instant;

/// Editions that are kept for sessions that are behind; who is further behind is told everything anew.
const KEPT: usize = 32;
/// What all sessions together are sent in a second, at the most.
const BYTES_PER_SECOND: u64 = 100_000_000;
/// What each message costs beside its bytes, in bytes.
const MESSAGE: u64 = 2_000;
/// How long an edition is put off at the most.
const PUT_OFF_MAX: Duration = Duration::from_millis(250);
/// The same, where somebody waits for it or a task is to get no more connections.
const PUT_OFF_URGENT: Duration = Duration::from_millis(50);

/// The editions of a term of office.
pub struct Tables {
    editions: Mutex<Editions>,
    wanted: Notify,
}

struct Editions {
    /// Those before the latest, and it, oldest first. There is at least one.
    kept: VecDeque<Arc<Edition>>,
    latest: Latest,
    /// An entry that somebody waits to see.
    wanted: u64,
}

/// What has changed since the edition before.
#[derive(Debug)]
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
    whole: Arc<Mutex<BTreeMap<Part, Bytes>>>,
}

impl Latest {
    fn new(number: u64, state: Arc<State>) -> Self {
        let is_published = endpoints::is_published(&state);
        Self { number, state, is_published, whole: Arc::default() }
    }

    /// All there is to say of a part.
    pub fn whole(&self, part: Part) -> Bytes {
        let mut whole = self.whole.lock().unwrap_or_else(PoisonError::into_inner);
        let bytes = || convert::part(&endpoints::whole(&self.state, part));
        whole.entry(part).or_insert_with(bytes).clone()
    }
}

impl Tables {
    /// The first edition is of `state`.
    pub fn new(state: Arc<State>) -> Self {
        let first = Edition { number: 1, touched: Touched::Everyone, parts: BTreeMap::new() };
        let latest = Latest::new(first.number, state);
        let editions = Editions { kept: [Arc::new(first)].into(), latest, wanted: 0 };
        Self { editions: Mutex::new(editions), wanted: Notify::new() }
    }

    /// The latest, and all editions after that of this number, if they are still kept.
    pub fn since(&self, number: u64) -> (Latest, Option<Vec<Arc<Edition>>>) {
        let editions = self.editions();
        let first = editions.kept.front().map_or(u64::MAX, |edition| edition.number);
        let later = || editions.kept.iter().filter(|edition| edition.number > number).cloned().collect();
        (editions.latest.clone(), (number + 1 >= first).then(later))
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
        routes.pass(last.index(), &Touched::Everyone);
        let mut looked_at = last.clone();
        let mut is_urgent = false;
        let (mut soon, mut late) = (Instant::now(), Instant::now());
        loop {
            let state = view.state();
            if state.index() > last.index() {
                is_urgent = is_urgent || endpoints::takes_out(&looked_at, &state);
                looked_at = state.clone();
                let due = if is_urgent || self.editions().wanted > last.index() { soon } else { late };
                if due <= Instant::now() {
                    let size = self.bring_out(&last, &state, routes).await;
                    let sent = (size + MESSAGE) * routes.sessions() as u64;
                    let pause = match size {
                        0 => Duration::ZERO,
                        _ => Duration::from_micros(sent * 1_000_000 / BYTES_PER_SECOND),
                    };
                    let now = Instant::now();
                    (soon, late) = (now + pause.min(PUT_OFF_URGENT), now + pause.min(PUT_OFF_MAX));
                    (last, is_urgent) = (state, false);
                    continue;
                }
                tokio::select! {
                    () = tokio::time::sleep_until(due) => continue,
                    () = self.wanted.notified() => continue,
                    changed = watch.changed() => if changed.is_ok() { continue },
                }
                return;
            }
            if watch.changed().await.is_err() {
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
        let Ok((touched, parts)) = made.await else { return 0 };
        let size = parts.values().map(|part| part.len() as u64).sum();
        let concerned = if parts.is_empty() { touched.clone() } else { Touched::Everyone };
        {
            let mut editions = self.editions();
            let number = editions.latest.number + 1;
            editions.kept.push_back(Arc::new(Edition { number, touched, parts }));
            while editions.kept.len() > KEPT {
                editions.kept.pop_front();
            }
            editions.latest = Latest::new(number, state.clone());
        }
        routes.pass(state.index(), &concerned);
        size
    }

    fn editions(&self) -> MutexGuard<'_, Editions> {
        self.editions.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Edition {
    /// Whether a node's assignment may differ.
    pub fn touches(&self, node: NodeId) -> bool {
        self.touched.has(node)
    }
}
