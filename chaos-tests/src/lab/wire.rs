//! The switch between a lab's nodes, and the cables into it.
//!
//! It is a network namespace of its own that routes between one veth per node and one to this machine,
//! and answers address resolution on behalf of whoever may be reached, so that the nodes believe they
//! share a segment. Each node's port has a routing table with one entry for every peer it may send to:
//! a link is cut, in one direction, by taking one entry away. What has no entry is swallowed without an
//! answer, as by a dead wire.

use std::{
    collections::BTreeSet,
    fs::{self, File},
    future::Future,
    net::{IpAddr, Ipv4Addr},
    os::fd::{AsFd, AsRawFd, BorrowedFd},
    thread,
};

use anyhow::{Context, Result, anyhow};
use futures_util::TryStreamExt;
use nix::sched::{CloneFlags, setns};
use rtnetlink::{
    Error as NetlinkError, Handle, LinkMessageBuilder, LinkUnspec, LinkVeth, RouteMessageBuilder,
    packet_route::{
        link::{InfoData, InfoVeth, LinkAttribute},
        route::{RouteAddress, RouteAttribute, RouteMessage, RouteScope, RouteType},
        rule::RuleAction,
    },
};

use super::{
    process::Process,
    record::{Cut, Subnet},
};

/// The switch's own end of the cable to this machine.
const HOST_PORT: &str = "host";

/// The name of a node's network device, inside the node.
const NODE_DEVICE: &str = "eth0";

/// Tables and rules of a port are numbered from here by the node's number.
const TABLE_BASE: u32 = 1000;

/// A node as the switch sees it.
#[derive(Debug, Clone)]
pub(super) struct Port {
    /// The node's name, and its port's.
    pub name: String,
    /// The node's number, from 1.
    pub number: u8,
}

/// Chooses the first subnet nothing on this machine has a route into, or the given one, and claims it
/// by creating this machine's end of the cable to `switch`.
pub(super) fn connect_host(switch: Process, fixed: Option<Subnet>) -> Result<Subnet> {
    let namespace = network_of(switch)?;
    on_netlink(None, async move |net| {
        let taken = prefixes(&net).await?;
        let candidates = Subnet::candidates().filter(|subnet| fixed.is_none_or(|fixed| *subnet == fixed));
        for subnet in candidates.filter(|subnet| !taken.iter().any(|used| subnet.overlaps(*used))) {
            let claimed = veth(&net, &subnet.host_link(), HOST_PORT, namespace.as_fd()).await;
            match claimed {
                Err(error) if is(&error, nix::libc::EEXIST) => continue,
                claimed => claimed.context("cannot lay a cable from this machine to the switch")?,
            }
            address(&net, &subnet.host_link(), subnet.host(), 24).await?;
            return Ok(subnet);
        }
        Err(match fixed {
            Some(subnet) => {
                anyhow!("the lab's network, {subnet}, is routed elsewhere on this machine by now")
            }
            None => anyhow!("every network a lab could use is routed elsewhere on this machine"),
        })
    })
}

/// Readies the switch's side of the cable to this machine.
pub(super) fn ready_switch(switch: Process, subnet: Subnet) -> Result<()> {
    on_netlink(Some(network_of(switch)?), async |net| {
        address(&net, "lo", subnet.switch(), 32).await?;
        up(&net, HOST_PORT).await?;
        settle_port(HOST_PORT)?;
        let route = route(RT_MAIN, subnet.host(), index(&net, HOST_PORT).await?);
        net.route().add(route).replace().execute().await.context("cannot route to this machine")
    })
}

/// Removes this machine's end of the cable, and with it the other end. Fine if it is gone.
pub(super) fn disconnect_host(subnet: Subnet) -> Result<()> {
    on_netlink(None, async |net| remove_link(&net, &subnet.host_link()).await)
}

/// Lays the cable between a node and the switch.
pub(super) fn plug(switch: Process, node: Process, port: &Port, subnet: Subnet) -> Result<()> {
    let inside = network_of(node)?;
    let namespace = inside.try_clone().context("cannot duplicate a descriptor")?;
    let name = port.name.clone();
    on_netlink(Some(network_of(switch)?), async move |net| {
        remove_link(&net, &name).await?;
        veth(&net, &name, NODE_DEVICE, namespace.as_fd())
            .await
            .with_context(|| format!("cannot lay a cable to {name}"))?;
        up(&net, &name).await?;
        settle_port(&name)
    })?;
    let own = subnet.node(port.number);
    on_netlink(Some(inside), async move |net| {
        up(&net, "lo").await?;
        address(&net, NODE_DEVICE, own, 24).await
    })
}

