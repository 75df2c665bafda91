//! A cluster of real daemons to tell stories about: commands, conditions with deadlines, and what can be
//! seen from outside.

use std::{
    fmt::Write as _,
    fs,
    io::{Read, Write},
    net::{Ipv4Addr, SocketAddr, TcpStream},
    path::{Path, PathBuf},
    process::Command,
    sync::{Mutex, OnceLock, PoisonError},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow, bail, ensure};
use rswarm_chaos::lab::{Lab, Options, Ran, require_root};
use rswarm_netoverlay::device::netns::Netns;
use serde::Deserialize;
use serde_json::Value;

/// One cluster at a time: what is measured shall not be another story's load.
static TURN: Mutex<()> = Mutex::new(());

/// How many lines of a daemon's log a failed story quotes.
const LOG_LINES: usize = 40;

/// How often a condition is looked at.
const LOOK: Duration = Duration::from_millis(20);

/// Tells a story on a fresh cluster of `nodes` nodes, of which the first `managers` are managers. If it
/// fails, the ends of all daemons' logs are printed.
pub fn story(name: &str, nodes: u8, managers: u8, tell: impl FnOnce(&Cluster) -> Result<()>) {
    stage(name, nodes, managers, None, |cluster| {
        for node in cluster.lab.names()? {
            eventually(&format!("{node} is ready"), 20, || {
                let reachable = cluster.of_node("n1", &node, "ManagerStatus")?;
                Ok(cluster.of_node("n1", &node, "Status")? == "Ready" && reachable != "Unreachable")
            })?;
        }
        tell(cluster)
    });
}

/// The same on bare machines: `rswarm` lies on their path, and nothing runs. No cluster is formed, and what
/// the machines' daemons write is theirs.
pub fn bare_machines(name: &str, nodes: u8, tell: impl FnOnce(&Cluster) -> Result<()>) {
    let idle = ["sleep", "1000000"].map(String::from).to_vec();
    stage(name, nodes, 1, Some(idle), tell);
}

fn stage(
    name: &str,
    nodes: u8,
    managers: u8,
    daemon_command: Option<Vec<String>>,
    tell: impl FnOnce(&Cluster) -> Result<()>,
) {
    if let Err(why) = require_root() {
        eprintln!("skipped: {why:#}");
        return;
    }
    // A story that failed has said so itself.
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let base = Path::new(env!("CARGO_TARGET_TMPDIR")).join("labs");
    let options = Options {
        name: name.to_string(),
        nodes,
        managers,
        base: base.clone(),
        daemon_command,
        ..Options::new(program())
    };
    Lab::down(&base, name).expect("what an earlier run left can be removed");
    let began = Instant::now();
    let lab = Lab::up(&options).unwrap_or_else(|error| panic!("no cluster: {error:#}"));
    eprintln!("{name}: a cluster of {nodes} after {:.1?}", began.elapsed());
    let cluster = Cluster { lab };
    if let Err(error) = tell(&cluster) {
        panic!("{name}: {error:#}");
    }
    eprintln!("{name}: told in {:.1?}", began.elapsed());
}

/// The `rswarm` of the profile these tests are built in, built anew if it is missing or older than its
/// sources.
pub fn program() -> PathBuf {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    PROGRAM.get_or_init(|| build().unwrap_or_else(|error| panic!("no rswarm to test: {error:#}"))).clone()
}

fn build() -> Result<PathBuf> {
    let own = std::env::current_exe().context("cannot find this test")?;
    let directory = own.parent().and_then(Path::parent).context("a test lies in target/PROFILE/deps")?;
    let program = directory.join("rswarm");
    if is_fresh(&program) {
        return Ok(program);
    }
    let profile = match directory.file_name().and_then(|name| name.to_str()) {
        Some("debug") | None => "dev",
        Some(profile) => profile,
    };
    eprintln!("building {}", program.display());
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| env!("CARGO").into());
    let built = Command::new(cargo)
        .args(["build", "-p", "rswarm", "--bin", "rswarm", "--profile", profile])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .status()
        .context("cannot run cargo")?;
    ensure!(built.success(), "cargo cannot build rswarm");
    ensure!(program.exists(), "cargo built rswarm, but not as {}", program.display());
    Ok(program)
}

