//! Which nodes may run a task, and which of them are better than others.

use super::{Constraint, ConstraintKey, NotAConstraint};
use std::fmt;
use std::str::FromStr;

/// Which nodes may run a task, and which of them are better than others.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Placement {
    /// All must hold.
    pub constraints: Vec<Constraint>,
    /// What the task's image was built for; empty is anything.
    pub platforms: Vec<Platform>,
    /// Most tasks of the service on one node; 0 is any number.
    pub max_per_node: u32,
    /// Taints that are no hindrance.
    pub tolerations: Vec<Toleration>,
    /// Services to be near to, or far from.
    pub affinities: Vec<Affinity>,
    /// Which of the nodes that are left is better. Levels to spread over count in this order.
    pub preferences: Vec<Preference>,
    /// How equally good nodes are filled; `None` is as the cluster does.
    pub filling: Option<Filling>,
}

/// An operating system and a processor architecture; an empty text is any.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Platform {
    /// `linux`
    pub os: String,
    /// `amd64`, `x86_64`, `arm64`, …
    pub arch: String,
}

impl Platform {
    /// Whether what was built for this runs on a machine that says this of itself.
    pub fn runs_on(&self, os: &str, arch: &str) -> bool {
        let any_arch = self.arch.is_empty() || one_arch(&self.arch) == one_arch(arch);
        any_arch && (self.os.is_empty() || self.os.eq_ignore_ascii_case(os))
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.os, self.arch)
    }
}

/// One name for each processor architecture, in small letters.
pub(crate) fn one_arch(name: &str) -> String {
    match name.to_ascii_lowercase().as_str() {
        "amd64" | "x86-64" => "x86_64".into(),
        "arm64" => "aarch64".into(),
        other => other.into(),
    }
}

/// How nodes that are equally good are filled.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Filling {
    /// The node with the fewest tasks of the service, then with the fewest altogether.
    #[default]
    Spread,
    /// The node of which the most is reserved, then with the most tasks.
    BinPack,
}

/// What makes one node better than another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Preference {
    /// Where the fewest of the service's tasks have the same value of this. Nodes without the label are a
    /// value of their own.
    Spread(ConstraintKey),
    /// Where this holds, by so much; where it does not, by nothing.
    Weighted {
        /// The condition.
        when: Constraint,
        /// −100 to 100, not 0; weights add up.
        weight: i32,
    },
}

/// Weights lie between this and its negative.
pub const WEIGHT_MAX: i32 = 100;

/// Why a text is not a preference, a taint, a toleration, or a rule about another service.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotPlacement {
    /// Neither kind of preference.
    #[error(
        "`{0}` is no placement preference; write spread=node.labels.KEY, or prefer=KEY==VALUE,weight=1 to 100"
    )]
    Preference(String),
    /// What stands in it is no condition.
    #[error(transparent)]
    Constraint(#[from] NotAConstraint),
    /// Not between −100 and 100, or 0.
    #[error("`{0}` is no weight; it is a number from 1 to 100, or from -1 to -100 to keep away")]
    Weight(String),
    /// Neither taint nor toleration.
    #[error("`{0}` is no taint; write KEY[=VALUE]:no-schedule, :prefer-no-schedule or :no-execute")]
    Taint(String),
    /// None of the effects.
    #[error("`{0}` is no effect of a taint; there are no-schedule, prefer-no-schedule and no-execute")]
    Effect(String),
    /// A part that means nothing.
    #[error("`{0}` means nothing here; write SERVICE[,over=node.labels.KEY][,weight=1 to 100]")]
    Affinity(String),
}

fn weight(text: &str) -> Result<i32, NotPlacement> {
    let number = text.trim().parse::<i32>().ok();
    number
        .filter(|weight| *weight != 0 && weight.abs() <= WEIGHT_MAX)
        .ok_or_else(|| NotPlacement::Weight(text.into()))
}

impl FromStr for Preference {
    type Err = NotPlacement;

    fn from_str(text: &str) -> Result<Self, NotPlacement> {
        match text.split_once('=') {
            Some((kind, key)) if kind.trim().eq_ignore_ascii_case("spread") => Ok(Self::Spread(key.parse()?)),
            Some((kind, rest)) if kind.trim().eq_ignore_ascii_case("prefer") => {
                let (when, weight) = match rest.rsplit_once(",weight=") {
                    Some((when, number)) => (when, weight(number)?),
                    None => (rest, 1),
                };
                Ok(Self::Weighted { when: when.parse()?, weight })
            }
            _ => Err(NotPlacement::Preference(text.into())),
        }
    }
}

