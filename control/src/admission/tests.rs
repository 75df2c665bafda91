use super::*;
use crate::model::*;
use crate::testing::{Bed, MIB, init, port, spec, with_task};
use expect_test::{Expect, expect};
use std::sync::Arc;
use std::time::Duration;

fn create(spec: ServiceSpec) -> Request {
    Request::CreateService { spec, networks: vec![] }
}

#[allow(clippy::needless_pass_by_value)]
fn refused(change: impl FnOnce(&mut ServiceSpec), expected: Expect) {
    let mut wanted = spec("web", 1);
    change(&mut wanted);
    expected.assert_eq(&Bed::new().words(&create(wanted)));
}

#[allow(clippy::needless_pass_by_value)]
fn refused_task(change: impl FnOnce(&mut TaskSpec), expected: Expect) {
    refused(|spec| change(Arc::make_mut(&mut spec.task)), expected);
}

#[rustfmt::skip]
#[test]
fn specs_that_could_not_be_right_are_refused() {
    refused(|s| s.name = String::new(), expect!["Invalid: service name `` is not allowed: use 1 to 63 letters, digits, `-` and `_`, beginning and ending with a letter or digit"]);
    refused(|s| s.name = "a b".into(), expect!["Invalid: service name `a b` is not allowed: use 1 to 63 letters, digits, `-` and `_`, beginning and ending with a letter or digit"]);
    refused(|s| s.name = "-web".into(), expect!["Invalid: service name `-web` is not allowed: use 1 to 63 letters, digits, `-` and `_`, beginning and ending with a letter or digit"]);
    refused(|s| s.name = "x".repeat(63), expect!["done"]);
    refused(|s| s.mode = Mode::Replicated { replicas: 1_000_000 }, expect!["Invalid: replicas: 1000000 is more than 100000"]);
    refused(|s| (s.mode, Arc::make_mut(&mut s.task).placement.max_per_node) = (Mode::Global, 1), expect!["Invalid: max replicas per node: a global service has one task on each node; leave it out"]);
    refused(|s| s.update.max_failure_permille = 1001, expect!["Invalid: update: the failure ratio lies between 0 and 1"]);
    refused(|s| s.endpoint.ports = vec![port(Some(0), 80, PortMode::Ingress)], expect!["Invalid: publish: port 0 does not exist"]);
    refused(|s| s.endpoint.ports = vec![port(None, 80, PortMode::Host)], expect!["Invalid: publish: port 80 in host mode needs a published port"]);
    refused(|s| s.endpoint.ports = vec![port(Some(80), 80, PortMode::Ingress), port(Some(80), 81, PortMode::Host)], expect!["Invalid: publish: port 80 is given twice"]);
    refused(|s| (s.endpoint.mode, s.endpoint.ports) = (EndpointMode::Dnsrr, vec![port(Some(80), 80, PortMode::Ingress)]), expect!["Invalid: endpoint mode: a port published with mode ingress cannot be used with dnsrr; publish it with mode=host"]);
    refused(|s| s.endpoint.ports = vec![PortSpec { protocol: Protocol::Udp, proxy_protocol: true, ..port(None, 53, PortMode::Ingress) }], expect!["Invalid: publish: port 53: the PROXY protocol is for TCP"]);
    refused(|s| (s.endpoint.mode, s.endpoint.client_affinity) = (EndpointMode::Dnsrr, true), expect!["Invalid: client affinity: a dnsrr service has no virtual address, its clients pick a task themselves"]);
    refused(|s| s.endpoint.allow = vec![allow("a b")], expect!["Invalid: allowed service's name `a b` is not allowed: use 1 to 63 letters, digits, `-` and `_`, beginning and ending with a letter or digit"]);
    refused(|s| s.endpoint.allow = vec![allow("api"), allow("api")], expect!["Invalid: allow from: api is given twice"]);
    refused_task(|t| t.containers.clear(), expect!["Invalid: a service needs a container image"]);
    refused_task(|t| t.containers[0].image = " ".into(), expect!["Invalid: a service needs a container image of at most 512 characters"]);
    refused_task(|t| t.containers.push(ContainerSpec::new("other")), expect!["Invalid: more than one container in a task is not possible yet"]);
    refused_task(|t| t.resources.limits.nano_cpus = 999_999, expect!["Invalid: limit: less than 0.001 CPUs is not possible"]);
    refused_task(|t| t.resources.reservations.memory_bytes = 4 * MIB - 1, expect!["Invalid: reservation: less than 4 MiB of memory is not possible"]);
    refused_task(|t| (t.resources.limits.memory_bytes, t.resources.reservations.memory_bytes) = (8 * MIB, 9 * MIB), expect!["Invalid: resources: more is reserved than the limit lets the task use"]);
    refused_task(|t| t.containers[0].env.push(EnvVar { name: "A=B".into(), value: String::new() }), expect!["Invalid: env: `A=B` is no variable name; write NAME=VALUE"]);
    refused_task(|t| t.containers[0].args.push("a\0b".into()), expect!["Invalid: commands, arguments and environment hold no NUL and at most 64 KiB each"]);
    refused_task(|t| t.containers[0].workdir = Some("tmp".into()), expect!["Invalid: workdir: `tmp` is not an absolute path"]);
    refused_task(|t| t.containers[0].hostname = Some("a b".into()), expect!["Invalid: hostname: `a b` is none: use at most 64 letters, digits, `-`, `_` and `.`"]);
    refused_task(|t| t.containers[0].stop_signal = Some("SIGNOPE".into()), expect!["Invalid: stop signal: `SIGNOPE` is none; write SIGTERM, TERM or 15"]);
    refused_task(|t| t.containers[0].stop_grace = Duration::from_secs(1 << 20), expect!["Invalid: stop grace period: more than a week is not possible"]);
    refused_task(|t| t.containers[0].mounts.push(tmpfs("data")), expect!["Invalid: mount: target `data` is not an absolute path below /"]);
    refused_task(|t| t.containers[0].mounts.push(tmpfs("//")), expect!["Invalid: mount: target `//` is not an absolute path below /"]);
    refused_task(|t| t.containers[0].mounts.push(tmpfs("/a/../b")), expect!["Invalid: mount: target `/a/../b` is not an absolute path below /"]);
    refused_task(|t| t.containers[0].mounts.extend([tmpfs("/a"), tmpfs("/a/")]), expect!["Invalid: mount: target `/a/` is given twice"]);
    refused_task(|t| t.containers[0].mounts.push(volume("../etc")), expect!["Invalid: mount: `../etc` is no name for a volume; write 2 to 128 letters, digits, `_`, `.` and `-`, a letter or digit first"]);
    refused_task(|t| t.networks.push(crate::NetworkId(1)), expect!["NotFound: no such network: 0000000000001"]);
}

