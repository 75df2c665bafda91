//! A daemon that ends at each step of making, joining or renewing its membership: the next one finds either what was
//! before or what was to be, and goes on. And managers whose disks fill up.
//!
//! Needs root; skipped without it.

#[path = "machines/cluster.rs"]
#[allow(dead_code, reason = "shared with other stories, which use other parts of it")]
mod cluster;

use anyhow::{Context, Result, ensure};
use cluster::{Cluster, bare_machines, container, daemons, eventually, stop_daemon, told};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::process::Command;
use std::thread;

/// The steps in which an identity is written.
const WRITING: [&str; 5] =
    ["identity.opened", "identity.written", "identity.synced", "identity.named", "identity.durable"];

/// Runs a command with a daemon, which it starts, that ends at `point`.
fn dies(cluster: &Cluster, node: &str, point: &str, words: &[&str]) -> Result<()> {
    let (at, state) = (format!("RSWARM_DIES_AT={point}"), cluster.state(node).display().to_string());
    let before = ["env", &at, "rswarm"];
    let ran = cluster.lab.node(node).exec(&[&before[..], words, &["--state-dir", &state]].concat())?;
    ensure!(ran.code != 0, "{point} was not reached: {}", ran.stdout);
    eventually(&format!("the daemon has ended at {point}"), 10, || Ok(daemons(cluster, node)?.is_empty()))?;
    Ok(())
}

/// The same command with a daemon that lives.
fn again(cluster: &Cluster, node: &str, point: &str, words: &[&str]) -> Result<()> {
    let state = cluster.state(node).display().to_string();
    let ran = cluster.rswarm(node, &[words, &["--state-dir", &state]].concat())?;
    // Either nothing came of it, and now it does; or it came to be, and is found.
    let kept = ["init.saved", "join.saved", "identity.named", "identity.durable"].contains(&point);
    let fits = if kept { ran.stderr.contains("already part of a cluster") } else { ran.code == 0 };
    ensure!(fits, "after {point}: {} {}", ran.stdout, ran.stderr);
    ensure!(!cluster.state(node).join("identity.tmp").exists(), "{point} left something behind");
    Ok(())
}

#[test]
fn a_daemon_may_end_at_any_step_of_init_or_of_a_renewal_and_the_next_goes_on() {
    bare_machines("died-init", 1, |cluster| {
        let address = cluster.address("n1")?.to_string();
        let init = ["init", "--advertise-addr", &address];
        let written = |point: &str| {
            eventually(&format!("it takes writes after {point}"), 20, || {
                cluster.write("n1", point).map(|()| true)
            })
        };
        for point in ["init.claimed", "init.founded", "init.saved"].iter().chain(&WRITING) {
            dies(cluster, "n1", point, &init)?;
            again(cluster, "n1", point, &init)?;
            written(&point.replace('.', "-"))?;
            if *point != WRITING[4] {
                cluster.ok("n1", &["leave", "--force"])?;
            }
            stop_daemon(cluster, "n1")?;
        }
        let known = || -> Result<String> {
            let text = std::fs::read_to_string(cluster.state("n1").join("identity.json"))?;
            let identity: serde_json::Value = serde_json::from_str(&text)?;
            Ok(identity["cert_pem"].as_str().context("it has a certificate")?.to_owned())
        };
        let before = known()?;
        // The member on disk comes up, renews, and ends.
        dies(cluster, "n1", "renewal.issued", &init)?;
        ensure!(known()? == before, "the old certificate is there");
        dies(cluster, "n1", "renewal.saved", &init)?;
        ensure!(known()? != before, "the new one is there");
        again(cluster, "n1", "init.saved", &init)?;
        written("renewed")?;
        stop_daemon(cluster, "n1")
    });
}

#[test]
fn a_daemon_may_end_at_any_step_of_a_join_and_the_next_goes_on() {
    bare_machines("died-join", 2, |cluster| {
        let state = cluster.state("n1").display().to_string();
        let first = cluster.address("n1")?.to_string();
        cluster.ok("n1", &["init", "--advertise-addr", &first, "--state-dir", &state])?;
        let token = cluster.ok("n1", &["join-token", "-q", "worker"])?;
        let join = ["join", "--token", token.trim(), &first];
        for point in ["join.issued", "join.claimed", "identity.synced", "identity.named", "join.saved"] {
            dies(cluster, "n2", point, &join)?;
            again(cluster, "n2", point, &join)?;
            eventually(&format!("n2 is ready after {point}"), 20, || {
                let nodes = cluster.ok("n1", &["node", "ls", "--format", "{{.Hostname}} {{.Status}}"])?;
                Ok(nodes.lines().any(|line| line == "n2 Ready"))
            })?;
            cluster.ok("n2", &["leave", "--force"])?;
            stop_daemon(cluster, "n2")?;
        }
        stop_daemon(cluster, "n1")
    });
}

