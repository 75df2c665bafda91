//! The store's directory: what is kept where, who may write when, and what is collected.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use arc_swap::ArcSwapOption;
use rustix::fs::{FlockOperation, XattrFlags};

use super::index::{Index, Record};
use super::neighbours::{Neighbourhood, Neighbours};
use super::scratch::{Adding, Ingest, Lock, Scratch, is_disk, sync_directory, sync_tree, unique};
use super::unpack::{self, Marks};
use super::{Digest, Doing, Error, ImageConfig, Reference, Result, builtin, config, refused};

/// Configurations, manifests and indices are documents; none needs more bytes than this.
pub(super) const DOCUMENT_MAX: u64 = 4 << 20;
const FORMAT: u32 = 1;

/// Bounds on what an image may cost.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Bytes of one blob, as transferred.
    pub blob_bytes: u64,
    /// Bytes of file data in one layer, unpacked.
    pub layer_bytes: u64,
    /// Entries of one layer.
    pub layer_entries: u64,
    /// Bytes of one archive that is loaded.
    pub archive_bytes: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            blob_bytes: 16 << 30,
            layer_bytes: 32 << 30,
            layer_entries: 2_000_000,
            archive_bytes: 64 << 30,
        }
    }
}

/// An image on this machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Image {
    /// The digest of its manifest: its identity here.
    pub digest: Digest,
    /// The digest of its configuration, which Docker calls the image's id.
    pub id: Digest,
    /// Its names, sorted. Empty once another image has taken the last one over.
    pub references: Vec<Reference>,
    /// The names, pinned to digests, by which a registry gave it.
    pub repo_digests: Vec<Reference>,
    /// Bytes of its blobs, as transferred.
    pub size: u64,
    /// RFC 3339, if the image says.
    pub created: Option<String>,
    /// The diff ids of its layers, lowest first.
    pub layers: Vec<Digest>,
}

/// The images of this machine, in a directory of their own:
///
/// ```text
/// index.json            names, images, and what each consists of
/// blobs/sha256/<hex>    manifests, configurations, layers as transferred
/// layers/<hex>/fs       layers by diff id, unpacked once, shared by all images
/// leases/<holder>       the digest of an image that must stay
/// tmp/                  all that is not finished; emptied when nobody works in it
/// lock, index.lock      flock: the first shared while something is added, exclusive to collect
/// ```
///
/// A clone is the same store. Methods block on the disk unless they are `async`: call them from a blocking
/// thread. Several processes may use one directory.
#[derive(Clone)]
pub struct Store {
    pub(super) inner: Arc<Inner>,
}

pub(super) struct Inner {
    pub(super) directory: PathBuf,
    pub(super) limits: Limits,
    pub(super) marks: Marks,
    /// One pull for each name at a time; the second then finds everything there.
    pub(super) pulls: Mutex<BTreeMap<Reference, std::sync::Weak<tokio::sync::Mutex<()>>>>,
    builtin: Mutex<()>,
    pub(super) neighbourhood: ArcSwapOption<Neighbourhood>,
}

/// What this store has under a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Known {
    /// By which it is found on every node: as its registry calls it, or else the digest of its manifest.
    pub digest: Digest,
    /// What it is for; both empty where it may be for several.
    pub os: String,
    /// `amd64`, `arm64`, …
    pub architecture: String,
}

impl Store {
    /// Opens the store in `directory`, creating it if need be, with the default [`Limits`].
    ///
    /// # Errors
    /// If the directory cannot be created or written, or holds an index this program does not understand.
    pub fn open(directory: impl AsRef<Path>) -> Result<Self> {
        Self::open_with(directory, Limits::default())
    }