/// Whether the program is younger than everything it is built from.
fn is_fresh(program: &Path) -> bool {
    let changed = |path: &Path| fs::metadata(path).and_then(|metadata| metadata.modified());
    let Ok(built) = changed(program) else { return false };
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let crates = ["control", "proto", "raft", "netoverlay", "node", "chaos-tests"];
    let mut rest: Vec<PathBuf> = crates.iter().map(|name| workspace.join(name)).collect();
    rest.extend([workspace.join("Cargo.toml"), workspace.join("Cargo.lock")]);
    while let Some(path) = rest.pop() {
        if path.is_dir() {
            let entries = fs::read_dir(&path).into_iter().flatten().flatten().map(|entry| entry.path());
            rest.extend(entries.filter(|path| !path.ends_with("tests")));
        } else if changed(&path).is_ok_and(|at| at > built) {
            return false;
        }
    }
    true
}

/// A lab with a cluster on it.
pub struct Cluster {
    pub lab: Lab,
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if !thread::panicking() {
            return;
        }
        for node in self.lab.names().unwrap_or_default() {
            let bare = self.state(&node).join("daemon.log");
            let path = if bare.exists() { bare } else { self.lab.node(&node).log() };
            let log = fs::read(path).unwrap_or_default();
            let log = String::from_utf8_lossy(&log);
            let lines: Vec<&str> = log.lines().collect();
            let tail = &lines[lines.len().saturating_sub(LOG_LINES)..];
            eprintln!("--- the end of {node}'s log ---\n{}", tail.join("\n"));
        }
    }
}

/// A task as `service ps` shows it.
#[derive(Debug, Clone, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "PascalCase")]
pub struct Task {
    #[serde(rename = "ID")]
    pub id: String,
    pub name: String,
    pub node: String,
    pub desired_state: String,
    pub current_state: String,
    pub error: String,
}

impl Task {
    /// Whether it shall run, and has not come to an end.
    pub fn is_wanted(&self) -> bool {
        let ended = ["Orphaned", "Failed", "Rejected", "Shutdown", "Complete"];
        self.desired_state == "Running" && !ended.iter().any(|state| self.current_state.starts_with(state))
    }

    pub fn runs(&self) -> bool {
        self.desired_state == "Running" && self.current_state.starts_with("Running")
    }
}

impl Cluster {
    /// A node's state directory.
    pub fn state(&self, node: &str) -> PathBuf {
        self.lab.directory().join(node).join("state")
    }

    /// Runs `rswarm` on a node.
    pub fn rswarm(&self, node: &str, words: &[&str]) -> Result<Ran> {
        self.lab.node(node).rswarm(words)
    }

    /// Runs `rswarm` on a node, where it must succeed, and returns what it printed.
    pub fn ok(&self, node: &str, words: &[&str]) -> Result<String> {
        self.rswarm(node, words)?.ok()
    }

    /// Asks for a service without tasks, as a client does that gives up after a second.
    pub fn write(&self, node: &str, name: &str) -> Result<()> {
        let words = ["service", "create", "--detach", "--name", name, "--replicas", "0", "rswarm/demo"];
        let ran = self.lab.node(node).rswarm_within(&words, Duration::from_secs(1))?;
        ran.ok().map(drop)
    }

    /// Runs `rswarm` on a node, where it must fail, and returns its error.
    pub fn refused(&self, node: &str, words: &[&str]) -> Result<String> {
        let ran = self.rswarm(node, words)?;
        ensure!(ran.code != 0, "{} should have failed; it printed: {}", ran.command, ran.stdout);
        ensure!(ran.stderr.contains("rror"), "{} failed without an error: {}", ran.command, ran.stderr);
        Ok(ran.stderr)
    }

    /// Creates a service of the demo image on a node, and waits until it runs.
    pub fn create(&self, node: &str, name: &str, options: &[&str]) -> Result<()> {
        let words = [&["service", "create", "--name", name], options, &["rswarm/demo"]].concat();
        self.ok(node, &words).map(drop)
    }

    /// The tasks of a service, newest first in each slot.
    pub fn tasks(&self, node: &str, service: &str) -> Result<Vec<Task>> {
        let printed = self.ok(node, &["service", "ps", service, "--no-trunc", "--format", "json"])?;
        let mut tasks: Vec<Task> = json_lines(&printed)?;
        for task in &mut tasks {
            task.name = task.name.trim_start_matches(" \\_ ").to_string();
        }
        Ok(tasks)
    }

    /// Those of them that run.
    pub fn running(&self, node: &str, service: &str) -> Result<Vec<Task>> {
        Ok(self.tasks(node, service)?.into_iter().filter(Task::runs).collect())
    }

    /// Waits until exactly `count` tasks of a service run and no other is wanted.
    pub fn runs(&self, node: &str, service: &str, count: usize, seconds: u64) -> Result<Vec<Task>> {
        let mut found = Vec::new();
        eventually(&format!("{service} runs {count} times"), seconds, || {
            let tasks = self.tasks(node, service)?;
            found = tasks.iter().filter(|task| task.runs()).cloned().collect();
            let wanted = tasks.iter().filter(|task| task.is_wanted()).count();
            ensure!(found.len() == count && wanted == count, "{}", told(&tasks));
            Ok(true)
        })?;
        Ok(found)
    }

