//! What must not work: each case is the real binary with real daemons, refused in clear words, with an exit code,
//! and with nothing left half-made.

mod image_kit;
mod room;

use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use image_kit::Layer;
use image_kit::registry::{Door, Registry};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use room::{Node, PATIENCE, Room};
use rswarm::identity::Identity;
use rswarm::image::Digest;
use rswarm::member;
use rswarm::rpc::dial::{self, Line};
use rswarm_proto::v1 as pb;
use serde_json::json;
use tar::EntryType;
use tonic::Code;

// ---- becoming a member ----

#[test]
fn a_failed_init_leaves_the_node_able_to_init() {
    let Some(room) = Room::open() else { return };
    let node = room.daemon("n1");
    let there = "127.0.0.1:2377";
    for (words, said) in [
        (&["--advertise-addr", "0.0.0.0"][..], &["0.0.0.0", "reach"][..]),
        (&["--advertise-addr", "127.0.0.1:0"], &["port 0"]),
        (&["--advertise-addr", "nosuch0"], &["nosuch0", "interface", "loopback"]),
        (&[], &["no address but loopback", "--advertise-addr"]),
        (
            &["--advertise-addr", there, "--listen-addr", "203.0.113.9:2377"],
            &["203.0.113.9", "own", "--listen-addr"],
        ),
        (&["--advertise-addr", there, "--listen-addr", "127.0.0.1:99999"], &["99999", "not a port"]),
        (&["--advertise-addr", there, "--listen-addr", "nosuch0"], &["nosuch0", "listen"]),
    ] {
        node.rswarm(&[&["init"], words].concat()).refused(1, said);
        node.is_untouched(&format!("{words:?}"));
    }
    let taken = room.netns.run(|| TcpListener::bind(there)).expect("a namespace").expect("a free port");
    node.init("127.0.0.1").refused(1, &[there, "TCP", "in use", "--listen-addr"]);
    drop(taken);
    let taken = room.netns.run(|| UdpSocket::bind(there)).expect("a namespace").expect("a free port");
    node.init("127.0.0.1").refused(1, &[there, "UDP", "in use", "--listen-addr"]);
    drop(taken);
    node.is_untouched("ports in use");
    node.rswarm(&["node", "ls"]).refused(1, &["not part of a cluster", "rswarm init", "rswarm join"]);
    node.rswarm(&["service", "create", "rswarm/demo"]).refused(1, &["not part of a cluster"]);
    node.rswarm(&["leave", "--force"]).refused(1, &["not part of a cluster"]);

    node.init("127.0.0.1").done();
    let before = fs::read(node.identity()).expect("an identity");
    node.init("127.0.0.1").refused(1, &["already part of a cluster", "rswarm leave"]);
    let token = node.token("worker");
    node.join(&token, there, "127.0.0.2").refused(1, &["already part of a cluster", "rswarm leave"]);
    node.rswarm(&["leave"]).refused(1, &["only manager", "--force"]);
    assert_eq!(fs::read(node.identity()).expect("an identity"), before);
    assert_eq!(node.state(), "active");
    node.rswarm(&["leave", "--force"]).done();
    node.is_untouched("leaving");
    node.init("127.0.0.1").done();
}

