//! Speaking with the processes a lab is made of.

use std::{
    ffi::OsStr,
    fs,
    io::{BufRead, BufReader, Read, Write},
    os::unix::net::UnixStream,
    path::Path,
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow, bail};

use super::{PATIENCE, machine, process::Process};

/// Starts one of the program's hidden commands that leave a process behind, and returns that process
/// once it says that it is ready.
pub(super) fn spawn(
    program: &Path,
    command: &str,
    arguments: &[&OsStr],
    stdin: Stdio,
    log: &Path,
) -> Result<Process> {
    let file = fs::File::options().create(true).append(true).open(log);
    let file = file.with_context(|| format!("cannot open {}", log.display()))?;
    let child = Command::new(program)
        .arg(command)
        .args(arguments)
        .stdin(stdin)
        .stdout(Stdio::piped())
        .stderr(file)
        .spawn()
        .with_context(|| format!("cannot run {}", program.display()))?;
    let said = child.wait_with_output().with_context(|| format!("cannot hear from {command}"))?.stdout;
    let said = String::from_utf8_lossy(&said);
    // Two processes speak, so the order of their lines is open.
    let mut ready = false;
    let mut process = None;
    for line in said.lines() {
        match line.split(' ').collect::<Vec<_>>()[..] {
            ["ready"] => ready = true,
            ["process", pid, started] => {
                process = Some(Process {
                    pid: pid.parse().context("a malformed process number")?,
                    started: started.parse().context("a malformed start time")?,
                });
            }
            _ => {}
        }
    }
    if let Some(process) = process.filter(|_| ready) {
        return Ok(process);
    }
    let why = tail(log, 3);
    Err(anyhow!("{command} failed: {}", if why.is_empty() { "it said nothing" } else { why.trim() }))
}

/// Gives one order to a node's first process, and returns its answer.
pub(super) fn order(init: Process, order: &str) -> Result<String> {
    order_within(init, order, PATIENCE)
}

/// The same, where the answer may take its time.
pub(super) fn order_within(init: Process, order: &str, bound: Duration) -> Result<String> {
    let path = format!("/proc/{}/root{}", init.pid, machine::ORDERS);
    let ask = || -> Result<String> {
        let stream = UnixStream::connect(&path)?;
        stream.set_read_timeout(Some(bound))?;
        writeln!(&stream, "{order}")?;
        let mut answer = String::new();
        BufReader::new((&stream).take(10_000)).read_line(&mut answer)?;
        Ok(answer.trim().to_string())
    };
    let answer =
        ask().with_context(|| format!("cannot speak with the node's first process ({})", init.pid))?;
    if !init.is_alive() {
        bail!("the node went off");
    }
    match answer.strip_prefix("error: ") {
        Some(error) => Err(anyhow!("{error}")),
        None => Ok(answer),
    }
}

/// Waits until `condition` holds, for at most [`PATIENCE`].
pub(super) fn eventually(what: &str, mut condition: impl FnMut() -> Result<bool>) -> Result<()> {
    let end = Instant::now() + PATIENCE;
    while !condition()? {
        if Instant::now() > end {
            bail!("waited {PATIENCE:?} in vain until {what}");
        }
        thread::sleep(Duration::from_millis(2));
    }
    Ok(())
}

/// The last lines of a file, or nothing.
pub(super) fn tail(path: &Path, lines: usize) -> String {
    let text = fs::read(path).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default();
    let all: Vec<&str> = text.lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}
