//! Clusters of real daemons whose managers are lost, damaged and brought back.
//!
//! Needs root; skipped without it.

#[path = "machines/cluster.rs"]
#[allow(dead_code, reason = "shared with other stories, which use other parts of it")]
mod cluster;

use std::{fs, path::Path};

use anyhow::{Context, Result, ensure};
use cluster::{Cluster, container, eventually, story};

/// Whether the managers that a node's status counts are all there.
fn whole(cluster: &Cluster, node: &str, managers: usize) -> Result<bool> {
    let status = cluster.ok(node, &["status"])?;
    ensure!(status.contains(&format!("{managers} of {managers} managers")), "{status}");
    Ok(true)
}

#[test]
fn a_survivor_goes_on_alone_and_the_old_managers_rejoin_it() {
    story("forced", 4, 3, |cluster| {
        cluster.ok("n1", &["node", "update", "--availability", "drain", "n4"])?;
        cluster.create("n1", "web", &["--replicas", "3"])?;
        let before = cluster.runs("n1", "web", 3, 20)?;
        let own = before.iter().find(|task| task.node == "n1").context("one runs on n1")?;
        let process = container(&own.id)?;
        let refused = cluster.refused("n1", &["init", "--force-new-cluster"])?;
        ensure!(refused.contains("has a leader"), "nothing needs to be forced: {refused}");

        for node in ["n2", "n3"] {
            cluster.lab.kill(node)?;
        }
        eventually("the last one says who is missing and what to type", 20, || {
            let status = cluster.ok("n1", &["status"])?;
            for words in ["LOST", "1 of 3 managers", "manager n2 (", "manager n3 (", "--force-new-cluster"] {
                ensure!(status.contains(words), "{words} is not in: {status}");
            }
            Ok(true)
        })?;
        eventually("so does a worker", 20, || {
            let status = cluster.ok("n4", &["status"])?;
            let missing = ["n2", "n3"].map(|node| cluster.address(node));
            for address in missing {
                let words = format!("manager {}:2377 has not answered", address?);
                ensure!(status.contains(&words), "{words} is not in: {status}");
            }
            ensure!(status.contains("LOST") && status.contains("--force-new-cluster"), "{status}");
            Ok(true)
        })?;
        let said = cluster.ok("n1", &["init", "--force-new-cluster"])?;
        ensure!(said.contains("incarnation 2") && said.contains("rswarm rejoin"), "{said}");
        cluster.write("n1", "after")?;
        ensure!(container(&own.id)? == process, "what ran on the survivor runs on");
        eventually("the tasks of the lost nodes run on the survivor", 30, || {
            let now = cluster.runs("n1", "web", 3, 1)?;
            ensure!(now.iter().all(|task| task.node == "n1"), "{}", cluster::told(&now));
            Ok(now.iter().any(|task| task.id == own.id))
        })?;

        // Together the two old managers are a majority of what they remember.
        for node in ["n2", "n3"] {
            cluster.lab.start(node)?;
        }
        for node in ["n2", "n3"] {
            eventually(&format!("{node} says that it is outdated"), 20, || {
                let status = cluster.ok(node, &["status"])?;
                ensure!(status.contains("incarnation 2") && status.contains("rswarm rejoin"), "{status}");
                Ok(true)
            })?;
            let refused = cluster.refused(node, &["service", "create", "--detach", "rswarm/demo"])?;
            ensure!(refused.contains("rswarm rejoin"), "it says what to do: {refused}");
        }
        // Also after a restart, without the survivor's word.
        cluster.lab.daemon_kill("n2")?;
        cluster.lab.daemon_start("n2")?;
        eventually("n2 remembers that it is outdated", 20, || {
            Ok(cluster.ok("n2", &["status"])?.contains("rswarm rejoin"))
        })?;
        let refused = cluster.refused("n2", &["init", "--force-new-cluster"])?;
        ensure!(refused.contains("rswarm rejoin"), "there is one cluster: {refused}");
        ensure!(cluster.services("n1")? == ["after", "web"], "they changed nothing");

        for (node, managers) in [("n2", 2), ("n3", 3)] {
            let said = cluster.ok(node, &["rejoin"])?;
            ensure!(said.contains("as a manager"), "{said}");
            eventually(&format!("{managers} managers vote"), 20, || whole(cluster, "n1", managers))?;
        }
        let refused = cluster.refused("n3", &["rejoin"])?;
        ensure!(refused.contains("already"), "{refused}");

        // They are worth as much as any.
        cluster.lab.kill("n1")?;
        eventually("the two that rejoined take a write", 20, || {
            cluster.write("n2", "without-n1").map(|()| true)
        })?;
        ensure!(cluster.services("n3")? == ["after", "web", "without-n1"], "nothing was lost");
        cluster.runs("n2", "web", 3, 30)?;
        Ok(())
    });
}

