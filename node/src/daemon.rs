//! The wiring of a node, and the only file that knows everyone: what is opened in which order, and how it is
//! shut down.
//!
//! Order of shutdown: leadership is handed over, sessions and listeners close, then the process ends. Containers
//! are the children of their shims and go on.

use crate::api;
use crate::config::Config;
use crate::executor::Executor;
use crate::identity::Identity;
use crate::image::{Registries, Store};
use crate::member::{Ground, Member};
use crate::rpc::access::{Gate, Roles};
use crate::rpc::forward::{FindLeader, Forward, Leader};
use crate::rpc::listen;
use crate::volume::Volumes;
use crate::wall;
use anyhow::{Context, Result};
use rswarm_control::ids::NodeId;
use rswarm_proto::v1 as pb;
use std::fs::File;
use std::path::Path;
use std::pin::Pin;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, SystemTime};
use tokio::sync::Mutex;
use tokio_util::sync::CancellationToken;
use tonic::Status;
use tonic::transport::Server;

/// How often a membership that could not be taken up is tried again.
const RESUME: Duration = Duration::from_secs(2);
/// How long the daemon takes to say goodbye before it simply ends.
const SHUTDOWN: Duration = Duration::from_secs(5);

/// A running daemon.
pub struct Daemon {
    /// What everything stands on.
    pub ground: Ground,
    /// When it started.
    pub started_at: SystemTime,
    membership: RwLock<Membership>,
    /// Held while the membership changes: `init`, `join` and `leave` do not run into each other.
    pub changing: Mutex<()>,
}

/// What this machine is to a cluster.
#[derive(Clone)]
pub enum Membership {
    /// Nothing.
    Inactive,
    /// A member.
    Active(Arc<Member>),
    /// A member by its identity, but it cannot take part, for this reason.
    Failed(String),
}

impl Daemon {
    /// What this machine is to a cluster now.
    pub fn membership(&self) -> Membership {
        self.membership.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Sets it. The caller holds [`Daemon::changing`].
    pub fn set_membership(&self, membership: Membership) {
        *self.membership.write().unwrap_or_else(PoisonError::into_inner) = membership;
    }

    /// The member this machine is, or what to do about it.
    pub fn member(&self) -> Result<Arc<Member>, Status> {
        match self.membership() {
            Membership::Active(member) => Ok(member),
            Membership::Inactive => Err(Status::failed_precondition(
                "this node is not part of a cluster: make one with `rswarm init`, or join one with `rswarm join`",
            )),
            Membership::Failed(why) => Err(Status::failed_precondition(format!(
                "this node cannot take part in its cluster: {why} (`rswarm leave --force` gives the membership up)"
            ))),
        }
    }

    /// Takes up the membership that is on disk. What stands in the way may pass, a port in use or a full disk, so
    /// it is tried again until it works or the membership is given up.
    async fn resume(self: Arc<Self>, stop: CancellationToken, mut told: Option<String>) {
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(RESUME) => {}
            }
            if self.resumed(&mut told).await {
                return;
            }
        }
    }

    /// One attempt. Whether there is nothing more to try.
    async fn resumed(&self, told: &mut Option<String>) -> bool {
        let _changing = self.changing.lock().await;
        if told.is_some() && !matches!(self.membership(), Membership::Failed(_)) {
            return true;
        }
        let membership = match self.try_resume().await {
            Ok(Some(member)) => Membership::Active(member),
            Ok(None) => Membership::Inactive,
            Err(error) => {
                let words = api::words(&error);
                if told.as_ref() != Some(&words) {
                    tracing::error!(error = words, "cannot take part in the cluster");
                    *told = Some(words.clone());
                }
                Membership::Failed(words)
            }
        };
        self.set_membership(membership.clone());
        !matches!(membership, Membership::Failed(_))
    }

    async fn try_resume(&self) -> Result<Option<Arc<Member>>> {
        let Some(identity) = Identity::load(&self.ground.config.state_dir)? else { return Ok(None) };
        let addr =
            identity.listen_addr.parse().context("the identity on disk has a malformed listen address")?;
        let listener = listen::bind(addr).await?;
        Member::start(self.ground.clone(), identity, listener, None).await.map(Some)
    }
}

impl Roles for Daemon {
    fn is_member(&self, _: NodeId) -> bool {
        false
    }

    fn is_removed(&self, _: NodeId) -> bool {
        false
    }

    fn is_manager(&self, _: NodeId) -> bool {
        false
    }

    fn is_seated(&self, _: NodeId) -> bool {
        false
    }
}

impl FindLeader for Daemon {
    fn reads(&self) -> bool {
        self.member().is_ok_and(|member| member.reads())
    }

    fn remembers(&self) -> bool {
        self.member().is_ok_and(|member| member.remembers())
    }

    fn leader(&self) -> Pin<Box<dyn Future<Output = Result<Leader, Status>> + Send + '_>> {
        Box::pin(async move { self.member()?.leader().await })
    }

    fn replaced<'a>(&'a self, node: &'a str) -> Pin<Box<dyn Future<Output = ()> + Send + 'a>> {
        Box::pin(async move {
            if let Ok(member) = self.member() {
                member.replaced(node).await;
            }
        })
    }
}

