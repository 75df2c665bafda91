//! How far a service is from what was asked of it, for whoever waits until it is so.

use crate::ids::{NodeId, ServiceId, TaskId};
use crate::model::{Desired, NodeStatus, Observed, Service, Task};
use crate::orchestrator::{self, is_done, is_given_up, is_settled_on, seconds, slots};

use crate::state::State;
use crate::time::Timestamp;
use std::sync::Arc;

/// How far a service is.
#[derive(Clone, Debug, PartialEq)]
pub struct Progress {
    /// Tasks asked for; of a job, completions.
    pub replicas: u32,
    /// Whether it is a job.
    pub job: bool,
    /// Of a job, the slots that have had their run.
    pub completed: u32,
    /// Slots with a task that runs, healthy and ready, on a node that is heard from.
    pub running: u32,
    /// Those of them that run the current spec.
    pub current: u32,
    /// Tasks that still have to end.
    pub leaving: u32,
    /// What it amounts to.
    pub verdict: Verdict,
    /// When the youngest of the running tasks came to run.
    pub since: Option<Timestamp>,
    /// The task that keeps it from getting there, if one does.
    pub trouble: Option<Trouble>,
}

/// What progress amounts to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Everything is as asked for.
    Settled,
    /// It may yet become so by itself.
    Converging,
    /// Tasks wait, and there is no telling whether they can be placed.
    Pending,
    /// A failure has stopped the update; it stays so until somebody changes the spec.
    Paused,
    /// Some slots have been given up, as their restart policy says, or a job at its deadline.
    GivenUp,
}

/// A task that keeps a service from settling, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trouble {
    /// Which.
    pub task: TaskId,
    /// `web.1`
    pub name: String,
    /// Where.
    pub node: Option<NodeId>,
    /// The task's own words.
    pub words: String,
}

impl Progress {
    /// Whether everything is as asked for.
    pub fn is_settled(&self) -> bool {
        self.verdict == Verdict::Settled
    }
}

/// How many tasks a service shall have now. A global one has as many as there are nodes that may have one or have
/// it already; one on a node that is lost is not counted. A job has as many as are still to run, and may at the
/// same time.
pub fn wanted(state: &State, service: &Service) -> u32 {
    orchestrator::wanted(state, service)
}

/// How many tasks a service asks for altogether; of a job, completions.
pub fn total(state: &State, service: &Service) -> u32 {
    match service.spec.mode.is_job() {
        true => service.spec.mode.replicas().unwrap_or_else(|| orchestrator::holders(state, service)),
        false => wanted(state, service),
    }
}

/// Of a job, how many slots have had their run.
pub fn completed(state: &State, service: &Service) -> u32 {
    if service.spec.mode.is_job() { orchestrator::completed(state, service) } else { 0 }
}

