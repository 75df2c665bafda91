//! Connections that the kernel has taken for a program and the program not yet from the kernel. A program that is
//! asked to end closes its listener first of all, and these would be reset, although they came while it was still
//! offered to clients: so it is asked when there are none.

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Read};
use std::time::Duration;

/// How long a program may take to accept what has come. One that has stopped accepting is stopped all the same.
const PATIENCE: Duration = Duration::from_secs(1);
/// Packets that were sent before the last node had stopped sending may be under way for so long.
const UNDER_WAY: Duration = Duration::from_millis(100);
/// Between two looks: the kernel tells nobody when a connection is accepted.
const LOOK: Duration = Duration::from_millis(5);
/// What is read of a kernel's list, in which listeners come first.
const LIST_BYTES_MAX: u64 = 1 << 20;

const SYN_RECEIVED: &str = "03";
const LISTENING: &str = "0A";

/// Waits until the programs in the network of process `pid` have accepted all connections that are under way, but not
/// for long. Does not wait for those in the machine's own network, which are everybody's.
pub async fn accepted(pid: i32) {
    let wait = async {
        tokio::time::sleep(UNDER_WAY).await;
        while tokio::task::spawn_blocking(move || waits(pid)).await.is_ok_and(|waits| waits.unwrap_or(false))
        {
            tokio::time::sleep(LOOK).await;
        }
    };
    if tokio::time::timeout(PATIENCE, wait).await.is_err() {
        tracing::debug!(pid, "connections wait that it does not accept; it is asked to end all the same");
    }
}

fn waits(pid: i32) -> io::Result<bool> {
    let network = |process: &str| fs::read_link(format!("/proc/{process}/ns/net"));
    if network(&pid.to_string())? == network("self")? {
        return Ok(false);
    }
    for list in ["tcp", "tcp6"] {
        let file = match File::open(format!("/proc/{pid}/net/{list}")) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(error),
        };
        for line in BufReader::new(file.take(LIST_BYTES_MAX)).lines() {
            if is_waiting(&line?) {
                return Ok(true);
            }
        }
    }
    Ok(false)
}

/// Whether a line of the kernel's list (`Documentation/networking/proc_net_tcp.rst`) is a connection that is being
/// made, or a listener with some that are made. Of a listener, the receive queue is how many these are.
fn is_waiting(line: &str) -> bool {
    let mut fields = line.split_whitespace().skip(3);
    match (fields.next(), fields.next()) {
        (Some(SYN_RECEIVED), _) => true,
        (Some(LISTENING), Some(queues)) => {
            queues.split_once(':').is_some_and(|(_, queue)| queue.bytes().any(|digit| digit != b'0'))
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sched::{CloneFlags, unshare};
    use std::net::{TcpListener, TcpStream};
    use std::sync::mpsc;
    use std::time::Instant;

    #[test]
    fn listeners_with_a_queue_and_half_open_connections_wait() {
        for (line, waiting) in [
            ("  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt", false),
            ("   0: 00000000:0050 00000000:0000 0A 00000000:00000000 00:00000000 00000000 0", false),
            ("   0: 00000000:0050 00000000:0000 0A 00000000:00000002 00:00000000 00000000 0", true),
            ("   1: 0203000A:0050 0303000A:A3F2 03 00000000:00000000 01:00000062 00000000 0", true),
            ("   2: 0203000A:0050 0303000A:A3F4 01 00000000:00000017 00:00000000 00000000 0", false),
            ("   3: 0A", false),
            ("", false),
        ] {
            assert_eq!(is_waiting(line), waiting, "{line}");
        }
    }

    #[tokio::test]
    async fn a_program_is_waited_for_until_it_has_accepted_and_no_longer_than_a_second() {
        if !nix::unistd::geteuid().is_root() {
            eprintln!("skipped: network namespaces need root");
            return;
        }
        let (accept, asked) = mpsc::channel::<()>();
        let (ready, thread) = tokio::sync::oneshot::channel();
        let program = std::thread::spawn(move || {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                use rswarm_netoverlay::device::{link::Links, netns::Netns};
                Links::open(&Netns::current().unwrap()).unwrap().set_up("lo").await.unwrap();
            });
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            ready.send(nix::unistd::gettid().as_raw()).unwrap();
            asked.recv().unwrap();
            let (server, _) = listener.accept().unwrap();
            asked.recv().unwrap();
            drop((client, server));
        });
        let thread = thread.await.unwrap();
        assert!(waits(thread).unwrap());
        let began = Instant::now();
        accepted(thread).await;
        assert!(began.elapsed() >= PATIENCE);
        accept.send(()).unwrap();
        accepted(thread).await;
        assert!(!waits(thread).unwrap(), "all have been accepted");
        assert!(!waits(std::process::id() as i32).unwrap(), "the machine's own network is not waited for");
        accept.send(()).unwrap();
        program.join().unwrap();
    }
}