#[test]
fn a_failed_join_leaves_the_node_able_to_join() {
    let Some(room) = Room::open() else { return };
    let (manager, stranger, node) = (room.daemon("m"), room.daemon("s"), room.daemon("w"));
    manager.init("127.0.0.1").done();
    stranger.init("127.0.0.3").done();
    let (there, here) = ("127.0.0.1:2377", "127.0.0.2");
    let token = manager.token("worker");
    let foreign = stranger.token("worker");
    let wrong = format!("{}{}", &token[..token.len() - 25], &foreign[foreign.len() - 25..]);
    let mute = room.netns.run(|| TcpListener::bind("127.0.0.4:2377")).expect("a namespace").expect("a port");
    for (token, addr, said) in [
        ("RSWTKN-1-cut", there, &["not a whole join token", "rswarm join-token worker"][..]),
        ("RSWTKN-9-abc-def", there, &["version 9", "install"]),
        ("RSWTKN-1-abc-def", there, &["invalid join token", "rswarm join-token worker"]),
        (&wrong, there, &[there, "token is not valid", "rswarm join-token worker"]),
        (&foreign, there, &[there, "not the one the token was made for"]),
        (&token, "127.0.0.1:9", &["cannot reach 127.0.0.1:9", "refused"]),
        (&token, "127.0.0.4:2377", &["cannot reach 127.0.0.4:2377", "does not answer"]),
        (&token, "nosuch.invalid:2377", &["cannot reach nosuch.invalid:2377"]),
    ] {
        node.join(token, addr, here).refused(1, said);
        node.is_untouched(&format!("{said:?}"));
    }
    drop(mute);
    node.join(&token, there, "127.0.0.1").refused(1, &[there, "TCP", "in use"]);
    let taken =
        room.netns.run(|| UdpSocket::bind("127.0.0.2:2377")).expect("a namespace").expect("a free port");
    node.join(&token, there, here).refused(1, &["127.0.0.2:2377", "UDP", "in use"]);
    drop(taken);
    let nowhere = ["join", "--token", &token, "--advertise-addr", "0.0.0.0", "--listen-addr", here, there];
    node.rswarm(&nowhere).refused(1, &["cannot advertise 0.0.0.0"]);
    manager.rswarm(&["join-token", "--rotate", "-q", "worker"]).done();
    node.join(&token, there, here).refused(1, &["token is not valid", "rswarm join-token worker"]);
    node.is_untouched("a rotated token");
    assert_eq!(manager.rswarm(&["node", "ls", "-q"]).done().lines().count(), 1, "nobody was taken in");

    let token = manager.token("worker");
    node.join(&token, there, here).done();
    for words in [&["node", "ls"][..], &["service", "create", "rswarm/demo"], &["join-token", "worker"]] {
        node.rswarm(words).refused(1, &["this node is a worker", "on a manager", "rswarm node promote"]);
    }
    node.join(&token, there, here).refused(1, &["already part of a cluster", "rswarm leave"]);

    let (head, hand) = (manager.node_id(), node.node_id());
    manager.rswarm(&["node", "rm", &hand]).refused(1, &["not down", "rswarm leave", "--force"]);
    for words in [&["node", "rm", &head][..], &["node", "rm", "--force", &head], &["node", "demote", &head]] {
        manager.rswarm(words).refused(1, &["last manager", "promote another"]);
    }
    let name = manager.rswarm(&["status", "--format", "{{.Hostname}}"]).done();
    manager.rswarm(&["node", "rm", name.trim()]).refused(1, &["ambiguous", &head, &hand]);
    manager.rswarm(&["node", "promote", "nosuch"]).refused(1, &["no such node: nosuch"]);
    manager.rswarm(&["node", "inspect", ""]).refused(1, &["which node"]);
    assert_eq!(manager.rswarm(&["node", "ls", "-q"]).done().lines().count(), 2);

    manager.rswarm(&["node", "rm", "--force", &hand]).done();
    node.until("it hears that it was removed", |node| node.state() == "error");
    let status = node.rswarm(&["status"]).done();
    assert!(status.contains("removed") && status.contains("rswarm leave"), "{status}");
    node.rswarm(&["leave"]).done();
    node.is_untouched("being removed");
    node.join(&token, there, here).done();

    let hand = node.node_id();
    manager.rswarm(&["node", "promote", &hand]).done();
    node.until("it is a manager", |node| {
        node.rswarm(&["status", "--format", "{{.Role}}"]).done().trim() == "manager"
            && node.rswarm(&["node", "ls"]).code == 0
    });
    node.rswarm(&["leave"]).refused(1, &["one of 2 managers", "rswarm node demote", "--force"]);
    manager.rswarm(&["node", "rm", &hand]).refused(1, &["is a manager", "demote it first", "--force"]);
    assert_eq!(node.state(), "active");
}

// ---- the control port ----

#[test]
fn callers_without_the_right_certificate_are_turned_away() {
    let Some(room) = Room::open() else { return };
    let (manager, worker, stranger) = (room.daemon("m"), room.daemon("w"), room.daemon("s"));
    manager.init("127.0.0.1").done();
    stranger.init("127.0.0.3").done();
    let token = manager.token("worker");
    worker.join(&token, "127.0.0.1:2377", "127.0.0.2").done();
    let (head, hand) = (manager.node_id(), worker.node_id());
    let load = |node: &Node<'_>| Identity::load(&node.state).expect("a sound identity").expect("a member");
    let (workers, strangers) = (load(&worker), load(&stranger));
    let digest = token.split('-').nth(2).expect("a digest").to_owned();

    let codes = |of: Option<&Identity>| {
        room.inside(async |_| {
            let channel = match of {
                None => dial::joining("127.0.0.1:2377", &digest).await.expect("joiners are let in"),
                Some(identity) => {
                    let (_, dialer) = member::connections(identity).expect("a sound identity");
                    dialer.channel(&head, "127.0.0.1:2377", Line::Calls).expect("an id")
                }
            };
            let frame = pb::Frame { data: vec![0xff; 64].into() };
            let certificate = pb::IssueCertificateRequest { csr_pem: "x".into(), ..Default::default() };
            let local = pb::InitRequest::default();
            let blob = pb::BlobRequest { digest: Digest::of(b"nobody has this").to_string() };
            [
                pb::control_client::ControlClient::new(channel.clone())
                    .list_nodes(pb::ListNodesRequest {})
                    .await
                    .map(drop),
                pb::control_client::ControlClient::new(channel.clone())
                    .get_join_tokens(pb::GetJoinTokensRequest {})
                    .await
                    .map(drop),
                pb::raft_client::RaftClient::new(channel.clone()).call(frame).await.map(drop),
                pb::agent_client::AgentClient::new(channel.clone())
                    .task_logs(pb::TaskLogsRequest::default())
                    .await
                    .map(drop),
                pb::local_client::LocalClient::new(channel.clone()).init(local).await.map(drop),
                pb::join_client::JoinClient::new(channel.clone())
                    .issue_certificate(certificate)
                    .await
                    .map(drop),
                pb::dispatcher_client::DispatcherClient::new(channel.clone())
                    .goodbye(pb::GoodbyeRequest {})
                    .await
                    .map(drop),
                pb::blobs_client::BlobsClient::new(channel).fetch(blob).await.map(drop),
            ]
            .map(|answer| answer.map_or_else(|status| status.code(), |()| Code::Ok))
        })
    };
    use Code::{InvalidArgument, NotFound, PermissionDenied, Unauthenticated, Unavailable};
    assert_eq!(codes(None), [Unauthenticated; 8], "without a certificate");
    assert_eq!(
        codes(Some(&strangers)),
        [Unavailable; 8],
        "of another cluster: there is no connection at all"
    );

    let mut expected = [PermissionDenied; 8];
    // It may ask for a certificate, though not with nonsense, say goodbye, and ask for blobs.
    (expected[5], expected[6], expected[7]) = (InvalidArgument, Code::Ok, NotFound);
    assert_eq!(codes(Some(&workers)), expected, "a worker");
    manager.rswarm(&["node", "rm", "--force", &hand]).done();
    // Its goodbye changes nothing any more, and is no error.
    (expected[5], expected[7]) = (PermissionDenied, PermissionDenied);
    assert_eq!(codes(Some(&workers)), expected, "a removed node");
    assert_eq!(manager.rswarm(&["node", "ls", "-q"]).done().lines().count(), 1);
}

