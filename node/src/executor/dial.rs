//! Connections to a container's own ports, made inside its network namespace.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::{fs, thread};

use rswarm_shim::protocol::Running;
use rustix::net::{AddressFamily, SocketFlags, SocketType};
use tokio::net::{TcpSocket, TcpStream};

use super::{blocking, entry};

/// Connects to what listens on `port` inside the container, on its loopback device.
pub(super) async fn connect(running: &Running, port: u16) -> io::Result<TcpStream> {
    let running = running.clone();
    let (old, new) = blocking(move || sockets_inside(&running)).await?;
    let v4 = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port);
    let refused = match over(old, v4).await {
        Ok(stream) => return Ok(stream),
        Err(error) => error,
    };
    let Some(socket) = new else { return Err(refused) };
    // The first answer is the one to tell: hardly anything listens on the newer protocol alone.
    over(socket, SocketAddr::new(IpAddr::V6(Ipv6Addr::LOCALHOST), port)).await.map_err(|_| refused)
}

async fn over(socket: OwnedFd, to: SocketAddr) -> io::Result<TcpStream> {
    TcpSocket::from_std_stream(socket.into()).connect(to).await
}

/// A socket of either protocol, if there is the newer one. A socket belongs to the namespace it was made in, so only
/// a thread that ends at once ever enters that.
fn sockets_inside(running: &Running) -> io::Result<(OwnedFd, Option<OwnedFd>)> {
    let namespace = fs::File::open(format!("/proc/{}/ns/net", running.pid))?;
    if entry::start_ticks(running.pid) != Some(running.start_ticks) {
        // The number had been given to another process.
        return Err(io::Error::new(io::ErrorKind::NotFound, "the container has ended"));
    }
    let visit = thread::Builder::new().name("netns".into()).spawn(move || {
        let kind = Some(rustix::thread::LinkNameSpaceType::Network);
        rustix::thread::move_into_link_name_space(std::os::fd::AsFd::as_fd(&namespace), kind)?;
        let socket = |family| {
            let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
            rustix::net::socket_with(family, SocketType::STREAM, flags, None)
        };
        Ok((socket(AddressFamily::INET)?, socket(AddressFamily::INET6).ok()))
    })?;
    visit.join().map_err(|_| io::Error::other("the thread that enters the container has panicked"))?
}
