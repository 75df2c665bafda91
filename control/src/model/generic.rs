//! Things that nodes have and tasks use, of kinds that only their owners know: `gpu=2`, or `nic=eth1`.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

/// How much of a kind a node has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stock {
    /// So many that are all alike.
    Count(u64),
    /// These, each of which one task at a time is given.
    Named(BTreeSet<String>),
}

impl Stock {
    /// How many there are.
    pub fn len(&self) -> u64 {
        match self {
            Self::Count(count) => *count,
            Self::Named(names) => names.len() as u64,
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// What a node has, by kind.
pub type Stocks = BTreeMap<String, Stock>;

/// The named things a task was given, by kind.
pub type Claims = BTreeMap<String, BTreeSet<String>>;

/// Why a text says nothing of what a node has or a task needs.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotGeneric {
    /// No kind, or one with odd signs.
    #[error("`{0}` is no generic resource; write KIND=NUMBER, for example gpu=2, or KIND=NAME")]
    Malformed(String),
    /// A kind is counted in one place and named in another.
    #[error("generic resource `{0}` is both counted and named; it can be one of them only")]
    Mixed(String),
    /// A kind is counted twice.
    #[error("generic resource `{0}` is counted twice")]
    Twice(String),
    /// A task names a thing.
    #[error("`{0}` names what the task needs; say only how many: KIND=NUMBER, for example gpu=1")]
    Named(String),
}

/// Most kinds, and most names of a kind.
const KINDS_MAX: usize = 1_000;

fn split(text: &str) -> Result<(String, &str), NotGeneric> {
    let malformed = || NotGeneric::Malformed(text.chars().take(80).collect());
    let (kind, value) = text.split_once('=').ok_or_else(malformed)?;
    let (kind, value) = (kind.trim(), value.trim());
    let sound = |text: &str| {
        !text.is_empty()
            && text.len() <= 255
            && text.chars().all(|c| c.is_ascii_alphanumeric() || "-_.:/".contains(c))
    };
    if sound(kind) && sound(value) { Ok((kind.into(), value)) } else { Err(malformed()) }
}

/// What a node has, from `gpu=4` or `nic=eth1`, one text each.
///
/// # Errors
/// Names the text that makes no sense.
pub fn stocks<T: AsRef<str>>(texts: &[T]) -> Result<Stocks, NotGeneric> {
    let mut stocks = Stocks::new();
    for text in texts {
        let (kind, value) = split(text.as_ref())?;
        let count = value.parse::<u64>().ok();
        match (stocks.get_mut(&kind), count) {
            (None, Some(count)) => drop(stocks.insert(kind, Stock::Count(count))),
            (None, None) => drop(stocks.insert(kind, Stock::Named(BTreeSet::from([value.into()])))),
            (Some(Stock::Named(names)), None) if names.len() < KINDS_MAX => drop(names.insert(value.into())),
            (Some(Stock::Count(_)), Some(_)) => return Err(NotGeneric::Twice(kind)),
            (Some(_), _) => return Err(NotGeneric::Mixed(kind)),
        }
        if stocks.len() > KINDS_MAX {
            return Err(NotGeneric::Malformed(format!("more than {KINDS_MAX} kinds")));
        }
    }
    Ok(stocks)
}

/// The texts that [`stocks`] reads, in order.
pub fn stock_texts(stocks: &Stocks) -> Vec<String> {
    let texts = stocks.iter().flat_map(|(kind, stock)| match stock {
        Stock::Count(count) => vec![format!("{kind}={count}")],
        Stock::Named(names) => names.iter().map(|name| format!("{kind}={name}")).collect(),
    });
    texts.collect()
}

/// What a task needs: a kind, and how many.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Need {
    /// The kind.
    pub kind: String,
    /// At least 1.
    pub count: u64,
}

impl std::str::FromStr for Need {
    type Err = NotGeneric;

    fn from_str(text: &str) -> Result<Self, NotGeneric> {
        let (kind, value) = split(text)?;
        match value.parse::<u64>() {
            Ok(0) => Err(NotGeneric::Malformed(text.into())),
            Ok(count) => Ok(Self { kind, count }),
            Err(_) => Err(NotGeneric::Named(text.into())),
        }
    }
}

impl fmt::Display for Need {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}={}", self.kind, self.count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stocks_are_counted_or_named() {
        let texts = ["gpu=4", "nic=eth1", "nic=eth2"];
        let read = stocks(&texts).expect("all make sense");
        assert_eq!(read["gpu"].len(), 4);
        assert_eq!(read["nic"].len(), 2);
        assert_eq!(stock_texts(&read), texts);
    }

    #[test]
    fn nonsense_is_named() {
        let why = |texts: &[&str]| stocks(texts).expect_err("it is refused").to_string();
        assert!(why(&["gpu"]).contains("KIND=NUMBER"));
        assert!(why(&["gpu=1", "gpu=2"]).contains("counted twice"));
        assert!(why(&["gpu=1", "gpu=a"]).contains("both counted and named"));
        assert!("gpu=a".parse::<Need>().expect_err("a name").to_string().contains("only how many"));
        assert!("gpu=0".parse::<Need>().is_err());
    }
}
