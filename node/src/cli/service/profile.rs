//! `--init`, `--cap-add`, `--ulimit`, `--limit-pids`, … : how a container differs from others, with Docker's words.

use super::flags::Label;
use crate::cli::output::units::{memory, parse_bytes};
use rswarm_control::model::{
    Bounds, ContainerSpec, Device, IoBound, Profile, Swap, TaskSpec, Ulimit, Userns, cdi_name,
};
use std::fmt::Write as _;
use std::net::IpAddr;
use std::str::FromStr;

/// `NAME:ADDRESS`, or `NAME=ADDRESS`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Host(String, IpAddr);

impl FromStr for Host {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("`{text}` is not NAME:ADDRESS, for example db:192.0.2.7");
        let (name, address) = text.split_once(['=', ':']).ok_or_else(wrong)?;
        let address = address.trim_start_matches('[').trim_end_matches(']').parse().map_err(|_| wrong())?;
        if name.is_empty() { Err(wrong()) } else { Ok(Self(name.into(), address)) }
    }
}

/// `NAME=SOFT[:HARD]`; -1 is no limit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UlimitArg(String, Ulimit);

impl FromStr for UlimitArg {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("`{text}` is not NAME=SOFT[:HARD], for example nofile=1024:4096");
        let (name, limits) = text.split_once('=').ok_or_else(wrong)?;
        let number = |text: &str| match text {
            "-1" | "unlimited" => Ok(Ulimit::UNLIMITED),
            text => text.parse().map_err(|_| wrong()),
        };
        let (soft, hard) = limits.split_once(':').unwrap_or((limits, limits));
        Ok(Self(name.into(), Ulimit { soft: number(soft)?, hard: number(hard)? }))
    }
}

/// `/dev/fuse[:TARGET[:rwm]]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceArg(Device);

impl FromStr for DeviceArg {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if cdi_name(text).is_some() {
            return Ok(Self(Device::named(text)));
        }
        let parts: Vec<&str> = text.split(':').collect();
        let is_access = |text: &str| !text.is_empty() && text.chars().all(|c| "rwm".contains(c));
        let (source, target, access) = match parts[..] {
            [source] => (source, source, "rwm"),
            [source, access] if is_access(access) => (source, source, access),
            [source, target] => (source, target, "rwm"),
            [source, target, access] => (source, target, access),
            _ => return Err(format!("`{text}` is neither DEVICE[:TARGET[:rwm]] nor VENDOR/CLASS=NAME")),
        };
        Ok(Self(Device { source: source.into(), target: target.into(), access: access.into() }))
    }
}

/// `/dev/sda:1m`: bytes in a second.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rate(String, u64);

impl FromStr for Rate {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (device, rate) = text
            .rsplit_once(':')
            .ok_or_else(|| format!("`{text}` is not DEVICE:RATE, for example /dev/sda:1m"))?;
        Ok(Self(device.into(), parse_bytes(rate)?))
    }
}

fn userns(text: &str) -> Result<Userns, String> {
    match text {
        "host" => Ok(Userns::Host),
        "auto" => Ok(Userns::Auto),
        _ => Err(format!("`{text}` is neither host nor auto")),
    }
}

/// A number of bytes, or -1 for all there is.
fn swap(text: &str) -> Result<Swap, String> {
    match text {
        "-1" => Ok(Swap::Unlimited),
        text => Ok(match parse_bytes(text)? {
            0 => Swap::None,
            bytes => Swap::Bytes(bytes),
        }),
    }
}

