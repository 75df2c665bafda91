//! `rswarm demo`: the program in the built-in image, a small service that can be told to misbehave.
//!
//! Demos, tests and drills need something that says who it is and fails on demand.

use std::convert::Infallible;
use std::io::{self, Write as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// Open connections of one kind; more wait in the kernel's queue.
const CONNECTIONS_MAX: usize = 4096;
/// How long requests may take to end after the signal to stop.
const DRAIN: Duration = Duration::from_secs(8);
/// How long a connection that was made before the signal to stop may take to ask its first question.
const FIRST_REQUEST: Duration = Duration::from_secs(2);
/// Time for an answer to leave before the process exits because of it.
const LAST_WORDS: Duration = Duration::from_millis(50);
const BURN_MAX: u64 = 64 << 30;
const THREADS_MAX: u64 = 100_000;

/// Be a small service that says who it is and misbehaves on demand
///
/// GET /: who answers (JSON with ?json or Accept: application/json). /healthz: 200, or 503 after /unhealthy.
/// /env: the environment. /fail?code=N: exit. /hang: stop answering. /burn?mem=64m: take memory.
/// /cpu?seconds=N: keep a processor busy. /threads?count=N: start threads. /shout?mem=64m: fill the log; /shouted: whether all is said. /unhealthy, /healthy: change what /healthz says. /slow?ms=N: answer late.
#[derive(Clone, Debug, clap::Args)]
pub struct Demo {
    /// TCP port for HTTP; 0 for any free one
    #[arg(long, default_value_t = 80)]
    port: u16,
    /// TCP and UDP port that sends back what it receives; 0 for any free one
    #[arg(long, default_value_t = 7)]
    echo_port: u16,
    /// Do not listen for echo
    #[arg(long)]
    no_echo: bool,
    /// Exit after this time (500ms, 10s, 2m, 1h)
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    fail_after: Option<Duration>,
    /// The exit code of --fail-after and --fail-at-start
    #[arg(long, default_value_t = 1)]
    exit_code: u8,
    /// Exit at once, before listening
    #[arg(long)]
    fail_at_start: bool,
    /// Go on after SIGTERM, until killed
    #[arg(long)]
    ignore_sigterm: bool,
    /// Answer /healthz with 503 from the start
    #[arg(long)]
    unhealthy: bool,
    /// Wait before listening, as slow programs do
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    start_delay: Option<Duration>,
    /// Print a line at this interval
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    print_every: Option<Duration>,
}

impl Demo {
    /// Runs until a signal or a request ends it. Prints what it listens on, then what happens to it.
    pub fn run(self) -> ExitCode {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        match runtime.and_then(|runtime| runtime.block_on(serve(self))) {
            Ok(code) => code,
            Err(error) => {
                eprintln!("demo: {error}");
                ExitCode::FAILURE
            }
        }
    }
}

/// What requests can change.
#[derive(Default)]
struct Mood {
    unhealthy: AtomicBool,
    hanging: AtomicBool,
    ballast: Mutex<Vec<Vec<u8>>>,
    shouting: AtomicUsize,
}

async fn serve(options: Demo) -> io::Result<ExitCode> {
    let mut term = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let failure = ExitCode::from(options.exit_code);
    if options.fail_at_start {
        say(&format!("failing at the start with exit code {}, as told", options.exit_code));
        return Ok(failure);
    }
    let mut doom = std::pin::pin!(sleep_or_never(options.fail_after));
    let mut delay = std::pin::pin!(sleep_or_never(Some(options.start_delay.unwrap_or_default())));
    tokio::select! {
        () = &mut delay => {}
        () = &mut doom => return Ok(fail_after(&options)),
        _ = term.recv(), if !options.ignore_sigterm => return Ok(ExitCode::SUCCESS),
        _ = interrupt.recv() => return Ok(ExitCode::SUCCESS),
    }

    let mood = Arc::new(Mood::default());
    mood.unhealthy.store(options.unhealthy, Ordering::Relaxed);
    let stop = CancellationToken::new();
    let web = listen(options.port).await?;
    say(&format!("HTTP on port {}", web.local_addr()?.port()));
    let mut servers = JoinSet::new();
    servers.spawn(serve_http(web, mood, stop.clone()));
    if !options.no_echo {
        let (tcp, udp) = listen_for_echo(options.echo_port).await?;
        say(&format!(
            "echo on TCP port {} and UDP port {}",
            tcp.local_addr()?.port(),
            udp.local_addr()?.port()
        ));
        servers.spawn(echo_tcp(tcp, stop.clone()));
        servers.spawn(echo_udp(udp, stop.clone()));
    }

    let started = Instant::now();
    let mut lines = 0_u64;
    let mut print = tokio::time::interval(options.print_every.unwrap_or(Duration::from_secs(3600)));
    print.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
    loop {
        tokio::select! {
            () = &mut doom => return Ok(fail_after(&options)),
            _ = print.tick(), if options.print_every.is_some() => {
                lines += 1;
                say(&format!("line {lines} after {} ms", started.elapsed().as_millis()));
            }
            _ = term.recv() => {
                if !options.ignore_sigterm {
                    break;
                }
                say("SIGTERM ignored, as told");
            }
            _ = interrupt.recv() => break,
        }
    }
    say("stopping: no new connections, open requests end");
    stop.cancel();
    let drained = async { while servers.join_next().await.is_some() {} };
    if tokio::time::timeout(DRAIN, drained).await.is_err() {
        say("stopping although requests are open");
    }
    Ok(ExitCode::SUCCESS)
}

fn fail_after(options: &Demo) -> ExitCode {
    say(&format!(
        "failing after {:?} with exit code {}, as told",
        options.fail_after.unwrap_or_default(),
        options.exit_code
    ));
    ExitCode::from(options.exit_code)
}

async fn sleep_or_never(time: Option<Duration>) {
    match time {
        Some(time) => tokio::time::sleep(time).await,
        None => std::future::pending().await,
    }
}

/// Prints a line at once; that nobody listens is no reason to die.
fn say(text: &str) {
    let mut out = io::stdout().lock();
    let _ = writeln!(out, "{text}").and_then(|()| out.flush());
}

/// Listens on all addresses of both families, or of IPv4 where there is nothing else.
async fn listen(port: u16) -> io::Result<TcpListener> {
    let listener = match TcpListener::bind((Ipv6Addr::UNSPECIFIED, port)).await {
        Err(error) if error.kind() != io::ErrorKind::AddrInUse => {
            TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).await
        }
        result => result,
    };
    listener
        .map_err(|error| io::Error::new(error.kind(), format!("cannot listen on TCP port {port}: {error}")))
}

