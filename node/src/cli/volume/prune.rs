//! `rswarm volume prune --force`

use crate::cli::context::Context;
use crate::cli::failure::{Failure, refused};
use crate::cli::output::filter::{self, Filter};
use anyhow::{Context as _, Result};
use rswarm_proto::v1 as pb;
use std::io::{BufRead, IsTerminal};

/// Remove volumes that no container has from this node
#[derive(Debug, clap::Args)]
pub struct Prune {
    /// Those with names that people gave, too
    #[arg(short, long)]
    all: bool,
    /// Do not ask
    #[arg(short, long)]
    force: bool,
    /// Only those that match: label=NAME[=VALUE]; may be repeated
    #[arg(long = "filter", value_name = "KEY=VALUE")]
    filters: Vec<Filter>,
}

impl Prune {
    /// Carries the command out.
    ///
    /// # Errors
    /// If the daemon refuses, or nobody can be asked.
    pub async fn run(self, cx: &mut Context) -> Result<()> {
        filter::known(&self.filters, &["label"])?;
        let volumes = super::volumes(cx, Vec::new()).await?;
        let unwanted = |volume: &&pb::Volume| {
            let labels = volume.labels.iter().map(|(key, value)| (key.clone(), value.clone())).collect();
            volume.users.is_empty()
                && (self.all || is_made_up(&volume.name))
                && filter::labels(&self.filters, "label", &labels)
        };
        let unwanted: Vec<&pb::Volume> = volumes.iter().filter(unwanted).collect();
        if unwanted.is_empty() {
            writeln!(cx.out, "There is nothing to remove")?;
            return Ok(());
        }
        if !self.force && !confirmed(cx, &unwanted)? {
            return Ok(());
        }
        let mut client = cx.client().await?;
        writeln!(cx.out, "Deleted Volumes:")?;
        for volume in unwanted {
            // One that a container has got meanwhile is refused.
            let request = pb::RemoveVolumeRequest { name: volume.name.clone(), force: true };
            let removed = client.local.remove_volume(request).await.map_err(|status| refused(&status));
            removed.with_context(|| format!("cannot remove `{}`", volume.name))?;
            writeln!(cx.out, "{}", volume.name)?;
        }
        Ok(())
    }
}

/// Whether a volume got its name from the daemon.
fn is_made_up(name: &str) -> bool {
    name.len() == 64 && name.bytes().all(|b| b.is_ascii_hexdigit())
}

fn confirmed(cx: &mut Context, unwanted: &[&pb::Volume]) -> Result<bool> {
    if !std::io::stdin().is_terminal() {
        let failure = Failure::usage("standard input is no terminal, so nobody can be asked");
        return Err(failure.help("say --force").into());
    }
    let names: Vec<&str> = unwanted.iter().map(|volume| volume.name.as_str()).collect();
    writeln!(cx.err, "WARNING! This will remove with all their files: {}", names.join(", "))?;
    write!(cx.err, "Are you sure you want to continue? [y/N] ")?;
    cx.err.flush()?;
    let mut line = String::new();
    std::io::stdin().lock().read_line(&mut line).context("cannot read the answer")?;
    Ok(matches!(line.trim(), "y" | "Y" | "yes"))
}
