//! `rswarm sim run|search`: the whole control plane in a simulator, from a seed.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::{Args, Subcommand};
use rswarm_chaos::world::{self, Options, Outcome, Replay, Shrunk, Verdict};

/// Where past failures are replayed from, seen from the root of the sources.
const SEEDS: &str = "chaos-tests/tests/seeds";
/// How often progress is told.
const TELL: Duration = Duration::from_secs(2);

/// Run the control plane in a simulator, where a seed says everything
///
/// A run founds a cluster, has a user change their mind and a storm of faults pass over it, heals it, and checks
/// every promise at every step. Nothing of this machine is touched.
#[derive(Debug, Args)]
pub struct Command {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Run one seed; if it fails, find a small run that fails the same way
    Run(Run),
    /// Run many seeds, and keep those that fail
    Search(Search),
}

#[derive(Debug, Args)]
struct Run {
    /// Which run, as a number or as a line of a seeds file in quotes
    #[arg(long, value_name = "SEED")]
    seed: Replay,
    #[command(flatten)]
    storm: Storm,
}

#[derive(Debug, Args)]
struct Search {
    /// Which runs
    #[arg(long, value_name = "A..B", default_value = "0..1000", value_parser = seeds)]
    seeds: Range<u64>,
    #[command(flatten)]
    storm: Storm,
    /// Stop after so many failures
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    failures: u32,
    /// How many runs at a time [default: one a processor]
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..=256))]
    jobs: Option<u16>,
    /// Where to write what failed [default: chaos-tests/tests/seeds if it is there, else here]
    #[arg(long, value_name = "DIRECTORY")]
    keep: Option<PathBuf>,
}

#[derive(Debug, Args)]
struct Storm {
    /// How long the storm lasts, in simulated minutes [default: 2]
    #[arg(long, value_parser = minutes)]
    minutes: Option<f64>,
    /// How many runs a failure may take to be made small; 0 leaves it as it is
    #[arg(long, default_value_t = 300)]
    shrink: u32,
}

fn minutes(text: &str) -> Result<f64, String> {
    let minutes = text.parse::<f64>().ok().filter(|minutes| (0.01..=10_000.0).contains(minutes));
    minutes.ok_or_else(|| "a number from 0.01 to 10000 is wanted".into())
}

fn seeds(text: &str) -> Result<Range<u64>, String> {
    let (from, to) = text.split_once("..").ok_or("write it as FROM..TO, for example 0..1000")?;
    let number = |text: &str| text.parse::<u64>().map_err(|_| format!("`{text}` is not a seed"));
    let range = number(from)?..number(to)?;
    if range.is_empty() { Err("the range is empty".into()) } else { Ok(range) }
}

impl Storm {
    fn options(&self) -> Options {
        let usual = Options::default();
        let storm = self.minutes.map_or(usual.storm, |minutes| Duration::from_secs_f64(minutes * 60.0));
        Options { storm, ..usual }
    }
}

