//! Packets sealed without QUIC: no acknowledgement, no record of what was sent, half the price. QUIC stays what makes
//! the keys, proves who is who, measures the path and says when a peer is gone.
//!
//! Whoever receives offers a key in a QUIC datagram: a number and random bytes, from which both ends derive it with the
//! session's exported secret. Until an offer has come, after the last use an offer allows, and whenever the other side
//! does not know the key any more, packets are QUIC datagrams again, which makes the receiver offer another key.

use std::time::{Duration, Instant};

use quinn_proto::{Connection, Side};
use ring::aead::{AES_128_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};

use crate::decide::{
    datagram::{HEADER, Offer},
    replay::Window,
};

/// Bytes before what is sealed: kind, number of the key, number of the packet.
pub const HEAD: usize = 9;
/// Bytes behind it.
pub const TAG: usize = 16;
/// What a packet of a network grows by, in bytes.
pub const OVERHEAD: usize = HEAD + HEADER + TAG;
/// The kinds, in the first byte. QUIC's packets have one of its two highest bits set.
const SEALED: u8 = 1;
const UNKNOWN: u8 = 2;

const LABEL: &[u8] = b"EXPORTER-rswarm-overlay-packet";
const KEY_LEN: usize = 16;
/// What a key is made of, in bytes.
pub const MATERIAL: usize = KEY_LEN + NONCE_LEN;

/// A key is for so many packets at most, as in QUIC with the same cipher (RFC 9001, 6.6).
const PACKETS_MAX: u32 = 1 << 23;
/// And for so long; a receiver that lives has offered another one by then.
const LIFE: Duration = Duration::from_secs(600);
/// After so many packets, or so long, the receiver offers another one.
const RENEW_PACKETS: u32 = 1 << 22;
const RENEW_AFTER: Duration = Duration::from_secs(120);
/// For so long after its successor's first use a key opens what was under way.
const LINGER: Duration = Duration::from_secs(3);
/// An offer that is not taken is repeated after this, and then ever more rarely.
const REPEAT: Duration = Duration::from_millis(100);
const REPEAT_DOUBLINGS: u32 = 7;
/// After so many times it is another one: the other side may have taken it, lost the key since, and takes none twice.
const OFFERED_MAX: u32 = 3;

/// A datagram that is not QUIC's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outer {
    /// Sealed with that key.
    Sealed {
        /// The key's number.
        index: u32,
        /// The packet's number.
        packet: u32,
    },
    /// The sender does not have that key (any more). Nothing proves who says so.
    Unknown {
        /// The key's number.
        index: u32,
    },
    /// Nothing this version understands.
    Other,
}

/// Whether a datagram is not QUIC's.
pub fn is_foreign(datagram: &[u8]) -> bool {
    datagram.first().is_some_and(|first| first & 0xc0 == 0)
}

/// Reads the head of a datagram that is not QUIC's.
pub fn read(datagram: &[u8]) -> Outer {
    let number = |at: usize| Some(u32::from_be_bytes(*datagram.get(at..)?.first_chunk()?));
    match (datagram.first(), number(1), number(5)) {
        (Some(&SEALED), Some(index), Some(packet)) if datagram.len() >= HEAD + TAG => {
            Outer::Sealed { index, packet }
        }
        (Some(&UNKNOWN), Some(index), None) if datagram.len() == 5 => Outer::Unknown { index },
        _ => Outer::Other,
    }
}

/// What is answered to a packet whose key is not known here; shorter than that.
pub fn unknown(index: u32) -> [u8; 5] {
    let [a, b, c, d] = index.to_be_bytes();
    [UNKNOWN, a, b, c, d]
}

/// A key with its part of the nonces.
pub struct Key {
    key: LessSafeKey,
    iv: [u8; NONCE_LEN],
}

impl Key {
    /// A key made of secret bytes.
    pub fn new(material: &[u8; MATERIAL]) -> Self {
        let (key, iv) = material.split_at(KEY_LEN);
        Self {
            key: LessSafeKey::new(UnboundKey::new(&AES_128_GCM, key).expect("of the cipher's length")),
            iv: iv.try_into().expect("of a nonce's length"),
        }
    }

