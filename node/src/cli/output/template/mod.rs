//! The template language of `--format`: that of Go's text/template, as far as values without methods go.

mod eval;
mod format;
mod functions;
mod lex;
mod parse;

use super::value::Value;
use std::fmt;

/// A template that is well formed.
#[derive(Clone, Debug)]
pub struct Template {
    source: String,
    tree: parse::Tree,
}

/// Why a text is not a template.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("template parsing error: template: :{place}: {why}")]
pub struct SyntaxError {
    place: Place,
    why: String,
}

/// Why a template cannot be carried out on a value.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("template parsing error: template: :{place}: executing \"\" at <{what}>: {why}")]
pub struct ExecError {
    place: Place,
    what: String,
    why: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Place {
    line: usize,
    byte: usize,
}

impl Place {
    fn of(source: &str, at: usize) -> Self {
        let before = &source.as_bytes()[..at.min(source.len())];
        let start = before.iter().rposition(|byte| *byte == b'\n').map_or(0, |newline| newline + 1);
        Self { line: before.iter().filter(|byte| **byte == b'\n').count() + 1, byte: before.len() - start }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.line, self.byte)
    }
}

impl SyntaxError {
    fn new(source: &str, at: usize, why: &str) -> Self {
        Self { place: Place::of(source, at), why: why.into() }
    }
}

impl ExecError {
    fn new(source: &str, at: usize, what: &str, why: &str) -> Self {
        Self { place: Place::of(source, at), what: what.into(), why: why.into() }
    }
}

impl Template {
    /// # Errors
    /// If the text is not a template.
    pub fn parse(source: &str) -> Result<Self, SyntaxError> {
        Ok(Self { source: source.into(), tree: parse::parse(source)? })
    }

    /// The template filled in.
    ///
    /// # Errors
    /// If it asks for what the value does not have.
    pub fn fill(&self, value: &Value) -> Result<String, ExecError> {
        self.run(value, false)
    }

    /// The heading of a table whose rows this template makes: functions that change texts leave it alone.
    ///
    /// # Errors
    /// If it asks for what the headings do not have.
    pub fn heading(&self, headings: &Value) -> Result<String, ExecError> {
        self.run(headings, true)
    }

    fn run(&self, value: &Value, heading: bool) -> Result<String, ExecError> {
        let (out, variables) = (String::new(), Vec::new());
        let mut run = eval::Run { source: &self.source, tree: &self.tree, out, heading, variables, calls: 0 };
        run.main(value)?;
        Ok(run.out)
    }
}
