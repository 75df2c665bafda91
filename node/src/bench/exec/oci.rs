//! An OCI runtime on the same bundle, by its command line: `run`, until the program has ended. It has no shim and keeps
//! no log, so it does less than this executor.

use super::program::{self, Stamp};
use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

/// A runtime that is installed.
pub struct Oci {
    name: &'static str,
    path: PathBuf,
    /// Where it keeps its things, where bundles go, and the root that is in all of them.
    state: PathBuf,
    bundles: PathBuf,
    /// The specification, but for what differs from container to container.
    template: Value,
}

/// A container that is ready to be run.
pub struct Bundle {
    command: Command,
    errors: PathBuf,
}

/// One that runs.
pub struct Running {
    child: Child,
    errors: PathBuf,
}

impl Oci {
    /// Finds a runtime by its name. `spec` is a specification of ours.
    pub fn find(name: &'static str, base: &Path, spec: &Value) -> Result<Option<Self>> {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let found = std::env::split_paths(&path).map(|at| at.join(name)).find(|at| at.is_file());
        let Some(path) = found else { return Ok(None) };
        let home = base.join(name);
        let (state, bundles, root) = (home.join("state"), home.join("bundles"), home.join("rootfs"));
        for directory in [&state, &bundles] {
            fs::create_dir_all(directory).with_context(|| format!("cannot make {}", directory.display()))?;
        }
        program::image(&root)?;
        Ok(Some(Self { name, path, state, bundles, template: adapted(spec.clone(), &root) }))
    }

    /// Its name.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// What it says of itself, in one line.
    pub fn version(&self) -> String {
        let said = Command::new(&self.path).arg("--version").output();
        let text = said.map(|said| String::from_utf8_lossy(&said.stdout).into_owned()).unwrap_or_default();
        text.lines().next().unwrap_or("of unknown version").to_owned()
    }

    /// Lays a container out.
    pub fn bundle(&self, id: &str, stamp: &Stamp) -> Result<Bundle> {
        let directory = self.bundles.join(id);
        let mut spec = self.template.clone();
        if let Value::Array(mounts) = &mut spec["mounts"] {
            mounts.push(json!({"destination": program::INSIDE, "type": "bind", "source": stamp.directory(),
                "options": ["rbind", "nosuid", "nodev", "rw"]}));
        }
        spec["linux"]["cgroupsPath"] = json!(format!("/rswarm-bench-{}/{id}", self.name));
        let write = || -> Result<()> {
            fs::create_dir(&directory)?;
            Ok(fs::write(directory.join("config.json"), serde_json::to_vec(&spec)?)?)
        };
        write().with_context(|| format!("cannot write a bundle in {}", directory.display()))?;
        let errors = directory.join("errors");
        let mut command = Command::new(&self.path);
        command.arg("--root").arg(&self.state).arg("run").arg("--bundle").arg(&directory).arg(id);
        command.stdin(Stdio::null()).stdout(Stdio::null());
        command.stderr(File::create(&errors).with_context(|| format!("cannot make {}", errors.display()))?);
        Ok(Bundle { command, errors })
    }

    /// Whether it runs a container on this machine; one that may not load a filter of devices is measured without.
    ///
    /// # Errors
    /// If it does not, in its words.
    pub fn fit(&mut self, stamp: &Stamp) -> Result<()> {
        let _held = stamp.hold()?;
        let Err(refused) = self.bundle("fits", stamp)?.run()?.finish() else { return Ok(()) };
        if let Value::Object(resources) = &mut self.template["linux"]["resources"] {
            resources.remove("devices");
        }
        if self.bundle("fits-bare", stamp)?.run()?.finish().is_err() {
            return Err(refused);
        }
        super::note(&format!("{}: without a filter of devices: {refused}", self.name));
        Ok(())
    }

    /// Removes its control groups.
    pub fn clear(&self) {
        let group = Path::new("/sys/fs/cgroup").join(format!("rswarm-bench-{}", self.name));
        let inside = fs::read_dir(&group).into_iter().flatten().flatten().map(|entry| entry.path());
        // One that failed to start a container may have left that one's.
        for left in inside.filter(|path| path.is_dir()).chain([group.clone()]) {
            let _ = fs::remove_dir(left);
        }
    }
}

/// What of ours no other runtime can do here is left out: limits that this view of the control groups lacks, limits of
/// processes that nobody may raise, and the system call filters, which are not in the specification.
fn adapted(mut spec: Value, root: &Path) -> Value {
    spec["root"]["path"] = json!(root);
    spec["process"]["rlimits"] = json!([]);
    if let Value::Object(resources) = &mut spec["linux"]["resources"] {
        resources.retain(|name, _| name == "devices");
    }
    if let Value::Array(mounts) = &mut spec["mounts"] {
        mounts.retain(|mount| mount["destination"] != program::INSIDE);
    }
    spec
}

impl Bundle {
    /// Runs it.
    pub fn run(mut self) -> Result<Running> {
        let child = self.command.spawn().context("cannot start the runtime")?;
        Ok(Running { child, errors: self.errors })
    }
}

impl Running {
    /// Waits for its end.
    pub fn finish(mut self) -> Result<()> {
        let status = self.child.wait().context("cannot wait for the runtime")?;
        let mut words = String::new();
        if let Ok(mut file) = File::open(&self.errors) {
            let _ = file.read_to_string(&mut words);
        }
        ensure!(status.success(), "{status}: {}", words.trim());
        Ok(())
    }
}
