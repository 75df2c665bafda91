//! What managers may ask of this node: the logs of its tasks, doors into them, and how they are.

use super::{copy, enter, work};
use crate::api::doctor::{IN_DOUBT, loses};
use crate::executor::{Executor, LogQuery, LogStream};
use crate::rfc3339::{nanos, stamp};
use rswarm_control::ids::TaskId;
use rswarm_netoverlay::Overlay;
use rswarm_netoverlay::peer::PeerStatus;
use rswarm_proto::v1 as pb;
use rswarm_proto::v1::enter_input::What as Input;
use rswarm_proto::v1::enter_open::Door;
use rswarm_proto::v1::task_ask::What;
use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

/// The service `Agent`.
pub struct Doors {
    executor: Arc<Executor>,
    overlay: Overlay,
}

/// How often each peer of the overlay is asked for a sign of life, and for how long it may hesitate.
const ASKED: u32 = 5;
/// How often as many are asked where packets were lost.
const ROUNDS_IN_DOUBT: u32 = IN_DOUBT / ASKED;
const ANSWER_WITHIN: Duration = Duration::from_millis(300);

type Stream<T> = Pin<Box<dyn tokio_stream::Stream<Item = Result<T, Status>> + Send>>;

/// Pieces of output that wait for a slow network; each is at most 32 KiB.
const AHEAD: usize = 16;

impl Doors {
    /// Opens on the containers of this executor, in this overlay.
    pub fn new(executor: Arc<Executor>, overlay: Overlay) -> Self {
        Self { executor, overlay }
    }
}

/// The container of a task.
fn container(task: &str) -> Result<String, Status> {
    let id: TaskId =
        task.parse().map_err(|error| Status::invalid_argument(format!("task `{task}`: {error}")))?;
    Ok(work::container_id(id))
}

#[tonic::async_trait]
impl pb::agent_server::Agent for Doors {
    type TaskLogsStream = Stream<pb::TaskLogLine>;
    type EnterStream = Stream<pb::EnterOutput>;

