//! When a container is to be asked whether it is well, and what its answers amount to. Docker's rules, with one
//! difference: where there is no start period, the first interval, in which Docker does not ask, is used as one, so
//! that what comes up fast is known to be healthy soon.

use crate::model::{Health, HealthCheck, Observed, Readiness, Task};
use crate::time::Timestamp;

/// How well one container is, by its health check.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Monitor {
    check: HealthCheck,
    started_at: Timestamp,
    status: Status,
    /// Failures that count, in a row.
    failures: u32,
    next_at: Timestamp,
}

/// What a health check has found so far.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// It was never well, and not ill for long enough.
    Starting,
    /// It was well, and has not been ill for long enough since.
    Healthy,
    /// It failed too often. Nothing follows: what is ill is replaced.
    Unhealthy,
}

impl Monitor {
    /// Of a container that was started at `started_at`. One that is found when it runs already is asked at once.
    pub fn new(check: HealthCheck, started_at: Timestamp, now: Timestamp) -> Self {
        let mut this = Self { check, started_at, status: Status::Starting, failures: 0, next_at: started_at };
        this.next_at = this.due(started_at).max(now);
        this
    }

    /// What is known.
    pub fn status(&self) -> Status {
        self.status
    }

    /// When it is to be asked next.
    pub fn next_at(&self) -> Timestamp {
        self.next_at
    }

    /// It has answered, or failed to: asked at `asked_at`, and done with that at `now`. What is known by that.
    pub fn answered(&mut self, well: bool, asked_at: Timestamp, now: Timestamp) -> Status {
        match self.status {
            Status::Unhealthy => return Status::Unhealthy,
            _ if well => (self.status, self.failures) = (Status::Healthy, 0),
            Status::Starting if asked_at < self.patience_ends_at() => {}
            Status::Starting | Status::Healthy => {
                self.failures += 1;
                if self.failures >= self.check.retries {
                    self.status = Status::Unhealthy;
                }
            }
        }
        self.next_at = self.due(now);
        self.status
    }

    /// It could not be asked, since it was paused until `now`.
    pub fn resumed(&mut self, now: Timestamp) {
        self.next_at = self.due(now);
    }

    /// Until then failures do not count, if it was never well.
    fn patience_ends_at(&self) -> Timestamp {
        let period = self.check.start_period;
        self.started_at.after(if period.is_zero() { self.check.interval } else { period })
    }

    fn due(&self, from: Timestamp) -> Timestamp {
        let (regular, ends) = (from.after(self.check.interval), self.patience_ends_at());
        if self.status != Status::Starting || from >= ends {
            return regular;
        }
        let soon = from.after(self.check.start_interval);
        // Docker's first question of all is not put off.
        if self.check.start_period.is_zero() { soon.min(ends) } else { soon }
    }
}

/// Whether one container may be given connections, by its readiness probe.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gate {
    readiness: Readiness,
    ready: Option<bool>,
    failures: u32,
    next_at: Timestamp,
}

impl Gate {
    /// It is asked at once.
    pub fn new(readiness: Readiness, now: Timestamp) -> Self {
        Self { readiness, ready: None, failures: 0, next_at: now }
    }

    /// When it is to be asked next.
    pub fn next_at(&self) -> Timestamp {
        self.next_at
    }

    /// It has answered, or failed to, and was done with that at `now`. Whether it is ready, where that is known:
    /// what a new gate finds is what an earlier one had found, until it has failed often enough.
    pub fn answered(&mut self, well: bool, now: Timestamp) -> Option<bool> {
        self.next_at = now.after(self.readiness.interval);
        self.failures = if well { 0 } else { self.failures.saturating_add(1) };
        if well {
            self.ready = Some(true);
        } else if self.failures >= self.readiness.retries {
            self.ready = Some(false);
        }
        self.ready
    }

    /// It could not be asked, since it was paused until `now`.
    pub fn resumed(&mut self, now: Timestamp) {
        self.next_at = now.after(self.readiness.interval);
    }
}

