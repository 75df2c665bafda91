//! Overlay networks on this node: a namespace each, containers attached, virtual IPs rendered.
//!
//! A network's namespace holds its gateway address (on `lo`), one veth per container with proxy ARP, and the
//! TUN [`TUN_NAME`] that leads to the other nodes: no bridge, no flooding. Everything is found by name, so a
//! daemon that restarts calls the same functions again, and what is right already stays untouched.
//!
//! Netfilter calls block the caller: [`Network::render`] for about 10 ms (100 services, and a walk through the
//! kernel's table of connections), so it belongs on a blocking thread.

use std::{
    collections::BTreeSet,
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4},
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
};

use socket2::{Domain, Protocol, Socket, Type};

use crate::{
    decide::policy::Policy,
    device::{
        Error, Result,
        conntrack::{self, Conntrack},
        link::{Links, Route},
        netns::Netns,
        nft::Nft,
        tun,
    },
    peer::{DATAGRAM_MAX, seal::OVERHEAD},
};

mod filter;
mod guard;
mod sandbox;
mod uplink;

pub use filter::Vip;
pub use sandbox::{DnsSockets, NAME_SERVER, Sandbox};
pub use uplink::{Uplink, UplinkReport};

/// The TUN that leads to the other nodes.
pub const TUN_NAME: &str = "ov0";
/// The largest packet of an overlay network on links that carry 1500 bytes, in bytes.
pub const MTU_DEFAULT: u32 = 1400;

/// Marks packets for sockets bound to a client's address; see [`Network::connect_from`].
const TRANSPARENT_MARK: u32 = 1;
/// The routing table that takes such packets to this namespace.
const TRANSPARENT_TABLE: u32 = 100;
/// The table routes are in that name none.
const MAIN_TABLE: u32 = 254;
const TRANSPARENT_PRIORITY: u32 = 100;

/// What an overlay network looks like on every node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Spec {
    /// Where the namespace is pinned; a path of its own for each network and node.
    pub pin: PathBuf,
    /// The network's addresses.
    pub subnet: Ipv4Addr,
    /// The length of the subnet's prefix, in bits.
    pub prefix_len: u8,
    /// The containers' gateway and name server, within the subnet; the same on all nodes.
    pub gateway: Ipv4Addr,
    /// The largest packet, in bytes; see [`MTU_DEFAULT`].
    pub mtu: u32,
    /// How many queues the TUN has: one for each thread that serves it.
    pub queues: usize,
}

impl Spec {
    fn mask(&self) -> u32 {
        u32::MAX.checked_shl(32_u32.saturating_sub(self.prefix_len.into())).unwrap_or(0)
    }

    /// Whether an address is within the subnet.
    pub fn holds(&self, address: Ipv4Addr) -> bool {
        let mask = self.mask();
        u32::from(address) & mask == u32::from(self.subnet) & mask
    }

    /// The first address of the subnet, in which the gateway must be.
    fn checked_subnet(&self) -> Result<Ipv4Addr> {
        let mask = self.mask();
        let first = u32::from(self.subnet) & mask;
        if self.prefix_len > 32 || u32::from(self.gateway) & mask != first {
            let source = io::Error::new(io::ErrorKind::InvalidInput, "the gateway is not within the subnet");
            let action = format!("use gateway {} in {}/{}", self.gateway, self.subnet, self.prefix_len);
            return Err(Error::new(action, format_args!("network {}", self.pin.display()), source));
        }
        Ok(Ipv4Addr::from(first))
    }
}

/// What a container gets in one network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attachment {
    /// The name of the link inside the container: `eth0`, `eth1`, …
    pub link: String,
    /// The container's address.
    pub address: Ipv4Addr,
    /// Whether the container's default route goes here: true for its first network only.
    pub default_route: bool,
}

/// The services of a network, as a whole.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Backends {
    /// Every virtual IP; one that is missing is forgotten.
    pub vips: Vec<Vip>,
    /// Who may connect to whom.
    pub policy: Policy,
}

/// What [`Network::render`] did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rendered {
    /// Whether the packet filter changed.
    pub changed: bool,
    /// How many tracked connections to backends that are gone, or that are no longer allowed, were forgotten.
    pub forgotten: usize,
}

/// An overlay network on this node.
#[derive(Debug)]
pub struct Network {
    spec: Spec,
    netns: Netns,
    links: Links,
    nft: Nft,
    conntrack: Conntrack,
    /// What the tracked connections were last compared with.
    swept: Mutex<Option<Backends>>,
    /// Whether there is a TUN.
    tun: bool,
}

