//! The Linux half against the real kernel: namespaces, links, filters and whole networks. Needs root.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::{self, Read, Write},
    net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener, TcpStream, UdpSocket},
    os::fd::{AsRawFd, OwnedFd},
    path::PathBuf,
    thread,
    time::{Duration, Instant},
};

use rswarm_netoverlay::{
    decide::policy::Policy,
    device::{
        conntrack::{self, Conntrack},
        link::{Links, Route},
        netns::Netns,
        nft::{self, Nft},
        tun,
    },
    network::{Attachment, Backends, Network, Sandbox, Spec, TUN_NAME, Uplink, Vip},
    table::{self, Access, Allow, Endpoint, NetworkId, NodeId, Service, Table},
};
use socket2::{Domain, Protocol, Socket, Type};

/// A directory for pins, removed with all pins in it.
struct Pins {
    dir: tempfile::TempDir,
}

impl Pins {
    /// `None`, and the reason on stderr, if this is not root.
    fn new() -> Option<Self> {
        if !nix::unistd::geteuid().is_root() {
            eprintln!("skipped: namespaces need root");
            return None;
        }
        Some(Self { dir: tempfile::tempdir().unwrap() })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn netns(&self, name: &str) -> Netns {
        Netns::create(&self.path(name)).unwrap()
    }
}

impl Drop for Pins {
    fn drop(&mut self) {
        for entry in std::fs::read_dir(self.dir.path()).unwrap() {
            let path = entry.unwrap().path();
            if path.is_file() {
                Netns::remove(&path).unwrap();
            }
        }
    }
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

#[test]
fn a_namespace_is_pinned_opened_and_removed() {
    let Some(pins) = Pins::new() else { return };
    let path = pins.path("deep/er/one");
    let netns = Netns::create(&path).unwrap();
    assert!(Netns::create(&path).unwrap_err().is_present());
    assert!(Netns::open(&path).unwrap().is_same(&netns));
    assert!(!Netns::current().unwrap().is_same(&netns));
    assert!(Netns::ensure(&path).unwrap().is_same(&netns));
    netns.set_sysctls(&[("net/ipv4/ip_forward", "1")]).unwrap();
    assert_eq!(netns.sysctl("net/ipv4/ip_forward").unwrap(), "1");
    let error = netns.set_sysctls(&[("net/ipv4/no_such_thing", "1")]).unwrap_err();
    assert!(error.to_string().contains("no_such_thing") && error.is_missing(), "{error}");
    Netns::remove(&path).unwrap();
    Netns::remove(&path).unwrap();
    assert!(Netns::open(&path).unwrap_err().is_missing());
    std::fs::write(&path, "").unwrap();
    Netns::create(&path).unwrap();
    Netns::remove(&path).unwrap();
    std::fs::remove_dir_all(pins.path("deep")).unwrap();
}

#[tokio::test]
async fn links_addresses_and_routes_are_made_once() {
    let Some(pins) = Pins::new() else { return };
    let (a, b) = (pins.netns("a"), pins.netns("b"));
    let (here, there) = (Links::open(&a).unwrap(), Links::open(&b).unwrap());

    assert!(here.ensure_veth("left", 1400, "right", &there).await.unwrap());
    assert!(!here.ensure_veth("left", 1300, "right", &there).await.unwrap());
    assert_eq!(there.get("right").await.unwrap().mtu, 1300);
    assert_eq!(there.get("right").await.unwrap().kind, "veth");
    assert_eq!(there.find("left").await.unwrap(), None);
    let error = here.get("nowhere").await.unwrap_err();
    assert_eq!(error.to_string(), format!("cannot find link nowhere in netns {}", pins.path("a").display()));

    for links in [&here, &there] {
        links.set_up("lo").await.unwrap();
    }
    for _ in 0..2 {
        here.set_up("left").await.unwrap();
        there.set_up("right").await.unwrap();
        here.ensure_address("left", ip("10.9.0.1"), 24).await.unwrap();
        there.ensure_address("right", ip("10.9.0.2"), 24).await.unwrap();
        there.ensure_route(&Route::default_via(ip("10.9.0.1"))).await.unwrap();
        here.ensure_route(&Route::direct(ip("10.8.0.0"), 24, "left")).await.unwrap();
        here.ensure_mark_rule(false, 1, 100, 50).await.unwrap();
        let local = Route { table: Some(100), local: true, dev: Some("lo".into()), ..Route::default() };
        here.ensure_route(&local).await.unwrap();
        assert_eq!(here.routes(false, Some(100)).await.unwrap(), [local]);
    }
    assert_eq!(here.addresses("left").await.unwrap()[0], (ip("10.9.0.1"), 24));
    assert_eq!(there.routes(false, Some(254)).await.unwrap().len(), 2);
    for _ in 0..2 {
        here.remove_mark_rule(false, 1, 100).await.unwrap();
        here.remove_route(&Route::direct(ip("10.8.0.0"), 24, "left")).await.unwrap();
        here.remove_address("left", ip("10.9.0.1"), 24).await.unwrap();
    }
    assert_eq!(here.routes(false, Some(254)).await.unwrap(), []);

    here.ensure_bridge("br0").await.unwrap();
    here.ensure_bridge("br0").await.unwrap();
    here.set_bridge("left", "br0").await.unwrap();
    let bridge = here.get("br0").await.unwrap();
    assert_eq!(here.get("left").await.unwrap().controller, Some(bridge.index));
    here.rename("br0", "br1").await.unwrap();
    here.set_down("left").await.unwrap();
    assert!(!here.get("left").await.unwrap().up);
    here.delete("left").await.unwrap();
    here.delete("left").await.unwrap();
    assert_eq!(there.find("right").await.unwrap(), None);
}

#[tokio::test]
async fn a_name_held_by_a_dying_namespace_is_waited_for() {
    let Some(pins) = Pins::new() else { return };
    let home = pins.netns("home");
    let here = Links::open(&home).unwrap();
    for round in 0..10 {
        let path = pins.path("container");
        let netns = Netns::create(&path).unwrap();
        here.create_veth("vsame", 1400, "eth0", &netns)
            .await
            .unwrap_or_else(|error| panic!("round {round}: {error}"));
        // The namespace dies with its last handle; the kernel takes its links away some time after.
        Netns::remove(&path).unwrap();
    }
    let there = Links::open(&pins.netns("other")).unwrap();
    here.ensure_veth("vsame", 1400, "eth0", &there).await.unwrap();
}

#[tokio::test]
async fn a_name_in_use_is_an_error_that_says_so() {
    let Some(pins) = Pins::new() else { return };
    let here = Links::open(&pins.netns("one")).unwrap();
    let two = pins.netns("two");
    here.create_veth("taken", 1400, "first", &two).await.unwrap();
    let error = here.create_veth("taken", 1400, "second", &two).await.unwrap_err();
    assert!(error.is_present());
    assert!(error.to_string().starts_with("cannot create veth taken with peer second in netns"), "{error}");
}

/// A port on which every server of these tests listens.
const PORT: u16 = 5300;
const PATIENCE: Duration = Duration::from_secs(3);

fn v4(last: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 50, 0, last)
}

impl Pins {
    fn spec(&self, name: &str) -> Spec {
        Spec { pin: self.path(name), subnet: v4(0), prefix_len: 24, gateway: v4(1), mtu: 1400, queues: 1 }
    }

