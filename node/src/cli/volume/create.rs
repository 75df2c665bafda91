//! `rswarm volume create --label tier=db data`

use crate::cli::context::Context;
use crate::cli::failure::refused;
use crate::cli::service::flags::Label;
use anyhow::{Context as _, Result};
use rswarm_proto::v1 as pb;

/// Make a volume on this node
#[derive(Debug, clap::Args)]
pub struct Create {
    /// Its name; one is made up if left out
    #[arg(value_name = "VOLUME")]
    name: Option<String>,
    /// A label; may be repeated
    #[arg(long = "label", value_name = "KEY=VALUE")]
    labels: Vec<Label>,
}

impl Create {
    /// Carries the command out.
    ///
    /// # Errors
    /// If the name cannot be one, or is taken by a volume with other labels.
    pub async fn run(self, cx: &mut Context) -> Result<()> {
        let labels = self.labels.into_iter().map(|label| (label.key, label.value)).collect();
        let request = pb::CreateVolumeRequest { name: self.name.unwrap_or_default(), labels };
        let made = cx.client().await?.local.create_volume(request).await.map_err(|status| refused(&status));
        writeln!(cx.out, "{}", made.context("cannot make the volume")?.into_inner().name)?;
        Ok(())
    }
}
