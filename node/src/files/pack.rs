//! Out of a root.

use super::{DEPTH_MAX, Ids, Root, bad, find};
use rustix::fs::{Dir, FileType, Mode, OFlags, Stat, fstat, openat, readlinkat};
use rustix::io::Errno;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use tar::{Builder, EntryType, Header};

/// Writes what is at `path` beneath `root`, with all that is in it, as an archive whose entries begin with the last
/// name of the path. With `follow` a link at its end is followed. Sockets are left out.
///
/// # Errors
/// If nothing is there, or something cannot be read or written.
pub fn pack(root: &Root, path: &Path, follow: bool, out: impl Write) -> io::Result<()> {
    let flags = if follow { OFlags::empty() } else { OFlags::NOFOLLOW };
    let found = find(&root.directory, path, flags).map_err(|error| {
        let error = io::Error::from(error);
        io::Error::new(error.kind(), format!("{}: {error}", path.display()))
    })?;
    let mut builder = Builder::new(out);
    let name = path.file_name().map_or(Path::new("."), Path::new);
    entry(&mut builder, &found, name, 0, root.ids)?;
    builder.finish()?;
    builder.get_mut().flush()
}

fn entry(
    builder: &mut Builder<impl Write>,
    found: &OwnedFd,
    name: &Path,
    depth: usize,
    ids: Option<Ids>,
) -> io::Result<()> {
    if depth > DEPTH_MAX {
        return Err(bad(format!("{} is deeper than {DEPTH_MAX} directories", name.display())));
    }
    let stat = fstat(found)?;
    let mut header = header(&stat, ids);
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::Directory => {
            header.set_entry_type(EntryType::Directory);
            builder.append_data(&mut header, name, io::empty())?;
            let directory = reopen(found, OFlags::DIRECTORY)?;
            for listed in Dir::read_from(&directory)? {
                let listed = listed?;
                let inner = listed.file_name();
                if matches!(inner.to_bytes(), b"." | b"..") {
                    continue;
                }
                let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                match openat(&directory, inner, flags, Mode::empty()) {
                    Ok(child) => {
                        let name = name.join(std::ffi::OsStr::from_bytes(inner.to_bytes()));
                        entry(builder, &child, &name, depth + 1, ids)?;
                    }
                    // Removed since it was listed.
                    Err(Errno::NOENT) => {}
                    Err(error) => return Err(error.into()),
                }
            }
            Ok(())
        }
        FileType::RegularFile => {
            let size = u64::try_from(stat.st_size).unwrap_or(0);
            header.set_entry_type(EntryType::Regular);
            header.set_size(size);
            let file = File::from(reopen(found, OFlags::empty())?);
            // The header has said how much there is: what is added meanwhile is left out, what is cut off is zeros.
            builder.append_data(&mut header, name, file.chain(io::repeat(0)).take(size))
        }
        FileType::Symlink => {
            let target = readlinkat(found, c"", Vec::new())?;
            header.set_entry_type(EntryType::Symlink);
            builder.append_link(&mut header, name, std::ffi::OsStr::from_bytes(target.to_bytes()))
        }
        FileType::Fifo => {
            header.set_entry_type(EntryType::Fifo);
            builder.append_data(&mut header, name, io::empty())
        }
        kind @ (FileType::CharacterDevice | FileType::BlockDevice) => {
            let block = kind == FileType::BlockDevice;
            header.set_entry_type(if block { EntryType::Block } else { EntryType::Char });
            header.set_device_major(rustix::fs::major(stat.st_rdev))?;
            header.set_device_minor(rustix::fs::minor(stat.st_rdev))?;
            builder.append_data(&mut header, name, io::empty())
        }
        _ => Ok(()),
    }
}

fn header(stat: &Stat, ids: Option<Ids>) -> Header {
    let there = |id: u32| ids.map_or(id, |ids| ids.there(id));
    let mut header = Header::new_gnu();
    header.set_mode(stat.st_mode & 0o7777);
    header.set_uid(there(stat.st_uid).into());
    header.set_gid(there(stat.st_gid).into());
    header.set_mtime(u64::try_from(stat.st_mtime).unwrap_or(0));
    header.set_size(0);
    header
}

/// The very thing that was found, to be read.
fn reopen(found: &OwnedFd, flags: OFlags) -> io::Result<OwnedFd> {
    let path = format!("/proc/self/fd/{}", found.as_raw_fd());
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC | flags;
    let opened = rustix::fs::openat(rustix::fs::CWD, path, flags, Mode::empty())?;
    Ok(opened)
}
