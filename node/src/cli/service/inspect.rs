//! `rswarm service inspect --pretty web`

use crate::cli::client::checked;
use crate::cli::context::Context;
use crate::cli::output::{inspect, units};
use crate::cli::view;
use crate::cli::view::service::{action_name, image, loss_name, order_name, protocol_name, update_state};
use anyhow::Result;
use rswarm_control::ids::NetworkId;
use rswarm_control::model::{AffinityRule, Filling, Placement, TaskSpec};
use rswarm_control::model::{Mode, Mount, PortMode, Resources, RestartCondition, Service, UpdateConfig};
use std::collections::BTreeMap;
use std::fmt::Write as _;

/// Show all there is to know of services
#[derive(Debug, clap::Args)]
pub struct Inspect {
    /// Ids, beginnings of ids, or names
    #[arg(required = true, value_name = "SERVICE")]
    services: Vec<String>,
    /// `json`, or a template such as '{{.Spec.TaskTemplate.ContainerSpec.Image}}'
    #[arg(short, long, value_name = "FORMAT", conflicts_with = "pretty")]
    format: Option<String>,
    /// Print for people
    #[arg(long)]
    pretty: bool,
}

impl Inspect {
    /// Carries the command out.
    ///
    /// # Errors
    /// If there is no such service, or the manager refuses.
    pub async fn run(self, cx: &mut Context) -> Result<()> {
        let mut client = cx.client().await?;
        let services: Vec<Service> = checked(client.services(&self.services).await?.services)?;
        let text = if self.pretty {
            let networks = client.networks(&[]).await?;
            let names = networks.into_iter().map(|network| (network.id, network.name));
            let names: BTreeMap<String, String> = names.collect();
            services.iter().map(|service| pretty(service, &names)).collect::<Result<Vec<_>, _>>()?.join("\n")
        } else {
            let view = |service: &Service| inspect::dated(view::service::service(service), cx.age());
            let views: Vec<_> = services.iter().map(view).collect();
            inspect::print(&views, self.format.as_deref())?
        };
        cx.out.write_all(text.as_bytes())?;
        Ok(())
    }
}

/// The account of a service, with the networks in it by their `names`.
fn pretty(service: &Service, names: &BTreeMap<String, String>) -> Result<String, std::fmt::Error> {
    let named = |network: &NetworkId| {
        let id = network.to_string();
        names.get(&id).cloned().unwrap_or(id)
    };
    let mut text = String::new();
    let out = &mut text;
    let (spec, task) = (&service.spec, &service.spec.task);
    writeln!(out, "\nID:\t\t{}", service.id)?;
    writeln!(out, "Name:\t\t{}", spec.name)?;
    pairs(out, "Labels", &spec.labels)?;
    match spec.mode {
        Mode::Replicated { replicas } => writeln!(out, "Service Mode:\tReplicated\n Replicas:\t{replicas}")?,
        Mode::Global => writeln!(out, "Service Mode:\tGlobal")?,
        Mode::ReplicatedJob { completions, .. } => {
            writeln!(out, "Service Mode:\tReplicatedJob\n Completions:\t{completions}")?;
            writeln!(out, " Max concurrent:\t{}", spec.mode.concurrency())?;
        }
        Mode::GlobalJob { .. } => writeln!(out, "Service Mode:\tGlobalJob")?,
    }
    if spec.mode.is_job() {
        writeln!(out, " Iteration:\t{}", service.spec_version)?;
        if !spec.mode.deadline().is_zero() {
            writeln!(out, " Deadline:\t{}", units::duration(spec.mode.deadline()))?;
        }
    }
    if let Some(status) = &service.update_status {
        writeln!(out, "UpdateStatus:\n State:\t\t{}", update_state(status.state))?;
        if !status.message.is_empty() {
            writeln!(out, " Message:\t{}", status.message)?;
        }
    }
    pace(out, "Update", &spec.update)?;
    pace(out, "Rollback", &spec.rollback)?;
    placement(out, task)?;
    restart(out, service)?;
    writeln!(out, "On Node Loss:\t{}", loss_name(task.node_loss()))?;
    for container in &task.containers {
        writeln!(out, "ContainerSpec:\n Image:\t\t{}", image(container))?;
        list(out, "Command", &container.command)?;
        list(out, "Args", &container.args)?;
        let env: Vec<String> =
            container.env.iter().map(|env| format!("{}={}", env.name, env.value)).collect();
        list(out, "Env", &env)?;
        one(out, "Dir", container.workdir.as_deref())?;
        one(out, "User", container.user.as_deref())?;
        one(out, "Hostname", container.hostname.as_deref())?;
        one(out, "StopSignal", container.stop_signal.as_deref())?;
        writeln!(out, " StopGrace:\t{}", units::duration(container.stop_grace))?;
        for mount in &container.mounts {
            writeln!(out, " Mount:\t\t{}", self::mount(mount))?;
        }
        super::health::pretty(out, container)?;
    }
    amounts(out, "Reservations", &task.resources.reservations)?;
    for (kind, count) in &task.resources.generic {
        writeln!(out, "Generic Resource:\t{kind}={count}")?;
    }
    amounts(out, "Limits", &task.resources.limits)?;
    let networks: Vec<String> = task.networks.iter().map(named).collect();
    writeln!(out, "Networks:\t{}", networks.join(" "))?;
    for (network, vip) in &service.endpoint.vips {
        writeln!(out, "Virtual IP:\t{vip} on {}", named(network))?;
    }
    writeln!(out, "Endpoint Mode:\tvip")?;
    if !service.endpoint.ports.is_empty() {
        writeln!(out, "Ports:")?;
    }
    for port in &service.endpoint.ports {
        let mode = if port.mode == PortMode::Ingress { "ingress" } else { "host" };
        let protocol = protocol_name(port.protocol);
        writeln!(out, " PublishedPort = {}\n  Protocol = {protocol}", port.published)?;
        writeln!(out, "  TargetPort = {}\n  PublishMode = {mode}", port.target)?;
    }
    Ok(text)
}

