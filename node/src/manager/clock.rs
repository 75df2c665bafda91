//! The control plane's only clock.

use rswarm_control::time::Timestamp;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// The wall clock.
pub fn now() -> Timestamp {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
    Timestamp(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

/// The wall clock, but never before what the cluster has already seen: a leader whose clock is behind its
/// predecessor's goes on from there.
pub fn after(seen: Timestamp) -> Timestamp {
    now().max(seen)
}
