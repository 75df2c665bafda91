//! Cutting and joining packets. The kernel hands over TCP and UDP packets of up to 64 KiB ("super-packets") with a
//! virtio header; [`split`] cuts them into packets that fit the network, [`Coalescer`] joins what arrives back into
//! super-packets. Payload checksums stay partial throughout: the seal on the wire protects them, and the kernel
//! completes them where a packet leaves for a real network.

/// Length of the virtio header before each packet of the device, in bytes.
pub const VIRTIO: usize = 10;
/// Flag: the transport checksum covers the pseudo header only.
pub const PARTIAL: u8 = 1;
/// Longest header this module copies: IPv4 without options and TCP with all of them, in bytes.
const HEADER_MAX: usize = 80;
/// Packets joined into one at most.
const JOINED_MAX: usize = 64;

const NEEDS_CSUM: u8 = 1;
const GSO_NONE: u8 = 0;
const GSO_TCPV4: u8 = 1;
const GSO_UDP_L4: u8 = 5;
const TCP: u8 = 6;
const UDP: u8 = 17;
const PSH: u8 = 0x08;
const FIN: u8 = 0x01;
const CWR: u8 = 0x80;
const ACK: u8 = 0x10;

/// What the device handed over is not a packet this module understands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a whole IPv4 packet with a sound virtio header")]
pub struct Malformed;

/// Where the headers of an IPv4 packet end.
struct Layout {
    /// Length of the IP header.
    ip: usize,
    /// Length of the IP and transport headers.
    all: usize,
    protocol: u8,
}

impl Layout {
    fn of(packet: &[u8]) -> Option<Self> {
        let first = *packet.first()?;
        let ip = usize::from(first & 15) * 4;
        if first >> 4 != 4 || ip < 20 || packet.len() < ip {
            return None;
        }
        let protocol = packet[9];
        let all = match protocol {
            TCP => ip + usize::from(packet.get(ip + 12)? >> 4) * 4,
            UDP => ip + 8,
            _ => ip,
        };
        let least = if protocol == TCP { ip + 20 } else { all };
        (all >= least && packet.len() >= all).then_some(Self { ip, all, protocol })
    }
}

/// Cuts what was read from the device, a virtio header and a packet, into packets of the size the header asks for.
/// `emit` gets the flags ([`PARTIAL`] or 0), the headers and the payload of each.
pub fn split(read: &[u8], mut emit: impl FnMut(u8, &[u8], &[u8])) -> Result<(), Malformed> {
    let (virtio, packet) = read.split_at_checked(VIRTIO).ok_or(Malformed)?;
    let partial = virtio[0] & NEEDS_CSUM;
    if virtio[1] & 0x7f == GSO_NONE {
        if packet.is_empty() {
            return Err(Malformed);
        }
        emit(partial, packet, &[]);
        return Ok(());
    }
    let layout = Layout::of(packet).ok_or(Malformed)?;
    let wanted = match virtio[1] & 0x7f {
        GSO_TCPV4 => TCP,
        GSO_UDP_L4 => UDP,
        _ => return Err(Malformed),
    };
    let size = usize::from(u16::from_ne_bytes([virtio[4], virtio[5]]));
    if layout.protocol != wanted || size == 0 || layout.all > HEADER_MAX + 40 {
        return Err(Malformed);
    }
    let (headers, payload) = packet.split_at(layout.all);
    let count = payload.len().div_ceil(size);
    let id = u16::from_be_bytes([packet[4], packet[5]]);
    let mut copy = [0; HEADER_MAX + 40];
    let copy = &mut copy[..layout.all];
    for (index, part) in payload.chunks(size).enumerate() {
        copy.copy_from_slice(headers);
        let transport = layout.all - layout.ip + part.len();
        put(copy, 2, length16(layout.ip + transport)?);
        put(copy, 4, id.wrapping_add(low16(index)));
        seal_ip_header(&mut copy[..layout.ip]);
        let pseudo = pseudo_sum(copy, layout.protocol, length16(transport)?);
        let l4 = &mut copy[layout.ip..];
        if layout.protocol == TCP {
            let sequence = u32::from_be_bytes([l4[4], l4[5], l4[6], l4[7]]);
            let advance = u32::try_from(index * size).map_err(|_| Malformed)?;
            l4[4..8].copy_from_slice(&sequence.wrapping_add(advance).to_be_bytes());
            if index + 1 != count {
                l4[13] &= !(FIN | PSH);
            }
            if index != 0 {
                l4[13] &= !CWR;
            }
            put(l4, 16, pseudo);
        } else {
            put(l4, 4, length16(transport)?);
            put(l4, 6, pseudo);
        }
        emit(PARTIAL, copy, part);
    }
    Ok(())
}

