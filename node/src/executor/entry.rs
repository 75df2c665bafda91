//! One container on the disk and behind its shim: what is remembered of it, how it is reached, and how it is cleared
//! away when its shim is no more.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rswarm_shim::cgroup::Cgroup;
use rswarm_shim::protocol::{
    EXIT_FILE, EXIT_ROOM_FILE, Exit, LogDriver, Reply, Request, Running, SHIM_LOG_FILE, STATE_FILE,
};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio::time::timeout;

use super::shim::{self, Client};
use super::{Config, Container, DEATH_MAX, Error, Result, State};
use crate::files::Ids;

/// Appended to the name of a directory that is not complete yet, or not any more.
pub(super) const PARTIAL: &str = ".partial";
/// How long a live shim may take to answer.
const ANSWER_MAX: Duration = Duration::from_secs(10);

pub(super) struct Entry {
    pub(super) id: String,
    pub(super) directory: PathBuf,
    pub(super) run_directory: PathBuf,
    pub(super) meta: Meta,
    pub(super) state: watch::Sender<State>,
    /// Held by what must not happen twice at once: the start and the removal.
    pub(super) operation: tokio::sync::Mutex<()>,
    /// Held while its limits are changed.
    pub(super) tuning: Arc<tokio::sync::Mutex<()>>,
}

/// What the executor must remember of a request.
#[derive(Clone, Serialize, Deserialize)]
pub(super) struct Meta {
    pub(super) labels: BTreeMap<String, String>,
    pub(super) stop_signal: i32,
    pub(super) cgroup: Option<Cgroup>,
    #[serde(default)]
    pub(super) log: LogDriver,
    /// Which of the machine's ids its users are, if it has some of its own.
    #[serde(default)]
    pub(super) users: Option<Ids>,
    /// What makes it, if not its shim.
    #[serde(default)]
    pub(super) runtime: Option<PathBuf>,
}

impl Entry {
    pub(super) fn new(config: &Config, id: &str, meta: Meta, state: State) -> Self {
        Self {
            id: id.into(),
            directory: containers(&config.root_dir).join(id),
            run_directory: config.run_dir.join(id),
            meta,
            state: watch::Sender::new(state),
            operation: tokio::sync::Mutex::default(),
            tuning: Arc::default(),
        }
    }

    pub(super) fn state(&self) -> State {
        self.state.borrow().clone()
    }

    pub(super) fn describe(&self) -> Container {
        Container { id: self.id.clone(), labels: self.meta.labels.clone(), state: self.state() }
    }

    pub(super) async fn exited(&self) -> Exit {
        let mut state = self.state.subscribe();
        loop {
            if let State::Exited(exit) = &*state.borrow_and_update() {
                return exit.clone();
            }
            state.changed().await.expect("the entry holds the sender");
        }
    }

    pub(super) async fn ask(&self, request: &Request) -> Result<Reply> {
        let failed = |message: String| Error::Shim { id: self.id.clone(), message };
        let answer = async { Client::connect(&self.run_directory).await?.ask(request).await };
        match timeout(ANSWER_MAX, answer).await {
            Ok(Ok(Reply::Failed { message, .. })) => Err(failed(message)),
            Ok(Ok(reply)) => Ok(reply),
            Ok(Err(error)) => Err(failed(format!("cannot reach its shim: {error}"))),
            Err(_) => Err(failed("its shim does not answer".into())),
        }
    }

    pub(super) fn unexpected(&self, reply: &Reply) -> Error {
        Error::Shim { id: self.id.clone(), message: format!("unexpected answer {reply:?}") }
    }

    pub(super) fn exit_record(&self) -> Option<Exit> {
        serde_json::from_slice(&fs::read(self.directory.join(EXIT_FILE)).ok()?).ok()
    }

    pub(super) fn running_record(&self) -> Option<Running> {
        serde_json::from_slice(&fs::read(self.run_directory.join(STATE_FILE)).ok()?).ok()
    }

    /// A shim has been started on it once, even if the machine has been restarted since.
    pub(super) fn was_started(&self) -> bool {
        self.directory.join(SHIM_LOG_FILE).exists()
    }

