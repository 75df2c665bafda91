//! Clusters of real daemons that are lost as a whole, and made again from a backup.
//!
//! Needs root; skipped without it.

#[path = "machines/cluster.rs"]
#[allow(dead_code, reason = "shared with other stories, which use other parts of it")]
mod cluster;

use std::fs;
use std::os::unix::fs::PermissionsExt;

use anyhow::{Context, Result, ensure};
use cluster::{Cluster, container, eventually, story};

/// Stops a node's daemon and takes its membership away, as if the machine had been installed anew.
fn raze(cluster: &Cluster, node: &str) -> Result<()> {
    cluster.ok(node, &["leave", "--force"])?;
    cluster.lab.daemon_stop(node)?;
    let state = cluster.state(node);
    fs::remove_dir_all(&state)?;
    fs::create_dir_all(&state)?;
    cluster.lab.daemon_start(node)
}

/// The line that stands alone, indented, behind the words that announce it.
fn announced(said: &str, beginning: &str) -> Result<String> {
    let line = said.lines().map(str::trim).find(|line| line.starts_with(beginning));
    Ok(line.with_context(|| format!("{beginning} is not announced: {said}"))?.to_string())
}

#[test]
fn a_cluster_that_was_lost_as_a_whole_is_made_again_from_its_backup_on_another_machine() {
    story("backup", 4, 3, |cluster| {
        let base = cluster.lab.directory().to_owned();
        let place = |name: &str| base.join(name).to_string_lossy().into_owned();
        let (file, key) = (place("cluster.backup"), place("key"));
        cluster.create("n1", "web", &["--replicas", "2"])?;
        cluster.runs("n1", "web", 2, 20)?;

        // Any manager will do, a worker will not, and who cannot write leaves nothing.
        let leader = cluster.leader("n1")?;
        let follower = ["n1", "n2", "n3"].into_iter().find(|node| *node != leader).context("one follows")?;
        let refused = cluster.refused("n4", &["backup", "-o", &file])?;
        ensure!(refused.contains("on a manager"), "{refused}");
        let nowhere = cluster.refused("n1", &["backup", "-o", &place("no/such/place")])?;
        ensure!(nowhere.contains("cannot write"), "{nowhere}");
        cluster.write(&leader, "last")?;
        let said = cluster.ok(follower, &["backup", "-o", &file])?;
        ensure!(fs::metadata(&file)?.permissions().mode() & 0o777 == 0o600, "it is its owner's alone");
        fs::write(&key, announced(&said, "RSWKEY-1-")?)?;
        let left: Vec<_> = fs::read_dir(&base)?.flatten().map(|file| file.file_name()).collect();
        ensure!(!left.iter().any(|name| name.to_string_lossy().starts_with(".cluster")), "{left:?}");
        let restore = ["restore", &file, "--recovery-key-file", &key];
        let refused = cluster.refused("n1", &restore)?;
        ensure!(refused.contains("already part of a cluster"), "{refused}");
        cluster.write(&leader, "after-the-backup")?;

        // n4 was a worker, and is installed anew; the others are lost but for n2, which will come back.
        for node in ["n1", "n2", "n3"] {
            cluster.lab.kill(node)?;
        }
        raze(cluster, "n4")?;

        // Nothing comes of a file that was cut short, of another key, or of a newer version's file.
        let bytes = fs::read(&file)?;
        let (cut, other) = (place("cut.backup"), place("other-key"));
        fs::write(&cut, &bytes[..bytes.len() - 1])?;
        fs::write(&other, format!("RSWKEY-1-{:0>50}", "1"))?;
        let newer = concat!(env!("CARGO_MANIFEST_DIR"), "/../node/tests/data/backups/newer-version.backup");
        for (file, key, words) in [
            (cut.as_str(), key.as_str(), "cut short"),
            (&file, &other, "recovery key is not that of this backup"),
            (newer, &key, "written by rswarm 999.1.0"),
        ] {
            let refused = cluster.refused("n4", &["restore", file, "--recovery-key-file", key])?;
            ensure!(refused.contains(words), "{words} is not in: {refused}");
            let state = cluster.state("n4");
            ensure!(!state.join("identity.json").exists() && !state.join("raft.seat").exists(), "{words}");
            ensure!(cluster.ok("n4", &["status"])?.contains("not part of a cluster"), "{words}");
        }

        let said = cluster.ok("n4", &restore)?;
        ensure!(said.contains("incarnation 2") && said.contains("its only manager"), "{said}");
        ensure!(cluster.services("n4")? == ["last", "web"], "it is as it was then: {said}");
        eventually("the service runs again", 40, || {
            let now = cluster.running("n4", "web")?;
            ensure!(now.iter().all(|task| task.node == "n4"), "{}", cluster::told(&now));
            Ok(now.len() == 2)
        })?;

        // A machine with a fresh token.
        let address = format!("{}:2377", cluster.address("n4")?);
        cluster.lab.start("n3")?;
        raze(cluster, "n3")?;
        let token = cluster.ok("n4", &["join-token", "--rotate", "-q", "manager"])?;
        cluster.ok("n3", &["join", "--token", token.trim(), &address])?;
        cluster.write("n3", "by-the-new-one")?;

        // One of before, with all it remembers, which is no second truth.
        cluster.lab.start("n2")?;
        cluster.refused("n2", &["service", "create", "--detach", "rswarm/demo"])?;
        let said = cluster.ok("n2", &["rejoin", &address])?;
        ensure!(said.contains("as a manager"), "{said}");
        let refused = cluster.refused("n2", &["rejoin", "nonsense"])?;
        ensure!(refused.contains("not the address of a manager"), "{refused}");
        eventually("three managers vote", 20, || {
            Ok(cluster.ok("n2", &["status"])?.contains("3 of 3 managers"))
        })?;
        ensure!(cluster.services("n2")? == ["by-the-new-one", "last", "web"], "nothing of the old life");
        cluster.runs("n2", "web", 2, 30)?;
        Ok(())
    });
}

