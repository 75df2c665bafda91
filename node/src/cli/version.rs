//! `rswarm version`

use super::context::Context;
use super::output::inspect;
use super::output::value::{Struct, Value};
use anyhow::Result;

/// Print the versions of this command and of the daemon
#[derive(Debug, clap::Args)]
pub struct Version {
    /// `json`, or a template such as '{{.Client.Version}}'
    #[arg(short, long, value_name = "FORMAT")]
    format: Option<String>,
}

impl Version {
    /// Carries the command out.
    ///
    /// # Errors
    /// If the format is not a template. A daemon that does not answer is no error.
    pub async fn run(self, cx: &mut Context) -> Result<()> {
        let daemon = match cx.client().await {
            Ok(mut client) => client.status().await.ok().map(|status| status.version),
            Err(_) => None,
        };
        cx.out.write_all(render(daemon.as_deref(), self.format.as_deref())?.as_bytes())?;
        Ok(())
    }
}

fn render(daemon: Option<&str>, format: Option<&str>) -> Result<String> {
    let ours = env!("CARGO_PKG_VERSION");
    let Some(format) = format else {
        return Ok(format!("Client:  {ours}\nDaemon:  {}\n", daemon.unwrap_or("does not answer")));
    };
    let of = |version: &str| Value::from(Struct::new("version").with("Version", version));
    let both = Struct::new("versions").with("Client", of(ours)).with("Server", daemon.map_or(Value::Nil, of));
    inspect::print(&[both.into()], Some(format))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_silent_daemon_is_no_error() {
        assert!(render(None, None).expect("no format").ends_with("Daemon:  does not answer\n"));
        let json = render(Some("9.9.9"), Some("json")).expect("json");
        assert!(json.ends_with(",\"Server\":{\"Version\":\"9.9.9\"}}\n"), "{json}");
    }
}
