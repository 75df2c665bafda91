//! `rswarm image tag web:1 registry.lan:5000/web:1`

use crate::cli::context::Context;
use crate::cli::failure::refused;
use anyhow::{Context as _, Result};
use rswarm_proto::v1 as pb;

/// Give an image on this node one more name
#[derive(Debug, clap::Args)]
pub struct Tag {
    /// Name or id of the image
    #[arg(value_name = "SOURCE_IMAGE[:TAG]")]
    source: String,
    /// Its new name
    #[arg(value_name = "TARGET_IMAGE[:TAG]")]
    target: String,
}

impl Tag {
    /// Carries the command out.
    ///
    /// # Errors
    /// If there is no such image, or the new name cannot be one.
    pub async fn run(self, cx: &mut Context) -> Result<()> {
        let Self { source, target } = self;
        let request = pb::TagImageRequest { source: source.clone(), target };
        let tagged = cx.client().await?.local.tag_image(request).await.map_err(|status| refused(&status));
        tagged.with_context(|| format!("cannot tag `{source}`"))?;
        Ok(())
    }
}
