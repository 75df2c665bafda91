//! The image `rswarm/demo`: this very program on an otherwise empty root.
//!
//! It needs neither registry nor network. The same program yields the same digests on every machine.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::MetadataExt;

use serde::{Deserialize, Serialize};
use serde_json::json;

use super::index::{Index, Layer, Record};
use super::{Digest, Doing, Error, Image, Reference, Result, Store, unpack};

/// The built-in image, as people type it.
pub const BUILTIN: &str = "rswarm/demo";

const REPOSITORY: &str = "docker.io/rswarm/demo";
/// Tags, and the VERSION that the program in them reports. They differ in nothing else.
const TAGS: [(&str, &str); 4] = [("latest", "1"), ("1", "1"), ("2", "2"), ("3", "3")];
const EPOCH: &str = "1970-01-01T00:00:00Z";
/// Directories, first of all those that things are mounted on.
const DIRECTORIES: [(&str, u32); 5] =
    [("dev", 0o755), ("etc", 0o755), ("proc", 0o755), ("sys", 0o755), ("tmp", 0o1777)];
/// Files; the empty ones are for the executor to mount its own over, also where the root is read-only.
const FILES: [(&str, &str); 6] = [
    ("etc/group", "root:x:0:\nnogroup:x:65534:\n"),
    ("etc/hostname", ""),
    ("etc/hosts", ""),
    ("etc/nsswitch.conf", "passwd: files\ngroup: files\nhosts: files dns\n"),
    ("etc/passwd", "root:x:0:0:root:/:/rswarm\nnobody:x:65534:65534:nobody:/:/rswarm\n"),
    ("etc/resolv.conf", ""),
];

/// Whether `reference` means the built-in image, in any version.
pub fn is_builtin(reference: &Reference) -> bool {
    reference.name() == REPOSITORY
}

/// Which file the layer was made of, so that it is not read again at each start.
#[derive(Serialize, Deserialize, Clone, PartialEq, Eq)]
pub(super) struct Stamp {
    program: [i64; 7],
    diff_id: Digest,
    size: u64,
}

impl Store {
    /// The built-in image in the version that `reference` names, made if need be.
    pub(super) fn builtin(&self, reference: &Reference) -> Result<Image> {
        let known = TAGS.iter().any(|(tag, _)| reference.tag() == Some(tag));
        if !known && reference.tag().is_some() {
            let tags = TAGS.map(|(tag, _)| tag).join(", ");
            return Err(Error::NotFound(format!(
                "{} (the built-in image has the tags {tags})",
                reference.familiar()
            )));
        }
        let _one = self.builtin_lock();
        let adding = self.adding()?;
        let program = File::open("/proc/self/exe").doing(|| "open this program".into())?;
        let fingerprint = fingerprint(&program).doing(|| "look at this program".into())?;
        let stamp = match self.index()?.builtin {
            Some(stamp) if stamp.program == fingerprint && self.layer_path(&stamp.diff_id).is_dir() => stamp,
            _ => {
                let (diff_id, size) = self.add_program(&program)?;
                Stamp { program: fingerprint, diff_id, size }
            }
        };
        let images = TAGS.map(|(tag, version)| self.add_version(&stamp, tag, version));
        let held = self.leases()?;
        self.update(|index| {
            let old: Vec<Reference> =
                index.references.keys().filter(|name| is_builtin(name)).cloned().collect();
            let mut stale: Vec<Digest> =
                old.iter().filter_map(|name| index.references.remove(name)).collect();
            for image in images {
                let (name, manifest, record) = image?;
                stale.retain(|digest| *digest != manifest);
                index.images.insert(manifest.clone(), record);
                index.references.insert(name, manifest);
            }
            // An older program's image stays only as long as containers run it.
            for digest in stale {
                let held = held.values().any(|image| *image == digest);
                index.forget(&digest, held);
            }
            index.builtin = Some(stamp);
            Ok(())
        })?;
        drop(adding);
        let _ = self.sweep()?;
        let index = self.index()?;
        match index.find(reference) {
            Some(digest) => Ok(index.image(&digest)),
            None => {
                Err(Error::NotFound(format!("{} (another version of rswarm made it)", reference.familiar())))
            }
        }
    }

    /// Whether the image was made of this program and not of an older one.
    pub(super) fn builtin_is_current(&self, index: &Index, image: &Digest) -> Result<bool> {
        let program = fs::metadata("/proc/self/exe").doing(|| "look at this program".into())?;
        let layers = index.images.get(image).map_or(&[][..], |record| &record.layers);
        Ok(index.builtin.as_ref().is_some_and(|stamp| {
            stamp.program == of(&program)
                && layers.iter().all(|layer| layer.diff_id == stamp.diff_id)
                && self.layer_path(&stamp.diff_id).is_dir()
        }))
    }

