//! What all managers of a cluster understand: a number that rises when the last of them has been upgraded.
//!
//! Managers apply the same log, so none may be asked to apply what it does not know. A daemon says up to which level
//! it understands the log; the leader raises the cluster's level to what all managers have said, and writes nothing
//! that belongs to a higher one. It never falls: a manager of a lower level is refused from then on, in words.
//!
//! | level | adds |
//! |---|---|
//! | 1 | all that the first release writes, but for the following |
//! | 2 | requests are remembered ([`Change::Once`]) |
//! | 3 | what a health check finds is an event; services are rebalanced ([`Change::SetRebalance`]); containers have a [`Profile`] and tasks [`Bounds`], and running tasks are retuned ([`Change::Retune`]); the first release says this of itself |
//! | 4 | networks are isolated, and services have allow lists ([`Allow`](crate::model::Allow)), no virtual address, clients that stay with a task, or connections that begin with a header |
//!
//! Workers need not understand the log, but would leave out of a container what they do not know of: a task that asks for
//! more than what is plain is given to no node that does not say that it knows ([`of_task`]).
//!
//! What was written before the first release counts for nothing. From it on, whatever is new in the log, also a field
//! that `apply` heeds, raises [`LATEST`], and is written from that level on only ([`needed`]).

use crate::admission::Refused;
use crate::model::{
    Bounds, Description, EndpointMode, EndpointSpec, Node, NodeStatus, Profile, Role, ServiceSpec, TaskSpec,
};
use crate::plan::Draft;
use crate::state::{Change, State};

/// What every daemon understands.
pub const OLDEST: u32 = 1;
/// What this program understands.
pub const LATEST: u32 = 4;
/// From which requests are remembered.
pub const REQUESTS: u32 = 2;
/// From which what a health check finds is an event.
pub const HEALTH_EVENTS: u32 = 3;
/// From which services are rebalanced.
pub const REBALANCE: u32 = 3;
/// From which containers have a [`Profile`], and running tasks are retuned.
pub const PROFILES: u32 = 3;

/// From which networks are isolated and services have allow lists, which nodes of a lower level do not enforce; and from
/// which services are reached in other ways than by a virtual address for everybody.
pub const POLICY: u32 = 4;

/// That managers of this level can write a spec down whole, and that nodes do what is new in it.
///
/// # Errors
/// If it says what some of them do not understand.
pub(crate) fn admits(state: &State, spec: &ServiceSpec, before: Option<&ServiceSpec>) -> Result<(), Refused> {
    let allow = &spec.endpoint.allow;
    if !allow.is_empty() && before.is_none_or(|before| before.endpoint.allow != *allow) {
        enforced(state)?;
    }
    admits_level(state, of_spec(spec))
}

fn admits_level(state: &State, needed: u32) -> Result<(), Refused> {
    if needed <= state.level() {
        return Ok(());
    }
    Err(Refused::FailedPrecondition(format!(
        "some managers of this cluster run an rswarm that does not know these options (level {}, and they need \
         {needed}): upgrade all managers first",
        state.level()
    )))
}

/// From which level on a daemon knows all that a task is asked to be. One of a lower level would leave some of it out,
/// and say nothing.
pub fn of_task(spec: &TaskSpec) -> u32 {
    let plain = spec.resources.bounds == Bounds::default()
        && spec.containers.iter().all(|container| container.profile == Profile::default());
    if plain { OLDEST } else { PROFILES }
}

/// Whether a node knows all that a task is asked to be.
pub(crate) fn knows(node: &Node, spec: &TaskSpec) -> bool {
    let its = of(&node.description);
    its >= LATEST || its >= of_task(spec)
}

/// That managers can write a network policy down, and that all nodes enforce it.
///
/// # Errors
/// If one does not.
pub(crate) fn enforced(state: &State) -> Result<(), Refused> {
    admits_level(state, POLICY)?;
    let mut present = state.nodes().filter(|node| node.status != NodeStatus::Left);
    match present.find(|node| of(&node.description) < POLICY) {
        None => Ok(()),
        Some(node) => Err(Refused::FailedPrecondition(format!(
            "node {} runs an rswarm that does not enforce who may connect to whom: upgrade it first, or remove it if \
             it is gone",
            node.hostname
        ))),
    }
}

