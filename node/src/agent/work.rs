//! Carries out one step of one task: makes its sandbox and containers, removes them. Every step may be repeated.

use super::backlog;
use super::template::Words;
use crate::api::volumes;
use crate::cdi::Devices;
use crate::executor::{self, ContainerRequest, Executor};
use crate::image::{self, ImageConfig, Reference, Registries, Store};
use crate::volume::{Hold, Volumes};
use anyhow::{Context, Result, anyhow, bail};
use rswarm_control::assignment::AssignedTask;
use rswarm_control::ids::TaskId;
use rswarm_control::liveness::LEASE_GRACE;
use rswarm_control::model::{ContainerSpec, Mount};
use rswarm_control::worker::Seen;
use rswarm_netoverlay::table::NetworkId;
use rswarm_netoverlay::{Attach, Overlay};
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// The address that containers find their name server at.
const RESOLVER: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 11));
/// Who holds a container's image, in the names of leases.
const LEASE: &str = "task-";

/// What steps are carried out with.
#[derive(Clone)]
pub struct Hands {
    /// Runs containers.
    pub executor: Arc<Executor>,
    /// Keeps images.
    pub images: Arc<Store>,
    /// Where images come from.
    pub registries: Arc<Registries>,
    /// Keeps named volumes.
    pub volumes: Arc<Volumes>,
    /// Joins networks.
    pub overlay: Overlay,
    /// This node's id, for its containers to know.
    pub node: String,
    /// Where the files are that name devices.
    pub cdi_spec_dirs: Vec<PathBuf>,
}

/// Networks, with an address in each. The first one has the default route.
pub type Places = Vec<(NetworkId, Ipv4Addr)>;

const NETWORK_LABEL: &str = "rswarm.network.";
const DNS_LABEL: &str = "rswarm.dns.";
const DNS_PORT: u16 = 53;

/// The id of a task's container in the executor.
pub fn container_id(task: TaskId) -> String {
    task.to_string()
}

/// The task of a container, if it is one of ours.
pub fn task_of(container: &str) -> Option<TaskId> {
    container.parse().ok()
}

impl Hands {
    /// Gets the image, joins the networks, makes the container. What was made before is kept.
    ///
    /// `places` are the task's networks with its address in each.
    pub async fn prepare(&self, task: &AssignedTask, places: Places) -> Result<()> {
        let id = container_id(task.id);
        if self.executor.inspect(&id).is_ok() {
            return Ok(());
        }
        let [spec] = task.spec.containers.as_slice() else {
            bail!("the task has {} containers; this version runs tasks of one", task.spec.containers.len());
        };
        let image = self.image(spec).await?;
        let (store, holder, held) = (self.images.clone(), format!("{LEASE}{id}"), image.clone());
        let (config, lower) = blocking(move || {
            store.lease(&holder, &held)?;
            Ok((store.config(&held)?, store.layers(&held)?))
        })
        .await?;
        let mut labels = labels(task, &places);
        labels.extend(super::health::labels(spec, &config));
        let servers = spec.profile.dns.servers.iter().enumerate();
        labels.extend(servers.map(|(order, server)| (format!("{DNS_LABEL}{order:03}"), server.to_string())));
        let netns = self.attach(&id, places, spec.profile.dns.servers.clone()).await?;
        let mut request = self.request(task, spec, &config, lower)?;
        // What the node grants anew as long as it hears the managers.
        request.lease = task.spec.is_fenced().then_some(LEASE_GRACE);
        request.netns = Some(netns);
        request.labels = labels;
        let _held = self.volumes(task, spec, &mut request).await?;
        if let Err(error) = self.executor.create(request).await {
            let _ = self.remove(task.id).await;
            return Err(error.into());
        }
        Ok(())
    }

    /// Lets it run.
    pub async fn start(&self, task: TaskId) -> Result<()> {
        self.executor.start(&container_id(task)).await?;
        Ok(())
    }

