//! The container's view of files: its overlay root and everything mounted in it.
//!
//! **Invariant:** sources are taken as detached mounts before the pivot, targets are resolved by descriptor beneath
//! the new root after it, and the two meet by descriptor only; a symbolic link in the image can point nowhere else.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;
use std::ptr;

use rswarm_shim::protocol::ROOT_DIR;

use crate::bundle::{Bundle, DeviceNode, Mount};
use crate::sys::{
    self, Failure, FileSystem, MOUNT_NODEV, MOUNT_NOEXEC, MOUNT_NOSUID, MOUNT_RDONLY, RESOLVE_IN_ROOT,
    RESOLVE_NO_MAGICLINKS, RESOLVE_NO_SYMLINKS, Result, c_path, c_string, check, words,
};
use crate::users::Users;

/// Builds the root, moves this process into it, and lets go of the old one.
pub fn build(bundle: &Bundle, users: Option<&Users>) -> Result<()> {
    // What is made has the mode it is made with: to change it afterwards, by its name, could hit what a link leads to.
    // SAFETY: a call on this process only, which sets its mask anew before it becomes a program.
    unsafe { libc::umask(0) };
    mount_old_way(None, c"/", None, libc::MS_PRIVATE | libc::MS_REC, None, "make mounts private")?;
    if let Some(users) = users {
        users.make_as_root()?;
        // What of the container's own directory is seen in the container is seen through this.
        users.cover(&bundle.directory)?;
        bundle.launch.lower.iter().try_for_each(|layer| users.cover(layer))?;
    }
    let place = bundle.directory.join(ROOT_DIR);
    mount_root(bundle, &place)?;
    // Proc and sysfs are refused to a mount namespace in which no other instance is in full view, so all file
    // systems are made before the old root goes.
    let mut mounts = Vec::new();
    for mount in &bundle.spec.mounts {
        let failed =
            |failure: Failure| Failure::setup(format!("mount {}: {}", mount.destination, failure.message));
        if mount.kind.as_deref() == Some("cgroup") {
            mounts.extend(cgroup_views(mount, bundle).map_err(failed)?);
        } else {
            mounts.push((mount.destination.clone(), detached(mount, bundle, users).map_err(failed)?));
        }
        if mount.destination == "/dev" && sys::in_user_namespace() {
            mounts.extend(host_devices()?);
        }
    }
    pivot(&place)?;

    let root = sys::open(Path::new("/"), libc::O_PATH | libc::O_DIRECTORY)?;
    for (destination, source) in &mounts {
        attach(&root, source, destination)?;
    }
    bundle.spec.linux.devices.iter().try_for_each(|device| make_device(&root, device))?;
    if !bundle.spec.process.cwd.is_empty() {
        make_place(&root, &bundle.spec.process.cwd, true)
            .map_err(|error| Failure::io(format_args!("make workdir {}", bundle.spec.process.cwd), &error))?;
    }
    set_sysctls(bundle, &root)?;
    if bundle.spec.root.readonly {
        sys::set_attributes(&root, MOUNT_RDONLY, false)?;
    }
    for path in &bundle.spec.linux.readonly_paths {
        let Some(target) = existing(&root, path)? else {
            continue;
        };
        let copy = sys::open_tree(target.as_raw_fd(), "", true)?;
        sys::set_attributes(&copy, MOUNT_RDONLY | MOUNT_NOSUID | MOUNT_NODEV | MOUNT_NOEXEC, true)?;
        sys::move_mount(&copy, &target)?;
    }
    for path in &bundle.spec.linux.masked_paths {
        if let Some(target) = existing(&root, path)? {
            mask(&root, &target)?;
        }
    }
    Ok(())
}

/// Mounts the root, without what is mounted in it, where only this process and its children see it.
pub fn build_for_another(bundle: &Bundle, place: &Path) -> Result<()> {
    // SAFETY: a call on this process only, which has one thread.
    check(unsafe { libc::unshare(libc::CLONE_NEWNS) }, "unshare mount namespace")?;
    mount_old_way(None, c"/", None, libc::MS_PRIVATE | libc::MS_REC, None, "make mounts private")?;
    mount_root(bundle, place)
}

/// `mount(2)`, where the new interface has no equal.
fn mount_old_way(
    source: Option<&std::ffi::CStr>,
    target: &std::ffi::CStr,
    kind: Option<&std::ffi::CStr>,
    flags: libc::c_ulong,
    data: Option<&std::ffi::CStr>,
    what: &str,
) -> Result<()> {
    let pointer = |text: Option<&std::ffi::CStr>| text.map_or(ptr::null(), |text| text.as_ptr());
    // SAFETY: each pointer is null or a C string that outlives the call.
    let result =
        unsafe { libc::mount(pointer(source), target.as_ptr(), pointer(kind), flags, pointer(data).cast()) };
    check(result, what).map(drop)
}

