//! Where the user wants tasks to be. Drawn beside the world's own chance, so that what else happens stays as it is.

use super::World;
use super::rng::Rng;
use rswarm_control::Timestamp;
use rswarm_control::admission::{NodeUpdate, Request};
use rswarm_control::model::{Affinity, AffinityRule, Filling, Preference, Taint, TaskSpec, Toleration};

impl World {
    /// Chance of its own for what the user does now.
    pub(super) fn aside(&self) -> Rng {
        Rng::new(self.seed.wrapping_mul(0x2545_f491_4f6c_dd1d) ^ u64::from(self.wishes))
    }

    /// Gives some tasks rules about where they may be and would rather be.
    pub(super) fn choose_places(&self, task: &mut TaskSpec) {
        let mut rng = self.aside();
        if rng.percent(55) {
            return;
        }
        let placement = &mut task.placement;
        if rng.percent(30) {
            let texts =
                ["spread=node.labels.disk", "spread=node.role", "prefer=node.labels.disk==ssd,weight=5"];
            placement.preferences.extend(rng.pick(&texts).and_then(|text| text.parse::<Preference>().ok()));
        }
        if rng.percent(25) {
            placement.max_per_node = rng.between(1, 3) as u32;
        }
        if rng.percent(30) {
            placement
                .tolerations
                .extend(rng.pick(&["gpu", "*"]).and_then(|text| text.parse::<Toleration>().ok()));
        }
        if rng.percent(25) {
            let names: Vec<String> = self.log.truth.services().map(|s| s.spec.name.clone()).collect();
            let rule = rng.pick(&[AffinityRule::Apart, AffinityRule::Apart, AffinityRule::Together]);
            let more = rng.pick(&["", ",weight=3", ",over=node.labels.disk,weight=2"]);
            if let (Some(name), Some(rule), Some(more)) = (one(&mut rng, names), rule, more) {
                placement.affinities.extend(Affinity::parse(rule, &format!("{name}{more}")));
            }
        }
        if rng.percent(20) {
            placement.filling = Some(Filling::BinPack);
        }
        if rng.percent(20) {
            let kind = rng.pick(&["gpu", "nic"]).unwrap_or("gpu");
            task.resources.generic.insert(kind.to_owned(), rng.between(1, 2));
        }
    }

    /// Has tasks moved to where they would be placed now, or nodes tainted. Whether the user was busy with that.
    pub(super) fn rearrange(&mut self) -> bool {
        let mut rng = self.aside();
        match rng.below(100) {
            0..=5 => {
                let names: Vec<String> = self.log.truth.services().map(|s| s.spec.name.clone()).collect();
                let name = one(&mut rng, names).filter(|_| rng.percent(50));
                self.request(Request::Rebalance { services: name.into_iter().collect() }, None);
            }
            6..=7 => {
                let Some(cluster) = self.log.truth.cluster().cloned() else { return false };
                let mut settings = cluster.settings.clone();
                let on = settings.rebalance_since.is_none();
                settings.rebalance_since = on.then_some(Timestamp(self.now));
                self.request(Request::UpdateSettings { version: None, settings }, None);
            }
            8..=12 => {
                let nodes: Vec<String> = self.log.truth.nodes().map(|node| node.id.to_string()).collect();
                let Some(node) = one(&mut rng, nodes) else { return false };
                let mut update = NodeUpdate { node, ..NodeUpdate::default() };
                let taints = ["gpu:no-schedule", "gpu:prefer-no-schedule", "gpu:no-execute"];
                if rng.percent(60) {
                    update.taints_add.extend(rng.pick(&taints).and_then(|text| text.parse::<Taint>().ok()));
                } else {
                    update.taints_rm.extend("gpu".parse::<Toleration>());
                }
                self.request(Request::UpdateNode(update), None);
            }
            _ => return false,
        }
        true
    }
}

fn one(rng: &mut Rng, mut names: Vec<String>) -> Option<String> {
    let position = rng.below(names.len() as u64) as usize;
    (position < names.len()).then(|| names.swap_remove(position))
}