/// Options of `create` and `update` that say one thing each, or add to what is there.
#[derive(Debug, Default, clap::Args)]
pub struct Shape {
    /// Run a small init as process 1: it passes signals on and reaps what others leave behind
    #[arg(long, num_args = 0..=1, default_missing_value = "true", require_equals = true)]
    init: Option<bool>,
    /// Give the container's process a terminal
    #[arg(short, long, num_args = 0..=1, default_missing_value = "true", require_equals = true)]
    tty: Option<bool>,
    /// Keep its standard input open, for `rswarm attach`
    #[arg(short, long, num_args = 0..=1, default_missing_value = "true", require_equals = true)]
    interactive: Option<bool>,
    /// Most that its /dev/shm may hold [default: 64m]
    #[arg(long, value_name = "BYTES", value_parser = parse_bytes)]
    shm_size: Option<u64>,
    /// How readily the kernel kills it when memory is short, from -1000 to 1000 [default: 0]
    #[arg(long, value_name = "N", allow_hyphen_values = true)]
    oom_score_adj: Option<i32>,
    /// Whose users its users are: host, its node's; auto, a range of ids of its own [default: host]
    #[arg(long, value_name = "MODE", value_parser = userns)]
    userns: Option<Userns>,
    /// Add a capability
    #[arg(long, value_name = "CAPABILITY")]
    cap_add: Vec<String>,
    /// Drop a capability
    #[arg(long, value_name = "CAPABILITY")]
    cap_drop: Vec<String>,
    /// Where what it writes is kept: local, journald or none [default: local]
    #[arg(long, value_name = "DRIVER")]
    log_driver: Option<String>,
    /// Tell the log driver, for example max-size=10m
    #[arg(long = "log-opt", value_name = "NAME=VALUE")]
    log_opts: Vec<Label>,
    /// Most processes and threads a task may have; 0 is any number [default: 1024]
    #[arg(long, value_name = "N")]
    limit_pids: Option<u64>,
    /// Swap space a task may use beyond --limit-memory; -1 is all there is [default: 0]
    #[arg(long, value_name = "BYTES", value_parser = swap, allow_hyphen_values = true)]
    memory_swap: Option<Swap>,
    /// Its share of a contended disk, from 10 to 1000; 0 says nothing [default: 0]
    #[arg(long, value_name = "WEIGHT")]
    blkio_weight: Option<u16>,
    /// Most bytes a task reads from a device of its node in a second; 0 is any number
    #[arg(long, value_name = "DEVICE:RATE")]
    device_read_bps: Vec<Rate>,
    /// Most bytes a task writes to a device of its node in a second; 0 is any number
    #[arg(long, value_name = "DEVICE:RATE")]
    device_write_bps: Vec<Rate>,
}

impl Shape {
    /// Makes the changes to a spec.
    pub fn apply(self, task: &mut TaskSpec) {
        let container = super::flags::main(task);
        container.init = self.init.unwrap_or(container.init);
        container.tty = self.tty.unwrap_or(container.tty);
        let profile = &mut container.profile;
        profile.stdin = self.interactive.unwrap_or(profile.stdin);
        profile.shm_bytes = self.shm_size.or(profile.shm_bytes);
        profile.oom_score_adj = self.oom_score_adj.unwrap_or(profile.oom_score_adj);
        profile.userns = self.userns.unwrap_or(profile.userns);
        // The last word about a capability counts.
        for name in self.cap_add.iter().map(|name| capability(name)) {
            profile.cap_drop.retain(|other| *other != name);
            put(&mut profile.cap_add, name);
        }
        for name in self.cap_drop.iter().map(|name| capability(name)) {
            profile.cap_add.retain(|other| *other != name);
            put(&mut profile.cap_drop, name);
        }
        if let Some(name) = self.log_driver {
            // What the former driver was told means nothing to this one.
            if profile.log.name.as_ref() != Some(&name) {
                profile.log.options.clear();
            }
            profile.log.name = Some(name);
        }
        profile.log.options.extend(self.log_opts.into_iter().map(|option| (option.key, option.value)));
        let bounds = &mut task.resources.bounds;
        bounds.pids = self.limit_pids.or(bounds.pids);
        bounds.swap = self.memory_swap.unwrap_or(bounds.swap);
        bounds.io_weight = self.blkio_weight.unwrap_or(bounds.io_weight);
        for Rate(device, rate) in self.device_read_bps {
            io(&mut bounds.io, device).read_bps = rate;
        }
        for Rate(device, rate) in self.device_write_bps {
            io(&mut bounds.io, device).write_bps = rate;
        }
        bounds.io.retain(|bound| bound.read_bps > 0 || bound.write_bps > 0);
    }
}

/// As it is written everywhere: in capitals and without `CAP_`.
fn capability(name: &str) -> String {
    let upper = name.to_ascii_uppercase();
    upper.strip_prefix("CAP_").unwrap_or(&upper).to_owned()
}

fn put<T: PartialEq>(list: &mut Vec<T>, value: T) {
    if !list.contains(&value) {
        list.push(value);
    }
}

fn io(bounds: &mut Vec<IoBound>, device: String) -> &mut IoBound {
    let at = bounds.iter().position(|bound| bound.device == device).unwrap_or_else(|| {
        bounds.push(IoBound { device, ..IoBound::default() });
        bounds.len() - 1
    });
    &mut bounds[at]
}

