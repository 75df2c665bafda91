//! Whom we have not heard from.
//!
//! What is heard lives in the leader's memory and never enters the log; only a node's change of status
//! does.

use crate::ids::NodeId;
use crate::model::{Node, NodeStatus, Observed};
use crate::plan::{Draft, Whom, Why};
use crate::state::{Change, State};
use crate::time::Timestamp;
use std::collections::BTreeMap;
use std::time::Duration;

/// Nodes are expected to be heard from this often.
pub const HEARTBEAT: Duration = Duration::from_millis(250);
/// A node silent for this long gets no new connections.
pub const SUSPECT_AFTER: Duration = Duration::from_millis(1_000);
/// A node silent for this long is down. With the start of a task elsewhere it makes three seconds.
pub const DOWN_AFTER: Duration = Duration::from_millis(2_500);
/// How long replacement is held back when many nodes fall silent at once.
pub const BRAKE_HOLD: Duration = Duration::from_secs(30);
/// So many nodes, in per cent, must be exceeded for that.
pub const BRAKE_PERCENT: usize = 55;
/// Clusters smaller than this have no brake.
pub const BRAKE_NODES_MIN: usize = 5;

/// A node that has not been confirmed by a leader for this long stops its fenced tasks.
pub const LEASE: Duration = Duration::from_secs(6);
/// However long their grace period, they are killed after this.
pub const LEASE_GRACE: Duration = Duration::from_secs(4);
/// A node that is down and silent for this long has certainly stopped its fenced tasks, also if its clock runs
/// slower than the leader's by a twentieth.
pub const FENCED_AFTER: Duration = Duration::from_secs(12);

/// However irregular a node was, this much silence makes it suspect.
const SUSPECT_MAX: Duration = Duration::from_secs(5);
/// However irregular a node was, this much silence takes it down.
const DOWN_MAX: Duration = Duration::from_secs(15);

/// What the leader has heard since it took office.
#[derive(Clone, Debug, PartialEq)]
pub struct Heard {
    since: Timestamp,
    nodes: BTreeMap<NodeId, Beat>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
struct Beat {
    at: Timestamp,
    /// The longest recent pause between two beats; fades.
    gap: Duration,
}

impl Heard {
    /// Nothing, by a leader that took office at `since`. Nobody's silence before that counts.
    pub fn new(since: Timestamp) -> Self {
        Self { since, nodes: BTreeMap::new() }
    }

    /// A node was heard from.
    pub fn beat(&mut self, node: NodeId, at: Timestamp) {
        let beat = self.nodes.entry(node).or_insert(Beat { at, gap: HEARTBEAT });
        let pause = at.since(beat.at.max(self.since));
        // A pause this long was an outage and says nothing of how regular the node is.
        if pause < DOWN_AFTER {
            beat.gap = pause.max(beat.gap.mul_f32(0.9)).max(HEARTBEAT);
        }
        beat.at = beat.at.max(at);
    }

    /// The leader itself was not listening until `at` (it was paused, or the machine was): nobody's
    /// silence before that counts.
    pub fn resumed(&mut self, at: Timestamp) {
        self.since = self.since.max(at);
    }

    /// A node is a member no more.
    pub fn forget(&mut self, node: NodeId) {
        self.nodes.remove(&node);
    }

    /// When a node was last heard from by this leader.
    pub fn last(&self, node: NodeId) -> Option<Timestamp> {
        self.nodes.get(&node).map(|beat| beat.at)
    }

    /// From when on a node's silence counts. One that has just opened a session is there, although the
    /// first beat of that session may still be on its way; and what counted until it was suspect still
    /// does when it is.
    fn silent_since(&self, node: &Node, now: Timestamp) -> Timestamp {
        let (suspect_after, _) = self.patience(node.id);
        // Rounded up, or it would be ready again in the next turn.
        let suspect_after = u64::try_from(suspect_after.as_millis()).unwrap_or(u64::MAX).saturating_add(1);
        let ready_since = match node.status {
            NodeStatus::Ready if node.status_since <= now => node.status_since,
            NodeStatus::Suspect if node.status_since <= now => {
                Timestamp(node.status_since.0.saturating_sub(suspect_after))
            }
            _ => Timestamp::default(),
        };
        self.last(node.id).unwrap_or_default().max(self.since).max(ready_since)
    }