    /// Like [`Store::open`], with other bounds.
    ///
    /// # Errors
    /// As for [`Store::open`].
    pub fn open_with(directory: impl AsRef<Path>, limits: Limits) -> Result<Self> {
        let directory = directory.as_ref().to_path_buf();
        for part in ["blobs/sha256", "layers", "leases", "tmp", "empty"] {
            let path = directory.join(part);
            fs::create_dir_all(&path).doing(|| format!("create {}", path.display()))?;
        }
        let probe = directory.join("tmp");
        let marks = match rustix::fs::setxattr(&probe, "trusted.rswarm.probe", b"", XattrFlags::empty()) {
            Ok(()) => Marks::Trusted,
            Err(_) => Marks::User,
        };
        let store = Self {
            inner: Arc::new(Inner {
                directory,
                limits,
                marks,
                pulls: Mutex::default(),
                builtin: Mutex::default(),
                neighbourhood: ArcSwapOption::empty(),
            }),
        };
        store.sweep()?;
        Ok(store)
    }

    /// Whether overlay mounts of these layers need the option `userxattr` (in a user namespace they do).
    pub fn userxattr(&self) -> bool {
        self.inner.marks == Marks::User
    }

    /// The image that `name` means: a reference, a digest, an id or the beginning of one.
    ///
    /// The built-in image is made when it is first asked for.
    ///
    /// # Errors
    /// [`Error::Reference`] if the words cannot be a name, [`Error::NotFound`] if there is no such image,
    /// [`Error::Ambiguous`] for the beginning of several ids.
    pub fn resolve(&self, name: &str) -> Result<Image> {
        let index = self.index()?;
        let named: Result<Reference> = name.parse().map_err(Error::from);
        if let Ok(reference) = &named
            && let Some(digest) = index.find(reference)
        {
            // The built-in image belongs to this very program: after an upgrade it is another.
            if !builtin::is_builtin(reference) || self.builtin_is_current(&index, &digest)? {
                return Ok(index.image(&digest));
            }
        }
        if let Ok(reference) = &named
            && builtin::is_builtin(reference)
        {
            return self.builtin(reference);
        }
        if let Some(digest) = index.by_id(name)? {
            return Ok(index.image(&digest));
        }
        named?;
        Err(Error::NotFound(name.into()))
    }

    /// What other nodes may be told to look for when they are to have what this one has under `name`.
    pub fn known_as(&self, name: &str) -> Option<Known> {
        let reference = name.parse::<Reference>().ok()?;
        let index = self.index().ok()?;
        let image = index.image(&index.find(&reference)?);
        let pinned = image.repo_digests.iter().find(|pinned| pinned.name() == reference.name());
        let digest = pinned.and_then(|pinned| pinned.digest()).unwrap_or(&image.digest).clone();
        if digest != image.digest {
            // An index: it may hold images for others as well.
            return Some(Known { digest, os: String::new(), architecture: String::new() });
        }
        let config = self.config(&image).ok()?;
        Some(Known { digest, os: config.os, architecture: config.architecture })
    }

    /// From now on blobs are first looked for there.
    pub fn ask_first(&self, neighbours: Option<Arc<dyn Neighbours>>) {
        self.inner.neighbourhood.store(neighbours.map(|at| Arc::new(Neighbourhood::new(at))));
    }

    /// All images, by name.
    ///
    /// # Errors
    /// If the index cannot be read.
    pub fn list(&self) -> Result<Vec<Image>> {
        let index = self.index()?;
        let mut images: Vec<Image> = index.images.keys().map(|digest| index.image(digest)).collect();
        images.sort_by(|a, b| {
            (a.references.is_empty(), &a.references).cmp(&(b.references.is_empty(), &b.references))
        });
        Ok(images)
    }

    /// Gives `image` one more name; an image that had it loses it.
    ///
    /// # Errors
    /// [`Error::NotFound`] if the image is gone.
    pub fn tag(&self, image: &Image, reference: &Reference) -> Result<()> {
        self.update(|index| {
            if !index.images.contains_key(&image.digest) {
                return Err(Error::NotFound(image.digest.to_string()));
            }
            index.references.insert(reference.clone(), image.digest.clone());
            Ok(())
        })
    }

    /// How the image wants to be run.
    ///
    /// # Errors
    /// If its configuration is not there or damaged.
    pub fn config(&self, image: &Image) -> Result<ImageConfig> {
        let bytes = self.document(&image.id)?;
        Ok(config::parse(&image.id, &bytes)?.0)
    }

