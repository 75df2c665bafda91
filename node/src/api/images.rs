//! The images of this machine.

use crate::image::{Digest, Image, ImageConfig, LayerDetails, Platform, Progress, Reference, is_builtin};
use crate::member::Ground;
use crate::rfc3339::nanos;
use anyhow::{Context, Result};
use rswarm_proto::v1 as pb;
use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::Mutex;
use tokio::sync::mpsc;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};

/// The steps of a pull.
pub type Steps = Pin<Box<dyn tokio_stream::Stream<Item = Result<pb::ImageProgress, Status>> + Send>>;

/// All of them.
pub async fn list(ground: &Ground) -> Result<Vec<pb::Image>> {
    let store = ground.images.clone();
    let images = blocking(move || Ok(store.list()?)).await?;
    Ok(images.iter().map(message).collect())
}

fn message(image: &Image) -> pb::Image {
    pb::Image {
        id: image.id.to_string(),
        references: image.references.iter().map(Reference::familiar).collect(),
        created_at_ms: image.created.as_deref().and_then(nanos).map_or(0, |nanos| nanos / 1_000_000),
        size_bytes: image.size,
        digest: image.digest.to_string(),
    }
}

/// All there is to know of some.
pub async fn inspect(ground: &Ground, names: Vec<String>) -> Result<Vec<pb::ImageDetails>> {
    let store = ground.images.clone();
    blocking(move || {
        let one = |name: &String| {
            let details = store.details(name)?;
            let layer = |layer: &LayerDetails| pb::ImageLayer {
                diff_id: layer.diff_id.to_string(),
                blob: layer.blob.as_ref().map(ToString::to_string).unwrap_or_default(),
                size_bytes: layer.size,
            };
            Ok(pb::ImageDetails {
                image: Some(message(&details.image)),
                repo_digests: details.image.repo_digests.iter().map(Reference::familiar).collect(),
                layers: details.layers.iter().map(layer).collect(),
                config: details.config.into(),
            })
        };
        names.iter().map(one).collect()
    })
    .await
}

/// Gives an image one more name.
pub async fn tag(ground: &Ground, request: pb::TagImageRequest) -> Result<()> {
    let store = ground.images.clone();
    blocking(move || {
        let target: Reference = request.target.parse()?;
        anyhow::ensure!(target.digest().is_none(), "`{}`: a digest cannot be given away", request.target);
        anyhow::ensure!(!is_builtin(&target), "`{}`: this name belongs to rswarm", request.target);
        Ok(store.tag(&store.resolve(&request.source)?, &target)?)
    })
    .await
}

/// Removes those that nobody needs.
pub async fn prune(ground: &Ground, request: pb::PruneImagesRequest) -> Result<pb::PruneImagesResponse> {
    let store = ground.images.clone();
    blocking(move || {
        let unwanted = |image: &Image, config: &ImageConfig| {
            let made = image.created.as_deref().and_then(nanos).map_or(0, |nanos| nanos / 1_000_000);
            let old = request.before_ms == 0 || made < request.before_ms;
            let labelled = request.labels.iter().all(|label| match label.split_once('=') {
                Some((name, value)) => config.labels.get(name).is_some_and(|is| is == value),
                None => config.labels.contains_key(label),
            });
            old && labelled
        };
        let pruned = store.prune_if(request.all, unwanted)?;
        let names = pruned.images.iter().flat_map(|image| &image.references);
        Ok(pb::PruneImagesResponse {
            untagged: names.map(Reference::familiar).collect(),
            deleted: pruned.images.iter().map(|image| image.id.to_string()).collect(),
            reclaimed_bytes: pruned.swept.bytes,
            deferred: pruned.swept.deferred,
        })
    })
    .await
}

/// The pieces of an archive.
pub type Pieces = Pin<Box<dyn tokio_stream::Stream<Item = Result<pb::ImageChunk, Status>> + Send>>;

