//! Blobs of images between nodes, over the connections that nodes have with each other: a manager says whose turn it is
//! to fetch one and who has it, and whoever has it sends it.

mod serve;
mod turns;

use crate::identity::ManagerAddr;
use crate::image::{Digest, Neighbours, Pieces, Turn};
use crate::rpc::dial::{Dialer, Line};
use futures_util::StreamExt as _;
use futures_util::future::{BoxFuture, join_all};
use rswarm_control::ids::NodeId;
use rswarm_proto::v1 as pb;
use rswarm_proto::v1::blob_turn::What;
use rswarm_proto::v1::blobs_client::BlobsClient;
pub use serve::Blobs;
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;

/// Managers that are asked for a turn, one after the other.
const MANAGERS: usize = 3;
/// How long one that gave none is not asked again.
const SILENT: Duration = Duration::from_secs(10);
/// How long a node may take to say whether it has a blob.
const ANSWER: Duration = Duration::from_secs(1);
/// Nodes that are asked for a blob that some of them have.
const HOLDERS: usize = 3;

/// The other nodes of the cluster.
pub struct Nodes {
    me: String,
    dialer: Arc<Dialer>,
    managers: Box<dyn Fn() -> Vec<ManagerAddr> + Send + Sync>,
    /// Managers that gave no turn, and since when.
    silent: Mutex<BTreeMap<String, Instant>>,
}

impl Nodes {
    /// As `me` reaches them.
    pub fn new(
        me: NodeId,
        dialer: Arc<Dialer>,
        managers: Box<dyn Fn() -> Vec<ManagerAddr> + Send + Sync>,
    ) -> Self {
        Self { me: me.to_string(), dialer, managers, silent: Mutex::default() }
    }

    fn client(&self, node: &str, addr: &str) -> Option<BlobsClient<Channel>> {
        self.dialer.channel(node, addr, Line::Blobs).ok().map(BlobsClient::new)
    }

    /// Those of these nodes that say they have it.
    async fn holders(&self, digest: &Digest, places: Vec<pb::BlobPlace>) -> Vec<(String, String)> {
        let asked = places.into_iter().map(|place| async move {
            let mut client = self.client(&place.node, &place.addr)?;
            let asked = pb::BlobList { digests: vec![digest.to_string()] };
            let answer = tokio::time::timeout(ANSWER, client.have(asked)).await.ok()?.ok()?;
            let has = answer.into_inner().digests.iter().any(|had| had == digest.as_str());
            has.then_some((place.node, place.addr))
        });
        let mut holders: Vec<_> = join_all(asked).await.into_iter().flatten().collect();
        // Each node begins with another.
        holders.sort_by_cached_key(|(node, _)| rank(digest, &format!("{} {node}", self.me)));
        holders.truncate(HOLDERS);
        holders
    }

    async fn ask(
        &self,
        manager: &ManagerAddr,
        digest: &Digest,
        except: &BTreeSet<String>,
    ) -> Result<Turn, tonic::Status> {
        let unreachable = || tonic::Status::unavailable("it cannot be reached");
        let mut client = self.client(&manager.node, &manager.addr).ok_or_else(unreachable)?;
        let (words, said) = mpsc::channel(2);
        let wanted = pb::BlobWanted { digest: digest.to_string(), except: except.iter().cloned().collect() };
        let _ = words.send(pb::BlobTurn { what: Some(What::Wanted(wanted)) }).await;
        let mut answers = client.turn(ReceiverStream::new(said)).await?.into_inner();
        let gone = || tonic::Status::unavailable("it broke off");
        let pb::BlobPlaces { places, certain } = answers.message().await?.ok_or_else(gone)?;
        let places = match certain {
            true => places.into_iter().map(|place| (place.node, place.addr)).collect(),
            false => self.holders(digest, places).await,
        };
        Ok(Turn::new(places, (words, answers), |(words, mut answers)| {
            tokio::spawn(async move {
                let _ = words.send(pb::BlobTurn { what: Some(What::Fetched(true)) }).await;
                // A call that is given up takes what was said last with it.
                let _ = tokio::time::timeout(ANSWER, answers.message()).await;
            });
        }))
    }
}

impl Neighbours for Nodes {
    fn me(&self) -> &str {
        &self.me
    }

    fn turn<'a>(&'a self, digest: &'a Digest, except: &'a BTreeSet<String>) -> BoxFuture<'a, Option<Turn>> {
        Box::pin(async move {
            let mut managers = (self.managers)();
            {
                let mut silent = self.silent.lock().unwrap_or_else(PoisonError::into_inner);
                silent.retain(|_, since| since.elapsed() < SILENT);
                managers.retain(|manager| !silent.contains_key(&manager.node));
            }
            // All nodes ask the same one first.
            managers.sort_by_cached_key(|manager| rank(digest, &manager.node));
            for manager in managers.iter().take(MANAGERS) {
                match self.ask(manager, digest, except).await {
                    Ok(turn) => return Some(turn),
                    Err(status) => {
                        tracing::debug!(manager = manager.node, %digest, %status, "no turn is to be had there");
                        let mut silent = self.silent.lock().unwrap_or_else(PoisonError::into_inner);
                        silent.insert(manager.node.clone(), Instant::now());
                    }
                }
            }
            None
        })
    }

    fn fetch<'a>(
        &'a self,
        (node, addr): &'a (String, String),
        digest: &'a Digest,
    ) -> BoxFuture<'a, io::Result<Pieces>> {
        Box::pin(async move {
            let mut client = self.client(node, addr).ok_or(io::ErrorKind::AddrNotAvailable)?;
            let request = pb::BlobRequest { digest: digest.to_string() };
            let pieces = client.fetch(request).await.map_err(io::Error::other)?.into_inner();
            let pieces = pieces.map(|piece| piece.map(|piece| piece.data).map_err(io::Error::other));
            Ok(pieces.boxed())
        })
    }
}

/// The order of nodes for one blob: the same for whoever asks, and another for each blob.
fn rank(digest: &Digest, node: &str) -> String {
    Digest::of(format!("{} {node}", digest.hex()).as_bytes()).hex().to_owned()
}
