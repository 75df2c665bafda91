//! Scripts and what they print, in one file each: `tests/scenarios/*.txt`. Lines that are indented are
//! answers; `UPDATE_EXPECT=1` writes them anew.

use crate::world::{GIB, World, capacity, spec};
use rswarm_control::admission::{NodeUpdate, Request};
use rswarm_control::convergence;
use rswarm_control::model::*;
use rswarm_control::worker::Seen;
use std::fmt::Write;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

#[test]
fn scenarios_go_as_written() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/scenarios");
    let mut files: Vec<_> =
        std::fs::read_dir(&folder).expect("scenarios").map(|f| f.expect("a file").path()).collect();
    files.sort();
    assert!(!files.is_empty());
    for file in files {
        let script = std::fs::read_to_string(&file).expect("a script");
        expect_test::expect_file![&file].assert_eq(&play(&script));
    }
}

fn play(script: &str) -> String {
    let (mut world, mut out) = (World::new(), String::new());
    for line in script.lines().filter(|line| !line.starts_with("  ")) {
        writeln!(out, "{line}").expect("a string takes everything");
        let words: Vec<&str> = line.split_whitespace().collect();
        if words.is_empty() || line.starts_with('#') {
            continue;
        }
        if let Err(why) = command(&mut world, &words, &mut out) {
            writeln!(out, "  refused: {why}").expect("a string takes everything");
        }
    }
    out
}

