//! The load a drill puts on a cluster, and the account that is kept of it: requests over HTTP, and writes and
//! reads of the replicated state.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::requests::Aim;

/// How long a request may take before it has failed.
pub(super) const REQUEST: Duration = Duration::from_secs(3);
/// How long requests that are open may take to end, each within its own time.
const SETTLE: Duration = Duration::from_secs(15);
/// More lines of errors than this are not kept, by their words.
const ERRORS_MAX: usize = 20;

/// One request.
#[derive(Debug, Clone, Copy)]
pub struct Shot {
    /// When it was sent, from the drill's beginning.
    pub at: Duration,
    /// How long it took.
    pub took: Duration,
    /// Whether it did what it should.
    pub ok: bool,
    /// When its connection was open, if it had one of its own and that ever was.
    pub opened: Option<Duration>,
    /// The port from which that connection came.
    pub port: u16,
}

impl Shot {
    /// Whether its connection was open at some time between these.
    pub fn was_open(&self, from: Duration, to: Duration) -> bool {
        self.opened.is_some_and(|opened| opened <= to) && self.at + self.took >= from
    }
}

/// What became of requests.
#[derive(Debug, Default)]
pub struct Account {
    shots: Mutex<Vec<Shot>>,
    errors: Mutex<BTreeMap<String, usize>>,
    stop: AtomicBool,
    numbers: AtomicU64,
    /// Requests without an answer, by when they were sent and a number.
    open: Mutex<BTreeSet<(Duration, u64)>>,
    ended: Condvar,
}

/// A request that has no answer yet, until this is dropped.
pub struct Open {
    account: Arc<Account>,
    key: (Duration, u64),
}

impl Drop for Open {
    fn drop(&mut self) {
        held(&self.account.open).remove(&self.key);
        self.account.ended.notify_all();
    }
}

impl Account {
    /// A request is sent, at this time from the drill's beginning.
    pub fn open(self: &Arc<Self>, at: Duration) -> Open {
        let key = (at, self.numbers.fetch_add(1, Ordering::Relaxed));
        held(&self.open).insert(key);
        Open { account: self.clone(), key }
    }

    /// Waits until no request is open that was sent until `at`.
    fn settled(&self, at: Duration) -> Result<()> {
        let is_open =
            |open: &mut BTreeSet<(Duration, u64)>| open.first().is_some_and(|(sent, _)| *sent <= at);
        let (open, _) = self
            .ended
            .wait_timeout_while(held(&self.open), SETTLE, is_open)
            .unwrap_or_else(PoisonError::into_inner);
        let left = open.iter().filter(|(sent, _)| *sent <= at).count();
        ensure!(
            left == 0,
            "{left} requests have neither an answer nor an error after {} s",
            SETTLE.as_secs()
        );
        Ok(())
    }

    /// Writes down a request, and why it failed if it did.
    pub fn note(&self, shot: Shot, why: Option<&str>) {
        held(&self.shots).push(shot);
        if let Some(words) = why {
            let mut errors = held(&self.errors);
            if errors.len() < ERRORS_MAX || errors.contains_key(words) {
                *errors.entry(words.to_owned()).or_default() += 1;
            }
        }
    }

    /// Whether no more requests are to be sent.
    pub fn is_closed(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }
}

fn held<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A stream of requests, until it is dropped.
#[derive(Debug)]
pub struct Stream {
    zero: Instant,
    account: Arc<Account>,
    threads: Vec<JoinHandle<()>>,
}

impl Stream {
    /// Starts `width` threads, each of which makes a request every `pace`, or as often as they are answered.
    pub fn start(
        zero: Instant,
        width: usize,
        pace: Duration,
        request: impl Fn(u64) -> Result<()> + Send + Sync + 'static,
    ) -> Self {
        let account = Arc::new(Account::default());
        let request = Arc::new(request);
        let threads = (0..width.max(1)).map(|_| {
            let (account, request) = (account.clone(), request.clone());
            thread::spawn(move || {
                while !account.is_closed() {
                    let began = Instant::now();
                    let open = account.open(began - zero);
                    let answer = request(open.key.1);
                    let took = began.elapsed();
                    let shot = Shot { at: began - zero, took, ok: answer.is_ok(), opened: None, port: 0 };
                    account.note(shot, answer.err().map(|error| format!("{error:#}")).as_deref());
                    drop(open);
                    thread::sleep(pace.saturating_sub(took));
                }
            })
        });
        let threads = threads.collect();
        Self { zero, account, threads }
    }

    /// Starts requests over HTTP.
    pub fn requests(zero: Instant, aim: Aim) -> Self {
        let account = Arc::new(Account::default());
        let kept = account.clone();
        Self { zero, account, threads: vec![thread::spawn(move || aim.shoot(zero, &kept))] }
    }

    /// What was answered or given up until now.
    pub fn shots(&self) -> Vec<Shot> {
        held(&self.account.shots).clone()
    }

