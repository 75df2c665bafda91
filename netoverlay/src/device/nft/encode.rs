//! The kernel's form of tables: expressions over registers, and messages of one transaction. The attributes of
//! expressions are numbered as in the kernel's header `linux/netfilter/nf_tables.h`.

use std::net::IpAddr;

use super::{
    Base, Chain, ChainKind, Elements, Family, Field, Hook, Pick, Refusal, Rule, Set, Statement, Table,
    Target, Value, Verdict,
};
use crate::device::netlink::{NLM_F_APPEND, NLM_F_CREATE, Writer};

const SUBSYSTEM: u16 = 10 << 8;
const BATCH_BEGIN: u16 = 16;
const BATCH_END: u16 = 17;

pub(super) const GET_TABLE: u16 = SUBSYSTEM | 1;
pub(super) const GET_CHAIN: u16 = SUBSYSTEM | 4;
const NEW_TABLE: u16 = SUBSYSTEM;
const DEL_TABLE: u16 = SUBSYSTEM | 2;
const NEW_CHAIN: u16 = SUBSYSTEM | 3;
const NEW_RULE: u16 = SUBSYSTEM | 6;
const DEL_RULE: u16 = SUBSYSTEM | 8;
const NEW_SET: u16 = SUBSYSTEM | 9;
const NEW_ELEMENTS: u16 = SUBSYSTEM | 12;
const DEL_ELEMENTS: u16 = SUBSYSTEM | 14;

pub(super) const TABLE_NAME: u16 = 1;
pub(super) const TABLE_USERDATA: u16 = 6;
pub(super) const CHAIN_TABLE: u16 = 1;
pub(super) const CHAIN_NAME: u16 = 3;
pub(super) const CHAIN_HOOK: u16 = 4;
pub(super) const CHAIN_POLICY: u16 = 5;
pub(super) const HOOK_NUMBER: u16 = 1;
const HOOK_PRIORITY: u16 = 2;
const CHAIN_TYPE: u16 = 7;
const RULE_TABLE: u16 = 1;
const RULE_CHAIN: u16 = 2;
const RULE_EXPRESSIONS: u16 = 4;
const SET_TABLE: u16 = 1;
const SET_NAME: u16 = 2;
const SET_FLAGS: u16 = 3;
const SET_KEY_TYPE: u16 = 4;
const SET_KEY_LEN: u16 = 5;
const SET_DATA_TYPE: u16 = 6;
const SET_DATA_LEN: u16 = 7;
const SET_DESCRIPTION: u16 = 9;
const SET_DESCRIPTION_SIZE: u16 = 1;
const SET_ID: u16 = 10;
const ELEMENTS_TABLE: u16 = 1;
const ELEMENTS_SET: u16 = 2;
const ELEMENTS_LIST: u16 = 3;
const ELEMENTS_SET_ID: u16 = 4;
const ELEMENT_KEY: u16 = 1;
const ELEMENT_DATA: u16 = 2;
const LIST_ITEM: u16 = 1;
const DATA_VALUE: u16 = 1;
const DATA_VERDICT: u16 = 2;
const VERDICT_CODE: u16 = 1;
const VERDICT_CHAIN: u16 = 2;
const EXPRESSION_NAME: u16 = 1;
const EXPRESSION_DATA: u16 = 2;

const FLAG_ANONYMOUS: u32 = 1;
const FLAG_CONSTANT: u32 = 2;
const FLAG_MAP: u32 = 8;
const TYPE_VERDICT: u32 = 0xffff_ff00;
const TYPE_INTEGER: u32 = 4;

/// The name the kernel numbers for maps that belong to one rule.
const ANONYMOUS_MAP: &str = "__map%d";
/// How many elements one message carries, well below the 64 KiB an attribute may have.
const ELEMENTS_PER_MESSAGE: usize = 128;

const VERDICT_REGISTER: u32 = 0;
/// The first of sixteen registers of four bytes.
const REGISTER: u32 = 8;

const NETWORK_HEADER: u32 = 1;
const TRANSPORT_HEADER: u32 = 2;

