//! What can go wrong, told apart by what the caller can do about it.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::{ClusterTag, Full, Incarnation, Member, RaftId};

/// Why a log could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The directory is in use by another log, in this or another process.
    #[error("{} is in use by another process; stop that one first", dir.display())]
    Busy {
        /// The directory.
        dir: PathBuf,
    },
    /// A file's content is not what was once written and synced, or a file is missing. The manager must not go on
    /// under its [`RaftId`]: wiped, it may join under another.
    #[error("{} is damaged at byte {offset}: {what}", file.display())]
    Damaged {
        /// The damaged file.
        file: PathBuf,
        /// Where in it.
        offset: u64,
        /// What is wrong there.
        what: &'static str,
    },
    /// A file belongs to another manager or another cluster.
    #[error("{} belongs to manager {id} of cluster {cluster}; give this manager a directory of its own", file.display())]
    Foreign {
        /// The file.
        file: PathBuf,
        /// The cluster it says it is of.
        cluster: ClusterTag,
        /// The manager it says it is of.
        id: RaftId,
    },
    /// A file was written by a version that writes differently.
    #[error("{} has format {found}, this version knows {known}; use a version that fits", file.display())]
    Format {
        /// The file.
        file: PathBuf,
        /// The format it has.
        found: u32,
        /// The format this version reads and writes.
        known: u32,
    },
    /// The log is of an earlier life of the cluster.
    #[error(
        "the log in {} is of incarnation {found} of the cluster, which goes on as incarnation {known}; what stands \
         here no longer counts",
        dir.display()
    )]
    Outdated {
        /// The directory.
        dir: PathBuf,
        /// The log's.
        found: Incarnation,
        /// The latest one known.
        known: Incarnation,
    },
    /// There is no state to begin a new incarnation with.
    #[error("{} holds no state of a cluster", dir.display())]
    Empty {
        /// The directory.
        dir: PathBuf,
    },
    /// The key is wrapped.
    #[error("{} is locked; unlock it first", file.display())]
    Locked {
        /// The key file.
        file: PathBuf,
    },
    /// A setting makes no sense.
    #[error("wrong setting: {0}")]
    Config(String),
    /// The operating system said no.
    #[error("cannot use {}: {source}", path.display())]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// What it said.
        #[source]
        source: io::Error,
    },
    /// The log is there but cannot be continued.
    #[error("cannot continue the log in {}: {reason}", dir.display())]
    Start {
        /// The directory.
        dir: PathBuf,
        /// What is in the way.
        reason: String,
    },
}

impl OpenError {
    pub(crate) fn io(path: &Path, source: io::Error) -> Self {
        Self::Io { path: path.to_owned(), source }
    }

    pub(crate) fn damaged(path: &Path, offset: u64, what: &'static str) -> Self {
        Self::Damaged { file: path.to_owned(), offset, what }
    }
}

/// Why a proposal was not answered.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProposeError {
    /// This manager does not lead. The command is not in the log: hand it to the leader, or if that is not known,
    /// wait for one.
    #[error("this manager is not the leader; {}", leader_text(leader))]
    NotLeader {
        /// Who leads, as far as this manager knows.
        leader: Option<Member>,
    },
    /// This manager leads but does not hear from a quorum. The command is not in the log.
    #[error("a majority of the managers is out of reach")]
    Unavailable,
    /// The command may or may not be committed, now or later. Look before proposing it again.
    #[error("it is not known whether the command was committed: {0}")]
    Unknown(String),
    /// This manager leads, there is no room for its log, and no other can lead. The command is not in the log.
    #[error("no space left in {} for the manager's log, which wants {} MiB more", .0.dir.display(), .0.wanted >> 20)]
    Full(Full),
    /// Commands have at most [`crate::COMMAND_BYTES_MAX`] bytes.
    #[error("the command has {bytes} bytes; at most {} are taken", crate::COMMAND_BYTES_MAX)]
    TooLarge {
        /// Its length.
        bytes: usize,
    },
    /// The log was shut down or has failed before the command was proposed.
    #[error("the log is not running: {0}")]
    Stopped(String),
}

/// Why a read could not be made linearizable.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReadError {
    /// Nobody is known to lead.
    #[error("no manager is known to lead")]
    NoLeader,
    /// The leader, or a quorum, is out of reach, or answered too late.
    #[error("the read could not be confirmed by a majority of the managers: {0}")]
    Unavailable(String),
    /// The log was shut down or has failed.
    #[error("the log is not running: {0}")]
    Stopped(String),
}

/// Why leadership was not handed over.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TransferError {
    /// This manager does not lead.
    #[error("this manager is not the leader; {}", leader_text(leader))]
    NotLeader {
        /// Who leads, as far as this manager knows.
        leader: Option<Member>,
    },
    /// There is no other voter, or none that was heard from lately.
    #[error("no other manager could take over: none that votes was heard from lately")]
    NoCandidate,
    /// The chosen one is not a voter.
    #[error("manager {0} has no vote and cannot lead")]
    NotVoter(RaftId),
    /// Nobody else leads yet.
    #[error("no other manager took over within {0:?}")]
    TimedOut(Duration),
    /// The log was shut down or has failed.
    #[error("the log is not running: {0}")]
    Stopped(String),
}

/// Why the membership was not changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ChangeError {
    /// This manager does not lead and could not pass the change on.
    #[error("the change must be made by the leader; {}", leader_text(leader))]
    NotLeader {
        /// Who leads, as far as this manager knows.
        leader: Option<Member>,
    },
    /// The newcomer did not catch up in time; it was taken out again.
    #[error("the new manager did not catch up with the log in time; is it running and reachable?")]
    NotCaughtUp,
    /// Without the member, those that remain in reach would be no majority.
    #[error(
        "without that manager the others in reach would be no majority; bring the silent ones back first"
    )]
    WouldLoseQuorum,
    /// There is no such member.
    #[error("manager {0} is not a member")]
    NotMember(RaftId),
    /// Address or node id are empty or longer than 255 bytes.
    #[error("a member needs an address and a node id of 1 to 255 bytes")]
    BadMember,
    /// It is not known how far the change has come. Look before trying again.
    #[error("it is not known how far the change has come: {0}")]
    Unknown(String),
    /// The log was shut down or has failed.
    #[error("the log is not running: {0}")]
    Stopped(String),
}

fn leader_text(leader: &Option<Member>) -> String {
    match leader {
        Some(member) => format!("{member} is"),
        None => "none is known".into(),
    }
}