    async fn network(&self, name: &str) -> (Network, OwnedFd) {
        let (network, mut queues) = spawnable(Network::ensure(self.spec(name))).await.unwrap();
        (network, queues.pop().unwrap())
    }

    async fn container(&self, network: &Network, last: u8) -> Sandbox {
        let name = format!("c{last}");
        let sandbox = spawnable(Sandbox::ensure(&name, &self.path(&name))).await.unwrap();
        spawnable(network.attach(&sandbox, &attachment("eth0", last))).await.unwrap();
        sandbox
    }
}

/// Only what may run on a runtime of many threads is taken.
fn spawnable<F: Future + Send>(future: F) -> F {
    future
}

fn attachment(link: &str, last: u8) -> Attachment {
    Attachment { link: link.to_owned(), address: v4(last), default_route: link == "eth0" }
}

fn vip(last: u8, backends: &[u8]) -> Vip {
    Vip {
        address: v4(last),
        backends: backends.iter().map(|last| v4(*last)).collect(),
        draining: BTreeSet::new(),
        closed: BTreeSet::new(),
        affinity: false,
    }
}

fn services(vips: &[Vip]) -> Backends {
    Backends { vips: vips.to_vec(), ..Backends::default() }
}

/// Answers each connection with its name and the address it saw, until dropped.
struct Server {
    socket: Socket,
    thread: Option<thread::JoinHandle<()>>,
}

impl Server {
    fn start(netns: &Netns, name: &str) -> Self {
        let listener = netns.run(|| TcpListener::bind(("0.0.0.0", PORT))).unwrap().unwrap();
        let socket = Socket::from(listener.try_clone().unwrap());
        let name = name.to_owned();
        let thread = thread::spawn(move || {
            while let Ok((mut stream, peer)) = listener.accept() {
                let _ = write!(stream, "{name} saw {}", peer.ip());
            }
        });
        Self { socket, thread: Some(thread) }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.socket.shutdown(std::net::Shutdown::Both).unwrap();
        self.thread.take().unwrap().join().unwrap();
    }
}

fn call(netns: &Netns, to: Ipv4Addr) -> io::Result<String> {
    netns
        .run(|| {
            let mut stream = TcpStream::connect_timeout(&SocketAddr::from((to, PORT)), PATIENCE)?;
            stream.set_read_timeout(Some(PATIENCE))?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer)?;
            Ok(answer)
        })
        .unwrap()
}

/// Sends an echo request as an unprivileged program would, and waits for the answer.
fn ping(netns: &Netns, to: Ipv4Addr) -> io::Result<()> {
    netns
        .run(|| {
            let socket = Socket::new(Domain::IPV4, Type::DGRAM, Some(Protocol::ICMPV4))?;
            socket.set_read_timeout(Some(PATIENCE))?;
            socket.connect(&SocketAddr::from((to, 0)).into())?;
            socket.send(&[8, 0, 0, 0, 0, 0, 0, 1])?;
            let mut answer = [0; 64];
            (&socket).read(&mut answer).map(drop)
        })
        .unwrap()
}

#[tokio::test]
async fn two_containers_reach_each_other() {
    let Some(pins) = Pins::new() else { return };
    let (network, _tun) = pins.network("net").await;
    let (a, b) = (pins.container(&network, 2).await, pins.container(&network, 3).await);
    let _server = Server::start(b.netns(), "b");
    ping(a.netns(), v4(3)).unwrap();
    ping(a.netns(), v4(1)).unwrap();
    assert_eq!(call(a.netns(), v4(3)).unwrap(), "b saw 10.50.0.2");
    assert_eq!(network.attached().await.unwrap(), BTreeSet::from([v4(2), v4(3)]));
    assert_eq!(a.links().get("eth0").await.unwrap().mtu, 1400);

    network.detach(a.id(), "eth0").await.unwrap();
    network.detach(a.id(), "eth0").await.unwrap();
    assert_eq!(a.links().find("eth0").await.unwrap(), None);
    assert_eq!(network.attached().await.unwrap(), BTreeSet::from([v4(3)]));
}

#[tokio::test]
async fn a_container_cannot_use_the_address_of_another() {
    let Some(pins) = Pins::new() else { return };
    let (network, _tun) = pins.network("net").await;
    let (a, b) = (pins.container(&network, 2).await, pins.container(&network, 3).await);
    a.links().ensure_address("eth0", IpAddr::V4(v4(77)), 32).await.unwrap();
    let heard = b.netns().run(|| UdpSocket::bind(("0.0.0.0", PORT))).unwrap().unwrap();
    heard.set_read_timeout(Some(PATIENCE)).unwrap();
    a.netns()
        .run(|| {
            for (from, word) in [(v4(77), "false"), (v4(2), "true")] {
                UdpSocket::bind((from, 0)).unwrap().send_to(word.as_bytes(), (v4(3), PORT)).unwrap();
            }
        })
        .unwrap();
    let mut word = [0; 8];
    let (len, from) = heard.recv_from(&mut word).unwrap();
    assert_eq!((&word[..len], from.ip()), (&b"true"[..], IpAddr::V4(v4(2))));
}

