//! `rswarm image push registry.lan:5000/web:1`

use super::pull::show_layer;
use crate::cli::context::Context;
use crate::cli::failure::{Failure, refused};
use crate::cli::view::image::repository_and_tag;
use anyhow::{Context as _, Result};
use rswarm_proto::v1 as pb;

/// Send an image from this node to its registry
#[derive(Debug, clap::Args)]
pub struct Push {
    /// Name; it says which registry
    #[arg(value_name = "NAME[:TAG]")]
    reference: String,
    /// Send all tags of the name
    #[arg(short, long)]
    all_tags: bool,
    /// Print only the name
    #[arg(short, long)]
    quiet: bool,
}

impl Push {
    /// Carries the command out.
    ///
    /// # Errors
    /// If there is no such image, or the registry refuses it.
    pub async fn run(self, cx: &mut Context) -> Result<()> {
        let (repository, _) = repository_and_tag(&self.reference);
        let names = match self.all_tags {
            false => vec![self.reference.clone()],
            true => {
                if self.reference != repository {
                    return Err(Failure::usage("with --all-tags the name has no tag").into());
                }
                tags(cx, repository).await?
            }
        };
        if !self.quiet {
            writeln!(cx.out, "The push refers to repository [{repository}]")?;
        }
        for name in names {
            push(cx, &name, self.quiet).await.with_context(|| format!("cannot push `{name}`"))?;
        }
        Ok(())
    }
}

/// All names in a repository.
async fn tags(cx: &Context, repository: &str) -> Result<Vec<String>> {
    let answer = cx.client().await?.local.list_images(pb::ListImagesRequest {}).await;
    let images = answer.map_err(|status| refused(&status))?.into_inner().images;
    let names = images.into_iter().flat_map(|image| image.references);
    let names: Vec<String> = names.filter(|name| repository_and_tag(name).0 == repository).collect();
    match names.is_empty() {
        true => Err(Failure::failed(format!("no image `{repository}` on this machine")).into()),
        false => Ok(names),
    }
}

async fn push(cx: &mut Context, name: &str, quiet: bool) -> Result<()> {
    let request = pb::PushImageRequest { reference: name.to_owned() };
    let stream = cx.client().await?.local.push_image(request).await;
    let mut stream = stream.map_err(|status| refused(&status))?.into_inner();
    let (mut progress, mut layers) = (cx.progress(), Vec::new());
    while let Some(message) = stream.message().await.map_err(|status| refused(&status))? {
        if message.digest.is_empty() {
            if !quiet {
                show_layer(cx, &mut progress, &mut layers, message)?;
            }
            continue;
        }
        let (_, tag) = repository_and_tag(&message.reference);
        match quiet {
            true => writeln!(cx.out, "{}", message.reference)?,
            false => writeln!(cx.out, "{tag}: digest: {} size: {}", message.digest, message.total)?,
        }
        return Ok(());
    }
    Err(Failure::failed("the push ended without a result").into())
}
