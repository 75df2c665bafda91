//! Images from other nodes: real daemons, and a registry that counts what it is asked for.

mod image_kit;
mod room;

use std::fs;
use std::path::PathBuf;

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
