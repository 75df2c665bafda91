//! Changes, and the objects that only the log and snapshots know.

use crate::convert::{Invalid, Problem, attachments, attachments_out, choice, each, nanos, nested, parsed};
use crate::convert::{
    claims, claims_out, filling, health, health_out, parsed_each, parsed_or_none, required, slot, slot_out,
    texts,
};
use crate::v1 as pb;
use crate::v1::store as disk;
use crate::v1::store::change as wire;
use bytes::Bytes;
use rswarm_control::admission::Answer;
use rswarm_control::model::{Cluster, JoinTokens, Rebalance, Secret, Settings};
use rswarm_control::{Change, NewTask, RaftId, Report, RequestId, Rollback, Timestamp, level};
use std::time::Duration;

impl From<&Change> for disk::Change {
    fn from(change: &Change) -> Self {
        Self { what: Some(change.into()) }
    }
}

impl From<&Change> for wire::What {
    fn from(change: &Change) -> Self {
        match change {
            Change::Init(cluster) => Self::Init(cluster.as_ref().into()),
            Change::SetTokens { version, tokens } => {
                Self::SetTokens(wire::SetTokens { version: *version, tokens: Some(tokens.into()) })
            }
            Change::SetSettings { version, settings } => {
                Self::SetSettings(wire::SetSettings { version: *version, settings: Some(settings.into()) })
            }
            Change::SetLevel { version, level } => {
                Self::SetLevel(wire::SetLevel { version: *version, level: *level })
            }
            Change::Once { request, answer } => {
                Self::Once(wire::Once { request: request_out(*request), answer: Some((*answer).into()) })
            }
            Change::CreateNode(node) => Self::CreateNode(node.as_ref().into()),
            Change::UpdateNode { node, version, role, availability, labels, taints } => {
                Self::UpdateNode(wire::UpdateNode {
                    node: node.to_string(),
                    version: *version,
                    role: pb::Role::from(*role).into(),
                    availability: pb::Availability::from(*availability).into(),
                    labels: labels.clone(),
                    taints: texts(taints),
                })
            }
            Change::OpenSession { node, epoch, hostname, addr, description } => {
                Self::OpenSession(wire::OpenSession {
                    node: node.to_string(),
                    epoch: *epoch,
                    hostname: hostname.clone(),
                    addr: addr.clone(),
                    description: Some(description.into()),
                })
            }
            Change::SetNodeStatus { node, was, status, message } => {
                Self::SetNodeStatus(wire::SetNodeStatus {
                    node: node.to_string(),
                    was: pb::NodeStatus::from(*was).into(),
                    status: pb::NodeStatus::from(*status).into(),
                    message: message.clone(),
                })
            }
            Change::RemoveNode { node, version } => {
                Self::RemoveNode(wire::RemoveNode { node: node.to_string(), version: *version })
            }
            Change::CreateService(service) => Self::CreateService(service.as_ref().into()),
            Change::StartAnew { incarnation, node, addr } => Self::StartAnew(wire::StartAnew {
                incarnation: *incarnation,
                node: node.to_string(),
                addr: addr.clone(),
            }),
            Change::Reseat { node, lost } => {
                Self::Reseat(wire::Reseat { node: node.to_string(), lost: lost.map_or(0, |seat| seat.0) })
            }
            Change::UpdateService { service, version, spec, endpoint, author, rollback } => {
                Self::UpdateService(wire::UpdateService {
                    service: service.to_string(),
                    version: *version,
                    spec: Some(spec.as_ref().into()),
                    endpoint: Some(endpoint.into()),
                    author: author.clone(),
                    rollback: rollback.as_ref().map(Into::into),
                })
            }
            Change::SetUpdateStatus { service, spec_version, was, status } => {
                Self::SetUpdateStatus(wire::SetUpdateStatus {
                    service: service.to_string(),
                    spec_version: *spec_version,
                    was: pb::UpdateState::from(*was).into(),
                    status: Some(status.into()),
                })
            }
            Change::SetRebalance { service, since, rebalance } => Self::SetRebalance(wire::SetRebalance {
                service: service.to_string(),
                since_ms: since.map(|since| since.0),
                rebalance: rebalance.as_ref().map(Into::into),
            }),
            Change::ExpireJob { service, spec_version } => {
                Self::ExpireJob(wire::ExpireJob { service: service.to_string(), spec_version: *spec_version })
            }
            Change::RemoveService { service, version } => {
                Self::RemoveService(wire::RemoveService { service: service.to_string(), version: *version })
            }
            Change::CreateNetwork(network) => Self::CreateNetwork(network.as_ref().into()),
            Change::UpdateNetwork { network, version, isolated } => {
                Self::UpdateNetwork(wire::UpdateNetwork {
                    network: network.to_string(),
                    version: *version,
                    isolated: *isolated,
                })
            }
            Change::RemoveNetwork { network } => {
                Self::RemoveNetwork(wire::RemoveNetwork { network: network.to_string() })
            }
            Change::CreateTask(task) => Self::CreateTask(task.into()),
            Change::Allocate { task, addresses } => Self::Allocate(wire::Allocate {
                task: task.to_string(),
                addresses: attachments_out(addresses),
            }),
            Change::Assign { task, node, claims } => Self::Assign(wire::Assign {
                task: task.to_string(),
                node: node.to_string(),
                claims: claims_out(claims),
            }),
            Change::Note { task, note } => {
                Self::Note(wire::Note { task: task.to_string(), note: note.clone() })
            }
            Change::SetDesired { task, desired } => Self::SetDesired(wire::SetDesired {
                task: task.to_string(),
                desired: pb::Desired::from(*desired).into(),
            }),
            Change::Retune { task, spec_version } => {
                Self::Retune(wire::Retune { task: task.to_string(), spec_version: *spec_version })
            }
            Change::Report(report) => Self::Report(report.into()),
            Change::EndTask { task, observed, message } => Self::EndTask(wire::EndTask {
                task: task.to_string(),
                observed: pb::Observed::from(*observed).into(),
                message: message.clone(),
            }),
            Change::RemoveTask { task } => Self::RemoveTask(wire::RemoveTask { task: task.to_string() }),
        }
    }
}

