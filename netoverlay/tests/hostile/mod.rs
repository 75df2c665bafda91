//! Bytes from elsewhere, handed to what reads them: for the fuzzer, and for the tests that replay what it has kept. Each
//! function takes anything, and fails if what comes of it is not sound.

use rswarm_netoverlay::{
    decide::{
        datagram::{self, Datagram, Offer},
        forward::{Routes, Slot},
        names::{self, Answer, Names, Transport},
        segment::{Coalescer, VIRTIO, split},
        too_big,
    },
    peer::seal::{self, HEAD, Key, MATERIAL, Outer, Seals},
    table::{Access, Endpoint, Network, NetworkId, Node, NodeId, Service, Table},
};

use std::{
    hash::{DefaultHasher, Hasher},
    time::{Duration, Instant},
};

use hickory_proto::op::{Message, MessageType};

const GATEWAY: [u8; 4] = [10, 50, 0, 1];

fn net() -> NetworkId {
    NetworkId::new(1).expect("one fits")
}

/// Nodes a and b with tasks .10 and .11, which are the service web.
fn table() -> Table {
    let endpoint = |last: u8, node: &str| Endpoint {
        network: net(),
        address: [10, 50, 0, last].into(),
        node: NodeId::new(node),
        names: vec![format!("web.{last}")],
        service: Some("web".into()),
    };
    Table {
        generation: 1,
        nodes: ["a", "b"]
            .map(|id| Node { id: NodeId::new(id), underlay: ([192, 0, 2, 1], 2377).into() })
            .into(),
        networks: vec![Network {
            id: net(),
            subnet: [10, 50, 0, 0].into(),
            prefix: 24,
            gateway: GATEWAY.into(),
            mtu: 1400,
            internal: false,
            isolated: false,
        }],
        endpoints: vec![endpoint(10, "a"), endpoint(11, "b")],
        services: vec![Service {
            network: net(),
            name: "web".into(),
            aliases: vec!["www".into()],
            vip: None,
            client_affinity: false,
            backends: vec![[10, 50, 0, 10].into(), [10, 50, 0, 11].into()],
            draining: vec![],
            access: Access::Open,
        }],
        ports: vec![],
    }
}

/// Datagrams of a peer, each behind its length in two bytes: header, source and destination, and how they are joined.
pub fn datagrams(mut bytes: &[u8]) {
    const PEER: Slot = 0;
    let routes = Routes::new(&table(), &NodeId::new("a"));
    let mut taken = Vec::new();
    while let Some((length, rest)) = bytes.split_first_chunk() {
        let (datagram, rest) = rest.split_at(usize::from(u16::from_be_bytes(*length)).min(rest.len()));
        bytes = rest;
        if let Ok(Datagram::Packet { flags, network, packet }) = datagram::read(datagram)
            && routes.incoming(network, PEER, packet).is_ok()
        {
            assert_eq!(datagram[..datagram::HEADER], datagram::header(flags, network));
            assert!(packet[12..16] == [10, 50, 0, 11] || packet[12..16] == GATEWAY, "it is the peer's own");
            assert_eq!(packet[16..20], [10, 50, 0, 10], "and for a task here");
            taken.push((flags, packet));
        }
    }
    let mut joined = Vec::new();
    let mut write = |head: &[u8], parts: &[&[u8]]| joined.push([head, &parts.concat()].concat());
    let mut coalescer = Coalescer::default();
    for (flags, packet) in &taken {
        coalescer.push(*flags, packet, &mut write);
    }
    coalescer.flush(&mut write);
    let payload = |packets: &[Vec<u8>]| packets.iter().map(Vec::len).sum::<usize>();
    assert!(joined.len() <= taken.len());
    assert!(payload(&joined) <= taken.iter().map(|(_, packet)| packet.len() + VIRTIO).sum());
    // The kernel is handed nothing that it could not have handed to us.
    let mut again = 0;
    for packet in &joined {
        split(packet, |_, _, _| again += 1).expect("what is joined can be cut");
    }
    assert!(again >= joined.len() && again <= taken.len());
}

/// The secret bytes of a key. They depend on all that is handed in, so that what was sealed in one run cannot be learnt
/// and handed in as a forgery in another.
fn material(bytes: &[u8], number: u32) -> [u8; MATERIAL] {
    let mut material = [0; MATERIAL];
    for (at, part) in (0u32..).zip(material.chunks_mut(8)) {
        let mut hasher = DefaultHasher::new();
        hasher.write_u32(number);
        hasher.write_u32(at);
        hasher.write(bytes);
        part.copy_from_slice(&hasher.finish().to_be_bytes()[..part.len()]);
    }
    material
}