    /// The image's directories for overlayfs's `lowerdir`, the topmost first. Never empty.
    ///
    /// Hold a [lease](Store::lease) as long as they are mounted.
    ///
    /// # Errors
    /// [`Error::Refused`] if a layer is missing from the disk.
    pub fn layers(&self, image: &Image) -> Result<Vec<PathBuf>> {
        let mut seen = BTreeSet::new();
        let mut directories = Vec::new();
        for diff_id in image.layers.iter().rev() {
            // Overlayfs takes no directory twice; of a repeated layer only the topmost is seen anyway.
            if !seen.insert(diff_id) {
                continue;
            }
            let directory = self.layer_path(diff_id);
            if !directory.is_dir() {
                return refused(
                    format!("layer {diff_id}"),
                    "it is missing from the store: remove the image and pull it again",
                );
            }
            let mut value = [0; 1];
            let opaque = rustix::fs::getxattr(&directory, self.inner.marks.opaque(), &mut value[..]).is_ok();
            directories.push(directory);
            // Overlayfs does not look for the mark on the root itself.
            if opaque {
                break;
            }
        }
        if directories.is_empty() {
            directories.push(self.inner.directory.join("empty"));
        }
        Ok(directories)
    }

    /// Opens a blob, for a peer that asks for it.
    ///
    /// # Errors
    /// [`Error::NotFound`] if this machine does not have it.
    pub fn open_blob(&self, digest: &Digest) -> Result<File> {
        File::open(self.blob_path(digest)).map_err(|_| Error::NotFound(digest.to_string()))
    }

    /// The right to collect, or `None` if something is being added.
    pub(super) fn alone(&self) -> Result<Option<Lock>> {
        self.lock("lock", FlockOperation::NonBlockingLockExclusive)
    }

    /// The right to add; waits for a collection to end.
    pub(super) fn adding(&self) -> Result<Adding> {
        let lock = self.lock("lock", FlockOperation::LockShared)?;
        Ok(lock.expect("this operation waits"))
    }

    fn lock(&self, name: &str, how: FlockOperation) -> Result<Option<Lock>> {
        Lock::take(&self.inner.directory.join(name), how)
    }