    /// The names of all services.
    pub fn services(&self, node: &str) -> Result<Vec<String>> {
        let printed = self.ok(node, &["service", "ls", "--format", "{{.Name}}"])?;
        Ok(printed.lines().map(String::from).collect())
    }

    /// One column of `node ls` for a node, such as `Status`.
    pub fn of_node(&self, from: &str, node: &str, column: &str) -> Result<String> {
        let format = format!("{{{{.Hostname}}}} {{{{.{column}}}}}");
        let printed = self.ok(from, &["node", "ls", "--format", &format])?;
        let found = printed.lines().find_map(|line| line.strip_prefix(&format!("{node} ")));
        let found = found.or_else(|| printed.lines().any(|line| line.trim() == node).then_some(""));
        Ok(found.with_context(|| format!("{from} knows no node {node}: {printed}"))?.trim().to_string())
    }

    /// Who leads, as a node sees it.
    pub fn leader(&self, from: &str) -> Result<String> {
        let printed =
            self.ok(from, &["node", "ls", "--format", "{{.ManagerStatus}} {{.Status}} {{.Hostname}}"])?;
        let found = printed.lines().find_map(|line| line.strip_prefix("Leader Ready "));
        Ok(found.with_context(|| format!("{from} knows no leader: {printed}"))?.to_string())
    }

    /// What `inspect` prints for one thing.
    pub fn inspect(&self, node: &str, kind: &str, name: &str) -> Result<Value> {
        let printed = self.ok(node, &[kind, "inspect", name])?;
        let mut all: Vec<Value> = serde_json::from_str(&printed).context("inspect prints JSON")?;
        ensure!(all.len() == 1, "one thing was asked for: {printed}");
        Ok(all.remove(0))
    }

    /// A node's address.
    pub fn address(&self, node: &str) -> Result<Ipv4Addr> {
        self.lab.node(node).address()
    }

    /// Waits until a port answers on each of these nodes.
    pub fn answers(&self, nodes: &[&str], port: u16, seconds: u64) -> Result<()> {
        for node in nodes {
            let address = self.address(node)?;
            eventually(&format!("{node} answers on port {port}"), seconds, || {
                get(address, port, "/").map(|_| true)
            })?;
        }
        Ok(())
    }
}

/// The daemons of a machine, and whatever else of ours works on its state.
pub fn daemons(cluster: &Cluster, node: &str) -> Result<Vec<i32>> {
    let state = cluster.state(node);
    let state = state.to_str().context("a path of letters")?;
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc")?.flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        if String::from_utf8_lossy(&line).split('\0').any(|word| word.starts_with(state)) {
            found.push(pid);
        }
    }
    Ok(found)
}

/// Asks the daemon of a machine to end, as an upgrade does.
pub fn stop_daemon(cluster: &Cluster, node: &str) -> Result<()> {
    let is_daemon = |pid: i32| {
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        line.split(|byte| *byte == 0).nth(1) == Some(b"daemon")
    };
    let running: Vec<i32> = daemons(cluster, node)?.into_iter().filter(|pid| is_daemon(*pid)).collect();
    ensure!(running.len() == 1, "{node} has one daemon, not {running:?}");
    let pid = nix::unistd::Pid::from_raw(running[0]);
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).context("cannot stop a daemon")?;
    eventually(&format!("the daemon of {node} has ended"), 20, || Ok(!is_daemon(running[0]))).map(drop)
}

/// What `--format json` prints: an object a line.
pub fn json_lines<T: serde::de::DeserializeOwned>(printed: &str) -> Result<Vec<T>> {
    let lines = printed.lines().filter(|line| !line.trim().is_empty());
    lines.map(|line| serde_json::from_str(line).with_context(|| format!("not JSON: {line}"))).collect()
}

/// Tasks in a few words, for messages.
pub fn told(tasks: &[Task]) -> String {
    let mut text = String::new();
    for task in tasks {
        let Task { name, node, desired_state, current_state, error, .. } = task;
        let _ = write!(text, "{name} on {node}: {desired_state}/{current_state} {error}; ");
    }
    if text.is_empty() { "no tasks".to_string() } else { text }
}