/// Builds one transaction.
pub(super) struct Transaction {
    out: Writer,
    /// Where the last message but the end begins.
    last: usize,
    anonymous: u32,
}

impl Transaction {
    pub(super) fn begin() -> Self {
        let mut out = Writer::default();
        out.message(BATCH_BEGIN, 0, 0, SUBSYSTEM >> 8, "begin a transaction", |_| {});
        Self { out, last: 0, anonymous: 0 }
    }

    /// Closes the transaction; its last act asks to be acknowledged.
    pub(super) fn end(mut self) -> Writer {
        if self.last > 0 {
            self.out.acknowledge(self.last);
        }
        self.out.message(BATCH_END, 0, 0, SUBSYSTEM >> 8, "commit the transaction", |_| {});
        self.out
    }

    pub(super) fn delete_table(&mut self, family: Family, name: &str) {
        self.message(DEL_TABLE, 0, family, format!("delete table {family} {name}"), |w| {
            w.text(TABLE_NAME, name)
        });
    }

    /// Deletes the table if it is there. (A table is made first, as to delete a missing one is an error.)
    pub(super) fn clear_table(&mut self, family: Family, name: &str) {
        self.new_table(family, name, &[]);
        self.delete_table(family, name);
    }

    pub(super) fn replace_table(&mut self, table: &Table, userdata: &[u8]) {
        self.clear_table(table.family, &table.name);
        self.new_table(table.family, &table.name, userdata);
        for chain in &table.chains {
            self.new_chain(table.family, &table.name, chain);
        }
        for set in &table.sets {
            self.new_set(table.family, &table.name, set);
            self.new_elements(table.family, &table.name, set);
        }
        for chain in &table.chains {
            self.new_rules(table.family, &table.name, chain);
        }
    }

    /// Replaces the rules of a chain that is there.
    pub(super) fn replace_rules(&mut self, family: Family, table: &str, chain: &Chain) {
        let label = format!("flush chain {} of table {family} {table}", chain.name);
        self.message(DEL_RULE, 0, family, label, |w| {
            w.text(RULE_TABLE, table);
            w.text(RULE_CHAIN, &chain.name);
        });
        self.new_rules(family, table, chain);
    }

    /// Replaces the elements of a set that is there.
    pub(super) fn replace_elements(&mut self, family: Family, table: &str, set: &Set) {
        let label = format!("flush set {} of table {family} {table}", set.name);
        self.message(DEL_ELEMENTS, 0, family, label, |w| {
            w.text(ELEMENTS_TABLE, table);
            w.text(ELEMENTS_SET, &set.name);
        });
        self.new_elements(family, table, set);
    }

    fn message(
        &mut self,
        kind: u16,
        flags: u16,
        family: Family,
        label: String,
        body: impl FnOnce(&mut Writer),
    ) {
        self.last = self.out.len();
        self.out.message(kind, flags, family.number(), 0, label, body);
    }

    fn new_table(&mut self, family: Family, name: &str, userdata: &[u8]) {
        self.message(NEW_TABLE, NLM_F_CREATE, family, format!("create table {family} {name}"), |w| {
            w.text(TABLE_NAME, name);
            if !userdata.is_empty() {
                w.attribute(TABLE_USERDATA, userdata);
            }
        });
    }

    fn new_chain(&mut self, family: Family, table: &str, chain: &Chain) {
        let label = format!("create chain {} of table {family} {table}", chain.name);
        self.message(NEW_CHAIN, NLM_F_CREATE, family, label, |w| {
            w.text(CHAIN_TABLE, table);
            w.text(CHAIN_NAME, &chain.name);
            if let Some(base) = chain.base {
                base.write(w);
            }
        });
    }

    fn new_set(&mut self, family: Family, table: &str, set: &Set) {
        self.anonymous += 1;
        let id = self.anonymous;
        let label = format!("create set {} of table {family} {table}", set.name);
        self.message(NEW_SET, NLM_F_CREATE, family, label, |w| {
            w.text(SET_TABLE, table);
            w.text(SET_NAME, &set.name);
            let verdicts = matches!(set.elements, Elements::Verdicts(_));
            w.number(SET_FLAGS, if verdicts { FLAG_MAP } else { 0 });
            w.number(SET_KEY_TYPE, set.key.iter().fold(0, |kind, field| kind << 6 | field.type_number()));
            w.number(SET_KEY_LEN, key_len(&set.key) as u32);
            if verdicts {
                w.number(SET_DATA_TYPE, TYPE_VERDICT);
            }
            w.number(SET_ID, id);
        });
    }

