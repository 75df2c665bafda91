//! `rswarm service create --name web --replicas 3 -p 8080:80 rswarm/demo`

use super::dry_run::DryRun;
use super::flags::{Common, Env, Label, ModeArg, MountArg, main, set_env};
use super::health::Wellness;
use super::placement::Rules;
use super::reach::Publish;
use super::wait;
use crate::cli::context::Context;
use crate::cli::failure::refused;
use anyhow::{Context as _, Result};
use rswarm_control::model::UpdateConfig;
use rswarm_control::model::{Allow, Constraint, ContainerSpec, EndpointSpec, Labels, ServiceSpec, TaskSpec};
use rswarm_proto::v1 as pb;
use rswarm_proto::v1::planned_request::What;
use std::hash::{BuildHasher, RandomState};
use std::path::PathBuf;
use std::sync::Arc;

/// Run containers of an image on the cluster
#[derive(Debug, clap::Args)]
pub struct Create {
    /// What to run
    image: String,
    /// Arguments that replace the image's
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    args: Vec<String>,
    /// What the service is called [default: made up]
    #[arg(long)]
    name: Option<String>,
    /// How many tasks there are, and where
    #[arg(long, value_enum, default_value = "replicated")]
    mode: ModeArg,
    /// Set a variable; without a value, this shell's
    #[arg(short, long = "env", value_name = "NAME[=VALUE]")]
    env: Vec<Env>,
    /// Read variables from a file, one a line
    #[arg(long, value_name = "FILE")]
    env_file: Vec<PathBuf>,
    /// Set a label of the service
    #[arg(short, long = "label", value_name = "KEY[=VALUE]")]
    labels: Vec<Label>,
    /// Set a label of the containers; kept, but not yet carried out
    #[arg(long = "container-label", value_name = "KEY[=VALUE]")]
    container_labels: Vec<Label>,
    /// Run only on nodes that match, for example node.labels.disk==ssd
    #[arg(long = "constraint", value_name = "KEY==VALUE")]
    constraints: Vec<Constraint>,
    #[command(flatten)]
    rules: Rules,
    #[command(flatten)]
    lists: super::profile::Lists,
    /// Publish a port on every node
    #[arg(short, long = "publish", value_name = "[PUBLISHED:]TARGET[/PROTOCOL]")]
    publish: Vec<Publish>,
    /// Let these services connect, and nobody else: to one port, or to all
    #[arg(long, value_name = "SERVICE[:PORT[/PROTOCOL]]")]
    allow_from: Vec<Allow>,
    /// Mount a volume or a directory of the node, or memory
    #[arg(long = "mount", value_name = "type=bind|tmpfs,…")]
    mounts: Vec<MountArg>,
    /// Join a network
    #[arg(long = "network", value_name = "NETWORK")]
    networks: Vec<String>,
    #[command(flatten)]
    common: Common,
    #[command(flatten)]
    dry: DryRun,
    #[command(flatten)]
    wellness: Wellness,
    #[command(flatten)]
    wait: wait::Options,
}

impl Create {
    /// Carries the command out.
    ///
    /// # Errors
    /// If the manager refuses, or the service does not come to run.
    pub async fn run(self, cx: &mut Context) -> Result<()> {
        let (wait, networks, dry) = (self.wait.clone(), self.networks.clone(), self.dry.clone());
        let spec = self.spec()?;
        let name = spec.name.clone();
        let mut client = cx.client().await?;
        let request =
            pb::CreateServiceRequest { spec: Some((&spec).into()), networks, author: crate::cli::author() };
        if dry.is_asked() {
            return dry.rehearse(cx, &mut client, What::CreateService(request)).await;
        }
        let created = client.control.create_service(request).await.map_err(|status| refused(&status));
        let created = created.with_context(|| format!("cannot create `{name}`"))?.into_inner();
        cx.warn(&created.warnings)?;
        writeln!(cx.out, "{}", created.id)?;
        cx.out.flush()?;
        wait::settled(cx, &mut client, &name, created.version, &wait).await
    }