    /// The key that `offer`, made by the side `receiver` of an established connection, means.
    fn of(connection: &Connection, receiver: Side, offer: &Offer) -> Option<Self> {
        let mut material = [0; MATERIAL];
        let side = [u8::from(receiver.is_client())];
        let context = [&side[..], &offer.index.to_be_bytes(), &offer.salt].concat();
        connection.crypto_session().export_keying_material(&mut material, LABEL, &context).ok()?;
        Some(Self::new(&material))
    }

    fn nonce(&self, packet: u32) -> Nonce {
        let mut nonce = self.iv;
        for (byte, number) in nonce[NONCE_LEN - 4..].iter_mut().zip(packet.to_be_bytes()) {
            *byte ^= number;
        }
        Nonce::assume_unique_for_key(nonce)
    }
}

/// A key others seal with.
struct Opening {
    offer: Offer,
    key: Key,
    window: Window,
    made: Instant,
    /// When it is forgotten, once its successor is in use.
    until: Option<Instant>,
}

/// A key this side seals with.
struct Sealing {
    index: u32,
    key: Key,
    /// The next packet's number. Only ever grows, and a key is taken from one offer once: no nonce is used twice.
    next: u32,
    since: Instant,
}

/// What is to be offered.
#[derive(Debug, PartialEq, Eq)]
pub enum Due {
    /// The same again.
    Again(Offer),
    /// Another key.
    Another,
}

/// The keys of one connection, in both directions.
#[derive(Default)]
pub struct Seals {
    /// Those this side has offered, oldest first; two at most.
    opening: Vec<Opening>,
    sealing: Option<Sealing>,
    /// The number of the last offer that was taken.
    taken: Option<u32>,
    offered: Option<Instant>,
    /// How often one has been offered since one was used.
    offers: u32,
    /// Packets have come in another way than with the newest key.
    astray: bool,
    /// Packets opened, of all keys.
    opened: u64,
}

impl Seals {
    /// How many packets were opened.
    pub fn opened(&self) -> u64 {
        self.opened
    }

    /// Makes a key for the other side, and what to tell it. Returns the number of a key that is forgotten for it.
    pub fn offer(&mut self, connection: &Connection, offer: Offer, now: Instant) -> Option<u32> {
        let key = Key::of(connection, connection.side(), &offer)?;
        self.add(key, offer, now)
    }

    /// The same, with the key that the offer means.
    pub fn add(&mut self, key: Key, offer: Offer, now: Instant) -> Option<u32> {
        let unused = self.opening.last().is_some_and(|newest| newest.window.next() == 0);
        // What is in use stays.
        let over = if unused { self.opening.len() - 1 } else { 0 };
        let dropped = if self.opening.len() > 1 { Some(self.opening.remove(over).offer.index) } else { None };
        self.opening.push(Opening { offer, key, window: Window::default(), made: now, until: None });
        // Whoever takes none at all is not offered more of them than the same again.
        self.offers = if unused { self.offers.saturating_add(1) } else { 1 };
        (self.offered, self.astray) = (Some(now), false);
        dropped
    }

    /// The other side offers a key. One that is older than what was taken before is not taken: the offer may have been
    /// sent twice, and its numbers must not be.
    pub fn take_offer(&mut self, connection: &Connection, offer: &Offer, now: Instant) {
        self.take(offer, now, || Key::of(connection, !connection.side(), offer));
    }

    fn is_news(&self, offer: &Offer) -> bool {
        self.taken.is_none_or(|taken| (1..1 << 31).contains(&offer.index.wrapping_sub(taken)))
    }

    /// The same, with the key that the offer means.
    pub fn take(&mut self, offer: &Offer, now: Instant, key: impl FnOnce() -> Option<Key>) {
        if self.is_news(offer)
            && let Some(key) = key()
        {
            self.taken = Some(offer.index);
            self.sealing = Some(Sealing { index: offer.index, key, next: 0, since: now });
        }
    }