impl From<&Rollback> for wire::Rollback {
    fn from(Rollback { message, failed_task, automatic }: &Rollback) -> Self {
        Self {
            message: message.clone(),
            failed_task: failed_task.map(|task| task.to_string()).unwrap_or_default(),
            automatic: *automatic,
        }
    }
}

impl TryFrom<wire::Rollback> for Rollback {
    type Error = Invalid;

    fn try_from(wire: wire::Rollback) -> Result<Self, Invalid> {
        let wire::Rollback { message, failed_task, automatic } = wire;
        Ok(Self { message, failed_task: parsed_or_none("failed_task", &failed_task)?, automatic })
    }
}

impl TryFrom<disk::Change> for Change {
    type Error = Invalid;

    fn try_from(change: disk::Change) -> Result<Self, Invalid> {
        required("what", change.what)?.try_into()
    }
}

impl TryFrom<wire::What> for Change {
    type Error = Invalid;

    fn try_from(what: wire::What) -> Result<Self, Invalid> {
        use wire::What;
        Ok(match what {
            What::Init(cluster) => Self::Init(Box::new(cluster.try_into()?)),
            What::SetTokens(wire::SetTokens { version, tokens }) => {
                Self::SetTokens { version, tokens: required("tokens", tokens)?.into() }
            }
            What::SetSettings(wire::SetSettings { version, settings }) => {
                Self::SetSettings { version, settings: nested("settings", settings)? }
            }
            What::SetLevel(wire::SetLevel { version, level }) => Self::SetLevel { version, level },
            What::Once(wire::Once { request, answer }) => Self::Once {
                request: request_in("request", &request)?,
                answer: nested("answer", Some(answer.unwrap_or_default()))?,
            },
            What::CreateNode(node) => Self::CreateNode(Box::new(node.try_into()?)),
            What::UpdateNode(wire::UpdateNode { node, version, role, availability, labels, taints }) => {
                Self::UpdateNode {
                    node: parsed("node", &node)?,
                    version,
                    role: choice::<pb::Role, _>("role", role)?,
                    availability: choice::<pb::Availability, _>("availability", availability)?,
                    labels,
                    taints: parsed_each("taints", &taints)?,
                }
            }
            What::OpenSession(wire::OpenSession { node, epoch, hostname, addr, description }) => {
                Self::OpenSession {
                    node: parsed("node", &node)?,
                    epoch,
                    hostname,
                    addr,
                    description: nested("description", Some(description.unwrap_or_default()))?,
                }
            }
            What::SetNodeStatus(wire::SetNodeStatus { node, was, status, message }) => Self::SetNodeStatus {
                node: parsed("node", &node)?,
                was: choice::<pb::NodeStatus, _>("was", was)?,
                status: choice::<pb::NodeStatus, _>("status", status)?,
                message,
            },
            What::StartAnew(wire::StartAnew { incarnation, node, addr }) => {
                Self::StartAnew { incarnation, node: parsed("node", &node)?, addr }
            }
            What::Reseat(wire::Reseat { node, lost }) => {
                Self::Reseat { node: parsed("node", &node)?, lost: (lost != 0).then_some(RaftId(lost)) }
            }
            What::RemoveNode(wire::RemoveNode { node, version }) => {
                Self::RemoveNode { node: parsed("node", &node)?, version }
            }
            What::CreateService(service) => Self::CreateService(Box::new(service.try_into()?)),
            What::UpdateService(wire::UpdateService {
                service,
                version,
                spec,
                endpoint,
                author,
                rollback,
            }) => Self::UpdateService {
                service: parsed("service", &service)?,
                version,
                spec: Box::new(nested("spec", spec)?),
                endpoint: nested("endpoint", endpoint)?,
                author,
                rollback: rollback
                    .map(TryInto::try_into)
                    .transpose()
                    .map_err(|error: Invalid| error.within("rollback"))?,
            },
            What::SetRebalance(wire::SetRebalance { service, since_ms, rebalance }) => Self::SetRebalance {
                service: parsed("service", &service)?,
                since: since_ms.map(Timestamp),
                rebalance: rebalance
                    .map(Rebalance::try_from)
                    .transpose()
                    .map_err(|error| error.within("rebalance"))?,
            },
            What::ExpireJob(wire::ExpireJob { service, spec_version }) => {
                Self::ExpireJob { service: parsed("service", &service)?, spec_version }
            }
            What::SetUpdateStatus(wire::SetUpdateStatus { service, spec_version, was, status }) => {
                Self::SetUpdateStatus {
                    service: parsed("service", &service)?,
                    spec_version,
                    was: choice::<pb::UpdateState, _>("was", was)?,
                    status: nested("status", status)?,
                }
            }
            What::RemoveService(wire::RemoveService { service, version }) => {
                Self::RemoveService { service: parsed("service", &service)?, version }
            }
            What::CreateNetwork(network) => Self::CreateNetwork(Box::new(network.try_into()?)),
            What::UpdateNetwork(wire::UpdateNetwork { network, version, isolated }) => {
                Self::UpdateNetwork { network: parsed("network", &network)?, version, isolated }
            }
            What::RemoveNetwork(wire::RemoveNetwork { network }) => {
                Self::RemoveNetwork { network: parsed("network", &network)? }
            }
            What::CreateTask(task) => Self::CreateTask(task.try_into()?),
            What::Allocate(wire::Allocate { task, addresses }) => Self::Allocate {
                task: parsed("task", &task)?,
                addresses: attachments("addresses", addresses)?,
            },
            What::Assign(wire::Assign { task, node, claims: given }) => {
                let (task, node) = (parsed("task", &task)?, parsed("node", &node)?);
                Self::Assign { task, node, claims: claims(given) }
            }
            What::Note(wire::Note { task, note }) => Self::Note { task: parsed("task", &task)?, note },
            What::SetDesired(wire::SetDesired { task, desired }) => Self::SetDesired {
                task: parsed("task", &task)?,
                desired: choice::<pb::Desired, _>("desired", desired)?,
            },
            What::Retune(wire::Retune { task, spec_version }) => {
                Self::Retune { task: parsed("task", &task)?, spec_version }
            }
            What::Report(report) => Self::Report(report.try_into()?),
            What::EndTask(wire::EndTask { task, observed, message }) => Self::EndTask {
                task: parsed("task", &task)?,
                observed: choice::<pb::Observed, _>("observed", observed)?,
                message,
            },
            What::RemoveTask(wire::RemoveTask { task }) => Self::RemoveTask { task: parsed("task", &task)? },
        })
    }
}

