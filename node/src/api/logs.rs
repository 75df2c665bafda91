//! Log lines of a task or of a whole service, from the nodes that have them, merged by time.

use crate::manager::cluster::View;
use crate::rpc::dial::{Dialer, Line};
use rswarm_control::ids::{ServiceId, TaskId};
use rswarm_control::model::{Observed, Task};
use rswarm_control::state::State;
use rswarm_proto::v1 as pb;
use std::collections::BTreeSet;
use std::sync::Arc;
use tokio::sync::mpsc;
use tonic::Status;

/// How many lines of one task wait for their turn.
const AHEAD: usize = 256;

/// Whose lines are asked for.
#[derive(Clone, Copy)]
pub enum Whose {
    /// All of a service's tasks, also those that are made while lines are followed.
    Service(ServiceId),
    /// One task's.
    Task(TaskId),
}

/// Where a task's log is.
struct Source {
    task: Arc<Task>,
    node: String,
    addr: String,
    node_name: String,
}

fn sources(state: &State, whose: Whose) -> Vec<Source> {
    let tasks: Vec<&Arc<Task>> = match whose {
        Whose::Service(service) => state.tasks_of(service).collect(),
        Whose::Task(task) => state.task(task).into_iter().collect(),
    };
    let source = |task: &Arc<Task>| {
        // What was never prepared has no log.
        let begun = task.observed >= Observed::Ready && task.observed != Observed::Rejected;
        let node = state.node(task.node.filter(|_| begun)?)?;
        Some(Source {
            task: task.clone(),
            node: node.id.to_string(),
            addr: node.addr.clone(),
            node_name: node.hostname.clone(),
        })
    };
    tasks.into_iter().filter_map(source).collect()
}

/// Sends what is asked for into `sink`, until it is all said or nobody listens any more.
pub async fn collect(
    view: View,
    whose: Whose,
    request: pb::LogsRequest,
    dialer: Arc<Dialer>,
    sink: mpsc::Sender<Result<pb::LogLine, Status>>,
) {
    let ask = |task: &Task, tail: i64| pb::TaskLogsRequest {
        task_id: task.id.to_string(),
        follow: request.follow,
        tail,
        since_ms: request.since_ms,
        until_ms: request.until_ms,
    };
    if request.follow {
        follow(view, whose, |task, new| ask(task, if new { -1 } else { request.tail }), dialer, sink).await;
        return;
    }
    let mut streams = Vec::new();
    for source in sources(&view.state(), whose) {
        let (sender, receiver) = mpsc::channel(AHEAD);
        let ask = ask(&source.task, request.tail);
        tokio::spawn(read(source, ask, dialer.clone(), sender));
        streams.push(receiver);
    }
    merge(streams, sink).await;
}

/// Reads all tasks there are, and those that come, until nobody listens, or nothing more can come.
async fn follow(
    view: View,
    whose: Whose,
    ask: impl Fn(&Task, bool) -> pb::TaskLogsRequest,
    dialer: Arc<Dialer>,
    sink: mpsc::Sender<Result<pb::LogLine, Status>>,
) {
    let mut watch = view.watch();
    let mut known = BTreeSet::new();
    let mut first = true;
    loop {
        watch.mark_unchanged();
        let state = view.state();
        for source in sources(&state, whose) {
            if known.insert(source.task.id) {
                let ask = ask(&source.task, !first);
                tokio::spawn(read(source, ask, dialer.clone(), sink.clone()));
            }
        }
        first = false;
        let over = match whose {
            Whose::Service(service) => state.service(service).is_none(),
            Whose::Task(task) => state.task(task).is_none_or(|task| !task.is_live()),
        };
        if over {
            return;
        }
        tokio::select! {
            () = sink.closed() => return,
            changed = watch.changed() => if changed.is_err() { return },
        }
    }
}

/// Sends the oldest of the first lines, again and again. Notes come at once.
async fn merge(
    mut streams: Vec<mpsc::Receiver<Result<pb::LogLine, Status>>>,
    sink: mpsc::Sender<Result<pb::LogLine, Status>>,
) {
    let mut heads: Vec<Option<Result<pb::LogLine, Status>>> = Vec::new();
    for stream in &mut streams {
        heads.push(stream.recv().await);
    }
    let at = |head: &Option<Result<pb::LogLine, Status>>| match head {
        Some(Ok(line)) => Some(line.at_ns),
        Some(Err(_)) => Some(0),
        None => None,
    };
    while let Some((index, _)) = heads
        .iter()
        .enumerate()
        .filter_map(|(index, head)| Some((index, at(head)?)))
        .min_by_key(|(_, at)| *at)
    {
        let next = streams[index].recv().await;
        let Some(line) = std::mem::replace(&mut heads[index], next) else { continue };
        if sink.send(line).await.is_err() {
            return;
        }
    }
}

/// One task's lines. A node that cannot be asked is a note in the stream, not the end of it.
async fn read(
    source: Source,
    ask: pb::TaskLogsRequest,
    dialer: Arc<Dialer>,
    sink: mpsc::Sender<Result<pb::LogLine, Status>>,
) {
    let task = &source.task;
    let line = pb::LogLine {
        task_id: task.id.to_string(),
        task_name: task.name(),
        node_name: source.node_name.clone(),
        ..Default::default()
    };
    let read = async {
        let channel = dialer.channel(&source.node, &source.addr, Line::Calls);
        let channel = channel.map_err(|error| Status::unavailable(format!("{error:#}")))?;
        let mut client = pb::agent_client::AgentClient::new(channel);
        let mut lines = client.task_logs(ask).await?.into_inner();
        while let Some(got) = lines.message().await? {
            let line = pb::LogLine { at_ns: got.at_ns, stderr: got.stderr, line: got.line, ..line.clone() };
            if sink.send(Ok(line)).await.is_err() {
                break;
            }
        }
        Ok::<(), Status>(())
    };
    if let Err(status) = read.await {
        let note = format!("no log of {} from node {}: {}", task.name(), source.node_name, status.message());
        let _ = sink.send(Ok(pb::LogLine { note, ..line })).await;
    }
}
