//! The lab that is measured, and the ways into it: each node's API, and its processes as this machine sees them.

use crate::cli::client::{self, Client};
use anyhow::{Context, Result, bail};
use rswarm_chaos::lab::{Lab, Options};
use rswarm_control::model::{Mode, ServiceSpec};
use rswarm_proto::v1 as pb;
use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};
use tonic::Code;

/// How long the cluster may take to be whole again, a service to run, and the like.
const PATIENCE: Duration = Duration::from_secs(90);
/// How long one call may take that asks how things are.
const CALL: Duration = Duration::from_secs(2);
/// How often things are looked at while waiting outside of measurements.
const PAUSE: Duration = Duration::from_millis(25);

/// How many nodes there are: three managers, and a worker.
const NODES: u8 = 4;
/// How many of them are managers.
const MANAGERS: u8 = 3;

/// A lab of three managers and one worker.
pub struct Site {
    lab: Arc<Lab>,
    names: Vec<String>,
    addresses: BTreeMap<String, Ipv4Addr>,
    /// Node ids, by name.
    ids: BTreeMap<String, String>,
}

impl Site {
    /// Makes it. It is removed with the last clone of the lab.
    ///
    /// # Errors
    /// If there is a lab of this name already, or this is not root.
    pub async fn up(name: &str, interrupted: Arc<AtomicBool>) -> Result<Self> {
        let options = Options {
            name: name.into(),
            nodes: NODES,
            managers: MANAGERS,
            ..Options::new(std::env::current_exe().context("cannot find the file of this program")?)
        };
        let lab = blocking(move || {
            Lab::up_with(&options, &mut |node, words| super::note(&format!("{node}: {words}")), &interrupted)
        });
        let lab = Arc::new(lab.await?);
        let names = lab.names()?;
        let addresses =
            names.iter().map(|name| Ok((name.clone(), lab.node(name).address()?))).collect::<Result<_>>()?;
        let mut site = Self { lab, names, addresses, ids: BTreeMap::new() };
        let nodes = site.client("n1").await?.nodes().await?.nodes;
        site.ids = nodes.into_iter().map(|node| (node.hostname, node.id)).collect();
        site.whole().await?;
        Ok(site)
    }

    /// Where its files are.
    pub fn directory(&self) -> &Path {
        self.lab.directory()
    }

    /// All nodes.
    pub fn names(&self) -> &[String] {
        &self.names
    }

    /// The nodes that are managers.
    pub fn managers(&self) -> &[String] {
        &self.names[..usize::from(MANAGERS)]
    }

    /// The node that is a worker.
    pub fn worker(&self) -> &str {
        &self.names[usize::from(MANAGERS)]
    }

    /// A node's address.
    pub fn address(&self, node: &str) -> Result<Ipv4Addr> {
        self.addresses.get(node).copied().with_context(|| format!("there is no node {node}"))
    }

    /// A node's id.
    pub fn id(&self, node: &str) -> Result<&str> {
        self.ids.get(node).map(String::as_str).with_context(|| format!("there is no node {node}"))
    }

