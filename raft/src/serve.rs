//! The way in: frames that other managers sent, put before openraft, and its answers.

use std::io::Write;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use futures_util::stream::{self, Stream, StreamExt};
use openraft::raft::{AppendEntriesRequest, TransferLeaderError, TransferLeaderRequest};
use openraft::storage::Snapshot;

use crate::format::{LogIdPb, Malformed};
use crate::log::{Core, Log};
use crate::point::reach;
use crate::status::WatchReceiverOf;
use crate::storage::machine::blocking;
use crate::storage::snapshot::Writer;
use crate::types::{LogId, SnapshotMeta, Types, Vote};
use crate::wire::{
    self, AppendDonePb, AppendPb, Body, FlushedPb, NotLeaderPb, ReadIndexDonePb, SnapshotDonePb,
    TransferDonePb, TransferPb, VoteDonePb,
};
use crate::{Frames, RaftId, ReadError};

type AppendRequest = AppendEntriesRequest<Types>;

impl Log {
    /// Answers a frame that [`crate::Transport::call`] brought here. The caller has authenticated the sender as a
    /// manager of this cluster; whether the frame is meant for this one is checked here.
    pub async fn handle_call(&self, frame: Bytes) -> Bytes {
        let core = self.core();
        let (from, answer) = match core.open(frame) {
            Ok((from, body)) => (from, core.answer(from, body).await),
            Err(reason) => (RaftId(0), Body::refused(reason)),
        };
        core.seal(from, answer)
    }

    /// Answers the frames that [`crate::Transport::append`] brings here, one by one and in order. Ends when they do,
    /// or after it has refused one.
    pub fn handle_append(&self, frames: impl Stream<Item = Bytes> + Send + 'static) -> Frames {
        let core = self.core().clone();
        let from = Arc::new(AtomicU64::new(0));
        let refusal: Arc<Mutex<Option<String>>> = Arc::default();

        let requests = {
            let (core, from, refusal) = (core.clone(), from.clone(), refusal.clone());
            frames.scan((), move |(), frame| {
                let request = core.open(frame).and_then(|(sender, body)| {
                    from.store(sender.0, Ordering::Relaxed);
                    match body {
                        Body::Append(append) => {
                            core.told(&append);
                            AppendRequest::try_from(append).map_err(|error| error.to_string())
                        }
                        _ => Err("only appends belong on an append stream".into()),
                    }
                });
                let request = request.map_err(|reason| {
                    refusal.lock().expect("nothing panics while it holds this lock").replace(reason);
                });
                std::future::ready(request.ok())
            })
        };
        let results = core.raft.stream_append(requests);
        let answers = {
            let (core, from) = (core.clone(), from.clone());
            results.map(move |result| {
                let body = match result {
                    Ok(result) => {
                        if result.is_ok() {
                            core.ties.heard.now();
                        }
                        Body::AppendDone(AppendDonePb::new(result, core.disk()))
                    }
                    Err(error) => Body::refused(error),
                };
                core.seal(RaftId(from.load(Ordering::Relaxed)), body)
            })
        };
        let refused = stream::once(async move {
            let reason = refusal.lock().expect("nothing panics while it holds this lock").take()?;
            Some(core.seal(RaftId(from.load(Ordering::Relaxed)), Body::refused(reason)))
        });
        Box::pin(answers.chain(refused.filter_map(std::future::ready)))
    }

    /// Takes in the snapshot that [`crate::Transport::snapshot`] brings here.
    pub async fn handle_snapshot(&self, frames: impl Stream<Item = Bytes> + Send + 'static) -> Bytes {
        let core = self.core();
        let mut from = RaftId(0);
        let answer = match core.receive_snapshot(std::pin::pin!(frames), &mut from).await {
            Ok(done) => Body::SnapshotDone(done),
            Err(reason) => Body::refused(reason),
        };
        core.seal(from, answer)
    }
}

impl Core {
    fn open(&self, frame: Bytes) -> Result<(RaftId, Body), String> {
        self.ties.open(frame)
    }

    fn seal(&self, to: RaftId, body: Body) -> Bytes {
        wire::seal(self.ties.life, self.config.id, to, body)
    }

    async fn answer(&self, from: RaftId, body: Body) -> Body {
        match body {
            Body::Append(append) => {
                self.told(&append);
                match AppendRequest::try_from(append) {
                    Ok(request) => self.answer_append(request).await,
                    Err(error) => Body::refused(error),
                }
            }
            Body::Vote(ask) => match self.raft.vote(ask.into()).await {
                Ok(response) => Body::VoteDone(VoteDonePb::new(response, self.left_out(from))),
                Err(error) => Body::refused(error),
            },
            Body::PreVote(ask) => match self.raft.pre_vote(ask.into()).await {
                Ok(response) => Body::VoteDone(VoteDonePb::new(response, self.left_out(from))),
                Err(error) => Body::refused(error),
            },
            Body::Transfer(transfer) => self.answer_transfer(transfer).await,
            Body::ReadIndex(_) => match self.leader_index().await {
                Ok(index) => Body::ReadIndexDone(ReadIndexDonePb { index }),
                Err(ReadError::NoLeader) => self.not_leader(),
                Err(error) => Body::refused(error),
            },
            Body::Change(change) => self.answer_change(change).await,
            _ => Body::refused("that is no question"),
        }
    }

