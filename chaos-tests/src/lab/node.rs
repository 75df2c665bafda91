//! One node of a lab, and commands run inside it.

use std::{
    ffi::{OsStr, OsString},
    io::{ErrorKind, Read},
    net::{Ipv4Addr, SocketAddr, TcpStream},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use rswarm_netoverlay::device::netns::Netns;

use super::{Lab, form::CONTROL_PORT, machine, process::Process, record::Record, running, vm};

/// What a command in a node did.
#[derive(Debug, Clone)]
pub struct Ran {
    /// What was run, for messages.
    pub command: String,
    /// Its exit code; 128 plus the signal if one ended it.
    pub code: i32,
    /// What it wrote to standard output.
    pub stdout: String,
    /// What it wrote to standard error.
    pub stderr: String,
}

impl Ran {
    /// Its standard output if it succeeded, else an error with all it had to say.
    pub fn ok(self) -> Result<String> {
        if self.code == 0 {
            return Ok(self.stdout);
        }
        let said = [self.stderr.trim(), self.stdout.trim()].join("\n");
        bail!("{} failed with code {}: {}", self.command, self.code, said.trim())
    }
}

/// One node of a lab.
#[derive(Debug, Clone, Copy)]
pub struct Node<'a> {
    pub(super) lab: &'a Lab,
    pub(super) name: &'a str,
}

impl Node<'_> {
    /// Its name.
    pub fn name(&self) -> &str {
        self.name
    }

    /// Its address.
    pub fn address(&self) -> Result<Ipv4Addr> {
        let record = self.lab.record()?;
        Ok(record.subnet.context("the lab has no network yet")?.node(record.node(self.name)?.number))
    }

    /// Where its daemon's log is.
    pub fn log(&self) -> PathBuf {
        self.lab.directory.join(self.name).join("daemon.log")
    }

    /// Its root directory, as this machine sees it.
    ///
    /// # Errors
    /// If the node is off.
    pub fn root(&self) -> Result<PathBuf> {
        let record = self.lab.record()?;
        if record.backend.is_vm() {
            bail!("{} has a kernel of its own, and its files are not seen from here", self.name);
        }
        let init = running(record.node(self.name)?)?;
        Ok(format!("/proc/{}/root", init.pid).into())
    }

    /// Whether this node gets an answer from another one: whether a connection to its control port comes about, or
    /// is refused, within `bound`.
    ///
    /// # Errors
    /// If this node is off.
    pub fn reaches(&self, other: &str, bound: Duration) -> Result<bool> {
        let record = self.lab.record()?;
        let init = running(record.node(self.name)?)?;
        let target = SocketAddr::new(self.lab.node(other).address()?.into(), CONTROL_PORT);
        if record.backend.is_vm() {
            return vm::enter::reaches(init, target, bound);
        }
        let inside = Netns::open(Path::new(&format!("/proc/{}/ns/net", init.pid)))?;
        let reached = inside.run(|| reach(target, bound))?;
        reached.with_context(|| format!("cannot ask {target} from {}", self.name))
    }

    /// A command that runs `words` inside the node, with `rswarm` on the path and talking to the
    /// node's daemon. Ends as that ends: with its code, or 128 plus its signal.
    ///
    /// # Errors
    /// If the node is off or paused.
    pub fn command<W: AsRef<OsStr>>(&self, words: &[W]) -> Result<Command> {
        let record = self.lab.record()?;
        let node = record.node(self.name)?;
        let init = running(node)?;
        if self.lab.is_paused(record.backend, node, init) {
            bail!("{0} is paused; let it go on by `rswarm lab resume {0}`", self.name);
        }
        let mut command = Command::new(&record.program);
        command.arg(machine::ENTER).arg(&self.lab.directory).arg(self.name).arg("--").args(words);
        Ok(command)
    }

    /// Runs a command inside the node for at most a minute.
    pub fn exec<W: AsRef<OsStr>>(&self, words: &[W]) -> Result<Ran> {
        self.exec_within(words, Duration::from_secs(60))
    }

    /// Runs a command inside the node; it is killed when `bound` has passed.
    pub fn exec_within<W: AsRef<OsStr>>(&self, words: &[W], bound: Duration) -> Result<Ran> {
        finish(self.command(words)?, spoken(words, self.name), bound)
    }

    /// Speaks with the node's daemon from this machine, by `rswarm` with these arguments; it is killed when
    /// `bound` has passed. Half the work of [`Node::rswarm_within`], which enters the node.
    pub fn call<W: AsRef<OsStr>>(&self, arguments: &[W], bound: Duration) -> Result<Ran> {
        self.caller()?.call(arguments, bound)
    }

    /// The same to be kept: it speaks with whatever daemon the node has at the time.
    pub fn caller(&self) -> Result<Caller> {
        let record = self.lab.record()?;
        record.node(self.name)?;
        Ok(Caller { directory: self.lab.directory.clone(), name: self.name.to_string() })
    }

    /// Runs `rswarm` with these arguments inside the node for at most a minute.
    pub fn rswarm<W: AsRef<OsStr>>(&self, arguments: &[W]) -> Result<Ran> {
        self.rswarm_within(arguments, Duration::from_secs(60))
    }

    /// Runs `rswarm` with these arguments inside the node; it is killed when `bound` has passed.
    pub fn rswarm_within<W: AsRef<OsStr>>(&self, arguments: &[W], bound: Duration) -> Result<Ran> {
        let words: Vec<OsString> =
            [OsString::from("rswarm")].into_iter().chain(arguments.iter().map(Into::into)).collect();
        self.exec_within(&words, bound)
    }

    /// See [`Lab::kill`].
    pub fn kill(&self) -> Result<()> {
        self.lab.kill(self.name)
    }

    /// See [`Lab::start`].
    pub fn start(&self) -> Result<()> {
        self.lab.start(self.name)
    }
}

