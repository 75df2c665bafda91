//! `rswarm restore cluster.backup`

use super::backup::secret;
use super::context::Context;
use super::failure::{Failure, refused};
use super::init::join_command;
use super::login::ask;
use super::node::AvailabilityArg;
use super::output::units;
use super::start::ensure_daemon;
use crate::backup::{Head, key::Key};
use anyhow::{Context as _, Result};
use rswarm_proto::v1 as pb;
use rswarm_proto::v1::store::BackupHeader;
use std::fs::File;
use std::io::{Cursor, Read};
use std::path::PathBuf;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

const CHUNK_BYTES: usize = 256 << 10;

/// Make a cluster of this machine from a backup
#[derive(Debug, clap::Args)]
pub struct Restore {
    /// What `rswarm backup` wrote; `-` is standard input
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// File with the recovery key that was printed when the backup was made; asked for on the terminal if left out
    #[arg(long, value_name = "FILE", conflicts_with = "passphrase_file")]
    recovery_key_file: Option<PathBuf>,
    /// File with the passphrase that the backup was made with; asked for on the terminal if left out
    #[arg(long, value_name = "FILE")]
    passphrase_file: Option<PathBuf>,
    /// Address or interface other nodes reach this one at; needed where the machine has several
    #[arg(long, value_name = "IP|INTERFACE[:PORT]", default_value = "")]
    advertise_addr: String,
    /// Address or interface to listen on
    #[arg(long, value_name = "IP|INTERFACE[:PORT]", default_value = "")]
    listen_addr: String,
    /// Whether this node may be given tasks
    #[arg(long, value_enum, default_value_t)]
    availability: AvailabilityArg,
    /// Where the daemon keeps its state, if this starts it
    #[arg(long, env = "RSWARM_STATE_DIR", value_name = "PATH")]
    state_dir: Option<PathBuf>,
}

impl Restore {
    /// Carries the command out.
    ///
    /// # Errors
    /// If the file cannot be used, or this machine is part of a cluster already; nothing is then left behind.
    pub async fn run(self, cx: &mut Context) -> Result<()> {
        let name = self.file.display().to_string();
        let mut input: Box<dyn Read + Send> = match self.file.as_os_str() == "-" {
            true => Box::new(std::io::stdin()),
            false => Box::new(File::open(&self.file).with_context(|| format!("cannot read {name}"))?),
        };
        let what = || format!("cannot restore from {name}");
        let head = Head::read(&mut input).with_context(what)?;
        let key = self.key(cx, &head.header)?;
        let started = ensure_daemon(&cx.socket, self.state_dir.as_deref(), &mut cx.err)?;
        let settings = pb::RestoreHead {
            advertise_addr: self.advertise_addr,
            listen_addr: self.listen_addr,
            availability: pb::Availability::from(self.availability).into(),
            key: key.as_bytes().to_vec().into(),
        };
        let mut client = cx.client().await?;
        let (sender, chunks) = mpsc::channel(4);
        // A thread, since a read from a pipe may never return, and then nobody should wait for it.
        let feeder =
            std::thread::spawn(move || feed(settings, Cursor::new(head.bytes).chain(input), &sender));
        let restored = client.local.restore(ReceiverStream::new(chunks)).await;
        if restored.is_err() {
            started.undo(&mut client).await;
        }
        let answer = match restored {
            Ok(answer) => answer.into_inner(),
            Err(status) => {
                // What went wrong while reading comes first: the daemon only saw the file end early.
                if feeder.is_finished()
                    && let Ok(Err(error)) = feeder.join()
                {
                    return Err(error).with_context(|| format!("cannot read {name}"));
                }
                return Err(refused(&status)).with_context(what);
            }
        };
        cx.out.write_all(render(&answer, units::now_ms()).as_bytes())?;
        Ok(())
    }

    fn key(&self, cx: &mut Context, header: &BackupHeader) -> Result<Key> {
        match &header.passphrase {
            Some(how) => {
                if self.recovery_key_file.is_some() {
                    let failure =
                        Failure::usage("the backup was made with a passphrase, not with a recovery key");
                    return Err(failure.help("name a file that holds it with --passphrase-file").into());
                }
                let passphrase = match &self.passphrase_file {
                    Some(path) => secret(path)?,
                    None => {
                        ask(cx, "Passphrase: ", true, "name a file that holds it with --passphrase-file")?
                    }
                };
                Key::from_passphrase(passphrase.as_bytes(), how)
            }
            None => {
                if self.passphrase_file.is_some() {
                    let failure =
                        Failure::usage("the backup was made with a recovery key, not with a passphrase");
                    return Err(failure.help("name a file that holds it with --recovery-key-file").into());
                }
                let key = match &self.recovery_key_file {
                    Some(path) => secret(path)?,
                    None => {
                        ask(cx, "Recovery key: ", true, "name a file that holds it with --recovery-key-file")?
                    }
                };
                Ok(key.parse()?)
            }
        }
    }
}

/// Sends the settings, and then the file.
fn feed(
    settings: pb::RestoreHead,
    mut from: impl Read,
    to: &mpsc::Sender<pb::RestoreChunk>,
) -> std::io::Result<()> {
    let mut chunk = pb::RestoreChunk { head: Some(settings), data: bytes::Bytes::new() };
    // An error means that the daemon has heard enough; it says why.
    while to.blocking_send(chunk).is_ok() {
        let mut data = Vec::with_capacity(CHUNK_BYTES);
        from.by_ref().take(CHUNK_BYTES as u64).read_to_end(&mut data)?;
        if data.is_empty() {
            break;
        }
        chunk = pb::RestoreChunk { head: None, data: data.into() };
    }
    Ok(())
}

fn render(answer: &pb::RestoreResponse, now_ms: u64) -> String {
    let ago = units::ago(answer.made_at_ms, now_ms);
    let mut text = format!(
        "Cluster {} is restored as it was {ago}, with {} services: this node ({}) is its only manager, and it goes \
         on as incarnation {}.\n",
        answer.cluster_name,
        answer.services,
        answer.node_id,
        rswarm_raft::Incarnation(answer.incarnation),
    );
    if !answer.nodes.is_empty() {
        text += &format!(
            "\nOf the nodes of then ({}), run on each that still exists:\n\n    rswarm rejoin {}\n\n\
             and remove the others with `rswarm node rm --force NODE`.\n",
            answer.nodes.join(", "),
            answer.addr
        );
    }
    text += &format!(
        "\nTo add a manager to this cluster, run the following command:\n\n    {}\n",
        join_command(&answer.manager_token, &answer.addr)
    );
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::expect;

    #[test]
    fn who_restores_is_told_what_becomes_of_the_nodes_of_before() {
        expect![[r"
            Cluster default is restored as it was 2 hours ago, with 3 services: this node (0abc000000001) is its only manager, and it goes on as incarnation 2.

            Of the nodes of then (n1, n2), run on each that still exists:

                rswarm rejoin 10.0.0.9:2377

            and remove the others with `rswarm node rm --force NODE`.

            To add a manager to this cluster, run the following command:

                rswarm join --token RSWTKN-1-d-m 10.0.0.9:2377
        "]]
        .assert_eq(&render(
            &pb::RestoreResponse {
                node_id: "0abc000000001".into(),
                cluster_name: "default".into(),
                addr: "10.0.0.9:2377".into(),
                incarnation: 1 << 32 | 5,
                manager_token: "RSWTKN-1-d-m".into(),
                nodes: vec!["n1".into(), "n2".into()],
                made_at_ms: 1000,
                services: 3,
                ..Default::default()
            },
            7_201_000,
        ));
    }
}