fn allow(from: &str) -> Allow {
    Allow { from: from.into(), port: None }
}

#[rustfmt::skip]
#[test]
fn health_checks_that_could_not_be_right_are_refused() {
    let second = Duration::from_secs(1);
    let http = |path: &str| Probe::Http(HttpProbe { path: path.into(), port: 80 });
    let health = |change: &dyn Fn(&mut HealthSpec), expected| refused_task(|t| change(&mut t.containers[0].health), expected);
    let ready = |readiness: Readiness, expected| refused_task(|t| t.containers[0].readiness = Some(readiness), expected);
    health(&|h| (h.test, h.interval) = (HealthTest::None, Some(second)), expect!["Invalid: health: a container without a health check has no times of one"]);
    health(&|h| h.interval = Some(Duration::from_micros(1)), expect!["Invalid: health interval: 1µs is not possible; it lies between 1 ms and 24 h"]);
    health(&|h| h.timeout = Some(second * 100_000), expect!["Invalid: health timeout: 100000s is not possible; it lies between 1 ms and 24 h"]);
    health(&|h| h.start_interval = Some(Duration::ZERO), expect!["Invalid: health start interval: 0ns is not possible; it lies between 1 ms and 24 h"]);
    health(&|h| h.start_period = Some(second * 100_000), expect!["Invalid: health start period: more than 24 h are not possible"]);
    health(&|h| h.retries = Some(0), expect!["Invalid: health and readiness: no retries means no verdict; there is at least 1"]);
    health(&|h| h.test = HealthTest::Probe(Probe::Command(vec![])), expect!["Invalid: health: a probe needs a program to run"]);
    health(&|h| h.test = HealthTest::Probe(Probe::Shell("a\0b".into())), expect!["Invalid: health: a probe's texts hold no NUL and at most 64 KiB each"]);
    health(&|h| h.test = HealthTest::Probe(Probe::Tcp(0)), expect!["Invalid: health: port 0 does not exist"]);
    health(&|h| h.test = HealthTest::Probe(http("healthz")), expect!["Invalid: health: `healthz` is no path to ask for; it begins with `/` and has no spaces"]);
    health(&|h| h.test = HealthTest::Probe(http("/a b")), expect!["Invalid: health: `/a b` is no path to ask for; it begins with `/` and has no spaces"]);
    health(&|h| (h.test, h.retries) = (HealthTest::Probe(http("/x?a=b")), Some(1)), expect!["done"]);
    ready(Readiness { retries: 0, ..Readiness::new(Probe::Tcp(80)) }, expect!["Invalid: health and readiness: no retries means no verdict; there is at least 1"]);
    ready(Readiness { interval: Duration::ZERO, ..Readiness::new(Probe::Tcp(80)) }, expect!["Invalid: readiness interval: 0ns is not possible; it lies between 1 ms and 24 h"]);
    ready(Readiness::new(Probe::Tcp(0)), expect!["Invalid: readiness: port 0 does not exist"]);
    ready(Readiness::new(http("/")), expect!["done"]);
}