fn command(world: &mut World, words: &[&str], out: &mut String) -> Result<(), String> {
    let name = words.get(1).copied().unwrap_or_default();
    match words[0] {
        "node" => {
            let role = if words.contains(&"manager") { Role::Manager } else { Role::Worker };
            let memory = option(words, "memory").map_or(8, |text| text.parse().expect("GiB"));
            world.join(name, role, capacity(memory)).map_err(|refused| refused.to_string())?;
            let labels_add = labels(words);
            let node = name.into();
            ask(world, Request::UpdateNode(NodeUpdate { node, labels_add, ..NodeUpdate::default() }))
        }
        "service" => ask(
            world,
            Request::CreateService { spec: described(words, spec(name, 1, "demo")), networks: vec![] },
        ),
        "update" => {
            let old = world.state.service_named(name).ok_or("no such service")?.spec.clone();
            let spec = described(words, old);
            ask(world, Request::UpdateService { service: name.into(), version: None, spec, networks: vec![] })
        }
        "scale" => {
            let replicas = words[2].parse().expect("a number");
            ask(world, Request::ScaleService { service: name.into(), replicas })
        }
        "rollback" => {
            let to = option(words, "to").map(|to| to.parse().expect("a revision"));
            ask(world, Request::RollbackService { service: name.into(), to })
        }
        "rebalance" => {
            let services = words[1..].iter().map(|name| (*name).to_owned()).collect();
            ask(
                world,
                Request::By { author: "ann".into(), request: Box::new(Request::Rebalance { services }) },
            )
        }
        "rebalance-on-return" => {
            let mut settings = world.state.cluster().expect("a cluster").settings.clone();
            settings.rebalance_since = Some(world.now);
            ask(world, Request::UpdateSettings { version: None, settings })
        }
        "pause" | "resume" => {
            ask(world, Request::PauseUpdate { service: name.into(), pause: words[0] == "pause" })
        }
        "history" => {
            history(world, name, out);
            Ok(())
        }
        "why" => crate::why::why(world, name, out),
        "events" => crate::why::events(world, name, out),
        "rm" => ask(world, Request::RemoveService { service: name.into() }),
        "node-rm" => ask(world, Request::RemoveNode { node: name.into(), force: words.contains(&"force") }),
        "node-update" => {
            let availability = option(words, "availability").map(|text| match text {
                "active" => Availability::Active,
                "pause" => Availability::Pause,
                _ => Availability::Drain,
            });
            let role = option(words, "role")
                .map(|text| if text == "manager" { Role::Manager } else { Role::Worker });
            let (node, labels_add) = (name.into(), labels(words));
            let taints = |prefix: &str| {
                words
                    .iter()
                    .filter_map(|word| word.strip_prefix(prefix))
                    .map(str::to_owned)
                    .collect::<Vec<_>>()
            };
            ask(
                world,
                Request::UpdateNode(NodeUpdate {
                    node,
                    availability,
                    role,
                    labels_add,
                    taints_add: taints("taint:").iter().map(|text| text.parse().expect("a taint")).collect(),
                    taints_rm: taints("untaint:")
                        .iter()
                        .map(|text| text.parse().expect("a pattern"))
                        .collect(),
                    ..NodeUpdate::default()
                }),
            )
        }
        "leave" => {
            ask(world, Request::Leave { node: world.node_named(name), force: words.contains(&"force") })
        }
        "silence" => {
            for name in &words[1..] {
                world.hear(world.node_named(name), false);
            }
            Ok(())
        }
        "hear" => {
            for name in &words[1..] {
                world.hear(world.node_named(name), true);
            }
            world.settle();
            Ok(())
        }
        "power-off" => {
            world.power_off(world.node_named(name));
            Ok(())
        }
        "power-on" => {
            world.power_on(world.node_named(name));
            world.settle();
            Ok(())
        }
        "restart-daemon" => {
            world.restart_daemon(world.node_named(name));
            world.settle();
            Ok(())
        }
        "new-leader" => {
            world.new_leader();
            Ok(())
        }
        "exit" => {
            let code = words[2].parse().expect("an exit code");
            let called = world.state.tasks().filter(|task| self::name(world, task) == name);
            let task = called.max_by_key(|task| task.meta.number).ok_or("no such task")?.id;
            world.exit(task, code);
            world.settle();
            Ok(())
        }
        "healthy" | "unhealthy" | "ailing" | "ready" | "unready" => {
            let said = words[2..].join(" ");
            let seen = match words[0] {
                "healthy" => Seen::Healthy,
                "unhealthy" => Seen::Unhealthy(said),
                "ailing" => Seen::Ailing(said),
                "ready" => Seen::Ready,
                _ => Seen::Unready(said),
            };
            let task = rswarm_control::admission::find_task(&world.state, name)
                .map_err(|refused| refused.to_string())?;
            world.find(task.id, &seen);
            world.settle();
            Ok(())
        }
        "routes" => {
            routes(world, name, out);
            Ok(())
        }
        "wait" => {
            world.run(duration(name));
            Ok(())
        }
        "tasks" => {
            tasks(world, out);
            Ok(())
        }
        "drains" => {
            for left in rswarm_control::drain::remaining(&world.state, world.node_named(name)) {
                writeln!(out, "  {}: {}", left.name, left.words).expect("a string takes everything");
            }
            Ok(())
        }
        "spare" => {
            spare(world, out);
            Ok(())
        }
        "brake" => {
            if let Some(brake) = rswarm_control::liveness::brake_by(&world.state, world.now) {
                writeln!(out, "  {} of {} nodes are silent", brake.silent, brake.nodes)
                    .expect("a string takes everything");
            }
            Ok(())
        }
        "running" => {
            running(world, out);
            Ok(())
        }
        "nodes" => {
            nodes(world, out);
            Ok(())
        }
        "progress" => {
            progress(world, name, out);
            Ok(())
        }
        other => panic!("no such command: {other}"),
    }
}

/// What the loss of each node would leave without a place.
fn spare(world: &World, out: &mut String) {
    let spare = rswarm_control::spare::spare(&world.state, world.now);
    let (examined, of) = (spare.examined, spare.of);
    if spare.losses.is_empty() {
        writeln!(out, "  any of {of} nodes may be lost").expect("a string takes everything");
    }
    assert_eq!(examined, of, "a small cluster is looked at as a whole");
    for loss in &spare.losses {
        for short in &loss.shortfalls {
            let (host, tasks, name, why) = (&loss.hostname, short.tasks, &short.name, &short.why);
            writeln!(out, "  {host}: {tasks} of {name}: {why}").expect("a string takes everything");
        }
    }
}

