//! Messages to model and back. The way in checks everything and names the field that is wrong; the way
//! out cannot fail. Structures are taken apart whole, so that a new field does not compile until it has
//! its wire form.

mod assignment;
mod health;
mod insight;
mod network;
mod news;
mod node;
mod placement;
mod profile;
mod service;
mod table;
mod task;

pub(crate) use health::{health, health_out};
pub use news::{part, piece, pieces};
pub(crate) use placement::filling;
pub use task::report;
pub(crate) use task::{slot, slot_out, task, task_without_spec};

use crate::v1 as pb;
use rswarm_control::model::{Claims, Meta, Resources};
use rswarm_control::{NetworkId, Timestamp};
use std::collections::BTreeSet;
use std::fmt;
use std::net::Ipv4Addr;
use std::str::FromStr;
use std::time::Duration;

/// A message says something that cannot be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {problem}")]
pub struct Invalid {
    /// Where, from the outermost message in: `spec.task.containers[0].image`.
    pub field: String,
    /// What is wrong with it.
    pub problem: Problem,
}

/// What can be wrong with a field.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    /// It must be there, and is not.
    #[error("is missing")]
    Missing,
    /// A choice of this number is not known here; perhaps the sender is newer.
    #[error("has the unknown choice {0}; is the sender of a newer version?")]
    UnknownChoice(i32),
    /// The number is greater than it can be.
    #[error("is {value}, but can be {max} at most")]
    TooLarge {
        /// What was sent.
        value: u64,
        /// The greatest that can be.
        max: u64,
    },
    /// Something else, in words.
    #[error("{0}")]
    Malformed(String),
}

impl Invalid {
    pub(crate) fn new(field: &str, problem: Problem) -> Self {
        Self { field: field.into(), problem }
    }

    /// The same, seen from one message further out.
    pub(crate) fn within(mut self, outer: impl fmt::Display) -> Self {
        self.field = format!("{outer}.{}", self.field);
        self
    }
}

pub(crate) fn required<T>(field: &str, value: Option<T>) -> Result<T, Invalid> {
    value.ok_or_else(|| Invalid::new(field, Problem::Missing))
}

pub(crate) fn nested<W, M: TryFrom<W, Error = Invalid>>(field: &str, wire: Option<W>) -> Result<M, Invalid> {
    M::try_from(required(field, wire)?).map_err(|error| error.within(field))
}

pub(crate) fn each<W, M, C>(field: &str, wire: Vec<W>) -> Result<C, Invalid>
where
    M: TryFrom<W, Error = Invalid>,
    C: FromIterator<M>,
{
    let one =
        |(index, value)| M::try_from(value).map_err(|error| error.within(format_args!("{field}[{index}]")));
    wire.into_iter().enumerate().map(one).collect()
}

/// An id, a constraint, or whatever else is a text on the wire.
pub(crate) fn parsed<T: FromStr<Err: fmt::Display>>(field: &str, text: &str) -> Result<T, Invalid> {
    if text.is_empty() {
        return Err(Invalid::new(field, Problem::Missing));
    }
    text.parse().map_err(|error: T::Err| Invalid::new(field, Problem::Malformed(error.to_string())))
}

pub(crate) fn parsed_each<T: FromStr<Err: fmt::Display>>(
    field: &str,
    texts: &[String],
) -> Result<Vec<T>, Invalid> {
    texts.iter().enumerate().map(|(index, text)| parsed(&format!("{field}[{index}]"), text)).collect()
}

/// What [`parsed_each`] reads.
pub(crate) fn texts<T: fmt::Display>(values: &[T]) -> Vec<String> {
    values.iter().map(ToString::to_string).collect()
}

pub(crate) fn claims_out(claims: &Claims) -> Vec<pb::Claim> {
    let one = |(kind, names): (&String, &BTreeSet<String>)| {
        let claim = |name: &String| pb::Claim { kind: kind.clone(), name: name.clone() };
        names.iter().map(claim).collect::<Vec<_>>()
    };
    claims.iter().flat_map(one).collect()
}

