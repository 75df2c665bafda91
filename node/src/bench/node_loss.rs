//! How long the tasks of a node that lost its power are missing, and what callers of the service notice.

use super::figure::{Figure, Of, Samples};
use super::load::Stream;
use super::{demo_service, note, site::Site};
use anyhow::{Context, Result, bail};
use rswarm_chaos::lab::Lab;
use rswarm_proto::v1 as pb;
use std::time::{Duration, Instant};

const SERVICE: &str = "bench-loss";
/// Where it is published, on every node.
const PORT: u16 = 8081;
/// Two to a node.
const REPLICAS: u32 = 8;
/// How long replacement may take before it is given up.
const PATIENCE: Duration = Duration::from_secs(90);
/// How long the API may take for one answer.
const CALL: Duration = Duration::from_millis(300);
/// How often the API is asked.
const ASK_EVERY: Duration = Duration::from_millis(5);
/// Requests are counted until so long after the last task was replaced.
const AFTERMATH: Duration = Duration::from_millis(500);
/// A request that took so long was slow.
const SLOW: Duration = Duration::from_millis(250);

/// Measures the loss of a worker `trials` times, and that of the leader half as often.
pub async fn run(site: &Site, trials: usize) -> Result<Vec<Figure>> {
    let mut spec = demo_service(SERVICE, REPLICAS);
    spec.endpoint.ports = vec![super::published(PORT, 80)];
    let leader = site.whole().await?;
    site.create(&leader, &spec).await?;
    site.runs(&leader, SERVICE, REPLICAS).await?;

    let (mut workers, mut leaders) = (Samples::default(), Samples::default());
    let (mut sent, mut failed, mut slow) = (0, Samples::default(), Samples::default());
    let leader_trials = trials.div_ceil(2);
    for number in 1..=trials + leader_trials {
        let of_leader = number > trials;
        let leader = site.whole().await?;
        site.scale(&leader, SERVICE, 0).await?;
        site.scale(&leader, SERVICE, REPLICAS).await?;
        let victim = if of_leader { leader.clone() } else { site.worker().to_owned() };
        let what = if of_leader { "the leader's node" } else { "a worker" };
        let trial = trial(site, &victim).await.with_context(|| format!("loss of {what}, trial {number}"))?;
        let (of, total) = if of_leader { (number - trials, leader_trials) } else { (number, trials) };
        note(&format!(
            "loss of {what}, {of} of {total}: replaced after {:.0} ms; of {} requests {} failed, {} slow",
            trial.replaced, trial.sent, trial.failed, trial.slow
        ));
        if of_leader {
            leaders.push(trial.replaced)
        } else {
            workers.push(trial.replaced)
        }
        sent += trial.sent;
        failed.push(trial.failed as f64);
        slow.push(trial.slow as f64);
    }
    site.remove(&site.whole().await?, SERVICE).await?;
    note(&format!("{sent} requests to the published port in all trials together"));

    let ms = |goal, what, of, samples: &Samples| Figure::new(goal, what, of, samples, "ms");
    let count = |goal, what, samples: &Samples| Figure::new(goal, what, Of::Sum, samples, "count");
    let figures = [
        ms("node.loss.p50_ms", "worker powered off: until its tasks run elsewhere", Of::Median, &workers)
            .map(|figure| figure.target("<=3000")),
        ms("node.loss.p99_ms", "the same, the slowest", Of::P99, &workers),
        ms("node.loss.leader.p50_ms", "the leader's node powered off: the same", Of::Median, &leaders)
            .map(|figure| figure.target("<=4000")),
        ms("node.loss.leader.p99_ms", "the same, the slowest", Of::P99, &leaders),
        count("published.failed_on_node_loss", "requests to the survivors that failed, all trials", &failed),
        count("published.slow_on_node_loss", "requests that took over 250 ms, all trials", &slow),
    ];
    Ok(figures.into_iter().flatten().collect())
}

struct Trial {
    /// Milliseconds from the cut until as many tasks run elsewhere as are wanted.
    replaced: f64,
    sent: usize,
    failed: usize,
    slow: usize,
}

async fn trial(site: &Site, victim: &str) -> Result<Trial> {
    let survivors: Vec<&String> = site.names().iter().filter(|name| *name != victim).collect();
    let addresses = survivors.iter().map(|name| site.address(name)).collect::<Result<_>>()?;
    let mut clients = Vec::new();
    for name in survivors.iter().filter(|name| site.managers().contains(name)) {
        clients.push(site.client(name).await?);
    }
    let lost = site.id(victim)?.to_owned();
    let request = pb::ListTasksRequest { services: vec![SERVICE.into()], ..Default::default() };
    let tasks = clients[0].tasks(request.clone()).await?.tasks;
    if !tasks.iter().any(|task| task.node == lost && task.observed() == pb::Observed::Running) {
        bail!("no task runs on {victim}");
    }
    let stream = Stream::requests(addresses, PORT);
    stream.flows(Instant::now(), 10, PATIENCE).await.context("before the cut")?;

    let mut replaced = tokio::task::JoinSet::new();
    let cut = Instant::now();
    for mut client in clients {
        let (request, lost) = (request.clone(), lost.clone());
        replaced.spawn(async move {
            loop {
                if let Ok(Ok(list)) = tokio::time::timeout(CALL, client.tasks(request.clone())).await {
                    let runs =
                        |task: &&pb::Task| task.observed() == pb::Observed::Running && task.node != lost;
                    if list.tasks.iter().filter(runs).count() >= REPLICAS as usize {
                        return Instant::now();
                    }
                }
                tokio::time::sleep(ASK_EVERY).await;
            }
        });
    }
    site.with(victim, Lab::kill).await?;
    let first = tokio::time::timeout(PATIENCE, replaced.join_next()).await;
    let first = first.ok().flatten().with_context(|| format!("not replaced in {} s", PATIENCE.as_secs()))?;
    let at = first.context("a poller has panicked")?;
    drop(replaced);

    tokio::time::sleep(AFTERMATH).await;
    let end = Instant::now();
    // Those under way get their time.
    tokio::time::sleep(Duration::from_secs(3)).await;
    let shots = stream.shots();
    for (words, count) in stream.errors() {
        note(&format!("failed {count} times: {words}"));
    }
    drop(stream);
    site.with(victim, Lab::start).await?;
    let counted = || shots.iter().filter(|shot| shot.done >= cut && shot.sent <= end);
    Ok(Trial {
        replaced: at.duration_since(cut).as_secs_f64() * 1000.0,
        sent: counted().count(),
        failed: counted().filter(|shot| !shot.ok).count(),
        slow: counted().filter(|shot| shot.ok && shot.done - shot.sent > SLOW).count(),
    })
}
