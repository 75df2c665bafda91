//! Tokens into the tree of a template.

use super::SyntaxError;
use super::lex::{Located, Token, lex};
use std::collections::BTreeMap;

/// What is carried out in order.
pub(super) type Block = Vec<Node>;

#[derive(Clone, Debug)]
pub(super) enum Node {
    Text(String),
    Action(Pipeline),
    If { pipe: Pipeline, then: Block, other: Block },
    With { pipe: Pipeline, then: Block, other: Block },
    Range { pipe: Pipeline, then: Block, other: Block },
    Break,
    Continue,
    Template { name: String, pipe: Option<Pipeline>, at: usize },
}

#[derive(Clone, Debug)]
pub(super) struct Pipeline {
    /// Variables that take the result, and whether they are new.
    pub variables: Vec<String>,
    pub declares: bool,
    /// Each gets the result of the one before as its last argument.
    pub commands: Vec<Vec<Operand>>,
    pub at: usize,
}

#[derive(Clone, Debug)]
pub(super) struct Operand {
    pub kind: Kind,
    /// Fields asked of it, in turn.
    pub fields: Vec<String>,
    pub at: usize,
}

#[derive(Clone, Debug)]
pub(super) enum Kind {
    Dot,
    Nil,
    Bool(bool),
    Int(i64),
    Float(f64),
    Str(String),
    Variable(String),
    Function(String),
    Pipe(Box<Pipeline>),
}

/// A template and the templates defined in it.
#[derive(Clone, Debug)]
pub(super) struct Tree {
    pub main: Block,
    pub defined: BTreeMap<String, Block>,
}

/// Depth of nesting beyond which a template is refused.
const DEPTH_MAX: usize = 100;

pub(super) fn parse(source: &str) -> Result<Tree, SyntaxError> {
    let tokens = lex(source)?;
    let mut parser =
        Parser { source, tokens: &tokens, next: 0, depth: 0, loops: 0, defined: BTreeMap::new() };
    let (main, end) = parser.block()?;
    match end {
        End::Source => Ok(Tree { main, defined: parser.defined }),
        End::Block => Err(parser.error("unexpected {{end}}")),
        End::Else(_) => Err(parser.error("unexpected {{else}}")),
    }
}

struct Parser<'a> {
    source: &'a str,
    tokens: &'a [Located],
    next: usize,
    depth: usize,
    loops: usize,
    defined: BTreeMap<String, Block>,
}

/// What ended a block.
enum End {
    Source,
    /// `end`
    Block,
    /// `else`, `else if`, `else with`
    Else(Option<Located>),
}

