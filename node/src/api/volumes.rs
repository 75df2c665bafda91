//! The volumes of this machine.

use crate::member::Ground;
use crate::volume::{Error, Volume};
use anyhow::{Context as _, Result};
use rswarm_proto::v1 as pb;
use std::sync::Arc;

/// The label of a container for each of its volumes begins so; the value is the volume's name.
pub const LABEL: &str = "rswarm.volume.";

/// The containers that have a volume, by the names of their tasks.
fn users(ground: &Ground, volume: &str) -> Vec<String> {
    let has = |labels: &std::collections::BTreeMap<String, String>| {
        labels.iter().any(|(key, value)| key.starts_with(LABEL) && value == volume)
    };
    let containers = ground.executor.list().into_iter().filter(|container| has(&container.labels));
    containers.map(|it| it.labels.get("rswarm.task").cloned().unwrap_or(it.id)).collect()
}

fn message(ground: &Ground, volume: Volume) -> pb::Volume {
    pb::Volume {
        users: users(ground, &volume.name),
        name: volume.name,
        created_at_ms: volume.created_at_ms,
        labels: volume.labels.into_iter().collect(),
        path: volume.path.display().to_string(),
        snapshots: volume.snapshots,
    }
}

/// Makes one; without a name it gets one.
pub async fn create(ground: &Ground, request: pb::CreateVolumeRequest) -> Result<pb::Volume> {
    blocking(ground, move |ground| {
        let name = match request.name.is_empty() {
            true => crate::identity::random::<32>().iter().map(|byte| format!("{byte:02x}")).collect(),
            false => request.name,
        };
        let labels = request.labels.into_iter().collect();
        let volume = ground.volumes.create(&name, labels, crate::manager::clock::now().0)?;
        Ok(message(ground, volume))
    })
    .await
}

/// Those named, or all.
pub async fn list(ground: &Ground, names: Vec<String>) -> Result<Vec<pb::Volume>> {
    blocking(ground, move |ground| {
        let volumes = match names.is_empty() {
            true => ground.volumes.list()?,
            false => names.iter().map(|name| ground.volumes.get(name)).collect::<Result<_, _>>()?,
        };
        Ok(volumes.into_iter().map(|volume| message(ground, volume)).collect())
    })
    .await
}

/// Removes one that no container has. With `force`, one that is not there is no error.
pub async fn remove(ground: &Ground, request: pb::RemoveVolumeRequest) -> Result<()> {
    blocking(ground, move |ground| {
        match ground.volumes.remove(&request.name, || users(ground, &request.name)) {
            Err(Error::NotFound(_)) if request.force => Ok(()),
            removed => Ok(removed?),
        }
    })
    .await
}

/// Copies one aside.
pub async fn snapshot(ground: &Ground, request: pb::SnapshotVolumeRequest) -> Result<()> {
    blocking(ground, move |ground| Ok(ground.volumes.snapshot(&request.name, &request.snapshot)?)).await
}

/// Puts a copy back.
pub async fn restore(ground: &Ground, request: pb::SnapshotVolumeRequest) -> Result<()> {
    blocking(ground, move |ground| {
        let users = || users(ground, &request.name);
        Ok(ground.volumes.restore(&request.name, &request.snapshot, users)?)
    })
    .await
}

async fn blocking<T: Send + 'static>(
    ground: &Ground,
    work: impl FnOnce(&Ground) -> Result<T> + Send + 'static,
) -> Result<T> {
    let ground = Arc::new(ground.clone());
    tokio::task::spawn_blocking(move || work(&ground)).await.context("the volume store has panicked")?
}
