//! Changes of membership, one at a time: a newcomer learns first and votes when it has caught up; a leader that
//! is to go hands over first; and what a lost leader left half done is finished by the next.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use openraft::ChangeMembers;
use openraft::errors::{ChangeMembershipError, ClientWriteError, RaftError};
use tokio::time::{Instant, sleep, timeout_at};

use crate::log::{Core, Log};
use crate::status::{Metrics, WatchReceiverOf};
use crate::types::{Contact, Types};
use crate::wire::{Body, ChangeDonePb, ChangePb};
use crate::{ChangeError, Member, RaftId, Status, TransferError};

/// What a member is to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AsWhat {
    /// One that votes.
    Voter,
    /// One that only follows.
    Learner,
}

const MAKE_VOTER: u32 = 1;
const MAKE_LEARNER: u32 = 2;
const REMOVE: u32 = 3;

type WriteError = RaftError<Types, ClientWriteError<Types>>;

impl Log {
    /// Makes `member` a voter or a learner, and answers when that is committed. A voter first has to catch up with
    /// the log; if it has not done so `within` that time it is taken out again, unless it was a member before. A known
    /// member is changed: its address, or its vote. Works on any member: the leader does it.
    ///
    /// # Errors
    /// See [`ChangeError`].
    pub async fn add(&self, member: Member, as_what: AsWhat, within: Duration) -> Result<(), ChangeError> {
        let sound = |text: &str| (1..=255).contains(&text.len());
        if !sound(&member.addr) || !sound(&member.node) {
            return Err(ChangeError::BadMember);
        }
        let what = match as_what {
            AsWhat::Voter => MAKE_VOTER,
            AsWhat::Learner => MAKE_LEARNER,
        };
        self.core()
            .change(ChangePb {
                id: member.id.0,
                addr: member.addr,
                node: member.node,
                what,
                within_ms: millis(within),
            })
            .await
    }

