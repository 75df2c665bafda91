//! The parts of the rswarm binary: what a machine does for the cluster, and what its user sees.

pub mod demo;
pub mod image;