/// Pulls the cable of a node out of the switch. Fine if it is out.
pub(super) fn unplug(switch: Process, name: &str) -> Result<()> {
    on_netlink(Some(network_of(switch)?), async |net| remove_link(&net, name).await)
}

/// Makes the switch pass exactly what it should: everything between `ports`, except what is cut.
pub(super) fn pass(switch: Process, ports: &[Port], cuts: &BTreeSet<Cut>, subnet: Subnet) -> Result<()> {
    on_netlink(Some(network_of(switch)?), async |net| {
        let host = index(&net, HOST_PORT).await?;
        let mut links = Vec::new();
        for port in ports {
            links.push((port, index(&net, &port.name).await?));
        }
        for (port, link) in &links {
            let main = route(RT_MAIN, subnet.node(port.number), *link);
            net.route().add(main).replace().execute().await.context("cannot route to a node")?;
        }
        for (from, _) in &links {
            let table = TABLE_BASE + u32::from(from.number);
            let mut wanted = vec![route(table, subnet.host(), host), swallow(table)];
            let mut unwanted = Vec::new();
            for (to, link) in links.iter().filter(|(to, _)| to.number != from.number) {
                let cut = cuts.contains(&Cut { from: from.name.clone(), to: to.name.clone() });
                let list = if cut { &mut unwanted } else { &mut wanted };
                list.push(route(table, subnet.node(to.number), *link));
            }
            for message in wanted {
                net.route().add(message).replace().execute().await.context("cannot join a link")?;
            }
            for message in unwanted {
                done_unless(net.route().del(message).execute().await, nix::libc::ESRCH)
                    .context("cannot cut a link")?;
            }
            let rule = net.rule().add().v4().input_interface(&from.name).table_id(table);
            let rule = rule.priority(table).action(RuleAction::ToTable);
            done_unless(rule.execute().await, nix::libc::EEXIST)
                .with_context(|| format!("cannot direct what {} sends", from.name))?;
        }
        Ok(())
    })
}

const RT_MAIN: u32 = 254;

/// Runs `work` with a netlink connection of the given network namespace, or of this process's.
///
/// The namespace is entered on a thread that ends with the work, because it belongs to the thread.
fn on_netlink<T, W, F>(namespace: Option<File>, work: W) -> Result<T>
where
    T: Send,
    W: FnOnce(Handle) -> F + Send,
    F: Future<Output = Result<T>>,
{
    let run = move || -> Result<T> {
        if let Some(namespace) = namespace {
            setns(namespace, CloneFlags::CLONE_NEWNET).context("cannot enter a network namespace")?;
        }
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .context("cannot start a runtime for netlink")?;
        runtime.block_on(async {
            let (connection, handle, _) =
                rtnetlink::new_connection().context("cannot open a netlink socket")?;
            let driver = tokio::spawn(connection);
            let result = work(handle).await;
            driver.abort();
            result
        })
    };
    thread::scope(|scope| {
        scope.spawn(run).join().unwrap_or_else(|_| Err(anyhow!("the netlink thread panicked")))
    })
}

fn network_of(process: Process) -> Result<File> {
    let path = format!("/proc/{}/ns/net", process.pid);
    let namespace = File::open(&path).with_context(|| format!("cannot open {path}"))?;
    if !process.is_alive() {
        return Err(anyhow!("process {} has ended, and its network with it", process.pid));
    }
    Ok(namespace)
}

/// One veth: `here` in the namespace of the connection, `there` in the given one.
async fn veth(net: &Handle, here: &str, there: &str, namespace: BorrowedFd<'_>) -> Result<(), NetlinkError> {
    let peer = LinkMessageBuilder::<LinkUnspec>::new()
        .name(there.to_string())
        .append_extra_attribute(LinkAttribute::NetNsFd(namespace.as_raw_fd()))
        .build();
    let pair = LinkVeth::new(here, there).set_info_data(InfoData::Veth(InfoVeth::Peer(peer))).build();
    net.link().add(pair).execute().await
}

