//! `rswarm image load < image.tar`

use crate::cli::context::Context;
use crate::cli::failure::{Failure, refused};
use anyhow::{Context as _, Result};
use rswarm_proto::v1 as pb;
use std::io::IsTerminal;
use std::path::PathBuf;
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio_stream::wrappers::ReceiverStream;

/// Read images from an archive
#[derive(Debug, clap::Args)]
pub struct Load {
    /// File to read instead of standard input
    #[arg(short, long, value_name = "FILE")]
    input: Option<PathBuf>,
    /// Print only the images' names
    #[arg(short, long)]
    quiet: bool,
}

const CHUNK_BYTES: usize = 256 << 10;

impl Load {
    /// Carries the command out.
    ///
    /// # Errors
    /// If the archive cannot be read, or holds no image.
    pub async fn run(self, cx: &mut Context) -> Result<()> {
        let input: Box<dyn AsyncRead + Send + Unpin> = match &self.input {
            Some(path) if path.as_os_str() != "-" => {
                let file = tokio::fs::File::open(path).await;
                Box::new(file.with_context(|| format!("cannot read {}", path.display()))?)
            }
            _ if std::io::stdin().is_terminal() => {
                let failure = Failure::usage("standard input is a terminal");
                return Err(failure.help("name a file with --input, or pipe an archive in").into());
            }
            _ => Box::new(tokio::io::stdin()),
        };
        let mut client = cx.client().await?;
        let (sender, chunks) = tokio::sync::mpsc::channel(4);
        let feeder = tokio::spawn(feed(input, sender));
        let loaded = client.local.load_image(ReceiverStream::new(chunks)).await;
        // What went wrong while reading comes first: the daemon only saw the archive end early.
        match loaded {
            Ok(loaded) => {
                feeder.await.context("cannot read the archive")?.context("cannot read the archive")?;
                for reference in loaded.into_inner().references {
                    writeln!(cx.out, "{}{reference}", if self.quiet { "" } else { "Loaded image: " })?;
                }
                Ok(())
            }
            Err(status) => {
                if let Ok(Err(error)) = feeder.await {
                    return Err(error).context("cannot read the archive");
                }
                Err(refused(&status)).context("cannot load the archive")
            }
        }
    }
}

/// Sends the archive piece by piece, until the daemon wants no more of it.
async fn feed(
    mut input: Box<dyn AsyncRead + Send + Unpin>,
    chunks: tokio::sync::mpsc::Sender<pb::LoadImageChunk>,
) -> std::io::Result<()> {
    loop {
        let mut chunk = Vec::with_capacity(CHUNK_BYTES);
        while chunk.len() < CHUNK_BYTES && input.read_buf(&mut chunk).await? > 0 {}
        let last = chunk.len() < CHUNK_BYTES;
        if chunks.send(pb::LoadImageChunk { data: chunk.into() }).await.is_err() || last {
            return Ok(());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_archive_is_sent_whole_and_in_order() {
        let archive: Vec<u8> = (0..CHUNK_BYTES * 2 + 17).map(|n| (n % 251) as u8).collect();
        let (sender, mut chunks) = tokio::sync::mpsc::channel(1);
        let feeder = tokio::spawn(feed(Box::new(std::io::Cursor::new(archive.clone())), sender));
        let mut received = Vec::new();
        while let Some(chunk) = chunks.recv().await {
            assert!(chunk.data.len() <= CHUNK_BYTES);
            received.extend(chunk.data);
        }
        feeder.await.expect("it ends").expect("it reads");
        assert_eq!(received, archive);
    }
}