fn volume(source: &str) -> Mount {
    Mount::Volume { source: source.into(), target: "/data".into(), read_only: false, no_copy: false }
}

#[test]
fn a_volume_may_be_named_by_a_template() {
    let mut bed = Bed::new();
    let mut wanted = spec("db", 1);
    std::sync::Arc::make_mut(&mut wanted.task).containers[0].mounts.push(volume("db-{{.Task.Slot}}"));
    bed.service(wanted);
}

fn tmpfs(target: &str) -> Mount {
    Mount::Tmpfs { target: target.into(), size_bytes: None, mode: None }
}

#[test]
fn a_service_without_networks_joins_the_default_one_and_has_an_address_at_once() {
    let mut bed = Bed::new();
    let id = bed.service(spec("web", 1));
    let service = bed.state.service(id).expect("it exists");
    let network = bed.state.cluster().expect("a cluster").default_network;
    assert_eq!(service.spec.task.networks, [network]);
    assert!(service.endpoint.vips.contains_key(&network));
}

#[test]
fn names_are_taken_once() {
    let mut bed = Bed::new();
    bed.service(spec("web", 1));
    let words = bed.words(&create(spec("web", 1)));
    assert!(words.starts_with("AlreadyExists: a service named web exists already ("), "{words}");
}

#[test]
fn ports_conflict_with_their_holder_named_and_stay_over_updates() {
    let mut bed = Bed::new();
    let mut web = spec("web", 1);
    web.endpoint.ports = vec![port(Some(8080), 80, PortMode::Ingress), port(None, 81, PortMode::Ingress)];
    let id = bed.service(web.clone());
    let mut other = spec("other", 1);
    other.endpoint.ports = vec![port(Some(8080), 80, PortMode::Host)];
    let words = bed.words(&create(other.clone()));
    assert_eq!(words, "FailedPrecondition: port 8080 is already in use by service web");
    other.endpoint.ports = vec![port(Some(30_000), 80, PortMode::Ingress)];
    let words = bed.words(&create(other));
    assert_eq!(words, "FailedPrecondition: port 30000 is already in use by service web");

    let before = bed.state.service(id).expect("it exists").endpoint.clone();
    web.endpoint.ports.insert(1, port(None, 82, PortMode::Ingress));
    let update = Request::UpdateService { service: "web".into(), version: None, spec: web, networks: vec![] };
    bed.ask(&update).expect("nothing is wrong with it");
    let after = bed.state.service(id).expect("it exists").endpoint.clone();
    assert_eq!(after.vips, before.vips);
    assert_eq!(after.ports[2], before.ports[1], "the port for 81 is what it was");
    assert_eq!(after.ports[1].published, 30_001);
}

