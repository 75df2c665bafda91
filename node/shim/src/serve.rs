//! The shim's life after the start: one poll loop that keeps the log, reaps, answers requests, and ends with the
//! exit record on disk.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::mem;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::time::{Duration, Instant};

use rswarm_shim::cgroup::Cgroup;
use rswarm_shim::protocol::{EXIT_FILE, Exec, Exit, LEASE_OVER, LINE_MAX, Reply, Request, Running, boot_ms};

use crate::attach::{self, Attachment};
use crate::bundle::Bundle;
use crate::container;
use crate::log::{Log, Stream, unix_ns};
use crate::process::{self, Beside, Program};
use crate::sys::{self, Child, Failure};

/// How long output may still come after the container has ended. Something outside it may hold its pipes.
const DRAIN: Duration = Duration::from_millis(500);
/// How often a cgroup is tried whose killed processes are not gone yet, and for how long.
const SWEEP: Duration = Duration::from_millis(5);
const SWEEP_MAX: Duration = Duration::from_secs(2);
const CLIENTS_MAX: usize = 64;
/// So many of them are left to the daemon, which waits, signals and renews leases, when others stay for long.
const CLIENTS_KEPT: usize = 16;

/// What the container reads from and writes to, at our end.
pub struct Streams {
    pub outputs: Vec<(Stream, OwnedFd)>,
    /// Its standard input, or its terminal.
    pub input: Option<OwnedFd>,
    /// What programs have for a stream that nobody gave them.
    pub null: File,
}

pub struct Shim<'a> {
    bundle: &'a Bundle,
    child: Child,
    running: Running,
    log: Log,
    outputs: Vec<(Stream, OwnedFd)>,
    /// Our end of its standard input, or of its terminal.
    input: Option<OwnedFd>,
    attachments: Vec<Attachment>,
    /// The wait status, and until when output is still awaited.
    ended: Option<(i32, Instant)>,
    clients: BTreeMap<RawFd, Client>,
    execs: BTreeMap<i32, Execution>,
    execs_begun: u64,
    /// Cgroups of programs that have ended, until nothing is left in them.
    leftovers: Vec<Leftover>,
    null: File,
    /// Until when it may run, by [`boot_ms`].
    lease: Option<u64>,
    lease_over: bool,
}

#[derive(Default)]
struct Inbox {
    bytes: Vec<u8>,
    fds: Vec<OwnedFd>,
}

struct Client {
    stream: UnixStream,
    inbox: Inbox,
    waits: bool,
}

struct Execution {
    client: Option<RawFd>,
    pidfd: OwnedFd,
    deadline: Option<Instant>,
    timed_out: bool,
    contained: bool,
    cgroup: Option<Cgroup>,
}

impl Execution {
    /// Kills the program and all it has started, as far as they can be told.
    fn kill(&self, pid: i32) {
        let _ = sys::pidfd_signal(&self.pidfd, libc::SIGKILL);
        match &self.cgroup {
            Some(cgroup) => cgroup.kill(),
            // It leads a process group of its own. SAFETY: a plain signal; the group exists while its leader does.
            None => unsafe {
                libc::kill(-pid, libc::SIGKILL);
            },
        }
    }
}

/// A cgroup to remove, and until when what is still in it is killed.
struct Leftover {
    cgroup: Cgroup,
    killing_until: Option<Instant>,
}

impl<'a> Shim<'a> {
    pub fn new(bundle: &'a Bundle, child: Child, running: Running, log: Log, streams: Streams) -> Self {
        let Streams { outputs, input, null } = streams;
        let (clients, execs) = (BTreeMap::new(), BTreeMap::new());
        let (execs_begun, leftovers) = (0, Vec::new());
        let lease = bundle.launch.lease_ms.map(|time| boot_ms().saturating_add(time));
        Self {
            bundle,
            child,
            running,
            log,
            outputs,
            input,
            attachments: Vec::new(),
            ended: None,
            clients,
            execs,
            execs_begun,
            leftovers,
            null,
            lease,
            lease_over: false,
        }
    }

