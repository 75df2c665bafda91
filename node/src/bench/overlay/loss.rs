//! What clients notice when the node of a backend vanishes without a word: three backends on three nodes, 200 new
//! connections a second by the virtual address and then by a published port.

use super::flow::{self, Calls};
use super::place::{self, Authority, Machine, Node, Pins};
use crate::bench::figure::{Figure, Of, Samples};
use crate::bench::note;
use anyhow::{Context, Result};
use rswarm_netoverlay::device::netns::Netns;
use rswarm_netoverlay::table::{Access, Backend, Protocol, PublishedPort, Service, Table};
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// The caller's node, and one for each backend.
const NODES: usize = 4;
/// Which one vanishes.
const LOST: usize = 2;
const EVERY: Duration = Duration::from_millis(5);
const LASTING: Duration = Duration::from_secs(10);
const VIP: Ipv4Addr = Ipv4Addr::new(10, 50, 0, 100);
const PORT: u16 = 8080;
const TARGET: u16 = 80;

fn underlay(machine: usize) -> Ipv4Addr {
    Ipv4Addr::new(172, 31, 0, 1 + machine as u8)
}

/// Nodes at one switch, and a client that is none.
struct Site {
    switch: Machine,
    client: Netns,
    nodes: Vec<Node>,
    containers: Vec<Netns>,
    _pins: Pins,
}

impl Site {
    fn build() -> Result<Self> {
        let switch = Machine::new()?;
        switch.with_links(async |links| Ok(links.ensure_bridge("sw").await?))?;
        let plug = |far: &Netns, number: usize| {
            let port = format!("p{number}");
            let address = Some((underlay(number), 24));
            place::join(&switch, (&switch.netns, &port, None), (far, "eth0", address), 1500)?;
            switch.with_links(async move |links| Ok(links.set_bridge(&port, "sw").await?))
        };
        let pins = Pins::new()?;
        let authority = Authority::new()?;
        let table = table()?;
        let mut nodes = Vec::new();
        let mut containers = Vec::new();
        for number in 0..NODES {
            let machine = Machine::new()?;
            plug(&machine.netns, number)?;
            let node = Node::start(machine, &authority, &place::id(number), underlay(number), &pins)?;
            containers.push(node.join(&table, &format!("c{number}"), place::container(number))?);
            nodes.push(node);
        }
        let client = place::fresh()?;
        plug(&client, NODES)?;
        nodes.iter().try_for_each(|node| node.connected(NODES - 1))?;
        Ok(Self { switch, client, nodes, containers, _pins: pins })
    }

    /// The cable of the node that is lost: out or in.
    async fn cable(&self, plugged: bool) -> Result<()> {
        let links = rswarm_netoverlay::device::link::Links::open(&self.switch.netns)?;
        let port = format!("p{LOST}");
        if plugged {
            links.set_up(&port).await?
        } else {
            links.set_down(&port).await?
        }
        Ok(())
    }
}

fn table() -> Result<Table> {
    let underlays: Vec<Ipv4Addr> = (0..NODES).map(underlay).collect();
    let mut table = place::table(&underlays)?;
    let network = table.networks[0].id;
    table.services.push(Service {
        network,
        name: "web".into(),
        aliases: Vec::new(),
        vip: Some(VIP),
        client_affinity: false,
        backends: (1..NODES).map(place::container).collect(),
        draining: Vec::new(),
        access: Access::Open,
    });
    table.ports.push(PublishedPort {
        port: PORT,
        protocol: Protocol::Tcp,
        service: "web".into(),
        network,
        target_port: TARGET,
        proxy_protocol: false,
        client_affinity: false,
        backends: (1..NODES).map(|n| Backend { node: place::id(n), address: place::container(n) }).collect(),
    });
    Ok(table)
}

/// Loses a node `rounds` times each way.
pub fn run(rounds: usize, interrupted: &AtomicBool) -> Result<Vec<Figure>> {
    let site = Site::build().context("cannot lay out four machines")?;
    let backends: Result<Vec<_>> =
        site.containers[1..].iter().map(|container| flow::greet(container, TARGET)).collect();
    let backends = backends?;
    let ways: [(&str, &Netns, SocketAddr); 2] = [
        ("virtual address", &site.containers[0], (VIP, TARGET).into()),
        ("published port", &site.client, (underlay(0), PORT).into()),
    ];
    let mut seen = [(Samples::default(), Samples::default()), (Samples::default(), Samples::default())];
    for round in 0..rounds {
        for ((name, from, to), seen) in ways.iter().zip(&mut seen) {
            anyhow::ensure!(!interrupted.load(Ordering::Relaxed), "interrupted");
            let Calls { failed, took } = flow::call(from, *to, EVERY, LASTING, site.cable(false))?;
            let calls = failed + took.len();
            let took: Samples = took.into_iter().collect();
            let worst = took.percentile(100).context("nobody was greeted")?;
            note(&format!(
                "overlay loss {}/{rounds} by {name}: {failed} of {calls} failed, the slowest took {worst:.0} ms",
                round + 1
            ));
            seen.0.push(failed as f64);
            seen.1.push(worst);
            site.switch.block_on(site.cable(true))??;
            site.nodes.iter().try_for_each(|node| node.connected(NODES - 1))?;
        }
    }
    backends.into_iter().for_each(tokio::runtime::Runtime::shutdown_background);
    let [vip, port] = &seen;
    let failed = |goal, what, samples| {
        Figure::new(goal, what, Of::Sum, samples, "count").map(|figure| figure.target("<=0"))
    };
    let worst = |goal, what, samples| Figure::new(goal, what, Of::Max, samples, "ms");
    let figures = [
        failed("overlay.vip_loss.failed", "new connections by a virtual address, a node lost", &vip.0),
        worst("overlay.vip_loss.worst_ms", "the slowest of them", &vip.1).map(|f| f.target("<=1100")),
        failed("overlay.port_loss.failed", "new connections by a published port, a node lost", &port.0),
        worst("overlay.port_loss.worst_ms", "the slowest of them", &port.1).map(|f| f.target("<=250")),
    ];
    Ok(figures.into_iter().flatten().collect())
}
