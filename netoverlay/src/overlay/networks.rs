//! The networks that exist on this node, for those who connect to tasks in them.

use std::{
    collections::{BTreeSet, HashMap},
    io,
    net::{SocketAddr, SocketAddrV4},
    sync::{Arc, PoisonError, RwLock},
};

use crate::{
    ingress::{Connect, Connecting},
    network,
    table::NetworkId,
};

/// The networks that exist here, for those who connect to tasks in them.
#[derive(Debug, Default)]
pub(super) struct Networks(RwLock<HashMap<NetworkId, Arc<network::Network>>>);

impl Networks {
    pub fn get(&self, id: NetworkId) -> Option<Arc<network::Network>> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).get(&id).cloned()
    }

    pub fn insert(&self, id: NetworkId, network: Arc<network::Network>) {
        self.0.write().unwrap_or_else(PoisonError::into_inner).insert(id, network);
    }

    pub fn remove(&self, id: NetworkId) {
        self.0.write().unwrap_or_else(PoisonError::into_inner).remove(&id);
    }

    pub fn ids(&self) -> BTreeSet<NetworkId> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).keys().copied().collect()
    }
}

impl Connect for Networks {
    fn connect(&self, network: NetworkId, client: SocketAddr, target: SocketAddrV4) -> Connecting {
        let network = self.get(network);
        Box::pin(async move {
            let network = network.ok_or_else(|| io::Error::from(io::ErrorKind::NetworkUnreachable))?;
            network.connect_from(shown(client, &network), target).await
        })
    }

    fn connect_udp(
        &self,
        network: NetworkId,
        client: SocketAddr,
        target: SocketAddrV4,
    ) -> io::Result<std::net::UdpSocket> {
        let network = self.get(network).ok_or_else(|| io::Error::from(io::ErrorKind::NetworkUnreachable))?;
        network.datagrams_from(shown(client, &network), target)
    }
}

/// The address under which a container sees `client`.
fn shown(client: SocketAddr, network: &network::Network) -> SocketAddrV4 {
    match client {
        // A loopback address means nothing to a container: answers to it would not leave it. An address of the network
        // would have anybody who forges one pass for a container.
        SocketAddr::V4(client) if !client.ip().is_loopback() && !network.spec().holds(*client.ip()) => client,
        SocketAddr::V4(_) | SocketAddr::V6(_) => SocketAddrV4::new(network.spec().gateway, 0),
    }
}
