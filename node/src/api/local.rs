//! This machine's own affairs: making, joining and leaving a cluster, its status, its images.

use super::status::status;
use super::{backup, images, volumes};
use crate::config;
use crate::daemon::{Daemon, Membership};
use crate::identity::token::JoinToken;
use crate::identity::{Identity, ManagerAddr, ca, random, token};
use crate::manager::{self, Manager};
use crate::member::{self, Ground, Member};
use crate::point;
use crate::rpc::dial::{self, Line};
use crate::rpc::{forward, listen};
use crate::wall;
use anyhow::{Context, Result, anyhow, bail, ensure};
use rswarm_control::admission;
use rswarm_control::ids::RaftId;
use rswarm_control::model::{Availability, JoinTokens, Role, Secret, Settings};
use rswarm_control::state::{Change, State};
use rswarm_proto::v1 as pb;
use rswarm_raft::Incarnation;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tonic::{Code, Request, Response, Status, Streaming};

/// How long `init` waits for its own first term, and `join` for its first session.
pub(super) const READY: Duration = Duration::from_secs(20);
/// How long a manager may take to learn what the others know.
const CATCH_UP: Duration = Duration::from_secs(3);

/// The service `Local`.
pub struct Local {
    pub(super) daemon: Arc<Daemon>,
}

impl Local {
    /// Speaks for this daemon.
    pub fn new(daemon: Arc<Daemon>) -> Self {
        Self { daemon }
    }

    /// Refuses what makes this machine a member while it is one.
    pub(super) fn inactive(&self) -> Result<()> {
        match self.daemon.membership() {
            Membership::Inactive => Ok(()),
            Membership::Active(_) => bail!(
                "this node is already part of a cluster: use `rswarm leave` to leave it before making or joining another"
            ),
            Membership::Failed(why) => bail!(
                "this node is already part of a cluster, though it cannot take part in it now ({why}): mend that, or \
                 give the membership up with `rswarm leave --force`"
            ),
        }
    }

    async fn init_cluster(&self, request: pb::InitRequest) -> Result<pb::InitResponse> {
        let _changing = self.daemon.changing.lock().await;
        self.inactive()?;
        let ground = self.daemon.ground.clone();
        let state_dir = ground.config.state_dir.clone();
        let (listen_addr, advertise) = addresses(&ground, &request.listen_addr, &request.advertise_addr)?;
        let availability = availability(request.availability())?;
        let listener = listen::bind(listen_addr).await?;

        let now = wall::now();
        let seed = u64::from_le_bytes(random());
        let (cluster, node) = admission::first_ids(seed);
        let node = node.to_string();
        let root = ca::Root::generate(&cluster.to_string(), now)?;
        let tokens =
            JoinTokens { worker: Secret(token::secret(random())), manager: Secret(token::secret(random())) };
        let plan = admission::Init {
            name: if request.name.is_empty() { "default".into() } else { request.name },
            id_seed: seed,
            ca_cert_pem: root.cert_pem.clone(),
            ca_key_pem: Secret(root.key_pem.clone()),
            tokens: tokens.clone(),
            settings: Settings::default(),
            hostname: crate::machine::hostname(),
            addr: advertise.to_string(),
            availability,
            description: crate::machine::describe(&ground),
        };
        let (changes, _) = admission::init(&State::default(), &plan, manager::clock::now())?;

        let (key_pem, csr) = ca::request()?;
        let life = Settings::default().cert_expiry;
        let cert_pem = root.sign(&csr, &node, &cluster.to_string(), now, life)?;
        let seat = RaftId::FIRST.0;
        let identity = Identity {
            format: Identity::FORMAT,
            node: node.clone(),
            cluster: cluster.to_string(),
            cert_pem,
            key_pem,
            ca_pem: root.cert_pem.clone(),
            advertise_addr: advertise.to_string(),
            listen_addr: listen_addr.to_string(),
            raft_id: Some(seat),
            managers: vec![ManagerAddr { node: node.clone(), addr: advertise.to_string(), raft_id: seat }],
            incarnation: Incarnation::FIRST.0,
            superseded: None,
        };

        // Whatever lies here was left by an `init` that did not come to its end: there is no identity beside it.
        manager::seat::give_up(&state_dir).context("cannot remove an unfinished cluster")?;
        manager::seat::claim(&state_dir, seat)?;
        point::reach("init.claimed");
        let (_, dialer) = member::connections(&identity)?;
        let me = rswarm_raft::Member { id: rswarm_raft::RaftId(seat), addr: advertise.to_string(), node };
        let incarnation = Incarnation::FIRST;
        let patient = ground.config.patient;
        let place = manager::Place { state_dir: state_dir.clone(), seat, cluster, incarnation, patient };
        let started = Manager::start(place, dialer, Some(me)).await;
        let manager = started.inspect_err(|_| forget(&state_dir))?;
        let founded = found(&manager, changes).await;
        if let Err(error) = founded {
            manager.stop().await;
            forget(&state_dir);
            return Err(error);
        }
        point::reach("init.founded");
        let (worker_token, manager_token) = root_tokens(&root.cert_pem, &tokens)?;
        let begun = match identity.save(&state_dir) {
            Ok(()) => {
                point::reach("init.saved");
                Member::start(ground, identity, listener, Some(manager)).await
            }
            Err(error) => {
                manager.stop().await;
                Err(error)
            }
        };
        let member = begun.inspect_err(|_| forget(&state_dir))?;
        let answer = pb::InitResponse {
            node_id: member.node.to_string(),
            cluster_id: cluster.to_string(),
            worker_token,
            manager_token,
            addr: advertise.to_string(),
            incarnation: Incarnation::FIRST.0,
        };
        self.daemon.set_membership(Membership::Active(member.clone()));
        session(&member).await.context("the cluster is made, but this node does not answer itself yet")?;
        Ok(answer)
    }

