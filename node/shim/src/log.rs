//! The container's log: what it wrote, a line each, in the CRI text format
//! (`2026-01-31T12:00:00.000000000Z stdout F text`), rotated by size. A line longer than [`LINE_MAX`] is kept in
//! parts tagged `P`. A full disk drops and counts; it never stops the container.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use rswarm_shim::protocol::LogOptions;

/// The longest part of a line kept in one piece, in bytes.
pub const LINE_MAX: usize = 16 * 1024;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stream {
    Stdout,
    Stderr,
}

pub struct Log {
    path: PathBuf,
    options: LogOptions,
    file: Option<File>,
    size: u64,
    pending: [Vec<u8>; 2],
    dropped_bytes: u64,
}

impl Log {
    pub fn open(path: PathBuf, options: LogOptions) -> Self {
        let mut log =
            Self { path, options, file: None, size: 0, pending: [Vec::new(), Vec::new()], dropped_bytes: 0 };
        log.reopen();
        log
    }

    /// Bytes of text that could not be written.
    pub fn dropped_bytes(&self) -> u64 {
        self.dropped_bytes
    }

    /// Takes what the container wrote; keeps the unfinished line for the next time.
    pub fn push(&mut self, stream: Stream, bytes: &[u8]) {
        let pending = &mut self.pending[stream as usize];
        pending.extend_from_slice(bytes);
        let (lines, rest) = format(stream, pending, &timestamp(unix_ns()));
        pending.drain(..pending.len() - rest);
        self.write(&lines);
    }

    /// Writes the unfinished lines as if they had been finished.
    pub fn finish(&mut self) {
        for stream in [Stream::Stdout, Stream::Stderr] {
            if !self.pending[stream as usize].is_empty() {
                self.push(stream, b"\n");
            }
        }
    }

    fn write(&mut self, lines: &[u8]) {
        if lines.is_empty() {
            return;
        }
        let length = lines.len() as u64;
        if self.size > 0 && self.size + length > self.options.file_bytes_max {
            self.rotate();
        }
        let Some(file) = &mut self.file else {
            self.dropped_bytes += length;
            self.reopen();
            return;
        };
        if file.write_all(lines).is_ok() {
            self.size += length;
            return;
        }
        self.dropped_bytes += length;
        // What did get written must not run into the next line.
        let _ = file.set_len(self.size);
    }

    fn rotate(&mut self) {
        for index in (1..self.options.files_max).rev() {
            let from = if index == 1 { self.path.clone() } else { numbered(&self.path, index - 1) };
            let _ = fs::rename(from, numbered(&self.path, index));
        }
        if self.options.files_max < 2 {
            let _ = fs::remove_file(&self.path);
        }
        self.reopen();
    }

    fn reopen(&mut self) {
        self.file = OpenOptions::new().create(true).append(true).open(&self.path).ok();
        self.size = self.file.as_ref().and_then(|file| file.metadata().ok()).map_or(0, |data| data.len());
    }
}

/// The lines complete in `text`, formatted, and how many bytes at its end are not.
fn format(stream: Stream, text: &[u8], time: &str) -> (Vec<u8>, usize) {
    let mut lines = Vec::new();
    let mut rest = text;
    loop {
        let window = &rest[..rest.len().min(LINE_MAX + 1)];
        let (tag, part, skip) = match window.iter().position(|byte| *byte == b'\n') {
            Some(end) => (b'F', &rest[..end], 1),
            None if rest.len() > LINE_MAX => (b'P', &rest[..LINE_MAX], 0),
            None => return (lines, rest.len()),
        };
        let name: &[u8] = if stream == Stream::Stdout { b" stdout " } else { b" stderr " };
        lines.extend_from_slice(time.as_bytes());
        lines.extend_from_slice(name);
        lines.extend_from_slice(&[tag, b' ']);
        lines.extend_from_slice(part);
        lines.push(b'\n');
        rest = &rest[part.len() + skip..];
    }
}

fn numbered(path: &Path, index: u32) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(format!(".{index}"));
    name.into()
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

    #[test]
    fn a_full_file_is_rotated_and_the_oldest_goes() {
        let directory = std::env::temp_dir().join(format!("rswarm-shim-log-{}", std::process::id()));
        fs::create_dir_all(&directory).unwrap();
        let path = directory.join("log");
        let mut log = Log::open(path.clone(), LogOptions { file_bytes_max: 100, files_max: 2 });
        for index in 0..5 {
            log.push(Stream::Stdout, format!("line {index} {}\n", "x".repeat(30)).as_bytes());
        }
        assert!(fs::read_to_string(&path).unwrap().contains("line 4"));
        assert!(fs::read_to_string(numbered(&path, 1)).unwrap().contains("line 3"));
        assert!(!numbered(&path, 2).exists());
        fs::remove_dir_all(directory).unwrap();
    }

    #[test]
    fn a_full_disk_drops_and_counts() {
        if !Path::new("/dev/full").exists() {
            return eprintln!("skipped: no /dev/full");
        }
        let mut log = Log::open("/dev/full".into(), LogOptions::default());
        log.push(Stream::Stdout, b"lost\n");
        assert!(log.dropped_bytes() > 0);
    }
}