impl Command {
    /// Carries the command out. It fails if a run does.
    ///
    /// # Errors
    /// If what failed cannot be written down.
    pub fn run(self, out: &mut impl Write) -> Result<ExitCode> {
        // A panic in a run is a finding, told as one.
        std::panic::set_hook(Box::new(|_| ()));
        let held = match self.verb {
            Verb::Run(run) => run.run(out)?,
            Verb::Search(search) => search.run(out)?,
        };
        Ok(if held { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }
}

impl Run {
    fn run(self, out: &mut impl Write) -> Result<bool> {
        let mut replay = self.seed;
        if self.storm.minutes.is_some() {
            replay.options.storm = self.storm.options().storm;
        }
        let began = Instant::now();
        let outcome = world::run(replay.seed, &replay.options);
        writeln!(
            out,
            "{} events, {} log entries, {} faults and {} wishes in {:.1?} simulated, {:.2?} real; trace {:016x}",
            outcome.steps,
            outcome.entries,
            outcome.faults,
            outcome.wishes,
            outcome.simulated,
            began.elapsed(),
            outcome.trace_hash,
        )?;
        if outcome.held() {
            writeln!(out, "{outcome}")?;
            return Ok(true);
        }
        let small = shrunk(&replay, outcome, self.storm.shrink);
        tell(&small, out)?;
        Ok(false)
    }
}

/// The run made small, or as it is.
fn shrunk(replay: &Replay, outcome: Outcome, runs_max: u32) -> Shrunk {
    let as_it_is = Shrunk { replay: replay.clone(), outcome, runs: 1 };
    if runs_max == 0 {
        return as_it_is;
    }
    eprintln!("seed {} fails; looking for a smaller run that fails the same way", replay.seed);
    world::shrink(replay, runs_max).unwrap_or(as_it_is)
}

fn tell(small: &Shrunk, out: &mut impl Write) -> Result<()> {
    let Shrunk { replay, outcome, runs } = small;
    writeln!(out, "\nThe smallest run found ({runs} tried): all that was done to the cluster in it,")?;
    for deed in &outcome.deeds {
        writeln!(out, "  {deed}")?;
    }
    writeln!(out, "and the end of what happened:")?;
    writeln!(out, "{outcome}")?;
    Ok(writeln!(out, "  replay:   rswarm sim run --seed \"{replay}\"")?)
}

impl Search {
    fn run(self, out: &mut impl Write) -> Result<bool> {
        let keep = self.keep.clone().unwrap_or_else(|| {
            let usual = PathBuf::from(SEEDS);
            if usual.is_dir() { usual } else { PathBuf::from(".") }
        });
        if !keep.is_dir() {
            bail!(
                "cannot keep failures in {}: it is not a directory; make it, or name another by --keep",
                keep.display()
            );
        }
        let began = Instant::now();
        let sum = self.search(began);
        let hours = Duration::from_millis(sum.simulated.load(Ordering::Relaxed)).as_secs_f64() / 3600.0;
        writeln!(
            out,
            "{} runs, {hours:.1} simulated hours in {:.1?}, {} failed",
            sum.runs.load(Ordering::Relaxed),
            began.elapsed(),
            sum.failed.lock().unwrap_or_else(PoisonError::into_inner).len(),
        )?;
        let failed = sum.failed.into_inner().unwrap_or_else(PoisonError::into_inner);
        let held = failed.is_empty();
        for (seed, outcome) in failed {
            let replay = Replay { seed, options: self.storm.options() };
            let small = shrunk(&replay, outcome, self.storm.shrink);
            tell(&small, out)?;
            let path = write_down(&keep, &small)?;
            writeln!(out, "  kept in:  {}", path.display())?;
        }
        Ok(held)
    }

    fn search(&self, began: Instant) -> Sum {
        let sum = Sum { next: AtomicU64::new(self.seeds.start), ..Sum::default() };
        let options = self.storm.options();
        let jobs = self
            .jobs
            .map_or_else(|| std::thread::available_parallelism().map_or(1, usize::from), usize::from);
        std::thread::scope(|scope| {
            for _ in 0..jobs {
                scope.spawn(|| {
                    while !sum.enough.load(Ordering::Relaxed) {
                        let seed = sum.next.fetch_add(1, Ordering::Relaxed);
                        if seed >= self.seeds.end {
                            return;
                        }
                        sum.count(world::run(seed, &options), self.failures);
                    }
                });
            }
            let mut told = began;
            while sum.runs.load(Ordering::Relaxed) < self.seeds.end - self.seeds.start
                && !sum.enough.load(Ordering::Relaxed)
            {
                std::thread::park_timeout(Duration::from_millis(20));
                if told.elapsed() >= TELL {
                    told = Instant::now();
                    let runs = sum.runs.load(Ordering::Relaxed);
                    let rate = runs as f64 / began.elapsed().as_secs_f64();
                    let _ = writeln!(io::stderr(), "{runs} runs, {rate:.0} a second");
                }
            }
        });
        sum
    }
}

/// What many runs have come to so far.
#[derive(Default)]
struct Sum {
    next: AtomicU64,
    runs: AtomicU64,
    /// In milliseconds.
    simulated: AtomicU64,
    enough: AtomicBool,
    failed: Mutex<BTreeMap<u64, Outcome>>,
}

impl Sum {
    fn count(&self, outcome: Outcome, failures_max: u32) {
        let simulated = u64::try_from(outcome.simulated.as_millis()).unwrap_or(u64::MAX);
        self.simulated.fetch_add(simulated, Ordering::Relaxed);
        if !outcome.held() {
            let mut failed = self.failed.lock().unwrap_or_else(PoisonError::into_inner);
            failed.insert(outcome.seed, outcome);
            if failed.len() >= failures_max as usize {
                self.enough.store(true, Ordering::Relaxed);
            }
        }
        self.runs.fetch_add(1, Ordering::Relaxed);
    }
}

/// Writes a failure where it is replayed before all other seeds.
fn write_down(directory: &Path, small: &Shrunk) -> Result<PathBuf> {
    let Shrunk { replay, outcome, .. } = small;
    let Verdict::Broken { invariant, detail, .. } = &outcome.verdict else {
        bail!("a run that held is no failure");
    };
    let path = directory.join(format!("{}-{}.txt", invariant.name.replace(' ', "-"), replay.seed));
    let mut words: String =
        detail.chars().map(|letter| if letter.is_control() { ' ' } else { letter }).collect();
    if let Some((at, _)) = words.char_indices().nth(200) {
        words.truncate(at);
    }
    let text = format!("# `{}` was broken: {words}\n{replay}\n", invariant.name);
    fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
    Ok(path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        sim: Command,
    }

    fn parse(words: &[&str]) -> Result<Verb, clap::Error> {
        Line::try_parse_from([&["sim"], words].concat()).map(|line| line.sim.verb)
    }

    #[test]
    fn a_seed_may_be_a_whole_line() {
        let Ok(Verb::Run(run)) = parse(&["run", "--seed", "7 30 without-faults=2"]) else {
            panic!("not a run")
        };
        assert_eq!((run.seed.seed, run.seed.options.storm.as_secs()), (7, 30));
        assert!(run.seed.options.left_out.faults.contains(&2));
    }

    #[test]
    fn nonsense_is_refused() {
        for words in [
            &["run"][..],
            &["run", "--seed", "x"],
            &["search", "--seeds", "5..5"],
            &["search", "--seeds", "5"],
            &["search", "--minutes", "0"],
        ] {
            assert!(parse(words).is_err(), "{words:?}");
        }
    }

    #[test]
    fn a_run_that_holds_says_so_and_succeeds() {
        let Ok(Verb::Run(run)) = parse(&["run", "--seed", "1", "--minutes", "0.1"]) else {
            panic!("not a run")
        };
        let mut out = Vec::new();
        assert!(run.run(&mut out).unwrap());
        assert!(String::from_utf8(out).unwrap().contains("everything held"));
    }

    #[test]
    fn what_is_kept_can_be_replayed() {
        let storm = Duration::from_secs(30);
        let planted = Options { planted: Some(world::Planted::StartsAgain), storm, ..Options::default() };
        let small = (0..400).find_map(|seed| world::shrink(&Replay { seed, options: planted.clone() }, 5));
        let directory = tempfile::tempdir().unwrap();
        let path = write_down(directory.path(), &small.expect("a planted mistake is caught")).unwrap();
        let text = fs::read_to_string(path).unwrap();
        let line = text.lines().find(|line| !line.starts_with('#')).unwrap();
        assert!(line.parse::<Replay>().is_ok(), "{text}");
    }
}
