//! Packets and connections between the nodes of a cluster.
//!
//! The pure half ([`table`], [`decide`]) says what is routable and what happens to a packet, a name or a connection;
//! the other half ([`peer`], [`ingress`]) carries it out on what the Linux half ([`device`], [`network`]) makes.

pub mod decide;
pub mod device;
pub mod ingress;
pub mod network;
pub mod peer;
pub mod resolver;
pub mod table;
pub mod view;
