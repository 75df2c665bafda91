//! What is done to a manager's disk: damaged, full, slow.

use std::fs::{self, File};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use rustix::fs::{FallocateFlags, fallocate, fstatvfs};

use super::machines::{LONG, expect_lead};
use super::site::until;
use super::stage::Scene;

/// What is left on a disk that is full, in bytes.
const LEFT: u64 = 64 << 10;

/// Takes what room there is on a leader's disk, and writes until its log wants more.
pub fn disk_full(scene: &mut Scene<'_>) -> Result<()> {
    const WIDE: &str = "drill-wide";
    let leader = scene.victims[0].clone();
    expect_lead(scene, &leader)?;
    let (site, askable, manager) = (scene.site, scene.askable.clone(), scene.manager()?);
    let ballast = site.lab.directory().join(&leader).join("state/ballast");
    site.act(&manager, &["service", "create", "--detach", "--name", WIDE, "--replicas", "0", "rswarm/demo"])?;
    let since = scene.harm(&format!("the disk of {leader}, the leader, is full"));
    fill(&ballast)?;
    // There is always a segment in hand. It is written full, and all of that is taken.
    let wide: Vec<String> = ('A'..='H').map(|name| format!("{name}={}", "x".repeat(100_000))).collect();
    let mut number = 0;
    until("another leads", LONG, || {
        number += 1;
        let number = format!("number={number}");
        let mut words = vec!["service", "update", "--detach", "--label-add", &number];
        words.extend(wide.iter().flat_map(|label| ["--label-add", label]));
        words.push(WIDE);
        // One that is refused on the way from one leader to the next is asked for again.
        let _ = site.act(&manager, &words);
        let now = site.leader(&askable)?;
        ensure!(now != leader, "{leader} still leads after {number}");
        Ok(())
    })?;
    let took = scene.now() - since;
    scene.note(&format!("another leads after {took:.1?}"));
    scene.writable(since, 3_000.0, 15_000.0)?;
    let (told, tells) = (site.ask(&manager, &["status"])?, site.ask(&leader, &["status"])?);
    scene.expect(
        told.contains(&leader) && told.contains("no room"),
        format!("the status of {manager} does not say that {leader} has no room"),
    );
    scene.expect(tells.contains("no room for its log"), format!("{leader} does not say that it has no room"));
    scene.failures(since, 0.0, 1.0);
    scene.restarts(&[])?;

    fs::remove_file(&ballast).with_context(|| format!("cannot remove {}", ballast.display()))?;
    let since = scene.now();
    scene.note("there is room again");
    until(&format!("{leader} takes part again"), LONG, || {
        let status = site.ask(&leader, &["status"])?;
        ensure!(!status.contains("no room"), "it has no room yet");
        Ok(())
    })?;
    site.whole(LONG)?;
    let took = scene.now() - since;
    scene.measure_time("whole_with_room", took, 5_000.0, 30_000.0);
    site.act(&manager, &["service", "rm", WIDE]).map(drop)
}

/// Takes all room of the file system that `ballast` will lie in, but a little.
fn fill(ballast: &Path) -> Result<()> {
    let take = || -> Result<()> {
        let file = File::create(ballast)?;
        let there = fstatvfs(file.as_fd())?;
        ensure!(
            there.f_blocks * there.f_frsize <= 4 << 30,
            "it is on a disk of {} GiB, which is not the lab's to fill: make the lab with --disk 1g",
            (there.f_blocks * there.f_frsize) >> 30
        );
        let room = (there.f_bavail * there.f_frsize).saturating_sub(LEFT);
        Ok(fallocate(file.as_fd(), FallocateFlags::empty(), 0, room)?)
    };
    take().with_context(|| format!("cannot fill the disk by {}", ballast.display()))
}

