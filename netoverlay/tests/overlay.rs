//! Whole overlays with containers in namespaces, several nodes in one host namespace of the test's own.

#[path = "../src/testing.rs"]
mod testing;

use std::{
    future::Future,
    io::{self, Read, Write},
    net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener, TcpStream, UdpSocket},
    path::PathBuf,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use hickory_proto::{
    op::{Message, Query, ResponseCode},
    rr::{Name, RecordType},
};
use nix::sched::{CloneFlags, unshare};
use rswarm_netoverlay::{
    Attach, Config, Event, Overlay,
    device::{
        conntrack,
        link::Links,
        netns::Netns,
        nft::{Family, Nft},
    },
    ingress::PortState,
    peer,
    table::{
        Access, Allow, Backend, Endpoint, Network, NetworkId, Node, NodeId, Protocol, PublishedPort, Service,
        Table,
    },
};
use testing::{Authority, SERVER_NAME, eventually};
use tokio::sync::mpsc;

const CLIENT: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 9);
const VIP: Ipv4Addr = Ipv4Addr::new(10, 50, 0, 100);
const PORT: u16 = 8080;
const PATIENCE: Duration = Duration::from_secs(3);

fn net() -> NetworkId {
    NetworkId::new(0x50).unwrap()
}

/// Runs `body` in a host namespace of its own, with the addresses of three nodes and a client.
fn on_a_host<F: Future<Output = ()>>(body: impl FnOnce(Links) -> F + Send + 'static) {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("skipped: network namespaces need root");
        return;
    }
    let host = std::thread::spawn(move || {
        unshare(CloneFlags::CLONE_NEWNET).unwrap();
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        runtime.block_on(async {
            let links = Links::open(&Netns::current().unwrap()).unwrap();
            links.set_up("lo").await.unwrap();
            for address in [underlay(0), underlay(1), underlay(2), CLIENT] {
                links.ensure_address("lo", IpAddr::V4(address), 32).await.unwrap();
            }
            body(links).await;
        });
    });
    if let Err(panic) = host.join() {
        std::panic::resume_unwind(panic);
    }
}

fn underlay(node: u8) -> Ipv4Addr {
    Ipv4Addr::new(192, 0, 2, node + 1)
}

/// The address of the container on a node.
fn task(node: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 50, 0, 10 + node)
}

fn id(node: u8) -> NodeId {
    NodeId::new(format!("n{node}"))
}

/// Nodes `0..nodes` with a container each, all of them behind the service `web`.
fn table(nodes: u8) -> Table {
    Table {
        generation: 1,
        nodes: (0..nodes).map(|n| Node { id: id(n), underlay: (underlay(n), 2377).into() }).collect(),
        networks: vec![Network {
            id: net(),
            subnet: [10, 50, 0, 0].into(),
            prefix: 24,
            gateway: [10, 50, 0, 1].into(),
            mtu: 1400,
            internal: false,
            isolated: false,
        }],
        endpoints: (0..nodes)
            .map(|n| Endpoint {
                network: net(),
                address: task(n),
                node: id(n),
                names: vec![format!("web.{}", n + 1)],
                service: None,
            })
            .collect(),
        services: vec![Service {
            network: net(),
            name: "web".into(),
            aliases: vec![],
            vip: Some(VIP),
            client_affinity: false,
            backends: (0..nodes).map(task).collect(),
            draining: vec![],
            access: Access::Open,
        }],
        ports: vec![PublishedPort {
            port: PORT,
            protocol: Protocol::Tcp,
            service: "web".into(),
            network: net(),
            target_port: 80,
            proxy_protocol: false,
            client_affinity: false,
            backends: (0..nodes).map(|n| Backend { node: id(n), address: task(n) }).collect(),
        }],
    }
}

struct Machine {
    number: u8,
    overlay: Overlay,
    events: mpsc::UnboundedReceiver<Event>,
    authority: Arc<Authority>,
    directory: Arc<Pins>,
}

/// A directory whose pins are taken away even if the test fails.
struct Pins(tempfile::TempDir);

impl Pins {
    fn list(&self) -> Vec<PathBuf> {
        let entries = |name: &str| std::fs::read_dir(self.0.path().join(name)).into_iter().flatten();
        entries("networks").chain(entries("sandboxes")).map(|entry| entry.unwrap().path()).collect()
    }
}

impl Drop for Pins {
    fn drop(&mut self) {
        for pin in self.list() {
            Netns::remove(&pin).unwrap();
        }
    }
}

impl Machine {
    fn start(authority: &Arc<Authority>, number: u8) -> Self {
        Self::start_in(authority, number, Arc::new(Pins(tempfile::tempdir().unwrap())))
    }

    fn start_in(authority: &Arc<Authority>, number: u8, directory: Arc<Pins>) -> Self {
        let keys = authority.keys(id(number).as_str(), peer::provider());
        let who = authority.holder();
        let (overlay, events) = Overlay::start(Config {
            mesh: peer::Config {
                node: id(number),
                listen: (underlay(number), 2377).into(),
                server: keys.server,
                client: keys.client,
                server_name: SERVER_NAME.into(),
                identity: Arc::new(move |chain: &[rustls::pki_types::CertificateDer<'_>]| {
                    who(chain).map(NodeId::new)
                }),
                reset_key: Some([number; 32]),
            },
            run_dir: directory.0.path().to_owned(),
            ingress: underlay(number).into(),
            upstreams: vec![],
            uplink: number == 2,
        })
        .unwrap();
        Self { number, overlay, events, authority: authority.clone(), directory }
    }

    /// As a new daemon after the old one has ended.
    async fn restart(self) -> Self {
        self.overlay.shutdown().await;
        Self::start_in(&self.authority, self.number, self.directory.clone())
    }

