//! What is done to nodes, their links and their daemons.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::site::until;
use super::stage::{SERVICE, Scene};
use crate::lab::Link;

/// How long one may wait for what should take a moment.
const LONG: Duration = Duration::from_secs(60);

/// What is done to the leader must be done to the leader.
fn expect_lead(scene: &Scene<'_>, chosen: &str) -> Result<()> {
    let leader = scene.leader()?;
    ensure!(
        leader == chosen,
        "{chosen} led when the drill began, {leader} does now: this machine is too busy, run the drill again"
    );
    Ok(())
}

/// Kills the leader's daemon.
pub fn leader_kill(scene: &mut Scene<'_>) -> Result<()> {
    let leader = scene.victims[0].clone();
    expect_lead(scene, &leader)?;
    let since = scene.harm(&format!("the daemon of {leader}, the leader, is killed"));
    scene.site.lab.daemon_kill(&leader)?;
    scene.writable(since, 1_000.0, 10_000.0)?;
    scene.failures(since, 0.0, 5.0);
    scene.restarts(&[])
}

/// Takes a worker's power.
pub fn power_off(scene: &mut Scene<'_>) -> Result<()> {
    let worker = scene.victims[0].clone();
    let since = scene.harm(&format!("{worker} loses power"));
    scene.site.lab.kill(&worker)?;
    scene.replaced(std::slice::from_ref(&worker), since, 3_000.0, 30_000.0)?;
    scene.failures(since, 0.1, 10.0);
    scene.restarts(&[worker])
}

/// Freezes the leader.
pub fn leader_pause(scene: &mut Scene<'_>) -> Result<()> {
    let leader = scene.victims[0].clone();
    expect_lead(scene, &leader)?;
    let since = scene.harm(&format!("{leader}, the leader, stands still"));
    scene.site.lab.pause(&leader)?;
    scene.writable(since, 1_000.0, 10_000.0)?;
    thread::sleep(Duration::from_secs(3).saturating_sub(scene.now() - since));
    scene.note(&format!("{leader} goes on"));
    scene.site.lab.resume(&leader)?;
    // It is asked along with the others: what it says must be so.
    thread::sleep(Duration::from_secs(2));
    scene.restarts(&[leader])
}

/// Lets the leader hear nobody.
pub fn partition_one_way(scene: &mut Scene<'_>) -> Result<()> {
    let leader = scene.victims[0].clone();
    expect_lead(scene, &leader)?;
    let since = scene.harm(&format!("{leader}, the leader, hears nobody and is heard"));
    for node in scene.site.nodes()?.iter().filter(|node| **node != leader) {
        scene.site.lab.cut(node, &leader)?;
    }
    scene.writable(since, 2_000.0, 15_000.0)?;
    let now = scene.leader()?;
    scene.expect(now != leader, format!("{leader} still leads"));
    scene.restarts(&[leader])
}

/// Silences a worker again and again.
pub fn node_flap(scene: &mut Scene<'_>) -> Result<()> {
    const SILENCE: Duration = Duration::from_millis(800);
    let worker = scene.victims[0].clone();
    let before = scene.site.tasks(&scene.askable, SERVICE)?;
    for _ in 0..5 {
        scene.harm(&format!("{worker} falls silent"));
        scene.site.lab.partition(&[vec![worker.clone()]])?;
        thread::sleep(SILENCE);
        scene.site.lab.heal()?;
        thread::sleep(SILENCE * 2);
    }
    let after = scene.site.tasks(&scene.askable, SERVICE)?;
    let moved = after.iter().filter(|task| !before.iter().any(|known| known.id == task.id)).count();
    scene.measure("tasks_replaced", moved as f64, "count", Some(0.0), Some(0.0));
    scene.restarts(&[])
}

