use crate::model::*;
use crate::testing::{Bed, MIB, port, spec, with_task};
use expect_test::{Expect, expect};

/// Nodes are written `name:GiB` with `!` for silent, `-` for paused, and `/key=value` for a label. Tasks that run
/// already are `service@node`. The question is a service with its reservation in GiB and constraints.
#[allow(clippy::needless_pass_by_value)]
fn case(name: &str, nodes: &str, running: &str, ask: &str, outcome: Expect) {
    let mut bed = Bed::new();
    for text in nodes.split_whitespace() {
        let (text, label) = text.split_once('/').unwrap_or((text, ""));
        let flags: String = text.chars().filter(|c| "!-".contains(*c)).collect();
        let (host, memory) = text.trim_end_matches(['!', '-']).split_once(':').expect("name:GiB");
        let id = bed.node(host, 1024 * memory.parse::<u64>().expect("GiB"));
        bed.alter(id, |node| {
            node.labels.extend(label.split_once('=').map(|(key, value)| (key.into(), value.into())));
            if flags.contains('!') {
                node.status = NodeStatus::Down;
            }
            if flags.contains('-') {
                node.availability = Availability::Pause;
            }
        });
    }
    for text in running.split_whitespace() {
        let (service, host) = text.split_once('@').expect("service@node");
        place(&mut bed, service, host);
    }
    let mut words = ask.split_whitespace();
    let (service, memory) = words.next().and_then(|word| word.split_once(':')).expect("service:GiB");
    let constraints: Vec<Constraint> = words.map(|word| word.parse().expect("a constraint")).collect();
    let wanted = with_task(spec(&format!("{service}-asked"), 1), |task| {
        task.resources.reservations.memory_bytes = memory.parse::<u64>().expect("GiB") * 1024 * MIB;
        task.placement.constraints = constraints;
    });
    // The asked task belongs to the same service as those that run, if the name says so.
    let id = match bed.state.service_named(service).cloned() {
        Some(existing) => {
            let service = existing.spec.name.clone();
            let replicas = existing.spec.mode.replicas() + 1;
            let request = crate::admission::Request::ScaleService { service, replicas };
            bed.ask(&request).expect("a good number");
            existing.id
        }
        None => bed.service(wanted),
    };
    bed.tick();
    let task = bed.tasks(id).pop().expect("a task was created");
    let host = task.node.and_then(|node| bed.state.node(node)).map(|node| node.hostname.clone());
    let answer = host.unwrap_or(task.note.clone());
    println!("{name}");
    outcome.assert_eq(&answer.replace("1 node is drained; ", "").replace("1 node is drained", ""));
}

/// Lets a service have one more task, on this node.
fn place(bed: &mut Bed, service: &str, host: &str) {
    let open: Vec<_> =
        bed.state.nodes().filter(|node| node.availability == Availability::Active).cloned().collect();
    let others = |bed: &mut Bed, availability| {
        for node in open.iter().filter(|node| node.hostname != host) {
            bed.alter(node.id, |node| node.availability = availability);
        }
    };
    others(bed, Availability::Pause);
    match bed.state.service_named(service).map(|found| found.spec.mode.replicas()) {
        Some(replicas) => {
            let service = service.to_owned();
            let request = crate::admission::Request::ScaleService { service, replicas: replicas + 1 };
            bed.ask(&request).expect("a good number");
        }
        None => drop(bed.service(spec(service, 1))),
    }
    bed.tick();
    others(bed, Availability::Active);
}

