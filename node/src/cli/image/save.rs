//! `rswarm image save web:1 | ssh other rswarm image load`

use crate::cli::context::Context;
use crate::cli::failure::{Failure, refused};
use anyhow::{Context as _, Result};
use rswarm_proto::v1 as pb;
use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};

/// Write images into an archive
#[derive(Debug, clap::Args)]
pub struct Save {
    /// Names or ids
    #[arg(required = true, value_name = "IMAGE")]
    images: Vec<String>,
    /// File to write instead of standard output
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
}

impl Save {
    /// Carries the command out.
    ///
    /// # Errors
    /// If there is no such image, or the archive cannot be written; a file is then not left half written.
    pub async fn run(self, cx: &mut Context) -> Result<()> {
        if self.output.is_none() && std::io::stdout().is_terminal() {
            let failure = Failure::usage("standard output is a terminal");
            return Err(failure.help("name a file with --output, or pipe the archive on").into());
        }
        let request = pb::SaveImagesRequest { names: self.images };
        let stream = cx.client().await?.local.save_images(request).await;
        let mut stream = stream.map_err(|status| refused(&status)).context("cannot save")?.into_inner();
        let Some(path) = &self.output else { return copy(&mut stream, &mut cx.out).await };
        // Another archive of this name stays until this one is whole.
        let part = beside(path);
        let what = || format!("cannot write {}", path.display());
        let file = std::fs::File::create(&part).with_context(what)?;
        let mut out = std::io::BufWriter::new(file);
        let written = copy(&mut stream, &mut out).await;
        let written = written.and_then(|()| std::fs::rename(&part, path).with_context(what));
        if written.is_err() {
            // What is half written is of no use to anybody.
            let _ = std::fs::remove_file(&part);
        }
        written
    }
}

fn beside(path: &Path) -> PathBuf {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!(".{name}.{}", std::process::id()))
}

async fn copy(stream: &mut tonic::Streaming<pb::ImageChunk>, out: &mut impl Write) -> Result<()> {
    while let Some(chunk) =
        stream.message().await.map_err(|status| refused(&status)).context("cannot save")?
    {
        out.write_all(&chunk.data).context("cannot write the archive")?;
    }
    out.flush().context("cannot write the archive")
}
