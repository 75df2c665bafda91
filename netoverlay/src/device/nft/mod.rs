//! Packet filter tables as values: rendered as text for people, and sent to the kernel in one transaction.
//!
//! Only what the overlay needs of nftables is here. A [`Table`] is replaced as a whole; there is no editing
//! of single rules by handle.

use std::{collections::BTreeMap, fmt, net::IpAddr};

mod encode;
mod kernel;

pub use kernel::Nft;

/// The longest name of a table, chain, set or map, in bytes.
pub const NAME_LEN_MAX: usize = 255;

/// Which packets a table sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Family {
    /// IPv4 and IPv6.
    Inet,
    /// IPv4.
    Ip,
    /// IPv6.
    Ip6,
}

/// Several tables, applied in one transaction.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ruleset {
    /// The tables; each replaces the one of the same family and name.
    pub tables: Vec<Table>,
}

/// A table with all it holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Table {
    /// The family.
    pub family: Family,
    /// The name.
    pub name: String,
    /// Named sets and maps.
    pub sets: Vec<Set>,
    /// Chains. Verdicts may jump to any of them.
    pub chains: Vec<Chain>,
}

impl Table {
    /// An empty table.
    pub fn new(family: Family, name: &str) -> Self {
        Self { family, name: name.to_owned(), sets: Vec::new(), chains: Vec::new() }
    }
}

/// A chain of rules.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chain {
    /// The name.
    pub name: String,
    /// Where packets enter it; `None` is a regular chain, entered by jumps only.
    pub base: Option<Base>,
    /// The rules, tried in order.
    pub rules: Vec<Rule>,
}

impl Chain {
    /// A chain entered by jumps only.
    pub fn regular(name: impl Into<String>, rules: Vec<Rule>) -> Self {
        Self { name: name.into(), base: None, rules }
    }

    /// A chain that packets enter at `base`.
    pub fn base(name: impl Into<String>, base: Base, rules: Vec<Rule>) -> Self {
        Self { name: name.into(), base: Some(base), rules }
    }
}

/// Where packets enter a chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Base {
    /// What the chain may do.
    pub kind: ChainKind,
    /// The place in the packet's way.
    pub hook: Hook,
    /// The order among chains of one hook, lower first: see [`priority`].
    pub priority: i32,
    /// Whether packets that no rule decides on are dropped, instead of accepted.
    pub drop: bool,
}

impl Base {
    /// A base chain that accepts what no rule decides on.
    pub fn new(kind: ChainKind, hook: Hook, priority: i32) -> Self {
        Self { kind, hook, priority, drop: false }
    }
}

/// The usual priorities of base chains.
pub mod priority {
    /// Before connection tracking.
    pub const RAW: i32 = -300;
    /// Marks that routing heeds.
    pub const MANGLE: i32 = -150;
    /// Destination addresses are rewritten.
    pub const DSTNAT: i32 = -100;
    /// Accept or drop.
    pub const FILTER: i32 = 0;
    /// Source addresses are rewritten.
    pub const SRCNAT: i32 = 100;
}

/// What a base chain may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChainKind {
    /// Accept, drop, mark.
    Filter,
    /// Rewrite addresses; sees the first packet of a connection only.
    Nat,
    /// Mark packets of this machine, which are then routed anew.
    Route,
}

/// A place in the packet's way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Hook {
    Prerouting,
    Input,
    Forward,
    Output,
    Postrouting,
}

/// One rule: statements tried from left to right, until a match fails or a verdict is reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule(pub Vec<Statement>);

/// A part of a packet, or what is known of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[allow(missing_docs)]
pub enum Field {
    IpSource,
    IpDestination,
    Ip6Source,
    Ip6Destination,
    /// TCP, UDP, … as their IP protocol number.
    Protocol,
    /// The port of TCP or UDP: match [`Field::Protocol`] before.
    SourcePort,
    /// The port of TCP or UDP: match [`Field::Protocol`] before.
    DestinationPort,
    InputLink,
    OutputLink,
    Mark,
    CtMark,
    /// Bits: [`ct`].
    CtState,
    /// Bits: [`ct`].
    CtStatus,
    /// 0 original, 1 reply.
    CtDirection,
    /// 1 if a transparent socket of this namespace takes the packet.
    SocketTransparent,
    /// The flags of a TCP header.
    TcpFlags,
}

/// Bits of connection tracking.
pub mod ct {
    /// [`super::Field::CtState`]: makes no sense to connection tracking.
    pub const INVALID: u32 = 1;
    /// [`super::Field::CtState`]: belongs to a known connection.
    pub const ESTABLISHED: u32 = 1 << 1;
    /// [`super::Field::CtState`]: an error about a known connection, or its helper.
    pub const RELATED: u32 = 1 << 2;
    /// [`super::Field::CtState`]: opens a connection.
    pub const NEW: u32 = 1 << 3;
    /// [`super::Field::CtState`]: nobody tracks it.
    pub const UNTRACKED: u32 = 1 << 6;
    /// [`super::Field::CtStatus`]: its destination was rewritten.
    pub const DNAT: u32 = 1 << 5;
}

