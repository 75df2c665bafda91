//! The overlay of one node, as a whole: takes tables, keeps networks, containers, virtual addresses, published ports
//! and names in step with them, and with whom the data path can hear.
//!
//! One task owns all of it; [`Overlay`] is its handle. Kernel state outlives the daemon: a new one finds it again by
//! applying the same table and attaching the same containers.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt, io,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, atomic::AtomicUsize},
};

use tokio::{
    sync::{mpsc, oneshot, watch},
    time::Instant,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use self::{
    keeper::{Hearing, Keeper, RECONCILE_EVERY},
    networks::Networks,
};
use crate::{
    decide::{ended::Ended, former::Former, forward::Reason, lately::Lately},
    device::{self, netns::Netns},
    ingress::{self, Ingress, PortEvent, PortState, Ports},
    peer::{self, Mesh, PeerStatus, StartError},
    resolver::Resolver,
    table::{Invalid, NetworkId, NodeId, Protocol, Table},
    view::View,
};

mod keeper;
mod networks;

/// Calls that wait for the owning task, at most.
const CALLS: usize = 64;

/// What the overlay needs to start.
#[derive(Debug)]
pub struct Config {
    /// The mesh of nodes.
    pub mesh: peer::Config,
    /// Where namespaces are pinned: networks in `networks/`, containers in `sandboxes/`. Survives the daemon, but not
    /// the machine's restart.
    pub run_dir: PathBuf,
    /// The address on which published ports are served.
    pub ingress: IpAddr,
    /// The host's name servers, asked for names the overlay does not know.
    pub upstreams: Vec<SocketAddr>,
    /// Whether containers may reach the world through the host.
    pub uplink: bool,
}

/// A container's place in the overlay.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attach {
    /// The container, unique on this node for all time.
    pub sandbox: String,
    /// Its networks, with its address in each. The first one has its default route.
    pub networks: Vec<(NetworkId, Ipv4Addr)>,
    /// Name servers for it to ask instead of the host's; none leaves it with those.
    pub upstreams: Vec<SocketAddr>,
}

/// Something a node would act on or report.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A peer.
    Peer(peer::Event),
    /// A published port could not be opened, or can now.
    Port(PortEvent),
    /// A network is not as it should be; tried again on its own.
    Network {
        /// The network.
        network: NetworkId,
        /// What is wrong.
        why: String,
    },
}

/// How the overlay fares.
#[derive(Debug, Clone, Default)]
pub struct Status {
    /// Generation of the table in force.
    pub generation: u64,
    /// The peers.
    pub peers: Vec<PeerStatus>,
    /// Published ports and how they fare.
    pub ports: BTreeMap<(Protocol, u16), PortState>,
    /// The networks on this node; with what is wrong, if anything is.
    pub networks: BTreeMap<NetworkId, Option<String>>,
    /// Containers attached by this daemon.
    pub sandboxes: Vec<String>,
    /// Chains of the host's packet filter in the way of containers that call the world.
    pub uplink_dropped_by: Vec<String>,
    /// Packets given to peers.
    pub packets_sent: u64,
    /// Packets taken from peers.
    pub packets_received: u64,
    /// Packets dropped, by reason; reasons that never occurred are left out.
    pub packets_dropped: BTreeMap<Reason, u64>,
}

/// A call failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The table.
    #[error(transparent)]
    Table(#[from] Invalid),
    /// A container is to be attached to a network no table has listed.
    #[error("network {0} is not in the table this node has; apply it first")]
    UnknownNetwork(NetworkId),
    /// A name that cannot be a file's.
    #[error("\"{0}\" cannot name a container")]
    Name(String),
    /// The kernel.
    #[error("the kernel's part of the overlay is not as it should be")]
    Device(#[from] device::Error),
    /// Files or sockets.
    #[error("cannot {what}")]
    Io {
        /// What was tried.
        what: String,
        /// The system's answer.
        source: io::Error,
    },
    /// The overlay has been shut down.
    #[error("the overlay has stopped")]
    Stopped,
}

type Reply<T> = oneshot::Sender<Result<T, Error>>;

enum Call {
    Apply(Table, Reply<()>),
    Attach(Attach, Reply<PathBuf>),
    Detach(String, Reply<()>),
    Ended(Vec<(NetworkId, Ipv4Addr)>, Reply<()>),
    Mend(Reply<()>),
    Status(oneshot::Sender<Status>),
    Purge(Reply<()>),
}

/// Handle of the overlay. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Overlay {
    calls: mpsc::Sender<Call>,
    mesh: Mesh,
    stop: CancellationToken,
    tracker: TaskTracker,
    listen: SocketAddr,
    run_dir: PathBuf,
}

impl fmt::Debug for Call {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Apply(..) => "apply",
            Self::Attach(..) => "attach",
            Self::Detach(..) => "detach",
            Self::Ended(..) => "ended",
            Self::Mend(..) => "mend",
            Self::Status(..) => "status",
            Self::Purge(..) => "purge",
        })
    }
}