    fn spec(self) -> Result<ServiceSpec> {
        let mode = self.mode.mode();
        let pairs =
            |labels: Vec<Label>| labels.into_iter().map(|label| (label.key, label.value)).collect::<Labels>();
        let mut task = TaskSpec::default();
        let container = main(&mut task);
        *container = ContainerSpec::new(self.image);
        container.args = self.args;
        container.labels = pairs(self.container_labels);
        for path in &self.env_file {
            let text = std::fs::read_to_string(path);
            let text = text.with_context(|| format!("cannot read the variables in {}", path.display()))?;
            for line in text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'))
            {
                let variable: Env = line.parse().map_err(anyhow::Error::msg)?;
                variable.resolve().into_iter().for_each(|variable| set_env(&mut container.env, variable));
            }
        }
        for variable in self.env.into_iter().filter_map(Env::resolve) {
            set_env(&mut container.env, variable);
        }
        self.wellness.apply(container)?;
        self.lists.apply(&mut container.profile);
        container.mounts = self.mounts.into_iter().map(|MountArg(mount)| mount).collect();
        task.placement.constraints = self.constraints;
        self.rules.apply(&mut task);
        let ports = self.publish.into_iter().map(|Publish(port)| port).collect();
        let mut spec = ServiceSpec {
            name: self.name.unwrap_or_else(made_up_name),
            labels: pairs(self.labels),
            mode,
            task: Arc::new(task),
            update: UpdateConfig::default(),
            rollback: UpdateConfig::default(),
            endpoint: EndpointSpec { ports, allow: self.allow_from, ..EndpointSpec::default() },
        };
        self.common.apply(&mut spec)?;
        Ok(spec)
    }
}

