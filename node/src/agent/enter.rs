//! The inside of a door: a task's own streams, another program in its container with its streams, or a connection to
//! one of its ports.

use super::feed::{ROOM, Terminal, Whom, feed};
use crate::executor::{AttachEnd, Error, Exec, Execution, Executor, WindowSize};
use rswarm_proto::v1 as pb;
use rswarm_proto::v1::enter_input::What as Input;
use rswarm_proto::v1::enter_output::What as Output;
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::unix::pipe;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tonic::{Status, Streaming};

/// How much is read at once, in bytes.
const CHUNK: usize = 32 * 1024;
/// How long output may still come once the program has ended: what it has started may hold its streams for ever.
const DRAIN: Duration = Duration::from_millis(500);

/// Where what comes out goes.
pub type Sink = mpsc::Sender<Result<pb::EnterOutput, Status>>;

pub async fn say(sink: &Sink, what: Output) -> bool {
    sink.send(Ok(pb::EnterOutput { what: Some(what) })).await.is_ok()
}

/// Runs a program, until it has ended or nobody listens any more. What it does not hear the end of is left running,
/// as in Docker, unless it had a terminal: that hangs up.
pub async fn exec(
    executor: Arc<Executor>,
    id: String,
    door: pb::ExecDoor,
    input: Streaming<pb::EnterInput>,
    sink: Sink,
) {
    let detach = door.detach;
    let (execution, streams) = match begin(&executor, &id, door).await {
        Ok(begun) => begun,
        Err(Error::Start { code, message }) => {
            say(&sink, Output::Failed(pb::EnterFailed { code, words: message })).await;
            return;
        }
        Err(error) => {
            let _ = sink.send(Err(Status::failed_precondition(error.to_string()))).await;
            return;
        }
    };
    if !say(&sink, Output::Room(ROOM as u64)).await || !say(&sink, Output::Opened(true)).await || detach {
        return;
    }
    relay(executor, id, execution, streams, input, &sink).await;
}

/// Which of its streams something was written to.
type Kind = fn(bytes::Bytes) -> Output;

/// Our ends of a program's standard streams.
struct Streams {
    stdin: Option<pipe::Sender>,
    outputs: Vec<(pipe::Receiver, Kind)>,
    terminal: Option<Arc<Terminal>>,
}

async fn begin(executor: &Executor, id: &str, door: pb::ExecDoor) -> Result<(Execution, Streams), Error> {
    let failed = |source| Error::Io { what: "cannot make the program's streams".into(), source };
    let side = |size: u32| u16::try_from(size).unwrap_or(u16::MAX);
    let tty = door.tty.map(|size| WindowSize { rows: side(size.rows), columns: side(size.columns) });
    let given = |text: String| Some(text).filter(|text| !text.is_empty());
    let mut env = door.env;
    if tty.is_some() && !env.iter().any(|entry| entry.starts_with("TERM=")) {
        env.push("TERM=xterm".into());
    }
    let (user, workdir) = (given(door.user), given(door.workdir));
    let exec = Exec { args: door.args, env, user, workdir, tty, ..Exec::default() };
    let mut streams = Streams { stdin: None, outputs: Vec::new(), terminal: None };
    let stdio = match tty.is_some() || door.detach {
        true => Vec::new(),
        false => pipes(door.stdin, &mut streams).map_err(failed)?,
    };
    let mut execution = executor.begin(id, exec, stdio).await?;
    if let Some(master) = execution.take_terminal() {
        streams.terminal = Some(Arc::new(Terminal::new(master).map_err(failed)?));
    }
    Ok((execution, streams))
}

