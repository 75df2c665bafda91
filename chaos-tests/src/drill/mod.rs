//! Drills: each states a promise, puts load on a cluster, breaks something, measures, mends, and checks that
//! the cluster comes back, that nothing acknowledged was lost and that nothing is left over.
//!
//! A drill without load proves nothing: load must flow before the fault and again after it, or the drill fails.

mod catalogue;
mod html;
mod load;
mod result;
mod scorecard;
mod site;
mod stage;

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
    /// Names of the nodes it is going to harm, chosen before load is put on the others.
    victims: fn(&mut Scene<'_>) -> Result<Vec<String>>,
    /// Does the harm, and measures.
    act: fn(&mut Scene<'_>) -> Result<()>,
}

/// The drill of this name.
pub fn find(name: &str) -> Option<&'static Drill> {
    ALL.iter().find(|drill| drill.name == name)
}

impl Drill {
    /// Runs it on a lab whose cluster is whole. `tell` hears what happens.
    ///
    /// What goes wrong is in the report: a drill that could not be carried out has failed.
    pub fn run(&self, lab: &Lab, seed: u64, tell: &mut dyn FnMut(Duration, &str)) -> Report {
        stage::run(self, lab, seed, tell)
    }
}
