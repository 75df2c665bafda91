//! The data thread under a clock of the tests' own: two of them over the loopback, turn by turn, so that hours pass in
//! seconds, and nothing depends on how busy the machine is.

#[path = "../../testing.rs"]
#[allow(dead_code, reason = "other tests use the rest")]
mod testing;

use std::net::{SocketAddr, UdpSocket};

use nix::{
    sched::{CpuSet, sched_getcpu, sched_setaffinity},
    unistd::Pid,
};
use rustix::net::{AddressFamily, SocketFlags, SocketType};

use self::testing::{Authority, Keys, SERVER_NAME};
use super::*;
use crate::table::{Endpoint as Task, Network, Node as Known, Table};

const NAMES: [&str; 2] = ["a", "b"];
/// Turns without a step of the clock, at most.
const TURNS: usize = 10_000;

fn net() -> NetworkId {
    NetworkId::new(7).unwrap()
}

fn address(node: usize) -> [u8; 4] {
    [10, 50, 0, 10 + node as u8]
}

fn routes(underlays: [SocketAddr; 2], node: usize) -> Routes {
    let nodes = NAMES.iter().zip(underlays);
    let task = |at: usize| Task {
        network: net(),
        address: address(at).into(),
        node: NodeId::new(NAMES[at]),
        names: vec![],
        service: None,
    };
    let table = Table {
        generation: 1,
        nodes: nodes.map(|(id, underlay)| Known { id: NodeId::new(id), underlay }).collect(),
        networks: vec![Network {
            id: net(),
            subnet: [10, 50, 0, 0].into(),
            prefix: 24,
            gateway: [10, 50, 0, 1].into(),
            mtu: 1400,
            internal: false,
            isolated: false,
        }],
        endpoints: vec![task(0), task(1)],
        ..Table::default()
    };
    Routes::new(&table, &NodeId::new(NAMES[node]))
}

/// A packet of a container on `from` to the one on the other node.
fn packet(from: usize, number: u64) -> Vec<u8> {
    let mut packet = vec![0; VIRTIO + 20 + 8];
    let inner = &mut packet[VIRTIO..];
    (inner[0], inner[3], inner[8], inner[9]) = (0x45, 28, 64, 253);
    inner[12..16].copy_from_slice(&address(from));
    inner[16..20].copy_from_slice(&address(1 - from));
    inner[20..].copy_from_slice(&number.to_be_bytes());
    packet
}

fn number(packet: &[u8]) -> u64 {
    u64::from_be_bytes(*packet.last_chunk().unwrap())
}

/// A node: its data thread, without the thread.
struct Node {
    driver: Driver,
    events: mpsc::UnboundedReceiver<Event>,
    _accept: mpsc::Receiver<(NodeId, Stream)>,
    /// The other end of its device.
    device: OwnedFd,
}

impl Node {
    fn new(at: usize, authority: &Authority) -> Self {
        let Keys { server, client } = authority.keys(NAMES[at], super::super::provider());
        let holder = authority.holder();
        let config = Config {
            node: NodeId::new(NAMES[at]),
            listen: ([127, 0, 0, 1], 0).into(),
            server,
            client,
            server_name: SERVER_NAME.into(),
            identity: Arc::new(move |chain: &[rustls::pki_types::CertificateDer<'_>]| {
                holder(chain).map(NodeId::new)
            }),
            reset_key: Some([at as u8; 32]),
        };
        let (events, event_receiver) = mpsc::unbounded_channel();
        let (accepted, accept) = mpsc::channel(1);
        let socket = Udp::bind(config.listen).unwrap();
        let wake = Arc::new(Wake::new().unwrap());
        let mut driver = Driver::new(config, socket, wake, Arc::default(), events, accepted).unwrap();
        let (device, theirs) =
            rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::NONBLOCK, None)
                .unwrap();
        driver.devices.insert(net(), theirs);
        // In each test the numbers of keys go round.
        driver.next_key = u32::MAX - 1;
        Self { driver, events: event_receiver, _accept: accept, device }
    }

    fn listen(&self) -> SocketAddr {
        self.driver.socket.local_addr().unwrap()
    }

    /// Takes a turn if there is anything to do at `now`.
    fn turn(&mut self, now: Instant) -> bool {
        let due = mem::take(&mut self.driver.busy) || self.driver.alarm().is_some_and(|at| at <= now);
        self.driver.sleep(Some(Instant::now())).unwrap();
        let ready = &self.driver.ready;
        let does = due || ready.socket || ready.bell || !ready.devices.is_empty();
        if does {
            assert!(self.driver.turn(now));
        }
        does
    }

    fn send(&self, packet: &[u8]) {
        rustix::io::write(&self.device, packet).unwrap();
    }

    /// The numbers of the packets that have come for its container.
    fn arrived(&self) -> Vec<u64> {
        let mut buffer = [0; 2000];
        let read =
            || rustix::io::read(&self.device, &mut buffer[..]).ok().map(|length| number(&buffer[..length]));
        std::iter::from_fn(read).collect()
    }

    fn link(&mut self) -> &mut Link {
        let handle = self.driver.peers[0].link().expect("connected");
        self.driver.links.get_mut(&handle).unwrap()
    }

    fn events(&mut self) -> Vec<Event> {
        std::iter::from_fn(|| self.events.try_recv().ok()).collect()
    }
}

