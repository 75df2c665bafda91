//! How commands fail: an exit code, what happened, and what to do about it.

use std::fmt;

/// The meaning of exit codes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// Refused, or failed on the way.
    Failed = 1,
    /// The command line makes no sense.
    Usage = 2,
    /// The service does not run as it should, and will not get there by itself.
    NotConverged = 3,
    /// The service went back to its former spec.
    RolledBack = 4,
    /// The update of the service is paused.
    Paused = 5,
    /// It took too long; it may still get there.
    TimedOut = 6,
    /// Interrupted; what was asked for goes on.
    Interrupted = 130,
}

/// An error that knows its exit code and its cure.
#[derive(Clone, Debug, thiserror::Error)]
pub struct Failure {
    /// How the process ends.
    pub exit: Exit,
    what: String,
    help: Option<String>,
}

impl Failure {
    /// A failure of this kind.
    pub fn new(exit: Exit, what: impl Into<String>) -> Self {
        Self { exit, what: what.into(), help: None }
    }

    /// A plain failure.
    pub fn failed(what: impl Into<String>) -> Self {
        Self::new(Exit::Failed, what)
    }

    /// A command line that makes no sense.
    pub fn usage(what: impl Into<String>) -> Self {
        Self::new(Exit::Usage, what)
    }

    /// With what to do next.
    #[must_use]
    pub fn help(mut self, help: impl Into<String>) -> Self {
        self.help = Some(help.into());
        self
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.what)
    }
}

/// The answer is this exit code, of a program elsewhere or of a question; what there was to say has been said.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("exit code {0}")]
pub struct Ended(pub u8);

/// An error as it is printed: the whole chain on one line, then the cure.
pub fn report(error: &anyhow::Error) -> String {
    let mut text = format!("Error: {}\n", crate::api::words(error));
    let failures = error.chain().filter_map(|cause| cause.downcast_ref::<Failure>());
    for help in failures.filter_map(|failure| failure.help.as_deref()) {
        text.push_str(&format!("  help: {help}\n"));
    }
    text
}

/// The exit code of an error.
pub fn exit_code(error: &anyhow::Error) -> u8 {
    if let Some(Ended(code)) = error.downcast_ref() {
        return *code;
    }
    let exit = error
        .chain()
        .find_map(|cause| cause.downcast_ref::<Failure>())
        .map_or(Exit::Failed, |failure| failure.exit);
    exit as u8
}

/// What the daemon answered instead of a result.
pub fn refused(status: &tonic::Status) -> Failure {
    let words = status.message();
    match status.code() {
        tonic::Code::Unavailable if words.is_empty() || words.contains("transport error") => {
            Failure::failed("the connection to the daemon broke").help("see its log, and `rswarm status`")
        }
        tonic::Code::Unimplemented if words.is_empty() => {
            Failure::failed("the daemon does not know this request")
                .help("it is of another version; see `rswarm version`")
        }
        code if words.is_empty() => Failure::failed(code.description()),
        _ => {
            // The daemon may send the cure on a line of its own.
            let mut lines = words.splitn(2, "\n");
            let failure = Failure::failed(lines.next().unwrap_or_default());
            match lines.next().map(|help| help.trim().trim_start_matches("help: ")) {
                Some(help) if !help.is_empty() => failure.help(help),
                _ => failure,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::Context;
    use expect_test::expect;

    #[test]
    fn an_error_is_one_line_and_its_cure_another() {
        let status =
            tonic::Status::already_exists("a service named `web` exists\nhelp: choose another --name");
        let error = Err::<(), _>(refused(&status)).context("cannot create `web`").expect_err("it is one");
        expect![[r"
            Error: cannot create `web`: a service named `web` exists
              help: choose another --name
        "]]
        .assert_eq(&report(&error));
        assert_eq!(exit_code(&error), 1);
    }

    #[test]
    fn the_exit_code_survives_context() {
        let error =
            Err::<(), _>(Failure::new(Exit::NotConverged, "no")).context("more").expect_err("it is one");
        assert_eq!(exit_code(&error), 3);
    }
}