impl Overlay {
    /// Starts the overlay inside the calling thread's network namespace, which has to be the one of all of the
    /// runtime's threads. Nothing exists before [`Overlay::apply`].
    pub fn start(config: Config) -> Result<(Self, mpsc::UnboundedReceiver<Event>), StartError> {
        let host = Netns::current().map_err(|error| StartError::Thread(io::Error::other(error)))?;
        let node = config.mesh.node.clone();
        let (mesh, peer_events, accept) = Mesh::start(config.mesh)?;
        let (stop, tracker) = (CancellationToken::new(), TaskTracker::new());
        let (view, view_receiver) = watch::channel(View::default());
        let (events, event_receiver) = mpsc::unbounded_channel();
        let (port_events, port_event_receiver) = mpsc::unbounded_channel();
        let networks = Arc::new(Networks::default());
        let (ended, ended_receiver) = mpsc::channel(CALLS);
        let ports = Ports::new(Mutex::default());
        let ingress = Arc::new(Ingress {
            node: node.clone(),
            listen: config.ingress,
            mesh: mesh.clone(),
            connector: networks.clone(),
            view: view_receiver.clone(),
            ports: ports.clone(),
            tracker: tracker.clone(),
            stop: stop.clone(),
            turn: AtomicUsize::new(0),
            limit: ingress::Limit::default(),
            ended,
        });
        tracker.spawn(ingress.clone().listen(port_events));
        tracker.spawn(ingress.serve_peers(accept));
        let resolver =
            Resolver { view: view_receiver, upstreams: config.upstreams, tracker: tracker.clone() };
        let (calls, call_receiver) = mpsc::channel(CALLS);
        let listen = mesh.listen();
        let asked = mesh.clone();
        let keeper = Keeper {
            node,
            mesh,
            run_dir: config.run_dir.clone(),
            host: config.uplink.then_some(host),
            networks,
            ports,
            resolver: Arc::new(resolver),
            view,
            told: Arc::default(),
            ended: Ended::default(),
            lately: Lately::default(),
            former: Former::default(),
            events,
            tracker: tracker.clone(),
            stop: stop.clone(),
            sandboxes: BTreeMap::new(),
            problems: BTreeMap::new(),
            dropped_by: BTreeSet::new(),
            look_at: Instant::now() + RECONCILE_EVERY,
        };
        let hearing = Hearing { peers: peer_events, ports: port_event_receiver, ended: ended_receiver };
        tracker.spawn(keeper.run(call_receiver, hearing));
        let overlay = Self { calls, mesh: asked, stop, tracker, listen, run_dir: config.run_dir };
        Ok((overlay, event_receiver))
    }

    /// Where the mesh listens.
    pub fn listen(&self) -> SocketAddr {
        self.listen
    }

    /// Where the network namespace of a container is pinned while it is attached.
    pub fn sandbox_pin(&self, sandbox: &str) -> PathBuf {
        sandbox_pin(&self.run_dir, sandbox)
    }

    /// Makes `table` the one in force; the same generation may be given again. Fails if the table is unsound or older
    /// than the one in force. What the kernel refuses is reported by events and the status, and tried again.
    pub async fn apply(&self, table: Table) -> Result<(), Error> {
        self.call(|reply| Call::Apply(table, reply)).await?
    }

    /// Gives a container its namespace, addresses and name server, or mends them; returns where the namespace is
    /// pinned. To be repeated after a restart of the daemon for each container that still runs.
    pub async fn attach(&self, attach: Attach) -> Result<PathBuf, Error> {
        self.call(|reply| Call::Attach(attach, reply)).await?
    }

    /// Takes a container's namespace and links away, if they are there.
    pub async fn detach(&self, sandbox: &str) -> Result<(), Error> {
        let sandbox = sandbox.to_owned();
        self.call(|reply| Call::Detach(sandbox, reply)).await?
    }

    /// Takes a container that has ended out of all services and published ports, here and on all peers, without
    /// waiting for the managers: they have [`decide::ended::HOLDS`](crate::decide::ended::HOLDS) to agree. Done when
    /// this node's part is; the peers are told meanwhile.
    pub async fn ended(&self, places: Vec<(NetworkId, Ipv4Addr)>) -> Result<(), Error> {
        self.call(|reply| Call::Ended(places, reply)).await?
    }

    /// Compares everything with the kernel now, and mends what somebody else has changed. Happens every 30 s anyway.
    pub async fn mend(&self) -> Result<(), Error> {
        self.call(Call::Mend).await?
    }

    /// The names of containers whose namespaces are pinned, whether attached by this daemon or by an earlier one.
    pub fn pinned(&self) -> io::Result<Vec<String>> {
        file_names(&self.run_dir.join(SANDBOXES))
    }

    /// How it fares.
    pub async fn status(&self) -> Result<Status, Error> {
        self.call(Call::Status).await
    }

    /// Stops serving, and tells the peers. Namespaces, links and rules stay for the containers that go on.
    pub async fn shutdown(&self) {
        self.stop.cancel();
        self.tracker.close();
        self.tracker.wait().await;
    }

    /// Removes everything this overlay or an earlier one in the same directory has made, and shuts down.
    pub async fn purge(&self) -> Result<(), Error> {
        let result = self.call(Call::Purge).await?;
        self.shutdown().await;
        result
    }

    /// Asks `peer` for a sign of life with a packet of the largest size beside the question, and waits for the answer;
    /// `false` at once if there is no connection to it.
    pub async fn probe(&self, peer: NodeId) -> bool {
        self.mesh.probe(peer).await
    }

    async fn call<T>(&self, call: impl FnOnce(oneshot::Sender<T>) -> Call) -> Result<T, Error> {
        let (reply, answer) = oneshot::channel();
        self.calls.send(call(reply)).await.map_err(|_| Error::Stopped)?;
        answer.await.map_err(|_| Error::Stopped)
    }
}

const NETWORKS: &str = "networks";
const SANDBOXES: &str = "sandboxes";

fn network_pin(run_dir: &Path, id: NetworkId) -> PathBuf {
    run_dir.join(NETWORKS).join(id.to_string())
}

fn sandbox_pin(run_dir: &Path, name: &str) -> PathBuf {
    run_dir.join(SANDBOXES).join(name)
}

fn file_names(directory: &Path) -> io::Result<Vec<String>> {
    match std::fs::read_dir(directory) {
        Ok(entries) => entries
            .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
            .collect::<io::Result<Vec<_>>>(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}
