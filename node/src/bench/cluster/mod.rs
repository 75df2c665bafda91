//! A cluster larger than any lab: three real managers, and a thousand nodes that are real but for their containers.
//!
//! Each node has its own certificate and its own session with the leader, by the same code as a daemon's, and decides
//! by the same [`Worker`](rswarm_control::worker::Worker). What it is asked to prepare or start is ready at once.

mod fleet;

use super::figure::{Figure, Of, Samples};
use super::{note, process, service, site::Site};
use anyhow::{Context, Result, ensure};
use fleet::Fleet;
use rswarm_control::model::ServiceSpec;
use rswarm_proto::v1 as pb;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::oneshot;

/// Services that the tasks are spread over.
const SERVICES: u32 = 30;
/// Tasks of the services that are created meanwhile.
const PROBE: u32 = 10;
/// Between these.
const PROBE_EVERY: Duration = Duration::from_millis(200);
/// How long the tasks may take to run.
const PATIENCE: Duration = Duration::from_secs(300);
/// Clock ticks in a second.
const TICKS: f64 = 100.0;
/// How often it is looked at how many run.
const LOOK: Duration = Duration::from_millis(100);

/// How large the cluster is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size {
    /// Nodes besides the managers.
    pub nodes: u32,
    /// Tasks that are started together.
    pub tasks: u32,
}

/// Joins the nodes, and starts the tasks as often as there are `trials`.
pub async fn run(site: &Site, size: Size, trials: usize) -> Result<Vec<Figure>> {
    crate::machine::raise_file_limit().context("cannot raise the limit of open files")?;
    let leader = site.whole().await?;
    for name in site.names() {
        drain(site, name).await?;
    }
    let (began, mut work) = (Instant::now(), Work::begun(site)?);
    let fleet = Fleet::join(site, size.nodes).await.context("cannot join the nodes")?;
    let joined = began.elapsed().as_secs_f64();
    note(&format!("{} nodes joined in {joined:.1} s; {leader} leads; {}", size.nodes, work.since(site)?));

    let (mut took, mut probes) = (Samples::default(), Samples::default());
    for number in 1..=trials {
        work = Work::begun(site)?;
        let trial = trial(site, &fleet, size.tasks, number, &mut work).await;
        let (seconds, latencies) = trial.with_context(|| format!("trial {number}"))?;
        let slowest = latencies.percentile(100).unwrap_or_default();
        note(&format!(
            "{number} of {trials}: {} tasks ran after {seconds:.1} s; {} services of {PROBE} placed meanwhile, the \
             slowest in {slowest:.0} ms",
            size.tasks,
            latencies.count(),
        ));
        took.push(seconds);
        latencies.iter().for_each(|latency| probes.push(latency));
    }
    let mut memory = Samples::default();
    for name in site.managers() {
        memory.push(process::peak_bytes(site.daemon(name)?)? as f64 / 1e6);
    }
    fleet.stop().await;

    let nodes_joined = [joined].into_iter().collect();
    let figures = [
        Figure::new(
            "cluster.join_s",
            "nodes joined, one after the other and 32 at once",
            Of::Median,
            &nodes_joined,
            "s",
        ),
        Figure::new("cluster.tasks_running_s", "all tasks created to all running", Of::Median, &took, "s")
            .map(|figure| figure.target("<=10")),
        Figure::new(
            "cluster.assign_p99_ms",
            "meanwhile: a service of 10 created to its last task known to its node",
            Of::P99,
            &probes,
            "ms",
        )
        .map(|figure| figure.target("<=500")),
        Figure::new("cluster.manager_peak_mb", "the most memory that a manager took", Of::Max, &memory, "MB")
            .map(|figure| figure.target("<=300")),
    ];
    Ok(figures.into_iter().flatten().collect())
}