/// A name that is unlikely to be taken.
fn made_up_name() -> String {
    const FIRST: [&str; 16] = [
        "amber", "brisk", "calm", "deep", "eager", "fair", "gentle", "hardy", "keen", "lucid", "merry",
        "noble", "quiet", "rapid", "sunny", "vivid",
    ];
    const SECOND: [&str; 16] = [
        "badger", "curlew", "dunlin", "falcon", "grebe", "heron", "ibis", "jackdaw", "kestrel", "lark",
        "marten", "otter", "plover", "raven", "swift", "wren",
    ];
    // The hasher's keys are random in each process.
    let random = RandomState::new().hash_one(std::process::id());
    let pick = |shift: u32| ((random >> shift) % 16) as usize;
    format!("{}-{}-{:03x}", FIRST[pick(0)], SECOND[pick(8)], (random >> 16) & 0xfff)
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;
    use rswarm_control::model::{EnvVar, Mode, RestartCondition};
    use std::time::Duration;

    #[derive(Parser)]
    struct Args {
        #[command(flatten)]
        create: Create,
    }

    fn spec(words: &[&str]) -> ServiceSpec {
        let words = std::iter::once("create").chain(words.iter().copied());
        Args::try_parse_from(words).expect("it parses").create.spec().expect("it makes sense")
    }

    #[test]
    fn every_option_reaches_the_spec() {
        let spec = spec(&[
            "--name=web",
            "--replicas=3",
            "-e",
            "A=1",
            "--env",
            "B=2",
            "-e",
            "A=3",
            "-l",
            "tier=front",
            "--container-label",
            "x=y",
            "--constraint",
            "node.role==worker",
            "--limit-cpu",
            "0.5",
            "--limit-memory",
            "64m",
            "--reserve-cpu=.25",
            "--reserve-memory=1g",
            "-p",
            "8080:80",
            "--allow-from",
            "front:80",
            "--allow-from=probe",
            "--mount",
            "type=tmpfs,target=/tmp",
            "--restart-condition",
            "on-failure",
            "--restart-delay",
            "1m30s",
            "--restart-max-attempts",
            "4",
            "--restart-window=1h",
            "--stop-grace-period",
            "2s",
            "--stop-signal",
            "SIGINT",
            "-u",
            "nobody:nogroup",
            "-w",
            "/srv",
            "--hostname",
            "{{.Service.Name}}-{{.Task.Slot}}",
            "--entrypoint",
            "sh -c 'exec x'",
            "--read-only",
            "rswarm/demo:1",
            "serve",
            "--flag",
            "-v",
        ]);
        assert_eq!(spec.name, "web");
        assert_eq!(spec.mode.replicas(), Some(3));
        assert_eq!(spec.labels["tier"], "front");
        assert_eq!(spec.endpoint.ports[0].published, Some(8080));
        let allowed: Vec<String> = spec.endpoint.allow.iter().map(ToString::to_string).collect();
        assert_eq!(allowed, ["front:80/tcp", "probe"]);
        let task = &spec.task;
        assert_eq!(task.resources.limits.nano_cpus, 500_000_000);
        assert_eq!(task.resources.limits.memory_bytes, 64 << 20);
        assert_eq!(task.resources.reservations.nano_cpus, 250_000_000);
        assert_eq!(task.resources.reservations.memory_bytes, 1 << 30);
        assert_eq!(task.placement.constraints[0].to_string(), "node.role==worker");
        assert_eq!(task.restart.condition, RestartCondition::OnFailure);
        assert_eq!(task.restart.delay, Duration::from_secs(90));
        assert_eq!(task.restart.max_attempts, Some(4));
        assert_eq!(task.restart.window, Duration::from_secs(3600));
        let container = &task.containers[0];
        let env = |name: &str, value: &str| EnvVar { name: name.into(), value: value.into() };
        assert_eq!(container.env, [env("A", "3"), env("B", "2")]);
        assert_eq!(container.image, "rswarm/demo:1");
        assert_eq!(container.args, ["serve", "--flag", "-v"]);
        assert_eq!(container.command, ["sh", "-c", "exec x"]);
        assert_eq!(container.labels["x"], "y");
        assert_eq!(container.mounts[0].target(), "/tmp");
        assert_eq!(container.stop_grace, Duration::from_secs(2));
        assert_eq!(container.stop_signal.as_deref(), Some("SIGINT"));
        assert_eq!(container.user.as_deref(), Some("nobody:nogroup"));
        assert_eq!(container.workdir.as_deref(), Some("/srv"));
        assert_eq!(container.hostname.as_deref(), Some("{{.Service.Name}}-{{.Task.Slot}}"));
        assert!(container.read_only);
    }

    #[test]
    fn without_options_everything_is_as_the_model_has_it() {
        let spec = spec(&["--name", "web", "rswarm/demo"]);
        assert_eq!(spec.mode.replicas(), Some(1));
        let task = TaskSpec { containers: vec![ContainerSpec::new("rswarm/demo")], ..TaskSpec::default() };
        assert_eq!(*spec.task, task);
    }

    #[test]
    fn a_global_service_has_no_number_of_tasks() {
        assert_eq!(spec(&["--mode", "global", "rswarm/demo"]).mode, Mode::Global);
        let words = ["create", "--mode", "global", "--replicas", "2", "rswarm/demo"];
        let error = Args::try_parse_from(words).expect("it parses").create.spec().expect_err("a number");
        assert_eq!(error.to_string(), "--replicas is for replicated services and jobs; this one is global");
    }

    #[test]
    fn jobs_are_tried_again_only_when_they_fail() {
        let words = ["--mode=replicated-job", "--replicas=5", "--max-concurrent=2", "--job-deadline=1h", "i"];
        let job = spec(&words);
        let deadline = Duration::from_secs(3600);
        assert_eq!(job.mode, Mode::ReplicatedJob { completions: 5, max_concurrent: 2, deadline });
        assert_eq!(job.task.restart.condition, RestartCondition::OnFailure);
        let job = spec(&["--mode=global-job", "--restart-condition=none", "i"]);
        assert_eq!(job.mode, Mode::GlobalJob { deadline: Duration::ZERO });
        assert_eq!(job.task.restart.condition, RestartCondition::None);
        for words in
            [&["--max-concurrent=2"][..], &["--job-deadline=2s"], &["--mode=global-job", "--replicas=2"]]
        {
            let words = ["create"].iter().chain(words).chain(["i"].iter());
            Args::try_parse_from(words)
                .expect("it parses")
                .create
                .spec()
                .expect_err("it has no meaning there");
        }
    }

    #[test]
    fn a_made_up_name_is_a_dns_label() {
        let name = spec(&["rswarm/demo"]).name;
        assert!(
            name.len() < 64
                && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
        );
    }

    #[test]
    fn variables_come_from_files_too() {
        let file = tempfile::NamedTempFile::new().expect("a file");
        std::fs::write(file.path(), "# comment\n\nA=from file\nB=2\n").expect("it is written");
        let spec = spec(&["--env-file", file.path().to_str().expect("text"), "-e", "A=1", "rswarm/demo"]);
        let env = &spec.task.containers[0].env;
        assert_eq!((env[0].value.as_str(), env[1].value.as_str()), ("1", "2"));
    }

    #[test]
    fn nonsense_is_refused() {
        for words in [
            &["--constraint", "disk==ssd", "i"][..],
            &["--limit-cpu", "x", "i"],
            &["--limit-memory", "64q", "i"],
            &["--restart-condition", "sometimes", "i"],
            &["--replicas", "-1", "i"],
            &["--mode", "everywhere", "i"],
            &[],
        ] {
            assert!(Args::try_parse_from(std::iter::once("create").chain(words.iter().copied())).is_err());
        }
    }
}
