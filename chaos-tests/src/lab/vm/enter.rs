//! What is said to a machine from outside: a command to be run in it, or whether it reaches another one.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::SocketAddr,
    os::unix::net::UnixStream,
    process::ExitCode,
    thread,
    time::Duration,
};

use anyhow::{Context, Result, bail};

use super::{
    DOOR,
    agent::{Kind, PIECE_MAX, Request, receive, send},
};
use crate::lab::process::Process;

/// Beyond what the machine itself may take.
const MARGIN: Duration = Duration::from_secs(10);

fn begin(case: Process, request: &Request) -> Result<UnixStream> {
    let path = format!("/proc/{}/root{DOOR}", case.pid);
    let mut stream = UnixStream::connect(&path).with_context(|| format!("cannot speak to {path}"))?;
    writeln!(stream, "{}", serde_json::to_string(request)?)?;
    Ok(stream)
}

/// Runs a command in the machine, with this process's standard streams, and ends as it ends.
pub(in crate::lab) fn run(case: Process, words: Vec<String>) -> Result<ExitCode> {
    let stream = begin(case, &Request::Run(words))?;
    let out = stream.try_clone().context("cannot share a socket")?;
    thread::spawn(move || {
        let (mut input, mut piece) = (std::io::stdin(), vec![0; PIECE_MAX]);
        // An empty piece is the end.
        while let Ok(length) = input.read(&mut piece) {
            if send(&out, Kind::Input, &piece[..length]).is_err() || length == 0 {
                return;
            }
        }
    });
    loop {
        let (kind, piece) = receive(&stream).context("the machine ended, or does not answer")?;
        let written = match kind {
            Kind::Output => std::io::stdout().write_all(&piece).and_then(|()| std::io::stdout().flush()),
            Kind::Error => std::io::stderr().write_all(&piece),
            Kind::Ended => {
                let code = piece.try_into().map(i32::from_be_bytes);
                let code = code.ok().context("a command ended in no known way")?;
                return Ok(ExitCode::from(u8::try_from(code).unwrap_or(u8::MAX)));
            }
            Kind::Input => Ok(()),
        };
        // Nobody reads any more: the command is ended by the end of this.
        written.context("cannot write what the command says")?;
    }
}

/// Whether the machine gets an answer from this address within `bound`.
pub(in crate::lab) fn reaches(case: Process, target: SocketAddr, bound: Duration) -> Result<bool> {
    let millis = u64::try_from(bound.as_millis()).unwrap_or(u64::MAX);
    let stream = begin(case, &Request::Reach(target, millis))?;
    stream.set_read_timeout(Some(bound + MARGIN))?;
    let mut answer = String::new();
    BufReader::new(stream.take(10_000)).read_line(&mut answer)?;
    match answer.trim() {
        "yes" => Ok(true),
        "no" => Ok(false),
        other => bail!("cannot ask {target}: {other}"),
    }
}
