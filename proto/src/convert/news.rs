//! What has changed of the directory. Its lists are packed, for there may be many tasks, and it is read by every node.

use super::{Invalid, Problem, choice, choices, each, nested, required};
use crate::v1 as pb;
use bytes::Bytes;
use prost::Message;
use rswarm_control::endpoints::{NodesNews, Part, Piece, Place, Reached, Row, SectionNews, Spot, Standing};
use rswarm_control::model::Slot;
use rswarm_control::{NetworkId, NodeId, ServiceId};
use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::sync::Arc;

choices! { Standing = TableStanding { Routed, Serving, Draining } }

/// A piece as all nodes are sent it.
pub fn part(piece: &Piece) -> Bytes {
    let what = match piece {
        Piece::Nodes(news) => pb::table_part::What::Nodes(news.into()),
        Piece::Section(part, news) => pb::table_part::What::Section(section_out(*part, news)),
    };
    pb::TablePart { what: Some(what) }.encode_to_vec().into()
}

/// The pieces of a message, in order.
///
/// # Errors
/// If one cannot be read.
pub fn pieces(news: &pb::TableNews) -> Result<Vec<Piece>, Invalid> {
    let read = |(index, bytes): (usize, &Bytes)| {
        piece(bytes.clone()).map_err(|error| error.within(format_args!("parts[{index}]")))
    };
    news.parts.iter().enumerate().map(read).collect()
}

/// What [`part`] made of a piece.
///
/// # Errors
/// If it cannot be read.
pub fn piece(bytes: Bytes) -> Result<Piece, Invalid> {
    let part = pb::TablePart::decode(bytes)
        .map_err(|error| Invalid::new("part", Problem::Malformed(error.to_string())))?;
    match required("what", part.what)? {
        pb::table_part::What::Nodes(news) => {
            news.try_into().map(Piece::Nodes).map_err(|error: Invalid| error.within("nodes"))
        }
        pb::table_part::What::Section(news) => section(news).map_err(|error| error.within("section")),
    }
}

impl From<&NodesNews> for pb::NodesNews {
    fn from(news: &NodesNews) -> Self {
        let NodesNews { whole, places, gone } = news;
        let node = |(number, place): &(u64, Place)| {
            let Place { id, addr, status } = place;
            let status = pb::NodeStatus::from(*status).into();
            pb::TableNode { number: *number, id: id.0, addr: addr.clone(), status }
        };
        Self { whole: *whole, nodes: places.iter().map(node).collect(), gone: gone.clone() }
    }
}

impl TryFrom<pb::NodesNews> for NodesNews {
    type Error = Invalid;

    fn try_from(wire: pb::NodesNews) -> Result<Self, Invalid> {
        let place = |(index, node): (usize, pb::TableNode)| {
            let status = choice::<pb::NodeStatus, _>("status", node.status)
                .map_err(|error| error.within(format_args!("nodes[{index}]")))?;
            Ok((node.number, Place { id: NodeId(node.id), addr: node.addr, status }))
        };
        let places = wire.nodes.into_iter().enumerate().map(place).collect::<Result<_, Invalid>>()?;
        Ok(Self { whole: wire.whole, places, gone: wire.gone })
    }
}

fn section_out(part: Part, news: &SectionNews) -> pb::SectionNews {
    let SectionNews { whole, network, services, services_gone, rows, turned, rows_gone } = news;
    let service = |(id, reached): &(ServiceId, Reached)| {
        let Reached { name, vip, client_affinity, ports, allow } = reached;
        pb::TableService {
            id: id.0,
            name: name.clone(),
            vip: vip.map(u32::from),
            client_affinity: *client_affinity,
            ports: ports.iter().map(Into::into).collect(),
            allow: allow.iter().map(Into::into).collect(),
        }
    };
    pb::SectionNews {
        part: match part {
            Part::Network(network) => Some(network.0),
            Part::Nodes | Part::Published => None,
        },
        whole: *whole,
        network: network.as_deref().map(Into::into),
        services: services.iter().map(service).collect(),
        services_gone: services_gone.iter().map(|service| service.0).collect(),
        rows: rows_out(rows),
        turned: turned_out(turned),
        gone: gone_out(rows_gone),
    }
}

