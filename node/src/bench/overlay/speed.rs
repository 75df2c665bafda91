//! How fast, at which price: the same traffic by a plain route, by the kernel's VXLAN in plain text as Docker uses it
//! (a bridge on each machine), and by the overlay, in turn.

use super::flow::Ends;
use super::place::{self, Authority, Machine, Node, Pins};
use crate::bench::figure::{Figure, Of, Samples};
use crate::bench::{note, process};
use anyhow::{Context, Result};
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike;
use rswarm_netoverlay::device::netns::Netns;
use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// How long one stream lasts.
const BULK: Duration = Duration::from_millis(1500);
/// How long it goes before its time is taken.
const WARM: Duration = Duration::from_millis(300);
/// How long questions are asked.
const ASK: Duration = Duration::from_millis(700);
/// The wire between the machines.
const WIRE_MTU: u32 = 1500;
/// What is left of it inside VXLAN.
const VXLAN_MTU: u32 = 1450;

/// What is compared, in the order of the first round.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    Route,
    Vxlan,
    Overlay,
}

impl Way {
    const ALL: [Self; 3] = [Self::Route, Self::Vxlan, Self::Overlay];

    fn name(self) -> &'static str {
        match self {
            Self::Route => "plain route",
            Self::Vxlan => "VXLAN, plain text",
            Self::Overlay => "rswarm, encrypted",
        }
    }
}

/// What one way has shown.
#[derive(Default)]
struct Seen {
    mbit: Samples,
    cpu_s_per_gb: Samples,
    p50_us: Samples,
}

/// Two machines with a wire, and a container on each for each way.
struct Site {
    ends: [Ends; 3],
    // In this order: the overlays leave before the directory of their pins.
    _nodes: [Node; 2],
    _pins: Pins,
}

fn wire_address(machine: usize) -> Ipv4Addr {
    Ipv4Addr::new(172, 30, 0, 1 + machine as u8)
}

impl Site {
    fn build() -> Result<Self> {
        let machines = [Machine::new()?, Machine::new()?];
        let [one, two] = &machines;
        join_machines(one, two)?;
        let route = by_route(&machines).context("plain route")?;
        let vxlan = by_vxlan(&machines).context("VXLAN")?;

        let pins = Pins::new()?;
        let authority = Authority::new()?;
        let table = place::table(&[wire_address(0), wire_address(1)])?;
        let [one, two] = machines;
        let start = |machine, number| {
            Node::start(machine, &authority, &place::id(number), wire_address(number), &pins)
        };
        let nodes = [start(one, 0)?, start(two, 1)?];
        let from = nodes[0].join(&table, "c0", place::container(0))?;
        let to = nodes[1].join(&table, "c1", place::container(1))?;
        nodes.iter().try_for_each(|node| node.connected(1))?;
        let overlay = Ends { from, to, address: place::container(1) };
        Ok(Self { ends: [route, vxlan, overlay], _nodes: nodes, _pins: pins })
    }
}

fn join_machines(one: &Machine, two: &Machine) -> Result<()> {
    let at = |number| Some((wire_address(number), 24));
    place::join(one, (&one.netns, "w0", at(0)), (&two.netns, "w0", at(1)), WIRE_MTU)?;
    place::plain_wire([(&one.netns, "w0"), (&two.netns, "w0")])
}

/// A container behind each machine, which forwards.
fn by_route(machines: &[Machine; 2]) -> Result<Ends> {
    let containers = [place::fresh()?, place::fresh()?];
    let address = |machine: usize, last| Ipv4Addr::new(10, 10, machine as u8, last);
    for (number, (machine, container)) in machines.iter().zip(&containers).enumerate() {
        let (near, far) = (Some((address(number, 1), 24)), Some((address(number, 2), 24)));
        place::join(machine, (&machine.netns, "r0", near), (container, "eth0", far), WIRE_MTU)?;
        place::default_route(machine, container, address(number, 1))?;
        place::default_route(machine, &machine.netns, wire_address(1 - number))?;
    }
    let [from, to] = containers;
    Ok(Ends { from, to, address: address(1, 2) })
}

/// A container behind a bridge on each machine, and VXLAN between the bridges.
fn by_vxlan(machines: &[Machine; 2]) -> Result<Ends> {
    let containers: [Netns; 2] = [place::fresh()?, place::fresh()?];
    let address = |number: usize| Ipv4Addr::new(10, 20, 0, 1 + number as u8);
    for (number, (machine, container)) in machines.iter().zip(&containers).enumerate() {
        let far = Some((address(number), 24));
        place::join(machine, (&machine.netns, "b0", None), (container, "eth0", far), VXLAN_MTU)?;
        machine.with_links(async move |links| {
            links.ensure_bridge("br0").await?;
            links.create_vxlan("vx0", 4097, wire_address(number), wire_address(1 - number)).await?;
            links.ensure_mtu("vx0", VXLAN_MTU).await?;
            for port in ["b0", "vx0"] {
                links.set_bridge(port, "br0").await?;
                links.set_up(port).await?;
            }
            Ok(())
        })?;
    }
    let [from, to] = containers;
    Ok(Ends { from, to, address: address(1) })
}

