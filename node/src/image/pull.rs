//! Images from registries: what a name means there, and its blobs, checked, resumed and unpacked side by side.

use std::io::Write;
use std::sync::Arc;
use std::time::Duration;

use futures_util::{StreamExt as _, TryStreamExt as _};
use tokio_util::task::TaskTracker;

use rswarm_control::model;

use super::load::{Descriptor, Manifest, UNPACKERS, distinct};
use super::neighbours::{Brought, Neighbourhood};
use super::registry::{Remote, Trouble};
use super::scratch::{Adding, Ingest, is_disk};
use super::store::DOCUMENT_MAX;
use super::{
    Digest, Doing, Error, Image, Platform, Reference, Registries, Result, Store, credentials, refused,
};

/// Blobs fetched at the same time, as Docker does.
pub(super) const DOWNLOADS: usize = 3;
/// How often something is asked for in vain, and the first pause between.
const ATTEMPTS: u32 = 4;
const FIRST_PAUSE: Duration = Duration::from_millis(200);
/// More layers than overlayfs can stack.
const LAYERS_MAX: usize = 500;

/// How far a pull has come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Progress {
    /// The registry said which image the name means now.
    Resolved {
        /// The digest of the manifest, or of the index of manifests.
        digest: Digest,
        /// The layers, lowest first, with their sizes in bytes as transferred.
        layers: Vec<(Digest, u64)>,
    },
    /// A layer was here already.
    Exists(Digest),
    /// Bytes of a layer have come.
    Downloading {
        /// The layer.
        layer: Digest,
        /// Bytes so far; falls back if the transfer has to start again.
        done: u64,
        /// Bytes in all.
        total: u64,
    },
    /// A layer is whole and being unpacked.
    Unpacking(Digest),
    /// A layer is ready.
    Ready(Digest),
}

pub(super) type Report<'a> = &'a (dyn Fn(Progress) + Send + Sync);

/// Platforms of an image that are remembered.
const PLATFORMS_MAX: usize = 32;

/// What a name means at its registry.
#[derive(Clone, Debug)]
pub struct Found {
    /// Of its manifest, or of its index of several.
    pub digest: Digest,
    /// What it was built for, in order; empty where nobody says so.
    pub platforms: Vec<model::Platform>,
}

impl Store {
    /// Fetches an image, or what is new of it, and returns it. The built-in image needs no fetching.
    ///
    /// `report` is called often, from several threads. Blobs and layers are checked against their digests. If
    /// the future is dropped, what has come completely stays until the next collection.
    ///
    /// # Errors
    /// [`Error::Registry`] if the registry cannot be reached, does not have the image or refuses it,
    /// [`Error::Refused`] if what it sent is not what it promised.
    pub async fn pull(
        &self,
        reference: &Reference,
        registries: &Registries,
        report: impl Fn(Progress) + Send + Sync,
    ) -> Result<Image> {
        self.pull_for(&Platform::ours(), reference, registries, report).await
    }

    /// Like [`Store::pull`], but the image for another machine, where there are several under the name.
    ///
    /// # Errors
    /// As for [`Store::pull`].
    pub async fn pull_for(
        &self,
        platform: &Platform,
        reference: &Reference,
        registries: &Registries,
        report: impl Fn(Progress) + Send + Sync,
    ) -> Result<Image> {
        if super::is_builtin(reference) {
            let (store, reference) = (self.clone(), reference.clone());
            return Workers::default().run(move || store.builtin(&reference)).await;
        }
        let turn = self.turn(reference);
        let _turn = turn.lock().await;
        let workers = Workers::adding(self).await?;
        let mut hosts = registries.mirrors.get(reference.registry()).cloned().unwrap_or_default();
        hosts.push(reference.registry().to_owned());
        let mut result = Err(Error::NotFound(reference.to_string()));
        for host in hosts {
            let source = Source::connect(self, &host, reference, registries, &workers).await;
            result = match source {
                Ok(mut source) => {
                    source.neighbourhood = self.inner.neighbourhood.load_full();
                    self.pull_from(&source, platform, &report).await
                }
                Err(error) => Err(error),
            };
            match &result {
                Err(error) if host != reference.registry() => {
                    tracing::info!("mirror {host} did not help: {error}")
                }
                _ => break,
            }
        }
        workers.finish().await;
        if result.is_err() {
            let store = self.clone();
            Workers::default().run(move || store.sweep()).await?;
        }
        result
    }

