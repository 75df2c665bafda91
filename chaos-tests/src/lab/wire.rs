//! The switch between a lab's nodes, and the cables into it.
//!
//! It is a network namespace of its own that routes between one veth per node and one to this machine,
//! and answers address resolution on behalf of whoever may be reached, so that the nodes believe they
//! share a segment. Each node's port has a routing table with one entry for every peer it may send to:
//! a link is cut, in one direction, by taking one entry away. What has no entry is swallowed without an
//! answer, as by a dead wire.

use std::{
    collections::BTreeSet,
    fs,
    future::Future,
    net::IpAddr,
    path::Path,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow};
use rswarm_netoverlay::device::{
    link::{Links, Route},
    netns::Netns,
};
use rtnetlink::packet_core::{NLM_F_ACK, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REQUEST, NetlinkMessage};
use rtnetlink::packet_route::{
    AddressFamily, RouteNetlinkMessage,
    rule::{RuleAction, RuleAttribute, RuleMessage},
};

use super::{
    links::DEVICE,
    process::Process,
    record::{Cut, Subnet},
};

/// The switch's own end of the cable to this machine.
const HOST_PORT: &str = "host";

/// The name of a node's network device, inside the node.
const NODE_DEVICE: &str = "eth0";

/// A port's table, and the rule that leads there, are numbered from here by the node's number.
const TABLE_BASE: u32 = 1000;

/// What a port's table does not know is swallowed by a rule numbered from here.
const SWALLOW_BASE: u32 = 2000;

/// How long the link of a dead switch may linger, and how often to look.
const DYING_LINK_PATIENCE: Duration = Duration::from_secs(5);
const RETRY_DELAY: Duration = Duration::from_millis(10);

/// The largest packet on the wire, in bytes: Ethernet's.
const MTU: u32 = 1500;

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
    let there = network_of(switch)?;
    let end = Instant::now() + DYING_LINK_PATIENCE;
    on_links(&here()?, async |links| {
        loop {
            match claim(&links, &there, fixed).await? {
                Some(subnet) => return Ok(subnet),
                // The link of a switch that has just died goes a moment after it.
                None if fixed.is_some() && Instant::now() < end => tokio::time::sleep(RETRY_DELAY).await,
                None => break,
            }
        }
        Err(match fixed {
            Some(subnet) => {
                anyhow!("the lab's network, {subnet}, is routed elsewhere on this machine by now")
            }
            None => anyhow!("every network a lab could use is routed elsewhere on this machine"),
        })
    })
}

async fn claim(links: &Links, there: &Netns, fixed: Option<Subnet>) -> Result<Option<Subnet>> {
    let routes = links.routes(false, None).await?;
    let taken: Vec<_> = routes.iter().filter_map(|route| route.destination).collect();
    let free = |subnet: &Subnet| {
        taken.iter().all(|used| match used {
            (IpAddr::V4(base), length) => !subnet.overlaps((*base, *length)),
            _ => true,
        })
    };
    for subnet in
        Subnet::candidates().filter(|subnet| fixed.is_none_or(|fixed| *subnet == fixed)).filter(free)
    {
        let name = subnet.host_link();
        if links.find(&name).await?.is_some() {
            continue;
        }
        match links.create_veth(&name, MTU, HOST_PORT, there).await {
            Err(error) if error.is_present() => continue,
            claimed => claimed?,
        }
        links.ensure_address(&name, subnet.host().into(), 24).await?;
        links.set_up(&name).await?;
        return Ok(Some(subnet));
    }
    Ok(None)
}

/// Readies the switch's side of the cable to this machine.
pub(super) fn ready_switch(switch: Process, subnet: Subnet) -> Result<()> {
    on_links(&network_of(switch)?, async |links| {
        // A switch with an address can ask for others' properly.
        links.ensure_address("lo", subnet.switch().into(), 32).await?;
        links.set_up("lo").await?;
        ready_port(&links, HOST_PORT).await?;
        Ok(links.ensure_route(&Route::direct(subnet.host().into(), 32, HOST_PORT)).await?)
    })
}

/// Removes the cable between this machine and a switch, from the switch's side: there it cannot be
/// mistaken for another lab's. Fine if it is gone.
pub(super) fn disconnect_host(switch: Process) -> Result<()> {
    on_links(&network_of(switch)?, async |links| Ok(links.delete(HOST_PORT).await?))
}

/// Lays the cable between a node and the switch.
pub(super) fn plug(switch: Process, node: Process, port: &Port, subnet: Subnet) -> Result<()> {
    let inside = network_of(node)?;
    on_links(&network_of(switch)?, async |links| {
        links.delete(&port.name).await?;
        links.create_veth(&port.name, MTU, NODE_DEVICE, &inside).await?;
        ready_port(&links, &port.name).await
    })?;
    on_links(&inside, async |links| {
        links.set_up("lo").await?;
        links.ensure_address(NODE_DEVICE, subnet.node(port.number).into(), 24).await?;
        Ok(links.set_up(NODE_DEVICE).await?)
    })
}

/// Readies the switch's side of a cable whose other side is a machine of its own.
pub(super) fn ready_plugged(switch: Process, port: &Port) -> Result<()> {
    on_links(&network_of(switch)?, async |links| ready_port(&links, &port.name).await)
}