#[test]
fn a_worker_leaves_a_leader_that_has_lost_the_other_managers() {
    story("forsaken", 4, 3, |cluster| {
        cluster.create("n1", "web", &["--replicas", "1", "--constraint", "node.hostname==n4"])?;
        let before = cluster.runs("n1", "web", 1, 20)?;
        let process = container(&before[0].id)?;
        let leader = cluster.leader("n1")?;
        let others = ["n1", "n2", "n3"].into_iter().filter(|node| *node != leader).collect::<Vec<_>>();
        let leads = |node: &str| cluster.ok(node, &["status", "--format", "{{.LeaderID}}"]);
        let former = leads("n4")?;
        for other in &others {
            cluster.lab.cut(&leader, other)?;
            cluster.lab.cut(other, &leader)?;
        }
        eventually("another leads, and the worker is with it", 20, || {
            let next = leads(others[0])?;
            ensure!(
                !next.is_empty() && next != former && next == leads(others[1])?,
                "there is no next leader yet"
            );
            ensure!(leads("n4")? == next, "the worker is not with it");
            Ok(true)
        })?;
        cluster.write(others[0], "meanwhile")?;
        let now = cluster.runs(others[0], "web", 1, 1)?;
        ensure!(now[0].id == before[0].id && container(&now[0].id)? == process, "{}", cluster::told(&now));
        cluster.lab.heal()?;
        eventually("all three vote together", 20, || whole(cluster, &leader, 3))?;
        Ok(())
    });
}

/// In the first record of the oldest segment.
fn flip_a_bit(raft: &Path) -> Result<()> {
    let segments = fs::read_dir(raft)?.flatten().map(|file| file.path());
    let oldest = segments.filter(|path| path.extension().is_some_and(|suffix| suffix == "wal")).min();
    let oldest = oldest.context("there is a segment")?;
    let mut bytes = fs::read(&oldest)?;
    bytes[200] ^= 1;
    Ok(fs::write(&oldest, bytes)?)
}

#[test]
fn a_manager_with_a_damaged_or_wiped_log_is_made_whole_by_the_others() {
    story("damaged", 3, 3, |cluster| {
        cluster.create("n1", "web", &["--replicas", "3"])?;
        let before = cluster.runs("n1", "web", 3, 20)?;
        let leader = cluster.leader("n1")?;
        let victim = ["n1", "n2", "n3"].into_iter().find(|node| *node != leader).context("a follower")?;
        let own = before.iter().find(|task| task.node == victim).context("one runs there")?;
        let process = container(&own.id)?;
        let raft = cluster.state(victim).join("raft");

        for (how, service) in [("is damaged", "damaged"), ("is gone", "gone")] {
            let seat = fs::read_to_string(cluster.state(victim).join("raft.seat"))?;
            cluster.lab.daemon_kill(victim)?;
            match service {
                "damaged" => flip_a_bit(&raft)?,
                _ => fs::remove_dir_all(&raft)?,
            }
            cluster.lab.daemon_start(victim)?;
            eventually(&format!("{victim} has another seat and its vote"), 40, || {
                let now = fs::read_to_string(cluster.state(victim).join("raft.seat"))?;
                ensure!(now != seat, "it still has the seat {seat}");
                Ok(whole(cluster, victim, 3)? && whole(cluster, &leader, 3)?)
            })?;
            let log = fs::read_to_string(cluster.lab.node(victim).log())?;
            ensure!(log.contains(how), "its log says what happened: {how}");
            cluster.write(victim, service)?;
            ensure!(container(&own.id)? == process, "its container was let alone");
        }
        Ok(())
    });
}
