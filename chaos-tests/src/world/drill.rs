//! One fault at a time, with a watch in the hand.

use super::machine::Power;
use super::{M, Options, Outcome, Verdict, World};
use crate::invariants;
use rswarm_control::model::Observed;
use std::collections::BTreeSet;
use std::time::Duration;

/// From the fault to the tasks' replacement, when another machine than the leader's is lost.
const NODE_LOSS: u64 = 3_000;
/// The same when it was the leader's.
const LEADER_LOSS: u64 = 4_000;
/// What the fake executor may take to prepare and start a task, and the network and log to carry the news.
const START: u64 = 1_000;

/// What is lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Drill {
    /// A machine that does not lead loses power.
    NodeLoss,
    /// The leader's machine loses power.
    LeaderLoss,
    /// A machine that does not lead is cut off, and goes on.
    NodeCutOff,
}

/// What came of it.
#[derive(Clone, Debug)]
pub struct Drilled {
    /// From the fault until every slot had a task again that runs elsewhere; `None` if it never did.
    pub replaced: Option<Duration>,
    /// Whether everything else held.
    pub outcome: Outcome,
}

/// Five machines, three of them managers, run fifteen tasks; one machine is lost.
pub fn drill(seed: u64, drill: Drill, options: &Options) -> Drilled {
    let mut world = World::new(seed, Options { faults: false, ..options.clone() });
    world.quiet = true;
    world.found_with(3, 2);
    world.run_for(5_000);
    world.plain_service("web", 15);
    world.run_for(15_000);
    let victim = world.victim(drill);
    let began = world.now;
    match drill {
        Drill::NodeLoss | Drill::LeaderLoss => world.stop_daemon(victim, true),
        Drill::NodeCutOff => {
            let others = (0..world.machines.len()).filter(|m| *m != victim);
            let cut: BTreeSet<(M, M)> = others.flat_map(|m| [(victim, m), (m, victim)]).collect();
            world.cuts.insert(0, cut);
        }
    }
    let limit = START + if drill == Drill::LeaderLoss { LEADER_LOSS } else { NODE_LOSS };
    let mut replaced = None;
    while world.broken.is_none() && world.now < began + 30_000 {
        world.run_for(10);
        if world.serves_without(victim) == 15 {
            replaced = Some(world.now - began);
            break;
        }
    }
    match replaced {
        Some(took) if took <= limit => {}
        took => world.fail(invariants::REPLACED_IN_TIME, format!("{drill:?}: {took:?} ms, limit {limit} ms")),
    }
    let lost_power = world.machines[victim].power == Power::Off;
    world.cuts.clear();
    if lost_power {
        world.boot(victim, true);
    }
    if world.broken.is_none() {
        world.come_to_rest();
    }
    Drilled { replaced: replaced.map(Duration::from_millis), outcome: world.outcome() }
}

impl World {
    fn victim(&self, drill: Drill) -> M {
        let leader = self.log.leader.unwrap_or(0);
        match drill {
            Drill::LeaderLoss => leader,
            Drill::NodeLoss | Drill::NodeCutOff => {
                let busy = |m: &M| *m != leader && !self.machines[*m].containers.is_empty();
                (0..self.machines.len()).find(busy).unwrap_or(0)
            }
        }
    }

    /// How many slots are known to run on machines other than `victim`.
    fn serves_without(&self, victim: M) -> usize {
        let lost = self.machines[victim].node;
        let tasks = self.log.truth.tasks();
        let elsewhere =
            tasks.filter(|task| task.observed == Observed::Running && task.node != lost && task.is_wanted());
        elsewhere.map(|task| (task.service, task.slot)).collect::<BTreeSet<_>>().len()
    }
}

impl Drilled {
    /// Whether everything held.
    pub fn held(&self) -> bool {
        matches!(self.outcome.verdict, Verdict::Held)
    }
}
