//! The case of a machine: the process of this machine's that stands for it. It holds the emulator and the cable's end,
//! takes the node's orders, and leads whoever speaks with the node's sockets to the agent in the machine.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{BufRead, BufReader, Read, Write},
    net::{Shutdown, TcpStream},
    ops::ControlFlow,
    os::{
        fd::OwnedFd,
        unix::net::{UnixListener, UnixStream},
    },
    path::{Path, PathBuf},
    process::ExitCode,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, setns, unshare},
};
use rswarm_netoverlay::device::{netns::Netns, tun};
use serde_json::json;

use super::{
    Backend, DOOR,
    agent::{self, Request},
    emulator::{DISK, FACTS, MONITOR, Parts},
    inside::{Facts, READY},
    monitor,
};
use crate::{
    lab::{
        cgroup::Groups,
        disks,
        machine::{ORDERS, SOCKET, announce_ready, become_child, clock_of, kept_environment, leave_caller},
        record::{NodeRecord, Record},
    },
    vm::qemu::UP,
};

/// How long a machine that is up may take to accept a connection.
const PATIENCE: Duration = Duration::from_secs(20);
/// The machine's facts fill a disk of this size, in bytes.
const FACTS_LEN: usize = 128 << 10;

/// Boots a machine, and stays until it is off.
pub(in crate::lab) fn hold(
    directory: &Path,
    record: &Record,
    node: &NodeRecord,
    groups: &Groups,
) -> Result<ExitCode> {
    let Backend::Vm { memory_mib } = record.backend else { bail!("this lab has no machines") };
    let subnet = record.subnet.context("the lab has no network yet")?;
    let switch = record.switch.context("the lab has no switch yet")?;
    leave_caller()?;
    groups.enter()?;
    let network = File::open(format!("/proc/{}/ns/net", switch.pid)).context("the switch is gone")?;
    setns(network, CloneFlags::CLONE_NEWNET).context("cannot enter the switch's network")?;
    unshare(CloneFlags::CLONE_NEWPID | CloneFlags::CLONE_NEWIPC).context("cannot make namespaces")?;
    if !become_child()? {
        return Ok(ExitCode::SUCCESS);
    }
    unshare(CloneFlags::CLONE_NEWNS).context("cannot make a mount namespace")?;
    let own = directory.join(&node.name);
    furnish(directory, &own)?;
    let facts = Facts {
        name: node.name.clone(),
        address: subnet.node(node.number),
        hosts: record.nodes.iter().map(|node| (subnet.node(node.number), node.name.clone())).collect(),
        key: fresh_key()?,
        capacity: node.capacity,
        clock_ms: clock_of(&own),
        daemon: record.daemon.clone(),
        environment: kept_environment(),
    };
    write_facts(&facts)?;
    let cable = lay_cable(&node.name)?;
    let listen = |path| UnixListener::bind(path).with_context(|| format!("cannot listen on {path}"));
    let doors = [(ORDERS, listen(ORDERS)?), (SOCKET, listen(SOCKET)?), (DOOR, listen(DOOR)?)];
    announce_ready()?;
    let case = Arc::new(Case {
        own: own.clone(),
        facts,
        calls: Mutex::default(),
        state: Mutex::default(),
        changed: Condvar::new(),
    });
    for (path, listener) in doors {
        let case = case.clone();
        thread::spawn(move || case.serve(path, &listener));
    }
    let parts = Parts { lab: directory, own: &own, memory_mib, number: node.number, cable };
    parts.run(&mut |line, accelerated| case.hear(line, accelerated))?;
    eprintln!("the machine is off");
    Ok(ExitCode::SUCCESS)
}

/// A mount namespace with a `/run` of its own, which is where whoever looks for the node finds it.
fn furnish(directory: &Path, own: &Path) -> Result<()> {
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>)
        .context("cannot part from this machine's mounts")?;
    crate::lab::machine::let_go_of_namespaces()?;
    disks::let_go_of_others(directory, own)?;
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    mount(Some("tmpfs"), "/run", Some("tmpfs"), flags, Some("mode=700")).context("cannot mount on /run")?;
    for directory in ["/run/lab", "/run/rswarm"] {
        fs::create_dir(directory).with_context(|| format!("cannot make {directory}"))?;
    }
    Ok(())
}

fn fresh_key() -> Result<String> {
    let mut bytes = [0; 32];
    rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())
        .context("cannot make a key")?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

/// The facts are a disk to the machine.
fn write_facts(facts: &Facts) -> Result<()> {
    let mut text = serde_json::to_vec(facts)?;
    if text.len() > FACTS_LEN {
        bail!("the machine is to be told more than {FACTS_LEN} bytes");
    }
    text.resize(FACTS_LEN, b' ');
    fs::write(FACTS, text).with_context(|| format!("cannot write {FACTS}"))
}

/// The machine's network device, whose other end is the switch's port.
fn lay_cable(port: &str) -> Result<OwnedFd> {
    let options = tun::Options { persist: false, offload: false, ethernet: true, ..tun::Options::default() };
    tun::open(&Netns::current()?, port, options)?.pop().context("a device has a queue")
}

struct Case {
    own: PathBuf,
    facts: Facts,
    /// Conversations with the machine under way, and the number of the next one.
    calls: Mutex<(u64, BTreeMap<u64, TcpStream>)>,
    state: Mutex<State>,
    changed: Condvar,
}