async fn index(net: &Handle, name: &str) -> Result<u32> {
    let found = net.link().get().match_name(name.to_string()).execute().try_next().await;
    let link = found.with_context(|| format!("cannot find the link {name}"))?;
    Ok(link.with_context(|| format!("there is no link {name}"))?.header.index)
}

async fn up(net: &Handle, name: &str) -> Result<()> {
    let change = LinkUnspec::new_with_index(index(net, name).await?).up().build();
    net.link().change(change).execute().await.with_context(|| format!("cannot switch on the link {name}"))
}

async fn address(net: &Handle, name: &str, own: Ipv4Addr, length: u8) -> Result<()> {
    let link = index(net, name).await?;
    let added = net.address().add(link, IpAddr::V4(own), length).replace().execute().await;
    added.with_context(|| format!("cannot give {own}/{length} to {name}"))?;
    up(net, name).await
}

async fn remove_link(net: &Handle, name: &str) -> Result<()> {
    let link = match net.link().get().match_name(name.to_string()).execute().try_next().await {
        Err(error) if is(&error, nix::libc::ENODEV) => return Ok(()),
        found => found.with_context(|| format!("cannot find the link {name}"))?,
    };
    let Some(link) = link else { return Ok(()) };
    done_unless(net.link().del(link.header.index).execute().await, nix::libc::ENODEV)
        .with_context(|| format!("cannot remove the link {name}"))
}

/// Every prefix this machine has a route into, apart from the default.
async fn prefixes(net: &Handle) -> Result<Vec<(Ipv4Addr, u8)>> {
    let mut routes = net.route().get(RouteMessageBuilder::<Ipv4Addr>::new().build()).execute();
    let mut found = Vec::new();
    while let Some(route) = routes.try_next().await.context("cannot read this machine's routes")? {
        let length = route.header.destination_prefix_length;
        for attribute in &route.attributes {
            if let (RouteAttribute::Destination(RouteAddress::Inet(base)), 1..) = (attribute, length) {
                found.push((*base, length));
            }
        }
    }
    Ok(found)
}

fn route(table: u32, to: Ipv4Addr, link: u32) -> RouteMessage {
    RouteMessageBuilder::<Ipv4Addr>::new()
        .destination_prefix(to, 32)
        .output_interface(link)
        .scope(RouteScope::Link)
        .table_id(table)
        .build()
}

fn swallow(table: u32) -> RouteMessage {
    RouteMessageBuilder::<Ipv4Addr>::new().kind(RouteType::BlackHole).table_id(table).build()
}

/// Lets a port answer for others, and at once. These files show the namespace of the calling thread.
fn settle_port(name: &str) -> Result<()> {
    for (file, value) in [
        (format!("conf/{name}/proxy_arp"), "1"),
        (format!("conf/{name}/rp_filter"), "0"),
        (format!("conf/{name}/send_redirects"), "0"),
        (format!("neigh/{name}/proxy_delay"), "0"),
    ] {
        let file = format!("/proc/sys/net/ipv4/{file}");
        fs::write(&file, value).with_context(|| format!("cannot write {file}"))?;
    }
    Ok(())
}

/// What holds for the switch as a whole. Called by the process that holds its namespace.
pub(super) fn settle_switch() -> Result<()> {
    for (file, value) in [
        ("ipv4/ip_forward", "1"),
        ("ipv4/conf/all/rp_filter", "0"),
        ("ipv4/conf/all/send_redirects", "0"),
        ("ipv4/conf/all/accept_redirects", "0"),
    ] {
        let file = format!("/proc/sys/net/{file}");
        fs::write(&file, value).with_context(|| format!("cannot write {file}"))?;
    }
    // A kernel without this protocol has nothing to switch off.
    let _ = fs::write("/proc/sys/net/ipv6/conf/all/disable_ipv6", "1");
    Ok(())
}

fn is(error: &NetlinkError, errno: i32) -> bool {
    matches!(error, NetlinkError::NetlinkError(message) if message.raw_code() == -errno)
}

fn done_unless(result: Result<(), NetlinkError>, fine: i32) -> Result<()> {
    match result {
        Err(error) if is(&error, fine) => Ok(()),
        result => Ok(result?),
    }
}
