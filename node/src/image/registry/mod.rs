//! A registry, spoken to by the OCI distribution protocol: manifests, blobs, and the credentials between.

mod auth;
mod http;

use std::io;
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use ::http::header::{
    ACCEPT, AUTHORIZATION, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue,
    LOCATION, RANGE, USER_AGENT, WWW_AUTHENTICATE,
};
use ::http::{Method, Request, Response, StatusCode, Uri};
use base64::Engine as _;
use bytes::Bytes;
use futures_util::TryStreamExt as _;
use http_body_util::{BodyExt as _, StreamBody};
use hyper::body::{Frame, Incoming};
use serde::Deserialize;

use self::http::{Body, Http, whole};
use super::credentials::Credentials;
use super::store::DOCUMENT_MAX;
use super::{Digest, Registries, Result};

/// How often a registry may send us on before it has lost us.
const REDIRECTS_MAX: usize = 5;
/// Bytes of an error or a token that are read.
const WORDS_MAX: usize = 256 << 10;
/// Characters of a registry's own words that are passed on.
const SAID_MAX: usize = 400;
/// The slowest upload that is waited for, in bytes a second.
const UPLOAD_FLOOR: u64 = 64 << 10;

const DIGEST_HEADER: HeaderName = HeaderName::from_static("docker-content-digest");
const MANIFEST_TYPES: &str = "application/vnd.oci.image.manifest.v1+json, application/vnd.oci.image.index.v1+json, \
     application/vnd.docker.distribution.manifest.v2+json, \
     application/vnd.docker.distribution.manifest.list.v2+json";

/// Why a registry did not do what it was asked.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Trouble {
    /// No connection could be made.
    #[error("{0}")]
    Unreachable(String),
    /// The connection broke or went silent.
    #[error("{0}")]
    Broken(String),
    /// It wants credentials, or others than these.
    #[error("it wants {} credentials: {words}", if *.given { "other" } else { "" })]
    Denied {
        /// Its words.
        words: String,
        /// Whether it was shown some.
        given: bool,
    },
    /// It says no.
    #[error("{words}")]
    Said {
        /// The status of its answer.
        status: u16,
        /// Its words.
        words: String,
    },
    /// Its answer is not what the protocol says.
    #[error("{0}")]
    Nonsense(String),
}

impl Trouble {
    /// Whether asking again may bring another answer.
    pub fn may_pass(&self) -> bool {
        match self {
            Self::Broken(_) => true,
            Self::Said { status, .. } => *status >= 500 || *status == 429,
            Self::Unreachable(_) | Self::Denied { .. } | Self::Nonsense(_) => false,
        }
    }
}

/// One repository of a registry, spoken to by one pull or push.
pub struct Remote {
    http: Http,
    /// `https://host`, without a slash at the end.
    base: String,
    repository: String,
    /// What is to be done there: `pull`, or `pull,push`.
    actions: &'static str,
    credentials: Credentials,
    /// What was found to open the door.
    pass: Mutex<Option<HeaderValue>>,
}

/// An answer with a blob's bytes.
pub struct Bytestream {
    /// Where in the blob they begin.
    pub from: u64,
    body: Incoming,
}

impl Remote {
    /// Nothing is sent yet.
    ///
    /// # Errors
    /// If the certificate configured for this registry cannot be used.
    pub fn new(
        host: &str,
        repository: &str,
        actions: &'static str,
        registries: &Registries,
        credentials: Credentials,
    ) -> Result<Self> {
        let scheme = if registries.is_insecure(host) { "http" } else { "https" };
        let at = if host == "docker.io" { "registry-1.docker.io" } else { host };
        Ok(Self {
            http: Http::new(host, registries)?,
            base: format!("{scheme}://{at}"),
            repository: repository.to_owned(),
            actions,
            credentials,
            pass: Mutex::default(),
        })
    }

    /// Whether the registry lets these credentials in.
    pub async fn enter(&self) -> Result<(), Trouble> {
        self.call(&Method::GET, format!("{}/v2/", self.base), &HeaderMap::new(), None).await.map(drop)
    }

