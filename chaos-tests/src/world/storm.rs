//! What goes wrong.

use super::machine::Power;
use super::rng::Rng;
use super::{Event, M, World};
use std::collections::BTreeSet;

/// Which faults this world knows: each with one chance in two, so that some worlds see one kind only.
#[derive(Clone, Debug)]
pub(super) struct Weather {
    kinds: Vec<Fault>,
    /// Longest pause between two faults, in milliseconds.
    pause: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    Daemon,
    Power,
    Pause,
    Silence,
    OneWay,
    Partition,
    Minority,
    Forsaken,
    Clock,
    Transfer,
    Exit,
    SlowPulls,
    Everything,
}

const FAULTS: [Fault; 13] = [
    Fault::Daemon,
    Fault::Power,
    Fault::Pause,
    Fault::Silence,
    Fault::OneWay,
    Fault::Partition,
    Fault::Minority,
    Fault::Forsaken,
    Fault::Clock,
    Fault::Transfer,
    Fault::Exit,
    Fault::SlowPulls,
    Fault::Everything,
];

impl Weather {
    pub(super) fn draw(rng: &mut Rng) -> Self {
        let mut kinds: Vec<Fault> = FAULTS.into_iter().filter(|_| rng.percent(50)).collect();
        // Losing all power at once is for few worlds.
        if rng.percent(60) {
            kinds.retain(|kind| *kind != Fault::Everything);
        }
        Self { kinds, pause: rng.between(1_000, 15_000) }
    }
}

impl World {
    pub(super) fn storm(&mut self) {
        if self.quiet {
            return;
        }
        let pause = self.rng.between(200, self.weather.pause);
        self.after(pause, Event::Storm);
        let Some(fault) = self.rng.pick(&self.weather.kinds.clone()) else { return };
        let members: Vec<M> = (0..self.machines.len()).filter(|m| self.machines[*m].node.is_some()).collect();
        let mut m = self.rng.pick(&members).unwrap_or(0);
        // The leader is the more interesting victim.
        if self.rng.percent(30) {
            m = self.log.leader.unwrap_or(m);
        }
        let number = self.faults;
        self.faults += 1;
        if self.options.left_out.faults.contains(&number) {
            return;
        }
        match fault {
            Fault::Daemon if self.machines[m].power == Power::On => {
                self.stop_daemon(m, false);
                let wait = if self.rng.percent(30) {
                    self.rng.between(10, 300)
                } else {
                    self.rng.between(300, 20_000)
                };
                self.after(wait, Event::Boot { m, power: false });
            }
            Fault::Power if self.machines[m].power != Power::Off => self.power_cut(m),
            Fault::Everything => {
                for m in members {
                    if self.machines[m].power != Power::Off {
                        self.power_cut(m);
                    }
                }
            }
            Fault::Pause if self.acts(m) => {
                let wait = self.rng.between(100, 9_000);
                self.note(|| format!("m{m} is paused for {wait} ms"));
                self.machines[m].paused_until = self.now + wait;
            }
            Fault::Silence => {
                let others = members.iter().filter(|other| **other != m);
                let cut = others.flat_map(|other| [(m, *other), (*other, m)]).collect();
                self.cut(format!("m{m} is cut off"), cut);
            }
            Fault::OneWay => {
                let out = self.rng.percent(50);
                let others = members.iter().filter(|other| **other != m);
                let cut = others.map(|other| if out { (m, *other) } else { (*other, m) }).collect();
                self.cut(format!("m{m} {}", if out { "is not heard" } else { "hears nobody" }), cut);
            }
            Fault::Partition => {
                let left: BTreeSet<M> = members.iter().copied().filter(|_| self.rng.percent(50)).collect();
                self.cut_between(&members, &left);
            }
            Fault::Minority => {
                // The leader, and perhaps a few workers, on the small side.
                let voters: BTreeSet<M> = self.log.voters.values().copied().collect();
                let mut left: BTreeSet<M> =
                    members.iter().copied().filter(|m| !voters.contains(m) && self.rng.percent(40)).collect();
                left.extend(self.log.leader);
                self.cut_between(&members, &left);
            }
            Fault::Forsaken => {
                // The leader and the other managers do not hear each other; the workers hear all of them.
                if let Some(leader) = self.log.leader {
                    let others = self.log.voters.values().copied().filter(|voter| *voter != leader);
                    let cut = others.flat_map(|other| [(leader, other), (other, leader)]).collect();
                    self.cut(format!("m{leader} loses the other managers"), cut);
                }
            }
            Fault::Clock => {
                let jump = self.rng.between(0, 16_000) as i64 - 8_000;
                self.note(|| format!("the clock of m{m} jumps by {jump} ms"));
                self.machines[m].clock_offset = (self.machines[m].clock_offset + jump).clamp(-10_000, 10_000);
            }
            Fault::Transfer => {
                let voters: Vec<M> = self.log.voters.values().copied().collect();
                let wished = self.rng.pick(&voters);
                if self.log.leader.is_some_and(|leader| self.acts(leader)) {
                    self.elect(wished);
                }
            }
            Fault::Exit => {
                let running = self.running();
                if let Some((m, task)) = self.rng.pick(&running) {
                    let (power, code) = (self.machines[m].outages, self.rng.pick(&[0, 1, 137]).unwrap_or(1));
                    self.exit(m, power, task, code);
                }
            }
            Fault::SlowPulls => self.slow_pulls = !self.slow_pulls,
            Fault::Daemon | Fault::Power | Fault::Pause => {}
        }
    }

    pub(super) fn power_cut(&mut self, m: M) {
        self.stop_daemon(m, true);
        let wait = self.rng.between(500, 40_000);
        if !self.machines[m].leaving {
            self.after(wait, Event::Boot { m, power: true });
        }
    }

    fn cut_between(&mut self, members: &[M], left: &BTreeSet<M>) {
        let right: Vec<M> = members.iter().copied().filter(|m| !left.contains(m)).collect();
        let cut = left.iter().flat_map(|a| right.iter().flat_map(|b| [(*a, *b), (*b, *a)])).collect();
        self.cut(format!("the network splits, {left:?} from {right:?}"), cut);
    }

    pub(super) fn cut(&mut self, words: String, links: BTreeSet<(M, M)>) {
        let number = self.fresh();
        self.note(|| format!("{words} (#{number})"));
        self.cuts.insert(number, links);
        let wait =
            if self.rng.percent(50) { self.rng.between(100, 3_000) } else { self.rng.between(3_000, 25_000) };
        self.after(wait, Event::Mend { cut: number });
    }

    /// All is well again.
    pub(super) fn heal(&mut self) {
        self.note(|| "all is well again".into());
        self.quiet = true;
        self.cuts.clear();
        self.slow_pulls = false;
        let leaders: Vec<M> = self.log.voters.values().copied().collect();
        for m in 0..self.machines.len() {
            self.machines[m].paused_until = self.now;
            // A node that was away while all managers were replaced is told by hand where they are.
            for leader in &leaders {
                if !self.machines[m].agent.known.contains(leader) {
                    self.machines[m].agent.known.push(*leader);
                }
            }
            let machine = &self.machines[m];
            // One that left and is empty stays off, unless the consensus group still counts on it.
            let done = machine.leaving && machine.containers.is_empty() && !leaders.contains(&m);
            if machine.power != Power::On && !done {
                self.boot(m, true);
            }
        }
        self.repair_services();
    }
}
