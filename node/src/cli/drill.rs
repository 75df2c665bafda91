//! `rswarm drill list|run`: promises, put to the test on a lab.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail};
use clap::{Args, Subcommand};
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};
use rswarm_chaos::drill::{self, Drill, Report, Trials};
use rswarm_chaos::lab::{self, Lab, Options};

/// What the labs are called that drills make for themselves.
const LAB: &str = "drill";

/// Put promises to the test: break a lab under load, measure, and mend it
///
/// A drill never touches anything but a lab. Without --lab it makes one of its own and removes it.
#[derive(Debug, Args)]
pub struct Command {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// List the drills and what they promise
    List {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Run drills; it fails if a promise is not kept
    Run(Run),
    /// Write the scorecard from reports of earlier runs
    Card {
        /// Reports as JSON
        #[arg(required = true, value_name = "FILE")]
        reports: Vec<PathBuf>,
        /// Where to
        #[arg(long, short, value_name = "FILE", default_value = "docs/scorecard.md")]
        output: PathBuf,
    },
    /// Run drills chosen by chance on one lab, one after the other, and an update under load at the end
    Soak {
        /// For how long
        #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=10_000))]
        minutes: u64,
        /// What chance decides [default: another one each time]
        #[arg(long)]
        seed: Option<u64>,
        /// Write a report: .html for people, .json for programs
        #[arg(long, value_name = "FILE", value_parser = report_file)]
        report: Vec<PathBuf>,
    },
}

#[derive(Debug, Default, Args)]
struct Run {
    /// Which drills; see `rswarm drill list`
    #[arg(required_unless_present = "all", conflicts_with = "all", value_name = "NAME", value_parser = named)]
    names: Vec<&'static Drill>,
    /// All of them, and write the scorecard
    #[arg(long)]
    all: bool,
    /// Run them on this lab, which stays; its own services are left alone
    #[arg(long, value_name = "LAB")]
    lab: Option<String>,
    /// What chance decides, such as which worker is harmed [default: another one each time]
    #[arg(long)]
    seed: Option<u64>,
    /// How often each drill is run
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=1000))]
    trials: u16,
    /// Write a report: .html for people, .json for programs
    #[arg(long, value_name = "FILE", value_parser = report_file)]
    report: Vec<PathBuf>,
    /// Write the scorecard here [default with --all: docs/scorecard.md if there is a directory docs]
    #[arg(long, value_name = "FILE")]
    scorecard: Option<PathBuf>,
    /// Print one line of JSON a result
    #[arg(long)]
    json: bool,
}

fn named(name: &str) -> Result<&'static Drill, String> {
    drill::find(name).ok_or_else(|| "there is no such drill; `rswarm drill list` names them".to_owned())
}

fn report_file(text: &str) -> Result<PathBuf, String> {
    let path = PathBuf::from(text);
    match path.extension().and_then(|extension| extension.to_str()) {
        Some("html" | "json") => Ok(path),
        _ => Err("its name must end in .html or .json, which says what it is".into()),
    }
}

impl Command {
    /// Carries the command out. Blocks; the code says whether all promises were kept.
    ///
    /// # Errors
    /// If there is no lab to work on, or a report cannot be written.
    pub fn run(self, out: &mut impl Write) -> Result<ExitCode> {
        match self.verb {
            Verb::List { json } => list(json, out),
            Verb::Run(run) => run.run(out),
            Verb::Card { reports, output } => card(&reports, &output),
            Verb::Soak { minutes, seed, report } => soak(minutes, seed, report, out),
        }
    }
}

fn list(json: bool, out: &mut impl Write) -> Result<ExitCode> {
    if json {
        let all = drill::ALL.iter().map(|drill| {
            serde_json::json!({
                "name": drill.name, "promise": drill.promise, "nodes": drill.nodes, "managers": drill.managers,
            })
        });
        writeln!(out, "{}", serde_json::to_string_pretty(&all.collect::<Vec<_>>()).context("cannot print")?)?;
        return Ok(ExitCode::SUCCESS);
    }
    for drill in drill::ALL {
        writeln!(out, "{:<32} {}", drill.name, drill.promise)?;
    }
    Ok(ExitCode::SUCCESS)
}

