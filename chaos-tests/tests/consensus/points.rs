//! The power of all managers fails at the very moment one of them reaches a point; whatever they were about, they come
//! back with what was acknowledged, and go on.

use super::registers::encode;
use super::rng::Rng;
use super::world::{Plan, World, member};
use rswarm_chaos::history::Act;
use rswarm_raft::sim::{Flaws, arm};
use rswarm_raft::{AsWhat, RaftId};
use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;
use tokio::time::{sleep, timeout};

/// How long anything may take.
const PATIENCE: Duration = Duration::from_secs(30);

/// Has the power fail at `point`.
///
/// # Errors
/// What was lost, or that the point was never reached.
pub fn survives(point: &str) -> Result<(), String> {
    let owned = point.to_owned();
    let ran = std::thread::spawn(move || {
        rswarm_raft::sim::seed(3);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
        runtime.expect("a runtime starts").block_on(Story::new().tell(&owned))
    });
    let told = ran.join().unwrap_or_else(|_| Err("it panicked".into()));
    told.map_err(|wrong| format!("{point}: {wrong}"))
}

struct Story {
    world: World,
    /// The last value that was acknowledged, and the last that was tried.
    acknowledged: u64,
    tried: u64,
    struck: Rc<Cell<bool>>,
    newcomer: u64,
}

impl Story {
    fn new() -> Self {
        let plan = Plan {
            seed: 3,
            managers: 3,
            storm: Duration::ZERO,
            snapshot_after: 30,
            flaws: Flaws::default(),
            forgetful: false,
        };
        Self { world: World::new(plan), acknowledged: 0, tried: 0, struck: Rc::default(), newcomer: 3 }
    }

    async fn tell(mut self, point: &str) -> Result<(), String> {
        self.world.found().await;
        self.write(20).await;
        let (disks, struck, mut rng) = (self.world.disks.clone(), self.struck.clone(), Rng::new(3, 9));
        arm(point, move || {
            struck.set(true);
            for disk in disks.lock().unwrap().values() {
                disk.cut(|| rng.below(3) as u8).expect("its files are there");
            }
        });
        for step in 0..9 {
            match step {
                0 => self.write(100).await,
                1 => self.lose_the_leader().await,
                2 => self.leave_one_behind().await,
                3 => self.take_back().await,
                4 => self.come_and_go().await,
                5 => self.lose_and_regain_a_vote().await,
                6 => self.replace_the_leader().await,
                7 => self.replace_the_dead().await,
                _ => self.write(100).await,
            }
            if self.struck.get() {
                break;
            }
        }
        if !self.struck.get() {
            return Err("nobody came by".into());
        }
        self.after_the_dark().await
    }

    /// Writes one after the other, until the lights go out.
    async fn write(&mut self, count: u64) {
        for _ in 0..count {
            let wrote = timeout(PATIENCE, self.write_one()).await.is_ok();
            if self.struck.get() || !wrote {
                return;
            }
        }
    }

    async fn write_one(&mut self) {
        self.tried += 1;
        while !self.struck.get() {
            let log = self.world.leader().and_then(|id| self.world.logs().remove(&id));
            let Some((log, _)) = log else {
                sleep(Duration::from_millis(5)).await;
                continue;
            };
            let asked = log.propose(encode(0, Act::Write(self.tried)));
            if timeout(Duration::from_secs(1), asked).await.is_ok_and(|proposed| proposed.is_ok()) {
                self.acknowledged = self.tried;
                return;
            }
            sleep(Duration::from_millis(20)).await;
        }
    }

    async fn lose_the_leader(&mut self) {
        let Some(leader) = self.world.leader() else { return };
        self.world.crash(leader, true).await;
        self.write(5).await;
        if !self.struck.get() {
            self.world.boot(leader).await;
            self.write(20).await;
        }
    }

    /// One is away for so long that only a snapshot helps.
    async fn leave_one_behind(&mut self) {
        let Some(leader) = self.world.leader() else { return };
        let away = leader % 3 + 1;
        self.world.crash(away, false).await;
        self.write(200).await;
        if !self.struck.get() {
            self.world.boot(away).await;
            sleep(Duration::from_secs(2)).await;
            self.write(50).await;
        }
    }

    /// A leader takes in what it cannot commit, and has to take it back.
    async fn take_back(&mut self) {
        let Some(leader) = self.world.leader() else { return };
        for other in 1..=3 {
            self.world.network.cut(leader, other);
            self.world.network.cut(other, leader);
        }
        let (log, _) = self.world.logs().remove(&leader).expect("it runs");
        for value in 0..3 {
            // In another register: whether it counts is open.
            drop(timeout(Duration::from_millis(1), log.propose(encode(1, Act::Write(value)))).await);
        }
        sleep(Duration::from_secs(2)).await;
        self.world.network.heal();
        sleep(Duration::from_secs(2)).await;
        self.write(20).await;
    }