impl Network {
    /// Makes the network, or what is missing of it, and opens its TUN: the descriptors, one for each queue,
    /// carry the packets for other nodes (see [`tun::open`]).
    ///
    /// Fails with `EBUSY` while another process holds the TUN, and with `InvalidInput` if the gateway is not
    /// within the subnet. In a user namespace to which the machine denies the device there is no TUN, and no
    /// descriptor: the network then ends at this node.
    pub async fn ensure(spec: Spec) -> Result<(Self, Vec<OwnedFd>)> {
        spec.checked_subnet()?;
        let netns = Netns::ensure(&spec.pin)?;
        let links = Links::open(&netns)?;
        let queues = match open_tun(&spec, &netns, &links).await {
            // An ordinary user whose machine keeps the device to root. What is published still goes its way.
            Err(error) if is_inside_user_namespace() && error.errno() == Some(libc::EACCES) => {
                tracing::warn!(%error, "containers of this network do not reach those on other nodes");
                Vec::new()
            }
            opened => opened?,
        };
        let (nft, conntrack) = (Nft::open(&netns)?, Conntrack::open(&netns)?);
        let swept = Mutex::default();
        let network = Self { spec, netns, links, nft, conntrack, swept, tun: !queues.is_empty() };
        network.settle().await?;
        Ok((network, queues))
    }

    /// Makes the namespace's settings, addresses and routes what they should be: what is right already stays. Fails if
    /// the TUN is gone; then the network has to be made again.
    pub async fn settle(&self) -> Result<()> {
        let Self { spec, netns, links, tun, .. } = self;
        *self.swept.lock().unwrap_or_else(PoisonError::into_inner) = None;
        let subnet = spec.checked_subnet()?;
        netns.set_sysctls(&[
            ("net/ipv4/ip_forward", "1"),
            ("net/ipv4/conf/all/rp_filter", "0"),
            ("net/ipv4/conf/default/rp_filter", "0"),
            ("net/ipv4/conf/all/send_redirects", "0"),
            ("net/ipv4/conf/default/send_redirects", "0"),
        ])?;
        // Neighbour discovery would only be noise on the TUN. A kernel without IPv6 has no such setting.
        for scope in ["all", "default"] {
            match netns.set_sysctls(&[(&format!("net/ipv6/conf/{scope}/disable_ipv6"), "1")]) {
                Err(error) if !error.is_missing() => return Err(error),
                _ => {}
            }
        }
        // What arrives out of order, or late, still belongs to its connection. Inside a user namespace that is not ours
        // to say; then the kernel's own opinion of it stands.
        if let Err(error) = netns.set_sysctls(&[("net/netfilter/nf_conntrack_tcp_be_liberal", "1")]) {
            tracing::debug!(%error, "connection tracking stays strict");
        }
        links.set_up("lo").await?;
        links.ensure_address("lo", spec.gateway.into(), 32).await?;
        if *tun {
            netns.set_sysctls(&[(&format!("net/ipv4/conf/{TUN_NAME}/rp_filter"), "0")])?;
            links.ensure_mtu(TUN_NAME, spec.mtu).await?;
            links.set_up(TUN_NAME).await?;
            links.ensure_route(&Route::direct(subnet.into(), spec.prefix_len, TUN_NAME)).await?;
        }

        links.ensure_mark_rule(false, TRANSPARENT_MARK, TRANSPARENT_TABLE, TRANSPARENT_PRIORITY).await?;
        let local = Route {
            dev: Some("lo".to_owned()),
            table: Some(TRANSPARENT_TABLE),
            local: true,
            ..Route::default()
        };
        links.ensure_route(&local).await
    }

    /// Removes the network pinned at `pin`, with its TUN and the containers' links in it, if it is there.
    pub async fn remove(pin: &Path) -> Result<()> {
        match Netns::open(pin) {
            Ok(netns) => {
                let links = Links::open(&netns)?;
                // A descriptor somewhere must not keep the device, and with it the namespace, alive.
                for link in links.list().await? {
                    if link.name != "lo" && !link.kind.is_empty() {
                        links.delete(&link.name).await?;
                    }
                }
            }
            Err(error) if error.is_missing() => {}
            Err(error) => return Err(error),
        }
        Netns::remove(pin)
    }

    /// What the network was made from.
    pub fn spec(&self) -> &Spec {
        &self.spec
    }

    /// Its namespace.
    pub fn netns(&self) -> &Netns {
        &self.netns
    }

    /// Its links.
    pub fn links(&self) -> &Links {
        &self.links
    }

