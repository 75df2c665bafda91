//! Labs: whole clusters of real daemons on one machine, made to be broken.
//!
//! A node of a lab is a machine in small: its own process, mount, network, host name and IPC
//! namespaces, its own state directory, address and control group. It can lose its power, its cable or
//! its daemon, freeze, and start again from its disk. Nothing watches over a lab: what it is made of is
//! held by the first processes of its nodes and by the one that holds the switch, and what is known
//! about it stands in one file, so each command picks it up where the last one left it.
//!
//! The lab drives the `rswarm` binary by path and knows nothing of what is in it.

mod cgroup;
mod form;
mod machine;
mod process;
mod record;
mod wire;

use std::{
    collections::BTreeSet,
    ffi::{OsStr, OsString},
    fs,
    io::{BufRead, BufReader, Read, Write},
    net::Ipv4Addr,
    os::unix::{ffi::OsStrExt, fs::MetadataExt, net::UnixStream},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow, bail};
use nix::fcntl::Flock;
use rustix::process::Signal;
use serde::Serialize;

use cgroup::Groups;
pub use machine::dispatch;
use process::Process;
pub use record::{Cut, NODES_MAX, Subnet, base_directory};
use record::{NodeRecord, Record};
use wire::Port;

/// How long a process may take to die, a node to boot, a daemon to obey.
const PATIENCE: Duration = Duration::from_secs(20);

/// What a lab is to be.
#[derive(Debug, Clone)]
pub struct Options {
    /// Its name: up to 40 of `a-z`, `0-9` and `-`.
    pub name: String,
    /// How many nodes, 1 to [`NODES_MAX`]. They are called n1, n2, and so on.
    pub nodes: u8,
    /// How many of them, from the first, are managers.
    pub managers: u8,
    /// The `rswarm` binary. It must call [`dispatch`] first of all.
    pub program: PathBuf,
    /// The directory that holds labs; not below `/run`, `/proc`, `/sys` or `/dev`.
    pub base: PathBuf,
    /// What the nodes run in place of the program's daemon. The program is `rswarm` on the path.
    /// No cluster is formed then.
    pub daemon_command: Option<Vec<String>>,
}

impl Options {
    /// Three nodes, all managers, in the usual place.
    pub fn new(program: impl Into<PathBuf>) -> Self {
        Self {
            name: "lab".to_string(),
            nodes: 3,
            managers: 3,
            program: program.into(),
            base: base_directory(),
            daemon_command: None,
        }
    }

    fn check(&self) -> Result<()> {
        record::check_name(&self.name)?;
        if !(1..=NODES_MAX).contains(&self.nodes) {
            bail!("a lab has 1 to {NODES_MAX} nodes, not {}", self.nodes);
        }
        if !(1..=self.nodes).contains(&self.managers) {
            bail!("of {} nodes, 1 to {} can be managers, not {}", self.nodes, self.nodes, self.managers);
        }
        if self.daemon_command.as_ref().is_some_and(Vec::is_empty) {
            bail!("the command that replaces the daemon is empty");
        }
        if !self.base.is_absolute() {
            bail!("the directory of labs must be an absolute path, not {}", self.base.display());
        }
        for hidden in ["/run", "/var/run", "/proc", "/sys", "/dev"] {
            if self.base.starts_with(hidden) {
                bail!(
                    "labs cannot lie in {}: nodes have a {hidden} of their own; set RSWARM_LAB_DIR elsewhere",
                    self.base.display()
                );
            }
        }
        require_root()
    }
}

/// Whether labs can be made here; the error says what is missing.
pub fn require_root() -> Result<()> {
    if nix::unistd::geteuid().is_root() {
        return Ok(());
    }
    bail!(
        "a lab needs root: it makes namespaces, control groups (without which no limit holds) and a cable \
         by which this machine reaches the nodes; run it by sudo"
    )
}

/// One lab.
#[derive(Debug)]
pub struct Lab {
    name: String,
    directory: PathBuf,
    /// Whether it goes when this goes.
    owned: bool,
}

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

