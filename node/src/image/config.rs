//! What an image says about the program in it.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::{Digest, Result, refused};

/// How an image wants to be run. Everything may be overridden by the service.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ImageConfig {
    /// The program and its fixed arguments.
    pub entrypoint: Vec<String>,
    /// Arguments that the service's own replace.
    pub cmd: Vec<String>,
    /// `NAME=value`, in order.
    pub env: Vec<String>,
    /// `user[:group]`, names or numbers; empty for root.
    pub user: String,
    /// Absolute path; empty for `/`.
    pub working_dir: String,
    /// `80/tcp`, sorted. Documentation only: nothing is published by it.
    pub exposed_ports: Vec<String>,
    /// Paths the image declares to be volumes, sorted.
    pub volumes: Vec<String>,
    /// `SIGTERM` or a number; empty for the default.
    pub stop_signal: String,
    /// The image's labels.
    pub labels: BTreeMap<String, String>,
    /// The image's health check, if it has one.
    pub healthcheck: Option<Healthcheck>,
    /// What runs the line of a `CMD-SHELL`; empty for `/bin/sh -c`.
    pub shell: Vec<String>,
    /// `amd64`, `arm64`, …
    pub architecture: String,
    /// `linux`.
    pub os: String,
    /// RFC 3339, if known.
    pub created: Option<String>,
}

/// A health check as an image declares it. A missing time means the orchestrator's default.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Healthcheck {
    /// `["NONE"]`, `["CMD", program, …]` or `["CMD-SHELL", line]`.
    pub test: Vec<String>,
    /// Time between two checks.
    pub interval: Option<Duration>,
    /// How long one check may take.
    pub timeout: Option<Duration>,
    /// Failures in this first time do not count.
    pub start_period: Option<Duration>,
    /// Time between two checks in the start period.
    pub start_interval: Option<Duration>,
    /// Failures in a row that make the container unhealthy.
    pub retries: Option<u32>,
}

/// Writers disagree whether an empty list is `[]`, `null` or absent.
fn or_default<'de, D: serde::Deserializer<'de>, T: DeserializeOwned + Default>(
    from: D,
) -> Result<T, D::Error> {
    Ok(Option::<T>::deserialize(from)?.unwrap_or_default())
}

#[derive(Deserialize)]
struct Document {
    #[serde(default, deserialize_with = "or_default")]
    architecture: String,
    #[serde(default, deserialize_with = "or_default")]
    os: String,
    created: Option<String>,
    #[serde(default, deserialize_with = "or_default")]
    config: Process,
    rootfs: RootFs,
}

#[derive(Deserialize)]
struct RootFs {
    #[serde(default, deserialize_with = "or_default")]
    diff_ids: Vec<Digest>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "PascalCase", default)]
struct Process {
    #[serde(deserialize_with = "or_default")]
    entrypoint: Vec<String>,
    #[serde(deserialize_with = "or_default")]
    cmd: Vec<String>,
    #[serde(deserialize_with = "or_default")]
    env: Vec<String>,
    #[serde(deserialize_with = "or_default")]
    user: String,
    #[serde(deserialize_with = "or_default")]
    working_dir: String,
    #[serde(deserialize_with = "or_default")]
    exposed_ports: BTreeMap<String, serde::de::IgnoredAny>,
    #[serde(deserialize_with = "or_default")]
    volumes: BTreeMap<String, serde::de::IgnoredAny>,
    #[serde(deserialize_with = "or_default")]
    stop_signal: String,
    #[serde(deserialize_with = "or_default")]
    labels: BTreeMap<String, String>,
    healthcheck: Option<Check>,
    #[serde(deserialize_with = "or_default")]
    shell: Vec<String>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "PascalCase", default)]
struct Check {
    #[serde(deserialize_with = "or_default")]
    test: Vec<String>,
    interval: Option<u64>,
    timeout: Option<u64>,
    start_period: Option<u64>,
    start_interval: Option<u64>,
    retries: Option<u32>,
}

/// Reads an image's configuration blob: how to run it, and the diff ids of its layers, lowest first.
pub(super) fn parse(digest: &Digest, bytes: &[u8]) -> Result<(ImageConfig, Vec<Digest>)> {
    let document: Document = match serde_json::from_slice(bytes) {
        Ok(document) => document,
        Err(error) => return refused(format!("image configuration {digest}"), error.to_string()),
    };
    let Process {
        entrypoint,
        cmd,
        env,
        user,
        working_dir,
        exposed_ports,
        volumes,
        stop_signal,
        labels,
        healthcheck,
        shell,
    } = document.config;
    // Zero means "inherit" in this format.
    let time = |nanos: Option<u64>| nanos.filter(|nanos| *nanos > 0).map(Duration::from_nanos);
    let config = ImageConfig {
        entrypoint,
        cmd,
        env,
        user,
        working_dir,
        exposed_ports: exposed_ports.into_keys().collect(),
        volumes: volumes.into_keys().collect(),
        stop_signal,
        labels,
        healthcheck: healthcheck.filter(|check| !check.test.is_empty()).map(|check| Healthcheck {
            test: check.test,
            interval: time(check.interval),
            timeout: time(check.timeout),
            start_period: time(check.start_period),
            start_interval: time(check.start_interval),
            retries: check.retries.filter(|retries| *retries > 0),
        }),
        shell,
        architecture: document.architecture,
        os: document.os,
        created: document.created,
    };
    if !matches!(&*config.os, "" | "linux") {
        return refused(
            format!("image configuration {digest}"),
            format!("the image is for {}, not Linux", config.os),
        );
    }
    Ok((config, document.rootfs.diff_ids))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nulls_and_absences_are_empty() {
        let bytes = br#"{"os":"linux","architecture":"amd64","config":{"Cmd":null,"Env":["A=b"],"ExposedPorts":{"80/tcp":{}},
            "Healthcheck":{"Test":["CMD","/x"],"Interval":5000000000,"Retries":0}},"rootfs":{"type":"layers","diff_ids":null}}"#;
        let (config, layers) = parse(&Digest::of(bytes), bytes).unwrap();
        assert_eq!((config.cmd.len(), &config.env[..], layers.len()), (0, &["A=b".to_owned()][..], 0));
        assert_eq!(config.exposed_ports, ["80/tcp"]);
        let check = config.healthcheck.unwrap();
        assert_eq!((check.interval, check.retries), (Some(Duration::from_secs(5)), None));
    }

    #[test]
    fn windows_images_and_nonsense_are_refused() {
        for (bytes, why) in
            [(&br#"{"os":"windows","rootfs":{}}"#[..], "not Linux"), (b"{", "EOF"), (b"{}", "rootfs")]
        {
            let error = parse(&Digest::of(bytes), bytes).unwrap_err().to_string();
            assert!(error.contains(why), "{error}");
        }
    }
}
