//! Carries a template out.

use super::parse::{Block, Kind, Node, Operand, Pipeline, Tree};
use super::{ExecError, functions};
use crate::cli::output::value::Value;

/// Depth of `{{template}}` calls beyond which a template is refused.
const CALLS_MAX: usize = 100;

pub(super) struct Run<'a> {
    pub source: &'a str,
    pub tree: &'a Tree,
    pub out: String,
    /// Functions that change texts leave them alone: the heading of a table is made so.
    pub heading: bool,
    pub variables: Vec<(String, Value)>,
    pub calls: usize,
}

/// How a block ended.
#[derive(PartialEq)]
enum Flow {
    On,
    Break,
    Continue,
}

impl Run<'_> {
    pub fn main(&mut self, dot: &Value) -> Result<(), ExecError> {
        self.variables.push((String::new(), dot.clone()));
        let tree = self.tree;
        self.block(&tree.main, dot).map(|_| ())
    }

    fn block(&mut self, block: &Block, dot: &Value) -> Result<Flow, ExecError> {
        let scope = self.variables.len();
        for node in block {
            let flow = self.node(node, dot)?;
            if flow != Flow::On {
                self.variables.truncate(scope);
                return Ok(flow);
            }
        }
        self.variables.truncate(scope);
        Ok(Flow::On)
    }

    fn node(&mut self, node: &Node, dot: &Value) -> Result<Flow, ExecError> {
        match node {
            Node::Text(text) => self.out.push_str(text),
            Node::Action(pipe) => {
                let value = self.pipeline(pipe, dot)?;
                if pipe.variables.is_empty() {
                    self.out.push_str(&value.to_string());
                }
            }
            Node::If { pipe, then, other } | Node::With { pipe, then, other } => {
                let scope = self.variables.len();
                let value = self.pipeline(pipe, dot)?;
                let inner = if matches!(node, Node::With { .. }) { &value } else { dot };
                let flow = if value.is_empty() { self.block(other, dot) } else { self.block(then, inner) }?;
                self.variables.truncate(scope);
                return Ok(flow);
            }
            Node::Range { pipe, then, other } => return self.range(pipe, then, other, dot),
            Node::Break => return Ok(Flow::Break),
            Node::Continue => return Ok(Flow::Continue),
            Node::Template { name, pipe, at } => self.call(name, pipe.as_ref(), *at, dot)?,
        }
        Ok(Flow::On)
    }

    fn call(&mut self, name: &str, pipe: Option<&Pipeline>, at: usize, dot: &Value) -> Result<(), ExecError> {
        let value = pipe.map_or(Ok(Value::Nil), |pipe| self.pipeline(pipe, dot))?;
        let tree = self.tree;
        let Some(block) = tree.defined.get(name) else {
            return Err(self.error(
                at,
                &format!("{{{{template {name:?}}}}}"),
                &format!("template {name:?} not defined"),
            ));
        };
        self.calls += 1;
        if self.calls > CALLS_MAX {
            return Err(self.error(at, name, "the template calls itself without end"));
        }
        let outer = std::mem::replace(&mut self.variables, vec![(String::new(), value.clone())]);
        self.block(block, &value)?;
        self.variables = outer;
        self.calls -= 1;
        Ok(())
    }

    fn range(
        &mut self,
        pipe: &Pipeline,
        then: &Block,
        other: &Block,
        dot: &Value,
    ) -> Result<Flow, ExecError> {
        let bare = Pipeline { variables: Vec::new(), ..pipe.clone() };
        let items: Vec<(Value, Value)> = match self.pipeline(&bare, dot)? {
            Value::Nil => Vec::new(),
            Value::List(values) => (0..).map(Value::Int).zip(values).collect(),
            Value::Map(values) => values.into_iter().map(|(key, value)| (Value::Str(key), value)).collect(),
            Value::Int(count) => (0..count).map(|i| (Value::Int(i), Value::Int(i))).collect(),
            other => {
                let why = format!("range can't iterate over {other}");
                return Err(self.error(pipe.at, &self.text_of(pipe), &why));
            }
        };
        if items.is_empty() {
            return self.block(other, dot);
        }
        for (key, item) in items {
            let scope = self.variables.len();
            match pipe.variables.as_slice() {
                [one] => self.variables.push((one.clone(), item.clone())),
                [first, second] => {
                    self.variables.push((first.clone(), key));
                    self.variables.push((second.clone(), item.clone()));
                }
                _ => {}
            }
            let flow = self.block(then, &item)?;
            self.variables.truncate(scope);
            if flow == Flow::Break {
                break;
            }
        }
        Ok(Flow::On)
    }

    fn pipeline(&mut self, pipe: &Pipeline, dot: &Value) -> Result<Value, ExecError> {
        let mut value = None;
        for command in &pipe.commands {
            value = Some(self.command(command, value, dot)?);
        }
        let value = value.expect("a pipeline has a command");
        if let Some(name) = pipe.variables.first() {
            if pipe.declares {
                self.variables.push((name.clone(), value.clone()));
            } else {
                let known = self.variables.iter_mut().rev().find(|(known, _)| known == name);
                match known {
                    Some((_, held)) => *held = value.clone(),
                    None => {
                        return Err(self.error(pipe.at, name, &format!("undefined variable \"${name}\"")));
                    }
                }
            }
        }
        Ok(value)
    }

    fn command(&mut self, words: &[Operand], last: Option<Value>, dot: &Value) -> Result<Value, ExecError> {
        let (first, rest) = words.split_first().expect("a command has a word");
        let Kind::Function(name) = &first.kind else {
            if !rest.is_empty() || last.is_some() {
                return Err(self.error(first.at, &text(first), "can't give argument to non-function"));
            }
            return self.operand(first, dot);
        };
        // `and` and `or` look no further than they must.
        let short =
            |value: &Value| (name == "and" && value.is_empty()) || (name == "or" && !value.is_empty());
        let mut arguments = Vec::new();
        for word in rest {
            let value = self.operand(word, dot)?;
            if short(&value) {
                return Ok(value);
            }
            arguments.push(value);
        }
        arguments.extend(last);
        functions::call(name, &arguments, self.heading)
            .map_err(|why| self.error(first.at, name, &format!("error calling {name}: {why}")))
    }

    fn operand(&mut self, operand: &Operand, dot: &Value) -> Result<Value, ExecError> {
        let mut value = match &operand.kind {
            Kind::Dot => dot.clone(),
            Kind::Nil => Value::Nil,
            Kind::Bool(yes) => Value::Bool(*yes),
            Kind::Int(number) => Value::Int(*number),
            Kind::Float(number) => Value::Float(*number),
            Kind::Str(text) => Value::Str(text.clone()),
            Kind::Variable(name) => match self.variables.iter().rev().find(|(known, _)| known == name) {
                Some((_, value)) => value.clone(),
                None => {
                    let why = format!("undefined variable \"${name}\"");
                    return Err(self.error(operand.at, &text(operand), &why));
                }
            },
            Kind::Function(_) => return self.command(std::slice::from_ref(operand), None, dot),
            Kind::Pipe(pipe) => self.pipeline(pipe, dot)?,
        };
        for field in &operand.fields {
            value = self.field(value, field, operand)?;
        }
        Ok(value)
    }

    fn field(&self, value: Value, name: &str, operand: &Operand) -> Result<Value, ExecError> {
        let missing = |kind: &str| {
            let why = format!("can't evaluate field {name} in type {kind}");
            Err(self.error(operand.at, &text(operand), &why))
        };
        match value {
            Value::Struct(object) => match object.get(name) {
                Some(value) => Ok(value.clone()),
                None => missing(object.kind()),
            },
            Value::Map(mut values) => Ok(values.remove(name).unwrap_or(Value::Nil)),
            Value::Nil => {
                let why = format!("nil has no field {name}; ask for it inside {{{{with}}}} or {{{{if}}}}");
                Err(self.error(operand.at, &text(operand), &why))
            }
            Value::List(_) => missing("list"),
            Value::Str(_) => missing("string"),
            Value::Bool(_) => missing("bool"),
            Value::Int(_) => missing("int"),
            Value::Float(_) => missing("float64"),
            Value::Duration(_) => missing("time.Duration"),
            Value::Time(_) => missing("time.Time"),
        }
    }

    fn text_of(&self, pipe: &Pipeline) -> String {
        pipe.commands.iter().flatten().map(text).collect::<Vec<_>>().join(" ")
    }

    fn error(&self, at: usize, what: &str, why: &str) -> ExecError {
        ExecError::new(self.source, at, what, why)
    }
}

/// An operand as it was written.
fn text(operand: &Operand) -> String {
    let mut text = match &operand.kind {
        Kind::Dot if operand.fields.is_empty() => ".".into(),
        Kind::Dot => String::new(),
        Kind::Nil => "nil".into(),
        Kind::Bool(yes) => yes.to_string(),
        Kind::Int(number) => number.to_string(),
        Kind::Float(number) => number.to_string(),
        Kind::Str(text) => format!("{text:?}"),
        Kind::Variable(name) => format!("${name}"),
        Kind::Function(name) => name.clone(),
        Kind::Pipe(_) => "(…)".into(),
    };
    for field in &operand.fields {
        text.push('.');
        text.push_str(field);
    }
    text
}