    /// Applies the table and attaches the container.
    async fn join(&self, table: &Table) -> Netns {
        self.overlay.apply(table.clone()).await.unwrap();
        let attach = Attach {
            sandbox: format!("c{}", self.number),
            networks: vec![(net(), task(self.number))],
            upstreams: Vec::new(),
        };
        Netns::open(&self.overlay.attach(attach).await.unwrap()).unwrap()
    }

    async fn wait_for(&mut self, wanted: impl Fn(&Event) -> bool) -> Event {
        let found = async {
            loop {
                let event = self.events.recv().await.expect("the overlay runs");
                if wanted(&event) {
                    return event;
                }
            }
        };
        tokio::time::timeout(Duration::from_secs(10), found).await.expect("the event comes")
    }

    async fn connected(&self, peers: usize) {
        eventually("all peers are connected", async || {
            let status = self.overlay.status().await.unwrap();
            status.peers.iter().filter(|peer| peer.connected).count() == peers
        })
        .await;
    }
}

/// Several machines, each with its container, all connected.
async fn cluster(nodes: u8) -> (Vec<Machine>, Vec<Netns>) {
    let authority = Arc::new(Authority::new());
    let machines: Vec<_> = (0..nodes).map(|number| Machine::start(&authority, number)).collect();
    let mut containers = vec![];
    for machine in &machines {
        containers.push(machine.join(&table(nodes)).await);
    }
    for machine in &machines {
        machine.connected(usize::from(nodes) - 1).await;
    }
    (machines, containers)
}

async fn purge(machines: Vec<Machine>) {
    for machine in machines {
        machine.overlay.purge().await.unwrap();
        assert_eq!(machine.directory.list(), Vec::<PathBuf>::new());
    }
}

/// Greets each connection to port 80 of `container` with `name` and the client's address, then echoes it. Ends with
/// the process; the listener ends with the namespace's last holder.
fn serve(container: &Netns, name: &str) {
    let listener = container.run(|| TcpListener::bind("0.0.0.0:80").unwrap()).unwrap();
    let name = name.to_owned();
    std::thread::spawn(move || {
        while let Ok((mut stream, from)) = listener.accept() {
            let name = name.clone();
            std::thread::spawn(move || {
                let greeting = format!("{name} {}\n", from.ip());
                if stream.write_all(greeting.as_bytes()).is_ok() {
                    let _ = io::copy(&mut stream.try_clone().unwrap(), &mut stream);
                }
            });
        }
    });
}

fn dial(from: &Netns, to: Ipv4Addr) -> io::Result<TcpStream> {
    let stream = from.run(|| TcpStream::connect_timeout(&(to, 80).into(), PATIENCE)).unwrap()?;
    stream.set_read_timeout(Some(PATIENCE))?;
    Ok(stream)
}

/// The first line that comes.
fn greeting(stream: &mut TcpStream) -> io::Result<String> {
    let mut line = vec![];
    let mut byte = [0];
    while byte != *b"\n" {
        stream.read_exact(&mut byte)?;
        line.push(byte[0]);
    }
    Ok(String::from_utf8(line).unwrap().trim_end().to_owned())
}

fn echo(stream: &mut TcpStream, bytes: usize) {
    let sent: Vec<u8> = (0..bytes).map(|at| (at % 251) as u8).collect();
    let mut writer = stream.try_clone().unwrap();
    let copy = sent.clone();
    let writing = std::thread::spawn(move || writer.write_all(&copy).unwrap());
    let mut got = vec![0; bytes];
    stream.read_exact(&mut got).unwrap();
    writing.join().unwrap();
    assert!(got == sent, "what comes back is what was sent");
}

/// From a client elsewhere to the published port of a node; echoes some bytes if greeted.
async fn visit(node: u8, bytes: usize) -> io::Result<String> {
    let stream = tokio::task::spawn_blocking(move || {
        let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None)?;
        socket.bind(&SocketAddr::from((CLIENT, 0)).into())?;
        socket.connect_timeout(&SocketAddr::from((underlay(node), PORT)).into(), PATIENCE)?;
        socket.set_read_timeout(Some(PATIENCE))?;
        let mut stream = socket.into();
        let greeting = greeting(&mut stream)?;
        echo(&mut stream, bytes);
        Ok(greeting)
    });
    stream.await.unwrap()
}

/// Whether `to` answers an ICMP echo.
fn ping(from: &Netns, to: Ipv4Addr) -> bool {
    let socket = from
        .run(|| {
            socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::DGRAM, Some(socket2::Protocol::ICMPV4))
        })
        .unwrap()
        .unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    let request = [8, 0, 0, 0, 0, 0, 0, 1, b'p', b'i', b'n', b'g'];
    socket.send_to(&request, &SocketAddr::V4(SocketAddrV4::new(to, 0)).into()).unwrap();
    let mut reply = [0; 64];
    matches!((&socket).read(&mut reply), Ok(12) if reply[0] == 0 && reply[8..12] == *b"ping")
}

/// The addresses of `name`, as a container's resolver asks.
fn resolve(from: &Netns, name: &str, kind: RecordType) -> (ResponseCode, Vec<String>) {
    let mut question = Message::query();
    question.add_query(Query::query(Name::from_utf8(name).unwrap(), kind));
    let question = question.to_vec().unwrap();
    let socket = from.run(|| UdpSocket::bind("0.0.0.0:0").unwrap()).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket.connect("127.0.0.11:53").unwrap();
    socket.send(&question).unwrap();
    let mut reply = [0; 1500];
    let length = socket.recv(&mut reply).unwrap();
    let by_udp = Message::from_vec(&reply[..length]).unwrap();
    let stream = from.run(|| TcpStream::connect_timeout(&([127, 0, 0, 11], 53).into(), PATIENCE)).unwrap();
    let mut stream = stream.unwrap();
    stream.write_all(&(question.len() as u16).to_be_bytes()).unwrap();
    stream.write_all(&question).unwrap();
    let mut length = [0; 2];
    stream.read_exact(&mut length).unwrap();
    let mut reply = vec![0; usize::from(u16::from_be_bytes(length))];
    stream.read_exact(&mut reply).unwrap();
    assert_eq!(Message::from_vec(&reply).unwrap().metadata.response_code, by_udp.metadata.response_code);
    let mut answers: Vec<_> = by_udp.answers.iter().map(|record| record.data.to_string()).collect();
    answers.sort();
    (by_udp.metadata.response_code, answers)
}

