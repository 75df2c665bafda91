//! Services.

use super::node::resources;
use super::profile::{limits, log, shape};
use crate::cli::output::value::{Struct, Value};
use crate::cli::service::health::{healthcheck, readiness};
use rswarm_control::model::{AffinityRule, Filling, Placement, Platform, Preference};
use rswarm_control::model::{
    ContainerSpec, EndpointMode, EndpointSpec, FailureAction, Mode, Mount, PortMode,
};
use rswarm_control::model::{OnNodeLoss, UpdateConfig, UpdateOrder, UpdateState, UpdateStatus};
use rswarm_control::model::{
    PortSpec, Protocol, PublishedPort, RestartCondition, Service, ServiceSpec, TaskSpec,
};

/// A service, as `service inspect` shows it.
pub fn service(service: &Service) -> Value {
    let vip = |(network, address): (&rswarm_control::NetworkId, &std::net::Ipv4Addr)| {
        Struct::new("VirtualIP").with("NetworkID", network.to_string()).with("Addr", address.to_string())
    };
    let endpoint = Struct::new("Endpoint")
        .with("Spec", endpoint_spec(&service.spec.endpoint))
        .maybe("Ports", service.endpoint.ports.iter().map(published).collect::<Vec<_>>())
        .maybe("VirtualIPs", service.endpoint.vips.iter().map(vip).collect::<Vec<_>>());
    super::object("Service", service.id, &service.meta)
        .with("Spec", spec(&service.spec))
        .maybe("PreviousSpec", service.previous.last().map(|previous| spec(&previous.spec)))
        .with("Endpoint", endpoint)
        .with("Revision", service.revision)
        .maybe("Author", Some(service.author.clone()).filter(|author| !author.is_empty()))
        .maybe("JobStatus", service.spec.mode.is_job().then(|| job_status(service)))
        .maybe("UpdateStatus", service.update_status.as_ref().map(update_status))
        .into()
}

fn spec(spec: &ServiceSpec) -> Struct {
    let mode = match spec.mode {
        Mode::Replicated { replicas } => Struct::new("ServiceMode")
            .with("Replicated", Struct::new("ReplicatedService").with("Replicas", replicas)),
        Mode::Global => Struct::new("ServiceMode").with("Global", Struct::new("GlobalService")),
        Mode::ReplicatedJob { completions, deadline, .. } => Struct::new("ServiceMode").with(
            "ReplicatedJob",
            Struct::new("ReplicatedJob")
                .with("MaxConcurrent", spec.mode.concurrency())
                .with("TotalCompletions", completions)
                .maybe("Deadline", deadline),
        ),
        Mode::GlobalJob { deadline } => {
            Struct::new("ServiceMode").with("GlobalJob", Struct::new("GlobalJob").maybe("Deadline", deadline))
        }
    };
    Struct::new("ServiceSpec")
        .with("Name", &spec.name)
        .with("Labels", &spec.labels)
        .with("TaskTemplate", task(&spec.task))
        .with("Mode", mode)
        .with("UpdateConfig", update_config(&spec.update))
        .with("RollbackConfig", update_config(&spec.rollback))
        .with("EndpointSpec", endpoint_spec(&spec.endpoint))
}

fn task(task: &TaskSpec) -> Struct {
    let limits = Struct::new("ResourceRequirements")
        .maybe("Limits", limits(&task.resources))
        .maybe("Reservations", reservations(task));
    let condition = match task.restart.condition {
        RestartCondition::Any => "any",
        RestartCondition::OnFailure => "on-failure",
        RestartCondition::None => "none",
    };
    let restart = Struct::new("RestartPolicy")
        .with("Condition", condition)
        .with("Delay", task.restart.delay)
        .with("MaxAttempts", task.restart.max_attempts.unwrap_or(0))
        .maybe("Window", task.restart.window);
    let network = |id: &rswarm_control::NetworkId| {
        Struct::new("NetworkAttachmentConfig").with("Target", id.to_string())
    };
    let mut containers = task.containers.iter().map(container);
    let main = containers.next();
    Struct::new("TaskSpec")
        .with("ContainerSpec", main)
        .maybe("Sidecars", containers.collect::<Vec<_>>())
        .maybe("Resources", limits)
        .with("RestartPolicy", restart)
        .maybe("Placement", placement(&task.placement))
        .maybe("Networks", task.networks.iter().map(network).collect::<Vec<_>>())
        .with("ForceUpdate", task.force)
        .maybe("OnNodeLoss", task.on_node_loss.map(loss_name))
        .maybe("LogDriver", log(task.containers.first()))
        .with("Runtime", "container")
}

