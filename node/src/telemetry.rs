//! The daemon's log: one line an event, on standard error.

use std::io::IsTerminal;
use tracing_subscriber::EnvFilter;

/// What is logged where `RUST_LOG` does not say otherwise.
const DEFAULT: &str = "info,openraft=warn";

/// Starts logging. `RUST_LOG` takes directives such as `debug` or `info,rswarm::agent=trace`.
pub fn init() {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(DEFAULT));
    let colour =
        std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|it| it.is_empty());
    // A second call, as tests make it, changes nothing.
    let _ = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(colour)
        .with_target(true)
        // A log that cannot be written, on a full disk, must not end whoever writes to it.
        .log_internal_errors(false)
        .try_init();
}
