//! The overlay of one node, as a whole: takes tables, keeps networks, containers, virtual addresses, published ports
//! and names in step with them, and with whom the data path can hear.
//!
//! One task owns all of it; [`Overlay`] is its handle. Kernel state outlives the daemon: a new one finds it again by
//! applying the same table and attaching the same containers.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fmt, io,
    net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError, RwLock, atomic::AtomicUsize},
    time::Duration,
};

use tokio::{
    sync::{mpsc, oneshot, watch},
    time::{Instant, sleep_until},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    decide::{
        balance,
        ended::Ended,
        forward::{Reason, Routes},
    },
    device::{self, netns::Netns},
    ingress::{self, Connect, Connecting, Ingress, PortEvent, PortState, Ports},
    network::{self, Attachment, Backends, Sandbox, Spec, Uplink, Vip},
    peer::{self, Mesh, PeerStatus, StartError},
    resolver::Resolver,
    table::{Invalid, NetworkId, NodeId, Protocol, Table},
    view::View,
};

/// Everything is compared with the kernel this often, in case somebody else has changed it.
const RECONCILE_EVERY: Duration = Duration::from_secs(30);
/// What went wrong is tried again after this long.
const RETRY_AFTER: Duration = Duration::from_secs(1);
/// How long a peer may take to hear that a task has ended.
const TELL_PATIENCE: Duration = Duration::from_secs(5);
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
            limit: Ingress::permits(),
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

/// The networks that exist here, for those who connect to tasks in them.
#[derive(Debug, Default)]
struct Networks(RwLock<HashMap<NetworkId, Arc<network::Network>>>);

