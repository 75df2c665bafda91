//! What nodes say to each other on streams: first thing on each, in one message of a fixed length.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4};

use bytes::{Buf, BufMut, Bytes, BytesMut};

use crate::{
    peer::Receiver,
    table::{NetworkId, Protocol},
};

/// The answer to a request whose task took the connection.
pub(super) const CONNECTED: u8 = 1;
const VERSION: u8 = 1;
const TCP: u8 = 6;
const UDP: u8 = 17;

/// In place of a protocol: the task has ended.
const ENDED: u8 = 0;

/// What a node says to another: first thing on a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Word {
    /// It has a client for a task.
    Reach(Request),
    /// A task of its own has ended.
    Ended(NetworkId, Ipv4Addr),
}

impl Word {
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        if bytes.get(1) != Some(&ENDED) {
            return Request::decode(bytes).map(Self::Reach);
        }
        if bytes.len() != Request::LENGTH || bytes[0] != VERSION {
            return None;
        }
        let mut bytes = &bytes[2..];
        Some(Self::Ended(NetworkId::new(bytes.get_u32())?, Ipv4Addr::from(bytes.get_u32())))
    }

    /// Reads one; the other side sends nothing more before the answer.
    pub async fn read(receiver: &mut Receiver) -> Option<Self> {
        let mut bytes = BytesMut::new();
        while bytes.len() < Request::LENGTH {
            bytes.extend_from_slice(&receiver.receive().await.ok()??);
        }
        Self::decode(&bytes)
    }
}

/// Tells a peer that this node's task at `address` has ended.
pub(crate) fn ended_notice(network: NetworkId, address: Ipv4Addr) -> Bytes {
    let mut bytes = BytesMut::zeroed(Request::LENGTH);
    bytes[0] = VERSION;
    bytes[1] = ENDED;
    bytes[2..6].copy_from_slice(&network.number().to_be_bytes());
    bytes[6..10].copy_from_slice(&address.octets());
    bytes.freeze()
}

/// What a node asks of the node of a task.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Request {
    pub protocol: Protocol,
    pub network: NetworkId,
    pub target: SocketAddrV4,
    pub client: SocketAddr,
}

impl Request {
    /// Version, protocol, network, target, client; all clients as IPv6, IPv4 ones mapped.
    const LENGTH: usize = 1 + 1 + 4 + 4 + 2 + 16 + 2;

    pub fn encode(&self) -> Bytes {
        let mut bytes = BytesMut::with_capacity(Self::LENGTH);
        bytes.put_u8(VERSION);
        bytes.put_u8(match self.protocol {
            Protocol::Tcp => TCP,
            Protocol::Udp => UDP,
        });
        bytes.put_u32(self.network.number());
        bytes.put_slice(&self.target.ip().octets());
        bytes.put_u16(self.target.port());
        let client = match self.client.ip() {
            IpAddr::V4(ip) => ip.to_ipv6_mapped(),
            IpAddr::V6(ip) => ip,
        };
        bytes.put_slice(&client.octets());
        bytes.put_u16(self.client.port());
        bytes.freeze()
    }

    pub fn decode(mut bytes: &[u8]) -> Option<Self> {
        if bytes.len() != Self::LENGTH || bytes.get_u8() != VERSION {
            return None;
        }
        let protocol = match bytes.get_u8() {
            TCP => Protocol::Tcp,
            UDP => Protocol::Udp,
            _ => return None,
        };
        let network = NetworkId::new(bytes.get_u32())?;
        let target = SocketAddrV4::new(Ipv4Addr::from(bytes.get_u32()), bytes.get_u16());
        let client = Ipv6Addr::from(bytes.get_u128()).to_canonical();
        Some(Self { protocol, network, target, client: SocketAddr::new(client, bytes.get_u16()) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn that_a_task_has_ended_survives_the_way() {
        let network = NetworkId::new(0xabcdef).unwrap();
        let notice = ended_notice(network, [10, 50, 0, 2].into());
        assert_eq!(Word::decode(&notice), Some(Word::Ended(network, [10, 50, 0, 2].into())));
        assert_eq!(Word::decode(&notice[..10]), None);
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_make_a_word_panic(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..40)) {
            let _ = Word::decode(&bytes);
        }
    }

    #[test]
    fn requests_survive_the_way() {
        for client in ["203.0.113.9:40000", "[2001:db8::1]:9"] {
            let request = Request {
                protocol: Protocol::Udp,
                network: NetworkId::new(0xabcdef).unwrap(),
                target: "10.50.0.2:80".parse().unwrap(),
                client: client.parse().unwrap(),
            };
            assert_eq!(Request::decode(&request.encode()), Some(request));
        }
    }

    #[test]
    fn a_request_of_another_version_or_length_is_none() {
        let request = Request {
            protocol: Protocol::Tcp,
            network: NetworkId::new(1).unwrap(),
            target: "10.50.0.2:80".parse().unwrap(),
            client: "10.0.0.1:1".parse().unwrap(),
        };
        let mut bytes = request.encode().to_vec();
        assert_eq!(Request::decode(&bytes[..Request::LENGTH - 1]), None);
        bytes[0] = 9;
        assert_eq!(Request::decode(&bytes), None);
        assert_eq!(Request::decode(&[]), None);
    }
}
