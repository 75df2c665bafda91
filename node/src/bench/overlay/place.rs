//! Machines for measuring: network namespaces with the real overlay in them. Nothing of it is outside of this process
//! but the pins of namespaces in one directory, which goes when the place is dropped.

use super::{flow, wire};
use crate::identity::{ca, random, tls};
use anyhow::{Context, Result, anyhow};
use nix::sched::{CloneFlags, unshare};
use rswarm_netoverlay::device::{link::Links, link::Route, netns::Netns};
use rswarm_netoverlay::table::{self, NodeId, Table};
use rswarm_netoverlay::{Attach, Config, Event, Overlay, peer};
use rustls::pki_types::CertificateDer;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};
use tokio::runtime::Runtime;
use tokio::sync::mpsc;

const CLUSTER: &str = "bench";
const ALPN: &[u8] = b"rswarm-data/1";
const PORT: u16 = 2377;
/// How long certificates are good for.
const LIFE: Duration = Duration::from_secs(24 * 3600);
/// Peers find each other in this time, or something is wrong.
const PATIENCE: Duration = Duration::from_secs(20);

/// A network namespace that nobody else knows; it goes with its last handle.
pub fn fresh() -> Result<Netns> {
    std::thread::spawn(|| {
        unshare(CloneFlags::CLONE_NEWNET).context("cannot make a network namespace; this needs root")?;
        anyhow::Ok(Netns::current()?)
    })
    .join()
    .map_err(|_| anyhow!("the namespace's thread panicked"))?
}

/// A machine: a namespace, and threads inside it.
pub struct Machine {
    /// Its namespace.
    pub netns: Netns,
    runtime: Runtime,
}

impl Machine {
    /// A new one with nothing but the loopback, which forwards packets.
    pub fn new() -> Result<Self> {
        let netns = fresh()?;
        netns.set_sysctls(&[("net/ipv4/ip_forward", "1")])?;
        let machine = Self { runtime: flow::runtime(&netns)?, netns };
        machine.with_links(async |links| Ok(links.set_up("lo").await?))?;
        Ok(machine)
    }

    /// Waits for `future` inside the machine.
    pub fn block_on<T: Send>(&self, future: impl Future<Output = T> + Send) -> Result<T> {
        Ok(self.netns.run(|| self.runtime.block_on(future))?)
    }

    /// Changes the machine's links.
    pub fn with_links(&self, change: impl AsyncFnOnce(Links) -> Result<()> + Send) -> Result<()> {
        self.netns.run(|| self.runtime.block_on(async { change(Links::open(&self.netns)?).await }))?
    }
}

/// Joins two namespaces by a veth; each end has a name, an address and a prefix length. Returns when it is up.
pub fn join(
    machine: &Machine,
    (near, near_name, near_address): (&Netns, &str, Option<(Ipv4Addr, u8)>),
    (far, far_name, far_address): (&Netns, &str, Option<(Ipv4Addr, u8)>),
    mtu: u32,
) -> Result<()> {
    let (near, far) = (near.clone(), far.clone());
    let names = (near_name.to_owned(), far_name.to_owned());
    machine.with_links(async move |_| {
        let (here, there) = (Links::open(&near)?, Links::open(&far)?);
        here.create_veth(&names.0, mtu, &names.1, &far).await?;
        for (links, name, address) in [(&here, &names.0, near_address), (&there, &names.1, far_address)] {
            links.set_up("lo").await?;
            if let Some((address, prefix_len)) = address {
                links.ensure_address(name, IpAddr::V4(address), prefix_len).await?;
            }
            links.set_up(name).await?;
        }
        Ok(())
    })
}

/// Makes the default route of `netns` lead to `gateway`.
pub fn default_route(machine: &Machine, netns: &Netns, gateway: Ipv4Addr) -> Result<()> {
    let netns = netns.clone();
    machine.with_links(async move |_| {
        Ok(Links::open(&netns)?.ensure_route(&Route::default_via(gateway.into())).await?)
    })
}

/// Makes both ends of a wire plain cards.
pub fn plain_wire(ends: [(&Netns, &str); 2]) -> Result<()> {
    ends.into_iter().try_for_each(|(netns, name)| wire::make_plain(netns, name))
}

/// Gives nodes their certificates.
pub struct Authority(ca::Root);

impl Authority {
    /// A new one.
    pub fn new() -> Result<Self> {
        ca::Root::generate(CLUSTER, SystemTime::now()).map(Self)
    }

