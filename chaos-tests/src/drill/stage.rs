//! The course of every drill: load, calm, harm, mending, rest, and the checks.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};
use rswarm_netoverlay::device::{conntrack::Conntrack, netns::Netns};

use super::load::{self, History, Shot, Stream};
use super::requests::{Aim, Place};
use super::result::{self, Line, Mark, Report, Sample, Verdict, millis};
use super::site::{Site, Task, until};
use super::{Drill, Load};
use crate::lab::Lab;

/// The service that every drill's load goes to, and its port.
pub const SERVICE: &str = "drill-web";
/// The service in whose container virtual IPs are asked for.
const PROBE: &str = "drill-probe";
/// The network they share.
const NETWORK: &str = "drill-net";
/// Where the service is published.
const PORT: u16 = 8090;
/// What the names of writes begin with.
const WRITES: &str = "drill-kept-";

/// How many successes show that load flows, and how long they may take.
const FLOWING: usize = 10;
/// See [`FLOWING`].
const FLOW_PATIENCE: Duration = Duration::from_secs(30);
/// How long a mended cluster may take to be whole again.
const REST: Duration = Duration::from_secs(90);
/// How long load flows undisturbed before the harm, and after the mending.
const CALM: Duration = Duration::from_secs(2);
/// How long after the harm writes are watched at least.
const AFTERMATH: Duration = Duration::from_secs(4);
/// Time between two looks at the cluster.
const SAMPLE: Duration = Duration::from_millis(250);

/// What a drill acts on.
pub struct Scene<'a> {
    /// The cluster.
    pub site: Site<'a>,
    /// The nodes that will be harmed.
    pub victims: Vec<String>,
    /// The nodes that are asked and loaded meanwhile.
    pub steady: Vec<String>,
    /// The managers among them; all managers, if none is left.
    pub askable: Vec<String>,
    /// Acknowledged writes, and reads.
    pub history: Arc<History>,
    /// What is on the cluster.
    pub load: Load,
    drill: &'static str,
    seed: u64,
    chance: u64,
    commit: String,
    machine: String,
    zero: Instant,
    tell: &'a mut dyn FnMut(Duration, &str),
    timeline: Vec<Mark>,
    lines: Vec<Line>,
    wrong: Vec<String>,
    streams: BTreeMap<&'static str, Stream>,
    /// The containers of the service before the harm: task, and first process.
    before: BTreeMap<String, i32>,
    /// The network of the container from which virtual IPs are asked for.
    probe: Place,
}

pub(super) fn run(drill: &Drill, lab: &Lab, seed: u64, tell: &mut dyn FnMut(Duration, &str)) -> Report {
    let mut scene = Scene {
        site: Site { lab },
        victims: Vec::new(),
        steady: Vec::new(),
        askable: Vec::new(),
        history: Arc::default(),
        load: drill.load,
        drill: drill.name,
        seed,
        chance: seed,
        commit: result::commit(),
        machine: result::machine(lab),
        zero: Instant::now(),
        tell,
        timeline: Vec::new(),
        lines: Vec::new(),
        wrong: Vec::new(),
        streams: BTreeMap::new(),
        before: BTreeMap::new(),
        probe: Arc::default(),
    };
    let samples = Arc::new(Mutex::new(Vec::new()));
    if let Err(error) = scene.play(drill, &samples) {
        scene.wrong.push(format!("{error:#}"));
    }
    // Whatever went wrong, the next drill finds a cluster without traces of this one.
    scene.streams.values_mut().for_each(Stream::end);
    if let Err(error) = scene.clear_away() {
        scene.wrong.push(format!("cannot clear away: {error:#}"));
    }
    let samples = std::mem::take(&mut *samples.lock().unwrap_or_else(PoisonError::into_inner));
    scene.report(drill, samples)
}

