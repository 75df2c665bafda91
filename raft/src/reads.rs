//! Linearizable reads: those that wait while one confirmation is under way share the next.

use std::sync::Arc;
use std::time::Duration;

use openraft::ReadPolicy;
use openraft::errors::{LinearizableReadError, RaftError};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, timeout, timeout_at};

use crate::log::Core;
use crate::wire::{Body, Empty};
use crate::{Member, ReadError, Status};

/// How many reads may wait; more are held up before they are noted.
const WAITING_MAX: usize = 4096;

type Answer = oneshot::Sender<Result<u64, ReadError>>;

/// Where reads are asked for.
pub(crate) struct Reads(mpsc::Sender<Answer>);

impl Reads {
    pub(crate) fn new() -> (Self, mpsc::Receiver<Answer>) {
        let (reads, asked) = mpsc::channel(WAITING_MAX);
        (Self(reads), asked)
    }

    pub(crate) async fn ask(&self, patience: Duration) -> Result<u64, ReadError> {
        let stopped = || ReadError::Stopped("it was shut down".into());
        let deadline = Instant::now() + patience;
        let (answer, answered) = oneshot::channel();
        let asked = async {
            self.0.send(answer).await.map_err(|_| stopped())?;
            answered.await.map_err(|_| stopped())?
        };
        let late = || ReadError::Unavailable(format!("no answer within {patience:?}"));
        timeout_at(deadline, asked).await.unwrap_or_else(|_| Err(late()))
    }
}

/// Answers reads until the log is shut down.
pub(crate) async fn serve(core: Arc<Core>, mut asked: mpsc::Receiver<Answer>) {
    let mut waiting = Vec::new();
    while asked.recv_many(&mut waiting, WAITING_MAX).await > 0 {
        waiting.retain(|answer| !answer.is_closed());
        if waiting.is_empty() {
            continue;
        }
        let read = core.read().await;
        for answer in waiting.drain(..) {
            drop(answer.send(read.clone()));
        }
    }
}

impl Core {
    async fn read(&self) -> Result<u64, ReadError> {
        let deadline = Instant::now() + self.config.patience;
        let late = |_| ReadError::Unavailable(format!("not within {:?}", self.config.patience));
        let index = timeout_at(deadline, self.confirmed_index()).await.map_err(late)??;
        let mut applied = self.applied.clone();
        if *applied.borrow() >= index {
            return Ok(index);
        }
        let failed = self.wait(deadline - Instant::now(), |status| status.failed.is_some());
        let status = tokio::select! {
            biased;
            Ok(_) = applied.wait_for(|applied| *applied >= index) => return Ok(index),
            status = failed => status,
        };
        Err(match status.and_then(|status| status.failed) {
            Some(reason) => ReadError::Stopped(reason),
            None => ReadError::Unavailable("this manager has not caught up".into()),
        })
    }

    /// Asks whoever leads; leadership may move meanwhile, so a few times.
    async fn confirmed_index(&self) -> Result<u64, ReadError> {
        let mut error = ReadError::NoLeader;
        for _ in 0..3 {
            let known = |status: &Status| status.leader.is_some() || status.failed.is_some();
            let status = self.wait(2 * self.config.election_max, known).await.ok_or(ReadError::NoLeader)?;
            if let Some(reason) = status.failed {
                return Err(ReadError::Stopped(reason));
            }
            let Some(leader) = status.leader else { continue };
            let asked = match leader.id == self.config.id {
                true => self.leader_index().await,
                false => tokio::select! {
                    asked = self.ask_index(&leader) => asked,
                    // One that has lost its power never says that it does not answer; its successor does.
                    _ = self.wait(self.config.patience, |now| now.leader.as_ref() != Some(&leader)) => {
                        Err(ReadError::NoLeader)
                    }
                },
            };
            match asked {
                Ok(index) => return Ok(index),
                Err(ReadError::NoLeader) => {
                    // It has stepped down; let the news arrive.
                    error = ReadError::NoLeader;
                    let moved = |now: &Status| now.leader.as_ref() != Some(&leader);
                    self.wait(self.config.heartbeat, moved).await;
                }
                Err(other) => return Err(other),
            }
        }
        Err(error)
    }

    /// The leader's part: confirms with a quorum that it still leads.
    pub(crate) async fn leader_index(&self) -> Result<u64, ReadError> {
        #[cfg(feature = "sim")]
        if self.config.sim.flaws.read_local_state && self.status.borrow().is_leader() {
            return Ok(self.status.borrow().applied);
        }
        let confirmed = self.raft.get_read_linearizer(ReadPolicy::ReadIndex);
        let lost = || ReadError::Unavailable("the leader hears from no majority".into());
        match timeout(self.config.quorum_patience(), confirmed).await.map_err(|_| lost())? {
            Ok(linearizer) => Ok(linearizer.read_log_id().index()),
            Err(RaftError::APIError(LinearizableReadError::ForwardToLeader(forward))) => {
                Err(match self.elsewhere(&forward) {
                    Some(_) => ReadError::NoLeader,
                    None => lost(),
                })
            }
            Err(RaftError::APIError(error)) => {
                tracing::debug!(%error, "a read is not confirmed");
                Err(lost())
            }
            Err(RaftError::Fatal(error)) => Err(ReadError::Stopped(error.to_string())),
        }
    }

    async fn ask_index(&self, leader: &Member) -> Result<u64, ReadError> {
        let asked = self.ties.ask(leader, Body::ReadIndex(Empty {}), self.config.quorum_patience()).await;
        match asked.map_err(|error| ReadError::Unavailable(error.to_string()))? {
            Body::ReadIndexDone(done) => Ok(done.index),
            Body::NotLeader(_) => Err(ReadError::NoLeader),
            _ => Err(ReadError::Unavailable(format!("{leader} answered something else"))),
        }
    }
}
