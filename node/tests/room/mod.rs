//! A network of its own for a test, with loopback only, in which real daemons run that the test makes members of a
//! cluster or not.
#![allow(dead_code, reason = "each test program uses a part of it")]

use std::fs::{self, File};
use std::os::unix::fs::FileTypeExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use nix::mount::{MntFlags, umount2};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rswarm_netoverlay::device::{link::Links, netns::Netns};

/// Nothing that is waited for takes longer.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// A directory, a network of its own with loopback only, and the way to clear both away.
pub struct Room {
    pub directory: tempfile::TempDir,
    pub netns: Netns,
    pub cgroup: String,
}

impl Room {
    /// `None` without the rights; the reason is printed.
    pub fn open() -> Option<Self> {
        static ROOMS: AtomicU32 = AtomicU32::new(0);
        if !rustix::process::geteuid().is_root() {
            eprintln!("skipped: a network of one's own needs root");
            return None;
        }
        let directory = tempfile::Builder::new().prefix("refusals").tempdir().expect("a directory");
        let netns = Netns::create(&directory.path().join("netns")).expect("a network namespace");
        let cgroup = format!("refusals-{}-{}", std::process::id(), ROOMS.fetch_add(1, Ordering::Relaxed));
        let room = Self { directory, netns, cgroup };
        room.inside(async |netns| {
            Links::open(netns).expect("the links").set_up("lo").await.expect("loopback comes up");
        });
        Some(room)
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Runs `act` in the room's network.
    pub fn inside<T: Send>(&self, act: impl AsyncFnOnce(&Netns) -> T + Send) -> T {
        let run = || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.expect("a runtime").block_on(act(&self.netns))
        };
        self.netns.run(run).expect("the namespace is there")
    }

    /// Starts a daemon and waits until it answers.
    pub fn daemon(&self, name: &str) -> Node<'_> {
        let mut node =
            Node { room: self, name: name.to_owned(), state: self.path(name).join("state"), child: None };
        node.start();
        node
    }

    /// A node without a daemon.
    pub fn machine(&self, name: &str) -> Node<'_> {
        fs::create_dir_all(self.path(name)).expect("a directory");
        Node { room: self, name: name.to_owned(), state: self.path(name).join("state"), child: None }
    }

    /// Processes that were given something of this room.
    pub fn processes(&self) -> Vec<i32> {
        let ours = self.directory.path().to_str().expect("a readable path");
        let mut found = Vec::new();
        for entry in fs::read_dir("/proc").expect("processes").flatten() {
            let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
            let words = fs::read(entry.path().join("cmdline")).unwrap_or_default();
            if String::from_utf8_lossy(&words).contains(ours) {
                found.push(pid);
            }
        }
        found.extend(self.groups().iter().flat_map(|group| {
            let text = fs::read_to_string(group.join("cgroup.procs")).unwrap_or_default();
            text.lines().filter_map(|line| line.parse().ok()).collect::<Vec<i32>>()
        }));
        found
    }

    /// Its control groups in all hierarchies, the innermost first.
    pub fn groups(&self) -> Vec<PathBuf> {
        fn below(path: PathBuf, found: &mut Vec<PathBuf>) {
            for entry in fs::read_dir(&path).into_iter().flatten().flatten() {
                if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                    below(entry.path(), found);
                }
            }
            found.push(path);
        }
        let root = Path::new("/sys/fs/cgroup");
        let hierarchies = fs::read_dir(root).into_iter().flatten().flatten().map(|entry| entry.path());
        let mut found = Vec::new();
        for hierarchy in hierarchies.chain([root.to_owned()]) {
            let group = hierarchy.join(&self.cgroup);
            if group.is_dir() {
                below(group, &mut found);
            }
        }
        found
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            for pid in self.processes() {
                let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
            }
            for group in self.groups() {
                let _ = fs::remove_dir(group);
            }
            if (self.processes().is_empty() && self.groups().is_empty()) || Instant::now() > deadline {
                break;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
        let points = mounts.lines().filter_map(|line| line.split(' ').nth(1)).map(Path::new);
        let ours: Vec<&Path> = points.filter(|point| point.starts_with(self.directory.path())).collect();
        for point in ours.iter().rev() {
            let _ = umount2(*point, MntFlags::MNT_DETACH);
        }
    }
}

/// A machine of the room, with its daemon or without.
pub struct Node<'room> {
    pub room: &'room Room,
    pub name: String,
    pub state: PathBuf,
    pub child: Option<Child>,
}