/// Takes the power of the leader and a worker at once.
pub fn leader_and_worker_power_off(scene: &mut Scene<'_>) -> Result<()> {
    let lost = scene.victims.clone();
    expect_lead(scene, &lost[0])?;
    let since = scene.harm(&format!("{} lose power", lost.join(" and ")));
    for node in &lost {
        scene.site.lab.kill(node)?;
    }
    scene.replaced(&lost, since, 4_000.0, 30_000.0)?;
    scene.writable(since, 1_000.0, 10_000.0)?;
    scene.failures(since, 0.1, 10.0);
    scene.restarts(&lost)
}

/// Whether a manager acknowledges a write, asked for at most four seconds.
fn acknowledges(scene: &Scene<'_>, node: &str) -> bool {
    let words =
        ["service", "create", "--detach", "--name", "drill-cut-off", "--replicas", "0", "rswarm/demo"];
    let asked = scene.site.lab.node(node).call(&words, Duration::from_secs(4));
    asked.and_then(|ran| ran.ok()).is_ok()
}

/// Cuts off a manager and a worker.
pub fn partition_minority(scene: &mut Scene<'_>) -> Result<()> {
    let lost = scene.victims.clone();
    let since = scene.harm(&format!("{} are cut off", lost.join(" and ")));
    scene.site.lab.partition(std::slice::from_ref(&lost))?;
    let wrong = acknowledges(scene, &lost[0]);
    scene.measure("acknowledged_by_minority", f64::from(u8::from(wrong)), "count", Some(0.0), Some(0.0));
    scene.replaced(&lost, since, 4_500.0, 30_000.0)?;
    scene.writable(since, 1_000.0, 10_000.0)?;
    scene.failures(since, 0.1, 10.0);
    scene.restarts(&lost)
}

/// Cuts the leader off.
pub fn partition_leader(scene: &mut Scene<'_>) -> Result<()> {
    let leader = scene.victims[0].clone();
    expect_lead(scene, &leader)?;
    let since = scene.harm(&format!("{leader}, the leader, is cut off"));
    scene.site.lab.partition(&[vec![leader.clone()]])?;
    let wrong = acknowledges(scene, &leader);
    scene.measure("acknowledged_by_minority", f64::from(u8::from(wrong)), "count", Some(0.0), Some(0.0));
    scene.writable(since, 1_000.0, 10_000.0)?;
    let now = scene.leader()?;
    scene.expect(now != leader, format!("{leader} still leads"));
    scene.restarts(&[leader])
}

/// The tasks of the service there were, and how many of them are no longer wanted.
fn moved(scene: &Scene<'_>, before: &BTreeSet<String>) -> Result<usize> {
    let wanted: BTreeSet<String> = wanted(scene)?;
    Ok(before.difference(&wanted).count())
}

fn wanted(scene: &Scene<'_>) -> Result<BTreeSet<String>> {
    let tasks = scene.site.tasks(&scene.askable, SERVICE)?;
    Ok(tasks.into_iter().filter(|task| task.is_wanted()).map(|task| task.id).collect())
}

/// Loses one packet in twenty on every link.
pub fn packet_loss(scene: &mut Scene<'_>) -> Result<()> {
    const WATCHED: Duration = Duration::from_secs(20);
    let before = wanted(scene)?;
    let term = scene.site.account(&scene.manager()?)?.term;
    let nodes = scene.site.nodes()?;
    let pairs: Vec<(String, String)> = nodes
        .iter()
        .flat_map(|from| nodes.iter().filter(move |to| *to != from).map(move |to| (from.clone(), to.clone())))
        .collect();
    let since = scene.harm("one packet in twenty is lost on every link");
    scene.site.lab.links(&pairs, Link { loss: 500, ..Link::default() })?;
    let mut given_up = 0;
    while scene.now() - since < WATCHED {
        if let Ok(account) = scene.site.account(&scene.manager()?) {
            given_up += nodes.len().saturating_sub(account.ready.len());
        }
        thread::sleep(Duration::from_millis(500));
    }
    let moved = moved(scene, &before)?;
    let terms = scene.site.account(&scene.manager()?)?.term - term;
    scene.measure("seen_not_ready", given_up as f64, "count", Some(0.0), Some(0.0));
    scene.measure("tasks_replaced", moved as f64, "count", Some(0.0), Some(0.0));
    scene.measure("new_terms", terms as f64, "count", Some(0.0), None);
    scene.failures(since, 0.0, 1.0);
    scene.restarts(&[])
}

