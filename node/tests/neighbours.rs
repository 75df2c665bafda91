//! Images from other nodes: real daemons, and a registry that counts what it is asked for.

mod image_kit;
mod room;

use std::fs;
use std::path::PathBuf;
use std::time::Instant;

use image_kit::registry::Registry;
use image_kit::{Layer, docker_archive, two_layers};
use room::{Node, Room};
use rswarm::image::Digest;

/// A cluster in a room: so many managers, and workers after them.
fn cluster(room: &Room, managers: usize, workers: usize) -> Vec<Node<'_>> {
    let nodes: Vec<Node<'_>> =
        (1..=managers + workers).map(|number| room.daemon(&format!("n{number}"))).collect();
    nodes[0].init("127.0.0.1").done();
    for (at, node) in nodes.iter().enumerate().skip(1) {
        let role = if at < managers { "manager" } else { "worker" };
        node.join(&nodes[0].token(role), "127.0.0.1:2377", &format!("127.0.0.{}", at + 1)).done();
    }
    let count = nodes.len();
    nodes[0].until("all are ready", |node| {
        let listed = node.rswarm(&["node", "ls", "--format", "{{.Status}}"]).out;
        listed.lines().filter(|line| *line == "Ready").count() == count
    });
    nodes
}

fn blob(node: &Node<'_>, digest: &Digest) -> PathBuf {
    node.state.join("images/blobs/sha256").join(digest.hex())
}

fn times(registry: &Registry, digest: &Digest) -> usize {
    registry.requests(&format!("GET /v2/x/blobs/{digest}")).len()
}

#[test]
fn a_roll_out_takes_each_blob_from_the_registry_once() {
    let Some(room) = Room::open() else { return };
    let registry = room.netns.run(Registry::start).expect("the namespace is there");
    let (manifest, layers) = registry.offer("x", "1", &two_layers());
    let nodes = cluster(&room, 3, 2);
    let image = format!("{}/x@{manifest}", registry.address);
    std::thread::scope(|scope| {
        let pulls: Vec<_> =
            nodes.iter().map(|node| scope.spawn(|| node.rswarm(&["image", "pull", &image]))).collect();
        for pull in pulls {
            pull.join().expect("it ends").done();
        }
    });
    let counts: Vec<usize> = layers.iter().map(|digest| times(&registry, digest)).collect();
    assert_eq!(counts, [1, 1], "{:?}", registry.requests(""));
    assert_eq!(registry.requests("/manifests/").len(), 1, "{:?}", registry.requests(""));
    for node in &nodes {
        assert!(layers.iter().all(|digest| blob(node, digest).exists()), "{}", node.name);
    }

    // Who comes later, when the registry is gone, has it from those who have it.
    let gone = registry.requests("").len();
    nodes[4].rswarm(&["image", "rm", &image]).done();
    nodes[4].rswarm(&["image", "pull", &image]).done();
    assert_eq!(registry.requests("").len(), gone);
}

/// `ROLLOUT_MB=100` makes the image as large, `ROLLOUT_LINE=40` lets the registry send so many MB a second, and both are
/// timed: one node alone, and five at once.
#[test]
fn a_large_image_rolls_out_to_five_nodes_by_one_pull_from_the_registry() {
    let Some(room) = Room::open() else { return };
    let setting = |name: &str| std::env::var(name).ok().map(|text| text.parse::<usize>().expect("a number"));
    let bytes = setting("ROLLOUT_MB").unwrap_or(8) << 20;
    let registry = room.netns.run(Registry::start).expect("the namespace is there");
    let mut seed = 1_u64;
    // Nothing in it can be compressed, and it comes in five parts.
    let mut image = |tag: &str| {
        let mut part = |number: usize| {
            let mut noise = Vec::with_capacity(bytes / 5 + 8);
            while noise.len() < bytes / 5 {
                seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                noise.extend_from_slice(&(seed ^ seed >> 29).to_le_bytes());
            }
            Layer::new().mode(&format!("part-{number}"), &noise, 0o644).end()
        };
        let layers: Vec<Vec<u8>> = (0..5).map(&mut part).collect();
        registry.offer("x", tag, &layers)
    };
    let trials = if setting("ROLLOUT_MB").is_some() { 3 } else { 1 };
    let images: Vec<_> =
        (0..trials).map(|trial| (image(&format!("a{trial}")), image(&format!("b{trial}")))).collect();
    registry.shelves.lock().expect("nobody has panicked").line =
        setting("ROLLOUT_LINE").map(|line| (line << 20) as u64);
    let nodes = cluster(&room, 3, 2);
    let pull = |nodes: &[Node<'_>], manifest: &Digest| {
        let image = format!("{}/x@{manifest}", registry.address);
        let begun = Instant::now();
        std::thread::scope(|scope| {
            let pulls: Vec<_> = nodes
                .iter()
                .map(|node| scope.spawn(|| node.rswarm(&["image", "pull", "-q", &image])))
                .collect();
            pulls.into_iter().for_each(|pull| drop(pull.join().expect("it ends").done()));
        });
        begun.elapsed().as_secs_f64()
    };
    for ((alone, _), (all, layers)) in &images {
        let (one, five) = (pull(&nodes[..1], alone), pull(&nodes, all));
        println!("    one node {one:.2} s, five nodes {five:.2} s: {:.2} times as long", five / one);
        let counts: Vec<usize> = layers.iter().map(|digest| times(&registry, digest)).collect();
        assert_eq!(counts, [1; 5], "{:?}", registry.requests(""));
    }
}

