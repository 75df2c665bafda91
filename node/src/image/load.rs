//! Images from archives: what `docker save`, `podman save` and `skopeo copy` write, as a file or a stream.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, BufRead, BufReader, Read};

use serde::Deserialize;
use serde_json::json;

use super::index::{Layer, Record};
use super::scratch::{Adding, Ingest, is_disk};
use super::tarball::{Kind, Reader};
use super::unpack::{decompress, plain};
use super::{Digest, Doing, Error, Image, Platform, Reference, Result, Store, config, refused};

/// Blobs and links an archive may consist of.
const FILES_MAX: usize = 20_000;
/// Images in one archive.
const IMAGES_MAX: usize = 1000;
/// Unpacking is bound by the disk and by decompression; more threads than this gain nothing.
pub(super) const UNPACKERS: usize = 4;

/// One image of an archive, now in the store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Loaded {
    /// The image.
    pub image: Image,
    /// The names the archive gave it; empty if none.
    pub references: Vec<Reference>,
}

/// A pointer to a blob, in manifests and indices.
#[derive(Deserialize, Clone, Debug)]
#[serde(rename_all = "camelCase")]
pub(super) struct Descriptor {
    pub digest: Digest,
    pub size: u64,
    #[serde(default)]
    pub platform: Option<Platform>,
    #[serde(default)]
    pub annotations: Option<BTreeMap<String, String>>,
}

/// A manifest, or an index of several.
#[derive(Deserialize, Clone, Debug)]
#[serde(rename_all = "camelCase")]
pub(super) struct Manifest {
    #[serde(default)]
    pub media_type: String,
    #[serde(default)]
    pub config: Option<Descriptor>,
    #[serde(default)]
    pub layers: Vec<Descriptor>,
    #[serde(default)]
    pub manifests: Vec<Descriptor>,
}

impl Manifest {
    pub fn parse(what: &str, bytes: &[u8]) -> Result<Self> {
        serde_json::from_slice(bytes).or_else(|error| refused(what, format!("it is no manifest: {error}")))
    }

    /// The manifest for a machine, of those an index offers.
    pub fn for_machine(&self, what: &str, wanted: &Platform) -> Result<&Descriptor> {
        // Attestations and the like come as manifests for no machine.
        let real =
            |entry: &&Descriptor| entry.platform.as_ref().is_none_or(|platform| platform.os != "unknown");
        let offers: Vec<&Descriptor> = self.manifests.iter().filter(real).collect();
        let fit = |entry: &&&Descriptor| entry.platform.as_ref().and_then(|offered| wanted.fit(offered));
        let best = offers.iter().filter(|entry| fit(entry).is_some()).min_by_key(fit);
        match (best, &offers[..]) {
            (Some(best), _) => Ok(best),
            (None, [only]) if only.platform.is_none() => Ok(only),
            (None, _) => {
                let platform = |entry: &&Descriptor| entry.platform.clone().unwrap_or_default().to_string();
                let offered: Vec<String> = offers.iter().map(platform).take(20).collect();
                let why = format!("it has no image for {wanted}, only for {}", offered.join(", "));
                refused(what, why)
            }
        }
    }
}

const SAVED: &str = "manifest.json of the archive";

/// An image in Docker's own archive format.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Saved {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    #[serde(default)]
    layers: Option<Vec<String>>,
}

/// What an archive held, by path. Its files are already in the store, for nobody as yet.
#[derive(Default)]
struct Contents {
    files: BTreeMap<String, (Digest, u64)>,
    links: BTreeMap<String, String>,
}

impl Contents {
    fn find(&self, path: &str) -> Option<&(Digest, u64)> {
        let path = normal("", path)?;
        // A link to a link is more than any writer makes.
        self.files.get(&path).or_else(|| self.files.get(self.links.get(&path)?))
    }
}

impl Store {
    /// Loads the images of an archive in Docker's or the OCI layout's format, wrapped in gzip or zstd or not.
    ///
    /// The archive is read once from beginning to end, so it may be a pipe.
    ///
    /// # Errors
    /// [`Error::Refused`] if the archive is damaged, hostile, or holds no image for this machine. Nothing of it
    /// is then in the store.
    pub fn load(&self, archive: impl Read) -> Result<Vec<Loaded>> {
        let adding = self.adding()?;
        let loaded = self.load_all(archive, &adding);
        drop(adding);
        // Whatever of the archive belongs to no image goes.
        let swept = self.sweep();
        let loaded = loaded?;
        swept?;
        Ok(loaded)
    }