#[test]
fn a_worker_whose_managers_are_gone_rejoins_the_restored_cluster_with_what_it_runs() {
    story("rejoined", 3, 1, |cluster| {
        let base = cluster.lab.directory().to_owned();
        let place = |name: &str| base.join(name).to_string_lossy().into_owned();
        let (file, passphrase) = (place("cluster.backup"), place("passphrase"));
        fs::write(&passphrase, "a horse, a battery and a staple\n")?;
        cluster.create("n1", "web", &["--replicas", "3", "--constraint", "node.hostname!=n1"])?;
        let before = cluster.runs("n1", "web", 3, 20)?;
        let on_n2: Vec<_> = before.iter().filter(|task| task.node == "n2").cloned().collect();
        let own = on_n2.first().context("one runs on n2")?;
        let process = container(&own.id)?;
        cluster.ok("n1", &["backup", "-o", &file, "--passphrase-file", &passphrase])?;
        cluster.lab.kill("n1")?;
        raze(cluster, "n3")?;

        let restore = ["restore", &file, "--passphrase-file", &passphrase];
        let said = cluster.ok("n3", &restore)?;
        let rejoin = announced(&said, "rswarm rejoin ")?;
        let said = cluster.ok("n2", &rejoin.split(' ').skip(1).collect::<Vec<_>>())?;
        ensure!(said.contains("as a worker"), "{said}");
        cluster.runs("n3", "web", 3, 40)?;
        ensure!(container(&own.id)? == process, "what ran there runs on");
        // It has found the new managers for good.
        cluster.lab.daemon_kill("n2")?;
        cluster.lab.daemon_start("n2")?;
        eventually("n2 is ready", 20, || Ok(cluster.of_node("n3", "n2", "Status")? == "Ready"))?;
        ensure!(container(&own.id)? == process, "what ran there runs on");
        Ok(())
    });
}