    /// Takes a member out, and answers when that is committed. The leader hands over before it is removed itself.
    /// Works on any member. Removing who is no member is no error.
    ///
    /// # Errors
    /// See [`ChangeError`]; the last voter cannot be removed.
    pub async fn remove(&self, id: RaftId) -> Result<(), ChangeError> {
        let within_ms = millis(2 * self.core().config.patience);
        let change = ChangePb { id: id.0, addr: String::new(), node: String::new(), what: REMOVE, within_ms };
        self.core().change(change).await
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// Finishes a change of voters that an earlier leader left half done, whenever this manager comes to lead. Runs as a
/// task.
pub(crate) async fn finish_changes(core: Arc<Core>) {
    let mut status = core.status.clone();
    let unfinished = |status: &Status| status.is_leader() && status.joint;
    loop {
        if status.wait_for(unfinished).await.is_err() {
            return;
        }
        {
            // Whoever holds this is changing the membership in this very term, and finishes it.
            let _turn = core.changing.lock().await;
            if unfinished(&core.status.borrow()) {
                tracing::info!("finishing a change of voters that an earlier leader began");
                let nothing = ChangeMembers::AddVoterIds(BTreeSet::new());
                if let Err(error) = core.raft.change_membership(nothing, false).await {
                    tracing::warn!(%error, "the change of voters cannot be finished yet");
                }
            }
        }
        sleep(core.config.election_min).await;
    }
}

fn reached(point: &'static str) -> Result<(), ChangeError> {
    crate::point::reach(point).map_err(|error| ChangeError::Unknown(error.to_string()))
}

impl Core {
    /// Makes the change here, or has the leader make it.
    async fn change(&self, change: ChangePb) -> Result<(), ChangeError> {
        let deadline = Instant::now() + Duration::from_millis(change.within_ms.min(1 << 32));
        let mut error = ChangeError::NotLeader { leader: None };
        for _ in 0..4 {
            let known = |status: &Status| status.leader.is_some() || status.failed.is_some();
            let status = self.wait(4 * self.config.election_max, known).await;
            let status = status.ok_or(ChangeError::NotLeader { leader: None })?;
            if let Some(reason) = status.failed {
                return Err(ChangeError::Stopped(reason));
            }
            let Some(leader) = status.leader else { continue };
            let made = match leader.id == self.config.id {
                true => self.change_here(&change, deadline).await,
                false => self.change_there(&change, &leader, deadline).await,
            };
            match made {
                Err(ChangeError::NotLeader { leader }) => error = ChangeError::NotLeader { leader },
                made => return made,
            }
            let moved = |now: &Status| now.leader.as_ref() != Some(&leader);
            self.wait(self.config.heartbeat, moved).await;
        }
        Err(error)
    }

    async fn change_there(
        &self,
        change: &ChangePb,
        leader: &Member,
        deadline: Instant,
    ) -> Result<(), ChangeError> {
        let left = deadline.saturating_duration_since(Instant::now());
        let change = ChangePb { within_ms: millis(left), ..change.clone() };
        let id = RaftId(change.id);
        // The leader gives up first and says how far it got.
        let patience = left + self.config.patience;
        match self.ties.ask(leader, Body::Change(change), patience).await {
            Ok(Body::ChangeDone(done)) => decode(done, id),
            Ok(Body::NotLeader(_)) => Err(ChangeError::NotLeader { leader: None }),
            Ok(_) => Err(ChangeError::Unknown(format!("{leader} answered something else"))),
            Err(error) => Err(ChangeError::Unknown(error.to_string())),
        }
    }

    /// The leader's answer to [`Core::change_there`].
    pub(crate) async fn answer_change(&self, change: ChangePb) -> Body {
        let within = Duration::from_millis(change.within_ms.min(1 << 32));
        match self.change_here(&change, Instant::now() + within).await {
            Err(ChangeError::NotLeader { .. }) => self.not_leader(),
            made => Body::ChangeDone(encode(made)),
        }
    }

    async fn change_here(&self, change: &ChangePb, deadline: Instant) -> Result<(), ChangeError> {
        let late = |_| ChangeError::Unknown("another change is under way".into());
        let _turn = timeout_at(deadline, self.changing.lock()).await.map_err(late)?;
        let status = self.status();
        if !status.is_leader() {
            return Err(ChangeError::NotLeader { leader: status.leader });
        }
        let contact = Contact { addr: change.addr.clone(), node: change.node.clone() };
        match change.what {
            MAKE_VOTER => {
                reached("member.learn")?;
                let before = self.learn(&status, change.id, contact, deadline).await?;
                reached("member.learned")?;
                if status.voters.iter().any(|voter| voter.id.0 == change.id) {
                    return Ok(());
                }
                if !self.caught_up(change.id, deadline).await {
                    if !before {
                        let out = ChangeMembers::RemoveNodes(BTreeSet::from([change.id]));
                        self.write(out, false, Instant::now() + self.config.patience).await?;
                    }
                    return Err(ChangeError::NotCaughtUp);
                }
                reached("member.caught-up")?;
                let voter = ChangeMembers::AddVoterIds(BTreeSet::from([change.id]));
                self.write(voter, true, Instant::now() + self.config.patience).await?;
                reached("member.voter")
            }
            MAKE_LEARNER => {
                self.learn(&status, change.id, contact, deadline).await?;
                if status.voters.iter().all(|voter| voter.id.0 != change.id) {
                    return Ok(());
                }
                reached("member.demote")?;
                self.unseat(change.id, true, deadline).await?;
                reached("member.demoted")
            }
            REMOVE => {
                reached("member.remove")?;
                if status.learners.iter().any(|learner| learner.id.0 == change.id) {
                    let out = ChangeMembers::RemoveNodes(BTreeSet::from([change.id]));
                    self.write(out, false, deadline).await?;
                    return reached("member.removed");
                }
                if status.voters.iter().all(|voter| voter.id.0 != change.id) {
                    return Ok(());
                }
                self.unseat(change.id, false, deadline).await?;
                reached("member.removed")
            }
            _ => Err(ChangeError::Unknown("this manager does not know such a change".into())),
        }
    }

    /// Makes the newcomer a learner, or corrects the address of a known one; answers whether it was a member.
    async fn learn(
        &self,
        status: &Status,
        id: u64,
        contact: Contact,
        deadline: Instant,
    ) -> Result<bool, ChangeError> {
        let before = status.member(RaftId(id));
        let same = before.is_some_and(|before| before.contact() == contact);
        if !same {
            let nodes = BTreeMap::from([(id, contact)]);
            let change = match before {
                Some(_) => ChangeMembers::SetNodes(nodes),
                None => ChangeMembers::AddNodes(nodes),
            };
            self.write(change, true, deadline).await?;
        }
        Ok(before.is_some())
    }

    /// Waits until the member has everything that was in the log when this was asked.
    async fn caught_up(&self, id: u64, deadline: Instant) -> bool {
        let mut metrics = self.raft.metrics();
        let goal = metrics.current().last_log_index;
        let there = |metrics: &Metrics| {
            let matched = metrics.replication.as_ref().and_then(|all| all.get(&id).copied().flatten());
            matched.map(|id| id.index) >= goal
        };
        loop {
            let now = metrics.current();
            if !now.state.is_leader() {
                return false;
            }
            if there(&now) {
                return true;
            }
            if !matches!(timeout_at(deadline, metrics.news()).await, Ok(true)) {
                return false;
            }
        }
    }

    /// Takes a voter's vote, and with `retain` leaves it a learner.
    async fn unseat(&self, id: u64, retain: bool, deadline: Instant) -> Result<(), ChangeError> {
        // Those that answer now, not a moment ago: a change that then lacks a majority would block all others.
        let begun = Instant::now();
        let enough = |metrics: &Metrics| {
            let staying: BTreeSet<u64> =
                metrics.membership_config.voter_ids().filter(|voter| *voter != id).collect();
            let reachable = self.heard_within(metrics, begun.elapsed());
            let in_reach =
                staying.iter().filter(|id| **id == self.config.id.0 || reachable.contains(id)).count();
            in_reach > staying.len() / 2
        };
        if !self.wait_to_hear(enough).await {
            return Err(ChangeError::WouldLoseQuorum);
        }
        if id == self.config.id.0 {
            reached("member.hand-over")?;
            let leader = self.transfer(None).await.map_err(|error| match error {
                TransferError::NotLeader { leader } => ChangeError::NotLeader { leader },
                TransferError::Stopped(reason) => ChangeError::Stopped(reason),
                error => ChangeError::Unknown(error.to_string()),
            })?;
            reached("member.handed-over")?;
            // The new one makes the change.
            return Err(ChangeError::NotLeader { leader: Some(leader) });
        }
        self.write(ChangeMembers::RemoveVoters(BTreeSet::from([id])), retain, deadline).await
    }

    /// Proposes a change until it is taken or refused for good: a change before it may not be committed yet.
    async fn write(
        &self,
        change: ChangeMembers<u64, Contact>,
        retain: bool,
        deadline: Instant,
    ) -> Result<(), ChangeError> {
        loop {
            let written = self.raft.change_membership(change.clone(), retain);
            let late = |_| ChangeError::Unknown("no majority confirmed it in time".into());
            let error = match timeout_at(deadline, written).await.map_err(late)? {
                Ok(written) => {
                    // So that the caller finds it in the status.
                    let index = written.log_id.index;
                    self.wait(self.config.patience, |status| status.membership_index >= index).await;
                    return Ok(());
                }
                Err(error) => error,
            };
            if !self.worth_another_try(&error) || Instant::now() >= deadline {
                return Err(self.change_error(error));
            }
            sleep(self.config.heartbeat / 4).await;
        }
    }

    fn worth_another_try(&self, error: &WriteError) -> bool {
        use ChangeMembershipError::{InProgress, UncommittedLeaderLog};
        matches!(
            error,
            RaftError::APIError(ClientWriteError::ChangeMembershipError(
                InProgress(_) | UncommittedLeaderLog(_)
            ))
        )
    }

    fn change_error(&self, error: WriteError) -> ChangeError {
        match error {
            RaftError::APIError(ClientWriteError::ForwardToLeader(forward)) => {
                match self.elsewhere(&forward) {
                    Some(leader) => ChangeError::NotLeader { leader },
                    None => ChangeError::WouldLoseQuorum,
                }
            }
            RaftError::APIError(ClientWriteError::ChangeMembershipError(
                ChangeMembershipError::LearnerNotFound(missing),
            )) => ChangeError::NotMember(RaftId(missing.node_id)),
            RaftError::APIError(error) => ChangeError::Unknown(error.to_string()),
            RaftError::Fatal(error) => ChangeError::Stopped(error.to_string()),
        }
    }
}

fn encode(made: Result<(), ChangeError>) -> ChangeDonePb {
    let (error, detail) = match made {
        Ok(()) => (0, String::new()),
        Err(ChangeError::NotCaughtUp) => (1, String::new()),
        Err(ChangeError::WouldLoseQuorum) => (2, String::new()),
        Err(ChangeError::NotMember(_)) => (3, String::new()),
        Err(error) => (4, error.to_string()),
    };
    ChangeDonePb { error, detail }
}

fn decode(done: ChangeDonePb, id: RaftId) -> Result<(), ChangeError> {
    match done.error {
        0 => Ok(()),
        1 => Err(ChangeError::NotCaughtUp),
        2 => Err(ChangeError::WouldLoseQuorum),
        3 => Err(ChangeError::NotMember(id)),
        _ => Err(ChangeError::Unknown(done.detail)),
    }
}

#[cfg(test)]
mod tests {
    use std::io::{self, Read, Write};

    use bytes::Bytes;

    use super::*;
    use crate::memory::Network;
    use crate::types::{Membership, Payload};
    use crate::{ClusterTag, Config, Entry, Frozen, StateMachine};

    struct Nothing;

    impl StateMachine for Nothing {
        fn apply(&mut self, entries: Vec<Entry>) -> Vec<Bytes> {
            vec![Bytes::new(); entries.len()]
        }

        fn freeze(&self) -> Box<dyn Frozen> {
            Box::new(Nothing)
        }

        fn restore(&mut self, _: u64, _: &mut dyn Read) -> io::Result<()> {
            Ok(())
        }
    }

    impl Frozen for Nothing {
        fn write(self: Box<Self>, _: &mut dyn Write) -> io::Result<()> {
            Ok(())
        }
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_change_left_half_done_is_finished() {
        let root = tempfile::tempdir().unwrap();
        let network = Network::new();
        let patience = Duration::from_secs(20);
        let mut logs = Vec::new();
        for id in 1..=2 {
            let config = Config::new(root.path().join(id.to_string()), RaftId(id), ClusterTag(1));
            let log = Log::open(config, Nothing, network.transport(RaftId(id))).await.unwrap();
            network.plug(RaftId(id), log.clone());
            logs.push(log);
        }
        let member = |id| Member { id: RaftId(id), addr: "10.0.0.1:1".into(), node: "a".into() };
        logs[0].bootstrap(member(1)).await.unwrap();
        logs[0].add(member(2), AsWhat::Learner, patience).await.unwrap();

        let voters = vec![BTreeSet::from([1]), BTreeSet::from([1, 2])];
        let nodes: BTreeMap<u64, Contact> = [1, 2].map(|id| (id, member(id).contact())).into();
        let joint = Membership::new(voters, nodes).unwrap();
        let raft = &logs[0].core().raft;
        raft.append_membership(joint, Payload::Blank, []).await.unwrap();
        for log in &logs {
            let finished = |status: &Status| status.voters.len() == 2 && !status.joint;
            log.wait(patience, finished).await.expect("the change is finished");
        }
        for log in logs {
            network.unplug(log.status().id);
            log.shutdown().await;
        }
    }
}
