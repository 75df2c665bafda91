//! Published UDP ports: each client is a flow with a task of its own, for as long as it is not idle. Between nodes a flow
//! is a stream of length-prefixed datagrams, so none is lost or overtaken on the way. The task sees the client's address,
//! or the gateway's if the client reaches it by another flow already.
//!
//! Answers leave from the address the port is served on. Served on the unspecified address, a machine with several
//! addresses answers from the one its routes prefer.

use std::{
    cell::RefCell,
    io,
    net::{SocketAddr, SocketAddrV4},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use tokio::{
    net::UdpSocket,
    sync::{OwnedSemaphorePermit, Semaphore, mpsc},
    time::{Instant, sleep_until, timeout},
};
use tokio_util::sync::CancellationToken;

use super::{
    DATAGRAM_BYTES, Ingress,
    word::{CONNECTED, Request},
};
use crate::{
    decide::{
        balance,
        flows::{Flows, Limits},
        patience::NEXT_AFTER,
    },
    peer::{Receiver, Reset, Stream},
    table::{NetworkId, Protocol},
};

/// A flow without a datagram for this long has ended.
const IDLE: Duration = Duration::from_secs(60);
/// Flows of one port at once.
const FLOWS: Limits = Limits { flows: 4096, per_source: 1024 };
/// Datagrams of one flow that wait, at most; more are dropped.
const WAITING: usize = 64;
/// Bytes that wait of one client address, at most: a part of what the node has for all.
const SOURCE_BYTES: usize = DATAGRAM_BYTES / 8;
/// What a datagram takes beside its bytes.
const DATAGRAM_COST: usize = 128;
const DATAGRAM_MAX: usize = 1 << 16;
/// Bytes before each datagram in a stream: its length.
const PREFIX: usize = 2;

/// The way to a task.
enum Way {
    Here(UdpSocket),
    There(Stream),
}

/// The flow of a client, as its port sees it.
struct Flow {
    waiting: mpsc::Sender<Bytes>,
    /// The task has said something.
    answered: Arc<AtomicBool>,
    room: Room,
}

/// How many bytes of one client address may wait.
#[derive(Clone)]
struct Room(Arc<Semaphore>);

impl Default for Room {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(SOURCE_BYTES)))
    }
}

/// A datagram that waits, and what it takes of the room there is, until nobody has it any more.
struct Held {
    frame: Bytes,
    _room: [OwnedSemaphorePermit; 2],
}

impl AsRef<[u8]> for Held {
    fn as_ref(&self) -> &[u8] {
        &self.frame
    }
}

