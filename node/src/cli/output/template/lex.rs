//! Text into the tokens of a template.

use super::SyntaxError;

/// A piece of a template.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Token {
    /// What stands between actions.
    Text(String),
    Open,
    Close,
    Str(String),
    Int(i64),
    Float(f64),
    /// `.Name`
    Field(String),
    /// A lone `.`
    Dot,
    /// `$` or `$name`, without the dollar.
    Variable(String),
    Word(String),
    Pipe,
    Comma,
    Declare,
    Assign,
    /// `(`
    Left,
    /// `)`
    Right,
}

/// A token and where it begins, in bytes.
pub(super) type Located = (usize, Token);

/// Splits a template. Comments are gone, and so is the space that trim markers ask to remove.
pub(super) fn lex(source: &str) -> Result<Vec<Located>, SyntaxError> {
    let mut tokens = Vec::new();
    let mut at = 0;
    let mut trim = false;
    loop {
        let rest = &source[at..];
        let open = rest.find("{{");
        let mut text = &rest[..open.unwrap_or(rest.len())];
        if trim {
            text = text.trim_start();
        }
        let Some(open) = open else {
            push_text(&mut tokens, at, text);
            return Ok(tokens);
        };
        let mut inside = at + open + 2;
        if is_trim_marker_after(&source[inside..]) {
            text = text.trim_end();
            inside += 1;
        }
        push_text(&mut tokens, at, text);
        (at, trim) = match comment(source, inside)? {
            Some(end) => end,
            None => action(source, inside, &mut tokens)?,
        };
    }
}

fn push_text(tokens: &mut Vec<Located>, at: usize, text: &str) {
    if !text.is_empty() {
        tokens.push((at, Token::Text(text.into())));
    }
}

/// `- ` after an opening.
fn is_trim_marker_after(rest: &str) -> bool {
    rest.strip_prefix('-').is_some_and(|rest| rest.starts_with(char::is_whitespace))
}

/// Skips a comment that begins at `at`; says where the text goes on and whether it is trimmed.
fn comment(source: &str, at: usize) -> Result<Option<(usize, bool)>, SyntaxError> {
    let body = source[at..].trim_start();
    if !body.starts_with("/*") {
        return Ok(None);
    }
    let unclosed = || SyntaxError::new(source, at, "the comment is not closed by */}}");
    let end = body.find("*/").ok_or_else(unclosed)?;
    let after = &body[end + 2..];
    let trimmed = after.trim_start();
    let marker = trimmed.len() < after.len() && trimmed.starts_with("-}}");
    let tail = if marker { &trimmed[3..] } else { after.strip_prefix("}}").ok_or_else(unclosed)? };
    Ok(Some((source.len() - tail.len(), marker)))
}

/// Reads one action up to its end; says where the text goes on and whether it is trimmed.
fn action(source: &str, mut at: usize, tokens: &mut Vec<Located>) -> Result<(usize, bool), SyntaxError> {
    tokens.push((at, Token::Open));
    loop {
        let rest = &source[at..];
        let trimmed = rest.trim_start();
        if trimmed.len() < rest.len() && trimmed.starts_with("-}}") {
            tokens.push((at, Token::Close));
            return Ok((source.len() - trimmed.len() + 3, true));
        }
        at += rest.len() - trimmed.len();
        if trimmed.starts_with("}}") {
            tokens.push((at, Token::Close));
            return Ok((at + 2, false));
        }
        let (length, token) = token(source, at)?;
        tokens.push((at, token));
        at += length;
    }
}

fn token(source: &str, at: usize) -> Result<(usize, Token), SyntaxError> {
    let rest = &source[at..];
    let error = |why: &str| Err(SyntaxError::new(source, at, why));
    let name = |from: usize| {
        rest[from..].find(|c: char| !c.is_alphanumeric() && c != '_').map_or(rest.len(), |n| n + from)
    };
    let Some(first) = rest.chars().next() else { return error("the action is not closed by }}") };
    Ok(match first {
        '|' => (1, Token::Pipe),
        ',' => (1, Token::Comma),
        '(' => (1, Token::Left),
        ')' => (1, Token::Right),
        '=' => (1, Token::Assign),
        ':' if rest.starts_with(":=") => (2, Token::Declare),
        '"' => quoted(source, at)?,
        '`' => match rest[1..].find('`') {
            Some(end) => (end + 2, Token::Str(rest[1..=end].into())),
            None => return error("the text is not closed by `"),
        },
        '\'' => {
            let mut chars = rest[1..].chars();
            match (chars.next(), chars.next()) {
                (Some(c), Some('\'')) if c != '\\' => (c.len_utf8() + 2, Token::Int(i64::from(u32::from(c)))),
                _ => return error("a character is written 'x'"),
            }
        }
        '$' => (name(1), Token::Variable(rest[1..name(1)].into())),
        '.' if name(1) > 1 && !rest[1..].starts_with(|c: char| c.is_ascii_digit()) => {
            (name(1), Token::Field(rest[1..name(1)].into()))
        }
        '.' if name(1) == 1 => (1, Token::Dot),
        c if c.is_alphabetic() || c == '_' => (name(0), Token::Word(rest[..name(0)].into())),
        c if c.is_ascii_digit() || matches!(c, '-' | '+' | '.') => number(source, at)?,
        c => return error(&format!("unexpected {c:?} in an action")),
    })
}

fn number(source: &str, at: usize) -> Result<(usize, Token), SyntaxError> {
    let rest = &source[at..];
    let end = rest
        .char_indices()
        .find(|(index, c)| {
            !(c.is_alphanumeric() || matches!(c, '.' | '_') || (*index == 0 && matches!(c, '-' | '+')))
        })
        .map_or(rest.len(), |(index, _)| index);
    let digits = rest[..end].replace('_', "");
    let whole = match digits.strip_prefix("0x") {
        Some(digits) => i64::from_str_radix(digits, 16).ok(),
        None => digits.parse().ok(),
    };
    let token = whole.map(Token::Int).or_else(|| digits.parse().ok().map(Token::Float));
    match token {
        Some(token) => Ok((end, token)),
        None => Err(SyntaxError::new(source, at, &format!("bad number {:?}", &rest[..end]))),
    }
}

fn quoted(source: &str, at: usize) -> Result<(usize, Token), SyntaxError> {
    let mut text = String::new();
    let mut chars = source[at..].char_indices().skip(1);
    while let Some((index, c)) = chars.next() {
        match c {
            '"' => return Ok((index + 1, Token::Str(text))),
            '\n' => break,
            '\\' => text.push(match chars.next() {
                Some((_, 'n')) => '\n',
                Some((_, 't')) => '\t',
                Some((_, 'r')) => '\r',
                Some((_, c @ ('"' | '\\' | '\''))) => c,
                Some((_, c)) => {
                    return Err(SyntaxError::new(source, at, &format!("\\{c} means nothing in a text")));
                }
                None => break,
            }),
            c => text.push(c),
        }
    }
    Err(SyntaxError::new(source, at, "the text is not closed by \""))
}
