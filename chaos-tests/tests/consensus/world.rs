//! A few managers with disks of their own, clients that use them, and what befalls them.

use super::network::Network;
use super::record::{Outcome, Record};
use super::registers::{Registers, View, encode};
use super::rng::Rng;
use rswarm_chaos::history::{Act, Operation};
use rswarm_raft::sim::{Disk, Flaws};
use rswarm_raft::{AsWhat, ClusterTag, Config, Log, Member, OpenError, ProposeError, RaftId};
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::time::{Instant, sleep, timeout};

/// How many registers the clients share: few, so that they meet.
const REGISTERS: u64 = 3;
const CLIENTS: u64 = 4;
/// How often a client says the same before it gives up.
const ATTEMPTS: u64 = 10;
/// Until a cluster that is whole again must have settled.
const HEALED: Duration = Duration::from_secs(20);

/// What is simulated.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    pub seed: u64,
    pub managers: u64,
    /// How long things go wrong.
    pub storm: Duration,
    /// Entries between snapshots.
    pub snapshot_after: u64,
    pub flaws: Flaws,
    /// The state machine forgets which requests it has carried out.
    pub forgetful: bool,
}

struct Manager {
    log: Log,
    view: View,
    disk: Disk,
}

type Managers = Arc<Mutex<BTreeMap<u64, Manager>>>;

/// The disks of those that run or begin to.
pub type Disks = Arc<Mutex<BTreeMap<u64, Disk>>>;

pub struct World {
    plan: Plan,
    root: tempfile::TempDir,
    pub network: Network,
    pub record: Record,
    managers: Managers,
    pub disks: Disks,
    /// Who was ever started, and not taken out.
    pub known: BTreeSet<u64>,
    rng: Rng,
    /// How long a sync takes on each manager's disk: some are slow.
    syncs: BTreeMap<u64, Duration>,
}

pub fn member(id: u64) -> Member {
    Member { id: RaftId(id), addr: format!("10.0.0.{id}:2377"), node: format!("n{id}") }
}

/// Runs a plan from its beginning to its end.
pub async fn run(plan: Plan) -> Outcome {
    let mut world = World::new(plan);
    world.found().await;
    let clients: Vec<_> = (1..=CLIENTS).map(|number| tokio::spawn(world.client(number).live())).collect();
    let watching = tokio::spawn(watch(world.managers.clone(), world.record.clone()));
    let until = Instant::now() + plan.storm;
    while Instant::now() < until {
        world.misfortune().await;
    }
    world.heal().await;
    for client in clients {
        client.abort();
        drop(client.await);
    }
    world.settle().await;
    watching.abort();
    drop(watching.await);
    let ids: Vec<u64> = world.managers.lock().unwrap().keys().copied().collect();
    for id in ids {
        world.crash(id, false).await;
    }
    world.record.outcome()
}

impl World {
    pub fn new(plan: Plan) -> Self {
        let mut rng = Rng::new(plan.seed, 1);
        let record = Record::new();
        let memory = std::path::Path::new("/dev/shm");
        let root = match memory.is_dir() {
            true => tempfile::tempdir_in(memory),
            false => tempfile::tempdir(),
        };
        let speeds = [1, 1, 4, 15, 40];
        let syncs = (1..=plan.managers).map(|id| (id, Duration::from_millis(speeds[rng.below(5) as usize])));
        Self {
            plan,
            root: root.unwrap(),
            network: Network::new(Rng::new(plan.seed, 2), record.clone()),
            record,
            managers: Managers::default(),
            disks: Disks::default(),
            known: BTreeSet::new(),
            syncs: syncs.collect(),
            rng,
        }
    }

    fn dir(&self, id: u64) -> PathBuf {
        self.root.path().join(id.to_string())
    }

    pub async fn found(&mut self) {
        self.boot(1).await;
        let first = self.log(1);
        first.bootstrap(member(1)).await.expect("it founds a cluster");
        for id in 2..=self.plan.managers {
            self.boot(id).await;
            first.add(member(id), AsWhat::Voter, HEALED).await.expect("it joins");
        }
    }

    fn log(&self, id: u64) -> Log {
        self.managers.lock().unwrap()[&id].log.clone()
    }

    /// Of those that run.
    pub fn logs(&self) -> BTreeMap<u64, (Log, View)> {
        let managers = self.managers.lock().unwrap();
        managers.iter().map(|(id, manager)| (*id, (manager.log.clone(), manager.view.clone()))).collect()
    }

