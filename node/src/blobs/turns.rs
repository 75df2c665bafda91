//! Whose turn it is to fetch a blob: at first one node's, and then, for each that has it, some more at a time, which are
//! told who has it. So a blob leaves its registry once, and no node that has it is overrun.

use crate::image::Digest;
use rswarm_control::ids::NodeId;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::oneshot;

/// For each node that has a blob, so many fetch it at a time.
const EACH: usize = 4;
/// Nodes that are remembered to have a blob, and of which one is told.
const HOLDERS_MAX: usize = 64;
const TOLD_MAX: usize = 3;
/// Blobs that are remembered, and nodes that wait for one.
const BLOBS_MAX: usize = 4096;
const WAITING_MAX: usize = 4096;

/// The turns of all blobs, as far as one manager knows.
#[derive(Default)]
pub struct Turns {
    blobs: Mutex<BTreeMap<Digest, Blob>>,
}

#[derive(Default)]
struct Blob {
    /// Who has it, the one that should be asked next first.
    holders: VecDeque<NodeId>,
    /// How many fetch it.
    busy: usize,
    waiting: VecDeque<Waiting>,
}

struct Waiting {
    node: NodeId,
    except: BTreeSet<NodeId>,
    go: oneshot::Sender<Turn>,
}

/// The turn of a node. It ends when this is dropped.
pub struct Turn {
    turns: Arc<Turns>,
    digest: Digest,
    node: NodeId,
    /// Who has the blob; nobody is known to if there are none.
    pub holders: Vec<NodeId>,
    /// The node has it now.
    pub fetched: bool,
}

/// Too much is going on to keep watch over more.
#[derive(Debug)]
pub struct Busy;

impl Turns {
    /// A turn, now or once it comes. Whoever no longer waits drops what is returned. `except` could not give the blob.
    pub fn ask(
        self: &Arc<Self>,
        node: NodeId,
        digest: &Digest,
        except: BTreeSet<NodeId>,
    ) -> Result<oneshot::Receiver<Turn>, Busy> {
        let (go, turn) = oneshot::channel();
        let mut blobs = self.lock();
        if blobs.len() >= BLOBS_MAX && !blobs.contains_key(digest) {
            let idle = |blob: &Blob| blob.busy == 0 && blob.waiting.is_empty();
            // Who has which is found out again.
            let idle = blobs.iter().find(|(_, blob)| idle(blob)).map(|(digest, _)| digest.clone());
            blobs.remove(&idle.ok_or(Busy)?);
        }
        let blob = blobs.entry(digest.clone()).or_default();
        blob.waiting.retain(|waiting| !waiting.go.is_closed());
        if blob.waiting.len() >= WAITING_MAX {
            return Err(Busy);
        }
        blob.waiting.push_back(Waiting { node, except, go });
        let undelivered = self.go_on(digest, blob);
        drop(blobs);
        drop(undelivered);
        Ok(turn)
    }

