//! Packets and connections between the nodes of a cluster.
//!
//! The pure half ([`table`], [`decide`]) says what is routable and what happens to a packet, a name or a connection;
//! the other half carries it out: [`peer`] between the nodes, [`device`] and [`network`] in the kernel, [`ingress`]
//! and `resolver` for published ports and names. [`Overlay`] is all of it.

pub mod decide;
pub mod device;
pub mod ingress;
pub mod network;
mod overlay;
pub mod peer;
mod resolver;
pub mod table;
mod view;

pub use overlay::{Attach, Config, Error, Event, Overlay, Status};
