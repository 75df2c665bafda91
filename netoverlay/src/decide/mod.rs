//! The overlay's decisions, as functions of what is known: where a packet goes, how it is cut and joined, which
//! backend a connection gets, what a name means. No sockets, clocks or threads.

pub mod balance;
pub mod datagram;
pub mod ended;
pub mod fast;
pub mod flows;
pub mod former;
pub mod forward;
pub mod lately;
pub mod names;
pub mod patience;
pub mod policy;
pub mod proxy;
pub mod replay;
pub mod segment;
pub mod too_big;