    /// Attaches a container, or mends what is wrong of that. Attachments of other names are left alone.
    /// What the container sends from an address that is not its own is dropped.
    pub async fn attach(&self, sandbox: &Sandbox, attachment: &Attachment) -> Result<()> {
        let (near, far) = (near_link(sandbox.id(), &attachment.link), attachment.link.as_str());
        let there = sandbox.links();
        let made = self.links.ensure_veth(&near, self.spec.mtu, far, there).await?;
        self.links.set_proxy_arp(&near)?;
        // Strictly: the way back to the source must be this link.
        self.netns.set_sysctls(&[(&format!("net/ipv4/conf/{near}/rp_filter"), "1")])?;
        self.links.set_up(&near).await?;
        let address = IpAddr::V4(attachment.address);
        if !made {
            self.forget_other_routes(&near, address).await?;
        }
        self.links.ensure_route(&Route::direct(address, 32, &near)).await?;

        for (old, prefix_len) in there.addresses(far).await? {
            if old.is_ipv4() && (old, prefix_len) != (address, self.spec.prefix_len) {
                there.remove_address(far, old, prefix_len).await?;
            }
        }
        there.ensure_address(far, address, self.spec.prefix_len).await?;
        // Larger ones only cost more; and a kernel that does not know the setting works without it.
        if let Err(error) = there.set_segments_max(far, segments_max(self.spec.mtu)).await {
            tracing::debug!(%error, "large packets leave as they are");
        }
        there.set_up(far).await?;
        if attachment.default_route {
            there.ensure_route(&Route::default_via(self.spec.gateway.into())).await?;
        }
        Ok(())
    }

    /// Takes the link `link` of container `sandbox` away, at both ends, if it is there. The container's
    /// namespace need not exist any more.
    pub async fn detach(&self, sandbox: &str, link: &str) -> Result<()> {
        self.links.delete(&near_link(sandbox, link)).await
    }

    /// Takes away all containers' links but these (container id, link): for a daemon that finds after a
    /// restart what it no longer knows.
    pub async fn detach_all_but<'a>(&self, keep: impl IntoIterator<Item = (&'a str, &'a str)>) -> Result<()> {
        let keep: BTreeSet<String> =
            keep.into_iter().map(|(sandbox, link)| near_link(sandbox, link)).collect();
        for link in self.links.list().await? {
            if link.kind == "veth" && link.name.starts_with(NEAR_PREFIX) && !keep.contains(&link.name) {
                self.links.delete(&link.name).await?;
            }
        }
        Ok(())
    }

    /// The addresses of the containers attached on this node, as the kernel has them.
    pub async fn attached(&self) -> Result<BTreeSet<Ipv4Addr>> {
        let routes = self.links.routes(false, Some(MAIN_TABLE)).await?;
        Ok(routes
            .into_iter()
            .filter(|route| route.dev.as_deref().is_some_and(|dev| dev.starts_with(NEAR_PREFIX)))
            .filter_map(|route| match route.destination {
                Some((IpAddr::V4(address), 32)) => Some(address),
                _ => None,
            })
            .collect())
    }

    /// Makes the virtual IPs and the policy exactly these, in one step, then forgets the tracked connections that lead
    /// to backends which are gone (to draining ones only those of UDP, which would never end, and in time those that
    /// have had no answer), and those that are no longer allowed, whose next packet is refused. To be called at each
    /// change: what is right already stays. Connections are looked at when some may have to end, and anew after
    /// [`Network::settle`].
    pub fn render(&self, backends: &Backends) -> Result<Rendered> {
        let changed = self.nft.ensure(&filter::table(&self.spec, backends))?;
        let mut swept = self.swept.lock().unwrap_or_else(PoisonError::into_inner);
        // The kernel walks through the connections of all namespaces, which takes long where there are many.
        let mut forgotten = 0;
        if swept.as_ref().is_none_or(|before| filter::ends_connections(before, backends)) {
            *swept = None;
            let keepers = filter::Keepers::of(&self.spec, backends);
            forgotten = self.conntrack.delete(|connection| keepers.is_stale(connection))?;
        }
        *swept = Some(backends.clone());
        Ok(Rendered { changed, forgotten })
    }

    /// Connects to a container of this network from the client's own address, so that the container sees
    /// who calls. If another connection uses that very port, one from the same address and a free port is
    /// made. Dropping the future gives the attempt up; it has no time limit of its own.
    ///
    /// The answers find back only if the container's default route leads to this network.
    pub async fn connect_from(
        &self,
        client: SocketAddrV4,
        to: SocketAddrV4,
    ) -> io::Result<tokio::net::TcpStream> {
        match self.connect_from_exactly(client, to).await {
            Err(error)
                if matches!(error.kind(), io::ErrorKind::AddrInUse | io::ErrorKind::AddrNotAvailable) =>
            {
                self.connect_from_exactly(SocketAddrV4::new(*client.ip(), 0), to).await
            }
            connected => connected,
        }
    }

    /// A nonblocking socket that exchanges datagrams with a container of this network from the client's own address, so
    /// that the container sees who calls. If that very address is in use here, by another flow of the same client, it
    /// is the gateway's.
    ///
    /// The answers find back only if the container's default route leads to this network.
    pub fn datagrams_from(&self, client: SocketAddrV4, to: SocketAddrV4) -> io::Result<std::net::UdpSocket> {
        let open = |from: SocketAddrV4| {
            let socket = Socket::new(Domain::IPV4, Type::DGRAM.nonblocking().cloexec(), Some(Protocol::UDP))?;
            socket.set_ip_transparent_v4(true)?;
            socket.bind(&from.into())?;
            socket.connect(&to.into())?;
            io::Result::Ok(socket.into())
        };
        let opened = self.netns.run(|| match open(client) {
            Err(error)
                if matches!(error.kind(), io::ErrorKind::AddrInUse | io::ErrorKind::AddrNotAvailable) =>
            {
                open(SocketAddrV4::new(self.spec.gateway, 0))
            }
            opened => opened,
        });
        opened.map_err(io::Error::other)?
    }

    async fn forget_other_routes(&self, near: &str, address: IpAddr) -> Result<()> {
        for route in self.links.routes(false, Some(MAIN_TABLE)).await? {
            if route.dev.as_deref() == Some(near) && route.destination != Some((address, 32)) {
                self.links.remove_route(&route).await?;
            }
        }
        Ok(())
    }

    async fn connect_from_exactly(
        &self,
        client: SocketAddrV4,
        to: SocketAddrV4,
    ) -> io::Result<tokio::net::TcpStream> {
        let socket = self.netns.run(|| transparent_socket(client)).map_err(io::Error::other)??;
        tokio::net::TcpSocket::from_std_stream(socket.into()).connect(SocketAddr::V4(to)).await
    }
}

