//! What the leader does: look at the state, think (`control::tick`), propose, and sleep until something changes.
//! It holds nothing that a successor would miss.

use super::clock;
use super::cluster::{Cluster, WriteError};
use crate::member::believed;
use rswarm_control::ids::{NodeId, RaftId};
use rswarm_control::liveness::{Heard, SUSPECT_AFTER};
use rswarm_control::state::State;
use rswarm_control::time::Timestamp;
use rswarm_control::{Crank, membership};
use rswarm_raft::{AsWhat, Member, RaftId as Seat};
use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

/// After a failed attempt to write.
const BACKOFF: Duration = Duration::from_millis(100);
/// How long the leader sleeps at the most, so that a clock that jumped does no lasting harm.
const SLEEP_MAX: Duration = Duration::from_secs(5);
/// Who has thought for long and found nothing to do lets so many times that pass before thinking again, unless it is
/// about more than how tasks fare: there is much of that in large clusters, and others have work to do too.
const REST: u32 = 2;
/// The longest rest.
const REST_MAX: Duration = Duration::from_millis(250);
/// What takes no longer than this is no reason to rest.
const QUICK: Duration = Duration::from_millis(5);
/// How long a node that looks for a leader takes at the most until it asks this one again: a manager that does not
/// answer, and the pause after it.
const RETURN: Duration = Duration::from_secs(3);
/// How long a new manager may take to catch up before another attempt.
const CATCH_UP: Duration = Duration::from_secs(30);

/// What the leader has heard, in its memory only.
pub struct Ears {
    heard: Mutex<Heard>,
    wake: Notify,
    /// Nodes have been sent away, for want of a quorum.
    sent_away: AtomicBool,
}

impl Ears {
    /// Ears of a manager that took office `now`.
    pub fn new(now: Timestamp) -> Self {
        Self { heard: Mutex::new(Heard::new(now)), wake: Notify::new(), sent_away: AtomicBool::new(false) }
    }

    /// A node was heard from.
    pub fn hear(&self, node: NodeId, now: Timestamp) {
        self.heard.lock().unwrap_or_else(PoisonError::into_inner).beat(node, now);
    }

    /// This manager was not listening until `now`, so silence before it means nothing.
    fn resumed(&self, now: Timestamp) {
        self.heard.lock().unwrap_or_else(PoisonError::into_inner).resumed(now);
    }

    /// A node was told to look for another leader, because this one reaches no quorum. If it does again, the node has
    /// time to come back.
    pub fn sent_away(&self) {
        self.sent_away.store(true, Ordering::Relaxed);
    }

    /// Makes the leader look again now.
    pub fn wake(&self) {
        self.wake.notify_one();
    }

    /// What was heard so far.
    pub fn heard(&self) -> Heard {
        self.heard.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Runs the control plane until `stop`, which is cancelled when this manager no longer leads.
pub async fn lead(cluster: Cluster, ears: Arc<Ears>, stop: CancellationToken) {
    let mut watch = cluster.view().watch();
    let mut due = clock::after(cluster.state().clock());
    let mut crank = Crank::default();
    loop {
        let numbers = tokio::select! {
            () = stop.cancelled() => return,
            numbers = cluster.numbers() => numbers,
        };
        watch.mark_unchanged();
        let state = cluster.state();
        let now = clock::after(state.clock());
        if now.since(due) > SUSPECT_AFTER {
            // Suspended, starved, or stuck in a write: nobody was listening.
            tracing::warn!(late_ms = now.since(due).as_millis() as u64, "the leader was not listening");
            ears.resumed(now);
        }
        due = now;
        if believed(&cluster.log().status()).is_some() && ears.sent_away.swap(false, Ordering::Relaxed) {
            tracing::info!("a quorum answers again; nodes that went to look for another leader come back");
            ears.resumed(now.after(RETURN));
        }
        // It may take a while, and others have calls to answer.
        let (heard, mut turned) = (ears.heard(), crank);
        let (began, looked_at) = (Instant::now(), state.clone());
        let turn = move || {
            let plan = turned.turn(&looked_at, &heard, now);
            (plan, turned)
        };
        let plan;
        (plan, crank) = match tokio::task::spawn_blocking(turn).await {
            Ok(turned) => turned,
            Err(error) => match error.try_into_panic() {
                Ok(panic) => std::panic::resume_unwind(panic),
                Err(_) => return,
            },
        };
        let (thought, changes) = (began.elapsed(), plan.changes.len());
        if !plan.changes.is_empty() {
            let committed = tokio::select! {
                () = stop.cancelled() => return,
                committed = cluster.commit(plan.changes, now) => committed,
            };
            let (thought_ms, took_ms) = (thought.as_millis() as u64, began.elapsed().as_millis() as u64);
            tracing::debug!(changes, thought_ms, took_ms, "a turn");
            match committed {
                Ok(_) => continue,
                Err(WriteError::Propose(error)) => tracing::debug!(%error, "cannot propose"),
                Err(error) => tracing::warn!(%error, "cannot propose"),
            }
            drop(numbers);
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(BACKOFF) => continue,
            }
        }
        drop(numbers);
        if thought > QUICK {
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep((thought * REST).min(REST_MAX)) => {}
                () = differs(&cluster, &state) => {}
            }
        }
        let now = clock::after(state.clock());
        let nap = plan.wake_at.map_or(SLEEP_MAX, |at| until(at, now).min(SLEEP_MAX));
        due = now.after(nap);
        tokio::select! {
            () = stop.cancelled() => return,
            changed = watch.changed() => if changed.is_err() { return },
            () = ears.wake.notified() => {}
            () = tokio::time::sleep(nap) => {}
        }
    }
}

