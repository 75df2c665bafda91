//! The image a machine boots from: an archive in the kernel's `newc` format.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::Path;

use anyhow::{Context, Result};
use cpio::newc::{Builder, ModeFileType, trailer};

use super::Machine;

/// The command, its words separated by zero bytes.
pub(super) const COMMAND: &str = "/rswarm-vm-command";
/// The names of the files in [`MODULES`], a line each, in the order in which they are loaded.
pub(super) const ORDER: &str = "/rswarm-vm-modules";
/// Where modules lie.
pub(super) const MODULES: &str = "/modules";
/// What a disk needs.
const DISK_MODULES: [&str; 3] = ["virtio_pci", "virtio_blk", "ext4"];
/// Directories that are there, empty.
const DIRECTORIES: [&str; 8] = ["bin", "dev", "mnt", "modules", "proc", "run", "sys", "tmp"];

pub(super) fn write(machine: &Machine, path: &Path) -> Result<()> {
    let file = File::create(path).with_context(|| format!("cannot create {}", path.display()))?;
    let mut out = BufWriter::new(file);
    for name in DIRECTORIES {
        out = Builder::new(name)
            .mode(0o755)
            .set_mode_file_type(ModeFileType::Directory)
            .write(out, 0)
            .finish()?;
    }
    out = copy(out, "init", &machine.init)?;
    for (program, name) in &machine.programs {
        out = copy(out, &format!("bin/{name}"), program)?;
    }
    let mut order = String::new();
    let disk = machine.disk.iter().flat_map(|_| DISK_MODULES).map(str::to_owned);
    let modules: Vec<String> = machine.modules.iter().cloned().chain(disk).collect();
    for module in machine.kernel.files_of(&modules)? {
        let name = module.file_name().and_then(|name| name.to_str()).context("a module's name is text")?;
        out = copy(out, &format!("modules/{name}"), &module)?;
        order = order + name + "\n";
    }
    out = bytes(out, ORDER, order.as_bytes())?;
    out = bytes(out, COMMAND, machine.command.join("\0").as_bytes())?;
    trailer(out)?.into_inner().map_err(|error| error.into_error())?;
    Ok(())
}

fn copy<W: Write>(out: W, name: &str, path: &Path) -> Result<W> {
    let open = || -> Result<(File, u32)> {
        let file = File::open(path)?;
        let size = file.metadata()?.len().try_into().context("it is larger than 4 GiB")?;
        Ok((file, size))
    };
    let (mut file, size) = open().with_context(|| format!("cannot read {}", path.display()))?;
    let mut entry = Builder::new(name).mode(0o755).set_mode_file_type(ModeFileType::Regular).write(out, size);
    io::copy(&mut file, &mut entry).with_context(|| format!("cannot copy {}", path.display()))?;
    Ok(entry.finish()?)
}

fn bytes<W: Write>(out: W, name: &str, content: &[u8]) -> Result<W> {
    let name = name.trim_start_matches('/');
    let size = content.len().try_into().context("too long a list")?;
    let mut entry = Builder::new(name).mode(0o644).set_mode_file_type(ModeFileType::Regular).write(out, size);
    entry.write_all(content)?;
    Ok(entry.finish()?)
}
