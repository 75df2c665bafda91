//! A log in files, rotated by size and compressed: `log` is written to, `log.1` came before it, `log.2.gz` before that.
//! A full disk drops and counts.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use flate2::{Compression, GzBuilder};
use rswarm_shim::protocol::{COMPRESSED, LogOptions};

use crate::sys;

pub struct LogFile {
    path: PathBuf,
    options: LogOptions,
    file: Option<File>,
    size: u64,
    dropped_bytes: u64,
    compressor: Option<Compressor>,
}

/// A process that compresses one file of the log, so that nobody waits for that.
struct Compressor {
    pid: i32,
    /// Which file, counted on as files are rotated.
    index: u32,
}

impl LogFile {
    pub fn open(path: PathBuf, options: LogOptions) -> Self {
        let mut log = Self { path, options, file: None, size: 0, dropped_bytes: 0, compressor: None };
        let _ = fs::remove_file(log.unfinished());
        log.reopen();
        log
    }

    pub fn dropped_bytes(&self) -> u64 {
        self.dropped_bytes
    }

    /// Adds whole lines.
    pub fn write(&mut self, lines: &[u8]) {
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

    /// Nothing more will be written.
    pub fn finish(&mut self) {
        if let Some(Compressor { pid, .. }) = self.compressor.take() {
            // SAFETY: a signal to our own child, which is not reaped before the wait for it.
            unsafe {
                libc::kill(pid, libc::SIGKILL);
                libc::waitpid(pid, std::ptr::null_mut(), 0);
            }
            let _ = fs::remove_file(self.unfinished());
        }
    }

    /// Puts a compressed file in the place of the one it was made from.
    pub fn reaped(&mut self, pid: i32, status: i32) {
        let Some(Compressor { index, .. }) = self.compressor.take_if(|compressor| compressor.pid == pid)
        else {
            return;
        };
        let unfinished = self.unfinished();
        let kept = index < self.options.files_max;
        if status != 0 || !kept || fs::rename(&unfinished, compressed(&self.path, index)).is_err() {
            let _ = fs::remove_file(unfinished);
            return;
        }
        let _ = fs::remove_file(numbered(&self.path, index));
    }

    fn rotate(&mut self) {
        for index in (1..self.options.files_max).rev() {
            let from = if index == 1 { self.path.clone() } else { numbered(&self.path, index - 1) };
            let _ = fs::remove_file(compressed(&self.path, index));
            let _ = fs::remove_file(numbered(&self.path, index));
            let _ = fs::rename(from, numbered(&self.path, index));
            if index > 1 {
                let _ = fs::rename(compressed(&self.path, index - 1), compressed(&self.path, index));
            }
        }
        if self.options.files_max < 2 {
            let _ = fs::remove_file(&self.path);
        }
        match &mut self.compressor {
            // One at a time: where a container writes faster than that, files stay as they are.
            Some(compressor) => compressor.index += 1,
            None if self.options.compress && self.options.files_max > 1 => {
                self.compressor = self.compress().ok();
            }
            None => {}
        }
        self.reopen();
    }

    fn compress(&self) -> io::Result<Compressor> {
        let mut from = File::open(numbered(&self.path, 1))?;
        let to = OpenOptions::new().create(true).write(true).truncate(true).open(self.unfinished())?;
        // Whoever follows the log knows files by their inodes, and the compressed one is to be known as well; also when
        // the number belongs to another file one day.
        let data = from.metadata()?;
        let made_of = format!("{} {} {}", data.ino(), data.mtime(), data.mtime_nsec());
        // SAFETY: the shim has one thread, so its copy may go on using the allocator; the calls are on itself only.
        match unsafe { libc::fork() } {
            -1 => Err(io::Error::last_os_error()),
            0 => {
                let compress = || -> io::Result<()> {
                    sys::keep_only(&[from.as_raw_fd(), to.as_raw_fd()]);
                    // SAFETY: a call on this process only. It gives way to others.
                    let _ = unsafe { libc::nice(19) };
                    let mut out = GzBuilder::new().comment(made_of).write(&to, Compression::fast());
                    io::copy(&mut from, &mut out)?;
                    out.finish()?;
                    Ok(())
                };
                let failed = compress().is_err();
                // SAFETY: ends this process without running anything of the shim's.
                unsafe { libc::_exit(i32::from(failed)) }
            }
            pid => Ok(Compressor { pid, index: 1 }),
        }
    }

    fn unfinished(&self) -> PathBuf {
        let mut name = OsString::from(&self.path);
        name.push(".tmp");
        name.into()
    }

    fn reopen(&mut self) {
        self.file = OpenOptions::new().create(true).append(true).open(&self.path).ok();
        self.size = self.file.as_ref().and_then(|file| file.metadata().ok()).map_or(0, |data| data.len());
    }
}

fn numbered(path: &Path, index: u32) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(format!(".{index}"));
    name.into()
}