    /// What a tag means now.
    pub async fn digest(&self, tag: &str) -> Result<Digest, Trouble> {
        let url = self.url("manifests", tag);
        let response = self.call(&Method::HEAD, url, &accepting(), None).await?;
        match response.headers().get(DIGEST_HEADER).and_then(|value| value.to_str().ok()) {
            Some(digest) => digest
                .parse()
                .map_err(|_| Trouble::Nonsense("the registry's digest of it is malformed".into())),
            None => Ok(Digest::of(&self.manifest(tag).await?)),
        }
    }

    /// The bytes of a manifest, at most as many as a document may have.
    pub async fn manifest(&self, tag_or_digest: &str) -> Result<Vec<u8>, Trouble> {
        let url = self.url("manifests", tag_or_digest);
        let response = self.call(&Method::GET, url, &accepting(), None).await?;
        self.http.read(response.into_body(), DOCUMENT_MAX as usize).await
    }

    /// Asks for a blob's bytes from `from` on. The registry may begin earlier; the answer says where.
    pub async fn blob(&self, digest: &Digest, from: u64) -> Result<Bytestream, Trouble> {
        let mut headers = HeaderMap::new();
        if from > 0 {
            headers.insert(RANGE, text(&format!("bytes={from}-")));
        }
        let response = self.call(&Method::GET, self.url("blobs", digest.as_str()), &headers, None).await?;
        let begins = match response.status() {
            StatusCode::PARTIAL_CONTENT => first_byte(response.headers())
                .ok_or_else(|| Trouble::Nonsense("it sends a part without saying which".into()))?,
            _ => 0,
        };
        if begins != 0 && begins != from {
            return Err(Trouble::Nonsense(format!(
                "it sends the bytes from {begins} on instead of from {from}"
            )));
        }
        Ok(Bytestream { from: begins, body: response.into_body() })
    }

    /// The next bytes of a blob, `None` at its end.
    pub async fn next(&self, stream: &mut Bytestream) -> Result<Option<Bytes>, Trouble> {
        self.http.next(&mut stream.body).await
    }

    /// Whether the registry has a blob.
    pub async fn has_blob(&self, digest: &Digest) -> Result<bool, Trouble> {
        let url = self.url("blobs", digest.as_str());
        match self.call(&Method::HEAD, url, &HeaderMap::new(), None).await {
            Ok(_) => Ok(true),
            Err(Trouble::Said { status: 404, .. }) => Ok(false),
            Err(trouble) => Err(trouble),
        }
    }

    /// Sends a blob from a file, telling how far it has come.
    pub async fn send_blob(
        &self,
        digest: &Digest,
        path: &Path,
        size: u64,
        sent: impl Fn(u64) + Send + Sync + Clone + 'static,
    ) -> Result<(), Trouble> {
        let empty = HeaderMap::new();
        let url = format!("{}/", self.url("blobs", "uploads"));
        let begun = self.call(&Method::POST, url.clone(), &empty, None).await?;
        let location = location(&begun, &url)?;
        let separator = if location.contains('?') { '&' } else { '?' };
        let url = format!("{location}{separator}{}", auth::query(&[("digest", digest.as_str())]));
        let mut headers = HeaderMap::new();
        headers.insert(CONTENT_TYPE, text("application/octet-stream"));
        headers.insert(CONTENT_LENGTH, text(&size.to_string()));
        let upload = Upload { path, size, sent: &sent };
        self.call(&Method::PUT, url, &headers, Some(&upload)).await.map(drop)
    }

    /// Sends a manifest, to be found by this tag.
    pub async fn send_manifest(&self, tag: &str, kind: &str, bytes: &[u8]) -> Result<(), Trouble> {
        let mut headers = HeaderMap::new();
        headers.insert(CONTENT_TYPE, text(kind));
        let body = bytes.to_vec();
        self.call(&Method::PUT, self.url("manifests", tag), &headers, Some(&body)).await.map(drop)
    }

