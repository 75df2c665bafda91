//! Listening to a container's own streams, and writing to its standard input.

use std::io;
use std::os::fd::OwnedFd;

use rswarm_shim::protocol::{Exit, Reply, Request};

use super::shim::Client;
use super::{Error, Executor, Result};

/// A running container that is listened to. Dropping this ends that, and nothing else.
pub struct Attached {
    client: Client,
    container: String,
    input: Option<OwnedFd>,
}

/// Why nothing more is heard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AttachEnd {
    /// The container has ended.
    Exited(Exit),
    /// More was written than was taken.
    Lagging,
}

impl Executor {
    /// Passes on what a running container writes from now on: to `sinks`, pipes for its standard output and its
    /// standard error. One with a terminal writes to the first only.
    pub async fn attach(&self, id: &str, sinks: Vec<OwnedFd>) -> Result<Attached> {
        let entry = self.running(id)?;
        let failed = |error: io::Error| Error::Shim { id: id.into(), message: error.to_string() };
        let mut client = Client::connect(&entry.run_directory).await.map_err(failed)?;
        client.send_with(&Request::Attach, &sinks).await.map_err(failed)?;
        drop(sinks);
        match client.receive().await.map_err(failed)? {
            Reply::Attached => {
                let input = client.take_descriptor();
                Ok(Attached { client, container: id.into(), input })
            }
            Reply::Failed { message, .. } => Err(Error::Shim { id: id.into(), message }),
            other => Err(entry.unexpected(&other)),
        }
    }

    /// Ends a running container's standard input, once nobody holds it.
    pub async fn close_stdin(&self, id: &str) -> Result<()> {
        self.running(id)?.ask(&Request::CloseStdin).await.map(drop)
    }
}

impl Attached {
    /// Our end of its standard input or of its terminal, if it has one.
    pub fn take_input(&mut self) -> Option<OwnedFd> {
        self.input.take()
    }

    /// Waits until nothing more is heard.
    pub async fn wait(&mut self) -> Result<AttachEnd> {
        let failed = |message: String| Error::Shim { id: self.container.clone(), message };
        match self.client.receive().await {
            Ok(Reply::Exited(exit)) => Ok(AttachEnd::Exited(exit)),
            Ok(Reply::Lagging) => Ok(AttachEnd::Lagging),
            Ok(other) => Err(failed(format!("unexpected answer {other:?}"))),
            Err(error) => Err(failed(error.to_string())),
        }
    }
}