#[test]
fn garbage_on_the_control_port_does_no_harm() {
    let Some(room) = Room::open() else { return };
    let manager = room.daemon("m");
    manager.init("127.0.0.1").done();
    let there: SocketAddr = "127.0.0.1:2377".parse().expect("an address");
    let mut seed = 0x9e37_79b9_7f4a_7c15_u64;
    let mut noise = |len: usize| -> Vec<u8> {
        let next = |seed: &mut u64| {
            *seed ^= *seed << 13;
            *seed ^= *seed >> 7;
            *seed ^= *seed << 17;
            *seed as u8
        };
        (0..len).map(|_| next(&mut seed)).collect()
    };
    let openings: [&[u8]; 6] = [
        b"",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n",
        b"\x16\x03\x01\xff\xff\x01\x00\xff\xfc\x03\x03",
        b"\x16\x03\x03\x00\x00",
        b"\x17\x03\x03\x40\x00",
    ];
    room.netns
        .run(|| {
            for opening in openings.iter().cycle().take(60) {
                let mut stream = TcpStream::connect(there).expect("it listens");
                stream.set_read_timeout(Some(PATIENCE)).expect("a time limit");
                // It hangs up at the first nonsense, so the rest may find nobody.
                let _ = stream.write_all(opening).and_then(|()| stream.write_all(&noise(20_000)));
                let _ = stream.shutdown(std::net::Shutdown::Write);
                let mut answer = Vec::new();
                let read = stream.take(1 << 20).read_to_end(&mut answer);
                assert!(
                    read.is_err_and(|error| error.kind() != io::ErrorKind::WouldBlock) || answer.len() < 1024
                );
            }
            let socket = UdpSocket::bind("127.0.0.9:0").expect("a port");
            for _ in 0..200 {
                let _ = socket.send_to(&noise(1200), there);
            }
        })
        .expect("the namespace is there");

    // More handshakes that nobody goes on with than are waited for at once.
    let open = || (0..300).map(|_| TcpStream::connect(there)).collect::<io::Result<Vec<_>>>();
    let half_open = room.netns.run(open).expect("the namespace").expect("they connect");
    manager.rswarm(&["node", "ls"]).done();
    let token = manager.token("worker");
    let digest = token.split('-').nth(2).expect("a digest");
    let began = Instant::now();
    room.inside(async |_| {
        while dial::joining("127.0.0.1:2377", digest).await.is_err() {
            assert!(began.elapsed() < Duration::from_secs(15), "nobody gets in any more");
        }
    });
    drop(half_open);
    assert_eq!(manager.state(), "active");
}

// ---- services ----

