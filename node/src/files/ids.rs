//! Files of a root whose users are not the machine's: they have a range of its ids, and are called by their numbers in it.

use super::bad;
use nix::unistd::{Gid, Uid, setfsgid, setfsuid};
use serde::{Deserialize, Serialize};
use std::io;

/// Who is shown to own what belongs to nobody in the range, as the kernel has it.
const NOBODY: u32 = 65534;

/// A range of the machine's ids.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ids {
    /// What 0 is here.
    pub first: u32,
    /// How many there are.
    pub count: u32,
}

impl Ids {
    /// An id of the machine's, as it is there.
    pub(super) fn there(self, id: u32) -> u32 {
        id.checked_sub(self.first).filter(|id| *id < self.count).unwrap_or(NOBODY)
    }

    /// An id as it is there, on this machine.
    pub(super) fn here(self, id: u32) -> io::Result<u32> {
        match id < self.count {
            true => Ok(self.first + id),
            false => Err(bad(format!("there is no user or group {id} in the container"))),
        }
    }

    /// Has this thread, which must not go on afterwards, make files as the root of the range, with all rights it has.
    pub(super) fn make_as_root(self) -> io::Result<()> {
        setfsgid(Gid::from_raw(self.first));
        // Takes the rights to files out of those in effect.
        setfsuid(Uid::from_raw(self.first));
        let mut sets = rustix::thread::capabilities(None)?;
        sets.effective = sets.permitted;
        Ok(rustix::thread::set_capabilities(None, sets)?)
    }
}