    fn load_all(&self, archive: impl Read, adding: &Adding) -> Result<Vec<Loaded>> {
        let contents = self.spool(archive)?;
        let images = match (contents.find("manifest.json"), contents.find("oci-layout")) {
            // An archive of both kinds keeps the images' own manifests, and so what they are known by elsewhere.
            (Some(_), Some(_)) => match self.oci_images(&contents) {
                Ok(images) if !images.is_empty() => self.named_by_docker(images, &contents)?,
                _ => self.docker_images(&contents)?,
            },
            (Some(_), None) => self.docker_images(&contents)?,
            (None, _) => self.oci_images(&contents)?,
        };
        if images.is_empty() {
            return refused("the archive", "there is no image in it");
        }
        let mut loaded = Vec::new();
        for (manifest, references) in images {
            let record = self.complete(&manifest, adding)?;
            loaded.push((manifest, record, references));
        }
        // Only when all are whole does the first one get its name.
        let enter = |(manifest, record, references): (Digest, Record, Vec<Reference>)| {
            Ok(Loaded { image: self.enter(&manifest, record, &references, None)?, references })
        };
        loaded.into_iter().map(enter).collect()
    }

    /// Puts all files of the archive into the store.
    fn spool(&self, archive: impl Read) -> Result<Contents> {
        const WHAT: &str = "the archive";
        let mut archive = BufReader::with_capacity(1 << 17, archive);
        let magic = archive.fill_buf().or_else(|error| refused(WHAT, error.to_string()))?;
        if magic.is_empty() {
            return refused(WHAT, "it is empty");
        }
        let archive = decompress(archive).or_else(|error| refused(WHAT, plain(&error)))?;
        let mut reader = Reader::new(archive.take(self.inner.limits.archive_bytes));
        let mut contents = Contents::default();
        let read = |error: io::Error| Error::Refused { what: WHAT.into(), why: plain(&error) };
        while let Some(entry) = reader.next().map_err(read)? {
            if contents.files.len() + contents.links.len() >= FILES_MAX {
                return refused(WHAT, format!("it has more than {FILES_MAX} files"));
            }
            let Some(path) = std::str::from_utf8(&entry.path).ok().and_then(|path| normal("", path)) else {
                return refused(WHAT, format!("entry `{}` lies outside of it", entry.name()));
            };
            match entry.kind {
                Kind::File => {
                    let mut blob = self.ingest(self.inner.limits.blob_bytes)?;
                    copy(&mut reader, &mut blob, &path)?;
                    let promised = path
                        .strip_prefix("blobs/sha256/")
                        .and_then(|hex| format!("sha256:{hex}").parse().ok());
                    let size = blob.size();
                    contents.files.insert(path, (blob.commit(promised.as_ref())?, size));
                }
                Kind::Symlink | Kind::HardLink => {
                    let from = if entry.kind == Kind::Symlink {
                        path.rsplit_once('/').map_or("", |(dir, _)| dir)
                    } else {
                        ""
                    };
                    if let Some(target) =
                        std::str::from_utf8(&entry.link).ok().and_then(|link| normal(from, link))
                    {
                        contents.links.insert(path, target);
                    }
                }
                Kind::Directory | Kind::Device | Kind::Fifo => {}
            }
        }
        Ok(contents)
    }

    /// The names that an archive of both kinds gives its images in Docker's format.
    fn named_by_docker(
        &self,
        mut images: Vec<(Digest, Vec<Reference>)>,
        contents: &Contents,
    ) -> Result<Vec<(Digest, Vec<Reference>)>> {
        for Saved { config, repo_tags, .. } in self.saved(contents)? {
            let Some((config, _)) = contents.find(&config) else { continue };
            for (manifest, references) in &mut images {
                let parsed = Manifest::parse("a manifest of the archive", &self.document(manifest)?)?;
                if parsed.config.is_some_and(|own| own.digest == *config) {
                    let names: Vec<Reference> =
                        repo_tags.iter().flatten().map(|tag| tag.parse()).collect::<Result<_, _>>()?;
                    references.extend(names);
                    references.sort();
                    references.dedup();
                }
            }
        }
        Ok(images)
    }