/// Joins packets of one flow that follow each other into super-packets for the device. Packets are taken in order and
/// come out in order: within a flow nothing is overtaken.
#[derive(Debug)]
pub struct Coalescer<'p> {
    header: [u8; VIRTIO + HEADER_MAX],
    /// Length of the headers of the packet in the making, virtio excluded.
    headers: usize,
    parts: Vec<&'p [u8]>,
    /// Payload length of all parts but the last, in bytes.
    size: usize,
    total: usize,
    /// The sequence number that comes next.
    sequence: u32,
}

impl Default for Coalescer<'_> {
    fn default() -> Self {
        Self {
            header: [0; VIRTIO + HEADER_MAX],
            headers: 0,
            parts: Vec::new(),
            size: 0,
            total: 0,
            sequence: 0,
        }
    }
}

impl<'p> Coalescer<'p> {
    /// Takes one packet with its flags. Whatever is complete by now goes to `write`: first the virtio header with the
    /// packet's own headers, then the parts of its payload.
    pub fn push(&mut self, flags: u8, packet: &'p [u8], mut write: impl FnMut(&[u8], &[&[u8]])) {
        let Some((headers, tcp)) = joinable(flags, packet) else {
            self.flush(&mut write);
            write(&virtio_for(flags, packet), &[packet]);
            return;
        };
        let (head, payload) = packet.split_at(headers);
        if !self.parts.is_empty() {
            if self.continues(head, payload, tcp) {
                self.parts.push(payload);
                self.total += payload.len();
                self.sequence = self.sequence.wrapping_add(length32(payload));
                let pushed = tcp && head[33] & PSH != 0;
                if pushed {
                    self.header[VIRTIO + 33] |= PSH;
                }
                if pushed || payload.len() < self.size || self.parts.len() == JOINED_MAX {
                    self.flush(&mut write);
                }
                return;
            }
            self.flush(&mut write);
        }
        self.header[VIRTIO..VIRTIO + headers].copy_from_slice(head);
        self.headers = headers;
        self.parts.push(payload);
        self.size = payload.len();
        self.total = payload.len();
        if tcp {
            let sequence = u32::from_be_bytes([head[24], head[25], head[26], head[27]]);
            self.sequence = sequence.wrapping_add(length32(payload));
            if head[33] & PSH != 0 {
                self.flush(&mut write);
            }
        }
    }

    /// Writes the packet in the making.
    pub fn flush(&mut self, mut write: impl FnMut(&[u8], &[&[u8]])) {
        if self.parts.is_empty() {
            return;
        }
        let (virtio, head) = self.header[..VIRTIO + self.headers].split_at_mut(VIRTIO);
        let tcp = head[9] == TCP;
        virtio.copy_from_slice(&virtio_partial(20, tcp));
        if self.parts.len() > 1 {
            virtio[1] = if tcp { GSO_TCPV4 } else { GSO_UDP_L4 };
            virtio[2..4].copy_from_slice(&low16(self.headers).to_ne_bytes());
            virtio[4..6].copy_from_slice(&low16(self.size).to_ne_bytes());
            let transport = low16(self.headers - 20 + self.total);
            put(head, 2, transport + 20);
            seal_ip_header(&mut head[..20]);
            let pseudo = pseudo_sum(head, head[9], transport);
            if tcp {
                put(head, 36, pseudo);
            } else {
                put(head, 24, transport);
                put(head, 26, pseudo);
            }
        }
        write(&self.header[..VIRTIO + self.headers], &self.parts);
        self.parts.clear();
    }

    fn continues(&self, head: &[u8], payload: &[u8], tcp: bool) -> bool {
        let first = &self.header[VIRTIO..VIRTIO + self.headers];
        let same_flow = self.headers == head.len()
            && first[9] == head[9]
            && first[1] == head[1]
            && first[6] == head[6]
            && first[8] == head[8]
            && first[12..24] == head[12..24];
        let fits =
            payload.len() <= self.size && self.headers + self.total + payload.len() <= usize::from(u16::MAX);
        // Only then both are headers of TCP: anybody may send a packet of each kind, one behind the other.
        let in_sequence = || {
            !tcp || head[24..28] == self.sequence.to_be_bytes()
                && first[28..32] == head[28..32]
                && first[34..36] == head[34..36]
                && first[38..] == head[38..]
        };
        same_flow && fits && in_sequence()
    }
}

