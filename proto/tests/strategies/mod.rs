//! Every object the model can hold, as proptest strategies.

mod health;

use health::{found, health_spec, readiness};
use proptest::collection::{btree_map, vec};
use proptest::option;
use proptest::prelude::*;
use rswarm_control::admission::Answer;
use rswarm_control::assignment::{AssignedTask, Assignment, Difference};
use rswarm_control::endpoints::{
    self, Backend, NetworkTable, NodesNews, Part, Piece, Place, Reached, Route, Row, SectionNews,
    ServiceEntry, Standing, Table,
};
use rswarm_control::events::{Action, Event, Subject};
use rswarm_control::model::*;
use rswarm_control::{
    Change, ClusterId, NetworkId, NewTask, NodeId, Proposal, RaftId, Report, RequestId, Rollback, ServiceId,
};
use rswarm_control::{Snapshot, TaskId, Timestamp};
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::Duration;

fn text() -> BoxedStrategy<String> {
    "[ -~é√]{0,8}".boxed()
}

fn labels() -> BoxedStrategy<Labels> {
    btree_map(text(), text(), 0..3).boxed()
}

fn at() -> BoxedStrategy<Timestamp> {
    any::<u64>().prop_map(Timestamp).boxed()
}

fn duration() -> BoxedStrategy<Duration> {
    any::<u64>().prop_map(Duration::from_nanos).boxed()
}

fn address() -> BoxedStrategy<Ipv4Addr> {
    any::<u32>().prop_map(Ipv4Addr::from).boxed()
}

fn node_id() -> BoxedStrategy<NodeId> {
    any::<u64>().prop_map(NodeId).boxed()
}

fn service_id() -> BoxedStrategy<ServiceId> {
    any::<u64>().prop_map(ServiceId).boxed()
}

fn task_id() -> BoxedStrategy<TaskId> {
    any::<u64>().prop_map(TaskId).boxed()
}

fn network_id() -> BoxedStrategy<NetworkId> {
    any::<u64>().prop_map(NetworkId).boxed()
}

fn addresses() -> BoxedStrategy<Vec<(NetworkId, Ipv4Addr)>> {
    vec((network_id(), address()), 0..3).boxed()
}

fn meta() -> BoxedStrategy<Meta> {
    (any::<u64>(), any::<u64>(), at(), at())
        .prop_map(|(number, version, created_at, updated_at)| Meta {
            number,
            version,
            created_at,
            updated_at,
        })
        .boxed()
}

fn resources() -> BoxedStrategy<Resources> {
    any::<(u64, u64)>().prop_map(|(nano_cpus, memory_bytes)| Resources { nano_cpus, memory_bytes }).boxed()
}

fn role() -> BoxedStrategy<Role> {
    prop_oneof![Just(Role::Worker), Just(Role::Manager)].boxed()
}

fn availability() -> BoxedStrategy<Availability> {
    prop_oneof![Just(Availability::Active), Just(Availability::Pause), Just(Availability::Drain)].boxed()
}

fn node_status() -> BoxedStrategy<NodeStatus> {
    use NodeStatus::*;
    prop::sample::select(vec![Unknown, Ready, Suspect, Down, Left]).boxed()
}

fn description() -> BoxedStrategy<Description> {
    let generic = prop::sample::subsequence(vec!["gpu=4", "nic=eth1", "nic=eth2"], 0..3);
    let generic = generic.prop_map(|texts| stocks(&texts).expect("they make sense"));
    let devices = prop::collection::btree_set(text(), 0..3);
    let last = (generic, devices, any::<u32>());
    (resources(), text(), text(), text(), text(), vec(text(), 0..3), labels(), last)
        .prop_map(
            |(capacity, os, arch, kernel, engine_version, warnings, labels, (generic, devices, level))| {
                Description {
                    capacity,
                    os,
                    arch,
                    kernel,
                    engine_version,
                    warnings,
                    labels,
                    generic,
                    devices,
                    level,
                }
            },
        )
        .boxed()
}

pub fn node() -> BoxedStrategy<Node> {
    let who = (node_id(), meta(), text(), text(), role(), option::of((1..=u64::MAX).prop_map(RaftId)));
    let taints = prop::sample::subsequence(vec!["gpu:no-schedule", "a=b:no-execute"], 0..2);
    let taints =
        taints.prop_map(|texts| texts.iter().map(|t| t.parse().expect("a taint")).collect::<Vec<_>>());
    let labels = (labels(), taints);
    let how = (availability(), labels, node_status(), at(), text(), description(), any::<u64>());
    (who, how)
        .prop_map(|((id, meta, hostname, addr, role, raft), how)| {
            let (availability, (labels, taints), status, status_since, message, description, session) = how;
            Node {
                id,
                meta,
                hostname,
                addr,
                role,
                raft,
                availability,
                labels,
                taints,
                status,
                status_since,
                message,
                description,
                session,
            }
        })
        .boxed()
}

