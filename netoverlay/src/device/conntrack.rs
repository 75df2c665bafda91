//! Tracked connections of a namespace: listed, and forgotten when their target is gone.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::{
    Result,
    netlink::{NLM_F_ACK, NLM_F_DUMP, Socket, Writer, attribute, number},
    netns::Netns,
};

const SUBSYSTEM: u16 = 1 << 8;
const GET: u16 = SUBSYSTEM | 1;
const DELETE: u16 = SUBSYSTEM | 2;

const TUPLE_ORIGINAL: u16 = 1;
const TUPLE_REPLY: u16 = 2;
const STATUS: u16 = 3;
const MARK: u16 = 8;
const ID: u16 = 12;
const TUPLE_IP: u16 = 1;
const TUPLE_PROTOCOL: u16 = 2;
const PROTOCOL_NUMBER: u16 = 1;
const PROTOCOL_SOURCE_PORT: u16 = 2;
const PROTOCOL_DESTINATION_PORT: u16 = 3;

const STATUS_SEEN_REPLY: u32 = 1 << 1;
const STATUS_DNAT: u32 = 1 << 5;

/// TCP's protocol number.
pub const TCP: u8 = 6;
/// UDP's protocol number.
pub const UDP: u8 = 17;

/// One direction of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tuple {
    /// Where packets come from.
    pub source: IpAddr,
    /// Where they go.
    pub destination: IpAddr,
    /// The IP protocol.
    pub protocol: u8,
    /// 0 if the protocol has no ports.
    pub source_port: u16,
    /// 0 if the protocol has no ports.
    pub destination_port: u16,
}

/// A tracked connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Connection {
    /// As the first packet came in, before any translation.
    pub original: Tuple,
    /// As answers come in: its source is where the connection really goes.
    pub reply: Tuple,
    /// Whether the destination was rewritten.
    pub dnat: bool,
    /// Whether something came back.
    pub answered: bool,
    /// Its mark.
    pub mark: u32,
    /// The tuple of the answers and the id, as the kernel wrote them.
    raw_reply: Vec<u8>,
    raw_id: Vec<u8>,
}

/// Connection tracking of one namespace. Calls block for as long as the kernel works.
#[derive(Debug)]
pub struct Conntrack {
    socket: Socket,
}

impl Conntrack {
    /// Opens connection tracking of `netns`.
    pub fn open(netns: &Netns) -> Result<Self> {
        Ok(Self { socket: Socket::open(netns)? })
    }

    /// All tracked connections, of IPv4 and IPv6.
    pub fn list(&self) -> Result<Vec<Connection>> {
        let mut connections = Vec::new();
        let mut request = Writer::default();
        // One walk for all families: the kernel's table is shared by all namespaces, and long.
        request.message(GET, NLM_F_DUMP, libc::AF_UNSPEC as u8, 0, "list tracked connections", |_| {});
        self.socket.dump(&request, |attributes| connections.extend(parse(attributes)))?;
        Ok(connections)
    }

    /// Forgets the connections that `wanted` picks, and says how many those were. Their next packet is
    /// looked at as if it were the first.
    ///
    /// Listing them takes a while, in which one that was not answered may have been: then the answer that follows would
    /// come from an address that the client does not know. So these are looked at once more before they go.
    pub fn delete(&self, mut wanted: impl FnMut(&Connection) -> bool) -> Result<usize> {
        let mut deleted = 0;
        for listed in self.list()? {
            if !wanted(&listed) {
                continue;
            }
            let still = match listed.answered {
                true => Some(listed),
                false => self.look_up(&listed)?.filter(&mut wanted),
            };
            if let Some(connection) = still {
                deleted += usize::from(self.forget(&connection)?);
            }
        }
        Ok(deleted)
    }

    /// How a connection is now, if it is still there.
    fn look_up(&self, connection: &Connection) -> Result<Option<Connection>> {
        let mut found = None;
        match self.socket.dump(&connection.request(GET, "look up"), |attributes| found = parse(attributes)) {
            Ok(()) => Ok(found),
            Err(error) if error.is_missing() => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Forgets one connection, and says whether it was still there.
    ///
    /// It is named by its answers, which tell where it really goes. A client that uses its port again at once may have
    /// made another connection since, to the same virtual address but to another task: the original tuple of that one
    /// is the same, and often the id too, which the kernel makes of the tuple and the place in memory.
    pub fn forget(&self, connection: &Connection) -> Result<bool> {
        match self.socket.transact(&connection.request(DELETE, "forget")) {
            Ok(()) => Ok(true),
            Err(error) if error.is_missing() => Ok(false),
            Err(error) => Err(error),
        }
    }
}

impl Connection {
    /// What asks for something about it; `verb` says what.
    fn request(&self, kind: u16, verb: &str) -> Writer {
        let family = if self.original.source.is_ipv6() { libc::AF_INET6 } else { libc::AF_INET };
        let mut request = Writer::default();
        let label = format!("{verb} the connection from {}", self.original.source);
        request.message(kind, NLM_F_ACK, family as u8, 0, label, |w| {
            w.nest(TUPLE_REPLY, |w| w.raw(&self.raw_reply));
            w.attribute(ID, &self.raw_id);
        });
        request
    }
}

fn parse(attributes: &[u8]) -> Option<Connection> {
    let raw_reply = attribute(attributes, TUPLE_REPLY)?;
    let four = |kind| attribute(attributes, kind).map(number).unwrap_or_default();
    Some(Connection {
        original: parse_tuple(attribute(attributes, TUPLE_ORIGINAL)?)?,
        reply: parse_tuple(raw_reply)?,
        dnat: four(STATUS) & STATUS_DNAT != 0,
        answered: four(STATUS) & STATUS_SEEN_REPLY != 0,
        mark: four(MARK),
        raw_reply: raw_reply.to_vec(),
        raw_id: attribute(attributes, ID)?.to_vec(),
    })
}

fn parse_tuple(tuple: &[u8]) -> Option<Tuple> {
    let ip = attribute(tuple, TUPLE_IP)?;
    let address = |v4, v6| {
        if let Some(octets) = attribute(ip, v4).and_then(|value| <[u8; 4]>::try_from(value).ok()) {
            return Some(IpAddr::V4(Ipv4Addr::from(octets)));
        }
        let octets = <[u8; 16]>::try_from(attribute(ip, v6)?).ok()?;
        Some(IpAddr::V6(Ipv6Addr::from(octets)))
    };
    let protocol = attribute(tuple, TUPLE_PROTOCOL)?;
    let port = |kind| {
        attribute(protocol, kind).and_then(|value| value.try_into().ok()).map_or(0, u16::from_be_bytes)
    };
    Some(Tuple {
        source: address(1, 3)?,
        destination: address(2, 4)?,
        protocol: *attribute(protocol, PROTOCOL_NUMBER)?.first()?,
        source_port: port(PROTOCOL_SOURCE_PORT),
        destination_port: port(PROTOCOL_DESTINATION_PORT),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    proptest::proptest! {
        #[test]
        fn nonsense_is_no_connection(bytes: Vec<u8>) {
            let _ = (parse(&bytes), parse_tuple(&bytes));
        }
    }
}
