//! A registry of few words: what is at a path, whom it lets in, and how it misbehaves. One request a connection.

use std::collections::BTreeMap;
use std::io::{self, BufRead as _, Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rswarm::image::{Digest, Reference};

use super::{gzip, oci_blobs};

/// How one answer goes wrong.
#[derive(Clone, Copy, Debug)]
pub enum Fault {
    /// It breaks off after so many bytes of the body.
    Cut(usize),
    /// After so many bytes nothing more comes, though the connection stays.
    Stall(usize),
    /// An answer with this status instead.
    Status(u16),
}

/// Whom the registry lets in.
#[derive(Clone, Debug, Default)]
pub enum Door {
    /// Everybody.
    #[default]
    Open,
    /// Who shows this header `Authorization`.
    Basic(String),
    /// Who shows a token, which is given to whoever shows this header at `/token`.
    Bearer(String),
}

/// What the registry has and does.
#[derive(Default)]
pub struct Shelves {
    /// Path to media type and bytes.
    pub content: BTreeMap<String, (String, Vec<u8>)>,
    /// What happens to the next answers for a path, in order.
    pub faults: BTreeMap<String, Vec<Fault>>,
    /// Who is let in.
    pub door: Door,
    /// Requests for a part get the whole.
    pub no_ranges: bool,
    /// A header `Location` that requests for a path get instead of an answer.
    pub moved: BTreeMap<String, String>,
    /// How many bytes a second leave it altogether, over the one line that it has; none is any number.
    pub line: Option<u64>,
    /// Until when that line is busy.
    pub busy: Option<Instant>,
    /// Method, path, and range of each request, in order.
    pub seen: Vec<String>,
    /// `Authorization` of each request, in order.
    pub shown: Vec<Option<String>>,
}

/// How much is sent at once.
const PART: usize = 256 * 1024;

/// The token that `Door::Bearer` gives out.
const TOKEN: &str = "opensesame";

/// A registry on loopback. It ends with the test's process, which only waits for connections.
pub struct Registry {
    pub address: SocketAddr,
    pub shelves: Arc<Mutex<Shelves>>,
    /// The certificate (PEM) of who signed for it, if it speaks TLS.
    pub root: Option<String>,
}

impl Registry {
    /// Without TLS.
    pub fn start() -> Self {
        Self::listen(None, None)
    }

    /// With TLS.
    pub fn start_tls() -> Self {
        let mut params = rcgen::CertificateParams::new(Vec::<String>::new()).unwrap();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let key = rcgen::KeyPair::generate().unwrap();
        let root = params.self_signed(&key).unwrap();
        let issuer = rcgen::Issuer::new(params, key);
        let own_key = rcgen::KeyPair::generate().unwrap();
        let own = rcgen::CertificateParams::new(vec!["127.0.0.1".into(), "localhost".into()]).unwrap();
        let own = own.signed_by(&own_key, &issuer).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let private = rustls::pki_types::PrivateKeyDer::try_from(own_key.serialize_der()).unwrap();
        let config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![own.der().clone()], private)
            .unwrap();
        Self::listen(Some(Arc::new(config)), Some(root.pem()))
    }

    fn listen(tls: Option<Arc<rustls::ServerConfig>>, root: Option<String>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let registry = Self { address: listener.local_addr().unwrap(), shelves: Arc::default(), root };
        let (shelves, base) = (registry.shelves.clone(), registry.base());
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let (shelves, tls, base) = (shelves.clone(), tls.clone(), base.clone());
                std::thread::spawn(move || {
                    let stream = stream?;
                    match tls {
                        None => answer(stream, &base, &shelves),
                        Some(tls) => {
                            let connection = rustls::ServerConnection::new(tls).map_err(io::Error::other)?;
                            answer(rustls::StreamOwned::new(connection, stream), &base, &shelves)
                        }
                    }
                });
            }
            io::Result::Ok(())
        });
        registry
    }

    /// Its address as a URL.
    pub fn base(&self) -> String {
        format!("{}://{}", if self.root.is_some() { "https" } else { "http" }, self.address)
    }

    /// Offers an image at `name:tag`, and returns the digest of its manifest and of its layers' blobs.
    pub fn offer(&self, name: &str, tag: &str, layers: &[Vec<u8>]) -> (Digest, Vec<Digest>) {
        let (manifest, blobs) = oci_blobs(layers, gzip);
        let digest = Digest::of(&manifest);
        let mut shelves = self.shelves.lock().unwrap();
        for name_or_digest in [tag, digest.as_str()] {
            let path = format!("/v2/{name}/manifests/{name_or_digest}");
            shelves
                .content
                .insert(path, ("application/vnd.oci.image.manifest.v1+json".into(), manifest.clone()));
        }
        for (digest, blob) in blobs {
            let path = format!("/v2/{name}/blobs/{digest}");
            shelves.content.insert(path, ("application/octet-stream".into(), blob));
        }
        (digest, layers.iter().map(|layer| Digest::of(&gzip(layer))).collect())
    }

    pub fn reference(&self, rest: &str) -> Reference {
        format!("{}/{rest}", self.address).parse().unwrap()
    }

    /// Requests whose path contains `part`.
    pub fn requests(&self, part: &str) -> Vec<String> {
        self.shelves.lock().unwrap().seen.iter().filter(|line| line.contains(part)).cloned().collect()
    }

    /// Lets the next answers for a path go wrong.
    pub fn spoil(&self, path: &str, faults: &[Fault]) {
        self.shelves.lock().unwrap().faults.insert(path.to_owned(), faults.to_vec());
    }

    /// Lets in only who shows this.
    pub fn guard(&self, door: Door) {
        self.shelves.lock().unwrap().door = door;
    }
}

