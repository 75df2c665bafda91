//! `rswarm lab logs|top|graph`: what a lab's nodes say, what they take, and who is what to whom.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rswarm_chaos::lab::{Lab, Power};
use serde_json::Value;

use crate::bench::process::usage;
use crate::cli::output::units::memory;

/// Over how long processor time is measured.
const WINDOW: Duration = Duration::from_millis(500);
/// At most so much of the end of a log is looked at, in bytes.
const LOG_MAX: usize = 4 << 20;
/// How long a node's daemon may take to say how things are.
const ASK: Duration = Duration::from_secs(5);

/// The last lines of the logs of these nodes' daemons, or of all.
///
/// # Errors
/// If there are no such nodes, or nobody reads.
pub fn logs(lab: &Lab, nodes: &[String], lines: usize, out: &mut impl Write) -> Result<()> {
    let all = lab.names()?;
    if let Some(node) = nodes.iter().find(|node| !all.contains(node)) {
        bail!("the lab has no node \"{node}\"; it has {}", all.join(", "));
    }
    for node in all.iter().filter(|node| nodes.is_empty() || nodes.contains(node)) {
        let path = lab.node(node).log();
        let text = fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let end = String::from_utf8_lossy(&text[text.len().saturating_sub(LOG_MAX)..]);
        let said: Vec<&str> = end.lines().collect();
        for line in &said[said.len().saturating_sub(lines)..] {
            writeln!(out, "{node}  {line}")?;
        }
    }
    Ok(())
}

/// What each node takes of this machine, containers included.
///
/// # Errors
/// If the lab is gone, or nobody reads.
pub fn top(lab: &Lab, out: &mut impl Write) -> Result<()> {
    let ticks = nix::unistd::sysconf(nix::unistd::SysconfVar::CLK_TCK)?.unwrap_or(100);
    let before = used(lab)?;
    let began = Instant::now();
    thread::sleep(WINDOW);
    let after = used(lab)?;
    let passed = began.elapsed().as_secs_f64() * ticks as f64;
    writeln!(out, "{:<6} {:<8} {:>8} {:>10} {:>10}", "NODE", "POWER", "CPU", "MEMORY", "PROCESSES")?;
    for node in lab.status()?.nodes {
        let of = |used: &BTreeMap<String, (u64, u64)>| used.get(&node.name).copied().unwrap_or_default();
        let spent = of(&after).0.saturating_sub(of(&before).0);
        let share = format!("{:.1}%", 100.0 * spent as f64 / passed);
        let memory = memory(of(&after).1);
        writeln!(out, "{:<6} {:<8} {share:>8} {memory:>10} {:>10}", node.name, node.power, node.processes)?;
    }
    Ok(())
}

/// Processor time in clock ticks, and memory in bytes, by node. What ends meanwhile is left out.
fn used(lab: &Lab) -> Result<BTreeMap<String, (u64, u64)>> {
    let mut used = BTreeMap::new();
    for node in lab.names()? {
        let each = lab.processes_of(&node)?.into_iter().filter_map(|pid| usage(pid).ok());
        used.insert(node, each.fold((0, 0), |sum, one| (sum.0 + one.ticks, sum.1 + one.private_bytes)));
    }
    Ok(used)
}

/// Who leads, who runs what, and which links are not whole.
///
/// # Errors
/// If no node that is on says how things are.
pub fn graph(lab: &Lab, out: &mut impl Write) -> Result<()> {
    let status = lab.status()?;
    let on = || status.nodes.iter().filter(|node| node.power == Power::On).map(|node| node.name.as_str());
    let managers = || status.nodes.iter().filter(|node| node.manager).map(|node| node.name.as_str());
    let mut leader = None;
    let mut runs: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for node in on().filter(|node| managers().any(|manager| manager == *node)) {
        let Ok(told) = ask(lab, node, &["status", "--format", "json"]) else { continue };
        let told: Value = serde_json::from_str(&told).context("status is not JSON")?;
        let managers = told["Managers"].as_array().cloned().unwrap_or_default();
        leader = managers
            .iter()
            .find(|manager| manager["Leader"] == true)
            .and_then(|manager| manager["Hostname"].as_str().map(String::from));
        let Ok(services) = ask(lab, node, &["service", "ls", "--format", "{{.Name}}"]) else { continue };
        for service in services.lines() {
            let format = "{{.Node}} {{.Name}} {{.CurrentState}}";
            let tasks = ask(lab, node, &["service", "ps", service, "--no-trunc", "--format", format])?;
            for task in tasks.lines() {
                let mut words = task.split(' ');
                if let (Some(on), Some(name), Some("Running")) = (words.next(), words.next(), words.next()) {
                    runs.entry(on.to_owned()).or_default().push(name.to_owned());
                }
            }
        }
        break;
    }
    if leader.is_none() && managers().next().is_some() {
        writeln!(out, "no manager that is on knows a leader")?;
    }
    for node in &status.nodes {
        let mark = match () {
            () if leader.as_deref() == Some(node.name.as_str()) => "leader",
            () if node.manager => "manager",
            () => "worker",
        };
        let power = if node.power == Power::On { String::new() } else { format!(", {}", node.power) };
        let runs = runs.get(&node.name).map(|tasks| tasks.join("  ")).unwrap_or_default();
        writeln!(out, "{:<6} {mark}{power:<10} {runs}", node.name)?;
    }
    let mut links: BTreeMap<(String, String), String> = BTreeMap::new();
    for worse in &status.links {
        links.insert((worse.from.clone(), worse.to.clone()), worse.link.to_string());
    }
    for cut in &status.cuts {
        links.insert((cut.from.clone(), cut.to.clone()), "cut".into());
    }
    for ((from, to), words) in &links {
        let back = links.get(&(to.clone(), from.clone()));
        match back {
            Some(same) if same == words && from > to => {}
            Some(same) if same == words => writeln!(out, "{from} <-> {to}  {words}")?,
            _ => writeln!(out, "{from} --> {to}  {words}")?,
        }
    }
    if links.is_empty() {
        writeln!(out, "all links are whole")?;
    }
    Ok(())
}

fn ask(lab: &Lab, node: &str, words: &[&str]) -> Result<String> {
    lab.node(node).call(words, ASK)?.ok()
}
