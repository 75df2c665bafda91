//! Devices by the Container Device Interface: files in which the makers of devices say what a container needs to use one
//! of theirs. Here they are found, and what they ask for is put into the request for a container.

mod file;

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use rswarm_control::assignment::AssignedTask;
use rswarm_control::model::{ContainerSpec, Stock, Stocks, cdi_name};

use crate::executor::{ContainerRequest, Device, Mount};
use file::{Edits, File};

/// Where the files are, unless the configuration says otherwise; what is found in a later place counts.
pub const DIRECTORIES: [&str; 2] = ["/etc/cdi", "/var/run/cdi"];

/// Files in a directory, the longest of them, and devices altogether.
const FILES_MAX: usize = 1_000;
const BYTES_MAX: u64 = 4 << 20;
const DEVICES_MAX: usize = 1_000;

/// The devices that this machine's files speak of, by `KIND=NAME`, and what is wrong with those files.
#[derive(Default)]
pub struct Devices {
    known: BTreeMap<String, Known>,
    /// In words, each with the file.
    pub complaints: Vec<String>,
}

struct Known {
    path: PathBuf,
    /// Which of the directories the file is in.
    place: usize,
    /// The same name once more, in the same place.
    again: Option<PathBuf>,
    edits: Edits,
}

impl Devices {
    /// Reads what there is. A file that cannot be used is complained of and left out.
    pub fn read(directories: &[PathBuf]) -> Self {
        let mut devices = Self::default();
        for (place, directory) in directories.iter().enumerate() {
            let listed = fs::read_dir(directory).into_iter().flatten().flatten().map(|entry| entry.path());
            let mut paths: Vec<PathBuf> = listed.take(FILES_MAX).collect();
            paths.sort();
            for path in paths {
                if let Err(error) = devices.add(&path, place) {
                    devices.complaints.push(format!("{}: {error:#}", path.display()));
                }
            }
        }
        devices
    }

    fn add(&mut self, path: &Path, place: usize) -> Result<()> {
        match path.extension().and_then(|extension| extension.to_str()) {
            Some("json") => {}
            Some("yaml" | "yml") => {
                bail!(
                    "CDI files are read as JSON only: have it written as JSON (`nvidia-ctk cdi generate --format=json`)"
                )
            }
            _ => return Ok(()),
        }
        let mut text = Vec::new();
        fs::File::open(path)?.take(BYTES_MAX + 1).read_to_end(&mut text)?;
        ensure!(text.len() as u64 <= BYTES_MAX, "it is longer than {BYTES_MAX} bytes");
        let File { kind, edits, devices } = serde_json::from_slice(&text)?;
        for device in devices {
            let name = format!("{kind}={}", device.name);
            ensure!(cdi_name(&name).is_some(), "`{}` is no name of a device", name.escape_debug());
            ensure!(self.known.len() < DEVICES_MAX, "more than {DEVICES_MAX} devices are not possible");
            let known =
                Known { path: path.into(), place, again: None, edits: edits.clone().with(device.edits) };
            match self.known.entry(name) {
                Entry::Vacant(free) => drop(free.insert(known)),
                Entry::Occupied(mut taken) if taken.get().place == place => {
                    taken.get_mut().again = Some(path.into());
                }
                Entry::Occupied(mut taken) => drop(taken.insert(known)),
            }
        }
        Ok(())
    }

    /// All names, as `KIND=NAME`.
    pub fn names(&self) -> BTreeSet<String> {
        self.known.keys().cloned().collect()
    }

    /// What there is to be given to one task at a time, by kind. Files also have names for several devices at once, and
    /// more than one for the same: a name counts if no device node of its is another's that counts.
    pub fn stocks(&self) -> Stocks {
        let mut stocks: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        let mut taken: BTreeSet<(&str, &Path)> = BTreeSet::new();
        // First those of the fewest nodes: `0` before `all`.
        let own_nodes = |known: &Known| known.edits.own_nodes.len();
        let mut names: Vec<(&String, &Known)> = self.known.iter().collect();
        names.sort_by_key(|(name, known)| (own_nodes(known), name.len(), name.as_str()));
        for (full, known) in names {
            let Some((kind, name)) = cdi_name(full) else { continue };
            let nodes: Vec<(&str, &Path)> =
                known.edits.own_nodes.iter().map(|node| (kind, node.as_path())).collect();
            if nodes.iter().any(|node| taken.contains(node)) {
                continue;
            }
            taken.extend(nodes);
            stocks.entry(kind.to_owned()).or_default().insert(name.to_owned());
        }
        stocks.into_iter().map(|(kind, names)| (kind, Stock::Named(names))).collect()
    }

