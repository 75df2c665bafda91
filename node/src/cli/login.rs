//! `rswarm login -u alice lan:5000`

use super::context::Context;
use super::failure::{Failure, refused};
use anyhow::{Context as _, Result};
use rswarm_proto::v1 as pb;
use rustix::termios::{LocalModes, OptionalActions, Termios, tcgetattr, tcsetattr};
use std::io::{BufRead, IsTerminal, Read, Stdin};

/// Bytes of a password that are read.
const PASSWORD_MAX: u64 = 64 << 10;

/// Keep credentials for a registry on this node
#[derive(Debug, clap::Args)]
pub struct Login {
    /// Host of the registry, with its port if it has one; Docker's if left out
    #[arg(value_name = "SERVER", default_value = "docker.io", hide_default_value = true)]
    registry: String,
    /// User name
    #[arg(short, long)]
    username: Option<String>,
    /// Password or token; others on this machine can see it
    #[arg(short, long, conflicts_with = "password_stdin")]
    password: Option<String>,
    /// Read the password from standard input
    #[arg(long, requires = "username")]
    password_stdin: bool,
}

impl Login {
    /// Carries the command out.
    ///
    /// # Errors
    /// If the registry does not let these credentials in.
    pub async fn run(self, cx: &mut Context) -> Result<()> {
        let username = match &self.username {
            Some(username) => username.clone(),
            None => ask(cx, "Username: ", false, INSTEAD)?,
        };
        let password = match &self.password {
            Some(password) => {
                cx.warn(&["using --password is insecure; use --password-stdin".into()])?;
                password.clone()
            }
            None if self.password_stdin => {
                let mut password = String::new();
                let read = std::io::stdin().take(PASSWORD_MAX).read_to_string(&mut password);
                read.context("cannot read the password")?;
                password.trim_end_matches(['\r', '\n']).to_owned()
            }
            None => ask(cx, "Password: ", true, INSTEAD)?,
        };
        let request = pb::LoginRequest { registry: self.registry, username, password };
        let answer = cx.client().await?.local.login(request).await.map_err(|status| refused(&status))?;
        writeln!(cx.out, "Login Succeeded")?;
        tracing::debug!(registry = answer.into_inner().registry, "logged in");
        Ok(())
    }
}

const INSTEAD: &str = "say --username, and pass the password with --password-stdin";

/// Asks on the terminal; where there is none, says what to do instead.
pub(super) fn ask(cx: &mut Context, question: &str, secret: bool, instead: &str) -> Result<String> {
    let stdin = std::io::stdin();
    if !stdin.is_terminal() {
        let failure = Failure::usage("standard input is no terminal, so nobody can be asked");
        return Err(failure.help(instead).into());
    }
    write!(cx.err, "{question}")?;
    cx.err.flush()?;
    let quiet = if secret { Some(Quiet::new(&stdin)?) } else { None };
    let mut line = String::new();
    stdin.lock().take(PASSWORD_MAX).read_line(&mut line).context("cannot read the answer")?;
    if quiet.is_some() {
        writeln!(cx.err)?;
    }
    Ok(line.trim_end_matches(['\r', '\n']).to_owned())
}

/// A terminal that does not show what is typed, until this is dropped.
struct Quiet<'a>(&'a Stdin, Termios);

impl<'a> Quiet<'a> {
    fn new(stdin: &'a Stdin) -> Result<Self> {
        let before = tcgetattr(stdin).context("cannot silence the terminal")?;
        let mut silent = before.clone();
        silent.local_modes -= LocalModes::ECHO;
        tcsetattr(stdin, OptionalActions::Flush, &silent).context("cannot silence the terminal")?;
        Ok(Self(stdin, before))
    }
}

impl Drop for Quiet<'_> {
    fn drop(&mut self) {
        // Nothing is left to do if the terminal has gone.
        let _ = tcsetattr(self.0, OptionalActions::Flush, &self.1);
    }
}
