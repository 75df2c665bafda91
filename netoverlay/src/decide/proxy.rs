//! What the PROXY protocol, version 2, says to a task before a client's first byte: whose connection it is, and where
//! the client has made it to.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

const SIGNATURE: [u8; 12] = *b"\r\n\r\n\0\r\nQUIT\n";
/// Version 2, of a connection that is passed on for somebody.
const PROXY: u8 = 0x21;
/// TCP over IPv4, and over IPv6.
const TCP4: u8 = 0x11;
const TCP6: u8 = 0x21;

/// The header of a TCP connection from `source` to `destination`.
pub fn header(source: SocketAddr, destination: SocketAddr) -> Vec<u8> {
    let mut bytes = SIGNATURE.to_vec();
    let (source_ip, destination_ip) = (source.ip().to_canonical(), destination.ip().to_canonical());
    let (family, addresses) = match (source_ip, destination_ip) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            (TCP4, [source.octets(), destination.octets()].concat())
        }
        (source, destination) => (TCP6, [wide(source).octets(), wide(destination).octets()].concat()),
    };
    let length = addresses.len() as u16 + 4;
    bytes.extend([PROXY, family]);
    bytes.extend(length.to_be_bytes());
    bytes.extend(addresses);
    bytes.extend(source.port().to_be_bytes());
    bytes.extend(destination.port().to_be_bytes());
    bytes
}

fn wide(ip: IpAddr) -> Ipv6Addr {
    match ip {
        IpAddr::V4(ip) => ip.to_ipv6_mapped(),
        IpAddr::V6(ip) => ip,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(source: &str, destination: &str) -> String {
        let bytes = header(source.parse().unwrap(), destination.parse().unwrap());
        let (signature, rest) = bytes.split_at(12);
        assert_eq!(signature, [0x0d, 0x0a, 0x0d, 0x0a, 0, 0x0d, 0x0a, 0x51, 0x55, 0x49, 0x54, 0x0a]);
        rest.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    #[test]
    fn both_ends_are_told() {
        let table = [
            ("203.0.113.9:40000", "192.0.2.1:80", "2111000ccb007109c00002019c400050"),
            ("[::ffff:203.0.113.9]:40000", "192.0.2.1:80", "2111000ccb007109c00002019c400050"),
            (
                "[2001:db8::1]:1",
                "[2001:db8::2]:65535",
                "2121002420010db800000000000000000000000120010db80000000000000000000000020001ffff",
            ),
            (
                "[2001:db8::1]:1",
                "192.0.2.1:80",
                "2121002420010db800000000000000000000000100000000000000000000ffffc000020100010050",
            ),
        ];
        for (source, destination, expected) in table {
            assert_eq!(of(source, destination), expected, "{source} to {destination}");
        }
    }
}