    fn new_elements(&mut self, family: Family, table: &str, set: &Set) {
        let elements: Vec<(Vec<u8>, Option<&Verdict>)> = match &set.elements {
            Elements::Keys(keys) => keys.iter().map(|key| (key_bytes(key), None)).collect(),
            Elements::Verdicts(map) => {
                map.iter().map(|(key, verdict)| (key_bytes(key), Some(verdict))).collect()
            }
        };
        for part in elements.chunks(ELEMENTS_PER_MESSAGE) {
            let label = format!("fill set {} of table {family} {table}", set.name);
            self.message(NEW_ELEMENTS, NLM_F_CREATE, family, label, |w| {
                w.text(ELEMENTS_TABLE, table);
                w.text(ELEMENTS_SET, &set.name);
                w.nest(ELEMENTS_LIST, |w| {
                    for (key, verdict) in part {
                        w.nest(LIST_ITEM, |w| {
                            w.nest(ELEMENT_KEY, |w| w.attribute(DATA_VALUE, key));
                            if let Some(verdict) = verdict {
                                w.nest(ELEMENT_DATA, |w| verdict.write(w));
                            }
                        });
                    }
                });
            });
        }
    }

    fn new_rules(&mut self, family: Family, table: &str, chain: &Chain) {
        for rule in &chain.rules {
            let maps = self.anonymous_maps(family, table, rule);
            let label = format!("add rule `{rule}` to chain {} of table {family} {table}", chain.name);
            self.message(NEW_RULE, NLM_F_CREATE | NLM_F_APPEND, family, label, |w| {
                w.text(RULE_TABLE, table);
                w.text(RULE_CHAIN, &chain.name);
                w.nest(RULE_EXPRESSIONS, |w| {
                    let mut maps = maps.into_iter();
                    for statement in &rule.0 {
                        write_statement(w, family, statement, &mut maps);
                    }
                });
            });
        }
    }

    /// Makes the maps from number to address that the rule's targets need, and returns their ids in order.
    fn anonymous_maps(&mut self, family: Family, table: &str, rule: &Rule) -> Vec<u32> {
        let mut ids = Vec::new();
        for statement in &rule.0 {
            let Statement::Dnat(Target::Of(_, addresses)) = statement else { continue };
            self.anonymous += 1;
            let id = self.anonymous;
            ids.push(id);
            let label = format!("create the map of rule `{rule}` of table {family} {table}");
            let (kind, len) = match addresses.first() {
                Some(IpAddr::V6(_)) => (Field::Ip6Source.type_number(), 16),
                _ => (Field::IpSource.type_number(), 4),
            };
            self.message(NEW_SET, NLM_F_CREATE, family, label.clone(), |w| {
                w.text(SET_TABLE, table);
                w.text(SET_NAME, ANONYMOUS_MAP);
                w.number(SET_FLAGS, FLAG_ANONYMOUS | FLAG_CONSTANT | FLAG_MAP);
                w.number(SET_KEY_TYPE, TYPE_INTEGER);
                w.number(SET_KEY_LEN, 4);
                w.number(SET_DATA_TYPE, kind);
                w.number(SET_DATA_LEN, len);
                w.nest(SET_DESCRIPTION, |w| w.number(SET_DESCRIPTION_SIZE, addresses.len() as u32));
                w.number(SET_ID, id);
            });
            let numbered: Vec<(u32, &IpAddr)> = (0..).zip(addresses).collect();
            for part in numbered.chunks(ELEMENTS_PER_MESSAGE) {
                self.message(NEW_ELEMENTS, NLM_F_CREATE, family, label.clone(), |w| {
                    w.text(ELEMENTS_TABLE, table);
                    w.text(ELEMENTS_SET, ANONYMOUS_MAP);
                    w.number(ELEMENTS_SET_ID, id);
                    w.nest(ELEMENTS_LIST, |w| {
                        for (number, address) in part {
                            w.nest(LIST_ITEM, |w| {
                                w.nest(ELEMENT_KEY, |w| w.attribute(DATA_VALUE, &number.to_ne_bytes()));
                                w.nest(ELEMENT_DATA, |w| w.attribute(DATA_VALUE, &address_bytes(**address)));
                            });
                        }
                    });
                });
            }
        }
        ids
    }
}