fn subnet() -> BoxedStrategy<Subnet> {
    (any::<u32>(), 0u8..=32)
        .prop_map(|(base, prefix)| {
            let base = u64::from(base) >> (32 - prefix) << (32 - prefix);
            let base = Ipv4Addr::from(u32::try_from(base).expect("it only lost bits"));
            Subnet::new(base, prefix).expect("it is aligned")
        })
        .boxed()
}

pub fn network() -> BoxedStrategy<Network> {
    let what = (network_id(), meta(), text(), any::<u32>(), subnet(), address());
    (what, any::<u32>(), labels(), any::<bool>(), any::<(bool, bool)>())
        .prop_map(
            |((id, meta, name, vni, subnet, gateway), mtu, labels, attachable, (internal, isolated))| {
                Network { id, meta, name, vni, subnet, gateway, mtu, labels, attachable, internal, isolated }
            },
        )
        .boxed()
}

fn mount() -> BoxedStrategy<Mount> {
    prop_oneof![
        (text(), text(), any::<bool>()).prop_map(|(source, target, read_only)| Mount::Bind {
            source,
            target,
            read_only
        }),
        (text(), text(), any::<bool>(), any::<bool>()).prop_map(|(source, target, read_only, no_copy)| {
            Mount::Volume { source, target, read_only, no_copy }
        }),
        (text(), any::<Option<u64>>(), any::<Option<u32>>())
            .prop_map(|(target, size_bytes, mode)| Mount::Tmpfs { target, size_bytes, mode }),
    ]
    .boxed()
}

fn profile() -> BoxedStrategy<Profile> {
    let texts = || vec(text(), 0..3);
    let address = any::<[u8; 4]>().prop_map(|bytes| IpAddr::V4(bytes.into()));
    let addresses = vec(address.clone(), 0..3);
    let dns = (addresses, texts(), texts());
    let dns = dns.prop_map(|(servers, search, options)| DnsConfig { servers, search, options });
    let who = (texts(), any::<bool>(), vec((text(), address), 0..3), dns);
    let ulimit = any::<(u64, u64)>().prop_map(|(soft, hard)| Ulimit { soft, hard });
    let device = (text(), text(), text());
    let device = device.prop_map(|(source, target, access)| Device { source, target, access });
    let rights = (texts(), texts(), labels(), btree_map(text(), ulimit, 0..3), vec(device, 0..3));
    let log = (option::of(text()), labels()).prop_map(|(name, options)| LogDriver { name, options });
    let userns = prop_oneof![Just(Userns::Host), Just(Userns::Auto)];
    (who, rights, any::<Option<u64>>(), -1000..=1000_i32, (log, userns))
        .prop_map(|((groups, stdin, hosts, dns), rights, shm_bytes, oom_score_adj, (log, userns))| {
            let (cap_add, cap_drop, sysctls, ulimits, devices) = rights;
            Profile {
                groups,
                stdin,
                hosts,
                dns,
                cap_add,
                cap_drop,
                sysctls,
                ulimits,
                devices,
                shm_bytes,
                oom_score_adj,
                log,
                userns,
            }
        })
        .boxed()
}

fn bounds() -> BoxedStrategy<Bounds> {
    let io = (text(), any::<u64>(), any::<u64>());
    let io = io.prop_map(|(device, read_bps, write_bps)| IoBound { device, read_bps, write_bps });
    let swap = prop_oneof![Just(Swap::None), Just(Swap::Unlimited), (0..u64::MAX).prop_map(Swap::Bytes)];
    (any::<Option<u64>>(), swap, 0..=1000_u16, vec(io, 0..3))
        .prop_map(|(pids, swap, io_weight, io)| Bounds { pids, swap, io_weight, io })
        .boxed()
}

fn container() -> BoxedStrategy<ContainerSpec> {
    let env = (text(), text()).prop_map(|(name, value)| EnvVar { name, value });
    let what = (text(), text(), option::of(text()), vec(text(), 0..3), vec(text(), 0..3), vec(env, 0..3));
    let who = (labels(), option::of(text()), option::of(text()), option::of(text()), vec(mount(), 0..3));
    let how = (option::of(text()), duration(), any::<bool>(), any::<bool>(), any::<bool>());
    let well = (health_spec(), option::of(readiness()), profile());
    (what, who, how, well)
        .prop_map(
            |((name, image, image_digest, command, args, env), who, how, (health, readiness, profile))| {
                let (labels, hostname, user, workdir, mounts) = who;
                let (stop_signal, stop_grace, read_only, init, tty) = how;
                ContainerSpec {
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
                }
            },
        )
        .boxed()
}

