//! HTTP to registries: connections over TLS (or without, where that is allowed), through a proxy where the
//! environment says so, with every wait bounded.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::uri::Scheme;
use http::{Request, Response, Uri};
use http_body_util::BodyExt as _;
use http_body_util::combinators::UnsyncBoxBody;
use hyper::body::{Body as _, Incoming};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::{Connected, Connection};
use hyper_util::client::proxy::matcher::{Intercept, Matcher};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::RootCertStore;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, ReadBuf};
use tokio::net::TcpStream;

use super::super::{Registries, Result, refused};
use super::Trouble;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// The longest answer of a proxy that is read.
const PROXY_ANSWER_MAX: usize = 8 << 10;

/// What is sent: nothing, a document, or a file as it is read.
pub type Body = UnsyncBoxBody<Bytes, io::Error>;

/// A document as a body.
pub fn whole(bytes: impl Into<Bytes>) -> Body {
    http_body_util::Full::new(bytes.into()).map_err(|never| match never {}).boxed_unsync()
}

/// Connections to one registry and whomever it sends us to.
pub struct Http {
    client: Client<Connector, Body>,
    patience: Duration,
}

impl Http {
    /// For a registry; its certificate may be signed by the authority that is configured for it.
    pub fn new(host: &str, registries: &Registries) -> Result<Self> {
        let mut roots = native_roots().clone();
        if let Some(path) = registries.roots.get(host) {
            let what = || format!("the certificate {} of registry {host}", path.display());
            let Ok(pem) = std::fs::read(path) else { return refused(what(), "it cannot be read") };
            let own: Vec<_> = CertificateDer::pem_slice_iter(&pem).filter_map(Result::ok).collect();
            if own.is_empty() || own.into_iter().any(|own| roots.add(own).is_err()) {
                return refused(what(), "it is no certificate in PEM");
            }
        }
        let nobody_is_trusted = roots.is_empty();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let tls = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("the provider knows the versions it comes with")
            .with_root_certificates(roots)
            .with_no_client_auth();
        let proxies = Arc::new(Matcher::from_env());
        let connector = Connector { tls: Arc::new(tls), proxies, nobody_is_trusted };
        let client = Client::builder(TokioExecutor::new())
            .pool_idle_timeout(Duration::from_secs(20))
            .http1_max_buf_size(64 << 10)
            .build(connector);
        Ok(Self { client, patience: registries.patience })
    }

    /// Sends a request and waits for the head of the answer, `more` longer than usual if a large body is sent.
    pub async fn send(&self, request: Request<Body>, more: Duration) -> Result<Response<Incoming>, Trouble> {
        match tokio::time::timeout(self.patience + more, self.client.request(request)).await {
            Ok(Ok(response)) => Ok(response),
            Ok(Err(error)) if error.is_connect() => Err(Trouble::Unreachable(chain(&error))),
            Ok(Err(error)) => Err(Trouble::Broken(chain(&error))),
            Err(_) => Err(self.silent()),
        }
    }

    /// The next bytes of an answer, `None` at its end.
    pub async fn next(&self, body: &mut Incoming) -> Result<Option<Bytes>, Trouble> {
        loop {
            let frame = match tokio::time::timeout(self.patience, body.frame()).await {
                Ok(None) => return Ok(None),
                Ok(Some(Ok(frame))) => frame,
                Ok(Some(Err(error))) => return Err(Trouble::Broken(chain(&error))),
                Err(_) => return Err(self.silent()),
            };
            if let Ok(data) = frame.into_data() {
                return Ok(Some(data));
            }
        }
    }

    /// The whole of an answer, refused before it is read where it says that it has more than `max` bytes, and
    /// else as soon as it has.
    pub async fn read(&self, mut body: Incoming, max: usize) -> Result<Vec<u8>, Trouble> {
        let too_long = || Trouble::Nonsense(format!("its answer is larger than {max} bytes"));
        if body.size_hint().lower() > max as u64 {
            return Err(too_long());
        }
        let mut bytes = Vec::new();
        while let Some(data) = self.next(&mut body).await? {
            if bytes.len() + data.len() > max {
                return Err(too_long());
            }
            bytes.extend_from_slice(&data);
        }
        Ok(bytes)
    }

    fn silent(&self) -> Trouble {
        Trouble::Broken(format!("nothing came for {} s", self.patience.as_secs_f32()))
    }
}

