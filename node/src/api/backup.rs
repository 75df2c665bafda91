//! The whole cluster into a file, and out of one again.

use super::local::{self, Local, READY};
use crate::backup::{self, key::Key};
use crate::daemon::{Daemon, Membership};
use crate::identity::{Identity, ManagerAddr, ca, random};
use crate::manager::{self, cluster};
use crate::member::Member;
use crate::rpc::listen;
use crate::wall;
use anyhow::{Context, Result, anyhow, ensure};
use bytes::{Buf, Bytes};
use rswarm_control::admission::{Founder, Restored, restore};
use rswarm_control::state::State;
use rswarm_proto::v1 as pb;
use rswarm_proto::v1::store::BackupHeader;
use rswarm_raft::{Incarnation, RaftId};
use std::io::{self, Read, Write};
use std::pin::Pin;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};

/// A backup on its way to whoever asked for it.
pub type Chunks = Pin<Box<dyn tokio_stream::Stream<Item = Result<pb::BackupChunk, Status>> + Send>>;

const CHUNK_BYTES: usize = 256 << 10;

/// Everything that was acknowledged before this call, sealed.
pub(super) async fn back_up(daemon: &Daemon, request: pb::BackupRequest) -> Result<Chunks, Status> {
    let member = daemon.member()?;
    if let Some(denial) = member.refused() {
        return Err(Status::failed_precondition(denial.to_string()));
    }
    if let Some(lost) = member.lost() {
        return Err(Status::failed_precondition(format!(
            "this manager has lost the cluster's state ({lost}): make the backup on another"
        )));
    }
    let manager = member.manager().ok_or_else(|| {
        Status::failed_precondition(
            "this node is a worker and does not have the cluster's state: make the backup on a manager",
        )
    })?;
    let key = Key::from_bytes(&request.key).map_err(|error| Status::invalid_argument(error.to_string()))?;
    let state = manager.cluster().fresh().await?;
    let header = BackupHeader {
        made_at_ms: manager::clock::now().0,
        passphrase: request.passphrase,
        ..Default::default()
    };
    let (sender, receiver) = mpsc::channel(4);
    // It ends when the file does, or when nobody reads it any more.
    tokio::task::spawn_blocking(move || {
        let mut out = io::BufWriter::with_capacity(CHUNK_BYTES, Pipe(sender.clone()));
        let written = backup::write(&state, header, &key, &mut out).and_then(|()| out.flush());
        let last = match written {
            Ok(()) => Ok(pb::BackupChunk { data: Bytes::new(), done: Some(summary(&state)) }),
            Err(error) => Err(Status::internal(format!("the state cannot be written: {error}"))),
        };
        let _ = sender.blocking_send(last);
    });
    Ok(Box::pin(ReceiverStream::new(receiver)))
}

fn summary(state: &State) -> pb::BackupDone {
    let count = |number: usize| u32::try_from(number).unwrap_or(u32::MAX);
    pb::BackupDone {
        cluster_name: state.cluster().map(|cluster| cluster.name.clone()).unwrap_or_default(),
        index: state.index(),
        services: count(state.services().count()),
        nodes: count(state.nodes().count()),
    }
}

/// Sends on what is written.
struct Pipe(mpsc::Sender<Result<pb::BackupChunk, Status>>);