/// One port for both protocols; with 0, two free ones.
async fn listen_for_echo(port: u16) -> io::Result<(TcpListener, UdpSocket)> {
    let tcp = listen(port).await?;
    let udp = match UdpSocket::bind((Ipv6Addr::UNSPECIFIED, port)).await {
        Err(error) if error.kind() != io::ErrorKind::AddrInUse => {
            UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port)).await
        }
        result => result,
    };
    let udp = udp.map_err(|error| {
        io::Error::new(error.kind(), format!("cannot listen on UDP port {port}: {error}"))
    })?;
    Ok((tcp, udp))
}

/// Accepts until told to stop, and gives each connection a task; returns when the last has ended.
async fn accept<F>(listener: TcpListener, stop: CancellationToken, serve: impl Fn(TcpStream, SocketAddr) -> F)
where
    F: Future<Output = ()> + Send + 'static,
{
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            () = stop.cancelled() => break,
            Some(_) = connections.join_next() => {}
            accepted = listener.accept(), if connections.len() < CONNECTIONS_MAX => match accepted {
                Ok((stream, client)) => {
                    let _ = stream.set_nodelay(true);
                    connections.spawn(serve(stream, client));
                }
                // Out of descriptors, or the client is gone already: neither gets better by spinning.
                Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
            },
        }
    }
    drop(listener);
    while connections.join_next().await.is_some() {}
}

