//! Explanations, on their way to whoever asked, and events.

use super::{Invalid, Problem, each, parsed, parsed_or_none};
use crate::v1 as pb;
use rswarm_control::Timestamp;
use rswarm_control::events::{Action, Event, Subject};
use rswarm_control::explain::{Choice, Explanation, Past, Wait};
use rswarm_control::rehearsal::difference::Difference;
use rswarm_control::rehearsal::{Fate, Outcome, Peak, Place};
use rswarm_control::spare::{Loss, Shortfall, Spare};
use std::time::Duration;

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

impl From<&Spare> for pb::Spare {
    fn from(spare: &Spare) -> Self {
        let Spare { losses, examined, of } = spare;
        let count = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
        let short = |short: &Shortfall| pb::spare::Shortfall {
            service: short.name.clone(),
            tasks: count(short.tasks),
            why: short.why.clone(),
        };
        let loss = |loss: &Loss| pb::spare::Loss {
            node_id: loss.node.to_string(),
            hostname: loss.hostname.clone(),
            shortfalls: loss.shortfalls.iter().map(short).collect(),
        };
        Self { losses: losses.iter().map(loss).collect(), examined: count(*examined), of: count(*of) }
    }
}

impl From<&Outcome> for pb::Rehearsal {
    fn from(outcome: &Outcome) -> Self {
        let Outcome { differences, places, peaks, took, settled } = outcome;
        let difference = |difference: &Difference| {
            let Difference { of, path, before, after } = difference.clone();
            pb::rehearsal::Difference { of, path, before, after }
        };
        let place = |place: &Place| {
            let Place { name, before, after, fate, note } = place.clone();
            let fate = match fate {
                Fate::Stays => pb::rehearsal::Fate::Stays,
                Fate::Starts => pb::rehearsal::Fate::Starts,
                Fate::Replaced => pb::rehearsal::Fate::Replaced,
                Fate::Stops => pb::rehearsal::Fate::Stops,
            };
            pb::rehearsal::Place { name, before, after, fate: fate.into(), note }
        };
        let peak = |peak: &Peak| {
            let Peak { node, before, most, after, capacity } = peak;
            pb::rehearsal::Peak {
                node: node.clone(),
                before: Some(before.into()),
                most: Some(most.into()),
                after: Some(after.into()),
                capacity: Some(capacity.into()),
            }
        };
        Self {
            differences: differences.iter().map(difference).collect(),
            places: places.iter().map(place).collect(),
            peaks: peaks.iter().map(peak).collect(),
            took_ms: u64::try_from(took.as_millis()).unwrap_or(u64::MAX),
            settled: *settled,
            warnings: Vec::new(),
            index: 0,
            plan: Default::default(),
        }
    }
}

impl TryFrom<pb::Rehearsal> for Outcome {
    type Error = Invalid;

    fn try_from(wire: pb::Rehearsal) -> Result<Self, Invalid> {
        let difference = |difference: pb::rehearsal::Difference| {
            let pb::rehearsal::Difference { of, path, before, after } = difference;
            Difference { of, path, before, after }
        };
        let peak = |peak: pb::rehearsal::Peak| {
            let resources = |wire: Option<pb::Resources>| wire.unwrap_or_default().into();
            Peak {
                node: peak.node,
                before: resources(peak.before),
                most: resources(peak.most),
                after: resources(peak.after),
                capacity: resources(peak.capacity),
            }
        };
        Ok(Self {
            differences: wire.differences.into_iter().map(difference).collect(),
            places: each("places", wire.places)?,
            peaks: wire.peaks.into_iter().map(peak).collect(),
            took: Duration::from_millis(wire.took_ms),
            settled: wire.settled,
        })
    }
}

impl TryFrom<pb::rehearsal::Place> for Place {
    type Error = Invalid;

    fn try_from(wire: pb::rehearsal::Place) -> Result<Self, Invalid> {
        let fate = match wire.fate() {
            pb::rehearsal::Fate::Unspecified => {
                return Err(Invalid::new("fate", Problem::UnknownChoice(wire.fate)));
            }
            pb::rehearsal::Fate::Stays => Fate::Stays,
            pb::rehearsal::Fate::Starts => Fate::Starts,
            pb::rehearsal::Fate::Replaced => Fate::Replaced,
            pb::rehearsal::Fate::Stops => Fate::Stops,
        };
        let pb::rehearsal::Place { name, before, after, note, .. } = wire;
        Ok(Self { name, before, after, fate, note })
    }
}