/// Lists, as `create` is given them.
#[derive(Debug, Default, clap::Args)]
pub struct Lists {
    /// Make its process a member of a group, by name or number
    #[arg(long = "group", value_name = "GROUP")]
    groups: Vec<String>,
    /// Add a line to its /etc/hosts
    #[arg(long = "host", value_name = "NAME:ADDRESS")]
    hosts: Vec<Host>,
    /// Ask this server for names outside the cluster
    #[arg(long = "dns", value_name = "ADDRESS")]
    dns: Vec<IpAddr>,
    /// Complete short names with this domain
    #[arg(long = "dns-search", value_name = "DOMAIN")]
    dns_search: Vec<String>,
    /// An option for its resolv.conf
    #[arg(long = "dns-option", value_name = "OPTION")]
    dns_options: Vec<String>,
    /// Set a setting of its own kernel namespaces, for example net.core.somaxconn=1024
    #[arg(long = "sysctl", value_name = "NAME=VALUE")]
    sysctls: Vec<Label>,
    /// Limit its processes, for example nofile=1024:4096
    #[arg(long = "ulimit", value_name = "NAME=SOFT[:HARD]")]
    ulimits: Vec<UlimitArg>,
    /// Let it use a device of the node, by its path or its name in the node's CDI files
    #[arg(long = "device", value_name = "DEVICE[:TARGET[:rwm]]|KIND=NAME")]
    devices: Vec<DeviceArg>,
}

impl Lists {
    /// Makes the changes to a container.
    pub fn apply(self, profile: &mut Profile) {
        profile.groups.extend(self.groups);
        profile.hosts.extend(self.hosts.into_iter().map(|Host(name, address)| (name, address)));
        profile.dns.servers.extend(self.dns);
        profile.dns.search.extend(self.dns_search);
        profile.dns.options.extend(self.dns_options);
        profile.sysctls.extend(self.sysctls.into_iter().map(|label| (label.key, label.value)));
        profile.ulimits.extend(self.ulimits.into_iter().map(|UlimitArg(name, limit)| (name, limit)));
        profile.devices.extend(self.devices.into_iter().map(|DeviceArg(device)| device));
    }
}

/// Changes to lists, as `update` is given them.
#[derive(Debug, Default, clap::Args)]
pub struct ListChanges {
    /// Make its process a member of a group
    #[arg(long, value_name = "GROUP")]
    group_add: Vec<String>,
    /// No longer make it a member of a group
    #[arg(long, value_name = "GROUP")]
    group_rm: Vec<String>,
    /// Add a line to its /etc/hosts
    #[arg(long, value_name = "NAME:ADDRESS")]
    host_add: Vec<Host>,
    /// Remove a line, or all lines of a name
    #[arg(long, value_name = "NAME[:ADDRESS]")]
    host_rm: Vec<String>,
    /// Ask one more server for names outside the cluster
    #[arg(long, value_name = "ADDRESS")]
    dns_add: Vec<IpAddr>,
    /// No longer ask a server
    #[arg(long, value_name = "ADDRESS")]
    dns_rm: Vec<IpAddr>,
    /// Complete short names with one more domain
    #[arg(long, value_name = "DOMAIN")]
    dns_search_add: Vec<String>,
    /// No longer complete them with a domain
    #[arg(long, value_name = "DOMAIN")]
    dns_search_rm: Vec<String>,
    /// Add an option to its resolv.conf
    #[arg(long, value_name = "OPTION")]
    dns_option_add: Vec<String>,
    /// Remove an option from it
    #[arg(long, value_name = "OPTION")]
    dns_option_rm: Vec<String>,
    /// Set a setting of its own kernel namespaces
    #[arg(long, value_name = "NAME=VALUE")]
    sysctl_add: Vec<Label>,
    /// Leave a setting as it is
    #[arg(long, value_name = "NAME")]
    sysctl_rm: Vec<String>,
    /// Limit its processes
    #[arg(long, value_name = "NAME=SOFT[:HARD]")]
    ulimit_add: Vec<UlimitArg>,
    /// No longer limit them so
    #[arg(long, value_name = "NAME")]
    ulimit_rm: Vec<String>,
    /// Let it use a device of the node, by its path or its name in the node's CDI files
    #[arg(long, value_name = "DEVICE[:TARGET[:rwm]]|KIND=NAME")]
    device_add: Vec<DeviceArg>,
    /// No longer let it use a device
    #[arg(long, value_name = "DEVICE")]
    device_rm: Vec<String>,
}