#[test]
fn what_is_loaded_on_one_manager_is_available_to_all_nodes() {
    let Some(room) = Room::open() else { return };
    let nodes = cluster(&room, 2, 2);
    // Nobody listens there.
    let name = "127.0.0.1:9/team/x:1";
    let archive = room.path("x.tar");
    fs::write(&archive, docker_archive(&[name], &two_layers())).expect("a file");
    let archive = archive.to_str().expect("a readable path");
    nodes[1].rswarm(&["image", "load", "--input", archive]).done();
    let id = nodes[1].rswarm(&["image", "ls", "--no-trunc", "-q"]).done();
    let create =
        ["service", "create", "--mode", "global", "--restart-condition", "none", "--name", "s", name];
    let created = nodes[0].rswarm(&create);
    assert!(!created.err.contains("could not be resolved"), "{created}");
    for node in &nodes {
        node.until("it has the image", |node| node.rswarm(&["image", "inspect", id.trim()]).code == 0);
    }
    // A worker that has something under a name does not say what the name means to others.
    let mine = "127.0.0.1:9/team/y:1";
    let archive = room.path("y.tar");
    fs::write(&archive, docker_archive(&[mine], &[Layer::new().file("y", "").end()])).expect("a file");
    nodes[3].rswarm(&["image", "load", "--input", archive.to_str().expect("a readable path")]).done();
    let created = nodes[0].rswarm(&["service", "create", "--detach", "--name", "t", mine]);
    assert!(created.err.contains("could not be resolved"), "{created}");
}

#[test]
fn a_node_with_damaged_blobs_is_found_out_and_not_asked_again() {
    let Some(room) = Room::open() else { return };
    let registry = room.netns.run(Registry::start).expect("the namespace is there");
    let small = |name: &str| [Layer::new().file(name, name).end()];
    let (x, x_layers) = registry.offer("x", "1", &small("x"));
    let (y, y_layers) = registry.offer("x", "2", &small("y"));
    let nodes = cluster(&room, 1, 1);
    let pull = |node: &Node<'_>, manifest: &Digest| {
        node.rswarm(&["image", "pull", &format!("{}/x@{manifest}", registry.address)]).done();
    };
    pull(&nodes[0], &x);
    pull(&nodes[0], &y);
    let damaged = blob(&nodes[0], &x_layers[0]);
    let mut bytes = fs::read(&damaged).expect("a blob");
    bytes[20] ^= 1;
    fs::write(&damaged, &bytes).expect("a blob");

    pull(&nodes[1], &x);
    assert_eq!(times(&registry, &x_layers[0]), 2);
    assert!(nodes[1].log().contains("has damaged blobs and is not asked any more"), "{}", nodes[1].log());
    assert_ne!(fs::read(blob(&nodes[1], &x_layers[0])).expect("a blob"), bytes);
    pull(&nodes[1], &y);
    assert_eq!(times(&registry, &y_layers[0]), 2, "it was asked again");
}
