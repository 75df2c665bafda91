//! Labs of an ordinary user, made and broken by the real binary with its privileges dropped.
//!
//! Run by root, these tests become another user for the commands; run by that user, they stay what they are.

use std::{
    fs,
    io::{Read, Write},
    net::TcpStream,
    os::unix::{fs::PermissionsExt, process::CommandExt},
    path::PathBuf,
    process::{Command, Output, Stdio},
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use nix::{
    sched::{CloneFlags, unshare},
    unistd::{Gid, Uid, geteuid, setgroups, setresgid, setresuid},
};
use tempfile::TempDir;

/// One test at a time: a program that is being copied while another test forks cannot be run.
static TURN: Mutex<()> = Mutex::new(());

/// A user that owns nothing.
const NOBODY: u32 = 65_534;

/// Room of an ordinary user: the program, and a directory for labs.
struct User {
    directory: TempDir,
}

impl User {
    fn new() -> Result<Self> {
        let directory = tempfile::Builder::new().prefix("rswarm-rootless").tempdir_in("/var/tmp")?;
        fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755))?;
        fs::copy(env!("CARGO_BIN_EXE_rswarm"), directory.path().join("rswarm"))?;
        fs::create_dir(directory.path().join("home"))?;
        if geteuid().is_root() {
            std::os::unix::fs::chown(directory.path().join("home"), Some(NOBODY), Some(NOBODY))?;
        }
        Ok(Self { directory })
    }

    fn labs(&self) -> PathBuf {
        self.directory.path().join("home/labs")
    }

    /// A command of this user, with what `first` does still done as whoever runs the test.
    fn command(
        &self,
        words: &[&str],
        first: impl Fn() -> std::io::Result<()> + Send + Sync + 'static,
    ) -> Command {
        let mut command = Command::new(self.directory.path().join("rswarm"));
        command.args(words).env("RSWARM_LAB_DIR", self.labs()).env_remove("HOME").current_dir("/");
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let root = geteuid().is_root();
        // SAFETY: the closure makes system calls only.
        unsafe {
            command.pre_exec(move || {
                first()?;
                if root && geteuid().is_root() {
                    setgroups(&[])?;
                    setresgid(Gid::from_raw(NOBODY), Gid::from_raw(NOBODY), Gid::from_raw(NOBODY))?;
                    setresuid(Uid::from_raw(NOBODY), Uid::from_raw(NOBODY), Uid::from_raw(NOBODY))?;
                }
                Ok(())
            });
        }
        command
    }

    fn run(&self, words: &[&str]) -> Result<Output> {
        self.command(words, || Ok(())).output().with_context(|| format!("cannot run {words:?}"))
    }

    fn ok(&self, words: &[&str]) -> Result<String> {
        let output = self.run(words)?;
        let (said, cried) = (text(&output.stdout), text(&output.stderr));
        ensure!(output.status.success(), "{words:?} ended with {}: {said}\n{cried}", output.status);
        Ok(said)
    }

    /// Processes that have anything to do with this user's directory.
    fn processes(&self) -> Vec<String> {
        let place = self.directory.path().to_string_lossy().into_owned();
        let lines = fs::read_dir("/proc").into_iter().flatten().flatten().filter_map(|entry| {
            entry.file_name().to_str()?.parse::<u32>().ok()?;
            let line = fs::read(entry.path().join("cmdline")).ok()?;
            Some(String::from_utf8_lossy(&line).replace('\0', " "))
        });
        lines.filter(|line| line.contains(&place)).collect()
    }
}

