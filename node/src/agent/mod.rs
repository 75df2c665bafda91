//! The node's half of the work: holds the session with the leader, keeps containers as `control::worker` says,
//! tells the overlay its table, and reports.

mod backlog;
mod copy;
mod doors;
mod enter;
mod feed;
mod health;
mod kept;
mod news;
mod profile;
pub(crate) mod session;
mod table;
mod tables;
mod template;
mod work;

use crate::executor::{self, Executor};
use crate::identity::tls::Credentials;
use crate::identity::{Identity, ManagerAddr, ca};
use crate::image::Store;
use crate::member::Ground;
use crate::rpc::dial::Dialer;
use anyhow::{Context, Result};
use doors::Doors;
use health::Watches;
#[cfg(test)]
pub(crate) use news::Follower;
use rswarm_control::assignment::{AssignedTask, Assignment, Difference};
use rswarm_control::ids::{NodeId, TaskId};
use rswarm_control::liveness::LEASE_GRACE;
use rswarm_control::time::Timestamp;
use rswarm_control::worker::{Action, Effect, Seen, Worker};
use rswarm_netoverlay::Overlay;
use rswarm_netoverlay::table::NetworkId;
use rswarm_proto::v1 as pb;
use rswarm_raft::Incarnation;
use rswarm_shim::protocol::{Exit, LEASE_OVER, boot_ms};
use session::{Managers, Outbox, Session};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tables::Tables;
use tokio::sync::{Notify, mpsc, oneshot, watch};
use tokio::task::AbortHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use work::{Hands, Places};

/// After a step that failed and must be done all the same.
const AGAIN: Duration = Duration::from_secs(1);
/// How long a node that leaves waits for its containers to end.
const CLEAR: Duration = Duration::from_secs(60);

pub use session::Standing;

/// What the session hears.
pub(crate) enum Heard {
    /// What this node should hold.
    Assignment(pb::Assignment),
    /// What has changed of that.
    Difference(pb::AssignmentDifference),
    /// The leader has confirmed what was said then, by [`boot_ms`].
    Confirmed(Timestamp),
    /// What it should know.
    Table(pb::Table),
    /// What has changed of that.
    News(pb::TableNews),
    /// Who the managers are, and what it should be among them.
    Managers(pb::ManagerList),
    /// The cluster goes on in this life, and this manager is of an earlier one.
    Outdated(Incarnation),
    /// The cluster does not want it any more.
    Refused {
        /// It was removed; else another daemon has its identity.
        removed: bool,
        /// Why.
        words: String,
    },
}

/// What the cluster wants this node to be.
#[derive(Clone, Debug)]
pub enum Order {
    /// Not heard yet.
    None,
    /// Worker or manager, among these.
    Be(pb::ManagerList),
    /// Not what it is: the cluster goes on in this life, and this manager is of an earlier one.
    Outdated(Incarnation),
    /// Nothing any more, for this reason.
    Gone(String),
}

/// What an agent needs.
pub struct Setting {
    /// Containers, images, configuration.
    pub ground: Ground,
    /// This node.
    pub node: NodeId,
    /// Its identity.
    pub identity: Identity,
    /// Its certificate.
    pub credentials: Arc<Credentials>,
    /// Makes connections.
    pub dialer: Arc<Dialer>,
    /// What the node says of its seat.
    pub standing: watch::Receiver<Standing>,
    /// Ends it.
    pub stop: CancellationToken,
    /// Counts what it spawns.
    pub tracker: TaskTracker,
}

/// A running agent.
pub struct Agent {
    managers: Arc<Mutex<Managers>>,
    elsewhere: Arc<Notify>,
    contact: watch::Receiver<Option<Instant>>,
    orders: watch::Receiver<Order>,
    clear: mpsc::Sender<oneshot::Sender<()>>,
    executor: Arc<Executor>,
    images: Arc<Store>,
    overlay: Overlay,
    session: CancellationToken,
}

