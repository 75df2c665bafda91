//! gRPC between nodes over TLS, and from the command line over a unix socket: who may say what, how a node is
//! dialled, and how calls arrive.

pub mod access;
pub mod dial;
pub mod forward;
pub mod listen;
pub mod stale;