fn mount_root(bundle: &Bundle, place: &Path) -> Result<()> {
    let launch = &bundle.launch;
    let target = sys::open(place, libc::O_PATH | libc::O_DIRECTORY)?;
    if launch.lower.is_empty() {
        let path = bundle.directory.join(&bundle.spec.root.path);
        let tree = sys::open_tree(libc::AT_FDCWD, &path.to_string_lossy(), true)?;
        return sys::move_mount(&tree, &target);
    }
    let overlay = FileSystem::open("overlay")?;
    let bytes = |path: &'_ Path| path.as_os_str().as_encoded_bytes().to_vec();
    let set = |key: &str, path: &Path| {
        let refused = |error| Failure::io(format_args!("overlay {key}={}", path.display()), &error);
        overlay.set(key, Some(&bytes(path))).map_err(refused)
    };
    for (index, layer) in launch.lower.iter().enumerate() {
        match overlay.set("lowerdir+", Some(&bytes(layer))) {
            Ok(()) => {}
            // From Linux 6.5 to 6.7 there is no such option.
            Err(error) if index == 0 && error.raw_os_error() == Some(libc::EINVAL) && layer.is_dir() => {
                return mount_overlay_in_one(bundle, place);
            }
            Err(error) => return Err(Failure::io(format_args!("overlay layer {}", layer.display()), &error)),
        }
    }
    if sys::in_user_namespace() {
        overlay.set("userxattr", None).map_err(|error| Failure::io("overlay userxattr", &error))?;
    }
    set("upperdir", &launch.upper)?;
    set("workdir", &launch.work)?;
    match overlay.mount(0) {
        Ok(tree) => sys::move_mount(&tree, &target),
        // Before, options were only looked at here; any other reason is told by the second attempt as well.
        Err(_) => mount_overlay_in_one(bundle, place),
    }
}

/// All layers in one string of at most a page, which is why each is named by its descriptor.
fn mount_overlay_in_one(bundle: &Bundle, place: &Path) -> Result<()> {
    let launch = &bundle.launch;
    let directories = launch.lower.iter().chain([&launch.upper, &launch.work]);
    let opened: Vec<OwnedFd> =
        directories.map(|path| sys::open(path, libc::O_PATH | libc::O_DIRECTORY)).collect::<Result<_>>()?;
    let mut names: Vec<String> =
        opened.iter().map(|fd| format!("/proc/self/fd/{}", fd.as_raw_fd())).collect();
    let (work, upper) = (names.pop().unwrap_or_default(), names.pop().unwrap_or_default());
    let marks = if sys::in_user_namespace() { ",userxattr" } else { "" };
    let data = c_string(format!("lowerdir={},upperdir={upper},workdir={work}{marks}", names.join(":")))?;
    let overlay = Some(c"overlay");
    mount_old_way(overlay, &c_path(place)?, overlay, 0, Some(&data), "mount overlay")
}

fn pivot(place: &Path) -> Result<()> {
    let name = c_path(place)?;
    // SAFETY: C strings that outlive the calls, on a process of one thread.
    unsafe {
        check(libc::chdir(name.as_ptr()), "enter the root")?;
        let here = c".".as_ptr();
        let pivoted = libc::syscall(libc::SYS_pivot_root, here, here);
        check(pivoted, "pivot_root (a root on the initial ramdisk cannot be left: use switch_root first)")?;
        // The old root is now stacked on the new one at the same place.
        check(libc::umount2(here, libc::MNT_DETACH), "detach the old root")?;
        check(libc::chdir(c"/".as_ptr()), "chdir /")?;
    }
    Ok(())
}