fn card(reports: &[PathBuf], output: &Path) -> Result<ExitCode> {
    let mut trials = Trials::default();
    for path in reports {
        let text = fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
        trials.read(&text).with_context(|| path.display().to_string())?;
    }
    fs::write(output, drill::scorecard(&trials))
        .with_context(|| format!("cannot write {}", output.display()))?;
    Ok(ExitCode::SUCCESS)
}

/// Faults in an order that follows from the seed, all on the lab that the ones before have left. The last drill shows
/// that it is alive: no fault, an update under full load.
fn soak(minutes: u64, seed: Option<u64>, report: Vec<PathBuf>, out: &mut impl Write) -> Result<ExitCode> {
    const LAST: &str = "rolling-update-under-load";
    let seed = seed.unwrap_or_else(fresh_seed);
    let run = Run { report, seed: Some(seed), ..Run::default() };
    run.check()?;
    watch_for_interrupts()?;
    let end = Instant::now() + Duration::from_secs(minutes * 60);
    let last = drill::find(LAST).context("there is no drill to end with")?;
    let lab = run.open(last.nodes, last.managers, None)?;
    // Some want a lab that is made for them.
    let drills: Vec<&Drill> = drill::ALL.iter().filter(|drill| drill.disk.is_none()).collect();
    eprintln!("soak, seed {seed}, for {minutes} min");
    let (mut reports, mut trials, mut is_last) = (Vec::new(), Trials::default(), false);
    for turn in 0_u64.. {
        is_last |= Instant::now() >= end;
        if INTERRUPTED.load(Ordering::Relaxed) {
            bail!("interrupted");
        }
        let chance = drill::chance(seed, turn);
        let drill = if is_last { last } else { drills[chance as usize % drills.len()] };
        let report = carried_out(drill, &lab, chance);
        writeln!(out, "\n{report}")?;
        out.flush()?;
        trials.add(&report);
        let passed = report.passed();
        reports.push(report);
        // What follows on a lab that has failed would not be its own doing.
        if is_last || !passed {
            break;
        }
    }
    run.write(&reports, &trials)?;
    let failed = reports.last().is_some_and(|report| !report.passed());
    let words = if failed { "the last was not kept" } else { "all were kept" };
    writeln!(out, "soak, seed {seed}: {} drills, {words}", reports.len())?;
    Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// Runs one drill and tells what happens.
fn carried_out(drill: &Drill, lab: &Lab, seed: u64) -> Report {
    eprintln!("{}, seed {seed}", drill.name);
    drill.run(lab, seed, &mut |at, words| eprintln!("{:6.1}s  {words}", at.as_secs_f32()))
}

impl Run {
    /// What can be known before a lab is made.
    fn check(&self) -> Result<()> {
        lab::require_root().context("drills need a lab of root's")?;
        for path in self.report.iter().chain(&self.scorecard) {
            let parent =
                path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
            if !parent.is_dir() {
                bail!("cannot write {}: there is no directory {}", path.display(), parent.display());
            }
        }
        Ok(())
    }

    fn run(self, out: &mut impl Write) -> Result<ExitCode> {
        self.check()?;
        watch_for_interrupts()?;
        let drills: Vec<&Drill> = if self.all { drill::ALL.iter().collect() } else { self.names.clone() };
        let (mut reports, mut trials) = (Vec::new(), Trials::default());
        let done = self.each(&drills, &mut |report| {
            if self.json {
                for line in &report.lines {
                    writeln!(out, "{}", serde_json::to_string(line).context("cannot print")?)?;
                }
            } else {
                writeln!(out, "\n{report}")?;
            }
            out.flush()?;
            trials.add(&report);
            reports.push(report);
            Ok(())
        });
        self.write(&reports, &trials)?;
        done?;
        let failed: Vec<&str> =
            reports.iter().filter(|report| !report.passed()).map(|report| report.drill).collect();
        if failed.is_empty() {
            return Ok(ExitCode::SUCCESS);
        }
        writeln!(io::stderr(), "not kept: {}", failed.join(", "))?;
        Ok(ExitCode::FAILURE)
    }

    /// Runs every drill as often as asked, those of one shape on one lab.
    fn each(&self, drills: &[&Drill], heard: &mut dyn FnMut(Report) -> Result<()>) -> Result<()> {
        let mut shapes: BTreeMap<(u8, u8, Option<u64>), Vec<&Drill>> = BTreeMap::new();
        for drill in drills {
            shapes.entry((drill.nodes, drill.managers, drill.disk)).or_default().push(drill);
        }
        for ((nodes, managers, disk), drills) in shapes {
            let mut open = None;
            for drill in drills {
                for trial in 0..u64::from(self.trials) {
                    if INTERRUPTED.load(Ordering::Relaxed) {
                        bail!("interrupted");
                    }
                    let seed = self.seed.map_or_else(fresh_seed, |seed| seed.wrapping_add(trial));
                    let lab = match open.take() {
                        Some(lab) => lab,
                        None => self.open(nodes, managers, disk)?,
                    };
                    let report = carried_out(drill, &lab, seed);
                    let passed = report.passed();
                    heard(report)?;
                    // What the next one finds shall not be this one's doing.
                    if passed || self.lab.is_some() {
                        open = Some(lab);
                    }
                }
            }
        }
        Ok(())
    }

    fn open(&self, nodes: u8, managers: u8, disk: Option<u64>) -> Result<Lab> {
        let base = lab::base_directory();
        if let Some(name) = &self.lab {
            let lab = Lab::open(&base, name)?;
            if lab.backend()?.is_vm() {
                bail!(
                    "the nodes of lab \"{name}\" have kernels of their own, which drills cannot look into; they run \
                     on labs of namespaces"
                );
            }
            return Ok(lab);
        }
        let program = std::env::current_exe().context("cannot find the file of this program")?;
        let disks = disk.map(|size| (None, size)).into_iter().collect();
        let options = Options { name: LAB.into(), nodes, managers, disks, ..Options::new(program) };
        Lab::up_with(&options, &mut |node, words| eprintln!("        {node} {words}"), &INTERRUPTED)
    }

    fn write(&self, reports: &[Report], trials: &Trials) -> Result<()> {
        for path in &self.report {
            let text = if path.extension().is_some_and(|extension| extension == "html") {
                drill::page(reports)
            } else {
                serde_json::to_string_pretty(reports).context("cannot print")?
            };
            fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))?;
        }
        let usual = || (self.all && Path::new("docs").is_dir()).then(|| PathBuf::from("docs/scorecard.md"));
        if let Some(path) = self.scorecard.clone().or_else(usual) {
            fs::write(&path, drill::scorecard(trials))
                .with_context(|| format!("cannot write {}", path.display()))?;
        }
        Ok(())
    }
}

