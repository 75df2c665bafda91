//! `rswarm cp web.1:/etc/hosts .`, `rswarm cp site.tar web.1:/srv`, `rswarm cp web.1:/var/log - | tar t`

use super::{enter, input};
use crate::cli::context::Context;
use crate::cli::failure::{Failure, refused};
use crate::files::{self, Target};
use anyhow::{Context as _, Result, bail};
use rswarm_proto::v1 as pb;
use rswarm_proto::v1::enter_input::What as Input;
use rswarm_proto::v1::enter_open::Door;
use rswarm_proto::v1::enter_output::What as Output;
use std::ffi::OsString;
use std::io::{self, IsTerminal, Read, Write};
use std::path::{Path, PathBuf};
use tokio::sync::mpsc;
use tonic::Streaming;

/// How much is sent at once, in bytes.
const CHUNK: usize = 32 * 1024;
/// Pieces that wait for the disk.
const AHEAD: usize = 16;

/// Copy files between a task and this machine; `-` is a tar archive on standard input or output
#[derive(Debug, clap::Args)]
pub struct Cp {
    /// Keep owners, and rights that come with them
    #[arg(short, long)]
    archive: bool,
    /// Follow a symbolic link that is the source
    #[arg(short = 'L', long)]
    follow_link: bool,
    /// Say nothing of how much was copied
    #[arg(short, long)]
    quiet: bool,
    /// TASK:PATH, a path here, or -
    source: String,
    /// TASK:PATH, a path here, or -
    destination: String,
}

/// Where something is copied from or to.
#[derive(Debug, PartialEq, Eq)]
enum Place<'a> {
    Task(&'a str, &'a str),
    Here(&'a str),
    Stream,
}

fn place(text: &str) -> Place<'_> {
    match text.split_once(':') {
        _ if text == "-" => Place::Stream,
        // A path here that holds a colon is written with ./ before it.
        Some((task, path)) if !task.is_empty() && !task.contains('/') && !task.starts_with('.') => {
            Place::Task(task, path)
        }
        _ => Place::Here(text),
    }
}

/// What a path ends with `/.` for: what is in the directory, and not the directory.
fn is_contents(path: &str) -> bool {
    path == "." || path.ends_with("/.")
}

impl Cp {
    /// Carries the command out.
    ///
    /// # Errors
    /// If there is no such task or file, or something cannot be written.
    pub async fn run(self, cx: &mut Context) -> Result<()> {
        match (place(&self.source), place(&self.destination)) {
            (Place::Task(task, path), to @ (Place::Here(_) | Place::Stream)) => {
                let what = || format!("cannot copy {}", self.source);
                self.outward(cx, task, path, to).await.with_context(what)
            }
            (from @ (Place::Here(_) | Place::Stream), Place::Task(task, path)) => {
                let what = || format!("cannot copy to {}", self.destination);
                self.inward(cx, from, task, path).await.with_context(what)
            }
            (Place::Task(..), Place::Task(..)) => {
                let failure = Failure::usage("between two tasks nothing can be copied in one step");
                bail!(
                    failure.help("copy to this machine first, or pipe: rswarm cp A:/x - | rswarm cp - B:/y")
                )
            }
            _ => {
                let failure = Failure::usage("one of the two must be in a task");
                bail!(failure.help("write it TASK:PATH, for example web.1:/etc/hosts"))
            }
        }
    }

    async fn outward(&self, cx: &mut Context, task: &str, path: &str, to: Place<'_>) -> Result<()> {
        if to == Place::Stream && io::stdout().is_terminal() {
            bail!(Failure::usage("an archive is nothing to read: send it to a file or a pipe"));
        }
        let path = absolute(path);
        let follow = self.follow_link || is_contents(&path);
        let door = pb::CopyDoor { path: path.clone(), follow, ..Default::default() };
        let (_sender, output) = enter(&mut cx.client().await?, task, Door::Copy(door)).await?;
        let Place::Here(here) = to else {
            return receive(output, |bytes| Ok(cx.out.write_all(bytes)?)).await;
        };
        let (sender, receiver) = mpsc::channel::<io::Result<bytes::Bytes>>(AHEAD);
        let target = Target {
            name: Some(name_of(Path::new(&path))),
            contents: is_contents(&path),
            archive: self.archive,
        };
        let there = std::path::absolute(here).context("there is no current directory")?;
        let there = with_slash(there, here);
        let work = tokio::task::spawn_blocking(move || {
            let reader = Pieces { receiver, piece: bytes::Bytes::new() };
            files::unpack(&files::root()?, &there, &target, reader)
        });
        let mut copied = 0;
        let received = receive_into(output, &sender, &mut copied).await;
        drop(sender);
        let unpacked = work.await.context("the unpacking has panicked")?;
        received?;
        unpacked.with_context(|| here.to_owned())?;
        self.tell(cx, copied, &format!("to {here}"))
    }

