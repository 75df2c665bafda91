//! Services and what they run.

use super::{
    Invalid, Problem, choice, choices, each, meta, nanos, nested, parsed, parsed_each, parsed_or_none,
};
use super::{port, required};
use crate::v1 as pb;
use rswarm_control::Timestamp;
use rswarm_control::model::{
    Allow, ContainerSpec, Endpoint, EndpointMode, EndpointSpec, EnvVar, FailureAction, Mode, OnNodeLoss,
};
use rswarm_control::model::{Mount, PortMode, PortSpec, Protocol, PublishedPort, RestartCondition};
use rswarm_control::model::{
    Readiness, RestartPolicy, Revision, Service, ServiceSpec, TaskResources, TaskSpec,
};
use rswarm_control::model::{Rebalance, UpdateConfig, UpdateOrder, UpdateState, UpdateStatus};
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

choices! {
    RestartCondition = RestartCondition { Any, OnFailure, None }
    UpdateOrder = UpdateOrder { StopFirst, StartFirst }
    FailureAction = FailureAction { Pause, Continue, Rollback }
    UpdateState = UpdateState {
        Updating, Paused, Completed, RollbackStarted, RollbackPaused, RollbackCompleted
    }
    OnNodeLoss = OnNodeLoss { Replace, Fence, Wait }
    EndpointMode = EndpointMode { Vip, Dnsrr }
    Protocol = Protocol { Tcp, Udp }
    PortMode = PortMode { Ingress, Host }
}

impl From<&Service> for pb::Service {
    fn from(service: &Service) -> Self {
        let Service {
            id,
            meta,
            spec,
            author,
            spec_since,
            revision,
            previous,
            spec_version,
            version_since,
            expired_at,
            endpoint,
            update_status,
            rebalance,
        } = service;
        Self {
            author: author.clone(),
            spec_since_ms: spec_since.0,
            version_since_ms: version_since.0,
            expired_at_ms: expired_at.map(|at| at.0),
            id: id.to_string(),
            meta: Some(meta.into()),
            spec: Some(spec.into()),
            revision: *revision,
            previous: previous.iter().map(Into::into).collect(),
            spec_version: *spec_version,
            endpoint: Some(endpoint.into()),
            update_status: update_status.as_ref().map(Into::into),
            rebalance: rebalance.as_ref().map(Into::into),
        }
    }
}

impl TryFrom<pb::Service> for Service {
    type Error = Invalid;

    fn try_from(wire: pb::Service) -> Result<Self, Invalid> {
        Ok(Self {
            id: parsed("id", &wire.id)?,
            meta: meta(wire.meta),
            spec: nested("spec", wire.spec)?,
            author: wire.author,
            spec_since: Timestamp(wire.spec_since_ms),
            revision: wire.revision,
            previous: each("previous", wire.previous)?,
            spec_version: wire.spec_version,
            version_since: Timestamp(wire.version_since_ms),
            expired_at: wire.expired_at_ms.map(Timestamp),
            endpoint: nested("endpoint", Some(wire.endpoint.unwrap_or_default()))?,
            update_status: wire
                .update_status
                .map(UpdateStatus::try_from)
                .transpose()
                .map_err(|error| error.within("update_status"))?,
            rebalance: wire
                .rebalance
                .map(Rebalance::try_from)
                .transpose()
                .map_err(|error| error.within("rebalance"))?,
        })
    }
}

impl From<&Rebalance> for pb::Rebalance {
    fn from(rebalance: &Rebalance) -> Self {
        let Rebalance { since, author, left, gentle, moving } = rebalance;
        let moving = moving
            .iter()
            .map(|(task, why)| pb::rebalance::Moving { task: task.to_string(), why: why.clone() });
        Self {
            since_ms: since.0,
            author: author.clone(),
            left: *left,
            gentle: *gentle,
            moving: moving.collect(),
        }
    }
}

impl TryFrom<pb::Rebalance> for Rebalance {
    type Error = Invalid;

    fn try_from(wire: pb::Rebalance) -> Result<Self, Invalid> {
        let moving =
            wire.moving.into_iter().map(|moving| Ok((parsed("moving.task", &moving.task)?, moving.why)));
        Ok(Self {
            since: Timestamp(wire.since_ms),
            author: wire.author,
            left: wire.left,
            gentle: wire.gentle,
            moving: moving.collect::<Result<_, Invalid>>()?,
        })
    }
}

