//! The cluster's objects, as the command line asks for them. Runs on the leader: other managers pass calls on.

use super::logs::{self, Whose};
use super::watch;
use crate::identity::token::JoinToken;
use crate::identity::{ca, random, token};
use crate::image::{self, Reference};
use crate::manager::cluster::{Cluster, refused_status};
use crate::manager::{Manager, clock};
use crate::member::{Ground, Member};
use crate::rpc::dial::Dialer;
use crate::rpc::forward::REQUEST_ID;
use crate::rpc::stale::{Age, STALE, Seen};
use rswarm_control::admission::{
    Answer, NetworkSpec, NodeUpdate, Refused, Request as Ask, find_network, find_node, find_service,
    find_task,
};
use rswarm_control::model::{
    Availability, Filling, NodeStatus, Observed, Role, Secret, Service, ServiceSpec, Subnet, Task,
};
use rswarm_control::state::{NotARequestId, RequestId, State};
use rswarm_control::{convergence, drain};
use rswarm_proto::Problem;
use rswarm_proto::v1 as pb;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

/// The services `Control` and `Tasks`.
#[derive(Clone)]
pub struct Control {
    manager: Arc<dyn Fn() -> Option<Arc<Manager>> + Send + Sync>,
    dialer: Arc<dyn Fn() -> Option<Arc<Dialer>> + Send + Sync>,
    me: Arc<dyn Fn() -> String + Send + Sync>,
    ground: Arc<dyn Fn() -> Option<Ground> + Send + Sync>,
}

/// How long a registry may take to say what a name means.
const LOOK_UP: Duration = Duration::from_secs(5);

/// How long whoever changes a node's role waits until the managers count with it.
const COUNTED: Duration = Duration::from_secs(5);

fn unpinned(image: &str, why: &str) -> String {
    format!(
        "image {image} could not be resolved to a digest ({why}); each node will look for it itself, and they may \
         find different versions"
    )
}

impl Control {
    /// For the control port of this member.
    pub fn of(member: &Arc<Member>) -> Self {
        let member = member.clone();
        Self::new(Arc::new(move || Some(member.clone())))
    }

    /// For the member that `member` says this machine is now, if any.
    pub fn new(member: Arc<dyn Fn() -> Option<Arc<Member>> + Send + Sync>) -> Self {
        let (of_manager, of_dialer, of_ground) = (member.clone(), member.clone(), member.clone());
        Self {
            manager: Arc::new(move || of_manager()?.manager()),
            dialer: Arc::new(move || Some(of_dialer()?.dialer().clone())),
            ground: Arc::new(move || Some(of_ground()?.ground().clone())),
            me: Arc::new(move || member().map(|member| member.node.to_string()).unwrap_or_default()),
        }
    }

    pub(super) fn manager(&self) -> Result<Arc<Manager>, Status> {
        (self.manager)().ok_or_else(|| Status::unavailable("this node is not a manager"))
    }

    pub(super) fn cluster(&self) -> Result<Cluster, Status> {
        Ok(self.manager()?.cluster().clone())
    }

    /// Whether the managers count with a node's vote, or no longer do, as its role wants it; waits for that, but not for
    /// long. Somebody who lets another manager go right after relies on it.
    async fn counted(&self, node: &str, role: Role) -> Result<bool, Status> {
        let mut status = self.cluster()?.log().watch();
        let votes = status.wait_for(|status| {
            let votes = status.voters.iter().any(|voter| voter.node == node);
            votes == (role == Role::Manager) && !status.joint
        });
        // A manager that is no longer one has nothing to watch.
        Ok(tokio::time::timeout(COUNTED, votes).await.is_ok())
    }

    pub(super) async fn fresh(&self) -> Result<Arc<State>, Status> {
        self.cluster()?.fresh().await
    }

    /// The state to answer a read from: as new as anything that was acknowledged, unless an old one will do.
    async fn look<T>(&self, request: &Request<T>) -> Result<Seen, Status> {
        let cluster = self.cluster()?;
        if request.metadata().get(STALE).is_none() {
            return Ok(Seen { state: cluster.fresh().await?, age: None });
        }
        let state = cluster.state();
        let age = Some(Age::of(&state, &cluster.log().status()));
        Ok(Seen { state, age })
    }

