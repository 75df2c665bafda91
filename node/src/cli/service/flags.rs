//! What the options of `service create` and `service update` stand for.

use crate::cli::failure::Failure;
use crate::cli::output::units::{parse_bytes, parse_cpus, parse_duration};
use clap::ValueEnum;
use rswarm_control::model::{ContainerSpec, EnvVar, Mode, Mount, RestartCondition};
use rswarm_control::model::{OnNodeLoss, ServiceSpec, TaskSpec};
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

/// `KEY=VALUE`, or `KEY` with an empty value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Label {
    /// Not empty.
    pub key: String,
    /// Anything.
    pub value: String,
}

impl FromStr for Label {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (key, value) = text.split_once('=').unwrap_or((text, ""));
        if key.is_empty() {
            return Err("a label is written KEY=VALUE, for example tier=front".into());
        }
        Ok(Self { key: key.into(), value: value.into() })
    }
}

/// `NAME=VALUE`, or `NAME` for this process's own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Env {
    name: String,
    value: Option<String>,
}

impl FromStr for Env {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, value) = match text.split_once('=') {
            Some((name, value)) => (name, Some(value.to_owned())),
            None => (text, None),
        };
        if name.is_empty() {
            return Err("a variable is written NAME=VALUE, for example PORT=80".into());
        }
        Ok(Self { name: name.into(), value })
    }
}

impl Env {
    /// With the value of this process's variable where none was given; none if it has no such variable.
    pub fn resolve(self) -> Option<EnvVar> {
        let value = self.value.or_else(|| std::env::var(&self.name).ok())?;
        Some(EnvVar { name: self.name, value })
    }
}

/// Adds a variable, or replaces it where it stands.
pub fn set_env(env: &mut Vec<EnvVar>, variable: EnvVar) {
    match env.iter_mut().find(|known| known.name == variable.name) {
        Some(known) => known.value = variable.value,
        None => env.push(variable),
    }
}

/// `type=volume,source=db,target=/data`, `type=bind,source=/srv,target=/data,readonly` or `type=tmpfs,target=/tmp,tmpfs-size=64m,tmpfs-mode=1777`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MountArg(pub Mount);

impl FromStr for MountArg {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (mut kind, mut source, mut target) = (None, None, None);
        let (mut read_only, mut no_copy, mut size_bytes, mut mode) = (false, false, None, None);
        for part in text.split(',') {
            let (key, value) = part.split_once('=').map_or((part, None), |(key, value)| (key, Some(value)));
            match (key, value) {
                ("type", Some(value)) => kind = Some(value),
                ("source" | "src", Some(value)) => source = Some(value.to_owned()),
                ("target" | "dst" | "destination", Some(value)) => target = Some(value.to_owned()),
                ("readonly" | "ro", None | Some("true" | "1")) => read_only = true,
                ("readonly" | "ro", Some("false" | "0")) => read_only = false,
                ("volume-nocopy", None | Some("true" | "1")) => no_copy = true,
                ("volume-nocopy", Some("false" | "0")) => no_copy = false,
                ("tmpfs-size", Some(value)) => size_bytes = Some(parse_bytes(value)?),
                ("tmpfs-mode", Some(value)) => {
                    let bits = u32::from_str_radix(value, 8).ok().filter(|bits| *bits <= 0o7777);
                    mode =
                        Some(bits.ok_or_else(|| format!("`{value}` are not permission bits, such as 1777"))?);
                }
                _ => return Err(format!("`{part}` means nothing in a mount")),
            }
        }
        let target = target.ok_or("target= is missing: the path in the container")?;
        let absolute = |path: &str| match path.starts_with('/') {
            true => Ok(()),
            false => Err(format!("`{path}` is not an absolute path")),
        };
        absolute(&target)?;
        if no_copy && !matches!(kind, Some("volume") | None) {
            return Err("volume-nocopy is for type=volume".into());
        }
        let mount = match kind {
            // As in Docker, what is not said to be anything else is a volume.
            Some("volume") | None => {
                let source = source.ok_or("source= is missing: the name of the volume")?;
                if source.contains('/') {
                    return Err(format!("`{source}` is no name of a volume; a path needs type=bind"));
                }
                if size_bytes.is_some() || mode.is_some() {
                    return Err("tmpfs-size= and tmpfs-mode= are for type=tmpfs".into());
                }
                Mount::Volume { source, target, read_only, no_copy }
            }
            Some("bind") => {
                let source = source.ok_or("source= is missing: the path on the node")?;
                absolute(&source)?;
                if size_bytes.is_some() || mode.is_some() {
                    return Err("tmpfs-size= and tmpfs-mode= are for type=tmpfs".into());
                }
                Mount::Bind { source, target, read_only }
            }
            Some("tmpfs") if source.is_some() || read_only => {
                return Err("a mount of type=tmpfs has no source and is writable".into());
            }
            Some("tmpfs") => Mount::Tmpfs { target, size_bytes, mode },
            Some(kind) => {
                return Err(format!("there are no mounts of type={kind}; there are volume, bind and tmpfs"));
            }
        };
        Ok(Self(mount))
    }
}