/// Two nodes, and the time.
struct Pair {
    nodes: [Node; 2],
    now: Instant,
    /// A packet to itself, behind all others on the loopback.
    barrier: UdpSocket,
    sent: u64,
}

impl Pair {
    fn new(authority: &Authority) -> Self {
        // On one processor the loopback keeps the order of all that is sent.
        let mut here = CpuSet::new();
        here.set(sched_getcpu().unwrap()).unwrap();
        sched_setaffinity(Pid::this(), &here).unwrap();
        let nodes = [0, 1].map(|at| Node::new(at, authority));
        let barrier = UdpSocket::bind(("127.0.0.1", 0)).unwrap();
        barrier.connect(barrier.local_addr().unwrap()).unwrap();
        barrier.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        let mut pair = Self { nodes, now: Instant::now(), barrier, sent: 0 };
        pair.introduce();
        pair.pass(Duration::from_millis(50));
        pair
    }

    fn introduce(&mut self) {
        let underlays = [self.nodes[0].listen(), self.nodes[1].listen()];
        for (at, node) in self.nodes.iter_mut().enumerate() {
            node.driver.route(routes(underlays, at), self.now);
        }
    }

    /// Lets all turns be taken that are due.
    fn settle(&mut self) {
        for _ in 0..TURNS {
            // What is under way has arrived when this has.
            self.barrier.send(b"all?").unwrap();
            self.barrier.recv(&mut [0; 8]).unwrap();
            let mut any = false;
            for node in &mut self.nodes {
                any |= node.turn(self.now);
            }
            if !any {
                return;
            }
        }
        panic!("they never come to rest");
    }

    /// Lets `time` pass, alarm by alarm.
    fn pass(&mut self, time: Duration) {
        let until = self.now + time;
        loop {
            self.settle();
            let alarm = self.nodes.iter_mut().filter_map(|node| node.driver.alarm()).min();
            match alarm {
                Some(alarm) if alarm <= until => self.now = self.now.max(alarm),
                _ => break,
            }
        }
        self.now = until;
        self.settle();
    }

    /// A packet from the container on that node; its number.
    fn send(&mut self, from: usize) -> u64 {
        self.sent += 1;
        self.nodes[from].send(&packet(from, self.sent));
        self.sent
    }

    /// One packet each way, which arrive, once.
    fn exchange(&mut self) {
        for from in [0, 1] {
            self.carry(from);
        }
    }

    fn carry(&mut self, from: usize) {
        let number = self.send(from);
        self.settle();
        assert_eq!(
            self.nodes[1 - from].arrived(),
            [number],
            "from {}, {:?}",
            NAMES[from],
            self.nodes[1 - from].driver.counters
        );
    }

    /// How many packets have come sealed, at each node.
    fn opened(&mut self) -> [u64; 2] {
        self.nodes.each_mut().map(|node| node.link().seals.opened())
    }

    /// What it seals with, at each node.
    fn keys(&mut self) -> [Option<u32>; 2] {
        self.nodes.each_mut().map(|node| node.link().seals.seals_with())
    }

    /// Exchanges packets until all of them are sealed.
    fn until_sealed(&mut self) {
        for _ in 0..100 {
            let before = self.opened();
            self.exchange();
            if self.opened() == before.map(|count| count + 1) {
                return;
            }
            self.pass(Duration::from_millis(50));
        }
        panic!("packets stay QUIC's");
    }

    /// What was said of the other node since this was last asked.
    fn heard(&mut self) -> [Vec<Event>; 2] {
        self.nodes.each_mut().map(Node::events)
    }
}