    pub(super) fn dialer(&self) -> Result<Arc<Dialer>, Status> {
        (self.dialer)().ok_or_else(|| Status::unavailable("this node is leaving the cluster"))
    }

    /// Resolves the images of a spec to digests, so that all tasks run the same whatever becomes of a tag. What
    /// cannot be resolved stays as it is, and is returned as a warning: a node may have the image all the same.
    pub(super) async fn pin(&self, spec: &mut ServiceSpec, before: Option<&ServiceSpec>) -> Vec<String> {
        let Some(ground) = (self.ground)() else { return Vec::new() };
        let mut warnings = Vec::new();
        let task = Arc::make_mut(&mut spec.task);
        // With several containers only a machine that runs all of them would do; the first speaks for them.
        let mut platforms = None;
        for (index, container) in task.containers.iter_mut().enumerate() {
            // Whoever wants it looked up again leaves the digest out.
            let same = before.and_then(|before| before.task.containers.get(index));
            let known = same.filter(|same| same.image == container.image).map(|same| &same.image_digest);
            if container.image_digest.is_some() && known == Some(&container.image_digest) {
                continue;
            }
            container.image_digest = None;
            platforms = platforms.or(Some(Vec::new()));
            let Ok(reference) = container.image.parse::<Reference>() else { continue };
            let here = ground.images.clone();
            let name = reference.to_string();
            let local =
                tokio::task::spawn_blocking(move || here.resolve(&name).is_ok()).await.unwrap_or(false);
            if image::is_builtin(&reference) || reference.digest().is_some() || local {
                continue;
            }
            let found =
                tokio::time::timeout(LOOK_UP, ground.images.look_up(&reference, &ground.registries)).await;
            match found {
                Ok(Ok(found)) => {
                    container.image_digest = Some(found.digest.to_string());
                    platforms = Some(found.platforms);
                }
                Ok(Err(error)) => warnings.push(unpinned(&container.image, &error.to_string())),
                Err(_) => warnings.push(unpinned(&container.image, "the registry does not answer")),
            }
        }
        if let Some(platforms) = platforms {
            task.placement.platforms = platforms;
        }
        warnings
    }

    pub(super) async fn admit(
        &self,
        once: Option<RequestId>,
        ask: Ask,
    ) -> Result<(Answer, Arc<State>), Status> {
        let cluster = self.cluster()?;
        let (answer, _) = cluster.admit_once(once, &ask).await?;
        Ok((answer, cluster.state()))
    }
}

/// What whoever asks calls this request, so that repetitions of it are known.
///
/// # Errors
/// If that is no request id.
pub(super) fn once<T>(request: &Request<T>) -> Result<Option<RequestId>, Status> {
    let Some(said) = request.metadata().get(REQUEST_ID) else { return Ok(None) };
    let id = said.to_str().ok().and_then(|text| text.parse().ok());
    let wrong = || Status::invalid_argument(format!("{REQUEST_ID}: {NotARequestId}"));
    id.map(Some).ok_or_else(wrong)
}

/// Whether a request was carried out before. What it speaks of may have changed or gone since.
fn is_repeated(state: &State, once: Option<RequestId>) -> bool {
    once.is_some_and(|id| state.answered(id).is_some())
}

pub(super) fn refused(error: Refused) -> Status {
    refused_status(&error)
}

fn version(said: u64) -> Option<u64> {
    Some(said).filter(|version| *version != 0)
}

pub(super) fn spec(said: Option<pb::ServiceSpec>) -> Result<ServiceSpec, Status> {
    let said = said.ok_or_else(|| Status::invalid_argument("spec: is missing"))?;
    ServiceSpec::try_from(said).map_err(|error| Status::invalid_argument(format!("spec.{error}")))
}

/// What texts stand for.
fn rules<T: std::str::FromStr<Err: std::fmt::Display>>(
    field: &str,
    texts: &[String],
) -> Result<Vec<T>, Status> {
    let read = |text: &String| text.parse().map_err(|error| format!("{field}: {error}"));
    texts.iter().map(read).collect::<Result<_, _>>().map_err(Status::invalid_argument)
}

