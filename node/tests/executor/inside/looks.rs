//! What a program finds when it looks around in its container.

use nix::libc;
use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::Write;
use std::path::Path;

/// Says what its terminal is like, and again for each line that is typed.
pub fn terminal() {
    loop {
        let stdin = std::io::stdin();
        let size = rustix::termios::tcgetwinsize(&stdin).unwrap();
        let name = rustix::termios::ttyname(&stdin, Vec::new()).unwrap();
        // Found again by its name, and by the one that leads to it for every program.
        File::options().read(true).write(true).open(name.to_str().unwrap()).unwrap();
        File::open("/dev/tty").unwrap();
        println!("{}x{} on {}", size.ws_row, size.ws_col, name.to_str().unwrap());
        stdin.read_line(&mut String::new()).unwrap();
    }
}

/// Says whose what is, and makes more of it.
pub fn owners(number: &str) {
    use std::os::unix::fs::{MetadataExt, chown};
    let owner = |path: &str| {
        let data = fs::metadata(path).unwrap();
        format!("{}:{}", data.uid(), data.gid())
    };
    for path in ["/", "/bin/inside", "/dev/null", "/scratch"] {
        println!("{path} {}", owner(path));
    }
    for path in ["/volume/old", "/etc/hostname"] {
        println!("{path} {} {}", owner(path), fs::read_to_string(path).unwrap().trim());
    }
    for earlier in 1..number.parse().unwrap() {
        let path = format!("/volume/given-{earlier}");
        println!("{path} {} {}", owner(&path), fs::read_to_string(&path).unwrap());
    }
    fs::write("/data/made", "made").unwrap();
    println!("made {}", owner("/data/made"));
    for path in ["/data/given".to_owned(), format!("/volume/given-{number}")] {
        fs::write(&path, "given").unwrap();
        chown(&path, Some(33), Some(34)).unwrap();
        fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o644)).unwrap();
    }
    println!("given {}", owner("/data/given"));
    // What lies in the image can be changed too.
    fs::write("/bin/data", "changed").unwrap();
    fs::remove_file("/bin/garbage").unwrap();
}

/// What root tries that has all capabilities in its own user namespace.
pub fn grasp() {
    let none = None::<&str>;
    let flags = nix::mount::MsFlags::empty();
    let named = |result: nix::Result<()>| words(result.map_err(std::io::Error::from));
    println!("mount {}", named(nix::mount::mount(Some("none"), "/data", Some("tmpfs"), flags, none)));
    println!("hostname {}", named(nix::unistd::sethostname("other")));
    // SAFETY: an all-zero request is valid, and outlives the calls.
    let up = unsafe {
        let socket = libc::socket(libc::AF_INET, libc::SOCK_DGRAM, 0);
        let mut request: libc::ifreq = std::mem::zeroed();
        request.ifr_name[0] = b'l' as libc::c_char;
        request.ifr_name[1] = b'o' as libc::c_char;
        request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as i16;
        match libc::ioctl(socket, libc::SIOCSIFFLAGS, &raw const request) {
            0 => Ok(()),
            _ => Err(std::io::Error::last_os_error()),
        }
    };
    println!("network {}", words(up));
    use nix::sys::stat::{Mode, SFlag, makedev, mknod};
    println!("node {}", named(mknod("/data/mem", SFlag::S_IFCHR, Mode::empty(), makedev(1, 1))));
}

pub fn options() {
    let groups: Vec<u32> = rustix::process::getgroups().unwrap().iter().map(|group| group.as_raw()).collect();
    println!("groups {groups:?}");
    for line in fs::read_to_string("/proc/self/limits").unwrap().lines() {
        println!("{}", line.split_whitespace().collect::<Vec<_>>().join(" "));
    }
    for name in ["net.ipv4.ip_default_ttl", "kernel.shmmni"] {
        let value = fs::read_to_string(format!("/proc/sys/{}", name.replace('.', "/"))).unwrap();
        println!("{name} {}", value.trim());
    }
    let shm = nix::sys::statvfs::statvfs("/dev/shm").unwrap();
    println!("shm {}", shm.blocks() * shm.fragment_size());
    println!("oom {}", fs::read_to_string("/proc/self/oom_score_adj").unwrap().trim());
    status().iter().filter(|line| line.starts_with("Cap")).for_each(|line| println!("{line}"));
}

