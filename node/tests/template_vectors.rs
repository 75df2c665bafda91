//! The templates of `--format` against recorded results, see `tests/data/go-template-vectors.json`.

use rswarm::cli::output::inspect;
use rswarm::cli::output::listing::{Listing, Options};
use rswarm::cli::output::template::Template;
use rswarm::cli::output::units;
use rswarm::cli::output::value::{Struct, Value};
use serde_json::Value as Json;

/// What JSON does not say: which objects are maps, which fields exist but are empty, what is a moment.
fn value(path: &str, json: &Json) -> Value {
    match json {
        Json::Null => Value::Nil,
        Json::Bool(yes) => Value::Bool(*yes),
        Json::Number(number) => {
            number.as_i64().map_or_else(|| Value::Float(number.as_f64().expect("a number")), Value::Int)
        }
        Json::String(text) if path.ends_with("edAt") => {
            let millis = units::parse_moment(text, 0).expect("a moment");
            let nanos: u64 = text[text.len() - 7..text.len() - 1].parse().expect("six more digits");
            Value::Time(millis * 1_000_000 + nanos)
        }
        Json::String(text) => Value::Str(text.clone()),
        Json::Array(items) => Value::List(items.iter().map(|item| value(path, item)).collect()),
        Json::Object(fields) if path.ends_with("Labels") || path.ends_with("Sysctls") => {
            Value::Map(fields.iter().map(|(key, item)| (key.clone(), value("", item))).collect())
        }
        Json::Object(fields) => {
            let kind = match path {
                "" => "swarm.Service",
                path if path.ends_with(".TaskTemplate") => "swarm.TaskSpec",
                _ => "object",
            };
            let mut object = Struct::new(kind);
            for (name, item) in fields {
                object = object.with(name, value(&format!("{path}.{name}"), item));
            }
            if path.is_empty() {
                object = object.maybe("UpdateStatus", Value::Nil);
            }
            Value::Struct(object)
        }
    }
}

fn row(kind: &str, json: &str) -> Struct {
    let fields: serde_json::Map<String, Json> = serde_json::from_str(json).expect("a row");
    fields.iter().fold(Struct::new(kind), |row, (name, item)| row.with(name, value("row", item)))
}

const NODES: Listing = rswarm::cli::node::ls::LISTING;
const SERVICES: Listing = rswarm::cli::service::ls::LISTING;

#[test]
fn templates_give_what_was_recorded() {
    let file: Json = serde_json::from_str(include_str!("data/go-template-vectors.json")).expect("vectors");
    let service = value("", &file["service"]);
    let recorded = |command: &str| {
        let vectors = file["vectors"].as_array().expect("vectors").iter();
        let mut rows = vectors.filter(|vector| vector["cmd"] == command && vector["format"] == "json");
        rows.next().expect("a row")["stdout"].as_str().expect("text").to_owned()
    };
    let node = row("*node.nodeContext", &recorded("node ls"));
    let listed = row("*service.serviceContext", &recorded("service ls"));
    let mut wrong = Vec::new();
    for vector in file["vectors"].as_array().expect("vectors") {
        let (command, format) =
            (vector["cmd"].as_str().expect("text"), vector["format"].as_str().expect("text"));
        let options = Options { format: Some(format.into()), ..Options::default() };
        let printed = match command {
            "service inspect" => inspect::print(std::slice::from_ref(&service), Some(format)),
            "node ls" => NODES.print(std::slice::from_ref(&node), "ID", &options),
            "service ls" => SERVICES.print(std::slice::from_ref(&listed), "ID", &options),
            other => panic!("unknown command {other}"),
        };
        let matches = match &printed {
            Ok(text) => vector["rc"] == 0 && vector["stdout"] == text.as_str(),
            Err(error) => {
                let first = error.to_string();
                let first = first.lines().next().unwrap_or_default();
                vector["rc"] == 1 && vector["stderr"].as_str().expect("text").trim_end() == first
            }
        };
        if !matches {
            wrong.push(format!("{command} {format:?}: got {printed:?}, recorded {vector}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn a_broken_template_is_an_error_that_says_where() {
    for (source, why) in [
        ("{{", "1:2: the action is not closed by }}"),
        ("{{.ID", "1:5: the action is not closed by }}"),
        ("{{if .ID}}x", "has no {{end}}"),
        ("{{end}}", "unexpected {{end}}"),
        ("{{else}}", "unexpected {{else}}"),
        ("{{}}", "expected a value"),
        ("{{break}}", "outside of a range"),
        ("{{\"abc}}", "not closed by \""),
        ("{{/* x }}", "not closed by */}}"),
        ("a\nb{{1x}}", "2:3: bad number \"1x\""),
        ("{{template x}}", "expected a name in quotes"),
    ] {
        let error = Template::parse(source).expect_err(source).to_string();
        assert!(error.contains(why), "{source}: {error}");
    }
    for (source, why) in [
        ("{{nope 1}}", "function \"nope\" not defined"),
        ("{{index . 3}}", "out of range"),
        ("{{$x}}", "undefined variable \"$x\""),
        ("{{1 2}}", "can't give argument to non-function"),
        ("{{len}}", "wrong number or kind of arguments"),
        ("{{pad \"x\" 1 99999999999}}", "from 0 to 4096"),
        ("{{define \"a\"}}{{template \"a\"}}{{end}}{{template \"a\"}}", "without end"),
    ] {
        let template = Template::parse(source).expect(source);
        let error = template.fill(&Value::List(vec![])).expect_err(source).to_string();
        assert!(error.contains(why), "{source}: {error}");
    }
}

mod properties {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn no_text_makes_the_engine_panic(source in "(\\{\\{-? ?(if|range|with|end|else|printf|index|slice|\\.A|\\$x|:=|\"%5d\"|1|\\(|\\)|\\||é)* ?-?\\}\\}|x)*") {
            if let Ok(template) = Template::parse(&source) {
                let _ = template.fill(&Struct::new("thing").with("A", "b").into());
            }
        }

        #[test]
        fn neither_does_noise(source: String) {
            let _ = Template::parse(&source).map(|template| template.fill(&Value::Nil));
        }
    }
}