fn placement(out: &mut String, task: &TaskSpec) -> std::fmt::Result {
    let placement = &task.placement;
    if *placement != Placement::default() {
        writeln!(out, "Placement:")?;
    }
    let constraints: Vec<String> = placement.constraints.iter().map(ToString::to_string).collect();
    if !constraints.is_empty() {
        writeln!(out, " Constraints:\t[{}]", constraints.join(" "))?;
    }
    for preference in &placement.preferences {
        writeln!(out, " Preference:\t{preference}")?;
    }
    for rule in &placement.affinities {
        let kind = if rule.rule == AffinityRule::Together { "Affinity" } else { "Anti-affinity" };
        writeln!(out, " {kind}:\t{rule}")?;
    }
    for toleration in &placement.tolerations {
        writeln!(out, " Toleration:\t{toleration}")?;
    }
    if placement.max_per_node > 0 {
        writeln!(out, " Max Replicas Per Node:\t{}", placement.max_per_node)?;
    }
    match placement.filling {
        Some(Filling::Spread) => writeln!(out, " Filling:\tspread")?,
        Some(Filling::BinPack) => writeln!(out, " Filling:\tbinpack")?,
        None => {}
    }
    let platforms: Vec<String> = placement.platforms.iter().map(ToString::to_string).collect();
    if !platforms.is_empty() {
        writeln!(out, " Platforms:\t{}", platforms.join(" "))?;
    }
    Ok(())
}

fn pace(out: &mut String, which: &str, config: &UpdateConfig) -> std::fmt::Result {
    let UpdateConfig { parallelism, delay, monitor, max_failure_permille, .. } = config;
    writeln!(out, "{which}Config:\n Parallelism:\t{parallelism}")?;
    if !delay.is_zero() {
        writeln!(out, " Delay:\t\t{}", units::duration(*delay))?;
    }
    writeln!(out, " On failure:\t{}", action_name(config.failure_action))?;
    writeln!(out, " Monitoring Period: {}", units::duration(*monitor))?;
    writeln!(out, " Max failure ratio: {}", f64::from(*max_failure_permille) / 1000.0)?;
    writeln!(out, " {which} order:\t{}", order_name(config.order))?;
    if !config.healthy_time.is_zero() {
        writeln!(out, " Healthy time:\t{}", units::duration(config.healthy_time))?;
    }
    match config.progress_deadline.is_zero() {
        true => Ok(()),
        false => writeln!(out, " Progress deadline: {}", units::duration(config.progress_deadline)),
    }
}

