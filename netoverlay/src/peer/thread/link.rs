//! One connection to another node: packets, streams and what goes out on the socket.

use std::{
    collections::HashMap,
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use bytes::Bytes;
use quinn_proto::{Connection, ConnectionHandle, SendDatagramError, StreamId, Transmit};

use crate::{
    decide::{
        datagram::{HEADER, Offer},
        forward::{Reason, Slot},
    },
    peer::{
        Command, Counters, Stream,
        seal::Seals,
        socket::{DATAGRAM_MAX, Udp},
        stream,
        wake::Wake,
    },
    table::NodeId,
};

/// Transmits of one connection in one turn, each up to 64 KiB.
const TRANSMITS: usize = 16;
/// Segments in one transmit, at most.
const SEGMENTS: usize = 64;
/// Packets from this length on could be too large for a path, in bytes.
const LARGE: usize = 1100;
/// How often it is tried whether the path carries them, while they are sent.
const TRY_EVERY: Duration = Duration::from_millis(200);

pub(super) struct Link {
    pub connection: Connection,
    pub serial: u64,
    /// The node this side has dialled.
    pub dialled: Option<NodeId>,
    /// The peer, once its certificate has proved who it is.
    pub peer: Option<Slot>,
    /// What had been heard when last looked.
    pub heard: u64,
    pub streams: HashMap<StreamId, stream::End>,
    pub seals: Seals,
    /// When it was last tried whether the path still carries large packets.
    pub tried: Instant,
    /// Large packets have been sent since, and nobody but their receiver knows whether they arrive.
    pub untried: bool,
}

impl Link {
    /// Fails if it is larger than the path carries; other reasons to drop it are only counted.
    pub fn send(&mut self, datagram: Bytes, counters: &Counters) -> Result<(), TooBig> {
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
    pub fn packet_max(&mut self) -> Option<u16> {
        let datagram = self.connection.datagrams().max_size()?;
        u16::try_from(datagram.checked_sub(HEADER)?).ok()
    }

    /// Offers a key.
    pub fn tell(&mut self, offer: &Offer) {
        let _ = self.connection.datagrams().send(offer.datagram().into(), true);
    }

    /// Notes that a sealed packet of that length was sent.
    pub fn sent(&mut self, length: usize) {
        self.untried |= length >= LARGE;
    }

    /// From time to time, while large packets are sent that nobody acknowledges: one that QUIC misses if it gets lost.
    pub fn try_path(&mut self, now: Instant) -> bool {
        let due = self.untried && now.duration_since(self.tried) >= TRY_EVERY;
        if due {
            (self.tried, self.untried) = (now, false);
        }
        due
    }

    /// Sends a packet as large as the path is believed to carry.
    pub fn fill(&mut self) {
        if let Some(length) = self.connection.datagrams().max_size() {
            let _ = self.connection.datagrams().send(Bytes::from(vec![0; length]), true);
        }
    }

    /// How much has arrived that was genuine, of the kinds a living peer sends.
    pub fn genuine(&self) -> u64 {
        let got = self.connection.stats().frame_rx;
        let frames =
            got.acks + got.ping + got.datagram + got.stream + got.crypto + got.max_stream_data + got.max_data;
        frames + self.seals.opened()
    }

    pub fn adopt(&mut self, handle: ConnectionHandle, id: StreamId, wake: &Arc<Wake<Command>>) -> Stream {
        let key = stream::Key { handle, serial: self.serial, id };
        let (stream, end) = stream::pair(key, wake.clone(), self.connection.rtt());
        self.streams.insert(id, end);
        stream
    }

    pub fn turn(&mut self, id: StreamId) {
        if let Some(end) = self.streams.get_mut(&id)
            && end.turn(&mut self.connection)
        {
            self.streams.remove(&id);
        }
    }

    /// Sends what is due; `true` if more is left than one turn allows.
    pub fn transmit(&mut self, socket: &Udp, out: &mut Vec<u8>, now: Instant) -> bool {
        let segments = SEGMENTS.min(DATAGRAM_MAX / usize::from(self.connection.current_mtu()).max(1));
        for _ in 0..TRANSMITS {
            out.clear();
            let Some(transmit) = self.connection.poll_transmit(now, segments, out) else { return false };
            transmit_out(socket, &transmit, out);
        }
        true
    }
}

pub(super) fn transmit_out(socket: &Udp, transmit: &Transmit, bytes: &[u8]) {
    socket.send(
        transmit.destination,
        &bytes[..transmit.size],
        transmit.segment_size.unwrap_or(transmit.size),
    );
}

/// A packet is larger than the path carries.
pub(super) struct TooBig;
