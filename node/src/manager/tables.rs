//! Editions of the state, as the nodes' sessions see it: what has changed of the tables since the edition before is
//! worked out and put into bytes once for all of them. They come the slower the more there is to send; what takes a task
//! out of its services comes sooner, and so do the tasks of a service that waits for nothing else, to their nodes alone.

use super::cluster::View;
use super::pace::Pace;
use super::routes::Routes;
use bytes::Bytes;
use rswarm_control::endpoints::{self, Part};
use rswarm_control::ids::NodeId;
use rswarm_control::state::State;
use rswarm_control::touched::{self, Touched};
use rswarm_proto::convert;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::{Notify, OnceCell, Semaphore, SemaphorePermit};
use tokio::task::JoinError;

/// Editions that are kept for sessions that are behind; who is further behind is told everything anew.
const KEPT: usize = 32;
/// Nodes that are told much at once.
const LARGE_AT_ONCE: usize = 16;

/// What nodes are owed since all were woken.
#[derive(Default)]
pub(super) struct Due {
    /// As of which entry all were woken.
    all_woken: u64,
    /// Whether some are to be woken.
    is_owed: bool,
    /// Whether they are to be woken soon.
    is_urgent: bool,
    /// Those that do not wait for the others.
    hurried: BTreeSet<NodeId>,
    /// Those whose assignment may differ.
    touched: Touched,
    /// How large the editions are, in bytes.
    size: u64,
}

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
        routes.pass(last.index(), &Touched::Everyone, false, &BTreeSet::new());
        routes.wake(&Touched::Everyone);
        let mut looked_at = last.clone();
        let mut due = Due::default();
        let mut pace = Pace::default();
        loop {
            let state = view.state();
            let is_new = state.index() > last.index();
            if is_new {
                due.is_urgent = due.is_urgent || endpoints::takes_out(&looked_at, &state);
                due.hurried.extend(touched::completed(&looked_at, &state));
                looked_at = state.clone();
            } else if !due.is_owed {
                if watch.changed().await.is_err() {
                    return;
                }
                continue;
            }
            let is_urgent = due.is_urgent || self.editions().wanted > due.all_woken;
            let few = (1..=pace.but).contains(&due.hurried.len());
            tokio::select! {
                biased;
                () = pace.wait(is_urgent, routes) => {
                    if is_new {
                        self.bring_out(&last, &state, routes, &mut due).await;
                    }
                    routes.wake(&due.touched);
                    pace = Pace::after(due.size, routes.sessions());
                    due = Due { all_woken: state.index(), ..Due::default() };
                    last = state;
                }
                () = tokio::time::sleep_until(pace.quick), if is_new && few && !is_urgent => {
                    self.bring_out(&last, &state, routes, &mut due).await;
                    pace.was_quick();
                    last = state;
                }
                () = self.wanted.notified() => {}
                changed = watch.changed() => if changed.is_err() { return },
            }
        }
    }

    /// Those who are hurried are woken, and the others are owed that.
    pub(super) async fn bring_out(
        &self,
        last: &Arc<State>,
        state: &Arc<State>,
        routes: &Routes,
        due: &mut Due,
    ) {
        let (last, now) = (last.clone(), state.clone());
        let made = tokio::task::spawn_blocking(move || {
            let pieces = endpoints::between(&last, &now);
            let parts: BTreeMap<Part, Bytes> =
                pieces.iter().map(|(part, piece)| (*part, convert::part(piece))).collect();
            (touched::between(&last, &now), parts)
        });
        self.put_out(made.await, state, routes, due);
    }

    /// Where the difference could not be made, everybody is told everything anew: none may be lost.
    fn put_out(
        &self,
        made: Result<(Touched, BTreeMap<Part, Bytes>), JoinError>,
        state: &Arc<State>,
        routes: &Routes,
        due: &mut Due,
    ) {
        let (touched, is_news) = {
            let mut editions = self.editions();
            let number = editions.latest.number + 1;
            let (touched, parts) = made.unwrap_or_else(|error| {
                tracing::error!(%error, "what nodes are to be told could not be worked out; they are told everything");
                editions.kept.clear();
                editions.forgotten = number;
                (Touched::Everyone, BTreeMap::new())
            });
            due.size += parts.values().map(|part| part.len() as u64).sum::<u64>();
            due.touched = std::mem::take(&mut due.touched).with(&touched);
            let whom = (touched.clone(), !parts.is_empty());
            editions.kept.push_back(Arc::new(Edition { number, touched, parts }));
            editions.forget();
            editions.latest = Latest::new(number, state.clone());
            whom
        };
        let hurried = std::mem::take(&mut due.hurried);
        tracing::debug!(index = state.index(), size = due.size, hurried = hurried.len(), "an edition");
        routes.pass(state.index(), &touched, is_news, &hurried);
        due.is_owed = true;
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manager::cluster::Fsm;
    use futures_util::future::join_all;
    use rswarm_control::admission::{self, Init, Join, Request};
    use rswarm_control::model::{
        Availability, ContainerSpec, Description, EndpointSpec, JoinTokens, Mode, Resources, Secret,
        ServiceSpec, Settings, TaskSpec, UpdateConfig,
    };
    use rswarm_control::state::{Change, Proposal};
    use rswarm_control::{Crank, Heard, Timestamp};
    use rswarm_proto::store;
    use rswarm_raft::{Entry, StateMachine};
    use std::time::Duration;
    use tokio::sync::mpsc;
    use tokio::time::Instant;

    #[tokio::test]
    async fn a_difference_that_could_not_be_made_is_not_lost_to_anybody() {
        let tables = Tables::new(Arc::default());
        let routes = Routes::new([]);
        let (first, _) = tables.since(0);
        let empty = || Ok((Touched::These([].into()), BTreeMap::new()));
        tables.put_out(empty(), &first.state, &routes, &mut Due::default());
        assert!(tables.since(first.number).1.is_some_and(|editions| editions.len() == 1));

        let broken = tokio::task::spawn_blocking(|| std::panic::resume_unwind(Box::new("a bug"))).await;
        tables.put_out(broken, &first.state, &routes, &mut Due::default());
        let (latest, editions) = tables.since(first.number + 1);
        assert!(editions.is_none(), "who had the one before is told everything");
        assert!(tables.since(latest.number).1.is_some_and(|editions| editions.is_empty()));
        tables.put_out(empty(), &first.state, &routes, &mut Due::default());
        assert!(tables.since(latest.number).1.is_some_and(|editions| editions.len() == 1));
    }

    /// The state as it comes to be by turns of a leader.
    struct Cluster {
        fsm: Fsm,
        view: View,
        crank: Crank,
        heard: Heard,
    }

    const NOW: Timestamp = Timestamp(1_000_000);

    impl Cluster {
        fn commit(&mut self, changes: Vec<Change>) {
            let index = self.view.state().index() + 1;
            let bytes = store::encode_proposal(&Proposal { changes, at: NOW });
            self.fsm.apply(vec![Entry { index, term: 1, bytes }]);
            assert_eq!(self.view.state().index(), index, "nobody else writes");
        }

        fn ask(&mut self, request: &Request) {
            let (changes, _) = admission::admit(&self.view.state(), request, NOW).expect("it is allowed");
            self.commit(changes);
        }

        fn turn(&mut self) {
            let changes = self.crank.turn(&self.view.state(), &self.heard, NOW).changes;
            if !changes.is_empty() {
                self.commit(changes);
            }
        }

        fn create(&mut self, name: &str, replicas: u32) {
            let spec = ServiceSpec {
                name: name.into(),
                labels: Default::default(),
                mode: Mode::Replicated { replicas },
                task: Arc::new(TaskSpec {
                    containers: vec![ContainerSpec::new("demo")],
                    ..TaskSpec::default()
                }),
                update: UpdateConfig::default(),
                rollback: UpdateConfig::default(),
                endpoint: EndpointSpec::default(),
            };
            self.ask(&Request::CreateService { spec, networks: vec![] });
        }

        fn nodes_of(&self, name: &str) -> BTreeSet<NodeId> {
            let state = self.view.state();
            let tasks = state.tasks().filter(|task| task.service_name == name);
            tasks.filter_map(|task| task.node).collect()
        }
    }

    fn cluster(nodes: u8) -> Cluster {
        let (fsm, view) = Fsm::new();
        let mut cluster = Cluster { fsm, view, crank: Crank::default(), heard: Heard::new(NOW) };
        let capacity = Resources { nano_cpus: 64_000_000_000, memory_bytes: 64 << 30 };
        let description = Description { capacity, ..Description::default() };
        let init = Init {
            name: "test".into(),
            id_seed: 7,
            ca_cert_pem: "cert".into(),
            ca_key_pem: Secret("key".into()),
            tokens: JoinTokens { worker: Secret("w".repeat(16)), manager: Secret("m".repeat(16)) },
            settings: Settings::default(),
            hostname: "m1".into(),
            addr: "192.0.2.255:2377".into(),
            availability: Availability::Drain,
            description: Description::default(),
        };
        let (changes, _) = admission::init(&State::default(), &init, NOW).expect("an empty state");
        cluster.commit(changes);
        for number in 0..nodes {
            let (hostname, addr) = (format!("n{number}"), format!("192.0.2.{number}:2377"));
            let (secret, description) = (Secret("w".repeat(16)), description.clone());
            let availability = Availability::Active;
            let join = Request::Join(Join { secret, hostname, addr, availability, description });
            cluster.ask(&join);
        }
        let state = cluster.view.state();
        for node in state.nodes().filter(|node| node.availability == Availability::Active) {
            let (hostname, addr) = (node.hostname.clone(), node.addr.clone());
            let description = description.clone();
            cluster.ask(&Request::OpenSession(admission::Session {
                node: node.id,
                hostname,
                addr,
                description,
            }));
            cluster.heard.beat(node.id, NOW);
        }
        cluster
    }

    #[tokio::test(start_paused = true)]
    async fn a_small_service_reaches_its_nodes_while_all_are_busy_with_a_large_one() {
        let mut cluster = cluster(100);
        let state = cluster.view.state();
        let (tables, routes) = (Tables::new(state.clone()), Routes::new([]));
        let (told, mut tells) = mpsc::unbounded_channel();
        let sessions = state.nodes().map(|node| {
            let (id, routes, told, tables) = (node.id, &routes, told.clone(), &tables);
            let wake = routes.open(id, 1);
            async move {
                let mut index = 0;
                while told.send((id, index)).is_ok() {
                    wake.notified().await;
                    index = tables.since(0).0.state.index();
                    // Sent, and never taken.
                    routes.seen(id, 1, index, true);
                }
            }
        });
        let sessions = join_all(sessions.collect::<Vec<_>>());
        let publish = tables.publish(cluster.view.clone(), &routes);
        let story = async {
            cluster.create("large", 5_000);
            cluster.turn();
            while tells.recv().await.is_some_and(|(_, index)| index < cluster.view.state().index()) {}
            let began = Instant::now();
            cluster.create("small", 10);
            cluster.turn();
            let placed = cluster.view.state().index();
            let mut small = cluster.nodes_of("small");
            assert_eq!(small.len(), 10);
            let mut others = 0;
            while others < 90 {
                let (node, index) = tells.recv().await.expect("sessions");
                if index < placed {
                    continue;
                }
                if small.remove(&node) {
                    assert!(began.elapsed() < Duration::from_millis(100), "{:?}", began.elapsed());
                } else {
                    assert!(began.elapsed() > Duration::from_millis(200), "{:?}", began.elapsed());
                    others += 1;
                }
            }
            assert_eq!(small, BTreeSet::new());
            assert!(began.elapsed() < Duration::from_secs(1), "{:?}", began.elapsed());
        };
        tokio::select! {
            _ = sessions => panic!("sessions do not end"),
            () = publish => panic!("the view is there"),
            () = story => {}
        }
    }

    #[tokio::test]
    async fn who_was_not_woken_for_long_is_told_what_is_new_and_not_everything() {
        let tables = Tables::new(Arc::default());
        let routes = Routes::new([]);
        let (first, _) = tables.since(0);
        let (one, another) = (NodeId(1), NodeId(2));
        let put_out = |node, parts: &[Part]| {
            let parts = parts.iter().map(|part| (*part, Bytes::from_static(b"news"))).collect();
            let made = Ok((Touched::These([node].into()), parts));
            tables.put_out(made, &first.state, &routes, &mut Due::default());
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
