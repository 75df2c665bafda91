//! How long a manager takes from its start until it leads again, with a large state in its snapshot and many entries
//! behind it in the log.

use super::figure::{Figure, Of, Samples};
use super::raft::Scratch;
use super::schedule::{self, NOW};
use super::{machine, note};
use crate::identity::ca::{self, Root};
use crate::identity::tls::{self, Credentials};
use crate::manager::cluster::{Fsm, frozen};
use crate::manager::transport::Grpc;
use crate::manager::{Manager, Place, seat};
use crate::rpc::dial::{ALPN, Dialer};
use anyhow::{Context, Result, ensure};
use rswarm_control::model::Role;
use rswarm_control::{Proposal, State};
use rswarm_proto::store;
use rswarm_raft::{Incarnation, Log, Member, RaftId, begin_with};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};
use tokio::task::JoinSet;

/// What the state is made of: together with the network and the manager itself, a little more than 100,000 objects.
const NODES: usize = 1_000;
const SERVICES: usize = 100;
const REPLICAS: u32 = 990;
/// Entries behind the snapshot, half of what there may be before the next is made.
const ENTRIES: usize = 25_000;
/// How many of them are proposed at once.
const AT_ONCE: usize = 256;
/// How long a start may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// Starts a manager `trials` times.
///
/// # Errors
/// If the log cannot be made, or does not come back as it was.
pub async fn run(trials: usize) -> Result<Vec<Figure>> {
    let scratch = Scratch::new()?;
    for fact in machine::facts(&scratch.0)? {
        note(&fact);
    }
    let made = tokio::task::spawn_blocking(|| schedule::large(NODES, SERVICES, REPLICAS));
    let state = made.await.context("the state cannot be made")??;
    let objects = count(&state);
    let (place, member) = seat_of(&state, &scratch.0)?;
    let dialer = dialer(&member.node)?;
    prepare(&place, &member, &state, &dialer).await?;
    let bytes = size(&crate::manager::raft_dir(&place.state_dir))?;
    note(&format!(
        "{objects} objects and {ENTRIES} entries behind them, {:.0} MB on disk",
        bytes as f64 / 1e6
    ));

    let mut took = Samples::default();
    for number in 1..=trials {
        let began = Instant::now();
        let manager = Manager::start(place.clone(), dialer.clone(), None).await?;
        let opened = began.elapsed();
        let mut offices = manager.offices();
        let led = tokio::time::timeout(PATIENCE, offices.wait_for(Option::is_some)).await;
        led.context("it does not come to lead")?.context("it has ended")?;
        let state = manager.cluster().fresh().await?;
        let ready = began.elapsed();
        let found = count(&state);
        manager.stop().await;
        ensure!(found == objects, "{found} of {objects} objects came back");
        note(&format!(
            "start {number} of {trials}: ready after {:.0} ms, of these {:.0} ms until the log was open",
            ready.as_secs_f64() * 1000.0,
            opened.as_secs_f64() * 1000.0
        ));
        took.push(ready.as_secs_f64() * 1000.0);
    }
    let what = "a manager with 100,000 objects: from its start until it leads";
    let figure = Figure::new("raft.restart100k_ms", what, Of::Median, &took, "ms");
    let worst = Figure::new("raft.restart100k.max_ms", "the slowest", Of::Max, &took, "ms");
    Ok(figure.map(|figure| figure.target("<=2000")).into_iter().chain(worst).collect())
}

fn count(state: &State) -> usize {
    state.nodes().count() + state.services().count() + state.networks().count() + state.tasks().count()
}

/// The only manager of this state, with its directory beneath `base`.
fn seat_of(state: &State, base: &Path) -> Result<(Place, Member)> {
    let cluster = state.cluster().context("a state without a cluster")?;
    let me = state.nodes().find(|node| node.role == Role::Manager).context("a state without a manager")?;
    let seat = me.raft.context("a manager without a seat")?.0;
    let state_dir = base.join("restart");
    std::fs::create_dir_all(&state_dir).with_context(|| format!("cannot create {}", state_dir.display()))?;
    let incarnation = Incarnation::FIRST;
    let place = Place { state_dir, seat, cluster: cluster.id, incarnation, patient: false };
    let member = Member { id: RaftId(seat), addr: me.addr.clone(), node: me.id.to_string() };
    Ok((place, member))
}

/// A way to other managers, of which there are none.
fn dialer(node: &str) -> Result<Arc<Dialer>> {
    let now = SystemTime::now();
    let root = Root::generate("bench", now)?;
    let (key, request) = ca::request()?;
    let cert = root.sign(&request, node, "bench", now, Duration::from_secs(3600))?;
    let credentials = Credentials::new(&cert, &root.cert_pem, &key)?;
    Ok(Arc::new(Dialer::new(tls::client(credentials, &root.cert_pem, ALPN)?, "bench".into())))
}

/// Leaves on disk what a manager leaves that was stopped: a snapshot of `state`, and reports of its tasks in the log.
async fn prepare(place: &Place, member: &Member, state: &State, dialer: &Arc<Dialer>) -> Result<()> {
    seat::claim(&place.state_dir, place.seat)?;
    let (config, me, begun) = (place.config(), member.clone(), state.clone());
    let begin = move || begin_with(&config, &me, begun.index(), frozen(begun));
    tokio::task::spawn_blocking(begin).await.context("the log cannot be begun")??;
    let (fsm, _) = Fsm::new();
    let log = Log::open(place.config(), fsm, Arc::new(Grpc::new(dialer.clone()))).await?;
    log.wait(PATIENCE, |status| status.is_leader()).await.context("it does not come to lead")?;
    let mut changes = state
        .tasks()
        .take(ENTRIES)
        .filter_map(|task| schedule::report(task, "it has been seen to run"))
        .map(|change| store::encode_proposal(&Proposal { changes: vec![change], at: NOW }));
    let mut under_way = JoinSet::new();
    loop {
        while under_way.len() < AT_ONCE
            && let Some(bytes) = changes.next()
        {
            let log = log.clone();
            under_way.spawn(async move { log.propose(bytes).await });
        }
        let Some(done) = under_way.join_next().await else { break };
        done.context("a writer ended badly")?.context("an entry was not taken")?;
    }
    log.shutdown().await;
    Ok(())
}

/// The bytes of the files in a directory.
fn size(dir: &Path) -> Result<u64> {
    let mut bytes = 0;
    for file in std::fs::read_dir(dir).with_context(|| format!("cannot read {}", dir.display()))? {
        bytes += file?.metadata()?.len();
    }
    Ok(bytes)
}
