//! Where a command's output goes, and which daemon it talks to.

use super::client::{self, Ages, Client};
use super::output::progress::Progress;
use crate::rpc::stale::Age;
use anyhow::Result;
use std::fmt;
use std::io::{self, IsTerminal, Write};
use std::path::PathBuf;
use std::sync::PoisonError;

/// What a command needs from the process.
pub struct Context {
    /// The daemon's socket.
    pub socket: PathBuf,
    /// Set if answers may be old: how old they were.
    pub stale: Option<Ages>,
    /// Data.
    pub out: Box<dyn Write>,
    /// Progress, notes and errors.
    pub err: Box<dyn Write>,
    /// Whether `err` is a terminal, whose lines can be redrawn.
    pub live: bool,
    /// Whether `err` shows colours.
    pub colours: bool,
    /// Characters in a line of `err`.
    pub width: usize,
}

impl fmt::Debug for Context {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Context")
            .field("socket", &self.socket)
            .field("live", &self.live)
            .finish_non_exhaustive()
    }
}

/// The colours there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "they are colours")]
pub enum Colour {
    Red = 31,
    Green = 32,
    Yellow = 33,
}

impl Context {
    /// Standard output and standard error.
    pub fn of_process(socket: PathBuf, stale: bool) -> Self {
        let dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
        let live = io::stderr().is_terminal() && !dumb;
        let no_color = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        let width = rustix::termios::tcgetwinsize(io::stderr()).map_or(0, |size| usize::from(size.ws_col));
        Self {
            socket,
            stale: stale.then(Ages::default),
            out: Box::new(io::BufWriter::new(io::stdout())),
            err: Box::new(io::stderr()),
            live,
            colours: live && !no_color,
            width: if width == 0 { 80 } else { width },
        }
    }

    /// The daemon, which must be there.
    ///
    /// # Errors
    /// If it is not, with the cure.
    pub async fn client(&self) -> Result<Client> {
        client::connect(&self.socket, self.stale.clone()).await
    }

    /// How old the answers so far may be, if they may be old.
    pub fn age(&self) -> Option<Age> {
        *self.stale.as_ref()?.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Says how old the answers may have been.
    ///
    /// # Errors
    /// If standard error is closed.
    pub fn tell_age(&mut self) -> io::Result<()> {
        let Some(Age { index, unheard }) = self.age() else { return Ok(()) };
        let since = match unheard {
            Some(unheard) => format!("{:.1} s ago", unheard.as_secs_f64()),
            None => "not since the daemon started".into(),
        };
        writeln!(
            self.err,
            "Stale: this is what this manager knows as of entry {index}; the cluster last confirmed it {since}"
        )
    }

    /// Something to show while waiting.
    pub fn progress(&self) -> Progress {
        Progress::new(self.live, self.width)
    }

    /// `text` with its first `part` in colour, where there are colours.
    pub fn paint(&self, colour: Colour, part: &str, text: &str) -> String {
        match self.colours {
            true => text.replacen(part, &format!("\x1b[{}m{part}\x1b[0m", colour as u8), 1),
            false => text.into(),
        }
    }

    /// Notes that a manager sent along with its answer.
    ///
    /// # Errors
    /// If standard error is closed.
    pub fn warn(&mut self, warnings: &[String]) -> io::Result<()> {
        for warning in warnings {
            let line = self.paint(Colour::Yellow, "Warning:", &format!("Warning: {warning}"));
            writeln!(self.err, "{line}")?;
        }
        Ok(())
    }
}
