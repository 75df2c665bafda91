//! What has happened, told by any manager from what it has applied itself: also by one that has lost the others.

use super::control::Control;
use crate::manager::cluster::View;
use rswarm_control::events::Event;
use rswarm_proto::v1 as pb;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

/// Events told at once.
const BATCH_MAX: usize = 500;

#[tonic::async_trait]
impl pb::event_log_server::EventLog for Control {
    type EventsStream = Pin<Box<dyn tokio_stream::Stream<Item = Result<pb::EventBatch, Status>> + Send>>;

    async fn events(
        &self,
        request: Request<pb::EventsRequest>,
    ) -> Result<Response<Self::EventsStream>, Status> {
        let manager = self.manager().map_err(|_| {
            Status::failed_precondition(
                "this node is a worker and keeps no events\nhelp: ask on a manager; `rswarm status` names them",
            )
        })?;
        let view = manager.cluster().view().clone();
        let (sender, receiver) = mpsc::channel(16);
        tokio::spawn(tell(view, request.into_inner(), sender));
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }
}

/// Sends what is asked for into `sink` until the end, or until nobody listens.
async fn tell(view: View, asked: pb::EventsRequest, sink: mpsc::Sender<Result<pb::EventBatch, Status>>) {
    let mut watch = view.watch();
    let mut told = None;
    loop {
        watch.mark_unchanged();
        let state = view.state();
        let news: Vec<Arc<Event>> = {
            let after = told.unwrap_or_default();
            // From the end, since what was told already is the most.
            let new = state.events().rev().take_while(|event| told.is_none() || event.index > after);
            let mut news: Vec<_> = new.filter(|event| in_time(event, &asked)).cloned().collect();
            news.reverse();
            news
        };
        let forgotten = match told {
            // Somebody who reads too slowly, or begins late, learns what he cannot have.
            None if asked.since_ms == 0 => state.forgotten(),
            Some(told) if state.forgotten() > told => state.forgotten(),
            _ => 0,
        };
        told = Some(state.index());
        let mut batches: Vec<pb::EventBatch> = news
            .chunks(BATCH_MAX)
            .map(|events| pb::EventBatch {
                events: events.iter().map(|event| (&**event).into()).collect(),
                forgotten: 0,
            })
            .collect();
        if forgotten != 0 {
            batches.insert(0, pb::EventBatch { events: Vec::new(), forgotten });
        }
        for batch in batches {
            if sink.send(Ok(batch)).await.is_err() {
                return;
            }
        }
        let left = match asked.until_ms {
            0 => Duration::MAX,
            until => Duration::from_millis(until.saturating_sub(crate::manager::clock::now().0)),
        };
        if !asked.follow || left.is_zero() {
            return;
        }
        tokio::select! {
            () = sink.closed() => return,
            changed = watch.changed() => if changed.is_err() { return },
            () = tokio::time::sleep(left) => {}
        }
    }
}

fn in_time(event: &Event, asked: &pb::EventsRequest) -> bool {
    event.at.0 >= asked.since_ms && (asked.until_ms == 0 || event.at.0 < asked.until_ms)
}
