//! Blobs from other nodes, before a registry is asked: what they send is believed only if it has the digest that was
//! asked for, and whoever sends anything else is not asked again for some time.

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::io::{self, Write as _};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::StreamExt as _;
use futures_util::future::BoxFuture;
use futures_util::stream::BoxStream;

use super::pull::{Progress, Report, Workers};
use super::scratch::is_disk;
use super::store::DOCUMENT_MAX;
use super::{Digest, Doing, Result, Store};

/// How long who sent something else than was asked for is not asked again.
const AVOID: Duration = Duration::from_secs(600);
/// Nodes that are remembered for that.
const AVOIDED_MAX: usize = 1000;
/// How long others may be waited for who fetch a blob first: so long, and a second more for each so many bytes.
const WAIT: Duration = Duration::from_secs(20);
const WAIT_BYTES_A_SECOND: u64 = 1 << 20;
/// A node that sends nothing for so long has gone.
const SILENCE: Duration = Duration::from_secs(10);
/// How often a turn is asked for: each of those before ended with nodes that could not give what they had.
const TURNS: usize = 4;

/// Other nodes, as they are reached.
pub trait Neighbours: Send + Sync + 'static {
    /// What this node is called among them.
    fn me(&self) -> &str;

    /// Waits until it is this node's turn to fetch a blob, if somebody watches over turns. `except` are nodes that
    /// could not give it.
    fn turn<'a>(&'a self, digest: &'a Digest, except: &'a BTreeSet<String>) -> BoxFuture<'a, Option<Turn>>;

    /// The bytes that a node has under a digest.
    fn fetch<'a>(&'a self, place: &'a Place, digest: &'a Digest) -> BoxFuture<'a, io::Result<Pieces>>;
}

/// A node and its address.
pub type Place = (String, String);
/// Bytes as they come.
pub type Pieces = BoxStream<'static, io::Result<Bytes>>;

/// The turn of this node to fetch a blob. It ends when this is dropped.
pub struct Turn {
    /// Nodes that say they have it, in the order in which they should be asked.
    pub places: Vec<Place>,
    fetched: Box<dyn FnOnce() + Send + Sync>,
}

impl Turn {
    /// `fetched` tells the others that this node now has the blob, by what must be `held` until then.
    pub fn new<H: Send + Sync + 'static>(
        places: Vec<Place>,
        held: H,
        fetched: impl FnOnce(H) + Send + Sync + 'static,
    ) -> Self {
        Self { places, fetched: Box::new(move || fetched(held)) }
    }

    pub(super) fn fetched(self) {
        (self.fetched)();
    }
}

/// What came of looking for a blob.
pub(super) enum Brought {
    /// It is in the store.
    Here,
    /// Nobody has it. If there is a turn, others wait for this node to fetch it.
    Not(Option<Turn>),
}

/// The other nodes, and whom of them not to believe.
pub(super) struct Neighbourhood {
    neighbours: Arc<dyn Neighbours>,
    avoided: Mutex<BTreeMap<String, Instant>>,
}

/// Why a node did not give a blob.
enum Failed {
    /// It sent something else.
    Wrong(String),
    /// It broke off, or did not have it.
    Gone(io::Error),
}

impl Neighbourhood {
    pub fn new(neighbours: Arc<dyn Neighbours>) -> Self {
        Self { neighbours, avoided: Mutex::default() }
    }

    /// With which of so many layers this node begins.
    pub fn first(&self, layers: usize) -> usize {
        let digest = Digest::of(self.neighbours.me().as_bytes());
        let number = u64::from_str_radix(&digest.hex()[..8], 16).unwrap_or(0);
        (number % layers.max(1) as u64) as usize
    }

