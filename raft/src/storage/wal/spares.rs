//! Segments made ready before they are needed.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use super::super::medium::no_space;
use crate::disk::Gauge;

pub(super) const SPARE: &str = "next.spare";

/// How often it is looked whether there is room again.
const RETRY: Duration = Duration::from_secs(1);
/// How often whoever waits for room looks whether the log is being closed.
const LOOK: Duration = Duration::from_millis(100);

/// The next segment, made ready by a thread of its own: filled with zeros, synced, under the name [`SPARE`]. It stays
/// when the log is closed, so that a log can be opened again on a disk that is full by then.
pub(super) struct Spares {
    wanted: Option<Sender<()>>,
    ready: Receiver<io::Result<File>>,
    thread: Option<JoinHandle<()>>,
    closing: Arc<AtomicBool>,
}

impl Spares {
    /// Without room for the first one it is told at once, by [`Spares::take`]; for later ones it waits.
    pub(super) fn new(dir: &Path, segment_bytes: u64, gauge: Gauge) -> io::Result<Self> {
        let (wanted, wishes) = channel();
        let (spares, ready) = channel();
        let dir = dir.to_owned();
        let thread = std::thread::Builder::new()
            .name("raft-spare".into())
            .spawn(move || prepare_all(&dir, segment_bytes, &gauge, &wishes, &spares))?;
        let closing = Arc::default();
        let spares = Self { wanted: Some(wanted), ready, thread: Some(thread), closing };
        spares.prepare();
        Ok(spares)
    }

    /// When set, nobody waits for room any more.
    pub(super) fn closing(&self) -> Arc<AtomicBool> {
        self.closing.clone()
    }

    /// Asks for a spare; the last one must have been taken and renamed.
    pub(super) fn prepare(&self) {
        // If the thread is gone, `take` says so.
        let _ = self.wanted.as_ref().map(|wanted| wanted.send(()));
    }

    pub(super) fn take(&self) -> io::Result<File> {
        loop {
            match self.ready.recv_timeout(LOOK) {
                Ok(spare) => return spare,
                Err(RecvTimeoutError::Timeout) if self.closing.load(Ordering::Relaxed) => {
                    return Err(io::ErrorKind::StorageFull.into());
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => {
                    return Err(io::Error::other("nobody prepares segments any more"));
                }
            }
        }
    }
}

impl Drop for Spares {
    fn drop(&mut self) {
        drop(self.wanted.take());
        if self.thread.take().is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("the preparer of segments panicked");
        }
    }
}

fn prepare_all(
    dir: &Path,
    segment_bytes: u64,
    gauge: &Gauge,
    wishes: &Receiver<()>,
    spares: &Sender<io::Result<File>>,
) {
    let path: PathBuf = dir.join(SPARE);
    let mut patient = false;
    while wishes.recv().is_ok() {
        let spare = loop {
            match prepare_spare(&path, segment_bytes) {
                Err(error) if patient && no_space(&error) => {
                    gauge.fill(dir, segment_bytes);
                    // Nobody wishes for another before this one is taken: either time passes, or it is over.
                    if let Err(RecvTimeoutError::Disconnected) = wishes.recv_timeout(RETRY) {
                        return;
                    }
                }
                made => break made,
            }
        };
        patient = true;
        gauge.clear();
        if spares.send(spare).is_err() {
            return;
        }
    }
}

/// One that lies there already is made of zeros again, which takes no room.
fn prepare_spare(path: &Path, segment_bytes: u64) -> io::Result<File> {
    let mut options = OpenOptions::new();
    let file = options.create(true).truncate(false).read(true).write(true).mode(0o600).open(path)?;
    let fill = || -> io::Result<()> {
        let zeros = vec![0; 256 << 10];
        let mut offset = 0;
        while offset < segment_bytes {
            let len = (segment_bytes - offset).min(zeros.len() as u64);
            file.write_all_at(&zeros[..len as usize], offset)?;
            offset += len;
        }
        file.set_len(segment_bytes)?;
        file.sync_all()
    };
    if let Err(error) = fill() {
        // What there is of it is of use to others.
        drop(std::fs::remove_file(path));
        return Err(error);
    }
    Ok(file)
}
