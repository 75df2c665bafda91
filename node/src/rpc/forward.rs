//! Passes calls that only the leader can answer on to it, as they are, one hop at the most.
//!
//! So no handler needs to know whether it runs on the leader, and a command works on every manager.

use super::access::Peer;
use super::stale::{self, STALE};
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::{Frame, SizeHint};
use rswarm_control::state::RequestId;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};
use tonic::Status;
use tonic::body::Body;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::Channel;

/// Set on a call that has been passed on; it is not passed on again.
const HOP: &str = "rswarm-hop";
/// The address of the caller as the first manager saw it. Believed only with [`HOP`] from a manager.
pub const CALLER: &str = "rswarm-caller";

/// What whoever asks calls a call: 32 hexadecimal digits, the same for all repetitions. One that carries none is given
/// one where it enters the cluster.
pub const REQUEST_ID: &str = "rswarm-request-id";

/// A new value of [`REQUEST_ID`].
pub fn new_request_id() -> MetadataValue<Ascii> {
    let id = RequestId(u128::from_be_bytes(crate::identity::random())).to_string();
    MetadataValue::try_from(id).expect("digits are ASCII")
}

/// Services whose calls are one message each, which is kept until there is an answer.
const KEPT: [&str; 2] = ["/rswarm.v1.Control/", "/rswarm.v1.Join/"];
/// The largest message that is kept, in bytes: more than any server takes.
const KEPT_BYTES_MAX: usize = 5 << 20;

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

/// What is said to who wants an old answer from who has none.
const NO_STATE: &str = "a stale answer is that of the manager that is asked, and this node knows nothing of the \
                        cluster's state\nhelp: ask on a manager; `rswarm status` names them";

/// Finds the leader, waiting a little for an election to end.
pub trait FindLeader: Send + Sync + 'static {
    /// The leader, or why there is none.
    fn leader(&self) -> std::pin::Pin<Box<dyn Future<Output = Result<Leader, Status>> + Send + '_>>;

    /// Whether this node is a manager that can answer reads itself.
    fn reads(&self) -> bool;

    /// Whether the cluster remembers what it has carried out, so that a call whose answer was lost can be repeated.
    fn remembers(&self) -> bool;

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
        let read = stale::is_read(request.uri().path());
        let may_be_stale = request.headers().contains_key(STALE);
        if let Some(why) = match (read, self.finder.reads(), may_be_stale) {
            // The leader confirms what the newest entry is; the state is read here.
            (true, true, _) => return Box::pin(self.inner.call(request)),
            (true, false, true) => Some(NO_STATE),
            (false, _, true) => Some("only lists of nodes, services, tasks and networks may be stale"),
            (_, _, false) => None,
        } {
            return Box::pin(async move { Ok(Status::failed_precondition(why).into_http()) });
        }
        let passed_on = request.headers().contains_key(HOP);
        let finder = self.finder.clone();
        let fresh = self.inner.clone();
        let mut inner = std::mem::replace(&mut self.inner, fresh);
        Box::pin(async move {
            if passed_on {
                return match finder.leader().await {
                    Ok(Leader::Me) => inner.call(request).await,
                    Ok(Leader::Other { .. }) => {
                        Ok(Status::unavailable("the leader has just changed, try again").into_http())
                    }
                    Err(status) => Ok(status.into_http()),
                };
            }
            let is_kept = KEPT.iter().any(|service| request.uri().path().starts_with(service));
            let call = match is_kept {
                true => {
                    name(&mut request);
                    match Unsent::keep(request).await {
                        Ok(call) => call,
                        Err(status) => return Ok(status.into_http()),
                    }
                }
                false => Unsent::new(request),
            };
            let begun = Instant::now();
            loop {
                let carried = match finder.leader().await {
                    Ok(Leader::Me) => Carried::ItIsMe,
                    Ok(Leader::Other { node, channel }) => carry(&*finder, &call, begun, node, channel).await,
                    Err(status) => Carried::Lost(status),
                };
                match carried {
                    Carried::Answered(response) => return Ok(response),
                    Carried::Lost(status) => return Ok(status.into_http()),
                    Carried::ItIsMe => {
                        let mut ready = inner.clone();
                        std::future::poll_fn(|cx| ready.poll_ready(cx)).await?;
                        let response = ready.call(call.again(false)).await?;
                        // Leadership was lost on the way: its successor knows what became of it.
                        if !call.may_be_repeated(&*finder, begun) || !is_unavailable(&response) {
                            return Ok(response);
                        }
                        tokio::time::sleep(LOOK).await;
                    }
                }
            }
        })
    }
}