async fn serve_http(listener: TcpListener, mood: Arc<Mood>, stop: CancellationToken) {
    let connection_stop = stop.clone();
    accept(listener, stop, move |stream, client| {
        let (mood, stop) = (mood.clone(), connection_stop.clone());
        async move {
            let own = stream.local_addr().ok();
            let asked = Arc::new(Notify::new());
            let asks = asked.clone();
            let answer = service_fn(move |request| {
                asks.notify_one();
                let mood = mood.clone();
                async move { answer(&request, &mood, client, own).await }
            });
            let mut http = hyper::server::conn::http1::Builder::new();
            http.timer(TokioTimer::new()).header_read_timeout(Duration::from_secs(60));
            let mut connection = std::pin::pin!(http.serve_connection(TokioIo::new(stream), answer));
            tokio::select! {
                _ = connection.as_mut() => return,
                () = stop.cancelled() => {}
            }
            // A connection on which nothing was asked yet would be closed at once, although it was made while this still
            // answered, and its first request is on the way.
            tokio::select! {
                _ = connection.as_mut() => return,
                _ = tokio::time::timeout(FIRST_REQUEST, asked.notified()) => connection.as_mut().graceful_shutdown(),
            }
            let _ = connection.await;
        }
    })
    .await;
}

async fn answer(
    request: &Request<Incoming>,
    mood: &Arc<Mood>,
    client: SocketAddr,
    own: Option<SocketAddr>,
) -> Result<Response<Full<Bytes>>, Infallible> {
    if mood.hanging.load(Ordering::Relaxed) {
        return std::future::pending().await;
    }
    if !matches!(*request.method(), Method::GET | Method::HEAD | Method::POST) {
        return Ok(text(StatusCode::METHOD_NOT_ALLOWED, "only GET, HEAD and POST\n"));
    }
    let query = |key: &str| {
        let pairs = request.uri().query().unwrap_or_default().split('&');
        pairs
            .map(|pair| pair.split_once('=').unwrap_or((pair, "")))
            .find(|(name, _)| *name == key)
            .map(|(_, value)| value)
    };
    let number = |key: &str, default: u64| query(key).map_or(Ok(default), |value| value.parse::<u64>());
    let bad = |key: &str| text(StatusCode::BAD_REQUEST, &format!("`{key}` is not a number this accepts\n"));

    Ok(match request.uri().path() {
        "/" => {
            let accepts = request.headers().get(header::ACCEPT).and_then(|value| value.to_str().ok());
            let wants_json =
                query("json").is_some() || accepts.is_some_and(|value| value.contains("application/json"));
            who(client.ip(), own.map(|own| own.ip()), wants_json)
        }
        "/healthz" if mood.unhealthy.load(Ordering::Relaxed) => {
            text(StatusCode::SERVICE_UNAVAILABLE, "unhealthy\n")
        }
        "/healthz" => text(StatusCode::OK, "ok\n"),
        "/unhealthy" => {
            mood.unhealthy.store(true, Ordering::Relaxed);
            text(StatusCode::OK, "unhealthy from now on\n")
        }
        "/healthy" => {
            mood.unhealthy.store(false, Ordering::Relaxed);
            text(StatusCode::OK, "healthy from now on\n")
        }
        "/env" => {
            let mut lines: Vec<String> = std::env::vars_os()
                .map(|(key, value)| format!("{}={}\n", key.to_string_lossy(), value.to_string_lossy()))
                .collect();
            lines.sort();
            text(StatusCode::OK, &lines.concat())
        }
        "/fail" => match number("code", 1).ok().and_then(|code| u8::try_from(code).ok()) {
            Some(code) => {
                say(&format!("failing with exit code {code}, as told by {client}"));
                tokio::spawn(async move {
                    tokio::time::sleep(LAST_WORDS).await;
                    std::process::exit(i32::from(code));
                });
                text(StatusCode::OK, &format!("exiting with code {code}\n"))
            }
            None => bad("code"),
        },
        "/hang" => {
            mood.hanging.store(true, Ordering::Relaxed);
            say("answering no more, as told");
            text(StatusCode::OK, "no more answers from now on\n")
        }
        "/burn" => match size(query("mem").unwrap_or("64m")) {
            Some(bytes) => burn(mood, bytes),
            None => bad("mem"),
        },
        "/cpu" => match number("seconds", 1) {
            Ok(seconds) => {
                let until = Duration::from_secs(seconds.min(24 * 3600));
                // A thread of its own, so that this one goes on answering.
                std::thread::spawn(move || {
                    let start = Instant::now();
                    while start.elapsed() < until {
                        std::hint::spin_loop();
                    }
                });
                text(StatusCode::OK, &format!("busy for {} s\n", until.as_secs()))
            }
            Err(_) => bad("seconds"),
        },
        "/threads" => match number("count", 100) {
            Ok(count) => start_threads(count),
            Err(_) => bad("count"),
        },
        "/shout" => match size(query("mem").unwrap_or("64m")) {
            Some(bytes) => shout(mood, bytes),
            None => bad("mem"),
        },
        "/shouted" if mood.shouting.load(Ordering::Relaxed) > 0 => text(StatusCode::OK, "not yet\n"),
        "/shouted" => text(StatusCode::OK, "done\n"),
        "/slow" => match number("ms", 1000) {
            Ok(ms) => {
                tokio::time::sleep(Duration::from_millis(ms.min(3_600_000))).await;
                text(StatusCode::OK, &format!("after {ms} ms\n"))
            }
            Err(_) => bad("ms"),
        },
        _ => text(
            StatusCode::NOT_FOUND,
            "try / /healthz /env /fail /hang /burn /cpu /threads /shout /slow /unhealthy /healthy\n",
        ),
    })
}