    fn saved(&self, contents: &Contents) -> Result<Vec<Saved>> {
        let Some((digest, _)) = contents.find("manifest.json") else { return Ok(Vec::new()) };
        let saved: Vec<Saved> = match serde_json::from_slice(&self.document(digest)?) {
            Ok(saved) => saved,
            Err(error) => return refused(SAVED, error.to_string()),
        };
        if saved.len() > IMAGES_MAX {
            return refused(SAVED, format!("it lists more than {IMAGES_MAX} images"));
        }
        Ok(saved)
    }

    fn docker_images(&self, contents: &Contents) -> Result<Vec<(Digest, Vec<Reference>)>> {
        let missing = |path: &str| Error::Refused {
            what: SAVED.into(),
            why: format!("`{path}` is not in the archive"),
        };
        let mut images = Vec::new();
        for Saved { config, repo_tags, layers } in self.saved(contents)? {
            let (config_digest, config_size) = contents.find(&config).ok_or_else(|| missing(&config))?;
            let mut descriptors = Vec::new();
            for path in layers.unwrap_or_default() {
                let (digest, size) = contents.find(&path).ok_or_else(|| missing(&path))?;
                let media_type = format!("application/vnd.oci.image.layer.v1.tar{}", self.suffix(digest)?);
                descriptors.push(json!({"mediaType": media_type, "digest": digest, "size": size}));
            }
            // Docker's format has no manifest, so the image gets one that depends on its content alone.
            let manifest = json!({
                "schemaVersion": 2,
                "mediaType": "application/vnd.oci.image.manifest.v1+json",
                "config": {
                    "mediaType": "application/vnd.oci.image.config.v1+json",
                    "digest": config_digest,
                    "size": config_size,
                },
                "layers": descriptors,
            });
            let manifest = self.put_document(manifest.to_string().as_bytes())?;
            let references =
                repo_tags.unwrap_or_default().iter().map(|tag| tag.parse()).collect::<Result<_, _>>()?;
            images.push((manifest, references));
        }
        Ok(images)
    }

    /// How a layer's media type ends, by its first bytes.
    fn suffix(&self, blob: &Digest) -> Result<&'static str> {
        let mut magic = Vec::new();
        self.open_blob(blob)?.take(4).read_to_end(&mut magic).doing(|| format!("read blob {blob}"))?;
        Ok(match magic[..] {
            [0x1f, 0x8b, ..] => "+gzip",
            [0x28, 0xb5, 0x2f, 0xfd] => "+zstd",
            _ => "",
        })
    }

    fn oci_images(&self, contents: &Contents) -> Result<Vec<(Digest, Vec<Reference>)>> {
        let Some((digest, _)) = contents.find("index.json") else {
            let why = "it is neither a docker archive (no manifest.json) nor an OCI layout (no index.json)";
            return refused("the archive", why);
        };
        let what = "index.json of the archive";
        let index = Manifest::parse(what, &self.document(digest)?)?;
        if index.manifests.len() > IMAGES_MAX {
            return refused(what, format!("it lists more than {IMAGES_MAX} images"));
        }
        let mut images: Vec<(Digest, Vec<Reference>)> = Vec::new();
        let (several, ours) = (index.manifests.len() > 1, Platform::ours());
        for entry in &index.manifests {
            // Of several machines' images side by side only ours is wanted.
            if several && entry.platform.as_ref().is_some_and(|platform| ours.fit(platform).is_none()) {
                continue;
            }
            let name = |key: &str| entry.annotations.as_ref()?.get(key);
            let name = name("io.containerd.image.name").or_else(|| name("org.opencontainers.image.ref.name"));
            let reference = name.map(|name| name.parse::<Reference>()).transpose()?;
            let manifest = self.follow(entry)?;
            match images.iter_mut().find(|(digest, _)| *digest == manifest) {
                Some((_, references)) => references.extend(reference),
                None => images.push((manifest, reference.into_iter().collect())),
            }
        }
        if images.is_empty() {
            index.for_machine(what, &ours)?;
        }
        Ok(images)
    }

    /// From an entry of an index to the manifest for this machine, through at most one more index.
    fn follow(&self, entry: &Descriptor) -> Result<Digest> {
        let what = format!("manifest {}", entry.digest);
        if !self.has_blob(&entry.digest) {
            return refused(what, "it is not in the archive");
        }
        let manifest = Manifest::parse(&what, &self.document(&entry.digest)?)?;
        match manifest.config {
            Some(_) => Ok(entry.digest.clone()),
            None => Ok(manifest.for_machine(&what, &Platform::ours())?.digest.clone()),
        }
    }

    /// Checks that all of an image is here and unpacks its layers.
    pub(super) fn complete(&self, manifest: &Digest, _adding: &Adding) -> Result<Record> {
        let what = format!("manifest {manifest}");
        if !self.has_blob(manifest) {
            return refused(what, "it is missing");
        }
        let parsed = Manifest::parse(&what, &self.document(manifest)?)?;
        let (record, layers) = self.describe(&what, &parsed)?;
        unpack_all(self, &distinct(layers, Clone::clone))?;
        Ok(record)
    }

    /// What an image consists of, and which blob unpacks to which layer.
    pub(super) fn describe(
        &self,
        what: &str,
        manifest: &Manifest,
    ) -> Result<(Record, Vec<(Digest, Digest)>)> {
        let Some(config) = &manifest.config else { return refused(what, "it is not an image's manifest") };
        for blob in manifest.layers.iter().chain([config]) {
            if !self.has_blob(&blob.digest) {
                return refused(what, format!("blob {} is missing", blob.digest));
            }
        }
        let (details, diff_ids) = config::parse(&config.digest, &self.document(&config.digest)?)?;
        if diff_ids.len() != manifest.layers.len() {
            let why =
                format!("it has {} layers, its configuration {}", manifest.layers.len(), diff_ids.len());
            return refused(what, why);
        }
        let layers: Vec<(Digest, Digest)> =
            manifest.layers.iter().map(|layer| layer.digest.clone()).zip(diff_ids).collect();
        let record = Record {
            config: config.digest.clone(),
            layers: layers
                .iter()
                .map(|(blob, diff_id)| Layer { blob: Some(blob.clone()), diff_id: diff_id.clone() })
                .collect(),
            size: manifest.layers.iter().chain([config]).fold(0, |sum, blob| sum.saturating_add(blob.size)),
            created: details.created,
            repo_digests: [].into(),
            condemned: false,
        };
        Ok((record, layers))
    }
}