#[test]
fn a_service_is_not_renamed_and_not_updated_out_of_sequence() {
    let mut bed = Bed::new();
    bed.service(spec("web", 1));
    let update =
        |spec, version| Request::UpdateService { service: "web".into(), version, spec, networks: vec![] };
    let words = bed.words(&update(spec("net", 1), None));
    assert!(words.starts_with("Invalid: service web cannot be renamed"), "{words}");
    let words = bed.words(&update(spec("web", 2), Some(1)));
    assert!(words.starts_with("Conflict: update out of sequence"), "{words}");
}

#[test]
fn what_changes_nothing_is_not_a_change() {
    let mut bed = Bed::new();
    let id = bed.service(spec("web", 1));
    let request = Request::ScaleService { service: "web".into(), replicas: 1 };
    let (changes, answer) = admit(&bed.state, &request, bed.now).expect("a good number");
    assert_eq!((changes, answer), (vec![], Answer::Service(id)));
}

#[test]
fn only_a_change_of_the_task_counts_as_an_update() {
    let mut bed = Bed::new();
    let id = bed.service(spec("web", 1));
    bed.ask(&Request::ScaleService { service: "web".into(), replicas: 3 }).expect("a good number");
    assert_eq!(bed.state.service(id).expect("it exists").update_status, None);
    let spec = with_task(spec("web", 3), |task| task.force = 1);
    let update = Request::UpdateService { service: "web".into(), version: None, spec, networks: vec![] };
    bed.ask(&update).expect("nothing is wrong with it");
    let service = bed.state.service(id).expect("it exists");
    assert_eq!(service.update_status.as_ref().map(|status| status.state), Some(UpdateState::Updating));
}

#[test]
fn objects_are_found_by_id_by_its_beginning_and_by_name() {
    let mut bed = Bed::new();
    let id = bed.service(spec("web", 1));
    let text = id.to_string();
    for known in ["web", &text, &text[..4]] {
        assert_eq!(find_service(&bed.state, known).expect(known).id, id);
    }
    let words = |text| find_service(&bed.state, text).expect_err(text).to_string();
    assert_eq!(words("wbe"), "no such service: wbe; did you mean `web`?");
    assert_eq!(words("database"), "no such service: database");
    assert!(words("").starts_with("which service?"));
}

#[test]
fn a_name_wins_over_the_beginning_of_an_id_and_ambiguity_is_told() {
    let mut bed = Bed::new();
    let ids: Vec<String> = (0..40).map(|n| bed.service(spec(&format!("s{n}"), 1)).to_string()).collect();
    let first = &ids[0][..1];
    let named = bed.service(spec(first, 1));
    assert_eq!(find_service(&bed.state, first).expect("a name").id, named);
    let twice = ids
        .iter()
        .map(|id| &id[..1])
        .find(|c| *c != first && ids.iter().filter(|id| id.starts_with(*c)).count() > 1);
    let refused =
        find_service(&bed.state, twice.expect("40 ids share first letters")).expect_err("ambiguous");
    assert!(refused.to_string().contains("is ambiguous"), "{refused}");
}

