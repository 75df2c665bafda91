//! `rswarm service update --image rswarm/demo:2 web`

use super::dry_run::DryRun;
use super::flags::{Common, Env, Label, MountArg, Words, main, set_env, words};
use super::health::Wellness;
use super::placement::Changes;
use super::reach::{Publish, TargetPort};
use super::wait;
use crate::cli::client::{Client, one};
use crate::cli::context::Context;
use crate::cli::failure::{Failure, refused};
use anyhow::{Context as _, Result};
use rswarm_control::model::{Allow, Constraint, Service, ServiceSpec};
use rswarm_proto::v1 as pb;
use rswarm_proto::v1::planned_request::What;
use std::sync::Arc;

/// Change a service; its tasks are replaced one by one where they must be
#[derive(Debug, clap::Args)]
pub struct Update {
    /// Id, beginning of an id, or name
    service: String,
    /// Run this image
    #[arg(long)]
    image: Option<String>,
    /// Arguments that replace the image's, as one text
    #[arg(long, value_name = "ARGS", value_parser = words, allow_hyphen_values = true)]
    args: Option<Words>,
    /// Add or replace a variable; without a value, this shell's
    #[arg(long, value_name = "NAME[=VALUE]")]
    env_add: Vec<Env>,
    /// Remove a variable
    #[arg(long, value_name = "NAME")]
    env_rm: Vec<String>,
    /// Add or replace a label of the service
    #[arg(long, value_name = "KEY[=VALUE]")]
    label_add: Vec<Label>,
    /// Remove a label of the service
    #[arg(long, value_name = "KEY")]
    label_rm: Vec<String>,
    /// Add or replace a label of the containers; kept, but not yet carried out
    #[arg(long, value_name = "KEY[=VALUE]")]
    container_label_add: Vec<Label>,
    /// Remove a label of the containers
    #[arg(long, value_name = "KEY")]
    container_label_rm: Vec<String>,
    /// Run only on nodes that match
    #[arg(long, value_name = "KEY==VALUE")]
    constraint_add: Vec<Constraint>,
    /// Remove a constraint
    #[arg(long, value_name = "KEY==VALUE")]
    constraint_rm: Vec<Constraint>,
    #[command(flatten)]
    rules: Changes,
    #[command(flatten)]
    lists: super::profile::ListChanges,
    /// Publish a port, or publish it differently
    #[arg(long, value_name = "[PUBLISHED:]TARGET[/PROTOCOL]")]
    publish_add: Vec<Publish>,
    /// No longer publish a port, named by the port in the container
    #[arg(long, value_name = "TARGET[/PROTOCOL]")]
    publish_rm: Vec<TargetPort>,
    /// Let a service connect, as one of those that may
    #[arg(long, visible_alias = "allow-from", value_name = "SERVICE[:PORT[/PROTOCOL]]")]
    allow_from_add: Vec<Allow>,
    /// No longer let a service connect; without any left, everybody may, except on isolated networks
    #[arg(long, value_name = "SERVICE[:PORT[/PROTOCOL]]")]
    allow_from_rm: Vec<Allow>,
    /// Add or replace a mount
    #[arg(long, value_name = "type=bind|tmpfs,…")]
    mount_add: Vec<MountArg>,
    /// Remove a mount, named by its path in the container
    #[arg(long, value_name = "TARGET")]
    mount_rm: Vec<String>,
    /// Join a network
    #[arg(long, value_name = "NETWORK")]
    network_add: Vec<String>,
    /// Leave a network
    #[arg(long, value_name = "NETWORK")]
    network_rm: Vec<String>,
    /// Replace the tasks although nothing else changed
    #[arg(long)]
    force: bool,
    /// Go back to what the service was before its last change; nothing else is changed
    #[arg(long)]
    rollback: bool,
    #[command(flatten)]
    common: Common,
    #[command(flatten)]
    dry: DryRun,
    #[command(flatten)]
    wellness: Wellness,
    #[command(flatten)]
    wait: wait::Options,
}

