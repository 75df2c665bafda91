//! Writing a container down: the OCI specification, the shim's launch file, and the files generated for `/etc`.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use oci_spec::runtime::Spec;
use rswarm_shim::cgroup::Cgroup;
use rswarm_shim::protocol::{
    CONFIG_FILE, EXIT_ROOM_BYTES, EXIT_ROOM_FILE, LAUNCH_FILE, Launch, ROOT_DIR, SECCOMP_FILE, WindowSize,
};
use serde_json::{Value, json};

use super::entry::Meta;
use super::request::{ContainerRequest, Device, IoLimit, Mount};
use super::seccomp;

/// The size of a container's terminal until somebody who attaches says another.
const TERMINAL: WindowSize = WindowSize { rows: 24, columns: 80 };
const DEFAULT_PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Capabilities of a container that asks for nothing: Docker's, without raw sockets, device nodes, audit records
/// and file capabilities.
pub const CAPABILITIES: [&str; 10] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "FOWNER",
    "FSETID",
    "KILL",
    "NET_BIND_SERVICE",
    "SETGID",
    "SETPCAP",
    "SETUID",
    "SYS_CHROOT",
];

const ALL_CAPABILITIES: [&str; 41] = [
    "AUDIT_CONTROL",
    "AUDIT_READ",
    "AUDIT_WRITE",
    "BLOCK_SUSPEND",
    "BPF",
    "CHECKPOINT_RESTORE",
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "IPC_LOCK",
    "IPC_OWNER",
    "KILL",
    "LEASE",
    "LINUX_IMMUTABLE",
    "MAC_ADMIN",
    "MAC_OVERRIDE",
    "MKNOD",
    "NET_ADMIN",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_RAW",
    "PERFMON",
    "SETFCAP",
    "SETGID",
    "SETPCAP",
    "SETUID",
    "SYSLOG",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_CHROOT",
    "SYS_MODULE",
    "SYS_NICE",
    "SYS_PACCT",
    "SYS_PTRACE",
    "SYS_RAWIO",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "WAKE_ALARM",
];

const MASKED_PATHS: [&str; 11] = [
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
];

const READONLY_PATHS: [&str; 5] = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// Writes everything a shim needs into `directory`, which will be `home` when it is complete.
pub(super) fn write(
    directory: &Path,
    home: &Path,
    request: &ContainerRequest,
    meta: &Meta,
    shims: Option<&Cgroup>,
) -> io::Result<()> {
    let cgroup = meta.cgroup.as_ref();
    for name in [ROOT_DIR, "upper", "work"] {
        fs::create_dir(directory.join(name))?;
    }
    let room = fs::File::create(directory.join(EXIT_ROOM_FILE))?;
    // A file system that cannot set room aside has none set aside.
    let _ = rustix::fs::fallocate(&room, rustix::fs::FallocateFlags::empty(), 0, EXIT_ROOM_BYTES);
    let hostname = hostname(request);
    fs::write(directory.join("hostname"), format!("{hostname}\n"))?;
    fs::write(directory.join("hosts"), hosts(request, hostname))?;
    fs::write(directory.join("resolv.conf"), resolv_conf(request))?;
    if !request.privileges.seccomp_unconfined {
        fs::write(directory.join(SECCOMP_FILE), seccomp::encoded())?;
    }
    let spec: Spec = serde_json::from_value(spec(request, home, meta))?;
    fs::write(directory.join(CONFIG_FILE), serde_json::to_vec(&spec)?)?;
    let launch = Launch {
        id: request.id.clone(),
        lower: request.lower.clone(),
        upper: home.join("upper"),
        work: home.join("work"),
        user: request.user.clone(),
        groups: request.groups.clone(),
        init: request.init,
        stdin: request.stdin,
        tty: request.tty.then_some(TERMINAL),
        cgroup: cgroup.cloned(),
        shims: shims.cloned(),
        log: request.log,
        journal: request.journal.clone(),
        lease_ms: request.lease.map(|time| u64::try_from(time.as_millis()).unwrap_or(u64::MAX)),
        runtime: meta.runtime.clone(),
    };
    fs::write(directory.join(LAUNCH_FILE), serde_json::to_vec(&launch)?)
}