/// Pulls the cable of a node out of the switch. Fine if it is out.
pub(super) fn unplug(switch: Process, name: &str) -> Result<()> {
    on_links(&network_of(switch)?, async |links| Ok(links.delete(name).await?))
}

/// What is not as it should be: links that pass nothing, and, from and to, links that pass less.
pub(super) struct Passing<'a> {
    pub cuts: &'a BTreeSet<Cut>,
    pub worse: BTreeSet<(String, String)>,
}

/// Whether a switch has this device.
pub(super) fn has(switch: Process, device: &str) -> Result<bool> {
    on_links(&network_of(switch)?, async |links| Ok(links.find(device).await?.is_some()))
}

/// Makes the switch pass exactly what it should: everything between `ports`, except what is cut; what passes less,
/// by way of the device for that.
pub(super) fn pass(switch: Process, ports: &[Port], passing: &Passing<'_>, subnet: Subnet) -> Result<()> {
    on_links(&network_of(switch)?, async |links| {
        if !passing.worse.is_empty() {
            ready_worse(&links).await?;
        }
        let has_device = links.find(DEVICE).await?.is_some();
        let way_to = |port: &Port| Route::direct(subnet.node(port.number).into(), 32, &port.name);
        for from in ports {
            links.ensure_route(&way_to(from)).await?;
            let table = TABLE_BASE + u32::from(from.number);
            let in_table = |route: Route| Route { table: Some(table), ..route };
            let host = Route::direct(subnet.host().into(), 32, HOST_PORT);
            links.ensure_route(&in_table(host)).await?;
            for to in ports.iter().filter(|to| to.number != from.number) {
                let is_worse = passing.worse.contains(&(from.name.clone(), to.name.clone()));
                let around = Route::direct(subnet.node(to.number).into(), 32, DEVICE);
                if !passing.cuts.contains(&Cut { from: from.name.clone(), to: to.name.clone() }) {
                    links.ensure_route(&in_table(if is_worse { around } else { way_to(to) })).await?;
                    continue;
                }
                links.remove_route(&in_table(way_to(to))).await?;
                if has_device {
                    links.remove_route(&in_table(around)).await?;
                }
            }
            ensure_rule(&links, &from.name, table, RuleAction::ToTable, Some(table)).await?;
            let swallow = SWALLOW_BASE + u32::from(from.number);
            ensure_rule(&links, &from.name, swallow, RuleAction::Blackhole, None).await?;
        }
        Ok(())
    })
}

/// Runs `work` with the links of a namespace, on a thread of its own: the caller may be inside a
/// runtime already.
fn on_links<T, W, F>(namespace: &Netns, work: W) -> Result<T>
where
    T: Send,
    W: FnOnce(Links) -> F + Send,
    F: Future<Output = Result<T>>,
{
    let run = || -> Result<T> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.context("cannot start a runtime for netlink")?;
        runtime.block_on(async { work(Links::open(namespace)?).await })
    };
    thread::scope(|scope| {
        scope.spawn(run).join().unwrap_or_else(|_| Err(anyhow!("the netlink thread panicked")))
    })
}

fn here() -> Result<Netns> {
    Ok(Netns::current()?)
}

fn network_of(process: Process) -> Result<Netns> {
    let namespace = Netns::open(Path::new(&format!("/proc/{}/ns/net", process.pid)))?;
    if !process.is_alive() {
        return Err(anyhow!("process {} has ended, and its network with it", process.pid));
    }
    Ok(namespace)
}

/// Waits for the device that the switch's process makes, and readies it.
async fn ready_worse(links: &Links) -> Result<()> {
    let end = Instant::now() + DYING_LINK_PATIENCE;
    while links.find(DEVICE).await?.is_none() {
        if Instant::now() > end {
            return Err(anyhow!("the switch has not made its device {DEVICE}; its log says why"));
        }
        tokio::time::sleep(RETRY_DELAY).await;
    }
    links.netns().set_sysctls(&[(&format!("net/ipv4/conf/{DEVICE}/rp_filter"), "0")])?;
    Ok(links.set_up(DEVICE).await?)
}

async fn ready_port(links: &Links, name: &str) -> Result<()> {
    links.set_proxy_arp(name)?;
    links.netns().set_sysctls(&[(&format!("net/ipv4/conf/{name}/rp_filter"), "0")])?;
    Ok(links.set_up(name).await?)
}

/// Decides what becomes of the packets that come in at a port.
async fn ensure_rule(
    links: &Links,
    port: &str,
    priority: u32,
    action: RuleAction,
    table: Option<u32>,
) -> Result<()> {
    let mut rule = RuleMessage::default();
    rule.header.family = AddressFamily::Inet;
    rule.header.action = action;
    rule.attributes = vec![RuleAttribute::Iifname(port.to_string()), RuleAttribute::Priority(priority)];
    rule.attributes.extend(table.map(RuleAttribute::Table));
    let mut message = NetlinkMessage::from(RouteNetlinkMessage::NewRule(rule));
    message.header.flags = NLM_F_REQUEST | NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL;
    match links.request(message, &format!("add a rule for what comes from {port}")).await {
        Err(error) if error.is_present() => Ok(()),
        result => Ok(result?),
    }
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