/// From which level on managers can write a spec down whole.
fn of_spec(spec: &ServiceSpec) -> u32 {
    match is_reached_otherwise(&spec.endpoint) {
        true => POLICY,
        false => of_task(&spec.task),
    }
}

fn is_reached_otherwise(endpoint: &EndpointSpec) -> bool {
    endpoint.mode != EndpointMode::Vip
        || endpoint.client_affinity
        || !endpoint.allow.is_empty()
        || endpoint.ports.iter().any(|port| port.proxy_protocol)
}

/// The level of a daemon that says this of itself; those that say nothing are of the oldest.
pub fn of(description: &Description) -> u32 {
    description.level.max(OLDEST)
}

/// From which level on a change may be written. Whoever adds a kind of change says so here.
pub fn needed(change: &Change) -> u32 {
    match change {
        Change::Once { .. } => REQUESTS,
        Change::SetRebalance { .. } => REBALANCE,
        Change::Retune { .. } => PROFILES,
        Change::CreateService(service) => of_spec(&service.spec),
        Change::UpdateService { spec, .. } => of_spec(spec),
        Change::CreateNetwork(network) if network.isolated => POLICY,
        Change::UpdateNetwork { .. } => POLICY,
        Change::SetSettings { settings, .. } if settings.rebalance_since.is_some() => REBALANCE,
        Change::Init(_)
        | Change::SetTokens { .. }
        | Change::SetSettings { .. }
        | Change::SetLevel { .. }
        | Change::CreateNode(_)
        | Change::UpdateNode { .. }
        | Change::OpenSession { .. }
        | Change::SetNodeStatus { .. }
        | Change::RemoveNode { .. }
        | Change::StartAnew { .. }
        | Change::Reseat { .. }
        | Change::SetUpdateStatus { .. }
        | Change::ExpireJob { .. }
        | Change::RemoveService { .. }
        | Change::CreateNetwork(_)
        | Change::RemoveNetwork { .. }
        | Change::CreateTask(_)
        | Change::Allocate { .. }
        | Change::Assign { .. }
        | Change::Note { .. }
        | Change::SetDesired { .. }
        | Change::Report(_)
        | Change::EndTask { .. }
        | Change::RemoveTask { .. } => OLDEST,
    }
}

/// The level that these changes would need and the cluster has not reached, if there is one: then a manager would
/// pass them over, and its state would part from that of the others.
pub fn beyond(state: &State, changes: &[Change]) -> Option<u32> {
    let needed = changes.iter().map(needed).max().unwrap_or(OLDEST);
    let founding = matches!(changes.first(), Some(Change::Init(_)));
    (!founding && needed > state.level()).then_some(needed)
}

/// Raises the cluster's level to what all managers understand.
pub(crate) fn raise(draft: &mut Draft) {
    let state = draft.state();
    let Some(cluster) = state.cluster() else { return };
    let managers = state.nodes().filter(|node| node.role == Role::Manager);
    let common = managers.map(|node| of(&node.description)).min().unwrap_or(OLDEST).min(LATEST);
    if common > cluster.level {
        let version = cluster.meta.version;
        draft.propose(Change::SetLevel { version, level: common });
    }
}

