//! Everything that a program can see of what it was started with, one thing a line, so that two starts can be compared.

use nix::libc;
use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

pub fn probe() {
    let own = std::process::id();
    println!("pid {own} in session {} and group {}", at_zero(libc::SYS_getsid), at_zero(libc::SYS_getpgid));
    println!("arguments {:?} in {}", std::env::args(), std::env::current_dir().unwrap().display());
    let environment: BTreeSet<_> = std::env::vars().collect();
    environment.iter().for_each(|(name, value)| println!("environment {name}={value}"));
    credentials();
    for line in read("/proc/self/limits").lines().skip(1) {
        println!("limit {}", line.split_whitespace().collect::<Vec<_>>().join(" "));
    }
    println!("oom_score_adj {}", read("/proc/self/oom_score_adj").trim());
    println!("nice {}", at_zero(libc::SYS_getpriority));
    mounts();
    devices(Path::new("/dev"));
    for name in ["mnt", "pid", "ipc", "uts", "net", "cgroup", "user", "time"] {
        println!("namespace {}", fs::read_link(format!("/proc/self/ns/{name}")).unwrap().display());
    }
    read("/proc/self/cgroup").lines().for_each(|line| println!("cgroup {}", line.split_once(':').unwrap().1));
    values(Path::new("/sys/fs/cgroup"));
    for name in [
        "net/ipv4/ip_unprivileged_port_start",
        "net/ipv4/ping_group_range",
        "net/ipv4/ip_default_ttl",
        "net/core/somaxconn",
        "kernel/shmmni",
        "kernel/shmmax",
        "kernel/sem",
        "kernel/hostname",
        "kernel/domainname",
        "fs/mqueue/msg_max",
    ] {
        println!("sysctl {name} {}", read(&format!("/proc/sys/{name}")).trim());
    }
    for name in ["hostname", "hosts", "resolv.conf"] {
        println!("/etc/{name} {:?}", read(&format!("/etc/{name}")));
    }
}

fn read(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| error.to_string())
}

/// What a call answers that is asked about this process.
fn at_zero(call: libc::c_long) -> i64 {
    // SAFETY: calls with plain integers that only ask.
    unsafe { libc::syscall(call, 0, 0) }
}

fn credentials() {
    let told =
        ["Uid", "Gid", "Groups", "Cap", "NoNewPrivs", "Seccomp:", "Sig", "ShdPnd", "Umask", "CoreDumping"];
    let status = read("/proc/self/status");
    for line in status.lines().filter(|line| told.iter().any(|name| line.starts_with(name))) {
        // How many signals may wait is one of the limits, how many do is chance.
        if !line.starts_with("SigQ") {
            println!("status {}", line.split_whitespace().collect::<Vec<_>>().join(" "));
        }
    }
    let mut signal = 0;
    // SAFETY: questions about this process; the number outlives the call.
    unsafe {
        libc::prctl(libc::PR_GET_PDEATHSIG, &raw mut signal);
        println!("dies with its parent by signal {signal}");
        println!("dumpable {}", libc::prctl(libc::PR_GET_DUMPABLE));
        println!("securebits {}", libc::prctl(libc::PR_GET_SECUREBITS));
        println!("keeps capabilities {}", libc::prctl(libc::PR_GET_KEEPCAPS));
    }
}

/// Where what is mounted, how, and with which options of the file system's, without what names this container.
fn mounts() {
    for line in read("/proc/self/mountinfo").lines() {
        let (mount, system) = line.split_once(" - ").unwrap();
        let mount: Vec<&str> = mount.split(' ').collect();
        let system: Vec<&str> = system.split(' ').collect();
        let sorted = |options: &str| {
            let named = |option: &&str| {
                ["lowerdir", "upperdir", "workdir"].iter().any(|name| option.starts_with(name))
            };
            let kept: BTreeSet<&str> = options.split(',').filter(|option| !named(option)).collect();
            kept.into_iter().collect::<Vec<_>>().join(",")
        };
        println!("mount {} {} {} {}", mount[4], sorted(mount[5]), system[0], sorted(system[2]));
    }
}

fn devices(directory: &Path) {
    let mut entries: Vec<_> = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path()).collect();
    entries.sort();
    for path in entries {
        let data = fs::symlink_metadata(&path).unwrap();
        let kind = data.file_type();
        let rest = if kind.is_symlink() {
            format!("-> {}", fs::read_link(&path).unwrap().display())
        } else if kind.is_char_device() || kind.is_block_device() {
            format!("{}:{}", rustix::fs::major(data.rdev()), rustix::fs::minor(data.rdev()))
        } else {
            String::new()
        };
        println!("in {} {:o} {}:{} {rest}", path.display(), data.mode(), data.uid(), data.gid());
        if kind.is_dir() && !path.ends_with("pts") {
            devices(&path);
        }
    }
}

/// What the container's control groups are set to.
fn values(directory: &Path) {
    const TOLD: [&str; 14] = [
        "cpu.cfs_period_us",
        "cpu.cfs_quota_us",
        "cpu.max",
        "cpu.shares",
        "cpu.weight",
        "devices.list",
        "io.max",
        "memory.high",
        "memory.limit_in_bytes",
        "memory.max",
        "memory.memsw.limit_in_bytes",
        "memory.swap.max",
        "memory.swappiness",
        "pids.max",
    ];
    let mut entries: Vec<_> =
        fs::read_dir(directory).into_iter().flatten().map(|entry| entry.unwrap().path()).collect();
    entries.sort();
    for path in entries {
        let name = path.file_name().unwrap().to_str().unwrap();
        if path.is_dir() && !path.is_symlink() {
            values(&path);
        } else if TOLD.contains(&name) {
            let text = read(path.to_str().unwrap());
            let lines: BTreeSet<&str> = text.lines().collect();
            lines.iter().for_each(|line| println!("{name} {line}"));
        }
    }
}