impl Family {
    pub(super) fn number(self) -> u8 {
        match self {
            Self::Inet => 1,
            Self::Ip => 2,
            Self::Ip6 => 10,
        }
    }
}

impl Base {
    fn write(self, w: &mut Writer) {
        w.nest(CHAIN_HOOK, |w| {
            w.number(HOOK_NUMBER, self.hook.number());
            w.attribute(HOOK_PRIORITY, &self.priority.to_be_bytes());
        });
        w.number(CHAIN_POLICY, u32::from(!self.drop));
        w.text(
            CHAIN_TYPE,
            match self.kind {
                ChainKind::Filter => "filter",
                ChainKind::Nat => "nat",
                ChainKind::Route => "route",
            },
        );
    }
}

impl Hook {
    pub(super) fn number(self) -> u32 {
        match self {
            Self::Prerouting => 0,
            Self::Input => 1,
            Self::Forward => 2,
            Self::Output => 3,
            Self::Postrouting => 4,
        }
    }
}

impl Verdict {
    fn write(&self, w: &mut Writer) {
        let (code, chain): (i32, _) = match self {
            Self::Drop => (0, None),
            Self::Accept => (1, None),
            Self::Jump(chain) => (-3, Some(chain)),
            Self::Goto(chain) => (-4, Some(chain)),
            Self::Return => (-5, None),
        };
        w.nest(DATA_VERDICT, |w| {
            w.attribute(VERDICT_CODE, &code.to_be_bytes());
            if let Some(chain) = chain {
                w.text(VERDICT_CHAIN, chain);
            }
        });
    }
}

impl Field {
    /// The name of its type, as people write it.
    pub(super) fn type_name(self) -> &'static str {
        match self {
            Self::IpSource | Self::IpDestination => "ipv4_addr",
            Self::Ip6Source | Self::Ip6Destination => "ipv6_addr",
            Self::Protocol => "inet_proto",
            Self::SourcePort | Self::DestinationPort => "inet_service",
            Self::InputLink | Self::OutputLink => "ifname",
            Self::Mark | Self::CtMark => "mark",
            Self::CtState => "ct_state",
            Self::CtStatus => "ct_status",
            Self::CtDirection => "ct_dir",
            Self::SocketTransparent => "boolean",
            Self::TcpFlags => "tcp_flag",
        }
    }

    /// The number of its type; the kernel keeps it for other readers only.
    fn type_number(self) -> u32 {
        match self {
            Self::IpSource | Self::IpDestination => 7,
            Self::Ip6Source | Self::Ip6Destination => 8,
            Self::Protocol => 12,
            Self::SourcePort | Self::DestinationPort => 13,
            Self::TcpFlags => 17,
            Self::Mark | Self::CtMark => 19,
            Self::CtState => 26,
            Self::CtDirection => 27,
            Self::CtStatus => 28,
            Self::InputLink | Self::OutputLink => 41,
            Self::SocketTransparent => 45,
        }
    }

    /// Its length in a register, in bytes.
    fn len(self) -> usize {
        match self {
            Self::IpSource
            | Self::IpDestination
            | Self::Mark
            | Self::CtMark
            | Self::CtState
            | Self::CtStatus => 4,
            Self::Ip6Source | Self::Ip6Destination | Self::InputLink | Self::OutputLink => 16,
            Self::SourcePort | Self::DestinationPort => 2,
            Self::Protocol | Self::CtDirection | Self::SocketTransparent | Self::TcpFlags => 1,
        }
    }

    /// Loads it into the register.
    fn load(self, w: &mut Writer, register: u32) {
        let payload = |w: &mut Writer, base, offset| {
            expression(w, "payload", |w| {
                w.number(1, register);
                w.number(2, base);
                w.number(3, offset);
                w.number(4, self.len() as u32);
            });
        };
        let keyed = |w: &mut Writer, name, key| {
            expression(w, name, |w| {
                w.number(1, register);
                w.number(2, key);
            });
        };
        match self {
            Self::IpSource => payload(w, NETWORK_HEADER, 12),
            Self::IpDestination => payload(w, NETWORK_HEADER, 16),
            Self::Ip6Source => payload(w, NETWORK_HEADER, 8),
            Self::Ip6Destination => payload(w, NETWORK_HEADER, 24),
            Self::SourcePort => payload(w, TRANSPORT_HEADER, 0),
            Self::DestinationPort => payload(w, TRANSPORT_HEADER, 2),
            Self::TcpFlags => payload(w, TRANSPORT_HEADER, 13),
            Self::Mark => keyed(w, "meta", 3),
            Self::InputLink => keyed(w, "meta", 6),
            Self::OutputLink => keyed(w, "meta", 7),
            Self::Protocol => keyed(w, "meta", 16),
            Self::CtState => keyed(w, "ct", 0),
            Self::CtDirection => keyed(w, "ct", 1),
            Self::CtStatus => keyed(w, "ct", 2),
            Self::CtMark => keyed(w, "ct", 3),
            Self::SocketTransparent => expression(w, "socket", |w| {
                w.number(1, 0);
                w.number(2, register);
            }),
        }
    }

    fn address_family(self) -> Option<u8> {
        match self {
            Self::IpSource | Self::IpDestination => Some(Family::Ip.number()),
            Self::Ip6Source | Self::Ip6Destination => Some(Family::Ip6.number()),
            _ => None,
        }
    }
}

