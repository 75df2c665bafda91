//! What segments are written to: a file, or in a simulation a file that may lose what was not synced.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use crate::disk::Gauge;

/// How the files of a log are written.
#[derive(Clone, Debug, Default)]
pub(crate) struct Media {
    /// Where it is noted how the disk fares.
    pub(crate) gauge: Gauge,
    #[cfg(feature = "sim")]
    pub(crate) sim: crate::sim::Sim,
}

/// An open file.
pub(crate) struct Medium {
    file: Arc<File>,
    gauge: Gauge,
    #[cfg(feature = "sim")]
    disk: Option<crate::sim::Disk>,
}

/// Whether it is room that was lacking.
pub(crate) fn no_space(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

impl Medium {
    pub(crate) fn new(file: File, media: &Media) -> Self {
        Self {
            file: Arc::new(file),
            gauge: media.gauge.clone(),
            #[cfg(feature = "sim")]
            disk: media.sim.disk.clone(),
        }
    }

    pub(crate) fn write_all_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        #[cfg(feature = "sim")]
        if let Some(disk) = &self.disk {
            return disk.write(&self.file, bytes, offset);
        }
        self.file.write_all_at(bytes, offset)
    }

    pub(crate) fn sync_data(&self) -> io::Result<()> {
        self.gauge.begin();
        let synced = self.sync_file();
        self.gauge.end();
        synced
    }

    fn sync_file(&self) -> io::Result<()> {
        #[cfg(feature = "sim")]
        if let Some(disk) = &self.disk {
            return disk.sync(&self.file);
        }
        self.file.sync_data()
    }
}
