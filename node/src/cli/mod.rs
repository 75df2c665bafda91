//! The command line: one file a command, which holds its words, its type and its `run`. Results go to a
//! writer, so that a test reads a string.

pub mod backup;
pub mod bench;
pub mod client;
pub mod completion;
pub mod context;
pub mod drill;
pub mod events;
pub mod failure;
pub mod image;
pub mod init;
pub mod join;
pub mod join_token;
pub mod lab;
pub mod leave;
pub mod login;
pub mod logout;
pub mod network;
pub mod node;
pub mod output;
pub mod rejoin;
pub mod restore;
pub mod service;
pub mod sim;
pub mod start;
pub mod status;
pub mod task;
pub mod update;
pub mod version;
pub mod view;
pub mod volume;
pub mod why;

use crate::config::{Config, Flags};
use crate::demo::Demo;
use anyhow::{Context as _, Result};
use clap::{Parser, Subcommand};
use context::Context;
use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

/// Turns a few Linux machines into one that runs your containers
#[derive(Debug, Parser)]
#[command(name = "rswarm", version, disable_help_subcommand = true, arg_required_else_help = true)]
pub struct Cli {
    /// Socket of the daemon to talk to
    #[arg(long, global = true, env = "RSWARM_SOCKET", value_name = "PATH", default_value = client::SOCKET,
        help_heading = "Global options")]
    pub socket: PathBuf,
    /// Let the manager asked answer `ls`, `ps` and `inspect` from what it knows, though that may be old: also without a
    /// leader. How old is told along
    #[arg(long, global = true, help_heading = "Global options")]
    pub stale: bool,
    /// What to do
    #[command(subcommand)]
    pub command: Words,
}

/// All commands.
#[derive(Debug, Subcommand)]
#[allow(missing_docs, clippy::large_enum_variant, reason = "each is described by its type, and there is one")]
pub enum Words {
    #[command(flatten)]
    Talk(Command),
    Lab(lab::Command),
    Bench(bench::Command),
    Sim(sim::Command),
    Drill(drill::Command),
    #[command(hide = true)]
    BenchMember(crate::bench::raft::member::MemberArgs),
    Daemon(Flags),
    /// Be the demo service (what the image rswarm/demo runs)
    #[command(hide = true)]
    Demo(Demo),
}

/// The commands that talk to a daemon.
#[derive(Debug, Subcommand)]
#[allow(missing_docs, clippy::large_enum_variant, reason = "each is described by its type, and there is one")]
pub enum Command {
    Init(init::Init),
    Join(join::Join),
    Leave(leave::Leave),
    Rejoin(rejoin::Rejoin),
    JoinToken(join_token::JoinToken),
    Backup(backup::Backup),
    Restore(restore::Restore),
    Status(status::StatusArgs),
    Why(why::Why),
    Events(events::Events),
    Update(update::Update),
    Version(version::Version),
    #[command(subcommand)]
    Node(node::NodeCommand),
    #[command(subcommand)]
    Service(service::ServiceCommand),
    #[command(subcommand)]
    Network(network::NetworkCommand),
    #[command(subcommand)]
    Image(image::ImageCommand),
    Exec(task::exec::Exec),
    Attach(task::attach::Attach),
    Cp(task::cp::Cp),
    Logs(service::logs::Logs),
    Top(task::top::Top),
    Stats(task::stats::Stats),
    Pause(task::pause::Pause),
    Unpause(task::pause::Unpause),
    PortForward(task::port_forward::PortForward),
    #[command(subcommand)]
    Volume(volume::VolumeCommand),
    Login(login::Login),
    Logout(logout::Logout),
    Completion(completion::Completion),
}

impl Command {
    /// Whether it only looks at the cluster's objects.
    fn looks(&self) -> bool {
        use network::NetworkCommand as Network;
        use node::NodeCommand as Node;
        use service::ServiceCommand as Service;
        match self {
            Self::Node(node) => matches!(node, Node::Ls(_) | Node::Inspect(_) | Node::Ps(_)),
            Self::Service(service) => {
                matches!(service, Service::Ls(_) | Service::Inspect(_) | Service::Ps(_) | Service::History(_))
            }
            Self::Network(network) => matches!(network, Network::Ls(_) | Network::Inspect(_)),
            _ => false,
        }
    }