#[test]
fn a_service_that_cannot_be_is_refused() {
    let Some(room) = Room::open() else { return };
    let node = room.daemon("n1");
    node.init("127.0.0.1").done();
    let create = |words: &[&str]| node.rswarm(&[&["service", "create", "--detach"], words].concat());
    create(&["--name", "web", "--publish", "8080:80", "--replicas", "0", "rswarm/demo"]).done();
    let listed = || node.rswarm(&["service", "ls", "--format", "{{.ID}} {{.Name}}"]).done();
    let before = listed();

    for (words, said) in [
        (&["--mount", "type=volume,dst=/x"][..], &["type=volume", "source= is missing"][..]),
        (&["--mount", "type=bind,src=/x"], &["target= is missing"]),
        (&["--mount", "type=bind,src=rel,dst=/x"], &["`rel`", "absolute"]),
        (&["--mount", "bogus"], &["`bogus`", "mount"]),
        (&["--publish", "1.2.3.4:80:80"], &["PUBLISHED:TARGET"]),
        (&["--publish", "99999:80"], &["99999", "65535"]),
        (&["--publish", "80/icmp"], &["icmp", "tcp and udp"]),
        (&["--env", "=x"], &["NAME=VALUE"]),
        (&["--restart-delay", "soon"], &["`soon`", "duration", "10s"]),
        (&["--stop-grace-period", "5parsecs"], &["5parsecs", "duration"]),
        (&["--limit-memory", "9q"], &["9q", "size", "64m"]),
        (&["--limit-cpu", "many"], &["many", "processors"]),
        (&["--constraint", "disk"], &["`disk`", "KEY==VALUE"]),
        (&["--constraint", "foo.bar==x"], &["foo.bar", "node.labels.KEY"]),
        (&["--bogus"], &["--bogus"]),
    ] {
        create(&[words, &["--name", "new", "rswarm/demo"]].concat()).refused(2, said);
    }
    node.rswarm(&["service", "scale", "web=x"]).refused(2, &["SERVICE=REPLICAS"]);
    node.rswarm(&["serivce", "ls"]).refused(2, &["serivce", "service"]);
    node.rswarm(&["network", "create", "--subnet", "10.0.0.0/99", "b"])
        .refused(2, &["10.0.0.0/99", "subnet"]);

    let long = "a".repeat(64);
    for name in ["", "a b", "a.b", "x/y", "-x", "x-", "Ünï", &long] {
        create(&[&format!("--name={name}"), "rswarm/demo"]).refused(1, &["service name", "1 to 63 letters"]);
    }
    for (words, said) in [
        (&["rswarm/demo", "--name=web"][..], &["web", "exists already"][..]),
        (&["--publish", "8080:80"], &["8080", "in use by service web"]),
        (&["--publish", "81:80", "--publish", "81:82"], &["81", "twice"]),
        (&["--network", "nosuch"], &["no such network: nosuch"]),
        (&["--limit-memory", "1k"], &["limit", "4 MiB"]),
        (&["--reserve-memory", "2g", "--limit-memory", "1g"], &["more is reserved than the limit"]),
        (&["--replicas", "99999999"], &["99999999", "100000"]),
        (&["--stop-signal", "SIGNOT"], &["SIGNOT", "SIGTERM"]),
        (&["--env-file", "/nonexistent"], &["/nonexistent", "No such file"]),
    ] {
        let words = if words[0] == "rswarm/demo" {
            vec![words[1], words[0]]
        } else {
            [&["--name", "new"], words, &["rswarm/demo"]].concat()
        };
        create(&words).refused(1, said);
    }
    for words in
        [&["ps", "wbe"][..], &["rm", "wbe"], &["inspect", "wbe"], &["logs", "wbe"], &["scale", "wbe=2"]]
    {
        node.rswarm(&[&["service"], words].concat())
            .refused(1, &["no such service", "wbe", "did you mean `web`?"]);
    }
    assert_eq!(listed(), before);

    // Five ids begin with one of four digits.
    for name in ["a1", "a2", "a3", "a4"] {
        create(&["--name", name, "--replicas", "0", "rswarm/demo"]).done();
    }
    let mut initials: Vec<String> = listed().lines().map(|line| line[..1].to_owned()).collect();
    initials.sort();
    let twice = initials.windows(2).find(|pair| pair[0] == pair[1]).expect("two alike")[0].clone();
    node.rswarm(&["service", "rm", &twice]).refused(1, &["ambiguous", "give more of the id"]);
    assert_eq!(listed().lines().count(), 5);
}

#[test]
fn a_task_that_cannot_run_says_why() {
    let Some(room) = Room::open() else { return };
    let node = room.daemon("n1");
    node.init("127.0.0.1").done();
    for (name, words, said) in [
        (
            "nowhere",
            ["--constraint", "node.labels.disk==ssd"],
            "node.labels.disk==ssd does not hold on 1 node",
        ),
        ("big", ["--reserve-memory", "900g"], "insufficient memory on 1 node"),
        ("busy", ["--reserve-cpu", "5000"], "insufficient CPUs on 1 node"),
    ] {
        let create =
            ["service", "create", "-q", "--timeout", "2s", "--name", name, words[0], words[1], "rswarm/demo"];
        node.rswarm(&create).refused(6, &[name, "pending", "no suitable node", said, "rswarm service ps"]);
        let tasks = node.rswarm(&["service", "ps", "--no-trunc", name]).done();
        assert!(tasks.contains("Pending") && tasks.contains(said), "{tasks}");
        let status = node.rswarm(&["status"]).done();
        assert!(status.contains(&format!("task {name}.1 waits")), "{status}");
    }
    // Nobody listens there, so it is as good as any registry without the image.
    let image = "127.0.0.1:9/nosuch:1";
    let create = ["service", "create", "-q", "--name", "noimage", "--restart-condition", "none", image];
    node.rswarm(&create).refused(3, &["noimage", "cannot pull", image, "rswarm service logs noimage"]);
    node.rswarm(&["image", "pull", image]).refused(1, &["cannot pull", image]);
    node.rswarm(&["image", "pull", "b!d"]).refused(1, &["b!d", "not an image name"]);
    node.rswarm(&["image", "rm", "nosuch"]).refused(1, &["nosuch", "no image"]);
    let create = ["service", "create", "-q", "--name", "nomount", "--restart-condition", "none", "--mount"];
    let mount = ["type=bind,src=/nonexistent/dir,dst=/x", "rswarm/demo"];
    node.rswarm(&[&create[..], &mount].concat()).refused(3, &["nomount", "/nonexistent/dir"]);
}

