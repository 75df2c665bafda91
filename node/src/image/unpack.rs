//! Layers become directories that overlayfs can stack.
//!
//! Every path is resolved beneath the layer's directory by the kernel (`openat2`, `RESOLVE_IN_ROOT`), so a
//! symbolic link in a layer, whatever it says, leads to a place in that layer. Deletions in the image format are
//! files named `.wh.*`; here they become overlayfs's own: a character device 0:0, or an `opaque` attribute.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, BufReader, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{
    AtFlags, FileType, Gid, Mode, OFlags, ResolveFlags, Timespec, Timestamps, Uid, XattrFlags, chownat,
    fchmod, fchown, fsetxattr, futimens, linkat, mkdirat, mknodat, openat2, statat, symlinkat, unlinkat,
    utimensat,
};
use rustix::io::Errno;

use super::digest::Metered;
use super::tarball::{Entry, Kind, Reader};
use super::{Digest, Limits};

const WHITEOUT: &[u8] = b".wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";
/// How many directories get their modification time back; it is cosmetic, and the list is memory.
const DATED_DIRECTORIES_MAX: usize = 100_000;
/// The deepest path that is unpacked.
const DEPTH_MAX: usize = 512;

/// How overlayfs attributes are spelt on this machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Marks {
    /// `trusted.overlay.*`: needs CAP_SYS_ADMIN in the first user namespace.
    Trusted,
    /// `user.overlay.*`: for mounts with the option `userxattr`, in a user namespace.
    User,
}

impl Marks {
    pub fn opaque(self) -> &'static str {
        match self {
            Self::Trusted => "trusted.overlay.opaque",
            Self::User => "user.overlay.opaque",
        }
    }
}

/// Unpacks the layer in `blob` into the empty directory `root` and returns the digest of the uncompressed tar.
///
/// # Errors
/// An [`io::Error`] that says which entry was refused or where the bytes ended. `root` is then half full: remove it.
pub fn layer(blob: impl Read, root: &Path, marks: Marks, limits: &Limits) -> io::Result<Digest> {
    let mut unpacker = Unpacker::new(root, marks, limits)?;
    // Padding and headers may exceed the data, but not without bound.
    let most =
        limits.layer_bytes.saturating_add(limits.layer_entries.saturating_mul(2048)).saturating_add(1 << 20);
    let mut reader = Reader::new(Metered::new(decompress(blob)?, most));
    while let Some(entry) = reader.next()? {
        unpacker.entry(&entry, &mut reader).map_err(|error| {
            io::Error::new(error.kind(), format!("entry `{}`: {}", entry.name(), plain(&error)))
        })?;
    }
    unpacker.date_directories();
    reader.into_inner().finish()
}

/// The decompressor that the first bytes ask for.
pub fn decompress<'a>(blob: impl Read + 'a) -> io::Result<Box<dyn Read + 'a>> {
    let mut blob = BufReader::with_capacity(1 << 17, blob);
    let magic = io::BufRead::fill_buf(&mut blob)?;
    Ok(match magic {
        [0x1f, 0x8b, ..] => Box::new(flate2::bufread::MultiGzDecoder::new(blob)),
        [0x28, 0xb5, 0x2f, 0xfd, ..] => Box::new(zstd::Decoder::with_buffer(blob)?),
        [0xfd, b'7', b'z', b'X', b'Z', ..] | [b'B', b'Z', b'h', ..] => {
            return Err(bad(
                "it is compressed with xz or bzip2; only gzip, zstd and plain tar are supported",
            ));
        }
        _ => Box::new(blob),
    })
}

fn bad(why: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why.into())
}

/// Words for the errors that a damaged or hostile layer provokes most.
pub fn plain(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::UnexpectedEof => "the data ends too early".into(),
        _ => error.to_string(),
    }
}

struct Unpacker<'a> {
    root: OwnedFd,
    marks: Marks,
    limits: &'a Limits,
    entries: u64,
    bytes: u64,
    dated: Vec<(PathBuf, i64)>,
    /// The directory of the last entry, since entries come sorted.
    last: Option<(Vec<u8>, OwnedFd)>,
}

impl<'a> Unpacker<'a> {
    fn new(root: &Path, marks: Marks, limits: &'a Limits) -> io::Result<Self> {
        let root = OwnedFd::from(File::open(root)?);
        fchmod(&root, Mode::from_raw_mode(0o755))?;
        Ok(Self { root, marks, limits, entries: 0, bytes: 0, dated: Vec::new(), last: None })
    }

