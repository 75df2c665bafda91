//! How a service comes along, told at once and at each change, until it has settled or will not get there.

use crate::manager::clock;
use crate::manager::cluster::Cluster;
use rswarm_control::convergence::{self, Verdict};
use rswarm_control::health;
use rswarm_control::ids::ServiceId;
use rswarm_control::model::{Desired, Service, Task, UpdateStatus};
use rswarm_control::state::State;
use rswarm_proto::v1 as pb;
use rswarm_proto::v1::service_progress::State as Stage;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;
use tonic::Status;

/// How long all tasks must have run before a service counts as settled.
const STABLE: Duration = Duration::from_secs(5);
/// How long a task may stay pending or failing before the watch gives up on it.
const PATIENCE: Duration = Duration::from_secs(60);

/// What is waited for.
#[derive(Clone, Copy, Debug)]
pub struct Until {
    /// That it is gone.
    removal: bool,
    /// That it runs this one of its specs; 0 is any.
    revision: u64,
}

impl Until {
    /// As was asked.
    pub fn of(request: &pb::WatchServiceRequest) -> Self {
        Self { removal: request.removal, revision: request.revision }
    }

    /// How the cluster itself has gone, or goes, back from what is waited for, if it does.
    fn undone(self, service: &Service) -> Option<&UpdateStatus> {
        let status = service.update_status.as_ref().filter(|status| status.automatic);
        status.filter(|_| self.revision != 0 && service.revision > self.revision)
    }
}

/// Sends progress into `sink` until the end, or until nobody listens.
pub async fn report(
    cluster: Cluster,
    service: ServiceId,
    until: Until,
    sink: mpsc::Sender<Result<pb::ServiceProgress, Status>>,
) {
    let mut watch = cluster.view().watch();
    let began = tokio::time::Instant::now();
    let mut last = None;
    loop {
        watch.mark_unchanged();
        let state = cluster.state();
        let (progress, next) = look(&state, service, until, began.elapsed());
        let stage = progress.state();
        let ended = matches!(
            stage,
            Stage::Settled
                | Stage::Failed
                | Stage::Paused
                | Stage::Removed
                | Stage::RolledBack
                | Stage::TimedOut
        );
        if last.as_ref() != Some(&progress) {
            if sink.send(Ok(progress.clone())).await.is_err() {
                return;
            }
            last = Some(progress);
        }
        if ended {
            return;
        }
        tokio::select! {
            () = sink.closed() => return,
            changed = watch.changed() => if changed.is_err() { return },
            () = tokio::time::sleep(next) => {}
        }
    }
}

/// What there is to say now, and when to look again if nothing changes.
fn look(
    state: &State,
    service: ServiceId,
    until: Until,
    waited: Duration,
) -> (pb::ServiceProgress, Duration) {
    let far = Duration::from_secs(1);
    let removal = until.removal;
    let Some(progress) = convergence::progress(state, service) else {
        let tasks: Vec<_> = state.tasks_of(service).filter(|task| task.is_live()).collect();
        let stage = if removal && !tasks.is_empty() { Stage::Converging } else { Stage::Removed };
        let tasks = tasks.into_iter().map(|task| line(state, task)).collect();
        return (pb::ServiceProgress { state: stage.into(), tasks, ..Default::default() }, far);
    };
    let undone = state.service(service).and_then(|service| until.undone(service));
    let since = progress.since.map_or(Duration::ZERO, |since| clock::after(state.clock()).since(since));
    let overdue = convergence::overdue(state, service, clock::after(state.clock()));
    let status = state.service(service).and_then(|service| service.update_status.as_ref());
    let timed_out = status.is_some_and(|status| status.timed_out);
    let (stage, next) = match progress.verdict {
        _ if removal => (Stage::Converging, far),
        _ if undone.is_some_and(|status| status.state.is_complete()) => (Stage::RolledBack, far),
        Verdict::Settled if progress.job || progress.replicas == 0 || since >= STABLE => {
            (Stage::Settled, far)
        }
        Verdict::Settled => (Stage::Running, STABLE.saturating_sub(since)),
        Verdict::Paused if timed_out => (Stage::TimedOut, far),
        Verdict::Paused => (Stage::Paused, far),
        Verdict::GivenUp => (Stage::Failed, far),
        Verdict::Pending | Verdict::Converging if overdue.is_some() => (Stage::TimedOut, far),
        // A job may take its time, and what fails in it is tried again.
        Verdict::Converging if progress.job => (Stage::Converging, far),
        Verdict::Pending | Verdict::Converging if waited >= PATIENCE && progress.trouble.is_some() => {
            (Stage::Failed, far)
        }
        Verdict::Pending | Verdict::Converging => (Stage::Converging, far),
    };
    let mut tasks: Vec<&Arc<Task>> = state
        .tasks_of(service)
        .filter(|task| task.desired != Desired::Remove && (task.is_live() || task.is_wanted()))
        .collect();
    tasks.sort_by_key(|task| (task.slot, task.meta.number));
    let failed = undone.and_then(|status| status.failed_task).and_then(|task| state.task(task));
    let trouble = failed.map(|task| convergence::trouble(task)).or(progress.trouble);
    // A pause or a rollback has a reason of its own, which names the task.
    let reason = match stage {
        Stage::RolledBack => undone.map(|status| status.message.clone()),
        Stage::Paused | Stage::TimedOut => status.map(|status| status.message.clone()).or(overdue),
        _ => None,
    };
    let progress = pb::ServiceProgress {
        state: stage.into(),
        running: if progress.job { progress.running } else { progress.current },
        job: progress.job,
        completed: progress.completed,
        desired: progress.replicas,
        tasks: tasks.into_iter().map(|task| line(state, task)).collect(),
        words: reason.or(trouble.as_ref().map(|trouble| trouble.words.clone())).unwrap_or_default(),
        failing_task_id: trouble.as_ref().map(|trouble| trouble.task.to_string()).unwrap_or_default(),
        failing_task: trouble.map(|trouble| trouble.name).unwrap_or_default(),
    };
    (progress, next)
}

fn line(state: &State, task: &Task) -> pb::TaskProgress {
    let node = task.node.and_then(|node| state.node(node));
    pb::TaskProgress {
        task_id: task.id.to_string(),
        name: task.name(),
        node_name: node.map(|node| node.hostname.clone()).unwrap_or_default(),
        observed: match health::badge(task) {
            Some(badge) => format!("{} {badge}", task.observed),
            None => task.observed.to_string(),
        },
        words: convergence::words(task),
    }
}