impl Agent {
    /// Starts the overlay, finds what runs already, and looks for the leader.
    pub async fn start(setting: Setting) -> Result<Self> {
        let Setting { ground, node, identity, credentials, dialer, standing, stop, tracker } = setting;
        let my_addr: SocketAddr =
            identity.advertise_addr.parse().context("the identity on disk has a malformed address")?;
        let overlay = crate::overlay::start(&ground.config, &identity, credentials)?;
        let dir = ground.config.state_dir.join("agent");
        let executor = ground.executor.clone();
        let events = executor.events();
        let found = executor
            .list()
            .into_iter()
            .filter_map(|container| Some((work::task_of(&container.id)?, seen(&container))));
        let worker = Worker::new(node, found.collect());

        let (heard_sender, heard) = mpsc::channel(64);
        let (contact_sender, contact) = watch::channel(None);
        let (order_sender, orders) = watch::channel(Order::None);
        let (clear, clears) = mpsc::channel(1);
        let (done_sender, done) = mpsc::channel(256);
        let (found_sender, found) = mpsc::channel(256);
        let watches = Watches::new(executor.clone(), found_sender);
        let managers = Arc::new(Mutex::new(Managers {
            known: identity.managers.clone(),
            leader: None,
            missing: BTreeMap::new(),
        }));
        let (outbox, elsewhere) = (Outbox::default(), Arc::new(Notify::new()));
        let described = ground.clone();
        let session = Session {
            dialer,
            outbox: outbox.clone(),
            heard: heard_sender,
            managers: managers.clone(),
            hello: Box::new(move || pb::Hello {
                hostname: crate::machine::hostname(),
                description: Some((&crate::machine::describe(&described)).into()),
                ..Default::default()
            }),
            contact: contact_sender,
            standing,
            elsewhere: elsewhere.clone(),
        };
        let hands = Hands {
            executor: executor.clone(),
            images: ground.images.clone(),
            registries: ground.registries.clone(),
            volumes: ground.volumes.clone(),
            overlay: overlay.clone(),
            node: node.to_string(),
            cdi_spec_dirs: ground.config.cdi_spec_dirs.clone(),
        };
        let mut agent = Loop {
            worker,
            assignment: Assignment::default(),
            tables: Tables::new(node, my_addr, dir.join("table.pb"), outbox.clone()),
            hands,
            outbox,
            orders: order_sender,
            steps: BTreeMap::new(),
            done: done_sender,
            watches,
            clearing: None,
        };
        // What ended or came to run while no daemon was there to say so.
        for report in agent.worker.reports() {
            agent.outbox.put(report.task, (&report).into());
        }
        agent.tables.remember(&agent.hands.overlay).await;
        agent.mend_networks().await;
        agent.watch_all();
        let session_stop = stop.child_token();
        let images = ground.images.clone();
        tracker.spawn(session.keep(session_stop.clone()));
        tracker.spawn(agent.run(Inbox { heard, events, done, found, clears }, stop));
        Ok(Self {
            managers,
            elsewhere,
            contact,
            orders,
            clear,
            executor,
            images,
            overlay,
            session: session_stop,
        })
    }

    /// When the leader was last heard, `None` until then.
    pub fn contact(&self) -> watch::Receiver<Option<Instant>> {
        self.contact.clone()
    }

    /// How long the leader has been silent; `None` when it was never heard.
    pub fn silent_for(&self) -> Option<Duration> {
        self.contact.borrow().map(|at| at.elapsed())
    }

    /// What the cluster wants this node to be.
    pub fn orders(&self) -> watch::Receiver<Order> {
        self.orders.clone()
    }

    /// The managers, as last heard.
    pub fn managers(&self) -> Vec<ManagerAddr> {
        self.managers.lock().unwrap_or_else(PoisonError::into_inner).known.clone()
    }

