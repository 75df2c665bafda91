//! Objects by what users call them: an id, the beginning of one, or a name.

use super::Refused;
use crate::explain::About;
use crate::model::{Network, Node, Service, Task};
use crate::state::State;
use std::sync::Arc;

/// The service a user means.
///
/// # Errors
/// If there is none, or several.
pub fn find_service(state: &State, text: &str) -> Result<Arc<Service>, Refused> {
    let all = state.services().map(|s| (s.id.to_string(), s.spec.name.clone(), s));
    find("service", text, all.collect())
}

/// The network a user means.
///
/// # Errors
/// If there is none, or several.
pub fn find_network(state: &State, text: &str) -> Result<Arc<Network>, Refused> {
    find("network", text, state.networks().map(|n| (n.id.to_string(), n.name.clone(), n)).collect())
}

/// The node a user means. Host names need not be unique, so they may be ambiguous.
///
/// # Errors
/// If there is none, or several.
pub fn find_node(state: &State, text: &str) -> Result<Arc<Node>, Refused> {
    find("node", text, state.nodes().map(|n| (n.id.to_string(), n.hostname.clone(), n)).collect())
}

/// The task a user means. `web.1` is the youngest task of that slot.
///
/// # Errors
/// If there is none, or several.
pub fn find_task(state: &State, text: &str) -> Result<Arc<Task>, Refused> {
    let named = state.tasks().filter(|task| task.name() == text).max_by_key(|task| task.meta.number);
    match named {
        Some(task) => Ok(task.clone()),
        None => find("task", text, state.tasks().map(|t| (t.id.to_string(), t.name(), t)).collect()),
    }
}

/// The task, service or node a user means: a service before a node before a task, if it may be `kind` of any.
///
/// # Errors
/// If there is none, or several of a kind.
pub fn find_any(state: &State, text: &str, kind: &str) -> Result<About, Refused> {
    let service = || find_service(state, text).map(|service| About::Service(service.id));
    let node = || find_node(state, text).map(|node| About::Node(node.id));
    let task = || find_task(state, text).map(|task| About::Task(task.id));
    match kind {
        "service" => return service(),
        "node" => return node(),
        "task" => return task(),
        "" => {}
        other => {
            let why = format!("there is nothing of type `{other}` to ask about; it is task, service or node");
            return Err(Refused::Invalid(why));
        }
    }
    let mut hints = Vec::new();
    for found in [service(), node(), task()] {
        match found {
            Err(Refused::NotFound(words)) => hints.push(words),
            found => return found,
        }
    }
    let hint = hints.iter().find_map(|words| words.split_once("; ")).map_or("", |(_, hint)| hint);
    let hint = if hint.is_empty() { String::new() } else { format!("; {hint}") };
    Err(Refused::NotFound(format!("no such task, service or node: {text}{hint}")))
}

/// A whole id wins over a name, and a name over the beginning of an id.
fn find<T>(kind: &str, text: &str, all: Vec<(String, String, &Arc<T>)>) -> Result<Arc<T>, Refused> {
    if text.is_empty() {
        return Err(Refused::Invalid(format!(
            "which {kind}? Give its name, its id, or the beginning of its id"
        )));
    }
    if let Some((_, _, object)) = all.iter().find(|(id, _, _)| id == text) {
        return Ok(Arc::clone(object));
    }
    for matches in [
        all.iter().filter(|(_, name, _)| name == text).collect::<Vec<_>>(),
        all.iter().filter(|(id, _, _)| id.starts_with(text)).collect(),
    ] {
        match matches.as_slice() {
            [] => {}
            [(_, _, object)] => return Ok(Arc::clone(object)),
            several => {
                let ids: Vec<&str> = several.iter().take(3).map(|(id, _, _)| id.as_str()).collect();
                let (count, ids) = (several.len(), ids.join(", "));
                return Err(Refused::Invalid(format!(
                    "`{text}` is ambiguous: {count} {kind}s are meant by it ({ids}{}); give more of the id",
                    if count > 3 { ", …" } else { "" },
                )));
            }
        }
    }
    let names = all.iter().map(|(_, name, _)| name.as_str());
    let near = names.filter_map(|name| near(text, name).map(|far| (far, name))).min();
    let hint = near.map_or(String::new(), |(_, name)| format!("; did you mean `{name}`?"));
    Err(Refused::NotFound(format!("no such {kind}: {text}{hint}")))
}

/// How far apart two spellings are, if they are so near that one may be a slip of the other.
fn near(a: &str, b: &str) -> Option<usize> {
    if a.len() > 64 || b.len() > 64 {
        return None;
    }
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, ca) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, cb) in b.iter().enumerate() {
            let substituted = diagonal + usize::from(ca != *cb);
            diagonal = row[j + 1];
            row[j + 1] = substituted.min(row[j] + 1).min(row[j + 1] + 1);
        }
    }
    let far = row[b.len()];
    (far <= 1 + a.chars().count() / 3).then_some(far)
}
