//! Reads that need no quorum, for whoever asks for them: what the manager asked has applied, and how old that is.

use rswarm_control::state::State;
use rswarm_raft::Status as LogStatus;
use std::sync::Arc;
use std::time::Duration;
use tonic::metadata::MetadataMap;
use tonic::{Response, Status};

/// Set on a read that may be answered from what the manager asked has applied, though that may be old.
pub const STALE: &str = "rswarm-stale";
/// On the answer: the index of the last entry that it knows of.
const INDEX: &str = "rswarm-stale-index";
/// On the answer: for how many milliseconds nothing confirmed that it is the newest. Absent if nothing ever did.
const UNHEARD_MS: &str = "rswarm-stale-unheard-ms";

/// The calls that only read the state: every manager answers them.
const READS: [&str; 5] = [
    "/rswarm.v1.Control/GetCluster",
    "/rswarm.v1.Control/ListNodes",
    "/rswarm.v1.Control/ListServices",
    "/rswarm.v1.Control/ListTasks",
    "/rswarm.v1.Control/ListNetworks",
];

/// Whether the call of this path only reads the state.
pub fn is_read(path: &str) -> bool {
    READS.contains(&path)
}

/// How old an answer may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Age {
    /// The last entry that it knows of.
    pub index: u64,
    /// Since when nothing confirmed that it is the newest: a follower's leader, or a leader's majority. `None` if
    /// nothing did since the daemon started.
    pub unheard: Option<Duration>,
}

impl Age {
    /// Of a state that was read from the manager whose log has this status.
    pub fn of(state: &State, log: &LogStatus) -> Self {
        let alone = log.is_leader() && log.voters.len() < 2;
        let unheard = match alone {
            true => Some(Duration::ZERO),
            false => log.quorum_heard_at.map(|at| at.elapsed()),
        };
        Self { index: state.index(), unheard }
    }

    /// What an answer says of its age, if it says something.
    pub fn told(headers: &http::HeaderMap) -> Option<Self> {
        let number = |name: &str| headers.get(name)?.to_str().ok()?.parse().ok();
        Some(Self { index: number(INDEX)?, unheard: number(UNHEARD_MS).map(Duration::from_millis) })
    }

    fn tell(self, metadata: &mut MetadataMap) {
        metadata.insert(INDEX, self.index.into());
        if let Some(unheard) = self.unheard {
            let millis = u64::try_from(unheard.as_millis()).unwrap_or(u64::MAX);
            metadata.insert(UNHEARD_MS, millis.into());
        }
    }
}

/// The state that a read is answered from.
pub struct Seen {
    /// As of some entry.
    pub state: Arc<State>,
    /// Set if newer ones may have been acknowledged.
    pub age: Option<Age>,
}

impl Seen {
    /// The answer, with its age.
    ///
    /// # Errors
    /// Never; handlers return it as it is.
    pub fn answer<T>(&self, message: T) -> Result<Response<T>, Status> {
        let mut response = Response::new(message);
        if let Some(age) = self.age {
            age.tell(response.metadata_mut());
        }
        Ok(response)
    }
}
