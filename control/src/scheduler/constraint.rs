//! What a constraint, a preference or a rule looks at on a node.

use crate::model::{Constraint, ConstraintKey, ConstraintOp, Effect, Node, Placement, Taint, one_arch};
use std::borrow::Cow;

/// Whether `node` meets `constraint`. Values compare without regard to case.
pub fn holds(constraint: &Constraint, node: &Node) -> bool {
    let value = value(&constraint.key, node);
    let equal = constraint.values.iter().any(|wanted| match constraint.key {
        ConstraintKey::PlatformArch => value == one_arch(wanted),
        _ => value.eq_ignore_ascii_case(wanted),
    });
    match constraint.op {
        ConstraintOp::Equal => equal,
        ConstraintOp::NotEqual => !equal,
    }
}

/// What a node has there; empty where it has nothing.
pub fn value<'a>(key: &ConstraintKey, node: &'a Node) -> Cow<'a, str> {
    let label = |labels: &'a crate::model::Labels, key| labels.get(key).map_or("", String::as_str);
    match key {
        ConstraintKey::NodeId => node.id.to_string().into(),
        ConstraintKey::Hostname => node.hostname.as_str().into(),
        ConstraintKey::Role => node.role.to_string().into(),
        ConstraintKey::Label(key) => label(&node.labels, key).into(),
        ConstraintKey::EngineLabel(key) => label(&node.description.labels, key).into(),
        ConstraintKey::PlatformOs => node.description.os.as_str().into(),
        ConstraintKey::PlatformArch => one_arch(&node.description.arch).into(),
    }
}

/// Whether the images of a task that is placed so have been built for a node.
pub fn is_built_for(placement: &Placement, node: &Node) -> bool {
    let (os, arch) = (&node.description.os, &node.description.arch);
    placement.platforms.is_empty() || placement.platforms.iter().any(|platform| platform.runs_on(os, arch))
}

/// Whether a task that is placed so may stay on a node, as far as the node's labels and taints go.
pub fn may_stay(placement: &Placement, node: &Node) -> bool {
    let expelled = untolerated(placement, node).any(|taint| taint.effect == Effect::NoExecute);
    !expelled && placement.constraints.iter().all(|constraint| holds(constraint, node))
}

/// The taints of a node that stand in the way of a task that is placed so.
pub fn untolerated<'a>(placement: &'a Placement, node: &'a Node) -> impl Iterator<Item = &'a Taint> {
    let tolerated = |taint: &&Taint| placement.tolerations.iter().any(|toleration| toleration.covers(taint));
    node.taints.iter().filter(move |taint| !tolerated(taint))
}
