//! The emulator: KVM where it works, else in software.

use std::io::{BufRead, BufReader};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::{Machine, Ran};

/// How a machine tells the end of its command: this, and the exit code.
pub(super) const ENDED: &str = "rswarm-vm: the command ended with ";
/// How a machine tells that its first process runs.
pub(crate) const UP: &str = "rswarm-vm: up";
/// A machine that is not up after so long on KVM will not be: inside some virtual machines, KVM cannot run what
/// every processor can, and says so or stands still.
pub(crate) const KVM_PATIENCE: Duration = Duration::from_secs(20);
pub(crate) const PROGRAM: &str = "qemu-system-x86_64";

/// Why QEMU cannot be used here, if so.
pub(crate) fn missing() -> Option<String> {
    if !cfg!(target_arch = "x86_64") {
        return Some("machines under QEMU are made for x86-64 only".into());
    }
    find().is_none().then(|| format!("{PROGRAM} is not installed (Debian's package is qemu-system-x86)"))
}

fn find() -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|directory| directory.join(PROGRAM)).find(|program| program.is_file())
}

nix::ioctl_write_int_bad!(
    /// Makes a virtual machine, and returns its descriptor.
    kvm_create_vm,
    nix::request_code_none!(0xAE, 0x01)
);

/// Whether KVM makes virtual machines here. Whether these run is seen when one does.
pub(crate) fn has_kvm() -> bool {
    use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
    let Ok(kvm) = std::fs::File::options().read(true).write(true).open("/dev/kvm") else { return false };
    // SAFETY: the call takes a number, and returns a new descriptor that nobody else owns.
    match unsafe { kvm_create_vm(kvm.as_raw_fd(), 0) } {
        Ok(machine) => {
            // SAFETY: as above.
            drop(unsafe { OwnedFd::from_raw_fd(machine) });
            true
        }
        Err(_) => false,
    }
}

pub(super) fn run(
    machine: &Machine,
    image: &Path,
    patience: Duration,
    watch: &mut dyn FnMut(&str) -> ControlFlow<()>,
) -> Result<Option<Ran>> {
    if let Some(why) = missing() {
        bail!("{why}");
    }
    let deadline = Instant::now() + patience;
    let has_kvm = has_kvm();
    for accelerated in [true, false] {
        if accelerated && !has_kvm {
            continue;
        }
        let mut console = String::new();
        match boot(machine, image, accelerated, deadline, &mut console, watch)? {
            End::Command(code) => return Ok(Some(Ran { code, console, accelerated })),
            End::PowerCut => return Ok(None),
            End::Silence if accelerated && !console.contains(UP) => {
                let _ = watch("KVM does not work here: the processor is emulated");
            }
            End::Silence if Instant::now() >= deadline => {
                bail!(
                    "the machine has not come to an end within {patience:?}; its console:\n{}",
                    tail(&console)
                );
            }
            End::Silence => {
                bail!("the machine stopped before its command ended; its console:\n{}", tail(&console))
            }
        }
    }
    bail!("the machine could not be run")
}

/// The arguments for a processor of KVM's or an emulated one.
pub(crate) fn processor(accelerated: bool) -> [&'static str; 4] {
    if accelerated { ["-accel", "kvm", "-cpu", "host"] } else { ["-accel", "tcg", "-cpu", "max"] }
}

/// How a machine came to its end.
enum End {
    /// Its command ended, with this code.
    Command(i32),
    /// Whoever watched it cut its power.
    PowerCut,
    /// It stopped by itself, or time was up.
    Silence,
}

fn boot(
    machine: &Machine,
    image: &Path,
    accelerated: bool,
    deadline: Instant,
    console: &mut String,
    watch: &mut dyn FnMut(&str) -> ControlFlow<()>,
) -> Result<End> {
    let (reader, writer) = std::io::pipe().context("cannot make a pipe")?;
    let mut command = Command::new(PROGRAM);
    if let Some(disk) = &machine.disk {
        // A comma in a name would begin another option, and is written twice.
        let file = disk.display().to_string().replace(',', ",,");
        command.arg("-drive").arg(format!("file={file},format=raw,if=virtio"));
    }
    let child = command
        .args(["-nodefaults", "-no-user-config", "-no-reboot", "-display", "none", "-serial", "stdio"])
        .args(processor(accelerated))
        .args(["-m", &machine.memory_mib.to_string(), "-smp", &machine.cpus.to_string()])
        .args(["-append", "console=ttyS0 panic=-1 quiet"])
        .arg("-kernel")
        .arg(&machine.kernel.image)
        .arg("-initrd")
        .arg(image)
        .stdin(Stdio::null())
        .stdout(writer.try_clone().context("cannot share a pipe")?)
        .stderr(writer)
        .spawn()
        .with_context(|| format!("cannot run {PROGRAM}"))?;
    let child = Running(child);
    // It holds ends of the pipe, which would never be seen to end.
    drop(command);
    let kvm_deadline = deadline.min(Instant::now() + KVM_PATIENCE);
    let (lines, heard) = mpsc::channel();
    let listening = std::thread::spawn(move || listen(BufReader::new(reader), &lines));
    let mut end = End::Silence;
    loop {
        let until = if accelerated && !console.contains(UP) { kvm_deadline } else { deadline };
        match heard.recv_timeout(until.saturating_duration_since(Instant::now())) {
            Ok(line) => {
                console.push_str(&line);
                console.push('\n');
                if let Some(code) = line.strip_prefix(ENDED).and_then(|code| code.trim().parse().ok()) {
                    end = End::Command(code);
                }
                if watch(&line).is_break() {
                    end = End::PowerCut;
                    break;
                }
            }
            Err(RecvTimeoutError::Disconnected | RecvTimeoutError::Timeout) => break,
        }
    }
    drop(child);
    // The emulator is gone, and with it the other end of the pipe.
    let _ = listening.join();
    Ok(end)
}

/// Bytes of a line beyond this are another line: a machine gone mad fills no memory of ours.
const LINE_BYTES_MAX: u64 = 64 << 10;

pub(crate) fn listen(mut console: impl BufRead, lines: &mpsc::Sender<String>) {
    loop {
        let mut line = Vec::new();
        match std::io::Read::take(&mut console, LINE_BYTES_MAX).read_until(b'\n', &mut line) {
            Ok(0) | Err(_) => return,
            Ok(_) => {}
        }
        let text = String::from_utf8_lossy(&line).trim_end().to_owned();
        if lines.send(text).is_err() {
            return;
        }
    }
}

/// An emulator that ends with its owner.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

pub(crate) fn tail(console: &str) -> String {
    const LINES: usize = 30;
    let lines: Vec<&str> = console.lines().collect();
    lines[lines.len().saturating_sub(LINES)..].join("\n")
}
