//! Placement constraints: `node.labels.disk==ssd`.

use std::fmt;
use std::str::FromStr;

/// A condition on the node that a task may run on. Values compare without regard to case.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Constraint {
    /// What is looked at.
    pub key: ConstraintKey,
    /// How it is compared.
    pub op: ConstraintOp,
    /// What with: one of these. At least one.
    pub values: Vec<String>,
}

/// What a constraint looks at.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ConstraintKey {
    /// `node.id`
    NodeId,
    /// `node.hostname`
    Hostname,
    /// `node.role`: `worker` or `manager`
    Role,
    /// `node.labels.KEY`; a node without the label compares as empty
    Label(String),
    /// `engine.labels.KEY`, as the node's daemon was configured; one without the label compares as empty
    EngineLabel(String),
    /// `node.platform.os`
    PlatformOs,
    /// `node.platform.arch`; `amd64` and `arm64` are understood
    PlatformArch,
}

/// How a constraint compares.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ConstraintOp {
    /// `==`, or `in (…)`: it is one of the values
    Equal,
    /// `!=`, or `not in (…)`: it is none of them
    NotEqual,
}

/// Why a text is not a constraint.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotAConstraint {
    /// Neither operator occurs.
    #[error("constraint `{0}` has no operator; write KEY==VALUE, KEY!=VALUE or KEY in (VALUE, …)")]
    NoOperator(String),
    /// The key is none of ours.
    #[error(
        "constraint key `{0}` is not known; known are node.id, node.hostname, node.role, node.labels.KEY, \
         engine.labels.KEY, node.platform.os and node.platform.arch"
    )]
    UnknownKey(String),
    /// Nothing stands after the operator, or it cannot be.
    #[error("constraint `{0}` compares with a value that cannot be: {1}")]
    BadValue(String, &'static str),
}

impl FromStr for ConstraintKey {
    type Err = NotAConstraint;

    fn from_str(text: &str) -> Result<Self, NotAConstraint> {
        let text = text.trim();
        let after = |prefix: &str| {
            let label = text.get(prefix.len()..).filter(|label| !label.is_empty())?;
            text.get(..prefix.len())?.eq_ignore_ascii_case(prefix).then(|| label.to_owned())
        };
        let lower = text.to_ascii_lowercase();
        Ok(match lower.as_str() {
            "node.id" => Self::NodeId,
            "node.hostname" => Self::Hostname,
            "node.role" => Self::Role,
            "node.platform.os" => Self::PlatformOs,
            "node.platform.arch" => Self::PlatformArch,
            _ => match (after(LABELS), after(ENGINE_LABELS)) {
                (Some(label), _) => Self::Label(label),
                (None, Some(label)) => Self::EngineLabel(label),
                (None, None) => return Err(NotAConstraint::UnknownKey(lower)),
            },
        })
    }
}

/// The operators as they are written. Of those that occur the first counts; of two in one place the longer.
const OPERATORS: [(&str, ConstraintOp, bool); 4] = [
    ("==", ConstraintOp::Equal, false),
    ("!=", ConstraintOp::NotEqual, false),
    (" not in (", ConstraintOp::NotEqual, true),
    (" in (", ConstraintOp::Equal, true),
];

impl FromStr for Constraint {
    type Err = NotAConstraint;

    fn from_str(text: &str) -> Result<Self, NotAConstraint> {
        let lower = text.to_ascii_lowercase();
        let (at, sign, op, list) = OPERATORS
            .into_iter()
            .filter_map(|(sign, op, list)| lower.find(sign).map(|at| (at, sign, op, list)))
            .min_by_key(|(at, _, _, _)| *at)
            .ok_or_else(|| NotAConstraint::NoOperator(text.into()))?;
        let (key, rest) = (&text[..at], text[at + sign.len()..].trim());
        let bad = |why| Err(NotAConstraint::BadValue(text.into(), why));
        let key: ConstraintKey = key.parse()?;
        let values: Vec<String> = match (list, rest.strip_suffix(')')) {
            (false, _) => vec![rest.into()],
            (true, Some(inner)) => inner.split(',').map(|value| value.trim().to_owned()).collect(),
            (true, None) => return bad("the list has no closing `)`"),
        };
        if values.iter().any(String::is_empty) {
            return bad("it is empty");
        }
        let role = |value: &String| matches!(value.to_ascii_lowercase().as_str(), "worker" | "manager");
        if key == ConstraintKey::Role && !values.iter().all(role) {
            return bad("a role is `worker` or `manager`");
        }
        Ok(Self { key, op, values })
    }
}

const LABELS: &str = "node.labels.";
const ENGINE_LABELS: &str = "engine.labels.";

impl fmt::Display for Constraint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.key)?;
        match (self.op, self.values.as_slice()) {
            (ConstraintOp::Equal, [value]) => write!(f, "=={value}"),
            (ConstraintOp::NotEqual, [value]) => write!(f, "!={value}"),
            (ConstraintOp::Equal, values) => write!(f, " in ({})", values.join(", ")),
            (ConstraintOp::NotEqual, values) => write!(f, " not in ({})", values.join(", ")),
        }
    }
}

impl fmt::Display for ConstraintKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NodeId => f.write_str("node.id"),
            Self::Hostname => f.write_str("node.hostname"),
            Self::Role => f.write_str("node.role"),
            Self::Label(key) => write!(f, "{LABELS}{key}"),
            Self::EngineLabel(key) => write!(f, "{ENGINE_LABELS}{key}"),
            Self::PlatformOs => f.write_str("node.platform.os"),
            Self::PlatformArch => f.write_str("node.platform.arch"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn constraints_parse_and_print() {
        for (text, printed) in [
            ("node.id==0000000000abc", "node.id==0000000000abc"),
            ("node.hostname != n1", "node.hostname!=n1"),
            ("node.role==manager", "node.role==manager"),
            ("Node.Labels.Disk==SSD", "node.labels.Disk==SSD"),
            ("node.labels.a==b!=c", "node.labels.a==b!=c"),
            ("node.platform.arch==amd64", "node.platform.arch==amd64"),
            ("engine.labels.rack==r1", "engine.labels.rack==r1"),
            ("node.labels.zone in (a,b , c)", "node.labels.zone in (a, b, c)"),
            ("node.labels.zone NOT IN (a, b)", "node.labels.zone not in (a, b)"),
            ("node.labels.zone in (a)", "node.labels.zone==a"),
            ("node.labels.a==b in (c)", "node.labels.a==b in (c)"),
        ] {
            assert_eq!(text.parse::<Constraint>().expect(text).to_string(), printed);
        }
    }

    #[test]
    fn what_is_no_constraint_is_explained() {
        let case = |text: &str| text.parse::<Constraint>().expect_err(text).to_string();
        expect_test::expect![
            "constraint `node.role=worker` has no operator; write KEY==VALUE, KEY!=VALUE or KEY in (VALUE, …)"
        ]
        .assert_eq(&case("node.role=worker"));
        assert!(case("disk==ssd").contains("`disk` is not known"));
        assert!(case("node.labels.==ssd").contains("is not known"));
        assert!(case("node.labels.disk==").contains("it is empty"));
        assert!(case("node.labels.zone in (a, )").contains("it is empty"));
        assert!(case("node.labels.zone in (a").contains("closing"));
        assert!(case("node.role==boss").contains("`worker` or `manager`"));
    }
}