// ---- images ----

/// An entry of a tar archive with its name as it is, however wicked.
fn entry(kind: EntryType, path: &str, link: &str, data: &[u8]) -> Vec<u8> {
    let mut header = tar::Header::new_gnu();
    header.as_old_mut().name[..path.len()].copy_from_slice(path.as_bytes());
    header.as_old_mut().linkname[..link.len()].copy_from_slice(link.as_bytes());
    header.set_entry_type(kind);
    header.set_mode(0o755);
    header.set_size(data.len() as u64);
    header.set_cksum();
    let mut bytes = [header.as_bytes(), data].concat();
    bytes.resize(bytes.len().next_multiple_of(512), 0);
    bytes
}

fn archive(entries: &[Vec<u8>]) -> Vec<u8> {
    [entries.concat(), vec![0; 1024]].concat()
}

/// A docker archive of one layer, whose digest is stated as `diff_id`, if not truly.
fn image(name: &str, layer: &[u8], diff_id: Option<&str>) -> Vec<u8> {
    let diff_id = diff_id.map_or_else(|| Digest::of(layer).to_string(), str::to_owned);
    let architecture = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };
    let config = json!({
        "architecture": architecture, "os": "linux", "config": {"Cmd": ["/bin/x"]},
        "rootfs": {"type": "layers", "diff_ids": [diff_id]},
    });
    let manifest = json!([{"Config": "config.json", "RepoTags": [name], "Layers": ["layer.tar"]}]);
    archive(&[
        entry(EntryType::Regular, "config.json", "", config.to_string().as_bytes()),
        entry(EntryType::Regular, "layer.tar", "", layer),
        entry(EntryType::Regular, "manifest.json", "", manifest.to_string().as_bytes()),
    ])
}

#[test]
fn a_hostile_archive_is_refused() {
    let Some(room) = Room::open() else { return };
    let node = room.daemon("n1");
    let outside = room.path("outside");
    fs::create_dir(&outside).expect("a directory");
    let outside = outside.to_str().expect("a readable path");
    let load = |bytes: &[u8]| {
        let path = room.path("image.tar");
        fs::write(&path, bytes).expect("a file");
        node.rswarm(&["image", "load", "-i", path.to_str().expect("a readable path")])
    };
    let listed = || node.rswarm(&["image", "ls", "--format", "{{.Repository}}"]).done();
    let before = listed();
    let file = |path: &str| entry(EntryType::Regular, path, "", b"evil");
    let link = |path: &str, to: &str| entry(EntryType::Symlink, path, to, b"");

    let good = image("good:1", &archive(&[file("bin/x")]), None);
    for (what, bytes, said) in [
        ("nothing", vec![], &["cannot load the archive", "empty"][..]),
        ("text", b"hello, this is no archive".repeat(100), &["cannot load the archive", "not a tar archive"]),
        ("a cut archive", good[..good.len() / 2].to_vec(), &["cannot load the archive"]),
        ("no image", archive(&[file("x")]), &["cannot load the archive"]),
        (
            "a wrong digest",
            image("bad:1", b"not a layer", Some(&Digest::of(b"another").to_string())),
            &["cannot load"],
        ),
        ("a layer that is none", image("bad:1", &[7; 5000], None), &["cannot load the archive"]),
        ("a way up", image("bad:1", &archive(&[file("../../evil")]), None), &["cannot load", "../../evil"]),
        (
            "a way out by a link",
            image("bad:1", &archive(&[link("out", outside), file("out/evil")]), None),
            &["cannot load", "out/evil"],
        ),
        (
            "a hard link to the host",
            image(
                "bad:1",
                &archive(&[entry(EntryType::Link, "shadow", "../../../../etc/shadow", b"")]),
                None,
            ),
            &["cannot load", "`shadow`", "`..`"],
        ),
    ] {
        let ran = load(&bytes);
        ran.refused(1, said);
        assert_eq!(listed(), before, "{what}");
        assert_eq!(fs::read_dir(outside).expect("it is there").count(), 0, "{what} got out");
        let left = fs::read_dir(node.state.join("images/tmp")).expect("it is there").count();
        assert_eq!(left, 0, "{what} is left");
    }
    node.rswarm(&["image", "load", "-i", "/nonexistent"]).refused(1, &["/nonexistent"]);
    load(&good).done();
    assert!(listed().contains("good"), "{}", listed());
}