    fn url(&self, what: &str, which: &str) -> String {
        format!("{}/v2/{}/{what}/{which}", self.base, self.repository)
    }

    /// Asks, with credentials if the registry wants some, and where it sends us on to.
    async fn call(
        &self,
        method: &Method,
        url: String,
        headers: &HeaderMap,
        body: Option<&dyn Payload>,
    ) -> Result<Response<Incoming>, Trouble> {
        let (mut url, mut asked, mut moves) = (url, false, 0);
        loop {
            let home = origin(&url) == origin(&self.base);
            let mut request = Request::new(match body {
                Some(body) => body.body().await?,
                None => whole(Bytes::new()),
            });
            *request.method_mut() = method.clone();
            *request.uri_mut() =
                url.parse().map_err(|_| Trouble::Nonsense("it sends us to no address".into()))?;
            *request.headers_mut() = headers.clone();
            request.headers_mut().insert(USER_AGENT, HeaderValue::from_static(AGENT));
            if home && let Some(pass) = self.pass() {
                request.headers_mut().insert(AUTHORIZATION, pass);
            }
            let more = body.map_or(Duration::ZERO, |body| Duration::from_secs(body.size() / UPLOAD_FLOOR));
            let response = self.http.send(request, more).await?;
            match response.status() {
                status if status.is_success() => return Ok(response),
                status if status.is_redirection() && body.is_none() => {
                    moves += 1;
                    let to = location(&response, &url)?;
                    if moves > REDIRECTS_MAX || url.starts_with("https:") && !to.starts_with("https:") {
                        return Err(Trouble::Nonsense(format!("it sends us on to {}", origin(&to))));
                    }
                    url = to;
                }
                StatusCode::UNAUTHORIZED if home && !asked => {
                    asked = true;
                    let pass = self.authenticate(response).await?;
                    *self.pass.lock().unwrap_or_else(PoisonError::into_inner) = Some(pass);
                }
                _ => return Err(self.words(response).await),
            }
        }
    }

