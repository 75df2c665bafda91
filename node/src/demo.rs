//! x
/// Be a small service
#[derive(Debug, clap::Args)]
pub struct Demo {}
impl Demo {
    /// x
    pub fn run(self) -> std::process::ExitCode {
        std::process::ExitCode::SUCCESS
    }
}
