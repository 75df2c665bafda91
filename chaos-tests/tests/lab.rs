//! The lab under test, with a stand-in for the daemon that answers over TCP.

#[path = "lab/vm.rs"]
mod vm;

use std::{
    collections::BTreeSet,
    fs,
    io::{BufRead, BufReader},
    path::Path,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use rswarm_chaos::lab::{Capacity, Lab, Link, Options, Power};
use tempfile::TempDir;

const PROGRAM: &str = env!("CARGO_BIN_EXE_lab-stand-in");
const PORT: &str = "7000";

#[test]
fn nodes_hear_each_other_and_a_partition_cuts_them() -> Result<()> {
    let Some(base) = workplace() else { return Ok(()) };
    let lab = Lab::up(&options(&base, "hear", 3))?;
    for from in ["n1", "n2", "n3"] {
        for to in ["n1", "n2", "n3"] {
            expect_heard(&lab, from, to)?;
        }
    }
    lab.partition(&[vec!["n1".into(), "n2".into()], vec!["n3".into()]])?;
    expect_heard(&lab, "n1", "n2")?;
    expect_silence(&lab, "n1", "n3")?;
    expect_silence(&lab, "n3", "n2")?;
    expect_heard_from_here(&lab, "n3")?;

    lab.partition(&[vec!["n1".into()]])?;
    expect_heard(&lab, "n2", "n3")?;
    expect_silence(&lab, "n1", "n2")?;

    lab.heal()?;
    for (from, to) in [("n1", "n3"), ("n3", "n2"), ("n2", "n1")] {
        expect_heard(&lab, from, to)?;
    }
    Ok(())
}

#[test]
fn a_link_is_cut_in_one_direction() -> Result<()> {
    let Some(base) = workplace() else { return Ok(()) };
    let lab = Lab::up(&options(&base, "oneway", 2))?;
    lab.cut("n1", "n2")?;
    // A connection needs both directions, whoever begins it.
    expect_silence(&lab, "n1", "n2")?;
    expect_silence(&lab, "n2", "n1")?;
    let status = lab.status()?;
    ensure!(status.cuts.len() == 1 && status.cuts[0].from == "n1", "{:?}", status.cuts);
    lab.heal()?;
    expect_heard(&lab, "n1", "n2")
}

#[test]
fn a_link_is_made_late_and_lossy_and_whole_again() -> Result<()> {
    let Some(base) = workplace() else { return Ok(()) };
    let lab = Lab::up(&options(&base, "worse", 3))?;
    expect_heard(&lab, "n1", "n2")?;
    lab.link("n1", "n2", Link { delay_us: 300_000, ..Link::default() })?;
    let began = Instant::now();
    expect_heard(&lab, "n1", "n2")?;
    // Both the request for a connection and the acknowledgement of the answer come late.
    ensure!(began.elapsed() >= Duration::from_millis(300), "{:?}", began.elapsed());
    let status = lab.status()?;
    ensure!(status.links.len() == 1 && status.links[0].to == "n2", "{:?}", status.links);
    expect_heard(&lab, "n1", "n3")?;

    // What passes less can still be cut, and a cut link be joined as it was.
    lab.cut("n1", "n2")?;
    expect_silence(&lab, "n1", "n2")?;
    lab.links(&[("n1".into(), "n2".into())], Link { loss: 10_000, ..Link::default() })?;
    expect_silence(&lab, "n2", "n1")?;
    let carried = lab.carried()?;
    ensure!(carried.given > 0 && carried.given == carried.taken, "what was late came: {carried:?}");
    let refused = lab.link("n1", "n1", Link { loss: 1, ..Link::default() }).unwrap_err().to_string();
    ensure!(refused.contains("no link to itself"), "{refused}");

    lab.heal()?;
    ensure!(lab.status()?.links.is_empty());
    expect_heard(&lab, "n1", "n2")?;
    // Lost, twice, out of order and slow, both ways: TCP gets through.
    let half = Link { loss: 2_000, duplicate: 2_000, jitter_us: 2_000, rate: 10_000_000, ..Link::default() };
    lab.links(&[("n1".into(), "n2".into()), ("n2".into(), "n1".into())], half)?;
    expect_heard(&lab, "n1", "n2")
}

#[test]
fn power_off_leaves_nothing_but_the_disk() -> Result<()> {
    let Some(base) = workplace() else { return Ok(()) };
    let lab = Lab::up(&options(&base, "power", 2))?;
    let state = lab.directory().join("n2/state");
    lab.node("n2")
        .exec(&["sh", "-c", &format!("echo kept > {}/kept; setsid sleep 1000 &", state.display())])?
        .ok()?;
    lab.node("n2").exec(&["sh", "-c", "echo lost > /run/lost"])?.ok()?;
    let before = processes_in(&lab, "n2");
    ensure!(before.len() >= 3, "init, daemon and sleep should run: {before:?}");

    let began = Instant::now();
    lab.kill("n2")?;
    let took = began.elapsed();
    ensure!(before.iter().all(|pid| !alive(*pid)), "all of {before:?} should be gone");
    ensure!(took < Duration::from_secs(5), "power off took {took:?}");
    expect_silence(&lab, "n1", "n2")?;
    let refused = lab.node("n2").exec(&["true"]).unwrap_err().to_string();
    ensure!(refused.contains("n2 is off"), "{refused}");
    ensure!(lab.status()?.nodes[1].power == Power::Off);

    lab.start("n2")?;
    expect_heard(&lab, "n1", "n2")?;
    ensure!(fs::read_to_string(state.join("kept"))? == "kept\n");
    ensure!(lab.node("n2").exec(&["cat", "/run/lost"])?.code != 0, "a new boot has a new /run");
    ensure!(lab.status()?.nodes[1].boots == 2);
    Ok(())
}

#[test]
fn a_cut_outlives_a_power_cycle() -> Result<()> {
    let Some(base) = workplace() else { return Ok(()) };
    let lab = Lab::up(&options(&base, "cycle", 3))?;
    lab.partition(&[vec!["n2".into()]])?;
    lab.kill("n2")?;
    lab.kill("n3")?;
    lab.start("n2")?;
    lab.start("n3")?;
    expect_silence(&lab, "n1", "n2")?;
    expect_heard(&lab, "n1", "n3")?;
    lab.heal()?;
    expect_heard(&lab, "n1", "n2")
}

#[test]
fn a_paused_node_does_not_answer() -> Result<()> {
    let Some(base) = workplace() else { return Ok(()) };
    let lab = Lab::up(&options(&base, "pause", 2))?;
    lab.pause("n2")?;
    ensure!(lab.status()?.nodes[1].power == Power::Paused);
    expect_silence(&lab, "n1", "n2")?;
    let refused = lab.node("n2").exec(&["true"]).unwrap_err().to_string();
    ensure!(refused.contains("paused"), "{refused}");

    lab.resume("n2")?;
    expect_heard(&lab, "n1", "n2")?;
    // A frozen machine can lose its power, too.
    lab.pause("n2")?;
    lab.kill("n2")?;
    lab.start("n2")?;
    expect_heard(&lab, "n1", "n2")
}

#[test]
fn a_daemon_dies_alone() -> Result<()> {
    let Some(base) = workplace() else { return Ok(()) };
    let lab = Lab::up(&options(&base, "daemon", 2))?;
    lab.node("n2").exec(&["sh", "-c", "setsid sleep 1000 > /dev/null 2>&1 & echo $! > /run/pid"])?.ok()?;
    lab.daemon_kill("n2")?;
    ensure!(lab.status()?.nodes[1].daemon == "killed by SIGKILL", "{:?}", lab.status()?.nodes[1]);
    lab.node("n2").exec(&["sh", "-c", "kill -0 $(cat /run/pid)"])?.ok()?;
    expect_silence(&lab, "n1", "n2")?;

    lab.daemon_start("n2")?;
    expect_heard(&lab, "n1", "n2")?;
    let again = lab.daemon_start("n2").unwrap_err().to_string();
    ensure!(again.contains("runs already"), "{again}");
    Ok(())
}

#[test]
fn a_command_in_a_node_sees_a_machine() -> Result<()> {
    let Some(base) = workplace() else { return Ok(()) };
    let lab = Lab::up(&options(&base, "exec", 2))?;
    let n2 = lab.node("n2");
    ensure!(n2.exec(&["uname", "-n"])?.ok()? == "n2\n");
    ensure!(n2.exec(&["cat", "/etc/hostname"])?.ok()? == "n2\n");
    ensure!(n2.exec(&["sh", "-c", "echo $RSWARM_SOCKET"])?.ok()? == "/run/rswarm/rswarm.sock\n");
    ensure!(
        n2.exec(&["sh", "-c", "readlink /proc/1/exe; command -v rswarm"])?
            .ok()?
            .ends_with("/run/lab/bin/rswarm\n")
    );
    ensure!(n2.exec(&["ls", "/sys/class/net"])?.ok()? == "eth0\nlo\n");
    ensure!(n2.rswarm(&["nonsense"])?.code == 1);
    ensure!(n2.exec(&["sh", "-c", "exit 7"])?.code == 7);
    ensure!(n2.exec(&["sh", "-c", "kill -9 $$"])?.code == 137);
    ensure!(n2.exec(&["no-such-program"])?.code == 127);

    let began = Instant::now();
    let late = n2.exec_within(&["sleep", "1000"], Duration::from_millis(300)).unwrap_err().to_string();
    ensure!(late.contains("did not end") && began.elapsed() < Duration::from_secs(10), "{late}");
    eventually("the late command is gone", || {
        Ok(!n2.exec(&["sh", "-c", "cat /proc/[0-9]*/cmdline"])?.stdout.contains("sleep\x001000"))
    })
}

#[test]
fn two_labs_live_side_by_side() -> Result<()> {
    let Some(base) = workplace() else { return Ok(()) };
    let one = Lab::up(&options(&base, "one", 2))?;
    let two = Lab::up(&options(&base, "two", 2))?;
    ensure!(Lab::list(base.path())? == ["one", "two"]);
    ensure!(one.node("n1").address()? != two.node("n1").address()?);
    let again = Lab::up(&options(&base, "one", 2)).unwrap_err().to_string();
    ensure!(again.contains("already"), "{again}");

    drop(one);
    expect_heard(&two, "n1", "n2")?;
    expect_heard_from_here(&two, "n2")?;
    ensure!(Lab::list(base.path())? == ["two"]);
    Ok(())
}

#[test]
fn down_leaves_nothing() -> Result<()> {
    let Some(base) = workplace() else { return Ok(()) };
    let mut lab = Lab::up(&options(&base, "down", 2))?;
    lab.keep();
    let (directory, link) = (lab.directory().to_path_buf(), link_of(&lab)?);
    lab.node("n1")
        .exec(&["sh", "-c", "mkdir /run/m; mount -t tmpfs none /run/m; setsid sleep 1000 &"])?
        .ok()?;
    lab.pause("n2")?;
    drop(lab);
    let traces = traces_of(&directory, Some(&link));
    ensure!(traces.len() > 4, "a lab that is up leaves traces: {traces:?}");

    ensure!(Lab::down(base.path(), "down")?);
    expect_no_trace(&directory, Some(&link))?;
    ensure!(!Lab::down(base.path(), "down")?, "a second time there is nothing to remove");
    Ok(())
}

#[test]
fn a_node_has_a_clock_and_a_capacity_of_its_own() -> Result<()> {
    let Some(base) = workplace() else { return Ok(()) };
    let capacities = vec![(None, Capacity { nano_cpus: 1_500_000_000, memory: 1024 })];
    let lab = Lab::up(&Options { capacities, ..options(&base, "clock", 2) })?;
    let says = |node: &str| lab.node(node).exec(&["sh", "-c", "cat $RSWARM_LAB_CLOCK"])?.ok();
    ensure!(says("n1")?.is_empty(), "it begins right");
    // Commands find it in a node; a daemon finds its capacity, too.
    let daemon = lab.processes_of("n1")?.into_iter().nth(1).context("n1 has a daemon")?;
    let environment = fs::read(format!("/proc/{daemon}/environ"))?;
    ensure!(String::from_utf8_lossy(&environment).contains("RSWARM_LAB_CAPACITY=1500000000 1024"));
    lab.set_clock("n1", -2_700_000)?;
    ensure!(says("n1")?.trim() == "-2700000" && says("n2")?.is_empty());
    lab.kill("n1")?;
    lab.start("n1")?;
    ensure!(lab.status()?.nodes.iter().map(|node| node.clock_ms).eq([-2_700_000, 0]), "it stays so");
    lab.set_clock("n1", 0)?;
    ensure!(lab.status()?.nodes[0].clock_ms == 0 && says("n1")?.trim() == "0");
    Ok(())
}

#[test]
fn a_disk_of_its_own_is_small_outlives_a_power_cycle_and_goes_with_the_lab() -> Result<()> {
    let Some(base) = workplace() else { return Ok(()) };
    let disks = vec![(Some("n1".to_string()), 300 << 20)];
    let lab = Lab::up(&Options { disks, ..options(&base, "disk", 2) })?;
    let (directory, link) = (lab.directory().to_path_buf(), link_of(&lab)?);
    let size = |node: &str| -> Result<u64> {
        let there = nix::sys::statvfs::statvfs(&directory.join(node).join("state"))?;
        Ok(there.blocks() * there.fragment_size())
    };
    ensure!(size("n1")? == 300 << 20 && size("n2")? > 1 << 30, "{} {}", size("n1")?, size("n2")?);
    let kept = directory.join("n1/state/kept");
    lab.node("n1").exec(&["sh", "-c", &format!("echo kept > {}", kept.display())])?.ok()?;
    lab.kill("n1")?;
    lab.start("n1")?;
    ensure!(lab.node("n1").exec(&["cat", &kept.display().to_string()])?.ok()? == "kept\n");
    ensure!(lab.node("n2").exec(&["cat", &kept.display().to_string()])?.code != 0, "it is n1's alone");
    ensure!(Lab::down(base.path(), lab.name())?);
    expect_no_trace(&directory, Some(&link))?;
    let mounts = fs::read_to_string("/proc/self/mountinfo")?;
    ensure!(!mounts.contains(&*directory.to_string_lossy()), "{mounts}");
    let refused =
        Lab::up(&Options { disks: vec![(None, 1 << 20)], ..options(&base, "tiny", 1) }).unwrap_err();
    ensure!(refused.to_string().contains("cannot begin on a disk of 1 MiB"), "{refused}");
    Ok(())
}

#[test]
fn a_slow_disk_takes_so_many_writes_a_second() -> Result<()> {
    let Some(base) = workplace() else { return Ok(()) };
    let lab = Lab::up(&options(&base, "slow", 1))?;
    if let Err(why) = lab.throttle("n1", Some(3)) {
        eprintln!("skipped: {why:#}");
        return Ok(());
    }
    let file = lab.directory().join("n1/state/file");
    let write = |count: u32| -> Result<Duration> {
        let words = format!("dd if=/dev/zero of={} bs=4k count={count} oflag=dsync 2>&1", file.display());
        let began = Instant::now();
        lab.node("n1").exec(&["sh", "-c", &words])?.ok()?;
        Ok(began.elapsed())
    };
    let took = write(8)?;
    ensure!(took >= Duration::from_millis(2_200), "eight writes at three a second took {took:?}");
    lab.throttle("n1", None)?;
    let took = write(8)?;
    ensure!(took < Duration::from_millis(2_200), "as fast as it can: {took:?}");
    Ok(())
}

#[test]
fn a_lab_gets_more_nodes_and_fewer() -> Result<()> {
    let Some(base) = workplace() else { return Ok(()) };
    let mut form = options(&base, "grows", 2);
    form.daemon_command = None;
    let lab = Lab::up(&form)?;
    ensure!(lab.grow(3)? == ["n3", "n4", "n5"]);
    ensure!(lab.node("n1").reaches("n2", Duration::from_secs(5))?, "it refuses, and so is heard");
    ensure!(lab.node("n1").reaches("n5", Duration::from_secs(5))?);
    lab.cut("n5", "n1")?;
    ensure!(!lab.node("n1").reaches("n5", Duration::from_millis(300))?);
    lab.join_at_once(&["n3", "n4"])?;
    eventually("they have joined", || {
        Ok(fs::read_to_string(lab.node("n4").log())?.contains("token-of-a-worker"))
    })?;
    lab.shrink(&["n4".into(), "n5".into()])?;
    ensure!(lab.names()? == ["n1", "n2", "n3"] && lab.status()?.cuts.is_empty());
    ensure!(!lab.directory().join("n5").exists());
    Ok(())
}

#[test]
fn a_lab_holds_nothing_open_of_whoever_made_it() -> Result<()> {
    let Some(base) = workplace() else { return Ok(()) };
    let held = base.path().join("held");
    let script = format!("exec 9>{}; exec {PROGRAM} lab-up {} holds", held.display(), base.path().display());
    ensure!(Command::new("sh").args(["-c", &script]).stdout(Stdio::null()).status()?.success());
    let lab = Lab::open(base.path(), "holds")?;
    let open = |pid: i32| {
        let files = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
        files.filter_map(|file| fs::read_link(file.path()).ok()).any(|file| file == held)
    };
    let holds: Vec<i32> = pids().filter(|pid| open(*pid)).collect();
    ensure!(Lab::down(base.path(), lab.name())?);
    ensure!(holds.is_empty(), "{holds:?} have it open");
    Ok(())
}

#[test]
fn an_interrupted_lab_is_removed() -> Result<()> {
    let Some(base) = workplace() else { return Ok(()) };
    for steps in 0..4 {
        let interrupted = std::sync::atomic::AtomicBool::new(false);
        let mut seen = 0;
        let result = Lab::up_with(
            &options(&base, "torn", 4),
            &mut |_, _| {
                seen += 1;
                interrupted.store(seen > steps, std::sync::atomic::Ordering::Relaxed);
            },
            &interrupted,
        );
        ensure!(result.unwrap_err().to_string() == "interrupted");
        expect_no_trace(&base.path().join("torn"), None)?;
    }
    Ok(())
}

#[test]
fn a_lab_whose_maker_was_killed_is_removed() -> Result<()> {
    let Some(base) = workplace() else { return Ok(()) };
    for steps in [1, 3, 7] {
        let mut maker = Command::new(PROGRAM)
            .arg("lab-up")
            .arg(base.path())
            .arg("killed")
            .stdout(Stdio::piped())
            .spawn()?;
        let said = BufReader::new(maker.stdout.take().context("its output is piped")?);
        ensure!(said.lines().take(steps).count() == steps, "the maker ended early");
        maker.kill()?;
        maker.wait()?;
        ensure!(Lab::down(base.path(), "killed")?);
        expect_no_trace(&base.path().join("killed"), None)?;
    }
    Ok(())
}

#[test]
fn what_a_crash_left_is_found_without_the_record() -> Result<()> {
    let Some(base) = workplace() else { return Ok(()) };
    let mut lab = Lab::up(&options(&base, "crashed", 2))?;
    lab.keep();
    let link = link_of(&lab)?;
    fs::write(lab.directory().join("lab.json"), "{ torn")?;
    ensure!(Lab::down(base.path(), "crashed")?);
    expect_no_trace(lab.directory(), Some(&link))
}

#[test]
fn a_lab_that_lost_its_switch_starts_again() -> Result<()> {
    let Some(base) = workplace() else { return Ok(()) };
    let lab = Lab::up(&options(&base, "reboot", 2))?;
    let address = lab.node("n1").address()?;
    // What a reboot of the whole machine leaves: files, and a record of processes that are gone.
    let words = [b"lab-switch".as_slice(), b"lab-init"];
    let directory = lab.directory().as_os_str().as_encoded_bytes().to_vec();
    let mine = |pid: &i32| {
        let line = command_line(*pid);
        let mut line = line.split(|byte| *byte == 0).skip(1);
        line.next().is_some_and(|word| words.contains(&word)) && line.next() == Some(&directory)
    };
    let running: Vec<i32> = pids().filter(mine).collect();
    for pid in &running {
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(*pid), nix::sys::signal::Signal::SIGKILL)?;
    }
    // By number: a process that is ending has no command line for a while before it has ended.
    eventually("nothing runs", || Ok(!running.iter().copied().any(alive)))?;
    ensure!(!lab.status()?.switch && lab.status()?.nodes.iter().all(|node| node.power == Power::Off));
    ensure!(format!("{:#}", lab.heal().unwrap_err()).contains("switch"));

    lab.start("n1")?;
    lab.start("n2")?;
    ensure!(lab.node("n1").address()? == address, "a node keeps its address");
    expect_heard(&lab, "n2", "n1")?;
    expect_heard_from_here(&lab, "n2")
}