fn section(wire: pb::SectionNews) -> Result<Piece, Invalid> {
    let network = wire.network.map(|network| nested("network", Some(network))).transpose()?;
    let mut news = SectionNews {
        whole: wire.whole,
        network: network.map(Arc::new),
        services: Vec::with_capacity(wire.services.len()),
        services_gone: wire.services_gone.into_iter().map(ServiceId).collect(),
        ..SectionNews::default()
    };
    for (index, service) in wire.services.into_iter().enumerate() {
        let within = |error: Invalid| error.within(format_args!("services[{index}]"));
        let reached = Reached {
            name: service.name,
            vip: service.vip.map(Ipv4Addr::from),
            client_affinity: service.client_affinity,
            ports: each("ports", service.ports).map_err(within)?,
            allow: each("allow", service.allow).map_err(within)?,
        };
        news.services.push((ServiceId(service.id), reached));
    }
    for (index, group) in wire.rows.into_iter().enumerate() {
        rows(group, &mut news.rows).map_err(|error| error.within(format_args!("rows[{index}]")))?;
    }
    for (index, group) in wire.turned.into_iter().enumerate() {
        let standing = choice::<pb::TableStanding, _>("standing", group.standing)
            .map_err(|error| error.within(format_args!("turned[{index}]")))?;
        news.turned.extend(spots(group.vni, &group.addresses).map(|spot| (spot, standing)));
    }
    for group in wire.gone {
        news.rows_gone.extend(spots(group.vni, &group.addresses));
    }
    let part = wire.part.map_or(Part::Published, |network| Part::Network(NetworkId(network)));
    Ok(Piece::Section(part, news))
}

fn rows_out(rows: &[(Spot, Row)]) -> Vec<pb::TableRows> {
    let mut groups: BTreeMap<_, pb::TableRows> = BTreeMap::new();
    for ((vni, address), row) in rows {
        let Row { service, slot, node, standing } = *row;
        let (slot, is_global) = match slot {
            Slot::Replica(number) => (u64::from(number), false),
            Slot::Node(node) => (node.0, true),
        };
        let group = groups.entry((service, *vni, standing, is_global)).or_insert_with(|| pb::TableRows {
            service: service.0,
            vni: *vni,
            standing: pb::TableStanding::from(standing).into(),
            is_global,
            ..pb::TableRows::default()
        });
        group.addresses.push(u32::from(*address));
        group.nodes.push(node);
        group.slots.push(slot);
    }
    groups.into_values().collect()
}

fn rows(group: pb::TableRows, rows: &mut Vec<(Spot, Row)>) -> Result<(), Invalid> {
    let standing = choice::<pb::TableStanding, _>("standing", group.standing)?;
    let count = group.addresses.len();
    if group.nodes.len() != count || group.slots.len() != count {
        let problem = "the lists are not of one length".to_owned();
        return Err(Invalid::new("addresses", Problem::Malformed(problem)));
    }
    rows.reserve(count);
    let lists = spots(group.vni, &group.addresses).zip(group.nodes.iter().zip(&group.slots));
    for (spot, (node, slot)) in lists {
        let slot = match group.is_global {
            true => Slot::Node(NodeId(*slot)),
            false => Slot::Replica(u32::try_from(*slot).map_err(|_| {
                Invalid::new("slots", Problem::TooLarge { value: *slot, max: u64::from(u32::MAX) })
            })?),
        };
        rows.push((spot, Row { service: ServiceId(group.service), slot, node: *node, standing }));
    }
    Ok(())
}

fn turned_out(turned: &[(Spot, Standing)]) -> Vec<pb::TableRows> {
    let mut groups: BTreeMap<(u32, Standing), Vec<u32>> = BTreeMap::new();
    for ((vni, address), standing) in turned {
        groups.entry((*vni, *standing)).or_default().push(u32::from(*address));
    }
    let group = |((vni, standing), addresses)| pb::TableRows {
        vni,
        standing: pb::TableStanding::from(standing).into(),
        addresses,
        ..pb::TableRows::default()
    };
    groups.into_iter().map(group).collect()
}

fn gone_out(gone: &[Spot]) -> Vec<pb::TableRows> {
    let mut groups: BTreeMap<u32, Vec<u32>> = BTreeMap::new();
    for (vni, address) in gone {
        groups.entry(*vni).or_default().push(u32::from(*address));
    }
    let group = |(vni, addresses)| pb::TableRows { vni, addresses, ..pb::TableRows::default() };
    groups.into_iter().map(group).collect()
}

fn spots(vni: u32, addresses: &[u32]) -> impl Iterator<Item = Spot> {
    addresses.iter().map(move |address| (vni, Ipv4Addr::from(*address)))
}
