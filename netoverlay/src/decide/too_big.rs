//! What a sender is told whose packet is larger than the path to its destination carries: ICMP "fragmentation needed"
//! with the size that fits, in the name of the network's gateway. Without it the connection would hang in silence.

use std::net::Ipv4Addr;

use super::segment::{checksum, seal_ip_header};

const ICMP: u8 = 1;
const HEADER: usize = 20;
const UNREACHABLE: u8 = 3;
const FRAGMENTATION_NEEDED: u8 = 4;
/// How much of the packet comes along, behind its IP header, in bytes: enough to tell whose it was.
const QUOTED: usize = 8;

/// The report to the sender of `packet`, of which `mtu` bytes would fit. None: the packet may be cut, is itself a
/// report, is a later fragment, or is no packet.
pub fn report(packet: &[u8], gateway: Ipv4Addr, mtu: u16) -> Option<Vec<u8>> {
    let header: &[u8; HEADER] = packet.first_chunk()?;
    let length = usize::from(header[0] & 15) * 4;
    let unfragmentable = header[6] & 0x40 != 0;
    let later_fragment = header[6] & 0x1f != 0 || header[7] != 0;
    let is_report = header[9] == ICMP && !matches!(packet.get(length), Some(0 | 8));
    if header[0] >> 4 != 4 || length < HEADER || !unfragmentable || later_fragment || is_report {
        return None;
    }
    let quoted = &packet[..packet.len().min(length + QUOTED)];
    let total = HEADER + 8 + quoted.len();
    let mut report = vec![0; HEADER + 8];
    report[0] = 0x45;
    report[2..4].copy_from_slice(&u16::try_from(total).ok()?.to_be_bytes());
    report[8] = 64;
    report[9] = ICMP;
    report[12..16].copy_from_slice(&gateway.octets());
    report[16..20].copy_from_slice(&header[12..16]);
    seal_ip_header(&mut report[..HEADER]);
    report[HEADER] = UNREACHABLE;
    report[HEADER + 1] = FRAGMENTATION_NEEDED;
    report[HEADER + 6..HEADER + 8].copy_from_slice(&mtu.to_be_bytes());
    report.extend_from_slice(quoted);
    let sum = checksum(&report[HEADER..]);
    report[HEADER + 2..HEADER + 4].copy_from_slice(&sum.to_be_bytes());
    Some(report)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 50, 0, 1);

    fn packet(protocol: u8, flags: u8, payload: &[u8]) -> Vec<u8> {
        let mut packet = vec![0; HEADER];
        packet[0] = 0x45;
        packet[6] = flags;
        packet[9] = protocol;
        packet[12..20].copy_from_slice(&[10, 50, 0, 2, 10, 50, 0, 3]);
        packet.extend_from_slice(payload);
        packet
    }

    #[test]
    fn the_sender_learns_what_fits() {
        let sent = packet(6, 0x40, &[7; 1380]);
        let report = report(&sent, GATEWAY, 1156).unwrap();
        assert_eq!(report[12..20], [10, 50, 0, 1, 10, 50, 0, 2]);
        assert_eq!(report[20..22], [UNREACHABLE, FRAGMENTATION_NEEDED]);
        assert_eq!(report[26..28], 1156u16.to_be_bytes());
        assert_eq!(report[28..], sent[..28]);
        assert_eq!((checksum(&report[..20]), checksum(&report[20..])), (0, 0), "both checksums are sound");
    }

    #[test]
    fn what_may_be_cut_or_is_a_report_is_not_answered() {
        assert_eq!(report(&packet(6, 0, &[7; 1380]), GATEWAY, 1156), None);
        assert_eq!(report(&packet(ICMP, 0x40, &[3; 100]), GATEWAY, 1156), None);
        assert!(report(&packet(ICMP, 0x40, &[8; 1380]), GATEWAY, 1156).is_some(), "a ping is");
        let mut fragment = packet(17, 0x40, &[7; 1380]);
        fragment[7] = 9;
        assert_eq!(report(&fragment, GATEWAY, 1156), None);
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..120)) {
            let _ = report(&bytes, GATEWAY, 1156);
        }
    }
}