    /// Serves until the container has ended and its end is recorded.
    pub fn run(mut self, listener: &UnixListener, signals: &OwnedFd) {
        loop {
            let fixed = [listener.as_raw_fd(), signals.as_raw_fd()];
            let outputs = self.outputs.iter().map(|(_, fd)| fd.as_raw_fd());
            let watched: Vec<RawFd> =
                fixed.into_iter().chain(outputs).chain(self.clients.keys().copied()).collect();
            let ready = poll(&watched, self.deadline());
            self.read_outputs(&ready);
            if ready.contains(&signals.as_raw_fd()) {
                self.reap(signals);
            }
            self.enforce_timeouts();
            self.enforce_lease();
            self.sweep();
            if let Some((status, until)) = self.ended
                && (self.outputs.is_empty() || Instant::now() >= until)
            {
                return self.conclude(status);
            }
            let called = ready.contains(&listener.as_raw_fd());
            for fd in ready {
                if self.clients.contains_key(&fd) {
                    self.hear(fd);
                }
            }
            // Not before: a new client may get the number of one that was let go, and has said nothing yet.
            if called {
                self.accept(listener);
            }
        }
    }

    fn deadline(&self) -> Option<Instant> {
        let timeouts = self.execs.values().filter(|exec| !exec.timed_out).filter_map(|exec| exec.deadline);
        let sweeping = self.leftovers.iter().any(|left| left.killing_until.is_some());
        let sweep = sweeping.then(|| Instant::now() + SWEEP);
        let lease = self.lease.filter(|_| !self.lease_over && self.ended.is_none());
        let lease =
            lease.map(|until| Instant::now() + Duration::from_millis(until.saturating_sub(boot_ms())));
        timeouts.chain(self.ended.map(|(_, until)| until)).chain(sweep).chain(lease).min()
    }

    fn read_outputs(&mut self, ready: &[RawFd]) {
        let mut buffer = [0_u8; 32 * 1024];
        let (log, attachments) = (&mut self.log, &mut self.attachments);
        self.outputs.retain(|(stream, fd)| {
            if !ready.contains(&fd.as_raw_fd()) {
                return true;
            }
            // SAFETY: the buffer has the given length; the descriptor does not block.
            let count = unsafe { libc::read(fd.as_raw_fd(), buffer.as_mut_ptr().cast(), buffer.len()) };
            match usize::try_from(count) {
                Ok(0) => false,
                Ok(count) => {
                    attach::pass_on(attachments, *stream, &buffer[..count]);
                    log.push(*stream, &buffer[..count]);
                    true
                }
                // Of a terminal that nobody holds any more reading is an error.
                Err(_) => matches!(
                    io::Error::last_os_error().kind(),
                    io::ErrorKind::Interrupted | io::ErrorKind::WouldBlock
                ),
            }
        });
        for client in attach::lagging(&mut self.attachments) {
            if let Some(client) = self.clients.get_mut(&client) {
                client.waits = false;
            }
            self.answer(client, &Reply::Lagging);
        }
    }

    fn reap(&mut self, signals: &OwnedFd) {
        let mut info = [0_u8; mem::size_of::<libc::signalfd_siginfo>()];
        // SAFETY: the buffer has the given length; the descriptor does not block.
        while unsafe { libc::read(signals.as_raw_fd(), info.as_mut_ptr().cast(), info.len()) } > 0 {}
        loop {
            let mut status = 0;
            // SAFETY: the status is valid for writing. __WALL also finds children that were made to be quiet.
            let pid = unsafe { libc::waitpid(-1, &raw mut status, libc::WNOHANG | libc::__WALL) };
            if pid <= 0 {
                return;
            }
            if pid == self.child.pid {
                self.ended = Some((status, Instant::now() + DRAIN));
            } else if let Some(exec) = self.execs.remove(&pid) {
                let killing_until = (exec.contained || exec.timed_out).then(|| Instant::now() + SWEEP_MAX);
                self.leftovers.extend(exec.cgroup.map(|cgroup| Leftover { cgroup, killing_until }));
                let reply = Reply::ExecExited { code: code(status).0, timed_out: exec.timed_out };
                if let Some(client) = exec.client {
                    self.answer(client, &reply);
                }
            } else {
                self.log.reaped(pid, status);
            }
        }
    }

    fn enforce_timeouts(&mut self) {
        let now = Instant::now();
        for (pid, exec) in &mut self.execs {
            if !exec.timed_out && exec.deadline.is_some_and(|deadline| deadline <= now) {
                exec.timed_out = true;
                exec.kill(*pid);
            }
        }
    }

