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
use cluster::{Cluster, Task, container, eventually, fact, get, get_within, inside, lookup, story, told};

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
        let mut acknowledged = Vec::new();
        let mut write = |cluster: &Cluster, on: &str| -> Result<String> {
            let name = format!("kept-{}", acknowledged.len());
            let words = ["service", "create", "--detach", "--name", &name, "--replicas", "0", "rswarm/demo"];
            cluster.ok(on, &words)?;
            acknowledged.push(name.clone());
            Ok(name)
        };
        for node in ["n1", "n2", "n3"] {
            write(cluster, node).context("any manager takes a write")?;
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
            eventually("a write succeeds", 5, || write(cluster, other).map(|_| true))?;
            let what = if power_off { "powered off" } else { "killed" };
            println!("leader {leader} {what}: a write succeeded after {:.2?}", began.elapsed());
            ensure!(began.elapsed() < Duration::from_secs(5), "a write takes less than 5 s");
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
        cluster.answers(&["n1", "n2", "n3"], 8080, 10)?;

        // Two of three managers are dead: the last one refuses and says what to do, until they are back.
        for node in &others {
            cluster.lab.kill(node)?;
        }
        eventually("the last manager refuses", 20, || {
            let refused = write(&leader, "never")?;
            ensure!(refused.code != 0, "one of three takes no write");
            Ok(refused.stderr.contains("manager"))
        })?;
        let own = before.iter().position(|task| task.node == leader).context("one runs there")?;
        if let Ok(found) = container(&before[own].id) {
            ensure!(processes.contains(&found), "containers are let alone meanwhile");
        }
        for node in &others {
            cluster.lab.start(node)?;
        }
        eventually("writes succeed again", 20, || Ok(write(&leader, "back")?.code == 0))?;
        ensure!(!cluster.services("n1")?.contains(&"lost".to_string()), "what was refused did not happen");
        Ok(())
    });
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
