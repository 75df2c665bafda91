//! Durations, sizes, shares of processors and moments, as people write and read them.

use std::time::Duration;

/// `1h2m3s`, `1m30s`, `1.5s`, `250ms`, `0s`: hours the largest unit, zero units left out but for what stands
/// between.
pub fn duration(duration: Duration) -> String {
    let nanos = duration.as_nanos();
    if nanos == 0 {
        return "0s".into();
    }
    if nanos < 1_000_000_000 {
        let (unit, scale) = match nanos {
            0..1_000 => ("ns", 1),
            1_000..1_000_000 => ("µs", 1_000),
            _ => ("ms", 1_000_000),
        };
        return format!("{}{unit}", decimal(nanos, scale));
    }
    let (minutes, rest) = (nanos / 60_000_000_000, nanos % 60_000_000_000);
    let seconds = decimal(rest, 1_000_000_000);
    match (minutes / 60, minutes % 60) {
        (0, 0) => format!("{seconds}s"),
        (0, minutes) => format!("{minutes}m{seconds}s"),
        (hours, minutes) => format!("{hours}h{minutes}m{seconds}s"),
    }
}

/// `value / scale`, exactly, without trailing zeros; `scale` is a power of ten.
fn decimal(value: u128, scale: u128) -> String {
    let (whole, rest) = (value / scale, value % scale);
    if rest == 0 {
        return whole.to_string();
    }
    let digits = format!("{:01$}", rest, scale.ilog10() as usize);
    format!("{whole}.{}", digits.trim_end_matches('0'))
}

/// Reads what [`duration`] writes, and any other sum of numbers with units.
///
/// # Errors
/// In words, if the text is no duration or is longer than 292 years.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let error = || format!("`{text}` is not a duration; write for example 10s, 1m30s or 250ms");
    let mut rest = text;
    let mut nanos: u128 = 0;
    if text == "0" {
        return Ok(Duration::ZERO);
    }
    while !rest.is_empty() {
        let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.').ok_or_else(error)?;
        let (number, tail) = rest.split_at(end);
        let end = tail.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(tail.len());
        let (unit, tail) = tail.split_at(end);
        let scale: u128 = match unit {
            "ns" => 1,
            "us" | "µs" | "μs" => 1_000,
            "ms" => 1_000_000,
            "s" => 1_000_000_000,
            "m" => 60_000_000_000,
            "h" => 3_600_000_000_000,
            _ => return Err(error()),
        };
        nanos = fixed(number, scale).and_then(|part| nanos.checked_add(part)).ok_or_else(error)?;
        rest = tail;
    }
    let nanos = i64::try_from(nanos).ok().and_then(|nanos| u64::try_from(nanos).ok());
    nanos.filter(|_| !text.is_empty()).map(Duration::from_nanos).ok_or_else(error)
}

/// `number * scale`, rounded down.
fn fixed(number: &str, scale: u128) -> Option<u128> {
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if whole.is_empty() && fraction.is_empty() || fraction.contains('.') || fraction.len() > 18 {
        return None;
    }
    let whole: u128 = if whole.is_empty() { 0 } else { whole.parse().ok()? };
    let part: u128 = if fraction.is_empty() { 0 } else { fraction.parse().ok()? };
    let part = part.checked_mul(scale)? / 10u128.pow(u32::try_from(fraction.len()).ok()?);
    whole.checked_mul(scale)?.checked_add(part)
}

/// `64m`, `1g`, `512k`, `1.5GiB`, `100`: units are powers of 1024.
///
/// # Errors
/// In words, if the text is no size or exceeds 2^63 bytes.
pub fn parse_bytes(text: &str) -> Result<u64, String> {
    let error = || format!("`{text}` is not a size; write for example 64m, 1g or 1048576");
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    let power = match unit.trim().to_ascii_lowercase().as_str() {
        "" | "b" => 0,
        "k" | "kb" | "kib" => 1,
        "m" | "mb" | "mib" => 2,
        "g" | "gb" | "gib" => 3,
        "t" | "tb" | "tib" => 4,
        "p" | "pb" | "pib" => 5,
        _ => return Err(error()),
    };
    let bytes = fixed(number, 1 << (10 * power)).ok_or_else(error)?;
    i64::try_from(bytes).ok().and_then(|bytes| u64::try_from(bytes).ok()).ok_or_else(error)
}

/// `0.5`, `2`: processors, in billionths.
///
/// # Errors
/// In words, if the text is no number or has more than nine decimals.
pub fn parse_cpus(text: &str) -> Result<u64, String> {
    let error = || format!("`{text}` is not a number of processors; write for example 0.5 or 2");
    if text.split_once('.').is_some_and(|(_, fraction)| fraction.len() > 9) {
        return Err(format!("`{text}` has more than nine decimals"));
    }
    let nanos = fixed(text, 1_000_000_000).ok_or_else(error)?;
    u64::try_from(nanos).ok().filter(|nanos| *nanos <= 1 << 60).ok_or_else(error)
}

