//! The connections to the other nodes: one UDP socket, one QUIC connection for each pair of nodes, packets of all
//! networks as datagrams and published ports as streams. A thread of its own drives them; [`Mesh`] is its handle.

mod liveness;
pub mod seal;
mod socket;
mod stream;
mod thread;
mod tls;
mod wake;

use std::{
    fmt, io,
    net::SocketAddr,
    os::fd::OwnedFd,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

use tokio::sync::{mpsc, oneshot};

pub(crate) use self::socket::DATAGRAM_MAX;
pub use self::{
    liveness::{FIRST_CONTACT, SUSPECT_AFTER},
    stream::{Receiver, Reset, Sender, Stream},
    tls::{Identity, provider},
};
use crate::{
    decide::forward::{Reason, Routes},
    table::{NetworkId, NodeId},
};

/// Streams opened by peers that wait for [`Accept`], at most.
const BACKLOG: usize = 256;

/// What the mesh needs to start.
pub struct Config {
    /// The node this is.
    pub node: NodeId,
    /// Where its socket listens, in the calling thread's network namespace.
    pub listen: SocketAddr,
    /// TLS as the accepting side: TLS 1.3, asks for a client certificate and verifies it.
    pub server: Arc<rustls::ServerConfig>,
    /// TLS as the dialling side: TLS 1.3, shows this node's certificate and verifies the peer's chain. Which node the
    /// chain names is left to `identity`, so the verifier has to accept `server_name` for every node.
    pub client: Arc<rustls::ClientConfig>,
    /// The name asked for in the handshake.
    pub server_name: String,
    /// Reads the node out of a certificate.
    pub identity: Arc<dyn Identity>,
    /// Secret from which a restarted node derives the same tokens, so that peers notice at once that their old
    /// connections are void. The same after each start, different on each node.
    pub reset_key: Option<[u8; 32]>,
}

impl fmt::Debug for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Config")
            .field("node", &self.node)
            .field("listen", &self.listen)
            .finish_non_exhaustive()
    }
}

/// What the data path has noticed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A connection to the peer exists.
    Connected(NodeId),
    /// The peer does not answer.
    Suspect(NodeId),
    /// The peer answers again.
    Recovered(NodeId),
    /// Somebody was turned away.
    Refused {
        /// Who, as far as known.
        from: SocketAddr,
        /// Why.
        why: String,
    },
}

/// One peer, for people.
#[derive(Debug, Clone)]
pub struct PeerStatus {
    /// The peer.
    pub node: NodeId,
    /// Where it is reached.
    pub underlay: SocketAddr,
    /// Whether a connection exists.
    pub connected: bool,
    /// Whether it is suspected to be gone.
    pub suspect: bool,
    /// Time since it was heard.
    pub silent: Duration,
    /// Measured round trip, while connected.
    pub rtt: Option<Duration>,
    /// The largest packet of a network that the path carries, in bytes, while connected.
    pub packet_max: Option<u16>,
    /// Packets of QUIC sent on the connection that is used now; those sealed without it are not known to arrive.
    pub packets_sent: u64,
    /// How many of them were lost.
    pub packets_lost: u64,
    /// Why the last connection or attempt ended.
    pub error: Option<String>,
}

/// Packet counts since the start.
#[derive(Debug, Default)]
pub struct Counters {
    sent: AtomicU64,
    received: AtomicU64,
    dropped: [AtomicU64; Reason::ALL.len()],
}

impl Counters {
    /// Packets given to peers.
    pub fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }

    /// Packets taken from peers into local networks.
    pub fn received(&self) -> u64 {
        self.received.load(Ordering::Relaxed)
    }

    /// Packets dropped for `reason`.
    pub fn dropped(&self, reason: Reason) -> u64 {
        self.dropped[reason as usize].load(Ordering::Relaxed)
    }

    fn count(&self, reason: Reason) {
        self.dropped[reason as usize].fetch_add(1, Ordering::Relaxed);
    }
}

/// The mesh could not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The socket.
    #[error("cannot listen on UDP {listen}; is another daemon using the port?")]
    Listen {
        /// The wanted address.
        listen: SocketAddr,
        /// The system's answer.
        source: io::Error,
    },
    /// A TLS configuration without the cipher QUIC starts with.
    #[error("the overlay's TLS configuration lacks TLS 1.3 with AES-128-GCM")]
    Tls,
    /// The thread or its bell.
    #[error("cannot start the overlay's data thread")]
    Thread(#[source] io::Error),
}

/// No stream could be opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    /// There is no connection to the peer.
    #[error("not connected")]
    NotConnected,
    /// The peer allows no more streams.
    #[error("too many connections are open to that node")]
    Exhausted,
    /// The data thread has ended.
    #[error("the overlay has stopped")]
    Stopped,
}

