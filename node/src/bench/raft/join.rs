//! What it costs a cluster to take in a manager that lacks everything: the state has outgrown the log, so it comes as
//! a snapshot, while clients go on writing.

use super::cluster::{Cluster, Make, NEWCOMER};
use super::load::steady;
use super::order::{Order, Stand};
use super::{Scratch, machine, note};
use crate::bench::figure::{Figure, Of, Samples};
use crate::bench::load::{Shot, gap};
use crate::bench::process::{peak_bytes, usage};
use anyhow::{Context, Result, ensure};
use std::time::{Duration, Instant};

/// How large the state is: 200 MB.
const KEYS: u64 = 200_000;
/// Bytes of a value.
const VALUE: usize = 1000;
/// Writes a second meanwhile.
const RATE: u32 = 1000;
/// How long clients write before the newcomer is let in, for comparison, and afterwards.
const CALM: Duration = Duration::from_secs(3);
/// How long it may take until all have applied the same.
const SETTLE: Duration = Duration::from_secs(20);

/// Measures `trials` times, each on a cluster of its own.
///
/// # Errors
/// If a cluster cannot be started, or does not take the newcomer in.
pub async fn run(trials: usize) -> Result<Vec<Figure>> {
    let scratch = Scratch::new()?;
    for fact in machine::facts(&scratch.0)? {
        note(&fact);
    }
    let mut found = Found::default();
    for number in 1..=trials {
        let dir = scratch.0.join(number.to_string());
        trial(&dir, &mut found).await.with_context(|| format!("trial {number}"))?;
        // Each leaves most of a gigabyte.
        std::fs::remove_dir_all(&dir).with_context(|| format!("cannot remove {}", dir.display()))?;
    }
    Ok(found.figures())
}

/// What was measured.
#[derive(Default)]
struct Found {
    seconds: Samples,
    elections: Samples,
    before_p99: Samples,
    p50: Samples,
    p99: Samples,
    worst: Samples,
    gap: Samples,
    failed: Samples,
    grown: Samples,
    newcomer: Samples,
}

impl Found {
    fn figures(&self) -> Vec<Figure> {
        let of = |goal, what, of, samples: &Samples, unit| Figure::new(goal, what, of, samples, unit);
        let median = |goal, what, samples: &Samples, unit| of(goal, what, Of::Median, samples, unit);
        let elections =
            of("raft.join.elections", "changes of term meanwhile", Of::Sum, &self.elections, "count");
        [
            median("raft.join.s", "200 MB, 1,000 writes/s: until the newcomer votes", &self.seconds, "s"),
            elections.map(|figure| figure.target("<=0")),
            of("raft.join.write.failed", "writes that failed meanwhile", Of::Sum, &self.failed, "count"),
            median("raft.join.write.p50_ms", "writes meanwhile", &self.p50, "ms"),
            median("raft.join.write.p99_ms", "writes meanwhile", &self.p99, "ms"),
            median("raft.join.write.before_p99_ms", "the same before", &self.before_p99, "ms"),
            of("raft.join.write.max_ms", "the slowest meanwhile", Of::Max, &self.worst, "ms"),
            of(
                "raft.join.write.gap_ms",
                "the longest time without a write meanwhile",
                Of::Max,
                &self.gap,
                "ms",
            ),
            of("raft.join.leader_grown_mb", "what the leader's peak rose by", Of::Max, &self.grown, "MB"),
            of("raft.join.newcomer_peak_mb", "the newcomer's peak", Of::Max, &self.newcomer, "MB"),
        ]
        .into_iter()
        .flatten()
        .collect()
    }
}

