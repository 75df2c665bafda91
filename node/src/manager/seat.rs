//! Which seat in the Raft group the log on this disk belongs to, and whether the log is still there.
//!
//! A seat's votes count only while they are remembered: a manager whose log is gone or damaged must not speak
//! under its old seat again. It is given another by the others.

use crate::identity::write_atomically;
use crate::manager::raft_dir;
use anyhow::{Context, Result};
use rswarm_raft::OpenError;
use std::io::ErrorKind;
use std::path::Path;

/// Says whose log lies beside it: the seat, and `begun` once there was a log.
const NOTE: &str = "raft.seat";
const BEGUN: &str = "begun";

/// The log of a seat that was in use is not there.
#[derive(Debug, thiserror::Error)]
#[error("the log of this manager, in {0}, is gone")]
struct Gone(String);

fn note(state_dir: &Path) -> Option<(u64, bool)> {
    let text = std::fs::read_to_string(state_dir.join(NOTE)).ok()?;
    let mut words = text.split_whitespace();
    Some((words.next()?.parse().ok()?, words.next() == Some(BEGUN)))
}

/// Makes room for the log of `seat`: removes one that belongs to another.
///
/// # Errors
/// If the disk refuses.
pub fn claim(state_dir: &Path, seat: u64) -> Result<()> {
    if note(state_dir).is_none_or(|(noted, _)| noted != seat) {
        rswarm_raft::wipe(&raft_dir(state_dir)).context("cannot remove an old manager's log")?;
        write_atomically(&state_dir.join(NOTE), seat.to_string().as_bytes())?;
    }
    Ok(())
}

/// Before the log of `seat` is opened: finishes a [`claim`] that was cut short, and refuses to begin a log anew that
/// has begun before.
///
/// # Errors
/// See [`lost`]; or if the disk refuses.
pub fn ready(state_dir: &Path, seat: u64) -> Result<()> {
    let dir = raft_dir(state_dir);
    let noted = note(state_dir);
    if noted.is_some_and(|(noted, _)| noted != seat) {
        return claim(state_dir, seat);
    }
    let there = rswarm_raft::exists(&dir).with_context(|| format!("cannot read {}", dir.display()))?;
    if !there && noted != Some((seat, false)) {
        return Err(Gone(dir.display().to_string()).into());
    }
    Ok(())
}

/// After the log of `seat` was opened, and before it says anything to others.
pub(super) fn begun(state_dir: &Path, seat: u64) -> Result<()> {
    if note(state_dir) != Some((seat, true)) {
        write_atomically(&state_dir.join(NOTE), format!("{seat} {BEGUN}").as_bytes())?;
    }
    Ok(())
}

/// Gives the seat up, and its log.
///
/// # Errors
/// If the disk refuses.
pub fn give_up(state_dir: &Path) -> Result<()> {
    rswarm_raft::wipe(&raft_dir(state_dir)).context("cannot remove the manager's log")?;
    match std::fs::remove_file(state_dir.join(NOTE)) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", state_dir.join(NOTE).display()))
        }
        _ => Ok(()),
    }
}

/// If a manager could not be started because its log is gone or damaged: in which way. Nothing on this machine
/// will mend that.
pub fn lost(error: &anyhow::Error) -> Option<String> {
    if let Some(gone) = error.downcast_ref::<Gone>() {
        return Some(gone.to_string());
    }
    match error.downcast_ref::<OpenError>() {
        Some(error @ (OpenError::Damaged { .. } | OpenError::Outdated { .. })) => Some(error.to_string()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn log_of(dir: &Path) -> std::path::PathBuf {
        let path = raft_dir(dir).join("0000000000000001.wal");
        std::fs::create_dir_all(raft_dir(dir)).unwrap();
        std::fs::write(&path, b"log").unwrap();
        path
    }

    #[test]
    fn a_log_that_has_begun_is_not_begun_again() {
        let dir = tempfile::tempdir().unwrap();
        claim(dir.path(), 3).unwrap();
        ready(dir.path(), 3).expect("it has yet to begin");
        begun(dir.path(), 3).unwrap();
        assert!(lost(&ready(dir.path(), 3).unwrap_err()).unwrap().contains("is gone"));
        let log = log_of(dir.path());
        ready(dir.path(), 3).expect("it is there");
        assert!(log.exists());

        // Without the note nobody knows whether it has begun.
        std::fs::remove_file(dir.path().join(NOTE)).unwrap();
        ready(dir.path(), 3).expect("a log that is there is used");
        std::fs::remove_file(log).unwrap();
        assert!(lost(&ready(dir.path(), 3).unwrap_err()).is_some());
    }

    #[test]
    fn a_log_of_another_seat_makes_room() {
        let dir = tempfile::tempdir().unwrap();
        claim(dir.path(), 3).unwrap();
        begun(dir.path(), 3).unwrap();
        let log = log_of(dir.path());
        claim(dir.path(), 3).unwrap();
        assert!(log.exists(), "it is its own");
        ready(dir.path(), 5).expect("the identity was written, and then the power went");
        assert!(!log.exists());
        ready(dir.path(), 5).expect("it has yet to begin");
    }
}