/// Takes memory and keeps it, in pages that are really written to.
fn burn(mood: &Mood, bytes: u64) -> Response<Full<Bytes>> {
    let mut block = Vec::new();
    let wanted = usize::try_from(bytes).unwrap_or(usize::MAX);
    if block.try_reserve_exact(wanted).is_err() {
        return text(StatusCode::INSUFFICIENT_STORAGE, "the system does not give that much\n");
    }
    block.resize(wanted, 1_u8);
    let mut ballast = mood.ballast.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    ballast.push(block);
    let held: usize = ballast.iter().map(Vec::len).sum();
    text(StatusCode::OK, &format!("holding {held} bytes\n"))
}

/// Starts threads that stay, as many as are wanted or as the system gives.
fn start_threads(count: u64) -> Response<Full<Bytes>> {
    let stay = || {
        loop {
            std::thread::park();
        }
    };
    let start = |_: &u64| std::thread::Builder::new().stack_size(16 << 10).spawn(stay).is_ok();
    let started = (0..count.min(THREADS_MAX)).take_while(start).count();
    text(StatusCode::OK, &format!("threads: {started}\n"))
}

/// Prints so many bytes as fast as they are taken.
fn shout(mood: &Arc<Mood>, bytes: u64) -> Response<Full<Bytes>> {
    const LINE: [u8; 128] = {
        let mut line = [b'!'; 128];
        line[127] = b'\n';
        line
    };
    let mood = mood.clone();
    mood.shouting.fetch_add(1, Ordering::Relaxed);
    std::thread::spawn(move || {
        let chunk = LINE.repeat(512);
        for _ in 0..bytes.div_ceil(chunk.len() as u64) {
            if io::stdout().lock().write_all(&chunk).is_err() {
                break;
            }
        }
        mood.shouting.fetch_sub(1, Ordering::Relaxed);
    });
    text(StatusCode::OK, "shouting\n")
}

/// The program's account of itself. What the orchestrator did not tell is left out.
fn who(client: IpAddr, own: Option<IpAddr>, as_json: bool) -> Response<Full<Bytes>> {
    let env = |key: &str| std::env::var(key).ok().filter(|value| !value.is_empty());
    let hostname = rustix::system::uname().nodename().to_string_lossy().into_owned();
    let address = env("RSWARM_ADDRESS").or_else(|| own.map(|ip| ip.to_canonical().to_string()));
    let facts = [
        ("hostname", Some(hostname)),
        ("service", env("RSWARM_SERVICE")),
        ("slot", env("RSWARM_SLOT")),
        ("node", env("RSWARM_NODE")),
        ("task", env("RSWARM_TASK")),
        ("address", address),
        ("version", env("VERSION")),
        ("client", Some(client.to_canonical().to_string())),
    ];
    if as_json {
        let facts: serde_json::Map<_, _> =
            facts.into_iter().map(|(key, value)| (key.to_owned(), json!(value))).collect();
        let mut body = serde_json::Value::Object(facts).to_string();
        body.push('\n');
        return reply(StatusCode::OK, "application/json", body);
    }
    let lines = facts.into_iter().filter_map(|(key, value)| Some(format!("{key}: {}\n", value?)));
    text(StatusCode::OK, &lines.collect::<String>())
}