#[test]
fn tokens_decide_the_role_and_rotation_refuses_the_old_one() {
    let mut bed = Bed::new();
    let join = |secret: &str| {
        let (hostname, addr) = ("n".into(), "192.0.2.7:2377".into());
        let (availability, description) = (Availability::Drain, Description::default());
        Request::Join(Join { secret: Secret(secret.into()), hostname, addr, availability, description })
    };
    let (worker, manager, new) = ("w".repeat(16), "m".repeat(16), "n".repeat(16));
    for (secret, role) in [(&worker, Role::Worker), (&manager, Role::Manager)] {
        let Ok(Answer::Node(id)) = bed.ask(&join(secret)) else { panic!("a valid token") };
        let node = bed.state.node(id).expect("a member");
        assert_eq!(
            (node.role, node.availability, node.raft.is_some()),
            (role, Availability::Drain, role == Role::Manager)
        );
    }
    for wrong in ["", "wrong"] {
        assert!(bed.words(&join(wrong)).starts_with("Denied: the join token is not valid"));
    }
    bed.ask(&Request::RotateToken { role: Role::Worker, secret: Secret(new.clone()) })
        .expect("a good secret");
    assert!(bed.words(&join(&worker)).starts_with("Denied"));
    assert_eq!(bed.words(&join(&new)), "done");
    assert_eq!(bed.words(&join(&manager)), "done");
}

#[test]
fn a_removed_node_cannot_come_back() {
    let mut bed = Bed::new();
    let node = bed.node("n1", 64);
    let session = Session {
        node,
        hostname: "n1".into(),
        addr: "192.0.2.7:2377".into(),
        description: Description::default(),
    };
    assert_eq!(bed.words(&Request::OpenSession(session.clone())), "done");
    bed.ask(&Request::RemoveNode { node: "n1".into(), force: true }).expect("a worker");
    let words = bed.words(&Request::OpenSession(session));
    assert!(words.starts_with("Denied: node") && words.contains("was removed"), "{words}");
}

#[test]
fn addresses_that_nobody_could_reach_are_refused() {
    for addr in ["0.0.0.0:2377", "[::]:2377", "192.0.2.1:0", "192.0.2.1", "here:2377", ""] {
        let init = Init { addr: addr.into(), ..crate::testing::init() };
        let refused = super::init(&State::default(), &init, Timestamp(0)).expect_err(addr);
        assert!(matches!(refused, Refused::Invalid(_)), "{addr}: {refused}");
    }
}

#[test]
fn networks_get_their_own_subnets_and_are_removed_only_unused() {
    let mut bed = Bed::new();
    let network = |name: &str| Request::CreateNetwork(NetworkSpec::new(name));
    for (name, subnet) in [("blue", "10.1.0.0/24"), ("green", "10.1.1.0/24")] {
        bed.ask(&network(name)).expect("a free name");
        assert_eq!(bed.state.network_named(name).expect("it exists").subnet.to_string(), subnet);
    }
    let wanted = create(spec("web", 1));
    let Request::CreateService { spec, .. } = wanted else { panic!("just made") };
    bed.ask(&Request::CreateService { spec, networks: vec!["blue".into()] }).expect("blue exists");
    assert_eq!(
        bed.words(&Request::RemoveNetwork { network: "blue".into() }),
        "FailedPrecondition: network blue is in use by service web"
    );
    assert!(bed.words(&Request::RemoveNetwork { network: "default".into() }).contains("cannot be removed"));
    assert_eq!(bed.words(&Request::RemoveNetwork { network: "green".into() }), "done");
    assert_eq!(bed.words(&network("green")), "done");
    let overlapping = NetworkSpec { subnet: "10.0.0.0/9".parse().ok(), ..NetworkSpec::new("wide") };
    let words = bed.words(&Request::CreateNetwork(overlapping));
    assert!(words.starts_with("FailedPrecondition: subnet 10.0.0.0/9 overlaps that of network"), "{words}");
    let loopback = NetworkSpec { subnet: "127.0.0.0/24".parse().ok(), ..NetworkSpec::new("lo") };
    assert!(bed.words(&Request::CreateNetwork(loopback)).contains("is reserved"));
}

