//! What this program does as a container's program.

mod looks;
mod prober;

use super::bench::{monotonic_ns, until};
use nix::libc;
use std::fs::{self, File};
use std::io::{BufRead, Write};
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};

pub fn main(args: &[String]) -> ExitCode {
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    match words[..] {
        ["exit", code] => return ExitCode::from(code.parse::<u8>().unwrap()),
        ["hang"] => loop {
            std::thread::park();
        },
        ["clock"] => println!("{}", monotonic_ns()),
        ["obey"] => return obey(),
        ["speak"] => speak(),
        ["count", last] => (0..last.parse().unwrap()).for_each(|number: usize| println!("{number}")),
        ["wait-for", path] => {
            until("the file is there", || Path::new(path).exists());
            return ExitCode::from(3);
        }
        ["eat", mebibytes] => drop(eat(mebibytes.parse().unwrap())),
        ["threads", count] => threads(count.parse().unwrap()),
        ["burn"] => loop {
            std::hint::spin_loop();
        },
        ["stop-others"] => stop_others(),
        ["owners", number] => looks::owners(number),
        ["grasp"] => looks::grasp(),
        ["probe"] => prober::probe(),
        ["profile"] => looks::profile(),
        ["calls"] => looks::calls(),
        ["who"] => looks::who(),
        ["mounts"] => looks::mounts(),
        ["device"] => looks::device(),
        ["limit", path] => looks::limit(Path::new(path)),
        ["write", path] => {
            File::create_new(path).unwrap();
        }
        ["names"] => looks::names(),
        ["abort"] => {
            // A core is no file anybody wants here.
            nix::sys::resource::setrlimit(nix::sys::resource::Resource::RLIMIT_CORE, 0, 0).unwrap();
            // As process 1 it would be spared by the default action, but not by its own hand.
            std::process::abort()
        }
        ["options"] => looks::options(),
        ["open", ref paths @ ..] => paths.iter().for_each(|path| looks::open(path)),
        ["orphans"] => return orphans(),
        ["echo"] => return echo(),
        ["gated", gate, "count", last] => {
            until("the gate is open", || Path::new(gate).exists());
            (0..last.parse().unwrap()).for_each(|number: usize| println!("{number}"));
        }
        ["count-and-hang", last] => {
            (0..last.parse().unwrap()).for_each(|number: usize| println!("{number}"));
            loop {
                std::thread::park();
            }
        }
        ["write-and-wait", ref paths @ ..] => {
            paths.iter().for_each(|path| fs::write(path, "from inside").unwrap());
            println!("written");
            loop {
                std::thread::park();
            }
        }
        ["eat-and-wait", mebibytes] => {
            let memory = eat(mebibytes.parse().unwrap());
            println!("eaten");
            loop {
                std::thread::park();
                std::hint::black_box(&memory);
            }
        }
        ["terminal"] => looks::terminal(),
        ["brood", then] => brood(then),
        ["serve"] => serve(),
        ["network"] => println!("{}", fs::read_link("/proc/self/ns/net").unwrap().display()),
        _ => panic!("{words:?} is nothing to do"),
    }
    ExitCode::SUCCESS
}

/// Holds still whatever else there is, as soon as it is there.
fn stop_others() {
    println!("ready");
    loop {
        // SAFETY: a plain signal, to all that this process may signal but itself.
        unsafe { libc::kill(-1, libc::SIGSTOP) };
    }
}

fn obey() -> ExitCode {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let mut signals = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate()).unwrap();
        println!("ready");
        signals.recv().await;
    });
    ExitCode::from(7)
}

fn speak() {
    println!("one");
    eprintln!("wrong");
    println!("two");
    println!("{}", "x".repeat(40_000));
    print!("no newline");
    std::io::stdout().flush().unwrap();
}

