//! What a log says about itself.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use openraft::Instant as _;
use openraft::async_runtime::watch::WatchReceiver;
use openraft::metrics::RaftServerMetrics;
use openraft::{RaftMetrics, ServerState};
use tokio::sync::watch;
use tokio::time::{sleep, timeout};

use crate::network::Ties;
use crate::types::{LogId, StoredMembership, Types};
use crate::{Incarnation, Member, RaftId};

/// What a manager is in the log's eyes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Role {
    /// Takes proposals.
    Leader,
    /// Votes and follows.
    Follower,
    /// Stands for election.
    Candidate,
    /// Follows without a vote, or is no member (yet).
    #[default]
    Learner,
    /// Was shut down, or has failed.
    Stopped,
}

/// A log's state. Indexes are 0 where there is nothing yet.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Status {
    /// This manager.
    pub id: RaftId,
    /// What it is.
    pub role: Role,
    /// The term it is in.
    pub term: u64,
    /// Who leads, as far as it knows. A follower that is cut off keeps believing in its last leader; see
    /// [`Status::quorum_heard_at`].
    pub leader: Option<Member>,
    /// Up to where the log is known to be committed.
    pub committed: u64,
    /// Up to where it was applied.
    pub applied: u64,
    /// The last entry in the local log.
    pub last_log: u64,
    /// What the newest snapshot covers.
    pub snapshot: u64,
    /// What is no longer in the log.
    pub purged: u64,
    /// Those who vote, by id.
    pub voters: Arc<[Member]>,
    /// Those who only follow, by id.
    pub learners: Arc<[Member]>,
    /// The entry that made them so.
    pub membership_index: u64,
    /// A change of voters is under way.
    pub joint: bool,
    /// A leader: when a quorum last acknowledged it. Others: when they last heard from their leader. Kept up to
    /// date without waking those who watch.
    pub quorum_heard_at: Option<Instant>,
    /// How often a leader is heard.
    pub heartbeat: Duration,
    /// Other managers have committed a membership without this one, which will hear no more of the log: it
    /// should wipe its directory.
    pub removed: bool,
    /// The life of the cluster that this log belongs to.
    pub incarnation: Incarnation,
    /// The cluster goes on in a later life, of which this manager is no part: it no longer votes nor follows, and
    /// must be shut down.
    pub superseded: Option<Incarnation>,
    /// The log stopped and must be opened anew; why.
    pub failed: Option<String>,
    /// Entries are committed, but the applied index has not moved for [`crate::Config::stall`].
    pub stalled: bool,
}

impl Status {
    /// Whether this manager leads.
    pub fn is_leader(&self) -> bool {
        self.role == Role::Leader
    }

    /// The voter or learner with this id.
    pub fn member(&self, id: RaftId) -> Option<&Member> {
        self.members().find(|member| member.id == id)
    }

    /// The voter or learner that is this node.
    pub fn member_by_node(&self, node: &str) -> Option<&Member> {
        self.members().find(|member| member.node == node)
    }

    /// Voters, then learners.
    pub fn members(&self) -> impl Iterator<Item = &Member> {
        self.voters.iter().chain(self.learners.iter())
    }

    /// Becomes `next`, and answers whether watchers should know.
    fn become_next(&mut self, mut next: Self) -> bool {
        // That somebody was heard wakes nobody.
        let heard = next.quorum_heard_at.take();
        self.quorum_heard_at = None;
        let news = *self != next;
        *self = next;
        self.quorum_heard_at = heard;
        news
    }
}

/// When the leader was last heard, as the receiving side notes it.
#[derive(Default)]
pub(crate) struct Heard(Mutex<Option<Instant>>);

impl Heard {
    pub(crate) fn now(&self) {
        *self.0.lock().expect("nothing panics while it holds this lock") = Some(Instant::now());
    }

    pub(crate) fn at(&self) -> Option<Instant> {
        *self.0.lock().expect("nothing panics while it holds this lock")
    }
}

pub(crate) type Metrics = RaftMetrics<Types>;

/// Between two statuses, unless somebody comes to lead, votes, or members change.
const BREATH: Duration = Duration::from_millis(10);