    /// Lets it go on with other limits.
    pub async fn retune(&self, task: &AssignedTask) -> Result<()> {
        let limits = super::profile::limits(&task.spec.resources)?;
        Ok(self.executor.update(&container_id(task.id), limits).await?)
    }

    /// Asks it to end, and ends it when its grace is over. How it ended comes as an event, except where there is
    /// nothing that could end: then this says so.
    pub async fn stop(&self, task: TaskId, grace: Duration) -> Option<Seen> {
        let nothing = Some(Seen::Ended { exit_code: None, error: String::new() });
        let container = self.executor.inspect(&container_id(task));
        if let Ok(executor::Container { state: executor::State::Running(running), .. }) = container
            && !grace.is_zero()
        {
            backlog::accepted(running.pid).await;
        }
        match self.executor.stop(&container_id(task), grace).await {
            Ok(Some(_)) => None,
            Ok(None) => nothing,
            Err(executor::Error::Unknown(_)) => {
                // A preparation that was given up may have left a sandbox.
                if let Err(error) = self.remove(task).await {
                    tracing::warn!(%task, error = format!("{error:#}"), "cannot clean up");
                }
                nothing
            }
            Err(error) => {
                tracing::warn!(%task, %error, "cannot stop, killing");
                match self.executor.kill(&container_id(task), nix::libc::SIGKILL).await {
                    Ok(()) => None,
                    Err(_) => nothing,
                }
            }
        }
    }

    /// Removes its container, its sandbox and its hold on the image.
    pub async fn remove(&self, task: TaskId) -> Result<()> {
        let id = container_id(task);
        self.executor.remove(&id).await?;
        self.overlay.detach(&id).await.context("cannot remove the task's network")?;
        let (store, holder) = (self.images.clone(), format!("{LEASE}{id}"));
        blocking(move || store.release(&holder)).await
    }

    /// The image on this machine, fetched if it is not there yet.
    async fn image(&self, spec: &ContainerSpec) -> Result<image::Image> {
        let reference: Reference = spec.image.parse().map_err(|error| anyhow!("{error}"))?;
        let reference = match &spec.image_digest {
            Some(digest) => reference.pinned(digest.parse().map_err(|error| anyhow!("{error}"))?),
            None => reference,
        };
        let (store, name) = (self.images.clone(), reference.to_string());
        if let Ok(image) = blocking(move || store.resolve(&name)).await {
            return Ok(image);
        }
        Ok(self.images.pull(&reference, &self.registries, |_| {}).await?)
    }

    /// Joins a container's networks, or mends that.
    pub async fn attach(&self, container: &str, networks: Places, servers: Vec<IpAddr>) -> Result<PathBuf> {
        let upstreams = servers.into_iter().map(|server| SocketAddr::from((server, DNS_PORT))).collect();
        let attach = Attach { sandbox: container.to_owned(), networks, upstreams };
        self.overlay.attach(attach).await.context("cannot join the task's networks")
    }

    fn request(
        &self,
        task: &AssignedTask,
        spec: &ContainerSpec,
        config: &ImageConfig,
        lower: Vec<PathBuf>,
    ) -> Result<ContainerRequest> {
        let machine = crate::machine::hostname();
        let words = Words::new(task, &self.node, &machine);
        let mut request = ContainerRequest::new(container_id(task.id), lower, command(spec, config)?);
        request.env = self.env(task, spec, config, &words);
        request.user = spec.user.clone().unwrap_or_else(|| config.user.clone());
        request.workdir = spec.workdir.clone().unwrap_or_else(|| config.working_dir.clone());
        request.hostname = spec.hostname.as_ref().map(|name| words.fill(name)).unwrap_or_default();
        request.addresses = task.addresses.iter().map(|(_, address)| IpAddr::V4(*address)).collect();
        request.dns.servers = vec![RESOLVER];
        request.dns.options = vec!["ndots:0".into()];
        request.mounts = spec.mounts.iter().filter_map(|spec| mount(spec, &words)).collect();
        request.privileges.read_only_root = spec.read_only;
        request.init = spec.init;
        request.tty = spec.tty;
        super::profile::apply(&spec.profile, &mut request);
        request.journal = super::profile::journal(task, spec, &request.id);
        request.limits = super::profile::limits(&task.spec.resources)?;
        self.devices(task, spec, &mut request)?;
        let signal = spec.stop_signal.clone().unwrap_or_else(|| config.stop_signal.clone());
        if !signal.is_empty() {
            request.stop_signal = signal_number(&signal)?;
        }
        Ok(request)
    }

