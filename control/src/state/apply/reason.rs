//! Why a task was moved, as far as the state knows it at that moment: said once, while it is true, since the
//! node that was drained and the spec that was replaced may be forgotten later.

use crate::model::{Availability, Desired, Service, Task, Transition};
use crate::scheduler::constraint;
use crate::state::{NewTask, Report, State};

/// Why a task is made.
pub(super) fn of_creation(service: &Service, new: &NewTask) -> Box<str> {
    let asked = match service.author.as_str() {
        "" => format!("for revision {}", service.revision),
        author => format!("for revision {} by {author}", service.revision),
    };
    match (new.restarts, new.failures) {
        (0, _) => asked.into(),
        (restarts, 0 | 1) => format!("{asked}, restart {restarts}").into(),
        (restarts, failures) => format!("{asked}, restart {restarts} after {failures} failures").into(),
    }
}

/// Why something else is wanted of a task.
pub(super) fn of_wish(state: &State, task: &Task, desired: Desired) -> Box<str> {
    if desired == Desired::Running {
        return Box::default();
    }
    let Some(service) = state.service(task.service) else { return "the service was removed".into() };
    if !task.is_live() {
        return "another task has its slot".into();
    }
    if let Some(id) = task.node {
        let Some(node) = state.node(id) else { return "its node was removed".into() };
        let name = &node.hostname;
        if node.status.is_lost() {
            return format!("it was replaced since its node {name} is lost").into();
        }
        if node.availability == Availability::Drain {
            return format!("its node {name} is drained").into();
        }
        if let Some(why) = service.moved(task.id) {
            return cut(&format!("rebalanced: {why}"));
        }
        if !constraint::may_stay(&service.spec.task.placement, node) {
            return format!("its node {name} may no longer run it").into();
        }
    }
    match desired {
        _ if task.spec_version != service.spec_version => {
            format!("revision {} takes its place", service.revision).into()
        }
        Desired::Remove => match service.spec.mode.replicas() {
            Some(replicas) => format!("not needed any more: {replicas} are asked for").into(),
            None => "not needed any more".into(),
        },
        _ => "another task has its slot".into(),
    }
}

/// What a node says of a task: what went wrong, or what goes on.
pub(super) fn of_report(report: &Report) -> Box<str> {
    match (report.error.as_str(), report.exit_code, report.observed.is_terminal()) {
        ("", Some(code), true) => format!("exited with code {code}").into(),
        ("", _, _) => cut(&report.message),
        (error, _, _) => cut(error),
    }
}

/// At most [`Transition::WHY_MAX`] characters.
pub(super) fn cut(text: &str) -> Box<str> {
    match text.char_indices().nth(Transition::WHY_MAX) {
        Some((end, _)) => text[..end].into(),
        None => text.into(),
    }
}
