//! Which registries are spoken to, how, and with which credentials.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use super::credentials::{self, Credentials};
use super::registry::{Remote, Trouble};
use super::{Error, Reference, Result};

/// A registry that sends nothing for so long has gone.
const PATIENCE: Duration = Duration::from_secs(30);

/// Which registries are spoken to, and how.
#[derive(Clone, Debug)]
pub struct Registries {
    /// Hosts, with their ports if not standard, spoken to by plain HTTP. `localhost` and 127.0.0.0/8 are too,
    /// unless there is a certificate for them in `roots`.
    pub insecure: Vec<String>,
    /// Hosts to ask, in this order, before the registry that is the key: `docker.io` → `["mirror.lan:5000"]`.
    pub mirrors: BTreeMap<String, Vec<String>>,
    /// Certificates (PEM) of authorities that may sign for one host, beside those the machine trusts.
    pub roots: BTreeMap<String, PathBuf>,
    /// Where `rswarm login` keeps credentials; `None` for nowhere.
    pub logins: Option<PathBuf>,
    /// Docker's `config.json` with credentials; `None` for none.
    pub credentials: Option<PathBuf>,
    /// How long a registry may be silent in the middle of an answer.
    pub patience: Duration,
}

impl Default for Registries {
    fn default() -> Self {
        Self {
            insecure: Vec::new(),
            mirrors: BTreeMap::new(),
            roots: BTreeMap::new(),
            logins: None,
            credentials: None,
            patience: PATIENCE,
        }
    }
}

impl Registries {
    /// No mirrors, and the credentials of `$DOCKER_CONFIG/config.json` or `~/.docker/config.json`.
    pub fn from_environment() -> Self {
        let directory = std::env::var_os("DOCKER_CONFIG").map(PathBuf::from);
        // A service manager gives no home to who runs as root.
        let root = || rustix::process::geteuid().is_root().then(|| PathBuf::from("/root"));
        let home = || std::env::var_os("HOME").map(PathBuf::from).or_else(root);
        let directory = directory.or_else(|| Some(home()?.join(".docker")));
        let credentials = directory.map(|directory| directory.join("config.json"));
        Self { credentials, ..Self::default() }
    }

    /// Asks `registry` (empty for Docker's) whether it lets these credentials in, and keeps them if so. Returns
    /// its name.
    ///
    /// # Errors
    /// [`Error::Login`] with the registry's words, and if the credentials cannot be kept.
    pub async fn login(&self, registry: &str, username: &str, password: &str) -> Result<String> {
        let host = host_of(registry)?;
        if username.is_empty() || password.is_empty() || username.contains(':') {
            return Err(failed(&host, "a user name without `:`, and a password, are needed"));
        }
        let given = Credentials::Basic { username: username.into(), password: password.into() };
        let remote = Remote::new(&host, "", "", self, given)?;
        remote.enter().await.map_err(|trouble| match trouble {
            Trouble::Denied { words, .. } => failed(&host, &format!("it says: {words}")),
            other => failed(&host, &other.to_string()),
        })?;
        let Some(file) = &self.logins else { return Err(failed(&host, "there is no place to keep them")) };
        credentials::keep(file, &host, username, password)?;
        Ok(host)
    }

    /// Forgets what [`Registries::login`] kept. Returns the registry's name and whether it was known.
    ///
    /// # Errors
    /// If `registry` is no host, or the disk refuses.
    pub fn logout(&self, registry: &str) -> Result<(String, bool)> {
        let host = host_of(registry)?;
        let known = self.logins.as_deref().map_or(Ok(false), |file| credentials::forget(file, &host))?;
        Ok((host, known))
    }

    /// Whether `host[:port]` is spoken to by plain HTTP.
    pub(super) fn is_insecure(&self, registry: &str) -> bool {
        if self.roots.contains_key(registry) {
            return false;
        }
        let host = registry.rsplit_once(':').map_or(registry, |(host, _)| host);
        let loopback =
            host.trim_matches(['[', ']']).parse().is_ok_and(|ip: std::net::IpAddr| ip.is_loopback());
        loopback || host == "localhost" || self.insecure.iter().any(|insecure| insecure == registry)
    }
}

fn failed(registry: &str, why: &str) -> Error {
    Error::Login { registry: registry.to_owned(), why: why.to_owned() }
}

/// The host that people mean who write a registry with `https://` or Docker's old address.
fn host_of(registry: &str) -> Result<String> {
    let host = registry.trim_start_matches("https://").trim_start_matches("http://");
    let host = host.split('/').next().unwrap_or_default();
    if matches!(host, "" | "docker.io" | "index.docker.io" | "registry-1.docker.io") {
        return Ok("docker.io".into());
    }
    // As a reference would have it, so that what is kept is found again. `localhost` alone is a host too.
    let reference: Reference = format!("{host}/x").parse()?;
    match reference.registry() == host {
        true => Ok(host.to_owned()),
        false => Err(failed(host, "it is not a host name with a dot or a port")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_http_is_for_loopback_and_the_configured() {
        let registries = Registries {
            insecure: vec!["lan:5000".into()],
            roots: [("localhost:5443".to_owned(), "/ca.pem".into())].into(),
            ..Registries::default()
        };
        for (registry, insecure) in [
            ("localhost:5000", true),
            ("localhost:5443", false),
            ("127.0.0.1", true),
            ("127.9.9.9:80", true),
            ("[::1]:5000", true),
            ("lan:5000", true),
            ("lan", false),
            ("docker.io", false),
            ("localhost.example.com", false),
            ("127.0.0.1.example.com:5000", false),
        ] {
            assert_eq!(registries.is_insecure(registry), insecure, "{registry}");
        }
    }
}
