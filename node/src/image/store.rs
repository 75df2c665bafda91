//! The store's directory: what is kept where, who may write when, and what is collected.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use rustix::fs::{FlockOperation, XattrFlags, flock, syncfs};
use serde::{Deserialize, Serialize};

use super::digest::Hasher;
use super::unpack::{self, Marks, remove_tree};
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

/// What a collection did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Swept {
    /// Blobs removed.
    pub blobs: usize,
    /// Unpacked layers removed.
    pub layers: usize,
    /// A pull or load was under way, so nothing was removed; the next collection will.
    pub deferred: bool,
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
    directory: PathBuf,
    pub(super) limits: Limits,
    pub(super) marks: Marks,
    /// One pull for each name at a time; the second then finds everything there.
    pub(super) pulls: Mutex<BTreeMap<Reference, std::sync::Weak<tokio::sync::Mutex<()>>>>,
    builtin: Mutex<()>,
}

#[derive(Serialize, Deserialize, Default, Clone)]
pub(super) struct Index {
    format: u32,
    pub references: BTreeMap<Reference, Digest>,
    pub images: BTreeMap<Digest, Record>,
    #[serde(default)]
    pub builtin: Option<builtin::Stamp>,
}

#[derive(Serialize, Deserialize, Clone)]
pub(super) struct Record {
    pub config: Digest,
    pub layers: Vec<Layer>,
    pub size: u64,
    pub created: Option<String>,
    #[serde(default)]
    pub repo_digests: BTreeSet<Reference>,
    /// Forcibly removed while in use: goes with its last lease.
    #[serde(default)]
    pub condemned: bool,
}

#[derive(Serialize, Deserialize, Clone, Debug)]
pub(super) struct Layer {
    /// The layer as transferred; the built-in image has none.
    pub blob: Option<Digest>,
    pub diff_id: Digest,
}

/// Held while something is added; nothing is collected meanwhile.
pub(super) type Adding = Lock;

/// A held `flock`. It is given up explicitly, since a process being started may share the descriptor for a moment.
pub(super) struct Lock(File);

