//! Byte streams over a peer's connection, for the asynchronous side: two halves, each a bounded channel to the data
//! thread. A half that is dropped early resets its direction.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use quinn_proto::{ConnectionHandle, StreamId};
use tokio::sync::mpsc;

use super::{Command, wake::Wake};

/// Chunks on their way in one direction of a stream, at most.
const CHUNKS: usize = 8;
/// Largest piece [`Sender::send`] passes on at once, in bytes.
const CHUNK_MAX: usize = 64 << 10;

/// The stream or its connection is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the stream was reset, or its connection lost")]
pub struct Reset;

/// Names a stream to the data thread.
#[derive(Debug, Clone, Copy)]
pub(super) struct Key {
    pub handle: ConnectionHandle,
    /// Tells a connection from an earlier one with the same handle.
    pub serial: u64,
    pub id: StreamId,
}

#[derive(Debug)]
struct Shared {
    key: Key,
    wake: Arc<Wake<Command>>,
    /// The thread has been told to look, and has not looked yet.
    told: AtomicBool,
    /// The thread has data for us but found the channel full.
    held_back: AtomicBool,
}

impl Shared {
    fn tell(&self) {
        if !self.told.swap(true, Ordering::AcqRel) {
            self.wake.send(Command::Stream(self.key));
        }
    }
}

#[derive(Debug)]
enum Out {
    Data(Bytes),
    Finish,
}

/// The sending half.
#[derive(Debug)]
pub struct Sender {
    channel: Option<mpsc::Sender<Out>>,
    shared: Arc<Shared>,
}

impl Sender {
    /// Queues `data`; waits while the peer does not read. Not cancel-safe: what was sent by then is unknown.
    pub async fn send(&mut self, mut data: Bytes) -> Result<(), Reset> {
        while !data.is_empty() {
            let part = data.split_to(data.len().min(CHUNK_MAX));
            self.push(Out::Data(part)).await?;
        }
        Ok(())
    }

    /// Ends the direction: the peer reads all that was sent, then the end.
    pub async fn finish(mut self) -> Result<(), Reset> {
        self.push(Out::Finish).await
    }

    async fn push(&mut self, item: Out) -> Result<(), Reset> {
        let channel = self.channel.as_ref().ok_or(Reset)?;
        channel.send(item).await.map_err(|_| Reset)?;
        self.shared.tell();
        Ok(())
    }
}

impl Drop for Sender {
    fn drop(&mut self) {
        self.channel = None;
        self.shared.tell();
    }
}

/// The receiving half.
#[derive(Debug)]
pub struct Receiver {
    channel: Option<mpsc::Receiver<Result<Option<Bytes>, Reset>>>,
    shared: Arc<Shared>,
    ended: bool,
    put_back: Option<Bytes>,
}

impl Receiver {
    /// The next piece; `None` at the end. Cancel-safe.
    pub async fn receive(&mut self) -> Result<Option<Bytes>, Reset> {
        if let Some(data) = self.put_back.take() {
            return Ok(Some(data));
        }
        if self.ended {
            return Ok(None);
        }
        let item = self.channel.as_mut().ok_or(Reset)?.recv().await.unwrap_or(Err(Reset));
        if self.shared.held_back.swap(false, Ordering::AcqRel) {
            self.shared.tell();
        }
        self.ended = matches!(item, Ok(None));
        item
    }

    /// Makes `data`, the unused rest of what was received last, come again.
    pub fn put_back(&mut self, data: Bytes) {
        self.put_back = Some(data).filter(|data| !data.is_empty());
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        self.channel = None;
        self.shared.tell();
    }
}

/// Both halves of a stream.
#[derive(Debug)]
pub struct Stream {
    /// To the peer.
    pub sender: Sender,
    /// From the peer.
    pub receiver: Receiver,
    /// The time to the peer and back, as last measured when the stream was opened.
    pub round_trip: Duration,
}

/// The data thread's end of a stream.
#[derive(Debug)]
pub(super) struct End {
    to_app: Option<mpsc::Sender<Result<Option<Bytes>, Reset>>>,
    from_app: Option<mpsc::Receiver<Out>>,
    pending: Option<Bytes>,
    shared: Arc<Shared>,
}