    /// A look at the managers, as last heard at that moment.
    pub fn known_managers(&self) -> impl Fn() -> Vec<ManagerAddr> + Send + Sync + 'static {
        let managers = self.managers.clone();
        move || managers.lock().unwrap_or_else(PoisonError::into_inner).known.clone()
    }

    /// From now on looks for the managers at these addresses, `ip[:port]`, until one says where they all are.
    ///
    /// # Errors
    /// If one is no address.
    pub fn look_at(&self, addrs: &[String]) -> Result<()> {
        let known = addrs.iter().map(|addr| {
            let with_port = format!("{addr}:{}", crate::config::PORT);
            let parsed: std::result::Result<SocketAddr, _> = addr.parse().or_else(|_| with_port.parse());
            let parsed = parsed.with_context(|| {
                format!("`{addr}` is not the address of a manager, for example 192.0.2.1:2377")
            })?;
            Ok(ManagerAddr { node: ca::ANY_NODE.into(), addr: parsed.to_string(), raft_id: 0 })
        });
        let known = known.collect::<Result<Vec<_>>>()?;
        let mut managers = self.managers.lock().unwrap_or_else(PoisonError::into_inner);
        (managers.known, managers.leader) = (known, None);
        drop(managers);
        self.elsewhere.notify_one();
        Ok(())
    }

    /// How long a manager that was asked has not answered; `None` for one that has, or was not asked yet.
    pub fn missing_for(&self, node: &str) -> Option<Duration> {
        let managers = self.managers.lock().unwrap_or_else(PoisonError::into_inner);
        managers.missing.get(node).copied().flatten().map(|since| since.elapsed())
    }

    /// The leader, as last heard.
    pub fn leader(&self) -> Option<ManagerAddr> {
        let managers = self.managers.lock().unwrap_or_else(PoisonError::into_inner);
        managers.known.iter().find(|manager| Some(&manager.node) == managers.leader.as_ref()).cloned()
    }

    /// The service `Agent`.
    pub fn doors(&self) -> Doors {
        Doors::new(self.executor.clone(), self.images.clone(), self.overlay.clone())
    }

    /// The overlay.
    pub fn overlay(&self) -> &Overlay {
        &self.overlay
    }

    /// Ends the session, stops and removes all containers, and takes the overlay down.
    pub async fn clear(&self) -> Result<()> {
        self.session.cancel();
        let (sender, cleared) = oneshot::channel();
        self.clear.send(sender).await.context("the agent has stopped")?;
        tokio::time::timeout(CLEAR, cleared)
            .await
            .with_context(|| format!("containers did not end within {} s", CLEAR.as_secs()))?
            .context("the agent has stopped")?;
        self.overlay.purge().await.context("cannot remove the overlay's networks")
    }
}

fn seen(container: &executor::Container) -> Seen {
    match &container.state {
        executor::State::Created => Seen::Prepared,
        executor::State::Running(running) => started(container, running.pid),
        executor::State::Exited(exit) => ended(exit),
    }
}

/// What has a health check runs when that says so.
fn started(container: &executor::Container, pid: i32) -> Seen {
    let pid = pid.unsigned_abs();
    if health::is_checked(&container.labels) { Seen::Starting { pid } } else { Seen::Running { pid } }
}

fn ended(exit: &Exit) -> Seen {
    if let Some(lost) = exit.error.as_deref().filter(|error| [executor::LOST, LEASE_OVER].contains(error)) {
        return Seen::Lost(lost.to_owned());
    }
    Seen::Ended { exit_code: Some(exit.code), error: executor::ending(exit) }
}

/// Everything the agent waits for.
struct Inbox {
    heard: mpsc::Receiver<Heard>,
    events: executor::Events,
    done: mpsc::Receiver<(TaskId, u64, Seen)>,
    found: mpsc::Receiver<(TaskId, Seen)>,
    clears: mpsc::Receiver<oneshot::Sender<()>>,
}

struct Loop {
    worker: Worker,
    assignment: Assignment,
    tables: Tables,
    hands: Hands,
    outbox: Outbox,
    orders: watch::Sender<Order>,
    /// Of each task the step under way, and its number: the answers of earlier ones no longer count.
    steps: BTreeMap<TaskId, (u64, AbortHandle)>,
    done: mpsc::Sender<(TaskId, u64, Seen)>,
    watches: Watches,
    clearing: Option<oneshot::Sender<()>>,
}

impl Loop {
    async fn run(mut self, mut inbox: Inbox, stop: CancellationToken) {
        loop {
            let lapse = self.worker.leased_until().filter(|_| self.worker.leased().next().is_some());
            tokio::select! {
                () = stop.cancelled() => return self.tables.write().await,
                () = until(lapse) => {
                    let effects = self.worker.fence(Timestamp(boot_ms()));
                    if !effects.is_empty() {
                        tracing::warn!(tasks = effects.len(), "the managers cannot be reached: stopping what is fenced");
                    }
                    self.carry_out(effects);
                }
                Some(heard) = inbox.heard.recv() => self.hear(heard).await,
                Some(event) = inbox.events.next() => self.happened(event),
                Some((task, generation, seen)) = inbox.done.recv() => {
                    if self.steps.get(&task).is_some_and(|(current, _)| *current == generation) {
                        self.steps.remove(&task);
                        self.observe(task, seen);
                    }
                }
                Some((task, seen)) = inbox.found.recv() => self.observe(task, seen),
                () = self.tables.due() => self.tables.write().await,
                Some(sender) = inbox.clears.recv() => {
                    self.clearing = Some(sender);
                    self.assign(Assignment::default());
                }
            }
            if self.worker.held().next().is_none()
                && let Some(cleared) = self.clearing.take()
            {
                let _ = cleared.send(());
                return;
            }
        }
    }

