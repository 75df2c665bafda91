//! Asks the containers of this node whether they are well, when and as often as `control::health` says, and tells
//! what is new. Each check waits for nobody else's answer; only so many begin at the same time.

use crate::executor::{Executor, Probe as Ask, Running};
use crate::image::ImageConfig;
use crate::wall;
use base64::Engine;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use prost::Message;
use rswarm_control::Timestamp;
use rswarm_control::health::{Gate, Monitor, Status};
use rswarm_control::ids::TaskId;
use rswarm_control::model::{ContainerSpec, HealthCheck, HealthSpec, HealthTest, Probe, Readiness};
use rswarm_control::worker::Seen;
use rswarm_proto::v1 as pb;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinSet;
use tokio::time::Instant;

/// Probes that begin at the same time; more would make each other late.
const BEGINNING_MAX: usize = 16;
/// After that a probe only waits for its answer, and lets others begin.
const BEGINNING: Duration = Duration::from_secs(1);
/// How much of what a probe says is told to the managers, in characters.
const WORDS_MAX: usize = 200;
/// Labels of a container that is asked, so that a daemon that finds it knows without having to hear the managers.
const HEALTH_LABEL: &str = "rswarm.health";
const READINESS_LABEL: &str = "rswarm.readiness";
/// What runs a line, where the image does not say.
const SHELL: [&str; 2] = ["/bin/sh", "-c"];

/// The labels of a container that is to be asked, by its spec and its image.
pub fn labels(spec: &ContainerSpec, config: &ImageConfig) -> Vec<(String, String)> {
    let encode = |bytes: Vec<u8>| STANDARD_NO_PAD.encode(bytes);
    let health = spec.health.over(&of_image(config)).map(|check| {
        let check = HealthCheck { probe: runnable(check.probe, config), ..check };
        (HEALTH_LABEL.to_owned(), encode(pb::HealthCheck::from(&check).encode_to_vec()))
    });
    let readiness = spec.readiness.clone().map(|readiness| {
        let readiness = Readiness { probe: runnable(readiness.probe, config), ..readiness };
        (READINESS_LABEL.to_owned(), encode(pb::Readiness::from(&readiness).encode_to_vec()))
    });
    health.into_iter().chain(readiness).collect()
}

/// Whether a container has a health check, by its labels: it runs when that says so.
pub fn is_checked(labels: &BTreeMap<String, String>) -> bool {
    labels.contains_key(HEALTH_LABEL)
}

fn label<W: Message + Default, M: TryFrom<W>>(labels: &BTreeMap<String, String>, name: &str) -> Option<M> {
    let bytes = STANDARD_NO_PAD.decode(labels.get(name)?).ok()?;
    M::try_from(W::decode(bytes.as_slice()).ok()?).ok()
}

/// The shell is the image's: what is run is known when the container is made.
fn runnable(probe: Probe, config: &ImageConfig) -> Probe {
    let Probe::Shell(line) = probe else { return probe };
    let shell = match config.shell.as_slice() {
        [] => SHELL.map(str::to_owned).to_vec(),
        shell => shell.to_vec(),
    };
    Probe::Command(shell.into_iter().chain([line]).collect())
}

fn of_image(config: &ImageConfig) -> HealthSpec {
    let Some(check) = &config.healthcheck else { return HealthSpec::default() };
    let test = match check.test.as_slice() {
        [kind] if kind == "NONE" => HealthTest::None,
        [kind, args @ ..] if kind == "CMD" && !args.is_empty() => {
            HealthTest::Probe(Probe::Command(args.to_vec()))
        }
        [kind, line] if kind == "CMD-SHELL" => HealthTest::Probe(Probe::Shell(line.clone())),
        other => {
            tracing::warn!(test = ?other, "the image's health check is none that is known; nobody asks it");
            HealthTest::None
        }
    };
    HealthSpec {
        test,
        interval: check.interval,
        timeout: check.timeout,
        retries: check.retries,
        start_period: check.start_period,
        start_interval: check.start_interval,
    }
}

/// The containers that are being asked.
pub struct Watches {
    executor: Arc<Executor>,
    found: mpsc::Sender<(TaskId, Seen)>,
    beginning: Arc<Semaphore>,
    of_tasks: BTreeMap<TaskId, JoinSet<()>>,
}

