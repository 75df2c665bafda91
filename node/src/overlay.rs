//! The overlay of this node, started with the node's certificate.

use crate::config::Config;
use crate::identity::tls::{self, Credentials};
use crate::identity::{Identity, ca};
use anyhow::{Context, Result};
use rswarm_netoverlay::table::NodeId;
use rswarm_netoverlay::{Event, Overlay, peer};
use rustls::pki_types::CertificateDer;
use sha2::{Digest, Sha256};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

/// The protocol name of the overlay's connections.
const ALPN: &[u8] = b"rswarm-data/1";

/// Starts it; what it notices goes into the log.
pub fn start(config: &Config, identity: &Identity, credentials: Arc<Credentials>) -> Result<Overlay> {
    let listen: SocketAddr =
        identity.listen_addr.parse().context("the identity on disk has a malformed listen address")?;
    let cluster = identity.cluster.clone();
    let whose = move |chain: &[CertificateDer<'_>]| {
        let (its_cluster, node) = ca::subject(chain.first()?)?;
        (its_cluster == cluster).then(|| NodeId::new(node))
    };
    let overlay = rswarm_netoverlay::Config {
        mesh: peer::Config {
            node: NodeId::new(&identity.node),
            listen,
            server: tls::server(credentials.clone(), &identity.ca_pem, false, ALPN)?,
            client: tls::client(credentials, &identity.ca_pem, ALPN)?,
            server_name: ca::any_node(&identity.cluster),
            identity: Arc::new(whose),
            reset_key: Some(Sha256::digest(identity.key_pem.as_bytes()).into()),
        },
        run_dir: config.run_dir.join("overlay"),
        ingress: IpAddr::from([0, 0, 0, 0]),
        upstreams: upstreams(&std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default()),
        uplink: true,
    };
    let (overlay, mut events) = Overlay::start(overlay).with_context(|| {
        format!("cannot start the overlay on UDP {listen}: is another program using the port?")
    })?;
    tokio::spawn(async move {
        while let Some(event) = events.recv().await {
            match event {
                Event::Peer(peer::Event::Suspect(node)) => tracing::info!(%node, "a peer does not answer"),
                Event::Peer(peer::Event::Recovered(node)) => tracing::info!(%node, "a peer answers again"),
                Event::Peer(event) => tracing::debug!(?event, "overlay"),
                Event::Port(event) => tracing::info!(?event, "published port"),
                Event::Network { network, why } => {
                    tracing::warn!(%network, why, "a network is not as it should be")
                }
            }
        }
    });
    Ok(overlay)
}

/// The name servers of a `resolv.conf`.
fn upstreams(text: &str) -> Vec<SocketAddr> {
    text.lines()
        .filter_map(|line| line.trim().strip_prefix("nameserver")?.trim().parse::<IpAddr>().ok())
        .map(|ip| SocketAddr::new(ip, 53))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn name_servers_are_found_among_other_lines() {
        let text =
            "# comment\nsearch lan\nnameserver 192.0.2.53\nnameserver 2001:db8::53\nnameserver nonsense\n";
        let found: Vec<String> = upstreams(text).iter().map(ToString::to_string).collect();
        assert_eq!(found, ["192.0.2.53:53", "[2001:db8::53]:53"]);
    }
}
