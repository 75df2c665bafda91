//! The name server of a container: answers from the table, and asks the host's name servers for the rest. The
//! sockets are the caller's, made inside the container's network namespace; upstream is asked from the host's.

use std::{
    io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream, UdpSocket},
    sync::{Semaphore, watch},
    time::timeout,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    decide::names::{self, Answer, Transport},
    table::NetworkId,
    view::View,
};

/// Questions of one container that wait for upstream at once; more are answered with a failure.
const FORWARDED: usize = 64;
/// Connections of one container at once.
const CONNECTIONS: usize = 16;
/// How long one upstream server may take.
const UPSTREAM_PATIENCE: Duration = Duration::from_secs(2);
/// How long a connection may rest.
const IDLE: Duration = Duration::from_secs(10);
/// Largest message over UDP that is read, in bytes.
const DATAGRAM_MAX: usize = 4096;

/// What all containers' name servers share.
#[derive(Debug)]
pub(crate) struct Resolver {
    pub view: watch::Receiver<View>,
    /// Name servers of the host, in order.
    pub upstreams: Vec<SocketAddr>,
    pub tracker: TaskTracker,
}

/// One container's name server.
struct Serving {
    resolver: Arc<Resolver>,
    networks: Vec<NetworkId>,
    /// Asked instead of the host's, unless there are none.
    upstreams: Vec<SocketAddr>,
    forwarded: Arc<Semaphore>,
    connections: Arc<Semaphore>,
    turn: AtomicUsize,
    stop: CancellationToken,
}

impl Resolver {
    /// Serves a container in `networks` on its sockets until `stop`. Must be called inside a tokio runtime.
    pub fn serve(
        self: &Arc<Self>,
        networks: Vec<NetworkId>,
        upstreams: Vec<SocketAddr>,
        udp: std::net::UdpSocket,
        tcp: std::net::TcpListener,
        stop: CancellationToken,
    ) -> io::Result<()> {
        udp.set_nonblocking(true)?;
        tcp.set_nonblocking(true)?;
        let udp = Arc::new(UdpSocket::from_std(udp)?);
        let tcp = TcpListener::from_std(tcp)?;
        let serving = Arc::new(Serving {
            resolver: self.clone(),
            networks,
            upstreams,
            forwarded: Arc::new(Semaphore::new(FORWARDED)),
            connections: Arc::new(Semaphore::new(CONNECTIONS)),
            turn: AtomicUsize::new(0),
            stop,
        });
        self.tracker.spawn(async move {
            tokio::select! {
                () = serving.stop.cancelled() => {}
                () = serving.clone().serve_datagrams(udp) => {}
                () = serving.clone().serve_connections(tcp) => {}
            }
        });
        Ok(())
    }
}

impl Serving {
    fn answer(&self, question: &[u8], transport: Transport) -> Answer {
        let names = self.resolver.view.borrow().names.clone();
        names.answer(&self.networks, question, transport, self.turn.fetch_add(1, Ordering::Relaxed))
    }

    async fn serve_datagrams(self: Arc<Self>, socket: Arc<UdpSocket>) {
        let mut buffer = vec![0; DATAGRAM_MAX];
        loop {
            let (length, from) = match socket.recv_from(&mut buffer).await {
                Ok(received) => received,
                Err(error) => {
                    tracing::debug!(%error, "name server's socket");
                    tokio::time::sleep(Duration::from_millis(10)).await;
                    continue;
                }
            };
            let question = &buffer[..length];
            let reply = match self.answer(question, Transport::Udp) {
                Answer::Reply(reply) => Some(reply),
                Answer::Ignore => None,
                Answer::Forward => match self.forwarded.clone().try_acquire_owned() {
                    Err(_) => names::failure(question),
                    Ok(permit) => {
                        let (serving, socket, question) = (self.clone(), socket.clone(), question.to_vec());
                        self.resolver.tracker.spawn(async move {
                            tokio::select! {
                                () = serving.stop.cancelled() => {}
                                reply = serving.forward(&question, Transport::Udp) => {
                                    if let Some(reply) = reply {
                                        send(&socket, &reply, from).await;
                                    }
                                }
                            }
                            drop(permit);
                        });
                        None
                    }
                },
            };
            if let Some(reply) = reply {
                send(&socket, &reply, from).await;
            }
        }
    }