    /// The other side says that it does not know the key of that number.
    pub fn forget(&mut self, index: u32) {
        self.sealing.take_if(|sealing| sealing.index == index);
    }

    /// Whether packets can be sealed at `now`. Between this and the next packet no limit is looked at but their number.
    pub fn ready(&mut self, now: Instant) -> bool {
        let spent = |key: &mut Sealing| now.duration_since(key.since) >= LIFE || key.next >= PACKETS_MAX;
        self.sealing.take_if(spent);
        self.sealing.is_some()
    }

    /// Appends a sealed packet made of `parts` to `out`; `false`, and nothing appended, if there is no key for it.
    pub fn seal(&mut self, parts: [&[u8]; 3], out: &mut Vec<u8>) -> bool {
        let Some(sealing) = self.sealing.as_mut().filter(|sealing| sealing.next < PACKETS_MAX) else {
            return false;
        };
        let number = sealing.next;
        sealing.next += 1;
        let start = out.len();
        out.push(SEALED);
        out.extend_from_slice(&sealing.index.to_be_bytes());
        out.extend_from_slice(&number.to_be_bytes());
        for part in parts {
            out.extend_from_slice(part);
        }
        let (head, body) = out[start..].split_at_mut(HEAD);
        match sealing.key.key.seal_in_place_separate_tag(sealing.key.nonce(number), Aad::from(&*head), body) {
            Ok(tag) => out.extend_from_slice(tag.as_ref()),
            // Only if it were longer than the cipher allows.
            Err(_) => out.truncate(start),
        }
        out.len() > start
    }

    /// Opens a packet in place: what was sealed, behind [`HEAD`] bytes. None: it is not genuine, or has come before.
    /// `fresh`: it is the first one with a key that has replaced another.
    pub fn open(&mut self, index: u32, number: u32, datagram: &mut [u8], now: Instant) -> Option<Opened> {
        let at = self.opening.iter().rposition(|opening| opening.offer.index == index)?;
        let is_newest = at + 1 == self.opening.len();
        let opening = &mut self.opening[at];
        if !opening.window.is_fresh(number) {
            return None;
        }
        let (head, body) = datagram.split_at_mut(HEAD);
        let length =
            opening.key.key.open_in_place(opening.key.nonce(number), Aad::from(&*head), body).ok()?.len();
        let first = opening.window.next() == 0;
        opening.window.take(number).then_some(())?;
        self.opened += 1;
        self.astray |= !is_newest;
        if is_newest && first {
            for older in &mut self.opening[..at] {
                older.until = Some(now + LINGER);
            }
        }
        Some(Opened { length, replaced: is_newest && first && at > 0 })
    }

    /// A packet has come as a QUIC datagram.
    pub fn bypassed(&mut self) {
        self.astray = true;
    }

    /// What is to be offered now, if anything.
    pub fn due(&mut self, now: Instant) -> Option<Due> {
        let newest = self.opening.last()?;
        let used = newest.window.next();
        let old = used >= RENEW_PACKETS || (used > 0 && now.duration_since(newest.made) >= RENEW_AFTER);
        if !self.astray && !old {
            return None;
        }
        let pause = REPEAT * (1 << self.offers.saturating_sub(1).min(REPEAT_DOUBLINGS));
        if self.offered.is_some_and(|last| now.duration_since(last) < pause) {
            return None;
        }
        self.astray = false;
        if used > 0 || self.offers >= OFFERED_MAX {
            return Some(Due::Another);
        }
        (self.offered, self.offers) = (Some(now), self.offers.saturating_add(1));
        Some(Due::Again(newest.offer))
    }

    /// Forgets the keys that are over; returns the number of one.
    pub fn retire(&mut self, now: Instant) -> Option<u32> {
        let over = self.opening.iter().position(|opening| opening.until.is_some_and(|until| until <= now))?;
        Some(self.opening.remove(over).offer.index)
    }

    /// Forgets all keys, for good; returns the numbers of those offered.
    pub fn clear(&mut self) -> impl Iterator<Item = u32> {
        self.sealing = None;
        self.opening.drain(..).map(|opening| opening.offer.index)
    }
}

