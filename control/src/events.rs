//! What has happened, in Docker's words: `service create`, `node update`, `container die`.
//!
//! Each manager finds the same events in the entries it applies, and keeps the last of them in the replicated state:
//! they are in snapshots, and no change of leader loses one.

use crate::ids::{NetworkId, NodeId, ServiceId, TaskId};
use crate::level;
use crate::model::{Desired, Health, Node, Observed, Service, Task};
use crate::state::{Applied, Object, State};
use crate::time::Timestamp;
use std::collections::BTreeSet;
use std::fmt;

/// How many events are kept.
pub const EVENTS_MAX: usize = 10_000;

/// Something that has happened to something.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// The log entry that says so.
    pub index: u64,
    /// When, by the clock of the leader that wrote it.
    pub at: Timestamp,
    /// To what.
    pub subject: Subject,
    /// What.
    pub action: Action,
    /// What the subject is called: `web`, `n1`, `web.1`.
    pub name: Box<str>,
    /// More about it, by Docker's names where Docker has one: `replicas.new`, `exitCode`.
    pub attributes: Vec<(String, String)>,
}

/// What an event is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Subject {
    /// The cluster itself.
    Swarm,
    /// A node.
    Node(NodeId),
    /// A service.
    Service(ServiceId),
    /// A network.
    Network(NetworkId),
    /// A task, or its containers.
    Task {
        /// Which.
        task: TaskId,
        /// Whose.
        service: ServiceId,
        /// Where, if it had a node.
        node: Option<NodeId>,
    },
}

macro_rules! words {
    ($(#[$meta:meta])* $name:ident { $($(#[$doc:meta])* $variant:ident = $word:literal,)* }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum $name { $($(#[$doc])* $variant,)* }

        impl $name {
            /// The word for it.
            pub fn word(self) -> &'static str {
                match self { $(Self::$variant => $word,)* }
            }

            /// What a word stands for.
            pub fn of(word: &str) -> Option<Self> {
                match word { $($word => Some(Self::$variant),)* _ => None }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(self.word())
            }
        }
    };
}

words! {
    /// What has happened.
    Action {
        /// It is new. Of a container: its image and file systems are ready.
        Create = "create",
        /// It is different.
        Update = "update",
        /// It is gone, or forgotten.
        Remove = "remove",
        /// A task has a node.
        Assign = "assign",
        /// A task is wanted no more.
        Shutdown = "shutdown",
        /// A task could not be made ready, or started.
        Reject = "reject",
        /// Nobody will ever tell how a task ended.
        Orphan = "orphan",
        /// A container runs.
        Start = "start",
        /// A container has ended.
        Die = "die",
        /// A container that has ended is forgotten.
        Destroy = "destroy",
        /// Its health check has found a container well.
        Healthy = "health_status: healthy",
        /// Its health check has failed too often.
        Unhealthy = "health_status: unhealthy",
    }
}

impl Event {
    /// Docker's word for what it is about: `container` and `task` are told apart by what has happened.
    pub fn kind(&self) -> &'static str {
        match (self.subject, self.action) {
            (Subject::Swarm, _) => "swarm",
            (Subject::Node(_), _) => "node",
            (Subject::Service(_), _) => "service",
            (Subject::Network(_), _) => "network",
            (
                Subject::Task { .. },
                Action::Create
                | Action::Start
                | Action::Die
                | Action::Destroy
                | Action::Healthy
                | Action::Unhealthy,
            ) => "container",
            (Subject::Task { .. }, _) => "task",
        }
    }
}