    /// Gives a container what its devices need: those it names, and those its task was given.
    ///
    /// # Errors
    /// If there is no such device, or it needs what cannot be done.
    pub fn give(
        &self,
        task: &AssignedTask,
        spec: &ContainerSpec,
        hooks_run: bool,
        request: &mut ContainerRequest,
    ) -> Result<()> {
        let named = spec.profile.devices.iter().filter(|device| device.is_cdi());
        let named = named.map(|device| device.source.clone());
        let given = task
            .claims
            .iter()
            .flat_map(|(kind, names)| names.iter().map(move |name| format!("{kind}={name}")));
        // A claim of a kind that no file speaks of is the configuration's own.
        let given = given.filter(|name| self.known.contains_key(name));
        let wanted: BTreeSet<String> = named.chain(given).collect();
        for name in wanted {
            self.give_one(&name, hooks_run, request)
                .with_context(|| format!("cannot give it device {name}"))?;
        }
        Ok(())
    }

    fn give_one(&self, name: &str, hooks_run: bool, request: &mut ContainerRequest) -> Result<()> {
        let Some(known) = self.known.get(name) else {
            let kind = cdi_name(name).map_or(name, |(kind, _)| kind);
            let others: Vec<&str> =
                self.known.keys().filter_map(|other| other.strip_prefix(kind)?.strip_prefix('=')).collect();
            match others.is_empty() {
                true => bail!("no CDI file of this node speaks of {kind}"),
                false => bail!("this node has no such device; of {kind} it has {}", others.join(", ")),
            }
        };
        if let Some(again) = &known.again {
            bail!("both {} and {} speak of it: remove one", known.path.display(), again.display());
        }
        apply(&known.edits, hooks_run, request).with_context(|| known.path.display().to_string())
    }
}