struct State {
    began: Instant,
    /// How long it took, once it is up, and whether the processor is KVM's.
    up: Option<(Duration, bool)>,
    is_paused: bool,
}

impl Default for State {
    fn default() -> Self {
        Self { began: Instant::now(), up: None, is_paused: false }
    }
}

impl Case {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A line of the console.
    fn hear(&self, line: &str, accelerated: bool) -> ControlFlow<()> {
        let mut state = self.state();
        match line {
            UP => state.up = None,
            READY => state.up = Some((state.began.elapsed(), accelerated)),
            // It would stand there for ever. One that has been up does so, as machines do.
            _ if state.up.is_none() && line.contains("Kernel panic") => return ControlFlow::Break(()),
            _ => {}
        }
        self.changed.notify_all();
        ControlFlow::Continue(())
    }

    fn serve(self: Arc<Self>, path: &str, listener: &UnixListener) {
        loop {
            let Ok((stream, _)) = listener.accept() else { return };
            let (case, path) = (self.clone(), path.to_owned());
            // Who goes away or talks nonsense harms only itself.
            thread::spawn(move || {
                let done = match path.as_str() {
                    ORDERS => case.obey(&stream),
                    SOCKET => serde_json::to_string(&Request::Daemon)
                        .map_err(Into::into)
                        .and_then(|request| case.lead(stream, &request)),
                    _ => agent::line(&stream).and_then(|request| case.lead(stream, &request)),
                };
                if let Err(error) = done {
                    eprintln!("{path}: {error:#}");
                }
            });
        }
    }

    fn call(&self, request: &str) -> Result<TcpStream> {
        if self.state().up.is_none() {
            bail!("the machine is still booting");
        }
        agent::call(self.facts.address, &self.facts.key, request, PATIENCE)
            .context("the machine does not answer")
    }

    fn lead(&self, stream: UnixStream, request: &str) -> Result<()> {
        let there = self.call(request)?;
        let twin = there.try_clone().context("cannot share a socket")?;
        let number = {
            let mut calls = self.calls();
            calls.0 += 1;
            let number = calls.0;
            calls.1.insert(number, twin);
            number
        };
        let done = agent::join(stream, there);
        self.calls().1.remove(&number);
        done
    }

    /// A machine that is reset says no farewell: who speaks with it would wait for ever.
    fn hang_up(&self) {
        for call in self.calls().1.values() {
            let _ = call.shutdown(Shutdown::Both);
        }
    }

    fn calls(&self) -> MutexGuard<'_, (u64, BTreeMap<u64, TcpStream>)> {
        self.calls.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One order, one line in, one line out. What the case does not know is for the machine.
    fn obey(&self, stream: &UnixStream) -> Result<()> {
        stream.set_read_timeout(Some(PATIENCE))?;
        let order = agent::line(stream)?;
        let answer = self.carry_out(order.trim()).unwrap_or_else(|error| format!("error: {error:#}"));
        let mut stream = stream;
        Ok(writeln!(stream, "{}", answer.replace('\n', " "))?)
    }

    fn carry_out(&self, order: &str) -> Result<String> {
        let ask = |command: &str, arguments| monitor::ask(Path::new(MONITOR), command, &arguments);
        match order.split(' ').collect::<Vec<_>>()[..] {
            ["booted"] => Ok(self.wait_until_up()),
            ["power"] => Ok(if self.state().is_paused { "paused" } else { "on" }.into()),
            ["pause"] => {
                ask("stop", json!({}))?;
                self.state().is_paused = true;
                Ok("paused".into())
            }
            ["resume"] => {
                ask("cont", json!({}))?;
                self.state().is_paused = false;
                Ok("on".into())
            }
            ["reset"] => {
                *self.state() = State::default();
                write_facts(&Facts { clock_ms: clock_of(&self.own), ..self.facts.clone() })?;
                ask("system_reset", json!({}))?;
                self.hang_up();
                ask("cont", json!({}))?;
                Ok("booting".into())
            }
            ["throttle", writes] => {
                let writes: u32 = writes.parse().context("no number of writes")?;
                let none =
                    ["bps", "bps_rd", "bps_wr", "iops", "iops_rd"].map(|key| (key.to_owned(), json!(0)));
                let mut limits: serde_json::Map<String, serde_json::Value> = none.into_iter().collect();
                limits.insert("iops_wr".into(), json!(writes));
                limits.insert("device".into(), json!(DISK));
                ask("block_set_io_throttle", limits.into())?;
                Ok("throttled".into())
            }
            ["status"] if self.state().up.is_none() => Ok("booting".into()),
            _ => self.pass_on(order),
        }
    }

    fn wait_until_up(&self) -> String {
        let mut state = self.state();
        loop {
            if let Some((took, accelerated)) = state.up {
                let how = if accelerated { "KVM" } else { "an emulated processor" };
                return format!("booted in {:.1}s on {how}", took.as_secs_f32());
            }
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn pass_on(&self, order: &str) -> Result<String> {
        let mut stream = self.call(&serde_json::to_string(&Request::Orders)?)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        writeln!(stream, "{order}")?;
        let mut answer = String::new();
        BufReader::new(stream.take(agent::LINE_MAX)).read_line(&mut answer)?;
        if answer.is_empty() {
            bail!("the machine gave no answer");
        }
        Ok(answer.trim().to_owned())
    }
}