    fn pass(&self) -> Option<HeaderValue> {
        self.pass.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Finds what the registry accepts, by what it asked for.
    async fn authenticate(&self, response: Response<Incoming>) -> Result<HeaderValue, Trouble> {
        let headers = response.headers().get_all(WWW_AUTHENTICATE).iter();
        let offers: Vec<auth::Challenge> =
            headers.filter_map(|value| value.to_str().ok()).flat_map(auth::challenges).collect();
        let offer = |scheme: &str| offers.iter().find(|offer| offer.scheme == scheme);
        if let Some(bearer) = offer("bearer") {
            let token = self.token(bearer).await?;
            return Ok(secret(&format!("Bearer {token}")));
        }
        match (offer("basic"), &self.credentials) {
            (Some(_), Credentials::Basic { username, password }) => Ok(basic(username, password)),
            _ => Err(self.words(response).await),
        }
    }

    /// Asks the token server that the registry named.
    async fn token(&self, challenge: &auth::Challenge) -> Result<String, Trouble> {
        let param = |name: &str| challenge.params.get(name).map_or("", String::as_str);
        let realm = param("realm");
        let plain = self.base.starts_with("http:");
        if realm.parse::<Uri>().is_err()
            || !(realm.starts_with("https://") || plain && realm.starts_with("http://"))
        {
            return Err(Trouble::Nonsense(format!("its token server `{}` cannot be asked", shown(realm))));
        }
        let scope = match param("scope") {
            "" if self.repository.is_empty() => String::new(),
            "" => format!("repository:{}:{}", self.repository, self.actions),
            scope => scope.to_owned(),
        };
        let mut pairs = vec![("service", param("service"))];
        if !scope.is_empty() {
            pairs.push(("scope", &scope));
        }
        let mut request = Request::new(whole(Bytes::new()));
        match &self.credentials {
            Credentials::Token(token) => {
                pairs.extend([
                    ("grant_type", "refresh_token"),
                    ("refresh_token", token),
                    ("client_id", "rswarm"),
                ]);
                *request.method_mut() = Method::POST;
                *request.body_mut() = whole(auth::query(&pairs));
                request.headers_mut().insert(CONTENT_TYPE, text("application/x-www-form-urlencoded"));
                *request.uri_mut() = realm.parse().map_err(|_| nowhere())?;
            }
            others => {
                if let Credentials::Basic { username, password } = others {
                    request.headers_mut().insert(AUTHORIZATION, basic(username, password));
                    pairs.push(("account", username));
                }
                let separator = if realm.contains('?') { '&' } else { '?' };
                let url = format!("{realm}{separator}{}", auth::query(&pairs));
                *request.uri_mut() = url.parse().map_err(|_| nowhere())?;
            }
        }
        request.headers_mut().insert(USER_AGENT, HeaderValue::from_static(AGENT));
        let response = self.http.send(request, Duration::ZERO).await?;
        if !response.status().is_success() {
            return Err(self.words(response).await);
        }
        let answer = self.http.read(response.into_body(), WORDS_MAX).await?;
        auth::token(&answer).ok_or_else(|| Trouble::Nonsense("its token server sends no token".into()))
    }

    /// What a registry says with its refusal.
    async fn words(&self, response: Response<Incoming>) -> Trouble {
        let status = response.status();
        let body = self.http.read(response.into_body(), WORDS_MAX).await.unwrap_or_default();
        let said = said(&body);
        match status {
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => Trouble::Denied {
                words: said.unwrap_or_else(|| format!("it answers with status {}", status.as_u16())),
                given: self.credentials != Credentials::None,
            },
            status => {
                let words = match (said, status) {
                    (Some(said), _) => format!("it says: {said}"),
                    (None, StatusCode::NOT_FOUND) => "it has no such image".into(),
                    (None, status) => format!("it answers with status {}", status.as_u16()),
                };
                Trouble::Said { status: status.as_u16(), words }
            }
        }
    }
}

const AGENT: &str = concat!("rswarm/", env!("CARGO_PKG_VERSION"));

fn nowhere() -> Trouble {
    Trouble::Nonsense("its token server has no address".into())
}

/// What is sent with a request, which may have to be sent twice.
trait Payload: Sync {
    fn size(&self) -> u64;
    fn body(&self) -> std::pin::Pin<Box<dyn Future<Output = Result<Body, Trouble>> + Send + '_>>;
}

impl Payload for Vec<u8> {
    fn size(&self) -> u64 {
        self.len() as u64
    }

    fn body(&self) -> std::pin::Pin<Box<dyn Future<Output = Result<Body, Trouble>> + Send + '_>> {
        Box::pin(async { Ok(whole(self.clone())) })
    }
}

/// A file on its way out.
struct Upload<'a, F> {
    path: &'a Path,
    size: u64,
    sent: &'a F,
}

impl<F: Fn(u64) + Send + Sync + Clone + 'static> Payload for Upload<'_, F> {
    fn size(&self) -> u64 {
        self.size
    }

    fn body(&self) -> std::pin::Pin<Box<dyn Future<Output = Result<Body, Trouble>> + Send + '_>> {
        Box::pin(async {
            let file = tokio::fs::File::open(self.path).await;
            let file =
                file.map_err(|error| Trouble::Nonsense(format!("the blob cannot be read: {error}")))?;
            let (sent, mut done) = (self.sent.clone(), 0);
            let frames = tokio_util::io::ReaderStream::with_capacity(file, 128 << 10).map_ok(move |bytes| {
                done += bytes.len() as u64;
                sent(done);
                Frame::data(bytes)
            });
            Ok(StreamBody::new(frames.map_err(io::Error::other)).boxed_unsync())
        })
    }
}

fn accepting() -> HeaderMap {
    HeaderMap::from_iter([(ACCEPT, HeaderValue::from_static(MANIFEST_TYPES))])
}

