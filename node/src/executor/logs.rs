//! Reading what a container has written: across rotated files, from the end, and on as it grows.

use std::collections::VecDeque;
use std::fs::{File, Metadata};
use std::io::{self, BufRead, BufReader, Seek, SeekFrom};
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::thread;

use flate2::bufread::GzDecoder;
use rswarm_shim::protocol::{COMPRESSED, EXIT_FILE, LOG_FILE};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fs::inotify;
use tokio::sync::mpsc;

/// Longer lines than a shim writes are damage, and are cut.
const LINE_MAX: u64 = 64 * 1024;
/// Entries read ahead of the reader.
const AHEAD_MAX: usize = 256;
/// How soon a follower notices that nobody reads any more, in seconds.
const IDLE_MAX_S: i64 = 1;

/// Which of the two streams a container wrote to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogStream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

/// A line, or a part of a very long one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogEntry {
    /// RFC 3339 with nanoseconds, in UTC; these sort as text.
    pub timestamp: String,
    /// Where it was written.
    pub stream: LogStream,
    /// Without the newline.
    pub text: Vec<u8>,
    /// The line goes on in the next entry of this stream.
    pub partial: bool,
}

/// Which entries are wanted.
#[derive(Clone, Debug)]
pub struct LogQuery {
    /// Go on with what is written later, until the container has ended.
    pub follow: bool,
    /// At most this many of the lines that exist now, the last ones.
    pub tail: Option<usize>,
    /// Nothing before this timestamp, as in [`LogEntry::timestamp`].
    pub since: Option<String>,
    /// Nothing after this timestamp.
    pub until: Option<String>,
    /// Standard output is wanted.
    pub stdout: bool,
    /// Standard error is wanted.
    pub stderr: bool,
}

impl Default for LogQuery {
    fn default() -> Self {
        Self { follow: false, tail: None, since: None, until: None, stdout: true, stderr: true }
    }
}

impl LogQuery {
    fn wants(&self, entry: &LogEntry) -> bool {
        let stream = match entry.stream {
            LogStream::Stdout => self.stdout,
            LogStream::Stderr => self.stderr,
        };
        let early = self.since.as_ref().is_some_and(|since| entry.timestamp < *since);
        let late = self.until.as_ref().is_some_and(|until| entry.timestamp > *until);
        stream && !early && !late
    }
}

/// A container's entries, in the order in which they were written.
pub struct Logs(mpsc::Receiver<LogEntry>);

impl Logs {
    /// The next entry. None: there are no more, and with `follow` there will be none.
    pub async fn next(&mut self) -> Option<LogEntry> {
        self.0.recv().await
    }
}

/// Starts reading in a thread of its own, which ends when there is no more or when nobody listens.
pub(super) fn open(directory: &Path, query: LogQuery) -> io::Result<Logs> {
    let watch = if query.follow { Some(watch(directory)?) } else { None };
    let (sender, receiver) = mpsc::channel(AHEAD_MAX);
    let reader = Reader { path: directory.join(LOG_FILE), exit: directory.join(EXIT_FILE), query, sender };
    thread::Builder::new().name("log-reader".into()).spawn(move || {
        // Nobody listening any more is the ordinary end; a broken disk ends the log early, as it must.
        let _ = reader.run(watch);
    })?;
    Ok(Logs(receiver))
}

fn watch(directory: &Path) -> io::Result<OwnedFd> {
    let watch = inotify::init(inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK)?;
    let events = inotify::WatchFlags::MODIFY | inotify::WatchFlags::CREATE | inotify::WatchFlags::MOVED_TO;
    inotify::add_watch(&watch, directory, events | inotify::WatchFlags::DELETE_SELF)?;
    Ok(watch)
}

struct Reader {
    path: PathBuf,
    exit: PathBuf,
    query: LogQuery,
    sender: mpsc::Sender<LogEntry>,
}

/// The reader of these logs has gone away.
struct Unheard;

