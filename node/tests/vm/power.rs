//! A manager is asked to make services, each of which is acknowledged before the next; the machine's power is cut, its
//! page cache gone, again and again on the same disk. The only manager there is: no other could have kept what it lost.

use rswarm_netoverlay::device::link::Links;
use rswarm_netoverlay::device::netns::Netns;
use std::collections::BTreeSet;
use std::error::Error;
use std::ops::ControlFlow;
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// What this program is called with inside the machine.
pub const INSIDE: &str = "write-until-the-power-is-cut";
/// After how many writes of a life the power is cut: soon after the log has begun, and later.
const CUTS: [usize; 3] = [3, 40, 90];
const ACKNOWLEDGED: &str = "acknowledged: ";
const FOUND: &str = "found: ";
const ALL_FOUND: &str = "that is all";
/// The machine's address, on its loopback device: it has no other.
const ADDRESS: [u8; 4] = [192, 0, 2, 1];
const WRITERS: u64 = 4;
/// How long a manager may take to lead again.
const BACK: Duration = Duration::from_secs(120);

pub fn cut() -> Result<(), String> {
    let place = tempfile::tempdir().map_err(|error| error.to_string())?;
    let disk = place.path().join("disk");
    let Some(made) = format(&disk).map_err(|error| error.to_string())? else {
        println!("skipped: mke2fs is not installed (Debian's package is e2fsprogs)");
        return Ok(());
    };
    if !made {
        return Err("mke2fs could not make a file system".into());
    }
    let mut machine = super::machine(&["/bin/story", INSIDE])?;
    machine.programs.push((super::this()?, "story".into()));
    machine.disk = Some(disk);
    let mut acknowledged = BTreeSet::new();
    for (life, cut_after) in CUTS.into_iter().map(Some).chain([None]).enumerate() {
        let (mut found, mut written) = (BTreeSet::new(), 0);
        let ran = machine.run_until(super::PATIENCE, |line| {
            if let Some(name) = line.strip_prefix(FOUND) {
                found.insert(name.to_owned());
            } else if let Some(name) = line.strip_prefix(ACKNOWLEDGED) {
                acknowledged.insert(name.to_owned());
                written += 1;
            } else {
                println!("  {line}");
            }
            match (line == ALL_FOUND, cut_after) {
                (true, None) => ControlFlow::Break(()),
                (_, Some(number)) if written >= number => ControlFlow::Break(()),
                _ => ControlFlow::Continue(()),
            }
        });
        if let Some(ran) = ran.map_err(super::words)? {
            return Err(format!("in life {life} the story ended with {}", ran.code));
        }
        println!("  life {life}: {} found, {written} written, power cut", found.len());
        // Of this life's own writes nothing has been looked for yet.
        let before: BTreeSet<String> =
            acknowledged.iter().filter(|name| life_of(name) < life).cloned().collect();
        let lost: Vec<&String> = before.difference(&found).collect();
        if !lost.is_empty() {
            return Err(format!("acknowledged before life {life}, and lost: {lost:?}"));
        }
    }
    Ok(())
}

/// Makes an empty file system; nothing is returned where there is no program for it.
fn format(disk: &Path) -> std::io::Result<Option<bool>> {
    std::fs::File::create(disk)?.set_len(1 << 30)?;
    let mut mke2fs = Command::new("mke2fs");
    match mke2fs.args(["-q", "-F", "-t", "ext4"]).arg(disk).stdin(Stdio::null()).status() {
        Ok(status) => Ok(Some(status.success())),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

fn name(life: usize, number: u64) -> String {
    format!("l{life}-{number}")
}

fn life_of(name: &str) -> usize {
    let life = name.strip_prefix('l').and_then(|name| name.split('-').next()?.parse().ok());
    life.unwrap_or(usize::MAX)
}

/// The machine's command.
pub fn inside() -> ExitCode {
    match live() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            println!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn live() -> Result<(), Box<dyn Error>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        Links::open(&Netns::current()?)?.ensure_address("lo", std::net::IpAddr::from(ADDRESS), 32).await
    })?;
    // The number of this life is kept beside the daemon's files, and known to have been before it is used.
    let counter = Path::new("/var/lib/life");
    let life: usize = std::fs::read_to_string(counter).map_or(Ok(0), |life| life.parse())?;
    std::fs::write(counter, (life + 1).to_string())?;
    std::fs::File::open(counter)?.sync_all()?;
    std::fs::File::open("/var/lib")?.sync_all()?;
    if life == 0 {
        let address = std::net::Ipv4Addr::from(ADDRESS).to_string();
        rswarm(&["init", "--advertise-addr", &address])?;
    } else {
        // It goes on when this program has gone.
        Command::new("rswarm").arg("daemon").stdin(Stdio::null()).spawn()?;
    }
    for name in services()?.lines() {
        println!("{FOUND}{name}");
    }
    println!("{ALL_FOUND}");
    let next = AtomicU64::new(0);
    std::thread::scope(|scope| {
        for _ in 0..WRITERS {
            scope.spawn(|| {
                loop {
                    let name = name(life, next.fetch_add(1, Ordering::Relaxed));
                    let words =
                        ["service", "create", "--detach", "--name", &name, "--replicas", "0", "rswarm/demo"];
                    match rswarm(&words) {
                        Ok(_) => println!("{ACKNOWLEDGED}{name}"),
                        Err(error) => println!("{name} was not made: {error}"),
                    }
                }
            });
        }
    });
    Ok(())
}

/// The names of all services, as soon as the manager leads.
fn services() -> Result<String, Box<dyn Error>> {
    let deadline = Instant::now() + BACK;
    loop {
        match rswarm(&["service", "ls", "--format", "{{.Name}}"]) {
            Ok(names) => return Ok(names),
            Err(error) if Instant::now() > deadline => return Err(error),
            Err(_) => std::thread::sleep(Duration::from_millis(100)),
        }
    }
}

/// What a command printed.
fn rswarm(words: &[&str]) -> Result<String, Box<dyn Error>> {
    let output = Command::new("rswarm").args(words).stdin(Stdio::null()).output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    if !output.status.success() {
        return Err(format!("`rswarm {}`: {}", words.join(" "), said.trim()).into());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
