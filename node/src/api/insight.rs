//! Why things are as they are: answered by the leader, which alone knows whom it hears.

use super::control::{Control, refused};
use crate::manager::clock;
use rswarm_control::admission::find_any;
use rswarm_control::explain::{About, explain};
use rswarm_control::liveness::Heard;
use rswarm_control::state::State;
use rswarm_control::time::Timestamp;
use rswarm_proto::v1 as pb;
use std::sync::Arc;
use tonic::{Request, Response, Status};

/// What the leader goes by at a moment.
pub(super) struct Moment {
    pub(super) state: Arc<State>,
    pub(super) heard: Heard,
    pub(super) now: Timestamp,
}

impl Control {
    pub(super) async fn moment(&self) -> Result<Moment, Status> {
        let state = self.fresh().await?;
        let office = self.manager()?.office();
        let office = office.ok_or_else(|| Status::unavailable("this manager no longer leads; try again"))?;
        let now = clock::after(state.clock());
        Ok(Moment { state, heard: office.ears.heard(), now })
    }
}

#[tonic::async_trait]
impl pb::insight_server::Insight for Control {
    async fn why(&self, request: Request<pb::WhyRequest>) -> Result<Response<pb::Explanation>, Status> {
        let pb::WhyRequest { of, r#type } = request.into_inner();
        let Moment { state, heard, now } = self.moment().await?;
        let about = find_any(&state, &of, &r#type).map_err(refused)?;
        // A turn of the crank on a large cluster takes milliseconds; nobody else shall wait for it.
        let told = tokio::task::spawn_blocking(move || explain(&state, &heard, now, about)).await;
        let told = told.map_err(|error| Status::internal(format!("cannot explain: {error}")))?;
        let told = told.ok_or_else(|| Status::not_found(format!("`{of}` has just gone")))?;
        let kind = match about {
            About::Task(_) => "task",
            About::Service(_) => "service",
            About::Node(_) => "node",
        };
        Ok(Response::new(pb::Explanation { r#type: kind.into(), ..told.into() }))
    }

    async fn rehearse(
        &self,
        request: Request<pb::PlannedRequest>,
    ) -> Result<Response<pb::Rehearsal>, Status> {
        self.plan(request.into_inner()).await.map(Response::new)
    }

    async fn apply_plan(
        &self,
        request: Request<pb::ApplyPlanRequest>,
    ) -> Result<Response<pb::ApplyPlanResponse>, Status> {
        self.carry_out(&request.into_inner().plan).await.map(Response::new)
    }

    async fn doctor(&self, _: Request<pb::DoctorRequest>) -> Result<Response<pb::DoctorReport>, Status> {
        self.examine().await.map(Response::new)
    }
}