fn reservations(task: &TaskSpec) -> Struct {
    let generic = |(kind, count): (&String, &u64)| {
        let amount = Struct::new("DiscreteGenericResource").with("Kind", kind).with("Value", *count);
        Struct::new("GenericResource").with("DiscreteResourceSpec", amount)
    };
    let generic: Vec<Struct> = task.resources.generic.iter().map(generic).collect();
    resources(&task.resources.reservations).maybe("GenericResources", generic)
}

fn placement(placement: &Placement) -> Struct {
    let spread = |preference: &Preference| match preference {
        Preference::Spread(key) => Struct::new("PlacementPreference")
            .with("Spread", Struct::new("SpreadOver").with("SpreadDescriptor", key.to_string())),
        Preference::Weighted { when, weight } => Struct::new("PlacementPreference").with(
            "Weighted",
            Struct::new("WeightedPreference")
                .with("When", when.to_string())
                .with("Weight", Value::Int((*weight).into())),
        ),
    };
    let rules = |rule| {
        let rules = placement.affinities.iter().filter(move |affinity| affinity.rule == rule);
        rules.map(ToString::to_string).collect::<Vec<_>>()
    };
    let platform = |platform: &Platform| {
        Struct::new("Platform").with("Architecture", &platform.arch).with("OS", &platform.os)
    };
    let filling = placement.filling.map(|filling| match filling {
        Filling::Spread => "spread",
        Filling::BinPack => "binpack",
    });
    Struct::new("Placement")
        .maybe("Constraints", placement.constraints.iter().map(ToString::to_string).collect::<Vec<_>>())
        .maybe("Preferences", placement.preferences.iter().map(spread).collect::<Vec<_>>())
        .maybe("MaxReplicas", placement.max_per_node)
        .maybe("Platforms", placement.platforms.iter().map(platform).collect::<Vec<_>>())
        .maybe("Affinities", rules(AffinityRule::Together))
        .maybe("AntiAffinities", rules(AffinityRule::Apart))
        .maybe("Tolerations", placement.tolerations.iter().map(ToString::to_string).collect::<Vec<_>>())
        .maybe("Filling", filling)
}

/// The image with its digest, if that is known.
pub fn image(container: &ContainerSpec) -> String {
    match &container.image_digest {
        Some(digest) if !container.image.contains('@') => format!("{}@{digest}", container.image),
        _ => container.image.clone(),
    }
}

fn container(container: &ContainerSpec) -> Struct {
    let env: Vec<String> = container.env.iter().map(|env| format!("{}={}", env.name, env.value)).collect();
    let shown = Struct::new("ContainerSpec")
        .with("Image", image(container))
        .maybe("Labels", &container.labels)
        .maybe("Command", container.command.as_slice())
        .maybe("Args", container.args.as_slice())
        .maybe("Hostname", container.hostname.clone())
        .maybe("Env", env)
        .maybe("Dir", container.workdir.clone())
        .maybe("User", container.user.clone())
        .maybe("Init", container.init)
        .maybe("StopSignal", container.stop_signal.clone())
        .maybe("TTY", container.tty)
        .maybe("ReadOnly", container.read_only)
        .maybe("Mounts", container.mounts.iter().map(mount).collect::<Vec<_>>())
        .with("StopGracePeriod", container.stop_grace)
        .maybe("Healthcheck", healthcheck(&container.health))
        .maybe("Readiness", readiness(container.readiness.as_ref()));
    shape(shown, &container.profile)
}

