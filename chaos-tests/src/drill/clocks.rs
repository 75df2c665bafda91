//! What is done to clocks: set wrong while they are in use, and gone past the end of certificates.

use std::collections::BTreeMap;
use std::fs;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::machines::{LONG, expect_lead, moved, wanted};
use super::site::until;
use super::stage::Scene;

const MINUTE: i64 = 60_000;
const DAY: i64 = 24 * 60 * MINUTE;

/// Sets the clocks of the leader and of a worker wrong, one way and the other.
pub fn clock_jump(scene: &mut Scene<'_>) -> Result<()> {
    // Certificates are valid from an hour before they were made.
    const JUMP: i64 = 45 * MINUTE;
    const WATCHED: Duration = Duration::from_secs(5);
    let wrong = scene.victims.clone();
    expect_lead(scene, &wrong[0])?;
    let (site, before, nodes) = (scene.site, wanted(scene)?, scene.site.nodes()?.len());
    let term = site.account(&scene.manager()?)?.term;
    let (mut given_up, mut first) = (0, None);
    for (ahead, words) in [(JUMP, "forward"), (-JUMP, "back")] {
        let since = scene.harm(&format!("the clocks of {} go 45 minutes {words}", wrong.join(" and ")));
        first = first.or(Some(since));
        for node in &wrong {
            site.lab.set_clock(node, ahead)?;
        }
        while scene.now() - since < WATCHED {
            if let Ok(account) = site.account(&scene.manager()?) {
                given_up += nodes.saturating_sub(account.ready.len());
            }
            thread::sleep(Duration::from_millis(200));
        }
        let told =
            site.act(&scene.manager()?, &["network", "doctor"]).unwrap_or_else(|error| format!("{error:#}"));
        scene.expect(
            told.contains("its clock is"),
            format!("no clock is found wrong: the fault was not injected: {told}"),
        );
        // New connections between clocks that disagree, and containers found again.
        let worker = &wrong[1];
        site.lab.daemon_kill(worker)?;
        site.lab.daemon_start(worker)?;
        site.whole(LONG)?;
        scene.flows(20)?;
    }
    let since = first.context("no clock was set")?;
    let terms = site.account(&scene.manager()?)?.term - term;
    scene.measure("seen_not_ready", given_up as f64, "count", Some(0.0), Some(0.0));
    let moved = moved(scene, &before)?;
    scene.measure("tasks_replaced", moved as f64, "count", Some(0.0), Some(0.0));
    scene.measure("new_terms", terms as f64, "count", Some(0.0), None);
    scene.failures(since, 0.0, 1.0);
    scene.restarts(&[])
}

/// Lets all clocks go on by months, so that certificates have to be renewed, and then past the end of the first ones.
pub fn certificate_expiry(scene: &mut Scene<'_>) -> Result<()> {
    // They are valid for 90 days, and renewed after 72 at the latest.
    const DUE: i64 = 80 * DAY;
    const OVER: i64 = 95 * DAY;
    let first = certificates(scene)?;
    let begun = scene.now();
    set_all(scene, DUE, "80 days later")?;
    restart_each(scene)?;
    let mut second = BTreeMap::new();
    until("all certificates are renewed", LONG, || {
        second = certificates(scene)?;
        let old: Vec<&String> = first
            .iter()
            .filter(|(node, cert)| second.get(*node) == Some(cert))
            .map(|(node, _)| node)
            .collect();
        ensure!(old.is_empty(), "those of {old:?} are not");
        Ok(())
    })?;
    let took = scene.now() - begun;
    scene.measure_time("renewed_after", took, 30_000.0, 120_000.0);
    set_all(scene, OVER, "95 days later; the first certificates are no longer valid")?;
    restart_each(scene)?;
    scene.flows(20)?;
    scene.failures_inside(begun, 0.0, 1.0);
    scene.restarts(&[])
}

fn set_all(scene: &mut Scene<'_>, ahead: i64, words: &str) -> Result<()> {
    scene.harm(&format!("all clocks say that it is {words}"));
    scene.site.nodes()?.iter().try_for_each(|node| scene.site.lab.set_clock(node, ahead))
}

/// All connections are made anew.
fn restart_each(scene: &mut Scene<'_>) -> Result<()> {
    for node in scene.site.nodes()? {
        scene.site.lab.daemon_stop(&node)?;
        scene.site.lab.daemon_start(&node)?;
        scene.site.whole(LONG).with_context(|| format!("after a restart of the daemon of {node}"))?;
    }
    Ok(())
}

/// The certificate of each node, as it lies on its disk.
fn certificates(scene: &Scene<'_>) -> Result<BTreeMap<String, String>> {
    let of = |node: String| {
        let path = scene.site.lab.directory().join(&node).join("state/identity.json");
        let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let identity: Value =
            serde_json::from_str(&text).with_context(|| format!("not JSON: {}", path.display()))?;
        let cert = identity["cert_pem"].as_str().context("an identity without a certificate")?;
        Ok((node, cert.to_owned()))
    };
    scene.site.nodes()?.into_iter().map(of).collect()
}