    pub async fn boot(&mut self, id: u64) {
        let mut config = Config::new(self.dir(id), RaftId(id), ClusterTag(1));
        config.segment_bytes = 64 << 10;
        config.snapshot_after_entries = self.plan.snapshot_after;
        config.keep_entries = self.plan.snapshot_after * 2 / 3;
        config.patience = Duration::from_secs(2);
        config.snapshot_patience = Duration::from_secs(2);
        let disk = Disk::new(self.syncs.get(&id).copied().unwrap_or(Duration::from_millis(1)));
        self.known.insert(id);
        self.disks.lock().unwrap().insert(id, disk.clone());
        config.sim.disk = Some(disk.clone());
        config.sim.flaws = self.plan.flaws;
        let (registers, view) = Registers::new(self.record.clone(), self.plan.forgetful);
        let (transport, run) = self.network.port(id);
        let log = match Log::open(config, registers, transport).await {
            Ok(log) => log,
            // What a flawed manager left behind may be beyond reading, which counts as noticed.
            Err(error @ (OpenError::Damaged { .. } | OpenError::Start { .. })) if !disk.is_dead() => {
                self.record.violated(format!("manager {id} does not start: {error}"));
                return;
            }
            // The lights went out while it began.
            Err(error) if disk.is_dead() => {
                self.record.note(format_args!("{id}: {error}"));
                return;
            }
            Err(error) => panic!("manager {id}: {error}"),
        };
        self.record.note(format_args!("boot {id}"));
        self.network.plug(id, log.clone(), run);
        self.managers.lock().unwrap().insert(id, Manager { log, view, disk });
    }

    /// From one moment to the next it is gone; `power`: and so is what its disk had not yet synced.
    pub async fn crash(&mut self, id: u64, power: bool) {
        let Some(manager) = self.managers.lock().unwrap().remove(&id) else { return };
        self.record.note(format_args!("crash {id} {power}"));
        self.network.unplug(id);
        match power {
            true => manager.disk.cut(|| self.rng.below(3) as u8).expect("its files are there"),
            false => manager.disk.fence(),
        }
        manager.log.kill().await;
    }

    fn ids(&self) -> Vec<u64> {
        (1..=self.plan.managers).collect()
    }

    pub fn leader(&self) -> Option<u64> {
        let managers = self.managers.lock().unwrap();
        let leads = managers.values().map(|manager| manager.log.status()).filter(|status| status.is_leader());
        leads.max_by_key(|status| status.term).map(|status| status.id.0)
    }

    async fn pause(&mut self, low_ms: u64, high_ms: u64) {
        let pause = self.rng.between(low_ms, high_ms);
        sleep(Duration::from_millis(pause)).await;
    }

    fn somebody(&mut self) -> u64 {
        1 + self.rng.below(self.plan.managers)
    }

    async fn misfortune(&mut self) {
        let target = self.leader().unwrap_or(1);
        match self.rng.below(10) {
            0 => {
                self.crash(target, false).await;
                self.pause(0, 2500).await;
            }
            // Back before anybody has noticed.
            1..=3 => {
                let power = self.rng.percent(50);
                self.crash(target, power).await;
                self.pause(0, 60).await;
            }
            4 => {
                let victim = self.somebody();
                self.crash(victim, true).await;
                self.pause(0, 1500).await;
            }
            // The lights go out everywhere.
            5 => {
                for id in self.ids() {
                    self.crash(id, true).await;
                }
                self.pause(0, 1000).await;
            }
            // The leader among too few.
            6 => {
                let with = self.rng.below(self.plan.managers.div_ceil(2));
                let apart = |id: u64| (id + self.plan.managers - target) % self.plan.managers < with.max(1);
                self.record.note(format_args!("part {target} and {with} from the others"));
                for one in self.ids() {
                    for other in self.ids() {
                        if apart(one) != apart(other) {
                            self.network.cut(one, other);
                        }
                    }
                }
                self.pause(300, 3000).await;
            }
            7 => {
                let (from, to) = (self.somebody(), self.somebody());
                self.record.note(format_args!("cut {from}>{to}"));
                self.network.cut(from, to);
                self.pause(500, 3000).await;
            }
            8 => {
                self.network.lose(20);
                self.pause(500, 2500).await;
            }
            _ => {
                self.network.slow(20, 80);
                self.pause(500, 2500).await;
            }
        }
        self.network.heal();
        self.restart().await;
        self.pause(0, 1500).await;
    }

    /// Starts who was crashed, and those whose consensus has ended.
    async fn restart(&mut self) {
        for id in self.ids() {
            let failed = {
                let managers = self.managers.lock().unwrap();
                managers.get(&id).is_none_or(|manager| manager.log.status().failed.is_some())
            };
            if failed {
                self.crash(id, false).await;
                self.boot(id).await;
            }
        }
    }

    async fn heal(&mut self) {
        self.record.note("heal");
        self.network.heal();
        self.restart().await;
        sleep(Duration::from_secs(2)).await;
    }

    /// A whole cluster must take writes and agree.
    async fn settle(&mut self) {
        let settled = timeout(HEALED, async {
            loop {
                self.restart().await;
                if self.agrees().await {
                    return;
                }
                sleep(Duration::from_millis(100)).await;
            }
        });
        if settled.await.is_err() {
            self.record.violated("a whole cluster did not settle".into());
        }
    }