/// Waits until something is asked for, or a node fares otherwise.
async fn differs(cluster: &Cluster, known: &State) {
    let mut watch = cluster.view().watch();
    while !cluster.state().differs_beside_tasks(known) && watch.changed().await.is_ok() {}
}

fn until(at: Timestamp, now: Timestamp) -> Duration {
    Duration::from_millis(at.0.saturating_sub(now.0))
}

/// Makes the Raft group follow the managers' roles, one change at a time, until `stop`.
pub async fn keep_membership(cluster: Cluster, stop: CancellationToken) {
    let mut watch = cluster.view().watch();
    loop {
        watch.mark_unchanged();
        let state = cluster.state();
        let step = next_step(&cluster, &state);
        let idle = step.is_none();
        let failed = match step {
            None => false,
            Some(Step::Add(member)) => {
                tracing::info!(node = %member.node, addr = %member.addr, "adding a manager");
                tokio::select! {
                    () = stop.cancelled() => return,
                    added = cluster.log().add(member, AsWhat::Voter, CATCH_UP) => match added {
                        Ok(()) => false,
                        Err(error) => {
                            tracing::warn!(%error, "cannot add the manager yet");
                            true
                        }
                    }
                }
            }
            Some(Step::Remove(seat)) => {
                tracing::info!(%seat, "removing a manager");
                tokio::select! {
                    () = stop.cancelled() => return,
                    removed = cluster.log().remove(seat) => match removed {
                        Ok(()) => false,
                        Err(error) => {
                            tracing::warn!(%error, "cannot remove the manager yet");
                            true
                        }
                    }
                }
            }
        };
        if idle || failed {
            tokio::select! {
                () = stop.cancelled() => return,
                changed = watch.changed(), if !failed => if changed.is_err() { return },
                () = tokio::time::sleep(Duration::from_millis(500)), if failed => {}
            }
        }
    }
}

enum Step {
    Add(Member),
    Remove(Seat),
}

fn next_step(cluster: &Cluster, state: &State) -> Option<Step> {
    let status = cluster.log().status();
    let voters: BTreeSet<RaftId> = status.voters.iter().map(|member| RaftId(member.id.0)).collect();
    let seats = membership::raft_membership(state);
    if seats.is_empty() {
        // The cluster's first facts are still on their way.
        return None;
    }
    // A node has one seat at a time: one that was demoted and promoted again gives its old one up first.
    let old = |node: &str| {
        status.voters.iter().find(|voter| voter.node == node && !seats.contains_key(&RaftId(voter.id.0)))
    };
    if let Some((id, seat)) = seats.iter().find(|(id, _)| !voters.contains(id)) {
        if let Some(old) = old(&seat.node.to_string()) {
            return Some(Step::Remove(old.id));
        }
        let (addr, node) = (seat.addr.clone(), seat.node.to_string());
        return Some(Step::Add(Member { id: Seat(id.0), addr, node }));
    }
    let gone = voters.iter().find(|id| !seats.contains_key(id))?;
    Some(Step::Remove(Seat(gone.0)))
}