impl Networks {
    fn get(&self, id: NetworkId) -> Option<Arc<network::Network>> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).get(&id).cloned()
    }

    fn insert(&self, id: NetworkId, network: Arc<network::Network>) {
        self.0.write().unwrap_or_else(PoisonError::into_inner).insert(id, network);
    }

    fn remove(&self, id: NetworkId) {
        self.0.write().unwrap_or_else(PoisonError::into_inner).remove(&id);
    }

    fn ids(&self) -> BTreeSet<NetworkId> {
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

struct Attached {
    networks: Vec<(NetworkId, Ipv4Addr)>,
    /// Ends its name server.
    dns: CancellationToken,
}

/// The owner of everything.
struct Keeper {
    node: NodeId,
    mesh: Mesh,
    run_dir: PathBuf,
    /// The host's namespace, if containers may reach the world through it.
    host: Option<Netns>,
    networks: Arc<Networks>,
    ports: Ports,
    resolver: Arc<Resolver>,
    view: watch::Sender<View>,
    /// The table as the managers have told it; that of the view lacks what has ended since.
    told: Arc<Table>,
    ended: Ended,
    tracker: TaskTracker,
    events: mpsc::UnboundedSender<Event>,
    stop: CancellationToken,
    sandboxes: BTreeMap<String, Attached>,
    problems: BTreeMap<NetworkId, String>,
    dropped_by: BTreeSet<String>,
    /// When to compare with the kernel next.
    look_at: Instant,
}

/// What the owner hears from the other parts.
struct Hearing {
    peers: mpsc::UnboundedReceiver<peer::Event>,
    ports: mpsc::UnboundedReceiver<PortEvent>,
    /// Nodes that say a task of theirs has ended.
    ended: mpsc::Receiver<(NodeId, NetworkId, Ipv4Addr)>,
}

impl Keeper {
    async fn run(mut self, mut calls: mpsc::Receiver<Call>, mut hearing: Hearing) {
        loop {
            let pruned_at = self.ended.next().map_or(self.look_at, Instant::from_std);
            tokio::select! {
                () = self.stop.cancelled() => break,
                call = calls.recv() => match call {
                    Some(call) => self.serve(call).await,
                    None => break,
                },
                event = hearing.peers.recv() => match event {
                    Some(event) => self.heed(event).await,
                    None => {
                        tracing::error!("the overlay's data thread has ended; the overlay stops");
                        break;
                    }
                },
                Some(event) = hearing.ports.recv() => self.tell(Event::Port(event)),
                Some((node, network, address)) = hearing.ended.recv() => {
                    self.note_ended(&node, &[(network, address)]).await;
                }
                () = sleep_until(self.look_at) => self.mend().await,
                () = sleep_until(pruned_at) => self.look().await,
            }
        }
        self.stop.cancel();
        let mesh = self.mesh.clone();
        // Joins the data thread.
        if tokio::task::spawn_blocking(move || mesh.stop()).await.is_err() {
            tracing::error!("the overlay's data thread could not be stopped");
        }
    }

    async fn serve(&mut self, call: Call) {
        // Whoever has given up waiting needs no answer.
        match call {
            Call::Apply(table, reply) => drop(reply.send(self.apply(table).await)),
            Call::Attach(attach, reply) => drop(reply.send(self.attach(attach).await)),
            Call::Detach(sandbox, reply) => drop(reply.send(self.detach(&sandbox).await)),
            Call::Ended(places, reply) => {
                self.tell_peers(&places);
                let node = self.node.clone();
                self.note_ended(&node, &places).await;
                drop(reply.send(Ok(())));
            }
            Call::Mend(reply) => {
                self.mend().await;
                drop(reply.send(Ok(())));
            }
            Call::Status(reply) => drop(reply.send(self.status().await)),
            Call::Purge(reply) => drop(reply.send(self.purge().await)),
        }
    }

    fn tell(&self, event: Event) {
        // Nobody listens any more only while the node stops.
        let _ = self.events.send(event);
    }

    async fn apply(&mut self, table: Table) -> Result<(), Error> {
        table.check()?;
        let current = self.view.borrow().table.generation;
        if table.generation < current {
            return Err(Invalid::Stale { given: table.generation, current }.into());
        }
        self.mesh.route(Routes::new(&table, &self.node));
        self.told = Arc::new(table);
        self.see();
        self.reconcile().await;
        Ok(())
    }

    /// Shows everyone the table that was told, without what is known to have ended.
    fn see(&mut self) {
        self.ended.prune(&self.told, std::time::Instant::now());
        let table = self.ended.taken_from((*self.told).clone());
        let suspects: BTreeSet<NodeId> = {
            let view = self.view.borrow();
            let listed = |node: &&NodeId| table.nodes.iter().any(|listed| listed.id == **node);
            view.suspects.iter().filter(listed).cloned().collect()
        };
        self.view.send_replace(View::new(table).suspecting(suspects));
    }

    /// What has ended may be used again if the managers insist.
    async fn look(&mut self) {
        self.see();
        self.render().await;
    }

    /// `node` says that these tasks of its own have ended.
    async fn note_ended(&mut self, node: &NodeId, places: &[(NetworkId, Ipv4Addr)]) {
        let now = std::time::Instant::now();
        let mut news = false;
        for place in places {
            news |= self.ended.note(&self.told, node, *place, now);
        }
        if news {
            tracing::debug!(%node, ?places, "ended, and taken out of its services");
            self.look().await;
        }
    }

    /// Tells all peers that tasks of this node have ended. Who cannot be reached learns it from the managers.
    fn tell_peers(&self, places: &[(NetworkId, Ipv4Addr)]) {
        for node in self.told.nodes.iter().filter(|node| node.id != self.node) {
            for (network, address) in places {
                let (mesh, stop, id) = (self.mesh.clone(), self.stop.clone(), node.id.clone());
                let notice = ingress::ended_notice(*network, *address);
                self.tracker.spawn(async move {
                    let told = async {
                        let mut stream = mesh.open(id.clone()).await.ok()?;
                        stream.sender.send(notice).await.ok()?;
                        stream.sender.finish().await.ok()?;
                        // The peer ends its side when it has heard.
                        stream.receiver.receive().await.ok()
                    };
                    tokio::select! {
                        () = stop.cancelled() => {}
                        heard = tokio::time::timeout(TELL_PATIENCE, told) => {
                            tracing::debug!(peer = %id, heard = matches!(heard, Ok(Some(_))), "told that a task has ended");
                        }
                    }
                });
            }
        }
    }

    /// Makes the kernel agree with the table, and with what it was made to be before.
    async fn mend(&mut self) {
        for id in self.networks.ids() {
            let Some(network) = self.networks.get(id) else { continue };
            if let Err(error) = self.mend_network(id, &network).await {
                self.problem(id, &error);
                // Made anew, below or when it is tried again.
                self.mesh.remove_device(id);
                self.networks.remove(id);
            }
        }
        self.reconcile().await;
    }

    async fn mend_network(&self, id: NetworkId, network: &network::Network) -> Result<(), Error> {
        network.settle().await?;
        let internal = self.told.network(id).is_some_and(|network| network.internal);
        if let Some(uplink) = self.uplink(id).filter(|_| !internal) {
            uplink.ensure(network.links(), network.spec().mtu).await?;
        }
        for (name, attached) in &self.sandboxes {
            let places = attached.networks.iter().zip(0..);
            for ((_, address), number) in places.filter(|((network, _), _)| *network == id) {
                let sandbox = Sandbox::ensure(name, &sandbox_pin(&self.run_dir, name)).await?;
                network.attach(&sandbox, &attachment(*address, number)).await?;
            }
        }
        Ok(())
    }

    async fn heed(&mut self, event: peer::Event) {
        let mut suspects = (*self.view.borrow().suspects).clone();
        let changed = match &event {
            peer::Event::Suspect(node) => suspects.insert(node.clone()),
            peer::Event::Recovered(node) => suspects.remove(node),
            peer::Event::Connected(_) | peer::Event::Refused { .. } => false,
        };
        if changed {
            self.view.send_modify(|view| view.suspects = Arc::new(suspects));
            self.render().await;
        }
        self.tell(Event::Peer(event));
    }

    /// Makes the kernel agree with the table.
    async fn reconcile(&mut self) {
        let table = self.view.borrow().table.clone();
        let mut needed: BTreeSet<NetworkId> = table
            .endpoints
            .iter()
            .filter(|endpoint| endpoint.node == self.node)
            .map(|endpoint| endpoint.network)
            .collect();
        needed
            .extend(self.sandboxes.values().flat_map(|attached| attached.networks.iter().map(|(id, _)| *id)));
        self.problems.retain(|id, _| needed.contains(id));
        for id in &needed {
            if let Err(error) = self.ensure_network(*id).await
                && table.network(*id).is_some()
            {
                self.problem(*id, &error);
            } else {
                self.problems.remove(id);
            }
        }
        for id in self.networks.ids().difference(&needed) {
            if let Err(error) = self.remove_network(*id).await {
                self.problem(*id, &error);
            }
        }
        // Left by an earlier daemon, and not in the cluster any more.
        for id in self.pinned_networks() {
            if !needed.contains(&id) && table.network(id).is_none() && table.generation > 0 {
                tracing::info!(network = %id, "removing a network left by an earlier daemon");
                if let Err(error) = self.remove_network(id).await {
                    self.problem(id, &error);
                }
            }
        }
        self.render().await;
    }

    fn problem(&mut self, network: NetworkId, error: &dyn std::error::Error) {
        let why = chain(error);
        if self.problems.get(&network) != Some(&why) {
            tracing::warn!(%network, why, "network is not as it should be");
            self.tell(Event::Network { network, why: why.clone() });
            self.problems.insert(network, why);
        }
    }

    /// Makes the virtual addresses of all networks lead to the backends that answer.
    async fn render(&mut self) {
        let view = self.view.borrow().clone();
        for id in self.networks.ids() {
            let Some(network) = self.networks.get(id) else { continue };
            let backends = backends(&view, id);
            let rendered = tokio::task::spawn_blocking(move || network.render(&backends)).await;
            match rendered {
                Ok(Ok(rendered)) => {
                    tracing::debug!(network = %id, rendered.changed, rendered.forgotten, "virtual addresses");
                }
                Ok(Err(error)) => self.problem(id, &error),
                Err(error) => self.problem(id, &error),
            }
        }
        let pause = if self.problems.is_empty() { RECONCILE_EVERY } else { RETRY_AFTER };
        self.look_at = Instant::now() + pause;
    }

    async fn ensure_network(&mut self, id: NetworkId) -> Result<Arc<network::Network>, Error> {
        let (spec, internal) = {
            let view = self.view.borrow();
            let network = view.table.network(id).ok_or(Error::UnknownNetwork(id))?;
            let spec = Spec {
                pin: network_pin(&self.run_dir, id),
                subnet: network.subnet,
                prefix_len: network.prefix,
                gateway: network.gateway,
                mtu: u32::from(network.mtu),
                queues: 1,
            };
            (spec, network.internal)
        };
        if let Some(network) = self.networks.get(id) {
            if *network.spec() == spec {
                return Ok(network);
            }
            // The descriptor is closed by the data thread; until then the TUN is busy, and this is tried again.
            self.mesh.remove_device(id);
            self.networks.remove(id);
        }
        let mtu = spec.mtu;
        let (network, tun) = network::Network::ensure(spec).await?;
        if let Some(uplink) = self.uplink(id).filter(|_| !internal) {
            let report = uplink.ensure(network.links(), mtu).await?;
            self.dropped_by.extend(report.dropped_by);
        }
        for queue in tun {
            self.mesh.add_device(id, queue);
        }
        let network = Arc::new(network);
        self.networks.insert(id, network.clone());
        Ok(network)
    }

    async fn remove_network(&mut self, id: NetworkId) -> Result<(), Error> {
        self.mesh.remove_device(id);
        self.networks.remove(id);
        if let Some(uplink) = self.uplink(id) {
            uplink.remove(None).await?;
        }
        network::Network::remove(&network_pin(&self.run_dir, id)).await?;
        Ok(())
    }

    fn uplink(&self, id: NetworkId) -> Option<Uplink> {
        let host = self.host.clone()?;
        Some(Uplink { host, id: format!("{}/{id}", self.node) })
    }

    async fn attach(&mut self, attach: Attach) -> Result<PathBuf, Error> {
        let Attach { sandbox: name, networks, upstreams } = attach;
        if name.is_empty() || name.contains('/') || name.starts_with('.') {
            return Err(Error::Name(name));
        }
        let pin = sandbox_pin(&self.run_dir, &name);
        let sandbox = Sandbox::ensure(&name, &pin).await?;
        let mut ids = Vec::new();
        for ((id, address), number) in networks.iter().zip(0..) {
            let network = self.ensure_network(*id).await?;
            network.attach(&sandbox, &attachment(*address, number)).await?;
            ids.push(*id);
        }
        // Rendered before the container can send, so that no packet meets a network without its services.
        self.render().await;
        let dns = self.stop.child_token();
        let sockets = tokio::task::spawn_blocking(move || sandbox.open_dns()).await.map_err(|source| {
            Error::Io { what: "open the name server's sockets".into(), source: source.into() }
        })??;
        self.resolver
            .serve(ids, upstreams, sockets.udp, sockets.tcp, dns.clone())
            .map_err(|source| Error::Io { what: format!("serve names to container {name}"), source })?;
        if let Some(before) = self.sandboxes.insert(name, Attached { networks, dns }) {
            before.dns.cancel();
        }
        Ok(pin)
    }

    async fn detach(&mut self, name: &str) -> Result<(), Error> {
        if name.is_empty() || name.contains('/') || name.starts_with('.') {
            return Err(Error::Name(name.to_owned()));
        }
        if let Some(attached) = self.sandboxes.get(name) {
            attached.dns.cancel();
            for ((id, _), number) in attached.networks.iter().zip(0..) {
                if let Some(network) = self.networks.get(*id) {
                    network.detach(name, &format!("eth{number}")).await?;
                }
            }
        }
        Sandbox::remove(&sandbox_pin(&self.run_dir, name)).await?;
        self.sandboxes.remove(name);
        self.reconcile().await;
        Ok(())
    }

    async fn status(&self) -> Status {
        let counters = self.mesh.counters();
        let generation = self.view.borrow().table.generation;
        Status {
            generation,
            peers: self.mesh.status().await,
            ports: self.ports.lock().unwrap_or_else(PoisonError::into_inner).clone(),
            networks: self
                .networks
                .ids()
                .into_iter()
                .chain(self.problems.keys().copied())
                .map(|id| (id, self.problems.get(&id).cloned()))
                .collect(),
            sandboxes: self.sandboxes.keys().cloned().collect(),
            uplink_dropped_by: self.dropped_by.iter().cloned().collect(),
            packets_sent: counters.sent(),
            packets_received: counters.received(),
            packets_dropped: Reason::ALL
                .into_iter()
                .map(|reason| (reason, counters.dropped(reason)))
                .filter(|(_, count)| *count > 0)
                .collect(),
        }
    }

    async fn purge(&mut self) -> Result<(), Error> {
        for attached in std::mem::take(&mut self.sandboxes).into_values() {
            attached.dns.cancel();
        }
        let listed = |directory: &str| {
            let path = self.run_dir.join(directory);
            file_names(&path).map_err(|source| Error::Io { what: format!("list {}", path.display()), source })
        };
        for name in listed(SANDBOXES)? {
            Sandbox::remove(&sandbox_pin(&self.run_dir, &name)).await?;
        }
        let mut networks = self.networks.ids();
        networks.extend(self.pinned_networks());
        for id in networks {
            self.remove_network(id).await?;
        }
        for directory in [NETWORKS, SANDBOXES] {
            let path = self.run_dir.join(directory);
            match std::fs::remove_dir(&path) {
                Err(source) if source.kind() != io::ErrorKind::NotFound => {
                    return Err(Error::Io { what: format!("remove {}", path.display()), source });
                }
                Ok(()) | Err(_) => {}
            }
        }
        Ok(())
    }

    fn pinned_networks(&self) -> BTreeSet<NetworkId> {
        // A directory that cannot be listed has nothing to adopt.
        let names = file_names(&self.run_dir.join(NETWORKS)).unwrap_or_default();
        names.iter().filter_map(|name| NetworkId::new(u32::from_str_radix(name, 16).ok()?)).collect()
    }
}

/// What a container gets in the network that is its `number`-th.
fn attachment(address: Ipv4Addr, number: usize) -> Attachment {
    Attachment { link: format!("eth{number}"), address, default_route: number == 0 }
}

/// The virtual addresses of `network` with the backends to use.
fn backends(view: &View, network: NetworkId) -> Backends {
    let services = view.table.services.iter().filter(|service| service.network == network);
    let vips = services.filter_map(|service| {
        let node_of = |address: &Ipv4Addr| view.node_of(network, *address).cloned();
        let usable = balance::usable(&service.backends, &view.suspects, node_of);
        Some(Vip {
            address: service.vip?,
            backends: usable.into_iter().collect(),
            draining: service.draining.iter().copied().collect(),
            affinity: false,
        })
    });
    Backends { vips: vips.collect() }
}

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

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text = format!("{text}: {error}");
        source = error.source();
    }
    text
}
