//! `rswarm events --since 10m -f`

use super::context::{Colour, Context};
use super::failure::{Failure, refused};
use super::output::filter::{self, Filter};
use super::output::inspect;
use super::output::units::{now_ms, parse_moment, rfc3339};
use super::output::value::{Struct, Value};
use anyhow::{Context as _, Result};
use rswarm_proto::v1 as pb;

/// Tell what has happened in the cluster: services, nodes, networks, tasks and their containers
#[derive(Debug, clap::Args)]
pub struct Events {
    /// Only from then on: a moment, or how long ago, such as 10m
    #[arg(long, value_name = "TIME")]
    since: Option<String>,
    /// Only until then
    #[arg(long, value_name = "TIME")]
    until: Option<String>,
    /// Only what matches: type, event, service, node, network, container, task or scope; may be repeated
    #[arg(long = "filter", value_name = "KEY=VALUE")]
    filters: Vec<Filter>,
    /// `json`, or a template such as '{{json .}}'
    #[arg(long, value_name = "FORMAT")]
    format: Option<String>,
    /// Go on with what happens from now on
    #[arg(short, long)]
    follow: bool,
}

const FILTERS: [&str; 8] = ["type", "event", "service", "node", "network", "container", "task", "scope"];

impl Events {
    /// Carries the command out.
    ///
    /// # Errors
    /// If the options make no sense, or this node is not a manager.
    pub async fn run(self, cx: &mut Context) -> Result<()> {
        filter::known(&self.filters, &FILTERS)?;
        let now = now_ms();
        let moment = |text: &Option<String>| {
            let moment = text.as_deref().map(|text| parse_moment(text, now)).transpose();
            moment.map(Option::unwrap_or_default).map_err(Failure::usage)
        };
        let request = pb::EventsRequest {
            since_ms: moment(&self.since)?,
            until_ms: moment(&self.until)?,
            follow: self.follow,
        };
        let mut client = cx.client().await?;
        let stream = client.events.events(request).await.map_err(|status| refused(&status));
        let mut stream = stream.context("cannot read the events")?.into_inner();
        while let Some(batch) = stream.message().await.map_err(|status| refused(&status))? {
            if batch.forgotten != 0 {
                let text = format!(
                    "Note: what happened up to log entry {} is no longer remembered",
                    batch.forgotten
                );
                writeln!(cx.err, "{}", cx.paint(Colour::Yellow, "Note:", &text))?;
            }
            for event in batch.events.iter().filter(|event| matches(event, &self.filters)) {
                let text = match &self.format {
                    Some(format) => inspect::print(&[view(event)], Some(format))?,
                    None => line(event),
                };
                cx.out.write_all(text.as_bytes())?;
            }
            cx.out.flush()?;
        }
        Ok(())
    }
}

/// Attributes by Docker's names, those of tasks as Docker's containers of services have them.
fn attributes(event: &pb::Event) -> Vec<(String, String)> {
    let mut all: Vec<(String, String)> =
        event.attributes.iter().map(|attribute| (attribute.name.clone(), attribute.value.clone())).collect();
    let mut add = |name: &str, value: &str| {
        if !value.is_empty() {
            all.push((name.to_owned(), value.to_owned()));
        }
    };
    if event.service.is_empty() {
        add("name", &event.name);
    } else {
        add("name", &format!("{}.{}", event.name, event.id));
        add("com.docker.swarm.node.id", &event.node);
        add("com.docker.swarm.service.id", &event.service);
        add("com.docker.swarm.service.name", service_name(event));
        add("com.docker.swarm.task.id", &event.id);
        add("com.docker.swarm.task.name", &format!("{}.{}", event.name, event.id));
    }
    all.sort();
    all
}

/// `web` of `web.1`.
fn service_name(event: &pb::Event) -> &str {
    event.name.rsplit_once('.').map_or(event.name.as_str(), |(name, _)| name)
}

/// Whether an event is what is asked for: of `health_status: healthy` the first word is enough, as for Docker.
fn is_action(action: &str, wanted: &str) -> bool {
    action == wanted || action.split_once(':').is_some_and(|(kind, _)| kind == wanted)
}