    async fn agrees(&self) -> bool {
        let Some(leader) = self.leader() else { return false };
        let marker = encode(REGISTERS, Act::Write(1));
        let Ok(last) = self.log(leader).propose(marker).await else { return false };
        let all: Vec<(Log, View)> = {
            let managers = self.managers.lock().unwrap();
            managers.values().map(|manager| (manager.log.clone(), manager.view.clone())).collect()
        };
        if all.len() as u64 != self.plan.managers {
            return false;
        }
        for (log, _) in &all {
            let caught_up = log.wait(Duration::from_secs(5), |status| status.applied >= last.index).await;
            if caught_up.is_none() {
                return false;
            }
        }
        if all.windows(2).any(|two| two[0].1.all() != two[1].1.all()) {
            self.record.violated("managers that applied the same differ".into());
        }
        true
    }

    fn client(&self, number: u64) -> Client {
        Client {
            number,
            managers: self.managers.clone(),
            count: self.plan.managers,
            record: self.record.clone(),
            rng: Rng::new(self.plan.seed, 100 + number),
            target: 1 + number % self.plan.managers,
            last: [0; REGISTERS as usize],
            written: 0,
        }
    }
}

/// Notes who leads, and how far everybody is. (A term may see two leaders, one after the other: votes are ordered by
/// term and node.)
async fn watch(managers: Managers, record: Record) {
    loop {
        sleep(Duration::from_millis(20)).await;
        let statuses: Vec<_> =
            managers.lock().unwrap().values().map(|manager| manager.log.status()).collect();
        for status in statuses {
            let (id, term) = (status.id.0, status.term);
            record.note(format_args!("{id}: {:?} {term} {}", status.role, status.applied));
        }
    }
}

struct Client {
    number: u64,
    managers: Managers,
    count: u64,
    record: Record,
    rng: Rng,
    target: u64,
    /// What each register was when it was last seen.
    last: [u64; REGISTERS as usize],
    written: u64,
}

impl Client {
    async fn live(mut self) {
        loop {
            sleep(Duration::from_millis(self.rng.between(1, 25))).await;
            let register = self.rng.below(REGISTERS);
            let found = {
                let managers = self.managers.lock().unwrap();
                managers.get(&self.target).map(|manager| (manager.log.clone(), manager.view.clone()))
            };
            let Some((log, view)) = found else {
                self.elsewhere();
                continue;
            };
            match self.rng.below(10) {
                0..=2 => self.read(&log, &view, register).await,
                3..=6 => {
                    let expected = self.last[register as usize];
                    let new = self.value();
                    self.write(&log, register, Act::Swap { expected, new, done: None }).await;
                }
                _ => {
                    let new = self.value();
                    self.write(&log, register, Act::Write(new)).await;
                }
            }
        }
    }

    fn value(&mut self) -> u64 {
        self.written += 1;
        self.number * 1_000_000 + self.written
    }

    fn elsewhere(&mut self) {
        self.target = 1 + self.rng.below(self.count);
    }

    async fn read(&mut self, log: &Log, view: &View, register: u64) {
        let asked = self.record.tick();
        if log.read_index().await.is_err() {
            return self.elsewhere();
        }
        let value = view.get(register);
        let answered = Some(self.record.tick());
        self.last[register as usize] = value;
        self.record.saw(Operation { register, asked, answered, act: Act::Read(value) });
        // Any manager answers reads; so each is asked now and then.
        if self.rng.percent(20) {
            self.elsewhere();
        }
    }

    /// Says the same request again, to one manager after the other, until somebody knows what came of it.
    async fn write(&mut self, log: &Log, register: u64, act: Act) {
        let asked = self.record.tick();
        let request = encode(register, act);
        let mut log = Some(log.clone());
        let mut may_be_done = false;
        for _ in 0..ATTEMPTS {
            let said = match &log {
                Some(log) => log.propose(request.clone()).await,
                None => Err(ProposeError::Unavailable),
            };
            match said {
                Ok(proposed) => {
                    let answered = Some(self.record.tick());
                    let fits = proposed.answer.first() == Some(&1);
                    let act = match act {
                        Act::Swap { expected, new, .. } => Act::Swap { expected, new, done: Some(fits) },
                        other => other,
                    };
                    if let (Act::Write(new) | Act::Swap { new, .. }, true) = (act, fits) {
                        self.last[register as usize] = new;
                    }
                    return self.record.saw(Operation { register, asked, answered, act });
                }
                Err(ProposeError::NotLeader { leader: Some(leader) }) => self.target = leader.id.0,
                Err(ProposeError::Unknown(_)) => {
                    may_be_done = true;
                    self.elsewhere();
                }
                Err(_) => self.elsewhere(),
            }
            sleep(Duration::from_millis(self.rng.between(10, 200))).await;
            log = self.managers.lock().unwrap().get(&self.target).map(|manager| manager.log.clone());
        }
        if may_be_done {
            self.record.saw(Operation { register, asked, answered: None, act });
        }
    }
}
