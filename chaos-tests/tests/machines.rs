//! Clusters of real daemons with real containers, and what they withstand.
//!
//! Needs root; skipped without it.

#[path = "machines/cluster.rs"]
mod cluster;

use std::{
    collections::BTreeSet,
    net::Ipv4Addr,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use cluster::{
    Cluster, Task, bare_machines, container, daemons, eventually, fact, get, get_within, inside, lookup,
    stop_daemon, story, told,
};

#[test]
fn a_service_answers_on_every_node_and_by_name_inside() {
    story("demo", 3, 3, |cluster| {
        cluster.create("n1", "web", &["--replicas", "3", "--publish", "8080:80"])?;
        let tasks = cluster.runs("n1", "web", 3, 20)?;
        let nodes: BTreeSet<&str> = tasks.iter().map(|task| task.node.as_str()).collect();
        ensure!(nodes.len() == 3, "three tasks belong on three nodes: {}", told(&tasks));
        cluster.answers(&["n1", "n2", "n3"], 8080, 10)?;

        // Every node leads to every task.
        for node in ["n1", "n2", "n3"] {
            let address = cluster.address(node)?;
            let mut seen = BTreeSet::new();
            eventually(&format!("all tasks answer through {node}"), 20, || {
                seen.insert(fact(&get(address, 8080, "/")?, "task")?);
                Ok(seen.len() == 3)
            })?;
        }

        // A node without a task answers as well.
        cluster.create("n1", "solo", &["--publish", "8081:80", "--constraint", "node.hostname==n3"])?;
        cluster.answers(&["n1", "n2", "n3"], 8081, 10)?;
        let solo = cluster.runs("n1", "solo", 1, 10)?.remove(0);
        ensure!(solo.node == "n3", "{}", told(&[solo]));

        // Inside a container, names lead to the virtual address and to the tasks.
        let service = cluster.inspect("n1", "service", "web")?;
        let vip = service["Endpoint"]["VirtualIPs"][0]["Addr"].as_str().context("web has a virtual IP")?;
        let vip: Ipv4Addr = vip.split('/').next().unwrap_or(vip).parse().context("an address")?;
        let (pid, _) = container(&solo.id)?;
        let mut own = BTreeSet::new();
        eventually("each task has told its address", 20, || {
            let body = get(cluster.address("n1")?, 8080, "/")?;
            own.insert(fact(&body, "address")?.parse::<Ipv4Addr>()?);
            Ok(own.len() == 3)
        })?;
        eventually("web is the virtual IP", 10, || {
            let found = inside(pid, || lookup("web"))?;
            ensure!(found == [vip], "web is {found:?}, not {vip}");
            Ok(true)
        })?;
        eventually("tasks.web is all tasks", 10, || {
            let found = inside(pid, || lookup("tasks.web"))?;
            ensure!(found.iter().copied().eq(own.iter().copied()), "tasks.web is {found:?}, not {own:?}");
            Ok(true)
        })?;
        let mut seen = BTreeSet::new();
        eventually("the virtual IP leads to all tasks", 20, || {
            seen.insert(fact(&inside(pid, || get(vip, 80, "/"))?, "task")?);
            Ok(seen.len() == 3)
        })?;
        for address in &own {
            inside(pid, || get(*address, 80, "/healthz"))?;
        }
        ensure!(inside(pid, || lookup("nobody")).is_err(), "a name nobody has is not answered");
        Ok(())
    });
}

#[test]
fn a_killed_daemon_finds_its_containers_again() {
    story("adopt", 2, 1, |cluster| {
        cluster.create("n1", "web", &["--replicas", "4", "--publish", "8080:80"])?;
        let before = cluster.runs("n1", "web", 4, 20)?;
        let processes = processes_of(&before)?;
        cluster.answers(&["n1", "n2"], 8080, 10)?;
        let addresses = told_addresses(cluster, 4)?;
        let huge = |pid: i32| {
            anyhow::Ok(std::fs::read_to_string(format!("/proc/{pid}/status"))?.contains("THP_enabled:\t1"))
        };
        let frugal = |pid: i32| huge(pid).is_ok_and(|huge| !huge);
        ensure!(daemons(cluster, "n2")?.into_iter().any(frugal), "a daemon holds no more than it uses");
        ensure!(huge(container(&before[0].id)?.0)?, "and a container may do as it likes");

        // A worker's, a manager's, and both.
        for nodes in [&["n2"][..], &["n1"], &["n1", "n2"]] {
            for node in nodes {
                cluster.lab.daemon_kill(node)?;
            }
            for task in &before {
                ensure!(
                    processes.contains(&container(&task.id)?),
                    "{} lives on without its daemon",
                    task.name
                );
            }
            for node in nodes {
                cluster.lab.daemon_start(node)?;
            }
            let took = eventually(&format!("the daemons of {nodes:?} have all back"), 20, || {
                let ready = |node: &str| anyhow::Ok(cluster.of_node("n1", node, "Status")? == "Ready");
                Ok(ready("n1")? && ready("n2")? && cluster.running("n1", "web")?.len() == 4)
            })?;
            println!("daemon of {nodes:?} killed: all known again {took:.1?} after its start");
            cluster.answers(&["n1", "n2"], 8080, 10)?;
            let after = cluster.runs("n1", "web", 4, 10)?;
            ensure!(ids(&after) == ids(&before), "tasks are the same: {}", told(&after));
            ensure!(cluster.tasks("n1", "web")?.len() == 4, "none was replaced");
            ensure!(processes_of(&after)? == processes, "processes are the same");
            ensure!(told_addresses(cluster, 4)? == addresses, "addresses are the same");
        }

        // What was adopted is looked after: it can be stopped, and its end is noticed.
        let victim = &before[0];
        let (pid, _) = container(&victim.id)?;
        kill(pid)?;
        eventually("a container that ended is replaced", 20, || {
            let now = cluster.running("n1", "web")?;
            ensure!(now.len() == 4 && now.iter().all(|task| task.id != victim.id), "{}", told(&now));
            Ok(true)
        })?;
        cluster.ok("n1", &["service", "rm", "web"])?;
        for task in &before {
            ensure!(container(&task.id).is_err(), "{} has ended with its service", task.name);
        }
        Ok(())
    });
}

#[test]
fn a_leader_dies_and_writes_go_on() {
    story("leader", 3, 3, |cluster| {
        let (mut acknowledged, mut attempts) = (Vec::new(), 0);
        let mut write = |on: &str| -> Result<bool> {
            attempts += 1;
            let name = format!("kept-{attempts}");
            cluster.write(on, &name)?;
            acknowledged.push(name);
            Ok(true)
        };
        for node in ["n1", "n2", "n3"] {
            write(node).context("any manager takes a write")?;
        }
        // D23: a refusal is the same, whether the manager that was asked leads or not.
        let again = ["service", "create", "--detach", "--name", "kept-1", "--replicas", "0", "rswarm/demo"];
        for words in [&again[..], &["service", "inspect", "nothing"], &["service", "scale", "kept-1=-1"]] {
            let said = ["n1", "n2", "n3"].map(|node| cluster.rswarm(node, words));
            let [first, second, third] = said.map(|ran| ran.map(|ran| (ran.code, ran.stderr)));
            let (first, second, third) = (first?, second?, third?);
            ensure!(first.0 != 0 && !first.1.is_empty(), "{words:?} is refused: {first:?}");
            ensure!(first == second && second == third, "one refusal: {first:?}, {second:?}, {third:?}");
        }
        for round in 0..4 {
            let leader = cluster.leader("n1")?;
            let other = ["n1", "n2", "n3"].into_iter().find(|node| *node != leader).context("another")?;
            let power_off = round % 2 == 1;
            let began = Instant::now();
            if power_off {
                cluster.lab.kill(&leader)?
            } else {
                cluster.lab.daemon_kill(&leader)?
            }
            eventually("a write succeeds", 5, || write(other))?;
            let what = if power_off { "powered off" } else { "killed" };
            println!("leader {leader} {what}: a write succeeded after {:.2?}", began.elapsed());
            ensure!(cluster.leader(other)? != leader, "another leads");

            if power_off {
                cluster.lab.start(&leader)?
            } else {
                cluster.lab.daemon_start(&leader)?
            }
            eventually(&format!("{leader} follows"), 20, || {
                Ok(cluster.of_node(other, &leader, "ManagerStatus")? == "Reachable"
                    && cluster.of_node(other, &leader, "Status")? == "Ready"
                    && cluster.of_node(&leader, &leader, "ManagerStatus")? == "Reachable")
            })?;
        }
        for node in ["n1", "n2", "n3"] {
            let listed = cluster.services(node)?;
            let lost: Vec<_> = acknowledged.iter().filter(|name| !listed.contains(name)).collect();
            ensure!(lost.is_empty(), "{node} has lost {lost:?}");
        }
        Ok(())
    });
}

#[test]
fn a_worker_loses_power_and_its_tasks_run_elsewhere() {
    story("worker", 4, 3, |cluster| {
        cluster.create("n1", "web", &["--replicas", "8", "--publish", "8080:80"])?;
        let before = cluster.runs("n1", "web", 8, 20)?;
        let lost: Vec<_> = before.iter().filter(|task| task.node == "n4").collect();
        ensure!(lost.len() == 2, "eight tasks on four nodes: {}", told(&before));
        cluster.answers(&["n1", "n2", "n3", "n4"], 8080, 10)?;

        let (stop, addresses) = (&AtomicBool::new(false), [cluster.address("n1")?, cluster.address("n2")?]);
        let (took, requests) = thread::scope(|scope| -> Result<_> {
            let clients: Vec<_> =
                addresses.map(|to| scope.spawn(move || ask_on(to, stop))).into_iter().collect();
            let began = Instant::now();
            let replaced = cluster.lab.kill("n4").and_then(|()| {
                eventually("all eight run on the other nodes", 8, || {
                    let now = cluster.running("n1", "web")?;
                    ensure!(now.len() == 8 && now.iter().all(|task| task.node != "n4"), "{}", told(&now));
                    Ok(true)
                })
            });
            let took = began.elapsed();
            stop.store(true, Ordering::Relaxed);
            let requests: Vec<Requests> =
                clients.into_iter().map(|client| client.join().expect("a client does not panic")).collect();
            replaced?;
            Ok((took, requests))
        })?;
        println!("worker powered off: its tasks ran elsewhere after {took:.2?}; meanwhile {requests:?}");
        for client in &requests {
            ensure!(client.answered > 20, "clients are served meanwhile: {requests:?}");
            ensure!(client.gap < Duration::from_secs(3), "never cut off for long: {requests:?}");
        }
        // Whoever asks now meets the living only.
        for _ in 0..50 {
            get(addresses[0], 8080, "/")?;
        }
        eventually("n4 is called down", 10, || Ok(cluster.of_node("n1", "n4", "Status")? == "Down"))?;
        // Those that lived on were let alone.
        let after = cluster.runs("n1", "web", 8, 10)?;
        for task in before.iter().filter(|task| task.node != "n4") {
            ensure!(after.iter().any(|now| now.id == task.id), "{} was let alone", task.name);
        }

        cluster.lab.start("n4")?;
        eventually("n4 is back", 20, || Ok(cluster.of_node("n1", "n4", "Status")? == "Ready"))?;
        cluster.answers(&["n4"], 8080, 20)?;
        cluster.runs("n1", "web", 8, 10).map(drop)
    });
}

#[test]
fn all_machines_lose_power_and_the_cluster_comes_back() {
    story("blackout", 3, 3, |cluster| {
        cluster.create("n1", "web", &["--replicas", "3", "--publish", "8080:80", "--label", "tier=front"])?;
        cluster.create("n1", "idle", &["--replicas", "0"])?;
        let before = cluster.inspect("n1", "service", "web")?;
        for node in ["n1", "n2", "n3"] {
            cluster.lab.kill(node)?;
        }
        let began = Instant::now();
        for node in ["n1", "n2", "n3"] {
            cluster.lab.start(node)?;
        }
        cluster.runs("n2", "web", 3, 30)?;
        cluster.answers(&["n1", "n2", "n3"], 8080, 20)?;
        println!("all machines powered off: the service answers {:.1?} after their start", began.elapsed());
        for node in ["n1", "n2", "n3"] {
            ensure!(cluster.services(node)? == ["idle", "web"], "{node} knows both services");
            ensure!(cluster.of_node("n1", node, "Status")? == "Ready", "{node} is ready");
        }
        let after = cluster.inspect("n3", "service", "web")?;
        for part in ["ID", "Spec", "Endpoint"] {
            ensure!(before[part] == after[part], "{part} is kept: {} and {}", before[part], after[part]);
        }
        cluster.create("n3", "fresh", &[])
    });
}

#[test]
fn a_minority_refuses_writes_and_heals() {
    story("minority", 3, 3, |cluster| {
        cluster.create("n1", "web", &["--replicas", "3", "--publish", "8080:80"])?;
        let before = cluster.runs("n1", "web", 3, 20)?;
        let processes = processes_of(&before)?;
        let leader = cluster.leader("n1")?;
        let others: Vec<&str> = ["n1", "n2", "n3"].into_iter().filter(|node| *node != leader).collect();

        // The one that led is alone.
        cluster.lab.partition(&[vec![leader.clone()]])?;
        let write = |on: &str, name: &str| {
            let words = ["service", "create", "--detach", "--name", name, "--replicas", "0", "rswarm/demo"];
            cluster.rswarm(on, &words)
        };
        let began = Instant::now();
        let refused = write(&leader, "lost")?;
        println!("a leader cut off: refused after {:.2?}: {}", began.elapsed(), refused.stderr.trim());
        ensure!(refused.code != 0, "a minority takes no write: {}", refused.stdout);
        ensure!(refused.stderr.contains("manager"), "it says what is missing: {}", refused.stderr);
        ensure!(began.elapsed() < Duration::from_secs(20), "it says so in time");
        eventually("the majority takes a write", 10, || Ok(write(others[0], "kept")?.code == 0))?;
        eventually("the minority's status says what is lost", 10, || {
            Ok(cluster.ok(&leader, &["status"])?.contains("LOST"))
        })?;

        cluster.lab.heal()?;
        let took = eventually("all three know the same again", 20, || {
            for node in ["n1", "n2", "n3"] {
                let known = cluster.services(node)?;
                ensure!(known == ["kept", "web"], "{node} knows {known:?}");
                ensure!(cluster.of_node(others[0], node, "Status")? == "Ready", "{node} is ready");
            }
            Ok(true)
        })?;
        println!("healed: one cluster again after {took:.2?}");
        ensure!(write(&leader, "again")?.code == 0, "who was cut off takes writes again");
        cluster.runs("n1", "web", 3, 20)?;
        cluster.answers(&others, 8080, 10)?;

        // Two of three managers are dead: the last one refuses and says what to do, until they are back.
        for node in &others {
            cluster.lab.kill(node)?;
        }
        eventually("the last manager refuses", 20, || {
            let refused = write(&leader, "never")?;
            ensure!(refused.code != 0, "one of three takes no write");
            println!("one of three managers: refused: {}", refused.stderr.trim());
            ensure!(refused.stderr.contains("more than half of"), "{}", refused.stderr);
            Ok(true)
        })?;
        let own = before.iter().position(|task| task.node == leader).context("one runs there")?;
        if let Ok(found) = container(&before[own].id) {
            ensure!(processes.contains(&found), "containers are let alone meanwhile");
        }
        for node in &others {
            cluster.lab.start(node)?;
        }
        eventually("writes succeed again", 20, || Ok(write(&leader, "back")?.code == 0))?;
        let mut known = Vec::new();
        eventually("reads succeed again", 10, || {
            known = cluster.services(&leader)?;
            Ok(true)
        })?;
        ensure!(!known.contains(&"lost".to_string()), "what was refused did not happen");
        Ok(())
    });
}

#[test]
fn nodes_change_their_part() {
    story("nodes", 4, 1, |cluster| {
        // C01: any manager lists all; filters choose.
        let list =
            |filter: &str| cluster.ok("n1", &["node", "ls", "--filter", filter, "--format", "{{.Hostname}}"]);
        ensure!(cluster.ok("n1", &["node", "ls", "-q"])?.lines().count() == 4);
        ensure!(list("role=manager")? == "n1\n" && list("name=n3")? == "n3\n");
        let unknown = cluster.refused("n1", &["node", "ls", "--filter", "colour=red"])?;
        ensure!(unknown.contains("colour"), "{unknown}");
        let refused = cluster.refused("n2", &["node", "ls"])?;
        ensure!(refused.contains("worker") && refused.contains("manager"), "{refused}");

        // C04: labels steer tasks.
        cluster.ok("n1", &["node", "update", "--label-add", "disk=ssd", "n2"])?;
        ensure!(list("node.label=disk=ssd")? == "n2\n");
        cluster.create("n1", "fast", &["--replicas", "2", "--constraint", "node.labels.disk==ssd"])?;
        let fast = cluster.runs("n1", "fast", 2, 10)?;
        ensure!(fast.iter().all(|task| task.node == "n2"), "{}", told(&fast));
        cluster.ok("n1", &["service", "rm", "fast"])?;
        cluster.ok("n1", &["node", "update", "--label-rm", "disk", "n2"])?;
        ensure!(list("node.label=disk=ssd")?.is_empty());

        // C02: a pause takes nothing new, a drain empties, active moves nothing back.
        cluster.create("n1", "web", &["--replicas", "4"])?;
        let before = cluster.runs("n1", "web", 4, 10)?;
        ensure!(before.iter().any(|task| task.node == "n3"), "{}", told(&before));
        cluster.ok("n1", &["node", "update", "--availability", "pause", "n3"])?;
        cluster.ok("n1", &["service", "scale", "web=8"])?;
        let paused = cluster.runs("n1", "web", 8, 10)?;
        let kept: Vec<_> = paused.iter().filter(|task| task.node == "n3").collect();
        ensure!(
            kept.iter().all(|task| before.contains_id(&task.id)) && !kept.is_empty(),
            "{}",
            told(&paused)
        );
        cluster.ok("n1", &["node", "update", "--availability", "drain", "n3"])?;
        eventually("n3 is empty", 20, || {
            let now = cluster.running("n1", "web")?;
            ensure!(now.len() == 8 && now.iter().all(|task| task.node != "n3"), "{}", told(&now));
            Ok(true)
        })?;
        let drained = cluster.runs("n1", "web", 8, 10)?;
        cluster.ok("n1", &["node", "update", "--availability", "active", "n3"])?;
        cluster.ok("n1", &["service", "scale", "web=10"])?;
        let active = cluster.runs("n1", "web", 10, 10)?;
        ensure!(drained.iter().all(|task| active.contains_id(&task.id)), "nothing moved: {}", told(&active));
        ensure!(active.iter().any(|task| task.node == "n3"), "n3 is used again: {}", told(&active));

        // C05: the tasks of a node.
        let of_node = cluster.ok("n1", &["node", "ps", "n3", "--format", "{{.Name}} {{.Node}}"])?;
        ensure!(of_node.lines().all(|line| line.starts_with("web.") && line.ends_with(" n3")), "{of_node}");
        ensure!(!cluster.ok("n1", &["node", "ps", "-q"])?.is_empty(), "without a name, its own");

        // C03, C07, A17: a live node is not removed; one that is down is, and may not come back.
        let refused = cluster.refused("n1", &["node", "rm", "n4"])?;
        ensure!(refused.contains("n4"), "{refused}");
        let refused = cluster.refused("n1", &["node", "rm", "--force", "n1"])?;
        ensure!(refused.contains("manager"), "{refused}");
        cluster.lab.kill("n4")?;
        let took = eventually("n4 is down", 10, || Ok(cluster.of_node("n1", "n4", "Status")? == "Down"))?;
        println!("a powered-off node is called down after {took:.2?}");
        cluster.ok("n1", &["node", "rm", "n4"])?;
        ensure!(cluster.of_node("n1", "n4", "Status").is_err(), "n4 is forgotten");
        cluster.lab.start("n4")?;
        eventually("n4 says that it was removed", 20, || {
            let status = cluster.rswarm("n4", &["status"])?;
            Ok((status.stdout + &status.stderr).contains("removed"))
        })?;
        ensure!(cluster.of_node("n1", "n4", "Status").is_err(), "n4 does not come back");
        cluster.runs("n1", "web", 10, 20)?;

        // A05: a worker leaves, and its containers end; a manager does not leave without force.
        let gone = cluster.running("n1", "web")?.into_iter().find(|task| task.node == "n2");
        let gone = gone.context("something runs on n2")?;
        cluster.ok("n2", &["leave"])?;
        ensure!(cluster.ok("n2", &["status"])?.contains("not part of a cluster"));
        eventually("its containers end", 15, || Ok(container(&gone.id).is_err()))?;
        let refused = cluster.refused("n1", &["leave"])?;
        ensure!(refused.contains("--force"), "{refused}");
        cluster.runs("n1", "web", 10, 20).map(drop)
    });
}

#[test]
fn managers_come_and_go() {
    story("roles", 3, 1, |cluster| {
        // A10: promote, let each write, demote.
        let refused = cluster.refused("n1", &["node", "demote", "n1"])?;
        ensure!(refused.contains("last") || refused.contains("only"), "the last manager stays: {refused}");
        for (node, managers) in [("n2", 2), ("n3", 3)] {
            let said = cluster.rswarm("n1", &["node", "promote", node])?;
            ensure!(said.code == 0 && said.stderr.is_empty(), "{}", said.stderr);
            let status = cluster.ok("n1", &["status"])?;
            ensure!(status.contains(&format!("{managers} of {managers} managers")), "it votes: {status}");
            let took = eventually(&format!("{node} is a manager"), 20, || {
                Ok(cluster.of_node(node, node, "ManagerStatus")? == "Reachable")
            })?;
            println!("{node} promoted: a manager after {took:.2?}");
        }
        // A12: any manager takes a write.
        for node in ["n1", "n2", "n3"] {
            eventually("any manager takes a write", 10, || {
                cluster.write(node, &format!("by-{node}")).map(|()| true)
            })?;
        }
        ensure!(cluster.services("n2")? == ["by-n1", "by-n2", "by-n3"]);

        // A10: the leader can be demoted; another leads.
        let leader = cluster.leader("n1")?;
        let other = if leader == "n1" { "n2" } else { "n1" };
        cluster.ok(other, &["node", "demote", &leader])?;
        eventually("another leads, and the old leader is a worker", 20, || {
            Ok(cluster.leader(other)? != leader
                && cluster.of_node(other, &leader, "ManagerStatus")?.is_empty())
        })?;
        eventually("it answers as a worker", 20, || {
            let refused = cluster.rswarm(&leader, &["service", "ls"])?;
            Ok(refused.code != 0 && refused.stderr.contains("worker"))
        })?;
        eventually("writes go on", 10, || cluster.write(other, "after").map(|()| true))?;
        ensure!(cluster.services(other)?.len() == 4, "nothing is lost");
        eventually("it is a ready worker", 20, || Ok(cluster.of_node(other, &leader, "Status")? == "Ready"))?;

        // Of the two that are left, the one that leads is demoted, and promoted again; twice.
        let left: Vec<&str> = ["n1", "n2", "n3"].into_iter().filter(|node| *node != leader).collect();
        for round in 0..2 {
            let leader = cluster.leader(left[0])?;
            let rest = if leader == left[0] { left[1] } else { left[0] };
            cluster.ok(rest, &["node", "demote", &leader])?;
            eventually("the other leads alone", 20, || {
                let listed = cluster.rswarm(rest, &["node", "ls"])?.code == 0;
                Ok(listed && cluster.leader(rest)? == rest)
            })?;
            let name = format!("alone-{round}");
            eventually("writes go on", 10, || cluster.write(rest, &name).map(|()| true))?;
            cluster.ok(rest, &["node", "promote", &leader])?;
            eventually("there are two managers again", 20, || {
                Ok(cluster.ok(rest, &["status"])?.contains("2 of 2"))
            })?;
        }

        // A11: a manager that is demoted while it is down comes back as a worker.
        cluster.ok(left[0], &["node", "promote", &leader])?;
        eventually("there are three managers", 20, || {
            Ok(cluster.of_node(left[0], &leader, "ManagerStatus")? == "Reachable"
                && cluster.ok(left[0], &["status"])?.contains("3 of 3"))
        })?;
        let absent = left.iter().find(|node| cluster.leader(left[0]).is_ok_and(|leads| leads != **node));
        let absent = *absent.context("one of them does not lead")?;
        let rest = left.iter().find(|node| **node != absent).context("another is left")?;
        cluster.lab.kill(absent)?;
        eventually("it is down", 10, || Ok(cluster.of_node(rest, absent, "Status")? == "Down"))?;
        cluster.ok(rest, &["node", "demote", absent])?;
        cluster.lab.start(absent)?;
        eventually("it is back as a worker", 20, || {
            let refused = cluster.rswarm(absent, &["service", "ls"])?;
            Ok(cluster.of_node(rest, absent, "Status")? == "Ready"
                && cluster.of_node(rest, absent, "ManagerStatus")?.is_empty()
                && refused.code != 0
                && refused.stderr.contains("worker"))
        })?;
        ensure!(cluster.ok(rest, &["status"])?.contains("2 of 2"), "the other two are a quorum");
        cluster.write(rest, "without-it")
    });
}

#[test]
fn services_are_made_changed_and_removed() {
    story("services", 2, 1, |cluster| {
        let n1 = |words: &[&str]| cluster.ok("n1", words);
        let refused = |words: &[&str], why: &str| -> Result<()> {
            let said = cluster.refused("n1", words)?;
            ensure!(said.contains(why), "{words:?} should be refused because of \"{why}\": {said}");
            Ok(())
        };
        // D01: nothing is an empty list.
        ensure!(n1(&["service", "ls", "-q"])?.is_empty());

        // D09, D13, D14: what was asked for is shown.
        let file = cluster.lab.directory().join("variables");
        std::fs::write(&file, "# none\nFROM_FILE=1\nBOTH=file\n")?;
        let file = file.to_str().context("a path of letters")?;
        let options =
            ["--replicas", "2", "--publish", "8080:80", "--label", "tier=front", "--env-file", file];
        let more = ["--env", "BOTH=flag", "--mount", "type=tmpfs,target=/scratch,tmpfs-size=1m"];
        let limits = ["--limit-memory", "64m", "--restart-delay", "1s", "--stop-grace-period", "3s"];
        cluster.create("n1", "web", &[&options[..], &more, &limits].concat())?;
        let spec = &cluster.inspect("n1", "service", "web")?["Spec"];
        let template = &spec["TaskTemplate"];
        for (found, wanted) in [
            (&spec["Name"], "\"web\""),
            (&spec["Labels"]["tier"], "\"front\""),
            (&spec["Mode"]["Replicated"]["Replicas"], "2"),
            (&spec["EndpointSpec"]["Ports"][0]["PublishedPort"], "8080"),
            (&template["ContainerSpec"]["Env"], r#"["FROM_FILE=1","BOTH=flag"]"#),
            (&template["ContainerSpec"]["Mounts"][0]["Target"], "\"/scratch\""),
            (&template["ContainerSpec"]["Mounts"][0]["TmpfsOptions"]["SizeBytes"], "1048576"),
            (&template["ContainerSpec"]["StopGracePeriod"], "3000000000"),
            (&template["Resources"]["Limits"]["MemoryBytes"], "67108864"),
            (&template["RestartPolicy"]["Delay"], "1000000000"),
        ] {
            let found = found.to_string();
            ensure!(found == wanted, "{found} should be {wanted} in {spec:#}");
        }
        cluster.answers(&["n1", "n2"], 8080, 10)?;
        let environment = get(cluster.address("n1")?, 8080, "/env")?;
        ensure!(
            environment.contains("BOTH=flag\n") && environment.contains("FROM_FILE=1\n"),
            "{environment}"
        );

        // D03: a name is taken once, a port too.
        refused(&["service", "create", "--name", "web", "rswarm/demo"], "web")?;
        refused(&["service", "create", "--name", "two", "-p", "8080:80", "rswarm/demo"], "8080")?;

        // D04, D05: a change of size lets those that run alone.
        let two = cluster.runs("n1", "web", 2, 10)?;
        n1(&["service", "scale", "web=5"])?;
        let five = cluster.runs("n1", "web", 5, 10)?;
        ensure!(two.iter().all(|task| five.contains_id(&task.id)), "{}", told(&five));
        n1(&["service", "scale", "web=0"])?;
        eventually("none runs", 20, || Ok(cluster.running("n1", "web")?.is_empty()))?;
        ensure!(n1(&["service", "ls", "--format", "{{.Replicas}}"])? == "0/0\n", "D08");
        n1(&["service", "scale", "web=2"])?;
        cluster.runs("n1", "web", 2, 10)?;

        // D07, D08, D24: lists, filters, names and beginnings of ids.
        cluster.create("n1", "api", &["--replicas", "0", "--label", "tier=back"])?;
        for (filter, wanted) in
            [("name=w", "web\n"), ("label=tier=back", "api\n"), ("mode=replicated", "api\nweb\n")]
        {
            let found = n1(&["service", "ls", "--filter", filter, "--format", "{{.Name}}"])?;
            ensure!(found == wanted, "{filter} chooses {found}");
        }
        ensure!(n1(&["service", "ls", "--filter", "name=web", "--format", "{{.Replicas}}"])? == "2/2\n");
        let id = n1(&["service", "ls", "-q", "--filter", "name=web"])?.trim().to_string();
        let found = n1(&["service", "inspect", &id[..10], "--format", "{{.Spec.Name}}"])?;
        ensure!(found.trim() == "web", "{found}");
        refused(&["service", "inspect", "nobody"], "nobody")?;

        // D15: what makes no sense is refused, and leaves nothing.
        for (options, why) in [
            (&["--name", "no_such/name"][..], "name"),
            (&["--limit-memory", "1m"], "memory"),
            (&["--limit-cpu", "0.0001"], "cpu"),
            (&["-p", "9000:80", "-p", "9000:81"], "9000"),
            (&["--mount", "type=tmpfs,target=/a", "--mount", "type=tmpfs,target=/a"], "/a"),
            (&["-p", "70000:80"], "70000"),
            (&["--constraint", "colour"], "colour"),
        ] {
            let said =
                cluster.refused("n1", &[&["service", "create"], options, &["rswarm/demo"]].concat())?;
            ensure!(
                said.to_lowercase().contains(why),
                "{options:?} should be refused because of {why}: {said}"
            );
        }
        ensure!(cluster.services("n1")? == ["api", "web"], "what was refused leaves nothing");

        // What nobody can run waits, and says why.
        for (name, option, why) in [
            ("nowhere", ["--constraint", "node.labels.moon==full"], "moon==full"),
            ("huge", ["--reserve-memory", "900g"], "memory"),
        ] {
            n1(&["service", "create", "-d", "--name", name, option[0], option[1], "rswarm/demo"])?;
            eventually(&format!("{name} says why it waits"), 10, || {
                let tasks = cluster.tasks("n1", name)?;
                let waits = tasks.iter().all(|task| task.current_state.starts_with("Pending"));
                ensure!(waits && tasks.iter().any(|task| task.error.contains(why)), "{}", told(&tasks));
                Ok(true)
            })?;
        }
        let failed = cluster.refused(
            "n1",
            &["service", "create", "--name", "unknown", "--timeout", "8s", "127.0.0.1:1/none"],
        )?;
        println!("an unknown image: {}", failed.trim());

        // D19: removal ends tasks, also those that never ran, and gives ports back.
        let last = cluster.runs("n1", "web", 2, 10)?;
        n1(&["service", "rm", "web", "nowhere", "huge", "unknown", "api"])?;
        for task in &last {
            ensure!(container(&task.id).is_err(), "{} has ended", task.name);
        }
        ensure!(n1(&["service", "ls", "-q"])?.is_empty());
        for round in 0..3 {
            cluster
                .create("n1", "web", &["--publish", "8080:80"])
                .with_context(|| format!("round {round}"))?;
            cluster.runs("n1", "web", 1, 10)?;
            n1(&["service", "rm", "web"])?;
        }
        Ok(())
    });
}

#[test]
fn on_three_machines_by_hand() {
    bare_machines("by-hand", 3, |cluster| {
        let nodes = ["n1", "n2", "n3"];
        let before = nodes.map(|node| traces(cluster, node));

        // The first machine: there is no daemon, so init starts one.
        let first = cluster.address("n1")?.to_string();
        let state = nodes.map(|node| cluster.state(node).display().to_string());
        let said = cluster.ok("n1", &["init", "--state-dir", &state[0], "--advertise-addr", &first])?;
        let token = said.split_whitespace().find(|word| word.starts_with("RSWTKN-")).context("a token")?;
        let refused = cluster.refused("n1", &["init", "--advertise-addr", &first])?;
        ensure!(refused.contains("already"), "a second init is refused: {refused}");

        // Wrong and rotated tokens let nobody in, and leave nothing (A02, A03).
        let join = |node: usize, token: &str| {
            ["join", "--state-dir", &state[node], "--token", token, &first].map(String::from)
        };
        let join = |node: usize, token: &str| {
            let words = join(node, token);
            cluster.rswarm(nodes[node], &words.each_ref().map(String::as_str))
        };
        let (head, secret) = token.rsplit_once('-').context("a token has parts")?;
        let wrong = format!("{head}-{}", secret.chars().rev().collect::<String>());
        for bad in ["nonsense", &wrong] {
            let refused = join(1, bad)?;
            ensure!(refused.code != 0 && refused.stderr.contains("token"), "{bad}: {}", refused.stderr);
            ensure!(daemons(cluster, "n2")?.is_empty(), "a join that failed leaves no daemon");
        }
        let rotated = cluster.ok("n1", &["join-token", "--rotate", "worker", "-q"])?;
        let refused = join(1, token)?;
        ensure!(refused.code != 0 && refused.stderr.contains("token"), "an old token: {}", refused.stderr);

        // The others join (A01).
        join(1, rotated.trim())?.ok()?;
        join(2, rotated.trim())?.ok()?;
        for (node, manages) in [("n1", "Leader"), ("n2", ""), ("n3", "")] {
            eventually(&format!("{node} is a ready member"), 20, || {
                Ok(cluster.of_node("n1", node, "Status")? == "Ready"
                    && cluster.of_node("n1", node, "ManagerStatus")? == manages)
            })?;
        }

        // The first service.
        cluster.create("n1", "web", &["--replicas", "3", "--publish", "8080:80"])?;
        let tasks = cluster.runs("n1", "web", 3, 20)?;
        cluster.answers(&nodes, 8080, 10)?;
        let processes = processes_of(&tasks)?;

        // An upgrade: one daemon after the other is stopped, and the new binary started.
        for (node, state) in nodes.iter().zip(&state) {
            stop_daemon(cluster, node)?;
            let start = format!(
                "setsid rswarm daemon --socket /run/rswarm/rswarm.sock --state-dir {state} \
                 >>{state}/daemon.log 2>&1 </dev/null &"
            );
            cluster.lab.node(node).exec(&["sh", "-c", &start])?.ok()?;
            eventually(&format!("{node} is back"), 20, || {
                Ok(cluster
                    .of_node(node, node, "Status")
                    .or_else(|_| cluster.of_node("n1", node, "Status"))?
                    == "Ready")
            })?;
            cluster.answers(&nodes, 8080, 10)?;
        }
        ensure!(processes_of(&cluster.runs("n1", "web", 3, 20)?)? == processes, "no container was restarted");

        // The end: every machine leaves, and all is taken away.
        // A worker that has just lost its leader cannot say goodbye before it has found the next.
        eventually("n2 leaves", 10, || cluster.ok("n2", &["leave"]).map(|_| true))?;
        eventually("n3 leaves", 20, || cluster.ok("n3", &["leave"]).map(|_| true))?;
        cluster.ok("n1", &["leave", "--force"])?;
        for (node, (state, before)) in nodes.iter().zip(state.iter().zip(before)) {
            stop_daemon(cluster, node)?;
            cluster.lab.node(node).exec(&["rm", "-r", state])?.ok()?;
            let (before, after) = (before?, traces(cluster, node)?);
            ensure!(before == after, "{node} was clean before:\n{before}\nand now:\n{after}");
        }
        for task in &tasks {
            ensure!(container(&task.id).is_err(), "{} has ended", task.name);
            let groups = control_groups_of(std::path::Path::new("/sys/fs/cgroup"), &task.id);
            ensure!(groups.is_empty(), "{groups:?} are left");
        }
        Ok(())
    });
}

#[test]
fn a_machine_joins_and_leaves_ten_times() {
    bare_machines("ten-times", 2, |cluster| {
        let first = cluster.address("n1")?.to_string();
        let states = ["n1", "n2"].map(|node| cluster.state(node).display().to_string());
        // A20: a manager that shall only manage is never given a task.
        let drained = ["--state-dir", &states[0], "--advertise-addr", &first, "--availability", "drain"];
        cluster.ok("n1", &[&["init"], &drained[..]].concat())?;
        cluster.ok("n1", &["service", "create", "--detach", "--name", "web", "rswarm/demo"])?;
        eventually("the task waits, and says for what", 10, || {
            let tasks = cluster.tasks("n1", "web")?;
            Ok(tasks.len() == 1
                && tasks[0].current_state.starts_with("Pending")
                && tasks[0].error.contains("1 node"))
        })?;

        let token = cluster.ok("n1", &["join-token", "-q", "worker"])?;
        let mut join = ["join", "--state-dir", &states[1], "--token", token.trim(), &first].to_vec();
        let mut left = None;
        for round in 0..10 {
            cluster.ok("n2", &join)?;
            let tasks = cluster.runs("n1", "web", 1, 20)?;
            ensure!(tasks[0].node == "n2", "{}", told(&tasks));
            // A04: nothing is left of it but its daemon.
            cluster.ok("n2", &["leave"])?;
            ensure!(container(&tasks[0].id).is_err(), "its container has ended");
            let (id, listed) = {
                let listed =
                    cluster.ok("n1", &["node", "ls", "--format", "{{.ID}} {{.Hostname}} {{.Status}}"])?;
                let gone =
                    listed.lines().find(|line| line.ends_with(" n2 Left") || line.ends_with(" n2 Down"));
                (gone.and_then(|line| line.split(' ').next()).map(str::to_owned), listed)
            };
            cluster.ok("n1", &["node", "rm", &id.with_context(|| format!("n2 has left: {listed}"))?])?;
            let now = traces(cluster, "n2")?;
            let before = left.get_or_insert_with(|| now.clone());
            ensure!(*before == now, "round {round} left something:\n{before}\nand now:\n{now}");
            let kept: Vec<_> =
                std::fs::read_dir(&states[1])?.flatten().map(|entry| entry.file_name()).collect();
            ensure!(!kept.iter().any(|name| name == "identity" || name == "raft"), "{kept:?}");
            if round == 8 {
                // A20: one that joins drained is not used from the first moment.
                join.extend(["--availability", "drain"]);
                cluster.ok("n2", &join)?;
                eventually("n2 is ready", 10, || Ok(cluster.of_node("n1", "n2", "Status")? == "Ready"))?;
                let tasks = cluster.tasks("n1", "web")?;
                ensure!(tasks.iter().all(|task| !task.is_wanted() || task.node != "n2"), "{}", told(&tasks));
                join.truncate(join.len() - 2);
                cluster.ok("n1", &["node", "update", "--availability", "active", "n2"])?;
                cluster.runs("n1", "web", 1, 20)?;
                cluster.ok("n2", &["leave"])?;
                cluster.ok("n1", &["node", "rm", "n2"])?;
            }
        }
        ensure!(cluster.ok("n1", &["node", "ls", "-q"])?.lines().count() == 1, "n1 is alone again");
        cluster.ok("n1", &["leave", "--force"])?;
        for node in ["n1", "n2"] {
            stop_daemon(cluster, node)?;
        }
        Ok(())
    });
}

/// What a machine shows of us: mounts, network devices, and files that a reboot takes away.
fn traces(cluster: &Cluster, node: &str) -> Result<String> {
    let look = "cut -d' ' -f5- /proc/self/mountinfo | sort; ls /sys/class/net; find /run/rswarm ! -type d";
    cluster.lab.node(node).exec(&["sh", "-c", look])?.ok()
}

/// The control groups below a directory that carry a task's id.
fn control_groups_of(directory: &std::path::Path, task: &str) -> Vec<std::path::PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            if entry.file_name().to_string_lossy().starts_with(task) {
                found.push(entry.path());
            }
            found.extend(control_groups_of(&entry.path(), task));
        }
    }
    found
}