impl Node<'_> {
    pub fn socket(&self) -> PathBuf {
        self.room.path(&self.name).join("sock")
    }

    pub fn config(&self) -> PathBuf {
        self.room.path(&self.name).join("rswarm.toml")
    }

    pub fn identity(&self) -> PathBuf {
        self.state.join("identity.json")
    }

    pub fn log(&self) -> String {
        fs::read_to_string(self.room.path(&self.name).join("log")).unwrap_or_default()
    }

    pub fn daemon_command(&self) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_rswarm"));
        command.arg("daemon").arg("--socket").arg(self.socket()).arg("--state-dir").arg(&self.state);
        // Missing, unless a test has written one.
        command
            .arg("--config")
            .arg(self.config())
            .arg("--cgroup-parent")
            .arg(format!("{}/{}", self.room.cgroup, self.name));
        command.stdin(Stdio::null()).env_remove("RUST_LOG");
        command
    }

    pub fn start(&mut self) {
        let directory = self.room.path(&self.name);
        fs::create_dir_all(&directory).expect("a directory");
        let log = File::options().create(true).append(true).open(directory.join("log")).expect("a log");
        let mut command = self.daemon_command();
        command.stdout(log.try_clone().expect("a file")).stderr(log);
        let child = self.room.netns.run(|| command.spawn()).expect("the namespace").expect("the binary runs");
        self.child = Some(child);
        self.until("its daemon answers", |node| {
            node.rswarm(&["version"]).code == 0 && node.socket_is_there()
        });
    }

    pub fn socket_is_there(&self) -> bool {
        fs::metadata(self.socket()).is_ok_and(|metadata| metadata.file_type().is_socket())
    }

    /// Stops the daemon as systemd would.
    pub fn stop(&mut self) {
        let Some(mut child) = self.child.take() else { return };
        let pid = Pid::from_raw(child.id().try_into().expect("a process id"));
        kill(pid, Signal::SIGTERM).expect("it runs");
        assert!(child.wait().expect("it is ours").success(), "{}", self.log());
    }

    /// Runs the command against this node.
    pub fn rswarm(&self, words: &[&str]) -> Ran {
        let mut command = Command::new(env!("CARGO_BIN_EXE_rswarm"));
        command.args(words).env("RSWARM_SOCKET", self.socket()).stdin(Stdio::null());
        for name in ["RSWARM_STATE_DIR", "RSWARM_RUN_DIR", "RSWARM_TOKEN", "RUST_LOG"] {
            command.env_remove(name);
        }
        let output =
            self.room.netns.run(|| command.output()).expect("the namespace").expect("the binary runs");
        Ran {
            words: words.iter().map(|&word| word.to_owned()).collect(),
            code: output.status.code().unwrap_or(-1),
            out: String::from_utf8_lossy(&output.stdout).into_owned(),
            err: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    pub fn state(&self) -> String {
        self.rswarm(&["status", "--format", "{{.State}}"]).done().trim().to_owned()
    }

    /// That nothing of an attempt to become a member is left.
    pub fn is_untouched(&self, after: &str) {
        assert_eq!(self.state(), "inactive", "after {after}");
        for name in ["identity.json", "identity.tmp", "raft.seat", "raft.tmp"] {
            assert!(!self.state.join(name).exists(), "{name} is left after {after}");
        }
    }

    pub fn init(&self, ip: &str) -> Ran {
        let addr = format!("{ip}:2377");
        self.rswarm(&["init", "--advertise-addr", &addr, "--listen-addr", &addr])
    }

    pub fn token(&self, role: &str) -> String {
        self.rswarm(&["join-token", "-q", role]).done().trim().to_owned()
    }

    pub fn join(&self, token: &str, manager: &str, ip: &str) -> Ran {
        self.rswarm(&["join", "--token", token, "--listen-addr", &format!("{ip}:2377"), manager])
    }

    pub fn node_id(&self) -> String {
        self.rswarm(&["status", "--format", "{{.NodeID}}"]).done().trim().to_owned()
    }

    #[track_caller]
    pub fn until(&self, what: &str, met: impl Fn(&Self) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !met(self) {
            assert!(Instant::now() < deadline, "{}: not so in time: {what}\n{}", self.name, self.log());
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Node<'_> {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill().and_then(|()| child.wait());
        }
        let log = self.log();
        if !std::thread::panicking() {
            assert!(!log.contains("panicked"), "{}: {log}", self.name);
        } else {
            eprintln!("--- log of {}\n{log}", self.name);
        }
    }
}

/// What a command said, and how it ended.
pub struct Ran {
    pub words: Vec<String>,
    pub code: i32,
    pub out: String,
    pub err: String,
}

impl Ran {
    /// What it printed; it must have worked.
    #[track_caller]
    pub fn done(self) -> String {
        assert_eq!(self.code, 0, "{self}");
        self.out
    }

    /// It must have failed so, and said all of this.
    #[track_caller]
    pub fn refused(&self, code: i32, said: &[&str]) {
        assert_eq!(self.code, code, "{self}");
        for part in said {
            assert!(self.err.contains(part), "`{part}` is not said by {self}");
        }
        let errors = self.err.lines().filter(|line| line.to_lowercase().starts_with("error")).count();
        assert_eq!(errors, 1, "one error by {self}");
    }
}

impl std::fmt::Display for Ran {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "rswarm {}: exit {}\n{}--- stderr\n{}", self.words.join(" "), self.code, self.out, self.err)
    }
}