/// Processors, from billionths: `0.5`.
pub fn cpus(nanos: u64) -> String {
    decimal(u128::from(nanos), 1_000_000_000)
}

/// Powers of 1000, three digits: `13.3kB`, `187MB`.
pub fn size(bytes: u64) -> String {
    scaled(bytes, 1000.0, &["B", "kB", "MB", "GB", "TB", "PB", "EB"], 3)
}

/// Powers of 1024, four digits: `64MiB`.
pub fn memory(bytes: u64) -> String {
    scaled(bytes, 1024.0, &["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"], 4)
}

#[allow(clippy::cast_precision_loss, clippy::cast_possible_truncation, clippy::cast_sign_loss)]
fn scaled(bytes: u64, base: f64, units: &[&str], digits: usize) -> String {
    let mut value = bytes as f64;
    let mut unit = 0;
    while value >= base && unit + 1 < units.len() {
        value /= base;
        unit += 1;
    }
    let before = if value < 1.0 { 1 } else { value.log10() as usize + 1 };
    let text = format!("{:.*}", digits.saturating_sub(before), value);
    let text = if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.') } else { &text };
    format!("{text}{}", units[unit])
}

/// `3 minutes`, `About an hour`.
pub fn rough(duration: Duration) -> String {
    let seconds = duration.as_secs();
    let hours = (seconds + 1800) / 3600;
    match seconds {
        0 => "Less than a second".into(),
        1 => "1 second".into(),
        2..60 => format!("{seconds} seconds"),
        60..120 => "About a minute".into(),
        120..3600 => format!("{} minutes", seconds / 60),
        _ => match hours {
            0..=1 => "About an hour".into(),
            2..48 => format!("{hours} hours"),
            48..336 => format!("{} days", hours / 24),
            336..1440 => format!("{} weeks", hours / 168),
            1440..17520 => format!("{} months", hours / 720),
            _ => format!("{} years", hours / 8760),
        },
    }
}

/// `3 minutes ago`; both in milliseconds since the Unix epoch.
pub fn ago(at_ms: u64, now_ms: u64) -> String {
    format!("{} ago", rough(Duration::from_millis(now_ms.saturating_sub(at_ms))))
}

/// Milliseconds since the Unix epoch, by this machine's clock.
pub fn now_ms() -> u64 {
    let since = crate::wall::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// `2026-11-20T23:07:07.564Z`, from nanoseconds since the Unix epoch.
pub fn rfc3339(nanos: u64) -> String {
    let (date, time, fraction) = calendar(nanos);
    format!("{date}T{time}{fraction}Z")
}

/// `2026-11-20 23:07:07.564 +0000 UTC`, from nanoseconds since the Unix epoch.
pub fn long_time(nanos: u64) -> String {
    let (date, time, fraction) = calendar(nanos);
    format!("{date} {time}{fraction} +0000 UTC")
}

/// Reads `2026-11-20T23:07:07.5Z`, a number of seconds since the Unix epoch, or a duration before `now_ms`.
/// The result is in milliseconds since the Unix epoch.
///
/// # Errors
/// In words, if the text is none of them.
pub fn parse_moment(text: &str, now_ms: u64) -> Result<u64, String> {
    let error =
        || format!("`{text}` is not a moment; write for example 10m, 2026-11-20T23:07:07Z or 1795215600");
    if let Ok(duration) = parse_duration(text) {
        let back = u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
        return Ok(now_ms.saturating_sub(back));
    }
    if text.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.') {
        return fixed(text, 1000).and_then(|ms| u64::try_from(ms).ok()).ok_or_else(error);
    }
    parse_rfc3339(text).ok_or_else(error)
}

fn parse_rfc3339(text: &str) -> Option<u64> {
    let (date, time) = text.strip_suffix('Z').unwrap_or(text).split_once('T').unwrap_or((text, "0:0:0"));
    let mut date = date.split('-').map(|part| part.parse::<u64>().ok());
    let (year, month, day) = (date.next()??, date.next()??, date.next()??);
    let mut time = time.split(':');
    let (hour, minute) = (time.next()?.parse::<u64>().ok()?, time.next()?.parse::<u64>().ok()?);
    let millis = u64::try_from(fixed(time.next().unwrap_or("0"), 1000)?).ok()?;
    let valid = (1970..10_000).contains(&year) && (1..=12).contains(&month) && (1..=31).contains(&day);
    (valid && hour < 24 && minute < 60 && millis < 61_000)
        .then(|| ((days(year, month, day) * 24 + hour) * 60 + minute) * 60_000 + millis)
}

/// Days from 1970-01-01, in the Gregorian calendar.
fn days(year: u64, month: u64, day: u64) -> u64 {
    // Counted from March, so that leap days come last.
    let (year, month) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let (era, of_era) = (year / 400, year % 400);
    era * 146_097 + of_era * 365 + of_era / 4 - of_era / 100 + (month * 153 + 2) / 5 + day - 1 - 719_468
}

