//! The drills.

use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::Drill;
use super::load;
use super::site::until;
use super::stage::{SERVICE, Scene};

/// How many nodes most drills want: three managers and two workers.
const NODES: u8 = 5;
/// See [`NODES`].
const MANAGERS: u8 = 3;

/// All there are.
pub const ALL: &[Drill] = &[
    Drill {
        name: "leader-kill",
        promise: "When the leader's daemon is killed, writes succeed again within a second, and no container notices.",
        nodes: NODES,
        managers: MANAGERS,
        victims: the_leader,
        act: leader_kill,
    },
    Drill {
        name: "worker-power-off",
        promise: "When a worker loses power, its tasks run elsewhere within three seconds.",
        nodes: NODES,
        managers: MANAGERS,
        victims: a_worker,
        act: power_off,
    },
    Drill {
        name: "leader-pause",
        promise: "A leader that stands still is replaced, and when it goes on it answers nothing that is no longer so.",
        nodes: NODES,
        managers: MANAGERS,
        victims: the_leader,
        act: leader_pause,
    },
    Drill {
        name: "partition-one-way",
        promise: "A leader that is heard and hears nobody does not keep the cluster from another one.",
        nodes: NODES,
        managers: MANAGERS,
        victims: the_leader,
        act: partition_one_way,
    },
    Drill {
        name: "node-flap",
        promise: "A node that is silent for less than a second, again and again, keeps its tasks.",
        nodes: NODES,
        managers: MANAGERS,
        victims: a_worker,
        act: node_flap,
    },
    Drill {
        name: "crash-loop",
        promise: "Tasks that fail at once are started again with pauses, and their neighbours do not notice.",
        nodes: NODES,
        managers: MANAGERS,
        victims: nobody,
        act: crash_loop,
    },
    Drill {
        name: "container-oom",
        promise: "A container that takes more memory than its limit is ended alone, and replaced.",
        nodes: NODES,
        managers: MANAGERS,
        victims: nobody,
        act: container_oom,
    },
];

fn nobody(_: &mut Scene<'_>) -> Result<Vec<String>> {
    Ok(Vec::new())
}

fn the_leader(scene: &mut Scene<'_>) -> Result<Vec<String>> {
    Ok(vec![scene.leader()?])
}

fn all_workers(scene: &mut Scene<'_>) -> Result<Vec<String>> {
    let managers = scene.site.managers()?;
    Ok(scene.site.nodes()?.into_iter().filter(|node| !managers.contains(node)).collect())
}

fn a_worker(scene: &mut Scene<'_>) -> Result<Vec<String>> {
    let workers = all_workers(scene)?;
    let chosen = scene.chance(workers.len());
    Ok(vec![
        workers
            .get(chosen)
            .context("the lab has no worker; make one with fewer managers than nodes")?
            .clone(),
    ])
}

/// What is done to the leader must be done to the leader.
fn expect_lead(scene: &Scene<'_>, chosen: &str) -> Result<()> {
    let leader = scene.leader()?;
    ensure!(
        leader == chosen,
        "{chosen} led when the drill began, {leader} does now: this machine is too busy, run the drill again"
    );
    Ok(())
}

fn leader_kill(scene: &mut Scene<'_>) -> Result<()> {
    let leader = scene.victims[0].clone();
    expect_lead(scene, &leader)?;
    let since = scene.harm(&format!("the daemon of {leader}, the leader, is killed"));
    scene.site.lab.daemon_kill(&leader)?;
    scene.writable(since, 1_000.0, 10_000.0)?;
    scene.failures(since, 0.0, 5.0);
    scene.restarts(&[])
}

fn power_off(scene: &mut Scene<'_>) -> Result<()> {
    let worker = scene.victims[0].clone();
    let since = scene.harm(&format!("{worker} loses power"));
    scene.site.lab.kill(&worker)?;
    scene.replaced(std::slice::from_ref(&worker), since, 3_000.0, 30_000.0)?;
    scene.failures(since, 0.1, 10.0);
    scene.restarts(&[worker])
}

fn leader_pause(scene: &mut Scene<'_>) -> Result<()> {
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

fn partition_one_way(scene: &mut Scene<'_>) -> Result<()> {
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

fn node_flap(scene: &mut Scene<'_>) -> Result<()> {
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

fn crash_loop(scene: &mut Scene<'_>) -> Result<()> {
    const NAME: &str = "drill-loop";
    const WATCHED: Duration = Duration::from_secs(12);
    let manager = scene.manager()?;
    let since = scene.harm("a service of four tasks begins, all of which fail at once");
    let words = [
        "service",
        "create",
        "--detach",
        "--name",
        NAME,
        "--replicas",
        "4",
        "rswarm/demo",
        "--fail-at-start",
    ];
    scene.site.act(&manager, &words)?;
    thread::sleep(WATCHED);
    let tasks = scene.site.tasks(&scene.askable, NAME)?;
    let failed = tasks.iter().filter(|task| task.current_state.starts_with("Failed")).count();
    scene.expect(failed >= 4, format!("{failed} tasks have failed; the fault was not injected"));
    // A pause of five seconds that grows: in this time each of the four can be begun four times at most.
    scene.measure("attempts", tasks.len() as f64, "count", Some(16.0), Some(20.0));
    scene.failures(since, 0.0, 1.0);
    scene.restarts(&[])
}

fn container_oom(scene: &mut Scene<'_>) -> Result<()> {
    const NAME: &str = "drill-oom";
    const PORT: u16 = 8091;
    let (manager, publish) = (scene.manager()?, format!("{PORT}:80"));
    let words =
        ["service", "create", "--name", NAME, "--limit-memory", "48m", "--publish", &publish, "rswarm/demo"];
    scene.site.act(&manager, &words)?;
    let address = scene.site.address(&scene.steady[0])?.into();
    until("it answers", Duration::from_secs(20), || load::get(address, PORT).map(drop))?;
    let since = scene.harm("a container takes more memory than its limit");
    // It dies of this, so there is no answer to wait for.
    let _ = load::get_path(address, PORT, "/burn?mem=256m");
    let (site, askable) = (scene.site, scene.askable.clone());
    let mut told = String::new();
    until("its task has failed for want of memory", Duration::from_secs(20), || {
        let tasks = site.tasks(&askable, NAME)?;
        let failed = tasks.iter().find(|task| task.current_state.starts_with("Failed"));
        told.clone_from(&failed.context("no task has failed")?.error);
        Ok(())
    })?;
    let says = told.to_lowercase();
    scene.expect(
        says.contains("memory") || says.contains("oom"),
        format!("the task's error does not say why: {told}"),
    );
    until("it answers again", Duration::from_secs(40), || load::get(address, PORT).map(drop))?;
    scene.note("its successor answers");
    scene.failures(since, 0.0, 1.0);
    scene.restarts(&[])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_one_each_and_promises_are_sentences() {
        for (number, drill) in ALL.iter().enumerate() {
            assert!(drill.promise.ends_with('.'), "{}", drill.name);
            assert!(ALL[number + 1..].iter().all(|other| other.name != drill.name), "{}", drill.name);
            assert!(drill.managers <= drill.nodes);
        }
    }
}
