//! The node: everything that `rswarm` does on a machine, and the command line.

pub mod agent;
pub mod api;
pub mod backup;
pub mod bench;
pub mod blobs;
pub mod cdi;
pub mod cli;
pub mod config;
pub mod daemon;
pub mod demo;
pub mod executor;
pub mod files;
pub mod identity;
pub mod image;
mod machine;
pub mod manager;
pub mod member;
mod overlay;
mod point;
mod rfc3339;
pub mod rpc;
pub mod telemetry;
pub mod volume;
mod wall;
