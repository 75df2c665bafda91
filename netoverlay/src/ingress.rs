//! Published ports: this node listens on each of them and picks a task. A TCP client's connection is joined to one that
//! the task's node makes from the client's own address; a task that refuses or keeps silent is passed over. Datagrams
//! follow in `udp`.

use std::{
    collections::{BTreeMap, VecDeque, btree_map::Entry},
    future::Future,
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4},
    pin::Pin,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use futures_util::{StreamExt, stream::FuturesUnordered};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        TcpListener, TcpStream,
        tcp::{ReadHalf, WriteHalf},
    },
    sync::{Semaphore, mpsc, watch},
    time::{Instant, sleep_until, timeout},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    decide::balance,
    peer::{Accept, Mesh, OpenError, Receiver, Reset, Sender, Stream},
    table::{Backend, NetworkId, NodeId, Protocol, PublishedPort},
    view::View,
};

mod udp;

/// A task that has not answered by then gets company.
pub const NEXT_AFTER: Duration = Duration::from_millis(200);
/// A task's node that has said nothing for this long is asked whether it is still there, and has as long to answer.
const ASK_AFTER: Duration = Duration::from_millis(100);
/// No task at all by then: the client's connection is reset.
const GIVE_UP: Duration = Duration::from_secs(5);
/// How long a peer may take to say what it wants of a stream.
const HEADER_PATIENCE: Duration = Duration::from_secs(5);
/// A port that could not be bound is tried again this often.
const BIND_AGAIN: Duration = Duration::from_secs(2);
/// Connections through this node's published ports at once.
const CONNECTIONS: usize = 16 << 10;
/// Bytes read at once.
const CHUNK: usize = 64 << 10;

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
    pub limit: Arc<Semaphore>,
    /// Takes what peers say of tasks of theirs that have ended.
    pub ended: mpsc::Sender<(NodeId, NetworkId, Ipv4Addr)>,
}

