//! Forming a cluster in a lab, by the commands a user would type, and the demonstration after it.

use std::{
    io::{Read, Write},
    net::{Ipv4Addr, SocketAddr, TcpStream},
    os::unix::net::UnixStream,
    sync::{
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};

use super::{
    Lab, Options, PATIENCE, Progress, Ran,
    machine::SOCKET,
    running,
    talk::{order, tail},
    vm,
};

/// The port of the control plane, on every node.
pub(super) const CONTROL_PORT: u16 = 2377;

/// Where the demonstration is published, on every node.
pub const DEMO_PORT: u16 = 8080;

/// So many workers join at a time.
const WORKERS_AT_ONCE: usize = 8;

/// How long one command may take.
const COMMAND: Duration = Duration::from_secs(60);

/// How long the demonstration may take from its creation to its first answer.
const DEMO_PATIENCE: Duration = Duration::from_secs(120);

impl Lab {
    /// Waits for the daemons, and makes one cluster of the nodes.
    pub(super) fn form(&self, progress: Progress<'_>, interrupted: &AtomicBool) -> Result<()> {
        let nodes = self.record()?.nodes;
        let first = nodes.first().context("a lab has a node")?;
        for node in &nodes {
            self.await_daemon(&node.name, interrupted)?;
        }
        let began = Instant::now();
        let address = self.node(&first.name).address()?;
        self.run(&first.name, &["init", "--advertise-addr", &address.to_string()])?;
        progress(&first.name, &format!("{address} manager, cluster made in {}", seconds(began)));

        // Managers one after the other: each changes who votes. Workers change nothing for one another.
        let (managers, workers): (Vec<_>, Vec<_>) = nodes[1..].iter().partition(|node| node.manager);
        for (role, at_once, nodes) in [("manager", 1, managers), ("worker", WORKERS_AT_ONCE, workers)] {
            if nodes.is_empty() {
                continue;
            }
            let names: Vec<&str> = nodes.iter().map(|node| node.name.as_str()).collect();
            self.join(&names, role, at_once, progress, interrupted)?;
        }
        Ok(())
    }

    /// Has nodes join as workers, all at the same time.
    pub fn join_at_once(&self, names: &[&str]) -> Result<()> {
        self.join(names, "worker", names.len().max(1), &mut |_, _| (), &AtomicBool::new(false))
    }

    /// Has nodes join the cluster of the first one.
    pub(super) fn join(
        &self,
        names: &[&str],
        role: &str,
        at_once: usize,
        progress: Progress<'_>,
        interrupted: &AtomicBool,
    ) -> Result<()> {
        let first = self.record()?.nodes.first().context("a lab has a node")?.name.clone();
        let meeting_point = format!("{}:{CONTROL_PORT}", self.node(&first).address()?);
        let token = self.run(&first, &["join-token", role, "-q"])?;
        for some in names.chunks(at_once) {
            if interrupted.load(Ordering::Relaxed) {
                bail!("interrupted");
            }
            let (told, said) = mpsc::channel();
            thread::scope(|scope| {
                for name in some {
                    let (told, token, meeting_point) = (told.clone(), token.trim(), &meeting_point);
                    scope.spawn(move || {
                        let began = Instant::now();
                        let joined = self.run(name, &["join", "--token", token, meeting_point]);
                        // Nobody listens any more only when another has failed.
                        let _ = told.send((*name, joined.map(|_| seconds(began))));
                    });
                }
                drop(told);
                let mut all = Ok(());
                for (name, joined) in said {
                    match joined.and_then(|took| Ok((self.node(name).address()?, took))) {
                        Ok((own, took)) => progress(name, &format!("{own} {role}, joined in {took}")),
                        Err(error) => all = Err(error),
                    }
                }
                all
            })?;
        }
        Ok(())
    }

    /// Gives the nodes their labels: zones in turn, and what was asked for.
    pub(super) fn label(&self, options: &Options) -> Result<()> {
        for (number, node) in self.names()?.into_iter().enumerate() {
            let mut labels = Vec::new();
            if options.zones > 1 {
                labels.push(format!("zone=z{}", number % usize::from(options.zones) + 1));
            }
            labels
                .extend(options.labels.iter().filter(|(of, _)| *of == node).map(|(_, label)| label.clone()));
            if labels.is_empty() {
                continue;
            }
            let mut words = vec!["node", "update"];
            labels.iter().for_each(|label| words.extend(["--label-add", label]));
            words.push(&node);
            self.run("n1", &words)?;
        }
        Ok(())
    }

    /// Runs the built-in demo service, one replica per node, and waits until it answers this machine.
    /// Returns its address.
    pub fn demo(&self, progress: Progress<'_>, interrupted: &AtomicBool) -> Result<String> {
        let nodes = self.record()?.nodes;
        let first = nodes.first().context("a lab has a node")?;
        let began = Instant::now();
        let replicas = nodes.len().to_string();
        let publish = format!("{DEMO_PORT}:80");
        progress("web", "creating, one replica per node");
        let words = [
            "service",
            "create",
            "--name",
            "web",
            "--replicas",
            &replicas,
            "--publish",
            &publish,
            "rswarm/demo",
        ];
        let created = self.node(&first.name).rswarm_within(&words, DEMO_PATIENCE).and_then(Ran::ok);
        created.with_context(|| self.last_words(&first.name))?;
        let address = self.node(&first.name).address()?;
        let url = format!("http://{address}:{DEMO_PORT}");
        let mut reason = String::new();
        while began.elapsed() < DEMO_PATIENCE {
            if interrupted.load(Ordering::Relaxed) {
                bail!("interrupted");
            }
            match get(address, DEMO_PORT) {
                Ok(()) => {
                    progress("web", &format!("answers at {url} after {}", seconds(began)));
                    return Ok(url);
                }
                Err(error) => reason = format!("{error:#}"),
            }
            thread::sleep(Duration::from_millis(20));
        }
        bail!("{url} does not answer within {DEMO_PATIENCE:?}: {reason}")
    }

    fn run(&self, node: &str, words: &[&str]) -> Result<String> {
        let ran = self.node(node).call(words, COMMAND).and_then(Ran::ok);
        ran.with_context(|| self.last_words(node))
    }

    pub(super) fn await_daemon(&self, name: &str, interrupted: &AtomicBool) -> Result<()> {
        let init = running(self.record()?.node(name)?)?;
        let socket = format!("/proc/{}/root{SOCKET}", init.pid);
        let is_vm = self.record()?.backend.is_vm();
        // The door of a machine is there before its daemon is.
        let listens = || match is_vm {
            true => order(init, "listens").is_ok_and(|said| said == "yes"),
            false => UnixStream::connect(&socket).is_ok(),
        };
        let patience = if is_vm { vm::DAEMON_PATIENCE } else { PATIENCE };
        let end = Instant::now() + patience;
        while !listens() {
            let state = order(init, "status")?;
            if !state.starts_with("running") {
                bail!("the daemon of {name} {state}. {}", self.last_words(name));
            }
            if Instant::now() > end {
                bail!("the daemon of {name} does not listen within {patience:?}. {}", self.last_words(name));
            }
            if interrupted.load(Ordering::Relaxed) {
                bail!("interrupted");
            }
            thread::sleep(Duration::from_millis(if is_vm { 50 } else { 2 }));
        }
        Ok(())
    }

    /// The end of a daemon's log: it is gone with the lab, so it goes into the error.
    fn last_words(&self, node: &str) -> String {
        let log = tail(&self.node(node).log(), 15);
        if log.is_empty() {
            format!("{node}'s log is empty")
        } else {
            format!("the end of {node}'s log:\n{log}")
        }
    }
}

/// Succeeds if an HTTP server answers `200` to `GET /`.
fn get(address: Ipv4Addr, port: u16) -> Result<()> {
    let bound = Duration::from_secs(2);
    let mut stream = TcpStream::connect_timeout(&SocketAddr::from((address, port)), bound)?;
    stream.set_read_timeout(Some(bound))?;
    stream.set_write_timeout(Some(bound))?;
    write!(stream, "GET / HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n")?;
    let mut head = [0; 12];
    stream.read_exact(&mut head).context("it accepts but does not answer")?;
    let head = String::from_utf8_lossy(&head);
    if !head.ends_with(" 200") {
        bail!("it answers {head}");
    }
    Ok(())
}

fn seconds(since: Instant) -> String {
    format!("{:.1}s", since.elapsed().as_secs_f32())
}