impl fmt::Display for Preference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Spread(key) => write!(f, "spread={key}"),
            Self::Weighted { when, weight } => write!(f, "prefer={when},weight={weight}"),
        }
    }
}

/// A rule about where a task runs in relation to the tasks of a service, which may be its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Affinity {
    /// Its name. It need not exist yet.
    pub service: String,
    /// Near to it or far from it.
    pub rule: AffinityRule,
    /// How near is near: nodes that are equal in this. `None` is the same node.
    pub over: Option<ConstraintKey>,
    /// How much better that is; `None`: it must be so. 1 to 100.
    pub weight: Option<i32>,
}

/// Near to a service, or far from it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum AffinityRule {
    /// Where one of its tasks is. A service that is to be near itself begins anywhere.
    Together,
    /// Where none of its tasks is; and none of them comes here later.
    Apart,
}

impl Affinity {
    /// Reads `SERVICE[,over=KEY][,weight=N]`.
    ///
    /// # Errors
    /// Names the part that means nothing.
    pub fn parse(rule: AffinityRule, text: &str) -> Result<Self, NotPlacement> {
        let mut parts = text.split(',');
        let service = parts.next().unwrap_or_default().trim();
        if service.is_empty() || service.contains('=') {
            return Err(NotPlacement::Affinity(text.into()));
        }
        let mut affinity = Self { service: service.into(), rule, over: None, weight: None };
        for part in parts {
            match part.split_once('=') {
                Some(("over", "node" | "node.id")) => affinity.over = None,
                Some(("over", key)) => affinity.over = Some(key.parse()?),
                Some(("weight", number)) => {
                    let weight = weight(number)?;
                    if weight < 0 {
                        return Err(NotPlacement::Weight(number.into()));
                    }
                    affinity.weight = Some(weight);
                }
                _ => return Err(NotPlacement::Affinity(part.into())),
            }
        }
        Ok(affinity)
    }
}

impl fmt::Display for Affinity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.service)?;
        if let Some(over) = &self.over {
            write!(f, ",over={over}")?;
        }
        match self.weight {
            Some(weight) => write!(f, ",weight={weight}"),
            None => Ok(()),
        }
    }
}

/// Keeps tasks away from a node, unless they tolerate it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Taint {
    /// Not empty.
    pub key: String,
    /// May be empty.
    pub value: String,
    /// From what it keeps them.
    pub effect: Effect,
}

/// What a taint does to tasks that do not tolerate it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Effect {
    /// They are put elsewhere if there is an elsewhere.
    PreferNoSchedule,
    /// They are not put here.
    NoSchedule,
    /// They are not put here, and those that are here move away.
    NoExecute,
}

impl FromStr for Effect {
    type Err = NotPlacement;

    fn from_str(text: &str) -> Result<Self, NotPlacement> {
        match text.to_ascii_lowercase().replace('-', "").as_str() {
            "noschedule" => Ok(Self::NoSchedule),
            "prefernoschedule" => Ok(Self::PreferNoSchedule),
            "noexecute" => Ok(Self::NoExecute),
            _ => Err(NotPlacement::Effect(text.into())),
        }
    }
}

impl fmt::Display for Effect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::PreferNoSchedule => "prefer-no-schedule",
            Self::NoSchedule => "no-schedule",
            Self::NoExecute => "no-execute",
        })
    }
}

/// A key without spaces or signs that have a meaning here.
fn taint_key(key: &str, whole: &str) -> Result<String, NotPlacement> {
    let sound = !key.is_empty()
        && key.len() <= 255
        && key.chars().all(|c| c.is_ascii_alphanumeric() || "-_./".contains(c));
    if sound { Ok(key.into()) } else { Err(NotPlacement::Taint(whole.into())) }
}

impl FromStr for Taint {
    type Err = NotPlacement;

    fn from_str(text: &str) -> Result<Self, NotPlacement> {
        let (what, effect) = text.rsplit_once(':').ok_or_else(|| NotPlacement::Taint(text.into()))?;
        let (key, value) = what.split_once('=').unwrap_or((what, ""));
        Ok(Self { key: taint_key(key, text)?, value: value.into(), effect: effect.parse()? })
    }
}