#[test]
fn a_cluster_is_formed_by_the_commands_a_user_would_type() -> Result<()> {
    let Some(base) = workplace() else { return Ok(()) };
    let lab = Lab::up(&Options { daemon_command: None, managers: 2, ..options(&base, "form", 3) })?;
    let n1 = lab.node("n1").address()?;
    let asked = |node: &str| -> Result<Vec<String>> {
        let log = fs::read_to_string(lab.node(node).log())?;
        Ok(log.lines().skip(1).map(String::from).collect())
    };
    let joined = |role: &str| format!("join --token token-of-a-{role} {n1}:2377");
    eventually("the commands are noted", || {
        Ok(asked("n1")?
            == [&format!("init --advertise-addr {n1}"), "join-token manager -q", "join-token worker -q"]
            && asked("n2")? == [joined("manager")]
            && asked("n3")? == [joined("worker")])
    })?;
    let daemon = fs::read_to_string(lab.node("n3").log())?;
    let state =
        format!("daemon --state-dir {}/n3/state --socket /run/rswarm/rswarm.sock", lab.directory().display());
    ensure!(daemon.starts_with(&state), "{daemon}");
    ensure!(daemon.contains(" --cgroup-parent /rswarm-lab/form-"), "{daemon}");

    let url = lab.demo(&mut |_, _| (), &std::sync::atomic::AtomicBool::new(false))?;
    ensure!(url == format!("http://{n1}:8080"));
    eventually("the service is noted", || {
        let create = "service create --name web --replicas 3 --publish 8080:80 rswarm/demo";
        Ok(asked("n1")?.last().map(String::as_str) == Some(create))
    })
}

