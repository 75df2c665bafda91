//! Who may open connections to the tasks of a service.

use super::Protocol;
use std::fmt;
use std::str::FromStr;

/// An entry of a service's allow list: `web`, `web:5432`, `web:53/udp`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Allow {
    /// The name of the service whose tasks may. It need not exist yet.
    pub from: String,
    /// To this port of the containers alone; else to all ports, by all protocols.
    pub port: Option<(u16, Protocol)>,
}

/// Why a text is no entry of an allow list.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` names no service and port; write SERVICE, SERVICE:PORT or SERVICE:PORT/udp")]
pub struct NotAllow(String);

impl Allow {
    /// Whether connections to this port are meant.
    pub fn covers(&self, port: u16, protocol: Protocol) -> bool {
        self.port.is_none_or(|meant| meant == (port, protocol))
    }
}

impl FromStr for Allow {
    type Err = NotAllow;

    fn from_str(text: &str) -> Result<Self, NotAllow> {
        let wrong = || NotAllow(text.escape_debug().take(80).collect());
        let (from, port) = match text.split_once(':') {
            None => (text, None),
            Some((from, port)) => (from, Some(parse_port(port).ok_or_else(wrong)?)),
        };
        if from.is_empty() || from.contains('/') {
            return Err(wrong());
        }
        Ok(Self { from: from.to_owned(), port })
    }
}

/// `5432`, `5432/tcp` or `53/udp`.
fn parse_port(text: &str) -> Option<(u16, Protocol)> {
    let (port, protocol) = match text.split_once('/') {
        None => (text, Protocol::Tcp),
        Some((port, "tcp")) => (port, Protocol::Tcp),
        Some((port, "udp")) => (port, Protocol::Udp),
        Some(_) => return None,
    };
    let port = port.parse().ok().filter(|port| *port != 0)?;
    Some((port, protocol))
}

impl fmt::Display for Allow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.from)?;
        match self.port {
            Some((port, protocol)) => write!(f, ":{port}/{protocol}"),
            None => Ok(()),
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_read_and_written() {
        let entry = |from: &str, port| Ok(Allow { from: from.into(), port });
        let table = [
            ("web", entry("web", None), "web"),
            ("web:80", entry("web", Some((80, Protocol::Tcp))), "web:80/tcp"),
            ("web:80/tcp", entry("web", Some((80, Protocol::Tcp))), "web:80/tcp"),
            ("a-b:53/udp", entry("a-b", Some((53, Protocol::Udp))), "a-b:53/udp"),
        ];
        for (text, entry, shown) in table {
            assert_eq!(text.parse::<Allow>(), entry, "{text}");
            assert_eq!(entry.expect("it is one").to_string(), shown);
        }
        for text in ["", ":80", "web:", "web:0", "web:80/sctp", "web:x", "web:70000", "web/tcp", "web:80:1"] {
            let error = text.parse::<Allow>().expect_err(text);
            assert!(error.to_string().contains("SERVICE:PORT"));
        }
    }
}
