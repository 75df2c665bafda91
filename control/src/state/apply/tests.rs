use crate::model::*;
use crate::state::{Change, Event, EventKind, Object, Owner, State};
use crate::testing::{Bed, init, port, spec, with_task};

/// A cluster with two nodes and a service of two running tasks.
fn running() -> (Bed, crate::ServiceId) {
    let mut bed = Bed::new();
    bed.node("n1", 1024);
    bed.node("n2", 1024);
    let service = bed.service(spec("web", 2));
    bed.tick();
    bed.all_run();
    (bed, service)
}

#[test]
fn a_stale_proposal_changes_nothing_but_the_index() {
    let (mut bed, service) = running();
    let task = bed.tasks(service)[0].id;
    let before = bed.state.snapshot();
    let changes = vec![
        Change::SetDesired { task, desired: Desired::Shutdown },
        Change::SetDesired { task, desired: Desired::Running },
    ];
    let stale = bed.commit(changes).expect_err("wishes do not go back");
    assert!(stale.to_string().contains("is wanted as shutdown already"), "{stale}");
    let after = bed.state.snapshot();
    assert_eq!(after.index, before.index + 1);
    assert_eq!(crate::Snapshot { index: before.index, ..after }, before);
}

#[test]
fn what_was_decided_on_an_older_version_is_stale() {
    let (mut bed, id) = running();
    let service = bed.state.service(id).expect("it exists").clone();
    let changed = with_task(service.spec.clone(), |task| task.force += 1);
    let update = Change::UpdateService {
        service: id,
        version: service.meta.version,
        spec: Box::new(changed),
        endpoint: service.endpoint.clone(),
        author: String::new(),
        rollback: None,
    };
    bed.commit(vec![update.clone()]).expect("the first is in time");
    bed.commit(vec![update]).expect_err("the second is not");
}

#[test]
fn two_objects_never_get_one_number() {
    let mut bed = Bed::new();
    let create = |bed: &Bed, name: &str| {
        let request = crate::admission::Request::CreateService { spec: spec(name, 1), networks: vec![] };
        crate::admission::admit(&bed.state, &request, bed.now).expect("a good spec").0
    };
    let (one, other) = (create(&bed, "one"), create(&bed, "other"));
    bed.commit(one).expect("the first takes the number");
    bed.commit(other).expect_err("the second has to ask again");
}

#[test]
fn reports_only_move_a_task_forward() {
    let (mut bed, service) = running();
    let task = bed.tasks(service)[0].clone();
    bed.report(task.id, Observed::Starting);
    assert_eq!(bed.state.task(task.id).expect("it exists").observed, Observed::Running);
    bed.report(task.id, Observed::Failed);
    bed.report(task.id, Observed::Shutdown);
    assert_eq!(bed.state.task(task.id).expect("it exists").observed, Observed::Failed);
}

#[test]
fn a_node_is_only_believed_about_its_own_tasks() {
    let (mut bed, service) = running();
    let tasks = bed.tasks(service);
    let (one, other) = (&tasks[0], &tasks[1]);
    let mut report = bed.report_of(one.id, Observed::Failed);
    report.node = other.node.expect("it has a node");
    bed.commit(vec![Change::Report(report)]).expect("reports are never stale");
    assert_eq!(bed.state.task(one.id).expect("it exists").observed, Observed::Running);
}

#[test]
fn an_older_session_is_stale() {
    let mut bed = Bed::new();
    let node = bed.node("n1", 1024);
    let (hostname, addr) = ("n1".to_owned(), "192.0.2.9:2377".to_owned());
    let open = Change::OpenSession { node, epoch: 1, hostname, addr, description: Description::default() };
    bed.commit(vec![open]).expect_err("epoch 1 was taken when it joined");
}

