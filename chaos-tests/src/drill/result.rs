//! What comes of a drill: lines for programs, a verdict for people, and the course of it for charts.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::load::Shot;
use crate::lab::Lab;

/// One measured result.
#[derive(Debug, Clone, Serialize)]
pub struct Line {
    /// Its name: the drill's, a dot, and what was measured.
    pub goal: String,
    /// The value, in `unit`.
    pub value: f64,
    /// `ms`, `count`, `percent`.
    pub unit: &'static str,
    /// What it should be at most.
    pub target: Option<f64>,
    /// Above this the drill has failed: machines that are busy miss targets, promises are kept on all.
    pub limit: Option<f64>,
    /// The seed of what the drill chose by chance.
    pub seed: u64,
    /// The commit of the sources, if the drill was run from them.
    pub commit: String,
}

impl Line {
    /// Whether the target was met; `None` if there is none.
    pub fn met(&self) -> Option<bool> {
        self.target.map(|target| self.value <= target)
    }
}

/// Something that happened, at a time from the drill's beginning.
#[derive(Debug, Clone, Serialize)]
pub struct Mark {
    /// When, in milliseconds.
    pub at_ms: u64,
    /// What.
    pub words: String,
    /// Whether it is the harm itself, to be marked in charts.
    pub harm: bool,
}

/// The cluster at one moment.
#[derive(Debug, Clone, Serialize)]
pub struct Sample {
    /// When, in milliseconds.
    pub at_ms: u64,
    /// The term of the replicated log.
    pub term: u64,
    /// How many tasks of the service run on each node.
    pub tasks: BTreeMap<String, u32>,
}

/// Whether the promise was kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// It was.
    Passed,
    /// It was not, or could not be tried; why, a sentence each.
    Failed(Vec<String>),
}

/// All of it.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// The drill.
    pub drill: &'static str,
    /// Its promise.
    pub promise: &'static str,
    /// What was found.
    pub verdict: Verdict,
    /// What it was run on.
    pub machine: String,
    /// What was measured.
    pub lines: Vec<Line>,
    /// What happened when.
    pub timeline: Vec<Mark>,
    /// The cluster over time.
    pub samples: Vec<Sample>,
    /// Requests, by the way they took: when they were sent and how long they took, in milliseconds, and whether
    /// they succeeded.
    pub requests: BTreeMap<&'static str, Vec<(u64, f64, bool)>>,
    /// Why requests failed.
    pub errors: BTreeMap<String, usize>,
}

impl Report {
    /// Whether the promise was kept.
    pub fn passed(&self) -> bool {
        self.verdict == Verdict::Passed
    }
}

/// Shots as a report keeps them.
pub fn plain(shots: &[Shot]) -> Vec<(u64, f64, bool)> {
    let mut plain: Vec<_> = shots
        .iter()
        .map(|shot| (millis(shot.at), (shot.took.as_secs_f64() * 10_000.0).round() / 10.0, shot.ok))
        .collect();
    plain.sort_by_key(|(at, ..)| *at);
    plain
}

pub fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// For people: the verdict, what was measured, and why it failed.
impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let missed = self.lines.iter().filter(|line| line.met() == Some(false)).count();
        let verdict = match (&self.verdict, missed) {
            (Verdict::Failed(_), _) => "FAILED".to_owned(),
            (Verdict::Passed, 0) => "passed".to_owned(),
            (Verdict::Passed, missed) => format!("passed, {missed} missed its target"),
        };
        writeln!(f, "{}: {verdict}", self.drill)?;
        writeln!(f, "  promise: {}", self.promise)?;
        for line in &self.lines {
            let name = line.goal.strip_prefix(self.drill).unwrap_or(&line.goal).trim_start_matches('.');
            write!(f, "  {name:<28} {:>10} {:<8}", (line.value * 100.0).round() / 100.0, line.unit)?;
            match (line.target, line.met()) {
                (Some(target), Some(true)) => writeln!(f, "at most {target}: met")?,
                (Some(target), _) => writeln!(f, "at most {target}: MISSED")?,
                (None, _) => writeln!(f)?,
            }
        }
        for (words, count) in &self.errors {
            writeln!(f, "  {count} requests failed: {words}")?;
        }
        if let Verdict::Failed(reasons) = &self.verdict {
            for reason in reasons {
                writeln!(f, "  because: {reason}")?;
            }
        }
        Ok(())
    }
}

/// This machine, what else it was doing, the kind of this build, and what the nodes run: times follow from all of it.
pub fn machine(lab: &Lab) -> String {
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    let kernel = nix::sys::utsname::uname().map(|names| names.release().to_string_lossy().into_owned());
    let load = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let load: f64 = load.split(' ').next().and_then(|load| load.parse().ok()).unwrap_or(0.0);
    let busy = if load < processors as f64 { "not busy before" } else { "busy with other things" };
    let build = if cfg!(debug_assertions) { "debug build" } else { "release build" };
    let program = lab.program().unwrap_or_default();
    let own = std::env::current_exe().is_ok_and(|own| own == program);
    let nodes = match program.file_name() {
        Some(name) if !own => format!(", nodes run `{}`", name.display()),
        _ => String::new(),
    };
    format!("{processors} processors, Linux {}, {busy}, {build}{nodes}", kernel.unwrap_or_default())
}

/// The commit of the sources this is run from, or `unknown`.
pub fn commit() -> String {
    let read = |path: &Path| std::fs::read_to_string(path).ok().map(|text| text.trim().to_owned());
    let here = std::env::current_dir().unwrap_or_default();
    let found =
        here.ancestors().map(|place| place.join(".git")).find(|place| place.exists()).and_then(|git| {
            let own = if git.is_dir() { git } else { read(&git)?.strip_prefix("gitdir: ")?.into() };
            // A second work tree keeps its branches where the first one does.
            let common = read(&own.join("commondir")).map_or_else(|| own.clone(), |common| own.join(common));
            let head = read(&own.join("HEAD"))?;
            let Some(name) = head.strip_prefix("ref: ") else { return Some(head) };
            read(&common.join(name)).or_else(|| {
                let packed = read(&common.join("packed-refs"))?;
                packed.lines().find_map(|line| Some(line.strip_suffix(name)?.trim().to_owned()))
            })
        });
    found.map_or_else(|| "unknown".to_owned(), |commit| commit.chars().take(12).collect())
}
