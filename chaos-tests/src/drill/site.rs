//! The cluster under a drill, as its user sees it: by the commands of `rswarm`, and by what runs on this
//! machine.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::{IpAddr, Ipv4Addr};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde::Deserialize;
use serde_json::Value;

use crate::lab::{Lab, Power};

/// How long a command may take that asks how things are.
const ASK: Duration = Duration::from_secs(3);
/// How long a command may take that changes something.
const ACT: Duration = Duration::from_secs(90);
/// How often a condition is looked at.
const LOOK: Duration = Duration::from_millis(30);

/// A task as `service ps` shows it.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Task {
    /// Its id.
    #[serde(rename = "ID")]
    pub id: String,
    /// Its node's host name.
    pub node: String,
    /// What is wanted of it.
    pub desired_state: String,
    /// What it does, and since when.
    pub current_state: String,
    /// What went wrong.
    pub error: String,
}

impl Task {
    /// Whether it runs and shall.
    pub fn runs(&self) -> bool {
        self.desired_state == "Running" && self.current_state.starts_with("Running")
    }

    /// Whether it shall run and has not come to an end.
    pub fn is_wanted(&self) -> bool {
        let ended = ["Orphaned", "Failed", "Rejected", "Shutdown", "Complete"];
        self.desired_state == "Running" && !ended.iter().any(|state| self.current_state.starts_with(state))
    }
}

/// What a manager says of the cluster.
#[derive(Debug, Clone)]
pub struct Account {
    /// Host name of the leader it follows.
    pub leader: Option<String>,
    /// The term of the replicated log.
    pub term: u64,
    /// How far it has applied the log.
    pub applied: u64,
    /// Host names of nodes that are ready.
    pub ready: BTreeSet<String>,
    /// How many voters it can reach, itself included.
    pub voters: usize,
}

/// A lab with a cluster on it.
#[derive(Debug, Clone, Copy)]
pub struct Site<'a> {
    /// The lab.
    pub lab: &'a Lab,
}

impl Site<'_> {
    /// The names of all nodes.
    pub fn nodes(&self) -> Result<Vec<String>> {
        self.lab.names()
    }

    /// The names of the nodes that were made managers.
    pub fn managers(&self) -> Result<Vec<String>> {
        let nodes = self.lab.status()?.nodes;
        Ok(nodes.into_iter().filter(|node| node.manager).map(|node| node.name).collect())
    }

    /// The address of a node.
    pub fn address(&self, node: &str) -> Result<Ipv4Addr> {
        self.lab.node(node).address()
    }

    /// Asks one node's daemon.
    pub fn ask(&self, node: &str, words: &[&str]) -> Result<String> {
        self.lab.node(node).call(words, ASK)?.ok()
    }

    /// Asks the daemons of these nodes, one after the other, until one answers.
    pub fn ask_any(&self, nodes: &[String], words: &[&str]) -> Result<String> {
        let mut why = None;
        for node in nodes {
            match self.ask(node, words) {
                Ok(answer) => return Ok(answer),
                Err(error) => why = Some(error),
            }
        }
        Err(why.context("there is no node to ask")?)
    }

    /// Has a node's daemon change something, and waits for it.
    pub fn act(&self, node: &str, words: &[&str]) -> Result<String> {
        self.lab.node(node).call(words, ACT)?.ok()
    }

    /// What a manager says.
    pub fn account(&self, node: &str) -> Result<Account> {
        let printed = self.ask(node, &["status", "--format", "json"])?;
        let status: Value = serde_json::from_str(&printed).context("status is not JSON")?;
        let list = |name: &str| status[name].as_array().cloned().unwrap_or_default();
        let text = |value: &Value| value.as_str().map(String::from);
        let leader = list("Managers").iter().find(|manager| manager["Leader"] == true).cloned();
        let ready = list("Nodes")
            .iter()
            .filter(|node| node["Status"]["State"] == "ready")
            .filter_map(|node| text(&node["Description"]["Hostname"]))
            .collect();
        let reached = |manager: &&Value| manager["Voter"] == true && manager["Reachable"] == true;
        Ok(Account {
            leader: leader.and_then(|leader| text(&leader["Hostname"])),
            term: status["Term"].as_u64().unwrap_or(0),
            applied: status["Applied"].as_u64().unwrap_or(0),
            ready,
            voters: list("Managers").iter().filter(reached).count(),
        })
    }

    /// Who leads, as these nodes see it.
    pub fn leader(&self, nodes: &[String]) -> Result<String> {
        let mut why = None;
        for node in nodes {
            match self.account(node).map(|account| account.leader) {
                Ok(Some(leader)) => return Ok(leader),
                Ok(None) => {}
                Err(error) => why = Some(error),
            }
        }
        Err(why.unwrap_or_else(|| anyhow::anyhow!("nobody knows a leader")))
    }

    /// The tasks of a service.
    pub fn tasks(&self, nodes: &[String], service: &str) -> Result<Vec<Task>> {
        let printed = self.ask_any(nodes, &["service", "ps", service, "--no-trunc", "--format", "json"])?;
        printed
            .lines()
            .map(|line| serde_json::from_str(line).with_context(|| format!("not JSON: {line}")))
            .collect()
    }

    /// Waits until exactly so many tasks of a service run, and no other is wanted.
    pub fn runs(&self, nodes: &[String], service: &str, count: usize, bound: Duration) -> Result<Vec<Task>> {
        let mut found = Vec::new();
        until(&format!("{service} runs {count} times"), bound, || {
            let tasks = self.tasks(nodes, service)?;
            let wanted = tasks.iter().filter(|task| task.is_wanted()).count();
            found = tasks.into_iter().filter(Task::runs).collect();
            ensure!(found.len() == count && wanted == count, "{} run, {wanted} are wanted", found.len());
            Ok(())
        })?;
        Ok(found)
    }

    /// Waits until every node is ready, and every manager follows the same leader, reaches all voters, and has
    /// caught up.
    pub fn whole(&self, bound: Duration) -> Result<()> {
        let (nodes, managers) = (self.nodes()?, self.managers()?);
        until("the cluster is whole", bound, || {
            let accounts: Vec<Account> =
                managers.iter().map(|manager| self.account(manager)).collect::<Result<_>>()?;
            for (manager, account) in managers.iter().zip(&accounts) {
                ensure!(account.voters == managers.len(), "{manager} reaches {} voters", account.voters);
                ensure!(
                    account.ready.len() == nodes.len(),
                    "{manager} knows {} ready nodes",
                    account.ready.len()
                );
                ensure!(
                    account.leader.is_some() && account.leader == accounts[0].leader,
                    "{manager} follows {:?}",
                    account.leader
                );
                ensure!(account.applied >= accounts[0].applied, "{manager} has not caught up");
            }
            Ok(())
        })
    }

    /// Undoes whatever was done to the lab: links, clocks, disks, frozen nodes, power, daemons.
    pub fn mend(&self) -> Result<()> {
        self.lab.heal()?;
        let nodes = self.lab.status()?.nodes;
        // Where all have gone on, their certificates have, too: only who differs from the others is set right.
        let mut clocks: Vec<i64> = nodes.iter().map(|node| node.clock_ms).collect();
        clocks.sort_unstable();
        let right = clocks.get(clocks.len() / 2).copied().unwrap_or(0);
        for node in nodes {
            if node.clock_ms != right {
                self.lab.set_clock(&node.name, right)?;
            }
            if node.power != Power::Off {
                self.lab.throttle(&node.name, None)?;
            }
            match node.power {
                Power::Off => self.lab.start(&node.name)?,
                Power::Paused => self.lab.resume(&node.name)?,
                Power::On if !node.daemon.starts_with("running") => self.lab.daemon_start(&node.name)?,
                Power::On => {}
            }
        }
        Ok(())
    }

    /// The addresses of containers on a node.
    pub fn addresses_on(&self, node: &str) -> Result<BTreeSet<IpAddr>> {
        let containers = first_of_each(self.lab.processes_of(node)?);
        let tables = containers
            .values()
            .filter_map(|pid| fs::read_to_string(format!("/proc/{pid}/net/fib_trie")).ok());
        Ok(tables
            .flat_map(|table| local_addresses(&table))
            .filter(|address| !address.is_loopback())
            .collect())
    }

    /// The first process of each task's container on the lab's nodes, by task id.
    pub fn containers(&self) -> Result<BTreeMap<String, i32>> {
        Ok(first_of_each(self.lab.processes()?))
    }
}