    /// Kills what must not outlive the contact of its node with the managers: also when the daemon is no more.
    fn enforce_lease(&mut self) {
        if self.ended.is_none() && !self.lease_over && self.lease.is_some_and(|until| until <= boot_ms()) {
            self.lease_over = true;
            self.kill_all();
        }
    }

    fn kill_all(&self) {
        let _ = self.signal(libc::SIGKILL);
        if let Some(cgroup) = self.bundle.launch.cgroup.as_ref() {
            cgroup.kill();
        }
    }

    /// Removes the cgroups of ended programs. What others than the contained have started may live on in them.
    fn sweep(&mut self) {
        let now = Instant::now();
        self.leftovers.retain_mut(|left| {
            if left.killing_until.is_some() {
                left.cgroup.kill();
            }
            left.killing_until = left.killing_until.filter(|until| *until > now);
            left.cgroup.remove(Duration::ZERO).is_err()
        });
    }

    fn conclude(mut self, status: i32) {
        self.log.finish();
        let cgroup = self.bundle.launch.cgroup.as_ref();
        let (code, signal) = code(status);
        let exit = Exit {
            code,
            signal,
            oom_killed: code != 0 && cgroup.is_some_and(|cgroup| cgroup.oom_kills() > 0),
            error: self.lease_over.then(|| LEASE_OVER.to_owned()),
            started_unix_ns: Some(self.running.started_unix_ns),
            finished_unix_ns: unix_ns(),
            log_dropped_bytes: self.log.dropped_bytes(),
        };
        cgroup.map(container::remove);
        record(&self.bundle.directory, &exit);
        let waiting: Vec<RawFd> =
            self.clients.iter().filter(|(_, client)| client.waits).map(|(fd, _)| *fd).collect();
        for fd in waiting {
            self.answer(fd, &Reply::Exited(exit.clone()));
        }
    }

    fn accept(&mut self, listener: &UnixListener) {
        if let Ok((stream, _)) = listener.accept()
            && self.clients.len() < CLIENTS_MAX
        {
            self.clients.insert(stream.as_raw_fd(), Client { stream, inbox: Inbox::default(), waits: false });
        }
    }

    /// Takes what a client has sent, and answers each line in it.
    fn hear(&mut self, fd: RawFd) {
        let mut buffer = [0_u8; 4096];
        let heard = sys::receive_with_fds(fd, &mut buffer).unwrap_or_default();
        let Some(client) = self.clients.get_mut(&fd) else {
            return;
        };
        let (count, fds) = heard;
        client.inbox.bytes.extend_from_slice(&buffer[..count]);
        client.inbox.fds.extend(fds);
        let bytes = &mut client.inbox.bytes;
        let lines: Vec<Vec<u8>> = match bytes.iter().rposition(|byte| *byte == b'\n') {
            Some(last) => {
                bytes.drain(..=last).collect::<Vec<_>>().split(|byte| *byte == b'\n').map(Vec::from).collect()
            }
            None => Vec::new(),
        };
        if count == 0 || bytes.len() > LINE_MAX {
            self.forget(fd);
        }
        for line in lines.iter().filter(|line| !line.is_empty()) {
            let reply = match serde_json::from_slice(line) {
                Ok(request) => self.serve(fd, request),
                Err(error) => Some(Reply::Failed { code: 125, message: format!("not a request: {error}") }),
            };
            if let Some(reply) = reply {
                self.answer(fd, &reply);
            }
        }
    }