fn ask(world: &mut World, request: Request) -> Result<(), String> {
    world.ask(&request).map_err(|refused| refused.to_string())?;
    world.settle();
    Ok(())
}

fn option<'a>(words: &[&'a str], key: &str) -> Option<&'a str> {
    words.iter().find_map(|word| word.strip_prefix(key)?.strip_prefix('='))
}

fn labels(words: &[&str]) -> Labels {
    let labels = words.iter().filter_map(|word| word.strip_prefix("label:")?.split_once('='));
    labels.map(|(key, value)| (key.into(), value.into())).collect()
}

fn described(words: &[&str], mut spec: ServiceSpec) -> ServiceSpec {
    let task = Arc::make_mut(&mut spec.task);
    for word in words.iter().skip(2) {
        if let Some((kind, text)) = word.split_once(':').filter(|(kind, _)| !kind.contains('=')) {
            rule(&mut task.placement, kind, text);
            continue;
        }
        let (key, value) = word.split_once('=').unwrap_or((word, ""));
        match key {
            "replicas" if spec.mode.is_job() => drop(spec.mode.resize(value.parse().expect("a number"))),
            "replicas" => spec.mode = Mode::Replicated { replicas: value.parse().expect("a number") },
            "job" | "global-job" => {
                task.restart.condition = RestartCondition::OnFailure;
                let (max_concurrent, deadline) = (0, Duration::ZERO);
                spec.mode = match key {
                    "job" => Mode::ReplicatedJob { completions: 1, max_concurrent, deadline },
                    _ => Mode::GlobalJob { deadline },
                };
            }
            "concurrent" | "deadline" => match &mut spec.mode {
                Mode::ReplicatedJob { max_concurrent, .. } if key == "concurrent" => {
                    *max_concurrent = value.parse().expect("a number");
                }
                Mode::ReplicatedJob { deadline, .. } | Mode::GlobalJob { deadline } => {
                    *deadline = duration(value)
                }
                other => panic!("{other:?} is no job"),
            },
            "image" => task.containers[0].image = value.into(),
            "memory" => task.resources.reservations.memory_bytes = value.parse::<u64>().expect("GiB") * GIB,
            "max" => task.placement.max_per_node = value.parse().expect("a number"),
            "global" => spec.mode = Mode::Global,
            "unconstrained" => task.placement.constraints.clear(),
            "ready-tcp" => {
                let probe = Probe::Tcp(value.parse().expect("a port"));
                task.containers[0].readiness = Some(Readiness::new(probe));
            }
            "force" => task.force += 1,
            "loss" => {
                task.on_node_loss = Some(match value {
                    "replace" => OnNodeLoss::Replace,
                    "fence" => OnNodeLoss::Fence,
                    _ => OnNodeLoss::Wait,
                });
            }
            "volume" => task.containers[0].mounts.push(Mount::Volume {
                source: value.into(),
                target: "/data".into(),
                read_only: false,
                no_copy: false,
            }),
            "delay" => task.restart.delay = duration(value),
            "window" => task.restart.window = duration(value),
            "attempts" => task.restart.max_attempts = Some(value.parse().expect("a number")),
            "condition" => {
                task.restart.condition = match value {
                    "any" => RestartCondition::Any,
                    "on-failure" => RestartCondition::OnFailure,
                    _ => RestartCondition::None,
                }
            }
            _ if pace(&mut spec.update, key.strip_prefix("update-"), value) => {}
            _ if pace(&mut spec.rollback, key.strip_prefix("rollback-"), value) => {}
            "label" => drop(spec.labels.insert(value.into(), String::new())),
            "publish" | "host" => {
                let (published, target) = value.split_once(':').expect("PUBLISHED:TARGET");
                let mode = if key == "host" { PortMode::Host } else { PortMode::Ingress };
                spec.endpoint.ports.push(PortSpec {
                    published: published.parse().ok(),
                    target: target.parse().expect("a port"),
                    protocol: Protocol::Tcp,
                    mode,
                    proxy_protocol: false,
                });
            }
            other => panic!("no such option: {other}"),
        }
    }
    spec
}

