//! Into a root.

use super::{DEPTH_MAX, Ids, Root, bad, find};
use crate::image::tarball::{Entry, Kind, Reader};
use rustix::fs::{
    AtFlags, FileType, Gid, Mode, OFlags, ResolveFlags, Timespec, Timestamps, Uid, chownat, fchmod, fchown,
    fstat, futimens, linkat, mkdirat, mknodat, openat2, statat, symlinkat, unlinkat, utimensat,
};
use rustix::io::Errno;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// Where what is in an archive goes.
#[derive(Clone, Debug, Default)]
pub struct Target {
    /// The archive is one file or directory, to be called so if the path is a directory. None: it is unpacked as it is
    /// in the directory at the path.
    pub name: Option<OsString>,
    /// What is in the archive's directory is meant, and not the directory itself.
    pub contents: bool,
    /// Files keep their owners, and rights that come with them. Else they are ours.
    pub archive: bool,
}

/// Unpacks an archive at `path` beneath `root`, as `cp` would: into a directory that is there, or as what the path
/// says.
///
/// # Errors
/// If the archive is damaged or leads out of where it is unpacked, a directory is missing, or the system refuses.
pub fn unpack(root: &Root, path: &Path, target: &Target, archive: impl Read + Send) -> io::Result<()> {
    let Some(ids) = root.ids else { return put_all(root, path, target, archive) };
    std::thread::scope(|scope| {
        let work = scope.spawn(|| ids.make_as_root().and_then(|()| put_all(root, path, target, archive)));
        work.join().unwrap_or_else(|_| Err(io::Error::other("the unpacking has panicked")))
    })
}

fn put_all(root: &Root, path: &Path, target: &Target, archive: impl Read) -> io::Result<()> {
    let mut reader = Reader::new(archive);
    let Some(mut entry) = reader.next()? else {
        return Ok(());
    };
    let base = Base::find(root, path, target, &entry)?;
    let mut dated = Vec::new();
    loop {
        base.put(&entry, &mut reader, target.archive, &mut dated)
            .map_err(|error| io::Error::new(error.kind(), format!("`{}`: {error}", entry.name())))?;
        match reader.next()? {
            Some(next) => entry = next,
            None => break,
        }
    }
    // What is put into a directory changes its time.
    for (directory, mtime) in dated.iter().rev() {
        let _ = futimens(directory, &times(*mtime));
    }
    // Whoever sends goes on to the end of the archive's last block.
    io::copy(&mut reader.into_inner(), &mut io::sink()).map(drop)
}

/// What becomes of the first name of every path in the archive.
enum First {
    Kept,
    Renamed(OsString),
    Dropped,
}

struct Base {
    directory: OwnedFd,
    first: First,
    /// The archive is of a root, which has no name: paths in it begin with what lies there.
    nameless: bool,
    ids: Option<Ids>,
}

/// How many directories get their time back, each of which stays open until the end.
const DATED_MAX: usize = 512;

impl Base {
    /// `entry` is the archive's first.
    fn find(root: &Root, path: &Path, target: &Target, entry: &Entry) -> io::Result<Self> {
        let (root, ids) = (&root.directory, root.ids);
        let is_directory = entry.kind == Kind::Directory;
        let nameless = matches!(&entry.path[..], b"." | b"./" | b"/");
        let shown = path.display();
        let as_directory = path.as_os_str().as_bytes().ends_with(b"/");
        let found = match find(root, path, OFlags::empty()) {
            Ok(found) => Some(found),
            Err(Errno::NOENT) => None,
            Err(error) => return Err(error.into()),
        };
        let there = found.as_ref().map(fstat).transpose()?;
        let there = there.map(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::Directory);
        match (found, there, &target.name) {
            (Some(directory), Some(true), None) => Ok(Self { directory, first: First::Kept, nameless, ids }),
            (_, _, None) => Err(bad(format!("{shown} is not a directory to unpack an archive in"))),
            (Some(directory), Some(true), Some(_)) if target.contents => {
                Ok(Self { directory, first: First::Dropped, nameless, ids })
            }
            (Some(directory), Some(true), Some(name)) => {
                Ok(Self { directory, first: First::Renamed(name.clone()), nameless, ids })
            }
            (Some(_), _, Some(_)) if is_directory || as_directory => {
                Err(bad(format!("{shown} is not a directory")))
            }
            (None, _, Some(_)) if as_directory && !is_directory => {
                Err(bad(format!("there is no directory {shown}")))
            }
            (_, _, Some(_)) => {
                let name = path.file_name().ok_or_else(|| bad(format!("{shown} names no file")))?;
                let parent = path.parent().unwrap_or(Path::new("/"));
                let directory = find(root, parent, OFlags::DIRECTORY).map_err(|error| {
                    io::Error::new(error.kind(), format!("{}: {error}", parent.display()))
                })?;
                Ok(Self { directory, first: First::Renamed(name.to_owned()), nameless, ids })
            }
        }
    }