    async fn inward(&self, cx: &mut Context, from: Place<'_>, task: &str, path: &str) -> Result<()> {
        let mut door =
            pb::CopyDoor { path: absolute(path), into: true, archive: self.archive, ..Default::default() };
        let here = match from {
            Place::Here(here) => {
                let source = std::path::absolute(here).context("there is no current directory")?;
                let name = name_of(&source);
                door.name = name.into_string().map_err(|name| anyhow::anyhow!("{name:?} is not UTF-8"))?;
                door.contents = is_contents(here);
                Some(source)
            }
            Place::Stream | Place::Task(..) => None,
        };
        let (sender, mut output) = enter(&mut cx.client().await?, task, Door::Copy(door)).await?;
        let follow = self.follow_link || here.as_ref().is_some_and(|_| is_contents(&self.source));
        let work = tokio::task::spawn_blocking(move || -> io::Result<u64> {
            let mut writer = Sent { sender, count: 0 };
            match here {
                Some(path) => {
                    let mut buffered = io::BufWriter::with_capacity(CHUNK, &mut writer);
                    files::pack(&files::root()?, &path, follow, &mut buffered)?;
                    buffered.flush()?;
                }
                None => {
                    io::copy(&mut io::stdin().lock(), &mut writer)?;
                }
            }
            writer.say(Input::End(true))?;
            Ok(writer.count)
        });
        let answered = receive(&mut output, |_| Ok(())).await;
        drop(output);
        let sent = work.await.context("the packing has panicked")?;
        match (answered, sent) {
            (Ok(()), Ok(count)) => self.tell(cx, count, &format!("to {task}:{path}")),
            // Whoever hangs up says why.
            (Err(error), Err(sent)) if sent.kind() == io::ErrorKind::BrokenPipe => Err(error),
            (_, Err(sent)) => Err(sent).with_context(|| self.source.clone()),
            (Err(error), Ok(_)) => Err(error),
        }
    }

    fn tell(&self, cx: &mut Context, bytes: u64, words: &str) -> Result<()> {
        if !self.quiet && io::stderr().is_terminal() {
            writeln!(cx.err, "copied {} {words}", crate::cli::output::units::memory(bytes))?;
        }
        Ok(())
    }
}

/// Paths in a task are meant from its root.
fn absolute(path: &str) -> String {
    if path.starts_with('/') { path.to_owned() } else { format!("/{path}") }
}

/// What a file is called; the root is not.
fn name_of(path: &Path) -> OsString {
    path.file_name().map_or_else(|| ".".into(), Into::into)
}

/// A path that ends with a slash is meant as a directory.
fn with_slash(path: PathBuf, written: &str) -> PathBuf {
    if !written.ends_with('/') || path == Path::new("/") {
        return path;
    }
    let mut text = path.into_os_string();
    text.push("/");
    text.into()
}

async fn receive(
    mut output: impl std::borrow::BorrowMut<Streaming<pb::EnterOutput>>,
    mut take: impl FnMut(&[u8]) -> Result<()>,
) -> Result<()> {
    let output = output.borrow_mut();
    while let Some(message) = output.message().await.map_err(|status| refused(&status))? {
        match message.what {
            Some(Output::Stdout(bytes)) => take(&bytes)?,
            Some(Output::ExitCode(_)) => return Ok(()),
            Some(Output::Failed(failed)) => bail!(Failure::failed(failed.words)),
            _ => {}
        }
    }
    bail!("the node hung up before all was copied")
}

async fn receive_into(
    mut output: Streaming<pb::EnterOutput>,
    sender: &mpsc::Sender<io::Result<bytes::Bytes>>,
    copied: &mut u64,
) -> Result<()> {
    let cut = || io::Error::new(io::ErrorKind::UnexpectedEof, "the archive is cut off");
    loop {
        let what = match output.message().await {
            Ok(Some(message)) => message.what,
            Ok(None) => {
                let _ = sender.send(Err(cut())).await;
                bail!("the node hung up before all was copied");
            }
            Err(status) => {
                let _ = sender.send(Err(cut())).await;
                return Err(refused(&status).into());
            }
        };
        match what {
            Some(Output::Stdout(bytes)) => {
                *copied += bytes.len() as u64;
                if sender.send(Ok(bytes)).await.is_err() {
                    // The unpacking says why.
                    return Ok(());
                }
            }
            Some(Output::ExitCode(_)) => return Ok(()),
            Some(Output::Failed(failed)) => {
                let _ = sender.send(Err(cut())).await;
                bail!(Failure::failed(failed.words));
            }
            _ => {}
        }
    }
}

/// Reads what is received.
struct Pieces {
    receiver: mpsc::Receiver<io::Result<bytes::Bytes>>,
    piece: bytes::Bytes,
}

impl Read for Pieces {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.piece.is_empty() {
            match self.receiver.blocking_recv() {
                Some(piece) => self.piece = piece?,
                None => return Ok(0),
            }
        }
        let count = buffer.len().min(self.piece.len());
        buffer[..count].copy_from_slice(&self.piece.split_to(count));
        Ok(count)
    }
}

/// Sends what is written.
struct Sent {
    sender: mpsc::Sender<pb::EnterInput>,
    count: u64,
}

impl Sent {
    fn say(&self, what: Input) -> io::Result<()> {
        self.sender.blocking_send(input(what)).map_err(|_| io::ErrorKind::BrokenPipe.into())
    }
}

impl Write for Sent {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = bytes.len().min(CHUNK);
        self.say(Input::Data(bytes::Bytes::copy_from_slice(&bytes[..count])))?;
        self.count += count as u64;
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_told_apart_as_in_docker() {
        assert_eq!(place("web.1:/etc/hosts"), Place::Task("web.1", "/etc/hosts"));
        assert_eq!(place("web.1:"), Place::Task("web.1", ""));
        assert_eq!(place("./a:b"), Place::Here("./a:b"));
        assert_eq!(place("/a:b"), Place::Here("/a:b"));
        assert_eq!(place("-"), Place::Stream);
        assert!(is_contents("web/.") && is_contents(".") && !is_contents("web/a."));
        assert_eq!(with_slash("/a/b".into(), "b/"), Path::new("/a/b/"));
    }
}