/// After which endings a task is replaced, as an option's value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum RestartArg {
    /// After none
    None,
    /// After all but a clean exit
    OnFailure,
    /// After all
    Any,
}

/// What becomes of a task's place when its node is lost, as an option's value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LossArg {
    /// Another task takes it at once
    Replace,
    /// Another takes it when the first has certainly stopped: never two at once
    Fence,
    /// It is kept until the node is back or removed
    Wait,
}

/// How many tasks there are, and where, as an option's value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ModeArg {
    /// A number of tasks, anywhere
    Replicated,
    /// One task on each node that may have one
    Global,
    /// A number of tasks that run to their end, anywhere
    ReplicatedJob,
    /// A task on each node that may have one, which runs to its end
    GlobalJob,
}

impl ModeArg {
    /// The mode, with one task where there is a number.
    pub fn mode(self) -> Mode {
        match self {
            Self::Replicated => Mode::Replicated { replicas: 1 },
            Self::Global => Mode::Global,
            Self::ReplicatedJob => {
                Mode::ReplicatedJob { completions: 1, max_concurrent: 0, deadline: Duration::ZERO }
            }
            Self::GlobalJob => Mode::GlobalJob { deadline: Duration::ZERO },
        }
    }
}

/// Options that `create` and `update` have in common; those that are not given change nothing.
#[derive(Debug, Default, clap::Args)]
pub struct Common {
    /// How many tasks run; in a replicated job, how many shall complete [default: 1]
    #[arg(long, value_name = "N")]
    replicas: Option<u32>,
    /// How many tasks of a replicated job are at work at the same time; 0 is all [default: 0]
    #[arg(long, value_name = "M")]
    max_concurrent: Option<u32>,
    /// How long after its beginning what is left of a job is stopped; 0 is never [default: 0s]
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    job_deadline: Option<Duration>,
    /// Most processors a task may use
    #[arg(long, value_name = "DECIMAL", value_parser = parse_cpus)]
    limit_cpu: Option<u64>,
    /// Most memory a task may use
    #[arg(long, value_name = "BYTES", value_parser = parse_bytes)]
    limit_memory: Option<u64>,
    /// Processors set aside for a task
    #[arg(long, value_name = "DECIMAL", value_parser = parse_cpus)]
    reserve_cpu: Option<u64>,
    /// Memory set aside for a task
    #[arg(long, value_name = "BYTES", value_parser = parse_bytes)]
    reserve_memory: Option<u64>,
    /// After which endings a task is replaced [default: any; in a job: on-failure]
    #[arg(long, value_enum)]
    restart_condition: Option<RestartArg>,
    /// Wait before a task is replaced; doubles while it keeps failing [default: 5s]
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    restart_delay: Option<Duration>,
    /// Restarts after which a task is given up; 0 never gives up [default: 0]
    #[arg(long, value_name = "N")]
    restart_max_attempts: Option<u32>,
    /// How far back restarts are counted; 0 counts all [default: 0s]
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    restart_window: Option<Duration>,
    /// What becomes of a task's place when its node is lost [default: replace; with a volume: wait]
    #[arg(long, value_enum)]
    on_node_loss: Option<LossArg>,
    /// How long after its stop signal a task is killed [default: 10s]
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    stop_grace_period: Option<Duration>,
    /// What tells a task to stop [default: the image's, or SIGTERM]
    #[arg(long, value_name = "SIGNAL")]
    stop_signal: Option<String>,
    /// Whom the container's process runs as
    #[arg(short, long, value_name = "USER[:GROUP]")]
    user: Option<String>,
    /// Where the container's process starts
    #[arg(short, long, value_name = "PATH")]
    workdir: Option<String>,
    /// Host name inside the container; may hold {{.Task.Slot}} and the like
    #[arg(long)]
    hostname: Option<String>,
    /// Replace the image's entrypoint
    #[arg(long, value_name = "COMMAND", value_parser = words)]
    entrypoint: Option<Words>,
    /// Mount the container's root read-only
    #[arg(long, num_args = 0..=1, default_missing_value = "true", require_equals = true)]
    read_only: Option<bool>,
    #[command(flatten)]
    shape: super::profile::Shape,
    #[command(flatten)]
    pace: super::pace::Pace,
    #[command(flatten)]
    reach: super::reach::Reach,
}

