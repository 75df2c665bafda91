//! A kernel to boot and its modules, as a distribution's package lays them out.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

/// The modules that a node with containers and an overlay needs, where they are not built in.
pub const NEEDED: [&str; 15] = [
    "overlay",
    "veth",
    "tun",
    "dummy",
    "nf_tables",
    "nft_nat",
    "nft_masq",
    "nft_ct",
    "nft_chain_nat",
    "nft_numgen",
    "nft_hash",
    "nft_redir",
    "nft_socket",
    "nft_reject_ipv4",
    "nf_conntrack_netlink",
];

/// A module larger than this is none.
const MODULE_BYTES_MAX: u64 = 64 << 20;

/// A kernel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kernel {
    /// Such as `6.1.0-56-cloud-amd64`.
    pub release: String,
    /// The bootable image.
    pub image: PathBuf,
    /// Where its modules lie.
    pub modules: PathBuf,
}

impl Kernel {
    /// The newest kernel below the directory that [`super::ROOT_VARIABLE`] names, or below `/`.
    ///
    /// # Errors
    /// If there is none that has modules.
    pub fn find() -> Result<Self> {
        let root = std::env::var_os(super::ROOT_VARIABLE).map_or_else(|| PathBuf::from("/"), PathBuf::from);
        Self::below(&root)
    }

    /// The newest kernel whose image is in `boot/` and whose modules are in `lib/modules/` of a directory.
    ///
    /// # Errors
    /// If there is none.
    pub fn below(root: &Path) -> Result<Self> {
        let names = fs::read_dir(root.join("boot")).into_iter().flatten().flatten();
        let releases =
            names.filter_map(|entry| entry.file_name().to_str()?.strip_prefix("vmlinuz-").map(str::to_owned));
        let modules = |release: &str| root.join("lib/modules").join(release).join("kernel");
        let newest = releases.filter(|release| modules(release).is_dir()).max_by_key(|release| {
            // Made for virtual machines, and so with what a machine here has.
            (release.contains("cloud"), numbers(release))
        });
        let Some(release) = newest else {
            bail!(
                "no kernel with modules lies below {}: install one (Debian's package is linux-image-cloud-amd64), or \
                 unpack such a package and name the directory in {}",
                root.display(),
                super::ROOT_VARIABLE
            );
        };
        let image = root.join("boot").join(format!("vmlinuz-{release}"));
        Ok(Self { modules: root.join("lib/modules").join(&release), image, release })
    }

    /// The files of these modules and of all that they depend on, each after those.
    ///
    /// # Errors
    /// If one is neither a file nor built in.
    pub fn files_of(&self, names: &[String]) -> Result<Vec<PathBuf>> {
        let mut index = BTreeMap::new();
        collect(&self.modules.join("kernel"), &mut index)?;
        let built_in: BTreeSet<String> = fs::read_to_string(self.modules.join("modules.builtin"))
            .unwrap_or_default()
            .lines()
            .filter_map(|line| module_name(Path::new(line)))
            .collect();
        let mut closure = Closure { kernel: self, index, built_in, order: Vec::new(), seen: BTreeSet::new() };
        names.iter().try_for_each(|name| closure.add(name))?;
        Ok(closure.order)
    }
}

struct Closure<'a> {
    kernel: &'a Kernel,
    index: BTreeMap<String, PathBuf>,
    built_in: BTreeSet<String>,
    order: Vec<PathBuf>,
    seen: BTreeSet<String>,
}

impl Closure<'_> {
    fn add(&mut self, name: &str) -> Result<()> {
        if self.built_in.contains(name) || !self.seen.insert(name.to_owned()) {
            return Ok(());
        }
        let Some(path) = self.index.get(name).cloned() else {
            bail!("the kernel {} has no module {name}, or a compressed one", self.kernel.release);
        };
        let size = fs::metadata(&path).with_context(|| format!("cannot look at {}", path.display()))?.len();
        anyhow::ensure!(size <= MODULE_BYTES_MAX, "{} is too large for a module", path.display());
        let bytes = fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
        depends(&bytes).iter().try_for_each(|name| self.add(name))?;
        self.order.push(path);
        Ok(())
    }
}

fn collect(directory: &Path, index: &mut BTreeMap<String, PathBuf>) -> Result<()> {
    let entries = fs::read_dir(directory).with_context(|| format!("cannot list {}", directory.display()))?;
    for entry in entries.flatten() {
        let path = entry.path();
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            collect(&path, index)?;
        } else if let Some(name) = module_name(&path) {
            index.insert(name, path);
        }
    }
    Ok(())
}

/// The kernel takes `-` and `_` in a module's name for the same.
fn module_name(path: &Path) -> Option<String> {
    Some(path.file_name()?.to_str()?.strip_suffix(".ko")?.replace('-', "_"))
}

/// What a module says in its section `.modinfo`: strings that end with a zero byte.
fn depends(module: &[u8]) -> Vec<String> {
    const KEY: &[u8] = b"\0depends=";
    let Some(at) = module.windows(KEY.len()).position(|window| window == KEY) else { return Vec::new() };
    let value = module[at + KEY.len()..].split(|byte| *byte == 0).next().unwrap_or_default();
    let value = String::from_utf8_lossy(value);
    value.split(',').filter(|name| !name.is_empty()).map(|name| name.replace('-', "_")).collect()
}

/// The numbers in a release, so that 6.10 comes after 6.9.
fn numbers(release: &str) -> Vec<u64> {
    release.split(|c: char| !c.is_ascii_digit()).filter_map(|digits| digits.parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn package(releases: &[&str], modules: &[(&str, &str)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().expect("a directory");
        fs::create_dir_all(root.path().join("boot")).expect("a directory");
        for release in releases {
            fs::write(root.path().join(format!("boot/vmlinuz-{release}")), "").expect("a file");
            let directory = root.path().join(format!("lib/modules/{release}/kernel/net"));
            fs::create_dir_all(&directory).expect("a directory");
            for (name, depends) in modules {
                let text = format!("ELF\0license=GPL\0depends={depends}\0name={name}\0");
                fs::write(directory.join(format!("{name}.ko")), text).expect("a file");
            }
            fs::write(directory.join("../../modules.builtin"), "kernel/fs/ext4.ko\n").expect("a file");
        }
        root
    }

    #[test]
    fn the_newest_kernel_is_taken() {
        let root = package(&["6.9.0-1-amd64", "6.10.0-1-amd64"], &[]);
        let kernel = Kernel::below(root.path()).expect("there are two");
        assert_eq!(kernel.release, "6.10.0-1-amd64");
        let none = package(&[], &[]);
        let error = Kernel::below(none.path()).expect_err("there is none").to_string();
        assert!(error.contains("linux-image-cloud-amd64"), "{error}");
    }

    #[test]
    fn a_module_comes_after_what_it_depends_on_and_only_once() {
        let modules = [("a-top", "b,c-one"), ("b", "c_one"), ("c-one", "")];
        let root = package(&["6.1"], &modules);
        let kernel = Kernel::below(root.path()).expect("there is one");
        let names = |wanted: &[&str]| -> Result<Vec<String>> {
            let files = kernel.files_of(&wanted.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>())?;
            Ok(files.iter().filter_map(|path| module_name(path)).collect())
        };
        assert_eq!(names(&["a_top", "b", "ext4"]).expect("all are there"), ["c_one", "b", "a_top"]);
        assert!(names(&["missing"]).is_err());
    }
}
