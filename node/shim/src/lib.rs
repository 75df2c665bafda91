//! What a container's shim shares with the daemon: their common language, and cgroups.
//!
//! The shim itself is the program beside this library: one small single-threaded process per container that starts
//! it, reaps it, keeps its log and its exit record, and answers on a socket, whether or not a daemon runs.

pub mod cgroup;
mod device_filter;
pub mod protocol;