fn restart() -> BoxedStrategy<RestartPolicy> {
    use RestartCondition::*;
    let condition = prop::sample::select(vec![Any, OnFailure, None]);
    (condition, duration(), any::<Option<u32>>(), duration())
        .prop_map(|(condition, delay, max_attempts, window)| RestartPolicy {
            condition,
            delay,
            max_attempts,
            window,
        })
        .boxed()
}

fn constraint() -> BoxedStrategy<Constraint> {
    let key = prop_oneof![
        Just("node.id".to_owned()),
        Just("node.hostname".to_owned()),
        Just("node.platform.os".to_owned()),
        Just("node.platform.arch".to_owned()),
        "node\\.labels\\.[a-zA-Z./-]{1,8}",
    ];
    (key, prop::sample::select(vec!["==", "!="]), "[a-z0-9!=]{1,8}")
        .prop_map(|(key, op, value)| format!("{key}{op}{value}").parse().expect("it is well formed"))
        .boxed()
}

fn placement() -> BoxedStrategy<Placement> {
    let preferences = vec!["spread=node.labels.zone", "prefer=node.role==worker,weight=-7"];
    let preferences = prop::sample::subsequence(preferences, 0..=2);
    let rules = vec!["db", "web,over=engine.labels.rack", "cache,over=node.labels.zone,weight=9"];
    let rule = prop::sample::select(vec![AffinityRule::Together, AffinityRule::Apart]);
    let affinities = (rule, prop::sample::select(rules));
    let affinities = affinities.prop_map(|(rule, text)| Affinity::parse(rule, text).expect("a rule"));
    let tolerations = prop::sample::subsequence(vec!["*", "gpu", "a=b:no-execute"], 0..=2);
    let filling = prop::sample::select(vec![Filling::Spread, Filling::BinPack]);
    let platform = (text(), text()).prop_map(|(os, arch)| Platform { os, arch });
    let soft = (preferences, vec(affinities, 0..3), tolerations);
    (vec(constraint(), 0..3), vec(platform, 0..2), any::<u32>(), soft, option::of(filling))
        .prop_map(
            |(constraints, platforms, max_per_node, (preferences, affinities, tolerations), filling)| {
                Placement {
                    constraints,
                    platforms,
                    max_per_node,
                    tolerations: tolerations.iter().map(|text| text.parse().expect("a toleration")).collect(),
                    affinities,
                    preferences: preferences.iter().map(|text| text.parse().expect("a preference")).collect(),
                    filling,
                }
            },
        )
        .boxed()
}

fn claims() -> BoxedStrategy<Claims> {
    let names = prop::collection::btree_set("[a-z]{1,4}", 1..3);
    prop::collection::btree_map("[a-z]{1,4}", names, 0..3).boxed()
}

fn task_spec() -> BoxedStrategy<TaskSpec> {
    let generic = prop::collection::btree_map("[a-z]{1,4}", 1..9u64, 0..3);
    let resources =
        (resources(), resources(), generic, bounds()).prop_map(|(limits, reservations, generic, bounds)| {
            TaskResources { limits, reservations, generic, bounds }
        });
    let loss = vec![None, Some(OnNodeLoss::Replace), Some(OnNodeLoss::Fence), Some(OnNodeLoss::Wait)];
    let loss = prop::sample::select(loss);
    (vec(container(), 0..3), resources, restart(), placement(), vec(network_id(), 0..3), (any::<u64>(), loss))
        .prop_map(|(containers, resources, restart, placement, networks, (force, on_node_loss))| TaskSpec {
            containers,
            resources,
            restart,
            placement,
            networks,
            force,
            on_node_loss,
        })
        .boxed()
}

fn update() -> BoxedStrategy<UpdateConfig> {
    let order = prop::sample::select(vec![UpdateOrder::StopFirst, UpdateOrder::StartFirst]);
    let action = vec![FailureAction::Pause, FailureAction::Continue, FailureAction::Rollback];
    let times = (duration(), duration(), duration(), duration());
    (any::<u32>(), times, order, prop::sample::select(action), 0u16..=1000)
        .prop_map(|(parallelism, times, order, failure_action, max_failure_permille)| {
            let (delay, monitor, progress_deadline, healthy_time) = times;
            UpdateConfig {
                parallelism,
                delay,
                monitor,
                order,
                failure_action,
                max_failure_permille,
                progress_deadline,
                healthy_time,
            }
        })
        .boxed()
}

