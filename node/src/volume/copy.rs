//! Trees copied with all that belongs to them, by descriptor: whoever changes the source meanwhile cannot lead the
//! copy elsewhere. Where the file system shares blocks between files, the copy costs none.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::fs::{
    AtFlags, Dir, FileType, Gid, Mode, OFlags, Stat, Timespec, Timestamps, Uid, XattrFlags, chownat, fchmod,
    fchown, fgetxattr, flistxattr, fsetxattr, fstat, futimens, ioctl_ficlone, mkdirat, mknodat, open, openat,
    readlinkat, statat, symlinkat, utimensat,
};
use rustix::io::Errno;

/// The deepest tree that is copied.
const DEPTH_MAX: usize = 200;
/// Bytes of one extended attribute, and of the list of their names.
const XATTR_MAX: usize = 64 << 10;

/// Opens a directory that is not a link.
pub fn directory(path: &Path) -> io::Result<OwnedFd> {
    Ok(open(path, directory_flags(), Mode::empty())?)
}

fn directory_flags() -> OFlags {
    OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC
}

/// Copies what is in `from` into the empty directory `to`, which gets its owner, mode and attributes too. Devices
/// and sockets are left out.
///
/// # Errors
/// If the disk refuses, or the tree is deeper than any should be. `to` is then half full.
pub fn tree(from: &OwnedFd, to: &OwnedFd) -> io::Result<()> {
    descend(from, to, 0)?;
    rustix::fs::syncfs(to)?;
    Ok(())
}

fn descend(from: &OwnedFd, to: &OwnedFd, depth: usize) -> io::Result<()> {
    if depth > DEPTH_MAX {
        return Err(io::Error::other(format!("it is deeper than {DEPTH_MAX} directories")));
    }
    for entry in Dir::read_from(from)? {
        let entry = entry?;
        let name = entry.file_name();
        if matches!(name.to_bytes(), b"." | b"..") {
            continue;
        }
        let stat = match statat(from, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => stat,
            // Removed since it was listed.
            Err(Errno::NOENT) => continue,
            Err(error) => return Err(error.into()),
        };
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => {
                let inner = openat(from, name, directory_flags(), Mode::empty())?;
                mkdirat(to, name, Mode::from_raw_mode(0o700))?;
                let copy = openat(to, name, directory_flags(), Mode::empty())?;
                descend(&inner, &copy, depth + 1)?;
            }
            FileType::RegularFile => file(from, to, name)?,
            FileType::Symlink => {
                symlinkat(readlinkat(from, name, Vec::new())?, to, name)?;
                chownat(to, name, uid(&stat), gid(&stat), AtFlags::SYMLINK_NOFOLLOW)?;
                utimensat(to, name, &times(&stat), AtFlags::SYMLINK_NOFOLLOW)?;
            }
            FileType::Fifo => {
                mknodat(to, name, FileType::Fifo, Mode::from_raw_mode(stat.st_mode & 0o777), 0)?;
                chownat(to, name, uid(&stat), gid(&stat), AtFlags::SYMLINK_NOFOLLOW)?;
            }
            _ => {}
        }
    }
    belongings(from, to)
}

fn file(from: &OwnedFd, to: &OwnedFd, name: &std::ffi::CStr) -> io::Result<()> {
    // Not to wait, should it have become something else meanwhile.
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let source = match openat(from, name, flags, Mode::empty()) {
        Ok(source) => source,
        Err(Errno::NOENT) => return Ok(()),
        Err(error) => return Err(error.into()),
    };
    if FileType::from_raw_mode(fstat(&source)?.st_mode) != FileType::RegularFile {
        return Ok(());
    }
    let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let copy = openat(to, name, flags, Mode::from_raw_mode(0o600))?;
    if ioctl_ficlone(&copy, &source).is_err() {
        let (mut source, mut copy) = (File::from(source.try_clone()?), File::from(copy.try_clone()?));
        io::copy(&mut source, &mut copy)?;
    }
    belongings(&source, &copy)
}

/// Owner, attributes, mode and times, in the order in which one does not undo the other.
fn belongings(from: &OwnedFd, to: &OwnedFd) -> io::Result<()> {
    let stat = fstat(from)?;
    fchown(to, uid(&stat), gid(&stat))?;
    attributes(from, to)?;
    fchmod(to, Mode::from_raw_mode(stat.st_mode & 0o7777))?;
    Ok(futimens(to, &times(&stat))?)
}

fn attributes(from: &impl AsFd, to: &impl AsFd) -> io::Result<()> {
    let mut names = vec![0; XATTR_MAX];
    let length = match flistxattr(from, &mut names[..]) {
        Ok(length) => length,
        Err(Errno::OPNOTSUPP) => return Ok(()),
        Err(error) => return Err(error.into()),
    };
    for name in names[..length].split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
        let kept = name.starts_with(b"user.") && !name.starts_with(b"user.overlay.")
            || name == b"security.capability"
            || name.starts_with(b"system.posix_acl_");
        let mut value = vec![0; XATTR_MAX];
        if kept && let Ok(length) = fgetxattr(from, name, &mut value[..]) {
            match fsetxattr(to, name, &value[..length], XattrFlags::empty()) {
                Ok(()) | Err(Errno::OPNOTSUPP | Errno::PERM) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
    Ok(())
}

fn uid(stat: &Stat) -> Option<Uid> {
    Some(Uid::from_raw(stat.st_uid))
}

fn gid(stat: &Stat) -> Option<Gid> {
    Some(Gid::from_raw(stat.st_gid))
}

fn times(stat: &Stat) -> Timestamps {
    let time = |seconds, nanos| Timespec { tv_sec: seconds, tv_nsec: i64::try_from(nanos).unwrap_or(0) };
    Timestamps {
        last_access: time(stat.st_atime, stat.st_atime_nsec),
        last_modification: time(stat.st_mtime, stat.st_mtime_nsec),
    }
}