    async fn task_logs(
        &self,
        request: Request<pb::TaskLogsRequest>,
    ) -> Result<Response<Self::TaskLogsStream>, Status> {
        let request = request.into_inner();
        let query = LogQuery {
            follow: request.follow,
            tail: usize::try_from(request.tail).ok(),
            since: (request.since_ms > 0).then(|| stamp(request.since_ms)),
            until: (request.until_ms > 0).then(|| stamp(request.until_ms)),
            ..LogQuery::default()
        };
        let mut logs =
            self.executor.logs(&container(&request.task_id)?, query).map_err(|error| match error {
                crate::executor::Error::Unreadable { .. } => Status::failed_precondition(error.to_string()),
                _ => Status::not_found(error.to_string()),
            })?;
        let (sender, receiver) = mpsc::channel(256);
        tokio::spawn(async move {
            let over = past(request.until_ms);
            tokio::pin!(over);
            loop {
                let entry = tokio::select! {
                    () = sender.closed() => return,
                    entry = logs.next() => entry,
                    () = &mut over, if request.follow => return,
                };
                let Some(entry) = entry else { return };
                let line = pb::TaskLogLine {
                    at_ns: nanos(&entry.timestamp).unwrap_or(0),
                    stderr: entry.stream == LogStream::Stderr,
                    line: entry.text.into(),
                };
                if sender.send(Ok(line)).await.is_err() {
                    return;
                }
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }

    async fn enter(
        &self,
        request: Request<Streaming<pb::EnterInput>>,
    ) -> Result<Response<Self::EnterStream>, Status> {
        let mut input = request.into_inner();
        let Some(pb::EnterInput { what: Some(Input::Open(open)) }) = input.message().await? else {
            return Err(Status::invalid_argument("the first message opens a door"));
        };
        let id = container(&open.task)?;
        let (sink, receiver) = mpsc::channel(AHEAD);
        let executor = self.executor.clone();
        match open.door {
            Some(Door::Exec(door)) => tokio::spawn(enter::exec(executor, id, door, input, sink)),
            Some(Door::Forward(door)) => tokio::spawn(enter::forward(executor, id, door, input, sink)),
            Some(Door::Attach(door)) => tokio::spawn(enter::attach(executor, id, door, input, sink)),
            Some(Door::Copy(door)) => tokio::spawn(copy::serve(executor, id, door, input, sink)),
            None => {
                return Err(Status::unimplemented("this node is of another version and has no such door"));
            }
        };
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }

    async fn ask(&self, request: Request<pb::TaskAsk>) -> Result<Response<pb::TaskAnswer>, Status> {
        let ask = request.into_inner();
        let id = container(&ask.task)?;
        let what = ask.what();
        let mut answer = pb::TaskAnswer { task_id: ask.task, ..Default::default() };
        let refused = |error: crate::executor::Error| Status::failed_precondition(error.to_string());
        match what {
            What::Unspecified => return Err(Status::invalid_argument("nothing was asked")),
            What::Pause => self.executor.pause(&id).await.map_err(refused)?,
            What::Unpause => self.executor.unpause(&id).await.map_err(refused)?,
            What::Top => {
                let processes = self.executor.processes(&id).await.map_err(refused)?;
                answer.processes = processes.into_iter().map(process).collect();
            }
            What::Stats => answer.usage = Some(usage(&self.executor, &id).await.map_err(refused)?),
        }
        Ok(Response::new(answer))
    }

    async fn peers(&self, _: Request<pb::PeersRequest>) -> Result<Response<pb::PeersAnswer>, Status> {
        let status = self.overlay.status().await.map_err(|error| Status::unavailable(error.to_string()))?;
        let connected = status.peers.iter().filter(|peer| peer.connected);
        let asked = connected.map(|peer| async move {
            // What was lost may have been lost long ago, while a link was cut.
            let rounds = if loses(peer.packets_lost, peer.packets_sent) { ROUNDS_IN_DOUBT } else { 1 };
            let mut answered = 0;
            for _ in 0..rounds {
                let ask = || tokio::time::timeout(ANSWER_WITHIN, self.overlay.probe(peer.node.clone()));
                let answers = futures_util::future::join_all((0..ASKED).map(|_| ask())).await;
                answered += answers.iter().map(|answer| u32::from(*answer == Ok(true))).sum::<u32>();
            }
            (peer.node.clone(), (rounds * ASKED, answered))
        });
        let answered: BTreeMap<_, _> = futures_util::future::join_all(asked).await.into_iter().collect();
        // Looked at again: what was just measured is in it.
        let status = self.overlay.status().await.map_err(|error| Status::unavailable(error.to_string()))?;
        let peers = status.peers.into_iter().map(|status| {
            let answered = answered.get(&status.node).copied();
            peer(status, answered)
        });
        let at = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Ok(Response::new(pb::PeersAnswer { at_ms: at.as_millis() as u64, peers: peers.collect() }))
    }
}

fn peer(status: PeerStatus, questions: Option<(u32, u32)>) -> pb::OverlayPeer {
    let (asked, answered) = questions.unwrap_or_default();
    pb::OverlayPeer {
        node: status.node.to_string(),
        addr: status.underlay.to_string(),
        connected: status.connected,
        suspect: status.suspect,
        silent_ms: status.silent.as_millis() as u64,
        rtt_us: status.rtt.map_or(0, |rtt| rtt.as_micros() as u64),
        packet_max: status.packet_max.map_or(0, u32::from),
        packets_sent: status.packets_sent,
        packets_lost: status.packets_lost,
        asked,
        answered,
        error: status.error.unwrap_or_default(),
    }
}

/// Ends a moment after `until_ms`, or never if that is 0: what was said by then may still be on its way.
async fn past(until_ms: u64) {
    const MOMENT: Duration = Duration::from_millis(200);
    if until_ms == 0 {
        return std::future::pending().await;
    }
    let until = UNIX_EPOCH + Duration::from_millis(until_ms);
    let left = until.duration_since(SystemTime::now()).unwrap_or_default();
    tokio::time::sleep(left + MOMENT).await;
}

fn process(process: crate::executor::Process) -> pb::TaskProcess {
    pb::TaskProcess {
        uid: process.uid,
        pid: process.pid.unsigned_abs(),
        ppid: process.ppid.unsigned_abs(),
        started_at_ms: process.started_unix_ms,
        cpu_ns: process.cpu_ns,
        tty: process.tty,
        command: process.command,
    }
}

async fn usage(executor: &Executor, id: &str) -> Result<pb::TaskUsage, crate::executor::Error> {
    let traffic = executor.traffic(id).await?;
    let usage = executor.stats(id).await?;
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    Ok(pb::TaskUsage {
        at_ns: now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64,
        cpu_ns: usage.cpu_ns,
        throttled_periods: usage.throttled_periods,
        memory_bytes: usage.memory_bytes,
        memory_limit_bytes: usage.memory_limit_bytes.unwrap_or_else(crate::machine::memory_bytes),
        pids: usage.pids,
        oom_kills: usage.oom_kills,
        received_bytes: traffic.received_bytes,
        sent_bytes: traffic.sent_bytes,
        read_bytes: usage.read_bytes,
        written_bytes: usage.written_bytes,
        pressure: usage.pressure.map(|pressure| pb::Pressure {
            cpu: pressure.cpu,
            memory: pressure.memory,
            io: pressure.io,
        }),
    })
}