    fn serve(&mut self, fd: RawFd, request: Request) -> Option<Reply> {
        let cgroup = self.bundle.launch.cgroup.as_ref();
        let outcome = |result: io::Result<()>| match result {
            Ok(()) => Reply::Done,
            Err(error) => Reply::Failed { code: 125, message: error.to_string() },
        };
        Some(match request {
            Request::Attach | Request::Exec(_) if self.clients.len() > CLIENTS_MAX - CLIENTS_KEPT => {
                let message = "too many are attached to it or run programs in it: end some of them".into();
                Reply::Failed { code: 125, message }
            }
            Request::State => Reply::State { running: self.running.clone() },
            Request::Kill { signal } => outcome(match self.signal(signal) {
                // It has ended meanwhile, as asked.
                Err(error) if error.raw_os_error() == Some(libc::ESRCH) => Ok(()),
                other => other,
            }),
            Request::Freeze { frozen } => outcome(match cgroup {
                Some(cgroup) => cgroup.freeze(frozen),
                None => Err(io::Error::other("no cgroup can be written on this machine to pause it with")),
            }),
            Request::KillExec { pid, signal } => outcome(match self.execs.get(&pid) {
                Some(exec) => sys::pidfd_signal(&exec.pidfd, signal),
                // It has ended.
                None => Ok(()),
            }),
            Request::KillAll => {
                self.kill_all();
                Reply::Done
            }
            Request::Lease { until_boot_ms } => {
                self.lease = self.lease.map(|until| until.max(until_boot_ms));
                Reply::Done
            }
            Request::Wait => {
                self.clients.get_mut(&fd)?.waits = true;
                return None;
            }
            Request::Usage => Reply::Usage(cgroup.map(|cgroup| cgroup.usage()).unwrap_or_default()),
            Request::Update(limits) => outcome(match cgroup {
                Some(cgroup) => cgroup.limit(&limits),
                None => {
                    Err(io::Error::other("limits cannot be enforced on this machine: no writable cgroup"))
                }
            }),
            Request::Attach => {
                let client = self.clients.get_mut(&fd)?;
                client.waits = true;
                match Attachment::new(fd, mem::take(&mut client.inbox.fds)) {
                    Ok(attachment) => self.attachments.push(attachment),
                    Err(error) => return Some(outcome(Err(error))),
                }
                let input = self.input.as_ref().and_then(|input| input.try_clone().ok());
                self.answer_with(fd, &Reply::Attached, input);
                return None;
            }
            Request::CloseStdin => {
                if self.bundle.launch.tty.is_none() {
                    self.input = None;
                }
                Reply::Done
            }
            Request::Exec(exec) => match self.execute(fd, exec) {
                Ok((pid, terminal)) => {
                    self.answer_with(fd, &Reply::Spawned { pid }, terminal);
                    return None;
                }
                Err(Failure { code, message }) => Reply::Failed { code, message },
            },
        })
    }

    /// Signals the first process. One that is held still would not hear it.
    fn signal(&self, signal: i32) -> io::Result<()> {
        let sent = sys::pidfd_signal(&self.child.pidfd, signal);
        match self.bundle.launch.cgroup.as_ref().filter(|cgroup| cgroup.is_frozen()) {
            Some(cgroup) => sent.and(cgroup.freeze(false)),
            None => sent,
        }
    }

    fn execute(&mut self, fd: RawFd, exec: Exec) -> Result<(i32, Option<OwnedFd>), Failure> {
        let fds = match self.clients.get_mut(&fd) {
            Some(client) => mem::take(&mut client.inbox.fds),
            None => Vec::new(),
        };
        if self.bundle.launch.cgroup.as_ref().is_some_and(Cgroup::is_frozen) {
            // It would be held still on its way in, and the shim with it.
            return Err(Failure::setup("the container is paused: unpause it first"));
        }
        let stdio = [0, 1, 2].map(|index| fds.get(index).map_or(self.null.as_raw_fd(), AsRawFd::as_raw_fd));
        let mut process = self.bundle.spec.process.clone();
        process.args = exec.args;
        process.env.extend(exec.env);
        if let Some(workdir) = exec.workdir {
            process.cwd = workdir;
        }
        let program = Program {
            process: &process,
            user: exec.user.as_deref().unwrap_or(&self.bundle.launch.user),
            groups: if exec.user.is_none() { &self.bundle.launch.groups } else { &[] },
            seccomp: &self.bundle.seccomp,
            stdio,
            first: false,
            init: false,
            tty: exec.tty,
        };
        let cgroup = self.part()?;
        let cgroups: Vec<&Cgroup> = self.bundle.launch.cgroup.iter().chain(&cgroup).collect();
        let Beside { child, terminal } = match process::spawn_beside(&self.child.pidfd, &cgroups, &program) {
            Ok(beside) => beside,
            Err(failure) => {
                self.leftovers.extend(cgroup.map(|cgroup| Leftover { cgroup, killing_until: None }));
                return Err(failure);
            }
        };
        let deadline = exec.timeout_ms.map(|timeout| Instant::now() + Duration::from_millis(timeout));
        let (pid, pidfd, contained) = (child.pid, child.pidfd, exec.contained);
        let execution = Execution { client: Some(fd), pidfd, deadline, timed_out: false, contained, cgroup };
        self.execs.insert(pid, execution);
        Ok((pid, terminal))
    }

