//! The service `Blobs`: what this node has, for other nodes, and, on a manager, whose turn it is to fetch what.

use super::turns::{Turn, Turns};
use crate::image::{Digest, Store};
use crate::manager::Manager;
use crate::rpc::access;
use bytes::Bytes;
use rswarm_control::ids::NodeId;
use rswarm_control::model::NodeStatus;
use rswarm_control::state::State;
use rswarm_proto::v1 as pb;
use rswarm_proto::v1::blob_turn::What;
use std::collections::BTreeSet;
use std::io::Read as _;
use std::pin::Pin;
use std::sync::Arc;
use tokio::sync::{Semaphore, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

/// Blobs sent at once, and turns that are given or waited for.
const SENT_AT_ONCE: usize = 16;
const TURNS_AT_ONCE: usize = 8192;
/// Bytes of a piece, and pieces that wait for a slow network.
const PIECE: usize = 256 << 10;
const AHEAD: usize = 4;
/// Digests asked for in one call, nodes that are left out, and nodes that may have a blob of which nobody said so.
const ASKED_MAX: usize = 1024;
const EXCEPT_MAX: usize = 1024;
const PERHAPS_MAX: usize = 64;

type Stream<T> = Pin<Box<dyn tokio_stream::Stream<Item = Result<T, Status>> + Send>>;

/// The service.
pub struct Blobs {
    images: Arc<Store>,
    manager: Arc<dyn Fn() -> Option<Arc<Manager>> + Send + Sync>,
    turns: Arc<Turns>,
    sent: Arc<Semaphore>,
    watched: Arc<Semaphore>,
}

impl Blobs {
    /// Sends what is in this store.
    pub fn new(images: Arc<Store>, manager: Arc<dyn Fn() -> Option<Arc<Manager>> + Send + Sync>) -> Self {
        let slots = |count| Arc::new(Semaphore::new(count));
        let (sent, watched) = (slots(SENT_AT_ONCE), slots(TURNS_AT_ONCE));
        Self { images, manager, turns: Arc::default(), sent, watched }
    }
}

fn digest(text: &str) -> Result<Digest, Status> {
    text.parse().map_err(|error| Status::invalid_argument(format!("{error}")))
}

#[tonic::async_trait]
impl pb::blobs_server::Blobs for Blobs {
    type TurnStream = Stream<pb::BlobPlaces>;
    type FetchStream = Stream<pb::BlobPiece>;

    async fn turn(
        &self,
        request: Request<Streaming<pb::BlobTurn>>,
    ) -> Result<Response<Self::TurnStream>, Status> {
        let node = access::node(&request)?;
        let manager = (self.manager)().ok_or_else(|| Status::failed_precondition("not a manager"))?;
        let slot = self.watched.clone().try_acquire_owned();
        let slot = slot.map_err(|_| Status::resource_exhausted("too many blobs are being fetched"))?;
        let mut input = request.into_inner();
        let Some(pb::BlobTurn { what: Some(What::Wanted(wanted)) }) = input.message().await? else {
            return Err(Status::invalid_argument("the first message says which blob"));
        };
        let digest = digest(&wanted.digest)?;
        if wanted.except.len() > EXCEPT_MAX {
            return Err(Status::invalid_argument("too many nodes are left out"));
        }
        let except: BTreeSet<NodeId> = wanted.except.iter().filter_map(|node| node.parse().ok()).collect();
        let busy = |_| Status::resource_exhausted("too many blobs are being fetched");
        let asked = self.turns.ask(node, &digest, except.clone()).map_err(busy)?;
        let (sender, receiver) = mpsc::channel(1);
        tokio::spawn(async move {
            let _slot = slot;
            let mut turn: Turn = tokio::select! {
                () = sender.closed() => return,
                turn = asked => match turn { Ok(turn) => turn, Err(_) => return },
            };
            let places = places(&manager.cluster().state(), &turn, &digest, node, &except);
            if sender.send(Ok(places)).await.is_err() {
                return;
            }
            let said = tokio::select! {
                () = sender.closed() => return,
                said = input.message() => said,
            };
            turn.fetched = matches!(said, Ok(Some(pb::BlobTurn { what: Some(What::Fetched(true)) })));
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }

    async fn have(&self, request: Request<pb::BlobList>) -> Result<Response<pb::BlobList>, Status> {
        let asked = request.into_inner().digests;
        if asked.len() > ASKED_MAX {
            return Err(Status::invalid_argument(format!("more than {ASKED_MAX} digests")));
        }
        let wanted = asked.iter().map(|text| digest(text)).collect::<Result<Vec<_>, _>>()?;
        let images = self.images.clone();
        let look = move || {
            let here = wanted.iter().filter(|digest| images.open_blob(digest).is_ok());
            here.map(ToString::to_string).collect()
        };
        let digests = tokio::task::spawn_blocking(look).await;
        let digests = digests.map_err(|_| Status::internal("the image store has panicked"))?;
        Ok(Response::new(pb::BlobList { digests }))
    }

    async fn fetch(&self, request: Request<pb::BlobRequest>) -> Result<Response<Self::FetchStream>, Status> {
        let digest = digest(&request.into_inner().digest)?;
        let slot = self.sent.clone().try_acquire_owned();
        let slot = slot.map_err(|_| Status::resource_exhausted("too many blobs are being sent"))?;
        let images = self.images.clone();
        let file = tokio::task::spawn_blocking(move || images.open_blob(&digest)).await;
        let file = file.map_err(|_| Status::internal("the image store has panicked"))?;
        let mut file = file.map_err(|error| Status::not_found(error.to_string()))?;
        let (sender, receiver) = mpsc::channel(AHEAD);
        tokio::task::spawn_blocking(move || {
            let _slot = slot;
            loop {
                let mut piece = Vec::with_capacity(PIECE);
                let read = file.by_ref().take(PIECE as u64).read_to_end(&mut piece);
                let piece = match read {
                    Ok(0) => return,
                    Ok(_) => Ok(pb::BlobPiece { data: Bytes::from(piece) }),
                    Err(error) => Err(Status::data_loss(error.to_string())),
                };
                if sender.blocking_send(piece).is_err() {
                    return;
                }
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }
}

/// Whom to ask: those who have said that they have it, or else some that may.
fn places(
    state: &State,
    turn: &Turn,
    digest: &Digest,
    me: NodeId,
    except: &BTreeSet<NodeId>,
) -> pb::BlobPlaces {
    let place = |node: NodeId, addr: &str| pb::BlobPlace { node: node.to_string(), addr: addr.to_owned() };
    let known = turn.holders.iter().filter_map(|holder| state.node(*holder));
    let places: Vec<_> = known.map(|node| place(node.id, &node.addr)).collect();
    if !places.is_empty() {
        return pb::BlobPlaces { places, certain: true };
    }
    let ready = state.nodes().filter(|node| node.status == NodeStatus::Ready);
    let mut others: Vec<_> = ready.filter(|node| node.id != me && !except.contains(&node.id)).collect();
    if others.len() > PERHAPS_MAX {
        // Of each blob others, so that no node is asked for all.
        others.sort_by_cached_key(|node| super::rank(digest, &node.id.to_string()));
        others.truncate(PERHAPS_MAX);
    }
    let places = others.into_iter().map(|node| place(node.id, &node.addr)).collect();
    pb::BlobPlaces { places, certain: false }
}
