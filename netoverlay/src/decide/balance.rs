//! Which backends a new connection may use, given whom this node suspects. Suspicion alone never leaves a service
//! without backends: if all are suspect, all are used.

use std::collections::BTreeSet;

use crate::table::NodeId;

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

fn rotated<B>(mut list: Vec<B>, turn: usize) -> Vec<B> {
    if !list.is_empty() {
        let by = turn % list.len();
        list.rotate_left(by);
    }
    list
}

#[cfg(test)]
mod tests {
    use super::*;

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
