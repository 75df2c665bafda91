//! What users and nodes ask for: turned into changes, or refused with a reason.
//!
//! Values that were parsed from a request are checked here and nowhere else. Nothing is random and no
//! clock is read: secrets, seeds and the time come with the request.

mod cluster;
mod lookup;
mod network;
mod node;
mod profile;
mod restore;
mod service;
mod validate;

pub use cluster::{DEFAULT_NETWORK, Init, first_ids, init};
pub use lookup::{find_any, find_network, find_node, find_service, find_task};
pub use network::NetworkSpec;
pub use node::{Join, NodeUpdate, Session};
pub use profile::{LOG_BYTES_MIN, LOG_FILES_MAX, log_bytes};
pub use restore::{Founder, LEAP, Restored, restore};

use crate::ids::{NetworkId, NodeId, RaftId, ServiceId};
use crate::level;
use crate::model::{Role, Secret, ServiceSpec, Settings};
use crate::rebalance;
use crate::state::{Change, RequestId, State};
use crate::time::Timestamp;

/// What can be asked of a cluster. Objects are named by id, by the beginning of their id, or by name.
#[derive(Clone, Debug, PartialEq)]
pub enum Request {
    /// Run something.
    CreateService {
        /// What. `spec.task.networks` may stay empty.
        spec: ServiceSpec,
        /// Further networks to join; the default network where there are none at all.
        networks: Vec<String>,
    },
    /// Run it differently.
    UpdateService {
        /// Which.
        service: String,
        /// The version the new spec was made from; `None` overwrites whatever is there.
        version: Option<u64>,
        /// What to run now.
        spec: ServiceSpec,
        /// Further networks to join.
        networks: Vec<String>,
    },
    /// Run more or fewer.
    ScaleService {
        /// Which.
        service: String,
        /// How many.
        replicas: u32,
    },
    /// Go back to what ran before.
    RollbackService {
        /// Which.
        service: String,
        /// To this of its revisions; by default, to the last one before the present.
        to: Option<u64>,
    },
    /// Stop an update where it is, or let it go on.
    PauseUpdate {
        /// Of which service.
        service: String,
        /// Stop it; else it goes on.
        pause: bool,
    },
    /// What somebody asks for who says who he is.
    By {
        /// As he calls himself, for the history of what he changes.
        author: String,
        /// What he asks for.
        request: Box<Request>,
    },
    /// Move tasks to where they would be placed now.
    Rebalance {
        /// Of which services; of all that can be, if none is named.
        services: Vec<String>,
    },
    /// Stop running it.
    RemoveService {
        /// Which.
        service: String,
    },
    /// Make a network.
    CreateNetwork(NetworkSpec),
    /// Change who may connect to whom on a network.
    UpdateNetwork {
        /// Which.
        network: String,
        /// Whether tasks take connections only from services that theirs allows.
        isolated: bool,
    },
    /// Remove a network that nothing uses.
    RemoveNetwork {
        /// Which.
        network: String,
    },
    /// Change what a node is for, whether it may be given work, or its labels.
    UpdateNode(NodeUpdate),
    /// Forget a node.
    RemoveNode {
        /// Which.
        node: String,
        /// Although it still runs.
        force: bool,
    },
    /// Replace a join token.
    RotateToken {
        /// Which of the two.
        role: Role,
        /// The new one; random.
        secret: Secret,
    },
    /// Change the settings.
    UpdateSettings {
        /// The version they were made from; `None` overwrites whatever is there.
        version: Option<u64>,
        /// The new ones.
        settings: Settings,
    },
    /// A machine wants to become a node.
    Join(Join),
    /// A node's daemon is there.
    OpenSession(Session),
    /// A manager has no seat, or has lost the log of the one it had.
    Reseat {
        /// Which.
        node: NodeId,
        /// The seat it had.
        lost: Option<RaftId>,
    },
    /// A node says goodbye.
    Leave {
        /// Which.
        node: NodeId,
        /// Although it is a manager.
        force: bool,
    },
}

/// What came of a request, once its changes are applied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// It is so, and was before if there are no changes.
    Done,
    /// This service was created or changed.
    Service(ServiceId),
    /// This network was created or changed.
    Network(NetworkId),
    /// This node was created or changed.
    Node(NodeId),
    /// This is the node's new session.
    Session {
        /// Its number.
        epoch: u64,
    },
}

