//! A container orchestrator: one binary turns a few Linux machines into one.

pub mod executor;