    async fn join_cluster(&self, request: pb::JoinRequest) -> Result<pb::JoinResponse> {
        let _changing = self.daemon.changing.lock().await;
        self.inactive()?;
        let token: JoinToken = request.token.parse()?;
        let ground = self.daemon.ground.clone();
        let state_dir = ground.config.state_dir.clone();
        let listen_addr = listen_addr(&request.listen_addr, ground.config.listen_addr)?;
        let advertise = if request.advertise_addr.is_empty() {
            // Where it listens, if that is one address; else the manager sees where this node calls from.
            listen_addr
        } else {
            config::advertise_addr(&request.advertise_addr, listen_addr.port())?
        };
        let availability = availability(request.availability())?;
        ensure!(!request.addrs.is_empty(), "say the address of a manager, for example 192.0.2.1:2377");
        let listener = listen::bind(listen_addr).await?;
        let (key_pem, csr_pem) = ca::request()?;
        let ask = pb::IssueCertificateRequest {
            csr_pem,
            secret: token.secret.clone(),
            hostname: crate::machine::hostname(),
            addr: advertise.to_string(),
            availability: pb::Availability::from(availability).into(),
            description: Some((&crate::machine::describe(&ground)).into()),
        };
        let issued = ask_to_join(&request.addrs, &token, ask).await?;
        point::reach("join.issued");
        ensure!(
            token::digest(&ca::der(&issued.ca_pem)?) == token.digest,
            "{}",
            crate::identity::tls::FOREIGN_CA
        );
        let role = issued.role();
        let raft_id = Some(issued.raft_id).filter(|seat| *seat != 0);
        if let Some(seat) = raft_id {
            manager::seat::give_up(&state_dir)?;
            manager::seat::claim(&state_dir, seat)?;
        }
        point::reach("join.claimed");
        let identity = Identity {
            format: Identity::FORMAT,
            node: issued.node_id.clone(),
            cluster: issued.cluster_id.clone(),
            cert_pem: issued.cert_pem,
            key_pem,
            ca_pem: issued.ca_pem,
            advertise_addr: issued.addr,
            listen_addr: listen_addr.to_string(),
            raft_id,
            managers: issued
                .managers
                .into_iter()
                .map(|manager| ManagerAddr {
                    node: manager.node_id,
                    addr: manager.addr,
                    raft_id: manager.raft_id,
                })
                .collect(),
            incarnation: issued.incarnation.max(Incarnation::FIRST.0),
            superseded: None,
        };
        let begun = match identity.save(&state_dir) {
            Ok(()) => {
                point::reach("join.saved");
                Member::start(ground, identity, listener, None).await
            }
            Err(error) => Err(error),
        };
        let member = begun.inspect_err(|_| forget(&state_dir)).with_context(|| {
            format!(
                "the cluster has taken this machine in as node {}, but it cannot take part; remove that node with \
                 `rswarm node rm --force {0}` on a manager, and join again",
                issued.node_id
            )
        })?;
        self.daemon.set_membership(Membership::Active(member.clone()));
        session(&member).await.context(
            "joined, but the cluster's leader does not answer this node yet; it goes on trying in the background",
        )?;
        if raft_id.is_some() {
            voting(&member).await?;
        }
        let (node_id, cluster_id) = (issued.node_id, issued.cluster_id);
        Ok(pb::JoinResponse { node_id, cluster_id, role: role.into() })
    }

