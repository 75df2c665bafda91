//! The places around certificates and keys at which a test has the daemon end as a killed process does:
//! `RSWARM_DIES_AT=init.founded`. A build without debug assertions knows none of it.

/// All of them: the steps in which any small file is replaced, of `init`, of `join`, and of a renewal.
pub const POINTS: [&str; 13] = [
    "identity.opened",
    "identity.written",
    "identity.synced",
    "identity.named",
    "identity.durable",
    "init.claimed",
    "init.founded",
    "init.saved",
    "join.issued",
    "join.claimed",
    "join.saved",
    "renewal.issued",
    "renewal.saved",
];

fn armed() -> Option<String> {
    cfg!(debug_assertions).then(|| std::env::var("RSWARM_DIES_AT").ok()).flatten()
}

/// Whether the daemon is to end in a renewal: then that is due.
#[inline]
pub fn renews() -> bool {
    armed().is_some_and(|at| at.starts_with("renewal."))
}

/// Here is `point`.
#[inline]
pub fn reach(point: &str) {
    debug_assert!(POINTS.contains(&point), "{point} is missing among the points");
    if armed().is_some_and(|at| at == point) {
        std::process::abort();
    }
}
