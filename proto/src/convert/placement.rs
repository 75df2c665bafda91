//! Which nodes may run a task.

use super::{Invalid, Problem, choices, each, parsed_each, texts};
use crate::v1 as pb;
use rswarm_control::model::{Affinity, AffinityRule, Filling, Placement, Platform};

choices! {
    AffinityRule = AffinityRule { Together, Apart }
    Filling = Filling { Spread, BinPack }
}

impl From<&Placement> for pb::Placement {
    fn from(placement: &Placement) -> Self {
        let Placement { constraints, platforms, max_per_node, tolerations, affinities, preferences, filling } =
            placement;
        Self {
            constraints: texts(constraints),
            preferences: texts(preferences),
            max_per_node: *max_per_node,
            affinities: affinities.iter().map(Into::into).collect(),
            tolerations: texts(tolerations),
            platforms: platforms.iter().map(Into::into).collect(),
            filling: filling.map_or(pb::Filling::Unspecified, Into::into).into(),
        }
    }
}

impl TryFrom<pb::Placement> for Placement {
    type Error = Invalid;

    fn try_from(wire: pb::Placement) -> Result<Self, Invalid> {
        Ok(Self {
            constraints: parsed_each("constraints", &wire.constraints)?,
            platforms: wire.platforms.into_iter().map(Into::into).collect(),
            max_per_node: wire.max_per_node,
            tolerations: parsed_each("tolerations", &wire.tolerations)?,
            affinities: each("affinities", wire.affinities)?,
            preferences: parsed_each("preferences", &wire.preferences)?,
            filling: filling("filling", wire.filling)?,
        })
    }
}

/// How nodes are filled, if that is said.
pub(crate) fn filling(field: &str, wire: i32) -> Result<Option<Filling>, Invalid> {
    if wire == i32::from(pb::Filling::Unspecified) {
        return Ok(None);
    }
    super::choice::<pb::Filling, _>(field, wire).map(Some)
}

impl From<&Affinity> for pb::Affinity {
    fn from(affinity: &Affinity) -> Self {
        Self { rule: pb::AffinityRule::from(affinity.rule).into(), text: affinity.to_string() }
    }
}

impl TryFrom<pb::Affinity> for Affinity {
    type Error = Invalid;

    fn try_from(wire: pb::Affinity) -> Result<Self, Invalid> {
        let rule = super::choice::<pb::AffinityRule, _>("rule", wire.rule)?;
        Self::parse(rule, &wire.text)
            .map_err(|error| Invalid::new("text", Problem::Malformed(error.to_string())))
    }
}

impl From<&Platform> for pb::Platform {
    fn from(platform: &Platform) -> Self {
        Self { os: platform.os.clone(), arch: platform.arch.clone() }
    }
}

impl From<pb::Platform> for Platform {
    fn from(wire: pb::Platform) -> Self {
        Self { os: wire.os, arch: wire.arch }
    }
}
