//! For simulations alone: a disk that takes its time and can lose its power, chance that follows from a seed, and
//! faults that are planted to see whether they are found. A release has none of it (feature `sim`).

use std::cell::{Cell, RefCell};
use std::fs::File;
use std::hash::{BuildHasher, RandomState};
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use openraft::AsyncRuntime;
use rand::SeedableRng;
use rand::rngs::StdRng;

/// The unit in which a disk writes: what was not synced survives by sectors.
const SECTOR: u64 = 512;

/// What of a log is simulated. By default nothing.
#[derive(Clone, Debug, Default)]
pub struct Sim {
    /// The disk the log is written to, in place of the machine's. Needs a current-thread runtime.
    pub disk: Option<Disk>,
    /// The faults it has.
    pub flaws: Flaws,
}

/// Faults that break a promise each, for tests that prove that they would be noticed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Flaws {
    /// Says that it is on disk before it is.
    pub ack_before_sync: bool,
    /// Who believes to lead answers reads without asking a majority.
    pub read_local_state: bool,
    /// Who led before a restart leads on after it.
    pub restore_leader: bool,
    /// A candidate counts its own vote twice.
    pub vote_twice: bool,
}

/// A disk; clones share it. It stands for one run of one manager: after [`Disk::cut`] or [`Disk::fence`] nothing is
/// written through it any more, and the next run gets another one on the same directory.
#[derive(Clone, Debug)]
pub struct Disk {
    state: Arc<Mutex<State>>,
}

#[derive(Debug, Default)]
struct State {
    dead: bool,
    sync: Duration,
    full: bool,
    /// The next sync fails.
    fails: bool,
    unsynced: Vec<Unsynced>,
}

/// A write that a power cut may undo.
#[derive(Debug)]
struct Unsynced {
    file: Arc<File>,
    offset: u64,
    before: Vec<u8>,
}

impl Disk {
    /// One whose syncs take so long.
    pub fn new(sync: Duration) -> Self {
        Self { state: Arc::new(Mutex::new(State { sync, ..State::default() })) }
    }

    /// From now on its syncs take so long.
    pub fn slow(&self, sync: Duration) {
        self.state().sync = sync;
    }

    /// Whether there is room for more than the segment that is being written.
    pub fn fill(&self, full: bool) {
        self.state().full = full;
    }

    /// The next sync fails, and what it was to make durable is never heard of again.
    pub fn fail(&self) {
        self.state().fails = true;
    }

    pub(crate) fn is_full(&self) -> bool {
        self.state().full
    }

    /// Stops all writing, as the end of a process does: what was written stays.
    pub fn fence(&self) {
        self.state().dead = true;
    }

    /// Cuts the power: of each sector that was written and not synced, `survives` says whether the new content
    /// stays (2), the old (0), or the first half of the new (1).
    ///
    /// # Errors
    /// Those of the files beneath.
    pub fn cut(&self, mut survives: impl FnMut() -> u8) -> io::Result<()> {
        let mut state = self.state();
        state.dead = true;
        for write in std::mem::take(&mut state.unsynced).into_iter().rev() {
            let end = write.offset + write.before.len() as u64;
            let mut at = write.offset;
            while at < end {
                let next = (at / SECTOR + 1) * SECTOR;
                let next = next.min(end);
                let from = match survives() {
                    0 => at,
                    1 => at + (next - at) / 2,
                    _ => next,
                };
                let range = (from - write.offset) as usize..(next - write.offset) as usize;
                write.file.write_all_at(&write.before[range], from)?;
                at = next;
            }
        }
        Ok(())
    }

    /// Whether its power was cut, or it was fenced.
    pub fn is_dead(&self) -> bool {
        self.state().dead
    }

    pub(crate) fn sync_time(&self) -> Duration {
        self.state().sync
    }

