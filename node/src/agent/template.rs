//! Placeholders of a service's spec that are known only where its task runs: `{{.Task.Slot}}` and the like.

use rswarm_control::assignment::AssignedTask;

/// What placeholders stand for.
pub struct Words<'a> {
    task: &'a AssignedTask,
    node_id: &'a str,
    hostname: &'a str,
}

impl<'a> Words<'a> {
    /// Those of `task` on the node `node_id`, which is called `hostname`.
    pub fn new(task: &'a AssignedTask, node_id: &'a str, hostname: &'a str) -> Self {
        Self { task, node_id, hostname }
    }

    /// `text` with every placeholder that is known replaced; anything else in braces stays as it is, because
    /// variables may hold templates of other programs.
    pub fn fill(&self, text: &str) -> String {
        let mut filled = String::with_capacity(text.len());
        let mut rest = text;
        while let Some((before, after)) = rest.split_once("{{") {
            filled.push_str(before);
            match after.split_once("}}").and_then(|(key, tail)| Some((self.word(key.trim())?, tail))) {
                Some((word, tail)) => {
                    filled.push_str(&word);
                    rest = tail;
                }
                None => {
                    filled.push_str("{{");
                    rest = after;
                }
            }
        }
        filled.push_str(rest);
        filled
    }

    fn word(&self, key: &str) -> Option<String> {
        Some(match key {
            ".Service.ID" => self.task.service.to_string(),
            ".Service.Name" => self.task.service_name.clone(),
            ".Node.ID" => self.node_id.to_owned(),
            ".Node.Hostname" => self.hostname.to_owned(),
            ".Task.ID" => self.task.id.to_string(),
            ".Task.Name" => format!("{}.{}.{}", self.task.service_name, self.task.slot, self.task.id),
            ".Task.Slot" => self.task.slot.to_string(),
            _ => return None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rswarm_control::ids::{ServiceId, TaskId};
    use rswarm_control::model::{Desired, TaskSpec};
    use std::sync::Arc;

    #[test]
    #[rustfmt::skip]
    fn known_placeholders_are_filled_and_others_left_alone() {
        let task = AssignedTask {
            id: TaskId(7), service: ServiceId(8), service_name: "web".into(), slot: rswarm_control::model::Slot::Replica(3),
            spec: Arc::new(TaskSpec::default()), desired: Desired::Running, ended: false, started: false, unhealthy: false,
            addresses: Vec::new(), claims: Default::default(),
        };
        let words = Words::new(&task, "0n1", "n1");
        for (text, filled) in [
            ("plain",                                "plain"),
            ("{{.Service.Name}}-{{.Task.Slot}}",     "web-3"),
            ("{{ .Node.Hostname }}/{{.Node.ID}}",    "n1/0n1"),
            ("{{.Task.Nope}}-{{.Task.Slot}}",        "{{.Task.Nope}}-3"),
            ("{\"a\":{\"b\":1}} {{",                 "{\"a\":{\"b\":1}} {{"),
            ("{{{{.Task.Slot}}",                     "{{3"),
        ] {
            assert_eq!(words.fill(text), filled);
        }
        assert_eq!(words.fill("{{.Task.Name}}"), format!("web.3.{}", task.id));
    }
}
