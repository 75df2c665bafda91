//! The drills.

use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use super::Drill;
use super::load;
use super::site::until;
use super::stage::{REPLICAS, SERVICE, Scene};

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
        name: "leader-and-worker-power-off",
        promise: "When the leader and a worker lose power together, their tasks run elsewhere within four seconds.",
        nodes: NODES,
        managers: MANAGERS,
        victims: the_leader_and_a_worker,
        act: leader_and_worker_power_off,
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
        name: "partition-minority",
        promise: "A minority that is cut off refuses writes; the majority goes on and takes its tasks over.",
        nodes: NODES,
        managers: MANAGERS,
        victims: a_follower_and_a_worker,
        act: partition_minority,
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
        name: "partition-leader-from-majority",
        promise: "A leader cut off from the others refuses writes, and the others elect another within a second.",
        nodes: NODES,
        managers: MANAGERS,
        victims: the_leader,
        act: partition_leader,
    },
    Drill {
        name: "whole-cluster-power-loss",
        promise: "When all nodes lose power, the cluster comes back by itself with everything acknowledged.",
        nodes: NODES,
        managers: MANAGERS,
        victims: nobody,
        act: whole_cluster_power_loss,
    },
    Drill {
        name: "daemon-crash",
        promise: "A daemon that is killed and started again adopts its containers: none is restarted.",
        nodes: NODES,
        managers: MANAGERS,
        victims: nobody,
        act: daemon_crash,
    },
    Drill {
        name: "rolling-update-under-load",
        promise: "An update replaces every task and no new connection fails.",
        nodes: NODES,
        managers: MANAGERS,
        victims: nobody,
        act: rolling_update,
    },
    Drill {
        name: "update-with-node-loss",
        promise: "An update during which a node is lost still ends with every task updated.",
        nodes: NODES,
        managers: MANAGERS,
        victims: a_worker,
        act: update_with_node_loss,
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
    Drill {
        name: "join-storm",
        promise: "Six nodes that join at the same moment are all ready soon, and writes go on meanwhile.",
        nodes: 9,
        managers: MANAGERS,
        victims: all_workers,
        act: join_storm,
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

fn the_leader_and_a_worker(scene: &mut Scene<'_>) -> Result<Vec<String>> {
    Ok([the_leader(scene)?, a_worker(scene)?].concat())
}

fn a_follower_and_a_worker(scene: &mut Scene<'_>) -> Result<Vec<String>> {
    let leader = scene.leader()?;
    let followers: Vec<String> =
        scene.site.managers()?.into_iter().filter(|manager| *manager != leader).collect();
    let chosen = scene.chance(followers.len());
    let follower = followers.get(chosen).context("the lab has one manager only")?.clone();
    Ok([vec![follower], a_worker(scene)?].concat())
}

fn leader_kill(scene: &mut Scene<'_>) -> Result<()> {
    let leader = scene.victims[0].clone();
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
    scene.replaced(&[worker.clone()], since, 3_000.0, 30_000.0)?;
    scene.failures(since, 0.1, 10.0);
    scene.restarts(&[worker])
}

fn leader_and_worker_power_off(scene: &mut Scene<'_>) -> Result<()> {
    let victims = scene.victims.clone();
    let since = scene.harm(&format!("{} lose power, the first of them leads", victims.join(" and ")));
    for victim in &victims {
        scene.site.lab.kill(victim)?;
    }
    scene.writable(since, 1_000.0, 15_000.0)?;
    scene.replaced(&victims, since, 4_000.0, 40_000.0)?;
    scene.failures(since, 0.1, 15.0);
    scene.restarts(&victims)
}

fn leader_pause(scene: &mut Scene<'_>) -> Result<()> {
    let leader = scene.victims[0].clone();
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

/// A write through a node that is cut off from the majority.
fn expect_refusal(scene: &mut Scene<'_>, node: &str) -> Result<()> {
    let words =
        ["service", "create", "--detach", "--name", "drill-refused", "--replicas", "0", "rswarm/demo"];
    let began = Instant::now();
    let answer = scene.site.lab.node(node).call(&words, Duration::from_secs(10));
    let refused = !answer.is_ok_and(|ran| ran.code == 0);
    scene.expect(refused, format!("{node} acknowledged a write without a majority"));
    scene.measure_time("minority_refuses_after", began.elapsed(), 6_000.0, 11_000.0);
    Ok(())
}

fn partition_minority(scene: &mut Scene<'_>) -> Result<()> {
    let victims = scene.victims.clone();
    let since = scene.harm(&format!("{} are cut off", victims.join(" and ")));
    scene.site.lab.partition(&[victims.clone()])?;
    scene.writable(since, 1_000.0, 10_000.0)?;
    expect_refusal(scene, &victims[0])?;
    scene.replaced(&victims, since, 8_000.0, 40_000.0)?;
    scene.failures(since, 0.1, 15.0);
    scene.restarts(&victims)
}

fn partition_one_way(scene: &mut Scene<'_>) -> Result<()> {
    let leader = scene.victims[0].clone();
    let since = scene.harm(&format!("{leader}, the leader, hears nobody and is heard"));
    for node in scene.site.nodes()?.iter().filter(|node| **node != leader) {
        scene.site.lab.cut(node, &leader)?;
    }
    scene.writable(since, 2_000.0, 15_000.0)?;
    let now = scene.leader()?;
    scene.expect(now != leader, format!("{leader} still leads"));
    scene.restarts(&[leader])
}

fn partition_leader(scene: &mut Scene<'_>) -> Result<()> {
    let leader = scene.victims[0].clone();
    let since = scene.harm(&format!("{leader}, the leader, is cut off"));
    scene.site.lab.partition(&[vec![leader.clone()]])?;
    scene.writable(since, 1_000.0, 10_000.0)?;
    expect_refusal(scene, &leader)?;
    let now = scene.leader()?;
    scene.expect(now != leader, format!("{leader} still leads"));
    scene.failures(since, 0.1, 15.0);
    scene.restarts(&[leader])
}

fn whole_cluster_power_loss(scene: &mut Scene<'_>) -> Result<()> {
    let nodes = scene.site.nodes()?;
    scene.harm("all nodes lose power");
    for node in &nodes {
        scene.site.lab.kill(node)?;
    }
    for node in &nodes {
        scene.site.lab.start(node)?;
    }
    let since = scene.now();
    scene.note("all nodes have power");
    until("a write is acknowledged", Duration::from_secs(60), || {
        ensure!(scene.shots("write").iter().any(|shot| shot.ok && shot.at >= since), "none yet");
        Ok(())
    })?;
    let took = scene.now() - since;
    scene.measure_time("writable_after_start", took, 3_000.0, 60_000.0);
    Ok(())
}

fn daemon_crash(scene: &mut Scene<'_>) -> Result<()> {
    let mut slowest = Duration::ZERO;
    for node in scene.site.nodes()? {
        scene.harm(&format!("the daemon of {node} is killed"));
        scene.site.lab.daemon_kill(&node)?;
        scene.site.lab.daemon_start(&node)?;
        let began = Instant::now();
        scene.site.whole(Duration::from_secs(60))?;
        slowest = slowest.max(began.elapsed());
    }
    scene.site.runs(&scene.askable, SERVICE, REPLICAS, Duration::from_secs(30))?;
    scene.measure_time("adopted_after", slowest, 2_000.0, 60_000.0);
    scene.restarts(&[])
}

fn rolling_update(scene: &mut Scene<'_>) -> Result<()> {
    let manager = scene.manager()?;
    let since = scene.harm("an update begins");
    scene.site.act(&manager, &["service", "update", "--force", SERVICE])?;
    scene.note(&format!("updated after {:.1?}", scene.now() - since));
    scene.failures(since, 0.0, 1.0);
    Ok(())
}

fn update_with_node_loss(scene: &mut Scene<'_>) -> Result<()> {
    let (manager, worker) = (scene.manager()?, scene.victims[0].clone());
    let version = format!("DRILL_VERSION={}", scene.chance(1_000_000));
    let since = scene.harm("an update begins");
    scene.site.act(&manager, &["service", "update", "--detach", "--env-add", &version, SERVICE])?;
    thread::sleep(Duration::from_secs(1));
    scene.harm(&format!("{worker} loses power"));
    scene.site.lab.kill(&worker)?;
    let (site, askable) = (scene.site, scene.askable.clone());
    until("every task is updated and runs on another node", Duration::from_secs(90), || {
        let running: Vec<_> = site.tasks(&askable, SERVICE)?.into_iter().filter(|task| task.runs()).collect();
        let there = site.containers()?;
        let updated = running.iter().filter(|task| {
            let environment =
                there.get(&task.id).and_then(|pid| fs::read(format!("/proc/{pid}/environ")).ok());
            environment.is_some_and(|all| all.split(|byte| *byte == 0).any(|one| one == version.as_bytes()))
        });
        let updated = updated.count();
        ensure!(running.len() == REPLICAS && updated == REPLICAS, "{updated} of {} are", running.len());
        Ok(())
    })?;
    scene.note(&format!("every task is updated after {:.1?}", scene.now() - since));
    scene.failures(since, 0.1, 10.0);
    Ok(())
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

fn join_storm(scene: &mut Scene<'_>) -> Result<()> {
    let (manager, newcomers) = (scene.manager()?, scene.victims.clone());
    if newcomers.len() < 2 {
        bail!("there are {} workers; a storm needs more", newcomers.len());
    }
    scene.note(&format!("{} leave", newcomers.join(", ")));
    for node in &newcomers {
        scene.site.act(node, &["leave"])?;
    }
    let token = scene.site.ask(&manager, &["join-token", "worker", "-q"])?;
    let meeting = format!("{}:2377", scene.site.address(&manager)?);
    let since = scene.harm(&format!("{} nodes join at once", newcomers.len()));
    let (site, words) = (scene.site, ["join", "--token", token.trim(), &meeting]);
    thread::scope(|scope| {
        let joining: Vec<_> =
            newcomers.iter().map(|node| scope.spawn(move || site.act(node, &words))).collect();
        joining.into_iter().try_for_each(|one| match one.join() {
            Ok(joined) => joined.map(drop),
            Err(_) => bail!("a join panicked"),
        })
    })?;
    scene.site.whole(Duration::from_secs(60))?;
    let took = scene.now() - since;
    scene.measure_time("all_ready_after", took, 5_000.0, 60_000.0);
    let gap = load::gap(&scene.shots("write"), since);
    scene.measure_time("write_gap", gap, 1_000.0, 10_000.0);
    Ok(())
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
