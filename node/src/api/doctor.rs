//! How the nodes reach each other over the overlay: the leader asks each of them, and says what is in the way.

use super::control::Control;
use crate::manager::clock;
use crate::rpc::dial::Line;
use futures_util::{StreamExt, stream};
use rswarm_control::model::{Node, NodeStatus};
use rswarm_proto::v1 as pb;
use rswarm_proto::v1::agent_client::AgentClient;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tonic::Status;

/// Nodes asked at once.
const AT_ONCE: usize = 64;
/// How long one node may take to answer.
const PATIENCE: Duration = Duration::from_secs(5);
/// Clocks further apart than this are told of, in milliseconds: certificates and events go by them.
const CLOCKS_APART_MS: u64 = 2000;
/// More than this share of lost packets is told of, in thousandths.
const LOSS_PER_MILLE: u64 = 5;
/// Of fewer packets nothing is concluded.
const PACKETS_MIN: u64 = 100;
/// So many questions a node asks another to which packets were lost; if all are answered, that is over.
pub const IN_DOUBT: u32 = 50;

/// Whether so many lost packets of those that were sent are more than a link loses.
pub fn loses(lost: u64, sent: u64) -> bool {
    sent >= PACKETS_MIN && lost.saturating_mul(1000) / sent > LOSS_PER_MILLE
}

/// A node as the leader knows it.
struct Asked {
    node: Arc<Node>,
    /// What it said, with the leader's clock at that moment.
    said: Result<(pb::PeersAnswer, u64), String>,
}

impl Control {
    /// Asks all nodes that should be there.
    pub(super) async fn examine(&self) -> Result<pb::DoctorReport, Status> {
        let state = self.fresh().await?;
        let dialer = self.dialer()?;
        let nodes: Vec<Arc<Node>> =
            state.nodes().filter(|node| node.status != NodeStatus::Left).cloned().collect();
        let asked = nodes.into_iter().map(|node| {
            let dialer = dialer.clone();
            async move {
                let said = async {
                    let channel = dialer.channel(&node.id.to_string(), &node.addr, Line::Bulk);
                    let channel = channel.map_err(|error| format!("{error:#}"))?;
                    let mut agent = AgentClient::new(channel);
                    let answer = tokio::time::timeout(PATIENCE, agent.peers(pb::PeersRequest {})).await;
                    let answer = answer.map_err(|_| format!("no answer in {} s", PATIENCE.as_secs()))?;
                    let answer = answer.map_err(|status| unanswered(&status))?.into_inner();
                    // It reads its clock last.
                    Ok((answer, clock::now().0))
                };
                let said = said.await;
                Asked { node, said }
            }
        });
        let asked: Vec<Asked> = stream::iter(asked).buffered(AT_ONCE).collect().await;
        let mtu = state.networks().map(|network| network.mtu).max().unwrap_or(0);
        Ok(report(&asked, mtu))
    }
}

fn unanswered(status: &Status) -> String {
    match status.code() {
        tonic::Code::Unimplemented => "it runs an older version that cannot tell".to_owned(),
        _ => status.message().to_owned(),
    }
}

fn report(asked: &[Asked], mtu: u32) -> pb::DoctorReport {
    let known: BTreeMap<String, &Asked> =
        asked.iter().map(|asked| (asked.node.id.to_string(), asked)).collect();
    let nodes = asked.iter().map(|asked| {
        let mut told = pb::NodeReport {
            node: asked.node.id.to_string(),
            hostname: asked.node.hostname.clone(),
            ..Default::default()
        };
        match &asked.said {
            Err(why) => {
                told.trouble = format!(
                    "does not answer the managers at {}: {why}\nhelp: is the machine on, and `rswarm daemon` running there?",
                    asked.node.addr
                );
            }
            Ok((answer, now)) => {
                told.trouble = clock_trouble(answer.at_ms, *now);
                told.peers = answer.peers.iter().map(|peer| pair(peer, &known, mtu)).collect();
            }
        }
        told
    });
    pb::DoctorReport { nodes: nodes.collect() }
}

fn clock_trouble(its: u64, ours: u64) -> String {
    let apart = its.abs_diff(ours);
    if apart < CLOCKS_APART_MS {
        return String::new();
    }
    let side = if its > ours { "ahead of" } else { "behind" };
    format!(
        "its clock is {}.{} s {side} the leader's\nhelp: run a time service (chrony, systemd-timesyncd) on both",
        apart / 1000,
        apart % 1000 / 100
    )
}

