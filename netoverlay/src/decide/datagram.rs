//! What nodes send each other in a datagram: one packet of a network, behind four bytes that say how it is meant and
//! which network's it is.

use super::{forward::Reason, segment::PARTIAL};
use crate::table::NetworkId;

/// Bytes before each packet: flags, and the network's number.
pub const HEADER: usize = 4;
/// In place of a network's number: nothing but padding follows.
const PADDING: u32 = 0;

/// A datagram that has arrived.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Datagram<'a> {
    /// Of a size that was tried, and nothing else.
    Padding,
    /// A packet; nobody has looked into it yet.
    Packet {
        /// [`PARTIAL`] or 0.
        flags: u8,
        /// Whose it is said to be.
        network: NetworkId,
        /// From its IP header on.
        packet: &'a [u8],
    },
}

/// The bytes before a packet.
pub fn header(flags: u8, network: NetworkId) -> [u8; HEADER] {
    (u32::from(flags) << 24 | network.number()).to_be_bytes()
}

/// Reads a datagram.
///
/// # Errors
/// If it is shorter than its header, or says what this version does not understand.
pub fn read(datagram: &[u8]) -> Result<Datagram<'_>, Reason> {
    let (&[flags, a, b, c], packet) = datagram.split_first_chunk::<HEADER>().ok_or(Reason::Malformed)?;
    let network = NetworkId::new(u32::from_be_bytes([0, a, b, c])).expect("24 bits");
    match () {
        () if network.number() == PADDING => Ok(Datagram::Padding),
        () if flags & !PARTIAL != 0 => Err(Reason::Malformed),
        () => Ok(Datagram::Packet { flags, network, packet }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_are_read_as_they_were_written() {
        let network = NetworkId::new(0x00c0_ffee).unwrap();
        for flags in [0, PARTIAL] {
            let datagram = [&header(flags, network)[..], b"packet"].concat();
            assert_eq!(read(&datagram), Ok(Datagram::Packet { flags, network, packet: b"packet" }));
        }
        assert_eq!(read(&header(2, network)), Err(Reason::Malformed), "of a later version");
        assert_eq!(read(&[0; 900]), Ok(Datagram::Padding));
        assert_eq!(read(&[0; 3]), Err(Reason::Malformed));
    }
}
