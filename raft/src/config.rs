//! The settings of a log, and what they mean to openraft.

use std::path::PathBuf;
use std::time::Duration;

use openraft::SnapshotPolicy;

use crate::disk::Gauge;
use crate::storage::medium::Media;
use crate::{ClusterTag, Incarnation, OpenError, RaftId};

/// How a log is run. [`Config::new`] has the defaults; timings must be the same on all managers.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where the log, the snapshots and the key are kept. Made with mode 0700 if missing; used by one log at a
    /// time.
    pub dir: PathBuf,
    /// Who this manager is.
    pub id: RaftId,
    /// Which cluster it belongs to.
    pub cluster: ClusterTag,
    /// The latest incarnation of the cluster that is known here. A log of an earlier one is not continued; one of a
    /// later one is. Default [`Incarnation::FIRST`].
    pub incarnation: Incarnation,
    /// How often a leader makes itself heard. Default 100 ms.
    pub heartbeat: Duration,
    /// The shortest wait of a follower, once its leader's lease has ended, before it stands for election. Default
    /// 200 ms.
    pub election_min: Duration,
    /// The longest such wait, and the length of the lease. Default 400 ms. A lost leader is replaced after
    /// between `election_max + election_min` and twice `election_max`.
    pub election_max: Duration,
    /// A snapshot is made after this many entries. Default 50 000.
    pub snapshot_after_entries: u64,
    /// How many entries a snapshot covers stay in the log, for followers that are a little behind. Default 10 000;
    /// smaller values are for tests, since they make an open bug of openraft likelier (an apply that was queued
    /// behind a purge finds its entry gone).
    pub keep_entries: u64,
    /// When the commands in the log, which are all in memory, have more bytes than this, a snapshot is made early, and
    /// at most 1000 of the entries it covers stay. Default 64 MiB.
    pub log_bytes_max: u64,
    /// The size of a segment of the log, 64 KiB to 1 GiB; one is prepared in advance. Default 16 MiB.
    pub segment_bytes: u64,
    /// How long a proposal or a read may take before its outcome is given up on. Default 5 s.
    pub patience: Duration,
    /// How many proposals may be under way at once; more wait for their turn. Default 8192.
    pub proposals_max: usize,
    /// How long a follower may owe an answer before its stream is begun anew. Default 2 s.
    pub append_patience: Duration,
    /// How long a snapshot on its way to a follower may make no progress. Default 30 s.
    pub snapshot_patience: Duration,
    /// How long the applied index may stand still behind the committed one before [`crate::Status::stalled`]
    /// is set. Default 5 s.
    pub stall: Duration,
    /// What of it is simulated.
    #[cfg(feature = "sim")]
    pub sim: crate::sim::Sim,
}

impl Config {
    /// The defaults, for a local network.
    pub fn new(dir: impl Into<PathBuf>, id: RaftId, cluster: ClusterTag) -> Self {
        Self {
            dir: dir.into(),
            id,
            cluster,
            incarnation: Incarnation::FIRST,
            heartbeat: Duration::from_millis(100),
            election_min: Duration::from_millis(200),
            election_max: Duration::from_millis(400),
            snapshot_after_entries: 50_000,
            keep_entries: 10_000,
            log_bytes_max: 64 << 20,
            segment_bytes: 16 << 20,
            patience: Duration::from_secs(5),
            proposals_max: 8192,
            append_patience: Duration::from_secs(2),
            snapshot_patience: Duration::from_secs(30),
            stall: Duration::from_secs(5),
            #[cfg(feature = "sim")]
            sim: crate::sim::Sim::default(),
        }
    }

    /// For managers in different places, or slow ones: heartbeat 500 ms, election 1.5 to 3 s.
    pub fn wide_area(mut self) -> Self {
        self.heartbeat = Duration::from_millis(500);
        self.election_min = Duration::from_millis(1500);
        self.election_max = Duration::from_millis(3000);
        self.append_patience = Duration::from_secs(10);
        self.patience = Duration::from_secs(15);
        self
    }

    /// After this a quorum that could answer would have, even if it had to elect a leader first.
    pub(crate) fn quorum_patience(&self) -> Duration {
        self.patience.min(4 * self.election_max)
    }

    /// How the log's files are written.
    pub(crate) fn media(&self, gauge: Gauge) -> Media {
        Media {
            gauge,
            #[cfg(feature = "sim")]
            sim: self.sim.clone(),
        }
    }

    pub(crate) fn to_openraft(&self) -> Result<openraft::Config, OpenError> {
        let wrong = |what: String| Err(OpenError::Config(what));
        if self.heartbeat < Duration::from_millis(10) || self.heartbeat * 2 > self.election_min {
            return wrong(format!(
                "heartbeat is {:?}; it must be at least 10 ms and at most half of election_min, {:?}",
                self.heartbeat, self.election_min
            ));
        }
        if self.election_min >= self.election_max {
            return wrong(format!(
                "election_min, {:?}, must be less than election_max, {:?}",
                self.election_min, self.election_max
            ));
        }
        if !(64 << 10..=1 << 30).contains(&self.segment_bytes) {
            return wrong(format!("segment_bytes is {}; it must be 64 KiB to 1 GiB", self.segment_bytes));
        }
        if self.snapshot_after_entries == 0 || self.proposals_max == 0 {
            return wrong("snapshot_after_entries and proposals_max must not be 0".into());
        }
        let election_max = millis(self.election_max);
        let config = openraft::Config {
            cluster_name: self.cluster.to_string(),
            heartbeat_interval: millis(self.heartbeat),
            election_timeout_min: millis(self.election_min),
            election_timeout_max: election_max,
            install_snapshot_timeout: millis(self.snapshot_patience),
            max_payload_entries: 1024,
            // Far enough that a follower is first offered the entries that are still there.
            replication_lag_threshold: 2 * (self.snapshot_after_entries + self.keep_entries),
            snapshot_policy: SnapshotPolicy::LogsSinceLast(self.snapshot_after_entries),
            max_in_snapshot_log_to_keep: self.keep_entries,
            purge_batch_size: (self.snapshot_after_entries / 10).clamp(1, 1000),
            // A leader cut off from its quorum falls silent for this long at a time, so that an election that
            // its heartbeats would suppress can happen.
            quorum_loss_probe_interval: Some(2 * election_max + election_max / 2),
            enable_pre_vote: Some(true),
            // A leader that restarts at once, with a disk slower than its followers', would otherwise lead on
            // with a log shorter than what it had committed.
            enable_leader_restore: Some(false),
            backoff: "20ms 40ms ...500ms".into(),
            ..openraft::Config::default()
        };
        #[cfg(feature = "sim")]
        let config =
            openraft::Config { enable_leader_restore: Some(self.sim.flaws.restore_leader), ..config };
        config.validate().map_err(|error| OpenError::Config(error.to_string()))
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
