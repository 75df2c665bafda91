//! What `rswarm status` says about the loss of any one node.

use crate::cli::output::value::{Struct, Value};
use rswarm_proto::v1 as pb;
use std::fmt::Write as _;

/// So many services are told of; the rest is counted.
const LINES_MAX: usize = 10;

/// In one line; nothing where no task would have to move.
pub(super) fn summary(spare: &pb::Spare) -> Option<String> {
    let pb::Spare { losses, examined, of } = spare;
    let all = match (examined, of) {
        (_, 0) => return None,
        (examined, of) if examined < of => {
            format!("any of the {examined} fullest nodes, of {of} with tasks,")
        }
        _ => "any one node".into(),
    };
    Some(match losses.as_slice() {
        [] => format!("{all} may be lost: the others have room for its tasks"),
        [loss] => format!("the loss of {} would leave tasks without a place", loss.hostname),
        [first, .., last] if losses.len() == 2 => {
            format!("the loss of {} or {} would leave tasks without a place", first.hostname, last.hostname)
        }
        _ => format!("the loss of any of {} nodes would leave tasks without a place", losses.len()),
    })
}

/// What each loss would come to.
pub(super) fn details(text: &mut String, spare: &pb::Spare) {
    let lines = spare.losses.iter().flat_map(|loss| {
        loss.shortfalls.iter().map(|short| {
            let tasks = if short.tasks == 1 { "task" } else { "tasks" };
            format!("{}: {} {tasks} of {}: {}", loss.hostname, short.tasks, short.service, short.why)
        })
    });
    let lines: Vec<String> = lines.collect();
    if lines.is_empty() {
        return;
    }
    text.push_str("\nWhat would find no place if a node were lost:\n");
    for line in lines.iter().take(LINES_MAX) {
        let _ = writeln!(text, "  - {line}");
    }
    if lines.len() > LINES_MAX {
        let _ =
            writeln!(text, "  - and {} more; `rswarm status --format json` has all", lines.len() - LINES_MAX);
    }
}

pub(super) fn view(spare: &pb::Spare) -> Value {
    let short = |short: &pb::spare::Shortfall| {
        Struct::new("shortfall")
            .with("Service", &short.service)
            .with("Tasks", short.tasks)
            .with("Why", &short.why)
    };
    let loss = |loss: &pb::spare::Loss| {
        Struct::new("loss")
            .with("NodeID", &loss.node_id)
            .with("Hostname", &loss.hostname)
            .with("Shortfalls", Value::from(loss.shortfalls.iter().map(short).collect::<Vec<_>>()))
    };
    Struct::new("spare")
        .with("Losses", Value::from(spare.losses.iter().map(loss).collect::<Vec<_>>()))
        .with("Examined", spare.examined)
        .with("Of", spare.of)
        .into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spare(hosts: &[&str], examined: u32, of: u32) -> pb::Spare {
        let short = |service: &str, tasks| pb::spare::Shortfall {
            service: service.into(),
            tasks,
            why: "no suitable node (n3 lacks 200 MiB)".into(),
        };
        let loss = |host: &&str| pb::spare::Loss {
            hostname: (*host).to_owned(),
            shortfalls: vec![short("db", 1), short("web", 3)],
            ..Default::default()
        };
        pb::Spare { losses: hosts.iter().map(loss).collect(), examined, of }
    }

    #[test]
    fn it_is_said_which_nodes_may_be_lost_and_what_lacks_otherwise() {
        for (hosts, examined, of, said) in [
            (&[][..], 0, 0, None),
            (&[], 3, 3, Some("any one node may be lost: the others have room for its tasks")),
            (
                &[],
                3,
                9,
                Some(
                    "any of the 3 fullest nodes, of 9 with tasks, may be lost: the others have room for its tasks",
                ),
            ),
            (&["n1"], 3, 3, Some("the loss of n1 would leave tasks without a place")),
            (&["n1", "n2"], 3, 3, Some("the loss of n1 or n2 would leave tasks without a place")),
            (&["n1", "n2", "n3"], 3, 3, Some("the loss of any of 3 nodes would leave tasks without a place")),
        ] {
            assert_eq!(summary(&spare(hosts, examined, of)).as_deref(), said);
        }
        let mut text = String::new();
        details(&mut text, &spare(&["n1", "n2", "n3", "n4", "n5", "n6"], 6, 6));
        assert!(text.contains("n1: 3 tasks of web: no suitable node (n3 lacks 200 MiB)"), "{text}");
        assert!(text.contains("n1: 1 task of db") && text.contains("and 2 more"), "{text}");
    }
}
