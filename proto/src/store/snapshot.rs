//! The whole state, written and read object by object, so that neither end holds two of it.
//!
//! Eight bytes of magic, the last of them the format's digit; then records, each its length in four bytes,
//! little-endian, and a message; the last record counts those before it. Nothing here protects against
//! damage: the log does that for what it stores.

use super::change::{request_in, request_out};
use crate::convert::{Invalid, task, task_without_spec};
use crate::v1::store as disk;
use crate::v1::store::record::{End, Forgotten, Happened, Head, RemovedNode, Request, SharedSpec, What};
use prost::Message;
use rswarm_control::model::{Cluster, Service, TaskSpec};
use rswarm_control::{ServiceId, Snapshot, State, Timestamp};
use std::collections::HashMap;
use std::io::{self, Read, Write};
use std::sync::Arc;

/// The largest record that is written or read, in bytes.
pub const RECORD_BYTES_MAX: usize = 16 << 20;

const MAGIC: [u8; 8] = *b"RSWSNAP1";

/// Why bytes are not a snapshot.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// They could not be read.
    #[error("cannot read the snapshot")]
    Io(#[from] io::Error),
    /// They begin with something else.
    #[error("this is not a snapshot, or one of a newer format; install a newer rswarm")]
    Format,
    /// A record is not a message, or comes where it cannot.
    #[error("record {record} of the snapshot is damaged: {why}")]
    Damaged {
        /// Counted from 0.
        record: u64,
        /// In words.
        why: String,
    },
    /// A record says something that cannot be.
    #[error("record {record} of the snapshot is invalid")]
    Invalid {
        /// Counted from 0.
        record: u64,
        /// What.
        source: Invalid,
    },
}

/// Writes the whole state.
///
/// # Errors
/// If `to` fails, or an object is larger than [`RECORD_BYTES_MAX`].
pub fn write_snapshot(state: &State, to: &mut dyn Write) -> io::Result<()> {
    let Snapshot {
        index,
        clock,
        next_number,
        next_raft,
        cluster,
        nodes,
        removed_nodes,
        services,
        networks,
        tasks,
        requests,
        events,
        forgotten,
    } = state.snapshot();
    to.write_all(&MAGIC)?;
    let mut to = Records { to, written: 0, buffer: Vec::new() };
    to.put(What::Head(Head { index, clock_ms: clock.0, next_number, next_raft }))?;
    if let Some(cluster) = cluster {
        to.put(What::Cluster(cluster.as_ref().into()))?;
    }
    for node in nodes {
        to.put(What::Node(node.as_ref().into()))?;
    }
    for (node, at) in removed_nodes {
        to.put(What::RemovedNode(RemovedNode { node: node.to_string(), at_ms: at.0 }))?;
    }
    for network in networks {
        to.put(What::Network(network.as_ref().into()))?;
    }
    let mut specs = Specs::default();
    for service in services {
        to.put(What::Service(service.as_ref().into()))?;
        specs.of_service(&service);
    }
    for task in tasks {
        let key = (task.service, task.spec_version);
        if !specs.0.get(&key).is_some_and(|known| Arc::ptr_eq(known, &task.spec) || *known == task.spec) {
            to.put(What::Spec(SharedSpec {
                service: task.service.to_string(),
                spec_version: task.spec_version,
                spec: Some(task.spec.as_ref().into()),
            }))?;
            specs.0.insert(key, task.spec.clone());
        }
        to.put(What::Task(task_without_spec(&task)))?;
    }
    for (request, at, answer) in requests {
        to.put(What::Request(Request {
            request: request_out(request),
            at_ms: at.0,
            answer: Some(answer.into()),
        }))?;
    }
    to.put(What::Forgotten(Forgotten { index: forgotten }))?;
    for event in events {
        to.put(What::Happened(Happened { event: Some(event.as_ref().into()) }))?;
    }
    let records = to.written;
    to.put(What::End(End { records }))
}

