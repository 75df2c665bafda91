//! Joining: a certificate for whoever knows a join token, or for a node that shows its old one.

use super::control::once;
use crate::identity::{Identity, ca};
use crate::manager::roster::Roster;
use crate::manager::{Manager, clock};
use crate::rpc::access::{self, Peer};
use crate::rpc::forward::CALLER;
use crate::wall;
use anyhow::Result;
use rswarm_control::admission::{self, Answer};
use rswarm_control::model::{Availability, Node, Secret};
use rswarm_control::state::{RequestId, State};
use rswarm_proto::Problem;
use rswarm_proto::v1 as pb;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;
use tonic::{Request, Response, Status};

/// The service `Join`.
pub struct Join {
    manager: Arc<dyn Fn() -> Option<Arc<Manager>> + Send + Sync>,
}

impl Join {
    /// `manager` says which manager runs here now, if any.
    pub fn new(manager: Arc<dyn Fn() -> Option<Arc<Manager>> + Send + Sync>) -> Self {
        Self { manager }
    }
}

#[tonic::async_trait]
impl pb::join_server::Join for Join {
    async fn issue_certificate(
        &self,
        request: Request<pb::IssueCertificateRequest>,
    ) -> Result<Response<pb::IssueCertificateResponse>, Status> {
        let manager = (self.manager)().ok_or_else(|| Status::unavailable("this node is not a manager"))?;
        let caller = caller(&request)?;
        let proven = access::node(&request).ok();
        let once = once(&request)?;
        let request = request.into_inner();
        if request.csr_pem.len() > 16 << 10 {
            return Err(Status::invalid_argument("the certificate request is too long"));
        }
        let node = match (request.secret.is_empty(), proven) {
            (false, _) => admit(&manager, once, &request, caller).await?,
            (true, Some(node)) => {
                let state = manager.cluster().fresh().await?;
                let known = state.node(node).cloned();
                known.ok_or_else(|| Status::permission_denied("the node is not a member of the cluster"))?
            }
            (true, None) => return Err(Status::unauthenticated("a join token is needed to join")),
        };
        issue(&manager, &node, &request.csr_pem).map(Response::new)
    }
}

/// The address a call came from, as the first manager saw it.
fn caller(request: &Request<pb::IssueCertificateRequest>) -> Result<Option<IpAddr>, Status> {
    Ok(match access::peer(request)? {
        Peer::Local => None,
        // Only a manager passes calls on, and only its word about the caller is believed.
        Peer::Remote { node: Some(_), addr } => {
            let said = request.metadata().get(CALLER).and_then(|text| text.to_str().ok()?.parse().ok());
            Some(said.unwrap_or_else(|| addr.ip()))
        }
        Peer::Remote { node: None, addr } => Some(addr.ip()),
    })
}

async fn admit(
    manager: &Manager,
    once: Option<RequestId>,
    request: &pb::IssueCertificateRequest,
    caller: Option<IpAddr>,
) -> Result<Arc<Node>, Status> {
    let addr = reachable(&request.addr, caller)?;
    let description = request.description.clone().unwrap_or_default();
    let join = admission::Request::Join(admission::Join {
        secret: Secret(request.secret.clone()),
        hostname: request.hostname.clone(),
        addr: addr.to_string(),
        availability: match request.availability() {
            pb::Availability::Unspecified => Availability::Active,
            other => {
                other.try_into().map_err(|problem: Problem| Status::invalid_argument(problem.to_string()))?
            }
        },
        description: description
            .try_into()
            .map_err(|error| Status::invalid_argument(format!("description.{error}")))?,
    });
    let (answer, _) = manager.cluster().admit_once(once, &join).await?;
    let Answer::Node(id) = answer else { return Err(Status::internal("joining did not make a node")) };
    let state = manager.cluster().state();
    state.node(id).cloned().ok_or_else(|| Status::internal("the node that joined is gone already"))
}

/// The address others reach the node at: what it said, or where it called from.
fn reachable(said: &str, caller: Option<IpAddr>) -> Result<SocketAddr, Status> {
    let addr: SocketAddr = said
        .parse()
        .map_err(|_| Status::invalid_argument(format!("`{said}` is not an address of the form ip:port")))?;
    match (addr.ip().is_unspecified(), caller) {
        (false, _) => Ok(addr),
        (true, Some(ip)) => Ok(SocketAddr::new(ip, addr.port())),
        (true, None) => {
            Err(Status::invalid_argument("say an address that others can reach: --advertise-addr"))
        }
    }
}

fn issue(manager: &Manager, node: &Node, csr_pem: &str) -> Result<pb::IssueCertificateResponse, Status> {
    let state = manager.cluster().state();
    let cert_pem = sign(&state, &node.id.to_string(), csr_pem)
        .map_err(|error| Status::invalid_argument(format!("{error:#}")))?;
    let list = Roster::of(manager.cluster()).told_to(&node.id.to_string(), Some(node));
    let cluster = state.cluster().ok_or_else(|| Status::unavailable("the cluster is not initialised"))?;
    Ok(pb::IssueCertificateResponse {
        node_id: node.id.to_string(),
        cluster_id: cluster.id.to_string(),
        cert_pem,
        ca_pem: cluster.ca_cert_pem.clone(),
        role: pb::Role::from(node.role).into(),
        raft_id: node.raft.map_or(0, |seat| seat.0),
        managers: list.managers,
        incarnation: list.incarnation,
        addr: node.addr.clone(),
    })
}

fn sign(state: &State, node: &str, csr_pem: &str) -> Result<String> {
    let cluster = state.cluster().ok_or_else(|| anyhow::anyhow!("the cluster is not initialised"))?;
    let root = ca::Root { cert_pem: cluster.ca_cert_pem.clone(), key_pem: cluster.ca_key_pem.0.clone() };
    let life = cluster.settings.cert_expiry;
    root.sign(csr_pem, node, &cluster.id.to_string(), wall::now(), life)
}

/// How long until a node should ask for a new certificate: a point between half and four fifths of its life,
/// fixed by the node's id so that a cluster's nodes do not all come at once.
pub fn renewal_due(identity: &Identity) -> Result<Duration> {
    let (from, until) = ca::validity(&identity.cert_pem)?;
    let life = until.saturating_sub(from);
    let spread =
        identity.node.bytes().fold(0u64, |sum, byte| sum.wrapping_mul(31).wrapping_add(byte.into())) % 1000;
    let due = from + life / 2 + life * 3 / 10 * spread / 1000;
    Ok(Duration::from_secs(due.saturating_sub(clock::now().0 / 1000)))
}
