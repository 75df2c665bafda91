//! Starts this machine's daemon where none runs: by systemd if the unit is installed, in the background
//! otherwise.

use super::client::{Client, SOCKET};
use super::failure::Failure;
use anyhow::{Context, Result};
use rswarm_proto::v1 as pb;
use rustix::process::{Pid, Signal, kill_process};
use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Where a daemon keeps its state unless told otherwise.
pub const STATE_DIR: &str = "/var/lib/rswarm";

/// How long a daemon may take until its socket answers.
const DEADLINE: Duration = Duration::from_secs(20);

/// How long a daemon that was asked to stop may take.
const STOP_DEADLINE: Duration = Duration::from_secs(5);

const UNIT_FILES: [&str; 3] = [
    "/etc/systemd/system/rswarm.service",
    "/usr/lib/systemd/system/rswarm.service",
    "/lib/systemd/system/rswarm.service",
];

/// How the daemon came to run.
#[derive(Debug)]
pub enum Started {
    /// It ran already.
    Before,
    /// Systemd was told to start it.
    BySystemd,
    /// It is this process's child, and outlives it.
    Here(Child),
}

impl Started {
    /// Stops a daemon that was started for a cluster it then did not become part of, so that a command that
    /// failed leaves nothing behind. One that ran before, or found itself in a cluster, is left alone.
    pub async fn undo(self, client: &mut Client) {
        let status = client.status().await;
        if !status.is_ok_and(|status| status.state() == pb::status_response::State::Inactive) {
            return;
        }
        match self {
            Self::Before => {}
            // Whether stopping works is secondary to the error that is being reported.
            Self::BySystemd => drop(Command::new("systemctl").args(["stop", "rswarm.service"]).status()),
            Self::Here(child) => stop(child),
        }
    }
}

/// Makes sure that a daemon answers at `socket`, and says how it came to run.
///
/// # Errors
/// If it cannot be started, or does not answer in time; its last words are quoted.
pub fn ensure_daemon(socket: &Path, state_dir: Option<&Path>, err: &mut dyn Write) -> Result<Started> {
    if UnixStream::connect(socket).is_ok() {
        return Ok(Started::Before);
    }
    if state_dir.is_none() && socket == Path::new(SOCKET) && has_unit() {
        writeln!(err, "Starting the daemon (systemd unit rswarm)")?;
        let started =
            Command::new("systemctl").args(["start", "rswarm.service"]).stdin(Stdio::null()).status();
        if !started.context("cannot run systemctl")?.success() {
            let failure = Failure::failed("systemd could not start the daemon");
            return Err(failure.help("read why with `journalctl -u rswarm`").into());
        }
        wait(socket, &mut None, Path::new(STATE_DIR), "read its log with `journalctl -u rswarm`", &|| {
            String::new()
        })?;
        return Ok(Started::BySystemd);
    }
    let state_dir = state_dir.unwrap_or(Path::new(STATE_DIR));
    let log = open_log(state_dir)?;
    writeln!(err, "Starting the daemon (log: {})", log.path.display())?;
    let mut child = Some(spawn(socket, state_dir, &log.file)?);
    let help = format!("its log is {}", log.path.display());
    wait(socket, &mut child, state_dir, &help, &|| log.last_words())?;
    Ok(child.map_or(Started::Before, Started::Here))
}

/// Whether systemd runs this machine and knows our unit.
fn has_unit() -> bool {
    Path::new("/run/systemd/system").is_dir() && UNIT_FILES.iter().any(|unit| Path::new(unit).exists())
}

/// The daemon's log, and where our part of it begins.
struct Log {
    path: PathBuf,
    file: File,
    start: u64,
}

fn open_log(state_dir: &Path) -> Result<Log> {
    let shown = state_dir.display();
    fs::create_dir_all(state_dir).with_context(|| format!("cannot make the state directory {shown}"))?;
    let path = state_dir.join("daemon.log");
    let file = File::options().create(true).append(true).open(&path);
    let file = file.with_context(|| format!("cannot write the daemon's log {}", path.display()))?;
    let start = file.metadata().map_or(0, |metadata| metadata.len());
    Ok(Log { path, file, start })
}

impl Log {
    /// The last lines the daemon wrote since we started it.
    fn last_words(&self) -> String {
        const BYTES_MAX: u64 = 4096;
        let mut text = Vec::new();
        let read = File::open(&self.path).and_then(|mut file| {
            let end = file.metadata()?.len();
            file.seek(SeekFrom::Start(self.start.max(end.saturating_sub(BYTES_MAX))))?;
            file.take(BYTES_MAX).read_to_end(&mut text)
        });
        if read.is_err() {
            return String::new();
        }
        let text = String::from_utf8_lossy(&text);
        let lines: Vec<&str> = text.lines().filter(|line| !line.trim().is_empty()).collect();
        lines[lines.len().saturating_sub(3)..].join("\n  ")
    }
}

