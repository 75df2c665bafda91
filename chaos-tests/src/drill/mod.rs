//! Drills: each states a promise, puts load on a cluster, breaks something, measures, mends, and checks that
//! the cluster comes back, that nothing acknowledged was lost and that nothing is left over.
//!
//! A drill without load proves nothing: load must flow before the fault and again after it, or the drill fails.

mod catalogue;
mod clocks;
mod containers;
mod disks;
mod html;
mod joins;
mod load;
mod machines;
mod requests;
mod result;
mod scorecard;
mod site;
mod stage;
mod updates;

use std::time::Duration;

use anyhow::Result;

use crate::lab::Lab;
pub use catalogue::ALL;
pub use html::page;
pub use load::{History, Shot, Stream};
pub use result::{Line, Mark, Report, Sample, Verdict};
pub use scorecard::{Trials, render as scorecard};
pub use site::{Site, Task};
pub use stage::Scene;

/// One drill.
#[derive(Debug, Clone, Copy)]
pub struct Drill {
    /// Its name, by which it is run.
    pub name: &'static str,
    /// What it shows.
    pub promise: &'static str,
    /// How many nodes it wants.
    pub nodes: u8,
    /// How many of them must be managers.
    pub managers: u8,
    /// How large their disks are, in bytes, if the drill needs to know.
    pub disk: Option<u64>,
    /// What is on the cluster meanwhile.
    load: Load,
    /// Names of the nodes it is going to harm, chosen before load is put on the others.
    victims: fn(&mut Scene<'_>) -> Result<Vec<String>>,
    /// Does the harm, and measures.
    act: fn(&mut Scene<'_>) -> Result<()>,
}

/// What a drill puts on the cluster before it breaks anything.
#[derive(Debug, Clone, Copy)]
pub struct Load {
    /// How many tasks the service has that is asked.
    replicas: usize,
    /// More options of that service.
    options: &'static [&'static str],
    /// Requests a second to its virtual IP.
    virtual_ip: u32,
    /// Requests a second to its published port, on all nodes that are spared.
    published: u32,
    /// The pause between two writes of one writer, of which there are two.
    write_pause: Duration,
}

/// What most drills put on it.
const USUAL: Load = Load {
    replicas: 6,
    options: &[],
    virtual_ip: 50,
    published: 75,
    write_pause: Duration::from_millis(150),
};

/// The drill of this name.
pub fn find(name: &str) -> Option<&'static Drill> {
    ALL.iter().find(|drill| drill.name == name)
}

/// A number that follows from a seed and a turn.
pub fn chance(seed: u64, turn: u64) -> u64 {
    crate::world::rng::Rng::new(seed.wrapping_add(turn.wrapping_mul(0x9e37_79b9))).next() >> 32
}

impl Drill {
    /// Runs it on a lab whose cluster is whole. `tell` hears what happens.
    ///
    /// What goes wrong is in the report: a drill that could not be carried out has failed.
    pub fn run(&self, lab: &Lab, seed: u64, tell: &mut dyn FnMut(Duration, &str)) -> Report {
        stage::run(self, lab, seed, tell)
    }
}