impl Drop for User {
    fn drop(&mut self) {
        for name in ["mine", "short"] {
            if self.labs().join(name).is_dir() {
                let _ = self.run(&["lab", "down", "--name", name]);
            }
        }
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Whether ordinary users may have user namespaces on this machine.
fn allowed() -> bool {
    let mut command = Command::new("/proc/self/exe");
    command.arg("--list").stdout(Stdio::null());
    let root = geteuid().is_root();
    // SAFETY: the closure makes system calls only.
    unsafe {
        command.pre_exec(move || {
            if root {
                setresuid(Uid::from_raw(NOBODY), Uid::from_raw(NOBODY), Uid::from_raw(NOBODY))?;
            }
            unshare(CloneFlags::CLONE_NEWUSER)?;
            Ok(unshare(CloneFlags::CLONE_NEWNET)?)
        });
    }
    let spawned = command.spawn().map(|mut child| child.wait());
    if let Err(why) = &spawned {
        eprintln!("skipped: this machine gives ordinary users no user namespaces: {why}");
    }
    spawned.is_ok()
}

fn get(url: &str) -> Result<String> {
    let address = url.trim_start_matches("http://");
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    write!(stream, "GET / HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

fn eventually(what: &str, mut holds: impl FnMut() -> Result<bool>) -> Result<()> {
    let end = Instant::now() + Duration::from_secs(30);
    while !holds()? {
        ensure!(Instant::now() < end, "waited in vain until {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

#[test]
fn an_ordinary_user_has_a_lab_that_answers_on_this_machine() -> Result<()> {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    if !allowed() {
        return Ok(());
    }
    let user = User::new()?;
    let told = user.ok(&["lab", "up", "--demo", "--nodes", "2", "--managers", "1", "--name", "mine"])?;
    ensure!(told.contains("Without root, this is missing here:"), "{told}");
    let url = told.split_whitespace().find(|word| word.starts_with("http://127.0.0.1:"));
    let url = url.with_context(|| format!("no address was named: {told}"))?;
    let answer = get(url)?;
    ensure!(answer.starts_with("HTTP/1.1 200") && answer.contains("service: web"), "{answer}");

    let other_shell = |words: &[&str]| user.ok(&[&["lab"], words].concat());
    ensure!(other_shell(&["ls"])?.contains("whole"), "it is listed");
    let told = other_shell(&["exec", "--name", "mine", "n2", "--", "rswarm", "status"])?;
    ensure!(told.contains("This node   n2"), "{told}");

    other_shell(&["pause", "--name", "mine", "n2"])?;
    let status = || other_shell(&["status", "--name", "mine"]);
    ensure!(status()?.contains("paused"), "{}", status()?);
    other_shell(&["resume", "--name", "mine", "n2"])?;
    ensure!(!status()?.contains("paused"), "{}", status()?);

    other_shell(&["kill", "--name", "mine", "n2"])?;
    ensure!(status()?.contains(" off "), "{}", status()?);
    ensure!(get(url)?.contains("node: n1"), "what is left answers at the same address");
    other_shell(&["start", "--name", "mine", "n2"])?;
    eventually("the node is back", || {
        let nodes = other_shell(&[
            "exec",
            "--name",
            "mine",
            "n1",
            "--",
            "rswarm",
            "node",
            "ls",
            "--format",
            "{{.Status}}",
        ])?;
        Ok(nodes.lines().filter(|line| line.contains("Ready")).count() == 2)
    })?;

    other_shell(&["down", "--name", "mine"])?;
    ensure!(!user.labs().exists(), "the directory of labs is gone");
    ensure!(user.processes().is_empty(), "left: {:?}", user.processes());
    ensure!(get(url).is_err(), "nothing answers any more");
    Ok(())
}

#[test]
fn a_lab_outlives_a_reader_that_has_seen_enough() -> Result<()> {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    if !allowed() {
        return Ok(());
    }
    let user = User::new()?;
    let mut child = user.command(&["lab", "up", "--nodes", "1", "--name", "short"], || Ok(())).spawn()?;
    drop(child.stdout.take());
    let mut cried = String::new();
    child.stderr.take().context("its errors are piped")?.read_to_string(&mut cried)?;
    ensure!(child.wait()?.success(), "{cried}");
    ensure!(user.ok(&["lab", "status", "--name", "short"])?.contains("running"), "it is there");
    user.ok(&["lab", "down", "--name", "short"])?;
    ensure!(user.processes().is_empty(), "left: {:?}", user.processes());
    Ok(())
}

#[test]
fn a_machine_that_forbids_user_namespaces_is_told_how_to_allow_them() -> Result<()> {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    if !allowed() {
        return Ok(());
    }
    let user = User::new()?;
    // A user namespace around the command, in which there may be no other one, and in which it is not root.
    let (uid, gid) = (geteuid(), nix::unistd::getegid());
    let confined = move || {
        unshare(CloneFlags::CLONE_NEWUSER)?;
        fs::write("/proc/self/setgroups", "deny")?;
        fs::write("/proc/self/uid_map", format!("{NOBODY} {uid} 1"))?;
        fs::write("/proc/self/gid_map", format!("{NOBODY} {gid} 1"))?;
        fs::write("/proc/sys/user/max_user_namespaces", "0")
    };
    let labs = user.directory.path().join("labs");
    let mut command = user.command(&["lab", "up", "--name", "mine"], confined);
    let output = command.env("RSWARM_LAB_DIR", &labs).output()?;
    let cried = text(&output.stderr);
    ensure!(!output.status.success(), "{cried}");
    ensure!(cried.contains("/proc/sys/user/max_user_namespaces") && cried.contains("sudo"), "{cried}");
    ensure!(cried.lines().count() == 1, "one clear error: {cried}");
    ensure!(!labs.exists() && user.processes().is_empty(), "nothing is left half made");
    Ok(())
}
