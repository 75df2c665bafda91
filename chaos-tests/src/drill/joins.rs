//! Many machines that come at once.

use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::site::until;
use super::stage::Scene;

/// So many join.
const NEW: u8 = 8;
const LONG: Duration = Duration::from_secs(90);

/// Has new nodes join all at once, gives them work, and sends them away again.
pub fn join_storm(scene: &mut Scene<'_>) -> Result<()> {
    let (site, askable) = (scene.site, scene.askable.clone());
    let there = site.nodes()?.len();
    let names = site.lab.grow(NEW)?;
    let done = storm(scene, there, &names);
    scene.note(&format!("{} leave", names.join(", ")));
    let gone = names.iter().try_for_each(|name| -> Result<()> {
        // One that has not joined has nothing to leave.
        let _ = site.act(name, &["leave", "--force"]);
        until(&format!("{name} is no node any more"), LONG, || {
            let known = site.ask_any(&askable, &["node", "ls", "--format", "{{.Hostname}}"])?;
            if known.lines().any(|node| node == name) {
                site.act(&askable[0], &["node", "rm", "--force", name])?;
            }
            Ok(())
        })
    });
    let shrunk = site.lab.shrink(&names);
    done.and(gone).and(shrunk)
}

fn storm(scene: &mut Scene<'_>, there: usize, names: &[String]) -> Result<()> {
    const NAME: &str = "drill-everywhere";
    let (site, askable) = (scene.site, scene.askable.clone());
    let since = scene.harm(&format!("{} join at once", names.join(", ")));
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    site.lab.join_at_once(&names)?;
    let all = there + names.len();
    until("all are ready", LONG, || {
        let ready = site.account(askable.first().context("there is no manager")?)?.ready.len();
        ensure!(ready == all, "{ready} of {all}");
        Ok(())
    })?;
    let took = scene.now() - since;
    scene.measure_time("all_ready_after", took, 5_000.0, 60_000.0);
    scene.note(&format!("all are ready after {took:.1?}"));
    let manager = scene.manager()?;
    site.act(
        &manager,
        &["service", "create", "--detach", "--name", NAME, "--mode", "global", "rswarm/demo"],
    )?;
    site.runs(&askable, NAME, all, LONG)?;
    let took = scene.now() - since;
    scene.note(&format!("they have work after {took:.1?}"));
    site.act(&manager, &["service", "rm", NAME])?;
    scene.failures(since, 0.0, 1.0);
    scene.restarts(&[])
}
