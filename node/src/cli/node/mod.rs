//! `rswarm node`

pub mod demote;
pub mod inspect;
pub mod ls;
pub mod promote;
pub mod ps;
pub mod rm;
pub mod update;

use super::client::{Client, checked};
use super::context::Context;
use super::failure::{Failure, refused};
use anyhow::Result;
use clap::{Subcommand, ValueEnum};
use rswarm_control::model::{Availability, Node, NodeStatus};
use rswarm_proto::v1 as pb;
use std::cmp::Ordering;
use std::fmt;

/// Manage the machines of the cluster
#[derive(Debug, Subcommand)]
#[allow(missing_docs, reason = "each variant is described by its type")]
pub enum NodeCommand {
    #[command(visible_alias = "list")]
    Ls(ls::Ls),
    Inspect(inspect::Inspect),
    Ps(ps::Ps),
    Update(update::Update),
    Promote(promote::Promote),
    Demote(demote::Demote),
    #[command(visible_alias = "remove")]
    Rm(rm::Rm),
}

impl NodeCommand {
    /// Carries the command out.
    ///
    /// # Errors
    /// With the words for the user.
    pub async fn run(self, cx: &mut Context) -> Result<()> {
        match self {
            Self::Ls(command) => command.run(cx).await,
            Self::Inspect(command) => command.run(cx).await,
            Self::Ps(command) => command.run(cx).await,
            Self::Update(command) => command.run(cx).await,
            Self::Promote(command) => command.run(cx).await,
            Self::Demote(command) => command.run(cx).await,
            Self::Rm(command) => command.run(cx).await,
        }
    }
}

/// Whether a node may be given work, as an option's value.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum AvailabilityArg {
    /// It may
    #[default]
    Active,
    /// It keeps what it has and gets nothing new
    Pause,
    /// What it has moves away
    Drain,
}

impl From<AvailabilityArg> for pb::Availability {
    fn from(arg: AvailabilityArg) -> Self {
        match arg {
            AvailabilityArg::Active => Self::Active,
            AvailabilityArg::Pause => Self::Pause,
            AvailabilityArg::Drain => Self::Drain,
        }
    }
}

/// What a node is for, as an argument.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum RoleArg {
    /// Runs tasks
    Worker,
    /// Runs tasks and keeps the cluster's state
    Manager,
}

impl From<RoleArg> for pb::Role {
    fn from(arg: RoleArg) -> Self {
        match arg {
            RoleArg::Worker => Self::Worker,
            RoleArg::Manager => Self::Manager,
        }
    }
}

impl fmt::Display for RoleArg {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Worker => "worker",
            Self::Manager => "manager",
        })
    }
}

/// As tables show it.
pub fn status_name(status: NodeStatus) -> &'static str {
    match status {
        NodeStatus::Unknown => "Unknown",
        NodeStatus::Ready => "Ready",
        NodeStatus::Suspect => "Suspect",
        NodeStatus::Down => "Down",
        NodeStatus::Left => "Left",
    }
}

/// As tables show it.
pub fn availability_name(availability: Availability) -> &'static str {
    match availability {
        Availability::Active => "Active",
        Availability::Pause => "Pause",
        Availability::Drain => "Drain",
    }
}

/// By text, but numbers in it by value: n2 comes before n10.
pub fn natural(one: &str, other: &str) -> Ordering {
    let split = |text: &str| {
        let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
        text.split_at(digits).0.len()
    };
    let (mut a, mut b) = (one, other);
    loop {
        let (digits_a, digits_b) = (split(a), split(b));
        let order = if digits_a > 0 && digits_b > 0 {
            let (x, y) = (a[..digits_a].trim_start_matches('0'), b[..digits_b].trim_start_matches('0'));
            let order = x.len().cmp(&y.len()).then_with(|| x.cmp(y));
            (a, b) = (&a[digits_a..], &b[digits_b..]);
            order
        } else {
            let (mut rest_a, mut rest_b) = (a.chars(), b.chars());
            let order = match (rest_a.next(), rest_b.next()) {
                (None, None) => return one.cmp(other),
                (x, y) => x.cmp(&y),
            };
            (a, b) = (rest_a.as_str(), rest_b.as_str());
            order
        };
        if order.is_ne() {
            return order;
        }
    }
}