/// Whether this address answers from here, if only by a refusal.
pub(super) fn reach(target: SocketAddr, bound: Duration) -> std::io::Result<bool> {
    match TcpStream::connect_timeout(&target, bound) {
        Ok(_) => Ok(true),
        Err(error) => match error.kind() {
            ErrorKind::ConnectionRefused | ErrorKind::ConnectionReset => Ok(true),
            ErrorKind::TimedOut | ErrorKind::HostUnreachable | ErrorKind::NetworkUnreachable => Ok(false),
            _ => Err(error),
        },
    }
}

/// Runs a command to its end, or kills it when `bound` has passed.
fn finish(mut command: Command, spoken: String, bound: Duration) -> Result<Ran> {
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().with_context(|| format!("cannot run {spoken}"))?;
    let stdout = drain(child.stdout.take());
    let stderr = drain(child.stderr.take());
    let process = Process::find(child.id() as i32);
    let in_time = process.map_or(Ok(true), |process| process.wait(bound));
    if !in_time.context("cannot wait for a command")? {
        child.kill().context("cannot kill a command")?;
        let _ = child.wait();
        let said = [collect(&stderr), collect(&stdout)].concat();
        let lines: Vec<&str> = said.trim().lines().collect();
        let last = lines[lines.len().saturating_sub(SAID)..].join("\n");
        bail!(
            "{spoken} did not end within {bound:?}{}{last}",
            if last.is_empty() { "" } else { "; it said last:\n" }
        );
    }
    let status = child.wait().context("cannot wait for a command")?;
    let code = status
        .code()
        .unwrap_or_else(|| 128 + std::os::unix::process::ExitStatusExt::signal(&status).unwrap_or_default());
    Ok(Ran { command: spoken, code, stdout: collect(&stdout), stderr: collect(&stderr) })
}

fn spoken<W: AsRef<OsStr>>(words: &[W], node: &str) -> String {
    let words: Vec<_> = words.iter().map(|word| word.as_ref().to_string_lossy()).collect();
    let line = words.join(" ");
    match line.char_indices().nth(SPOKEN_MAX) {
        Some((at, _)) => format!("`{} …` on {node}", &line[..at]),
        None => format!("`{line}` on {node}"),
    }
}

/// Speaks with a node's daemon from this machine.
#[derive(Debug, Clone)]
pub struct Caller {
    directory: PathBuf,
    name: String,
}

impl Caller {
    /// Runs `rswarm` with these arguments; it is killed when `bound` has passed.
    ///
    /// # Errors
    /// If the node is off or the time is up. A command that fails is none.
    pub fn call<W: AsRef<OsStr>>(&self, arguments: &[W], bound: Duration) -> Result<Ran> {
        let record = Record::read(&self.directory)?.context("the lab is gone")?;
        let init = running(record.node(&self.name)?)?;
        let mut command = Command::new(&record.program);
        command.arg("--socket").arg(format!("/proc/{}/root{}", init.pid, machine::SOCKET)).args(arguments);
        finish(command, spoken(arguments, &self.name), bound)
    }
}

/// At most so much of a command line is told, in characters.
const SPOKEN_MAX: usize = 200;

/// So many lines are told of what a command had said that did not end.
const SAID: usize = 6;

/// At most so much of a command's output is kept, in bytes.
const OUTPUT_MAX: u64 = 16 << 20;

/// How long output may still arrive after its command has ended. A process it left in the background
/// may hold the pipe open for ever.
const OUTPUT_PATIENCE: Duration = Duration::from_millis(500);

/// Reads a pipe to its end on a thread of its own, a piece at a time.
fn drain(pipe: Option<impl Read + Send + 'static>) -> mpsc::Receiver<Vec<u8>> {
    let (pieces, receiver) = mpsc::channel();
    thread::spawn(move || {
        let mut pipe = pipe.into_iter().map(|pipe| pipe.take(OUTPUT_MAX)).next();
        while let Some(pipe) = &mut pipe {
            let mut piece = vec![0; 64 << 10];
            match pipe.read(&mut piece) {
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Ok(0) | Err(_) => return,
                Ok(length) => {
                    piece.truncate(length);
                    if pieces.send(piece).is_err() {
                        return;
                    }
                }
            }
        }
    });
    receiver
}

fn collect(pieces: &mpsc::Receiver<Vec<u8>>) -> String {
    let end = Instant::now() + OUTPUT_PATIENCE;
    let mut bytes = Vec::new();
    while let Ok(piece) = pieces.recv_timeout(end.saturating_duration_since(Instant::now())) {
        bytes.extend(piece);
    }
    String::from_utf8_lossy(&bytes).into_owned()
}