impl From<&Revision> for pb::Revision {
    fn from(revision: &Revision) -> Self {
        let Revision { number, author, since, replaced_at, settled, spec } = revision;
        Self {
            number: *number,
            author: author.clone(),
            since_ms: since.0,
            replaced_at_ms: replaced_at.0,
            settled: *settled,
            spec: Some(spec.into()),
        }
    }
}

impl TryFrom<pb::Revision> for Revision {
    type Error = Invalid;

    fn try_from(wire: pb::Revision) -> Result<Self, Invalid> {
        Ok(Self {
            number: wire.number,
            author: wire.author,
            since: Timestamp(wire.since_ms),
            replaced_at: Timestamp(wire.replaced_at_ms),
            settled: wire.settled,
            spec: nested("spec", wire.spec)?,
        })
    }
}

impl From<&ServiceSpec> for pb::ServiceSpec {
    fn from(spec: &ServiceSpec) -> Self {
        let ServiceSpec { name, labels, mode, task, update, rollback, endpoint } = spec;
        Self {
            name: name.clone(),
            labels: labels.clone(),
            mode: Some(mode.into()),
            task: Some(task.as_ref().into()),
            update: Some(update.into()),
            rollback: Some(rollback.into()),
            endpoint: Some(endpoint.into()),
        }
    }
}

impl TryFrom<pb::ServiceSpec> for ServiceSpec {
    type Error = Invalid;

    fn try_from(wire: pb::ServiceSpec) -> Result<Self, Invalid> {
        Ok(Self {
            name: wire.name,
            labels: wire.labels,
            mode: nested("mode", wire.mode)?,
            task: Arc::new(nested("task", wire.task)?),
            update: match wire.update {
                Some(update) => nested("update", Some(update))?,
                None => UpdateConfig::default(),
            },
            rollback: match wire.rollback {
                Some(rollback) => nested("rollback", Some(rollback))?,
                None => UpdateConfig::default(),
            },
            endpoint: match wire.endpoint {
                Some(endpoint) => nested("endpoint", Some(endpoint))?,
                None => EndpointSpec::default(),
            },
        })
    }
}

impl From<&Mode> for pb::Mode {
    fn from(mode: &Mode) -> Self {
        use pb::mode::{Global, GlobalJob, Kind, Replicated, ReplicatedJob};
        let kind = match mode {
            Mode::Replicated { replicas } => Kind::Replicated(Replicated { replicas: *replicas }),
            Mode::Global => Kind::Global(Global {}),
            Mode::ReplicatedJob { completions, max_concurrent, deadline } => {
                let (completions, max_concurrent) = (*completions, *max_concurrent);
                Kind::ReplicatedJob(ReplicatedJob {
                    completions,
                    max_concurrent,
                    deadline_ns: nanos(*deadline),
                })
            }
            Mode::GlobalJob { deadline } => Kind::GlobalJob(GlobalJob { deadline_ns: nanos(*deadline) }),
        };
        Self { kind: Some(kind) }
    }
}

impl TryFrom<pb::Mode> for Mode {
    type Error = Invalid;

    fn try_from(wire: pb::Mode) -> Result<Self, Invalid> {
        use pb::mode::{Global, GlobalJob, Kind, Replicated, ReplicatedJob};
        match required("kind", wire.kind)? {
            Kind::Replicated(Replicated { replicas }) => Ok(Self::Replicated { replicas }),
            Kind::Global(Global {}) => Ok(Self::Global),
            Kind::ReplicatedJob(ReplicatedJob { completions, max_concurrent, deadline_ns }) => {
                let deadline = Duration::from_nanos(deadline_ns);
                Ok(Self::ReplicatedJob { completions, max_concurrent, deadline })
            }
            Kind::GlobalJob(GlobalJob { deadline_ns }) => {
                Ok(Self::GlobalJob { deadline: Duration::from_nanos(deadline_ns) })
            }
        }
    }
}

impl From<&UpdateConfig> for pb::UpdateConfig {
    fn from(config: &UpdateConfig) -> Self {
        let UpdateConfig {
            parallelism,
            delay,
            monitor,
            order,
            failure_action,
            max_failure_permille,
            progress_deadline,
            healthy_time,
        } = config;
        Self {
            parallelism: *parallelism,
            delay_ns: nanos(*delay),
            monitor_ns: nanos(*monitor),
            order: pb::UpdateOrder::from(*order).into(),
            failure_action: pb::FailureAction::from(*failure_action).into(),
            max_failure_permille: u32::from(*max_failure_permille),
            progress_deadline_ns: nanos(*progress_deadline),
            healthy_time_ns: nanos(*healthy_time),
        }
    }
}