    pub(super) fn index(&self) -> Result<Index> {
        let path = self.inner.directory.join("index.json");
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Ok(Index { format: FORMAT, ..Index::default() });
            }
            Err(error) => return Err(error).doing(|| format!("read {}", path.display())),
        };
        match serde_json::from_slice::<Index>(&bytes) {
            Ok(index) if index.format == FORMAT => Ok(index),
            Ok(index) => refused(
                path.display().to_string(),
                format!("it has format {}, this program knows {FORMAT}", index.format),
            ),
            Err(error) => refused(
                path.display().to_string(),
                format!(
                    "it is damaged ({error}): remove the image directory, and images will be fetched again"
                ),
            ),
        }
    }

    /// Changes the index, durably, or not at all if `change` fails.
    pub(super) fn update<T>(&self, change: impl FnOnce(&mut Index) -> Result<T>) -> Result<T> {
        let _lock = self.lock("index.lock", FlockOperation::LockExclusive)?;
        let mut index = self.index()?;
        let before = serde_json::to_vec(&index).expect("an index is always JSON");
        let result = change(&mut index)?;
        let after = serde_json::to_vec(&index).expect("an index is always JSON");
        if before != after {
            self.write_atomically(&self.inner.directory.join("index.json"), &after)?;
        }
        Ok(result)
    }

    /// Call with the index locked: that makes the one intermediate name safe, and not being in `tmp` keeps it
    /// from a collection that goes on meanwhile.
    pub(super) fn write_atomically(&self, path: &Path, bytes: &[u8]) -> Result<()> {
        let write = || {
            let new = self.inner.directory.join("index.new");
            let mut file = File::create(&new)?;
            file.write_all(bytes)?;
            file.sync_all()?;
            fs::rename(&new, path)?;
            sync_directory(path.parent().expect("a file of the store has a directory"))
        };
        write().doing(|| format!("write {}", path.display()))
    }

    pub(super) fn tmp_path(&self) -> PathBuf {
        self.inner.directory.join("tmp").join(unique())
    }

    pub(super) fn blob_path(&self, digest: &Digest) -> PathBuf {
        self.inner.directory.join("blobs/sha256").join(digest.hex())
    }

    pub(super) fn layer_path(&self, diff_id: &Digest) -> PathBuf {
        self.inner.directory.join("layers").join(diff_id.hex()).join("fs")
    }

    pub(super) fn has_blob(&self, digest: &Digest) -> bool {
        self.blob_path(digest).is_file()
    }

    /// Reads a manifest or configuration, checked once more against its digest.
    pub(super) fn document(&self, digest: &Digest) -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        let path = self.blob_path(digest);
        let read = File::open(&path).and_then(|file| file.take(DOCUMENT_MAX).read_to_end(&mut bytes));
        read.doing(|| format!("read {}", path.display()))?;
        match Digest::of(&bytes) == *digest {
            true => Ok(bytes),
            false => refused(format!("blob {digest}"), "it is damaged: remove the image and pull it again"),
        }
    }

    pub(super) fn put_document(&self, bytes: &[u8]) -> Result<Digest> {
        let mut ingest = self.ingest(DOCUMENT_MAX)?;
        ingest.write_all(bytes).doing(|| "write a blob".into())?;
        ingest.commit(None)
    }

    /// Begins a blob of at most `max` bytes.
    pub(super) fn ingest(&self, max: u64) -> Result<Ingest> {
        Ingest::new(self, max)
    }

    /// Unpacks a layer, unless it is there already, and checks that it is what the image's configuration says.
    pub(super) fn unpack(&self, blob: &Digest, diff_id: &Digest) -> Result<()> {
        if self.layer_path(diff_id).is_dir() {
            return Ok(());
        }
        let file = self.open_blob(blob)?;
        let filled =
            self.add_layer(|root| match unpack::layer(file, root, self.inner.marks, &self.inner.limits) {
                Ok(got) if got == *diff_id => Ok(got),
                Ok(got) => refused(
                    format!("layer {blob}"),
                    format!("it unpacks to {got}, but the image promises {diff_id}"),
                ),
                Err(error) if is_disk(&error) => Err(error).doing(|| format!("unpack layer {blob}")),
                Err(error) => refused(format!("layer {blob}"), unpack::plain(&error)),
            });
        filled.map(drop)
    }

    /// Lets `fill` make a layer's directory and say its diff id, then makes it durable and visible at once.
    pub(super) fn add_layer(&self, fill: impl FnOnce(&Path) -> Result<Digest>) -> Result<Digest> {
        let scratch = Scratch(self.tmp_path());
        let root = scratch.0.join("fs");
        fs::create_dir_all(&root).doing(|| format!("create {}", root.display()))?;
        let diff_id = fill(&root)?;
        let target = self.inner.directory.join("layers").join(diff_id.hex());
        let publish = || {
            sync_tree(&root)?;
            match fs::rename(&scratch.0, &target) {
                // Somebody else was first, with the same content.
                Err(_) if target.join("fs").is_dir() => Ok(()),
                result => result.and_then(|()| sync_directory(&self.inner.directory.join("layers"))),
            }
        };
        publish().doing(|| format!("create {}", target.display()))?;
        Ok(diff_id)
    }

    /// Enters an image whose blobs and layers are all there.
    pub(super) fn enter(
        &self,
        manifest: &Digest,
        record: Record,
        references: &[Reference],
        repo_digest: Option<Reference>,
    ) -> Result<Image> {
        self.update(|index| {
            let known = index.images.entry(manifest.clone()).or_insert(record);
            known.condemned = false;
            known.repo_digests.extend(repo_digest);
            for reference in references {
                index.references.insert(reference.clone(), manifest.clone());
            }
            Ok(index.image(manifest))
        })
    }

    pub(super) fn builtin_lock(&self) -> std::sync::MutexGuard<'_, ()> {
        self.inner.builtin.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}
