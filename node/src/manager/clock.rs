//! The control plane's only clock.

use rswarm_control::time::Timestamp;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// The wall clock.
pub fn now() -> Timestamp {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
    Timestamp(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

/// The cluster's time: the wall clock, but never before what the cluster has already `seen`. A leader whose clock is
/// behind its predecessor's goes on from there at the pace of its own, so that delays end however wrong a clock was.
pub fn after(seen: Timestamp) -> Timestamp {
    static CLOCK: Ahead = Ahead(AtomicU64::new(0));
    CLOCK.after(now(), seen)
}

/// By how many milliseconds the cluster's time has been found ahead of this machine's.
struct Ahead(AtomicU64);

impl Ahead {
    fn after(&self, wall: Timestamp, seen: Timestamp) -> Timestamp {
        let short = seen.0.saturating_sub(wall.0);
        if short == 0 {
            // Whichever clock was wrong has been set right.
            self.0.store(0, Ordering::Relaxed);
            return wall;
        }
        let ahead = self.0.fetch_max(short, Ordering::Relaxed).max(short);
        Timestamp(wall.0.saturating_add(ahead))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_predecessor_whose_clock_was_ahead_does_not_stop_time() {
        let clock = Ahead(AtomicU64::new(0));
        let after = |wall, seen| clock.after(Timestamp(wall), Timestamp(seen)).0;
        assert_eq!(after(1_000, 900), 1_000, "the usual case");
        assert_eq!(after(1_000, 9_000), 9_000, "never before what was seen");
        assert_eq!(after(1_250, 9_000), 9_250, "and it goes on");
        assert_eq!(after(1_500, 9_400), 9_500);
        assert_eq!(after(500, 9_500), 9_500, "also when the own clock is set back");
        assert_eq!(after(700, 9_500), 9_700);
        assert_eq!(after(9_800, 9_700), 9_800, "until a clock that was wrong is set right");
        assert_eq!(after(9_900, 9_800), 9_900);
    }
}
