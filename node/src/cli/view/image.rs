//! Images.

use crate::cli::output::value::{Struct, Value};
use anyhow::{Context as _, Result};
use rswarm_proto::v1 as pb;
use serde_json::Value as Json;

/// An image, as `image inspect` shows it.
///
/// # Errors
/// If its configuration is no JSON.
pub fn details(details: &pb::ImageDetails) -> Result<Value> {
    let config: Json =
        serde_json::from_slice(&details.config).context("the image's configuration is damaged")?;
    let text = |name: &str| config.get(name).and_then(Json::as_str).unwrap_or_default().to_owned();
    let image = details.image.clone().unwrap_or_default();
    let layers: Vec<String> = details.layers.iter().map(|layer| layer.diff_id.clone()).collect();
    let root = Struct::new("RootFS").with("Type", "layers").with("Layers", layers);
    Ok(Struct::new("Image")
        .with("Id", &image.id)
        .with("RepoTags", image.references)
        .with("RepoDigests", details.repo_digests.clone())
        .with("Digest", &image.digest)
        .with("Comment", text("comment"))
        .with("Created", text("created"))
        .with("Author", text("author"))
        .with("Config", process(config.get("config").unwrap_or(&Json::Null)))
        .with("Architecture", text("architecture"))
        .maybe("Variant", text("variant"))
        .with("Os", text("os"))
        .with("Size", Value::Int(i64::try_from(image.size_bytes).unwrap_or(i64::MAX)))
        .with("RootFS", root)
        .into())
}

/// How the image's program is run. The usual fields are there also where they are empty, so that a template may
/// ask for them.
fn process(config: &Json) -> Struct {
    const USUAL: [&str; 9] =
        ["User", "ExposedPorts", "Env", "Entrypoint", "Cmd", "Volumes", "WorkingDir", "StopSignal", "Labels"];
    let field = |name: &str| config.get(name).map_or(Value::Nil, from_json);
    let mut shown = USUAL.iter().fold(Struct::new("Config"), |shown, name| shown.with(*name, field(name)));
    for (name, value) in config.as_object().into_iter().flatten() {
        if !USUAL.contains(&name.as_str()) {
            shown = shown.with(name, from_json(value));
        }
    }
    shown
}

fn from_json(json: &Json) -> Value {
    match json {
        Json::Null => Value::Nil,
        Json::Bool(yes) => Value::Bool(*yes),
        Json::Number(number) => {
            number.as_i64().map_or_else(|| Value::Float(number.as_f64().unwrap_or(0.0)), Value::Int)
        }
        Json::String(text) => Value::Str(text.clone()),
        Json::Array(values) => Value::List(values.iter().map(from_json).collect()),
        Json::Object(values) => {
            Value::Map(values.iter().map(|(key, value)| (key.clone(), from_json(value))).collect())
        }
    }
}

/// A reference's repository and tag, `<none>` where it has none.
pub fn repository_and_tag(reference: &str) -> (&str, &str) {
    let name = reference.split_once('@').map_or(reference, |(name, _)| name);
    match name.rsplit_once(':') {
        Some((repository, tag)) if !tag.contains('/') => (repository, tag),
        _ => (name, "<none>"),
    }
}

/// The first twelve digits of an image's id, or the whole of it.
pub fn id(image: &pb::Image, whole: bool) -> &str {
    let short = image.id.strip_prefix("sha256:").unwrap_or(&image.id);
    if whole { &image.id } else { short.get(..12).unwrap_or(short) }
}
