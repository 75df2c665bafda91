//! Making a failing run small: less of a storm, fewer faults, fewer wishes, as long as the same promise is
//! broken.
//!
//! What is left out changes what chance does to the rest, so each attempt is a run of its own that may or may
//! not fail; only those that do are followed. The result is small, not the smallest there is.

use super::{Options, Outcome, Replay, Verdict, run};
use std::time::Duration;

/// Storms are not made shorter than this.
const STORM_MIN: u64 = 1;

/// A failing run that was made small.
#[derive(Clone, Debug)]
pub struct Shrunk {
    /// The run, to be repeated.
    pub replay: Replay,
    /// What came of it.
    pub outcome: Outcome,
    /// How many runs it took to find it.
    pub runs: u32,
}

/// One thing that can be left out.
#[derive(Clone, Copy, Debug)]
enum Step {
    Fault(u32),
    Wish(u32),
}

/// Looks for a smaller run that breaks the same promise, with at most `runs_max` attempts. `None`: the run
/// breaks nothing.
pub fn shrink(replay: &Replay, runs_max: u32) -> Option<Shrunk> {
    let outcome = run(replay.seed, &replay.options);
    let broken = broken(&outcome)?;
    let mut search = Search { broken, runs_max, best: Shrunk { replay: replay.clone(), outcome, runs: 1 } };
    search.shorten();
    search.leave_out();
    search.shorten();
    Some(search.best)
}

fn broken(outcome: &Outcome) -> Option<&'static str> {
    match &outcome.verdict {
        Verdict::Broken { invariant, .. } => Some(invariant.name),
        Verdict::Held => None,
    }
}

struct Search {
    broken: &'static str,
    runs_max: u32,
    best: Shrunk,
}

impl Search {
    /// Takes these options over if the same is broken with them, and nothing got bigger.
    fn attempt(&mut self, options: Options) -> bool {
        if self.best.runs >= self.runs_max {
            return false;
        }
        self.best.runs += 1;
        let outcome = run(self.best.replay.seed, &options);
        let size = |outcome: &Outcome| (outcome.deeds.len(), outcome.simulated);
        let better = broken(&outcome) == Some(self.broken) && size(&outcome) <= size(&self.best.outcome);
        if better {
            self.best.replay.options = options;
            self.best.outcome = outcome;
        }
        better
    }

    /// Ends the storm earlier.
    fn shorten(&mut self) {
        // What had not happened yet when it broke was not needed.
        let lived = self.best.outcome.simulated.as_secs() + 1;
        if lived < self.best.replay.options.storm.as_secs() {
            self.attempt(Options { storm: Duration::from_secs(lived), ..self.best.replay.options.clone() });
        }
        loop {
            let half = self.best.replay.options.storm.as_secs() / 2;
            let options = Options { storm: Duration::from_secs(half), ..self.best.replay.options.clone() };
            if half < STORM_MIN || !self.attempt(options) {
                return;
            }
        }
    }

    /// Leaves out halves, then quarters, and so on down to single things.
    fn leave_out(&mut self) {
        let mut chunk = self.left().len().div_ceil(2);
        while chunk > 0 {
            let mut at = 0;
            while let Some(steps) = self.left().get(at..).filter(|rest| !rest.is_empty()) {
                let mut options = self.best.replay.options.clone();
                for step in &steps[..chunk.min(steps.len())] {
                    match step {
                        Step::Fault(number) => options.left_out.faults.insert(*number),
                        Step::Wish(number) => options.left_out.wishes.insert(*number),
                    };
                }
                // What was left out is no longer in the list, so the next ones are at the same place.
                if !self.attempt(options) {
                    at += chunk;
                }
                if self.best.runs >= self.runs_max {
                    return;
                }
            }
            chunk /= 2;
        }
    }

    /// What still happens in the best run, faults first.
    fn left(&self) -> Vec<Step> {
        let Shrunk { replay, outcome, .. } = &self.best;
        let out = &replay.options.left_out;
        let faults = (0..outcome.faults).filter(|number| !out.faults.contains(number)).map(Step::Fault);
        let wishes = (0..outcome.wishes).filter(|number| !out.wishes.contains(number)).map(Step::Wish);
        faults.chain(wishes).collect()
    }
}
