//! A small cluster to ask things of, for unit tests.

use crate::admission::{self, Answer, Init, Join, Refused, Request, Session};
use crate::ids::{NodeId, ServiceId, TaskId};
use crate::liveness::Heard;
use crate::model::*;
use crate::plan::Plan;
use crate::state::{Applied, Change, Proposal, Report, Stale, State};
use crate::tick::{Crank, tick};
use crate::time::Timestamp;
use std::sync::Arc;
use std::time::Duration;

pub(crate) const MIB: u64 = 1 << 20;

pub(crate) struct Bed {
    pub(crate) state: State,
    pub(crate) heard: Heard,
    crank: Crank,
    pub(crate) now: Timestamp,
    index: u64,
}

impl Bed {
    /// A cluster of one manager, `m1`, that is drained so as not to take part.
    pub(crate) fn new() -> Self {
        let now = Timestamp(100_000);
        let mut bed =
            Self { state: State::default(), heard: Heard::new(now), crank: Crank::default(), now, index: 0 };
        let (changes, _) = admission::init(&bed.state, &init(), now).expect("an empty state");
        bed.commit(changes).expect("nothing else is going on");
        bed
    }

    pub(crate) fn commit(&mut self, changes: Vec<Change>) -> Result<Applied, Stale> {
        self.index += 1;
        self.state.apply(self.index, &Proposal { changes, at: self.now })
    }

    pub(crate) fn ask(&mut self, request: &Request) -> Result<Answer, Refused> {
        let (changes, answer) = admission::admit(&self.state, request, self.now)?;
        self.commit(changes).expect("what was just admitted can be applied");
        Ok(answer)
    }

    /// What asking came to, in words.
    pub(crate) fn words(&mut self, request: &Request) -> String {
        match self.ask(request) {
            Ok(_) => "done".into(),
            Err(refused) => {
                let kind = format!("{refused:?}");
                format!("{}: {refused}", kind.split('(').next().unwrap_or_default())
            }
        }
    }

    pub(crate) fn node(&mut self, hostname: &str, memory_mib: u64) -> NodeId {
        let secret = self.state.cluster().expect("a cluster").tokens.worker.clone();
        let capacity = Resources { nano_cpus: 4_000_000_000, memory_bytes: memory_mib * MIB };
        let description =
            Description { capacity, os: "linux".into(), arch: "x86_64".into(), ..Description::default() };
        let addr = format!("192.0.2.{}:2377", self.state.nodes().count() + 1);
        let (hostname, availability) = (hostname.to_owned(), Availability::Active);
        let session = (hostname.clone(), addr.clone(), description.clone());
        let join = Join { secret, hostname, addr, availability, description };
        let Ok(Answer::Node(node)) = self.ask(&Request::Join(join)) else { panic!("a valid token") };
        let (hostname, addr, description) = session;
        self.ask(&Request::OpenSession(Session { node, hostname, addr, description })).expect("a member");
        self.heard.beat(node, self.now);
        node
    }

    /// Has all nodes be of this version, and the cluster know it.
    pub(crate) fn upgrade(&mut self) {
        let nodes: Vec<NodeId> = self.state.nodes().map(|node| node.id).collect();
        for node in nodes {
            self.alter(node, |node| node.description.level = crate::level::LATEST);
        }
        self.tick();
    }

    /// Makes a node what it is to be, without asking anybody.
    pub(crate) fn alter(&mut self, id: NodeId, change: impl FnOnce(&mut Node)) {
        let mut snapshot = self.state.snapshot();
        let node = snapshot.nodes.iter_mut().find(|node| node.id == id);
        change(Arc::make_mut(node.expect("a member")));
        self.state = State::restore(snapshot);
    }

    pub(crate) fn service(&mut self, spec: ServiceSpec) -> ServiceId {
        match self.ask(&Request::CreateService { spec, networks: vec![] }) {
            Ok(Answer::Service(service)) => service,
            other => panic!("{other:?}"),
        }
    }

    pub(crate) fn tick(&mut self) -> Plan {
        let plan = self.crank.turn(&self.state, &self.heard, self.now);
        assert_eq!(plan, tick(&self.state, &self.heard, self.now), "a leader's memory makes no difference");
        if !plan.changes.is_empty() {
            self.commit(plan.changes.clone()).expect("a plan can be applied");
        }
        plan
    }

    pub(crate) fn pass(&mut self, time: Duration) {
        self.now = self.now.after(time);
    }

    pub(crate) fn tasks(&self, service: ServiceId) -> Vec<Arc<Task>> {
        let mut tasks: Vec<_> = self.state.tasks_of(service).cloned().collect();
        tasks.sort_by_key(|task| task.meta.number);
        tasks
    }

    pub(crate) fn report(&mut self, task: TaskId, observed: Observed) {
        let report = self.report_of(task, observed);
        self.commit(vec![Change::Report(report)]).expect("reports are never stale");
    }

    pub(crate) fn report_of(&self, task: TaskId, observed: Observed) -> Report {
        let node = self.state.task(task).and_then(|task| task.node).expect("a task with a node");
        let (message, error) = (String::new(), String::new());
        let (health, ready) = (Health::Unchecked, None);
        Report { task, node, observed, message, error, exit_code: None, pid: None, health, ready }
    }

    pub(crate) fn all_run(&mut self) {
        let placed: Vec<_> = self
            .state
            .tasks()
            .filter(|task| task.node.is_some() && task.is_live() && task.is_wanted())
            .map(|task| task.id)
            .collect();
        for task in placed {
            self.report(task, Observed::Running);
        }
    }
}

pub(crate) fn init() -> Init {
    Init {
        name: "test".into(),
        id_seed: 7,
        ca_cert_pem: "cert".into(),
        ca_key_pem: Secret("key".into()),
        tokens: JoinTokens { worker: Secret("w".repeat(16)), manager: Secret("m".repeat(16)) },
        settings: Settings::default(),
        hostname: "m1".into(),
        addr: "192.0.2.1:2377".into(),
        availability: Availability::Drain,
        description: Description::default(),
    }
}

pub(crate) fn spec(name: &str, replicas: u32) -> ServiceSpec {
    let task = TaskSpec { containers: vec![ContainerSpec::new("demo")], ..TaskSpec::default() };
    ServiceSpec {
        name: name.into(),
        labels: Labels::new(),
        mode: Mode::Replicated { replicas },
        task: Arc::new(task),
        update: UpdateConfig::default(),
        rollback: UpdateConfig::default(),
        endpoint: EndpointSpec::default(),
    }
}

pub(crate) fn with_task(mut spec: ServiceSpec, change: impl FnOnce(&mut TaskSpec)) -> ServiceSpec {
    change(Arc::make_mut(&mut spec.task));
    spec
}

pub(crate) fn port(published: Option<u16>, target: u16, mode: PortMode) -> PortSpec {
    PortSpec { published, target, protocol: Protocol::Tcp, mode, proxy_protocol: false }
}