    /// Why requests failed, and how many for each reason.
    pub fn errors(&self) -> BTreeMap<String, usize> {
        held(&self.account.errors).clone()
    }

    /// Waits until every request that was sent until now has come to an end.
    ///
    /// # Errors
    /// If one does not, although each has a time within which it fails.
    pub fn settled(&self) -> Result<()> {
        self.account.settled(self.zero.elapsed())
    }

    /// Waits until so many requests that were sent from now on have succeeded.
    ///
    /// # Errors
    /// If they do not within `bound`, with the last reason: a drill without load proves nothing.
    pub fn flows(&self, count: usize, bound: Duration) -> Result<()> {
        let since = self.zero.elapsed();
        let end = Instant::now() + bound;
        while held(&self.account.shots).iter().filter(|shot| shot.ok && shot.at >= since).count() < count {
            ensure!(
                Instant::now() < end,
                "fewer than {count} requests succeeded within {} s: {:?}",
                bound.as_secs(),
                self.errors()
            );
            thread::sleep(Duration::from_millis(10));
        }
        Ok(())
    }

    /// Ends it once the requests under way have ended.
    pub fn end(&mut self) {
        self.account.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            // A request that panicked is missing from the account, which is what the account is for.
            let _ = thread.join();
        }
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.end();
    }
}

/// `GET /` over a connection of its own.
pub fn get(address: IpAddr, port: u16) -> Result<String> {
    get_path(address, port, "/")
}

/// The same for any path.
pub fn get_path(address: IpAddr, port: u16, path: &str) -> Result<String> {
    let mut stream =
        TcpStream::connect_timeout(&SocketAddr::from((address, port)), REQUEST).context("cannot connect")?;
    stream.set_read_timeout(Some(REQUEST))?;
    stream.set_write_timeout(Some(REQUEST))?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: drill\r\nConnection: close\r\n\r\n")
        .context("cannot ask")?;
    let mut answer = String::new();
    stream.take(1 << 20).read_to_string(&mut answer).context("the answer breaks off")?;
    ensure!(answer.starts_with("HTTP/1.1 200"), "it answers {}", answer.lines().next().unwrap_or("nothing"));
    Ok(answer)
}

/// The longest time from `since` on in which nothing succeeded.
pub fn gap(shots: &[Shot], since: Duration) -> Duration {
    let mut ends: Vec<Duration> = shots
        .iter()
        .filter(|shot| shot.ok)
        .map(|shot| shot.at + shot.took)
        .filter(|end| *end >= since)
        .collect();
    ends.push(since);
    ends.sort();
    ends.windows(2).map(|two| two[1] - two[0]).max().unwrap_or_default()
}

/// What was written and what was read of a set that only grows.
#[derive(Debug, Default)]
pub struct History {
    writes: Mutex<BTreeMap<String, Written>>,
    reads: Mutex<Vec<Seen>>,
}

#[derive(Debug, Clone, Copy)]
struct Written {
    begun: Instant,
    /// When it was acknowledged; whether one that was not has happened nobody knows.
    acknowledged: Option<Instant>,
}

#[derive(Debug)]
struct Seen {
    begun: Instant,
    ended: Instant,
    names: BTreeSet<String>,
}

impl History {
    /// Writes a name, and notes when that began and whether it was acknowledged.
    pub fn write(&self, name: &str, write: impl FnOnce() -> Result<()>) -> Result<()> {
        self.asked(name);
        write()?;
        self.acknowledged(name);
        Ok(())
    }

    /// A name is about to be written.
    pub fn asked(&self, name: &str) {
        held(&self.writes).insert(name.to_owned(), Written { begun: Instant::now(), acknowledged: None });
    }

    /// That it is written was said just now.
    pub fn acknowledged(&self, name: &str) {
        if let Some(write) = held(&self.writes).get_mut(name) {
            write.acknowledged = Some(Instant::now());
        }
    }

    /// Reads all names.
    pub fn read(&self, read: impl FnOnce() -> Result<BTreeSet<String>>) -> Result<()> {
        let begun = Instant::now();
        let names = read()?;
        self.seen(begun, names);
        Ok(())
    }

    /// These names were answered just now to a read that began then.
    pub fn seen(&self, begun: Instant, names: BTreeSet<String>) {
        held(&self.reads).push(Seen { begun, ended: Instant::now(), names });
    }

    /// The name whose write was acknowledged last.
    pub fn newest(&self) -> Option<String> {
        let writes = held(&self.writes);
        let acknowledged = writes.iter().filter_map(|(name, write)| Some((write.acknowledged?, name)));
        acknowledged.max().map(|(_, name)| name.clone())
    }

    /// How many writes were acknowledged, and how many reads answered.
    pub fn counts(&self) -> (usize, usize) {
        let acknowledged = held(&self.writes).values().filter(|write| write.acknowledged.is_some()).count();
        (acknowledged, held(&self.reads).len())
    }

