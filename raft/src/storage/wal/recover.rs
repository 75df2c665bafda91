//! Reading the log back after a restart.

use std::collections::VecDeque;
use std::fs::OpenOptions;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use super::super::Identity;
use super::super::seal::MasterKey;
use super::segment::{Header, Kind, Record, State, read_frames, segment_path, segments};
use crate::format::{EntryPb, Malformed};
use crate::types::{Entry, LogId, Vote};
use crate::{Incarnation, OpenError};

/// What the files say.
#[derive(Debug, Default)]
pub(crate) struct Recovered {
    pub(crate) vote: Option<Vote>,
    pub(crate) committed: Option<LogId>,
    pub(crate) purged: Option<LogId>,
    /// The log id before `next`, if any entry was ever written.
    pub(crate) last: Option<LogId>,
    pub(crate) entries: VecDeque<Entry>,
    pub(crate) incarnation: Incarnation,
    /// The index the next entry will have.
    pub(super) next: u64,
    began: bool,
}

/// A segment that is no longer written to.
pub(super) struct Old {
    pub(super) number: u64,
    pub(super) max_index: Option<u64>,
}

pub(super) fn recover(
    dir: &Path,
    identity: Identity,
    key: &MasterKey,
) -> Result<(Recovered, VecDeque<Old>), OpenError> {
    let numbers = segments(dir).map_err(|error| OpenError::io(dir, error))?;
    let mut recovered = Recovered::default();
    let mut old = VecDeque::new();
    for (at, &number) in numbers.iter().enumerate() {
        let path = segment_path(dir, number);
        if at > 0 && numbers[at - 1] + 1 != number {
            return Err(OpenError::damaged(&path, 0, "the segment before it is missing"));
        }
        let mut bytes = std::fs::read(&path).map_err(|error| OpenError::io(&path, error))?;
        let header = Header::decode(&bytes, &path, number, identity)?;
        let newest = at + 1 == numbers.len();
        let mut max_index = None;
        let end = read_frames(&mut bytes, &header.key(key), &path, newest, |offset, record| {
            let index = recovered
                .replay(record)
                .map_err(|Malformed(what)| OpenError::damaged(&path, offset as u64, what))?;
            max_index = max_index.max(index);
            Ok(())
        })?;
        if newest && end < bytes.len() {
            // What follows is cut off for good: this segment will not be the newest again. What stays is written
            // again: if a sync failed, the kernel may hold for written what never reached the disk.
            let cut = || -> io::Result<()> {
                let kept = std::fs::read(&path)?;
                let file = OpenOptions::new().write(true).open(&path)?;
                file.write_all_at(&kept[..end], 0)?;
                file.set_len(end as u64)?;
                file.sync_all()
            };
            cut().map_err(|error| OpenError::io(&path, error))?;
        }
        old.push_back(Old { number, max_index });
    }
    let missing = match recovered.entries.front() {
        Some(first) => first.log_id.index > recovered.purged.map_or(0, |id| id.index.saturating_add(1)),
        None => recovered.next > recovered.purged.map_or(0, |id| id.index.saturating_add(1)),
    };
    if missing {
        let path = numbers.first().map_or(dir.to_owned(), |number| segment_path(dir, *number));
        return Err(OpenError::damaged(&path, 0, "entries before it are missing, and were not compacted"));
    }
    Ok((recovered, old))
}

/// The index behind this one.
fn behind(id: LogId) -> Result<u64, Malformed> {
    id.index.checked_add(1).ok_or(Malformed("an index beyond all that there can be"))
}

impl Recovered {
    /// Does again what the record says was done; answers the index of an entry.
    fn replay(&mut self, record: Record) -> Result<Option<u64>, Malformed> {
        match record.kind.ok_or(Malformed("a record of a kind this version does not know"))? {
            Kind::State(state) => self.replay_state(state)?,
            Kind::Entry(entry) => return self.replay_entry(entry).map(Some),
            Kind::Forced(forced) => {
                self.incarnation = Incarnation(forced.incarnation);
                self.vote = Some(forced.vote.into());
                return self.replay_entry(forced.entry).map(Some);
            }
            Kind::Vote(vote) => self.vote = Some(vote.into()),
            Kind::Committed(committed) => self.committed = committed.id.map(LogId::from),
            Kind::Truncate(after) => {
                let after = after.id.map(LogId::from);
                let next = after.map_or(Ok(0), behind)?;
                if next > self.next {
                    return Err(Malformed("what was never written is taken back"));
                }
                self.next = next;
                self.last = after;
                while self.entries.back().is_some_and(|entry| entry.log_id.index >= self.next) {
                    self.entries.pop_back();
                }
                // Without an entry before it, it may end in what a snapshot covers.
                if self.entries.back().is_some_and(|entry| Some(entry.log_id) != after) {
                    return Err(Malformed(
                        "what is taken back begins behind an entry that was never written",
                    ));
                }
            }
            Kind::Purge(upto) => {
                let upto = LogId::from(upto);
                self.purged = Some(upto);
                while self.entries.front().is_some_and(|entry| entry.log_id.index <= upto.index) {
                    self.entries.pop_front();
                }
                let next = behind(upto)?;
                if next > self.next {
                    self.next = next;
                    self.last = Some(upto);
                }
            }
            Kind::Closed(_) => {}
        }
        Ok(None)
    }

    fn replay_entry(&mut self, entry: EntryPb) -> Result<u64, Malformed> {
        let entry = entry.into_entry()?;
        let index = entry.log_id.index;
        if index != self.next {
            return Err(Malformed("an entry does not follow the one before it"));
        }
        self.next = behind(entry.log_id)?;
        self.last = Some(entry.log_id);
        self.entries.push_back(entry);
        Ok(index)
    }

    fn replay_state(&mut self, state: State) -> Result<(), Malformed> {
        let begun = self.began || self.next > 0;
        if begun && (state.next != self.next || state.last.map(LogId::from) != self.last) {
            return Err(Malformed("a segment does not follow the one before it"));
        }
        self.began = true;
        self.vote = state.vote.map(Vote::from);
        self.committed = state.committed.map(LogId::from);
        self.purged = state.purged.map(LogId::from);
        self.last = state.last.map(LogId::from);
        self.next = state.next;
        self.incarnation = Incarnation(state.incarnation.max(Incarnation::FIRST.0));
        Ok(())
    }
}