impl TryFrom<pb::UpdateConfig> for UpdateConfig {
    type Error = Invalid;

    fn try_from(wire: pb::UpdateConfig) -> Result<Self, Invalid> {
        Ok(Self {
            parallelism: wire.parallelism,
            delay: Duration::from_nanos(wire.delay_ns),
            monitor: Duration::from_nanos(wire.monitor_ns),
            order: choice::<pb::UpdateOrder, _>("order", wire.order)?,
            failure_action: choice::<pb::FailureAction, _>("failure_action", wire.failure_action)?,
            max_failure_permille: match port("max_failure_permille", wire.max_failure_permille)? {
                permille @ 0..=1000 => permille,
                value => {
                    let problem = Problem::TooLarge { value: u64::from(value), max: 1000 };
                    return Err(Invalid::new("max_failure_permille", problem));
                }
            },
            progress_deadline: Duration::from_nanos(wire.progress_deadline_ns),
            healthy_time: Duration::from_nanos(wire.healthy_time_ns),
        })
    }
}

impl From<&UpdateStatus> for pb::UpdateStatus {
    fn from(status: &UpdateStatus) -> Self {
        let UpdateStatus {
            state,
            started_at,
            since,
            completed_at,
            message,
            failed_task,
            automatic,
            timed_out,
        } = status;
        Self {
            state: pb::UpdateState::from(*state).into(),
            started_at_ms: started_at.0,
            since_ms: since.0,
            automatic: *automatic,
            timed_out: *timed_out,
            completed_at_ms: completed_at.map(|at| at.0),
            message: message.clone(),
            failed_task: failed_task.map(|task| task.to_string()).unwrap_or_default(),
        }
    }
}

impl TryFrom<pb::UpdateStatus> for UpdateStatus {
    type Error = Invalid;

    fn try_from(wire: pb::UpdateStatus) -> Result<Self, Invalid> {
        Ok(Self {
            state: choice::<pb::UpdateState, _>("state", wire.state)?,
            started_at: Timestamp(wire.started_at_ms),
            since: Timestamp(wire.since_ms),
            automatic: wire.automatic,
            timed_out: wire.timed_out,
            completed_at: wire.completed_at_ms.map(Timestamp),
            message: wire.message,
            failed_task: parsed_or_none("failed_task", &wire.failed_task)?,
        })
    }
}

impl From<&EndpointSpec> for pb::EndpointSpec {
    fn from(spec: &EndpointSpec) -> Self {
        let EndpointSpec { mode, ports, allow, client_affinity } = spec;
        Self {
            mode: pb::EndpointMode::from(*mode).into(),
            ports: ports.iter().map(Into::into).collect(),
            allow: allow.iter().map(Into::into).collect(),
            client_affinity: *client_affinity,
        }
    }
}

impl TryFrom<pb::EndpointSpec> for EndpointSpec {
    type Error = Invalid;

    fn try_from(wire: pb::EndpointSpec) -> Result<Self, Invalid> {
        Ok(Self {
            mode: choice::<pb::EndpointMode, _>("mode", wire.mode)?,
            ports: each("ports", wire.ports)?,
            allow: each("allow", wire.allow)?,
            client_affinity: wire.client_affinity,
        })
    }
}

impl From<&Allow> for pb::Allow {
    fn from(allow: &Allow) -> Self {
        let Allow { from, port } = allow;
        let (number, protocol) = port.map_or((0, pb::Protocol::Unspecified), |(number, protocol)| {
            (u32::from(number), pb::Protocol::from(protocol))
        });
        Self { from: from.clone(), protocol: protocol.into(), port: number }
    }
}

impl TryFrom<pb::Allow> for Allow {
    type Error = Invalid;

    fn try_from(wire: pb::Allow) -> Result<Self, Invalid> {
        let pb::Allow { from, protocol, port: number } = wire;
        let of_port = number != 0 || protocol != i32::from(pb::Protocol::Unspecified);
        let meant = || {
            let protocol = choice::<pb::Protocol, _>("protocol", protocol)?;
            Ok::<_, Invalid>((port("port", number)?, protocol))
        };
        Ok(Self { from, port: of_port.then(meant).transpose()? })
    }
}

impl From<&PortSpec> for pb::PortSpec {
    fn from(spec: &PortSpec) -> Self {
        let PortSpec { published, target, protocol, mode, proxy_protocol } = *spec;
        Self {
            published: published.map(u32::from),
            target: u32::from(target),
            protocol: pb::Protocol::from(protocol).into(),
            mode: pb::PortMode::from(mode).into(),
            proxy_protocol,
        }
    }
}

