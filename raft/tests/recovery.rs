//! What becomes of managers that lost their quorum, their disk, or their place in the cluster.

use std::io::{self, Read, Write};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use rswarm_raft::memory::Network;
use rswarm_raft::{
    AsWhat, ClusterTag, Config, Entry, Frozen, Incarnation, Log, Member, OpenError, RaftId, StateMachine,
    Status, begin_with, force_new_cluster, wipe,
};

/// Nothing here should take this long, even on a busy machine.
const PATIENCE: Duration = Duration::from_secs(20);

/// A state machine that remembers every command, one a line.
#[derive(Clone, Default)]
struct Journal(Arc<Mutex<Vec<u8>>>);

impl Journal {
    fn has(&self, line: &str) -> bool {
        self.0.lock().unwrap().split(|byte| *byte == b'\n').any(|known| known == line.as_bytes())
    }
}

impl StateMachine for Journal {
    fn apply(&mut self, entries: Vec<Entry>) -> Vec<Bytes> {
        let mut lines = self.0.lock().unwrap();
        for entry in &entries {
            lines.extend_from_slice(&entry.bytes);
            lines.push(b'\n');
        }
        vec![Bytes::new(); entries.len()]
    }

    fn freeze(&self) -> Box<dyn Frozen> {
        Box::new(FrozenJournal(self.0.lock().unwrap().clone()))
    }

    fn restore(&mut self, _: u64, from: &mut dyn Read) -> io::Result<()> {
        let mut lines = Vec::new();
        from.read_to_end(&mut lines)?;
        *self.0.lock().unwrap() = lines;
        Ok(())
    }
}

struct FrozenJournal(Vec<u8>);

impl Frozen for FrozenJournal {
    fn write(self: Box<Self>, to: &mut dyn Write) -> io::Result<()> {
        to.write_all(&self.0)
    }
}

/// Where managers keep their files, and the network between them.
struct Site {
    root: tempfile::TempDir,
    network: Network,
}

struct Manager {
    log: Log,
    journal: Journal,
}

fn member(id: u64) -> Member {
    Member { id: RaftId(id), addr: format!("10.0.0.{id}:2377"), node: format!("node{id}") }
}

impl Site {
    fn new() -> Self {
        Self { root: tempfile::tempdir().unwrap(), network: Network::new() }
    }

    fn dir(&self, id: u64) -> PathBuf {
        self.root.path().join(id.to_string())
    }

    fn config(&self, id: u64) -> Config {
        let mut config = Config::new(self.dir(id), RaftId(id), ClusterTag(7));
        config.segment_bytes = 256 << 10;
        config
    }

    async fn open_with(&self, config: Config) -> Result<Manager, OpenError> {
        let (id, journal) = (config.id, Journal::default());
        let log = Log::open(config, journal.clone(), self.network.transport(id)).await?;
        self.network.plug(id, log.clone());
        Ok(Manager { log, journal })
    }

    async fn open(&self, id: u64) -> Manager {
        self.open_with(self.config(id)).await.unwrap()
    }

    async fn close(&self, manager: Manager) {
        self.network.unplug(manager.log.status().id);
        manager.log.shutdown().await;
    }

    /// Managers 1 to `count`, of which the first leads.
    async fn cluster(&self, count: u64) -> Vec<Manager> {
        let mut managers = vec![self.open(1).await];
        managers[0].log.bootstrap(member(1)).await.unwrap();
        for id in 2..=count {
            managers.push(self.open(id).await);
            managers[0].log.add(member(id), AsWhat::Voter, PATIENCE).await.unwrap();
        }
        managers
    }

    async fn force(&self, id: u64) -> Incarnation {
        let config = self.config(id);
        tokio::task::spawn_blocking(move || force_new_cluster(&config, &member(id), 99))
            .await
            .unwrap()
            .unwrap()
    }
}

