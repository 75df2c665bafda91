//! Carries the log's frames between managers over gRPC: votes and appended entries on one connection, snapshots
//! on another.

use super::Manager;
use crate::rpc::dial::{Dialer, Line, root_cause};
use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::{Stream, StreamExt};
use rswarm_proto::v1 as pb;
use rswarm_proto::v1::raft_client::RaftClient;
use rswarm_raft::{Answers, FRAME_BYTES_MAX, Frames, Log, Member, Transport, Unreachable};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tonic::transport::Channel;
use tonic::{Request, Response, Status, Streaming};

/// The way out.
pub struct Grpc {
    dialer: Arc<Dialer>,
}

impl Grpc {
    /// Over the connections of this dialer.
    pub fn new(dialer: Arc<Dialer>) -> Self {
        Self { dialer }
    }

    fn client(&self, to: &Member, line: Line) -> Result<RaftClient<Channel>, Unreachable> {
        let channel = self.dialer.channel(&to.node, &to.addr, line).map_err(Unreachable::new)?;
        // A frame and what protobuf puts around it.
        let most = FRAME_BYTES_MAX + 1024;
        Ok(RaftClient::new(channel).max_decoding_message_size(most).max_encoding_message_size(most))
    }
}

/// Frames on their way out, wrapped as messages.
struct Sent(Frames);

impl Stream for Sent {
    type Item = pb::Frame;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<pb::Frame>> {
        self.0.as_mut().poll_next(cx).map(|frame| frame.map(|data| pb::Frame { data }))
    }
}

fn answered(frame: Result<pb::Frame, Status>) -> Result<Bytes, Unreachable> {
    frame.map(|frame| frame.data).map_err(unreachable)
}

fn unreachable(status: Status) -> Unreachable {
    Unreachable::new(root_cause(&status))
}

impl Transport for Grpc {
    fn call<'a>(
        &'a self,
        to: &'a Member,
        frame: Bytes,
        deadline: Duration,
    ) -> BoxFuture<'a, Result<Bytes, Unreachable>> {
        Box::pin(async move {
            let mut request = Request::new(pb::Frame { data: frame });
            request.set_timeout(deadline);
            let answer = self.client(to, Line::Raft)?.call(request).await.map_err(unreachable)?;
            Ok(answer.into_inner().data)
        })
    }

    fn append<'a>(&'a self, to: &'a Member, frames: Frames) -> BoxFuture<'a, Result<Answers, Unreachable>> {
        Box::pin(async move {
            let mut client = self.client(to, Line::Raft)?;
            let answers = client.append(Sent(frames)).await.map_err(unreachable)?;
            Ok(Box::pin(answers.into_inner().map(answered)) as Answers)
        })
    }

    fn snapshot<'a>(&'a self, to: &'a Member, frames: Frames) -> BoxFuture<'a, Result<Bytes, Unreachable>> {
        Box::pin(async move {
            let mut client = self.client(to, Line::Bulk)?;
            let answer = client.snapshot(Sent(frames)).await.map_err(unreachable)?;
            Ok(answer.into_inner().data)
        })
    }
}

/// The way in: the service `Raft`.
pub struct Receiver {
    log: Box<dyn Fn() -> Option<Arc<Log>> + Send + Sync>,
}

impl Receiver {
    /// `manager` says which manager runs here now, if any.
    pub fn new(manager: Arc<dyn Fn() -> Option<Arc<Manager>> + Send + Sync>) -> Self {
        Self { log: Box::new(move || manager().map(|manager| manager.cluster().log().clone())) }
    }

    /// For a log without a manager around it.
    pub fn of(log: Arc<Log>) -> Self {
        Self { log: Box::new(move || Some(log.clone())) }
    }

    fn log(&self) -> Result<Arc<Log>, Status> {
        (self.log)().ok_or_else(|| Status::unavailable("this node is not a manager"))
    }
}

/// Frames as they arrive. A broken connection ends them like a closed one.
fn arriving(stream: Streaming<pb::Frame>) -> Frames {
    Box::pin(stream.scan((), |(), frame| std::future::ready(frame.ok().map(|frame| frame.data))))
}

#[tonic::async_trait]
impl pb::raft_server::Raft for Receiver {
    async fn call(&self, request: Request<pb::Frame>) -> Result<Response<pb::Frame>, Status> {
        let data = self.log()?.handle_call(request.into_inner().data).await;
        Ok(Response::new(pb::Frame { data }))
    }

    type AppendStream = Pin<Box<dyn tokio_stream::Stream<Item = Result<pb::Frame, Status>> + Send>>;

    async fn append(
        &self,
        request: Request<Streaming<pb::Frame>>,
    ) -> Result<Response<Self::AppendStream>, Status> {
        let answers = self.log()?.handle_append(arriving(request.into_inner()));
        Ok(Response::new(Box::pin(answers.map(|data| Ok(pb::Frame { data })))))
    }

    async fn snapshot(&self, request: Request<Streaming<pb::Frame>>) -> Result<Response<pb::Frame>, Status> {
        let data = self.log()?.handle_snapshot(arriving(request.into_inner())).await;
        Ok(Response::new(pb::Frame { data }))
    }
}
