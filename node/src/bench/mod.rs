//! Benchmarks that anyone can run with the one binary: a lab of real nodes is made, broken, timed and removed. Out
//! come figures under names that stay from release to release.

mod cluster;
mod failover;
mod figure;
mod idle;
mod load;
mod machine;
mod node_loss;
mod overlay;
pub(crate) mod process;
pub mod raft;
mod restart;
mod schedule;
mod site;
pub mod stamp;
mod start;

use anyhow::{Context, Result};
pub use cluster::Size;
use failover::End;
pub use figure::{Figure, table};
use figure::{Of, Samples};
use rswarm_control::model::{
    ContainerSpec, EndpointSpec, Mode, PortMode, PortSpec, Protocol, ServiceSpec, TaskSpec, UpdateConfig,
};
use site::Site;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use tokio::signal::unix::{SignalKind, signal};

/// What can be measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum)]
pub enum Kind {
    /// Memory, disk writes and processor time of a cluster with nothing to do
    Idle,
    /// From a call to the first line of the program in a container
    Start,
    /// From a node's loss until its tasks run elsewhere
    NodeLoss,
    /// From the leader's end until something can be written again
    Failover,
    /// Leaders killed again and again under a client that writes and reads, and whether anything was lost
    LeaderKill,
    /// The replicated log beside etcd: writes and linearizable reads a second
    Raft,
    /// A manager joins a log of 200 MB while a thousand writes a second go on
    Join,
    /// A manager starts with 100,000 objects in its state
    Restart,
    /// Elections nobody needed, with all processors busy
    Elections,
    /// What the leader's thinking costs: decisions a second on 5,000 nodes, and a turn with nothing to do
    Schedule,
    /// A thousand nodes and thirty thousand tasks on three managers; the nodes are real but for their containers
    Cluster,
    /// The containers' network beside the kernel's VXLAN, and what a lost node costs those who connect
    Overlay,
    /// All of these, in this order
    All,
}

/// What to do.
#[derive(Clone, Debug)]
pub struct Options {
    /// What to measure.
    pub kind: Kind,
    /// How often; by default as often as each benchmark needs.
    pub trials: Option<usize>,
    /// How long idling and the wait for elections last, in seconds.
    pub seconds: u64,
    /// Threads that take a processor's time while elections are waited for, for each processor.
    pub hogs: usize,
    /// What the lab is called.
    pub name: String,
    /// How large the cluster is that has no containers.
    pub size: Size,
}

