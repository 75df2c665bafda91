//! Who may connect to whom, and what a name means, on a cluster of real daemons: changed while tasks run.
//!
//! Needs root; skipped without it.

#[path = "machines/cluster.rs"]
#[allow(dead_code, reason = "shared with other stories, which use other parts of it")]
mod cluster;

use anyhow::{Result, ensure};
use cluster::{Cluster, container, eventually, get, inside, lookup, story};
use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

/// Whether a task is refused by the virtual address of a service, at once.
fn is_refused(pid: i32, service: &str) -> Result<bool> {
    let address = inside(pid, || lookup(service))?[0];
    let began = Instant::now();
    let answer = inside(pid, || get(address, 80, "/"));
    let words = answer.map_or_else(|error| format!("{error:#}"), |body| format!("answered: {body}"));
    Ok(words.contains("efused") && began.elapsed() < Duration::from_secs(1))
}

/// The verdict, and whether the exit code says the same.
fn can(cluster: &Cluster, words: &[&str]) -> Result<String> {
    let ran = cluster.rswarm("n1", &[&["network", "can"], words].concat())?;
    let yes = ran.stdout.starts_with("yes: ");
    ensure!(yes || ran.stdout.starts_with("no: "), "{} {}", ran.stdout, ran.stderr);
    ensure!(ran.code == i32::from(!yes), "{}: {}", ran.code, ran.stdout);
    Ok(ran.stdout.lines().next().unwrap_or_default().to_owned())
}

#[test]
fn a_policy_is_changed_while_tasks_run_and_can_says_why() {
    story("policy", 2, 1, |cluster| {
        cluster.ok("n1", &["network", "create", "--isolated", "back"])?;
        let create = |name: &str, node: &str, options: &[&str]| {
            let place = format!("node.hostname=={node}");
            let words = [&["--detach", "--network", "back", "--constraint", &place], options].concat();
            cluster.create("n1", name, &words)
        };
        create("db", "n2", &["--publish", "8080:80"])?;
        create("web", "n1", &[])?;
        create("near", "n2", &[])?;
        let started: Vec<_> = ["db", "web", "near"]
            .iter()
            .map(|name| Ok(cluster.runs("n1", name, 1, 20)?.remove(0).id))
            .collect::<Result<_>>()?;
        let pids: Vec<i32> = started.iter().map(|id| Ok(container(id)?.0)).collect::<Result<_>>()?;
        let (web, near) = (pids[1], pids[2]);
        cluster.answers(&["n1", "n2"], 8080, 10)?;

        // Nobody has allowed anything; what is published is for everybody.
        for pid in [web, near] {
            eventually("db is refused", 10, || is_refused(pid, "db"))?;
        }
        let told = can(cluster, &["web", "db:80"])?;
        ensure!(
            told == "no: network back is isolated, and db allows nobody, not web to port 80/tcp",
            "{told}"
        );

        // A rule for one caller.
        cluster.ok("n1", &["service", "update", "--detach", "--allow-from-add", "web:80", "db"])?;
        let reach = |pid: i32| {
            let address = inside(pid, || lookup("db"))?[0];
            inside(pid, || get(address, 80, "/")).map(|_| true)
        };
        eventually("web reaches db", 10, || reach(web))?;
        ensure!(is_refused(near, "db")? && is_refused(web, "near")?, "and nobody else does");
        let told = can(cluster, &["web", "db:80"])?;
        ensure!(told == "yes: on network back, db allows web:80/tcp", "{told}");

        // The network is opened: the list of db still holds, and the others are free.
        cluster.ok("n1", &["network", "update", "--isolated=false", "back"])?;
        eventually("web reaches near", 10, || {
            let address = inside(web, || lookup("near"))?[0];
            inside(web, || get(address, 80, "/")).map(|_| true)
        })?;
        ensure!(is_refused(near, "db")? && reach(web)?, "db has a list");
        cluster.ok("n1", &["service", "update", "--detach", "--allow-from-rm", "web:80", "db"])?;
        eventually("near reaches db", 10, || reach(near))?;

        // Without a virtual address the name means the tasks.
        cluster.ok(
            "n1",
            &["service", "update", "--detach", "--publish-rm", "80", "--endpoint-mode", "dnsrr", "db"],
        )?;
        let task = |pid: i32, name: &str| -> Result<BTreeSet<Ipv4Addr>> {
            Ok(inside(pid, || lookup(name))?.into_iter().collect())
        };
        eventually("db is its task", 10, || Ok(task(web, "db")? == task(web, "tasks.db")?))?;
        reach(web)?;

        for (name, id) in ["db", "web", "near"].iter().zip(&started) {
            ensure!(cluster.runs("n1", name, 1, 5)?[0].id == *id, "{name} was not restarted");
        }
        Ok(())
    });
}