impl Reader {
    fn run(self, watch: Option<OwnedFd>) -> io::Result<()> {
        // With the container ended before the files were read, they are all there will be.
        let mut ended = self.exit.exists();
        let mut current = None;
        let mut waiting = VecDeque::new();
        let mut lines = 0;
        for mut file in files(&self.path) {
            while let Some(entry) = file.next()? {
                if !self.query.wants(&entry) {
                    continue;
                }
                let Some(tail) = self.query.tail else {
                    if self.send(entry).is_err() {
                        return Ok(());
                    }
                    continue;
                };
                lines += usize::from(!entry.partial);
                waiting.push_back(entry);
                while lines > tail {
                    let gone = waiting.pop_front();
                    lines -= usize::from(gone.is_some_and(|entry| !entry.partial));
                }
            }
            current = Some(file);
        }
        for entry in waiting {
            if self.send(entry).is_err() {
                return Ok(());
            }
        }
        let Some(watch) = watch else {
            return Ok(());
        };
        loop {
            if self.drain(&mut current)?.is_err() || ended {
                return Ok(());
            }
            // The record is written after the last line, so what is read after seeing it is all.
            ended = self.exit.exists() || !self.path.parent().is_some_and(Path::exists);
            if !ended {
                self.sleep(&watch)?;
            }
            if self.sender.is_closed() {
                return Ok(());
            }
        }
    }

    /// Passes on what has been written since, through as many rotations as there were.
    fn drain(&self, current: &mut Option<Open>) -> io::Result<std::result::Result<(), Unheard>> {
        loop {
            let files = files(&self.path);
            let known = current.as_ref().and_then(|known| files.iter().position(|file| file.is(known)));
            if let Some(file) = current {
                while let Some(entry) = file.next()? {
                    if self.query.wants(&entry) && self.send(entry).is_err() {
                        return Ok(Err(Unheard));
                    }
                }
            }
            // The files were listed before the old one was read to its end, so nothing can have been added to it
            // that was not read; the one after it is next, or the oldest if it has been rotated away.
            let next = known.map_or(0, |position| position + 1);
            let Some(file) = files.into_iter().nth(next) else {
                return Ok(Ok(()));
            };
            *current = Some(file);
        }
    }

    fn send(&self, entry: LogEntry) -> std::result::Result<(), Unheard> {
        self.sender.blocking_send(entry).map_err(|_| Unheard)
    }

    fn sleep(&self, watch: &OwnedFd) -> io::Result<()> {
        let mut watched = [PollFd::new(watch, PollFlags::IN)];
        match rustix::event::poll(&mut watched, Some(&Timespec { tv_sec: IDLE_MAX_S, tv_nsec: 0 })) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        // What the events say does not matter; that there were some does.
        let mut events = [0_u8; 4096];
        while rustix::io::read(watch, &mut events).is_ok_and(|count| count > 0) {}
        Ok(())
    }
}

/// The log's files, oldest first, opened so that a rotation cannot take them away.
fn files(path: &Path) -> Vec<Open> {
    let mut files = Vec::new();
    // The current one first: one that is rotated or compressed meanwhile is then seen twice rather than never.
    files.extend(Open::plain(path));
    for index in 1.. {
        let numbered = |end: &str| {
            let mut name = path.as_os_str().to_owned();
            name.push(format!(".{index}{end}"));
            PathBuf::from(name)
        };
        match Open::plain(&numbered("")).or_else(|_| Open::compressed(&numbered(COMPRESSED))) {
            Ok(file) => files.push(file),
            Err(_) => break,
        }
    }
    let mut once: Vec<Open> = Vec::with_capacity(files.len());
    for file in files.into_iter().rev() {
        if !once.iter().any(|known| known.is(&file)) {
            once.push(file);
        }
    }
    once
}

struct Open {
    reader: Reading,
    made_of: Origin,
}

/// The file that was written: this one, or that which a compressed one was made of, by its inode and when it was last
/// modified. The number alone may belong to a newer file once the old one is gone.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Origin {
    inode: u64,
    modified: (i64, i64),
}

impl Origin {
    fn of(data: &Metadata) -> Self {
        Self { inode: data.ino(), modified: (data.mtime(), data.mtime_nsec()) }
    }

    /// Reads what the shim wrote in the header.
    fn parse(comment: &[u8]) -> Option<Self> {
        let mut words = str::from_utf8(comment).ok()?.split(' ');
        let inode = words.next()?.parse().ok()?;
        Some(Self { inode, modified: (words.next()?.parse().ok()?, words.next()?.parse().ok()?) })
    }
}

enum Reading {
    Plain(BufReader<File>),
    Compressed(Box<BufReader<GzDecoder<BufReader<File>>>>),
}

