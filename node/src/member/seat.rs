//! The manager of this node: started and stopped as the cluster says what the node should be, opened anew when it
//! stopped by itself, and given up when its log is gone or of an earlier life of the cluster.

use super::{Denial, Member};
use crate::agent::{self, Standing};
use crate::identity::{Identity, ManagerAddr};
use crate::manager::{Manager, Place, seat};
use anyhow::{Context, Result, bail, ensure};
use rswarm_control::ids::ClusterId;
use rswarm_proto::v1 as pb;
use rswarm_raft::{Incarnation, OpenError};
use std::path::Path;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

/// How long somebody may still come to lead before a quorum counts as lost: several elections.
const LEADERLESS: Duration = Duration::from_secs(4);

/// What a node says of its seat, and whether its log is lost.
pub(super) fn standing(identity: &Identity, lost: bool) -> Standing {
    let seat = identity.raft_id.unwrap_or(0);
    Standing { incarnation: Incarnation(identity.incarnation), seat, lost }
}

/// Where the manager of this seat keeps its log.
pub(super) fn place(
    state_dir: &Path,
    cluster: ClusterId,
    identity: &Identity,
    seat: u64,
    patient: bool,
) -> Place {
    let incarnation = Incarnation(identity.incarnation);
    Place { state_dir: state_dir.to_owned(), seat, cluster, incarnation, patient }
}

impl Denial {
    /// What a manager of an earlier life of the cluster is told.
    pub(super) fn outdated(by: Incarnation) -> Self {
        Self {
            words: format!(
                "the cluster was started anew on another manager after its quorum was lost, and goes on as \
                 incarnation {by}; what this manager remembers no longer counts, and it has no vote"
            ),
            cure: "`rswarm rejoin` gives that up and takes part again".into(),
        }
    }
}

impl Member {
    /// Starts and stops the manager as the cluster says what this node should be, and keeps the identity on disk
    /// in step with it.
    pub(super) async fn follow_role(self: Arc<Self>) {
        let mut orders = self.agent.orders();
        loop {
            let order = orders.borrow_and_update().clone();
            match order {
                agent::Order::None => {}
                agent::Order::Be(list) => {
                    if let Err(error) = self.be(&list).await {
                        tracing::error!(
                            error = format!("{error:#}"),
                            "cannot take the role the cluster gives"
                        );
                    }
                }
                agent::Order::Outdated(by) => self.outdated(by).await,
                agent::Order::Gone(words) => {
                    let cure = "`rswarm leave --force`, then join again".into();
                    self.refused.send_replace(Some(Denial { words, cure }));
                    if let Some(manager) = self.manager.swap(None) {
                        manager.stop().await;
                    }
                }
            }
            tokio::select! {
                () = self.stop.cancelled() => return,
                changed = orders.changed() => if changed.is_err() { return },
            }
        }
    }

    /// Opens the manager's log anew when it has stopped by itself or stands still: a slow disk or a bug must not
    /// cost the cluster a manager until somebody looks.
    pub(super) async fn watch_over(self: Arc<Self>) {
        const LOOK: Duration = Duration::from_secs(1);
        loop {
            let ill = async {
                let manager = self.manager()?;
                let mut status = manager.cluster().log().watch();
                let ill = |status: &rswarm_raft::Status| {
                    status.failed.is_some() || status.stalled || status.superseded.is_some()
                };
                let ill = status.wait_for(ill).await.ok()?.clone();
                Some(ill)
            };
            let ill = tokio::select! {
                () = self.stop.cancelled() => return,
                ill = ill => ill,
            };
            if let Some(status) = ill {
                if let Some(by) = status.superseded {
                    self.outdated(by).await;
                    continue;
                }
                let why = status.failed.as_deref().unwrap_or("entries are committed but not applied");
                if let Err(error) = self.reopen(why).await {
                    tracing::error!(error = format!("{error:#}"), "the manager cannot go on, trying again");
                }
            }
            tokio::select! {
                () = self.stop.cancelled() => return,
                () = tokio::time::sleep(LOOK) => {}
            }
        }
    }

    async fn reopen(&self, why: &str) -> Result<()> {
        let _changing = self.changing.lock().await;
        let Some(manager) = self.manager() else { return Ok(()) };
        let identity = self.identity();
        let Some(seat) = identity.raft_id else { return Ok(()) };
        tracing::warn!(why, "the manager's log has stopped, opening it again");
        manager.stop().await;
        self.start_manager(&identity, seat).await
    }