impl From<&NewTask> for wire::CreateTask {
    fn from(task: &NewTask) -> Self {
        let NewTask { id, number, service, slot, spec_version, desired, start_at, restarts, failures } =
            *task;
        Self {
            id: id.to_string(),
            number,
            service: service.to_string(),
            slot: Some(slot_out(slot)),
            spec_version,
            desired: pb::Desired::from(desired).into(),
            start_at_ms: start_at.0,
            restarts,
            failures,
        }
    }
}

impl TryFrom<wire::CreateTask> for NewTask {
    type Error = Invalid;

    fn try_from(task: wire::CreateTask) -> Result<Self, Invalid> {
        Ok(Self {
            id: parsed("id", &task.id)?,
            number: task.number,
            service: parsed("service", &task.service)?,
            slot: slot("slot", task.slot)?,
            spec_version: task.spec_version,
            desired: choice::<pb::Desired, _>("desired", task.desired)?,
            start_at: Timestamp(task.start_at_ms),
            restarts: task.restarts,
            failures: task.failures,
        })
    }
}

impl From<&Report> for wire::Report {
    fn from(report: &Report) -> Self {
        let Report { task, node, observed, message, error, exit_code, pid, health, ready } = report;
        Self {
            task: task.to_string(),
            node: node.to_string(),
            observed: pb::Observed::from(*observed).into(),
            message: message.clone(),
            error: error.clone(),
            exit_code: *exit_code,
            pid: *pid,
            health: health_out(*health),
            ready: *ready,
        }
    }
}

