//! Who may call what. One table, denied by default: a call that is not in it is refused.

use rswarm_control::ids::NodeId;
use std::net::SocketAddr;
use std::sync::Arc;
use std::task::{Context, Poll};
use tonic::Status;
use tonic::body::Body;
use tonic::transport::server::Connected;

/// The other end of a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Peer {
    /// Came over the unix socket: somebody whom the machine's owner lets use it.
    Local,
    /// Came over the network; `node` is what its certificate proved, if it showed one.
    Remote {
        /// Where it came from.
        addr: SocketAddr,
        /// Which node it is.
        node: Option<NodeId>,
    },
}

/// What a call asks of its caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Allow {
    /// The machine's owner, over the unix socket.
    Local,
    /// The machine's owner, or a manager that passes on what its own owner said.
    Operator,
    /// Anybody: the call checks a join token itself.
    Anyone,
    /// A node that is a member now.
    Member,
    /// A node with a certificate of this cluster, unless it is known here to have been removed.
    Node,
    /// A node that is a manager now.
    Manager,
    /// A node that has a seat in the Raft group now. One that was demoted keeps it until its vote is removed.
    Seated,
}

/// Paths that end in `*` cover a whole service.
const TABLE: [(&str, Allow); 10] = [
    ("/rswarm.v1.Agent/*", Allow::Manager),
    ("/rswarm.v1.Blobs/*", Allow::Node),
    ("/rswarm.v1.Control/*", Allow::Operator),
    ("/rswarm.v1.Dispatcher/*", Allow::Member),
    ("/rswarm.v1.EventLog/*", Allow::Local),
    ("/rswarm.v1.Insight/*", Allow::Operator),
    ("/rswarm.v1.Join/*", Allow::Anyone),
    ("/rswarm.v1.Local/*", Allow::Local),
    ("/rswarm.v1.Raft/*", Allow::Seated),
    ("/rswarm.v1.Tasks/*", Allow::Operator),
];

fn rule(path: &str) -> Option<Allow> {
    let covers = |pattern: &str| match pattern.strip_suffix('*') {
        Some(service) => path.starts_with(service),
        None => path == pattern,
    };
    TABLE.iter().find(|(pattern, _)| covers(pattern)).map(|(_, allow)| *allow)
}

/// What this node knows of the roles of others: the replicated state where there is one.
pub trait Roles: Send + Sync + 'static {
    /// Whether the node is a member of the cluster now.
    fn is_member(&self, node: NodeId) -> bool;
    /// Whether it is no member any more, as far as this node knows.
    fn is_removed(&self, node: NodeId) -> bool;
    /// Whether it is a manager now.
    fn is_manager(&self, node: NodeId) -> bool;
    /// Whether it has a seat in the Raft group now, or is to get one.
    fn is_seated(&self, node: NodeId) -> bool;
}

/// Decides on one call.
pub fn check(path: &str, peer: &Peer, roles: &dyn Roles) -> Result<(), Status> {
    let allow = rule(path).ok_or_else(|| Status::unimplemented(format!("no such call: {path}")))?;
    let node = match peer {
        Peer::Local => None,
        Peer::Remote { node, .. } => *node,
    };
    let allowed = match allow {
        Allow::Anyone => true,
        Allow::Local => *peer == Peer::Local,
        Allow::Operator => *peer == Peer::Local || node.is_some_and(|node| roles.is_manager(node)),
        Allow::Member => node.is_some_and(|node| roles.is_member(node)),
        Allow::Node => node.is_some_and(|node| !roles.is_removed(node)),
        Allow::Manager => node.is_some_and(|node| roles.is_manager(node)),
        Allow::Seated => node.is_some_and(|node| roles.is_seated(node)),
    };
    match (allowed, node) {
        (true, _) => Ok(()),
        (false, Some(node)) => Err(Status::permission_denied(format!("node {node} may not call {path}"))),
        (false, None) => Err(Status::unauthenticated(format!("{path} needs a certificate of this cluster"))),
    }
}

/// Puts [`check`] before every service.
#[derive(Clone)]
pub struct Gate {
    roles: Arc<dyn Roles>,
}

impl Gate {
    /// A gate that asks `roles`.
    pub fn new(roles: Arc<dyn Roles>) -> Self {
        Self { roles }
    }
}

impl<S> tower::Layer<S> for Gate {
    type Service = Gated<S>;

    fn layer(&self, inner: S) -> Gated<S> {
        Gated { inner, roles: self.roles.clone() }
    }
}

/// A service behind a [`Gate`].
#[derive(Clone)]
pub struct Gated<S> {
    inner: S,
    roles: Arc<dyn Roles>,
}