impl Open {
    fn plain(path: &Path) -> io::Result<Self> {
        let file = File::open(path)?;
        Ok(Self { made_of: Origin::of(&file.metadata()?), reader: Reading::Plain(BufReader::new(file)) })
    }

    fn compressed(path: &Path) -> io::Result<Self> {
        let file = File::open(path)?;
        let own = Origin::of(&file.metadata()?);
        let mut decoder = GzDecoder::new(BufReader::new(file));
        // The header is read with the first bytes.
        let _ = io::Read::read(&mut decoder, &mut [])?;
        let made_of = decoder.header().and_then(|header| header.comment()).and_then(Origin::parse);
        let reader = Reading::Compressed(Box::new(BufReader::new(decoder)));
        Ok(Self { made_of: made_of.unwrap_or(own), reader })
    }

    /// Whether both hold what was written to the same file.
    fn is(&self, other: &Self) -> bool {
        match (&self.reader, &other.reader) {
            // Both are open, so the number can be nobody else's; and one may be written to.
            (Reading::Plain(_), Reading::Plain(_)) => self.made_of.inode == other.made_of.inode,
            _ => self.origin() == other.origin(),
        }
    }

    fn origin(&self) -> Origin {
        match &self.reader {
            Reading::Plain(reader) => {
                reader.get_ref().metadata().map_or(self.made_of, |data| Origin::of(&data))
            }
            Reading::Compressed(_) => self.made_of,
        }
    }

    /// The next whole entry; damaged lines are left out.
    fn next(&mut self) -> io::Result<Option<LogEntry>> {
        loop {
            let mut line = Vec::new();
            let count = match &mut self.reader {
                Reading::Plain(reader) => io::Read::take(reader, LINE_MAX).read_until(b'\n', &mut line)?,
                Reading::Compressed(reader) => {
                    match io::Read::take(&mut **reader, LINE_MAX).read_until(b'\n', &mut line) {
                        Ok(count) => count,
                        // Damage ends the file early, and not the log.
                        Err(error) if error.kind() != io::ErrorKind::Interrupted => return Ok(None),
                        Err(error) => return Err(error),
                    }
                }
            };
            if line.pop_if(|last| *last == b'\n').is_none() {
                // An unfinished line is read again when it is finished; one that never ends is damage.
                if let Reading::Plain(reader) = &mut self.reader
                    && count > 0
                    && count < LINE_MAX as usize
                {
                    reader.seek(SeekFrom::Current(-(count as i64)))?;
                }
                if count < LINE_MAX as usize {
                    return Ok(None);
                }
                continue;
            }
            if let Some(entry) = parse(&line) {
                return Ok(Some(entry));
            }
        }
    }
}