impl Watches {
    /// None yet. What they find goes into `found`.
    pub fn new(executor: Arc<Executor>, found: mpsc::Sender<(TaskId, Seen)>) -> Self {
        let beginning = Arc::new(Semaphore::new(BEGINNING_MAX));
        Self { executor, found, beginning, of_tasks: BTreeMap::new() }
    }

    /// Has a running container asked as its labels say, if that is not done already.
    pub fn begin(&mut self, task: TaskId, labels: &BTreeMap<String, String>, running: &Running) {
        if self.of_tasks.contains_key(&task) {
            return;
        }
        let watch = || Watch {
            task,
            container: super::work::container_id(task),
            executor: self.executor.clone(),
            found: self.found.clone(),
            beginning: self.beginning.clone(),
            clock: Clock::start(),
        };
        let mut watches = JoinSet::new();
        if let Some(check) = label::<pb::HealthCheck, HealthCheck>(labels, HEALTH_LABEL) {
            let started_at = Timestamp(running.started_unix_ns / 1_000_000);
            watches.spawn(watch().health(check, started_at));
        } else if is_checked(labels) {
            // Better unchecked than never healthy.
            tracing::error!(%task, "the container's health check cannot be read; it is taken for healthy");
            let (found, healthy) = (self.found.clone(), Seen::Healthy);
            watches.spawn(async move { drop(found.send((task, healthy)).await) });
        }
        if let Some(readiness) = label::<pb::Readiness, Readiness>(labels, READINESS_LABEL) {
            watches.spawn(watch().readiness(readiness));
        }
        if !watches.is_empty() {
            self.of_tasks.insert(task, watches);
        }
    }

    /// Asks it no more. A program that was asking is killed.
    pub fn end(&mut self, task: TaskId) {
        self.of_tasks.remove(&task);
    }
}

/// Moments by a clock that does not jump.
#[derive(Clone, Copy)]
struct Clock {
    began: Instant,
    began_at: Timestamp,
}

impl Clock {
    fn start() -> Self {
        let unix = wall::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self { began: Instant::now(), began_at: Timestamp(u64::try_from(unix.as_millis()).unwrap_or(0)) }
    }

    fn now(self) -> Timestamp {
        self.began_at.after(self.began.elapsed())
    }

    async fn reach(self, at: Timestamp) {
        tokio::time::sleep_until(self.began + at.since(self.began_at)).await;
    }
}

struct Watch {
    task: TaskId,
    container: String,
    executor: Arc<Executor>,
    found: mpsc::Sender<(TaskId, Seen)>,
    beginning: Arc<Semaphore>,
    clock: Clock,
}

/// What one question came to.
struct Answer {
    well: bool,
    words: String,
    asked_at: Timestamp,
}

impl Watch {
    async fn health(self, check: HealthCheck, started_at: Timestamp) {
        let now = self.clock.now();
        // A start that lies ahead was noted before the machine's clock was set.
        let mut monitor = Monitor::new(check.clone(), started_at.min(now), now);
        let mut ailing = false;
        loop {
            self.clock.reach(monitor.next_at()).await;
            let Some(answer) = self.ask(&check.probe, check.timeout).await else {
                monitor.resumed(self.clock.now());
                continue;
            };
            let before = monitor.status();
            let after = monitor.answered(answer.well, answer.asked_at, self.clock.now());
            match after {
                Status::Starting if !ailing => {
                    ailing = true;
                    self.tell(Seen::Ailing(answer.words)).await;
                }
                Status::Healthy if after != before => {
                    tracing::info!(task = %self.task, "healthy");
                    self.tell(Seen::Healthy).await;
                }
                Status::Unhealthy => {
                    tracing::warn!(task = %self.task, said = answer.words, "unhealthy");
                    return self.tell(Seen::Unhealthy(answer.words)).await;
                }
                Status::Starting | Status::Healthy => {}
            }
        }
    }

    async fn readiness(self, readiness: Readiness) {
        let mut gate = Gate::new(readiness.clone(), self.clock.now());
        let mut known = None;
        loop {
            self.clock.reach(gate.next_at()).await;
            let Some(answer) = self.ask(&readiness.probe, readiness.timeout).await else {
                gate.resumed(self.clock.now());
                continue;
            };
            let ready = gate.answered(answer.well, self.clock.now());
            if ready != known {
                known = ready;
                tracing::info!(task = %self.task, ?ready, said = answer.words, "readiness");
                self.tell(if answer.well { Seen::Ready } else { Seen::Unready(answer.words) }).await;
            }
        }
    }