/// A request, as far as it matters.
#[derive(Default)]
struct Asked {
    method: String,
    path: String,
    query: String,
    range: Option<String>,
    auth: Option<String>,
    kind: String,
    body: Vec<u8>,
}

fn read<S: Read>(stream: &mut io::BufReader<S>) -> io::Result<Asked> {
    let (mut asked, mut length, mut first) = (Asked::default(), 0, true);
    loop {
        let mut line = String::new();
        if stream.read_line(&mut line)? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let line = line.trim_end();
        match line.split_once(": ") {
            _ if first => {
                let mut words = line.split(' ').map(str::to_owned);
                asked.method = words.next().unwrap_or_default();
                let target = words.next().unwrap_or_default();
                let (path, query) = target.split_once('?').unwrap_or((&target, ""));
                (asked.path, asked.query) = (path.to_owned(), query.to_owned());
                first = false;
            }
            _ if line.is_empty() => break,
            None => {}
            Some((key, value)) => match &*key.to_ascii_lowercase() {
                "range" => asked.range = Some(value.to_owned()),
                "authorization" => asked.auth = Some(value.to_owned()),
                "content-type" => asked.kind = value.to_owned(),
                "content-length" => length = value.parse().unwrap(),
                _ => {}
            },
        }
    }
    asked.body.resize(length, 0);
    stream.read_exact(&mut asked.body)?;
    Ok(asked)
}

fn answer<S: Read + Write>(stream: S, base: &str, shelves: &Mutex<Shelves>) -> io::Result<()> {
    let mut stream = io::BufReader::new(stream);
    let asked = read(&mut stream)?;
    let (head, body, fault) = {
        let mut shelves = shelves.lock().unwrap();
        let range = asked.range.as_ref().map_or(String::new(), |range| format!(" {range}"));
        shelves.seen.push(format!("{} {}{range}", asked.method, asked.path));
        shelves.shown.push(asked.auth.clone());
        let fault = shelves.faults.get_mut(&asked.path).filter(|faults| !faults.is_empty());
        match fault.map(|faults| faults.remove(0)) {
            Some(Fault::Status(status)) => (format!("{status} No"), Vec::new(), None),
            fault => {
                let (head, body) = shelves.answer(&asked, base);
                (head, body, fault)
            }
        }
    };
    let stream = stream.get_mut();
    write!(stream, "HTTP/1.1 {head}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", body.len())?;
    if asked.method != "HEAD" {
        let end = match fault {
            Some(Fault::Cut(at) | Fault::Stall(at)) => at.min(body.len()),
            _ => body.len(),
        };
        for part in body[..end].chunks(PART) {
            let until = shelves.lock().unwrap().occupy(part.len());
            std::thread::sleep(until.saturating_duration_since(Instant::now()));
            stream.write_all(part)?;
        }
    }
    stream.flush()?;
    if matches!(fault, Some(Fault::Stall(_))) {
        // Longer than any test waits; the process ends before.
        std::thread::sleep(Duration::from_secs(600));
    }
    Ok(())
}

