//! The image a machine boots from: an archive in the kernel's `newc` format.

use std::fs::File;
use std::io::{self, BufWriter, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use cpio::newc::{Builder, ModeFileType, trailer};

use super::{Kernel, Machine};

/// The command, its words separated by zero bytes.
pub(super) const COMMAND: &str = "/rswarm-vm-command";
/// The names of the files in [`MODULES`], a line each, in the order in which they are loaded.
pub(super) const ORDER: &str = "/rswarm-vm-modules";
/// Where modules lie.
pub(super) const MODULES: &str = "/modules";
/// What a disk needs.
pub(crate) const DISK_MODULES: [&str; 3] = ["virtio_pci", "virtio_blk", "ext4"];
/// Directories that are there, empty.
const DIRECTORIES: [&str; 8] = ["bin", "dev", "mnt", "modules", "proc", "run", "sys", "tmp"];

/// What an image holds.
pub(crate) struct Contents<'a> {
    pub kernel: &'a Kernel,
    /// Modules to be loaded, and by themselves what these depend on.
    pub modules: Vec<String>,
    /// Programs: their names there, and where they lie here.
    pub programs: Vec<(String, PathBuf)>,
    /// Symbolic links: their names, and what they point at.
    pub links: Vec<(&'static str, &'static str)>,
    /// Files, by their names, with what is in them.
    pub texts: Vec<(&'static str, String)>,
}

pub(super) fn write(machine: &Machine, path: &Path) -> Result<()> {
    let disk = machine.disk.iter().flat_map(|_| DISK_MODULES).map(str::to_owned);
    let own = machine.programs.iter().map(|(program, name)| (format!("bin/{name}"), program.clone()));
    let contents = Contents {
        kernel: &machine.kernel,
        modules: machine.modules.iter().cloned().chain(disk).collect(),
        programs: [("init".to_owned(), machine.init.clone())].into_iter().chain(own).collect(),
        links: Vec::new(),
        texts: vec![(COMMAND, machine.command.join("\0"))],
    };
    contents.write(path)
}

impl Contents<'_> {
    pub(crate) fn write(&self, path: &Path) -> Result<()> {
        let file = File::create(path).with_context(|| format!("cannot create {}", path.display()))?;
        let mut out = BufWriter::new(file);
        for name in DIRECTORIES {
            out = Builder::new(name)
                .mode(0o755)
                .set_mode_file_type(ModeFileType::Directory)
                .write(out, 0)
                .finish()?;
        }
        for (name, program) in &self.programs {
            out = copy(out, name, program)?;
        }
        for (name, target) in &self.links {
            out = bytes(out, name, ModeFileType::Symlink, target.as_bytes())?;
        }
        let mut order = String::new();
        for module in self.kernel.files_of(&self.modules)? {
            let name =
                module.file_name().and_then(|name| name.to_str()).context("a module's name is text")?;
            out = copy(out, &format!("modules/{name}"), &module)?;
            order = order + name + "\n";
        }
        out = bytes(out, ORDER, ModeFileType::Regular, order.as_bytes())?;
        for (name, text) in &self.texts {
            out = bytes(out, name, ModeFileType::Regular, text.as_bytes())?;
        }
        trailer(out)?.into_inner().map_err(|error| error.into_error())?;
        Ok(())
    }
}

fn copy<W: Write>(out: W, name: &str, path: &Path) -> Result<W> {
    let open = || -> Result<(File, u32, Vec<u8>)> {
        let mut file = File::open(path)?;
        let size = file.metadata()?.len();
        let mut head = vec![0; HEAD_LEN.min(usize::try_from(size)?)];
        file.read_exact(&mut head)?;
        file.seek(SeekFrom::Start(head.len() as u64))?;
        let loaded = without_symbols(&mut head).filter(|loaded| *loaded <= size).unwrap_or(size);
        Ok((file, loaded.try_into().context("it is larger than 4 GiB")?, head))
    };
    let (file, size, head) = open().with_context(|| format!("cannot read {}", path.display()))?;
    let mut entry = Builder::new(name).mode(0o755).set_mode_file_type(ModeFileType::Regular).write(out, size);
    io::copy(&mut head.as_slice().chain(file).take(size.into()), &mut entry)
        .with_context(|| format!("cannot copy {}", path.display()))?;
    Ok(entry.finish()?)
}

fn bytes<W: Write>(out: W, name: &str, kind: ModeFileType, content: &[u8]) -> Result<W> {
    let name = name.trim_start_matches('/');
    let size = content.len().try_into().context("too long a list")?;
    let mut entry = Builder::new(name).mode(0o644).set_mode_file_type(kind).write(out, size);
    entry.write_all(content)?;
    Ok(entry.finish()?)
}

/// So much of a program's beginning holds its headers.
const HEAD_LEN: usize = 4096;

/// How much of a program the kernel loads, by its headers; the rest is for debuggers, and would fill a small machine's
/// memory. The header then tells of no sections. `None`, and all is as it was, if it is no such program.
fn without_symbols(head: &mut [u8]) -> Option<u64> {
    const LOAD: u32 = 1;
    const EXECUTABLE: [u16; 2] = [2, 3];
    let number = |head: &[u8], at: usize, length: usize| -> Option<u64> {
        let bytes = head.get(at..at.checked_add(length)?)?;
        Some(bytes.iter().rev().fold(0, |sum, byte| sum << 8 | u64::from(*byte)))
    };
    // 64 bits, little-endian.
    if !head.starts_with(b"\x7fELF\x02\x01") || !EXECUTABLE.contains(&(number(head, 16, 2)? as u16)) {
        return None;
    }
    let (table, each, count) = (number(head, 32, 8)?, number(head, 54, 2)?, number(head, 56, 2)?);
    let mut end = table.checked_add(each.checked_mul(count)?)?.max(64);
    for index in 0..count {
        let at = usize::try_from(table.checked_add(index * each)?).ok()?;
        let (kind, offset, length) =
            (number(head, at, 4)?, number(head, at + 8, 8)?, number(head, at + 32, 8)?);
        if kind == u64::from(LOAD) {
            end = end.max(offset.checked_add(length)?);
        }
    }
    head[40..48].fill(0);
    head[60..64].fill(0);
    Some(end)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_without_its_symbols_still_runs() {
        let directory = tempfile::tempdir().expect("a directory");
        let own = std::env::current_exe().expect("a path");
        let mut bytes = std::fs::read(&own).expect("a program");
        let whole = bytes.len();
        let loaded = without_symbols(&mut bytes).expect("this is a program");
        bytes.truncate(loaded as usize);
        assert!(bytes.len() < whole, "{loaded} of {whole}");
        let copy = directory.path().join("copy");
        std::fs::write(&copy, &bytes).expect("a file");
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(&copy, mode).expect("a mode");
        assert!(std::process::Command::new(&copy).arg("--list").output().expect("it runs").status.success());
    }

    #[test]
    fn what_is_no_program_stays_as_it_is() {
        for text in [&b""[..], b"\x7fELF\x02\x01", b"#!/bin/sh\n", &[0xff; 200]] {
            let mut same = text.to_vec();
            assert_eq!(without_symbols(&mut same), None);
            assert_eq!(same, text);
        }
        let mut hostile = vec![0xff; 64];
        hostile[..6].copy_from_slice(b"\x7fELF\x02\x01");
        hostile[16..18].copy_from_slice(&[2, 0]);
        assert_eq!(without_symbols(&mut hostile), None);
    }
}
