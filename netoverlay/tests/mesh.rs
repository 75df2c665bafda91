//! Meshes over the loopback: packets, streams, identity and silence. A socket pair stands for each device.

#[path = "../src/testing.rs"]
mod testing;

use std::{
    net::{Ipv4Addr, SocketAddr, UdpSocket},
    os::fd::OwnedFd,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use rswarm_netoverlay::{
    decide::{
        forward::{Reason, Routes},
        segment::VIRTIO,
    },
    peer::{self, Accept, Config, Event, Mesh, OpenError},
    table::{Endpoint, Network, NetworkId, Node, NodeId, Table},
};
use rustix::net::{AddressFamily, SocketFlags, SocketType};
use testing::{Authority, SERVER_NAME, eventually};
use tokio::sync::mpsc;

struct Member {
    mesh: Mesh,
    events: mpsc::UnboundedReceiver<Event>,
    accept: Accept,
    id: NodeId,
}

fn net() -> NetworkId {
    NetworkId::new(0x00c0_ffee & NetworkId::MAX).unwrap()
}

fn loopback() -> SocketAddr {
    "127.0.0.1:0".parse().unwrap()
}

fn start(authority: &Authority, name: &str) -> Member {
    start_as(authority, name, name, loopback())
}

/// Starts the node `name` with the certificate of `holder`.
fn start_as(authority: &Authority, name: &str, holder: &str, listen: SocketAddr) -> Member {
    let keys = authority.keys(holder, peer::provider());
    let who = authority.holder();
    let id = NodeId::new(name);
    let (mesh, events, accept) = Mesh::start(Config {
        node: id.clone(),
        listen,
        server: keys.server,
        client: keys.client,
        server_name: SERVER_NAME.into(),
        identity: Arc::new(move |chain: &[rustls::pki_types::CertificateDer<'_>]| {
            who(chain).map(NodeId::new)
        }),
        reset_key: Some([7; 32]),
    })
    .unwrap();
    Member { mesh, events, accept, id }
}

/// One endpoint for each node: 10.50.0.10, .11, …
fn table(nodes: &[(&str, SocketAddr)]) -> Table {
    Table {
        generation: 1,
        nodes: nodes.iter().map(|(id, underlay)| Node { id: NodeId::new(id), underlay: *underlay }).collect(),
        networks: vec![Network {
            id: net(),
            subnet: [10, 50, 0, 0].into(),
            prefix: 24,
            gateway: [10, 50, 0, 1].into(),
            mtu: 1400,
            internal: false,
            isolated: false,
        }],
        endpoints: nodes
            .iter()
            .zip(10..)
            .map(|((id, _), last)| Endpoint {
                network: net(),
                address: [10, 50, 0, last].into(),
                node: NodeId::new(id),
                names: vec![],
                service: None,
            })
            .collect(),
        ..Table::default()
    }
}

fn introduce(members: &[&Member]) {
    let nodes: Vec<_> = members.iter().map(|member| (member.id.as_str(), member.mesh.listen())).collect();
    for member in members {
        member.mesh.route(Routes::new(&table(&nodes), &member.id));
    }
}

/// Gives the mesh one end of a socket pair as its device; returns the other.
fn device(mesh: &Mesh) -> OwnedFd {
    let (ours, theirs) =
        rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::NONBLOCK, None)
            .unwrap();
    mesh.add_device(net(), theirs);
    ours
}

fn packet(source: [u8; 4], destination: [u8; 4], payload: &[u8]) -> Vec<u8> {
    let mut packet = vec![0; VIRTIO + 20];
    packet[VIRTIO] = 0x45;
    packet[VIRTIO + 2..VIRTIO + 4].copy_from_slice(&((20 + payload.len()) as u16).to_be_bytes());
    packet[VIRTIO + 8] = 64;
    packet[VIRTIO + 9] = 253;
    packet[VIRTIO + 12..VIRTIO + 16].copy_from_slice(&source);
    packet[VIRTIO + 16..VIRTIO + 20].copy_from_slice(&destination);
    packet.extend_from_slice(payload);
    packet
}