pub fn open(path: &str) {
    println!("{path} read {}", words(File::open(path)));
    println!("{path} write {}", words(File::options().write(true).open(path)));
}

fn status() -> Vec<String> {
    let text = fs::read_to_string("/proc/self/status").unwrap();
    text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect()
}

pub fn profile() {
    status().iter().for_each(|line| println!("{line}"));
    println!("pid {}", std::process::id());
    // The listing itself has a descriptor, which is closed again when it is asked after.
    let listed: Vec<i32> = fs::read_dir("/proc/self/fd")
        .unwrap()
        .map(|entry| entry.unwrap().file_name().to_str().unwrap().parse().unwrap())
        .collect();
    let open = listed
        .into_iter()
        .filter(|fd| nix::fcntl::fcntl(borrowed(*fd), nix::fcntl::FcntlArg::F_GETFD).is_ok());
    let sorted: BTreeSet<i32> = open.collect();
    println!("fds {}", sorted.iter().map(ToString::to_string).collect::<Vec<_>>().join(" "));
    let interfaces = fs::read_dir("/sys/class/net").unwrap();
    let names: Vec<_> = interfaces.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    println!("interfaces {}", names.join(" "));
    for path in ["/proc/kcore", "/proc/keys", "/proc/timer_list", "/proc/interrupts"] {
        if fs::read(path).map_or(true, |bytes| bytes.is_empty()) {
            println!("empty or absent {path}");
        }
    }
    if fs::read_dir("/sys/firmware").map_or(0, Iterator::count) == 0 {
        println!("no entries in /sys/firmware");
    }
    for path in ["/proc/sys/kernel/hostname", "/proc/sysrq-trigger", "/sys/kernel/uevent_seqnum"] {
        if File::options().write(true).open(path).is_err() {
            println!("cannot write {path}");
        }
    }
    for path in ["/dev/mem", "/dev/kmsg", "/dev/loop-control", "/dev/kvm"] {
        if File::open(path).is_err() {
            println!("cannot open {path}");
        }
    }
    for path in ["/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom", "/dev/ptmx"] {
        if File::options().read(true).write(true).open(path).is_ok() {
            println!("can open {path}");
        }
    }
    if std::net::TcpListener::bind("0.0.0.0:80").is_ok() {
        println!("port 80 can be bound");
    }
    let made = nix::sys::stat::mknod(
        "/data/mem",
        nix::sys::stat::SFlag::S_IFCHR,
        nix::sys::stat::Mode::empty(),
        nix::sys::stat::makedev(1, 1),
    );
    if made.is_err() {
        println!("cannot make a device node");
    }
}

fn borrowed(fd: i32) -> std::os::fd::BorrowedFd<'static> {
    // SAFETY: only asked whether it is open.
    unsafe { std::os::fd::BorrowedFd::borrow_raw(fd) }
}

/// Each with arguments that do no harm should the call be let through.
pub fn calls() {
    let table = [
        ("mount", libc::SYS_mount),
        ("umount2", libc::SYS_umount2),
        ("pivot_root", libc::SYS_pivot_root),
        ("setns", libc::SYS_setns),
        ("open_tree", libc::SYS_open_tree),
        ("move_mount", libc::SYS_move_mount),
        ("fsopen", libc::SYS_fsopen),
        ("mount_setattr", libc::SYS_mount_setattr),
        ("bpf", libc::SYS_bpf),
        ("perf_event_open", libc::SYS_perf_event_open),
        ("keyctl", libc::SYS_keyctl),
        ("add_key", libc::SYS_add_key),
        ("request_key", libc::SYS_request_key),
        ("userfaultfd", libc::SYS_userfaultfd),
        ("io_uring_setup", libc::SYS_io_uring_setup),
        ("open_by_handle_at", libc::SYS_open_by_handle_at),
        ("init_module", libc::SYS_init_module),
        ("delete_module", libc::SYS_delete_module),
        ("kexec_load", libc::SYS_kexec_load),
        ("swapoff", libc::SYS_swapoff),
        ("acct", libc::SYS_acct),
        ("quotactl", libc::SYS_quotactl),
        ("syslog", libc::SYS_syslog),
        ("kcmp", libc::SYS_kcmp),
        ("fanotify_init", libc::SYS_fanotify_init),
        ("clone3", libc::SYS_clone3),
        ("unknown", 9_999),
    ];
    for (name, number) in table {
        report(name, [number, -1, 0, 0]);
    }
    report("unshare user", [libc::SYS_unshare, libc::CLONE_NEWUSER.into(), 0, 0]);
    report("clone user", [libc::SYS_clone, libc::CLONE_NEWUSER.into(), 0, 0]);
    report("socket vsock", [libc::SYS_socket, libc::AF_VSOCK.into(), libc::SOCK_STREAM.into(), 0]);
    report("socket alg", [libc::SYS_socket, libc::AF_ALG.into(), libc::SOCK_SEQPACKET.into(), 0]);
    report("personality", [libc::SYS_personality, 0x0040_0000, 0, 0]);
}

