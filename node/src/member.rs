//! This machine as a member of a cluster: its listener, its agent, its overlay, and its manager while it is one.

mod seat;

use crate::agent::{self, Agent, Standing};
use crate::api;
use crate::blobs::{Blobs, Nodes};
use crate::config::Config;
use crate::executor::Executor;
use crate::identity::Identity;
use crate::identity::tls::{self, Credentials};
use crate::image::{Registries, Store};
use crate::manager::{self, Manager, dispatcher::Dispatcher};
use crate::point;
use crate::rpc::access::{Gate, Roles};
use crate::rpc::dial::{ALPN, Dialer, Line};
use crate::rpc::forward::{FindLeader, Forward, Leader};
use crate::rpc::listen;
use crate::volume::Volumes;
use anyhow::{Context, Result};
use arc_swap::ArcSwapOption;
use rswarm_control::ids::{ClusterId, NodeId};
use rswarm_control::level;
use rswarm_control::model::Role;
use rswarm_proto::v1 as pb;
use rswarm_raft::Incarnation;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::Status;
use tonic::transport::Server;

/// For how many heartbeats a call waits for an election to end.
const ELECTION: u32 = 30;
/// How long open calls may go on when the node stops.
const GOODBYE: Duration = Duration::from_secs(1);
/// Messages up to this size are taken: a table or an assignment of a large cluster.
const MESSAGE_MAX: usize = 64 << 20;

/// What a member stands on.
#[derive(Clone)]
pub struct Ground {
    /// The daemon's configuration.
    pub config: Arc<Config>,
    /// Runs containers.
    pub executor: Arc<Executor>,
    /// Keeps images.
    pub images: Arc<Store>,
    /// Where images come from.
    pub registries: Arc<Registries>,
    /// Keeps named volumes.
    pub volumes: Arc<Volumes>,
}

/// This machine as a member.
pub struct Member {
    /// Which node it is.
    pub node: NodeId,
    /// Of which cluster.
    pub cluster: ClusterId,
    ground: Ground,
    state_dir: PathBuf,
    identity: Mutex<Identity>,
    credentials: Arc<Credentials>,
    dialer: Arc<Dialer>,
    manager: ArcSwapOption<Manager>,
    agent: Agent,
    stop: CancellationToken,
    tracker: TaskTracker,
    /// Held while the manager is started or stopped.
    changing: tokio::sync::Mutex<()>,
    /// How the manager's log was lost, while it waits for another seat.
    lost: Mutex<Option<String>>,
    /// What the session says of the seat.
    standing: watch::Sender<Standing>,
    /// Set when the cluster no longer wants this node as what it is.
    refused: watch::Sender<Option<Denial>>,
}

/// Why the cluster does not want this node as what it is, and what to do about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Denial {
    /// Why.
    pub words: String,
    /// What to type.
    pub cure: String,
}

impl std::fmt::Display for Denial {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.words, self.cure)
    }
}

impl Member {
    /// Takes part, with the identity that is on disk. `manager` is given when it already runs.
    pub async fn start(
        ground: Ground,
        identity: Identity,
        listener: TcpListener,
        founded: Option<Arc<Manager>>,
    ) -> Result<Arc<Self>> {
        let node: NodeId = identity.node.parse().context("the identity on disk has a malformed node id")?;
        let cluster: ClusterId =
            identity.cluster.parse().context("the identity on disk has a malformed cluster id")?;
        let (credentials, dialer) = connections(&identity)?;
        let stop = CancellationToken::new();
        let tracker = TaskTracker::new();
        let superseded = identity.superseded.map(Incarnation);
        let (refused, _) = watch::channel(superseded.map(Denial::outdated));
        let state_dir = ground.config.state_dir.clone();

        let mut lost = None;
        let seat = identity.raft_id.filter(|_| identity.superseded.is_none());
        let manager = match (founded, seat) {
            (Some(manager), _) => Some(manager),
            (None, Some(seat)) => {
                let place = seat::place(&state_dir, cluster, &identity, seat, ground.config.patient);
                match Manager::start(place, dialer.clone(), None).await {
                    Ok(manager) => Some(manager),
                    Err(error) => {
                        let Some(words) = manager::seat::lost(&error) else { return Err(error) };
                        tracing::error!(
                            why = words,
                            "this manager does not vote, and waits for another seat"
                        );
                        lost = Some(words);
                        None
                    }
                }
            }
            (None, None) => None,
        };
        let (standing, stands) = watch::channel(seat::standing(&identity, lost.is_some()));
        let agent = Agent::start(agent::Setting {
            ground: ground.clone(),
            node,
            identity: identity.clone(),
            credentials: credentials.clone(),
            dialer: dialer.clone(),
            standing: stands,
            stop: stop.child_token(),
            tracker: tracker.clone(),
        });
        let agent = match agent.await {
            Ok(agent) => agent,
            Err(error) => {
                if let Some(manager) = manager {
                    manager.stop().await;
                }
                return Err(error);
            }
        };
        let member = Arc::new(Self {
            node,
            cluster,
            ground,
            state_dir,
            identity: Mutex::new(identity),
            credentials,
            dialer,
            manager: ArcSwapOption::new(manager),
            agent,
            stop,
            tracker,
            changing: tokio::sync::Mutex::new(()),
            lost: Mutex::new(lost),
            standing,
            refused,
        });
        member.serve(listener)?;
        let managers = member.agent.known_managers();
        let nodes = Nodes::new(node, member.dialer.clone(), Box::new(managers));
        member.ground.images.ask_first(Some(Arc::new(nodes)));
        member.tracker.spawn(member.clone().follow_role());
        member.tracker.spawn(member.clone().watch_over());
        member.tracker.spawn(member.clone().renew());
        Ok(member)
    }

