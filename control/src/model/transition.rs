//! What a task has been through, kept with it for whoever asks why it is as it is.

use super::{Desired, Observed};
use crate::time::Timestamp;

/// One step in the life of a task. A task only moves forward, so it has few; see [`Transition::MAX`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Transition {
    /// What it came to.
    pub to: Step,
    /// When, by the clock of the leader that wrote it.
    pub at: Timestamp,
    /// The log entry that says so.
    pub index: u64,
    /// Who says so.
    pub by: Actor,
    /// Why, for people; often empty. At most [`Transition::WHY_MAX`] characters.
    pub why: Box<str>,
}

impl Transition {
    /// How many a task keeps: more than it can have.
    pub const MAX: usize = 24;
    /// Longer reasons are cut; the whole error is in [`TaskStatus`](super::TaskStatus).
    pub const WHY_MAX: usize = 200;
}

/// What a task came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// It was seen to be so.
    Observed(Observed),
    /// It is wanted to be so.
    Desired(Desired),
}

/// Who moved a task.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Actor {
    /// The managers decided it.
    Managers,
    /// Its node reported it.
    Node,
}