/// Date, time and fraction, the last with its point or empty.
fn calendar(nanos: u64) -> (String, String, String) {
    let (seconds, nanos) = (nanos / 1_000_000_000, nanos % 1_000_000_000);
    let (days, seconds) = (seconds / 86_400 + 719_468, seconds % 86_400);
    let (era, of_era) = (days / 146_097, days % 146_097);
    let year = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (year * 365 + year / 4 - year / 100);
    let month = (of_year * 5 + 2) / 153;
    let day = of_year - (month * 153 + 2) / 5 + 1;
    let (year, month) =
        (era * 400 + year + u64::from(month > 9), if month > 9 { month - 9 } else { month + 3 });
    let fraction = match nanos {
        0 => String::new(),
        nanos => format!(".{}", format!("{nanos:09}").trim_end_matches('0')),
    };
    let time = format!("{:02}:{:02}:{:02}", seconds / 3600, seconds / 60 % 60, seconds % 60);
    (format!("{year:04}-{month:02}-{day:02}"), time, fraction)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_print_and_parse() {
        for (text, nanos) in [
            ("0s", 0),
            ("1ns", 1),
            ("1.5µs", 1_500),
            ("250ms", 250_000_000),
            ("1.5s", 1_500_000_000),
            ("1m30s", 90_000_000_000),
            ("2160h0m0s", 7_776_000_000_000_000),
            ("1h0m0.5s", 3_600_500_000_000),
        ] {
            assert_eq!(duration(Duration::from_nanos(nanos)), text);
            assert_eq!(parse_duration(text), Ok(Duration::from_nanos(nanos)), "{text}");
        }
        assert_eq!(parse_duration("1.5h"), Ok(Duration::from_secs(5400)));
        for text in ["", "5", "s", "1x", "-1s", "1.2.3s", "9999999999h", "1s5", ".s"] {
            assert!(parse_duration(text).is_err(), "{text}");
        }
    }

    #[test]
    fn sizes_print_and_parse() {
        for (text, bytes) in [
            ("64m", 64 << 20),
            ("1g", 1 << 30),
            ("1.5GiB", 3 << 29),
            ("100", 100),
            ("7B", 7),
            ("512KB", 512 << 10),
        ] {
            assert_eq!(parse_bytes(text), Ok(bytes), "{text}");
        }
        for text in ["", "m", "64x", "1.2.3m", "-1", "99999999999999t"] {
            assert!(parse_bytes(text).is_err(), "{text}");
        }
        for (bytes, text) in
            [(0, "0B"), (999, "999B"), (13_256, "13.3kB"), (187_000_000, "187MB"), (1_100_000_000, "1.1GB")]
        {
            assert_eq!(size(bytes), text);
        }
        for (bytes, text) in [(64 << 20, "64MiB"), (1536 << 20, "1.5GiB"), (25_276_502_016, "23.54GiB")] {
            assert_eq!(memory(bytes), text);
        }
    }

    #[test]
    fn processors_print_and_parse() {
        for (text, nanos) in
            [("0.5", 500_000_000), ("2", 2_000_000_000), ("0.000000001", 1), (".25", 250_000_000)]
        {
            assert_eq!(parse_cpus(text), Ok(nanos), "{text}");
        }
        assert_eq!(cpus(1_500_000_000), "1.5");
        for text in ["", "x", "-1", "0.0000000001", "1e9"] {
            assert!(parse_cpus(text).is_err(), "{text}");
        }
    }

    #[test]
    fn moments_print_and_parse() {
        for (text, nanos) in [
            ("1970-01-01T00:00:00Z", 0),
            ("2000-02-29T23:59:59Z", 951_868_799_000_000_000),
            ("2026-11-20T23:07:07.564894497Z", 1_795_216_027_564_894_497),
        ] {
            assert_eq!(rfc3339(nanos), text);
            assert_eq!(parse_moment(text, 0), Ok(nanos / 1_000_000), "{text}");
        }
        assert_eq!(parse_moment("10m", 700_000), Ok(100_000));
        assert_eq!(parse_moment("1795216027.5", 0), Ok(1_795_216_027_500));
        assert!(parse_moment("yesterday", 0).is_err());
        assert!(parse_moment("2026-13-01T00:00:00Z", 0).is_err());
    }

    #[test]
    fn ages_are_told_roughly() {
        for (seconds, text) in [
            (0, "Less than a second"),
            (59, "59 seconds"),
            (60, "About a minute"),
            (200, "3 minutes"),
            (3700, "About an hour"),
            (7200, "2 hours"),
            (3 * 86_400, "3 days"),
            (20 * 86_400, "2 weeks"),
            (100 * 86_400, "3 months"),
            (800 * 86_400, "2 years"),
        ] {
            assert_eq!(rough(Duration::from_secs(seconds)), text);
        }
    }
}
