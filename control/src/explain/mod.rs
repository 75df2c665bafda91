//! Why things are as they are, for whoever asks: what a task waits for, why it is where it is, what it has been
//! through, what an update waits for, what keeps a node from being empty.
//!
//! Nothing is guessed: refusals come from the scheduler's own filters, and what is waited for from a turn of the
//! leader's crank, which says so where it decides to wait.

mod node;
mod service;
mod task;

use crate::ids::{NodeId, ServiceId, TaskId};
use crate::liveness::{self, Heard};
use crate::plan::{Hold, Whom, Why};
pub use crate::scheduler::{Choice, Criterion};
use crate::state::State;
use crate::tick;
use crate::time::Timestamp;

/// What is asked about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum About {
    /// A task.
    Task(TaskId),
    /// A service.
    Service(ServiceId),
    /// A node.
    Node(NodeId),
}

/// Why something is as it is.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Explanation {
    /// Its id.
    pub id: String,
    /// Its name.
    pub name: String,
    /// How it is, in a sentence without a subject: `waits for a node`.
    pub summary: String,
    /// More about it, each with a heading.
    pub facts: Vec<(&'static str, String)>,
    /// What is waited for, by it or because of it.
    pub waits: Vec<Wait>,
    /// Why nodes cannot take the task, in words, and how many they are.
    pub refusals: Vec<(String, u32)>,
    /// The node that comes nearest to taking it, and what it lacks; or empty.
    pub nearest: String,
    /// Why it is where it is.
    pub choice: Option<Choice>,
    /// What it has been through, oldest first.
    pub past: Vec<Past>,
}

/// Something that is not done yet.
#[derive(Clone, Debug, PartialEq)]
pub struct Wait {
    /// Who waits.
    pub who: String,
    /// What for.
    pub what: String,
    /// Since when, where that is known.
    pub since: Option<Timestamp>,
    /// When it is tried again at the latest, or happens; nothing if it is not a matter of time.
    pub next: Option<Timestamp>,
}

/// Something that has happened.
#[derive(Clone, Debug, PartialEq)]
pub struct Past {
    /// When.
    pub at: Timestamp,
    /// The log entry that says so; 0 where that is not known any more.
    pub index: u64,
    /// To whom: a task's id, or a service's name.
    pub whom: String,
    /// What.
    pub what: String,
    /// Who did it, or saw it.
    pub by: String,
    /// Why, or how.
    pub why: String,
}

/// At most so many lines of one kind are told; the last says how many more there are.
const LINES_MAX: usize = 20;

/// Why something is as it is; nothing if it does not exist. `heard` is the leader's.
pub fn explain(state: &State, heard: &Heard, now: Timestamp, about: About) -> Option<Explanation> {
    let asked = Asked { state, heard, now, holds: tick::holds(state, heard, now) };
    match about {
        About::Task(task) => state.task(task).map(|task| asked.task(task)),
        About::Service(service) => state.service(service).map(|service| asked.service(service)),
        About::Node(node) => state.node(node).map(|node| asked.node(node)),
    }
}

struct Asked<'a> {
    state: &'a State,
    heard: &'a Heard,
    now: Timestamp,
    holds: Vec<Hold>,
}

impl Asked<'_> {
    /// What the next turn would not do yet for somebody.
    fn holds(&self, whom: Whom) -> impl Iterator<Item = &Hold> {
        self.holds.iter().filter(move |hold| hold.whom == whom)
    }

    fn hostname(&self, node: NodeId) -> String {
        self.state.node(node).map_or_else(|| format!("{node} (removed)"), |node| node.hostname.clone())
    }

    /// Why silent nodes are not taken for lost yet, if so many are silent that it is more likely us.
    fn brake(&self) -> Option<String> {
        let brake = liveness::brake(self.state, self.heard, self.now)?;
        Some(format!(
            "{} of {} nodes are silent at once, so replacement is held back",
            brake.silent, brake.nodes
        ))
    }
}

fn words(why: Why) -> &'static str {
    match why {
        Why::Restart => "the delay before the next attempt",
        Why::Rest => "the update delay after this slot",
        Why::Watched => "the monitor time of new tasks",
        Why::HealthyTime => "the new task to have run for the healthy time",
        Why::Turn => "its turn: other slots of the service come first",
        Why::Deadline => "progress: the update has failed if no new task comes to run",
        Why::Silence => "a sign of life, before its tasks are replaced",
    }
}

/// Leaves out what is too much to read.
fn cut(mut waits: Vec<Wait>) -> Vec<Wait> {
    let more = waits.len().saturating_sub(LINES_MAX);
    if more > 1 {
        waits.truncate(LINES_MAX);
        waits.push(Wait { who: format!("{more} more"), what: "likewise".into(), since: None, next: None });
    }
    waits
}

#[cfg(test)]
mod tests;
