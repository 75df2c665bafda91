//! Disks that are slow, stuck, full or broken under managers that go on.

use super::registers::encode;
use super::world::{Plan, World};
use rswarm_chaos::history::Act;
use rswarm_raft::sim::{Disk, Flaws};
use rswarm_raft::{Log, ProposeError};
use std::time::Duration;
use tokio::time::{Instant, sleep, timeout};

/// How long anything may take.
const PATIENCE: Duration = Duration::from_secs(30);

/// Three managers with equal disks, and what happens to them.
fn story<F: Future<Output = ()>>(tell: impl FnOnce(Story) -> F + Send + 'static) {
    let told = std::thread::spawn(move || {
        rswarm_raft::sim::seed(5);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
        runtime.expect("a runtime starts").block_on(async {
            let flaws = Flaws::default();
            let mut world = World::new(Plan {
                seed: 5,
                managers: 3,
                storm: Duration::ZERO,
                snapshot_after: 5000,
                flaws,
                forgetful: false,
            });
            world.found().await;
            let story = Story { world, written: 0 };
            for id in 1..=3 {
                story.disk(id).slow(Duration::from_millis(1));
            }
            tell(story).await;
        });
    });
    told.join().expect("the story ends well");
}

struct Story {
    world: World,
    written: u64,
}

impl Story {
    fn disk(&self, id: u64) -> Disk {
        self.world.disks.lock().unwrap()[&id].clone()
    }

    fn log(&self, id: u64) -> Log {
        self.world.logs().remove(&id).expect("it runs").0
    }

    /// Writes for so long, one after the other, to whoever leads.
    async fn write(&mut self, time: Duration) {
        let until = Instant::now() + time;
        let before = self.written;
        while Instant::now() < until {
            let Some(leader) = self.world.leader() else {
                sleep(Duration::from_millis(5)).await;
                continue;
            };
            let log = self.log(leader);
            let asked = log.propose(encode(0, Act::Write(self.written + 1)));
            if timeout(Duration::from_millis(500), asked).await.is_ok_and(|done| done.is_ok()) {
                self.written += 1;
            }
            sleep(Duration::from_millis(5)).await;
        }
        assert!(self.written > before, "nothing was written");
    }

    async fn leader(&self) -> u64 {
        let found = async {
            loop {
                if let Some(leader) = self.world.leader() {
                    return leader;
                }
                sleep(Duration::from_millis(5)).await;
            }
        };
        timeout(PATIENCE, found).await.expect("somebody leads")
    }

    fn term(&self) -> u64 {
        self.world.logs().values().map(|(log, _)| log.status().term).max().unwrap_or(0)
    }

    async fn all_have_it(&self) {
        let last = self.log(self.leader().await).status().last_log;
        for (log, _) in self.world.logs().into_values() {
            log.wait(PATIENCE, |status| status.applied >= last).await.expect("it catches up");
        }
    }

    async fn end(mut self) {
        for id in 1..=3 {
            self.world.crash(id, false).await;
        }
    }
}

#[test]
fn a_leader_whose_disk_is_stuck_hands_over_and_nobody_hands_back() {
    story(async |mut story| {
        story.write(Duration::from_secs(1)).await;
        let stuck = story.leader().await;
        story.disk(stuck).slow(Duration::from_secs(8));
        story.write(Duration::from_secs(3)).await;
        assert_ne!(story.leader().await, stuck, "it still leads");
        let term = story.term();
        story.write(Duration::from_secs(20)).await;
        story.disk(stuck).slow(Duration::from_millis(1));
        story.write(Duration::from_secs(40)).await;
        assert_eq!(story.term(), term, "leadership went to and fro");
        story.all_have_it().await;
        story.end().await;
    });
}

#[test]
fn a_leader_whose_disk_is_slow_beside_the_others_hands_over_once() {
    story(async |mut story| {
        let slow = story.leader().await;
        story.disk(slow).slow(Duration::from_millis(200));
        story.write(Duration::from_secs(15)).await;
        assert_ne!(story.leader().await, slow, "it still leads");
        let term = story.term();
        story.write(Duration::from_secs(30)).await;
        assert_eq!(story.term(), term, "leadership went to and fro");
        story.end().await;
    });
}

#[test]
fn slow_disks_everywhere_move_nothing() {
    story(async |mut story| {
        for id in 1..=3 {
            story.disk(id).slow(Duration::from_millis(150));
        }
        let term = story.term();
        story.write(Duration::from_secs(30)).await;
        assert_eq!(story.term(), term, "leadership moved");
        story.end().await;
    });
}

#[test]
fn a_leader_without_room_hands_over_and_follows_again_when_there_is() {
    story(async |mut story| {
        let full = story.leader().await;
        story.disk(full).fill(true);
        story.write(Duration::from_secs(2)).await;
        let next = story.leader().await;
        assert_ne!(next, full, "it still leads");
        for id in (1..=3).filter(|id| *id != full) {
            let known = story.log(id).full_members();
            assert_eq!(known.into_iter().map(|id| id.0).collect::<Vec<_>>(), [full], "as {id} knows");
        }
        // More than it has room for.
        story.write(Duration::from_secs(60)).await;
        let term = story.term();
        story.disk(full).fill(false);
        story.write(Duration::from_secs(5)).await;
        story.all_have_it().await;
        assert_eq!(story.term(), term, "it disturbed the others");
        assert!(story.log(next).full_members().is_empty());
        story.end().await;
    });
}

#[test]
fn without_room_anywhere_writes_are_refused_and_reads_answered_until_there_is() {
    story(async |mut story| {
        story.write(Duration::from_secs(1)).await;
        for id in 1..=3 {
            story.disk(id).fill(true);
        }
        let leader = story.log(story.leader().await);
        let refused = leader.propose(encode(0, Act::Write(0))).await;
        assert!(matches!(&refused, Err(ProposeError::Full(full)) if full.wanted > 0), "{refused:?}");
        for (log, _) in story.world.logs().into_values() {
            log.read_index().await.expect("reads are answered");
        }
        let term = story.term();
        for id in 1..=3 {
            story.disk(id).fill(false);
        }
        story.write(Duration::from_secs(1)).await;
        assert_eq!(story.term(), term, "nobody had to be elected");
        story.end().await;
    });
}

#[test]
fn after_a_failed_sync_a_manager_is_out_until_its_log_is_opened_anew() {
    story(async |mut story| {
        story.write(Duration::from_secs(1)).await;
        let leader = story.leader().await;
        for broken in [leader % 3 + 1, leader] {
            story.disk(broken).fail();
            story.write(Duration::from_secs(4)).await;
            let status = story.log(broken).status();
            assert!(status.failed.is_some_and(|why| why.contains("cannot write")), "it says so");
            assert_ne!(story.leader().await, broken, "it still leads");
            story.world.crash(broken, true).await;
            story.write(Duration::from_secs(1)).await;
            story.world.boot(broken).await;
            story.all_have_it().await;
        }
        story.end().await;
    });
}
