//! Explanations, on their way to whoever asked, and events.

use super::{Invalid, Problem, parsed, parsed_or_none};
use crate::v1 as pb;
use rswarm_control::Timestamp;
use rswarm_control::events::{Action, Event, Subject};
use rswarm_control::explain::{Choice, Explanation, Past, Wait};

impl From<&Event> for pb::Event {
    fn from(event: &Event) -> Self {
        let Event { index, at, subject, action, name, attributes } = event;
        let (id, service, node) = match subject {
            Subject::Swarm => (String::new(), None, None),
            Subject::Node(id) => (id.to_string(), None, None),
            Subject::Service(id) => (id.to_string(), None, None),
            Subject::Network(id) => (id.to_string(), None, None),
            Subject::Task { task, service, node } => (task.to_string(), Some(*service), *node),
        };
        let attribute = |(name, value): &(String, String)| pb::event::Attribute {
            name: name.clone(),
            value: value.clone(),
        };
        Self {
            index: *index,
            at_ms: at.0,
            r#type: event.kind().into(),
            action: action.word().into(),
            id,
            name: name.to_string(),
            service: service.map(|service| service.to_string()).unwrap_or_default(),
            node: node.map(|node| node.to_string()).unwrap_or_default(),
            attributes: attributes.iter().map(attribute).collect(),
        }
    }
}

impl TryFrom<pb::Event> for Event {
    type Error = Invalid;

    fn try_from(wire: pb::Event) -> Result<Self, Invalid> {
        let unknown =
            |field, word: &str| Invalid::new(field, Problem::Malformed(format!("`{word}` is unknown")));
        let subject = match wire.r#type.as_str() {
            "swarm" => Subject::Swarm,
            "node" => Subject::Node(parsed("id", &wire.id)?),
            "service" => Subject::Service(parsed("id", &wire.id)?),
            "network" => Subject::Network(parsed("id", &wire.id)?),
            "container" | "task" => Subject::Task {
                task: parsed("id", &wire.id)?,
                service: parsed("service", &wire.service)?,
                node: parsed_or_none("node", &wire.node)?,
            },
            other => return Err(unknown("type", other)),
        };
        let action = Action::of(&wire.action).ok_or_else(|| unknown("action", &wire.action))?;
        let attributes = wire.attributes.into_iter().map(|attribute| (attribute.name, attribute.value));
        Ok(Self {
            index: wire.index,
            at: Timestamp(wire.at_ms),
            subject,
            action,
            name: wire.name.into(),
            attributes: attributes.collect(),
        })
    }
}

impl From<Explanation> for pb::Explanation {
    fn from(told: Explanation) -> Self {
        use pb::explanation::{Fact, Refusal};
        let Explanation { id, name, summary, facts, waits, refusals, nearest, choice, past } = told;
        let fact = |(name, text): (&str, String)| Fact { name: name.into(), text };
        let refusal = |(reason, nodes)| Refusal { reason, nodes };
        Self {
            r#type: String::new(),
            id,
            name,
            summary,
            facts: facts.into_iter().map(fact).collect(),
            waits: waits.into_iter().map(Into::into).collect(),
            refusals: refusals.into_iter().map(refusal).collect(),
            nearest,
            choice: choice.map(Into::into),
            past: past.into_iter().map(Into::into).collect(),
        }
    }
}

impl From<Wait> for pb::explanation::Wait {
    fn from(wait: Wait) -> Self {
        let Wait { who, what, since, next } = wait;
        let ms = |at: Option<rswarm_control::Timestamp>| at.map_or(0, |at| at.0);
        Self { who, what, since_ms: ms(since), next_ms: ms(next) }
    }
}

impl From<Choice> for pb::explanation::Choice {
    fn from(choice: Choice) -> Self {
        let Choice { rank, of, other, criteria, refused } = choice;
        let criteria = criteria.into_iter().map(|criterion| pb::explanation::Criterion {
            what: criterion.what,
            here: criterion.here,
            there: criterion.there,
            decides: criterion.decides,
        });
        Self { rank, of, other: other.unwrap_or_default(), criteria: criteria.collect(), refused }
    }
}

impl From<Past> for pb::explanation::Past {
    fn from(past: Past) -> Self {
        let Past { at, index, whom, what, by, why } = past;
        Self { at_ms: at.0, index, whom, what, by, why }
    }
}
