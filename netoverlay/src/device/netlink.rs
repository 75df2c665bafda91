//! Netlink for the netfilter subsystems: writing messages, sending batches, reading dumps.
//!
//! Calls are short and block; the kernel works a batch off within `sendmsg`.

use std::{
    fmt, io, mem,
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
    sync::{Mutex, MutexGuard, PoisonError},
};

use super::{Error, Result, netns::Netns};

pub(super) const NLM_F_REQUEST: u16 = 1;
pub(super) const NLM_F_ACK: u16 = 4;
pub(super) const NLM_F_DUMP: u16 = 0x300;
pub(super) const NLM_F_CREATE: u16 = 0x400;
pub(super) const NLM_F_APPEND: u16 = 0x800;

const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NLM_F_ACK_TLVS: u16 = 0x200;
const NLMSGERR_ATTR_MSG: u16 = 1;
const NLA_F_NESTED: u16 = 0x8000;
const NLA_TYPE_MASK: u16 = 0x3fff;

const HEADER_LEN: usize = 16;
/// Room for whole-table transactions; the kernel accounts it only when used.
const BUFFER_LEN: libc::c_int = 32 << 20;
const READ_LEN: usize = 64 << 10;

/// The longest value of one attribute.
const ATTRIBUTE_LEN_MAX: usize = u16::MAX as usize - 4;

/// Writes netfilter messages one after the other.
#[derive(Default)]
pub(super) struct Writer {
    bytes: Vec<u8>,
    /// What each message is for, by sequence number.
    labels: Vec<String>,
}

impl Writer {
    /// Appends a message; `label` completes "cannot …" should the kernel refuse it.
    pub(super) fn message(
        &mut self,
        kind: u16,
        flags: u16,
        family: u8,
        resource: u16,
        label: impl fmt::Display,
        body: impl FnOnce(&mut Self),
    ) {
        let start = self.bytes.len();
        let sequence = self.labels.len() as u32;
        self.labels.push(label.to_string());
        self.bytes.extend_from_slice(&[0; 4]);
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.bytes.extend_from_slice(&(flags | NLM_F_REQUEST).to_ne_bytes());
        self.bytes.extend_from_slice(&sequence.to_ne_bytes());
        self.bytes.extend_from_slice(&[0; 4]);
        self.bytes.extend_from_slice(&[family, 0]);
        self.bytes.extend_from_slice(&resource.to_be_bytes());
        body(self);
        let len = (self.bytes.len() - start) as u32;
        self.bytes[start..start + 4].copy_from_slice(&len.to_ne_bytes());
    }

    pub(super) fn attribute(&mut self, kind: u16, value: &[u8]) {
        debug_assert!(value.len() <= ATTRIBUTE_LEN_MAX);
        self.bytes.extend_from_slice(&(value.len() as u16 + 4).to_ne_bytes());
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.bytes.extend_from_slice(value);
        self.align();
    }

    /// Appends attributes that are encoded already, such as the kernel's own.
    pub(super) fn raw(&mut self, attributes: &[u8]) {
        self.bytes.extend_from_slice(attributes);
        self.align();
    }

    pub(super) fn number(&mut self, kind: u16, value: u32) {
        self.attribute(kind, &value.to_be_bytes());
    }

    pub(super) fn text(&mut self, kind: u16, value: &str) {
        let mut bytes = value.as_bytes().to_vec();
        bytes.push(0);
        self.attribute(kind, &bytes);
    }

    pub(super) fn nest(&mut self, kind: u16, body: impl FnOnce(&mut Self)) {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(&[0; 2]);
        self.bytes.extend_from_slice(&(kind | NLA_F_NESTED).to_ne_bytes());
        body(self);
        let len = self.bytes.len() - start;
        debug_assert!(len <= ATTRIBUTE_LEN_MAX + 4);
        let len = len as u16;
        self.bytes[start..start + 2].copy_from_slice(&len.to_ne_bytes());
    }

    /// How many bytes are written so far.
    pub(super) fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Asks for an acknowledgement of the message that begins at byte `start`.
    pub(super) fn acknowledge(&mut self, start: usize) {
        let flags = u16::from_ne_bytes([self.bytes[start + 6], self.bytes[start + 7]]) | NLM_F_ACK;
        self.bytes[start + 6..start + 8].copy_from_slice(&flags.to_ne_bytes());
    }