/// What a client saw.
#[derive(Debug)]
struct Requests {
    answered: usize,
    failed: usize,
    /// The longest time between two answers.
    gap: Duration,
}

/// Asks one node again and again until told to stop.
fn ask_on(address: Ipv4Addr, stop: &AtomicBool) -> Requests {
    let mut seen = Requests { answered: 0, failed: 0, gap: Duration::ZERO };
    let mut last = Instant::now();
    while !stop.load(Ordering::Relaxed) {
        match get_within(address, 8080, "/", Duration::from_millis(300)) {
            Ok(_) => {
                seen.answered += 1;
                seen.gap = seen.gap.max(last.elapsed());
                last = Instant::now();
            }
            Err(_) => seen.failed += 1,
        }
        thread::sleep(Duration::from_millis(5));
    }
    seen.gap = seen.gap.max(last.elapsed());
    seen
}

/// The processes of tasks, with the moments they started.
fn processes_of(tasks: &[Task]) -> Result<BTreeSet<(i32, u64)>> {
    tasks.iter().map(|task| container(&task.id)).collect()
}

trait ContainsId {
    /// Whether a task of this id is among them.
    fn contains_id(&self, id: &str) -> bool;
}

impl ContainsId for Vec<Task> {
    fn contains_id(&self, id: &str) -> bool {
        self.iter().any(|task| task.id == id)
    }
}

