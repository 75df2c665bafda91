//! The data thread: sleeps in `poll`, then takes one turn over socket, devices, connections and peers.

use std::{
    collections::{HashMap, VecDeque},
    io::IoSlice,
    mem,
    net::SocketAddr,
    os::fd::OwnedFd,
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use bytes::{BufMut, Bytes, BytesMut};
use quinn_proto::{
    ClientConfig, Connection, ConnectionHandle, DatagramEvent, Dir, Endpoint, EndpointConfig,
    Event as QuicEvent, SendDatagramError, StreamEvent, StreamId, Transmit, VarInt,
    crypto::rustls::NoInitialCipherSuite,
};
use rustix::event::{PollFd, PollFlags, Timespec};
use tokio::sync::{mpsc, oneshot};

use super::{
    Command, Config, Counters, Event, Identity, OpenError, PeerStatus, Question, Stream,
    liveness::{Change, Liveness},
    socket::{DATAGRAM_MAX, Udp},
    stream, tls,
    wake::Wake,
};
use crate::{
    decide::{
        fast::FastMap,
        forward::{Reason, Routes, Slot},
        segment::{self, Coalescer, VIRTIO},
        too_big,
    },
    table::{NetworkId, NodeId},
};

/// Reads from the socket in one turn, each up to 64 KiB.
const SOCKET_READS: usize = 8;
/// Reads from each device in one turn, each up to 64 KiB.
const DEVICE_READS: usize = 4;
/// Transmits of one connection in one turn, each up to 64 KiB.
const TRANSMITS: usize = 16;
/// Segments in one transmit, at most.
const SEGMENTS: usize = 64;
/// Packets that wait for a peer without a working connection.
const WAITING: usize = 256;
/// Bytes before each packet in a datagram: flags, and the network's number.
const HEADER: usize = 4;
/// In place of a network's number: nothing but padding follows.
const PADDING: u32 = 0;
/// Handshakes in progress beyond which strangers have to prove their address first.
const HANDSHAKES: usize = 64;
/// First and longest pause between two attempts to reach a peer.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(1));
/// An attempt without an answer is given up after this long, because QUIC's own retries slow down ever more.
const DIAL_PATIENCE: Duration = Duration::from_millis(1500);
/// Later than this past its alarm, the thread itself was held up.
const HELD_UP: Duration = Duration::from_millis(100);
/// Refusals are reported at most this often.
const REFUSALS_EVERY: Duration = Duration::from_secs(1);

const CODE_DONE: u32 = 0;
const CODE_STRANGER: u32 = 1;
const CODE_REPLACED: u32 = 2;

/// The thread's state.
pub(super) struct Driver {
    config: Config,
    socket: Udp,
    wake: Arc<Wake<Command>>,
    counters: Arc<Counters>,
    events: mpsc::UnboundedSender<Event>,
    accepted: mpsc::Sender<(NodeId, Stream)>,
    endpoint: Endpoint,
    client: ClientConfig,
    routes: Routes,
    /// In the order of `routes.peers`.
    peers: Vec<Peer>,
    links: FastMap<ConnectionHandle, Link>,
    serial: u64,
    devices: FastMap<NetworkId, OwnedFd>,
    /// Packets of this turn for each device.
    arrived: FastMap<NetworkId, Vec<Bytes>>,
    ready: Ready,
    /// Where the socket is read into; what was read is taken out of it.
    incoming: BytesMut,
    buffer: Vec<u8>,
    out: Vec<u8>,
    refusals_from: Option<Instant>,
    /// Something is left to send; the next sleep is none.
    busy: bool,
}

/// What the last sleep was ended by.
#[derive(Debug, Default)]
struct Ready {
    socket: bool,
    bell: bool,
    devices: Vec<NetworkId>,
}

struct Peer {
    id: NodeId,
    underlay: SocketAddr,
    live: Liveness,
    /// Established connections, oldest first; the last one is used.
    links: Vec<ConnectionHandle>,
    dial: Option<(ConnectionHandle, Instant)>,
    dial_at: Instant,
    backoff: Duration,
    waiting: VecDeque<Bytes>,
    /// Those who wait for a sign of life.
    asking: Vec<oneshot::Sender<()>>,
    error: Option<String>,
}

struct Link {
    connection: Connection,
    serial: u64,
    /// The node this side has dialled.
    dialled: Option<NodeId>,
    /// The peer, once its certificate has proved who it is.
    peer: Option<Slot>,
    /// Frames that had arrived when last looked.
    frames: u64,
    streams: HashMap<StreamId, stream::End>,
}

impl Peer {
    fn link(&self) -> Option<ConnectionHandle> {
        self.links.last().copied()
    }

    fn usable(&self) -> Option<ConnectionHandle> {
        self.link().filter(|_| !self.live.suspect())
    }
}

impl Driver {
    pub fn new(
        config: Config,
        socket: Udp,
        wake: Arc<Wake<Command>>,
        counters: Arc<Counters>,
        events: mpsc::UnboundedSender<Event>,
        accepted: mpsc::Sender<(NodeId, Stream)>,
    ) -> Result<Self, NoInitialCipherSuite> {
        let (server, client) = tls::configs(&config.server, &config.client)?;
        let endpoint_config = match &config.reset_key {
            Some(key) => EndpointConfig::new(Arc::new(ring::hmac::Key::new(ring::hmac::HMAC_SHA256, key))),
            None => EndpointConfig::default(),
        };
        Ok(Self {
            endpoint: Endpoint::new(Arc::new(endpoint_config), Some(server), true, None),
            config,
            socket,
            wake,
            counters,
            events,
            accepted,
            client,
            routes: Routes::default(),
            peers: Vec::new(),
            links: FastMap::default(),
            serial: 0,
            devices: FastMap::default(),
            arrived: FastMap::default(),
            ready: Ready::default(),
            incoming: BytesMut::new(),
            buffer: vec![0; 1 << 17],
            out: Vec::with_capacity(1 << 17),
            refusals_from: None,
            busy: false,
        })
    }

    pub fn run(mut self) {
        loop {
            let alarm = if mem::take(&mut self.busy) { Some(Instant::now()) } else { self.alarm() };
            if let Err(error) = self.sleep(alarm) {
                tracing::error!(%error, "the overlay cannot wait for packets, and stops");
                return;
            }
            let now = Instant::now();
            if let Some(late) = alarm.and_then(|alarm| now.checked_duration_since(alarm))
                && late > HELD_UP
            {
                for peer in &mut self.peers {
                    peer.live.excuse(late, now);
                }
            }
            if self.ready.bell && !self.commands(now) {
                self.stop(now);
                return;
            }
            if self.ready.socket {
                self.read_socket(now);
            }
            self.read_devices();
            self.drive_links(now);
            self.write_devices();
            self.mind_peers(now);
        }
    }

    /// When there is something to do even if nothing arrives.
    fn alarm(&mut self) -> Option<Instant> {
        let mut alarm: Option<Instant> = None;
        let mut at = |when: Option<Instant>| alarm = alarm.into_iter().chain(when).min();
        for link in self.links.values_mut() {
            at(link.connection.poll_timeout());
        }
        for peer in &self.peers {
            at(peer.live.next(peer.link().is_some()));
            match peer.dial {
                Some((_, since)) => at(Some(since + DIAL_PATIENCE)),
                None if peer.usable().is_none() && self.config.node < peer.id => at(Some(peer.dial_at)),
                None => {}
            }
        }
        alarm
    }

    fn sleep(&mut self, alarm: Option<Instant>) -> rustix::io::Result<()> {
        let timeout = alarm.map(|alarm| {
            let pause = alarm.saturating_duration_since(Instant::now());
            Timespec {
                tv_sec: i64::try_from(pause.as_secs()).unwrap_or(i64::MAX),
                tv_nsec: i64::from(pause.subsec_nanos()),
            }
        });
        let mut fds = vec![PollFd::new(&self.socket, PollFlags::IN), PollFd::new(&*self.wake, PollFlags::IN)];
        fds.extend(self.devices.values().map(|device| PollFd::new(device, PollFlags::IN)));
        match rustix::event::poll(&mut fds, timeout.as_ref()) {
            Ok(_) => {}
            Err(rustix::io::Errno::INTR) => {
                self.ready = Ready::default();
                return Ok(());
            }
            Err(error) => return Err(error),
        }
        let woken: Vec<bool> = fds.iter().map(|fd| !fd.revents().is_empty()).collect();
        self.ready.socket = woken[0];
        self.ready.bell = woken[1];
        self.ready.devices.clear();
        let devices = self.devices.keys().zip(&woken[2..]);
        self.ready.devices.extend(devices.filter(|(_, woken)| **woken).map(|(network, _)| *network));
        Ok(())
    }

    /// Takes the commands; `false` when told to stop.
    fn commands(&mut self, now: Instant) -> bool {
        for command in self.wake.take() {
            match command {
                Command::Routes(routes) => self.route(routes, now),
                Command::AddDevice(network, device) => {
                    if let Err(error) = rustix::io::ioctl_fionbio(&device, true) {
                        tracing::warn!(%network, %error, "cannot make the network's device non-blocking");
                    }
                    self.devices.insert(network, device);
                }
                Command::RemoveDevice(network) => {
                    self.devices.remove(&network);
                }
                Command::Open(node, reply) => {
                    // The caller may have gone; then the stream's halves reset themselves.
                    let _ = reply.send(self.open(&node));
                }
                Command::Stream(key) => {
                    if let Some(link) =
                        self.links.get_mut(&key.handle).filter(|link| link.serial == key.serial)
                    {
                        link.turn(key.id);
                    }
                }
                Command::Ask(node, question, reply) => self.ask(&node, question, reply, now),
                Command::Status(reply) => {
                    let _ = reply.send(self.status(now));
                }
                Command::Stop => return false,
            }
        }
        true
    }

    fn route(&mut self, routes: Routes, now: Instant) {
        let mut known: HashMap<NodeId, Peer> =
            mem::take(&mut self.peers).into_iter().map(|peer| (peer.id.clone(), peer)).collect();
        for (slot, (id, underlay)) in (0..).zip(&routes.peers) {
            let mut peer = known.remove(id).unwrap_or_else(|| Peer {
                id: id.clone(),
                underlay: *underlay,
                live: Liveness::new(now),
                links: Vec::new(),
                dial: None,
                dial_at: now,
                backoff: BACKOFF.0,
                waiting: VecDeque::new(),
                asking: Vec::new(),
                error: None,
            });
            if peer.underlay != *underlay {
                peer.underlay = *underlay;
                peer.dial_at = now;
                for handle in
                    peer.dial.take().into_iter().map(|(handle, _)| handle).chain(peer.links.drain(..))
                {
                    close(&mut self.links, handle, now, CODE_REPLACED, b"moved");
                }
            }
            for handle in &peer.links {
                if let Some(link) = self.links.get_mut(handle) {
                    link.peer = Some(slot);
                }
            }
            self.peers.push(peer);
        }
        for peer in known.into_values() {
            for handle in peer.links.iter().copied().chain(peer.dial.map(|(handle, _)| handle)) {
                close(&mut self.links, handle, now, CODE_STRANGER, b"no longer a node");
            }
        }
        self.routes = routes;
    }

    fn open(&mut self, node: &NodeId) -> Result<Stream, OpenError> {
        let peer =
            self.peers.binary_search_by(|peer| peer.id.cmp(node)).map_err(|_| OpenError::NotConnected)?;
        let handle = self.peers[peer].link().ok_or(OpenError::NotConnected)?;
        let link = self.links.get_mut(&handle).ok_or(OpenError::NotConnected)?;
        let id = link.connection.streams().open(Dir::Bi).ok_or(OpenError::Exhausted)?;
        Ok(link.adopt(handle, id, &self.wake))
    }

    /// Makes the peer answer; whoever asked is told by `hear`.
    fn ask(&mut self, node: &NodeId, question: Question, reply: oneshot::Sender<()>, now: Instant) {
        let Ok(at) = self.peers.binary_search_by(|peer| peer.id.cmp(node)) else { return };
        let peer = &mut self.peers[at];
        let Some(link) = peer.link().and_then(|handle| self.links.get_mut(&handle)) else { return };
        peer.asking.retain(|other| !other.is_closed());
        peer.asking.push(reply);
        link.connection.ping();
        self.busy |= link.transmit(&self.socket, &mut self.out, now);
        if question == Question::Path
            && let Some(length) = link.connection.datagrams().max_size()
        {
            // After the question, not in one packet with it, so that its loss is not the answer's.
            let padding = Bytes::from(vec![0; length]);
            let _ = link.connection.datagrams().send(padding, true);
            self.busy |= link.transmit(&self.socket, &mut self.out, now);
        }
    }

    fn status(&mut self, now: Instant) -> Vec<PeerStatus> {
        let Self { peers, links, .. } = self;
        let status = |peer: &Peer| {
            let mut link = peer.link().and_then(|handle| links.get_mut(&handle));
            let path = link.as_ref().map(|link| link.connection.stats().path);
            PeerStatus {
                node: peer.id.clone(),
                underlay: peer.underlay,
                connected: link.is_some(),
                suspect: peer.live.suspect(),
                silent: peer.live.silent(now),
                rtt: path.map(|path| path.rtt),
                packet_max: link.as_mut().and_then(|link| link.packet_max()),
                packets_sent: path.map_or(0, |path| path.sent_packets),
                packets_lost: path.map_or(0, |path| path.lost_packets),
                error: peer.error.clone(),
            }
        };
        peers.iter().map(status).collect()
    }

    fn read_socket(&mut self, now: Instant) {
        for _ in 0..SOCKET_READS {
            let Some((mut all, received)) = self.socket.receive_into(&mut self.incoming) else { return };
            while !all.is_empty() {
                let datagram = all.split_to(received.segment.min(all.len()));
                self.out.clear();
                let event = self.endpoint.handle(now, received.from, None, None, datagram, &mut self.out);
                match event {
                    Some(DatagramEvent::ConnectionEvent(handle, event)) => {
                        if let Some(link) = self.links.get_mut(&handle) {
                            link.connection.handle_event(event);
                        }
                    }
                    Some(DatagramEvent::NewConnection(incoming)) => self.accept(incoming, now),
                    Some(DatagramEvent::Response(transmit)) => {
                        transmit_out(&self.socket, &transmit, &self.out)
                    }
                    None => {}
                }
            }
        }
    }

    fn accept(&mut self, incoming: quinn_proto::Incoming, now: Instant) {
        self.out.clear();
        let from = incoming.remote_address();
        let handshakes = self.links.values().filter(|link| link.peer.is_none()).count();
        if handshakes >= HANDSHAKES {
            if incoming.may_retry()
                && let Ok(transmit) = self.endpoint.retry(incoming, &mut self.out)
            {
                transmit_out(&self.socket, &transmit, &self.out);
            }
            return;
        }
        match self.endpoint.accept(incoming, now, &mut self.out, None) {
            Ok((handle, connection)) => self.add_link(handle, connection, None),
            Err(error) => {
                if let Some(transmit) = error.response {
                    transmit_out(&self.socket, &transmit, &self.out);
                }
                self.refuse(from, error.cause.to_string(), now);
            }
        }
    }

    fn add_link(&mut self, handle: ConnectionHandle, connection: Connection, dialled: Option<NodeId>) {
        self.serial += 1;
        let serial = self.serial;
        self.links.insert(
            handle,
            Link { connection, serial, dialled, peer: None, frames: 0, streams: HashMap::new() },
        );
    }

    fn refuse(&mut self, from: SocketAddr, why: String, now: Instant) {
        tracing::debug!(%from, why, "overlay connection refused");
        if self.refusals_from.is_none_or(|last| now.duration_since(last) >= REFUSALS_EVERY) {
            self.refusals_from = Some(now);
            let _ = self.events.send(Event::Refused { from, why });
        }
    }

    fn read_devices(&mut self) {
        for network in &self.ready.devices {
            let Some(device) = self.devices.get(network) else { continue };
            for _ in 0..DEVICE_READS {
                let Ok(length) = rustix::io::read(device, &mut self.buffer[..]) else { break };
                let mut datagrams = BytesMut::with_capacity(length + 64 * (80 + HEADER));
                let mut send = Outgoing {
                    routes: &self.routes,
                    peers: &mut self.peers,
                    links: &mut self.links,
                    counters: &self.counters,
                    fits: None,
                };
                let cut = segment::split(&self.buffer[..length], |flags, head, payload| {
                    datagrams.put_u32(u32::from(flags) << 24 | network.number());
                    datagrams.put_slice(head);
                    datagrams.put_slice(payload);
                    send.packet(*network, datagrams.split().freeze());
                });
                if cut.is_err() {
                    self.counters.count(Reason::Malformed);
                }
                // Whoever sent it has to make smaller ones.
                if let Some(fits) = send.fits
                    && let Some(gateway) = self.routes.gateway(*network)
                    && let Some(report) = too_big::report(&self.buffer[VIRTIO..length], gateway, fits)
                {
                    let slices = [IoSlice::new(&[0; VIRTIO]), IoSlice::new(&report)];
                    if let Err(error) = rustix::io::writev(device, &slices) {
                        tracing::trace!(%network, %error, "report not written");
                    }
                }
            }
        }
    }

    fn drive_links(&mut self, now: Instant) {
        let handles: Vec<_> = self.links.keys().copied().collect();
        for handle in handles {
            let Some(link) = self.links.get_mut(&handle) else { continue };
            if link.connection.poll_timeout().is_some_and(|at| at <= now) {
                link.connection.handle_timeout(now);
            }
            while let Some(event) = self.links.get_mut(&handle).and_then(|link| link.connection.poll()) {
                self.link_event(handle, event, now);
            }
            self.hear(handle, now);
            self.take_datagrams(handle);
            let Some(link) = self.links.get_mut(&handle) else { continue };
            self.busy |= link.transmit(&self.socket, &mut self.out, now);
            while let Some(event) = link.connection.poll_endpoint_events() {
                if let Some(event) = self.endpoint.handle_event(handle, event) {
                    link.connection.handle_event(event);
                }
            }
            if link.connection.is_drained() {
                self.links.remove(&handle);
            }
        }
    }

    /// Notes that the peer behind `handle` lives, if anything it sealed has come.
    fn hear(&mut self, handle: ConnectionHandle, now: Instant) {
        let Some(link) = self.links.get_mut(&handle) else { return };
        let frames = frames(&link.connection);
        if mem::replace(&mut link.frames, frames) == frames || link.connection.is_closed() {
            return;
        }
        let Some(peer) = link.peer.and_then(|slot| self.peers.get_mut(slot as usize)) else { return };
        if let Some(change) = peer.live.hear(now) {
            announce(&self.events, peer, change);
        }
        for asked in peer.asking.drain(..) {
            // Who has given up waiting needs no answer.
            let _ = asked.send(());
        }
        if peer.waiting.is_empty() || peer.usable() != Some(handle) {
            return;
        }
        for datagram in mem::take(&mut peer.waiting) {
            // Nobody to report to any more; the next one as large is.
            let _ = link.send(datagram, &self.counters);
        }
    }

    fn take_datagrams(&mut self, handle: ConnectionHandle) {
        let Some(link) = self.links.get_mut(&handle) else { return };
        while let Some(datagram) = link.connection.datagrams().recv() {
            let Some(slot) = link.peer else { continue };
            let Some((&[flags, a, b, c], packet)) = datagram.split_first_chunk::<HEADER>() else {
                self.counters.count(Reason::Malformed);
                continue;
            };
            let network = NetworkId::new(u32::from_be_bytes([0, a, b, c])).expect("24 bits");
            if network.number() == PADDING {
                continue;
            }
            match self.routes.incoming(network, slot, packet) {
                Ok(()) if flags & !segment::PARTIAL == 0 => {
                    self.arrived.entry(network).or_default().push(datagram);
                }
                Ok(()) => self.counters.count(Reason::Malformed),
                Err(reason) => self.counters.count(reason),
            }
        }
    }

    fn link_event(&mut self, handle: ConnectionHandle, event: QuicEvent, now: Instant) {
        match event {
            QuicEvent::Connected => self.connected(handle, now),
            QuicEvent::ConnectionLost { reason } => {
                let Some(link) = self.links.get_mut(&handle) else { return };
                // Their halves notice, and report a reset.
                link.streams.clear();
                let from = link.connection.remote_address();
                let dialled = link.dialled.clone();
                let mut known = false;
                for peer in &mut self.peers {
                    let had = peer.links.len();
                    peer.links.retain(|other| *other != handle);
                    let dialling = peer.dial.is_some_and(|(other, _)| other == handle);
                    if dialling {
                        peer.dial = None;
                        peer.dial_at = now + peer.backoff;
                        peer.backoff = (peer.backoff * 2).min(BACKOFF.1);
                    }
                    if dialling || had != peer.links.len() {
                        known = true;
                        peer.error = Some(reason.to_string());
                        tracing::debug!(peer = %peer.id, %reason, "overlay connection ended");
                    }
                }
                if !known && dialled.is_none() {
                    self.refuse(from, reason.to_string(), now);
                }
            }
            QuicEvent::Stream(StreamEvent::Opened { dir: Dir::Bi }) => self.accept_streams(handle),
            QuicEvent::Stream(StreamEvent::Readable { id } | StreamEvent::Writable { id }) => {
                if let Some(link) = self.links.get_mut(&handle) {
                    link.turn(id);
                }
            }
            QuicEvent::Stream(StreamEvent::Stopped { id, .. }) => {
                if let Some(link) = self.links.get_mut(&handle) {
                    if let Some(end) = link.streams.get_mut(&id) {
                        end.stopped();
                    }
                    link.turn(id);
                }
            }
            QuicEvent::Stream(
                StreamEvent::Opened { dir: Dir::Uni }
                | StreamEvent::Finished { .. }
                | StreamEvent::Available { .. },
            )
            | QuicEvent::HandshakeDataReady
            | QuicEvent::DatagramReceived
            | QuicEvent::DatagramsUnblocked => {}
        }
    }

    /// The handshake is done: checks who it is, and uses the connection.
    fn connected(&mut self, handle: ConnectionHandle, now: Instant) {
        let Some(link) = self.links.get_mut(&handle) else { return };
        let from = link.connection.remote_address();
        let identity: &dyn Identity = &*self.config.identity;
        let node = tls::node_of(identity, link.connection.crypto_session().peer_identity());
        let slot = node.as_ref().and_then(|node| self.peers.binary_search_by(|peer| peer.id.cmp(node)).ok());
        let why = match (&node, slot, &link.dialled) {
            (None, ..) => Some("its certificate names no node".to_string()),
            (Some(node), None, _) => {
                Some(format!("its certificate names {node}, which is no node of this cluster"))
            }
            (Some(node), Some(_), Some(dialled)) if node != dialled => {
                Some(format!("its certificate names {node}, but {dialled} was expected there"))
            }
            (Some(node), Some(_), None) if *node > self.config.node => {
                Some(format!("{node} has dialled, but the node with the lower id dials"))
            }
            _ => None,
        };
        if let Some(why) = why {
            for peer in &mut self.peers {
                if peer.dial.is_some_and(|(other, _)| other == handle) {
                    peer.dial = None;
                    peer.dial_at = now + BACKOFF.1;
                    peer.error = Some(why.clone());
                }
            }
            close(&mut self.links, handle, now, CODE_STRANGER, b"not expected here");
            self.busy = true;
            self.refuse(from, why, now);
            return;
        }
        let Some(slot) = slot else { return };
        link.peer = Slot::try_from(slot).ok();
        let peer = &mut self.peers[slot];
        let mine = peer.dial.is_some_and(|(other, _)| other == handle);
        peer.backoff = BACKOFF.0;
        peer.error = None;
        // Only the dialling side closes the older one, so that both ends agree on which one stays.
        let older = mem::take(&mut peer.links);
        if mine {
            peer.dial = None;
        } else {
            peer.links.clone_from(&older);
        }
        peer.links.push(handle);
        let _ = self.events.send(Event::Connected(peer.id.clone()));
        tracing::debug!(peer = %peer.id, "overlay connection up");
        if mine {
            for handle in older {
                close(&mut self.links, handle, now, CODE_REPLACED, b"replaced");
            }
            self.busy = true;
        }
    }

    fn accept_streams(&mut self, handle: ConnectionHandle) {
        let Some(link) = self.links.get_mut(&handle) else { return };
        let peer = link.peer.and_then(|slot| self.peers.get(slot as usize)).map(|peer| peer.id.clone());
        while let Some(id) = link.connection.streams().accept(Dir::Bi) {
            let Some(peer) = &peer else { continue };
            let stream = link.adopt(handle, id, &self.wake);
            // If nobody takes it, its halves are dropped here, and that resets it.
            if self.accepted.try_send((peer.clone(), stream)).is_err() {
                tracing::debug!(%peer, "stream refused: too many wait to be accepted");
            }
            link.turn(id);
        }
    }

    fn write_devices(&mut self) {
        for (network, datagrams) in &mut self.arrived {
            if datagrams.is_empty() {
                continue;
            }
            if let Some(device) = self.devices.get(network) {
                let write = |head: &[u8], parts: &[&[u8]]| {
                    let mut slices = Vec::with_capacity(1 + parts.len());
                    slices.push(IoSlice::new(head));
                    slices.extend(parts.iter().map(|part| IoSlice::new(part)));
                    if let Err(error) = rustix::io::writev(device, &slices) {
                        tracing::trace!(%network, %error, "packet not written");
                        self.counters.count(Reason::Device);
                    }
                };
                let mut coalescer = Coalescer::default();
                for datagram in datagrams.iter() {
                    coalescer.push(datagram[0], &datagram[HEADER..], write);
                }
                coalescer.flush(write);
                self.counters.received.fetch_add(datagrams.len() as u64, Ordering::Relaxed);
            } else {
                self.counters.count(Reason::UnknownNetwork);
            }
            datagrams.clear();
        }
        self.arrived.retain(|network, _| self.devices.contains_key(network));
    }

    /// Asks silent peers, suspects dead ones, dials.
    fn mind_peers(&mut self, now: Instant) {
        for at in 0..self.peers.len() {
            let peer = &mut self.peers[at];
            if let Some(change) = peer.live.check(now) {
                announce(&self.events, peer, change);
            }
            if let Some(link) = peer.link().and_then(|handle| self.links.get_mut(&handle))
                && peer.live.ask(now)
            {
                link.connection.ping();
                self.busy |= link.transmit(&self.socket, &mut self.out, now);
            }
            if let Some((handle, since)) = peer.dial
                && now >= since + DIAL_PATIENCE
            {
                peer.dial = None;
                peer.dial_at = now;
                peer.error = Some(format!("no answer from {}", peer.underlay));
                close(&mut self.links, handle, now, CODE_DONE, b"");
                self.busy = true;
            }
            let peer = &self.peers[at];
            if peer.dial.is_none()
                && peer.usable().is_none()
                && self.config.node < peer.id
                && now >= peer.dial_at
            {
                self.dial(at, now);
            }
        }
    }

    fn dial(&mut self, at: usize, now: Instant) {
        let peer = &mut self.peers[at];
        let name = &self.config.server_name;
        match self.endpoint.connect(now, self.client.clone(), peer.underlay, name) {
            Ok((handle, connection)) => {
                peer.dial = Some((handle, now));
                let id = peer.id.clone();
                self.add_link(handle, connection, Some(id));
                if let Some(link) = self.links.get_mut(&handle) {
                    self.busy |= link.transmit(&self.socket, &mut self.out, now);
                }
            }
            Err(error) => {
                peer.error = Some(error.to_string());
                peer.dial_at = now + BACKOFF.1;
            }
        }
    }

    fn stop(&mut self, now: Instant) {
        for link in self.links.values_mut() {
            link.connection.close(now, VarInt::from_u32(CODE_DONE), Bytes::from_static(b"stopping"));
            link.transmit(&self.socket, &mut self.out, now);
        }
    }
}

/// The way of one packet from a device to a peer.
struct Outgoing<'a> {
    routes: &'a Routes,
    peers: &'a mut [Peer],
    links: &'a mut FastMap<ConnectionHandle, Link>,
    counters: &'a Counters,
    /// The largest packet the path carries, once one was larger.
    fits: Option<u16>,
}

