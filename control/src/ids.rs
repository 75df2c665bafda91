//! Identifiers. Each kind of object has its own type, so that a task can never be looked up by a
//! service's id. All are drawn from one counter and mixed, so they look random, sort arbitrarily and
//! never repeat; creation order is kept in [`Meta::number`](crate::model::Meta::number).

use std::fmt;
use std::str::FromStr;

/// Characters in a printed id: 36^13 is the first power of 36 above 2^64.
pub const ID_LEN: usize = 13;

/// Why a text is not an id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("an id is {ID_LEN} characters of 0-9 and a-z")]
pub struct NotAnId;

macro_rules! ids {
    ($($(#[$doc:meta])* $name:ident,)*) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub u64);

        impl $name {
            /// The id of the object that is the `number`th of a cluster with this seed.
            pub fn mint(seed: u64, number: u64) -> Self {
                Self(mix(number ^ seed))
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(std::str::from_utf8(&encode(self.0)).expect("base 36 is ASCII"))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }

        impl FromStr for $name {
            type Err = NotAnId;

            fn from_str(text: &str) -> Result<Self, NotAnId> {
                decode(text).map(Self)
            }
        }
    )*};
}

ids! {
    /// The cluster as a whole.
    ClusterId,
    /// A machine that is, or was, a member of the cluster.
    NodeId,
    /// What the user asked for.
    ServiceId,
    /// One attempt to run one slot of a service. Never reused, never restarted.
    TaskId,
    /// An overlay network.
    NetworkId,
}

/// A manager's seat in the consensus group. Never given twice: a machine that lost its disk gets a new
/// one, because its old self may have voted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RaftId(pub u64);

impl RaftId {
    /// The seat of the node that founds a cluster.
    pub const FIRST: Self = Self(1);
}

impl fmt::Display for RaftId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

/// A bijection on 64 bits in which near inputs have far outputs (the finaliser of SplitMix64).
fn mix(mut x: u64) -> u64 {
    x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

fn encode(mut value: u64) -> [u8; ID_LEN] {
    let mut text = [b'0'; ID_LEN];
    for place in text.iter_mut().rev() {
        *place = b"0123456789abcdefghijklmnopqrstuvwxyz"[(value % 36) as usize];
        value /= 36;
    }
    text
}

fn decode(text: &str) -> Result<u64, NotAnId> {
    if text.len() != ID_LEN {
        return Err(NotAnId);
    }
    text.bytes().try_fold(0u64, |value, byte| {
        let digit = match byte {
            b'0'..=b'9' => byte - b'0',
            b'a'..=b'z' => byte - b'a' + 10,
            _ => return Err(NotAnId),
        };
        value.checked_mul(36).and_then(|v| v.checked_add(u64::from(digit))).ok_or(NotAnId)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn ids_print_with_fixed_width_and_parse_back() {
        for value in [0, 1, 35, 36, u64::MAX / 2, u64::MAX] {
            let text = TaskId(value).to_string();
            assert_eq!(text.len(), ID_LEN);
            assert_eq!(text.parse(), Ok(TaskId(value)));
        }
    }

    #[test]
    fn what_is_no_id_is_refused() {
        for text in ["", "abc", "0000000000000x", "A000000000000", "zzzzzzzzzzzzz", "00000000000é"] {
            assert_eq!(text.parse::<NodeId>(), Err(NotAnId), "{text}");
        }
    }

    #[test]
    fn ids_do_not_repeat_within_a_cluster() {
        let ids: BTreeSet<TaskId> = (0..10_000).map(|n| TaskId::mint(0xfeed_beef, n)).collect();
        assert_eq!(ids.len(), 10_000);
    }

    #[test]
    fn neighbours_share_no_prefix_that_a_user_would_trip_over() {
        let prefixes: BTreeSet<String> =
            (0..100).map(|n| TaskId::mint(7, n).to_string()[..4].to_owned()).collect();
        assert!(prefixes.len() > 95, "{}", prefixes.len());
    }
}
