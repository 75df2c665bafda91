//! Bringing nodes and their switch to life, and taking their power away.

use std::{
    ffi::OsStr,
    fs,
    process::Stdio,
    sync::atomic::{AtomicBool, Ordering},
};

use anyhow::{Context, Result, bail};
use rustix::process::Signal;

use super::{
    Lab, Options, PATIENCE, Progress, connected, links, machine,
    process::Process,
    record::{self, NodeRecord, Record},
    talk::{order, spawn},
    wire::{self, Passing, Port},
};

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
        record.nodes = (1..=options.nodes)
            .map(|number| NodeRecord {
                name: format!("n{number}"),
                number,
                manager: number <= options.managers,
                init: None,
                boots: 0,
            })
            .collect();
        record.write(&self.directory)?;
        self.connect(&mut record)?;
        record.write(&self.directory)?;
        let subnet = record.subnet.context("a connected lab has a subnet")?;
        progress(&self.name, &format!("{} nodes on {subnet}", options.nodes));
        for node in record.nodes.clone() {
            if interrupted.load(Ordering::Relaxed) {
                bail!("interrupted");
            }
            self.boot(&mut record, &node.name)?;
            record.write(&self.directory)?;
            progress(&node.name, &format!("{} up", subnet.node(node.number)));
        }
        Ok(())
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
        let own = self.directory.join(name);
        record::private_directory(&own.join("state"))?;
        self.groups().node(name).create()?;
        // A new boot must find the facts it is to boot by.
        record.write(&self.directory)?;

        let arguments = [self.directory.as_os_str(), OsStr::new(name)];
        let init = spawn(&record.program, machine::INIT, &arguments, Stdio::null(), &own.join("init.log"))?;
        let node = record.node_mut(name)?;
        node.init = Some(init);
        node.boots += 1;
        let port = Port { name: node.name.clone(), number: node.number };
        let (switch, subnet) = connected(record)?;
        wire::plug(switch, init, &port, subnet)?;
        self.pass(record)?;
        order(init, "start").with_context(|| format!("cannot start the daemon of {name}")).map(drop)
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