    /// What a name means at its registry now, and what it was built for, so that all of a service's tasks can run the same.
    ///
    /// # Errors
    /// [`Error::Registry`] if the registry cannot be reached, does not have the image or refuses it.
    pub async fn look_up(&self, reference: &Reference, registries: &Registries) -> Result<Found> {
        let workers = Workers::default();
        let source = Source::connect(self, reference.registry(), reference, registries, &workers).await?;
        let digest = source.remote.digest(&source.name()).await.map_err(|trouble| source.failed(&trouble))?;
        // Where nobody says what an image was built for, each node finds out for itself.
        let platforms = source.platforms(&digest).await.unwrap_or_default();
        Ok(Found { digest, platforms })
    }

    /// The lock that lets one pull of a name work at a time.
    fn turn(&self, reference: &Reference) -> Arc<tokio::sync::Mutex<()>> {
        let mut pulls = self.inner.pulls.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        pulls.retain(|_, turn| turn.strong_count() > 0);
        if let Some(turn) = pulls.get(reference).and_then(std::sync::Weak::upgrade) {
            return turn;
        }
        let turn = Arc::default();
        pulls.insert(reference.clone(), Arc::downgrade(&turn));
        turn
    }

    async fn pull_from(&self, source: &Source<'_>, platform: &Platform, report: Report<'_>) -> Result<Image> {
        let (reference, workers) = (source.reference, source.workers);
        let (top, mut manifest) = source.manifest(None).await?;
        let mut digest = top.clone();
        if manifest.config.is_none() {
            let what = format!("image `{}`", reference.familiar());
            digest = manifest.for_machine(&what, platform)?.digest.clone();
            (_, manifest) = source.manifest(Some(&digest)).await?;
        }
        let Some(config) = manifest.config.clone() else {
            return refused(format!("manifest {digest}"), "it is not an image's manifest");
        };
        if manifest.layers.len() > LAYERS_MAX {
            return refused(format!("manifest {digest}"), format!("it has more than {LAYERS_MAX} layers"));
        }
        report(Progress::Resolved {
            digest: top.clone(),
            layers: manifest.layers.iter().map(|layer| (layer.digest.clone(), layer.size)).collect(),
        });

        source.blob(&config, DOCUMENT_MAX, None).await?;
        let config_digest = config.digest.clone();
        let store = self.clone();
        let diff_ids = workers
            .run(move || {
                super::config::parse(&config_digest, &store.document(&config_digest)?)
                    .map(|(_, diff_ids)| diff_ids)
            })
            .await?;
        if diff_ids.len() != manifest.layers.len() {
            let why =
                format!("it has {} layers, its configuration {}", manifest.layers.len(), diff_ids.len());
            return refused(format!("manifest {digest}"), why);
        }

        let fetch = |(layer, diff_id): (Descriptor, Digest)| async move {
            if self.has_blob(&layer.digest) {
                report(Progress::Exists(layer.digest.clone()));
            } else {
                source.blob(&layer, self.inner.limits.blob_bytes, Some(report)).await?;
            }
            report(Progress::Unpacking(layer.digest.clone()));
            let (store, blob) = (self.clone(), layer.digest.clone());
            workers.run(move || store.unpack(&blob, &diff_id)).await?;
            report(Progress::Ready(layer.digest));
            Ok::<_, Error>(())
        };
        let mut layers = distinct(manifest.layers.clone().into_iter().zip(diff_ids), |(layer, diff_id)| {
            (layer.digest.clone(), diff_id.clone())
        });
        if let Some(neighbourhood) = source.neighbourhood.as_ref().filter(|_| !layers.is_empty()) {
            // Nodes that begin at once each begin with another layer, to have something for the others.
            let first = neighbourhood.first(layers.len());
            layers.rotate_left(first);
        }
        futures_util::stream::iter(layers.into_iter().map(fetch))
            .buffer_unordered(DOWNLOADS.min(UNPACKERS))
            .try_collect::<()>()
            .await?;

        let (store, reference) = (self.clone(), reference.clone());
        workers
            .run(move || {
                let (record, _) = store.describe(&format!("manifest {digest}"), &manifest)?;
                let pinned = reference.by_digest(top);
                store.enter(&digest, record, &[reference], Some(pinned))
            })
            .await
    }
}

/// Runs what waits for the disk where it may wait, with the right to add held until the last of it is done,
/// even if the pull itself is dropped meanwhile.
#[derive(Default)]
pub(super) struct Workers {
    adding: Option<Arc<Adding>>,
    tracker: TaskTracker,
}