    /// Brings a blob of `size` bytes, or a document whose size is not known, into the store.
    ///
    /// # Errors
    /// If the disk refuses.
    pub async fn bring(
        &self,
        store: &Store,
        workers: &Workers,
        digest: &Digest,
        size: Option<u64>,
        report: Option<Report<'_>>,
    ) -> Result<Brought> {
        if store.has_blob(digest) {
            return Ok(Brought::Here);
        }
        let mut except = self.avoided();
        for _ in 0..TURNS {
            let Some(turn) = patient(size, self.neighbours.turn(digest, &except)).await else { break };
            // Another pull of this node may have been first.
            if store.has_blob(digest) {
                turn.fetched();
                return Ok(Brought::Here);
            }
            if turn.places.is_empty() {
                return Ok(Brought::Not(Some(turn)));
            }
            for place in &turn.places {
                let node = &place.0;
                match self.bring_from(store, workers, place, digest, (size, report)).await? {
                    Ok(()) => {
                        turn.fetched();
                        return Ok(Brought::Here);
                    }
                    Err(Failed::Gone(error)) => tracing::debug!(node, %digest, %error, "no blob from there"),
                    Err(Failed::Wrong(what)) => {
                        tracing::warn!(node, %digest, what, "a node has damaged blobs and is not asked any more");
                        self.avoid(node);
                    }
                }
                except.insert(node.clone());
            }
        }
        Ok(Brought::Not(None))
    }

    async fn bring_from(
        &self,
        store: &Store,
        workers: &Workers,
        place: &Place,
        digest: &Digest,
        (size, report): (Option<u64>, Option<Report<'_>>),
    ) -> Result<Result<(), Failed>> {
        let mut ingest = store.ingest(size.unwrap_or(DOCUMENT_MAX))?;
        let opened = in_time(self.neighbours.fetch(place, digest)).await;
        let mut pieces = match opened {
            Ok(pieces) => pieces,
            Err(error) => return Ok(Err(Failed::Gone(error))),
        };
        while let Some(piece) = in_time(async { pieces.next().await.transpose() }).await.transpose() {
            let piece = match piece {
                Ok(piece) => piece,
                Err(error) => return Ok(Err(Failed::Gone(error))),
            };
            match ingest.write_all(&piece) {
                Ok(()) => {}
                Err(error) if is_disk(&error) => {
                    return Err(error).doing(|| format!("store blob {digest}"));
                }
                Err(error) => return Ok(Err(Failed::Wrong(error.to_string()))),
            }
            if let (Some(report), Some(total)) = (report, size) {
                report(Progress::Downloading { layer: digest.clone(), done: ingest.size(), total });
            }
        }
        let expected = digest.clone();
        match workers.run(move || ingest.commit(Some(&expected))).await {
            Ok(_) => Ok(Ok(())),
            Err(super::Error::Refused { why, .. }) => Ok(Err(Failed::Wrong(why))),
            Err(error) => Err(error),
        }
    }

    fn avoided(&self) -> BTreeSet<String> {
        let mut avoided = self.avoided.lock().unwrap_or_else(PoisonError::into_inner);
        avoided.retain(|_, since| since.elapsed() < AVOID);
        avoided.keys().cloned().collect()
    }

    fn avoid(&self, node: &str) {
        let mut avoided = self.avoided.lock().unwrap_or_else(PoisonError::into_inner);
        if avoided.len() < AVOIDED_MAX {
            avoided.insert(node.to_owned(), Instant::now());
        }
    }
}

/// Whoever fetches it first may have died, or be slow on purpose: the registry is still there.
async fn patient(size: Option<u64>, turn: impl Future<Output = Option<Turn>>) -> Option<Turn> {
    let more = size.unwrap_or(DOCUMENT_MAX) / WAIT_BYTES_A_SECOND;
    tokio::time::timeout(WAIT + Duration::from_secs(more), turn).await.ok().flatten()
}

async fn in_time<T>(work: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    let silent = || io::Error::new(io::ErrorKind::TimedOut, "it sends nothing");
    tokio::time::timeout(SILENCE, work).await.unwrap_or_else(|_| Err(silent()))
}