async fn read(device: &OwnedFd) -> Vec<u8> {
    let mut buffer = vec![0; 2000];
    let mut length = 0;
    eventually("a packet arrives", async || match rustix::io::read(device, &mut buffer[..]) {
        Ok(read) => {
            length = read;
            true
        }
        Err(_) => false,
    })
    .await;
    buffer.truncate(length);
    buffer
}

async fn wait_for(member: &mut Member, wanted: Event) -> Instant {
    let found = async {
        loop {
            let event = member.events.recv().await.expect("the mesh runs");
            if event == wanted {
                return Instant::now();
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(10), found)
        .await
        .unwrap_or_else(|_| panic!("never came: {wanted:?}"))
}

#[tokio::test]
async fn packets_sent_before_there_is_a_connection_arrive() {
    let authority = Authority::new();
    let (a, b) = (start(&authority, "a"), start(&authority, "b"));
    let (at_a, at_b) = (device(&a.mesh), device(&b.mesh));
    introduce(&[&a, &b]);
    let there = packet([10, 50, 0, 10], [10, 50, 0, 11], &[1; 1380]);
    rustix::io::write(&at_a, &there).unwrap();
    assert_eq!(read(&at_b).await, there);
    let back = packet([10, 50, 0, 11], [10, 50, 0, 10], b"back");
    rustix::io::write(&at_b, &back).unwrap();
    assert_eq!(read(&at_a).await, back);
}

#[tokio::test]
async fn a_packet_too_large_for_the_path_is_answered_with_the_size_that_fits() {
    let authority = Authority::new();
    let (mut a, b) = (start(&authority, "a"), start(&authority, "b"));
    let at_a = device(&a.mesh);
    introduce(&[&a, &b]);
    wait_for(&mut a, Event::Connected(b.id.clone())).await;
    let mut large = packet([10, 50, 0, 10], [10, 50, 0, 11], &[1; 1600]);
    large[VIRTIO + 6] = 0x40;
    rustix::io::write(&at_a, &large).unwrap();
    let report = &read(&at_a).await[VIRTIO..];
    assert_eq!((report[9], report[12..20].to_vec()), (1, vec![10, 50, 0, 1, 10, 50, 0, 10]));
    assert_eq!(report[20..22], [3, 4], "fragmentation needed");
    let fits = u16::from_be_bytes([report[26], report[27]]);
    assert!((1400..1500).contains(&fits), "{fits} bytes");
    assert_eq!(a.mesh.counters().dropped(Reason::TooBig), 1);
}

#[tokio::test]
async fn what_does_not_belong_is_dropped_and_counted() {
    let authority = Authority::new();
    let (a, b, c) = (start(&authority, "a"), start(&authority, "b"), start(&authority, "c"));
    let (at_a, at_b) = (device(&a.mesh), device(&b.mesh));
    introduce(&[&a, &b, &c]);
    // This node does not send what is not its own.
    rustix::io::write(&at_a, &packet([10, 50, 0, 12], [10, 50, 0, 11], b"not mine")).unwrap();
    rustix::io::write(&at_a, &packet([10, 50, 0, 10], [10, 50, 0, 99], b"to nobody")).unwrap();
    rustix::io::write(&at_a, b"junk").unwrap();
    eventually("they are counted", async || {
        let dropped = |reason| a.mesh.counters().dropped(reason);
        dropped(Reason::ForeignSource) == 1
            && dropped(Reason::NoRoute) == 1
            && dropped(Reason::Malformed) == 1
    })
    .await;
    // A node that was taken over does; its peers do not believe it.
    let mut lie = table(&[("a", a.mesh.listen()), ("b", b.mesh.listen()), ("c", c.mesh.listen())]);
    lie.endpoints[2].node = NodeId::new("a");
    a.mesh.route(Routes::new(&lie, &a.id));
    rustix::io::write(&at_a, &packet([10, 50, 0, 12], [10, 50, 0, 11], b"spoofed")).unwrap();
    eventually("the spoofed packet is dropped", async || b.mesh.counters().dropped(Reason::Spoofed) == 1)
        .await;
    // Nor in the name of a task that it has on another network.
    let (other, elsewhere) = (NetworkId::new(7).unwrap(), [10, 60, 0, 10]);
    let mut both = table(&[("a", a.mesh.listen()), ("b", b.mesh.listen()), ("c", c.mesh.listen())]);
    both.networks.push(Network {
        id: other,
        subnet: [10, 60, 0, 0].into(),
        gateway: [10, 60, 0, 1].into(),
        ..both.networks[0].clone()
    });
    let on = |network| Endpoint { network, address: elsewhere.into(), ..both.endpoints[0].clone() };
    let (lies, true_one) = (on(net()), on(other));
    lie.endpoints.push(lies);
    both.endpoints.push(true_one);
    b.mesh.route(Routes::new(&both, &b.id));
    a.mesh.route(Routes::new(&lie, &a.id));
    rustix::io::write(&at_a, &packet(elsewhere, [10, 50, 0, 11], b"spoofed")).unwrap();
    eventually("it is dropped, too", async || b.mesh.counters().dropped(Reason::Spoofed) == 2).await;
    assert_eq!(b.mesh.counters().received(), 0);
    assert!(rustix::io::read(&at_b, &mut [0; 100][..]).is_err(), "nothing has come through");
}

#[tokio::test]
async fn a_foreign_certificate_is_refused() {
    let (ours, theirs) = (Authority::new(), Authority::new());
    let (mut b, mallory) = (start(&ours, "b"), start(&theirs, "a"));
    introduce(&[&b, &mallory]);
    let refused = async {
        loop {
            if let Event::Refused { why, .. } = b.events.recv().await.unwrap() {
                return why;
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(10), refused).await.expect("the stranger is turned away");
    assert!(b.mesh.status().await.iter().all(|peer| !peer.connected));
    assert!(mallory.mesh.status().await.iter().all(|peer| !peer.connected));
}

#[tokio::test]
async fn a_node_that_is_not_the_one_expected_is_refused() {
    let authority = Authority::new();
    let mut a = start(&authority, "a");
    let b = start_as(&authority, "b", "c", loopback());
    let c = start(&authority, "c");
    introduce(&[&a, &b, &c]);
    let refused = async {
        loop {
            if let Event::Refused { why, .. } = a.events.recv().await.unwrap() {
                return why;
            }
        }
    };
    let why = tokio::time::timeout(Duration::from_secs(10), refused).await.unwrap();
    assert_eq!(why, "its certificate names c, but b was expected there");
    wait_for(&mut a, Event::Suspect(NodeId::new("b"))).await;
}

#[tokio::test]
async fn a_node_taken_from_the_table_is_disconnected() {
    let authority = Authority::new();
    let (mut a, b) = (start(&authority, "a"), start(&authority, "b"));
    introduce(&[&a, &b]);
    wait_for(&mut a, Event::Connected(b.id.clone())).await;
    b.mesh.route(Routes::new(&table(&[("b", b.mesh.listen())]), &b.id));
    eventually("a notices", async || {
        let status = a.mesh.status().await;
        !status[0].connected && status[0].error.is_some()
    })
    .await;
    assert!(b.mesh.status().await.is_empty());
}

#[tokio::test]
async fn streams_carry_bytes_both_ways_to_their_end() {
    let authority = Authority::new();
    let (mut a, mut b) = (start(&authority, "a"), start(&authority, "b"));
    assert_eq!(a.mesh.open(b.id.clone()).await.unwrap_err(), OpenError::NotConnected);
    introduce(&[&a, &b]);
    // The higher id opens as well as the lower, though it never dials.
    wait_for(&mut a, Event::Connected(b.id.clone())).await;
    wait_for(&mut b, Event::Connected(a.id.clone())).await;
    let data = Bytes::from((0..3_000_000u32).map(|at| (at % 251) as u8).collect::<Vec<_>>());
    let mut stream = b.mesh.open(a.id.clone()).await.unwrap();
    let sent = data.clone();
    let sending = tokio::spawn(async move {
        stream.sender.send(sent).await.unwrap();
        stream.sender.finish().await.unwrap();
        let mut back = vec![];
        while let Some(part) = stream.receiver.receive().await.unwrap() {
            back.extend_from_slice(&part);
        }
        back
    });
    let (from, mut stream) = a.accept.recv().await.unwrap();
    assert_eq!(from, b.id);
    let mut got = vec![];
    while let Some(part) = stream.receiver.receive().await.unwrap() {
        got.extend_from_slice(&part);
    }
    assert!(got == data, "{} of {} bytes", got.len(), data.len());
    stream.sender.send(Bytes::from_static(b"thanks")).await.unwrap();
    stream.sender.finish().await.unwrap();
    assert_eq!(sending.await.unwrap(), b"thanks");
}

#[tokio::test]
async fn a_stream_dropped_early_is_reset() {
    let authority = Authority::new();
    let (mut a, mut b) = (start(&authority, "a"), start(&authority, "b"));
    introduce(&[&a, &b]);
    wait_for(&mut a, Event::Connected(b.id.clone())).await;
    let mut stream = a.mesh.open(b.id.clone()).await.unwrap();
    stream.sender.send(Bytes::from_static(b"hello")).await.unwrap();
    let (_, mut there) = b.accept.recv().await.unwrap();
    assert_eq!(there.receiver.receive().await.unwrap().unwrap(), "hello");
    drop(stream);
    assert!(there.receiver.receive().await.is_err());
    eventually("the other direction breaks, too", async || {
        there.sender.send(Bytes::from_static(b"anyone?")).await.is_err()
    })
    .await;
}

/// A wire between two nodes that can be cut. `near` dials it, `far` is behind it.
struct Wire {
    address: SocketAddr,
    cut: Arc<AtomicBool>,
    /// Longer ones are swallowed.
    carries: Arc<AtomicUsize>,
    stop: Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Wire {
    fn new(far: SocketAddr) -> Self {
        let (front, back) = (UdpSocket::bind(loopback()).unwrap(), UdpSocket::bind(loopback()).unwrap());
        let address = front.local_addr().unwrap();
        let (cut, stop) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
        let (is_cut, stopped) = (cut.clone(), stop.clone());
        let carries = Arc::new(AtomicUsize::new(usize::MAX));
        let limit = carries.clone();
        for socket in [&front, &back] {
            socket.set_read_timeout(Some(Duration::from_millis(1))).unwrap();
        }
        let thread = std::thread::spawn(move || {
            let mut near = None;
            let mut buffer = [0; 2000];
            while !stopped.load(Ordering::Relaxed) {
                if let Ok((length, from)) = front.recv_from(&mut buffer) {
                    near = Some(from);
                    if !is_cut.load(Ordering::Relaxed) && length <= limit.load(Ordering::Relaxed) {
                        back.send_to(&buffer[..length], far).unwrap();
                    }
                }
                if let Ok(length) = back.recv(&mut buffer)
                    && let Some(near) = near
                    && !is_cut.load(Ordering::Relaxed)
                    && length <= limit.load(Ordering::Relaxed)
                {
                    front.send_to(&buffer[..length], near).unwrap();
                }
            }
        });
        Self { address, cut, carries, stop, thread: Some(thread) }
    }

    fn cut(&self, cut: bool) {
        self.cut.store(cut, Ordering::Relaxed);
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.take().unwrap().join().unwrap();
    }
}

#[tokio::test]
async fn silence_is_noticed_within_a_second_and_the_first_packet_heals_it() {
    let authority = Authority::new();
    let (mut a, mut b) = (start(&authority, "a"), start(&authority, "b"));
    let wire = Wire::new(b.mesh.listen());
    let (at_a, at_b) = (device(&a.mesh), device(&b.mesh));
    let nodes = table(&[("a", a.mesh.listen()), ("b", wire.address)]);
    a.mesh.route(Routes::new(&nodes, &a.id));
    b.mesh.route(Routes::new(&nodes, &b.id));
    wait_for(&mut a, Event::Connected(b.id.clone())).await;
    wait_for(&mut b, Event::Connected(a.id.clone())).await;

    wire.cut(true);
    let start = Instant::now();
    let (of_b, of_a) = tokio::join!(
        wait_for(&mut a, Event::Suspect(NodeId::new("b"))),
        wait_for(&mut b, Event::Suspect(NodeId::new("a")))
    );
    let noticed = of_b.max(of_a).duration_since(start);
    assert!(noticed < Duration::from_secs(2), "noticed after {noticed:?}");
    let late = packet([10, 50, 0, 10], [10, 50, 0, 11], b"waits for better times");
    rustix::io::write(&at_a, &late).unwrap();

    wire.cut(false);
    let start = Instant::now();
    let (of_b, of_a) = tokio::join!(
        wait_for(&mut a, Event::Recovered(NodeId::new("b"))),
        wait_for(&mut b, Event::Recovered(NodeId::new("a")))
    );
    let healed = of_b.max(of_a).duration_since(start);
    assert!(healed < Duration::from_secs(2), "healed after {healed:?}");
    assert_eq!(read(&at_b).await, late);
}

#[tokio::test]
async fn a_path_that_carries_less_is_noticed_by_asking() {
    let authority = Authority::new();
    let (mut a, b) = (start(&authority, "a"), start(&authority, "b"));
    let wire = Wire::new(b.mesh.listen());
    let nodes = table(&[("a", a.mesh.listen()), ("b", wire.address)]);
    a.mesh.route(Routes::new(&nodes, &a.id));
    b.mesh.route(Routes::new(&nodes, &b.id));
    wait_for(&mut a, Event::Connected(b.id.clone())).await;
    let carried = async || a.mesh.status().await[0].packet_max.unwrap();
    assert!(a.mesh.probe(b.id.clone()).await);
    assert!(carried().await >= 1400);
    wire.carries.store(1300, Ordering::Relaxed);
    eventually("it is noticed", async || {
        assert!(a.mesh.probe(b.id.clone()).await, "smaller packets pass");
        carried().await < 1300
    })
    .await;
    let dropped: u64 = Reason::ALL.iter().map(|reason| b.mesh.counters().dropped(*reason)).sum();
    assert_eq!(dropped, 0, "what only fills a packet is nobody's");
    assert!(!a.mesh.ask(NodeId::new("c")).await, "nobody of that name");
}

#[tokio::test]
async fn a_restarted_node_is_found_again() {
    for (first, second) in [("a", "b"), ("b", "a")] {
        let authority = Authority::new();
        let (stays, goes) = (start(&authority, first), start(&authority, second));
        let address = goes.mesh.listen();
        introduce(&[&stays, &goes]);
        let at_first = device(&stays.mesh);
        let mut stays = stays;
        wait_for(&mut stays, Event::Connected(goes.id.clone())).await;
        drop(goes);
        let goes = start_as(&authority, second, second, address);
        introduce(&[&goes, &stays]);
        let at_second = device(&goes.mesh);
        wait_for(&mut stays, Event::Connected(goes.id.clone())).await;
        let nodes =
            table(&[(goes.id.as_str(), goes.mesh.listen()), (stays.id.as_str(), stays.mesh.listen())]);
        let address = |id: &NodeId| -> Ipv4Addr {
            nodes.endpoints.iter().find(|endpoint| endpoint.node == *id).unwrap().address
        };
        let sent = packet(address(&stays.id).octets(), address(&goes.id).octets(), b"welcome back");
        rustix::io::write(&at_first, &sent).unwrap();
        assert_eq!(read(&at_second).await, sent);
    }
}
