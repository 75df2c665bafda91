//! Health checks and readiness probes.

use super::{duration, text};
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use rswarm_control::model::{Health, HealthSpec, HealthTest, HttpProbe, Probe, Readiness};

fn probe() -> BoxedStrategy<Probe> {
    prop_oneof![
        vec(text(), 0..3).prop_map(Probe::Command),
        text().prop_map(Probe::Shell),
        (text(), any::<u16>()).prop_map(|(path, port)| Probe::Http(HttpProbe { path, port })),
        any::<u16>().prop_map(Probe::Tcp),
    ]
    .boxed()
}

pub fn health_spec() -> BoxedStrategy<HealthSpec> {
    let test =
        prop_oneof![Just(HealthTest::Image), Just(HealthTest::None), probe().prop_map(HealthTest::Probe)];
    let time = || option::of(duration());
    (test, time(), time(), any::<Option<u32>>(), time(), time())
        .prop_map(|(test, interval, timeout, retries, start_period, start_interval)| HealthSpec {
            test,
            interval,
            timeout,
            retries,
            start_period,
            start_interval,
        })
        .boxed()
}

pub fn readiness() -> BoxedStrategy<Readiness> {
    (probe(), duration(), duration(), any::<u32>())
        .prop_map(|(probe, interval, timeout, retries)| Readiness { probe, interval, timeout, retries })
        .boxed()
}

pub fn found() -> BoxedStrategy<Health> {
    use Health::*;
    prop::sample::select(vec![Unchecked, Starting, Healthy, Unhealthy]).boxed()
}
