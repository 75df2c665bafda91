//! A log in the machine's journal, by its native protocol: a datagram for each entry, with fields in it. A journal that
//! does not keep up, or is restarted, loses entries, which are counted.

use std::os::unix::net::UnixDatagram;

use rswarm_shim::protocol::JOURNAL_SOCKET;

use crate::log::Stream;

pub struct Journal {
    socket: Option<UnixDatagram>,
    /// What is the same in every entry, as it is sent.
    fields: Vec<u8>,
    dropped_bytes: u64,
}

impl Journal {
    pub fn open(fields: &[(String, String)]) -> Self {
        let socket = UnixDatagram::unbound().ok();
        let socket = socket.filter(|socket| socket.set_nonblocking(true).is_ok());
        let mut encoded = Vec::new();
        for (name, value) in fields {
            field(&mut encoded, name, value.as_bytes());
        }
        Self { socket, fields: encoded, dropped_bytes: 0 }
    }

    pub fn dropped_bytes(&self) -> u64 {
        self.dropped_bytes
    }

    pub fn write(&mut self, stream: Stream, text: &[u8]) {
        let entry = entry(&self.fields, stream, text);
        let sent = self.socket.as_ref().is_some_and(|socket| socket.send_to(&entry, JOURNAL_SOCKET).is_ok());
        if !sent {
            self.dropped_bytes += text.len() as u64;
        }
    }
}

fn entry(fields: &[u8], stream: Stream, text: &[u8]) -> Vec<u8> {
    // Priorities of syslog: an error for what was written as one, else a piece of information.
    let priority: &[u8] = if stream == Stream::Stderr { b"3" } else { b"6" };
    let mut entry = fields.to_vec();
    field(&mut entry, "PRIORITY", priority);
    field(&mut entry, "MESSAGE", text);
    entry
}

/// `NAME=value` and a newline; a value with a newline in it is sent with its length before it.
fn field(entry: &mut Vec<u8>, name: &str, value: &[u8]) {
    entry.extend_from_slice(name.as_bytes());
    if value.contains(&b'\n') {
        entry.push(b'\n');
        entry.extend_from_slice(&(value.len() as u64).to_le_bytes());
    } else {
        entry.push(b'=');
    }
    entry.extend_from_slice(value);
    entry.push(b'\n');
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_of_any_bytes_are_fields() {
        let mut fields = Vec::new();
        field(&mut fields, "A", b"b=c");
        field(&mut fields, "D", b"e\nf");
        assert_eq!(fields, b"A=b=c\nD\n\x03\0\0\0\0\0\0\0e\nf\n");
        assert_eq!(entry(b"X=y\n", Stream::Stderr, b"oh"), b"X=y\nPRIORITY=3\nMESSAGE=oh\n");
    }
}