fn write_statement(
    w: &mut Writer,
    family: Family,
    statement: &Statement,
    maps: &mut impl Iterator<Item = u32>,
) {
    match statement {
        Statement::Is(field, value) => {
            load_all(w, family, &[*field]);
            compare(w, true, &value_bytes(value));
        }
        Statement::IsNot(field, value) => {
            load_all(w, family, &[*field]);
            compare(w, false, &value_bytes(value));
        }
        Statement::AnyOf(field, bits) => {
            load_all(w, family, &[*field]);
            let mask = if field.len() == 1 { vec![*bits as u8] } else { bits.to_ne_bytes().to_vec() };
            mask_register(w, &mask);
            compare(w, false, &vec![0; mask.len()]);
        }
        Statement::Within(field, address, prefix_len) => {
            load_all(w, family, &[*field]);
            let address = address_bytes(*address);
            let mask = prefix_mask(address.len(), *prefix_len);
            mask_register(w, &mask);
            let network: Vec<u8> = address.iter().zip(&mask).map(|(byte, mask)| byte & mask).collect();
            compare(w, true, &network);
        }
        Statement::In(fields, set) => lookup(w, family, fields, set, false, None),
        Statement::NotIn(fields, set) => lookup(w, family, fields, set, true, None),
        Statement::VerdictOf(fields, map) => lookup(w, family, fields, map, false, Some(VERDICT_REGISTER)),
        Statement::Verdict(verdict) => expression(w, "immediate", |w| {
            w.number(1, VERDICT_REGISTER);
            w.nest(2, |w| verdict.write(w));
        }),
        Statement::Dnat(target) => write_dnat(w, family, target, maps),
        Statement::Snat(address) => {
            immediate(w, REGISTER, &address_bytes(*address));
            nat(w, false, address_family(*address), None);
        }
        Statement::Masquerade => expression(w, "masq", |_| {}),
        Statement::Redirect(port) => {
            immediate(w, REGISTER, &port.to_be_bytes());
            expression(w, "redir", |w| w.number(1, REGISTER));
        }
        Statement::Reject(refusal) => write_reject(w, family, *refusal),
        Statement::SetMark(mark) => {
            immediate(w, REGISTER, &mark.to_ne_bytes());
            store(w, "meta", 3);
        }
        Statement::SetCtMark(mark) => {
            immediate(w, REGISTER, &mark.to_ne_bytes());
            store(w, "ct", 3);
        }
        Statement::MarkFromCt => {
            Field::CtMark.load(w, REGISTER);
            store(w, "meta", 3);
        }
        Statement::CtMarkFromMark => {
            Field::Mark.load(w, REGISTER);
            store(w, "ct", 3);
        }
        Statement::ClampMss => write_clamp(w),
        Statement::Counter => expression(w, "counter", |_| {}),
    }
}