    pub(crate) fn write(&self, file: &Arc<File>, bytes: &[u8], offset: u64) -> io::Result<()> {
        let mut state = self.alive()?;
        let mut before = vec![0; bytes.len()];
        let mut len = 0;
        // Behind the end of the file there were zeros, so to speak.
        while len < before.len() {
            match file.read_at(&mut before[len..], offset + len as u64)? {
                0 => break,
                read => len += read,
            }
        }
        file.write_all_at(bytes, offset)?;
        state.unsynced.push(Unsynced { file: file.clone(), offset, before });
        Ok(())
    }

    pub(crate) fn sync(&self, file: &Arc<File>) -> io::Result<()> {
        let mut state = self.alive()?;
        if std::mem::take(&mut state.fails) {
            return Err(io::Error::from_raw_os_error(5));
        }
        state.unsynced.retain(|write| !Arc::ptr_eq(&write.file, file));
        Ok(())
    }

    fn alive(&self) -> io::Result<MutexGuard<'_, State>> {
        let state = self.state();
        if state.dead {
            return Err(io::Error::other("the disk has no power"));
        }
        Ok(state)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("nothing panics while it holds this lock")
    }
}

/// Where the power can be cut, around the log, its snapshots, the state machine and the membership.
pub const POINTS: [&str; 47] = [
    "log.append",
    "log.appended",
    "log.vote",
    "log.voted",
    "log.committed",
    "log.truncate",
    "log.truncated",
    "log.purge",
    "log.purge.marked",
    "log.purge.removed",
    "log.purged",
    "log.write",
    "log.written",
    "log.sync",
    "log.synced",
    "log.roll",
    "log.roll.spare",
    "log.roll.header",
    "log.roll.synced",
    "log.roll.named",
    "log.rolled",
    "snapshot.create",
    "snapshot.chunk",
    "snapshot.finish",
    "snapshot.synced",
    "snapshot.adopt",
    "snapshot.named",
    "snapshot.durable",
    "snapshot.old",
    "snapshot.read",
    "snapshot.received",
    "apply",
    "applied",
    "state.restore",
    "state.restored",
    "member.learn",
    "member.learned",
    "member.caught-up",
    "member.voter",
    "member.joint",
    "member.uniform",
    "member.demote",
    "member.demoted",
    "member.remove",
    "member.removed",
    "member.hand-over",
    "member.handed-over",
];

/// Where a crash can befall what is done to a closed log: a new life of the cluster, or one that begins with a backup.
pub const POINTS_ALONE: [&str; 6] =
    ["force.begin", "force.written", "begin.snapshot", "begin.vote", "begin.purge", "begun"];

type Strike = Box<dyn FnOnce()>;

thread_local! {
    static ARMED: RefCell<Option<(String, Strike)>> = const { RefCell::new(None) };
}

/// Has `strike` called once when one of [`POINTS`] or [`POINTS_ALONE`] is next reached on this thread; whoever reached it fails there.
pub fn arm(point: &str, strike: impl FnOnce() + 'static) {
    assert!(is_point(point), "there is no point {point}");
    ARMED.set(Some((point.to_owned(), Box::new(strike))));
}

fn is_point(point: &str) -> bool {
    POINTS.contains(&point) || POINTS_ALONE.contains(&point)
}

pub(crate) fn reach(point: &'static str) -> io::Result<()> {
    debug_assert!(is_point(point), "{point} is missing among the points");
    let armed = ARMED.with_borrow_mut(|armed| armed.take_if(|(at, _)| at == point));
    let Some((_, strike)) = armed else { return Ok(()) };
    strike();
    Err(io::Error::other("the power failed"))
}

thread_local! {
    static SEED: Cell<u64> = Cell::new(RandomState::new().hash_one("election"));
}

/// Makes everything random in elections on this thread follow from `seed`.
pub fn seed(seed: u64) {
    SEED.set(seed);
}

/// tokio, but for the random numbers, which follow from [`seed`].
#[derive(Debug)]
pub(crate) struct Runtime(openraft_rt_tokio::TokioRuntime);

type Tokio = openraft_rt_tokio::TokioRuntime;

