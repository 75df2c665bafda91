//! Whether what clients saw of some registers could have been: a checker for linearizability, after Wing and Gong,
//! with Lowe's memory of what was tried before, and a register at a time.

use std::collections::{BTreeMap, HashSet};
use std::fmt;

/// What a client asked of a register, and what it was told. Registers begin with 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Act {
    /// It saw this value.
    Read(u64),
    /// It set this value.
    Write(u64),
    /// It set `new` if the value was `expected`; whether it was, if that is known.
    Swap {
        /// The value it must have.
        expected: u64,
        /// The value it then gets.
        new: u64,
        /// Whether it did.
        done: Option<bool>,
    },
}

impl Act {
    /// The value afterwards, if the act fits to the value before.
    fn apply(self, value: u64) -> Option<u64> {
        match self {
            Self::Read(seen) => (seen == value).then_some(value),
            Self::Write(new) => Some(new),
            Self::Swap { expected, new, done } => {
                let fits = value == expected;
                let after = if fits { new } else { value };
                done.is_none_or(|done| done == fits).then_some(after)
            }
        }
    }
}

/// One act of one client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Operation {
    /// Of which register.
    pub register: u64,
    /// When it was asked for, by a clock all clients share.
    pub asked: u64,
    /// When it was answered. None: it never was, and may have been done at any time since, or never. Such reads
    /// are best left out.
    pub answered: Option<u64>,
    /// What.
    pub act: Act,
}

/// Why a history cannot be accepted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// No order of the acts explains it.
    Impossible {
        /// Which register.
        register: u64,
        /// How many of its acts could be put in an order at the most.
        explained: usize,
        /// Of how many.
        of: usize,
        /// The first act that fits nowhere after these.
        stuck: Operation,
    },
    /// It was given up after too many attempts.
    Undecided {
        /// Which register.
        register: u64,
    },
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Impossible { register, explained, of, stuck } => write!(
                f,
                "register {register}: only {explained} of {of} acts can be put in an order; {stuck:?} fits nowhere"
            ),
            Self::Undecided { register } => write!(f, "register {register}: too much to try"),
        }
    }
}

/// How many states are looked at before a register is given up on.
const STATES_MAX: usize = 3_000_000;

/// Checks that some order of all acts, each at one moment between being asked for and being answered, gives what the
/// clients saw.
///
/// # Errors
/// The first register for which there is none.
pub fn check(history: &[Operation]) -> Result<(), Verdict> {
    let mut registers: BTreeMap<u64, Vec<Operation>> = BTreeMap::new();
    for operation in history {
        registers.entry(operation.register).or_default().push(*operation);
    }
    registers.into_iter().try_for_each(|(register, operations)| check_register(register, &operations))
}

/// Asking and answering, in the order of time, as a list from which what has been put in order is taken out and, on
/// the way back, put in again.
struct Events {
    /// Of each event: its operation, and whether it is the answer.
    of: Vec<(usize, bool)>,
    /// Where the answer of an operation stands.
    answer: Vec<usize>,
    next: Vec<usize>,
    previous: Vec<usize>,
}

/// Before the first event and behind the last.
const END: usize = 0;

impl Events {
    fn new(operations: &[Operation]) -> Self {
        let asked = |at: usize| (operations[at].asked, false, at);
        let answered = |at: usize| (operations[at].answered.unwrap_or(u64::MAX), true, at);
        let mut sorted: Vec<(u64, bool, usize)> =
            (0..operations.len()).flat_map(|at| [asked(at), answered(at)]).collect();
        sorted.sort_unstable();
        let count = sorted.len() + 1;
        let mut answer = vec![END; operations.len()];
        let mut of = vec![(usize::MAX, false)];
        for (_, is_answer, operation) in sorted {
            if is_answer {
                answer[operation] = of.len();
            }
            of.push((operation, is_answer));
        }
        let next = (1..=count).map(|at| at % count).collect();
        let previous = (0..count).map(|at| (at + count - 1) % count).collect();
        Self { of, answer, next, previous }
    }

    fn unlink(&mut self, at: usize) {
        let (previous, next) = (self.previous[at], self.next[at]);
        self.next[previous] = next;
        self.previous[next] = previous;
    }

    fn relink(&mut self, at: usize) {
        let (previous, next) = (self.previous[at], self.next[at]);
        self.next[previous] = at;
        self.previous[next] = at;
    }

    fn take_out(&mut self, asked: usize) {
        self.unlink(asked);
        self.unlink(self.answer[self.of[asked].0]);
    }

    fn put_back(&mut self, asked: usize) {
        self.relink(self.answer[self.of[asked].0]);
        self.relink(asked);
    }
}

