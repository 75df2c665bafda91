//! The images of this machine.

use crate::image::{Digest, Progress, Reference};
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
    Ok(images
        .into_iter()
        .map(|image| pb::Image {
            id: image.id.to_string(),
            references: image.references.iter().map(Reference::familiar).collect(),
            created_at_ms: image.created.and_then(|at| nanos(&at)).map_or(0, |nanos| nanos / 1_000_000),
            size_bytes: image.size,
            digest: image.digest.to_string(),
        })
        .collect())
}

/// Fetches one, telling how it goes. The last step has the digest.
pub fn pull(ground: &Ground, reference: &str) -> Result<Steps> {
    let reference: Reference = reference.parse()?;
    let ground = ground.clone();
    let (sender, receiver) = mpsc::channel(64);
    tokio::spawn(async move {
        let known = ground.images.resolve(&reference.to_string()).ok();
        let (sizes, steps) = (Mutex::new(BTreeMap::new()), sender.clone());
        // A caller that reads slowly misses steps, not the end.
        let report = |progress| {
            for step in told(progress, &sizes) {
                let _ = steps.try_send(Ok(step));
            }
        };
        let last = match ground.images.pull(&reference, &ground.registries, report).await {
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

/// A step in Docker's words.
fn told(progress: Progress, sizes: &Mutex<BTreeMap<Digest, u64>>) -> Vec<pb::ImageProgress> {
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
            layers.iter().map(|(layer, size)| step(layer, "Pulling fs layer", 0, *size)).collect()
        }
        Progress::Exists(layer) => {
            let size = size(&sizes, &layer);
            vec![step(&layer, "Already exists", size, size)]
        }
        Progress::Downloading { layer, done, total } => vec![step(&layer, "Downloading", done, total)],
        Progress::Unpacking(layer) => {
            let size = size(&sizes, &layer);
            vec![step(&layer, "Extracting", size, size)]
        }
        Progress::Ready(layer) => {
            let size = size(&sizes, &layer);
            vec![step(&layer, "Pull complete", size, size)]
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

/// Runs what touches the disk off the async threads.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    tokio::task::spawn_blocking(work).await.context("the image store has panicked")?
}
