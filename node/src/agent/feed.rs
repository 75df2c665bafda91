//! What comes in through a door: input, which waits until the program reads it, and signals and sizes, which do not.

use super::enter::{Sink, say};
use crate::executor::Executor;
use rswarm_proto::v1 as pb;
use rswarm_proto::v1::enter_input::What as Input;
use rswarm_proto::v1::enter_output::What as Output;
use rustix::termios::Winsize;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncWriteExt, Interest};
use tokio::net::unix::pipe;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tonic::Streaming;

/// How many bytes may come for a program before it reads them.
pub const ROOM: usize = 256 * 1024;

/// Whom what comes in goes to.
#[derive(Clone, Copy)]
pub enum Whom {
    /// The container's first process.
    First,
    /// Another program, by its pid.
    Beside(i32),
}

/// Passes on to a program what comes for it. What it does not read holds up neither signals nor sizes.
pub async fn feed(
    executor: Arc<Executor>,
    id: String,
    whom: Whom,
    stdin: Option<pipe::Sender>,
    terminal: Option<Arc<Terminal>>,
    mut input: Streaming<pb::EnterInput>,
    sink: Sink,
) {
    let (queue, pieces) = mpsc::unbounded_channel();
    let room = Arc::new(Semaphore::new(ROOM));
    let writing = write(&executor, &id, whom, stdin, terminal.clone(), pieces, sink);
    let hearing = async {
        // Dropped with this: then what has been heard is written, and that is all.
        let queue = queue;
        while let Ok(Some(message)) = input.message().await {
            match message.what {
                Some(Input::Data(bytes)) => {
                    // Who keeps to the room that was told never waits here.
                    let size = u32::try_from(bytes.len().clamp(1, ROOM)).unwrap_or(u32::MAX);
                    let Ok(taken) = room.clone().acquire_many_owned(size).await else { return };
                    let _ = queue.send(Piece::Data(bytes, taken));
                }
                Some(Input::End(_)) => {
                    let _ = queue.send(Piece::End);
                }
                Some(Input::Resize(size)) => {
                    if let Some(terminal) = &terminal {
                        terminal.resize(&size);
                    }
                }
                Some(Input::Signal(signal)) => {
                    let sent = match whom {
                        Whom::First => executor.kill(&id, signal).await,
                        Whom::Beside(pid) => executor.signal(&id, pid, signal).await,
                    };
                    if let Err(error) = sent {
                        tracing::debug!(%error, "a signal did not arrive");
                    }
                }
                Some(Input::Open(_)) | None => {}
            }
        }
    };
    tokio::join!(hearing, writing);
}

/// Something to be written, and the room it takes.
enum Piece {
    Data(bytes::Bytes, OwnedSemaphorePermit),
    End,
}

/// Writes to a program what has come for it, and says how much more may come.
async fn write(
    executor: &Executor,
    id: &str,
    whom: Whom,
    mut stdin: Option<pipe::Sender>,
    terminal: Option<Arc<Terminal>>,
    mut pieces: mpsc::UnboundedReceiver<Piece>,
    sink: Sink,
) {
    let (mut taken, mut told) = (0, 0);
    while let Some(piece) = pieces.recv().await {
        let Piece::Data(bytes, room) = piece else {
            let fed = stdin.take().is_some();
            if let (Whom::First, true) = (whom, fed)
                && let Err(error) = executor.close_stdin(id).await
            {
                tracing::debug!(%error, "the end of the input did not arrive");
            }
            if let Some(terminal) = &terminal {
                // As if the end had been typed.
                let _ = terminal.write_all(b"\x04").await;
            }
            continue;
        };
        if let Some(terminal) = &terminal {
            let _ = terminal.write_all(&bytes).await;
        } else if let Some(pipe) = &mut stdin
            && pipe.write_all(&bytes).await.is_err()
        {
            // It reads no more; what it writes is still to be heard.
            stdin = None;
        }
        drop(room);
        taken += bytes.len() as u64;
        if taken - told >= ROOM as u64 / 4 {
            told = taken;
            say(&sink, Output::Room(taken + ROOM as u64)).await;
        }
    }
}

/// Our end of a terminal.
pub struct Terminal(AsyncFd<OwnedFd>);

impl Terminal {
    pub fn new(master: OwnedFd) -> io::Result<Self> {
        rustix::io::ioctl_fionbio(&master, true)?;
        // SAFETY: it is open for as long as this owns it, and nothing here replaces it.
        Ok(Self(unsafe { AsyncFd::register(master) }?))
    }

    pub async fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.async_io(Interest::READABLE, |fd| Ok(rustix::io::read(fd, &mut *buffer)?)).await
    }

    async fn write_all(&self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let count = self.0.async_io(Interest::WRITABLE, |fd| Ok(rustix::io::write(fd, bytes)?)).await?;
            bytes = &bytes[count..];
        }
        Ok(())
    }

    pub fn resize(&self, size: &pb::WindowSize) {
        let side = |size: u32| u16::try_from(size).unwrap_or(u16::MAX);
        let (ws_row, ws_col) = (side(size.rows), side(size.columns));
        let size = Winsize { ws_row, ws_col, ws_xpixel: 0, ws_ypixel: 0 };
        // A terminal that has hung up has no size.
        let _ = rustix::termios::tcsetwinsize(self.0.get_ref().as_fd(), size);
    }
}