impl ListChanges {
    /// Makes the changes to a container.
    pub fn apply(self, profile: &mut Profile) {
        edit(&mut profile.groups, &self.group_rm, self.group_add);
        let named = |(name, address): &(String, IpAddr)| {
            self.host_rm.iter().any(|gone| *gone == *name || gone.parse() == Ok(Host(name.clone(), *address)))
        };
        profile.hosts.retain(|line| !named(line));
        for Host(name, address) in self.host_add {
            put(&mut profile.hosts, (name, address));
        }
        let dns = &mut profile.dns;
        edit(&mut dns.servers, &self.dns_rm, self.dns_add);
        edit(&mut dns.search, &self.dns_search_rm, self.dns_search_add);
        edit(&mut dns.options, &self.dns_option_rm, self.dns_option_add);
        profile.sysctls.retain(|name, _| !self.sysctl_rm.contains(name));
        profile.sysctls.extend(self.sysctl_add.into_iter().map(|label| (label.key, label.value)));
        profile.ulimits.retain(|name, _| !self.ulimit_rm.contains(name));
        profile.ulimits.extend(self.ulimit_add.into_iter().map(|UlimitArg(name, limit)| (name, limit)));
        profile.devices.retain(|device| !self.device_rm.contains(&device.source));
        for DeviceArg(device) in self.device_add {
            let same = |other: &Device| match device.is_cdi() {
                true => other.source == device.source,
                false => other.target == device.target,
            };
            profile.devices.retain(|other| !same(other));
            profile.devices.push(device);
        }
    }
}

fn edit<T: PartialEq>(list: &mut Vec<T>, gone: &[T], new: Vec<T>) {
    list.retain(|value| !gone.contains(value));
    for value in new {
        put(list, value);
    }
}

/// How a container differs from others, for people.
///
/// # Errors
/// None: a text takes everything.
pub fn pretty(out: &mut String, container: &ContainerSpec) -> std::fmt::Result {
    let profile = &container.profile;
    for (name, is) in [("Init", container.init), ("TTY", container.tty), ("Open Stdin", profile.stdin)] {
        if is {
            writeln!(out, " {name}:\t\ttrue")?;
        }
    }
    let limit = |value: u64| match value {
        Ulimit::UNLIMITED => "-1".to_owned(),
        value => value.to_string(),
    };
    let pair = |(name, value): (&String, &String)| format!("{name}={value}");
    let ulimit = |(name, at): (&String, &Ulimit)| format!("{name}={}:{}", limit(at.soft), limit(at.hard));
    let device = |d: &Device| match d.is_cdi() {
        true => d.source.clone(),
        false => format!("{}:{}:{}", d.source, d.target, d.access),
    };
    let lists = [
        ("Groups", profile.groups.clone()),
        ("Hosts", profile.hosts.iter().map(|(name, address)| format!("{name}:{address}")).collect()),
        ("DNS", profile.dns.servers.iter().map(ToString::to_string).collect()),
        ("DNS Search", profile.dns.search.clone()),
        ("DNS Options", profile.dns.options.clone()),
        ("Cap Add", profile.cap_add.clone()),
        ("Cap Drop", profile.cap_drop.clone()),
        ("Sysctls", profile.sysctls.iter().map(pair).collect()),
        ("Ulimits", profile.ulimits.iter().map(ulimit).collect()),
        ("Devices", profile.devices.iter().map(device).collect::<Vec<_>>()),
        (
            "Log Driver",
            profile.log.name.iter().cloned().chain(profile.log.options.iter().map(pair)).collect(),
        ),
    ];
    for (name, list) in lists.iter().filter(|(_, list)| !list.is_empty()) {
        writeln!(out, " {name}:\t\t{}", list.join(" "))?;
    }
    if let Some(bytes) = profile.shm_bytes {
        writeln!(out, " Shm Size:\t{}", memory(bytes))?;
    }
    if profile.oom_score_adj != 0 {
        writeln!(out, " OOM Score:\t{}", profile.oom_score_adj)?;
    }
    if profile.userns == Userns::Auto {
        writeln!(out, " Users:\t\tits own")?;
    }
    Ok(())
}