fn report(name: &str, [number, first, second, third]: [libc::c_long; 4]) {
    // SAFETY: the arguments are null or invalid, so that a call let through fails.
    let result = unsafe { libc::syscall(number, first, second, third, 0, 0) };
    let words = match std::io::Error::last_os_error().raw_os_error() {
        _ if result >= 0 => "allowed".to_owned(),
        Some(libc::EPERM) => "EPERM".to_owned(),
        Some(libc::ENOSYS) => "ENOSYS".to_owned(),
        other => format!("error {other:?}"),
    };
    println!("{name} {words}");
}

pub fn who() {
    let (uid, gid) = (rustix::process::getuid().as_raw(), rustix::process::getgid().as_raw());
    let groups: Vec<u32> = rustix::process::getgroups().unwrap().iter().map(|group| group.as_raw()).collect();
    let (home, here) = (std::env::var("HOME").unwrap(), std::env::current_dir().unwrap());
    println!("{uid}:{gid} {groups:?} home={home} in {}", here.display());
    status().iter().filter(|line| line.starts_with("Cap")).for_each(|line| println!("{line}"));
    if let Ok(mut stdout) = File::options().write(true).open("/dev/stdout") {
        stdout.write_all(b"stdout can be opened anew\n").unwrap();
    }
}

fn words<T>(result: std::io::Result<T>) -> String {
    match result.map_err(|error| error.raw_os_error()) {
        Ok(_) => "ok".to_owned(),
        Err(Some(libc::EPERM)) => "EPERM".to_owned(),
        Err(Some(libc::EROFS)) => "EROFS".to_owned(),
        Err(Some(libc::ENOSPC)) => "ENOSPC".to_owned(),
        Err(other) => format!("{other:?}"),
    }
}

pub fn device() {
    use nix::sys::stat::{Mode, SFlag, makedev, mknod};
    for (major, minor) in [(1, 3), (1, 11)] {
        let path = format!("/data/{major}-{minor}");
        mknod(path.as_str(), SFlag::S_IFCHR, Mode::from_bits_truncate(0o666), makedev(major, minor)).unwrap();
        println!("open {major}:{minor}: {}", words(File::open(path)));
    }
}

pub fn limit(path: &Path) {
    print!("{}", fs::read_to_string(path).unwrap());
    println!("raise: {}", words(File::options().write(true).open(path)));
    println!("escape: {}", words(fs::create_dir(path.with_file_name("child"))));
}

pub fn mounts() {
    for path in ["/mnt/ro/file", "/etc/one-file"] {
        println!("{path}: {}", fs::read_to_string(path).unwrap());
    }
    for path in ["/mnt/ro/new", "/mnt/deep/rw/new", "/scratch/new"] {
        println!("write {path}: {}", words(fs::write(path, "from inside")));
    }
    println!("fill /scratch/big: {}", words(fs::write("/scratch/big", vec![1; 2 << 20])));
    println!("write /new: {}", words(fs::write("/new", "from inside")));
}

pub fn names() {
    println!("kernel {}", rustix::system::uname().nodename().to_str().unwrap());
    std::env::vars().for_each(|(name, value)| println!("{name}={value}"));
    for file in ["hostname", "hosts", "resolv.conf"] {
        print!("{}", fs::read_to_string(Path::new("/etc").join(file)).unwrap());
    }
}