#[tokio::test]
async fn a_container_may_change_its_address() {
    let Some(pins) = Pins::new() else { return };
    let (network, _tun) = pins.network("net").await;
    let (a, b) = (pins.container(&network, 2).await, pins.container(&network, 3).await);
    network.attach(&a, &attachment("eth0", 4)).await.unwrap();
    assert_eq!(network.attached().await.unwrap(), BTreeSet::from([v4(3), v4(4)]));
    ping(b.netns(), v4(4)).unwrap();
    ping(a.netns(), v4(3)).unwrap();
}

#[tokio::test]
async fn a_container_without_network_has_the_loopback_only() {
    let Some(pins) = Pins::new() else { return };
    let alone = Sandbox::ensure("alone", &pins.path("alone")).await.unwrap();
    let links = alone.links().list().await.unwrap();
    assert!(links.iter().all(|link| link.name == "lo" || !link.up), "{links:?}");
    ping(alone.netns(), Ipv4Addr::LOCALHOST).unwrap();
    assert!(call(alone.netns(), v4(3)).is_err());
}

#[tokio::test]
async fn a_container_in_two_networks_has_one_default_route() {
    let Some(pins) = Pins::new() else { return };
    let (first, _tun) = pins.network("net1").await;
    let mut spec = pins.spec("net2");
    (spec.subnet, spec.gateway) = (Ipv4Addr::new(10, 60, 0, 0), Ipv4Addr::new(10, 60, 0, 1));
    let (second, _tun) = Network::ensure(spec).await.unwrap();
    let sandbox = pins.container(&first, 2).await;
    let other =
        Attachment { link: "eth1".into(), address: Ipv4Addr::new(10, 60, 0, 2), default_route: false };
    second.attach(&sandbox, &other).await.unwrap();
    ping(sandbox.netns(), v4(1)).unwrap();
    ping(sandbox.netns(), Ipv4Addr::new(10, 60, 0, 1)).unwrap();
    let routes = sandbox.links().routes(false, Some(254)).await.unwrap();
    assert_eq!(routes.iter().filter(|route| route.destination.is_none()).count(), 1, "{routes:?}");
}

#[tokio::test]
async fn a_virtual_ip_spreads_and_keeps_the_clients_address() {
    let Some(pins) = Pins::new() else { return };
    let (network, _tun) = pins.network("net").await;
    let (client, b, c) = (
        pins.container(&network, 2).await,
        pins.container(&network, 3).await,
        pins.container(&network, 4).await,
    );
    let _servers = [Server::start(b.netns(), "b"), Server::start(c.netns(), "c")];
    let spread = services(&[vip(100, &[3, 4])]);
    assert!(network.render(&spread).unwrap().changed);
    assert!(!network.render(&spread).unwrap().changed);

    let mut answers: BTreeMap<String, usize> = BTreeMap::new();
    for _ in 0..10 {
        *answers.entry(call(client.netns(), v4(100)).unwrap()).or_default() += 1;
    }
    assert_eq!(
        answers,
        BTreeMap::from([("b saw 10.50.0.2".to_owned(), 5), ("c saw 10.50.0.2".to_owned(), 5)])
    );
    ping(client.netns(), v4(100)).unwrap();

    let stick = |backends: &[u8]| {
        network.render(&services(&[Vip { affinity: true, ..vip(100, backends) }])).unwrap();
        let answers: BTreeSet<String> = (0..6).map(|_| call(client.netns(), v4(100)).unwrap()).collect();
        assert_eq!(answers.len(), 1, "{answers:?}");
        answers.into_iter().next().unwrap()[..1].to_owned()
    };
    // It stays although others come and go, leaves with its own, and comes back with it.
    let first = stick(&[3, 4]);
    let (own, other) = if first == "b" { (3, 4) } else { (4, 3) };
    assert_eq!(stick(&[own]), first);
    assert_ne!(stick(&[other]), first);
    assert_eq!(stick(&[3, 4]), first);
}

#[tokio::test]
async fn a_task_reaches_itself_by_its_virtual_ip() {
    let Some(pins) = Pins::new() else { return };
    let (network, _tun) = pins.network("net").await;
    let b = pins.container(&network, 3).await;
    let _server = Server::start(b.netns(), "b");
    network.render(&services(&[vip(100, &[3])])).unwrap();
    assert_eq!(call(b.netns(), v4(100)).unwrap(), "b saw 10.50.0.1");
}

#[tokio::test]
async fn an_empty_service_refuses_at_once() {
    let Some(pins) = Pins::new() else { return };
    let (network, _tun) = pins.network("net").await;
    let client = pins.container(&network, 2).await;
    network.render(&services(&[vip(100, &[])])).unwrap();
    let begun = Instant::now();
    let error = call(client.netns(), v4(100)).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused, "{error}");
    let refused = client
        .netns()
        .run(|| -> io::Result<usize> {
            let udp = UdpSocket::bind("0.0.0.0:0")?;
            udp.set_read_timeout(Some(PATIENCE))?;
            udp.connect((v4(100), PORT))?;
            udp.send(b"anyone?")?;
            udp.recv(&mut [0; 8])
        })
        .unwrap();
    assert_eq!(refused.unwrap_err().kind(), io::ErrorKind::ConnectionRefused);
    assert!(begun.elapsed() < Duration::from_secs(1), "{:?}", begun.elapsed());
}

