<<<<<<< HEAD
//! The node: everything that `rswarm` does on a machine.

pub mod config;
pub mod identity;
=======
//! The parts of the rswarm binary: what a machine does for the cluster, and what its user sees.

pub mod demo;
pub mod image;
>>>>>>> room/images
