//! The control plane's only clock.

use rswarm_control::time::Timestamp;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant, UNIX_EPOCH};

/// The wall clock.
pub fn now() -> Timestamp {
    let since = crate::wall::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
    Timestamp(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

/// The cluster's time: the wall clock, but never before what the cluster has already `seen`, and without its jumps.
///
/// A leader whose clock is behind its predecessor's goes on from there at the pace of its own, so that delays end
/// however wrong a clock was. One whose clock is set while it leads does not take all nodes for silent that have not
/// been heard since: its time approaches what the clock shows at a pace that no delay notices.
pub fn after(seen: Timestamp) -> Timestamp {
    static CLOCK: Steady = Steady(Mutex::new(None));
    CLOCK.after(now(), Instant::now(), seen)
}

/// By this part of the time that has passed the cluster's time goes faster while the clock is ahead, and slower while
/// it is behind: little beside the twentieth by which clocks may differ where fenced tasks are given away.
const PART: u64 = 64;
/// A clock that jumps this far forward was never set before, as in machines that begin in 1970. Ten years, in
/// milliseconds.
const UNSET: u64 = 10 * 365 * 24 * 3600 * 1000;

/// The time that was told last, in microseconds, and when that was.
struct Steady(Mutex<Option<(Instant, u64)>>);

impl Steady {
    fn after(&self, wall: Timestamp, at: Instant, seen: Timestamp) -> Timestamp {
        let mut last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let wall = wall.0.saturating_mul(1000);
        let time = match *last {
            None => wall,
            Some((then, told)) => {
                let passed =
                    u64::try_from(at.saturating_duration_since(then).as_micros()).unwrap_or(u64::MAX);
                let pace = told.saturating_add(passed);
                match wall.checked_sub(pace) {
                    Some(ahead) if ahead > UNSET * 1000 => wall,
                    Some(ahead) => pace.saturating_add(ahead.min(passed / PART)),
                    None => pace - (pace - wall).min(passed / PART),
                }
            }
        };
        let time = time.max(seen.0.saturating_mul(1000));
        *last = Some((at, time));
        Timestamp(time / 1000)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Tells times to a clock that began at `began`, all in milliseconds.
    struct Told(Steady, Instant);

    impl Told {
        fn new() -> Self {
            Self(Steady(Mutex::new(None)), Instant::now())
        }

        fn after(&self, passed: u64, wall: u64, seen: u64) -> u64 {
            let at = self.1 + Duration::from_millis(passed);
            self.0.after(Timestamp(wall), at, Timestamp(seen)).0
        }
    }

    #[test]
    fn a_predecessor_whose_clock_was_ahead_does_not_stop_time() {
        let clock = Told::new();
        assert_eq!(clock.after(0, 1_000, 900), 1_000, "the usual case");
        assert_eq!(clock.after(64, 1_064, 9_000), 9_000, "never before what was seen");
        assert_eq!(clock.after(704, 1_704, 9_000), 9_630, "and it goes on, a little slower");
        assert_eq!(clock.after(704, 1_704, 9_900), 9_900);
    }

    #[test]
    fn a_clock_that_is_set_forward_makes_no_delay_end_at_once() {
        let clock = Told::new();
        let hour = 3_600_000;
        assert_eq!(clock.after(0, 1_000, 0), 1_000);
        assert_eq!(clock.after(6_400, 7_400 + hour, 0), 7_500, "a little faster");
        assert_eq!(clock.after(12_800, 13_800 + hour, 0), 14_000);
        // In the end it is right, and stays so.
        assert_eq!(clock.after(70 * hour, 1_000 + 71 * hour, 0), 1_000 + 71 * hour);
        assert_eq!(clock.after(70 * hour + 5, 1_005 + 71 * hour, 0), 1_005 + 71 * hour);
    }

    #[test]
    fn a_clock_that_is_set_back_does_not_stop_time() {
        let clock = Told::new();
        assert_eq!(clock.after(0, 9_000_000, 0), 9_000_000);
        assert_eq!(clock.after(6_400, 5_406_400, 0), 9_006_300);
        assert_eq!(clock.after(6_400, 5_406_400, 0), 9_006_300, "nor go back");
    }

    #[test]
    fn a_clock_that_was_never_set_is_believed_once_it_is() {
        let clock = Told::new();
        assert_eq!(clock.after(0, 5_000, 0), 5_000, "1970");
        let today = 1_795_000_000_000;
        assert_eq!(clock.after(100, today, 0), today);
    }
}
