//! Packets and connections between the nodes of a cluster.

pub mod device;