/// Processor time used until now: of this process, both ends of the traffic included, and of the kernel's own threads
/// for packets; in seconds.
fn processor_time() -> Result<f64> {
    let usage = getrusage(UsageWho::RUSAGE_SELF).context("cannot ask for processor time")?;
    let own = (usage.user_time() + usage.system_time()).num_microseconds() as f64 / 1e6;
    let ticks = nix::unistd::sysconf(nix::unistd::SysconfVar::CLK_TCK)?.unwrap_or(100);
    Ok(own + process::soft_interrupt_ticks() as f64 / ticks as f64)
}

/// Measures all ways `rounds` times in turn.
pub fn run(rounds: usize, interrupted: &AtomicBool) -> Result<Vec<Figure>> {
    let site = Site::build().context("cannot lay out two machines")?;
    let mut seen = [Seen::default(), Seen::default(), Seen::default()];
    for round in 0..rounds {
        for turn in 0..Way::ALL.len() {
            anyhow::ensure!(!interrupted.load(Ordering::Relaxed), "interrupted");
            let at = (round + turn) % Way::ALL.len();
            let (way, ends) = (Way::ALL[at], &site.ends[at]);
            let found = measure(ends).with_context(|| way.name())?;
            note(&format!(
                "overlay {}/{rounds} {:18} {:7.0} Mbit/s  {:6.3} CPU-s/GB  p50 {:6.1} us",
                round + 1,
                way.name(),
                found.0,
                found.1,
                found.2
            ));
            seen[at].mbit.push(found.0);
            seen[at].cpu_s_per_gb.push(found.1);
            seen[at].p50_us.push(found.2);
        }
    }
    Ok(figures(&seen))
}

fn measure(ends: &Ends) -> Result<(f64, f64, f64)> {
    ends.bulk(WARM)?;
    let before = processor_time()?;
    let (bytes, took) = ends.bulk(BULK)?;
    let spent = processor_time()? - before;
    let trips: Samples = ends.round_trips(ASK)?.into_iter().collect();
    let p50 = trips.median().context("no answer came")?;
    Ok((bytes as f64 * 8e-6 / took.as_secs_f64(), spent / (bytes as f64 / 1e9), p50))
}

fn figures([route, vxlan, overlay]: &[Seen; 3]) -> Vec<Figure> {
    let each = |a: &Samples, b: &Samples, of: fn(f64, f64) -> f64| -> Samples {
        a.iter().zip(b.iter()).map(|(a, b)| of(a, b)).collect()
    };
    let ratio: fn(f64, f64) -> f64 = |a, b| a / b;
    let median = |goal, what, samples: &Samples, unit| Figure::new(goal, what, Of::Median, samples, unit);
    let against_vxlan = each(&overlay.mbit, &vxlan.mbit, ratio);
    let against_route = each(&overlay.mbit, &route.mbit, ratio);
    let price = each(&overlay.cpu_s_per_gb, &vxlan.cpu_s_per_gb, ratio);
    let added = each(&overlay.p50_us, &vxlan.p50_us, |a, b| a - b);
    [
        median(
            "overlay.tcp1.vs_vxlan",
            "one TCP stream, encrypted / VXLAN in plain text",
            &against_vxlan,
            "x",
        )
        .map(|figure| figure.target(">=0.8")),
        median("overlay.tcp1.vs_route", "one TCP stream, encrypted / plain route", &against_route, "x"),
        median("overlay.cpu.vs_vxlan", "processor time for a GB / VXLAN's", &price, "x")
            .map(|figure| figure.target("<=1.7")),
        median("overlay.rr.added_p50_us", "question and answer, more than by VXLAN", &added, "us")
            .map(|figure| figure.target("<=60")),
        median("overlay.tcp1_mbit", "one TCP stream by the overlay", &overlay.mbit, "Mbit/s"),
        median("overlay.vxlan.tcp1_mbit", "by VXLAN", &vxlan.mbit, "Mbit/s"),
        median("overlay.route.tcp1_mbit", "by a plain route", &route.mbit, "Mbit/s"),
        median("overlay.cpu_s_per_gb", "processor time for a GB, overlay", &overlay.cpu_s_per_gb, "s"),
        median("overlay.vxlan.cpu_s_per_gb", "by VXLAN", &vxlan.cpu_s_per_gb, "s"),
        median("overlay.route.cpu_s_per_gb", "by a plain route", &route.cpu_s_per_gb, "s"),
        median("overlay.rr_p50_us", "question and answer by the overlay", &overlay.p50_us, "us"),
        median("overlay.vxlan.rr_p50_us", "by VXLAN", &vxlan.p50_us, "us"),
        median("overlay.route.rr_p50_us", "by a plain route", &route.p50_us, "us"),
    ]
    .into_iter()
    .flatten()
    .collect()
}
