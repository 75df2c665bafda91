//! Why a service is as it is: how far its update is, and what its slots wait for.

use super::{Asked, Explanation, Past, Wait, cut, words};
use crate::convergence;
use crate::model::{Service, UpdateState, UpdateStatus};
use crate::orchestrator::slots;
use crate::plan::{Whom, Why};
use std::sync::Arc;

impl Asked<'_> {
    pub(super) fn service(&self, service: &Arc<Service>) -> Explanation {
        let (name, id) = (service.spec.name.clone(), service.id.to_string());
        let mut told = Explanation { id, name, ..Explanation::default() };
        if let Some(progress) = convergence::progress(self.state, service.id) {
            let (running, replicas, current) = (progress.running, progress.replicas, progress.current);
            told.summary = match () {
                () if progress.is_settled() => format!("runs as asked for, {running}/{replicas}"),
                () if current < running => {
                    format!("runs {running}/{replicas}, of which {current} are as asked for now")
                }
                () => format!("runs {running}/{replicas}"),
            };
            if let Some(trouble) = progress.trouble {
                told.facts.push(("Trouble", format!("{}: {}", trouble.name, trouble.words)));
            }
        }
        let author = if service.author.is_empty() { "somebody" } else { &service.author };
        told.facts.push(("Revision", format!("{} by {author}", service.revision)));
        if let Some(status) = &service.update_status {
            told.facts.push(("Update", update(status)));
        }
        told.waits = cut(self.waits_of_service(service));
        told.past = self.past_of_service(service);
        told
    }

    fn waits_of_service(&self, service: &Arc<Service>) -> Vec<Wait> {
        let mut waits = Vec::new();
        let status = service.update_status.as_ref();
        if let Some(status) = status.filter(|status| status.state.is_paused()) {
            let what = "`rswarm service resume`, `rswarm service rollback` or another update".to_owned();
            let since = self.past_of_service(service).last().map_or(status.started_at, |past| past.at);
            waits.push(Wait { who: "the update".into(), what, since: Some(since), next: None });
        }
        for hold in self.holds(Whom::Service(service.id)) {
            let who = if hold.why == Why::Deadline { "the update (limit)" } else { "the update" };
            let since = status.map(|status| status.since);
            waits.push(Wait { who: who.into(), what: words(hold.why).into(), since, next: hold.until });
        }
        for (slot, tasks) in slots(self.state, service.id) {
            let found = match tasks.iter().rfind(|task| task.is_live() && task.is_wanted()).or(tasks.last()) {
                Some(task) => self.waits_of(task),
                None => Vec::new(),
            };
            if found.is_empty() {
                let who = format!("{}.{slot}", service.spec.name);
                let holds = self.holds(Whom::Slot(service.id, slot));
                let since = status.map(|status| status.since);
                waits.extend(holds.map(|hold| Wait {
                    who: who.clone(),
                    what: words(hold.why).into(),
                    since,
                    next: hold.until,
                }));
            }
            waits.extend(found);
            // What its former tasks still need.
            for task in tasks.iter().filter(|task| task.is_live() && !task.is_wanted()) {
                waits.extend(self.waits_of(task));
            }
        }
        waits
    }

    fn past_of_service(&self, service: &Arc<Service>) -> Vec<Past> {
        let revision = |number: u64, at, by: &str| Past {
            at,
            index: 0,
            whom: service.spec.name.clone(),
            what: format!("revision {number}"),
            by: if by.is_empty() { "somebody".into() } else { by.into() },
            why: String::new(),
        };
        let former =
            service.previous.iter().map(|former| revision(former.number, former.since, &former.author));
        let mut past: Vec<Past> = former.collect();
        past.push(revision(service.revision, service.spec_since, &service.author));
        if let Some(status) = &service.update_status {
            let latest = Past {
                at: status.completed_at.unwrap_or(service.meta.updated_at),
                index: service.meta.version,
                whom: service.spec.name.clone(),
                what: state_name(status.state).into(),
                by: "managers".into(),
                why: status.message.clone(),
            };
            past.push(latest);
        }
        past
    }
}

fn update(status: &UpdateStatus) -> String {
    format!("{}: {}", state_name(status.state), status.message)
}

fn state_name(state: UpdateState) -> &'static str {
    match state {
        UpdateState::Updating => "updating",
        UpdateState::Paused => "paused",
        UpdateState::Completed => "completed",
        UpdateState::RollbackStarted => "rolling back",
        UpdateState::RollbackPaused => "rollback paused",
        UpdateState::RollbackCompleted => "rolled back",
    }
}
