//! Moments as RFC 3339 writes them, in UTC, between 1970 and 9999.

const DAY: i64 = 86_400;

/// Nanoseconds since the epoch of `2026-11-21T01:02:03.123456789Z`.
pub fn nanos(stamp: &str) -> Option<u64> {
    let (date, time) = stamp.strip_suffix('Z')?.split_once('T')?;
    let mut date = date.splitn(3, '-').map(|part| part.parse::<i64>().ok());
    let (year, month, day) = (date.next()??, date.next()??, date.next()??);
    let (time, fraction) = time.split_once('.').unwrap_or((time, "0"));
    let mut time = time.splitn(3, ':').map(|part| part.parse::<i64>().ok());
    let (hour, minute, second) = (time.next()??, time.next()??, time.next()??);
    let fraction: u64 = format!("{fraction:0<9}").get(..9)?.parse().ok()?;
    let seconds = days(year, month, day)? * DAY + hour * 3600 + minute * 60 + second;
    u64::try_from(seconds).ok()?.checked_mul(1_000_000_000)?.checked_add(fraction)
}

/// Days since the epoch, by the proleptic Gregorian calendar with years that begin in March.
fn days(year: i64, month: i64, day: i64) -> Option<i64> {
    if !(1970..10_000).contains(&year) || !(1..=12).contains(&month) || !(1..=31).contains(&day) {
        return None;
    }
    let (year, month) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let (era, of_era) = (year / 400, year % 400);
    let of_year = (153 * month + 2) / 5 + day - 1;
    Some(era * 146_097 + of_era * 365 + of_era / 4 - of_era / 100 + of_year - 719_468)
}

/// The inverse of [`nanos`], from milliseconds.
pub fn stamp(millis: u64) -> String {
    let seconds = (millis / 1000).min(253_402_300_799) as i64;
    let (of_day, day) = (seconds % DAY, seconds / DAY + 719_468);
    let (era, of_era) = (day / 146_097, day % 146_097);
    let year = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    let shifted = (5 * of_year + 2) / 153;
    let day = of_year - (153 * shifted + 2) / 5 + 1;
    let (month, extra) = if shifted < 10 { (shifted + 3, 0) } else { (shifted - 9, 1) };
    let year = year + era * 400 + extra;
    let (hour, minute, second) = (of_day / 3600, of_day / 60 % 60, of_day % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{:03}000000Z", millis % 1000)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stamps_and_numbers_are_the_same_moments() {
        for millis in [0, 951_782_399_999, 951_782_400_000, 1_795_222_923_123, 4_107_542_400_000] {
            assert_eq!(nanos(&stamp(millis)), Some(millis * 1_000_000), "{}", stamp(millis));
        }
        assert_eq!(stamp(951_782_400_000), "2000-02-29T00:00:00.000000000Z");
    }

    #[test]
    fn rubbish_is_no_moment() {
        for text in ["", "Z", "2026-13-01T00:00:00Z", "2026-11-21 01:02:03Z", "x-11-21T01:02:03.1Z"] {
            assert_eq!(nanos(text), None, "{text}");
        }
    }
}
