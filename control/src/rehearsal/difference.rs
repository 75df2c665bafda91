//! What differs between two values of one type, path by path: of any field there is or will be, since it is read
//! from the form in which values print themselves whole.

use std::collections::BTreeMap;
use std::fmt;

/// Something that is not the same.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// Of what: `service web`.
    pub of: String,
    /// Where in it: `task.containers[0].image`. Empty if all of it is new, or gone.
    pub path: String,
    /// What was there; empty if nothing was.
    pub before: String,
    /// What is there; empty if nothing is.
    pub after: String,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { of, path, before, after } = self;
        let part = if path.is_empty() { String::new() } else { format!(": {path}") };
        match (before.as_str(), after.as_str()) {
            ("", after) => write!(f, "+ {of}{part} {after}"),
            (before, "") => write!(f, "- {of}{part} {before}"),
            (before, after) => write!(f, "~ {of}{part} {before} → {after}"),
        }
    }
}

/// What differs, in the order of the fields of the newer.
pub fn between<T: fmt::Debug>(of: &str, before: Option<&T>, after: Option<&T>) -> Vec<Difference> {
    let leaves = |value: Option<&T>| value.map_or(Vec::new(), |value| leaves(&format!("{value:#?}")));
    let (old, new) = (leaves(before), leaves(after));
    let was: BTreeMap<&str, &str> = old.iter().map(|(path, value)| (path.as_str(), value.as_str())).collect();
    let is: BTreeMap<&str, &str> = new.iter().map(|(path, value)| (path.as_str(), value.as_str())).collect();
    let mut differences = Vec::new();
    let mut add = |path: &str| {
        let of_map =
            |map: &BTreeMap<&str, &str>| map.get(path).map_or(String::new(), |value| (*value).to_owned());
        let (of, path) = (of.to_owned(), path.to_owned());
        let (before, after) = (of_map(&was), of_map(&is));
        // What says nothing needs not be told of something new or gone.
        if before != after
            && !matches!(
                (before.as_str(), after.as_str()),
                ("", "[]" | "{}" | "None") | ("[]" | "{}" | "None", "")
            )
        {
            differences.push(Difference { of, path, before, after });
        }
    };
    new.iter().for_each(|(path, _)| add(path));
    old.iter().filter(|(path, _)| !is.contains_key(path.as_str())).for_each(|(path, _)| add(path));
    differences
}

/// A bracket that is open: the path to what is in it, and what has been read of it.
struct Open {
    path: String,
    round: bool,
    count: usize,
}

/// The values at the ends of all paths, of a value printed over several lines.
fn leaves(text: &str) -> Vec<(String, String)> {
    let mut leaves = Vec::new();
    let mut open: Vec<Open> = Vec::new();
    for line in text.lines() {
        let line = line.trim().trim_end_matches(',');
        if matches!(line, "}" | "]" | ")") {
            open.pop();
            continue;
        }
        let (key, value) = split(line);
        let path = match (open.last_mut(), key) {
            (None, None) => String::new(),
            (None, Some(key)) => key.to_owned(),
            (Some(outer), key) => {
                let at = outer.count;
                outer.count += 1;
                match key {
                    Some(key) if outer.path.is_empty() => key.to_owned(),
                    Some(key) => format!("{}.{key}", outer.path),
                    // What is wrapped is meant by the name of the wrapping.
                    None if outer.round && at == 0 => outer.path.clone(),
                    None => format!("{}[{at}]", outer.path),
                }
            }
        };
        match value.chars().last() {
            Some('{' | '[') => open.push(Open { path, round: false, count: 0 }),
            Some('(') => open.push(Open { path, round: true, count: 0 }),
            _ => leaves.push((path, value.to_owned())),
        }
    }
    leaves
}

/// A line's key, if it has one, and its value.
fn split(line: &str) -> (Option<&str>, &str) {
    let key_ends = if line.starts_with('"') {
        let mut escaped = false;
        let end = line.char_indices().skip(1).find(|(_, c)| {
            let ends = *c == '"' && !escaped;
            escaped = *c == '\\' && !escaped;
            ends
        });
        end.map(|(at, _)| at + 1).filter(|at| line[*at..].starts_with(": "))
    } else {
        let end = line.find(": ");
        end.filter(|at| line[..*at].chars().all(|c| c.is_alphanumeric() || c == '_'))
    };
    match key_ends {
        Some(at) => (Some(line[..at].trim_matches('"')), &line[at + 2..]),
        None => (None, line),
    }
}