fn rollback() -> BoxedStrategy<Rollback> {
    (text(), option::of(task_id()), any::<bool>())
        .prop_map(|(message, failed_task, automatic)| Rollback { message, failed_task, automatic })
        .boxed()
}

fn update_state() -> BoxedStrategy<UpdateState> {
    use UpdateState::{Completed, Paused, RollbackCompleted, RollbackPaused, RollbackStarted, Updating};
    let all = vec![Updating, Paused, Completed, RollbackStarted, RollbackPaused, RollbackCompleted];
    prop::sample::select(all).boxed()
}

fn update_status() -> BoxedStrategy<UpdateStatus> {
    let why = (text(), option::of(task_id()), any::<bool>(), any::<bool>());
    (update_state(), at(), at(), option::of(at()), why)
        .prop_map(|(state, started_at, since, completed_at, why)| {
            let (message, failed_task, automatic, timed_out) = why;
            UpdateStatus {
                state,
                started_at,
                since,
                completed_at,
                message,
                failed_task,
                automatic,
                timed_out,
            }
        })
        .boxed()
}

fn protocol() -> BoxedStrategy<Protocol> {
    prop_oneof![Just(Protocol::Tcp), Just(Protocol::Udp)].boxed()
}

fn port_mode() -> BoxedStrategy<PortMode> {
    prop_oneof![Just(PortMode::Ingress), Just(PortMode::Host)].boxed()
}

fn endpoint_spec() -> BoxedStrategy<EndpointSpec> {
    let port = (any::<Option<u16>>(), any::<u16>(), protocol(), port_mode(), any::<bool>()).prop_map(
        |(published, target, protocol, mode, proxy_protocol)| PortSpec {
            published,
            target,
            protocol,
            mode,
            proxy_protocol,
        },
    );
    let mode = prop_oneof![Just(EndpointMode::Vip), Just(EndpointMode::Dnsrr)];
    (mode, vec(port, 0..3), allow(), any::<bool>())
        .prop_map(|(mode, ports, allow, client_affinity)| EndpointSpec {
            mode,
            ports,
            allow,
            client_affinity,
        })
        .boxed()
}

fn allow() -> BoxedStrategy<Vec<Allow>> {
    let port = option::of((any::<u16>(), protocol()));
    vec((text(), port).prop_map(|(from, port)| Allow { from, port }), 0..3).boxed()
}

fn published_port() -> BoxedStrategy<PublishedPort> {
    (any::<u16>(), any::<u16>(), protocol(), port_mode(), any::<bool>())
        .prop_map(|(published, target, protocol, mode, proxy_protocol)| PublishedPort {
            published,
            target,
            protocol,
            mode,
            proxy_protocol,
        })
        .boxed()
}

fn endpoint() -> BoxedStrategy<Endpoint> {
    (btree_map(network_id(), address(), 0..3), vec(published_port(), 0..3))
        .prop_map(|(vips, ports)| Endpoint { vips, ports })
        .boxed()
}

pub fn service_spec() -> BoxedStrategy<ServiceSpec> {
    let job = (any::<u32>(), any::<u32>(), duration()).prop_map(|(completions, max_concurrent, deadline)| {
        Mode::ReplicatedJob { completions, max_concurrent, deadline }
    });
    let mode = prop_oneof![
        any::<u32>().prop_map(|replicas| Mode::Replicated { replicas }),
        Just(Mode::Global),
        job,
        duration().prop_map(|deadline| Mode::GlobalJob { deadline }),
    ];
    (text(), labels(), mode, task_spec(), update(), update(), endpoint_spec())
        .prop_map(|(name, labels, mode, task, update, rollback, endpoint)| ServiceSpec {
            name,
            labels,
            mode,
            task: Arc::new(task),
            update,
            rollback,
            endpoint,
        })
        .boxed()
}

pub fn service() -> BoxedStrategy<Service> {
    let previous = (any::<u64>(), text(), at(), at(), any::<bool>(), service_spec()).prop_map(
        |(number, author, since, replaced_at, settled, spec)| Revision {
            number,
            author,
            since,
            replaced_at,
            settled,
            spec,
        },
    );
    let what = (service_id(), meta(), service_spec(), any::<u64>(), vec(previous, 0..2));
    let moves = (option::of(update_status()), option::of(rebalance()));
    (what, text(), (at(), at(), option::of(at())), any::<u64>(), endpoint(), moves)
        .prop_map(|(what, author, times, spec_version, endpoint, (update_status, rebalance))| {
            let (spec_since, version_since, expired_at) = times;
            let (id, meta, spec, revision, previous) = what;
            Service {
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
            }
        })
        .boxed()
}