#[tokio::test]
async fn connections_to_a_removed_backend_are_forgotten() {
    let Some(pins) = Pins::new() else { return };
    let (network, _tun) = pins.network("net").await;
    let (client, b) = (pins.container(&network, 2).await, pins.container(&network, 3).await);
    let listener = b.netns().run(|| TcpListener::bind(("0.0.0.0", PORT))).unwrap().unwrap();
    network.render(&services(&[vip(100, &[3])])).unwrap();
    let connect =
        || client.netns().run(|| TcpStream::connect_timeout(&SocketAddr::from((v4(100), PORT)), PATIENCE));
    let mut held = connect().unwrap().unwrap();
    let udp = client.netns().run(|| UdpSocket::bind("0.0.0.0:0")).unwrap().unwrap();
    udp.send_to(b"x", (v4(100), PORT)).unwrap();

    let tracked = || Conntrack::open(network.netns()).unwrap().list().unwrap();
    assert_eq!(tracked().iter().filter(|found| found.dnat).count(), 2, "{:?}", tracked());

    // What drains keeps TCP, not UDP.
    let mut draining = vip(100, &[4]);
    draining.draining = BTreeSet::from([v4(3)]);
    assert_eq!(network.render(&services(&[draining])).unwrap().forgotten, 1);
    let (mut accepted, _) = listener.accept().unwrap();
    held.write_all(b"still").unwrap();
    let mut got = [0; 5];
    accepted.read_exact(&mut got).unwrap();

    assert_eq!(network.render(&services(&[vip(100, &[4])])).unwrap().forgotten, 1);
    assert_eq!(tracked().iter().filter(|found| found.dnat).count(), 0, "{:?}", tracked());

    // With no service left at all, likewise.
    network.render(&services(&[vip(100, &[3])])).unwrap();
    let _other = connect().unwrap().unwrap();
    assert_eq!(network.render(&services(&[])).unwrap().forgotten, 1);
}

#[tokio::test]
async fn a_connection_from_the_port_of_a_former_one_is_not_forgotten_in_its_stead() {
    let Some(pins) = Pins::new() else { return };
    let (network, _tun) = pins.network("net").await;
    let client = pins.container(&network, 2).await;
    let tasks = [pins.container(&network, 3).await, pins.container(&network, 4).await];
    let listeners = tasks.map(|task| {
        let listener = task.netns().run(|| TcpListener::bind(("0.0.0.0", PORT))).unwrap().unwrap();
        (task, listener)
    });
    let connect = |port: u16| {
        let open = || -> io::Result<TcpStream> {
            let socket = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP))?;
            socket.set_reuse_address(true)?;
            // Closing it frees the port at once.
            socket.set_linger(Some(Duration::ZERO))?;
            socket.bind(&SocketAddr::from((v4(2), port)).into())?;
            socket.connect_timeout(&SocketAddr::from((v4(100), PORT)).into(), PATIENCE)?;
            Ok(socket.into())
        };
        client.netns().run(open).unwrap().unwrap()
    };
    let conntrack = Conntrack::open(network.netns()).unwrap();
    for port in 40_000..40_020 {
        network.render(&services(&[vip(100, &[3])])).unwrap();
        drop(connect(port));
        let is_former = |found: &conntrack::Connection| found.dnat && found.original.source_port == port;
        let former = conntrack.list().unwrap().into_iter().find(is_former).unwrap();
        // The first task leaves, and the client uses its port again.
        let mut leaving = vip(100, &[4]);
        leaving.draining = BTreeSet::from([v4(3)]);
        network.render(&services(&[leaving])).unwrap();
        let mut again = connect(port);
        assert!(!conntrack.forget(&former).unwrap(), "the former is no longer there");
        let (mut accepted, _) = listeners[1].1.accept().unwrap();
        accepted.set_read_timeout(Some(PATIENCE)).unwrap();
        again.write_all(b"still").unwrap();
        accepted.read_exact(&mut [0; 5]).unwrap();
    }
}

#[tokio::test]
async fn a_connection_that_is_answered_while_others_are_looked_at_is_kept() {
    let Some(pins) = Pins::new() else { return };
    let (network, _tun) = pins.network("net").await;
    let (client, b) = (pins.container(&network, 2).await, pins.container(&network, 3).await);
    let server = b.netns().run(|| UdpSocket::bind(("0.0.0.0", PORT))).unwrap().unwrap();
    network.render(&services(&[vip(100, &[3])])).unwrap();
    let asking = client.netns().run(|| UdpSocket::bind("0.0.0.0:0")).unwrap().unwrap();
    for socket in [&server, &asking] {
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
    }
    asking.send_to(b"?", (v4(100), PORT)).unwrap();
    let (_, from) = server.recv_from(&mut [0; 8]).unwrap();

    let conntrack = Conntrack::open(network.netns()).unwrap();
    let mut answered = false;
    let unanswered = |found: &conntrack::Connection| {
        let is_stale = found.dnat && !found.answered;
        if is_stale && !std::mem::replace(&mut answered, true) {
            server.send_to(b"!", from).unwrap();
            let (_, by) = asking.recv_from(&mut [0; 8]).unwrap();
            assert_eq!(by.ip(), v4(100), "the client knows nobody else");
        }
        is_stale
    };
    assert_eq!(conntrack.delete(unanswered).unwrap(), 0);
    server.send_to(b"and again", from).unwrap();
    assert_eq!(asking.recv_from(&mut [0; 16]).unwrap().1.ip(), v4(100));

    // Nobody answers the other one.
    let other = client.netns().run(|| UdpSocket::bind("0.0.0.0:0")).unwrap().unwrap();
    other.send_to(b"?", (v4(100), PORT)).unwrap();
    server.recv_from(&mut [0; 8]).unwrap();
    assert_eq!(conntrack.delete(|found| found.dnat && !found.answered).unwrap(), 1);
}

#[tokio::test]
async fn a_connection_in_the_making_goes_to_another_task_when_its_own_leaves() {
    let Some(pins) = Pins::new() else { return };
    let (network, _tun) = pins.network("net").await;
    let (client, b) = (pins.container(&network, 2).await, pins.container(&network, 3).await);
    let _server = Server::start(b.netns(), "b");
    // What is sent to .9 gets lost.
    network.render(&services(&[vip(100, &[9])])).unwrap();
    thread::scope(|scope| {
        let called = scope.spawn(|| call(client.netns(), v4(100)));
        let tracked = || Conntrack::open(network.netns()).unwrap().list().unwrap();
        let deadline = Instant::now() + PATIENCE;
        while !tracked().iter().any(|found| found.dnat) {
            assert!(Instant::now() < deadline, "nothing was sent");
            thread::yield_now();
        }
        let mut leaving = vip(100, &[3]);
        leaving.draining = BTreeSet::from([v4(9)]);
        assert_eq!(
            network.render(&services(&[leaving.clone()])).unwrap().forgotten,
            0,
            "it may be under way"
        );
        leaving.closed = BTreeSet::from([v4(9)]);
        assert_eq!(network.render(&services(&[leaving])).unwrap().forgotten, 1);
        assert_eq!(called.join().unwrap().unwrap(), "b saw 10.50.0.2");
    });
}