#[test]
fn a_connection_lasts_through_traffic_and_pauses_of_any_length() {
    let mut pair = Pair::new(&Authority::new());
    pair.until_sealed();
    assert!(pair.heard().iter().all(|events| matches!(events[..], [Event::Connected(_)])));
    let mut sealed = pair.opened();
    let first = pair.keys();
    // Far longer than QUIC waits for a connection that says nothing, all of it sealed without QUIC.
    for _ in 0..1500 {
        pair.exchange();
        pair.pass(Duration::from_millis(100));
    }
    assert_eq!(pair.opened(), sealed.map(|count| count + 1500), "none took the other way");
    let second = pair.keys();
    assert!(first[0] != second[0] && first[1] != second[1], "keys are changed");
    // One way only.
    sealed = pair.opened();
    for _ in 0..400 {
        pair.carry(0);
        pair.pass(Duration::from_millis(100));
    }
    assert_eq!(pair.opened()[1], sealed[1] + 400);
    // Longer than an idle connection lasts; longer than a key may be replaced; longer than it may be used.
    for pause in [45, 130, 660] {
        pair.pass(Duration::from_secs(pause));
        pair.until_sealed();
        sealed = pair.opened();
        for _ in 0..50 {
            pair.exchange();
            pair.pass(Duration::from_millis(20));
        }
        assert_eq!(pair.opened(), sealed.map(|count| count + 50), "after {pause} s");
    }
    assert!(pair.heard().iter().all(Vec::is_empty), "one connection for all of it, and nobody was suspect");
}

#[test]
fn a_key_is_followed_by_another_before_its_packets_run_out_and_after() {
    let mut pair = Pair::new(&Authority::new());
    pair.until_sealed();
    for skipped in [1 << 22, (1 << 22) + 4100, (1 << 23) - 3, (1 << 22) - 1] {
        let keys = pair.keys();
        for node in &mut pair.nodes {
            node.link().seals.skip_to(skipped);
        }
        for _ in 0..10 {
            pair.exchange();
        }
        pair.pass(Duration::from_millis(200));
        pair.until_sealed();
        let followed = pair.keys();
        assert!(keys[0] != followed[0] && keys[1] != followed[1], "after {skipped} packets");
        for node in &mut pair.nodes {
            assert_eq!(node.driver.counters.dropped(Reason::Forged), 0);
        }
        // Those of before are forgotten in time.
        pair.pass(Duration::from_secs(5));
        pair.exchange();
        assert!(pair.nodes.iter().all(|node| node.driver.keys.len() <= 2));
    }
    assert!(pair.keys().iter().all(|key| key.is_some_and(|key| key < 16)), "{:?}", pair.keys());
}

#[test]
fn packets_under_way_while_a_connection_is_made_anew_come_once_at_most() {
    let mut pair = Pair::new(&Authority::new());
    pair.until_sealed();
    for closes in [0, 1] {
        let mut arrived = vec![];
        let first = pair.sent + 1;
        for round in 0..100 {
            pair.send(0);
            pair.send(1);
            if round == 50 {
                let now = pair.now;
                let node = &mut pair.nodes[closes];
                let handle = node.driver.peers[0].links.pop().expect("connected");
                peers::close(&mut node.driver.links, handle, now, CODE_DONE, b"anew");
                node.driver.busy = true;
            }
            pair.pass(Duration::from_millis(5));
            arrived.extend(pair.nodes.iter().flat_map(Node::arrived));
        }
        pair.pass(Duration::from_secs(2));
        arrived.extend(pair.nodes.iter().flat_map(Node::arrived));
        let sent = (pair.sent - first + 1) as usize;
        arrived.sort_unstable();
        let before = arrived.len();
        arrived.dedup();
        assert_eq!(arrived.len(), before, "none twice");
        assert!(sent - arrived.len() <= 2, "{} of {sent} are lost", sent - arrived.len());
        pair.until_sealed();
        let heard = pair.heard();
        assert!(
            heard.iter().all(|events| events.iter().all(|event| matches!(event, Event::Connected(_)))),
            "{heard:?}"
        );
    }
}

#[test]
fn a_node_that_starts_anew_is_sealed_to_again() {
    let authority = Authority::new();
    let mut pair = Pair::new(&authority);
    pair.until_sealed();
    for restarts in [1, 0] {
        pair.nodes[restarts] = Node::new(restarts, &authority);
        // What is on the way to its former self; it is at another address, as after a move.
        pair.send(1 - restarts);
        pair.introduce();
        pair.pass(Duration::from_secs(3));
        pair.nodes.iter().for_each(|node| drop(node.arrived()));
        pair.until_sealed();
    }
}