    /// The names of a path beneath the base.
    fn names<'a>(&'a self, path: &'a [u8]) -> io::Result<Vec<&'a [u8]>> {
        let mut names: Vec<&[u8]> =
            path.split(|byte| *byte == b'/').filter(|name| !matches!(*name, b"" | b".")).collect();
        if names.contains(&&b".."[..]) {
            return Err(bad("its path contains `..`"));
        }
        if names.len() > DEPTH_MAX {
            return Err(bad(format!("it is deeper than {DEPTH_MAX} directories")));
        }
        // The root of a file system, and what was packed as `.`, has no name.
        let has_name = !self.nameless && !matches!(path, b"." | b"./" | b"/") && !path.starts_with(b"./");
        match &self.first {
            First::Kept => {}
            First::Renamed(name) if has_name && !names.is_empty() => names[0] = name.as_bytes(),
            First::Renamed(name) => names.insert(0, name.as_bytes()),
            First::Dropped if has_name && !names.is_empty() => drop(names.remove(0)),
            First::Dropped => {}
        }
        Ok(names)
    }

    fn put(
        &self,
        entry: &Entry,
        data: &mut impl Read,
        archive: bool,
        dated: &mut Vec<(OwnedFd, i64)>,
    ) -> io::Result<()> {
        let names = self.names(&entry.path)?;
        let Some((name, parents)) = names.split_last() else { return Ok(()) };
        let parent = self.parent(parents)?;
        let present = match statat(&parent, *name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => Some(FileType::from_raw_mode(stat.st_mode)),
            Err(Errno::NOENT) => None,
            Err(error) => return Err(error.into()),
        };
        match (present, entry.kind) {
            (None, _) | (Some(FileType::Directory), Kind::Directory) => {}
            (Some(FileType::Directory), _) => return Err(bad("a directory is in its place")),
            (Some(_), Kind::Directory) => return Err(bad("something that is no directory is in its place")),
            (Some(_), _) => unlinkat(&parent, *name, AtFlags::empty())?,
        }
        let mode = Mode::from_raw_mode(entry.mode & if archive { 0o7777 } else { 0o777 });
        let here = |id: u32| self.ids.filter(|_| archive).map_or(Ok(id), |ids| ids.here(id));
        let (uid, gid) = (Some(Uid::from_raw(here(entry.uid)?)), Some(Gid::from_raw(here(entry.gid)?)));
        match entry.kind {
            Kind::File => {
                let flags =
                    OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let file = openat2(&parent, *name, flags, Mode::from_raw_mode(0o600), CONTAINED)?;
                let mut file = File::from(file);
                io::copy(data, &mut file)?;
                if archive {
                    fchown(&file, uid, gid)?;
                }
                fchmod(&file, mode)?;
                Ok(futimens(&file, &times(entry.mtime))?)
            }
            Kind::Directory => {
                if present.is_none() {
                    mkdirat(&parent, *name, Mode::from_raw_mode(0o700))?;
                }
                let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let directory = openat2(&parent, *name, flags, Mode::empty(), CONTAINED)?;
                if archive {
                    fchown(&directory, uid, gid)?;
                }
                // One that was there keeps its own rights, as with `cp`.
                if present.is_none() {
                    fchmod(&directory, mode)?;
                    if dated.len() < DATED_MAX {
                        dated.push((directory, entry.mtime));
                    }
                }
                Ok(())
            }
            Kind::Symlink => {
                symlinkat(&entry.link[..], &parent, *name)?;
                if archive {
                    chownat(&parent, *name, uid, gid, AtFlags::SYMLINK_NOFOLLOW)?;
                }
                Ok(utimensat(&parent, *name, &times(entry.mtime), AtFlags::SYMLINK_NOFOLLOW)?)
            }
            Kind::HardLink => {
                let names = self.names(&entry.link)?;
                let (target, parents) = names.split_last().ok_or_else(|| bad("it is a link to nothing"))?;
                Ok(linkat(&self.parent(parents)?, *target, &parent, *name, AtFlags::empty())?)
            }
            Kind::Fifo => Ok(mknodat(&parent, *name, FileType::Fifo, mode, 0)?),
            Kind::Device => Err(bad("devices are not copied")),
        }
    }

    /// Opens a directory beneath the base, making what is missing. A link on the way is refused.
    fn parent(&self, names: &[&[u8]]) -> io::Result<OwnedFd> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let mut directory = rustix::io::fcntl_dupfd_cloexec(&self.directory, 3)?;
        if names.is_empty() {
            return Ok(directory);
        }
        match openat2(&directory, OsStr::from_bytes(&names.join(&b'/')), flags, Mode::empty(), CONTAINED) {
            Err(Errno::NOENT) => {}
            found => return Ok(found?),
        }
        for name in names {
            match mkdirat(&directory, *name, Mode::from_raw_mode(0o755)) {
                Ok(()) | Err(Errno::EXIST) => {}
                Err(error) => return Err(error.into()),
            }
            directory = openat2(&directory, *name, flags, Mode::empty(), CONTAINED)?;
        }
        Ok(directory)
    }
}

const CONTAINED: ResolveFlags =
    ResolveFlags::BENEATH.union(ResolveFlags::NO_SYMLINKS).union(ResolveFlags::NO_MAGICLINKS);

fn times(mtime: i64) -> Timestamps {
    let time = Timespec { tv_sec: mtime, tv_nsec: 0 };
    Timestamps { last_access: time, last_modification: time }
}
