//! Connections that this node makes: to a node that must prove to be the one that was meant.

use crate::identity::{ca, tls};
use anyhow::{Context, Result};
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tonic::transport::{Channel, Endpoint};

/// The protocol name of gRPC on the control port.
pub const ALPN: &[u8] = b"h2";
/// How long a node may take to answer the telephone.
const CONNECT: Duration = Duration::from_secs(2);

/// What a connection is for. Each kind gets one of its own, so that a large snapshot does not stand before a
/// heartbeat.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Line {
    /// Requests and sessions.
    Calls,
    /// Votes, heartbeats and appended entries.
    Raft,
    /// Snapshots.
    Bulk,
    /// Blobs of images.
    Blobs,
}

/// Connections to other nodes, made when first needed and again when they break.
pub struct Dialer {
    config: Arc<ClientConfig>,
    cluster: String,
    channels: Mutex<BTreeMap<(String, String, Line), Channel>>,
}

impl Dialer {
    /// A dialer that shows the certificate of `config`.
    pub fn new(config: Arc<ClientConfig>, cluster: String) -> Self {
        Self { config, cluster, channels: Mutex::default() }
    }

    /// A connection to `node` at `addr`; it is only made when something is sent.
    pub fn channel(&self, node: &str, addr: &str, line: Line) -> Result<Channel> {
        let key = (node.to_owned(), addr.to_owned(), line);
        let mut channels = self.channels.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(channel) = channels.get(&key) {
            return Ok(channel.clone());
        }
        let name = ServerName::try_from(ca::server_name(node, &self.cluster))
            .with_context(|| format!("{node} cannot be a node's id"))?;
        let channel = lazy(addr.to_owned(), name, self.config.clone());
        channels.retain(|(node, _, kind), _| node != &key.0 || *kind != line);
        channels.insert(key, channel.clone());
        Ok(channel)
    }

    /// Makes a connection before it is needed, or finds that it stands: asks for a page that no node has.
    ///
    /// # Errors
    /// If the node cannot be reached.
    pub async fn warm(&self, node: &str, addr: &str, line: Line) -> Result<()> {
        use tower::Service;
        let mut channel = self.channel(node, addr, line)?;
        std::future::poll_fn(|cx| channel.poll_ready(cx)).await?;
        channel.call(http::Request::new(tonic::body::Body::empty())).await?;
        Ok(())
    }
}

/// A connection for joining: any node of the cluster whose root has this digest.
pub async fn joining(addr: &str, digest: &str) -> Result<Channel> {
    let config = tls::joining(digest, ALPN)?;
    let name = ServerName::try_from("join.rswarm").context("a fixed name is a name")?;
    endpoint().connect_with_connector(connector(addr.to_owned(), name, config)).await.map_err(|error| {
        match root_cause(&error) {
            // It was reached, and is another's.
            foreign if foreign.contains(tls::FOREIGN_CA) => anyhow::anyhow!("{addr}: {}", tls::FOREIGN_CA),
            cause => anyhow::anyhow!("cannot reach {addr}: {cause}"),
        }
    })
}

/// The innermost of an error's causes: tonic wraps what happened in two layers that say "transport error".
pub fn root_cause(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(inner) = cause.source() {
        cause = inner;
    }
    cause.to_string()
}

/// A connection to whoever proves to be `name` at `addr`; it is only made when something is sent.
pub fn lazy(addr: String, name: ServerName<'static>, config: Arc<ClientConfig>) -> Channel {
    endpoint().connect_with_connector_lazy(connector(addr, name, config))
}

fn endpoint() -> Endpoint {
    Endpoint::from_static("http://rswarm")
        .connect_timeout(CONNECT)
        .http2_keep_alive_interval(Duration::from_secs(5))
        .keep_alive_timeout(Duration::from_secs(5))
        .initial_stream_window_size(4 << 20)
        .initial_connection_window_size(8 << 20)
}

type Secure = TokioIo<tokio_rustls::client::TlsStream<TcpStream>>;

fn connector(
    addr: String,
    name: ServerName<'static>,
    config: Arc<ClientConfig>,
) -> impl tower::Service<http::Uri, Response = Secure, Error = std::io::Error, Future = impl Future + Send> + Send
{
    tower::service_fn(move |_: http::Uri| {
        let (addr, name, tls) = (addr.clone(), name.clone(), TlsConnector::from(config.clone()));
        async move {
            let connect = async {
                let stream = TcpStream::connect(&addr).await?;
                stream.set_nodelay(true)?;
                tls.connect(name, stream).await
            };
            match tokio::time::timeout(CONNECT, connect).await {
                Ok(stream) => stream.map(TokioIo::new),
                Err(_) => {
                    Err(std::io::Error::new(std::io::ErrorKind::TimedOut, format!("{addr} does not answer")))
                }
            }
        }
    })
}