    async fn leave_cluster(&self, force: bool) -> Result<()> {
        let _changing = self.daemon.changing.lock().await;
        let state_dir = self.daemon.ground.config.state_dir.clone();
        match self.daemon.membership() {
            Membership::Inactive => bail!("this node is not part of a cluster"),
            Membership::Failed(why) => ensure!(
                force,
                "this node cannot take part in its cluster ({why}), so it cannot say goodbye; leave with --force"
            ),
            Membership::Active(member) => {
                let wanted = member.refused().is_none();
                if wanted {
                    if let Some(manager) = member.manager().filter(|_| !force) {
                        // One that was just promoted may not have heard of itself yet; without a quorum, what it
                        // knows must do.
                        let _ = tokio::time::timeout(CATCH_UP, manager.cluster().log().read_index()).await;
                        bail!("{}", leaving_manager(&manager, &member));
                    }
                    if let Err(error) = goodbye(&member, force).await {
                        ensure!(
                            force,
                            "cannot say goodbye to the cluster: {error:#}; leave anyway with --force"
                        );
                        tracing::warn!(error = format!("{error:#}"), "leaving without a goodbye");
                    }
                }
                member.agent().clear().await.context("cannot stop this node's containers")?;
                member.stop().await;
            }
        }
        unwritten(&state_dir)?;
        self.daemon.set_membership(Membership::Inactive);
        Ok(())
    }
}

/// The whole tokens, a worker's and a manager's, of a cluster with this root certificate.
pub(super) fn root_tokens(ca_pem: &str, tokens: &JoinTokens) -> Result<(String, String)> {
    let root = ca::der(ca_pem)?;
    let whole = |secret: &Secret| JoinToken::new(&root, &secret.0).to_string();
    Ok((whole(&tokens.worker), whole(&tokens.manager)))
}

/// Removes what a membership that did not come about has written. Best effort: the error that ended it is told,
/// and the next attempt removes the rest.
pub(super) fn forget(state_dir: &Path) {
    if let Err(error) = unwritten(state_dir) {
        tracing::warn!(error = format!("{error:#}"), "cannot clean up");
    }
}

/// Removes what a membership keeps on disk.
fn unwritten(state_dir: &Path) -> Result<()> {
    Identity::remove(state_dir)?;
    rswarm_raft::wipe(&manager::raft_dir(state_dir)).context("cannot remove the manager's log")?;
    for left in ["raft.seat", "agent"] {
        let path = state_dir.join(left);
        let removed =
            if path.is_dir() { std::fs::remove_dir_all(&path) } else { std::fs::remove_file(&path) };
        match removed {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(error).with_context(|| format!("cannot remove {}", path.display()));
            }
            _ => {}
        }
    }
    Ok(())
}

/// Where the first manager of a cluster listens, and where others reach it.
pub(super) fn addresses(ground: &Ground, listen: &str, advertise: &str) -> Result<(SocketAddr, SocketAddr)> {
    let listen = listen_addr(listen, ground.config.listen_addr)?;
    if advertise.is_empty() && !listen.ip().is_unspecified() {
        return Ok((listen, listen));
    }
    Ok((listen, config::advertise_addr(advertise, listen.port())?))
}

fn listen_addr(said: &str, default: SocketAddr) -> Result<SocketAddr> {
    if said.is_empty() {
        return Ok(default);
    }
    if let Ok(addr) = said.parse() {
        return Ok(addr);
    }
    if let Ok(ip) = said.parse() {
        return Ok(SocketAddr::new(ip, default.port()));
    }
    config::advertise_addr(said, default.port()).context("cannot choose the address to listen on")
}

