//! `rswarm lab clock|disk`: what a lab's node can have of its own beside its network.

use std::io::Write;

use anyhow::Result;
use clap::Args;

use super::Name;
use crate::cli::output::units::parse_duration;

/// Set a node's clock ahead of this machine's, behind it, or right
#[derive(Debug, Args)]
pub struct Clock {
    #[command(flatten)]
    lab: Name,
    /// Which node
    node: String,
    /// How far: 45m, -1h; 0 sets it right
    #[arg(allow_hyphen_values = true, value_name = "OFFSET", value_parser = offset)]
    by: i64,
}

impl Clock {
    /// Carries the command out.
    ///
    /// # Errors
    /// If there is no such node.
    pub fn run(self, out: &mut impl Write) -> Result<()> {
        self.lab.open()?.set_clock(&self.node, self.by)?;
        Ok(writeln!(out, "{}", told(&self.node, self.by))?)
    }
}

/// Slow a node's disk down, or let it be as fast as it is
#[derive(Debug, Args)]
pub struct Disk {
    #[command(flatten)]
    lab: Name,
    /// Which node
    node: String,
    /// How many writes a second it takes; without this as many as it can
    #[arg(long, value_name = "NUMBER", value_parser = clap::value_parser!(u32).range(1..))]
    writes: Option<u32>,
}

impl Disk {
    /// Carries the command out.
    ///
    /// # Errors
    /// If the node is off, or lies on no disk that can be slowed down.
    pub fn run(self, out: &mut impl Write) -> Result<()> {
        self.lab.open()?.throttle(&self.node, self.writes)?;
        match self.writes {
            Some(writes) => {
                writeln!(out, "{} writes {writes} times a second, until it is switched off", self.node)?;
            }
            None => writeln!(out, "{} writes as fast as it can", self.node)?,
        }
        Ok(())
    }
}

/// What is said of a node's clock.
pub fn told(node: &str, ahead_ms: i64) -> String {
    let by = humantime(ahead_ms.unsigned_abs());
    match ahead_ms {
        0 => format!("clock: {node} is right"),
        1.. => format!("clock: {node} is {by} ahead"),
        _ => format!("clock: {node} is {by} behind"),
    }
}

fn humantime(ms: u64) -> String {
    crate::cli::output::units::duration(std::time::Duration::from_millis(ms))
}

/// In milliseconds.
fn offset(text: &str) -> Result<i64, String> {
    let (sign, digits) = match text.split_at_checked(1) {
        Some(("-", rest)) => (-1, rest),
        Some(("+", rest)) => (1, rest),
        _ => (1, text),
    };
    if digits == "0" {
        return Ok(0);
    }
    let time = parse_duration(digits)?;
    i64::try_from(time.as_millis()).map(|ms| sign * ms).map_err(|_| "no clock is that wrong".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clocks_are_wrong_either_way() {
        assert_eq!(
            (offset("45m"), offset("+1h"), offset("-90s")),
            (Ok(2_700_000), Ok(3_600_000), Ok(-90_000))
        );
        assert_eq!((offset("0"), offset("-0")), (Ok(0), Ok(0)));
        assert!(offset("").is_err() && offset("-").is_err() && offset("soon").is_err());
        assert!(told("n1", -90_000).ends_with("behind") && told("n1", 0).ends_with("right"));
    }
}
