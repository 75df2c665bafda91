//! Which clients of a published UDP port have a flow, and who has to go for a new one. Anybody can forge the address he
//! sends from, so only flows that have gone both ways are safe, and nobody takes from those who have less than he has.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet, HashMap},
    net::{IpAddr, SocketAddr},
};

/// How many there may be.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Of all clients.
    pub flows: usize,
    /// Of one address.
    pub per_source: usize,
}

/// The flows of a port, each with a `T`, and the addresses they come from, each with an `S`.
#[derive(Debug)]
pub struct Flows<T, S> {
    limits: Limits,
    flows: HashMap<SocketAddr, Flow<T>>,
    sources: HashMap<IpAddr, Source<S>>,
    /// Those with flows that may be given up; whoever has the most of them, and among equals the oldest, is last.
    ranks: BTreeSet<(usize, Reverse<u64>, IpAddr)>,
    /// Counts all flows there have ever been.
    count: u64,
}

#[derive(Debug)]
struct Flow<T> {
    number: u64,
    value: T,
}

#[derive(Debug, Default)]
struct Source<S> {
    flows: usize,
    /// Flows that may be given up, by number.
    loose: BTreeMap<u64, SocketAddr>,
    value: S,
}

impl<S> Source<S> {
    fn rank(&self, source: IpAddr) -> Option<(usize, Reverse<u64>, IpAddr)> {
        let (first, _) = self.loose.first_key_value()?;
        Some((self.loose.len(), Reverse(*first), source))
    }
}

impl<T, S: Default> Flows<T, S> {
    /// None yet.
    pub fn new(limits: Limits) -> Self {
        Self { limits, flows: HashMap::new(), sources: HashMap::new(), ranks: BTreeSet::new(), count: 0 }
    }

    /// The flow of a client.
    pub fn get(&self, client: SocketAddr) -> Option<&T> {
        self.flows.get(&client).map(|flow| &flow.value)
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.flows.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.flows.is_empty()
    }

    /// Begins a flow in place of the one the client may have. If there are too many, one that has not gone both ways is
    /// dropped for it: of the client's own address, or of one that has more of them. `false` if there is none such.
    pub fn begin(&mut self, client: SocketAddr, make: impl FnOnce(u64, &S) -> T) -> bool {
        self.remove(client);
        if !self.make_room(client.ip()) {
            return false;
        }
        self.count += 1;
        let number = self.count;
        let mut value = None;
        self.change(client.ip(), |source| {
            source.flows += 1;
            source.loose.insert(number, client);
            value = Some(make(number, &source.value));
        });
        self.flows.extend(value.map(|value| (client, Flow { number, value })));
        true
    }

    /// A client has sent something after it was answered: its flow is not given up for another.
    pub fn hold(&mut self, client: SocketAddr) {
        let Some(number) = self.flows.get(&client).map(|flow| flow.number) else { return };
        let is_loose =
            self.sources.get(&client.ip()).is_some_and(|source| source.loose.contains_key(&number));
        if is_loose {
            self.change(client.ip(), |source| {
                source.loose.remove(&number);
            });
        }
    }

    /// The flow of that number has ended, if it is still there.
    pub fn end(&mut self, client: SocketAddr, number: u64) {
        if self.flows.get(&client).is_some_and(|flow| flow.number == number) {
            self.remove(client);
        }
    }

    fn make_room(&mut self, source: IpAddr) -> bool {
        let own = self.sources.get(&source);
        let (has, loose) = own.map_or((0, 0), |own| (own.flows, own.loose.len()));
        let whose = if has >= self.limits.per_source {
            source
        } else if self.flows.len() < self.limits.flows {
            return true;
        } else {
            match self.ranks.last() {
                Some((most, _, whose)) if *most > loose => *whose,
                Some(_) => source,
                None => return false,
            }
        };
        let oldest = self.sources.get(&whose).and_then(|source| source.loose.first_key_value());
        let Some(client) = oldest.map(|(_, client)| *client) else { return false };
        self.remove(client);
        true
    }

    fn remove(&mut self, client: SocketAddr) {
        let Some(flow) = self.flows.remove(&client) else { return };
        self.change(client.ip(), |source| {
            source.flows -= 1;
            source.loose.remove(&flow.number);
        });
    }