fn write_dnat(w: &mut Writer, family: Family, target: &Target, maps: &mut impl Iterator<Item = u32>) {
    match target {
        Target::One(address, port) => {
            immediate(w, REGISTER, &address_bytes(*address));
            // Addresses of IPv6 take four registers.
            let port_register = port.map(|port| {
                immediate(w, REGISTER + 4, &port.to_be_bytes());
                REGISTER + 4
            });
            nat(w, true, address_family(*address), port_register);
        }
        Target::Of(pick, addresses) => {
            let modulus = addresses.len() as u32;
            match pick {
                Pick::RoundRobin | Pick::Random => expression(w, "numgen", |w| {
                    w.number(1, REGISTER);
                    w.number(2, modulus);
                    w.number(3, u32::from(*pick == Pick::Random));
                    w.number(4, 0);
                }),
                Pick::BySource => {
                    let field = if family == Family::Ip6 { Field::Ip6Source } else { Field::IpSource };
                    field.load(w, REGISTER);
                    expression(w, "hash", |w| {
                        w.number(1, REGISTER);
                        w.number(2, REGISTER);
                        w.number(3, field.len() as u32);
                        w.number(4, modulus);
                        // A fixed seed: every node picks the same task for the same client.
                        w.number(5, 0x7273_776d);
                        w.number(7, 0);
                    });
                }
            }
            let id = maps.next().expect("each such target had its map made before the rule");
            expression(w, "lookup", |w| {
                w.text(1, ANONYMOUS_MAP);
                w.number(2, REGISTER);
                w.number(3, REGISTER);
                w.number(4, id);
            });
            nat(w, true, addresses.first().map_or(family.number(), |address| address_family(*address)), None);
        }
    }
}

fn write_reject(w: &mut Writer, family: Family, refusal: Refusal) {
    // Kinds: 0 ICMP of the family, 1 TCP reset, 2 ICMP of either family with codes of its own.
    let (kind, code) = match (refusal, family) {
        (Refusal::TcpReset, _) => (1, 0),
        (Refusal::PortUnreachable, Family::Ip) => (0, 3),
        (Refusal::PortUnreachable, Family::Ip6) => (0, 4),
        (Refusal::PortUnreachable, Family::Inet) => (2, 1),
        (Refusal::Prohibited, Family::Ip) => (0, 13),
        (Refusal::Prohibited, Family::Ip6) => (0, 1),
        (Refusal::Prohibited, Family::Inet) => (2, 3),
    };
    expression(w, "reject", |w| {
        w.number(1, kind);
        w.attribute(2, &[code]);
    });
}

/// The segment size the route carries, in network byte order, written over the option if that is larger.
fn write_clamp(w: &mut Writer) {
    expression(w, "rt", |w| {
        w.number(1, REGISTER);
        w.number(2, 3);
    });
    expression(w, "byteorder", |w| {
        w.number(1, REGISTER);
        w.number(2, REGISTER);
        w.number(3, 1);
        w.number(4, 2);
        w.number(5, 2);
    });
    expression(w, "exthdr", |w| {
        w.attribute(2, &[2]);
        w.number(3, 2);
        w.number(4, 2);
        w.number(6, 1);
        w.number(7, REGISTER);
    });
}

fn expression(w: &mut Writer, name: &str, body: impl FnOnce(&mut Writer)) {
    w.nest(LIST_ITEM, |w| {
        w.text(EXPRESSION_NAME, name);
        w.nest(EXPRESSION_DATA, body);
    });
}