fn apply(edits: &Edits, hooks_run: bool, request: &mut ContainerRequest) -> Result<()> {
    if let Some(what) = edits.unknown.first() {
        bail!("it asks for `{what}`, which rswarm does not know how to do");
    }
    if !edits.hooks.is_empty() {
        ensure!(
            hooks_run,
            "it asks for hooks, which only another runtime runs: start this node's daemon with `--runtime` and the path \
             of runc, or have the file written without hooks"
        );
        // What is asked for all devices of a file is done once for all that a container has.
        let new = edits.hooks.iter().filter(|hook| !request.hooks.contains(hook)).cloned();
        let new: Vec<_> = new.collect();
        request.hooks.extend(new);
    }
    for entry in &edits.env {
        let name = entry.split('=').next().unwrap_or_default();
        request.env.retain(|known| known.split('=').next() != Some(name));
        request.env.push(entry.clone());
    }
    for node in &edits.device_nodes {
        let device = Device {
            source: node.host_path.clone().unwrap_or_else(|| (&node.path).into()),
            target: node.path.clone(),
            access: node.permissions.clone().filter(|text| !text.is_empty()).unwrap_or_else(|| "rwm".into()),
        };
        request.devices.retain(|known| known.target != device.target);
        request.devices.push(device);
    }
    for mount in &edits.mounts {
        let kind = mount.kind.as_deref().unwrap_or_default();
        ensure!(
            matches!(kind, "" | "none" | "bind"),
            "it asks for a mount of type {kind}, and only bind mounts are made"
        );
        if request.mounts.iter().any(|known| known.target() == mount.container_path) {
            continue;
        }
        request.mounts.push(Mount::Bind {
            source: mount.host_path.clone(),
            target: mount.container_path.clone(),
            readonly: mount.options.iter().any(|option| option == "ro"),
        });
    }
    request.groups.extend(edits.groups.iter().map(ToString::to_string));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn read(files: &[(&str, serde_json::Value)]) -> (tempfile::TempDir, Devices) {
        let base = tempfile::tempdir().unwrap();
        let places = ["etc", "run"].map(|name| base.path().join(name));
        for (name, text) in files {
            let path = base.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text.to_string()).unwrap();
        }
        let devices = Devices::read(&places);
        (base, devices)
    }

    fn gpus() -> serde_json::Value {
        let node = |path: &str| json!({"path": path, "hostPath": "/dev/null", "permissions": "rw"});
        json!({
            "cdiVersion": "0.6.0",
            "kind": "example.com/gpu",
            "containerEdits": {
                "env": ["DRIVER=5"],
                "mounts": [{"hostPath": "/usr", "containerPath": "/driver", "options": ["ro", "nosuid", "bind"]}],
            },
            "devices": [
                {"name": "0", "containerEdits": {"deviceNodes": [node("/dev/gpu0")]}},
                {"name": "1", "containerEdits": {"deviceNodes": [node("/dev/gpu1")]}},
                {"name": "GPU-1234", "containerEdits": {"deviceNodes": [node("/dev/gpu1")]}},
                {"name": "all", "containerEdits": {"deviceNodes": [node("/dev/gpu0"), node("/dev/gpu1")], "env": ["ALL=1"]}},
            ],
        })
    }

    fn give(devices: &Devices, name: &str) -> Result<ContainerRequest, String> {
        let mut request = ContainerRequest::new("c1", vec!["/image".into()], vec!["/run".into()]);
        request.env = vec!["DRIVER=old".into(), "OTHER=1".into()];
        devices.give_one(name, false, &mut request).map(|()| request).map_err(|error| format!("{error:#}"))
    }

    #[test]
    fn a_container_is_given_what_the_file_and_the_device_ask_for() {
        let (_base, devices) = read(&[("etc/gpu.json", gpus())]);
        assert!(devices.complaints.is_empty(), "{:?}", devices.complaints);
        let request = give(&devices, "example.com/gpu=all").unwrap();
        assert_eq!(request.env, ["OTHER=1", "DRIVER=5", "ALL=1"]);
        let targets: Vec<&str> = request.devices.iter().map(|device| device.target.as_str()).collect();
        assert_eq!(targets, ["/dev/gpu0", "/dev/gpu1"]);
        assert_eq!(
            (request.devices[0].source.to_str(), request.devices[0].access.as_str()),
            (Some("/dev/null"), "rw")
        );
        // What both ask for is there once.
        let mut request = request;
        devices.give_one("example.com/gpu=0", false, &mut request).unwrap();
        assert_eq!(request.devices.len(), 2);
        assert!(
            matches!(&request.mounts[..], [Mount::Bind { target, readonly: true, .. }] if target == "/driver")
        );
    }

    #[test]
    fn names_of_the_same_device_count_once() {
        let (_base, devices) = read(&[("etc/gpu.json", gpus())]);
        assert_eq!(devices.names().len(), 4);
        let Stock::Named(counted) = &devices.stocks()["example.com/gpu"] else { panic!("they have names") };
        assert_eq!(counted.iter().collect::<Vec<_>>(), ["0", "1"]);
    }

    #[test]
    fn a_later_place_counts_and_two_files_of_one_place_are_told_apart() {
        let spec = |env: &str| json!({"cdiVersion": "0.5.0", "kind": "a.b/c", "devices": [{"name": "x", "containerEdits": {"env": [env]}}]});
        let (_base, devices) = read(&[("etc/a.json", spec("WHO=etc")), ("run/a.json", spec("WHO=run"))]);
        assert!(give(&devices, "a.b/c=x").unwrap().env.contains(&"WHO=run".to_owned()));
        let (_base, devices) = read(&[("etc/a.json", spec("WHO=1")), ("etc/b.json", spec("WHO=2"))]);
        let error = give(&devices, "a.b/c=x").unwrap_err();
        assert!(error.contains("a.json and") && error.contains("remove one"), "{error}");
    }

    #[test]
    fn what_cannot_be_done_is_refused_by_name() {
        let spec = |edits: serde_json::Value| json!({"cdiVersion": "1.1.0", "kind": "a.b/c", "devices": [{"name": "x", "containerEdits": edits}]});
        for (edits, words) in [
            (json!({"hooks": [{"hookName": "createContainer", "path": "/bin/true"}]}), "--runtime"),
            (json!({"netDevices": [{"hostInterfaceName": "a", "name": "b"}]}), "`netDevices`"),
            (json!({"intelRdt": {"closID": "x"}}), "`intelRdt`"),
            (
                json!({"mounts": [{"hostPath": "tmpfs", "containerPath": "/t", "type": "tmpfs"}]}),
                "type tmpfs",
            ),
        ] {
            let (_base, devices) = read(&[("etc/a.json", spec(edits))]);
            let error = give(&devices, "a.b/c=x").unwrap_err();
            assert!(error.contains(words) && error.contains("a.json"), "{error}");
        }
        let (_base, devices) = read(&[("etc/gpu.json", gpus())]);
        let error = give(&devices, "example.com/gpu=7").unwrap_err();
        assert!(error.contains("of example.com/gpu it has 0, 1, GPU-1234, all"), "{error}");
        assert!(
            give(&devices, "other.com/x=7")
                .unwrap_err()
                .contains("no CDI file of this node speaks of other.com/x")
        );
    }

    #[test]
    fn a_file_without_sense_is_complained_of_and_left_out() {
        let (_base, devices) = read(&[
            ("etc/gpu.json", gpus()),
            ("etc/bad.json", json!({"kind": 5})),
            ("etc/odd.json", json!({"cdiVersion": "0.5.0", "kind": "no vendor", "devices": [{"name": "x"}]})),
            ("etc/nvidia.yaml", json!({})),
            ("etc/README", json!({})),
        ]);
        assert_eq!(devices.names().len(), 4);
        assert_eq!(devices.complaints.len(), 3, "{:?}", devices.complaints);
        assert!(devices.complaints.iter().any(|line| line.contains("nvidia.yaml") && line.contains("JSON")));
    }
}
