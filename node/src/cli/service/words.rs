//! A text into words, as a shell would split it.

/// Splits at spaces outside of quotes; a backslash keeps the next character as it is.
///
/// # Errors
/// In words, if a quote is not closed.
pub fn split(text: &str) -> Result<Vec<String>, String> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match c {
            c if c.is_whitespace() => words.extend(word.take()),
            '\'' => {
                let word = word.get_or_insert_default();
                loop {
                    match chars.next() {
                        Some('\'') => break,
                        Some(c) => word.push(c),
                        None => return Err(format!("a quote is not closed in `{text}`")),
                    }
                }
            }
            '"' => {
                let word = word.get_or_insert_default();
                loop {
                    match chars.next() {
                        Some('"') => break,
                        Some('\\') => match chars.next() {
                            Some(c @ ('"' | '\\' | '$' | '`')) => word.push(c),
                            Some(c) => word.extend(['\\', c]),
                            None => return Err(format!("a quote is not closed in `{text}`")),
                        },
                        Some(c) => word.push(c),
                        None => return Err(format!("a quote is not closed in `{text}`")),
                    }
                }
            }
            '\\' => match chars.next() {
                Some(c) => word.get_or_insert_default().push(c),
                None => return Err(format!("`{text}` ends with a backslash")),
            },
            c => word.get_or_insert_default().push(c),
        }
    }
    words.extend(word);
    Ok(words)
}

#[cfg(test)]
mod tests {
    use super::split;

    #[test]
    fn words_are_split_as_a_shell_would() {
        for (text, words) in [
            ("", &[][..]),
            ("a b  c", &["a", "b", "c"]),
            ("sh -c 'echo \"hi there\"'", &["sh", "-c", "echo \"hi there\""]),
            ("a\\ b \"c \\\" d\" ''", &["a b", "c \" d", ""]),
            ("x=\"1 2\"y", &["x=1 2y"]),
        ] {
            assert_eq!(split(text).expect(text), words);
        }
        for text in ["'", "a \"b", "a\\"] {
            assert!(split(text).is_err(), "{text}");
        }
    }
}