impl Workers {
    pub async fn adding(store: &Store) -> Result<Self> {
        let (store, tracker) = (store.clone(), TaskTracker::new());
        let adding = Self::default().run(move || store.adding()).await?;
        Ok(Self { adding: Some(Arc::new(adding)), tracker })
    }

    pub async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let adding = self.adding.clone();
        let work = move || {
            let result = work();
            drop(adding);
            result
        };
        match self.tracker.spawn_blocking(work).await {
            Ok(result) => result,
            Err(error) => match error.try_into_panic() {
                Ok(panic) => std::panic::resume_unwind(panic),
                Err(_) => {
                    Err(std::io::Error::other("this program is shutting down")).doing(|| "finish".into())
                }
            },
        }
    }

    /// Waits for work that a failure left behind, then gives up the right to add.
    pub async fn finish(self) {
        self.tracker.close();
        self.tracker.wait().await;
    }
}

/// One registry, asked for one image.
struct Source<'a> {
    store: &'a Store,
    reference: &'a Reference,
    remote: Remote,
    host: &'a str,
    workers: &'a Workers,
    neighbourhood: Option<Arc<Neighbourhood>>,
}

impl<'a> Source<'a> {
    async fn connect(
        store: &'a Store,
        host: &'a str,
        reference: &'a Reference,
        registries: &Registries,
        workers: &'a Workers,
    ) -> Result<Self> {
        let (settings, registry) = (registries.clone(), host.to_owned());
        // A credential helper may take its time.
        let credentials = workers.run(move || Ok(credentials::find(&settings, &registry))).await?;
        let remote = Remote::new(host, reference.repository(), "pull", registries, credentials)?;
        Ok(Self { store, reference, remote, host, workers, neighbourhood: None })
    }

    /// What the image is called within its repository.
    fn name(&self) -> String {
        match self.reference.digest() {
            Some(digest) => digest.to_string(),
            None => self.reference.tag().unwrap_or("latest").to_owned(),
        }
    }

    fn failed(&self, trouble: &Trouble) -> Error {
        Error::Registry {
            act: format!("pull `{}` from", self.reference.familiar()),
            registry: self.host.into(),
            why: words(trouble, self.host),
        }
    }

    /// Fetches and stores the manifest the reference means, or the one with the digest given.
    async fn manifest(&self, digest: Option<&Digest>) -> Result<(Digest, Manifest)> {
        let turn = match digest.or(self.reference.digest()) {
            Some(digest) => match self.near(digest, None, None).await? {
                Brought::Here => {
                    let (store, digest) = (self.store.clone(), digest.clone());
                    let read = move || {
                        let manifest =
                            Manifest::parse(&format!("manifest {digest}"), &store.document(&digest)?)?;
                        Ok((digest, manifest))
                    };
                    return self.workers.run(read).await;
                }
                Brought::Not(turn) => turn,
            },
            None => None,
        };
        let name = digest.map_or_else(|| self.name(), ToString::to_string);
        let mut attempts = Attempts::default();
        let bytes = loop {
            match self.remote.manifest(&name).await {
                Ok(bytes) => break bytes,
                Err(trouble) if trouble.may_pass() && attempts.again().await => {}
                Err(trouble) => return Err(self.failed(&trouble)),
            }
        };
        let got = Digest::of(&bytes);
        if let Some(expected) = digest.or(self.reference.digest()).filter(|expected| **expected != got) {
            return refused(
                format!("manifest {expected}"),
                format!("the registry sent one with another digest ({got})"),
            );
        }
        let manifest = Manifest::parse(&format!("manifest {got}"), &bytes)?;
        let store = self.store.clone();
        self.workers.run(move || store.put_document(&bytes)).await?;
        if let Some(turn) = turn {
            turn.fetched();
        }
        Ok((got, manifest))
    }

    /// Brings a blob from another node, if one has it.
    async fn near(&self, digest: &Digest, size: Option<u64>, report: Option<Report<'_>>) -> Result<Brought> {
        match &self.neighbourhood {
            Some(at) => at.bring(self.store, self.workers, digest, size, report).await,
            None => Ok(Brought::Not(None)),
        }
    }