/// How well a live task is, as Docker writes it behind a container's state; nothing where nobody asks.
pub fn badge(task: &Task) -> Option<&'static str> {
    match task.status.health {
        _ if !matches!(task.observed, Observed::Starting | Observed::Running) => None,
        Health::Starting => Some("(health: starting)"),
        Health::Unhealthy => Some("(unhealthy)"),
        Health::Healthy | Health::Unchecked if task.status.unready => Some("(not ready)"),
        Health::Healthy => Some("(healthy)"),
        Health::Unchecked => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Probe;
    use std::fmt::Write;
    use std::time::Duration;

    fn check(times: &str) -> HealthCheck {
        let mut check = HealthCheck::new(Probe::Tcp(80));
        for word in times.split_whitespace() {
            let (key, value) = word.split_once('=').expect("KEY=SECONDS");
            let number: u32 = value.parse().expect("a number");
            let time = Duration::from_secs(number.into());
            match key {
                "interval" => check.interval = time,
                "retries" => check.retries = number,
                "period" => check.start_period = time,
                "start" => check.start_interval = time,
                other => panic!("no such time: {other}"),
            }
        }
        check
    }

    /// Asks as often as it is due, one answer after the other (`+` well, `-` ill, `2-` ill after two seconds), and
    /// says when and what is known by then.
    fn told(times: &str, answers: &str) -> String {
        let start = Timestamp(1_000_000);
        let mut monitor = Monitor::new(check(times), start, start);
        let mut out = String::new();
        for answer in answers.split_whitespace() {
            let (took, well) = answer.split_at(answer.len() - 1);
            let asked_at = monitor.next_at();
            let now = asked_at.after(Duration::from_secs(took.parse().unwrap_or(0)));
            let status = monitor.answered(well == "+", asked_at, now);
            let letter = match status {
                Status::Starting => "s",
                Status::Healthy => "H",
                Status::Unhealthy => "U",
            };
            write!(out, "{}{letter} ", asked_at.since(start).as_secs()).expect("a string takes everything");
        }
        out.trim_end().to_owned()
    }

    #[rustfmt::skip]
    #[test]
    fn answers_amount_to_health() {
        for (times, answers, is) in [
            ("", "+ + -", "5H 35H 65H"),
            ("", "- - + +", "5s 10s 15H 45H"),
            ("", "- - - - - - - -", "5s 10s 15s 20s 25s 30s 60s 90U"),
            ("interval=2", "- - -", "2s 4s 6U"),
            ("interval=2 retries=1", "-", "2U"),
            ("interval=10 period=7", "- - - -", "5s 10s 20s 30U"),
            ("interval=10 period=7", "+ - - + - - -", "5H 15H 25H 35H 45H 55H 65U"),
            ("interval=10 period=60", "- - + - - -", "5s 10s 15H 25H 35H 45U"),
            ("interval=10 period=60 start=1", "- - -", "1s 2s 3s"),
            ("interval=10 period=20 start=30", "- - -", "30s 40s 50U"),
            ("interval=2", "1- 1- +", "2s 5s 8H"),
            ("interval=2", "- - - + +", "2s 4s 6U 8U 8U"),
            ("interval=2 retries=2 period=4 start=3", "3- -", "3s 8s"),
        ] {
            assert_eq!(told(times, answers), is, "{times:?} {answers:?}");
        }
    }

    #[test]
    fn what_is_found_running_is_asked_at_once_and_has_no_second_start_period() {
        let (start, now) = (Timestamp(1_000_000), Timestamp(1_100_000));
        let mut monitor = Monitor::new(check("interval=30 period=60 retries=2"), start, now);
        assert_eq!(monitor.next_at(), now);
        assert_eq!(monitor.answered(false, now, now), Status::Starting);
        let later = monitor.next_at();
        assert_eq!(later, now.after(Duration::from_secs(30)));
        assert_eq!(monitor.answered(false, later, later), Status::Unhealthy);
    }

    #[test]
    fn after_a_pause_it_is_given_an_interval() {
        let start = Timestamp(1_000_000);
        let mut monitor = Monitor::new(check("interval=30"), start, start);
        let asked_at = monitor.next_at();
        monitor.answered(true, asked_at, asked_at);
        let resumed = Timestamp(5_000_000);
        monitor.resumed(resumed);
        assert_eq!(monitor.next_at(), resumed.after(Duration::from_secs(30)));
        assert_eq!(monitor.status(), Status::Healthy);
    }

    #[test]
    fn readiness_is_lost_after_failures_in_a_row_and_won_back_at_once() {
        let now = Timestamp(1_000_000);
        let mut gate = Gate::new(Readiness { retries: 2, ..Readiness::new(Probe::Tcp(80)) }, now);
        assert_eq!(gate.next_at(), now);
        let told: Vec<_> =
            [false, true, false, true, false, false, false, true].map(|well| gate.answered(well, now)).into();
        let (ready, not) = (Some(true), Some(false));
        assert_eq!(told, [None, ready, ready, ready, ready, not, not, ready]);
        assert_eq!(gate.next_at(), now.after(Duration::from_secs(2)));
    }
}
