//! What may be said of a container beyond its program, and what a task may be bounded by.

use super::Refused;
use super::validate::{invalid, is_path};
use crate::model::{Bounds, Device, LOG_DRIVERS, LogDriver, Profile, Ulimit, cdi_name, is_namespaced};

/// Things of one kind in a profile.
const EACH_MAX: usize = 256;
/// Longest text in a profile, in bytes.
const TEXT_MAX: usize = 4096;
/// The smallest shared memory that a page fits in.
const SHM_BYTES_MIN: u64 = 4096;

pub(super) fn check(profile: &Profile) -> Result<(), Refused> {
    let Profile { groups, hosts, dns, cap_add, cap_drop, sysctls, ulimits, devices, .. } = profile;
    for (what, count) in [
        ("groups", groups.len()),
        ("hosts", hosts.len()),
        ("dns", dns.servers.len() + dns.search.len() + dns.options.len()),
        ("capabilities", cap_add.len() + cap_drop.len()),
        ("sysctls", sysctls.len()),
        ("devices", devices.len()),
    ] {
        if count > EACH_MAX {
            return invalid(format!("{what}: more than {EACH_MAX} are not possible"));
        }
    }
    let names = hosts.iter().map(|(name, _)| name);
    let words = groups.iter().chain(names).chain(&dns.search).chain(&dns.options);
    if let Some(word) = words.chain(cap_add).chain(cap_drop).find(|word| !is_word(word)) {
        return invalid(format!(
            "`{}`: names of groups, hosts, domains, DNS options and capabilities hold no spaces",
            word.escape_debug().take(80).collect::<String>()
        ));
    }
    for (name, value) in sysctls {
        if !is_namespaced(name) {
            return invalid(format!(
                "sysctl `{}`: this is not a setting of a container's own namespaces; such are net.*, fs.mqueue.*, and \
                 kernel.shm*, kernel.msg* and kernel.sem",
                name.escape_debug().take(80).collect::<String>()
            ));
        }
        if value.len() > TEXT_MAX || value.contains(['\0', '\n']) {
            return invalid(format!("sysctl {name}: its value is one line"));
        }
    }
    for (name, Ulimit { soft, hard }) in ulimits {
        if !Ulimit::NAMES.contains(&name.as_str()) {
            return invalid(format!(
                "ulimit `{}`: there is none; there are {}",
                name.escape_debug().take(80).collect::<String>(),
                Ulimit::NAMES.join(", ")
            ));
        }
        if soft > hard {
            return invalid(format!("ulimit {name}: the soft limit {soft} is above the hard one {hard}"));
        }
    }
    for device in devices {
        let Device { source, target, access } = device;
        if device.is_cdi() {
            if cdi_name(source).is_none() || !target.is_empty() || !access.is_empty() {
                return invalid(format!(
                    "device: `{}` is neither an absolute path nor a name as in vendor.com/class=name",
                    source.escape_debug().take(80).collect::<String>()
                ));
            }
            continue;
        }
        if let Some(path) = [source, target].into_iter().find(|path| !is_path(path)) {
            return invalid(format!("device: `{}` is not an absolute path", path.escape_debug()));
        }
        if access.is_empty() || access.chars().any(|c| !"rwm".contains(c)) {
            return invalid(format!("device {source}: `{access}` is no access; write some of r, w and m"));
        }
    }
    if profile.shm_bytes.is_some_and(|bytes| bytes < SHM_BYTES_MIN) {
        return invalid(format!("shm size: less than {SHM_BYTES_MIN} bytes are not possible"));
    }
    if !(-1000..=1000).contains(&profile.oom_score_adj) {
        return invalid(format!("oom score: {} does not lie between -1000 and 1000", profile.oom_score_adj));
    }
    log(&profile.log)
}

fn log(log: &LogDriver) -> Result<(), Refused> {
    let name = log.name.as_deref().unwrap_or("local");
    if !LOG_DRIVERS.contains(&name) {
        return invalid(format!(
            "log driver `{}`: there is none; there are {}",
            name.escape_debug().take(80).collect::<String>(),
            LOG_DRIVERS.join(", ")
        ));
    }
    let known: &[&str] = match name {
        "local" | "json-file" => &["max-size", "max-file", "compress"],
        "journald" => &["tag"],
        _ => &[],
    };
    for (option, value) in &log.options {
        if !known.contains(&option.as_str()) {
            let known = if known.is_empty() { "none".into() } else { known.join(", ") };
            return invalid(format!(
                "log option `{}`: the driver {name} has {known}",
                option.escape_debug().take(80).collect::<String>()
            ));
        }
        let good = match option.as_str() {
            "max-size" => log_bytes(value).is_some_and(|bytes| bytes >= LOG_BYTES_MIN),
            "max-file" => value.parse::<u32>().is_ok_and(|count| (1..=LOG_FILES_MAX).contains(&count)),
            "compress" => ["true", "false"].contains(&value.as_str()),
            _ => is_word(value),
        };
        if !good {
            return invalid(format!(
                "log option {option}: `{}` makes no sense; max-size is 64k or more, such as 10m, max-file 1 to \
                 {LOG_FILES_MAX}, compress true or false",
                value.escape_debug().take(80).collect::<String>()
            ));
        }
    }
    Ok(())
}

