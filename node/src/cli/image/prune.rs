//! `rswarm image prune --all`

use crate::cli::context::Context;
use crate::cli::failure::{Failure, refused};
use crate::cli::output::filter::{self, Filter};
use crate::cli::output::units;
use anyhow::{Context as _, Result};
use rswarm_proto::v1 as pb;
use std::io::{BufRead, IsTerminal};

/// Remove images that nobody needs from this node
#[derive(Debug, clap::Args)]
pub struct Prune {
    /// All that no container uses, not only those without a name
    #[arg(short, long)]
    all: bool,
    /// Do not ask
    #[arg(short, long)]
    force: bool,
    /// Only those that match: until=24h, label=NAME[=VALUE]; may be repeated
    #[arg(long = "filter", value_name = "KEY=VALUE")]
    filters: Vec<Filter>,
}

impl Prune {
    /// Carries the command out.
    ///
    /// # Errors
    /// If the daemon refuses, or nobody can be asked.
    pub async fn run(self, cx: &mut Context) -> Result<()> {
        filter::known(&self.filters, &["until", "label"])?;
        let now = units::now_ms();
        let mut before_ms = 0;
        for text in filter::values(&self.filters, "until") {
            before_ms = units::parse_moment(text, now).map_err(Failure::usage)?;
        }
        let labels = filter::values(&self.filters, "label").map(str::to_owned).collect();
        if !self.force && !confirmed(cx, self.all)? {
            return Ok(());
        }
        let request = pb::PruneImagesRequest { all: self.all, before_ms, labels };
        let answer = cx.client().await?.local.prune_images(request).await.map_err(|status| refused(&status));
        let pruned = answer.context("cannot prune")?.into_inner();
        if !pruned.deleted.is_empty() {
            writeln!(cx.out, "Deleted Images:")?;
            for name in &pruned.untagged {
                writeln!(cx.out, "untagged: {name}")?;
            }
            for id in &pruned.deleted {
                writeln!(cx.out, "deleted: {id}")?;
            }
            writeln!(cx.out)?;
        }
        if pruned.deferred {
            cx.warn(&["an image is being pulled or loaded; the space is given back afterwards".into()])?;
        }
        writeln!(cx.out, "Total reclaimed space: {}", units::size(pruned.reclaimed_bytes))?;
        Ok(())
    }
}

fn confirmed(cx: &mut Context, all: bool) -> Result<bool> {
    if !std::io::stdin().is_terminal() {
        let failure = Failure::usage("standard input is no terminal, so nobody can be asked");
        return Err(failure.help("say --force").into());
    }
    let which =
        if all { "images that no container uses" } else { "images without a name that no container uses" };
    write!(cx.err, "WARNING! This will remove all {which}.\nAre you sure you want to continue? [y/N] ")?;
    cx.err.flush()?;
    let mut line = String::new();
    std::io::stdin().lock().read_line(&mut line).context("cannot read the answer")?;
    Ok(matches!(line.trim(), "y" | "Y" | "yes"))
}
