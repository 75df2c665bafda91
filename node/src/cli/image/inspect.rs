//! `rswarm image inspect nginx:1.27`

use crate::cli::context::Context;
use crate::cli::failure::refused;
use crate::cli::output::inspect;
use crate::cli::view;
use anyhow::Result;
use rswarm_proto::v1 as pb;

/// Show all there is to know of images on this node
#[derive(Debug, clap::Args)]
pub struct Inspect {
    /// Names or ids
    #[arg(required = true, value_name = "IMAGE")]
    images: Vec<String>,
    /// `json`, or a template such as '{{.Config.Cmd}}'
    #[arg(short, long, value_name = "FORMAT")]
    format: Option<String>,
}

impl Inspect {
    /// Carries the command out.
    ///
    /// # Errors
    /// If there is no such image, or its configuration is damaged.
    pub async fn run(self, cx: &mut Context) -> Result<()> {
        let request = pb::InspectImagesRequest { names: self.images };
        let answer = cx.client().await?.local.inspect_images(request).await;
        let details = answer.map_err(|status| refused(&status))?.into_inner().images;
        let views: Vec<_> = details.iter().map(view::image::details).collect::<Result<_>>()?;
        cx.out.write_all(inspect::print(&views, self.format.as_deref())?.as_bytes())?;
        Ok(())
    }
}