// ---- daemons ----

#[test]
fn a_daemon_that_a_failed_command_started_is_stopped_again() {
    let Some(room) = Room::open() else { return };
    let node = room.machine("n1");
    let init = |state: &Path, advertise: &str| {
        let state = state.to_str().expect("a readable path");
        node.rswarm(&[
            "init",
            "--state-dir",
            state,
            "--listen-addr",
            "127.0.0.1",
            "--advertise-addr",
            advertise,
        ])
    };
    init(&node.state, "0.0.0.0").refused(1, &["cannot advertise 0.0.0.0"]);
    assert!(room.processes().is_empty(), "{:?}", room.processes());
    assert!(!node.identity().exists() && !node.socket().exists());
    node.rswarm(&["node", "ls"]).refused(1, &["no rswarm daemon answers", "rswarm init", "--socket"]);

    let file = room.path("file");
    fs::write(&file, "").expect("a file");
    init(&file, "127.0.0.1")
        .refused(1, &["state directory", file.to_str().expect("readable"), "File exists"]);

    let sealed = room.path("sealed");
    fs::create_dir(&sealed).expect("a directory");
    mount(Some(&sealed), &sealed, None::<&str>, MsFlags::MS_BIND, None::<&str>).expect("a bind mount");
    let read_only = MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
    mount(None::<&str>, &sealed, None::<&str>, read_only, None::<&str>).expect("it becomes read-only");
    for state in [&sealed, &sealed.join("deeper")] {
        init(state, "127.0.0.1").refused(1, &[state.to_str().expect("readable"), "Read-only file system"]);
    }
    let output = Command::new(env!("CARGO_BIN_EXE_rswarm"))
        .args(["daemon", "--config", "/nonexistent", "--socket"])
        .arg(node.socket())
        .arg("--state-dir")
        .arg(&sealed)
        .output()
        .expect("the binary runs");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.code() == Some(1) && said.contains("Read-only file system"), "{said}");
    assert!(room.processes().is_empty(), "{:?}", room.processes());

    // The same command works where it may.
    init(&node.state, "127.0.0.1").done();
    node.rswarm(&["node", "ls"]).done();
    assert_eq!(room.processes().len(), 1);
}

#[test]
fn two_daemons_do_not_share() {
    let Some(room) = Room::open() else { return };
    let node = room.daemon("n1");
    let other = room.machine("n2");
    let tell = |mut command: Command, said: &[&str]| {
        let output = command.output().expect("the binary runs");
        let words = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{words}");
        assert!(said.iter().all(|part| words.contains(part)), "{words}");
    };
    let daemon = |socket: &Path, state: &Path, run: &Path| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_rswarm"));
        command.args(["daemon", "--config", "/nonexistent", "--socket"]).arg(socket);
        command.arg("--state-dir").arg(state).arg("--run-dir").arg(run);
        command
    };
    let (mine, theirs) = (room.path("n1"), room.path("n2"));
    tell(daemon(&other.socket(), &node.state, &theirs), &["another daemon uses the state", "--state-dir"]);
    tell(daemon(&other.socket(), &other.state, &mine), &["another daemon uses the run", "--run-dir"]);
    tell(daemon(&node.socket(), &other.state, &theirs), &["another daemon answers at", "--socket"]);
    let config = room.path("config");
    fs::write(&config, "state-dri = '/x'").expect("a file");
    let mut command = Command::new(env!("CARGO_BIN_EXE_rswarm"));
    command.args(["daemon", "--config"]).arg(&config);
    tell(command, &["cannot be used", "state-dri", "state-dir"]);
    node.init("127.0.0.1").done();
}

