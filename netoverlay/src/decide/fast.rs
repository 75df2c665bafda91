//! Maps for looking up every packet. Their keys come from the managers, so that nobody can choose them to collide.

use std::{
    collections::HashMap,
    hash::{BuildHasherDefault, Hasher},
};

/// A map by numbers and addresses.
pub type FastMap<K, V> = HashMap<K, V, BuildHasherDefault<Mix>>;

/// Mixes by multiplication: a fraction of the price of a hash that withstands chosen keys.
#[derive(Debug, Clone, Copy, Default)]
pub struct Mix(u64);

impl Mix {
    fn add(&mut self, word: u64) {
        self.0 = (self.0.rotate_left(5) ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }
}

impl Hasher for Mix {
    fn finish(&self) -> u64 {
        // The map takes the low bits, the multiplication mixes into the high ones.
        self.0 ^ (self.0 >> 32)
    }

    fn write(&mut self, bytes: &[u8]) {
        for chunk in bytes.chunks(8) {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            self.add(u64::from_le_bytes(word));
        }
    }

    fn write_u32(&mut self, number: u32) {
        self.add(number.into());
    }

    fn write_u64(&mut self, number: u64) {
        self.add(number);
    }

    fn write_usize(&mut self, number: usize) {
        self.add(number as u64);
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeSet, hash::BuildHasher, net::Ipv4Addr};

    use super::*;

    #[test]
    fn neighbouring_addresses_are_spread() {
        let build = BuildHasherDefault::<Mix>::default();
        let buckets: BTreeSet<u64> =
            (0..=255).map(|last| build.hash_one(Ipv4Addr::new(10, 50, 0, last)) % 1024).collect();
        assert!(buckets.len() > 150, "{} of 1024 buckets for 256 addresses", buckets.len());
    }
}