impl Write for Pipe {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let piece = &bytes[..bytes.len().min(CHUNK_BYTES)];
        let chunk = pb::BackupChunk { data: Bytes::copy_from_slice(piece), done: None };
        match self.0.blocking_send(Ok(chunk)) {
            Ok(()) => Ok(piece.len()),
            Err(_) => Err(io::ErrorKind::BrokenPipe.into()),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Reads what arrives.
struct Arriving {
    pieces: mpsc::Receiver<Bytes>,
    piece: Bytes,
}

impl Read for Arriving {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        while self.piece.is_empty() {
            match self.pieces.blocking_recv() {
                Some(piece) => self.piece = piece,
                None => return Ok(0),
            }
        }
        let length = out.len().min(self.piece.len());
        self.piece.copy_to_slice(&mut out[..length]);
        Ok(length)
    }
}

/// The state in a backup that arrives.
async fn received(mut stream: Streaming<pb::RestoreChunk>, key: Key) -> Result<(BackupHeader, State)> {
    let (sender, pieces) = mpsc::channel(4);
    let reading = tokio::task::spawn_blocking(move || {
        backup::read(&mut Arriving { pieces, piece: Bytes::new() }, &key)
    });
    let feeding = async move {
        while let Some(chunk) = stream.message().await? {
            // Whoever reads has seen enough; it says why.
            if sender.send(chunk.data).await.is_err() {
                break;
            }
        }
        Ok::<_, Status>(())
    };
    let (fed, read) = tokio::join!(feeding, reading);
    // If the sender went away, the file is not what is wrong.
    fed.map_err(|status| anyhow!("the backup did not arrive: {}", status.message()))?;
    read.context("the reader has stopped")?
}

impl Local {
    /// Makes this machine the only manager of the cluster that is in a backup, in a new incarnation of it.
    pub(super) async fn restore_cluster(
        &self,
        mut stream: Streaming<pb::RestoreChunk>,
    ) -> Result<pb::RestoreResponse> {
        let _changing = self.daemon.changing.lock().await;
        self.inactive()?;
        let first = stream.message().await.ok().flatten().and_then(|first| first.head);
        let head = first.context("a restore begins with its settings")?;
        let key = Key::from_bytes(&head.key)?;
        let ground = self.daemon.ground.clone();
        let state_dir = ground.config.state_dir.clone();
        let availability = local::availability(head.availability())?;
        let (listen_addr, advertise) = local::addresses(&ground, &head.listen_addr, &head.advertise_addr)?;
        let listener = listen::bind(listen_addr).await?;

        let (header, backup) = received(stream, key).await?;
        let founder = Founder {
            hostname: crate::machine::hostname(),
            addr: advertise.to_string(),
            availability,
            description: crate::machine::describe(&ground),
        };
        let tail = u32::from_le_bytes(random());
        let incarnation = Incarnation(backup.cluster().map_or(1, |cluster| cluster.incarnation)).next(tail);
        let Restored { state, node, seat } =
            restore(&backup, &founder, incarnation.0, manager::clock::now())?;
        let nodes = backup.nodes().map(|node| node.hostname.clone()).collect();
        let services = u32::try_from(state.services().count()).unwrap_or(u32::MAX);
        let cluster = state.cluster().context("the backup is of no cluster")?.clone();
        let root = ca::Root { cert_pem: cluster.ca_cert_pem.clone(), key_pem: cluster.ca_key_pem.0.clone() };
        let (key_pem, csr) = ca::request()?;
        let (node, cluster_id) = (node.to_string(), cluster.id.to_string());
        let now = wall::now();
        let cert_pem = root.sign(&csr, &node, &cluster_id, now, cluster.settings.cert_expiry)?;
        let (_, manager_token) = local::root_tokens(&cluster.ca_cert_pem, &cluster.tokens)?;
        let identity = Identity {
            format: Identity::FORMAT,
            node: node.clone(),
            cluster: cluster_id.clone(),
            cert_pem,
            key_pem,
            ca_pem: root.cert_pem,
            advertise_addr: advertise.to_string(),
            listen_addr: listen_addr.to_string(),
            raft_id: Some(seat.0),
            managers: vec![ManagerAddr { node: node.clone(), addr: advertise.to_string(), raft_id: seat.0 }],
            incarnation: incarnation.0,
            superseded: None,
        };

        // What lies here is of an attempt that did not come to its end: there is no identity beside it.
        manager::seat::give_up(&state_dir).context("cannot remove an unfinished cluster")?;
        manager::seat::claim(&state_dir, seat.0)?;
        let place = manager::Place {
            state_dir: state_dir.clone(),
            seat: seat.0,
            cluster: cluster.id,
            incarnation,
            patient: ground.config.patient,
        };
        let me = rswarm_raft::Member { id: RaftId(seat.0), addr: advertise.to_string(), node: node.clone() };
        let index = state.index();
        let written = tokio::task::spawn_blocking(move || {
            rswarm_raft::begin_with(&place.config(), &me, index, cluster::frozen(state))
        });
        let begun = async {
            written
                .await
                .context("the log's writer has stopped")?
                .context("cannot write the manager's log")?;
            // From here on there is a cluster, also after a crash.
            identity.save(&state_dir)?;
            let member = Member::start(ground, identity, listener, None).await?;
            ensure!(member.lost().is_none(), "the log was written and cannot be read again");
            Ok(member)
        };
        let member = begun.await.inspect_err(|_: &anyhow::Error| local::forget(&state_dir))?;
        self.daemon.set_membership(Membership::Active(member.clone()));
        local::session(&member).await.with_context(|| {
            format!("the cluster is restored, but does not answer within {} s yet", READY.as_secs())
        })?;
        Ok(pb::RestoreResponse {
            node_id: node,
            cluster_id,
            cluster_name: cluster.name.clone(),
            addr: advertise.to_string(),
            incarnation: incarnation.0,
            manager_token,
            nodes,
            made_at_ms: header.made_at_ms,
            services,
        })
    }
}
