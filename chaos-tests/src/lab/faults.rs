//! What can be done to a lab: power, freezing, cables, and the daemons alone.

use std::{
    collections::BTreeSet,
    fs::{self, File},
    os::unix::fs::FileExt,
    sync::atomic::AtomicBool,
};

use anyhow::{Context, Result, bail};

use super::{
    Lab, connected,
    links::{self, Carried, Link},
    machine::{CLOCK_FILE, clock_of},
    process::Process,
    record::{Cut, Worse},
    running, standstill,
    talk::{eventually, order},
};

impl Lab {
    /// Powers a node off: its cable goes dead, then everything in it dies at once. Only its disk is
    /// left. Fine if it is off.
    pub fn kill(&self, name: &str) -> Result<()> {
        self.change(|record| {
            let node = record.node(name)?.clone();
            self.power_off(record, &node)?;
            record.node_mut(name)?.init = None;
            Ok(())
        })
    }

    /// Stops all processes of a node where they are. Its kernel still answers to what needs no process.
    pub fn pause(&self, name: &str) -> Result<()> {
        self.change(|record| {
            let init = running(record.node(name)?)?;
            if record.backend.is_vm() {
                return order(init, "pause").map(drop);
            }
            let groups = self.groups().node(name);
            if groups.exist() { groups.freeze() } else { standstill::stop(init) }
        })
    }

    /// Lets a paused node go on.
    pub fn resume(&self, name: &str) -> Result<()> {
        self.change(|record| {
            let init = running(record.node(name)?)?;
            if record.backend.is_vm() {
                return order(init, "resume").map(drop);
            }
            let groups = self.groups().node(name);
            if groups.exist() { groups.thaw() } else { standstill::go_on(init) }
        })
    }

    /// Switches a node on that was killed: the same disk and address, a new boot.
    ///
    /// After a reboot of this machine, the first node to start brings the switch back as well.
    pub fn start(&self, name: &str) -> Result<()> {
        self.change(|record| {
            if record.node(name)?.init.is_some_and(Process::is_alive) {
                bail!("{name} is on already");
            }
            self.connect(record)?;
            self.boot(record, name)
        })
    }

    /// Presses a node's button for that: it begins anew at once, with the disk as it was left.
    pub fn reset(&self, name: &str) -> Result<()> {
        self.change(|record| {
            let node = record.node(name)?.clone();
            let init = running(&node)?;
            if !record.backend.is_vm() {
                self.power_off(record, &node)?;
                record.node_mut(name)?.init = None;
                return self.boot(record, name);
            }
            order(init, "reset")?;
            record.node_mut(name)?.boots += 1;
            self.begin(record, &[name.to_owned()], &mut |_, _| (), &AtomicBool::new(false))
        })
    }

    /// Splits the lab: what is in different groups does not hear each other any more. Nodes that are
    /// not named make one more group. Replaces whatever was cut before; this machine reaches all.
    pub fn partition(&self, groups: &[Vec<String>]) -> Result<()> {
        self.change(|record| {
            let mut side = std::collections::BTreeMap::new();
            for (number, name) in
                groups.iter().enumerate().flat_map(|(number, names)| names.iter().map(move |n| (number, n)))
            {
                record.node(name)?;
                if side.insert(name.clone(), number).is_some() {
                    bail!("{name} is named twice");
                }
            }
            let names: Vec<&String> = record.nodes.iter().map(|node| &node.name).collect();
            let of = |name: &str| side.get(name).copied().unwrap_or(groups.len());
            let mut cuts = BTreeSet::new();
            for from in &names {
                for to in names.iter().filter(|to| of(from) != of(to)) {
                    cuts.insert(Cut { from: from.to_string(), to: to.to_string() });
                }
            }
            if cuts.is_empty() {
                bail!("that leaves all nodes on one side; name at least one group that is not everyone");
            }
            record.cuts = cuts;
            self.pass(record)
        })
    }

    /// Cuts one direction of one link: `to` does not hear `from` any more. The other direction stays.
    pub fn cut(&self, from: &str, to: &str) -> Result<()> {
        self.change(|record| {
            let (from, to) = (record.node(from)?.name.clone(), record.node(to)?.name.clone());
            record.cuts.insert(Cut { from, to });
            self.pass(record)
        })
    }

    /// Makes one direction of one link worse than a cable, or as good as one again.
    pub fn link(&self, from: &str, to: &str, link: Link) -> Result<()> {
        self.links(&[(from.to_string(), to.to_string())], link)
    }

    /// The same for many, by from and to.
    pub fn links(&self, ends: &[(String, String)], link: Link) -> Result<()> {
        link.check()?;
        self.change(|record| {
            for (from, to) in ends {
                let (from, to) = (record.node(from)?.name.clone(), record.node(to)?.name.clone());
                if from == to {
                    bail!("a node has no link to itself; name two");
                }
                record.links.retain(|worse| (&worse.from, &worse.to) != (&from, &to));
                if !link.is_whole() {
                    record.links.push(Worse { from, to, link });
                }
            }
            self.pass(record)
        })
    }

    /// What links that are not whole have carried and lost. Counted from the switch's beginning, all together.
    pub fn carried(&self) -> Result<Carried> {
        let (switch, _) = connected(&self.record()?)?;
        let path = format!("/proc/{}/net/dev", switch.pid);
        let table = fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
        Ok(links::carried(&table))
    }

    /// Makes every link whole again.
    pub fn heal(&self) -> Result<()> {
        self.change(|record| {
            record.cuts.clear();
            record.links.clear();
            self.pass(record)
        })
    }

    /// Sets a node's clock so many milliseconds ahead of this machine's, or behind it; its daemon notices at once. It
    /// stays so over a power cycle. What containers see is this machine's.
    pub fn set_clock(&self, name: &str, ahead_ms: i64) -> Result<()> {
        self.change(|record| {
            let node = record.node(name)?;
            let own = self.directory.join(&node.name);
            let path = own.join(CLOCK_FILE);
            if record.backend.is_vm()
                && let Some(init) = node.init.filter(|init| init.is_alive())
            {
                order(init, &format!("clock {}", ahead_ms.saturating_sub(clock_of(&own))))?;
            }
            // Always of one length: it is read at any time, also while it is written.
            let text = format!("{ahead_ms:<21}\n");
            let file = File::options().create(true).write(true).truncate(false).open(&path);
            file.and_then(|file| file.write_all_at(text.as_bytes(), 0))
                .with_context(|| format!("cannot write {}", path.display()))
        })
    }

    /// Kills a node's daemon and nothing else, as `kill -9` does, and returns once it is gone.
    pub fn daemon_kill(&self, name: &str) -> Result<()> {
        self.end_daemon(name, "kill")
    }

    /// Asks a node's daemon to end, and returns once it has.
    pub fn daemon_stop(&self, name: &str) -> Result<()> {
        self.end_daemon(name, "stop")
    }

    /// Starts a node's daemon after it has ended.
    pub fn daemon_start(&self, name: &str) -> Result<()> {
        order(running(self.record()?.node(name)?)?, "start").map(drop)
    }

    fn end_daemon(&self, name: &str, how: &str) -> Result<()> {
        let init = running(self.record()?.node(name)?)?;
        order(init, how)?;
        eventually(&format!("the daemon of {name} has ended"), || {
            Ok(!order(init, "status")?.starts_with("running"))
        })
    }
}
