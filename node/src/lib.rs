//! The node: everything that `rswarm` does on a machine.

pub mod config;
pub mod identity;
