//! How a daemon is told where things are: flags, and `/etc/rswarm/rswarm.toml` for what flags do not say.

use crate::cdi;
use crate::executor::UserIds;
use anyhow::{Context, Result};
use rswarm_control::model::{Labels, Stocks, stocks};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

/// The port of everything: TCP for control, UDP for the overlay.
pub const PORT: u16 = 2377;

/// Run a node in the foreground
#[derive(Clone, Debug, clap::Args)]
pub struct Flags {
    /// Where the node's identity, log, images and containers are kept
    #[arg(long, env = "RSWARM_STATE_DIR")]
    pub state_dir: Option<PathBuf>,
    /// Where what a reboot may take away is kept
    #[arg(long, env = "RSWARM_RUN_DIR")]
    pub run_dir: Option<PathBuf>,
    /// Control group under which the containers' groups are made
    #[arg(long)]
    pub cgroup_parent: Option<String>,
    /// Address to listen on until `init` or `join` says otherwise
    #[arg(long, value_name = "IP:PORT")]
    pub listen_addr: Option<SocketAddr>,
    /// Give managers that are slow, or far from one another, time to answer; the same on all managers
    #[arg(long)]
    pub patient: bool,
    /// OCI runtime that makes the containers: the absolute path of runc, crun or youki
    #[arg(long, value_name = "PATH")]
    pub runtime: Option<PathBuf>,
    /// Configuration file
    #[arg(long, default_value = "/etc/rswarm/rswarm.toml")]
    pub config: PathBuf,
}

/// What the file may say. All of it is optional; a flag wins over the file.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct File {
    state_dir: Option<PathBuf>,
    run_dir: Option<PathBuf>,
    socket: Option<PathBuf>,
    cgroup_parent: Option<String>,
    listen_addr: Option<SocketAddr>,
    user_ids: Option<String>,
    runtime: Option<PathBuf>,
    cdi_spec_dirs: Option<Vec<PathBuf>>,
    #[serde(default)]
    patient: bool,
    #[serde(default)]
    insecure_registries: Vec<String>,
    #[serde(default)]
    labels: Vec<String>,
    #[serde(default)]
    generic_resources: Vec<String>,
    #[serde(default)]
    registry: BTreeMap<String, Registry>,
}

/// How one registry is spoken to: `[registry."lan:5000"]`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct Registry {
    /// Hosts that are asked before it, in this order.
    pub mirrors: Vec<String>,
    /// Certificate (PEM) of the authority that signs for it, beside those the machine trusts.
    pub ca: Option<PathBuf>,
    /// Spoken to without TLS.
    pub insecure: bool,
}

/// A daemon's configuration, complete.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where the node's identity, log, images and containers are kept.
    pub state_dir: PathBuf,
    /// Where what a reboot may take away is kept.
    pub run_dir: PathBuf,
    /// The API's unix socket.
    pub socket: PathBuf,
    /// Control group under which the containers' groups are made.
    pub cgroup_parent: String,
    /// What `init` and `join` listen on when they do not say.
    pub listen_addr: SocketAddr,
    /// Whether managers are given time to answer one another: heartbeats twice a second, elections after 1.5 to 3 s.
    pub patient: bool,
    /// The ids that containers with users of their own are given.
    pub user_ids: UserIds,
    /// The OCI runtime that makes the containers, if their shims do not.
    pub runtime: Option<PathBuf>,
    /// Where the files are that name devices; what is in a later one counts.
    pub cdi_spec_dirs: Vec<PathBuf>,
    /// Registries that are spoken to without TLS, as "host:port".
    pub insecure_registries: Vec<String>,
    /// What constraints read as `engine.labels.KEY`.
    pub labels: Labels,
    /// What else this machine has to give to tasks.
    pub generic: Stocks,
    /// How single registries are spoken to, by "host" or "host:port".
    pub registries: BTreeMap<String, Registry>,
}