impl Scene<'_> {
    fn play(&mut self, drill: &Drill, samples: &Arc<Mutex<Vec<Sample>>>) -> Result<()> {
        self.site.whole(REST).context("before the drill")?;
        let (nodes, managers) = (self.site.nodes()?, self.site.managers()?);
        ensure!(
            nodes.len() >= usize::from(drill.nodes) && managers.len() >= usize::from(drill.managers),
            "the drill wants {} nodes with {} managers, the lab has {} with {}",
            drill.nodes,
            drill.managers,
            nodes.len(),
            managers.len()
        );
        self.askable = managers.clone();
        self.victims = (drill.victims)(self)?;
        self.steady = nodes.iter().filter(|node| !self.victims.contains(node)).cloned().collect();
        if self.steady.is_empty() {
            self.steady.clone_from(&nodes);
        }
        let left: Vec<String> = managers.iter().filter(|node| self.steady.contains(node)).cloned().collect();
        if !left.is_empty() {
            self.askable = left;
        }
        self.furnish()?;
        let stop = Arc::new(AtomicBool::new(false));
        thread::scope(|scope| {
            let (site, askable, zero) = (self.site, self.askable.clone(), self.zero);
            let (kept, ended) = (samples.clone(), stop.clone());
            scope.spawn(move || watch(site, &askable, zero, &kept, &ended));
            let done = self.break_and_mend(drill);
            stop.store(true, Ordering::Relaxed);
            done
        })?;
        self.judge()
    }

    /// Services to be asked, and the load.
    fn furnish(&mut self) -> Result<()> {
        let manager = self.manager()?;
        let site = self.site;
        site.act(&manager, &["network", "create", "--driver", "overlay", NETWORK])?;
        let (replicas, publish) = (self.load.replicas.to_string(), format!("{PORT}:80"));
        let web = [
            "service",
            "create",
            "--detach",
            "--name",
            SERVICE,
            "--replicas",
            &replicas,
            "--publish",
            &publish,
            "--network",
            NETWORK,
        ];
        site.act(&manager, &[&web, self.load.options, &["rswarm/demo"]].concat())?;
        let place = format!("node.hostname=={}", self.steady[0]);
        let probe = [
            "service",
            "create",
            "--detach",
            "--name",
            PROBE,
            "--constraint",
            &place,
            "--network",
            NETWORK,
            "rswarm/demo",
        ];
        site.act(&manager, &probe)?;
        let tasks = site.runs(&self.askable, SERVICE, self.load.replicas, REST)?;
        self.before = self.containers_of(&tasks)?;

        let zero = self.zero;
        let of = |node: &String| Ok(SocketAddr::new(site.address(node)?.into(), PORT));
        let targets = self.steady.iter().map(of).collect::<Result<_>>()?;
        let published = Stream::requests(zero, Aim { targets, place: None, rate: self.load.published });
        self.find_probe()?;
        let targets = vec![SocketAddr::new(self.virtual_ip(&manager)?, 80)];
        let place = Some(self.probe.clone());
        let virtual_ip = Stream::requests(zero, Aim { targets, place, rate: self.load.virtual_ip });
        self.streams.insert("published port", published);
        self.streams.insert("virtual IP", virtual_ip);
        self.write_and_read()
    }

    /// Finds the network of the container from which virtual IPs are asked for.
    fn find_probe(&self) -> Result<()> {
        let tasks = self.site.runs(&self.askable, PROBE, 1, REST)?;
        let process = self.containers_of(&tasks)?.into_values().next().context("the probe has no process")?;
        let inside = Netns::open(Path::new(&format!("/proc/{process}/ns/net")))?;
        *self.probe.lock().unwrap_or_else(PoisonError::into_inner) = Some(inside);
        Ok(())
    }

    /// Writes through every manager that will not be harmed, and reads through all of them.
    fn write_and_read(&mut self) -> Result<()> {
        let caller = |node: &String| self.site.lab.node(node).caller();
        let writers = self.askable.iter().map(caller).collect::<Result<Vec<_>>>()?;
        let all = self.site.managers()?;
        let readers = all.iter().map(caller).collect::<Result<Vec<_>>>()?;
        let (history, run) = (self.history.clone(), millis(self.zero.elapsed()));
        let writes = Stream::start(self.zero, 2, self.load.write_pause, move |number| {
            let name = format!("{WRITES}{run}-{number}");
            let words = ["service", "create", "--detach", "--name", &name, "--replicas", "0", "rswarm/demo"];
            let caller = &writers[number as usize % writers.len()];
            history.write(&name, || caller.call(&words, Duration::from_secs(2))?.ok().map(drop))
        });
        let history = self.history.clone();
        let reads = Stream::start(self.zero, 1, Duration::from_millis(150), move |number| {
            let caller = &readers[number as usize % readers.len()];
            history.read(|| {
                written(
                    &caller
                        .call(&["service", "ls", "--format", "{{.Name}}"], Duration::from_secs(2))?
                        .ok()?,
                )
            })
        });
        self.streams.insert("write", writes);
        self.streams.insert("read", reads);
        Ok(())
    }

    fn break_and_mend(&mut self, drill: &Drill) -> Result<()> {
        for (name, stream) in &self.streams {
            stream.flows(FLOWING, FLOW_PATIENCE).with_context(|| format!("{name}, before the harm"))?;
        }
        self.note("load flows");
        thread::sleep(CALM);
        let harmed = (drill.act)(self);
        self.note("mending");
        self.site.mend().context("cannot mend the lab")?;
        harmed?;
        let began = Instant::now();
        self.site.whole(REST).context("after the mending")?;
        self.site.runs(&self.askable, SERVICE, self.load.replicas, REST).context("after the mending")?;
        self.find_probe()?;
        self.measure("whole_again", began.elapsed().as_secs_f64() * 1e3, "ms", None, None);
        self.note("whole again");
        for (name, stream) in &self.streams {
            stream.flows(FLOWING, FLOW_PATIENCE).with_context(|| format!("{name}, after the mending"))?;
        }
        thread::sleep(CALM);
        self.streams.values_mut().for_each(Stream::end);
        Ok(())
    }

    /// Nothing lost, nothing twice, nothing left.
    fn judge(&mut self) -> Result<()> {
        let last = written(&self.site.ask_any(&self.askable, &["service", "ls", "--format", "{{.Name}}"])?)?;
        let lost = self.history.lost(&last);
        let (acknowledged, reads) = self.history.counts();
        self.measure("writes_acknowledged", acknowledged as f64, "count", None, None);
        self.measure("reads", reads as f64, "count", None, None);
        self.measure("writes_lost", lost.len() as f64, "count", Some(0.0), Some(0.0));
        let violations = self.history.violations();
        self.measure("not_linearizable", violations.len() as f64, "count", Some(0.0), Some(0.0));
        if let Some(first) = violations.into_iter().next() {
            self.wrong.push(first);
        }
        let listed = self.site.ask_any(&self.askable, &["service", "ls", "--format", "{{.Name}}"])?;
        let (site, askable) = (self.site, self.askable.clone());
        let services: Vec<&str> = listed.lines().filter(|name| !name.starts_with(WRITES)).collect();
        let left = until("no container is left that nobody wants", Duration::from_secs(20), || {
            let there: BTreeSet<String> = site.containers()?.into_keys().collect();
            let mut wanted = BTreeSet::new();
            for service in &services {
                let tasks = site.tasks(&askable, service)?;
                wanted.extend(tasks.into_iter().filter(Task::is_wanted).map(|task| task.id));
            }
            let left: Vec<&String> = there.difference(&wanted).collect();
            ensure!(left.is_empty(), "containers of {left:?}");
            Ok(())
        });
        left.map_err(|error| anyhow!("left over: {error:#}"))
    }

    /// Removes what the drill made.
    fn clear_away(&mut self) -> Result<()> {
        self.site.mend()?;
        self.site.whole(REST)?;
        let manager = self.manager()?;
        let names = self.site.ask(&manager, &["service", "ls", "--format", "{{.Name}}"])?;
        let own: Vec<&str> = names.lines().filter(|name| name.starts_with("drill-")).collect();
        for some in own.chunks(100) {
            self.site.act(&manager, &[&["service", "rm"], some].concat())?;
        }
        let networks = self.site.ask(&manager, &["network", "ls", "--format", "{{.Name}}"])?;
        if networks.lines().any(|name| name == NETWORK) {
            let site = self.site;
            until("the network is removed", REST, || {
                site.act(&manager, &["network", "rm", NETWORK]).map(drop)
            })?;
        }
        Ok(())
    }

    fn report(self, drill: &Drill, samples: Vec<Sample>) -> Report {
        let Self { mut wrong, lines, timeline, streams, machine, .. } = self;
        for line in &lines {
            if line.limit.is_some_and(|limit| line.value > limit) {
                let limit = line.limit.unwrap_or_default();
                wrong.push(format!("{} is {:.1} {}, more than {limit}", line.goal, line.value, line.unit));
            }
        }
        let mut errors = BTreeMap::new();
        for (name, stream) in &streams {
            errors.extend(
                stream.errors().into_iter().map(|(words, count)| (format!("{name}: {words}"), count)),
            );
        }
        Report {
            drill: drill.name,
            promise: drill.promise,
            machine,
            verdict: if wrong.is_empty() { Verdict::Passed } else { Verdict::Failed(wrong) },
            lines,
            timeline,
            samples,
            requests: streams.iter().map(|(name, stream)| (*name, result::plain(&stream.shots()))).collect(),
            errors,
        }
    }
}

