//! What the benchmark has its members do: one order a line on their standard input, one line of numbers as the answer.

use super::load::Window;
use anyhow::{Context, Result};
use std::fmt;
use std::net::SocketAddr;
use std::str::FromStr;
use std::time::Duration;

/// An order.
#[derive(Clone, Debug, PartialEq)]
pub enum Order {
    /// Propose for a while, from so many writers in this process. Answer: how many, how many failed, median and 99th
    /// percentile in milliseconds.
    Propose {
        /// Writers.
        writers: usize,
        /// How long.
        window: Window,
    },
    /// Set so many keys to values of so many bytes. Answer: how many failed.
    Fill {
        /// Keys.
        keys: u64,
        /// Bytes of a value.
        bytes: usize,
    },
    /// Make a voter of the member with this number. Answer: how long that took, in milliseconds.
    Add {
        /// Its number.
        number: usize,
        /// Its address.
        addr: SocketAddr,
    },
    /// Say how it stands. Answer: a [`Stand`].
    Stand,
}

impl fmt::Display for Order {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Propose { writers, window } => {
                write!(f, "propose {writers} {} {}", window.warm.as_millis(), window.counted.as_millis())
            }
            Self::Fill { keys, bytes } => write!(f, "fill {keys} {bytes}"),
            Self::Add { number, addr } => write!(f, "add {number} {addr}"),
            Self::Stand => f.write_str("stand"),
        }
    }
}

impl FromStr for Order {
    type Err = anyhow::Error;

    fn from_str(line: &str) -> Result<Self> {
        let wrong = || format!("not understood: {line}");
        let mut words = line.split(' ');
        let verb = words.next();
        let mut word = || words.next().with_context(wrong);
        let order = match verb {
            Some("propose") => Self::Propose {
                writers: word()?.parse().with_context(wrong)?,
                window: Window {
                    warm: Duration::from_millis(word()?.parse().with_context(wrong)?),
                    counted: Duration::from_millis(word()?.parse().with_context(wrong)?),
                },
            },
            Some("fill") => Self::Fill {
                keys: word()?.parse().with_context(wrong)?,
                bytes: word()?.parse().with_context(wrong)?,
            },
            Some("add") => Self::Add {
                number: word()?.parse().with_context(wrong)?,
                addr: word()?.parse().with_context(wrong)?,
            },
            Some("stand") => Self::Stand,
            _ => anyhow::bail!(wrong()),
        };
        anyhow::ensure!(words.next().is_none(), wrong());
        Ok(order)
    }
}

/// How a member stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stand {
    /// Who leads, as it knows; 0 if nobody does.
    pub leader: u64,
    /// The term.
    pub term: u64,
    /// How far it has applied the log.
    pub applied: u64,
    /// What its newest snapshot covers.
    pub snapshot: u64,
    /// How many voters it knows.
    pub voters: u64,
    /// How many keys it has.
    pub keys: u64,
}

impl Stand {
    /// As an answer.
    pub fn numbers(self) -> [u64; 6] {
        [self.leader, self.term, self.applied, self.snapshot, self.voters, self.keys]
    }

    /// From an answer.
    pub fn read(numbers: &[f64]) -> Self {
        let at = |at: usize| numbers.get(at).map_or(0, |number| *number as u64);
        Self { leader: at(0), term: at(1), applied: at(2), snapshot: at(3), voters: at(4), keys: at(5) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_order_is_read_as_it_is_written() {
        let window = Window { warm: Duration::from_millis(300), counted: Duration::from_secs(2) };
        let addr = SocketAddr::from(([127, 0, 0, 1], 4));
        for order in [
            Order::Propose { writers: 256, window },
            Order::Fill { keys: 200_000, bytes: 1000 },
            Order::Add { number: 4, addr },
            Order::Stand,
        ] {
            assert_eq!(order.to_string().parse::<Order>().unwrap(), order);
        }
        for line in
            ["", "propose", "propose 1 2", "propose x 1 2", "fill 1", "add 4 here", "stand up", "sing"]
        {
            assert!(line.parse::<Order>().is_err(), "{line}");
        }
        let stand = Stand { leader: 1, term: 2, applied: 3, snapshot: 4, voters: 5, keys: 6 };
        assert_eq!(Stand::read(&stand.numbers().map(|number| number as f64)), stand);
    }
}