fn rebalance() -> BoxedStrategy<Rebalance> {
    let moving = prop::collection::btree_map(task_id(), text(), 0..3);
    (at(), text(), any::<u32>(), any::<bool>(), moving)
        .prop_map(|(since, author, left, gentle, moving)| Rebalance { since, author, left, gentle, moving })
        .boxed()
}

fn slot() -> BoxedStrategy<Slot> {
    prop_oneof![any::<u32>().prop_map(Slot::Replica), node_id().prop_map(Slot::Node)].boxed()
}

fn desired() -> BoxedStrategy<Desired> {
    use Desired::*;
    prop::sample::select(vec![Ready, Running, Shutdown, Remove]).boxed()
}

fn observed() -> BoxedStrategy<Observed> {
    use Observed::*;
    let all = vec![
        New, Pending, Assigned, Accepted, Preparing, Ready, Starting, Running, Completed, Shutdown, Failed,
        Rejected, Orphaned,
    ];
    prop::sample::select(all).boxed()
}

fn task_status() -> BoxedStrategy<TaskStatus> {
    let found = (found(), any::<bool>());
    (at(), option::of(at()), text(), text(), any::<Option<i32>>(), any::<Option<u32>>(), found)
        .prop_map(|(at, running_at, message, error, exit_code, pid, (health, unready))| TaskStatus {
            at,
            running_at,
            message,
            error,
            exit_code,
            pid,
            health,
            unready,
        })
        .boxed()
}

pub fn task() -> BoxedStrategy<Task> {
    let what = (task_id(), meta(), service_id(), text(), slot(), task_spec(), any::<u64>());
    let counts = any::<(u32, u32)>();
    let how = (
        option::of(node_id()),
        desired(),
        observed(),
        task_status(),
        (addresses(), claims()),
        text(),
        at(),
        (counts, vec(transition(), 0..3)),
    );
    (what, how)
        .prop_map(|((id, meta, service, service_name, slot, spec, spec_version), how)| {
            let (node, desired, observed, status, (addresses, claims), note, start_at, rest) = how;
            let ((restarts, failures), history) = rest;
            Task {
                id,
                meta,
                service,
                service_name,
                slot,
                spec: Arc::new(spec),
                spec_version,
                node,
                desired,
                observed,
                status,
                addresses,
                claims,
                note,
                start_at,
                restarts,
                failures,
                history,
            }
        })
        .boxed()
}

fn transition() -> BoxedStrategy<Transition> {
    let to = prop_oneof![observed().prop_map(Step::Observed), desired().prop_map(Step::Desired)];
    let by = prop_oneof![Just(Actor::Managers), Just(Actor::Node)];
    (to, at(), any::<u64>(), by, text())
        .prop_map(|(to, at, index, by, why)| Transition { to, at, index, by, why: why.into() })
        .boxed()
}

fn assigned_task() -> BoxedStrategy<AssignedTask> {
    let what = (task_id(), service_id(), text(), slot(), task_spec());
    let seen = (any::<bool>(), any::<bool>(), any::<bool>());
    (what, desired(), seen, addresses(), claims())
        .prop_map(|((id, service, service_name, slot, spec), desired, seen, addresses, claims)| {
            let (ended, started, unhealthy) = seen;
            AssignedTask {
                id,
                service,
                service_name,
                slot,
                spec: Arc::new(spec),
                desired,
                ended,
                started,
                unhealthy,
                addresses,
                claims,
            }
        })
        .boxed()
}

pub fn assignment() -> BoxedStrategy<Assignment> {
    (vec(assigned_task(), 0..3), vec(network(), 0..3))
        .prop_map(|(tasks, networks)| Assignment {
            tasks: tasks.into_iter().map(|task| (task.id, task)).collect(),
            networks: networks.into_iter().map(|network| (network.id, Arc::new(network))).collect(),
        })
        .boxed()
}

pub fn difference() -> BoxedStrategy<Difference> {
    let networks = vec(network().prop_map(Arc::new), 0..3);
    (vec(assigned_task(), 0..3), vec(task_id(), 0..3), networks, vec(network_id(), 0..3))
        .prop_map(|(tasks, removed_tasks, networks, removed_networks)| Difference {
            tasks,
            removed_tasks,
            networks,
            removed_networks,
        })
        .boxed()
}

