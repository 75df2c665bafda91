//! Join tokens: `RSWTKN-1-<digest of the root certificate>-<secret>`.
//!
//! The digest lets a joining node refuse a cluster that is not the one it was invited to before it says the
//! secret; which of the two secrets it is decides the role.

use sha2::{Digest, Sha256};
use std::fmt;
use std::str::FromStr;

const PREFIX: &str = "RSWTKN-1-";
/// 256 bits in base 36.
const DIGEST_CHARS: usize = 50;
/// 128 bits in base 36.
const SECRET_CHARS: usize = 25;

/// An invitation to a cluster.
#[derive(Clone, PartialEq, Eq)]
pub struct JoinToken {
    /// SHA-256 of the root certificate (DER) in base 36.
    pub digest: String,
    /// What the cluster compares.
    pub secret: String,
}

impl JoinToken {
    /// The token for a cluster with this root certificate.
    pub fn new(root_der: &[u8], secret: &str) -> Self {
        Self { digest: digest(root_der), secret: secret.to_owned() }
    }
}

/// What a token says of a root certificate.
pub fn digest(root_der: &[u8]) -> String {
    base36(&Sha256::digest(root_der), DIGEST_CHARS)
}

/// A new secret of 128 random bits.
pub fn secret(random: [u8; 16]) -> String {
    base36(&random, SECRET_CHARS)
}

impl fmt::Display for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{PREFIX}{}-{}", self.digest, self.secret)
    }
}

impl fmt::Debug for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{PREFIX}{}-…", self.digest)
    }
}

/// Why a text is not a join token.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "invalid join token: expected {PREFIX}<{DIGEST_CHARS} characters>-<{SECRET_CHARS} characters>; \
     run `rswarm join-token worker` (or `manager`) on a manager to see it"
)]
pub struct NotAToken;

impl FromStr for JoinToken {
    type Err = NotAToken;

    fn from_str(text: &str) -> Result<Self, NotAToken> {
        let (digest, secret) =
            text.trim().strip_prefix(PREFIX).and_then(|rest| rest.split_once('-')).ok_or(NotAToken)?;
        let base36 = |text: &str, len: usize| {
            text.len() == len && text.bytes().all(|b| b.is_ascii_digit() || b.is_ascii_lowercase())
        };
        if !base36(digest, DIGEST_CHARS) || !base36(secret, SECRET_CHARS) {
            return Err(NotAToken);
        }
        Ok(Self { digest: digest.into(), secret: secret.into() })
    }
}

/// A big-endian number in base 36, padded with zeros to `width`.
pub(crate) fn base36(bytes: &[u8], width: usize) -> String {
    let mut number = bytes.to_vec();
    let mut digits = vec![b'0'; width];
    for digit in digits.iter_mut().rev() {
        let mut rest = 0u32;
        for byte in &mut number {
            let value = rest << 8 | u32::from(*byte);
            *byte = (value / 36) as u8;
            rest = value % 36;
        }
        *digit = b"0123456789abcdefghijklmnopqrstuvwxyz"[rest as usize];
    }
    String::from_utf8(digits).expect("digits are ASCII")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_survives_being_printed() {
        let token = JoinToken::new(b"root", &secret([7; 16]));
        assert_eq!(token.to_string().parse(), Ok(token));
    }

    #[test]
    fn the_largest_numbers_fit() {
        assert!(!base36(&[0xff; 32], DIGEST_CHARS).starts_with('0'));
        assert!(!base36(&[0xff; 16], SECRET_CHARS).starts_with('0'));
        assert_eq!(base36(&[1, 0], 3), "074");
    }

    #[test]
    fn malformed_tokens_are_refused() {
        let good = JoinToken::new(b"root", &secret([7; 16])).to_string();
        for bad in
            ["", "SWMTKN-1-a-b", &good[1..], &good[..good.len() - 1], &good.to_uppercase(), "RSWTKN-1--"]
        {
            assert_eq!(bad.parse::<JoinToken>(), Err(NotAToken), "{bad}");
        }
    }
}
