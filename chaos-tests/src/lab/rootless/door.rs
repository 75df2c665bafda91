//! The door of a lab: a socket of the real machine, carried into the lab's network by the process that
//! listens on it. What connects to it is led to the same port of a node that answers.

use std::{
    ffi::OsString,
    fs, io,
    net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream},
    os::{
        fd::{AsFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::Path,
    process::{ExitCode, Stdio},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};

use anyhow::{Context, Result, bail};
use rustix::process::Signal;

use super::ground;
use crate::lab::{
    PATIENCE,
    form::DEMO_PORT,
    machine::{announce_ready, become_child, leave_caller},
    process::{Process, with_arguments},
    record::Record,
    standstill::is_stopped,
    talk::spawn,
};

/// `lab-door BASE NAME`: leads what connects to its standard input, a listening socket, into the lab.
pub(in crate::lab) const DOOR: &str = "lab-door";

/// More connections than these wait.
const CONNECTIONS_MAX: usize = 256;

/// How long a node may take to accept a connection before another one is tried.
const NODE_PATIENCE: Duration = Duration::from_millis(500);

/// How many ports after the first are tried before any free one is taken.
const PORTS_TRIED: u16 = 20;

/// Opens the door of a lab, unless it is open, and returns its port.
pub(super) fn ensure(base: &Path, name: &str) -> Result<u16> {
    let base = fs::canonicalize(base).with_context(|| format!("cannot resolve {}", base.display()))?;
    let note = base.join(name).join("door");
    let noted = fs::read_to_string(&note).ok().and_then(|text| text.trim().parse::<u16>().ok());
    if let Some(port) = noted
        && find(&base, name).is_some()
    {
        return Ok(port);
    }
    let listener = listen(noted.unwrap_or(DEMO_PORT))?;
    let port = listener.local_addr().context("cannot ask for a port")?.port();
    let log = base.join(name).join("door.log");
    let words = [base.as_os_str(), name.as_ref()];
    spawn(&super::own_program()?, DOOR, &words, Stdio::from(OwnedFd::from(listener)), &log)?;
    fs::write(&note, port.to_string()).with_context(|| format!("cannot write {}", note.display()))?;
    Ok(port)
}

/// Closes it. Fine if it is closed.
pub(super) fn close(base: &Path, name: &str) -> Result<()> {
    let Ok(base) = fs::canonicalize(base) else { return Ok(()) };
    if let Some(process) = find(&base, name) {
        process.signal(Signal::KILL).context("cannot close the lab's door")?;
        if !process.wait(PATIENCE).context("cannot wait for a process to end")? {
            bail!("process {} does not die; look at its state in /proc", process.pid);
        }
    }
    Ok(())
}

fn find(base: &Path, name: &str) -> Option<Process> {
    with_arguments(&[DOOR.as_bytes(), base.as_os_str().as_bytes(), name.as_bytes()]).into_iter().next()
}

/// Listens on the port, one of the next, or any.
fn listen(port: u16) -> Result<TcpListener> {
    let mut last = None;
    for port in (port..=port.saturating_add(PORTS_TRIED)).chain([0]) {
        match TcpListener::bind((Ipv4Addr::LOCALHOST, port)) {
            Ok(listener) => return Ok(listener),
            Err(error) => last = Some(error),
        }
    }
    Err(last.unwrap_or_else(|| io::ErrorKind::AddrInUse.into())).context("no port of 127.0.0.1 is free")
}

/// The hidden command.
pub(in crate::lab) fn hold(arguments: &[OsString]) -> Result<ExitCode> {
    let [base, name] = arguments else { bail!("usage: {DOOR} BASE NAME") };
    let (base, directory) = (Path::new(base), Path::new(base).join(name));
    leave_caller()?;
    let listener = io::stdin().as_fd().try_clone_to_owned().context("there is no socket to listen on")?;
    ground::existing(base)?.enter()?;
    if become_child()? {
        announce_ready()?;
        serve(&TcpListener::from(listener), &directory);
    }
    Ok(ExitCode::SUCCESS)
}

/// Leads each visitor in, for ever.
fn serve(listener: &TcpListener, directory: &Path) -> ! {
    let open = Arc::new(AtomicUsize::new(0));
    loop {
        let Ok((visitor, _)) = listener.accept() else {
            // Out of descriptors, most likely: those who leave give theirs back.
            thread::sleep(Duration::from_millis(50));
            continue;
        };
        while open.load(Ordering::Relaxed) >= CONNECTIONS_MAX {
            thread::sleep(Duration::from_millis(5));
        }
        open.fetch_add(1, Ordering::Relaxed);
        let (seat, directory) = (Arc::clone(&open), directory.to_path_buf());
        let spawned = thread::Builder::new().spawn(move || {
            if let Some(node) = any_node(&directory) {
                carry(visitor, node);
            }
            seat.fetch_sub(1, Ordering::Relaxed);
        });
        if spawned.is_err() {
            open.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

/// A connection to the first node that accepts one.
fn any_node(directory: &Path) -> Option<TcpStream> {
    let record = Record::read(directory).ok()??;
    let subnet = record.subnet?;
    let on =
        record.nodes.iter().filter(|node| node.init.is_some_and(|init| init.is_alive() && !is_stopped(init)));
    on.map(|node| SocketAddr::from((subnet.node(node.number), DEMO_PORT)))
        .find_map(|address| TcpStream::connect_timeout(&address, NODE_PATIENCE).ok())
}

/// Copies both ways until both have said all.
fn carry(visitor: TcpStream, node: TcpStream) {
    let one_way = |from: &TcpStream, to: &TcpStream| {
        let (mut reader, mut writer) = (from, to);
        // A side that breaks off ends the other.
        let _ = io::copy(&mut reader, &mut writer);
        let _ = to.shutdown(Shutdown::Write);
    };
    thread::scope(|scope| {
        scope.spawn(|| one_way(&visitor, &node));
        one_way(&node, &visitor);
        let _ = visitor.shutdown(Shutdown::Both);
    });
}