    /// What an image was built for, in order: as its index says, or its only configuration.
    async fn platforms(&self, digest: &Digest) -> Result<Vec<model::Platform>> {
        let (_, manifest) = self.manifest(Some(digest)).await?;
        let said: Vec<Platform> = match manifest.config {
            None => manifest.manifests.into_iter().filter_map(|entry| entry.platform).collect(),
            Some(config) => {
                self.blob(&config, DOCUMENT_MAX, None).await?;
                let store = self.store.clone();
                let document = self.workers.run(move || store.document(&config.digest)).await?;
                serde_json::from_slice(&document).into_iter().collect()
            }
        };
        let real = |platform: &Platform| {
            !platform.os.is_empty() && !platform.architecture.is_empty() && platform.os != "unknown"
        };
        let mut platforms: Vec<model::Platform> = said
            .into_iter()
            .filter(real)
            .map(|platform| model::Platform { os: platform.os, arch: platform.architecture })
            .collect();
        platforms.sort();
        platforms.dedup();
        platforms.truncate(PLATFORMS_MAX);
        Ok(platforms)
    }

    /// Fetches a blob into the store; after an interruption only the rest is asked for.
    async fn blob(&self, blob: &Descriptor, max: u64, report: Option<Report<'_>>) -> Result<()> {
        if self.store.has_blob(&blob.digest) {
            return Ok(());
        }
        let what = || format!("blob {}", blob.digest);
        if blob.size > max {
            return refused(what(), format!("it has {} bytes, more than {max}", blob.size));
        }
        let Brought::Not(turn) = self.near(&blob.digest, Some(blob.size), report).await? else {
            return Ok(());
        };
        let mut ingest = self.store.ingest(blob.size)?;
        let mut attempts = Attempts::default();
        loop {
            let before = ingest.size();
            let trouble = match self.transfer(blob, &mut ingest, report).await? {
                Ok(()) => break,
                Err(trouble) => trouble,
            };
            if ingest.size() > before {
                // It gets on, if slowly.
                attempts = Attempts::default();
            }
            tracing::info!("{} was interrupted at {} bytes: {trouble}", what(), ingest.size());
            let may_pass = trouble.may_pass() || matches!(trouble, Trouble::Unreachable(_));
            if !(may_pass && attempts.again().await) {
                return Err(self.failed(&trouble));
            }
        }
        if ingest.size() != blob.size {
            return refused(what(), format!("it has {} bytes instead of {}", ingest.size(), blob.size));
        }
        let digest = blob.digest.clone();
        self.workers.run(move || ingest.commit(Some(&digest))).await?;
        if let Some(turn) = turn {
            turn.fetched();
        }
        Ok(())
    }

    /// Appends to `ingest` what comes. The outer error is final, the inner one may be tried again.
    async fn transfer(
        &self,
        blob: &Descriptor,
        ingest: &mut Ingest,
        report: Option<Report<'_>>,
    ) -> Result<Result<(), Trouble>> {
        let mut stream = match self.remote.blob(&blob.digest, ingest.size()).await {
            Ok(stream) => stream,
            Err(trouble) => return Ok(Err(trouble)),
        };
        if stream.from != ingest.size() {
            ingest.restart().doing(|| "restart a blob".into())?;
        }
        loop {
            let chunk = match self.remote.next(&mut stream).await {
                Ok(Some(chunk)) => chunk,
                Ok(None) => return Ok(Ok(())),
                Err(trouble) => return Ok(Err(trouble)),
            };
            match ingest.write_all(&chunk) {
                Ok(()) => {}
                Err(error) if is_disk(&error) => {
                    return Err(error).doing(|| format!("store blob {}", blob.digest));
                }
                Err(_) => {
                    return refused(
                        format!("blob {}", blob.digest),
                        format!("it has more than the {} bytes it should", blob.size),
                    );
                }
            }
            if let Some(report) = report {
                report(Progress::Downloading {
                    layer: blob.digest.clone(),
                    done: ingest.size(),
                    total: blob.size,
                });
            }
        }
    }
}

/// What a registry's trouble means for the user.
pub(super) fn words(trouble: &Trouble, host: &str) -> String {
    match trouble {
        Trouble::Denied { .. } => format!("{trouble} (`rswarm login {host}` on this node keeps them)"),
        other => other.to_string(),
    }
}

/// How often something was tried, with growing pauses.
pub(super) struct Attempts {
    left: u32,
    pause: Duration,
}

impl Default for Attempts {
    fn default() -> Self {
        Self { left: ATTEMPTS - 1, pause: FIRST_PAUSE }
    }
}

impl Attempts {
    /// Waits before the next attempt; `false` if there is none.
    pub async fn again(&mut self) -> bool {
        if self.left == 0 {
            return false;
        }
        self.left -= 1;
        tokio::time::sleep(self.pause).await;
        self.pause *= 2;
        true
    }
}