pub(super) fn availability(said: pb::Availability) -> Result<Availability> {
    match said {
        pb::Availability::Unspecified => Ok(Availability::Active),
        other => Ok(Availability::try_from(other)?),
    }
}

/// Commits the cluster's first facts.
async fn found(manager: &Manager, changes: Vec<Change>) -> Result<()> {
    let committed = tokio::time::timeout(READY, async {
        loop {
            let now = manager::clock::now();
            match manager.cluster().commit(changes.clone(), now).await {
                Ok(Some(_)) => return Ok(()),
                Ok(None) => bail!("the new cluster's log is not empty"),
                // The first term has not begun yet.
                Err(manager::cluster::WriteError::Propose(_)) => {
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
                Err(error) => return Err(error.into()),
            }
        }
    });
    committed.await.map_err(|_| anyhow!("the new cluster did not come to life in {} s", READY.as_secs()))?
}

/// Asks one manager after the other. What a manager refuses is final; one that cannot be reached is not.
pub(crate) async fn ask_to_join(
    addrs: &[String],
    token: &JoinToken,
    ask: pb::IssueCertificateRequest,
) -> Result<pb::IssueCertificateResponse> {
    let mut unreachable = Vec::new();
    // The same with each: one that did not answer may have taken this machine in.
    let id = forward::new_request_id();
    for addr in addrs {
        let addr = if addr.contains(':') { addr.clone() } else { format!("{addr}:{}", config::PORT) };
        let channel = match dial::joining(&addr, &token.digest).await {
            Ok(channel) => channel,
            Err(error) => {
                unreachable.push(format!("{error:#}"));
                continue;
            }
        };
        let mut ask = Request::new(ask.clone());
        ask.metadata_mut().insert(forward::REQUEST_ID, id.clone());
        let answer = pb::join_client::JoinClient::new(channel).issue_certificate(ask).await;
        match answer {
            Ok(issued) => return Ok(issued.into_inner()),
            Err(status) if status.code() == Code::Unavailable => {
                unreachable.push(format!("{addr}: {}", status.message()));
            }
            Err(status) => bail!("{addr} refused: {}", status.message()),
        }
    }
    bail!("{}", unreachable.join("; "))
}

/// Waits until the leader has taken this node's session.
pub(super) async fn session(member: &Member) -> Result<()> {
    let mut contact = member.agent().contact();
    let seen = tokio::time::timeout(READY, contact.wait_for(Option::is_some)).await;
    match seen {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(_)) => bail!("the agent has stopped"),
        Err(_) => bail!("no answer within {} s", READY.as_secs()),
    }
}

/// Waits until this manager votes.
async fn voting(member: &Member) -> Result<()> {
    let manager = member.manager().context("this node is not a manager any more")?;
    let mut status = manager.cluster().log().watch();
    let votes = tokio::time::timeout(
        READY,
        status.wait_for(|status| status.voters.iter().any(|voter| voter.id == status.id)),
    );
    match votes.await {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(_)) => bail!("this manager has stopped"),
        Err(_) => bail!(
            "joined, but this manager has not caught up with the others within {} s; it goes on in the background",
            READY.as_secs()
        ),
    }
}

fn leaving_manager(manager: &Manager, member: &Member) -> String {
    let state = manager.cluster().state();
    let managers = state.nodes().filter(|node| node.role == Role::Manager).count();
    let rest = managers.saturating_sub(1);
    if rest == 0 {
        return "this node is the cluster's only manager: leaving ends the cluster and all its services; \
                leave with --force if that is what you want"
            .into();
    }
    format!(
        "this node is one of {managers} managers: demote it first (`rswarm node demote {}`), or leave with \
         --force, after which {rest} remain and {} of them must be online",
        member.node,
        rest / 2 + 1
    )
}