impl Update {
    /// Carries the command out.
    ///
    /// # Errors
    /// If there is no such service, the manager refuses, or the service does not come to run.
    pub async fn run(self, cx: &mut Context) -> Result<()> {
        let (name, wait, dry) = (self.service.clone(), self.wait.clone(), self.dry.clone());
        if self.rollback {
            return super::revisions::roll_back(cx, &name, None, &dry, &wait).await;
        }
        let what = || format!("cannot update `{name}`");
        let mut client = cx.client().await?;
        let service = find(&mut client, &name).await.with_context(what)?;
        let networks = self.networks(&mut client, &service).await.with_context(what)?;
        let mut spec = service.spec.clone();
        self.apply(&mut spec).with_context(what)?;
        if dry.is_asked() {
            let request = asked(&service, &spec, networks);
            return dry.rehearse(cx, &mut client, What::UpdateService(request)).await.with_context(what);
        }
        let updated = send(&mut client, &service, &spec, networks).await.with_context(what)?;
        cx.warn(&updated.warnings)?;
        writeln!(cx.out, "{name}")?;
        cx.out.flush()?;
        wait::revised(cx, &mut client, &name, &updated, &wait).await
    }

    /// The ids and names of the networks the service joins from now on; empty if they stay as they are.
    async fn networks(&self, client: &mut Client, service: &Service) -> Result<Vec<String>> {
        if self.network_add.is_empty() && self.network_rm.is_empty() {
            return Ok(Vec::new());
        }
        let removed: Vec<String> = match self.network_rm.as_slice() {
            [] => Vec::new(),
            names => client.networks(names).await?.into_iter().map(|network| network.id).collect(),
        };
        let kept =
            service.spec.task.networks.iter().map(ToString::to_string).filter(|id| !removed.contains(id));
        let networks: Vec<String> = kept.chain(self.network_add.iter().cloned()).collect();
        if networks.is_empty() {
            let failure = Failure::failed("it would join no network at all");
            return Err(failure.help("add another network with --network-add").into());
        }
        Ok(networks)
    }

    fn apply(self, spec: &mut ServiceSpec) -> Result<(), Failure> {
        for key in &self.label_rm {
            spec.labels.remove(key);
        }
        spec.labels.extend(self.label_add.into_iter().map(|label| (label.key, label.value)));

        let ports = &mut spec.endpoint.ports;
        for named in &self.publish_rm {
            let before = ports.len();
            ports.retain(|port| !named.names(port));
            if ports.len() == before {
                return Err(Failure::failed("--publish-rm names a port that is not published"));
            }
        }
        for Publish(added) in self.publish_add {
            match ports.iter_mut().find(|port| port.target == added.target && port.protocol == added.protocol)
            {
                Some(port) => *port = added,
                None => ports.push(added),
            }
        }

        let allow = &mut spec.endpoint.allow;
        for named in &self.allow_from_rm {
            if !allow.contains(named) {
                return Err(Failure::failed(format!("--allow-from-rm names {named}, which is not allowed")));
            }
        }
        allow.retain(|entry| !self.allow_from_rm.contains(entry));
        for added in self.allow_from_add {
            if !allow.contains(&added) {
                allow.push(added);
            }
        }

        let task = Arc::make_mut(&mut spec.task);
        let constraints = &mut task.placement.constraints;
        constraints.retain(|constraint| !self.constraint_rm.contains(constraint));
        for added in self.constraint_add {
            if !constraints.contains(&added) {
                constraints.push(added);
            }
        }
        self.rules.apply(task);
        task.force += u64::from(self.force);

        let container = main(task);
        if let Some(image) = self.image {
            container.image = image;
            container.image_digest = None;
        }
        if let Some(Words(args)) = self.args {
            container.args = args;
        }
        container.env.retain(|variable| !self.env_rm.contains(&variable.name));
        for variable in self.env_add.into_iter().filter_map(Env::resolve) {
            set_env(&mut container.env, variable);
        }
        for key in &self.container_label_rm {
            container.labels.remove(key);
        }
        container.labels.extend(self.container_label_add.into_iter().map(|label| (label.key, label.value)));
        container.mounts.retain(|mount| !self.mount_rm.iter().any(|target| target == mount.target()));
        for MountArg(added) in self.mount_add {
            match container.mounts.iter_mut().find(|mount| mount.target() == added.target()) {
                Some(mount) => *mount = added,
                None => container.mounts.push(added),
            }
        }
        self.wellness.apply(container)?;
        self.lists.apply(&mut container.profile);
        self.common.apply(spec)?;
        Ok(())
    }
}

/// The service of this name.
///
/// # Errors
/// If there is none.
pub async fn find(client: &mut Client, name: &str) -> Result<Service> {
    let mut services = client.services(&[name.to_owned()]).await?.services;
    match services.pop() {
        Some(service) => one(service),
        None => {
            let failure = Failure::failed(format!("there is no service `{name}`"));
            Err(failure.help("`rswarm service ls` shows the services").into())
        }
    }
}

