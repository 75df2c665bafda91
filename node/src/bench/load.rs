//! Steady streams of small requests, each sent when its time has come whether or not earlier ones were answered,
//! so that a stall is seen in full.

use crate::cli::client::Client;
use anyhow::{Context, Result};
use rswarm_chaos::drill::History;
use rswarm_proto::v1 as pb;
use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;

/// Time between two writes.
pub const WRITE_EVERY: Duration = Duration::from_millis(5);
/// Time between two reads.
const READ_EVERY: Duration = Duration::from_millis(20);
/// How long a write or a read may take.
const WRITE: Duration = Duration::from_secs(5);
/// Time between two requests to a published port.
const GET_EVERY: Duration = Duration::from_millis(20);
/// How long such a request may take before it has failed.
const GET: Duration = Duration::from_secs(3);

/// One request.
#[derive(Clone, Copy, Debug)]
pub struct Shot {
    /// When it was sent.
    pub sent: Instant,
    /// When it was answered or given up.
    pub done: Instant,
    /// Whether it did what it should.
    pub ok: bool,
}

/// A stream of requests, which ends when this is dropped.
pub struct Stream {
    shots: Arc<Mutex<Vec<Shot>>>,
    errors: Arc<Mutex<BTreeMap<String, usize>>>,
    task: JoinHandle<()>,
}

impl Stream {
    /// Writes to the replicated state, through each of `clients` in turn: a label more, now of one of `nodes`, now of
    /// the next. Each begins with `mark`, and `history` hears of it.
    pub fn writes(clients: Vec<Client>, nodes: Vec<String>, mark: String, history: Arc<History>) -> Self {
        Self::every(WRITE_EVERY, move |number| {
            let mut client = clients[number % clients.len()].clone();
            let name = format!("{mark}{number}");
            let request = pb::UpdateNodeRequest {
                node: nodes[number % nodes.len()].clone(),
                labels_add: [(name.clone(), String::new())].into(),
                ..Default::default()
            };
            let history = history.clone();
            async move {
                history.asked(&name);
                match tokio::time::timeout(WRITE, client.control.update_node(request)).await {
                    Ok(Ok(_)) => {
                        history.acknowledged(&name);
                        Ok(())
                    }
                    Ok(Err(status)) => Err(status.message().to_owned()),
                    Err(_) => Err(format!("no answer in {} s", WRITE.as_secs())),
                }
            }
        })
    }

    /// Reads all labels that begin with `mark`, through each of `clients` in turn; `history` hears what was seen.
    pub fn reads(clients: Vec<Client>, mark: String, history: Arc<History>) -> Self {
        Self::every(READ_EVERY, move |number| {
            let mut client = clients[number % clients.len()].clone();
            let (mark, history) = (mark.clone(), history.clone());
            async move {
                let begun = Instant::now();
                match tokio::time::timeout(WRITE, client.control.list_nodes(pb::ListNodesRequest {})).await {
                    Ok(Ok(answer)) => {
                        history.seen(begun, marked(&answer.into_inner().nodes, &mark));
                        Ok(())
                    }
                    Ok(Err(status)) => Err(status.message().to_owned()),
                    Err(_) => Err(format!("no answer in {} s", WRITE.as_secs())),
                }
            }
        })
    }

    /// Asks for `/` at `port` of each of `addresses` in turn, by a connection of its own each.
    pub fn requests(addresses: Vec<Ipv4Addr>, port: u16) -> Self {
        Self::every(GET_EVERY, move |number| {
            let address = SocketAddr::from((addresses[number % addresses.len()], port));
            async move {
                match tokio::time::timeout(GET, get(address)).await {
                    Ok(answer) => answer.map_err(|error| format!("{error:#}")),
                    Err(_) => Err(format!("no answer in {} s", GET.as_secs())),
                }
            }
        })
    }