/// How far a service is; `None` if it does not exist.
pub fn progress(state: &State, service: ServiceId) -> Option<Progress> {
    let service = state.service(service)?;
    let mut progress = Progress {
        replicas: total(state, service),
        job: service.spec.mode.is_job(),
        completed: completed(state, service),
        running: 0,
        current: 0,
        leaving: 0,
        verdict: Verdict::Converging,
        since: None,
        trouble: None,
    };
    let mut waiting = None;
    for task in state.tasks_of(service.id) {
        let lost = state.is_lost(task);
        if task.is_live() && !task.is_wanted() {
            // A task on a node that is lost will not end while we watch.
            progress.leaving += u32::from(!lost && task.node.is_some());
        }
        let seen = state.home(task).is_some_and(|node| node.status == NodeStatus::Ready);
        if task.is_wanted() && seen && task.serves() {
            progress.running += 1;
            progress.current += u32::from(is_settled_on(state, service, task));
            progress.since = progress.since.max(task.status.running_at);
        }
        if task.is_live() && task.is_wanted() && !task.note.is_empty() {
            waiting = waiting.or(Some(task));
        }
    }
    let slots = slots(state, service.id);
    let given_up = slots.values().find(|tasks| is_given_up(service, tasks)).and_then(|tasks| tasks.last());
    let paused = service.update_status.as_ref().filter(|status| status.state.is_paused());
    let updating = service.update_status.as_ref().is_some_and(|status| status.state.is_moving());
    let reached = match progress.job {
        true => progress.completed >= progress.replicas,
        false => progress.current == progress.replicas && progress.running == progress.replicas,
    };
    let expired = service.expired_at.is_some() && !reached;
    // A job goes on with its other slots when it has given one up.
    let given_up = given_up.filter(|_| {
        let over = |tasks: &Vec<Arc<Task>>| is_done(tasks) || is_given_up(service, tasks);
        !progress.job || slots.len() >= progress.replicas as usize && slots.values().all(over)
    });
    progress.verdict = match () {
        () if expired => Verdict::GivenUp,
        () if paused.is_some() && !reached => Verdict::Paused,
        () if reached && progress.leaving == 0 && !updating && service.rebalance.is_none() => {
            Verdict::Settled
        }
        () if waiting.is_some() => Verdict::Pending,
        () if given_up.is_some() => Verdict::GivenUp,
        () => Verdict::Converging,
    };
    let culprit = paused.and_then(|status| status.failed_task).and_then(|id| state.task(id));
    let failing = || last_failure(state, service.id);
    if expired {
        let last = state.tasks_of(service.id).filter(|task| task.observed != Observed::Completed);
        progress.trouble = last.max_by_key(|task| task.meta.number).map(|task| Trouble {
            words: format!(
                "the job was stopped at its deadline, {} s after it began",
                service.spec.mode.deadline().as_secs()
            ),
            ..trouble(task)
        });
    } else if progress.verdict != Verdict::Settled {
        let task = culprit.or(waiting).or(given_up).or_else(failing);
        progress.trouble = task.map(|task| trouble(task));
    }
    Some(progress)
}

/// Since when a service that was never updated should have come further, by the progress deadline of its updates, and
/// in words; updates see to that themselves.
pub fn overdue(state: &State, service: ServiceId, now: Timestamp) -> Option<String> {
    let never_updated =
        |service: &&Arc<Service>| service.update_status.is_none() && !service.spec.mode.is_job();
    let service = state.service(service).filter(never_updated)?;
    let deadline = service.spec.update.progress_deadline;
    let last = state.tasks_of(service.id).filter_map(|task| task.status.running_at).max();
    let since = service.spec_since.max(last.unwrap_or_default());
    let late = !deadline.is_zero() && since.after(deadline) <= now;
    late.then(|| format!("no task came to run within {}", seconds(deadline)))
}

/// The youngest failure in a slot that has not come to run since.
fn last_failure(state: &State, service: ServiceId) -> Option<&Arc<Task>> {
    let runs_in = |failed: &Task| {
        state.tasks_of(service).any(|task| {
            task.slot == failed.slot
                && task.meta.number > failed.meta.number
                && task.observed == Observed::Running
        })
    };
    state
        .tasks_of(service)
        .filter(|task| task.desired != Desired::Remove)
        .filter(|task| matches!(task.observed, Observed::Failed | Observed::Rejected))
        .filter(|task| !runs_in(task))
        .max_by_key(|task| task.meta.number)
}

/// What there is to say of a task that keeps its service from settling.
pub fn trouble(task: &Task) -> Trouble {
    Trouble { task: task.id, name: task.name(), node: task.node, words: words(task) }
}

/// What there is to say of a task, in its own words: why it waits, what went wrong, or what it does.
pub fn words(task: &Task) -> String {
    let status = &task.status;
    if !task.note.is_empty() {
        return task.note.clone();
    }
    match (status.error.as_str(), status.exit_code, status.message.as_str()) {
        ("", Some(code), _) if code != 0 => format!("exited with code {code}"),
        ("", _, "") => task.observed.to_string(),
        ("", _, message) => message.to_owned(),
        (error, _, _) => error.to_owned(),
    }
}
