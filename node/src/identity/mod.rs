//! Who this node is: its certificate, the cluster's root, and where they are kept.

pub mod ca;
pub mod tls;
pub mod token;

use crate::point;
use anyhow::{Context, Result};
use rswarm_control::ids::{ClusterId, NodeId};
use serde::{Deserialize, Serialize};
use std::fs;
use std::io::Write;
use std::net::SocketAddr;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;

/// A manager as a node knows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ManagerAddr {
    /// Its node id.
    pub node: String,
    /// "ip:port" of its control port.
    pub addr: String,
    /// Its id in the Raft group.
    pub raft_id: u64,
}

/// A member's identity, as kept in `identity.json` of the state directory.
#[derive(Clone, Serialize, Deserialize)]
pub struct Identity {
    /// Format of this file.
    pub format: u32,
    /// This node.
    pub node: String,
    /// The cluster it belongs to.
    pub cluster: String,
    /// The node's certificate (PEM).
    pub cert_pem: String,
    /// Its private key (PEM).
    pub key_pem: String,
    /// The cluster's root certificate (PEM).
    pub ca_pem: String,
    /// "ip:port" that other nodes use.
    pub advertise_addr: String,
    /// "ip:port" this node listens on.
    pub listen_addr: String,
    /// This node's id in the Raft group while it is a manager.
    pub raft_id: Option<u64>,
    /// The managers, as last heard.
    pub managers: Vec<ManagerAddr>,
    /// The incarnation of the cluster that this node last took part in.
    #[serde(default = "first_incarnation")]
    pub incarnation: u64,
    /// The later incarnation that the cluster goes on as, without what this manager remembers.
    #[serde(default)]
    pub superseded: Option<u64>,
}

fn first_incarnation() -> u64 {
    rswarm_raft::Incarnation::FIRST.0
}

const FILE: &str = "identity.json";
const FORMAT: u32 = 1;

impl Identity {
    /// The format that this version writes.
    pub const FORMAT: u32 = FORMAT;

    /// Reads it; `None` where this machine is not a member of any cluster.
    pub fn load(dir: &Path) -> Result<Option<Self>> {
        let path = dir.join(FILE);
        let text = match fs::read(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error).with_context(|| format!("cannot read {}", path.display())),
        };
        let damaged = || format!("{} is damaged; restore it or `rswarm leave --force`", path.display());
        let identity: Self = serde_json::from_slice(&text).with_context(damaged)?;
        anyhow::ensure!(
            identity.format == FORMAT,
            "{} has format {}, this version of rswarm reads {FORMAT}",
            path.display(),
            identity.format
        );
        identity.check().with_context(damaged)?;
        Ok(Some(identity))
    }

    /// That every part can be used.
    fn check(&self) -> Result<()> {
        tls::Credentials::new(&self.cert_pem, &self.ca_pem, &self.key_pem)?;
        self.node.parse::<NodeId>().context("the node id")?;
        self.cluster.parse::<ClusterId>().context("the cluster id")?;
        for addr in [&self.advertise_addr, &self.listen_addr] {
            addr.parse::<SocketAddr>().with_context(|| format!("the address `{addr}`"))?;
        }
        Ok(())
    }

    /// Writes it so that either the old or the new one is there after a power cut.
    pub fn save(&self, dir: &Path) -> Result<()> {
        write_atomically(&dir.join(FILE), &serde_json::to_vec_pretty(self)?)
    }

    /// Forgets it.
    pub fn remove(dir: &Path) -> Result<()> {
        match fs::remove_file(dir.join(FILE)) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(error).with_context(|| format!("cannot remove {}", dir.join(FILE).display()))
            }
            _ => Ok(()),
        }
    }
}

/// Replaces a file: written beside it, synced, renamed, mode 0600.
pub fn write_atomically(path: &Path, bytes: &[u8]) -> Result<()> {
    let dir = path.parent().context("a file has a directory")?;
    let tmp = path.with_extension("tmp");
    let write = || -> std::io::Result<()> {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
        let mut file =
            fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&tmp)?;
        let reach = |step: &str| {
            if path.file_name().is_some_and(|name| name == FILE) {
                point::reach(&format!("identity.{step}"));
            }
        };
        reach("opened");
        file.write_all(bytes)?;
        reach("written");
        file.sync_all()?;
        reach("synced");
        fs::rename(&tmp, path)?;
        reach("named");
        fs::File::open(dir)?.sync_all()?;
        reach("durable");
        Ok(())
    };
    write()
        .inspect_err(|_| {
            // Best effort: what is half written is of no use, and takes room where there is little.
            let _ = fs::remove_file(&tmp);
        })
        .with_context(|| format!("cannot write {}", path.display()))
}

/// `N` random bytes from the kernel.
pub fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    ring::rand::SecureRandom::fill(&ring::rand::SystemRandom::new(), &mut bytes)
        .expect("the kernel has random numbers");
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::PathBuf;
    use std::time::{Duration, SystemTime};

    /// One of a manager, with all that it can say.
    fn identity() -> Identity {
        let now = SystemTime::now();
        let (cluster, node) = (ClusterId(7).to_string(), NodeId(9).to_string());
        let root = ca::Root::generate(&cluster, now).unwrap();
        let (key_pem, csr) = ca::request().unwrap();
        let cert_pem = root.sign(&csr, &node, &cluster, now, Duration::from_secs(3600)).unwrap();
        let addr = "192.0.2.1:2377".to_owned();
        Identity {
            format: FORMAT,
            managers: vec![ManagerAddr { node: node.clone(), addr: addr.clone(), raft_id: 4 }],
            node,
            cluster,
            cert_pem,
            key_pem,
            ca_pem: root.cert_pem,
            advertise_addr: addr.clone(),
            listen_addr: addr,
            raft_id: Some(4),
            incarnation: 1 << 32 | 7,
            superseded: Some(2 << 32 | 8),
        }
    }

    /// `node/tests/data/identity` holds one as each version wrote it. `ADD_FORMS=1 cargo test -p rswarm --lib identity`
    /// adds that of today's, if it is missing; those that are there stay as they are.
    #[test]
    fn what_a_version_once_kept_is_read_for_good() {
        let kept = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/data/identity");
        let today = kept.join(env!("CARGO_PKG_VERSION"));
        if std::env::var_os("ADD_FORMS").is_some() && !today.exists() {
            identity().save(&today).unwrap();
        }
        let mut count = 0;
        for version in fs::read_dir(&kept).unwrap() {
            let dir = version.unwrap().path();
            let read = Identity::load(&dir).unwrap().expect("it is there");
            let again = serde_json::to_vec_pretty(&read).unwrap();
            assert!(
                again == fs::read(dir.join(FILE)).unwrap(),
                "{} says something else today",
                dir.display()
            );
            count += 1;
        }
        assert!(count > 0);
    }
}