impl fmt::Display for Taint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.key)?;
        if !self.value.is_empty() {
            write!(f, "={}", self.value)?;
        }
        write!(f, ":{}", self.effect)
    }
}

/// Which taints are no hindrance. What is `None` is any.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Toleration {
    /// The key.
    pub key: Option<String>,
    /// The value.
    pub value: Option<String>,
    /// The effect.
    pub effect: Option<Effect>,
}

impl Toleration {
    /// Whether it speaks of this taint.
    pub fn covers(&self, taint: &Taint) -> bool {
        self.key.as_ref().is_none_or(|key| *key == taint.key)
            && self.value.as_ref().is_none_or(|value| *value == taint.value)
            && self.effect.is_none_or(|effect| effect == taint.effect)
    }
}

impl FromStr for Toleration {
    type Err = NotPlacement;

    fn from_str(text: &str) -> Result<Self, NotPlacement> {
        let (what, effect) = match text.rsplit_once(':') {
            Some((what, effect)) => (what, Some(effect.parse()?)),
            None => (text, None),
        };
        let (key, value) = match what.split_once('=') {
            Some((key, value)) => (key, Some(value.to_owned())),
            None => (what, None),
        };
        let key = if key == "*" && value.is_none() { None } else { Some(taint_key(key, text)?) };
        Ok(Self { key, value, effect })
    }
}

impl fmt::Display for Toleration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.key.as_deref().unwrap_or("*"))?;
        if let Some(value) = &self.value {
            write!(f, "={value}")?;
        }
        match self.effect {
            Some(effect) => write!(f, ":{effect}"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_back() {
        for text in ["spread=node.labels.zone", "prefer=node.labels.disk==ssd,weight=50"] {
            assert_eq!(text.parse::<Preference>().expect(text).to_string(), text);
        }
        for text in ["gpu:no-schedule", "gpu=big:prefer-no-schedule", "a/b=c:d:no-execute"] {
            assert_eq!(text.parse::<Taint>().expect(text).to_string(), text);
        }
        for text in ["*", "gpu", "gpu=", "gpu=big", "gpu:no-execute", "*:no-schedule"] {
            assert_eq!(text.parse::<Toleration>().expect(text).to_string(), text);
        }
        for text in ["db", "db,over=node.labels.zone", "db,over=engine.labels.rack,weight=7"] {
            assert_eq!(Affinity::parse(AffinityRule::Apart, text).expect(text).to_string(), text);
        }
        assert_eq!("gpu:NoSchedule".parse::<Taint>().map(|taint| taint.effect), Ok(Effect::NoSchedule));
        let listed = "prefer=node.hostname in (n1, n2)".parse::<Preference>().expect("a preference");
        assert_eq!(listed.to_string(), "prefer=node.hostname in (n1, n2),weight=1");
    }

    #[test]
    fn what_cannot_be_is_explained() {
        let why = |error: Option<NotPlacement>| error.expect("it is refused").to_string();
        assert!(why("zone".parse::<Preference>().err()).contains("write spread="));
        assert!(why("spread=zone".parse::<Preference>().err()).contains("`zone` is not known"));
        assert!(why("prefer=node.id==a,weight=0".parse::<Preference>().err()).contains("1 to 100"));
        assert!(why("gpu".parse::<Taint>().err()).contains("KEY[=VALUE]:no-schedule"));
        assert!(why("gpu:never".parse::<Taint>().err()).contains("`never`"));
        assert!(why("=:no-execute".parse::<Toleration>().err()).contains("is no taint"));
        assert!(why(Affinity::parse(AffinityRule::Together, "db,near").err()).contains("`near`"));
        assert!(why(Affinity::parse(AffinityRule::Together, "db,weight=-3").err()).contains("`-3`"));
    }

    #[test]
    fn tolerations_cover_what_they_leave_open() {
        let taint: Taint = "gpu=big:no-schedule".parse().expect("a taint");
        for (text, covers) in
            [("*", true), ("gpu", true), ("gpu=small", false), ("gpu:no-execute", false), ("cpu", false)]
        {
            assert_eq!(text.parse::<Toleration>().expect(text).covers(&taint), covers, "{text}");
        }
    }

    #[test]
    fn platforms_know_each_other_by_any_name() {
        let built = Platform { os: "linux".into(), arch: "amd64".into() };
        assert!(built.runs_on("linux", "x86_64") && !built.runs_on("linux", "aarch64"));
        assert!(Platform::default().runs_on("plan9", "mips"));
    }
}
