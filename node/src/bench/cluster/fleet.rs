//! Nodes that are real but for their containers.

use crate::agent::Heard;
use crate::agent::Standing;
use crate::agent::session::{Managers, Outbox, Session};
use crate::api::local::ask_to_join;
use crate::bench::site::Site;
use crate::identity::tls::{self, Credentials};
use crate::identity::token::JoinToken;
use crate::identity::{ManagerAddr, ca};
use crate::rpc::dial::{ALPN, Dialer};
use anyhow::{Context, Result};
use futures_util::{StreamExt, TryStreamExt};
use rswarm_control::assignment::{Assignment, Difference};
use rswarm_control::ids::{NodeId, TaskId};
use rswarm_control::model::{Description, Resources};
use rswarm_control::worker::{Action, Effect, Seen, Worker};
use rswarm_proto::convert;
use rswarm_proto::v1 as pb;
use rswarm_raft::Incarnation;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;
use tokio::runtime::{Builder, Handle, Runtime};
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// How many join at once.
const AT_ONCE: usize = 32;
/// Messages that wait for a node to take them.
const WAITING: usize = 16;
/// What each node has: more than its tasks ask for.
const CAPACITY: Resources = Resources { nano_cpus: 16_000_000_000, memory_bytes: 64 << 30 };
/// The process that every container is said to have.
const PID: u32 = 1;

/// Nodes that are real but for their containers.
pub struct Fleet {
    expected: Arc<Expected>,
    stop: CancellationToken,
    tracker: TaskTracker,
    /// Threads of their own: who measures does not stand in line behind a thousand nodes.
    threads: Mutex<Option<Runtime>>,
}

/// Services of which all tasks shall be known to their nodes.
#[derive(Default)]
struct Expected(Mutex<BTreeMap<String, Service>>);

struct Service {
    count: usize,
    known: BTreeSet<TaskId>,
    tell: Option<oneshot::Sender<Instant>>,
}

impl Fleet {
    /// So many nodes, each of which has a session.
    pub async fn join(site: &Site, count: u32) -> Result<Arc<Self>> {
        let front = site.managers()[0].clone();
        let request = pb::GetJoinTokensRequest::default();
        let tokens = site.client(&front).await?.control.get_join_tokens(request).await?.into_inner();
        let token: JoinToken = tokens.worker.parse()?;
        let addrs: Vec<String> = site
            .managers()
            .iter()
            .map(|name| Ok(format!("{}:2377", site.address(name)?)))
            .collect::<Result<_>>()?;
        let fleet = Arc::new(Self {
            expected: Arc::default(),
            stop: CancellationToken::new(),
            tracker: TaskTracker::new(),
            threads: Mutex::new(None),
        });
        let threads = Builder::new_multi_thread().enable_all().build().context("cannot start threads")?;
        let handle = threads.handle().clone();
        *fleet.threads.lock().unwrap_or_else(PoisonError::into_inner) = Some(threads);
        let joined = futures_util::stream::iter(0..count)
            .map(|number| fleet.one(number, &addrs, &token, &handle))
            .buffer_unordered(AT_ONCE)
            .try_collect::<Vec<()>>();
        joined.await?;
        Ok(fleet)
    }

    /// Resolves when each of `count` tasks of a service that is yet to be is known to its node.
    pub fn expect(&self, service: &str, count: u32) -> oneshot::Receiver<Instant> {
        let (tell, told) = oneshot::channel();
        let service_entry = Service { count: count as usize, known: BTreeSet::new(), tell: Some(tell) };
        let mut expected = self.expected.0.lock().unwrap_or_else(PoisonError::into_inner);
        expected.insert(service.to_owned(), service_entry);
        told
    }

    /// Ends all sessions.
    pub async fn stop(&self) {
        self.stop.cancel();
        self.tracker.close();
        self.tracker.wait().await;
    }

