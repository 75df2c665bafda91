//! Images from registries, over HTTPS, or HTTP where that is allowed.

use std::error::Error as StdError;
use std::io::Write;
use std::sync::Arc;
use std::time::Duration;

use futures_util::{StreamExt as _, TryStreamExt as _};
use oci_client::client::{BlobResponse, ClientConfig, ClientProtocol, SizedStream};
use oci_client::errors::OciDistributionError;
use oci_client::manifest::OciDescriptor;
use oci_client::secrets::RegistryAuth;
use tokio_util::task::TaskTracker;

use rswarm_control::model::Platform;

use super::load::{Descriptor, Manifest, UNPACKERS, distinct};
use super::scratch::{Adding, Ingest, is_disk};
use super::store::DOCUMENT_MAX;
use super::{Digest, Doing, Error, Image, Reference, Registries, Result, Store, refused};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// A registry that sends nothing for so long has gone.
const READ_TIMEOUT: Duration = Duration::from_secs(30);
/// Blobs fetched at the same time, as Docker does.
const DOWNLOADS: usize = 3;
/// How often the rest of a blob is asked for after an interruption, and the first pause between.
const ATTEMPTS: u32 = 4;
const FIRST_PAUSE: Duration = Duration::from_millis(200);
/// More layers than overlayfs can stack.
const LAYERS_MAX: usize = 500;

const MANIFEST_TYPES: [&str; 4] = [
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.v2+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
];

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

type Report<'a> = &'a (dyn Fn(Progress) + Send + Sync);

/// Platforms of an image that are remembered.
const PLATFORMS_MAX: usize = 32;

/// What a name means at its registry.
#[derive(Clone, Debug)]
pub struct Found {
    /// Of its manifest, or of its index of several.
    pub digest: Digest,
    /// What it was built for, in order; empty where nobody says so.
    pub platforms: Vec<Platform>,
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
            result = self.pull_from(&host, reference, registries, &workers, &report).await;
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
        let source = Source::connect(self, reference.registry(), reference, registries, &workers)?;
        let (digest, manifest) = source.manifest(None).await?;
        let platforms = match &manifest.config {
            None => manifest.manifests.into_iter().filter_map(|entry| entry.platform).collect(),
            Some(config) => {
                source.blob(config, DOCUMENT_MAX, None).await?;
                let (store, config) = (self.clone(), config.digest.clone());
                let document = workers.run(move || store.document(&config)).await?;
                // What an image's configuration says of its platform; it is checked when the image is pulled.
                serde_json::from_slice(&document).into_iter().collect::<Vec<super::load::Platform>>()
            }
        };
        let stated = |platform: &super::load::Platform| {
            !platform.os.is_empty() && !platform.architecture.is_empty() && platform.os != "unknown"
        };
        let mut platforms: Vec<Platform> = platforms
            .into_iter()
            .filter(stated)
            .map(|platform| Platform { os: platform.os, arch: platform.architecture })
            .collect();
        platforms.sort();
        platforms.dedup();
        platforms.truncate(PLATFORMS_MAX);
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

