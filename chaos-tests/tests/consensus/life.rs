//! What is done to a log that is closed, cut short: a new life of the cluster is there or not, and what was begun with
//! a backup is begun anew.

use super::record::Record;
use super::registers::{Registers, View, encode};
use super::world::member;
use rswarm_chaos::history::Act;
use rswarm_raft::memory::Network;
use rswarm_raft::sim::arm;
use rswarm_raft::{ClusterTag, Config, Frozen, Incarnation, Log, RaftId, begin_with, force_new_cluster};
use std::cell::Cell;
use std::io::{self, Write};
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(20);
const WRITES: u64 = 20;

/// Has the process end at `point`.
///
/// # Errors
/// What did not come back, or that the point was never reached.
pub fn survives(point: &str) -> Result<(), String> {
    let root = tempfile::tempdir().expect("a directory");
    let struck = Rc::new(Cell::new(false));
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_time().build();
    let runtime = runtime.expect("a runtime starts");
    let _inside = runtime.enter();
    let strike = || {
        let struck = struck.clone();
        arm(point, move || struck.set(true));
    };
    let told = if point.starts_with("force") {
        runtime.block_on(lead(root.path(), WRITES))?;
        strike();
        let begun = force_new_cluster(&config(root.path()), &member(1), 7);
        let life = runtime.block_on(lead(root.path(), WRITES))?;
        let new = Incarnation::FIRST.next(7);
        let fits = match point {
            "force.begin" => life == Incarnation::FIRST,
            _ => life == new,
        };
        let again =
            force_new_cluster(&config(root.path()), &member(1), 9).map_err(|error| error.to_string())?;
        if !fits
            || begun.is_ok()
            || again != life.next(9)
            || runtime.block_on(lead(root.path(), WRITES))? != again
        {
            return Err(format!("{point}: it came back in life {life}"));
        }
        Ok(())
    } else {
        strike();
        let begin = || begin_with(&config(root.path()), &member(1), 100, Box::new(Nothing));
        if begin().is_ok() {
            return Err(format!("{point}: nobody came by"));
        }
        rswarm_raft::wipe(root.path()).map_err(|error| error.to_string())?;
        begin().map_err(|error| error.to_string())?;
        runtime.block_on(lead(root.path(), 0)).map(drop)
    };
    match struck.get() {
        true => told,
        false => Err(format!("{point}: nobody came by")),
    }
}

/// The state of registers in which nothing was ever written.
struct Nothing;

impl Frozen for Nothing {
    fn write(self: Box<Self>, to: &mut dyn Write) -> io::Result<()> {
        let (registers, _) = Registers::new(Record::new(), false);
        rswarm_raft::StateMachine::freeze(&registers).write(to)
    }
}

fn config(dir: &Path) -> Config {
    Config::new(dir, RaftId(1), ClusterTag(1))
}

/// Starts the manager, has it write up to `count`, and stops it; answers in which life it was.
async fn lead(dir: &Path, count: u64) -> Result<Incarnation, String> {
    let (registers, view): (_, View) = Registers::new(Record::new(), false);
    let network = Network::new();
    let log = Log::open(config(dir), registers, network.transport(RaftId(1))).await;
    let log = log.map_err(|error| format!("it does not start: {error}"))?;
    drop(log.bootstrap(member(1)).await);
    let led = log.wait(PATIENCE, |status| status.is_leader()).await.ok_or("it does not lead alone")?;
    log.read_index().await.map_err(|error| format!("it cannot be read: {error}"))?;
    let known = view.get(0);
    if known != 0 && known != count {
        return Err(format!("{count} was acknowledged, now it is {known}"));
    }
    for value in known + 1..=count {
        log.propose(encode(0, Act::Write(value)))
            .await
            .map_err(|error| format!("it takes no writes: {error}"))?;
    }
    log.shutdown().await;
    Ok(led.incarnation)
}
