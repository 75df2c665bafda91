//! Files out of a task's container, and into it.

use super::enter::{Sink, say};
use crate::executor::Executor;
use crate::files::{self, Root, Target};
use rswarm_proto::v1 as pb;
use rswarm_proto::v1::enter_input::What as Input;
use rswarm_proto::v1::enter_output::What as Output;
use std::io::{self, Read, Write};
use std::path::PathBuf;
use std::sync::Arc;
use tokio::sync::{Semaphore, mpsc};
use tonic::{Status, Streaming};

/// Pieces on their way to the disk.
const AHEAD: usize = 16;
/// The largest piece that is sent at once, in bytes.
const CHUNK: usize = 32 * 1024;
/// So many copies go on at once on a node: each has a thread for as long as the caller takes.
const COPIES_MAX: usize = 32;

static COPIES: Semaphore = Semaphore::const_new(COPIES_MAX);

/// Copies, and says how that ended.
pub async fn serve(
    executor: Arc<Executor>,
    id: String,
    door: pb::CopyDoor,
    input: Streaming<pb::EnterInput>,
    sink: Sink,
) {
    let path = PathBuf::from(&door.path);
    if !path.is_absolute() || door.path.contains('\0') || door.path.len() >= 4096 {
        let words = format!("`{}` is not an absolute path in the container", door.path.escape_debug());
        let _ = sink.send(Err(Status::invalid_argument(words))).await;
        return;
    }
    let Ok(_copy) = COPIES.try_acquire() else {
        let words =
            format!("{COPIES_MAX} copies go on on this node already: try again when one of them is done");
        let _ = sink.send(Err(Status::resource_exhausted(words))).await;
        return;
    };
    let root = match executor.root(&id, door.into).await {
        Ok(root) => root,
        Err(error) => {
            let _ = sink.send(Err(Status::failed_precondition(error.to_string()))).await;
            return;
        }
    };
    if !say(&sink, Output::Opened(true)).await {
        return;
    }
    let done = match door.into {
        false => out(root, path, door.follow, &sink).await,
        true => into(root, path, door, input).await,
    };
    let last = match done {
        Ok(()) => Output::ExitCode(0),
        Err(error) => {
            let words = crate::image::plain(&error);
            Output::Failed(pb::EnterFailed { code: 1, words })
        }
    };
    say(&sink, last).await;
}

async fn out(root: Root, path: PathBuf, follow: bool, sink: &Sink) -> io::Result<()> {
    let writer = Outward(sink.clone());
    let work = move || {
        let buffered = io::BufWriter::with_capacity(CHUNK, writer);
        files::pack(&root, &path, follow, buffered)
    };
    tokio::task::spawn_blocking(work).await.map_err(io::Error::other)?
}

async fn into(
    root: Root,
    path: PathBuf,
    door: pb::CopyDoor,
    mut input: Streaming<pb::EnterInput>,
) -> io::Result<()> {
    let (sender, receiver) = mpsc::channel(AHEAD);
    let name = Some(door.name).filter(|name| !name.is_empty()).map(Into::into);
    let target = Target { name, contents: door.contents, archive: door.archive };
    let work = tokio::task::spawn_blocking(move || {
        let reader = Inward { pieces: receiver, piece: bytes::Bytes::new(), ended: false };
        files::unpack(&root, &path, &target, reader)
    });
    // Dropping the sender before the end was said is an end that came too early.
    let pass = async move {
        while let Ok(Some(message)) = input.message().await {
            let piece = match message.what {
                Some(Input::Data(bytes)) => Some(bytes),
                Some(Input::End(_)) => None,
                _ => continue,
            };
            let last = piece.is_none();
            if sender.send(piece).await.is_err() || last {
                return;
            }
        }
    };
    let ((), done) = tokio::join!(pass, work);
    done.map_err(io::Error::other)?
}

/// Sends what is written.
struct Outward(Sink);

impl Write for Outward {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = bytes.len().min(CHUNK);
        let piece = Output::Stdout(bytes::Bytes::copy_from_slice(&bytes[..count]));
        let sent = self.0.blocking_send(Ok(pb::EnterOutput { what: Some(piece) }));
        sent.map(|()| count).map_err(|_| io::ErrorKind::BrokenPipe.into())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Reads what is received.
struct Inward {
    pieces: mpsc::Receiver<Option<bytes::Bytes>>,
    piece: bytes::Bytes,
    ended: bool,
}

impl Read for Inward {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.piece.is_empty() && !self.ended {
            match self.pieces.blocking_recv() {
                Some(Some(piece)) => self.piece = piece,
                Some(None) => self.ended = true,
                None => return Err(io::ErrorKind::UnexpectedEof.into()),
            }
        }
        let count = buffer.len().min(self.piece.len());
        buffer[..count].copy_from_slice(&self.piece.split_to(count));
        Ok(count)
    }
}