#[test]
fn seats_in_the_consensus_group_are_never_given_twice() {
    let mut bed = Bed::new();
    let node = bed.node("n1", 1024);
    let mut seats = Vec::new();
    for role in [Role::Manager, Role::Worker, Role::Manager] {
        let version = bed.state.node(node).expect("a member").meta.version;
        let (availability, labels) = (Availability::Active, Labels::new());
        bed.commit(vec![Change::UpdateNode { node, version, role, availability, labels, taints: vec![] }])
            .expect("in time");
        seats.push(bed.state.node(node).expect("a member").raft.map(|raft| raft.0));
    }
    assert_eq!(seats, [Some(2), None, Some(3)]);
}

#[test]
fn two_demotions_at_once_leave_a_manager() {
    let mut bed = Bed::new();
    let node = bed.node("m2", 1024);
    let founder = crate::admission::first_ids(init().id_seed).1;
    let set = |bed: &Bed, node, role| {
        let version = bed.state.node(node).expect("a member").meta.version;
        let (availability, labels) = (Availability::Active, Labels::new());
        Change::UpdateNode { node, version, role, availability, labels, taints: vec![] }
    };
    let promote = set(&bed, node, Role::Manager);
    bed.commit(vec![promote]).expect("in time");
    let (one, other) = (set(&bed, founder, Role::Worker), set(&bed, node, Role::Worker));
    bed.commit(vec![one]).expect("one manager is left");
    bed.commit(vec![other]).expect_err("none would be left");
}

#[test]
fn a_wish_made_in_between_is_not_ended_by_what_was_decided_before_it() {
    let (mut bed, service) = running();
    let begun = |at: u64, gentle| Rebalance {
        since: crate::Timestamp(at),
        author: String::new(),
        left: 8,
        gentle,
        moving: std::collections::BTreeMap::new(),
    };
    let set = |since: Option<u64>, rebalance| Change::SetRebalance {
        service,
        since: since.map(crate::Timestamp),
        rebalance,
    };
    bed.commit(vec![set(None, Some(begun(1, true)))]).expect("none goes on");
    bed.commit(vec![set(None, Some(begun(2, true)))])
        .expect_err("one goes on, and nobody has asked for another");
    bed.commit(vec![set(None, Some(begun(3, false)))]).expect("a user may always ask");
    bed.commit(vec![set(Some(1), None)]).expect_err("it would end the user's");
    bed.commit(vec![set(Some(3), None)]).expect("it ends the one that was meant");
    assert_eq!(bed.state.service(service).expect("it exists").rebalance, None);
}

#[test]
fn an_ended_task_gives_its_addresses_back() {
    let (mut bed, service) = running();
    let task = bed.tasks(service)[0].clone();
    let (network, address) = task.addresses[0];
    assert_eq!(bed.state.owner_of(network, address), Some(Owner::Task(task.id)));
    bed.report(task.id, Observed::Failed);
    assert_eq!(bed.state.owner_of(network, address), None);
}

#[test]
fn a_removed_service_frees_its_name_address_and_ports_at_once() {
    let mut bed = Bed::new();
    let mut wanted = spec("web", 1);
    wanted.endpoint.ports.push(port(Some(80), 80, PortMode::Ingress));
    for _ in 0..20 {
        let id = bed.service(wanted.clone());
        bed.tick();
        let version = bed.state.service(id).expect("it exists").meta.version;
        bed.commit(vec![Change::RemoveService { service: id, version }]).expect("in time");
        bed.tick();
    }
    let snapshot = bed.state.snapshot();
    assert_eq!((snapshot.services.len(), snapshot.tasks.len()), (0, 0));
    assert_eq!(bed.state.addresses.len(), 0, "nothing leaks");
}

#[test]
fn former_specs_are_kept_up_to_a_limit() {
    let (mut bed, id) = running();
    for force in 1..=15 {
        let service = bed.state.service(id).expect("it exists").clone();
        let spec = with_task(service.spec.clone(), |task| task.force = force);
        let (version, endpoint) = (service.meta.version, service.endpoint.clone());
        let update = Change::UpdateService {
            service: id,
            version,
            spec: Box::new(spec),
            endpoint,
            author: String::new(),
            rollback: None,
        };
        bed.commit(vec![update]).expect("in time");
    }
    let service = bed.state.service(id).expect("it exists");
    let numbers: Vec<u64> = service.previous.iter().map(|revision| revision.number).collect();
    assert_eq!(numbers, (6..=15).collect::<Vec<_>>());
    assert_eq!((service.revision, service.spec_version), (16, 16));
}

