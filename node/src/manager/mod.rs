//! A manager: a copy of the replicated state, a seat in the Raft group, and, while it leads, the control plane.

pub mod clock;
pub mod cluster;
pub mod dispatcher;
pub mod leader;
pub mod leads;
mod pace;
pub mod roster;
pub mod routes;
pub mod seat;
pub mod tables;
mod threads;
pub mod told;
pub mod transport;
mod warm;

use crate::rpc::dial::{Dialer, Line};
use anyhow::{Context, Result};
use cluster::{Cluster, Fsm, View};
use leader::Ears;
use rswarm_control::ids::ClusterId;
use rswarm_control::model::NodeStatus;
use rswarm_raft::{ClusterTag, Config, Incarnation, Log, Member, RaftId, Role};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Where a manager's log is, in the state directory.
pub fn raft_dir(state_dir: &Path) -> PathBuf {
    state_dir.join("raft")
}

/// Where a manager's log is, and what it belongs to.
#[derive(Clone, Debug)]
pub struct Place {
    /// The daemon's state directory.
    pub state_dir: PathBuf,
    /// Its seat in the Raft group.
    pub seat: u64,
    /// The cluster.
    pub cluster: ClusterId,
    /// The latest incarnation of the cluster that is known here.
    pub incarnation: Incarnation,
    /// Whether its managers are slow to answer one another.
    pub patient: bool,
}

impl Place {
    /// The settings of its log.
    pub fn config(&self) -> Config {
        let usual = Config::new(raft_dir(&self.state_dir), RaftId(self.seat), ClusterTag(self.cluster.0));
        let paced = if self.patient { usual.wide_area() } else { usual };
        Config { incarnation: self.incarnation, ..paced }
    }
}

/// A running manager.
pub struct Manager {
    cluster: Cluster,
    office: watch::Receiver<Option<Arc<Office>>>,
    stop: CancellationToken,
    tracker: TaskTracker,
}

/// A term of office as leader. Gone with it: the sessions of the nodes, and what was heard of them.
pub struct Office {
    /// Its Raft term.
    pub term: u64,
    /// What the leader has heard.
    pub ears: Arc<Ears>,
    /// Cancelled when this manager no longer leads.
    pub stop: CancellationToken,
    /// Which sessions are to look again, and which nodes have taken over which tables.
    pub routes: Arc<routes::Routes>,
    /// What they are told.
    pub tables: Arc<tables::Tables>,
    /// Who the managers are.
    pub roster: watch::Receiver<Arc<roster::Roster>>,
    /// What nodes report, on its way to the log.
    pub reports: dispatcher::Reports,
    /// Whether it leads for certain.
    pub leads: leads::Leads,
}

impl Manager {
    /// Opens the log and takes part. `founder` is given once, by the node that makes the cluster.
    ///
    /// # Errors
    /// If the log cannot be opened; [`seat::lost`] knows whether it ever will.
    pub async fn start(place: Place, dialer: Arc<Dialer>, founder: Option<Member>) -> Result<Arc<Self>> {
        seat::ready(&place.state_dir, place.seat)?;
        let (fsm, view) = Fsm::new();
        let threads = threads::handle().context("cannot start the threads of the manager's log")?;
        let (config, transport) = (place.config(), Arc::new(transport::Grpc::new(dialer.clone())));
        let opened = threads.spawn(async move { Log::open(config, fsm, transport).await }).await;
        let log = opened.context("the log's opening broke off")?.context("cannot open the manager's log")?;
        let log = Arc::new(log);
        if let Err(error) = seat::begun(&place.state_dir, place.seat) {
            log.shutdown().await;
            return Err(error);
        }
        if let Some(founder) = founder {
            log.bootstrap(founder).await.context("cannot found the Raft group")?;
        }
        Ok(Self::run(log, view, dialer, threads))
    }

    fn run(log: Arc<Log>, view: View, dialer: Arc<Dialer>, threads: &Handle) -> Arc<Self> {
        let (stop, tracker) = (CancellationToken::new(), TaskTracker::new());
        // Connections live where they are made.
        tracker.spawn_on(warm::keep_warm(log.clone(), dialer.clone(), Line::Raft, stop.clone()), threads);
        tracker.spawn(warm::keep_warm(log.clone(), dialer, Line::Calls, stop.clone()));
        let cluster = Cluster::new(log, view);
        let (sender, office) = watch::channel(None);
        tracker.spawn(hold_office(cluster.clone(), sender, stop.clone(), tracker.clone()));
        Arc::new(Self { cluster, office, stop, tracker })
    }

