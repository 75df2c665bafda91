//! Three processes of one kind on loopback, the connections of a client to the one that leads, and their end.

use super::load::{Outcome, Window};
use super::member::{self, CLUSTER, Papers};
use super::order::{Order, Stand};
use crate::identity::ca::{self, Root};
use crate::identity::tls;
use crate::rpc::dial::{self, ALPN};
use anyhow::{Context, Result, anyhow};
use rcgen::{
    BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    SanType,
};
use rswarm_proto::etcd::StatusRequest;
use rswarm_proto::etcd::maintenance_client::MaintenanceClient;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use std::fs::{self, File};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use tonic::transport::{Channel, Endpoint};

/// How many members.
pub const MEMBERS: usize = 3;
/// Where the newcomer stands among the members, if there is one.
pub const NEWCOMER: usize = MEMBERS;
/// How many connections the clients share at the most.
const CONNECTIONS: usize = 8;
/// How long it may take until somebody leads.
const READY: Duration = Duration::from_secs(60);
/// How long certificates live.
const LIFE: Duration = Duration::from_secs(24 * 3600);

/// What a cluster is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Make {
    /// This program.
    Rswarm,
    /// etcd, with certificates on both sides as rswarm has them.
    EtcdTls,
    /// etcd, in the clear.
    EtcdPlain,
}

/// A running cluster; its processes end with it.
pub struct Cluster {
    make: Make,
    /// Signs what members and clients of ours prove themselves by.
    root: Option<Root>,
    members: Vec<Process>,
    client: Option<Arc<ClientConfig>>,
}

struct Process {
    /// Ended when this is dropped.
    child: Child,
    addr: SocketAddr,
    orders: Option<(ChildStdin, Lines<BufReader<ChildStdout>>)>,
}

