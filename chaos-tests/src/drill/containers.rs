//! What containers do to themselves and to their node, and what must not run twice.

use std::fs;
use std::path::Path;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use super::load;
use super::site::until;
use super::stage::Scene;

const LONG: Duration = Duration::from_secs(40);

/// Runs tasks that fail at once.
pub fn crash_loop(scene: &mut Scene<'_>) -> Result<()> {
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

/// Lets a container take more memory than it may.
pub fn container_oom(scene: &mut Scene<'_>) -> Result<()> {
    const NAME: &str = "drill-oom";
    const PORT: u16 = 8091;
    let (manager, publish) = (scene.manager()?, format!("{PORT}:80"));
    let words = [
        "service",
        "create",
        "--detach",
        "--name",
        NAME,
        "--limit-memory",
        "48m",
        "--publish",
        &publish,
        "rswarm/demo",
    ];
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

/// A service with a published port; answers where it is asked.
fn serve(scene: &Scene<'_>, name: &str, port: u16, options: &[&str]) -> Result<std::net::IpAddr> {
    let (manager, publish) = (scene.manager()?, format!("{port}:80"));
    let words = [
        &["service", "create", "--detach", "--name", name, "--publish", &publish],
        options,
        &["rswarm/demo"],
    ];
    scene.site.act(&manager, &words.concat())?;
    let address = scene.site.address(&scene.steady[0])?.into();
    until("it answers", LONG, || load::get(address, port).map(drop))?;
    Ok(address)
}

/// Starts threads without end in a container.
pub fn fork_bomb(scene: &mut Scene<'_>) -> Result<()> {
    const PORT: u16 = 8092;
    const WANTED: u64 = 20_000;
    let address = serve(scene, "drill-bomb", PORT, &[])?;
    let since = scene.harm("a container starts threads without end");
    let answer = load::get_path(address, PORT, &format!("/threads?count={WANTED}"))?;
    let started: u64 = answer
        .lines()
        .rev()
        .find_map(|line| line.strip_prefix("threads: ")?.trim().parse().ok())
        .with_context(|| format!("it does not say how many it got: {answer}"))?;
    scene.expect(started > 100, format!("it got {started} threads: the fault was not injected"));
    scene.measure("threads", started as f64, "count", Some(2_000.0), Some((WANTED - 1) as f64));
    // The threads stay; with them there, everything goes on.
    scene.flows(20)?;
    scene.answer_times(since, 500.0, 3_000.0);
    scene.failures(since, 0.0, 1.0);
    scene.restarts(&[])
}

/// Writes without end in a container, beside one that says a little at a steady pace.
pub fn log_flood(scene: &mut Scene<'_>) -> Result<()> {
    const PORT: u16 = 8093;
    const FLOOD: u64 = 256 << 20;
    const WHISPER: &str = "drill-whisper";
    let address = serve(scene, "drill-flood", PORT, &[])?;
    let node = scene.site.runs(&scene.askable, "drill-flood", 1, LONG)?.remove(0).node;
    let (manager, place) = (scene.manager()?, format!("node.hostname=={node}"));
    let words = ["service", "create", "--detach", "--name", WHISPER, "--constraint", &place, "rswarm/demo"];
    scene.site.act(&manager, &[&words[..], &["--print-every", "100ms"]].concat())?;
    let (site, askable) = (scene.site, scene.askable.clone());
    let heard = || -> Result<Vec<(u64, u64)>> {
        Ok(lines_of(&site.ask_any(&askable, &["service", "logs", WHISPER])?))
    };
    until("its neighbour is heard", LONG, || {
        ensure!(heard()?.len() >= 5, "too few lines");
        Ok(())
    })?;

    let state = site.lab.directory().join(&node).join("state");
    let (before, said_before) = (size_of(&state), heard()?.len());
    let since = scene.harm(&format!("a container on {node} writes 256 MiB to its log"));
    load::get_path(address, PORT, &format!("/shout?mem={FLOOD}"))?;
    let (mut most, mut silent) = (0, 0);
    until("it has said all", Duration::from_secs(120), || {
        most = most.max(size_of(&state).saturating_sub(before));
        let answer = load::get_path(address, PORT, "/shouted").inspect_err(|_| silent += 1)?;
        ensure!(answer.ends_with("done\n"), "it is still shouting");
        Ok(())
    })?;
    let took = scene.now() - since;
    // What the neighbour says from now on is heard: what it said meanwhile then is, too.
    let mut lines = Vec::new();
    let wanted = said_before + 5;
    until("its neighbour is heard again", LONG, || {
        lines = heard()?;
        ensure!(lines.len() >= wanted, "{} of {wanted} lines", lines.len());
        Ok(())
    })?;
    scene.expect(most > 0, "nothing was written: the fault was not injected");
    scene.expect(
        silent == 0,
        format!("the container that floods did not answer {silent} times: it is held up"),
    );
    scene.measure_time("said_after", took, 15_000.0, 100_000.0);
    let mib = most as f64 / f64::from(1 << 20);
    scene.measure("disk_taken", mib, "MiB", Some(64.0), Some(200.0));
    let two = || lines.windows(2).map(|two| (two[0], two[1]));
    let missing: u64 = two().map(|(one, next)| next.0.saturating_sub(one.0 + 1)).sum();
    let pause = two().map(|(one, next)| next.1.saturating_sub(one.1)).max().unwrap_or(0);
    scene.measure("neighbour_lines_lost", missing as f64, "count", Some(0.0), Some(0.0));
    scene.measure("neighbour_longest_pause", pause as f64, "ms", Some(500.0), Some(3_000.0));
    scene.answer_times(since, 500.0, 3_000.0);
    scene.failures(since, 0.0, 1.0);
    scene.restarts(&[])
}

/// Number and time of each line `line 7 after 700 ms`, as the demonstration prints them.
fn lines_of(log: &str) -> Vec<(u64, u64)> {
    let lines =
        log.lines().filter_map(|line| line.split_once("line ")?.1.strip_suffix(" ms")?.split_once(" after "));
    lines.filter_map(|(number, at)| Some((number.parse().ok()?, at.parse().ok()?))).collect()
}

/// How much is in the files below a directory, in bytes.
fn size_of(directory: &Path) -> u64 {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    entries
        .map(|entry| match entry.metadata() {
            Ok(data) if data.is_dir() => size_of(&entry.path()),
            Ok(data) => data.len(),
            Err(_) => 0,
        })
        .sum()
}

/// Asks for an image of a registry where nobody listens.
pub fn registry_down(scene: &mut Scene<'_>) -> Result<()> {
    const IMAGE: &str = "127.0.0.1:5999/drill:1";
    let manager = scene.manager()?;
    let since = scene.harm("an image is asked for of a registry that is down");
    let words = ["service", "create", "--detach", "--name", "drill-missing", IMAGE];
    let asked = scene.site.lab.node(&manager).call(&words, LONG)?;
    let (site, askable, mut told) = (scene.site, scene.askable.clone(), asked.stderr.clone());
    if asked.code == 0 {
        until("its tasks say what is missing", LONG, || {
            let tasks = site.tasks(&askable, "drill-missing")?;
            let why = tasks.iter().find(|task| !task.error.is_empty()).context("no task says anything")?;
            told.clone_from(&why.error);
            Ok(())
        })?;
    }
    scene.expect(told.contains("127.0.0.1:5999"), format!("what is missing is not named: {told}"));
    serve(scene, "drill-present", 8094, &[])?;
    scene.note("what is there starts all the same");
    scene.failures(since, 0.0, 1.0);
    scene.restarts(&[])
}

/// The time since this machine's start, in milliseconds, as processes' beginnings are told: to a hundredth of a
/// second.
fn uptime_ms() -> Result<f64> {
    let text = fs::read_to_string("/proc/uptime").context("cannot read the uptime")?;
    let seconds: f64 = text.split(' ').next().unwrap_or_default().parse().context("a malformed uptime")?;
    Ok(seconds * 1e3)
}

/// When a process began, on the same clock; `None` if it is gone.
fn begun_ms(pid: i32) -> Option<f64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    // A dead one is not yet gone from the list.
    let alive = !matches!(fields.next()?, "Z" | "X");
    let ticks: f64 = fields.nth(18)?.parse().ok()?;
    alive.then_some(ticks * 10.0)
}

/// Cuts off the node with a task that must not run twice.
pub fn fenced_node_cut(scene: &mut Scene<'_>) -> Result<()> {
    const NAME: &str = "drill-fenced";
    let manager = scene.manager()?;
    let words = [
        "service",
        "create",
        "--detach",
        "--name",
        NAME,
        "--on-node-loss",
        "fence",
        "--constraint",
        "node.role==worker",
        "rswarm/demo",
    ];
    scene.site.act(&manager, &words)?;
    let first = scene.site.runs(&scene.askable, NAME, 1, LONG)?.remove(0);
    let old = *scene.site.containers()?.get(&first.id).context("the fenced task has no process")?;
    ensure!(begun_ms(old).is_some(), "the fenced task does not run");
    let since = scene.harm(&format!("{}, with the fenced task, is cut off", first.node));
    scene.site.lab.partition(&[vec![first.node.clone()]])?;
    let ended = thread::spawn(move || -> Result<f64> {
        let mut last = uptime_ms()?;
        let mut waited = Duration::ZERO;
        while begun_ms(old).is_some() {
            if waited > Duration::from_secs(60) {
                bail!("the fenced task goes on although its node is cut off");
            }
            last = uptime_ms()?;
            thread::sleep(Duration::from_millis(2));
            waited += Duration::from_millis(2);
        }
        Ok(last)
    });
    let (site, askable) = (scene.site, scene.askable.clone());
    let mut next = None;
    until("it runs elsewhere", Duration::from_secs(60), || {
        let tasks = site.tasks(&askable, NAME)?;
        let other = tasks.iter().find(|task| task.runs() && task.id != first.id).context("it does not")?;
        next = site.containers()?.get(&other.id).and_then(|pid| begun_ms(*pid));
        next.map(drop).context("its process is not there")
    })?;
    let took = scene.now() - since;
    let ended = ended.join().map_err(|_| anyhow::anyhow!("the watch has panicked"))??;
    let overlap = (ended - next.context("it runs nowhere")?).max(0.0);
    scene.measure("overlap", overlap, "ms", Some(0.0), Some(0.0));
    scene.measure_time("replaced_after", took, 15_000.0, 60_000.0);
    scene.note(&format!("it runs elsewhere after {took:.1?}; both ran for {overlap} ms"));
    let workers = scene.victims.clone();
    scene.restarts(&workers)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_told_from_what_else_is_in_a_log() {
        let log =
            "w.1@n1    | HTTP on port 80\nw.1@n1    | line 1 after 0 ms\nw.1@n1    | line 12 after 1100 ms\n";
        assert_eq!(lines_of(log), [(1, 0), (12, 1100)]);
    }
}
