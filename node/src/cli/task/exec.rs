//! `rswarm exec -it web.1 sh`

use super::input::{Room, feed};
use super::{enter, input, show};
use crate::cli::context::Context;
use crate::cli::failure::{Ended, Failure, refused};
use anyhow::{Context as _, Result, bail};
use rswarm_proto::v1 as pb;
use rswarm_proto::v1::enter_input::What as Input;
use rswarm_proto::v1::enter_open::Door;
use rswarm_proto::v1::enter_output::What as Output;
use rustix::termios::{self, OptionalActions, Termios};
use std::io::{IsTerminal, Write as _};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;

/// Run a command in a running task
#[derive(Debug, clap::Args)]
pub struct Exec {
    /// Start it, and do not wait for it
    #[arg(short, long)]
    detach: bool,
    /// Set an environment variable; NAME alone takes the value from here
    #[arg(short, long = "env", value_name = "NAME=VALUE")]
    env: Vec<String>,
    /// Pass standard input on
    #[arg(short, long)]
    interactive: bool,
    /// Give it a terminal
    #[arg(short, long)]
    tty: bool,
    /// Run as this user: `user[:group]`, by name or number
    #[arg(short, long, value_name = "USER")]
    user: Option<String>,
    /// Run in this directory
    #[arg(short, long, value_name = "DIR")]
    workdir: Option<String>,
    /// Task: a name such as `web.1`, an id, or the beginning of one
    task: String,
    /// Command and its arguments
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true, value_name = "COMMAND")]
    command: Vec<String>,
}

impl Exec {
    /// Carries the command out, and ends as the command in the task did.
    ///
    /// # Errors
    /// If there is no such running task, or the command cannot be executed.
    pub async fn run(self, cx: &mut Context) -> Result<()> {
        let stdin = std::io::stdin();
        if self.tty && self.interactive && !self.detach && !stdin.is_terminal() {
            let failure = Failure::failed("standard input is not a terminal");
            bail!(failure.help("leave out -t to pass on what comes from a file or a pipe"));
        }
        let door = pb::ExecDoor {
            args: self.command,
            env: self.env.into_iter().filter_map(from_here).collect(),
            user: self.user.unwrap_or_default(),
            workdir: self.workdir.unwrap_or_default(),
            stdin: self.interactive && !self.detach,
            tty: self.tty.then(window),
            detach: self.detach,
        };
        let with_stdin = door.stdin;
        let (sender, mut output) = enter(&mut cx.client().await?, &self.task, Door::Exec(door)).await?;
        let broken = |status: tonic::Status| refused(&status);
        let room = Room::default();
        loop {
            let message = output.message().await.map_err(broken).with_context(|| self.task.clone())?;
            match message.and_then(|message| message.what) {
                Some(Output::Opened(_)) if self.detach => return Ok(()),
                Some(Output::Opened(_)) => break,
                Some(Output::Room(bytes)) => room.grant(bytes),
                Some(Output::Failed(failed)) => return Err(unstarted(cx, &self.task, &failed)?),
                Some(_) => {}
                None => bail!("{}: the node hung up", self.task),
            }
        }
        let _raw = (self.tty && with_stdin).then(Raw::enter).flatten();
        if self.tty {
            tokio::spawn(resize(sender.clone()));
        }
        if with_stdin {
            let (sender, room) = (sender.clone(), room.clone());
            let pass_on = move || feed(&sender, &room, |bytes| (bytes.to_vec(), false));
            std::thread::Builder::new().name("stdin".into()).spawn(pass_on)?;
        }
        show(cx, &self.task, "the command", &mut output, &room).await
    }
}

/// Says why a command was not started, and how that ends this one.
fn unstarted(cx: &mut Context, task: &str, failed: &pb::EnterFailed) -> Result<anyhow::Error> {
    writeln!(cx.err, "Error: {task}: {}", failed.words)?;
    Ok(Ended(u8::try_from(failed.code).unwrap_or(1)).into())
}

/// `NAME` alone stands for the variable as it is here, and for nothing if it is not set.
fn from_here(entry: String) -> Option<String> {
    if entry.contains('=') {
        return Some(entry);
    }
    std::env::var(&entry).ok().map(|value| format!("{entry}={value}"))
}

/// The size of the terminal here.
pub(super) fn window() -> pb::WindowSize {
    let sizes = [termios::tcgetwinsize(std::io::stdout()), termios::tcgetwinsize(std::io::stdin())];
    let size = sizes.into_iter().flatten().find(|size| size.ws_row > 0 && size.ws_col > 0);
    let (rows, columns) = size.map_or((24, 80), |size| (size.ws_row, size.ws_col));
    pb::WindowSize { rows: rows.into(), columns: columns.into() }
}

pub(super) async fn resize(sender: mpsc::Sender<pb::EnterInput>) {
    let Ok(mut changes) = signal(SignalKind::window_change()) else { return };
    while changes.recv().await.is_some() {
        if sender.send(input(Input::Resize(window()))).await.is_err() {
            return;
        }
    }
}

/// The terminal here passes every key on, until this is dropped.
pub(super) struct Raw(Termios);

impl Raw {
    pub(super) fn enter() -> Option<Self> {
        let before = termios::tcgetattr(std::io::stdin()).ok()?;
        let mut raw = before.clone();
        raw.make_raw();
        termios::tcsetattr(std::io::stdin(), OptionalActions::Now, &raw).ok()?;
        Some(Self(before))
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        let _ = termios::tcsetattr(std::io::stdin(), OptionalActions::Drain, &self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Args {
        #[command(flatten)]
        exec: Exec,
    }

    #[test]
    fn what_follows_the_task_is_the_commands_own() {
        let words = ["exec", "-it", "-e", "A=b", "web.1", "ls", "-l", "--all", "-u"];
        let exec = Args::try_parse_from(words).expect("it parses").exec;
        assert!(exec.interactive && exec.tty && exec.user.is_none());
        assert_eq!((exec.task.as_str(), exec.command.join(" ").as_str()), ("web.1", "ls -l --all -u"));
        assert!(Args::try_parse_from(["exec", "web.1"]).is_err());
    }

    #[test]
    fn a_variable_without_a_value_is_taken_from_here() {
        assert_eq!(from_here("A=".into()).as_deref(), Some("A="));
        assert_eq!(from_here("RSWARM_NO_SUCH_VARIABLE".into()), None);
    }
}
