//! How a container differs from what every container is: its groups, names, capabilities, kernel settings, devices,
//! streams and log.

use std::collections::BTreeMap;
use std::net::IpAddr;

/// What is said of a container beyond its program; by default nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Profile {
    /// Groups its process is a member of besides those of its user, by name or number.
    pub groups: Vec<String>,
    /// Whether its standard input stays open, for whoever attaches.
    pub stdin: bool,
    /// Lines for its `/etc/hosts`: a name and its address.
    pub hosts: Vec<(String, IpAddr)>,
    /// How it resolves names that are not the cluster's.
    pub dns: DnsConfig,
    /// Capabilities it has beyond the default ones, without `CAP_`; `ALL` is all of them.
    pub cap_add: Vec<String>,
    /// Capabilities it does not have, without `CAP_`; `ALL` is all that are not added.
    pub cap_drop: Vec<String>,
    /// Settings of its own kernel namespaces, by name.
    pub sysctls: BTreeMap<String, String>,
    /// Limits of its processes, by the names of `ulimit`: `nofile`, `core`, …
    pub ulimits: BTreeMap<String, Ulimit>,
    /// Devices of the node that it may use.
    pub devices: Vec<Device>,
    /// Most that its `/dev/shm` may hold; 64 MiB by default.
    pub shm_bytes: Option<u64>,
    /// How readily the kernel kills it when the node's memory is short, from -1000 (never) to 1000 (first).
    pub oom_score_adj: i32,
    /// Where what it writes is kept.
    pub log: LogDriver,
    /// Whose users its users are.
    pub userns: Userns,
}

/// Whose users a container's users are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Userns {
    /// Its node's: its root is the node's root, with fewer rights.
    #[default]
    Host,
    /// Its own: a range of the node's ids that the node chooses, so that its root is nobody outside it.
    Auto,
}

/// How names outside the cluster are resolved. Those in it always are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DnsConfig {
    /// Asked in this order instead of the node's own.
    pub servers: Vec<IpAddr>,
    /// Domains that short names are completed with.
    pub search: Vec<String>,
    /// As in `resolv.conf`.
    pub options: Vec<String>,
}

/// A limit of a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ulimit {
    /// What holds.
    pub soft: u64,
    /// How far it may raise that itself. [`Ulimit::UNLIMITED`] is without end.
    pub hard: u64,
}

impl Ulimit {
    /// No limit.
    pub const UNLIMITED: u64 = u64::MAX;
    /// The names there are.
    pub const NAMES: [&str; 15] = [
        "core",
        "cpu",
        "data",
        "fsize",
        "locks",
        "memlock",
        "msgqueue",
        "nice",
        "nofile",
        "nproc",
        "rss",
        "rtprio",
        "rttime",
        "sigpending",
        "stack",
    ];
}

/// A device of the node in a container: by its path, or by the name that the node's CDI files give it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Device {
    /// Absolute path on the node, or `KIND=NAME`.
    pub source: String,
    /// Absolute path in the container; empty for a name.
    pub target: String,
    /// What may be done with it: some of `r`, `w` and `m`; empty for a name.
    pub access: String,
}

impl Device {
    /// Whether it is known by a name of the Container Device Interface, which says all else of it.
    pub fn is_cdi(&self) -> bool {
        !self.source.starts_with('/')
    }

    /// A device by such a name.
    pub fn named(name: impl Into<String>) -> Self {
        Self { source: name.into(), target: String::new(), access: String::new() }
    }
}

/// Kind and name in `vendor.com/class=name`, as the Container Device Interface has them.
pub fn cdi_name(text: &str) -> Option<(&str, &str)> {
    let (kind, name) = text.split_once('=')?;
    let (vendor, class) = kind.split_once('/')?;
    let sound = |text: &str, more: &str, begins: fn(&char) -> bool| {
        let known = |c: char| c.is_ascii_alphanumeric() || more.contains(c);
        text.len() <= 128 && text.chars().next().is_some_and(|c| begins(&c)) && text.chars().all(known)
    };
    let sound = sound(vendor, "_-.", char::is_ascii_alphabetic)
        && sound(class, "_-", char::is_ascii_alphabetic)
        && sound(name, "_-.:", char::is_ascii_alphanumeric);
    sound.then_some((kind, name))
}

/// Where what a container writes is kept.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LogDriver {
    /// `local`, `journald` or `none`; nothing said is `local`.
    pub name: Option<String>,
    /// What the driver is told, by name.
    pub options: BTreeMap<String, String>,
}

/// The log drivers there are. `json-file` is what Docker calls its default, and means `local`.
pub const LOG_DRIVERS: [&str; 4] = ["local", "json-file", "journald", "none"];

/// Whether a kernel setting is one of a container's own namespaces, so that changing it changes nothing for others.
pub fn is_namespaced(sysctl: &str) -> bool {
    const OWN: [&str; 9] = [
        "kernel.domainname",
        "kernel.msgmax",
        "kernel.msgmnb",
        "kernel.msgmni",
        "kernel.sem",
        "kernel.shmall",
        "kernel.shmmax",
        "kernel.shmmni",
        "kernel.shm_rmid_forced",
    ];
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-' | '/');
    let climbs = sysctl.split(['.', '/']).any(str::is_empty);
    let own = OWN.contains(&sysctl) || sysctl.starts_with("net.") || sysctl.starts_with("fs.mqueue.");
    own && !climbs && sysctl.chars().all(plain)
}

#[cfg(test)]
mod tests {
    use super::{cdi_name, is_namespaced};

    #[test]
    fn a_device_has_a_vendor_a_class_and_a_name() {
        assert_eq!(cdi_name("nvidia.com/gpu=0"), Some(("nvidia.com/gpu", "0")));
        assert_eq!(cdi_name("vendor/a-class=GPU-8932f9:1"), Some(("vendor/a-class", "GPU-8932f9:1")));
        for bad in ["", "/dev/null", "nvidia.com=0", "a/b/c=0", "a/b=", "a/b=/x", "1a/b=x", "a/b=x y"] {
            assert_eq!(cdi_name(bad), None, "{bad}");
        }
    }

    #[test]
    fn only_settings_of_a_containers_own_namespaces_are_its_to_change() {
        for own in
            ["net.core.somaxconn", "net.ipv4.conf.eth0/1.rp_filter", "kernel.shmmax", "fs.mqueue.msg_max"]
        {
            assert!(is_namespaced(own), "{own}");
        }
        for alien in
            ["vm.swappiness", "kernel.panic", "net", "net..core", "net.../../kernel.panic", "fs.file-max"]
        {
            assert!(!is_namespaced(alien), "{alien}");
        }
    }
}
