use super::naive;
use crate::model::*;
use crate::plan::Draft;
use crate::state::Change;
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
            let replicas = existing.spec.mode.replicas().expect("a number") + 1;
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
    match bed.state.service_named(service).and_then(|found| found.spec.mode.replicas()) {
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

/// Nodes are written `name/key=value/…/taint:effect/gpu=N+/gpu=0@`: labels, taints, what they have to give, and their
/// devices of one vendor. Services are made one after another, `name*replicas` and their options as on the command line;
/// where their tasks are is the outcome, or why they wait.
#[allow(clippy::needless_pass_by_value)]
fn rule(name: &str, nodes: &str, services: &[&str], outcome: Expect) {
    let mut bed = Bed::new();
    for text in nodes.split_whitespace() {
        let mut parts = text.split('/');
        let id = bed.node(parts.next().expect("a name"), 8 * 1024);
        for part in parts {
            bed.alter(id, |node| match (part.strip_suffix('+'), part.parse::<Taint>()) {
                (Some(stock), _) => {
                    let mut all = stock_texts(&node.description.generic);
                    all.push(stock.into());
                    node.description.generic = stocks(&all).expect("a stock");
                }
                (None, _) if part.ends_with('@') => {
                    node.description.devices.insert(format!("v.com/{}", part.trim_end_matches('@')));
                }
                (None, Ok(taint)) => node.taints.push(taint),
                (None, Err(_)) => {
                    let (key, value) = part.split_once('=').expect("a label");
                    node.labels.insert(key.into(), value.into());
                }
            });
        }
    }
    // Such options need managers that know them.
    if nodes.contains('@') {
        bed.upgrade();
    }
    for text in services {
        let mut words = text.split(" --");
        let (service, replicas) = words.next().and_then(|word| word.split_once('*')).expect("name*replicas");
        let mut wanted = spec(service, replicas.trim().parse().expect("a number"));
        words.for_each(|option| wanted = with_task(wanted.clone(), |task| set(task, option)));
        bed.service(wanted);
        bed.tick();
    }
    println!("{name}");
    outcome.assert_eq(&homes(&bed));
}

fn set(task: &mut TaskSpec, option: &str) {
    let (option, value) = option.split_once(' ').expect("an option and its value");
    let placement = &mut task.placement;
    match option {
        "constraint" => placement.constraints.push(value.parse().expect("a constraint")),
        "pref" => placement.preferences.push(value.parse().expect("a preference")),
        "max" => placement.max_per_node = value.parse().expect("a number"),
        "near" => placement.affinities.push(Affinity::parse(AffinityRule::Together, value).expect("a rule")),
        "far" => placement.affinities.push(Affinity::parse(AffinityRule::Apart, value).expect("a rule")),
        "tolerate" => placement.tolerations.push(value.parse().expect("a toleration")),
        "fill" => placement.filling = Some(Filling::BinPack).filter(|_| value == "binpack"),
        "memory" => task.resources.reservations.memory_bytes = value.parse::<u64>().expect("MiB") * MIB,
        "generic" => {
            let need: Need = value.parse().expect("a need");
            task.resources.generic.insert(need.kind, need.count);
        }
        "device" => task.containers[0].profile.devices.push(Device::named(value)),
        "platform" => {
            let (os, arch) = value.split_once('/').expect("os/arch");
            placement.platforms.push(Platform { os: os.into(), arch: arch.into() });
        }
        other => panic!("no option {other}"),
    }
}

/// `n1: web web; n2: db`, then why the others wait.
fn homes(bed: &Bed) -> String {
    let mut nodes: std::collections::BTreeMap<String, Vec<String>> = Default::default();
    let mut waiting = Vec::new();
    for task in bed.state.tasks() {
        let claims = task.claims.values().flatten().cloned().collect::<Vec<_>>().join("+");
        let name = [task.service_name.clone(), claims].join("@").trim_end_matches('@').to_owned();
        match task.node.and_then(|node| bed.state.node(node)) {
            Some(node) => nodes.entry(node.hostname.clone()).or_default().push(name),
            None => waiting.push(format!("{name}: {}", task.note.replace("1 node is drained; ", ""))),
        }
    }
    let line = |(node, mut tasks): (String, Vec<String>)| {
        tasks.sort();
        format!("{node}: {}", tasks.join(" "))
    };
    waiting.sort();
    waiting.dedup();
    nodes.into_iter().map(line).chain(waiting).collect::<Vec<_>>().join("; ")
}

#[rustfmt::skip]
#[test]
fn rules_of_placement() {
    let zones = "a1/zone=a a2/zone=a b1/zone=b";
    //   name                              nodes    services                                                outcome
    rule("lists of values",                "n1/d=x n2/d=y n3/d=z", &["web*2 --constraint node.labels.d in (y, z)"], expect!["n2: web; n3: web"]);
    rule("lists of what is excluded",      "n1/d=x n2/d=y n3/d=z", &["web*1 --constraint node.labels.d not in (y, z)"], expect!["n1: web"]);
    rule("branches are even",              zones, &["web*4 --pref spread=node.labels.zone"],                expect!["a1: web; a2: web; b1: web web"]);
    rule("levels of branches",             "a1/z=a/r=1 a2/z=a/r=1 a3/z=a/r=2 b1/z=b/r=1", &["web*8 --pref spread=node.labels.z --pref spread=node.labels.r"], expect!["a1: web; a2: web; a3: web web; b1: web web web web"]);
    rule("no label is a branch",           "a1/zone=a a2/zone=a n1", &["web*4 --pref spread=node.labels.zone"], expect!["a1: web; a2: web; n1: web web"]);
    rule("weights before spreading",       "n1 n2/disk=ssd", &["web*3 --pref prefer=node.labels.disk==ssd,weight=10"], expect!["n2: web web web"]);
    rule("weights add up",                 "n1/a=1 n2/b=1/c=1", &["web*1 --pref prefer=node.labels.a==1,weight=3 --pref prefer=node.labels.b==1,weight=2 --pref prefer=node.labels.c==1,weight=2"], expect!["n2: web"]);
    rule("weights that speak against",     "n1 n2/old=1", &["web*2 --pref prefer=node.labels.old==1,weight=-5"], expect!["n1: web web"]);
    rule("at most so many a node",         "n1 n2", &["web*5 --max 2"],                                     expect!["n1: web web; n2: web web; web: no suitable node (1 node not ready; max replicas per node (2) reached on 2 nodes)"]);
    rule("near another service",           "n1 n2 n3", &["db*1", "web*2 --near db"],                        expect!["n2: db web web"]);
    rule("near a service that is not",     "n1", &["web*1 --near db"],                                      expect!["web: no suitable node (1 node not ready; no task of db on 1 node)"]);
    rule("in the zone of another",         zones, &["db*1 --constraint node.hostname==a1", "web*3 --near db,over=node.labels.zone"], expect!["a1: db web; a2: web web"]);
    rule("itself together in one zone",    zones, &["web*4 --near web,over=node.labels.zone"],              expect!["a1: web web; a2: web web"]);
    rule("itself together on one node",    "n1 n2 n3", &["web*3 --near web"],                               expect!["n2: web web web"]);
    rule("far from another",               "n1 n2", &["db*1", "web*2 --far db"],                            expect!["n1: web web; n2: db"]);
    rule("the other keeps away too",       "n1 n2", &["web*1 --far db", "db*2"],                            expect!["n1: db db; n2: web"]);
    rule("far by zones",                   zones, &["db*1 --constraint node.hostname==a1", "web*2 --far db,over=node.labels.zone"], expect!["a1: db; b1: web web"]);
    rule("one a zone",                     zones, &["web*3 --far web,over=node.labels.zone"],               expect!["a2: web; b1: web; web: no suitable node (1 node not ready; a task of web in the same node.labels.zone on 3 nodes)"]);
    rule("rather not beside",              "n1 n2", &["db*1", "web*3 --far db,weight=1"],                   expect!["n1: web web web; n2: db"]);
    rule("rather beside",                  "n1 n2", &["db*1", "web*3 --near db,weight=1"],                  expect!["n2: db web web web"]);
    rule("packs nodes full",               "n1 n2", &["web*5 --memory 2048 --fill binpack"],                expect!["n1: web; n2: web web web web"]);
    rule("taints keep away",               "n1/gpu:no-schedule n2", &["web*2"],                             expect!["n2: web web"]);
    rule("and are tolerated",              "n1/gpu=big:no-schedule n2", &["web*2 --tolerate gpu=big"],      expect!["n1: web; n2: web"]);
    rule("taints all around",              "n1/gpu:no-schedule", &["web*1"],                                expect!["web: no suitable node (1 node not ready; taint gpu:no-schedule is not tolerated on 1 node; n1 is tainted gpu:no-schedule)"]);
    rule("taints to be avoided",           "n1/old:prefer-no-schedule n2", &["web*2", "db*3 --constraint node.hostname==n1"], expect!["n1: db db db; n2: web web"]);
    rule("counted resources",              "n1/gpu=2+ n2/gpu=1+ n3", &["ml*4 --generic gpu=1"],             expect!["n1: ml ml; n2: ml; ml: no suitable node (1 node not ready; insufficient gpu on 3 nodes; n2 lacks 1 gpu)"]);
    rule("named resources",                "n1/nic=eth1+/nic=eth2+", &["net*3 --generic nic=1"],            expect!["n1: net@eth1 net@eth2; net: no suitable node (1 node not ready; insufficient nic on 1 node; n1 lacks 1 nic)"]);
    rule("several named at once",          "n1/nic=a+/nic=b+/nic=c+", &["net*2 --generic nic=2"],           expect!["n1: net@a+b; net: no suitable node (1 node not ready; insufficient nic on 1 node; n1 lacks 1 nic)"]);
    rule("devices by name",                "n1 n2/gpu=0@/gpu=1@ n3/fpga=0@", &["ml*2 --device v.com/gpu=1", "ai*1 --device v.com/gpu=7"], expect!["n2: ml ml; ai: no suitable node (1 node not ready; there is no device v.com/gpu=7 on 3 nodes; n2 has v.com/gpu=0, v.com/gpu=1)"]);
    rule("platforms",                      "n1", &["web*1 --platform linux/amd64", "arm*1 --platform linux/arm64"], expect!["n1: web; arm: no suitable node (1 node not ready; unsupported platform on 1 node; n1 is linux/x86_64)"]);
    rule("the nearest miss",               "n1 n2", &["db*2 --memory 7000", "web*1 --memory 1392"],   expect!["n1: db; n2: db; web: no suitable node (1 node not ready; insufficient memory on 2 nodes; n2 lacks 200 MiB)"]);
}

#[test]
fn what_ended_gives_back_what_it_was_given() {
    let mut bed = Bed::new();
    let node = bed.node("n1", 1024);
    bed.alter(node, |node| node.description.generic = stocks(&["nic=eth1"]).expect("a stock"));
    let asks = |name: &str| with_task(spec(name, 1), |task| set(task, "generic nic=1"));
    let first = bed.service(asks("first"));
    bed.tick();
    bed.all_run();
    let told = |bed: &Bed| {
        let tasks = crate::assignment::of(&bed.state, node).tasks;
        tasks.values().filter(|task| task.is_wanted()).flat_map(|task| task.generic_env()).collect::<Vec<_>>()
    };
    assert_eq!(told(&bed), [("DOCKER_RESOURCE_NIC".to_owned(), "eth1".to_owned())]);
    bed.service(asks("second"));
    bed.tick();
    assert!(homes(&bed).contains("insufficient nic on 1 node; n1 lacks 1 nic"), "{}", homes(&bed));
    bed.ask(&crate::admission::Request::RemoveService { service: "first".into() }).expect("it is there");
    for task in bed.tasks(first) {
        bed.report(task.id, Observed::Shutdown);
    }
    bed.tick();
    assert_eq!(homes(&bed), "n1: second@eth1");
}

#[test]
fn a_no_execute_taint_moves_tasks_away() {
    let mut bed = Bed::new();
    let (one, other) = (bed.node("n1", 64), bed.node("n2", 64));
    let service = bed.service(spec("web", 2));
    bed.tick();
    bed.all_run();
    let update = crate::admission::NodeUpdate {
        node: "n1".into(),
        taints_add: vec!["broken:no-execute".parse().expect("a taint")],
        ..Default::default()
    };
    bed.ask(&crate::admission::Request::UpdateNode(update)).expect("a valid update");
    bed.tick();
    for task in bed.tasks(service).iter().filter(|task| task.is_wanted()) {
        assert_eq!(task.node, Some(other));
    }
    let leaving: Vec<_> = bed.tasks(service).into_iter().filter(|task| !task.is_wanted()).collect();
    assert_eq!(leaving.iter().map(|task| task.node).collect::<Vec<_>>(), [Some(one)]);
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
    expect!["no suitable node (1 node not ready; insufficient CPUs on 1 node; n1 lacks 1 CPUs)"]
        .assert_eq(&note);
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

mod like_the_naive_one {
    use super::*;
    use crate::ids::NodeId;
    use proptest::prelude::*;
    use proptest::sample::select;

    #[derive(Clone, Debug)]
    struct Machine {
        memory: u64,
        parts: Vec<&'static str>,
        status: NodeStatus,
    }

    fn machine() -> impl Strategy<Value = Machine> {
        let parts = vec![
            "zone=a",
            "zone=b",
            "zone=c",
            "rack=1",
            "rack=2",
            "disk=ssd",
            "gpu:no-schedule",
            "old:prefer-no-schedule",
            "gpu=2+",
            "nic=eth1+",
            "nic=eth2+",
        ];
        let status = prop_oneof![8 => Just(NodeStatus::Ready), 1 => Just(NodeStatus::Down)];
        (select(vec![256u64, 512, 2048]), proptest::sample::subsequence(parts, 0..5), status)
            .prop_map(|(memory, parts, status)| Machine { memory, parts, status })
    }

    fn service() -> impl Strategy<Value = (u32, Vec<&'static str>, bool)> {
        let options = vec![
            "constraint node.labels.disk==ssd",
            "constraint node.labels.zone in (a, b)",
            "constraint node.hostname!=n1",
            "pref spread=node.labels.zone",
            "pref spread=node.labels.rack",
            "pref prefer=node.labels.disk==ssd,weight=5",
            "pref prefer=node.labels.zone==b,weight=-5",
            "max 1",
            "max 2",
            "near s0",
            "near s1,over=node.labels.zone",
            "near s2,over=node.labels.zone,weight=5",
            "near s2",
            "far s0",
            "far s1,over=node.labels.zone",
            "far s1,over=node.labels.rack,weight=6",
            "far s2",
            "far s2,weight=5",
            "tolerate gpu",
            "tolerate *",
            "fill binpack",
            "memory 100",
            "memory 300",
            "generic gpu=1",
            "generic nic=1",
            "platform linux/amd64",
        ];
        (1u32..7, proptest::sample::subsequence(options, 0..5), prop::bool::weighted(0.1))
    }

    fn cluster(machines: &[Machine]) -> (Bed, Vec<NodeId>) {
        let mut bed = Bed::new();
        let mut nodes = Vec::new();
        for (number, machine) in machines.iter().enumerate() {
            let id = bed.node(&format!("n{number}"), machine.memory);
            nodes.push(id);
            bed.alter(id, |node| {
                for part in &machine.parts {
                    match (part.strip_suffix('+'), part.parse::<Taint>()) {
                        (Some(stock), _) => {
                            let mut all = stock_texts(&node.description.generic);
                            all.push(stock.into());
                            node.description.generic = stocks(&all).expect("a stock");
                        }
                        (None, Ok(taint)) => node.taints.push(taint),
                        (None, Err(_)) => {
                            let (key, value) = part.split_once('=').expect("a label");
                            node.labels.insert(key.into(), value.into());
                        }
                    }
                }
            });
        }
        (bed, nodes)
    }

    /// Lets tasks wait for a node, and then asks both.
    fn compare(bed: &mut Bed) -> Result<(), TestCaseError> {
        let open: Vec<_> = bed
            .state
            .nodes()
            .filter(|node| node.availability == Availability::Active)
            .map(|n| n.id)
            .collect();
        for node in &open {
            bed.alter(*node, |node| node.availability = Availability::Pause);
        }
        bed.tick();
        for node in &open {
            bed.alter(*node, |node| node.availability = Availability::Active);
        }
        let expected = naive::assignments(&bed.state, bed.now);
        let mut draft = Draft::new(&bed.state, bed.now);
        super::super::schedule(&mut draft);
        let decided: Vec<Change> = draft
            .finish()
            .changes
            .into_iter()
            .filter(|change| matches!(change, Change::Assign { .. }))
            .collect();
        prop_assert_eq!(&decided, &expected);
        if !decided.is_empty() {
            bed.commit(decided).expect("it is decided on this state");
        }
        prop_assert_eq!(naive::overcommitted(&bed.state), Default::default());
        Ok(())
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 192, ..ProptestConfig::default() })]
        #[test]
        fn it_decides_alike(
            machines in prop::collection::vec(machine(), 1..9),
            services in prop::collection::vec(service(), 1..7),
            endings in prop::collection::vec(0u8..6, 40),
        ) {
            let (mut bed, nodes) = cluster(&machines);
            for (node, machine) in nodes.iter().zip(&machines) {
                bed.alter(*node, |node| node.status = machine.status);
                if machine.status != NodeStatus::Ready {
                    bed.heard.forget(*node);
                }
            }
            let half = services.len().div_ceil(2);
            for (round, some) in services.chunks(half).enumerate() {
                for (number, (replicas, options, port)) in some.iter().enumerate() {
                    let mut wanted = spec(&format!("s{}", round * half + number), *replicas);
                    for option in options {
                        wanted = with_task(wanted, |task| set(task, option));
                    }
                    if *port {
                        let published = Some(80 + number as u16 + 10 * round as u16);
                        wanted.endpoint.ports.push(self::port(published, 80, PortMode::Host));
                    }
                    let request = crate::admission::Request::CreateService { spec: wanted, networks: vec![] };
                    // Some rules contradict each other.
                    let _ = bed.ask(&request);
                }
                compare(&mut bed)?;
                let placed: Vec<_> =
                    bed.state.tasks().filter(|t| t.node.is_some() && t.is_live()).map(|t| t.id).collect();
                for (task, ending) in placed.iter().zip(endings.iter().cycle()) {
                    match ending {
                        0 => bed.report(*task, Observed::Failed),
                        1 => {
                            let change = Change::SetDesired { task: *task, desired: Desired::Shutdown };
                            let _ = bed.commit(vec![change]);
                        }
                        _ => bed.report(*task, Observed::Running),
                    }
                }
                bed.pass(std::time::Duration::from_secs(1));
                for (node, machine) in nodes.iter().zip(&machines) {
                    if machine.status == NodeStatus::Ready {
                        bed.heard.beat(*node, bed.now);
                    }
                }
            }
            compare(&mut bed)?;
        }
    }
}

