//! What `inspect` prints: a list in JSON, or what `--format` makes of each object.

use super::template::Template;
use super::value::{Struct, Value};
use crate::rpc::stale::Age;
use anyhow::Result;

/// With a field that says how old it may be, if it may be old.
pub fn dated(object: Value, age: Option<Age>) -> Value {
    let (Value::Struct(object), Some(Age { index, unheard })) = (object.clone(), age) else { return object };
    let unheard = unheard
        .map_or(Value::Nil, |unheard| Value::Int(i64::try_from(unheard.as_millis()).unwrap_or(i64::MAX)));
    let stale = Struct::new("staleness").with("Index", index).with("UnheardMs", unheard);
    object.with("Stale", stale).into()
}

/// The objects as JSON over several lines, or each filled into the template.
///
/// # Errors
/// If the format is not a template or asks for a field that is not there.
pub fn print(objects: &[Value], format: Option<&str>) -> Result<String> {
    match format {
        None | Some("") => Ok(Value::List(objects.to_vec()).to_json_pretty() + "\n"),
        Some("json") => Ok(objects.iter().map(|object| object.to_json() + "\n").collect()),
        Some(format) => {
            let template = Template::parse(&format.replace("\\t", "\t").replace("\\n", "\n"))?;
            let filled: Result<Vec<String>, _> = objects.iter().map(|object| template.fill(object)).collect();
            Ok(filled?.into_iter().map(|line| line + "\n").collect())
        }
    }
}