/// What a node did before packets were sealed: it takes QUIC datagrams, passes over what belongs to no network, and
/// sends QUIC datagrams. It greases, as QUIC does unless told otherwise.
struct Earlier {
    endpoint: Endpoint,
    client: ClientConfig,
    socket: Udp,
    connection: Option<(ConnectionHandle, Connection)>,
    buffer: BytesMut,
    arrived: Vec<u64>,
}

impl Earlier {
    fn new(at: usize, authority: &Authority) -> Self {
        let keys = authority.keys(NAMES[at], super::super::provider());
        let (server, client) = tls::configs(&keys.server, &keys.client).unwrap();
        Self {
            endpoint: Endpoint::new(Arc::default(), Some(server), true, None),
            client,
            socket: Udp::bind(([127, 0, 0, 1], 0).into()).unwrap(),
            connection: None,
            buffer: BytesMut::new(),
            arrived: vec![],
        }
    }

    fn dial(&mut self, to: SocketAddr, now: Instant) {
        self.connection = self.endpoint.connect(now, self.client.clone(), to, SERVER_NAME).ok();
    }

    fn send(&mut self, packet: &[u8]) {
        let datagram = [&datagram::header(0, net())[..], &packet[VIRTIO..]].concat();
        self.connection.as_mut().unwrap().1.datagrams().send(datagram.into(), true).unwrap();
    }

    fn turn(&mut self, now: Instant) {
        let mut out = vec![];
        while let Some((mut all, received)) = self.socket.receive_into(&mut self.buffer) {
            while !all.is_empty() {
                let datagram = all.split_to(received.segment.min(all.len()));
                out.clear();
                match self.endpoint.handle(now, received.from, None, None, datagram, &mut out) {
                    Some(DatagramEvent::ConnectionEvent(_, event)) => {
                        self.connection.as_mut().unwrap().1.handle_event(event);
                    }
                    Some(DatagramEvent::NewConnection(incoming)) => {
                        out.clear();
                        self.connection = self.endpoint.accept(incoming, now, &mut out, None).ok();
                    }
                    Some(DatagramEvent::Response(transmit)) => transmit_out(&self.socket, &transmit, &out),
                    None => {}
                }
            }
        }
        let Some((handle, connection)) = &mut self.connection else { return };
        if connection.poll_timeout().is_some_and(|at| at <= now) {
            connection.handle_timeout(now);
        }
        while connection.poll().is_some() {}
        while let Some(datagram) = connection.datagrams().recv() {
            // The four bytes before a packet, as they were read then: no network, nothing for anybody.
            if datagram[1..4] != [0; 3] {
                self.arrived.push(number(&datagram));
            }
        }
        out.clear();
        while let Some(transmit) = connection.poll_transmit(now, 1, &mut out) {
            transmit_out(&self.socket, &transmit, &out);
            out.clear();
        }
        while let Some(event) = connection.poll_endpoint_events() {
            if let Some(event) = self.endpoint.handle_event(*handle, event) {
                connection.handle_event(event);
            }
        }
    }
}

#[test]
fn a_node_of_before_packets_were_sealed_gets_and_sends_them_by_quic() {
    for (here, there) in [(0, 1), (1, 0)] {
        let authority = Authority::new();
        let (mut node, mut earlier) = (Node::new(here, &authority), Earlier::new(there, &authority));
        let mut now = Instant::now();
        let mut underlays = [node.listen(); 2];
        underlays[there] = earlier.socket.local_addr().unwrap();
        node.driver.route(routes(underlays, here), now);
        if there == 0 {
            earlier.dial(node.listen(), now);
        }
        let (mut sent, mut arrived) = (vec![], vec![]);
        // Minutes, so that offers come and come again.
        for round in 0..20_000u64 {
            if round >= 200 && round % 50 == 0 {
                earlier.send(&packet(there, round));
                node.send(&packet(here, round));
                sent.push(round);
            }
            earlier.turn(now);
            node.turn(now);
            arrived.extend(node.arrived());
            now += Duration::from_millis(10);
        }
        for _ in 0..100 {
            earlier.turn(now);
            node.turn(now);
            arrived.extend(node.arrived());
            now += Duration::from_millis(10);
        }
        assert_eq!(arrived, sent);
        assert_eq!(earlier.arrived, sent);
        assert_eq!((node.link().seals.seals_with(), node.link().seals.opened()), (None, 0));
        assert!(matches!(node.events()[..], [Event::Connected(_)]));
        assert!(node.driver.keys.len() <= 2, "offers do not pile up");
    }
}