fn backends() -> BoxedStrategy<Vec<Backend>> {
    let backend =
        (slot(), node_id(), address()).prop_map(|(slot, node, address)| Backend { slot, node, address });
    vec(backend, 0..3).boxed()
}

/// One that has nothing twice, in the order in which it is sent.
pub fn piece() -> BoxedStrategy<Piece> {
    prop_oneof![nodes_piece(), section_piece()].boxed()
}

pub fn nodes_piece() -> BoxedStrategy<Piece> {
    let place = (node_id(), text(), node_status()).prop_map(|(id, addr, status)| Place { id, addr, status });
    (any::<bool>(), btree_map(any::<u64>(), place, 0..4), vec(any::<u64>(), 0..4))
        .prop_map(|(whole, places, gone)| {
            Piece::Nodes(NodesNews { whole, places: places.into_iter().collect(), gone })
        })
        .boxed()
}

pub fn section_piece() -> BoxedStrategy<Piece> {
    let standing = || prop_oneof![Just(Standing::Routed), Just(Standing::Serving), Just(Standing::Draining)];
    let spot = || (any::<u32>(), address());
    let row = (service_id(), slot(), any::<u64>(), standing())
        .prop_map(|(service, slot, node, standing)| Row { service, slot, node, standing });
    let ports = vec(published_port(), 0..3);
    let reached = (text(), option::of(address()), any::<bool>(), ports, allow()).prop_map(
        |(name, vip, client_affinity, ports, allow)| Reached { name, vip, client_affinity, ports, allow },
    );
    let part = option::of(network_id()).prop_map(|id| id.map_or(Part::Published, Part::Network));
    let services = (vec((service_id(), reached), 0..3), vec(service_id(), 0..3));
    let rows = (btree_map(spot(), row, 0..9), btree_map(spot(), standing(), 0..9), vec(spot(), 0..9));
    let section = (part, any::<bool>(), option::of(network()), services, rows).prop_map(
        |(part, whole, network, (services, services_gone), (rows, turned, rows_gone))| {
            let mut news = SectionNews {
                whole,
                network: network.map(Arc::new),
                services,
                services_gone,
                rows: rows.into_iter().collect(),
                turned: turned.into_iter().collect(),
                rows_gone,
            };
            news.rows.sort_by_key(|((vni, _), row)| {
                (row.service, *vni, row.standing, matches!(row.slot, Slot::Node(_)))
            });
            news.turned.sort_by_key(|((vni, _), standing)| (*vni, *standing));
            news.rows_gone.sort_by_key(|(vni, _)| *vni);
            Piece::Section(part, news)
        },
    );
    section.boxed()
}

pub fn table() -> BoxedStrategy<Table> {
    let vip = (option::of(address()), any::<bool>());
    let service = (service_id(), text(), vip, backends(), vec(address(), 0..3), allow()).prop_map(
        |(service, name, (vip, client_affinity), backends, draining, allow)| ServiceEntry {
            service,
            name,
            vip,
            client_affinity,
            backends,
            draining,
            allow,
        },
    );
    let services = vec(service, 0..3).prop_map(|mut services| {
        services.sort_by_key(|entry| entry.service);
        services
    });
    let route = (node_id(), option::of(service_id())).prop_map(|(node, service)| Route { node, service });
    let network =
        (network(), btree_map(address(), route, 0..3), services).prop_map(|(network, routes, services)| {
            NetworkTable { network: Arc::new(network), routes, services }
        });
    let port = (
        any::<u16>(),
        protocol(),
        any::<u16>(),
        port_mode(),
        (service_id(), text(), any::<u32>(), any::<bool>(), any::<bool>()),
        backends(),
    )
        .prop_map(
            |(published, protocol, target, mode, (service, service_name, vni, proxy, stays), backends)| {
                endpoints::PublishedPort {
                    published,
                    protocol,
                    target,
                    mode,
                    service,
                    service_name,
                    proxy_protocol: proxy,
                    client_affinity: stays,
                    vni,
                    backends,
                }
            },
        );
    (btree_map(node_id(), text(), 0..3), vec(network, 0..3), vec(port, 0..3))
        .prop_map(|(peers, networks, ports)| Table {
            peers,
            networks: networks.into_iter().map(|table| (table.network.id, table)).collect(),
            ports,
        })
        .boxed()
}

pub fn report() -> BoxedStrategy<Report> {
    let how = (text(), text(), any::<Option<i32>>(), any::<Option<u32>>());
    let found = (found(), any::<Option<bool>>());
    (task_id(), node_id(), observed(), how, found)
        .prop_map(|(task, node, observed, (message, error, exit_code, pid), (health, ready))| Report {
            task,
            node,
            observed,
            message,
            error,
            exit_code,
            pid,
            health,
            ready,
        })
        .boxed()
}

