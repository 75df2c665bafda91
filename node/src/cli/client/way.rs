//! The way to the daemon: gives each request to the cluster a name, and makes it again under that name when the
//! connection broke before the answer: a daemon may be restarted at any time, and the cluster carries out once what it
//! hears twice.

use crate::rpc::forward::{REQUEST_ID, new_request_id};
use crate::rpc::stale::{self, Age, STALE};
use bytes::Bytes;
use http::HeaderValue;
use http_body_util::{BodyExt, Full};
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};
use tonic::Status;
use tonic::body::Body;
use tonic::transport::Channel;
use tower::Service;

/// How long a daemon that was lost may take to come back.
const BACK: Duration = Duration::from_secs(15);
/// Between two attempts to reach it.
const ATTEMPT: Duration = Duration::from_millis(100);

/// The calls that are repeated: they are one message each.
const NAMED: &str = "/rswarm.v1.Control/";
/// Those of them whose answers are many messages.
const STREAMS: [&str; 2] = ["/rswarm.v1.Control/WatchService", "/rswarm.v1.Control/Logs"];

/// What was said of the age of the answers, if they may be old.
pub type Ages = Arc<Mutex<Option<Age>>>;

/// Calls to a daemon.
#[derive(Clone, Debug)]
pub struct Way {
    channel: Channel,
    /// Set if old answers are welcome.
    ages: Option<Ages>,
}

impl Way {
    /// Over `channel`; with `ages`, reads may be answered from an old state.
    pub fn new(channel: Channel, ages: Option<Ages>) -> Self {
        Self { channel, ages }
    }
}

type Answer = http::Response<Body>;

impl Service<http::Request<Body>> for Way {
    type Response = Answer;
    type Error = Status;
    type Future = Pin<Box<dyn Future<Output = Result<Answer, Status>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Status>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, mut request: http::Request<Body>) -> Self::Future {
        let Self { channel, ages } = self.clone();
        let path = request.uri().path();
        if !path.starts_with(NAMED) {
            return Box::pin(once(channel, request));
        }
        let ages = ages.filter(|_| stale::is_read(path));
        let streams = STREAMS.contains(&path);
        let headers = request.headers_mut();
        if ages.is_some() {
            headers.insert(STALE, HeaderValue::from_static("1"));
        }
        if !headers.contains_key(REQUEST_ID) {
            let id = new_request_id();
            headers.insert(REQUEST_ID, HeaderValue::from_bytes(id.as_encoded_bytes()).expect("digits fit"));
        }
        Box::pin(async move {
            let answer = match streams {
                true => once(channel, request).await?,
                false => repeatedly(channel, request).await?,
            };
            if let (Some(ages), Some(age)) = (ages, Age::told(answer.headers())) {
                // Of several answers the oldest counts.
                let mut told = ages.lock().unwrap_or_else(PoisonError::into_inner);
                let older = told.is_none_or(|told| age.index < told.index);
                if older {
                    *told = Some(age);
                }
            }
            Ok(answer)
        })
    }
}

async fn once(mut channel: Channel, request: http::Request<Body>) -> Result<Answer, Status> {
    let ready = std::future::poll_fn(|cx| channel.poll_ready(cx)).await;
    ready.map_err(|error| Status::from_error(Box::new(error)))?;
    channel.call(request).await.map_err(|error| Status::from_error(Box::new(error)))
}

/// Until there is a whole answer, or the daemon stays away.
async fn repeatedly(channel: Channel, request: http::Request<Body>) -> Result<Answer, Status> {
    let (head, body) = request.into_parts();
    let body = body.collect().await?.to_bytes();
    let again = || http::Request::from_parts(head.clone(), Body::new(Full::new(body.clone())));
    let mut lost: Option<Instant> = None;
    loop {
        match whole(channel.clone(), again()).await {
            Some(answer) => return Ok(answer),
            None if lost.is_some_and(|lost| lost.elapsed() > BACK) => {
                return Err(stays_away(head.uri.path()));
            }
            None => {
                lost.get_or_insert_with(Instant::now);
                tokio::time::sleep(ATTEMPT).await;
            }
        }
    }
}

/// The answer with all of its body; `None` if the connection broke on the way.
async fn whole(mut channel: Channel, request: http::Request<Body>) -> Option<Answer> {
    std::future::poll_fn(|cx| channel.poll_ready(cx)).await.ok()?;
    let (head, body) = channel.call(request).await.ok()?.into_parts();
    let body: http_body_util::Collected<Bytes> = body.collect().await.ok()?;
    // An answer that is cut off ends without the word that it has ended.
    let ended = head.headers.contains_key("grpc-status")
        || body.trailers().is_some_and(|trailers| trailers.contains_key("grpc-status"));
    ended.then(|| http::Response::from_parts(head, Body::new(body)))
}

fn stays_away(path: &str) -> Status {
    let words = match stale::is_read(path) {
        true => String::new(),
        false => ", and it is not known whether it did what was asked".to_owned(),
    };
    Status::unavailable(format!(
        "the daemon was lost before it answered, and did not come back within {} s{words}\nhelp: see its log and \
         `rswarm status`, start it, look, and run the command again",
        BACK.as_secs()
    ))
}
