//! Who the peers are, how they fare, and which connections lead to them.

use std::{
    collections::{HashMap, VecDeque},
    mem,
    net::SocketAddr,
    time::{Duration, Instant},
};

use bytes::Bytes;
use quinn_proto::{ConnectionHandle, Dir, Event as QuicEvent, StreamEvent, VarInt};
use tokio::sync::{mpsc, oneshot};

use super::{
    Driver,
    link::{Link, frames},
};
use crate::{
    decide::{
        fast::FastMap,
        forward::{Routes, Slot},
    },
    peer::{
        Event, Identity, PeerStatus, Question,
        liveness::{Change, Liveness},
        tls,
    },
    table::NodeId,
};

/// First and longest pause between two attempts to reach a peer.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(1));
/// An attempt without an answer is given up after this long, because QUIC's own retries slow down ever more.
pub(super) const DIAL_PATIENCE: Duration = Duration::from_millis(1500);
/// Refusals are reported at most this often.
const REFUSALS_EVERY: Duration = Duration::from_secs(1);

pub(super) const CODE_DONE: u32 = 0;
const CODE_STRANGER: u32 = 1;
const CODE_REPLACED: u32 = 2;

pub(super) struct Peer {
    pub id: NodeId,
    pub underlay: SocketAddr,
    pub live: Liveness,
    /// Established connections, oldest first; the last one is used.
    pub links: Vec<ConnectionHandle>,
    pub dial: Option<(ConnectionHandle, Instant)>,
    pub dial_at: Instant,
    pub backoff: Duration,
    pub waiting: VecDeque<Bytes>,
    /// Those who wait for a sign of life.
    pub asking: Vec<oneshot::Sender<()>>,
    pub error: Option<String>,
}

impl Peer {
    pub fn link(&self) -> Option<ConnectionHandle> {
        self.links.last().copied()
    }

    pub fn usable(&self) -> Option<ConnectionHandle> {
        self.link().filter(|_| !self.live.suspect())
    }
}

impl Driver {
    pub(super) fn route(&mut self, routes: Routes, now: Instant) {
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

    /// Makes the peer answer; whoever asked is told by `hear`.
    pub(super) fn ask(
        &mut self,
        node: &NodeId,
        question: Question,
        reply: oneshot::Sender<()>,
        now: Instant,
    ) {
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

    pub(super) fn status(&mut self, now: Instant) -> Vec<PeerStatus> {
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

    pub(super) fn refuse(&mut self, from: SocketAddr, why: String, now: Instant) {
        tracing::debug!(%from, why, "overlay connection refused");
        if self.refusals_from.is_none_or(|last| now.duration_since(last) >= REFUSALS_EVERY) {
            self.refusals_from = Some(now);
            let _ = self.events.send(Event::Refused { from, why });
        }
    }

    pub(super) fn link_event(&mut self, handle: ConnectionHandle, event: QuicEvent, now: Instant) {
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
    pub(super) fn connected(&mut self, handle: ConnectionHandle, now: Instant) {
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

    /// Asks silent peers, suspects dead ones, dials.
    pub(super) fn mind_peers(&mut self, now: Instant) {
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

    pub(super) fn dial(&mut self, at: usize, now: Instant) {
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

    /// Notes that the peer behind `handle` lives, if anything it sealed has come.
    pub(super) fn hear(&mut self, handle: ConnectionHandle, now: Instant) {
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
}

pub(super) fn close(
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
