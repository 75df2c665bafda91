//! What managers may ask of this node: the logs of its tasks.

use super::work;
use crate::executor::{Executor, LogQuery, LogStream};
use crate::rfc3339::{nanos, stamp};
use rswarm_control::ids::TaskId;
use rswarm_proto::v1 as pb;
use std::pin::Pin;
use std::sync::Arc;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

/// The service `Agent`.
pub struct Doors {
    executor: Arc<Executor>,
}

impl Doors {
    /// Opens on the containers of this executor.
    pub fn new(executor: Arc<Executor>) -> Self {
        Self { executor }
    }
}

#[tonic::async_trait]
impl pb::agent_server::Agent for Doors {
    type TaskLogsStream = Pin<Box<dyn tokio_stream::Stream<Item = Result<pb::TaskLogLine, Status>> + Send>>;

    async fn task_logs(
        &self,
        request: Request<pb::TaskLogsRequest>,
    ) -> Result<Response<Self::TaskLogsStream>, Status> {
        let request = request.into_inner();
        let task: TaskId = request
            .task_id
            .parse()
            .map_err(|error| Status::invalid_argument(format!("task `{}`: {error}", request.task_id)))?;
        let query = LogQuery {
            follow: request.follow,
            tail: usize::try_from(request.tail).ok(),
            since: (request.since_ms > 0).then(|| stamp(request.since_ms)),
            ..LogQuery::default()
        };
        let mut logs = self
            .executor
            .logs(&work::container_id(task), query)
            .map_err(|error| Status::not_found(error.to_string()))?;
        let (sender, receiver) = mpsc::channel(256);
        tokio::spawn(async move {
            loop {
                let entry = tokio::select! {
                    () = sender.closed() => return,
                    entry = logs.next() => entry,
                };
                let Some(entry) = entry else { return };
                let line = pb::TaskLogLine {
                    at_ns: nanos(&entry.timestamp).unwrap_or(0),
                    stderr: entry.stream == LogStream::Stderr,
                    line: entry.text.into(),
                };
                if sender.send(Ok(line)).await.is_err() {
                    return;
                }
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }
}
