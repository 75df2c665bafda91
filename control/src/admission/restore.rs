//! A cluster that begins again from a backup, on a machine that was no part of it.

use super::node::{self, Join};
use super::{Refused, no_cluster};
use crate::ids::{NodeId, RaftId};
use crate::membership;
use crate::model::{Availability, Description, Role};
use crate::state::{Change, Proposal, State};
use crate::time::Timestamp;

/// By how much the log's index and the number of the next object leap. What was made after the backup is not in it,
/// and some of it may still be out there, with ids and versions that must not be given a second time.
pub const LEAP: u64 = 1 << 30;

/// By how much seats in the consensus group leap, for the same reason.
const SEATS_LEAP: u64 = 1000;

/// The machine that the cluster begins again on.
#[derive(Clone, Debug, PartialEq)]
pub struct Founder {
    /// Its host name.
    pub hostname: String,
    /// Where other nodes reach it, `ip:port`.
    pub addr: String,
    /// Whether it may be given work.
    pub availability: Availability,
    /// What it says of itself.
    pub description: Description,
}

/// The state that a restored cluster begins with.
#[derive(Clone, Debug, PartialEq)]
pub struct Restored {
    /// All of it. Its index is that of the log's last entry.
    pub state: State,
    /// The founder: a new node, since the machines of before may come back.
    pub node: NodeId,
    /// The founder's seat.
    pub seat: RaftId,
}

/// The state of a backup, as `founder` goes on with it alone. `incarnation` is later than the backup's. The nodes of
/// before stay members, without a seat, until they rejoin or are removed.
///
/// # Errors
/// If the backup is not that of a cluster, or the founder's address cannot be.
pub fn restore(
    backup: &State,
    founder: &Founder,
    incarnation: u64,
    now: Timestamp,
) -> Result<Restored, Refused> {
    let cluster = backup.cluster().ok_or_else(no_cluster)?;
    let mut snapshot = backup.snapshot();
    snapshot.index += LEAP;
    snapshot.next_number += LEAP;
    snapshot.next_raft += SEATS_LEAP;
    let mut state = State::restore(snapshot);

    let number = state.next_number();
    let node = NodeId::mint(state.id_seed(), number);
    let join = Join {
        secret: cluster.tokens.manager.clone(),
        hostname: founder.hostname.clone(),
        addr: founder.addr.clone(),
        availability: founder.availability,
        description: founder.description.clone(),
    };
    let at = now.max(state.clock());
    let arrival = node::build(node, number, Role::Manager, &join, at)?;
    let arrival = Proposal { changes: vec![Change::CreateNode(Box::new(arrival))], at };
    apply(&mut state, &arrival)?;
    let anew = membership::start_anew(&state, incarnation, node, &founder.addr).ok_or_else(|| {
        Refused::FailedPrecondition(
            "a restored cluster must be of a later incarnation than its backup".into(),
        )
    })?;
    apply(&mut state, &Proposal { changes: vec![anew], at })?;
    let seat = state.node(node).and_then(|node| node.raft).ok_or_else(no_cluster)?;
    Ok(Restored { state, node, seat })
}

fn apply(state: &mut State, proposal: &Proposal) -> Result<(), Refused> {
    let applied = state.apply(state.index() + 1, proposal);
    applied.map(drop).map_err(|stale| Refused::Conflict(stale.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Bed, spec};
    use crate::time::Timestamp;

    fn founder() -> Founder {
        Founder {
            hostname: "fresh".into(),
            addr: "192.0.2.77:2377".into(),
            availability: Availability::Active,
            description: Description::default(),
        }
    }

    #[test]
    fn a_restored_cluster_has_all_it_had_and_one_manager_more_who_is_alone() {
        let mut bed = Bed::new();
        let worker = bed.node("w1", 1024);
        let service = bed.service(spec("web", 2));
        bed.tick();
        let before = bed.state.clone();
        let Restored { state, node, seat } =
            restore(&before, &founder(), 1 << 32, bed.now).expect("a cluster");

        assert_eq!(state.service(service), before.service(service));
        assert_eq!(state.tasks().collect::<Vec<_>>(), before.tasks().collect::<Vec<_>>());
        assert_eq!(state.node(worker), before.node(worker));
        assert_eq!(state.nodes().count(), before.nodes().count() + 1);
        let cluster = state.cluster().expect("a cluster");
        assert_eq!((cluster.incarnation, &cluster.tokens), (1 << 32, &before.cluster().unwrap().tokens));
        assert_eq!(state.managers(), 1, "those of before have no seat");
        assert_eq!(state.node(node).map(|node| (node.raft, node.addr.as_str())), {
            Some((Some(seat), "192.0.2.77:2377"))
        });
    }

    #[test]
    fn nothing_that_was_made_after_the_backup_is_met_again_under_its_id() {
        let mut bed = Bed::new();
        let backup = bed.state.clone();
        let later: Vec<NodeId> = (0..5).map(|n| bed.node(&format!("w{n}"), 64)).collect();
        let restored = restore(&backup, &founder(), 1 << 32, Timestamp(0)).expect("a cluster");
        assert!(!later.contains(&restored.node));
        assert!(restored.state.index() > bed.state.index() && restored.state.next_number() > LEAP);
        assert!(restored.state.clock() >= backup.clock(), "time does not go back");
    }

    #[test]
    fn what_is_no_cluster_or_of_no_later_life_is_refused() {
        let nothing = restore(&State::default(), &founder(), 1 << 32, Timestamp(0));
        assert!(matches!(nothing, Err(Refused::FailedPrecondition(_))), "{nothing:?}");
        let same = restore(&Bed::new().state, &founder(), 1, Timestamp(0));
        assert!(matches!(same, Err(Refused::FailedPrecondition(_))), "{same:?}");
        let nowhere = Founder { addr: "nowhere".into(), ..founder() };
        restore(&Bed::new().state, &nowhere, 1 << 32, Timestamp(0)).expect_err("no address");
    }
}