impl TryFrom<wire::Report> for Report {
    type Error = Invalid;

    fn try_from(report: wire::Report) -> Result<Self, Invalid> {
        Ok(Self {
            task: parsed("task", &report.task)?,
            node: parsed("node", &report.node)?,
            observed: choice::<pb::Observed, _>("observed", report.observed)?,
            message: report.message,
            error: report.error,
            exit_code: report.exit_code,
            pid: report.pid,
            health: health(report.health),
            ready: report.ready,
        })
    }
}

impl From<&Cluster> for disk::Cluster {
    fn from(cluster: &Cluster) -> Self {
        let Cluster {
            id,
            meta,
            name,
            id_seed,
            ca_cert_pem,
            ca_key_pem,
            tokens,
            settings,
            default_network,
            incarnation,
            level,
        } = cluster;
        Self {
            id: id.to_string(),
            meta: Some(meta.into()),
            name: name.clone(),
            id_seed: *id_seed,
            ca_cert_pem: ca_cert_pem.clone(),
            ca_key_pem: ca_key_pem.0.clone(),
            tokens: Some(tokens.into()),
            settings: Some(settings.into()),
            default_network: default_network.to_string(),
            incarnation: *incarnation,
            level: *level,
        }
    }
}

impl TryFrom<disk::Cluster> for Cluster {
    type Error = Invalid;

