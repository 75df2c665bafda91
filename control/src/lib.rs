//! What the managers of a cluster decide, as functions of `(state, what was heard, now)`.
//!
//! ```text
//! a request ──► admission::admit(state, request, now) ──► changes | Refused
//!                                                            │
//!                     (a quorum agrees on a Proposal)        ▼
//!      ┌─────────────────────────────────────────── State::apply ──► events, for whoever watches
//!      ▼                                                     ▲
//! tick(state, heard, now) ──► Plan { changes, wake_at } ─────┤   the leader only
//!      liveness → reaper → orchestrator (slots, restart, update) → allocator → scheduler → reaper
//!                                                            │
//! assignment::of(state, node), endpoints::of(state, node) ◄──┘   sent to each node, where
//!      worker::Worker turns assignments and what the executor saw into effects, and
//!      reports go back as Change::Report
//! ```
//!
//! Nothing here does anything: no I/O, no clock, no threads, no randomness (`clippy.toml` is the fence).
//! That is what lets a whole cluster run in a simulator from a seed, and what lets a new leader go on where
//! the old one stopped: a delay is a [`Timestamp`] in the state and a `wake_at`, never a timer.
//!
//! Four nouns are objects ([`model`]): a *service* is what a user asked for, a *slot* one of its places, a
//! *task* one attempt to fill a slot, a *node* a machine. Four are what moves: a *change* is a fact, a
//! *plan* the changes of one turn, an *assignment* what a node should hold, an *effect* what it does about it.

#![forbid(unsafe_code)]

pub mod admission;
mod allocator;
pub mod assignment;
mod calm;
pub mod convergence;
mod diff;
pub mod drain;
pub mod endpoints;
pub mod events;
pub mod explain;
pub mod health;
pub mod ids;
pub mod level;
pub mod liveness;
pub mod membership;
pub mod model;
mod orchestrator;
mod plan;
pub mod policy;
mod reaper;
mod rebalance;
pub mod rehearsal;
mod scheduler;
pub mod spare;
pub mod state;
#[cfg(test)]
mod testing;
mod tick;
pub mod time;
pub mod touched;
pub mod worker;

pub use ids::{ClusterId, NetworkId, NodeId, RaftId, ServiceId, TaskId};
pub use liveness::Heard;
pub use plan::Plan;
pub use state::{
    Applied, Change, NewTask, Proposal, Report, RequestId, Requests, Rollback, Snapshot, Stale, State,
};
pub use tick::{Crank, tick};
pub use time::Timestamp;