#[test]
fn containers_reach_each_other_by_address_name_and_virtual_address() {
    on_a_host(|_| async {
        let (machines, containers) = cluster(3).await;
        for (container, name) in containers.iter().zip(["zero", "one", "two"]) {
            serve(container, name);
        }
        assert!(ping(&containers[0], task(1)), "another node's container answers");
        assert!(ping(&containers[0], Ipv4Addr::new(10, 50, 0, 1)), "the gateway answers");
        let mut stream = dial(&containers[0], task(2)).unwrap();
        assert_eq!(greeting(&mut stream).unwrap(), format!("two {}", task(0)));
        echo(&mut stream, 2_000_000);

        let mut seen: Vec<_> =
            (0..3).map(|_| greeting(&mut dial(&containers[0], VIP).unwrap()).unwrap()).collect();
        seen.sort();
        // A task that reaches itself by the virtual address is called by the gateway.
        assert_eq!(seen, [format!("one {}", task(0)), format!("two {}", task(0)), "zero 10.50.0.1".into()]);

        let a = |name| resolve(&containers[1], name, RecordType::A);
        assert_eq!(a("web."), (ResponseCode::NoError, vec![VIP.to_string()]));
        assert_eq!(a("tasks.web."), (ResponseCode::NoError, (0..3).map(|n| task(n).to_string()).collect()));
        assert_eq!(a("WEB.3."), (ResponseCode::NoError, vec![task(2).to_string()]));
        assert_eq!(a("example.org."), (ResponseCode::ServFail, vec![]));
        assert_eq!(resolve(&containers[1], "web.", RecordType::AAAA), (ResponseCode::NoError, vec![]));

        let status = machines[0].overlay.status().await.unwrap();
        assert!(status.packets_sent > 0 && status.packets_received > 0);
        assert_eq!(status.networks, [(net(), None)].into());
        purge(machines).await;
    });
}

#[test]
fn a_container_in_two_networks_has_the_names_of_both_and_a_way_out() {
    on_a_host(|_| async {
        // The third node has an uplink.
        let machine = Machine::start(&Arc::new(Authority::new()), 2);
        let mut table = table(3);
        let other = NetworkId::new(0x51).unwrap();
        table.networks.push(Network {
            id: other,
            subnet: [10, 51, 0, 0].into(),
            prefix: 24,
            gateway: [10, 51, 0, 1].into(),
            mtu: 1400,
            internal: false,
            isolated: false,
        });
        table.services.push(Service {
            network: other,
            name: "db".into(),
            aliases: vec!["store".into()],
            vip: Some([10, 51, 0, 100].into()),
            client_affinity: false,
            backends: vec![],
            draining: vec![],
            access: Access::Open,
        });
        let attach = Attach { sandbox: "c".into(), networks: vec![(net(), task(2))], upstreams: Vec::new() };
        let refused = machine.overlay.attach(attach).await;
        assert!(refused.is_err_and(|error| error.to_string().contains("network 000050 is not in the table")));
        machine.overlay.apply(table).await.unwrap();
        let networks = vec![(net(), task(2)), (other, [10, 51, 0, 12].into())];
        let attach = Attach { sandbox: "c".into(), networks, upstreams: Vec::new() };
        let container = Netns::open(&machine.overlay.attach(attach.clone()).await.unwrap()).unwrap();
        machine.overlay.attach(attach).await.unwrap();
        for gateway in [Ipv4Addr::new(10, 50, 0, 1), Ipv4Addr::new(10, 51, 0, 1)] {
            assert!(ping(&container, gateway), "{gateway} answers");
        }
        let a = |name| resolve(&container, name, RecordType::A).1;
        assert_eq!(a("web."), [VIP.to_string()]);
        assert_eq!(a("store."), ["10.51.0.100"]);
        // A service without tasks refuses at once.
        let start = Instant::now();
        assert!(dial(&container, [10, 51, 0, 100].into()).is_err());
        assert!(start.elapsed() < Duration::from_millis(900));

        let outside = TcpListener::bind((CLIENT, 80)).unwrap();
        dial(&container, CLIENT).unwrap();
        assert!(!outside.accept().unwrap().1.ip().is_loopback());
        drop(container);
        purge(vec![machine]).await;
    });
}

#[test]
fn published_ports_answer_on_every_node_and_show_the_clients_address() {
    on_a_host(|_| async {
        let (mut machines, containers) = cluster(2).await;
        // The other container refuses; it is passed over.
        serve(&containers[1], "one");
        for node in [0, 1, 0, 1] {
            assert_eq!(
                visit(node, 1_000_000).await.unwrap(),
                format!("one {CLIENT}"),
                "by way of node {node}"
            );
        }

        // Another port, which somebody else has taken.
        let taken = TcpListener::bind((underlay(0), 9090)).unwrap();
        let mut wider = table(2);
        wider.generation = 2;
        wider.ports.push(PublishedPort { port: 9090, ..wider.ports[0].clone() });
        machines[0].overlay.apply(wider.clone()).await.unwrap();
        let event = machines[0].wait_for(|event| matches!(event, Event::Port(_))).await;
        let Event::Port(event) = event else { unreachable!() };
        assert_eq!(event.port, 9090);
        assert!(
            matches!(event.state, PortState::Failed(why) if why.contains("port 9090/tcp of service web is in use"))
        );
        drop(taken);
        let event = machines[0].wait_for(|event| matches!(event, Event::Port(_))).await;
        assert!(matches!(event, Event::Port(event) if event.state == PortState::Open));

        // Taken back, nobody listens any more.
        let mut none = table(2);
        none.generation = 3;
        none.ports.clear();
        machines[0].overlay.apply(none).await.unwrap();
        eventually("the port is closed", async || {
            TcpStream::connect_timeout(&(underlay(0), PORT).into(), PATIENCE).is_err()
        })
        .await;
        assert!(machines[0].overlay.apply(wider).await.is_err(), "an older table is refused");
        purge(machines).await;
    });
}