    async fn serve_connections(self: Arc<Self>, listener: TcpListener) {
        loop {
            let Ok(permit) = self.connections.clone().acquire_owned().await else { return };
            match listener.accept().await {
                Ok((connection, _)) => {
                    let serving = self.clone();
                    self.resolver.tracker.spawn(async move {
                        tokio::select! {
                            () = serving.stop.cancelled() => {}
                            _ = serving.serve_connection(connection) => {}
                        }
                        drop(permit);
                    });
                }
                Err(error) => {
                    tracing::debug!(%error, "name server's listener");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            }
        }
    }

    async fn serve_connection(&self, mut connection: TcpStream) -> io::Result<()> {
        loop {
            let question = timeout(IDLE, read_message(&mut connection)).await??;
            let reply = match self.answer(&question, Transport::Tcp) {
                Answer::Reply(reply) => Some(reply),
                Answer::Ignore => None,
                Answer::Forward => self.forward(&question, Transport::Tcp).await,
            };
            let Some(reply) = reply else { return Ok(()) };
            timeout(IDLE, write_message(&mut connection, &reply)).await??;
        }
    }

    /// Asks the container's own servers, or the host's, in order; a failure if none answers.
    async fn forward(&self, question: &[u8], transport: Transport) -> Option<Vec<u8>> {
        let own = Some(&self.upstreams).filter(|own| !own.is_empty());
        for server in own.unwrap_or(&self.resolver.upstreams) {
            let asked = async {
                match transport {
                    Transport::Udp => ask_udp(*server, question).await,
                    Transport::Tcp => ask_tcp(*server, question).await,
                }
            };
            match timeout(UPSTREAM_PATIENCE, asked).await {
                Ok(Ok(reply)) => return Some(reply),
                Ok(Err(error)) => tracing::debug!(%server, %error, "name server of the host"),
                Err(_) => tracing::debug!(%server, "name server of the host does not answer"),
            }
        }
        names::failure(question)
    }
}

async fn send(socket: &UdpSocket, reply: &[u8], to: SocketAddr) {
    if let Err(error) = socket.send_to(reply, to).await {
        tracing::debug!(%error, "answer not sent");
    }
}

async fn ask_udp(server: SocketAddr, question: &[u8]) -> io::Result<Vec<u8>> {
    let any: SocketAddr =
        if server.is_ipv4() { (Ipv4Addr::UNSPECIFIED, 0).into() } else { (Ipv6Addr::UNSPECIFIED, 0).into() };
    let socket = UdpSocket::bind(any).await?;
    socket.connect(server).await?;
    socket.send(question).await?;
    let mut reply = vec![0; DATAGRAM_MAX];
    loop {
        let length = socket.recv(&mut reply).await?;
        // The port is random and the socket connected; the id tells a late answer from this one.
        if length >= 12 && reply[..2] == question[..2] {
            reply.truncate(length);
            return Ok(reply);
        }
    }
}

async fn ask_tcp(server: SocketAddr, question: &[u8]) -> io::Result<Vec<u8>> {
    let mut connection = TcpStream::connect(server).await?;
    write_message(&mut connection, question).await?;
    read_message(&mut connection).await
}

async fn read_message(connection: &mut TcpStream) -> io::Result<Vec<u8>> {
    let mut message = vec![0; usize::from(connection.read_u16().await?)];
    connection.read_exact(&mut message).await?;
    Ok(message)
}

async fn write_message(connection: &mut TcpStream, message: &[u8]) -> io::Result<()> {
    let length = u16::try_from(message.len()).map_err(|_| io::Error::from(io::ErrorKind::InvalidData))?;
    let mut bytes = length.to_be_bytes().to_vec();
    bytes.extend_from_slice(message);
    connection.write_all(&bytes).await
}

#[cfg(test)]
mod tests {
    use hickory_proto::{
        op::{Message, Query, ResponseCode},
        rr::{Name, RecordType},
    };