fn ids(tasks: &[Task]) -> BTreeSet<&str> {
    tasks.iter().map(|task| task.id.as_str()).collect()
}

/// The addresses that the tasks behind port 8080 tell, by task.
fn told_addresses(cluster: &Cluster, count: usize) -> Result<BTreeSet<(String, String)>> {
    let mut told = BTreeSet::new();
    eventually(&format!("{count} tasks tell their address"), 20, || {
        let body = get(cluster.address("n1")?, 8080, "/")?;
        told.insert((fact(&body, "task")?, fact(&body, "address")?));
        Ok(told.len() == count)
    })?;
    Ok(told)
}

fn kill(pid: i32) -> Result<()> {
    let pid = nix::unistd::Pid::from_raw(pid);
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL).context("cannot kill a container")
}

#[test]
fn a_running_task_is_entered_from_every_manager() {
    story("doors", 3, 2, |cluster| {
        // On the worker; asked from the manager that does not lead.
        cluster.create("n1", "web", &["--constraint", "node.hostname==n3"])?;
        let task = cluster.runs("n1", "web", 1, 20)?.remove(0);
        let asked = if cluster.leader("n1")? == "n1" { "n2" } else { "n1" };
        let said = cluster.ok(asked, &["exec", "web.1", "/rswarm", "--version"])?;
        ensure!(said.starts_with("rswarm "), "{said}");

        // It ends as the command did, and says what went wrong in the command's words.
        let ran = cluster.rswarm(asked, &["exec", "-i", &task.id, "/rswarm", "service", "nonsense"])?;
        ensure!(ran.code == 2 && ran.stderr.contains("nonsense") && ran.stdout.is_empty(), "{ran:?}");
        let ran = cluster.rswarm(asked, &["exec", "web.1", "/nothing"])?;
        ensure!(ran.code == 127 && ran.stderr.contains("no such file"), "{ran:?}");
        let ran = cluster.rswarm(asked, &["exec", "-t", "web.1", "/rswarm", "service", "nonsense"])?;
        ensure!(ran.code == 2 && ran.stdout.contains("nonsense") && ran.stderr.is_empty(), "{ran:?}");
        let error = cluster.refused(asked, &["exec", "wob.1", "/rswarm"])?;
        ensure!(error.contains("did you mean `web.1`"), "{error}");
        let error = cluster.refused("n3", &["exec", "web.1", "/rswarm"])?;
        ensure!(error.contains("manager"), "{error}");

        let processes = cluster.ok(asked, &["top", "web.1"])?;
        ensure!(processes.lines().count() == 2 && processes.contains("demo"), "{processes}");
        let stats = cluster.ok(asked, &["stats", "--no-stream", "--format", "json", "web"])?;
        let stats: Vec<serde_json::Value> = cluster::json_lines(&stats)?;
        ensure!(stats.len() == 1 && stats[0]["Name"] == "web.1" && stats[0]["PIDs"] != "0", "{stats:?}");
        ensure!(cluster.ok(asked, &["logs", "--until", "2020-01-01T00:00:00Z", "web"])?.is_empty());

        // A paused task does not answer on its port, and one that goes on does.
        let words = ["rswarm", "port-forward", "--address", "0.0.0.0", "web.1", "18080:80"];
        let mut forward = cluster.lab.node(asked).command(&words)?;
        let mut forward = forward.stdout(std::process::Stdio::piped()).spawn()?;
        let forwarded = (|| -> Result<()> {
            let mut line = String::new();
            let stdout = forward.stdout.as_mut().context("it has an output")?;
            std::io::BufRead::read_line(&mut std::io::BufReader::new(stdout), &mut line)?;
            ensure!(line.ends_with(" -> 80\n"), "{line}");
            let address = cluster.address(asked)?;
            ensure!(fact(&get(address, 18080, "/")?, "task")?.contains(&task.id));
            cluster.ok(asked, &["pause", "web.1"])?;
            ensure!(get_within(address, 18080, "/", Duration::from_millis(500)).is_err(), "it is paused");
            let error = cluster.refused(asked, &["exec", "web.1", "/rswarm"])?;
            ensure!(error.contains("paused"), "{error}");
            cluster.ok(asked, &["unpause", "web.1"])?;
            get(address, 18080, "/").map(drop)
        })();
        forward.kill()?;
        forward.wait()?;
        forwarded
    });
}