/// Asks for a new spec of the service that the caller has seen.
///
/// # Errors
/// If the manager refuses, also because the service has changed since.
pub async fn send(
    client: &mut Client,
    service: &Service,
    spec: &ServiceSpec,
    networks: Vec<String>,
) -> Result<pb::UpdateServiceResponse> {
    let request = asked(service, spec, networks);
    Ok(client.control.update_service(request).await.map_err(|status| refused(&status))?.into_inner())
}

/// The request that asks for another spec.
pub fn asked(service: &Service, spec: &ServiceSpec, networks: Vec<String>) -> pb::UpdateServiceRequest {
    pb::UpdateServiceRequest {
        service: service.id.to_string(),
        version: service.meta.version,
        spec: Some(spec.into()),
        networks,
        author: crate::cli::author(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::view::samples;
    use clap::Parser;

    #[derive(Parser)]
    struct Args {
        #[command(flatten)]
        update: Update,
    }

    fn updated(words: &[&str]) -> Result<ServiceSpec, String> {
        let words = ["update"].into_iter().chain(words.iter().copied()).chain(["web"]);
        let mut spec = samples::service("web").spec;
        let update = Args::try_parse_from(words).expect("it parses").update;
        update.apply(&mut spec).map_err(|error| error.to_string())?;
        Ok(spec)
    }

    #[test]
    fn nothing_asked_is_nothing_changed() {
        assert_eq!(updated(&[]).expect("nothing"), samples::service("web").spec);
    }

    #[test]
    fn things_are_added_replaced_and_removed() {
        let spec = updated(&[
            "--image",
            "rswarm/demo:2",
            "--args",
            "serve --slow",
            "--env-add",
            "B=2",
            "--env-add",
            "A=9",
            "--label-rm",
            "tier",
            "--label-add",
            "x=1",
            "--constraint-rm",
            "node.labels.disk==ssd",
            "--constraint-add",
            "node.role==worker",
            "--publish-add",
            "9090:80",
            "--mount-rm",
            "/data",
            "--mount-add",
            "type=tmpfs,target=/tmp,tmpfs-size=1m",
            "--force",
            "--replicas",
            "5",
        ])
        .expect("it applies");
        let container = &spec.task.containers[0];
        assert_eq!((container.image.as_str(), &container.image_digest), ("rswarm/demo:2", &None));
        assert_eq!(container.args, ["serve", "--slow"]);
        let env: Vec<_> = container.env.iter().map(|e| format!("{}={}", e.name, e.value)).collect();
        assert_eq!(env, ["A=9", "B=2"]);
        assert_eq!(spec.labels.keys().collect::<Vec<_>>(), ["x"]);
        let constraints: Vec<_> = spec.task.placement.constraints.iter().map(ToString::to_string).collect();
        assert_eq!(constraints, ["node.role==worker"]);
        assert_eq!(spec.endpoint.ports.len(), 1);
        assert_eq!(spec.endpoint.ports[0].published, Some(9090));
        assert_eq!(container.mounts.len(), 1);
        assert_eq!(spec.task.force, 1);
        assert_eq!(spec.mode.replicas(), Some(5));
    }

    #[test]
    fn services_are_allowed_and_no_longer_allowed() {
        let mut spec = samples::service("web").spec;
        let mut change = |words: &[&str]| {
            let words = ["update"].into_iter().chain(words.iter().copied()).chain(["web"]);
            let update = Args::try_parse_from(words).expect("it parses").update;
            update.apply(&mut spec).map_err(|error| error.to_string())?;
            Ok::<_, String>(spec.endpoint.allow.iter().map(ToString::to_string).collect::<Vec<_>>())
        };
        let both = ["api:80/tcp", "probe"].map(ToOwned::to_owned).to_vec();
        let added = ["--allow-from-add", "api:80", "--allow-from", "probe", "--allow-from", "probe"];
        assert_eq!(change(&added), Ok(both));
        assert_eq!(change(&["--allow-from-rm", "api:80/tcp"]), Ok(vec!["probe".to_owned()]));
        let error = change(&["--allow-from-rm", "probe:1"]).expect_err("it is not on the list");
        assert_eq!(error, "--allow-from-rm names probe:1/tcp, which is not allowed");
        assert_eq!(change(&["--allow-from-rm", "probe"]), Ok(vec![]));
    }

    #[test]
    fn a_port_is_unpublished_by_its_target() {
        assert!(updated(&["--publish-rm", "80"]).expect("it applies").endpoint.ports.is_empty());
        let error = updated(&["--publish-rm", "80/udp"]).expect_err("it is tcp");
        assert_eq!(error, "--publish-rm names a port that is not published");
    }
}
