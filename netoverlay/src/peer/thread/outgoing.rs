//! The way of a packet from a device to a peer: sealed if there is a key for it, else as a QUIC datagram.

use std::{net::SocketAddr, sync::atomic::Ordering, time::Instant};

use bytes::{BufMut, BytesMut};
use quinn_proto::ConnectionHandle;

use super::{WAITING, link::Link, peers::Peer};
use crate::{
    decide::{
        datagram::{self, HEADER},
        fast::FastMap,
        forward::{Reason, Routes},
    },
    peer::{
        Counters,
        seal::OVERHEAD,
        socket::{DATAGRAM_MAX, Udp},
    },
    table::NetworkId,
};

/// Datagrams in one call, at most: more than that the kernel does not cut.
const SEGMENTS: usize = 64;

/// Sealed packets for one address, all of one length but the last, which may be shorter: they leave in one call.
#[derive(Default)]
pub(super) struct Batch {
    bytes: Vec<u8>,
    to: Option<SocketAddr>,
    segment: usize,
    count: usize,
    /// A shorter one has ended it.
    closed: bool,
}

impl Batch {
    /// Makes room for a packet of `length` bytes for `to`. Where it goes is returned.
    fn room(&mut self, to: SocketAddr, length: usize, socket: &Udp) -> &mut Vec<u8> {
        if self.closed
            || self.to != Some(to)
            || length > self.segment
            || self.count == SEGMENTS
            || self.bytes.len() + length > DATAGRAM_MAX
        {
            self.flush(socket);
            (self.to, self.segment) = (Some(to), length);
        }
        self.count += 1;
        self.closed = length < self.segment;
        &mut self.bytes
    }

    pub fn flush(&mut self, socket: &Udp) {
        if let Some(to) = self.to.take()
            && !self.bytes.is_empty()
        {
            socket.send(to, &self.bytes, self.segment);
        }
        self.bytes.clear();
        (self.count, self.closed) = (0, false);
    }
}

/// What is needed to send the packets of one read.
pub(super) struct Outgoing<'a> {
    pub network: NetworkId,
    pub routes: &'a Routes,
    pub peers: &'a mut [Peer],
    pub links: &'a mut FastMap<ConnectionHandle, Link>,
    pub counters: &'a Counters,
    pub socket: &'a Udp,
    pub batch: &'a mut Batch,
    pub now: Instant,
    /// The largest packet the path carries, once one was larger.
    pub fits: Option<u16>,
}

impl Outgoing<'_> {
    pub fn packet(&mut self, flags: u8, head: &[u8], payload: &[u8]) {
        let slot = match self.routes.outgoing(self.network, head, payload.len()) {
            Ok(slot) => slot,
            Err(reason) => return self.counters.count(reason),
        };
        let Some(peer) = self.peers.get_mut(slot as usize) else {
            return self.counters.count(Reason::NoRoute);
        };
        let header = datagram::header(flags, self.network);
        let length = head.len() + payload.len();
        let mut link = peer.usable().and_then(|handle| self.links.get_mut(&handle));
        if let Some(link) = &mut link {
            let fits = link.packet_max();
            if fits.is_some_and(|fits| length > usize::from(fits)) {
                self.counters.count(Reason::TooBig);
                self.fits = fits;
                return;
            }
            if link.seals.ready(self.now) {
                let to = link.connection.remote_address();
                let out = self.batch.room(to, OVERHEAD + length, self.socket);
                if link.seals.seal([&header, head, payload], out) {
                    link.sent(length);
                    self.counters.sent.fetch_add(1, Ordering::Relaxed);
                    return;
                }
            }
        }
        let mut datagram = BytesMut::with_capacity(HEADER + length);
        datagram.put_slice(&header);
        datagram.put_slice(head);
        datagram.put_slice(payload);
        let datagram = datagram.freeze();
        if let Some(link) = link {
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