#[test]
fn a_node_that_would_leave_an_option_out_is_not_asked_to_run_it() {
    let mut bed = Bed::new();
    let founder = crate::admission::first_ids(crate::testing::init().id_seed).1;
    let (old, new) = (bed.node("old", 64), bed.node("new", 64));
    for (node, level) in [(founder, crate::level::LATEST), (old, 1), (new, crate::level::LATEST)] {
        bed.alter(node, |node| node.description.level = level);
    }
    bed.tick();
    let own_users = |name: &str, replicas| {
        with_task(spec(name, replicas), |task| task.containers[0].profile.userns = Userns::Auto)
    };
    let plain = bed.service(spec("plain", 2));
    let safe = bed.service(own_users("safe", 2));
    bed.tick();
    let hosts = |bed: &Bed, id| -> Vec<String> {
        let nodes = bed.tasks(id).into_iter().filter_map(|task| bed.state.node(task.node?).cloned());
        nodes.map(|node| node.hostname.clone()).collect()
    };
    assert_eq!(hosts(&bed, safe), ["new", "new"]);
    let mut both = hosts(&bed, plain);
    both.sort();
    assert_eq!(both, ["new", "old"], "what is plain every node knows");
    bed.alter(new, |node| node.availability = Availability::Pause);
    let waits = bed.service(own_users("waits", 1));
    bed.tick();
    let note = bed.tasks(waits).pop().expect("a task was created").note.clone();
    assert!(
        note.contains("rswarm is too old for the options asked for on 1 node")
            && note.contains("old runs rswarm")
            && note.contains("of level 1, and this needs 3"),
        "{note}"
    );
}
