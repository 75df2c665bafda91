//! What breaks rswarm on purpose, and checks that it holds.

pub mod drill;
pub mod history;
pub mod invariants;
pub mod lab;
pub mod vm;
pub mod world;
