//! Names of images, by Docker's grammar: `[registry/]path[:tag][@digest]`.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::Digest;

const DOCKER_HUB: &str = "docker.io";
const NAME_MAX: usize = 255;
const TAG_MAX: usize = 128;

/// The full name of an image: `nginx` is `docker.io/library/nginx:latest`.
///
/// [`fmt::Display`] writes the full name; [`Reference::familiar`] the short one people type.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Reference {
    registry: String,
    repository: String,
    tag: Option<String>,
    digest: Option<Digest>,
}

/// Why a text does not name an image.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not an image name: {why}")]
pub struct ReferenceError {
    text: String,
    why: &'static str,
}

impl Reference {
    /// The registry's host, with its port if one was given.
    pub fn registry(&self) -> &str {
        &self.registry
    }

    /// The path within the registry, `library/nginx`.
    pub fn repository(&self) -> &str {
        &self.repository
    }

    /// The tag; `latest` where neither tag nor digest was given.
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    /// The digest, if the name is pinned to one.
    pub fn digest(&self) -> Option<&Digest> {
        self.digest.as_ref()
    }

    /// Registry and repository, without tag or digest.
    pub fn name(&self) -> String {
        format!("{}/{}", self.registry, self.repository)
    }

    /// The same name, pinned to `digest`; the tag stays for people to read.
    pub fn pinned(&self, digest: Digest) -> Self {
        Self { digest: Some(digest), ..self.clone() }
    }

    /// The same name without its tag, pinned to `digest`.
    pub fn by_digest(&self, digest: Digest) -> Self {
        Self { tag: None, digest: Some(digest), ..self.clone() }
    }

    /// The short form: without `docker.io/` and `library/`.
    pub fn familiar(&self) -> String {
        let name = self.familiar_name();
        let tag = self.tag.as_ref().map_or(String::new(), |tag| format!(":{tag}"));
        let digest = self.digest.as_ref().map_or(String::new(), |digest| format!("@{digest}"));
        format!("{name}{tag}{digest}")
    }

    /// Registry and repository as people type them.
    pub fn familiar_name(&self) -> String {
        match (&*self.registry, self.repository.strip_prefix("library/")) {
            (DOCKER_HUB, Some(short)) if !short.contains('/') => short.into(),
            (DOCKER_HUB, _) => self.repository.clone(),
            _ => self.name(),
        }
    }
}

impl FromStr for Reference {
    type Err = ReferenceError;

    fn from_str(text: &str) -> Result<Self, ReferenceError> {
        let error = |why| ReferenceError { text: text.chars().take(300).collect(), why };
        if text.is_empty() {
            return Err(error("it is empty"));
        }
        let (rest, digest) = match text.split_once('@') {
            Some((rest, digest)) => {
                let digest =
                    digest.parse().map_err(|_| error("after `@` comes sha256: and 64 hexadecimal digits"))?;
                (rest, Some(digest))
            }
            None => (text, None),
        };
        let (name, tag) = match rest.rsplit_once(':') {
            Some((name, tag)) if !tag.contains('/') => (name, Some(tag)),
            _ => (rest, None),
        };
        if tag.is_some_and(|tag| !is_tag(tag)) {
            return Err(error(
                "a tag has up to 128 letters, digits, `_`, `.` and `-`, and starts with none of the last two",
            ));
        }
        let (registry, path) = match name.split_once('/') {
            Some((host, path)) if host.contains(['.', ':']) || host == "localhost" || has_upper(host) => {
                (host, path)
            }
            _ => (DOCKER_HUB, name),
        };
        let registry = if registry == "index.docker.io" { DOCKER_HUB } else { registry };
        if !is_host(registry) {
            return Err(error("the part before the first `/` is not a host name with an optional port"));
        }
        if has_upper(path) {
            return Err(error("the name must be lower case"));
        }
        if !path.split('/').all(is_component) {
            return Err(error(
                "each part of the name has lower-case letters and digits, with single `.`, `_`, `__` or dashes between",
            ));
        }
        let repository = if registry == DOCKER_HUB && !path.contains('/') {
            format!("library/{path}")
        } else {
            path.to_owned()
        };
        if registry.len() + 1 + repository.len() > NAME_MAX {
            return Err(error("the name is longer than 255 characters"));
        }
        let tag = tag.or(if digest.is_none() { Some("latest") } else { None }).map(str::to_owned);
        Ok(Self { registry: registry.to_owned(), repository, tag, digest })
    }
}

fn has_upper(text: &str) -> bool {
    text.bytes().any(|b| b.is_ascii_uppercase())
}