#[test]
fn the_last_words_of_a_daemon_are_kept() -> Result<()> {
    let Some(base) = workplace() else { return Ok(()) };
    let mut options = options(&base, "dies", 2);
    options.daemon_command = Some(["sh", "-c", "echo no room at the inn; exit 3"].map(String::from).into());
    let lab = Lab::up(&options)?;
    eventually("the daemon has ended", || Ok(lab.status()?.nodes[1].daemon == "exited 3"))?;
    ensure!(fs::read_to_string(lab.node("n2").log())? == "no room at the inn\n");
    Ok(())
}

#[test]
fn a_node_that_cannot_boot_says_why() -> Result<()> {
    let Some(base) = workplace() else { return Ok(()) };
    let mut options = options(&base, "broken", 1);
    options.daemon_command = Some(vec!["/no/such/daemon".into()]);
    let error = format!("{:#}", Lab::up(&options).unwrap_err());
    ensure!(error.contains("n1") && error.contains("/no/such/daemon"), "{error}");
    expect_no_trace(&base.path().join("broken"), None)
}

#[test]
fn impossible_labs_are_refused() -> Result<()> {
    let Some(base) = workplace() else { return Ok(()) };
    let good = options(&base, "fine", 3);
    for (bad, why) in [
        (Options { name: "../x".into(), ..good.clone() }, "cannot name a lab"),
        (Options { nodes: 0, ..good.clone() }, "1 to 200 nodes"),
        (Options { managers: 4, ..good.clone() }, "1 to 3 can be managers"),
        (Options { base: "/run/labs".into(), ..good.clone() }, "cannot lie in"),
        (Options { program: "/no/such/rswarm".into(), ..good.clone() }, "/no/such/rswarm"),
    ] {
        let error = format!("{:#}", Lab::up(&bad).unwrap_err());
        ensure!(error.contains(why), "{error}");
    }
    expect_no_trace(&base.path().join("fine"), None)
}