pub(crate) fn claims(wire: Vec<pb::Claim>) -> Claims {
    let mut claims = Claims::new();
    for claim in wire {
        claims.entry(claim.kind).or_default().insert(claim.name);
    }
    claims
}

/// Nothing where the text is empty.
pub(crate) fn parsed_or_none<T: FromStr<Err: fmt::Display>>(
    field: &str,
    text: &str,
) -> Result<Option<T>, Invalid> {
    if text.is_empty() { Ok(None) } else { parsed(field, text).map(Some) }
}

/// An enum's value, by way of its generated type.
pub(crate) fn choice<W, M>(field: &str, value: i32) -> Result<M, Invalid>
where
    W: TryFrom<i32>,
    M: TryFrom<W, Error = Problem>,
{
    let unknown = || Invalid::new(field, Problem::UnknownChoice(value));
    let wire = W::try_from(value).map_err(|_| unknown())?;
    M::try_from(wire).map_err(|problem| Invalid::new(field, problem))
}

pub(crate) fn port(field: &str, value: u32) -> Result<u16, Invalid> {
    u16::try_from(value).map_err(|_| {
        Invalid::new(field, Problem::TooLarge { value: u64::from(value), max: u64::from(u16::MAX) })
    })
}

/// Durations beyond 584 years are sent as that.
pub(crate) fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

pub(crate) fn attachments_out(addresses: &[(NetworkId, Ipv4Addr)]) -> Vec<pb::Attachment> {
    let one = |(network, address): &(NetworkId, Ipv4Addr)| pb::Attachment {
        network: network.to_string(),
        address: u32::from(*address),
    };
    addresses.iter().map(one).collect()
}

pub(crate) fn attachments(
    field: &str,
    wire: Vec<pb::Attachment>,
) -> Result<Vec<(NetworkId, Ipv4Addr)>, Invalid> {
    let one = |(index, attachment): (usize, pb::Attachment)| {
        let network = parsed("network", &attachment.network)
            .map_err(|error: Invalid| error.within(format_args!("{field}[{index}]")))?;
        Ok((network, Ipv4Addr::from(attachment.address)))
    };
    wire.into_iter().enumerate().map(one).collect()
}

/// Both ways between a choice of the model and its generated counterpart.
macro_rules! choices {
    ($($model:ty = $wire:ident { $($name:ident),* $(,)? })*) => {$(
        impl From<$model> for pb::$wire {
            fn from(value: $model) -> Self {
                match value { $(<$model>::$name => Self::$name),* }
            }
        }

        impl TryFrom<pb::$wire> for $model {
            type Error = Problem;

            fn try_from(value: pb::$wire) -> Result<Self, Problem> {
                match value {
                    pb::$wire::Unspecified => Err(Problem::Missing),
                    $(pb::$wire::$name => Ok(Self::$name)),*
                }
            }
        }
    )*};
}
pub(crate) use choices;

impl From<&Meta> for pb::Meta {
    fn from(meta: &Meta) -> Self {
        let Meta { number, version, created_at, updated_at } = *meta;
        Self { number, version, created_at_ms: created_at.0, updated_at_ms: updated_at.0 }
    }
}

impl From<pb::Meta> for Meta {
    fn from(wire: pb::Meta) -> Self {
        Self {
            number: wire.number,
            version: wire.version,
            created_at: Timestamp(wire.created_at_ms),
            updated_at: Timestamp(wire.updated_at_ms),
        }
    }
}

impl From<&Resources> for pb::Resources {
    fn from(resources: &Resources) -> Self {
        let Resources { nano_cpus, memory_bytes } = *resources;
        Self { nano_cpus, memory_bytes }
    }
}

impl From<pb::Resources> for Resources {
    fn from(wire: pb::Resources) -> Self {
        Self { nano_cpus: wire.nano_cpus, memory_bytes: wire.memory_bytes }
    }
}

/// Objects without this part are as good as objects whose part is all zero.
pub(crate) fn meta(wire: Option<pb::Meta>) -> Meta {
    wire.unwrap_or_default().into()
}
