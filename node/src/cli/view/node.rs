//! Nodes.

use crate::cli::output::value::{Struct, Value};
use rswarm_control::model::{Availability, Node, NodeStatus, Resources, Stock, Stocks};
use rswarm_proto::v1 as pb;

/// What the answering manager knows of a manager.
#[derive(Clone, Copy, Debug)]
pub struct Manager {
    /// Whether it leads.
    pub leader: bool,
    /// Whether it can be reached.
    pub reachable: bool,
}

/// A node, as `node inspect` shows it.
/// `remaining` is what keeps it from being empty, if it is drained.
/// `reserved` is what its tasks have reserved of it, where that is known.
pub fn node(
    node: &Node,
    manager: Option<Manager>,
    remaining: &[&pb::Remaining],
    reserved: Option<&Resources>,
) -> Value {
    let spec = Struct::new("NodeSpec")
        .with("Labels", &node.labels)
        .maybe("Taints", node.taints.iter().map(ToString::to_string).collect::<Vec<_>>())
        .with("Role", node.role.to_string())
        .with("Availability", availability(node.availability));
    let description = &node.description;
    let platform =
        Struct::new("Platform").with("Architecture", &description.arch).with("OS", &description.os);
    let description = Struct::new("NodeDescription")
        .with("Hostname", &node.hostname)
        .with("Platform", platform)
        .with(
            "Resources",
            resources(&description.capacity)
                .maybe("GenericResources", generic(&description.generic))
                .maybe("Devices", description.devices.iter().cloned().collect::<Vec<_>>()),
        )
        .with(
            "Engine",
            Struct::new("EngineDescription")
                .with("EngineVersion", &description.engine_version)
                .maybe("Labels", &description.labels),
        )
        .with("Kernel", &description.kernel)
        .maybe("Warnings", description.warnings.as_slice());
    let (address, _) = node.addr.rsplit_once(':').unwrap_or((&node.addr, ""));
    let status = Struct::new("NodeStatus")
        .with("State", status(node.status))
        .maybe("Message", &node.message)
        .with("Addr", address)
        .with("Since", Value::time_ms(node.status_since.0));
    let manager = manager.map(|manager| {
        Struct::new("ManagerStatus")
            .maybe("Leader", manager.leader)
            .with("Reachability", if manager.reachable { "reachable" } else { "unreachable" })
            .with("Addr", &node.addr)
    });
    super::object("Node", node.id, &node.meta)
        .with("Spec", spec)
        .with("Description", description)
        .maybe("Reserved", reserved.map(resources))
        .with("Status", status)
        .maybe("ManagerStatus", manager)
        .maybe("Remaining", remaining.iter().map(left).collect::<Vec<_>>())
        .into()
}

fn left(left: &&pb::Remaining) -> Struct {
    Struct::new("remaining").with("Task", &left.name).with("TaskID", &left.task_id).with("Why", &left.why)
}

fn generic(stocks: &Stocks) -> Vec<Struct> {
    let named = |kind: &String, value: &String| {
        let one = Struct::new("NamedGenericResource").with("Kind", kind).with("Value", value);
        Struct::new("GenericResource").with("NamedResourceSpec", one)
    };
    let stock = |(kind, stock): (&String, &Stock)| match stock {
        Stock::Count(count) => {
            let all = Struct::new("DiscreteGenericResource").with("Kind", kind).with("Value", *count);
            vec![Struct::new("GenericResource").with("DiscreteResourceSpec", all)]
        }
        Stock::Named(names) => names.iter().map(|name| named(kind, name)).collect(),
    };
    stocks.iter().flat_map(stock).collect()
}

/// An amount, as nodes and services show it.
pub fn resources(resources: &Resources) -> Struct {
    Struct::new("Resources")
        .maybe("NanoCPUs", resources.nano_cpus)
        .maybe("MemoryBytes", resources.memory_bytes)
}

/// In small letters, as in JSON.
pub fn availability(availability: Availability) -> &'static str {
    match availability {
        Availability::Active => "active",
        Availability::Pause => "pause",
        Availability::Drain => "drain",
    }
}

/// In small letters, as in JSON.
pub fn status(status: NodeStatus) -> &'static str {
    match status {
        NodeStatus::Unknown => "unknown",
        NodeStatus::Ready => "ready",
        NodeStatus::Suspect => "suspect",
        NodeStatus::Down => "down",
        NodeStatus::Left => "left",
    }
}
