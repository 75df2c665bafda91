//! Which of this machine's ids the users of containers are that have some of their own: each such container has a range
//! to itself for as long as it is there.

use crate::files::Ids;
use std::collections::BTreeSet;
use std::str::FromStr;

/// How many users a container has.
const EACH: u32 = 1 << 16;

/// The ids that this machine has to give, as `FIRST:COUNT`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UserIds {
    first: u32,
    count: u32,
}

/// What nobody else has by convention: beyond the ranges of `/etc/subuid` and of systemd's own containers.
impl Default for UserIds {
    fn default() -> Self {
        Self { first: 0x7000_0000, count: 0x0ffe_0000 }
    }
}

impl FromStr for UserIds {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let numbers = text
            .split_once(':')
            .and_then(|(first, count)| Some((first.parse::<u32>().ok()?, count.parse::<u32>().ok()?)));
        let (first, count) =
            numbers.ok_or_else(|| format!("`{text}` is not FIRST:COUNT, for example 1879048192:6553600"))?;
        match () {
            () if first == 0 => Err(format!("`{text}` begins with the machine's root")),
            () if count < EACH => Err(format!("`{text}` is not enough for one container, which has {EACH}")),
            () if first.checked_add(count).is_none() => Err(format!("`{text}` ends beyond the largest id")),
            () => Ok(Self { first, count }),
        }
    }
}

impl UserIds {
    /// A range that nobody has of those who are there.
    pub(super) fn free(self, taken: impl Iterator<Item = Ids>) -> Option<Ids> {
        let taken: BTreeSet<u32> = taken.map(|ids| ids.first).collect();
        let firsts = (0..self.count / EACH).map(|index| self.first + index * EACH);
        let free = |first: &u32| {
            // One of before may lie across, where the machine was told another first id since.
            let (below, above) = (first.saturating_sub(EACH - 1), first.saturating_add(EACH - 1));
            taken.range(below..=above).next().is_none()
        };
        firsts.into_iter().find(free).map(|first| Ids { first, count: EACH })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_container_has_a_range_that_no_other_has() {
        let ids: UserIds = "100000:140000".parse().unwrap();
        let (one, two) = (Ids { first: 100_000, count: EACH }, Ids { first: 165_536, count: EACH });
        assert_eq!(ids.free([].into_iter()), Some(one));
        assert_eq!(ids.free([one].into_iter()), Some(two));
        assert_eq!(ids.free([one, two].into_iter()), None);
        let across = Ids { first: 120_000, count: EACH };
        assert_eq!(ids.free([across].into_iter()), None);
    }

    #[test]
    fn what_is_no_range_is_told() {
        for text in ["", "5", "a:b", "0:65536", "100000:1", "4294967295:65536"] {
            assert!(text.parse::<UserIds>().is_err(), "{text}");
        }
        let ids = UserIds::default();
        assert_eq!(format!("{}:{}", ids.first, ids.count).parse(), Ok(ids));
    }
}