/// What the links of containers begin with, in the network's namespace.
const NEAR_PREFIX: &str = "v";

/// The name of the network's end of a container's link.
fn near_link(sandbox: &str, link: &str) -> String {
    short_name(NEAR_PREFIX, &format!("{sandbox}/{link}"))
}

/// A link name of at most 15 bytes: the prefix, of one or two, and 13 letters made of all 64 bits of a hash of
/// `id` (FNV-1a). It is the same after a restart and on every build.
fn short_name(prefix: &str, id: &str) -> String {
    const LETTERS: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyz234567";
    let hash = id.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    let letters = (0..13).map(|place| char::from(LETTERS[(hash >> (place * 5)) as usize & 31]));
    prefix.chars().chain(letters).collect()
}

/// How many packets of `mtu` bytes fit into one call of the overlay's socket: a large packet that a container hands over
/// should leave in one piece and arrive in one, not in one and a rest.
fn segments_max(mtu: u32) -> u32 {
    (DATAGRAM_MAX as u32 / (mtu + OVERHEAD as u32)).clamp(1, 64)
}

async fn open_tun(spec: &Spec, netns: &Netns, links: &Links) -> Result<Vec<OwnedFd>> {
    let options = tun::Options { queues: spec.queues, ..tun::Options::default() };
    match tun::open(netns, TUN_NAME, options) {
        // It was made with another number of queues; nothing but our routes depends on it.
        Err(error) if error.errno() == Some(libc::EINVAL) => {
            links.delete(TUN_NAME).await?;
            tun::open(netns, TUN_NAME, options)
        }
        opened => opened,
    }
}

/// Whether this process is root of a user namespace only.
fn is_inside_user_namespace() -> bool {
    let map = std::fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    !map.split_whitespace().eq(["0", "0", "4294967295"])
}

fn transparent_socket(client: SocketAddrV4) -> io::Result<Socket> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM.nonblocking().cloexec(), Some(Protocol::TCP))?;
    socket.set_ip_transparent_v4(true)?;
    socket.set_reuse_address(true)?;
    socket.bind(&client.into())?;
    Ok(socket)
}

/// Forgets what is tracked of connections to `destination`, whatever it was rewritten to.
fn forget_connections_to(netns: &Netns, destination: Ipv4Addr) -> Result<usize> {
    Conntrack::open(netns)?.delete(|connection: &conntrack::Connection| {
        connection.original.destination == IpAddr::V4(destination)
    })
}

/// An error of `action` in `netns`.
fn failed(action: impl Into<String>, netns: &Netns) -> impl FnOnce(io::Error) -> Error {
    let (action, place) = (action.into(), netns.to_string());
    move |source| Error::new(action, place, source)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn link_names_fit_and_differ() {
        let names: BTreeSet<String> = (0..2000)
            .flat_map(|n| ["eth0", "eth1"].map(|link| near_link(&format!("task-{n}"), link)))
            .collect();
        assert_eq!(names.len(), 4000);
        assert!(names.iter().all(|name| name.len() <= crate::device::link::NAME_LEN_MAX));
        assert_eq!(near_link("a", "eth0"), near_link("a", "eth0"));
    }
}
