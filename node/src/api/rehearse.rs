//! Requests that are rehearsed, and plans that are carried out if they still hold.

use super::control::{self, Control, refused};
use super::insight::Moment;
use prost::Message;
use rswarm_control::admission::{Answer, Request as Ask, find_service};
use rswarm_control::rehearsal::{Outcome, rehearse};
use rswarm_proto::v1 as pb;
use rswarm_proto::v1::planned_request::What;
use tonic::Status;

/// The format in which plans are written.
const FORMAT: u32 = 1;

impl Control {
    pub(super) async fn plan(&self, request: pb::PlannedRequest) -> Result<pb::Rehearsal, Status> {
        let mut request = request;
        let warnings = self.resolve(&mut request).await?;
        let moment = self.moment().await?;
        let (index, at_ms) = (moment.state.index(), moment.now.0);
        let cluster = moment.state.cluster().map(|cluster| cluster.id.to_string()).unwrap_or_default();
        let ask = self.ask(request.clone())?;
        let (outcome, _) = play(moment, ask).await?;
        let told = pb::Rehearsal::from(&outcome);
        let plan = pb::Plan {
            format: FORMAT,
            cluster,
            index,
            at_ms,
            request: Some(request),
            outcome: Some(told.clone()),
        };
        Ok(pb::Rehearsal { warnings, index, plan: plan.encode_to_vec().into(), ..told })
    }

    pub(super) async fn carry_out(&self, plan: &[u8]) -> Result<pb::ApplyPlanResponse, Status> {
        let plan = pb::Plan::decode(plan).map_err(|_| Status::invalid_argument("this is no plan"))?;
        if plan.format != FORMAT {
            let why = format!("the plan has format {}, and this version reads {FORMAT}", plan.format);
            return Err(Status::invalid_argument(why));
        }
        let moment = self.moment().await?;
        let cluster = moment.state.cluster().map(|cluster| cluster.id.to_string()).unwrap_or_default();
        if plan.cluster != cluster {
            let why = format!("the plan was made for cluster {}, and this is {cluster}", plan.cluster);
            return Err(Status::failed_precondition(why));
        }
        let missing = || Status::invalid_argument("the plan says nothing");
        let planned = Outcome::try_from(plan.outcome.ok_or_else(missing)?)
            .map_err(|error| Status::invalid_argument(format!("outcome.{error}")))?;
        let ask = self.ask(plan.request.ok_or_else(missing)?)?;
        let (outcome, _) = play(moment, ask.clone()).await?;
        if let Some(moved) = planned.moved(&outcome) {
            return Err(Status::failed_precondition(format!(
                "the plan no longer holds: {moved}\nhelp: look at what it comes to now with --dry-run, and make it anew"
            )));
        }
        let (answer, state) = self.admit(None, ask).await?;
        let mut told = pb::ApplyPlanResponse::default();
        match answer {
            Answer::Service(id) => {
                if let Some(service) = state.service(id) {
                    told.name.clone_from(&service.spec.name);
                    told.service = Some(pb::UpdateServiceResponse {
                        id: id.to_string(),
                        changed: true,
                        warnings: Vec::new(),
                        version: service.meta.version,
                        revision: service.revision,
                    });
                }
            }
            Answer::Node(id) => {
                told.name = state.node(id).map(|node| node.hostname.clone()).unwrap_or_default()
            }
            Answer::Done => "cluster".clone_into(&mut told.name),
            Answer::Network(_) | Answer::Session { .. } => {}
        }
        Ok(told)
    }

    /// Says exactly what is meant, so that a plan means tomorrow what was looked at today: images by their digests,
    /// objects by their ids.
    async fn resolve(&self, request: &mut pb::PlannedRequest) -> Result<Vec<String>, Status> {
        let state = self.fresh().await?;
        match &mut request.what {
            Some(What::CreateService(create)) => {
                let mut spec = control::spec(create.spec.take())?;
                let warnings = self.pin(&mut spec, None).await;
                create.spec = Some((&spec).into());
                Ok(warnings)
            }
            Some(What::UpdateService(update)) => {
                let before = find_service(&state, &update.service).map_err(refused)?;
                let mut spec = control::spec(update.spec.take())?;
                let warnings = self.pin(&mut spec, Some(&before.spec)).await;
                update.spec = Some((&spec).into());
                update.service = before.id.to_string();
                // Whether something else has changed is seen by what it comes to.
                update.version = 0;
                Ok(warnings)
            }
            Some(What::RollbackService(rollback)) => {
                let before = find_service(&state, &rollback.service).map_err(refused)?;
                rollback.service = before.id.to_string();
                if rollback.to == 0 {
                    rollback.to = before.previous.last().map_or(0, |former| former.number);
                }
                Ok(Vec::new())
            }
            // Nothing of it means something else tomorrow.
            Some(What::Rebalance(_)) => Ok(Vec::new()),
            Some(What::UpdateNode(update)) => {
                update.version = 0;
                Ok(Vec::new())
            }
            None => Err(Status::invalid_argument("what: is missing; is the sender of a newer version?")),
        }
    }

    fn ask(&self, request: pb::PlannedRequest) -> Result<Ask, Status> {
        let by = |author: String, ask: Ask| Ask::By { author, request: Box::new(ask) };
        match request.what {
            Some(What::CreateService(create)) => {
                let spec = control::spec(create.spec)?;
                Ok(by(create.author, Ask::CreateService { spec, networks: create.networks }))
            }
            Some(What::UpdateService(update)) => {
                let (service, networks) = (update.service, update.networks);
                let spec = control::spec(update.spec)?;
                Ok(by(update.author, Ask::UpdateService { service, version: None, spec, networks }))
            }
            Some(What::RollbackService(pb::RollbackServiceRequest { service, to, author })) => {
                Ok(by(author, Ask::RollbackService { service, to: Some(to).filter(|to| *to != 0) }))
            }
            Some(What::UpdateNode(update)) => Ok(Ask::UpdateNode(control::node_update(update)?)),
            Some(What::Rebalance(pb::RebalanceRequest { services, author })) => {
                Ok(by(author, Ask::Rebalance { services }))
            }
            None => Err(Status::invalid_argument("what: is missing; is the sender of a newer version?")),
        }
    }
}

/// A rehearsal may take as long as a large update has steps; nobody else shall wait for it.
async fn play(moment: Moment, ask: Ask) -> Result<(Outcome, Answer), Status> {
    let played = tokio::task::spawn_blocking(move || rehearse(&moment.state, &ask, moment.now)).await;
    played.map_err(|error| Status::internal(format!("cannot rehearse: {error}")))?.map_err(refused)
}
