//! Asking a container whether it is well: by a program run in it, by an HTTP request, or by a connection.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Empty};
use hyper_util::rt::TokioIo;
use rswarm_shim::protocol::{Exec, Running};
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe;
use tokio::time::timeout;

use super::{ExecExit, Executor, dial};

/// How much is kept of what a probe says, in bytes.
const OUTPUT_MAX: usize = 4096;
/// How long a killed program may take to be gone, before its container's shim is given up.
const DEATH_MAX: Duration = Duration::from_secs(10);
/// How long output may still come once the program and all it started have ended.
const DRAIN: Duration = Duration::from_millis(500);

/// A way to ask a container whether it is well.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Probe {
    /// It is if this program, run in it as its own user, exits with 0.
    Exec {
        /// The program and its arguments; the first is looked up in the container's `PATH`.
        args: Vec<String>,
    },
    /// It is if a GET request is answered with a status from 200 to 399.
    Http {
        /// Where it listens, on its loopback device.
        port: u16,
        /// Begins with `/`; may have a query.
        path: String,
    },
    /// It is if it takes connections.
    Tcp {
        /// Where it listens, on its loopback device.
        port: u16,
    },
}

/// What a probe has found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProbeOutcome {
    /// It is well.
    pub healthy: bool,
    /// For people: what the program wrote, what the server answered, or what went wrong. At most 4 KiB.
    pub output: String,
}

impl Executor {
    /// Probes a container once. What takes longer than `limit` is not well; a program that does is killed with all it
    /// has started, as it is when the future is dropped.
    pub async fn probe(&self, id: &str, probe: &Probe, limit: Duration) -> ProbeOutcome {
        let found = match probe {
            Probe::Exec { args } => self.probe_by_exec(id, args, limit).await,
            Probe::Http { port, path } => {
                let ask = async { http(&self.inside(id)?, *port, path).await };
                timeout(limit, ask).await.unwrap_or_else(|_| Err(slow(limit)))
            }
            Probe::Tcp { port } => {
                let ask = async { tcp(&self.inside(id)?, *port).await };
                timeout(limit, ask).await.unwrap_or_else(|_| Err(slow(limit)))
            }
        };
        let (healthy, mut output) = match found {
            Ok(output) => (true, output),
            Err(output) => (false, output),
        };
        output.truncate(output.floor_char_boundary(OUTPUT_MAX));
        ProbeOutcome { healthy, output }
    }

    fn inside(&self, id: &str) -> Result<Running, String> {
        self.process(id).map_err(|error| error.to_string())
    }

    async fn probe_by_exec(&self, id: &str, args: &[String], limit: Duration) -> Result<String, String> {
        let words = |error: io::Error| error.to_string();
        let (mut reader, stdio) = output_pipe().map_err(words)?;
        let timeout_ms = u64::try_from(limit.as_millis()).ok();
        let exec = Exec { args: args.to_vec(), timeout_ms, contained: true, ..Exec::default() };
        let run = timeout(limit + DEATH_MAX, self.exec(id, exec, stdio));
        let mut output = Vec::new();
        let ended = while_reading(&mut reader, &mut output, run).await;
        let output = String::from_utf8_lossy(&output).into_owned();
        match ended {
            Ok(Ok(ExecExit { timed_out: true, .. })) => {
                Err(format!("{}\n{output}", slow(limit)).trim_end().into())
            }
            Ok(Ok(ExecExit { code: 0, .. })) => Ok(output),
            Ok(Ok(ExecExit { code, .. })) if output.is_empty() => Err(format!("exit code {code}")),
            Ok(Ok(_)) => Err(output),
            Ok(Err(error)) => Err(error.to_string()),
            Err(_) => Err(format!("{}, and it does not die", slow(limit))),
        }
    }
}

fn slow(limit: Duration) -> String {
    format!("no answer within {limit:?}")
}

/// Standard streams for a program that reads nothing, and where what it writes can be read.
fn output_pipe() -> io::Result<(pipe::Receiver, [OwnedFd; 3])> {
    let (reader, writer) = io::pipe()?;
    let writer = OwnedFd::from(writer);
    let stdio = [File::open("/dev/null")?.into(), writer.try_clone()?, writer];
    Ok((pipe::Receiver::from_owned_fd(reader.into())?, stdio))
}

/// Waits for `run`, keeping what is written meanwhile, and what comes in the moment after.
async fn while_reading<T>(
    reader: &mut pipe::Receiver,
    output: &mut Vec<u8>,
    run: impl Future<Output = T>,
) -> T {
    let mut said = std::pin::pin!(read_all(reader, output));
    let mut run = std::pin::pin!(run);
    let mut silent = false;
    let ended = loop {
        tokio::select! {
            ended = &mut run => break ended,
            () = &mut said, if !silent => silent = true,
        }
    };
    if !silent {
        let _ = timeout(DRAIN, said).await;
    }
    ended
}

/// Reads to the end and keeps the beginning: who writes is never held up.
async fn read_all(reader: &mut pipe::Receiver, output: &mut Vec<u8>) {
    let mut buffer = [0; 4096];
    while let Ok(count @ 1..) = reader.read(&mut buffer).await {
        let room = OUTPUT_MAX - output.len();
        output.extend_from_slice(&buffer[..count.min(room)]);
    }
}

async fn tcp(running: &Running, port: u16) -> Result<String, String> {
    let connected = dial::connect(running, port).await;
    connected.map(|_| format!("port {port} takes connections")).map_err(|error| connecting(port, &error))
}

fn connecting(port: u16, error: &io::Error) -> String {
    format!("cannot connect to port {port}: {error}")
}

async fn http(running: &Running, port: u16, path: &str) -> Result<String, String> {
    let stream = dial::connect(running, port).await.map_err(|error| connecting(port, &error))?;
    let failed = |error: hyper::Error| format!("no HTTP on port {port}: {error}");
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(failed)?;
    let request = http::Request::get(path)
        .header(http::header::HOST, format!("localhost:{port}"))
        .header(http::header::USER_AGENT, concat!("rswarm/", env!("CARGO_PKG_VERSION")))
        .header(http::header::CONNECTION, "close")
        .body(Empty::<Bytes>::new())
        .map_err(|error| format!("no path to ask for: {path:?}: {error}"))?;
    let ask = async {
        let response = sender.send_request(request).await.map_err(failed)?;
        let status = response.status();
        let mut output = format!("HTTP {status}\n").into_bytes();
        let mut body = response.into_body();
        while output.len() < OUTPUT_MAX
            && let Some(Ok(frame)) = body.frame().await
        {
            let data = frame.into_data().unwrap_or_default();
            output.extend_from_slice(&data[..data.len().min(OUTPUT_MAX - output.len())]);
        }
        let output = String::from_utf8_lossy(&output).trim_end().to_owned();
        if status.is_success() || status.is_redirection() { Ok(output) } else { Err(output) }
    };
    let mut ask = std::pin::pin!(ask);
    tokio::select! {
        answer = &mut ask => answer,
        // What it said before it ended is still to be read; if that is nothing, the request fails.
        _ = connection => ask.await,
    }
}
