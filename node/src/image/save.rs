//! Images into archives, and what there is to know of them. An archive is an OCI layout that `docker load` reads too.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Read, Write};

use serde_json::{Value, json};

use super::digest::Hasher;
use super::load::Manifest;
use super::{Digest, Doing, Error, Image, Reference, Result, Store, refused};

/// One layer of an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LayerDetails {
    /// The digest of what it unpacks to.
    pub diff_id: Digest,
    /// The layer as transferred; the built-in image has none.
    pub blob: Option<Digest>,
    /// Bytes as transferred.
    pub size: u64,
}

/// An image with all it says of itself.
#[derive(Clone, Debug)]
pub struct Details {
    /// The image.
    pub image: Image,
    /// Its configuration, JSON as the image's maker wrote it.
    pub config: Vec<u8>,
    /// Its layers, lowest first.
    pub layers: Vec<LayerDetails>,
}

impl Store {
    /// All there is to know of the image that `name` means.
    ///
    /// # Errors
    /// As for [`Store::resolve`], and if its documents are damaged.
    pub fn details(&self, name: &str) -> Result<Details> {
        let image = self.resolve(name)?;
        let config = self.document(&image.id)?;
        let manifest = Manifest::parse(name, &self.document(&image.digest)?)?;
        let layer = |(index, diff_id): (usize, &Digest)| {
            let blob = manifest.layers.get(index);
            LayerDetails {
                diff_id: diff_id.clone(),
                blob: blob.map(|blob| blob.digest.clone()),
                size: blob.map_or(0, |blob| blob.size),
            }
        };
        let layers = image.layers.iter().enumerate().map(layer).collect();
        Ok(Details { image, config, layers })
    }

    /// Writes images into one archive, each under the names it was asked for by; one named by its id has none.
    ///
    /// # Errors
    /// As for [`Store::resolve`]; [`Error::Refused`] if a blob is damaged, and then the archive is not whole.
    pub fn save(&self, names: &[String], out: impl Write) -> Result<()> {
        // Nothing is collected while it is read.
        let _adding = self.adding()?;
        let mut images: BTreeMap<Digest, (Image, BTreeSet<Reference>)> = BTreeMap::new();
        for name in names {
            let image = self.resolve(name)?;
            if image.references.iter().any(super::is_builtin) {
                return refused(format!("image `{name}`"), "it is part of rswarm, on every node");
            }
            let reference = name.parse::<Reference>().ok().filter(|name| image.references.contains(name));
            images.entry(image.digest.clone()).or_insert((image, BTreeSet::new())).1.extend(reference);
        }
        let mut archive = Archive { tar: tar::Builder::new(out), written: BTreeSet::new() };
        let (mut entries, mut docker) = (Vec::new(), Vec::new());
        archive.document("oci-layout", &json!({"imageLayoutVersion": "1.0.0"}))?;
        for (digest, (image, references)) in &images {
            let bytes = self.document(digest)?;
            let manifest = Manifest::parse(&format!("manifest {digest}"), &bytes)?;
            let Some(config) = &manifest.config else {
                return refused(format!("manifest {digest}"), "it is not an image's manifest");
            };
            for layer in &manifest.layers {
                archive.blob(self, &layer.digest)?;
            }
            archive.blob(self, &config.digest)?;
            archive.blob(self, digest)?;
            let path = |digest: &Digest| format!("blobs/sha256/{}", digest.hex());
            docker.push(json!({
                "Config": path(&image.id),
                "RepoTags": references.iter().map(Reference::familiar).collect::<Vec<_>>(),
                "Layers": manifest.layers.iter().map(|layer| path(&layer.digest)).collect::<Vec<_>>(),
            }));
            entries.extend(index_entries(digest, &manifest.media_type, bytes.len(), references));
        }
        let kind = "application/vnd.oci.image.index.v1+json";
        archive
            .document("index.json", &json!({"schemaVersion": 2, "mediaType": kind, "manifests": entries}))?;
        archive.document("manifest.json", &Value::Array(docker))?;
        archive.end()
    }
}

/// An image's entries in the layout's index: one for each name.
fn index_entries(digest: &Digest, kind: &str, size: usize, references: &BTreeSet<Reference>) -> Vec<Value> {
    let kind = if kind.is_empty() { "application/vnd.oci.image.manifest.v1+json" } else { kind };
    let entry = json!({"mediaType": kind, "digest": digest, "size": size});
    if references.is_empty() {
        return vec![entry];
    }
    let named = |reference: &Reference| {
        let mut entry = entry.clone();
        entry["annotations"] = json!({
            "io.containerd.image.name": reference.to_string(),
            "org.opencontainers.image.ref.name": reference.tag().unwrap_or_default(),
        });
        entry
    };
    references.iter().map(named).collect()
}

struct Archive<W: Write> {
    tar: tar::Builder<W>,
    written: BTreeSet<Digest>,
}

impl<W: Write> Archive<W> {
    /// The same images make the same archive, so nothing in it says when it was made.
    fn append(&mut self, path: &str, size: u64, data: impl Read) -> io::Result<()> {
        let mut header = tar::Header::new_gnu();
        header.set_size(size);
        header.set_mode(0o644);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        self.tar.append_data(&mut header, path, data)
    }

    fn document(&mut self, path: &str, document: &Value) -> Result<()> {
        let bytes = document.to_string().into_bytes();
        self.append(path, bytes.len() as u64, &bytes[..]).doing(|| format!("write {path} of the archive"))
    }

    fn blob(&mut self, store: &Store, digest: &Digest) -> Result<()> {
        if !self.written.insert(digest.clone()) {
            return Ok(());
        }
        let what = || format!("write blob {digest} of the archive");
        let file = store.open_blob(digest).map_err(|_| Error::Refused {
            what: format!("blob {digest}"),
            why: "it is missing from the store: remove the image and pull it again".into(),
        })?;
        let size = file.metadata().doing(what)?.len();
        let mut data = Hashed { inner: file, hasher: Hasher::default() };
        self.append(&format!("blobs/sha256/{}", digest.hex()), size, &mut data).doing(what)?;
        match data.hasher.finish() == *digest {
            true => Ok(()),
            false => refused(format!("blob {digest}"), "it is damaged: remove the image and pull it again"),
        }
    }

    fn end(self) -> Result<()> {
        let flush = || self.tar.into_inner()?.flush();
        flush().doing(|| "write the end of the archive".into())
    }
}

struct Hashed<R> {
    inner: R,
    hasher: Hasher,
}

impl<R: Read> Read for Hashed<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buffer)?;
        self.hasher.update(&buffer[..n]);
        Ok(n)
    }
}