fn mount(mount: &Mount) -> Struct {
    match mount {
        Mount::Bind { source, target, read_only } => Struct::new("Mount")
            .with("Type", "bind")
            .with("Source", source)
            .with("Target", target)
            .maybe("ReadOnly", *read_only),
        Mount::Volume { source, target, read_only, no_copy } => Struct::new("Mount")
            .with("Type", "volume")
            .with("Source", source)
            .with("Target", target)
            .maybe("ReadOnly", *read_only)
            .maybe("VolumeOptions", Struct::new("VolumeOptions").maybe("NoCopy", *no_copy)),
        Mount::Tmpfs { target, size_bytes, mode } => {
            let options = Struct::new("TmpfsOptions").maybe("SizeBytes", *size_bytes).maybe("Mode", *mode);
            Struct::new("Mount").with("Type", "tmpfs").with("Target", target).maybe("TmpfsOptions", options)
        }
    }
}

fn update_config(config: &UpdateConfig) -> Struct {
    Struct::new("UpdateConfig")
        .with("Parallelism", config.parallelism)
        .maybe("Delay", config.delay)
        .with("FailureAction", action_name(config.failure_action))
        .with("Monitor", config.monitor)
        .with("MaxFailureRatio", Value::Float(f64::from(config.max_failure_permille) / 1000.0))
        .with("Order", order_name(config.order))
        .maybe("ProgressDeadline", config.progress_deadline)
        .maybe("HealthyTime", config.healthy_time)
}

/// In small letters, as in JSON.
pub fn action_name(action: FailureAction) -> &'static str {
    match action {
        FailureAction::Pause => "pause",
        FailureAction::Continue => "continue",
        FailureAction::Rollback => "rollback",
    }
}

/// In small letters, as in JSON.
pub fn order_name(order: UpdateOrder) -> &'static str {
    match order {
        UpdateOrder::StopFirst => "stop-first",
        UpdateOrder::StartFirst => "start-first",
    }
}

/// As the option calls it.
pub fn loss_name(loss: OnNodeLoss) -> &'static str {
    match loss {
        OnNodeLoss::Replace => "replace",
        OnNodeLoss::Fence => "fence",
        OnNodeLoss::Wait => "wait",
    }
}

fn job_status(service: &Service) -> Struct {
    Struct::new("JobStatus")
        .with("JobIteration", Struct::new("Version").with("Index", service.spec_version))
        .with("LastExecution", Value::time_ms(service.version_since.0))
        .maybe("ExpiredAt", service.expired_at.map(|at| Value::time_ms(at.0)))
}

fn update_status(status: &UpdateStatus) -> Struct {
    Struct::new("UpdateStatus")
        .with("State", update_state(status.state))
        .with("StartedAt", Value::time_ms(status.started_at.0))
        .maybe("CompletedAt", status.completed_at.map(|at| Value::time_ms(at.0)))
        .with("Message", &status.message)
        .maybe("TimedOut", status.timed_out)
        .maybe("FailedTask", status.failed_task.map(|task| task.to_string()))
}

/// In small letters, as in JSON.
pub fn update_state(state: UpdateState) -> &'static str {
    match state {
        UpdateState::Updating => "updating",
        UpdateState::Paused => "paused",
        UpdateState::Completed => "completed",
        UpdateState::RollbackStarted => "rollback_started",
        UpdateState::RollbackPaused => "rollback_paused",
        UpdateState::RollbackCompleted => "rollback_completed",
    }
}

fn endpoint_spec(spec: &EndpointSpec) -> Struct {
    let mode = match spec.mode {
        EndpointMode::Vip => "vip",
        EndpointMode::Dnsrr => "dnsrr",
    };
    let port = |spec: &PortSpec| {
        let PortSpec { published, target, protocol, mode, proxy_protocol } = *spec;
        port(protocol, target, published.unwrap_or(0), mode, proxy_protocol)
    };
    Struct::new("EndpointSpec")
        .with("Mode", mode)
        .maybe("Ports", spec.ports.iter().map(port).collect::<Vec<_>>())
        .maybe("ClientAffinity", spec.client_affinity)
        .maybe("AllowFrom", spec.allow.iter().map(ToString::to_string).collect::<Vec<_>>())
}

fn published(published: &PublishedPort) -> Struct {
    let PublishedPort { published, target, protocol, mode, proxy_protocol } = *published;
    port(protocol, target, published, mode, proxy_protocol)
}

