//! Links, addresses, routes and policy rules of one namespace, over route netlink.

use std::{
    fmt,
    future::Future,
    io,
    net::{IpAddr, Ipv4Addr},
    time::Duration,
};

use futures_util::{StreamExt, TryStreamExt};
use rtnetlink::{
    Handle, IpVersion, LinkBridge, LinkMessageBuilder, LinkUnspec, LinkVeth, LinkVxlan, RouteMessageBuilder,
    packet_core::NetlinkMessage,
    packet_route::{
        RouteNetlinkMessage,
        address::AddressAttribute,
        link::{InfoData, InfoKind, InfoVeth, LinkAttribute, LinkFlags, LinkInfo, LinkMessage},
        route::{RouteAddress, RouteAttribute, RouteMessage, RouteScope, RouteType},
        rule::{RuleAction, RuleAttribute},
    },
};

use super::{Error, Result, netns::Netns};

/// The longest name of a link, in bytes.
pub const NAME_LEN_MAX: usize = 15;

/// The UDP port of VXLAN.
const VXLAN_PORT: u16 = 4789;

/// How often, and at first how long, to wait for a name still held by a namespace that is being torn down.
/// The delays double: 2 s altogether.
const HELD_NAME_TRIES: u32 = 11;
const HELD_NAME_DELAY: Duration = Duration::from_millis(1);

/// The links of one namespace. Cheap to clone; belongs to the tokio runtime it was opened on.
#[derive(Clone, Debug)]
pub struct Links {
    handle: Handle,
    netns: Netns,
}

/// A link as the kernel shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// Its number within the namespace.
    pub index: u32,
    /// Its name, at most [`NAME_LEN_MAX`] bytes.
    pub name: String,
    /// The largest packet it takes, in bytes.
    pub mtu: u32,
    /// Whether it is set up (not whether it has a carrier).
    pub up: bool,
    /// `veth`, `bridge`, `tun`; empty for real hardware and the loopback.
    pub kind: String,
    /// The number of the bridge it is a port of.
    pub controller: Option<u32>,
    /// The number of the other end, valid in *its* namespace.
    pub peer: Option<u32>,
}

/// A route: where packets to a destination go.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Route {
    /// Address and prefix length; `None` is the default route (of the gateway's family, else IPv4).
    pub destination: Option<(IpAddr, u8)>,
    /// The next hop.
    pub gateway: Option<IpAddr>,
    /// The link to leave by.
    pub dev: Option<String>,
    /// The table; `None` is the main one.
    pub table: Option<u32>,
    /// Whether the destination is this very namespace (`ip route add local …`).
    pub local: bool,
    /// Whether the gateway is reachable on the link although no address says so.
    pub onlink: bool,
}

impl Route {
    /// To `address`/`prefix_len`, directly on `dev`.
    pub fn direct(address: IpAddr, prefix_len: u8, dev: &str) -> Self {
        Self { destination: Some((address, prefix_len)), dev: Some(dev.to_owned()), ..Self::default() }
    }

    /// The default route through `gateway`.
    pub fn default_via(gateway: IpAddr) -> Self {
        Self { gateway: Some(gateway), ..Self::default() }
    }
}

impl fmt::Display for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.local {
            f.write_str("local ")?;
        }
        match self.destination {
            Some((address, prefix_len)) => write!(f, "{address}/{prefix_len}")?,
            None => f.write_str("default")?,
        }
        if let Some(gateway) = self.gateway {
            write!(f, " via {gateway}")?;
        }
        if let Some(dev) = &self.dev {
            write!(f, " dev {dev}")?;
        }
        if let Some(table) = self.table {
            write!(f, " table {table}")?;
        }
        Ok(())
    }
}

impl Links {
    /// Opens a netlink socket inside `netns`. Must be called within a tokio runtime with I/O.
    pub fn open(netns: &Netns) -> Result<Self> {
        let failed = |source| Error::new("open a route netlink socket", netns, source);
        let runtime =
            tokio::runtime::Handle::try_current().map_err(|error| failed(io::Error::other(error)))?;
        let (connection, handle, _) = netns
            .run(|| {
                let _entered = runtime.enter();
                rtnetlink::new_connection()
            })?
            .map_err(failed)?;
        // Ends by itself when the last handle is dropped.
        runtime.spawn(connection);
        Ok(Self { handle, netns: netns.clone() })
    }