/// Why a task on another node was not reached.
#[derive(Debug, thiserror::Error)]
enum Unreachable {
    #[error(transparent)]
    Open(#[from] OpenError),
    #[error("refused")]
    Reset(#[from] Reset),
    #[error("refused")]
    Refused,
}

/// The other end of a client's connection.
enum Upstream {
    Here(TcpStream),
    There(NodeId, Stream),
}

impl Ingress {
    pub fn permits() -> Arc<Semaphore> {
        Arc::new(Semaphore::new(CONNECTIONS))
    }

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

    async fn accept_clients(self: Arc<Self>, listener: TcpListener, port: u16, stop: CancellationToken) {
        loop {
            let accepted = tokio::select! {
                () = stop.cancelled() => return,
                accepted = listener.accept() => accepted,
            };
            match accepted {
                Ok((client, from)) => {
                    let Ok(permit) = self.limit.clone().try_acquire_owned() else {
                        tracing::warn!(port, "connection refused: this node carries {CONNECTIONS} already");
                        reset(&client);
                        continue;
                    };
                    let ingress = self.clone();
                    self.tracker.spawn(async move {
                        tokio::select! {
                            () = ingress.stop.cancelled() => {}
                            () = ingress.serve_client(client, from, port) => {}
                        }
                        drop(permit);
                    });
                }
                Err(error) => {
                    // Out of descriptors, most likely: others have to finish first.
                    tracing::warn!(port, %error, "cannot accept a connection");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            }
        }
    }

    async fn serve_client(&self, mut client: TcpStream, from: SocketAddr, port: u16) {
        let _ = client.set_nodelay(true);
        let mut lost = Vec::new();
        // What there is if no other task is found: its node may be far away, or busy, and not gone.
        let mut last = None;
        loop {
            match self.find(from, port, &lost).await {
                Ok(Upstream::Here(mut task)) => {
                    drop(last.take());
                    let _ = task.set_nodelay(true);
                    if tokio::io::copy_bidirectional_with_sizes(&mut client, &mut task, CHUNK, CHUNK)
                        .await
                        .is_err()
                    {
                        reset(&client);
                        reset(&task);
                    }
                }
                Ok(Upstream::There(node, mut stream)) => {
                    if self.has_other(port, &node, &lost) && !self.begins(&client, &node, &mut stream).await {
                        tracing::debug!(port, %from, peer = %node, "gone before a word was said; another is tried");
                        lost.push(node);
                        last = Some(stream);
                        continue;
                    }
                    drop(last.take());
                    join(client, stream).await;
                }
                Err(why) => match last.take() {
                    Some(stream) => join(client, stream).await,
                    None => {
                        tracing::debug!(port, %from, why, "client turned away");
                        reset(&client);
                    }
                },
            }
            return;
        }
    }

    /// Whether there is a task elsewhere than on `node` and on those in `lost`. Without one the client is better off
    /// where it is, if only its node is slow.
    fn has_other(&self, port: u16, node: &NodeId, lost: &[NodeId]) -> bool {
        let view = self.view.borrow();
        let mut nodes = view.port(Protocol::Tcp, port).into_iter().flat_map(|port| &port.backends);
        nodes.any(|backend| backend.node != *node && !lost.contains(&backend.node))
    }

    /// Waits for the first word of either side; `false` if the task's node is gone before. Then nothing is lost that
    /// another task could not give.
    async fn begins(&self, client: &TcpStream, node: &NodeId, stream: &mut Stream) -> bool {
        let word = async {
            let mut byte = [0];
            tokio::select! {
                _ = client.peek(&mut byte) => {}
                said = stream.receiver.receive() => if let Ok(Some(data)) = said {
                    stream.receiver.put_back(data);
                },
            }
        };
        tokio::pin!(word);
        if timeout(ASK_AFTER, &mut word).await.is_ok() {
            return true;
        }
        tokio::select! {
            () = &mut word => return true,
            answered = timeout(ASK_AFTER, self.mesh.ask(node.clone())) => if !matches!(answered, Ok(true)) {
                return false;
            },
        }
        let mut view = self.view.clone();
        let suspect = async { view.wait_for(|view| view.suspects.contains(node)).await.is_ok() };
        tokio::select! {
            () = word => true,
            suspect = suspect => !suspect,
        }
    }

    /// Finds a task that takes the connection: one after the other, with a new one joining the race when the last has
    /// kept silent for [`NEXT_AFTER`].
    /// Tasks on the nodes in `lost` are left out.
    async fn find(&self, client: SocketAddr, port: u16, lost: &[NodeId]) -> Result<Upstream, String> {
        let view = self.view.borrow().clone();
        let Some(published) = view.port(Protocol::Tcp, port) else {
            return Err("the port is no longer published".into());
        };
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        let mut waiting =
            balance::order(&published.backends, turn, &view.suspects, |backend| Some(backend.node.clone()))
                .into_iter()
                .filter(|backend| !lost.contains(&backend.node))
                .collect::<VecDeque<_>>();
        let give_up = Instant::now() + GIVE_UP;
        let mut trying = FuturesUnordered::new();
        let mut next_at = Instant::now();
        let mut errors = Vec::new();
        loop {
            if trying.is_empty() || Instant::now() >= next_at {
                if let Some(backend) = waiting.pop_front() {
                    trying.push(self.reach(published, backend, client));
                    next_at = Instant::now() + NEXT_AFTER;
                } else if trying.is_empty() {
                    return Err(if errors.is_empty() {
                        format!("service {} has no task that takes connections", published.service)
                    } else {
                        errors.join("; ")
                    });
                }
            }
            tokio::select! {
                Some(result) = trying.next() => match result {
                    Ok(upstream) => return Ok(upstream),
                    Err(error) => {
                        errors.push(error);
                        next_at = Instant::now();
                    }
                },
                () = sleep_until(next_at), if !waiting.is_empty() => {}
                () = sleep_until(give_up) => return Err("no task has answered in time".into()),
            }
        }
    }

    async fn reach(
        &self,
        port: &PublishedPort,
        backend: Backend,
        client: SocketAddr,
    ) -> Result<Upstream, String> {
        let target = SocketAddrV4::new(backend.address, port.target_port);
        let error = |why: &dyn std::fmt::Display| format!("{target} on {}: {why}", backend.node);
        if backend.node == self.node {
            let task = self.connector.connect(port.network, client, target).await;
            return task.map(Upstream::Here).map_err(|source| error(&source));
        }
        let request = Request { protocol: Protocol::Tcp, network: port.network, target, client };
        self.ask(&backend.node, request)
            .await
            .map_err(|source| error(&source))
            .map(|stream| Upstream::There(backend.node.clone(), stream))
    }

    /// Opens a stream to a task on another node; done when that node has reached the task.
    async fn ask(&self, node: &NodeId, request: Request) -> Result<Stream, Unreachable> {
        let mut stream = self.mesh.open(node.clone()).await?;
        stream.sender.send(request.encode()).await?;
        match stream.receiver.receive().await? {
            Some(mut answer) if answer.first() == Some(&CONNECTED) => {
                // What the task says first may come along.
                answer.advance(1);
                stream.receiver.put_back(answer);
                Ok(stream)
            }
            _ => Err(Unreachable::Refused),
        }
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
            join(task, stream).await;
        } else {
            reset(&task);
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

/// Passes bytes both ways until both ends are done; a reset on one side is one on the other.
async fn join(mut tcp: TcpStream, stream: Stream) {
    let (read, write) = tcp.split();
    if tokio::try_join!(upload(read, stream.sender), download(stream.receiver, write)).is_err() {
        reset(&tcp);
    }
}

/// One direction has ended before its time.
struct Broken;

async fn upload(mut read: ReadHalf<'_>, mut sender: Sender) -> Result<(), Broken> {
    let mut buffer = BytesMut::new();
    loop {
        buffer.reserve(CHUNK);
        match read.read_buf(&mut buffer).await {
            Ok(0) => return sender.finish().await.map_err(|_| Broken),
            Ok(_) => sender.send(buffer.split().freeze()).await.map_err(|_| Broken)?,
            Err(_) => return Err(Broken),
        }
    }
}

async fn download(mut receiver: Receiver, mut write: WriteHalf<'_>) -> Result<(), Broken> {
    while let Some(data) = receiver.receive().await.map_err(|_| Broken)? {
        write.write_all(&data).await.map_err(|_| Broken)?;
    }
    write.shutdown().await.map_err(|_| Broken)
}

/// Makes the coming close a reset, so that the other end learns that the connection was not ended on purpose.
fn reset(stream: &TcpStream) {
    // Fails only on a closed socket.
    let _ = socket2::SockRef::from(stream).set_linger(Some(Duration::ZERO));
}

/// The answer to a request whose task took the connection.
const CONNECTED: u8 = 1;
const VERSION: u8 = 1;
const TCP: u8 = 6;
const UDP: u8 = 17;

/// In place of a protocol: the task has ended.
const ENDED: u8 = 0;

/// What a node says to another: first thing on a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Word {
    /// It has a client for a task.
    Reach(Request),
    /// A task of its own has ended.
    Ended(NetworkId, Ipv4Addr),
}

impl Word {
    fn decode(bytes: &[u8]) -> Option<Self> {
        if bytes.get(1) != Some(&ENDED) {
            return Request::decode(bytes).map(Self::Reach);
        }
        if bytes.len() != Request::LENGTH || bytes[0] != VERSION {
            return None;
        }
        let mut bytes = &bytes[2..];
        Some(Self::Ended(NetworkId::new(bytes.get_u32())?, Ipv4Addr::from(bytes.get_u32())))
    }

    /// Reads one; the other side sends nothing more before the answer.
    async fn read(receiver: &mut Receiver) -> Option<Self> {
        let mut bytes = BytesMut::new();
        while bytes.len() < Request::LENGTH {
            bytes.extend_from_slice(&receiver.receive().await.ok()??);
        }
        Self::decode(&bytes)
    }
}

/// Tells a peer that this node's task at `address` has ended.
pub(crate) fn ended_notice(network: NetworkId, address: Ipv4Addr) -> Bytes {
    let mut bytes = BytesMut::zeroed(Request::LENGTH);
    bytes[0] = VERSION;
    bytes[1] = ENDED;
    bytes[2..6].copy_from_slice(&network.number().to_be_bytes());
    bytes[6..10].copy_from_slice(&address.octets());
    bytes.freeze()
}

/// What a node asks of the node of a task.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Request {
    protocol: Protocol,
    network: NetworkId,
    target: SocketAddrV4,
    client: SocketAddr,
}

impl Request {
    /// Version, protocol, network, target, client; all clients as IPv6, IPv4 ones mapped.
    const LENGTH: usize = 1 + 1 + 4 + 4 + 2 + 16 + 2;

    fn encode(&self) -> Bytes {
        let mut bytes = BytesMut::with_capacity(Self::LENGTH);
        bytes.put_u8(VERSION);
        bytes.put_u8(match self.protocol {
            Protocol::Tcp => TCP,
            Protocol::Udp => UDP,
        });
        bytes.put_u32(self.network.number());
        bytes.put_slice(&self.target.ip().octets());
        bytes.put_u16(self.target.port());
        let client = match self.client.ip() {
            IpAddr::V4(ip) => ip.to_ipv6_mapped(),
            IpAddr::V6(ip) => ip,
        };
        bytes.put_slice(&client.octets());
        bytes.put_u16(self.client.port());
        bytes.freeze()
    }

    fn decode(mut bytes: &[u8]) -> Option<Self> {
        if bytes.len() != Self::LENGTH || bytes.get_u8() != VERSION {
            return None;
        }
        let protocol = match bytes.get_u8() {
            TCP => Protocol::Tcp,
            UDP => Protocol::Udp,
            _ => return None,
        };
        let network = NetworkId::new(bytes.get_u32())?;
        let target = SocketAddrV4::new(Ipv4Addr::from(bytes.get_u32()), bytes.get_u16());
        let client = Ipv6Addr::from(bytes.get_u128()).to_canonical();
        Some(Self { protocol, network, target, client: SocketAddr::new(client, bytes.get_u16()) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn that_a_task_has_ended_survives_the_way() {
        let network = NetworkId::new(0xabcdef).unwrap();
        let notice = ended_notice(network, [10, 50, 0, 2].into());
        assert_eq!(Word::decode(&notice), Some(Word::Ended(network, [10, 50, 0, 2].into())));
        assert_eq!(Word::decode(&notice[..10]), None);
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_make_a_word_panic(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..40)) {
            let _ = Word::decode(&bytes);
        }
    }

    #[test]
    fn requests_survive_the_way() {
        for client in ["203.0.113.9:40000", "[2001:db8::1]:9"] {
            let request = Request {
                protocol: Protocol::Udp,
                network: NetworkId::new(0xabcdef).unwrap(),
                target: "10.50.0.2:80".parse().unwrap(),
                client: client.parse().unwrap(),
            };
            assert_eq!(Request::decode(&request.encode()), Some(request));
        }
    }

    #[test]
    fn a_request_of_another_version_or_length_is_none() {
        let request = Request {
            protocol: Protocol::Tcp,
            network: NetworkId::new(1).unwrap(),
            target: "10.50.0.2:80".parse().unwrap(),
            client: "10.0.0.1:1".parse().unwrap(),
        };
        let mut bytes = request.encode().to_vec();
        assert_eq!(Request::decode(&bytes[..Request::LENGTH - 1]), None);
        bytes[0] = 9;
        assert_eq!(Request::decode(&bytes), None);
        assert_eq!(Request::decode(&[]), None);
    }
}