/// What is still on nodes that are drained, and why.
fn remaining(state: &State) -> Vec<pb::Remaining> {
    let drained = state.nodes().filter(|node| node.availability == Availability::Drain);
    let left = drained.flat_map(|node| {
        let left = drain::remaining(state, node.id).into_iter();
        left.map(|left| pb::Remaining {
            node_id: node.id.to_string(),
            task_id: left.task.to_string(),
            name: left.name,
            why: left.words,
        })
    });
    left.collect()
}

pub(super) fn node_update(request: pb::UpdateNodeRequest) -> Result<NodeUpdate, Status> {
    let availability = request.availability.map(|_| Availability::try_from(request.availability()));
    let availability = availability
        .transpose()
        .map_err(|problem: Problem| Status::invalid_argument(format!("availability: {problem}")))?;
    Ok(NodeUpdate {
        role: request.role.map(|_| role(request.role())).transpose()?,
        node: request.node,
        version: version(request.version),
        availability,
        labels_add: request.labels_add.into_iter().collect(),
        labels_rm: request.labels_rm,
        taints_add: rules("taints_add", &request.taints_add)?,
        taints_rm: rules("taints_rm", &request.taints_rm)?,
    })
}

fn by(author: String, ask: Ask) -> Ask {
    Ask::By { author, request: Box::new(ask) }
}

fn updated(
    state: &State,
    before: &Service,
    repeated: bool,
    warnings: Vec<String>,
) -> pb::UpdateServiceResponse {
    let (version, revision) =
        state.service(before.id).map_or((0, 0), |service| (service.meta.version, service.revision));
    let changed = repeated || version != before.meta.version;
    pb::UpdateServiceResponse { id: before.id.to_string(), changed, warnings, version, revision }
}

fn role(said: pb::Role) -> Result<Role, Status> {
    Role::try_from(said).map_err(|problem: Problem| Status::invalid_argument(format!("role: {problem}")))
}

fn tokens(state: &State) -> Result<pb::GetJoinTokensResponse, Status> {
    let cluster = state.cluster().ok_or_else(|| Status::unavailable("the cluster is not initialised"))?;
    let root = ca::der(&cluster.ca_cert_pem).map_err(|error| Status::internal(format!("{error:#}")))?;
    Ok(pb::GetJoinTokensResponse {
        worker: JoinToken::new(&root, &cluster.tokens.worker.0).to_string(),
        manager: JoinToken::new(&root, &cluster.tokens.manager.0).to_string(),
    })
}

fn status_of(state: &State, service: &Service) -> pb::ServiceStatus {
    let count = |observed: Observed| {
        state
            .tasks_of(service.id)
            .filter(|task| task.observed == observed && task.is_wanted())
            .filter(|task| {
                observed != Observed::Running
                    || task.node.and_then(|node| state.node(node)).is_some_and(|node| !node.status.is_lost())
            })
            .count() as u32
    };
    pb::ServiceStatus {
        running: count(Observed::Running),
        desired: convergence::wanted(state, service),
        completed: convergence::completed(state, service),
        total: convergence::total(state, service),
    }
}