#[test]
fn a_task_is_attached_to_copied_from_and_retuned_where_it_runs() {
    story("attach", 3, 2, |cluster| {
        let words =
            ["service", "create", "--name", "talk", "--constraint", "node.hostname==n3", "-p", "8081:80"];
        let more = [
            "--restart-condition",
            "none",
            "--init",
            "--ulimit",
            "nofile=1000:2000",
            "--limit-memory",
            "64m",
        ];
        cluster.ok("n1", &[&words[..], &more, &["rswarm/demo", "--print-every", "100ms"]].concat())?;
        let task = cluster.runs("n1", "talk", 1, 20)?.remove(0);
        let asked = if cluster.leader("n1")? == "n1" { "n2" } else { "n1" };

        // Files go in and come out, by name, as an archive, and through no link.
        let shell = |script: &str| cluster.lab.node(asked).exec(&["sh", "-c", script]);
        shell("echo hello >/tmp/one && rswarm cp /tmp/one talk.1:/two")?.ok()?;
        let back = shell("rswarm cp talk.1:/two /tmp/three && cat /tmp/three")?.ok()?;
        ensure!(back == "hello\n", "{back}");
        let archived =
            shell("tar -C /tmp -cf - one | rswarm cp - talk.1:/ && rswarm cp talk.1:/one - | tar -xOf -")?;
        ensure!(archived.ok()? == "hello\n");
        let error = cluster.refused(asked, &["cp", "talk.1:/none", "/tmp/x"])?;
        ensure!(error.contains("No such file"), "{error}");
        let error = cluster.refused(asked, &["cp", "/tmp/one", "/tmp/x"])?;
        ensure!(error.contains("must be in a task"), "{error}");

        // Other limits leave it where it is, as it is.
        cluster.ok(asked, &["service", "update", "--limit-memory", "96m", "--limit-pids", "77", "talk"])?;
        let usage = || cluster.ok(asked, &["stats", "--no-stream", "--format", "{{.MemUsage}}", "talk"]);
        eventually("it may use more", 20, || Ok(usage()?.contains("96MiB")))?;
        ensure!(cluster.runs("n1", "talk", 1, 20)?.contains_id(&task.id), "it was replaced");

        // Whoever is attached hears it, and ends as it does.
        let attached = cluster
            .lab
            .node(asked)
            .command(&["rswarm", "attach", "--no-stdin", "talk.1"])?
            .stdout(std::process::Stdio::piped())
            .spawn();
        let mut attached = attached?;
        let mut lines = std::io::BufRead::lines(std::io::BufReader::new(
            attached.stdout.take().context("it has an output")?,
        ));
        let line = lines.next().context("it says something")??;
        ensure!(line.contains("line "), "{line}");
        get(cluster.address("n3")?, 8081, "/fail?code=7")?;
        let said: Vec<String> = lines.collect::<Result<_, _>>()?;
        ensure!(said.iter().any(|line| line.contains("failing with exit code 7")), "{said:?}");
        ensure!(attached.wait()?.code() == Some(7));

        // What it has left behind can be copied still.
        let back = eventually_some(20, || {
            let ran = shell(&format!("rswarm cp {}:/two -", task.id))?;
            Ok((ran.code == 0).then_some(ran.stdout))
        })?;
        ensure!(back.contains("hello"), "{back}");
        let error = cluster.refused(asked, &["cp", "/tmp/one", &format!("{}:/two", task.id)])?;
        ensure!(error.contains("does not run"), "{error}");
        let error = cluster.refused(asked, &["attach", &task.id])?;
        ensure!(error.contains("does not run"), "{error}");
        Ok(())
    });
}

