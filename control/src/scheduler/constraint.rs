//! Whether a node meets a placement constraint.

use crate::model::{Constraint, ConstraintKey, ConstraintOp, Node};

/// Whether `node` meets `constraint`. Values compare without regard to case.
pub fn holds(constraint: &Constraint, node: &Node) -> bool {
    let wanted = constraint.value.as_str();
    let equal = match &constraint.key {
        ConstraintKey::NodeId => node.id.to_string().eq_ignore_ascii_case(wanted),
        ConstraintKey::Hostname => node.hostname.eq_ignore_ascii_case(wanted),
        ConstraintKey::Role => node.role.to_string().eq_ignore_ascii_case(wanted),
        ConstraintKey::Label(key) => {
            node.labels.get(key).map_or("", String::as_str).eq_ignore_ascii_case(wanted)
        }
        ConstraintKey::PlatformOs => node.description.os.eq_ignore_ascii_case(wanted),
        ConstraintKey::PlatformArch => arch(&node.description.arch) == arch(wanted),
    };
    match constraint.op {
        ConstraintOp::Equal => equal,
        ConstraintOp::NotEqual => !equal,
    }
}

/// One name for each processor architecture.
fn arch(name: &str) -> String {
    match name.to_ascii_lowercase().as_str() {
        "amd64" | "x86-64" => "x86_64".into(),
        "arm64" => "aarch64".into(),
        other => other.into(),
    }
}