#[test]
fn tasks_share_the_spec_of_their_service() {
    let (bed, service) = running();
    let tasks = bed.tasks(service);
    assert!(std::sync::Arc::ptr_eq(&tasks[0].spec, &tasks[1].spec));
}

#[test]
fn watchers_learn_what_was_touched() {
    let (mut bed, service) = running();
    let task = bed.tasks(service)[0].clone();
    let change = Change::SetDesired { task: task.id, desired: Desired::Shutdown };
    let applied = bed.commit(vec![change]).expect("in time");
    assert_eq!(applied.events, [Event { object: Object::Task(task.id), kind: EventKind::Updated }]);
}

#[test]
fn a_cluster_begins_once() {
    let mut bed = Bed::new();
    let (changes, _) = crate::admission::init(&State::default(), &init(), bed.now).expect("an empty state");
    bed.commit(changes).expect_err("there is one already");
    let cluster = bed.state.cluster().expect("it exists");
    assert_eq!(
        (cluster.id, bed.state.nodes().next().expect("the founder").id),
        crate::admission::first_ids(7)
    );
    assert_eq!(
        bed.state.network(cluster.default_network).expect("it exists").subnet.to_string(),
        "10.0.0.0/16"
    );
}

#[test]
fn a_secret_is_not_printed() {
    let bed = Bed::new();
    let printed = format!("{:?}", bed.state);
    assert!(!printed.contains("wwww") && !printed.contains("\"key\""), "{printed}");
}

#[test]
fn who_starts_anew_is_alone_and_the_others_get_new_seats_when_they_come_back() {
    let mut bed = Bed::new();
    let other = bed.node("m2", 1024);
    let founder = crate::admission::first_ids(init().id_seed).1;
    let node = |bed: &Bed, id| bed.state.node(id).expect("a member").clone();
    let set = |bed: &Bed, role, availability| {
        let (version, labels) = (node(bed, other).meta.version, Labels::new());
        Change::UpdateNode { node: other, version, role, availability, labels, taints: vec![] }
    };
    let promote = set(&bed, Role::Manager, Availability::Active);
    bed.commit(vec![promote]).expect("in time");
    let seat = node(&bed, founder).raft;

    let addr = "192.0.2.99:2377";
    let anew = crate::membership::start_anew(&bed.state, 1 << 32, founder, addr).expect("it is news");
    bed.commit(vec![anew.clone()]).expect("a later incarnation");
    bed.commit(vec![anew]).expect_err("it is so already");
    assert!(crate::membership::start_anew(&bed.state, 1 << 32, founder, addr).is_none());
    assert_eq!((node(&bed, founder).raft, node(&bed, founder).addr.as_str()), (seat, addr));
    assert_eq!((node(&bed, other).raft, node(&bed, other).role), (None, Role::Manager));
    assert_eq!(bed.state.managers(), 1);

    // What else is changed of it gives it no seat.
    let drain = set(&bed, Role::Manager, Availability::Drain);
    bed.commit(vec![drain]).expect("in time");
    assert_eq!(node(&bed, other).raft, None);
    let reseat = Change::Reseat { node: other, lost: None };
    bed.commit(vec![reseat.clone()]).expect("it has none");
    assert_eq!(node(&bed, other).raft.map(|seat| seat.0), Some(3), "never one that was given before");
    bed.commit(vec![reseat]).expect_err("it has one now");

    // The last that has a seat is not demoted, however many have none.
    let lost = node(&bed, other).raft;
    bed.commit(vec![Change::Reseat { node: other, lost }]).expect("its log was lost");
    assert_eq!(node(&bed, other).raft.map(|seat| seat.0), Some(4));
}
