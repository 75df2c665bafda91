//! A cluster of real daemons that says why, what has happened, and what would: and does what it planned.
//!
//! Needs root; skipped without it.

#[path = "machines/cluster.rs"]
#[allow(dead_code, reason = "shared with other stories, which use other parts of it")]
mod cluster;

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use cluster::{Cluster, eventually, story};
use serde_json::Value;

fn explained(cluster: &Cluster, node: &str, words: &[&str]) -> Result<Value> {
    let printed = cluster.ok(node, &[&["why", "--format", "json"], words].concat())?;
    serde_json::from_str(&printed).with_context(|| printed.clone())
}

fn has(text: &str, parts: &[&str]) -> Result<()> {
    for part in parts {
        ensure!(text.contains(part), "`{part}` is not in: {text}");
    }
    Ok(())
}

#[test]
fn a_cluster_says_why_and_what_happened_and_does_what_it_planned() {
    story("insight", 3, 2, |cluster| {
        cluster.create("n1", "web", &["--replicas", "2", "--detach"])?;
        cluster.runs("n1", "web", 2, 20)?;

        // Why a task is where it is, asked of a manager that may not lead; and what it went through.
        let told = explained(cluster, "n2", &["web.1"])?;
        has(told["Summary"].as_str().unwrap_or_default(), &["runs on n"])?;
        ensure!(told["Placement"]["Rank"] == 1 && told["Placement"]["Of"] == 3, "{told}");
        let history = told["History"].as_array().context("a history")?;
        let whats: Vec<&str> = history.iter().filter_map(|past| past["What"].as_str()).collect();
        ensure!(whats.first() == Some(&"created") && whats.last() == Some(&"running"), "{whats:?}");
        ensure!(history.iter().all(|past| past["Index"].as_u64() > Some(0)), "{told}");
        let text = cluster.ok("n1", &["why", "web.1"])?;
        has(
            &text,
            &["Task web.1 runs on n", "Placement, were it chosen now", "History", "for revision 1 by "],
        )?;

        // Why one waits: every filter that refused, and the nearest miss.
        let big = ["--detach", "--reserve-memory", "1000g", "--constraint", "node.hostname!=n3"];
        cluster.create("n1", "big", &big)?;
        eventually("the task says why it waits", 10, || {
            let text = cluster.ok("n1", &["why", "big.1"])?;
            let refused =
                ["waits for a suitable node", "does not hold on 1 node", "insufficient memory on 2 nodes"];
            has(&text, &refused)?;
            has(&text, &["nearest: n", "lacks "])?;
            Ok(true)
        })?;
        cluster.ok("n1", &["service", "rm", "big"])?;
        let nobody = cluster.refused("n1", &["why", "wbe"])?;
        has(&nobody, &["no such task, service or node: wbe", "did you mean `web`?"])?;

        // What has happened is the same on every manager, in Docker's form; a worker says where to ask.
        let events =
            ["events", "--filter", "type=container", "--filter", "service=web", "--format", "{{json .}}"];
        let (one, other) = (cluster.ok("n1", &events)?, cluster.ok("n2", &events)?);
        ensure!(one == other && one.lines().count() >= 4, "n1: {one}\nn2: {other}");
        let first: Value = serde_json::from_str(one.lines().next().context("an event")?)?;
        ensure!(first["Type"] == "container" && first["Action"] == "create", "{first}");
        ensure!(first["Actor"]["Attributes"]["com.docker.swarm.service.name"] == "web", "{first}");
        has(
            &cluster.ok("n1", &["events", "--filter", "type=service"])?,
            &["service create", "name=big", "service remove"],
        )?;
        has(&cluster.refused("n3", &["events"])?, &["is a worker", "ask on a manager"])?;

        // What a change would come to, and nothing of it done.
        let told = cluster.ok("n1", &["service", "scale", "--dry-run", "web=3"])?;
        has(
            &told,
            &["mode.replicas 2 → 3", "web.3", "starts", "2 tasks stay as they are", "Nothing was changed"],
        )?;
        ensure!(cluster.runs("n1", "web", 2, 5)?.len() == 2);

        // A plan is done exactly.
        let file = cluster.lab.directory().join("plan.json");
        let path = file.to_str().context("a path in text")?;
        cluster.ok("n2", &["service", "scale", "--plan-out", path, "web=5"])?;
        let plan: Value = serde_json::from_str(&std::fs::read_to_string(&file)?)?;
        cluster.ok("n1", &["service", "apply-plan", "--detach", path])?;
        let done: BTreeMap<String, String> =
            cluster.runs("n1", "web", 5, 20)?.into_iter().map(|task| (task.name, task.node)).collect();
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let tasks = plan["tasks"].as_array().context("tasks")?;
        let planned: BTreeMap<String, String> =
            tasks.iter().map(|task| (text(&task["name"]), text(&task["then"]))).collect();
        ensure!(done == planned, "planned {planned:?}, done {done:?}");

        // And not at all when the cluster has moved in what matters.
        cluster.ok("n1", &["node", "update", "--plan-out", path, "--availability", "drain", "n3"])?;
        cluster.ok("n1", &["service", "scale", "--detach", "web=4"])?;
        let refused = cluster.refused("n1", &["service", "apply-plan", path])?;
        has(&refused, &["the plan no longer holds: ", "--dry-run"])?;
        ensure!(cluster.of_node("n1", "n3", "Availability")? == "Active");
        Ok(())
    });
}
