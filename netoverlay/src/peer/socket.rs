//! The overlay's UDP socket: many segments per system call in both directions (UDP_SEGMENT, UDP_GRO).

use std::{
    io, mem,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6, UdpSocket},
    os::fd::{AsFd, AsRawFd, BorrowedFd},
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use bytes::BytesMut;
use rustix::event::{PollFd, PollFlags, Timespec};
use socket2::{Domain, Socket, Type};

/// Wanted size of the kernel's buffers, in bytes: bursts of many peers come at once.
const BUFFER: libc::c_int = 8 << 20;
/// How long one send may wait for room in the socket's buffer.
const SEND_PATIENCE: Duration = Duration::from_millis(5);
/// Largest UDP payload, in bytes.
pub const DATAGRAM_MAX: usize = 65507;
/// Reads up to this length are copied, in bytes: what they carry may be kept for long, and must not keep the whole
/// buffer they were read into.
const SHORT: usize = 4096;
/// Room for the control messages of one call, in words of 8 bytes.
const CONTROL: usize = 8;

/// A non-blocking UDP socket with segmentation offload.
#[derive(Debug)]
pub struct Udp {
    socket: UdpSocket,
    /// Cleared when the kernel or the device refuses to segment.
    segments: AtomicBool,
}

/// What one read brought: datagrams of `segment` bytes from one sender, the last one may be shorter.
#[derive(Debug, Clone, Copy)]
pub struct Received {
    /// Bytes in the buffer.
    pub length: usize,
    /// Length of each datagram, in bytes; at least 1.
    pub segment: usize,
    /// The sender.
    pub from: SocketAddr,
}

impl Udp {
    /// Binds `address` in the calling thread's network namespace.
    pub fn bind(address: SocketAddr) -> io::Result<Self> {
        let socket = Socket::new(Domain::for_address(address), Type::DGRAM, None)?;
        for (forced, plain) in
            [(libc::SO_RCVBUFFORCE, libc::SO_RCVBUF), (libc::SO_SNDBUFFORCE, libc::SO_SNDBUF)]
        {
            if set(&socket, libc::SOL_SOCKET, forced, BUFFER).is_err() {
                // Without CAP_NET_ADMIN the kernel grants what its limit allows.
                set(&socket, libc::SOL_SOCKET, plain, BUFFER)?;
            }
        }
        // The path's size is probed by QUIC; the kernel must neither fragment nor believe a forged report.
        if address.is_ipv4() {
            set(&socket, libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, libc::IP_PMTUDISC_PROBE)?;
        } else {
            set(&socket, libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER, libc::IPV6_PMTUDISC_PROBE)?;
        }
        // Kernels before 5.0 have neither offload; then each datagram takes its own call.
        let _ = set(&socket, libc::SOL_UDP, libc::UDP_GRO, 1);
        let segments = set(&socket, libc::SOL_UDP, libc::UDP_SEGMENT, 0).is_ok();
        socket.set_nonblocking(true)?;
        socket.bind(&address.into())?;
        Ok(Self { socket: socket.into(), segments: AtomicBool::new(segments) })
    }

