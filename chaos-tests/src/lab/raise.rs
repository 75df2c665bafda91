//! Bringing nodes and their switch to life, and taking their power away.

use std::{
    ffi::OsStr,
    fs,
    process::Stdio,
    sync::{
        atomic::{AtomicBool, Ordering},
        mpsc::{self, RecvTimeoutError},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow, bail};
use rustix::process::Signal;

use super::{
    Lab, Options, PATIENCE, Progress, connected, disks, links, machine,
    process::Process,
    record::{self, NodeRecord, Record},
    running,
    talk::{order, order_within, spawn, tail},
    vm,
    wire::{self, Passing, Port},
};

/// So many nodes come up at a time.
const AT_ONCE: usize = 8;

/// How often one who waits for machines looks whether it was interrupted.
const LOOK: Duration = Duration::from_millis(100);

impl Lab {
    pub(super) fn build(
        &self,
        options: &Options,
        progress: Progress<'_>,
        interrupted: &AtomicBool,
    ) -> Result<()> {
        let program = fs::canonicalize(&options.program)
            .with_context(|| format!("cannot find the program {}", options.program.display()))?;
        let mut record = Record::new(&options.name, program, options.daemon_command.clone())?;
        record.backend = options.backend;
        record.nodes = (1..=options.nodes)
            .map(|number| NodeRecord {
                name: format!("n{number}"),
                number,
                manager: number <= options.managers,
                disk: options.disk_of(&format!("n{number}")),
                capacity: options.capacity_of(&format!("n{number}")),
                init: None,
                boots: 0,
            })
            .collect();
        record.write(&self.directory)?;
        self.connect(&mut record)?;
        record.write(&self.directory)?;
        let subnet = record.subnet.context("a connected lab has a subnet")?;
        progress(&self.name, &format!("{} nodes on {subnet}", options.nodes));
        let nodes: Vec<String> = record.nodes.iter().map(|node| node.name.clone()).collect();
        self.boot_all(&mut record, &nodes, progress, interrupted)?;
        record.write(&self.directory)
    }

    /// Makes sure that there is a switch and that this machine is connected to it.
    pub(super) fn connect(&self, record: &mut Record) -> Result<()> {
        let groups = self.groups();
        groups.create()?;
        if record.switch.is_some_and(Process::is_alive) {
            return Ok(());
        }
        let arguments = [self.directory.as_os_str()];
        let log = self.directory.join("switch.log");
        let switch = spawn(&record.program, machine::SWITCH, &arguments, Stdio::null(), &log)?;
        record.switch = Some(switch);
        let subnet = wire::connect_host(switch, record.subnet)?;
        record.subnet = Some(subnet);
        wire::ready_switch(switch, subnet)
    }

    pub(super) fn boot(&self, record: &mut Record, name: &str) -> Result<()> {
        self.boot_all(record, &[name.to_owned()], &mut |_, _| (), &AtomicBool::new(false))
    }

    /// Switches nodes on, some at a time, and starts their daemons once all cables are laid.
    pub(super) fn boot_all(
        &self,
        record: &mut Record,
        names: &[String],
        progress: Progress<'_>,
        interrupted: &AtomicBool,
    ) -> Result<()> {
        if record.backend.is_vm() {
            vm::prepare_lab(&self.directory, record)?;
        }
        for name in names {
            let own = self.directory.join(name);
            if record.backend.is_vm() {
                record::private_directory(&own)?;
                vm::prepare_node(&own, record.node(name)?)?;
            } else {
                let state = own.join("state");
                record::private_directory(&state)?;
                disks::insert(&state, record.node(name)?)?;
            }
            self.groups().node(name).create()?;
        }
        // A new boot must find the facts it is to boot by.
        record.write(&self.directory)?;
        let (switch, subnet) = connected(record)?;
        for some in names.chunks(AT_ONCE) {
            if interrupted.load(Ordering::Relaxed) {
                bail!("interrupted");
            }
            let program = &record.program;
            let raised = thread::scope(|scope| {
                let raise = |name: &'_ String| {
                    let (name, own) = (name.clone(), self.directory.join(name));
                    scope.spawn(move || {
                        let arguments = [self.directory.as_os_str(), OsStr::new(&name)];
                        let log = own.join("init.log");
                        (spawn(program, machine::INIT, &arguments, Stdio::null(), &log), name)
                    })
                };
                let threads: Vec<_> = some.iter().map(raise).collect();
                threads.into_iter().map(thread::ScopedJoinHandle::join).collect::<Vec<_>>()
            });
            // All that have come to life are noted before anything can go wrong: they are to be removed.
            let mut failed = None;
            let mut up = Vec::new();
            for one in raised {
                let (init, name) = one.map_err(|_| anyhow!("a thread that boots a node panicked"))?;
                match init {
                    Ok(init) => {
                        let node = record.node_mut(&name)?;
                        node.init = Some(init);
                        node.boots += 1;
                        up.push((init, Port { name, number: node.number }));
                    }
                    Err(error) => failed = failed.or(Some(error)),
                }
            }
            record.write(&self.directory)?;
            if let Some(error) = failed {
                return Err(error);
            }
            for (init, port) in up {
                if interrupted.load(Ordering::Relaxed) {
                    bail!("interrupted");
                }
                if record.backend.is_vm() {
                    wire::ready_plugged(switch, &port)?;
                } else {
                    wire::plug(switch, init, &port, subnet)?;
                }
                let doing = if record.backend.is_vm() { "boots" } else { "up" };
                progress(&port.name, &format!("{} {doing}", subnet.node(port.number)));
            }
        }
        self.pass(record)?;
        self.begin(record, names, progress, interrupted)
    }

    /// Starts the daemons of nodes that are on, as soon as these take orders.
    pub(super) fn begin(
        &self,
        record: &Record,
        names: &[String],
        progress: Progress<'_>,
        interrupted: &AtomicBool,
    ) -> Result<()> {
        if record.backend.is_vm() {
            self.await_boots(record, names, progress, interrupted)?;
        }
        for name in names {
            let init = running(record.node(name)?)?;
            order(init, "start").with_context(|| format!("cannot start the daemon of {name}"))?;
        }
        Ok(())
    }

    /// Waits until machines have booted, and tells how long each took.
    fn await_boots(
        &self,
        record: &Record,
        names: &[String],
        progress: Progress<'_>,
        interrupted: &AtomicBool,
    ) -> Result<()> {
        let (told, said) = mpsc::channel();
        let end = Instant::now() + vm::BOOT_PATIENCE;
        for name in names {
            let (init, name, told) = (running(record.node(name)?)?, name.clone(), told.clone());
            // Not waited for: it ends with the machine.
            thread::spawn(move || {
                let booted = order_within(init, "booted", vm::BOOT_PATIENCE);
                let _ = told.send((name, booted));
            });
        }
        drop(told);
        let mut left = names.len();
        while left > 0 {
            if interrupted.load(Ordering::Relaxed) {
                bail!("interrupted");
            }
            match said.recv_timeout(LOOK) {
                Ok((name, booted)) => {
                    let last_words = || {
                        let console = tail(&self.directory.join(&name).join(vm::CONSOLE), 15);
                        format!("{name} did not boot; the end of its console:\n{console}\n")
                    };
                    progress(&name, &booted.with_context(last_words)?);
                    left -= 1;
                }
                Err(RecvTimeoutError::Timeout) if Instant::now() < end => {}
                Err(_) => bail!("machines have not booted within {:?}", vm::BOOT_PATIENCE),
            }
        }
        Ok(())
    }

    pub(super) fn power_off(&self, record: &Record, node: &NodeRecord) -> Result<()> {
        if let Some(switch) = record.switch.filter(|switch| switch.is_alive()) {
            wire::unplug(switch, &node.name)?;
        }
        let groups = self.groups().node(&node.name);
        if let Some(init) = node.init {
            init.signal(Signal::KILL).context("cannot kill a node's first process")?;
        }
        groups.kill()?;
        if let Some(init) = node.init
            && !init.wait(PATIENCE).context("cannot wait for a node's end")?
        {
            bail!("the first process of {}, {}, does not die", node.name, init.pid);
        }
        groups.remove()
    }

    /// Has the switch pass what the record says.
    pub(super) fn pass(&self, record: &Record) -> Result<()> {
        let (switch, subnet) = connected(record)?;
        let on = record.nodes.iter().filter(|node| node.init.is_some_and(Process::is_alive));
        let ports: Vec<Port> = on.map(|node| Port { name: node.name.clone(), number: node.number }).collect();
        if !record.links.is_empty() || wire::has(switch, links::DEVICE)? {
            // The switch reads what is to become of packets before any is led to it.
            record.write(&self.directory)?;
            switch.signal(Signal::HUP).context("cannot tell the switch")?;
        }
        let worse = record.links.iter().map(|worse| (worse.from.clone(), worse.to.clone())).collect();
        wire::pass(switch, &ports, &Passing { cuts: &record.cuts, worse }, subnet)
    }
}