/// Cuts most nodes off, each alone.
pub fn mass_failure(scene: &mut Scene<'_>) -> Result<()> {
    const WATCHED: Duration = Duration::from_secs(8);
    let (lost, before) = (scene.victims.clone(), wanted(scene)?);
    let since = scene.harm(&format!("{} fall silent at once", lost.join(", ")));
    let alone: Vec<Vec<String>> = lost.iter().map(|node| vec![node.clone()]).collect();
    scene.site.lab.partition(&alone)?;
    thread::sleep(WATCHED.saturating_sub(scene.now() - since));
    let ready = scene.site.account(&scene.manager()?)?.ready.len();
    scene.expect(
        ready <= scene.steady.len(),
        format!("{ready} nodes are ready although {} are cut off: the fault was not injected", lost.len()),
    );
    let moved = moved(scene, &before)?;
    scene.measure("tasks_replaced", moved as f64, "count", Some(0.0), Some(0.0));
    scene.note("the links are joined");
    scene.site.lab.heal()?;
    scene.site.whole(LONG)?;
    scene.restarts(&[])
}

/// Takes the power of all nodes, and gives it back.
pub fn whole_power_loss(scene: &mut Scene<'_>) -> Result<()> {
    let nodes = scene.site.nodes()?;
    scene.harm("all nodes lose power");
    for node in &nodes {
        scene.site.lab.kill(node)?;
    }
    for node in &nodes {
        scene.site.lab.start(node)?;
    }
    let since = scene.now();
    scene.note("all nodes are on again");
    written_after(scene, since, "writable_after_start", 3_000.0)
}

/// Waits until a write that began after `since` is acknowledged, and measures when.
fn written_after(scene: &mut Scene<'_>, since: Duration, what: &str, target: f64) -> Result<()> {
    let first = |scene: &Scene<'_>| {
        let shots = scene.shots("write").into_iter().filter(|shot| shot.ok && shot.at > since);
        shots.map(|shot| shot.at + shot.took).min()
    };
    until("a write is acknowledged", LONG, || first(scene).map(drop).context("none is"))?;
    let took = first(scene).unwrap_or(since).saturating_sub(since);
    scene.measure_time(what, took, target, 30_000.0);
    scene.note(&format!("writable {took:.2?} later"));
    Ok(())
}

/// Takes the power of two of three managers, and gives it back to one.
pub fn quorum_loss(scene: &mut Scene<'_>) -> Result<()> {
    const WITHOUT: Duration = Duration::from_secs(6);
    let lost = scene.victims.clone();
    scene.harm(&format!("{} lose power, and the quorum with them", lost.join(" and ")));
    for node in &lost {
        scene.site.lab.kill(node)?;
    }
    let since = scene.now();
    thread::sleep(WITHOUT);
    let wrong = scene.shots("write").iter().filter(|shot| shot.ok && shot.at > since).count();
    scene.measure("acknowledged_without_quorum", wrong as f64, "count", Some(0.0), Some(0.0));
    scene.failures(since, 0.1, 10.0);
    scene.site.lab.start(&lost[1])?;
    let back = scene.now();
    scene.note(&format!("{} is on again", lost[1]));
    written_after(scene, back, "writable_after_start", 3_000.0)?;
    scene.restarts(&lost)
}

