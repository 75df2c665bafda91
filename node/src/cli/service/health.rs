//! What the options of `service create` and `service update` say of health and readiness, and how they are shown.

use crate::cli::failure::Failure;
use crate::cli::output::units::{duration, parse_duration};
use crate::cli::output::value::Struct;
use rswarm_control::model::{ContainerSpec, HealthSpec, HealthTest, HttpProbe, Probe, Readiness};
use std::fmt::Write;
use std::time::Duration;

/// Whether and how tasks are asked if they are well.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Health and readiness")]
pub struct Wellness {
    /// Command that checks health in the container: a line for its shell, or a JSON array; empty for the image's
    #[arg(long, value_name = "COMMAND", value_parser = command, group = "health_probe", allow_hyphen_values = true)]
    health_cmd: Option<Command>,
    /// Check health by a GET request to this path and port; the port is what follows the last colon
    #[arg(long, value_name = "PATH:PORT", group = "health_probe")]
    health_http: Option<HttpProbe>,
    /// Check health by a connection to this port
    #[arg(long, value_name = "PORT", value_parser = port, group = "health_probe")]
    health_tcp: Option<u16>,
    /// Time between checks [default: the image's, or 30s]
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    health_interval: Option<Duration>,
    /// Time one check may take [default: the image's, or 30s]
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    health_timeout: Option<Duration>,
    /// Failures in a row that make a task unhealthy [default: the image's, or 3]
    #[arg(long, value_name = "N")]
    health_retries: Option<u32>,
    /// Time after the start in which failures do not count [default: the image's, or 0s]
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    health_start_period: Option<Duration>,
    /// Time between checks in the start period [default: the image's, or 5s]
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    health_start_interval: Option<Duration>,
    /// Check no health, whatever the image says
    #[arg(long, conflicts_with_all = [
        "health_probe", "health_interval", "health_timeout", "health_retries", "health_start_period",
        "health_start_interval",
    ])]
    no_healthcheck: bool,
    /// Command that checks in the container whether it may be given connections
    #[arg(long, value_name = "COMMAND", value_parser = command, group = "ready_probe", allow_hyphen_values = true)]
    ready_cmd: Option<Command>,
    /// Check by a GET request whether a task may be given connections
    #[arg(long, value_name = "PATH:PORT", group = "ready_probe")]
    ready_http: Option<HttpProbe>,
    /// Check by a connection whether a task may be given connections
    #[arg(long, value_name = "PORT", value_parser = port, group = "ready_probe")]
    ready_tcp: Option<u16>,
    /// Time between checks of readiness [default: 2s]
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    ready_interval: Option<Duration>,
    /// Time one check of readiness may take [default: 2s]
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    ready_timeout: Option<Duration>,
    /// Failures in a row after which a task is given no more connections [default: 2]
    #[arg(long, value_name = "N")]
    ready_retries: Option<u32>,
    /// Give tasks connections as soon as they run and are healthy
    #[arg(long, conflicts_with_all = ["ready_probe", "ready_interval", "ready_timeout", "ready_retries"])]
    no_readiness: bool,
}

/// A line for a shell or, where it is a JSON array, a program and its arguments; nothing where it is empty.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Command(Option<Probe>);

fn command(text: &str) -> Result<Command, String> {
    if text.trim().is_empty() {
        return Ok(Command(None));
    }
    match serde_json::from_str::<Vec<String>>(text) {
        Ok(args) if args.is_empty() => Err("an empty array runs nothing".into()),
        Ok(args) => Ok(Command(Some(Probe::Command(args)))),
        Err(_) => Ok(Command(Some(Probe::Shell(text.into())))),
    }
}

fn port(text: &str) -> Result<u16, String> {
    let port = text.parse::<u16>().ok().filter(|port| *port > 0);
    port.ok_or_else(|| format!("`{text}` is not a port; a port is a number from 1 to 65535"))
}