fn matches(event: &pb::Event, filters: &[Filter]) -> bool {
    let is = |kinds: &[&str], id: &str, name: &str, wanted: &str| {
        kinds.contains(&event.r#type.as_str()) && (name == wanted || !id.is_empty() && id.starts_with(wanted))
    };
    let tasks = ["container", "task"];
    let (id, name) = (event.id.as_str(), event.name.as_str());
    filter::any(filters, "type", |kind| event.r#type == kind)
        && filter::any(filters, "event", |action| is_action(&event.action, action))
        && filter::any(filters, "scope", |scope| scope == "swarm")
        && filter::any(filters, "network", |wanted| is(&["network"], id, name, wanted))
        && filter::any(filters, "container", |wanted| is(&["container"], id, name, wanted))
        && filter::any(filters, "task", |wanted| is(&tasks, id, name, wanted))
        && filter::any(filters, "node", |wanted| {
            is(&["node"], id, name, wanted) || is(&tasks, &event.node, "", wanted)
        })
        && filter::any(filters, "service", |wanted| {
            is(&["service"], id, name, wanted) || is(&tasks, &event.service, service_name(event), wanted)
        })
}

/// As `docker events` has it.
fn line(event: &pb::Event) -> String {
    let pairs: Vec<String> =
        attributes(event).iter().map(|(name, value)| format!("{name}={value}")).collect();
    let (at, kind, action, id) = (rfc3339(event.at_ms * 1_000_000), &event.r#type, &event.action, &event.id);
    format!("{at} {kind} {action} {id} ({})\n", pairs.join(", "))
}

/// The keys of Docker's events, and the log entry's index.
fn view(event: &pb::Event) -> Value {
    let attributes = attributes(event);
    let image = attributes.iter().find(|(name, _)| name == "image").map(|(_, image)| image.clone());
    let all = attributes
        .iter()
        .fold(Struct::new("attributes"), |all, (name, value)| all.with(name.as_str(), value.as_str()));
    let mut whole = Struct::new("event");
    if event.r#type == "container" {
        whole = whole.with("status", event.action.as_str()).with("id", event.id.as_str());
        whole = whole.with("from", image.unwrap_or_default());
    }
    whole
        .with("Type", event.r#type.as_str())
        .with("Action", event.action.as_str())
        .with("Actor", Struct::new("actor").with("ID", event.id.as_str()).with("Attributes", all))
        .with("scope", "swarm")
        .with("time", event.at_ms / 1000)
        .with("timeNano", event.at_ms * 1_000_000)
        .with("Index", event.index)
        .into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event() -> pb::Event {
        let attribute =
            |name: &str, value: &str| pb::event::Attribute { name: name.into(), value: value.into() };
        pb::Event {
            index: 17,
            at_ms: 1_795_216_027_500,
            r#type: "container".into(),
            action: "die".into(),
            id: "00000000000t1".into(),
            name: "web.1".into(),
            service: "00000000000s1".into(),
            node: "00000000000n1".into(),
            attributes: vec![attribute("exitCode", "1"), attribute("image", "rswarm/demo:1")],
        }
    }

    #[test]
    fn an_event_has_dockers_keys() {
        let json = view(&event()).to_json();
        for part in [
            r#""Type":"container","Action":"die","Actor":{"ID":"00000000000t1","Attributes":{"#,
            r#""from":"rswarm/demo:1""#,
            r#""exitCode":"1""#,
            r#""com.docker.swarm.service.name":"web""#,
            r#""scope":"swarm","time":1795216027,"timeNano":1795216027500000000"#,
        ] {
            assert!(json.contains(part), "{part} is not in {json}");
        }
        let text = line(&event());
        assert!(text.contains(" container die 00000000000t1 (") && text.ends_with(")\n"), "{text}");
    }

    #[test]
    fn filters_of_one_key_are_alternatives_and_of_several_all_hold() {
        let holds = |texts: &[&str]| {
            let filters: Vec<Filter> = texts.iter().map(|text| text.parse().expect(text)).collect();
            matches(&event(), &filters)
        };
        assert!(holds(&["type=service", "type=container"]));
        assert!(holds(&[
            "service=web",
            "event=die",
            "node=00000000000n1",
            "container=web.1",
            "task=00000000000t"
        ]));
        assert!(holds(&["scope=swarm"]) && holds(&[]));
        for no in ["service=db", "event=start", "node=n2", "network=web", "type=task", "scope=local"] {
            assert!(!holds(&[no]), "{no}");
        }
    }
}
