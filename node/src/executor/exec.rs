//! Other programs in a running container, beside its first one.

use std::io;
use std::os::fd::OwnedFd;

use rswarm_shim::protocol::{Exec, Reply, Request};

use super::shim::Client;
use super::{Error, Executor, Result};

/// How another program in a container ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExecExit {
    /// As for a container.
    pub code: i32,
    /// It was killed because its time was up.
    pub timed_out: bool,
}

/// Another program that runs in a container. Dropping this leaves it running, unless it is contained.
pub struct Execution {
    client: Client,
    container: String,
    pid: i32,
    terminal: Option<OwnedFd>,
}

impl Executor {
    /// Runs another program in a running container and waits for its end.
    pub async fn exec(&self, id: &str, exec: Exec, stdio: [OwnedFd; 3]) -> Result<ExecExit> {
        self.begin(id, exec, stdio.into()).await?.wait().await
    }

    /// Starts another program in a running container, with `stdio` as its standard input, output and error; those
    /// left out are empty, and all are the terminal for a program that has one.
    pub async fn begin(&self, id: &str, exec: Exec, stdio: Vec<OwnedFd>) -> Result<Execution> {
        let entry = self.running(id)?;
        let failed = |error: io::Error| Error::Shim { id: id.into(), message: error.to_string() };
        let mut client = Client::connect(&entry.run_directory).await.map_err(failed)?;
        client.send_with(&Request::Exec(exec), &stdio).await.map_err(failed)?;
        drop(stdio);
        match client.receive().await.map_err(failed)? {
            Reply::Spawned { pid } => {
                let terminal = client.take_descriptor();
                Ok(Execution { client, container: id.into(), pid, terminal })
            }
            Reply::Failed { code, message } => Err(Error::Start { code, message }),
            other => Err(entry.unexpected(&other)),
        }
    }

    /// Signals a program that was begun in a container. Succeeds if it has ended already.
    pub async fn signal(&self, id: &str, pid: i32, signal: i32) -> Result<()> {
        self.running(id)?.ask(&Request::KillExec { pid, signal }).await.map(drop)
    }
}

impl Execution {
    /// Its number on this machine.
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// Our end of its terminal, if it has one; closing it hangs up.
    pub fn take_terminal(&mut self) -> Option<OwnedFd> {
        self.terminal.take()
    }

    /// Waits for its end.
    pub async fn wait(&mut self) -> Result<ExecExit> {
        let failed = |message: String| Error::Shim { id: self.container.clone(), message };
        match self.client.receive().await {
            Ok(Reply::ExecExited { code, timed_out }) => Ok(ExecExit { code, timed_out }),
            Ok(other) => Err(failed(format!("unexpected answer {other:?}"))),
            Err(error) => Err(failed(error.to_string())),
        }
    }
}
