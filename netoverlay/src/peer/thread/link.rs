//! One connection to another node: packets, streams and what goes out on the socket.

use std::{
    collections::HashMap,
    sync::{Arc, atomic::Ordering},
    time::Instant,
};

use bytes::Bytes;
use quinn_proto::{Connection, ConnectionHandle, SendDatagramError, StreamId, Transmit};

use crate::{
    decide::{
        datagram::HEADER,
        forward::{Reason, Slot},
    },
    peer::{
        Command, Counters, Stream,
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

pub(super) struct Link {
    pub connection: Connection,
    pub serial: u64,
    /// The node this side has dialled.
    pub dialled: Option<NodeId>,
    /// The peer, once its certificate has proved who it is.
    pub peer: Option<Slot>,
    /// Frames that had arrived when last looked.
    pub frames: u64,
    pub streams: HashMap<StreamId, stream::End>,
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

/// Frames that have arrived and were genuine, of the kinds a living peer sends.
pub(super) fn frames(connection: &Connection) -> u64 {
    let got = connection.stats().frame_rx;
    got.acks + got.ping + got.datagram + got.stream + got.crypto + got.max_stream_data + got.max_data
}
