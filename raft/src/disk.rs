//! How the disks of the managers fare, and when a leader leaves its place to one whose disk fares better.

use std::collections::{BTreeMap, VecDeque};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use tokio::time::Instant;

use crate::RaftId;

/// How a manager's disk fares.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Disk {
    /// There is no room for the next segment of the log.
    pub full: bool,
    /// How long the sync that is under way has lasted.
    pub waiting: Duration,
    /// The median of the last syncs.
    pub median: Duration,
}

/// Where there is no room, and how much there would have to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Full {
    /// The directory of the log.
    pub dir: PathBuf,
    /// The bytes that do not fit.
    pub wanted: u64,
}

/// A leader whose sync lasts for so long hands over.
const STALL: Duration = Duration::from_secs(1);
/// A leader whose syncs usually take less is quick enough, whatever others manage.
const SLOW: Duration = Duration::from_millis(50);
/// By how much another must be faster to be worth a change.
const FASTER: u32 = 4;
/// How long a leader stays before it leaves because it is slow.
const TERM: Duration = Duration::from_secs(10);

/// Whom a leader that has led for so long should hand over to, given the voters that it hears. It never goes to one
/// that would hand back: a successor's disk has room, is not stuck, and if slowness is the reason, is faster by far.
pub(crate) fn successor(mine: Disk, others: &BTreeMap<RaftId, Disk>, led: Duration) -> Option<RaftId> {
    let able = others.iter().filter(|(_, disk)| !disk.full && disk.waiting < STALL / 2);
    let (best, disk) = able.min_by_key(|(_, disk)| disk.median)?;
    let much_faster = disk.median * FASTER <= mine.median;
    let slow = mine.median >= SLOW && much_faster && led >= TERM;
    (mine.full || mine.waiting >= STALL || slow).then_some(*best)
}

/// How many syncs the median is of.
const SYNCS: usize = 15;

/// What the writer of the log notes of its disk; clones share it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Gauge(Arc<Mutex<Reading>>);

#[derive(Debug, Default)]
struct Reading {
    syncing: Option<Instant>,
    last: VecDeque<Duration>,
    full: Option<Full>,
}

impl Gauge {
    /// A sync begins, unless one is under way.
    pub(crate) fn begin(&self) {
        self.reading().syncing.get_or_insert_with(Instant::now);
    }

    /// It ended.
    pub(crate) fn end(&self) {
        let mut reading = self.reading();
        let Some(since) = reading.syncing.take() else { return };
        if reading.last.len() == SYNCS {
            reading.last.pop_front();
        }
        reading.last.push_back(since.elapsed());
    }

    /// There is no room for so many bytes; says so once.
    pub(crate) fn fill(&self, dir: &Path, wanted: u64) {
        let mut reading = self.reading();
        if reading.full.is_none() {
            tracing::error!(dir = %dir.display(), wanted, "no space left for the log; nothing new is taken until there is");
            reading.full = Some(Full { dir: dir.to_owned(), wanted });
        }
    }

    /// There is room.
    pub(crate) fn clear(&self) {
        if let Some(full) = self.reading().full.take() {
            tracing::info!(dir = %full.dir.display(), "there is space for the log again");
        }
    }

    /// Where there is no room.
    pub(crate) fn full(&self) -> Option<Full> {
        self.reading().full.clone()
    }

    /// How it fares now.
    pub(crate) fn disk(&self) -> Disk {
        let reading = self.reading();
        let mut last: Vec<Duration> = reading.last.iter().copied().collect();
        last.sort_unstable();
        Disk {
            full: reading.full.is_some(),
            waiting: reading.syncing.map_or(Duration::ZERO, |since| since.elapsed()),
            median: last.get(last.len() / 2).copied().unwrap_or_default(),
        }
    }

    fn reading(&self) -> MutexGuard<'_, Reading> {
        self.0.lock().expect("nothing panics while it holds this lock")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// "full", "stuck 1500" (waiting), "5" (median), in milliseconds.
    fn disk(words: &str) -> Disk {
        let millis = |text: &str| Duration::from_millis(text.parse().unwrap());
        match words.split_once(' ') {
            Some(("stuck", time)) => Disk { waiting: millis(time), ..Disk::default() },
            Some(_) => panic!("{words}"),
            None if words == "full" => Disk { full: true, ..Disk::default() },
            None => Disk { median: millis(words), ..Disk::default() },
        }
    }

    #[rustfmt::skip]
    #[test]
    fn leadership_moves_to_a_better_disk_and_not_back() {
        let cases = [
            // mine, the others' from 2 on, seconds in office, successor
            ("1",          &["1", "1"][..],               3600, None),
            ("49",         &["1", "1"],                   3600, None),
            ("200",        &["5", "3"],                   60,   Some(3)),
            ("200",        &["5", "3"],                   9,    None),
            ("200",        &["60", "200"],                60,   None),
            ("200",        &["200", "200"],               60,   None),
            ("200",        &["full", "5"],                60,   Some(3)),
            ("200",        &["full", "stuck 800"],        60,   None),
            ("stuck 900",  &["1", "1"],                   60,   None),
            ("stuck 1000", &["2", "1"],                   0,    Some(3)),
            ("stuck 1000", &["stuck 500", "90"],          0,    Some(3)),
            ("stuck 1000", &["stuck 500", "full"],        60,   None),
            ("full",       &["300", "400"],               0,    Some(2)),
            ("full",       &["full", "full"],             60,   None),
            ("full",       &[],                           60,   None),
        ];
        for (mine, others, led, expected) in cases {
            let others = (2..).map(RaftId).zip(others.iter().map(|words| disk(words))).collect();
            let chosen = successor(disk(mine), &others, Duration::from_secs(led));
            assert_eq!(chosen, expected.map(RaftId), "{mine} among {others:?} after {led} s");
        }
    }

    #[test]
    fn a_gauge_tells_the_usual_from_the_present() {
        let gauge = Gauge::default();
        assert_eq!(gauge.disk(), Disk::default());
        for _ in 0..SYNCS {
            gauge.begin();
            gauge.end();
        }
        gauge.begin();
        std::thread::sleep(Duration::from_millis(20));
        let disk = gauge.disk();
        assert!(disk.waiting >= Duration::from_millis(20) && disk.median < disk.waiting, "{disk:?}");
        gauge.fill(Path::new("/somewhere"), 7);
        assert_eq!(gauge.full(), Some(Full { dir: "/somewhere".into(), wanted: 7 }));
        gauge.clear();
        assert!(!gauge.disk().full);
    }
}