fn text(value: &str) -> HeaderValue {
    HeaderValue::from_str(value).unwrap_or(HeaderValue::from_static(""))
}

/// A header that is not to be seen in logs.
fn secret(value: &str) -> HeaderValue {
    let mut value = text(value);
    value.set_sensitive(true);
    value
}

fn basic(username: &str, password: &str) -> HeaderValue {
    let encoded = base64::engine::general_purpose::STANDARD.encode(format!("{username}:{password}"));
    secret(&format!("Basic {encoded}"))
}

/// Scheme, host and port.
fn origin(url: &str) -> String {
    let Ok(uri) = url.parse::<Uri>() else { return String::new() };
    format!("{}://{}", uri.scheme_str().unwrap_or_default(), uri.authority().map_or("", |at| at.as_str()))
}

/// Where an answer sends us, seen from where it came.
fn location(response: &Response<Incoming>, from: &str) -> Result<String, Trouble> {
    let to = response.headers().get(LOCATION).and_then(|value| value.to_str().ok());
    match to {
        Some(to) if to.starts_with("http://") || to.starts_with("https://") => Ok(to.to_owned()),
        Some(to) if to.starts_with('/') && !to.starts_with("//") => Ok(format!("{}{to}", origin(from))),
        _ => Err(Trouble::Nonsense("it sends us on without saying where".into())),
    }
}

/// The first byte of a part: `bytes 100-199/200`.
fn first_byte(headers: &HeaderMap) -> Option<u64> {
    let range = headers.get(CONTENT_RANGE)?.to_str().ok()?;
    range.strip_prefix("bytes ")?.split('-').next()?.parse().ok()
}

#[derive(Deserialize)]
struct Errors {
    errors: Vec<ErrorWords>,
}

#[derive(Deserialize)]
struct ErrorWords {
    #[serde(default)]
    code: String,
    #[serde(default)]
    message: String,
}

/// The words in a refusal: a registry's own format, or what token servers write.
fn said(body: &[u8]) -> Option<String> {
    #[derive(Deserialize)]
    struct Details {
        #[serde(alias = "message", alias = "error_description", alias = "error")]
        details: String,
    }
    let words = match serde_json::from_slice::<Errors>(body) {
        Ok(Errors { errors }) => {
            let one = |error: &ErrorWords| match (&*error.message, &*error.code) {
                ("", code) => code.to_owned(),
                (message, "") => message.to_owned(),
                (message, code) => format!("{message} ({code})"),
            };
            errors.iter().take(5).map(one).collect::<Vec<_>>().join(", ")
        }
        Err(_) => serde_json::from_slice::<Details>(body).ok()?.details,
    };
    Some(shown(&words)).filter(|words| !words.is_empty())
}

/// Foreign words, without what could move a terminal's cursor, and not too many.
fn shown(words: &str) -> String {
    words.chars().filter(|character| !character.is_control()).take(SAID_MAX).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_is_told_in_the_registrys_words_without_control_characters() {
        let errors = br#"{"errors":[{"code":"DENIED","message":"requested\u001b[2J access"},{"code":"X"}]}"#;
        assert_eq!(said(errors).as_deref(), Some("requested[2J access (DENIED), X"));
        assert_eq!(
            said(br#"{"details":"incorrect username or password"}"#).as_deref(),
            Some("incorrect username or password")
        );
        assert_eq!(said(b"<html>"), None);
        assert_eq!(said(&[b'['; 5000]), None);
        let long = format!(r#"{{"details":"{}"}}"#, "x".repeat(10_000));
        assert_eq!(said(long.as_bytes()).unwrap().len(), SAID_MAX);
    }

    #[test]
    fn an_origin_is_scheme_host_and_port() {
        assert_eq!(origin("https://a:5/b?c"), "https://a:5");
        assert_ne!(origin("https://a/b"), origin("http://a/b"));
        assert_ne!(origin("https://a/b"), origin("https://a.evil/b"));
    }
}
