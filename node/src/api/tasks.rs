//! What people do with running tasks: the leader finds the task, and passes every word on to its node.

use super::control::{Control, refused};
use crate::rpc::dial::Line;
use futures_util::{StreamExt, stream};
use rswarm_control::admission::find_task;
use rswarm_control::model::{Observed, Task};
use rswarm_proto::v1 as pb;
use rswarm_proto::v1::agent_client::AgentClient;
use rswarm_proto::v1::enter_input::What as Input;
use rswarm_proto::v1::enter_open::Door;
use std::pin::Pin;
use std::sync::Arc;
use tonic::transport::Channel;
use tonic::{Request, Response, Status, Streaming};

/// A task, and the way to its node.
struct Found {
    task: Arc<Task>,
    node_name: String,
    agent: AgentClient<Channel>,
}

impl Control {
    /// The task that `text` means: one that runs or, where its remains will do, one that has ended.
    async fn task_on_node(&self, text: &str, remains: bool) -> Result<Found, Status> {
        let state = self.fresh().await?;
        let task = find_task(&state, text).map_err(refused)?;
        let node = task.node.and_then(|node| state.node(node));
        let runs = matches!(task.observed, Observed::Starting | Observed::Running);
        let Some(node) = node.filter(|_| runs || remains && task.observed.is_terminal()) else {
            return Err(Status::failed_precondition(format!(
                "task {} does not run: it is {}\nhelp: `rswarm service ps {}` shows which tasks do",
                task.name(),
                task.observed,
                task.service_name,
            )));
        };
        // Not the line of calls: what is copied through a door would stand before them.
        let channel = self.dialer()?.channel(&node.id.to_string(), &node.addr, Line::Bulk);
        let channel = channel.map_err(|error| Status::unavailable(format!("{error:#}")))?;
        Ok(Found { task, node_name: node.hostname.clone(), agent: AgentClient::new(channel) })
    }
}

impl Found {
    /// What the node said, with its name where it said nothing of itself.
    fn explain(&self, status: Status) -> Status {
        if status.code() != tonic::Code::Unavailable {
            return status;
        }
        Status::unavailable(format!("node {} cannot be reached: {}", self.node_name, status.message()))
    }
}

#[tonic::async_trait]
impl pb::tasks_server::Tasks for Control {
    type EnterStream = Pin<Box<dyn tokio_stream::Stream<Item = Result<pb::EnterOutput, Status>> + Send>>;

    async fn enter(
        &self,
        request: Request<Streaming<pb::EnterInput>>,
    ) -> Result<Response<Self::EnterStream>, Status> {
        let mut input = request.into_inner();
        let Some(pb::EnterInput { what: Some(Input::Open(open)) }) = input.message().await? else {
            return Err(Status::invalid_argument("the first message opens a door"));
        };
        // Out of what a task has left behind files can still be copied.
        let remains = matches!(&open.door, Some(Door::Copy(door)) if !door.into);
        let mut found = self.task_on_node(&open.task, remains).await?;
        let open = pb::EnterOpen { task: found.task.id.to_string(), ..open };
        let first = pb::EnterInput { what: Some(Input::Open(open)) };
        let rest = tokio_stream::StreamExt::map_while(input, Result::ok);
        let output = found.agent.enter(stream::iter([first]).chain(rest)).await;
        let output = output.map_err(|status| found.explain(status))?;
        Ok(Response::new(Box::pin(output.into_inner())))
    }

    async fn ask(&self, request: Request<pb::TaskAsk>) -> Result<Response<pb::TaskAnswer>, Status> {
        let ask = request.into_inner();
        let mut found = self.task_on_node(&ask.task, false).await?;
        let ask = pb::TaskAsk { task: found.task.id.to_string(), ..ask };
        let answer = found.agent.ask(ask).await.map_err(|status| found.explain(status))?.into_inner();
        let (task_name, node_name) = (found.task.name(), found.node_name);
        Ok(Response::new(pb::TaskAnswer { task_name, node_name, ..answer }))
    }
}