/// What a mount entry describes, not yet anywhere.
fn detached(mount: &Mount, bundle: &Bundle, users: Option<&Users>) -> Result<OwnedFd> {
    let (attributes, options) = split(&mount.options);
    let kind = mount.kind.as_deref().unwrap_or("bind");
    match kind {
        "bind" => {
            let Some(source) = &mount.source else {
                return Err(Failure::setup("a bind mount needs a source"));
            };
            let recursive = mount.options.iter().any(|option| option == "rbind");
            let source = bundle.directory.join(source);
            let tree = sys::open_tree(libc::AT_FDCWD, &source.to_string_lossy(), recursive)?;
            if let Some(users) = users.filter(|_| !source.starts_with(&bundle.directory)) {
                users.map(&tree, recursive).map_err(|failure| {
                    Failure::setup(format!(
                        "{} is on a file system that cannot be mounted for a container with users of its own: {}",
                        source.display(),
                        failure.message
                    ))
                })?;
            }
            if attributes != 0 {
                sys::set_attributes(&tree, attributes, recursive)?;
            }
            Ok(tree)
        }
        "proc" | "sysfs" | "tmpfs" | "devpts" | "mqueue" => {
            let file_system = FileSystem::open(kind)?;
            for (key, value) in options {
                // The group may not be mapped; terminals then belong to whoever opens them.
                if (kind, key) == ("devpts", "gid") && sys::in_user_namespace() {
                    continue;
                }
                let refused = |error| Failure::io(format_args!("option {key}"), &error);
                let group = value.and_then(|value| value.parse().ok()).filter(|_| key == "gid");
                let group = group.and_then(|gid| Some(users?.here(gid))).transpose()?;
                let value = group.map(|gid| gid.to_string()).or(value.map(str::to_owned));
                file_system.set(key, value.as_deref().map(str::as_bytes)).map_err(refused)?;
            }
            let mounted = file_system.mount(attributes)?;
            if kind == "tmpfs" && mount.destination == "/dev" {
                populate_dev(&mounted)?;
            }
            Ok(mounted)
        }
        other => Err(Failure::setup(format!("file system {other:?} is not supported"))),
    }
}

/// Mount attributes, and what is left for the file system itself.
fn split(options: &[String]) -> (u64, Vec<(&str, Option<&str>)>) {
    let mut attributes = 0;
    let mut rest = Vec::new();
    for option in options {
        match option.as_str() {
            "ro" => attributes |= MOUNT_RDONLY,
            "nosuid" => attributes |= MOUNT_NOSUID,
            "nodev" => attributes |= MOUNT_NODEV,
            "noexec" => attributes |= MOUNT_NOEXEC,
            "bind" | "rbind" | "rw" | "private" | "rprivate" | "relatime" | "strictatime" | "suid"
            | "dev" | "exec" => {}
            other => rest.push(match other.split_once('=') {
                Some((key, value)) => (key, Some(value)),
                None => (other, None),
            }),
        }
    }
    (attributes, rest)
}

/// The container's own cgroup, read-only, for programs that size themselves by their limits: one mount, or a
/// directory with one for each of the old hierarchies. Those are bound, because to mount a hierarchy anew takes the
/// kernel milliseconds.
fn cgroup_views(mount: &Mount, bundle: &Bundle) -> Result<Vec<(String, OwnedFd)>> {
    let Some(cgroup) = &bundle.launch.cgroup else {
        return Ok(Vec::new());
    };
    let attributes = MOUNT_RDONLY | MOUNT_NOSUID | MOUNT_NODEV | MOUNT_NOEXEC;
    let destination = &mount.destination;
    if cgroup.layout.unified_controls {
        return Ok(vec![(destination.clone(), FileSystem::open("cgroup2")?.mount(attributes)?)]);
    }
    let directory = FileSystem::open("tmpfs")?.mount(attributes & !MOUNT_RDONLY)?;
    let mut controllers = Vec::new();
    for (controller, hierarchy) in &cgroup.layout.controllers {
        let name = c_string(controller)?;
        // SAFETY: `name` is a C string that outlives the call; `directory` is an open directory.
        check(
            unsafe { libc::mkdirat(directory.as_raw_fd(), name.as_ptr(), 0o755) },
            "make a cgroup directory",
        )?;
        let own = hierarchy.join(&cgroup.path);
        let tree = sys::open_tree(libc::AT_FDCWD, &own.to_string_lossy(), false)?;
        sys::set_attributes(&tree, attributes, false)?;
        controllers.push((format!("{destination}/{controller}"), tree));
    }
    sys::set_attributes(&directory, MOUNT_RDONLY, false)?;
    let mut views = vec![(destination.clone(), directory)];
    views.append(&mut controllers);
    Ok(views)
}

/// What every container has in `/dev`: name, major and minor number.
const DEVICES: [(&str, u32, u32); 6] =
    [("null", 1, 3), ("zero", 1, 5), ("full", 1, 7), ("random", 1, 8), ("urandom", 1, 9), ("tty", 5, 0)];