/// The container's host name.
fn hostname(request: &ContainerRequest) -> &str {
    if request.hostname.is_empty() {
        let length = request.id.len().min(12);
        request.id[..length].trim_end_matches(['-', '.', '_'])
    } else {
        &request.hostname
    }
}

fn hosts(request: &ContainerRequest, hostname: &str) -> String {
    let mut text = String::from("127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n");
    let extra = request.extra_hosts.iter().map(|(name, address)| (name.as_str(), address));
    let own = request.addresses.iter().map(|address| (hostname, address));
    for (name, address) in extra.chain(own) {
        let _ = writeln!(text, "{address}\t{name}");
    }
    text
}

fn resolv_conf(request: &ContainerRequest) -> String {
    let dns = &request.dns;
    let mut text = String::new();
    for server in &dns.servers {
        let _ = writeln!(text, "nameserver {server}");
    }
    for (key, words) in [("search", &dns.search), ("options", &dns.options)] {
        if !words.is_empty() {
            let _ = writeln!(text, "{key} {}", words.join(" "));
        }
    }
    text
}

fn spec(request: &ContainerRequest, home: &Path, meta: &Meta) -> Value {
    let cgroup = meta.cgroup.as_ref();
    let capabilities: Vec<String> = capabilities(request).iter().map(|name| format!("CAP_{name}")).collect();
    let mut namespaces = vec![
        json!({"type": "mount"}),
        json!({"type": "pid"}),
        json!({"type": "ipc"}),
        json!({"type": "uts"}),
        match &request.netns {
            Some(path) => json!({"type": "network", "path": path}),
            None => json!({"type": "network"}),
        },
    ];
    if cgroup.is_some() {
        namespaces.push(json!({"type": "cgroup"}));
    }
    if meta.users.is_some() {
        namespaces.push(json!({"type": "user"}));
    }
    let ids: Vec<Value> = meta
        .users
        .iter()
        .map(|ids| json!({"containerID": 0, "hostID": ids.first, "size": ids.count}))
        .collect();
    // As with Docker, a container that is not root may serve port 80.
    let mut sysctls = serde_json::Map::new();
    if !shares_our_network(request) {
        sysctls.insert("net.ipv4.ip_unprivileged_port_start".into(), json!("0"));
        sysctls.insert("net.ipv4.ping_group_range".into(), json!("0 2147483647"));
    }
    sysctls.extend(request.privileges.sysctls.iter().map(|(name, value)| (name.clone(), json!(value))));
    // Whoever needs a device finds it in a user namespace only as what is bound there.
    let bound = in_user_namespace();
    let devices: Vec<Value> = request.devices.iter().filter(|_| !bound).filter_map(device_node).collect();
    let (uid, gid) = numeric(&request.user);
    // The shim has the compiled form.
    let named = meta.runtime.is_some() && !request.privileges.seccomp_unconfined;
    json!({
        "ociVersion": "1.0.2",
        "hostname": hostname(request),
        "root": {"path": ROOT_DIR, "readonly": request.privileges.read_only_root},
        "process": {
            "terminal": request.tty,
            "user": {"uid": uid, "gid": gid, "additionalGids": numbers(&request.groups)},
            "args": request.args,
            "env": environment(request),
            "cwd": if request.workdir.is_empty() { "/" } else { &request.workdir },
            "capabilities": {"bounding": capabilities, "effective": capabilities, "permitted": capabilities},
            "rlimits": rlimits(request),
            "noNewPrivileges": !request.privileges.new_privileges,
            "oomScoreAdj": request.oom_score_adj,
        },
        "mounts": mounts(request, home, bound),
        "hooks": hooks(request),
        "linux": {
            "devices": devices,
            "namespaces": namespaces,
            "uidMappings": ids,
            "gidMappings": ids,
            "maskedPaths": MASKED_PATHS,
            "readonlyPaths": READONLY_PATHS,
            "cgroupsPath": cgroup.map(|cgroup| format!("/{}", cgroup.path)),
            "resources": resources(request),
            "sysctl": sysctls,
            "seccomp": named.then(seccomp::named),
        },
    })
}