impl Cluster {
    /// Starts one beneath `dir` and waits until somebody leads. `program` is etcd, or this.
    pub async fn start(make: Make, program: &Path, dir: &Path) -> Result<Self> {
        let dir = dir.join(format!("{make:?}").to_lowercase());
        fs::create_dir_all(&dir).with_context(|| format!("cannot create {}", dir.display()))?;
        let mut cluster = match make {
            Make::Rswarm => rswarm(program, &dir)?,
            Make::EtcdTls | Make::EtcdPlain => etcd(make, program, &dir)?,
        };
        let deadline = Instant::now() + READY;
        while cluster.leader().await.is_err() {
            for (number, member) in (1..).zip(&mut cluster.members) {
                if let Some(status) = member.child.try_wait()? {
                    let log = dir.join(format!("{number}.log"));
                    let text = fs::read_to_string(&log).unwrap_or_default();
                    let last = text.lines().last().unwrap_or("nothing").to_owned();
                    return Err(anyhow!("a member ended ({status}); the last it said: {last}"));
                }
            }
            let waited = format!("no {make:?} member leads within {} s", READY.as_secs());
            anyhow::ensure!(Instant::now() < deadline, waited);
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        Ok(cluster)
    }

    /// Connections to the leader, for `clients` at once.
    pub async fn channels(&self, clients: usize) -> Result<Vec<Channel>> {
        let leader = self.leader().await?;
        (0..clients.min(CONNECTIONS)).map(|_| self.channel(leader)).collect()
    }

    /// Lets the leader propose from within its own process.
    pub async fn propose(&mut self, writers: usize, window: Window) -> Result<Outcome> {
        let leader = self.leader().await?;
        let answer = self.order(leader, &Order::Propose { writers, window }).await?;
        let mut numbers = answer.into_iter();
        let mut next = || numbers.next().unwrap_or_default();
        let (done, failed) = (next() as usize, next() as usize);
        let per_second = done as f64 / window.counted.as_secs_f64();
        Ok(Outcome { done, failed, per_second, p50_ms: next(), p99_ms: next() })
    }

    /// Has a member do something, and waits for its answer.
    pub async fn order(&mut self, at: usize, order: &Order) -> Result<Vec<f64>> {
        let member = self.members.get_mut(at).context("there is no such member")?;
        let (orders, answers) = member.orders.as_mut().context("etcd takes no orders")?;
        orders.write_all(format!("{order}\n").as_bytes()).await?;
        let line = answers.next_line().await?.with_context(|| format!("the member ended at `{order}`"))?;
        Ok(line.split(' ').map(|word| word.parse().unwrap_or_default()).collect())
    }

    /// How a member stands.
    pub async fn stand(&mut self, at: usize) -> Result<Stand> {
        Ok(Stand::read(&self.order(at, &Order::Stand).await?))
    }

    /// The process of a member, while it runs.
    pub fn pid(&self, at: usize) -> Option<i32> {
        self.members.get(at)?.child.id()?.try_into().ok()
    }

    /// Starts one more member of ours beneath `dir`, which none of the others knows yet. Where it will be.
    pub fn newcomer(&mut self, program: &Path, dir: &Path) -> Result<SocketAddr> {
        let dir = dir.join(format!("{:?}", self.make).to_lowercase());
        let addr = free_ports(1)?[0];
        let mut addrs: Vec<SocketAddr> = self.members.iter().map(|member| member.addr).collect();
        addrs.push(addr);
        let root = self.root.as_ref().context("etcd takes no newcomers")?;
        self.members.push(member(program, &dir, root, self.members.len() + 1, &addrs)?);
        Ok(addr)
    }

    /// Who leads.
    pub async fn leader(&self) -> Result<usize> {
        for at in 0..self.members.len() {
            let mut status = MaintenanceClient::new(self.channel(at)?);
            let asked = tokio::time::timeout(Duration::from_secs(5), status.status(StatusRequest {}));
            let Ok(Ok(answer)) = asked.await else { continue };
            let answer = answer.into_inner();
            let me = answer.header.as_ref().map_or(0, |header| header.member_id);
            if answer.leader != 0 && answer.leader == me {
                return Ok(at);
            }
        }
        Err(anyhow!("none of the {:?} members leads", self.make))
    }

    fn channel(&self, at: usize) -> Result<Channel> {
        let addr = self.members[at].addr;
        let Some(config) = &self.client else {
            // As the secure ones, but for the cipher.
            let endpoint = Endpoint::from_shared(format!("http://{addr}")).context("not an address")?;
            return Ok(endpoint
                .tcp_nodelay(true)
                .initial_stream_window_size(4 << 20)
                .initial_connection_window_size(8 << 20)
                .connect_lazy());
        };
        let name = match self.make {
            Make::Rswarm => ServerName::try_from(ca::server_name(&member::node(at + 1), CLUSTER))
                .context("not a name for a certificate")?,
            _ => ServerName::from(addr.ip()),
        };
        Ok(dial::lazy(addr.to_string(), name, config.clone()))
    }
}

fn spawn(command: &mut Command, dir: &Path, number: usize) -> Result<Child> {
    let path = dir.join(format!("{number}.log"));
    let log = File::create(&path).with_context(|| format!("cannot create {}", path.display()))?;
    let program = command.as_std().get_program().to_owned();
    command
        .stderr(log)
        .kill_on_drop(true)
        .spawn()
        .with_context(|| format!("cannot start {}", Path::new(&program).display()))
}

fn certify(root: &Root, node: &str, dir: &Path) -> Result<()> {
    let (key, request) = ca::request()?;
    let cert = root.sign(&request, node, CLUSTER, SystemTime::now(), LIFE)?;
    write_papers(dir, &cert, &key, &root.cert_pem)
}

/// Starts the member of ours with this number.
fn member(program: &Path, dir: &Path, root: &Root, number: usize, addrs: &[SocketAddr]) -> Result<Process> {
    let addr = *addrs.get(number - 1).context("a member without an address")?;
    let home = dir.join(number.to_string());
    certify(root, &member::node(number), &home)?;
    let mut command = Command::new(program);
    command.arg("bench-member").arg(&home).arg(number.to_string());
    command.args(addrs.iter().map(SocketAddr::to_string));
    command.stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = spawn(&mut command, dir, number)?;
    let orders = child.stdin.take().zip(child.stdout.take());
    let orders = orders.map(|(orders, answers)| (orders, BufReader::new(answers).lines()));
    Ok(Process { child, addr, orders })
}

fn rswarm(program: &Path, dir: &Path) -> Result<Cluster> {
    let root = Root::generate(CLUSTER, SystemTime::now())?;
    let addrs = free_ports(MEMBERS)?;
    let members =
        (1..=MEMBERS).map(|number| member(program, dir, &root, number, &addrs)).collect::<Result<_>>()?;
    let home = dir.join("client");
    certify(&root, "client", &home)?;
    let (credentials, ca) = Papers::of(&home).read()?;
    let client = Some(tls::client(credentials, &ca, ALPN)?);
    Ok(Cluster { make: Make::Rswarm, root: Some(root), members, client })
}

fn etcd(make: Make, program: &Path, dir: &Path) -> Result<Cluster> {
    let secure = make == Make::EtcdTls;
    let papers = Papers::of(dir);
    if secure {
        let (cert, key, ca) = loopback_papers()?;
        write_papers(dir, &cert, &key, &ca)?;
    }
    let scheme = if secure { "https" } else { "http" };
    let url = |addr: &SocketAddr| format!("{scheme}://{addr}");
    let (clients, peers) = (free_ports(MEMBERS)?, free_ports(MEMBERS)?);
    let all: Vec<String> =
        (1..).zip(&peers).map(|(number, peer)| format!("{}={}", member::node(number), url(peer))).collect();
    let mut members = Vec::new();
    for (number, (client, peer)) in (1..).zip(clients.iter().zip(&peers)) {
        let mut command = Command::new(program);
        command.env_clear().current_dir(dir);
        let home: PathBuf = dir.join(number.to_string());
        command.arg("--data-dir").arg(home).args(["--name", &member::node(number)]);
        command.args(["--listen-client-urls", &url(client), "--advertise-client-urls", &url(client)]);
        command.args(["--listen-peer-urls", &url(peer), "--initial-advertise-peer-urls", &url(peer)]);
        command.args(["--initial-cluster", &all.join(","), "--initial-cluster-token", "bench"]);
        command.args(["--initial-cluster-state", "new", "--log-level", "error", "--logger", "zap"]);
        if secure {
            command.arg("--cert-file").arg(&papers.cert).arg("--key-file").arg(&papers.key);
            command.arg("--trusted-ca-file").arg(&papers.ca).arg("--client-cert-auth");
            command.arg("--peer-cert-file").arg(&papers.cert).arg("--peer-key-file").arg(&papers.key);
            command.arg("--peer-trusted-ca-file").arg(&papers.ca).arg("--peer-client-cert-auth");
        }
        command.stdin(Stdio::null()).stdout(Stdio::null());
        let child = spawn(&mut command, dir, number)?;
        members.push(Process { child, addr: *client, orders: None });
    }
    let client = match secure {
        true => {
            let (credentials, ca) = papers.read()?;
            Some(tls::client(credentials, &ca, ALPN)?)
        }
        false => None,
    };
    Ok(Cluster { make, root: None, members, client })
}

/// A certificate for 127.0.0.1 on both sides of a connection, its key, and the root that signed it.
fn loopback_papers() -> Result<(String, String, String)> {
    let root_key = KeyPair::generate().context("cannot make a key")?;
    let mut root = CertificateParams::default();
    root.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    root.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let ca = root.self_signed(&root_key).context("cannot sign a root certificate")?.pem();
    let issuer = Issuer::new(root, root_key);
    let key = KeyPair::generate().context("cannot make a key")?;
    let mut leaf = CertificateParams::default();
    leaf.subject_alt_names = vec![SanType::IpAddress(IpAddr::V4(Ipv4Addr::LOCALHOST))];
    leaf.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    let cert = leaf.signed_by(&key, &issuer).context("cannot sign a certificate")?.pem();
    Ok((cert, key.serialize_pem(), ca))
}

fn write_papers(dir: &Path, cert: &str, key: &str, ca: &str) -> Result<()> {
    fs::create_dir_all(dir).with_context(|| format!("cannot create {}", dir.display()))?;
    let papers = Papers::of(dir);
    for (path, text) in [(&papers.cert, cert), (&papers.key, key), (&papers.ca, ca)] {
        fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}

/// Ports of loopback that nobody has now.
fn free_ports(count: usize) -> Result<Vec<SocketAddr>> {
    let listeners: Vec<std::net::TcpListener> = (0..count)
        .map(|_| std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)))
        .collect::<Result<_, _>>()
        .context("there is no free port")?;
    listeners.iter().map(|listener| listener.local_addr().context("a port without a number")).collect()
}