/// Waits until a condition holds, and returns how long that took. What kept it from holding is quoted when
/// the time is up.
pub fn eventually(what: &str, seconds: u64, mut condition: impl FnMut() -> Result<bool>) -> Result<Duration> {
    let began = Instant::now();
    let bound = Duration::from_secs(seconds);
    loop {
        let why = match condition() {
            Ok(true) => return Ok(began.elapsed()),
            Ok(false) => anyhow!("it does not hold"),
            Err(error) => error,
        };
        if began.elapsed() > bound {
            return Err(why.context(format!("waited {seconds} s in vain until {what}")));
        }
        thread::sleep(LOOK);
    }
}

/// `GET path` by plain HTTP: the body of a 200.
pub fn get(address: Ipv4Addr, port: u16, path: &str) -> Result<String> {
    get_within(address, port, path, Duration::from_secs(2))
}

/// The same, with a bound for each step.
pub fn get_within(address: Ipv4Addr, port: u16, path: &str, bound: Duration) -> Result<String> {
    let place = format!("http://{address}:{port}{path}");
    let ask = || -> Result<String> {
        let mut stream = TcpStream::connect_timeout(&SocketAddr::from((address, port)), bound)?;
        stream.set_read_timeout(Some(bound))?;
        stream.set_write_timeout(Some(bound))?;
        write!(stream, "GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n")?;
        let mut answer = String::new();
        stream.take(1 << 20).read_to_string(&mut answer)?;
        let (head, body) = answer.split_once("\r\n\r\n").context("no whole answer")?;
        ensure!(head.split(' ').nth(1) == Some("200"), "it answers {}", head.lines().next().unwrap_or(""));
        Ok(body.to_string())
    };
    ask().with_context(|| format!("no answer from {place}"))
}

/// One line of the demo program's account of itself.
pub fn fact(body: &str, name: &str) -> Result<String> {
    let found = body.lines().find_map(|line| line.strip_prefix(&format!("{name}: ")));
    Ok(found.with_context(|| format!("the demo does not tell its {name}: {body}"))?.to_string())
}

/// The process of a task's container, as this machine numbers it, and when it started.
pub fn container(task: &str) -> Result<(i32, u64)> {
    let wanted = format!("RSWARM_TASK={task}");
    for entry in fs::read_dir("/proc").context("cannot list processes")?.flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else {
            continue;
        };
        let environment = fs::read(entry.path().join("environ")).unwrap_or_default();
        if environment.split(|byte| *byte == 0).any(|variable| variable == wanted.as_bytes()) {
            let stat = fs::read_to_string(entry.path().join("stat")).unwrap_or_default();
            let started = stat.rsplit_once(") ").and_then(|(_, rest)| rest.split(' ').nth(19)?.parse().ok());
            return Ok((pid, started.with_context(|| format!("process {pid} has ended"))?));
        }
    }
    bail!("no process of task {task} runs on this machine")
}

/// Runs something in the network namespace of a process.
pub fn inside<T: Send>(pid: i32, act: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    Netns::open(Path::new(&format!("/proc/{pid}/ns/net")))?.run(act)?
}

/// The IPv4 addresses of a name, as a container's own name server answers. Call it [`inside`] one.
pub fn lookup(name: &str) -> Result<Vec<Ipv4Addr>> {
    let socket = std::net::UdpSocket::bind("127.0.0.1:0")?;
    socket.set_read_timeout(Some(Duration::from_secs(2)))?;
    socket.connect("127.0.0.11:53").context("cannot reach the container's name server")?;
    let mut question = vec![0x5a, 0xa5, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in name.split('.') {
        question.push(label.len() as u8);
        question.extend(label.as_bytes());
    }
    question.extend([0, 0, 1, 0, 1]);
    socket.send(&question)?;
    let mut answer = [0; 1500];
    let length = socket.recv(&mut answer).with_context(|| format!("no answer for {name}"))?;
    let answer = &answer[..length];
    ensure!(length >= question.len() && answer[..2] == question[..2], "an answer to something else");
    ensure!(answer[3] & 15 == 0, "{name} is answered by error code {}", answer[3] & 15);
    // An address is what follows type A, class IN, any time to live, and the length 4.
    let records = &answer[question.len()..];
    let mut addresses: Vec<Ipv4Addr> = Vec::new();
    let mut at = 0;
    while let Some(record) = records.get(at..at + 12) {
        ensure!(record[0] >= 0xc0, "a name that is not a reference: {record:?}");
        let size = usize::from(u16::from_be_bytes([record[10], record[11]]));
        if record[2..6] == [0, 1, 0, 1]
            && let Some(&[a, b, c, d]) = records.get(at + 12..at + 12 + size)
        {
            addresses.push(Ipv4Addr::new(a, b, c, d));
        }
        at += 12 + size;
    }
    addresses.sort();
    Ok(addresses)
}