    /// Speaks to the shim if it lives, waiting for one that has only just begun.
    pub(super) async fn reach(&self) -> Option<(Client, Running)> {
        let attempt = async {
            loop {
                let state = async {
                    let mut client = Client::connect(&self.run_directory).await?;
                    let reply = client.ask(&Request::State).await?;
                    Ok::<_, io::Error>((client, reply))
                };
                if let Ok((client, Reply::State { running })) = state.await {
                    return Some((client, running));
                }
                if !matches!(shim::try_lock(&self.run_directory), Ok(None)) {
                    return None;
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        timeout(ANSWER_MAX, attempt).await.ok().flatten()
    }

    pub(super) async fn await_exit(&self, client: Option<Client>) -> io::Result<Exit> {
        let mut client = match client {
            Some(client) => client,
            None => Client::connect(&self.run_directory).await?,
        };
        match client.ask(&Request::Wait).await? {
            Reply::Exited(exit) => Ok(exit),
            other => Err(io::Error::other(format!("unexpected answer {other:?}"))),
        }
    }

    /// Waits until no shim holds the lock.
    pub(super) async fn without_shim(&self) -> Result<()> {
        let free = async {
            while self.run_directory.exists() && matches!(shim::try_lock(&self.run_directory), Ok(None)) {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        timeout(DEATH_MAX, free).await.map_err(|_| Error::Undead(self.id.clone()))
    }

    /// Kills what there is without the shim's help.
    pub(super) fn kill_by_force(&self) {
        if let Some(cgroup) = &self.meta.cgroup {
            cgroup.kill();
        }
        if let Some(running) = self.running_record()
            && running.start_ticks != 0
            && start_ticks(running.pid) == Some(running.start_ticks)
            && let Some(pid) = rustix::process::Pid::from_raw(running.pid)
        {
            // It may have ended in this very moment.
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
        }
    }

    /// Removes what only a runtime of others' has made for it.
    fn clear_beside(&self, cgroup: &Cgroup) {
        if self.meta.runtime.is_some() {
            cgroup.remove_beside();
        }
    }

    pub(super) fn erase(&self) -> io::Result<()> {
        if let Some(cgroup) = &self.meta.cgroup {
            cgroup.kill();
            cgroup.remove(DEATH_MAX)?;
            self.clear_beside(cgroup);
        }
        remove_directory(&self.run_directory)?;
        let partial = partial(&self.directory);
        match fs::rename(&self.directory, &partial) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        remove_directory(&partial)
    }
}

/// Ends what is left of a container without a shim, and writes the exit record in the shim's place.
pub(super) fn clear_away(entry: &Entry, code: i32, reason: &str) -> Exit {
    entry.kill_by_force();
    if let Some(cgroup) = &entry.meta.cgroup {
        if let Err(error) = cgroup.remove(DEATH_MAX) {
            tracing::warn!(container = %entry.id, %error, "a cgroup stays behind");
        }
        entry.clear_beside(cgroup);
    }
    let exit = Exit {
        code,
        signal: None,
        oom_killed: false,
        error: Some(reason.into()),
        started_unix_ns: entry.running_record().map(|running| running.started_unix_ns),
        finished_unix_ns: unix_ns(),
        log_dropped_bytes: 0,
    };
    let write = || -> io::Result<()> {
        let temporary = entry.directory.join(EXIT_ROOM_FILE);
        fs::write(&temporary, serde_json::to_vec(&exit)?)?;
        fs::rename(temporary, entry.directory.join(EXIT_FILE))
    };
    if let Err(error) = write() {
        tracing::warn!(container = %entry.id, %error, "cannot record the exit");
    }
    exit
}

pub(super) fn containers(root_dir: &Path) -> PathBuf {
    root_dir.join("containers")
}

pub(super) fn partial(directory: &Path) -> PathBuf {
    let mut name = directory.as_os_str().to_owned();
    name.push(PARTIAL);
    name.into()
}

pub(super) fn remove_directory(path: &Path) -> io::Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// When a process began, in clock ticks since boot.
pub(super) fn start_ticks(pid: i32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The command's name, in parentheses, may hold anything; what follows it is fields 3, 4, ...
    stat.rsplit(')').next()?.split_whitespace().nth(19)?.parse().ok()
}

pub(super) fn unix_ns() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |age| age.as_nanos() as u64)
}