    fn entry(&mut self, entry: &Entry, data: &mut impl Read) -> io::Result<()> {
        self.entries += 1;
        if self.entries > self.limits.layer_entries {
            return Err(bad(format!("the layer has more than {} entries", self.limits.layer_entries)));
        }
        let parts = parts(&entry.path)?;
        let Some((name, parents)) = parts.split_last() else {
            return if entry.kind == Kind::Directory { self.own_directory(entry) } else { Ok(()) };
        };
        // Bookkeeping of aufs, which no image needs.
        if *name != OPAQUE && parts.iter().any(|part| part.starts_with(b".wh..wh.")) {
            return Ok(());
        }
        if parents.iter().any(|part| part.starts_with(WHITEOUT)) {
            return Err(bad("it lies inside a whiteout"));
        }
        // Each container gets a /dev of its own over the image's, so what is there can never be opened.
        if entry.kind == Kind::Device && parts[0] == b"dev" && !name.starts_with(WHITEOUT) {
            return Ok(());
        }
        let parent = self.directory(parents)?;
        if *name == OPAQUE {
            let directory = real_directory(&parent, b".")?;
            return Ok(fsetxattr(directory, self.marks.opaque(), b"y", XattrFlags::empty())?);
        }
        if let Some(hidden) = name.strip_prefix(WHITEOUT) {
            return self.whiteout(&parent, hidden);
        }
        self.create(entry, &parent, name, data)
    }

    /// The root directory's own entry.
    fn own_directory(&self, entry: &Entry) -> io::Result<()> {
        self.chown(|uid, gid| fchown(&self.root, uid, gid), entry)?;
        Ok(fchmod(&self.root, Mode::from_raw_mode(entry.mode))?)
    }

    /// Opens a directory beneath the root, creating what is missing.
    fn directory(&mut self, parts: &[&[u8]]) -> io::Result<OwnedFd> {
        let path = parts.join(&b'/');
        if let Some((last, directory)) = &self.last
            && *last == path
        {
            return directory.try_clone();
        }
        let directory = match self.open_directory(&path) {
            Ok(directory) => directory,
            Err(Errno::NOENT | Errno::NOTDIR) => self.make_directories(parts)?,
            Err(error) => return Err(error.into()),
        };
        self.last = Some((path, directory.try_clone()?));
        Ok(directory)
    }

    fn open_directory(&self, path: &[u8]) -> Result<OwnedFd, Errno> {
        if path.is_empty() {
            return rustix::io::fcntl_dupfd_cloexec(&self.root, 3);
        }
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        openat2(&self.root, path, flags, Mode::empty(), ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS)
    }

    fn make_directories(&self, parts: &[&[u8]]) -> io::Result<OwnedFd> {
        let mut directory = self.root.try_clone()?;
        for end in 1..=parts.len() {
            let name = parts[end - 1];
            directory = match self.open_directory(&parts[..end].join(&b'/')) {
                Ok(next) => next,
                Err(Errno::NOENT | Errno::NOTDIR) => {
                    match kind_of(&directory, name)? {
                        None => make_directory(&directory, name)?,
                        Some(Found::Whiteout) => self.replace_whiteout(&directory, name)?,
                        Some(_) => {
                            return Err(bad(format!(
                                "`{}` is not a directory, or is a link that leads to none",
                                String::from_utf8_lossy(name)
                            )));
                        }
                    }
                    real_directory(&directory, name)?
                }
                Err(error) => return Err(error.into()),
            };
        }
        Ok(directory)
    }

    /// A directory where this layer deleted what the layers below have: new and opaque.
    fn replace_whiteout(&self, parent: &OwnedFd, name: &[u8]) -> io::Result<()> {
        unlinkat(parent, name, AtFlags::empty())?;
        make_directory(parent, name)?;
        Ok(fsetxattr(real_directory(parent, name)?, self.marks.opaque(), b"y", XattrFlags::empty())?)
    }

    /// Hides `name` of the layers below. What this layer itself has under that name stays.
    fn whiteout(&self, parent: &OwnedFd, name: &[u8]) -> io::Result<()> {
        if matches!(name, b"" | b"." | b"..") {
            return Err(bad("it is a whiteout of nothing"));
        }
        match kind_of(parent, name)? {
            None => Ok(mknodat(parent, name, FileType::CharacterDevice, Mode::empty(), 0)?),
            Some(Found::Directory) => {
                Ok(fsetxattr(real_directory(parent, name)?, self.marks.opaque(), b"y", XattrFlags::empty())?)
            }
            Some(Found::Whiteout | Found::Other) => Ok(()),
        }
    }

