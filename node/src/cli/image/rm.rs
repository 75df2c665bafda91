//! `rswarm image rm nginx:1.26`

use crate::cli::context::Context;
use crate::cli::failure::refused;
use anyhow::{Context as _, Result};
use rswarm_proto::v1 as pb;

/// Remove images from this node
#[derive(Debug, clap::Args)]
pub struct Rm {
    /// Names or ids
    #[arg(required = true, value_name = "IMAGE")]
    images: Vec<String>,
    /// Remove them although they have other names
    #[arg(short, long)]
    force: bool,
}

impl Rm {
    /// Carries the command out.
    ///
    /// # Errors
    /// If there is no such image, or a container uses it.
    pub async fn run(self, cx: &mut Context) -> Result<()> {
        let mut client = cx.client().await?;
        for reference in self.images {
            let request = pb::RemoveImageRequest { reference: reference.clone(), force: self.force };
            let removed = client.local.remove_image(request).await.map_err(|status| refused(&status));
            let removed = removed.with_context(|| format!("cannot remove `{reference}`"))?.into_inner();
            for name in removed.untagged {
                writeln!(cx.out, "Untagged: {name}")?;
            }
            for id in removed.deleted {
                writeln!(cx.out, "Deleted: {id}")?;
            }
        }
        Ok(())
    }
}