/// The words of one option.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Words(pub Vec<String>);

/// Reads the words of one option.
///
/// # Errors
/// In words, if a quote is not closed.
pub fn words(text: &str) -> Result<Words, String> {
    super::words::split(text).map(Words)
}

impl Common {
    /// Makes the changes to a spec.
    ///
    /// # Errors
    /// If an option has no meaning in the service's mode.
    pub fn apply(self, spec: &mut ServiceSpec) -> Result<(), Failure> {
        let Self {
            replicas,
            max_concurrent,
            job_deadline,
            limit_cpu,
            limit_memory,
            reserve_cpu,
            reserve_memory,
            restart_condition,
            restart_delay,
            restart_max_attempts,
            restart_window,
            on_node_loss,
            stop_grace_period,
            stop_signal,
            user,
            workdir,
            hostname,
            entrypoint,
            read_only,
            shape,
            pace,
            reach,
        } = self;
        pace.apply(spec);
        reach.apply(&mut spec.endpoint);
        if let Some(replicas) = replicas
            && !spec.mode.resize(replicas)
        {
            let mode = spec.mode.name();
            return Err(Failure::usage(format!(
                "--replicas is for replicated services and jobs; this one is {mode}"
            )));
        }
        match (&mut spec.mode, max_concurrent) {
            (_, None) => {}
            (Mode::ReplicatedJob { max_concurrent, .. }, Some(max)) => *max_concurrent = max,
            (mode, Some(_)) => {
                let mode = mode.name();
                return Err(Failure::usage(format!(
                    "--max-concurrent is for replicated jobs; this one is {mode}"
                )));
            }
        }
        match (&mut spec.mode, job_deadline) {
            (_, None) => {}
            (Mode::ReplicatedJob { deadline, .. } | Mode::GlobalJob { deadline }, Some(time)) => {
                *deadline = time
            }
            (mode, Some(_)) => {
                let mode = mode.name();
                return Err(Failure::usage(format!("--job-deadline is for jobs; this one is {mode}")));
            }
        }
        let is_job = spec.mode.is_job();
        let task = Arc::make_mut(&mut spec.task);
        set(&mut task.resources.limits.nano_cpus, limit_cpu);
        set(&mut task.resources.limits.memory_bytes, limit_memory);
        set(&mut task.resources.reservations.nano_cpus, reserve_cpu);
        set(&mut task.resources.reservations.memory_bytes, reserve_memory);
        let condition = restart_condition.map(|condition| match condition {
            RestartArg::None => RestartCondition::None,
            RestartArg::OnFailure => RestartCondition::OnFailure,
            RestartArg::Any => RestartCondition::Any,
        });
        // What has come to a good end is done.
        let usual = (is_job && task.restart.condition == RestartCondition::Any)
            .then_some(RestartCondition::OnFailure);
        set(&mut task.restart.condition, condition.or(usual));
        set(&mut task.restart.delay, restart_delay);
        set(&mut task.restart.max_attempts, restart_max_attempts.map(|max| Some(max).filter(|max| *max > 0)));
        set(&mut task.restart.window, restart_window);
        let loss = on_node_loss.map(|loss| match loss {
            LossArg::Replace => OnNodeLoss::Replace,
            LossArg::Fence => OnNodeLoss::Fence,
            LossArg::Wait => OnNodeLoss::Wait,
        });
        task.on_node_loss = loss.or(task.on_node_loss);
        let container = main(task);
        set(&mut container.stop_grace, stop_grace_period);
        set_text(&mut container.stop_signal, stop_signal);
        set_text(&mut container.user, user);
        set_text(&mut container.workdir, workdir);
        set_text(&mut container.hostname, hostname);
        set(&mut container.command, entrypoint.map(|Words(words)| words));
        set(&mut container.read_only, read_only);
        shape.apply(task);
        Ok(())
    }
}