/// Runs a node until it is told to stop.
pub async fn run(config: Config) -> Result<()> {
    let _locks = lock(&config)?;
    if let Err(error) = crate::machine::raise_file_limit() {
        tracing::warn!(%error, "cannot raise the limit of open files");
    }
    if let Err(error) = crate::machine::without_huge_pages() {
        tracing::warn!(%error, "cannot do without huge pages: more memory is held than is used");
    }
    let config = Arc::new(config);
    let stop = CancellationToken::new();
    let arrivals = listen::unix(&config.socket, stop.clone()).await?;
    let images = Store::open(config.state_dir.join("images"))
        .with_context(|| format!("cannot open the image store in {}", config.state_dir.display()))?;
    let volumes = Volumes::open(config.state_dir.join("volumes"))
        .with_context(|| format!("cannot open the volumes in {}", config.state_dir.display()))?;
    let executor = Executor::open(crate::executor::Config {
        root_dir: config.state_dir.join("containers"),
        run_dir: config.run_dir.join("containers"),
        cgroup_parent: config.cgroup_parent.clone(),
        cgroup_mount: "/sys/fs/cgroup".into(),
        user_ids: config.user_ids,
        runtime: config.runtime.clone(),
    })
    .await
    .context("cannot open the container executor")?;
    let ground = Ground {
        config: config.clone(),
        executor: Arc::new(executor),
        images: Arc::new(images),
        registries: Arc::new(registries(&config)),
        volumes: Arc::new(volumes),
    };
    let daemon = Arc::new(Daemon {
        ground,
        started_at: wall::now(),
        membership: RwLock::new(Membership::Inactive),
        changing: Mutex::new(()),
    });
    let (mut first, resuming) = (None, stop.child_token());
    if !daemon.resumed(&mut first).await {
        tokio::spawn(daemon.clone().resume(resuming, first));
    }

    let whose = daemon.clone();
    let control = api::control::Control::new(Arc::new(move || whose.member().ok()));
    let router = Server::builder()
        .layer(Gate::new(daemon.clone()))
        .layer(Forward::new(daemon.clone()))
        .add_service(pb::tasks_server::TasksServer::new(control.clone()))
        .add_service(pb::insight_server::InsightServer::new(control.clone()))
        .add_service(pb::event_log_server::EventLogServer::new(control.clone()))
        .add_service(pb::control_server::ControlServer::new(control).max_encoding_message_size(64 << 20))
        .add_service(pb::local_server::LocalServer::new(api::local::Local::new(daemon.clone())));
    let served = tokio::spawn(router.serve_with_incoming(arrivals));
    tracing::info!(socket = %config.socket.display(), state = %config.state_dir.display(), "ready");
    notify_systemd("READY=1");

    let why = told_to_stop().await?;
    tracing::info!(why, "stopping; containers go on");
    notify_systemd("STOPPING=1");
    let goodbye = async {
        let _changing = daemon.changing.lock().await;
        if let Membership::Active(member) = daemon.membership() {
            member.stop().await;
        }
    };
    if tokio::time::timeout(SHUTDOWN, goodbye).await.is_err() {
        tracing::warn!("did not stop in {} s, ending anyway", SHUTDOWN.as_secs());
    }
    stop.cancel();
    served.abort();
    daemon.ground.executor.tidy().await;
    for file in [&config.socket, &config.run_dir.join(RUN_LOCK)] {
        let _ = std::fs::remove_file(file);
    }
    Ok(())
}

/// How registries are spoken to: what the configuration says, with the credentials of this machine.
fn registries(config: &Config) -> Registries {
    let mut registries = Registries::from_environment();
    registries.logins = Some(config.state_dir.join("registry-logins.json"));
    registries.insecure = config.insecure_registries.clone();
    for (host, settings) in &config.registries {
        if settings.insecure {
            registries.insecure.push(host.clone());
        }
        if !settings.mirrors.is_empty() {
            registries.mirrors.insert(host.clone(), settings.mirrors.clone());
        }
        if let Some(ca) = &settings.ca {
            registries.roots.insert(host.clone(), ca.clone());
        }
    }
    registries
}

/// In the run directory, which is left empty by a daemon that was told to stop.
const RUN_LOCK: &str = "run.lock";

/// One daemon to a state directory, and to a run directory, where its containers and networks are known.
fn lock(config: &Config) -> Result<[File; 2]> {
    Ok([
        lock_directory(&config.state_dir, "lock", "state directory", "--state-dir")?,
        lock_directory(&config.run_dir, RUN_LOCK, "run directory", "--run-dir")?,
    ])
}

fn lock_directory(dir: &Path, name: &str, what: &str, flag: &str) -> Result<File> {
    std::fs::create_dir_all(dir).with_context(|| format!("cannot create the {what} {}", dir.display()))?;
    let path = dir.join(name);
    let mut options = File::options();
    let file = options.write(true).create(true).truncate(false).open(&path);
    let file = file.with_context(|| format!("cannot write in the {what} {}", dir.display()))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(std::fs::TryLockError::WouldBlock) => {
            anyhow::bail!("another daemon uses the {what} {}: give this one its own {flag}", dir.display())
        }
        Err(std::fs::TryLockError::Error(error)) => {
            Err(error).with_context(|| format!("cannot lock {}", path.display()))
        }
    }
}

async fn told_to_stop() -> Result<&'static str> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut term = signal(SignalKind::terminate()).context("cannot wait for signals")?;
    let mut int = signal(SignalKind::interrupt()).context("cannot wait for signals")?;
    Ok(tokio::select! {
        _ = term.recv() => "SIGTERM",
        _ = int.recv() => "SIGINT",
    })
}

/// Tells systemd, where it asked to be told.
fn notify_systemd(what: &str) {
    let Some(path) = std::env::var_os("NOTIFY_SOCKET") else { return };
    let told = std::os::unix::net::UnixDatagram::unbound()
        .and_then(|socket| socket.send_to(what.as_bytes(), std::path::Path::new(&path)));
    if let Err(error) = told {
        tracing::debug!(%error, "cannot tell systemd");
    }
}
