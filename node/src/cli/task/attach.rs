//! `rswarm attach web.1`

use super::exec::{Raw, resize, window};
use super::input::{Room, feed};
use super::{enter, input, show};
use crate::cli::context::Context;
use crate::cli::failure::refused;
use anyhow::{Context as _, Result, bail};
use rswarm_proto::v1 as pb;
use rswarm_proto::v1::enter_input::What as Input;
use rswarm_proto::v1::enter_open::Door;
use rswarm_proto::v1::enter_output::What as Output;
use std::io::{IsTerminal, Write as _};
use std::str::FromStr;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tonic::Streaming;

/// Signals that are passed on, where they do not have another meaning here.
const PROXIED: [i32; 7] = [
    nix::libc::SIGHUP,
    nix::libc::SIGINT,
    nix::libc::SIGQUIT,
    nix::libc::SIGTERM,
    nix::libc::SIGUSR1,
    nix::libc::SIGUSR2,
    nix::libc::SIGCONT,
];

/// Attach this terminal to a running task's own streams
#[derive(Debug, clap::Args)]
pub struct Attach {
    /// Do not pass standard input on
    #[arg(long)]
    no_stdin: bool,
    /// Pass signals on to the task
    #[arg(long, num_args = 0..=1, default_value = "true", default_missing_value = "true", require_equals = true,
          action = clap::ArgAction::Set)]
    sig_proxy: bool,
    /// The keys that end this, and not the task; they are looked for where standard input is a terminal
    #[arg(long, value_name = "KEYS", default_value = "ctrl-p,ctrl-q")]
    detach_keys: Keys,
    /// Task: a name such as `web.1`, an id, or the beginning of one
    task: String,
}

/// `ctrl-p,ctrl-q`: keys that are pressed one after the other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Keys(Vec<u8>);

impl FromStr for Keys {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let key = |word: &str| match (word.strip_prefix("ctrl-").map(str::as_bytes), word.as_bytes()) {
            (Some(&[letter @ (b'a'..=b'z' | b'@' | b'[' | b'\\' | b']' | b'^' | b'_')]), _) => {
                Ok(letter.to_ascii_uppercase() - b'@')
            }
            (None, &[byte]) => Ok(byte),
            _ => Err(format!(
                "`{word}` is no key; write a character, or ctrl- and a letter, with commas between"
            )),
        };
        if text.is_empty() {
            return Ok(Self(Vec::new()));
        }
        text.split(',').map(key).collect::<Result<_, _>>().map(Self)
    }
}

/// Finds the keys in what is typed. What may be the beginning of them is held back.
struct Typed {
    keys: Vec<u8>,
    /// How many of them have just been typed.
    seen: usize,
}

impl Typed {
    /// What is to be passed on, and whether the keys were complete after it.
    fn take(&mut self, bytes: &[u8]) -> (Vec<u8>, bool) {
        let mut out = Vec::with_capacity(bytes.len());
        for byte in bytes {
            if self.keys.get(self.seen) == Some(byte) {
                self.seen += 1;
                if self.seen == self.keys.len() {
                    return (out, true);
                }
                continue;
            }
            out.extend_from_slice(&self.keys[..self.seen]);
            self.seen = usize::from(self.keys.first() == Some(byte));
            if self.seen == 0 {
                out.push(*byte);
            }
        }
        (out, false)
    }
}

impl Attach {
    /// Shows what the task writes until it ends, and ends as it does.
    ///
    /// # Errors
    /// If there is no such running task, or the way to it breaks.
    pub async fn run(self, cx: &mut Context) -> Result<()> {
        let with_stdin = !self.no_stdin;
        let terminal = std::io::stdin().is_terminal() && with_stdin;
        let size = (std::io::stdout().is_terminal() || terminal).then(window);
        let sized = size.is_some();
        let door = pb::AttachDoor { stdin: with_stdin, size };
        let (sender, mut output) = enter(&mut cx.client().await?, &self.task, Door::Attach(door)).await?;
        let room = Room::default();
        let pb::TaskStreams { tty, stdin } = opened(&self.task, &mut output, &room).await?;
        // Only where the task has a terminal too is this one's given up.
        let _raw = (terminal && tty).then(Raw::enter).flatten();
        if tty && sized {
            tokio::spawn(resize(sender.clone()));
        }
        if self.sig_proxy {
            for number in PROXIED {
                tokio::spawn(proxy(number, sender.clone()));
            }
        }
        let (detach, mut detached) = mpsc::channel(1);
        if stdin {
            let keys = if terminal { self.detach_keys.0.clone() } else { Vec::new() };
            let (sender, room) = (sender.clone(), room.clone());
            let pass_on = move || {
                let mut typed = Typed { keys, seen: 0 };
                if feed(&sender, &room, |bytes| typed.take(bytes)) {
                    let _ = detach.blocking_send(());
                }
            };
            std::thread::Builder::new().name("stdin".into()).spawn(pass_on)?;
        }
        tokio::select! {
            Some(()) = detached.recv() => {
                writeln!(cx.err, "read escape sequence")?;
                Ok(())
            }
            ended = show(cx, &self.task, "the task", &mut output, &room) => ended,
        }
    }
}

/// Waits until the task is listened to, and says which streams it has.
async fn opened(task: &str, output: &mut Streaming<pb::EnterOutput>, room: &Room) -> Result<pb::TaskStreams> {
    let mut streams = pb::TaskStreams::default();
    loop {
        let message = output.message().await.map_err(|status| refused(&status));
        match message.with_context(|| task.to_owned())?.and_then(|message| message.what) {
            Some(Output::Streams(told)) => streams = told,
            Some(Output::Room(bytes)) => room.grant(bytes),
            Some(Output::Opened(_)) => return Ok(streams),
            Some(_) => {}
            None => bail!("{task}: the node hung up"),
        }
    }
}

async fn proxy(number: i32, sender: mpsc::Sender<pb::EnterInput>) {
    let Ok(mut signals) = signal(SignalKind::from_raw(number)) else { return };
    while signals.recv().await.is_some() {
        if sender.send(input(Input::Signal(number))).await.is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_read_as_in_docker() {
        assert_eq!("ctrl-p,ctrl-q".parse(), Ok(Keys(vec![16, 17])));
        assert_eq!("a,ctrl-@,ctrl-[".parse(), Ok(Keys(vec![b'a', 0, 27])));
        assert_eq!("".parse(), Ok(Keys(Vec::new())));
        for wrong in ["ctrl-", "ctrl-1", "ab", "ctrl-p,"] {
            assert!(wrong.parse::<Keys>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn keys_are_found_wherever_reads_are_cut_and_nothing_else_is_lost() {
        let mut typed = Typed { keys: vec![16, 17], seen: 0 };
        assert_eq!(typed.take(b"ab\x10"), (b"ab".to_vec(), false));
        assert_eq!(typed.take(b"c"), (b"\x10c".to_vec(), false));
        assert_eq!(typed.take(b"\x10\x10"), (b"\x10".to_vec(), false));
        assert_eq!(typed.take(b"\x11rest"), (Vec::new(), true));
        let mut none = Typed { keys: Vec::new(), seen: 0 };
        assert_eq!(none.take(b"\x10\x11"), (b"\x10\x11".to_vec(), false));
    }
}
