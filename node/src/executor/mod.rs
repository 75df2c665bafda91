//! Containers on this machine: made, started, watched, stopped and removed, each behind a shim that outlives the
//! daemon. In go requests and layers already unpacked; out come states, events and logs. Which containers there
//! should be, images and networks are the business of others.
//!
//! All operations may be repeated: asking for what is already so succeeds.

mod attach;
pub mod bundle;
mod dial;
mod entry;
mod exec;
mod logs;
mod look;
mod probe;
mod request;
mod runtime;
mod seccomp;
mod shim;
mod users;

use std::collections::BTreeMap;
use std::fs;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::files::Ids;
pub use attach::{AttachEnd, Attached};
use entry::{Entry, Meta, PARTIAL, clear_away, containers, partial, remove_directory, unix_ns};
pub use exec::{ExecExit, Execution};
pub use logs::{LogEntry, LogQuery, LogStream, Logs};
pub use look::{Process, Traffic};
pub use probe::{Probe, ProbeOutcome};
pub use request::device_numbers;
pub use request::{
    ContainerRequest, Device, Dns, Hook, IoLimit, Limits, LogDriver, LogOptions, Mount, Privileges, Rlimit,
};
use rswarm_shim::cgroup::{Cgroup, Lack, Layout};
pub use rswarm_shim::cgroup::{Pressure, Usage};
pub use rswarm_shim::protocol::{Exec, Exit, Running, WindowSize};
use rswarm_shim::protocol::{Ready, Reply, Request};
use runtime::Runtime;
use shim::{Client, Program};
use tokio::sync::broadcast;
use tokio::time::timeout;
pub use users::UserIds;

/// The file the executor keeps for itself in each container's directory.
const META_FILE: &str = "container.json";
/// Events kept for a subscriber that is behind.
const EVENTS_MAX: usize = 4096;
/// How long a killed container may take to be gone. A process in uninterruptible sleep takes longer.
const DEATH_MAX: Duration = Duration::from_secs(10);
/// Containers that are written down at once, if their ids do not happen to meet.
const CREATIONS: usize = 32;
/// The code of a container whose end nobody saw.
const CODE_LOST: i32 = 255;
/// What is then said to have happened to it.
pub const LOST: &str = "the container's shim is gone, and with it how the container ended";

/// Where an executor keeps its things.
#[derive(Clone, Debug)]
pub struct Config {
    /// Containers' directories: specification, writable layer, log, exit record. Survives a restart of the machine.
    pub root_dir: PathBuf,
    /// Sockets and locks. Should not survive a restart of the machine.
    pub run_dir: PathBuf,
    /// The cgroup above all containers, relative to the root of the hierarchies, for example `rswarm` or
    /// `rswarm/n1`. No two executors may have the same.
    pub cgroup_parent: String,
    /// Where the hierarchies are mounted, usually `/sys/fs/cgroup`.
    pub cgroup_mount: PathBuf,
    /// The ids that containers with users of their own are given.
    pub user_ids: UserIds,
    /// The OCI runtime that makes the containers. None: their shims do.
    pub runtime: Option<PathBuf>,
}

/// Why something was not done.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The request cannot be carried out anywhere.
    #[error("container {id:?} is not valid: {reason}")]
    Invalid {
        /// The container.
        id: String,
        /// What is wrong with it.
        reason: String,
    },
    /// There is no such container.
    #[error("there is no container {0}")]
    Unknown(String),
    /// It has ended. A container is started once; make another one.
    #[error("container {0} has ended and is not started again")]
    Ended(String),
    /// It does not run.
    #[error("container {0} is not running")]
    NotRunning(String),
    /// Its program could not be executed; the exit record says the same.
    #[error("{message}")]
    Start {
        /// 125: set-up failed; 126: the program cannot be executed; 127: it does not exist.
        code: i32,
        /// Why.
        message: String,
    },
    /// Its shim refused or could not be reached.
    #[error("container {id}: {message}")]
    Shim {
        /// The container.
        id: String,
        /// Why.
        message: String,
    },
    /// What it writes is kept where it cannot be read from here.
    #[error("container {id}: {message}")]
    Unreadable {
        /// The container.
        id: String,
        /// Where it is, if anywhere.
        message: String,
    },
    /// It was killed but is still there.
    #[error("container {0} does not die: a process in it hangs in the kernel")]
    Undead(String),
    /// The runtime that it was to use will not do.
    #[error("{0}")]
    Runtime(String),
    /// The machine refused.
    #[error("{what}: {source}")]
    Io {
        /// What was tried.
        what: String,
        /// What the machine said.
        source: io::Error,
    },
}

