//! What is printed: values with named fields, as templates and `--format json` see them. A structure knows
//! its fields also where they are empty, so that a template may ask for them and a misspelt one is an error.

use super::units;
use serde_json::json;
use std::collections::BTreeMap;
use std::fmt::{self, Write};
use std::time::Duration;

/// A value to print.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// Nothing; false to a template.
    Nil,
    /// Yes or no.
    Bool(bool),
    /// A whole number.
    Int(i64),
    /// Another number.
    Float(f64),
    /// A text.
    Str(String),
    /// Printed as `1m30s`; nanoseconds in JSON.
    Duration(Duration),
    /// Nanoseconds since the Unix epoch; RFC 3339 in JSON.
    Time(u64),
    /// Values in order.
    List(Vec<Value>),
    /// Values by keys that users chose.
    Map(BTreeMap<String, Value>),
    /// Values by fields that we chose.
    Struct(Struct),
}

/// Values by fields, in order.
#[derive(Clone, Debug, PartialEq)]
pub struct Struct {
    kind: String,
    fields: Vec<Field>,
}

#[derive(Clone, Debug, PartialEq)]
struct Field {
    name: String,
    value: Value,
    always: bool,
}

impl Struct {
    /// A structure without fields; `kind` names it in errors.
    pub fn new(kind: impl Into<String>) -> Self {
        Self { kind: kind.into(), fields: Vec::new() }
    }

    /// With one more field, which JSON always shows.
    #[must_use]
    pub fn with(mut self, name: impl Into<String>, value: impl Into<Value>) -> Self {
        self.fields.push(Field { name: name.into(), value: value.into(), always: true });
        self
    }

    /// With one more field, which JSON leaves out where it is empty.
    #[must_use]
    pub fn maybe(mut self, name: impl Into<String>, value: impl Into<Value>) -> Self {
        self.fields.push(Field { name: name.into(), value: value.into(), always: false });
        self
    }

    /// Gives a field that is there another value.
    pub fn set(&mut self, name: &str, value: impl Into<Value>) {
        if let Some(field) = self.fields.iter_mut().find(|field| field.name == name) {
            field.value = value.into();
        }
    }

    /// What the structure is called in errors.
    pub fn kind(&self) -> &str {
        &self.kind
    }

    /// The value of a field, if there is such a field.
    pub fn get(&self, name: &str) -> Option<&Value> {
        self.fields.iter().find(|field| field.name == name).map(|field| &field.value)
    }

    /// The fields' names, in order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.fields.iter().map(|field| field.name.as_str())
    }

    /// Whether every field is empty.
    fn is_empty(&self) -> bool {
        self.fields.iter().all(|field| !field.always && field.value.is_empty())
    }
}

impl Value {
    /// A moment in milliseconds since the Unix epoch.
    pub fn time_ms(at: u64) -> Self {
        Self::Time(at.saturating_mul(1_000_000))
    }

    /// Whether a template's `if` takes the other branch.
    pub fn is_empty(&self) -> bool {
        match self {
            Self::Nil => true,
            Self::Bool(yes) => !yes,
            Self::Int(number) => *number == 0,
            Self::Float(number) => *number == 0.0,
            Self::Str(text) => text.is_empty(),
            Self::Duration(duration) => duration.is_zero(),
            Self::Time(at) => *at == 0,
            Self::List(values) => values.is_empty(),
            Self::Map(values) => values.is_empty(),
            Self::Struct(_) => false,
        }
    }

    /// As JSON, fields in their order.
    pub fn to_json(&self) -> String {
        let mut text = String::new();
        self.json(&mut text, None).expect("a string takes everything");
        text
    }

    /// As JSON over several lines, indented by four spaces a level.
    pub fn to_json_pretty(&self) -> String {
        let mut text = String::new();
        self.json(&mut text, Some(0)).expect("a string takes everything");
        text
    }

    fn json(&self, out: &mut String, indent: Option<usize>) -> fmt::Result {
        match self {
            Self::Nil => out.write_str("null"),
            Self::Bool(yes) => write!(out, "{yes}"),
            Self::Int(number) => write!(out, "{number}"),
            Self::Float(number) => write!(out, "{}", json!(number)),
            Self::Str(text) => write!(out, "{}", json!(text)),
            Self::Duration(duration) => write!(out, "{}", duration.as_nanos()),
            Self::Time(at) => write!(out, "\"{}\"", units::rfc3339(*at)),
            Self::List(values) => {
                block(out, indent, ['[', ']'], values.iter(), |out, value, deeper| value.json(out, deeper))
            }
            Self::Map(values) => {
                block(out, indent, ['{', '}'], values.iter(), |out, (key, value), deeper| {
                    entry(out, key, value, deeper)
                })
            }
            Self::Struct(object) => {
                let shown = object.fields.iter().filter(|field| field.always || !field.value.is_blank());
                block(out, indent, ['{', '}'], shown, |out, field, deeper| {
                    entry(out, &field.name, &field.value, deeper)
                })
            }
        }
    }