#[test]
fn a_damaged_identity_is_told_and_can_be_given_up() {
    let Some(room) = Room::open() else { return };
    let mut node = room.daemon("n1");
    node.init("127.0.0.1").done();
    node.stop();
    let sound = fs::read_to_string(node.identity()).expect("an identity");
    let place = node.identity();
    let place = place.to_str().expect("a readable path");
    for (what, text) in [
        ("cut off", sound[..sound.len() / 3].to_owned()),
        ("garbage", "\u{0}\u{1}hello".to_owned()),
        ("empty", String::new()),
        ("of the future", sound.replacen("\"format\": 1", "\"format\": 9", 1)),
        ("with a spoilt key", sound.replacen("BEGIN PRIVATE", "BEGIN PRIV", 1)),
        ("without an address", sound.replacen("127.0.0.1:2377", "nonsense", 1)),
    ] {
        fs::write(place, &text).expect("it is written");
        node.start();
        let status = node.rswarm(&["status"]).done();
        assert!(status.contains("has failed") && status.contains(place), "{what}: {status}");
        assert!(status.contains("rswarm leave --force"), "{what}: {status}");
        node.rswarm(&["node", "ls"]).refused(1, &[place, "rswarm leave --force"]);
        node.init("127.0.0.1").refused(1, &["already part of a cluster", "rswarm leave --force"]);
        node.rswarm(&["leave"]).refused(1, &["--force"]);
        assert_eq!(fs::read_to_string(place).expect("it stays"), text, "{what}");
        node.stop();
    }
    fs::write(place, &sound).expect("it is written");

    // What passes by itself needs nobody: the port is free again some time.
    let taken =
        room.netns.run(|| TcpListener::bind("127.0.0.1:2377")).expect("a namespace").expect("a free port");
    node.start();
    node.rswarm(&["node", "ls"]).refused(1, &["127.0.0.1:2377", "in use"]);
    drop(taken);
    node.until("it takes part again", |node| node.state() == "active");
    node.rswarm(&["node", "ls"]).done();
    node.stop();

    for file in fs::read_dir(node.state.join("raft")).expect("a log").flatten() {
        if file.file_name().to_string_lossy().ends_with(".wal") {
            fs::write(file.path(), [0x5a; 4096]).expect("it is spoilt");
        }
    }
    node.start();
    node.rswarm(&["node", "ls"]).refused(1, &["log", "rswarm leave --force"]);
    node.rswarm(&["leave", "--force"]).done();
    node.is_untouched("giving up");
    node.init("127.0.0.1").done();
}

#[test]
fn a_full_disk_stops_nobody_for_good() {
    let Some(room) = Room::open() else { return };
    let mut node = room.machine("n1");
    let disk = room.path("disk");
    fs::create_dir(&disk).expect("a directory");
    let tmpfs =
        |size| mount(Some("tmpfs"), &disk, Some("tmpfs"), MsFlags::empty(), Some(size)).expect("a tmpfs");
    let fill = || {
        let mut ballast = File::create(disk.join("ballast")).expect("a file");
        while ballast.write(&[0; 4096]).is_ok_and(|written| written > 0) {}
    };
    let relieve = || fs::remove_file(disk.join("ballast")).expect("it is there");
    tmpfs("size=1m");
    fill();
    let state = disk.join("state");
    let words = ["init", "--state-dir", state.to_str().expect("readable"), "--advertise-addr", "127.0.0.1"];
    let ran = node.rswarm(&words);
    ran.refused(1, &["No space left", state.to_str().expect("readable")]);
    assert!(room.processes().is_empty(), "{:?}", room.processes());
    umount2(&disk, MntFlags::MNT_DETACH).expect("it is a mount");

    tmpfs("size=192m");
    node.state = state;
    node.start();
    fill();
    node.init("127.0.0.1").refused(1, &["No space left", node.state.to_str().expect("readable")]);
    node.is_untouched("a full disk");
    relieve();
    node.init("127.0.0.1").done();
    node.rswarm(&["service", "create", "--detach", "--name", "web", "--replicas", "0", "rswarm/demo"]).done();
    fill();
    // It may or may not find room in what the log has set aside; it must not hang, and not forget.
    let ran = node.rswarm(&["network", "create", "new"]);
    assert!(ran.code == 0 || ran.code == 1, "{ran}");
    relieve();
    node.stop();
    node.start();
    node.until("it takes part again", |node| node.state() == "active");
    node.until("services are known", |node| node.rswarm(&["service", "inspect", "web"]).code == 0);
    let kept = node.rswarm(&["network", "inspect", "new"]).code == 0;
    assert!(kept || ran.code != 0, "what was acknowledged is lost");
}

#[test]
fn a_manager_without_room_for_its_log_reads_on_says_so_and_goes_on_by_itself() {
    let Some(room) = Room::open() else { return };
    let mut node = room.machine("n1");
    let disk = room.path("disk");
    fs::create_dir(&disk).expect("a directory");
    mount(Some("tmpfs"), &disk, Some("tmpfs"), MsFlags::empty(), Some("size=512m")).expect("a tmpfs");
    node.state = disk.join("state");
    node.start();
    node.init("127.0.0.1").done();
    node.rswarm(&["service", "create", "-q", "--name", "web", "rswarm/demo"]).done();
    let containers = room.processes();

    let mut ballast = File::create(disk.join("ballast")).expect("a file");
    while ballast.write(&[0; 4096]).is_ok_and(|written| written > 0) {}
    drop(ballast);
    // There is always a segment in hand; when it is begun and no other can be had, it is said before it is full.
    let large =
        ["A", "B", "C", "D", "E", "F", "G", "H"].map(|name| format!("{name}={}", "x".repeat(100_000)));
    let mut words = vec!["service", "update", "--detach", "web"];
    words.extend(large.iter().flat_map(|large| ["--label-add", large.as_str()]));
    let refused = (0..60).find_map(|number| {
        let number = format!("number={number}");
        let ran = node.rswarm(&[&words[..], &["--label-add", &number]].concat());
        (ran.code != 0).then_some(ran)
    });
    let log = node.state.join("raft").display().to_string();
    refused
        .expect("sixty large changes do not fit")
        .refused(1, &["no space left", &log, "rswarm image prune"]);
    let status = node.rswarm(&["status"]).done();
    assert!(status.contains("no room for its log") && status.contains(&log), "{status}");
    assert!(node.rswarm(&["service", "ls"]).done().contains("web"), "reads are answered");
    let now = room.processes();
    assert!(
        containers.iter().all(|pid| now.contains(pid)),
        "daemon and container go on: {containers:?}, {now:?}"
    );

    fs::remove_file(disk.join("ballast")).expect("it is there");
    node.until("changes are taken again", |node| node.rswarm(&["network", "create", "again"]).code == 0);
    assert!(!node.rswarm(&["status"]).done().contains("no room for its log"));
    node.stop();
    node.start();
    node.until("it takes part again", |node| node.state() == "active");
    node.until("it kept everything", |node| node.rswarm(&["network", "inspect", "again"]).code == 0);
}

