//! QEMU's monitor: how a machine is stopped where it stands, reset, and its disk slowed down.

use std::{
    io::{BufRead, BufReader, Read, Write},
    os::unix::net::UnixStream,
    path::Path,
    time::Duration,
};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

/// An emulator that is alive answers at once.
const PATIENCE: Duration = Duration::from_secs(10);
/// At most so much of what it says is read.
const ANSWER_MAX: u64 = 1 << 20;

/// Has the emulator whose monitor is at `socket` carry out one command.
pub(super) fn ask(socket: &Path, command: &str, arguments: &Value) -> Result<()> {
    let talk = || -> Result<()> {
        let stream = UnixStream::connect(socket)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        let mut lines = BufReader::new((&stream).take(ANSWER_MAX)).lines();
        // It greets first.
        lines.next().context("it said nothing")??;
        for request in
            [json!({"execute": "qmp_capabilities"}), json!({"execute": command, "arguments": arguments})]
        {
            writeln!(&stream, "{request}")?;
            answer(&mut lines)?;
        }
        Ok(())
    };
    talk().with_context(|| format!("QEMU does not carry out {command}"))
}

/// Events come in between.
fn answer(lines: &mut impl Iterator<Item = std::io::Result<String>>) -> Result<()> {
    for line in lines {
        let said: Value = serde_json::from_str(&line?).context("it speaks no JSON")?;
        if said.get("return").is_some() {
            return Ok(());
        }
        if let Some(error) = said.get("error") {
            bail!("{}", error["desc"].as_str().unwrap_or("it gives no reason"));
        }
    }
    bail!("it fell silent")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(lines: &[&str]) -> Result<()> {
        answer(&mut lines.iter().map(|line| Ok((*line).to_owned())))
    }

    #[test]
    fn an_answer_is_told_from_events_and_errors() {
        assert!(said(&[r#"{"event":"STOP"}"#, r#"{"return":{}}"#]).is_ok());
        let refused = said(&[r#"{"error":{"class":"GenericError","desc":"no such device"}}"#]).unwrap_err();
        assert_eq!(refused.to_string(), "no such device");
        assert!(said(&[r#"{"event":"STOP"}"#]).is_err() && said(&["nonsense"]).is_err());
    }
}