    use super::*;
    use crate::table::{Access, Network, Service, Table};

    fn view() -> View {
        let network = NetworkId::new(1).unwrap();
        View::new(Table {
            networks: vec![Network {
                id: network,
                subnet: [10, 50, 0, 0].into(),
                prefix: 24,
                gateway: [10, 50, 0, 1].into(),
                mtu: 1400,
                internal: false,
                isolated: false,
            }],
            services: vec![Service {
                network,
                name: "web".into(),
                aliases: vec![],
                vip: Some([10, 50, 0, 9].into()),
                client_affinity: false,
                backends: vec![],
                draining: vec![],
                access: Access::Open,
            }],
            ..Table::default()
        })
    }

    /// Starts a name server; returns its addresses.
    fn start(upstreams: Vec<SocketAddr>) -> (SocketAddr, SocketAddr, watch::Sender<View>) {
        start_with(upstreams, Vec::new())
    }

    /// For a container with servers of its own.
    fn start_with(
        upstreams: Vec<SocketAddr>,
        own: Vec<SocketAddr>,
    ) -> (SocketAddr, SocketAddr, watch::Sender<View>) {
        let (sender, view) = watch::channel(view());
        let resolver = Arc::new(Resolver { view, upstreams, tracker: TaskTracker::new() });
        let udp = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let tcp = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let addresses = (udp.local_addr().unwrap(), tcp.local_addr().unwrap());
        resolver.serve(vec![NetworkId::new(1).unwrap()], own, udp, tcp, CancellationToken::new()).unwrap();
        (addresses.0, addresses.1, sender)
    }

    fn question(name: &str) -> Vec<u8> {
        let mut message = Message::query();
        message.add_query(Query::query(Name::from_utf8(name).unwrap(), RecordType::A));
        message.to_vec().unwrap()
    }

    async fn ask(udp: SocketAddr, tcp: SocketAddr, name: &str) -> Vec<(ResponseCode, usize)> {
        let question = question(name);
        let replies = [ask_udp(udp, &question).await.unwrap(), ask_tcp(tcp, &question).await.unwrap()];
        replies
            .iter()
            .map(|reply| Message::from_vec(reply).unwrap())
            .map(|reply| (reply.metadata.response_code, reply.answers.len()))
            .collect()
    }

    #[tokio::test]
    async fn own_names_are_answered_and_others_fail_fast_without_upstream() {
        let (udp, tcp, _view) = start(vec![]);
        assert_eq!(ask(udp, tcp, "web.").await, [(ResponseCode::NoError, 1); 2]);
        assert_eq!(ask(udp, tcp, "example.org.").await, [(ResponseCode::ServFail, 0); 2]);
    }

    #[tokio::test]
    async fn unknown_names_are_asked_upstream() {
        let upstream_udp = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let server = upstream_udp.local_addr().unwrap();
        let upstream_tcp = std::net::TcpListener::bind(server).unwrap();
        let (sender, view) = watch::channel(view());
        let resolver = Arc::new(Resolver { view, upstreams: vec![], tracker: TaskTracker::new() });
        resolver
            .serve(
                vec![NetworkId::new(1).unwrap()],
                vec![],
                upstream_udp,
                upstream_tcp,
                CancellationToken::new(),
            )
            .unwrap();
        // The first of these is a closed port: it is passed over.
        let closed = std::net::UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let (udp, tcp, other) = start(vec![closed, server]);
        other.send_replace(View::default());
        assert_eq!(ask(udp, tcp, "web.").await, [(ResponseCode::NoError, 1); 2]);
        // A container's own servers are asked instead of the host's.
        let (udp, tcp, other) = start_with(vec![closed], vec![server]);
        other.send_replace(View::default());
        assert_eq!(ask(udp, tcp, "web.").await, [(ResponseCode::NoError, 1); 2]);
        let (udp, tcp, other) = start_with(vec![server], vec![closed]);
        other.send_replace(View::default());
        assert_eq!(ask(udp, tcp, "web.").await, [(ResponseCode::ServFail, 0); 2]);
        drop(sender);
    }
}