    fn align(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

/// A netfilter netlink socket inside one namespace.
#[derive(Debug)]
pub(super) struct Socket {
    fd: OwnedFd,
    netns: Netns,
    /// Held from a request to its last answer.
    turn: Mutex<()>,
}

impl Socket {
    pub(super) fn open(netns: &Netns) -> Result<Self> {
        let fd = netns.run(open_socket)?;
        let fd = fd.map_err(|source| Error::new("open a netfilter netlink socket", netns, source))?;
        Ok(Self { fd, netns: netns.clone(), turn: Mutex::new(()) })
    }

    /// Sends all messages and reads the answers, which are there when the kernel returns from `send`.
    /// The first refusal is the error. At least one message must ask to be acknowledged.
    pub(super) fn transact(&self, messages: &Writer) -> Result<()> {
        let failed = |source| Error::new("talk to netfilter", &self.netns, source);
        let _turn = self.take_turn();
        self.send(&messages.bytes).map_err(failed)?;
        let mut acknowledged = false;
        let mut refused: Option<(u32, io::Error, String)> = None;
        let mut buffer = vec![0; READ_LEN];
        loop {
            let len = match self.receive(&mut buffer, libc::MSG_DONTWAIT) {
                Ok(len) => len,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => return Err(failed(error)),
            };
            for message in messages_of(&buffer[..len]) {
                if message.kind != NLMSG_ERROR {
                    continue;
                }
                match message.error() {
                    None => acknowledged = true,
                    Some((error, detail)) => {
                        if refused.as_ref().is_none_or(|(sequence, ..)| message.sequence < *sequence) {
                            refused = Some((message.sequence, error, detail));
                        }
                    }
                }
            }
        }
        match refused {
            None if acknowledged => Ok(()),
            None => Err(failed(io::Error::other("the kernel did not acknowledge the transaction"))),
            Some((sequence, source, detail)) => {
                let mut action = match messages.labels.get(sequence as usize) {
                    Some(label) => label.clone(),
                    None => "commit the transaction".to_owned(),
                };
                if !detail.is_empty() {
                    action = format!("{action} ({detail})");
                }
                Err(Error::new(action, &self.netns, source))
            }
        }
    }

    /// Sends one dump request and hands the attributes of each answer to `each`.
    pub(super) fn dump(&self, request: &Writer, mut each: impl FnMut(&[u8])) -> Result<()> {
        let action = request.labels.first().cloned().unwrap_or_default();
        let failed = |source| Error::new(action.clone(), &self.netns, source);
        let _turn = self.take_turn();
        self.send(&request.bytes).map_err(failed)?;
        let mut buffer = vec![0; READ_LEN];
        loop {
            let len = self.receive(&mut buffer, 0).map_err(failed)?;
            if len == 0 {
                return Err(failed(io::ErrorKind::UnexpectedEof.into()));
            }
            for message in messages_of(&buffer[..len]) {
                match message.kind {
                    NLMSG_DONE => return Ok(()),
                    NLMSG_ERROR => match message.error() {
                        Some((error, _)) => return Err(failed(error)),
                        None => return Ok(()),
                    },
                    _ => each(message.body.get(4..).unwrap_or_default()),
                }
            }
        }
    }

    /// Waits until the socket is free, and discards what an earlier failure may have left unread.
    fn take_turn(&self) -> MutexGuard<'_, ()> {
        let turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        let mut buffer = [0; 4096];
        while self.receive(&mut buffer, libc::MSG_DONTWAIT).is_ok() {}
        turn
    }

    fn send(&self, bytes: &[u8]) -> io::Result<()> {
        // SAFETY: the pointer and length are those of a live slice.
        let sent = unsafe { libc::send(self.fd.as_raw_fd(), bytes.as_ptr().cast(), bytes.len(), 0) };
        if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    fn receive(&self, buffer: &mut [u8], flags: libc::c_int) -> io::Result<usize> {
        // SAFETY: the kernel writes at most `buffer.len()` bytes into the buffer.
        let got = unsafe { libc::recv(self.fd.as_raw_fd(), buffer.as_mut_ptr().cast(), buffer.len(), flags) };
        if got < 0 { Err(io::Error::last_os_error()) } else { Ok(got as usize) }
    }
}

/// The attributes in `bytes`: kind without flags, and value. Stops at the first malformed one.
pub(super) fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let (header, _) = bytes.split_at_checked(4)?;
        let len = usize::from(u16::from_ne_bytes([header[0], header[1]]));
        let kind = u16::from_ne_bytes([header[2], header[3]]) & NLA_TYPE_MASK;
        let value = bytes.get(4..len)?;
        bytes = bytes.get(len.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    })
}

/// The value of the first attribute of that kind.
pub(super) fn attribute(bytes: &[u8], kind: u16) -> Option<&[u8]> {
    attributes(bytes).find(|(found, _)| *found == kind).map(|(_, value)| value)
}