    fn is_blank(&self) -> bool {
        match self {
            Self::Struct(object) => object.is_empty(),
            other => other.is_empty(),
        }
    }
}

fn entry(out: &mut String, key: &str, value: &Value, indent: Option<usize>) -> fmt::Result {
    write!(out, "{}:{}", json!(key), if indent.is_some() { " " } else { "" })?;
    value.json(out, indent)
}

fn block<T>(
    out: &mut String,
    indent: Option<usize>,
    [open, close]: [char; 2],
    items: impl Iterator<Item = T>,
    mut one: impl FnMut(&mut String, T, Option<usize>) -> fmt::Result,
) -> fmt::Result {
    let deeper = indent.map(|depth| depth + 1);
    let line = |out: &mut String, depth: Option<usize>| match depth {
        Some(depth) => write!(out, "\n{:1$}", "", depth * 4),
        None => Ok(()),
    };
    out.write_char(open)?;
    let mut any = false;
    for item in items {
        if any {
            out.write_char(',')?;
        }
        any = true;
        line(out, deeper)?;
        one(out, item, deeper)?;
    }
    if any {
        line(out, indent)?;
    }
    out.write_char(close)
}

/// As a template prints it.
impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Nil => f.write_str("<no value>"),
            Self::Bool(yes) => write!(f, "{yes}"),
            Self::Int(number) => write!(f, "{number}"),
            Self::Float(number) => write!(f, "{number}"),
            Self::Str(text) => f.write_str(text),
            Self::Duration(duration) => f.write_str(&units::duration(*duration)),
            Self::Time(at) => f.write_str(&units::long_time(*at)),
            Self::List(values) => {
                f.write_char('[')?;
                spaced(f, values.iter(), |f, value| write!(f, "{value}"))?;
                f.write_char(']')
            }
            Self::Map(values) => {
                f.write_str("map[")?;
                spaced(f, values.iter(), |f, (key, value)| write!(f, "{key}:{value}"))?;
                f.write_char(']')
            }
            Self::Struct(object) => {
                f.write_char('{')?;
                spaced(f, object.fields.iter(), |f, field| write!(f, "{}", field.value))?;
                f.write_char('}')
            }
        }
    }
}

fn spaced<T>(
    f: &mut fmt::Formatter<'_>,
    items: impl Iterator<Item = T>,
    one: impl Fn(&mut fmt::Formatter<'_>, T) -> fmt::Result,
) -> fmt::Result {
    for (index, item) in items.enumerate() {
        if index > 0 {
            f.write_char(' ')?;
        }
        one(f, item)?;
    }
    Ok(())
}

impl From<bool> for Value {
    fn from(yes: bool) -> Self {
        Self::Bool(yes)
    }
}

impl From<&str> for Value {
    fn from(text: &str) -> Self {
        Self::Str(text.into())
    }
}

impl From<String> for Value {
    fn from(text: String) -> Self {
        Self::Str(text)
    }
}

impl From<&String> for Value {
    fn from(text: &String) -> Self {
        Self::Str(text.clone())
    }
}

impl From<u64> for Value {
    fn from(number: u64) -> Self {
        Self::Int(i64::try_from(number).unwrap_or(i64::MAX))
    }
}

impl From<u32> for Value {
    fn from(number: u32) -> Self {
        Self::Int(i64::from(number))
    }
}

impl From<u16> for Value {
    fn from(number: u16) -> Self {
        Self::Int(i64::from(number))
    }
}

impl From<i32> for Value {
    fn from(number: i32) -> Self {
        Self::Int(i64::from(number))
    }
}

impl From<Duration> for Value {
    fn from(duration: Duration) -> Self {
        Self::Duration(duration)
    }
}

impl From<Struct> for Value {
    fn from(object: Struct) -> Self {
        Self::Struct(object)
    }
}

impl From<&BTreeMap<String, String>> for Value {
    fn from(labels: &BTreeMap<String, String>) -> Self {
        Self::Map(labels.iter().map(|(key, value)| (key.clone(), value.into())).collect())
    }
}

impl From<&[String]> for Value {
    fn from(texts: &[String]) -> Self {
        Self::List(texts.iter().map(Into::into).collect())
    }
}

impl<T: Into<Value>> From<Option<T>> for Value {
    fn from(value: Option<T>) -> Self {
        value.map_or(Self::Nil, Into::into)
    }
}

impl<T: Into<Value>> From<Vec<T>> for Value {
    fn from(values: Vec<T>) -> Self {
        Self::List(values.into_iter().map(Into::into).collect())
    }
}