    /// The replicated state.
    pub fn cluster(&self) -> &Cluster {
        &self.cluster
    }

    /// The present term of office, if this manager leads.
    pub fn office(&self) -> Option<Arc<Office>> {
        self.office.borrow().clone()
    }

    /// The terms of office of this manager, as they come and go.
    pub fn offices(&self) -> watch::Receiver<Option<Arc<Office>>> {
        self.office.clone()
    }

    /// Hands leadership over if it is held, and stops.
    pub async fn stop(&self) {
        self.cluster.log().shutdown().await;
        self.stop.cancel();
        self.tracker.close();
        self.tracker.wait().await;
    }
}

/// Starts the control plane when this manager comes to lead, and stops it when it no longer does.
async fn hold_office(
    cluster: Cluster,
    sender: watch::Sender<Option<Arc<Office>>>,
    stop: CancellationToken,
    tracker: TaskTracker,
) {
    let mut status = cluster.log().watch();
    loop {
        let now = status.borrow_and_update().clone();
        let term = (now.role == Role::Leader).then_some(now.term);
        let held = sender.borrow().as_ref().map(|office| office.term);
        if held.is_some()
            && held != term
            && let Some(office) = sender.send_replace(None)
        {
            tracing::info!(term = office.term, "no longer leading");
            office.stop.cancel();
        }
        if let Some(term) = term
            && held != Some(term)
        {
            let office = take_office(&cluster, term, &stop, &tracker).await;
            sender.send_replace(office);
        }
        // An office that could not be taken up is tried again, unless the term ends first.
        let again = term.is_some() && sender.borrow().is_none();
        tokio::select! {
            () = stop.cancelled() => return,
            changed = status.changed() => if changed.is_err() { return },
            () = tokio::time::sleep(Duration::from_millis(50)), if again => {}
        }
    }
}

/// `None` when leadership was lost before it was taken up.
async fn take_office(
    cluster: &Cluster,
    term: u64,
    stop: &CancellationToken,
    tracker: &TaskTracker,
) -> Option<Arc<Office>> {
    // What the predecessor committed must be applied here before anything is decided.
    tokio::select! {
        () = stop.cancelled() => return None,
        fresh = cluster.fresh() => if let Err(error) = fresh {
            tracing::debug!(%error, "lost leadership before it was taken up");
            return None;
        }
    }
    if let Err(error) = start_anew(cluster).await {
        tracing::warn!(%error, "cannot start anew yet");
        return None;
    }
    tracing::info!(term, "leading");
    let stop = stop.child_token();
    let ears = Arc::new(Ears::new(clock::after(cluster.state().clock())));
    let reports = dispatcher::Reports::new();
    tracker.spawn(leader::lead(cluster.clone(), ears.clone(), stop.clone()));
    tracker.spawn(leader::keep_membership(cluster.clone(), stop.clone()));
    tracker.spawn(dispatcher::pump(cluster.clone(), reports.clone(), stop.clone()));
    let state = cluster.state();
    let ready = state.nodes().filter(|node| node.status == NodeStatus::Ready).map(|node| node.id);
    let routes = Arc::new(routes::Routes::new(ready));
    let tables = Arc::new(tables::Tables::new(cluster.state()));
    let (publisher, woken, view) = (tables.clone(), routes.clone(), cluster.view().clone());
    let publish = async move { publisher.publish(view, &woken).await };
    tracker.spawn(stop.clone().run_until_cancelled_owned(publish));
    let (listed, roster) = watch::channel(Arc::new(roster::Roster::of(cluster)));
    tracker.spawn(stop.clone().run_until_cancelled_owned(roster::keep(cluster.clone(), listed)));
    let leads = leads::Leads::default();
    tracker.spawn(leads.clone().ask(cluster.clone(), term, stop.clone()));
    Some(Arc::new(Office { term, ears, stop, routes, tables, roster, reports, leads }))
}

/// The first act of a new incarnation, before anybody could be spoken to as if nothing had happened.
async fn start_anew(cluster: &Cluster) -> Result<(), cluster::WriteError> {
    let status = cluster.log().status();
    let Some(me) = status.member(status.id) else { return Ok(()) };
    let Ok(node) = me.node.parse() else { return Ok(()) };
    let state = cluster.state();
    let change = rswarm_control::membership::start_anew(&state, status.incarnation.0, node, &me.addr);
    if let Some(change) = change {
        tracing::warn!(incarnation = %status.incarnation, "the cluster starts anew from this manager's state");
        cluster.commit(vec![change], clock::after(state.clock())).await?;
    }
    Ok(())
}