type Result<T> = std::result::Result<T, Error>;

fn io_error(what: impl Into<String>) -> impl FnOnce(io::Error) -> Error {
    let what = what.into();
    move |source| Error::Io { what, source }
}

/// How a container ended, in words; empty if by its own exit alone.
pub fn ending(exit: &Exit) -> String {
    let name = |number: i32| match nix::sys::signal::Signal::try_from(number) {
        Ok(signal) => format!("signal {number} ({signal})"),
        Err(_) => format!("signal {number}"),
    };
    match (&exit.error, exit.oom_killed, exit.signal) {
        (Some(error), ..) => error.clone(),
        (None, true, _) => "killed by the kernel: out of memory".into(),
        (None, false, Some(number)) => format!("ended by {}", name(number)),
        (None, false, None) => String::new(),
    }
}

/// What is the case with a container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum State {
    /// Made, not yet started.
    Created,
    /// Its program runs.
    Running(Running),
    /// It has ended, or failed to start.
    Exited(Exit),
}

/// A container, as it is now.
#[derive(Clone, Debug)]
pub struct Container {
    /// Its id.
    pub id: String,
    /// As requested.
    pub labels: BTreeMap<String, String>,
    /// What is the case with it.
    pub state: State,
}

/// Something that happened to a container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// Its program runs.
    Started {
        /// The container.
        id: String,
        /// Its first process.
        pid: i32,
    },
    /// It has ended, or failed to start.
    Exited {
        /// The container.
        id: String,
        /// How.
        exit: Exit,
    },
    /// The subscriber was too slow and has missed events: only `list` knows.
    Missed,
}

/// Events from the moment of asking on.
pub struct Events(broadcast::Receiver<Event>);

impl Events {
    /// The next event. None: the executor is gone.
    pub async fn next(&mut self) -> Option<Event> {
        match self.0.recv().await {
            Ok(event) => Some(event),
            Err(broadcast::error::RecvError::Lagged(_)) => Some(Event::Missed),
            Err(broadcast::error::RecvError::Closed) => None,
        }
    }
}

/// The containers of this machine. Cheap to clone; all clones are one.
#[derive(Clone)]
pub struct Executor {
    inner: Arc<Inner>,
}

struct Inner {
    config: Config,
    program: Program,
    layout: Option<Layout>,
    lacks: Vec<Lack>,
    unlimited: Option<String>,
    runtime: Option<Runtime>,
    /// One of these is held while a container is written down, by its id, so that two requests for one do not meet on
    /// the disk.
    creations: [tokio::sync::Mutex<()>; CREATIONS],
    /// Held while one is written down that gets ids of its own.
    giving_ids: tokio::sync::Mutex<()>,
    entries: Mutex<BTreeMap<String, Arc<Entry>>>,
    events: broadcast::Sender<Event>,
}

impl Inner {
    fn creation(&self, id: &str) -> &tokio::sync::Mutex<()> {
        let mut hasher = DefaultHasher::new();
        id.hash(&mut hasher);
        &self.creations[hasher.finish() as usize % CREATIONS]
    }
}

impl Executor {
    /// Opens the executor and adopts every container it finds: what still runs is watched on, what has ended
    /// meanwhile is known with its exit record, and what lost its shim is killed and marked so.
    pub async fn open(config: Config) -> Result<Self> {
        for directory in [containers(&config.root_dir), config.run_dir.clone()] {
            fs::create_dir_all(&directory)
                .map_err(io_error(format!("cannot make {}", directory.display())))?;
        }
        let program = Program::seal().map_err(io_error("cannot keep the shim in memory"))?;
        let (layout, lacks, unlimited) = match usable_cgroups(&config) {
            Ok((layout, lacks)) if lacks.is_empty() => (Some(layout), lacks, None),
            Ok((layout, lacks)) => {
                let reason = format!("cgroups here cannot limit: {lacks:?}");
                (Some(layout), lacks, Some(reason))
            }
            Err(reason) => (None, Vec::new(), Some(reason)),
        };
        let runtime = match &config.runtime {
            Some(path) => Some(Runtime::find(path, layout.as_ref()).await.map_err(Error::Runtime)?),
            None => None,
        };
        let (events, _) = broadcast::channel(EVENTS_MAX);
        let (creations, giving_ids, entries) = Default::default();
        let inner = Inner {
            config,
            program,
            layout,
            lacks,
            unlimited,
            runtime,
            creations,
            giving_ids,
            entries,
            events,
        };
        let executor = Self { inner: Arc::new(inner) };
        executor.adopt().await?;
        Ok(executor)
    }