    async fn come_and_go(&mut self) {
        self.newcomer += 1;
        let id = self.newcomer;
        self.world.boot(id).await;
        let Some((log, _)) = self.world.leader().and_then(|id| self.world.logs().remove(&id)) else { return };
        let added = log.add(member(id), AsWhat::Voter, PATIENCE).await.is_ok();
        self.write(10).await;
        if added && !self.struck.get() && log.remove(RaftId(id)).await.is_ok() {
            self.world.crash(id, false).await;
            self.world.known.remove(&id);
        }
    }

    /// A voter becomes a learner, and votes again.
    async fn lose_and_regain_a_vote(&mut self) {
        let Some(leader) = self.world.leader() else { return };
        let (log, _) = self.world.logs().remove(&leader).expect("it runs");
        let other = leader % 3 + 1;
        for as_what in [AsWhat::Learner, AsWhat::Voter] {
            if self.struck.get() || log.add(member(other), as_what, PATIENCE).await.is_err() {
                return;
            }
        }
        self.write(10).await;
    }

    /// The leader is taken out by itself, and another comes in its place.
    async fn replace_the_leader(&mut self) {
        let Some(leader) = self.world.leader() else { return };
        let (log, _) = self.world.logs().remove(&leader).expect("it runs");
        if log.remove(RaftId(leader)).await.is_ok() && !self.struck.get() {
            self.world.crash(leader, false).await;
            self.world.known.remove(&leader);
            self.join().await;
        }
    }

    /// Who never comes back is taken out, and another comes in its place: as a wiped manager does.
    async fn replace_the_dead(&mut self) {
        let Some(leader) = self.world.leader() else { return };
        let (log, _) = self.world.logs().remove(&leader).expect("it runs");
        let dead = log.status().voters.iter().map(|voter| voter.id.0).find(|id| *id != leader);
        let dead = dead.expect("it is not alone");
        self.world.crash(dead, false).await;
        self.world.known.remove(&dead);
        if log.remove(RaftId(dead)).await.is_ok() && !self.struck.get() {
            self.join().await;
        }
    }

    async fn join(&mut self) {
        self.newcomer += 1;
        let id = self.newcomer;
        self.write(1).await;
        self.world.boot(id).await;
        let leader = self.world.leader().and_then(|id| self.world.logs().remove(&id));
        if let Some((log, _)) = leader {
            drop(log.add(member(id), AsWhat::Voter, PATIENCE).await);
        }
        self.write(10).await;
    }

    /// All come back, agree, take writes, and have what was acknowledged.
    async fn after_the_dark(&mut self) -> Result<(), String> {
        let known = self.world.known.clone();
        for id in &known {
            self.world.crash(*id, true).await;
        }
        self.world.network.heal();
        for id in &known {
            self.world.boot(*id).await;
        }
        self.struck.set(false);
        let (acknowledged, tried) = (self.acknowledged, self.tried);
        let back = timeout(PATIENCE, async {
            loop {
                for (log, view) in self.world.logs().into_values() {
                    if log.read_index().await.is_ok() {
                        return view.get(0);
                    }
                }
                sleep(Duration::from_millis(50)).await;
            }
        });
        let value = back.await.map_err(|_| "nobody can be read again")?;
        if !(acknowledged..=tried).contains(&value) {
            return Err(format!("{acknowledged} was acknowledged and {tried} tried, now it is {value}"));
        }
        let before = self.acknowledged;
        self.write(40).await;
        if self.acknowledged < before + 40 {
            return Err("it takes no writes again".into());
        }
        self.agree().await
    }

    async fn agree(&self) -> Result<(), String> {
        let logs = self.world.logs();
        let leader = self.world.leader().ok_or("nobody leads")?;
        let whole = logs[&leader].0.wait(PATIENCE, |status| !status.joint).await;
        let status = whole.ok_or("a change of voters is left half done")?;
        for (id, (log, view)) in logs.iter().filter(|(id, _)| status.member(RaftId(**id)).is_some()) {
            let read = timeout(PATIENCE, log.read_index()).await;
            read.map_err(|_| format!("{id} does not catch up"))?.map_err(|error| format!("{id}: {error}"))?;
            if view.all() != logs[&leader].1.all() {
                return Err(format!("{id} and {leader} differ"));
            }
        }
        match self.world.record.outcome().violations.first() {
            Some(violation) => Err(violation.clone()),
            None => Ok(()),
        }
    }
}