    /// What it stands on.
    pub fn ground(&self) -> &Ground {
        &self.ground
    }

    /// The manager that runs here, if one does.
    pub fn manager(&self) -> Option<Arc<Manager>> {
        self.manager.load_full()
    }

    /// A copy of the identity.
    pub fn identity(&self) -> Identity {
        self.identity.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The node's half of the work.
    pub fn agent(&self) -> &Agent {
        &self.agent
    }

    /// Makes connections to other nodes.
    pub fn dialer(&self) -> &Arc<Dialer> {
        &self.dialer
    }

    /// Why the cluster no longer wants this node as what it is, if so.
    pub fn refused(&self) -> Option<Denial> {
        self.refused.borrow().clone()
    }

    /// Ends once the cluster no longer wants this node as what it is.
    pub async fn denied(&self) {
        // An error means that the member is gone, and with it everybody who waits here.
        let _ = self.refused.subscribe().wait_for(Option::is_some).await;
    }

    /// Stops taking part; containers go on.
    pub async fn stop(&self) {
        if let Some(manager) = self.manager() {
            // Still heard by the others meanwhile: its successor needs its vote, and it the name of its successor.
            manager.stop().await;
            self.manager.store(None);
        }
        self.ground.images.ask_first(None);
        self.stop.cancel();
        self.tracker.close();
        self.tracker.wait().await;
    }

    fn serve(self: &Arc<Self>, listener: TcpListener) -> Result<()> {
        let identity = self.identity();
        let config = tls::server(self.credentials.clone(), &identity.ca_pem, true, ALPN)?;
        let arrivals = listen::tls(listener, config, identity.cluster, self.stop.clone());
        let this = self.clone();
        let manager: Arc<dyn Fn() -> Option<Arc<Manager>> + Send + Sync> =
            Arc::new(move || this.manager.load_full());
        let router = Server::builder()
            .layer(Gate::new(self.clone()))
            .layer(Forward::new(self.clone()))
            .add_service(pb::join_server::JoinServer::new(api::join::Join::new(manager.clone())))
            .add_service(
                pb::dispatcher_server::DispatcherServer::new(Dispatcher::new(manager.clone()))
                    .max_decoding_message_size(MESSAGE_MAX),
            )
            .add_service(
                pb::raft_server::RaftServer::new(manager::transport::Receiver::new(manager.clone()))
                    .max_decoding_message_size(MESSAGE_MAX)
                    .max_encoding_message_size(MESSAGE_MAX),
            )
            .add_service(pb::agent_server::AgentServer::new(self.agent.doors()))
            .add_service(pb::blobs_server::BlobsServer::new(Blobs::new(
                self.ground.images.clone(),
                manager.clone(),
            )))
            .add_service(
                pb::control_server::ControlServer::new(api::control::Control::of(self))
                    .max_encoding_message_size(MESSAGE_MAX),
            )
            .add_service(pb::insight_server::InsightServer::new(api::control::Control::of(self)))
            .add_service(pb::tasks_server::TasksServer::new(api::control::Control::of(self)));
        let stop = self.stop.clone();
        self.tracker.spawn(async move {
            let goodbye = async {
                stop.cancelled().await;
                tokio::time::sleep(GOODBYE).await;
            };
            tokio::select! {
                () = goodbye => {}
                served = router.serve_with_incoming_shutdown(arrivals, stop.cancelled()) => {
                    if let Err(error) = served {
                        tracing::error!(%error, "the control port is no longer served");
                    }
                }
            }
        });
        Ok(())
    }

    /// Renews the certificate somewhere between half and four fifths of its life.
    async fn renew(self: Arc<Self>) {
        loop {
            let wait = match api::join::renewal_due(&self.identity()) {
                // Soon, but not before a leader is known.
                Ok(_) if point::renews() => Duration::from_secs(2),
                Ok(wait) => wait,
                Err(error) => {
                    tracing::error!(error = format!("{error:#}"), "the certificate cannot be read");
                    return;
                }
            };
            tokio::select! {
                () = self.stop.cancelled() => return,
                () = tokio::time::sleep(wait.min(Duration::from_secs(3600))) => {}
            }
            if wait > Duration::from_secs(3600) {
                continue;
            }
            // A daemon that has just started has heard of no leader yet, and need not try in vain.
            let mut contact = self.agent.contact();
            tokio::select! {
                () = self.stop.cancelled() => return,
                _ = contact.wait_for(Option::is_some) => {}
            }
            if let Err(error) = self.renew_once().await {
                tracing::warn!(error = format!("{error:#}"), "cannot renew the certificate yet");
                tokio::select! {
                    () = self.stop.cancelled() => return,
                    () = tokio::time::sleep(Duration::from_secs(30)) => {}
                }
            }
        }
    }

    async fn renew_once(&self) -> Result<()> {
        let (key_pem, csr_pem) = crate::identity::ca::request()?;
        let identity = self.identity();
        let leader = self.agent.leader().context("no leader is known")?;
        let channel = self.dialer.channel(&leader.node, &leader.addr, Line::Calls)?;
        let request = pb::IssueCertificateRequest { csr_pem, ..Default::default() };
        let issued = pb::join_client::JoinClient::new(channel).issue_certificate(request).await?.into_inner();
        point::reach("renewal.issued");
        self.credentials.replace(&issued.cert_pem, &identity.ca_pem, &key_pem)?;
        let mut identity = self.identity.lock().unwrap_or_else(PoisonError::into_inner);
        identity.cert_pem = issued.cert_pem;
        identity.key_pem = key_pem;
        identity.save(&self.state_dir)?;
        point::reach("renewal.saved");
        tracing::info!("certificate renewed");
        Ok(())
    }
}

/// The node's certificate, and the dialer that shows it.
pub fn connections(identity: &Identity) -> Result<(Arc<Credentials>, Arc<Dialer>)> {
    let credentials = Credentials::new(&identity.cert_pem, &identity.ca_pem, &identity.key_pem)?;
    let config = tls::client(credentials.clone(), &identity.ca_pem, ALPN)?;
    Ok((credentials, Arc::new(Dialer::new(config, identity.cluster.clone()))))
}

impl Roles for Member {
    fn is_member(&self, node: NodeId) -> bool {
        match self.manager.load().as_ref() {
            Some(manager) => {
                let state = manager.cluster().state();
                // A node that was removed is let in to be told so.
                state.node(node).is_some() || state.removed_at(node).is_some()
            }
            None => false,
        }
    }