    /// Lets those go whose turn it is. Those that no longer wait are returned, to be dropped without the lock.
    fn go_on(self: &Arc<Self>, digest: &Digest, blob: &mut Blob) -> Vec<Turn> {
        let mut undelivered = Vec::new();
        let mut at = 0;
        while at < blob.waiting.len() {
            let waiting = &blob.waiting[at];
            let useful = |holder: &&NodeId| **holder != waiting.node && !waiting.except.contains(*holder);
            let holders: Vec<NodeId> = blob.holders.iter().filter(useful).take(TOLD_MAX).copied().collect();
            // Who has asked all that have it in vain does not wait for them.
            let in_vain = holders.is_empty() && !blob.holders.is_empty();
            if !in_vain && blob.busy >= (EACH * blob.holders.len()).max(1) {
                at += 1;
                continue;
            }
            let Some(Waiting { node, go, .. }) = blob.waiting.remove(at) else { break };
            if let Some(asked) = holders.first() {
                blob.holders.retain(|holder| holder != asked);
                blob.holders.push_back(*asked);
            }
            blob.busy += 1;
            let (turns, digest) = (self.clone(), digest.clone());
            if let Err(turn) = go.send(Turn { turns, digest, node, holders, fetched: false }) {
                undelivered.push(turn);
            }
        }
        undelivered
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<Digest, Blob>> {
        self.blobs.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let mut blobs = self.turns.lock();
        let Some(blob) = blobs.get_mut(&self.digest) else { return };
        blob.busy = blob.busy.saturating_sub(1);
        if self.fetched && !blob.holders.contains(&self.node) {
            blob.holders.push_front(self.node);
            blob.holders.truncate(HOLDERS_MAX);
        }
        let undelivered = self.turns.go_on(&self.digest, blob);
        drop(blobs);
        drop(undelivered);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(turns: &Arc<Turns>, node: u64, except: &[u64]) -> oneshot::Receiver<Turn> {
        let except = except.iter().map(|node| NodeId(*node)).collect();
        turns.ask(NodeId(node), &Digest::of(b"blob"), except).unwrap()
    }

    fn end(mut turn: Turn, fetched: bool) {
        turn.fetched = fetched;
    }

    fn come(turn: &mut oneshot::Receiver<Turn>) -> Turn {
        turn.try_recv().expect("it is its turn")
    }

    #[test]
    fn one_fetches_a_blob_and_the_others_are_told_who_has_it() {
        let turns = Arc::new(Turns::default());
        let mut all: Vec<_> = (1..=8).map(|node| ask(&turns, node, &[])).collect();
        let first = come(&mut all[0]);
        assert!(first.holders.is_empty());
        assert!(all[1..].iter_mut().all(|turn| turn.try_recv().is_err()));
        end(first, true);
        let next: Vec<Turn> = all[1..].iter_mut().filter_map(|turn| turn.try_recv().ok()).collect();
        assert_eq!(next.len(), EACH);
        assert!(next.iter().all(|turn| turn.holders == [NodeId(1)]));
        next.into_iter().for_each(|turn| end(turn, true));
        assert_eq!(all[1..].iter_mut().filter_map(|turn| turn.try_recv().ok()).count(), 3);
    }

    #[test]
    fn when_one_fails_or_goes_away_it_is_the_next_ones_turn() {
        let turns = Arc::new(Turns::default());
        let (mut one, gone, mut three) = (ask(&turns, 1, &[]), ask(&turns, 2, &[]), ask(&turns, 3, &[]));
        let first = come(&mut one);
        drop(gone);
        assert!(three.try_recv().is_err());
        end(first, false);
        assert!(come(&mut three).holders.is_empty());
        // And whoever stops waiting in the moment when its turn comes takes nobody's.
        let (four, mut five) = (ask(&turns, 4, &[]), ask(&turns, 5, &[]));
        drop(four);
        assert!(come(&mut five).holders.is_empty());
    }

    #[test]
    fn who_could_not_give_it_is_not_named_again_and_nobody_waits_for_it() {
        let turns = Arc::new(Turns::default());
        end(come(&mut ask(&turns, 1, &[])), true);
        let mut waiting: Vec<_> = (2..=5).map(|node| ask(&turns, node, &[])).collect();
        let held: Vec<Turn> = waiting.iter_mut().map(come).collect();
        assert!(come(&mut ask(&turns, 6, &[1])).holders.is_empty());
        drop(held);
    }

    #[test]
    fn what_is_remembered_has_bounds() {
        let turns = Arc::new(Turns::default());
        for number in 0..BLOBS_MAX as u64 + 10 {
            let digest = Digest::of(&number.to_le_bytes());
            end(come(&mut turns.ask(NodeId(1), &digest, BTreeSet::new()).unwrap()), true);
        }
        assert_eq!(turns.lock().len(), BLOBS_MAX);
        let held: Vec<_> = (0..=WAITING_MAX as u64).map(|node| ask(&turns, node, &[])).collect();
        assert!(turns.ask(NodeId(1), &Digest::of(b"blob"), BTreeSet::new()).is_err());
        drop(held);
    }
}
