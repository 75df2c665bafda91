//! What hostile bytes are handed to: by the fuzzer (`fuzz/` beside the workspace), which compiles this file, and by the
//! tests that replay what it found. Whatever the bytes, nothing panics, and what is taken is taken the same way again.

use prost::Message;
use rswarm_control::NodeId;
use rswarm_control::assignment::{Assignment, Difference};
use rswarm_control::endpoints::Table;
use rswarm_proto::store::{decode_proposal, encode_proposal, read_snapshot, write_snapshot};
use rswarm_proto::v1 as pb;

/// An entry of the log.
pub fn proposal(bytes: &[u8]) {
    let Ok(proposal) = decode_proposal(bytes) else { return };
    let again = decode_proposal(&encode_proposal(&proposal)).expect("what was encoded decodes");
    assert_eq!(again, proposal);
}

/// The state in a snapshot or a backup.
pub fn state(bytes: &[u8]) {
    let Ok(state) = read_snapshot(&mut &*bytes) else { return };
    let mut written = Vec::new();
    write_snapshot(&state, &mut written).expect("a vector takes everything");
    let again = read_snapshot(&mut written.as_slice()).expect("what was written reads");
    assert_eq!(again, state);
}

/// A message of a node's session: one from the node if the first byte is even, else one to it.
pub fn session(bytes: &[u8]) {
    let Some((side, bytes)) = bytes.split_first() else { return };
    if side % 2 == 0 {
        let Ok(message) = pb::FromNode::decode(bytes) else { return };
        if let Some(pb::from_node::What::Reports(all)) = message.what {
            for wire in all.reports {
                let Ok(report) = rswarm_proto::convert::report(NodeId(1), wire) else { continue };
                let again = rswarm_proto::convert::report(NodeId(1), (&report).into());
                assert_eq!(again.ok(), Some(report));
            }
        }
        return;
    }
    let Ok(message) = pb::ToNode::decode(bytes) else { return };
    match message.what {
        Some(pb::to_node::What::Assignment(wire)) => {
            if let Ok(assignment) = Assignment::try_from(wire) {
                assert_eq!(Assignment::try_from(pb::Assignment::from(&assignment)).ok(), Some(assignment));
            }
        }
        Some(pb::to_node::What::Difference(wire)) => {
            if let Ok(difference) = Difference::try_from(wire) {
                let again = Difference::try_from(pb::AssignmentDifference::from(&difference));
                assert_eq!(again.ok(), Some(difference));
            }
        }
        Some(pb::to_node::What::Table(wire)) => {
            if let Ok(table) = Table::try_from(wire) {
                assert_eq!(Table::try_from(pb::Table::from(&table)).ok(), Some(table));
            }
        }
        _ => {}
    }
}
