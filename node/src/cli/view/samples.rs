//! Objects for tests of how they look.

use rswarm_control::model::*;
use rswarm_control::{NetworkId, NodeId, RaftId, TaskId, Timestamp};
use std::net::Ipv4Addr;
use std::sync::Arc;

/// 2026-11-20T23:07:07Z, three minutes after everything was made.
pub const NOW: u64 = 1_795_216_027_000;

const THEN: Timestamp = Timestamp(NOW - 180_000);

fn meta(number: u64) -> Meta {
    Meta { number, version: 7, created_at: THEN, updated_at: THEN }
}

/// Nodes below 10 are managers.
pub fn node(hostname: &str, id: u64) -> Node {
    let manager = id < 10;
    Node {
        id: NodeId(id),
        meta: meta(id),
        hostname: hostname.into(),
        addr: format!("10.0.0.{id}:2377"),
        role: if manager { Role::Manager } else { Role::Worker },
        raft: manager.then_some(RaftId(id)),
        availability: Availability::Active,
        labels: Labels::new(),
        taints: Vec::new(),
        status: NodeStatus::Ready,
        status_since: THEN,
        message: String::new(),
        description: Description {
            capacity: Resources { nano_cpus: 2_000_000_000, memory_bytes: 4 << 30 },
            os: "linux".into(),
            arch: "x86_64".into(),
            kernel: "6.1.0".into(),
            engine_version: "0.1.0".into(),
            warnings: Vec::new(),
            labels: Labels::new(),
            generic: Stocks::new(),
            devices: Default::default(),
            level: 2,
        },
        session: 1,
    }
}

/// Three replicas with a bit of everything.
pub fn service(name: &str) -> Service {
    let network = "000000000000n".parse().expect("an id");
    let mut container = ContainerSpec::new("rswarm/demo:1");
    container.image_digest =
        Some("sha256:28402db69fec7c17e179ea87882667f1e054391138f77ffaf0c3eb388efc3ffb".into());
    container.args = vec!["serve".into()];
    container.env = vec![EnvVar { name: "A".into(), value: "1".into() }];
    container.mounts = vec![
        Mount::Bind { source: "/srv".into(), target: "/data".into(), read_only: true },
        Mount::Tmpfs { target: "/tmp".into(), size_bytes: Some(64 << 20), mode: None },
    ];
    let mut task = TaskSpec { containers: vec![container], networks: vec![network], ..TaskSpec::default() };
    task.resources.limits = Resources { nano_cpus: 500_000_000, memory_bytes: 64 << 20 };
    task.placement.constraints = vec!["node.labels.disk==ssd".parse().expect("a constraint")];
    let (protocol, mode) = (Protocol::Tcp, PortMode::Ingress);
    let port = PortSpec { published: Some(8080), target: 80, protocol, mode, proxy_protocol: false };
    Service {
        id: "000000000000c".parse().expect("an id"),
        meta: meta(3),
        spec: ServiceSpec {
            name: name.into(),
            labels: [("tier".into(), "front".into())].into(),
            mode: Mode::Replicated { replicas: 3 },
            task: Arc::new(task),
            update: UpdateConfig::default(),
            rollback: UpdateConfig::default(),
            endpoint: EndpointSpec { ports: vec![port], ..EndpointSpec::default() },
        },
        author: "ann@n1".into(),
        spec_since: THEN,
        revision: 1,
        previous: Vec::new(),
        spec_version: 1,
        version_since: THEN,
        expired_at: None,
        endpoint: Endpoint {
            vips: [(network, Ipv4Addr::new(10, 0, 1, 2))].into(),
            ports: vec![PublishedPort { published: 8080, target: 80, protocol, mode, proxy_protocol: false }],
        },
        update_status: None,
        rebalance: None,
    }
}

/// A network with every default.
pub fn network() -> Network {
    Network {
        id: NetworkId(1),
        meta: Meta::default(),
        name: "backend".into(),
        vni: 4096,
        subnet: "10.0.1.0/24".parse().expect("a subnet"),
        gateway: Ipv4Addr::new(10, 0, 1, 1),
        mtu: 1400,
        labels: Labels::new(),
        attachable: false,
        internal: false,
        isolated: false,
    }
}

/// A task of that service.
pub fn task(id: u64, slot: u32, node: Option<u64>, desired: Desired, observed: Observed) -> Task {
    let service = service("web");
    Task {
        id: TaskId(id),
        meta: meta(id),
        service: service.id,
        service_name: "web".into(),
        slot: Slot::Replica(slot),
        spec: service.spec.task.clone(),
        spec_version: 1,
        node: node.map(NodeId),
        desired,
        observed,
        status: TaskStatus { at: THEN, ..TaskStatus::default() },
        addresses: Vec::new(),
        claims: Claims::new(),
        note: String::new(),
        start_at: THEN,
        restarts: 0,
        failures: 0,
        history: Vec::new(),
    }
}