    /// What was acknowledged and is not in `last`, the set as it is in the end.
    pub fn lost(&self, last: &BTreeSet<String>) -> Vec<String> {
        let writes = held(&self.writes);
        let lost =
            writes.iter().filter(|(name, write)| write.acknowledged.is_some() && !last.contains(*name));
        lost.map(|(name, _)| name.clone()).collect()
    }

    /// Where the history is not linearizable. For a set that only grows, in which each name is written once,
    /// this is exact: a read misses nothing that was acknowledged before it, holds nothing that was not asked
    /// for, and of any two reads one holds the other, the later one the earlier.
    pub fn violations(&self) -> Vec<String> {
        let (writes, reads) = (held(&self.writes), held(&self.reads));
        let mut found = Vec::new();
        for read in reads.iter() {
            for (name, write) in writes.iter() {
                let had = read.names.contains(name);
                if !had && write.acknowledged.is_some_and(|at| at < read.begun) {
                    found.push(format!("a read misses {name}, acknowledged before it"));
                }
                if had && write.begun > read.ended {
                    found.push(format!("a read holds {name} before it was asked for"));
                }
            }
            if let Some(name) = read.names.iter().find(|name| !writes.contains_key(*name)) {
                found.push(format!("a read holds {name}, which nobody asked for"));
            }
        }
        let mut ordered: Vec<&Seen> = reads.iter().collect();
        ordered.sort_by_key(|read| read.names.len());
        for two in ordered.windows(2) {
            if !two[0].names.is_subset(&two[1].names) {
                found.push("two reads each hold what the other misses".to_owned());
            } else if two[0].names.len() < two[1].names.len() && two[1].ended < two[0].begun {
                found.push("a later read holds less than an earlier one".to_owned());
            }
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(names: &[&str]) -> BTreeSet<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    fn written(names: &[&str]) -> History {
        let history = History::default();
        for name in names {
            history.write(name, || Ok(())).unwrap();
        }
        history
    }

    #[test]
    fn what_was_acknowledged_must_stay_and_be_read() {
        let history = written(&["a", "b"]);
        assert_eq!(history.lost(&set(&["a"])), ["b"]);
        history.read(|| Ok(set(&["a", "b"]))).unwrap();
        assert!(history.violations().is_empty());
        history.read(|| Ok(set(&["a"]))).unwrap();
        assert!(history.violations().iter().any(|words| words.contains("misses b")));
    }

    #[test]
    fn what_was_never_acknowledged_may_be_there_or_not() {
        let history = History::default();
        let failed = history.write("a", || anyhow::bail!("no answer"));
        assert!(failed.is_err() && history.lost(&set(&[])).is_empty());
        history.read(|| Ok(set(&[]))).unwrap();
        history.read(|| Ok(set(&["a"]))).unwrap();
        assert!(history.violations().is_empty());
        history.read(|| Ok(set(&[]))).unwrap();
        assert!(!history.violations().is_empty(), "it was there, and is gone");
    }

    #[test]
    fn a_phantom_and_a_fork_are_seen() {
        let history = History::default();
        history.read(|| Ok(set(&["x"]))).unwrap();
        assert!(history.violations()[0].contains("nobody asked for"));

        let fork = History::default();
        for name in ["a", "b"] {
            let _ = fork.write(name, || anyhow::bail!("no answer"));
        }
        fork.read(|| Ok(set(&["a"]))).unwrap();
        fork.read(|| Ok(set(&["b"]))).unwrap();
        assert!(fork.violations()[0].contains("what the other misses"));
    }

    #[test]
    fn what_is_open_is_waited_for_and_what_comes_after_is_not() {
        let (account, at) = (Arc::new(Account::default()), Duration::from_millis);
        let (early, late) = (account.open(at(10)), account.open(at(30)));
        let waits = account.clone();
        let waiting = thread::spawn(move || waits.settled(at(20)));
        let shot = Shot { at: at(10), took: at(1), ok: false, opened: None, port: 0 };
        account.note(shot, None);
        drop(early);
        waiting.join().unwrap().unwrap();
        assert!(!held(&account.open).is_empty());
        drop(late);
        account.settled(at(40)).unwrap();
    }

    #[test]
    fn a_gap_is_the_longest_time_without_success() {
        let shot = |at, took, ok| Shot {
            at: Duration::from_millis(at),
            took: Duration::from_millis(took),
            ok,
            opened: None,
            port: 0,
        };
        let shots = [shot(0, 5, true), shot(100, 5, true), shot(200, 400, false), shot(700, 5, true)];
        assert_eq!(gap(&shots, Duration::from_millis(50)), Duration::from_millis(600));
        assert_eq!(gap(&shots, Duration::from_millis(650)), Duration::from_millis(55));
    }
}
