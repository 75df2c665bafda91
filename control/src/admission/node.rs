//! Requests about nodes, and by them.

use super::{Answer, Refused, find_node, no_cluster, out_of_sequence, validate};
use crate::ids::{NodeId, RaftId};
use crate::level;
use crate::model::{
    Availability, Description, Labels, Meta, Node, NodeStatus, Role, Secret, Taint, Toleration,
};
use crate::state::{Change, State};
use crate::time::Timestamp;
use std::net::SocketAddr;

/// A change of a node. What is `None` stays as it is.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct NodeUpdate {
    /// Which.
    pub node: String,
    /// The version it was made from; `None` applies to whatever is there.
    pub version: Option<u64>,
    /// What it shall be.
    pub role: Option<Role>,
    /// Whether it may be given work.
    pub availability: Option<Availability>,
    /// Labels to set.
    pub labels_add: Labels,
    /// Labels to remove; it is no mistake if one is not there.
    pub labels_rm: Vec<String>,
    /// Taints to set; one of the same key and effect is replaced.
    pub taints_add: Vec<Taint>,
    /// Which taints to remove; it is no mistake if there is none.
    pub taints_rm: Vec<Toleration>,
}

/// A machine that wants to become a node.
#[derive(Clone, Debug, PartialEq)]
pub struct Join {
    /// The secret part of its join token, which also decides its role.
    pub secret: Secret,
    /// As the machine calls itself.
    pub hostname: String,
    /// Where other nodes reach it, `ip:port`.
    pub addr: String,
    /// Whether it may be given work from the first moment.
    pub availability: Availability,
    /// What it says of itself.
    pub description: Description,
}

/// A node's daemon that is there.
#[derive(Clone, Debug, PartialEq)]
pub struct Session {
    /// Whose.
    pub node: NodeId,
    /// As the machine calls itself.
    pub hostname: String,
    /// Where other nodes reach it, `ip:port`.
    pub addr: String,
    /// What it says of itself.
    pub description: Description,
}

/// No node has more taints than this.
const TAINTS_MAX: usize = 64;

type Admitted = Result<(Vec<Change>, Answer), Refused>;

pub(super) fn join(state: &State, join: &Join, now: Timestamp) -> Admitted {
    let role = invited(state, join)?;
    if role == Role::Manager {
        level::check(state, &join.hostname, &join.description)?;
    }
    let number = state.next_number();
    let id = NodeId::mint(state.id_seed(), number);
    let node = build(id, number, role, join, now)?;
    Ok((vec![Change::CreateNode(Box::new(node))], Answer::Node(id)))
}

/// The role that a join token gives.
pub(super) fn invited(state: &State, join: &Join) -> Result<Role, Refused> {
    let cluster = state.cluster().ok_or_else(no_cluster)?;
    // Both are compared in full, so that the time it takes tells nothing.
    let is_manager = equal(&join.secret, &cluster.tokens.manager);
    let is_worker = equal(&join.secret, &cluster.tokens.worker);
    match (is_manager, is_worker) {
        (true, _) => Ok(Role::Manager),
        (false, true) => Ok(Role::Worker),
        (false, false) => Err(Refused::Denied(
            "the join token is not valid (any more); print the current one with `rswarm join-token worker` \
             on a manager"
                .into(),
        )),
    }
}

pub(super) fn build(
    id: NodeId,
    number: u64,
    role: Role,
    join: &Join,
    now: Timestamp,
) -> Result<Node, Refused> {
    check_hostname(&join.hostname)?;
    check_addr(&join.addr)?;
    Ok(Node {
        id,
        meta: Meta { number, version: 0, created_at: now, updated_at: now },
        hostname: join.hostname.clone(),
        addr: join.addr.clone(),
        role,
        raft: None,
        availability: join.availability,
        labels: Labels::new(),
        taints: Vec::new(),
        status: NodeStatus::Unknown,
        status_since: now,
        message: String::new(),
        description: join.description.clone(),
        session: 0,
    })
}