impl Outgoing<'_> {
    fn packet(&mut self, network: NetworkId, datagram: Bytes) {
        let slot = match self.routes.outgoing(network, &datagram[HEADER..]) {
            Ok(slot) => slot,
            Err(reason) => return self.counters.count(reason),
        };
        let Some(peer) = self.peers.get_mut(slot as usize) else {
            return self.counters.count(Reason::NoRoute);
        };
        if let Some(link) = peer.usable().and_then(|handle| self.links.get_mut(&handle)) {
            if link.send(datagram, self.counters).is_err() {
                self.fits = link.packet_max();
            }
        } else if peer.waiting.len() < WAITING {
            peer.waiting.push_back(datagram);
        } else {
            self.counters.count(Reason::PeerDown);
        }
    }
}

impl Link {
    /// Fails if it is larger than the path carries; other reasons to drop it are only counted.
    fn send(&mut self, datagram: Bytes, counters: &Counters) -> Result<(), TooBig> {
        match self.connection.datagrams().send(datagram, true) {
            Ok(()) => {
                counters.sent.fetch_add(1, Ordering::Relaxed);
            }
            Err(SendDatagramError::TooLarge) => {
                counters.count(Reason::TooBig);
                return Err(TooBig);
            }
            Err(
                SendDatagramError::UnsupportedByPeer
                | SendDatagramError::Disabled
                | SendDatagramError::Blocked(_),
            ) => counters.count(Reason::PeerDown),
        }
        Ok(())
    }

