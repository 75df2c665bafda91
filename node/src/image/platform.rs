//! The machines that images are made for.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::builtin;

/// The machine an image is for: `linux/arm64`, `linux/arm/v7`.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
pub struct Platform {
    /// `linux`.
    #[serde(default)]
    pub os: String,
    /// `amd64`, `arm64`, …
    #[serde(default)]
    pub architecture: String,
    /// `v7`; empty where there is but one.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub variant: String,
}

/// A text that names no platform.
#[derive(Debug, thiserror::Error)]
#[error("`{0}` is not a platform; write for example linux/amd64 or linux/arm/v7")]
pub struct NotAPlatform(String);

impl Platform {
    /// This machine's.
    pub fn ours() -> Self {
        Self { os: "linux".into(), architecture: builtin::architecture().into(), variant: String::new() }
    }

    /// How well an image for `offered` runs here: lower is better, `None` is not at all.
    pub(super) fn fit(&self, offered: &Self) -> Option<u32> {
        if self.os != offered.os || self.architecture != offered.architecture {
            return None;
        }
        // Some indices say v8 of arm64, some leave it out: there is no other yet.
        let plain = |variant: &str| variant.is_empty() || self.architecture == "arm64" && variant == "v8";
        match (&*self.variant, &*offered.variant) {
            (ours, theirs) if ours == theirs || plain(ours) && plain(theirs) => Some(0),
            (_, "") => Some(1),
            // The newest that most machines have comes first.
            ("", theirs) => Some(10 - level(theirs).min(7) + if level(theirs) > 7 { 100 } else { 0 }),
            // Machines run what is for their elders.
            (ours, theirs) if self.architecture == "arm" && level(theirs) < level(ours) => {
                Some(10 - level(theirs))
            }
            _ => None,
        }
    }
}

fn level(variant: &str) -> u32 {
    variant.strip_prefix('v').and_then(|level| level.parse().ok()).unwrap_or(0).min(9)
}

impl FromStr for Platform {
    type Err = NotAPlatform;

    fn from_str(text: &str) -> Result<Self, NotAPlatform> {
        let error = || NotAPlatform(text.chars().take(100).collect());
        let mut parts = text.split('/').map(str::to_ascii_lowercase);
        let mut next = || {
            let part = parts.next()?;
            let sound = !part.is_empty() && part.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
            Some(if sound { Ok(part) } else { Err(error()) })
        };
        let (Some(os), Some(architecture), variant, None) = (next(), next(), next(), next()) else {
            return Err(error());
        };
        let architecture = match &*architecture? {
            "x86_64" => "amd64".to_owned(),
            "aarch64" => "arm64".to_owned(),
            other => other.to_owned(),
        };
        Ok(Self { os: os?, architecture, variant: variant.transpose()?.unwrap_or_default() })
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let or_unknown = |text: &str| if text.is_empty() { "unknown".to_owned() } else { text.to_owned() };
        write!(f, "{}/{}", or_unknown(&self.os), or_unknown(&self.architecture))?;
        if !self.variant.is_empty() {
            write!(f, "/{}", self.variant)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn platforms_are_read_and_written() {
        for text in ["linux/amd64", "linux/arm/v7", "windows/amd64"] {
            assert_eq!(text.parse::<Platform>().unwrap().to_string(), text);
        }
        assert_eq!("linux/x86_64".parse::<Platform>().unwrap().to_string(), "linux/amd64");
        for text in ["", "linux", "linux/", "/amd64", "linux/arm/v7/x", "a b/c"] {
            assert!(text.parse::<Platform>().is_err(), "{text}");
        }
    }

    #[rustfmt::skip]
    #[test]
    fn the_best_fitting_offer_is_chosen() {
        for (wanted, offers, chosen) in [
            ("linux/arm64",  &["linux/amd64", "linux/arm64/v8"][..],                   Some("linux/arm64/v8")),
            ("linux/amd64",  &["linux/amd64/v3", "linux/amd64"],                       Some("linux/amd64")),
            ("linux/arm",    &["linux/arm/v5", "linux/arm/v7", "linux/arm/v6"],        Some("linux/arm/v7")),
            ("linux/arm/v6", &["linux/arm/v5", "linux/arm/v7", "linux/arm/v6"],        Some("linux/arm/v6")),
            ("linux/arm/v6", &["linux/arm/v5", "linux/arm/v7"],                        Some("linux/arm/v5")),
            ("linux/arm/v5", &["linux/arm/v7"],                                        None),
            ("linux/amd64",  &["windows/amd64", "linux/arm64"],                        None),
        ] {
            let wanted: Platform = wanted.parse().unwrap();
            let offers: Vec<Platform> = offers.iter().map(|text| text.parse().unwrap()).collect();
            let best = offers.iter().filter_map(|offer| Some((wanted.fit(offer)?, offer))).min_by_key(|(fit, _)| *fit);
            assert_eq!(best.map(|(_, offer)| offer.to_string()).as_deref(), chosen, "{wanted}");
        }
    }
}
