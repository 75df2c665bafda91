//! An OCI runtime that makes this node's containers in place of the shim: which ones will do, and what they cannot.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use rswarm_shim::cgroup::Layout;
use tokio::process::Command;
use tokio::time::timeout;

use super::request::ContainerRequest;

/// How long a runtime may take to say its version.
const VERSION_MAX: Duration = Duration::from_secs(10);
/// The runtimes whose ways we know, and the oldest version of each that has all we ask for.
const KNOWN: [(&str, [u32; 2]); 3] = [("runc", [1, 1]), ("crun", [1, 0]), ("youki", [0, 3])];
const CURE: &str = "name the path of runc, crun or youki, or leave `runtime` out";

/// A runtime that is installed and will do.
#[derive(Clone, Debug)]
pub(super) struct Runtime {
    pub(super) path: PathBuf,
    /// Its name and version.
    pub(super) name: String,
}

impl Runtime {
    /// Looks at what is installed at `path`.
    ///
    /// # Errors
    /// If it is none that we can use here, with the cure.
    pub(super) async fn find(path: &Path, layout: Option<&Layout>) -> Result<Self, String> {
        let unusable =
            |why: String| format!("the container runtime {} cannot be used: {why}", path.display());
        if !path.is_absolute() {
            return Err(unusable(format!("it is no absolute path: {CURE}")));
        }
        let said = version(path).await.map_err(|why| unusable(format!("{why}: {CURE}")))?;
        let (name, found) = read_version(&said).ok_or_else(|| {
            let line: String = said.lines().next().unwrap_or_default().chars().take(100).collect();
            unusable(format!("it says of itself {line:?}, and is none of runc, crun and youki: {CURE}"))
        })?;
        let least = KNOWN.iter().find(|(known, _)| *known == name).map_or([0, 0], |(_, least)| *least);
        if found < least {
            let [major, minor] = least;
            return Err(unusable(format!(
                "{name} {}.{} is too old: install version {major}.{minor} or later",
                found[0], found[1]
            )));
        }
        let Some(layout) = layout else {
            return Err(unusable(
                "this daemon may not make the control groups that its containers would be found by: run it as root \
                 on the machine itself, or leave `runtime` out"
                    .into(),
            ));
        };
        if name == "crun" && !layout.unified_controls && layout.unified.is_some() {
            return Err(unusable(
                "crun refuses machines with both kinds of control groups: use runc, or boot with \
                 systemd.unified_cgroup_hierarchy=1"
                    .into(),
            ));
        }
        Ok(Self { path: path.into(), name: format!("{name} {}.{}", found[0], found[1]) })
    }

    /// Why a container cannot be made by it, with the cure.
    pub(super) fn refuses(&self, request: &ContainerRequest) -> Option<String> {
        let what = if request.own_users {
            "have users of its own (--userns)"
        } else if request.init {
            "have an init of ours (--init)"
        } else {
            return None;
        };
        Some(format!(
            "it cannot {what} on this node, whose containers are made by {}: leave that out, or place it on a node \
             without `runtime`",
            self.name
        ))
    }
}

/// What it prints when asked for its version.
async fn version(path: &Path) -> Result<String, String> {
    let mut command = Command::new(path);
    command.arg("--version").stdin(Stdio::null()).kill_on_drop(true);
    let words = |error: std::io::Error| match error.kind() {
        std::io::ErrorKind::NotFound => "there is no such program".to_owned(),
        std::io::ErrorKind::PermissionDenied => "it is not executable".to_owned(),
        _ => error.to_string(),
    };
    let output = match timeout(VERSION_MAX, command.output()).await {
        Ok(output) => output.map_err(words)?,
        Err(_) => return Err(format!("it does not say its version within {VERSION_MAX:?}")),
    };
    if !output.status.success() {
        return Err(format!("asked for its version it ends with {}", output.status));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Name and version in `runc version 1.1.5+ds1` and the like.
fn read_version(said: &str) -> Option<(&'static str, [u32; 2])> {
    let mut words = said.split_whitespace();
    let name = words.next()?;
    let (known, _) = KNOWN.into_iter().find(|(known, _)| *known == name)?;
    let number = words.find(|word| word.starts_with(|c: char| c.is_ascii_digit()))?;
    let mut parts = number.split(|c: char| !c.is_ascii_digit());
    let mut next = || parts.next()?.parse().ok();
    Some((known, [next()?, next()?]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runtimes_say_who_they_are() {
        assert_eq!(read_version("runc version 1.1.5+ds1\ncommit: x\n"), Some(("runc", [1, 1])));
        assert_eq!(read_version("crun version 1.8.1\n"), Some(("crun", [1, 8])));
        assert_eq!(read_version("youki version: 0.5.7\n"), Some(("youki", [0, 5])));
        for other in ["", "runc", "busybox version 1.36", "runc version unknown"] {
            assert_eq!(read_version(other), None, "{other}");
        }
    }
}