/// Length of the headers, and whether it is TCP, of a packet that may be joined with its neighbours: IPv4 without
/// options or fragments, UDP or plain TCP data, with a partial checksum.
fn joinable(flags: u8, packet: &[u8]) -> Option<(usize, bool)> {
    let plain = flags & PARTIAL != 0
        && packet.len() > 28
        && packet[0] == 0x45
        && packet[6] & 0x3f == 0
        && packet[7] == 0
        && usize::from(u16::from_be_bytes([packet[2], packet[3]])) == packet.len();
    if !plain {
        return None;
    }
    let layout = Layout::of(packet)?;
    let tcp = match layout.protocol {
        TCP if packet[33] & !PSH == ACK => true,
        UDP if usize::from(u16::from_be_bytes([packet[24], packet[25]])) == packet.len() - 20 => false,
        _ => return None,
    };
    (layout.all <= HEADER_MAX && packet.len() > layout.all).then_some((layout.all, tcp))
}

/// The virtio header for a single packet.
fn virtio_for(flags: u8, packet: &[u8]) -> [u8; VIRTIO] {
    match Layout::of(packet) {
        Some(layout) if flags & PARTIAL != 0 && matches!(layout.protocol, TCP | UDP) => {
            virtio_partial(layout.ip, layout.protocol == TCP)
        }
        _ => [0; VIRTIO],
    }
}

fn virtio_partial(ip: usize, tcp: bool) -> [u8; VIRTIO] {
    let mut virtio = [0; VIRTIO];
    virtio[0] = NEEDS_CSUM;
    virtio[6..8].copy_from_slice(&low16(ip).to_ne_bytes());
    virtio[8..10].copy_from_slice(&(if tcp { 16u16 } else { 6 }).to_ne_bytes());
    virtio
}

fn put(bytes: &mut [u8], at: usize, value: u16) {
    bytes[at..at + 2].copy_from_slice(&value.to_be_bytes());
}

fn length16(length: usize) -> Result<u16, Malformed> {
    u16::try_from(length).map_err(|_| Malformed)
}

fn length32(bytes: &[u8]) -> u32 {
    u32::try_from(bytes.len()).expect("a packet is shorter than 64 KiB")
}

/// The low 16 bits, for what counts modulo 65536 or is known to be smaller.
fn low16(value: usize) -> u16 {
    (value & 0xffff) as u16
}

fn sum(bytes: &[u8], start: u32) -> u32 {
    let (pairs, rest) = bytes.as_chunks::<2>();
    let sum = pairs.iter().fold(start, |sum, pair| sum + u32::from(u16::from_be_bytes(*pair)));
    rest.first().map_or(sum, |last| sum + (u32::from(*last) << 8))
}

