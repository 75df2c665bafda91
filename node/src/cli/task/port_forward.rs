//! `rswarm port-forward web.1 8080:80`

use super::{enter, input};
use crate::cli::client::Client;
use crate::cli::context::Context;
use crate::cli::failure::refused;
use anyhow::{Context as _, Result, bail};
use rswarm_proto::v1 as pb;
use rswarm_proto::v1::enter_input::What as Input;
use rswarm_proto::v1::enter_open::Door;
use rswarm_proto::v1::enter_output::What as Output;
use std::net::IpAddr;
use std::str::FromStr;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;

/// How much is read at once, in bytes.
const CHUNK: usize = 32 * 1024;

/// Reach ports of a running task from here
#[derive(Debug, clap::Args)]
pub struct PortForward {
    /// Address to listen on
    #[arg(long, value_name = "IP", default_value = "127.0.0.1")]
    address: IpAddr,
    /// Task: a name such as `web.1`, an id, or the beginning of one
    task: String,
    /// Port here and port in the task; 0 here takes a free one, and one number stands for both
    #[arg(required = true, value_name = "[LOCAL:]REMOTE")]
    ports: Vec<Ports>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Ports {
    local: u16,
    remote: u16,
}

impl FromStr for Ports {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (local, remote) = text.split_once(':').unwrap_or((text, text));
        let port = |text: &str| text.parse::<u16>().map_err(|_| format!("`{text}` is not a port"));
        match (port(local)?, port(remote)?) {
            (_, 0) => Err("a task has no port 0".into()),
            (local, remote) => Ok(Self { local, remote }),
        }
    }
}

impl PortForward {
    /// Carries the command out, until it is interrupted.
    ///
    /// # Errors
    /// If there is no such running task, or a port here is taken.
    pub async fn run(self, cx: &mut Context) -> Result<()> {
        let mut client = cx.client().await?;
        // A task that is not there is told at once, and not to whoever connects.
        super::ask(&mut client, &self.task, pb::task_ask::What::Top).await?;
        let (problem, mut problems) = mpsc::channel::<String>(16);
        for Ports { local, remote } in self.ports {
            let listener = TcpListener::bind((self.address, local)).await;
            let listener = listener.with_context(|| format!("cannot listen on {}:{local}", self.address))?;
            writeln!(cx.out, "Forwarding from {} -> {remote}", listener.local_addr()?)?;
            tokio::spawn(listen(listener, client.clone(), self.task.clone(), remote, problem.clone()));
        }
        cx.out.flush()?;
        while let Some(problem) = problems.recv().await {
            writeln!(cx.err, "{problem}")?;
        }
        Ok(())
    }
}

async fn listen(
    listener: TcpListener,
    client: Client,
    task: String,
    port: u16,
    problem: mpsc::Sender<String>,
) {
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                let _ = problem.send(format!("cannot take a connection: {error}")).await;
                // Out of descriptors, most likely: others must end first.
                tokio::time::sleep(std::time::Duration::from_millis(100)).await;
                continue;
            }
        };
        let (client, task, problem) = (client.clone(), task.clone(), problem.clone());
        tokio::spawn(async move {
            if let Err(error) = carry(stream, client, &task, port).await {
                let _ = problem.send(format!("{error:#}")).await;
            }
        });
    }
}

async fn carry(stream: TcpStream, mut client: Client, task: &str, port: u16) -> Result<()> {
    let door = Door::Forward(pb::ForwardDoor { port: port.into() });
    let (sender, mut output) = enter(&mut client, task, door).await?;
    let (mut reader, mut writer) = stream.into_split();
    let inward = tokio::spawn(async move {
        let mut buffer = vec![0; CHUNK];
        while let Ok(count @ 1..) = reader.read(&mut buffer).await {
            let data = bytes::Bytes::copy_from_slice(&buffer[..count]);
            if sender.send(input(Input::Data(data))).await.is_err() {
                return;
            }
        }
        let _ = sender.send(input(Input::End(true))).await;
        // What comes back may take longer: the way there stays open until nobody listens.
        sender.closed().await;
    });
    let outward = async {
        while let Some(message) = output.message().await.map_err(|status| refused(&status))? {
            match message.what {
                Some(Output::Stdout(bytes)) if writer.write_all(&bytes).await.is_err() => return Ok(()),
                Some(Output::End(_)) => {
                    let _ = writer.shutdown().await;
                }
                Some(Output::Failed(failed)) => bail!("{}", failed.words),
                _ => {}
            }
        }
        Ok(())
    };
    let ended = outward.await;
    inward.abort();
    ended.with_context(|| task.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_a_pair_or_one_for_both() {
        let parsed = |text: &str| text.parse::<Ports>().map(|ports| (ports.local, ports.remote)).ok();
        assert_eq!(parsed("8080:80"), Some((8080, 80)));
        assert_eq!(parsed("80"), Some((80, 80)));
        assert_eq!(parsed("0:80"), Some((0, 80)));
        for text in ["80:0", "x:80", "80:", "70000"] {
            assert_eq!(parsed(text), None, "{text}");
        }
    }
}