fn port(protocol: Protocol, target: u16, published: u16, mode: PortMode, proxy_protocol: bool) -> Struct {
    Struct::new("PortConfig")
        .with("Protocol", protocol_name(protocol))
        .with("TargetPort", target)
        .maybe("PublishedPort", published)
        .with(
            "PublishMode",
            match mode {
                PortMode::Ingress => "ingress",
                PortMode::Host => "host",
            },
        )
        .maybe("ProxyProtocol", if proxy_protocol { "v2" } else { "" })
}

/// `tcp` or `udp`.
pub fn protocol_name(protocol: Protocol) -> &'static str {
    match protocol {
        Protocol::Tcp => "tcp",
        Protocol::Udp => "udp",
    }
}

#[cfg(test)]
mod tests {
    use crate::cli::view::samples;
    use expect_test::expect;

    #[test]
    fn a_service_is_shown_with_the_usual_names() {
        expect![[r#"
            {
                "ID": "000000000000c",
                "Version": {
                    "Index": 7
                },
                "CreatedAt": "2026-11-20T23:04:07Z",
                "UpdatedAt": "2026-11-20T23:04:07Z",
                "Spec": {
                    "Name": "web",
                    "Labels": {
                        "tier": "front"
                    },
                    "TaskTemplate": {
                        "ContainerSpec": {
                            "Image": "rswarm/demo:1@sha256:28402db69fec7c17e179ea87882667f1e054391138f77ffaf0c3eb388efc3ffb",
                            "Args": [
                                "serve"
                            ],
                            "Env": [
                                "A=1"
                            ],
                            "Mounts": [
                                {
                                    "Type": "bind",
                                    "Source": "/srv",
                                    "Target": "/data",
                                    "ReadOnly": true
                                },
                                {
                                    "Type": "tmpfs",
                                    "Target": "/tmp",
                                    "TmpfsOptions": {
                                        "SizeBytes": 67108864
                                    }
                                }
                            ],
                            "StopGracePeriod": 10000000000
                        },
                        "Resources": {
                            "Limits": {
                                "NanoCPUs": 500000000,
                                "MemoryBytes": 67108864
                            }
                        },
                        "RestartPolicy": {
                            "Condition": "any",
                            "Delay": 5000000000,
                            "MaxAttempts": 0
                        },
                        "Placement": {
                            "Constraints": [
                                "node.labels.disk==ssd"
                            ]
                        },
                        "Networks": [
                            {
                                "Target": "000000000000n"
                            }
                        ],
                        "ForceUpdate": 0,
                        "Runtime": "container"
                    },
                    "Mode": {
                        "Replicated": {
                            "Replicas": 3
                        }
                    },
                    "UpdateConfig": {
                        "Parallelism": 1,
                        "FailureAction": "pause",
                        "Monitor": 5000000000,
                        "MaxFailureRatio": 0.0,
                        "Order": "stop-first",
                        "ProgressDeadline": 600000000000
                    },
                    "RollbackConfig": {
                        "Parallelism": 1,
                        "FailureAction": "pause",
                        "Monitor": 5000000000,
                        "MaxFailureRatio": 0.0,
                        "Order": "stop-first",
                        "ProgressDeadline": 600000000000
                    },
                    "EndpointSpec": {
                        "Mode": "vip",
                        "Ports": [
                            {
                                "Protocol": "tcp",
                                "TargetPort": 80,
                                "PublishedPort": 8080,
                                "PublishMode": "ingress"
                            }
                        ]
                    }
                },
                "Endpoint": {
                    "Spec": {
                        "Mode": "vip",
                        "Ports": [
                            {
                                "Protocol": "tcp",
                                "TargetPort": 80,
                                "PublishedPort": 8080,
                                "PublishMode": "ingress"
                            }
                        ]
                    },
                    "Ports": [
                        {
                            "Protocol": "tcp",
                            "TargetPort": 80,
                            "PublishedPort": 8080,
                            "PublishMode": "ingress"
                        }
                    ],
                    "VirtualIPs": [
                        {
                            "NetworkID": "000000000000n",
                            "Addr": "10.0.1.2"
                        }
                    ]
                },
                "Revision": 1,
                "Author": "ann@n1"
            }"#]]
        .assert_eq(&super::service(&samples::service("web")).to_json_pretty());
    }
}
