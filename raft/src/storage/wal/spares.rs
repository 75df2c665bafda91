//! Segments made ready before they are needed.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;

pub(super) const SPARE: &str = "spare.tmp";

/// The next segment, made ready by a thread of its own: filled with zeros, synced, under the name [`SPARE`].
pub(super) struct Spares {
    wanted: Sender<()>,
    ready: Receiver<io::Result<File>>,
    thread: JoinHandle<()>,
}

impl Spares {
    pub(super) fn new(dir: &Path, segment_bytes: u64) -> io::Result<Self> {
        let (wanted, wishes) = channel();
        let (spares, ready) = channel();
        let path = dir.join(SPARE);
        let thread = std::thread::Builder::new().name("raft-spare".into()).spawn(move || {
            while wishes.recv().is_ok() {
                let spare = prepare_spare(&path, segment_bytes);
                if spares.send(spare).is_err() {
                    break;
                }
            }
            drop(std::fs::remove_file(&path));
        })?;
        let spares = Self { wanted, ready, thread };
        spares.prepare();
        Ok(spares)
    }

    /// Asks for a spare; the last one must have been taken and renamed.
    pub(super) fn prepare(&self) {
        // If the thread is gone, `take` says so.
        let _ = self.wanted.send(());
    }

    pub(super) fn take(&self) -> io::Result<File> {
        self.ready.recv().map_err(|_| io::Error::other("nobody prepares segments any more"))?
    }

    pub(super) fn finish(self) {
        let Self { wanted, ready, thread } = self;
        drop((wanted, ready));
        if thread.join().is_err() {
            tracing::error!("the preparer of segments panicked");
        }
    }
}

fn prepare_spare(path: &Path, segment_bytes: u64) -> io::Result<File> {
    let file = OpenOptions::new().create_new(true).read(true).write(true).mode(0o600).open(path)?;
    let zeros = vec![0; 256 << 10];
    let mut offset = 0;
    while offset < segment_bytes {
        let len = (segment_bytes - offset).min(zeros.len() as u64);
        file.write_all_at(&zeros[..len as usize], offset)?;
        offset += len;
    }
    file.sync_all()?;
    Ok(file)
}