    fn try_from(cluster: disk::Cluster) -> Result<Self, Invalid> {
        Ok(Self {
            id: parsed("id", &cluster.id)?,
            meta: cluster.meta.unwrap_or_default().into(),
            name: cluster.name,
            id_seed: cluster.id_seed,
            ca_cert_pem: cluster.ca_cert_pem,
            ca_key_pem: Secret(cluster.ca_key_pem),
            tokens: required("tokens", cluster.tokens)?.into(),
            settings: nested("settings", cluster.settings)?,
            default_network: parsed("default_network", &cluster.default_network)?,
            incarnation: cluster.incarnation,
            level: cluster.level.max(level::OLDEST),
        })
    }
}

/// A request's id as bytes.
pub(super) fn request_out(request: RequestId) -> Bytes {
    Bytes::copy_from_slice(&request.0.to_be_bytes())
}

/// A request's id, of 16 bytes.
pub(super) fn request_in(field: &str, bytes: &[u8]) -> Result<RequestId, Invalid> {
    let bytes = <[u8; 16]>::try_from(bytes);
    let bytes = bytes.map_err(|_| Invalid::new(field, Problem::Malformed("it must have 16 bytes".into())))?;
    Ok(RequestId(u128::from_be_bytes(bytes)))
}

impl From<Answer> for disk::Answer {
    fn from(answer: Answer) -> Self {
        use disk::answer::What;
        Self {
            what: match answer {
                Answer::Done => None,
                Answer::Service(id) => Some(What::Service(id.to_string())),
                Answer::Network(id) => Some(What::Network(id.to_string())),
                Answer::Node(id) => Some(What::Node(id.to_string())),
                Answer::Session { epoch } => Some(What::Session(epoch)),
            },
        }
    }
}

impl TryFrom<disk::Answer> for Answer {
    type Error = Invalid;

    fn try_from(answer: disk::Answer) -> Result<Self, Invalid> {
        use disk::answer::What;
        Ok(match answer.what {
            None => Self::Done,
            Some(What::Service(id)) => Self::Service(parsed("service", &id)?),
            Some(What::Network(id)) => Self::Network(parsed("network", &id)?),
            Some(What::Node(id)) => Self::Node(parsed("node", &id)?),
            Some(What::Session(epoch)) => Self::Session { epoch },
        })
    }
}

impl From<&JoinTokens> for disk::JoinTokens {
    fn from(tokens: &JoinTokens) -> Self {
        let JoinTokens { worker, manager } = tokens;
        Self { worker: worker.0.clone(), manager: manager.0.clone() }
    }
}

impl From<disk::JoinTokens> for JoinTokens {
    fn from(tokens: disk::JoinTokens) -> Self {
        Self { worker: Secret(tokens.worker), manager: Secret(tokens.manager) }
    }
}

impl From<&Settings> for disk::Settings {
    fn from(settings: &Settings) -> Self {
        let Settings {
            task_history_limit,
            cert_expiry,
            address_pools,
            address_pool_prefix,
            placement,
            rebalance_since,
        } = settings;
        Self {
            task_history_limit: *task_history_limit,
            cert_expiry_ns: nanos(*cert_expiry),
            address_pools: address_pools.iter().map(Into::into).collect(),
            address_pool_prefix: u32::from(*address_pool_prefix),
            placement: pb::Filling::from(*placement).into(),
            rebalance_since_ms: rebalance_since.map(|since| since.0),
        }
    }
}

impl TryFrom<disk::Settings> for Settings {
    type Error = Invalid;

    fn try_from(settings: disk::Settings) -> Result<Self, Invalid> {
        let prefix = settings.address_pool_prefix;
        Ok(Self {
            task_history_limit: settings.task_history_limit,
            cert_expiry: Duration::from_nanos(settings.cert_expiry_ns),
            address_pools: each("address_pools", settings.address_pools)?,
            address_pool_prefix: u8::try_from(prefix).ok().filter(|prefix| *prefix <= 32).ok_or_else(
                || {
                    Invalid::new(
                        "address_pool_prefix",
                        Problem::TooLarge { value: u64::from(prefix), max: 32 },
                    )
                },
            )?,
            placement: filling("placement", settings.placement)?.unwrap_or_default(),
            rebalance_since: settings.rebalance_since_ms.map(Timestamp),
        })
    }
}