/// The roots this machine trusts, read once.
fn native_roots() -> &'static RootCertStore {
    static ROOTS: OnceLock<RootCertStore> = OnceLock::new();
    ROOTS.get_or_init(|| {
        let mut roots = RootCertStore::empty();
        roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        roots
    })
}

#[derive(Clone)]
struct Connector {
    tls: Arc<rustls::ClientConfig>,
    proxies: Arc<Matcher>,
    nobody_is_trusted: bool,
}

impl tower::Service<Uri> for Connector {
    type Response = TokioIo<Wire>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<TokioIo<Wire>>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, to: Uri) -> Self::Future {
        let connector = self.clone();
        Box::pin(async move {
            match tokio::time::timeout(CONNECT_TIMEOUT, connector.open(&to)).await {
                Ok(wire) => wire.map(TokioIo::new),
                Err(_) => Err(io::Error::new(io::ErrorKind::TimedOut, "it does not answer")),
            }
        })
    }
}

impl Connector {
    async fn open(&self, to: &Uri) -> io::Result<Wire> {
        let host = to.host().unwrap_or_default().trim_matches(['[', ']']).to_owned();
        let https = to.scheme() == Some(&Scheme::HTTPS);
        let port = to.port_u16().unwrap_or(if https { 443 } else { 80 });
        if !https {
            // Those without TLS are near by definition.
            let stream = TcpStream::connect((&*host, port)).await?;
            stream.set_nodelay(true)?;
            return Ok(Wire(Box::new(stream)));
        }
        if self.nobody_is_trusted {
            return Err(io::Error::other(
                "this machine has no root certificates: install the package ca-certificates, or set SSL_CERT_FILE",
            ));
        }
        let stream = match self.proxies.intercept(to) {
            Some(proxy) => tunnel(&proxy, &host, port).await?,
            None => TcpStream::connect((&*host, port)).await?,
        };
        stream.set_nodelay(true)?;
        let name = ServerName::try_from(host).map_err(io::Error::other)?;
        let stream = tokio_rustls::TlsConnector::from(self.tls.clone()).connect(name, stream).await?;
        Ok(Wire(Box::new(stream)))
    }
}

/// A connection through a proxy, which only sees where it leads.
async fn tunnel(proxy: &Intercept, host: &str, port: u16) -> io::Result<TcpStream> {
    let uri = proxy.uri();
    let broken = |why: &str| io::Error::other(format!("the proxy {}: {why}", uri.host().unwrap_or_default()));
    if uri.scheme().is_some_and(|scheme| *scheme != Scheme::HTTP) {
        return Err(broken("only proxies that are spoken to by plain HTTP are supported"));
    }
    let at = uri.host().unwrap_or_default().trim_matches(['[', ']']);
    let mut stream = TcpStream::connect((at, uri.port_u16().unwrap_or(80))).await?;
    let host = if host.contains(':') { format!("[{host}]") } else { host.to_owned() };
    let mut ask = format!("CONNECT {host}:{port} HTTP/1.1\r\nHost: {host}:{port}\r\n").into_bytes();
    if let Some(auth) = proxy.basic_auth() {
        ask.extend([b"Proxy-Authorization: ", auth.as_bytes(), b"\r\n"].concat());
    }
    ask.extend(b"\r\n");
    stream.write_all(&ask).await?;
    let mut answer = Vec::new();
    // Byte by byte: what follows the answer belongs to the other end.
    while !answer.ends_with(b"\r\n\r\n") {
        if answer.len() >= PROXY_ANSWER_MAX {
            return Err(broken("its answer has no end"));
        }
        answer.push(stream.read_u8().await?);
    }
    let status = answer.split(|byte| *byte == b' ').nth(1).unwrap_or_default();
    match status {
        [b'2', ..] => Ok(stream),
        status => Err(broken(&format!("it answers with status {}", String::from_utf8_lossy(status)))),
    }
}

trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// A connection, with TLS or without.
struct Wire(Box<dyn Stream>);

impl Connection for Wire {
    fn connected(&self) -> Connected {
        Connected::new()
    }
}

impl AsyncRead for Wire {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Wire {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}

/// An error with its causes, which hyper's own words leave out.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let words = error.to_string();
        if !text.contains(&words) {
            text = format!("{text}: {words}");
        }
        cause = error.source();
    }
    text
}