/// A directory for labs, or `None` where there can be none.
fn workplace() -> Option<TempDir> {
    if let Err(error) = rswarm_chaos::lab::require_root() {
        eprintln!("skipped: {error}");
        return None;
    }
    Some(tempfile::Builder::new().prefix("rswarm-lab-").tempdir().unwrap())
}

fn options(base: &TempDir, name: &str, nodes: u8) -> Options {
    Options {
        name: name.into(),
        nodes,
        managers: 1,
        base: base.path().into(),
        daemon_command: Some(["rswarm", "answer", PORT].map(String::from).into()),
        ..Options::new(PROGRAM)
    }
}

/// The daemon takes a moment to listen, and a healed wire a moment to be asked again.
fn expect_heard(lab: &Lab, from: &str, to: &str) -> Result<()> {
    let address = format!("{}:{PORT}", lab.node(to).address()?);
    eventually(&format!("{from} hears {to}"), || {
        Ok(lab.node(from).rswarm(&["ask", &address])?.stdout == format!("{to}\n"))
    })
}

fn expect_silence(lab: &Lab, from: &str, to: &str) -> Result<()> {
    let address = format!("{}:{PORT}", lab.node(to).address()?);
    let ran = lab.node(from).rswarm(&["ask", &address])?;
    ensure!(ran.code == 1 && ran.stdout.is_empty(), "{from} should not hear {to}: {ran:?}");
    Ok(())
}

