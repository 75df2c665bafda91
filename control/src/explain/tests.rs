use super::*;
use crate::model::{Observed, Step};
use crate::testing::{Bed, MIB, spec, with_task};
use std::time::Duration;

fn told(bed: &Bed, task: TaskId) -> Explanation {
    explain(&bed.state, &bed.heard, bed.now, About::Task(task)).expect("it exists")
}

#[test]
fn the_scheduler_would_choose_what_is_ranked_first() {
    for filling in [crate::model::Filling::Spread, crate::model::Filling::BinPack] {
        let mut bed = Bed::new();
        for (host, memory) in [("n1", 64), ("n2", 96), ("n3", 128)] {
            bed.node(host, memory);
        }
        let fill = |task: &mut crate::model::TaskSpec| {
            task.resources.reservations.memory_bytes = 16 * MIB;
            task.placement.filling = Some(filling);
        };
        for name in ["a", "b", "c"] {
            bed.service(with_task(spec(name, 2), fill));
            bed.tick();
            // The youngest was placed last, so it stands where it would be placed again.
            let last = bed.state.tasks().max_by_key(|task| task.meta.number).expect("a task").id;
            let choice = told(&bed, last).choice.expect("it has a node");
            assert!(choice.rank == 1 && choice.of >= 2, "{choice:?}");
            let decides = choice.criteria.last().expect("nodes differ by their ids at least");
            assert!(decides.decides && choice.criteria.iter().filter(|c| c.decides).count() == 1);
        }
    }
}

#[test]
fn a_node_that_no_longer_fits_is_said_to() {
    let mut bed = Bed::new();
    let nodes = [bed.node("n1", 64), bed.node("n2", 64)];
    bed.service(spec("web", 1));
    bed.tick();
    let task = bed.state.tasks().next().expect("a task").clone();
    let node = task.node.expect("it has a node");
    let other = nodes.iter().find(|other| **other != node).and_then(|other| bed.state.node(*other));
    let other = other.expect("a member").hostname.clone();
    bed.alter(node, |node| node.availability = crate::model::Availability::Pause);
    let choice = told(&bed, task.id).choice.expect("it has a node");
    assert_eq!((choice.rank, choice.other.as_deref()), (0, Some(other.as_str())));
    assert_eq!(choice.refused, "1 node is paused");
}

#[test]
fn what_a_task_went_through_is_kept_in_order_and_bounded() {
    let mut bed = Bed::new();
    bed.node("n1", 64);
    let service = bed.service(spec("web", 1));
    bed.tick();
    let task = bed.tasks(service)[0].id;
    for observed in [Observed::Accepted, Observed::Preparing, Observed::Ready, Observed::Starting] {
        bed.pass(Duration::from_millis(100));
        bed.report(task, observed);
        bed.report(task, observed);
    }
    bed.report(task, Observed::Running);
    bed.ask(&crate::admission::Request::ScaleService { service: "web".into(), replicas: 0 }).expect("valid");
    bed.tick();
    let history = bed.state.task(task).expect("it is being stopped").history.clone();
    let steps: Vec<String> = history
        .iter()
        .map(|step| match step.to {
            Step::Observed(observed) => observed.to_string(),
            Step::Desired(desired) => format!("wanted {desired}"),
        })
        .collect();
    let expected = "new pending assigned accepted preparing ready starting running";
    assert_eq!(steps[..8].join(" "), expected);
    assert_eq!(steps[8..], ["wanted remove"]);
    assert_eq!(&*history[8].why, "not needed any more: 0 are asked for");
    assert!(history.windows(2).all(|pair| pair[0].at <= pair[1].at && pair[0].index <= pair[1].index));
    // All that a task can come to fits.
    const { assert!(13 + 4 <= crate::model::Transition::MAX) };
    // What thirty thousand tasks remember stays below 20 MiB: nine steps each until they run.
    let bytes: usize = history[..8].iter().map(|step| size_of_val(step) + step.why.len()).sum();
    assert!(bytes * 30_000 < 20 * 1024 * 1024, "{bytes} a task");
}

#[test]
fn the_brake_is_named() {
    let mut bed = Bed::new();
    let nodes: Vec<NodeId> = (1..=6).map(|n| bed.node(&format!("n{n}"), 64)).collect();
    bed.service(spec("web", 6));
    bed.tick();
    bed.all_run();
    bed.pass(Duration::from_secs(3));
    bed.heard.beat(nodes[0], bed.now);
    bed.tick();
    let silent = explain(&bed.state, &bed.heard, bed.now, About::Node(nodes[1])).expect("a member");
    let wait = &silent.waits[0];
    assert!(
        wait.what.contains("5 of 7 nodes are silent at once") || wait.what.contains("5 of 6"),
        "{wait:?}"
    );
    assert!(wait.next.is_some_and(|next| next > bed.now.after(Duration::from_secs(20))), "{wait:?}");
}

#[test]
fn events_are_bounded_and_survive_a_snapshot() {
    let mut bed = Bed::new();
    let node = bed.node("n1", 64);
    let flip = |bed: &mut Bed, to| {
        let update = crate::admission::NodeUpdate {
            node: node.to_string(),
            availability: Some(to),
            ..Default::default()
        };
        bed.ask(&crate::admission::Request::UpdateNode(update)).expect("a member");
    };
    for _ in 0..crate::events::EVENTS_MAX / 2 {
        flip(&mut bed, crate::model::Availability::Pause);
        flip(&mut bed, crate::model::Availability::Active);
    }
    assert_eq!(bed.state.events().count(), crate::events::EVENTS_MAX);
    let oldest = bed.state.events().next().expect("there are some").index;
    assert!(bed.state.forgotten() > 0 && bed.state.forgotten() < oldest);
    assert_eq!(State::restore(bed.state.snapshot()), bed.state);
}