    /// Makes the layer: written as a tar on one side of a pipe, unpacked and hashed on the other.
    fn add_program(&self, program: &File) -> Result<(Digest, u64)> {
        let program = program.try_clone().doing(|| "open this program".into())?;
        let (reader, writer) = io::pipe().doing(|| "make a pipe".into())?;
        let writing = std::thread::spawn(move || write_layer(&program, writer));
        let diff_id = self.add_layer(|root| {
            unpack::layer(reader, root, self.inner.marks, &self.inner.limits)
                .doing(|| "make the built-in image".into())
        })?;
        let size = writing.join().map_err(|_| io::Error::other("its writer panicked")).flatten();
        Ok((diff_id, size.doing(|| "make the built-in image".into())?))
    }

    fn add_version(&self, stamp: &Stamp, tag: &str, version: &str) -> Result<(Reference, Digest, Record)> {
        let config = json!({
            "architecture": architecture(),
            "os": "linux",
            "created": EPOCH,
            "config": {
                "Entrypoint": ["/rswarm", "demo"],
                "Env": ["PATH=/", format!("VERSION={version}")],
                "WorkingDir": "/",
                "ExposedPorts": {"80/tcp": {}, "7/tcp": {}, "7/udp": {}},
                "Labels": {"org.opencontainers.image.title": BUILTIN, "org.opencontainers.image.version": version},
            },
            "rootfs": {"type": "layers", "diff_ids": [stamp.diff_id]},
        });
        let config = config.to_string().into_bytes();
        let config_digest = self.put_document(&config)?;
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": {
                "mediaType": "application/vnd.oci.image.config.v1+json",
                "digest": config_digest,
                "size": config.len(),
            },
            "layers": [{
                "mediaType": "application/vnd.oci.image.layer.v1.tar",
                "digest": stamp.diff_id,
                "size": stamp.size,
            }],
        });
        let manifest = self.put_document(manifest.to_string().as_bytes())?;
        let record = Record {
            config: config_digest,
            layers: vec![Layer { blob: None, diff_id: stamp.diff_id.clone() }],
            size: stamp.size + config.len() as u64,
            created: Some(EPOCH.into()),
            repo_digests: [].into(),
            condemned: false,
        };
        let name = format!("{REPOSITORY}:{tag}").parse()?;
        Ok((name, manifest, record))
    }
}

/// The name this machine's kind has in images.
pub(super) fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        "x86" => "386",
        "powerpc64" => "ppc64le",
        "loongarch64" => "loong64",
        other => other,
    }
}

/// Writes the layer as a tar in which nothing depends on when or where it is made; returns its size in bytes.
fn write_layer(program: &File, out: impl Write) -> io::Result<u64> {
    let mut tar = tar::Builder::new(Counted { inner: io::BufWriter::with_capacity(1 << 16, out), bytes: 0 });
    let header = |kind, mode, size| {
        let mut header = tar::Header::new_ustar();
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_size(size);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        header
    };
    for (path, mode) in DIRECTORIES {
        tar.append_data(&mut header(tar::EntryType::Directory, mode, 0), path, io::empty())?;
    }
    for (path, text) in FILES {
        tar.append_data(
            &mut header(tar::EntryType::Regular, 0o644, text.len() as u64),
            path,
            text.as_bytes(),
        )?;
    }
    let size = program.metadata()?.len();
    let mut program = io::Read::take(program, size);
    io::Seek::rewind(program.get_mut())?;
    tar.append_data(&mut header(tar::EntryType::Regular, 0o755, size), "rswarm", &mut program)?;
    let mut out = tar.into_inner()?;
    out.flush()?;
    Ok(out.bytes)
}

struct Counted<W> {
    inner: W,
    bytes: u64,
}

impl<W: Write> Write for Counted<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let n = self.inner.write(bytes)?;
        self.bytes += n as u64;
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

fn fingerprint(program: &File) -> io::Result<[i64; 7]> {
    program.metadata().map(|metadata| of(&metadata))
}

/// What changes when a file does.
fn of(file: &fs::Metadata) -> [i64; 7] {
    [
        file.dev() as i64,
        file.ino() as i64,
        file.size() as i64,
        file.mtime(),
        file.mtime_nsec(),
        file.ctime(),
        file.ctime_nsec(),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_layer_depends_on_the_program_alone() {
        let directory = tempfile::tempdir().unwrap();
        let write = |name: &str, bytes: &[u8]| {
            let path = directory.path().join(name);
            fs::write(&path, bytes).unwrap();
            let mut layer = Vec::new();
            let size = write_layer(&File::open(path).unwrap(), &mut layer).unwrap();
            assert_eq!(size, layer.len() as u64);
            Digest::of(&layer)
        };
        assert_eq!(write("a", b"program"), write("b", b"program"));
        assert_ne!(write("a", b"program"), write("b", b"another"));
    }

    #[test]
    fn it_is_known_by_name_in_all_versions() {
        for (text, builtin) in [
            ("rswarm/demo", true),
            ("docker.io/rswarm/demo:2", true),
            ("rswarm/demo:99", true),
            ("localhost/rswarm/demo", false),
            ("demo", false),
        ] {
            assert_eq!(is_builtin(&text.parse().unwrap()), builtin, "{text}");
        }
    }
}
