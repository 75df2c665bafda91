//! The program whose start is timed: it reads the clock in its first instruction, writes what it read to a pipe in the
//! file system, and ends, or stays if it was given an argument.

use anyhow::{Context, Result, ensure};
use std::fs::{self, OpenOptions};
use std::io::Read;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Where the program is in its container.
pub const PATH: &str = "/first";
/// Where it finds its pipe's directory.
pub const INSIDE: &str = "/stamp";
const PIPE: &str = "began";

/// How long a start may take.
const PATIENCE: Duration = Duration::from_secs(20);

/// Machine code, from its first instruction on; what follows it is the path of the pipe.
#[cfg(target_arch = "x86_64")]
#[rustfmt::skip]
const CODE: &[u8] = &[
    0x48, 0x8d, 0x74, 0x24, 0xc0,               //       lea rsi, [rsp-64]
    0xbf, 0x01, 0x00, 0x00, 0x00,               //       mov edi, 1 (the monotonic clock)
    0xb8, 0xe4, 0x00, 0x00, 0x00,               //       mov eax, 228 (clock_gettime)
    0x0f, 0x05,                                 //       syscall
    0x48, 0x8d, 0x3d, 0x3a, 0x00, 0x00, 0x00,   //       lea rdi, [path]
    0xbe, 0x01, 0x00, 0x00, 0x00,               //       mov esi, 1 (for writing)
    0x31, 0xd2,                                 //       xor edx, edx
    0xb8, 0x02, 0x00, 0x00, 0x00,               //       mov eax, 2 (open)
    0x0f, 0x05,                                 //       syscall
    0x89, 0xc7,                                 //       mov edi, eax
    0x48, 0x8d, 0x74, 0x24, 0xc0,               //       lea rsi, [rsp-64]
    0xba, 0x10, 0x00, 0x00, 0x00,               //       mov edx, 16
    0xb8, 0x01, 0x00, 0x00, 0x00,               //       mov eax, 1 (write)
    0x0f, 0x05,                                 //       syscall
    0x48, 0x83, 0x3c, 0x24, 0x01,               //       cmp qword [rsp], 1 (how many words it was given)
    0x74, 0x09,                                 //       je end
    0xb8, 0x22, 0x00, 0x00, 0x00,               // stay: mov eax, 34 (pause)
    0x0f, 0x05,                                 //       syscall
    0xeb, 0xf7,                                 //       jmp stay
    0x31, 0xff,                                 // end:  xor edi, edi
    0xb8, 0xe7, 0x00, 0x00, 0x00,               //       mov eax, 231 (exit_group)
    0x0f, 0x05,                                 //       syscall
];

/// The program as a file: a header, one segment, the code and the path.
#[cfg(target_arch = "x86_64")]
fn file() -> Result<Vec<u8>> {
    const BASE: u64 = 0x40_0000;
    const HEADERS: u64 = 64 + 56;
    let path = format!("{INSIDE}/{PIPE}\0");
    let size = HEADERS + CODE.len() as u64 + path.len() as u64;
    let mut file = Vec::new();
    file.extend_from_slice(b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0");
    let short = |value: u16| value.to_le_bytes();
    file.extend([short(2), short(62)].concat());
    file.extend(1_u32.to_le_bytes());
    for value in [BASE + HEADERS, 64, 0] {
        file.extend(value.to_le_bytes());
    }
    file.extend(0_u32.to_le_bytes());
    file.extend([short(64), short(56), short(1), short(0), short(0), short(0)].concat());
    // To be loaded, read and executed.
    file.extend([1_u32.to_le_bytes(), 5_u32.to_le_bytes()].concat());
    for value in [0, BASE, BASE, size, size, 0x1000] {
        file.extend(value.to_le_bytes());
    }
    file.extend_from_slice(CODE);
    file.extend_from_slice(path.as_bytes());
    Ok(file)
}

#[cfg(not(target_arch = "x86_64"))]
fn file() -> Result<Vec<u8>> {
    anyhow::bail!("the program that is timed is there for x86_64 only")
}

/// Makes a root directory with the program in it.
pub fn image(root: &Path) -> Result<()> {
    let make = || -> Result<()> {
        for name in ["dev", "etc", "proc", "sys", "stamp"] {
            fs::create_dir_all(root.join(name))?;
        }
        let program = root.join(PATH.trim_start_matches('/'));
        fs::write(&program, file()?)?;
        Ok(fs::set_permissions(&program, fs::Permissions::from_mode(0o755))?)
    };
    make().with_context(|| format!("cannot make an image in {}", root.display()))
}

/// The pipe that one program says when it began.
pub struct Stamp {
    directory: PathBuf,
}

impl Stamp {
    /// Makes it in a directory that is to be seen at [`INSIDE`].
    pub fn new(directory: PathBuf) -> Result<Self> {
        let make = || -> Result<()> {
            fs::create_dir_all(&directory)?;
            let mode = nix::sys::stat::Mode::from_bits_truncate(0o666);
            match nix::unistd::mkfifo(&directory.join(PIPE), mode) {
                Err(nix::errno::Errno::EEXIST) | Ok(()) => Ok(()),
                Err(error) => Err(error.into()),
            }
        };
        make().with_context(|| format!("cannot make a pipe in {}", directory.display()))?;
        Ok(Self { directory })
    }

    /// Its directory.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Keeps the pipe open at its other end, so that a program does not wait for somebody who asks.
    pub fn hold(&self) -> Result<fs::File> {
        let path = self.directory.join(PIPE);
        let file = OpenOptions::new().read(true).write(true).open(&path);
        file.with_context(|| format!("cannot open {}", path.display()))
    }

    /// When the program began, in nanoseconds of the monotonic clock; waits for it.
    pub fn read(&self) -> Result<u64> {
        let path = self.directory.join(PIPE);
        // Without waiting for the other end, or none would ever be waited for with a limit.
        let flags = nix::libc::O_NONBLOCK;
        let mut pipe = OpenOptions::new().read(true).custom_flags(flags).open(&path)?;
        let mut time = [0_u8; 16];
        let timeout = rustix::event::Timespec::try_from(PATIENCE)?;
        let mut watched = [rustix::event::PollFd::new(&pipe, rustix::event::PollFlags::IN)];
        let ready = rustix::event::poll(&mut watched, Some(&timeout))?;
        ensure!(ready > 0, "no program has begun within {} s", PATIENCE.as_secs());
        pipe.read_exact(&mut time).context("the program said nothing")?;
        let word = |at: usize| time[at..].first_chunk::<8>().map_or(0, |bytes| u64::from_le_bytes(*bytes));
        Ok(word(0) * 1_000_000_000 + word(8))
    }
}

#[cfg(all(test, target_arch = "x86_64"))]
mod tests {
    use super::*;

    #[test]
    fn the_code_finds_the_path_behind_it() {
        // What is added to the address of the next instruction, the fifth, which begins at byte 24.
        let distance = u32::from_le_bytes(*CODE[20..].first_chunk().unwrap());
        assert_eq!(24 + distance as usize, CODE.len());
    }
}