/// The node that `name` means: its id, the beginning of its id, its host name, or `self`.
///
/// # Errors
/// If it means none, or several.
pub fn find<'a>(nodes: &'a [Node], self_id: &str, name: &str) -> Result<&'a Node, Failure> {
    if name.is_empty() {
        return Err(Failure::failed("which node? Its name is empty").help("`rswarm node ls` shows the nodes"));
    }
    let name = if name == "self" { self_id } else { name };
    let by_id: Vec<&Node> = nodes.iter().filter(|node| node.id.to_string().starts_with(name)).collect();
    let by_name: Vec<&Node> = nodes.iter().filter(|node| node.hostname == name).collect();
    let exact = nodes.iter().find(|node| node.id.to_string() == name);
    match (exact, by_name.as_slice(), by_id.as_slice()) {
        (Some(node), _, _) => Ok(node),
        (None, [node], _) | (None, [], [node]) => Ok(*node),
        (None, [], []) => {
            Err(Failure::failed(format!("there is no node `{name}`"))
                .help("`rswarm node ls` shows the nodes"))
        }
        _ => Err(Failure::failed(format!("several nodes are meant by `{name}`")).help("name one by its id")),
    }
}

/// All nodes, checked, with what the manager said about them.
async fn all(client: &mut Client) -> Result<(Vec<Node>, pb::ListNodesResponse)> {
    let mut answer = client.nodes().await?;
    let nodes = checked(std::mem::take(&mut answer.nodes))?;
    Ok((nodes, answer))
}

/// Gives nodes a role, one after another; all are tried.
async fn set_role(cx: &mut Context, nodes: &[String], role: pb::Role) -> Result<()> {
    let (done, already) = match role {
        pb::Role::Manager => ("promoted to a manager", "is already a manager"),
        _ => ("demoted to a worker", "is already a worker"),
    };
    let mut client = cx.client().await?;
    for node in nodes {
        let named = client.node(node).await?;
        let request = pb::UpdateNodeRequest { node: named, role: Some(role.into()), ..Default::default() };
        let answer = client.control.update_node(request).await.map_err(|status| {
            anyhow::Error::new(refused(&status)).context(format!("cannot change the role of `{node}`"))
        })?;
        let answer = answer.into_inner();
        match answer.changed {
            true => writeln!(cx.out, "Node {node} {done}.")?,
            false => writeln!(cx.out, "Node {node} {already}.")?,
        }
        if answer.vote_pending {
            let vote = if role == pb::Role::Manager { "It has no vote yet" } else { "It still has its vote" };
            writeln!(cx.err, "{vote}; the managers go on trying. See `rswarm status`.")?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::view::samples;

    #[test]
    fn numbers_in_names_sort_by_value() {
        let mut names = ["n10", "n2", "n1", "m", "n2b", "n02"];
        names.sort_by(|a, b| natural(a, b));
        assert_eq!(names, ["m", "n1", "n02", "n2", "n2b", "n10"]);
    }

    #[test]
    fn nodes_are_found_by_id_prefix_name_and_self() {
        let nodes = [samples::node("n1", 1), samples::node("n2", 36), samples::node("n2", 37)];
        let found =
            |name| find(&nodes, "0000000000011", name).map(|node| node.id.0).map_err(|e| e.to_string());
        assert_eq!(found("n1"), Ok(1));
        assert_eq!(found("0000000000010"), Ok(36));
        assert_eq!(found("self"), Ok(37));
        assert_eq!(found("n2"), Err("several nodes are meant by `n2`".into()));
        assert_eq!(found("0000"), Err("several nodes are meant by `0000`".into()));
        assert_eq!(found("nope"), Err("there is no node `nope`".into()));
    }
}