    /// Why some limits, or all, are not enforced here. None: they are.
    pub fn limits_unenforced(&self) -> Option<&str> {
        self.inner.unlimited.as_deref()
    }

    /// The OCI runtime that makes the containers, by name and version. None: their shims do.
    pub fn runtime(&self) -> Option<&str> {
        self.inner.runtime.as_ref().map(|runtime| runtime.name.as_str())
    }

    /// Makes a container ready to start. A container with the same id stays as it is.
    pub async fn create(&self, request: ContainerRequest) -> Result<()> {
        let executor = self.clone();
        undisturbed(async move {
            request::check(&request)?;
            let runtime = executor.inner.runtime.as_ref();
            let refused = match runtime {
                Some(runtime) => runtime.refuses(&request),
                None => (!request.hooks.is_empty()).then(|| "only another runtime runs hooks".to_owned()),
            };
            if let Some(reason) = refused {
                return Err(Error::Invalid { id: request.id, reason });
            }
            let _creation = executor.inner.creation(&request.id).lock().await;
            let _ids = match request.own_users {
                true => Some(executor.inner.giving_ids.lock().await),
                false => None,
            };
            if executor.entry(&request.id).is_ok() {
                return Ok(());
            }
            let writer = executor.clone();
            let entry = blocking(move || writer.write_down(&request)).await?;
            executor.entries().insert(entry.id.clone(), entry);
            Ok(())
        })
        .await
    }

    /// Starts a container and returns once its program has been executed.
    pub async fn start(&self, id: &str) -> Result<Running> {
        let (executor, entry) = (self.clone(), self.entry(id)?);
        undisturbed(async move { executor.start_entry(&entry).await }).await
    }

    /// Asks a container to end, and makes it end after `grace`. None: it was never started.
    pub async fn stop(&self, id: &str, grace: Duration) -> Result<Option<Exit>> {
        let entry = self.entry(id)?;
        match entry.state() {
            State::Created => return Ok(None),
            State::Exited(exit) => return Ok(Some(exit)),
            State::Running(_) => {}
        }
        let signal = entry.meta.stop_signal;
        // A shim that does not answer is dealt with by force, below.
        let asked = entry.ask(&Request::Kill { signal }).await;
        if asked.is_ok()
            && let Ok(exit) = timeout(grace, entry.exited()).await
        {
            return Ok(Some(exit));
        }
        self.end(&entry).await.map(Some)
    }

    /// Signals a container's first process. Succeeds if it has ended already.
    pub async fn kill(&self, id: &str, signal: i32) -> Result<()> {
        let entry = self.entry(id)?;
        match entry.state() {
            State::Created => Err(Error::NotRunning(id.into())),
            State::Exited(_) => Ok(()),
            State::Running(_) => entry.ask(&Request::Kill { signal }).await.map(drop),
        }
    }

    /// Removes a container, killing it if it runs, with its directory, log and cgroup. Succeeds if there is none.
    pub async fn remove(&self, id: &str) -> Result<()> {
        let Ok(entry) = self.entry(id) else {
            return Ok(());
        };
        let executor = self.clone();
        undisturbed(async move { executor.remove_entry(&entry).await }).await
    }

    /// Waits until a container has ended.
    pub async fn wait(&self, id: &str) -> Result<Exit> {
        let entry = self.entry(id)?;
        Ok(entry.exited().await)
    }

    /// All containers, by id.
    pub fn list(&self) -> Vec<Container> {
        self.entries().values().map(|entry| entry.describe()).collect()
    }

    /// One container.
    pub fn inspect(&self, id: &str) -> Result<Container> {
        self.entry(id).map(|entry| entry.describe())
    }

    /// What happens from now on.
    pub fn events(&self) -> Events {
        Events(self.inner.events.subscribe())
    }

