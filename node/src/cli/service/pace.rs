//! The options that say how tasks are replaced: `--update-…` and `--rollback-…`.

use crate::cli::output::units::parse_duration;
use clap::ValueEnum;
use rswarm_control::model::{FailureAction, ServiceSpec, UpdateConfig, UpdateOrder};
use std::time::Duration;

/// Which of old and new comes first, as an option's value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum OrderArg {
    /// The new task runs before the old one is stopped
    StartFirst,
    /// The old task has ended before the new one starts
    StopFirst,
}

/// What happens when new tasks fail, as an option's value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ActionArg {
    /// Stop where it is
    Pause,
    /// Go on
    Continue,
    /// Go back to what ran before
    Rollback,
}

/// What may happen when a rollback fails, as an option's value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum BackActionArg {
    /// Stop where it is
    Pause,
    /// Go on
    Continue,
}

/// How tasks are replaced; what is not given changes nothing.
#[derive(Debug, Default, clap::Args)]
#[command(next_help_heading = "Updates and rollbacks")]
pub struct Pace {
    /// Tasks replaced at a time; 0 replaces all at once [default: 1]
    #[arg(long, value_name = "N")]
    update_parallelism: Option<u32>,
    /// Pause after a task before another is replaced [default: 0s]
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    update_delay: Option<Duration>,
    /// How long new tasks are watched: one that ends sooner has failed [default: 5s]
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    update_monitor: Option<Duration>,
    /// Which of old and new task comes first [default: stop-first]
    #[arg(long, value_enum)]
    update_order: Option<OrderArg>,
    /// What happens when new tasks fail [default: pause]
    #[arg(long, value_enum)]
    update_failure_action: Option<ActionArg>,
    /// Share of tasks, from 0 to 1, that may fail before that happens [default: 0]
    #[arg(long, value_name = "RATIO", value_parser = permille)]
    update_max_failure_ratio: Option<u16>,
    /// Pause, or roll back, if no new task comes to run for so long; 0s waits for ever [default: 10m]
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    update_progress_deadline: Option<Duration>,
    /// How long a new task must run before the next is replaced [default: 0s]
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    update_healthy_time: Option<Duration>,
    /// As --update-parallelism, on the way back
    #[arg(long, value_name = "N")]
    rollback_parallelism: Option<u32>,
    /// As --update-delay, on the way back
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    rollback_delay: Option<Duration>,
    /// As --update-monitor, on the way back
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    rollback_monitor: Option<Duration>,
    /// As --update-order, on the way back
    #[arg(long, value_enum)]
    rollback_order: Option<OrderArg>,
    /// What happens when tasks fail on the way back [default: pause]
    #[arg(long, value_enum)]
    rollback_failure_action: Option<BackActionArg>,
    /// As --update-max-failure-ratio, on the way back
    #[arg(long, value_name = "RATIO", value_parser = permille)]
    rollback_max_failure_ratio: Option<u16>,
    /// As --update-progress-deadline, on the way back
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    rollback_progress_deadline: Option<Duration>,
    /// As --update-healthy-time, on the way back
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    rollback_healthy_time: Option<Duration>,
}

impl Pace {
    /// Makes the changes to a spec.
    pub fn apply(self, spec: &mut ServiceSpec) {
        let action = self.update_failure_action.map(|action| match action {
            ActionArg::Pause => FailureAction::Pause,
            ActionArg::Continue => FailureAction::Continue,
            ActionArg::Rollback => FailureAction::Rollback,
        });
        let back = self.rollback_failure_action.map(|action| match action {
            BackActionArg::Pause => FailureAction::Pause,
            BackActionArg::Continue => FailureAction::Continue,
        });
        Way {
            parallelism: self.update_parallelism,
            delay: self.update_delay,
            monitor: self.update_monitor,
            order: self.update_order,
            action,
            permille: self.update_max_failure_ratio,
            deadline: self.update_progress_deadline,
            healthy: self.update_healthy_time,
        }
        .apply(&mut spec.update);
        Way {
            parallelism: self.rollback_parallelism,
            delay: self.rollback_delay,
            monitor: self.rollback_monitor,
            order: self.rollback_order,
            action: back,
            permille: self.rollback_max_failure_ratio,
            deadline: self.rollback_progress_deadline,
            healthy: self.rollback_healthy_time,
        }
        .apply(&mut spec.rollback);
    }
}

/// The options of one of the two ways.
struct Way {
    parallelism: Option<u32>,
    delay: Option<Duration>,
    monitor: Option<Duration>,
    order: Option<OrderArg>,
    action: Option<FailureAction>,
    permille: Option<u16>,
    deadline: Option<Duration>,
    healthy: Option<Duration>,
}

impl Way {
    fn apply(self, config: &mut UpdateConfig) {
        let order = self.order.map(|order| match order {
            OrderArg::StartFirst => UpdateOrder::StartFirst,
            OrderArg::StopFirst => UpdateOrder::StopFirst,
        });
        config.parallelism = self.parallelism.unwrap_or(config.parallelism);
        config.delay = self.delay.unwrap_or(config.delay);
        config.monitor = self.monitor.unwrap_or(config.monitor);
        config.order = order.unwrap_or(config.order);
        config.failure_action = self.action.unwrap_or(config.failure_action);
        config.max_failure_permille = self.permille.unwrap_or(config.max_failure_permille);
        config.progress_deadline = self.deadline.unwrap_or(config.progress_deadline);
        config.healthy_time = self.healthy.unwrap_or(config.healthy_time);
    }
}

/// A share from 0 to 1, in thousandths.
fn permille(text: &str) -> Result<u16, String> {
    let wrong = || format!("`{text}` is not a share; write a number from 0 to 1, for example 0.25");
    let share: f64 = text.parse().map_err(|_| wrong())?;
    if !(0.0..=1.0).contains(&share) {
        return Err(wrong());
    }
    // A share between two thousandths allows no more than the lower of them.
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "it lies between 0 and 1000")]
    Ok((share * 1000.0 + 1e-9).floor() as u16)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_lie_between_nothing_and_all() {
        assert_eq!(permille("0.25"), Ok(250));
        assert_eq!(permille("1"), Ok(1000));
        assert_eq!(permille("0.3"), Ok(300));
        for text in ["", "-0.1", "1.1", "25%", "NaN"] {
            assert!(permille(text).is_err(), "{text}");
        }
    }
}