/// Unpacks layers side by side; the first error is returned when all threads are done.
fn unpack_all(store: &Store, layers: &[(Digest, Digest)]) -> Result<()> {
    let next = std::sync::atomic::AtomicUsize::new(0);
    let work = || -> Result<()> {
        while let Some((blob, diff_id)) = layers.get(next.fetch_add(1, std::sync::atomic::Ordering::Relaxed))
        {
            store.unpack(blob, diff_id)?;
        }
        Ok(())
    };
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..UNPACKERS.min(layers.len())).map(|_| scope.spawn(work)).collect();
        let results: Vec<_> = threads.into_iter().map(|thread| thread.join()).collect();
        results.into_iter().try_for_each(|result| match result {
            Ok(result) => result,
            Err(panic) => std::panic::resume_unwind(panic),
        })
    })
}

/// What there is to unpack: images often repeat the empty layer.
pub(super) fn distinct<T>(
    layers: impl IntoIterator<Item = T>,
    key: impl Fn(&T) -> (Digest, Digest),
) -> Vec<T> {
    let mut seen = BTreeSet::new();
    layers.into_iter().filter(|layer| seen.insert(key(layer))).collect()
}

/// Copies one file of an archive into a blob; documents are small, and a layer knows its bound.
fn copy(from: &mut impl Read, blob: &mut Ingest, path: &str) -> Result<()> {
    match io::copy(from, blob) {
        Ok(_) => Ok(()),
        Err(error) if is_disk(&error) => Err(error).doing(|| format!("store `{path}`")),
        Err(error) => refused(format!("`{path}` in the archive"), plain(&error)),
    }
}

/// `path` seen from `directory`, without `.` and `..`; `None` if it leads outside.
fn normal(directory: &str, path: &str) -> Option<String> {
    let mut parts: Vec<&str> = directory.split('/').filter(|part| !part.is_empty()).collect();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()?),
            part => parts.push(part),
        }
    }
    Some(parts.join("/"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_in_archives_are_normalised_or_refused() {
        assert_eq!(normal("", "./a//b").as_deref(), Some("a/b"));
        assert_eq!(normal("x/y", "../z/layer.tar").as_deref(), Some("x/z/layer.tar"));
        assert_eq!(normal("", "../a"), None);
    }
}
