//! The directory as the leader tells it: whole at first on each session, then what has changed.

use rswarm_control::endpoints::{Directory, Part, Table};
use rswarm_control::{NetworkId, NodeId};
use rswarm_proto::convert::{self, Invalid};
use rswarm_proto::v1 as pb;

/// What was told so far.
#[derive(Default)]
pub struct Follower {
    directory: Directory,
    /// 0 for nothing that could be followed.
    generation: u64,
}

/// Why news cannot be followed.
#[derive(Debug, PartialEq, Eq)]
pub enum Trouble {
    /// They follow something else than what is had. They, and what comes after, are passed over until all is told anew.
    Missed {
        /// The generation that is had.
        had: u64,
    },
    /// They make no sense, and are passed over.
    Unreadable {
        /// The generation that is had.
        had: u64,
        /// Why.
        error: Invalid,
    },
}

impl Follower {
    /// Follows news.
    pub fn follow(&mut self, news: &pb::TableNews) -> Result<(), Trouble> {
        let had = self.generation;
        if news.follows != 0 && news.follows != had {
            return Err(Trouble::Missed { had });
        }
        let pieces = convert::pieces(news).map_err(|error| Trouble::Unreadable { had, error })?;
        if news.follows == 0 {
            self.directory = Directory::default();
        }
        self.generation = 0;
        for piece in pieces {
            self.directory.follow(piece).map_err(|_| Trouble::Missed { had })?;
        }
        for network in &news.left {
            self.directory.leave(Part::Network(NetworkId(*network)));
        }
        self.generation = news.generation;
        Ok(())
    }

    /// The table of `me`.
    pub fn table(&self, me: NodeId) -> Table {
        self.directory.table(me)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rswarm_control::endpoints::{NodesNews, Piece, Place, SectionNews, Standing};
    use rswarm_control::model::NodeStatus;

    fn nodes(number: u64, whole: bool) -> Piece {
        let place = Place { id: NodeId(number), addr: "192.0.2.1:2377".into(), status: NodeStatus::Ready };
        Piece::Nodes(NodesNews { whole, places: vec![(number, place)], gone: vec![] })
    }

    fn news(follows: u64, generation: u64, pieces: &[Piece]) -> pb::TableNews {
        let parts = pieces.iter().map(convert::part).collect();
        pb::TableNews { follows, generation, parts, left: vec![] }
    }

    #[test]
    fn news_are_followed_in_order_and_the_whole_at_any_time() {
        let mut follower = Follower::default();
        assert_eq!(follower.follow(&news(3, 4, &[])), Err(Trouble::Missed { had: 0 }));
        assert_eq!(follower.follow(&news(0, 3, &[nodes(1, true)])), Ok(()));
        assert_eq!(follower.follow(&news(3, 5, &[nodes(2, false)])), Ok(()));
        assert_eq!(follower.directory.nodes.len(), 2);
        // One was lost on the way; what follows it is of no use either, until all is told.
        assert_eq!(follower.follow(&news(7, 9, &[nodes(3, false)])), Err(Trouble::Missed { had: 5 }));
        assert_eq!(follower.follow(&news(3, 5, &[nodes(3, false)])), Err(Trouble::Missed { had: 5 }));
        assert_eq!(follower.directory.nodes.len(), 2);
        assert_eq!(follower.follow(&news(0, 9, &[nodes(3, true)])), Ok(()));
        assert_eq!(follower.directory.nodes.keys().collect::<Vec<_>>(), [&3]);
        assert_eq!(follower.follow(&news(9, 10, &[])), Ok(()));
    }

    #[test]
    fn news_of_what_was_never_told_are_not_followed_and_nothing_after_them_is() {
        let mut follower = Follower::default();
        assert_eq!(follower.follow(&news(0, 3, &[nodes(1, true)])), Ok(()));
        let turned = vec![((4096, [10, 0, 0, 2].into()), Standing::Serving)];
        let unknown = Piece::Section(Part::Published, SectionNews { turned, ..SectionNews::default() });
        assert_eq!(follower.follow(&news(3, 4, &[unknown])), Err(Trouble::Missed { had: 3 }));
        assert_eq!(follower.follow(&news(3, 4, &[])), Err(Trouble::Missed { had: 0 }));
        assert_eq!(follower.follow(&news(0, 5, &[nodes(1, true)])), Ok(()));
    }

    #[test]
    fn noise_is_refused_and_changes_nothing() {
        let mut follower = Follower::default();
        assert_eq!(follower.follow(&news(0, 3, &[nodes(1, true)])), Ok(()));
        let noise = pb::TableNews { parts: vec![vec![0xff; 9].into()], ..news(3, 4, &[]) };
        assert!(matches!(follower.follow(&noise), Err(Trouble::Unreadable { had: 3, .. })));
        assert_eq!(follower.follow(&news(3, 4, &[])), Ok(()));
    }
}