/// What a peer is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Question {
    /// A sign of life.
    Alive,
    /// That, and to take a packet of the largest size.
    Path,
}

#[derive(Debug)]
enum Command {
    Routes(Routes),
    AddDevice(NetworkId, OwnedFd),
    RemoveDevice(NetworkId),
    Open(NodeId, oneshot::Sender<Result<Stream, OpenError>>),
    Stream(stream::Key),
    Ask(NodeId, Question, oneshot::Sender<()>),
    Status(oneshot::Sender<Vec<PeerStatus>>),
    Stop,
}

/// Streams that peers have opened.
pub type Accept = mpsc::Receiver<(NodeId, Stream)>;

/// Handle of the data thread. Dropping the last one stops the thread and tells the peers.
#[derive(Debug, Clone)]
pub struct Mesh(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    wake: Arc<wake::Wake<Command>>,
    counters: Arc<Counters>,
    listen: SocketAddr,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Mesh {
    /// Binds the socket and starts the thread. Nobody is reachable before [`Mesh::route`].
    pub fn start(config: Config) -> Result<(Self, mpsc::UnboundedReceiver<Event>, Accept), StartError> {
        let socket = socket::Udp::bind(config.listen)
            .map_err(|source| StartError::Listen { listen: config.listen, source })?;
        let listen = socket.local_addr().map_err(StartError::Thread)?;
        let wake = Arc::new(wake::Wake::new().map_err(StartError::Thread)?);
        let counters = Arc::new(Counters::default());
        // Bounded by what can happen: two events for each change of a peer, and refusals are limited in time.
        let (events, event_receiver) = mpsc::unbounded_channel();
        let (accepted, accept) = mpsc::channel(BACKLOG);
        let driver = thread::Driver::new(config, socket, wake.clone(), counters.clone(), events, accepted)
            .map_err(|_| StartError::Tls)?;
        let thread = std::thread::Builder::new()
            .name("overlay".into())
            .spawn(move || driver.run())
            .map_err(StartError::Thread)?;
        let inner = Inner { wake, counters, listen, thread: Mutex::new(Some(thread)) };
        Ok((Self(Arc::new(inner)), event_receiver, accept))
    }

    /// The address the socket is bound to.
    pub fn listen(&self) -> SocketAddr {
        self.0.listen
    }

    /// Replaces what is routable and who the peers are.
    pub fn route(&self, routes: Routes) {
        self.0.wake.send(Command::Routes(routes));
    }

    /// Serves `device`, a TUN device with virtio headers, as this node's end of `network`.
    pub fn add_device(&self, network: NetworkId, device: OwnedFd) {
        self.0.wake.send(Command::AddDevice(network, device));
    }

    /// Stops serving `network` and closes its descriptor.
    pub fn remove_device(&self, network: NetworkId) {
        self.0.wake.send(Command::RemoveDevice(network));
    }

    /// Opens a stream to `node`.
    pub async fn open(&self, node: NodeId) -> Result<Stream, OpenError> {
        let (reply, answer) = oneshot::channel();
        self.0.wake.send(Command::Open(node, reply));
        answer.await.unwrap_or(Err(OpenError::Stopped))
    }

    /// Asks `node` for a sign of life, and waits for one; `false` at once if there is no connection to it. Has no time
    /// limit of its own.
    pub async fn ask(&self, node: NodeId) -> bool {
        self.question(node, Question::Alive).await
    }

    /// The same, and sends a packet as large as the path is believed to carry beside it: if the path no longer does, a
    /// few of them are how that is noticed.
    pub async fn probe(&self, node: NodeId) -> bool {
        self.question(node, Question::Path).await
    }

    async fn question(&self, node: NodeId, question: Question) -> bool {
        let (reply, answer) = oneshot::channel();
        self.0.wake.send(Command::Ask(node, question, reply));
        answer.await.is_ok()
    }

    /// The peers, sorted by id; none once stopped.
    pub async fn status(&self) -> Vec<PeerStatus> {
        let (reply, answer) = oneshot::channel();
        self.0.wake.send(Command::Status(reply));
        answer.await.unwrap_or_default()
    }

    /// Packet counts.
    pub fn counters(&self) -> &Counters {
        &self.0.counters
    }

    /// Tells the peers and ends the thread. Devices stay as they are.
    pub fn stop(&self) {
        self.0.stop();
    }
}

impl Inner {
    fn stop(&self) {
        self.wake.send(Command::Stop);
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(thread) = thread
            && thread.join().is_err()
        {
            tracing::error!("the overlay's data thread has panicked");
        }
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.stop();
    }
}