impl Drop for Lock {
    fn drop(&mut self) {
        let _ = flock(&self.0, FlockOperation::Unlock);
    }
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
        let is_id =
            |text: &str| (4..=64).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_hexdigit());
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
        let id = name.strip_prefix("sha256:").unwrap_or(name).to_ascii_lowercase();
        if is_id(&id) {
            let fits = |(digest, record): &(&Digest, &Record)| {
                digest.hex().starts_with(&id) || record.config.hex().starts_with(&id)
            };
            let mut found = index.images.iter().filter(fits).map(|(digest, _)| digest);
            match (found.next(), found.next()) {
                (Some(digest), None) => return Ok(index.image(digest)),
                (Some(_), Some(_)) => return Err(Error::Ambiguous(name.into())),
                (None, _) => {}
            }
        }
        named?;
        Err(Error::NotFound(name.into()))
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

    /// Removes a name, and with its last name the image. By digest or id, all of an image's names go.
    ///
    /// An image that containers hold is not removed unless `force`d; then its names go now, and its bytes
    /// with the last container.
    ///
    /// # Errors
    /// [`Error::InUse`] and those of [`Store::resolve`].
    pub fn remove(&self, name: &str, force: bool) -> Result<Swept> {
        let reference = name.parse::<Reference>().ok();
        let named = reference
            .filter(|reference| self.index().is_ok_and(|index| index.references.contains_key(reference)));
        let image = match &named {
            Some(reference) => {
                let index = self.index()?;
                index
                    .find(reference)
                    .map(|digest| index.image(&digest))
                    .ok_or_else(|| Error::NotFound(name.into()))?
            }
            None => self.resolve(name)?,
        };
        // The lock makes the question for leases and the removal one step.
        self.update(|index| {
            let last = named.is_none()
                || index.references.values().filter(|digest| **digest == image.digest).count() <= 1;
            let holders: Vec<String> = self
                .leases()?
                .into_iter()
                .filter(|(_, digest)| *digest == image.digest)
                .map(|(name, _)| name)
                .collect();
            if last && !holders.is_empty() && !force {
                return Err(Error::InUse { image: name.into(), holders: holders.join(", ") });
            }
            match &named {
                Some(reference) => drop(index.references.remove(reference)),
                None => index.references.retain(|_, digest| *digest != image.digest),
            }
            if last {
                index.forget(&image.digest, !holders.is_empty());
            }
            Ok(())
        })?;
        self.sweep()
    }

    /// Removes the images that nobody holds and that have no name either, or with `all` whatever their names,
    /// and with them all that belongs to no image.
    ///
    /// # Errors
    /// If the disk refuses.
    pub fn prune(&self, all: bool) -> Result<Swept> {
        self.update(|index| {
            let named: BTreeSet<Digest> =
                if all { BTreeSet::new() } else { index.references.values().cloned().collect() };
            let held: BTreeSet<Digest> = self.leases()?.into_values().collect();
            index.images.retain(|digest, _| named.contains(digest) || held.contains(digest));
            let images = &index.images;
            index.references.retain(|_, digest| images.contains_key(digest));
            Ok(())
        })?;
        self.sweep()
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

    /// Keeps `image` until [`Store::release`]; `holder` (a container's id) outlives this process.
    ///
    /// # Errors
    /// [`Error::NotFound`] if the image has gone meanwhile; [`Error::Refused`] if the holder's name has other
    /// characters than letters, digits, `.`, `_` and `-`.
    pub fn lease(&self, holder: &str, image: &Image) -> Result<()> {
        let path = self.lease_path(holder)?;
        self.update(|index| match index.images.contains_key(&image.digest) {
            true => self.write_atomically(&path, image.digest.as_str().as_bytes()),
            false => Err(Error::NotFound(
                image.references.first().map_or(image.digest.to_string(), Reference::familiar),
            )),
        })
    }

    /// Ends a lease; one that is not there is no error.
    ///
    /// # Errors
    /// If the disk refuses.
    pub fn release(&self, holder: &str) -> Result<()> {
        let path = self.lease_path(holder)?;
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(error).doing(|| format!("remove {}", path.display()))
            }
            _ => {
                if self.index()?.images.values().any(|record| record.condemned) {
                    self.sweep()?;
                }
                Ok(())
            }
        }
    }

    /// All leases: holder and the digest of the image held.
    ///
    /// # Errors
    /// If the disk refuses.
    pub fn leases(&self) -> Result<BTreeMap<String, Digest>> {
        let directory = self.inner.directory.join("leases");
        let mut leases = BTreeMap::new();
        for name in names(&directory)? {
            // One that vanishes while we look was released.
            if let Ok(text) = fs::read_to_string(directory.join(&name))
                && let Ok(digest) = text.parse()
            {
                leases.insert(name, digest);
            }
        }
        Ok(leases)
    }

    /// Opens a blob, for a peer that asks for it.
    ///
    /// # Errors
    /// [`Error::NotFound`] if this machine does not have it.
    pub fn open_blob(&self, digest: &Digest) -> Result<File> {
        File::open(self.blob_path(digest)).map_err(|_| Error::NotFound(digest.to_string()))
    }

    /// Removes what belongs to no image, unless something is being added at this moment.
    pub(super) fn sweep(&self) -> Result<Swept> {
        let Some(_alone) = self.alone()? else { return Ok(Swept { deferred: true, ..Swept::default() }) };
        let index = self.update(|index| {
            let held: BTreeSet<Digest> = self.leases()?.into_values().collect();
            index.images.retain(|digest, record| !record.condemned || held.contains(digest));
            Ok(index.clone())
        })?;
        let (mut blobs, mut layers) = (BTreeSet::new(), BTreeSet::new());
        for (digest, record) in &index.images {
            blobs.extend([digest.hex(), record.config.hex()]);
            blobs.extend(record.layers.iter().filter_map(|layer| layer.blob.as_ref()).map(Digest::hex));
            layers.extend(record.layers.iter().map(|layer| layer.diff_id.hex()));
        }
        let mut swept = Swept::default();
        let directory = self.inner.directory.join("blobs/sha256");
        for name in names(&directory)?.iter().filter(|name| !blobs.contains(&***name)) {
            let path = directory.join(name);
            fs::remove_file(&path).doing(|| format!("remove {}", path.display()))?;
            swept.blobs += 1;
        }
        let directory = self.inner.directory.join("layers");
        for name in names(&directory)?.iter().filter(|name| !layers.contains(&***name)) {
            let path = directory.join(name);
            fs::rename(&path, self.tmp_path()).doing(|| format!("remove {}", path.display()))?;
            swept.layers += 1;
        }
        self.empty_tmp()?;
        Ok(swept)
    }

    fn empty_tmp(&self) -> Result<()> {
        let directory = self.inner.directory.join("tmp");
        for name in names(&directory)? {
            let path = directory.join(name);
            discard(&path).doing(|| format!("remove {}", path.display()))?;
        }
        Ok(())
    }

    /// The right to collect, or `None` if something is being added.
    fn alone(&self) -> Result<Option<Lock>> {
        self.lock("lock", FlockOperation::NonBlockingLockExclusive)
    }

    /// The right to add; waits for a collection to end.
    pub(super) fn adding(&self) -> Result<Adding> {
        let lock = self.lock("lock", FlockOperation::LockShared)?;
        Ok(lock.expect("this operation waits"))
    }

    /// Takes a lock, or returns `None` if `how` does not wait and somebody else has it.
    fn lock(&self, name: &str, how: FlockOperation) -> Result<Option<Lock>> {
        let path = self.inner.directory.join(name);
        let file = File::options().create(true).truncate(false).write(true).open(&path);
        let file = file.doing(|| format!("open {}", path.display()))?;
        loop {
            match flock(&file, how) {
                Ok(()) => return Ok(Some(Lock(file))),
                Err(rustix::io::Errno::WOULDBLOCK) => return Ok(None),
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error).doing(|| format!("lock {}", path.display())),
            }
        }
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
    fn write_atomically(&self, path: &Path, bytes: &[u8]) -> Result<()> {
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

    fn lease_path(&self, holder: &str) -> Result<PathBuf> {
        let word = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-');
        if !(1..=128).contains(&holder.len()) || holder.starts_with('.') || !holder.bytes().all(word) {
            return refused("a lease", format!("`{holder}` cannot be its name"));
        }
        Ok(self.inner.directory.join("leases").join(holder))
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
        let scratch = Scratch(self.tmp_path());
        let file = File::options().read(true).write(true).create_new(true).open(&scratch.0);
        let file = file.doing(|| format!("create {}", scratch.0.display()))?;
        Ok(Ingest { store: self.clone(), scratch, file, hasher: Hasher::default(), size: 0, max })
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
            syncfs(File::open(&root)?)?;
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

impl Index {
    /// The manifest digest a reference stands for.
    pub fn find(&self, reference: &Reference) -> Option<Digest> {
        if let Some(digest) = self.references.get(reference) {
            return Some(digest.clone());
        }
        let pinned = reference.by_digest(reference.digest()?.clone());
        let has = |(_, record): &(&Digest, &Record)| record.repo_digests.contains(&pinned);
        let by_name = |digest: &Digest| {
            self.references.iter().any(|(name, image)| image == digest && name.name() == reference.name())
        };
        match self.images.iter().find(has) {
            Some((digest, _)) => Some(digest.clone()),
            None => reference.digest().filter(|digest| by_name(digest)).cloned(),
        }
    }

    /// Drops an image's record, or marks it for later while somebody holds it.
    pub fn forget(&mut self, digest: &Digest, held: bool) {
        if held {
            if let Some(record) = self.images.get_mut(digest) {
                record.condemned = true;
            }
        } else {
            self.images.remove(digest);
        }
    }

    /// # Panics
    /// If there is no such image; callers have it from this very index.
    pub fn image(&self, digest: &Digest) -> Image {
        let record = self.images.get(digest).expect("references lead to images");
        let named = self.references.iter().filter(|(_, image)| *image == digest);
        Image {
            digest: digest.clone(),
            id: record.config.clone(),
            references: named.map(|(reference, _)| reference.clone()).collect(),
            repo_digests: record.repo_digests.iter().cloned().collect(),
            size: record.size,
            created: record.created.clone(),
            layers: record.layers.iter().map(|layer| layer.diff_id.clone()).collect(),
        }
    }
}

/// A blob on its way in: hashed as it is written, gone if it is not committed.
pub(super) struct Ingest {
    store: Store,
    scratch: Scratch,
    file: File,
    hasher: Hasher,
    size: u64,
    max: u64,
}

impl Ingest {
    /// Bytes written so far.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Forgets what was written.
    pub fn restart(&mut self) -> io::Result<()> {
        self.file.set_len(0)?;
        io::Seek::rewind(&mut self.file)?;
        self.hasher = Hasher::default();
        self.size = 0;
        Ok(())
    }

    /// Puts the blob in its place, if it is what was `expected`.
    pub fn commit(self, expected: Option<&Digest>) -> Result<Digest> {
        let digest = self.hasher.clone().finish();
        if let Some(expected) = expected.filter(|expected| **expected != digest) {
            return refused(
                format!("blob {expected}"),
                format!("its content is damaged (it has digest {digest})"),
            );
        }
        let path = self.store.blob_path(&digest);
        if !path.is_file() {
            let place = || {
                self.file.sync_all()?;
                fs::rename(&self.scratch.0, &path)?;
                sync_directory(path.parent().expect("a blob lies in a directory"))
            };
            place().doing(|| format!("create {}", path.display()))?;
        }
        Ok(digest)
    }
}

impl Write for Ingest {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.size + bytes.len() as u64 > self.max {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                format!("it is larger than {} bytes", self.max),
            ));
        }
        let n = self.file.write(bytes)?;
        self.hasher.update(&bytes[..n]);
        self.size += n as u64;
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

/// A path in `tmp` that is removed with all beneath it, unless it has been renamed away.
pub(super) struct Scratch(pub PathBuf);

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Err(error) = discard(&self.0) {
            tracing::warn!("cannot remove {}: {error}", self.0.display());
        }
    }
}

