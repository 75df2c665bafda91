//! Tasks that have just left a service. What such a task has said last may still be on its way, behind the word that it
//! has ended: for a moment its connections are kept, so that the answer finds back. It gets no new ones.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::Ipv4Addr,
    time::{Duration, Instant},
};

use crate::table::{NetworkId, NodeId};

/// How long.
pub const LINGERS: Duration = Duration::from_millis(500);

/// A virtual address in its network.
type Address = (NetworkId, Ipv4Addr);
/// The tasks that have connections by a virtual address, and their nodes as far as these are known.
pub type Tasks = BTreeMap<Ipv4Addr, Option<NodeId>>;

/// The tasks of each virtual address, and those that have just left it.
#[derive(Debug, Default)]
pub struct Lately {
    tasks: BTreeMap<Address, Tasks>,
    left: BTreeMap<(Address, Ipv4Addr), (Option<NodeId>, Instant)>,
}

impl Lately {
    /// Takes in who has connections now. Those on `suspects` do not linger: nothing comes from there.
    pub fn see(&mut self, tasks: BTreeMap<Address, Tasks>, suspects: &BTreeSet<NodeId>, now: Instant) {
        for (address, before) in &self.tasks {
            let after = tasks.get(address);
            let left = before.iter().filter(|(task, _)| !after.is_some_and(|after| after.contains_key(task)));
            for (task, node) in left {
                self.left.entry((*address, *task)).or_insert_with(|| (node.clone(), now + LINGERS));
            }
        }
        self.left.retain(|(address, task), (node, until)| {
            let there = tasks.get(address);
            let back = there.is_none_or(|tasks| tasks.contains_key(task));
            let silent = node.as_ref().is_some_and(|node| suspects.contains(node));
            *until > now && !back && !silent
        });
        self.tasks = tasks;
    }

    /// Who has just left this virtual address.
    pub fn left(&self, network: NetworkId, vip: Ipv4Addr) -> impl Iterator<Item = Ipv4Addr> {
        let of = move |((address, task), _): (&(Address, Ipv4Addr), _)| {
            (*address == (network, vip)).then_some(*task)
        };
        self.left.iter().filter_map(of)
    }

    /// When the next of them is to be forgotten.
    pub fn next(&self) -> Option<Instant> {
        self.left.values().map(|(_, until)| *until).min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const VIP: Ipv4Addr = Ipv4Addr::new(10, 50, 0, 100);

    fn net() -> NetworkId {
        NetworkId::new(7).unwrap()
    }

    /// Tasks by the last number of their addresses, each on the node of that number.
    fn tasks(numbers: &[u8]) -> BTreeMap<Address, Tasks> {
        let task = |number: &u8| (task(*number), Some(NodeId::new(number.to_string())));
        BTreeMap::from([((net(), VIP), numbers.iter().map(task).collect())])
    }

    fn task(number: u8) -> Ipv4Addr {
        Ipv4Addr::new(10, 50, 0, number)
    }

    fn left(lately: &Lately) -> Vec<Ipv4Addr> {
        lately.left(net(), VIP).collect()
    }

    #[test]
    fn who_leaves_lingers_for_a_moment() {
        let (mut lately, now) = (Lately::default(), Instant::now());
        lately.see(tasks(&[2, 3]), &BTreeSet::new(), now);
        assert!(left(&lately).is_empty());
        lately.see(tasks(&[3]), &BTreeSet::new(), now);
        assert_eq!(left(&lately), [task(2)]);
        assert_eq!(lately.next(), Some(now + LINGERS));
        lately.see(tasks(&[3]), &BTreeSet::new(), now + LINGERS / 2);
        assert_eq!(left(&lately), [task(2)], "and no longer if it is looked at again");
        lately.see(tasks(&[3]), &BTreeSet::new(), now + LINGERS);
        assert!(left(&lately).is_empty());
        assert_eq!(lately.next(), None);
    }

    #[test]
    fn who_comes_back_is_there_and_nothing_is_kept_of_what_is_silent_or_gone() {
        let (mut lately, now) = (Lately::default(), Instant::now());
        let suspects = BTreeSet::from([NodeId::new("2")]);
        lately.see(tasks(&[2, 3]), &BTreeSet::new(), now);
        lately.see(tasks(&[]), &suspects, now);
        assert_eq!(left(&lately), [task(3)]);
        lately.see(tasks(&[3]), &suspects, now);
        assert!(left(&lately).is_empty());
        lately.see(BTreeMap::new(), &suspects, now);
        assert!(left(&lately).is_empty(), "the address itself is gone");
    }
}
