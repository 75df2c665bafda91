//! `rswarm lab …`: clusters on this machine, made to be broken.

mod link;
mod look;
mod machine;

use std::{
    io::{self, IsTerminal, Write},
    os::unix::process::CommandExt,
    path::PathBuf,
    process::ExitCode,
    sync::atomic::{AtomicBool, Ordering},
    time::Instant,
};

use crate::cli::output::units::{parse_bytes, parse_cpus};
use anyhow::{Context, Result, anyhow, bail};
use clap::{Args, Subcommand, ValueEnum};
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};
use rswarm_chaos::lab::{
    self, Backend, Lab, Options, Power, Status,
    rootless::{self, Intent},
};

/// Make a cluster on this machine, and break it
#[derive(Debug, Args)]
pub struct Command {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Start nodes and form a cluster of them
    Up(Up),
    /// List the labs of this machine
    Ls {
        #[command(flatten)]
        format: Format,
    },
    /// Show the nodes of a lab and the links that are cut
    Status {
        #[command(flatten)]
        lab: Name,
        #[command(flatten)]
        format: Format,
    },
    /// Run a command inside a node, with rswarm on its path
    Exec {
        #[command(flatten)]
        lab: Name,
        /// Where to run it
        node: String,
        /// What to run
        #[arg(last = true, required = true)]
        command: Vec<String>,
    },
    /// Power a node off: daemon and containers are gone at once, its disk stays
    Kill(OnNodes),
    /// Freeze a node
    Pause(OnNodes),
    /// Let a frozen node go on
    Resume(OnNodes),
    /// Switch a node on again that was killed
    Start(OnNodes),
    /// Press a node's reset button: it begins anew at once
    Reset(OnNodes),
    /// Cut the links between groups of nodes; nodes not named are one more group
    Partition {
        #[command(flatten)]
        lab: Name,
        /// Groups of nodes that still hear each other, for example: n1,n2 n3
        #[arg(required = true, value_name = "NODE[,NODE…]")]
        groups: Vec<String>,
    },
    /// Make links worse than cables, or with no option whole again
    Link(link::Worsen),
    /// Make all links whole
    Heal(Name),
    Clock(machine::Clock),
    Disk(machine::Disk),
    /// Show the end of the daemons' logs
    Logs {
        #[command(flatten)]
        lab: Name,
        /// How many lines of each
        #[arg(long, short = 'n', default_value_t = 20)]
        lines: usize,
        /// Whose [default: all]
        nodes: Vec<String>,
    },
    /// Show what each node takes of this machine, containers included
    Top(Name),
    /// Show who leads, who runs what, and which links are not whole
    Graph(Name),
    /// Remove a lab, and whatever an interrupted one has left
    Down(Name),
}

#[derive(Debug, Args)]
struct Up {
    #[command(flatten)]
    lab: Name,
    /// How many nodes
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u8).range(1..=i64::from(lab::NODES_MAX)))]
    nodes: u8,
    /// How many of them are managers [default: 3, or as many as there are nodes]
    #[arg(long)]
    managers: Option<u8>,
    /// Spread the nodes over so many zones: their label `zone` is z1, z2, and so on
    #[arg(long, value_parser = clap::value_parser!(u8).range(1..), default_value_t = 1)]
    zones: u8,
    /// Give a node a label
    #[arg(long, value_name = "NODE:KEY=VALUE", value_parser = label)]
    label: Vec<(String, String)>,
    /// Give a node, or all of them, a small disk of its own, in memory
    #[arg(long, value_name = "[NODE:]SIZE", value_parser = disk)]
    disk: Vec<(Option<String>, u64)>,
    /// What a node, or every node, says it has: processors and memory, such as n1:2,1g; nothing enforces it
    #[arg(long, value_name = "[NODE:]CPUS,MEMORY", value_parser = capacity)]
    capacity: Vec<(Option<String>, lab::Capacity)>,
    /// Run the built-in demo service and wait until it answers
    #[arg(long)]
    demo: bool,
    /// What nodes are: namespaces of this kernel, or machines under QEMU with a kernel of their own
    #[arg(long, value_enum, default_value_t = Kernels::Namespaces)]
    backend: Kernels,
    /// How much memory each machine has [default: 512m]
    #[arg(long, value_name = "SIZE", value_parser = parse_bytes)]
    memory: Option<u64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Kernels {
    /// This machine's kernel for all
    Namespaces,
    /// One for each, under QEMU
    Vm,
}

#[derive(Debug, Args)]
struct OnNodes {
    #[command(flatten)]
    lab: Name,
    /// Which nodes
    #[arg(required = true, value_name = "NODE")]
    nodes: Vec<String>,
}

#[derive(Debug, Args)]
struct Name {
    /// Which lab
    #[arg(long, default_value = "lab")]
    name: String,
}