impl Wellness {
    /// Makes the changes to a container.
    ///
    /// # Errors
    /// If times are given for a readiness probe that is not there.
    pub fn apply(self, container: &mut ContainerSpec) -> Result<(), Failure> {
        let health = &mut container.health;
        if self.no_healthcheck {
            *health = HealthSpec { test: HealthTest::None, ..HealthSpec::default() };
        }
        let of_image = self.health_cmd == Some(Command(None));
        let own = probe(self.health_cmd, self.health_http, self.health_tcp);
        let times = [
            (&mut health.interval, self.health_interval),
            (&mut health.timeout, self.health_timeout),
            (&mut health.start_period, self.health_start_period),
            (&mut health.start_interval, self.health_start_interval),
        ];
        let mut given = of_image || own.is_some() || self.health_retries.is_some();
        for (field, time) in times {
            if let Some(time) = time {
                given = true;
                // Zero goes back to what the image says, as in Docker.
                *field = Some(time).filter(|time| !time.is_zero());
            }
        }
        if let Some(retries) = self.health_retries {
            health.retries = Some(retries).filter(|retries| *retries > 0);
        }
        match own {
            Some(own) => health.test = HealthTest::Probe(own),
            None if of_image || given && health.test == HealthTest::None => health.test = HealthTest::Image,
            None => {}
        }
        let readiness = &mut container.readiness;
        let never = self.ready_cmd == Some(Command(None));
        if self.no_readiness || never {
            *readiness = None;
        }
        if let Some(probe) = probe(self.ready_cmd, self.ready_http, self.ready_tcp) {
            match readiness {
                Some(readiness) => readiness.probe = probe,
                None => *readiness = Some(Readiness::new(probe)),
            }
        }
        let times = [self.ready_interval, self.ready_timeout];
        match readiness {
            Some(readiness) => {
                readiness.interval = self.ready_interval.unwrap_or(readiness.interval);
                readiness.timeout = self.ready_timeout.unwrap_or(readiness.timeout);
                readiness.retries = self.ready_retries.unwrap_or(readiness.retries);
            }
            None if times.iter().any(Option::is_some) || self.ready_retries.is_some() => {
                let failure = Failure::failed("there is no readiness probe that these times could be of");
                return Err(failure.help("give one with --ready-http, --ready-tcp or --ready-cmd"));
            }
            None => {}
        }
        Ok(())
    }
}

fn probe(cmd: Option<Command>, http: Option<HttpProbe>, tcp: Option<u16>) -> Option<Probe> {
    cmd.and_then(|Command(probe)| probe).or(http.map(Probe::Http)).or(tcp.map(Probe::Tcp))
}

/// The lines of `service inspect --pretty`.
///
/// # Errors
/// None: a string takes everything.
pub fn pretty(out: &mut String, container: &ContainerSpec) -> std::fmt::Result {
    let HealthSpec { test, interval, timeout, retries, start_period, start_interval } = &container.health;
    if container.health != HealthSpec::default() {
        writeln!(out, " Healthcheck:")?;
    }
    match test {
        HealthTest::Image => {}
        HealthTest::None => writeln!(out, "  Test = none")?,
        HealthTest::Probe(probe) => writeln!(out, "  Test = {probe}")?,
    }
    for (what, time) in [
        ("Interval", interval),
        ("Timeout", timeout),
        ("Start Period", start_period),
        ("Start Interval", start_interval),
    ] {
        if let Some(time) = time {
            writeln!(out, "  {what} = {}", duration(*time))?;
        }
    }
    if let Some(retries) = retries {
        writeln!(out, "  Retries = {retries}")?;
    }
    if let Some(Readiness { probe, interval, timeout, retries }) = &container.readiness {
        writeln!(out, " Readiness:\n  Test = {probe}\n  Interval = {}", duration(*interval))?;
        writeln!(out, "  Timeout = {}\n  Retries = {retries}", duration(*timeout))?;
    }
    Ok(())
}

/// As Docker's API has it; probes that Docker does not know are `HTTP` and `TCP`.
pub fn healthcheck(spec: &HealthSpec) -> Struct {
    let test = match &spec.test {
        HealthTest::Image => Vec::new(),
        HealthTest::None => vec!["NONE".to_owned()],
        HealthTest::Probe(probe) => words(probe),
    };
    Struct::new("HealthConfig")
        .maybe("Test", test)
        .maybe("Interval", spec.interval.unwrap_or_default())
        .maybe("Timeout", spec.timeout.unwrap_or_default())
        .maybe("StartPeriod", spec.start_period.unwrap_or_default())
        .maybe("StartInterval", spec.start_interval.unwrap_or_default())
        .maybe("Retries", spec.retries.unwrap_or_default())
}

/// In the form of [`healthcheck`].
pub fn readiness(spec: Option<&Readiness>) -> Struct {
    let none = Struct::new("Readiness");
    let Some(spec) = spec else { return none };
    none.with("Test", words(&spec.probe))
        .with("Interval", spec.interval)
        .with("Timeout", spec.timeout)
        .with("Retries", spec.retries)
}