#[test]
fn a_registry_without_credentials_rejects_the_task_in_its_own_words() {
    let Some(room) = Room::open() else { return };
    let registry = room.netns.run(Registry::start).expect("the namespace is there");
    registry.offer("vault/web", "1", &[Layer::new().file("a", "").end()]);
    registry.guard(Door::Basic("Basic dTpw".into()));
    let node = room.daemon("n1");
    node.init("127.0.0.1").done();
    let (host, words) = (registry.address.to_string(), "authentication required for the vault");
    let image = format!("{host}/vault/web:1");
    let create = ["service", "create", "-q", "--name", "vault", "--restart-condition", "none", &image];
    node.rswarm(&create).refused(3, &["vault", words, &host]);
    let tasks = node.rswarm(&["service", "ps", "--no-trunc", "vault"]).done();
    assert!(tasks.contains("Rejected") && tasks.contains(words), "{tasks}");
    node.rswarm(&["image", "pull", &image])
        .refused(1, &["cannot pull", words, &format!("rswarm login {host}")]);

    node.rswarm(&["login", "-u", "u", "-p", "wrong", &host]).refused(1, &["cannot log in", &host, words]);
    node.rswarm(&["login", "-u", "u", "-p", "p", &host]).done();
    node.rswarm(&["image", "pull", &image]).done();
    assert!(node.rswarm(&["logout", &host]).done().contains("Removing login credentials"));
    assert!(node.rswarm(&["logout", &host]).done().contains("Not logged in"));
}

#[test]
fn a_volume_outlives_its_tasks_and_is_not_removed_while_one_has_it() {
    let Some(room) = Room::open() else { return };
    let mut node = room.daemon("n1");
    node.init("127.0.0.1").done();
    node.rswarm(&["volume", "create", "--label", "tier=db", "data"]).done();
    let mounts =
        ["--mount", "type=volume,src=data,dst=/data", "--mount", "src=own-{{.Task.Slot}},dst=/own,ro"];
    let create = ["service", "create", "-q", "--name", "db", "rswarm/demo"];
    node.rswarm(&[&create[..5], &mounts[..], &create[5..]].concat()).done();
    assert_eq!(node.rswarm(&["volume", "ls", "-q"]).done(), "data\nown-1\n");
    let path = node.rswarm(&["volume", "inspect", "-f", "{{.Mountpoint}}", "data"]).done();
    let file = Path::new(path.trim()).join("file");
    fs::write(&file, "kept").expect("the volume is a directory");

    let in_use = |node: &Node<'_>| {
        node.rswarm(&["volume", "rm", "data"]).refused(1, &["cannot remove `data`", "is used by db.1"]);
    };
    in_use(&node);
    node.rswarm(&["volume", "snapshot", "data", "first"]).done();
    node.rswarm(&["volume", "restore", "data", "first"]).refused(1, &["is used by db.1"]);
    node.stop();
    node.start();
    in_use(&node);
    let inside = node.rswarm(&["volume", "ls", "--filter", "dangling=true", "-q"]).done();
    assert_eq!(inside, "", "both are in use, and known to be after a restart");

    node.rswarm(&["service", "rm", "db"]).done();
    node.until("its container is gone", |node| {
        node.rswarm(&["volume", "inspect", "-f", "{{len .UsedBy}}", "data"]).done().trim() == "0"
    });
    assert_eq!(fs::read_to_string(&file).expect("it outlives the task"), "kept");
    fs::write(&file, "changed").expect("it is there");
    node.rswarm(&["volume", "restore", "data", "second"])
        .refused(1, &["no snapshot `second`", "it has first"]);
    node.rswarm(&["volume", "restore", "data", "first"]).done();
    assert_eq!(fs::read_to_string(&file).expect("it was copied"), "kept");
    node.rswarm(&["volume", "prune", "--force", "--all", "--filter", "label=tier"]).done();
    assert_eq!(node.rswarm(&["volume", "ls", "-q"]).done(), "own-1\n");
    node.rswarm(&["volume", "rm", "nosuch"]).refused(1, &["no volume `nosuch`"]);
    node.rswarm(&["volume", "create", "../x"]).refused(1, &["is no name for a volume"]);
}