type Stream<T> = Pin<Box<dyn tokio_stream::Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl pb::control_server::Control for Control {
    async fn get_cluster(
        &self,
        request: Request<pb::GetClusterRequest>,
    ) -> Result<Response<pb::GetClusterResponse>, Status> {
        let seen = self.look(&request).await?;
        let cluster =
            seen.state.cluster().ok_or_else(|| Status::unavailable("the cluster is not initialised"))?;
        seen.answer(pb::GetClusterResponse {
            cluster_id: cluster.id.to_string(),
            name: cluster.name.clone(),
            created_at_ms: cluster.meta.created_at.0,
            ca_cert_pem: cluster.ca_cert_pem.clone(),
        })
    }

    async fn update_cluster(
        &self,
        request: Request<pb::UpdateClusterRequest>,
    ) -> Result<Response<pb::UpdateClusterResponse>, Status> {
        let once = once(&request)?;
        let request = request.into_inner();
        let state = self.fresh().await?;
        let cluster = state.cluster().ok_or_else(|| Status::unavailable("the cluster is not initialised"))?;
        let mut settings = cluster.settings.clone();
        if request.placement.is_some() {
            settings.placement = Filling::try_from(request.placement())
                .map_err(|problem: Problem| Status::invalid_argument(format!("placement: {problem}")))?;
        }
        settings.task_history_limit = request.task_history_limit.unwrap_or(settings.task_history_limit);
        if let Some(on) = request.rebalance_on_return {
            let now = settings.rebalance_since.unwrap_or(clock::after(state.clock()));
            settings.rebalance_since = on.then_some(now);
        }
        self.admit(once, Ask::UpdateSettings { version: Some(cluster.meta.version), settings }).await?;
        Ok(Response::new(pb::UpdateClusterResponse {}))
    }

    async fn get_join_tokens(
        &self,
        _: Request<pb::GetJoinTokensRequest>,
    ) -> Result<Response<pb::GetJoinTokensResponse>, Status> {
        tokens(&*self.fresh().await?).map(Response::new)
    }

    async fn rotate_join_token(
        &self,
        request: Request<pb::RotateJoinTokenRequest>,
    ) -> Result<Response<pb::GetJoinTokensResponse>, Status> {
        let once = once(&request)?;
        let role = role(request.into_inner().role())?;
        let (_, state) =
            self.admit(once, Ask::RotateToken { role, secret: Secret(token::secret(random())) }).await?;
        tokens(&state).map(Response::new)
    }

    async fn list_nodes(
        &self,
        request: Request<pb::ListNodesRequest>,
    ) -> Result<Response<pb::ListNodesResponse>, Status> {
        let seen = self.look(&request).await?;
        let state = &seen.state;
        let leader = crate::member::believed(&self.cluster()?.log().status());
        let managers = state.nodes().filter(|node| node.role == Role::Manager);
        seen.answer(pb::ListNodesResponse {
            nodes: state.nodes().map(|node| (&**node).into()).collect(),
            self_id: (self.me)(),
            leader_id: leader.map(|leader| leader.node).unwrap_or_default(),
            reachable_managers: managers
                .filter(|node| matches!(node.status, NodeStatus::Ready | NodeStatus::Unknown))
                .map(|node| node.id.to_string())
                .collect(),
            remaining: remaining(state),
        })
    }

    async fn update_node(
        &self,
        request: Request<pb::UpdateNodeRequest>,
    ) -> Result<Response<pb::UpdateNodeResponse>, Status> {
        let once = once(&request)?;
        let update = node_update(request.into_inner())?;
        let state = self.fresh().await?;
        let repeated = is_repeated(&state, once);
        let before = find_node(&state, &update.node).map_err(refused)?;
        let update = NodeUpdate { node: before.id.to_string(), ..update };
        let role = update.role;
        let (_, state) = self.admit(once, Ask::UpdateNode(update)).await?;
        let node =
            state.node(before.id).ok_or_else(|| Status::not_found("the node has just been removed"))?;
        let changed = repeated || node.meta.version != before.meta.version;
        let vote_pending = match role {
            Some(role) => !self.counted(&node.id.to_string(), role).await?,
            None => false,
        };
        Ok(Response::new(pb::UpdateNodeResponse { node: Some((&**node).into()), changed, vote_pending }))
    }

    async fn remove_node(
        &self,
        request: Request<pb::RemoveNodeRequest>,
    ) -> Result<Response<pb::RemoveNodeResponse>, Status> {
        let once = once(&request)?;
        let pb::RemoveNodeRequest { node, force } = request.into_inner();
        let state = self.fresh().await?;
        if is_repeated(&state, once) {
            return Ok(Response::new(pb::RemoveNodeResponse { id: node }));
        }
        let id = find_node(&state, &node).map_err(refused)?.id.to_string();
        self.admit(once, Ask::RemoveNode { node: id.clone(), force }).await?;
        Ok(Response::new(pb::RemoveNodeResponse { id }))
    }

    async fn create_service(
        &self,
        request: Request<pb::CreateServiceRequest>,
    ) -> Result<Response<pb::CreateServiceResponse>, Status> {
        let once = once(&request)?;
        let request = request.into_inner();
        let mut spec = spec(request.spec)?;
        let warnings = self.pin(&mut spec, None).await;
        let ask = Ask::CreateService { spec, networks: request.networks };
        let (answer, state) = self.admit(once, by(request.author, ask)).await?;
        let Answer::Service(id) = answer else { return Err(Status::internal("no service was made")) };
        let version = state.service(id).map_or(0, |service| service.meta.version);
        Ok(Response::new(pb::CreateServiceResponse { id: id.to_string(), warnings, version }))
    }

    async fn update_service(
        &self,
        request: Request<pb::UpdateServiceRequest>,
    ) -> Result<Response<pb::UpdateServiceResponse>, Status> {
        let once = once(&request)?;
        let request = request.into_inner();
        let state = self.fresh().await?;
        let repeated = is_repeated(&state, once);
        let before = find_service(&state, &request.service).map_err(refused)?;
        let mut spec = spec(request.spec)?;
        let warnings = self.pin(&mut spec, Some(&before.spec)).await;
        let ask = Ask::UpdateService {
            service: before.id.to_string(),
            version: version(request.version),
            spec,
            networks: request.networks,
        };
        let (_, state) = self.admit(once, by(request.author, ask)).await?;
        Ok(Response::new(updated(&state, &before, repeated, warnings)))
    }

    async fn rollback_service(
        &self,
        request: Request<pb::RollbackServiceRequest>,
    ) -> Result<Response<pb::UpdateServiceResponse>, Status> {
        let once = once(&request)?;
        let pb::RollbackServiceRequest { service, to, author } = request.into_inner();
        let state = self.fresh().await?;
        let repeated = is_repeated(&state, once);
        let before = find_service(&state, &service).map_err(refused)?;
        let ask = Ask::RollbackService { service: before.id.to_string(), to: version(to) };
        let (_, state) = self.admit(once, by(author, ask)).await?;
        Ok(Response::new(updated(&state, &before, repeated, Vec::new())))
    }

    async fn pause_update(
        &self,
        request: Request<pb::PauseUpdateRequest>,
    ) -> Result<Response<pb::UpdateServiceResponse>, Status> {
        let once = once(&request)?;
        let pb::PauseUpdateRequest { service, pause } = request.into_inner();
        let state = self.fresh().await?;
        let repeated = is_repeated(&state, once);
        let before = find_service(&state, &service).map_err(refused)?;
        let ask = Ask::PauseUpdate { service: before.id.to_string(), pause };
        let (_, state) = self.admit(once, ask).await?;
        Ok(Response::new(updated(&state, &before, repeated, Vec::new())))
    }

    async fn rebalance(
        &self,
        request: Request<pb::RebalanceRequest>,
    ) -> Result<Response<pb::RebalanceResponse>, Status> {
        let once = once(&request)?;
        let pb::RebalanceRequest { services, author } = request.into_inner();
        let before = self.fresh().await?;
        let named: Result<Vec<_>, _> = services.iter().map(|name| find_service(&before, name)).collect();
        let named: Vec<_> = named.map_err(refused)?.iter().map(|service| service.id).collect();
        let ask = by(author, Ask::Rebalance { services });
        let (_, state) = self.admit(once, ask).await?;
        let asked = |service: &&Arc<Service>| named.is_empty() || named.contains(&service.id);
        let begun = state.services().filter(asked).filter(|service| service.rebalance.is_some());
        let begun = begun.map(|service| pb::rebalance_response::Begun {
            name: service.spec.name.clone(),
            service: Some(updated(&state, service, true, Vec::new())),
        });
        Ok(Response::new(pb::RebalanceResponse { services: begun.collect() }))
    }

    async fn remove_service(
        &self,
        request: Request<pb::RemoveServiceRequest>,
    ) -> Result<Response<pb::RemoveServiceResponse>, Status> {
        let once = once(&request)?;
        let (service, state) = (request.into_inner().service, self.fresh().await?);
        if is_repeated(&state, once) {
            return Ok(Response::new(pb::RemoveServiceResponse { id: service.clone(), name: service }));
        }
        let service = find_service(&state, &service).map_err(refused)?;
        let (id, name) = (service.id.to_string(), service.spec.name.clone());
        self.admit(once, Ask::RemoveService { service: id.clone() }).await?;
        Ok(Response::new(pb::RemoveServiceResponse { id, name }))
    }

    async fn list_services(
        &self,
        request: Request<pb::ListServicesRequest>,
    ) -> Result<Response<pb::ListServicesResponse>, Status> {
        let seen = self.look(&request).await?;
        let state = &seen.state;
        let named = request.into_inner().services;
        let services: Vec<Arc<Service>> = if named.is_empty() {
            state.services().cloned().collect()
        } else {
            named.iter().map(|name| find_service(state, name)).collect::<Result<_, _>>().map_err(refused)?
        };
        seen.answer(pb::ListServicesResponse {
            statuses: services.iter().map(|service| status_of(state, service)).collect(),
            services: services.iter().map(|service| (&**service).into()).collect(),
        })
    }

    async fn list_tasks(
        &self,
        request: Request<pb::ListTasksRequest>,
    ) -> Result<Response<pb::ListTasksResponse>, Status> {
        let seen = self.look(&request).await?;
        let state = &seen.state;
        let request = request.into_inner();
        let services =
            request.services.iter().map(|name| find_service(state, name).map(|service| service.id));
        let services = services.collect::<Result<Vec<_>, _>>().map_err(refused)?;
        let nodes = request.nodes.iter().map(|name| find_node(state, name).map(|node| node.id));
        let nodes = nodes.collect::<Result<Vec<_>, _>>().map_err(refused)?;
        let named = request.tasks.iter().map(|name| find_task(state, name).map(|task| task.id));
        let named = named.collect::<Result<Vec<_>, _>>().map_err(refused)?;
        let asked = |task: &Task| {
            (services.is_empty() || services.contains(&task.service))
                && (nodes.is_empty() || task.node.is_some_and(|node| nodes.contains(&node)))
                && (named.is_empty() || named.contains(&task.id))
        };
        let tasks: Vec<&Arc<Task>> = state.tasks().filter(|task| asked(task)).collect();
        seen.answer(pb::ListTasksResponse {
            service_names: tasks
                .iter()
                .map(|task| (task.service.to_string(), task.service_name.clone()))
                .collect(),
            node_names: tasks
                .iter()
                .filter_map(|task| state.node(task.node?))
                .map(|node| (node.id.to_string(), node.hostname.clone()))
                .collect(),
            tasks: tasks.iter().map(|task| (&***task).into()).collect(),
        })
    }

    async fn create_network(
        &self,
        request: Request<pb::CreateNetworkRequest>,
    ) -> Result<Response<pb::CreateNetworkResponse>, Status> {
        let once = once(&request)?;
        let request = request.into_inner();
        let subnet: Option<Subnet> = match request.subnet.as_str() {
            "" => None,
            text => {
                Some(text.parse().map_err(|error| Status::invalid_argument(format!("`{text}`: {error}")))?)
            }
        };
        let gateway =
            match request.gateway.as_str() {
                "" => None,
                text => Some(text.parse().map_err(|_| {
                    Status::invalid_argument(format!("gateway `{text}` is not an IPv4 address"))
                })?),
            };
        let asked = NetworkSpec {
            name: request.name,
            labels: request.labels.into_iter().collect(),
            subnet,
            gateway,
            mtu: Some(request.mtu).filter(|mtu| *mtu != 0),
            attachable: request.attachable,
            internal: request.internal,
            isolated: request.isolated,
        };
        let (answer, _) = self.admit(once, Ask::CreateNetwork(asked)).await?;
        let Answer::Network(id) = answer else { return Err(Status::internal("no network was made")) };
        Ok(Response::new(pb::CreateNetworkResponse { id: id.to_string() }))
    }

    async fn update_network(
        &self,
        request: Request<pb::UpdateNetworkRequest>,
    ) -> Result<Response<pb::UpdateNetworkResponse>, Status> {
        let once = once(&request)?;
        let pb::UpdateNetworkRequest { network, isolated } = request.into_inner();
        let network = find_network(&*self.fresh().await?, &network).map_err(refused)?;
        let (id, name) = (network.id.to_string(), network.name.clone());
        let isolated = isolated.unwrap_or(network.isolated);
        self.admit(once, Ask::UpdateNetwork { network: id.clone(), isolated }).await?;
        Ok(Response::new(pb::UpdateNetworkResponse { id, name }))
    }

    async fn remove_network(
        &self,
        request: Request<pb::RemoveNetworkRequest>,
    ) -> Result<Response<pb::RemoveNetworkResponse>, Status> {
        let once = once(&request)?;
        let (network, state) = (request.into_inner().network, self.fresh().await?);
        if is_repeated(&state, once) {
            return Ok(Response::new(pb::RemoveNetworkResponse { id: network.clone(), name: network }));
        }
        let network = find_network(&state, &network).map_err(refused)?;
        let (id, name) = (network.id.to_string(), network.name.clone());
        self.admit(once, Ask::RemoveNetwork { network: id.clone() }).await?;
        Ok(Response::new(pb::RemoveNetworkResponse { id, name }))
    }

    async fn list_networks(
        &self,
        request: Request<pb::ListNetworksRequest>,
    ) -> Result<Response<pb::ListNetworksResponse>, Status> {
        let seen = self.look(&request).await?;
        let state = &seen.state;
        let named = request.into_inner().networks;
        let networks = if named.is_empty() {
            state.networks().cloned().collect()
        } else {
            let found = named.iter().map(|name| find_network(state, name));
            found.collect::<Result<Vec<_>, _>>().map_err(refused)?
        };
        let networks = networks.iter().map(|network| (&**network).into()).collect();
        seen.answer(pb::ListNetworksResponse { networks })
    }

    type WatchServiceStream = Stream<pb::ServiceProgress>;

    async fn watch_service(
        &self,
        request: Request<pb::WatchServiceRequest>,
    ) -> Result<Response<Self::WatchServiceStream>, Status> {
        let cluster = self.cluster()?;
        let state = cluster.fresh().await?;
        let request = request.into_inner();
        let service = match find_service(&state, &request.service) {
            Ok(service) => Some(service.id),
            Err(Refused::NotFound(_)) if request.removal => request.service.parse().ok(),
            Err(error) => return Err(refused(error)),
        };
        let (sender, receiver) = mpsc::channel(16);
        match service {
            Some(service) => {
                tokio::spawn(watch::report(cluster, service, watch::Until::of(&request), sender));
            }
            None => {
                let state = pb::service_progress::State::Removed.into();
                let _ = sender.send(Ok(pb::ServiceProgress { state, ..Default::default() })).await;
            }
        }
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }

    type LogsStream = Stream<pb::LogLine>;

    async fn logs(&self, request: Request<pb::LogsRequest>) -> Result<Response<Self::LogsStream>, Status> {
        let state = self.fresh().await?;
        let request = request.into_inner();
        let whose = match find_service(&state, &request.of) {
            Ok(service) => Whose::Service(service.id),
            Err(Refused::NotFound(nothing)) => {
                let task = find_task(&state, &request.of);
                // What is said of services names a near spelling, if there is one.
                let nothing = nothing.replacen("no such service", "no such service or task", 1);
                Whose::Task(task.map_err(|_| Status::not_found(nothing))?.id)
            }
            Err(error) => return Err(refused(error)),
        };
        let dialer = self.dialer()?;
        let view = self.cluster()?.view().clone();
        let (sender, receiver) = mpsc::channel(256);
        tokio::spawn(logs::collect(view, whose, request, dialer, sender));
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }

    async fn leave(
        &self,
        request: Request<pb::LeaveClusterRequest>,
    ) -> Result<Response<pb::LeaveClusterResponse>, Status> {
        let once = once(&request)?;
        let pb::LeaveClusterRequest { node, force } = request.into_inner();
        let node =
            node.parse().map_err(|error| Status::invalid_argument(format!("node `{node}`: {error}")))?;
        self.admit(once, Ask::Leave { node, force }).await?;
        Ok(Response::new(pb::LeaveClusterResponse {}))
    }
}