/// Reads what [`write_snapshot`] wrote, and not a byte beyond it.
///
/// # Errors
/// If `from` fails, or is no snapshot of a format known here. Never panics, whatever the bytes, and holds
/// no more than they are worth.
pub fn read_snapshot(from: &mut dyn Read) -> Result<State, SnapshotError> {
    let mut magic = [0; MAGIC.len()];
    from.read_exact(&mut magic)?;
    if magic != MAGIC {
        return Err(SnapshotError::Format);
    }
    let mut snapshot = Snapshot::default();
    let mut specs = Specs::default();
    let mut buffer = Vec::new();
    for record in 0.. {
        let damaged = |why: String| SnapshotError::Damaged { record, why };
        read_record(from, &mut buffer, record)?;
        let message = disk::Record::decode(buffer.as_slice()).map_err(|error| damaged(error.to_string()))?;
        let what = message.what.ok_or_else(|| damaged("it is of an unknown kind".into()))?;
        if matches!(what, What::Head(_)) != (record == 0) {
            return Err(damaged("the head must come first, and once".into()));
        }
        if let What::End(End { records }) = what {
            return match records == record {
                true => Ok(State::restore(snapshot)),
                false => Err(damaged(format!("{records} records were written, {record} are here"))),
            };
        }
        take(&mut snapshot, &mut specs, what).map_err(|source| SnapshotError::Invalid { record, source })?;
    }
    unreachable!("a snapshot of 2^64 records cannot be read")
}

fn take(snapshot: &mut Snapshot, specs: &mut Specs, what: What) -> Result<(), Invalid> {
    use crate::convert::{Problem, nested, parsed};
    match what {
        What::Head(Head { index, clock_ms, next_number, next_raft }) => {
            snapshot.index = index;
            snapshot.clock = Timestamp(clock_ms);
            snapshot.next_number = next_number;
            snapshot.next_raft = next_raft;
        }
        What::Cluster(cluster) => snapshot.cluster = Some(Arc::new(Cluster::try_from(cluster)?)),
        What::Node(node) => snapshot.nodes.push(Arc::new(node.try_into()?)),
        What::RemovedNode(RemovedNode { node, at_ms }) => {
            snapshot.removed_nodes.push((parsed("node", &node)?, Timestamp(at_ms)));
        }
        What::Network(network) => snapshot.networks.push(Arc::new(network.try_into()?)),
        What::Service(service) => {
            let service = Service::try_from(service)?;
            specs.of_service(&service);
            snapshot.services.push(Arc::new(service));
        }
        What::Spec(SharedSpec { service, spec_version, spec }) => {
            let spec: TaskSpec = nested("spec", spec)?;
            specs.0.insert((parsed("service", &service)?, spec_version), Arc::new(spec));
        }
        What::Task(wire) => {
            let key = (parsed("service", &wire.service)?, wire.spec_version);
            let spec = specs.0.get(&key).ok_or_else(|| Invalid::new("spec", Problem::Missing))?;
            snapshot.tasks.push(Arc::new(task(wire, spec.clone())?));
        }
        What::Request(Request { request, at_ms, answer }) => {
            let answer = nested("answer", Some(answer.unwrap_or_default()))?;
            snapshot.requests.push((request_in("request", &request)?, Timestamp(at_ms), answer));
        }
        What::Forgotten(Forgotten { index }) => snapshot.forgotten = index,
        What::Happened(Happened { event }) => snapshot.events.push(Arc::new(nested("event", event)?)),
        What::End(_) => {}
    }
    Ok(())
}

/// The task specs seen so far, by the name that tasks know them by.
#[derive(Default)]
struct Specs(HashMap<(ServiceId, u64), Arc<TaskSpec>>);

impl Specs {
    fn of_service(&mut self, service: &Service) {
        self.0.insert((service.id, service.spec_version), service.spec.task.clone());
    }
}

struct Records<'a> {
    to: &'a mut dyn Write,
    written: u64,
    buffer: Vec<u8>,
}

impl Records<'_> {
    fn put(&mut self, what: What) -> io::Result<()> {
        let record = disk::Record { what: Some(what) };
        let length = record.encoded_len();
        if length > RECORD_BYTES_MAX {
            let why = format!("an object of {length} bytes is too large for a snapshot");
            return Err(io::Error::new(io::ErrorKind::InvalidData, why));
        }
        self.buffer.clear();
        self.buffer.extend(u32::try_from(length).expect("RECORD_BYTES_MAX is below 2^32").to_le_bytes());
        record.encode(&mut self.buffer).expect("a vector grows");
        self.written += 1;
        self.to.write_all(&self.buffer)
    }
}

/// Fills `buffer` with one record. Room is made as bytes arrive, not as the length promises.
fn read_record(from: &mut dyn Read, buffer: &mut Vec<u8>, record: u64) -> Result<(), SnapshotError> {
    let mut length = [0; 4];
    from.read_exact(&mut length)?;
    let length = u32::from_le_bytes(length) as usize;
    if length > RECORD_BYTES_MAX {
        return Err(SnapshotError::Damaged { record, why: format!("it claims {length} bytes") });
    }
    buffer.clear();
    let read = from.take(length as u64).read_to_end(buffer)?;
    if read < length {
        return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
    }
    Ok(())
}