/// What may happen on the way to packets that are sealed without QUIC: one byte says what, the next to which of them.
/// Whatever comes of it, what is opened was sealed, and is opened once.
pub fn sealed(bytes: &[u8]) {
    let now = Instant::now();
    let (mut from, mut to) = (Seals::default(), Seals::default());
    let mut index = 0u32;
    let mut sent: Vec<(Vec<u8>, Vec<u8>, bool)> = Vec::new();
    let mut steps = bytes;
    while let Some((&[what, which], rest)) = steps.split_first_chunk() {
        steps = rest;
        let mut arrives = None;
        match what % 6 {
            // Another key; it may get lost, come twice, or late.
            0 => {
                let offer = Offer { index: u32::MAX - 1, salt: [0; 32] };
                let offers = [index, index.saturating_sub(1)]
                    .map(|n| Offer { index: offer.index.wrapping_add(n), ..offer });
                if which & 1 == 0 {
                    to.add(Key::new(&material(bytes, index)), offers[0], now);
                    index += 1;
                }
                let taken = &offers[usize::from(which >> 1 & 1)];
                let number = taken.index.wrapping_sub(offer.index);
                from.take(taken, now, || Some(Key::new(&material(bytes, number))));
            }
            1 => {
                let packet = vec![which; usize::from(which)];
                let mut datagram = vec![];
                if from.ready(now) && from.seal([b"", &packet, &[]], &mut datagram) {
                    assert!(seal::is_foreign(&datagram));
                    assert!(
                        sent.iter().all(|(other, ..)| other[..HEAD] != datagram[..HEAD]),
                        "a number is used twice"
                    );
                    sent.push((datagram, packet, false));
                }
            }
            2 => arrives = sent.get(usize::from(which)).map(|(datagram, ..)| datagram.clone()),
            3 => {
                arrives = sent.last().map(|(datagram, ..)| datagram.clone());
                if let Some(byte) = arrives.as_mut().and_then(|datagram| datagram.get_mut(usize::from(which)))
                {
                    *byte ^= 1;
                }
            }
            4 => arrives = Some(rest[..rest.len().min(usize::from(which))].to_vec()),
            _ => {
                to.bypassed();
                if let Some(index) = to.retire(now + Duration::from_secs(u64::from(which))) {
                    from.forget(index);
                }
            }
        }
        let Some(mut datagram) = arrives else { continue };
        let original = datagram.clone();
        if let Outer::Sealed { index, packet } = seal::read(&original)
            && let Some(opened) = to.open(index, packet, &mut datagram, now)
        {
            let known = sent.iter_mut().find(|(sealed, ..)| *sealed == original).expect("it was sealed");
            assert_eq!(datagram[HEAD..HEAD + opened.length], known.1);
            assert!(!std::mem::replace(&mut known.2, true), "it is opened once");
        }
    }
}

/// A packet as the device hands it over: how it is cut, where it goes, and what is answered if it is too large.
pub fn packet(bytes: &[u8]) {
    let routes = Routes::new(&table(), &NodeId::new("a"));
    let mut cut = 0;
    let _ = split(bytes, |_, head, payload| {
        let slot = routes.outgoing(net(), head, payload.len());
        let packet = [head, payload].concat();
        cut += payload.len();
        if let Ok(slot) = slot {
            assert_eq!((slot, &packet[16..20]), (0, &[10, 50, 0, 11][..]));
        }
    });
    assert!(cut <= bytes.len());
    if let Some(packet) = bytes.get(VIRTIO..)
        && let Some(report) = too_big::report(packet, GATEWAY.into(), 1200)
    {
        assert!(report.len() <= 576 && report[12..16] == GATEWAY && report[9] == 1);
    }
}

/// A question of a container to its name server.
pub fn question(bytes: &[u8]) {
    let names = Names::new(&table());
    for transport in [Transport::Udp, Transport::Tcp] {
        let Answer::Reply(reply) = names.answer(&[net()], bytes, transport, 1) else { continue };
        let read = Message::from_vec(&reply).expect("a reply is a message");
        assert_eq!(read.metadata.message_type, MessageType::Response);
        assert_eq!(reply[..2], bytes[..2], "it answers the question");
        assert!(transport == Transport::Tcp || reply.len() <= 1232);
    }
    if let Some(failure) = names::failure(bytes) {
        Message::from_vec(&failure).expect("a failure is a message");
    }
}