/// The leader, which a worker may still be looking for after an election.
async fn found_leader(member: &Member) -> Result<ManagerAddr> {
    const PATIENCE: Duration = Duration::from_secs(5);
    let found = async {
        loop {
            if let Some(leader) = member.agent().leader() {
                return leader;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(PATIENCE, found).await.context("no leader is known")
}

/// Tells the leader that this node goes.
async fn goodbye(member: &Member, force: bool) -> Result<()> {
    use crate::rpc::forward::FindLeader;
    let request = pb::LeaveClusterRequest { node: member.node.to_string(), force };
    if let Some(manager) = member.manager() {
        let managers = manager.cluster().state().nodes().filter(|node| node.role == Role::Manager).count();
        if managers <= 1 {
            return Ok(());
        }
        if manager.office().is_some() {
            manager.cluster().log().transfer(None).await.context("cannot hand leadership over")?;
        }
        let crate::rpc::forward::Leader::Other { channel, .. } = member.leader().await? else {
            bail!("leadership did not move");
        };
        pb::control_client::ControlClient::new(channel).leave(request).await?;
        return Ok(());
    }
    let leader = found_leader(member).await?;
    let channel = member.dialer().channel(&leader.node, &leader.addr, Line::Calls)?;
    pb::dispatcher_client::DispatcherClient::new(channel).goodbye(pb::GoodbyeRequest {}).await?;
    Ok(())
}

#[tonic::async_trait]
impl pb::local_server::Local for Local {
    async fn init(&self, request: Request<pb::InitRequest>) -> Result<Response<pb::InitResponse>, Status> {
        let request = request.into_inner();
        let made = match request.force_new_cluster {
            true => self.force_new_cluster(request).await,
            false => self.init_cluster(request).await,
        };
        made.map(Response::new).map_err(failed)
    }

    async fn rejoin(
        &self,
        request: Request<pb::RejoinRequest>,
    ) -> Result<Response<pb::RejoinResponse>, Status> {
        self.rejoin_cluster(request.into_inner()).await.map(Response::new).map_err(failed)
    }

    type BackupStream = backup::Chunks;

    async fn backup(&self, request: Request<pb::BackupRequest>) -> Result<Response<backup::Chunks>, Status> {
        backup::back_up(&self.daemon, request.into_inner()).await.map(Response::new)
    }

    async fn restore(
        &self,
        request: Request<Streaming<pb::RestoreChunk>>,
    ) -> Result<Response<pb::RestoreResponse>, Status> {
        self.restore_cluster(request.into_inner()).await.map(Response::new).map_err(failed)
    }

    async fn join(&self, request: Request<pb::JoinRequest>) -> Result<Response<pb::JoinResponse>, Status> {
        self.join_cluster(request.into_inner()).await.map(Response::new).map_err(failed)
    }

    async fn leave(&self, request: Request<pb::LeaveRequest>) -> Result<Response<pb::LeaveResponse>, Status> {
        self.leave_cluster(request.into_inner().force).await.map_err(failed)?;
        Ok(Response::new(pb::LeaveResponse {}))
    }

    async fn status(&self, _: Request<pb::StatusRequest>) -> Result<Response<pb::StatusResponse>, Status> {
        // What the loss of each node would come to takes its time in a large cluster.
        let daemon = self.daemon.clone();
        let told = tokio::task::spawn_blocking(move || status(&daemon)).await;
        told.map(Response::new).map_err(|error| Status::internal(format!("cannot tell the status: {error}")))
    }

    async fn list_images(
        &self,
        _: Request<pb::ListImagesRequest>,
    ) -> Result<Response<pb::ListImagesResponse>, Status> {
        let images = images::list(&self.daemon.ground).await.map_err(failed)?;
        Ok(Response::new(pb::ListImagesResponse { images }))
    }

    type PullImageStream = images::Steps;

    async fn pull_image(
        &self,
        request: Request<pb::PullImageRequest>,
    ) -> Result<Response<images::Steps>, Status> {
        let steps = images::pull(&self.daemon.ground, &request.into_inner()).map_err(failed)?;
        Ok(Response::new(steps))
    }

    async fn load_image(
        &self,
        request: Request<Streaming<pb::LoadImageChunk>>,
    ) -> Result<Response<pb::LoadImageResponse>, Status> {
        let references = images::load(&self.daemon.ground, request.into_inner()).await.map_err(failed)?;
        Ok(Response::new(pb::LoadImageResponse { references }))
    }

    async fn inspect_images(
        &self,
        request: Request<pb::InspectImagesRequest>,
    ) -> Result<Response<pb::InspectImagesResponse>, Status> {
        let images =
            images::inspect(&self.daemon.ground, request.into_inner().names).await.map_err(failed)?;
        Ok(Response::new(pb::InspectImagesResponse { images }))
    }

    async fn tag_image(
        &self,
        request: Request<pb::TagImageRequest>,
    ) -> Result<Response<pb::TagImageResponse>, Status> {
        images::tag(&self.daemon.ground, request.into_inner()).await.map_err(failed)?;
        Ok(Response::new(pb::TagImageResponse {}))
    }

    async fn prune_images(
        &self,
        request: Request<pb::PruneImagesRequest>,
    ) -> Result<Response<pb::PruneImagesResponse>, Status> {
        images::prune(&self.daemon.ground, request.into_inner()).await.map(Response::new).map_err(failed)
    }

    type SaveImagesStream = images::Pieces;

    async fn save_images(
        &self,
        request: Request<pb::SaveImagesRequest>,
    ) -> Result<Response<images::Pieces>, Status> {
        Ok(Response::new(images::save(&self.daemon.ground, request.into_inner().names)))
    }

    type PushImageStream = images::Steps;

    async fn push_image(
        &self,
        request: Request<pb::PushImageRequest>,
    ) -> Result<Response<images::Steps>, Status> {
        images::push(&self.daemon.ground, &request.into_inner().reference).map(Response::new).map_err(failed)
    }

    async fn create_volume(
        &self,
        request: Request<pb::CreateVolumeRequest>,
    ) -> Result<Response<pb::Volume>, Status> {
        volumes::create(&self.daemon.ground, request.into_inner()).await.map(Response::new).map_err(failed)
    }

    async fn list_volumes(
        &self,
        request: Request<pb::ListVolumesRequest>,
    ) -> Result<Response<pb::ListVolumesResponse>, Status> {
        let volumes = volumes::list(&self.daemon.ground, request.into_inner().names).await.map_err(failed)?;
        Ok(Response::new(pb::ListVolumesResponse { volumes }))
    }

    async fn remove_volume(
        &self,
        request: Request<pb::RemoveVolumeRequest>,
    ) -> Result<Response<pb::RemoveVolumeResponse>, Status> {
        volumes::remove(&self.daemon.ground, request.into_inner()).await.map_err(failed)?;
        Ok(Response::new(pb::RemoveVolumeResponse {}))
    }

    async fn snapshot_volume(
        &self,
        request: Request<pb::SnapshotVolumeRequest>,
    ) -> Result<Response<pb::SnapshotVolumeResponse>, Status> {
        volumes::snapshot(&self.daemon.ground, request.into_inner()).await.map_err(failed)?;
        Ok(Response::new(pb::SnapshotVolumeResponse {}))
    }

    async fn restore_volume(
        &self,
        request: Request<pb::SnapshotVolumeRequest>,
    ) -> Result<Response<pb::SnapshotVolumeResponse>, Status> {
        volumes::restore(&self.daemon.ground, request.into_inner()).await.map_err(failed)?;
        Ok(Response::new(pb::SnapshotVolumeResponse {}))
    }

    async fn login(&self, request: Request<pb::LoginRequest>) -> Result<Response<pb::LoginResponse>, Status> {
        images::login(&self.daemon.ground, request.into_inner()).await.map(Response::new).map_err(failed)
    }

    async fn logout(
        &self,
        request: Request<pb::LogoutRequest>,
    ) -> Result<Response<pb::LogoutResponse>, Status> {
        images::logout(&self.daemon.ground, request.into_inner()).await.map(Response::new).map_err(failed)
    }

    async fn remove_image(
        &self,
        request: Request<pb::RemoveImageRequest>,
    ) -> Result<Response<pb::RemoveImageResponse>, Status> {
        let pb::RemoveImageRequest { reference, force } = request.into_inner();
        images::remove(&self.daemon.ground, reference, force).await.map(Response::new).map_err(failed)
    }
}

fn failed(error: anyhow::Error) -> Status {
    match error.downcast::<Status>() {
        Ok(status) => status,
        Err(error) => Status::failed_precondition(super::words(&error)),
    }
}
