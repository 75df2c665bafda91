//! What arrives sealed without QUIC, and the keys for it.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use bytes::{Buf, BytesMut};
use quinn_proto::ConnectionHandle;
use ring::rand::SecureRandom;

use super::Driver;
use crate::{
    decide::{datagram::Offer, forward::Reason},
    peer::seal::{self, Due, HEAD, Outer},
};

/// How often anybody is told that his key is not known.
const UNKNOWN_EVERY: Duration = Duration::from_millis(10);

impl Driver {
    /// Takes a datagram that is not QUIC's.
    pub(super) fn read_sealed(&mut self, mut datagram: BytesMut, from: SocketAddr, now: Instant) {
        match seal::read(&datagram) {
            Outer::Sealed { index, packet } => {
                let Some(handle) = self.keys.get(&index).copied() else {
                    return self.tell_unknown(index, from, now);
                };
                let Some(link) = self.links.get_mut(&handle) else { return };
                let Some(slot) = link.peer.filter(|_| !link.connection.is_closed()) else { return };
                let Some(opened) = link.seals.open(index, packet, &mut datagram, now) else {
                    return self.counters.count(Reason::Forged);
                };
                if opened.replaced {
                    // What the offer was sealed with goes as well: who learns the keys of now does not learn this one.
                    link.connection.force_key_update();
                }
                datagram.truncate(HEAD + opened.length);
                datagram.advance(HEAD);
                self.arrive(slot, datagram.freeze());
            }
            // Anybody can say so. All that follows is that packets take the way that needs no key, until there is one.
            Outer::Unknown { index } => {
                let there = self.links.values_mut().filter(|link| link.connection.remote_address() == from);
                there.for_each(|link| link.seals.forget(index));
            }
            Outer::Other => self.counters.count(Reason::Malformed),
        }
    }

    /// Whoever seals with a key of before a restart should know at once.
    fn tell_unknown(&mut self, index: u32, from: SocketAddr, now: Instant) {
        self.counters.count(Reason::Forged);
        if self.unknown_at.is_none_or(|last| now.duration_since(last) >= UNKNOWN_EVERY) {
            self.unknown_at = Some(now);
            self.socket.send(from, &seal::unknown(index), seal::unknown(index).len());
        }
    }

    /// Offers the peer behind `handle` a key.
    pub(super) fn offer(&mut self, handle: ConnectionHandle, now: Instant) {
        let Some(link) = self.links.get_mut(&handle) else { return };
        let mut salt = [0; 32];
        if self.random.fill(&mut salt).is_err() {
            return;
        }
        while self.keys.contains_key(&self.next_key) {
            self.next_key = self.next_key.wrapping_add(1);
        }
        let offer = Offer { index: self.next_key, salt };
        self.next_key = self.next_key.wrapping_add(1);
        if let Some(dropped) = link.seals.offer(&link.connection, offer, now) {
            self.keys.remove(&dropped);
        }
        self.keys.insert(offer.index, handle);
        link.tell(&offer);
    }

    /// Offers what is due, and forgets keys that are over.
    pub(super) fn mind_keys(&mut self, handle: ConnectionHandle, now: Instant) {
        let Some(link) = self.links.get_mut(&handle) else { return };
        if let Some(over) = link.seals.retire(now) {
            self.keys.remove(&over);
        }
        match link.seals.due(now) {
            Some(Due::Again(offer)) => link.tell(&offer),
            Some(Due::Another) => self.offer(handle, now),
            None => {}
        }
    }
}
