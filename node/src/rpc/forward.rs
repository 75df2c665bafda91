//! Passes calls that only the leader can answer on to it, as they are, one hop at the most.
//!
//! So no handler needs to know whether it runs on the leader, and a command works on every manager.

use super::access::Peer;
use hyper::body::{Frame, SizeHint};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};
use tonic::Status;
use tonic::body::Body;
use tonic::transport::Channel;

/// Set on a call that has been passed on; it is not passed on again.
const HOP: &str = "rswarm-hop";
/// The address of the caller as the first manager saw it. Believed only with [`HOP`] from a manager.
pub const CALLER: &str = "rswarm-caller";

/// Services whose calls are the leader's.
const LEADERS: [&str; 4] =
    ["/rswarm.v1.Control/", "/rswarm.v1.Insight/", "/rswarm.v1.Join/", "/rswarm.v1.Tasks/"];

/// Where the leader is.
#[derive(Clone)]
pub enum Leader {
    /// Here.
    Me,
    /// Elsewhere.
    Other {
        /// Its node id.
        node: String,
        /// The way there.
        channel: Channel,
    },
}

/// Finds the leader, waiting a little for an election to end.
pub trait FindLeader: Send + Sync + 'static {
    /// The leader, or why there is none.
    fn leader(&self) -> std::pin::Pin<Box<dyn Future<Output = Result<Leader, Status>> + Send + '_>>;

    /// Ends once another is known to lead than this node, or this one has been silent for long.
    fn replaced<'a>(&'a self, node: &'a str) -> std::pin::Pin<Box<dyn Future<Output = ()> + Send + 'a>>;
}

/// How long a leader may still answer after another has taken over.
const LAST_ANSWER: Duration = Duration::from_millis(300);
/// How long a call that has not reached a leader looks for one: an election, and some more.
const SEARCH: Duration = Duration::from_secs(3);
/// Between two looks for a leader that may answer.
const LOOK: Duration = Duration::from_millis(50);

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
            let (node, channel) = match finder.leader().await {
                Ok(Leader::Me) => return inner.call(request).await,
                Ok(Leader::Other { .. }) if passed_on => {
                    return Ok(Status::unavailable("the leader has just changed, try again").into_http());
                }
                Ok(Leader::Other { node, channel }) => (node, channel),
                Err(status) => return Ok(status.into_http()),
            };
            mark(&mut request);
            let call = Unsent::new(request);
            match carry(&*finder, &call, node, channel).await {
                Carried::Answered(response) => Ok(response),
                Carried::Lost(status) => Ok(status.into_http()),
                Carried::ItIsMe => inner.call(call.again()).await,
            }
        })
    }
}

/// Notes on a call that it has been passed on, and for whom.
fn mark(request: &mut http::Request<Body>) {
    let caller = match request.extensions().get::<Peer>() {
        Some(Peer::Remote { addr, .. }) => addr.ip().to_string().parse().ok(),
        _ => None,
    };
    let headers = request.headers_mut();
    headers.insert(HOP, http::HeaderValue::from_static("1"));
    if let Some(caller) = caller {
        headers.insert(CALLER, caller);
    }
}

/// What became of a call that is another's to answer.
enum Carried {
    Answered(http::Response<Body>),
    /// Nobody answered, with the words for it.
    Lost(Status),
    /// Nothing was sent, and by now this manager leads.
    ItIsMe,
}

/// Carries a call to the leader, and to its successor as long as nothing of the call has left this machine.
async fn carry(finder: &dyn FindLeader, call: &Unsent, mut node: String, mut channel: Channel) -> Carried {
    let begun = Instant::now();
    loop {
        // A machine that lost its power never says that it does not answer.
        let replaced = async {
            finder.replaced(&node).await;
            tokio::time::sleep(LAST_ANSWER).await;
        };
        let failed = tokio::select! {
            answer = pass_on(channel, call.again()) => match answer {
                Ok(response) => return Carried::Answered(response),
                Err(error) => super::dial::root_cause(&error),
            },
            () = replaced => "it is silent".into(),
        };
        let _ = tokio::time::timeout(LOOK, finder.replaced(&node)).await;
        let next = finder.leader().await;
        if call.has_left() {
            let now = match &next {
                Ok(_) => "look, and try again",
                Err(status) => status.message(),
            };
            return Carried::Lost(Status::unavailable(format!(
                "the leader was lost before it answered ({failed}), and it is not known whether it did what was \
                 asked: {now}",
            )));
        }
        (node, channel) = match next {
            Err(status) => return Carried::Lost(status),
            Ok(Leader::Me) => return Carried::ItIsMe,
            Ok(Leader::Other { .. }) if begun.elapsed() > SEARCH => {
                return Carried::Lost(Status::unavailable(format!("the leader cannot be reached: {failed}")));
            }
            Ok(Leader::Other { node, channel }) => (node, channel),
        };
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

/// A request that can be sent again as long as nobody has begun to read its body: a call without a message is
/// not carried out by any server.
struct Unsent {
    head: http::request::Parts,
    body: Arc<Mutex<Kept>>,
}

struct Kept {
    body: Body,
    begun: bool,
}

impl Unsent {
    fn new(request: http::Request<Body>) -> Self {
        let (head, body) = request.into_parts();
        Self { head, body: Arc::new(Mutex::new(Kept { body, begun: false })) }
    }

    fn again(&self) -> http::Request<Body> {
        http::Request::from_parts(self.head.clone(), Body::new(Reading(self.body.clone())))
    }

    fn has_left(&self) -> bool {
        self.body.lock().unwrap_or_else(PoisonError::into_inner).begun
    }
}

/// The body of an [`Unsent`] on its way.
struct Reading(Arc<Mutex<Kept>>);

impl hyper::body::Body for Reading {
    type Data = bytes::Bytes;
    type Error = Status;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        kept.begun = true;
        Pin::new(&mut kept.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).body.size_hint()
    }
}