fn pair(peer: &pb::OverlayPeer, known: &BTreeMap<String, &Asked>, mtu: u32) -> pb::PairReport {
    let other = known.get(&peer.node);
    let answers = other.is_some_and(|other| other.said.is_ok());
    pb::PairReport {
        peer: Some(peer.clone()),
        hostname: other.map(|other| other.node.hostname.clone()).unwrap_or_default(),
        trouble: pair_trouble(peer, answers, mtu),
    }
}

/// What is wrong between two nodes. `answers`: the other one answers the managers.
fn pair_trouble(peer: &pb::OverlayPeer, answers: bool, mtu: u32) -> String {
    let addr = &peer.addr;
    let refused = peer.error.contains("certificate");
    if refused && !(peer.connected && peer.answered > 0) {
        return format!(
            "the certificate is refused: {}\nhelp: compare both clocks; a node that was removed has to join again",
            peer.error
        );
    }
    if !peer.connected || peer.suspect || (peer.asked > 0 && peer.answered == 0) {
        let silent = peer.silent_ms;
        return if answers {
            format!(
                "no packet comes from UDP {addr} for {silent} ms, though the node answers the managers by TCP\nhelp: let UDP to {addr} and back through every firewall on the way"
            )
        } else {
            format!("silent for {silent} ms, and does not answer the managers either: it is down, or cut off")
        };
    }
    let is_over = peer.asked >= IN_DOUBT;
    if peer.answered < peer.asked || (!is_over && loses(peer.packets_lost, peer.packets_sent)) {
        return format!(
            "packets are lost: {} of {} since the connection was made, {} of {} questions just now unanswered\nhelp: look at both machines' links (`ip -s link`) and at what is between",
            peer.packets_lost,
            peer.packets_sent,
            peer.asked.saturating_sub(peer.answered),
            peer.asked
        );
    }
    if peer.packet_max > 0 && peer.packet_max < mtu {
        return format!(
            "the path carries packets of {} bytes, but a network has an MTU of {mtu}: larger ones are refused by ICMP\nhelp: raise the MTU of the links between, or make networks with `--mtu {}`",
            peer.packet_max, peer.packet_max
        );
    }
    String::new()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn well() -> pb::OverlayPeer {
        pb::OverlayPeer {
            addr: "192.0.2.1:2377".into(),
            connected: true,
            rtt_us: 200,
            packet_max: 1410,
            packets_sent: 1000,
            asked: 5,
            answered: 5,
            ..Default::default()
        }
    }

    #[test]
    fn each_trouble_is_named() {
        let told = |change: fn(&mut pb::OverlayPeer), answers| {
            let mut peer = well();
            change(&mut peer);
            pair_trouble(&peer, answers, 1400)
        };
        assert_eq!(told(|_| {}, true), "");
        assert!(told(|peer| peer.answered = 0, true).contains("let UDP to 192.0.2.1:2377"));
        assert!(told(|peer| peer.connected = false, false).contains("it is down, or cut off"));
        assert!(told(|peer| peer.packet_max = 1162, true).contains("--mtu 1162"));
        assert!(told(|peer| peer.answered = 4, true).starts_with("packets are lost"));
        assert!(told(|peer| peer.packets_lost = 50, true).starts_with("packets are lost"));
        let doubted = |answered| pb::OverlayPeer { packets_lost: 50, asked: IN_DOUBT, answered, ..well() };
        assert_eq!(pair_trouble(&doubted(IN_DOUBT), true, 1400), "", "they were lost while a link was cut");
        assert!(pair_trouble(&doubted(IN_DOUBT - 1), true, 1400).starts_with("packets are lost"));
        let refused = |peer: &mut pb::OverlayPeer| {
            peer.connected = false;
            peer.error = "the cryptographic handshake failed: invalid peer certificate: Expired".into();
        };
        assert!(told(refused, true).contains("compare both clocks"));
    }

    #[test]
    fn clocks_that_agree_are_not_told_of() {
        assert_eq!(clock_trouble(10_000, 11_500), "");
        assert!(clock_trouble(70_200, 10_000).starts_with("its clock is 60.2 s ahead"));
    }
}