    /// Starts the manager of this seat. That its log is lost is no error: then none runs, and the cluster is told.
    pub(super) async fn start_manager(&self, identity: &Identity, seat: u64) -> Result<()> {
        let place = place(&self.state_dir, self.cluster, identity, seat, self.ground.config.patient);
        match Manager::start(place, self.dialer.clone(), None).await {
            Ok(manager) => self.manager.store(Some(manager)),
            Err(error) => {
                let Some(words) = seat::lost(&error) else { return Err(error) };
                tracing::error!(
                    why = words,
                    "this manager does not vote any more, and waits for another seat"
                );
                self.manager.store(None);
                self.note_loss(Some(words));
            }
        }
        Ok(())
    }

    pub(super) fn note_loss(&self, lost: Option<String>) {
        let standing = standing(&self.identity(), lost.is_some());
        *self.lost.lock().unwrap_or_else(PoisonError::into_inner) = lost;
        self.standing.send_if_modified(|before| std::mem::replace(before, standing) != standing);
    }

    /// How this manager's log was lost, while it waits for another seat.
    pub fn lost(&self) -> Option<String> {
        self.lost.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Changes the identity, on disk first.
    fn change_identity(&self, change: impl FnOnce(&mut Identity)) -> Result<Identity> {
        let mut identity = self.identity.lock().unwrap_or_else(PoisonError::into_inner);
        let mut next = identity.clone();
        change(&mut next);
        let same = next.raft_id == identity.raft_id
            && next.managers == identity.managers
            && next.incarnation == identity.incarnation
            && next.superseded == identity.superseded;
        if !same {
            next.save(&self.state_dir)?;
        }
        *identity = next.clone();
        Ok(next)
    }

    async fn be(&self, list: &pb::ManagerList) -> Result<()> {
        let _changing = self.changing.lock().await;
        if list.role() == pb::Role::Unspecified {
            // Who does not lead says where the managers are, not what this node should be.
            return Ok(());
        }
        let before = self.identity();
        let manages = self.manager.load().is_some();
        let shall = list.role() == pb::Role::Manager && list.raft_id != 0;
        let lost = self.lost().is_some();
        if before.superseded.is_some() || lost && shall && before.raft_id == Some(list.raft_id) {
            // The seat it had is of no use any more.
            return Ok(());
        }
        let identity = self.change_identity(|identity| {
            identity.raft_id = shall.then_some(list.raft_id);
            identity.incarnation = identity.incarnation.max(list.incarnation);
            identity.managers = list
                .managers
                .iter()
                .map(|manager| ManagerAddr {
                    node: manager.node_id.clone(),
                    addr: manager.addr.clone(),
                    raft_id: manager.raft_id,
                })
                .collect();
        })?;
        let moves = shall && manages && before.raft_id.is_some_and(|seat| seat != list.raft_id);
        if moves {
            tracing::info!(seat = ?before.raft_id, "giving up a manager's seat for another");
            if let Some(manager) = self.manager.swap(None) {
                manager.stop().await;
            }
        }
        if moves || shall && !manages {
            tracing::info!(seat = list.raft_id, "becoming a manager");
            // A log that lies here is of another seat: this node's earlier one was given up.
            seat::claim(&self.state_dir, list.raft_id)?;
            self.note_loss(None);
            self.start_manager(&identity, list.raft_id).await?;
        } else if !shall && (manages || lost) {
            tracing::info!("no longer a manager");
            if let Some(manager) = self.manager.swap(None) {
                manager.stop().await;
            }
            seat::give_up(&self.state_dir)?;
        }
        self.note_loss(self.lost().filter(|_| shall));
        Ok(())
    }

    /// The cluster goes on in a later life: this manager has nothing to say any more, and changes nothing until
    /// somebody has looked.
    async fn outdated(&self, by: Incarnation) {
        let _changing = self.changing.lock().await;
        if self.identity().raft_id.is_none() {
            return;
        }
        if let Some(manager) = self.manager.swap(None) {
            tracing::error!(incarnation = %by, "the cluster was started anew without this manager");
            manager.stop().await;
        }
        if let Err(error) = self.change_identity(|identity| identity.superseded = Some(by.0)) {
            tracing::warn!(error = format!("{error:#}"), "cannot keep in mind that this manager is outdated");
        }
        self.refused.send_replace(Some(Denial::outdated(by)));
    }

    /// Gives up what this manager remembers of an earlier life of the cluster, so that it can take part in the
    /// present one.
    ///
    /// # Errors
    /// If it is no such manager, or the disk refuses.
    pub async fn rejoin(&self) -> Result<()> {
        let _changing = self.changing.lock().await;
        let Some(by) = self.identity().superseded else {
            if let Some(denial) = self.refused() {
                bail!("{denial}");
            }
            bail!("this node takes part in its cluster already, so there is nothing to rejoin");
        };
        let identity = self.change_identity(|identity| {
            identity.raft_id = None;
            identity.incarnation = by;
            identity.superseded = None;
        })?;
        seat::give_up(&self.state_dir)?;
        *self.lost.lock().unwrap_or_else(PoisonError::into_inner) = None;
        self.refused.send_replace(None);
        self.standing.send_replace(standing(&identity, false));
        Ok(())
    }

    /// Makes this manager the only one, with the state it has, in a new life of the cluster. What runs here goes on.
    ///
    /// # Errors
    /// If this node has no such state, or the cluster has a leader; or the log cannot be written.
    pub async fn force_new_cluster(&self) -> Result<Incarnation> {
        let _changing = self.changing.lock().await;
        if let Some(denial) = self.refused() {
            bail!("{denial}");
        }
        let identity = self.identity();
        let Some(seat) = identity.raft_id else {
            bail!(
                "this node is a worker and does not have the cluster's state; type this on a manager that survived"
            );
        };
        if let Some(lost) = self.lost() {
            bail!("this manager has lost the cluster's state ({lost}); type this on another that survived");
        }
        if let Some(manager) = self.manager() {
            if let Some(leader) = led(manager.cluster().log()).await {
                bail!(
                    "the cluster has a leader, the manager at {leader}, so nothing needs to be forced; add managers \
                     with `rswarm join`, and remove lost ones with `rswarm node rm --force`"
                );
            }
            manager.stop().await;
        }
        let place = place(&self.state_dir, self.cluster, &identity, seat, self.ground.config.patient);
        let me = rswarm_raft::Member {
            id: rswarm_raft::RaftId(seat),
            addr: identity.advertise_addr.clone(),
            node: identity.node.clone(),
        };
        let forced = force(place, me).await;
        let incarnation = match &forced {
            Ok(incarnation) => *incarnation,
            Err(_) => Incarnation(identity.incarnation),
        };
        let identity = self.change_identity(|next| {
            next.incarnation = incarnation.0;
            if forced.is_ok() {
                next.managers.retain(|manager| manager.node == identity.node);
            }
        })?;
        self.note_loss(None);
        let started = self.start_manager(&identity, seat).await;
        let incarnation = forced?;
        started?;
        ensure!(self.lost().is_none(), "the log was written and cannot be read again; see `rswarm status`");
        self.begun(incarnation).await?;
        Ok(incarnation)
    }

    /// Waits until the state says that this manager is alone.
    async fn begun(&self, incarnation: Incarnation) -> Result<()> {
        const PATIENCE: Duration = Duration::from_secs(20);
        let manager = self.manager().context("this manager has stopped")?;
        let view = manager.cluster().view().clone();
        let mut watch = view.watch();
        let anew = watch
            .wait_for(|_| view.state().cluster().is_some_and(|cluster| cluster.incarnation == incarnation.0));
        tokio::time::timeout(PATIENCE, anew)
            .await
            .with_context(|| format!("this manager did not come to lead within {} s", PATIENCE.as_secs()))?
            .context("this manager has stopped")?;
        Ok(())
    }
}

/// Where the leader is, if one can show within some time that a majority follows it. What this manager believes
/// does not count: the others may have been lost a moment ago, or be about to agree on another leader.
async fn led(log: &rswarm_raft::Log) -> Option<String> {
    let asked = async {
        while log.read_index().await.is_err() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(LEADERLESS, asked).await.ok()?;
    Some(log.status().leader.map_or_else(|| "an unknown address".into(), |leader| leader.addr))
}

async fn force(place: Place, me: rswarm_raft::Member) -> Result<Incarnation> {
    let tail = u32::from_le_bytes(crate::identity::random());
    let forced = tokio::task::spawn_blocking(move || {
        seat::ready(&place.state_dir, place.seat)?;
        Ok(rswarm_raft::force_new_cluster(&place.config(), &me, tail)?)
    });
    let forced: Result<Incarnation> = forced.await.context("the log's writer has stopped")?;
    forced.map_err(|error| match error.downcast_ref::<OpenError>() {
        Some(OpenError::Empty { .. }) => error.context("this manager has not caught up with the others yet"),
        _ => error,
    })
}
