//! Networks.

use crate::cli::output::value::{Struct, Value};
use rswarm_control::model::Network;

/// A network, as `network inspect` shows it.
pub fn network(network: &Network) -> Value {
    let config = Struct::new("IPAMConfig")
        .with("Subnet", network.subnet.to_string())
        .with("Gateway", network.gateway.to_string());
    let ipam = Struct::new("IPAM").with("Driver", "default").with("Config", vec![config]);
    let options =
        [("com.docker.network.driver.mtu", network.mtu.to_string()), ("vni", network.vni.to_string())];
    let options = options.map(|(key, value)| (key.to_owned(), Value::Str(value)));
    Struct::new("Network")
        .with("Name", &network.name)
        .with("Id", network.id.to_string())
        .with("Created", Value::time_ms(network.meta.created_at.0))
        .with("Scope", "swarm")
        .with("Driver", "overlay")
        .with("EnableIPv6", false)
        .with("IPAM", ipam)
        .with("Internal", network.internal)
        .with("Isolated", network.isolated)
        .with("Attachable", network.attachable)
        .with("Ingress", false)
        .with("Options", Value::Map(options.into_iter().collect()))
        .with("Labels", &network.labels)
        .into()
}