#[test]
fn a_pool_can_run_out_and_a_network_too() {
    let mut bed = Bed::new();
    let small = NetworkSpec { subnet: "10.9.0.0/29".parse().ok(), ..NetworkSpec::new("small") };
    bed.ask(&Request::CreateNetwork(small)).expect("a free subnet");
    let join = |name: &str| Request::CreateService { spec: spec(name, 9), networks: vec!["small".into()] };
    bed.ask(&join("web")).expect("there is room for its virtual address");
    bed.tick();
    let service = bed.state.service_named("web").expect("it exists").id;
    let placed = bed.tasks(service).iter().filter(|task| task.observed == Observed::Pending).count();
    assert_eq!(placed, 4, "eight addresses: network, router, broadcast, virtual, and four");
    let note = bed.tasks(service).pop().expect("nine tasks").note.clone();
    assert_eq!(note, "network small has no free address left in 10.9.0.0/29");
    let words = bed.words(&join("db"));
    assert_eq!(words, "FailedPrecondition: network small has no free address left in 10.9.0.0/29");
}

#[test]
fn settings_are_checked() {
    let mut bed = Bed::new();
    let set = |settings| Request::UpdateSettings { version: None, settings };
    let short = Settings { cert_expiry: Duration::from_secs(60), ..Settings::default() };
    assert!(bed.words(&set(short)).contains("at least an hour"));
    let none = Settings { address_pools: vec![], ..Settings::default() };
    assert!(bed.words(&set(none)).contains("at least one address pool"));
    let good = Settings { task_history_limit: 0, ..Settings::default() };
    assert_eq!(bed.words(&set(good)), "done");
}

#[test]
fn a_repeated_request_is_answered_and_not_carried_out_again() {
    let mut bed = Bed::new();
    let founder = crate::admission::first_ids(init().id_seed).1;
    bed.alter(founder, |node| node.description.level = crate::level::LATEST);
    bed.tick();
    let id = Some(RequestId(5));
    let create = |name: &str| Request::CreateService { spec: spec(name, 1), networks: vec![] };
    let (changes, answer) = admit_once(&bed.state, id, &create("web"), bed.now).expect("it can be made");
    // Two leaders have decided it, and both proposals reach the log.
    bed.commit(changes.clone()).expect("the first");
    bed.commit(changes).expect_err("the second is stale");
    assert_eq!(bed.state.services().count(), 1);
    assert_eq!(admit_once(&bed.state, id, &create("web"), bed.now), Ok((vec![], answer)));
    // Also once what it made is gone, and whatever stands in the repetition.
    bed.ask(&Request::RemoveService { service: "web".into() }).expect("it is there");
    assert_eq!(admit_once(&bed.state, id, &create("other"), bed.now), Ok((vec![], answer)));
    let again = admit_once(&bed.state, Some(RequestId(6)), &create("web"), bed.now).expect("another request");
    assert_eq!(again.0.len(), 2);
}

#[test]
fn nothing_is_remembered_where_a_manager_would_not_understand_it() {
    let bed = Bed::new();
    let create = Request::CreateService { spec: spec("web", 1), networks: vec![] };
    let (changes, _) = admit_once(&bed.state, Some(RequestId(5)), &create, bed.now).expect("it can be made");
    assert!(matches!(changes[..], [Change::CreateService(_)]), "{changes:?}");
}

#[test]
fn who_repeats_a_join_without_a_token_is_told_nothing() {
    let mut bed = Bed::new();
    let founder = crate::admission::first_ids(init().id_seed).1;
    bed.alter(founder, |node| node.description.level = crate::level::LATEST);
    bed.tick();
    let join = |secret: &str| {
        Request::Join(Join {
            secret: Secret(secret.repeat(16)),
            hostname: "n2".into(),
            addr: "192.0.2.9:2377".into(),
            availability: Availability::Active,
            description: Description::default(),
        })
    };
    let id = Some(RequestId(5));
    let (changes, answer) = admit_once(&bed.state, id, &join("w"), bed.now).expect("a valid token");
    bed.commit(changes).expect("nothing else is going on");
    assert_eq!(admit_once(&bed.state, id, &join("w"), bed.now), Ok((vec![], answer)));
    let stranger = admit_once(&bed.state, id, &join("x"), bed.now);
    assert!(matches!(stranger, Err(Refused::Denied(_))), "{stranger:?}");
    let manager = admit_once(&bed.state, Some(RequestId(6)), &join("m"), bed.now);
    assert!(manager.expect_err("it is too old").to_string().contains("level 1"));
}
