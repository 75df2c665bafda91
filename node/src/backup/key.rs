//! What opens a backup: a recovery key that was printed when it was made, or a passphrase.

use crate::identity::random;
use anyhow::{Result, ensure};
use argon2::{Algorithm, Argon2, Params, Version};
use ring::hmac;
use rswarm_proto::v1 as pb;
use std::fmt;
use std::str::FromStr;

const PREFIX: &str = "RSWKEY-1-";
/// 256 bits in base 36.
const CHARS: usize = 50;

/// What a passphrase costs to try: RFC 9106's second choice.
const COST: pb::Argon2id =
    pb::Argon2id { salt: bytes::Bytes::new(), memory_kib: 64 << 10, passes: 3, lanes: 4 };
/// What is spent at the most on a file that asks for more.
const MEMORY_KIB_MAX: u32 = 1 << 20;
const PASSES_MAX: u32 = 64;
const LANES_MAX: u32 = 64;

/// 256 bits, from which a backup's keys come. As text, it is a recovery key.
#[derive(Clone, PartialEq, Eq)]
pub struct Key([u8; 32]);

/// Why a text is not a recovery key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "this is not a recovery key: expected {PREFIX} and {CHARS} characters, as `rswarm backup` printed it"
)]
pub struct NotAKey;

impl Key {
    /// A new one.
    pub fn generate() -> Self {
        Self(random())
    }

    /// From the 32 bytes of one.
    ///
    /// # Errors
    /// If they are not 32.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self> {
        ensure!(bytes.len() == 32, "a backup's key has 32 bytes, not {}", bytes.len());
        let mut key = [0; 32];
        key.copy_from_slice(bytes);
        Ok(Self(key))
    }

    /// Its bytes.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// From a passphrase, in a way that is new each time.
    ///
    /// # Errors
    /// If the passphrase is empty.
    pub fn from_new_passphrase(passphrase: &[u8]) -> Result<(Self, pb::Argon2id)> {
        let how = pb::Argon2id { salt: random::<16>().to_vec().into(), ..COST };
        Ok((Self::from_passphrase(passphrase, &how)?, how))
    }

    /// From a passphrase, in the way that a file says. Takes a moment, on purpose.
    ///
    /// # Errors
    /// If the passphrase is empty, or the way costs too much or cannot be.
    pub fn from_passphrase(passphrase: &[u8], how: &pb::Argon2id) -> Result<Self> {
        ensure!(!passphrase.is_empty(), "the passphrase is empty");
        ensure!(
            how.memory_kib <= MEMORY_KIB_MAX && how.passes <= PASSES_MAX && how.lanes <= LANES_MAX,
            "the backup asks for {} KiB of memory, {} passes and {} lanes to try a passphrase, which is more than \
             any rswarm has written",
            how.memory_kib,
            how.passes,
            how.lanes
        );
        let cannot = |error: argon2::Error| anyhow::anyhow!("the passphrase cannot be used: {error}");
        let params = Params::new(how.memory_kib, how.passes, how.lanes, Some(32)).map_err(cannot)?;
        let mut key = [0; 32];
        Argon2::new(Algorithm::Argon2id, Version::V0x13, params)
            .hash_password_into(passphrase, &how.salt, &mut key)
            .map_err(cannot)?;
        Ok(Self(key))
    }

    /// A key of its own for one use.
    pub(super) fn derive(&self, purpose: &[&[u8]]) -> [u8; 32] {
        let mut context = hmac::Context::with_key(&hmac::Key::new(hmac::HMAC_SHA256, &self.0));
        purpose.iter().for_each(|part| context.update(part));
        let mut derived = [0; 32];
        derived.copy_from_slice(context.sign().as_ref());
        derived
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{PREFIX}{}", crate::identity::token::base36(&self.0, CHARS))
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{PREFIX}…")
    }
}

impl FromStr for Key {
    type Err = NotAKey;

    fn from_str(text: &str) -> Result<Self, NotAKey> {
        let digits =
            text.trim().strip_prefix(PREFIX).filter(|digits| digits.len() == CHARS).ok_or(NotAKey)?;
        let mut key = [0u8; 32];
        for digit in digits.bytes() {
            let digit = match digit {
                b'0'..=b'9' => digit - b'0',
                b'a'..=b'z' => digit - b'a' + 10,
                _ => return Err(NotAKey),
            };
            let mut carry = u32::from(digit);
            for byte in key.iter_mut().rev() {
                carry += u32::from(*byte) * 36;
                *byte = (carry & 0xff) as u8;
                carry >>= 8;
            }
            if carry != 0 {
                return Err(NotAKey);
            }
        }
        Ok(Self(key))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_recovery_key_survives_being_printed_and_typed() {
        for key in [Key([0; 32]), Key([0xff; 32]), Key::generate()] {
            assert_eq!(format!(" {key}\n").parse(), Ok(key.clone()));
            assert!(!format!("{key:?}").contains(&key.to_string()[PREFIX.len()..]), "it is not logged");
        }
    }

    #[test]
    fn what_is_no_recovery_key_is_refused() {
        let good = Key([7; 32]).to_string();
        let large = format!("{PREFIX}{}", "z".repeat(CHARS));
        for bad in ["", &good[1..], &good[..good.len() - 1], &good.to_uppercase(), &large] {
            assert_eq!(bad.parse::<Key>(), Err(NotAKey), "{bad}");
        }
    }

    #[test]
    fn a_passphrase_gives_the_same_key_again_and_another_each_time_it_is_new() {
        let (key, how) = Key::from_new_passphrase(b"a long walk").unwrap();
        assert_eq!(Key::from_passphrase(b"a long walk", &how).unwrap(), key);
        assert_ne!(Key::from_passphrase(b"a long talk", &how).unwrap(), key);
        assert_ne!(Key::from_new_passphrase(b"a long walk").unwrap().0, key);
        Key::from_passphrase(b"", &how).expect_err("it is empty");
    }

    #[test]
    fn a_file_cannot_ask_for_all_the_memory() {
        for greedy in [
            pb::Argon2id { memory_kib: u32::MAX, ..COST },
            pb::Argon2id { passes: u32::MAX, ..COST },
            pb::Argon2id { lanes: 1 << 20, ..COST },
            pb::Argon2id { memory_kib: 0, passes: 0, lanes: 0, ..COST },
        ] {
            Key::from_passphrase(b"x", &pb::Argon2id { salt: vec![1; 16].into(), ..greedy })
                .expect_err("it costs too much, or nothing");
        }
    }
}