fn text(status: StatusCode, body: &str) -> Response<Full<Bytes>> {
    reply(status, "text/plain; charset=utf-8", body.to_owned())
}

fn reply(status: StatusCode, kind: &'static str, body: String) -> Response<Full<Bytes>> {
    let response = Response::builder()
        .status(status)
        .header(header::CONTENT_TYPE, kind)
        .header(header::CACHE_CONTROL, "no-store");
    response.body(Full::from(body)).expect("all parts of the header are constants")
}

async fn echo_tcp(listener: TcpListener, stop: CancellationToken) {
    let connection_stop = stop.clone();
    accept(listener, stop, move |mut stream, _| {
        let stop = connection_stop.clone();
        async move {
            let mut buffer = [0; 8192];
            loop {
                tokio::select! {
                    () = stop.cancelled() => return,
                    read = stream.read(&mut buffer) => match read {
                        Ok(n @ 1..) if stream.write_all(&buffer[..n]).await.is_ok() => {}
                        _ => return,
                    },
                }
            }
        }
    })
    .await;
}

async fn echo_udp(socket: UdpSocket, stop: CancellationToken) {
    let mut buffer = vec![0; 1 << 16];
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            received = socket.recv_from(&mut buffer) => {
                // An error here is an earlier datagram's; there is nobody to tell.
                if let Ok((n, client)) = received {
                    let _ = socket.send_to(&buffer[..n], client).await;
                }
            }
        }
    }
}

/// `500ms`, `10s`, `2m`, `1h`, or seconds.
fn duration(text: &str) -> Result<Duration, String> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let unit = match unit {
        "ms" => 1,
        "" | "s" => 1000,
        "m" => 60_000,
        "h" => 3_600_000,
        _ => return Err("use a number and ms, s, m or h, for example 10s".into()),
    };
    let millis = number.parse::<u64>().ok().and_then(|number| number.checked_mul(unit));
    millis.map(Duration::from_millis).ok_or_else(|| "use a number and ms, s, m or h, for example 10s".into())
}

/// Bytes, with `k`, `m` or `g` for the powers of 1024.
fn size(text: &str) -> Option<u64> {
    let (number, unit) = match text.char_indices().last()? {
        (at, 'k' | 'K') => (&text[..at], 1 << 10),
        (at, 'm' | 'M') => (&text[..at], 1 << 20),
        (at, 'g' | 'G') => (&text[..at], 1 << 30),
        _ => (text, 1),
    };
    number.parse::<u64>().ok()?.checked_mul(unit).filter(|bytes| *bytes <= BURN_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_connection_made_before_the_signal_is_answered_after_it() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let stop = CancellationToken::new();
        let serving = tokio::spawn(serve_http(listener, Arc::default(), stop.clone()));
        let get = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n";
        let mut known = TcpStream::connect(address).await.unwrap();
        known.write_all(get).await.unwrap();
        let mut byte = [0];
        known.read_exact(&mut byte).await.unwrap();
        // Accepted before the other, which was answered.
        let mut silent = TcpStream::connect(address).await.unwrap();
        let mut known_too = TcpStream::connect(address).await.unwrap();
        known_too.write_all(get).await.unwrap();
        known_too.read_exact(&mut byte).await.unwrap();
        stop.cancel();
        let mut rest = Vec::new();
        known.read_to_end(&mut rest).await.unwrap();
        silent.write_all(get).await.unwrap();
        let mut answer = String::new();
        silent.read_to_string(&mut answer).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        drop(known_too);
        serving.await.unwrap();
    }

    #[test]
    fn durations_and_sizes() {
        assert_eq!(duration("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(duration("10"), Ok(Duration::from_secs(10)));
        assert_eq!(duration("2m"), Ok(Duration::from_secs(120)));
        for nonsense in ["", "s", "-1s", "1d", "99999999999999999999s", "1.5s"] {
            assert!(duration(nonsense).is_err(), "{nonsense}");
        }
        assert_eq!((size("64m"), size("1"), size("2G")), (Some(64 << 20), Some(1), Some(2 << 30)));
        for nonsense in ["", "m", "-1", "1t", "99999999g"] {
            assert_eq!(size(nonsense), None, "{nonsense}");
        }
    }
}