    /// Joins one node and waits for its first assignment.
    async fn one(&self, number: u32, addrs: &[String], token: &JoinToken, threads: &Handle) -> Result<()> {
        let hostname = format!("sim{number}");
        let description = Description {
            capacity: CAPACITY,
            os: std::env::consts::OS.into(),
            arch: std::env::consts::ARCH.into(),
            engine_version: env!("CARGO_PKG_VERSION").into(),
            ..Description::default()
        };
        let (key_pem, csr_pem) = ca::request()?;
        let ask = pb::IssueCertificateRequest {
            csr_pem,
            secret: token.secret.clone(),
            hostname: hostname.clone(),
            // Nobody calls it there: its tasks have no networks.
            addr: format!("198.18.{}.{}:2377", number / 250 % 250, number % 250 + 1),
            availability: pb::Availability::Active.into(),
            description: Some((&description).into()),
        };
        let issued = ask_to_join(addrs, token, ask).await?;
        let credentials = Credentials::new(&issued.cert_pem, &issued.ca_pem, &key_pem)?;
        let config = tls::client(credentials, &issued.ca_pem, ALPN)?;
        let known = issued.managers.iter().map(|manager| ManagerAddr {
            node: manager.node_id.clone(),
            addr: manager.addr.clone(),
            raft_id: manager.raft_id,
        });
        let managers = Managers { known: known.collect(), leader: None, missing: BTreeMap::new() };
        let (heard, hears) = mpsc::channel(WAITING);
        let outbox = Outbox::default();
        let incarnation = Incarnation(issued.incarnation);
        let (standing, stands) = watch::channel(Standing { incarnation, seat: 0, lost: false });
        let session = Session {
            dialer: Arc::new(Dialer::new(config, issued.cluster_id.clone())),
            outbox: outbox.clone(),
            heard,
            managers: Arc::new(Mutex::new(managers)),
            hello: Box::new(move || pb::Hello {
                hostname: hostname.clone(),
                description: Some((&description).into()),
                ..Default::default()
            }),
            contact: watch::channel(None).0,
            standing: stands,
            elsewhere: Arc::default(),
        };
        let node: NodeId = issued.node_id.parse().context("a node's id cannot be read")?;
        let (first, begun) = oneshot::channel();
        let agent = Agent {
            worker: Worker::new(node, BTreeMap::new()),
            assignment: Assignment::default(),
            outbox,
            expected: self.expected.clone(),
            first: Some(first),
            table: 0,
            _standing: standing,
        };
        let stop = self.stop.clone();
        self.tracker.spawn_on(async move { session.keep(stop).await }, threads);
        self.tracker.spawn_on(agent.run(hears), threads);
        begun.await.context("the session broke off")
    }
}

impl Drop for Fleet {
    fn drop(&mut self) {
        if let Some(threads) = self.threads.get_mut().unwrap_or_else(PoisonError::into_inner).take() {
            // This may be a thread that must not wait.
            threads.shutdown_background();
        }
    }
}

/// One node.
struct Agent {
    worker: Worker,
    assignment: Assignment,
    outbox: Outbox,
    expected: Arc<Expected>,
    /// Told when the first assignment has come.
    first: Option<oneshot::Sender<()>>,
    /// The generation of the table it has.
    table: u64,
    _standing: watch::Sender<Standing>,
}

impl Agent {
    async fn run(mut self, mut hears: mpsc::Receiver<Heard>) {
        while let Some(heard) = hears.recv().await {
            match heard {
                Heard::Assignment(message) => {
                    let Ok(assignment) = Assignment::try_from(message) else { return };
                    self.assign(assignment);
                    self.first.take().map(|first| first.send(()));
                }
                Heard::Difference(message) => {
                    let Ok(difference) = Difference::try_from(message) else { return };
                    let mut assignment = std::mem::take(&mut self.assignment);
                    assignment.follow(difference);
                    self.assign(assignment);
                }
                Heard::Table(table) => self.outbox.taken(table.generation),
                // Read as by a daemon; what a daemon does with it then is the affair of each node's own machine.
                Heard::News(news) if news.follows != 0 && news.follows != self.table => {
                    self.outbox.missed(self.table);
                }
                Heard::News(news) => {
                    if convert::pieces(&news).is_err() {
                        return;
                    }
                    self.table = news.generation;
                    self.outbox.taken(news.generation);
                }
                // Its tasks are not fenced.
                Heard::Managers(_) | Heard::Confirmed(_) => {}
                Heard::Outdated(_) | Heard::Refused { .. } => return,
            }
        }
    }

    fn assign(&mut self, assignment: Assignment) {
        self.expected.meet(&assignment);
        let effects = self.worker.assign(&assignment);
        self.outbox.keep(|task| assignment.tasks.contains_key(task));
        self.assignment = assignment;
        self.carry_out(effects);
    }

    /// What effects lead to is seen when all of them have been carried out.
    fn carry_out(&mut self, effects: Vec<Effect>) {
        let mut effects = VecDeque::from(effects);
        let mut seen = VecDeque::new();
        loop {
            for effect in effects.drain(..) {
                match effect.action {
                    Action::Report(report) => self.outbox.put(report.task, (&report).into()),
                    Action::Prepare(task) => seen.push_back((task.id, Seen::Prepared)),
                    Action::Start(task) => seen.push_back((task, Seen::Running { pid: PID })),
                    Action::Stop { task, .. } => {
                        seen.push_back((task, Seen::Ended { exit_code: Some(0), error: String::new() }));
                    }
                    Action::Retune { .. } => {}
                    Action::Remove(task) => seen.push_back((task, Seen::Gone)),
                }
            }
            let Some((task, what)) = seen.pop_front() else { return };
            effects.extend(self.worker.observe(task, what));
        }
    }
}

impl Expected {
    /// Notes tasks that a node knows of.
    fn meet(&self, assignment: &Assignment) {
        let mut expected = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for task in assignment.tasks.values() {
            let Some(service) = expected.get_mut(&task.service_name) else { continue };
            service.known.insert(task.id);
            if service.known.len() >= service.count
                && let Some(tell) = service.tell.take()
            {
                let _ = tell.send(Instant::now());
                expected.remove(&task.service_name);
            }
        }
    }
}