#[rustfmt::skip]
#[test]
fn placement() {
    //   name                         nodes                       running              ask                        outcome
    case("spreads a service",         "n1:8 n2:8",                "web@n1",            "web:0",                   expect!["n2"]);
    case("fills the emptier node",    "n1:8 n2:8",                "db@n1 db@n1",       "web:1",                   expect!["n2"]);
    case("spread comes before fill",  "n1:8 n2:8",                "web@n1 db@n2 db@n2", "web:0",                  expect!["n2"]);
    case("packs around memory",       "n1:2 n2:8",                "db@n2 db@n2",       "web:4",                   expect!["n2"]);
    case("passes over the silent",    "n1:8! n2:8",               "web@n2",            "web:0",                   expect!["n1"]);
    case("passes over the paused",    "n1:8- n2:8",               "db@n2",             "web:1",                   expect!["n2"]);
    case("asks for a label",          "n1:8 n2:8/disk=ssd",       "db@n2",             "web:1 node.labels.disk==SSD", expect!["n2"]);
    case("avoids a label",            "n1:8 n2:8/disk=hdd",       "db@n1",             "web:1 node.labels.disk!=hdd", expect!["n1"]);
    case("knows architectures",       "n1:8",                     "",                  "web:1 node.platform.arch==amd64", expect!["n1"]);
    case("knows roles and names",     "n1:8 n2:8",                "",                  "web:1 node.role==worker node.hostname==n2", expect!["n2"]);
    case("explains each refusal",     "n1:8! n2:2 n3:8/a=b",      "",                  "web:4 node.labels.a!=b",  expect!["n1"]);
    case("has nowhere to look",       "",                         "",                  "web:1",                   expect!["no suitable node (1 node not ready)"]);
}

#[test]
fn a_host_port_is_taken_once_a_node() {
    let mut bed = Bed::new();
    bed.node("n1", 1024);
    let mut wanted = spec("edge", 2);
    wanted.endpoint.ports.push(port(Some(80), 80, PortMode::Host));
    let service = bed.service(wanted);
    bed.tick();
    let notes: Vec<_> = bed.tasks(service).iter().map(|task| task.note.clone()).collect();
    assert_eq!(notes[0], "");
    assert!(notes[1].contains("host port 80 already in use on 1 node"), "{}", notes[1]);
}

#[test]
fn a_node_where_a_service_keeps_failing_comes_last() {
    let mut bed = Bed::new();
    let (bad, good) = (bed.node("n1", 1024), bed.node("n2", 1024));
    let service =
        bed.service(with_task(spec("web", 1), |task| task.restart.delay = std::time::Duration::ZERO));
    // The good node is busier, so that only failures speak against the other.
    let other = bed.service(with_task(spec("other", 3), |task| {
        task.placement.constraints.push("node.hostname==n2".parse().expect("a constraint"));
    }));
    let mut visited = Vec::new();
    for _ in 0..7 {
        bed.tick();
        let task = bed.tasks(service).pop().expect("one is always wanted");
        let node = task.node.expect("somebody takes it");
        visited.push(node);
        if node == good {
            break;
        }
        bed.report(task.id, Observed::Running);
        bed.report(task.id, Observed::Failed);
    }
    assert_eq!(visited, [vec![bad; 5], vec![good]].concat());
    assert_eq!(bed.tasks(other).len(), 3);
}

#[test]
fn why_a_task_waits_takes_later_ones_into_account() {
    let mut bed = Bed::new();
    bed.node("n1", 2048);
    let reserving = |name: &str, cpus: u64, memory: u64| {
        with_task(spec(name, 1), |task| {
            task.resources.reservations =
                Resources { nano_cpus: cpus * 1_000_000_000, memory_bytes: memory * MIB };
        })
    };
    let waits = bed.service(reserving("waits", 1, 4096));
    bed.service(reserving("fits", 4, 0));
    bed.tick();
    let note = bed.tasks(waits)[0].note.clone();
    expect!["no suitable node (1 node not ready; insufficient CPUs on 1 node)"].assert_eq(&note);
    assert_eq!(bed.tick().changes, []);
}

#[test]
fn a_task_that_is_being_stopped_leaves_its_place_to_its_successor() {
    let mut bed = Bed::new();
    for host in ["n1", "n2", "n3"] {
        bed.node(host, 64);
    }
    let id = bed.service(spec("web", 3));
    bed.tick();
    bed.all_run();
    let old = bed.tasks(id).pop().expect("three tasks");
    bed.commit(vec![crate::Change::SetDesired { task: old.id, desired: Desired::Shutdown }])
        .expect("in time");
    bed.tick();
    let new = bed.tasks(id).into_iter().find(|task| task.slot == old.slot && task.id != old.id);
    assert_eq!(new.expect("a successor").node, old.node, "the other nodes have one already");
}