fn is_tag(tag: &str) -> bool {
    let word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    (1..=TAG_MAX).contains(&tag.len())
        && tag.bytes().next().is_some_and(word)
        && tag.bytes().all(|b| word(b) || b == b'.' || b == b'-')
}

/// Alphanumeric runs, separated by one `.`, one or two `_`, or any number of dashes.
fn is_component(component: &str) -> bool {
    let alnum = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    let separators = component.split(alnum).filter(|separator| !separator.is_empty());
    component.starts_with(alnum)
        && component.ends_with(alnum)
        && separators.into_iter().all(|s| matches!(s, "." | "_" | "__") || s.bytes().all(|b| b == b'-'))
}

fn is_host(registry: &str) -> bool {
    let is_port = |port: &str| (1..=5).contains(&port.len()) && port.parse::<u16>().is_ok();
    if let Some(rest) = registry.strip_prefix('[') {
        let Some((address, port)) = rest.split_once(']') else { return false };
        return address.parse::<std::net::Ipv6Addr>().is_ok()
            && (port.is_empty() || port.strip_prefix(':').is_some_and(is_port));
    }
    let (host, port) = registry.split_once(':').map_or((registry, None), |(host, port)| (host, Some(port)));
    let label = |label: &str| {
        let word = |b: u8| b.is_ascii_alphanumeric();
        label.bytes().next().is_some_and(word)
            && label.bytes().last().is_some_and(word)
            && label.bytes().all(|b| word(b) || b == b'-')
    };
    host.split('.').all(label) && port.is_none_or(is_port)
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.registry, self.repository)?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        if let Some(digest) = &self.digest {
            write!(f, "@{digest}")?;
        }
        Ok(())
    }
}

impl TryFrom<String> for Reference {
    type Error = ReferenceError;

    fn try_from(text: String) -> Result<Self, ReferenceError> {
        text.parse()
    }
}

impl From<Reference> for String {
    fn from(reference: Reference) -> Self {
        reference.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEX: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

    #[rustfmt::skip]
    #[test]
    fn names_are_made_whole() {
        let pinned = format!("localhost:5000/ns/name:tag@sha256:{HEX}");
        for (text, full) in [
            ("nginx",                            "docker.io/library/nginx:latest"),
            ("nginx:1.27",                       "docker.io/library/nginx:1.27"),
            ("rswarm/demo",                      "docker.io/rswarm/demo:latest"),
            ("docker.io/nginx",                  "docker.io/library/nginx:latest"),
            ("index.docker.io/nginx",            "docker.io/library/nginx:latest"),
            ("localhost/nginx",                  "localhost/nginx:latest"),
            ("host:5000/a/b-c__d.e:T_1",         "host:5000/a/b-c__d.e:T_1"),
            ("[::1]:5000/a",                     "[::1]:5000/a:latest"),
            ("Registry/a",                       "Registry/a:latest"),
            (&pinned,                            &pinned),
            (&format!("nginx@sha256:{HEX}"),     &format!("docker.io/library/nginx@sha256:{HEX}")),
        ] {
            let reference: Reference = text.parse().unwrap();
            assert_eq!(reference.to_string(), full, "{text}");
            assert_eq!(reference.to_string().parse::<Reference>().unwrap(), reference);
            assert_eq!(reference.familiar().parse::<Reference>().unwrap(), reference, "{}", reference.familiar());
        }
    }

    #[test]
    fn short_names_are_shown_short() {
        for text in ["nginx:1", "a/b:2", "localhost:5000/library/x:3", "ghcr.io/a/b:4"] {
            assert_eq!(text.parse::<Reference>().unwrap().familiar(), text);
        }
    }

    #[rustfmt::skip]
    #[test]
    fn nonsense_is_refused_with_the_reason() {
        let long = "a".repeat(300);
        for (text, why) in [
            ("",                     "empty"),
            ("Nginx",                "lower case"),
            ("nginx:",               "tag"),
            ("nginx:.x",             "tag"),
            ("nginx:a b",            "tag"),
            ("a//b",                 "each part"),
            ("a/-b",                 "each part"),
            ("a/b___c",              "each part"),
            ("a/b..c",               "each part"),
            ("/a",                   "each part"),
            ("nginx@sha256:12",      "after `@`"),
            ("nginx@md5:12",         "after `@`"),
            ("host:99999/a",         "host"),
            ("ho_st.x/a",            "host"),
            ("http://x/y",           "host"),
            (&long,                  "longer"),
        ] {
            let error = text.parse::<Reference>().unwrap_err().to_string();
            assert!(error.contains(why), "{text}: {error}");
        }
    }
}
