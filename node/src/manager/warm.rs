//! Keeps the connections to the other managers open, so that whoever comes to lead, and whoever passes calls on to
//! it, need not first connect and prove who it is.

use crate::rpc::dial::{Dialer, Line};
use futures_util::future::join_all;
use rswarm_raft::{Log, Member};
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// How often it is seen to that they stand: a manager that came back is met again within this.
const EVERY: Duration = Duration::from_secs(1);
/// How long one may take before it is left for the next time.
const PATIENCE: Duration = Duration::from_secs(5);

/// Keeps those of one kind open until `stop`.
pub async fn keep_warm(log: Arc<Log>, dialer: Arc<Dialer>, line: Line, stop: CancellationToken) {
    let mut status = log.watch();
    loop {
        let now = status.borrow_and_update().clone();
        let others: Vec<&Member> = now.members().filter(|member| member.id != now.id).collect();
        let met = join_all(others.iter().map(async |member| {
            let met = tokio::time::timeout(PATIENCE, dialer.warm(&member.node, &member.addr, line)).await;
            if let Ok(Err(error)) = met {
                tracing::trace!(%member, error = format!("{error:#}"), "not reached");
            }
        }));
        let members = now.membership_index;
        let due = async {
            tokio::select! {
                () = tokio::time::sleep(EVERY) => {}
                _ = status.wait_for(|now| now.membership_index != members) => {}
            }
        };
        tokio::select! {
            () = stop.cancelled() => return,
            _ = async { tokio::join!(met, due) } => {}
        }
    }
}