impl TryFrom<pb::PortSpec> for PortSpec {
    type Error = Invalid;

    fn try_from(wire: pb::PortSpec) -> Result<Self, Invalid> {
        Ok(Self {
            published: wire.published.map(|value| port("published", value)).transpose()?,
            target: port("target", wire.target)?,
            protocol: choice::<pb::Protocol, _>("protocol", wire.protocol)?,
            mode: choice::<pb::PortMode, _>("mode", wire.mode)?,
            proxy_protocol: wire.proxy_protocol,
        })
    }
}

impl From<&Endpoint> for pb::Endpoint {
    fn from(endpoint: &Endpoint) -> Self {
        let Endpoint { vips, ports } = endpoint;
        Self {
            vips: vips.iter().map(|(network, vip)| (network.to_string(), u32::from(*vip))).collect(),
            ports: ports.iter().map(Into::into).collect(),
        }
    }
}

impl TryFrom<pb::Endpoint> for Endpoint {
    type Error = Invalid;

    fn try_from(wire: pb::Endpoint) -> Result<Self, Invalid> {
        let vip = |(network, vip): (&String, &u32)| Ok((parsed("vips", network)?, Ipv4Addr::from(*vip)));
        Ok(Self {
            vips: wire.vips.iter().map(vip).collect::<Result<_, _>>()?,
            ports: each("ports", wire.ports)?,
        })
    }
}

impl From<&PublishedPort> for pb::PublishedPort {
    fn from(published: &PublishedPort) -> Self {
        let PublishedPort { published, target, protocol, mode, proxy_protocol } = *published;
        Self {
            published: u32::from(published),
            target: u32::from(target),
            protocol: pb::Protocol::from(protocol).into(),
            mode: pb::PortMode::from(mode).into(),
            proxy_protocol,
        }
    }
}

impl TryFrom<pb::PublishedPort> for PublishedPort {
    type Error = Invalid;

    fn try_from(wire: pb::PublishedPort) -> Result<Self, Invalid> {
        Ok(Self {
            published: port("published", wire.published)?,
            target: port("target", wire.target)?,
            protocol: choice::<pb::Protocol, _>("protocol", wire.protocol)?,
            mode: choice::<pb::PortMode, _>("mode", wire.mode)?,
            proxy_protocol: wire.proxy_protocol,
        })
    }
}

impl From<&TaskSpec> for pb::TaskSpec {
    fn from(spec: &TaskSpec) -> Self {
        let TaskSpec { containers, resources, restart, placement, networks, force, on_node_loss } = spec;
        let TaskResources { limits, reservations, generic, bounds } = resources;
        Self {
            containers: containers.iter().map(Into::into).collect(),
            resources: Some(pb::TaskResources {
                limits: Some(limits.into()),
                reservations: Some(reservations.into()),
                generic: generic.clone(),
                bounds: (*bounds != rswarm_control::model::Bounds::default()).then(|| bounds.into()),
            }),
            restart: Some(restart.into()),
            placement: Some(placement.into()),
            networks: networks.iter().map(ToString::to_string).collect(),
            force: *force,
            on_node_loss: on_node_loss.map_or(pb::OnNodeLoss::Unspecified, Into::into).into(),
        }
    }
}

impl TryFrom<pb::TaskSpec> for TaskSpec {
    type Error = Invalid;

    fn try_from(wire: pb::TaskSpec) -> Result<Self, Invalid> {
        let resources = wire.resources.unwrap_or_default();
        Ok(Self {
            containers: each("containers", wire.containers)?,
            resources: TaskResources {
                limits: resources.limits.unwrap_or_default().into(),
                reservations: resources.reservations.unwrap_or_default().into(),
                generic: resources.generic,
                bounds: nested("bounds", Some(resources.bounds.unwrap_or_default()))?,
            },
            restart: match wire.restart {
                Some(restart) => nested("restart", Some(restart))?,
                None => RestartPolicy::default(),
            },
            placement: nested("placement", Some(wire.placement.unwrap_or_default()))?,
            networks: parsed_each("networks", &wire.networks)?,
            force: wire.force,
            on_node_loss: match wire.on_node_loss {
                0 => None,
                said => Some(choice::<pb::OnNodeLoss, _>("on_node_loss", said)?),
            },
        })
    }
}