    fn create(
        &mut self,
        entry: &Entry,
        parent: &OwnedFd,
        name: &[u8],
        data: &mut impl Read,
    ) -> io::Result<()> {
        let found = kind_of(parent, name)?;
        if found.is_some() && entry.kind != Kind::Directory {
            // What is replaced may have been on the way to the directory remembered.
            self.last = None;
        }
        match (found, entry.kind) {
            (None, _) | (Some(Found::Directory), Kind::Directory) => {}
            (Some(Found::Whiteout), Kind::Directory) => self.replace_whiteout(parent, name)?,
            (Some(Found::Directory), _) => {
                unlinkat(parent, name, AtFlags::REMOVEDIR)
                    .map_err(|_| bad("it would replace a directory that is not empty"))?;
            }
            (Some(Found::Whiteout | Found::Other), Kind::HardLink)
                if self.is_itself(entry, parent, name)? =>
            {
                return Ok(());
            }
            (Some(Found::Whiteout | Found::Other), _) => unlinkat(parent, name, AtFlags::empty())?,
        }
        match entry.kind {
            Kind::File => self.file(entry, parent, name, data),
            Kind::HardLink => self.hard_link(entry, parent, name),
            Kind::Directory => self.make_entry_directory(entry, parent, name),
            Kind::Symlink => {
                if entry.link.is_empty() {
                    return Err(bad("it is a link without a target"));
                }
                symlinkat(&entry.link[..], parent, name)?;
                self.own_by_name(entry, parent, name)
            }
            Kind::Fifo => {
                mknodat(parent, name, FileType::Fifo, Mode::from_raw_mode(0o600), 0)?;
                self.own_by_name(entry, parent, name)?;
                Ok(rustix::fs::chmodat(parent, name, Mode::from_raw_mode(entry.mode), AtFlags::empty())?)
            }
            Kind::Device => Err(bad("device nodes are not allowed in an image")),
        }
    }

    fn file(&mut self, entry: &Entry, parent: &OwnedFd, name: &[u8], data: &mut impl Read) -> io::Result<()> {
        self.bytes = self.bytes.saturating_add(entry.size);
        if self.bytes > self.limits.layer_bytes {
            return Err(bad(format!("the layer unpacks to more than {} bytes", self.limits.layer_bytes)));
        }
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mode = Mode::from_raw_mode(0o600);
        let file = openat2(parent, name, flags, mode, ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS)?;
        let mut file = File::from(file);
        io::copy(data, &mut file)?;
        file.flush()?;
        // Ownership before the mode: a change of owner clears setuid.
        self.chown(|uid, gid| fchown(&file, uid, gid), entry)?;
        set_xattrs(entry, file.as_fd())?;
        fchmod(&file, Mode::from_raw_mode(entry.mode))?;
        Ok(futimens(&file, &times(entry.mtime))?)
    }

    fn hard_link(&mut self, entry: &Entry, parent: &OwnedFd, name: &[u8]) -> io::Result<()> {
        let (directory, target) = self.link_target(entry)?;
        match kind_of(&directory, &target)? {
            Some(Found::Other) => {}
            Some(_) => return Err(bad("it is a hard link to a directory or to a deleted file")),
            None => return Err(bad("it is a hard link to a file that this layer does not have")),
        }
        Ok(linkat(&directory, &target[..], parent, name, AtFlags::empty())?)
    }

    fn link_target(&self, entry: &Entry) -> io::Result<(OwnedFd, Vec<u8>)> {
        let parts = parts(&entry.link)?;
        let (name, parents) = parts.split_last().ok_or_else(|| bad("it is a link without a target"))?;
        let directory = self
            .open_directory(&parents.join(&b'/'))
            .map_err(|_| bad("it is a hard link to a file that this layer does not have"))?;
        Ok((directory, name.to_vec()))
    }

    /// Whether a hard link links a file to itself.
    fn is_itself(&self, entry: &Entry, parent: &OwnedFd, name: &[u8]) -> io::Result<bool> {
        let (directory, target) = self.link_target(entry)?;
        let of = |directory: &OwnedFd, name: &[u8]| {
            statat(directory, name, AtFlags::SYMLINK_NOFOLLOW).map(|stat| (stat.st_dev, stat.st_ino)).ok()
        };
        Ok(of(&directory, &target).is_some_and(|target| of(parent, name) == Some(target)))
    }

