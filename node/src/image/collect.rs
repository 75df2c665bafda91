//! What stays and what goes: leases, removal, and the collection of what belongs to no image.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::PathBuf;

use super::scratch::{discard, names, tree_bytes};
use super::{Digest, Doing, Error, Image, ImageConfig, Reference, Result, Store, refused};

/// What a collection did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Swept {
    /// Blobs removed.
    pub blobs: usize,
    /// Unpacked layers removed.
    pub layers: usize,
    /// Bytes that these took on the disk.
    pub bytes: u64,
    /// A pull or load was under way, so nothing was removed; the next collection will.
    pub deferred: bool,
}

/// What was pruned.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pruned {
    /// The images that were removed, as they were.
    pub images: Vec<Image>,
    /// What went with them.
    pub swept: Swept,
}

impl Store {
    /// Removes a name, and with its last name the image. By digest or id, all of an image's names go.
    ///
    /// An image that containers hold is not removed unless `force`d; then its names go now, and its bytes
    /// with the last container.
    ///
    /// # Errors
    /// [`Error::InUse`], [`Error::NotFound`], and [`Error::Ambiguous`] for the beginning of several ids.
    pub fn remove(&self, name: &str, force: bool) -> Result<Swept> {
        let reference = name.parse::<Reference>().ok();
        // The lock makes finding the image, asking for leases and removing it one step.
        self.update(|index| {
            let named = reference.as_ref().filter(|reference| index.references.contains_key(reference));
            let digest = match reference.as_ref().and_then(|reference| index.find(reference)) {
                Some(digest) => digest,
                None => index.by_id(name)?.ok_or_else(|| Error::NotFound(name.into()))?,
            };
            let names = index.references.values().filter(|image| **image == digest).count();
            let last = named.is_none() || names <= 1;
            let leases = self.leases()?;
            let holders: Vec<&str> =
                leases.iter().filter(|(_, image)| **image == digest).map(|(holder, _)| &**holder).collect();
            if last && !holders.is_empty() && !force {
                return Err(Error::InUse { image: name.into(), holders: holders.join(", ") });
            }
            match named {
                Some(reference) => drop(index.references.remove(reference)),
                None => index.references.retain(|_, image| *image != digest),
            }
            if last {
                index.forget(&digest, !holders.is_empty());
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
    pub fn prune(&self, all: bool) -> Result<Pruned> {
        self.prune_if(all, |_, _| true)
    }

    /// Like [`Store::prune`], but only those images for which `unwanted` says so of the image and its
    /// configuration.
    ///
    /// # Errors
    /// If the disk refuses.
    pub fn prune_if(&self, all: bool, unwanted: impl Fn(&Image, &ImageConfig) -> bool) -> Result<Pruned> {
        let images = self.update(|index| {
            let named: BTreeSet<Digest> =
                if all { BTreeSet::new() } else { index.references.values().cloned().collect() };
            let held: BTreeSet<Digest> = self.leases()?.into_values().collect();
            let free = |digest: &&Digest| !named.contains(digest) && !held.contains(digest);
            let free: Vec<Image> =
                index.images.keys().filter(free).map(|digest| index.image(digest)).collect();
            // One whose configuration is damaged is of no use to anybody.
            let gone = |image: &Image| self.config(image).map_or(true, |config| unwanted(image, &config));
            let gone: Vec<Image> = free.into_iter().filter(gone).collect();
            index.images.retain(|digest, _| gone.iter().all(|image| image.digest != *digest));
            let images = &index.images;
            index.references.retain(|_, digest| images.contains_key(digest));
            Ok(gone)
        })?;
        Ok(Pruned { images, swept: self.sweep()? })
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
            // The index of several machines' images, by which others know this one.
            blobs.extend(record.repo_digests.iter().filter_map(|pinned| pinned.digest()).map(Digest::hex));
            blobs.extend(record.layers.iter().filter_map(|layer| layer.blob.as_ref()).map(Digest::hex));
            layers.extend(record.layers.iter().map(|layer| layer.diff_id.hex()));
        }
        let mut swept = Swept::default();
        let directory = self.inner.directory.join("blobs/sha256");
        for name in names(&directory)?.iter().filter(|name| !blobs.contains(&***name)) {
            let path = directory.join(name);
            swept.bytes += fs::symlink_metadata(&path).map_or(0, |file| file.len());
            fs::remove_file(&path).doing(|| format!("remove {}", path.display()))?;
            swept.blobs += 1;
        }
        let directory = self.inner.directory.join("layers");
        for name in names(&directory)?.iter().filter(|name| !layers.contains(&***name)) {
            let path = directory.join(name);
            swept.bytes += tree_bytes(&path);
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

    fn lease_path(&self, holder: &str) -> Result<PathBuf> {
        let word = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-');
        if !(1..=128).contains(&holder.len()) || holder.starts_with('.') || !holder.bytes().all(word) {
            return refused("a lease", format!("`{holder}` cannot be its name"));
        }
        Ok(self.inner.directory.join("leases").join(holder))
    }
}