impl From<&RestartPolicy> for pb::RestartPolicy {
    fn from(policy: &RestartPolicy) -> Self {
        let RestartPolicy { condition, delay, max_attempts, window } = policy;
        Self {
            condition: pb::RestartCondition::from(*condition).into(),
            delay_ns: nanos(*delay),
            max_attempts: *max_attempts,
            window_ns: nanos(*window),
        }
    }
}

impl TryFrom<pb::RestartPolicy> for RestartPolicy {
    type Error = Invalid;

    fn try_from(wire: pb::RestartPolicy) -> Result<Self, Invalid> {
        Ok(Self {
            condition: choice::<pb::RestartCondition, _>("condition", wire.condition)?,
            delay: Duration::from_nanos(wire.delay_ns),
            max_attempts: wire.max_attempts,
            window: Duration::from_nanos(wire.window_ns),
        })
    }
}

impl From<&ContainerSpec> for pb::ContainerSpec {
    fn from(spec: &ContainerSpec) -> Self {
        let ContainerSpec {
            name,
            image,
            image_digest,
            command,
            args,
            env,
            labels,
            hostname,
            user,
            workdir,
            mounts,
            stop_signal,
            stop_grace,
            read_only,
            init,
            tty,
            health,
            readiness,
            profile,
        } = spec;
        let variable =
            |EnvVar { name, value }: &EnvVar| pb::EnvVar { name: name.clone(), value: value.clone() };
        Self {
            name: name.clone(),
            image: image.clone(),
            image_digest: image_digest.clone(),
            command: command.clone(),
            args: args.clone(),
            env: env.iter().map(variable).collect(),
            labels: labels.clone(),
            hostname: hostname.clone(),
            user: user.clone(),
            workdir: workdir.clone(),
            mounts: mounts.iter().map(Into::into).collect(),
            stop_signal: stop_signal.clone(),
            stop_grace_ns: nanos(*stop_grace),
            read_only: *read_only,
            init: *init,
            tty: *tty,
            health: Some(health.into()),
            readiness: readiness.as_ref().map(Into::into),
            profile: (*profile != rswarm_control::model::Profile::default()).then(|| profile.into()),
        }
    }
}

impl TryFrom<pb::ContainerSpec> for ContainerSpec {
    type Error = Invalid;

    fn try_from(wire: pb::ContainerSpec) -> Result<Self, Invalid> {
        let variable = |pb::EnvVar { name, value }| EnvVar { name, value };
        Ok(Self {
            name: wire.name,
            image: wire.image,
            image_digest: wire.image_digest,
            command: wire.command,
            args: wire.args,
            env: wire.env.into_iter().map(variable).collect(),
            labels: wire.labels,
            hostname: wire.hostname,
            user: wire.user,
            workdir: wire.workdir,
            mounts: each("mounts", wire.mounts)?,
            stop_signal: wire.stop_signal,
            stop_grace: Duration::from_nanos(wire.stop_grace_ns),
            read_only: wire.read_only,
            init: wire.init,
            tty: wire.tty,
            health: nested("health", Some(wire.health.unwrap_or_default()))?,
            readiness: wire
                .readiness
                .map(Readiness::try_from)
                .transpose()
                .map_err(|error| error.within("readiness"))?,
            profile: nested("profile", Some(wire.profile.unwrap_or_default()))?,
        })
    }
}

impl From<&Mount> for pb::Mount {
    fn from(mount: &Mount) -> Self {
        use pb::mount::{Bind, Kind, Tmpfs, Volume};
        let kind = match mount.clone() {
            Mount::Bind { source, target, read_only } => Kind::Bind(Bind { source, target, read_only }),
            Mount::Volume { source, target, read_only, no_copy } => {
                Kind::Volume(Volume { source, target, read_only, no_copy })
            }
            Mount::Tmpfs { target, size_bytes, mode } => Kind::Tmpfs(Tmpfs { target, size_bytes, mode }),
        };
        Self { kind: Some(kind) }
    }
}

impl TryFrom<pb::Mount> for Mount {
    type Error = Invalid;

    fn try_from(wire: pb::Mount) -> Result<Self, Invalid> {
        use pb::mount::{Bind, Kind, Tmpfs, Volume};
        Ok(match required("kind", wire.kind)? {
            Kind::Bind(Bind { source, target, read_only }) => Self::Bind { source, target, read_only },
            Kind::Volume(Volume { source, target, read_only, no_copy }) => {
                Self::Volume { source, target, read_only, no_copy }
            }
            Kind::Tmpfs(Tmpfs { target, size_bytes, mode }) => Self::Tmpfs { target, size_bytes, mode },
        })
    }
}
