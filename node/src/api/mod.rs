//! What callers reach: handlers parse, propose and answer, in that order. Who may call what is decided before
//! them (`rpc::access`), and rules live in `control::admission`, where they can be tested without a server.

pub mod control;
mod images;
pub mod join;
pub mod local;
mod logs;
mod watch;
