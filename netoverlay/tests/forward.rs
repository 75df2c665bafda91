//! Where packets go, as tables and properties; and what bytes from elsewhere do, from `fuzz/corpus`.

mod hostile;

use std::{net::Ipv4Addr, time::Instant};

use proptest::prelude::*;
use rswarm_netoverlay::{
    decide::{
        former::{Former, LINGERS},
        forward::{Reason, Routes, Slot},
    },
    table::{Endpoint, Network, NetworkId, Node, NodeId, Table},
};

const TCP: u8 = 6;
const ICMP: u8 = 1;

fn net(number: u32) -> NetworkId {
    NetworkId::new(number).unwrap()
}

/// Nodes a, b and c. Network 1: .10 on a, .11 on b, .12 on c. Network 2, with the same subnet: .10 on b, .20 on a.
fn table() -> Table {
    let network = |number| Network {
        id: net(number),
        subnet: [10, 50, 0, 0].into(),
        prefix: 24,
        gateway: [10, 50, 0, 1].into(),
        mtu: 1400,
        internal: false,
        isolated: false,
    };
    let endpoint = |number, last, node: &str| Endpoint {
        network: net(number),
        address: [10, 50, 0, last].into(),
        node: NodeId::new(node),
        names: vec![],
        service: None,
    };
    Table {
        generation: 1,
        nodes: ["c", "a", "b"]
            .iter()
            .zip(1..)
            .map(|(id, port)| Node { id: NodeId::new(id), underlay: ([192, 0, 2, 1], port).into() })
            .collect(),
        networks: vec![network(1), network(2)],
        endpoints: vec![
            endpoint(1, 10, "a"),
            endpoint(1, 11, "b"),
            endpoint(1, 12, "c"),
            endpoint(2, 10, "b"),
            endpoint(2, 20, "a"),
        ],
        ..Table::default()
    }
}

fn packet(protocol: u8, source: u8, destination: u8, payload: &[u8]) -> Vec<u8> {
    let mut packet = vec![0; 20];
    packet[0] = 0x45;
    packet[2..4].copy_from_slice(&((20 + payload.len()) as u16).to_be_bytes());
    packet[9] = protocol;
    packet[12..16].copy_from_slice(&[10, 50, 0, source]);
    packet[16..20].copy_from_slice(&[10, 50, 0, destination]);
    packet.extend_from_slice(payload);
    packet
}

/// The routes of node a; its peers are b and c, in that order.
fn routes() -> Routes {
    Routes::new(&table(), &NodeId::new("a"))
}

const B: Slot = 0;
const C: Slot = 1;

#[test]
fn the_last_words_of_a_task_are_carried_after_the_table_has_forgotten_it() {
    let (a, now) = (NodeId::new("a"), Instant::now());
    let whole = table();
    // Of network 1, node a is no longer told: its own task there was the last.
    let mut after = whole.clone();
    after.networks.retain(|network| network.id != net(1));
    after.endpoints.retain(|endpoint| endpoint.network != net(1));
    let mut former = Former::default();
    former.see(&whole, now);
    former.see(&after, now);
    let routes = |former: &Former| {
        let mut routes = Routes::new(&after, &a);
        routes.linger(former, &a);
        routes
    };
    let answer = packet(TCP, 10, 11, b"bye");
    assert_eq!(routes(&former).outgoing(net(1), &answer, 0), Ok(B));
    assert_eq!(routes(&former).incoming(net(1), B, &packet(TCP, 11, 10, b"ok")), Ok(()));
    assert_eq!(routes(&former).incoming(net(1), C, &packet(TCP, 11, 10, b"ok")), Err(Reason::Spoofed));
    assert!(former.prune(now + LINGERS));
    assert_eq!(routes(&former).outgoing(net(1), &answer, 0), Err(Reason::UnknownNetwork));
}

#[test]
fn an_outgoing_packet_goes_to_the_owner_of_its_destination() {
    let routes = routes();
    let names: Vec<_> = routes.peers.iter().map(|(id, _)| id.as_str()).collect();
    assert_eq!(names, ["b", "c"]);
    let table = [
        (1, TCP, 10, 11, Ok(B)),
        (1, TCP, 10, 12, Ok(C)),
        (2, TCP, 20, 10, Ok(B)),
        // Not ours in that network, though another has the same address.
        (2, TCP, 10, 10, Err(Reason::ForeignSource)),
        (1, TCP, 99, 11, Err(Reason::ForeignSource)),
        (1, TCP, 10, 99, Err(Reason::NoRoute)),
        // Local ones never leave the namespace, so a route back here would be a loop.
        (1, TCP, 10, 10, Err(Reason::NoRoute)),
        (3, TCP, 10, 11, Err(Reason::UnknownNetwork)),
        // The gateway reports errors and says nothing else.
        (1, TCP, 1, 11, Err(Reason::ForeignSource)),
    ];
    for (network, protocol, source, destination, expected) in table {
        let verdict = routes.outgoing(net(network), &packet(protocol, source, destination, &[8; 8]), 0);
        assert_eq!(verdict, expected, "{source} to {destination} in network {network}");
    }
}

#[test]
fn an_incoming_packet_must_come_from_the_owner_of_its_source() {
    let routes = routes();
    let table = [
        (1, B, 11, 10, Ok(())),
        (1, C, 12, 10, Ok(())),
        (2, B, 10, 20, Ok(())),
        (1, C, 11, 10, Err(Reason::Spoofed)),
        (1, B, 10, 10, Err(Reason::Spoofed)),
        (1, B, 99, 10, Err(Reason::Spoofed)),
        (2, C, 10, 20, Err(Reason::Spoofed)),
        (1, B, 11, 12, Err(Reason::NotHere)),
        (1, B, 11, 1, Err(Reason::NotHere)),
        (3, B, 11, 10, Err(Reason::UnknownNetwork)),
    ];
    for (network, peer, source, destination, expected) in table {
        let verdict = routes.incoming(net(network), peer, &packet(TCP, source, destination, &[0; 20]));
        assert_eq!(verdict, expected, "{source} to {destination} in network {network} from peer {peer}");
    }
}