    /// Whether a node that is down is heard from again.
    fn is_back(&self, node: &Node, now: Timestamp) -> bool {
        self.last(node.id).is_some_and(|last| now.since(last) < self.patience(node.id).0)
    }

    /// How long a node may be silent before it is suspect, and before it is down. A node that is often
    /// late, because its machine is slow or loaded, is given more.
    pub fn patience(&self, node: NodeId) -> (Duration, Duration) {
        match self.nodes.get(&node) {
            Some(beat) => (
                (beat.gap * 5 / 2).clamp(SUSPECT_AFTER, SUSPECT_MAX),
                (beat.gap * 5).clamp(DOWN_AFTER, DOWN_MAX),
            ),
            // After a change of leader, sessions need a moment to find the new one.
            None => (SUSPECT_AFTER * 2, DOWN_AFTER),
        }
    }
}

/// Many nodes fell silent at once: more likely it is us who are cut off, or the network between, and
/// starting everything anew on the few that are left would make it worse.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Brake {
    /// Nodes that are silent.
    pub silent: usize,
    /// Nodes altogether.
    pub nodes: usize,
}

/// Whether replacement is held back now.
pub fn brake(state: &State, heard: &Heard, now: Timestamp) -> Option<Brake> {
    let (mut silent, mut nodes) = (0, 0);
    for node in state.nodes() {
        let recent = now.since(node.status_since) < BRAKE_HOLD;
        let is_silent = match node.status {
            NodeStatus::Ready | NodeStatus::Suspect => {
                now.since(heard.silent_since(node, now)) >= heard.patience(node.id).0
            }
            // One that is back in this very turn is no longer missing.
            NodeStatus::Down if recent => !heard.is_back(node, now),
            NodeStatus::Unknown | NodeStatus::Down | NodeStatus::Left => continue,
        };
        nodes += 1;
        silent += usize::from(is_silent);
    }
    let on = nodes >= BRAKE_NODES_MIN && silent * 100 > nodes * BRAKE_PERCENT;
    on.then_some(Brake { silent, nodes })
}

/// Whether replacement is held back, as far as it can be told from what is written down: by a manager that hears
/// nobody itself.
pub fn brake_by(state: &State, now: Timestamp) -> Option<Brake> {
    let recent = |node: &Node| now.since(node.status_since) < BRAKE_HOLD;
    let (mut silent, mut nodes) = (0, 0);
    for node in state.nodes() {
        let is_silent = match node.status {
            NodeStatus::Ready => false,
            NodeStatus::Suspect => true,
            NodeStatus::Down if recent(node) => true,
            NodeStatus::Unknown | NodeStatus::Down | NodeStatus::Left => continue,
        };
        nodes += 1;
        silent += usize::from(is_silent);
    }
    let held = state.nodes().any(|node| node.status == NodeStatus::Suspect);
    let on = held && nodes >= BRAKE_NODES_MIN && silent * 100 > nodes * BRAKE_PERCENT;
    on.then_some(Brake { silent, nodes })
}

pub(crate) fn watch(draft: &mut Draft, heard: &Heard) {
    let brake = brake(draft.state(), heard, draft.now);
    let nodes: Vec<_> = draft.state().nodes().cloned().collect();
    for node in nodes {
        let (status, due) = verdict(&node, heard, draft.now, brake.is_some());
        match due {
            Some(due) if node.status == NodeStatus::Suspect => {
                draft.hold(Whom::Node(node.id), due, Why::Silence);
            }
            Some(due) => draft.wake_at(due),
            None => {}
        }
        if status != node.status {
            let silence = draft.now.since(heard.silent_since(&node, draft.now)).as_secs_f32();
            let message = match status {
                NodeStatus::Suspect => match brake {
                    None => format!("not heard from for {silence:.1} s"),
                    Some(Brake { silent, nodes }) => format!(
                        "not heard from for {silence:.1} s; {silent} of {nodes} nodes are silent at once, so nothing is \
                         replaced for {} s",
                        BRAKE_HOLD.as_secs()
                    ),
                },
                NodeStatus::Down => format!("not heard from for {silence:.1} s; its tasks are replaced"),
                NodeStatus::Unknown | NodeStatus::Ready | NodeStatus::Left => String::new(),
            };
            draft.propose(Change::SetNodeStatus { node: node.id, was: node.status, status, message });
        }
        fence(draft, heard, node.id);
    }
}

