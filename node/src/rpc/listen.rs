//! Connections that arrive: TLS on the control port, plain on the unix socket.

use super::access::{Known, Peer};
use crate::identity::ca;
use anyhow::{Context, Result};
use rustls::ServerConfig;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream, UdpSocket, UnixListener, UnixStream};
use tokio::sync::mpsc;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;

/// How long a caller may take for its handshake.
const HANDSHAKE: Duration = Duration::from_secs(5);
/// How many handshakes may be under way at once.
const HANDSHAKES: usize = 256;

/// Connections whose handshake is done.
pub type Arrivals<IO> = ReceiverStream<std::io::Result<Known<IO>>>;

/// Binds the control port. The overlay's, which is the UDP port of the same number, is tried too, so that what
/// stands in its way is known before anything is made or asked for.
pub async fn bind(addr: SocketAddr) -> Result<TcpListener> {
    let listener = TcpListener::bind(addr).await.with_context(|| in_the_way(addr, "TCP"))?;
    UdpSocket::bind(addr).await.with_context(|| in_the_way(addr, "UDP"))?;
    Ok(listener)
}

fn in_the_way(addr: SocketAddr, kind: &str) -> String {
    format!(
        "cannot listen on {addr} ({kind}); the port must be free and the address this machine's own, or choose \
         another with --listen-addr"
    )
}

/// Accepts TLS connections until `stop`.
pub fn tls(
    listener: TcpListener,
    config: Arc<ServerConfig>,
    cluster: String,
    stop: CancellationToken,
) -> Arrivals<TlsStream<TcpStream>> {
    let (arrived, arrivals) = mpsc::channel(64);
    let acceptor = TlsAcceptor::from(config);
    let slots = Arc::new(tokio::sync::Semaphore::new(HANDSHAKES));
    tokio::spawn(async move {
        loop {
            let accepted = tokio::select! {
                () = stop.cancelled() => return,
                accepted = listener.accept() => accepted,
            };
            let (stream, addr) = match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a connection");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    continue;
                }
            };
            let Ok(slot) = slots.clone().acquire_owned().await else { return };
            let (acceptor, arrived, cluster) = (acceptor.clone(), arrived.clone(), cluster.clone());
            tokio::spawn(async move {
                let _slot = slot;
                let _ = stream.set_nodelay(true);
                match tokio::time::timeout(HANDSHAKE, acceptor.accept(stream)).await {
                    Ok(Ok(stream)) => {
                        let peer = Peer::Remote { addr, node: node(&stream, &cluster) };
                        let _ = arrived.send(Ok(Known::new(stream, peer))).await;
                    }
                    Ok(Err(error)) => tracing::debug!(%addr, %error, "handshake failed"),
                    Err(_) => tracing::debug!(%addr, "handshake took too long"),
                }
            });
        }
    });
    ReceiverStream::new(arrivals)
}

/// The node that the certificate of the other side names.
fn node(stream: &TlsStream<TcpStream>, cluster: &str) -> Option<rswarm_control::ids::NodeId> {
    let (its_cluster, node) = ca::subject(stream.get_ref().1.peer_certificates()?.first()?)?;
    if its_cluster == cluster { node.parse().ok() } else { None }
}

/// Listens on the unix socket (mode 0660). A stale socket file is replaced, a live one is an error.
pub async fn unix(path: &Path, stop: CancellationToken) -> Result<Arrivals<UnixStream>> {
    if let Some(dir) = path.parent() {
        std::fs::create_dir_all(dir).with_context(|| format!("cannot create {}", dir.display()))?;
    }
    if UnixStream::connect(path).await.is_ok() {
        anyhow::bail!(
            "another daemon answers at {}: stop it, or give this one its own --socket",
            path.display()
        );
    }
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(error).with_context(|| format!("cannot replace {}", path.display()));
        }
        _ => {}
    }
    let listener =
        UnixListener::bind(path).with_context(|| format!("cannot listen on {}", path.display()))?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o660))
        .with_context(|| format!("cannot set the mode of {}", path.display()))?;
    let (arrived, arrivals) = mpsc::channel(16);
    tokio::spawn(async move {
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                accepted = listener.accept() => match accepted {
                    Ok((stream, _)) => {
                        if arrived.send(Ok(Known::new(stream, Peer::Local))).await.is_err() {
                            return;
                        }
                    }
                    Err(error) => tracing::warn!(%error, "cannot accept on the unix socket"),
                },
            }
        }
    });
    Ok(ReceiverStream::new(arrivals))
}
