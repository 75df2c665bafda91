//! Traffic between two network namespaces: one TCP stream as fast as it goes, small questions and answers one after
//! the other, and new connections at a steady rate.

use anyhow::{Context, Result, anyhow};
use rswarm_netoverlay::device::netns::Netns;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::thread;
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::runtime::Runtime;
use tokio_util::sync::CancellationToken;

/// Bytes of one write or read in bulk.
const CHUNK: usize = 256 << 10;
/// Bytes of a question, and of its answer.
const QUESTION: usize = 64;
/// Nothing takes longer than this.
const PATIENCE: Duration = Duration::from_secs(10);

/// From where to where.
pub struct Ends {
    /// Where the client is.
    pub from: Netns,
    /// Where the server is.
    pub to: Netns,
    /// The server's address.
    pub address: Ipv4Addr,
}

impl Ends {
    fn connect(&self) -> Result<(TcpStream, TcpStream)> {
        let listener = self.to.run(|| TcpListener::bind((self.address, 0)))??;
        let to = listener.local_addr()?;
        let client = self.from.run(|| TcpStream::connect_timeout(&to, PATIENCE))?;
        let client = client.with_context(|| format!("cannot connect to {to}"))?;
        let (server, _) = listener.accept()?;
        for end in [&client, &server] {
            end.set_read_timeout(Some(PATIENCE))?;
            end.set_write_timeout(Some(PATIENCE))?;
            end.set_nodelay(true)?;
        }
        Ok((client, server))
    }

    /// One stream for `lasting`: the bytes that arrived, and the time it took.
    pub fn bulk(&self, lasting: Duration) -> Result<(u64, Duration)> {
        let (mut client, mut server) = self.connect()?;
        thread::scope(|scope| {
            let began = Instant::now();
            let receiver = scope.spawn(move || -> std::io::Result<u64> {
                let mut buffer = vec![0; CHUNK];
                let mut received = 0;
                loop {
                    match server.read(&mut buffer)? {
                        0 => return Ok(received),
                        length => received += length as u64,
                    }
                }
            });
            let chunk = vec![0x5a; CHUNK];
            while began.elapsed() < lasting {
                client.write_all(&chunk).context("the stream broke")?;
            }
            drop(client);
            let received = receiver.join().map_err(|_| anyhow!("the receiver panicked"))??;
            Ok((received, began.elapsed()))
        })
    }

    /// Questions and answers for `lasting`: how long each took, in microseconds.
    pub fn round_trips(&self, lasting: Duration) -> Result<Vec<f64>> {
        let (mut client, mut server) = self.connect()?;
        thread::scope(|scope| {
            scope.spawn(move || {
                let mut buffer = [0; QUESTION];
                // Ends when the client does.
                while server.read_exact(&mut buffer).is_ok() && server.write_all(&buffer).is_ok() {}
            });
            let mut took = Vec::new();
            let mut buffer = [0x5a; QUESTION];
            let began = Instant::now();
            while began.elapsed() < lasting {
                let asked = Instant::now();
                client.write_all(&buffer).context("the connection broke")?;
                client.read_exact(&mut buffer).context("the connection broke")?;
                took.push(asked.elapsed().as_secs_f64() * 1e6);
            }
            drop(client);
            Ok(took)
        })
    }
}

/// A runtime whose sockets are all made in `netns`.
pub fn runtime(netns: &Netns) -> Result<Runtime> {
    let built = || tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
    netns.run(built)?.context("cannot start a runtime")
}

/// Greets everyone who connects to `port` in `netns`, as long as the runtime lives.
pub fn greet(netns: &Netns, port: u16) -> Result<Runtime> {
    let runtime = runtime(netns)?;
    let listener = netns.run(|| TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)))??;
    listener.set_nonblocking(true)?;
    runtime.spawn(async move {
        let Ok(listener) = tokio::net::TcpListener::from_std(listener) else { return };
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                // The client may have gone.
                let _ = stream.write_all(b"!").await;
                let _ = stream.read(&mut [0]).await;
            });
        }
    });
    Ok(runtime)
}

/// How new connections fared.
#[derive(Debug, Default)]
pub struct Calls {
    /// Those without a greeting in time.
    pub failed: usize,
    /// How long the others waited for it, in milliseconds.
    pub took: Vec<f64>,
}

/// Makes a new connection `every` so often for `lasting`, and waits for its greeting. `halfway` is called in between.
pub fn call(
    from: &Netns,
    to: SocketAddr,
    every: Duration,
    lasting: Duration,
    halfway: impl Future<Output = Result<()>> + Send,
) -> Result<Calls> {
    let runtime = runtime(from)?;
    let stop = CancellationToken::new();
    let caller = {
        let stop = stop.clone();
        runtime.spawn(async move {
            let mut ticks = tokio::time::interval(every);
            let mut calls = Vec::new();
            let end = tokio::time::Instant::now() + lasting;
            loop {
                tokio::select! {
                    () = stop.cancelled() => break,
                    () = tokio::time::sleep_until(end) => break,
                    _ = ticks.tick() => calls.push(tokio::spawn(greeted(to))),
                }
            }
            let mut all = Calls::default();
            for call in calls {
                match call.await {
                    Ok(Some(took)) => all.took.push(took.as_secs_f64() * 1e3),
                    Ok(None) | Err(_) => all.failed += 1,
                }
            }
            all
        })
    };
    let done = from.run(|| {
        runtime.block_on(async {
            tokio::time::sleep(lasting * 3 / 10).await;
            halfway.await.inspect_err(|_| stop.cancel())?;
            caller.await.context("the callers broke off")
        })
    })?;
    runtime.shutdown_background();
    done
}

async fn greeted(to: SocketAddr) -> Option<Duration> {
    let began = Instant::now();
    let greeting = async {
        let mut stream = tokio::net::TcpStream::connect(to).await?;
        stream.read_u8().await
    };
    tokio::time::timeout(PATIENCE / 2, greeting).await.ok()?.ok()?;
    Some(began.elapsed())
}