    /// The largest packet that fits into one datagram now, in bytes.
    fn packet_max(&mut self) -> Option<u16> {
        let datagram = self.connection.datagrams().max_size()?;
        u16::try_from(datagram.checked_sub(HEADER)?).ok()
    }

    fn adopt(&mut self, handle: ConnectionHandle, id: StreamId, wake: &Arc<Wake<Command>>) -> Stream {
        let (stream, end) = stream::pair(stream::Key { handle, serial: self.serial, id }, wake.clone());
        self.streams.insert(id, end);
        stream
    }

    fn turn(&mut self, id: StreamId) {
        if let Some(end) = self.streams.get_mut(&id)
            && end.turn(&mut self.connection)
        {
            self.streams.remove(&id);
        }
    }

    /// Sends what is due; `true` if more is left than one turn allows.
    fn transmit(&mut self, socket: &Udp, out: &mut Vec<u8>, now: Instant) -> bool {
        let segments = SEGMENTS.min(DATAGRAM_MAX / usize::from(self.connection.current_mtu()).max(1));
        for _ in 0..TRANSMITS {
            out.clear();
            let Some(transmit) = self.connection.poll_transmit(now, segments, out) else { return false };
            transmit_out(socket, &transmit, out);
        }
        true
    }
}

fn transmit_out(socket: &Udp, transmit: &Transmit, bytes: &[u8]) {
    socket.send(
        transmit.destination,
        &bytes[..transmit.size],
        transmit.segment_size.unwrap_or(transmit.size),
    );
}

/// A packet is larger than the path carries.
struct TooBig;

fn close(
    links: &mut FastMap<ConnectionHandle, Link>,
    handle: ConnectionHandle,
    now: Instant,
    code: u32,
    why: &'static [u8],
) {
    if let Some(link) = links.get_mut(&handle) {
        link.peer = None;
        link.streams.clear();
        link.connection.close(now, VarInt::from_u32(code), Bytes::from_static(why));
    }
}

fn announce(events: &mpsc::UnboundedSender<Event>, peer: &Peer, change: Change) {
    let id = peer.id.clone();
    let event = match change {
        Change::Suspect => {
            tracing::warn!(peer = %id, "overlay peer does not answer");
            Event::Suspect(id)
        }
        Change::Recovered => {
            tracing::info!(peer = %id, "overlay peer answers again");
            Event::Recovered(id)
        }
    };
    // Nobody listens any more only while the handle is being dropped.
    let _ = events.send(event);
}

/// Frames that have arrived and were genuine, of the kinds a living peer sends.
fn frames(connection: &Connection) -> u64 {
    let got = connection.stats().frame_rx;
    got.acks + got.ping + got.datagram + got.stream + got.crypto + got.max_stream_data + got.max_data
}