/// The first process of each task's container among these, by task id.
fn first_of_each(processes: Vec<i32>) -> BTreeMap<String, i32> {
    let mut found = BTreeMap::new();
    for pid in processes {
        let environment = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        let mut variables = environment.split(|byte| *byte == 0);
        let task = variables.find_map(|variable| variable.strip_prefix(b"RSWARM_TASK="));
        if let Some(task) = task {
            let task = String::from_utf8_lossy(task).into_owned();
            // A container's first process is the oldest.
            found.entry(task).and_modify(|known: &mut i32| *known = (*known).min(pid)).or_insert(pid);
        }
    }
    found
}

/// The addresses that are a network's own, by its table of routes as the kernel draws it: an address, and on the
/// next line what it is.
fn local_addresses(table: &str) -> Vec<IpAddr> {
    let lines: Vec<&str> = table.lines().map(str::trim).collect();
    let own = lines.windows(2).filter(|two| two[1] == "/32 host LOCAL");
    own.filter_map(|two| two[0].strip_prefix("|-- ")?.parse().ok()).collect()
}

/// Waits until a condition holds, and returns how long that took. What kept it from holding is quoted when the
/// time is up.
pub fn until(what: &str, bound: Duration, mut holds: impl FnMut() -> Result<()>) -> Result<()> {
    let began = Instant::now();
    loop {
        let Err(why) = holds() else { return Ok(()) };
        if began.elapsed() > bound {
            bail!("waited {} s in vain until {what}: {why:#}", bound.as_secs());
        }
        thread::sleep(LOOK);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_addresses_of_a_network_are_read_from_its_routes() {
        let table = "Local:\n  +-- 10.0.0.0/16 2 0 2\n     |-- 10.0.0.0\n        /16 link UNICAST\n     |-- \
                     10.0.0.7\n        /32 host LOCAL\n     |-- 127.0.0.1\n        /32 host LOCAL\n";
        let expected: Vec<IpAddr> = vec![[10, 0, 0, 7].into(), [127, 0, 0, 1].into()];
        assert_eq!(local_addresses(table), expected);
        assert!(local_addresses("").is_empty());
    }
}
