//! The drills: their names, their promises, and whom they harm.

use anyhow::{Context, Result};

use super::stage::Scene;
use super::{Drill, USUAL, clocks, containers, disks, joins, machines, updates};

/// Most drills want three managers and two workers, with the usual load on them.
const fn drill(
    name: &'static str,
    promise: &'static str,
    victims: fn(&mut Scene<'_>) -> Result<Vec<String>>,
    act: fn(&mut Scene<'_>) -> Result<()>,
) -> Drill {
    Drill { name, promise, nodes: 5, managers: 3, disk: None, load: USUAL, victims, act }
}

/// All there are.
pub const ALL: &[Drill] = &[
    drill(
        "leader-kill",
        "When the leader's daemon is killed, writes succeed again within a second, and no container notices.",
        the_leader,
        machines::leader_kill,
    ),
    drill(
        "leader-and-worker-power-off",
        "When the leader and a worker lose power at once, their tasks run elsewhere within four seconds.",
        the_leader_and_a_worker,
        machines::leader_and_worker_power_off,
    ),
    drill(
        "leader-pause",
        "A leader that stands still is replaced, and when it goes on it answers nothing that is no longer so.",
        the_leader,
        machines::leader_pause,
    ),
    drill(
        "partition-minority",
        "A manager cut off with a worker acknowledges no write, and the others go on.",
        a_minority,
        machines::partition_minority,
    ),
    drill(
        "partition-leader-from-majority",
        "A leader that is cut off acknowledges no write, and the others have a new one within a second.",
        the_leader,
        machines::partition_leader,
    ),
    drill(
        "partition-one-way",
        "A leader that is heard and hears nobody does not keep the cluster from another one.",
        the_leader,
        machines::partition_one_way,
    ),
    drill(
        "packet-loss",
        "Where one packet in twenty is lost, no node is given up and no task moves.",
        nobody,
        machines::packet_loss,
    ),
    drill(
        "worker-power-off",
        "When a worker loses power, its tasks run elsewhere within three seconds.",
        a_worker,
        machines::power_off,
    ),
    drill(
        "node-flap",
        "A node that is silent for less than a second, again and again, keeps its tasks.",
        a_worker,
        machines::node_flap,
    ),
    drill(
        "mass-failure-brake",
        "When most nodes fall silent at once, the cluster moves nothing, and finds all as it was.",
        most_nodes,
        machines::mass_failure,
    ),
    drill(
        "whole-cluster-power-loss",
        "When all nodes lose power, the cluster takes writes again three seconds after they are on, and has lost none.",
        nobody,
        machines::whole_power_loss,
    ),
    drill(
        "quorum-loss-and-recover",
        "Without a quorum nothing is acknowledged and containers go on; one manager more, and writes do too.",
        two_managers,
        machines::quorum_loss,
    ),
    drill(
        "daemon-crash",
        "A killed daemon finds all its containers again, and none of them notices.",
        nobody,
        machines::daemon_crash,
    ),
    drill(
        "daemon-upgrade",
        "Stopping and starting the daemons one after another, as an upgrade does, stops no container.",
        nobody,
        machines::daemon_upgrade,
    ),
    drill(
        "disk-corrupt",
        "A manager whose log was damaged does not speak for it, and the others lose nothing.",
        a_follower,
        disks::disk_corrupt,
    ),
    Drill {
        disk: Some(1 << 30),
        ..drill(
            "disk-full",
            "A leader without room on its disk says so and hands over, its containers go on, and so do writes.",
            the_leader,
            disks::disk_full,
        )
    },
    drill(
        "disk-slow",
        "A leader whose disk becomes slow hands over within three seconds, and as a follower holds nobody up.",
        the_leader,
        disks::disk_slow,
    ),
    drill(
        "clock-jump",
        "When the clocks of the leader and a worker jump by 45 minutes, nobody is given up and no task moves.",
        the_leader_and_a_worker,
        clocks::clock_jump,
    ),
    drill(
        "certificate-expiry",
        "Certificates are renewed before they end, and when the first ones have ended nobody notices.",
        nobody,
        clocks::certificate_expiry,
    ),
    drill(
        "join-storm",
        "Eight machines that join at once are ready within five seconds, and nobody else notices.",
        nobody,
        joins::join_storm,
    ),
    drill(
        "fenced-node-cut",
        "What must not run twice ends on a node that is cut off before it begins elsewhere.",
        all_workers,
        containers::fenced_node_cut,
    ),
    drill(
        "crash-loop",
        "Tasks that fail at once are started again with pauses, and their neighbours do not notice.",
        nobody,
        containers::crash_loop,
    ),
    drill(
        "container-oom",
        "A container that takes more memory than its limit is ended alone, and replaced.",
        nobody,
        containers::container_oom,
    ),
    drill(
        "fork-bomb",
        "A container that starts threads without end gets a limited number, and its neighbours do not notice.",
        nobody,
        containers::fork_bomb,
    ),
    drill(
        "log-flood",
        "A container that writes without end fills no disk, and its neighbours do not notice.",
        nobody,
        containers::log_flood,
    ),
    drill(
        "registry-down",
        "Without a registry, what runs goes on, what is there starts, and what is missing says why.",
        nobody,
        containers::registry_down,
    ),
    Drill {
        load: updates::LOAD,
        ..drill(
            "rolling-update-under-load",
            "An update of ten tasks under 500 requests a second costs none of them, whichever of old and new comes first.",
            nobody,
            updates::undisturbed,
        )
    },
    Drill {
        load: updates::LOAD,
        ..drill(
            "update-with-node-loss",
            "A node that loses power in the middle of an update costs the connections to its tasks and no others.",
            any_node,
            updates::with_a_loss,
        )
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

fn any_node(scene: &mut Scene<'_>) -> Result<Vec<String>> {
    let nodes = scene.site.nodes()?;
    let chosen = scene.chance(nodes.len());
    Ok(vec![nodes[chosen].clone()])
}

fn the_leader_and_a_worker(scene: &mut Scene<'_>) -> Result<Vec<String>> {
    Ok([the_leader(scene)?, a_worker(scene)?].concat())
}

fn followers(scene: &mut Scene<'_>) -> Result<Vec<String>> {
    let leader = scene.leader()?;
    Ok(scene.site.managers()?.into_iter().filter(|node| *node != leader).collect())
}

fn a_follower(scene: &mut Scene<'_>) -> Result<Vec<String>> {
    let followers = followers(scene)?;
    let chosen = scene.chance(followers.len());
    Ok(vec![followers.get(chosen).context("there is one manager only")?.clone()])
}

fn a_minority(scene: &mut Scene<'_>) -> Result<Vec<String>> {
    Ok([a_follower(scene)?, a_worker(scene)?].concat())
}

/// The leader and another: without them one is left.
fn two_managers(scene: &mut Scene<'_>) -> Result<Vec<String>> {
    Ok([the_leader(scene)?, a_follower(scene)?].concat())
}

/// More than the part of all nodes that may fail at once.
fn most_nodes(scene: &mut Scene<'_>) -> Result<Vec<String>> {
    Ok([a_follower(scene)?, all_workers(scene)?].concat())
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
