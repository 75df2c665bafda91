//! What segments are written to: a file, or in a simulation a file that may lose what was not synced.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

/// How the files of a log are written.
#[derive(Clone, Debug, Default)]
pub(crate) struct Media {
    #[cfg(feature = "sim")]
    pub(crate) sim: crate::sim::Sim,
}

/// An open file.
pub(crate) struct Medium {
    file: Arc<File>,
    #[cfg(feature = "sim")]
    disk: Option<crate::sim::Disk>,
}

impl Medium {
    pub(crate) fn new(file: File, media: &Media) -> Self {
        #[cfg(not(feature = "sim"))]
        let _ = media;
        Self {
            file: Arc::new(file),
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
        #[cfg(feature = "sim")]
        if let Some(disk) = &self.disk {
            return disk.sync(&self.file);
        }
        self.file.sync_data()
    }
}