#[test]
fn a_client_of_a_published_port_stays_with_its_task_whichever_node_it_asks() {
    on_a_host(|_| async {
        let (machines, containers) = cluster(2).await;
        serve(&containers[0], "zero");
        serve(&containers[1], "one");
        let mut stays = table(2);
        stays.generation = 2;
        stays.ports[0].client_affinity = true;
        for machine in &machines {
            machine.overlay.apply(stays.clone()).await.unwrap();
        }
        let first = visit(0, 1000).await.unwrap();
        for node in [1, 0, 1, 0, 1, 0] {
            assert_eq!(visit(node, 1000).await.unwrap(), first, "by way of node {node}");
        }
        // Its task goes; the client is not left alone.
        let other = u8::from(first.starts_with("zero"));
        stays.generation = 3;
        stays.ports[0].backends.retain(|backend| backend.node == id(other));
        for machine in &machines {
            machine.overlay.apply(stays.clone()).await.unwrap();
        }
        assert_ne!(visit(0, 1000).await.unwrap(), first);
        purge(machines).await;
    });
}

#[test]
fn a_task_behind_the_proxy_protocol_is_told_both_ends_first() {
    on_a_host(|_| async {
        let (machines, containers) = cluster(2).await;
        let mut proxied = table(2);
        proxied.generation = 2;
        proxied.ports[0].proxy_protocol = true;
        for machine in &machines {
            machine.overlay.apply(proxied.clone()).await.unwrap();
        }
        for (container, name) in containers.iter().zip(["zero", "one"]) {
            let listener = container.run(|| TcpListener::bind("0.0.0.0:80").unwrap()).unwrap();
            std::thread::spawn(move || {
                while let Ok((mut stream, from)) = listener.accept() {
                    // It says nothing before it has read whose connection this is.
                    let mut header = [0; 28];
                    if stream.read_exact(&mut header).is_err() {
                        continue;
                    }
                    let end = |ip: usize, port: usize| {
                        let octets: [u8; 4] = header[ip..ip + 4].try_into().unwrap();
                        let port = u16::from_be_bytes([header[port], header[port + 1]]);
                        SocketAddrV4::new(octets.into(), port)
                    };
                    let (source, destination) = (end(16, 24), end(20, 26));
                    let is_true = SocketAddr::V4(source) == from;
                    let greeting = format!("{name} {} {destination} {is_true}\n", source.ip());
                    if stream.write_all(greeting.as_bytes()).is_ok() {
                        let _ = io::copy(&mut stream.try_clone().unwrap(), &mut stream);
                    }
                }
            });
        }
        for node in [0, 1] {
            let mut seen = vec![];
            for _ in 0..2 {
                let greeting = visit(node, 1000).await.unwrap();
                let (name, rest) = greeting.split_once(' ').unwrap();
                assert_eq!(rest, format!("{CLIENT} {}:{PORT} true", underlay(node)));
                seen.push(name.to_owned());
            }
            seen.sort();
            assert_eq!(seen, ["one", "zero"], "by way of node {node}");
        }
        purge(machines).await;
    });
}

#[test]
fn published_udp_ports_answer_on_every_node_and_show_the_clients_address() {
    on_a_host(|_| async {
        let (machines, containers) = cluster(2).await;
        let mut wider = table(2);
        wider.generation = 2;
        wider.ports.push(PublishedPort { protocol: Protocol::Udp, ..wider.ports[0].clone() });
        // The first datagram of a flow must not meet a node that does not know the port yet.
        for machine in &machines {
            machine.overlay.apply(wider.clone()).await.unwrap();
        }
        for (container, name) in containers.iter().zip(["zero", "one"]) {
            let socket = container.run(|| UdpSocket::bind("0.0.0.0:80").unwrap()).unwrap();
            std::thread::spawn(move || {
                let mut buffer = [0; 2000];
                while let Ok((length, from)) = socket.recv_from(&mut buffer) {
                    let reply = [format!("{name} {from} ").as_bytes(), &buffer[..length]].concat();
                    let _ = socket.send_to(&reply, from);
                }
            });
        }
        eventually("the ports are open", async || {
            let mut open = 0;
            for machine in &machines {
                let status = machine.overlay.status().await.unwrap();
                open += status.ports.values().filter(|state| **state == PortState::Open).count();
            }
            open == 4
        })
        .await;
        for node in [0, 1] {
            let mut seen = vec![];
            for _ in 0..2 {
                let client = tokio::net::UdpSocket::bind((CLIENT, 0)).await.unwrap();
                client.connect((underlay(node), PORT)).await.unwrap();
                let mut buffer = vec![0; 2000];
                let mut who = String::new();
                for question in [&b""[..], b"?", &[b'x'; 1900]] {
                    client.send(question).await.unwrap();
                    let received = tokio::time::timeout(PATIENCE, client.recv(&mut buffer)).await;
                    let length = received.expect("the task answers").unwrap();
                    let (greeting, rest) = buffer[..length].split_at(length - question.len());
                    assert_eq!(rest, question);
                    let greeting = String::from_utf8(greeting.to_vec()).unwrap();
                    let (name, from) = greeting.trim_end().split_once(' ').unwrap();
                    assert_eq!(from, client.local_addr().unwrap().to_string(), "the task sees who calls");
                    who = name.to_owned();
                }
                seen.push(who);
            }
            seen.sort();
            assert_eq!(seen, ["one", "zero"], "by way of node {node}");
        }
        purge(machines).await;
    });
}

