//! `rswarm bench all`

use crate::bench::{self, Kind, Options, Size};
use anyhow::Result;
use std::io::Write;
use std::process::ExitCode;

/// Measure this machine's rswarm on a lab of its own (needs root, but for raft, join, restart, elections and schedule)
#[derive(Debug, clap::Args)]
pub struct Command {
    /// What to measure
    #[arg(value_enum, default_value = "all")]
    kind: Kind,
    /// How often each thing is done [default: 20; 100 for leader-kill, 40 for exec, 10 for node-loss, 5 for raft, restart and schedule, 3 for cluster, 1 for join]
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..=1000))]
    trials: Option<u16>,
    /// How long the cluster idles, or is watched for elections
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..=86400))]
    seconds: u64,
    /// How many threads take each processor's time while elections are waited for; 0 where enough else does
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u16).range(0..=64))]
    hogs: u16,
    /// How many nodes the large cluster has
    #[arg(long, default_value_t = 1_000, value_parser = clap::value_parser!(u32).range(1..=5_000))]
    nodes: u32,
    /// How many tasks are started on it at once
    #[arg(long, default_value_t = 30_000, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    tasks: u32,
    /// Print one line of JSON a figure
    #[arg(long)]
    json: bool,
    /// What the lab is called
    #[arg(long, default_value = "bench")]
    name: String,
}

impl Command {
    /// Carries the command out. Blocks until all is measured and the lab is removed.
    ///
    /// # Errors
    /// As [`bench::run`].
    pub fn run(self, out: &mut impl Write) -> Result<ExitCode> {
        let trials = self.trials.map(usize::from);
        let size = Size { nodes: self.nodes, tasks: self.tasks };
        let options = Options {
            kind: self.kind,
            trials,
            seconds: self.seconds,
            hogs: self.hogs.into(),
            name: self.name,
            size,
        };
        let mut figures = Vec::new();
        let done = bench::run(&options, &mut figures);
        if self.json {
            for figure in &figures {
                writeln!(out, "{}", figure.json())?;
            }
        } else {
            write!(out, "{}", bench::table(&figures))?;
        }
        out.flush()?;
        done.map(|()| ExitCode::SUCCESS)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        bench: Command,
    }

    fn parse(line: &str) -> Result<Command, clap::Error> {
        Line::try_parse_from(line.split(' ')).map(|line| line.bench)
    }

    #[test]
    fn everything_is_measured_unless_told_otherwise() {
        let all = parse("bench").unwrap();
        assert_eq!((all.kind, all.trials, all.seconds, all.name.as_str()), (Kind::All, None, 60, "bench"));
        let one = parse("bench node-loss --trials 3 --json").unwrap();
        assert_eq!((one.kind, one.trials, one.json), (Kind::NodeLoss, Some(3), true));
    }

    #[test]
    fn nonsense_is_refused() {
        for line in ["bench everything", "bench idle --seconds 0", "bench start --trials 0"] {
            assert!(parse(line).is_err(), "{line}");
        }
    }
}