    /// Gives a container the devices that this machine's files know by name.
    fn devices(
        &self,
        task: &AssignedTask,
        spec: &ContainerSpec,
        request: &mut ContainerRequest,
    ) -> Result<()> {
        let none = task.claims.is_empty() && !spec.profile.devices.iter().any(|device| device.is_cdi());
        if none {
            return Ok(());
        }
        Devices::read(&self.cdi_spec_dirs).give(task, spec, self.executor.runtime().is_some(), request)
    }

    /// Makes the volumes that the task needs, and mounts them. They stay for it until what is returned is dropped;
    /// by then the container has them.
    async fn volumes(
        &self,
        task: &AssignedTask,
        spec: &ContainerSpec,
        request: &mut ContainerRequest,
    ) -> Result<Vec<Hold>> {
        let machine = crate::machine::hostname();
        let words = Words::new(task, &self.node, &machine);
        let mut holds = Vec::new();
        for mount in &spec.mounts {
            let Mount::Volume { source, target, read_only, no_copy } = mount else { continue };
            let (volumes, name, at) = (self.volumes.clone(), words.fill(source), target.clone());
            let (layers, no_copy) = (request.lower.clone(), *no_copy);
            let now = crate::manager::clock::now().0;
            let ready = tokio::task::spawn_blocking({
                let name = name.clone();
                move || volumes.ready(&name, (!no_copy).then_some(&layers[..]), &at, now)
            });
            let (source, hold) = ready.await.context("the volume store has panicked")??;
            let (target, readonly) = (target.clone(), *read_only);
            request.labels.insert(format!("{}{:03}", volumes::LABEL, holds.len()), name);
            request.mounts.push(executor::Mount::Bind { source, target, readonly });
            holds.push(hold);
        }
        Ok(holds)
    }

    /// The image's environment, then who the task is and what it was given, then what the service says; later ones win.
    fn env(
        &self,
        task: &AssignedTask,
        spec: &ContainerSpec,
        config: &ImageConfig,
        words: &Words<'_>,
    ) -> Vec<String> {
        let who = [
            ("RSWARM_SERVICE", task.service_name.clone()),
            ("RSWARM_SLOT", task.slot.to_string()),
            ("RSWARM_TASK", task.id.to_string()),
            ("RSWARM_NODE", crate::machine::hostname()),
            ("RSWARM_NODE_ID", self.node.clone()),
        ];
        let given = who.map(|(name, value)| (name.to_owned(), value)).into_iter().chain(task.generic_env());
        let said = spec.env.iter().map(|var| format!("{}={}", var.name, words.fill(&var.value)));
        let mut env: Vec<String> = Vec::new();
        for line in
            config.env.iter().cloned().chain(given.map(|(name, value)| format!("{name}={value}"))).chain(said)
        {
            let name = line.split('=').next().unwrap_or_default();
            env.retain(|known| known.split('=').next() != Some(name));
            env.push(line);
        }
        env
    }
}

/// What a container is labelled with: whose it is, and where it is in the overlay, so that a daemon that finds it
/// knows without asking.
fn labels(task: &AssignedTask, places: &Places) -> BTreeMap<String, String> {
    let networks = places.iter().enumerate();
    networks
        .map(|(order, (network, address))| {
            (format!("{NETWORK_LABEL}{order:03}"), format!("{} {address}", network.number()))
        })
        .chain([
            ("rswarm.service".to_owned(), task.service_name.clone()),
            ("rswarm.task".to_owned(), format!("{}.{}", task.service_name, task.slot)),
        ])
        .collect()
}