fn tokens() -> BoxedStrategy<JoinTokens> {
    (text(), text())
        .prop_map(|(worker, manager)| JoinTokens { worker: Secret(worker), manager: Secret(manager) })
        .boxed()
}

fn settings() -> BoxedStrategy<Settings> {
    let filling = prop::sample::select(vec![Filling::Spread, Filling::BinPack]);
    (any::<u32>(), duration(), vec(subnet(), 0..3), 0u8..=32, (filling, option::of(at())))
        .prop_map(|(task_history_limit, cert_expiry, address_pools, address_pool_prefix, placement)| {
            let (placement, rebalance_since) = placement;
            Settings {
                placement,
                rebalance_since,
                task_history_limit,
                cert_expiry,
                address_pools,
                address_pool_prefix,
            }
        })
        .boxed()
}

fn cluster() -> BoxedStrategy<Cluster> {
    let what = (any::<u64>().prop_map(ClusterId), meta(), text(), any::<u64>(), text(), text());
    (what, tokens(), settings(), network_id(), any::<u64>(), 1..u32::MAX)
        .prop_map(|(what, tokens, settings, default_network, incarnation, level)| {
            let (id, meta, name, id_seed, ca_cert_pem, ca_key_pem) = what;
            Cluster {
                id,
                meta,
                name,
                id_seed,
                ca_cert_pem,
                ca_key_pem: Secret(ca_key_pem),
                tokens,
                settings,
                default_network,
                incarnation,
                level,
            }
        })
        .boxed()
}

fn new_task() -> BoxedStrategy<NewTask> {
    (task_id(), any::<u64>(), service_id(), slot(), any::<u64>(), desired(), at(), any::<(u32, u32)>())
        .prop_map(|(id, number, service, slot, spec_version, desired, start_at, (restarts, failures))| {
            NewTask { id, number, service, slot, spec_version, desired, start_at, restarts, failures }
        })
        .boxed()
}

fn request() -> BoxedStrategy<RequestId> {
    any::<u128>().prop_map(RequestId).boxed()
}

fn answer() -> BoxedStrategy<Answer> {
    prop_oneof![
        Just(Answer::Done),
        service_id().prop_map(Answer::Service),
        network_id().prop_map(Answer::Network),
        node_id().prop_map(Answer::Node),
        any::<u64>().prop_map(|epoch| Answer::Session { epoch }),
    ]
    .boxed()
}