#[test]
fn a_leader_whose_disk_is_full_hands_over_and_writes_and_containers_go_on() {
    bare_machines("full-disk", 3, |cluster| {
        let nodes = ["n1", "n2", "n3"];
        let first = cluster.address("n1")?.to_string();
        let state = nodes.map(|node| cluster.state(node).display().to_string());
        let shell = |text: &str| cluster.lab.node("n1").exec(&["sh", "-c", text]);
        shell(&format!("mkdir -p {0} && mount -t tmpfs -o size=700m none {0}", state[0]))?.ok()?;
        cluster.ok("n1", &["init", "--advertise-addr", &first, "--state-dir", &state[0]])?;
        let token = cluster.ok("n1", &["join-token", "-q", "manager"])?;
        for (node, state) in nodes.iter().zip(&state).skip(1) {
            cluster.ok(node, &["join", "--token", token.trim(), &first, "--state-dir", state])?;
        }
        cluster.create("n1", "web", &["--replicas", "3"])?;
        let before = cluster.runs("n1", "web", 3, 20)?;
        let processes = before.iter().map(|task| container(&task.id)).collect::<Result<Vec<_>>>()?;
        ensure!(cluster.leader("n2")? == "n1", "who founds it leads");
        let daemon = daemons(cluster, "n1")?;

        shell(&format!("dd if=/dev/zero of={}/ballast bs=64k", state[0]))?;
        // There is always a segment in hand. It is written full, and all of that is taken.
        let large =
            ["A", "B", "C", "D", "E", "F", "G", "H"].map(|name| format!("{name}={}", "x".repeat(100_000)));
        for number in 0..60 {
            if number % 5 == 0 && cluster.leader("n2")? != "n1" {
                break;
            }
            let number = format!("number={number}");
            let mut words = vec!["service", "update", "--detach", "--label-add", &number];
            words.extend(large.iter().flat_map(|large| ["--label-add", large.as_str()]));
            words.push("web");
            cluster.ok("n1", &words)?;
        }
        eventually("another leads", 20, || Ok(cluster.leader("n2")? != "n1"))?;
        for node in nodes {
            cluster.write(node, &format!("by-{node}"))?;
        }
        let status = cluster.ok("n2", &["status"])?;
        ensure!(status.contains("n1") && status.contains("no room"), "it names who has none: {status}");
        let status = cluster.ok("n1", &["status"])?;
        ensure!(status.contains("no room for its log") && status.contains(&state[0]), "{status}");
        let after = cluster.runs("n2", "web", 3, 20)?;
        let same = before.iter().all(|task| after.iter().any(|now| now.id == task.id));
        let alive =
            before.iter().zip(&processes).all(|(task, pid)| container(&task.id).is_ok_and(|now| now == *pid));
        ensure!(same && alive, "containers go on: {}", told(&after));
        ensure!(
            daemon.iter().all(|pid| daemons(cluster, "n1").is_ok_and(|now| now.contains(pid))),
            "so do daemons"
        );

        shell(&format!("rm {}/ballast", state[0]))?.ok()?;
        eventually("n1 has room again and all that was written", 30, || {
            let status = cluster.ok("n1", &["status"])?;
            ensure!(!status.contains("no room"), "{status}");
            let stale = cluster.ok("n1", &["--stale", "service", "ls", "--format", "{{.Name}}"])?;
            Ok(["by-n1", "by-n2", "by-n3", "web"].iter().all(|name| stale.lines().any(|line| line == *name)))
        })?;
        cluster.ok("n1", &["service", "rm", "web"])?;
        for node in nodes {
            stop_daemon(cluster, node)?;
        }
        Ok(())
    });
}