/// Why a request is refused, in a sentence for the user.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// What it speaks of does not exist.
    #[error("{0}")]
    NotFound(String),
    /// What it would create exists.
    #[error("{0}")]
    AlreadyExists(String),
    /// It could not be right in any cluster.
    #[error("{0}")]
    Invalid(String),
    /// It is not possible as things stand.
    #[error("{0}")]
    FailedPrecondition(String),
    /// Somebody else was faster.
    #[error("{0}")]
    Conflict(String),
    /// Whoever asks may not.
    #[error("{0}")]
    Denied(String),
}

/// Decides on a request. The changes are to be proposed together; if they turn out to be stale, ask again.
///
/// # Errors
/// If the request is refused.
pub fn admit(state: &State, request: &Request, now: Timestamp) -> Result<(Vec<Change>, Answer), Refused> {
    match request {
        Request::CreateService { spec, networks } => service::create(state, spec, networks, now),
        Request::UpdateService { service, version, spec, networks } => {
            service::update(state, service, *version, spec, networks)
        }
        Request::ScaleService { service, replicas } => service::scale(state, service, *replicas),
        Request::RollbackService { service, to } => service::rollback(state, service, *to),
        Request::PauseUpdate { service, pause } => service::pause(state, service, *pause),
        Request::Rebalance { services } => rebalance::admit(state, services, now),
        Request::By { author, request } => {
            let (mut changes, answer) = admit(state, request, now)?;
            changes.iter_mut().for_each(|change| sign(change, author));
            Ok((changes, answer))
        }
        Request::RemoveService { service } => service::remove(state, service),
        Request::CreateNetwork(spec) => network::create(state, spec, now),
        Request::UpdateNetwork { network, isolated } => network::update(state, network, *isolated),
        Request::RemoveNetwork { network } => network::remove(state, network),
        Request::UpdateNode(update) => node::update(state, update),
        Request::RemoveNode { node, force } => node::remove(state, node, *force),
        Request::RotateToken { role, secret } => cluster::rotate_token(state, *role, secret),
        Request::UpdateSettings { version, settings } => cluster::update_settings(state, *version, settings),
        Request::Join(join) => node::join(state, join, now),
        Request::OpenSession(session) => node::open_session(state, session),
        Request::Reseat { node, lost } => node::reseat(state, *node, *lost),
        Request::Leave { node, force } => node::leave(state, *node, *force),
    }
}

/// Decides on a request that may be a repetition. If it was carried out before, what was answered then is answered
/// again, and nothing is to change.
///
/// # Errors
/// If the request is refused.
pub fn admit_once(
    state: &State,
    id: Option<RequestId>,
    request: &Request,
    now: Timestamp,
) -> Result<(Vec<Change>, Answer), Refused> {
    let Some(id) = id else { return admit(state, request, now) };
    if let Request::Join(join) = request {
        // Whoever has no token is told nothing, whatever it repeats.
        node::invited(state, join)?;
    }
    if let Some(answer) = state.answered(id) {
        return Ok((Vec::new(), answer));
    }
    let (mut changes, answer) = admit(state, request, now)?;
    if !changes.is_empty() && state.level() >= level::REQUESTS {
        changes.insert(0, Change::Once { request: id, answer });
    }
    Ok((changes, answer))
}

/// Longest name of an author that is kept, in characters.
const AUTHOR_CHARS_MAX: usize = 64;

fn sign(change: &mut Change, said: &str) {
    let clean = said.chars().filter(|c| !c.is_control()).take(AUTHOR_CHARS_MAX).collect();
    match change {
        Change::CreateService(service) => service.author = clean,
        Change::UpdateService { author, .. } => *author = clean,
        Change::SetRebalance { rebalance: Some(rebalance), .. } => rebalance.author = clean,
        _ => {}
    }
}

fn no_cluster() -> Refused {
    Refused::FailedPrecondition(
        "this machine is not part of a cluster; run `rswarm init` or `rswarm join`".into(),
    )
}

fn out_of_sequence(kind: &str, name: &str) -> Refused {
    Refused::Conflict(format!(
        "update out of sequence: {kind} {name} has changed since it was read; look again and retry"
    ))
}

#[cfg(test)]
mod tests;