/// Bits of [`Field::TcpFlags`].
pub mod tcp_flags {
    /// Opens a connection, or agrees to it.
    pub const SYN: u32 = 1 << 1;
}

/// What a field is compared with.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Value {
    /// An address.
    Address(IpAddr),
    /// A port.
    Port(u16),
    /// A protocol number, a direction, a flag.
    Byte(u8),
    /// A mark or bits, in the machine's byte order.
    Number(u32),
    /// The name of a link, at most 15 bytes.
    Link(String),
}

/// Where a packet goes on.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[allow(missing_docs)]
pub enum Verdict {
    Accept,
    Drop,
    Return,
    Jump(String),
    Goto(String),
}

/// How one of several targets is picked, for each new connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pick {
    /// One after the other.
    RoundRobin,
    /// By chance.
    Random,
    /// The same for the same source address, as long as the targets stay.
    BySource,
}

/// The target of an address translation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// This address, and this port if given.
    One(IpAddr, Option<u16>),
    /// One of these addresses; at least one, all of the table's family (which must not be `inet`).
    Of(Pick, Vec<IpAddr>),
}

/// How a packet is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// TCP is reset; match the protocol before.
    TcpReset,
    /// ICMP "port unreachable".
    PortUnreachable,
    /// ICMP "administratively prohibited".
    Prohibited,
}

/// A part of a rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Statement {
    /// Goes on only if the field has this value.
    Is(Field, Value),
    /// Goes on only if the field has another value.
    IsNot(Field, Value),
    /// Goes on only if one of the bits is set.
    AnyOf(Field, u32),
    /// Goes on only if the address is within the prefix.
    Within(Field, IpAddr, u8),
    /// Goes on only if the fields, taken together, are an element of the set.
    In(Vec<Field>, String),
    /// Goes on only if they are not.
    NotIn(Vec<Field>, String),
    /// Looks the fields up in a verdict map; goes on if they are not there.
    VerdictOf(Vec<Field>, String),
    /// Decides.
    Verdict(Verdict),
    /// Rewrites the destination.
    Dnat(Target),
    /// Rewrites the source.
    Snat(IpAddr),
    /// Rewrites the source to the address of the link the packet leaves by.
    Masquerade,
    /// Rewrites the destination to this namespace and the port.
    Redirect(u16),
    /// Answers with an error.
    Reject(Refusal),
    /// Marks the packet.
    SetMark(u32),
    /// Marks the connection.
    SetCtMark(u32),
    /// Copies the connection's mark to the packet.
    MarkFromCt,
    /// Copies the packet's mark to the connection.
    CtMarkFromMark,
    /// Lowers the segment size in a TCP handshake to what the route carries; match SYN before.
    ClampMss,
    /// Counts packets and bytes.
    Counter,
}

/// A named set, or with values a map.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Set {
    /// The name.
    pub name: String,
    /// The fields its keys are made of.
    pub key: Vec<Field>,
    /// The elements.
    pub elements: Elements,
}

/// What a set holds. Keys have one value for each field of the set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Elements {
    /// A set.
    Keys(Vec<Vec<Value>>),
    /// A verdict map.
    Verdicts(BTreeMap<Vec<Value>, Verdict>),
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Inet => "inet",
            Self::Ip => "ip",
            Self::Ip6 => "ip6",
        })
    }
}

impl fmt::Display for Ruleset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.tables.iter().try_for_each(|table| write!(f, "{table}"))
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "table {} {} {{", self.family, self.name)?;
        for set in &self.sets {
            write!(f, "{set}")?;
        }
        for chain in &self.chains {
            write!(f, "{chain}")?;
        }
        writeln!(f, "}}")
    }
}

impl fmt::Display for Chain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "  chain {} {{", self.name)?;
        if let Some(base) = self.base {
            let kind = match base.kind {
                ChainKind::Filter => "filter",
                ChainKind::Nat => "nat",
                ChainKind::Route => "route",
            };
            let hook = format!("{:?}", base.hook).to_lowercase();
            let policy = if base.drop { "drop" } else { "accept" };
            writeln!(f, "    type {kind} hook {hook} priority {}; policy {policy};", base.priority)?;
        }
        for rule in &self.rules {
            writeln!(f, "    {rule}")?;
        }
        writeln!(f, "  }}")
    }
}

