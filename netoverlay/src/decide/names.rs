//! What a name means to a container: DNS question and table in, answer out. Names are searched in the container's
//! networks in order; a name none of them knows is somebody else's to answer.

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv4Addr},
};

use hickory_proto::{
    op::{Edns, Message, MessageType, OpCode, ResponseCode},
    rr::{
        DNSClass, Name, RData, Record, RecordType,
        rdata::{A, PTR},
    },
};

use crate::table::{Network, NetworkId, Table};

/// How long an answer may be kept, in seconds: no longer than a rollout takes to matter.
pub const TTL: u32 = 3;

/// Largest answer over UDP to a client that says nothing about sizes, in bytes.
const PLAIN_UDP: usize = 512;
/// Largest answer over UDP in any case, in bytes: fits every path without fragments.
const LARGEST_UDP: usize = 1232;

/// How a question came in; an answer over UDP has to be short.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    /// One datagram.
    Udp,
    /// A length-prefixed message in a stream.
    Tcp,
}

/// What to do about a question.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// Send this message back.
    Reply(Vec<u8>),
    /// The name is not ours: ask the host's name servers.
    Forward,
    /// Not a question at all.
    Ignore,
}

#[derive(Debug, Clone)]
struct Net {
    network: Network,
    addresses: HashMap<String, Vec<Ipv4Addr>>,
    names: HashMap<Ipv4Addr, String>,
}

/// A table, compiled for looking up names.
#[derive(Debug, Clone, Default)]
pub struct Names {
    nets: HashMap<NetworkId, Net>,
}

impl Names {
    /// Compiles `table`.
    pub fn new(table: &Table) -> Self {
        let mut nets: HashMap<_, _> = table
            .networks
            .iter()
            .map(|network| {
                (
                    network.id,
                    Net { network: network.clone(), addresses: HashMap::new(), names: HashMap::new() },
                )
            })
            .collect();
        for service in &table.services {
            let Some(net) = nets.get_mut(&service.network) else { continue };
            let meaning = service.vip.map_or_else(|| service.backends.clone(), |vip| vec![vip]);
            for name in std::iter::once(&service.name).chain(&service.aliases) {
                net.add(name, &meaning);
                net.add(&format!("tasks.{name}"), &service.backends);
            }
            if let Some(vip) = service.vip {
                net.names.insert(vip, service.name.clone());
            }
        }
        for endpoint in &table.endpoints {
            let Some(net) = nets.get_mut(&endpoint.network) else { continue };
            for name in &endpoint.names {
                net.add(name, &[endpoint.address]);
            }
            if let Some(name) = endpoint.names.first() {
                net.names.insert(endpoint.address, name.clone());
            }
        }
        Self { nets }
    }

    /// Answers `question` for a container in `networks`. Several addresses are turned round by `turn`.
    pub fn answer(
        &self,
        networks: &[NetworkId],
        question: &[u8],
        transport: Transport,
        turn: usize,
    ) -> Answer {
        let Ok(request) = Message::from_vec(question) else {
            return malformed(question);
        };
        if request.metadata.message_type != MessageType::Query {
            return Answer::Ignore;
        }
        let [query] = request.queries.as_slice() else {
            return finish(&request, ResponseCode::FormErr, vec![], transport);
        };
        if request.metadata.op_code != OpCode::Query {
            return finish(&request, ResponseCode::NotImp, vec![], transport);
        }
        if query.query_class() != DNSClass::IN {
            return Answer::Forward;
        }
        let nets = || networks.iter().filter_map(|id| self.nets.get(id));
        if query.query_type() == RecordType::PTR {
            let Some(address) = reverse(query.name()) else { return Answer::Forward };
            let name = nets().find_map(|net| net.names.get(&address));
            return match name.and_then(|name| Name::from_utf8(name).ok()) {
                Some(mut name) => {
                    name.set_fqdn(true);
                    let record = Record::from_rdata(query.name().clone(), TTL, RData::PTR(PTR(name)));
                    finish(&request, ResponseCode::NoError, vec![record], transport)
                }
                None if nets().any(|net| net.network.contains(address)) => {
                    finish(&request, ResponseCode::NXDomain, vec![], transport)
                }
                None => Answer::Forward,
            };
        }
        let name = key(&query.name().to_utf8());
        let Some(addresses) = nets().find_map(|net| net.addresses.get(&name)) else {
            return Answer::Forward;
        };
        let mut addresses = match query.query_type() {
            RecordType::A | RecordType::ANY => addresses.clone(),
            // A known name without such a record: an empty answer, for NXDOMAIN would deny the name itself.
            _ => vec![],
        };
        if !addresses.is_empty() {
            let by = turn % addresses.len();
            addresses.rotate_left(by);
        }
        let records = addresses
            .into_iter()
            .map(|address| Record::from_rdata(query.name().clone(), TTL, RData::A(A(address))))
            .collect();
        finish(&request, ResponseCode::NoError, records, transport)
    }
}

