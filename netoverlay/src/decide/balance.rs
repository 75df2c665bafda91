//! Which backends a new connection may use, given whom this node suspects. Suspicion alone never leaves a service
//! without backends: if all are suspect, all are used.

use std::{
    cmp::Reverse,
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr},
};

use crate::table::{Backend, NodeId, PublishedPort};

/// The backends to use out of `backends`, whose nodes `node_of` knows: those on nodes that are not suspect, or all of
/// them if that would leave none. The order is kept.
pub fn usable<B: Clone>(
    backends: &[B],
    suspects: &BTreeSet<NodeId>,
    node_of: impl Fn(&B) -> Option<NodeId>,
) -> Vec<B> {
    let trusted = kept(backends, suspects, node_of);
    if trusted.is_empty() { backends.to_vec() } else { trusted }
}

/// The draining ones that keep their connections: those on nodes that are not suspect. What is under way to another is
/// sent elsewhere when it is repeated; nobody would have answered it.
pub fn kept<B: Clone>(
    draining: &[B],
    suspects: &BTreeSet<NodeId>,
    node_of: impl Fn(&B) -> Option<NodeId>,
) -> Vec<B> {
    let answers = |task: &&B| node_of(task).is_none_or(|node| !suspects.contains(&node));
    draining.iter().filter(answers).cloned().collect()
}

/// The order in which a connection tries its backends: the `turn`-th first, then the others in a circle; suspects
/// come last, because one of them may still answer.
pub fn order<B: Clone>(
    backends: &[B],
    turn: usize,
    suspects: &BTreeSet<NodeId>,
    node_of: impl Fn(&B) -> Option<NodeId>,
) -> Vec<B> {
    let (trusted, suspect): (Vec<B>, Vec<B>) = backends
        .iter()
        .cloned()
        .partition(|backend| node_of(backend).is_none_or(|node| !suspects.contains(&node)));
    let mut order = rotated(trusted, turn);
    order.extend(rotated(suspect, turn));
    order
}

/// The order in which a client's connection to a published port tries the tasks. If clients stay with theirs, it
/// follows from the client's address and the tasks there are, so that all nodes agree and nothing is remembered; else
/// from whose turn it is.
pub fn call_order(
    port: &PublishedPort,
    client: IpAddr,
    turn: usize,
    suspects: &BTreeSet<NodeId>,
) -> Vec<Backend> {
    let node_of = |backend: &Backend| Some(backend.node.clone());
    if !port.client_affinity {
        return order(&port.backends, turn, suspects, node_of);
    }
    let place = match client.to_canonical() {
        IpAddr::V4(client) => u32::from(client),
        // All of it counts: clients behind one prefix are many.
        IpAddr::V6(client) => client.segments().iter().fold(0, |place: u32, segment| {
            place.rotate_left(5).wrapping_mul(0x9e37_79b1) ^ u32::from(*segment)
        }),
    };
    let mut backends = port.backends.clone();
    backends.sort_by_key(|backend| Reverse((weight(place, backend.address), backend.address)));
    order(&backends, 0, suspects, node_of)
}

/// Places among which clients that stay with a backend are spread.
const PLACES: u32 = 1024;

/// The backend of each place, for clients that stay with theirs. A client's place follows from its address alone, and
/// the backend of a place from the backends there are: so all nodes agree, nothing is remembered, and of a backend that
/// goes or comes only its own places move.
pub fn places(backends: &BTreeSet<Ipv4Addr>) -> Vec<Ipv4Addr> {
    let best = |place| backends.iter().copied().max_by_key(|backend| (weight(place, *backend), *backend));
    (0..PLACES).filter_map(best).collect()
}

/// As good as by chance, and always the same (the finalizer of SplitMix64).
fn weight(place: u32, backend: Ipv4Addr) -> u64 {
    let mut mixed = u64::from(place) << 32 | u64::from(u32::from(backend));
    for (shift, factor) in [(30, 0xbf58_476d_1ce4_e5b9), (27, 0x94d0_49bb_1331_11eb), (31, 1)] {
        mixed = (mixed ^ mixed >> shift).wrapping_mul(factor);
    }
    mixed
}