/// Turns openraft's metrics into statuses until openraft is gone. Runs as a task.
pub(crate) async fn publish(
    mut metrics: impl WatchReceiverOf,
    mut turns: openraft::alias::WatchReceiverOf<Types, RaftServerMetrics<Types>>,
    status: Arc<watch::Sender<Status>>,
    ties: Arc<Ties>,
    (heartbeat, stall): (Duration, Duration),
) {
    let mut members = Members::default();
    let mut progress = (0, Instant::now());
    loop {
        let now = metrics.current();
        let mut next = members.status(&now);
        if next.applied != progress.0 || next.committed <= next.applied {
            progress = (next.applied, Instant::now());
        }
        let behind = next.committed > next.applied;
        next.stalled = behind && progress.1.elapsed() >= stall;
        if next.role != Role::Leader {
            next.quorum_heard_at = ties.heard.at();
        }
        let left_out_by = ties.removed_by.load(Ordering::Relaxed);
        next.removed = left_out_by > next.membership_index;
        next.incarnation = ties.life.incarnation;
        next.heartbeat = heartbeat;
        next.superseded = ties.superseded();
        status.send_if_modified(|status| status.become_next(next));
        // Under load there is news several times for each entry, and each status costs a wakeup.
        tokio::select! {
            () = sleep(BREATH) => {}
            // An error means that openraft is gone, which is noticed below.
            _ = turns.changed() => {}
        }
        // Removal and stalling come without news from openraft.
        let news = timeout(Duration::from_secs(1), metrics.news()).await;
        if let Ok(false) = news {
            let now = metrics.current();
            status.send_modify(|status| {
                status.role = Role::Stopped;
                status.leader = None;
                if let Err(reason) = &now.running_state {
                    status.failed.get_or_insert_with(|| reason.to_string());
                }
            });
            return;
        }
    }
}

/// openraft's watch, reduced to what is needed: the borrow must not be held, or openraft waits.
pub(crate) trait WatchReceiverOf: Send {
    fn current(&self) -> Metrics;
    /// False once nothing more will come.
    fn news(&mut self) -> impl Future<Output = bool> + Send;
}

impl WatchReceiverOf for openraft::alias::WatchReceiverOf<Types, Metrics> {
    fn current(&self) -> Metrics {
        self.borrow_watched().clone()
    }

    async fn news(&mut self) -> bool {
        self.changed().await.is_ok()
    }
}

/// The members, converted only when they change.
#[derive(Default)]
struct Members {
    of: Option<Arc<StoredMembership>>,
    voters: Arc<[Member]>,
    learners: Arc<[Member]>,
}

impl Members {
    fn status(&mut self, metrics: &Metrics) -> Status {
        self.update(&metrics.membership_config);
        let index = |id: &Option<LogId>| id.map_or(0, |id| id.index);
        let failed = metrics.running_state.as_ref().err().map(|reason| reason.to_string());
        let role = match metrics.state {
            _ if failed.is_some() => Role::Stopped,
            ServerState::Leader => Role::Leader,
            ServerState::Follower => Role::Follower,
            ServerState::Candidate => Role::Candidate,
            ServerState::Learner => Role::Learner,
            ServerState::Shutdown => Role::Stopped,
        };
        let mut status = Status {
            id: RaftId(metrics.id),
            role,
            term: metrics.current_term,
            leader: None,
            committed: index(&metrics.local_committed),
            applied: index(&metrics.last_applied),
            last_log: metrics.last_log_index.unwrap_or(0),
            snapshot: index(&metrics.snapshot),
            purged: index(&metrics.purged),
            voters: self.voters.clone(),
            learners: self.learners.clone(),
            membership_index: index(metrics.membership_config.log_id()),
            joint: metrics.membership_config.get_joint_config().len() > 1,
            quorum_heard_at: metrics
                .last_quorum_acked
                .and_then(|at| Instant::now().checked_sub(at.elapsed())),
            heartbeat: Duration::default(),
            removed: false,
            incarnation: Incarnation::FIRST,
            superseded: None,
            failed,
            stalled: false,
        };
        status.leader = metrics.current_leader.and_then(|id| status.member(RaftId(id)).cloned());
        status
    }

    fn update(&mut self, membership: &Arc<StoredMembership>) {
        if self.of.as_ref().is_some_and(|of| Arc::ptr_eq(of, membership)) {
            return;
        }
        let voters: std::collections::BTreeSet<u64> = membership.voter_ids().collect();
        let all = || membership.nodes().map(|(id, contact)| (voters.contains(id), Member::new(*id, contact)));
        self.voters = all().filter(|(voter, _)| *voter).map(|(_, member)| member).collect();
        self.learners = all().filter(|(voter, _)| !*voter).map(|(_, member)| member).collect();
        self.of = Some(membership.clone());
    }
}