/// Starts the tasks, waits until they run, and removes them. Returns how many seconds they took, and how many
/// milliseconds each service that was created meanwhile.
async fn trial(
    site: &Site,
    fleet: &Arc<Fleet>,
    tasks: u32,
    number: usize,
    work: &mut Work,
) -> Result<(f64, Samples)> {
    let each = tasks.div_ceil(SERVICES);
    let sizes = (0..SERVICES).map(|at| each.min(tasks.saturating_sub(at * each))).filter(|size| *size > 0);
    let specs: Vec<ServiceSpec> =
        (0..).zip(sizes).map(|(at, size)| service(&format!("load-{number}-{at}"), size, &[])).collect();
    let front = &site.managers()[0];
    let (stop, stopped) = oneshot::channel();
    let began = Instant::now();
    let (running, probes) = tokio::join!(
        async {
            let running = started(site, front, &specs, tasks).await;
            let _ = stop.send(());
            running.map(|()| began.elapsed().as_secs_f64())
        },
        probe(site, fleet, number, stopped),
    );
    let (seconds, (probed, latencies)) = (running?, probes?);
    note(&work.since(site)?);
    for name in specs.iter().map(|spec| &spec.name).chain(&probed) {
        site.remove(front, name).await?;
    }
    Ok((seconds, latencies))
}

/// Creates the services and waits until all their tasks run.
async fn started(site: &Site, front: &str, specs: &[ServiceSpec], tasks: u32) -> Result<()> {
    for spec in specs {
        site.create(front, spec).await?;
    }
    let names: Vec<String> = specs.iter().map(|spec| spec.name.clone()).collect();
    let end = Instant::now() + PATIENCE;
    let mut client = site.client(front).await?;
    loop {
        let running: u32 = client.services(&names).await?.statuses.iter().map(|status| status.running).sum();
        if running >= tasks {
            return Ok(());
        }
        ensure!(Instant::now() < end, "{running} of {tasks} tasks run after {} s", PATIENCE.as_secs());
        tokio::time::sleep(LOOK).await;
    }
}

/// Creates one small service after the other, until it is told to stop. Returns their names, and how long each took.
async fn probe(
    site: &Site,
    fleet: &Fleet,
    number: usize,
    mut stop: oneshot::Receiver<()>,
) -> Result<(Vec<String>, Samples)> {
    let front = &site.managers()[0];
    let (mut names, mut latencies) = (Vec::new(), Samples::default());
    while stop.try_recv().is_err_and(|error| error == oneshot::error::TryRecvError::Empty) {
        let name = format!("probe-{number}-{}", names.len());
        let began = Instant::now();
        let known = fleet.expect(&name, PROBE);
        site.create(front, &service(&name, PROBE, &[])).await?;
        let known = tokio::time::timeout(PATIENCE, known).await.context("a small service is never placed")?;
        latencies.push(known.context("the nodes are gone")?.duration_since(began).as_secs_f64() * 1_000.0);
        names.push(name);
        tokio::time::sleep(PROBE_EVERY).await;
    }
    Ok((names, latencies))
}

/// Keeps tasks away from a real node.
async fn drain(site: &Site, name: &str) -> Result<()> {
    let request = pb::UpdateNodeRequest {
        node: site.id(name)?.into(),
        availability: Some(pb::Availability::Drain.into()),
        ..Default::default()
    };
    let mut client = site.client(&site.managers()[0]).await?;
    client.control.update_node(request).await.with_context(|| format!("cannot drain {name}"))?;
    Ok(())
}

/// What the processes of a cluster have done.
struct Work {
    ticks: BTreeMap<String, u64>,
}

impl Work {
    fn begun(site: &Site) -> Result<Self> {
        let mut ticks = BTreeMap::new();
        for name in site.managers() {
            ticks.insert(name.clone(), process::usage(site.daemon(name)?)?.ticks);
        }
        let own = i32::try_from(std::process::id()).context("a process has a number")?;
        ticks.insert("all other nodes".to_owned(), process::usage(own)?.ticks);
        Ok(Self { ticks })
    }

    /// The processor time of each since then, for people, and the memory of the managers.
    fn since(&self, site: &Site) -> Result<String> {
        let now = Self::begun(site)?;
        let mut words = Vec::new();
        for (name, ticks) in &now.ticks {
            let seconds = (ticks - self.ticks.get(name).unwrap_or(ticks)) as f64 / TICKS;
            let memory = match site.daemon(name) {
                Ok(pid) => format!(" and {:.0} MB", process::usage(pid)?.rss_bytes as f64 / 1e6),
                Err(_) => String::new(),
            };
            words.push(format!("{name} {seconds:.1} s{memory}"));
        }
        Ok(format!("processor time: {}", words.join(", ")))
    }
}