/// Ends the fenced tasks of a node that is down for so long that they have certainly stopped. A new leader does not
/// know when the node was last heard, and waits its full time.
fn fence(draft: &mut Draft, heard: &Heard, id: NodeId) {
    if draft.state().node(id).is_none_or(|node| node.status != NodeStatus::Down) {
        return;
    }
    let fenced = draft.state().tasks_on(id).filter(|task| task.is_live() && task.spec.is_fenced());
    let fenced: Vec<_> = fenced.map(|task| task.id).collect();
    let due = heard.last(id).unwrap_or_default().max(heard.since).after(FENCED_AFTER);
    if !fenced.is_empty() && due > draft.now {
        return draft.wake_at(due);
    }
    for task in fenced {
        let message = "its node is lost, and has stopped it by itself".to_owned();
        draft.propose(Change::EndTask { task, observed: Observed::Orphaned, message });
    }
}

/// The status a node has now, and when it will have another if it stays silent.
fn verdict(node: &Node, heard: &Heard, now: Timestamp, brake: bool) -> (NodeStatus, Option<Timestamp>) {
    let since = heard.silent_since(node, now);
    let (suspect_after, mut down_after) = heard.patience(node.id);
    if brake {
        down_after = down_after.max(BRAKE_HOLD);
    }
    match node.status {
        NodeStatus::Unknown | NodeStatus::Left => (node.status, None),
        NodeStatus::Down => {
            (if heard.is_back(node, now) { NodeStatus::Ready } else { NodeStatus::Down }, None)
        }
        NodeStatus::Ready | NodeStatus::Suspect => match now.since(since) {
            silence if silence >= down_after => (NodeStatus::Down, None),
            silence if silence >= suspect_after => (NodeStatus::Suspect, Some(since.after(down_after))),
            _ if node.status == NodeStatus::Suspect && heard.last(node.id).is_none() => {
                (NodeStatus::Suspect, Some(since.after(down_after)))
            }
            _ => (NodeStatus::Ready, Some(since.after(suspect_after))),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Bed;

    fn beats(heard: &mut Heard, node: NodeId, from: u64, pauses: &[u64]) -> u64 {
        let mut at = from;
        heard.beat(node, Timestamp(at));
        for pause in pauses {
            at += pause;
            heard.beat(node, Timestamp(at));
        }
        at
    }

    #[test]
    fn a_regular_node_is_given_the_least_time() {
        let mut heard = Heard::new(Timestamp(0));
        beats(&mut heard, NodeId(1), 0, &[250; 20]);
        assert_eq!(heard.patience(NodeId(1)), (SUSPECT_AFTER, DOWN_AFTER));
    }

    #[test]
    fn an_irregular_node_is_given_more_and_loses_it_when_it_becomes_regular() {
        let mut heard = Heard::new(Timestamp(0));
        let at = beats(&mut heard, NodeId(1), 0, &[250, 800, 900, 250]);
        let (suspect, down) = heard.patience(NodeId(1));
        assert!(
            suspect > Duration::from_millis(1_500) && down > Duration::from_secs(3),
            "{suspect:?} {down:?}"
        );
        beats(&mut heard, NodeId(1), at, &[250; 20]);
        assert_eq!(heard.patience(NodeId(1)), (SUSPECT_AFTER, DOWN_AFTER));
    }

    #[test]
    fn an_outage_does_not_count_as_irregularity() {
        let mut heard = Heard::new(Timestamp(0));
        beats(&mut heard, NodeId(1), 0, &[250, 60_000, 250]);
        assert_eq!(heard.patience(NodeId(1)), (SUSPECT_AFTER, DOWN_AFTER));
    }

    #[test]
    fn a_leader_that_was_paused_blames_nobody() {
        let mut bed = Bed::new();
        let node = bed.node("n1", 64);
        bed.tick();
        bed.pass(Duration::from_secs(60));
        bed.heard.resumed(bed.now);
        assert_eq!(bed.tick().changes, []);
        assert_eq!(bed.state.node(node).expect("a member").status, NodeStatus::Ready);
    }

    #[test]
    fn a_new_leader_gives_sessions_time_to_find_it() {
        let mut bed = Bed::new();
        let node = bed.node("n1", 64);
        bed.heard = Heard::new(bed.now);
        let status = |bed: &mut Bed, time| {
            bed.pass(Duration::from_millis(time));
            bed.tick();
            bed.state.node(node).expect("a member").status
        };
        assert_eq!(status(&mut bed, 1_900), NodeStatus::Ready);
        assert_eq!(status(&mut bed, 200), NodeStatus::Suspect);
        assert_eq!(status(&mut bed, 500), NodeStatus::Down);
    }

    #[test]
    fn a_session_counts_as_being_heard() {
        let mut bed = Bed::new();
        let node = bed.node("n1", 64);
        bed.tick();
        bed.pass(Duration::from_secs(60));
        bed.tick();
        assert_eq!(bed.state.node(node).expect("a member").status, NodeStatus::Down);
        let (hostname, addr) = ("n1".into(), "192.0.2.9:2377".into());
        let session = crate::admission::Session { node, hostname, addr, description: Default::default() };
        bed.ask(&crate::admission::Request::OpenSession(session)).expect("a member");
        bed.tick();
        assert_eq!(bed.state.node(node).expect("a member").status, NodeStatus::Ready);
        bed.pass(DOWN_AFTER);
        bed.tick();
        assert_eq!(bed.state.node(node).expect("a member").status, NodeStatus::Down);
    }

    #[test]
    fn a_session_without_a_beat_makes_a_node_suspect_before_it_is_down() {
        let mut bed = Bed::new();
        let node = bed.node("n1", 64);
        bed.heard.beat(node, bed.now);
        bed.pass(Duration::from_secs(60));
        let opened = bed.now;
        bed.alter(node, |node| (node.status, node.status_since) = (NodeStatus::Ready, opened));
        let status = |bed: &mut Bed, time| {
            bed.pass(Duration::from_millis(time));
            bed.tick();
            bed.tick();
            bed.state.node(node).expect("a member").status
        };
        assert_eq!(status(&mut bed, 1_000), NodeStatus::Suspect);
        assert_eq!(status(&mut bed, 1_400), NodeStatus::Suspect);
        assert_eq!(status(&mut bed, 200), NodeStatus::Down);
    }

    #[test]
    fn the_next_look_is_when_something_is_due() {
        let mut bed = Bed::new();
        let node = bed.node("n1", 64);
        bed.heard.beat(node, bed.now);
        let plan = bed.tick();
        assert_eq!(plan.wake_at, Some(bed.now.after(SUSPECT_AFTER)));
    }

    #[test]
    fn nodes_that_are_long_gone_do_not_pull_the_brake() {
        let mut bed = Bed::new();
        let nodes: Vec<NodeId> = (0..9).map(|n| bed.node(&format!("n{n}"), 64)).collect();
        for gone in &nodes[..6] {
            bed.alter(*gone, |node| {
                (node.status, node.status_since) = (NodeStatus::Down, Timestamp(0));
            });
        }
        bed.pass(Duration::from_secs(60));
        for node in &nodes[6..] {
            bed.heard.beat(*node, bed.now);
        }
        assert_eq!(brake(&bed.state, &bed.heard, bed.now), None);
    }
}
