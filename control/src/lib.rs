//! What the managers of a cluster decide, as functions of `(state, what was heard, now)`.
//!
//! Nothing here does anything: no I/O, no clock, no threads, no randomness. That is what lets a whole
//! cluster run in a simulator from a seed, and what lets a new leader go on where the old one stopped.

#![forbid(unsafe_code)]

pub mod admission;
mod allocator;
pub mod assignment;
pub mod convergence;
pub mod endpoints;
pub mod ids;
pub mod liveness;
pub mod membership;
pub mod model;
mod orchestrator;
mod plan;
mod reaper;
mod scheduler;
pub mod state;
#[cfg(test)]
mod testing;
mod tick;
pub mod time;
pub mod worker;

pub use ids::{ClusterId, NetworkId, NodeId, RaftId, ServiceId, TaskId};
pub use liveness::Heard;
pub use plan::Plan;
pub use state::{Applied, Change, NewTask, Proposal, Report, Snapshot, Stale, State};
pub use tick::tick;
pub use time::Timestamp;