fn rule(placement: &mut Placement, kind: &str, text: &str) {
    let near = |rule| Affinity::parse(rule, text).expect("a rule");
    match kind {
        "constraint" => placement.constraints.push(text.parse().expect("a constraint")),
        "pref" => placement.preferences.push(text.parse().expect("a preference")),
        "near" => placement.affinities.push(near(AffinityRule::Together)),
        "far" => placement.affinities.push(near(AffinityRule::Apart)),
        "tolerate" => placement.tolerations.push(text.parse().expect("a toleration")),
        other => panic!("no such rule: {other}"),
    }
}

/// Sets one of an update's options, if this is one.
fn pace(config: &mut UpdateConfig, key: Option<&str>, value: &str) -> bool {
    match key {
        Some("parallelism") => config.parallelism = value.parse().expect("a number"),
        Some("delay") => config.delay = duration(value),
        Some("monitor") => config.monitor = duration(value),
        Some("deadline") => config.progress_deadline = duration(value),
        Some("healthy") => config.healthy_time = duration(value),
        Some("ratio") => {
            config.max_failure_permille = (value.parse::<f32>().expect("a number") * 1000.0) as u16;
        }
        Some("order") => {
            config.order =
                if value == "start-first" { UpdateOrder::StartFirst } else { UpdateOrder::StopFirst };
        }
        Some("action") => {
            config.failure_action = match value {
                "pause" => FailureAction::Pause,
                "continue" => FailureAction::Continue,
                _ => FailureAction::Rollback,
            }
        }
        _ => return false,
    }
    true
}

fn history(world: &World, name: &str, out: &mut String) {
    let service = world.state.service_named(name).expect("a service");
    let line = |number: u64, spec: &ServiceSpec, settled: bool| {
        let image = &spec.task.containers[0].image;
        let replicas = spec.mode.replicas().map_or(spec.mode.name().into(), |replicas| replicas.to_string());
        let settled = if settled { "" } else { ", never complete" };
        format!("  {number}: {image} times {replicas}{settled}\n")
    };
    for revision in &service.previous {
        out.push_str(&line(revision.number, &revision.spec, revision.settled));
    }
    out.push_str(&line(service.revision, &service.spec, service.is_settled()));
}

fn duration(text: &str) -> Duration {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let number: f32 = digits.parse().expect("a duration");
    match &text[digits.len()..] {
        "ms" => Duration::from_secs_f32(number / 1000.0),
        "s" => Duration::from_secs_f32(number),
        "m" => Duration::from_secs_f32(number * 60.0),
        "h" => Duration::from_secs_f32(number * 3600.0),
        other => panic!("no such unit: {other}"),
    }
}

fn tasks(world: &World, out: &mut String) {
    let mut tasks: Vec<_> = world.state.tasks().collect();
    let place = |task: &Task| match task.slot {
        Slot::Replica(number) => (number, String::new()),
        Slot::Node(_) => (0, name(world, task)),
    };
    tasks.sort_by_key(|task| (&task.service_name, place(task), task.meta.number));
    for task in &tasks {
        write!(out, "  {} {}", name(world, task), task.observed).expect("a string takes everything");
        if let Some(node) = task.node {
            let name = world.state.node(node).map_or("a removed node", |node| node.hostname.as_str());
            write!(out, " on {name}").expect("a string takes everything");
        }
        if task.is_live() && task.desired != Desired::Running {
            write!(out, ", wanted {}", task.desired).expect("a string takes everything");
        }
        let words = convergence::words(task);
        if words != task.observed.to_string() {
            write!(out, ": {words}").expect("a string takes everything");
        }
        out.push('\n');
    }
    if tasks.is_empty() {
        out.push_str("  none\n");
    }
}

