//! The whole control plane in a simulator: storms from seeds, drills, and mistakes made on purpose.
//!
//! `SEED=n` runs one seed, `SEEDS=a..b` a range, `MINUTES=m` lengthens the storm.

use rswarm_chaos::world::{self, Drill, Options, Planted, Replay, Verdict};
use std::ops::Range;
use std::time::{Duration, Instant};

const SEEDS: Range<u64> = 0..300;

fn seeds() -> Range<u64> {
    let number = |text: &str| text.trim().parse().expect("a seed is a number");
    if let Ok(seed) = std::env::var("SEED") {
        let seed = number(&seed);
        return seed..seed + 1;
    }
    match std::env::var("SEEDS") {
        Ok(range) => {
            let (from, to) = range.split_once("..").expect("SEEDS is written from..to");
            number(from)..number(to)
        }
        Err(_) => SEEDS,
    }
}

fn options() -> Options {
    let minutes = std::env::var("MINUTES").ok().map(|text| text.parse::<f64>().expect("MINUTES is a number"));
    let storm = minutes.map_or(Options::default().storm, |minutes| Duration::from_secs_f64(minutes * 60.0));
    Options { storm, ..Options::default() }
}

/// Runs that once failed.
fn past_failures() -> Vec<Replay> {
    let dir = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/seeds");
    let mut files: Vec<_> = std::fs::read_dir(dir)
        .expect("tests/seeds is there")
        .map(|entry| entry.expect("it can be read").path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "txt"))
        .collect();
    files.sort();
    let mut seeds = Vec::new();
    for file in files {
        let text = std::fs::read_to_string(&file).expect("it can be read");
        for line in text.lines().filter(|line| !line.starts_with('#') && !line.trim().is_empty()) {
            seeds.push(line.parse().unwrap_or_else(|error| panic!("{}: {error}", file.display())));
        }
    }
    seeds
}

/// What many runs come to.
#[derive(Default)]
struct Sum {
    simulated: Duration,
    runs: u64,
    entries: u64,
    failed: Vec<u64>,
}

fn run(seed: u64, options: &Options, sum: &mut Sum) {
    let outcome = world::run(seed, options);
    if !outcome.held() {
        let replay = Replay { seed, options: options.clone() };
        eprintln!("{outcome}");
        eprintln!("  replay and make small:   rswarm sim run --seed \"{replay}\"\n");
        sum.failed.push(seed);
    }
    sum.simulated += outcome.simulated;
    sum.runs += 1;
    sum.entries += outcome.entries;
}

#[test]
fn heals_after_any_storm() {
    let (began, mut sum) = (Instant::now(), Sum::default());
    if std::env::var_os("SEED").is_none() {
        for Replay { seed, options } in past_failures() {
            run(seed, &options, &mut sum);
        }
    }
    let (seeds, options) = (seeds(), options());
    for seed in seeds.clone() {
        run(seed, &options, &mut sum);
        if sum.failed.len() >= 5 {
            break;
        }
    }
    let (wall, hours) = (began.elapsed().as_secs_f64(), sum.simulated.as_secs_f64() / 3600.0);
    eprintln!(
        "seeds {seeds:?}: {} runs, {} log entries, {hours:.1} simulated hours in {wall:.1} s, {:.0} a minute",
        sum.runs,
        sum.entries,
        hours * 60.0 / wall,
    );
    assert!(sum.failed.is_empty(), "failed: {:?}", sum.failed);
    assert!(sum.runs < 10 || sum.entries / sum.runs > 100, "too little happens in these worlds");
}

#[test]
fn the_same_seed_is_the_same_run() {
    let options = Options { storm: Duration::from_secs(60), ..Options::default() };
    for seed in [1, 7, 42] {
        let (first, second) = (world::run(seed, &options), world::run(seed, &options));
        assert_eq!((first.trace_hash, first.steps), (second.trace_hash, second.steps), "seed {seed}");
        assert_ne!(first.trace_hash, world::run(seed + 100, &options).trace_hash);
    }
}

#[test]
fn tasks_of_a_lost_node_are_replaced_in_time() {
    for kind in [Drill::NodeLoss, Drill::LeaderLoss, Drill::NodeCutOff] {
        let mut slowest = Duration::ZERO;
        for seed in 0..20 {
            let drilled = world::drill(seed, kind, &Options::default());
            assert!(drilled.held(), "{kind:?}\n{}", drilled.outcome);
            slowest = slowest.max(drilled.replaced.unwrap_or_default());
        }
        eprintln!("{kind:?}: replaced after {slowest:?} at the latest");
    }
}

#[test]
fn a_failing_run_is_made_small_and_fails_the_same_way() {
    let storm = Duration::from_secs(30);
    let options = Options { planted: Some(Planted::StartsAgain), storm, ..Options::default() };
    // One with little to leave out would not show much.
    let failing = |seed: &u64| {
        let outcome = world::run(*seed, &options);
        !outcome.held() && outcome.deeds.len() >= 6
    };
    let replay =
        Replay { seed: (0..400).find(failing).expect("the mistake is caught"), options: options.clone() };
    let before = world::run(replay.seed, &options);
    let small = world::shrink(&replay, 60).expect("it fails");
    eprintln!("{} deeds became {} in {} runs", before.deeds.len(), small.outcome.deeds.len(), small.runs);
    assert!(small.outcome.deeds.len() <= before.deeds.len().div_ceil(2), "{}", small.outcome);
    let names = [&before, &small.outcome].map(|outcome| match outcome.verdict {
        Verdict::Broken { invariant, .. } => invariant.name,
        Verdict::Held => "nothing",
    });
    assert_eq!(names[0], names[1]);

    // What is written down is enough to see it again, the mistake apart.
    let again: Replay = small.replay.to_string().parse().expect("it reads what it writes");
    let again = world::run(again.seed, &Options { planted: options.planted, ..again.options });
    assert_eq!((again.trace_hash, again.steps), (small.outcome.trace_hash, small.outcome.steps));
}

/// Runs seeds with a mistake until it is caught, and says by what.
fn caught_by(planted: Planted) -> &'static str {
    let options = Options { planted: Some(planted), storm: Duration::from_secs(30), ..Options::default() };
    for seed in 0..200 {
        if let Verdict::Broken { invariant, .. } = world::run(seed, &options).verdict {
            eprintln!("{planted:?} is caught by `{}` with seed {seed}", invariant.name);
            return invariant.name;
        }
    }
    panic!("{planted:?} is not caught");
}

#[test]
fn planted_mistakes_are_caught() {
    for planted in Planted::ALL {
        caught_by(planted);
    }
}