/// What one entry of the log has made happen.
pub(crate) fn between(before: &State, after: &State, applied: &Applied, at: Timestamp) -> Vec<Event> {
    let tells_health = after.level() >= level::HEALTH_EVENTS;
    let mut found = Found { index: applied.index, at, tells_health, events: Vec::new() };
    let mut seen = BTreeSet::new();
    for object in applied.events.iter().map(|event| event.object) {
        if !seen.insert(object) {
            continue;
        }
        match object {
            Object::Cluster => found.swarm(before, after),
            Object::Node(id) => {
                found.node(id, before.node(id).map(AsRef::as_ref), after.node(id).map(AsRef::as_ref))
            }
            Object::Service(id) => {
                let of = |state: &State| state.service(id).cloned();
                found.service(id, of(before).as_deref(), of(after).as_deref());
            }
            Object::Network(id) => match (before.network(id), after.network(id)) {
                (None, Some(network)) => {
                    found.add(Subject::Network(id), Action::Create, &network.name, vec![])
                }
                (Some(network), None) => {
                    found.add(Subject::Network(id), Action::Remove, &network.name, vec![])
                }
                (Some(old), Some(new)) if old.isolated != new.isolated => {
                    let told = |when: &str, is| (format!("isolated.{when}"), format!("{is}"));
                    let attributes = vec![told("new", new.isolated), told("old", old.isolated)];
                    found.add(Subject::Network(id), Action::Update, &new.name, attributes)
                }
                _ => {}
            },
            Object::Task(id) => {
                found.task(before.task(id).map(AsRef::as_ref), after.task(id).map(AsRef::as_ref))
            }
        }
    }
    found.events
}

struct Found {
    index: u64,
    at: Timestamp,
    /// Managers of a lower level would not know the words.
    tells_health: bool,
    events: Vec<Event>,
}

type Attributes = Vec<(String, String)>;

impl Found {
    fn add(&mut self, subject: Subject, action: Action, name: &str, attributes: Attributes) {
        let (index, at, name) = (self.index, self.at, name.into());
        self.events.push(Event { index, at, subject, action, name, attributes });
    }

    fn swarm(&mut self, before: &State, after: &State) {
        let Some(cluster) = after.cluster() else { return };
        let action = if before.cluster().is_none() { Action::Create } else { Action::Update };
        self.add(Subject::Swarm, action, &cluster.name, Vec::new());
    }

    fn node(&mut self, id: NodeId, before: Option<&Node>, after: Option<&Node>) {
        let subject = Subject::Node(id);
        let (old, new) = match (before, after) {
            (None, Some(node)) => {
                let role = vec![("role".to_owned(), node.role.to_string())];
                return self.add(subject, Action::Create, &node.hostname, role);
            }
            (Some(node), None) => return self.add(subject, Action::Remove, &node.hostname, Vec::new()),
            (Some(old), Some(new)) => (old, new),
            (None, None) => return,
        };
        let mut moved = Attributes::new();
        let word = |value: &dyn fmt::Debug| format!("{value:?}").to_lowercase();
        moves(&mut moved, "state", word(&old.status), word(&new.status));
        moves(&mut moved, "availability", word(&old.availability), word(&new.availability));
        moves(&mut moved, "role", old.role.to_string(), new.role.to_string());
        moves(&mut moved, "addr", old.addr.clone(), new.addr.clone());
        moves(&mut moved, "name", old.hostname.clone(), new.hostname.clone());
        let labels = |node: &Node| {
            let pairs = node.labels.iter().map(|(key, value)| format!("{key}={value}"));
            pairs.collect::<Vec<_>>().join(",")
        };
        moves(&mut moved, "labels", labels(old), labels(new));
        let taints = |node: &Node| node.taints.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
        moves(&mut moved, "taints", taints(old), taints(new));
        if new.status != old.status && !new.message.is_empty() {
            moved.push(("message".into(), new.message.clone()));
        }
        // A new session of a node that was there all along is nobody's news.
        if !moved.is_empty() {
            self.add(subject, Action::Update, &new.hostname, moved);
        }
    }

    fn service(&mut self, id: ServiceId, before: Option<&Service>, after: Option<&Service>) {
        let subject = Subject::Service(id);
        let author = |service: &Service| Some(service.author.clone()).filter(|author| !author.is_empty());
        let by = |service: &Service| author(service).map(|author| ("author".to_owned(), author));
        let (old, new) = match (before, after) {
            (None, Some(new)) => {
                return self.add(subject, Action::Create, &new.spec.name, by(new).into_iter().collect());
            }
            (Some(old), None) => return self.add(subject, Action::Remove, &old.spec.name, Vec::new()),
            (Some(old), Some(new)) => (old, new),
            (None, None) => return,
        };
        let mut moved = Attributes::new();
        let image = |service: &Service| {
            service.spec.task.containers.first().map_or(String::new(), |container| container.image.clone())
        };
        let state = |service: &Service| {
            let status = service.update_status.as_ref();
            status.map_or(String::new(), |status| snake(&format!("{:?}", status.state)))
        };
        let replicas = |service: &Service| {
            service.spec.mode.replicas().map_or(String::new(), |replicas| replicas.to_string())
        };
        moves(&mut moved, "replicas", replicas(old), replicas(new));
        moves(&mut moved, "image", image(old), image(new));
        moves(&mut moved, "updatestate", state(old), state(new));
        moves(&mut moved, "revision", old.revision.to_string(), new.revision.to_string());
        if new.revision != old.revision {
            moved.extend(by(new));
        }
        self.add(subject, Action::Update, &new.spec.name, moved);
    }

