//! The writer without its thread: it waits by the simulation's clock, so that a run follows from its seed.

use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use super::{Op, Writer, closed, refuse};
use crate::sim::{Disk, Sim};

/// How often it is looked whether there is room again.
const ROOM: Duration = Duration::from_millis(100);

/// The handle; what was queued and not yet taken when it is closed is refused.
pub(super) struct Simulated {
    ops: UnboundedSender<Op>,
    writer: Shared,
}

#[derive(Clone)]
struct Shared(Arc<Mutex<Option<Writer>>>);

impl Shared {
    fn writer(&self) -> MutexGuard<'_, Option<Writer>> {
        self.0.lock().expect("nothing panics while it holds this lock")
    }
}

impl Simulated {
    pub(super) fn start(writer: Writer, disk: Disk, sim: Sim) -> Self {
        let (ops, queue) = unbounded_channel();
        let writer = Shared(Arc::new(Mutex::new(Some(writer))));
        tokio::spawn(run(writer.clone(), queue, disk, sim));
        Self { ops, writer }
    }

    pub(super) fn push(&self, op: Op) {
        if let Err(unsent) = self.ops.send(op) {
            refuse(unsent.0, closed);
        }
    }

    pub(super) fn close(&self) {
        if let Some(mut writer) = self.writer.writer().take() {
            writer.finish();
        }
    }
}

async fn run(shared: Shared, mut queue: UnboundedReceiver<Op>, disk: Disk, sim: Sim) {
    while let Some(first) = queue.recv().await {
        // Without room for another segment it waits; the machine's own disk is not meant.
        while disk.is_full() && shared.writer().as_ref().is_some_and(Writer::near_the_end) {
            tokio::time::sleep(ROOM).await;
        }
        let mut next = Some(first);
        while let Some(op) = next {
            match shared.writer().as_mut() {
                Some(writer) => writer.take(op),
                None => refuse(op, closed),
            }
            next = queue.try_recv().ok();
        }
        if let Some(writer) = shared.writer().as_mut() {
            let written = writer.write();
            writer.settle(written);
            if sim.flaws.ack_before_sync {
                writer.acknowledge();
            }
        }
        let gauge = shared.writer().as_ref().map(|writer| writer.media.gauge.clone());
        if let Some(gauge) = gauge {
            gauge.begin();
        }
        tokio::time::sleep(disk.sync_time()).await;
        if let Some(writer) = shared.writer().as_mut() {
            let flushed = writer.flush();
            writer.settle(flushed);
        }
    }
}