pub(super) fn open_session(state: &State, session: &Session) -> Admitted {
    let id = session.node;
    if let Some(refused) = expelled(state, id) {
        return Err(refused);
    }
    let node = state
        .node(id)
        .ok_or_else(|| Refused::Denied(format!("node {id} is not a member of this cluster")))?;
    check_hostname(&session.hostname)?;
    check_addr(&session.addr)?;
    if node.role == Role::Manager {
        level::check(state, &session.hostname, &session.description)?;
    }
    let epoch = node.session + 1;
    let (hostname, addr) = (session.hostname.clone(), session.addr.clone());
    let description = session.description.clone();
    Ok((
        vec![Change::OpenSession { node: id, epoch, hostname, addr, description }],
        Answer::Session { epoch },
    ))
}

/// What a node that was removed is told.
fn expelled(state: &State, id: NodeId) -> Option<Refused> {
    state.removed_at(id).map(|_| {
        Refused::Denied(format!(
            "node {id} was removed from the cluster and cannot come back; run `rswarm leave --force` and join anew"
        ))
    })
}

pub(super) fn update(state: &State, update: &NodeUpdate) -> Admitted {
    let node = find_node(state, &update.node)?;
    if update.version.is_some_and(|version| version != node.meta.version) {
        return Err(out_of_sequence("node", &node.hostname));
    }
    validate::labels(update.labels_add.keys())?;
    let mut labels = node.labels.clone();
    labels.retain(|key, _| !update.labels_rm.contains(key));
    labels.extend(update.labels_add.clone());
    let taints = taints(&node, update)?;
    let role = update.role.unwrap_or(node.role);
    let availability = update.availability.unwrap_or(node.availability);
    if role == Role::Worker {
        check_managers(state, &node, "demote")?;
    }
    if role == Role::Manager && node.role == Role::Worker && node.status == NodeStatus::Left {
        let name = &node.hostname;
        return Err(Refused::FailedPrecondition(format!(
            "node {name} has left the cluster; it cannot be promoted"
        )));
    }
    if role == Role::Manager && node.role == Role::Worker {
        level::check(state, &node.hostname, &node.description)?;
    }
    let answer = Answer::Node(node.id);
    if role == node.role
        && availability == node.availability
        && labels == node.labels
        && taints == node.taints
    {
        return Ok((Vec::new(), answer));
    }
    let (id, version) = (node.id, node.meta.version);
    Ok((vec![Change::UpdateNode { node: id, version, role, availability, labels, taints }], answer))
}

/// The taints a node has from now on, in order.
fn taints(node: &Node, update: &NodeUpdate) -> Result<Vec<Taint>, Refused> {
    let mut taints = node.taints.clone();
    taints.retain(|taint| !update.taints_rm.iter().any(|gone| gone.covers(taint)));
    for added in &update.taints_add {
        if added.value.len() > 255 || added.value.chars().any(char::is_control) {
            return validate::invalid(format!("taint `{}`: its value is too long or unprintable", added.key));
        }
        taints.retain(|taint| (&taint.key, taint.effect) != (&added.key, added.effect));
        taints.push(added.clone());
    }
    if taints.len() > TAINTS_MAX {
        return validate::invalid(format!("a node has at most {TAINTS_MAX} taints"));
    }
    taints.sort();
    Ok(taints)
}