/// The tasks of these services and, with a virtual IP, who may connect to them; web has .2, db .3, other .4.
fn policy(isolated: bool, db: Access) -> Policy {
    let id = NetworkId::new(1).unwrap();
    let network = table::Network {
        id,
        subnet: v4(0),
        prefix: 24,
        gateway: v4(1),
        mtu: 1400,
        internal: false,
        isolated,
    };
    let tasks = [("web", 2), ("db", 3), ("other", 4)];
    let task = |(service, last): (&str, u8)| Endpoint {
        network: id,
        address: v4(last),
        node: NodeId::new("a"),
        names: vec![],
        service: Some(service.into()),
    };
    let service = |name: &str, vip: u8, access| Service {
        network: id,
        name: name.into(),
        aliases: vec![],
        vip: Some(v4(vip)),
        client_affinity: false,
        backends: vec![],
        draining: vec![],
        access,
    };
    let services =
        vec![service("web", 100, Access::Open), service("db", 101, db), service("other", 102, Access::Open)];
    Policy::new(&Table { endpoints: tasks.map(task).into(), services, ..Table::default() }, &network)
}

fn only(service: &str, port: Option<(table::Protocol, u16)>) -> Access {
    Access::Only(vec![Allow { service: service.into(), port }])
}

/// Refused, and at once.
fn is_refused(netns: &Netns, to: Ipv4Addr) -> bool {
    let start = Instant::now();
    let refused = call(netns, to).is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused);
    refused && start.elapsed() < Duration::from_millis(500)
}

/// What came back for a datagram.
fn datagram(netns: &Netns, to: Ipv4Addr) -> io::Result<usize> {
    netns
        .run(|| {
            let socket = UdpSocket::bind("0.0.0.0:0")?;
            socket.set_read_timeout(Some(PATIENCE))?;
            socket.connect((to, PORT))?;
            socket.send(b"hello")?;
            socket.recv(&mut [0; 16])
        })
        .unwrap()
}

#[tokio::test]
async fn a_policy_is_enforced_and_answers_pass() {
    use table::Protocol::{Tcp, Udp};

    let Some(pins) = Pins::new() else { return };
    let (network, _tun) = pins.network("net").await;
    let mut containers = vec![];
    for last in [2, 3, 4] {
        containers.push(pins.container(&network, last).await);
    }
    let [web, db, other] = [0, 1, 2].map(|at: usize| containers[at].netns().clone());
    let _servers =
        [(&web, "web"), (&db, "db"), (&other, "other")].map(|(netns, name)| Server::start(netns, name));
    let echo = db.run(|| UdpSocket::bind(("0.0.0.0", PORT))).unwrap().unwrap();
    echo.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    thread::spawn(move || {
        let mut buffer = [0; 16];
        while let Ok((length, from)) = echo.recv_from(&mut buffer) {
            let _ = echo.send_to(&buffer[..length], from);
        }
    });
    let vips = [vip(100, &[2]), vip(101, &[3]), vip(102, &[4])];
    let render = |policy| network.render(&Backends { vips: vips.to_vec(), policy }).unwrap();

    // On an open network one service takes connections from another to one port, and the rest is as before.
    render(policy(false, only("web", Some((Tcp, PORT)))));
    for to in [v4(3), v4(101)] {
        assert_eq!(call(&web, to).unwrap(), "db saw 10.50.0.2");
        assert!(is_refused(&other, to), "{to}");
        assert!(ping(&web, to).is_err() && datagram(&web, to).is_err(), "only the port that was named");
    }
    assert!(is_refused(&db, v4(101)), "nor from its own tasks, unless it says so");
    for (from, to) in [(&db, 2), (&db, 100), (&other, 2), (&web, 102)] {
        assert!(call(from, v4(to)).is_ok(), "{to}");
    }
    ping(&db, v4(2)).unwrap();
    // What is published is for everybody.
    let (client, target) = ("203.0.113.9:4000".parse().unwrap(), SocketAddrV4::new(v4(3), PORT));
    network.connect_from(client, target).await.unwrap();

    // By another protocol, and by all.
    render(policy(false, only("web", Some((Udp, PORT)))));
    assert_eq!(datagram(&web, v4(101)).unwrap(), 5);
    assert!(is_refused(&web, v4(3)) && datagram(&other, v4(3)).is_err());
    render(policy(false, only("other", None)));
    assert!(
        datagram(&other, v4(3)).is_ok() && ping(&other, v4(101)).is_ok() && call(&other, v4(101)).is_ok()
    );
    assert!(is_refused(&web, v4(3)));

    // On an isolated network nobody says a word unasked.
    render(policy(true, only("web", None)));
    for to in [v4(3), v4(101)] {
        assert_eq!(call(&web, to).unwrap(), "db saw 10.50.0.2");
        ping(&web, to).unwrap();
    }
    for (from, to) in [(&db, 2), (&db, 100), (&web, 4), (&web, 102), (&other, 3), (&other, 77)] {
        assert!(is_refused(from, v4(to)), "{to}");
    }
    assert!(ping(&other, v4(2)).is_err());
    network.connect_from(client, target).await.unwrap();

    render(Policy::default());
    assert!(call(&other, v4(3)).is_ok() && call(&db, v4(102)).is_ok());
}

