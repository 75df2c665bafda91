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

use rswarm_shim::protocol::{
    EXIT_FILE, EXIT_ROOM_FILE, Exec, Exit, LEASE_OVER, LINE_MAX, Reply, Request, Running, boot_ms,
};

use crate::attach::{self, Attachment};
use crate::bundle::Bundle;
use crate::container;
use crate::errand::{Errands, Task};
use crate::execs::{Answer, Execs};
use crate::log::{Log, Stream, unix_ns};
use crate::process::exit_code;
use crate::runtime::Runtime;
use crate::sys::{self, Child, Failure};
use crate::users::Users;

/// How long output may still come after the container has ended. Something outside it may hold its pipes.
const DRAIN: Duration = Duration::from_millis(500);
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
    /// What has made the container, if not the shim.
    runtime: Option<&'a Runtime<'a>>,
    /// The container's own, if it has some.
    users: Option<&'a Users>,
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
    errands: Errands,
    execs: Execs,
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

impl<'a> Shim<'a> {
    pub fn new(
        bundle: &'a Bundle,
        (runtime, users): (Option<&'a Runtime<'a>>, Option<&'a Users>),
        child: Child,
        running: Running,
        log: Log,
        streams: Streams,
    ) -> Self {
        let Streams { outputs, input, null } = streams;
        let lease = bundle.launch.lease_ms.map(|time| boot_ms().saturating_add(time));
        Self {
            bundle,
            runtime,
            users,
            child,
            running,
            log,
            outputs,
            input,
            attachments: Vec::new(),
            ended: None,
            clients: BTreeMap::new(),
            errands: Errands::default(),
            execs: Execs::default(),
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
            let own = self.execs.reports().chain(self.errands.report());
            let watched: Vec<RawFd> =
                fixed.into_iter().chain(outputs).chain(own).chain(self.clients.keys().copied()).collect();
            let ready = poll(&watched, self.deadline());
            self.read_outputs(&ready);
            if ready.contains(&signals.as_raw_fd()) {
                self.reap(signals);
            }
            let heard = self.execs.hear(&ready);
            self.answer_all(heard);
            self.run_errands(&ready);
            let over = self.execs.enforce_timeouts();
            self.answer_all(over);
            self.enforce_lease();
            self.execs.sweep();
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
            self.run_errands(&[]);
            // Not before: a new client may get the number of one that was let go, and has said nothing yet.
            if called {
                self.accept(listener);
            }
        }
    }

    fn deadline(&self) -> Option<Instant> {
        let lease = self.lease.filter(|_| !self.lease_over && self.ended.is_none());
        let lease =
            lease.map(|until| Instant::now() + Duration::from_millis(until.saturating_sub(boot_ms())));
        self.execs.deadline().into_iter().chain(self.ended.map(|(_, until)| until)).chain(lease).min()
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
            } else {
                self.log.reaped(pid, status);
                let answer = self.execs.ended(pid, status);
                self.answer_all(answer);
            }
        }
    }

    /// Lets what is to be done to the cgroup be done, one after the other.
    fn run_errands(&mut self, ready: &[RawFd]) {
        let ended = self.errands.report().is_some_and(|report| ready.contains(&report));
        let ended = if ended { self.errands.ended() } else { None };
        if let Some((Some(client), outcome)) = ended {
            self.answer(client, &outcome_of(outcome));
        }
        let bundle = self.bundle;
        let Some(cgroup) = &bundle.launch.cgroup else { return };
        while let Some((client, error)) = self.errands.begin(cgroup) {
            self.answer(client, &outcome_of(Err(error)));
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

    fn conclude(mut self, status: i32) {
        self.log.finish();
        let cgroup = self.bundle.launch.cgroup.as_ref();
        let (code, signal) = exit_code(status);
        let exit = Exit {
            code,
            signal,
            oom_killed: code != 0 && cgroup.is_some_and(|cgroup| cgroup.oom_kills() > 0),
            error: self.lease_over.then(|| LEASE_OVER.to_owned()),
            started_unix_ns: Some(self.running.started_unix_ns),
            finished_unix_ns: unix_ns(),
            log_dropped_bytes: self.log.dropped_bytes(),
        };
        match self.runtime {
            Some(runtime) => runtime.remove(),
            None => cgroup.map_or((), container::remove),
        }
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
        let outcome = outcome_of;
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
            Request::Freeze { frozen } if cgroup.is_some() => {
                match self.errands.add(fd, Task::Freeze(frozen)) {
                    Ok(()) => return None,
                    Err(error) => outcome(Err(error)),
                }
            }
            Request::Freeze { .. } => {
                outcome(Err(io::Error::other("no cgroup can be written on this machine to pause it with")))
            }
            Request::KillExec { pid, signal } => outcome(self.execs.signal(pid, signal)),
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
            Request::Update(limits) if cgroup.is_some() => match self.errands.add(fd, Task::Limit(limits)) {
                Ok(()) => return None,
                Err(error) => outcome(Err(error)),
            },
            Request::Update(_) => outcome(Err(io::Error::other(
                "limits cannot be enforced on this machine: no writable cgroup",
            ))),
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
                Ok(()) => return None,
                Err(Failure { code, message }) => Reply::Failed { code, message },
            },
        })
    }

    /// Signals the first process. One that is held still would not hear it.
    fn signal(&self, signal: i32) -> io::Result<()> {
        let sent = sys::pidfd_signal(&self.child.pidfd, signal);
        match self.bundle.launch.cgroup.as_ref().filter(|cgroup| cgroup.is_frozen()) {
            Some(cgroup) => sent.and(cgroup.thaw()),
            None => sent,
        }
    }

    fn execute(&mut self, fd: RawFd, exec: Exec) -> Result<(), Failure> {
        let fds = match self.clients.get_mut(&fd) {
            Some(client) => mem::take(&mut client.inbox.fds),
            None => Vec::new(),
        };
        let stdio = [0, 1, 2].map(|index| fds.get(index).map_or(self.null.as_raw_fd(), AsRawFd::as_raw_fd));
        self.execs.begin((self.bundle, self.users), &self.child.pidfd, (fd, stdio), exec)
    }

    fn answer_all(&mut self, answers: impl IntoIterator<Item = Answer>) {
        for Answer { client, reply, descriptor } in answers {
            self.answer_with(client, &reply, descriptor);
        }
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
        self.errands.forget(fd);
        self.attachments.retain(|attachment| attachment.client() != fd);
        self.execs.forget(fd);
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

fn outcome_of(result: io::Result<()>) -> Reply {
    match result {
        Ok(()) => Reply::Done,
        Err(error) => Reply::Failed { code: 125, message: error.to_string() },
    }
}

/// Writes the exit record so that it is there or not for whoever looks, and stays after a power cut. One cut before the
/// end may leave a record without sense, which counts as none. That the file is on the disk means that its new name is,
/// on the file systems that keep a journal: two waits for the disk instead of one would be a third of a short life.
pub fn record(directory: &Path, exit: &Exit) {
    let write = || -> io::Result<()> {
        let temporary = directory.join(EXIT_ROOM_FILE);
        let mut file = OpenOptions::new().create(true).write(true).truncate(false).open(&temporary)?;
        let bytes = serde_json::to_vec(exit)?;
        file.write_all(&bytes)?;
        file.set_len(bytes.len() as u64)?;
        fs::rename(&temporary, directory.join(EXIT_FILE))?;
        file.sync_all()
    };
    if let Err(error) = write() {
        eprintln!("cannot record the exit ({exit:?}) in {}: {error}", directory.display());
    }
}