    fn happened(&mut self, event: executor::Event) {
        let (container, seen) = match event {
            executor::Event::Started { id, pid } => {
                let Ok(container) = self.hands.executor.inspect(&id) else { return };
                (id, started(&container, pid))
            }
            executor::Event::Exited { id, exit } => {
                self.unroute(&id);
                (id, ended(&exit))
            }
            executor::Event::Missed => {
                for container in self.hands.executor.list() {
                    if let Some(task) = work::task_of(&container.id) {
                        self.observe(task, seen(&container));
                        self.watch(task);
                    }
                }
                return;
            }
        };
        if let Some(task) = work::task_of(&container) {
            self.observe(task, seen);
            self.watch(task);
        }
    }

    /// Has a container asked how it is for as long as it runs.
    fn watch(&mut self, task: TaskId) {
        match self.hands.executor.inspect(&work::container_id(task)) {
            Ok(executor::Container { labels, state: executor::State::Running(running), .. }) => {
                self.watches.begin(task, &labels, &running);
            }
            Ok(_) | Err(_) => self.watches.end(task),
        }
    }

    fn watch_all(&mut self) {
        for task in self.worker.held().map(|(task, _)| task).collect::<Vec<_>>() {
            self.watch(task);
        }
    }

    /// Has the overlay take a container that has ended out of its services everywhere; the leader, who learns it by
    /// the report, will say the same.
    fn unroute(&self, container: &str) {
        let Ok(ended) = self.hands.executor.inspect(container) else { return };
        let (overlay, places) = (self.hands.overlay.clone(), work::places(&ended.labels));
        tokio::spawn(async move {
            if let Err(error) = overlay.ended(places).await {
                tracing::debug!(%error, "nobody is told that a task has ended");
            }
        });
    }

    async fn hear(&mut self, heard: Heard) {
        if self.clearing.is_some() {
            return;
        }
        match heard {
            Heard::Assignment(message) => match Assignment::try_from(message) {
                Ok(assignment) => self.assign(assignment),
                Err(error) => tracing::error!(%error, "the leader's assignment cannot be read"),
            },
            Heard::Difference(message) => match Difference::try_from(message) {
                Ok(difference) => {
                    let mut assignment = std::mem::take(&mut self.assignment);
                    assignment.follow(difference);
                    self.assign(assignment);
                }
                Err(error) => tracing::error!(%error, "the leader's assignment cannot be read"),
            },
            Heard::Confirmed(said) => self.confirmed(said),
            Heard::Table(message) => self.tables.table(message, &self.hands.overlay).await,
            Heard::News(message) => self.tables.news(&message, &self.hands.overlay).await,
            Heard::Managers(list) => {
                self.orders.send_replace(Order::Be(list));
            }
            Heard::Outdated(by) => {
                // What runs here goes on until somebody has looked.
                self.orders.send_replace(Order::Outdated(by));
            }
            Heard::Refused { removed, words } => {
                if removed {
                    // Its tasks have been replaced.
                    self.assign(Assignment::default());
                }
                self.orders.send_replace(Order::Gone(words));
            }
        }
    }

    /// Fenced tasks may run on: in this daemon's eyes, and in their shims'.
    fn confirmed(&mut self, said: Timestamp) {
        let effects = self.worker.renew(said, Timestamp(boot_ms()));
        self.carry_out(effects);
        let Some(until) = self.worker.leased_until() else { return };
        let until = until.after(LEASE_GRACE).0;
        for task in self.worker.leased() {
            let executor = self.hands.executor.clone();
            tokio::spawn(async move {
                // One that does not run yet, or no more, needs none.
                if let Err(error) = executor.lease(&work::container_id(task), until).await {
                    tracing::trace!(%task, %error, "no lease");
                }
            });
        }
    }

    fn assign(&mut self, assignment: Assignment) {
        let effects = self.worker.assign(&assignment);
        self.outbox.keep(|task| assignment.tasks.contains_key(task));
        self.assignment = assignment;
        self.carry_out(effects);
    }

