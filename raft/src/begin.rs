//! A log that begins with a state that comes from elsewhere: from a backup.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use tokio::sync::oneshot;

use crate::log::open_wal;
use crate::point::reach;
use crate::storage::snapshot::Snapshots;
use crate::storage::wal::{Done, Op, Wal};
use crate::storage::{Dir, Identity, exists};
use crate::types::{LeaderId, LogId, Membership, SnapshotMeta, StoredMembership, Vote};
use crate::{Config, Frozen, Member, OpenError};

/// The term that the first entries seem to be of.
const TERM: u64 = 1;

/// Begins a log in [`Config::dir`], where none may be: its first `index` entries are gone, `state` is what they came
/// to, and `me` is the only member. Its incarnation is [`Config::incarnation`]. Blocks.
///
/// A crash may leave a part of it, which only a [`crate::wipe`] makes use of; what says that the log is to be opened
/// is best written afterwards.
///
/// # Errors
/// See [`OpenError`]; [`OpenError::Start`] if a log is there already.
pub fn begin_with(config: &Config, me: &Member, index: u64, state: Box<dyn Frozen>) -> Result<(), OpenError> {
    let start = |reason: String| OpenError::Start { dir: config.dir.clone(), reason };
    let io = |error| OpenError::io(&config.dir, error);
    if exists(&config.dir).map_err(io)? {
        return Err(start("a log has begun there already".into()));
    }
    let dir = Arc::new(Dir::open(&config.dir, Identity { cluster: config.cluster, id: config.id })?);
    let leader_id = LeaderId { term: TERM, node_id: me.id.0 };
    let last = LogId { leader_id, index };
    let members = BTreeMap::from([(me.id.0, me.contact())]);
    let membership = Membership::new(vec![BTreeSet::from([me.id.0])], members)
        .map_err(|error| start(error.to_string()))?;
    let last_membership = StoredMembership::new(Some(last), membership);

    reach("begin.snapshot").map_err(io)?;
    let snapshots = Snapshots::open(dir.clone())?;
    let write = || {
        let mut file = snapshots.create(SnapshotMeta { last_log_id: Some(last), last_membership })?;
        state.write(&mut file)?;
        snapshots.adopt(file.finish()?)?;
        reach("begin.vote")
    };
    write().map_err(io)?;

    let (wal, _) = open_wal(&dir, config)?;
    let written = write_through(&wal, |done| Op::Vote { vote: Vote::new(TERM, me.id.0), done })
        .and_then(|()| reach("begin.purge"))
        .and_then(|()| write_through(&wal, |done| Op::Purge { upto: last, done }))
        .and_then(|()| reach("begun"));
    wal.close();
    written.map_err(io)
}

/// Has it written, and waits until it is durable.
fn write_through(wal: &Wal, op: impl FnOnce(Done) -> Op) -> std::io::Result<()> {
    let (done, told) = oneshot::channel();
    wal.push(op(Done::Told(done)));
    let ended = || std::io::Error::other("the log's writer ended without an answer");
    told.blocking_recv().unwrap_or_else(|_| Err(ended()))
}
