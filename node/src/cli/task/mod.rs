//! What people do with running tasks: `attach`, `cp`, `exec`, `top`, `stats`, `pause`, `unpause`, `port-forward`.

pub mod attach;
pub mod cp;
pub mod exec;
mod input;
pub mod pause;
pub mod port_forward;
pub mod stats;
pub mod top;

use crate::cli::client::Client;
use crate::cli::context::Context;
use crate::cli::failure::{Ended, Failure, refused};
use anyhow::{Context as _, Result, bail};
use input::Room;
use rswarm_proto::v1 as pb;
use rswarm_proto::v1::enter_input::What as Input;
use rswarm_proto::v1::enter_open::Door;
use rswarm_proto::v1::enter_output::What as Output;
use std::io::Write as _;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;

/// Pieces of input that wait for a slow network.
const AHEAD: usize = 16;

/// Asks one thing about a task.
async fn ask(client: &mut Client, task: &str, what: pb::task_ask::What) -> Result<pb::TaskAnswer> {
    let ask = pb::TaskAsk { task: task.into(), what: what.into() };
    let answer = client.tasks.ask(ask).await.map_err(|status| refused(&status));
    Ok(answer.with_context(|| task.to_owned())?.into_inner())
}

/// Opens a door into a task: where to write, and what comes out.
async fn enter(
    client: &mut Client,
    task: &str,
    door: Door,
) -> Result<(mpsc::Sender<pb::EnterInput>, Streaming<pb::EnterOutput>)> {
    let (sender, receiver) = mpsc::channel(AHEAD);
    let open = pb::EnterOpen { task: task.into(), door: Some(door) };
    // There is room for the first.
    let _ = sender.try_send(input(Input::Open(open)));
    let answer = client.tasks.enter(ReceiverStream::new(receiver)).await;
    let answer = answer.map_err(|status| refused(&status)).with_context(|| task.to_owned())?;
    Ok((sender, answer.into_inner()))
}

fn input(what: Input) -> pb::EnterInput {
    pb::EnterInput { what: Some(what) }
}

/// Shows what comes out of a door, and ends as the program behind it does; `whose` names that.
async fn show(
    cx: &mut Context,
    task: &str,
    whose: &str,
    output: &mut Streaming<pb::EnterOutput>,
    room: &Room,
) -> Result<()> {
    let broken = |status: tonic::Status| refused(&status);
    while let Some(message) = output.message().await.map_err(broken).with_context(|| task.to_owned())? {
        match message.what {
            Some(Output::Stdout(bytes)) => {
                cx.out.write_all(&bytes)?;
                cx.out.flush()?;
            }
            Some(Output::Stderr(bytes)) => {
                cx.err.write_all(&bytes)?;
                cx.err.flush()?;
            }
            Some(Output::Room(bytes)) => room.grant(bytes),
            Some(Output::ExitCode(0)) => return Ok(()),
            Some(Output::ExitCode(code)) => bail!(Ended(u8::try_from(code).unwrap_or(1))),
            Some(Output::Failed(failed)) => bail!(Failure::failed(format!("{task}: {}", failed.words))),
            _ => {}
        }
    }
    bail!("{task}: the node hung up; how {whose} ended is not known")
}