pub(super) fn remove(state: &State, text: &str, force: bool) -> Admitted {
    let node = find_node(state, text)?;
    let name = &node.hostname;
    if node.role == Role::Manager {
        check_managers(state, &node, "remove")?;
        if !force {
            return Err(Refused::FailedPrecondition(format!(
                "node {name} is a manager; demote it first with `rswarm node demote {name}`, or use --force"
            )));
        }
    }
    if !force && matches!(node.status, NodeStatus::Ready | NodeStatus::Suspect) {
        return Err(Refused::FailedPrecondition(format!(
            "node {name} is not down; run `rswarm leave` on it first, or use --force"
        )));
    }
    let fenced = state.tasks_on(node.id).find(|task| task.is_live() && task.spec.is_fenced());
    if let Some(task) = fenced.filter(|_| !force) {
        return Err(Refused::FailedPrecondition(format!(
            "task {} may still run on node {name}, and must not run twice; in a few seconds it will certainly have \
             stopped. Try again then, or use --force if the machine is certainly off",
            task.name()
        )));
    }
    let change = Change::RemoveNode { node: node.id, version: node.meta.version };
    Ok((vec![change], Answer::Node(node.id)))
}

pub(super) fn leave(state: &State, id: NodeId, force: bool) -> Admitted {
    let Some(node) = state.node(id) else { return Ok((Vec::new(), Answer::Done)) };
    let mut changes = Vec::new();
    if node.role == Role::Manager {
        check_managers(state, node, "let go")?;
        if !force {
            return Err(Refused::FailedPrecondition(format!(
                "this node is one of {} managers, which keep the cluster's state; demote it first with \
                 `rswarm node demote {}`, or use --force",
                state.managers(),
                node.hostname,
            )));
        }
        let (version, role, availability) = (node.meta.version, Role::Worker, node.availability);
        changes.push(Change::UpdateNode {
            node: id,
            version,
            role,
            availability,
            labels: node.labels.clone(),
            taints: node.taints.clone(),
        });
    }
    if node.status != NodeStatus::Left {
        let message = "left the cluster".into();
        changes.push(Change::SetNodeStatus { node: id, was: node.status, status: NodeStatus::Left, message });
    }
    Ok((changes, Answer::Node(id)))
}

pub(super) fn reseat(state: &State, id: NodeId, lost: Option<RaftId>) -> Admitted {
    let Some(node) = state.node(id) else {
        return Err(
            expelled(state, id).unwrap_or_else(|| Refused::NotFound(format!("node {id} is not known here")))
        );
    };
    // Who was demoted or has another seat already needs none.
    let needed = node.role == Role::Manager && node.raft == lost;
    let change = needed.then_some(Change::Reseat { node: id, lost });
    Ok((change.into_iter().collect(), Answer::Node(id)))
}

/// Without a manager there is no cluster.
fn check_managers(state: &State, node: &Node, what: &str) -> Result<(), Refused> {
    if node.raft.is_some() && state.managers() == 1 {
        let name = &node.hostname;
        return Err(Refused::FailedPrecondition(format!(
            "cannot {what} {name}: it is the last manager, and the cluster's state would be lost; promote another \
             node first"
        )));
    }
    Ok(())
}

fn check_hostname(hostname: &str) -> Result<(), Refused> {
    let odd = |c: char| c.is_whitespace() || c.is_control();
    if hostname.is_empty() || hostname.len() > 253 || hostname.chars().any(odd) {
        return validate::invalid(format!("`{}` is not a host name", hostname.escape_debug()));
    }
    Ok(())
}

fn check_addr(addr: &str) -> Result<(), Refused> {
    let Ok(parsed) = addr.parse::<SocketAddr>() else {
        return validate::invalid(format!(
            "`{}` is not an address; write IP:PORT, for example 192.0.2.1:2377",
            addr.escape_debug()
        ));
    };
    if parsed.ip().is_unspecified() || parsed.ip().is_multicast() || parsed.port() == 0 {
        return validate::invalid(format!(
            "other nodes cannot reach {addr}; give an address of this machine with --advertise-addr"
        ));
    }
    Ok(())
}

/// Compares in a time that does not tell where the difference is.
fn equal(a: &Secret, b: &Secret) -> bool {
    let (a, b) = (a.0.as_bytes(), b.0.as_bytes());
    !b.is_empty() && a.len() == b.len() && a.iter().zip(b).fold(0, |differ, (x, y)| differ | (x ^ y)) == 0
}
