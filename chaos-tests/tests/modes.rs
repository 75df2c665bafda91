//! Services of other modes than replicated, and what is never run twice, on real daemons.
//!
//! Needs root; skipped without it.

#[path = "machines/cluster.rs"]
#[allow(dead_code, reason = "shared with other stories, which use other parts of it")]
mod cluster;

use std::collections::BTreeSet;

use anyhow::{Context, Result, ensure};
use cluster::{Cluster, Task, container, eventually, story, told};

/// How a service stands in `service ls`: its mode and how many run of how many.
fn listed(cluster: &Cluster, service: &str) -> Result<String> {
    let format = "{{.Name}}: {{.Mode}} {{.Replicas}}";
    let printed = cluster.ok("n1", &["service", "ls", "--format", format])?;
    let line = printed.lines().find_map(|line| line.strip_prefix(&format!("{service}: ")));
    Ok(line.with_context(|| format!("{service} is not listed: {printed}"))?.to_owned())
}

fn becomes(cluster: &Cluster, service: &str, wanted: &str, seconds: u64) -> Result<()> {
    eventually(&format!("{service} is {wanted}"), seconds, || {
        let is = listed(cluster, service)?;
        ensure!(is == wanted, "it is {is}");
        Ok(true)
    })
    .map(drop)
}

#[test]
fn a_job_runs_to_its_end_and_a_global_service_is_everywhere() {
    story("modes", 3, 1, |cluster| {
        // One on each node; a drained node loses its own, and has one again when it is active.
        cluster.create("n1", "agent", &["--mode", "global"])?;
        let tasks = cluster.runs("n1", "agent", 3, 20)?;
        let nodes: BTreeSet<&str> = tasks.iter().map(|task| task.node.as_str()).collect();
        ensure!(nodes.len() == 3, "one on each: {}", told(&tasks));
        becomes(cluster, "agent", "global 3/3", 5)?;
        cluster.ok("n1", &["node", "update", "--availability", "drain", "n3"])?;
        becomes(cluster, "agent", "global 2/2", 10)?;
        cluster.ok("n1", &["node", "update", "--availability", "active", "n3"])?;
        becomes(cluster, "agent", "global 3/3", 10)?;
        let refused = cluster.refused("n1", &["service", "scale", "agent=5"])?;
        ensure!(refused.contains("it is global"), "{refused}");

        // The command returns when so many have come to their end; forced, they run again.
        let job = ["service", "create", "--name", "pack", "--mode", "replicated-job", "--replicas", "3"];
        let ends = ["--max-concurrent", "2", "rswarm/demo", "--fail-after", "200ms", "--exit-code", "0"];
        cluster.ok("n1", &[&job[..], &ends].concat())?;
        becomes(cluster, "pack", "replicated-job 0/0 (3/3 completed)", 1)?;
        let first = completed(cluster, "pack")?;
        ensure!(first.len() == 3, "all stay listed: {}", told(&cluster.tasks("n1", "pack")?));
        cluster.ok("n1", &["service", "update", "--force", "pack"])?;
        let second = completed(cluster, "pack")?;
        ensure!(second.len() == 3 && second.is_disjoint(&first), "another run: {second:?} after {first:?}");

        // One that never gets there says so: exit code 3, and the reason.
        let fails = ["--name", "bad", "--mode", "global-job", "--restart-condition", "none"];
        let words = [&["service", "create"][..], &fails, &["rswarm/demo", "--fail-at-start"]].concat();
        let ran = cluster.rswarm("n1", &words)?;
        ensure!(ran.code == 3 && ran.stderr.contains("does not complete"), "{}: {}", ran.code, ran.stderr);
        Ok(())
    });
}

fn completed(cluster: &Cluster, service: &str) -> Result<BTreeSet<String>> {
    let done = |task: &Task| task.current_state.starts_with("Completed");
    Ok(cluster.tasks("n1", service)?.into_iter().filter(done).map(|task| task.id).collect())
}

#[test]
fn what_is_fenced_stops_without_its_daemon_before_another_takes_its_place() {
    story("fence", 3, 1, |cluster| {
        let away = ["--constraint", "node.hostname!=n1"];
        cluster.create("n1", "db", &[&["--on-node-loss", "fence"], &away[..]].concat())?;
        cluster.create("n1", "web", &[&["--mode", "global"], &away[..]].concat())?;
        let db = cluster.runs("n1", "db", 1, 20)?.remove(0);
        let web = cluster.runs("n1", "web", 2, 20)?.into_iter().find(|task| task.node == db.node);
        let web = web.context("one runs beside it")?;
        container(&db.id)?;

        // Nobody is left there who could be told to stop it.
        cluster.lab.daemon_kill(&db.node)?;
        let mut both = None;
        let took = eventually("another runs", 25, || {
            let running = cluster.running("n1", "db")?;
            // Read after the list: what runs by now began when the first had ended.
            let first_is_gone = container(&db.id).is_err();
            let others = running.iter().filter(|task| task.id != db.id).count();
            if others > 0 && !first_is_gone {
                both = Some(told(&running));
            }
            Ok(others == 1)
        })?;
        ensure!(both.is_none(), "both ran: {both:?}");
        println!("a fenced task was replaced after {took:.1?}");
        container(&web.id).context("what is not fenced runs on")?;

        // The daemon is back: what it finds is not taken for a failure, and nothing starts again.
        cluster.lab.daemon_start(&db.node)?;
        eventually("the node is back", 20, || Ok(cluster.of_node("n1", &db.node, "Status")? == "Ready"))?;
        let now = cluster.runs("n1", "db", 1, 10)?.remove(0);
        ensure!(now.id != db.id && container(&db.id).is_err(), "{} runs", now.name);
        container(&web.id).context("what is not fenced was adopted")?;
        Ok(())
    });
}
