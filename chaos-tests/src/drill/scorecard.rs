//! The scorecard: what was promised and what was measured, over all trials, as a page that nobody types.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use anyhow::{Context, Result};
use serde::Deserialize;

use super::result::{Report, Verdict};

/// What many reports have come to.
#[derive(Debug, Default)]
pub struct Trials {
    drills: BTreeMap<String, Drilled>,
    commits: BTreeSet<String>,
    machines: BTreeSet<String>,
}

#[derive(Debug, Default)]
struct Drilled {
    promise: String,
    trials: usize,
    failed: usize,
    seeds: BTreeSet<u64>,
    results: BTreeMap<String, Measured>,
}

#[derive(Debug, Default)]
struct Measured {
    values: Vec<f64>,
    unit: String,
    target: Option<f64>,
}

impl Trials {
    /// Counts one more.
    pub fn add(&mut self, report: &Report) {
        let line = |line: &super::Line| Written {
            goal: line.goal.clone(),
            value: line.value,
            unit: line.unit.to_owned(),
            target: line.target,
            seed: line.seed,
            commit: line.commit.clone(),
        };
        self.count(Told {
            drill: report.drill.to_owned(),
            promise: report.promise.to_owned(),
            verdict: report.verdict.clone(),
            machine: report.machine.clone(),
            lines: report.lines.iter().map(line).collect(),
        });
    }

    /// Counts those of a report that was written as JSON.
    ///
    /// # Errors
    /// If it is none.
    pub fn read(&mut self, json: &str) -> Result<()> {
        let told: Vec<Told> = serde_json::from_str(json).context("this is no report of drills")?;
        told.into_iter().for_each(|told| self.count(told));
        Ok(())
    }

    fn count(&mut self, told: Told) {
        let drilled = self.drills.entry(told.drill).or_default();
        drilled.promise = told.promise;
        drilled.trials += 1;
        drilled.failed += usize::from(told.verdict != Verdict::Passed);
        self.machines.insert(told.machine);
        for line in told.lines {
            self.commits.insert(line.commit);
            drilled.seeds.insert(line.seed);
            let measured = drilled.results.entry(line.goal).or_default();
            measured.values.push(line.value);
            (measured.unit, measured.target) = (line.unit, line.target);
        }
    }
}

/// What counts of a report.
#[derive(Debug, Deserialize)]
struct Told {
    drill: String,
    promise: String,
    verdict: Verdict,
    /// Reports of earlier versions do not tell.
    #[serde(default = "unknown")]
    machine: String,
    lines: Vec<Written>,
}

fn unknown() -> String {
    "a machine that is not told".into()
}

/// What counts of a result.
#[derive(Debug, Deserialize)]
struct Written {
    goal: String,
    value: f64,
    unit: String,
    target: Option<f64>,
    seed: u64,
    commit: String,
}

/// The page.
pub fn render(trials: &Trials) -> String {
    let mut text = "# Scorecard\n\nWritten by `rswarm drill run --all`, never by hand. Each row is one thing \
                    measured in a drill: the median and the largest of all trials beside what it should be at most.\n"
        .to_owned();
    let listed = |all: &BTreeSet<String>| all.iter().cloned().collect::<Vec<_>>().join(", ");
    let _ = writeln!(text, "\nCommit {}.", listed(&trials.commits));
    let _ =
        writeln!(text, "Measured on: {}.\n", trials.machines.iter().cloned().collect::<Vec<_>>().join("; "));
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
            machine: "two processors".into(),
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

        // Those that were written down count as well.
        let failed = report(1200.0, Verdict::Failed(vec!["it broke".into()]));
        trials.read(&serde_json::to_string(&[failed]).unwrap()).unwrap();
        assert!(trials.read("{}").is_err());
        let page = render(&trials);
        assert!(page.contains("**no**, 1 failed") && page.contains("**missed**"), "{page}");
        assert!(page.contains("Commit abc.") && page.contains("Measured on: two processors."), "{page}");
    }
}