/// A lab as it is now.
#[derive(Debug, Clone, Serialize)]
pub struct Status {
    /// Its name.
    pub name: String,
    /// Where it lies.
    pub directory: PathBuf,
    /// Whether its switch runs. It does not after a reboot of this machine, until a node is started.
    pub switch: bool,
    /// The network of its nodes, once chosen.
    pub network: Option<String>,
    /// This machine's end of the cable to its switch, once there is one.
    pub link: Option<String>,
    /// Its nodes.
    pub nodes: Vec<NodeStatus>,
    /// Links that pass nothing.
    pub cuts: Vec<Cut>,
}

/// A node as it is now.
#[derive(Debug, Clone, Serialize)]
pub struct NodeStatus {
    /// Its name.
    pub name: String,
    /// Its address, once chosen.
    pub address: Option<Ipv4Addr>,
    /// Whether it joins as a manager.
    pub manager: bool,
    /// `on`, `off` or `paused`.
    pub power: Power,
    /// What its daemon does: `running PID` as seen in the node, `exited CODE`, and so on; `-` when off.
    pub daemon: String,
    /// How many processes it has, containers included.
    pub processes: usize,
    /// How often it was switched on.
    pub boots: u32,
}

/// Whether a node has power.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Power {
    /// It runs.
    On,
    /// It was switched off, or died.
    Off,
    /// Its processes stand still.
    Paused,
}

impl std::fmt::Display for Power {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.pad(match self {
            Self::On => "on",
            Self::Off => "off",
            Self::Paused => "paused",
        })
    }
}

/// What happens while a lab comes up: the subject (a node, or the lab's name) and a few words.
pub type Progress<'a> = &'a mut dyn FnMut(&str, &str);

impl Lab {
    /// Makes a lab, boots its nodes and forms a cluster of them. It is removed when the value is
    /// dropped, unless [`Lab::keep`] is called. If the thread panics meanwhile, or `RSWARM_LAB_KEEP`
    /// is set, its files stay, so that the logs can be read.
    pub fn up(options: &Options) -> Result<Self> {
        Self::up_with(options, &mut |_, _| (), &AtomicBool::new(false))
    }

    /// The same, telling what happens, and giving up soon after `interrupted` becomes true.
    ///
    /// Whatever goes wrong, nothing of the lab is left.
    pub fn up_with(options: &Options, progress: Progress<'_>, interrupted: &AtomicBool) -> Result<Self> {
        options.check()?;
        record::private_directory(&options.base)?;
        let mut lab = Self::at(&options.base, &options.name);
        record::private_directory(&lab.directory)?;
        lab.directory = fs::canonicalize(&lab.directory)
            .with_context(|| format!("cannot resolve {}", lab.directory.display()))?;
        let lock = lab.lock()?;
        if Record::read(&lab.directory)?.is_some() {
            bail!(
                "there is a lab \"{0}\" already: `rswarm lab status --name {0}` shows it, \
                 `rswarm lab down --name {0}` removes it",
                options.name
            );
        }
        lab.owned = true;
        lab.build(options, progress, interrupted)?;
        drop(lock);
        if options.daemon_command.is_none() {
            lab.form(progress, interrupted)?;
        }
        Ok(lab)
    }

    /// The lab of this name. It is not removed when the value is dropped.
    pub fn open(base: &Path, name: &str) -> Result<Self> {
        record::check_name(name)?;
        require_root()?;
        let mut lab = Self::at(base, name);
        if !lab.directory.join("lab.json").exists() {
            bail!("there is no lab \"{name}\"; make one by `rswarm lab up --name {name}`");
        }
        lab.directory = fs::canonicalize(&lab.directory)
            .with_context(|| format!("cannot resolve {}", lab.directory.display()))?;
        Ok(lab)
    }

