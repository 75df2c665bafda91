//! `rswarm image history nginx:1.27`

use crate::cli::context::Context;
use crate::cli::failure::refused;
use crate::cli::output::listing::{Listing, Options};
use crate::cli::output::units;
use crate::cli::output::value::{Struct, Value};
use crate::rfc3339::nanos;
use anyhow::{Context as _, Result};
use rswarm_proto::v1 as pb;
use serde::Deserialize;

/// Show how an image was made, the latest step first
#[derive(Debug, clap::Args)]
pub struct History {
    /// Name or id
    #[arg(value_name = "IMAGE")]
    image: String,
    /// Print only ids
    #[arg(short, long)]
    quiet: bool,
    /// `table`, `table TEMPLATE`, `json`, or a template such as '{{.CreatedBy}}'
    #[arg(long, value_name = "FORMAT")]
    format: Option<String>,
    /// Print all of each step
    #[arg(long)]
    no_trunc: bool,
}

/// How steps are listed.
pub const LISTING: Listing = Listing {
    columns: &[
        ("ID", "IMAGE"),
        ("CreatedSince", "CREATED"),
        ("CreatedAt", "CREATED AT"),
        ("CreatedBy", "CREATED BY"),
        ("Size", "SIZE"),
        ("Comment", "COMMENT"),
    ],
    table: "{{.ID}}\t{{.CreatedSince}}\t{{.CreatedBy}}\t{{.Size}}\t{{.Comment}}",
    raw: "id: {{.ID}}\ncreated_at: {{.CreatedAt}}\ncreated_by: {{.CreatedBy}}\nsize: {{.Size}}\n",
};

/// The longest step that a table shows whole.
const STEP_MAX: usize = 45;

#[derive(Deserialize)]
struct Config {
    #[serde(default)]
    history: Vec<Step>,
}

#[derive(Deserialize)]
#[serde(default)]
#[derive(Default)]
struct Step {
    created: Option<String>,
    created_by: String,
    comment: String,
    empty_layer: bool,
}

impl History {
    /// Carries the command out.
    ///
    /// # Errors
    /// If there is no such image, or its configuration is damaged.
    pub async fn run(self, cx: &mut Context) -> Result<()> {
        let request = pb::InspectImagesRequest { names: vec![self.image] };
        let answer = cx.client().await?.local.inspect_images(request).await;
        let details = answer.map_err(|status| refused(&status))?.into_inner().images;
        let options = Options { quiet: self.quiet, format: self.format, ..Options::default() };
        for image in &details {
            let rows = rows(image, self.no_trunc, units::now_ms())?;
            cx.out.write_all(LISTING.print(&rows, "ID", &options)?.as_bytes())?;
        }
        Ok(())
    }
}

fn rows(details: &pb::ImageDetails, no_trunc: bool, now_ms: u64) -> Result<Vec<Struct>> {
    let config: Config =
        serde_json::from_slice(&details.config).context("the image's configuration is damaged")?;
    let id = details.image.as_ref().map(|image| super::super::view::image::id(image, no_trunc));
    let mut sizes = details.layers.iter().map(|layer| layer.size_bytes);
    // An image need not tell how it was made; its layers are there all the same.
    let steps = match config.history.is_empty() {
        true => details.layers.iter().map(|_| Step::default()).collect(),
        false => config.history,
    };
    let row = |step: Step| {
        let size = if step.empty_layer { 0 } else { sizes.next().unwrap_or(0) };
        let at_ms = step.created.as_deref().and_then(nanos).map_or(0, |nanos| nanos / 1_000_000);
        let by = step.created_by.split_whitespace().collect::<Vec<_>>().join(" ");
        let by = match no_trunc || by.chars().count() <= STEP_MAX {
            true => by,
            false => by.chars().take(STEP_MAX - 1).chain(['…']).collect(),
        };
        Struct::new("step")
            .with("Comment", step.comment)
            .with("CreatedAt", Value::time_ms(at_ms))
            .with("CreatedBy", by)
            .with("CreatedSince", if at_ms == 0 { "N/A".into() } else { units::ago(at_ms, now_ms) })
            .with("ID", "<missing>")
            .with("Size", units::size(size))
    };
    let mut rows: Vec<Struct> = steps.into_iter().map(row).collect();
    rows.reverse();
    // Only the last step made an image that still has an id.
    if let (Some(first), Some(id)) = (rows.first_mut(), id) {
        first.set("ID", id);
    }
    Ok(rows)
}