pub fn change() -> BoxedStrategy<Change> {
    let objects = prop_oneof![
        cluster().prop_map(|cluster| Change::Init(Box::new(cluster))),
        node().prop_map(|node| Change::CreateNode(Box::new(node))),
        service().prop_map(|service| Change::CreateService(Box::new(service))),
        network().prop_map(|network| Change::CreateNetwork(Box::new(network))),
        new_task().prop_map(Change::CreateTask),
        report().prop_map(Change::Report),
        (any::<u64>(), tokens()).prop_map(|(version, tokens)| Change::SetTokens { version, tokens }),
        (any::<u64>(), settings()).prop_map(|(version, settings)| Change::SetSettings { version, settings }),
    ];
    let nodes = prop_oneof![
        (node_id(), any::<u64>(), role(), availability(), labels()).prop_map(
            |(node, version, role, availability, labels)| Change::UpdateNode {
                node,
                version,
                role,
                availability,
                labels,
                taints: vec!["gpu=x:prefer-no-schedule".parse().expect("a taint")],
            }
        ),
        (node_id(), any::<u64>(), text(), text(), description()).prop_map(
            |(node, epoch, hostname, addr, description)| Change::OpenSession {
                node,
                epoch,
                hostname,
                addr,
                description
            }
        ),
        (node_id(), node_status(), node_status(), text())
            .prop_map(|(node, was, status, message)| Change::SetNodeStatus { node, was, status, message }),
        (node_id(), any::<u64>()).prop_map(|(node, version)| Change::RemoveNode { node, version }),
        (any::<u64>(), node_id(), text()).prop_map(|(incarnation, node, addr)| Change::StartAnew {
            incarnation,
            node,
            addr
        }),
        (node_id(), option::of((1..u64::MAX).prop_map(RaftId)))
            .prop_map(|(node, lost)| Change::Reseat { node, lost }),
        network_id().prop_map(|network| Change::RemoveNetwork { network }),
        (network_id(), any::<u64>(), any::<bool>()).prop_map(|(network, version, isolated)| {
            Change::UpdateNetwork { network, version, isolated }
        }),
        (any::<u64>(), any::<u32>()).prop_map(|(version, level)| Change::SetLevel { version, level }),
        (request(), answer()).prop_map(|(request, answer)| Change::Once { request, answer }),
    ];
    let services = prop_oneof![
        (service_id(), any::<u64>(), service_spec(), endpoint(), text(), option::of(rollback())).prop_map(
            |(service, version, spec, endpoint, author, rollback)| Change::UpdateService {
                service,
                version,
                spec: Box::new(spec),
                endpoint,
                author,
                rollback
            }
        ),
        (service_id(), any::<u64>(), update_state(), update_status()).prop_map(
            |(service, spec_version, was, status)| Change::SetUpdateStatus {
                service,
                spec_version,
                was,
                status
            }
        ),
        (service_id(), option::of(at()), option::of(rebalance()))
            .prop_map(|(service, since, rebalance)| Change::SetRebalance { service, since, rebalance }),
        (service_id(), any::<u64>())
            .prop_map(|(service, version)| Change::RemoveService { service, version }),
        (service_id(), any::<u64>())
            .prop_map(|(service, spec_version)| Change::ExpireJob { service, spec_version }),
    ];
    let tasks = prop_oneof![
        (task_id(), addresses()).prop_map(|(task, addresses)| Change::Allocate { task, addresses }),
        (task_id(), node_id(), claims()).prop_map(|(task, node, claims)| Change::Assign {
            task,
            node,
            claims
        }),
        (task_id(), text()).prop_map(|(task, note)| Change::Note { task, note }),
        (task_id(), desired()).prop_map(|(task, desired)| Change::SetDesired { task, desired }),
        (task_id(), any::<u64>()).prop_map(|(task, spec_version)| Change::Retune { task, spec_version }),
        (task_id(), observed(), text()).prop_map(|(task, observed, message)| Change::EndTask {
            task,
            observed,
            message
        }),
        task_id().prop_map(|task| Change::RemoveTask { task }),
    ];
    prop_oneof![objects, nodes, services, tasks].boxed()
}

pub fn proposal() -> BoxedStrategy<Proposal> {
    (vec(change(), 0..4), at()).prop_map(|(changes, at)| Proposal { changes, at }).boxed()
}

pub fn snapshot() -> BoxedStrategy<Snapshot> {
    let head = (any::<u64>(), at(), any::<u64>(), any::<u64>());
    let objects = (
        option::of(cluster().prop_map(Arc::new)),
        vec(node().prop_map(Arc::new), 0..3),
        vec((node_id(), at()), 0..3),
        vec(service().prop_map(Arc::new), 0..2),
        vec(network().prop_map(Arc::new), 0..3),
        vec(task().prop_map(Arc::new), 0..4),
        vec(event().prop_map(Arc::new), 0..4),
        prop::collection::btree_map(request(), answer(), 0..4),
    );
    (head, objects)
        .prop_map(|((index, clock, next_number, next_raft), objects)| {
            let (cluster, nodes, removed_nodes, mut services, mut networks, tasks, events, requests) =
                objects;
            // No state holds two objects of one name.
            for (number, service) in services.iter_mut().enumerate() {
                Arc::make_mut(service).spec.name = format!("s{number}");
            }
            for (number, network) in networks.iter_mut().enumerate() {
                Arc::make_mut(network).name = format!("n{number}");
            }
            Snapshot {
                index,
                clock,
                next_number,
                next_raft,
                cluster,
                nodes,
                removed_nodes,
                services,
                networks,
                tasks,
                requests: requests.into_iter().map(|(id, answer)| (id, Timestamp(1), answer)).collect(),
                forgotten: index / 2,
                events,
            }
        })
        .boxed()
}

fn event() -> BoxedStrategy<Event> {
    let subject =
        prop_oneof![
            Just(Subject::Swarm),
            node_id().prop_map(Subject::Node),
            service_id().prop_map(Subject::Service),
            (task_id(), service_id(), option::of(node_id()))
                .prop_map(|(task, service, node)| Subject::Task { task, service, node }),
        ];
    let action =
        prop_oneof![Just(Action::Create), Just(Action::Update), Just(Action::Healthy), Just(Action::Orphan)];
    (any::<u64>(), at(), subject, action, text(), vec((text(), text()), 0..3))
        .prop_map(|(index, at, subject, action, name, attributes)| {
            let name = name.into();
            Event { index, at, subject, action, name, attributes }
        })
        .boxed()
}