fn fresh_seed() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO).subsec_nanos().into()
}

static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// Makes Ctrl-C and its kin end the run after the drill under way, with the lab removed.
fn watch_for_interrupts() -> Result<()> {
    extern "C" fn note(_: i32) {
        INTERRUPTED.store(true, Ordering::Relaxed);
    }
    let action = SigAction::new(SigHandler::Handler(note), SaFlags::SA_RESTART, SigSet::empty());
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
        // SAFETY: the handler does nothing but store to an atomic.
        unsafe { sigaction(signal, &action) }.context("cannot catch a signal")?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        drill: Command,
    }

    fn parse(line: &str) -> Result<Verb, clap::Error> {
        Line::try_parse_from(std::iter::once("drill").chain(line.split(' '))).map(|line| line.drill.verb)
    }

    #[test]
    fn drills_are_named_or_all_of_them_meant() {
        let Ok(Verb::Run(run)) = parse("run leader-kill node-flap --seed 3 --report a.html --report b.json")
        else {
            panic!("not a run")
        };
        assert_eq!(
            run.names.iter().map(|drill| drill.name).collect::<Vec<_>>(),
            ["leader-kill", "node-flap"]
        );
        assert!(parse("run --all").is_ok());
        assert!(matches!(
            parse("soak --minutes 3 --seed 7"),
            Ok(Verb::Soak { minutes: 3, seed: Some(7), .. })
        ));
        for line in [
            "run",
            "run no-such-drill",
            "run --all leader-kill",
            "run --all --report a.txt",
            "run --all --trials 0",
        ] {
            assert!(parse(line).is_err(), "{line}");
        }
    }

    #[test]
    fn the_list_names_every_drill() {
        let mut out = Vec::new();
        list(false, &mut out).unwrap();
        let text = String::from_utf8(out).unwrap();
        assert!(drill::ALL.iter().all(|drill| text.contains(drill.name)), "{text}");
        let mut out = Vec::new();
        list(true, &mut out).unwrap();
        let all: serde_json::Value = serde_json::from_slice(&out).unwrap();
        assert_eq!(all.as_array().map(Vec::len), Some(drill::ALL.len()));
    }
}