impl<S> tower::Service<http::Request<Body>> for Gated<S>
where
    S: tower::Service<http::Request<Body>, Response = http::Response<Body>>,
    S::Future: Send + 'static,
    S::Error: Send + 'static,
{
    type Response = http::Response<Body>;
    type Error = S::Error;
    type Future = std::pin::Pin<Box<dyn Future<Output = Result<Self::Response, S::Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let peer = request.extensions().get::<Peer>().cloned();
        let verdict = match peer {
            Some(peer) => check(request.uri().path(), &peer, &*self.roles),
            None => Err(Status::internal("a connection without a peer")),
        };
        match verdict {
            Ok(()) => Box::pin(self.inner.call(request)),
            Err(status) => Box::pin(async move { Ok(status.into_http()) }),
        }
    }
}

/// The peer of a request that came through a [`Gate`].
pub fn peer<T>(request: &tonic::Request<T>) -> Result<Peer, Status> {
    request.extensions().get::<Peer>().cloned().ok_or_else(|| Status::internal("a connection without a peer"))
}

/// The node that sent a request.
pub fn node<T>(request: &tonic::Request<T>) -> Result<NodeId, Status> {
    match peer(request)? {
        Peer::Remote { node: Some(node), .. } => Ok(node),
        _ => Err(Status::unauthenticated("this call needs a certificate of this cluster")),
    }
}

/// A connection that knows who is on the other end.
pub struct Known<IO> {
    io: IO,
    peer: Peer,
}

impl<IO> Known<IO> {
    /// Ties a connection to its peer.
    pub fn new(io: IO, peer: Peer) -> Self {
        Self { io, peer }
    }
}

impl<IO> Connected for Known<IO> {
    type ConnectInfo = Peer;

    fn connect_info(&self) -> Peer {
        self.peer.clone()
    }
}

impl<IO: tokio::io::AsyncRead + Unpin> tokio::io::AsyncRead for Known<IO> {
    fn poll_read(
        mut self: std::pin::Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut tokio::io::ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        std::pin::Pin::new(&mut self.io).poll_read(cx, buf)
    }
}

impl<IO: tokio::io::AsyncWrite + Unpin> tokio::io::AsyncWrite for Known<IO> {
    fn poll_write(
        mut self: std::pin::Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        std::pin::Pin::new(&mut self.io).poll_write(cx, buf)
    }

    fn poll_flush(mut self: std::pin::Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        std::pin::Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: std::pin::Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        std::pin::Pin::new(&mut self.io).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: std::pin::Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[std::io::IoSlice<'_>],
    ) -> Poll<std::io::Result<usize>> {
        std::pin::Pin::new(&mut self.io).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Cluster;

    impl Roles for Cluster {
        fn is_member(&self, node: NodeId) -> bool {
            node.0 < 10
        }

        fn is_removed(&self, node: NodeId) -> bool {
            node.0 >= 10
        }

        fn is_manager(&self, node: NodeId) -> bool {
            node.0 < 3
        }

        fn is_seated(&self, node: NodeId) -> bool {
            node.0 < 4
        }
    }

    fn allowed(path: &str, peer: &Peer) -> bool {
        check(path, peer, &Cluster).is_ok()
    }

    #[test]
    fn each_kind_of_caller_reaches_what_is_its_own() {
        let remote =
            |node: Option<u64>| Peer::Remote { addr: ([127, 0, 0, 1], 1).into(), node: node.map(NodeId) };
        //                   local  manager worker removed nobody
        let table = [
            ("Agent/TaskLogs", [false, true, false, false, false]),
            ("Control/ListNodes", [true, true, false, false, false]),
            ("Dispatcher/Session", [false, true, true, false, false]),
            ("Join/IssueCertificate", [true, true, true, true, true]),
            ("Local/Init", [true, false, false, false, false]),
            ("Raft/Append", [false, true, false, false, false]),
            ("Raft/Call", [false, true, false, false, false]),
            ("Raft2/Append", [false; 5]),
            ("Blobs/Fetch", [false, true, true, false, false]),
            ("Blobs/Turn", [false, true, true, false, false]),
            ("Agent/Enter", [false, true, false, false, false]),
            ("Tasks/Enter", [true, true, false, false, false]),
            ("Tasks/Ask", [true, true, false, false, false]),
        ];
        let callers = [Peer::Local, remote(Some(1)), remote(Some(5)), remote(Some(50)), remote(None)];
        for (call, expected) in table {
            for (caller, expected) in callers.iter().zip(expected) {
                assert_eq!(allowed(&format!("/rswarm.v1.{call}"), caller), expected, "{call} by {caller:?}");
            }
        }
    }
}