    /// What a running container uses.
    pub async fn stats(&self, id: &str) -> Result<Usage> {
        let entry = self.running(id)?;
        match entry.ask(&Request::Usage).await? {
            Reply::Usage(usage) => Ok(usage),
            other => Err(entry.unexpected(&other)),
        }
    }

    /// Changes the limits of a running container. Those that this machine cannot enforce are left out. What was asked
    /// for last is what holds: one change waits for the end of another, also of one whose caller has given up.
    pub async fn update(&self, id: &str, limits: Limits) -> Result<()> {
        let limits = limits.without(&self.inner.lacks);
        let entry = self.running(id)?;
        let turn = entry.tuning.clone().lock_owned().await;
        undisturbed(async move {
            let _turn = turn;
            entry.ask(&Request::Update(limits)).await.map(drop)
        })
        .await
    }

    /// Puts off the end of a running container that was made with a lease, until `until_boot_ms` of
    /// [`boot_ms`](rswarm_shim::protocol::boot_ms).
    pub async fn lease(&self, id: &str, until_boot_ms: u64) -> Result<()> {
        self.running(id)?.ask(&Request::Lease { until_boot_ms }).await.map(drop)
    }

    /// Holds every process of a running container still. Succeeds if they are already.
    pub async fn pause(&self, id: &str) -> Result<()> {
        self.running(id)?.ask(&Request::Freeze { frozen: true }).await.map(drop)
    }

    /// Lets a paused container go on.
    pub async fn unpause(&self, id: &str) -> Result<()> {
        self.running(id)?.ask(&Request::Freeze { frozen: false }).await.map(drop)
    }

    /// Whether a container's processes are held still.
    pub fn is_paused(&self, id: &str) -> bool {
        self.entry(id).is_ok_and(|entry| entry.meta.cgroup.as_ref().is_some_and(Cgroup::is_frozen))
    }

    /// What a container has written, and with `follow` what it goes on to write.
    pub fn logs(&self, id: &str, query: LogQuery) -> Result<Logs> {
        let entry = self.entry(id)?;
        match entry.meta.log {
            LogDriver::Local => {}
            LogDriver::Journald => {
                let message =
                    "its log is in its node's journal: `journalctl CONTAINER_ID=` and its id shows it".into();
                return Err(Error::Unreadable { id: id.into(), message });
            }
            LogDriver::None => {
                let message = "its log is kept nowhere: its log driver is none".into();
                return Err(Error::Unreadable { id: id.into(), message });
            }
        }
        logs::open(&entry.directory, query)
            .map_err(io_error(format!("cannot read the log of container {id}")))
    }

    /// Removes the cgroups around containers if there is no container, as far as nobody else uses them.
    pub async fn tidy(&self) {
        let executor = self.clone();
        blocking(move || {
            let inner = &executor.inner;
            let Some(layout) = inner.layout.as_ref().filter(|_| executor.list().is_empty()) else { return };
            for path in [shims_path(&inner.config), inner.config.cgroup_parent.clone()] {
                // What is still in use stays, and is no error.
                let cgroup = Cgroup { layout: layout.clone(), path };
                let _ = cgroup.remove(Duration::ZERO);
                cgroup.remove_beside();
            }
        })
        .await;
    }

    /// Removes every container, and what the executor itself has made.
    pub async fn purge(&self) -> Result<()> {
        for container in self.list() {
            self.remove(&container.id).await?;
        }
        let executor = self.clone();
        blocking(move || {
            let inner = &executor.inner;
            if let Some(layout) = &inner.layout {
                for path in [shims_path(&inner.config), inner.config.cgroup_parent.clone()] {
                    let cgroup = Cgroup { layout: layout.clone(), path };
                    cgroup.remove(DEATH_MAX)?;
                    cgroup.remove_beside();
                }
            }
            for directory in [containers(&inner.config.root_dir), inner.config.run_dir.clone()] {
                remove_directory(&directory)?;
            }
            Ok(())
        })
        .await
        .map_err(io_error("cannot purge"))
    }