#[test]
fn a_silent_node_leaves_the_services_and_comes_back() {
    on_a_host(|links| async move {
        let (mut machines, containers) = cluster(2).await;
        serve(&containers[0], "zero");
        serve(&containers[1], "one");
        let from = &containers[0];
        let who = |stream: io::Result<TcpStream>| greeting(&mut stream.unwrap()).unwrap()[..3].to_owned();
        let mut long = dial(from, task(1)).unwrap();
        greeting(&mut long).unwrap();

        // A busy machine may have made them suspect each other before.
        eventually("nobody is suspect", async || {
            machines[0].overlay.status().await.unwrap().peers.iter().all(|peer| !peer.suspect)
        })
        .await;
        while machines[0].events.try_recv().is_ok() {}
        links.remove_address("lo", underlay(1).into(), 32).await.unwrap();
        for _ in 0..2 {
            let start = Instant::now();
            assert!(visit(0, 10).await.unwrap().starts_with("zero"), "a silent task is passed over");
            assert!(start.elapsed() < Duration::from_secs(1));
        }
        let suspect = |event: &Event| *event == Event::Peer(peer::Event::Suspect(id(1)));
        machines[0].wait_for(suspect).await;
        for _ in 0..10 {
            let start = Instant::now();
            assert_eq!(who(dial(from, VIP)), "zer");
            let took = start.elapsed();
            assert!(took < Duration::from_millis(900), "took {took:?}: a packet was sent to the dead node");
            assert!(visit(0, 10).await.unwrap().starts_with("zero"));
        }

        links.ensure_address("lo", underlay(1).into(), 32).await.unwrap();
        let recovered = |event: &Event| *event == Event::Peer(peer::Event::Recovered(id(1)));
        machines[0].wait_for(recovered).await;
        eventually("both answer again", async || who(dial(from, VIP)) == "one").await;
        echo(&mut long, 1000);
        purge(machines).await;
    });
}

#[test]
fn a_connection_under_way_to_a_leaving_task_goes_elsewhere_when_its_node_vanishes() {
    on_a_host(|links| async move {
        let (machines, containers) = cluster(2).await;
        serve(&containers[0], "zero");
        links.remove_address("lo", underlay(1).into(), 32).await.unwrap();
        let started = Instant::now();
        let dials = [(); 2].map(|()| {
            let from = containers[0].clone();
            std::thread::spawn(move || greeting(&mut dial(&from, VIP)?))
        });
        let inside = Netns::open(&machines[0].directory.0.path().join("networks").join(net().to_string()));
        let tracked = conntrack::Conntrack::open(&inside.unwrap()).unwrap();
        eventually("one is sent to the node that is gone", async || {
            tracked.list().unwrap().iter().any(|one| one.reply.source == IpAddr::V4(task(1)))
        })
        .await;
        // The managers, who do not know yet, have that task leave.
        let mut leaving = table(2);
        leaving.generation = 2;
        leaving.services[0].backends.remove(1);
        leaving.services[0].draining.push(task(1));
        machines[0].overlay.apply(leaving).await.unwrap();
        for dial in dials {
            let greeting = tokio::task::spawn_blocking(move || dial.join().unwrap()).await.unwrap();
            assert!(greeting.unwrap().starts_with("zero"));
        }
        // The second packet of a connection is sent after a second, the third after three.
        let took = started.elapsed();
        assert!(took < PATIENCE, "took {took:?}");
        links.ensure_address("lo", underlay(1).into(), 32).await.unwrap();
        purge(machines).await;
    });
}

#[test]
fn a_connection_without_a_word_moves_to_another_task_when_its_node_vanishes() {
    on_a_host(|links| async move {
        let (machines, containers) = cluster(3).await;
        let mut wider = table(3);
        wider.generation = 2;
        wider.ports[0].backends.remove(0);
        for machine in &machines {
            machine.overlay.apply(wider.clone()).await.unwrap();
        }
        // One keeps silent, the other greets.
        let mute = containers[1].run(|| TcpListener::bind("0.0.0.0:80").unwrap()).unwrap();
        serve(&containers[2], "two");
        let (mut visits, started) = (vec![], Instant::now());
        for _ in 0..2 {
            visits.push(tokio::spawn(visit(0, 1000)));
        }
        let (taken, _) = tokio::task::spawn_blocking(move || mute.accept()).await.unwrap().unwrap();
        links.remove_address("lo", underlay(1).into(), 32).await.unwrap();
        for visit in visits {
            assert!(visit.await.unwrap().unwrap().starts_with("two"));
        }
        let took = started.elapsed();
        assert!(took < PATIENCE, "took {took:?}");
        drop(taken);
        links.ensure_address("lo", underlay(1).into(), 32).await.unwrap();
        purge(machines).await;
    });
}

#[test]
fn a_connection_that_is_reset_before_a_word_moves_to_another_task() {
    on_a_host(|_| async {
        let (machines, containers) = cluster(3).await;
        // One on the client's own node and one elsewhere take each connection and reset it at once.
        let mut taken = vec![];
        for container in &containers[..2] {
            let listener = container.run(|| TcpListener::bind("0.0.0.0:80").unwrap()).unwrap();
            let (count, counted) = std::sync::mpsc::channel();
            std::thread::spawn(move || {
                while let Ok((stream, _)) = listener.accept() {
                    socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO)).unwrap();
                    let _ = count.send(());
                }
            });
            taken.push(counted);
        }
        serve(&containers[2], "two");
        for _ in 0..6 {
            assert!(visit(0, 1000).await.unwrap().starts_with("two"));
        }
        assert!(taken.iter().all(|counted| counted.try_iter().count() > 0), "both were tried");
        purge(machines).await;
    });
}

