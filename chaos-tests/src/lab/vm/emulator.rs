//! The emulator of one machine: KVM where it works, else in software; and what its console shows.

use std::{
    fs::File,
    io::{BufReader, Write},
    ops::ControlFlow,
    os::fd::{AsRawFd, OwnedFd},
    path::Path,
    process::{Child, Command, Stdio},
    sync::mpsc::{self, RecvTimeoutError},
    time::Instant,
};

use anyhow::{Context, Result, bail};
use rustix::io::{FdFlags, fcntl_setfd};

use super::{CONSOLE, DISK_FILE, NO_KVM, image_for};
use crate::vm::{
    Kernel,
    qemu::{self, KVM_PATIENCE},
};

/// Where the emulator takes orders, inside the case.
pub(super) const MONITOR: &str = "/run/lab/monitor.sock";
/// What the machine is told, in its case's directory.
pub(super) const FACTS: &str = "/run/lab/facts";
/// The machine's disk, by the name under which it can be slowed down.
pub(super) const DISK: &str = "state";

/// No more than so much of a console is kept, in bytes.
const CONSOLE_MAX: u64 = 16 << 20;

/// What a machine is made of.
pub(super) struct Parts<'a> {
    /// The lab's directory.
    pub lab: &'a Path,
    /// The node's own.
    pub own: &'a Path,
    pub memory_mib: u32,
    /// The last byte of its hardware address.
    pub number: u8,
    pub cable: OwnedFd,
}

impl Parts<'_> {
    /// Runs the machine until its emulator ends; `heard` is told each line of the console, and whether the processor is
    /// KVM's, and may break off.
    pub fn run(&self, heard: &mut dyn FnMut(&str, bool) -> ControlFlow<()>) -> Result<()> {
        let note = self.lab.join(NO_KVM);
        if qemu::has_kvm() && !note.exists() {
            if self.attempt(true, heard)? {
                return Ok(());
            }
            // The next one need not wait for it.
            File::create(&note).with_context(|| format!("cannot write {}", note.display()))?;
        }
        match self.attempt(false, heard)? {
            true => Ok(()),
            false => bail!("the emulator ended before the kernel ran"),
        }
    }

    /// Returns whether the kernel came as far as its first process.
    fn attempt(
        &self,
        accelerated: bool,
        heard: &mut dyn FnMut(&str, bool) -> ControlFlow<()>,
    ) -> Result<bool> {
        let (mut child, lines) = self.start(accelerated)?;
        let path = self.own.join(CONSOLE);
        let log = File::options().create(true).append(true).open(&path);
        let mut log = log.with_context(|| format!("cannot open {}", path.display()))?;
        let mut written = log.metadata().map_or(0, |metadata| metadata.len());
        let mut is_up = false;
        let end = Instant::now() + KVM_PATIENCE;
        loop {
            let line = if accelerated && !is_up {
                lines.recv_timeout(end.saturating_duration_since(Instant::now()))
            } else {
                lines.recv().map_err(|_| RecvTimeoutError::Disconnected)
            };
            let Ok(line) = line else { break };
            is_up |= line == qemu::UP;
            if written < CONSOLE_MAX {
                written += line.len() as u64 + 1;
                // A full disk costs what the console said, and nothing else.
                let _ = writeln!(log, "{line}");
            }
            if heard(&line, accelerated).is_break() {
                break;
            }
        }
        // It may have ended by itself.
        let _ = child.kill();
        child.wait().context("cannot wait for QEMU")?;
        Ok(is_up)
    }

    fn start(&self, accelerated: bool) -> Result<(Child, mpsc::Receiver<String>)> {
        let kernel = Kernel::find()?;
        let (reader, writer) = std::io::pipe().context("cannot make a pipe")?;
        fcntl_setfd(&self.cable, FdFlags::empty()).context("cannot hand the cable on")?;
        let mut command = Command::new(qemu::PROGRAM);
        command
            .args(["-nodefaults", "-no-user-config", "-display", "none", "-serial", "stdio"])
            .args(qemu::processor(accelerated))
            .args(["-m", &self.memory_mib.to_string(), "-smp", "1"])
            .args(["-qmp", &format!("unix:{MONITOR},server=on,wait=off")])
            .arg("-kernel")
            .arg(&kernel.image)
            .arg("-initrd")
            .arg(image_for(self.lab, &kernel));
        // What it guards against, other machines on one processor, an emulated one has not.
        let guards = if accelerated { "" } else { " mitigations=off" };
        command.args(["-append", &format!("console=ttyS0 quiet{guards}")]);
        // What the machine has flushed is on the disk of this one; what it has not may be lost with its memory.
        let disk = option(&self.own.join(DISK_FILE));
        command.args(["-drive", &format!("id={DISK},file={disk},format=raw,if=virtio,cache=writeback")]);
        command.args(["-drive", &format!("file={FACTS},format=raw,if=virtio,readonly=on")]);
        let cable = self.cable.as_raw_fd();
        command.args(["-netdev", &format!("tap,id=cable,fd={cable}")]);
        let address = format!("52:54:00:72:73:{:02x}", self.number);
        command.args(["-device", &format!("virtio-net-pci,netdev=cable,mac={address},romfile=")]);
        let log = option(&self.own.join("daemon.log"));
        command.args(["-chardev", &format!("file,id=log,path={log},append=on")]);
        command.args(["-device", "virtio-serial-pci", "-device", "virtserialport,chardev=log,name=log"]);
        let child = command
            .stdin(Stdio::null())
            .stdout(writer.try_clone().context("cannot share a pipe")?)
            .stderr(writer)
            .spawn()
            .with_context(|| format!("cannot run {}", qemu::PROGRAM))?;
        // It holds ends of the pipe, which would never be seen to end.
        drop(command);
        let (lines, heard) = mpsc::channel();
        std::thread::spawn(move || qemu::listen(BufReader::new(reader), &lines));
        Ok((child, heard))
    }
}

/// A comma in a name would begin another option, and is written twice.
fn option(path: &Path) -> String {
    path.display().to_string().replace(',', ",,")
}
