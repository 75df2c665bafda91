//! One member of the measured cluster, in a process of its own: the log, the transport and the port that a manager
//! has, and on top keys and values instead of services.

use super::cluster::MEMBERS;
use super::kv::{Store, View};
use super::load;
use super::order::{Order, Stand};
use crate::identity::tls::{self, Credentials};
use crate::manager::transport::{Grpc, Receiver};
use crate::rpc::dial::{ALPN, Dialer};
use crate::rpc::listen;
use anyhow::{Context, Result};
use prost::Message;
use rswarm_proto::etcd::kv_server::{Kv, KvServer};
use rswarm_proto::etcd::maintenance_server::{Maintenance, MaintenanceServer};
use rswarm_proto::etcd::{
    Header, Pair, PutRequest, PutResponse, RangeRequest, RangeResponse, StatusRequest, StatusResponse,
};
use rswarm_proto::v1::raft_server::RaftServer;
use rswarm_raft::{AsWhat, ClusterTag, Config, FRAME_BYTES_MAX, Log, Member, RaftId};
use std::io::Write as _;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tonic::transport::Server;
use tonic::{Request, Response, Status};

/// The cluster's name in certificates.
pub const CLUSTER: &str = "bench";
/// How long the members may take to find each other.
const FORMING: Duration = Duration::from_secs(30);

/// Be a member of the cluster that `bench raft` measures
#[derive(Debug, clap::Args)]
pub struct MemberArgs {
    /// Where certificates are and the log is to be
    dir: PathBuf,
    /// Which of the peers this is, from 1
    number: usize,
    /// The addresses of all
    #[arg(required = true)]
    peers: Vec<SocketAddr>,
}

/// The node that the member with this number is.
pub fn node(number: usize) -> String {
    format!("n{number}")
}

/// Where a member finds its certificate, its key and the root.
pub struct Papers {
    /// The certificate.
    pub cert: PathBuf,
    /// Its key.
    pub key: PathBuf,
    /// The root.
    pub ca: PathBuf,
}

impl Papers {
    /// The papers in a directory.
    pub fn of(dir: &Path) -> Self {
        Self { cert: dir.join("cert.pem"), key: dir.join("key.pem"), ca: dir.join("ca.pem") }
    }

    /// Reads them; answers the root too.
    ///
    /// # Errors
    /// If one is missing or makes no sense.
    pub fn read(&self) -> Result<(Arc<Credentials>, String)> {
        let text = |path: &Path| {
            std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))
        };
        let ca = text(&self.ca)?;
        Ok((Credentials::new(&text(&self.cert)?, &ca, &text(&self.key)?)?, ca))
    }
}

impl MemberArgs {
    /// Runs until standard input ends. Each line there is an [`Order`], and answered by one on standard output.
    pub fn run(self) -> ExitCode {
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
        match runtime.context("cannot start").and_then(|runtime| runtime.block_on(self.serve())) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                eprintln!("Error: {error:#}");
                ExitCode::FAILURE
            }
        }
    }

    fn member(&self, number: usize) -> Result<Member> {
        let addr = self.peers.get(number - 1).context("there is no such peer")?.to_string();
        Ok(Member { id: RaftId(number as u64), addr, node: node(number) })
    }

    async fn serve(self) -> Result<()> {
        anyhow::ensure!((1..=self.peers.len()).contains(&self.number), "this is none of the peers");
        let (credentials, ca) = Papers::of(&self.dir).read()?;
        let dialer = Dialer::new(tls::client(credentials.clone(), &ca, ALPN)?, CLUSTER.into());
        let (store, view) = Store::new();
        let id = RaftId(self.number as u64);
        let config = Config::new(self.dir.join("raft"), id, ClusterTag(1));
        let log = Arc::new(Log::open(config, store, Arc::new(Grpc::new(Arc::new(dialer)))).await?);

        let addr = self.peers[self.number - 1];
        let listener = TcpListener::bind(addr).await.with_context(|| format!("cannot listen on {addr}"))?;
        let stop = CancellationToken::new();
        let arrivals =
            listen::tls(listener, tls::server(credentials, &ca, false, ALPN)?, CLUSTER.into(), stop.clone());
        let most = FRAME_BYTES_MAX + 1024;
        let raft = RaftServer::new(Receiver::of(log.clone()))
            .max_decoding_message_size(most)
            .max_encoding_message_size(most);
        let front = Front { log: log.clone(), view: view.clone() };
        let router = Server::builder()
            .add_service(raft)
            .add_service(KvServer::new(front.clone()))
            .add_service(MaintenanceServer::new(front));
        let served = tokio::spawn(router.serve_with_incoming(arrivals));

        if self.number == 1 {
            log.bootstrap(self.member(1)?).await?;
            for number in 2..=MEMBERS {
                log.add(self.member(number)?, AsWhat::Voter, FORMING).await?;
            }
        }
        let mut lines = BufReader::new(tokio::io::stdin()).lines();
        while let Some(line) = lines.next_line().await? {
            let answer = obey(line.parse()?, &log, &view).await?;
            let words: Vec<String> = answer.iter().map(f64::to_string).collect();
            let mut out = std::io::stdout().lock();
            writeln!(out, "{}", words.join(" "))?;
            out.flush()?;
        }
        stop.cancel();
        served.abort();
        Ok(())
    }
}

