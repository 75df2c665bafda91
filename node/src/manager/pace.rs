//! When editions come out: the slower the more there is to send, so that a large cluster does not drown its leader.

use super::routes::Routes;
use std::time::Duration;
use tokio::time::Instant;

/// What all sessions together are sent in a second, at the most.
const BYTES_PER_SECOND: u64 = 100_000_000;
/// What each message costs beside its bytes, in bytes.
const MESSAGE: u64 = 2_000;
/// How long an edition is put off at the most.
const PUT_OFF_MAX: Duration = Duration::from_millis(250);
/// The same, where somebody waits for it or a task is to get no more connections.
const PUT_OFF_URGENT: Duration = Duration::from_millis(50);
/// The same, where only few are told.
const QUICK: Duration = Duration::from_millis(20);
/// How long an edition waits, if nothing is urgent, until the nodes have taken the one before.
const REST_MAX: Duration = Duration::from_millis(500);
/// Nodes that need not have taken it, however few there are: small clusters never wait.
const REST_BUT: usize = 16;
/// The same as a part of all.
const REST_BUT_PART: usize = 8;

/// When the next edition may come out.
pub(super) struct Pace {
    /// If it is for the few that are hurried.
    pub(super) quick: Instant,
    /// If something is urgent.
    soon: Instant,
    /// If not, and the nodes have taken the one before.
    late: Instant,
    /// If not, and they have not.
    latest: Instant,
    /// How many of them need not.
    pub(super) but: usize,
}

impl Default for Pace {
    fn default() -> Self {
        Self::after(0, 0)
    }
}

impl Pace {
    /// After all of so many sessions were woken, for editions of this size.
    pub(super) fn after(size: u64, sessions: usize) -> Self {
        let sent = (size + MESSAGE) * sessions as u64;
        let pause = match size {
            0 => Duration::ZERO,
            _ => Duration::from_micros(sent * 1_000_000 / BYTES_PER_SECOND),
        };
        let now = Instant::now();
        Self {
            quick: now,
            soon: now + pause.min(PUT_OFF_URGENT),
            late: now + pause.min(PUT_OFF_MAX),
            latest: now + REST_MAX,
            but: REST_BUT.max(sessions / REST_BUT_PART),
        }
    }

    /// One that is for few has come out.
    pub(super) fn was_quick(&mut self) {
        self.quick = Instant::now() + QUICK;
    }

    /// Until it may come out for all.
    pub(super) async fn wait(&self, is_urgent: bool, routes: &Routes) {
        if is_urgent {
            return tokio::time::sleep_until(self.soon).await;
        }
        tokio::time::sleep_until(self.late).await;
        // Who does not answer is not waited for.
        let _ = tokio::time::timeout_at(self.latest, routes.rested(self.but)).await;
    }
}