async fn trial(dir: &std::path::Path, found: &mut Found) -> Result<()> {
    let me = std::env::current_exe().context("cannot find this program")?;
    let mut cluster = Cluster::start(Make::Rswarm, &me, dir).await?;
    let leader = cluster.leader().await?;
    let filled = cluster.order(leader, &Order::Fill { keys: KEYS, bytes: VALUE }).await?;
    ensure!(filled == [0.0], "the state could not be written: {filled:?}");
    let full = settled(&mut cluster, 3).await?;
    ensure!(full.keys >= KEYS, "only {} keys are there", full.keys);

    let writes = steady(cluster.channels(64).await?, RATE);
    tokio::time::sleep(CALM).await;
    let pid = cluster.pid(leader).context("the leader has ended")?;
    let before = (usage(pid)?.rss_bytes, peak_bytes(pid)?);
    let addr = cluster.newcomer(&me, dir)?;
    let began = Instant::now();
    let took = cluster.order(leader, &Order::Add { number: NEWCOMER + 1, addr }).await?;
    let ended = Instant::now();
    let after = peak_bytes(pid)?;
    tokio::time::sleep(CALM).await;
    let (shots, errors) = (writes.shots(), writes.errors());
    drop(writes);
    for (words, count) in errors {
        note(&format!("failed {count} times: {words}"));
    }

    let now = settled(&mut cluster, 4).await?;
    let newcomer = cluster.stand(NEWCOMER).await?;
    ensure!(newcomer.snapshot > 0, "the newcomer got by without a snapshot: {newcomer:?}");
    ensure!(newcomer.keys == now.keys, "the newcomer has {} keys of {}", newcomer.keys, now.keys);
    let elections = now.term.saturating_sub(full.term);
    let took = took.first().copied().unwrap_or_default() / 1000.0;
    let millis = |shots: &[&Shot]| -> Samples {
        shots.iter().map(|shot| (shot.done - shot.sent).as_secs_f64() * 1000.0).collect()
    };
    let within = |from: Instant, to: Instant| -> Vec<&Shot> {
        shots.iter().filter(|shot| shot.ok && shot.sent >= from && shot.sent < to).collect()
    };
    let calm = millis(&within(began - CALM, began));
    let during = millis(&within(began, ended));
    let at = |samples: &Samples, percent| samples.percentile(percent).unwrap_or_default();
    let busy: Vec<Shot> = shots.iter().filter(|shot| shot.sent < ended).copied().collect();
    let failed = shots.iter().filter(|shot| !shot.ok).count();
    note(&format!(
        "joined after {took:.2} s; {elections} elections; {} writes meanwhile, p50 {:.2} ms, p99 {:.2} ms, worst {:.0} \
         ms ({failed} failed); before: p99 {:.2} ms; leader {:.0} MB, at most {:.0} MB",
        during.count(),
        at(&during, 50),
        at(&during, 99),
        at(&during, 100),
        at(&calm, 99),
        before.0 as f64 / 1e6,
        after as f64 / 1e6,
    ));
    found.seconds.push(took);
    found.elections.push(elections as f64);
    found.before_p99.push(at(&calm, 99));
    found.p50.push(at(&during, 50));
    found.p99.push(at(&during, 99));
    found.worst.push(at(&during, 100));
    found.gap.push(gap(&busy, began).unwrap_or_default().as_secs_f64() * 1000.0);
    found.failed.push(failed as f64);
    found.grown.push(after.saturating_sub(before.1) as f64 / 1e6);
    let pid = cluster.pid(NEWCOMER).context("the newcomer has ended")?;
    found.newcomer.push(peak_bytes(pid)? as f64 / 1e6);
    Ok(())
}

/// Waits until so many members know of each other and have applied the same.
async fn settled(cluster: &mut Cluster, members: usize) -> Result<Stand> {
    let deadline = Instant::now() + SETTLE;
    loop {
        let mut stands = Vec::new();
        for at in 0..members {
            stands.push(cluster.stand(at).await?);
        }
        let first = stands[0];
        let alike = |stand: &Stand| {
            stand.voters == members as u64 && stand.applied == first.applied && stand.term == first.term
        };
        if first.leader > 0 && stands.iter().all(alike) {
            return Ok(first);
        }
        ensure!(Instant::now() < deadline, "the members do not come to the same: {stands:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
