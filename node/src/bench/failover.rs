//! How long nothing can be written when the leader goes: killed, powered off, or asked to end.
//!
//! Writes and reads flow steadily through the other managers. What counts is the longest time between two acknowledged
//! writes, which is at most one interval longer than the time from the cut to the next; and that nothing that was
//! acknowledged is missing afterwards, and nothing was read that could not have been.

use super::figure::{Figure, Of, Samples};
use super::load::{Stream, gap, marked};
use super::{note, site::Site};
use anyhow::{Context, Result, ensure};
use rswarm_chaos::drill::History;
use rswarm_chaos::lab::Lab;
use rswarm_proto::v1 as pb;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How long writes may fail before the cluster is given up.
const PATIENCE: Duration = Duration::from_secs(60);
/// What a whole cluster is left alone for before it is broken again.
const REST: Duration = Duration::from_millis(500);

/// What the labels begin with that are written.
const MARK: &str = "bench-";

/// How a leader goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// `kill -9` of its daemon; its kernel closes the connections.
    Killed,
    /// Its cable goes dead, and nobody is told.
    Off,
    /// SIGTERM of its daemon, which hands over.
    Asked,
}

impl End {
    /// All there are.
    pub const ALL: &[Self] = &[Self::Killed, Self::Off, Self::Asked];

    fn words(self) -> &'static str {
        match self {
            Self::Killed => "kill -9 of the leader",
            Self::Off => "power off of the leader",
            Self::Asked => "SIGTERM of the leader",
        }
    }
}

/// What one leader's end cost.
struct Trial {
    /// Milliseconds without a write.
    gap: f64,
    /// Writes that got an error.
    refused: usize,
    /// Writes that were acknowledged.
    acknowledged: usize,
    /// Those of them that were not there afterwards.
    lost: usize,
    /// Answers that no order of the writes explains.
    impossible: usize,
    /// The label that stays, so that it can be looked for in the end.
    kept: String,
}

/// What became of all that was written.
#[derive(Default)]
struct Account {
    acknowledged: Samples,
    lost: Samples,
    impossible: Samples,
    kept: BTreeSet<String>,
}

impl Account {
    fn note(&mut self, trial: Trial) {
        self.acknowledged.push(trial.acknowledged as f64);
        self.lost.push(trial.lost as f64);
        self.impossible.push(trial.impossible as f64);
        self.kept.insert(trial.kept);
    }

    fn figures(&self) -> impl Iterator<Item = Figure> {
        let count = |goal, what, samples| Figure::new(goal, what, Of::Sum, samples, "count");
        let lost =
            count("raft.leader_loss.lost", "acknowledged writes that were lost, all trials", &self.lost);
        let impossible = count(
            "raft.leader_loss.not_linearizable",
            "answers that no order of the writes explains, all trials",
            &self.impossible,
        );
        let acknowledged =
            count("raft.leader_loss.acknowledged", "writes that were acknowledged", &self.acknowledged);
        let none = |figure: Option<Figure>| figure.map(|figure| figure.target("<=0"));
        [none(lost), none(impossible), acknowledged].into_iter().flatten()
    }
}

/// Lets the leader end in each of these ways, `trials` times each.
pub async fn run(site: &Site, ends: &[End], trials: usize) -> Result<Vec<Figure>> {
    let (mut figures, mut account) = (Vec::new(), Account::default());
    for end in ends {
        let words = end.words();
        let (mut gaps, mut refused) = (Samples::default(), Samples::default());
        for number in 1..=trials {
            let mark = format!("{MARK}{end:?}-{number}-").to_lowercase();
            let trial = trial(site, *end, &mark).await.with_context(|| format!("{words}, trial {number}"))?;
            note(&format!(
                "{words}, {number} of {trials}: no write for {:.0} ms, {} acknowledged, {} refused, {} lost, {} not \
                 linearizable",
                trial.gap, trial.acknowledged, trial.refused, trial.lost, trial.impossible
            ));
            gaps.push(trial.gap);
            refused.push(trial.refused as f64);
            account.note(trial);
        }
        figures.extend(figures_of(*end, &gaps, &refused));
    }
    let there = read(site, MARK).await.context("in the end")?;
    let gone = account.kept.difference(&there).count();
    if gone > 0 {
        note(&format!("{gone} labels were there after their trial, and are gone in the end"));
    }
    account.lost.push(gone as f64);
    figures.extend(account.figures());
    Ok(figures)
}