impl Name {
    fn open(&self) -> Result<Lab> {
        Lab::open(&lab::base_directory(), &self.name)
    }

    /// ` --name NAME`, where that has to be typed.
    fn flag(&self) -> String {
        if self.name == "lab" { String::new() } else { format!(" --name {}", self.name) }
    }
}

#[derive(Debug, Args)]
struct Format {
    /// How to print
    #[arg(long, default_value = "table")]
    format: Kind,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Kind {
    /// For people
    Table,
    /// For programs
    Json,
}

impl Command {
    /// Does what was asked. Blocks; call it where that does no harm.
    pub fn run(self, out: &mut impl Write) -> Result<ExitCode> {
        if let Some(code) = rootless::step_onto_ground(self.verb.intent())? {
            return Ok(code);
        }
        match self.verb {
            Verb::Up(up) => up.run(out)?,
            Verb::Ls { format } => list(format.format, out)?,
            Verb::Status { lab, format } => show(&lab.open()?.status()?, format.format, out)?,
            Verb::Exec { lab, node, command } => {
                let mut command = lab.open()?.node(&node).command(&command)?;
                // Takes the place of this process, so that terminal and signals are the command's own.
                return Err(command.exec()).context("cannot enter the node");
            }
            Verb::Kill(on) => on.each(out, "is off", Lab::kill)?,
            Verb::Pause(on) => on.each(out, "stands still", Lab::pause)?,
            Verb::Resume(on) => on.each(out, "goes on", Lab::resume)?,
            Verb::Start(on) => on.each(out, "is on", Lab::start)?,
            Verb::Reset(on) => on.each(out, "is on again", Lab::reset)?,
            Verb::Partition { lab, groups } => {
                let groups: Vec<Vec<String>> =
                    groups.iter().map(|group| group.split(',').map(String::from).collect()).collect();
                lab.open()?.partition(&groups)?;
                writeln!(out, "cut; `rswarm lab heal{}` joins what was cut", lab.flag())?;
            }
            Verb::Link(link) => link.run(out)?,
            Verb::Clock(clock) => clock.run(out)?,
            Verb::Disk(disk) => disk.run(out)?,
            Verb::Logs { lab, lines, nodes } => look::logs(&lab.open()?, &nodes, lines, out)?,
            Verb::Top(lab) => look::top(&lab.open()?, out)?,
            Verb::Graph(lab) => look::graph(&lab.open()?, out)?,
            Verb::Heal(lab) => {
                lab.open()?.heal()?;
                writeln!(out, "all links are whole")?;
            }
            Verb::Down(lab) => {
                let removed = Lab::down(&lab::base_directory(), &lab.name)?;
                let end = if removed { "is removed" } else { "does not exist; nothing to remove" };
                writeln!(out, "lab \"{}\" {end}", lab.name)?;
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}

impl Verb {
    /// What it is going to do, for one who is not root.
    fn intent(&self) -> Intent<'_> {
        match self {
            Self::Up(up) => Intent::Up(&up.lab.name),
            Self::Start(on) | Self::Reset(on) => Intent::Start(&on.lab.name),
            Self::Down(lab) => Intent::Down(&lab.name),
            _ => Intent::Use,
        }
    }
}

impl OnNodes {
    fn each(&self, out: &mut impl Write, done: &str, act: impl Fn(&Lab, &str) -> Result<()>) -> Result<()> {
        let lab = self.lab.open()?;
        for node in &self.nodes {
            act(&lab, node)?;
            writeln!(out, "{node} {done}")?;
        }
        Ok(())
    }
}

impl Up {
    fn run(&self, out: &mut impl Write) -> Result<()> {
        watch_for_interrupts()?;
        let began = Instant::now();
        let options = Options {
            name: self.lab.name.clone(),
            nodes: self.nodes,
            managers: self.managers.unwrap_or(3.min(self.nodes)),
            zones: self.zones,
            labels: self.label.clone(),
            disks: self.disk.clone(),
            capacities: self.capacity.clone(),
            backend: self.backend()?,
            ..Options::new(own_program()?)
        };
        let painted = io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
        let mut progress = |subject: &str, words: &str| {
            let elapsed = format!("{:5.1}s", began.elapsed().as_secs_f32());
            if painted {
                eprintln!("\x1b[2m{elapsed}\x1b[0m  \x1b[1m{subject:<6}\x1b[0m {words}");
            } else {
                eprintln!("{elapsed}  {subject:<6} {words}");
            }
        };
        let mut lab = Lab::up_with(&options, &mut progress, &INTERRUPTED).map_err(interrupted)?;
        let url = match self.demo {
            true => Some(lab.demo(&mut progress, &INTERRUPTED).map_err(interrupted)?),
            false => None,
        };

        let first = lab.node("n1");
        let mut words = first.rswarm(&["node", "ls"])?.ok()?;
        if self.demo {
            words += &format!("\n{}", first.rswarm(&["service", "ps", "web"])?.ok()?);
        }
        // From here on it stays, whoever stops reading.
        lab.keep();
        words += &self.farewell(url);
        Ok(out.write_all(words.as_bytes())?)
    }

    fn backend(&self) -> Result<Backend> {
        match (self.backend, self.memory) {
            (Kernels::Namespaces, None) => Ok(Backend::Namespaces),
            (Kernels::Namespaces, Some(_)) => {
                bail!("--memory is that of machines; name them by --backend vm")
            }
            (Kernels::Vm, memory) => {
                let mib = memory.map_or(u64::from(lab::vm::MEMORY), |bytes| bytes >> 20);
                let memory_mib = u32::try_from(mib).context("no machine has so much memory")?;
                Ok(Backend::Vm { memory_mib })
            }
        }
    }

    /// What to open, what is missing, and what to try.
    fn farewell(&self, url: Option<String>) -> String {
        let mut text = String::new();
        let url = match rootless::door() {
            Some(door) => url.map(|_| format!("http://{door}")),
            None => url,
        };
        if let Some(url) = url {
            text += &format!(
                "\nOpen  {url}  on this machine. Every node answers there, and every reload may\ncome from \
                 another task.\n"
            );
        }
        if rootless::is_inside() {
            text += "\nWithout root, this is missing here:\n";
            for lack in rootless::lacks() {
                text += &format!("  - {lack}\n");
            }
        }
        text += "\nNext:\n";
        let flag = self.lab.flag();
        let demo =
            if self.demo { "service ps web" } else { "service create --name web -p 8080:80 rswarm/demo" };
        let last = format!("n{}", self.nodes);
        for (command, why) in [
            (
                format!("exec{flag} n1 -- rswarm {demo}"),
                if self.demo { "what runs where" } else { "run something" },
            ),
            (format!("kill{flag} {last}"), "power a node off, and watch its tasks move"),
            (format!("start{flag} {last}"), "switch it on again"),
            (format!("partition{flag} n1"), "cut a node off; `heal` joins it again"),
            (format!("down{flag}"), "remove everything"),
        ] {
            text += &format!("  rswarm lab {command:<44} {why}\n");
        }
        text
    }
}

/// `n1:ssd=yes`
fn label(text: &str) -> Result<(String, String), String> {
    let parted = text.split_once(':').filter(|(node, label)| !node.is_empty() && !label.is_empty());
    let (node, label) = parted.ok_or("a label is written NODE:KEY=VALUE")?;
    Ok((node.into(), label.into()))
}

/// What is said of one node, or of all.
fn of_node(text: &str) -> (Option<String>, &str) {
    match text.split_once(':') {
        Some((node, said)) => (Some(node.to_owned()), said),
        None => (None, text),
    }
}

/// `400m`, or `n2:400m`
fn disk(text: &str) -> Result<(Option<String>, u64), String> {
    let (node, size) = of_node(text);
    Ok((node, parse_bytes(size)?))
}

/// `2,1g`, or `n2:0.5,512m`
fn capacity(text: &str) -> Result<(Option<String>, lab::Capacity), String> {
    let (node, said) = of_node(text);
    let (cpus, memory) =
        said.split_once(',').ok_or("a capacity is written [NODE:]CPUS,MEMORY, such as n1:2,1g")?;
    Ok((node, lab::Capacity { nano_cpus: parse_cpus(cpus)?, memory: parse_bytes(memory)? }))
}

/// One line a lab.
fn list(format: Kind, out: &mut impl Write) -> Result<()> {
    let base = lab::base_directory();
    let mut all = Vec::new();
    for name in Lab::list(&base)? {
        match Lab::open(&base, &name).and_then(|lab| lab.status()) {
            Ok(status) => all.push(status),
            Err(error) => eprintln!("lab \"{name}\": {error:#}; `rswarm lab down --name {name}` removes it"),
        }
    }
    if format == Kind::Json {
        return print_json(&all, out);
    }
    writeln!(out, "{:<16} {:<7} {:<9} {:<18} DIRECTORY", "NAME", "NODES", "STATE", "NETWORK")?;
    for lab in &all {
        let on = lab.nodes.iter().filter(|node| node.power == Power::On).count();
        let state = match () {
            () if !lab.switch => "stopped",
            () if on == lab.nodes.len() && lab.cuts.is_empty() && lab.links.is_empty() => "whole",
            () => "hurt",
        };
        let nodes = format!("{on}/{}", lab.nodes.len());
        let network = lab.network.as_deref().unwrap_or("-");
        writeln!(out, "{:<16} {nodes:<7} {state:<9} {network:<18} {}", lab.name, lab.directory.display())?;
    }
    Ok(())
}

fn show(lab: &Status, format: Kind, out: &mut impl Write) -> Result<()> {
    if format == Kind::Json {
        return print_json(lab, out);
    }
    writeln!(
        out,
        "{:<6} {:<16} {:<8} {:<7} {:<18} {:<10} BOOTS",
        "NODE", "ADDRESS", "ROLE", "POWER", "DAEMON", "PROCESSES"
    )?;
    for node in &lab.nodes {
        let address = node.address.map_or_else(|| "-".to_string(), |address| address.to_string());
        let role = if node.manager { "manager" } else { "worker" };
        writeln!(
            out,
            "{:<6} {address:<16} {role:<8} {:<7} {:<18} {:<10} {}",
            node.name, node.power, node.daemon, node.processes, node.boots
        )?;
    }
    for node in &lab.nodes {
        let unheard: Vec<&str> =
            lab.cuts.iter().filter(|cut| cut.to == node.name).map(|cut| cut.from.as_str()).collect();
        if !unheard.is_empty() {
            writeln!(out, "cut: {} does not hear {}", node.name, unheard.join(", "))?;
        }
    }
    for node in lab.nodes.iter().filter(|node| node.clock_ms != 0) {
        writeln!(out, "{}", machine::told(&node.name, node.clock_ms))?;
    }
    for worse in &lab.links {
        writeln!(out, "link: {} to {}: {}", worse.from, worse.to, worse.link)?;
    }
    Ok(())
}

fn print_json(value: &impl serde::Serialize, out: &mut impl Write) -> Result<()> {
    serde_json::to_writer_pretty(&mut *out, value).context("cannot print")?;
    Ok(writeln!(out)?)
}

/// Where this very binary lies, for the nodes to run.
fn own_program() -> Result<PathBuf> {
    std::env::current_exe().context("cannot find the file of this program")
}

static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// A command that was interrupted along with this program has nothing else to say.
fn interrupted(error: anyhow::Error) -> anyhow::Error {
    if INTERRUPTED.load(Ordering::Relaxed) { anyhow!("interrupted; the lab is removed") } else { error }
}

/// Makes Ctrl-C and its kin set a flag, so that a lab half made can be removed.
fn watch_for_interrupts() -> Result<()> {
    extern "C" fn note(_: i32) {
        INTERRUPTED.store(true, Ordering::Relaxed);
    }
    let action = SigAction::new(SigHandler::Handler(note), SaFlags::SA_RESTART, SigSet::empty());
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
        // SAFETY: the handler does nothing but store to an atomic.
        unsafe { sigaction(signal, &action) }.context("cannot catch a signal")?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        lab: Command,
    }

    fn parse(line: &str) -> Result<Verb, clap::Error> {
        Line::try_parse_from(std::iter::once("lab").chain(line.split(' '))).map(|line| line.lab.verb)
    }

    #[test]
    fn a_command_after_the_dashes_is_left_alone() {
        let Ok(Verb::Exec { lab, node, command }) = parse("exec --name two n1 -- sh -c --name") else {
            panic!("not an exec")
        };
        assert_eq!((lab.name.as_str(), node.as_str()), ("two", "n1"));
        assert_eq!(command, ["sh", "-c", "--name"]);
    }

    #[test]
    fn a_lab_has_three_nodes_unless_told_otherwise() {
        let Ok(Verb::Up(up)) = parse("up --demo") else { panic!("not an up") };
        assert_eq!((up.nodes, up.managers, up.demo, up.lab.name.as_str()), (3, None, true, "lab"));
        assert!(parse("up --nodes 0").is_err());
    }

    #[test]
    fn disks_and_capacities_are_of_one_node_or_of_all() {
        assert_eq!(disk("n2:1g"), Ok((Some("n2".into()), 1 << 30)));
        assert_eq!(disk("300m"), Ok((None, 300 << 20)));
        let half = lab::Capacity { nano_cpus: 500_000_000, memory: 512 << 20 };
        assert_eq!(capacity("n1:0.5,512m"), Ok((Some("n1".into()), half)));
        assert!(capacity("n1:2").is_err() && capacity("2,much").is_err() && disk("n1:").is_err());
    }

    #[test]
    fn every_verb_takes_a_name() {
        for line in [
            "status",
            "kill n1",
            "pause n1",
            "resume n1",
            "start n1",
            "reset n1",
            "partition n1 n2",
            "link n1 n2 --loss 5%",
            "link all",
            "clock n1 -45m",
            "disk n1 --writes 3",
            "logs n1",
            "top",
            "graph",
            "heal",
            "down",
        ] {
            assert!(parse(&format!("{line} --name two")).is_ok(), "{line}");
        }
    }
}
