//! Health checks, readiness probes, and what they have found.

use super::{Invalid, Problem, choices, nanos, nested, port, required};
use crate::v1 as pb;
use rswarm_control::model::{Health, HealthCheck, HealthSpec, HealthTest, HttpProbe, Probe, Readiness};
use std::time::Duration;

choices! {
    Health = Health { Unchecked, Starting, Healthy, Unhealthy }
}

/// What was written before there were health checks was unchecked.
pub(crate) fn health(wire: i32) -> Health {
    super::choice::<pb::Health, _>("health", wire).unwrap_or_default()
}

pub(crate) fn health_out(health: Health) -> i32 {
    pb::Health::from(health).into()
}

impl From<&Probe> for pb::Probe {
    fn from(probe: &Probe) -> Self {
        use pb::probe::{Command, Http, Kind};
        let kind = match probe {
            Probe::Command(args) => Kind::Command(Command { args: args.clone() }),
            Probe::Shell(line) => Kind::Shell(line.clone()),
            Probe::Http(HttpProbe { path, port }) => {
                Kind::Http(Http { path: path.clone(), port: u32::from(*port) })
            }
            Probe::Tcp(port) => Kind::TcpPort(u32::from(*port)),
        };
        Self { kind: Some(kind) }
    }
}

impl TryFrom<pb::Probe> for Probe {
    type Error = Invalid;

    fn try_from(wire: pb::Probe) -> Result<Self, Invalid> {
        use pb::probe::{Command, Http, Kind};
        Ok(match required("kind", wire.kind)? {
            Kind::Command(Command { args }) => Self::Command(args),
            Kind::Shell(line) => Self::Shell(line),
            Kind::Http(Http { path, port: number }) => {
                Self::Http(HttpProbe { path, port: port("port", number)? })
            }
            Kind::TcpPort(number) => Self::Tcp(port("tcp_port", number)?),
        })
    }
}

impl From<&HealthSpec> for pb::HealthSpec {
    fn from(spec: &HealthSpec) -> Self {
        let HealthSpec { test, interval, timeout, retries, start_period, start_interval } = spec;
        let probe = match test {
            HealthTest::Probe(probe) => Some(probe.into()),
            HealthTest::Image | HealthTest::None => None,
        };
        Self {
            probe,
            disabled: *test == HealthTest::None,
            interval_ns: interval.map(nanos),
            timeout_ns: timeout.map(nanos),
            retries: *retries,
            start_period_ns: start_period.map(nanos),
            start_interval_ns: start_interval.map(nanos),
        }
    }
}

impl TryFrom<pb::HealthSpec> for HealthSpec {
    type Error = Invalid;

    fn try_from(wire: pb::HealthSpec) -> Result<Self, Invalid> {
        let test = match wire.probe {
            _ if wire.disabled => HealthTest::None,
            Some(probe) => HealthTest::Probe(nested("probe", Some(probe))?),
            None => HealthTest::Image,
        };
        let time = |nanos: Option<u64>| nanos.map(Duration::from_nanos);
        Ok(Self {
            test,
            interval: time(wire.interval_ns),
            timeout: time(wire.timeout_ns),
            retries: wire.retries,
            start_period: time(wire.start_period_ns),
            start_interval: time(wire.start_interval_ns),
        })
    }
}

impl From<&HealthCheck> for pb::HealthCheck {
    fn from(check: &HealthCheck) -> Self {
        let HealthCheck { probe, interval, timeout, retries, start_period, start_interval } = check;
        Self {
            probe: Some(probe.into()),
            interval_ns: nanos(*interval),
            timeout_ns: nanos(*timeout),
            retries: *retries,
            start_period_ns: nanos(*start_period),
            start_interval_ns: nanos(*start_interval),
        }
    }
}

impl TryFrom<pb::HealthCheck> for HealthCheck {
    type Error = Invalid;

    fn try_from(wire: pb::HealthCheck) -> Result<Self, Invalid> {
        Ok(Self {
            probe: nested("probe", wire.probe)?,
            interval: Duration::from_nanos(wire.interval_ns),
            timeout: Duration::from_nanos(wire.timeout_ns),
            retries: wire.retries,
            start_period: Duration::from_nanos(wire.start_period_ns),
            start_interval: Duration::from_nanos(wire.start_interval_ns),
        })
    }
}

impl From<&Readiness> for pb::Readiness {
    fn from(readiness: &Readiness) -> Self {
        let Readiness { probe, interval, timeout, retries } = readiness;
        Self {
            probe: Some(probe.into()),
            interval_ns: nanos(*interval),
            timeout_ns: nanos(*timeout),
            retries: *retries,
        }
    }
}

impl TryFrom<pb::Readiness> for Readiness {
    type Error = Invalid;

    fn try_from(wire: pb::Readiness) -> Result<Self, Invalid> {
        Ok(Self {
            probe: nested("probe", wire.probe)?,
            interval: Duration::from_nanos(wire.interval_ns),
            timeout: Duration::from_nanos(wire.timeout_ns),
            retries: wire.retries,
        })
    }
}
