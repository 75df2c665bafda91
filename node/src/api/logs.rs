//! Log lines of a task or of a whole service, from the nodes that have them, merged by time.

use crate::rpc::dial::{Dialer, Line};
use rswarm_control::model::Task;
use rswarm_control::state::State;
use rswarm_proto::v1 as pb;
use std::sync::Arc;
use tokio::sync::mpsc;
use tonic::Status;

/// How many lines of one task wait for their turn.
const AHEAD: usize = 256;

/// Where a task's log is.
struct Source {
    task: Arc<Task>,
    node: String,
    addr: String,
    node_name: String,
}

/// Sends what is asked for into `sink`, until it is all said or nobody listens any more.
pub async fn collect(
    state: &State,
    tasks: Vec<Arc<Task>>,
    request: &pb::LogsRequest,
    dialer: Arc<Dialer>,
    sink: mpsc::Sender<Result<pb::LogLine, Status>>,
) {
    let sources: Vec<Source> = tasks
        .into_iter()
        .filter_map(|task| {
            let node = state.node(task.node?)?;
            Some(Source {
                task,
                node: node.id.to_string(),
                addr: node.addr.clone(),
                node_name: node.hostname.clone(),
            })
        })
        .collect();
    let ask = |task: &Task| pb::TaskLogsRequest {
        task_id: task.id.to_string(),
        follow: request.follow,
        tail: request.tail,
        since_ms: request.since_ms,
    };
    if request.follow {
        for source in sources {
            let ask = ask(&source.task);
            tokio::spawn(read(source, ask, dialer.clone(), sink.clone()));
        }
        return;
    }
    let mut streams = Vec::new();
    for source in sources {
        let (sender, receiver) = mpsc::channel(AHEAD);
        let ask = ask(&source.task);
        tokio::spawn(read(source, ask, dialer.clone(), sender));
        streams.push(receiver);
    }
    merge(streams, sink).await;
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