/// Starts a child in a session of its own, and then hangs or leaves it alone.
#[allow(clippy::zombie_processes, reason = "a bad program leaves its children alone")]
fn brood(then: &str) {
    use std::os::unix::process::CommandExt;
    let mut child = Command::new("/bin/inside");
    child.args(["inside", "hang"]).arg0("brood");
    // SAFETY: a system call that allocates nothing.
    unsafe { child.pre_exec(|| Ok(nix::unistd::setsid().map(drop)?)) };
    child.spawn().unwrap();
    println!("hatched");
    if then == "hang" {
        loop {
            std::thread::park();
        }
    }
}

/// Answers HTTP on port 80 of the loopback device, a connection at a time but for those it leaves hanging.
fn serve() {
    // SAFETY: an all-zero request is valid, and outlives the call.
    unsafe {
        let socket = libc::socket(libc::AF_INET, libc::SOCK_DGRAM, 0);
        let mut request: libc::ifreq = std::mem::zeroed();
        request.ifr_name[0] = b'l' as libc::c_char;
        request.ifr_name[1] = b'o' as libc::c_char;
        request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as i16;
        assert_eq!(libc::ioctl(socket, libc::SIOCSIFFLAGS, &raw const request), 0);
    }
    let listener = std::net::TcpListener::bind("127.0.0.1:80").unwrap();
    println!("serving");
    let mut hanging = Vec::new();
    for stream in listener.incoming() {
        let mut stream = stream.unwrap();
        let mut line = String::new();
        std::io::BufReader::new(&stream).read_line(&mut line).unwrap();
        let asked = line.trim_end().trim_end_matches(" HTTP/1.1");
        let answer = match asked.rsplit('/').next().unwrap() {
            "broken" => "HTTP/1.1 500 Oh\r\ncontent-length: 0\r\n\r\n".to_owned(),
            "moved" => "HTTP/1.1 302 There\r\ncontent-length: 0\r\n\r\n".to_owned(),
            "nonsense" => "what?\r\n\r\n".to_owned(),
            "hang" => {
                hanging.push(stream);
                continue;
            }
            _ => format!("HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n{asked}"),
        };
        // A probe of the port alone has left already.
        let _ = stream.write_all(answer.as_bytes());
    }
}

fn eat(mebibytes: usize) -> Vec<u8> {
    let mut memory = vec![0_u8; mebibytes << 20];
    memory.iter_mut().step_by(4096).for_each(|byte| *byte = 1);
    std::hint::black_box(&memory);
    memory
}

/// Leaves a child without its parent, and says what becomes of it. Ends with 7 when it is told to.
fn orphans() -> ExitCode {
    let mut child = Command::new("/bin/inside");
    // What hatches outlives it, and is process 1's.
    child.args(["inside", "brood", "leave"]).stdout(Stdio::null());
    assert!(child.status().unwrap().success());
    let parent = fs::read_to_string("/proc/1/comm").unwrap();
    let processes = || {
        let entries = fs::read_dir("/proc").unwrap().filter_map(|entry| {
            let name = entry.ok()?.file_name().into_string().ok()?;
            name.parse::<i32>().ok()
        });
        entries.collect::<Vec<_>>()
    };
    let own = [1, std::process::id() as i32];
    for pid in processes().into_iter().filter(|pid| !own.contains(pid)) {
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL).unwrap();
    }
    until("the orphan is gone", || processes().into_iter().all(|pid| own.contains(&pid)));
    assert_eq!(std::os::unix::process::parent_id(), 1);
    println!("my parent is {}, none is dead", parent.trim());
    obey()
}

fn echo() -> ExitCode {
    println!("ready");
    for line in std::io::stdin().lines() {
        println!("got {}", line.unwrap());
    }
    println!("end");
    ExitCode::from(5)
}

fn threads(count: usize) {
    let begin = |_| std::thread::Builder::new().stack_size(65_536).spawn(std::thread::park).is_ok();
    println!("{}", (0..count).map(begin).filter(|begun| *begun).count());
}
