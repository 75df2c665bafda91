//! The daemon's side of a shim: starting one from a sealed copy of its program, and talking to one on its socket.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rswarm_shim::protocol::{LINE_MAX, LOCK_FILE, Ready, Reply, Request, SHIM_LOG_FILE, SOCKET_FILE};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fs::{FlockOperation, MemfdFlags, SealFlags};
use tokio::io::AsyncWriteExt;
use tokio::net::UnixStream;

static PROGRAM: &[u8] = include_bytes!(env!("RSWARM_SHIM"));

/// How long a container may take to start. Only a broken file system takes this long.
const START_MAX: Duration = Duration::from_secs(60);

/// The shim's program in sealed memory: shared by all shims, and by no means writable through one of them.
pub(super) struct Program(OwnedFd);

impl Program {
    pub(super) fn seal() -> io::Result<Self> {
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        // Before Linux 6.3 memory files could be executed without saying so.
        let memory = rustix::fs::memfd_create("rswarm-shim", flags | MemfdFlags::EXEC)
            .or_else(|_| rustix::fs::memfd_create("rswarm-shim", flags))?;
        let mut rest = PROGRAM;
        while !rest.is_empty() {
            let written = rustix::io::write(&memory, rest)?;
            rest = &rest[written..];
        }
        rustix::fs::fcntl_add_seals(
            &memory,
            SealFlags::SEAL | SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE,
        )?;
        Ok(Self(memory))
    }

    /// Starts a shim and waits until its container runs or has failed to.
    pub(super) fn launch(&self, directory: &Path, run_directory: &Path) -> io::Result<Ready> {
        let Some(lock) = try_lock(run_directory)? else {
            return Err(io::Error::other("a shim of this container runs already"));
        };
        let words = OpenOptions::new().create(true).append(true).open(directory.join(SHIM_LOG_FILE))?;
        let mut command = Command::new(format!("/proc/self/fd/{}", self.0.as_raw_fd()));
        command.arg(directory).arg(run_directory).env_clear().current_dir("/");
        // The lock travels as standard input: it is held for exactly as long as the shim lives.
        command.stdin(Stdio::from(lock)).stdout(Stdio::piped()).stderr(Stdio::from(words));
        let mut child = command.spawn()?;
        let mut stdout = child.stdout.take().ok_or_else(|| io::Error::other("the shim has no output"))?;
        // The shim leaves its parent at once, so this does not wait for the container.
        child.wait()?;
        let line = read_line(&mut stdout, Instant::now() + START_MAX)?;
        serde_json::from_slice(&line).map_err(|_| {
            let words = fs::read_to_string(directory.join(SHIM_LOG_FILE)).unwrap_or_default();
            io::Error::other(format!("the shim ended without a word {}", words.trim()))
        })
    }
}

/// What comes before a newline or the end.
fn read_line(pipe: &mut (impl Read + AsFd), deadline: Instant) -> io::Result<Vec<u8>> {
    let mut line = Vec::new();
    let mut buffer = [0; 4096];
    while !line.ends_with(b"\n") && line.len() <= LINE_MAX {
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = Timespec::try_from(left).map_err(io::Error::other)?;
        let mut watched = [PollFd::new(&*pipe, PollFlags::IN)];
        if rustix::event::poll(&mut watched, Some(&timeout))? == 0 {
            return Err(io::Error::new(io::ErrorKind::TimedOut, "the container did not start in time"));
        }
        match pipe.read(&mut buffer)? {
            0 => break,
            count => line.extend_from_slice(&buffer[..count]),
        }
    }
    Ok(line)
}

/// Takes the lock a shim holds while it lives. None: it lives.
pub(super) fn try_lock(run_directory: &Path) -> io::Result<Option<File>> {
    let path = run_directory.join(LOCK_FILE);
    let file = OpenOptions::new().create(true).truncate(false).read(true).write(true).open(path)?;
    match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(Some(file)),
        Err(error) if error == rustix::io::Errno::WOULDBLOCK => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// A conversation with a shim.
pub(super) struct Client {
    stream: UnixStream,
    /// Heard, but not yet a whole line.
    heard: Vec<u8>,
    descriptor: Option<OwnedFd>,
}

impl Client {
    pub(super) async fn connect(run_directory: &Path) -> io::Result<Self> {
        // The path may be longer than a socket's address; one that begins with a descriptor is not.
        let directory = File::open(run_directory)?;
        let path = format!("/proc/self/fd/{}/{SOCKET_FILE}", directory.as_raw_fd());
        let stream = UnixStream::connect(path).await?;
        Ok(Self { stream, heard: Vec::new(), descriptor: None })
    }

    pub(super) async fn send(&mut self, request: &Request) -> io::Result<()> {
        let line = encode(request)?;
        self.stream.write_all(&line).await
    }

    /// Sends a request together with descriptors, at most three.
    pub(super) async fn send_with(&mut self, request: &Request, fds: &[OwnedFd]) -> io::Result<()> {
        use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
        let line = encode(request)?;
        let borrowed: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
        let stream = &self.stream;
        let sent = stream
            .async_io(tokio::io::Interest::WRITABLE, || {
                let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(3))];
                let mut control = SendAncillaryBuffer::new(&mut space);
                if !borrowed.is_empty() {
                    control.push(SendAncillaryMessage::ScmRights(&borrowed));
                }
                let parts = [io::IoSlice::new(&line)];
                Ok(sendmsg(stream, &parts, &mut control, SendFlags::NOSIGNAL)?)
            })
            .await?;
        self.stream.write_all(&line[sent..]).await
    }

    /// The next line. What has been heard is not lost if the future is dropped.
    pub(super) async fn receive(&mut self) -> io::Result<Reply> {
        loop {
            if let Some(end) = self.heard.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.heard.drain(..=end).collect();
                return serde_json::from_slice(&line).map_err(io::Error::other);
            }
            if self.heard.len() > LINE_MAX {
                return Err(io::Error::new(io::ErrorKind::InvalidData, "the shim's answer is too long"));
            }
            let mut buffer = [0; 4096];
            let stream = &self.stream;
            let hear = || receive(stream.as_fd(), &mut buffer);
            let (count, descriptor) = stream.async_io(tokio::io::Interest::READABLE, hear).await?;
            if count == 0 {
                return Err(io::Error::new(
                    io::ErrorKind::UnexpectedEof,
                    "the shim has closed the connection",
                ));
            }
            self.heard.extend_from_slice(&buffer[..count]);
            self.descriptor = descriptor.or(self.descriptor.take());
        }
    }

    /// The descriptor that came along with what was received last, if one did.
    pub(super) fn take_descriptor(&mut self) -> Option<OwnedFd> {
        self.descriptor.take()
    }

    pub(super) async fn ask(&mut self, request: &Request) -> io::Result<Reply> {
        self.send(request).await?;
        self.receive().await
    }
}

/// Bytes, and the descriptor that came with them.
fn receive(stream: BorrowedFd<'_>, buffer: &mut [u8]) -> io::Result<(usize, Option<OwnedFd>)> {
    use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT;
    let count = recvmsg(stream, &mut [io::IoSliceMut::new(buffer)], &mut control, flags)?.bytes;
    let descriptor = control.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut descriptors) => descriptors.next(),
        _ => None,
    });
    Ok((count, descriptor))
}

fn encode(request: &Request) -> io::Result<Vec<u8>> {
    let mut line = serde_json::to_vec(request)?;
    line.push(b'\n');
    if line.len() > LINE_MAX {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "the request is longer than 64 KiB"));
    }
    Ok(line)
}
