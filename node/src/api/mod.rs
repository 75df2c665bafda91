//! What callers reach: handlers parse, propose and answer, in that order. Who may call what is decided before
//! them (`rpc::access`), and rules live in `control::admission`, where they can be tested without a server.

mod anew;
mod backup;
pub mod control;
pub(crate) mod doctor;
mod events;
mod images;
mod insight;
pub mod join;
pub mod local;
mod logs;
mod quorum;
mod rehearse;
mod status;
mod tasks;
pub mod volumes;
mod watch;

/// An error and its causes on one line; some causes are part of the words before them already.
pub fn words(error: &anyhow::Error) -> String {
    let mut chain: Vec<String> = Vec::new();
    for cause in error.chain().map(ToString::to_string) {
        if !chain.last().is_some_and(|last| last.ends_with(&cause)) {
            chain.push(cause);
        }
    }
    chain.join(": ")
}
