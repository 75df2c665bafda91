//! Clients that each do one thing after the other for a while, and what came of it.

use crate::bench::load::Stream;
use anyhow::{Context, Result};
use bytes::Bytes;
use rswarm_proto::etcd::kv_client::KvClient;
use rswarm_proto::etcd::{PutRequest, RangeRequest};
use rswarm_raft::Log;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::task::JoinSet;
use tonic::transport::Channel;

/// Different keys.
const KEYS: u64 = 10_000;
/// Bytes of a value.
const VALUE: usize = 256;
/// Writers that fill the state.
const FILLERS: usize = 128;
/// How long a steady write may take.
const STEADY: Duration = Duration::from_secs(5);
/// After a request that failed.
const PAUSE: Duration = Duration::from_millis(2);

/// What clients do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Act {
    /// Set keys.
    Write,
    /// Read keys, linearizably.
    Read,
}

/// How long: what is done in the first part does not count.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Window {
    /// Until it is in its stride.
    pub warm: Duration,
    /// What counts.
    pub counted: Duration,
}

/// What came of it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Outcome {
    /// How many were done in the counted time.
    pub done: usize,
    /// How many failed, at any time.
    pub failed: usize,
    /// Done in a second.
    pub per_second: f64,
    /// The median, in milliseconds.
    pub p50_ms: f64,
    /// The 99th percentile, in milliseconds.
    pub p99_ms: f64,
}

impl Outcome {
    fn new(mut micros: Vec<u32>, failed: usize, counted: Duration) -> Self {
        micros.sort_unstable();
        let at = |percent: usize| {
            let rank = (micros.len() * percent).div_ceil(100).max(1);
            micros.get(rank - 1).map_or(0.0, |micros| f64::from(*micros) / 1000.0)
        };
        Self {
            done: micros.len(),
            failed,
            per_second: micros.len() as f64 / counted.as_secs_f64(),
            p50_ms: at(50),
            p99_ms: at(99),
        }
    }
}

/// Random enough for keys and for values that nothing can compress (xorshift).
struct Noise(u64);

impl Noise {
    fn new(client: usize) -> Self {
        Self((client as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15))
    }

    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn key(&mut self) -> Bytes {
        name(self.next() % KEYS)
    }

    fn value(&mut self, bytes: usize) -> Bytes {
        (0..bytes / 8).flat_map(|_| self.next().to_le_bytes()).collect::<Vec<u8>>().into()
    }

    fn put(&mut self) -> PutRequest {
        let value = self.value(VALUE);
        PutRequest { key: self.key(), value }
    }
}

fn name(number: u64) -> Bytes {
    format!("k{number:015}").into()
}

/// `clients` at once over these connections.
pub async fn over(channels: &[Channel], act: Act, clients: usize, window: Window) -> Result<Outcome> {
    let client = |number: usize| {
        let kv = KvClient::new(channels[number % channels.len()].clone());
        let mut noise = Noise::new(number);
        move || {
            let mut kv = kv.clone();
            let (put, range) = match act {
                Act::Write => (Some(noise.put()), None),
                Act::Read => (None, Some(RangeRequest { key: noise.key(), serializable: false })),
            };
            async move {
                match (put, range) {
                    (Some(put), _) => kv.put(put).await.is_ok(),
                    (_, Some(range)) => kv.range(range).await.is_ok(),
                    (None, None) => false,
                }
            }
        }
    };
    run(clients, window, client).await
}

/// `writers` at once that propose to the log in their own process.
pub async fn within(log: &Arc<Log>, writers: usize, window: Window) -> Result<Outcome> {
    let writer = |number: usize| {
        let log = log.clone();
        let mut noise = Noise::new(number);
        move || {
            let log = log.clone();
            let command = prost::Message::encode_to_vec(&noise.put()).into();
            async move { log.propose(command).await.is_ok() }
        }
    };
    run(writers, window, writer).await
}

/// Sets so many different keys, and answers how many of these writes failed.
pub async fn fill(log: &Arc<Log>, keys: u64, bytes: usize) -> Result<usize> {
    let next = Arc::new(AtomicU64::new(0));
    let mut running = JoinSet::new();
    for number in 0..FILLERS {
        let (log, next, mut noise) = (log.clone(), next.clone(), Noise::new(number));
        running.spawn(async move {
            let mut failed = 0;
            loop {
                let key = next.fetch_add(1, Ordering::Relaxed);
                if key >= keys {
                    return failed;
                }
                let put = PutRequest { key: name(key), value: noise.value(bytes) };
                failed += usize::from(log.propose(prost::Message::encode_to_vec(&put).into()).await.is_err());
            }
        });
    }
    let mut failures = 0;
    while let Some(failed) = running.join_next().await {
        failures += failed.context("a writer ended badly")?;
    }
    Ok(failures)
}

/// Writes at a steady rate over these connections, whether or not earlier ones were answered.
pub fn steady(channels: Vec<Channel>, per_second: u32) -> Stream {
    let noise = Mutex::new(Noise::new(0));
    Stream::every(Duration::from_secs(1) / per_second, move |number| {
        let mut kv = KvClient::new(channels[number % channels.len()].clone());
        let put = noise.lock().unwrap_or_else(PoisonError::into_inner).put();
        async move {
            match tokio::time::timeout(STEADY, kv.put(put)).await {
                Ok(Ok(_)) => Ok(()),
                Ok(Err(status)) => Err(status.message().to_owned()),
                Err(_) => Err(format!("no answer in {} s", STEADY.as_secs())),
            }
        }
    })
}

async fn run<C, F>(clients: usize, window: Window, client: impl Fn(usize) -> C) -> Result<Outcome>
where
    C: FnMut() -> F + Send + 'static,
    F: Future<Output = bool> + Send,
{
    let from = Instant::now() + window.warm;
    let until = from + window.counted;
    let mut running = JoinSet::new();
    for number in 0..clients {
        let mut act = client(number);
        running.spawn(async move {
            let (mut micros, mut failed) = (Vec::new(), 0);
            loop {
                let began = Instant::now();
                if began >= until {
                    return (micros, failed);
                }
                if !act().await {
                    failed += 1;
                    tokio::time::sleep(PAUSE).await;
                    continue;
                }
                let ended = Instant::now();
                if ended >= from && ended < until {
                    micros.push(u32::try_from((ended - began).as_micros()).unwrap_or(u32::MAX));
                }
            }
        });
    }
    let (mut all, mut failures) = (Vec::new(), 0);
    while let Some(ended) = running.join_next().await {
        let (micros, failed) = ended.context("a client ended badly")?;
        all.extend(micros);
        failures += failed;
    }
    Ok(Outcome::new(all, failures, window.counted))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_outcome_counts_and_ranks() {
        let of = Outcome::new((1..=100).rev().map(|n| n * 1000).collect(), 2, Duration::from_secs(2));
        assert_eq!((of.done, of.failed, of.per_second), (100, 2, 50.0));
        assert_eq!((of.p50_ms, of.p99_ms), (50.0, 99.0));
        assert_eq!(Outcome::new(vec![], 0, Duration::from_secs(1)), Outcome::default());
    }
}
