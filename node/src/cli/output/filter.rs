//! `--filter KEY=VALUE`.

use super::super::failure::Failure;
use anyhow::Result;
use std::collections::BTreeMap;
use std::str::FromStr;

/// One condition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Filter {
    key: String,
    value: String,
}

impl FromStr for Filter {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once('=') {
            Some((key, value)) if !key.is_empty() => {
                Ok(Self { key: key.trim().into(), value: value.trim().into() })
            }
            _ => Err("a filter is written KEY=VALUE, for example name=web".into()),
        }
    }
}

/// Checks that only these keys are used.
///
/// # Errors
/// If another is.
pub fn known(filters: &[Filter], keys: &[&str]) -> Result<()> {
    match filters.iter().find(|filter| !keys.contains(&filter.key.as_str())) {
        None => Ok(()),
        Some(filter) => {
            let why = format!("there is no filter `{}` here", filter.key);
            Err(Failure::usage(why).help(format!("the filters are {}", keys.join(", "))).into())
        }
    }
}

/// What is asked of `key`.
pub fn values<'a>(filters: &'a [Filter], key: &'a str) -> impl Iterator<Item = &'a str> {
    filters.iter().filter(move |filter| filter.key == key).map(|filter| filter.value.as_str())
}

/// Whether one of the conditions on `key` holds, or there is none.
pub fn any(filters: &[Filter], key: &str, holds: impl Fn(&str) -> bool) -> bool {
    let mut conditions = filters.iter().filter(|filter| filter.key == key).peekable();
    conditions.peek().is_none() || conditions.any(|filter| holds(&filter.value))
}

/// Whether every condition on `key` holds: each a label's `NAME` or `NAME=VALUE`.
pub fn labels(filters: &[Filter], key: &str, labels: &BTreeMap<String, String>) -> bool {
    filters.iter().filter(|filter| filter.key == key).all(|filter| match filter.value.split_once('=') {
        Some((name, value)) => labels.get(name).is_some_and(|is| is == value),
        None => labels.contains_key(&filter.value),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filters(texts: &[&str]) -> Vec<Filter> {
        texts.iter().map(|text| text.parse().expect(text)).collect()
    }

    #[test]
    fn conditions_on_one_key_are_alternatives_and_on_labels_all_hold() {
        let both = filters(&["name=web", "name=db", "label=a", "label=b=1"]);
        assert!(any(&both, "name", |value| value == "db"));
        assert!(!any(&both, "name", |value| value == "cache"));
        assert!(any(&both, "mode", |_| false));
        let with = |pairs: &[(&str, &str)]| pairs.iter().map(|(k, v)| ((*k).into(), (*v).into())).collect();
        assert!(labels(&both, "label", &with(&[("a", ""), ("b", "1")])));
        assert!(!labels(&both, "label", &with(&[("a", ""), ("b", "2")])));
    }

    #[test]
    fn an_unknown_key_is_refused_with_those_there_are() {
        let error = known(&filters(&["nmae=web"]), &["id", "name"]).expect_err("it is misspelt");
        assert_eq!(error.to_string(), "there is no filter `nmae` here");
        assert!("name".parse::<Filter>().is_err());
    }
}
