//! `print` and `printf`.

use crate::cli::output::value::Value;
use std::fmt::Write;

/// The values one after another, with a space between two of which neither is a text.
pub(super) fn print(values: &[Value]) -> String {
    let mut text = String::new();
    for (index, value) in values.iter().enumerate() {
        let spaced =
            index > 0 && !matches!((&values[index - 1], value), (Value::Str(_), _) | (_, Value::Str(_)));
        if spaced {
            text.push(' ');
        }
        write!(text, "{value}").expect("a string takes everything");
    }
    text
}

/// The widest field that is filled.
const WIDTH_MAX: usize = 4096;

#[derive(Default)]
struct Spec {
    minus: bool,
    plus: bool,
    zero: bool,
    space: bool,
    sharp: bool,
    width: Option<usize>,
    precision: Option<usize>,
}

/// Fills in the verbs of `format`.
pub(super) fn printf(format: &str, values: &[Value]) -> String {
    let mut out = String::new();
    let mut values = values.iter();
    let mut chars = format.chars().peekable();
    while let Some(c) = chars.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        let mut spec = Spec::default();
        while let Some(flag) = chars.next_if(|c| matches!(c, '-' | '+' | '0' | ' ' | '#')) {
            match flag {
                '-' => spec.minus = true,
                '+' => spec.plus = true,
                '0' => spec.zero = true,
                ' ' => spec.space = true,
                _ => spec.sharp = true,
            }
        }
        let number = |chars: &mut std::iter::Peekable<std::str::Chars<'_>>| {
            let mut number = None;
            while let Some(digit) = chars.peek().and_then(|c| c.to_digit(10)) {
                chars.next();
                number = Some((number.unwrap_or(0) * 10 + digit as usize).min(WIDTH_MAX));
            }
            number
        };
        spec.width = number(&mut chars);
        if chars.next_if_eq(&'.').is_some() {
            spec.precision = Some(number(&mut chars).unwrap_or(0));
        }
        match chars.next() {
            None => out.push_str("%!(NOVERB)"),
            Some('%') => out.push('%'),
            Some(verb) => match values.next() {
                None => write!(out, "%!{verb}(MISSING)").expect("a string takes everything"),
                Some(value) => pad(&mut out, &spec, &one(verb, &spec, value)),
            },
        }
    }
    let rest: Vec<String> = values.map(|value| format!("{}={value}", kind(value))).collect();
    if !rest.is_empty() {
        write!(out, "%!(EXTRA {})", rest.join(", ")).expect("a string takes everything");
    }
    out
}

#[allow(clippy::cast_precision_loss, reason = "as the language of these templates converts")]
fn one(verb: char, spec: &Spec, value: &Value) -> String {
    let sign = |negative: bool, digits: String| match (negative, spec.plus, spec.space) {
        (true, _, _) => format!("-{digits}"),
        (false, true, _) => format!("+{digits}"),
        (false, false, true) => format!(" {digits}"),
        (false, false, false) => digits,
    };
    let hash = |prefix: &str, digits: String| if spec.sharp { format!("{prefix}{digits}") } else { digits };
    let whole = |number: i64, digits: String| sign(number < 0, digits);
    match (verb, value) {
        ('v', Value::Int(number)) | ('d', Value::Int(number)) => {
            whole(*number, number.unsigned_abs().to_string())
        }
        ('d', Value::Duration(duration)) => duration.as_nanos().to_string(),
        ('v' | 's', Value::Str(text)) => match spec.precision {
            Some(precision) => text.chars().take(precision).collect(),
            None => text.clone(),
        },
        ('v', value) => value.to_string(),
        (
            's',
            value @ (Value::Duration(_) | Value::Time(_) | Value::List(_) | Value::Map(_) | Value::Struct(_)),
        ) => value.to_string(),
        ('q', Value::Str(text)) => format!("{text:?}"),
        ('t', Value::Bool(yes)) => yes.to_string(),
        ('x', Value::Int(number)) => whole(*number, hash("0x", format!("{:x}", number.unsigned_abs()))),
        ('X', Value::Int(number)) => whole(*number, hash("0X", format!("{:X}", number.unsigned_abs()))),
        ('o', Value::Int(number)) => whole(*number, hash("0", format!("{:o}", number.unsigned_abs()))),
        ('b', Value::Int(number)) => whole(*number, format!("{:b}", number.unsigned_abs())),
        ('c', Value::Int(number)) => u32::try_from(*number)
            .ok()
            .and_then(char::from_u32)
            .unwrap_or(char::REPLACEMENT_CHARACTER)
            .to_string(),
        ('x', Value::Str(text)) => text.bytes().map(|byte| format!("{byte:02x}")).collect(),
        ('f' | 'F' | 'g' | 'e', Value::Float(number)) => {
            let digits = match (verb, spec.precision) {
                ('e', precision) => format!("{:.*e}", precision.unwrap_or(6), number.abs()),
                ('g', None) => number.abs().to_string(),
                (_, precision) => format!("{:.*}", precision.unwrap_or(6), number.abs()),
            };
            sign(number.is_sign_negative(), digits)
        }
        (verb, value) => format!("%!{verb}({}={value})", kind(value)),
    }
}

fn pad(out: &mut String, spec: &Spec, text: &str) {
    let missing = spec.width.unwrap_or(0).saturating_sub(text.chars().count());
    if spec.minus {
        out.push_str(text);
        out.extend(std::iter::repeat_n(' ', missing));
    } else if spec.zero {
        let (sign, digits) = text.split_at(usize::from(text.starts_with(['-', '+', ' '])));
        out.push_str(sign);
        out.extend(std::iter::repeat_n('0', missing));
        out.push_str(digits);
    } else {
        out.extend(std::iter::repeat_n(' ', missing));
        out.push_str(text);
    }
}

fn kind(value: &Value) -> &str {
    match value {
        Value::Nil => "<nil>",
        Value::Bool(_) => "bool",
        Value::Int(_) => "int",
        Value::Float(_) => "float64",
        Value::Str(_) => "string",
        Value::Duration(_) => "time.Duration",
        Value::Time(_) => "time.Time",
        Value::List(_) => "list",
        Value::Map(_) => "map",
        Value::Struct(object) => object.kind(),
    }
}
