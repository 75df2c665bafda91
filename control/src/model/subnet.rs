//! IPv4 subnets.

use std::fmt;
use std::net::Ipv4Addr;
use std::str::FromStr;

/// An aligned block of IPv4 addresses.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Subnet {
    base: Ipv4Addr,
    prefix: u8,
}

/// Why a text or pair is not a subnet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a subnet is written A.B.C.D/PREFIX, with no bit set beyond the prefix, for example 10.1.0.0/24")]
pub struct NotASubnet;

impl Subnet {
    /// # Errors
    /// If `prefix` exceeds 32 or `base` has bits beyond it.
    pub fn new(base: Ipv4Addr, prefix: u8) -> Result<Self, NotASubnet> {
        let aligned = prefix <= 32 && u64::from(u32::from(base)).is_multiple_of(1u64 << (32 - prefix));
        if aligned { Ok(Self { base, prefix }) } else { Err(NotASubnet) }
    }

    /// The first address, which names the block.
    pub fn base(self) -> Ipv4Addr {
        self.base
    }

    /// Leading bits that all addresses share, 0 to 32.
    pub fn prefix(self) -> u8 {
        self.prefix
    }

    /// How many addresses the block has, network and broadcast addresses included.
    pub fn size(self) -> u64 {
        1u64 << (32 - self.prefix)
    }

    /// The address at `offset` from the base, if the block reaches so far.
    pub fn nth(self, offset: u64) -> Option<Ipv4Addr> {
        let sum = u64::from(u32::from(self.base)) + offset;
        (offset < self.size())
            .then(|| Ipv4Addr::from(u32::try_from(sum).expect("an aligned block ends below 2^32")))
    }

    /// How far `address` lies from the base, if it lies within.
    pub fn offset_of(self, address: Ipv4Addr) -> Option<u64> {
        self.contains(address).then(|| u64::from(u32::from(address) - u32::from(self.base)))
    }

    /// Whether `address` lies within.
    pub fn contains(self, address: Ipv4Addr) -> bool {
        let (base, address) = (u64::from(u32::from(self.base)), u64::from(u32::from(address)));
        address >= base && address < base + self.size()
    }

    /// Whether the two share an address.
    pub fn overlaps(self, other: Self) -> bool {
        self.contains(other.base) || other.contains(self.base)
    }
}

impl fmt::Display for Subnet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.base, self.prefix)
    }
}

impl fmt::Debug for Subnet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Subnet {
    type Err = NotASubnet;

    fn from_str(text: &str) -> Result<Self, NotASubnet> {
        let (base, prefix) = text.split_once('/').ok_or(NotASubnet)?;
        Self::new(base.parse().map_err(|_| NotASubnet)?, prefix.parse().map_err(|_| NotASubnet)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn subnets_parse_and_print() {
        for text in ["10.0.0.0/8", "10.0.1.0/24", "0.0.0.0/0", "255.255.255.255/32"] {
            assert_eq!(text.parse::<Subnet>().expect(text).to_string(), text);
        }
        for text in ["", "10.0.0.0", "10.0.0.1/24", "10.0.0.0/33", "10.0.0/8", "a/b"] {
            assert_eq!(text.parse::<Subnet>(), Err(NotASubnet), "{text}");
        }
    }

    #[test]
    fn the_last_block_of_all_has_an_end() {
        let last: Subnet = "255.255.255.0/24".parse().expect("a subnet");
        assert_eq!(last.nth(255), Some(Ipv4Addr::BROADCAST));
        assert_eq!(last.nth(256), None);
        assert!(last.contains(Ipv4Addr::BROADCAST));
    }

    #[test]
    fn overlap_is_mutual() {
        let case = |a: &str, b: &str| {
            let (a, b): (Subnet, Subnet) = (a.parse().expect(a), b.parse().expect(b));
            assert_eq!(a.overlaps(b), b.overlaps(a));
            a.overlaps(b)
        };
        assert!(case("10.0.0.0/8", "10.3.0.0/24"));
        assert!(!case("10.0.0.0/24", "10.0.1.0/24"));
    }
}