    /// None: it is paused, and what is paused answers nobody.
    async fn ask(&self, probe: &Probe, limit: Duration) -> Option<Answer> {
        let mut turn = Some(self.beginning.acquire().await.ok()?);
        if self.executor.is_paused(&self.container) {
            return None;
        }
        let asked_at = self.clock.now();
        let probe = asked(probe);
        let mut answer = std::pin::pin!(self.executor.probe(&self.container, &probe, limit));
        let outcome = tokio::select! {
            outcome = &mut answer => outcome,
            () = tokio::time::sleep(BEGINNING) => {
                turn.take();
                answer.await
            }
        };
        if !outcome.healthy && self.executor.is_paused(&self.container) {
            return None;
        }
        Some(Answer { well: outcome.healthy, words: words(&outcome.output), asked_at })
    }

    async fn tell(&self, seen: Seen) {
        // If nobody listens, the agent has stopped.
        let _ = self.found.send((self.task, seen)).await;
    }
}

fn asked(probe: &Probe) -> Ask {
    match probe {
        Probe::Command(args) => Ask::Exec { args: args.clone() },
        Probe::Shell(line) => {
            Ask::Exec { args: SHELL.map(str::to_owned).into_iter().chain([line.clone()]).collect() }
        }
        Probe::Http(probe) => Ask::Http { port: probe.port, path: probe.path.clone() },
        Probe::Tcp(port) => Ask::Tcp { port: *port },
    }
}

/// The first line that says something, for a status that has room for one.
fn words(output: &str) -> String {
    let line = output.lines().map(str::trim).find(|line| !line.is_empty()).unwrap_or_default();
    line.chars().filter(|c| !c.is_control()).take(WORDS_MAX).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::Healthcheck;

    fn image(test: &[&str]) -> ImageConfig {
        let test = test.iter().map(|word| (*word).to_owned()).collect();
        let interval = Some(Duration::from_secs(7));
        let healthcheck = Some(Healthcheck { test, interval, ..Healthcheck::default() });
        ImageConfig { healthcheck, ..ImageConfig::default() }
    }

    fn check(spec: &ContainerSpec, config: &ImageConfig) -> Option<HealthCheck> {
        let labels = labels(spec, config).into_iter().collect();
        assert_eq!(
            is_checked(&labels),
            label::<pb::HealthCheck, HealthCheck>(&labels, HEALTH_LABEL).is_some()
        );
        label::<pb::HealthCheck, HealthCheck>(&labels, HEALTH_LABEL)
    }

    #[test]
    fn an_images_health_check_is_used_where_the_service_has_none() {
        let spec = ContainerSpec::new("x");
        let args =
            |words: &[&str]| Some(Probe::Command(words.iter().map(|word| (*word).to_owned()).collect()));
        for (test, probe) in [
            (&["CMD", "/x", "a b"][..], args(&["/x", "a b"])),
            (&["CMD-SHELL", "x || exit 1"], args(&["/bin/sh", "-c", "x || exit 1"])),
            (&["NONE"], None),
            (&["CMD"], None),
            (&["GRPC", "x"], None),
        ] {
            let check = check(&spec, &image(test));
            assert_eq!(check.as_ref().map(|check| check.probe.clone()), probe, "{test:?}");
            assert!(check.is_none_or(|check| check.interval.as_secs() == 7 && check.timeout.as_secs() == 30));
        }
        let shell = ["/bin/ash", "-ec"].map(str::to_owned).to_vec();
        let config = ImageConfig { shell, ..image(&["CMD-SHELL", "x"]) };
        assert_eq!(check(&spec, &config).map(|check| check.probe), args(&["/bin/ash", "-ec", "x"]));
        let mut spec = spec;
        spec.health.test = HealthTest::None;
        assert_eq!(check(&spec, &image(&["CMD", "/x"])), None);
        spec.health.test = HealthTest::Probe(Probe::Tcp(80));
        assert_eq!(check(&spec, &image(&["CMD", "/x"])).map(|check| check.probe), Some(Probe::Tcp(80)));
    }

    #[test]
    fn one_line_of_what_a_probe_says_is_enough() {
        assert_eq!(words("\n  \x1b[31mHTTP 503\x1b[0m \nmore"), "[31mHTTP 503[0m");
        assert_eq!(words(&"x".repeat(5000)).len(), WORDS_MAX);
        assert_eq!(words(""), "");
    }
}