impl Net {
    fn add(&mut self, name: &str, addresses: &[Ipv4Addr]) {
        let known = self.addresses.entry(key(name)).or_default();
        for address in addresses {
            if !known.contains(address) {
                known.push(*address);
            }
        }
    }
}

/// The answer that says this server could not find out.
pub fn failure(question: &[u8]) -> Option<Vec<u8>> {
    let request = Message::from_vec(question).ok()?;
    match finish(&request, ResponseCode::ServFail, vec![], Transport::Udp) {
        Answer::Reply(bytes) => Some(bytes),
        Answer::Forward | Answer::Ignore => None,
    }
}

fn key(name: &str) -> String {
    name.trim_end_matches('.').to_lowercase()
}

fn reverse(name: &Name) -> Option<Ipv4Addr> {
    if name.num_labels() != 6 {
        return None;
    }
    let mut name = name.clone();
    name.set_fqdn(true);
    match name.parse_arpa_name().ok()?.addr() {
        IpAddr::V4(address) => Some(address),
        IpAddr::V6(_) => None,
    }
}

fn finish(request: &Message, code: ResponseCode, records: Vec<Record>, transport: Transport) -> Answer {
    let mut response = Message::response(request.metadata.id, request.metadata.op_code);
    response.metadata.recursion_desired = request.metadata.recursion_desired;
    response.metadata.recursion_available = true;
    response.metadata.authoritative = !records.is_empty();
    response.metadata.response_code = code;
    // Several of them say the same name at length that the question says once: the answer could be of any size.
    if let [query] = request.queries.as_slice() {
        response.add_query(query.clone());
    }
    response.add_answers(records);
    let limit = match (transport, &request.edns) {
        (Transport::Tcp, _) => usize::from(u16::MAX),
        (Transport::Udp, None) => PLAIN_UDP,
        (Transport::Udp, Some(edns)) => usize::from(edns.max_payload()).clamp(PLAIN_UDP, LARGEST_UDP),
    };
    if request.edns.is_some() {
        let mut edns = Edns::new();
        edns.set_max_payload(u16::try_from(LARGEST_UDP).expect("1232 fits"));
        response.set_edns(edns);
    }
    let Ok(bytes) = response.to_vec() else { return Answer::Ignore };
    if bytes.len() <= limit {
        return Answer::Reply(bytes);
    }
    response.truncate().to_vec().map_or(Answer::Ignore, Answer::Reply)
}

/// What has an id, but is no message, is told so; anything shorter is not worth an answer.
fn malformed(question: &[u8]) -> Answer {
    let Some(&[high, low, flags, ..]) = question.first_chunk::<12>() else {
        return Answer::Ignore;
    };
    if flags & 0x80 != 0 {
        return Answer::Ignore;
    }
    let id = u16::from_be_bytes([high, low]);
    Message::error_msg(id, OpCode::Query, ResponseCode::FormErr)
        .to_vec()
        .map_or(Answer::Ignore, Answer::Reply)
}

#[cfg(test)]
mod tests {
    use hickory_proto::op::Query;
    use proptest::prelude::*;

    use super::*;
    use crate::table::{Access, Endpoint, Node, NodeId, Service};

    const BLUE: u32 = 1;
    const GREEN: u32 = 2;

    fn net(number: u32) -> NetworkId {
        NetworkId::new(number).unwrap()
    }

    fn names() -> Names {
        let network = |number: u32| Network {
            id: net(number),
            subnet: [10, 50, number as u8, 0].into(),
            prefix: 24,
            gateway: [10, 50, number as u8, 1].into(),
            mtu: 1400,
            internal: false,
            isolated: false,
        };
        let endpoint = |number: u32, last: u8, name: &str| Endpoint {
            network: net(number),
            address: [10, 50, number as u8, last].into(),
            node: NodeId::new("a"),
            names: vec![name.into(), format!("host{last}")],
            service: None,
        };
        let service = |number: u32, name: &str, vip: Option<u8>, backends: &[u8]| Service {
            network: net(number),
            name: name.into(),
            aliases: vec![format!("{name}-alias")],
            vip: vip.map(|last| [10, 50, number as u8, last].into()),
            client_affinity: false,
            backends: backends.iter().map(|last| [10, 50, number as u8, *last].into()).collect(),
            draining: vec![],
            access: Access::Open,
        };
        Names::new(&Table {
            nodes: vec![Node { id: NodeId::new("a"), underlay: "10.0.0.1:1".parse().unwrap() }],
            networks: vec![network(BLUE), network(GREEN)],
            endpoints: vec![
                endpoint(BLUE, 3, "Web.1"),
                endpoint(BLUE, 4, "Web.2"),
                endpoint(GREEN, 9, "db.1"),
            ],
            services: vec![
                service(BLUE, "Web", Some(100), &[3, 4]),
                service(GREEN, "db", None, &[9]),
                service(GREEN, "web", Some(101), &[]),
                service(BLUE, "many", None, &(10..=200).collect::<Vec<_>>()),
            ],
            ..Table::default()
        })
    }

