//! Packets and connections between the nodes of a cluster.
//!
//! The pure half ([`table`], [`decide`]) says what is routable and what happens to a packet, a name or a connection.

pub mod decide;
pub mod table;
