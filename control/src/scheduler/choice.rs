//! Why a task is where it is: what speaks for its node, beside what speaks for the next best.

use super::board::{Board, Stands};
use super::filter;
use super::group::Stand;
use crate::ids::NodeId;
use crate::model::{Filling, Preference, Task};
use crate::state::State;
use crate::time::Timestamp;

/// How a task's node stands among all, if the task were placed now.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Choice {
    /// 1 is the best; 0 if the node could not be given the task now.
    pub rank: u32,
    /// How many nodes could be given it.
    pub of: u32,
    /// The best of the other nodes, if there is another.
    pub other: Option<String>,
    /// What the two are compared by, in that order: the first that differs decides.
    pub criteria: Vec<Criterion>,
    /// Why the node could not be given the task now; empty if it could.
    pub refused: String,
}

/// One thing that nodes are compared by.
#[derive(Clone, Debug, PartialEq)]
pub struct Criterion {
    /// In words.
    pub what: String,
    /// What it comes to on the task's node.
    pub here: String,
    /// What it comes to on the other.
    pub there: String,
    /// It is the first that differs.
    pub decides: bool,
}

/// How the node of a task stands, were the task placed now.
pub(crate) fn choice(state: &State, now: Timestamp, task: &Task, node: NodeId) -> Choice {
    let mut board = Board::new(state, now, Some(task.id));
    let Stands { able, unable, filling } = board.stands(state, task);
    let position = able.iter().position(|(stand, _)| stand.node == node);
    let mut choice = Choice {
        rank: position.map_or(0, |position| position as u32 + 1),
        of: able.len() as u32,
        ..Choice::default()
    };
    if let Some((refusal, _)) = unable.iter().find(|(_, at)| *at == node) {
        choice.refused = filter::refused(refusal, 1);
    }
    let other = able.iter().find(|(stand, _)| stand.node != node);
    choice.other = other.map(|(_, node)| node.hostname.clone());
    if let (Some(position), Some((there, _))) = (position, other) {
        choice.criteria = criteria(task, filling, &able[position].0, there);
    }
    choice
}

pub(super) fn criteria(task: &Task, filling: Filling, here: &Stand, there: &Stand) -> Vec<Criterion> {
    let mut criteria = Vec::new();
    let mut add = |what: String, is: bool, one: String, other: String, order: bool| {
        // What neither node has says nothing.
        if is || order {
            criteria.push(Criterion { what, here: one, there: other, decides: order });
        }
    };
    let yes = |is: bool| if is { "yes" } else { "no" }.to_owned();
    let faults = here.faulty || there.faulty;
    let what = "keeps failing there".to_owned();
    add(what, faults, yes(here.faulty), yes(there.faulty), here.faulty != there.faulty);
    let (mine, theirs) = (here.weight.0, there.weight.0);
    let what = "weight of preferences".to_owned();
    add(what, mine != 0 || theirs != 0, mine.to_string(), theirs.to_string(), mine != theirs);
    let levels = task.spec.placement.preferences.iter().filter_map(|preference| match preference {
        Preference::Spread(key) => Some(key),
        Preference::Weighted { .. } => None,
    });
    for ((key, mine), theirs) in levels.zip(&here.crowd).zip(&there.crowd) {
        let what = format!("tasks of {} with its {key}", task.service_name);
        add(what, true, mine.to_string(), theirs.to_string(), mine != theirs);
    }
    let name = &task.service_name;
    let share = |of: u64| format!("{} %", (u64::MAX - of) / 20_000);
    let (mine, theirs) = (here.tail, there.tail);
    match filling {
        Filling::Spread => {
            let what = format!("tasks of {name} on it");
            add(what, true, mine[0].to_string(), theirs[0].to_string(), mine[0] != theirs[0]);
            add("tasks on it".into(), true, mine[1].to_string(), theirs[1].to_string(), mine[1] != theirs[1]);
        }
        Filling::BinPack => {
            add("reserved with it".into(), true, share(mine[0]), share(theirs[0]), mine[0] != theirs[0]);
            let tasks = |of: u64| (u64::MAX - of).to_string();
            add("tasks on it".into(), true, tasks(mine[1]), tasks(theirs[1]), mine[1] != theirs[1]);
        }
    }
    add("id".into(), true, here.node.to_string(), there.node.to_string(), here.node != there.node);
    if let Some(first) = criteria.iter().position(|criterion| criterion.decides) {
        criteria.truncate(first + 1);
    }
    criteria
}