fn fold(mut sum: u32) -> u16 {
    while sum >> 16 != 0 {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    low16(sum as usize)
}

/// The internet's checksum of `bytes`; 0 if one that is in them is right.
pub(super) fn checksum(bytes: &[u8]) -> u16 {
    !fold(sum(bytes, 0))
}

/// Writes the checksum of an IPv4 header.
pub(super) fn seal_ip_header(header: &mut [u8]) {
    put(header, 10, 0);
    let checksum = checksum(header);
    put(header, 10, checksum);
}

fn pseudo_sum(header: &[u8], protocol: u8, length: u16) -> u16 {
    fold(sum(&header[12..20], u32::from(protocol) + u32::from(length)))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A super-packet as the kernel hands it over.
    fn super_packet(tcp: bool, options: usize, size: u16, flags: u8, payload: &[u8]) -> Vec<u8> {
        let l4 = if tcp { 20 + options * 4 } else { 8 };
        let mut packet = vec![0; 20 + l4];
        packet[0] = 0x45;
        packet[8] = 64;
        packet[9] = if tcp { TCP } else { UDP };
        packet[12..20].copy_from_slice(&[10, 50, 0, 2, 10, 50, 0, 3]);
        packet[20..24].copy_from_slice(&[0x12, 0x34, 0x00, 0x50]);
        if tcp {
            packet[24..28].copy_from_slice(&0xffff_f000u32.to_be_bytes());
            packet[32] = ((l4 / 4) as u8) << 4;
            packet[33] = flags;
            packet[40..].fill(1);
        } else {
            put(&mut packet, 24, (8 + payload.len()) as u16);
        }
        packet.extend_from_slice(payload);
        let length = packet.len() as u16;
        put(&mut packet, 2, length);
        seal_ip_header(&mut packet[..20]);
        let pseudo = pseudo_sum(&packet, packet[9], length - 20);
        put(&mut packet, if tcp { 36 } else { 26 }, pseudo);
        let mut read = virtio_partial(20, tcp).to_vec();
        if payload.len() > usize::from(size) {
            read[1] = if tcp { GSO_TCPV4 } else { GSO_UDP_L4 };
            read[2..4].copy_from_slice(&((20 + l4) as u16).to_ne_bytes());
            read[4..6].copy_from_slice(&size.to_ne_bytes());
        }
        read.extend_from_slice(&packet);
        read
    }

    fn cut(read: &[u8]) -> Vec<(u8, Vec<u8>)> {
        let mut packets = vec![];
        split(read, |flags, head, payload| packets.push((flags, [head, payload].concat()))).unwrap();
        packets
    }

    fn join(packets: &[(u8, Vec<u8>)]) -> Vec<Vec<u8>> {
        let mut written = vec![];
        let mut coalescer = Coalescer::default();
        let mut write = |head: &[u8], parts: &[&[u8]]| written.push([head, &parts.concat()].concat());
        for (flags, packet) in packets {
            coalescer.push(*flags, packet, &mut write);
        }
        coalescer.flush(&mut write);
        written
    }

    #[test]
    fn kinds_of_packets_do_not_mix() {
        let udp = cut(&super_packet(false, 0, 1348, 0, &[1; 100])).remove(0);
        let mut tcp = cut(&super_packet(true, 0, 1348, ACK, &[2; 100])).remove(0);
        // The number that would come next if UDP had any.
        tcp.1[24..28].fill(0);
        let packets = [udp.clone(), tcp.clone(), udp.clone()];
        let joined = join(&packets);
        assert_eq!(joined.len(), 3);
        assert!(joined.iter().zip(&packets).all(|(joined, packet)| joined.ends_with(&packet.1[40..])));
    }

    #[test]
    fn every_piece_has_a_sound_ip_header_and_a_partial_checksum() {
        let read = super_packet(true, 3, 1348, ACK | PSH, &[7; 5000]);
        let packets = cut(&read);
        assert_eq!(packets.len(), 4);
        for (flags, packet) in &packets {
            assert_eq!(*flags, PARTIAL);
            assert_eq!(fold(sum(&packet[..20], 0)), 0xffff);
            assert_eq!(usize::from(u16::from_be_bytes([packet[2], packet[3]])), packet.len());
            let pseudo = pseudo_sum(packet, TCP, (packet.len() - 20) as u16);
            assert_eq!(packet[36..38], pseudo.to_be_bytes());
        }
        assert_eq!(packets[0].1[33] & PSH, 0);
        assert_ne!(packets[3].1[33] & PSH, 0, "only the last piece is pushed");
    }

    #[test]
    fn other_flows_and_gaps_are_not_joined() {
        let one = cut(&super_packet(true, 0, 1000, ACK, &[1; 2000]));
        let mut other = one.clone();
        other[1].1[20] ^= 1;
        assert_eq!(join(&other).len(), 2, "another port");
        let mut gap = one.clone();
        gap[1].1[27] ^= 1;
        assert_eq!(join(&gap).len(), 2, "another sequence number");
        let mut reset = one.clone();
        reset[1].1[33] |= 0x04;
        assert_eq!(join(&reset).len(), 2, "not plain data");
        assert_eq!(join(&one).len(), 1);
    }

    #[test]
    fn a_complete_checksum_is_left_alone() {
        let mut packet = cut(&super_packet(false, 0, 100, 0, &[9; 50])).remove(0);
        packet.0 = 0;
        let written = join(&[packet.clone()]);
        assert_eq!(written, [[&[0; VIRTIO][..], &packet.1].concat()]);
    }

    proptest! {
        #[test]
        fn joining_undoes_cutting(
            tcp: bool,
            options in 0usize..11,
            size in 1u16..1400,
            pieces in 1usize..=JOINED_MAX,
            last in 1usize..1400,
            pushed: bool,
        ) {
            let length = (pieces - 1) * usize::from(size) + last.min(usize::from(size));
            prop_assume!(length < 60_000);
            let payload: Vec<u8> = (0..length).map(|at| (at * 31) as u8).collect();
            let read = super_packet(tcp, options, size, if pushed { ACK | PSH } else { ACK }, &payload);
            let packets = cut(&read);
            prop_assert_eq!(packets.len(), pieces);
            prop_assert_eq!(join(&packets), vec![read]);
        }

        #[test]
        fn no_bytes_make_cutting_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = split(&bytes, |_, _, _| ());
        }

        #[test]
        fn no_bytes_are_lost_or_invented_by_joining(
            packets in proptest::collection::vec(
                (0u8..2, proptest::collection::vec(any::<u8>(), 1..90), any::<bool>()), 0..20)
        ) {
            let packets: Vec<(u8, Vec<u8>)> = packets
                .into_iter()
                .map(|(flags, mut packet, ip)| {
                    if ip {
                        packet[0] = 0x45;
                    }
                    (flags, packet)
                })
                .collect();
            let written: usize = join(&packets).iter().map(|packet| packet.len() - VIRTIO).sum();
            prop_assert_eq!(written, packets.iter().map(|(_, packet)| packet.len()).sum::<usize>());
        }
    }
}