/// The program's ends of three pipes, or two and nothing to read.
fn pipes(stdin: bool, streams: &mut Streams) -> io::Result<Vec<OwnedFd>> {
    let mut stdio: Vec<OwnedFd> = Vec::new();
    if stdin {
        let (reader, writer) = io::pipe()?;
        streams.stdin = Some(pipe::Sender::from_owned_fd(writer.into())?);
        stdio.push(reader.into());
    } else {
        stdio.push(File::open("/dev/null")?.into());
    }
    let kinds: [Kind; 2] = [Output::Stdout, Output::Stderr];
    for kind in kinds {
        let (reader, writer) = io::pipe()?;
        streams.outputs.push((pipe::Receiver::from_owned_fd(reader.into())?, kind));
        stdio.push(writer.into());
    }
    Ok(stdio)
}

/// How much a container may write before it is taken, in bytes: more, and the listener is let go.
const BEHIND_MAX: usize = 1 << 20;

/// Passes on the streams of a container's first process, until it has ended or nobody listens any more.
pub async fn attach(
    executor: Arc<Executor>,
    id: String,
    door: pb::AttachDoor,
    input: Streaming<pb::EnterInput>,
    sink: Sink,
) {
    let mut streams = Streams { stdin: None, outputs: Vec::new(), terminal: None };
    let begun = async {
        let failed = |source| Error::Io { what: "cannot make the listener's streams".into(), source };
        let mut sinks = pipes(false, &mut streams).map_err(failed)?;
        sinks.remove(0);
        for sink in &sinks {
            // Smaller ones do as well.
            let _ = rustix::pipe::fcntl_setpipe_size(sink, BEHIND_MAX);
        }
        let mut attached = executor.attach(&id, sinks).await?;
        match attached.take_input() {
            Some(fd) if rustix::termios::isatty(&fd) => {
                let terminal = Terminal::new(fd).map_err(failed)?;
                // Two sizes one after the other: a program draws itself anew only for a size that differs.
                if let Some(size) = &door.size {
                    terminal
                        .resize(&pb::WindowSize { rows: size.rows.saturating_add(1), columns: size.columns });
                    terminal.resize(size);
                }
                streams.terminal = Some(Arc::new(terminal));
            }
            Some(fd) if door.stdin => {
                // This end is ours alone; the shim does not write to it.
                streams.stdin = Some(pipe::Sender::from_owned_fd(fd).map_err(failed)?);
            }
            _ => {}
        }
        Ok::<_, Error>(attached)
    };
    let mut attached = match begun.await {
        Ok(attached) => attached,
        Err(error) => {
            let _ = sink.send(Err(Status::failed_precondition(error.to_string()))).await;
            return;
        }
    };
    let (tty, stdin) = (streams.terminal.is_some(), streams.stdin.is_some());
    let told = Output::Streams(pb::TaskStreams { tty, stdin: door.stdin && (tty || stdin) });
    for told in [told, Output::Room(ROOM as u64), Output::Opened(true)] {
        if !say(&sink, told).await {
            return;
        }
    }
    let (mut readers, mut feeding) = (JoinSet::new(), JoinSet::new());
    listen(std::mem::take(&mut streams.outputs), &sink, &mut readers);
    feeding.spawn(feed(executor, id, Whom::First, streams.stdin, streams.terminal, input, sink.clone()));
    let ended = tokio::select! {
        ended = attached.wait() => ended,
        () = sink.closed() => return,
    };
    drop(attached);
    // Now the shim lets go of its ends, so this comes to an end, however slowly the rest is taken.
    tokio::select! {
        () = async { while readers.join_next().await.is_some() {} } => {}
        () = sink.closed() => return,
    }
    match ended {
        Ok(AttachEnd::Exited(exit)) => {
            say(&sink, Output::ExitCode(exit.code)).await;
        }
        Ok(AttachEnd::Lagging) => {
            let words = "detached: the task writes faster than this connection takes it, and is not held up for that; \
                         `rswarm logs -f` shows all";
            say(&sink, Output::Failed(pb::EnterFailed { code: 125, words: words.into() })).await;
        }
        Err(error) => {
            let _ = sink.send(Err(Status::unavailable(error.to_string()))).await;
        }
    }
}