    /// A cgroup for one more program, so that it can be ended with all it starts.
    fn part(&mut self) -> Result<Option<Cgroup>, Failure> {
        let Some(cgroup) = &self.bundle.launch.cgroup else { return Ok(None) };
        self.execs_begun += 1;
        let part = cgroup.divide(&format!("exec-{}", self.execs_begun));
        part.map_err(|error| Failure::setup(error.to_string()))
    }

    fn answer(&mut self, fd: RawFd, reply: &Reply) {
        self.answer_with(fd, reply, None);
    }

    /// Answers, and hands a descriptor over.
    fn answer_with(&mut self, fd: RawFd, reply: &Reply, descriptor: Option<OwnedFd>) {
        let Some(client) = self.clients.get_mut(&fd) else {
            return;
        };
        let mut line = serde_json::to_vec(reply).unwrap_or_default();
        line.push(b'\n');
        // The socket's buffer holds many replies: a client that fills it does not listen, and is left.
        let sent = client.stream.set_nonblocking(true).and_then(|()| match descriptor {
            Some(descriptor) => sys::send_with_fds(fd, &line, &[descriptor.as_raw_fd()]),
            None => client.stream.write_all(&line),
        });
        if sent.is_err() {
            self.forget(fd);
        }
    }

    fn forget(&mut self, fd: RawFd) {
        self.clients.remove(&fd);
        self.attachments.retain(|attachment| attachment.client() != fd);
        for (pid, exec) in self.execs.iter_mut().filter(|(_, exec)| exec.client == Some(fd)) {
            exec.client = None;
            if exec.contained {
                exec.kill(*pid);
            }
        }
    }
}

/// The descriptors with something to read, or none once the deadline has passed.
fn poll(fds: &[RawFd], deadline: Option<Instant>) -> Vec<RawFd> {
    let mut entries: Vec<libc::pollfd> =
        fds.iter().map(|fd| libc::pollfd { fd: *fd, events: libc::POLLIN, revents: 0 }).collect();
    let timeout_ms = deadline.map_or(-1, |deadline| {
        let left = deadline.saturating_duration_since(Instant::now());
        i32::try_from(left.as_millis()).unwrap_or(i32::MAX - 1) + 1
    });
    // SAFETY: pointer and length of a live array.
    let count = unsafe { libc::poll(entries.as_mut_ptr(), entries.len() as libc::nfds_t, timeout_ms) };
    if count <= 0 {
        return Vec::new();
    }
    entries.iter().filter(|entry| entry.revents != 0).map(|entry| entry.fd).collect()
}

/// The exit code a wait status stands for, and the signal if one ended the process.
fn code(status: i32) -> (i32, Option<i32>) {
    if libc::WIFSIGNALED(status) {
        let signal = libc::WTERMSIG(status);
        (128 + signal, Some(signal))
    } else {
        (libc::WEXITSTATUS(status), None)
    }
}

/// What the exit record is written in, before it has its name.
const RESERVED: &str = ".exit.json.tmp";
/// Room for the longest record, in bytes.
const RECORD_MAX: libc::off_t = 8192;

/// Sets room aside for the exit record, so that it can be written when the container's log has filled the disk.
pub fn reserve(directory: &Path) {
    let file = OpenOptions::new().create(true).write(true).truncate(false).open(directory.join(RESERVED));
    if let Ok(file) = file {
        // SAFETY: an open descriptor and plain numbers. A file system that cannot set room aside has none set aside.
        unsafe { libc::fallocate(file.as_raw_fd(), 0, 0, RECORD_MAX) };
    }
}

/// Writes the exit record so that it is either absent or whole, also after a power cut.
pub fn record(directory: &Path, exit: &Exit) {
    let write = || -> io::Result<()> {
        let temporary = directory.join(RESERVED);
        let mut file = OpenOptions::new().create(true).write(true).truncate(false).open(&temporary)?;
        let bytes = serde_json::to_vec(exit)?;
        file.write_all(&bytes)?;
        file.set_len(bytes.len() as u64)?;
        file.sync_all()?;
        fs::rename(&temporary, directory.join(EXIT_FILE))?;
        File::open(directory)?.sync_all()
    };
    if let Err(error) = write() {
        eprintln!("cannot record the exit ({exit:?}) in {}: {error}", directory.display());
    }
}
