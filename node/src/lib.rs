//! The parts of the binary `rswarm`.

pub mod cli;
