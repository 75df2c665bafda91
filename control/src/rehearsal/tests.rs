use super::*;
use crate::admission::NodeUpdate;
use crate::model::{Availability, Mode, UpdateOrder};
use crate::testing::{Bed, MIB, port, spec, with_task};

fn words(outcome: &Outcome) -> Vec<String> {
    outcome
        .places
        .iter()
        .map(|place| format!("{} {}→{} {:?}", place.name, place.before, place.after, place.fate))
        .collect()
}

fn bed(nodes: usize, memory_mib: u64) -> Bed {
    let mut bed = Bed::new();
    for number in 1..=nodes {
        bed.node(&format!("n{number}"), memory_mib);
    }
    bed
}

fn run(bed: &mut Bed) {
    for _ in 0..5 {
        bed.tick();
        bed.all_run();
    }
}

#[test]
fn differences_are_told_of_any_field_by_its_path() {
    let mut old = with_task(spec("web", 2), |task| {
        task.containers[0].args = vec!["a: b".into(), "c".into()];
        task.restart.max_attempts = Some(3);
    });
    old.labels.insert("a \"b\": c".into(), "1".into());
    let mut new = with_task(old.clone(), |task| {
        task.containers[0].image = "demo:2\n".into();
        task.containers[0].args[1] = "d".into();
        task.restart.max_attempts = None;
        task.resources.reservations.memory_bytes = 64 * MIB;
    });
    new.mode = Mode::Replicated { replicas: 5 };
    new.labels.insert("a \"b\": c".into(), "2".into());
    new.endpoint.ports.push(port(Some(80), 8080, crate::model::PortMode::Ingress));
    new.update.order = UpdateOrder::StartFirst;
    let differences = difference::between("service web", Some(&old), Some(&new));
    let told: Vec<String> = differences.iter().map(ToString::to_string).collect();
    for expected in [
        "~ service web: mode.replicas 2 → 5",
        "~ service web: task.containers[0].image \"demo\" → \"demo:2\\n\"",
        "~ service web: task.containers[0].args[1] \"c\" → \"d\"",
        "~ service web: task.resources.reservations.memory_bytes 0 → 67108864",
        "~ service web: update.order StopFirst → StartFirst",
        "+ service web: endpoint.ports[0].target 8080",
    ] {
        assert!(told.contains(&expected.to_owned()), "{expected} is not in {told:#?}");
    }
    assert!(told.iter().any(|line| line.contains("max_attempts") && line.contains("3")), "{told:#?}");
    assert!(told.iter().any(|line| line.contains("labels.") && line.ends_with("\"1\" → \"2\"")), "{told:#?}");
    assert_eq!(difference::between("service web", Some(&old), Some(&old)), []);
}

#[test]
fn nothing_is_changed_and_the_same_is_told_again() {
    let mut bed = bed(3, 64);
    bed.service(spec("web", 3));
    run(&mut bed);
    let before = bed.state.clone();
    let ask = Request::ScaleService { service: "web".into(), replicas: 1 };
    let (once, _) = rehearse(&bed.state, &ask, bed.now).expect("valid");
    let (again, _) = rehearse(&bed.state, &ask, bed.now).expect("valid");
    assert_eq!(once, again);
    assert_eq!(bed.state, before);
    assert_eq!(once.places.iter().filter(|place| place.fate == Fate::Stops).count(), 2);
    assert!(once.settled);
    assert_eq!(once.moved(&again), None);
}

#[test]
fn a_drain_says_where_its_tasks_go_and_what_is_reserved_meanwhile() {
    let mut bed = bed(2, 100);
    let mut web = with_task(spec("web", 2), |task| task.resources.reservations.memory_bytes = 40 * MIB);
    web.update.order = UpdateOrder::StartFirst;
    bed.service(web);
    run(&mut bed);
    let node = bed.state.nodes().find(|node| node.hostname == "n1").expect("a member").id;
    let availability = Some(Availability::Drain);
    let drain =
        Request::UpdateNode(NodeUpdate { node: node.to_string(), availability, ..NodeUpdate::default() });
    let (outcome, _) = rehearse(&bed.state, &drain, bed.now).expect("valid");
    let moves = words(&outcome).into_iter().filter(|line| line.contains("n1→n2 Replaced")).count();
    assert_eq!(moves, 1, "{outcome:#?}");
    assert!(outcome.settled);
    let peak = |name: &str| outcome.peaks.iter().find(|peak| peak.node == name).expect("it is touched");
    let memory = |resources: Resources| resources.memory_bytes / MIB;
    let n2 = peak("n2");
    assert_eq!(
        (memory(n2.before), memory(n2.most), memory(n2.after), memory(n2.capacity)),
        (40, 80, 80, 100)
    );
    assert_eq!((memory(peak("n1").most), memory(peak("n1").after)), (40, 0));
    assert_eq!(outcome.differences[0].to_string(), "~ node n1: availability Active → Drain");
}

#[test]
fn what_does_not_fit_is_told() {
    let mut bed = bed(1, 64);
    let big = with_task(spec("big", 2), |task| task.resources.reservations.memory_bytes = 40 * MIB);
    let ask = Request::CreateService { spec: big, networks: vec![] };
    run(&mut bed);
    let (outcome, _) = rehearse(&bed.state, &ask, bed.now).expect("valid");
    assert!(!outcome.settled);
    assert_eq!(words(&outcome), ["big.1 →n1 Starts", "big.2 → Starts"]);
    assert!(outcome.places[1].note.contains("insufficient memory on 1 node"), "{outcome:?}");
}

#[test]
fn a_plan_says_what_moved_since() {
    let mut bed = bed(3, 64);
    bed.service(spec("web", 2));
    run(&mut bed);
    let ask = Request::ScaleService { service: "web".into(), replicas: 3 };
    let (planned, _) = rehearse(&bed.state, &ask, bed.now).expect("valid");
    // What does not matter does not.
    let labels_add = [("a".to_owned(), "b".to_owned())].into();
    bed.ask(&Request::UpdateNode(NodeUpdate { node: "n1".into(), labels_add, ..NodeUpdate::default() }))
        .expect("a member");
    let (now, _) = rehearse(&bed.state, &ask, bed.now).expect("valid");
    assert_eq!(planned.moved(&now), None);
    // The node it would have come to is paused.
    let goes =
        planned.places.iter().find(|place| place.fate == Fate::Starts).expect("one more").after.clone();
    let availability = Some(Availability::Pause);
    bed.ask(&Request::UpdateNode(NodeUpdate { node: goes.clone(), availability, ..NodeUpdate::default() }))
        .expect("a member");
    let (now, _) = rehearse(&bed.state, &ask, bed.now).expect("valid");
    let moved = planned.moved(&now).expect("it matters");
    assert!(
        moved.starts_with("web.3 would come to n") && moved.ends_with(&format!("not to {goes}")),
        "{moved}"
    );
    // Somebody else has scaled it.
    bed.ask(&Request::ScaleService { service: "web".into(), replicas: 4 }).expect("valid");
    let (now, _) = rehearse(&bed.state, &ask, bed.now).expect("valid");
    let moved = planned.moved(&now).expect("it matters");
    assert!(moved.starts_with("what it changes is no longer the same"), "{moved}");
}
