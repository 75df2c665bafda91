//! One line that says a run exactly: what a file of past failures holds, and what a search writes there.

use super::Options;
use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

/// The longest storm that a line can ask for, in seconds.
const STORM_MAX: u64 = 7 * 86_400;
/// More numbers than this are no list that a search has written.
const LEFT_OUT_MAX: usize = 100_000;

/// Things that would happen in a run, and are left out of it, by their number in the run.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LeftOut {
    /// Faults of the storm.
    pub faults: BTreeSet<u32>,
    /// Wishes of the user.
    pub wishes: BTreeSet<u32>,
}

/// A run that can be repeated.
#[derive(Clone, Debug)]
pub struct Replay {
    /// Its seed.
    pub seed: u64,
    /// How long it storms, and what is left out.
    pub options: Options,
}

/// As in `tests/seeds`: a seed, the seconds of storm if they are not 120, and what is left out.
impl fmt::Display for Replay {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.seed)?;
        let LeftOut { faults, wishes } = &self.options.left_out;
        let usual = self.options.storm == Options::default().storm;
        if !usual || !faults.is_empty() || !wishes.is_empty() {
            write!(f, " {}", self.options.storm.as_secs())?;
        }
        for (word, numbers) in [("faults", faults), ("wishes", wishes)] {
            if !numbers.is_empty() {
                let numbers: Vec<String> = ranges(numbers).collect();
                write!(f, " without-{word}={}", numbers.join(","))?;
            }
        }
        Ok(())
    }
}

/// `3`, or `3-7` for several in a row.
fn ranges(numbers: &BTreeSet<u32>) -> impl Iterator<Item = String> {
    let mut rows: Vec<(u32, u32)> = Vec::new();
    for number in numbers {
        match rows.last_mut() {
            Some((_, last)) if last.checked_add(1) == Some(*number) => *last = *number,
            _ => rows.push((*number, *number)),
        }
    }
    rows.into_iter()
        .map(|(first, last)| if first == last { first.to_string() } else { format!("{first}-{last}") })
}

impl FromStr for Replay {
    type Err = String;

    fn from_str(line: &str) -> Result<Self, String> {
        let mut words = line.split_whitespace();
        let seed = words.next().ok_or("an empty line names no seed")?;
        let seed =
            seed.parse().map_err(|_| format!("`{seed}` is not a seed: a line begins with a whole number"))?;
        let mut options = Options::default();
        for word in words {
            if let Some(list) = word.strip_prefix("without-faults=") {
                options.left_out.faults = numbers(list)?;
            } else if let Some(list) = word.strip_prefix("without-wishes=") {
                options.left_out.wishes = numbers(list)?;
            } else {
                let seconds = word.parse().ok().filter(|seconds| *seconds <= STORM_MAX);
                let seconds =
                    seconds.ok_or_else(|| format!("`{word}` is neither seconds of storm nor a list"))?;
                options.storm = Duration::from_secs(seconds);
            }
        }
        Ok(Self { seed, options })
    }
}

fn numbers(list: &str) -> Result<BTreeSet<u32>, String> {
    let mut all = BTreeSet::new();
    for part in list.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let bad = || format!("`{part}` is neither a number nor two with a dash between");
        let (first, last): (u32, u32) = (first.parse().map_err(|_| bad())?, last.parse().map_err(|_| bad())?);
        if last < first || (last - first) as usize >= LEFT_OUT_MAX - all.len() {
            return Err(bad());
        }
        all.extend(first..=last);
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_says_what_it_was_written_from() {
        for line in ["402", "7 30", "7 120 without-faults=0-4,9", "1 5 without-faults=3 without-wishes=0,2-3"]
        {
            let replay: Replay = line.parse().unwrap();
            assert_eq!(replay.to_string(), line);
        }
        assert_eq!("7 120".parse::<Replay>().unwrap().to_string(), "7");
    }

    #[test]
    fn nonsense_is_refused() {
        for line in ["", "x", "1 x", "1 2 without-faults=9-1", "1 2 without-faults=0-4000000000", "1 -3"] {
            assert!(line.parse::<Replay>().is_err(), "{line}");
        }
    }
}