/// The container that the command line speaks of.
pub fn main(task: &mut TaskSpec) -> &mut ContainerSpec {
    if task.containers.is_empty() {
        task.containers.push(ContainerSpec::new(""));
    }
    &mut task.containers[0]
}

fn set<T>(field: &mut T, value: Option<T>) {
    if let Some(value) = value {
        *field = value;
    }
}

/// An empty text goes back to the default.
fn set_text(field: &mut Option<String>, value: Option<String>) {
    if let Some(value) = value {
        *field = Some(value).filter(|value| !value.is_empty());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mounts_are_read() {
        let bind = |read_only| Mount::Bind { source: "/srv".into(), target: "/data".into(), read_only };
        let volume = |read_only, no_copy| Mount::Volume {
            source: "db".into(),
            target: "/data".into(),
            read_only,
            no_copy,
        };
        let tmpfs = |size_bytes, mode| Mount::Tmpfs { target: "/tmp".into(), size_bytes, mode };
        for (text, is) in [
            ("type=bind,source=/srv,target=/data", bind(false)),
            ("type=bind,src=/srv,dst=/data,readonly", bind(true)),
            ("type=bind,src=/srv,destination=/data,ro=true", bind(true)),
            ("type=volume,source=db,target=/data", volume(false, false)),
            ("src=db,dst=/data,ro,volume-nocopy", volume(true, true)),
            ("type=tmpfs,target=/tmp", tmpfs(None, None)),
            ("type=tmpfs,target=/tmp,tmpfs-size=64m,tmpfs-mode=1770", tmpfs(Some(64 << 20), Some(0o1770))),
        ] {
            assert_eq!(text.parse(), Ok(MountArg(is)), "{text}");
        }
        for (text, why) in [
            ("source=/srv,target=/data", "a path needs type=bind"),
            ("type=npipe,source=v,target=/data", "there are volume, bind and tmpfs"),
            ("type=volume,target=/data", "the name of the volume"),
            ("type=bind,src=/srv,dst=/data,volume-nocopy", "is for type=volume"),
            ("type=bind,target=/data", "source= is missing"),
            ("type=bind,source=/srv", "target= is missing"),
            ("type=bind,source=srv,target=/data", "not an absolute path"),
            ("type=tmpfs,target=/t,tmpfs-mode=9", "permission bits"),
            ("type=tmpfs,target=/t,source=/s", "has no source"),
            ("type=bind,source=/s,target=/t,tmpfs-size=1m", "are for type=tmpfs"),
            ("type=tmpfs,target=/t,what", "means nothing"),
        ] {
            let error = text.parse::<MountArg>().expect_err(text);
            assert!(error.contains(why), "{text}: {error}");
        }
    }

    #[test]
    fn labels_and_variables_are_read() {
        assert_eq!("a.b/c=d=e".parse(), Ok(Label { key: "a.b/c".into(), value: "d=e".into() }));
        assert_eq!("flag".parse(), Ok(Label { key: "flag".into(), value: String::new() }));
        assert!("=x".parse::<Label>().is_err());
        let variable = "A=1=2".parse::<Env>().expect("a variable").resolve().expect("it has a value");
        assert_eq!((variable.name.as_str(), variable.value.as_str()), ("A", "1=2"));
        let unset = "RSWARM_TEST_SURELY_UNSET".parse::<Env>().expect("a variable");
        assert_eq!(unset.resolve(), None);
        assert!("=1".parse::<Env>().is_err());
    }
}
