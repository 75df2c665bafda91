//! `rswarm lab link`: links worse than cables.

use std::io::Write;

use anyhow::{Result, bail};
use clap::Args;
use rswarm_chaos::lab::{Lab, Link};

use super::Name;
use crate::cli::output::units::parse_duration;

/// Make links worse than cables, or with no option whole again
#[derive(Debug, Args)]
pub struct Worsen {
    #[command(flatten)]
    lab: Name,
    /// Two nodes, or `all` for the links between all
    #[arg(required = true, num_args = 1..=2, value_name = "NODE")]
    ends: Vec<String>,
    /// Share of packets that is lost, such as 5%
    #[arg(long, value_name = "PERCENT", value_parser = share, default_value = "0")]
    loss: u16,
    /// Share of packets that comes twice
    #[arg(long, value_name = "PERCENT", value_parser = share, default_value = "0")]
    duplicate: u16,
    /// How late each packet is
    #[arg(long, value_name = "DURATION", value_parser = micros, default_value = "0s")]
    delay: u32,
    /// How much earlier or later than that at most; packets may overtake one another
    #[arg(long, value_name = "DURATION", value_parser = micros, default_value = "0s")]
    jitter: u32,
    /// Bits a second, such as 10mbit
    #[arg(long, value_name = "RATE", value_parser = rate, default_value = "0")]
    rate: u64,
    /// Only what the first node sends to the second
    #[arg(long)]
    one_way: bool,
}

impl Worsen {
    /// Carries the command out.
    ///
    /// # Errors
    /// If there are no such nodes, or the switch does not run.
    pub fn run(self, out: &mut impl Write) -> Result<()> {
        let lab = self.lab.open()?;
        let link = Link {
            loss: self.loss,
            duplicate: self.duplicate,
            delay_us: self.delay,
            jitter_us: self.jitter,
            rate: self.rate,
        };
        lab.links(&self.pairs(&lab)?, link)?;
        if link.is_whole() {
            writeln!(out, "whole again")?;
        } else {
            writeln!(out, "{link}; `rswarm lab heal{}` makes all links whole", self.lab.flag())?;
        }
        Ok(())
    }

    /// From and to.
    fn pairs(&self, lab: &Lab) -> Result<Vec<(String, String)>> {
        match self.ends.as_slice() {
            [all] if all == "all" && !self.one_way => {
                let names = lab.names()?;
                let of = |from: &String| {
                    let others = names.iter().filter(|to| *to != from).cloned();
                    others.map(|to| (from.clone(), to)).collect::<Vec<_>>()
                };
                Ok(names.iter().flat_map(of).collect())
            }
            [from, to] => {
                let mut pairs = vec![(from.clone(), to.clone())];
                if !self.one_way {
                    pairs.push((to.clone(), from.clone()));
                }
                Ok(pairs)
            }
            _ => bail!("name two nodes, or `all` without --one-way"),
        }
    }
}

/// In hundredths of a percent.
fn share(text: &str) -> Result<u16, String> {
    let number: f64 = text.trim_end_matches('%').parse().map_err(|_| "not a share such as 5%".to_owned())?;
    if !(0.0..=100.0).contains(&number) {
        return Err("a share is 0% to 100%".into());
    }
    Ok((number * 100.0).round() as u16)
}

fn micros(text: &str) -> Result<u32, String> {
    let time = parse_duration(text)?;
    u32::try_from(time.as_micros()).map_err(|_| "a link delays by a minute at most".into())
}

/// In bits a second.
fn rate(text: &str) -> Result<u64, String> {
    let digits = text.trim_end_matches(|letter: char| letter.is_ascii_alphabetic());
    let unit = match &text[digits.len()..] {
        "" | "bit" => 1,
        "kbit" => 1_000,
        "mbit" => 1_000_000,
        "gbit" => 1_000_000_000,
        _ => return Err("its unit is bit, kbit, mbit or gbit".into()),
    };
    let number: u64 = digits.parse().map_err(|_| "not a rate such as 10mbit".to_owned())?;
    number.checked_mul(unit).ok_or_else(|| "too fast to be limited".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_and_rates_are_read() {
        assert_eq!((share("5%"), share("0.25"), share("100%")), (Ok(500), Ok(25), Ok(10_000)));
        assert!(share("101%").is_err() && share("-1").is_err() && share("much").is_err());
        assert_eq!((rate("10mbit"), rate("64kbit"), rate("9600")), (Ok(10_000_000), Ok(64_000), Ok(9_600)));
        assert!(rate("10mb").is_err() && rate("fast").is_err() && rate("99999999999999gbit").is_err());
        assert_eq!(micros("20ms"), Ok(20_000));
        assert!(micros("2h").is_err());
    }
}
