//! `rswarm pause web.1` and `rswarm unpause web.1`

use super::ask;
use crate::cli::context::Context;
use anyhow::Result;
use rswarm_proto::v1::task_ask::What;

/// Hold every process of tasks still
#[derive(Debug, clap::Args)]
pub struct Pause {
    /// Tasks: names such as `web.1`, ids, or the beginnings of ids
    #[arg(required = true, value_name = "TASK")]
    tasks: Vec<String>,
}

/// Let the processes of paused tasks go on
#[derive(Debug, clap::Args)]
pub struct Unpause {
    /// Tasks: names such as `web.1`, ids, or the beginnings of ids
    #[arg(required = true, value_name = "TASK")]
    tasks: Vec<String>,
}

impl Pause {
    /// Carries the command out.
    ///
    /// # Errors
    /// If there is no such running task, or its node cannot hold processes still.
    pub async fn run(self, cx: &mut Context) -> Result<()> {
        each(cx, &self.tasks, What::Pause).await
    }
}

impl Unpause {
    /// Carries the command out.
    ///
    /// # Errors
    /// If there is no such running task.
    pub async fn run(self, cx: &mut Context) -> Result<()> {
        each(cx, &self.tasks, What::Unpause).await
    }
}

async fn each(cx: &mut Context, tasks: &[String], what: What) -> Result<()> {
    let mut client = cx.client().await?;
    for task in tasks {
        ask(&mut client, task, what).await?;
        writeln!(cx.out, "{task}")?;
    }
    Ok(())
}