fn discard(path: &Path) -> io::Result<()> {
    match fs::symlink_metadata(path) {
        Ok(metadata) if metadata.is_dir() => remove_tree(path),
        Ok(_) => fs::remove_file(path),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}

/// Whether an error is about this machine's disk and not about the bytes unpacked.
pub(super) fn is_disk(error: &io::Error) -> bool {
    use io::ErrorKind::{PermissionDenied, QuotaExceeded, ReadOnlyFilesystem, StorageFull};
    matches!(error.kind(), PermissionDenied | QuotaExceeded | ReadOnlyFilesystem | StorageFull)
}

fn sync_directory(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

/// The names in a directory that are valid text; the store makes no others.
fn names(directory: &Path) -> Result<Vec<String>> {
    let list = || -> io::Result<Vec<String>> {
        let entries = fs::read_dir(directory)?;
        entries
            .filter_map(|entry| entry.map(|entry| entry.file_name().into_string().ok()).transpose())
            .collect()
    };
    list().doing(|| format!("list {}", directory.display()))
}

/// A name nobody else has, in this process or another.
pub(super) fn unique() -> String {
    static SERIAL: AtomicU64 = AtomicU64::new(0);
    let mut random = [0; 8];
    // Without randomness (it does not fail on the kernels we run on) process and serial number still tell apart.
    let _ = rustix::rand::getrandom(&mut random, rustix::rand::GetRandomFlags::empty());
    let serial = SERIAL.fetch_add(1, Ordering::Relaxed);
    format!("{:016x}-{}-{serial}", u64::from_ne_bytes(random), std::process::id())
}