fn compressed(path: &Path, index: u32) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(format!(".{index}{COMPRESSED}"));
    name.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(files_max: u32, compress: bool) -> LogOptions {
        LogOptions { file_bytes_max: 100, files_max, compress, ..LogOptions::default() }
    }

    fn line(index: usize) -> String {
        format!("line {index} {}\n", "x".repeat(60))
    }

    #[test]
    fn a_full_file_is_rotated_and_the_oldest_goes() {
        let directory = std::env::temp_dir().join(format!("rswarm-shim-log-{}", std::process::id()));
        fs::create_dir_all(&directory).unwrap();
        let path = directory.join("log");
        let mut log = LogFile::open(path.clone(), options(2, false));
        for index in 0..5 {
            log.write(line(index).as_bytes());
        }
        assert!(fs::read_to_string(&path).unwrap().contains("line 4"));
        assert!(fs::read_to_string(numbered(&path, 1)).unwrap().contains("line 3"));
        assert!(!numbered(&path, 2).exists());
        fs::remove_dir_all(directory).unwrap();
    }

    #[test]
    fn what_is_compressed_takes_the_place_it_has_by_then() {
        let directory = std::env::temp_dir().join(format!("rswarm-shim-gz-{}", std::process::id()));
        fs::create_dir_all(&directory).unwrap();
        let path = directory.join("log");
        let mut log = LogFile::open(path.clone(), options(4, true));
        let wait = |log: &mut LogFile| {
            let pid = log.compressor.as_ref().unwrap().pid;
            let mut status = 0;
            // SAFETY: the status is valid for writing.
            assert_eq!(unsafe { libc::waitpid(pid, &raw mut status, 0) }, pid);
            (pid, status)
        };
        log.write(line(0).as_bytes());
        log.write(line(1).as_bytes());
        let (pid, status) = wait(&mut log);
        log.write(line(2).as_bytes());
        log.reaped(pid, status);
        assert!(compressed(&path, 2).exists() && !numbered(&path, 2).exists());
        assert!(numbered(&path, 1).exists(), "it was not its turn");
        log.write(line(3).as_bytes());
        let (pid, status) = wait(&mut log);
        log.reaped(pid, status);
        assert!(
            compressed(&path, 3).exists() && numbered(&path, 2).exists() && compressed(&path, 1).exists()
        );
        let read = |index| {
            let mut text = String::new();
            let file = File::open(compressed(&path, index)).unwrap();
            io::Read::read_to_string(&mut flate2::read::GzDecoder::new(file), &mut text).unwrap();
            text
        };
        assert_eq!((read(3), read(1)), (line(0), line(2)));
        log.write(line(4).as_bytes());
        log.finish();
        assert!(!log.unfinished().exists());
        fs::remove_dir_all(directory).unwrap();
    }

    #[test]
    fn a_full_disk_drops_and_counts() {
        if !Path::new("/dev/full").exists() {
            return eprintln!("skipped: no /dev/full");
        }
        let mut log = LogFile::open("/dev/full".into(), LogOptions::default());
        log.write(b"lost\n");
        assert!(log.dropped_bytes() > 0);
    }
}