    fn observe(&mut self, task: TaskId, seen: Seen) {
        let effects = self.worker.observe(task, seen);
        self.carry_out(effects);
    }

    fn carry_out(&mut self, effects: Vec<Effect>) {
        for effect in effects {
            tracing::debug!(%effect, "effect");
            let (hands, generation) = (self.hands.clone(), effect.generation);
            match effect.action {
                Action::Report(report) => self.outbox.put(report.task, (&report).into()),
                Action::Prepare(task) => {
                    let places = self.places(&task);
                    self.step(task.id, generation, async move {
                    Some(match hands.prepare(&task, places).await {
                        Ok(()) => Seen::Prepared,
                        Err(error) => {
                            tracing::warn!(task = %task.id, error = format!("{error:#}"), "cannot prepare");
                            Seen::Unpreparable(format!("{error:#}"))
                        }
                    })
                })
                }
                Action::Start(task) => self.step(task, generation, async move {
                    // That it runs, or how it ended, comes as an event.
                    let error = hands.start(task).await.err()?;
                    tracing::warn!(%task, error = format!("{error:#}"), "cannot start");
                    Some(Seen::Ended { exit_code: error_code(&error), error: format!("{error:#}") })
                }),
                Action::Retune { task, delay } => self.step(task.id, generation, async move {
                    tokio::time::sleep(delay).await;
                    Some(match hands.retune(&task).await {
                        Ok(()) => {
                            tracing::info!(task = %task.id, "goes on with other limits");
                            Seen::Retuned
                        }
                        Err(error) => {
                            let error = format!("{error:#}");
                            tracing::warn!(task = %task.id, error, "cannot be given other limits");
                            Seen::Untuned(error)
                        }
                    })
                }),
                Action::Stop { task, grace, delay } => {
                    self.watches.end(task);
                    self.step(task, generation, async move {
                        tokio::time::sleep(delay).await;
                        hands.stop(task, grace).await
                    })
                }
                Action::Remove(task) => self.step(task, generation, async move {
                    while let Err(error) = hands.remove(task).await {
                        tracing::warn!(%task, error = format!("{error:#}"), "cannot remove, trying again");
                        tokio::time::sleep(AGAIN).await;
                    }
                    Some(Seen::Gone)
                }),
            }
        }
    }

    /// Carries out a step in the background. A step that is still under way is given up first: what comes later
    /// is what counts.
    fn step(
        &mut self,
        task: TaskId,
        generation: u64,
        work: impl Future<Output = Option<Seen>> + Send + 'static,
    ) {
        if let Some((_, earlier)) = self.steps.remove(&task) {
            earlier.abort();
        }
        let done = self.done.clone();
        let step = tokio::spawn(async move {
            if let Some(seen) = work.await {
                let _ = done.send((task, generation, seen)).await;
            }
        });
        self.steps.insert(task, (generation, step.abort_handle()));
    }
}

impl Loop {
    /// A task's networks by their numbers, with its addresses.
    fn places(&self, task: &AssignedTask) -> Places {
        let place = |(network, address): &(_, _)| {
            Some((NetworkId::new(self.assignment.networks.get(network)?.vni)?, *address))
        };
        task.addresses.iter().filter_map(place).collect()
    }

    /// Gives the containers of an earlier daemon their name server back, and mends what is missing.
    async fn mend_networks(&self) {
        for container in self.hands.executor.list() {
            let (places, servers) = (work::places(&container.labels), work::servers(&container.labels));
            if matches!(container.state, executor::State::Exited(_)) || places.is_empty() {
                continue;
            }
            if let Err(error) = self.hands.attach(&container.id, places, servers).await {
                tracing::warn!(
                    container = container.id,
                    error = format!("{error:#}"),
                    "cannot mend the network"
                );
            }
        }
    }
}

/// Waits for a moment of [`boot_ms`], or for ever.
async fn until(moment: Option<Timestamp>) {
    match moment {
        None => std::future::pending().await,
        Some(at) => tokio::time::sleep(Duration::from_millis(at.0.saturating_sub(boot_ms()))).await,
    }
}

/// As a shell would put it: 127 for a program that is not there, 126 for one that cannot be run.
fn error_code(error: &anyhow::Error) -> Option<i32> {
    match error.downcast_ref::<executor::Error>() {
        Some(executor::Error::Start { code, .. }) => Some(*code),
        _ => None,
    }
}