impl Config {
    /// Puts flags, file and defaults together. A missing file is an empty one.
    pub fn new(flags: Flags, socket: Option<PathBuf>) -> Result<Self> {
        let file = read(&flags.config)?;
        let path = flags.config.display().to_string();
        let unusable = || format!("{path} cannot be used");
        let socket = socket.or(file.socket);
        let beside = socket.as_deref().and_then(Path::parent).map(Path::to_path_buf);
        let run_dir = flags.run_dir.or(file.run_dir).or(beside).unwrap_or_else(|| "/run/rswarm".into());
        Ok(Self {
            state_dir: flags.state_dir.or(file.state_dir).unwrap_or_else(|| "/var/lib/rswarm".into()),
            socket: socket.unwrap_or_else(|| run_dir.join("rswarm.sock")),
            run_dir,
            cgroup_parent: cgroup_parent(flags.cgroup_parent.or(file.cgroup_parent))?,
            listen_addr: flags
                .listen_addr
                .or(file.listen_addr)
                .unwrap_or_else(|| SocketAddr::from((Ipv4Addr::UNSPECIFIED, PORT))),
            patient: flags.patient || file.patient,
            user_ids: file
                .user_ids
                .map_or(Ok(UserIds::default()), |text| text.parse())
                .map_err(|error| anyhow::anyhow!("user-ids: {error}"))
                .with_context(unusable)?,
            runtime: flags.runtime.or(file.runtime),
            cdi_spec_dirs: file.cdi_spec_dirs.unwrap_or_else(|| cdi::DIRECTORIES.map(PathBuf::from).to_vec()),
            insecure_registries: file.insecure_registries,
            labels: labels(&file.labels).with_context(unusable)?,
            generic: stocks(&file.generic_resources).with_context(unusable)?,
            registries: file.registry,
        })
    }
}

/// `KEY=VALUE`, each key once.
fn labels(texts: &[String]) -> Result<Labels> {
    let mut labels = Labels::new();
    for text in texts {
        let (key, value) = text.split_once('=').unwrap_or((text, ""));
        let sound =
            !key.is_empty() && key.len() <= 255 && !key.chars().any(|c| c.is_whitespace() || c.is_control());
        anyhow::ensure!(sound, "label `{text}`: write KEY=VALUE, the key without spaces");
        anyhow::ensure!(labels.insert(key.into(), value.into()).is_none(), "label `{key}` is given twice");
    }
    Ok(labels)
}

/// As a path below the root of the hierarchies: `/rswarm` and `rswarm` are the same group.
fn cgroup_parent(said: Option<String>) -> Result<String> {
    let said = said.unwrap_or_else(|| "rswarm".into());
    let path = said.trim_matches('/');
    let sound = !path.is_empty() && path.split('/').all(|part| !matches!(part, "" | "." | ".."));
    anyhow::ensure!(sound, "`{said}` is not a control group below the root, for example rswarm or lab/n1");
    Ok(path.to_owned())
}

fn read(path: &Path) -> Result<File> {
    match std::fs::read_to_string(path) {
        Ok(text) => toml::from_str(&text).with_context(|| format!("{} cannot be used", path.display())),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(File::default()),
        Err(error) => Err(error).with_context(|| format!("cannot read {}", path.display())),
    }
}

/// The address that other nodes shall use: as given (an address with or without a port, or the name of an
/// interface), or this machine's only one.
pub fn advertise_addr(given: &str, port: u16) -> Result<SocketAddr> {
    if let Ok(addr) = given.parse::<SocketAddr>() {
        return specified(addr);
    }
    if let Ok(ip) = given.parse::<IpAddr>() {
        return specified(SocketAddr::new(ip, port));
    }
    let addresses = addresses()?;
    let (name, port) = match given.rsplit_once(':') {
        Some((name, text)) => (name, text.parse().with_context(|| format!("`{text}` is not a port"))?),
        None => (given, port),
    };
    if !name.is_empty() {
        let found = addresses.iter().find(|(interface, _)| interface == name);
        let (_, ip) = found.with_context(|| {
            format!(
                "`{name}` is neither an address nor an interface of this machine; it has {}",
                listing(&addresses)
            )
        })?;
        return Ok(SocketAddr::new(IpAddr::V4(*ip), port));
    }
    match addresses.as_slice() {
        [(_, ip)] => Ok(SocketAddr::new(IpAddr::V4(*ip), port)),
        [] => anyhow::bail!("this machine has no address but loopback; say one with --advertise-addr"),
        _ => anyhow::bail!(
            "could not choose an address to advertise: this machine has {}; choose one with --advertise-addr",
            listing(&addresses)
        ),
    }
}