fn check_register(register: u64, operations: &[Operation]) -> Result<(), Verdict> {
    let mut events = Events::new(operations);
    let mut done = vec![0_u64; operations.len().div_ceil(64)];
    let mut tried: HashSet<(Vec<u64>, u64)> = HashSet::new();
    let mut order: Vec<(usize, u64)> = Vec::new();
    let mut value = 0;
    let mut at = events.next[END];
    let mut best = (0, usize::MAX);
    while events.next[END] != END {
        let (operation, is_answer) = events.of[at];
        if !is_answer {
            let after = operations[operation].act.apply(value);
            done[operation / 64] ^= 1 << (operation % 64);
            if let Some(after) = after.filter(|after| tried.insert((done.clone(), *after))) {
                order.push((at, value));
                value = after;
                events.take_out(at);
                at = events.next[END];
            } else {
                done[operation / 64] ^= 1 << (operation % 64);
                at = events.next[at];
            }
            if tried.len() > STATES_MAX {
                return Err(Verdict::Undecided { register });
            }
            continue;
        }
        // It was answered by now, so it should have been among the ones before.
        if best.1 == usize::MAX || order.len() > best.0 {
            best = (order.len(), operation);
        }
        let Some((last, before)) = order.pop() else {
            let stuck = operations[best.1];
            return Err(Verdict::Impossible { register, explained: best.0, of: operations.len(), stuck });
        };
        let undone = events.of[last].0;
        done[undone / 64] ^= 1 << (undone % 64);
        value = before;
        events.put_back(last);
        at = events.next[last];
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn act(asked: u64, answered: u64, act: Act) -> Operation {
        Operation { register: 0, asked, answered: Some(answered), act }
    }

    fn lost(asked: u64, act: Act) -> Operation {
        Operation { register: 0, asked, answered: None, act }
    }

    fn swap(expected: u64, new: u64, done: bool) -> Act {
        Act::Swap { expected, new, done: Some(done) }
    }

    fn possible(history: &[Operation]) -> bool {
        check(history).is_ok()
    }

    #[test]
    fn what_overlaps_may_be_seen_in_either_order() {
        let write = act(0, 10, Act::Write(1));
        assert!(possible(&[write, act(5, 6, Act::Read(0)), act(7, 8, Act::Read(1))]));
        assert!(!possible(&[write, act(5, 6, Act::Read(1)), act(7, 8, Act::Read(0))]));
    }

    #[test]
    fn a_stale_read_is_noticed() {
        assert!(!possible(&[act(0, 3, Act::Write(1)), act(5, 6, Act::Read(0))]));
        assert!(possible(&[act(0, 3, Act::Write(1)), act(5, 6, Act::Read(1))]));
    }

    #[test]
    fn what_was_never_answered_may_happen_late_or_never() {
        let write = lost(0, Act::Write(1));
        assert!(possible(&[write, act(5, 6, Act::Read(0)), act(7, 8, Act::Read(1))]));
        assert!(possible(&[write, act(5, 6, Act::Read(0))]));
        assert!(!possible(&[write, act(5, 6, Act::Read(1)), act(7, 8, Act::Read(0))]));
        let swap = lost(0, Act::Swap { expected: 7, new: 8, done: None });
        assert!(possible(&[swap, act(1, 2, Act::Read(0))]));
        assert!(!possible(&[swap, act(1, 2, Act::Read(8))]));
    }

    #[test]
    fn two_cannot_swap_the_same_value() {
        assert!(!possible(&[act(0, 9, swap(0, 1, true)), act(0, 9, swap(0, 2, true))]));
        assert!(possible(&[act(0, 9, swap(0, 1, true)), act(0, 9, swap(1, 2, true))]));
        assert!(possible(&[act(0, 9, swap(0, 1, true)), act(0, 9, swap(0, 2, false))]));
        assert!(!possible(&[act(0, 1, swap(0, 1, false))]));
    }

    #[test]
    fn a_lost_write_is_named() {
        let mut history = vec![act(0, 1, Act::Write(1)), act(2, 3, Act::Write(2)), act(4, 5, Act::Read(1))];
        let verdict = check(&history).unwrap_err();
        let Verdict::Impossible { explained, of, stuck, .. } = &verdict else { panic!("{verdict}") };
        assert_eq!((*explained, *of, stuck.act), (2, 3, Act::Read(1)));
        // Of another register it says nothing.
        history[1].register = 1;
        assert!(possible(&history));
    }

    #[test]
    fn many_at_once_are_decided() {
        let mut history = Vec::new();
        for round in 0..200 {
            let from = round * 10;
            history.extend((0..6).map(|n| act(from + n, from + 9, Act::Write(round * 10 + n))));
            history.push(act(from + 9, from + 9, Act::Read(round * 10 + 3)));
        }
        assert!(possible(&history));
        history.push(act(3000, 3001, Act::Read(1)));
        assert!(!possible(&history));
    }
}
