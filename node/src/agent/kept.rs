//! The last table, on disk for the time after a restart until the leader is heard. It may be large and change often, so
//! what follows closely on what was written waits a moment.

use crate::identity::write_atomically;
use anyhow::{Context, Result};
use prost::Message;
use rswarm_control::endpoints::Table;
use rswarm_proto::v1 as pb;
use std::path::PathBuf;
use std::time::Duration;
use tokio::time::Instant;

/// The longest time between one writing and the next.
const PAUSE_MAX: Duration = Duration::from_secs(1);
/// The same as a multiple of how long it takes.
const PAUSE_FOR_EACH: u32 = 10;

/// The table in force, and the file that it is kept in.
pub(super) struct Kept {
    path: PathBuf,
    /// What is not in the file yet, and its generation.
    news: Option<(Table, u64)>,
    /// From when on it may be written.
    from: Instant,
}

impl Kept {
    /// Nothing new yet.
    pub(super) fn new(path: PathBuf) -> Self {
        Self { path, news: None, from: Instant::now() }
    }

    /// What was kept last.
    pub(super) async fn last(&self) -> Option<Table> {
        let bytes = tokio::fs::read(&self.path).await.ok()?;
        let read = || -> Result<Table> { Ok(pb::Table::decode(bytes.as_slice())?.try_into()?) };
        let table = read();
        table.inspect_err(|error| tracing::warn!(%error, "the table of the last session cannot be read")).ok()
    }

    /// This one is in force.
    pub(super) fn note(&mut self, table: Table, generation: u64) {
        self.news = Some((table, generation));
    }

    /// Waits until something is to be written.
    pub(super) async fn due(&self) {
        match self.news {
            None => std::future::pending().await,
            Some(_) => tokio::time::sleep_until(self.from).await,
        }
    }

    /// Writes what is new.
    pub(super) async fn write(&mut self) {
        let Some((table, generation)) = self.news.take() else { return };
        let (path, began) = (self.path.clone(), Instant::now());
        let write = move || {
            let message = pb::Table { generation, ..(&table).into() };
            write_atomically(&path, &message.encode_to_vec())
        };
        let written = tokio::task::spawn_blocking(write).await.context("the writer broke off").flatten();
        if let Err(error) = written {
            tracing::warn!(error = format!("{error:#}"), "cannot keep the table");
        }
        self.from = Instant::now() + pause(began.elapsed());
    }
}

/// After a writing that took so long.
fn pause(took: Duration) -> Duration {
    (took * PAUSE_FOR_EACH).min(PAUSE_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rswarm_control::NodeId;

    #[test]
    fn what_takes_long_is_done_seldom() {
        assert_eq!(pause(Duration::from_millis(3)), Duration::from_millis(30));
        assert_eq!(pause(Duration::from_secs(9)), PAUSE_MAX);
    }

    #[tokio::test]
    async fn the_last_of_several_tables_is_kept() {
        let table = |peers: u64| {
            let peer = |number| (NodeId(number), "192.0.2.1:2377".to_owned());
            Table { peers: (0..peers).map(peer).collect(), ..Table::default() }
        };
        let dir = tempfile::tempdir().expect("a directory");
        let mut kept = Kept::new(dir.path().join("table.pb"));
        assert_eq!(kept.last().await, None);
        for tables in [1..2, 2..9] {
            for peers in tables {
                kept.note(table(peers), peers);
            }
            kept.due().await;
            kept.write().await;
        }
        assert_eq!(kept.last().await, Some(table(8)));
        assert_eq!(Kept::new(dir.path().join("table.pb")).last().await, Some(table(8)));
    }
}
