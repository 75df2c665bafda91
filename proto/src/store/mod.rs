//! What managers write to disk: proposals, one a log entry, and snapshots of the whole state. Both carry
//! their format's number, and a reader refuses a number it does not know.

mod change;
mod snapshot;

pub use snapshot::{RECORD_BYTES_MAX, SnapshotError, read_snapshot, write_snapshot};

use crate::convert::{Invalid, each};
use crate::v1::store as disk;
use bytes::Bytes;
use prost::Message;
use rswarm_control::{Proposal, Timestamp};

/// The format in which proposals are written.
pub const PROPOSAL_FORMAT: u32 = 1;

/// Why bytes are not a proposal.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum DecodeError {
    /// They are not even a message.
    #[error("the log entry is not a proposal")]
    Garbled(#[from] prost::DecodeError),
    /// They were written by a version whose format is not known here.
    #[error(
        "the log entry has format {0}, and this version reads only {PROPOSAL_FORMAT}; install a newer rswarm"
    )]
    Format(u32),
    /// They say something that cannot be.
    #[error("the log entry is invalid")]
    Invalid(#[from] Invalid),
}

/// The bytes of a log entry. Equal proposals give equal bytes.
pub fn encode_proposal(proposal: &Proposal) -> Bytes {
    let Proposal { changes, at } = proposal;
    let wire = disk::Proposal {
        format: PROPOSAL_FORMAT,
        at_ms: at.0,
        changes: changes.iter().map(Into::into).collect(),
    };
    wire.encode_to_vec().into()
}

/// The proposal in a log entry.
///
/// # Errors
/// If the bytes are not a proposal of a format known here. Never panics, whatever the bytes.
pub fn decode_proposal(bytes: &[u8]) -> Result<Proposal, DecodeError> {
    let wire = disk::Proposal::decode(bytes)?;
    if wire.format != PROPOSAL_FORMAT {
        return Err(DecodeError::Format(wire.format));
    }
    Ok(Proposal { changes: each("changes", wire.changes)?, at: Timestamp(wire.at_ms) })
}