fn words(probe: &Probe) -> Vec<String> {
    match probe {
        Probe::Command(args) => std::iter::once("CMD".to_owned()).chain(args.iter().cloned()).collect(),
        Probe::Shell(line) => vec!["CMD-SHELL".into(), line.clone()],
        Probe::Http(probe) => vec!["HTTP".into(), probe.to_string()],
        Probe::Tcp(port) => vec!["TCP".into(), port.to_string()],
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Args {
        #[command(flatten)]
        wellness: Wellness,
    }

    fn apply(container: &mut ContainerSpec, words: &[&str]) -> Result<(), String> {
        let words = ["x"].into_iter().chain(words.iter().copied());
        let args = Args::try_parse_from(words).map_err(|error| error.to_string())?;
        args.wellness.apply(container).map_err(|failure| failure.to_string())
    }

    fn applied(words: &[&str]) -> ContainerSpec {
        let mut container = ContainerSpec::new("x");
        apply(&mut container, words).expect("it applies");
        container
    }

    #[test]
    fn every_way_to_ask_is_understood() {
        let command = |args: &[&str]| Probe::Command(args.iter().map(|arg| (*arg).to_owned()).collect());
        for (words, probe) in [
            (
                ["--health-cmd", "curl -f localhost || exit 1"],
                Probe::Shell("curl -f localhost || exit 1".into()),
            ),
            (["--health-cmd", "[ -f /tmp/well ]"], Probe::Shell("[ -f /tmp/well ]".into())),
            (["--health-cmd", r#"["/check", "-x"]"#], command(&["/check", "-x"])),
            (
                ["--health-http", "/healthz:8080"],
                Probe::Http(HttpProbe { path: "/healthz".into(), port: 8080 }),
            ),
            (["--health-tcp", "5432"], Probe::Tcp(5432)),
        ] {
            assert_eq!(applied(&words).health.test, HealthTest::Probe(probe.clone()), "{words:?}");
            let ready = [words[0].replace("health", "ready"), words[1].to_owned()];
            let ready = applied(&[&ready[0], &ready[1]]);
            assert_eq!(ready.readiness, Some(Readiness::new(probe)), "{words:?}");
        }
    }

    #[test]
    fn what_is_said_later_replaces_what_was_said_before() {
        let mut container = applied(&["--health-tcp=80", "--health-interval=10s", "--health-retries=5"]);
        apply(&mut container, &["--health-interval=0", "--health-timeout=1s"]).expect("it applies");
        let health = &container.health;
        assert_eq!(
            (health.interval, health.timeout, health.retries),
            (None, Some(Duration::from_secs(1)), Some(5))
        );
        apply(&mut container, &["--no-healthcheck"]).expect("it applies");
        assert_eq!(container.health, HealthSpec { test: HealthTest::None, ..HealthSpec::default() });
        apply(&mut container, &["--health-interval=3s"]).expect("it applies");
        assert_eq!(container.health.test, HealthTest::Image, "as in Docker");
        apply(&mut container, &["--health-tcp=80"]).expect("it applies");
        apply(&mut container, &["--health-cmd="]).expect("it applies");
        assert_eq!(container.health.test, HealthTest::Image);
        apply(&mut container, &["--ready-tcp=80", "--ready-interval=1s"]).expect("it applies");
        apply(&mut container, &["--ready-http=/:80", "--ready-retries=9"]).expect("it applies");
        let readiness = container.readiness.clone().expect("one");
        assert_eq!((readiness.interval, readiness.retries), (Duration::from_secs(1), 9));
        apply(&mut container, &["--no-readiness"]).expect("it applies");
        assert_eq!(container.readiness, None);
    }

    #[test]
    fn nonsense_is_refused() {
        for words in [
            &["--health-cmd=x", "--health-tcp=80"][..],
            &["--no-healthcheck", "--health-interval=1s"],
            &["--no-healthcheck", "--health-tcp=80"],
            &["--health-tcp=0"],
            &["--health-http=healthz:80"],
            &["--health-http=/healthz"],
            &["--health-cmd=[]"],
            &["--ready-interval=1s"],
            &["--ready-tcp=1", "--no-readiness"],
        ] {
            assert!(apply(&mut ContainerSpec::new("x"), words).is_err(), "{words:?}");
        }
    }

    #[test]
    fn it_is_shown_as_it_was_written() {
        let container = applied(&["--health-http=/healthz:80", "--health-retries=2", "--ready-tcp=80"]);
        let mut out = "ContainerSpec:\n".to_owned();
        pretty(&mut out, &container).expect("a string takes everything");
        expect_test::expect![[r"
            ContainerSpec:
             Healthcheck:
              Test = http /healthz:80
              Retries = 2
             Readiness:
              Test = tcp 80
              Interval = 2s
              Timeout = 2s
              Retries = 2
        "]]
        .assert_eq(&out);
    }
}
