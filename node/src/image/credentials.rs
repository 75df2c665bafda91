//! Credentials for registries: those of `rswarm login`, then what Docker's `config.json` and its helpers know.

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};

use super::{Doing as _, Registries, Result, refused};

/// How long a credential helper may think.
const HELPER_TIMEOUT: Duration = Duration::from_secs(10);
/// Bytes of a helper's answer that are read.
const HELPER_ANSWER_MAX: u64 = 64 << 10;
/// Bytes of a configuration that are read.
const FILE_MAX: u64 = 4 << 20;

/// What opens a registry's door.
#[derive(Clone, PartialEq, Eq, Default)]
pub enum Credentials {
    /// Nothing.
    #[default]
    None,
    /// A name and a password.
    Basic {
        /// Who.
        username: String,
        /// The secret.
        password: String,
    },
    /// A token that a token server exchanges for others.
    Token(String),
}

impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::None => "none",
            Self::Basic { .. } => "a password",
            Self::Token(_) => "a token",
        })
    }
}

/// The credentials for `registry`. A file or helper that cannot be used is as if it had none, and is logged.
///
/// Blocks while a helper runs.
pub fn find(registries: &Registries, registry: &str) -> Credentials {
    let own = registries.logins.as_deref().map(Config::read).and_then(|config| config.kept(registry));
    let docker = || {
        let config = Config::read(registries.credentials.as_deref()?);
        match config.helper(registry).and_then(|helper| ask(&helper, server(registry))) {
            Some(found) => Some(found),
            None => config.kept(registry),
        }
    };
    own.or_else(docker).unwrap_or_default()
}

/// Keeps a name and a password for `registry` in `file`, which only its owner can read.
///
/// # Errors
/// If the disk refuses, or the file holds something else.
pub fn keep(file: &Path, registry: &str, username: &str, password: &str) -> Result<()> {
    let auth = Some(STANDARD.encode(format!("{username}:{password}")));
    change(file, |auths| drop(auths.insert(registry.to_owned(), Auth { auth, ..Auth::default() })))
}

/// Forgets what was kept for `registry`, and says whether there was something.
///
/// # Errors
/// As for [`keep`].
pub fn forget(file: &Path, registry: &str) -> Result<bool> {
    let mut known = false;
    change(file, |auths| known = auths.remove(registry).is_some())?;
    Ok(known)
}

fn change(file: &Path, change: impl FnOnce(&mut BTreeMap<String, Auth>)) -> Result<()> {
    let mut config = match std::fs::read(file) {
        Ok(bytes) => match serde_json::from_slice::<Config>(&bytes) {
            Ok(config) => config,
            Err(error) => return refused(file.display().to_string(), format!("it is damaged: {error}")),
        },
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Config::default(),
        Err(error) => return Err(error).doing(|| format!("read {}", file.display())),
    };
    change(&mut config.auths);
    let write = || {
        let new = file.with_extension("new");
        let mut options = std::fs::File::options();
        let _ = std::fs::remove_file(&new);
        let mut out = options.write(true).create_new(true).mode(0o600).open(&new)?;
        out.write_all(&serde_json::to_vec_pretty(&config)?)?;
        out.sync_all()?;
        std::fs::rename(&new, file)
    };
    write().doing(|| format!("write {}", file.display()))
}

/// Docker's `config.json`, as far as it matters here.
#[derive(Serialize, Deserialize, Default)]
#[serde(default)]
struct Config {
    auths: BTreeMap<String, Auth>,
    #[serde(rename = "credsStore", skip_serializing)]
    store: String,
    #[serde(rename = "credHelpers", skip_serializing)]
    helpers: BTreeMap<String, String>,
}

#[derive(Serialize, Deserialize, Default, Clone)]
#[serde(default)]
struct Auth {
    #[serde(skip_serializing_if = "Option::is_none")]
    auth: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    username: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    password: Option<String>,
    #[serde(rename = "identitytoken", skip_serializing_if = "Option::is_none")]
    token: Option<String>,
}

impl Config {
    fn read(path: &Path) -> Self {
        let mut bytes = Vec::new();
        let read = std::fs::File::open(path).and_then(|file| file.take(FILE_MAX).read_to_end(&mut bytes));
        if read.is_err() {
            return Self::default();
        }
        serde_json::from_slice(&bytes).unwrap_or_else(|error| {
            tracing::warn!("{} is no docker configuration: {error}", path.display());
            Self::default()
        })
    }

    /// What the file itself has.
    fn kept(&self, registry: &str) -> Option<Credentials> {
        let auth = self.auths.iter().find(|(key, _)| same(key, registry)).map(|(_, auth)| auth)?;
        if let Some(token) = auth.token.as_ref().filter(|token| !token.is_empty()) {
            return Some(Credentials::Token(token.clone()));
        }
        match (&auth.auth, &auth.username, &auth.password) {
            (Some(encoded), _, _) if !encoded.is_empty() => {
                let decoded = String::from_utf8(STANDARD.decode(encoded.trim()).ok()?).ok()?;
                let (username, password) = decoded.trim_end_matches('\0').split_once(':')?;
                Some(Credentials::Basic { username: username.into(), password: password.into() })
            }
            (_, Some(username), Some(password)) => {
                Some(Credentials::Basic { username: username.clone(), password: password.clone() })
            }
            _ => None,
        }
    }