    /// Changes a source, and its rank with it; one without flows is forgotten.
    fn change(&mut self, address: IpAddr, change: impl FnOnce(&mut Source<S>)) {
        let source = self.sources.entry(address).or_default();
        let before = source.rank(address);
        change(source);
        let after = source.rank(address);
        if source.flows == 0 {
            self.sources.remove(&address);
        }
        if before != after {
            before.map(|rank| self.ranks.remove(&rank));
            self.ranks.extend(after);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    type Table = Flows<u64, ()>;

    fn table() -> Table {
        Flows::new(Limits { flows: 8, per_source: 4 })
    }

    fn client(source: u8, port: u16) -> SocketAddr {
        SocketAddr::from(([203, 0, 113, source], port))
    }

    fn begin(flows: &mut Table, source: u8, port: u16) -> bool {
        flows.begin(client(source, port), |number, ()| number)
    }

    #[test]
    fn a_flood_from_one_address_takes_nothing_from_others() {
        let mut flows = table();
        for source in 1..=6 {
            assert!(begin(&mut flows, source, 1));
        }
        for port in 1..1000 {
            assert!(begin(&mut flows, 9, port), "it takes its own place");
        }
        assert!((1..=6).all(|source| flows.get(client(source, 1)).is_some()));
        assert_eq!(flows.len(), 8);
        assert!(flows.get(client(9, 999)).is_some() && flows.get(client(9, 997)).is_none());
    }

    #[test]
    fn a_new_client_takes_from_who_has_the_most() {
        let mut flows = table();
        for source in [1, 2] {
            (1..=4).for_each(|port| assert!(begin(&mut flows, source, port)));
        }
        assert!(begin(&mut flows, 3, 1) && begin(&mut flows, 4, 1));
        assert!(flows.get(client(1, 1)).is_none(), "the oldest of them");
        assert!(flows.get(client(2, 1)).is_none());
        assert_eq!(flows.len(), 8);
    }

    #[test]
    fn forged_addresses_do_not_take_flows_that_go_both_ways_and_leave_room_for_new_ones() {
        let mut flows = table();
        for source in 1..=3 {
            assert!(begin(&mut flows, source, 1));
            flows.hold(client(source, 1));
        }
        for source in 10..=250 {
            assert!(begin(&mut flows, source, 1));
        }
        assert!((1..=3).all(|source| flows.get(client(source, 1)).is_some()));
        assert!(begin(&mut flows, 4, 1), "somebody new is served");
        assert_eq!(flows.len(), 8);
    }

    #[test]
    fn where_all_go_both_ways_there_is_no_room() {
        let mut flows = table();
        for source in 1..=8 {
            assert!(begin(&mut flows, source, 1));
            flows.hold(client(source, 1));
        }
        assert!(!begin(&mut flows, 9, 1));
        for source in 1..=4 {
            flows.end(client(source, 1), u64::from(source));
        }
        for port in 1..=4 {
            assert!(begin(&mut flows, 9, port));
            flows.hold(client(9, port));
        }
        flows.end(client(8, 1), 8);
        assert!(!begin(&mut flows, 9, 5), "one address has no more than its share");
        assert!(begin(&mut flows, 10, 1));
    }

    #[test]
    fn the_end_of_an_earlier_flow_does_not_end_a_later_one() {
        let mut flows = table();
        assert!(begin(&mut flows, 1, 1) && begin(&mut flows, 1, 1));
        flows.end(client(1, 1), 1);
        assert_eq!(flows.get(client(1, 1)), Some(&2));
        flows.end(client(1, 1), 2);
        assert!(flows.is_empty() && flows.sources.is_empty() && flows.ranks.is_empty());
    }

    proptest! {
        #[test]
        fn the_limits_hold_and_the_counts_agree(steps in proptest::collection::vec((0u8..3, 0u8..6, 0u16..6), 0..200)) {
            let mut flows = table();
            for (step, source, port) in steps {
                let at = client(source, port);
                match step {
                    0 => drop(begin(&mut flows, source, port)),
                    1 => flows.hold(at),
                    _ => if let Some(number) = flows.get(at).copied() { flows.end(at, number) },
                }
                prop_assert!(flows.len() <= 8);
                prop_assert_eq!(flows.sources.values().map(|source| source.flows).sum::<usize>(), flows.len());
                prop_assert!(flows.sources.values().all(|source| (1..=4).contains(&source.flows)));
                let ranks: BTreeSet<_> =
                    flows.sources.iter().filter_map(|(address, source)| source.rank(*address)).collect();
                prop_assert_eq!(&ranks, &flows.ranks);
            }
        }
    }
}