/// What else a task may not exceed, for people.
///
/// # Errors
/// None: a text takes everything.
pub fn pretty_bounds(out: &mut String, bounds: &Bounds) -> std::fmt::Result {
    if let Some(pids) = bounds.pids {
        let most = if pids == 0 { "any number".to_owned() } else { pids.to_string() };
        writeln!(out, " Processes:\t{most}")?;
    }
    match bounds.swap {
        Swap::None => {}
        Swap::Unlimited => writeln!(out, " Swap:\t\tunlimited")?,
        Swap::Bytes(bytes) => writeln!(out, " Swap:\t\t{}", memory(bytes))?,
    }
    if bounds.io_weight > 0 {
        writeln!(out, " Disk Weight:\t{}", bounds.io_weight)?;
    }
    for IoBound { device, read_bps, write_bps } in &bounds.io {
        let rate = |rate: u64| if rate == 0 { "any".to_owned() } else { format!("{}/s", memory(rate)) };
        writeln!(out, " Disk Rate:\t{device} read {} write {}", rate(*read_bps), rate(*write_bps))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Args {
        #[command(flatten)]
        shape: Shape,
        #[command(flatten)]
        lists: Lists,
        #[command(flatten)]
        changes: ListChanges,
    }

    fn apply(task: &mut TaskSpec, words: &[&str]) {
        let args = Args::try_parse_from(["x"].iter().chain(words)).expect("it parses");
        args.shape.apply(task);
        let profile = &mut task.containers[0].profile;
        args.lists.apply(profile);
        args.changes.apply(profile);
    }

    #[test]
    fn dockers_words_are_understood() {
        let mut task = TaskSpec::default();
        apply(
            &mut task,
            &["--init", "-ti", "--cap-add", "cap_net_raw", "--cap-drop", "ALL", "--ulimit", "core=-1"],
        );
        apply(&mut task, &["--ulimit", "nofile=10:20", "--host", "db:192.0.2.7", "--host", "six=[::1]"]);
        apply(&mut task, &["--device", "/dev/fuse:rw", "--device", "/dev/a:/dev/b:r", "--memory-swap", "-1"]);
        apply(&mut task, &["--device-read-bps", "/dev/sda:1m", "--device-write-bps", "/dev/sda:2m"]);
        apply(&mut task, &["--limit-pids", "0", "--shm-size", "1m", "--log-opt", "max-size=1m"]);
        apply(&mut task, &["--userns", "auto"]);
        let (container, bounds) = (&task.containers[0], &task.resources.bounds);
        let profile = &container.profile;
        assert!(container.init && container.tty && profile.stdin);
        assert_eq!(profile.userns, Userns::Auto);
        assert_eq!(
            (&profile.cap_add[..], &profile.cap_drop[..]),
            (&["NET_RAW".into()][..], &["ALL".into()][..])
        );
        assert_eq!(profile.ulimits["nofile"], Ulimit { soft: 10, hard: 20 });
        assert_eq!(profile.ulimits["core"].hard, Ulimit::UNLIMITED);
        assert_eq!(profile.hosts[1].1.to_string(), "::1");
        assert_eq!(
            (profile.devices[0].target.as_str(), profile.devices[0].access.as_str()),
            ("/dev/fuse", "rw")
        );
        assert_eq!((profile.devices[1].target.as_str(), profile.devices[1].access.as_str()), ("/dev/b", "r"));
        assert_eq!((bounds.pids, bounds.swap), (Some(0), Swap::Unlimited));
        assert_eq!((bounds.io[0].read_bps, bounds.io[0].write_bps), (1 << 20, 2 << 20));
    }

    #[test]
    fn what_was_added_can_be_removed() {
        let mut task = TaskSpec::default();
        apply(
            &mut task,
            &["--init", "--cap-add", "NET_RAW", "--sysctl", "net.core.somaxconn=9", "--group", "a"],
        );
        apply(
            &mut task,
            &["--host", "db:192.0.2.7", "--dns", "192.0.2.1", "--ulimit", "core=0", "--device", "/dev/a"],
        );
        apply(&mut task, &["--init=false", "--cap-drop", "NET_RAW", "--sysctl-rm", "net.core.somaxconn"]);
        apply(
            &mut task,
            &["--group-rm", "a", "--host-rm", "db", "--dns-rm", "192.0.2.1", "--ulimit-rm", "core"],
        );
        apply(&mut task, &["--device-rm", "/dev/a", "--cap-add", "NET_RAW"]);
        let expected = Profile { cap_add: vec!["NET_RAW".into()], ..Profile::default() };
        assert_eq!(task.containers[0].profile, expected);
        assert!(!task.containers[0].init);
    }

    #[test]
    fn what_is_no_option_is_told() {
        assert!("db".parse::<Host>().is_err() && "db:x".parse::<Host>().is_err());
        assert!("nofile=a".parse::<UlimitArg>().is_err() && "nofile".parse::<UlimitArg>().is_err());
        assert_eq!("nvidia.com/gpu=0".parse(), Ok(DeviceArg(Device::named("nvidia.com/gpu=0"))));
        assert!("/dev/a:b:c:d".parse::<DeviceArg>().is_err() && "/dev/sda".parse::<Rate>().is_err());
    }
}
