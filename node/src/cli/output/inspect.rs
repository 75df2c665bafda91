//! What `inspect` prints: a list in JSON, or what `--format` makes of each object.

use super::template::Template;
use super::value::Value;
use anyhow::Result;

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