/// Where a container is in the overlay, by its labels.
pub fn places(labels: &BTreeMap<String, String>) -> Places {
    let place = |text: &String| {
        let (number, address) = text.split_once(' ')?;
        Some((NetworkId::new(number.parse().ok()?)?, address.parse().ok()?))
    };
    labels
        .iter()
        .filter(|(name, _)| name.starts_with(NETWORK_LABEL))
        .filter_map(|(_, text)| place(text))
        .collect()
}

/// Which servers a container's name server asks instead of the node's own, by its labels.
pub fn servers(labels: &BTreeMap<String, String>) -> Vec<IpAddr> {
    let ours = labels.iter().filter(|(name, _)| name.starts_with(DNS_LABEL));
    ours.filter_map(|(_, server)| server.parse().ok()).collect()
}

/// Docker's rule: a command given replaces the image's entrypoint and its arguments; arguments given replace the
/// image's arguments alone.
fn command(spec: &ContainerSpec, config: &ImageConfig) -> Result<Vec<String>> {
    let args = match (spec.command.is_empty(), spec.args.is_empty()) {
        (true, true) => [&config.entrypoint[..], &config.cmd].concat(),
        (true, false) => [&config.entrypoint[..], &spec.args].concat(),
        (false, _) => [&spec.command[..], &spec.args].concat(),
    };
    if args.is_empty() {
        bail!("the image {} says no command to run: give one after the image's name", spec.image);
    }
    Ok(args)
}

/// What the executor is to mount; volumes are made first, elsewhere.
fn mount(mount: &Mount, words: &Words<'_>) -> Option<executor::Mount> {
    Some(match mount {
        Mount::Volume { .. } => return None,
        Mount::Bind { source, target, read_only } => executor::Mount::Bind {
            source: words.fill(source).into(),
            target: target.clone(),
            readonly: *read_only,
        },
        Mount::Tmpfs { target, size_bytes, mode } => executor::Mount::Tmpfs {
            target: target.clone(),
            size_bytes: *size_bytes,
            mode: mode.unwrap_or(0o1777),
        },
    })
}

/// `SIGTERM`, `TERM` or `15`.
fn signal_number(text: &str) -> Result<i32> {
    use nix::sys::signal::Signal;
    if let Ok(number) = text.parse::<i32>() {
        return Signal::try_from(number)
            .map(|signal| signal as i32)
            .map_err(|_| anyhow!("no signal {number}"));
    }
    let name = text.to_ascii_uppercase();
    let name = if name.starts_with("SIG") { name } else { format!("SIG{name}") };
    name.parse::<Signal>().map(|signal| signal as i32).map_err(|_| anyhow!("`{text}` is not a signal"))
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> image::Result<T> + Send + 'static) -> Result<T> {
    Ok(tokio::task::spawn_blocking(work).await.context("the image store has panicked")??)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn joined(command: &[&str], args: &[&str]) -> String {
        let own = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect();
        let spec = ContainerSpec { command: own(command), args: own(args), ..ContainerSpec::new("x") };
        let config = ImageConfig { entrypoint: own(&["/run"]), cmd: own(&["serve"]), ..Default::default() };
        super::command(&spec, &config).unwrap().join(" ")
    }

    #[test]
    fn command_and_arguments_replace_the_images_as_in_docker() {
        assert_eq!(joined(&[], &[]), "/run serve");
        assert_eq!(joined(&[], &["test"]), "/run test");
        assert_eq!(joined(&["/other"], &[]), "/other");
        assert_eq!(joined(&["/other"], &["x"]), "/other x");
    }

    #[test]
    fn signals_have_names_and_numbers() {
        for (text, number) in
            [("SIGTERM", Some(15)), ("int", Some(2)), ("9", Some(9)), ("SIGNONE", None), ("99", None)]
        {
            assert_eq!(signal_number(text).ok(), number, "{text}");
        }
    }
}
