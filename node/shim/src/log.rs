//! The container's log: what it wrote, a line each. A line longer than [`LINE_MAX`] is kept in parts. Wherever it is
//! kept, what finds no room is dropped and counted; it never stops the container.

use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};

use rswarm_shim::protocol::{LogDriver, LogOptions};

use crate::journal::Journal;
use crate::log_file::LogFile;

/// The longest part of a line kept in one piece, in bytes.
pub const LINE_MAX: usize = 16 * 1024;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stream {
    Stdout,
    Stderr,
}

pub struct Log {
    sink: Sink,
    pending: [Vec<u8>; 2],
}

enum Sink {
    File(LogFile),
    Journal(Journal),
    None,
}

impl Log {
    pub fn open(path: PathBuf, options: LogOptions, journal: &[(String, String)]) -> Self {
        let sink = match options.driver {
            LogDriver::Local => Sink::File(LogFile::open(path, options)),
            LogDriver::Journald => Sink::Journal(Journal::open(journal)),
            LogDriver::None => Sink::None,
        };
        Self { sink, pending: [Vec::new(), Vec::new()] }
    }

    /// Bytes that could not be written.
    pub fn dropped_bytes(&self) -> u64 {
        match &self.sink {
            Sink::File(file) => file.dropped_bytes(),
            Sink::Journal(journal) => journal.dropped_bytes(),
            Sink::None => 0,
        }
    }

    /// Takes what the container wrote; keeps the unfinished line for the next time.
    pub fn push(&mut self, stream: Stream, bytes: &[u8]) {
        let pending = &mut self.pending[stream as usize];
        let rest = match &mut self.sink {
            Sink::None => return,
            Sink::File(file) => {
                pending.extend_from_slice(bytes);
                let (lines, rest) = format(stream, pending, &timestamp(unix_ns()));
                file.write(&lines);
                rest
            }
            Sink::Journal(journal) => {
                pending.extend_from_slice(bytes);
                let mut at = 0;
                while let Some((_, part, next)) = part(pending, at) {
                    journal.write(stream, part);
                    at = next;
                }
                pending.len() - at
            }
        };
        pending.drain(..pending.len() - rest);
    }

    /// Writes the unfinished lines as if they had been finished.
    pub fn finish(&mut self) {
        for stream in [Stream::Stdout, Stream::Stderr] {
            if !self.pending[stream as usize].is_empty() {
                self.push(stream, b"\n");
            }
        }
        if let Sink::File(file) = &mut self.sink {
            file.finish();
        }
    }

    /// A child has ended that was neither the container's program nor one beside it.
    pub fn reaped(&mut self, pid: i32, status: i32) {
        if let Sink::File(file) = &mut self.sink {
            file.reaped(pid, status);
        }
    }
}

/// The next part of a line from `at` on: its tag, its text, and where the next one begins. None: it is not complete.
fn part(text: &[u8], at: usize) -> Option<(u8, &[u8], usize)> {
    let rest = &text[at..];
    let window = &rest[..rest.len().min(LINE_MAX + 1)];
    match window.iter().position(|byte| *byte == b'\n') {
        Some(end) => Some((b'F', &rest[..end], at + end + 1)),
        None if rest.len() > LINE_MAX => Some((b'P', &rest[..LINE_MAX], at + LINE_MAX)),
        None => None,
    }
}

/// The lines complete in `text`, in the CRI text format (`2026-01-31T12:00:00.000000000Z stdout F text`), and how many
/// bytes at its end are not.
fn format(stream: Stream, text: &[u8], time: &str) -> (Vec<u8>, usize) {
    let mut lines = Vec::new();
    let mut at = 0;
    let name: &[u8] = if stream == Stream::Stdout { b" stdout " } else { b" stderr " };
    while let Some((tag, part, next)) = part(text, at) {
        lines.extend_from_slice(time.as_bytes());
        lines.extend_from_slice(name);
        lines.extend_from_slice(&[tag, b' ']);
        lines.extend_from_slice(part);
        lines.push(b'\n');
        at = next;
    }
    (lines, text.len() - at)
}

/// Nanoseconds since the epoch.
pub fn unix_ns() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |age| age.as_nanos() as u64)
}

/// RFC 3339 with nanoseconds, in UTC.
fn timestamp(unix_ns: u64) -> String {
    let (seconds, nanoseconds) = (unix_ns / 1_000_000_000, unix_ns % 1_000_000_000);
    // Days are counted in eras of 400 years that begin on 1 March, so that the leap day is the last of its year.
    let days = seconds / 86_400 + 719_468;
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    let (hour, minute, second) = (seconds / 3_600 % 24, seconds / 60 % 60, seconds % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{nanoseconds:09}Z")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_timestamp_is_a_date_in_utc() {
        assert_eq!(timestamp(0), "1970-01-01T00:00:00.000000000Z");
        assert_eq!(timestamp(951_782_400_000_000_001), "2000-02-29T00:00:00.000000001Z");
        assert_eq!(timestamp(1_798_761_599_999_999_999), "2026-12-31T23:59:59.999999999Z");
    }

    #[test]
    fn an_unfinished_line_waits_for_its_end() {
        let (lines, rest) = format(Stream::Stderr, b"one\ntwo", "T");
        assert_eq!(lines, b"T stderr F one\n");
        assert_eq!(rest, 3);
    }

    #[test]
    fn a_long_line_is_kept_in_parts() {
        let text = vec![b'x'; LINE_MAX + 1];
        let (lines, rest) = format(Stream::Stdout, &text, "T");
        assert!(lines.starts_with(b"T stdout P x"));
        assert_eq!(rest, 1);
        let mut exact = vec![b'x'; LINE_MAX];
        exact.push(b'\n');
        assert!(format(Stream::Stdout, &exact, "T").0.starts_with(b"T stdout F x"));
    }
}