/// The machine's own devices, for a container in a user namespace, where none can be made.
fn host_devices() -> Result<Vec<(String, OwnedFd)>> {
    let bind = |(name, ..): &(&str, u32, u32)| {
        let path = format!("/dev/{name}");
        let tree = sys::open_tree(libc::AT_FDCWD, &path, false)?;
        Ok((path, tree))
    };
    DEVICES.iter().map(bind).collect()
}

fn populate_dev(dev: &OwnedFd) -> Result<()> {
    const LINKS: [(&str, &str); 5] = [
        ("/proc/self/fd", "fd"),
        ("/proc/self/fd/0", "stdin"),
        ("/proc/self/fd/1", "stdout"),
        ("/proc/self/fd/2", "stderr"),
        ("pts/ptmx", "ptmx"),
    ];
    let devices = if sys::in_user_namespace() { &[][..] } else { &DEVICES };
    for &(name, major, minor) in devices {
        let name = c_string(name)?;
        let (at, device) = (dev.as_raw_fd(), libc::makedev(major, minor));
        // SAFETY: `name` is a C string that outlives the call; `at` is an open directory.
        let made = unsafe { libc::mknodat(at, name.as_ptr(), libc::S_IFCHR | 0o666, device) };
        check(made, "make device node")?;
    }
    for (target, name) in LINKS {
        let (target, name) = (c_string(target)?, c_string(name)?);
        // SAFETY: as above.
        check(unsafe { libc::symlinkat(target.as_ptr(), dev.as_raw_fd(), name.as_ptr()) }, "link in /dev")?;
    }
    Ok(())
}

/// A device of the machine's, for everybody in the container; whether it may be opened is for its cgroup to say.
fn make_device(root: &OwnedFd, device: &DeviceNode) -> Result<()> {
    let DeviceNode { path, kind, major, minor } = device;
    let failed = |error: &io::Error| Failure::io(format_args!("device {path}"), error);
    let (directory, name) = path.rsplit_once('/').unwrap_or(("", path));
    let parent = make_place(root, directory, true).map_err(|error| failed(&error))?;
    let name = c_string(name)?;
    let format = if kind == "b" { libc::S_IFBLK } else { libc::S_IFCHR };
    let number = libc::makedev(*major, *minor);
    // SAFETY: `name` is a C string that outlives the calls; the parent is an open directory; an all-zero stat is a
    // valid buffer. A link in the way is not followed by either of them.
    unsafe {
        if libc::mknodat(parent.as_raw_fd(), name.as_ptr(), format | 0o666, number) == 0 {
            return Ok(());
        }
        let error = io::Error::last_os_error();
        let mut present: libc::stat = std::mem::zeroed();
        let flags = libc::AT_SYMLINK_NOFOLLOW;
        let known = libc::fstatat(parent.as_raw_fd(), name.as_ptr(), &raw mut present, flags) == 0;
        // Every container has some already.
        let same = known && present.st_rdev == number && present.st_mode & libc::S_IFMT == format;
        if same { Ok(()) } else { Err(failed(&error)) }
    }
}

fn attach(root: &OwnedFd, source: &OwnedFd, destination: &str) -> Result<()> {
    let target = make_place(root, destination, is_directory(source)?)
        .map_err(|error| Failure::setup(format!("mount {destination}: {}", words(&error))))?;
    sys::move_mount(source, &target)
        .map_err(|failure| Failure::setup(format!("mount {destination}: {}", failure.message)))
}

/// Opens the place at `path` beneath the root, making it, and the directories above it, if missing.
fn make_place(root: &OwnedFd, path: &str, directory: bool) -> io::Result<OwnedFd> {
    let resolve = RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS;
    let open = |path: &str| sys::open_beneath(root.as_fd(), path, libc::O_PATH, resolve);
    let names: Vec<&str> = path.split('/').filter(|name| !name.is_empty() && *name != ".").collect();
    if names.contains(&"..") {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    }
    let mut so_far = String::from("/");
    let mut parent = open("/")?;
    for (index, name) in names.iter().enumerate() {
        so_far.push_str(name);
        let found = match open(&so_far) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                make(&parent, name, directory || index + 1 < names.len())?;
                open(&so_far)?
            }
            other => other?,
        };
        parent = found;
        so_far.push('/');
    }
    Ok(parent)
}

