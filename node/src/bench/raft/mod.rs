//! The replicated log beside etcd: three members each on loopback, the same client, every write synced, certificates
//! on both sides. The two are measured in turn, and what counts is the ratio within a round.

mod cluster;
pub mod elections;
pub mod join;
mod kv;
mod load;
pub mod member;
mod order;

use super::figure::{Figure, Of, Samples};
use super::{machine, note};
use anyhow::{Context, Result};
use cluster::{Cluster, Make};
use load::{Act, Outcome, Window};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// What counts of each measurement, and what comes before.
const WINDOW: Window = Window { warm: Duration::from_millis(500), counted: Duration::from_secs(2) };
/// Writers within the leader's process.
const WITHIN: usize = 256;

/// One thing that is measured of both.
struct Shape {
    act: Act,
    clients: usize,
    words: &'static str,
    ratio: &'static str,
    target: &'static str,
    ours: &'static str,
    theirs: &'static str,
}

const SHAPES: [Shape; 4] = [
    Shape {
        act: Act::Write,
        clients: 1,
        words: "writes, 1 client",
        ratio: "raft.write.ratio.c1",
        target: ">=1.2",
        ours: "raft.write.per_s.c1",
        theirs: "etcd.write.per_s.c1",
    },
    Shape {
        act: Act::Write,
        clients: 64,
        words: "writes, 64 clients",
        ratio: "raft.write.ratio.c64",
        target: ">=2.2",
        ours: "raft.write.per_s.c64",
        theirs: "etcd.write.per_s.c64",
    },
    Shape {
        act: Act::Write,
        clients: 256,
        words: "writes, 256 clients",
        ratio: "raft.write.ratio.c256",
        target: ">=2.5",
        ours: "raft.write.per_s.c256",
        theirs: "etcd.write.per_s.c256",
    },
    Shape {
        act: Act::Read,
        clients: 64,
        words: "linearizable reads at the leader, 64 clients",
        ratio: "raft.read.ratio.c64",
        target: ">=2.2",
        ours: "raft.read.per_s.c64",
        theirs: "etcd.read.per_s.c64",
    },
];

/// Both rates of each round, and how they compare.
#[derive(Default)]
struct Pair {
    ours: Samples,
    theirs: Samples,
    ratio: Samples,
}

impl Pair {
    fn note(&mut self, ours: &Outcome, theirs: Option<&Outcome>) {
        self.ours.push(ours.per_second);
        if let Some(theirs) = theirs.filter(|theirs| theirs.per_second > 0.0) {
            self.theirs.push(theirs.per_second);
            self.ratio.push(ours.per_second / theirs.per_second);
        }
    }
}

/// What is removed when the benchmark ends, however it does.
pub struct Scratch(pub PathBuf);