    /// Does something to the lab that takes a while.
    pub async fn with<T: Send + 'static>(
        &self,
        node: &str,
        act: impl FnOnce(&Lab, &str) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let (lab, node) = (self.lab.clone(), node.to_owned());
        blocking(move || act(&lab, &node)).await
    }

    /// The number of a node's daemon on this machine.
    pub fn daemon(&self, node: &str) -> Result<i32> {
        let state = self.state(node);
        let daemon =
            with_argument(|words| words.windows(2).any(|two| two[0] == "--state-dir" && two[1] == state));
        daemon.first().copied().with_context(|| format!("the daemon of {node} does not run"))
    }

    /// The control group of the whole lab, relative to the root of the hierarchies.
    pub fn control_group(&self) -> Result<String> {
        let line = std::fs::read(format!("/proc/{}/cmdline", self.daemon("n1")?)).context("n1 has ended")?;
        let words = split(&line);
        let at =
            words.iter().position(|word| word == "--cgroup-parent").context("n1 has no control group")?;
        let own = words.get(at + 1).context("n1 has no control group")?;
        let (lab, _) = own.trim_matches('/').rsplit_once('/').context("n1 has no lab above its group")?;
        Ok(lab.to_owned())
    }

    /// The numbers of a node's shims on this machine.
    pub fn shims(&self, node: &str) -> Vec<i32> {
        let containers = format!("{}/containers/", self.state(node));
        with_argument(|words| words.get(1).is_some_and(|word| word.starts_with(&containers)))
    }

    /// The directory of a node's state, as text.
    pub fn state(&self, node: &str) -> String {
        self.lab.directory().join(node).join("state").display().to_string()
    }

    /// Calls to a node's daemon. They end with this run of it.
    pub async fn client(&self, node: &str) -> Result<Client> {
        let socket = PathBuf::from(format!("/proc/{}/root{}", self.daemon(node)?, client::SOCKET));
        client::connect(&socket, None).await.with_context(|| format!("cannot reach {node}"))
    }

    /// Waits until every node is ready, every manager votes, follows the same leader and has caught up with it.
    /// Returns the leader.
    pub async fn whole(&self) -> Result<String> {
        let mut why = String::new();
        let end = Instant::now() + PATIENCE;
        while Instant::now() < end {
            match self.wanting().await {
                Ok(leader) => return Ok(leader),
                Err(error) => why = format!("{error:#}"),
            }
            tokio::time::sleep(PAUSE).await;
        }
        bail!("the cluster is not whole after {} s: {why}", PATIENCE.as_secs())
    }

    /// The leader of a whole cluster, or what is wanting.
    async fn wanting(&self) -> Result<String> {
        let mut leader = String::new();
        let mut applied = 0;
        for (number, name) in self.managers().iter().enumerate() {
            let status = within(CALL, async { self.client(name).await?.status().await }).await?;
            let voters = status.managers.iter().filter(|manager| manager.voter && manager.reachable).count();
            if voters != self.managers().len() {
                bail!("{name} counts {voters} voters");
            }
            if number == 0 {
                leader.clone_from(&status.leader_id);
                applied = status.applied;
            }
            if status.leader_id.is_empty() || status.leader_id != leader {
                bail!("{name} follows another leader");
            }
            if status.applied < applied {
                bail!("{name} has not caught up");
            }
            let ready = pb::NodeStatus::Ready;
            let away = status.nodes.iter().find(|node| node.status() != ready);
            if let Some(away) = away {
                bail!("{name} takes {} for {:?}", away.hostname, away.status());
            }
            if status.nodes.len() != self.names.len() {
                bail!("{name} knows {} nodes", status.nodes.len());
            }
        }
        let name = self.ids.iter().find(|(_, id)| **id == leader).map(|(name, _)| name.clone());
        name.context("the leader is a stranger")
    }

    /// Creates a service.
    pub async fn create(&self, node: &str, spec: &ServiceSpec) -> Result<()> {
        let create = || async {
            let request = pb::CreateServiceRequest { spec: Some(spec.into()), ..Default::default() };
            match self.client(node).await?.control.create_service(request).await {
                // The answer to an earlier attempt was lost.
                Err(status) if status.code() == Code::AlreadyExists => Ok(()),
                created => created.map(drop).context("cannot create a service"),
            }
        };
        patiently(create).await
    }

    /// Removes a service, and waits until nothing of it is left.
    pub async fn remove(&self, node: &str, service: &str) -> Result<()> {
        let remove = || async {
            let mut client = self.client(node).await?;
            let request = pb::RemoveServiceRequest { service: service.into() };
            match client.control.remove_service(request).await {
                // The answer to an earlier attempt was lost, or the watch that follows broke.
                Err(status) if status.code() == Code::NotFound => return Ok(()),
                removed => removed.map(drop).context("cannot remove a service")?,
            }
            let request =
                pb::WatchServiceRequest { service: service.into(), removal: true, ..Default::default() };
            let mut progress = match client.control.watch_service(request).await {
                // It was gone before it could be watched.
                Err(status) if status.code() == Code::NotFound => return Ok(()),
                watched => watched.context("cannot watch a service")?.into_inner(),
            };
            while progress.message().await.context("cannot watch a service")?.is_some() {}
            Ok(())
        };
        within(PATIENCE, patiently(remove)).await
    }

    /// Gives a service another size, and waits until it has it.
    pub async fn scale(&self, node: &str, service: &str, replicas: u32) -> Result<()> {
        let scale = || async {
            let mut client = self.client(node).await?;
            let known = client.services(&[service.to_owned()]).await?.services;
            let known = known.into_iter().next().with_context(|| format!("there is no service {service}"))?;
            let mut spec: ServiceSpec = client::one(known.spec.context("a service has a spec")?)?;
            spec.mode = Mode::Replicated { replicas };
            let request = pb::UpdateServiceRequest {
                service: known.id,
                spec: Some((&spec).into()),
                ..Default::default()
            };
            client.control.update_service(request).await.map(drop).context("cannot scale a service")
        };
        patiently(scale).await?;
        self.runs(node, service, replicas).await
    }

    /// Waits until as many of a service's tasks run as are wanted, and no others exist that have not ended.
    pub async fn runs(&self, node: &str, service: &str, replicas: u32) -> Result<()> {
        let mut client = self.client(node).await?;
        let mut left = Vec::new();
        let end = Instant::now() + PATIENCE;
        while Instant::now() < end {
            let request = pb::ListTasksRequest { services: vec![service.into()], ..Default::default() };
            let Ok(list) = within(CALL, client.tasks(request)).await else {
                tokio::time::sleep(PAUSE).await;
                continue;
            };
            let tasks = list.tasks;
            let live: Vec<_> = tasks.iter().filter(|task| task.observed() <= pb::Observed::Running).collect();
            if live.len() == replicas as usize
                && live.iter().all(|task| task.observed() == pb::Observed::Running)
            {
                return Ok(());
            }
            left = live.iter().map(|task| format!("{:?}", task.observed())).collect();
            tokio::time::sleep(PAUSE).await;
        }
        bail!("{service} has not {replicas} tasks after {} s: {}", PATIENCE.as_secs(), left.join(", "))
    }
}

