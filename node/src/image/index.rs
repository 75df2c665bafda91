//! The store's index: which names mean which images, and what each consists of.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::{Digest, Error, Image, Reference, Result, builtin};

#[derive(Serialize, Deserialize, Default, Clone)]
pub(super) struct Index {
    pub format: u32,
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

    /// The manifest digest that a digest, an id or the beginning of one stands for.
    pub fn by_id(&self, text: &str) -> Result<Option<Digest>> {
        let id = text.strip_prefix("sha256:").unwrap_or(text).to_ascii_lowercase();
        if !(4..=64).contains(&id.len()) || !id.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Ok(None);
        }
        let fits = |(digest, record): &(&Digest, &Record)| {
            digest.hex().starts_with(&id) || record.config.hex().starts_with(&id)
        };
        let mut found = self.images.iter().filter(fits).map(|(digest, _)| digest);
        match (found.next(), found.next()) {
            (Some(_), Some(_)) => Err(Error::Ambiguous(text.into())),
            (found, _) => Ok(found.cloned()),
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
