//! `rswarm image pull nginx:1.27`

use crate::cli::context::Context;
use crate::cli::failure::{Failure, refused};
use crate::cli::output::progress::Progress;
use crate::cli::output::units;
use crate::image::Platform;
use anyhow::{Context as _, Result};
use rswarm_proto::v1 as pb;

/// Fetch an image from its registry to this node
#[derive(Debug, clap::Args)]
pub struct Pull {
    /// Name, with a tag or digest
    #[arg(value_name = "NAME[:TAG|@DIGEST]")]
    reference: String,
    /// The image for another kind of machine: linux/arm64, linux/arm/v7
    #[arg(long, value_name = "OS/ARCH[/VARIANT]")]
    platform: Option<Platform>,
    /// Print only the name
    #[arg(short, long)]
    quiet: bool,
}

impl Pull {
    /// Carries the command out.
    ///
    /// # Errors
    /// If the registry has no such image, or cannot be reached.
    pub async fn run(self, cx: &mut Context) -> Result<()> {
        let what = || format!("cannot pull `{}`", self.reference);
        let request = pb::PullImageRequest {
            reference: self.reference.clone(),
            platform: self.platform.as_ref().map(ToString::to_string).unwrap_or_default(),
        };
        let stream = cx.client().await?.local.pull_image(request).await;
        let mut stream = stream.map_err(|status| refused(&status)).with_context(what)?.into_inner();
        let mut progress = cx.progress();
        let mut layers: Vec<pb::ImageProgress> = Vec::new();
        let mut last = None;
        while let Some(message) =
            stream.message().await.map_err(|status| refused(&status)).with_context(what)?
        {
            if !message.digest.is_empty() {
                last = Some(message.clone());
            }
            if !self.quiet {
                show_layer(cx, &mut progress, &mut layers, message)?;
            }
        }
        let last =
            last.ok_or_else(|| Failure::failed("the pull ended without a result")).with_context(what)?;
        if !self.quiet {
            writeln!(cx.out, "Digest: {}", last.digest)?;
        }
        let name = if last.reference.is_empty() { &self.reference } else { &last.reference };
        writeln!(cx.out, "{name}")?;
        Ok(())
    }
}

/// Shows how far a layer has come, among the others.
pub fn show_layer(
    cx: &mut Context,
    progress: &mut Progress,
    layers: &mut Vec<pb::ImageProgress>,
    message: pb::ImageProgress,
) -> std::io::Result<()> {
    match layers.iter_mut().find(|layer| layer.id == message.id) {
        Some(layer) => *layer = message,
        None => layers.push(message),
    }
    // Bytes change all the time; away from a terminal only what is being done is told.
    let lines = layers.iter().map(|layer| line(layer, cx.live)).filter(|line| !line.is_empty());
    progress.show(&mut cx.err, lines.collect())
}

/// Characters of a bar.
const BAR: usize = 30;

/// `[=====>    ]`, as full as `done` is of `total`.
fn bar(done: u64, total: u64) -> String {
    let full = usize::try_from(done.min(total) * BAR as u64 / total.max(1)).unwrap_or(0);
    format!("[{}>{}]", "=".repeat(full), " ".repeat(BAR - full))
}

fn line(layer: &pb::ImageProgress, bytes: bool) -> String {
    let mut line =
        if layer.id.is_empty() { layer.status.clone() } else { format!("{}: {}", layer.id, layer.status) };
    if bytes && layer.total > 0 && layer.current < layer.total {
        let bar = bar(layer.current, layer.total);
        line += &format!(" {bar} {}/{}", units::size(layer.current), units::size(layer.total));
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_told_on_a_terminal_only() {
        let layer = pb::ImageProgress {
            id: "abc".into(),
            status: "Downloading".into(),
            current: 1_000_000,
            total: 5_000_000,
            ..Default::default()
        };
        assert_eq!(line(&layer, true), "abc: Downloading [======>                        ] 1MB/5MB");
        assert_eq!(line(&layer, false), "abc: Downloading");
    }
}