/// By their moments.
fn hooks(request: &ContainerRequest) -> Option<Value> {
    let mut hooks = serde_json::Map::new();
    for hook in &request.hooks {
        let one = json!({"path": hook.path, "args": hook.args, "env": hook.env, "timeout": hook.timeout});
        if let Value::Array(list) = hooks.entry(hook.hook_name.as_str()).or_insert_with(|| json!([])) {
            list.push(one);
        }
    }
    (!hooks.is_empty()).then_some(Value::Object(hooks))
}

fn rlimits(request: &ContainerRequest) -> Vec<Value> {
    let json = |name: &str, soft: u64, hard: u64| json!({"type": format!("RLIMIT_{}", name.to_uppercase()), "soft": soft, "hard": hard});
    let mut list: Vec<Value> =
        request.rlimits.iter().map(|limit| json(&limit.name, limit.soft, limit.hard)).collect();
    if !request.rlimits.iter().any(|limit| limit.name == "nofile") {
        list.push(json("nofile", 65_536, 65_536));
    }
    list
}

fn device_node(device: &Device) -> Option<Value> {
    let (block, major, minor) = device.numbers()?;
    let kind = if block { "b" } else { "c" };
    Some(json!({"path": device.target, "type": kind, "major": major, "minor": minor, "fileMode": 0o666}))
}

/// This daemon was started in a user namespace of somebody's making, where no devices can be made.
pub(super) fn in_user_namespace() -> bool {
    let map = fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    !map.split_whitespace().eq(["0", "0", "4294967295"])
}

/// For runtimes that do not look names up: the groups given by number.
fn numbers(groups: &[String]) -> Vec<u32> {
    groups.iter().filter_map(|group| group.parse().ok()).collect()
}

/// It joins the daemon's own network namespace, whose settings are not for a container to change.
fn shares_our_network(request: &ContainerRequest) -> bool {
    let inode = |path: &Path| fs::metadata(path).map(|data| data.ino()).ok();
    let own = inode(Path::new("/proc/thread-self/ns/net"));
    request.netns.as_deref().is_some_and(|path| inode(path) == own)
}

/// For runtimes that do not look names up: the numbers, where the user is given by number.
fn numeric(user: &str) -> (u32, u32) {
    let (uid, gid) = user.split_once(':').unwrap_or((user, "0"));
    (uid.parse().unwrap_or(0), gid.parse().unwrap_or(0))
}

/// The one name of a capability, written with or without `CAP_` and in either case; `ALL` stands for all. None: there
/// is no such capability.
pub(super) fn capability(name: &str) -> Option<&'static str> {
    let upper = name.to_ascii_uppercase();
    let bare = upper.strip_prefix("CAP_").unwrap_or(&upper);
    ALL_CAPABILITIES.into_iter().chain([ALL]).find(|known| *known == bare)
}

const ALL: &str = "ALL";

fn capabilities(request: &ContainerRequest) -> BTreeSet<&'static str> {
    let named = |names: &[String]| names.iter().filter_map(|name| capability(name)).collect::<BTreeSet<_>>();
    let (added, dropped) = (named(&request.privileges.cap_add), named(&request.privileges.cap_drop));
    let base = if added.contains(ALL) { &ALL_CAPABILITIES[..] } else { &CAPABILITIES[..] };
    let mut set: BTreeSet<&str> = base.iter().copied().collect();
    set.retain(|name| !dropped.contains(name) && (!dropped.contains(ALL) || added.contains(ALL)));
    set.extend(added.into_iter().filter(|name| *name != ALL));
    set
}

fn environment(request: &ContainerRequest) -> Vec<String> {
    let mut env = request.env.clone();
    for default in [DEFAULT_PATH.to_owned(), format!("HOSTNAME={}", hostname(request))] {
        let name_length = default.find('=').map_or(0, |at| at + 1);
        if !env.iter().any(|entry| entry.starts_with(&default[..name_length])) {
            env.push(default);
        }
    }
    env
}

