//! What a cluster uses while it has nothing to do: memory, writes to disk, processor time.

use super::figure::{Figure, Of, Samples};
use super::process::{Usage, usage};
use super::{demo_service, note, site::Site};
use anyhow::{Context, Result};
use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, SystemTime};

const SERVICE: &str = "bench-idle";
/// One to a node.
const REPLICAS: u32 = 4;
/// What follows the last change, such as reports and their compaction, gets this long to end.
const SETTLE: Duration = Duration::from_secs(5);

/// Leaves the cluster alone for `seconds`, and sees what it used.
pub async fn run(site: &Site, seconds: u64) -> Result<Vec<Figure>> {
    let leader = site.whole().await?;
    site.create(&leader, &demo_service(SERVICE, REPLICAS)).await?;
    site.runs(&leader, SERVICE, REPLICAS).await?;
    tokio::time::sleep(SETTLE).await;

    let before = look(site)?;
    let files = files(site)?;
    note(&format!("idle for {seconds} s"));
    tokio::time::sleep(Duration::from_secs(seconds)).await;
    let after = look(site)?;
    let changed: Vec<String> = self::files(site)?
        .into_iter()
        .filter(|(path, stamp)| files.get(path) != Some(stamp))
        .map(|(path, _)| path)
        .collect();
    for path in &changed {
        note(&format!("changed while idle: {path}"));
    }

    let mut shims = Samples::default();
    let mut shims_private = Samples::default();
    for shim in site.names().iter().flat_map(|name| site.shims(name)) {
        let used = usage(shim)?;
        shims.push(used.rss_bytes as f64 / 1024.0);
        shims_private.push(used.private_bytes as f64 / 1024.0);
    }
    site.remove(&leader, SERVICE).await?;

    let of = |nodes: &[String], value: &dyn Fn(&Usage, &Usage) -> f64| -> Samples {
        nodes.iter().map(|name| value(&before[name], &after[name])).collect()
    };
    let worker = [site.worker().to_owned()];
    let rss = |_: &Usage, after: &Usage| after.rss_bytes as f64 / 1e6;
    let private = |_: &Usage, after: &Usage| after.private_bytes as f64 / 1e6;
    let written = |before: &Usage, after: &Usage| (after.written_bytes - before.written_bytes) as f64;
    // Of one processor: a tick is a hundredth of a second wherever Linux runs today.
    let cpu = |before: &Usage, after: &Usage| (after.ticks - before.ticks) as f64 / seconds.max(1) as f64;
    let per_minute: Samples =
        [of(site.names(), &written).sum() * 60.0 / seconds.max(1) as f64].into_iter().collect();
    let files: Samples = [changed.len() as f64].into_iter().collect();
    let figures = [
        Figure::new("rss.manager_mb", "daemon of a manager, idle", Of::Max, &of(site.managers(), &rss), "MB"),
        Figure::new("rss.worker_mb", "daemon of a worker, idle", Of::Max, &of(&worker, &rss), "MB"),
        Figure::new(
            "private.manager_mb",
            "of it, shared with no other process",
            Of::Max,
            &of(site.managers(), &private),
            "MB",
        ),
        Figure::new("private.worker_mb", "the same of a worker", Of::Max, &of(&worker, &private), "MB"),
        Figure::new("exec.shim_rss_kb", "a container's shim", Of::Median, &shims, "kB"),
        Figure::new(
            "exec.shim_private_kb",
            "of it, shared with no other process",
            Of::Median,
            &shims_private,
            "kB",
        ),
        Figure::new("idle.disk_bytes_60s", "written by all four daemons", Of::Sum, &per_minute, "bytes")
            .map(|figure| figure.target("<=0")),
        Figure::new("idle.files_changed", "files of their state that changed", Of::Sum, &files, "count")
            .map(|figure| figure.target("<=0")),
        Figure::new("idle.cpu.manager_percent", "of one processor", Of::Max, &of(site.managers(), &cpu), "%"),
        Figure::new("idle.cpu.worker_percent", "of one processor", Of::Max, &of(&worker, &cpu), "%"),
    ];
    Ok(figures.into_iter().flatten().collect())
}

/// What each daemon has used.
fn look(site: &Site) -> Result<BTreeMap<String, Usage>> {
    site.names().iter().map(|name| Ok((name.clone(), usage(site.daemon(name)?)?))).collect()
}

/// Every file of the nodes' state, without what containers write, with its size and last change.
fn files(site: &Site) -> Result<BTreeMap<String, (u64, SystemTime)>> {
    let mut found = BTreeMap::new();
    for name in site.names() {
        let state = site.state(name);
        walk(Path::new(&state), &mut found).with_context(|| format!("cannot look through {state}"))?;
    }
    Ok(found)
}

fn walk(directory: &Path, found: &mut BTreeMap<String, (u64, SystemTime)>) -> std::io::Result<()> {
    for entry in std::fs::read_dir(directory)? {
        let entry = entry?;
        let kind = entry.file_type()?;
        if kind.is_dir() {
            // Images do not change by themselves and are many files; containers are not the daemon's.
            if entry.file_name() != "images" && entry.file_name() != "containers" {
                walk(&entry.path(), found)?;
            }
        } else if kind.is_file() {
            let metadata = entry.metadata()?;
            found.insert(entry.path().display().to_string(), (metadata.len(), metadata.modified()?));
        }
    }
    Ok(())
}
