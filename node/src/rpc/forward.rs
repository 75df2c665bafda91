//! Passes calls that only the leader can answer on to it, as they are, one hop at the most.
//!
//! So no handler needs to know whether it runs on the leader, and a command works on every manager.

use super::access::Peer;
use rswarm_control::ids::NodeId;
use std::sync::Arc;
use std::task::{Context, Poll};
use tonic::Status;
use tonic::body::Body;
use tonic::transport::Channel;

/// Set on a call that has been passed on; it is not passed on again.
const HOP: &str = "rswarm-hop";
/// The address of the caller as the first manager saw it. Believed only with [`HOP`] from a manager.
pub const CALLER: &str = "rswarm-caller";

/// The node that passed a call on: the caller's own. Believed only with [`HOP`] from a manager.
pub const ORIGIN: &str = "rswarm-origin";

/// Services whose calls are the leader's.
const LEADERS: [&str; 2] = ["/rswarm.v1.Control/", "/rswarm.v1.Join/"];

/// Where the leader is.
#[derive(Clone)]
pub enum Leader {
    /// Here.
    Me,
    /// On the other end of this channel.
    Other(Channel),
}

/// Finds the leader, waiting a little for an election to end.
pub trait FindLeader: Send + Sync + 'static {
    /// The leader, or why there is none.
    fn leader(&self) -> std::pin::Pin<Box<dyn Future<Output = Result<Leader, Status>> + Send + '_>>;
    /// The node that looks for it, once it is one.
    fn me(&self) -> Option<NodeId>;
}

/// Puts forwarding before every service.
#[derive(Clone)]
pub struct Forward {
    finder: Arc<dyn FindLeader>,
}

impl Forward {
    /// Forwards to whom `finder` finds.
    pub fn new(finder: Arc<dyn FindLeader>) -> Self {
        Self { finder }
    }
}

impl<S> tower::Layer<S> for Forward {
    type Service = Forwarding<S>;

    fn layer(&self, inner: S) -> Forwarding<S> {
        Forwarding { inner, finder: self.finder.clone() }
    }
}

/// A service behind [`Forward`].
#[derive(Clone)]
pub struct Forwarding<S> {
    inner: S,
    finder: Arc<dyn FindLeader>,
}

impl<S> tower::Service<http::Request<Body>> for Forwarding<S>
where
    S: tower::Service<http::Request<Body>, Response = http::Response<Body>> + Clone + Send + 'static,
    S::Future: Send + 'static,
    S::Error: Send + 'static,
{
    type Response = http::Response<Body>;
    type Error = S::Error;
    type Future = std::pin::Pin<Box<dyn Future<Output = Result<Self::Response, S::Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: http::Request<Body>) -> Self::Future {
        if !LEADERS.iter().any(|service| request.uri().path().starts_with(service)) {
            return Box::pin(self.inner.call(request));
        }
        let passed_on = request.headers().contains_key(HOP);
        let finder = self.finder.clone();
        let fresh = self.inner.clone();
        let mut inner = std::mem::replace(&mut self.inner, fresh);
        Box::pin(async move {
            let leader = match finder.leader().await {
                Ok(leader) => leader,
                Err(status) => return Ok(status.into_http()),
            };
            let channel = match leader {
                Leader::Me => return inner.call(request).await,
                Leader::Other(_) if passed_on => {
                    return Ok(Status::unavailable("the leader has just changed, try again").into_http());
                }
                Leader::Other(channel) => channel,
            };
            let caller = match request.extensions().get::<Peer>() {
                Some(Peer::Remote { addr, .. }) => addr.ip().to_string().parse().ok(),
                _ => None,
            };
            let headers = request.headers_mut();
            headers.insert(HOP, http::HeaderValue::from_static("1"));
            if let Some(caller) = caller {
                headers.insert(CALLER, caller);
            }
            if let Some(me) = finder.me().and_then(|node| node.to_string().parse().ok()) {
                headers.insert(ORIGIN, me);
            }
            Ok(match pass_on(channel, request).await {
                Ok(response) => response,
                Err(error) => Status::unavailable(format!(
                    "the leader cannot be reached: {}",
                    super::dial::root_cause(&error)
                ))
                .into_http(),
            })
        })
    }
}

async fn pass_on(
    mut channel: Channel,
    request: http::Request<Body>,
) -> Result<http::Response<Body>, tonic::transport::Error> {
    use tower::Service;
    std::future::poll_fn(|cx| channel.poll_ready(cx)).await?;
    channel.call(request).await
}
