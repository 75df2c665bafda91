//! What is done to nodes, their links and their daemons.

use std::collections::BTreeSet;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::site::until;
use super::stage::{SERVICE, Scene};
use crate::lab::{Link, Power};

/// How long one may wait for what should take a moment.
pub(super) const LONG: Duration = Duration::from_secs(60);

/// What is done to the leader must be done to the leader.
pub(super) fn expect_lead(scene: &Scene<'_>, chosen: &str) -> Result<()> {
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
    // Longer than any lease, so that it wakes up as a leader of a time that is over.
    const STILL: Duration = Duration::from_secs(3);
    let leader = scene.victims[0].clone();
    expect_lead(scene, &leader)?;
    let since = scene.harm(&format!("{leader}, the leader, stands still"));
    scene.site.lab.pause(&leader)?;
    let stands =
        scene.site.lab.status()?.nodes.iter().any(|node| node.name == leader && node.power == Power::Paused);
    scene.expect(stands, format!("{leader} does not stand still: the fault was not injected"));
    scene.writable(since, 1_000.0, 10_000.0)?;
    let successor = scene.leader()?;
    scene.expect(successor != leader, format!("{leader} still leads although it stands still"));
    thread::sleep(STILL.saturating_sub(scene.now() - since));
    scene.note(&format!("{leader} goes on"));
    scene.site.lab.resume(&leader)?;
    // It is asked along with the others from its first moment on: what it says must be so.
    let site = scene.site;
    until(&format!("{leader} knows who leads"), LONG, || {
        let _ = scene.read_through(&leader);
        let known = site.account(&leader)?.leader;
        ensure!(known.as_ref().is_some_and(|known| *known != leader), "it says {known:?}");
        Ok(())
    })?;
    scene.read_through(&leader)?;
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
    scene.expect_cut(&scene.steady[0].clone(), &leader)?;
    scene.writable(since, 2_000.0, 15_000.0)?;
    let now = scene.leader()?;
    scene.expect(now != leader, format!("{leader} still leads"));
    scene.restarts(&[leader])
}

/// Silences a worker again and again.
pub fn node_flap(scene: &mut Scene<'_>) -> Result<()> {
    const SILENCE: Duration = Duration::from_millis(800);
    let (worker, other) = (scene.victims[0].clone(), scene.steady[0].clone());
    let before = scene.site.tasks(&scene.askable, SERVICE)?;
    let mut longest = Duration::ZERO;
    for _ in 0..5 {
        let since = scene.harm(&format!("{worker} falls silent"));
        scene.site.lab.partition(&[vec![worker.clone()]])?;
        scene.expect_cut(&other, &worker)?;
        thread::sleep(SILENCE.saturating_sub(scene.now() - since));
        scene.site.lab.heal()?;
        longest = longest.max(scene.now() - since);
        let heard = scene.site.lab.node(&other).reaches(&worker, LONG)?;
        scene.expect(heard, format!("{other} does not reach {worker} although the link is whole again"));
        thread::sleep((SILENCE * 3).saturating_sub(scene.now() - since));
    }
    let after = scene.site.tasks(&scene.askable, SERVICE)?;
    let moved = after.iter().filter(|task| !before.iter().any(|known| known.id == task.id)).count();
    scene.measure("longest_silence", longest.as_secs_f64() * 1e3, "ms", None, None);
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
    scene.expect_cut(&scene.steady[0].clone(), &lost[0])?;
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
    scene.expect_cut(&scene.steady[0].clone(), &leader)?;
    let wrong = acknowledges(scene, &leader);
    scene.measure("acknowledged_by_minority", f64::from(u8::from(wrong)), "count", Some(0.0), Some(0.0));
    scene.writable(since, 1_000.0, 10_000.0)?;
    let now = scene.leader()?;
    scene.expect(now != leader, format!("{leader} still leads"));
    scene.restarts(&[leader])
}

/// The tasks of the service there were, and how many of them are no longer wanted.
pub(super) fn moved(scene: &Scene<'_>, before: &BTreeSet<String>) -> Result<usize> {
    let wanted: BTreeSet<String> = wanted(scene)?;
    Ok(before.difference(&wanted).count())
}

pub(super) fn wanted(scene: &Scene<'_>) -> Result<BTreeSet<String>> {
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
    let known = scene.site.lab.carried()?;
    let since = scene.harm("one packet in twenty is lost on every link");
    scene.site.lab.links(&pairs, Link { loss: 500, ..Link::default() })?;
    let mut given_up = 0;
    while scene.now() - since < WATCHED {
        if let Ok(account) = scene.site.account(&scene.manager()?) {
            given_up += nodes.len().saturating_sub(account.ready.len());
        }
        thread::sleep(Duration::from_millis(500));
    }
    let now = scene.site.lab.carried()?;
    let (taken, given) = (now.taken.saturating_sub(known.taken), now.given.saturating_sub(known.given));
    let lost = 100.0 * taken.saturating_sub(given) as f64 / taken.max(1) as f64;
    scene.measure("packets", taken as f64, "count", None, None);
    scene.measure("packets_lost", lost, "percent", None, None);
    scene.expect(
        taken >= 1_000 && (3.0..=7.0).contains(&lost),
        format!("of {taken} packets {lost:.1} % were lost: the fault was not injected"),
    );
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
