//! Requests that were carried out, so that one whose answer was lost is not carried out a second time.

use crate::time::Timestamp;
use imbl::{OrdMap, Vector};
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

/// How many requests are remembered at the most.
pub const REMEMBERED_MAX: usize = 10_000;
/// How long one is remembered at the most: long after anybody would still repeat it.
pub const REMEMBERED_FOR: Duration = Duration::from_secs(600);

/// What whoever asks calls a request, and all repetitions of it: 128 random bits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RequestId(pub u128);

impl fmt::Display for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl fmt::Debug for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Why a text names no request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a request id is 32 hexadecimal digits")]
pub struct NotARequestId;

impl FromStr for RequestId {
    type Err = NotARequestId;

    fn from_str(text: &str) -> Result<Self, NotARequestId> {
        let digits = text.len() == 32 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
        let number = digits.then(|| u128::from_str_radix(text, 16).ok()).flatten();
        number.map(Self).ok_or(NotARequestId)
    }
}

/// The last requests that were carried out, with their answers. A function of what was noted, in its order.
#[derive(Clone, Debug, PartialEq)]
pub struct Requests<A: Clone> {
    answers: OrdMap<RequestId, A>,
    /// Oldest first.
    order: Vector<(RequestId, Timestamp)>,
}

impl<A: Clone> Default for Requests<A> {
    fn default() -> Self {
        Self { answers: OrdMap::new(), order: Vector::new() }
    }
}

impl<A: Clone> Requests<A> {
    /// What was answered to this one, if it was carried out and is remembered.
    pub fn answer(&self, request: RequestId) -> Option<&A> {
        self.answers.get(&request)
    }

    /// Notes that it was carried out, and forgets what has become too old or too many. False, and nothing else,
    /// if it is noted already.
    pub fn note(&mut self, request: RequestId, at: Timestamp, answer: A) -> bool {
        if self.answers.contains_key(&request) {
            return false;
        }
        self.answers.insert(request, answer);
        self.order.push_back((request, at));
        while let Some((oldest, then)) = self.order.front().copied()
            && (self.order.len() > REMEMBERED_MAX || then.after(REMEMBERED_FOR) < at)
        {
            self.order.pop_front();
            self.answers.remove(&oldest);
        }
        true
    }

    /// All of them, oldest first.
    pub fn iter(&self) -> impl Iterator<Item = (RequestId, Timestamp, &A)> {
        self.order.iter().filter_map(|(request, at)| Some((*request, *at, self.answers.get(request)?)))
    }
}

impl<A: Clone> FromIterator<(RequestId, Timestamp, A)> for Requests<A> {
    fn from_iter<I: IntoIterator<Item = (RequestId, Timestamp, A)>>(noted: I) -> Self {
        let mut requests = Self::default();
        for (request, at, answer) in noted {
            requests.note(request, at, answer);
        }
        requests
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_noted_once_and_comes_back_from_a_list() {
        let mut requests = Requests::default();
        assert!(requests.note(RequestId(7), Timestamp(1), "first"));
        assert!(!requests.note(RequestId(7), Timestamp(2), "second"));
        assert_eq!(requests.answer(RequestId(7)), Some(&"first"));
        let again: Requests<_> = requests.iter().map(|(id, at, answer)| (id, at, *answer)).collect();
        assert_eq!(again, requests);
    }

    #[test]
    fn what_is_remembered_is_bounded_in_number_and_time() {
        let mut requests = Requests::default();
        for number in 0..REMEMBERED_MAX as u128 + 3 {
            assert!(requests.note(RequestId(number), Timestamp(1), number));
        }
        assert_eq!(requests.iter().count(), REMEMBERED_MAX);
        assert_eq!((requests.answer(RequestId(2)), requests.answer(RequestId(3))), (None, Some(&3)));
        let late = Timestamp(2).after(REMEMBERED_FOR);
        requests.note(RequestId(u128::MAX), late, 0);
        assert_eq!(requests.iter().count(), 1, "the others are too old");
    }

    #[test]
    fn an_id_is_hexadecimal() {
        let id = RequestId(0xabc);
        assert_eq!(id.to_string().parse(), Ok(id));
        for bad in ["", "abc", &"g".repeat(32), &"0".repeat(33), "+0000000000000000000000000000abc"] {
            assert_eq!(bad.parse::<RequestId>(), Err(NotARequestId), "{bad}");
        }
    }
}