    fn is_removed(&self, node: NodeId) -> bool {
        let manager = self.manager.load();
        manager.as_ref().is_some_and(|manager| manager.cluster().state().removed_at(node).is_some())
    }

    fn is_manager(&self, node: NodeId) -> bool {
        if let Some(manager) = self.manager.load().as_ref() {
            let state = manager.cluster().state();
            if state.removed_at(node).is_some() {
                return false;
            }
            if state.node(node).is_some_and(|node| node.role == Role::Manager) {
                return true;
            }
        }
        // A manager that is still catching up reads old roles in its state, a worker has no state at all: both
        // believe the list that the leader sends.
        let text = node.to_string();
        self.agent.managers().iter().any(|manager| manager.node == text)
    }

    fn is_seated(&self, node: NodeId) -> bool {
        let text = node.to_string();
        let seated =
            |manager: &Arc<Manager>| manager.cluster().log().status().member_by_node(&text).is_some();
        self.is_manager(node) || self.manager.load().as_ref().is_some_and(seated)
    }
}

/// For a manager whose log is lost where nobody is left to have it from.
pub const GIVE_UP: &str = "`rswarm leave --force` gives the membership up";

/// A follower that has not heard its leader for so many heartbeats no longer believes in it.
const FAITH: u32 = 15;
/// One that has not heard it for three heartbeats, and half a one, passes nothing on to it until it is heard again or
/// another leads.
fn fresh(status: &rswarm_raft::Status) -> Duration {
    status.heartbeat * 7 / 2
}
/// One that was passed a call and has been silent for so many heartbeats will not answer it.
const LOST: u32 = 30;

/// Whom a manager may take for the leader: nobody, if it has long heard nothing of it.
pub fn believed(status: &rswarm_raft::Status) -> Option<rswarm_raft::Member> {
    heard_within(status, status.heartbeat * FAITH)
}

fn heard_within(status: &rswarm_raft::Status, time: Duration) -> Option<rswarm_raft::Member> {
    let alone = status.voters.len() < 2;
    let recent = alone || status.quorum_heard_at.is_none_or(|at| at.elapsed() < time);
    status.leader.clone().filter(|_| recent)
}

impl FindLeader for Member {
    fn reads(&self) -> bool {
        self.refused().is_none() && self.lost().is_none() && self.manager().is_some()
    }