#[test]
fn what_a_task_has_said_last_arrives_after_the_word_that_it_has_ended() {
    on_a_host(|_| async {
        let (machines, containers) = cluster(2).await;
        let listener = containers[1].run(|| TcpListener::bind("0.0.0.0:80").unwrap()).unwrap();
        serve(&containers[0], "zero");
        // One of two goes to the task that is about to end.
        let from = containers[0].clone();
        let dials = [(); 2].map(|()| dial(&from, VIP).unwrap());
        let (mut last, _) = listener.accept().unwrap();
        machines[1].overlay.ended(vec![(net(), task(1))]).await.unwrap();
        eventually("nobody new goes there", async || {
            resolve(&containers[0], "tasks.web.", RecordType::A).1 == [task(0).to_string()]
        })
        .await;
        last.write_all(b"goodbye\n").unwrap();
        drop(last);
        let mut heard: Vec<String> = dials.into_iter().map(|mut one| greeting(&mut one).unwrap()).collect();
        heard.sort();
        assert_eq!(heard[0], "goodbye");
        assert!(greeting(&mut dial(&from, VIP).unwrap()).unwrap().starts_with("zero"));
        let inside = Netns::open(&machines[0].directory.0.path().join("networks").join(net().to_string()));
        let tracked = conntrack::Conntrack::open(&inside.unwrap()).unwrap();
        eventually("nothing is kept of it", async || {
            !tracked.list().unwrap().iter().any(|one| one.reply.source == IpAddr::V4(task(1)))
        })
        .await;
        purge(machines).await;
    });
}

#[test]
fn an_ended_task_is_unrouted_everywhere_without_the_managers() {
    on_a_host(|_| async {
        let (machines, containers) = cluster(3).await;
        for (container, name) in containers.iter().zip(["zero", "one", "two"]) {
            serve(container, name);
        }
        // The node of the task says so; no table comes.
        machines[1].overlay.ended(vec![(net(), task(1))]).await.unwrap();
        for (machine, container) in machines.iter().zip(&containers) {
            eventually("its name means two tasks", async || {
                resolve(container, "tasks.web.", RecordType::A).1
                    == [task(0).to_string(), task(2).to_string()]
            })
            .await;
            for _ in 0..4 {
                let who = greeting(&mut dial(container, VIP).unwrap()).unwrap();
                assert!(!who.starts_with("one"), "node {} still uses it", machine.number);
            }
            assert!(!visit(machine.number, 10).await.unwrap().starts_with("one"));
        }
        // A node speaks for its own tasks alone.
        machines[1].overlay.ended(vec![(net(), task(2))]).await.unwrap();
        assert_eq!(resolve(&containers[1], "tasks.web.", RecordType::A).1.len(), 2);

        // The managers' next table without it, and then with another task at that address.
        let mut without = table(3);
        without.generation = 2;
        without.services[0].backends.remove(1);
        without.ports[0].backends.remove(1);
        let mut again = table(3);
        again.generation = 3;
        for machine in &machines {
            machine.overlay.apply(without.clone()).await.unwrap();
            machine.overlay.apply(again.clone()).await.unwrap();
        }
        assert_eq!(resolve(&containers[0], "tasks.web.", RecordType::A).1.len(), 3);
        purge(machines).await;
    });
}

#[test]
fn either_end_enforces_the_policy_whatever_the_other_has_been_told() {
    on_a_host(|_| async {
        let (machines, containers) = cluster(2).await;
        serve(&containers[0], "zero");
        serve(&containers[1], "one");
        // The task of node 0 is of the service web, that of node 1 of db, which takes connections from nobody.
        let told = |generation, allowed: Option<Vec<Allow>>| {
            let mut table = table(2);
            table.generation = generation;
            for (endpoint, service) in table.endpoints.iter_mut().zip(["web", "db"]) {
                endpoint.service = Some(service.into());
            }
            table.services[0].backends = vec![task(0)];
            let access = allowed.map_or(Access::Open, Access::Only);
            let (vip, backends) = (Some(Ipv4Addr::new(10, 50, 0, 101)), vec![task(1)]);
            let db = Service { name: "db".into(), vip, backends, access, ..table.services[0].clone() };
            table.services.push(db);
            table
        };
        let vip = Ipv4Addr::new(10, 50, 0, 101);
        let refused = |to| {
            let error = dial(&containers[0], to).expect_err("it is refused");
            assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
        };
        let apply = async |zero: Table, one: Table| {
            machines[0].overlay.apply(zero).await.unwrap();
            machines[1].overlay.apply(one).await.unwrap();
        };
        apply(told(2, None), told(2, None)).await;
        let mut open = dial(&containers[0], vip).unwrap();
        greeting(&mut open).unwrap();
        for (generation, first, second) in
            [(3, Some(vec![]), None), (4, None, Some(vec![])), (5, Some(vec![]), Some(vec![]))]
        {
            apply(told(generation, first), told(generation, second)).await;
            refused(vip);
            refused(task(1));
            // Published ports are for everybody, and the other direction is open.
            assert!(visit(0, 1000).await.is_ok());
            assert!(greeting(&mut dial(&containers[1], VIP).unwrap()).unwrap().starts_with("zero"));
        }
        open.write_all(b"x").unwrap();
        assert_eq!(open.read(&mut [0]).unwrap_err().kind(), io::ErrorKind::ConnectionReset);
        let web = vec![Allow { service: "web".into(), port: Some((Protocol::Tcp, 80)) }];
        apply(told(6, Some(web.clone())), told(6, Some(web))).await;
        let mut stream = dial(&containers[0], vip).unwrap();
        assert!(greeting(&mut stream).unwrap().starts_with("one"));
        echo(&mut stream, 100_000);
        purge(machines).await;
    });
}