fn specified(addr: SocketAddr) -> Result<SocketAddr> {
    anyhow::ensure!(
        !addr.ip().is_unspecified(),
        "cannot advertise {}: other nodes need an address that they can reach",
        addr.ip()
    );
    anyhow::ensure!(addr.port() != 0, "cannot advertise port 0");
    Ok(addr)
}

fn listing(addresses: &[(String, Ipv4Addr)]) -> String {
    let words: Vec<String> = addresses.iter().map(|(name, ip)| format!("{ip} ({name})")).collect();
    if words.is_empty() { "none but loopback".into() } else { words.join(", ") }
}

/// This machine's IPv4 addresses with their interfaces, without loopback and link-local ones, and without
/// those of interfaces that rswarm itself made.
fn addresses() -> Result<Vec<(String, Ipv4Addr)>> {
    let all = nix::ifaddrs::getifaddrs().context("cannot list this machine's addresses")?;
    let mut found: Vec<(String, Ipv4Addr)> = all
        .filter_map(|interface| {
            let ip = interface.address?.as_sockaddr_in()?.ip();
            let ours = interface.interface_name.starts_with("rsw");
            (!ip.is_loopback() && !ip.is_link_local() && !ours).then_some((interface.interface_name, ip))
        })
        .collect();
    found.dedup();
    Ok(found)
}

/// Whether `said`, which may name no port, means the address `addr`, `ip:port`.
pub fn same_address(said: &str, addr: &str) -> bool {
    let Ok(addr) = addr.parse::<SocketAddr>() else { return said == addr };
    advertise_addr(said, addr.port()).is_ok_and(|said| said == addr)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_needs_no_port() {
        assert_eq!(advertise_addr("10.1.2.3", 2377).unwrap(), "10.1.2.3:2377".parse().unwrap());
        assert_eq!(advertise_addr("10.1.2.3:99", 2377).unwrap(), "10.1.2.3:99".parse().unwrap());
    }

    #[test]
    fn addresses_that_nobody_can_reach_are_refused() {
        for bad in ["0.0.0.0", "0.0.0.0:2377", "10.1.2.3:0", "nonsense0", "lo:port"] {
            assert!(advertise_addr(bad, 2377).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_control_group_lies_below_the_root() {
        assert_eq!(cgroup_parent(Some("/lab/n1".into())).unwrap(), "lab/n1");
        assert_eq!(cgroup_parent(None).unwrap(), "rswarm");
        for bad in ["", "/", "../x", "a//b"] {
            assert!(cgroup_parent(Some(bad.into())).is_err(), "{bad}");
        }
    }

    #[test]
    fn labels_and_generic_resources_come_from_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let config = |text: &str| {
            let path = dir.path().join("rswarm.toml");
            std::fs::write(&path, text).unwrap();
            let flags = Flags {
                state_dir: None,
                run_dir: None,
                cgroup_parent: None,
                listen_addr: None,
                patient: false,
                runtime: None,
                config: path,
            };
            Config::new(flags, None)
        };
        let good = config("labels = [\"rack=r1\", \"fast\"]\ngeneric-resources = [\"gpu=2\", \"nic=eth1\"]")
            .unwrap();
        assert_eq!(good.labels["rack"], "r1");
        assert_eq!(good.labels["fast"], "");
        assert_eq!(good.generic["gpu"].len(), 2);
        for bad in ["labels = [\"=x\"]", "labels = [\"a=1\", \"a=2\"]", "generic-resources = [\"gpu\"]"] {
            let error = format!("{:#}", config(bad).unwrap_err());
            assert!(error.contains("rswarm.toml cannot be used"), "{error}");
        }
    }

    #[test]
    fn a_configuration_file_with_an_unknown_key_is_refused_by_name() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("rswarm.toml");
        std::fs::write(&path, "statedir = \"/x\"").unwrap();
        let error = format!("{:#}", read(&path).unwrap_err());
        assert!(error.contains("statedir") && error.contains("rswarm.toml"), "{error}");
    }
}
