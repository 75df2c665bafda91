//! The options of `service create` and `service update` that say where tasks run.

use clap::ValueEnum;
use rswarm_control::model::{Affinity, AffinityRule, Filling, Need, Preference, TaskSpec, Toleration};

/// How equally good nodes are filled, as an option's value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum FillingArg {
    /// As the cluster does
    Default,
    /// The node with the fewest tasks first
    Spread,
    /// The node of which the most is reserved first
    Binpack,
}

impl FillingArg {
    /// Nothing for the cluster's own.
    pub fn filling(self) -> Option<Filling> {
        match self {
            Self::Default => None,
            Self::Spread => Some(Filling::Spread),
            Self::Binpack => Some(Filling::BinPack),
        }
    }
}

fn near(text: &str) -> Result<Affinity, String> {
    Affinity::parse(AffinityRule::Together, text).map_err(|error| error.to_string())
}

fn far(text: &str) -> Result<Affinity, String> {
    Affinity::parse(AffinityRule::Apart, text).map_err(|error| error.to_string())
}

/// How they are written when a service is made.
#[derive(Debug, Default, clap::Args)]
pub struct Rules {
    /// Spread evenly, as in spread=node.labels.zone, or choose better nodes, as in
    /// prefer=node.labels.disk==ssd,weight=10
    #[arg(long = "placement-pref", value_name = "spread=KEY|prefer=KEY==VALUE,weight=N")]
    preferences: Vec<Preference>,
    /// Run near the tasks of a service: on the same node, or on nodes that are equal in a label
    #[arg(long = "affinity", value_name = "SERVICE[,over=KEY][,weight=N]", value_parser = near)]
    near: Vec<Affinity>,
    /// Run where no task of a service is, and keep its tasks away
    #[arg(long = "anti-affinity", value_name = "SERVICE[,over=KEY][,weight=N]", value_parser = far)]
    far: Vec<Affinity>,
    /// Run on nodes with this taint, too; * tolerates all
    #[arg(long = "toleration", value_name = "KEY[=VALUE][:EFFECT]")]
    tolerations: Vec<Toleration>,
    /// Set aside things of a kind that the nodes are configured to have
    #[arg(long = "generic-resource", value_name = "KIND=NUMBER")]
    generic: Vec<Need>,
    #[command(flatten)]
    both: Both,
}

/// Options that mean the same when a service is made and when it is changed.
#[derive(Debug, Default, clap::Args)]
struct Both {
    /// Most tasks on one node; 0 is any number
    #[arg(long, value_name = "N")]
    replicas_max_per_node: Option<u32>,
    /// How equally good nodes are filled
    #[arg(long, value_enum)]
    placement: Option<FillingArg>,
}

impl Both {
    fn apply(self, task: &mut TaskSpec) {
        if let Some(max) = self.replicas_max_per_node {
            task.placement.max_per_node = max;
        }
        if let Some(filling) = self.placement {
            task.placement.filling = filling.filling();
        }
    }
}

impl Rules {
    /// Makes them a task's.
    pub fn apply(self, task: &mut TaskSpec) {
        let Self { preferences, near, far, tolerations, generic, both } = self;
        task.placement.preferences = preferences;
        task.placement.affinities = near.into_iter().chain(far).collect();
        task.placement.tolerations = tolerations;
        task.resources.generic = generic.into_iter().map(|need| (need.kind, need.count)).collect();
        both.apply(task);
    }
}

/// How they are changed.
#[derive(Debug, Default, clap::Args)]
pub struct Changes {
    /// Add a preference, after those there are
    #[arg(long, value_name = "spread=KEY|prefer=KEY==VALUE,weight=N")]
    placement_pref_add: Vec<Preference>,
    /// Remove a preference
    #[arg(long, value_name = "spread=KEY|prefer=KEY==VALUE,weight=N")]
    placement_pref_rm: Vec<Preference>,
    /// Run near the tasks of a service
    #[arg(long, value_name = "SERVICE[,over=KEY][,weight=N]", value_parser = near)]
    affinity_add: Vec<Affinity>,
    /// No longer run near the tasks of a service
    #[arg(long, value_name = "SERVICE")]
    affinity_rm: Vec<String>,
    /// Run where no task of a service is
    #[arg(long, value_name = "SERVICE[,over=KEY][,weight=N]", value_parser = far)]
    anti_affinity_add: Vec<Affinity>,
    /// No longer keep apart from a service
    #[arg(long, value_name = "SERVICE")]
    anti_affinity_rm: Vec<String>,
    /// Tolerate a taint
    #[arg(long, value_name = "KEY[=VALUE][:EFFECT]")]
    toleration_add: Vec<Toleration>,
    /// No longer tolerate a taint
    #[arg(long, value_name = "KEY[=VALUE][:EFFECT]")]
    toleration_rm: Vec<Toleration>,
    /// Set aside things of a kind, or another number of them
    #[arg(long, value_name = "KIND=NUMBER")]
    generic_resource_add: Vec<Need>,
    /// No longer set aside things of a kind
    #[arg(long, value_name = "KIND")]
    generic_resource_rm: Vec<String>,
    #[command(flatten)]
    both: Both,
}

