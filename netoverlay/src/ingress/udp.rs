//! Published UDP ports: each client is a flow with a task of its own, for as long as it is not idle. Between nodes a flow
//! is a stream of length-prefixed datagrams, so none is lost or overtaken on the way. The task sees the client's address,
//! or the gateway's if the client reaches it by another flow already.
//!
//! Answers leave from the address the port is served on. Served on the unspecified address, a machine with several
//! addresses answers from the one its routes prefer.

use std::{
    collections::HashMap,
    net::{SocketAddr, SocketAddrV4},
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use tokio::{
    net::UdpSocket,
    sync::mpsc,
    time::{Instant, sleep_until, timeout},
};
use tokio_util::sync::CancellationToken;

use super::{CONNECTED, Ingress, NEXT_AFTER, Request};
use crate::{
    decide::balance,
    peer::{Receiver, Reset, Stream},
    table::{NetworkId, Protocol},
};

/// A flow without a datagram for this long has ended.
const IDLE: Duration = Duration::from_secs(60);
/// Flows of one port at once; the datagrams of more are dropped.
const FLOWS: usize = 4096;
/// Datagrams of one flow that wait, at most; more are dropped.
const WAITING: usize = 64;
const DATAGRAM_MAX: usize = 1 << 16;

/// The way to a task.
enum Way {
    Here(UdpSocket),
    There(Stream),
}

impl Ingress {
    /// Takes what clients send to `port`.
    pub(super) async fn accept_datagrams(
        self: Arc<Self>,
        socket: UdpSocket,
        port: u16,
        stop: CancellationToken,
    ) {
        let socket = Arc::new(socket);
        let mut flows: HashMap<SocketAddr, mpsc::Sender<Bytes>> = HashMap::new();
        let mut buffer = vec![0; DATAGRAM_MAX];
        loop {
            let received = tokio::select! {
                () = stop.cancelled() => return,
                received = socket.recv_from(&mut buffer) => received,
            };
            // An error belongs to an answer sent earlier, to a client that is gone.
            let Ok((length, from)) = received else { continue };
            let data = Bytes::copy_from_slice(&buffer[..length]);
            let data = match flows.get(&from).map(|flow| flow.try_send(data.clone())) {
                None | Some(Err(mpsc::error::TrySendError::Closed(_))) => data,
                Some(Ok(()) | Err(mpsc::error::TrySendError::Full(_))) => continue,
            };
            if flows.len() >= FLOWS {
                flows.retain(|_, flow| !flow.is_closed());
                if flows.len() >= FLOWS {
                    tracing::debug!(port, "datagram dropped: {FLOWS} clients are served already");
                    continue;
                }
            }
            let (flow, waiting) = mpsc::channel(WAITING);
            if flow.try_send(data).is_ok() {
                flows.insert(from, flow);
            }
            let (ingress, socket, stop) = (self.clone(), socket.clone(), stop.clone());
            self.tracker.spawn(async move {
                tokio::select! {
                    () = stop.cancelled() => {}
                    () = ingress.serve_flow(&socket, from, port, waiting) => {}
                }
            });
        }
    }

    async fn serve_flow(
        &self,
        socket: &UdpSocket,
        client: SocketAddr,
        port: u16,
        mut waiting: mpsc::Receiver<Bytes>,
    ) {
        match self.way(client, port).await {
            None => tracing::debug!(port, %client, "no task takes datagrams"),
            Some(Way::Here(task)) => {
                let mut buffer = vec![0; DATAGRAM_MAX];
                let mut idle_at = Instant::now() + IDLE;
                loop {
                    tokio::select! {
                        () = sleep_until(idle_at) => return,
                        Some(data) = waiting.recv() => if task.send(&data).await.is_err() { return },
                        received = task.recv(&mut buffer) => {
                            let Ok(length) = received else { return };
                            // A client that is gone makes the flow idle.
                            let _ = socket.send_to(&buffer[..length], client).await;
                        }
                    }
                    idle_at = Instant::now() + IDLE;
                }
            }
            Some(Way::There(Stream { mut sender, receiver })) => {
                let mut answers = Datagrams { receiver, bytes: BytesMut::new() };
                let mut idle_at = Instant::now() + IDLE;
                loop {
                    tokio::select! {
                        () = sleep_until(idle_at) => return,
                        Some(data) = waiting.recv() => if sender.send(frame(&data)).await.is_err() { return },
                        answer = answers.next() => {
                            let Ok(Some(answer)) = answer else { return };
                            let _ = socket.send_to(&answer, client).await;
                        }
                    }
                    idle_at = Instant::now() + IDLE;
                }
            }
        }
    }

    /// The way to a task whose node answers.
    async fn way(&self, client: SocketAddr, port: u16) -> Option<Way> {
        let view = self.view.borrow().clone();
        let published = view.port(Protocol::Udp, port)?;
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        let node_of = |backend: &crate::table::Backend| Some(backend.node.clone());
        for backend in balance::order(&published.backends, turn, &view.suspects, node_of) {
            let target = SocketAddrV4::new(backend.address, published.target_port);
            if backend.node == self.node {
                if let Ok(task) = self.local(published.network, client, target) {
                    return Some(Way::Here(task));
                }
                continue;
            }
            let request = Request { protocol: Protocol::Udp, network: published.network, target, client };
            // Nothing is sent to the task before the node has answered, so the next may be tried without harm.
            let patience = NEXT_AFTER * 5;
            if let Ok(Ok(stream)) = timeout(patience, self.ask(&backend.node, request)).await {
                return Some(Way::There(stream));
            }
        }
        None
    }

    fn local(
        &self,
        network: NetworkId,
        client: SocketAddr,
        target: SocketAddrV4,
    ) -> std::io::Result<UdpSocket> {
        UdpSocket::from_std(self.connector.connect_udp(network, client, target)?)
    }

    /// Serves a flow of another node's client to a task here.
    pub(super) async fn serve_datagrams(&self, request: Request, stream: Stream) {
        let task = match self.local(request.network, request.client, request.target) {
            Ok(task) => task,
            Err(error) => {
                tracing::debug!(target = %request.target, %error, "no socket to the task");
                return;
            }
        };
        let Stream { mut sender, receiver } = stream;
        if sender.send(Bytes::from_static(&[CONNECTED])).await.is_err() {
            return;
        }
        let mut questions = Datagrams { receiver, bytes: BytesMut::new() };
        let mut buffer = vec![0; DATAGRAM_MAX];
        let mut idle_at = Instant::now() + IDLE;
        loop {
            tokio::select! {
                () = sleep_until(idle_at) => return,
                question = questions.next() => {
                    let Ok(Some(question)) = question else { return };
                    if task.send(&question).await.is_err() {
                        return;
                    }
                }
                received = task.recv(&mut buffer) => {
                    // A task that refuses ends the flow, and the client's next datagram goes to another.
                    let Ok(length) = received else { return };
                    if sender.send(frame(&buffer[..length])).await.is_err() {
                        return;
                    }
                }
            }
            idle_at = Instant::now() + IDLE;
        }
    }
}

fn frame(data: &[u8]) -> Bytes {
    let mut bytes = BytesMut::with_capacity(2 + data.len());
    bytes.put_u16(u16::try_from(data.len()).expect("a UDP payload is shorter than 64 KiB"));
    bytes.put_slice(data);
    bytes.freeze()
}

/// Datagrams out of a stream.
struct Datagrams {
    receiver: Receiver,
    bytes: BytesMut,
}

impl Datagrams {
    /// The next one; `None` at the end. Cancel-safe.
    async fn next(&mut self) -> Result<Option<Bytes>, Reset> {
        loop {
            if let Some(&[high, low]) = self.bytes.first_chunk() {
                let length = usize::from(u16::from_be_bytes([high, low]));
                if self.bytes.len() >= 2 + length {
                    self.bytes.advance(2);
                    return Ok(Some(self.bytes.split_to(length).freeze()));
                }
            }
            match self.receiver.receive().await? {
                Some(more) => self.bytes.extend_from_slice(&more),
                None => return Ok(None),
            }
        }
    }
}