/// A file of a log holds so much at least, and there are so many at most: each of them is renamed whenever one is full,
/// and who writes waits for that.
pub const LOG_BYTES_MIN: u64 = 64 << 10;
/// See [`LOG_BYTES_MIN`].
pub const LOG_FILES_MAX: u32 = 100;

/// `10m`, `100k`, `1g` or a number of bytes.
pub fn log_bytes(text: &str) -> Option<u64> {
    let lower = text.to_ascii_lowercase();
    let (digits, shift) = match lower.strip_suffix(['k', 'm', 'g']) {
        Some(digits) if lower.ends_with('k') => (digits, 10),
        Some(digits) if lower.ends_with('m') => (digits, 20),
        Some(digits) => (digits, 30),
        None => (lower.as_str(), 0),
    };
    digits.parse::<u64>().ok()?.checked_mul(1 << shift)
}

pub(super) fn bounds(bounds: &Bounds) -> Result<(), Refused> {
    let Bounds { pids: _, swap: _, io_weight, io } = bounds;
    if *io_weight != 0 && !(10..=1000).contains(io_weight) {
        return invalid(format!("io weight: {io_weight} does not lie between 10 and 1000"));
    }
    if io.len() > EACH_MAX {
        return invalid(format!("io limits: more than {EACH_MAX} devices are not possible"));
    }
    for (index, bound) in io.iter().enumerate() {
        if !is_path(&bound.device) {
            return invalid(format!("io limit: `{}` is not an absolute path", bound.device.escape_debug()));
        }
        if io[..index].iter().any(|other| other.device == bound.device) {
            return invalid(format!("io limit: {} is given twice", bound.device));
        }
    }
    Ok(())
}

fn is_word(text: &str) -> bool {
    !text.is_empty() && text.len() <= TEXT_MAX && !text.chars().any(|c| c.is_whitespace() || c.is_control())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(change: impl FnOnce(&mut Profile)) -> String {
        let mut profile = Profile::default();
        change(&mut profile);
        check(&profile).expect_err("it makes no sense").to_string()
    }

    #[test]
    fn what_makes_no_sense_is_refused_by_name() {
        let pair = |name: &str, value: &str| [(name.to_owned(), value.to_owned())].into();
        assert!(refused(|p| p.sysctls = pair("kernel.panic", "1")).contains("`kernel.panic`"));
        let limit = Ulimit { soft: 2, hard: 1 };
        assert!(refused(|p| p.ulimits = [("nofile".to_owned(), limit)].into()).contains("above the hard"));
        assert!(refused(|p| p.ulimits = [("files".to_owned(), limit)].into()).contains("there are core"));
        let device = |access: &str| Device {
            source: "/dev/fuse".into(),
            target: "/dev/fuse".into(),
            access: access.into(),
        };
        assert!(refused(|p| p.devices = vec![device("rx")]).contains("`rx` is no access"));
        assert!(refused(|p| p.devices = vec![Device::named("gpu=0")]).contains("vendor.com/class=name"));
        assert!(refused(|p| p.groups = vec!["a b".into()]).contains("no spaces"));
        assert!(refused(|p| p.shm_bytes = Some(1)).contains("shm size"));
        let log = |name: &str, options| LogDriver { name: Some(name.into()), options };
        assert!(refused(|p| p.log = log("syslog", Default::default())).contains("there are local"));
        assert!(refused(|p| p.log = log("none", pair("max-size", "1m"))).contains("has none"));
        for (option, value) in
            [("max-size", "1x"), ("max-size", "63k"), ("max-file", "101"), ("max-file", "0")]
        {
            assert!(
                refused(|p| p.log = log("local", pair(option, value))).contains("makes no sense"),
                "{value}"
            );
        }
        let log = log("local", pair("max-size", "1m"));
        check(&Profile {
            log,
            devices: vec![device("rwm"), Device::named("nvidia.com/gpu=0")],
            ..Profile::default()
        })
        .expect("it does");
    }

    #[test]
    fn sizes_of_logs_have_units() {
        assert_eq!(log_bytes("10m"), Some(10 << 20));
        assert_eq!(log_bytes("4K"), Some(4096));
        assert_eq!(log_bytes("17"), Some(17));
        for text in ["", "m", "-1", "1t", "99999999999999999999g", "18446744073709551615g"] {
            assert_eq!(log_bytes(text), None, "{text}");
        }
    }
}