impl Changes {
    /// Makes them to a task's rules.
    pub fn apply(self, task: &mut TaskSpec) {
        let placement = &mut task.placement;
        placement.preferences.retain(|preference| !self.placement_pref_rm.contains(preference));
        add(&mut placement.preferences, self.placement_pref_add);
        placement.tolerations.retain(|toleration| !self.toleration_rm.contains(toleration));
        add(&mut placement.tolerations, self.toleration_add);
        placement.affinities.retain(|rule| match rule.rule {
            AffinityRule::Together => !self.affinity_rm.contains(&rule.service),
            AffinityRule::Apart => !self.anti_affinity_rm.contains(&rule.service),
        });
        let added: Vec<Affinity> = self.affinity_add.into_iter().chain(self.anti_affinity_add).collect();
        placement.affinities.retain(|rule| {
            let same = |new: &&Affinity| {
                (new.rule, &new.service, &new.over) == (rule.rule, &rule.service, &rule.over)
            };
            !added.iter().any(|new| same(&new))
        });
        placement.affinities.extend(added);
        let generic = &mut task.resources.generic;
        generic.retain(|kind, _| !self.generic_resource_rm.contains(kind));
        generic.extend(self.generic_resource_add.into_iter().map(|need| (need.kind, need.count)));
        self.both.apply(task);
    }
}

fn add<T: PartialEq>(to: &mut Vec<T>, added: Vec<T>) {
    for one in added {
        if !to.contains(&one) {
            to.push(one);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Create {
        #[command(flatten)]
        rules: Rules,
    }

    #[derive(Parser)]
    struct Update {
        #[command(flatten)]
        changes: Changes,
    }

    fn shown(task: &TaskSpec) -> String {
        let placement = &task.placement;
        let mut words: Vec<String> = placement.preferences.iter().map(ToString::to_string).collect();
        words.extend(placement.affinities.iter().map(|rule| format!("{:?} {rule}", rule.rule)));
        words.extend(placement.tolerations.iter().map(ToString::to_string));
        words.extend(task.resources.generic.iter().map(|(kind, count)| format!("{kind}={count}")));
        words.push(format!("{} {:?}", placement.max_per_node, placement.filling));
        words.join("; ")
    }

    #[test]
    fn rules_are_made_and_changed() {
        let mut task = TaskSpec::default();
        let words = [
            "create",
            "--placement-pref",
            "spread=node.labels.zone",
            "--affinity",
            "db",
            "--anti-affinity",
            "web,over=node.labels.rack",
            "--toleration",
            "gpu",
            "--generic-resource",
            "gpu=2",
            "--replicas-max-per-node",
            "2",
            "--placement",
            "binpack",
        ];
        Create::try_parse_from(words).expect("it parses").rules.apply(&mut task);
        expect_test::expect!["spread=node.labels.zone; Together db; Apart web,over=node.labels.rack; gpu; gpu=2; 2 Some(BinPack)"]
            .assert_eq(&shown(&task));
        let words = [
            "update",
            "--placement-pref-rm",
            "spread=node.labels.zone",
            "--placement-pref-add",
            "prefer=node.role==worker,weight=3",
            "--affinity-rm",
            "db",
            "--anti-affinity-add",
            "web,over=node.labels.rack,weight=9",
            "--toleration-rm",
            "gpu",
            "--generic-resource-rm",
            "gpu",
            "--generic-resource-add",
            "nic=1",
            "--placement",
            "default",
        ];
        Update::try_parse_from(words).expect("it parses").changes.apply(&mut task);
        expect_test::expect![
            "prefer=node.role==worker,weight=3; Apart web,over=node.labels.rack,weight=9; nic=1; 2 None"
        ]
        .assert_eq(&shown(&task));
    }

    #[test]
    fn nonsense_is_refused() {
        for words in [
            ["create", "--affinity", "db,near"],
            ["create", "--placement-pref", "zone"],
            ["create", "--generic-resource", "gpu"],
            ["create", "--toleration", ":x"],
            ["create", "--placement", "tight"],
        ] {
            assert!(Create::try_parse_from(words).is_err(), "{words:?}");
        }
    }
}
