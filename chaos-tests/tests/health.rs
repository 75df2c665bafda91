//! Clusters of real daemons whose tasks are asked whether they are well.
//!
//! Needs root; skipped without it.

#[path = "machines/cluster.rs"]
#[allow(dead_code, reason = "shared with other stories, which use other parts of it")]
mod cluster;

use std::collections::BTreeSet;
use std::fs;
use std::net::Ipv4Addr;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use cluster::{Cluster, Task, container, eventually, fact, get, inside, story, told};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

const CHECK: [&str; 6] =
    ["--health-http", "/healthz:80", "--health-interval", "300ms", "--health-retries", "2"];

/// Says something to the program of a task, as if it were its neighbour in the container.
fn tell(task: &Task, path: &str) -> Result<()> {
    let (pid, _) = container(&task.id)?;
    inside(pid, || get(Ipv4Addr::LOCALHOST, 80, path)).map(drop)
}

/// Which tasks answer on a published port, in twenty requests.
fn answering(cluster: &Cluster, port: u16) -> Result<BTreeSet<String>> {
    let address = cluster.address("n1")?;
    (0..20).map(|_| fact(&get(address, port, "/")?, "task")).collect()
}

fn ids<'a>(tasks: impl IntoIterator<Item = &'a Task>) -> BTreeSet<String> {
    tasks.into_iter().map(|task| task.id.clone()).collect()
}

/// Who has answered requests that were made without a pause while something was done; none may fail.
fn while_asked(address: Ipv4Addr, port: u16, act: impl FnOnce() -> Result<()>) -> Result<BTreeSet<String>> {
    let (over, seen) = (AtomicBool::new(false), Mutex::new(BTreeSet::new()));
    thread::scope(|scope| {
        let client = scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                let who = fact(&get(address, port, "/")?, "task")?;
                seen.lock().expect("nobody panics with it").insert(who);
            }
            anyhow::Ok(())
        });
        let done = act();
        over.store(true, Ordering::Relaxed);
        client.join().expect("it does not panic").context("a request failed meanwhile")?;
        done
    })?;
    Ok(seen.into_inner().expect("nobody panics with it"))
}

#[test]
fn an_unhealthy_task_is_replaced_and_the_others_stay() {
    story("ill", 2, 1, |cluster| {
        cluster.create("n1", "web", &[&["--replicas", "2", "--publish", "8080:80"][..], &CHECK].concat())?;
        let before = cluster.runs("n1", "web", 2, 1)?;
        ensure!(before.iter().all(|task| task.current_state.ends_with("(healthy)")), "{}", told(&before));
        let shown = cluster.ok("n1", &["service", "inspect", "--pretty", "web"])?;
        ensure!(shown.contains("http /healthz:80"), "{shown}");

        let (ill, well) = (&before[0], &before[1]);
        let began = Instant::now();
        tell(ill, "/unhealthy")?;
        eventually("nobody is sent to it any more", 10, || Ok(answering(cluster, 8080)? == ids([well])))?;
        println!("taken out {:.1?} after it fell ill", began.elapsed());
        eventually("it has failed for its health", 10, || {
            let tasks = cluster.tasks("n1", "web")?;
            let failed = tasks.iter().find(|task| task.id == ill.id).context("it is remembered")?;
            ensure!(failed.current_state.starts_with("Failed"), "{}", told(&tasks));
            ensure!(failed.error.contains("unhealthy container: HTTP 503"), "{}", failed.error);
            Ok(true)
        })?;
        let after = cluster.runs("n1", "web", 2, 20)?;
        ensure!(after.iter().any(|task| task.id == well.id), "the other stays: {}", told(&after));
        ensure!(after.iter().all(|task| task.current_state.ends_with("(healthy)")), "{}", told(&after));

        // A daemon that is killed finds its containers again, takes nothing out, and goes on asking.
        cluster.lab.daemon_kill("n2")?;
        cluster.lab.daemon_start("n2")?;
        let mut states = BTreeSet::new();
        eventually("n2 is back and is asked again", 20, || {
            let now = cluster.tasks("n1", "web")?;
            let now = now.iter().filter(|task| ids(&after).contains(&task.id));
            states.extend(now.map(|task| task.current_state.split(' ').next_back().unwrap_or("").to_owned()));
            Ok(cluster.of_node("n1", "n2", "Status")? == "Ready")
        })?;
        let now = cluster.runs("n1", "web", 2, 1)?;
        ensure!(ids(&now) == ids(&after), "{} before, now {}", told(&after), told(&now));
        ensure!(states == BTreeSet::from(["(healthy)".to_owned()]), "meanwhile {states:?}");
        cluster.answers(&["n1", "n2"], 8080, 10)?;
        let adopted = after.iter().find(|task| task.node == "n2").context("one runs on n2")?;
        tell(adopted, "/unhealthy")?;
        eventually("what was adopted is asked, too", 10, || {
            let tasks = cluster.tasks("n1", "web")?;
            let failed = tasks.iter().find(|task| task.id == adopted.id).context("it is remembered")?;
            Ok(failed.current_state.starts_with("Failed"))
        })?;

        // What is paused is not asked.
        let web = cluster.runs("n1", "web", 2, 30)?;
        cluster.ok("n1", &["pause", &web[0].name])?;
        let resume = Instant::now() + Duration::from_secs(3);
        eventually("several intervals have passed", 10, || {
            let now = cluster.runs("n1", "web", 2, 1)?;
            ensure!(ids(&now) == ids(&web), "{}", told(&now));
            Ok(Instant::now() > resume)
        })?;
        cluster.ok("n1", &["unpause", &web[0].name])?;
        eventually("it answers again", 10, || Ok(answering(cluster, 8080)? == ids(&web)))?;
        Ok(())
    });
}