fn parse(line: &[u8]) -> Option<LogEntry> {
    let mut parts = line.splitn(4, |byte| *byte == b' ');
    let timestamp = String::from_utf8(parts.next()?.to_vec()).ok()?;
    let stream = match parts.next()? {
        b"stdout" => LogStream::Stdout,
        b"stderr" => LogStream::Stderr,
        _ => return None,
    };
    let partial = match parts.next()? {
        b"F" => false,
        b"P" => true,
        _ => return None,
    };
    Some(LogEntry { timestamp, stream, text: parts.next()?.to_vec(), partial })
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::Write;

    use super::*;

    fn line(index: usize) -> String {
        let stream = if index.is_multiple_of(2) { "stdout" } else { "stderr" };
        format!("2026-01-01T00:00:{index:02}.000000000Z {stream} F line {index}\n")
    }

    fn texts(directory: &Path, query: LogQuery) -> Vec<String> {
        let mut logs = open(directory, query).unwrap();
        let mut texts = Vec::new();
        while let Some(entry) = logs.0.blocking_recv() {
            texts.push(String::from_utf8(entry.text).unwrap());
        }
        texts
    }

    fn rotated() -> tempfile::TempDir {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join("log.2"), line(0) + &line(1)).unwrap();
        fs::write(directory.path().join("log.1"), line(2) + "damage\n" + &line(3)).unwrap();
        fs::write(directory.path().join("log"), line(4) + &line(5) + "2026-01-01T00:00:06Z stdout F unfini")
            .unwrap();
        directory
    }

    #[test]
    fn rotated_files_are_read_in_order_without_damage() {
        let directory = rotated();
        let all: Vec<String> = (0..6).map(|index| format!("line {index}")).collect();
        assert_eq!(texts(directory.path(), LogQuery::default()), all);
    }

    #[test]
    fn compressed_files_are_read_too_and_known_by_what_they_were_made_from() {
        let directory = rotated();
        let path = directory.path();
        let made_of = Origin::of(&fs::metadata(path.join("log.2")).unwrap());
        let Origin { inode, modified: (seconds, nanoseconds) } = made_of;
        let comment = format!("{inode} {seconds} {nanoseconds}");
        let plain = fs::read(path.join("log.2")).unwrap();
        let to = File::create(path.join("log.2.gz")).unwrap();
        let mut out = flate2::GzBuilder::new().comment(comment).write(to, Default::default());
        out.write_all(&plain).unwrap();
        out.finish().unwrap();
        let all: Vec<String> = (0..6).map(|index| format!("line {index}")).collect();
        // While both are there, and when the first is gone.
        assert_eq!(texts(path, LogQuery::default()), all);
        assert_eq!(Open::compressed(&path.join("log.2.gz")).unwrap().made_of, made_of);
        fs::remove_file(path.join("log.2")).unwrap();
        assert_eq!(texts(path, LogQuery::default()), all);
        // A damaged one is read as far as it goes.
        let whole = fs::read(path.join("log.2.gz")).unwrap();
        fs::write(path.join("log.2.gz"), &whole[..whole.len() - 12]).unwrap();
        assert!(texts(path, LogQuery::default()).ends_with(&all[2..]));
        fs::write(path.join("log.2.gz"), "nothing of the kind").unwrap();
        assert_eq!(texts(path, LogQuery::default()), all[2..]);
    }

    #[test]
    fn a_file_with_the_number_of_one_that_is_gone_is_another() {
        let directory = rotated();
        let path = directory.path();
        let reused = fs::metadata(path.join("log.1")).unwrap().ino();
        let to = File::create(path.join("log.2.gz")).unwrap();
        let mut out = flate2::GzBuilder::new().comment(format!("{reused} 1 0")).write(to, Default::default());
        out.write_all(&fs::read(path.join("log.2")).unwrap()).unwrap();
        out.finish().unwrap();
        fs::remove_file(path.join("log.2")).unwrap();
        let all: Vec<String> = (0..6).map(|index| format!("line {index}")).collect();
        assert_eq!(texts(path, LogQuery::default()), all);
    }

    #[test]
    fn a_tail_reaches_into_older_files() {
        let directory = rotated();
        let query = LogQuery { tail: Some(3), ..LogQuery::default() };
        assert_eq!(texts(directory.path(), query), ["line 3", "line 4", "line 5"]);
        let query = LogQuery { tail: Some(0), ..LogQuery::default() };
        assert!(texts(directory.path(), query).is_empty());
        let query = LogQuery { tail: Some(2), stderr: false, ..LogQuery::default() };
        assert_eq!(texts(directory.path(), query), ["line 2", "line 4"]);
    }

    #[test]
    fn nothing_before_since_is_told() {
        let directory = rotated();
        let query = LogQuery { since: Some("2026-01-01T00:00:04".into()), ..LogQuery::default() };
        assert_eq!(texts(directory.path(), query), ["line 4", "line 5"]);
    }

    #[test]
    fn following_crosses_rotations_and_ends_with_the_container() {
        let directory = rotated();
        let path = directory.path();
        let mut logs = open(path, LogQuery { follow: true, tail: Some(1), ..LogQuery::default() }).unwrap();
        assert_eq!(logs.0.blocking_recv().unwrap().text, b"line 5");
        let mut log = fs::OpenOptions::new().append(true).open(path.join("log")).unwrap();
        log.write_all(b"shed\n").unwrap();
        assert_eq!(logs.0.blocking_recv().unwrap().text, b"unfinished");
        fs::rename(path.join("log"), path.join("log.1")).unwrap();
        fs::write(path.join("log"), line(7)).unwrap();
        assert_eq!(logs.0.blocking_recv().unwrap().text, b"line 7");
        fs::write(path.join("exit.json"), "{}").unwrap();
        assert!(logs.0.blocking_recv().is_none());
    }
}
