//! What a machine of a lab does for who knows its key: it is reached over the lab's network, at a port of its own.
//!
//! A connection begins with the key and a [`Request`], a line each. After that it is the conversation with the
//! socket that was asked for, or that of a command: pieces with a kind and a length before each.

use std::{
    io::{Read, Write},
    net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream},
    os::{
        fd::{AsFd, OwnedFd},
        unix::{
            net::UnixStream,
            process::{CommandExt, ExitStatusExt},
        },
    },
    process::{ChildStdin, Command, ExitCode, Stdio},
    sync::{Arc, Mutex, PoisonError},
    thread,
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use nix::{
    errno::Errno,
    sys::{
        signal::{Signal, killpg},
        wait::{Id, WaitPidFlag, waitid},
    },
    unistd::Pid,
};
use serde::{Deserialize, Serialize};

use crate::lab::machine::{ORDERS, SOCKET, environment};

/// `lab-agent`: serves what connects to its standard input, a listening socket.
pub(in crate::lab) const AGENT: &str = "lab-agent";
/// Where it listens in the machine.
pub(in crate::lab) const PORT: u16 = 1022;
/// The variable that tells it the key.
pub(super) const KEY: &str = "RSWARM_LAB_KEY";

/// The first two lines of a connection are no longer than this, in bytes.
pub(super) const LINE_MAX: u64 = 256 << 10;
/// No piece is longer, in bytes.
pub(super) const PIECE_MAX: usize = 64 << 10;
/// How long the first two lines may take.
const PATIENCE: Duration = Duration::from_secs(30);

/// What is wanted of a machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(in crate::lab) enum Request {
    /// To speak with its first process.
    Orders,
    /// To speak with its daemon.
    Daemon,
    /// A command to be run.
    Run(Vec<String>),
    /// Whether this address answers within so many milliseconds: `yes`, `no`, or what is in the way.
    Reach(SocketAddr, u64),
}

/// What a piece of a command's conversation is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// For the command to read; an empty one is the end.
    Input = 0,
    /// What it wrote.
    Output = 1,
    /// What it wrote to standard error.
    Error = 2,
    /// How it ended, in four bytes.
    Ended = 3,
}

impl Kind {
    fn of(number: u8) -> Option<Self> {
        [Self::Input, Self::Output, Self::Error, Self::Ended].into_iter().find(|kind| *kind as u8 == number)
    }
}

pub(super) fn send(mut to: impl Write, kind: Kind, piece: &[u8]) -> std::io::Result<()> {
    let mut bytes = Vec::with_capacity(5 + piece.len());
    bytes.push(kind as u8);
    bytes.extend((piece.len() as u32).to_be_bytes());
    bytes.extend(piece);
    to.write_all(&bytes)
}

pub(super) fn receive(mut from: impl Read) -> Result<(Kind, Vec<u8>)> {
    let mut head = [0; 5];
    from.read_exact(&mut head)?;
    let [kind, length @ ..] = head;
    let length = u32::from_be_bytes(length) as usize;
    ensure!(length <= PIECE_MAX, "a piece of {length} bytes");
    let mut piece = vec![0; length];
    from.read_exact(&mut piece)?;
    Ok((Kind::of(kind).context("a piece of no known kind")?, piece))
}

/// Sends on what is read until it ends, and tells the receiver of the end.
pub(super) fn pump(mut from: impl Read, mut to: impl Write) {
    // Either end may go at any time; the other one learns of it by the end.
    let _ = std::io::copy(&mut from, &mut to);
}

/// A stream socket of either kind.
pub(super) trait Stream: Read + Write + Sized + Send + 'static {
    fn twin(&self) -> std::io::Result<Self>;
    fn end(&self, how: Shutdown);
}

impl Stream for TcpStream {
    fn twin(&self) -> std::io::Result<Self> {
        self.try_clone()
    }
    fn end(&self, how: Shutdown) {
        let _ = self.shutdown(how);
    }
}

impl Stream for UnixStream {
    fn twin(&self) -> std::io::Result<Self> {
        self.try_clone()
    }
    fn end(&self, how: Shutdown) {
        let _ = self.shutdown(how);
    }
}