    /// The address it is bound to.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.socket.local_addr()
    }

    /// Sends `bytes` as datagrams of `segment` bytes. What the network does not take is lost, as datagrams are.
    pub fn send(&self, to: SocketAddr, bytes: &[u8], segment: usize) {
        if bytes.len() > segment && self.segments.load(Ordering::Relaxed) {
            match self.send_patiently(to, bytes, Some(segment)) {
                // The device cannot: for good. Refused for another reason, which may pass: one by one this time.
                Err(error) if error.raw_os_error() == Some(libc::EIO) => {
                    self.segments.store(false, Ordering::Relaxed);
                }
                Err(error) if matches!(error.raw_os_error(), Some(libc::EINVAL | libc::EMSGSIZE)) => {}
                _ => return,
            }
        }
        for datagram in bytes.chunks(segment.max(1)) {
            if let Err(error) = self.send_patiently(to, datagram, None) {
                tracing::trace!(%to, %error, "datagram not sent");
            }
        }
    }

    fn send_patiently(&self, to: SocketAddr, bytes: &[u8], segment: Option<usize>) -> io::Result<()> {
        match self.send_once(to, bytes, segment) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                let patience = Timespec {
                    tv_sec: 0,
                    tv_nsec: i64::try_from(SEND_PATIENCE.as_nanos()).expect("milliseconds fit"),
                };
                let mut fds = [PollFd::new(&self.socket, PollFlags::OUT)];
                rustix::event::poll(&mut fds, Some(&patience))?;
                self.send_once(to, bytes, segment)
            }
            result => result,
        }
    }

    fn send_once(&self, to: SocketAddr, bytes: &[u8], segment: Option<usize>) -> io::Result<()> {
        let to = socket2::SockAddr::from(to);
        let mut iov = libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
        let mut control = [0u64; CONTROL];
        // SAFETY: all-zero is a valid msghdr.
        let mut message: libc::msghdr = unsafe { mem::zeroed() };
        message.msg_name = to.as_ptr().cast_mut().cast();
        message.msg_namelen = to.len();
        message.msg_iov = &raw mut iov;
        message.msg_iovlen = 1;
        if let Some(segment) = segment {
            let segment = u16::try_from(segment).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))?;
            message.msg_control = control.as_mut_ptr().cast();
            // SAFETY: these compute sizes; the header and two bytes of data fit into `control`, which is aligned.
            unsafe {
                message.msg_controllen = libc::CMSG_SPACE(2) as usize;
                let header = libc::CMSG_FIRSTHDR(&raw const message);
                (*header).cmsg_level = libc::SOL_UDP;
                (*header).cmsg_type = libc::UDP_SEGMENT;
                (*header).cmsg_len = libc::CMSG_LEN(2) as usize;
                libc::CMSG_DATA(header).cast::<u16>().write_unaligned(segment);
            }
        }
        // SAFETY: every pointer in `message` lives until the call returns, and the call only reads through them.
        let sent = unsafe { libc::sendmsg(self.socket.as_raw_fd(), &raw const message, libc::MSG_NOSIGNAL) };
        if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    /// Reads what has come in at once from one sender; `None` when nothing waits. `buffer` is room that is used again
    /// as soon as nothing read into it is alive.
    pub fn receive_into(&self, buffer: &mut BytesMut) -> Option<(BytesMut, Received)> {
        buffer.clear();
        buffer.reserve(DATAGRAM_MAX);
        loop {
            match self.receive_once(buffer.spare_capacity_mut()) {
                Ok(None) => {}
                Ok(Some(received)) => {
                    // SAFETY: the kernel has just written so many bytes to the spare capacity.
                    unsafe { buffer.set_len(received.length) };
                    let read =
                        if received.length <= SHORT { BytesMut::from(&buffer[..]) } else { buffer.split() };
                    return Some((read, received));
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return None,
                Err(error) => {
                    tracing::trace!(%error, "cannot read from the overlay's socket");
                    return None;
                }
            }
        }
    }

    fn receive_once(&self, buffer: &mut [mem::MaybeUninit<u8>]) -> io::Result<Option<Received>> {
        let mut iov = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
        let mut control = [0u64; CONTROL];
        // SAFETY: all-zero is valid for both.
        let (mut message, mut from): (libc::msghdr, libc::sockaddr_storage) = unsafe { mem::zeroed() };
        message.msg_name = (&raw mut from).cast();
        message.msg_namelen = mem::size_of::<libc::sockaddr_storage>() as libc::socklen_t;
        message.msg_iov = &raw mut iov;
        message.msg_iovlen = 1;
        message.msg_control = control.as_mut_ptr().cast();
        message.msg_controllen = mem::size_of_val(&control);
        // SAFETY: every pointer in `message` lives until the call returns and its length is the buffer's.
        let length = unsafe { libc::recvmsg(self.socket.as_raw_fd(), &raw mut message, 0) };
        let length = usize::try_from(length).map_err(|_| io::Error::last_os_error())?;
        let mut segment = length;
        // SAFETY: the kernel has filled in `msg_controllen` bytes of well-formed headers, which these macros walk.
        unsafe {
            let mut header = libc::CMSG_FIRSTHDR(&raw const message);
            while !header.is_null() {
                if (*header).cmsg_level == libc::SOL_UDP && (*header).cmsg_type == libc::UDP_GRO {
                    let size = libc::CMSG_DATA(header).cast::<libc::c_int>().read_unaligned();
                    segment = usize::try_from(size).unwrap_or(length);
                }
                header = libc::CMSG_NXTHDR(&raw const message, header);
            }
        }
        let Some(from) = address(&from) else { return Ok(None) };
        Ok(Some(Received { length, segment: segment.clamp(1, length.max(1)), from }))
    }
}

impl AsFd for Udp {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

fn set(socket: &Socket, level: libc::c_int, option: libc::c_int, value: libc::c_int) -> io::Result<()> {
    // SAFETY: the pointer and length describe `value`.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            level,
            option,
            (&raw const value).cast(),
            mem::size_of_val(&value) as libc::socklen_t,
        )
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn address(from: &libc::sockaddr_storage) -> Option<SocketAddr> {
    match libc::c_int::from(from.ss_family) {
        libc::AF_INET => {
            // SAFETY: the family says which type the storage holds, and the storage is large enough for all.
            let from: &libc::sockaddr_in = unsafe { &*(&raw const *from).cast() };
            let ip = Ipv4Addr::from(u32::from_be(from.sin_addr.s_addr));
            Some(SocketAddrV4::new(ip, u16::from_be(from.sin_port)).into())
        }
        libc::AF_INET6 => {
            // SAFETY: as above.
            let from: &libc::sockaddr_in6 = unsafe { &*(&raw const *from).cast() };
            let ip = Ipv6Addr::from(from.sin6_addr.s6_addr);
            Some(
                SocketAddrV6::new(ip, u16::from_be(from.sin6_port), from.sin6_flowinfo, from.sin6_scope_id)
                    .into(),
            )
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wait(socket: &Udp) {
        let timeout = Timespec { tv_sec: 5, tv_nsec: 0 };
        let mut fds = [PollFd::new(socket, PollFlags::IN)];
        assert_eq!(rustix::event::poll(&mut fds, Some(&timeout)).unwrap(), 1);
    }

    #[test]
    fn segments_arrive_whole_and_in_order() {
        let here: SocketAddr = "127.0.0.1:0".parse().unwrap();
        let (a, b) = (Udp::bind(here).unwrap(), Udp::bind(here).unwrap());
        let sent: Vec<u8> = (0..10_500u32).map(|at| (at % 251) as u8).collect();
        a.send(b.local_addr().unwrap(), &sent, 1000);
        let mut got = vec![];
        let mut buffer = BytesMut::new();
        while got.len() < sent.len() {
            wait(&b);
            while let Some((read, received)) = b.receive_into(&mut buffer) {
                assert_eq!(received.from, a.local_addr().unwrap());
                assert!(received.segment == 1000 || received.length == 500);
                got.extend_from_slice(&read);
            }
        }
        assert_eq!(got, sent);
    }
}