/// Runs something that blocks.
async fn blocking<T: Send + 'static>(act: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    tokio::task::spawn_blocking(act).await.context("a thread has panicked")?
}

/// A future with a bound.
pub async fn within<T>(bound: Duration, future: impl Future<Output = Result<T>>) -> Result<T> {
    match tokio::time::timeout(bound, future).await {
        Ok(result) => result,
        Err(_) => bail!("no answer in {} ms", bound.as_millis()),
    }
}

/// Tries again while there is no leader, or another one than a moment ago.
async fn patiently<T, F: Future<Output = Result<T>>>(act: impl Fn() -> F) -> Result<T> {
    let end = Instant::now() + PATIENCE;
    loop {
        let error = match act().await {
            Ok(done) => return Ok(done),
            Err(error) => error,
        };
        let status = error.chain().find_map(|cause| cause.downcast_ref::<tonic::Status>());
        if Instant::now() > end || !status.is_some_and(|status| status.code() == Code::Unavailable) {
            return Err(error);
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// Processes with such a command line.
fn with_argument(fits: impl Fn(&[String]) -> bool) -> Vec<i32> {
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    pids.filter(|pid| {
        let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        fits(&split(&line))
    })
    .collect()
}

fn split(line: &[u8]) -> Vec<String> {
    line.split(|byte| *byte == 0).map(|word| String::from_utf8_lossy(word).into_owned()).collect()
}