fn make(parent: &OwnedFd, name: &str, directory: bool) -> io::Result<()> {
    let name = std::ffi::CString::new(name).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))?;
    let at = parent.as_raw_fd();
    // SAFETY: `name` is a C string that outlives the calls; `at` is an open directory. A link in the way is not
    // followed by either call.
    let result = unsafe {
        if directory {
            libc::mkdirat(at, name.as_ptr(), 0o755)
        } else {
            libc::mknodat(at, name.as_ptr(), libc::S_IFREG | 0o644, 0)
        }
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Opens what is at `path`, if anything is; a symbolic link anywhere on the way is refused.
fn existing(root: &OwnedFd, path: &str) -> Result<Option<OwnedFd>> {
    match sys::open_beneath(root.as_fd(), path, libc::O_PATH, RESOLVE_IN_ROOT | RESOLVE_NO_SYMLINKS) {
        Ok(target) => Ok(Some(target)),
        Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENOTDIR)) => Ok(None),
        Err(error) => Err(Failure::io(format_args!("protect {path}"), &error)),
    }
}

/// Covers a file with the null device and a directory with an empty one.
fn mask(root: &OwnedFd, target: &OwnedFd) -> Result<()> {
    if is_directory(target)? {
        let empty = FileSystem::open("tmpfs")?;
        for (key, value) in [("size", "0"), ("nr_inodes", "2")] {
            empty.set(key, Some(value.as_bytes())).map_err(|error| Failure::io("mask", &error))?;
        }
        let attributes = MOUNT_RDONLY | MOUNT_NOSUID | MOUNT_NODEV | MOUNT_NOEXEC;
        return sys::move_mount(&empty.mount(attributes)?, target);
    }
    let null =
        existing(root, "/dev/null")?.ok_or_else(|| Failure::setup("no /dev/null to mask files with"))?;
    let status = status(&null)?;
    if status.st_mode & libc::S_IFMT != libc::S_IFCHR || status.st_rdev != libc::makedev(1, 3) {
        return Err(Failure::setup("/dev/null is not the null device"));
    }
    sys::move_mount(&sys::open_tree(null.as_raw_fd(), "", false)?, target)
}

fn is_directory(place: &OwnedFd) -> Result<bool> {
    Ok(status(place)?.st_mode & libc::S_IFMT == libc::S_IFDIR)
}

fn status(place: &OwnedFd) -> Result<libc::stat> {
    // SAFETY: an all-zero stat is a valid buffer; the descriptor is open.
    unsafe {
        let mut status: libc::stat = std::mem::zeroed();
        check(libc::fstat(place.as_raw_fd(), &raw mut status), "fstat")?;
        Ok(status)
    }
}

/// What is set in every container, as far as the kernel knows it.
pub const DEFAULT_SYSCTLS: [&str; 2] = ["net.ipv4.ip_unprivileged_port_start", "net.ipv4.ping_group_range"];

/// Writes kernel settings of the container's own namespaces, through the proc made for it.
fn set_sysctls(bundle: &Bundle, root: &OwnedFd) -> Result<()> {
    const PROC_MAGIC: i64 = 0x9fa0;
    for (name, value) in &bundle.spec.linux.sysctl {
        // With a slash before it, a point is part of a name.
        let swapped = |c: char| match c {
            '.' => '/',
            '/' if !name.starts_with('/') && name.contains('.') => '.',
            other => other,
        };
        let path = format!("/proc/sys/{}", name.chars().map(swapped).collect::<String>());
        let resolve = RESOLVE_IN_ROOT | RESOLVE_NO_SYMLINKS;
        let file = match sys::open_beneath(root.as_fd(), &path, libc::O_WRONLY, resolve) {
            Ok(file) => file,
            // A kernel without a setting that nobody asked for keeps its own ways.
            Err(error) if error.kind() == io::ErrorKind::NotFound && DEFAULT_SYSCTLS.contains(&&**name) => {
                continue;
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(Failure::setup(format!("sysctl {name}: this kernel has no such setting")));
            }
            Err(error) => return Err(Failure::io(format_args!("set {name}"), &error)),
        };
        // SAFETY: an all-zero statfs is a valid buffer; pointer and length of a live string.
        unsafe {
            let mut status: libc::statfs = std::mem::zeroed();
            check(libc::fstatfs(file.as_raw_fd(), &raw mut status), "fstatfs")?;
            if status.f_type as i64 != PROC_MAGIC {
                return Err(Failure::setup(format!("set {name}: {path} is not in proc")));
            }
            let written = libc::write(file.as_raw_fd(), value.as_ptr().cast(), value.len());
            let refused = io::Error::last_os_error().raw_os_error() == Some(libc::EINVAL);
            if written < 0 && refused && sys::in_user_namespace() {
                // It speaks of groups that are not mapped.
                continue;
            }
            check(written as i64, format_args!("set {name}={value}"))?;
        }
    }
    Ok(())
}
