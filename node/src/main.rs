//! The binary `rswarm`.

use std::process::ExitCode;

fn main() -> ExitCode {
    if let Some(code) = rswarm_chaos::lab::dispatch() {
        return code;
    }
    rswarm::telemetry::init();
    let args: Vec<String> = std::env::args().collect();
    #[derive(clap::Parser)]
    struct Cli { #[arg(long, global=true)] socket: Option<std::path::PathBuf>, #[command(subcommand)] c: C }
    #[derive(clap::Subcommand)]
    enum C { Daemon(rswarm::config::Flags), Demo(rswarm::demo::Demo) }
    let _ = args;
    let cli = <Cli as clap::Parser>::parse();
    match cli.c {
        C::Demo(d) => d.run(),
        C::Daemon(f) => {
            let rt = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
            match rt.block_on(async { rswarm::daemon::run(rswarm::config::Config::new(f, cli.socket)?).await }) { Ok(()) => ExitCode::SUCCESS, Err(e) => { eprintln!("Error: {e:#}"); ExitCode::FAILURE } }
        }
    }
}