    /// The program that knows a registry's credentials.
    fn helper(&self, registry: &str) -> Option<String> {
        let own = self.helpers.iter().find(|(key, _)| same(key, registry)).map(|(_, helper)| helper);
        own.or(Some(&self.store)).filter(|name| !name.is_empty()).cloned()
    }
}

/// Whether an entry of the configuration is about a registry. Docker files its own under an address of the last
/// decade.
fn same(key: &str, registry: &str) -> bool {
    let is_hub = |host: &str| matches!(host, "docker.io" | "index.docker.io" | "registry-1.docker.io");
    let key = key.trim_start_matches("https://").trim_start_matches("http://");
    let host = key.split('/').next().unwrap_or_default();
    host == registry || is_hub(registry) && is_hub(host)
}

/// A registry's name in the words of helpers.
fn server(registry: &str) -> &str {
    if registry == "docker.io" { "https://index.docker.io/v1/" } else { registry }
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Answer {
    username: String,
    secret: String,
}

/// Asks the program `docker-credential-NAME`.
fn ask(name: &str, server: &str) -> Option<Credentials> {
    let sound = name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'));
    if !sound {
        tracing::warn!("`{name}` cannot be the name of a credential helper");
        return None;
    }
    let (program, server) = (format!("docker-credential-{name}"), server.to_owned());
    // On a thread that ends with it, as everything that makes processes.
    let asked = std::thread::spawn(move || run(&program, &server).map_err(|error| (program, error)));
    let answer = match asked.join() {
        Ok(Ok(answer)) => answer?,
        Ok(Err((program, error))) => {
            tracing::warn!("{program} does not help: {error}");
            return None;
        }
        Err(_) => return None,
    };
    let Answer { username, secret } = serde_json::from_slice(&answer).ok()?;
    Some(match &*username {
        "<token>" => Credentials::Token(secret),
        _ => Credentials::Basic { username, password: secret },
    })
}

/// What the helper prints; `None` if it knows nothing of this registry.
fn run(program: &str, server: &str) -> std::io::Result<Option<Vec<u8>>> {
    let mut child = Command::new(program)
        .arg("get")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()?;
    let (stdin, stdout) = (child.stdin.take(), child.stdout.take());
    if let Some(mut stdin) = stdin {
        // One that does not want to know has ended already.
        let _ = stdin.write_all(server.as_bytes());
    }
    let reader = std::thread::spawn(move || {
        let mut bytes = Vec::new();
        stdout.map_or(Ok(0), |out| out.take(HELPER_ANSWER_MAX).read_to_end(&mut bytes)).map(|_| bytes)
    });
    let deadline = Instant::now() + HELPER_TIMEOUT;
    let status = loop {
        match child.try_wait()? {
            Some(status) => break status,
            None if Instant::now() > deadline => {
                child.kill()?;
                child.wait()?;
                return Err(std::io::Error::new(std::io::ErrorKind::TimedOut, "it does not answer"));
            }
            None => std::thread::sleep(Duration::from_millis(5)),
        }
    };
    let answer = reader.join().map_err(|_| std::io::Error::other("its answer cannot be read"))??;
    Ok(status.success().then_some(answer))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn basic(username: &str, password: &str) -> Option<Credentials> {
        Some(Credentials::Basic { username: username.into(), password: password.into() })
    }

    #[test]
    fn credentials_are_found_by_host() {
        let config: Config = serde_json::from_str(
            r#"{"auths": {"https://index.docker.io/v1/": {"auth": "dXNlcjpwYXNzOndvcmQ="},
                "lan:5000": {"username": "u", "password": "p"}, "azure": {"auth": "eDp5", "identitytoken": "t"},
                "empty": {}}, "credsStore": "x", "credHelpers": {"gcr.io": "gcloud"}}"#,
        )
        .unwrap();
        assert_eq!(config.kept("docker.io"), basic("user", "pass:word"));
        assert_eq!(config.kept("lan:5000"), basic("u", "p"));
        assert_eq!(config.kept("azure"), Some(Credentials::Token("t".into())));
        for registry in ["empty", "lan", "elsewhere"] {
            assert_eq!(config.kept(registry), None);
        }
        assert_eq!(config.helper("gcr.io").as_deref(), Some("gcloud"));
        assert_eq!(config.helper("lan:5000").as_deref(), Some("x"));
    }

    #[test]
    fn a_login_is_kept_for_its_owner_alone_and_forgotten() {
        use std::os::unix::fs::PermissionsExt as _;
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("logins.json");
        let registries = Registries { logins: Some(file.clone()), ..Registries::default() };
        keep(&file, "lan:5000", "u", "p:q").unwrap();
        assert_eq!(Some(find(&registries, "lan:5000")), basic("u", "p:q"));
        assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(forget(&file, "lan:5000").unwrap());
        assert!(!forget(&file, "lan:5000").unwrap());
        assert_eq!(find(&registries, "lan:5000"), Credentials::None);
    }

    #[test]
    fn secrets_do_not_show() {
        assert!(!format!("{:?}", basic("u", "hunter2")).contains("hunter2"));
    }
}