async fn propose(manager: &Manager, line: &'static str) {
    let deadline = Instant::now() + PATIENCE;
    while let Err(error) = manager.log.propose(Bytes::from_static(line.as_bytes())).await {
        assert!(Instant::now() < deadline, "{error}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

async fn until(manager: &Manager, what: &str, wanted: impl FnMut(&Status) -> bool) -> Status {
    let found = manager.log.wait(PATIENCE, wanted).await;
    found.unwrap_or_else(|| panic!("{what}: {:?}", manager.log.status()))
}

async fn has(manager: &Manager, line: &str) {
    let deadline = Instant::now() + PATIENCE;
    while !manager.journal.has(line) {
        assert!(Instant::now() < deadline, "manager {} lacks {line}", manager.log.status().id);
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_survivor_goes_on_alone_and_the_old_managers_are_no_second_truth() {
    let site = Site::new();
    let mut managers = site.cluster(3).await;
    propose(&managers[0], "before").await;
    for manager in managers.drain(..) {
        site.close(manager).await;
    }
    let second = site.force(1).await;
    assert_eq!(second.number(), 2);
    let survivor = site.open(1).await;
    propose(&survivor, "after").await;
    assert!(survivor.journal.has("before"), "nothing was lost");
    let status = survivor.log.status();
    assert_eq!((status.incarnation, status.voters.len()), (second, 1));

    // Two of the three are a majority of what they remember.
    let old = [site.open(2).await, site.open(3).await];
    for manager in &old {
        until(manager, "it learns that it is superseded", |status| status.superseded == Some(second)).await;
        assert!(manager.log.propose(Bytes::from_static(b"stale")).await.is_err());
    }
    for manager in old {
        assert!(!manager.journal.has("after"));
        site.close(manager).await;
    }
    propose(&survivor, "later").await;
    assert!(!survivor.journal.has("stale"));

    // Once a machine knows, it does not begin again, and joins under a new id.
    let known = Config { incarnation: second, ..site.config(2) };
    let again = site.open_with(known.clone()).await.map(drop);
    assert!(matches!(again, Err(OpenError::Outdated { found: Incarnation::FIRST, .. })), "{again:?}");
    wipe(&site.dir(2)).unwrap();
    let newcomer = site.open_with(Config { id: RaftId(4), ..known }).await.unwrap();
    survivor.log.add(member(4), AsWhat::Voter, PATIENCE).await.unwrap();
    has(&newcomer, "before").await;
    has(&newcomer, "later").await;
    assert_eq!(newcomer.log.status().incarnation, second);
    for manager in [survivor, newcomer] {
        site.close(manager).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_incarnation_outlives_restarts_and_compaction() {
    let site = Site::new();
    let managers = site.cluster(2).await;
    propose(&managers[0], "before").await;
    for manager in managers {
        site.close(manager).await;
    }
    let forced = site.force(2).await;
    for round in 0..2 {
        let survivor = site.open(2).await;
        propose(&survivor, "after").await;
        assert_eq!(survivor.log.status().incarnation, forced, "in round {round}");
        survivor.log.snapshot().await.unwrap();
        until(&survivor, "a snapshot is made", |status| status.snapshot > 0).await;
        assert!(survivor.journal.has("before"));
        site.close(survivor).await;
    }
    // And a second disaster begins a third.
    assert_eq!(site.force(2).await.number(), 3);
}

#[tokio::test]
async fn nothing_is_forced_from_nothing() {
    let site = Site::new();
    let config = site.config(1);
    let forced =
        tokio::task::spawn_blocking(move || force_new_cluster(&config, &member(1), 1)).await.unwrap();
    assert!(matches!(forced, Err(OpenError::Empty { .. })), "{forced:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_lost_in_the_midst_of_a_change_leaves_none_half_done() {
    for pause in [0, 2, 5, 12] {
        let site = Site::new();
        let mut managers = site.cluster(3).await;
        managers.push(site.open(4).await);
        let leader = managers.remove(0);
        assert!(leader.log.status().is_leader());

        let changing = leader.log.clone();
        let change = tokio::spawn(async move { changing.add(member(4), AsWhat::Voter, PATIENCE).await });
        tokio::time::sleep(Duration::from_millis(pause)).await;
        site.network.unplug(RaftId(1));
        change.abort();
        drop(leader);

        // Whoever leads now takes writes, and the same change can be made.
        let settled =
            |status: &Status| status.leader.as_ref().is_some_and(|by| by.id.0 != 1) && !status.joint;
        until(&managers[0], "another leads, and nothing is half done", settled).await;
        let deadline = Instant::now() + PATIENCE;
        while let Err(error) = managers[0].log.add(member(4), AsWhat::Voter, PATIENCE).await {
            assert!(Instant::now() < deadline, "after {pause} ms: {error}");
        }
        let all = |status: &Status| status.voters.len() == 4 && !status.joint;
        for manager in &managers {
            until(manager, "all know of the change", all).await;
        }
        // Also the dead one can be taken out.
        managers[0].log.remove(RaftId(1)).await.unwrap();
        for manager in managers {
            site.close(manager).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_that_begins_with_a_state_from_elsewhere_goes_on_from_there_and_takes_others_in() {
    const INDEX: u64 = 1 << 30;
    let site = Site::new();
    let incarnation = Incarnation::FIRST.next(5);
    let config = || Config { incarnation, ..site.config(1001) };
    let begin = |lines: &'static [u8]| {
        let config = config();
        let state = Box::new(FrozenJournal(lines.to_vec()));
        tokio::task::spawn_blocking(move || begin_with(&config, &member(1001), INDEX, state))
    };
    begin(b"a\nb\n").await.unwrap().unwrap();
    let again = begin(b"c\n").await.unwrap();
    assert!(matches!(again, Err(OpenError::Start { .. })), "{again:?}");

    let one = site.open_with(config()).await.unwrap();
    one.log.wait(PATIENCE, Status::is_leader).await.expect("it is alone");
    assert_eq!(one.log.status().incarnation, incarnation);
    let proposed = one.log.propose(Bytes::from_static(b"c")).await.unwrap();
    assert!(proposed.index > INDEX);
    assert!(["a", "b", "c"].iter().all(|line| one.journal.has(line)));

    // What it began with comes back after a restart, and reaches whoever joins.
    site.close(one).await;
    let one = site.open_with(config()).await.unwrap();
    one.log.wait(PATIENCE, Status::is_leader).await.expect("it is alone");
    let two = site.open_with(Config { incarnation, ..site.config(1002) }).await.unwrap();
    one.log.add(member(1002), AsWhat::Voter, PATIENCE).await.unwrap();
    two.log.read_index().await.unwrap();
    for manager in [&one, &two] {
        assert!(["a", "b", "c"].iter().all(|line| manager.journal.has(line)));
    }
    site.close(two).await;
    site.close(one).await;
}
