//! What a peer and an endpoint take of a node's memory.

use super::place::{self, Authority};
use crate::bench::figure::{Figure, Of, Samples};
use crate::bench::process;
use anyhow::{Context, Result};
use rswarm_netoverlay::decide::forward::Routes;
use rswarm_netoverlay::peer::Mesh;
use rswarm_netoverlay::table::{self, Table};
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

/// Meshes that all connect to each other.
const MESHES: usize = 9;
/// Endpoints of the large table.
const ENDPOINTS: u32 = 20_000;
const PATIENCE: Duration = Duration::from_secs(20);

/// Measures both, with meshes over the loopback of a namespace of their own.
pub fn run() -> Result<Vec<Figure>> {
    let machine = place::Machine::new()?;
    let peer = machine.block_on(per_peer())??;
    let endpoints = per_1000_endpoints()?;
    let one = |goal, what, value: f64| {
        Figure::new(goal, what, Of::Max, &[value].into_iter().collect::<Samples>(), "kB")
    };
    Ok([
        one("overlay.memory.per_peer_kb", "memory for each connected peer", peer),
        one("overlay.memory.per_1000_endpoints_kb", "memory for each 1000 endpoints of the table", endpoints),
    ]
    .into_iter()
    .flatten()
    .collect())
}

fn private_kb() -> Result<f64> {
    Ok(process::usage(std::process::id().cast_signed())?.private_bytes as f64 / 1000.0)
}

async fn per_peer() -> Result<f64> {
    let authority = Authority::new()?;
    let mut meshes = Vec::new();
    for number in 0..MESHES {
        let config = authority.mesh(&place::id(number), (Ipv4Addr::LOCALHOST, 0).into())?;
        meshes.push(Mesh::start(config)?);
    }
    let before = private_kb()?;
    let nodes = meshes
        .iter()
        .enumerate()
        .map(|(number, (mesh, ..))| table::Node { id: place::id(number), underlay: mesh.listen() });
    let table = Table { generation: 1, nodes: nodes.collect(), ..Table::default() };
    for (number, (mesh, ..)) in meshes.iter().enumerate() {
        mesh.route(Routes::new(&table, &place::id(number)));
    }
    let deadline = Instant::now() + PATIENCE;
    for (mesh, ..) in &meshes {
        while mesh.status().await.iter().filter(|peer| peer.connected).count() < MESHES - 1 {
            anyhow::ensure!(Instant::now() < deadline, "the meshes do not connect");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
    let after = private_kb()?;
    Ok((after - before) / (MESHES * (MESHES - 1)) as f64)
}

fn per_1000_endpoints() -> Result<f64> {
    let before = private_kb()?;
    let network = table::NetworkId::new(1).context("it has 24 bits")?;
    let endpoints = (0..ENDPOINTS).map(|number| table::Endpoint {
        network,
        address: (0x0a00_0100 + number).into(),
        node: place::id(number as usize % 2),
        names: vec![format!("web.{number}")],
        service: None,
    });
    let table = Table {
        generation: 1,
        nodes: (0..2)
            .map(|number| table::Node { id: place::id(number), underlay: ([10, 0, 0, 1], 1).into() })
            .collect(),
        networks: vec![table::Network {
            id: network,
            subnet: [10, 0, 0, 0].into(),
            prefix: 8,
            gateway: [10, 0, 0, 1].into(),
            mtu: 1400,
            internal: false,
            isolated: false,
        }],
        endpoints: endpoints.collect(),
        ..Table::default()
    };
    let routes = Routes::new(&table, &place::id(0));
    let names = rswarm_netoverlay::decide::names::Names::new(&table);
    let after = private_kb()?;
    drop((table, routes, names));
    Ok((after - before) / f64::from(ENDPOINTS) * 1000.0)
}