/// Writes some into an archive.
pub fn save(ground: &Ground, names: Vec<String>) -> Pieces {
    let store = ground.images.clone();
    let (sender, receiver) = mpsc::channel(4);
    // It ends when the archive does, or when nobody reads it any more.
    tokio::task::spawn_blocking(move || {
        let out = std::io::BufWriter::with_capacity(CHUNK_BYTES, Pipe(sender.clone()));
        if let Err(error) = store.save(&names, out) {
            let _ = sender.blocking_send(Err(Status::failed_precondition(error.to_string())));
        }
    });
    Box::pin(ReceiverStream::new(receiver))
}

const CHUNK_BYTES: usize = 256 << 10;

/// Sends on what is written.
struct Pipe(mpsc::Sender<Result<pb::ImageChunk, Status>>);

impl std::io::Write for Pipe {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let piece = &bytes[..bytes.len().min(CHUNK_BYTES)];
        let chunk = pb::ImageChunk { data: piece.to_vec().into() };
        match self.0.blocking_send(Ok(chunk)) {
            Ok(()) => Ok(piece.len()),
            Err(_) => Err(std::io::ErrorKind::BrokenPipe.into()),
        }
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// Fetches one, telling how it goes. The last step has the digest.
pub fn pull(ground: &Ground, request: &pb::PullImageRequest) -> Result<Steps> {
    let reference: Reference = request.reference.parse()?;
    let platform = match &*request.platform {
        "" => Platform::ours(),
        said => said.parse()?,
    };
    let ground = ground.clone();
    let (sender, receiver) = mpsc::channel(64);
    tokio::spawn(async move {
        let known = ground.images.resolve(&reference.to_string()).ok();
        let (sizes, steps) = (Mutex::new(BTreeMap::new()), sender.clone());
        // A caller that reads slowly misses steps, not the end.
        let report = |progress| {
            for step in told(progress, &sizes, &PULL) {
                let _ = steps.try_send(Ok(step));
            }
        };
        let last = match ground.images.pull_for(&platform, &reference, &ground.registries, report).await {
            Ok(image) => {
                let same = known.is_some_and(|known| known.digest == image.digest);
                let status = if same { "Image is up to date" } else { "Downloaded newer image" };
                Ok(pb::ImageProgress {
                    status: format!("{status} for {}", reference.familiar()),
                    digest: image.digest.to_string(),
                    reference: reference.familiar(),
                    ..Default::default()
                })
            }
            Err(error) => Err(Status::failed_precondition(error.to_string())),
        };
        let _ = sender.send(last).await;
    });
    Ok(Box::pin(ReceiverStream::new(receiver)))
}

/// Sends one to its registry, telling how it goes. The last step has the digest, and the manifest's size as total.
pub fn push(ground: &Ground, reference: &str) -> Result<Steps> {
    let reference: Reference = reference.parse()?;
    let ground = ground.clone();
    let (sender, receiver) = mpsc::channel(64);
    tokio::spawn(async move {
        let (sizes, steps) = (Mutex::new(BTreeMap::new()), sender.clone());
        let report = move |progress| {
            for step in told(progress, &sizes, &PUSH) {
                let _ = steps.try_send(Ok(step));
            }
        };
        let last = match ground.images.push(&reference, &ground.registries, report).await {
            Ok(pushed) => Ok(pb::ImageProgress {
                status: "Pushed".into(),
                digest: pushed.digest.to_string(),
                reference: reference.familiar(),
                total: pushed.size as u64,
                ..Default::default()
            }),
            Err(error) => Err(Status::failed_precondition(error.to_string())),
        };
        let _ = sender.send(last).await;
    });
    Ok(Box::pin(ReceiverStream::new(receiver)))
}

/// Docker's words for the steps of a layer.
struct Terms {
    begun: &'static str,
    exists: &'static str,
    moving: &'static str,
    ready: &'static str,
}

const PULL: Terms = Terms {
    begun: "Pulling fs layer",
    exists: "Already exists",
    moving: "Downloading",
    ready: "Pull complete",
};
const PUSH: Terms =
    Terms { begun: "Preparing", exists: "Layer already exists", moving: "Pushing", ready: "Pushed" };

/// A step in Docker's words.
fn told(progress: Progress, sizes: &Mutex<BTreeMap<Digest, u64>>, terms: &Terms) -> Vec<pb::ImageProgress> {
    let step = |layer: &Digest, status: &str, current, total| pb::ImageProgress {
        id: layer.short().to_owned(),
        status: status.to_owned(),
        current,
        total,
        ..Default::default()
    };
    let mut sizes = sizes.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let size = |sizes: &BTreeMap<Digest, u64>, layer: &Digest| sizes.get(layer).copied().unwrap_or(0);
    match progress {
        Progress::Resolved { layers, .. } => {
            sizes.extend(layers.iter().cloned());
            layers.iter().map(|(layer, size)| step(layer, terms.begun, 0, *size)).collect()
        }
        Progress::Exists(layer) => {
            let size = size(&sizes, &layer);
            vec![step(&layer, terms.exists, size, size)]
        }
        Progress::Downloading { layer, done, total } => vec![step(&layer, terms.moving, done, total)],
        Progress::Unpacking(layer) => {
            let size = size(&sizes, &layer);
            vec![step(&layer, "Extracting", size, size)]
        }
        Progress::Ready(layer) => {
            let size = size(&sizes, &layer);
            vec![step(&layer, terms.ready, size, size)]
        }
    }
}

/// Takes an archive in, and returns the names in it.
pub async fn load(ground: &Ground, chunks: Streaming<pb::LoadImageChunk>) -> Result<Vec<String>> {
    let bytes = chunks.map(|chunk| chunk.map(|chunk| chunk.data).map_err(std::io::Error::other));
    let reader = tokio_util::io::StreamReader::new(bytes);
    let reader = tokio_util::io::SyncIoBridge::new(Box::pin(reader));
    let store = ground.images.clone();
    let loaded = blocking(move || Ok(store.load(reader)?)).await?;
    Ok(loaded
        .into_iter()
        .flat_map(|loaded| match loaded.references.is_empty() {
            true => vec![loaded.image.id.to_string()],
            false => loaded.references.iter().map(Reference::familiar).collect(),
        })
        .collect())
}

/// Removes a name, and what belongs to nothing any more.
pub async fn remove(ground: &Ground, name: String, force: bool) -> Result<pb::RemoveImageResponse> {
    let store = ground.images.clone();
    blocking(move || {
        let image = store.resolve(&name)?;
        store.remove(&name, force)?;
        let gone = store.list()?.iter().all(|left| left.digest != image.digest);
        let untagged = match name.parse::<Reference>() {
            Ok(reference) if image.references.contains(&reference) && !gone => vec![reference.familiar()],
            _ => image.references.iter().map(Reference::familiar).collect(),
        };
        let deleted = if gone { vec![image.id.to_string()] } else { Vec::new() };
        Ok(pb::RemoveImageResponse { untagged, deleted })
    })
    .await
}

/// Keeps credentials that a registry accepts.
pub async fn login(ground: &Ground, request: pb::LoginRequest) -> Result<pb::LoginResponse> {
    let pb::LoginRequest { registry, username, password } = request;
    let registry = ground.registries.login(&registry, &username, &password).await?;
    Ok(pb::LoginResponse { registry })
}

/// Forgets credentials.
pub async fn logout(ground: &Ground, request: pb::LogoutRequest) -> Result<pb::LogoutResponse> {
    let registries = ground.registries.clone();
    blocking(move || {
        let (registry, known) = registries.logout(&request.registry)?;
        Ok(pb::LogoutResponse { registry, known })
    })
    .await
}

/// Runs what touches the disk off the async threads.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    tokio::task::spawn_blocking(work).await.context("the image store has panicked")?
}
