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
    /// What with.
    pub value: String,
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
    /// `node.platform.os`
    PlatformOs,
    /// `node.platform.arch`; `amd64` and `arm64` are understood
    PlatformArch,
}

/// How a constraint compares.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ConstraintOp {
    /// `==`
    Equal,
    /// `!=`
    NotEqual,
}

/// Why a text is not a constraint.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotAConstraint {
    /// Neither operator occurs.
    #[error("constraint `{0}` has no operator; write KEY==VALUE or KEY!=VALUE")]
    NoOperator(String),
    /// The key is none of ours.
    #[error(
        "constraint key `{0}` is not known; known are node.id, node.hostname, node.role, node.labels.KEY, \
         node.platform.os and node.platform.arch"
    )]
    UnknownKey(String),
    /// Nothing stands after the operator, or it cannot be.
    #[error("constraint `{0}` compares with a value that cannot be: {1}")]
    BadValue(String, &'static str),
}

impl FromStr for Constraint {
    type Err = NotAConstraint;

    fn from_str(text: &str) -> Result<Self, NotAConstraint> {
        let (key, op, value) = [("==", ConstraintOp::Equal), ("!=", ConstraintOp::NotEqual)]
            .into_iter()
            .filter_map(|(sign, op)| text.split_once(sign).map(|(key, value)| (key, op, value)))
            .min_by_key(|(key, _, _)| key.len())
            .ok_or_else(|| NotAConstraint::NoOperator(text.into()))?;
        let (key, value) = (key.trim(), value.trim());
        let bad = |why| Err(NotAConstraint::BadValue(text.into(), why));
        let key = match key.to_ascii_lowercase().as_str() {
            "node.id" => ConstraintKey::NodeId,
            "node.hostname" => ConstraintKey::Hostname,
            "node.role" if !matches!(value.to_ascii_lowercase().as_str(), "worker" | "manager") => {
                return bad("a role is `worker` or `manager`");
            }
            "node.role" => ConstraintKey::Role,
            "node.platform.os" => ConstraintKey::PlatformOs,
            "node.platform.arch" => ConstraintKey::PlatformArch,
            other => match key.get(..LABELS.len()) {
                Some(prefix) if prefix.eq_ignore_ascii_case(LABELS) && key.len() > LABELS.len() => {
                    ConstraintKey::Label(key[LABELS.len()..].into())
                }
                _ => return Err(NotAConstraint::UnknownKey(other.into())),
            },
        };
        if value.is_empty() {
            return bad("it is empty");
        }
        Ok(Self { key, op, value: value.into() })
    }
}

const LABELS: &str = "node.labels.";

impl fmt::Display for Constraint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let op = match self.op {
            ConstraintOp::Equal => "==",
            ConstraintOp::NotEqual => "!=",
        };
        write!(f, "{}{op}{}", self.key, self.value)
    }
}

impl fmt::Display for ConstraintKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NodeId => f.write_str("node.id"),
            Self::Hostname => f.write_str("node.hostname"),
            Self::Role => f.write_str("node.role"),
            Self::Label(key) => write!(f, "{LABELS}{key}"),
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
        ] {
            assert_eq!(text.parse::<Constraint>().expect(text).to_string(), printed);
        }
    }

    #[test]
    fn what_is_no_constraint_is_explained() {
        let case = |text: &str| text.parse::<Constraint>().expect_err(text).to_string();
        expect_test::expect!["constraint `node.role=worker` has no operator; write KEY==VALUE or KEY!=VALUE"]
            .assert_eq(&case("node.role=worker"));
        assert!(case("disk==ssd").contains("`disk` is not known"));
        assert!(case("node.labels.==ssd").contains("is not known"));
        assert!(case("node.labels.disk==").contains("it is empty"));
        assert!(case("node.role==boss").contains("`worker` or `manager`"));
    }
}
