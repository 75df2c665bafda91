//! Published TCP ports: a client's connection is joined to one that a task's node makes from the client's own address.
//! A task that refuses or keeps silent is passed over; one that is lost before either side has said a word is exchanged
//! for another.

use std::{
    collections::{BTreeSet, VecDeque},
    io,
    net::{Ipv4Addr, SocketAddr, SocketAddrV4},
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use bytes::{Buf, Bytes, BytesMut};
use futures_util::{StreamExt, stream::FuturesUnordered};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        TcpListener, TcpStream,
        tcp::{ReadHalf, WriteHalf},
    },
    time::{Instant, sleep_until, timeout},
};
use tokio_util::sync::CancellationToken;

use super::{
    CONNECTIONS, GIVE_UP, Ingress,
    word::{CONNECTED, Request},
};
use crate::{
    decide::{
        balance,
        patience::{NEXT_AFTER, patience},
        proxy,
    },
    peer::{OpenError, Receiver, Reset, Sender, Stream},
    table::{Backend, NodeId, Protocol, PublishedPort},
};

/// Bytes read at once.
const CHUNK: usize = 64 << 10;
/// A connection is exchanged for another at most this often.
const EXCHANGES: usize = 8;

/// Why a task on another node was not reached.
#[derive(Debug, thiserror::Error)]
pub(super) enum Unreachable {
    #[error(transparent)]
    Open(#[from] OpenError),
    #[error("refused")]
    Reset(#[from] Reset),
    #[error("refused")]
    Refused,
}

/// The other end of a client's connection.
enum Upstream {
    Here(TcpStream),
    There(Stream),
}

/// The two ends of a client's connection.
#[derive(Clone, Copy)]
struct Call {
    from: SocketAddr,
    to: SocketAddr,
}

/// Who is not tried again for a client.
#[derive(Default)]
struct Passed {
    nodes: BTreeSet<NodeId>,
    tasks: BTreeSet<Ipv4Addr>,
}

impl Passed {
    fn has(&self, backend: &Backend) -> bool {
        self.nodes.contains(&backend.node) || self.tasks.contains(&backend.address)
    }
}

/// How a connection begins.
enum First {
    /// Somebody has said something, or ended it.
    Word,
    /// The task's side was reset.
    Reset,
    /// The task's node is gone.
    Silence,
}

impl Ingress {
    pub(super) async fn accept_clients(
        self: Arc<Self>,
        listener: TcpListener,
        port: u16,
        stop: CancellationToken,
    ) {
        loop {
            let accepted = tokio::select! {
                () = stop.cancelled() => return,
                accepted = listener.accept() => accepted,
            };
            match accepted {
                Ok((client, from)) => {
                    let Ok(permit) = self.limit.connections.clone().try_acquire_owned() else {
                        tracing::warn!(port, "connection refused: this node carries {CONNECTIONS} already");
                        reset(&client);
                        continue;
                    };
                    let ingress = self.clone();
                    self.tracker.spawn(async move {
                        tokio::select! {
                            () = ingress.stop.cancelled() => {}
                            () = ingress.serve_client(client, from, port) => {}
                        }
                        drop(permit);
                    });
                }
                Err(error) => {
                    // Out of descriptors, most likely: others have to finish first.
                    tracing::warn!(port, %error, "cannot accept a connection");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            }
        }
    }

    async fn serve_client(&self, client: TcpStream, from: SocketAddr, port: u16) {
        let _ = client.set_nodelay(true);
        let Ok(to) = client.local_addr() else { return reset(&client) };
        let call = Call { from, to };
        let mut passed = Passed::default();
        // What there is if no other task is found: its node may be far away, or busy, and not gone.
        let mut last = None;
        let upstream = loop {
            let (backend, mut upstream) = match self.find(call, port, &passed).await {
                Ok(found) => found,
                Err(why) => match last.take() {
                    Some(upstream) => break upstream,
                    None => {
                        tracing::debug!(port, %from, why, "client turned away");
                        return reset(&client);
                    }
                },
            };
            if !self.has_other(port, &backend, &passed) {
                break upstream;
            }
            match self.begins(&client, &backend.node, &mut upstream).await {
                First::Word => break upstream,
                First::Silence => {
                    tracing::debug!(port, %from, peer = %backend.node, "gone before a word was said; another is tried");
                    passed.nodes.insert(backend.node);
                    last = Some(upstream);
                }
                First::Reset => {
                    tracing::debug!(port, %from, task = %backend.address, "reset before a word was said; another is tried");
                    passed.tasks.insert(backend.address);
                }
            }
        };
        drop(last);
        upstream.join(client).await;
    }

    /// Whether there is another task than `backend` and those passed over. Without one the client is better off where
    /// it is.
    fn has_other(&self, port: u16, backend: &Backend, passed: &Passed) -> bool {
        let view = self.view.borrow();
        let mut others = view.port(Protocol::Tcp, port).into_iter().flat_map(|port| &port.backends);
        passed.nodes.len() + passed.tasks.len() < EXCHANGES
            && others.any(|other| other != backend && !passed.has(other))
    }

    /// Waits for the first word of either side, or until the task is lost before there was any: then nothing is lost
    /// that another task could not give.
    async fn begins(&self, client: &TcpStream, node: &NodeId, upstream: &mut Upstream) -> First {
        let Stream { receiver, round_trip, .. } = match upstream {
            Upstream::There(stream) => stream,
            Upstream::Here(task) => {
                let (mut its, mut ours) = ([0], [0]);
                return tokio::select! {
                    biased;
                    said = task.peek(&mut its) => if said.is_ok() { First::Word } else { First::Reset },
                    _ = client.peek(&mut ours) => First::Word,
                };
            }
        };
        let patience = patience(*round_trip);
        let mut byte = [0];
        let word = async {
            tokio::select! {
                biased;
                said = receiver.receive() => match said {
                    Ok(said) => {
                        receiver.put_back(said.unwrap_or_default());
                        First::Word
                    }
                    Err(Reset) => First::Reset,
                },
                _ = client.peek(&mut byte) => First::Word,
            }
        };
        tokio::pin!(word);
        if let Some(patience) = patience {
            if let Ok(first) = timeout(patience.ask_after, &mut word).await {
                return first;
            }
            tokio::select! {
                biased;
                first = &mut word => return first,
                answered = timeout(patience.answer_within, self.mesh.ask(node.clone())) => {
                    if !matches!(answered, Ok(true)) {
                        return First::Silence;
                    }
                }
            }
        }
        tokio::select! {
            biased;
            first = word => first,
            () = self.suspected(node) => First::Silence,
        }
    }

    /// Done when this node suspects `node`.
    async fn suspected(&self, node: &NodeId) {
        let mut view = self.view.clone();
        if view.wait_for(|view| view.suspects.contains(node)).await.is_err() {
            // The overlay stops, and this with it.
            std::future::pending::<()>().await;
        }
    }

    /// Finds a task that takes the connection: one after the other, with a new one joining the race when the last has
    /// kept silent for [`NEXT_AFTER`].
    async fn find(&self, call: Call, port: u16, passed: &Passed) -> Result<(Backend, Upstream), String> {
        let view = self.view.borrow().clone();
        let Some(published) = view.port(Protocol::Tcp, port) else {
            return Err("the port is no longer published".into());
        };
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        let mut waiting = balance::call_order(published, call.from.ip(), turn, &view.suspects)
            .into_iter()
            .filter(|backend| !passed.has(backend))
            .collect::<VecDeque<_>>();
        let give_up = Instant::now() + GIVE_UP;
        let mut trying = FuturesUnordered::new();
        let mut next_at = Instant::now();
        let mut errors = Vec::new();
        loop {
            if trying.is_empty() || Instant::now() >= next_at {
                if let Some(backend) = waiting.pop_front() {
                    trying.push(self.reach(published, backend, call));
                    next_at = Instant::now() + NEXT_AFTER;
                } else if trying.is_empty() {
                    return Err(if errors.is_empty() {
                        format!("service {} has no task that takes connections", published.service)
                    } else {
                        errors.join("; ")
                    });
                }
            }
            tokio::select! {
                Some(result) = trying.next() => match result {
                    Ok(found) => return Ok(found),
                    Err(error) => {
                        errors.push(error);
                        next_at = Instant::now();
                    }
                },
                () = sleep_until(next_at), if !waiting.is_empty() => {}
                () = sleep_until(give_up) => return Err("no task has answered in time".into()),
            }
        }
    }

    async fn reach(
        &self,
        port: &PublishedPort,
        backend: Backend,
        call: Call,
    ) -> Result<(Backend, Upstream), String> {
        let target = SocketAddrV4::new(backend.address, port.target_port);
        let error = |why: &dyn std::fmt::Display| format!("{target} on {}: {why}", backend.node);
        let mut upstream = if backend.node == self.node {
            let task = self.connector.connect(port.network, call.from, target).await;
            Upstream::Here(task.map_err(|source| error(&source))?)
        } else {
            let (network, client) = (port.network, call.from);
            let request = Request { protocol: Protocol::Tcp, network, target, client };
            let stream = self.ask(&backend.node, request).await;
            Upstream::There(stream.map_err(|source| error(&source))?)
        };
        if port.proxy_protocol {
            // At once: a task that speaks first does not before it has read this.
            let header = proxy::header(call.from, call.to).into();
            upstream.say(header).await.map_err(|source| error(&source))?;
        }
        Ok((backend, upstream))
    }

    /// Opens a stream to a task on another node; done when that node has reached the task.
    pub(super) async fn ask(&self, node: &NodeId, request: Request) -> Result<Stream, Unreachable> {
        let mut stream = self.mesh.open(node.clone()).await?;
        stream.sender.send(request.encode()).await?;
        match stream.receiver.receive().await? {
            Some(mut answer) if answer.first() == Some(&CONNECTED) => {
                // What the task says first may come along.
                answer.advance(1);
                stream.receiver.put_back(answer);
                Ok(stream)
            }
            _ => Err(Unreachable::Refused),
        }
    }
}

impl Upstream {
    async fn say(&mut self, words: Bytes) -> io::Result<()> {
        match self {
            Self::Here(task) => task.write_all(&words).await,
            Self::There(stream) => stream.sender.send(words).await.map_err(io::Error::other),
        }
    }

    async fn join(self, mut client: TcpStream) {
        let mut task = match self {
            Self::There(stream) => return join(client, stream).await,
            Self::Here(task) => task,
        };
        let _ = task.set_nodelay(true);
        if tokio::io::copy_bidirectional_with_sizes(&mut client, &mut task, CHUNK, CHUNK).await.is_err() {
            reset(&client);
            reset(&task);
        }
    }
}

/// Passes bytes both ways until both ends are done; a reset on one side is one on the other.
pub(super) async fn join(mut tcp: TcpStream, stream: Stream) {
    let (read, write) = tcp.split();
    if tokio::try_join!(upload(read, stream.sender), download(stream.receiver, write)).is_err() {
        reset(&tcp);
    }
}

/// One direction has ended before its time.
struct Broken;

async fn upload(mut read: ReadHalf<'_>, mut sender: Sender) -> Result<(), Broken> {
    let mut buffer = BytesMut::new();
    loop {
        buffer.reserve(CHUNK);
        match read.read_buf(&mut buffer).await {
            Ok(0) => return sender.finish().await.map_err(|_| Broken),
            Ok(_) => sender.send(buffer.split().freeze()).await.map_err(|_| Broken)?,
            Err(_) => return Err(Broken),
        }
    }
}

async fn download(mut receiver: Receiver, mut write: WriteHalf<'_>) -> Result<(), Broken> {
    while let Some(data) = receiver.receive().await.map_err(|_| Broken)? {
        write.write_all(&data).await.map_err(|_| Broken)?;
    }
    write.shutdown().await.map_err(|_| Broken)
}

/// Makes the coming close a reset, so that the other end learns that the connection was not ended on purpose.
pub(super) fn reset(stream: &TcpStream) {
    // Fails only on a closed socket.
    let _ = socket2::SockRef::from(stream).set_linger(Some(Duration::ZERO));
}