/// Makes the two ends of the stream `key`.
pub(super) fn pair(key: Key, wake: Arc<Wake<Command>>, round_trip: Duration) -> (Stream, End) {
    let (out, from_app) = mpsc::channel(CHUNKS);
    let (to_app, incoming) = mpsc::channel(CHUNKS);
    let shared =
        Arc::new(Shared { key, wake, told: AtomicBool::new(false), held_back: AtomicBool::new(false) });
    let stream = Stream {
        sender: Sender { channel: Some(out), shared: shared.clone() },
        receiver: Receiver { channel: Some(incoming), shared: shared.clone(), ended: false, put_back: None },
        round_trip,
    };
    (stream, End { to_app: Some(to_app), from_app: Some(from_app), pending: None, shared })
}

/// Code of a direction given up by its owner.
const ABANDONED: quinn_proto::VarInt = quinn_proto::VarInt::from_u32(0);

impl End {
    /// Moves what can be moved in both directions. `true` when both have ended.
    pub fn turn(&mut self, connection: &mut quinn_proto::Connection) -> bool {
        self.shared.told.store(false, Ordering::Release);
        self.write(connection);
        self.read(connection);
        self.to_app.is_none() && self.from_app.is_none()
    }

    /// The peer wants no more of what we send.
    pub fn stopped(&mut self) {
        self.from_app = None;
    }

    fn write(&mut self, connection: &mut quinn_proto::Connection) {
        let Some(channel) = &mut self.from_app else { return };
        let mut stream = connection.send_stream(self.shared.key.id);
        loop {
            let data = match self.pending.take() {
                Some(data) => data,
                None => match channel.try_recv() {
                    Ok(Out::Data(data)) => data,
                    Ok(Out::Finish) => {
                        // Fails only if the peer has stopped the stream, and then nobody waits for the end.
                        let _ = stream.finish();
                        self.from_app = None;
                        return;
                    }
                    Err(mpsc::error::TryRecvError::Empty) => return,
                    Err(mpsc::error::TryRecvError::Disconnected) => {
                        let _ = stream.reset(ABANDONED);
                        self.from_app = None;
                        return;
                    }
                },
            };
            let mut chunks = [data];
            let written = stream.write_chunks(&mut chunks);
            let [rest] = chunks;
            match written {
                Ok(written) if written.chunks == 1 => {}
                Ok(_) => self.pending = Some(rest),
                Err(quinn_proto::WriteError::Blocked) => {
                    self.pending = Some(rest);
                    return;
                }
                Err(quinn_proto::WriteError::Stopped(_) | quinn_proto::WriteError::ClosedStream) => {
                    self.from_app = None;
                    return;
                }
            }
        }
    }

    fn read(&mut self, connection: &mut quinn_proto::Connection) {
        let Some(channel) = self.to_app.clone() else { return };
        let id = self.shared.key.id;
        let mut stream = connection.recv_stream(id);
        loop {
            let mut permit = channel.try_reserve();
            if matches!(permit, Err(mpsc::error::TrySendError::Full(()))) {
                // Announced first and tried again, so that a reader who empties it in between is not missed.
                self.shared.held_back.store(true, Ordering::Release);
                permit = channel.try_reserve();
            }
            let permit = match permit {
                Ok(permit) => permit,
                Err(mpsc::error::TrySendError::Full(())) => return,
                Err(mpsc::error::TrySendError::Closed(())) => {
                    let _ = stream.stop(ABANDONED);
                    self.to_app = None;
                    return;
                }
            };
            let next = match stream.read(true) {
                Ok(mut chunks) => chunks.next(CHUNK_MAX),
                Err(_) => Err(quinn_proto::ReadError::Reset(ABANDONED)),
            };
            match next {
                Ok(Some(chunk)) => permit.send(Ok(Some(chunk.bytes))),
                Ok(None) => {
                    permit.send(Ok(None));
                    self.to_app = None;
                    return;
                }
                Err(quinn_proto::ReadError::Blocked) => return,
                Err(quinn_proto::ReadError::Reset(_)) => {
                    permit.send(Err(Reset));
                    self.to_app = None;
                    return;
                }
            }
        }
    }
}