/// Loads fields one behind the other; in tables of both families those of one match only its packets.
fn load_all(w: &mut Writer, family: Family, fields: &[Field]) {
    if family == Family::Inet
        && let Some(number) = fields.iter().find_map(|field| field.address_family())
    {
        expression(w, "meta", |w| {
            w.number(1, REGISTER);
            w.number(2, 15);
        });
        compare(w, true, &[number]);
    }
    let mut register = REGISTER;
    for field in fields {
        field.load(w, register);
        register += (padded(field.len()) / 4) as u32;
    }
}

fn lookup(w: &mut Writer, family: Family, fields: &[Field], set: &str, invert: bool, into: Option<u32>) {
    load_all(w, family, fields);
    expression(w, "lookup", |w| {
        w.text(1, set);
        w.number(2, REGISTER);
        if let Some(register) = into {
            w.number(3, register);
        }
        if invert {
            w.number(5, 1);
        }
    });
}

fn compare(w: &mut Writer, equal: bool, value: &[u8]) {
    expression(w, "cmp", |w| {
        w.number(1, REGISTER);
        w.number(2, u32::from(!equal));
        w.nest(3, |w| w.attribute(DATA_VALUE, value));
    });
}

fn mask_register(w: &mut Writer, mask: &[u8]) {
    expression(w, "bitwise", |w| {
        w.number(1, REGISTER);
        w.number(2, REGISTER);
        w.number(3, mask.len() as u32);
        w.nest(4, |w| w.attribute(DATA_VALUE, mask));
        w.nest(5, |w| w.attribute(DATA_VALUE, &vec![0; mask.len()]));
    });
}

fn immediate(w: &mut Writer, register: u32, value: &[u8]) {
    expression(w, "immediate", |w| {
        w.number(1, register);
        w.nest(2, |w| w.attribute(DATA_VALUE, value));
    });
}

/// Writes the register to a key of `meta` (attribute 3) or `ct` (attribute 4).
fn store(w: &mut Writer, name: &str, key: u32) {
    expression(w, name, |w| {
        w.number(2, key);
        w.number(if name == "meta" { 3 } else { 4 }, REGISTER);
    });
}

fn nat(w: &mut Writer, destination: bool, family: u8, port_register: Option<u32>) {
    expression(w, "nat", |w| {
        w.number(1, destination.into());
        w.number(2, family.into());
        w.number(3, REGISTER);
        if let Some(register) = port_register {
            w.number(5, register);
        }
    });
}

fn padded(len: usize) -> usize {
    len.next_multiple_of(4)
}

/// The parts of a joined key begin at registers; a single key has its own length.
fn key_len(fields: &[Field]) -> usize {
    match fields {
        [field] => field.len(),
        fields => fields.iter().map(|field| padded(field.len())).sum(),
    }
}

fn key_bytes(key: &[Value]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for value in key {
        bytes.extend(value_bytes(value));
        if key.len() > 1 {
            bytes.resize(padded(bytes.len()), 0);
        }
    }
    bytes
}

fn value_bytes(value: &Value) -> Vec<u8> {
    match value {
        Value::Address(address) => address_bytes(*address),
        Value::Port(port) => port.to_be_bytes().to_vec(),
        Value::Byte(byte) => vec![*byte],
        Value::Number(number) => number.to_ne_bytes().to_vec(),
        Value::Link(name) => {
            let mut bytes = name.as_bytes().to_vec();
            bytes.resize(16, 0);
            bytes
        }
    }
}

fn address_bytes(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

fn address_family(address: IpAddr) -> u8 {
    if address.is_ipv6() { Family::Ip6.number() } else { Family::Ip.number() }
}

fn prefix_mask(len: usize, prefix_len: u8) -> Vec<u8> {
    (0..len)
        .map(|index| {
            let bits = usize::from(prefix_len).saturating_sub(index * 8).min(8);
            !(0xff_u16 >> bits) as u8
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_is_a_mask() {
        assert_eq!(prefix_mask(4, 19), [255, 255, 224, 0]);
        assert_eq!(prefix_mask(4, 0), [0; 4]);
        assert_eq!(prefix_mask(4, 32), [255; 4]);
    }
}
