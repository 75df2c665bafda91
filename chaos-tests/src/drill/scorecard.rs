//! The scorecard: what was promised and what was measured, over all trials, as a page that nobody types.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use super::result::{Report, Verdict};

/// What many reports have come to.
#[derive(Debug, Default)]
pub struct Trials {
    drills: BTreeMap<&'static str, Drilled>,
    commit: String,
}

#[derive(Debug, Default)]
struct Drilled {
    promise: &'static str,
    trials: usize,
    failed: usize,
    seeds: BTreeSet<u64>,
    results: BTreeMap<String, Measured>,
}

#[derive(Debug, Default)]
struct Measured {
    values: Vec<f64>,
    unit: &'static str,
    target: Option<f64>,
}

impl Trials {
    /// Counts one more.
    pub fn add(&mut self, report: &Report) {
        let drilled = self.drills.entry(report.drill).or_default();
        drilled.promise = report.promise;
        drilled.trials += 1;
        drilled.failed += usize::from(matches!(report.verdict, Verdict::Failed(_)));
        for line in &report.lines {
            self.commit.clone_from(&line.commit);
            drilled.seeds.insert(line.seed);
            let measured = drilled.results.entry(line.goal.clone()).or_default();
            measured.values.push(line.value);
            (measured.unit, measured.target) = (line.unit, line.target);
        }
    }
}

/// The page.
pub fn render(trials: &Trials) -> String {
    let mut text = "# Scorecard\n\nWritten by `rswarm drill run --all`, never by hand. Each row is one thing \
                    measured in a drill: the median and the largest of all trials beside what it should be at most.\n"
        .to_owned();
    let _ = writeln!(text, "\nCommit `{}`.\n", trials.commit);
    text.push_str("| drill | promise | kept | trials | seeds |\n|---|---|---|---|---|\n");
    for (name, drilled) in &trials.drills {
        let kept =
            if drilled.failed == 0 { "yes".to_owned() } else { format!("**no**, {} failed", drilled.failed) };
        let seeds: Vec<String> = drilled.seeds.iter().map(u64::to_string).collect();
        let _ = writeln!(
            text,
            "| {name} | {} | {kept} | {} | {} |",
            drilled.promise,
            drilled.trials,
            seeds.join(", ")
        );
    }
    text.push_str("\n| result | target | median | largest | unit | n |\n|---|---|---|---|---|---|\n");
    for (goal, measured) in trials.drills.values().flat_map(|drilled| &drilled.results) {
        let mut values = measured.values.clone();
        values.sort_by(f64::total_cmp);
        let (middle, largest) = (values[values.len() / 2], values[values.len() - 1]);
        let target = match measured.target {
            None => "-".to_owned(),
            Some(target) if largest <= target => format!("≤ {target}"),
            Some(target) => format!("≤ {target}, **missed**"),
        };
        let _ = writeln!(
            text,
            "| {goal} | {target} | {} | {} | {} | {} |",
            rounded(middle),
            rounded(largest),
            measured.unit,
            values.len()
        );
    }
    text
}

fn rounded(value: f64) -> f64 {
    (value * 100.0).round() / 100.0
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::drill::result::Line;

    fn report(value: f64, verdict: Verdict) -> Report {
        let line = Line {
            goal: "leader-kill.writable_after".into(),
            value,
            unit: "ms",
            target: Some(1000.0),
            limit: None,
            seed: 7,
            commit: "abc".into(),
        };
        Report {
            drill: "leader-kill",
            promise: "Writes go on.",
            verdict,
            lines: vec![line],
            timeline: Vec::new(),
            samples: Vec::new(),
            requests: BTreeMap::new(),
            errors: BTreeMap::new(),
        }
    }

    #[test]
    fn a_failure_and_a_missed_target_are_seen() {
        let mut trials = Trials::default();
        for value in [400.0, 700.0, 500.0] {
            trials.add(&report(value, Verdict::Passed));
        }
        let page = render(&trials);
        assert!(page.contains("| leader-kill | Writes go on. | yes | 3 | 7 |"), "{page}");
        assert!(page.contains("| leader-kill.writable_after | ≤ 1000 | 500 | 700 | ms | 3 |"), "{page}");

        trials.add(&report(1200.0, Verdict::Failed(vec!["it broke".into()])));
        let page = render(&trials);
        assert!(page.contains("**no**, 1 failed") && page.contains("**missed**"), "{page}");
    }
}
