//! The node: everything that `rswarm` does on a machine.

pub mod config;
pub mod demo;
pub mod executor;
pub mod identity;
pub mod image;
pub mod rpc;
