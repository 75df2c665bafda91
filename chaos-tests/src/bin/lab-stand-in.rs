//! Stands in for the `rswarm` binary where the lab itself is under test: it has the lab's hidden
//! commands, and can answer and ask over TCP.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    process::ExitCode,
    time::Duration,
};

fn main() -> ExitCode {
    if let Some(code) = rswarm_chaos::lab::dispatch() {
        return code;
    }
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let result = match words[..] {
        ["answer", port] => answer(port),
        ["ask", address] => ask(address),
        _ => Err("usage: lab-stand-in answer PORT | ask ADDRESS:PORT".into()),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
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