/// Passes on what comes out of pipes.
fn listen(outputs: Vec<(pipe::Receiver, Kind)>, sink: &Sink, readers: &mut JoinSet<()>) {
    for (mut output, kind) in outputs {
        let sink = sink.clone();
        readers.spawn(async move {
            let mut buffer = vec![0; CHUNK];
            while let Ok(count @ 1..) = output.read(&mut buffer).await {
                if !say(&sink, kind(bytes::Bytes::copy_from_slice(&buffer[..count]))).await {
                    return;
                }
            }
        });
    }
}

async fn relay(
    executor: Arc<Executor>,
    id: String,
    mut execution: Execution,
    streams: Streams,
    input: Streaming<pb::EnterInput>,
    sink: &Sink,
) {
    // All of these end with this function.
    let (mut readers, mut feeding) = (JoinSet::new(), JoinSet::new());
    listen(streams.outputs, sink, &mut readers);
    if let Some(terminal) = streams.terminal.clone() {
        let sink = sink.clone();
        readers.spawn(async move {
            let mut buffer = vec![0; CHUNK];
            // Once nobody holds its other end, reading is an error.
            while let Ok(count @ 1..) = terminal.read(&mut buffer).await {
                if !say(&sink, Output::Stdout(bytes::Bytes::copy_from_slice(&buffer[..count]))).await {
                    return;
                }
            }
        });
    }
    let whom = Whom::Beside(execution.pid());
    feeding.spawn(feed(executor, id, whom, streams.stdin, streams.terminal, input, sink.clone()));
    let ended = tokio::select! {
        ended = execution.wait() => ended,
        () = sink.closed() => return,
    };
    let drained = async { while readers.join_next().await.is_some() {} };
    let _ = tokio::time::timeout(DRAIN, drained).await;
    match ended {
        Ok(exit) => {
            say(sink, Output::ExitCode(exit.code)).await;
        }
        Err(error) => {
            let _ = sink.send(Err(Status::unavailable(error.to_string()))).await;
        }
    }
}

/// Passes bytes between a port of the container and the caller, each way until its end.
pub async fn forward(
    executor: Arc<Executor>,
    id: String,
    door: pb::ForwardDoor,
    mut input: Streaming<pb::EnterInput>,
    sink: Sink,
) {
    let Some(port) = u16::try_from(door.port).ok().filter(|port| *port > 0) else {
        let _ = sink.send(Err(Status::invalid_argument(format!("there is no port {}", door.port)))).await;
        return;
    };
    let stream = match executor.connect(&id, port).await {
        Ok(stream) => stream,
        Err(error) => {
            let words = format!("cannot connect to port {port} of the task: {}", root(&error));
            say(&sink, Output::Failed(pb::EnterFailed { code: 1, words })).await;
            return;
        }
    };
    if !say(&sink, Output::Opened(true)).await {
        return;
    }
    let (mut reader, mut writer) = stream.into_split();
    let inward = async {
        while let Ok(Some(message)) = input.message().await {
            match message.what {
                Some(Input::Data(bytes)) if writer.write_all(&bytes).await.is_ok() => {}
                Some(Input::End(_)) => break,
                _ => return Err(()),
            }
        }
        let _ = writer.shutdown().await;
        Ok(())
    };
    let outward = async {
        let mut buffer = vec![0; CHUNK];
        while let Ok(count @ 1..) = reader.read(&mut buffer).await {
            if !say(&sink, Output::Stdout(bytes::Bytes::copy_from_slice(&buffer[..count]))).await {
                return Err(());
            }
        }
        if say(&sink, Output::End(true)).await { Ok(()) } else { Err(()) }
    };
    tokio::select! {
        // Whichever fails ends both.
        _ = async { tokio::try_join!(inward, outward) } => {}
        () = sink.closed() => {}
    }
}

/// The innermost reason.
fn root(error: &Error) -> String {
    let mut cause: &dyn std::error::Error = error;
    while let Some(deeper) = cause.source() {
        cause = deeper;
    }
    cause.to_string()
}