    /// The namespace these links live in.
    pub fn netns(&self) -> &Netns {
        &self.netns
    }

    /// All links of the namespace.
    pub async fn list(&self) -> Result<Vec<Link>> {
        let links = self.handle.link().get().execute();
        links.map_ok(Link::from).try_collect().await.map_err(self.failed("list links"))
    }

    /// The link called `name`, if there is one.
    pub async fn find(&self, name: &str) -> Result<Option<Link>> {
        let mut found = std::pin::pin!(self.handle.link().get().match_name(name).execute());
        match found.try_next().await.map_err(self.failed(format!("look up link {name}"))) {
            Ok(link) => Ok(link.map(Link::from)),
            Err(error) if error.is_missing() => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The link called `name`; its absence is an error.
    pub async fn get(&self, name: &str) -> Result<Link> {
        self.find(name).await?.ok_or_else(|| {
            let source = io::Error::from_raw_os_error(libc::ENODEV);
            Error::new(format!("find link {name}"), &self.netns, source)
        })
    }

    /// Makes a veth pair: `name` here, `peer` directly inside `peer_netns` (never moved there afterwards,
    /// which would cost the kernel a grace period). Waits up to 2 s for names held by a dying namespace.
    pub async fn create_veth(&self, name: &str, mtu: u32, peer: &str, peer_netns: &Netns) -> Result<()> {
        let other = LinkUnspec::new_with_name(peer)
            .mtu(mtu)
            .setns_by_fd(std::os::fd::AsRawFd::as_raw_fd(peer_netns))
            .build();
        let message = LinkMessageBuilder::<LinkVeth>::new(name, peer)
            .mtu(mtu)
            .set_info_data(InfoData::Veth(InfoVeth::Peer(other)))
            .build();
        let action = format!("create veth {name} with peer {peer} in {peer_netns}");
        self.when_name_is_free(|| self.handle.link().add(message.clone()).execute(), action).await
    }

    /// Makes the veth pair unless it exists just so; a link of that name with another peer is replaced.
    /// `there` are the links of the peer's namespace. The flag tells whether the pair was made.
    pub async fn ensure_veth(&self, name: &str, mtu: u32, peer: &str, there: &Links) -> Result<bool> {
        if let (Some(here), Some(other)) = (self.find(name).await?, there.find(peer).await?)
            && (here.peer, other.peer) == (Some(other.index), Some(here.index))
        {
            self.ensure_mtu(name, mtu).await?;
            there.ensure_mtu(peer, mtu).await?;
            return Ok(false);
        }
        self.delete(name).await?;
        there.delete(peer).await?;
        self.create_veth(name, mtu, peer, &there.netns).await?;
        Ok(true)
    }

    /// Makes the bridge `name` if it is missing, and sets it up.
    pub async fn ensure_bridge(&self, name: &str) -> Result<()> {
        if self.find(name).await?.is_none_or(|link| link.kind != "bridge") {
            let message = LinkBridge::new(name).build();
            let action = format!("create bridge {name}");
            self.when_name_is_free(|| self.handle.link().add(message.clone()).execute(), action).await?;
        }
        self.set_up(name).await
    }

    /// Makes the VXLAN device `name`, in plain text to the one machine `remote`, for whoever wants to compare.
    pub async fn create_vxlan(&self, name: &str, vni: u32, local: Ipv4Addr, remote: Ipv4Addr) -> Result<()> {
        let message = LinkVxlan::new(name, vni).local(local).remote(remote).port(VXLAN_PORT).build();
        let action = format!("create vxlan {name}");
        self.when_name_is_free(|| self.handle.link().add(message.clone()).execute(), action).await
    }

    /// Makes link `name` a port of `bridge`.
    pub async fn set_bridge(&self, name: &str, bridge: &str) -> Result<()> {
        let bridge = self.get(bridge).await?;
        self.change(name, "attach", |link| link.controller(bridge.index)).await
    }

    /// Deletes link `name`, if it is there. A veth takes its peer along.
    pub async fn delete(&self, name: &str) -> Result<()> {
        let Some(link) = self.find(name).await? else { return Ok(()) };
        let done = self.handle.link().del(link.index).execute().await;
        match done.map_err(self.failed(format!("delete link {name}"))) {
            Err(error) if !error.is_missing() => Err(error),
            _ => Ok(()),
        }
    }

    /// Renames a link. It must be down on kernels before 6.2.
    pub async fn rename(&self, name: &str, new_name: &str) -> Result<()> {
        self.change(name, "rename", |link| link.name(new_name)).await
    }

    /// Sets link `name` up.
    pub async fn set_up(&self, name: &str) -> Result<()> {
        self.change(name, "set up", |link| link.up()).await
    }

    /// Sets link `name` down.
    pub async fn set_down(&self, name: &str) -> Result<()> {
        self.change(name, "set down", |link| link.down()).await
    }

    /// Sets the largest packet of link `name`, in bytes, where it differs.
    pub async fn ensure_mtu(&self, name: &str, mtu: u32) -> Result<()> {
        if self.get(name).await?.mtu == mtu {
            return Ok(());
        }
        self.change(name, "set the mtu of", |link| link.mtu(mtu)).await
    }

    /// Sets how many packets of the wire's size may leave through link `name` as one that has yet to be cut.
    pub async fn set_segments_max(&self, name: &str, segments: u32) -> Result<()> {
        self.change(name, "set the largest packets of", |link| {
            link.append_extra_attribute(LinkAttribute::GsoMaxSegs(segments))
        })
        .await
    }

    /// Gives link `name` an address, if it has it not yet.
    pub async fn ensure_address(&self, name: &str, address: IpAddr, prefix_len: u8) -> Result<()> {
        let link = self.get(name).await?;
        let done = self.handle.address().add(link.index, address, prefix_len).execute().await;
        match done.map_err(self.failed(format!("add address {address}/{prefix_len} to link {name}"))) {
            Err(error) if !error.is_present() => Err(error),
            _ => Ok(()),
        }
    }

    /// Takes an address from link `name`, if it has it.
    pub async fn remove_address(&self, name: &str, address: IpAddr, prefix_len: u8) -> Result<()> {
        let link = self.get(name).await?;
        let request = self.handle.address().get().set_link_index_filter(link.index);
        let mut found = std::pin::pin!(
            request.set_address_filter(address).set_prefix_length_filter(prefix_len).execute()
        );
        let action = format!("remove address {address}/{prefix_len} from link {name}");
        let Some(message) = found.try_next().await.map_err(self.failed(action.clone()))? else {
            return Ok(());
        };
        // The rest of the answer must be read before the next request may be sure of a quiet line.
        while found.next().await.is_some() {}
        self.handle.address().del(message).execute().await.map_err(self.failed(action))
    }

    /// The addresses of link `name`, with their prefix lengths.
    pub async fn addresses(&self, name: &str) -> Result<Vec<(IpAddr, u8)>> {
        let link = self.get(name).await?;
        let messages: Vec<_> = self
            .handle
            .address()
            .get()
            .set_link_index_filter(link.index)
            .execute()
            .try_collect()
            .await
            .map_err(self.failed(format!("list the addresses of link {name}")))?;
        Ok(messages
            .iter()
            .filter_map(|message| {
                let of = |local: bool| {
                    message.attributes.iter().find_map(|attribute| match attribute {
                        AddressAttribute::Local(address) if local => Some(*address),
                        AddressAttribute::Address(address) if !local => Some(*address),
                        _ => None,
                    })
                };
                Some((of(true).or_else(|| of(false))?, message.header.prefix_len))
            })
            .collect())
    }

    /// Sets a route, replacing the one to the same destination in the same table.
    pub async fn ensure_route(&self, route: &Route) -> Result<()> {
        let message = self.route_message(route).await?;
        let done = self.handle.route().add(message).replace().execute().await;
        done.map_err(self.failed(format!("set route {route}")))
    }

    /// Deletes a route, if it is there.
    pub async fn remove_route(&self, route: &Route) -> Result<()> {
        let message = match self.route_message(route).await {
            Err(error) if error.is_missing() => return Ok(()),
            message => message?,
        };
        let done = self.handle.route().del(message).execute().await;
        match done.map_err(self.failed(format!("delete route {route}"))) {
            Err(error) if !error.is_missing() => Err(error),
            _ => Ok(()),
        }
    }

    /// The routes of one address family, those of table `table` only if given (main is 254).
    pub async fn routes(&self, ipv6: bool, table: Option<u32>) -> Result<Vec<Route>> {
        let links = self.list().await?;
        let query = if ipv6 {
            RouteMessageBuilder::<std::net::Ipv6Addr>::new().build()
        } else {
            RouteMessageBuilder::<std::net::Ipv4Addr>::new().build()
        };
        let messages: Vec<RouteMessage> = self
            .handle
            .route()
            .get(query)
            .execute()
            .try_collect()
            .await
            .map_err(self.failed("list routes"))?;
        let routes = messages.iter().map(|message| route_of(message, &links));
        Ok(routes.filter(|route| table.is_none() || route.table == table).collect())
    }

    /// Sends packets that carry the firewall mark `mark` to routing table `table`.
    pub async fn ensure_mark_rule(&self, ipv6: bool, mark: u32, table: u32, priority: u32) -> Result<()> {
        let rule = self.handle.rule().add().fw_mark(mark).table_id(table).priority(priority);
        let rule = rule.action(RuleAction::ToTable);
        let done = if ipv6 { rule.v6().execute().await } else { rule.v4().execute().await };
        match done.map_err(self.failed(format!("add rule fwmark {mark} lookup {table}"))) {
            Err(error) if !error.is_present() => Err(error),
            _ => Ok(()),
        }
    }

    /// Deletes all rules that send `mark` to `table`.
    pub async fn remove_mark_rule(&self, ipv6: bool, mark: u32, table: u32) -> Result<()> {
        let version = if ipv6 { IpVersion::V6 } else { IpVersion::V4 };
        let rules: Vec<_> = self
            .handle
            .rule()
            .get(version)
            .execute()
            .try_collect()
            .await
            .map_err(self.failed("list policy rules"))?;
        for rule in rules {
            let marked = rule.attributes.contains(&RuleAttribute::FwMark(mark));
            let named = rule.attributes.contains(&RuleAttribute::Table(table));
            if marked && (named || u32::from(rule.header.table) == table) {
                let done = self.handle.rule().del(rule).execute().await;
                match done.map_err(self.failed(format!("delete rule fwmark {mark} lookup {table}"))) {
                    Err(error) if !error.is_missing() => return Err(error),
                    _ => {}
                }
            }
        }
        Ok(())
    }

    /// Lets link `name` answer ARP for every address that is routed elsewhere, at once.
    pub fn set_proxy_arp(&self, name: &str) -> Result<()> {
        self.netns.set_sysctls(&[
            (&format!("net/ipv4/conf/{name}/proxy_arp"), "1"),
            (&format!("net/ipv4/neigh/{name}/proxy_delay"), "0"),
            (&format!("net/ipv4/conf/{name}/send_redirects"), "0"),
        ])
    }

    /// Sends any other request of the routing family and waits for its acknowledgement.
    pub async fn request(&self, message: NetlinkMessage<RouteNetlinkMessage>, action: &str) -> Result<()> {
        let mut answers = self.handle.clone().request(message).map_err(self.failed(action))?;
        while let Some(answer) = answers.next().await {
            if let rtnetlink::packet_core::NetlinkPayload::Error(error) = answer.payload {
                return Err(Error::new(action, &self.netns, error.to_io()));
            }
        }
        Ok(())
    }

    async fn change(
        &self,
        name: &str,
        verb: &str,
        with: impl FnOnce(LinkMessageBuilder<LinkUnspec>) -> LinkMessageBuilder<LinkUnspec>,
    ) -> Result<()> {
        let link = self.get(name).await?;
        let message = with(LinkUnspec::new_with_index(link.index)).build();
        let done = self.handle.link().set(message).execute().await;
        done.map_err(self.failed(format!("{verb} link {name}")))
    }

    async fn when_name_is_free<F>(&self, create: impl Fn() -> F, action: String) -> Result<()>
    where
        F: Future<Output = Result<(), rtnetlink::Error>>,
    {
        let mut delay = HELD_NAME_DELAY;
        for _ in 1..HELD_NAME_TRIES {
            match create().await.map_err(self.failed(action.clone())) {
                Err(error) if error.is_present() => {
                    tokio::time::sleep(delay).await;
                    delay *= 2;
                }
                done => return done,
            }
        }
        create().await.map_err(self.failed(action))
    }

    async fn route_message(&self, route: &Route) -> Result<RouteMessage> {
        let ipv6 = match (route.destination, route.gateway) {
            (Some((address, _)), _) | (None, Some(address)) => address.is_ipv6(),
            (None, None) => false,
        };
        let any = if ipv6 { IpAddr::from([0u8; 16]) } else { IpAddr::from([0u8; 4]) };
        let (address, prefix_len) = route.destination.unwrap_or((any, 0));
        let wrong = |error: &dyn fmt::Display| {
            let source = io::Error::new(io::ErrorKind::InvalidInput, error.to_string());
            Error::new(format!("make a request of route {route}"), &self.netns, source)
        };
        let mut builder = RouteMessageBuilder::<IpAddr>::new()
            .destination_prefix(address, prefix_len)
            .map_err(|error| wrong(&error))?;
        if let Some(gateway) = route.gateway {
            builder = builder.gateway(gateway).map_err(|error| wrong(&error))?;
        } else if !ipv6 {
            builder = builder.scope(RouteScope::Link);
        }
        if let Some(dev) = &route.dev {
            builder = builder.output_interface(self.get(dev).await?.index);
        }
        if let Some(table) = route.table {
            builder = builder.table_id(table);
        }
        if route.local {
            builder = builder.kind(RouteType::Local).scope(RouteScope::Host);
        }
        if route.onlink {
            builder = builder.onlink();
        }
        Ok(builder.build())
    }

    fn failed(&self, action: impl Into<String>) -> impl FnOnce(rtnetlink::Error) -> Error {
        let place = self.netns.to_string();
        let action = action.into();
        move |error| {
            let source = match error {
                rtnetlink::Error::NetlinkError(error) => error.to_io(),
                other => io::Error::other(other),
            };
            Error::new(action, place, source)
        }
    }
}

impl From<LinkMessage> for Link {
    fn from(message: LinkMessage) -> Self {
        let mut link = Self {
            index: message.header.index,
            name: String::new(),
            mtu: 0,
            up: message.header.flags.contains(LinkFlags::Up),
            kind: String::new(),
            controller: None,
            peer: None,
        };
        for attribute in message.attributes {
            match attribute {
                LinkAttribute::IfName(name) => link.name = name,
                LinkAttribute::Mtu(mtu) => link.mtu = mtu,
                LinkAttribute::Controller(index) => link.controller = Some(index),
                LinkAttribute::Link(index) => link.peer = Some(index),
                LinkAttribute::LinkInfo(infos) => {
                    link.kind = infos.iter().find_map(kind_of).unwrap_or_default();
                }
                _ => {}
            }
        }
        link
    }
}

fn kind_of(info: &LinkInfo) -> Option<String> {
    match info {
        LinkInfo::Kind(InfoKind::Tun) => Some("tun".to_owned()),
        LinkInfo::Kind(kind) => Some(kind.to_string()),
        _ => None,
    }
}

fn route_of(message: &RouteMessage, links: &[Link]) -> Route {
    let mut route = Route {
        table: Some(message.header.table.into()),
        local: message.header.kind == RouteType::Local,
        ..Route::default()
    };
    let ip = |address: &RouteAddress| match address {
        RouteAddress::Inet(address) => Some(IpAddr::V4(*address)),
        RouteAddress::Inet6(address) => Some(IpAddr::V6(*address)),
        _ => None,
    };
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Destination(address) => {
                route.destination = ip(address).map(|ip| (ip, message.header.destination_prefix_length));
            }
            RouteAttribute::Gateway(address) => route.gateway = ip(address),
            RouteAttribute::Oif(index) => {
                route.dev = links.iter().find(|link| link.index == *index).map(|link| link.name.clone());
            }
            RouteAttribute::Table(table) => route.table = Some(*table),
            _ => {}
        }
    }
    route
}