    /// The names of all labs there are.
    pub fn list(base: &Path) -> Result<Vec<String>> {
        let entries = match fs::read_dir(base) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries.with_context(|| format!("cannot read {}", base.display()))?,
        };
        let mut names: Vec<String> = entries
            .flatten()
            .filter(|entry| entry.path().is_dir())
            .filter_map(|entry| entry.file_name().into_string().ok())
            .filter(|name| record::check_name(name).is_ok())
            .collect();
        names.sort();
        Ok(names)
    }

    /// Removes whatever there is of a lab: processes, links, control groups, files. Returns whether
    /// there was anything. Works on labs that were half made or half removed.
    pub fn down(base: &Path, name: &str) -> Result<bool> {
        record::check_name(name)?;
        require_root()?;
        let mut lab = Self::at(base, name);
        match fs::canonicalize(&lab.directory) {
            Ok(directory) => lab.directory = directory,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(false),
            Err(error) => {
                return Err(error).with_context(|| format!("cannot resolve {}", lab.directory.display()));
            }
        }
        lab.remove()
    }

    fn at(base: &Path, name: &str) -> Self {
        Self { name: name.to_string(), directory: base.join(name), owned: false }
    }

    /// Leaves the lab running when the value is dropped.
    pub fn keep(&mut self) {
        self.owned = false;
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Where its files are. Each node has a directory of its name in there, with `daemon.log`,
    /// `init.log` and `state`.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// The names of its nodes.
    pub fn names(&self) -> Result<Vec<String>> {
        Ok(self.record()?.nodes.into_iter().map(|node| node.name).collect())
    }

    /// One of its nodes. Whether it exists is found out when it is used.
    pub fn node<'a>(&'a self, name: &'a str) -> Node<'a> {
        Node { lab: self, name }
    }

    /// This machine's address in the network of the lab.
    pub fn host_address(&self) -> Result<Ipv4Addr> {
        Ok(self.subnet()?.host())
    }

    /// How it is now.
    pub fn status(&self) -> Result<Status> {
        let record = self.record()?;
        let nodes = record.nodes.iter().map(|node| self.node_status(&record, node)).collect();
        Ok(Status {
            name: record.name,
            directory: self.directory.clone(),
            switch: record.switch.is_some_and(Process::is_alive),
            network: record.subnet.map(|subnet| subnet.to_string()),
            link: record.subnet.map(Subnet::host_link),
            nodes,
            cuts: record.cuts.into_iter().collect(),
        })
    }

    fn node_status(&self, record: &Record, node: &NodeRecord) -> NodeStatus {
        let groups = self.groups().node(&node.name);
        let power = match node.init.filter(|init| init.is_alive()) {
            None => Power::Off,
            Some(_) if groups.is_frozen() => Power::Paused,
            Some(_) => Power::On,
        };
        let daemon = match (power, node.init) {
            (Power::On, Some(init)) => order(init, "status").unwrap_or_else(|_| "unknown".to_string()),
            _ => "-".to_string(),
        };
        NodeStatus {
            name: node.name.clone(),
            address: record.subnet.map(|subnet| subnet.node(node.number)),
            manager: node.manager,
            power,
            daemon,
            processes: if power == Power::Off { 0 } else { groups.processes().len() },
            boots: node.boots,
        }
    }

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
            running(record.node(name)?)?;
            self.groups().node(name).freeze()
        })
    }

    /// Lets a paused node go on.
    pub fn resume(&self, name: &str) -> Result<()> {
        self.change(|record| {
            running(record.node(name)?)?;
            self.groups().node(name).thaw()
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

    /// Joins every link that was cut.
    pub fn heal(&self) -> Result<()> {
        self.change(|record| {
            record.cuts.clear();
            self.pass(record)
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

    fn build(&self, options: &Options, progress: Progress<'_>, interrupted: &AtomicBool) -> Result<()> {
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
    fn connect(&self, record: &mut Record) -> Result<()> {
        let groups = self.groups();
        groups.create()?;
        if record.switch.is_some_and(Process::is_alive) {
            return Ok(());
        }
        let arguments = [self.directory.as_os_str()];
        let log = self.directory.join("switch.log");
        let switch = spawn(&record.program, machine::SWITCH, &arguments, &log)?;
        record.switch = Some(switch);
        let subnet = wire::connect_host(switch, record.subnet)?;
        record.subnet = Some(subnet);
        wire::ready_switch(switch, subnet)
    }

    fn boot(&self, record: &mut Record, name: &str) -> Result<()> {
        let own = self.directory.join(name);
        record::private_directory(&own.join("state"))?;
        self.groups().node(name).create()?;
        // A new boot must find the facts it is to boot by.
        record.write(&self.directory)?;

        let arguments = [self.directory.as_os_str(), OsStr::new(name)];
        let init = spawn(&record.program, machine::INIT, &arguments, &own.join("init.log"))?;
        let node = record.node_mut(name)?;
        node.init = Some(init);
        node.boots += 1;
        let port = Port { name: node.name.clone(), number: node.number };
        let (switch, subnet) = connected(record)?;
        wire::plug(switch, init, &port, subnet)?;
        self.pass(record)?;
        order(init, "start").with_context(|| format!("cannot start the daemon of {name}")).map(drop)
    }

    fn power_off(&self, record: &Record, node: &NodeRecord) -> Result<()> {
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
    fn pass(&self, record: &Record) -> Result<()> {
        let (switch, subnet) = connected(record)?;
        let on = record.nodes.iter().filter(|node| node.init.is_some_and(Process::is_alive));
        let ports: Vec<Port> = on.map(|node| Port { name: node.name.clone(), number: node.number }).collect();
        wire::pass(switch, &ports, &record.cuts, subnet)
    }

    /// Removes everything. What a crash kept out of the record is found by control group and by
    /// command line.
    fn remove(&self) -> Result<bool> {
        let lock = match self.lock() {
            Err(_) if !self.directory.exists() => return Ok(false),
            lock => lock?,
        };
        self.stop_everything()?;
        let removed = fs::remove_dir_all(&self.directory);
        removed.with_context(|| format!("cannot remove {}", self.directory.display()))?;
        drop(lock);
        if let Some(base) = self.directory.parent() {
            // Others may have labs in there.
            let _ = fs::remove_dir(base);
        }
        Ok(true)
    }

    /// Ends all processes and takes back all the kernel holds for the lab. Files stay.
    fn stop_everything(&self) -> Result<()> {
        let record = Record::read(&self.directory).ok().flatten();
        let known = record.iter().flat_map(|record| {
            record.switch.into_iter().chain(record.nodes.iter().filter_map(|node| node.init))
        });
        let directory = self.directory.as_os_str().as_bytes();
        let found = [machine::SWITCH, machine::INIT, machine::ENTER]
            .map(|command| process::with_arguments(&[command.as_bytes(), directory]));
        for switch in &found[0] {
            // One that has ended meanwhile has taken its cable along.
            if let Err(error) = wire::disconnect_host(*switch)
                && switch.is_alive()
            {
                return Err(error);
            }
        }
        let processes: Vec<Process> = known.chain(found.into_iter().flatten()).collect();
        for process in &processes {
            process.signal(Signal::KILL).with_context(|| format!("cannot kill process {}", process.pid))?;
        }
        let groups = self.groups();
        groups.kill()?;
        for process in &processes {
            if !process.wait(PATIENCE).context("cannot wait for a process to end")? {
                bail!("process {} does not die; look at its state in /proc", process.pid);
            }
        }
        groups.remove()?;
        groups.remove_root();
        Ok(())
    }

    fn groups(&self) -> Groups {
        groups_of(&self.directory)
    }

    fn subnet(&self) -> Result<Subnet> {
        self.record()?.subnet.context("the lab has no network yet")
    }

    fn record(&self) -> Result<Record> {
        let record = Record::read(&self.directory)?;
        record.with_context(|| format!("there is no lab \"{}\" any more", self.name))
    }

    /// Changes the lab while nobody else does.
    fn change<T>(&self, act: impl FnOnce(&mut Record) -> Result<T>) -> Result<T> {
        require_root()?;
        let _lock = self.lock()?;
        let mut record = self.record()?;
        let result = act(&mut record);
        record.write(&self.directory)?;
        result
    }

    fn lock(&self) -> Result<Flock<fs::File>> {
        let lock = record::lock(&self.directory)?;
        if lock.metadata().context("cannot look at the lock")?.nlink() == 0 {
            bail!("the lab \"{}\" was removed meanwhile", self.name);
        }
        Ok(lock)
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if !self.owned {
            return;
        }
        let result = if thread::panicking() || std::env::var_os("RSWARM_LAB_KEEP").is_some() {
            eprintln!("the lab's files are kept in {}", self.directory.display());
            self.stop_everything()
        } else {
            self.remove().map(drop)
        };
        if let Err(error) = result {
            eprintln!("the lab \"{}\" was not removed: {error:#}", self.name);
        }
    }
}

/// One node of a lab.
#[derive(Debug, Clone, Copy)]
pub struct Node<'a> {
    lab: &'a Lab,
    name: &'a str,
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

    /// A command that runs `words` inside the node, with `rswarm` on the path and talking to the
    /// node's daemon. Ends as that ends: with its code, or 128 plus its signal.
    ///
    /// # Errors
    /// If the node is off or paused.
    pub fn command<W: AsRef<OsStr>>(&self, words: &[W]) -> Result<Command> {
        let record = self.lab.record()?;
        running(record.node(self.name)?)?;
        if self.lab.groups().node(self.name).is_frozen() {
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
        let spoken: Vec<_> = words.iter().map(|word| word.as_ref().to_string_lossy()).collect();
        let spoken = format!("`{}` on {}", spoken.join(" "), self.name);
        let mut command = self.command(words)?;
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().with_context(|| format!("cannot run {spoken}"))?;
        let stdout = drain(child.stdout.take());
        let stderr = drain(child.stderr.take());
        let process = Process::find(child.id() as i32);
        let in_time = process.map_or(Ok(true), |process| process.wait(bound));
        if !in_time.context("cannot wait for a command")? {
            child.kill().context("cannot kill a command")?;
            let _ = child.wait();
            bail!("{spoken} did not end within {bound:?}");
        }
        let status = child.wait().context("cannot wait for a command")?;
        let code = status.code().unwrap_or_else(|| {
            128 + std::os::unix::process::ExitStatusExt::signal(&status).unwrap_or_default()
        });
        Ok(Ran { command: spoken, code, stdout: collect(&stdout), stderr: collect(&stderr) })
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

/// The control groups of the lab in this directory. The name tells labs of one name apart that lie in
/// different places.
fn groups_of(directory: &Path) -> Groups {
    let bytes = directory.as_os_str().as_bytes();
    let hash =
        bytes.iter().fold(0x811c_9dc5_u32, |hash, byte| (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193));
    let name = directory.file_name().unwrap_or_default().to_string_lossy();
    Groups::of_lab(&format!("{name}-{hash:08x}"))
}

fn running(node: &NodeRecord) -> Result<Process> {
    let init = node.init.filter(|init| init.is_alive());
    init.with_context(|| format!("{0} is off; switch it on by `rswarm lab start {0}`", node.name))
}

fn connected(record: &Record) -> Result<(Process, Subnet)> {
    let switch = record.switch.filter(|switch| switch.is_alive());
    let switch = switch.with_context(|| {
        format!(
            "the switch of lab \"{}\" does not run; any `rswarm lab start NODE` brings it back",
            record.name
        )
    })?;
    Ok((switch, record.subnet.context("the lab has no network yet")?))
}

/// Starts one of the program's hidden commands that leave a process behind, and returns that process
/// once it says that it is ready.
fn spawn(program: &Path, command: &str, arguments: &[&OsStr], log: &Path) -> Result<Process> {
    let file = fs::File::options().create(true).append(true).open(log);
    let file = file.with_context(|| format!("cannot open {}", log.display()))?;
    let child = Command::new(program)
        .arg(command)
        .args(arguments)
        .stdin(Stdio::null())
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
fn order(init: Process, order: &str) -> Result<String> {
    let path = format!("/proc/{}/root{}", init.pid, machine::ORDERS);
    let ask = || -> Result<String> {
        let stream = UnixStream::connect(&path)?;
        stream.set_read_timeout(Some(PATIENCE))?;
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
fn eventually(what: &str, mut condition: impl FnMut() -> Result<bool>) -> Result<()> {
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
fn tail(path: &Path, lines: usize) -> String {
    let text = fs::read(path).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default();
    let all: Vec<&str> = text.lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}