    /// What `node` needs for its mesh.
    pub fn mesh(&self, node: &NodeId, listen: SocketAddr) -> Result<peer::Config> {
        let (key, csr) = ca::request()?;
        let certificate = self.0.sign(&csr, node.as_str(), CLUSTER, SystemTime::now(), LIFE)?;
        let credentials = tls::Credentials::new(&certificate, &self.0.cert_pem, &key)?;
        let whose = |chain: &[CertificateDer<'_>]| Some(NodeId::new(ca::subject(chain.first()?)?.1));
        Ok(peer::Config {
            node: node.clone(),
            listen,
            server: tls::server(credentials.clone(), &self.0.cert_pem, false, ALPN)?,
            client: tls::client(credentials, &self.0.cert_pem, ALPN)?,
            server_name: ca::any_node(CLUSTER),
            identity: Arc::new(whose),
            reset_key: Some(random()),
        })
    }
}

/// The directory of all pins of a place.
pub struct Pins(PathBuf);

impl Pins {
    /// A new one, below `/run`.
    pub fn new() -> Result<Self> {
        let path = Path::new("/run").join(format!("rswarm-bench-overlay-{}", std::process::id()));
        std::fs::create_dir_all(&path).with_context(|| format!("cannot make {}", path.display()))?;
        Ok(Self(path))
    }
}

impl Drop for Pins {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_dir_all(&self.0) {
            tracing::warn!(%error, path = %self.0.display(), "left behind");
        }
    }
}

/// A node: a machine with the overlay.
pub struct Node {
    /// The machine.
    pub machine: Machine,
    overlay: Overlay,
    /// Kept open: the overlay's words are not needed.
    _events: mpsc::UnboundedReceiver<Event>,
}

impl Node {
    /// Starts the overlay on `machine`, at `underlay`.
    pub fn start(
        machine: Machine,
        authority: &Authority,
        id: &NodeId,
        underlay: Ipv4Addr,
        pins: &Pins,
    ) -> Result<Self> {
        let config = Config {
            mesh: authority.mesh(id, (underlay, PORT).into())?,
            run_dir: pins.0.join(id.as_str()),
            ingress: underlay.into(),
            upstreams: Vec::new(),
            uplink: false,
        };
        let (overlay, events) = machine.block_on(async { Overlay::start(config) })??;
        Ok(Self { machine, overlay, _events: events })
    }

    /// Applies the table and attaches a container; returns its namespace.
    pub fn join(&self, table: &Table, container: &str, address: Ipv4Addr) -> Result<Netns> {
        let networks = table.networks.iter().map(|network| (network.id, address)).collect();
        let attach = Attach { sandbox: container.to_owned(), networks, upstreams: Vec::new() };
        let pin = self.machine.block_on(async {
            self.overlay.apply(table.clone()).await?;
            self.overlay.attach(attach).await
        })??;
        Ok(Netns::open(&pin)?)
    }

    /// Waits until `peers` are connected.
    pub fn connected(&self, peers: usize) -> Result<()> {
        self.machine.block_on(async {
            let deadline = Instant::now() + PATIENCE;
            loop {
                let status = self.overlay.status().await?;
                if status.peers.iter().filter(|peer| peer.connected).count() == peers {
                    return Ok(());
                }
                anyhow::ensure!(Instant::now() < deadline, "the nodes do not find each other");
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        })?
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let purged = self.machine.block_on(self.overlay.purge());
        if let Err(error) = purged.and_then(|purged| Ok(purged?)) {
            tracing::warn!(%error, "a node of the benchmark could not be removed whole");
        }
    }
}

/// The node of that number.
pub fn id(number: usize) -> NodeId {
    NodeId::new(format!("n{number}"))
}

/// A table of one network with a container, `10.50.0.10` and on, on each of these nodes.
pub fn table(underlays: &[Ipv4Addr]) -> Result<Table> {
    let network = table::NetworkId::new(0x50).context("it has 24 bits")?;
    let nodes = underlays.iter().enumerate();
    Ok(Table {
        generation: 1,
        nodes: nodes.clone().map(|(n, ip)| table::Node { id: id(n), underlay: (*ip, PORT).into() }).collect(),
        networks: vec![table::Network {
            id: network,
            subnet: [10, 50, 0, 0].into(),
            prefix: 24,
            gateway: [10, 50, 0, 1].into(),
            mtu: 1400,
            internal: false,
            isolated: false,
        }],
        endpoints: nodes
            .map(|(n, _)| table::Endpoint {
                network,
                address: container(n),
                node: id(n),
                names: Vec::new(),
                service: None,
            })
            .collect(),
        ..Table::default()
    })
}

/// The address of the container on that node.
pub fn container(number: usize) -> Ipv4Addr {
    Ipv4Addr::new(10, 50, 0, 10 + number as u8)
}
