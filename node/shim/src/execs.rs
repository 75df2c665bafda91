//! The programs beside the first one, from the request until nothing is left of them. Nothing here waits: what there is
//! to say to clients is returned.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{OwnedFd, RawFd};
use std::time::{Duration, Instant};

use rswarm_shim::cgroup::Cgroup;
use rswarm_shim::protocol::{Exec, Reply};

use crate::beside::{Beginning, Beside};
use crate::bundle::Bundle;
use crate::process::{Program, exit_code};
use crate::sys::{self, Child, Failure};
use crate::users::Users;

/// How often a cgroup is tried whose killed processes are not gone yet, and for how long.
const SWEEP: Duration = Duration::from_millis(5);
const SWEEP_MAX: Duration = Duration::from_secs(2);

/// Something to be said to a client, with a descriptor to be handed over.
pub struct Answer {
    pub client: RawFd,
    pub reply: Reply,
    pub descriptor: Option<OwnedFd>,
}

#[derive(Default)]
pub struct Execs {
    beginnings: Vec<(Beginning, Execution)>,
    /// Children that ended before it was known whose they are, and how: some program may just have begun.
    strays: BTreeMap<i32, i32>,
    running: BTreeMap<i32, Execution>,
    begun: u64,
    /// Cgroups of programs that have ended, until nothing is left in them.
    leftovers: Vec<Leftover>,
}

struct Execution {
    client: Option<RawFd>,
    /// Once it runs.
    pidfd: Option<OwnedFd>,
    deadline: Option<Instant>,
    timed_out: bool,
    contained: bool,
    cgroup: Option<Cgroup>,
}

impl Execution {
    /// Kills the program and all it has started, as far as they can be told.
    fn kill(&self, pid: i32) {
        let _ = self.signal(libc::SIGKILL);
        match &self.cgroup {
            Some(cgroup) => cgroup.kill(),
            // It leads a process group of its own. SAFETY: a plain signal; the group exists while its leader does.
            None => unsafe {
                libc::kill(-pid, libc::SIGKILL);
            },
        }
    }

    fn signal(&self, signal: i32) -> io::Result<()> {
        self.pidfd.as_ref().map_or(Ok(()), |pidfd| sys::pidfd_signal(pidfd, signal))
    }

    fn answer(&self, reply: Reply, descriptor: Option<OwnedFd>) -> Option<Answer> {
        self.client.map(|client| Answer { client, reply, descriptor })
    }

    /// What is left to be cleared away once it has ended.
    fn leftover(self) -> Option<Leftover> {
        let killing_until = (self.contained || self.timed_out).then(|| Instant::now() + SWEEP_MAX);
        self.cgroup.map(|cgroup| Leftover { cgroup, killing_until })
    }
}

/// A cgroup to remove, and until when what is still in it is killed.
struct Leftover {
    cgroup: Cgroup,
    killing_until: Option<Instant>,
}

impl Execs {
    /// What is to be watched for something to [`Execs::hear`].
    pub fn reports(&self) -> impl Iterator<Item = RawFd> {
        self.beginnings.iter().map(|(beginning, _)| beginning.reports())
    }

    /// When something is to be done although nothing is heard.
    pub fn deadline(&self) -> Option<Instant> {
        let all = self.running.values().chain(self.beginnings.iter().map(|(_, exec)| exec));
        let timeouts = all.filter(|exec| !exec.timed_out).filter_map(|exec| exec.deadline);
        let sweeping = self.leftovers.iter().any(|left| left.killing_until.is_some());
        timeouts.chain(sweeping.then(|| Instant::now() + SWEEP)).min()
    }

    /// Lets a program begin in the container whose first process is `target`; the answer comes when it is decided
    /// whether it does.
    pub fn begin(
        &mut self,
        (bundle, users): (&Bundle, Option<&Users>),
        target: &OwnedFd,
        (client, stdio): (RawFd, [RawFd; 3]),
        exec: Exec,
    ) -> Result<(), Failure> {
        let container = bundle.launch.cgroup.as_ref();
        if container.is_some_and(Cgroup::is_frozen) {
            // It would be held still on its way in.
            return Err(Failure::setup("the container is paused: unpause it first"));
        }
        let mut process = bundle.spec.process.clone();
        process.args = exec.args;
        process.env.extend(exec.env);
        if let Some(workdir) = exec.workdir {
            process.cwd = workdir;
        }
        let program = Program {
            process: &process,
            users,
            user: exec.user.as_deref().unwrap_or(&bundle.launch.user),
            groups: if exec.user.is_none() { &bundle.launch.groups } else { &[] },
            seccomp: &bundle.seccomp,
            stdio,
            first: false,
            init: false,
            tty: exec.tty,
        };
        // One of its own, so that it can be ended with all it starts.
        self.begun += 1;
        let part = container.map(|cgroup| cgroup.divide(&format!("exec-{}", self.begun))).transpose();
        let cgroup = part.map_err(|error| Failure::setup(error.to_string()))?.flatten();
        let cgroups: Vec<&Cgroup> = container.into_iter().chain(&cgroup).collect();
        let begun = Beginning::of(target, &cgroups, &program);
        let deadline = exec.timeout_ms.map(|timeout| Instant::now() + Duration::from_millis(timeout));
        let (client, contained) = (Some(client), exec.contained);
        let execution = Execution { client, pidfd: None, deadline, timed_out: false, contained, cgroup };
        match begun {
            Ok(beginning) => self.beginnings.push((beginning, execution)),
            Err(failure) => {
                self.leftovers.extend(execution.leftover());
                return Err(failure);
            }
        }
        Ok(())
    }