#[tokio::test]
async fn a_policy_takes_effect_on_connections_that_are_open() {
    let Some(pins) = Pins::new() else { return };
    let (network, _tun) = pins.network("net").await;
    let (web, db) = (pins.container(&network, 2).await, pins.container(&network, 3).await);
    let render = |access| {
        network.render(&Backends { vips: vec![vip(101, &[3])], policy: policy(false, access) }).unwrap()
    };
    render(Access::Open);
    let listener = db.netns().run(|| TcpListener::bind(("0.0.0.0", PORT))).unwrap().unwrap();
    let connect = |to: Ipv4Addr| {
        let near = web.netns().run(|| TcpStream::connect((to, PORT))).unwrap().unwrap();
        let (far, _) = listener.accept().unwrap();
        for stream in [&near, &far] {
            stream.set_read_timeout(Some(PATIENCE)).unwrap();
        }
        (near, far)
    };
    let says = |from: &mut TcpStream, to: &mut TcpStream| {
        from.write_all(b"x")?;
        to.read_exact(&mut [0])
    };
    let ended = |result: io::Result<()>| {
        result.is_err_and(|error| {
            matches!(error.kind(), io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe)
        })
    };
    let mut open = [connect(v4(3)), connect(v4(101)), connect(v4(3))];
    // What is still allowed goes on.
    render(only("web", Some((table::Protocol::Tcp, PORT))));
    for (near, far) in &mut open {
        says(near, far).unwrap();
        says(far, near).unwrap();
    }
    // What no longer is ends with the next word of either side.
    let rendered = render(only("other", None));
    assert!(rendered.forgotten >= 3, "{rendered:?}");
    let [(direct, _), (virtual_ip, _), (_, server)] = &mut open;
    for stream in [direct, virtual_ip, server] {
        stream.write_all(b"x").unwrap();
        assert!(ended(stream.read_exact(&mut [0])), "it is reset");
    }
    assert!(is_refused(web.netns(), v4(3)));
    render(Access::Open);
    let (mut near, mut far) = connect(v4(101));
    says(&mut near, &mut far).unwrap();
}

#[tokio::test]
async fn a_hundred_services_are_rendered_quickly() {
    let Some(pins) = Pins::new() else { return };
    let (network, _tun) = pins.network("net").await;
    let (client, b) = (pins.container(&network, 2).await, pins.container(&network, 3).await);
    let _server = Server::start(b.netns(), "b");
    let mut vips: Vec<Vip> = (100..200).map(|last| vip(last, &[3, 3 + (last % 7), 99])).collect();
    vips.push(vip(200, &[3]));
    vips.push(vip(201, &[]));
    let begun = Instant::now();
    network.render(&services(&vips)).unwrap();
    let first = begun.elapsed();
    assert_eq!(call(client.netns(), v4(200)).unwrap(), "b saw 10.50.0.2");
    vips.reverse();
    vips.pop();
    network.render(&services(&vips)).unwrap();
    assert_eq!(call(client.netns(), v4(200)).unwrap(), "b saw 10.50.0.2");
    assert!(first < Duration::from_secs(2), "{first:?}");
    eprintln!("102 services rendered in {first:?}");
}

/// Carries packets between two TUNs, as they are, until dropped.
struct Pump {
    stop: Option<io::PipeWriter>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Pump {
    fn start(a: OwnedFd, b: OwnedFd) -> Self {
        let (stopped, stop) = io::pipe().unwrap();
        let thread =
            thread::spawn(move || {
                let mut buffer = vec![0; 1 << 17];
                loop {
                    let mut fds = [stopped.as_raw_fd(), a.as_raw_fd(), b.as_raw_fd()]
                        .map(|fd| libc::pollfd { fd, events: libc::POLLIN, revents: 0 });
                    // SAFETY: the pointer and count are those of a live array.
                    unsafe { libc::poll(fds.as_mut_ptr(), 3, -1) };
                    if fds[0].revents != 0 {
                        return;
                    }
                    for (from, to) in [(&a, &b), (&b, &a)] {
                        while let Ok(len) = nix::unistd::read(from, &mut buffer) {
                            assert!(len > tun::VNET_HEADER_LEN);
                            let _ = nix::unistd::write(to, &buffer[..len]);
                        }
                    }
                }
            });
        Self { stop: Some(stop), thread: Some(thread) }
    }
}

impl Drop for Pump {
    fn drop(&mut self) {
        drop(self.stop.take());
        self.thread.take().unwrap().join().unwrap();
    }
}

#[tokio::test]
async fn two_nodes_carry_tcp_between_their_containers() {
    let Some(pins) = Pins::new() else { return };
    let (one, tun_one) = pins.network("net-1").await;
    let (two, tun_two) = pins.network("net-2").await;
    let (a, b) = (pins.container(&one, 2).await, pins.container(&two, 3).await);
    let _pump = Pump::start(tun_one, tun_two);
    let _server = Server::start(b.netns(), "b");
    ping(a.netns(), v4(3)).unwrap();
    assert_eq!(call(a.netns(), v4(3)).unwrap(), "b saw 10.50.0.2");

    for network in [&one, &two] {
        network.render(&services(&[vip(100, &[3])])).unwrap();
    }
    assert_eq!(call(a.netns(), v4(100)).unwrap(), "b saw 10.50.0.2");

    // Bulk, so that segments are merged and left unsummed.
    let listener = b.netns().run(|| TcpListener::bind(("0.0.0.0", PORT + 1))).unwrap().unwrap();
    let sender = thread::spawn({
        let netns = a.netns().clone();
        move || {
            let stream = netns.run(|| TcpStream::connect((v4(3), PORT + 1))).unwrap();
            stream.unwrap().write_all(&vec![7; 8 << 20]).unwrap();
        }
    });
    let (mut stream, _) = listener.accept().unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).unwrap();
    assert_eq!(bytes.len(), 8 << 20);
    assert!(bytes.iter().all(|byte| *byte == 7));
    sender.join().unwrap();
}

#[tokio::test]
async fn a_published_connection_shows_the_clients_address() {
    let Some(pins) = Pins::new() else { return };
    let (network, _tun) = pins.network("net").await;
    let b = pins.container(&network, 3).await;
    let _server = Server::start(b.netns(), "b");
    network.render(&services(&[])).unwrap();
    let client = SocketAddrV4::new(Ipv4Addr::new(203, 0, 113, 9), 40_000);
    for _ in 0..2 {
        let connecting = spawnable(network.connect_from(client, SocketAddrV4::new(v4(3), PORT)));
        let stream = tokio::time::timeout(PATIENCE, connecting).await.unwrap().unwrap();
        let mut stream = stream.into_std().unwrap();
        stream.set_nonblocking(false).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        assert_eq!(answer, "b saw 203.0.113.9");
    }
    let nobody = network.connect_from(client, SocketAddrV4::new(v4(3), PORT + 1));
    let error = tokio::time::timeout(PATIENCE, nobody).await.unwrap().unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
}

