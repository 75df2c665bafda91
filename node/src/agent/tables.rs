//! What this node knows of the overlay: followed as the leader tells it, put in force, said to be, and kept.

use super::kept::Kept;
use super::news::{Follower, Trouble};
use super::session::Outbox;
use super::table;
use rswarm_control::endpoints::Table;
use rswarm_control::ids::NodeId;
use rswarm_netoverlay::{Error, Overlay, table as overlay};
use rswarm_proto::v1 as pb;
use std::net::SocketAddr;
use std::path::PathBuf;

/// Takes tables.
pub(super) trait Takes {
    /// Makes a table the one in force, or refuses it.
    async fn take(&self, table: overlay::Table) -> Result<(), Error>;
}

impl Takes for Overlay {
    async fn take(&self, table: overlay::Table) -> Result<(), Error> {
        self.apply(table).await
    }
}

/// What was told, and what became of it.
pub(super) struct Tables {
    node: NodeId,
    my_addr: SocketAddr,
    told: Follower,
    kept: Kept,
    outbox: Outbox,
}

impl Tables {
    /// Nothing told yet. The table in force is kept at `path`.
    pub(super) fn new(node: NodeId, my_addr: SocketAddr, path: PathBuf, outbox: Outbox) -> Self {
        Self { node, my_addr, told: Follower::default(), kept: Kept::new(path), outbox }
    }

    /// A whole table.
    pub(super) async fn table(&mut self, message: pb::Table, overlay: &impl Takes) {
        let generation = message.generation;
        match Table::try_from(message) {
            Ok(table) => self.put_in_force(table, generation, overlay).await,
            Err(error) => tracing::error!(%error, "the leader's table cannot be read"),
        }
    }

    /// Follows what is new of the table, or asks for the whole.
    pub(super) async fn news(&mut self, message: &pb::TableNews, overlay: &impl Takes) {
        match self.told.follow(message) {
            Ok(()) => self.put_in_force(self.told.table(self.node), message.generation, overlay).await,
            Err(Trouble::Missed { had }) => {
                let follows = message.follows;
                tracing::warn!(had, follows, "news do not follow the table: asking for the whole");
                self.outbox.missed(had);
            }
            Err(Trouble::Unreadable { had, error }) => {
                tracing::error!(%error, "the leader's table cannot be read");
                // Another whole would be no better than this one; it is asked for when news come that do not follow.
                if message.follows != 0 {
                    self.outbox.missed(had);
                }
            }
        }
    }

    /// Only what is in force is said to be, and kept.
    async fn put_in_force(&mut self, table: Table, generation: u64, overlay: &impl Takes) {
        if self.apply(&table, generation, overlay).await {
            self.outbox.taken(generation);
            self.kept.note(table, generation);
        }
    }

    async fn apply(&self, table: &Table, generation: u64, overlay: &impl Takes) -> bool {
        let table = table::translate(table, generation, self.node, self.my_addr);
        let taken = overlay.take(table).await;
        taken.inspect_err(|error| tracing::warn!(%error, "the overlay does not take the table")).is_ok()
    }

    /// Until the leader is heard, what was last heard holds: networks work without managers.
    pub(super) async fn remember(&self, overlay: &impl Takes) {
        if let Some(table) = self.kept.last().await {
            // Whatever comes from the leader is newer.
            self.apply(&table, 0, overlay).await;
        }
    }

    /// Waits until something is to be written.
    pub(super) async fn due(&self) {
        self.kept.due().await;
    }

    /// Writes what is in force.
    pub(super) async fn write(&mut self) {
        self.kept.write().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rswarm_proto::v1::from_node::What as Up;
    use std::cell::Cell;

    struct Fake(Cell<bool>);

    impl Takes for Fake {
        async fn take(&self, _: overlay::Table) -> Result<(), Error> {
            if self.0.get() { Ok(()) } else { Err(Error::Stopped) }
        }
    }

    fn tables(dir: &tempfile::TempDir) -> (Tables, Outbox, Fake) {
        let (outbox, path) = (Outbox::default(), dir.path().join("table.pb"));
        let my_addr = SocketAddr::from(([192, 0, 2, 1], 2377));
        (Tables::new(NodeId(1), my_addr, path, outbox.clone()), outbox, Fake(Cell::new(true)))
    }

    fn news(follows: u64, generation: u64) -> pb::TableNews {
        pb::TableNews { follows, generation, ..pb::TableNews::default() }
    }

    #[tokio::test]
    async fn what_the_overlay_does_not_take_is_not_said_to_be_in_force_and_not_kept() {
        let dir = tempfile::tempdir().expect("a directory");
        let (mut tables, outbox, overlay) = tables(&dir);
        tables.news(&news(0, 3), &overlay).await;
        assert_eq!(outbox.take(), [Up::Taken(3)]);
        overlay.0.set(false);
        tables.write().await;
        tables.news(&news(3, 4), &overlay).await;
        tables.table(pb::Table { generation: 5, ..pb::Table::default() }, &overlay).await;
        assert_eq!(outbox.take(), []);
        assert!(futures_util::FutureExt::now_or_never(tables.due()).is_none(), "nothing is to be written");
        overlay.0.set(true);
        tables.news(&news(4, 6), &overlay).await;
        assert_eq!(outbox.take(), [Up::Taken(6)], "it has followed all the same");
    }

    #[tokio::test]
    async fn after_news_that_cannot_be_read_the_whole_is_asked_for_once() {
        let dir = tempfile::tempdir().expect("a directory");
        let (mut tables, outbox, overlay) = tables(&dir);
        let noise = |news| pb::TableNews { parts: vec![vec![0xff; 9].into()], ..news };
        tables.news(&news(0, 3), &overlay).await;
        outbox.take();
        tables.news(&noise(news(3, 4)), &overlay).await;
        assert_eq!(outbox.take(), [Up::Missed(3)]);
        tables.news(&noise(news(0, 5)), &overlay).await;
        assert_eq!(outbox.take(), [], "or the two would go on for ever");
        tables.news(&news(5, 6), &overlay).await;
        assert_eq!(outbox.take(), [Up::Missed(3)], "but when something has changed");
        tables.news(&news(0, 7), &overlay).await;
        assert_eq!(outbox.take(), [Up::Taken(7)]);
    }
}
