//! The binary `rswarm`.

use std::{io, process::ExitCode};

use clap::{Parser, Subcommand};

mod cli {
    pub mod lab;
}

#[derive(Debug, Parser)]
#[command(name = "rswarm")]
struct Arguments {
    #[command(subcommand)]
    command: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    Lab(cli::lab::Command),
}

fn main() -> ExitCode {
    if let Some(code) = rswarm_chaos::lab::dispatch() {
        return code;
    }
    match Arguments::parse().command {
        Verb::Lab(lab) => lab.run(&mut io::stdout().lock()).unwrap_or_else(|error| {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }),
    }
}