    /// Carries the command out.
    ///
    /// # Errors
    /// With the words for the user; [`failure::exit_code`] knows how the process ends.
    pub async fn run(self, cx: &mut Context) -> Result<()> {
        match self {
            Self::Init(command) => command.run(cx).await,
            Self::Join(command) => command.run(cx).await,
            Self::Leave(command) => command.run(cx).await,
            Self::Rejoin(command) => command.run(cx).await,
            Self::JoinToken(command) => command.run(cx).await,
            Self::Backup(command) => command.run(cx).await,
            Self::Restore(command) => command.run(cx).await,
            Self::Status(command) => command.run(cx).await,
            Self::Why(command) => command.run(cx).await,
            Self::Events(command) => command.run(cx).await,
            Self::Update(command) => command.run(cx).await,
            Self::Version(command) => command.run(cx).await,
            Self::Node(command) => command.run(cx).await,
            Self::Service(command) => command.run(cx).await,
            Self::Network(command) => command.run(cx).await,
            Self::Image(command) => command.run(cx).await,
            Self::Exec(command) => command.run(cx).await,
            Self::Attach(command) => command.run(cx).await,
            Self::Cp(command) => command.run(cx).await,
            Self::Logs(command) => command.run(cx).await,
            Self::Top(command) => command.run(cx).await,
            Self::Stats(command) => command.run(cx).await,
            Self::Pause(command) => command.run(cx).await,
            Self::Unpause(command) => command.run(cx).await,
            Self::PortForward(command) => command.run(cx).await,
            Self::Volume(command) => command.run(cx).await,
            Self::Login(command) => command.run(cx).await,
            Self::Logout(command) => command.run(cx).await,
            Self::Completion(command) => command.run(cx),
        }
    }
}

/// Who asks, for the history of what is changed: `root@n1`. The socket's owner is believed.
pub fn author() -> String {
    let user = ["SUDO_USER", "USER", "LOGNAME"].into_iter().find_map(|name| std::env::var(name).ok());
    let user =
        user.filter(|user| !user.is_empty()).unwrap_or_else(|| nix::unistd::Uid::current().to_string());
    format!("{user}@{}", crate::machine::hostname())
}

/// Reads the process's arguments, carries the command out, and says how the process ends.
pub fn main() -> ExitCode {
    if let Some(code) = crate::bench::stamp::dispatch().or_else(crate::bench::exec::floor::dispatch) {
        return code;
    }
    let cli = Cli::parse();
    let command = match cli.command {
        Words::Talk(command) => command,
        Words::Lab(lab) => return concluded(lab.run(&mut std::io::stdout().lock())),
        Words::Drill(drill) => return concluded(drill.run(&mut std::io::stdout().lock())),
        Words::Sim(sim) => return concluded(sim.run(&mut std::io::stdout().lock())),
        Words::Bench(bench) => return concluded(bench.run(&mut std::io::stdout().lock())),
        Words::BenchMember(member) => return member.run(),
        Words::Daemon(flags) => return daemon(flags, cli.socket),
        Words::Demo(demo) => return demo.run(),
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let mut cx = Context::of_process(cli.socket, cli.stale);
    if cli.stale && !command.looks() {
        let why = "--stale is for what lists or inspects nodes, services, tasks and networks";
        return ExitCode::from(conclude(Err(failure::Failure::usage(why).into()), &mut cx));
    }
    let done = match runtime {
        Ok(runtime) => runtime.block_on(command.run(&mut cx)),
        Err(error) => Err(anyhow::Error::new(error).context("cannot start")),
    };
    let done = done.and_then(|()| Ok(cx.tell_age()?));
    ExitCode::from(conclude(done, &mut cx))
}

/// The exit code of a command that talks to no daemon, with its error printed.
fn concluded(done: Result<ExitCode>) -> ExitCode {
    done.unwrap_or_else(|error| {
        if is_broken_pipe(&error) {
            return ExitCode::SUCCESS;
        }
        eprintln!("Error: {error:#}");
        ExitCode::FAILURE
    })
}

/// Whether all that went wrong is that whoever read our output has seen enough.
fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| {
        cause.downcast_ref::<std::io::Error>().is_some_and(|e| e.kind() == std::io::ErrorKind::BrokenPipe)
    })
}

/// Runs a node until it is told to stop.
fn daemon(flags: Flags, socket: PathBuf) -> ExitCode {
    crate::telemetry::init();
    let run = || -> Result<()> {
        // Who starts a daemon may itself hold signals back, and that is inherited: then no SIGTERM would arrive.
        // Threads inherit it in turn, so it comes before them.
        nix::sys::signal::SigSet::empty().thread_set_mask().context("cannot unblock signals")?;
        let config = Config::new(flags, Some(socket))?;
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
        runtime.context("cannot start")?.block_on(crate::daemon::run(config))
    };
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Standard error may be a file on a full disk; the exit code tells it then.
            let _ = writeln!(std::io::stderr(), "Error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Prints the error, if there is one, and returns the exit code.
pub fn conclude(done: Result<()>, cx: &mut Context) -> u8 {
    let Err(error) = done.and_then(|()| Ok(cx.out.flush()?)) else { return 0 };
    if is_broken_pipe(&error) {
        return 0;
    }
    if error.is::<failure::Ended>() {
        return failure::exit_code(&error);
    }
    let text = failure::report(&error);
    // Nothing is left to tell it to if standard error is gone.
    let _ = cx.err.write_all(cx.paint(context::Colour::Red, "Error:", &text).as_bytes());
    failure::exit_code(&error)
}
