//! The wall clock of this node: that of its machine, or in a lab one that is wrong by what a file says.
//!
//! The nodes of a lab share one machine's clock. `RSWARM_LAB_CLOCK` names a file with a number of milliseconds, which
//! is read each time, so that a clock can jump under a daemon that runs. Whoever may set a daemon's environment may
//! do anything with it; nobody else can.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::OnceLock;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustls::pki_types::UnixTime;
use rustls::time_provider::TimeProvider;

/// The variable of the environment that names the file.
const VARIABLE: &str = "RSWARM_LAB_CLOCK";

/// What this node's clock shows.
pub fn now() -> SystemTime {
    static FILE: OnceLock<Option<File>> = OnceLock::new();
    let file = FILE.get_or_init(|| File::open(std::env::var_os(VARIABLE)?).ok());
    shifted(SystemTime::now(), file.as_ref().and_then(offset_ms).unwrap_or(0))
}

/// By how much the clock is ahead; nothing if the file says nothing that can be understood.
fn offset_ms(file: &File) -> Option<i64> {
    let mut bytes = [0; 24];
    let length = file.read_at(&mut bytes, 0).ok()?;
    str::from_utf8(&bytes[..length]).ok()?.trim().parse().ok()
}

fn shifted(time: SystemTime, ms: i64) -> SystemTime {
    let by = Duration::from_millis(ms.unsigned_abs());
    let there = if ms < 0 { time.checked_sub(by) } else { time.checked_add(by) };
    there.filter(|there| *there >= UNIX_EPOCH).unwrap_or(time)
}

/// The same clock for the validity of certificates.
#[derive(Debug)]
pub struct Wall;

impl TimeProvider for Wall {
    fn current_time(&self) -> Option<UnixTime> {
        now().duration_since(UNIX_EPOCH).ok().map(UnixTime::since_unix_epoch)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_is_wrong_by_what_the_file_says_and_right_if_it_says_nothing() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let says = |text: &str| {
            std::fs::write(file.path(), text).unwrap();
            offset_ms(&File::open(file.path()).unwrap())
        };
        assert_eq!(says("-2700000             \n"), Some(-2_700_000));
        assert_eq!(says("60000"), Some(60_000));
        for nonsense in ["", "an hour", "99999999999999999999999"] {
            assert_eq!(says(nonsense), None, "{nonsense}");
        }
        let time = UNIX_EPOCH + Duration::from_secs(100);
        assert_eq!(shifted(time, -1_000), UNIX_EPOCH + Duration::from_secs(99));
        assert_eq!(shifted(time, i64::MIN), time, "there is no time before the epoch");
    }
}
