//! Figures: what was measured, under a name that stays. In go samples; out come a table for people and one line
//! of JSON a figure for programs.

use serde::Serialize;
use std::fmt::Write as _;

/// Measurements of one thing, in the order they were taken.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Samples(Vec<f64>);

impl Samples {
    /// Adds one.
    pub fn push(&mut self, value: f64) {
        self.0.push(value);
    }

    /// One after the other.
    pub fn iter(&self) -> impl Iterator<Item = f64> + '_ {
        self.0.iter().copied()
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.0.len()
    }

    /// All of them added up.
    pub fn sum(&self) -> f64 {
        self.0.iter().sum()
    }

    /// The value that `percent` of all are not above: an actual sample, the nearest rank. None: there are none.
    pub fn percentile(&self, percent: u8) -> Option<f64> {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        let rank = (sorted.len() * usize::from(percent)).div_ceil(100).max(1);
        sorted.get(rank - 1).copied()
    }

    /// The middle one, or between the two middle ones. None: there are none.
    pub fn median(&self) -> Option<f64> {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        let middle = sorted.len() / 2;
        match sorted.len() {
            0 => None,
            odd if odd % 2 == 1 => Some(sorted[middle]),
            _ => Some(f64::midpoint(sorted[middle - 1], sorted[middle])),
        }
    }
}

impl FromIterator<f64> for Samples {
    fn from_iter<T: IntoIterator<Item = f64>>(values: T) -> Self {
        Self(values.into_iter().collect())
    }
}

/// Which number of many samples a figure is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Of {
    /// The median.
    Median,
    /// The 99th percentile by nearest rank: of fewer than 100 samples, the largest.
    P99,
    /// The largest.
    Max,
    /// All added up.
    Sum,
}

/// One result. Its fields are those of the JSON line, in this order.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Figure {
    /// The result's name.
    pub goal: &'static str,
    /// The value, in `unit`.
    pub value: f64,
    /// `ms`, `MB` (10^6 bytes), `bytes`, `count`, …
    pub unit: &'static str,
    /// What it should be, for example `<=1000`; absent where nothing is promised.
    pub target: Option<&'static str>,
    /// How many samples it was made of.
    pub n: usize,
    /// The seed of what was random; a cluster of real processes has none.
    pub seed: Option<u64>,
    /// In words, for people.
    #[serde(skip)]
    pub what: &'static str,
    /// Smallest and largest sample.
    #[serde(skip)]
    pub range: Option<(f64, f64)>,
}

impl Figure {
    /// A figure of these samples. None: there are no samples.
    pub fn new(
        goal: &'static str,
        what: &'static str,
        of: Of,
        samples: &Samples,
        unit: &'static str,
    ) -> Option<Self> {
        let value = match of {
            Of::Median => samples.median(),
            Of::P99 => samples.percentile(99),
            Of::Max => samples.percentile(100),
            Of::Sum => (samples.count() > 0).then(|| samples.sum()),
        }?;
        let range = samples.percentile(0).zip(samples.percentile(100));
        let n = samples.count();
        let value = rounded(value);
        Some(Self { goal, value, unit, target: None, n, seed: None, what, range })
    }

    /// The same with a target: `<=` or `>=` and a number.
    pub fn target(mut self, target: &'static str) -> Self {
        self.target = Some(target);
        self
    }

    /// Whether the target is met. None: there is none.
    pub fn met(&self) -> Option<bool> {
        let target = self.target?;
        match (target.strip_prefix("<="), target.strip_prefix(">=")) {
            (Some(most), _) => Some(self.value <= most.parse().ok()?),
            (_, Some(least)) => Some(self.value >= least.parse().ok()?),
            _ => None,
        }
    }

    /// The line for programs, without a line feed.
    pub fn json(&self) -> String {
        serde_json::to_string(self).expect("a figure has neither maps nor foreign types")
    }
}

/// To three places behind the point: nothing here is measured better.
fn rounded(value: f64) -> f64 {
    (value * 1000.0).round() / 1000.0
}

