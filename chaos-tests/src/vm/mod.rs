//! Machines with a kernel of their own, under QEMU: for what depends on the kernel, such as a unified control group
//! hierarchy, or the kernel of another distribution.
//!
//! A machine has no network card, and a disk only if it is given one. It boots from an image in memory that holds
//! static programs and the modules they need, runs one command as root, and is switched off, or its power is cut. Its
//! first process is the program that asks for it: that program calls [`dispatch`] before anything else.

pub(crate) mod image;
pub(crate) mod init;
mod kernel;
pub(crate) mod qemu;

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result};

pub use kernel::{Kernel, NEEDED};

/// Where [`Kernel::find`] looks for `boot/` and `lib/modules/`, if not below `/`: a directory into which a package
/// with a kernel was unpacked.
pub const ROOT_VARIABLE: &str = "RSWARM_VM_ROOT";

/// Where a machine has its disk.
pub const DISK: &str = "/var/lib";

/// A machine that is to be.
#[derive(Debug, Clone)]
pub struct Machine {
    /// What it boots.
    pub kernel: Kernel,
    /// Its first process: a static program that calls [`dispatch`].
    pub init: PathBuf,
    /// Static programs in its `/bin`: where they lie here, and their names there.
    pub programs: Vec<(PathBuf, String)>,
    /// The modules it loads before the command, and by themselves what these depend on.
    pub modules: Vec<String>,
    /// The image of an ext4 file system that it has at [`DISK`]. What the machine has not flushed when its power is cut
    /// is lost.
    pub disk: Option<PathBuf>,
    /// What it runs, with `/bin` as its path.
    pub command: Vec<String>,
    /// Its memory in MiB, half of which its files may take.
    pub memory_mib: u32,
    /// Its processors.
    pub cpus: u32,
}

/// What became of the command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ran {
    /// Its exit code, 128 and the number if a signal ended it.
    pub code: i32,
    /// What the machine's console showed, from its firmware on.
    pub console: String,
    /// Whether the processor was KVM's, not emulated.
    pub accelerated: bool,
}

impl Machine {
    /// Boots the machine, runs the command, and switches it off. What the console shows is passed to `show` line by
    /// line.
    ///
    /// # Errors
    /// If QEMU is not there, the image cannot be made, or the command has not ended within `patience`.
    pub fn run(&self, patience: Duration, mut show: impl FnMut(&str)) -> Result<Ran> {
        let ran = self.run_until(patience, |line| {
            show(line);
            ControlFlow::Continue(())
        });
        ran?.context("the power was cut, which nobody asked for")
    }

    /// The same; the machine's power is cut when `watch` breaks off, and then nothing is returned.
    ///
    /// # Errors
    /// As those of [`Self::run`].
    pub fn run_until(
        &self,
        patience: Duration,
        mut watch: impl FnMut(&str) -> ControlFlow<()>,
    ) -> Result<Option<Ran>> {
        let directory = tempfile::tempdir().context("cannot make a directory for the machine's image")?;
        let path = directory.path().join("initrd");
        image::write(self, &path).context("cannot make the machine's image")?;
        qemu::run(self, &path, patience, &mut watch)
    }
}

/// Why no machine can be made here, if so: the words say what to install.
pub fn missing() -> Option<String> {
    let kernel = Kernel::find().err().map(|error| format!("{error:#}"));
    qemu::missing().or(kernel)
}

/// If this is the first process of a [`Machine`], does its work and never returns.
pub fn dispatch() -> Option<ExitCode> {
    let first = std::process::id() == 1 && Path::new(image::COMMAND).exists();
    first.then(init::main)
}