fn restart(out: &mut String, service: &Service) -> std::fmt::Result {
    let policy = &service.spec.task.restart;
    let condition = match policy.condition {
        RestartCondition::Any => "any",
        RestartCondition::OnFailure => "on-failure",
        RestartCondition::None => "none",
    };
    writeln!(out, "RestartPolicy:\n Condition:\t{condition}\n Delay:\t\t{}", units::duration(policy.delay))?;
    match policy.max_attempts {
        Some(max) => writeln!(out, " Max attempts:\t{max}"),
        None => writeln!(out, " Max attempts:\tunlimited"),
    }
}

fn mount(mount: &Mount) -> String {
    match mount {
        Mount::Bind { source, target, read_only } => {
            format!("{source} at {target}{}", if *read_only { " (read-only)" } else { "" })
        }
        Mount::Volume { source, target, read_only, no_copy: _ } => {
            format!("volume {source} at {target}{}", if *read_only { " (read-only)" } else { "" })
        }
        Mount::Tmpfs { target, size_bytes, mode: _ } => {
            let size = size_bytes.map(|size| format!(" of {}", units::memory(size))).unwrap_or_default();
            format!("memory{size} at {target}")
        }
    }
}

fn pairs(out: &mut String, name: &str, pairs: &rswarm_control::model::Labels) -> std::fmt::Result {
    if pairs.is_empty() {
        return Ok(());
    }
    writeln!(out, "{name}:")?;
    pairs.iter().try_for_each(|(key, value)| writeln!(out, " {key}={value}"))
}

fn list(out: &mut String, name: &str, words: &[String]) -> std::fmt::Result {
    if words.is_empty() { Ok(()) } else { writeln!(out, " {name}:\t\t{}", words.join(" ")) }
}

fn one(out: &mut String, name: &str, value: Option<&str>) -> std::fmt::Result {
    value.map_or(Ok(()), |value| writeln!(out, " {name}:\t{value}"))
}

fn amounts(out: &mut String, name: &str, amount: &Resources) -> std::fmt::Result {
    if *amount == Resources::default() {
        return Ok(());
    }
    writeln!(out, "{name}:")?;
    if amount.nano_cpus > 0 {
        writeln!(out, " CPU:\t\t{}", units::cpus(amount.nano_cpus))?;
    }
    if amount.memory_bytes > 0 {
        writeln!(out, " Memory:\t{}", units::memory(amount.memory_bytes))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::view::samples;
    use expect_test::expect;

    #[test]
    fn a_service_is_told_to_people() {
        expect![[r#"

            ID:		000000000000c
            Name:		web
            Labels:
             tier=front
            Service Mode:	Replicated
             Replicas:	3
            UpdateConfig:
             Parallelism:	1
             On failure:	pause
             Monitoring Period: 5s
             Max failure ratio: 0
             Update order:	stop-first
             Progress deadline: 10m0s
            RollbackConfig:
             Parallelism:	1
             On failure:	pause
             Monitoring Period: 5s
             Max failure ratio: 0
             Rollback order:	stop-first
             Progress deadline: 10m0s
            Placement:
             Constraints:	[node.labels.disk==ssd]
            RestartPolicy:
             Condition:	any
             Delay:		5s
             Max attempts:	unlimited
            On Node Loss:	replace
            ContainerSpec:
             Image:		rswarm/demo:1@sha256:28402db69fec7c17e179ea87882667f1e054391138f77ffaf0c3eb388efc3ffb
             Args:		serve
             Env:		A=1
             StopGrace:	10s
             Mount:		/srv at /data (read-only)
             Mount:		memory of 64MiB at /tmp
            Limits:
             CPU:		0.5
             Memory:	64MiB
            Networks:	backend
            Virtual IP:	10.0.1.2 on backend
            Endpoint Mode:	vip
            Ports:
             PublishedPort = 8080
              Protocol = tcp
              TargetPort = 80
              PublishMode = ingress
        "#]]
        .assert_eq(&{
            let names = BTreeMap::from([("000000000000n".into(), "backend".into())]);
            pretty(&samples::service("web"), &names).expect("it renders")
        });
    }
}