/// Runs the benchmarks on a lab of their own, which is removed whatever happens. Progress goes to standard error,
/// results to `figures`, where they are also when a later benchmark fails.
///
/// # Errors
/// If the lab cannot be made, is interrupted, or does not do within bounds what it is asked to.
pub fn run(options: &Options, figures: &mut Vec<Figure>) -> Result<()> {
    if needs_root(options.kind) {
        rswarm_chaos::lab::require_root()?;
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().context("cannot start")?;
    let interrupted = Arc::new(AtomicBool::new(false));
    let result = runtime.block_on(async {
        tokio::select! {
            done = measure(options, figures, interrupted.clone()) => done,
            error = interrupt() => {
                interrupted.store(true, Ordering::Relaxed);
                note("interrupted; the lab is being removed");
                Err(error)
            }
        }
    });
    // What still goes on in a thread holds the lab; it is gone when all of them are.
    drop(runtime);
    result
}

async fn measure(options: &Options, figures: &mut Vec<Figure>, interrupted: Arc<AtomicBool>) -> Result<()> {
    if needs_root(options.kind) {
        figures.push(binary()?);
    }
    match options.kind {
        Kind::Raft | Kind::Join | Kind::Restart | Kind::Elections | Kind::Schedule => {}
        Kind::Overlay => machine::facts(&std::env::temp_dir())?.iter().for_each(|fact| note(fact)),
        _ => on_a_lab(options, figures, interrupted.clone()).await?,
    }
    if matches!(options.kind, Kind::Raft | Kind::All) {
        figures.extend(raft::run(options.trials.unwrap_or(5)).await.context("raft")?);
    }
    if matches!(options.kind, Kind::Join | Kind::All) {
        figures.extend(raft::join::run(options.trials.unwrap_or(1)).await.context("join")?);
    }
    if matches!(options.kind, Kind::Restart | Kind::All) {
        figures.extend(restart::run(options.trials.unwrap_or(5)).await.context("restart")?);
    }
    if matches!(options.kind, Kind::Elections | Kind::All) {
        figures.extend(raft::elections::run(options.seconds, options.hogs).await.context("elections")?);
    }
    if matches!(options.kind, Kind::Schedule | Kind::All) {
        let trials = options.trials.unwrap_or(5);
        let measured = tokio::task::spawn_blocking(move || schedule::run(trials)).await;
        figures.extend(measured.context("schedule")?.context("schedule")?);
    }
    if matches!(options.kind, Kind::Overlay | Kind::All) {
        let trials = options.trials;
        let measured = tokio::task::spawn_blocking(move || {
            let mut figures = Vec::new();
            let done = overlay::run(trials, &interrupted, &mut figures);
            (figures, done)
        });
        let (measured, done) = measured.await.context("the benchmark broke off")?;
        figures.extend(measured);
        done.context("overlay")?;
    }
    Ok(())
}

/// Whether it makes network namespaces.
fn needs_root(kind: Kind) -> bool {
    !matches!(kind, Kind::Raft | Kind::Join | Kind::Restart | Kind::Elections | Kind::Schedule)
}

async fn on_a_lab(options: &Options, figures: &mut Vec<Figure>, interrupted: Arc<AtomicBool>) -> Result<()> {
    let site = Site::up(&options.name, interrupted).await?;
    for fact in machine::facts(site.directory())?.into_iter().chain(machine::peers()) {
        note(&fact);
    }
    let trials = |usual: usize| options.trials.unwrap_or(usual);
    let chosen = |kind| options.kind == Kind::All || options.kind == kind;
    if chosen(Kind::Idle) {
        figures.extend(idle::run(&site, options.seconds).await.context("idle")?);
    }
    if chosen(Kind::Start) {
        figures.extend(start::run(&site, trials(20)).await.context("start")?);
    }
    if chosen(Kind::NodeLoss) {
        figures.extend(node_loss::run(&site, trials(10)).await.context("node-loss")?);
    }
    if chosen(Kind::Failover) {
        figures.extend(failover::run(&site, End::ALL, trials(20)).await.context("failover")?);
    }
    // The same as the first third of that one, by which more of it can be had; so not a part of all.
    if options.kind == Kind::LeaderKill {
        figures.extend(failover::run(&site, &[End::Killed], trials(100)).await.context("leader-kill")?);
    }
    // Last: its nodes stay in the cluster.
    if chosen(Kind::Cluster) {
        figures.extend(cluster::run(&site, options.size, trials(3)).await.context("cluster")?);
    }
    Ok(())
}

/// The size of this very program.
fn binary() -> Result<Figure> {
    let size = Path::new("/proc/self/exe").metadata().context("cannot look at this program")?.len();
    let samples: Samples = [size as f64 / 1e6].into_iter().collect();
    Figure::new("binary_mb", "this program", Of::Max, &samples, "MB").context("one sample makes a figure")
}

/// Ends when the user has had enough.
async fn interrupt() -> anyhow::Error {
    let kinds = [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup()];
    let Ok(mut signals) = kinds.map(signal).into_iter().collect::<Result<Vec<_>, _>>() else {
        return anyhow::anyhow!("cannot catch signals");
    };
    let [first, second, third] = signals.as_mut_slice() else { return std::future::pending().await };
    tokio::select! {
        _ = first.recv() => {}
        _ = second.recv() => {}
        _ = third.recv() => {}
    }
    anyhow::anyhow!("interrupted; the lab is removed")
}

/// A line of progress.
fn note(words: &str) {
    eprintln!("{words}");
}

/// A service of the built-in image that runs `command` in place of the image's, or the image's if it is empty.
fn service(name: &str, replicas: u32, command: &[&str]) -> ServiceSpec {
    let mut container = ContainerSpec::new(crate::image::BUILTIN);
    container.command = command.iter().map(|word| (*word).to_owned()).collect();
    ServiceSpec {
        name: name.into(),
        labels: Default::default(),
        mode: Mode::Replicated { replicas },
        task: Arc::new(TaskSpec { containers: vec![container], ..TaskSpec::default() }),
        update: UpdateConfig::default(),
        rollback: UpdateConfig::default(),
        endpoint: EndpointSpec::default(),
    }
}

/// The demo service.
fn demo_service(name: &str, replicas: u32) -> ServiceSpec {
    service(name, replicas, &[])
}

/// A port that is the same on every node.
fn published(published: u16, target: u16) -> PortSpec {
    PortSpec {
        published: Some(published),
        target,
        protocol: Protocol::Tcp,
        mode: PortMode::Ingress,
        proxy_protocol: false,
    }
}