async fn obey(order: Order, log: &Arc<Log>, view: &View) -> Result<Vec<f64>> {
    Ok(match order {
        Order::Propose { writers, window } => {
            let outcome = load::within(log, writers, window).await?;
            vec![outcome.done as f64, outcome.failed as f64, outcome.p50_ms, outcome.p99_ms]
        }
        Order::Fill { keys, bytes } => vec![load::fill(log, keys, bytes).await? as f64],
        Order::Add { number, addr } => {
            let began = Instant::now();
            let member = Member { id: RaftId(number as u64), addr: addr.to_string(), node: node(number) };
            log.add(member, AsWhat::Voter, FORMING).await?;
            vec![began.elapsed().as_secs_f64() * 1000.0]
        }
        Order::Stand => {
            let status = log.status();
            let stand = Stand {
                leader: status.leader.map_or(0, |leader| leader.id.0),
                term: status.term,
                applied: status.applied,
                snapshot: status.snapshot,
                voters: status.voters.len() as u64,
                keys: view.count() as u64,
            };
            stand.numbers().map(|number| number as f64).into()
        }
    })
}

#[derive(Clone)]
struct Front {
    log: Arc<Log>,
    view: View,
}

impl Front {
    fn header(&self, revision: u64) -> Option<Header> {
        let status = self.log.watch();
        let status = status.borrow();
        Some(Header { member_id: status.id.0, revision: revision as i64, raft_term: status.term })
    }
}

#[tonic::async_trait]
impl Kv for Front {
    async fn put(&self, request: Request<PutRequest>) -> Result<Response<PutResponse>, Status> {
        let command = request.into_inner().encode_to_vec().into();
        let proposed =
            self.log.propose(command).await.map_err(|error| Status::unavailable(error.to_string()))?;
        Ok(Response::new(PutResponse { header: self.header(proposed.index) }))
    }

    async fn range(&self, request: Request<RangeRequest>) -> Result<Response<RangeResponse>, Status> {
        let RangeRequest { key, serializable } = request.into_inner();
        let index = match serializable {
            true => self.log.status().applied,
            false => self.log.read_index().await.map_err(|error| Status::unavailable(error.to_string()))?,
        };
        let pairs: Vec<Pair> = self.view.get(&key).map(|value| Pair { key, value }).into_iter().collect();
        let count = pairs.len() as i64;
        Ok(Response::new(RangeResponse { header: self.header(index), pairs, count }))
    }
}

#[tonic::async_trait]
impl Maintenance for Front {
    async fn status(&self, _: Request<StatusRequest>) -> Result<Response<StatusResponse>, Status> {
        let status = self.log.status();
        // One that has not all voters yet is not yet what is to be measured.
        let leader = status.leader.filter(|_| status.voters.len() >= MEMBERS).map_or(0, |leader| leader.id.0);
        Ok(Response::new(StatusResponse {
            header: self.header(status.applied),
            version: env!("CARGO_PKG_VERSION").into(),
            leader,
            raft_term: status.term,
        }))
    }
}