#[tokio::test]
async fn name_queries_arrive_at_our_sockets() {
    let Some(pins) = Pins::new() else { return };
    let alone = Sandbox::ensure("alone", &pins.path("alone")).await.unwrap();
    let old = alone.open_dns().unwrap();
    let dns = alone.open_dns().unwrap();
    drop(old);
    let server = SocketAddr::from(([127, 0, 0, 11], 53));
    let client = alone.netns().run(|| UdpSocket::bind("127.0.0.1:0")).unwrap().unwrap();
    client.set_read_timeout(Some(PATIENCE)).unwrap();
    client.connect(server).unwrap();
    client.send(b"query").unwrap();
    dns.udp.set_nonblocking(false).unwrap();
    dns.udp.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut buffer = [0; 16];
    let (len, from) = dns.udp.recv_from(&mut buffer).unwrap();
    assert_eq!(&buffer[..len], b"query");
    dns.udp.send_to(b"answer", from).unwrap();
    let len = client.recv(&mut buffer).unwrap();
    assert_eq!(&buffer[..len], b"answer");

    let stream = alone.netns().run(|| TcpStream::connect_timeout(&server, PATIENCE)).unwrap().unwrap();
    dns.tcp.set_nonblocking(false).unwrap();
    let (_, from) = dns.tcp.accept().unwrap();
    assert_eq!(from, stream.local_addr().unwrap());
}

#[tokio::test]
async fn a_restarted_daemon_finds_everything_as_it_was() {
    let Some(pins) = Pins::new() else { return };
    let (network, tun) = pins.network("net").await;
    let (a, b) = (pins.container(&network, 2).await, pins.container(&network, 3).await);
    let _server = Server::start(b.netns(), "b");
    let backends = services(&[vip(100, &[3])]);
    network.render(&backends).unwrap();
    let before = network.links().list().await.unwrap();

    let busy = Network::ensure(pins.spec("net")).await.unwrap_err();
    assert_eq!(busy.errno(), Some(libc::EBUSY), "{busy}");
    drop((network, tun));
    let (network, _tun) = pins.network("net").await;
    let a = Sandbox::ensure(a.id(), &pins.path("c2")).await.unwrap();
    network.attach(&a, &attachment("eth0", 2)).await.unwrap();
    assert!(!network.render(&backends).unwrap().changed);
    assert_eq!(network.links().list().await.unwrap(), before);
    assert_eq!(call(a.netns(), v4(100)).unwrap(), "b saw 10.50.0.2");

    network.detach_all_but([(a.id(), "eth0")]).await.unwrap();
    assert_eq!(network.attached().await.unwrap(), BTreeSet::from([v4(2)]));
    assert_eq!(b.links().find("eth0").await.unwrap(), None);

    drop((network, _tun));
    let spec = Spec { queues: 2, ..pins.spec("net") };
    let (_network, queues) = Network::ensure(spec).await.unwrap();
    assert_eq!(queues.len(), 2);
}

#[tokio::test]
async fn a_gateway_outside_of_the_subnet_is_refused() {
    let Some(pins) = Pins::new() else { return };
    let spec = Spec { gateway: Ipv4Addr::new(10, 51, 0, 1), ..pins.spec("net") };
    let error = Network::ensure(spec).await.unwrap_err();
    assert!(error.to_string().starts_with("cannot use gateway 10.51.0.1 in 10.50.0.0/24"), "{error}");
    assert!(!pins.path("net").exists());
    let spec = Spec { subnet: v4(7), ..pins.spec("net") };
    Network::ensure(spec).await.unwrap();
}

#[tokio::test]
async fn a_removed_network_leaves_nothing() {
    let Some(pins) = Pins::new() else { return };
    let (network, tun) = pins.network("net").await;
    let a = pins.container(&network, 2).await;
    spawnable(Network::remove(&pins.path("net"))).await.unwrap();
    Network::remove(&pins.path("net")).await.unwrap();
    assert_eq!(network.links().find(TUN_NAME).await.unwrap(), None);
    drop((network, tun));
    assert!(!pins.path("net").exists());
    assert_eq!(a.links().find("eth0").await.unwrap(), None);
    spawnable(Sandbox::remove(&pins.path("c2"))).await.unwrap();
    Sandbox::remove(&pins.path("c2")).await.unwrap();
    assert!(!pins.path("c2").exists());
}

#[tokio::test]
async fn an_uplink_leads_out_and_leaves_nothing() {
    let Some(pins) = Pins::new() else { return };
    let (host, world) = (pins.netns("host"), pins.netns("world"));
    let (at_host, at_world) = (Links::open(&host).unwrap(), Links::open(&world).unwrap());
    at_host.ensure_veth("nic", 1500, "nic", &at_world).await.unwrap();
    for (links, address) in [(&at_host, "192.0.2.1"), (&at_world, "192.0.2.2")] {
        links.set_up("lo").await.unwrap();
        links.set_up("nic").await.unwrap();
        links.ensure_address("nic", ip(address), 24).await.unwrap();
    }
    let _server = Server::start(&world, "world");
    let (one, _tun) = pins.network("net-1").await;
    let (two, _tun) = pins.network("net-2").await;
    let (a, b) = (pins.container(&one, 2).await, pins.container(&two, 3).await);
    let uplink = |id: &str| Uplink { host: host.clone(), id: id.to_owned() };
    for _ in 0..2 {
        assert_eq!(uplink("1").ensure(one.links(), 1400).await.unwrap().dropped_by, Vec::<String>::new());
        spawnable(uplink("2").ensure(two.links(), 1400)).await.unwrap();
    }
    let world_address = Ipv4Addr::new(192, 0, 2, 2);
    assert_eq!(call(a.netns(), world_address).unwrap(), "world saw 192.0.2.1");
    assert_eq!(call(b.netns(), world_address).unwrap(), "world saw 192.0.2.1");

    let nft = Nft::open(&host).unwrap();
    let mut filter = nft::Table::new(nft::Family::Ip, "filter");
    let mut base = nft::Base::new(nft::ChainKind::Filter, nft::Hook::Forward, nft::priority::FILTER);
    base.drop = true;
    filter.chains.push(nft::Chain::base("FORWARD", base, vec![]));
    nft.ensure(&filter).unwrap();
    let report = uplink("1").ensure(one.links(), 1400).await.unwrap();
    assert_eq!(report.dropped_by, ["table ip filter chain FORWARD"]);
    nft.remove(nft::Family::Ip, "filter").unwrap();

    uplink("1").remove(None).await.unwrap();
    assert_eq!(call(b.netns(), world_address).unwrap(), "world saw 192.0.2.1");
    for _ in 0..2 {
        spawnable(uplink("2").remove(Some(two.links()))).await.unwrap();
    }
    assert_eq!(nft.tables().unwrap(), []);
    assert_eq!(Nft::open(two.netns()).unwrap().tables().unwrap(), []);
    assert_eq!(host.sysctl("net/ipv4/ip_forward").unwrap(), "0");
    let names: Vec<String> = at_host.list().await.unwrap().into_iter().map(|link| link.name).collect();
    assert!(names.iter().all(|name| !name.starts_with("ru")), "{names:?}");
}