impl Scratch {
    /// An empty directory.
    ///
    /// # Errors
    /// If it cannot be created.
    pub fn new() -> Result<Self> {
        // Where files outlive a restart, so a sync is one.
        let base = Path::new("/var/tmp");
        let base = if base.is_dir() { base.to_owned() } else { std::env::temp_dir() };
        let path = base.join(format!("rswarm-bench-raft-{}", std::process::id()));
        std::fs::create_dir(&path).with_context(|| format!("cannot create {}", path.display()))?;
        Ok(Self(path))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Measures `rounds` times.
///
/// # Errors
/// If a cluster cannot be started or loses its leader while it is measured.
pub async fn run(rounds: usize) -> Result<Vec<Figure>> {
    let scratch = Scratch::new()?;
    for fact in machine::facts(&scratch.0)? {
        note(&fact);
    }
    let me = std::env::current_exe().context("cannot find this program")?;
    let etcd = find_etcd();
    let mut ours = Cluster::start(Make::Rswarm, &me, &scratch.0).await?;
    let theirs = match &etcd {
        Some(etcd) => Some((
            Cluster::start(Make::EtcdTls, etcd, &scratch.0).await?,
            Cluster::start(Make::EtcdPlain, etcd, &scratch.0).await?,
        )),
        None => None,
    };

    let mut pairs: [Pair; SHAPES.len()] = Default::default();
    let mut within = Pair::default();
    for round in 1..=rounds {
        for (shape, pair) in SHAPES.iter().zip(&mut pairs) {
            // Who goes first changes, so that neither has always the warmer or the more tired machine.
            let second = match (&theirs, round % 2) {
                (Some((secure, _)), 0) => Some(measure(secure, shape.act, shape.clients).await?),
                _ => None,
            };
            let first = measure(&ours, shape.act, shape.clients).await?;
            let second = match (&theirs, second) {
                (Some((secure, _)), None) => Some(measure(secure, shape.act, shape.clients).await?),
                (_, second) => second,
            };
            tell(round, shape.words, &first, second.as_ref());
            pair.note(&first, second.as_ref());
        }
        let second = match &theirs {
            Some((_, plain)) => Some(measure(plain, Act::Write, WITHIN).await?),
            None => None,
        };
        let first = ours.propose(WITHIN, WINDOW).await?;
        tell(
            round,
            "writes, 256 writers within the leader beside etcd in the clear",
            &first,
            second.as_ref(),
        );
        within.note(&first, second.as_ref());
    }
    Ok(figures(&pairs, &within))
}

async fn measure(cluster: &Cluster, act: Act, clients: usize) -> Result<Outcome> {
    load::over(&cluster.channels(clients).await?, act, clients, WINDOW).await
}

fn tell(round: usize, words: &str, ours: &Outcome, theirs: Option<&Outcome>) {
    let one = |outcome: &Outcome| {
        let failed = match outcome.failed {
            0 => String::new(),
            failed => format!(", {failed} FAILED"),
        };
        let Outcome { per_second, p50_ms, p99_ms, .. } = outcome;
        format!("{per_second:.0}/s (p50 {p50_ms:.2} ms, p99 {p99_ms:.2} ms{failed})")
    };
    let theirs = theirs.map_or_else(|| "not measured".into(), one);
    note(&format!("round {round}, {words}: rswarm {}, etcd {theirs}", one(ours)));
}

fn figures(pairs: &[Pair], within: &Pair) -> Vec<Figure> {
    let median = |goal, words, samples: &Samples, unit| Figure::new(goal, words, Of::Median, samples, unit);
    let mut figures = Vec::new();
    for (shape, pair) in SHAPES.iter().zip(pairs) {
        let ratio = median(shape.ratio, shape.words, &pair.ratio, "x");
        figures.extend(ratio.map(|figure| figure.target(shape.target)));
        figures.extend(median(shape.ours, "rswarm", &pair.ours, "/s"));
        figures.extend(median(shape.theirs, "etcd", &pair.theirs, "/s"));
    }
    let ratio = median(
        "raft.inproc.ratio.c256",
        "writes, 256 writers within the leader, beside etcd in the clear",
        &within.ratio,
        "x",
    );
    figures.extend(ratio.map(|figure| figure.target(">=6")));
    figures.extend(median("raft.inproc.per_s.c256", "rswarm", &within.ours, "/s"));
    figures.extend(median("etcd.plain.write.per_s.c256", "etcd", &within.theirs, "/s"));
    figures
}

/// Where etcd is, if it is installed; says which, or that it is not.
fn find_etcd() -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let Some(etcd) = std::env::split_paths(&path).map(|at| at.join("etcd")).find(|at| at.is_file()) else {
        note("etcd: not measured (not installed; on Debian: apt-get install etcd-server)");
        return None;
    };
    let version = Command::new(&etcd).arg("--version").output().ok();
    let version = version.map(|output| String::from_utf8_lossy(&output.stdout).into_owned());
    let first = version.as_deref().and_then(|text| text.lines().next()).unwrap_or("of unknown version");
    note(&format!("etcd: {} ({first}), three members with its default settings", etcd.display()));
    Some(etcd)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome(per_second: f64) -> Outcome {
        Outcome { per_second, ..Outcome::default() }
    }

    #[test]
    fn what_counts_is_the_ratio_within_a_round() {
        let mut pairs: [Pair; SHAPES.len()] = Default::default();
        for (ours, theirs) in [(30.0, 10.0), (8.0, 4.0), (100.0, 10.0)] {
            pairs[0].note(&outcome(ours), Some(&outcome(theirs)));
        }
        let figures = figures(&pairs, &Pair::default());
        let ratio = &figures[0];
        assert_eq!((ratio.goal, ratio.value, ratio.n), ("raft.write.ratio.c1", 3.0, 3));
        assert_eq!(ratio.met(), Some(true));
    }

    #[test]
    fn without_etcd_there_are_rates_and_no_ratios() {
        let mut pairs: [Pair; SHAPES.len()] = Default::default();
        pairs[2].note(&outcome(5.0), None);
        let figures = figures(&pairs, &Pair::default());
        let goals: Vec<&str> = figures.iter().map(|figure| figure.goal).collect();
        assert_eq!(goals, ["raft.write.per_s.c256"]);
    }
}