impl AsyncRuntime for Runtime {
    type JoinError = <Tokio as AsyncRuntime>::JoinError;
    type JoinHandle<T: openraft::OptionalSend + 'static> = <Tokio as AsyncRuntime>::JoinHandle<T>;
    type Sleep = <Tokio as AsyncRuntime>::Sleep;
    type Instant = <Tokio as AsyncRuntime>::Instant;
    type TimeoutError = <Tokio as AsyncRuntime>::TimeoutError;
    type Timeout<R, T: Future<Output = R> + openraft::OptionalSend> = <Tokio as AsyncRuntime>::Timeout<R, T>;
    type ThreadLocalRng = StdRng;

    fn spawn<T>(future: T) -> Self::JoinHandle<T::Output>
    where
        T: Future + openraft::OptionalSend + 'static,
        T::Output: openraft::OptionalSend + 'static,
    {
        Tokio::spawn(future)
    }

    fn sleep(duration: Duration) -> Self::Sleep {
        Tokio::sleep(duration)
    }

    fn sleep_until(deadline: Self::Instant) -> Self::Sleep {
        Tokio::sleep_until(deadline)
    }

    fn timeout<R, F: Future<Output = R> + openraft::OptionalSend>(
        duration: Duration,
        future: F,
    ) -> Self::Timeout<R, F> {
        Tokio::timeout(duration, future)
    }

    fn timeout_at<R, F: Future<Output = R> + openraft::OptionalSend>(
        deadline: Self::Instant,
        future: F,
    ) -> Self::Timeout<R, F> {
        Tokio::timeout_at(deadline, future)
    }

    fn is_panic(join_error: &Self::JoinError) -> bool {
        Tokio::is_panic(join_error)
    }

    fn thread_rng() -> StdRng {
        let seed = SEED.get();
        SEED.set(seed.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f));
        StdRng::seed_from_u64(seed)
    }

    type Mpsc = <Tokio as AsyncRuntime>::Mpsc;
    type Watch = <Tokio as AsyncRuntime>::Watch;
    type Oneshot = <Tokio as AsyncRuntime>::Oneshot;
    type Mutex<T: openraft::OptionalSend + 'static> = <Tokio as AsyncRuntime>::Mutex<T>;

    fn new(threads: usize) -> Self {
        Self(Tokio::new(threads))
    }

    fn block_on<F, T>(&mut self, future: F) -> T
    where
        F: Future<Output = T>,
    {
        self.0.block_on(future)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn disk_with(bytes: &[u8]) -> (Disk, Arc<File>) {
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(bytes, 0).unwrap();
        (Disk::new(Duration::ZERO), Arc::new(file))
    }

    fn content(file: &File) -> Vec<u8> {
        let mut bytes = vec![0; file.metadata().unwrap().len() as usize];
        file.read_exact_at(&mut bytes, 0).unwrap();
        bytes
    }

    #[test]
    fn a_power_cut_loses_what_was_not_synced_by_sectors() {
        let (disk, file) = disk_with(&[0; 2048]);
        disk.write(&file, &[1; 700], 0).unwrap();
        disk.sync(&file).unwrap();
        disk.write(&file, &[2; 1300], 700).unwrap();
        // Of the last write: the rest of the second sector stays, the third is torn, the fourth is lost.
        let mut fates = [2, 1, 0].into_iter();
        disk.cut(|| fates.next().unwrap()).unwrap();
        let bytes = content(&file);
        assert!(bytes[..700].iter().all(|byte| *byte == 1));
        assert!(bytes[700..1280].iter().all(|byte| *byte == 2));
        assert!(bytes[1280..].iter().all(|byte| *byte == 0));
        assert!(disk.write(&file, &[3], 0).is_err() && disk.sync(&file).is_err());
    }

    #[test]
    fn the_end_of_a_process_loses_nothing_that_was_written() {
        let (disk, file) = disk_with(&[0; 10]);
        disk.write(&file, &[1; 20], 0).unwrap();
        disk.fence();
        assert_eq!(content(&file), [1; 20]);
        assert!(disk.write(&file, &[2], 0).is_err());
    }
}