    fn ask(name: &str, kind: RecordType, networks: &[u32]) -> (ResponseCode, Vec<String>) {
        let mut request = Message::query();
        request.metadata.recursion_desired = true;
        request.add_query(Query::query(Name::from_utf8(name).unwrap(), kind));
        let networks: Vec<_> = networks.iter().map(|number| net(*number)).collect();
        match names().answer(&networks, &request.to_vec().unwrap(), Transport::Udp, 0) {
            Answer::Reply(bytes) => {
                let reply = Message::from_vec(&bytes).unwrap();
                assert_eq!(reply.metadata.id, request.metadata.id);
                assert!(reply.answers.iter().all(|record| record.ttl <= 5));
                (reply.metadata.response_code, reply.answers.iter().map(|r| r.data.to_string()).collect())
            }
            other => (ResponseCode::Refused, vec![format!("{other:?}")]),
        }
    }

    #[test]
    fn names_mean_what_the_table_says() {
        use RecordType::{A, AAAA, MX, PTR};
        type Case<'a> = (&'a str, RecordType, &'a [u32], ResponseCode, &'a [&'a str]);

        let table: &[Case<'_>] = &[
            ("web.", A, &[BLUE], ResponseCode::NoError, &["10.50.1.100"]),
            ("WEB.", A, &[BLUE], ResponseCode::NoError, &["10.50.1.100"]),
            ("web-alias.", A, &[BLUE], ResponseCode::NoError, &["10.50.1.100"]),
            ("tasks.web.", A, &[BLUE], ResponseCode::NoError, &["10.50.1.3", "10.50.1.4"]),
            ("web.2.", A, &[BLUE], ResponseCode::NoError, &["10.50.1.4"]),
            ("host3.", A, &[BLUE], ResponseCode::NoError, &["10.50.1.3"]),
            ("web.", AAAA, &[BLUE], ResponseCode::NoError, &[]),
            ("web.", MX, &[BLUE], ResponseCode::NoError, &[]),
            ("db.", A, &[BLUE, GREEN], ResponseCode::NoError, &["10.50.2.9"]),
            ("web.", A, &[GREEN, BLUE], ResponseCode::NoError, &["10.50.2.101"]),
            ("tasks.web.", A, &[GREEN], ResponseCode::NoError, &[]),
            ("db.", A, &[BLUE], ResponseCode::Refused, &["Forward"]),
            ("example.org.", A, &[BLUE], ResponseCode::Refused, &["Forward"]),
            ("example.org.", AAAA, &[BLUE], ResponseCode::Refused, &["Forward"]),
            ("100.1.50.10.in-addr.arpa.", PTR, &[BLUE], ResponseCode::NoError, &["web."]),
            ("3.1.50.10.in-addr.arpa.", PTR, &[BLUE], ResponseCode::NoError, &["web.1."]),
            ("77.1.50.10.in-addr.arpa.", PTR, &[BLUE], ResponseCode::NXDomain, &[]),
            ("1.1.168.192.in-addr.arpa.", PTR, &[BLUE], ResponseCode::Refused, &["Forward"]),
        ];
        for (name, kind, networks, code, answers) in table {
            assert_eq!(
                ask(name, *kind, networks),
                (*code, answers.iter().map(ToString::to_string).collect()),
                "{name} {kind} in {networks:?}"
            );
        }
    }

    #[test]
    fn an_answer_too_long_for_udp_is_marked_as_cut() {
        let mut request = Message::query();
        request.add_query(Query::query(Name::from_utf8("many.").unwrap(), RecordType::A));
        let bytes = request.to_vec().unwrap();
        let Answer::Reply(udp) = names().answer(&[net(BLUE)], &bytes, Transport::Udp, 0) else { panic!() };
        assert!(udp.len() <= 512 && Message::from_vec(&udp).unwrap().metadata.truncation);
        let Answer::Reply(tcp) = names().answer(&[net(BLUE)], &bytes, Transport::Tcp, 0) else { panic!() };
        let tcp = Message::from_vec(&tcp).unwrap();
        assert!(!tcp.metadata.truncation);
        assert_eq!(tcp.answers.len(), 191);
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
            let _ = names().answer(&[net(BLUE)], &bytes, Transport::Udp, 1);
            let _ = failure(&bytes);
        }
    }
}