#[test]
fn every_statement_is_understood_by_the_kernel() {
    use nft::{
        Base, Chain, ChainKind, Elements, Family, Field, Hook, Pick, Refusal, Rule, Set, Statement as S,
        Table, Target, Value, Verdict,
    };
    let Some(pins) = Pins::new() else { return };
    let nft = Nft::open(&pins.netns("one")).unwrap();
    let rule = |statements: &[S]| Rule(statements.to_vec());
    let tcp = S::Is(Field::Protocol, Value::Byte(6));
    for family in [Family::Ip, Family::Ip6, Family::Inet] {
        let (address, source, destination) = match family {
            Family::Ip6 => (ip("fd00::1"), Field::Ip6Source, Field::Ip6Destination),
            _ => (ip("10.0.0.1"), Field::IpSource, Field::IpDestination),
        };
        let mut table = Table::new(family, "all");
        table.sets.push(Set {
            name: "wide".into(),
            key: vec![source, Field::Protocol, Field::DestinationPort],
            elements: Elements::Keys(
                (1..2000)
                    .map(|port| vec![Value::Address(address), Value::Byte(6), Value::Port(port)])
                    .collect(),
            ),
        });
        table.sets.push(Set {
            name: "links".into(),
            key: vec![Field::InputLink],
            elements: Elements::Verdicts(BTreeMap::from([
                (vec![Value::Link("lo".into())], Verdict::Accept),
                (vec![Value::Link("eth0".into())], Verdict::Jump("regular".into())),
            ])),
        });
        let wide = vec![source, Field::Protocol, Field::DestinationPort];
        table.chains.push(Chain::regular("regular", vec![rule(&[S::Verdict(Verdict::Return)])]));
        table.chains.push(Chain::base(
            "filter",
            Base { drop: true, ..Base::new(ChainKind::Filter, Hook::Forward, -5) },
            vec![
                rule(&[S::Counter, S::IsNot(Field::OutputLink, Value::Link("lo".into())), S::SetMark(7)]),
                rule(&[S::Is(Field::Mark, Value::Number(7)), S::CtMarkFromMark]),
                rule(&[S::Is(Field::CtMark, Value::Number(7)), S::MarkFromCt, S::SetCtMark(9)]),
                rule(&[S::AnyOf(Field::CtState, nft::ct::ESTABLISHED), S::Verdict(Verdict::Accept)]),
                rule(&[S::Is(Field::CtDirection, Value::Byte(1)), S::Verdict(Verdict::Drop)]),
                rule(&[S::Within(destination, address, 12), S::In(wide.clone(), "wide".into()), S::Counter]),
                rule(&[tcp.clone(), S::NotIn(wide, "wide".into()), S::Reject(Refusal::TcpReset)]),
                rule(&[tcp.clone(), S::AnyOf(Field::TcpFlags, 2), S::ClampMss]),
                rule(&[S::VerdictOf(vec![Field::InputLink], "links".into())]),
                rule(&[S::Is(Field::SourcePort, Value::Port(1)), S::Reject(Refusal::Prohibited)]),
                rule(&[S::Reject(Refusal::PortUnreachable)]),
            ],
        ));
        table.chains.push(Chain::base("marks", Base::new(ChainKind::Route, Hook::Output, -150), vec![]));
        let nat = |hook| Base::new(ChainKind::Nat, hook, -100);
        if family != Family::Inet {
            let many: Vec<IpAddr> = vec![address; 700];
            table.chains.push(Chain::base(
                "in",
                nat(Hook::Prerouting),
                vec![
                    rule(&[tcp.clone(), S::Dnat(Target::One(address, Some(53)))]),
                    rule(&[S::Dnat(Target::Of(Pick::RoundRobin, many.clone()))]),
                    rule(&[S::Dnat(Target::Of(Pick::Random, vec![address]))]),
                    rule(&[S::Dnat(Target::Of(Pick::BySource, many))]),
                    rule(&[tcp.clone(), S::Redirect(80)]),
                ],
            ));
            table.chains.push(Chain::base(
                "out",
                nat(Hook::Postrouting),
                vec![
                    rule(&[S::AnyOf(Field::CtStatus, nft::ct::DNAT), S::Snat(address)]),
                    rule(&[S::Masquerade]),
                ],
            ));
        }
        nft.replace(&nft::Ruleset { tables: vec![table.clone()] }).unwrap();
        assert!(!nft.ensure(&table).unwrap());
        nft.replace_rules(family, "all", &table.chains[0]).unwrap();
        nft.replace_elements(family, "all", &table.sets[0]).unwrap();
        nft.replace_elements(family, "all", &table.sets[1]).unwrap();
        table.chains.truncate(2);
        assert!(nft.ensure(&table).unwrap());

        table.chains[0].rules.push(rule(&[S::Verdict(Verdict::Jump("nowhere".into()))]));
        let error = nft.ensure(&table).unwrap_err();
        assert!(error.to_string().contains("`jump nowhere` to chain regular of table"), "{error}");
        assert!(error.is_missing());
    }
    assert_eq!(nft.tables().unwrap().len(), 3);
    for family in [Family::Ip, Family::Ip6, Family::Inet] {
        nft.remove(family, "all").unwrap();
        nft.remove(family, "all").unwrap();
    }
    assert_eq!(nft.tables().unwrap(), []);
}
