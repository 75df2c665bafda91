//! After the loss of a quorum: one manager goes on alone, and those that come back rejoin it.

use super::local::{Local, READY, root_tokens};
use crate::agent::Order;
use crate::member::Member;
use anyhow::{Context, Result, ensure};
use rswarm_proto::v1 as pb;

impl Local {
    /// Makes this manager the only one, with the state it has.
    pub(super) async fn force_new_cluster(&self, request: pb::InitRequest) -> Result<pb::InitResponse> {
        let _changing = self.daemon.changing.lock().await;
        let member = self.daemon.member().map_err(|status| {
            anyhow::anyhow!(
                "--force-new-cluster goes on with the state of a manager that survived, and must be typed there: {}",
                status.message()
            )
        })?;
        let addr = member.identity().advertise_addr;
        ensure!(
            request.advertise_addr.is_empty() || crate::config::same_address(&request.advertise_addr, &addr),
            "this manager goes on at its address, {addr}; leave --advertise-addr out"
        );
        let incarnation = member.force_new_cluster().await?;
        let manager = member.manager().context("this manager has stopped")?;
        let state = manager.cluster().state();
        let cluster = state.cluster().context("the cluster is not initialised")?;
        let (worker_token, manager_token) = root_tokens(&cluster.ca_cert_pem, &cluster.tokens)?;
        Ok(pb::InitResponse {
            node_id: member.node.to_string(),
            cluster_id: member.cluster.to_string(),
            worker_token,
            manager_token,
            addr,
            incarnation: incarnation.0,
        })
    }

    /// Takes part in the cluster's present life, as what the cluster knows this node as.
    pub(super) async fn rejoin_cluster(&self, request: pb::RejoinRequest) -> Result<pb::RejoinResponse> {
        let _changing = self.daemon.changing.lock().await;
        let member = self.daemon.member()?;
        if request.addrs.is_empty() {
            member.rejoin().await?;
        } else {
            look_there(&member, &request.addrs).await?;
        }
        let role = welcomed(&member).await?;
        Ok(pb::RejoinResponse { role: role.into() })
    }
}

/// Looks for the cluster at other addresses. What a manager remembers is given up only when the manager that answers
/// there goes on in a later incarnation.
async fn look_there(member: &Member, addrs: &[String]) -> Result<()> {
    if member.refused().is_some() {
        member.agent().look_at(addrs)?;
        return member.rejoin().await;
    }
    let mut orders = member.agent().orders();
    orders.borrow_and_update();
    member.agent().look_at(addrs)?;
    let answered = tokio::time::timeout(READY, orders.changed());
    answered.await.map_err(|_| unanswered(addrs))?.context("the agent has stopped")?;
    let outdated = matches!(&*orders.borrow(), Order::Outdated(_));
    if outdated {
        let denied = member.denied();
        tokio::time::timeout(READY, denied).await.context("the manager does not stop")?;
        member.rejoin().await?;
    }
    Ok(())
}

fn unanswered(addrs: &[String]) -> anyhow::Error {
    anyhow::anyhow!(
        "no manager of this cluster's present incarnation has answered at {} within {} s; this node goes on looking \
         there (see `rswarm status`)",
        addrs.join(", "),
        READY.as_secs()
    )
}

/// Waits for the leader's word about what this node is now, and for the vote of a manager.
async fn welcomed(member: &Member) -> Result<pb::Role> {
    let welcome = async {
        let mut orders = member.agent().orders();
        loop {
            match orders.borrow_and_update().clone() {
                Order::Be(list) if list.role() == pb::Role::Worker => return Ok(pb::Role::Worker),
                Order::Be(list) if list.role() == pb::Role::Manager && votes(member) => {
                    return Ok(pb::Role::Manager);
                }
                Order::Gone(words) => anyhow::bail!("{words}"),
                _ => {}
            }
            // That a manager votes is no news of the session's.
            tokio::select! {
                changed = orders.changed() => changed.context("the agent has stopped")?,
                () = tokio::time::sleep(std::time::Duration::from_millis(20)) => {}
            }
        }
    };
    tokio::time::timeout(READY, welcome).await.with_context(|| {
        format!(
            "the cluster's leader has not taken this node in within {} s; it goes on trying in the background \
             (see `rswarm status`)",
            READY.as_secs()
        )
    })?
}

fn votes(member: &Member) -> bool {
    member.manager().is_some_and(|manager| {
        let status = manager.cluster().log().status();
        status.voters.iter().any(|voter| voter.id == status.id)
    })
}
