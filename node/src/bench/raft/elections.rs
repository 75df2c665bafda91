//! Whether a cluster that is left alone keeps its leader while the machine has no time for it.

use super::cluster::{Cluster, MEMBERS, Make};
use super::load::steady;
use super::{Scratch, machine, note};
use crate::bench::figure::{Figure, Of, Samples};
use crate::bench::load::gap;
use anyhow::{Context, Result};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Writes a second meanwhile.
const RATE: u32 = 100;
/// Between two looks at the members.
const LOOK: Duration = Duration::from_secs(5);

/// Watches for so long, while `hogs` threads for each processor do nothing but take time.
///
/// # Errors
/// If a cluster cannot be started.
pub async fn run(seconds: u64, hogs: usize) -> Result<Vec<Figure>> {
    let scratch = Scratch::new()?;
    for fact in machine::facts(&scratch.0)? {
        note(&fact);
    }
    let me = std::env::current_exe().context("cannot find this program")?;
    let mut cluster = Cluster::start(Make::Rswarm, &me, &scratch.0).await?;
    let first = terms(&mut cluster).await?;
    let _hogs = Hogs::start(hogs);
    let writes = steady(cluster.channels(8).await?, RATE);
    let (idle, began) = (idle_ticks()?, Instant::now());
    let end = began + Duration::from_secs(seconds);
    let mut last = first;
    while Instant::now() < end {
        tokio::time::sleep(LOOK.min(end.saturating_duration_since(Instant::now()))).await;
        let now = terms(&mut cluster).await?;
        if now != last {
            note(&format!("after {:.0} s: term {now} instead of {last}", began.elapsed().as_secs_f64()));
            last = now;
        }
    }
    let spent = began.elapsed().as_secs_f64();
    let processors = std::thread::available_parallelism().map_or(1, usize::from) as f64;
    // A tick is a hundredth of a second wherever Linux runs today.
    let busy = 100.0 - (idle_ticks()?.saturating_sub(idle)) as f64 / (spent * processors);
    let (shots, errors) = (writes.shots(), writes.errors());
    drop(writes);
    for (words, count) in errors {
        note(&format!("failed {count} times: {words}"));
    }
    let answered: Samples = shots
        .iter()
        .filter(|shot| shot.ok)
        .map(|shot| (shot.done - shot.sent).as_secs_f64() * 1000.0)
        .collect();
    let failed = shots.iter().filter(|shot| !shot.ok).count();
    let longest = gap(&shots, began).context("nothing was written")?;
    let one = |value: f64| -> Samples { [value].into_iter().collect() };
    let figures = [
        Figure::new(
            "raft.elections.spurious",
            "changes of term that nobody needed",
            Of::Sum,
            &one((last - first) as f64),
            "count",
        )
        .map(|figure| figure.target("<=0")),
        Figure::new("raft.elections.watched_s", "how long that was watched", Of::Max, &one(spent), "s"),
        Figure::new("raft.elections.busy_percent", "how busy the processors were", Of::Max, &one(busy), "%"),
        Figure::new("raft.elections.write.p99_ms", "writes meanwhile", Of::P99, &answered, "ms"),
        Figure::new(
            "raft.elections.write.gap_ms",
            "the longest time without a write",
            Of::Max,
            &one(longest.as_secs_f64() * 1000.0),
            "ms",
        ),
        Figure::new(
            "raft.elections.write.failed",
            "writes that failed",
            Of::Sum,
            &one(failed as f64),
            "count",
        ),
    ];
    Ok(figures.into_iter().flatten().collect())
}

/// The latest term that a member is in.
async fn terms(cluster: &mut Cluster) -> Result<u64> {
    let mut latest = 0;
    for at in 0..MEMBERS {
        latest = latest.max(cluster.stand(at).await?.term);
    }
    Ok(latest)
}

/// For how long the processors have had nothing to do, all together, in clock ticks.
fn idle_ticks() -> Result<u64> {
    let stat = std::fs::read_to_string("/proc/stat").context("cannot read /proc/stat")?;
    idle_of(&stat).context("/proc/stat does not say how long the processors were idle")
}

/// Idle, and waiting for a disk.
fn idle_of(stat: &str) -> Option<u64> {
    let line = stat.lines().find_map(|line| line.strip_prefix("cpu "))?;
    let mut fields = line.split_whitespace().skip(3).map(str::parse::<u64>);
    Some(fields.next()?.ok()? + fields.next()?.ok()?)
}

/// Threads that keep all processors busy, until this is dropped.
struct Hogs(Arc<AtomicBool>);

impl Hogs {
    fn start(each: usize) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let count = each * std::thread::available_parallelism().map_or(1, usize::from);
        for _ in 0..count {
            let stop = stop.clone();
            std::thread::spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    std::hint::spin_loop();
                }
            });
        }
        Self(stop)
    }
}

impl Drop for Hogs {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn idle_time_is_that_of_all_processors() {
        let stat = "cpu  10 20 30 400 5 0 0 0 0 0\ncpu0 5 10 15 200 2 0 0 0 0 0\nintr 1\n";
        assert_eq!(idle_of(stat), Some(405));
        assert_eq!(idle_of("intr 1\n"), None);
    }
}