/// The table for people: as wide as it must be.
pub fn table(figures: &[Figure]) -> String {
    let mut rows = vec![["RESULT", "VALUE", "RANGE", "N", "TARGET", "WHAT"].map(String::from)];
    for figure in figures {
        let range = match figure.range {
            Some((least, most)) if figure.n > 1 => format!("{} .. {}", number(least), number(most)),
            _ => String::new(),
        };
        let target = figure.target.map_or_else(String::new, |target| {
            format!("{target} {}", if figure.met() == Some(true) { "met" } else { "MISSED" })
        });
        let value = format!("{} {}", number(figure.value), figure.unit);
        rows.push([figure.goal.into(), value, range, figure.n.to_string(), target, figure.what.into()]);
    }
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: [usize; 6] = std::array::from_fn(width);
    let mut text = String::new();
    for row in &rows {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(widths) {
            let _ = write!(line, "{cell:width$}  ");
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

/// With as many places as say something.
fn number(value: f64) -> String {
    match value.abs() {
        0.0 => "0".into(),
        small if small < 10.0 => format!("{value:.2}"),
        medium if medium < 1000.0 => format!("{value:.1}"),
        _ => format!("{value:.0}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn samples(values: &[f64]) -> Samples {
        values.iter().copied().collect()
    }

    #[test]
    fn the_median_lies_in_the_middle() {
        assert_eq!(samples(&[]).median(), None);
        assert_eq!(samples(&[3.0]).median(), Some(3.0));
        assert_eq!(samples(&[9.0, 1.0, 5.0]).median(), Some(5.0));
        assert_eq!(samples(&[4.0, 1.0, 2.0, 9.0]).median(), Some(3.0));
    }

    #[test]
    fn a_percentile_is_a_sample_that_was_taken() {
        let hundred: Samples = (1..=100).rev().map(f64::from).collect();
        assert_eq!(hundred.percentile(99), Some(99.0));
        assert_eq!(hundred.percentile(100), Some(100.0));
        assert_eq!(hundred.percentile(0), Some(1.0));
        let twenty: Samples = (1..=20).map(f64::from).collect();
        assert_eq!(twenty.percentile(99), Some(20.0));
        assert_eq!(twenty.percentile(50), Some(10.0));
        assert_eq!(samples(&[]).percentile(50), None);
    }

    #[test]
    fn a_json_line_has_the_fields_in_order() {
        let of = samples(&[410.5, 380.25, 502.0]);
        let figure = Figure::new("raft.failover.p50_ms", "words", Of::Median, &of, "ms").unwrap();
        assert_eq!(
            figure.target("<=1000").json(),
            r#"{"goal":"raft.failover.p50_ms","value":410.5,"unit":"ms","target":"<=1000","n":3,"seed":null}"#
        );
    }

    #[test]
    fn without_samples_there_is_no_figure() {
        assert_eq!(Figure::new("x", "words", Of::P99, &Samples::default(), "ms"), None);
        assert_eq!(Figure::new("x", "words", Of::Sum, &Samples::default(), "count"), None);
    }

    #[test]
    fn a_target_is_met_or_missed() {
        let figure = |value, target| {
            Figure::new("x", "words", Of::Median, &samples(&[value]), "ms").unwrap().target(target).met()
        };
        assert_eq!(figure(1000.0, "<=1000"), Some(true));
        assert_eq!(figure(1000.1, "<=1000"), Some(false));
        assert_eq!(figure(2.3, ">=2.2"), Some(true));
        assert_eq!(figure(0.0, "none"), None);
    }

    #[test]
    fn the_table_says_which_targets_are_missed() {
        let slow = Figure::new("node.loss.p99_ms", "slowest", Of::P99, &samples(&[3000.0, 4100.0]), "ms");
        let text = table(&[slow.unwrap().target("<=4000")]);
        let mut lines = text.lines();
        assert!(lines.next().unwrap().starts_with("RESULT"));
        let line = lines.next().unwrap();
        assert!(line.contains("4100 ms") && line.contains("3000 .. 4100"), "{line}");
        assert!(line.contains("<=4000 MISSED") && line.ends_with("slowest"), "{line}");
    }
}
