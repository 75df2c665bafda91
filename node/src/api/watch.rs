//! How a service comes along, told at once and at each change, until it has settled or will not get there.

use crate::manager::clock;
use crate::manager::cluster::Cluster;
use rswarm_control::convergence::{self, Verdict};
use rswarm_control::ids::ServiceId;
use rswarm_control::model::{Desired, Task};
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

/// Sends progress into `sink` until the end, or until nobody listens.
pub async fn report(
    cluster: Cluster,
    service: ServiceId,
    removal: bool,
    sink: mpsc::Sender<Result<pb::ServiceProgress, Status>>,
) {
    let mut watch = cluster.view().watch();
    let began = tokio::time::Instant::now();
    let mut last = None;
    loop {
        watch.mark_unchanged();
        let state = cluster.state();
        let (progress, next) = look(&state, service, removal, began.elapsed());
        let stage = progress.state();
        let ended = matches!(stage, Stage::Settled | Stage::Failed | Stage::Paused | Stage::Removed);
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
    removal: bool,
    waited: Duration,
) -> (pb::ServiceProgress, Duration) {
    let far = Duration::from_secs(1);
    let Some(progress) = convergence::progress(state, service) else {
        let tasks: Vec<_> = state.tasks_of(service).filter(|task| task.is_live()).collect();
        let stage = if removal && !tasks.is_empty() { Stage::Converging } else { Stage::Removed };
        let tasks = tasks.into_iter().map(|task| line(state, task)).collect();
        return (pb::ServiceProgress { state: stage.into(), tasks, ..Default::default() }, far);
    };
    let since = progress.since.map_or(Duration::ZERO, |since| clock::after(state.clock()).since(since));
    let (stage, next) = match progress.verdict {
        _ if removal => (Stage::Converging, far),
        Verdict::Settled if progress.replicas == 0 || since >= STABLE => (Stage::Settled, far),
        Verdict::Settled => (Stage::Running, STABLE.saturating_sub(since)),
        Verdict::Paused => (Stage::Paused, far),
        Verdict::GivenUp => (Stage::Failed, far),
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
    let trouble = progress.trouble;
    let progress = pb::ServiceProgress {
        state: stage.into(),
        running: progress.current,
        desired: progress.replicas,
        tasks: tasks.into_iter().map(|task| line(state, task)).collect(),
        words: trouble.as_ref().map(|trouble| trouble.words.clone()).unwrap_or_default(),
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
        observed: task.observed.to_string(),
        words: convergence::words(task),
    }
}