fn spawn(socket: &Path, state_dir: &Path, log: &File) -> Result<Child> {
    let program = std::env::current_exe().context("cannot find the rswarm binary")?;
    let mut command = Command::new(program);
    command.arg("daemon").arg("--socket").arg(socket).arg("--state-dir").arg(state_dir);
    command.current_dir("/").stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log.try_clone()?);
    // SAFETY: setsid is a lone system call; it allocates nothing and takes no lock.
    unsafe {
        command.pre_exec(|| rustix::process::setsid().map(drop).map_err(Into::into));
    }
    command.spawn().context("cannot start the daemon")
}

/// Waits until the socket answers, the child ends, or the deadline has passed.
fn wait(
    socket: &Path,
    child: &mut Option<Child>,
    log_dir: &Path,
    help: &str,
    last_words: &dyn Fn() -> String,
) -> Result<()> {
    let deadline = Instant::now() + DEADLINE;
    loop {
        if UnixStream::connect(socket).is_ok() {
            return Ok(());
        }
        let ended =
            child.as_mut().map(Child::try_wait).transpose().context("cannot watch the daemon")?.flatten();
        let what = match ended {
            Some(status) => format!("the daemon ended at once ({status})"),
            None if Instant::now() > deadline => {
                format!("the daemon does not answer at {} after {} s", socket.display(), DEADLINE.as_secs())
            }
            None => {
                std::thread::sleep(Duration::from_millis(20));
                continue;
            }
        };
        if ended.is_none() {
            child.take().into_iter().for_each(stop);
        }
        let words = last_words();
        if let Some(full) = full_disk(log_dir).filter(|_| words.is_empty()) {
            return Err(Failure::failed(format!("{what}: {full}")).help("make room there").into());
        }
        let what = if words.is_empty() { what } else { format!("{what}; its last words:\n  {words}\n") };
        return Err(Failure::failed(what.trim_end()).help(help).into());
    }
}

/// That no room is left where `dir` lies, if so: the daemon's own words had none either.
fn full_disk(dir: &Path) -> Option<String> {
    const ROOM_MIN: u64 = 64 << 10;
    let room = rustix::fs::statvfs(dir).ok()?;
    let left = room.f_bavail.saturating_mul(room.f_frsize);
    (left < ROOM_MIN).then(|| format!("the disk is full where {} lies", dir.display()))
}

fn stop(mut child: Child) {
    let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
    let asked = pid.is_some_and(|pid| kill_process(pid, Signal::TERM).is_ok());
    let deadline = Instant::now() + STOP_DEADLINE;
    while asked && Instant::now() < deadline {
        if !matches!(child.try_wait(), Ok(None)) {
            return;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    // It is past asking; that it is gone already is no error.
    let _ = child.kill().and_then(|()| child.wait());
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixListener;

    #[test]
    fn a_daemon_that_answers_is_left_alone() {
        let dir = tempfile::tempdir().expect("a directory");
        let socket = dir.path().join("s");
        let _listener = UnixListener::bind(&socket).expect("a socket");
        let mut err = Vec::new();
        let started = ensure_daemon(&socket, Some(dir.path()), &mut err).expect("it answers");
        assert!(matches!(started, Started::Before));
        assert!(err.is_empty());
    }

    #[test]
    fn a_daemon_is_asked_to_stop_before_it_is_made_to() {
        let mut command = Command::new("/bin/sh");
        command.args(["-c", "exec sleep 60"]).stdin(Stdio::null());
        let began = Instant::now();
        stop(command.spawn().expect("a shell"));
        assert!(began.elapsed() < STOP_DEADLINE, "it heeds SIGTERM");
    }

    #[test]
    fn a_daemon_that_dies_is_quoted() {
        let dir = tempfile::tempdir().expect("a directory");
        let log = open_log(dir.path()).expect("a log");
        let mut command = Command::new("/bin/sh");
        command.args(["-c", "echo early; echo 'cannot bind port 2377' >&2; exit 1"]);
        command.stdout(log.file.try_clone().expect("a file")).stderr(log.file.try_clone().expect("a file"));
        let child = command.spawn().expect("a shell");
        let socket = dir.path().join("s");
        let error = wait(&socket, &mut Some(child), dir.path(), "its log is L", &|| log.last_words())
            .expect_err("it ended");
        expect_test::expect![[r"
            Error: the daemon ended at once (exit status: 1); its last words:
              early
              cannot bind port 2377
              help: its log is L
        "]]
        .assert_eq(&super::super::failure::report(&error));
    }
}