fn resources(request: &ContainerRequest) -> Value {
    let limits = &request.limits;
    let allow = |major: i64, minor: Option<i64>| match minor {
        Some(minor) => json!({"allow": true, "type": "c", "major": major, "minor": minor, "access": "rwm"}),
        None => json!({"allow": true, "type": "c", "major": major, "access": "rwm"}),
    };
    let mut resources = json!({
        "devices": [
            {"allow": false, "access": "rwm"},
            allow(1, Some(3)), allow(1, Some(5)), allow(1, Some(7)), allow(1, Some(8)), allow(1, Some(9)),
            allow(5, Some(0)), allow(5, Some(2)), allow(136, None),
        ],
    });
    if let Value::Array(rules) = &mut resources["devices"] {
        for device in &request.devices {
            let Some((block, major, minor)) = device.numbers() else { continue };
            let kind = if block { "b" } else { "c" };
            let access = &device.access;
            rules
                .push(json!({"allow": true, "type": kind, "major": major, "minor": minor, "access": access}));
        }
    }
    if let Some(bytes) = limits.memory_bytes {
        let total = bytes.checked_add(limits.swap_bytes).and_then(|total| i64::try_from(total).ok());
        resources["memory"] = json!({"limit": bytes, "swap": total.unwrap_or(-1)});
    }
    if limits.io_weight.is_some() || !limits.io.is_empty() {
        let rates = |rate: fn(&IoLimit) -> Option<u64>| {
            let limited = limits.io.iter().filter_map(|limit| Some((limit, rate(limit)?)));
            limited
                .map(|(at, rate)| json!({"major": at.major, "minor": at.minor, "rate": rate}))
                .collect::<Vec<_>>()
        };
        resources["blockIO"] = json!({
            "weight": limits.io_weight,
            "throttleReadBpsDevice": rates(|limit| limit.read_bps),
            "throttleWriteBpsDevice": rates(|limit| limit.write_bps),
        });
    }
    if let Some(nano_cpus) = limits.nano_cpus {
        resources["cpu"] = json!({"quota": (nano_cpus / 10_000).max(1_000), "period": 100_000});
    }
    if let Some(pids) = limits.pids {
        resources["pids"] = json!({"limit": pids});
    }
    resources
}

fn mounts(request: &ContainerRequest, home: &Path, devices_bound: bool) -> Vec<Value> {
    let file_system = |target: &str, kind: &str, options: &[&str]| json!({"destination": target, "type": kind, "source": kind, "options": options});
    let bind = |target: &str, source: PathBuf, options: &[&str]| json!({"destination": target, "type": "bind", "source": source, "options": options});
    let hardened = ["nosuid", "noexec", "nodev"];
    let with = |more: &[&'static str]| [&hardened[..], more].concat();
    let shm = format!("size={}", request.shm_bytes.unwrap_or(64 << 20));
    let mut mounts = vec![
        file_system("/proc", "proc", &hardened),
        file_system("/dev", "tmpfs", &["nosuid", "mode=755", "size=65536k"]),
        file_system(
            "/dev/pts",
            "devpts",
            &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"],
        ),
        file_system("/dev/shm", "tmpfs", &[&hardened[..], &["mode=1777", &shm]].concat()),
        file_system("/dev/mqueue", "mqueue", &hardened),
        file_system("/sys", "sysfs", &with(&["ro"])),
        file_system("/sys/fs/cgroup", "cgroup", &with(&["ro"])),
    ];
    let targets: Vec<&str> = request.mounts.iter().map(Mount::target).collect();
    for name in ["hosts", "hostname", "resolv.conf"] {
        let target = format!("/etc/{name}");
        // Who brings a file of his own means it.
        if !targets.contains(&target.as_str()) {
            mounts.push(bind(&target, home.join(name), &["bind", "nosuid", "nodev"]));
        }
    }
    for device in request.devices.iter().filter(|_| devices_bound) {
        mounts.push(bind(&device.target, device.source.clone(), &["bind", "nosuid", "noexec"]));
    }
    for mount in &request.mounts {
        mounts.push(match mount {
            Mount::Bind { source, target, readonly } => {
                let access = if *readonly { "ro" } else { "rw" };
                bind(target, source.clone(), &["rbind", "nosuid", "nodev", access])
            }
            Mount::Tmpfs { target, size_bytes, mode } => {
                let mode = format!("mode={mode:o}");
                let size = size_bytes.map(|bytes| format!("size={bytes}"));
                let own = [Some(mode.as_str()), size.as_deref()];
                let options: Vec<&str> = hardened.into_iter().chain(own.into_iter().flatten()).collect();
                file_system(target, "tmpfs", &options)
            }
        });
    }
    mounts
}