    /// Notes what a leader tells with its entries.
    fn told(&self, append: &AppendPb) {
        let mut full = self.ties.full.lock().expect("nothing panics while it holds this lock");
        if !(full.is_empty() && append.full.is_empty()) {
            *full = append.full.iter().map(|id| RaftId(*id)).collect();
        }
    }

    async fn answer_append(&self, request: AppendRequest) -> Body {
        let prev = request.prev_log_id;
        let last = request.entries.last().map(|entry| entry.log_id).or(prev);
        match self.raft.append_entries(request).await {
            Ok(response) => {
                let result = response.into_stream_result(prev, last);
                if result.is_ok() {
                    self.ties.heard.now();
                }
                Body::AppendDone(AppendDonePb::new(result, self.disk()))
            }
            Err(error) => Body::refused(error),
        }
    }

    async fn answer_transfer(&self, transfer: TransferPb) -> Body {
        let request: TransferLeaderRequest<Types> =
            TransferLeaderRequest::new(transfer.from.into(), transfer.to, transfer.last.map(LogId::from));
        let mut done = TransferDonePb { vote_changed: None, not_flushed: None };
        match self.raft.handle_transfer_leader(request).await {
            Ok(Ok(())) => {}
            Ok(Err(TransferLeaderError::VoteChanged { actual, .. })) => {
                done.vote_changed = Some(actual.into());
            }
            Ok(Err(TransferLeaderError::LogNotFlushed { actual, .. })) => {
                done.not_flushed = Some(FlushedPb { actual: actual.map(LogIdPb::from) });
            }
            Err(error) => return Body::refused(error),
        }
        Body::TransferDone(done)
    }

    /// The index of a committed membership that does not have `id`: how a removed manager learns of it, for the
    /// leader no longer speaks to it.
    fn left_out(&self, id: RaftId) -> Option<u64> {
        let metrics = self.raft.metrics().current();
        let committed = &metrics.committed_membership_config;
        let settled = committed.log_id() == metrics.membership_config.log_id();
        let out = settled && committed.get_node(&id.0).is_none();
        committed.log_id().filter(|_| out).map(|id| id.index)
    }

    pub(crate) fn not_leader(&self) -> Body {
        let leader = self.status().leader.filter(|leader| leader.id != self.config.id);
        Body::NotLeader(match leader {
            Some(leader) => NotLeaderPb { id: Some(leader.id.0), addr: leader.addr, node: leader.node },
            None => NotLeaderPb::default(),
        })
    }

    async fn receive_snapshot(
        &self,
        mut frames: impl Stream<Item = Bytes> + Unpin,
        from: &mut RaftId,
    ) -> Result<SnapshotDonePb, String> {
        let broken = "the snapshot broke off";
        let (sender, begin) = self.open(frames.next().await.ok_or(broken)?)?;
        *from = sender;
        let Body::SnapshotBegin(begin) = begin else {
            return Err("a snapshot begins with what it covers".into());
        };
        let vote = Vote::from(begin.vote);
        let meta = SnapshotMeta::try_from(begin.meta).map_err(|Malformed(what)| what.to_owned())?;
        let local = |error: std::io::Error| format!("cannot store the snapshot: {error}");

        let snapshots = self.ties.snapshots.clone();
        let created = meta.clone();
        let mut writer = blocking(move || snapshots.create(created)).await.map_err(local)?;
        let (mut bytes, mut sum) = (0, 0);
        loop {
            let (sender, body) = self.open(frames.next().await.ok_or(broken)?)?;
            if sender != *from {
                return Err("a snapshot comes from one manager".into());
            }
            match body {
                Body::SnapshotChunk(chunk) => {
                    bytes += chunk.len() as u64;
                    sum = crc32c::crc32c_append(sum, &chunk);
                    writer = blocking(move || write_chunk(writer, &chunk)).await.map_err(local)?;
                }
                Body::SnapshotEnd(end) if (end.bytes, end.crc32c) == (bytes, sum) => break,
                Body::SnapshotEnd(_) => return Err("the snapshot arrived damaged".into()),
                _ => return Err("only chunks belong in a snapshot".into()),
            }
            self.ties.heard.now();
        }
        let file = blocking(move || writer.finish()).await.map_err(local)?;
        reach("snapshot.received").map_err(local)?;
        let path = file.path.clone();
        let installed = self.raft.install_full_snapshot(vote, Snapshot { meta, snapshot: file }).await;
        // openraft may have found it needless, or us gone; then the file is still there under this name.
        drop(blocking(move || std::fs::remove_file(path)).await);
        let response = installed.map_err(|error| error.to_string())?;
        Ok(SnapshotDonePb { vote: response.vote.into() })
    }
}

fn write_chunk(mut writer: Writer, chunk: &[u8]) -> std::io::Result<Writer> {
    writer.write_all(chunk)?;
    Ok(writer)
}
