//! How long a client's connection waits for a task's node that says nothing before it is given another task.

use std::time::Duration;

/// A task that has not answered by then gets company, and one of which nothing is heard is left.
pub const NEXT_AFTER: Duration = Duration::from_millis(200);
/// A node has at least this long to answer, however near it is.
const ANSWER_MIN: Duration = Duration::from_millis(100);

/// The two parts of [`NEXT_AFTER`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Patience {
    /// After this long without a word the node is asked whether it is still there.
    pub ask_after: Duration,
    /// So long it has to answer.
    pub answer_within: Duration,
}

/// How to wait for a node at the other end of such a round trip: twice that for the answer, as far as there is time
/// for it. `None` where no answer can come in time, so that its absence says nothing.
pub fn patience(round_trip: Duration) -> Option<Patience> {
    if round_trip >= NEXT_AFTER {
        return None;
    }
    let answer_within = (round_trip * 2).clamp(ANSWER_MIN, NEXT_AFTER);
    Some(Patience { ask_after: NEXT_AFTER - answer_within, answer_within })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_far_node_is_asked_sooner_and_has_longer_to_answer() {
        let ms = Duration::from_millis;
        let table = [
            (0, Some((100, 100))),
            (49, Some((100, 100))),
            (50, Some((100, 100))),
            (80, Some((40, 160))),
            (100, Some((0, 200))),
            (150, Some((0, 200))),
            (199, Some((0, 200))),
            (200, None),
            (5000, None),
        ];
        for (round_trip, expected) in table {
            let expected = expected.map(|(ask_after, answer_within)| Patience {
                ask_after: ms(ask_after),
                answer_within: ms(answer_within),
            });
            assert_eq!(patience(ms(round_trip)), expected, "{round_trip} ms");
        }
    }
}
