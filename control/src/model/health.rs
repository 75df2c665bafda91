//! Whether a container is well, how it is asked, and what has been found.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

/// A way to ask a container whether it is well.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Probe {
    /// It is if this program, run in it, exits with 0.
    Command(Vec<String>),
    /// It is if this line, run in it by the image's shell, exits with 0.
    Shell(String),
    /// It is if a GET request to it is answered with a status from 200 to 399 within the time.
    Http(HttpProbe),
    /// It is if it takes connections on this port of its loopback device.
    Tcp(u16),
}

/// What is asked for over HTTP. Written `PATH:PORT`: the port is what follows the last colon.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HttpProbe {
    /// Begins with `/`; may have a query.
    pub path: String,
    /// On the container's loopback device.
    pub port: u16,
}

impl FromStr for HttpProbe {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let how = || format!("`{text}` is not PATH:PORT, for example /healthz:8080");
        let (path, port) = text.rsplit_once(':').ok_or_else(how)?;
        let port = port.parse::<u16>().ok().filter(|port| *port > 0).ok_or_else(how)?;
        if !path.starts_with('/') {
            return Err(how());
        }
        Ok(Self { path: path.into(), port })
    }
}

impl fmt::Display for HttpProbe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.path, self.port)
    }
}

/// As users write it, after what kind it is.
impl fmt::Display for Probe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Command(args) => write!(f, "exec {}", args.join(" ")),
            Self::Shell(line) => f.write_str(line),
            Self::Http(probe) => write!(f, "http {probe}"),
            Self::Tcp(port) => write!(f, "tcp {port}"),
        }
    }
}

/// What a service says about the health of a container. What it leaves out is as the image says, and where that
/// says nothing either, as Docker has it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HealthSpec {
    /// How it is asked.
    pub test: HealthTest,
    /// Time from the end of one probe to the next; 30 s.
    pub interval: Option<Duration>,
    /// What takes longer has failed; 30 s.
    pub timeout: Option<Duration>,
    /// Failures in a row that make it unhealthy; 3.
    pub retries: Option<u32>,
    /// Failures of a container that was never well do not count for so long after its start; 0 s.
    pub start_period: Option<Duration>,
    /// As `interval`, in the start period; 5 s.
    pub start_interval: Option<Duration>,
}

/// How a container is asked whether it is well.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum HealthTest {
    /// As its image says.
    #[default]
    Image,
    /// Not at all, whatever the image says.
    None,
    /// Like this.
    Probe(Probe),
}

/// A health check of which everything is known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HealthCheck {
    /// How it is asked.
    pub probe: Probe,
    /// Time from the end of one probe to the next.
    pub interval: Duration,
    /// What takes longer has failed.
    pub timeout: Duration,
    /// Failures in a row that make it unhealthy; at least 1.
    pub retries: u32,
    /// Failures of a container that was never well do not count for so long after its start.
    pub start_period: Duration,
    /// As `interval`, in the start period.
    pub start_interval: Duration,
}

impl HealthCheck {
    /// Docker's times.
    pub fn new(probe: Probe) -> Self {
        let seconds = Duration::from_secs;
        Self {
            probe,
            interval: seconds(30),
            timeout: seconds(30),
            retries: 3,
            start_period: Duration::ZERO,
            start_interval: seconds(5),
        }
    }
}

impl HealthSpec {
    /// How a container whose image says `image` is to be asked, if it is.
    pub fn over(&self, image: &Self) -> Option<HealthCheck> {
        let test = if self.test == HealthTest::Image { &image.test } else { &self.test };
        let HealthTest::Probe(probe) = test else { return None };
        // As in Docker, the image's times hold also for another test.
        let known = HealthCheck::new(probe.clone());
        let time = |own: Option<Duration>, image: Option<Duration>, known| own.or(image).unwrap_or(known);
        Some(HealthCheck {
            interval: time(self.interval, image.interval, known.interval),
            timeout: time(self.timeout, image.timeout, known.timeout),
            retries: self.retries.or(image.retries).unwrap_or(known.retries).max(1),
            start_period: time(self.start_period, image.start_period, known.start_period),
            start_interval: time(self.start_interval, image.start_interval, known.start_interval),
            probe: known.probe,
        })
    }
}

/// Whether a container may be given connections, which is not to say that it should be replaced.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Readiness {
    /// How it is asked.
    pub probe: Probe,
    /// Time from the end of one probe to the next.
    pub interval: Duration,
    /// What takes longer has failed.
    pub timeout: Duration,
    /// Failures in a row after which it is given no more connections; at least 1. One success is enough to get
    /// them again.
    pub retries: u32,
}

impl Readiness {
    /// Quicker than a health check: being wrong costs less.
    pub fn new(probe: Probe) -> Self {
        Self { probe, interval: Duration::from_secs(2), timeout: Duration::from_secs(2), retries: 2 }
    }
}

/// What has been found of a task's health.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Health {
    /// Nobody asks.
    #[default]
    Unchecked,
    /// It was not well yet, and not ill for long enough.
    Starting,
    /// It is well.
    Healthy,
    /// It is ill, and will be stopped.
    Unhealthy,
}

/// As Docker has it.
impl fmt::Display for Health {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Unchecked => "none",
            Self::Starting => "starting",
            Self::Healthy => "healthy",
            Self::Unhealthy => "unhealthy",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_port_is_what_follows_the_last_colon() {
        for (text, path, port) in
            [("/healthz:8080", "/healthz", 8080), ("/a:1?b=c:d:80", "/a:1?b=c:d", 80), ("/:1", "/", 1)]
        {
            let probe: HttpProbe = text.parse().expect(text);
            assert_eq!((probe.path.as_str(), probe.port), (path, port));
            assert_eq!(probe.to_string(), text);
        }
        for text in ["", "/healthz", "8080", "healthz:80", "/healthz:0", "/x:65536", "/x:", "80:/x"] {
            assert!(text.parse::<HttpProbe>().is_err(), "{text}");
        }
    }

    #[test]
    fn what_a_service_leaves_out_is_as_the_image_says_and_else_as_docker_has_it() {
        let test = |line: &str| HealthTest::Probe(Probe::Shell(line.into()));
        let seconds = Duration::from_secs;
        let image = HealthSpec {
            test: test("image"),
            interval: Some(seconds(7)),
            retries: Some(9),
            ..HealthSpec::default()
        };
        let check = HealthSpec::default().over(&image).expect("the image has one");
        assert_eq!(check.probe, Probe::Shell("image".into()));
        let times = |check: &HealthCheck| (check.interval.as_secs(), check.timeout.as_secs(), check.retries);
        assert_eq!(times(&check), (7, 30, 9));
        let own = HealthSpec { test: test("own"), timeout: Some(seconds(1)), ..HealthSpec::default() };
        let check = own.over(&image).expect("the service has one");
        assert_eq!((check.probe.to_string().as_str(), times(&check)), ("own", (7, 1, 9)));
        assert_eq!(
            own.over(&HealthSpec::default()),
            Some(HealthCheck { timeout: seconds(1), ..HealthCheck::new(check.probe) })
        );
        assert_eq!(HealthSpec { test: HealthTest::None, ..own.clone() }.over(&image), None);
        assert_eq!(
            own.over(&HealthSpec { test: HealthTest::None, ..image }).map(|check| check.interval),
            Some(seconds(7))
        );
        assert_eq!(HealthSpec::default().over(&HealthSpec::default()), None);
    }
}