/// Joins two connections until both directions have ended.
pub(super) fn join(one: impl Stream, other: impl Stream) -> Result<()> {
    let (mut one_out, mut other_in) = (one.twin()?, other.twin()?);
    let back = thread::spawn(move || {
        pump(&mut other_in, &mut one_out);
        one_out.end(Shutdown::Write);
    });
    let (mut one, mut other) = (one, other);
    pump(&mut one, &mut other);
    other.end(Shutdown::Write);
    let _ = back.join();
    Ok(())
}

/// The hidden command.
pub(in crate::lab) fn serve() -> Result<ExitCode> {
    let key = std::env::var(KEY).context("no key was given")?;
    let socket = std::io::stdin().as_fd().try_clone_to_owned().context("no socket was given")?;
    let listener = TcpListener::from(socket);
    loop {
        let (stream, _) = listener.accept().context("cannot accept connections")?;
        let key = key.clone();
        // Who harms a conversation harms only itself.
        thread::spawn(move || {
            if let Err(error) = answer(stream, &key) {
                eprintln!("{AGENT}: {error:#}");
            }
        });
    }
}

fn answer(stream: TcpStream, key: &str) -> Result<()> {
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    // Byte by byte of a buffer that holds no more than the two lines: what follows is the conversation's.
    let (said, request) = (line(&stream)?, line(&stream)?);
    ensure!(said == key, "somebody who does not know the key");
    stream.set_read_timeout(None)?;
    match serde_json::from_str(&request).context("no such request")? {
        Request::Orders => join(stream, UnixStream::connect(ORDERS)?),
        Request::Daemon => join(stream, UnixStream::connect(SOCKET)?),
        Request::Run(words) => run(&stream, &words),
        Request::Reach(address, millis) => {
            let reached = crate::lab::node::reach(address, Duration::from_millis(millis));
            let word = match reached {
                Ok(true) => "yes".to_owned(),
                Ok(false) => "no".to_owned(),
                Err(error) => format!("{error:#}"),
            };
            Ok(writeln!(&stream, "{word}")?)
        }
    }
}

/// A line, and not a byte more.
pub(super) fn line(mut from: impl Read) -> Result<String> {
    let mut line = Vec::new();
    let mut byte = [0];
    loop {
        from.read_exact(&mut byte)?;
        if byte == *b"\n" {
            return Ok(String::from_utf8(line)?);
        }
        ensure!((line.len() as u64) < LINE_MAX, "a line too long");
        line.push(byte[0]);
    }
}

fn run(stream: &TcpStream, words: &[String]) -> Result<()> {
    let [program, arguments @ ..] = words else { bail!("an empty command") };
    let mut command = Command::new(program);
    command.args(arguments).env_clear().envs(environment()).current_dir("/root").process_group(0);
    let spawned = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
    let mut child = match spawned {
        Ok(child) => child,
        Err(error) => {
            let said = format!("cannot run {program}: {error}\n");
            send(stream, Kind::Error, said.as_bytes())?;
            let missing = error.kind() == std::io::ErrorKind::NotFound;
            return Ok(send(stream, Kind::Ended, &(if missing { 127_i32 } else { 126 }).to_be_bytes())?);
        }
    };
    let group = Pid::from_raw(child.id() as i32);
    let out = Arc::new(Mutex::new(stream.try_clone()?));
    let said = [
        (Kind::Output, child.stdout.take().map(OwnedFd::from)),
        (Kind::Error, child.stderr.take().map(OwnedFd::from)),
    ]
    .map(|(kind, pipe)| {
        let out = out.clone();
        thread::spawn(move || pipe.into_iter().for_each(|pipe| pass(kind, pipe.into(), &out)))
    });
    let (input, mut from) = (child.stdin.take(), stream.try_clone()?);
    let ended = Arc::new(Mutex::new(false));
    let has_ended = ended.clone();
    thread::spawn(move || {
        feed(&mut from, input);
        // Nobody listens any more. The number is the group's own as long as the command was not waited for.
        if !*has_ended.lock().unwrap_or_else(PoisonError::into_inner) {
            let _ = killpg(group, Signal::SIGKILL);
        }
    });
    while let Err(error) = waitid(Id::Pid(group), WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT) {
        ensure!(error == Errno::EINTR, "cannot wait for a command: {error}");
    }
    *ended.lock().unwrap_or_else(PoisonError::into_inner) = true;
    let status = child.wait().context("cannot wait for a command")?;
    let code = status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0));
    let [output, error] = said;
    for thread in [output, error] {
        settle(thread);
    }
    let mut out = out.lock().unwrap_or_else(PoisonError::into_inner);
    send(&mut *out, Kind::Ended, &code.to_be_bytes())?;
    out.end(Shutdown::Both);
    Ok(())
}

