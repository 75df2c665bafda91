//! `rswarm image ls`

use crate::cli::context::Context;
use crate::cli::failure::refused;
use crate::cli::output::listing::{Listing, Options};
use crate::cli::output::value::{Struct, Value};
use crate::cli::output::{filter, units};
use crate::cli::view::image::{id, repository_and_tag};
use anyhow::Result;
use rswarm_proto::v1 as pb;

/// List the images on this node
#[derive(Debug, clap::Args)]
pub struct Ls {
    #[command(flatten)]
    options: Options,
    /// Print whole ids
    #[arg(long)]
    no_trunc: bool,
}

/// How images are listed.
pub const LISTING: Listing = Listing {
    columns: &[
        ("Repository", "REPOSITORY"),
        ("Tag", "TAG"),
        ("Digest", "DIGEST"),
        ("ID", "IMAGE ID"),
        ("CreatedSince", "CREATED"),
        ("CreatedAt", "CREATED AT"),
        ("Size", "SIZE"),
    ],
    table: "{{.Repository}}\t{{.Tag}}\t{{.ID}}\t{{.CreatedSince}}\t{{.Size}}",
    raw: "repository: {{.Repository}}\ntag: {{.Tag}}\nimage_id: {{.ID}}\ncreated_at: {{.CreatedAt}}\n\
          virtual_size: {{.Size}}\n",
};

impl Ls {
    /// Carries the command out.
    ///
    /// # Errors
    /// If the daemon refuses, or the options make no sense.
    pub async fn run(self, cx: &mut Context) -> Result<()> {
        filter::known(&self.options.filters, &["reference"])?;
        let answer = cx.client().await?.local.list_images(pb::ListImagesRequest {}).await;
        let images = answer.map_err(|status| refused(&status))?.into_inner().images;
        cx.out.write_all(render(&images, self.no_trunc, units::now_ms(), &self.options)?.as_bytes())?;
        Ok(())
    }
}

fn render(images: &[pb::Image], no_trunc: bool, now_ms: u64, options: &Options) -> Result<String> {
    let mut rows = Vec::new();
    for image in images {
        let nameless = [String::from("<none>")];
        let references = if image.references.is_empty() { &nameless[..] } else { &image.references };
        for reference in references {
            let (repository, tag) = repository_and_tag(reference);
            let named = |pattern: &str| pattern == reference || pattern == repository;
            if filter::any(&options.filters, "reference", named) {
                rows.push((repository.to_owned(), tag.to_owned(), image));
            }
        }
    }
    rows.sort_by(|a, b| (&a.0, &a.1).cmp(&(&b.0, &b.1)));
    let mut rows: Vec<Struct> = rows.iter().map(|row| self::row(row, no_trunc, now_ms)).collect();
    if options.quiet {
        rows.dedup_by(|a, b| a.get("ID") == b.get("ID"));
    }
    LISTING.print(&rows, "ID", options)
}

fn row((repository, tag, image): &(String, String, &pb::Image), no_trunc: bool, now_ms: u64) -> Struct {
    let since = match image.created_at_ms {
        0 => "N/A".into(),
        at => units::ago(at, now_ms),
    };
    Struct::new("image")
        .with("CreatedAt", Value::time_ms(image.created_at_ms))
        .with("CreatedSince", since)
        .with("Digest", if image.digest.is_empty() { "<none>" } else { &image.digest })
        .with("ID", id(image, no_trunc))
        .with("Repository", repository)
        .with("Size", units::size(image.size_bytes))
        .with("Tag", tag)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::view::samples::NOW;
    use expect_test::expect;

    #[test]
    fn an_image_is_listed_under_each_of_its_names() {
        let image = |id: &str, references: &[&str]| pb::Image {
            id: format!("sha256:{id:0<64}"),
            references: references.iter().map(ToString::to_string).collect(),
            created_at_ms: NOW - 86_400_000 * 3,
            size_bytes: 6_500_000,
            digest: String::new(),
        };
        let images = [image("abcd", &["rswarm/demo:latest", "localhost:5000/demo:2"]), image("ef", &[])];
        expect![[r"
            REPOSITORY            TAG       IMAGE ID       CREATED      SIZE
            <none>                <none>    ef0000000000   3 days ago   6.5MB
            localhost:5000/demo   2         abcd00000000   3 days ago   6.5MB
            rswarm/demo           latest    abcd00000000   3 days ago   6.5MB
        "]]
        .assert_eq(&render(&images, false, NOW, &Options::default()).expect("it renders"));
        let quiet = Options { quiet: true, ..Options::default() };
        assert_eq!(render(&images, false, NOW, &quiet).expect("it renders"), "ef0000000000\nabcd00000000\n");
    }
}
