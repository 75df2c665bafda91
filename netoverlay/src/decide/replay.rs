//! Which numbered packets have come already. A packet is taken once; one so old that this is no longer known is not
//! taken at all.

const WORDS: usize = 64;
/// How far behind the newest a packet may come, in packets.
pub const WIDTH: u32 = (WORDS as u32 - 1) * 64;

/// The packets that have come of one key.
#[derive(Debug, Clone)]
pub struct Window {
    /// Above all that have come.
    next: u32,
    /// One bit for each number, modulo the window's size.
    seen: [u64; WORDS],
}

impl Default for Window {
    fn default() -> Self {
        Self { next: 0, seen: [0; WORDS] }
    }
}

fn place(number: u32) -> (usize, u64) {
    ((number / 64) as usize % WORDS, 1 << (number % 64))
}

impl Window {
    /// How many numbers there have been, those that never came included.
    pub fn next(&self) -> u32 {
        self.next
    }

    /// Whether the packet may be taken, provided that it is genuine.
    pub fn is_fresh(&self, number: u32) -> bool {
        let (word, bit) = place(number);
        number >= self.next || (self.next - number <= WIDTH && self.seen[word] & bit == 0)
    }

    /// Notes a genuine packet; `false` if it is not to be taken.
    pub fn take(&mut self, number: u32) -> bool {
        if !self.is_fresh(number) || number == u32::MAX {
            return false;
        }
        if number >= self.next {
            // The words between hold what was a whole window ago.
            let (first, last) = (self.next.div_ceil(64), number / 64);
            let stale = if last < first { 0 } else { (last - first + 1).min(WORDS as u32) };
            for word in 0..stale {
                self.seen[(last - word) as usize % WORDS] = 0;
            }
            self.next = number + 1;
        }
        let (word, bit) = place(number);
        self.seen[word] |= bit;
        true
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_packet_is_taken_once() {
        let mut window = Window::default();
        assert!(window.take(0) && !window.take(0));
        assert!(window.take(5) && window.take(3) && !window.take(5) && !window.take(3));
        assert!(window.take(WIDTH + 5) && window.take(6), "as old as is known");
        assert!(!window.take(4), "older than what is known");
        assert!(window.take(u32::MAX - 1) && !window.take(u32::MAX - 1) && !window.take(u32::MAX));
    }

    proptest! {
        #[test]
        fn it_agrees_with_a_set(
            // Where numbers start: a window goes round many times in a key's life.
            base in prop_oneof![Just(0), 0..1u32 << 23, Just(u32::MAX - 400_000)],
            steps in proptest::collection::vec(-300i64..700, 1..600),
            jump in 0u32..20_000,
        ) {
            let mut window = Window::default();
            let mut taken = BTreeSet::new();
            let mut at = i64::from(base);
            for (round, step) in steps.into_iter().enumerate() {
                at = (at + step + if round % 97 == 96 { i64::from(jump) } else { 0 }).clamp(0, i64::from(u32::MAX));
                let number = at as u32;
                let newest = taken.last().copied();
                let known = newest.is_none_or(|newest: u32| newest.saturating_sub(number) < WIDTH);
                let fresh = known && !taken.contains(&number);
                prop_assert_eq!(window.is_fresh(number), fresh);
                let wanted = fresh && number != u32::MAX;
                prop_assert_eq!(window.take(number), wanted);
                if wanted {
                    taken.insert(number);
                }
            }
        }
    }
}