/// Gives a call a name, if it has none.
fn name(request: &mut http::Request<Body>) {
    if !request.headers().contains_key(REQUEST_ID) {
        let id = new_request_id();
        let id = http::HeaderValue::from_bytes(id.as_encoded_bytes());
        request.headers_mut().insert(REQUEST_ID, id.expect("digits are a header's value"));
    }
}

/// Whether nobody could be asked, or nobody knows what came of it. Such an answer has no body.
fn is_unavailable(response: &http::Response<Body>) -> bool {
    let status = response.headers().get("grpc-status");
    status.is_some_and(|code| code.as_bytes() == (tonic::Code::Unavailable as i32).to_string().as_bytes())
}

/// Notes on a call that it has been passed on, and for whom.
fn mark(head: &mut http::request::Parts) {
    let caller = match head.extensions.get::<Peer>() {
        Some(Peer::Remote { addr, .. }) => addr.ip().to_string().parse().ok(),
        _ => None,
    };
    let headers = &mut head.headers;
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

/// Carries a call to the leader, and to its successor as long as nothing of the call has left this machine, or as
/// it is known to be carried out once however often it is repeated.
async fn carry(
    finder: &dyn FindLeader,
    call: &Unsent,
    begun: Instant,
    mut node: String,
    mut channel: Channel,
) -> Carried {
    loop {
        // A machine that lost its power never says that it does not answer.
        let replaced = async {
            finder.replaced(&node).await;
            tokio::time::sleep(LAST_ANSWER).await;
        };
        let failed = tokio::select! {
            answer = pass_on(channel, call.again(true)) => match answer {
                Ok(response) if is_unavailable(&response) && call.may_be_repeated(finder, begun) => {
                    "it has just changed".into()
                }
                Ok(response) => return Carried::Answered(response),
                Err(error) => super::dial::root_cause(&error),
            },
            () = replaced => "it is silent".into(),
        };
        let _ = tokio::time::timeout(LOOK, finder.replaced(&node)).await;
        let next = finder.leader().await;
        if call.has_left() && !call.may_be_repeated(finder, begun) {
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
                return Carried::Lost(Status::unavailable(format!(
                    "the leader cannot be reached ({failed}), and there is no other yet: more than half of the \
                     managers must be online and reach each other (see `rswarm status`)"
                )));
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
/// not carried out by any server. One whose whole body is kept can be sent again in any case.
struct Unsent {
    head: http::request::Parts,
    body: Arc<Mutex<Kept>>,
    whole: Option<Bytes>,
}

struct Kept {
    body: Body,
    begun: bool,
}

impl Unsent {
    fn new(request: http::Request<Body>) -> Self {
        let (head, body) = request.into_parts();
        Self { head, body: Arc::new(Mutex::new(Kept { body, begun: false })), whole: None }
    }

    /// Reads the whole body.
    async fn keep(request: http::Request<Body>) -> Result<Self, Status> {
        let (head, body) = request.into_parts();
        let whole = http_body_util::Limited::new(body, KEPT_BYTES_MAX).collect().await;
        let whole = whole.map_err(|error| Status::resource_exhausted(format!("the request: {error}")))?;
        let body = Arc::new(Mutex::new(Kept { body: Body::empty(), begun: false }));
        Ok(Self { head, body, whole: Some(whole.to_bytes()) })
    }

    /// The request; for another node, marked as passed on.
    fn again(&self, marked: bool) -> http::Request<Body> {
        let mut head = self.head.clone();
        if marked {
            mark(&mut head);
        }
        let whole = self.whole.clone().map(Full::new);
        http::Request::from_parts(head, Body::new(Reading { body: self.body.clone(), whole }))
    }

    fn has_left(&self) -> bool {
        self.body.lock().unwrap_or_else(PoisonError::into_inner).begun
    }

    /// Whether it does no harm if it is carried out twice, and there is still time.
    fn may_be_repeated(&self, finder: &dyn FindLeader, begun: Instant) -> bool {
        self.whole.is_some() && begun.elapsed() < SEARCH && finder.remembers()
    }
}

/// The body of an [`Unsent`] on its way.
struct Reading {
    body: Arc<Mutex<Kept>>,
    whole: Option<Full<Bytes>>,
}

impl hyper::body::Body for Reading {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        let this = &mut *self;
        let mut kept = this.body.lock().unwrap_or_else(PoisonError::into_inner);
        kept.begun = true;
        match &mut this.whole {
            Some(whole) => Pin::new(whole).poll_frame(cx).map_err(|never| match never {}),
            None => Pin::new(&mut kept.body).poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.whole {
            Some(whole) => whole.is_end_stream(),
            None => self.body.lock().unwrap_or_else(PoisonError::into_inner).body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.whole {
            Some(whole) => whole.size_hint(),
            None => self.body.lock().unwrap_or_else(PoisonError::into_inner).body.size_hint(),
        }
    }
}