#[test]
fn what_somebody_else_has_changed_is_mended() {
    on_a_host(|_| async {
        let (machines, containers) = cluster(2).await;
        serve(&containers[1], "one");
        let pin = machines[0].directory.list().into_iter().find(|pin| pin.ends_with("networks/000050"));
        let inside = Netns::open(&pin.unwrap()).unwrap();
        let links = Links::open(&inside).unwrap();
        let works = || dial(&containers[0], task(1)).is_ok_and(|mut stream| greeting(&mut stream).is_ok());
        assert!(works());

        // A route, the rules, a container's link, and at last the device itself.
        let subnet = (IpAddr::V4(Ipv4Addr::new(10, 50, 0, 0)), 24);
        for route in links.routes(false, None).await.unwrap() {
            if route.destination == Some(subnet) {
                links.remove_route(&route).await.unwrap();
            }
        }
        let nft = Nft::open(&inside).unwrap();
        nft.remove(Family::Ip, "rswarm").unwrap();
        for link in links.list().await.unwrap() {
            if link.kind == "veth" {
                links.delete(&link.name).await.unwrap();
            }
        }
        machines[0].overlay.mend().await.unwrap();
        assert!(works());
        assert!(nft.tables().unwrap().contains(&(Family::Ip, "rswarm".to_owned())));

        links.delete("ov0").await.unwrap();
        eventually("the device is made anew", async || {
            machines[0].overlay.mend().await.unwrap();
            links.find("ov0").await.unwrap().is_some()
        })
        .await;
        eventually("packets go through it", async || works()).await;
        assert_eq!(machines[0].overlay.status().await.unwrap().networks, [(net(), None)].into());
        purge(machines).await;
    });
}

#[test]
fn connections_survive_the_daemon() {
    on_a_host(|_| async {
        let (mut machines, containers) = cluster(2).await;
        serve(&containers[1], "one");
        let mut stream = dial(&containers[0], task(1)).unwrap();
        greeting(&mut stream).unwrap();
        echo(&mut stream, 100_000);
        for number in [0, 1] {
            let machine = machines.remove(0).restart().await;
            let pinned = machine.overlay.pinned().unwrap();
            assert_eq!(pinned, [format!("c{number}")]);
            machine.join(&table(2)).await;
            machine.connected(1).await;
            machines.push(machine);
            echo(&mut stream, 100_000);
        }
        let (code, addresses) = resolve(&containers[0], "web.", RecordType::A);
        assert_eq!((code, addresses), (ResponseCode::NoError, vec![VIP.to_string()]));

        // A network that is in no table any more goes, though an earlier daemon has made it.
        let machine = machines.remove(0).restart().await;
        machine.overlay.detach("c0").await.unwrap();
        machine.overlay.apply(Table { generation: 9, ..Table::default() }).await.unwrap();
        assert_eq!(machine.directory.list(), Vec::<PathBuf>::new());
        machine.overlay.shutdown().await;
        purge(machines).await;
    });
}

/// The longest pause between answers to datagrams sent every 2 ms, until `stop`.
fn longest_pause(from: &Netns, to: Ipv4Addr, stop: Arc<AtomicBool>) -> std::thread::JoinHandle<Duration> {
    let socket = from.run(|| UdpSocket::bind("0.0.0.0:0").unwrap()).unwrap();
    socket.connect((to, 9000)).unwrap();
    socket.set_read_timeout(Some(Duration::from_millis(2))).unwrap();
    std::thread::spawn(move || {
        let (mut heard, mut longest) = (Instant::now(), Duration::ZERO);
        while !stop.load(Ordering::Relaxed) {
            let _ = socket.send(b"?");
            if socket.recv(&mut [0; 8]).is_ok() {
                longest = longest.max(heard.elapsed());
                heard = Instant::now();
            }
        }
        longest.max(heard.elapsed())
    })
}

#[test]
fn packets_pause_for_half_a_second_at_most_while_a_daemon_restarts() {
    on_a_host(|_| async {
        let (mut machines, containers) = cluster(2).await;
        let echo = containers[1].run(|| UdpSocket::bind("0.0.0.0:9000").unwrap()).unwrap();
        std::thread::spawn(move || {
            let mut buffer = [0; 8];
            while let Ok((length, from)) = echo.recv_from(&mut buffer) {
                let _ = echo.send_to(&buffer[..length], from);
            }
        });
        let mut pauses = vec![];
        for _ in 0..6 {
            let stop = Arc::new(AtomicBool::new(false));
            let watch = longest_pause(&containers[0], task(1), stop.clone());
            let machine = machines.remove(0).restart().await;
            machine.join(&table(2)).await;
            machine.connected(1).await;
            machines.push(machine);
            eventually("packets go through", async || ping(&containers[0], task(1))).await;
            stop.store(true, Ordering::Relaxed);
            pauses.push(watch.join().unwrap());
        }
        pauses.sort();
        println!("pauses while a daemon restarts: {pauses:?}");
        // Of either node; what else this machine does may hold one of them up.
        assert!(pauses[3] <= Duration::from_millis(500), "{pauses:?}");
        purge(machines).await;
    });
}

/// For how long endpoints are changed, in seconds: `CHURN_SECONDS`, 3 unless told otherwise.
fn churn_seconds() -> u64 {
    seconds("CHURN_SECONDS", 3)
}

fn seconds(variable: &str, unless_told: u64) -> u64 {
    std::env::var(variable).ok().and_then(|text| text.parse().ok()).unwrap_or(unless_told)
}

/// How many endpoints change in a second.
const CHANGES: u64 = 100;

/// What a network has in the kernel: links, addresses of the loopback, routes to containers, and rules.
async fn traces(inside: &Netns) -> (usize, usize, usize, usize) {
    let links = Links::open(inside).unwrap();
    let routes = links.routes(false, None).await.unwrap().len();
    let addresses = links.addresses("lo").await.unwrap().len();
    let tables = Nft::open(inside).unwrap().tables().unwrap();
    assert_eq!(tables, [(Family::Ip, "rswarm".to_owned())]);
    (links.list().await.unwrap().len(), addresses, routes, tables.len())
}

