//! The functions a template may call.

use super::format;
use crate::cli::output::value::Value;
use std::cmp::Ordering;

type Result = std::result::Result<Value, String>;

/// Calls a function. In a heading, those that change texts do not.
pub(super) fn call(name: &str, arguments: &[Value], heading: bool) -> Result {
    if heading && matches!(name, "json" | "split" | "join" | "title" | "lower" | "upper" | "pad" | "truncate")
    {
        return arguments.first().cloned().ok_or_else(|| "an argument is missing".into());
    }
    let text = |value: String| Ok(Value::Str(value));
    match (name, arguments) {
        ("and" | "or", [.., last]) => Ok(last.clone()),
        ("not", [value]) => Ok(Value::Bool(value.is_empty())),
        ("eq", [first, rest @ ..]) if !rest.is_empty() => {
            Ok(Value::Bool(rest.iter().any(|other| compare(first, other) == Some(Ordering::Equal))))
        }
        ("ne", [one, other]) => Ok(Value::Bool(compare(one, other) != Some(Ordering::Equal))),
        ("lt" | "le" | "gt" | "ge", [one, other]) => {
            let order = compare(one, other).ok_or("incompatible types for comparison")?;
            Ok(Value::Bool(match name {
                "lt" => order.is_lt(),
                "le" => order.is_le(),
                "gt" => order.is_gt(),
                _ => order.is_ge(),
            }))
        }
        ("len", [value]) => length(value),
        ("index", [value, keys @ ..]) => keys.iter().try_fold(value.clone(), |value, key| index(&value, key)),
        ("slice", [value, bounds @ ..]) if bounds.len() <= 2 => slice(value, bounds),
        ("print", all) => text(format::print(all)),
        ("println", all) => text(all.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ") + "\n"),
        ("printf", [Value::Str(format), rest @ ..]) => text(format::printf(format, rest)),
        ("html", all) => text(escape(&format::print(all))),
        ("urlquery", all) => text(urlquery(&format::print(all))),
        ("json", [value]) => text(value.to_json()),
        ("lower", [value]) => text(string(value)?.to_lowercase()),
        ("upper", [value]) => text(string(value)?.to_uppercase()),
        ("title", [value]) => text(title(string(value)?)),
        ("split", [value, separator]) => {
            Ok(string(value)?.split(string(separator)?).collect::<Vec<_>>().into())
        }
        ("join", [Value::List(values), separator]) => {
            text(values.iter().map(ToString::to_string).collect::<Vec<_>>().join(string(separator)?))
        }
        ("join", [Value::Nil, _]) => text(String::new()),
        ("pad", [value, before, after]) => {
            let (before, after) = (count(before)?, count(after)?);
            match string(value)? {
                "" => text(String::new()),
                inner => text(format!("{:before$}{inner}{:after$}", "", "")),
            }
        }
        ("truncate", [value, length]) => text(string(value)?.chars().take(count(length)?).collect()),
        _ if NAMES.contains(&name) => Err("wrong number or kind of arguments".into()),
        _ => Err(format!("function {name:?} not defined")),
    }
}

/// Every function there is.
pub(super) const NAMES: [&str; 25] = [
    "and", "eq", "ge", "gt", "html", "index", "join", "json", "le", "len", "lower", "lt", "ne", "not", "or",
    "pad", "print", "printf", "println", "slice", "split", "title", "truncate", "upper", "urlquery",
];

/// A width or length of a text, kept within reason.
fn count(value: &Value) -> std::result::Result<usize, String> {
    match value {
        Value::Int(count) => usize::try_from(*count).ok().filter(|count| *count <= 4096),
        _ => None,
    }
    .ok_or_else(|| "expected a number from 0 to 4096".into())
}

fn string(value: &Value) -> std::result::Result<&str, String> {
    match value {
        Value::Str(text) => Ok(text),
        other => Err(format!("expected string; got {other}")),
    }
}

#[allow(clippy::cast_precision_loss, reason = "as the language of these templates compares")]
fn compare(one: &Value, other: &Value) -> Option<Ordering> {
    match (one, other) {
        (Value::Int(one), Value::Int(other)) => Some(one.cmp(other)),
        (Value::Float(one), Value::Float(other)) => one.partial_cmp(other),
        (Value::Int(one), Value::Float(other)) => (*one as f64).partial_cmp(other),
        (Value::Float(one), Value::Int(other)) => one.partial_cmp(&(*other as f64)),
        (Value::Str(one), Value::Str(other)) => Some(one.cmp(other)),
        (Value::Duration(one), Value::Duration(other)) => Some(one.cmp(other)),
        (Value::Time(one), Value::Time(other)) => Some(one.cmp(other)),
        (one, other) if one == other => Some(Ordering::Equal),
        _ => None,
    }
}

fn length(value: &Value) -> Result {
    let length = match value {
        Value::Str(text) => text.len(),
        Value::List(values) => values.len(),
        Value::Map(values) => values.len(),
        Value::Nil => 0,
        other => return Err(format!("len of {other}")),
    };
    Ok(Value::Int(i64::try_from(length).expect("a length fits")))
}

fn index(value: &Value, key: &Value) -> Result {
    match (value, key) {
        // A label that is not there is an empty text, as labels are texts.
        (Value::Map(values), Value::Str(key)) => {
            Ok(values.get(key).cloned().unwrap_or(Value::Str(String::new())))
        }
        (Value::List(values), Value::Int(at)) => usize::try_from(*at)
            .ok()
            .and_then(|at| values.get(at).cloned())
            .ok_or_else(|| format!("index out of range: {at}")),
        (Value::Str(text), Value::Int(at)) => usize::try_from(*at)
            .ok()
            .and_then(|at| text.as_bytes().get(at))
            .map(|byte| Value::Int(i64::from(*byte)))
            .ok_or_else(|| format!("index out of range: {at}")),
        (Value::Nil, _) => Err("index of untyped nil".into()),
        (value, key) => Err(format!("can't index {value} with {key}")),
    }
}

fn slice(value: &Value, bounds: &[Value]) -> Result {
    let bound = |at: usize, default: usize| match bounds.get(at) {
        None => Ok(default),
        Some(Value::Int(bound)) => {
            usize::try_from(*bound).ok().filter(|bound| *bound <= default).ok_or("index out of range")
        }
        Some(_) => Err("cannot index slice with that"),
    };
    let cut = |length: usize| {
        let from = match bounds.first() {
            None => 0,
            Some(_) => bound(0, length)?,
        };
        let to = bound(1, length)?;
        if from <= to { Ok((from, to)) } else { Err("invalid slice index") }
    };
    match value {
        Value::Str(text) => {
            let (from, to) = cut(text.len())?;
            text.get(from..to)
                .map(Into::into)
                .ok_or_else(|| "the text cannot be cut within a character".into())
        }
        Value::List(values) => {
            let (from, to) = cut(values.len())?;
            Ok(Value::List(values[from..to].to_vec()))
        }
        other => Err(format!("can't slice {other}")),
    }
}

fn title(text: &str) -> String {
    let mut start = true;
    let mut titled = String::new();
    for c in text.chars() {
        if start {
            titled.extend(c.to_uppercase());
        } else {
            titled.push(c);
        }
        start = !(c.is_alphanumeric() || c == '_' || c == '\'');
    }
    titled
}

fn escape(text: &str) -> String {
    let mut escaped = String::new();
    for c in text.chars() {
        match c {
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '&' => escaped.push_str("&amp;"),
            '"' => escaped.push_str("&#34;"),
            '\'' => escaped.push_str("&#39;"),
            c => escaped.push(c),
        }
    }
    escaped
}

fn urlquery(text: &str) -> String {
    let mut query = String::new();
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => {
                query.push(char::from(byte))
            }
            b' ' => query.push('+'),
            byte => query.push_str(&format!("%{byte:02X}")),
        }
    }
    query
}