    fn make_entry_directory(&mut self, entry: &Entry, parent: &OwnedFd, name: &[u8]) -> io::Result<()> {
        if kind_of(parent, name)?.is_none() {
            make_directory(parent, name)?;
        }
        let directory = real_directory(parent, name)?;
        self.chown(|uid, gid| fchown(&directory, uid, gid), entry)?;
        set_xattrs(entry, directory.as_fd())?;
        fchmod(&directory, Mode::from_raw_mode(entry.mode))?;
        if self.dated.len() < DATED_DIRECTORIES_MAX {
            self.dated
                .push((PathBuf::from(OsStr::from_bytes(&parts(&entry.path)?.join(&b'/'))), entry.mtime));
        }
        Ok(())
    }

    fn own_by_name(&self, entry: &Entry, parent: &OwnedFd, name: &[u8]) -> io::Result<()> {
        self.chown(|uid, gid| chownat(parent, name, uid, gid, AtFlags::SYMLINK_NOFOLLOW), entry)?;
        Ok(utimensat(parent, name, &times(entry.mtime), AtFlags::SYMLINK_NOFOLLOW)?)
    }

    /// Gives an entry its owner. In a user namespace that has not this number, the owner stays ours.
    fn chown(
        &self,
        chown: impl FnOnce(Option<Uid>, Option<Gid>) -> Result<(), Errno>,
        entry: &Entry,
    ) -> io::Result<()> {
        match chown(Some(Uid::from_raw(entry.uid)), Some(Gid::from_raw(entry.gid))) {
            Err(Errno::PERM | Errno::INVAL) if self.marks == Marks::User => Ok(()),
            result => Ok(result?),
        }
    }

    /// Filling a directory changes its time, so times come last. A directory that is gone needs none.
    fn date_directories(&self) {
        for (path, mtime) in self.dated.iter().rev() {
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
            if let Ok(directory) = openat2(&self.root, path, flags, Mode::empty(), resolve) {
                let _ = futimens(directory, &times(*mtime));
            }
        }
    }
}

/// The path's names. An absolute path is meant from the layer's root; `..` is refused.
fn parts(path: &[u8]) -> io::Result<Vec<&[u8]>> {
    let parts: Vec<&[u8]> =
        path.split(|byte| *byte == b'/').filter(|part| !matches!(*part, b"" | b".")).collect();
    if parts.contains(&&b".."[..]) {
        return Err(bad("its path contains `..`"));
    }
    if parts.len() > DEPTH_MAX {
        return Err(bad(format!("its path is deeper than {DEPTH_MAX} directories")));
    }
    Ok(parts)
}

enum Found {
    Directory,
    /// The 0:0 device of overlayfs. Devices are refused, so all there are were made here.
    Whiteout,
    Other,
}

fn kind_of(parent: &OwnedFd, name: &[u8]) -> io::Result<Option<Found>> {
    match statat(parent, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => Ok(Some(match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => Found::Directory,
            FileType::CharacterDevice => Found::Whiteout,
            _ => Found::Other,
        })),
        Err(Errno::NOENT) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

fn make_directory(parent: &OwnedFd, name: &[u8]) -> io::Result<()> {
    mkdirat(parent, name, Mode::from_raw_mode(0o755))?;
    Ok(fchmod(real_directory(parent, name)?, Mode::from_raw_mode(0o755))?)
}

/// Opens a directory that is not a link, so that it can be changed.
fn real_directory(parent: &OwnedFd, name: &[u8]) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(openat2(parent, name, flags, Mode::empty(), ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS)?)
}

/// Attributes that change what a file may do are kept, those that steer overlayfs refused, foreign ones left out.
fn set_xattrs(entry: &Entry, file: BorrowedFd<'_>) -> io::Result<()> {
    for (key, value) in &entry.xattrs {
        if key.starts_with(b"trusted.") || key.starts_with(b"user.overlay.") {
            return Err(bad(format!(
                "the attribute `{}` is not allowed in an image",
                String::from_utf8_lossy(key)
            )));
        }
        if !(key.starts_with(b"user.")
            || key == b"security.capability"
            || key.starts_with(b"system.posix_acl_"))
        {
            continue;
        }
        match fsetxattr(file, &key[..], value, XattrFlags::empty()) {
            Ok(()) | Err(Errno::OPNOTSUPP | Errno::PERM) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

fn times(mtime: i64) -> Timestamps {
    let time = Timespec { tv_sec: mtime, tv_nsec: 0 };
    Timestamps { last_access: time, last_modification: time }
}