/// That a daemon may be a manager of this cluster.
///
/// # Errors
/// If it would not understand the log.
pub fn check(state: &State, hostname: &str, description: &Description) -> Result<(), Refused> {
    let (its, ours) = (of(description), state.level());
    if its >= ours {
        return Ok(());
    }
    let version = match description.engine_version.as_str() {
        "" => "an rswarm of unknown version".to_owned(),
        version => format!("rswarm {version}"),
    };
    Err(Refused::FailedPrecondition(format!(
        "{hostname} runs {version}, which understands the log up to level {its}, and the managers of this cluster \
         have gone on to level {ours}: install the version there that they run"
    )))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Bed, init};

    fn speaks(bed: &mut Bed, node: crate::NodeId, level: u32) {
        bed.alter(node, |node| node.description.level = level);
    }

    #[test]
    fn the_level_rises_with_the_last_manager_and_never_falls() {
        let mut bed = Bed::new();
        let founder = crate::admission::first_ids(init().id_seed).1;
        let other = bed.node("m2", 64);
        bed.alter(other, |node| node.role = Role::Manager);
        let worker = bed.node("w1", 64);
        bed.tick();
        assert_eq!(bed.state.level(), 1, "nobody has said more");
        speaks(&mut bed, founder, LATEST);
        bed.tick();
        assert_eq!(bed.state.level(), 1, "m2 has not");
        speaks(&mut bed, other, 9);
        bed.tick();
        assert_eq!(bed.state.level(), LATEST, "workers need not, and what nobody here knows is not reached");
        speaks(&mut bed, other, 1);
        speaks(&mut bed, worker, 1);
        bed.tick();
        assert_eq!(bed.state.level(), LATEST);
    }

    #[test]
    fn what_a_manager_would_not_understand_is_known_before_it_is_written() {
        let mut bed = Bed::new();
        let once = || Change::Once { request: crate::RequestId(1), answer: crate::admission::Answer::Done };
        assert_eq!(beyond(&bed.state, &[once()]), Some(REQUESTS));
        assert_eq!(beyond(&bed.state, &[]), None);
        let founder = crate::admission::first_ids(init().id_seed).1;
        speaks(&mut bed, founder, REQUESTS);
        bed.tick();
        assert_eq!(beyond(&bed.state, &[once()]), None);
    }

    #[test]
    fn who_may_connect_to_whom_is_decided_when_every_node_enforces_it() {
        use crate::admission::{NetworkSpec, Request};

        let mut bed = Bed::new();
        let founder = crate::admission::first_ids(init().id_seed).1;
        let worker = bed.node("w1", 64);
        let mut guarded = crate::testing::spec("db", 1);
        guarded.endpoint.allow.push("web".parse().expect("an entry"));
        let create = Request::CreateService { spec: guarded, networks: Vec::new() };
        let isolate = Request::CreateNetwork(NetworkSpec { isolated: true, ..NetworkSpec::new("shut") });
        let told = |bed: &mut Bed| [bed.words(&create), bed.words(&isolate)];
        assert!(told(&mut bed).iter().all(|words| words.contains("they need 4")));
        speaks(&mut bed, founder, LATEST);
        bed.tick();
        assert!(told(&mut bed).iter().all(|words| words.contains("node w1") && words.contains("upgrade it")));
        speaks(&mut bed, worker, LATEST);
        assert_eq!(told(&mut bed), ["done", "done"]);
        // A node that falls behind later does not hold up what is there.
        speaks(&mut bed, worker, OLDEST);
        let mut spec = bed.state.service_named("db").expect("it was made").spec.clone();
        spec.labels.insert("x".into(), "y".into());
        let mut update = |spec: &crate::model::ServiceSpec| {
            let (service, networks) = ("db".to_owned(), Vec::new());
            bed.words(&Request::UpdateService { service, version: None, spec: spec.clone(), networks })
        };
        assert_eq!(update(&spec), "done");
        spec.endpoint.allow.push("more".parse().expect("an entry"));
        assert!(update(&spec).contains("node w1"));
    }

    #[test]
    fn who_would_not_understand_the_log_is_told_both_levels() {
        let mut bed = Bed::new();
        let old = Description { engine_version: "0.0.9".into(), ..Description::default() };
        check(&bed.state, "n9", &old).expect("the cluster is of the oldest level");
        let founder = crate::admission::first_ids(init().id_seed).1;
        speaks(&mut bed, founder, 2);
        bed.tick();
        let told = check(&bed.state, "n9", &old).expect_err("it is too old").to_string();
        assert!(
            told.contains("n9 runs rswarm 0.0.9") && told.contains("level 1") && told.contains("level 2"),
            "{told}"
        );
        check(&bed.state, "n9", &Description { level: 3, ..old }).expect("newer is fine");
    }
}