impl fmt::Display for Set {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let key = joined(self.key.iter().map(|field| field.type_name()));
        match &self.elements {
            Elements::Keys(keys) => {
                writeln!(f, "  set {} {{", self.name)?;
                writeln!(f, "    type {key}")?;
                for key in keys {
                    writeln!(f, "    {}", joined(key))?;
                }
            }
            Elements::Verdicts(verdicts) => {
                writeln!(f, "  map {} {{", self.name)?;
                writeln!(f, "    type {key} : verdict")?;
                for (key, verdict) in verdicts {
                    writeln!(f, "    {} : {verdict}", joined(key))?;
                }
            }
        }
        writeln!(f, "  }}")
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (number, statement) in self.0.iter().enumerate() {
            let space = if number == 0 { "" } else { " " };
            write!(f, "{space}{statement}")?;
        }
        Ok(())
    }
}

impl fmt::Display for Statement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Is(field, value) => write!(f, "{field} {value}"),
            Self::IsNot(field, value) => write!(f, "{field} != {value}"),
            Self::AnyOf(field, bits) => write!(f, "{field} & {bits:#x} != 0"),
            Self::Within(field, address, prefix_len) => write!(f, "{field} {address}/{prefix_len}"),
            Self::In(fields, set) => write!(f, "{} @{set}", joined(fields)),
            Self::NotIn(fields, set) => write!(f, "{} != @{set}", joined(fields)),
            Self::VerdictOf(fields, map) => write!(f, "{} vmap @{map}", joined(fields)),
            Self::Verdict(verdict) => write!(f, "{verdict}"),
            Self::Dnat(target) => write!(f, "dnat to {target}"),
            Self::Snat(address) => write!(f, "snat to {address}"),
            Self::Masquerade => f.write_str("masquerade"),
            Self::Redirect(port) => write!(f, "redirect to :{port}"),
            Self::Reject(Refusal::TcpReset) => f.write_str("reject with tcp reset"),
            Self::Reject(Refusal::PortUnreachable) => f.write_str("reject with icmp port-unreachable"),
            Self::Reject(Refusal::Prohibited) => f.write_str("reject with icmp admin-prohibited"),
            Self::SetMark(mark) => write!(f, "meta mark set {mark:#x}"),
            Self::SetCtMark(mark) => write!(f, "ct mark set {mark:#x}"),
            Self::MarkFromCt => f.write_str("meta mark set ct mark"),
            Self::CtMarkFromMark => f.write_str("ct mark set meta mark"),
            Self::ClampMss => f.write_str("tcp option maxseg size set rt mtu"),
            Self::Counter => f.write_str("counter"),
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::One(address, None) => write!(f, "{address}"),
            Self::One(IpAddr::V4(address), Some(port)) => write!(f, "{address}:{port}"),
            Self::One(IpAddr::V6(address), Some(port)) => write!(f, "[{address}]:{port}"),
            Self::Of(pick, addresses) => {
                let number = match pick {
                    Pick::RoundRobin => "numgen inc",
                    Pick::Random => "numgen random",
                    Pick::BySource => "jhash saddr",
                };
                write!(f, "{number} mod {} map {{", addresses.len())?;
                for (index, address) in addresses.iter().enumerate() {
                    let comma = if index == 0 { "" } else { "," };
                    write!(f, "{comma} {index} : {address}")?;
                }
                f.write_str(" }")
            }
        }
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Accept => f.write_str("accept"),
            Self::Drop => f.write_str("drop"),
            Self::Return => f.write_str("return"),
            Self::Jump(chain) => write!(f, "jump {chain}"),
            Self::Goto(chain) => write!(f, "goto {chain}"),
        }
    }
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(address) => write!(f, "{address}"),
            Self::Port(port) => write!(f, "{port}"),
            Self::Byte(byte) => write!(f, "{byte}"),
            Self::Number(number) => write!(f, "{number:#x}"),
            Self::Link(name) => write!(f, "\"{name}\""),
        }
    }
}

impl fmt::Display for Field {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::IpSource => "ip saddr",
            Self::IpDestination => "ip daddr",
            Self::Ip6Source => "ip6 saddr",
            Self::Ip6Destination => "ip6 daddr",
            Self::Protocol => "meta l4proto",
            Self::SourcePort => "th sport",
            Self::DestinationPort => "th dport",
            Self::InputLink => "iifname",
            Self::OutputLink => "oifname",
            Self::Mark => "meta mark",
            Self::CtMark => "ct mark",
            Self::CtState => "ct state",
            Self::CtStatus => "ct status",
            Self::CtDirection => "ct direction",
            Self::SocketTransparent => "socket transparent",
            Self::TcpFlags => "tcp flags",
        })
    }
}

fn joined<T: fmt::Display>(parts: impl IntoIterator<Item = T>) -> String {
    parts.into_iter().map(|part| part.to_string()).collect::<Vec<_>>().join(" . ")
}
