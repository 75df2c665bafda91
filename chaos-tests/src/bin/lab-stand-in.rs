//! Stands in for the `rswarm` binary where the lab itself is under test: it has the lab's hidden
//! commands, can answer and ask over TCP, and has a daemon that writes down what it is asked to do
//! and answers HTTP on the demonstration's port.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    os::unix::net::{UnixListener, UnixStream},
    process::ExitCode,
    sync::atomic::AtomicBool,
    thread,
    time::Duration,
};

use rswarm_chaos::lab::{Lab, Options};

fn main() -> ExitCode {
    if let Some(code) = rswarm_chaos::lab::dispatch() {
        return code;
    }
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let result = run(&words);
    if let Err(error) = result {
        eprintln!("{error}");
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}

fn run(words: &[&str]) -> Result<()> {
    match *words {
        ["answer", port] => answer(port),
        ["ask", address] => ask(address),
        ["keep", path, text, ref how @ ..] => keep(path, text, how),
        ["show", path] => {
            print!("{}", std::fs::read_to_string(path)?);
            Ok(())
        }
        ["clock"] => {
            let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?;
            println!("{}", now.as_secs());
            Ok(())
        }
        ["daemon", ..] => daemon(words),
        ["lab-up", base, name] => lab_up(base, name),
        ["--socket", socket, ref words @ ..] => client(socket, words),
        ["init" | "join" | "join-token" | "node" | "service", ..] => {
            client(&std::env::var("RSWARM_SOCKET")?, words)
        }
        _ => Err("usage: lab-stand-in answer PORT | ask ADDRESS:PORT | keep PATH TEXT | show PATH | clock | daemon … | init … | join …".into()),
    }
}

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

/// Tells everyone who connects the name of the host it runs on.
fn answer(port: &str) -> Result<()> {
    let listener = TcpListener::bind(("0.0.0.0", port.parse()?))?;
    loop {
        let (mut stream, _) = listener.accept()?;
        let name = nix::unistd::gethostname()?;
        // The caller may be gone already, which is no concern of the next one.
        let _ = writeln!(stream, "{}", name.display());
    }
}

/// Prints what the other end has to say, or fails within two seconds.
fn ask(address: &str) -> Result<()> {
    let patience = Duration::from_secs(2);
    let address: SocketAddr = address.parse()?;
    let mut stream = TcpStream::connect_timeout(&address, patience)?;
    stream.set_read_timeout(Some(patience))?;
    let mut said = String::new();
    stream.read_to_string(&mut said)?;
    print!("{said}");
    Ok(())
}

/// Writes a file, and waits until it is on disk unless told to leave it in memory; or only if nobody listens at a port.
fn keep(path: &str, text: &str, how: &[&str]) -> Result<()> {
    if let ["if-free", port] = how {
        drop(TcpListener::bind(("0.0.0.0", port.parse()?))?);
    }
    let mut file = std::fs::File::create(path)?;
    file.write_all(text.as_bytes())?;
    if *how != ["in-memory"] {
        file.sync_all()?;
        std::fs::File::open(std::path::Path::new(path).parent().ok_or("no directory")?)?.sync_all()?;
    }
    Ok(())
}

/// Makes a lab of twenty nodes, and a line of each step.
fn lab_up(base: &str, name: &str) -> Result<()> {
    let options = Options {
        name: name.into(),
        base: base.into(),
        nodes: 20,
        daemon_command: Some(vec!["sleep".into(), "1000".into()]),
        ..Options::new(std::env::current_exe()?)
    };
    let mut lab = Lab::up_with(&options, &mut |_, words| println!("{words}"), &AtomicBool::new(false))?;
    lab.keep();
    Ok(())
}

/// Notes its own command line and those of its clients on standard error.
fn daemon(words: &[&str]) -> Result<()> {
    eprintln!("{}", words.join(" "));
    let socket = words.iter().skip_while(|word| **word != "--socket").nth(1).ok_or("--socket is missing")?;
    let socket = UnixListener::bind(socket)?;
    let http = TcpListener::bind(("0.0.0.0", 8080))?;
    thread::spawn(move || {
        for mut stream in http.incoming().flatten() {
            // The caller may be gone already, which is no concern of the next one.
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n");
        }
    });
    loop {
        let (stream, _) = socket.accept()?;
        let mut line = String::new();
        BufReader::new(stream).read_line(&mut line)?;
        eprint!("{line}");
    }
}

/// Hands its command line to the daemon, and prints a word where one is expected.
fn client(socket: &str, words: &[&str]) -> Result<()> {
    let mut stream = UnixStream::connect(socket)?;
    writeln!(stream, "{}", words.join(" "))?;
    match words {
        ["join-token", role, ..] => println!("token-of-a-{role}"),
        ["join", ..] if words.contains(&"wrong") => return Err("this token is wrong".into()),
        _ => {}
    }
    Ok(())
}