    /// Makes a request each time an interval has passed.
    pub fn every<F: Future<Output = Result<(), String>> + Send + 'static>(
        interval: Duration,
        request: impl Fn(usize) -> F + Send + 'static,
    ) -> Self {
        let shots = Arc::new(Mutex::new(Vec::new()));
        let errors = Arc::new(Mutex::new(BTreeMap::new()));
        let (kept, said) = (shots.clone(), errors.clone());
        let task = tokio::spawn(async move {
            let mut under_way = tokio::task::JoinSet::new();
            let mut tick = tokio::time::interval(interval);
            // One that comes late is made up for: whoever measures must not be the one who slows down.
            tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Burst);
            for number in 0.. {
                tick.tick().await;
                let (kept, said, answer) = (kept.clone(), said.clone(), request(number));
                under_way.spawn(async move {
                    let sent = Instant::now();
                    let answer = answer.await;
                    let shot = Shot { sent, done: Instant::now(), ok: answer.is_ok() };
                    if let Err(words) = answer {
                        *said.lock().unwrap_or_else(PoisonError::into_inner).entry(words).or_insert(0) += 1;
                    }
                    kept.lock().unwrap_or_else(PoisonError::into_inner).push(shot);
                });
                while under_way.try_join_next().is_some() {}
            }
        });
        Self { shots, errors, task }
    }

    /// What was answered or given up until now.
    pub fn shots(&self) -> Vec<Shot> {
        self.shots.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Why requests failed, and how many for each reason.
    pub fn errors(&self) -> BTreeMap<String, usize> {
        self.errors.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Waits until `count` requests that were sent after `since` have succeeded.
    pub async fn flows(&self, since: Instant, count: usize, bound: Duration) -> Result<()> {
        let flowing = async {
            while self.shots().iter().filter(|shot| shot.ok && shot.sent >= since).count() < count {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        let waited = tokio::time::timeout(bound, flowing).await;
        waited.ok().with_context(|| format!("requests are not answered again within {} s", bound.as_secs()))
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// The labels of these nodes that begin with `mark`.
pub fn marked(nodes: &[pb::Node], mark: &str) -> BTreeSet<String> {
    let labels = nodes.iter().flat_map(|node| node.labels.keys());
    labels.filter(|label| label.starts_with(mark)).cloned().collect()
}

/// The longest time, from `since` on, in which nothing succeeded.
pub fn gap(shots: &[Shot], since: Instant) -> Option<Duration> {
    let mut answers: Vec<Instant> = shots.iter().filter(|shot| shot.ok).map(|shot| shot.done).collect();
    answers.sort();
    let after = answers.windows(2).filter(|two| two[1] >= since);
    after.map(|two| two[1].duration_since(two[0])).max()
}

async fn get(address: SocketAddr) -> Result<()> {
    let mut stream = TcpStream::connect(address).await?;
    stream.write_all(b"GET / HTTP/1.1\r\nHost: bench\r\nConnection: close\r\n\r\n").await?;
    let mut head = [0; 12];
    stream.read_exact(&mut head).await?;
    anyhow::ensure!(head.ends_with(b" 200"), "it answers otherwise");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shot(start: Instant, sent: u64, done: u64, ok: bool) -> Shot {
        let at = |millis| start + Duration::from_millis(millis);
        Shot { sent: at(sent), done: at(done), ok }
    }

    #[test]
    fn a_gap_is_between_answers_and_not_before_the_cut() {
        let start = Instant::now();
        let shots = [
            shot(start, 500, 505, true),
            shot(start, 0, 5, true),
            shot(start, 506, 507, true),
            shot(start, 508, 900, false),
            shot(start, 600, 707, true),
        ];
        let from = |millis| gap(&shots, start + Duration::from_millis(millis));
        assert_eq!(from(0), Some(Duration::from_millis(500)));
        assert_eq!(from(506), Some(Duration::from_millis(200)));
        assert_eq!(from(708), None);
    }
}