#[test]
fn a_source_of_another_network_is_not_believed() {
    let mut table = table();
    let elsewhere = Ipv4Addr::new(10, 60, 0, 5);
    table.networks.push(Network {
        id: net(4),
        subnet: [10, 60, 0, 0].into(),
        gateway: [10, 60, 0, 1].into(),
        ..table.networks[0].clone()
    });
    table.endpoints.push(Endpoint { network: net(4), address: elsewhere, ..table.endpoints[1].clone() });
    table.endpoints.push(Endpoint {
        network: net(4),
        address: [10, 60, 0, 6].into(),
        ..table.endpoints[0].clone()
    });
    let routes = Routes::new(&table, &NodeId::new("a"));
    let mut forged = packet(TCP, 0, 10, &[0; 20]);
    forged[12..16].copy_from_slice(&elsewhere.octets());
    assert_eq!(routes.incoming(net(1), B, &forged), Err(Reason::Spoofed), "it is another network's");
    forged[16..20].copy_from_slice(&[10, 60, 0, 6]);
    assert_eq!(routes.incoming(net(1), B, &forged), Err(Reason::Spoofed));
    assert_eq!(routes.incoming(net(4), B, &forged), Ok(()));
    // Nor does this node send it for a container of its own.
    let mut ours = packet(TCP, 0, 11, &[0; 20]);
    ours[12..16].copy_from_slice(&[10, 60, 0, 6]);
    assert_eq!(routes.outgoing(net(1), &ours, 0), Err(Reason::ForeignSource));
}

#[test]
fn a_gateway_may_report_errors_to_other_nodes() {
    let routes = routes();
    for (kind, allowed) in [(3, true), (11, true), (12, true), (0, false), (5, false), (8, false)] {
        let report = packet(ICMP, 1, 10, &[kind, 4, 0, 0, 0, 0, 0, 0]);
        assert_eq!(routes.incoming(net(1), B, &report).is_ok(), allowed, "ICMP type {kind}");
        let report = packet(ICMP, 1, 11, &[kind, 4, 0, 0, 0, 0, 0, 0]);
        assert_eq!(routes.outgoing(net(1), &report, 0).is_ok(), allowed, "ICMP type {kind}");
    }
}

#[test]
fn a_node_without_a_task_on_a_network_sends_nothing_into_it() {
    let routes = routes();
    let report = packet(ICMP, 1, 20, &[3, 4, 0, 0, 0, 0, 0, 0]);
    assert_eq!(routes.incoming(net(2), B, &report), Ok(()));
    assert_eq!(routes.incoming(net(2), C, &report), Err(Reason::Spoofed), "not even in the gateway's name");
}

#[test]
fn what_is_no_packet_is_dropped() {
    let routes = routes();
    let good = packet(TCP, 10, 11, &[0; 20]);
    let mut longer = good.clone();
    longer.push(0);
    let mut six = good.clone();
    six[0] = 0x65;
    let mut headerless = good.clone();
    headerless[0] = 0x44;
    for bad in [&good[..19], &good[..30], &longer, &six, &headerless, &[]] {
        assert_eq!(routes.outgoing(net(1), bad, 0), Err(Reason::Malformed));
        assert_eq!(routes.incoming(net(1), B, bad), Err(Reason::Malformed));
    }
}

proptest! {
    #[test]
    fn no_bytes_are_believed_beyond_the_table(mut bytes in proptest::collection::vec(any::<u8>(), 0..80), peer in 0u32..3) {
        let length = bytes.len() as u16;
        if bytes.len() >= 20 {
            bytes[0] = 0x45;
            bytes[2..4].copy_from_slice(&length.to_be_bytes());
        }
        let routes = routes();
        let _ = routes.outgoing(net(1), &bytes, 0);
        if routes.incoming(net(1), peer, &bytes).is_ok() {
            let source = Ipv4Addr::new(bytes[12], bytes[13], bytes[14], bytes[15]);
            let own = [Ipv4Addr::new(10, 50, 0, 11), Ipv4Addr::new(10, 50, 0, 12)];
            prop_assert!(own.get(peer as usize) == Some(&source) || source == Ipv4Addr::new(10, 50, 0, 1));
        }
    }
}

/// Hands `each` what the fuzzer has kept for a target, see `fuzz/README.md`.
fn replay(target: &str, each: impl Fn(&[u8])) {
    let corpus = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus").join(target);
    let mut count = 0;
    for file in std::fs::read_dir(&corpus).expect("the corpus is there") {
        let path = file.expect("a readable directory").path();
        println!("{}", path.display());
        each(&std::fs::read(path).expect("a readable file"));
        count += 1;
    }
    assert!(count >= 5, "{} is nearly empty", corpus.display());
}

#[test]
fn what_the_fuzzer_kept_does_no_harm() {
    replay("overlay_datagrams", hostile::datagrams);
    replay("overlay_sealed", hostile::sealed);
    replay("overlay_packet", hostile::packet);
    replay("overlay_question", hostile::question);
}

proptest! {
    #[test]
    fn no_bytes_do_harm(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        hostile::datagrams(&bytes);
        hostile::sealed(&bytes);
        hostile::packet(&bytes);
        hostile::question(&bytes);
    }
}