#[test]
fn what_is_known_without_a_quorum_is_told_to_who_asks_for_it_with_its_age() {
    cluster::story("stale", 3, 3, |cluster| {
        let make = |name: &str| {
            let words = ["service", "create", "--detach", "--name", name, "--replicas", "0", "rswarm/demo"];
            cluster.ok("n1", &words)
        };
        make("before")?;
        let fresh = cluster.rswarm("n3", &["service", "ls"])?;
        ensure!(fresh.code == 0 && fresh.stderr.is_empty(), "{}", fresh.stderr);
        for node in ["n1", "n2", "n3"] {
            // Read where it is asked, and never older than what was acknowledged.
            make(&format!("seen-by-{node}"))?;
            ensure!(cluster.services(node)?.contains(&format!("seen-by-{node}")), "{node} is behind");
        }
        let ages = |node: &str| -> Result<(u64, u64)> {
            let printed = cluster.ok(node, &["--stale", "service", "ls", "--format", "json"])?;
            let all: Vec<serde_json::Value> = cluster::json_lines(&printed)?;
            let stale = &all.first().context("there are services")?["Stale"];
            let number = |name: &str| stale[name].as_u64().with_context(|| format!("no {name} in {printed}"));
            Ok((number("Index")?, number("UnheardMs")?))
        };
        let (index, unheard) = ages("n3")?;
        ensure!(index > 0 && unheard < 1000, "{index}, {unheard} ms");

        for node in ["n1", "n2"] {
            cluster.lab.kill(node)?;
        }
        eventually("nothing is read by default", 20, || {
            let refused = cluster.refused("n3", &["service", "ls"])?;
            Ok(refused.contains("no leader"))
        })?;
        let stale = cluster.rswarm("n3", &["--stale", "service", "ls"])?;
        ensure!(stale.code == 0 && stale.stdout.contains("before"), "{} {}", stale.stdout, stale.stderr);
        ensure!(stale.stderr.contains("Stale:") && stale.stderr.contains(" s ago"), "{}", stale.stderr);
        let (later, unheard) = ages("n3")?;
        ensure!(later >= index && unheard > 1000, "{later}, {unheard} ms");
        for words in [
            &["node", "ls"][..],
            &["node", "ps", "self"],
            &["service", "inspect", "before"],
            &["network", "ls"],
        ] {
            cluster.ok("n3", &[&["--stale"], words].concat())?;
        }
        let refused = cluster.refused("n3", &["--stale", "service", "rm", "before"])?;
        ensure!(refused.contains("--stale is for"), "{refused}");
        Ok(())
    });
}

/// Stands between a command and its daemon: the answers on the second connection, after the one by which the command
/// sees that a daemon is there, are swallowed, and it breaks once `heard`.
fn swallow_an_answer(
    listener: UnixListener,
    daemon: PathBuf,
    heard: impl FnOnce() -> Result<()>,
) -> Result<()> {
    let copy = |mut from: UnixStream, mut to: UnixStream| {
        thread::spawn(move || {
            let _ = std::io::copy(&mut from, &mut to);
            let _ = to.shutdown(Shutdown::Both);
        })
    };
    let mut heard = Some(heard);
    for number in 0..3 {
        let (command, _) = listener.accept()?;
        let real = UnixStream::connect(&daemon)?;
        copy(command.try_clone()?, real.try_clone()?);
        match heard.take_if(|_| number == 1) {
            Some(heard) => {
                heard()?;
                command.shutdown(Shutdown::Both)?;
                real.shutdown(Shutdown::Both)?;
            }
            None => drop(copy(real, command)),
        }
    }
    Ok(())
}

#[test]
fn a_command_whose_answer_was_lost_is_carried_out_once() {
    cluster::story("lost-answer", 1, 1, |cluster| {
        let pid = daemons(cluster, "n1")?.into_iter().next().context("it has a daemon")?;
        let daemon = PathBuf::from(format!("/proc/{pid}/root/run/rswarm/rswarm.sock"));
        let dir = tempfile::tempdir()?;
        let socket = dir.path().join("between");
        let listener = UnixListener::bind(&socket)?;
        let ran = thread::scope(|scope| {
            let swallowing = scope.spawn(|| {
                swallow_an_answer(listener, daemon, || {
                    let made = || Ok(cluster.services("n1")? == ["web"]);
                    eventually("the cluster has done what was asked", 20, made).map(drop)
                })
            });
            let words =
                ["service", "create", "--detach", "-q", "--name", "web", "--replicas", "0", "rswarm/demo"];
            let ran = Command::new(cluster::program()).arg("--socket").arg(&socket).args(words).output();
            // Nobody waits for connections that do not come.
            let _ = (0..3).try_for_each(|_| UnixStream::connect(&socket).map(drop));
            swallowing.join().expect("it does not panic").map(|()| ran)
        })??;
        // Without a name it would say that a service named web exists.
        ensure!(ran.status.success(), "{}", String::from_utf8_lossy(&ran.stderr));
        let told = String::from_utf8_lossy(&ran.stdout).trim().to_owned();
        let known = cluster.ok("n1", &["service", "ls", "-q"])?;
        ensure!(known.trim() == told, "{told} was answered, {known} is there");
        Ok(())
    });
}