impl Shelves {
    /// Until when its line is busy with so many bytes more.
    fn occupy(&mut self, bytes: usize) -> Instant {
        let now = Instant::now();
        let Some(rate) = self.line else { return now };
        let until = self.busy.unwrap_or(now).max(now) + Duration::from_secs_f64(bytes as f64 / rate as f64);
        self.busy = Some(until);
        until
    }

    fn answer(&mut self, asked: &Asked, base: &str) -> (String, Vec<u8>) {
        let json = "Content-Type: application/json";
        if asked.path == "/token" {
            return match &self.door {
                Door::Bearer(expected) if asked.auth.as_ref() == Some(expected) => {
                    (format!("200 OK\r\n{json}"), format!(r#"{{"token":"{TOKEN}"}}"#).into_bytes())
                }
                _ => {
                    let words = br#"{"details":"incorrect username or password"}"#.to_vec();
                    (format!("401 Unauthorized\r\n{json}"), words)
                }
            };
        }
        let (needed, challenge) = match &self.door {
            Door::Open => (None, String::new()),
            Door::Basic(expected) => (Some(expected.clone()), "Basic realm=\"test\"".to_owned()),
            Door::Bearer(_) => (
                Some(format!("Bearer {TOKEN}")),
                format!("Bearer realm=\"{base}/token\",service=\"test\",scope=\"repository:x:pull\""),
            ),
        };
        if needed.is_some() && needed != asked.auth {
            let words =
                br#"{"errors":[{"code":"UNAUTHORIZED","message":"authentication required for the vault"}]}"#;
            return (format!("401 Unauthorized\r\nWWW-Authenticate: {challenge}\r\n{json}"), words.to_vec());
        }
        if let Some(to) = self.moved.get(&asked.path) {
            return (format!("307 Temporary Redirect\r\nLocation: {to}"), Vec::new());
        }
        match &*asked.method {
            "POST" if asked.path.ends_with("/blobs/uploads/") => {
                (format!("202 Accepted\r\nLocation: {}1?state=x", asked.path), Vec::new())
            }
            "PUT" if asked.path.contains("/blobs/uploads/") => {
                let digest = asked.query.split("digest=sha256%3A").nth(1).unwrap_or_default();
                if Digest::of(&asked.body).hex() != digest {
                    let words = br#"{"errors":[{"code":"DIGEST_INVALID","message":"not what it says"}]}"#;
                    return (format!("400 Bad Request\r\n{json}"), words.to_vec());
                }
                let repository = asked.path.split("/blobs/").next().unwrap_or_default();
                let path = format!("{repository}/blobs/sha256:{digest}");
                self.content.insert(path, ("application/octet-stream".into(), asked.body.clone()));
                ("201 Created".into(), Vec::new())
            }
            "PUT" => {
                let digest = Digest::of(&asked.body);
                let (name, _) = asked.path.rsplit_once('/').unwrap_or_default();
                for path in [asked.path.clone(), format!("{name}/{digest}")] {
                    self.content.insert(path, (asked.kind.clone(), asked.body.clone()));
                }
                ("201 Created".into(), Vec::new())
            }
            _ if asked.path == "/v2/" => (format!("200 OK\r\n{json}"), b"{}".to_vec()),
            _ => self.get(asked),
        }
    }

    fn get(&self, asked: &Asked) -> (String, Vec<u8>) {
        let Some((kind, bytes)) = self.content.get(&asked.path) else {
            let words = br#"{"errors":[{"code":"MANIFEST_UNKNOWN","message":"manifest unknown"}]}"#;
            return ("404 Not Found\r\nContent-Type: application/json".into(), words.to_vec());
        };
        let range = asked.range.as_ref().filter(|_| !self.no_ranges);
        let from = range.and_then(|range| range.strip_prefix("bytes=")?.strip_suffix('-')?.parse().ok());
        let digest = Digest::of(bytes);
        match from {
            Some(from) if from > 0 => {
                let last = bytes.len() - 1;
                let head = format!(
                    "206 Partial Content\r\nContent-Type: {kind}\r\nContent-Range: bytes {from}-{last}/{}",
                    bytes.len()
                );
                (head, bytes[from..].to_vec())
            }
            _ => {
                (format!("200 OK\r\nContent-Type: {kind}\r\nDocker-Content-Digest: {digest}"), bytes.clone())
            }
        }
    }
}
