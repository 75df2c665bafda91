//! Requests over HTTP at a steady rate, answered or not: who sends the next one only after an answer sends least
//! when it matters most. Each has a connection of its own, and what became of it is written down.

use std::cell::Cell;
use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rswarm_netoverlay::device::netns::Netns;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::LocalSet;
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};

use super::load::{Account, REQUEST, Shot};

/// More requests than this are never open at a time.
const OPEN_MAX: usize = 2000;
/// How often it is looked whether requests are to come from elsewhere.
const LOOK: Duration = Duration::from_millis(200);
/// The pause after a network could not be entered.
const AGAIN: Duration = Duration::from_millis(100);
const ANSWER_MAX: u64 = 1 << 20;

/// The network from which requests are sent; it may become another one while they are.
pub type Place = Arc<Mutex<Option<Netns>>>;

/// Where to, from where, and how often.
#[derive(Debug, Clone)]
pub struct Aim {
    /// Asked in turn.
    pub targets: Vec<SocketAddr>,
    /// From this network; from this machine's if there is none.
    pub place: Option<Place>,
    /// How many a second.
    pub rate: u32,
}

impl Aim {
    /// Sends requests until the account is closed.
    pub fn shoot(&self, zero: Instant, account: &Arc<Account>) {
        while !account.is_closed() {
            let place = self.place();
            let done = match &place {
                _ if self.targets.is_empty() => Err("there is nothing to ask".to_owned()),
                Ok(None) => self.volley(zero, account, None),
                Ok(Some(inside)) => {
                    let shot = inside.run(|| self.volley(zero, account, Some(inside)));
                    shot.map_err(|error| error.to_string()).and_then(|done| done)
                }
                Err(why) => Err(why.clone()),
            };
            if let Err(why) = done {
                let at = zero.elapsed();
                account.note(Shot { at, took: Duration::ZERO, ok: false, opened: None, port: 0 }, Some(&why));
                std::thread::sleep(AGAIN);
            }
        }
    }

    fn place(&self) -> Result<Option<Netns>, String> {
        let Some(place) = &self.place else { return Ok(None) };
        let inside = place.lock().unwrap_or_else(PoisonError::into_inner).clone();
        inside.map(Some).ok_or_else(|| "there is no probe".to_owned())
    }

    /// Sends requests until they are to come from elsewhere, and waits for those that are open.
    fn volley(&self, zero: Instant, account: &Arc<Account>, from: Option<&Netns>) -> Result<(), String> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(|error| format!("cannot start a runtime: {error}"))?;
        let open = Rc::new(Cell::new(0));
        LocalSet::new().block_on(&runtime, async {
            let mut turns = interval(Duration::from_secs(1) / self.rate.max(1));
            turns.set_missed_tick_behavior(MissedTickBehavior::Burst);
            let mut looked = Instant::now();
            for target in self.targets.iter().cycle() {
                turns.tick().await;
                if account.is_closed() {
                    break;
                }
                if looked.elapsed() > LOOK {
                    looked = Instant::now();
                    let same = match (from, self.place()) {
                        (Some(from), Ok(Some(now))) => from.is_same(&now),
                        (None, Ok(None)) => true,
                        _ => false,
                    };
                    if !same {
                        break;
                    }
                }
                if open.get() >= OPEN_MAX {
                    continue;
                }
                open.set(open.get() + 1);
                let (account, open, target) = (account.clone(), open.clone(), *target);
                tokio::task::spawn_local(async move {
                    one(zero, target, &account).await;
                    open.set(open.get() - 1);
                });
            }
            while open.get() > 0 {
                sleep(Duration::from_millis(5)).await;
            }
        });
        Ok(())
    }
}

/// One request, and what became of it.
async fn one(zero: Instant, target: SocketAddr, account: &Arc<Account>) {
    let at = zero.elapsed();
    let _open = account.open(at);
    let (mut opened, mut port) = (None, 0);
    let answer = async {
        let mut stream = TcpStream::connect(target).await.map_err(told).context("cannot connect")?;
        port = stream.local_addr()?.port();
        opened = Some(zero.elapsed());
        stream
            .write_all(b"GET / HTTP/1.1\r\nHost: drill\r\nConnection: close\r\n\r\n")
            .await
            .map_err(told)
            .context("cannot ask")?;
        let mut answer = Vec::new();
        let read = stream.take(ANSWER_MAX).read_to_end(&mut answer).await;
        read.map_err(told).context("the answer breaks off")?;
        ensure!(answer.starts_with(b"HTTP/1.1 200"), "the answer is not 200");
        anyhow::Ok(())
    };
    let answer = match timeout(REQUEST, answer).await {
        Ok(answer) => answer.map_err(|error| format!("{error:#}")),
        Err(_) => Err(format!("no answer within {} s", REQUEST.as_secs())),
    };
    let took = zero.elapsed() - at;
    let why = answer.err().map(|why| if opened.is_some() { why } else { format!("not connected: {why}") });
    account.note(Shot { at, took, ok: why.is_none(), opened, port }, why.as_deref());
}

/// Without the addresses in it, so that the same error is the same text.
fn told(error: io::Error) -> anyhow::Error {
    match error.kind() {
        ErrorKind::ConnectionRefused => anyhow::anyhow!("refused"),
        ErrorKind::ConnectionReset => anyhow::anyhow!("reset"),
        _ => error.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::drill::Stream;
    use std::io::{Read as _, Write as _};
    use std::net::TcpListener;

    #[test]
    fn the_rate_is_kept_although_nobody_answers_and_fates_are_told_apart() {
        let silent = TcpListener::bind("127.0.0.1:0").unwrap();
        let aim = |listener: &TcpListener, rate| Aim {
            targets: vec![listener.local_addr().unwrap()],
            place: None,
            rate,
        };
        let mut stream = Stream::requests(Instant::now(), aim(&silent, 100));
        let served = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut answered = Stream::requests(Instant::now(), aim(&served, 20));
        for _ in 0..5 {
            let (mut connection, _) = served.accept().unwrap();
            let _ = connection.read(&mut [0; 512]).unwrap();
            connection.write_all(b"HTTP/1.1 200 OK\r\n\r\n").unwrap();
        }
        drop(served);
        answered.end();
        assert!(answered.shots().iter().filter(|shot| shot.ok).count() >= 5);
        assert!(answered.shots().iter().filter(|shot| shot.ok).all(|shot| shot.opened.is_some()));

        stream.end();
        let shots = stream.shots();
        assert!(shots.len() >= 10 && shots.iter().all(|shot| !shot.ok), "{}", shots.len());
        assert!(shots.iter().any(|shot| shot.opened.is_some() && shot.port != 0), "taken by the kernel");
    }
}
