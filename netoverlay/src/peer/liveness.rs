//! Whether a peer is still there, judged by its packets alone. Pure: time is an argument.

use std::time::{Duration, Instant};

/// A peer this long silent, though asked, is suspect.
pub const SUSPECT_AFTER: Duration = Duration::from_millis(500);
/// A peer never heard since it was listed is suspect after this long.
pub const FIRST_CONTACT: Duration = Duration::from_millis(1500);
/// A peer this long silent is asked.
const ASK_AFTER: Duration = Duration::from_millis(200);
/// It is asked again this often.
const ASK_AGAIN: Duration = Duration::from_millis(100);

/// What changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// It is suspect now.
    Suspect,
    /// It is trusted again.
    Recovered,
}

/// The record of one peer.
#[derive(Debug)]
pub struct Liveness {
    heard: Instant,
    asked: Option<Instant>,
    ever: bool,
    suspect: bool,
}

impl Liveness {
    /// A peer just listed.
    pub fn new(now: Instant) -> Self {
        Self { heard: now, asked: None, ever: false, suspect: false }
    }

    /// A genuine packet came from it.
    pub fn hear(&mut self, now: Instant) -> Option<Change> {
        self.heard = now;
        self.asked = None;
        self.ever = true;
        std::mem::take(&mut self.suspect).then_some(Change::Recovered)
    }

    /// Whether to ask it now; counted as done.
    pub fn ask(&mut self, now: Instant) -> bool {
        let due = now >= self.ask_at();
        if due {
            self.asked = Some(now);
        }
        due
    }

    /// Looks at the clock.
    pub fn check(&mut self, now: Instant) -> Option<Change> {
        if self.suspect || now < self.suspect_at() {
            return None;
        }
        self.suspect = true;
        Some(Change::Suspect)
    }

    /// This thread has not run for `pause`, so its peers' silence during that time says nothing.
    pub fn excuse(&mut self, pause: Duration, now: Instant) {
        self.heard = (self.heard + pause).min(now);
    }

    /// When to look again. Asking matters only while `connected`.
    pub fn next(&self, connected: bool) -> Option<Instant> {
        let ask = connected.then(|| self.ask_at());
        let suspect = (!self.suspect).then(|| self.suspect_at());
        ask.into_iter().chain(suspect).min()
    }

    /// Whether it is suspect.
    pub fn suspect(&self) -> bool {
        self.suspect
    }

    /// For how long it has been silent.
    pub fn silent(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.heard)
    }

    fn ask_at(&self) -> Instant {
        self.asked.map_or(self.heard + ASK_AFTER, |asked| asked + ASK_AGAIN)
    }

    fn suspect_at(&self) -> Instant {
        self.heard + if self.ever { SUSPECT_AFTER } else { FIRST_CONTACT }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn a_silent_peer_is_asked_three_times_before_it_is_suspect() {
        let start = Instant::now();
        let mut peer = Liveness::new(start);
        peer.hear(start);
        let mut asked = 0;
        let mut now = start;
        while peer.check(now).is_none() {
            asked += u32::from(peer.ask(now));
            now = peer.next(true).unwrap();
        }
        assert_eq!(now, start + SUSPECT_AFTER);
        assert!(asked >= 3, "asked {asked} times");
    }

    #[test]
    fn the_first_packet_clears_suspicion() {
        let start = Instant::now();
        let mut peer = Liveness::new(start);
        peer.hear(start);
        assert_eq!(peer.check(start + ms(500)), Some(Change::Suspect));
        assert_eq!(peer.check(start + ms(600)), None, "said once");
        assert_eq!(peer.hear(start + ms(700)), Some(Change::Recovered));
        assert_eq!(peer.hear(start + ms(701)), None);
    }

    #[test]
    fn a_peer_never_heard_gets_longer() {
        let start = Instant::now();
        let mut peer = Liveness::new(start);
        assert_eq!(peer.check(start + ms(1499)), None);
        assert_eq!(peer.check(start + ms(1500)), Some(Change::Suspect));
    }

    #[test]
    fn our_own_pause_is_not_held_against_peers() {
        let start = Instant::now();
        let mut peer = Liveness::new(start);
        peer.hear(start);
        let late = start + ms(5000);
        peer.excuse(ms(4900), late);
        assert_eq!(peer.check(late), None);
        assert_eq!(peer.check(late + ms(400)), Some(Change::Suspect));
    }
}