fn expect_heard_from_here(lab: &Lab, to: &str) -> Result<()> {
    let address = format!("{}:{PORT}", lab.node(to).address()?);
    eventually(&format!("this machine hears {to}"), || {
        let out = Command::new(PROGRAM).args(["ask", &address]).output()?;
        Ok(out.stdout == format!("{to}\n").as_bytes())
    })
}

fn eventually(what: &str, mut condition: impl FnMut() -> Result<bool>) -> Result<()> {
    let end = Instant::now() + Duration::from_secs(20);
    while !condition()? {
        ensure!(Instant::now() < end, "waited in vain until {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}

fn processes_in(lab: &Lab, node: &str) -> Vec<i32> {
    let init = [b"lab-init".as_slice(), lab.directory().as_os_str().as_encoded_bytes(), node.as_bytes()];
    let init = pids().find(|pid| command_line(*pid).split(|b| *b == 0).skip(1).take(3).eq(init));
    let namespace = init.and_then(|pid| fs::read_link(format!("/proc/{pid}/ns/pid")).ok());
    pids().filter(|pid| fs::read_link(format!("/proc/{pid}/ns/pid")).ok() == namespace).collect()
}

fn pids() -> impl Iterator<Item = i32> {
    fs::read_dir("/proc").unwrap().filter_map(|entry| entry.unwrap().file_name().to_str()?.parse().ok())
}

fn command_line(pid: i32) -> Vec<u8> {
    fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default()
}

fn alive(pid: i32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z "))
}

/// The number of this machine's end of the cable to the lab, which no later link will have.
fn link_of(lab: &Lab) -> Result<String> {
    let name = lab.status()?.link.context("a lab that is up has a link")?;
    Ok(fs::read_to_string(format!("/sys/class/net/{name}/ifindex"))?)
}

/// Whatever on this machine has to do with the lab in `directory` and, if given, its link.
fn traces_of(directory: &Path, link: Option<&str>) -> BTreeSet<String> {
    let mut traces = BTreeSet::new();
    let text = directory.to_str().unwrap();
    for pid in pids().filter(|pid| alive(*pid)) {
        let line = String::from_utf8_lossy(&command_line(pid)).replace('\0', " ");
        if line.contains(text) {
            traces.insert(format!("process {pid}: {line}"));
        }
        // Another namespace's mounts count as well: they would keep a disk busy.
        let mounts = fs::read_to_string(format!("/proc/{pid}/mountinfo")).unwrap_or_default();
        traces.extend(
            mounts.lines().filter(|line| line.contains(text)).map(|line| format!("mount in {pid}: {line}")),
        );
    }
    let name = directory.file_name().unwrap().to_str().unwrap();
    for hierarchy in fs::read_dir("/sys/fs/cgroup").unwrap().flatten() {
        for group in fs::read_dir(hierarchy.path().join("rswarm-lab")).into_iter().flatten().flatten() {
            if group.file_name().to_str().unwrap().starts_with(&format!("{name}-")) {
                traces.insert(format!("control group {}", group.path().display()));
            }
        }
    }
    for entry in fs::read_dir("/sys/class/net").unwrap().flatten() {
        let number = fs::read_to_string(entry.path().join("ifindex")).ok();
        if number.is_some() && number.as_deref() == link {
            traces.insert(format!("link {}", entry.path().display()));
        }
    }
    if directory.exists() {
        traces.insert(format!("directory {text}"));
    }
    traces
}

fn expect_no_trace(directory: &Path, link: Option<&str>) -> Result<()> {
    let traces = traces_of(directory, link);
    ensure!(traces.is_empty(), "left behind: {traces:#?}");
    Ok(())
}