#[test]
fn an_update_waits_for_health_and_says_how_it_ended() {
    story("heal", 1, 1, |cluster| {
        let web = ["--replicas", "2", "--publish", "8080:80", "--update-monitor", "1s"];
        let order = ["--update-order", "start-first", "--update-progress-deadline", "5s"];
        cluster.create("n1", "web", &[&web[..], &order, &CHECK].concat())?;
        let before = cluster.runs("n1", "web", 2, 1)?;
        let address = cluster.address("n1")?;
        let update =
            |words: &[&str]| cluster.rswarm("n1", &[&["service", "update"], words, &["web"]].concat());

        // A new task that is ill fails the update, and nobody is ever sent to it.
        let served = while_asked(address, 8080, || {
            let ran = update(&["--args", "--unhealthy"])?;
            ensure!(ran.code == 5, "{} with {}: {}", ran.command, ran.code, ran.stderr);
            ensure!(ran.stderr.contains("unhealthy container: HTTP 503"), "{}", ran.stderr);
            Ok(())
        })?;
        ensure!(served.is_subset(&ids(&before)), "{served:?} answered");

        // One that might yet be well runs out of time.
        let served = while_asked(address, 8080, || {
            let ran = update(&["--args", "--unhealthy", "--health-start-period", "1h", "--force"])?;
            ensure!(ran.code == 6, "{} with {}: {}", ran.command, ran.code, ran.stderr);
            ensure!(ran.stderr.contains("health: starting"), "{}", ran.stderr);
            Ok(())
        })?;
        ensure!(served.is_subset(&ids(&before)), "{served:?} answered");

        // One that is slow is waited for.
        while_asked(address, 8080, || {
            let slow = ["--health-start-period", "20s", "--health-start-interval", "200ms"];
            let words = ["--args", "--start-delay 2s", "--update-progress-deadline", "30s"];
            let ran = update(&[slow, words].concat())?;
            ensure!(ran.code == 0, "{} with {}: {}", ran.command, ran.code, ran.stderr);
            Ok(())
        })?;
        let after = cluster.runs("n1", "web", 2, 1)?;
        ensure!(ids(&after).is_disjoint(&ids(&before)), "{}", told(&after));
        ensure!(answering(cluster, 8080)? == ids(&after), "the new tasks answer");

        let late = ["--health-tcp", "81", "--health-start-period", "1h", "--update-progress-deadline", "2s"];
        let words = [&["service", "create", "--name", "late"], &late[..], &["rswarm/demo"]].concat();
        let ran = cluster.rswarm("n1", &words)?;
        ensure!(ran.code == 6, "{} with {}: {}", ran.command, ran.code, ran.stderr);
        let exec = ["--health-cmd", r#"["/rswarm", "version"]"#, "--health-interval", "1s"];
        cluster.create("n1", "own", &exec)?;
        let exec = ["--health-cmd", r#"["/nothing"]"#, "--health-interval", "200ms", "--health-retries", "1"];
        let once = ["--restart-condition", "none", "--name", "mute"];
        let words = [&["service", "create"], &once[..], &exec, &["rswarm/demo"]].concat();
        let ran = cluster.rswarm("n1", &words)?;
        ensure!(ran.code == 3, "{} with {}: {}", ran.command, ran.code, ran.stderr);
        ensure!(ran.stderr.contains("unhealthy container"), "{}", ran.stderr);
        Ok(())
    });
}

#[test]
fn a_task_that_is_not_ready_is_left_alone_and_goes_on() {
    story("ready", 2, 1, |cluster| {
        let ready = ["--ready-http", "/healthz:80", "--ready-interval", "200ms", "--ready-retries", "2"];
        cluster.create("n1", "web", &[&["--replicas", "2", "--publish", "8080:80"][..], &ready].concat())?;
        let tasks = cluster.runs("n1", "web", 2, 1)?;
        let (shy, other) = (&tasks[0], &tasks[1]);
        let processes = [container(&shy.id)?, container(&other.id)?];
        while_asked(cluster.address("n1")?, 8080, || {
            tell(shy, "/unhealthy")?;
            eventually("nobody is sent to it", 10, || Ok(answering(cluster, 8080)? == ids([other])))?;
            let now = cluster.runs("n1", "web", 2, 1)?;
            ensure!(ids(&now) == ids(&tasks), "it goes on: {}", told(&now));
            let badge = now.iter().find(|task| task.id == shy.id).map(|task| &task.current_state);
            ensure!(badge.is_some_and(|state| state.ends_with("(not ready)")), "{}", told(&now));
            tell(shy, "/healthy")?;
            eventually("it is sent to again", 10, || Ok(answering(cluster, 8080)? == ids(&tasks)))?;
            Ok(())
        })?;
        ensure!([container(&shy.id)?, container(&other.id)?] == processes, "nothing was restarted");
        Ok(())
    });
}

/// An archive, as `docker save` writes it, of an image with the program of the cluster and a health check.
fn with_health_check(name: &str, check: &Value) -> Result<Vec<u8>> {
    let entry = |kind, mode, size: usize| {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_size(size as u64);
        header
    };
    let program = fs::read(cluster::program())?;
    let mut layer = tar::Builder::new(Vec::new());
    for path in ["dev", "etc", "proc", "sys", "tmp"] {
        layer.append_data(&mut entry(tar::EntryType::Directory, 0o755, 0), path, &[][..])?;
    }
    layer.append_data(&mut entry(tar::EntryType::Regular, 0o755, program.len()), "rswarm", &program[..])?;
    let layer = layer.into_inner()?;
    let config = json!({
        "architecture": match std::env::consts::ARCH { "x86_64" => "amd64", "aarch64" => "arm64", other => other },
        "os": "linux",
        "config": { "Entrypoint": ["/rswarm", "demo"], "WorkingDir": "/", "Healthcheck": check },
        "rootfs": { "type": "layers", "diff_ids": [format!("sha256:{:x}", Sha256::digest(&layer))] },
    });
    let manifest = json!([{ "Config": "config.json", "RepoTags": [name], "Layers": ["layer.tar"] }]);
    let mut archive = tar::Builder::new(Vec::new());
    let (config, manifest) = (config.to_string(), manifest.to_string());
    for (path, bytes) in [
        ("layer.tar", &layer[..]),
        ("config.json", config.as_bytes()),
        ("manifest.json", manifest.as_bytes()),
    ] {
        archive.append_data(&mut entry(tar::EntryType::Regular, 0o644, bytes.len()), path, bytes)?;
    }
    Ok(archive.into_inner()?)
}

#[test]
fn an_images_own_health_check_is_asked_unless_the_service_says_otherwise() {
    story("image", 1, 1, |cluster| {
        let dir = tempfile::tempdir_in(cluster.state("n1"))?;
        let made = dir.path().join("made.tar");
        for (name, program, retries) in [("well:1", "/rswarm", 3), ("ill:1", "/nothing", 1)] {
            let (interval, test) = (300_000_000, json!(["CMD", program, "version"]));
            let check = json!({ "Test": test, "Interval": interval, "Retries": retries });
            fs::write(&made, with_health_check(name, &check)?)?;
            cluster.ok("n1", &["image", "load", "--input", &made.display().to_string()])?;
        }
        let create = |name: &str, image: &str, more: &[&str]| {
            let words = ["service", "create", "--restart-condition", "none", "--name", name];
            cluster.rswarm("n1", &[&words[..], more, &[image]].concat())
        };

        // Nothing is said of health but by the image.
        let ran = create("well", "well:1", &[])?;
        ensure!(ran.code == 0, "{} with {}: {}", ran.command, ran.code, ran.stderr);
        let tasks = cluster.runs("n1", "well", 1, 1)?;
        ensure!(tasks[0].current_state.ends_with("(healthy)"), "{}", told(&tasks));
        let ran = create("ill", "ill:1", &[])?;
        ensure!(ran.code == 3, "{} with {}: {}", ran.command, ran.code, ran.stderr);
        ensure!(ran.stderr.contains("unhealthy container"), "{}", ran.stderr);

        // The service has the last word.
        let ran = create("unasked", "ill:1", &["--no-healthcheck"])?;
        ensure!(ran.code == 0, "{} with {}: {}", ran.command, ran.code, ran.stderr);
        let tasks = cluster.runs("n1", "unasked", 1, 1)?;
        ensure!(!tasks[0].current_state.contains('('), "{}", told(&tasks));
        let ran = create("else", "ill:1", &["--health-http", "/healthz:80", "--health-interval", "300ms"])?;
        ensure!(ran.code == 0, "{} with {}: {}", ran.command, ran.code, ran.stderr);

        // What was found is told in Docker's words.
        let events = cluster.ok("n1", &["events", "--filter", "event=health_status"])?;
        for words in ["health_status: healthy", "health_status: unhealthy"] {
            ensure!(events.contains(words), "{words}: {events}");
        }
        Ok(())
    });
}
