//! The binary `rswarm`: parse, dispatch, exit code.

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// A container orchestrator: one binary turns a few Linux machines into one
#[derive(Parser)]
#[command(name = "rswarm", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Demo(rswarm::demo::Demo),
}

fn main() -> ExitCode {
    match Cli::parse().command {
        Command::Demo(demo) => demo.run(),
    }
}
