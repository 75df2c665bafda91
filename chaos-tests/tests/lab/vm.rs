//! Nodes with a kernel of their own. Needs QEMU and a kernel with its modules; skipped without them.

use rswarm_chaos::lab::{Backend, vm};

use super::*;

/// A directory for labs, or `None` where there can be no machines.
fn workplace() -> Option<TempDir> {
    if let Some(why) = vm::missing() {
        eprintln!("skipped: {why}");
        return None;
    }
    super::workplace()
}

fn machines(base: &TempDir, name: &str, nodes: u8) -> Options {
    Options { backend: Backend::Vm { memory_mib: 384 }, ..options(base, name, nodes) }
}

#[test]
fn machines_hear_each_other_and_lose_what_was_not_on_disk() -> Result<()> {
    let Some(base) = workplace() else { return Ok(()) };
    let lab = Lab::up(&machines(&base, "metal", 2))?;
    let (directory, link) = (lab.directory().to_path_buf(), link_of(&lab)?);
    expect_heard(&lab, "n1", "n2")?;
    expect_heard_from_here(&lab, "n2")?;
    ensure!(lab.node("n1").reaches("n2", Duration::from_secs(5))?);
    lab.cut("n1", "n2")?;
    expect_silence(&lab, "n2", "n1")?;
    ensure!(!lab.node("n1").reaches("n2", Duration::from_millis(500))?);
    lab.heal()?;
    lab.link("n1", "n2", Link { delay_us: 300_000, ..Link::default() })?;
    let began = Instant::now();
    expect_heard(&lab, "n1", "n2")?;
    ensure!(began.elapsed() >= Duration::from_millis(300), "{:?}", began.elapsed());
    lab.heal()?;

    let n2 = lab.node("n2");
    ensure!(n2.exec(&["no-such-program"])?.code == 127);
    ensure!(n2.rswarm(&["no-such-verb"])?.code == 1);
    let late = n2.exec_within(&["rswarm", "answer", "7001"], Duration::from_millis(500)).unwrap_err();
    ensure!(late.to_string().contains("did not end"), "{late}");
    // Who asked is gone, and so is the command.
    n2.rswarm(&["keep", "/var/lib/other", "x", "if-free", "7001"])?.ok()?;

    n2.rswarm(&["keep", "/var/lib/kept", "synced"])?.ok()?;
    n2.rswarm(&["keep", "/var/lib/lost", "not synced", "in-memory"])?.ok()?;
    ensure!(n2.rswarm(&["show", "/var/lib/lost"])?.ok()? == "not synced");
    lab.kill("n2")?;
    expect_power(&lab, "n2", Power::Off)?;
    ensure!(!lab.node("n1").reaches("n2", Duration::from_millis(500))?);
    lab.start("n2")?;
    ensure!(n2.rswarm(&["show", "/var/lib/kept"])?.ok()? == "synced");
    ensure!(n2.rswarm(&["show", "/var/lib/lost"])?.code == 1, "it was in memory only");
    expect_heard(&lab, "n1", "n2")?;

    Lab::down(base.path(), "metal")?;
    expect_no_trace(&directory, Some(&link))
}

#[test]
fn a_machine_stands_still_and_is_reset_and_has_a_clock_of_its_own() -> Result<()> {
    let Some(base) = workplace() else { return Ok(()) };
    let lab = Lab::up(&machines(&base, "button", 1))?;
    lab.pause("n1")?;
    expect_power(&lab, "n1", Power::Paused)?;
    let refused = lab.node("n1").exec(&["rswarm"]).unwrap_err().to_string();
    ensure!(refused.contains("paused"), "{refused}");
    lab.resume("n1")?;
    expect_power(&lab, "n1", Power::On)?;
    lab.throttle("n1", Some(5))?;
    lab.throttle("n1", None)?;

    lab.set_clock("n1", 3_600_000)?;
    expect_ahead(&lab, 3_600)?;
    lab.node("n1").rswarm(&["keep", "/run/lost", "x"])?.ok()?;
    // Who speaks with the machine is told that it has gone.
    let address = format!("{}:7001", lab.node("n1").address()?);
    std::thread::scope(|scope| {
        let asked = scope
            .spawn(|| lab.node("n1").exec_within(&["rswarm", "answer", "7001"], Duration::from_secs(60)));
        let answers = || Ok(std::net::TcpStream::connect(&address).is_ok());
        let reset = eventually("the command runs", answers).and_then(|()| lab.reset("n1"));
        let ran = asked.join().unwrap();
        reset.and(ran)
    })
    .and_then(|ran| {
        ensure!(ran.code == 125, "{ran:?}");
        Ok(())
    })?;
    ensure!(lab.status()?.nodes[0].boots == 2);
    ensure!(lab.node("n1").rswarm(&["show", "/run/lost"])?.code == 1, "a new boot has a new /run");
    expect_ahead(&lab, 3_600)?;
    lab.set_clock("n1", 0)?;
    expect_ahead(&lab, 0)
}

#[test]
fn a_machine_that_cannot_boot_leaves_nothing_and_says_what_its_console_showed() -> Result<()> {
    let Some(base) = workplace() else { return Ok(()) };
    let small = Options { backend: Backend::Vm { memory_mib: 8 }, ..options(&base, "small", 1) };
    let refused = Lab::up(&small).unwrap_err().to_string();
    ensure!(refused.contains("256"), "{refused}");
    // A script does what it shall here, and cannot run where there is no shell.
    let program = base.path().join("script");
    fs::write(&program, format!("#!/bin/sh\nexec {PROGRAM} \"$@\"\n"))?;
    fs::set_permissions(&program, std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
    let error = format!("{:#}", Lab::up(&Options { program, ..machines(&base, "broken", 1) }).unwrap_err());
    ensure!(error.contains("n1 did not boot") && error.contains("Kernel panic"), "{error}");
    expect_no_trace(&base.path().join("broken"), None)
}

fn expect_power(lab: &Lab, node: &str, power: Power) -> Result<()> {
    let nodes = lab.status()?.nodes;
    let is = nodes.iter().find(|one| one.name == node).context("there is such a node")?.power;
    ensure!(is == power, "{node} is {is}, not {power}");
    Ok(())
}

/// Whether the machine's clock is so many seconds ahead, give or take what asking takes.
fn expect_ahead(lab: &Lab, seconds: i64) -> Result<()> {
    let theirs: i64 = lab.node("n1").rswarm(&["clock"])?.ok()?.trim().parse()?;
    let ours = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?.as_secs() as i64;
    ensure!((theirs - ours - seconds).abs() <= 10, "{} s ahead", theirs - ours);
    Ok(())
}