/// Slows a leader's disk down to a few writes a second.
pub fn disk_slow(scene: &mut Scene<'_>) -> Result<()> {
    const WRITES: u32 = 1;
    let leader = scene.victims[0].clone();
    expect_lead(scene, &leader)?;
    let (site, askable) = (scene.site, scene.askable.clone());
    let since = scene.harm(&format!("the disk of {leader}, the leader, takes {WRITES} write a second"));
    site.lab.throttle(&leader, Some(WRITES))?;
    until("another leads", LONG, || {
        let now = site.leader(&askable)?;
        ensure!(now != leader, "{leader} still leads");
        Ok(())
    })?;
    let took = scene.now() - since;
    scene.measure_time("other_leads_after", took, 3_000.0, 30_000.0);
    scene.note(&format!("another leads after {took:.1?}"));
    scene.writable(since, 3_000.0, 15_000.0)?;
    // A slow follower holds nobody up.
    let since = scene.now();
    scene.flows(20)?;
    scene.write_times(since, 250.0, 2_000.0);
    let now = scene.leader()?;
    scene.expect(now != leader, format!("{leader} leads again although its disk is slow"));
    scene.failures(since, 0.0, 1.0);
    scene.restarts(&[])
}

/// Damages the middle of what a manager that is off has written last.
pub fn disk_corrupt(scene: &mut Scene<'_>) -> Result<()> {
    let node = scene.victims[0].clone();
    let since = scene.harm(&format!("{node} loses power, and the middle of its log is damaged"));
    scene.site.lab.kill(&node)?;
    let state = scene.site.lab.directory().join(&node).join("state");
    let (file, content) = newest_log(&state)?;
    let used = content.iter().rposition(|byte| *byte != 0).context("the log is empty")?;
    let mut damaged = content.clone();
    damaged[used / 2] ^= 0x40;
    fs::write(&file, damaged).with_context(|| format!("cannot write {}", file.display()))?;
    let log = scene.site.lab.node(&node).log();
    let said_before = fs::metadata(&log).map(|data| data.len()).unwrap_or(0) as usize;
    scene.site.lab.start(&node)?;
    // It may refuse, or find that it can do without what is damaged; either way the others go on.
    let site = scene.site;
    let told = until(&format!("{node} tells of the damage in its log"), LONG, || {
        let said = fs::read(&log).with_context(|| format!("cannot read {}", log.display()))?;
        let said = String::from_utf8_lossy(said.get(said_before..).unwrap_or_default()).into_owned();
        ensure!(said.contains("damaged"), "it says nothing of it");
        Ok(())
    });
    if let Err(error) = told {
        scene.expect(false, format!("{error:#}"));
    }
    let mut refuses = false;
    until(&format!("{node} runs or refuses to"), LONG, || {
        let status = site.lab.status()?.nodes.into_iter().find(|one| one.name == node);
        refuses = !status.is_some_and(|one| one.daemon.starts_with("running"));
        if refuses { Ok(()) } else { site.account(&node).map(drop) }
    })?;
    scene.note(&format!("{node} {}", if refuses { "refuses to run" } else { "runs" }));
    let writable = scene.writable(since, 2_000.0, 10_000.0);
    if refuses {
        // The disk is given back as it was: what must be rejoined otherwise is not what this is about.
        scene.site.lab.kill(&node)?;
        fs::write(&file, content).with_context(|| format!("cannot write {}", file.display()))?;
        scene.site.lab.start(&node)?;
    }
    writable?;
    scene.restarts(&[node])
}

/// The segment of the replicated log that was written last, and what is in it.
fn newest_log(state: &Path) -> Result<(PathBuf, Vec<u8>)> {
    let mut found: Vec<(std::time::SystemTime, PathBuf)> = Vec::new();
    let mut open = vec![state.join("raft")];
    while let Some(directory) = open.pop() {
        let entries =
            fs::read_dir(&directory).with_context(|| format!("cannot read {}", directory.display()))?;
        for entry in entries.flatten() {
            let path = entry.path();
            if path.is_dir() {
                open.push(path);
            } else if path.extension().is_some_and(|extension| extension == "wal") {
                found.push((entry.metadata()?.modified()?, path));
            }
        }
    }
    found.sort();
    for (_, path) in found.into_iter().rev() {
        let content = fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
        // Segments are made before they are needed.
        if content.iter().skip(4096).any(|byte| *byte != 0) {
            return Ok((path, content));
        }
    }
    anyhow::bail!("there is no log in {}: the fault was not injected", state.display())
}