    fn entries(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, Arc<Entry>>> {
        self.inner.entries.lock().expect("no one panics while holding the map")
    }

    fn entry(&self, id: &str) -> Result<Arc<Entry>> {
        self.entries().get(id).cloned().ok_or_else(|| Error::Unknown(id.into()))
    }

    fn running(&self, id: &str) -> Result<Arc<Entry>> {
        let entry = self.entry(id)?;
        match entry.state() {
            State::Running(_) => Ok(entry),
            State::Created | State::Exited(_) => Err(Error::NotRunning(id.into())),
        }
    }

    fn announce(&self, event: Event) {
        // No one listens: no one is to be told.
        let _ = self.inner.events.send(event);
    }

    /// The end of a container, learnt once.
    fn settle(&self, entry: &Entry, exit: Exit) {
        let event = Event::Exited { id: entry.id.clone(), exit: exit.clone() };
        let changed = entry.state.send_if_modified(|state| {
            let news = !matches!(state, State::Exited(_));
            if news {
                *state = State::Exited(exit);
            }
            news
        });
        if changed {
            self.announce(event);
        }
    }

    /// Kills all of a running container and waits until that is on record.
    async fn end(&self, entry: &Arc<Entry>) -> Result<Exit> {
        if entry.ask(&Request::KillAll).await.is_err() {
            let entry = entry.clone();
            blocking(move || entry.kill_by_force()).await;
        }
        timeout(DEATH_MAX, entry.exited()).await.map_err(|_| Error::Undead(entry.id.clone()))
    }

    async fn start_entry(&self, entry: &Arc<Entry>) -> Result<Running> {
        let id = entry.id.as_str();
        let _operation = entry.operation.lock().await;
        match entry.state() {
            State::Running(running) => return Ok(running),
            State::Exited(_) => return Err(Error::Ended(id.into())),
            State::Created => {}
        }
        let launch = {
            let (executor, entry) = (self.clone(), entry.clone());
            move || {
                fs::create_dir_all(&entry.run_directory)?;
                executor.inner.program.launch(&entry.directory, &entry.run_directory)
            }
        };
        match blocking(launch).await {
            Ok(Ready::Running(running)) => {
                entry.state.send_replace(State::Running(running.clone()));
                self.announce(Event::Started { id: id.into(), pid: running.pid });
                self.watch(entry.clone(), None);
                Ok(running)
            }
            Ok(Ready::Failed(exit)) => {
                let message = exit.error.clone().unwrap_or_default();
                let code = exit.code;
                self.settle(entry, exit);
                Err(Error::Start { code, message })
            }
            Err(error) => {
                let message = format!("cannot start container {id}: {error}");
                let lost = entry.clone();
                let reason = message.clone();
                let exit = blocking(move || clear_away(&lost, 125, &reason)).await;
                self.settle(entry, exit);
                Err(Error::Start { code: 125, message })
            }
        }
    }

    async fn remove_entry(&self, entry: &Arc<Entry>) -> Result<()> {
        let _operation = entry.operation.lock().await;
        if let State::Running(_) = entry.state() {
            self.end(entry).await?;
        }
        entry.without_shim().await?;
        let gone = entry.clone();
        let what = format!("cannot remove container {}", entry.id);
        blocking(move || gone.erase()).await.map_err(io_error(what))?;
        let mut entries = self.entries();
        // Meanwhile another removal may have been faster, and another container have taken the name.
        if entries.get(&entry.id).is_some_and(|present| Arc::ptr_eq(present, entry)) {
            entries.remove(&entry.id);
        }
        Ok(())
    }

    fn write_down(&self, request: &ContainerRequest) -> Result<Arc<Entry>> {
        let inner = &self.inner;
        let home = containers(&inner.config.root_dir).join(&request.id);
        let partial = partial(&home);
        let what = || io_error(format!("cannot make container {}", request.id));
        let cgroup = |path: String| inner.layout.clone().map(|layout| Cgroup { layout, path });
        // Never used again, so that the dying processes of one instance are never met by the next.
        let path = format!("{}/{}-{:x}", inner.config.cgroup_parent, request.id, unix_ns());
        let meta = Meta {
            labels: request.labels.clone(),
            stop_signal: request.stop_signal,
            cgroup: cgroup(path),
            log: request.log.driver,
            users: self.users(request)?,
            runtime: inner.runtime.as_ref().map(|runtime| runtime.path.clone()),
        };
        remove_directory(&partial).map_err(what())?;
        let write = || -> io::Result<()> {
            fs::create_dir(&partial)?;
            let shims = cgroup(shims_path(&inner.config));
            let request =
                ContainerRequest { limits: request.limits.clone().without(&inner.lacks), ..request.clone() };
            bundle::write(&partial, &home, &request, &meta, shims.as_ref())?;
            fs::write(partial.join(META_FILE), serde_json::to_vec(&meta)?)?;
            fs::rename(&partial, &home)
        };
        if let Err(error) = write() {
            let _ = remove_directory(&partial);
            return Err(what()(error));
        }
        Ok(Arc::new(Entry::new(&inner.config, &request.id, meta, State::Created)))
    }

    /// The ids of a container that has users of its own. Only one such is made at a time, so nobody else takes them.
    fn users(&self, request: &ContainerRequest) -> Result<Option<Ids>> {
        if !request.own_users {
            return Ok(None);
        }
        let refused = |reason: &str| Err(Error::Invalid { id: request.id.clone(), reason: reason.into() });
        if bundle::in_user_namespace() {
            return refused("it cannot have users of its own: this node runs in a user namespace itself");
        }
        let entries = self.entries();
        let taken = entries.values().filter_map(|entry| entry.meta.users);
        match self.inner.config.user_ids.free(taken) {
            Some(ids) => Ok(Some(ids)),
            None => refused("all ids that this node has for the users of containers are taken"),
        }
    }

    async fn adopt(&self) -> Result<()> {
        let root = containers(&self.inner.config.root_dir);
        let what = || io_error(format!("cannot read {}", root.display()));
        for found in fs::read_dir(&root).map_err(what())? {
            let path = found.map_err(what())?.path();
            let Some(id) = path.file_name().and_then(|name| name.to_str()) else {
                continue;
            };
            let meta =
                fs::read(path.join(META_FILE)).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok());
            let Some(meta) = meta.filter(|_| !id.ends_with(PARTIAL)) else {
                // Half made or half removed.
                remove_directory(&path).map_err(what())?;
                continue;
            };
            let entry = Arc::new(Entry::new(&self.inner.config, id, meta, State::Created));
            self.find_out(&entry).await;
            self.entries().insert(id.into(), entry);
        }
        Ok(())
    }

