//! Images to registries: what the registry has already is not sent again.

use std::sync::Arc;

use futures_util::future::BoxFuture;
use futures_util::{FutureExt as _, StreamExt as _, TryStreamExt as _};

use super::load::{Descriptor, Manifest};
use super::pull::{Attempts, DOWNLOADS, Workers, words};
use super::registry::{Remote, Trouble};
use super::{
    Digest, Error, Image, Progress, Reference, Registries, Result, Store, credentials, is_builtin, refused,
};

/// What a push has brought to the registry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pushed {
    /// The digest of the manifest.
    pub digest: Digest,
    /// Bytes of the manifest.
    pub size: usize,
}

impl Store {
    /// Sends the image that has this name to the registry in its name, under its tag.
    ///
    /// `report` is called often, from several threads; [`Progress::Downloading`] counts bytes sent.
    ///
    /// # Errors
    /// [`Error::NotFound`] if there is no such image here, [`Error::Registry`] if the registry cannot be reached or
    /// refuses it.
    pub async fn push(
        &self,
        reference: &Reference,
        registries: &Registries,
        report: impl Fn(Progress) + Send + Sync + 'static,
    ) -> Result<Pushed> {
        let Some(tag) = reference.tag() else {
            return refused(format!("image `{}`", reference.familiar()), "a push needs a tag, not a digest");
        };
        if is_builtin(reference) {
            return refused(
                format!("image `{}`", reference.familiar()),
                "it is part of rswarm, on every node",
            );
        }
        // What is being sent is not collected meanwhile.
        let workers = Workers::adding(self).await?;
        let (store, name) = (self.clone(), reference.to_string());
        let (image, bytes) = workers
            .run(move || {
                let image = store.resolve(&name)?;
                let bytes = store.document(&image.digest)?;
                Ok((image, bytes))
            })
            .await?;
        let (settings, host) = (registries.clone(), reference.registry().to_owned());
        let credentials = workers.run(move || Ok(credentials::find(&settings, &host))).await?;
        let remote =
            Remote::new(reference.registry(), reference.repository(), "pull,push", registries, credentials)?;
        let push = Push { store: self, reference, remote, report: Arc::new(report) };
        push.everything(&image, tag, &bytes).await?;
        let pinned = reference.by_digest(image.digest.clone());
        let (store, digest) = (self.clone(), image.digest.clone());
        workers.run(move || store.known_by(&digest, pinned)).await?;
        workers.finish().await;
        Ok(Pushed { digest: image.digest, size: bytes.len() })
    }

    /// Notes that a registry has the image under this digest.
    fn known_by(&self, digest: &Digest, pinned: Reference) -> Result<()> {
        self.update(|index| {
            if let Some(record) = index.images.get_mut(digest) {
                record.repo_digests.insert(pinned);
            }
            Ok(())
        })
    }
}

struct Push<'a> {
    store: &'a Store,
    reference: &'a Reference,
    remote: Remote,
    report: Arc<dyn Fn(Progress) + Send + Sync>,
}

impl Push<'_> {
    async fn everything(&self, image: &Image, tag: &str, bytes: &[u8]) -> Result<()> {
        let what = format!("manifest {}", image.digest);
        let manifest = Manifest::parse(&what, bytes)?;
        let Some(config) = &manifest.config else { return refused(what, "it is not an image's manifest") };
        (self.report)(Progress::Resolved {
            digest: image.digest.clone(),
            layers: manifest.layers.iter().map(|layer| (layer.digest.clone(), layer.size)).collect(),
        });
        // The questions that follow are answered without words, this one is not.
        self.persist(|| self.remote.enter().boxed()).await?;
        let mut seen = std::collections::BTreeSet::new();
        let layers = manifest.layers.iter().filter(|layer| seen.insert(&layer.digest));
        futures_util::stream::iter(layers.map(|layer| self.blob(layer, true).boxed()).collect::<Vec<_>>())
            .buffer_unordered(DOWNLOADS)
            .try_collect::<()>()
            .await?;
        self.blob(config, false).await?;
        let kind = match &*manifest.media_type {
            "" => "application/vnd.oci.image.manifest.v1+json",
            said => said,
        };
        self.persist(|| self.remote.send_manifest(tag, kind, bytes).boxed()).await
    }

    async fn blob(&self, blob: &Descriptor, told: bool) -> Result<()> {
        let tell = |progress| {
            if told {
                (self.report)(progress)
            }
        };
        if self.persist(|| self.remote.has_blob(&blob.digest).boxed()).await? {
            tell(Progress::Exists(blob.digest.clone()));
            return Ok(());
        }
        let path = self.store.blob_path(&blob.digest);
        let (report, digest, total) = (self.report.clone(), blob.digest.clone(), blob.size);
        let sent = move |done| {
            if told {
                report(Progress::Downloading { layer: digest.clone(), done, total });
            }
        };
        self.persist(|| self.remote.send_blob(&blob.digest, &path, blob.size, sent.clone()).boxed()).await?;
        tell(Progress::Ready(blob.digest.clone()));
        Ok(())
    }

    /// Asks again where that may help.
    async fn persist<'a, T>(
        &self,
        ask: impl Fn() -> BoxFuture<'a, Result<T, Trouble>> + Send + Sync,
    ) -> Result<T> {
        let mut attempts = Attempts::default();
        loop {
            match ask().await {
                Ok(answer) => return Ok(answer),
                Err(trouble) if trouble.may_pass() && attempts.again().await => {}
                Err(trouble) => {
                    return Err(Error::Registry {
                        act: format!("push `{}` to", self.reference.familiar()),
                        registry: self.reference.registry().into(),
                        why: words(&trouble, self.reference.registry()),
                    });
                }
            }
        }
    }
}