/// Waits for what a command has still to say. A process that it left behind may hold the pipe for ever.
fn settle(thread: thread::JoinHandle<()>) {
    let (told, ended) = std::sync::mpsc::channel();
    thread::spawn(move || {
        let _ = thread.join();
        let _ = told.send(());
    });
    let _ = ended.recv_timeout(Duration::from_millis(500));
}

fn pass(kind: Kind, mut pipe: std::fs::File, out: &Mutex<TcpStream>) {
    let mut piece = vec![0; PIECE_MAX];
    loop {
        match pipe.read(&mut piece) {
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Ok(0) | Err(_) => return,
            Ok(length) => {
                let mut out = out.lock().unwrap_or_else(PoisonError::into_inner);
                if send(&mut *out, kind, &piece[..length]).is_err() {
                    return;
                }
            }
        }
    }
}

/// Until who sends is gone.
fn feed(from: &mut TcpStream, mut input: Option<ChildStdin>) {
    while let Ok((kind, piece)) = receive(&mut *from) {
        if kind != Kind::Input || piece.is_empty() {
            input = None;
        } else if let Some(pipe) = &mut input
            && pipe.write_all(&piece).is_err()
        {
            input = None;
        }
    }
}

/// Begins a conversation with a machine.
pub(super) fn call(address: Ipv4Addr, key: &str, request: &str, patience: Duration) -> Result<TcpStream> {
    let mut stream = TcpStream::connect_timeout(&SocketAddr::from((address, PORT)), patience)?;
    stream.set_nodelay(true)?;
    write!(stream, "{key}\n{request}\n")?;
    Ok(stream)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_are_told_apart_and_bounded() {
        let mut bytes = Vec::new();
        send(&mut bytes, Kind::Output, b"said").unwrap();
        send(&mut bytes, Kind::Ended, &7_i32.to_be_bytes()).unwrap();
        let mut from = bytes.as_slice();
        assert_eq!(receive(&mut from).unwrap(), (Kind::Output, b"said".to_vec()));
        assert_eq!(receive(&mut from).unwrap(), (Kind::Ended, vec![0, 0, 0, 7]));
        assert!(receive(&mut from).is_err(), "that was all");
        assert!(receive(&[1, 0xff, 0xff, 0xff, 0xff, 0][..]).is_err(), "too long");
        assert!(receive(&[9, 0, 0, 0, 0][..]).is_err(), "no such kind");
    }

    #[test]
    fn a_line_ends_where_it_ends() {
        let mut from = &b"key\nrest"[..];
        assert_eq!(line(&mut from).unwrap(), "key");
        assert_eq!(from, b"rest");
        assert!(line(&vec![b'x'; LINE_MAX as usize + 2][..]).is_err());
        assert!(line(&b"no end"[..]).is_err());
    }

    #[test]
    fn who_does_not_know_the_key_gets_nothing() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let asked = thread::spawn(move || {
            let mut stream = TcpStream::connect(address).unwrap();
            stream.write_all(b"guess\n{\"run\":[\"true\"]}\n").unwrap();
            let mut said = String::new();
            let _ = stream.read_to_string(&mut said);
            said
        });
        let (stream, _) = listener.accept().unwrap();
        assert!(answer(stream, "key").is_err());
        assert_eq!(asked.join().unwrap(), "");
    }
}