    async fn pull_from(
        &self,
        host: &str,
        reference: &Reference,
        registries: &Registries,
        workers: &Workers,
        report: Report<'_>,
    ) -> Result<Image> {
        let source = Source::connect(self, host, reference, registries, workers)?;
        let (top, mut manifest) = source.manifest(None).await?;
        let mut digest = top.clone();
        if manifest.config.is_none() {
            let what = format!("image `{}`", reference.familiar());
            digest = manifest.for_this_machine(&what)?.digest.clone();
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

        let source = &source;
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
        let layers = distinct(manifest.layers.clone().into_iter().zip(diff_ids), |(layer, diff_id)| {
            (layer.digest.clone(), diff_id.clone())
        });
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
struct Workers {
    adding: Option<Arc<Adding>>,
    tracker: TaskTracker,
}

impl Workers {
    async fn adding(store: &Store) -> Result<Self> {
        let (store, tracker) = (store.clone(), TaskTracker::new());
        let adding = Self::default().run(move || store.adding()).await?;
        Ok(Self { adding: Some(Arc::new(adding)), tracker })
    }

    async fn run<T: Send + 'static>(&self, work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
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
    async fn finish(self) {
        self.tracker.close();
        self.tracker.wait().await;
    }
}

/// One registry, asked for one image.
struct Source<'a> {
    store: &'a Store,
    reference: &'a Reference,
    client: oci_client::Client,
    auth: RegistryAuth,
    /// The reference in the client's terms, at the host that is asked.
    image: oci_client::Reference,
    host: &'a str,
    workers: &'a Workers,
}

impl<'a> Source<'a> {
    fn connect(
        store: &'a Store,
        host: &'a str,
        reference: &'a Reference,
        registries: &Registries,
        workers: &'a Workers,
    ) -> Result<Self> {
        if rustls::crypto::CryptoProvider::get_default().is_none() {
            // If another thread was faster, its choice is as good.
            let _ = rustls::crypto::ring::default_provider().install_default();
        }
        let (name, registry) = (reference.repository().to_owned(), host.to_owned());
        let tag = reference.tag().unwrap_or("latest").to_owned();
        let image = match reference.digest() {
            Some(digest) => oci_client::Reference::with_digest(registry, name, digest.to_string()),
            None => oci_client::Reference::with_tag(registry, name, tag),
        };
        let failed =
            |why: String| Error::Registry { reference: reference.familiar(), registry: host.into(), why };
        // The client would panic without a single root certificate.
        if rustls_native_certs::load_native_certs().certs.is_empty() {
            return Err(failed(
                "this machine has no root certificates: install the package ca-certificates, or set SSL_CERT_FILE".into(),
            ));
        }
        let insecure = registries.is_insecure(host);
        let config = ClientConfig {
            protocol: if insecure { ClientProtocol::Http } else { ClientProtocol::Https },
            connect_timeout: Some(CONNECT_TIMEOUT),
            read_timeout: Some(READ_TIMEOUT),
            user_agent: concat!("rswarm/", env!("CARGO_PKG_VERSION")),
            ..ClientConfig::default()
        };
        let client = oci_client::Client::try_from(config).map_err(|error| failed(chain(&error)))?;
        Ok(Self { store, reference, client, auth: registries.credentials(host), image, host, workers })
    }

    fn failed(&self, error: &OciDistributionError) -> Error {
        let why = match error {
            OciDistributionError::RegistryError { envelope, .. } => {
                let said = envelope.errors.iter().map(|error| {
                    let code = serde_json::to_value(&error.code).ok();
                    let code =
                        code.as_ref().and_then(serde_json::Value::as_str).unwrap_or("error").to_owned();
                    if error.message.is_empty() { code } else { format!("{} ({code})", error.message) }
                });
                format!("it says: {}", said.collect::<Vec<_>>().join(", "))
            }
            OciDistributionError::ServerError { code: 404, .. }
            | OciDistributionError::ImageManifestNotFoundError(_) => "it has no such image".into(),
            OciDistributionError::ServerError { code, .. } => format!("it answers with status {code}"),
            OciDistributionError::UnauthorizedError { .. }
            | OciDistributionError::AuthenticationFailure(_) => {
                "it has no such image, or it wants credentials (docker login)".into()
            }
            other => chain(other),
        };
        Error::Registry { reference: self.reference.familiar(), registry: self.host.into(), why }
    }

    /// Fetches and stores the manifest the reference means, or the one with the digest given.
    async fn manifest(&self, digest: Option<&Digest>) -> Result<(Digest, Manifest)> {
        let image = match digest {
            Some(digest) => self.image.clone_with_digest(digest.to_string()),
            None => self.image.clone(),
        };
        let pulled = self.client.pull_manifest_raw(&image, &self.auth, &MANIFEST_TYPES).await;
        let (bytes, _) = pulled.map_err(|error| self.failed(&error))?;
        let got = Digest::of(&bytes);
        let what = format!("manifest {got}");
        if bytes.len() as u64 > DOCUMENT_MAX {
            return refused(what, format!("it is larger than {DOCUMENT_MAX} bytes"));
        }
        if let Some(expected) = digest.or(self.reference.digest()).filter(|expected| **expected != got) {
            return refused(format!("manifest {expected}"), format!("the registry sent another one ({got})"));
        }
        let manifest = Manifest::parse(&what, &bytes)?;
        let store = self.store.clone();
        self.workers.run(move || store.put_document(&bytes)).await?;
        Ok((got, manifest))
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
        let mut ingest = self.store.ingest(blob.size)?;
        let mut pause = FIRST_PAUSE;
        for attempt in 1.. {
            match self.transfer(blob, &mut ingest, report).await? {
                Ok(()) => break,
                Err(error) if attempt >= ATTEMPTS || is_final(&error) => return Err(self.failed(&error)),
                Err(error) => {
                    tracing::info!(
                        "{} was interrupted at {} bytes: {}",
                        what(),
                        ingest.size(),
                        chain(&error)
                    );
                    tokio::time::sleep(pause).await;
                    pause *= 2;
                }
            }
        }
        if ingest.size() != blob.size {
            return refused(what(), format!("it has {} bytes instead of {}", ingest.size(), blob.size));
        }
        let digest = blob.digest.clone();
        self.workers.run(move || ingest.commit(Some(&digest))).await.map(drop)
    }

    /// Appends to `ingest` what comes. The outer error is final, the inner one may be tried again.
    async fn transfer(
        &self,
        blob: &Descriptor,
        ingest: &mut Ingest,
        report: Option<Report<'_>>,
    ) -> Result<Result<(), OciDistributionError>> {
        let descriptor = OciDescriptor {
            media_type: blob.media_type.clone(),
            digest: blob.digest.to_string(),
            size: i64::try_from(blob.size).unwrap_or(i64::MAX),
            ..OciDescriptor::default()
        };
        let restart = |ingest: &mut Ingest| ingest.restart().doing(|| "restart a blob".into());
        let opened = match ingest.size() {
            0 => self.client.pull_blob_stream_partial(&self.image, &descriptor, 0, None).await,
            done => self.client.pull_blob_stream_partial(&self.image, &descriptor, done, None).await,
        };
        let SizedStream { mut stream, .. } = match opened {
            Ok(BlobResponse::Partial(stream)) => stream,
            Ok(BlobResponse::Full(stream)) => {
                restart(ingest)?;
                stream
            }
            Err(error) => return Ok(Err(error)),
        };
        while let Some(chunk) = stream.next().await {
            let chunk = match chunk {
                Ok(chunk) => chunk,
                // All has come, so it is its content that is wrong; `commit` says so in our words.
                Err(_) if ingest.size() == blob.size => return Ok(Ok(())),
                Err(error) => return Ok(Err(error.into())),
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
        Ok(Ok(()))
    }
}

/// Whether asking again would bring the same answer.
fn is_final(error: &OciDistributionError) -> bool {
    match error {
        OciDistributionError::RequestError(_) | OciDistributionError::IoError(_) => false,
        OciDistributionError::ServerError { code, .. } => *code < 500 && *code != 429,
        _ => true,
    }
}

/// An error with its causes, which the client's own words often leave out.
fn chain(error: &dyn StdError) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let words = error.to_string();
        if !text.contains(&words) {
            text = format!("{text}: {words}");
        }
        cause = error.source();
    }
    text
}