/// What there is in the end.
fn eventually_some<T>(seconds: u64, mut find: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    let mut found = None;
    eventually("it is there", seconds, || {
        found = find()?;
        Ok(found.is_some())
    })?;
    found.context("it is there")
}

#[test]
fn a_cluster_of_two_versions_works_rises_with_its_last_manager_and_takes_no_older_one_from_then_on() {
    bare_machines("versions", 4, |cluster| {
        let nodes = ["n1", "n2", "n3", "n4"];
        let first = cluster.address("n1")?.to_string();
        let state = nodes.map(|node| cluster.state(node).display().to_string());
        // A daemon that was started by such a command takes part as the version before would.
        let as_before = |node: usize, words: &[&str]| {
            let before = ["env", "RSWARM_LEVEL_MAX=1", "rswarm"];
            cluster.lab.node(nodes[node]).exec(&[&before[..], words, &["--state-dir", &state[node]]].concat())
        };
        let level = |node: &str| cluster.ok(node, &["status", "--format", "{{.Level}}"]);
        as_before(0, &["init", "--advertise-addr", &first])?.ok()?;
        let token = cluster.ok("n1", &["join-token", "-q", "manager"])?;
        let join = ["join", "--token", token.trim(), &first];
        as_before(1, &join)?.ok()?;
        cluster.ok("n3", &[&join[..], &["--state-dir", &state[2]]].concat())?;

        // Each takes writes, also with the newer one leading, and nothing is written that the older do not know.
        for node in &nodes[..3] {
            cluster.write(node, &format!("by-{node}"))?;
        }
        ensure!(level("n1")?.trim() == "1" && level("n3")?.trim() == "1", "two are of the version before");
        stop_daemon(cluster, "n1")?;
        eventually("another leads and takes writes", 20, || {
            cluster.write("n3", "without-n1").map(|()| true)
        })?;
        // Started by a command that is of no other use there: the newer version.
        cluster.refused("n1", &["init", "--state-dir", &state[0]])?;
        eventually("n1 has caught up", 20, || Ok(cluster.services("n1")?.len() == 4))?;
        ensure!(level("n1")?.trim() == "1", "n2 is still of the version before");
        stop_daemon(cluster, "n2")?;
        cluster.refused("n2", &["init", "--state-dir", &state[1]])?;
        for node in &nodes[..3] {
            eventually(&format!("{node} knows that all are upgraded"), 20, || {
                Ok(level(node)?.trim() == rswarm_control::level::LATEST.to_string())
            })?;
            cluster.write(node, &format!("again-by-{node}"))?;
        }

        let refused = as_before(3, &join)?;
        let now = format!("gone on to level {}", rswarm_control::level::LATEST);
        let words = ["n4 runs rswarm", "up to level 1", &now];
        let told = words.iter().all(|words| refused.stderr.contains(words));
        ensure!(refused.code == 1 && told, "{}", refused.stderr);
        for (node, state) in nodes.iter().zip(&state).take(3) {
            stop_daemon(cluster, node)?;
            cluster.lab.node(node).exec(&["rm", "-r", state])?.ok()?;
        }
        Ok(())
    });
}