fn rotated<B>(mut list: Vec<B>, turn: usize) -> Vec<B> {
    if !list.is_empty() {
        let by = turn % list.len();
        list.rotate_left(by);
    }
    list
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::table::{NetworkId, Protocol};

    fn node(backend: &&str) -> Option<NodeId> {
        Some(NodeId::new(&backend[..1]))
    }

    fn suspects(list: &[&str]) -> BTreeSet<NodeId> {
        list.iter().map(NodeId::new).collect()
    }

    #[test]
    fn suspects_are_left_out() {
        assert_eq!(usable(&["a1", "b1", "b2"], &suspects(&["b"]), node), ["a1"]);
    }

    #[test]
    fn suspicion_never_empties_a_service() {
        assert_eq!(usable(&["a1", "b1"], &suspects(&["a", "b"]), node), ["a1", "b1"]);
    }

    #[test]
    fn of_a_backend_that_goes_only_its_own_places_move() {
        let address = |last| Ipv4Addr::new(10, 50, 0, last);
        let five: BTreeSet<_> = (2..7).map(address).collect();
        let before = places(&five);
        for backend in &five {
            let share = before.iter().filter(|place| *place == backend).count();
            assert!((150..260).contains(&share), "{backend} has {share} of 1024 places");
        }
        let four: BTreeSet<_> = five.iter().copied().filter(|backend| *backend != address(4)).collect();
        let moved = |(old, new): (&Ipv4Addr, &Ipv4Addr)| old != new;
        for (old, new) in before.iter().zip(&places(&four)).filter(|pair| moved(*pair)) {
            assert_eq!(*old, address(4), "{old} to {new}");
        }
        assert_eq!(places(&five), before, "and back, when it is");
        assert_eq!(places(&[address(9)].into()), [address(9); 1024]);
        assert!(places(&BTreeSet::new()).is_empty());
    }

    #[test]
    fn a_client_of_a_published_port_stays_with_its_task() {
        let backend = |last: u8| Backend {
            node: NodeId::new(format!("n{}", last % 3)),
            address: Ipv4Addr::new(10, 50, 0, last),
        };
        let port = |tasks: &[u8]| PublishedPort {
            port: 8080,
            protocol: Protocol::Tcp,
            service: "web".into(),
            network: NetworkId::new(1).unwrap(),
            target_port: 80,
            proxy_protocol: false,
            client_affinity: true,
            backends: tasks.iter().copied().map(backend).collect(),
        };
        let (five, four) = (port(&[2, 3, 4, 5, 6]), port(&[6, 5, 3, 2]));
        let clients: Vec<IpAddr> = (0..=255u8)
            .flat_map(|last| {
                [[192, 0, 2, last].into(), [0x2001, 0xdb8, 0, 0, 0, 0, 0, u16::from(last)].into()]
            })
            .collect();
        let first = |port: &PublishedPort, client: IpAddr, turn, suspects: &[&str]| {
            let suspects = suspects.iter().map(NodeId::new).collect();
            call_order(port, client, turn, &suspects)[0].clone()
        };
        let mut shares = BTreeMap::new();
        for client in clients {
            let stays = first(&five, client, 0, &[]);
            *shares.entry(stays.address).or_insert(0) += 1;
            assert!((1..5).all(|turn| first(&five, client, turn, &[]) == stays));
            if let IpAddr::V4(client) = client {
                assert_eq!(first(&five, client.to_ipv6_mapped().into(), 0, &[]), stays);
            }
            let without = first(&four, client, 0, &[]);
            assert!(without == stays || stays == backend(4), "only those of the task that goes move");
            assert_ne!(first(&five, client, 0, &[stays.node.as_str()]).node, stays.node);
        }
        assert!(shares.len() == 5 && shares.values().all(|share| (60..150).contains(share)), "{shares:?}");
    }

    #[test]
    fn what_drains_is_given_up_on_a_suspect_node_also_if_that_leaves_nothing() {
        assert_eq!(kept(&["a1", "b1"], &suspects(&["b"]), node), ["a1"]);
        assert!(kept(&["b1"], &suspects(&["b"]), node).is_empty());
    }

    #[test]
    fn turns_go_round_and_suspects_come_last() {
        let all = ["a1", "b1", "c1"];
        assert_eq!(order(&all, 0, &suspects(&[]), node), ["a1", "b1", "c1"]);
        assert_eq!(order(&all, 4, &suspects(&[]), node), ["b1", "c1", "a1"]);
        assert_eq!(order(&all, 1, &suspects(&["a"]), node), ["c1", "b1", "a1"]);
        assert!(order(&[], 3, &suspects(&[]), node).is_empty());
    }
}