    fn task(&mut self, before: Option<&Task>, after: Option<&Task>) {
        let Some(task) = after.or(before) else { return };
        let subject = Subject::Task { task: task.id, service: task.service, node: task.node };
        let name = task.name();
        let was = before.map_or(Observed::New, |task| task.observed);
        let Some(after) = after else {
            let action = if task.status.running_at.is_some() { Action::Destroy } else { Action::Remove };
            return self.add(subject, action, &name, Vec::new());
        };
        let tells_health = self.tells_health;
        let mut say = |action, attributes| self.add(subject, action, &name, attributes);
        let pair = |name: &str, value: String| (name.to_owned(), value);
        let image = after.spec.containers.first().map(|container| container.image.clone());
        let image = |mut more: Attributes| {
            more.extend(image.clone().map(|image| pair("image", image)));
            more
        };
        if before.is_none_or(|task| task.node.is_none()) && after.node.is_some() {
            say(Action::Assign, Vec::new());
        }
        let reached = |observed: Observed| was < observed && after.observed >= observed;
        let ended = after.observed.is_terminal() && !was.is_terminal();
        let began = after.status.running_at.is_some()
            || after.status.exit_code.is_some()
            || was == Observed::Starting;
        if reached(Observed::Ready) && (!after.observed.is_terminal() || began) {
            say(Action::Create, image(Vec::new()));
        }
        if reached(Observed::Running)
            && (after.observed == Observed::Running || after.status.running_at.is_some())
        {
            say(Action::Start, image(Vec::new()));
        }
        let health = before.map_or(Health::Unchecked, |task| task.status.health);
        if tells_health && health != after.status.health {
            match after.status.health {
                Health::Healthy => say(Action::Healthy, image(Vec::new())),
                Health::Unhealthy => say(Action::Unhealthy, image(Vec::new())),
                Health::Unchecked | Health::Starting => {}
            }
        }
        let wanted = before.is_none_or(Task::is_wanted);
        if wanted && !after.is_wanted() && !was.is_terminal() {
            let why = after.history.iter().rev().find(|step| {
                matches!(step.to, crate::model::Step::Desired(Desired::Shutdown | Desired::Remove))
            });
            let why =
                why.filter(|step| !step.why.is_empty()).map(|step| pair("reason", step.why.to_string()));
            say(Action::Shutdown, why.into_iter().collect());
        }
        if !ended {
            return;
        }
        let mut how = Attributes::new();
        how.extend(after.status.exit_code.map(|code| pair("exitCode", code.to_string())));
        let error = Some(&after.status.error).filter(|error| !error.is_empty());
        let message = Some(&after.status.message).filter(|_| after.observed == Observed::Orphaned);
        how.extend(error.or(message).map(|error| pair("error", cut(error))));
        match after.observed {
            Observed::Orphaned => say(Action::Orphan, how),
            _ if began => say(Action::Die, image(how)),
            Observed::Shutdown => {}
            _ => say(Action::Reject, image(how)),
        }
    }
}

/// Notes what something was and is, if that differs.
fn moves(moved: &mut Attributes, what: &str, old: String, new: String) {
    if old != new {
        moved.push((format!("{what}.new"), new));
        moved.push((format!("{what}.old"), old));
    }
}

/// `RollbackStarted` as Docker writes it: `rollback_started`.
fn snake(camel: &str) -> String {
    let mut text = String::new();
    for c in camel.chars() {
        if c.is_uppercase() && !text.is_empty() {
            text.push('_');
        }
        text.extend(c.to_lowercase());
    }
    text
}

/// Long errors are cut; the whole is with the task.
fn cut(text: &str) -> String {
    text.chars().take(crate::model::Transition::WHY_MAX).collect()
}
