//! Published ports: this node listens on each of them and picks a task. A TCP client's connection is joined to one that
//! the task's node makes from the client's own address (`tcp`). Datagrams follow in `udp`, and what nodes say to each
//! other in `word`.

use std::{
    collections::{BTreeMap, btree_map::Entry},
    future::Future,
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4},
    pin::Pin,
    sync::{Arc, Mutex, PoisonError, atomic::AtomicUsize},
    time::Duration,
};

use bytes::Bytes;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{Semaphore, mpsc, watch},
    time::timeout,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use self::word::{CONNECTED, Request, Word};
use crate::{
    peer::{Accept, Mesh, Stream},
    table::{NetworkId, NodeId, Protocol, PublishedPort},
    view::View,
};

mod tcp;
mod udp;
mod word;

pub(crate) use self::word::ended_notice;

/// No task at all by then: the client's connection is reset.
const GIVE_UP: Duration = Duration::from_secs(5);
/// How long a peer may take to say what it wants of a stream.
const HEADER_PATIENCE: Duration = Duration::from_secs(5);
/// A port that could not be bound is tried again this often.
const BIND_AGAIN: Duration = Duration::from_secs(2);
/// Connections through this node's published ports at once.
const CONNECTIONS: usize = 16 << 10;
/// Bytes of datagrams that wait in this node, of all published ports together.
const DATAGRAM_BYTES: usize = 32 << 20;

/// Makes connections to tasks on this node, from the network's namespace.
pub trait Connect: Send + Sync + 'static {
    /// Connects to `target` in `network`, if possible from `client`.
    fn connect(&self, network: NetworkId, client: SocketAddr, target: SocketAddrV4) -> Connecting;

    /// A non-blocking socket in `network`'s namespace that exchanges datagrams with `target`, if possible from `client`.
    fn connect_udp(
        &self,
        network: NetworkId,
        client: SocketAddr,
        target: SocketAddrV4,
    ) -> io::Result<std::net::UdpSocket>;
}

/// A connection being made.
pub type Connecting = Pin<Box<dyn Future<Output = io::Result<TcpStream>> + Send>>;

/// How a published port fares on this node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PortState {
    /// Listening.
    Open,
    /// Not listening, and why; tried again on its own.
    Failed(String),
}

/// Something about a published port changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PortEvent {
    /// The port.
    pub port: u16,
    /// The protocol.
    pub protocol: Protocol,
    /// How it is now.
    pub state: PortState,
}

/// The state of all published ports, by protocol and number.
pub type Ports = Arc<Mutex<BTreeMap<(Protocol, u16), PortState>>>;

/// What both directions need.
pub(crate) struct Ingress {
    pub node: NodeId,
    pub listen: IpAddr,
    pub mesh: Mesh,
    pub connector: Arc<dyn Connect>,
    pub view: watch::Receiver<View>,
    pub ports: Ports,
    pub tracker: TaskTracker,
    pub stop: CancellationToken,
    pub turn: AtomicUsize,
    pub limit: Limit,
    /// Takes what peers say of tasks of theirs that have ended.
    pub ended: mpsc::Sender<(NodeId, NetworkId, Ipv4Addr)>,
}

/// What all published ports of a node share.
pub(crate) struct Limit {
    connections: Arc<Semaphore>,
    datagram_bytes: Arc<Semaphore>,
}

impl Default for Limit {
    fn default() -> Self {
        Self {
            connections: Arc::new(Semaphore::new(CONNECTIONS)),
            datagram_bytes: Arc::new(Semaphore::new(DATAGRAM_BYTES)),
        }
    }
}

impl Ingress {
    /// Keeps a listener for each published port, until stopped. Open connections survive their listener.
    pub async fn listen(self: Arc<Self>, events: mpsc::UnboundedSender<PortEvent>) {
        let mut view = self.view.clone();
        let mut listeners: BTreeMap<(Protocol, u16), CancellationToken> = BTreeMap::new();
        loop {
            let table = view.borrow_and_update().table.clone();
            let mut states = BTreeMap::new();
            listeners.retain(|(protocol, port), listener| {
                let keep =
                    table.ports.iter().any(|wanted| wanted.protocol == *protocol && wanted.port == *port);
                if !keep {
                    listener.cancel();
                }
                keep
            });
            for published in &table.ports {
                let key = (published.protocol, published.port);
                let state = match listeners.entry(key) {
                    Entry::Occupied(_) => PortState::Open,
                    Entry::Vacant(vacant) => {
                        let stop = self.stop.child_token();
                        match self.clone().open(published, stop.clone()).await {
                            Ok(()) => {
                                vacant.insert(stop);
                                PortState::Open
                            }
                            Err(error) => PortState::Failed(explain(published, &error)),
                        }
                    }
                };
                states.insert(key, state);
            }
            let failed = states.values().any(|state| *state != PortState::Open);
            self.report(states, &events);
            tokio::select! {
                () = self.stop.cancelled() => return,
                () = tokio::time::sleep(BIND_AGAIN), if failed => {}
                changed = view.changed() => if changed.is_err() { return },
            }
        }
    }

