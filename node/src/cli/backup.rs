//! `rswarm backup -o cluster.backup`

use super::context::Context;
use super::failure::{Failure, refused};
use super::output::units;
use crate::backup::key::Key;
use anyhow::{Context as _, Result};
use rswarm_proto::v1 as pb;
use std::fs::{self, File};
use std::io::{IsTerminal, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// Bytes of a passphrase, or of a file with a recovery key, that are read.
const SECRET_MAX: u64 = 64 << 10;

/// Write the cluster's whole state, with its keys, into a sealed file
#[derive(Debug, clap::Args)]
pub struct Backup {
    /// File to write; `-` is standard output
    #[arg(short, long, value_name = "FILE")]
    output: PathBuf,
    /// File with a passphrase that opens the backup, in place of a recovery key that is printed once
    #[arg(long, value_name = "FILE")]
    passphrase_file: Option<PathBuf>,
}

impl Backup {
    /// Carries the command out.
    ///
    /// # Errors
    /// If this node is no manager, there is no quorum, or the file cannot be written; nothing is then left of it,
    /// and an older one of this name stays.
    pub async fn run(self, cx: &mut Context) -> Result<()> {
        let to_stdout = self.output.as_os_str() == "-";
        if to_stdout && std::io::stdout().is_terminal() {
            let failure = Failure::usage("standard output is a terminal");
            return Err(failure.help("name a file with --output, or pipe the backup on").into());
        }
        let (key, passphrase) = match &self.passphrase_file {
            Some(path) => {
                let (key, how) = Key::from_new_passphrase(secret(path)?.as_bytes())
                    .with_context(|| format!("cannot use {}", path.display()))?;
                (key, Some(how))
            }
            None => (Key::generate(), None),
        };
        let printed = passphrase.is_none().then(|| key.to_string());
        let request = pb::BackupRequest { key: key.as_bytes().to_vec().into(), passphrase };
        let stream = cx.client().await?.local.backup(request).await;
        let mut stream = stream.map_err(|status| refused(&status)).context("cannot back up")?.into_inner();

        let (done, bytes) = match to_stdout {
            true => {
                let mut out = std::mem::replace(&mut cx.out, Box::new(std::io::sink()));
                let copied = copy(&mut stream, &mut out, cx).await;
                cx.out = out;
                copied?
            }
            false => write(&mut stream, &self.output, cx).await?,
        };
        let place = if to_stdout { "standard output".into() } else { self.output.display().to_string() };
        let text = render(&done, bytes, &place, printed.as_deref());
        let said = if to_stdout { &mut cx.err } else { &mut cx.out };
        Ok(said.write_all(text.as_bytes())?)
    }
}

fn render(done: &pb::BackupDone, bytes: u64, place: &str, key: Option<&str>) -> String {
    let pb::BackupDone { cluster_name, index, services, nodes } = done;
    let mut text = format!(
        "Cluster {cluster_name} ({services} services, {nodes} nodes, as of index {index}) is backed up into {place}, \
         {}.\n",
        units::size(bytes)
    );
    if let Some(key) = key {
        text += &format!(
            "\nOnly this recovery key opens it. It is kept nowhere, so keep it apart from the file:\n\n    {key}\n"
        );
    }
    text
}

/// What a file holds, without the line's end.
pub(super) fn secret(path: &Path) -> Result<String> {
    let read = || {
        let mut text = String::new();
        File::open(path)?.take(SECRET_MAX).read_to_string(&mut text)?;
        Ok::<_, std::io::Error>(text)
    };
    let text = read().with_context(|| format!("cannot read {}", path.display()))?;
    Ok(text.trim_end_matches(['\r', '\n']).to_owned())
}

/// Writes beside the file, and names it when all of it is on the disk.
async fn write(
    stream: &mut tonic::Streaming<pb::BackupChunk>,
    path: &Path,
    cx: &mut Context,
) -> Result<(pb::BackupDone, u64)> {
    let what = || format!("cannot write {}", path.display());
    let name = path.file_name().context("--output names no file").with_context(what)?.to_string_lossy();
    let part = path.with_file_name(format!(".{name}.{}", std::process::id()));
    let file = File::options().write(true).create_new(true).mode(0o600).open(&part).with_context(what)?;
    let mut out = std::io::BufWriter::new(file);
    let written = copy(stream, &mut out, cx).await;
    let written = written.and_then(|done| {
        let named = || {
            out.into_inner().map_err(std::io::IntoInnerError::into_error)?.sync_all()?;
            fs::rename(&part, path)?;
            let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
            File::open(dir)?.sync_all()
        };
        named().with_context(what)?;
        Ok(done)
    });
    if written.is_err() {
        // What is half written is of no use to anybody.
        let _ = fs::remove_file(&part);
    }
    written
}

async fn copy(
    stream: &mut tonic::Streaming<pb::BackupChunk>,
    out: &mut dyn Write,
    cx: &mut Context,
) -> Result<(pb::BackupDone, u64)> {
    let mut progress = cx.progress();
    let mut bytes = 0u64;
    let done = loop {
        let chunk = stream.message().await.map_err(|status| refused(&status)).context("cannot back up")?;
        let chunk = chunk.context("the daemon ended before the backup did")?;
        out.write_all(&chunk.data).context("cannot write the backup")?;
        bytes += chunk.data.len() as u64;
        if let Some(done) = chunk.done {
            break done;
        }
        if cx.live {
            progress.show(&mut cx.err, vec![format!("{} written", units::size(bytes))])?;
        }
    };
    out.flush().context("cannot write the backup")?;
    progress.clear(&mut cx.err)?;
    Ok((done, bytes))
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::expect;

    #[test]
    fn the_recovery_key_is_told_once_and_a_passphrase_never() {
        let done = pb::BackupDone { cluster_name: "default".into(), index: 42, services: 3, nodes: 5 };
        expect![[r"
            Cluster default (3 services, 5 nodes, as of index 42) is backed up into cluster.backup, 12.3kB.

            Only this recovery key opens it. It is kept nowhere, so keep it apart from the file:

                RSWKEY-1-x
        "]]
        .assert_eq(&render(&done, 12_300, "cluster.backup", Some("RSWKEY-1-x")));
        assert_eq!(render(&done, 12_300, "standard output", None).lines().count(), 1);
    }
}