fn figures_of(end: End, gaps: &Samples, refused: &Samples) -> impl Iterator<Item = Figure> + use<> {
    let of = |goal, what, of, target: Option<&'static str>| {
        let figure = Figure::new(goal, what, of, gaps, "ms");
        figure.map(|figure| target.map_or(figure.clone(), |target| figure.target(target)))
    };
    let new = match end {
        End::Killed => [
            of("raft.failover.p50_ms", "leader killed: time without a write", Of::Median, Some("<=750")),
            of("raft.failover.p99_ms", "the same, the slowest of a hundred", Of::P99, Some("<=1000")),
        ],
        End::Off => [
            of("raft.failover.off.p50_ms", "leader powered off: time without a write", Of::Median, None),
            of("raft.failover.off.p99_ms", "the same, the slowest of a hundred", Of::P99, None),
        ],
        End::Asked => [
            of("raft.handover.gap_ms", "leader asked to end: time without a write", Of::Median, Some("<=50")),
            Figure::new(
                "raft.handover.refused",
                "writes refused meanwhile, of all trials",
                Of::Sum,
                refused,
                "count",
            ),
        ],
    };
    new.into_iter().flatten()
}

async fn trial(site: &Site, end: End, mark: &str) -> Result<Trial> {
    let leader = site.whole().await?;
    tokio::time::sleep(REST).await;
    let mut clients = Vec::new();
    for survivor in site.managers().iter().filter(|name| **name != leader) {
        clients.push(site.client(survivor).await?);
    }
    let nodes: Vec<String> =
        site.names().iter().map(|name| site.id(name).map(str::to_owned)).collect::<Result<_>>()?;
    let history = Arc::new(History::default());
    let writes = Stream::writes(clients.clone(), nodes.clone(), mark.to_owned(), history.clone());
    let reads = Stream::reads(clients, mark.to_owned(), history.clone());
    writes.flows(Instant::now(), 50, PATIENCE).await.context("before the cut")?;

    let cut = Instant::now();
    site.with(&leader, move |lab, leader| match end {
        End::Killed => lab.daemon_kill(leader),
        End::Off => lab.kill(leader),
        End::Asked => lab.daemon_stop(leader),
    })
    .await?;
    writes.flows(Instant::now(), 50, PATIENCE).await.context("after the cut")?;
    reads.flows(Instant::now(), 5, PATIENCE).await.context("reads after the cut")?;

    let shots = writes.shots();
    for (words, count) in writes.errors().into_iter().chain(reads.errors()) {
        note(&format!("refused {count} times: {words}"));
    }
    drop((writes, reads));
    let start = if end == End::Off { Lab::start } else { Lab::daemon_start };
    site.with(&leader, start).await?;
    let gap = gap(&shots, cut).context("nothing was written after the cut")?;

    let (acknowledged, seen) = history.counts();
    ensure!(seen > 0, "nothing was read");
    let last = read(site, mark).await.context("after the trial")?;
    let lost = history.lost(&last);
    let impossible = history.violations();
    for words in lost.iter().map(|name| format!("lost: {name}")).chain(impossible.clone()) {
        note(&words);
    }
    let kept = history.newest().context("nothing was acknowledged")?;
    forget(site, &nodes, mark, &kept).await?;
    Ok(Trial {
        gap: gap.as_secs_f64() * 1000.0,
        refused: shots.iter().filter(|shot| !shot.ok && shot.done >= cut).count(),
        acknowledged,
        lost: lost.len(),
        impossible: impossible.len(),
        kept,
    })
}

/// The labels that begin with `mark`, as the whole cluster has them.
async fn read(site: &Site, mark: &str) -> Result<BTreeSet<String>> {
    let mut client = site.client(&site.whole().await?).await?;
    Ok(marked(&client.nodes().await?.nodes, mark))
}

/// Takes the labels away again that begin with `mark`, but for one, so that nodes do not grow from trial to trial.
async fn forget(site: &Site, nodes: &[String], mark: &str, kept: &str) -> Result<()> {
    let mut client = site.client(&site.whole().await?).await?;
    let known = client.nodes().await?.nodes;
    for id in nodes {
        let node: Vec<pb::Node> = known.iter().filter(|node| node.id == *id).cloned().collect();
        let labels_rm = marked(&node, mark).into_iter().filter(|label| label != kept).collect();
        let request = pb::UpdateNodeRequest { node: id.clone(), labels_rm, ..Default::default() };
        client.control.update_node(request).await.context("cannot take labels away")?;
    }
    Ok(())
}
