//! `rswarm completion bash`

use super::Cli;
use super::context::Context;
use anyhow::Result;
use clap::CommandFactory;
use clap_complete::Shell;

/// Print a script that completes commands in a shell
#[derive(Debug, clap::Args)]
pub struct Completion {
    /// Which shell; for bash: source <(rswarm completion bash)
    #[arg(value_enum)]
    shell: Shell,
}

impl Completion {
    /// Carries the command out.
    ///
    /// # Errors
    /// If standard output is closed.
    pub fn run(self, cx: &mut Context) -> Result<()> {
        let mut script = Vec::new();
        clap_complete::generate(self.shell, &mut Cli::command(), "rswarm", &mut script);
        cx.out.write_all(&script)?;
        Ok(())
    }
}
