//! Those who listen to what a container writes while it writes it. None of them can hold it up: who is too slow is let
//! go.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};

use crate::log::Stream;
use crate::sys;

/// One listener.
pub struct Attachment {
    client: RawFd,
    /// For standard output and standard error.
    sinks: [Option<OwnedFd>; 2],
    lags: bool,
}

impl Attachment {
    /// A listener with one or two descriptors.
    pub fn new(client: RawFd, fds: Vec<OwnedFd>) -> io::Result<Self> {
        let mut fds = fds.into_iter();
        let mut sinks = [None, None];
        for sink in &mut sinks {
            let Some(fd) = fds.next() else { break };
            sys::set_nonblocking(&fd)?;
            *sink = Some(fd);
        }
        Ok(Self { client, sinks, lags: false })
    }

    pub fn client(&self) -> RawFd {
        self.client
    }

    fn write(&mut self, stream: Stream, bytes: &[u8]) {
        let sink = &mut self.sinks[stream as usize];
        let Some(fd) = sink else { return };
        // SAFETY: pointer and length of a live buffer.
        let count = unsafe { libc::write(fd.as_raw_fd(), bytes.as_ptr().cast(), bytes.len()) };
        if usize::try_from(count) == Ok(bytes.len()) {
            return;
        }
        let closed = count < 0 && io::Error::last_os_error().raw_os_error() == Some(libc::EPIPE);
        *sink = None;
        self.lags |= !closed;
    }
}

/// Passes on what the container wrote.
pub fn pass_on(attachments: &mut [Attachment], stream: Stream, bytes: &[u8]) {
    for attachment in attachments {
        attachment.write(stream, bytes);
    }
}

/// Lets those go who were too slow, and says who they are.
pub fn lagging(attachments: &mut Vec<Attachment>) -> Vec<RawFd> {
    let gone = attachments.iter().filter(|attachment| attachment.lags).map(Attachment::client).collect();
    attachments.retain(|attachment| !attachment.lags);
    gone
}