    /// Signals one that runs. One that has ended meanwhile is no error.
    pub fn signal(&self, pid: i32, signal: i32) -> io::Result<()> {
        self.running.get(&pid).map_or(Ok(()), |exec| exec.signal(signal))
    }

    /// Looks after programs that are on their way in, once children that have ended are known.
    pub fn hear(&mut self, ready: &[RawFd]) -> Vec<Answer> {
        let mut answers = Vec::new();
        let mut at = 0;
        while at < self.beginnings.len() {
            let (beginning, _) = &mut self.beginnings[at];
            let heard = if ready.contains(&beginning.reports()) { beginning.hear() } else { None };
            let Some(decided) = heard else {
                at += 1;
                continue;
            };
            let (_, exec) = self.beginnings.swap_remove(at);
            self.decided(exec, decided, &mut answers);
        }
        if self.beginnings.is_empty() {
            self.strays.clear();
        }
        answers
    }

    fn decided(&mut self, mut exec: Execution, decided: Result<Beside, Failure>, answers: &mut Vec<Answer>) {
        match decided {
            Ok(Beside { child: Child { pid, pidfd }, terminal }) => {
                exec.pidfd = Some(pidfd);
                answers.extend(exec.answer(Reply::Spawned { pid }, terminal));
                self.running.insert(pid, exec);
                if let Some(status) = self.strays.remove(&pid) {
                    answers.extend(self.ended(pid, status));
                }
            }
            Err(Failure { code, message }) => {
                answers.extend(exec.answer(Reply::Failed { code, message }, None));
                self.leftovers.extend(exec.leftover());
            }
        }
    }

    /// A child of the shim has ended, whatever it was.
    pub fn ended(&mut self, pid: i32, status: i32) -> Option<Answer> {
        let Some(exec) = self.running.remove(&pid) else {
            if !self.beginnings.is_empty() {
                self.strays.insert(pid, status);
            }
            return None;
        };
        let reply = Reply::ExecExited { code: exit_code(status).0, timed_out: exec.timed_out };
        let answer = exec.answer(reply, None);
        self.leftovers.extend(exec.leftover());
        answer
    }

    /// Kills those whose time is up.
    pub fn enforce_timeouts(&mut self) -> Vec<Answer> {
        let now = Instant::now();
        let over = |exec: &Execution| exec.deadline.is_some_and(|deadline| deadline <= now);
        for (pid, exec) in self.running.iter_mut().filter(|(_, exec)| !exec.timed_out && over(exec)) {
            exec.timed_out = true;
            exec.kill(*pid);
        }
        let mut answers = Vec::new();
        for exec in self.give_up(over) {
            let message = "it did not come to run in time".into();
            answers.extend(exec.answer(Reply::Failed { code: 125, message }, None));
            self.leftovers.extend(exec.leftover());
        }
        answers
    }

    /// Ends some of those that are on their way in.
    fn give_up(&mut self, which: impl Fn(&Execution) -> bool) -> Vec<Execution> {
        let (gone, kept) =
            std::mem::take(&mut self.beginnings).into_iter().partition(|(_, exec)| which(exec));
        self.beginnings = kept;
        let gone: Vec<(Beginning, Execution)> = gone;
        let given_up = |(beginning, mut exec): (Beginning, Execution)| {
            beginning.give_up();
            exec.timed_out = true;
            exec
        };
        gone.into_iter().map(given_up).collect()
    }

    /// Removes the cgroups of ended programs. What others than the contained have started may live on in them.
    pub fn sweep(&mut self) {
        let now = Instant::now();
        self.leftovers.retain_mut(|left| {
            if left.killing_until.is_some() {
                left.cgroup.kill();
            }
            left.killing_until = left.killing_until.filter(|until| *until > now);
            left.cgroup.remove(Duration::ZERO).is_err()
        });
    }

    /// Nobody listens there any more. What nobody has been told of that it runs is not let run.
    pub fn forget(&mut self, client: RawFd) {
        for exec in self.give_up(|exec| exec.client == Some(client)) {
            self.leftovers.extend(exec.leftover());
        }
        for (pid, exec) in self.running.iter_mut().filter(|(_, exec)| exec.client == Some(client)) {
            exec.client = None;
            if exec.contained {
                exec.kill(*pid);
            }
        }
    }
}
