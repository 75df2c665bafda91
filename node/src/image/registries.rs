//! Which registries are spoken to, how, and with which credentials.

use std::collections::BTreeMap;
use std::path::PathBuf;

use base64::Engine as _;
use oci_client::secrets::RegistryAuth;
use serde::Deserialize;

/// Which registries are spoken to, and how.
#[derive(Clone, Debug, Default)]
pub struct Registries {
    /// Hosts, with their ports if not standard, spoken to by plain HTTP. `localhost` and 127.0.0.0/8 always are.
    pub insecure: Vec<String>,
    /// Hosts to ask, in this order, before the registry that is the key: `docker.io` → `["mirror.lan:5000"]`.
    pub mirrors: BTreeMap<String, Vec<String>>,
    /// Docker's `config.json` with credentials; `None` for none.
    pub credentials: Option<PathBuf>,
}

impl Registries {
    /// No mirrors, and the credentials of `$DOCKER_CONFIG/config.json` or `~/.docker/config.json`.
    pub fn from_environment() -> Self {
        let directory = std::env::var_os("DOCKER_CONFIG").map(PathBuf::from);
        let home = || Some(PathBuf::from(std::env::var_os("HOME")?).join(".docker"));
        let credentials = directory.or_else(home).map(|directory| directory.join("config.json"));
        Self { credentials, ..Self::default() }
    }

    /// Whether `host[:port]` is spoken to by plain HTTP.
    pub(super) fn is_insecure(&self, registry: &str) -> bool {
        let host = registry.rsplit_once(':').map_or(registry, |(host, _)| host);
        let loopback =
            host.trim_matches(['[', ']']).parse().is_ok_and(|ip: std::net::IpAddr| ip.is_loopback());
        loopback || host == "localhost" || self.insecure.iter().any(|insecure| insecure == registry)
    }

    /// The user name and password kept for a registry, if any.
    pub(super) fn credentials(&self, registry: &str) -> RegistryAuth {
        let Some(path) = &self.credentials else { return RegistryAuth::Anonymous };
        let Ok(bytes) = std::fs::read(path) else { return RegistryAuth::Anonymous };
        match serde_json::from_slice::<DockerConfig>(&bytes) {
            Ok(config) => config.basic(registry),
            Err(error) => {
                tracing::warn!("{} is no docker configuration: {error}", path.display());
                RegistryAuth::Anonymous
            }
        }
    }
}

#[derive(Deserialize)]
struct DockerConfig {
    #[serde(default)]
    auths: BTreeMap<String, DockerAuth>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct DockerAuth {
    auth: Option<String>,
    username: Option<String>,
    password: Option<String>,
}

impl DockerConfig {
    fn basic(&self, registry: &str) -> RegistryAuth {
        // Docker files its own registry under an address of the last decade.
        let is_hub = |host: &str| matches!(host, "docker.io" | "index.docker.io" | "registry-1.docker.io");
        let host_of = |key: &str| {
            let key = key.trim_start_matches("https://").trim_start_matches("http://");
            key.split('/').next().unwrap_or_default().to_owned()
        };
        let fits = |key: &str| host_of(key) == registry || is_hub(registry) && is_hub(&host_of(key));
        let found = self.auths.iter().find(|(key, _)| fits(key)).map(|(_, auth)| auth);
        let basic = found.and_then(|auth| match (&auth.auth, &auth.username, &auth.password) {
            (Some(encoded), _, _) if !encoded.is_empty() => {
                let decoded = base64::engine::general_purpose::STANDARD.decode(encoded.trim()).ok()?;
                let decoded = String::from_utf8(decoded).ok()?;
                let (user, password) = decoded.trim_end_matches('\0').split_once(':')?;
                Some(RegistryAuth::Basic(user.into(), password.into()))
            }
            (_, Some(user), Some(password)) => Some(RegistryAuth::Basic(user.clone(), password.clone())),
            _ => None,
        });
        basic.unwrap_or(RegistryAuth::Anonymous)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_http_is_for_loopback_and_the_configured() {
        let registries = Registries { insecure: vec!["lan:5000".into()], ..Registries::default() };
        for (registry, insecure) in [
            ("localhost:5000", true),
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

    #[test]
    fn credentials_are_found_by_host() {
        let config: DockerConfig = serde_json::from_str(
            r#"{"auths": {"https://index.docker.io/v1/": {"auth": "dXNlcjpwYXNzOndvcmQ="},
                "lan:5000": {"username": "u", "password": "p"}, "empty": {}}, "credsStore": "x"}"#,
        )
        .unwrap();
        assert_eq!(config.basic("docker.io"), RegistryAuth::Basic("user".into(), "pass:word".into()));
        assert_eq!(config.basic("lan:5000"), RegistryAuth::Basic("u".into(), "p".into()));
        for registry in ["empty", "lan", "elsewhere"] {
            assert_eq!(config.basic(registry), RegistryAuth::Anonymous);
        }
    }
}
