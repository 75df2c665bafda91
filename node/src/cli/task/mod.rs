//! What people do with running tasks: `attach`, `cp`, `exec`, `top`, `stats`, `pause`, `unpause`, `port-forward`.

pub mod attach;
pub mod cp;
pub mod exec;
pub mod pause;
pub mod port_forward;
pub mod stats;
pub mod top;

use crate::cli::client::Client;
use crate::cli::failure::refused;
use anyhow::{Context as _, Result};
use rswarm_proto::v1 as pb;
use rswarm_proto::v1::enter_input::What as Input;
use rswarm_proto::v1::enter_open::Door;
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