impl Parser<'_> {
    fn peek(&self) -> Option<&Token> {
        self.tokens.get(self.next).map(|(_, token)| token)
    }

    fn at(&self) -> usize {
        self.tokens.get(self.next).map_or(self.source.len(), |(at, _)| *at)
    }

    fn take(&mut self) -> Option<Token> {
        let token = self.peek().cloned();
        self.next += 1;
        token
    }

    fn error(&self, why: &str) -> SyntaxError {
        SyntaxError::new(self.source, self.at(), why)
    }

    fn expect(&mut self, token: &Token, what: &str) -> Result<(), SyntaxError> {
        if self.peek() == Some(token) {
            self.next += 1;
            return Ok(());
        }
        Err(self.error(&format!("expected {what}")))
    }

    fn close(&mut self) -> Result<(), SyntaxError> {
        self.expect(&Token::Close, "}}")
    }

    fn block(&mut self) -> Result<(Block, End), SyntaxError> {
        self.depth += 1;
        if self.depth > DEPTH_MAX {
            return Err(self.error("the template is nested too deeply"));
        }
        let mut block = Block::new();
        let end = loop {
            match self.take() {
                None => break End::Source,
                Some(Token::Text(text)) => block.push(Node::Text(text)),
                Some(_) => match self.action(&mut block)? {
                    Some(end) => break end,
                    None => continue,
                },
            }
        };
        self.depth -= 1;
        Ok((block, end))
    }

    /// One action, after its opening.
    fn action(&mut self, block: &mut Block) -> Result<Option<End>, SyntaxError> {
        let at = self.at();
        let Some(Token::Word(word)) = self.peek().cloned() else {
            block.push(Node::Action(self.pipeline()?));
            self.close()?;
            return Ok(None);
        };
        self.next += 1;
        match word.as_str() {
            "end" => {
                self.close()?;
                return Ok(Some(End::Block));
            }
            "else" => {
                let follows = match self.peek().cloned() {
                    Some(Token::Word(word)) if word == "if" || word == "with" => {
                        self.next += 1;
                        Some((at, Token::Word(word)))
                    }
                    _ => {
                        self.close()?;
                        None
                    }
                };
                return Ok(Some(End::Else(follows)));
            }
            "if" | "with" | "range" => {
                let node = self.control(&word)?;
                block.push(node);
            }
            "break" | "continue" => {
                if self.loops == 0 {
                    return Err(self.error(&format!("{{{{{word}}}}} outside of a range")));
                }
                self.close()?;
                block.push(if word == "break" { Node::Break } else { Node::Continue });
            }
            "define" => self.define()?,
            "block" => {
                let name = self.name()?;
                let pipe = Some(self.pipeline()?);
                self.close()?;
                let body = self.body()?;
                self.defined.insert(name.clone(), body);
                block.push(Node::Template { name, pipe, at });
            }
            "template" => {
                let name = self.name()?;
                let pipe = if self.peek() == Some(&Token::Close) { None } else { Some(self.pipeline()?) };
                self.close()?;
                block.push(Node::Template { name, pipe, at });
            }
            _ => {
                self.next -= 1;
                block.push(Node::Action(self.pipeline()?));
                self.close()?;
            }
        }
        Ok(None)
    }

    fn control(&mut self, word: &str) -> Result<Node, SyntaxError> {
        let pipe = self.pipeline()?;
        self.close()?;
        self.loops += usize::from(word == "range");
        let (then, end) = self.block()?;
        self.loops -= usize::from(word == "range");
        let other = match end {
            End::Block => Block::new(),
            End::Source => return Err(self.error(&format!("{{{{{word}}}}} has no {{{{end}}}}"))),
            End::Else(None) => self.body()?,
            End::Else(Some((_, Token::Word(next)))) => {
                self.depth += 1;
                let node = self.control(&next)?;
                self.depth -= 1;
                vec![node]
            }
            End::Else(Some(_)) => return Err(self.error("unexpected {{else}}")),
        };
        Ok(match word {
            "if" => Node::If { pipe, then, other },
            "with" => Node::With { pipe, then, other },
            _ => Node::Range { pipe, then, other },
        })
    }

    /// A block up to its `end`.
    fn body(&mut self) -> Result<Block, SyntaxError> {
        match self.block()? {
            (block, End::Block) => Ok(block),
            _ => Err(self.error("expected {{end}}")),
        }
    }

    fn define(&mut self) -> Result<(), SyntaxError> {
        let name = self.name()?;
        self.close()?;
        let body = self.body()?;
        self.defined.insert(name, body);
        Ok(())
    }

    fn name(&mut self) -> Result<String, SyntaxError> {
        match self.take() {
            Some(Token::Str(name)) => Ok(name),
            _ => {
                self.next -= 1;
                Err(self.error("expected a name in quotes"))
            }
        }
    }

    fn pipeline(&mut self) -> Result<Pipeline, SyntaxError> {
        self.depth += 1;
        if self.depth > DEPTH_MAX {
            return Err(self.error("the template is nested too deeply"));
        }
        let at = self.at();
        let (variables, declares) = self.variables();
        let mut commands = vec![self.command()?];
        while self.peek() == Some(&Token::Pipe) {
            self.next += 1;
            commands.push(self.command()?);
        }
        self.depth -= 1;
        Ok(Pipeline { variables, declares, commands, at })
    }

    /// `$x :=`, `$x =`, `$i, $e :=`, or nothing.
    fn variables(&mut self) -> (Vec<String>, bool) {
        let start = self.next;
        let mut variables = Vec::new();
        while let Some(Token::Variable(name)) = self.peek().cloned() {
            self.next += 1;
            variables.push(name);
            match self.take() {
                Some(Token::Comma) if variables.len() == 1 => {}
                Some(Token::Declare) => return (variables, true),
                Some(Token::Assign) => return (variables, false),
                _ => break,
            }
        }
        self.next = start;
        (Vec::new(), false)
    }

    fn command(&mut self) -> Result<Vec<Operand>, SyntaxError> {
        let mut operands = Vec::new();
        while let Some(operand) = self.operand()? {
            operands.push(operand);
        }
        if operands.is_empty() {
            return Err(self.error("expected a value"));
        }
        Ok(operands)
    }

    fn operand(&mut self) -> Result<Option<Operand>, SyntaxError> {
        let mut at = self.at();
        let start = self.next;
        let mut fields = Vec::new();
        let kind = match self.take() {
            Some(Token::Dot) => return Ok(Some(Operand { kind: Kind::Dot, fields, at })),
            Some(Token::Field(name)) => {
                fields.push(name);
                Kind::Dot
            }
            Some(Token::Variable(name)) => Kind::Variable(name),
            Some(Token::Int(number)) => return Ok(Some(Operand { kind: Kind::Int(number), fields, at })),
            Some(Token::Float(number)) => return Ok(Some(Operand { kind: Kind::Float(number), fields, at })),
            Some(Token::Str(text)) => return Ok(Some(Operand { kind: Kind::Str(text), fields, at })),
            Some(Token::Word(word)) => {
                let kind = match word.as_str() {
                    "true" => Kind::Bool(true),
                    "false" => Kind::Bool(false),
                    "nil" => Kind::Nil,
                    _ => Kind::Function(word),
                };
                return Ok(Some(Operand { kind, fields, at }));
            }
            Some(Token::Left) => {
                let pipe = self.pipeline()?;
                self.expect(&Token::Right, ")")?;
                Kind::Pipe(Box::new(pipe))
            }
            _ => {
                self.next = start;
                return Ok(None);
            }
        };
        // Fields belong to what stands before them only if no space comes between.
        while let Some((field_at, Token::Field(name))) = self.tokens.get(self.next) {
            if self.source[..*field_at].ends_with(char::is_whitespace) {
                break;
            }
            if fields.len() == usize::from(matches!(kind, Kind::Dot)) {
                at = *field_at;
            }
            fields.push(name.clone());
            self.next += 1;
        }
        Ok(Some(Operand { kind, fields, at }))
    }
}
