//! Updates under load: what becomes of every connection while the tasks are replaced, also when a node is lost in
//! the middle. What a lost node costs is told apart from what the update costs.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use super::Load;
use super::load::Shot;
use super::site::until;
use super::stage::{SERVICE, Scene};

/// Ten tasks that say when they can be asked, and 500 requests a second to their address.
pub const LOAD: Load = Load {
    replicas: 10,
    options: &[
        "--health-http",
        "/healthz:80",
        "--health-start-period",
        "20s",
        "--health-start-interval",
        "100ms",
    ],
    virtual_ip: 510,
    published: 40,
    write_pause: Duration::from_millis(400),
};

/// Requests a second that must at least have gone to the virtual IP.
const RATE: f64 = 500.0;
/// How long one update may take.
const UPDATE: Duration = Duration::from_secs(90);
/// So many tasks are new when the node is lost.
const MIDDLE: usize = 4;
const ORDERS: [&str; 2] = ["start-first", "stop-first"];

/// What a lost node took along.
struct Loss {
    /// From when on, and until when at the latest.
    from: Duration,
    to: Duration,
    /// Where connections of the probe came from that went to its tasks.
    ports: BTreeSet<u16>,
}

/// Two updates, one in each order.
pub fn undisturbed(scene: &mut Scene<'_>) -> Result<()> {
    let since = scene.now();
    for order in ORDERS {
        begin(scene, order)?;
        complete(scene, order)?;
    }
    account(scene, since, None);
    Ok(())
}

/// The same; in the middle of one of them a node loses power.
pub fn with_a_loss(scene: &mut Scene<'_>) -> Result<()> {
    let victim = scene.victims[0].clone();
    let since = scene.now();
    let struck = scene.chance(ORDERS.len());
    let mut loss = None;
    for (number, order) in ORDERS.into_iter().enumerate() {
        let begun = begin(scene, order)?;
        if number == struck {
            let (site, askable) = (scene.site, scene.askable.clone());
            until("some tasks are new", UPDATE, || {
                let tasks = site.tasks(&askable, SERVICE)?;
                let new = tasks.iter().filter(|task| task.runs() && !begun.contains(&task.id)).count();
                ensure!(new >= MIDDLE, "{new} of {MIDDLE}");
                Ok(())
            })?;
            loss = Some(strike(scene, &victim)?);
        }
        complete(scene, order)?;
    }
    account(scene, since, loss.as_ref());
    Ok(())
}

/// Asks for an update; returns the ids of the tasks there were.
fn begin(scene: &mut Scene<'_>, order: &str) -> Result<BTreeSet<String>> {
    let manager = scene.manager()?;
    let before = scene.site.tasks(&scene.askable, SERVICE)?.into_iter().map(|task| task.id).collect();
    scene.harm(&format!("an update begins, {order}"));
    let variable = format!("DRILL={order}");
    let words = [
        "service",
        "update",
        "--detach",
        "--update-parallelism",
        "2",
        "--update-monitor",
        "300ms",
        "--update-failure-action",
        "continue",
        "--update-order",
        order,
        "--env-add",
        &variable,
        SERVICE,
    ];
    scene.site.act(&manager, &words)?;
    Ok(before)
}

/// Waits until the update is through.
fn complete(scene: &mut Scene<'_>, order: &str) -> Result<()> {
    let began = scene.now();
    let (site, askable) = (scene.site, scene.askable.clone());
    let mut ended = None;
    until(&format!("the update, {order}, is completed"), UPDATE, || {
        let printed = site.ask_any(&askable, &["service", "inspect", SERVICE])?;
        let inspected: Value = serde_json::from_str(&printed).context("inspect is not JSON")?;
        let status = &inspected[0]["UpdateStatus"];
        match status["State"].as_str() {
            Some("completed") => Ok(()),
            Some("paused" | "rollback_started" | "rollback_paused" | "rollback_completed") => {
                ended = Some(status.to_string());
                Ok(())
            }
            _ => bail!("it is {status}"),
        }
    })?;
    if let Some(status) = ended {
        bail!("the update, {order}, has come to another end: {status}");
    }
    site.runs(&askable, SERVICE, scene.load.replicas, UPDATE)?;
    let took = scene.now() - began;
    scene.note(&format!("the update, {order}, is completed after {took:.1?}"));
    Ok(())
}

/// Takes a node's power, and finds out which connections went to its tasks.
fn strike(scene: &mut Scene<'_>, victim: &str) -> Result<Loss> {
    let addresses: BTreeSet<IpAddr> = scene.site.addresses_on(victim)?;
    let from = scene.harm(&format!("{victim} loses power"));
    scene.site.lab.kill(victim)?;
    let to = scene.now();
    // Before it is noticed that the node is gone; then what is tracked is forgotten.
    let ports = scene.ports_into(&addresses)?;
    Ok(Loss { from, to, ports })
}

/// What became of the requests.
fn account(scene: &mut Scene<'_>, since: Duration, loss: Option<&Loss>) {
    let (mut failed, mut cut) = (0, 0);
    let until = scene.now();
    scene.settle();
    for way in ["virtual IP", "published port"] {
        let sent = |shot: &Shot| (since..=until).contains(&shot.at);
        let shots: Vec<Shot> = scene.shots(way).into_iter().filter(sent).collect();
        let seconds = (until - since).as_secs_f64();
        let rate = shots.len() as f64 / seconds.max(0.001);
        scene.measure(&format!("{}_rate", way.replace(' ', "_")), rate, "per s", None, None);
        if way == "virtual IP" {
            scene.expect(rate >= RATE, format!("{rate:.0} requests a second went to the {way}, not {RATE}"));
        }
        for shot in shots.iter().filter(|shot| !shot.ok) {
            // A published port is served by a daemon, of whose connections nobody else keeps account.
            let inside = loss.is_some_and(|loss| {
                shot.was_open(loss.from, loss.to)
                    && (way == "published port" || loss.ports.contains(&shot.port))
            });
            if inside {
                cut += 1;
            } else {
                failed += 1;
                scene.note(&format!(
                    "a request to the {way} failed that was sent at {:.3} s, {}, after {:.0} ms",
                    shot.at.as_secs_f64(),
                    if shot.opened.is_some() { "connected" } else { "not connected" },
                    shot.took.as_secs_f64() * 1e3
                ));
            }
        }
    }
    scene.measure_as("update.failed_requests".into(), f64::from(failed), "count", Some(0.0), Some(0.0));
    if loss.is_some() {
        scene.measure("cut_by_the_loss", f64::from(cut), "count", None, None);
    }
}
