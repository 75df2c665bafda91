//! How long nothing can be written when the leader goes: killed, powered off, or asked to end.
//!
//! Writes flow steadily through the other managers. What counts is the longest time between two acknowledged
//! ones, which is at most one interval longer than the time from the cut to the next.

use super::figure::{Figure, Of, Samples};
use super::load::{Stream, gap};
use super::{note, site::Site};
use anyhow::{Context, Result};
use rswarm_chaos::lab::Lab;
use std::time::{Duration, Instant};

/// How long writes may fail before the cluster is given up.
const PATIENCE: Duration = Duration::from_secs(60);
/// What a whole cluster is left alone for before it is broken again.
const REST: Duration = Duration::from_millis(500);

/// How a leader goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// `kill -9` of its daemon; its kernel closes the connections.
    Killed,
    /// Its cable goes dead, and nobody is told.
    Off,
    /// SIGTERM of its daemon, which hands over.
    Asked,
}

/// Measures all three, `trials` times each.
pub async fn run(site: &Site, trials: usize) -> Result<Vec<Figure>> {
    let mut figures = Vec::new();
    for (end, words) in [
        (End::Killed, "kill -9 of the leader"),
        (End::Off, "power off of the leader"),
        (End::Asked, "SIGTERM of the leader"),
    ] {
        let (mut gaps, mut refused) = (Samples::default(), Samples::default());
        for number in 1..=trials {
            let (gap, failed) = trial(site, end).await.with_context(|| format!("{words}, trial {number}"))?;
            note(&format!("{words}, {number} of {trials}: no write for {gap:.0} ms, {failed} refused"));
            gaps.push(gap);
            refused.push(failed as f64);
        }
        let of = |goal, what, of, target: Option<&'static str>| {
            let figure = Figure::new(goal, what, of, &gaps, "ms");
            figure.map(|figure| target.map_or(figure.clone(), |target| figure.target(target)))
        };
        let new = match end {
            End::Killed => [
                of("raft.failover.p50_ms", "leader killed: time without a write", Of::Median, Some("<=1000")),
                of("raft.failover.p99_ms", "the same, the slowest", Of::P99, None),
            ],
            End::Off => [
                of("raft.failover.off.p50_ms", "leader powered off: time without a write", Of::Median, None),
                of("raft.failover.off.p99_ms", "the same, the slowest", Of::P99, None),
            ],
            End::Asked => [
                of(
                    "raft.handover.gap_ms",
                    "leader asked to end: time without a write",
                    Of::Median,
                    Some("<=50"),
                ),
                Figure::new(
                    "raft.handover.refused",
                    "writes refused meanwhile, of all trials",
                    Of::Sum,
                    &refused,
                    "count",
                ),
            ],
        };
        figures.extend(new.into_iter().flatten());
    }
    Ok(figures)
}

/// Milliseconds without a write, and how many writes were refused.
async fn trial(site: &Site, end: End) -> Result<(f64, usize)> {
    let leader = site.whole().await?;
    tokio::time::sleep(REST).await;
    let mut clients = Vec::new();
    for survivor in site.managers().iter().filter(|name| **name != leader) {
        clients.push(site.client(survivor).await?);
    }
    let stream = Stream::writes(clients, site.id(site.worker())?.to_owned());
    stream.flows(Instant::now(), 50, PATIENCE).await.context("before the cut")?;

    let cut = Instant::now();
    site.with(&leader, move |lab, leader| match end {
        End::Killed => lab.daemon_kill(leader),
        End::Off => lab.kill(leader),
        End::Asked => lab.daemon_stop(leader),
    })
    .await?;
    stream.flows(Instant::now(), 50, PATIENCE).await.context("after the cut")?;

    let shots = stream.shots();
    for (words, count) in stream.errors() {
        note(&format!("refused {count} times: {words}"));
    }
    drop(stream);
    let start = if end == End::Off { Lab::start } else { Lab::daemon_start };
    site.with(&leader, start).await?;
    let gap = gap(&shots, cut).context("nothing was written after the cut")?;
    let refused = shots.iter().filter(|shot| !shot.ok && shot.done >= cut).count();
    Ok((gap.as_secs_f64() * 1000.0, refused))
}
