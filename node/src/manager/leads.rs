//! That this manager leads, as a quorum has confirmed: what nodes run under a lease depends on it. A leader that has
//! been deposed and does not know it yet confirms nothing.

use super::cluster::Cluster;
use rswarm_control::state::State;
use rswarm_raft::Role;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio_util::sync::CancellationToken;

/// How often a quorum is asked, while anything depends on it.
const PERIOD: Duration = Duration::from_millis(500);

/// When a quorum last confirmed that this manager leads.
#[derive(Clone, Default)]
pub struct Leads(Arc<Mutex<Option<Instant>>>);

impl Leads {
    /// A moment at which it led for certain.
    pub fn confirmed(&self) -> Option<Instant> {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks again and again, until the term of office ends.
    pub async fn ask(self, cluster: Cluster, term: u64, stop: CancellationToken) {
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(PERIOD) => {}
            }
            if !matters(&cluster.state()) {
                continue;
            }
            let asked = Instant::now();
            let answered = tokio::select! {
                () = stop.cancelled() => return,
                answered = cluster.log().read_index() => answered.is_ok(),
            };
            let status = cluster.log().status();
            if answered && status.role == Role::Leader && status.term == term {
                *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(asked);
            }
        }
    }
}

/// Whether a node may run anything under a lease.
fn matters(state: &State) -> bool {
    state.services().any(|service| {
        let former = service.previous.iter().map(|revision| &revision.spec);
        former.chain([&service.spec]).any(|spec| spec.task.is_fenced())
    })
}
