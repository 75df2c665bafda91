//! The data thread: sleeps in `poll`, then takes one turn over socket, devices, connections and peers.

use std::{
    collections::HashMap,
    io::IoSlice,
    mem,
    os::fd::OwnedFd,
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use bytes::{Bytes, BytesMut};
use quinn_proto::{
    ClientConfig, Connection, ConnectionHandle, DatagramEvent, Dir, Endpoint, EndpointConfig, VarInt,
    crypto::rustls::NoInitialCipherSuite,
};
use ring::rand::{SecureRandom, SystemRandom};
use rustix::event::{PollFd, PollFlags, Timespec};
use tokio::sync::mpsc;

use self::{
    link::{Link, transmit_out},
    outgoing::{Batch, Outgoing},
    peers::{CODE_DONE, DIAL_PATIENCE, Peer},
};
use super::{
    Command, Config, Counters, Event, OpenError, Stream,
    seal::{self, Seals},
    socket::Udp,
    tls,
    wake::Wake,
};
use crate::{
    decide::{
        datagram::{self, Datagram, HEADER},
        fast::FastMap,
        forward::{Reason, Routes, Slot},
        segment::{self, Coalescer, VIRTIO},
        too_big,
    },
    table::{NetworkId, NodeId},
};

mod link;
mod outgoing;
mod peers;
mod sealed;
#[cfg(test)]
mod tests;

/// Reads from the socket in one turn, each up to 64 KiB.
const SOCKET_READS: usize = 8;
/// Reads from each device in one turn, each up to 64 KiB.
const DEVICE_READS: usize = 4;
/// Packets that wait for a peer without a working connection.
const WAITING: usize = 256;
/// Handshakes in progress beyond which strangers have to prove their address first.
const HANDSHAKES: usize = 64;
/// Later than this past its alarm, the thread itself was held up.
const HELD_UP: Duration = Duration::from_millis(100);

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
    /// Whose each key is that was offered.
    keys: FastMap<u32, ConnectionHandle>,
    /// The next key's number.
    next_key: u32,
    random: SystemRandom,
    /// When it was last said that a key is not known.
    unknown_at: Option<Instant>,
    serial: u64,
    devices: FastMap<NetworkId, OwnedFd>,
    /// Packets of this turn for each device.
    arrived: FastMap<NetworkId, Vec<Bytes>>,
    ready: Ready,
    /// Where the socket is read into; what was read is taken out of it.
    incoming: BytesMut,
    buffer: Vec<u8>,
    out: Vec<u8>,
    /// Sealed packets of this turn, for one peer.
    batch: Batch,
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
        let mut endpoint_config = match &config.reset_key {
            Some(key) => EndpointConfig::new(Arc::new(ring::hmac::Key::new(ring::hmac::HMAC_SHA256, key))),
            None => EndpointConfig::default(),
        };
        // So that what QUIC sends can be told from what is sealed without it.
        endpoint_config.grease_quic_bit(false);
        // Not where it was before a restart: a key of then must not be taken for one of now.
        let random = SystemRandom::new();
        let mut next_key = [0; 4];
        // Nearly so is good enough, should there be no randomness; then there will be no keys, either.
        let _ = random.fill(&mut next_key);
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
            keys: FastMap::default(),
            next_key: u32::from_ne_bytes(next_key),
            random,
            unknown_at: None,
            serial: 0,
            devices: FastMap::default(),
            arrived: FastMap::default(),
            ready: Ready::default(),
            incoming: BytesMut::new(),
            buffer: vec![0; 1 << 17],
            out: Vec::with_capacity(1 << 17),
            batch: Batch::default(),
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
            if !self.turn(now) {
                return;
            }
        }
    }

    /// Does what there is to do at `now`, which the last sleep has found out; `false` when told to stop.
    fn turn(&mut self, now: Instant) -> bool {
        if self.ready.bell && !self.commands(now) {
            self.stop(now);
            return false;
        }
        if self.ready.socket {
            self.read_socket(now);
        }
        self.read_devices(now);
        self.drive_links(now);
        self.write_devices();
        self.mind_peers(now);
        true
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

    fn open(&mut self, node: &NodeId) -> Result<Stream, OpenError> {
        let peer =
            self.peers.binary_search_by(|peer| peer.id.cmp(node)).map_err(|_| OpenError::NotConnected)?;
        let handle = self.peers[peer].link().ok_or(OpenError::NotConnected)?;
        let link = self.links.get_mut(&handle).ok_or(OpenError::NotConnected)?;
        let id = link.connection.streams().open(Dir::Bi).ok_or(OpenError::Exhausted)?;
        Ok(link.adopt(handle, id, &self.wake))
    }

    fn read_socket(&mut self, now: Instant) {
        for _ in 0..SOCKET_READS {
            let Some((mut all, received)) = self.socket.receive_into(&mut self.incoming) else { return };
            while !all.is_empty() {
                let datagram = all.split_to(received.segment.min(all.len()));
                if seal::is_foreign(&datagram) {
                    self.read_sealed(datagram, received.from, now);
                    continue;
                }
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
            Ok((handle, connection)) => self.add_link(handle, connection, None, now),
            Err(error) => {
                if let Some(transmit) = error.response {
                    transmit_out(&self.socket, &transmit, &self.out);
                }
                self.refuse(from, error.cause.to_string(), now);
            }
        }
    }

    fn add_link(
        &mut self,
        handle: ConnectionHandle,
        connection: Connection,
        dialled: Option<NodeId>,
        now: Instant,
    ) {
        self.serial += 1;
        let serial = self.serial;
        self.links.insert(
            handle,
            Link {
                connection,
                serial,
                dialled,
                peer: None,
                heard: 0,
                streams: HashMap::new(),
                seals: Seals::default(),
                tried: now,
                untried: false,
            },
        );
    }

    fn read_devices(&mut self, now: Instant) {
        for network in &self.ready.devices {
            let Some(device) = self.devices.get(network) else { continue };
            for _ in 0..DEVICE_READS {
                let Ok(length) = rustix::io::read(device, &mut self.buffer[..]) else { break };
                let mut send = Outgoing {
                    network: *network,
                    routes: &self.routes,
                    peers: &mut self.peers,
                    links: &mut self.links,
                    counters: &self.counters,
                    socket: &self.socket,
                    batch: &mut self.batch,
                    now,
                    fits: None,
                };
                let cut = segment::split(&self.buffer[..length], |flags, head, payload| {
                    send.packet(flags, head, payload);
                });
                let fits = send.fits;
                if cut.is_err() {
                    self.counters.count(Reason::Malformed);
                }
                // Whoever sent it has to make smaller ones.
                if let Some(fits) = fits
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
        self.batch.flush(&self.socket);
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
            self.take_datagrams(handle, now);
            self.mind_keys(handle, now);
            let Some(link) = self.links.get_mut(&handle) else { continue };
            self.busy |= link.transmit(&self.socket, &mut self.out, now);
            while let Some(event) = link.connection.poll_endpoint_events() {
                if let Some(event) = self.endpoint.handle_event(handle, event) {
                    link.connection.handle_event(event);
                }
            }
            if link.connection.is_drained() {
                self.links.remove(&handle);
                self.keys.retain(|_, whose| *whose != handle);
            }
        }
    }

    fn take_datagrams(&mut self, handle: ConnectionHandle, now: Instant) {
        while let Some(link) = self.links.get_mut(&handle)
            && let Some(datagram) = link.connection.datagrams().recv()
        {
            let Some(slot) = link.peer else { continue };
            match datagram::read(&datagram) {
                Ok(Datagram::Padding) => {}
                Ok(Datagram::Offer(offer)) => link.seals.take_offer(&link.connection, &offer, now),
                Ok(Datagram::Packet { .. }) => {
                    link.seals.bypassed();
                    self.arrive(slot, datagram);
                }
                Err(reason) => self.counters.count(reason),
            }
        }
    }

    /// Takes a datagram that proved to be from the peer at `slot`, if what is in it belongs here.
    fn arrive(&mut self, slot: Slot, datagram: Bytes) {
        let network = match datagram::read(&datagram) {
            Ok(Datagram::Packet { network, packet, .. }) => {
                self.routes.incoming(network, slot, packet).map(|()| network)
            }
            // Said by QUIC alone.
            Ok(Datagram::Padding | Datagram::Offer(_)) => return,
            Err(reason) => Err(reason),
        };
        match network {
            Ok(network) => self.arrived.entry(network).or_default().push(datagram),
            Err(reason) => self.counters.count(reason),
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

    fn stop(&mut self, now: Instant) {
        for link in self.links.values_mut() {
            link.connection.close(now, VarInt::from_u32(CODE_DONE), Bytes::from_static(b"stopping"));
            link.transmit(&self.socket, &mut self.out, now);
        }
    }
}
