//! `rswarm init`

use super::context::Context;
use super::failure::refused;
use super::node::AvailabilityArg;
use super::start::ensure_daemon;
use anyhow::{Context as _, Result};
use rswarm_proto::v1 as pb;
use std::fmt::Write as _;
use std::path::PathBuf;

/// Start a cluster on this machine
#[derive(Debug, clap::Args)]
pub struct Init {
    /// Address or interface other nodes reach this one at; needed where the machine has several
    #[arg(long, value_name = "IP|INTERFACE[:PORT]")]
    advertise_addr: Option<String>,
    /// Address or interface to listen on
    #[arg(long, value_name = "IP|INTERFACE[:PORT]", default_value = "")]
    listen_addr: String,
    /// What the cluster is called
    #[arg(long, default_value = "default")]
    name: String,
    /// After most managers were lost: go on alone from the state this manager has
    #[arg(long, conflicts_with_all = ["name", "availability", "listen_addr"])]
    force_new_cluster: bool,
    /// Whether this node may be given tasks
    #[arg(long, value_enum, default_value_t)]
    availability: AvailabilityArg,
    /// Where the daemon keeps its state, if this starts it
    #[arg(long, env = "RSWARM_STATE_DIR", value_name = "PATH")]
    state_dir: Option<PathBuf>,
}

impl Init {
    /// Carries the command out.
    ///
    /// # Errors
    /// If the daemon cannot be started, or refuses.
    pub async fn run(self, cx: &mut Context) -> Result<()> {
        let started = ensure_daemon(&cx.socket, self.state_dir.as_deref(), &mut cx.err)?;
        let request = pb::InitRequest {
            advertise_addr: self.advertise_addr.unwrap_or_default(),
            listen_addr: self.listen_addr,
            name: self.name,
            availability: pb::Availability::from(self.availability).into(),
            force_new_cluster: self.force_new_cluster,
        };
        let mut client = cx.client().await?;
        let answer = client.local.init(request).await;
        if answer.is_err() {
            started.undo(&mut client).await;
        }
        let (what, render): (_, fn(&pb::InitResponse) -> String) = match self.force_new_cluster {
            true => ("cannot start the cluster anew", render_anew),
            false => ("cannot start a cluster", render),
        };
        let answer = answer.map_err(|status| refused(&status)).context(what)?;
        cx.out.write_all(render(&answer.into_inner()).as_bytes())?;
        Ok(())
    }
}

fn render(answer: &pb::InitResponse) -> String {
    let mut text = format!("Cluster initialized: this node ({}) is now a manager.\n\n", answer.node_id);
    text += "To add a worker to this cluster, run the following command:\n\n";
    write!(text, "    {}\n\n", join_command(&answer.worker_token, &answer.addr))
        .expect("a string takes everything");
    text +=
        "To add a manager to this cluster, run `rswarm join-token manager` and follow the instructions.\n";
    text
}

fn render_anew(answer: &pb::InitResponse) -> String {
    format!(
        "The cluster goes on from the state of this manager ({}), which is now its only one, as incarnation {}.\n\n\
         On each old manager that comes back, run:\n\n    rswarm rejoin\n\n\
         Remove those that never will with `rswarm node rm --force NODE`, and add managers in their place:\n\n    {}\n",
        answer.node_id,
        rswarm_raft::Incarnation(answer.incarnation),
        join_command(&answer.manager_token, &answer.addr)
    )
}

/// What to type on the machine that joins.
pub fn join_command(token: &str, addr: &str) -> String {
    format!("rswarm join --token {token} {addr}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::expect;

    #[test]
    fn who_goes_on_alone_is_told_what_becomes_of_the_others() {
        expect![[r"
            The cluster goes on from the state of this manager (0abc000000001), which is now its only one, as incarnation 2.

            On each old manager that comes back, run:

                rswarm rejoin

            Remove those that never will with `rswarm node rm --force NODE`, and add managers in their place:

                rswarm join --token RSWTKN-1-d-m 10.0.0.1:2377
        "]]
        .assert_eq(&render_anew(&pb::InitResponse {
            node_id: "0abc000000001".into(),
            manager_token: "RSWTKN-1-d-m".into(),
            addr: "10.0.0.1:2377".into(),
            incarnation: 1 << 32 | 5,
            ..Default::default()
        }));
    }

    #[test]
    fn it_says_how_others_join() {
        expect![[r"
            Cluster initialized: this node (0abc000000001) is now a manager.

            To add a worker to this cluster, run the following command:

                rswarm join --token RSWTKN-1-d-w 10.0.0.1:2377

            To add a manager to this cluster, run `rswarm join-token manager` and follow the instructions.
        "]]
        .assert_eq(&render(&pb::InitResponse {
            node_id: "0abc000000001".into(),
            worker_token: "RSWTKN-1-d-w".into(),
            addr: "10.0.0.1:2377".into(),
            ..Default::default()
        }));
    }
}