impl Flow {
    /// Has a datagram wait for its turn, if there is room for it.
    fn offer(&self, data: &[u8], all: &Arc<Semaphore>) {
        let cost = u32::try_from(DATAGRAM_COST + data.len()).expect("a datagram is shorter than 4 GiB");
        let (Ok(own), Ok(all)) =
            (self.room.0.clone().try_acquire_many_owned(cost), all.clone().try_acquire_many_owned(cost))
        else {
            return;
        };
        // If too many wait already it is dropped, and the room is free again.
        let _ = self.waiting.try_send(Bytes::from_owner(Held { frame: frame(data), _room: [own, all] }));
    }
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
        let mut flows: Flows<Flow, Room> = Flows::new(FLOWS);
        // Each flow says once that it has ended.
        let (ended, mut endings) = mpsc::unbounded_channel();
        let mut buffer = vec![0; DATAGRAM_MAX];
        loop {
            let received = tokio::select! {
                biased;
                () = stop.cancelled() => return,
                Some((client, number)) = endings.recv() => {
                    flows.end(client, number);
                    continue;
                }
                received = socket.recv_from(&mut buffer) => received,
            };
            // An error belongs to an answer sent earlier, to a client that is gone.
            let Ok((length, from)) = received else { continue };
            if flows.get(from).is_none_or(|flow| flow.waiting.is_closed()) {
                let (waiting, queue) = mpsc::channel(WAITING);
                let answered = Arc::new(AtomicBool::new(false));
                let mut begun = None;
                let fits = flows.begin(from, |number, room: &Room| {
                    begun = Some(number);
                    Flow { waiting, answered: answered.clone(), room: room.clone() }
                });
                let Some(number) = begun.filter(|_| fits) else {
                    tracing::debug!(port, %from, "datagram dropped: enough clients are served already");
                    continue;
                };
                let (ingress, socket, stop) = (self.clone(), socket.clone(), stop.clone());
                let ended = ended.clone();
                self.tracker.spawn(async move {
                    let client = Client { socket: &socket, address: from, answered: &answered };
                    tokio::select! {
                        () = stop.cancelled() => {}
                        () = ingress.serve_flow(client, port, queue) => {}
                    }
                    // Nobody listens any more where the port is no longer served.
                    let _ = ended.send((from, number));
                });
            }
            let Some(flow) = flows.get(from) else { continue };
            flow.offer(&buffer[..length], &self.limit.datagram_bytes);
            if flow.answered.load(Ordering::Relaxed) {
                flows.hold(from);
            }
        }
    }

    async fn serve_flow(&self, client: Client<'_>, port: u16, mut waiting: mpsc::Receiver<Bytes>) {
        match self.way(client.address, port).await {
            None => tracing::debug!(port, client = %client.address, "no task takes datagrams"),
            Some(Way::Here(task)) => {
                let mut idle_at = Instant::now() + IDLE;
                loop {
                    tokio::select! {
                        () = sleep_until(idle_at) => return,
                        data = waiting.recv() => {
                            // Without a sender the flow was given up for another.
                            let Some(data) = data else { return };
                            if task.send(&data[PREFIX..]).await.is_err() {
                                return;
                            }
                        }
                        answer = next_frame(&task) => {
                            let Ok(answer) = answer else { return };
                            client.answer(&answer[PREFIX..]).await;
                        }
                    }
                    idle_at = Instant::now() + IDLE;
                }
            }
            Some(Way::There(Stream { mut sender, receiver, .. })) => {
                let mut answers = Datagrams { receiver, bytes: BytesMut::new() };
                let mut idle_at = Instant::now() + IDLE;
                loop {
                    tokio::select! {
                        () = sleep_until(idle_at) => return,
                        data = waiting.recv() => {
                            let Some(data) = data else { return };
                            if sender.send(data).await.is_err() {
                                return;
                            }
                        }
                        answer = answers.next() => {
                            let Ok(Some(answer)) = answer else { return };
                            client.answer(&answer).await;
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
        for backend in balance::call_order(published, client.ip(), turn, &view.suspects) {
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

    fn local(&self, network: NetworkId, client: SocketAddr, target: SocketAddrV4) -> io::Result<UdpSocket> {
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
        let Stream { mut sender, receiver, .. } = stream;
        if sender.send(Bytes::from_static(&[CONNECTED])).await.is_err() {
            return;
        }
        let mut questions = Datagrams { receiver, bytes: BytesMut::new() };
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
                answer = next_frame(&task) => {
                    // A task that refuses ends the flow, and the client's next datagram goes to another.
                    let Ok(answer) = answer else { return };
                    if sender.send(answer).await.is_err() {
                        return;
                    }
                }
            }
            idle_at = Instant::now() + IDLE;
        }
    }
}

/// Who is answered.
struct Client<'a> {
    socket: &'a UdpSocket,
    address: SocketAddr,
    answered: &'a AtomicBool,
}

impl Client<'_> {
    async fn answer(&self, data: &[u8]) {
        self.answered.store(true, Ordering::Relaxed);
        // A client that is gone makes the flow idle.
        let _ = self.socket.send_to(data, self.address).await;
    }
}

/// The next datagram a task sends, with its length before it. Flows that wait for one need no room to read it into.
async fn next_frame(task: &UdpSocket) -> io::Result<Bytes> {
    thread_local! {
        static BUFFER: RefCell<Vec<u8>> = RefCell::new(vec![0; DATAGRAM_MAX]);
    }
    loop {
        task.readable().await?;
        let taken = BUFFER.with_borrow_mut(|buffer| {
            let length = task.try_recv(buffer)?;
            Ok(frame(&buffer[..length]))
        });
        match taken {
            Err(error) if io::Error::kind(&error) == io::ErrorKind::WouldBlock => {}
            taken => return taken,
        }
    }
}

fn frame(data: &[u8]) -> Bytes {
    let mut bytes = BytesMut::with_capacity(PREFIX + data.len());
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
                if self.bytes.len() >= PREFIX + length {
                    self.bytes.advance(PREFIX);
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_waits_is_bounded_for_each_address_and_for_all_and_gives_its_room_back() {
        let all = Arc::new(Semaphore::new(DATAGRAM_BYTES));
        let largest = vec![7; 65_507];
        let room = Room::default();
        let mut queues = vec![];
        // One address with as many flows as it may have, all of them full.
        for _ in 0..FLOWS.per_source {
            let (waiting, queue) = mpsc::channel(WAITING);
            let flow = Flow { waiting, answered: Arc::default(), room: room.clone() };
            (0..3).for_each(|_| flow.offer(&largest, &all));
            queues.push(queue);
        }
        let taken = DATAGRAM_BYTES - all.available_permits();
        assert!((SOURCE_BYTES - 70_000..=SOURCE_BYTES).contains(&taken), "{taken}");
        let held: usize = queues.iter().map(mpsc::Receiver::len).sum();
        assert!(held * largest.len() <= SOURCE_BYTES, "{held} datagrams");

        // Others still have room, until there is none at all.
        let mut others = vec![];
        for _ in 0..20 {
            let (waiting, queue) = mpsc::channel(WAITING);
            let flow = Flow { waiting, answered: Arc::default(), room: Room::default() };
            (0..WAITING + 5).for_each(|_| flow.offer(&largest, &all));
            others.push(queue);
        }
        assert!(others[0].len() > 60);
        assert!(all.available_permits() < 70_000);

        let first = others[0].try_recv().unwrap();
        assert_eq!(first[..PREFIX], [255, 227]);
        assert_eq!(first.len(), PREFIX + largest.len());
        let part = first.slice(5..9);
        let before = all.available_permits();
        drop(first);
        assert_eq!(all.available_permits(), before, "a part of it is still somewhere");
        drop((part, others, queues));
        assert_eq!(all.available_permits(), DATAGRAM_BYTES);
    }
}