/// A text attribute without its final zero byte.
pub(super) fn text(value: &[u8]) -> String {
    String::from_utf8_lossy(value.strip_suffix(&[0]).unwrap_or(value)).into_owned()
}

/// A big-endian number of four bytes; 0 if it is none.
pub(super) fn number(value: &[u8]) -> u32 {
    value.try_into().map(u32::from_be_bytes).unwrap_or_default()
}

struct Message<'a> {
    kind: u16,
    flags: u16,
    sequence: u32,
    body: &'a [u8],
}

impl Message<'_> {
    /// The error of an error message, with the kernel's own words; `None` if it is an acknowledgement.
    fn error(&self) -> Option<(io::Error, String)> {
        let code = self.body.get(..4).and_then(|code| code.try_into().ok()).map_or(0, i32::from_ne_bytes);
        if code == 0 {
            return None;
        }
        let mut detail = String::new();
        if self.flags & NLM_F_ACK_TLVS != 0 {
            let rest = self.body.get(4 + HEADER_LEN..).unwrap_or_default();
            detail = attribute(rest, NLMSGERR_ATTR_MSG).map(text).unwrap_or_default();
        }
        Some((io::Error::from_raw_os_error(code.wrapping_neg()), detail))
    }
}

fn messages_of(mut bytes: &[u8]) -> impl Iterator<Item = Message<'_>> {
    std::iter::from_fn(move || {
        let (header, _) = bytes.split_at_checked(HEADER_LEN)?;
        let len = u32::from_ne_bytes(header[..4].try_into().ok()?) as usize;
        let message = Message {
            kind: u16::from_ne_bytes(header[4..6].try_into().ok()?),
            flags: u16::from_ne_bytes(header[6..8].try_into().ok()?),
            sequence: u32::from_ne_bytes(header[8..12].try_into().ok()?),
            body: bytes.get(HEADER_LEN..len)?,
        };
        bytes = bytes.get(len.next_multiple_of(4)..).unwrap_or_default();
        Some(message)
    })
}

fn open_socket() -> io::Result<OwnedFd> {
    let kind = libc::SOCK_RAW | libc::SOCK_CLOEXEC;
    // SAFETY: plain system call; its result is checked before it is owned.
    let fd = unsafe { libc::socket(libc::AF_NETLINK, kind, libc::NETLINK_NETFILTER) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor is fresh and nobody else's.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    let timeout = libc::timeval { tv_sec: 5, tv_usec: 0 };
    option(&fd, libc::SOL_SOCKET, libc::SO_RCVTIMEO, &timeout)?;
    for (force, plain) in [(libc::SO_SNDBUFFORCE, libc::SO_SNDBUF), (libc::SO_RCVBUFFORCE, libc::SO_RCVBUF)] {
        // Without privilege over the machine the limit of the system applies.
        option(&fd, libc::SOL_SOCKET, force, &BUFFER_LEN)
            .or_else(|_| option(&fd, libc::SOL_SOCKET, plain, &BUFFER_LEN))?;
    }
    for name in [libc::NETLINK_EXT_ACK, libc::NETLINK_CAP_ACK] {
        option(&fd, libc::SOL_NETLINK, name, &1)?;
    }
    Ok(fd)
}

fn option<T>(fd: &OwnedFd, level: libc::c_int, name: libc::c_int, value: &T) -> io::Result<()> {
    // SAFETY: the pointer and length are those of `value`, a plain C value.
    let done = unsafe {
        let len = mem::size_of::<T>() as libc::socklen_t;
        libc::setsockopt(fd.as_raw_fd(), level, name, std::ptr::from_ref(value).cast(), len)
    };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_back() {
        let mut writer = Writer::default();
        writer.message(7, 0, 2, 10, "x", |w| {
            w.nest(1, |w| w.text(2, "abc"));
            w.number(3, 5);
        });
        let messages: Vec<_> = messages_of(&writer.bytes).collect();
        assert_eq!(messages.len(), 1);
        assert_eq!(messages[0].kind, 7);
        let body = &messages[0].body[4..];
        assert_eq!(text(attribute(attribute(body, 1).unwrap(), 2).unwrap()), "abc");
        assert_eq!(number(attribute(body, 3).unwrap()), 5);
    }

    proptest::proptest! {
        #[test]
        fn nonsense_is_survived(bytes: Vec<u8>) {
            for message in messages_of(&bytes) {
                let _ = message.error();
                for (_, value) in attributes(message.body) {
                    let _ = (text(value), number(value));
                }
            }
        }
    }
}