#[cfg(test)]
impl Seals {
    /// As if so many packets had been sealed.
    pub fn skip_to(&mut self, packets: u32) {
        self.sealing.as_mut().expect("there is a key").next = packets;
    }

    /// The number of the key it seals with.
    pub fn seals_with(&self) -> Option<u32> {
        self.sealing.as_ref().map(|sealing| sealing.index)
    }
}

/// An opened packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Opened {
    /// Its length, in bytes.
    pub length: usize,
    /// It is the first one with a key that replaces another.
    pub replaced: bool,
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn key(number: u8) -> Key {
        Key::new(&[number; MATERIAL])
    }

    fn offer(index: u32) -> Offer {
        Offer { index, salt: [0; 32] }
    }

    /// Both ends of one direction, with one key.
    fn pair(now: Instant) -> (Seals, Seals) {
        let (mut from, mut to) = (Seals::default(), Seals::default());
        assert_eq!(to.add(key(1), offer(7), now), None);
        from.take(&offer(7), now, || Some(key(1)));
        (from, to)
    }

    fn sealed(from: &mut Seals, packet: &[u8]) -> Vec<u8> {
        let mut out = vec![];
        assert!(from.seal([b"head", b"", packet], &mut out));
        assert!(is_foreign(&out));
        out
    }

    fn open(to: &mut Seals, datagram: &[u8], now: Instant) -> Option<Vec<u8>> {
        let mut datagram = datagram.to_vec();
        let Outer::Sealed { index, packet } = read(&datagram) else { return None };
        let opened = to.open(index, packet, &mut datagram, now)?;
        Some(datagram[HEAD..HEAD + opened.length].to_vec())
    }

    #[test]
    fn what_is_sealed_is_opened_once_and_only_as_it_was() {
        let now = Instant::now();
        let (mut from, mut to) = pair(now);
        let (first, second) = (sealed(&mut from, b"one"), sealed(&mut from, b"two"));
        for at in 0..second.len() {
            let mut altered = second.clone();
            altered[at] ^= 1;
            assert_eq!(open(&mut to, &altered, now), None, "byte {at}");
        }
        assert_eq!(open(&mut to, &second[..second.len() - 1], now), None);
        assert_eq!(open(&mut to, &second, now).unwrap(), b"headtwo");
        assert_eq!(open(&mut to, &first, now).unwrap(), b"headone", "late, but not lost");
        assert_eq!((open(&mut to, &first, now), open(&mut to, &second, now)), (None, None), "again");
        assert_eq!(to.opened(), 2);
    }

    #[test]
    fn no_number_is_used_twice_with_a_key() {
        let now = Instant::now();
        let mut from = Seals::default();
        from.take(&offer(u32::MAX), now, || Some(key(1)));
        let first = sealed(&mut from, b"packet");
        assert!(!from.is_news(&offer(u32::MAX)), "an offer that is sent twice is taken once");
        assert!(from.is_news(&offer(0)), "numbers go round");
        from.take(&offer(0), now, || Some(key(2)));
        assert!(!from.is_news(&offer(u32::MAX)), "an older one comes too late");
        from.forget(0);
        assert!(!from.ready(now) && !from.seal([b"", b"", b""], &mut vec![]));
        assert!(!from.is_news(&offer(0)), "nor is it taken again after it was forgotten");
        assert_ne!(first, sealed(&mut pair(now).0, b"packet"));
        let mut from = pair(now).0;
        from.clear().for_each(drop);
        assert!(!from.is_news(&offer(7)));
    }

    #[test]
    fn a_key_ends_by_number_and_by_time() {
        let now = Instant::now();
        let (mut from, _) = pair(now);
        assert!(from.ready(now) && !from.ready(now + LIFE), "by time");
        let (mut from, _) = pair(now);
        from.sealing.as_mut().unwrap().next = PACKETS_MAX - 1;
        let mut out = vec![];
        assert!(from.seal([b"", b"", b"last"], &mut out) && !from.seal([b"", b"", b"more"], &mut out));
        assert_eq!(out.len(), HEAD + 4 + TAG, "nothing is left behind by what was not sealed");
        assert!(!from.ready(now), "by number");
    }

    #[test]
    fn an_offer_is_repeated_ever_more_rarely_while_it_is_not_taken() {
        let now = Instant::now();
        let mut to = Seals::default();
        assert_eq!(to.due(now), None, "before the first");
        to.add(key(1), offer(7), now);
        assert_eq!(to.due(now + LIFE), None, "nobody sends anything");
        let (mut repeated, mut others) = (0, 0);
        for ms in 0..60_000 {
            let now = now + Duration::from_millis(ms);
            to.bypassed();
            match to.due(now) {
                Some(Due::Again(again)) => {
                    assert_eq!(again, offer(7));
                    repeated += 1;
                }
                Some(Due::Another) => {
                    others += 1;
                    to.add(key(1), offer(7 + others), now);
                }
                None => {}
            }
        }
        assert_eq!(repeated, OFFERED_MAX - 1);
        let repeated = repeated + others;
        assert!((5..15).contains(&repeated), "{repeated} times a minute");
    }

    #[test]
    fn a_used_key_is_followed_by_another_and_lingers() {
        let now = Instant::now();
        let (mut from, mut to) = pair(now);
        let (early, late) = (sealed(&mut from, b"early"), sealed(&mut from, b"late"));
        open(&mut to, &early, now).unwrap();
        assert_eq!(to.due(now + REPEAT), None);
        assert_eq!(to.due(now + RENEW_AFTER), Some(Due::Another), "in time");
        let (mut other, mut bypass) = pair(now);
        open(&mut bypass, &sealed(&mut other, b""), now).unwrap();
        bypass.bypassed();
        assert_eq!(bypass.due(now), None, "not at once: what was under way is no sign");
        assert_eq!(bypass.due(now + REPEAT), Some(Due::Another), "the other side has lost it");

        to.add(key(2), offer(8), now);
        from.take(&offer(8), now, || Some(key(2)));
        assert_eq!(to.retire(now + LIFE), None, "as long as the new one is not in use");
        let next = sealed(&mut from, b"next");
        let mut datagram = next.clone();
        assert!(to.open(8, 0, &mut datagram, now).unwrap().replaced);
        assert_eq!(open(&mut to, &late, now).unwrap(), b"headlate");
        assert_eq!((to.retire(now), to.retire(now + LINGER)), (None, Some(7)));
        assert_eq!(open(&mut to, &late, now), None);
        to.add(key(3), offer(9), now);
        assert_eq!(to.add(key(4), offer(10), now), Some(9), "two at most, and the one in use stays");
    }

    #[test]
    fn a_key_that_was_taken_and_lost_before_its_first_use_is_followed_by_another() {
        let now = Instant::now();
        let (mut from, mut to) = pair(now);
        // By its age; or anybody has said that it is not known.
        from.forget(7);
        let mut at = now;
        let another = loop {
            at += REPEAT;
            assert!(at < now + LIFE, "never another");
            to.bypassed();
            match to.due(at) {
                Some(Due::Again(offer)) => from.take(&offer, at, || Some(key(1))),
                Some(Due::Another) => break at,
                None => {}
            }
            assert!(!from.ready(at), "none is taken twice");
        };
        assert!(another < now + Duration::from_secs(2), "after {:?}", another - now);
        to.add(key(2), offer(8), at);
        from.take(&offer(8), at, || Some(key(2)));
        let mut datagram = sealed(&mut from, b"sealed again");
        assert!(to.open(8, 0, &mut datagram, at).is_some());
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic_or_pass(bytes in proptest::collection::vec(any::<u8>(), 0..80), ours: bool) {
            let now = Instant::now();
            let (_, mut to) = pair(now);
            let head = if ours { vec![SEALED, 0, 0, 0, 7] } else { vec![] };
            prop_assert_eq!(open(&mut to, &[head, bytes].concat(), now), None);
        }
    }
}
