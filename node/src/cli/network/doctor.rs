//! `rswarm network doctor`

use crate::cli::context::Context;
use crate::cli::failure::refused;
use crate::cli::output::value::{Struct, Value};
use crate::cli::output::{inspect, table};
use anyhow::Result;
use rswarm_proto::v1 as pb;
use std::collections::BTreeMap;
use std::fmt::Write as _;

/// Measure how the nodes reach each other over the overlay, and say what is in the way
#[derive(Debug, clap::Args)]
pub struct Doctor {
    /// `json`, or a template such as '{{.Node}} {{.Trouble}}'
    #[arg(short, long, value_name = "FORMAT")]
    format: Option<String>,
}

impl Doctor {
    /// Carries the command out.
    ///
    /// # Errors
    /// If there is no leader.
    pub async fn run(self, cx: &mut Context) -> Result<()> {
        let mut client = cx.client().await?;
        let report = client.insight.doctor(pb::DoctorRequest {}).await;
        let mut report = report.map_err(|status| refused(&status))?.into_inner();
        report.nodes.sort_by(|a, b| a.hostname.cmp(&b.hostname).then_with(|| a.node.cmp(&b.node)));
        let text = match self.format {
            Some(format) => {
                let nodes: Vec<Value> = report.nodes.iter().map(|node| view(node).into()).collect();
                inspect::print(&nodes, Some(&format))?
            }
            None => render(&report)?,
        };
        cx.out.write_all(text.as_bytes())?;
        Ok(())
    }
}

/// Round trips as a matrix, then what is wrong.
fn render(report: &pb::DoctorReport) -> Result<String> {
    let mut matrix = "FROM \\ TO".to_owned();
    for node in &report.nodes {
        write!(matrix, "\t{}", node.hostname)?;
    }
    matrix.push('\n');
    let mut troubles = String::new();
    for node in &report.nodes {
        if !node.trouble.is_empty() {
            writeln!(troubles, "\n{}: {}", node.hostname, node.trouble)?;
        }
        let peers: BTreeMap<&str, &pb::PairReport> =
            node.peers.iter().filter_map(|pair| Some((pair.peer.as_ref()?.node.as_str(), pair))).collect();
        matrix += &node.hostname;
        for other in &report.nodes {
            let cell = if other.node == node.node {
                "·".to_owned()
            } else {
                peers.get(other.node.as_str()).map_or_else(|| "-".to_owned(), |pair| cell(pair))
            };
            write!(matrix, "\t{cell}")?;
        }
        matrix.push('\n');
        for pair in node.peers.iter().filter(|pair| !pair.trouble.is_empty()) {
            writeln!(troubles, "\n{} to {}: {}", node.hostname, pair.hostname, pair.trouble)?;
        }
    }
    let mut text = table::align(&matrix);
    text += if troubles.is_empty() { "\nNothing is in the way.\n" } else { &troubles };
    text += "\nRound trips; `-` are two nodes that have nothing to say to each other, `!` is trouble.\n";
    Ok(text)
}

fn cell(pair: &pb::PairReport) -> String {
    let Some(peer) = &pair.peer else { return "-".to_owned() };
    let mark = if pair.trouble.is_empty() { "" } else { "!" };
    if !peer.connected || peer.suspect || (peer.asked > 0 && peer.answered == 0) {
        return format!("{mark}silent");
    }
    let micros = peer.rtt_us;
    format!("{mark}{}.{:02} ms", micros / 1000, micros % 1000 / 10)
}

fn view(node: &pb::NodeReport) -> Struct {
    let peers = node.peers.iter().filter_map(|pair| {
        let peer = pair.peer.as_ref()?;
        Some(
            Struct::new("peer")
                .with("Addr", &peer.addr)
                .with("Answered", peer.answered)
                .with("Asked", peer.asked)
                .with("Connected", peer.connected)
                .with("Error", &peer.error)
                .with("Hostname", &pair.hostname)
                .with("ID", &peer.node)
                .with("PacketMax", peer.packet_max)
                .with("PacketsLost", peer.packets_lost)
                .with("PacketsSent", peer.packets_sent)
                .with("RoundTripMicros", peer.rtt_us)
                .with("SilentMillis", peer.silent_ms)
                .with("Suspect", peer.suspect)
                .with("Trouble", &pair.trouble)
                .into(),
        )
    });
    Struct::new("node")
        .with("Hostname", &node.hostname)
        .with("ID", &node.node)
        .with("Peers", Value::List(peers.collect()))
        .with("Trouble", &node.trouble)
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::expect;

    #[test]
    fn a_matrix_and_what_is_wrong() {
        let pair = |to: &str, rtt_us, trouble: &str| pb::PairReport {
            peer: Some(pb::OverlayPeer {
                node: to.into(),
                connected: true,
                rtt_us,
                asked: 5,
                answered: if trouble.is_empty() { 5 } else { 0 },
                ..Default::default()
            }),
            hostname: to.into(),
            trouble: trouble.into(),
        };
        let node = |name: &str, peers| pb::NodeReport {
            node: name.into(),
            hostname: name.into(),
            peers,
            ..Default::default()
        };
        let report = pb::DoctorReport {
            nodes: vec![
                node("n1", vec![pair("n2", 310, ""), pair("n3", 0, "no packet comes")]),
                node("n2", vec![pair("n1", 1280, "")]),
                node("n3", vec![]),
            ],
        };
        expect![[r#"
            FROM \ TO   n1        n2        n3
            n1          ·         0.31 ms   !silent
            n2          1.28 ms   ·         -
            n3          -         -         ·

            n1 to n3: no packet comes

            Round trips; `-` are two nodes that have nothing to say to each other, `!` is trouble.
        "#]]
        .assert_eq(&render(&report).expect("it renders"));
    }
}