/// What drills are made of.
impl Scene<'_> {
    /// The time since the drill began.
    pub fn now(&self) -> Duration {
        self.zero.elapsed()
    }

    /// Writes down what happens.
    pub fn note(&mut self, words: &str) {
        self.mark(words, false);
    }

    /// Writes down that harm is being done, now.
    pub fn harm(&mut self, words: &str) -> Duration {
        self.mark(words, true);
        self.now()
    }

    fn mark(&mut self, words: &str, harm: bool) {
        let now = self.now();
        (self.tell)(now, words);
        self.timeline.push(Mark { at_ms: millis(now), words: words.to_owned(), harm });
    }

    /// Writes down a result: what it should be at most, and above what the drill has failed.
    pub fn measure(
        &mut self,
        what: &str,
        value: f64,
        unit: &'static str,
        target: Option<f64>,
        limit: Option<f64>,
    ) {
        self.measure_as(format!("{}.{what}", self.drill), value, unit, target, limit);
    }

    /// Writes down a result that has the same name in several drills.
    pub fn measure_as(
        &mut self,
        goal: String,
        value: f64,
        unit: &'static str,
        target: Option<f64>,
        limit: Option<f64>,
    ) {
        let (seed, commit) = (self.seed, self.commit.clone());
        self.lines.push(Line { goal, value, unit, target, limit, seed, commit });
    }

    /// Writes down a duration, in milliseconds.
    pub fn measure_time(&mut self, what: &str, time: Duration, target: f64, limit: f64) {
        self.measure(what, time.as_secs_f64() * 1e3, "ms", Some(target), Some(limit));
    }

    /// Notes that something must hold.
    pub fn expect(&mut self, holds: bool, words: impl Into<String>) {
        if !holds {
            self.wrong.push(words.into());
        }
    }

    /// A number below `end`, by the seed.
    pub fn chance(&mut self, end: usize) -> usize {
        self.chance =
            self.chance.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.chance >> 33) as usize % end.max(1)
    }

    /// A manager to ask.
    pub fn manager(&self) -> Result<String> {
        self.askable.first().cloned().context("the lab has no manager")
    }

    /// Who leads.
    pub fn leader(&self) -> Result<String> {
        self.site.leader(&self.askable)
    }

    /// The requests that took this way.
    pub fn shots(&self, way: &str) -> Vec<Shot> {
        self.streams.get(way).map(Stream::shots).unwrap_or_default()
    }

    /// Waits until a write that began after `since` was acknowledged, and measures the longest time without one.
    pub fn writable(&mut self, since: Duration, target: f64, limit: f64) -> Result<()> {
        let stream = self.streams.get("write").context("there are no writes")?;
        until("a write is acknowledged", Duration::from_secs(30), || {
            ensure!(stream.shots().iter().any(|shot| shot.ok && shot.at > since), "{:?}", stream.errors());
            Ok(())
        })?;
        // What is broken may take a moment to show, and there may be a second pause.
        thread::sleep(AFTERMATH.saturating_sub(self.zero.elapsed() - since));
        stream.flows(FLOWING, FLOW_PATIENCE)?;
        let gap = load::gap(&stream.shots(), since);
        self.measure_time("writable_after", gap, target, limit);
        self.note(&format!("writable again after {gap:.2?}"));
        Ok(())
    }

    /// Waits until the service has all its tasks on nodes other than these, and measures how long that took.
    pub fn replaced(&mut self, lost: &[String], since: Duration, target: f64, limit: f64) -> Result<()> {
        let (site, askable, replicas) = (self.site, self.askable.clone(), self.load.replicas);
        until("the lost tasks run elsewhere", Duration::from_secs(60), || {
            let tasks = site.tasks(&askable, SERVICE)?;
            let running = tasks.iter().filter(|task| task.runs() && !lost.contains(&task.node)).count();
            ensure!(running >= replicas, "{running} of {replicas}");
            Ok(())
        })?;
        let took = self.now() - since;
        self.measure_time("replaced_after", took, target, limit);
        self.note(&format!("all tasks run on the other nodes after {took:.2?}"));
        Ok(())
    }

    /// Waits until every request that was sent until now has an answer or has failed.
    pub fn settle(&mut self) {
        let left = self.streams.iter().filter_map(|(name, stream)| Some((*name, stream.settled().err()?)));
        let left: Vec<String> = left.map(|(name, error)| format!("{name}: {error:#}")).collect();
        self.wrong.extend(left);
    }

    /// Waits until so many requests that are sent from now on have been answered, by each way.
    pub fn flows(&self, count: usize) -> Result<()> {
        for (name, stream) in &self.streams {
            stream.flows(count, FLOW_PATIENCE).with_context(|| format!("{name}, under the harm"))?;
        }
        Ok(())
    }

    /// How long answers took that came since then, the slowest hundredth left out.
    pub fn answer_times(&mut self, since: Duration, target: f64, limit: f64) {
        for (way, name) in [("published port", "published_p99"), ("virtual IP", "vip_p99")] {
            self.slowest(way, name, since, target, limit);
        }
    }

    /// How long writes took that were begun since then, the slowest hundredth left out.
    pub fn write_times(&mut self, since: Duration, target: f64, limit: f64) {
        self.slowest("write", "write_p99", since, target, limit);
    }

    fn slowest(&mut self, way: &str, name: &str, since: Duration, target: f64, limit: f64) {
        let shots = self.shots(way).into_iter().filter(|shot| shot.ok && shot.at >= since);
        let mut times: Vec<Duration> = shots.map(|shot| shot.took).collect();
        times.sort();
        if let Some(last) = times.len().checked_sub(1) {
            self.measure_time(name, times[last * 99 / 100], target, limit);
        }
    }

    /// Asks a manager for all that was written; the answer is held against the others.
    pub fn read_through(&self, node: &str) -> Result<()> {
        let words = ["service", "ls", "--format", "{{.Name}}"];
        self.history.read(|| written(&self.site.ask(node, &words)?))
    }

    /// Makes sure that a cut is one: the first node gets no answer from the second.
    pub fn expect_cut(&mut self, from: &str, to: &str) -> Result<()> {
        let heard = self.site.lab.node(from).reaches(to, Duration::from_millis(300))?;
        self.expect(!heard, format!("{from} reaches {to} across the cut: the fault was not injected"));
        Ok(())
    }

    /// Counts requests that were sent since then and failed, in percent of all.
    pub fn failures(&mut self, since: Duration, target: f64, limit: f64) {
        self.settle();
        self.failed("published port", "published_failed", since, target, limit);
        self.failed("virtual IP", "vip_failed", since, target, limit);
    }

    /// The same for virtual IPs alone: published ports are served by the daemons, and these are stopped.
    pub fn failures_inside(&mut self, since: Duration, target: f64, limit: f64) {
        self.settle();
        self.failed("virtual IP", "vip_failed", since, target, limit);
    }

    fn failed(&mut self, way: &str, name: &str, since: Duration, target: f64, limit: f64) {
        let shots: Vec<Shot> =
            self.shots(way).into_iter().filter(|shot| shot.at + shot.took >= since).collect();
        let failed = shots.iter().filter(|shot| !shot.ok).count();
        let percent = 100.0 * failed as f64 / shots.len().max(1) as f64;
        self.measure(name, percent, "percent", Some(target), Some(limit));
        self.expect(!shots.is_empty(), format!("no request went to the {way}"));
    }

    /// Counts containers of the service that were running before the harm on nodes other than these, and are not
    /// the same process any more.
    pub fn restarts(&mut self, lost: &[String]) -> Result<()> {
        let tasks = self.site.tasks(&self.askable, SERVICE)?;
        let spared: BTreeSet<&String> =
            tasks.iter().filter(|task| !lost.contains(&task.node)).map(|task| &task.id).collect();
        let now = self.site.containers()?;
        let gone = self
            .before
            .iter()
            .filter(|(task, pid)| spared.contains(task) && now.get(*task) != Some(pid))
            .count();
        self.measure("containers_restarted", gone as f64, "count", Some(0.0), Some(0.0));
        Ok(())
    }

    fn containers_of(&self, tasks: &[Task]) -> Result<BTreeMap<String, i32>> {
        let there = self.site.containers()?;
        let found = tasks.iter().filter_map(|task| Some((task.id.clone(), *there.get(&task.id)?)));
        Ok(found.collect())
    }

    /// The ports of tracked connections from the probe that go to these addresses.
    pub fn ports_into(&self, addresses: &BTreeSet<IpAddr>) -> Result<BTreeSet<u16>> {
        let node = &self.steady[0];
        let networks = self.site.lab.node(node).root()?.join("run/rswarm/overlay/networks");
        let mut ports = BTreeSet::new();
        let entries = fs::read_dir(&networks).with_context(|| format!("cannot read {}", networks.display()));
        for entry in entries?.flatten() {
            let tracked = Conntrack::open(&Netns::open(&entry.path())?)?.list()?;
            let into = tracked.iter().filter(|one| one.dnat && addresses.contains(&one.reply.source));
            ports.extend(into.map(|one| one.original.source_port));
        }
        Ok(ports)
    }

    fn virtual_ip(&self, manager: &str) -> Result<IpAddr> {
        let printed = self.site.ask(manager, &["service", "inspect", SERVICE])?;
        let inspected: serde_json::Value = serde_json::from_str(&printed).context("inspect is not JSON")?;
        let addresses = inspected[0]["Endpoint"]["VirtualIPs"].as_array().cloned().unwrap_or_default();
        // The last network is ours: the first one is that of published ports, if there is such.
        let address = addresses.last().and_then(|ip| ip["Addr"].as_str()?.split('/').next()?.parse().ok());
        address.with_context(|| format!("{SERVICE} has no virtual IP: {printed}"))
    }
}

/// Names of writes among those of all services.
fn written(printed: &str) -> Result<BTreeSet<String>> {
    if printed.lines().next().is_none() {
        bail!("an empty list of services, where there are some");
    }
    Ok(printed.lines().filter(|name| name.starts_with(WRITES)).map(String::from).collect())
}

/// Looks at the cluster until told to stop.
fn watch(site: Site<'_>, askable: &[String], zero: Instant, samples: &Mutex<Vec<Sample>>, stop: &AtomicBool) {
    let mut term = 0;
    while !stop.load(Ordering::Relaxed) {
        let at = zero.elapsed();
        if let Some(account) = askable.iter().find_map(|node| site.account(node).ok()) {
            term = account.term.max(term);
        }
        if let Ok(tasks) = site.tasks(askable, SERVICE) {
            let mut on: BTreeMap<String, u32> = BTreeMap::new();
            for task in tasks.iter().filter(|task| task.runs()) {
                *on.entry(task.node.clone()).or_default() += 1;
            }
            let sample = Sample { at_ms: millis(at), term, tasks: on };
            samples.lock().unwrap_or_else(PoisonError::into_inner).push(sample);
        }
        thread::sleep(SAMPLE);
    }
}