/// Ends each daemon in turn and starts it again.
fn each_daemon(scene: &mut Scene<'_>, words: &str, end: fn(&Scene<'_>, &str) -> Result<()>) -> Result<()> {
    let mut slowest = Duration::ZERO;
    for node in scene.site.nodes()? {
        scene.harm(&format!("the daemon of {node} {words}"));
        end(scene, &node)?;
        scene.site.lab.daemon_start(&node)?;
        let began = Instant::now();
        scene.site.whole(LONG)?;
        slowest = slowest.max(began.elapsed());
    }
    scene.measure_time("whole_after", slowest, 2_000.0, 30_000.0);
    scene.restarts(&[])
}

/// Kills each daemon in turn.
pub fn daemon_crash(scene: &mut Scene<'_>) -> Result<()> {
    each_daemon(scene, "is killed", |scene, node| scene.site.lab.daemon_kill(node))
}

/// Stops each daemon in turn.
pub fn daemon_upgrade(scene: &mut Scene<'_>) -> Result<()> {
    each_daemon(scene, "is stopped and started", |scene, node| scene.site.lab.daemon_stop(node))
}

/// Damages the middle of what a manager that is off has written last.
pub fn disk_corrupt(scene: &mut Scene<'_>) -> Result<()> {
    let node = scene.victims[0].clone();
    let since = scene.harm(&format!("{node} loses power, and the middle of its log is damaged"));
    scene.site.lab.kill(&node)?;
    let state = scene.site.lab.directory().join(&node).join("state");
    let (file, content) = newest_log(&state)?;
    let used = content.iter().rposition(|byte| *byte != 0).context("the log is empty")?;
    let mut damaged = content.clone();
    damaged[used / 2] ^= 0x40;
    fs::write(&file, damaged).with_context(|| format!("cannot write {}", file.display()))?;
    scene.site.lab.start(&node)?;
    // It may refuse, or find that it can do without what is damaged; either way the others go on.
    thread::sleep(Duration::from_secs(4));
    let of = |node: &crate::lab::NodeStatus| node.daemon.clone();
    let status = scene.site.lab.status()?.nodes.iter().find(|one| one.name == node).map(of);
    let refuses = !status.as_deref().is_some_and(|daemon| daemon.starts_with("running"));
    let log = fs::read_to_string(scene.site.lab.node(&node).log()).unwrap_or_default();
    let told = log.lines().rev().take(60).any(|line| line.contains("damaged"));
    scene.expect(told, format!("{node} says nothing of the damage in its log"));
    scene.note(&format!("{node} {}", if refuses { "refuses to run" } else { "runs" }));
    let writable = scene.writable(since, 2_000.0, 10_000.0);
    if refuses {
        // The disk is given back as it was: what must be rejoined otherwise is not what this is about.
        scene.site.lab.kill(&node)?;
        fs::write(&file, content).with_context(|| format!("cannot write {}", file.display()))?;
        scene.site.lab.start(&node)?;
    }
    writable?;
    scene.restarts(&[node])
}

/// The segment of the replicated log that was written last, and what is in it.
fn newest_log(state: &Path) -> Result<(PathBuf, Vec<u8>)> {
    let mut found: Vec<(std::time::SystemTime, PathBuf)> = Vec::new();
    let mut open = vec![state.join("raft")];
    while let Some(directory) = open.pop() {
        let entries =
            fs::read_dir(&directory).with_context(|| format!("cannot read {}", directory.display()))?;
        for entry in entries.flatten() {
            let path = entry.path();
            if path.is_dir() {
                open.push(path);
            } else if path.extension().is_some_and(|extension| extension == "wal") {
                found.push((entry.metadata()?.modified()?, path));
            }
        }
    }
    found.sort();
    for (_, path) in found.into_iter().rev() {
        let content = fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
        // Segments are made before they are needed.
        if content.iter().skip(4096).any(|byte| *byte != 0) {
            return Ok((path, content));
        }
    }
    anyhow::bail!("there is no log in {}: the fault was not injected", state.display())
}
