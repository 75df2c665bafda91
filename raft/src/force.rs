//! The way out of a lost quorum: a surviving manager begins a new life of the cluster, alone, with the state it has.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use tokio::sync::oneshot;

use crate::log::open_wal;
use crate::point::reach;
use crate::storage::snapshot::Snapshots;
use crate::storage::wal::{Done, Op};
use crate::storage::{Dir, Identity};
use crate::types::{Entry, LogId, Membership, Payload, Vote};
use crate::{Config, Incarnation, Member, OpenError};

/// Makes the manager whose log is in [`Config::dir`], which must be closed, the only member of the cluster's next
/// incarnation, and answers which that is. It keeps everything in its log, also entries of which it does not know
/// whether they were committed: the others may have acknowledged them. All other managers are members no more, and
/// their messages are refused from now on. `tail` is random. Blocks.
///
/// It is one synced record: a crash leaves either the old life or the new one. [`Config::incarnation`] need not be
/// raised before the log is opened again.
///
/// # Errors
/// See [`OpenError`]; [`OpenError::Empty`] if this manager never had the cluster's state.
pub fn force_new_cluster(config: &Config, me: &Member, tail: u32) -> Result<Incarnation, OpenError> {
    let start = |reason: String| OpenError::Start { dir: config.dir.clone(), reason };
    let identity = Identity { cluster: config.cluster, id: config.id };
    let dir = Arc::new(Dir::open(&config.dir, identity)?);
    // That they can be read is as necessary as it is for opening.
    let snapshots = Snapshots::open(dir.clone())?;
    let (wal, recovered) = open_wal(&dir, config)?;
    snapshots.reach(recovered.purged)?;
    let Some(last) = recovered.last else {
        return Err(OpenError::Empty { dir: config.dir.clone() });
    };

    let term = recovered.vote.map_or(0, |vote| vote.leader_id.term).max(last.leader_id.term) + 1;
    let vote = Vote::new(term, me.id.0);
    let members = BTreeMap::from([(me.id.0, me.contact())]);
    let membership = Membership::new(vec![BTreeSet::from([me.id.0])], members)
        .map_err(|error| start(error.to_string()))?;
    let log_id = LogId { leader_id: vote.leader_id, index: last.index + 1 };
    let entry = Entry { log_id, payload: Payload::Membership(membership) };

    let reached = |point| reach(point).map_err(|error| OpenError::io(&config.dir, error));
    reached("force.begin")?;
    let incarnation = recovered.incarnation.next(tail);
    let (done, told) = oneshot::channel();
    wal.push(Op::Force { incarnation, vote, entry, done: Done::Told(done) });
    wal.close();
    match told.blocking_recv() {
        Ok(Ok(())) => reached("force.written").map(|()| incarnation),
        Ok(Err(source)) => Err(OpenError::Io { path: config.dir.clone(), source }),
        Err(_) => Err(start("its writer ended without an answer".into())),
    }
}
