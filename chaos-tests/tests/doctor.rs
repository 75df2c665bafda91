//! What `network doctor` says of a cluster of real daemons whose links are cut.
//!
//! Needs root; skipped without it.

#[path = "machines/cluster.rs"]
#[allow(dead_code, reason = "shared with other stories, which use other parts of it")]
mod cluster;

use anyhow::{Context, Result, ensure};
use cluster::{Cluster, eventually, json_lines, story};
use serde_json::Value;

/// What is wrong on the way from one node to the other; `None` while they have no connection to speak of.
fn trouble(cluster: &Cluster, from: &str, to: &str) -> Result<Option<String>> {
    let nodes: Vec<Value> = json_lines(&cluster.ok("n1", &["network", "doctor", "--format", "json"])?)?;
    let node = nodes.iter().find(|node| node["Hostname"] == from).context("every node is told of")?;
    let peers = node["Peers"].as_array().context("peers")?;
    let peer = peers.iter().find(|peer| peer["Hostname"] == to);
    Ok(peer.and_then(|peer| peer["Trouble"].as_str()).map(str::to_owned))
}

#[test]
fn the_doctor_finds_a_cut_link() {
    story("doctor", 3, 1, |cluster| {
        cluster.create("n1", "web", &["--replicas", "3", "--publish", "8080:80", "--detach"])?;
        cluster.runs("n1", "web", 3, 20)?;
        eventually("nothing is in the way", 20, || {
            Ok(cluster.ok("n1", &["network", "doctor"])?.contains("Nothing is in the way."))
        })?;
        let text = cluster.ok("n1", &["network", "doctor"])?;
        ensure!(text.contains("FROM \\ TO") && text.contains(" ms"), "{text}");

        cluster.lab.cut("n2", "n3")?;
        cluster.lab.cut("n3", "n2")?;
        eventually("the cut is named, with what is not to blame", 20, || {
            let told = trouble(cluster, "n2", "n3")?.unwrap_or_default();
            Ok(told.contains("though the node answers the managers by TCP"))
        })?;
        ensure!(trouble(cluster, "n1", "n2")?.as_deref() == Some(""), "this link is whole");
        cluster.lab.heal()?;
        eventually("the link is whole again", 20, || {
            let told = trouble(cluster, "n2", "n3")?;
            ensure!(told.as_deref() == Some(""), "it is told {told:?}");
            Ok(true)
        })?;
        Ok(())
    });
}
