//! Images.

use rswarm_proto::v1 as pb;

/// A reference's repository and tag, `<none>` where it has none.
pub fn repository_and_tag(reference: &str) -> (&str, &str) {
    let name = reference.split_once('@').map_or(reference, |(name, _)| name);
    match name.rsplit_once(':') {
        Some((repository, tag)) if !tag.contains('/') => (repository, tag),
        _ => (name, "<none>"),
    }
}

/// The first twelve digits of an image's id, or the whole of it.
pub fn id(image: &pb::Image, whole: bool) -> &str {
    let short = image.id.strip_prefix("sha256:").unwrap_or(&image.id);
    if whole { &image.id } else { short.get(..12).unwrap_or(short) }
}
