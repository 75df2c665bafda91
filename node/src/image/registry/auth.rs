//! How a registry asks for credentials: the header `WWW-Authenticate`, and the tokens that some want instead.

use std::collections::BTreeMap;

use serde::Deserialize;

/// The longest header that is read; longer ones are as good as none.
const HEADER_MAX: usize = 8 << 10;

/// One way in that a registry offers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Challenge {
    /// `basic`, `bearer`, …, in lower case.
    pub scheme: String,
    /// `realm`, `service`, `scope`, …, with names in lower case.
    pub params: BTreeMap<String, String>,
}

/// Reads a `WWW-Authenticate` header. What makes no sense is left out.
pub fn challenges(header: &str) -> Vec<Challenge> {
    let mut found: Vec<Challenge> = Vec::new();
    if header.len() > HEADER_MAX {
        return found;
    }
    let mut rest = header;
    loop {
        rest = rest.trim_start_matches([' ', '\t', ',']);
        let end = rest.find([' ', '\t', ',', '=', '"']).unwrap_or(rest.len());
        let (word, after) = rest.split_at(end);
        if word.is_empty() {
            // A stray quote or equals sign.
            let mut skipped = after.chars();
            match skipped.next() {
                Some(_) => rest = skipped.as_str(),
                None => return found,
            }
            continue;
        }
        let Some(value) = after.trim_start_matches([' ', '\t']).strip_prefix('=') else {
            found.push(Challenge { scheme: word.to_ascii_lowercase(), ..Challenge::default() });
            rest = after;
            continue;
        };
        let (value, after) = value_of(value.trim_start_matches([' ', '\t']));
        if let Some(challenge) = found.last_mut() {
            challenge.params.insert(word.to_ascii_lowercase(), value);
        }
        rest = after;
    }
}

/// A word, or a text in quotes, and what follows it.
fn value_of(text: &str) -> (String, &str) {
    let Some(quoted) = text.strip_prefix('"') else {
        let end = text.find([' ', '\t', ',']).unwrap_or(text.len());
        return (text[..end].to_owned(), &text[end..]);
    };
    let (mut value, mut characters) = (String::new(), quoted.chars());
    while let Some(character) = characters.next() {
        match character {
            '"' => break,
            '\\' => value.extend(characters.next()),
            other => value.push(other),
        }
    }
    (value, characters.as_str())
}

/// What a token server answers.
#[derive(Deserialize)]
struct Granted {
    #[serde(default)]
    token: String,
    #[serde(default)]
    access_token: String,
}

/// The token in a token server's answer.
pub fn token(answer: &[u8]) -> Option<String> {
    let Granted { token, access_token } = serde_json::from_slice(answer).ok()?;
    Some(if token.is_empty() { access_token } else { token }).filter(|token| !token.is_empty())
}

/// `name=value&…`, as in queries and forms.
pub fn query(pairs: &[(&str, &str)]) -> String {
    let mut text = String::new();
    for (name, value) in pairs {
        let separator = if text.is_empty() { "" } else { "&" };
        text += &format!("{separator}{name}={}", escaped(value));
    }
    text
}

fn escaped(text: &str) -> String {
    let mut escaped = String::new();
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
                escaped.push(char::from(byte))
            }
            byte => escaped += &format!("%{byte:02X}"),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn read(header: &str) -> String {
        let challenge = |challenge: Challenge| {
            let params: Vec<String> =
                challenge.params.iter().map(|(name, value)| format!("{name}={value}")).collect();
            format!("{}({})", challenge.scheme, params.join(" "))
        };
        challenges(header).into_iter().map(challenge).collect::<Vec<_>>().join(" ")
    }

    #[rustfmt::skip]
    #[test]
    fn challenges_are_read_as_registries_write_them() {
        for (header, expected) in [
            (r#"Bearer realm="https://auth.docker.io/token",service="registry.docker.io",scope="repository:a/b:pull""#,
                "bearer(realm=https://auth.docker.io/token scope=repository:a/b:pull service=registry.docker.io)"),
            (r#"Basic realm="Registry Realm""#, "basic(realm=Registry Realm)"),
            (r#"BEARER Realm = "x" , service=y"#, "bearer(realm=x service=y)"),
            (r#"Negotiate, Basic realm="a", Bearer realm="b\"c""#, r#"negotiate() basic(realm=a) bearer(realm=b"c)"#),
            (r#"Bearer realm="unfinished"#, "bearer(realm=unfinished)"),
            (r#"="" ,, "#, ""),
            ("", ""),
        ] {
            assert_eq!(read(header), expected, "{header}");
        }
    }

    #[test]
    fn tokens_come_under_either_name() {
        assert_eq!(token(br#"{"token":"a","expires_in":300}"#).as_deref(), Some("a"));
        assert_eq!(token(br#"{"access_token":"b"}"#).as_deref(), Some("b"));
        for nonsense in [&b"{}"[..], b"[]", b"", b"{\"token\":7}"] {
            assert_eq!(token(nonsense), None);
        }
    }

    #[test]
    fn queries_are_escaped() {
        assert_eq!(
            query(&[("scope", "repository:a/b:pull"), ("s", "ü &")]),
            "scope=repository%3Aa%2Fb%3Apull&s=%C3%BC%20%26"
        );
    }

    proptest! {
        #[test]
        fn any_header_is_read_without_panic(header in "\\PC{0,200}") {
            let found = challenges(&header);
            prop_assert!(found.len() <= header.len());
        }

        #[test]
        fn what_is_written_is_read(values in proptest::collection::btree_map("[a-z]{1,8}", "[ -~]{0,20}", 0..4)) {
            let quoted = |value: &String| value.replace('\\', "\\\\").replace('"', "\\\"");
            let params: Vec<String> = values.iter().map(|(name, value)| format!("{name}=\"{}\"", quoted(value))).collect();
            let header = format!("Bearer {}", params.join(","));
            prop_assert_eq!(challenges(&header), vec![Challenge { scheme: "bearer".into(), params: values }]);
        }
    }
}