/// What really runs, whatever the managers believe.
fn running(world: &World, out: &mut String) {
    let running = world.running();
    let line = |(task, node): (&rswarm_control::TaskId, &rswarm_control::NodeId)| {
        let task = world.state.task(*task).map_or("a forgotten task".into(), |task| name(world, task));
        let node = world.state.node(*node).map_or("a removed node", |node| &node.hostname);
        format!("  {task} on {node}\n")
    };
    let mut lines: Vec<String> = running.iter().map(line).collect();
    lines.sort();
    out.push_str(if lines.is_empty() { "  nothing\n" } else { "" });
    lines.iter().for_each(|line| out.push_str(line));
}

/// Which tasks of a service are given new connections.
fn routes(world: &World, name: &str, out: &mut String) {
    let service = world.state.service_named(name).expect("a service");
    let from = world.node_named(crate::world::FOUNDER);
    let routable = rswarm_control::endpoints::routable(&world.state, service, from);
    let home =
        |task: &Task| task.node.and_then(|node| world.state.node(node)).map(|node| node.hostname.clone());
    let mut names: Vec<_> = routable
        .iter()
        .map(|task| {
            format!(
                "{} on {} ({})",
                task.name(),
                home(task).unwrap_or_default(),
                task.spec.containers[0].image
            )
        })
        .collect();
    names.sort();
    writeln!(out, "  {}", if names.is_empty() { "nowhere".into() } else { names.join(", ") })
        .expect("a string takes everything");
}

/// A task's name, with a node's instead of its id.
fn name(world: &World, task: &Task) -> String {
    let node = task.slot.node().and_then(|node| world.state.node(node));
    node.map_or_else(|| task.name(), |node| format!("{}.{}", task.service_name, node.hostname))
}

fn nodes(world: &World, out: &mut String) {
    let mut nodes: Vec<_> = world.state.nodes().collect();
    nodes.sort_by_key(|node| &node.hostname);
    for node in nodes {
        let seat = node.raft.map_or(String::new(), |raft| format!(" seat {raft}"));
        let colon = if node.message.is_empty() { "" } else { ": " };
        let (name, role, message) = (&node.hostname, node.role, &node.message);
        writeln!(out, "  {name} {role}{seat} {:?} {:?}{colon}{message}", node.availability, node.status)
            .expect("a string takes everything");
    }
}

fn progress(world: &World, name: &str, out: &mut String) {
    let service = world.state.service_named(name).expect("a service");
    let progress = convergence::progress(&world.state, service.id).expect("a service");
    let convergence::Progress { replicas, running, current, leaving, verdict, .. } = progress;
    if progress.job {
        let (completed, wanted) = (progress.completed, convergence::wanted(&world.state, service));
        writeln!(out, "  {verdict:?}: {running}/{wanted} ({completed}/{replicas} completed)")
            .expect("a string takes everything");
        if let Some(trouble) = progress.trouble {
            writeln!(out, "  {}: {}", trouble.name, trouble.words).expect("a string takes everything");
        }
        return;
    }
    writeln!(out, "  {verdict:?}: {running}/{replicas} running, {current} current, {leaving} leaving")
        .expect("a string takes everything");
    if let Some(trouble) = progress.trouble {
        writeln!(out, "  {}: {}", trouble.name, trouble.words).expect("a string takes everything");
    }
    if let Some(status) = &service.update_status {
        let message = status.message.split(" (").next().unwrap_or_default();
        writeln!(out, "  {:?}: {message}", status.state).expect("a string takes everything");
    }
}