#[test]
fn endpoints_that_change_all_the_time_leave_no_stale_backend_and_nothing_else() {
    on_a_host(|_| async {
        let (machines, containers) = cluster(2).await;
        serve(&containers[0], "zero");
        serve(&containers[1], "one");
        // A service beside it whose endpoints change with every turn, somewhere else.
        let others = |turn: u64| {
            let address = |n: u64| Ipv4Addr::new(10, 50, 0, 110 + ((turn + n) % 100) as u8);
            let endpoint = |n| Endpoint {
                network: net(),
                address: address(n),
                node: id(1),
                names: vec![format!("other.{}", turn + n)],
                service: Some("other".into()),
            };
            let service = Service {
                name: "other".into(),
                vip: Some(Ipv4Addr::new(10, 50, 0, 101)),
                client_affinity: false,
                backends: (0..10).map(address).collect(),
                ..table(2).services[0].clone()
            };
            ((0..10).map(endpoint).collect::<Vec<_>>(), service)
        };
        let inside = {
            let pins = machines[0].directory.list();
            Netns::open(pins.iter().find(|pin| pin.ends_with("networks/000050")).unwrap()).unwrap()
        };
        let before = traces(&inside).await;
        let lasting = Duration::from_secs(churn_seconds());
        // Who serves the address, since when.
        let served = Arc::new(Mutex::new((0u8, Instant::now())));
        let stop = Arc::new(AtomicBool::new(false));
        let caller = std::thread::spawn({
            let (from, served, stop) = (containers[0].clone(), served.clone(), stop.clone());
            move || {
                let (mut calls, mut failed, mut stale) = (0, 0, 0);
                while !stop.load(Ordering::Relaxed) {
                    let (wanted, since) = *served.lock().unwrap();
                    let settled = since.elapsed() > Duration::from_secs(1);
                    calls += 1;
                    match dial(&from, VIP).and_then(|mut stream| greeting(&mut stream)) {
                        Ok(who) => {
                            let other = !who.starts_with(["zero", "one"][usize::from(wanted)]);
                            let same = *served.lock().unwrap() == (wanted, since);
                            stale += u32::from(settled && same && other);
                        }
                        Err(error) => {
                            println!("{error}, {:?} after a change", since.elapsed());
                            failed += 1;
                        }
                    }
                }
                (calls, failed, stale)
            }
        });
        // Whoever tells the table does not wait for the overlay: what has changed meanwhile comes as one.
        let (tell, mut told) = tokio::sync::watch::channel(table(2));
        let teller = tokio::spawn({
            let served = served.clone();
            async move {
                let begun = Instant::now();
                let mut ticks = tokio::time::interval(Duration::from_millis(1000 / CHANGES));
                let mut changes = 0;
                while begun.elapsed() < lasting {
                    ticks.tick().await;
                    changes += 1;
                    let serving = (begun.elapsed().as_millis() / 1500 % 2) as u8;
                    let mut next = table(2);
                    next.generation = 1 + changes;
                    next.services[0].backends = vec![task(serving)];
                    next.services[0].draining = vec![task(1 - serving)];
                    let (endpoints, service) = others(changes);
                    next.endpoints.extend(endpoints);
                    next.services.push(service);
                    tell.send_replace(next);
                    let mut served = served.lock().unwrap();
                    if served.0 != serving {
                        *served = (serving, Instant::now());
                    }
                }
                (changes, begun.elapsed())
            }
        });
        let (mut applied, mut slowest) = (0, Duration::ZERO);
        while told.changed().await.is_ok() {
            let next = told.borrow_and_update().clone();
            let begun = Instant::now();
            machines[0].overlay.apply(next).await.unwrap();
            (applied, slowest) = (applied + 1, slowest.max(begun.elapsed()));
        }
        let (changes, took) = teller.await.unwrap();
        stop.store(true, Ordering::Relaxed);
        let (calls, failed, stale) = caller.join().unwrap();
        println!(
            "{changes} changes in {took:?}, put in force in {applied} steps of {slowest:?} at most; \
             {calls} connections, {failed} failed, {stale} to a stale task"
        );
        assert!(changes >= CHANGES * churn_seconds() * 9 / 10, "only {changes} changes in {took:?}");
        assert!(calls > 20, "only {calls} connections");
        assert_eq!((failed, stale), (0, 0), "of {calls}");
        let last = Table { generation: 2 + changes, ..table(2) };
        machines[0].overlay.apply(last).await.unwrap();
        assert_eq!(traces(&inside).await, before);
        let kept = conntrack::Conntrack::open(&inside).unwrap().list().unwrap();
        let other = IpAddr::V4(Ipv4Addr::new(10, 50, 0, 101));
        assert!(kept.iter().all(|connection| connection.original.destination != other));
        purge(machines).await;
    });
}

/// For how long a connection is kept, in seconds: `LASTING_SECONDS`, 3 unless told otherwise.
fn lasting_seconds() -> u64 {
    seconds("LASTING_SECONDS", 3)
}

#[test]
fn a_connection_lasts_with_traffic_and_with_pauses() {
    on_a_host(|_| async {
        let (machines, containers) = cluster(2).await;
        serve(&containers[1], "one");
        let lasting = Duration::from_secs(lasting_seconds());
        let talks = {
            let from = containers[0].clone();
            move |pause: Duration| {
                let mut stream = dial(&from, task(1)).unwrap();
                assert!(greeting(&mut stream).unwrap().starts_with("one"));
                let begun = Instant::now();
                while begun.elapsed() < lasting {
                    echo(&mut stream, 100_000);
                    std::thread::sleep(pause);
                }
                echo(&mut stream, 100_000);
            }
        };
        // Without a pause, with short ones, and with one as long as all of it.
        let pauses = [Duration::ZERO, Duration::from_millis(700), lasting];
        let all = pauses.map(|pause| {
            std::thread::spawn({
                let talks = talks.clone();
                move || talks(pause)
            })
        });
        for talk in all {
            tokio::task::spawn_blocking(move || talk.join().unwrap()).await.unwrap();
        }
        for machine in &machines {
            let status = machine.overlay.status().await.unwrap();
            assert!(status.peers.iter().all(|peer| peer.connected && !peer.suspect), "{:?}", status.peers);
        }
        purge(machines).await;
    });
}