    /// Listens on one port until `stop`.
    async fn open(self: Arc<Self>, published: &PublishedPort, stop: CancellationToken) -> io::Result<()> {
        let address = (self.listen, published.port);
        let tracker = self.tracker.clone();
        match published.protocol {
            Protocol::Tcp => {
                let listener = TcpListener::bind(address).await?;
                tracker.spawn(self.accept_clients(listener, published.port, stop));
            }
            Protocol::Udp => {
                let socket = tokio::net::UdpSocket::bind(address).await?;
                tracker.spawn(self.accept_datagrams(socket, published.port, stop));
            }
        }
        Ok(())
    }

    fn report(
        &self,
        states: BTreeMap<(Protocol, u16), PortState>,
        events: &mpsc::UnboundedSender<PortEvent>,
    ) {
        let mut ports = self.ports.lock().unwrap_or_else(PoisonError::into_inner);
        for (&(protocol, port), state) in &states {
            let before = ports.get(&(protocol, port));
            if before != Some(state) && (before.is_some() || *state != PortState::Open) {
                // Nobody listens any more only while the overlay stops.
                let _ = events.send(PortEvent { port, protocol, state: state.clone() });
            }
        }
        *ports = states;
    }

    /// Serves the streams other nodes open to tasks of this one.
    pub async fn serve_peers(self: Arc<Self>, mut accept: Accept) {
        loop {
            let next = tokio::select! {
                () = self.stop.cancelled() => return,
                next = accept.recv() => next,
            };
            let Some((peer, stream)) = next else { return };
            let ingress = self.clone();
            self.tracker.spawn(async move {
                tokio::select! {
                    () = ingress.stop.cancelled() => {}
                    () = ingress.serve_peer(&peer, stream) => {}
                }
            });
        }
    }

    async fn serve_peer(&self, peer: &NodeId, mut stream: Stream) {
        let request = match timeout(HEADER_PATIENCE, Word::read(&mut stream.receiver)).await {
            Ok(Some(Word::Reach(request))) => request,
            Ok(Some(Word::Ended(network, address))) => {
                // Nobody listens any more only while the overlay stops.
                let _ = self.ended.send((peer.clone(), network, address)).await;
                let _ = stream.sender.finish().await;
                return;
            }
            Ok(None) | Err(_) => {
                tracing::debug!(%peer, "stream without a sound request");
                return;
            }
        };
        if !self.is_published(&request) {
            tracing::debug!(%peer, target = %request.target, "not a task of a published port here");
            return;
        }
        if request.protocol == Protocol::Udp {
            return self.serve_datagrams(request, stream).await;
        }
        let connecting = self.connector.connect(request.network, request.client, request.target);
        let task = match timeout(GIVE_UP, connecting).await {
            Ok(Ok(task)) => task,
            Ok(Err(error)) => {
                tracing::debug!(target = %request.target, %error, "task does not take the connection");
                return;
            }
            Err(_) => return,
        };
        let _ = task.set_nodelay(true);
        if stream.sender.send(Bytes::from_static(&[CONNECTED])).await.is_ok() {
            tcp::join(task, stream).await;
        } else {
            tcp::reset(&task);
        }
    }

    /// A peer may reach what is published, and nothing else.
    fn is_published(&self, request: &Request) -> bool {
        self.view.borrow().table.ports.iter().any(|port| {
            port.protocol == request.protocol
                && port.network == request.network
                && port.target_port == request.target.port()
                && port
                    .backends
                    .iter()
                    .any(|backend| backend.node == self.node && backend.address == *request.target.ip())
        })
    }
}

fn explain(port: &PublishedPort, error: &io::Error) -> String {
    if error.kind() == io::ErrorKind::AddrInUse {
        format!(
            "port {}/{} of service {} is in use by another program on this node; stop it, or publish another port",
            port.port, port.protocol, port.service
        )
    } else {
        format!("cannot listen on port {}/{} of service {}: {error}", port.port, port.protocol, port.service)
    }
}
