//! Tasks that leave a service, or have just left it. What such a task has said last may still be on its way, behind the
//! word that it has ended: for a moment its connections are kept, so that the answer finds back. It gets no new ones,
//! and soon none whose first packet was lost and is sent again: by then it may no longer take any.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::Ipv4Addr,
    time::{Duration, Instant},
};

use crate::table::{NetworkId, NodeId};

pub use super::former::LINGERS;
/// How long a first packet may be under way to a task that leaves, and its answer back: less than such a task still
/// takes connections after all nodes have stopped sending it new ones, and less than until a packet is sent again.
pub const UNDER_WAY: Duration = Duration::from_millis(50);

/// A virtual address in its network.
type Address = (NetworkId, Ipv4Addr);
/// The tasks that have connections by a virtual address, and their nodes as far as these are known.
pub type Tasks = BTreeMap<Ipv4Addr, Option<NodeId>>;

/// The tasks of each virtual address, and those that have just left it.
#[derive(Debug, Default)]
pub struct Lately {
    tasks: BTreeMap<Address, Tasks>,
    /// Those that drain, and when what was under way to them then has arrived.
    draining: BTreeMap<(Address, Ipv4Addr), Instant>,
    left: BTreeMap<(Address, Ipv4Addr), (Option<NodeId>, Instant)>,
    seen: Option<Instant>,
}

impl Lately {
    /// Takes in who has connections now, and who of them gets no new ones. Those on `suspects` do not linger: nothing
    /// comes from there.
    pub fn see(
        &mut self,
        tasks: BTreeMap<Address, Tasks>,
        draining: impl IntoIterator<Item = (Address, Ipv4Addr)>,
        suspects: &BTreeSet<NodeId>,
        now: Instant,
    ) {
        let before = std::mem::take(&mut self.draining);
        let since = |task| (task, before.get(&task).copied().unwrap_or(now + UNDER_WAY));
        self.draining = draining.into_iter().map(since).collect();
        self.seen = Some(now);
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

    /// Who of this virtual address leaves or has left, and to whom nothing is under way any more: a connection that has
    /// not been answered yet is made to another task.
    pub fn closed(&self, network: NetworkId, vip: Ipv4Addr) -> impl Iterator<Item = Ipv4Addr> {
        let closed = move |((address, task), arrived): (&(Address, Ipv4Addr), &Instant)| {
            let is_due = self.seen.is_some_and(|seen| *arrived <= seen);
            (*address == (network, vip) && is_due).then_some(*task)
        };
        self.draining.iter().filter_map(closed).chain(self.left(network, vip))
    }

    /// When the next of them is to be looked at again.
    pub fn next(&self) -> Option<Instant> {
        let arrives = self.draining.values().filter(|arrived| self.seen.is_some_and(|seen| **arrived > seen));
        self.left.values().map(|(_, until)| until).chain(arrives).min().copied()
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
        lately.see(tasks(&[2, 3]), [], &BTreeSet::new(), now);
        assert!(left(&lately).is_empty());
        lately.see(tasks(&[3]), [], &BTreeSet::new(), now);
        assert_eq!(left(&lately), [task(2)]);
        assert_eq!(lately.next(), Some(now + LINGERS));
        lately.see(tasks(&[3]), [], &BTreeSet::new(), now + LINGERS / 2);
        assert_eq!(left(&lately), [task(2)], "and no longer if it is looked at again");
        lately.see(tasks(&[3]), [], &BTreeSet::new(), now + LINGERS);
        assert!(left(&lately).is_empty());
        assert_eq!(lately.next(), None);
    }

    #[test]
    fn who_comes_back_is_there_and_nothing_is_kept_of_what_is_silent_or_gone() {
        let (mut lately, now) = (Lately::default(), Instant::now());
        let suspects = BTreeSet::from([NodeId::new("2")]);
        lately.see(tasks(&[2, 3]), [], &BTreeSet::new(), now);
        lately.see(tasks(&[]), [], &suspects, now);
        assert_eq!(left(&lately), [task(3)]);
        lately.see(tasks(&[3]), [], &suspects, now);
        assert!(left(&lately).is_empty());
        lately.see(BTreeMap::new(), [], &suspects, now);
        assert!(left(&lately).is_empty(), "the address itself is gone");
    }

    #[test]
    fn connections_without_an_answer_are_made_to_others_when_what_was_under_way_has_arrived() {
        let (mut lately, now) = (Lately::default(), Instant::now());
        let closed = |lately: &Lately| lately.closed(net(), VIP).collect::<Vec<_>>();
        let leaving = || [((net(), VIP), task(2))];
        lately.see(tasks(&[2, 3]), leaving(), &BTreeSet::new(), now);
        assert!(closed(&lately).is_empty());
        assert_eq!(lately.next(), Some(now + UNDER_WAY));
        lately.see(tasks(&[2, 3]), leaving(), &BTreeSet::new(), now + UNDER_WAY);
        assert_eq!(closed(&lately), [task(2)]);
        assert_eq!(lately.next(), None);
        // When it has ended, at once.
        lately.see(tasks(&[3]), [], &BTreeSet::new(), now + UNDER_WAY);
        assert_eq!(closed(&lately), [task(2)]);
        lately.see(tasks(&[]), [], &BTreeSet::new(), now + UNDER_WAY);
        assert_eq!(closed(&lately), [task(2), task(3)]);
    }
}