    /// What has become of a container while nobody watched.
    async fn find_out(&self, entry: &Arc<Entry>) {
        if let Some(exit) = entry.exit_record() {
            entry.state.send_replace(State::Exited(exit));
            return;
        }
        if !entry.run_directory.exists() && !entry.was_started() {
            return;
        }
        if let Some((client, running)) = entry.reach().await {
            entry.state.send_replace(State::Running(running));
            return self.watch(entry.clone(), Some(client));
        }
        // Between the two looks it may have ended in good order.
        let lost = entry.clone();
        let exit =
            blocking(move || lost.exit_record().unwrap_or_else(|| clear_away(&lost, CODE_LOST, LOST))).await;
        entry.state.send_replace(State::Exited(exit));
    }

    /// Waits for the end of a running container, in a task of its own that ends with the container.
    fn watch(&self, entry: Arc<Entry>, client: Option<Client>) {
        let executor = self.clone();
        tokio::spawn(async move {
            let heard = entry.await_exit(client).await;
            let exit = match heard {
                Ok(exit) => exit,
                Err(_) => {
                    let _ = entry.without_shim().await;
                    let lost = entry.clone();
                    let end =
                        move || lost.exit_record().unwrap_or_else(|| clear_away(&lost, CODE_LOST, LOST));
                    blocking(end).await
                }
            };
            executor.settle(&entry, exit);
        });
    }
}

/// The cgroups, if this process may make some; else why not.
fn usable_cgroups(config: &Config) -> std::result::Result<(Layout, Vec<Lack>), String> {
    let mount = &config.cgroup_mount;
    let layout =
        Layout::detect(mount).ok_or_else(|| format!("there are no cgroups at {}", mount.display()))?;
    let shims = Cgroup { layout: layout.clone(), path: shims_path(config) };
    shims.create().map_err(|error| error.to_string())?;
    Ok((layout, shims.lacks()))
}

fn shims_path(config: &Config) -> String {
    format!("{}/shims", config.cgroup_parent)
}

/// Runs to its end even if the caller stops waiting: half a start would be a container nobody watches.
async fn undisturbed<T: Send + 'static>(work: impl Future<Output = T> + Send + 'static) -> T {
    tokio::spawn(work).await.expect("the work does not panic, and the runtime waits for it")
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    tokio::task::spawn_blocking(work).await.expect("the work does not panic, and the runtime waits for it")
}
