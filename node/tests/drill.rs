//! A drill on a lab of real nodes, as anyone would run it. All of them: `rswarm drill run --all`.

use std::{fs, path::Path, process::Command};

use anyhow::{Context, Result, ensure};
use rswarm_chaos::lab::{Lab, require_root};
use serde_json::Value;

/// Runs drills by the real binary on a lab of their own, and returns their reports.
fn drilled(names: &[&str]) -> Result<Option<Vec<Value>>> {
    if let Err(why) = require_root() {
        eprintln!("skipped: {why:#}");
        return Ok(None);
    }
    let base = Path::new(env!("CARGO_TARGET_TMPDIR")).join("drills");
    Lab::down(&base, "drill").context("what an earlier run left can be removed")?;
    let reports = tempfile::tempdir()?;
    let (json, html) = (reports.path().join("report.json"), reports.path().join("report.html"));
    let ran = Command::new(env!("CARGO_BIN_EXE_rswarm"))
        .args(["drill", "run", "--seed", "1", "--report"])
        .arg(&json)
        .arg("--report")
        .arg(&html)
        .args(names)
        .env("RSWARM_LAB_DIR", &base)
        .output()?;
    let told = format!("{}\n{}", String::from_utf8_lossy(&ran.stdout), String::from_utf8_lossy(&ran.stderr));
    ensure!(ran.status.success(), "a promise was not kept, or could not be tried:\n{told}");
    let page = fs::read_to_string(html)?;
    ensure!(
        page.contains("<svg") && names.iter().all(|name| page.contains(name)),
        "the page shows the drills"
    );
    ensure!(!base.join("drill").exists(), "the lab is removed");
    Ok(Some(serde_json::from_slice(&fs::read(json)?)?))
}

#[test]
fn a_lost_worker_costs_nothing_that_was_acknowledged() -> Result<()> {
    let names = ["worker-power-off"];
    let Some(reports) = drilled(&names)? else { return Ok(()) };
    ensure!(reports.len() == names.len(), "a report for each");
    for report in &reports {
        let value = |name: &str| {
            let lines = report["lines"].as_array().into_iter().flatten();
            lines
                .filter(|line| line["goal"].as_str().is_some_and(|goal| goal.ends_with(name)))
                .find_map(|line| line["value"].as_f64())
        };
        ensure!(value("writes_lost") == Some(0.0) && value("not_linearizable") == Some(0.0), "{report}");
        ensure!(value("writes_acknowledged").is_some_and(|count| count >= 20.0), "load flowed: {report}");
        for line in report["lines"].as_array().into_iter().flatten() {
            println!("{line}");
        }
    }
    Ok(())
}