    fn remembers(&self) -> bool {
        let manager = self.manager.load();
        manager.as_ref().is_some_and(|manager| manager.cluster().state().level() >= level::REQUESTS)
    }

    fn leader(&self) -> Pin<Box<dyn Future<Output = Result<Leader, Status>> + Send + '_>> {
        Box::pin(async move {
            if let Some(denial) = self.refused() {
                return Err(Status::failed_precondition(denial.to_string()));
            }
            if let Some(lost) = self.lost() {
                return Err(Status::failed_precondition(format!(
                    "this manager has lost its log ({lost}) and waits for the others to make it whole: ask one of \
                     them; if there is none, its state is lost, and {GIVE_UP}"
                )));
            }
            let Some(manager) = self.manager() else {
                return Err(Status::failed_precondition(
                    "this node is a worker: run the command on a manager, or promote this node from one with \
                     `rswarm node promote`",
                ));
            };
            let log = manager.cluster().log().clone();
            let (mut status, mut office) = (log.watch(), manager.offices());
            let patience = log.status().heartbeat * ELECTION;
            let found = async {
                loop {
                    status.mark_unchanged();
                    let now = log.status();
                    match believed(&now) {
                        Some(leader) if leader.node == self.node.to_string() => {
                            let in_office = office.borrow_and_update().is_some();
                            if in_office {
                                return Ok(Leader::Me);
                            }
                        }
                        Some(leader) if heard_within(&now, fresh(&now)).is_some() => {
                            let channel = self.dialer.channel(&leader.node, &leader.addr, Line::Calls);
                            return channel
                                .map(|channel| Leader::Other { node: leader.node, channel })
                                .map_err(|error| Status::unavailable(format!("{error:#}")));
                        }
                        _ => {}
                    }
                    let stopping = tokio::select! {
                        changed = status.changed() => changed.is_err(),
                        changed = office.changed() => changed.is_err(),
                        // Belief also comes and goes with time alone.
                        () = tokio::time::sleep(Duration::from_millis(50)) => false,
                    };
                    if stopping {
                        return Err(Status::unavailable("this manager is stopping"));
                    }
                }
            };
            tokio::time::timeout(patience, found).await.unwrap_or_else(|_| Err(no_leader(&manager)))
        })
    }

    fn replaced<'a>(&'a self, node: &'a str) -> Pin<Box<dyn Future<Output = ()> + Send + 'a>> {
        Box::pin(async move {
            let Some(manager) = self.manager() else { return };
            let log = manager.cluster().log().clone();
            let mut status = log.watch();
            loop {
                status.mark_unchanged();
                let now = log.status();
                let another = now.leader.as_ref().is_some_and(|leader| leader.node != node);
                if another || now.quorum_heard_at.is_some_and(|at| at.elapsed() > now.heartbeat * LOST) {
                    return;
                }
                // That the log is closed means that this manager stops, and nobody waits for it any more.
                if let Ok(Err(_)) = tokio::time::timeout(fresh(&now), status.changed()).await {
                    return;
                }
            }
        })
    }
}

fn no_leader(manager: &Manager) -> Status {
    let managers = manager.cluster().state().nodes().filter(|node| node.role == Role::Manager).count();
    Status::unavailable(format!(
        "the cluster has no leader: more than half of its {managers} managers must be online and reach each \
         other; containers go on running (see `rswarm status`)"
    ))
}
