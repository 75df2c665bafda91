//! Objects as `inspect` and `--format json` show them. The names of fields are those that tools made for
//! Docker expect, and are stable: fields may be added, none renamed or removed.

pub mod image;
pub mod network;
pub mod node;
pub mod profile;
pub mod service;

#[cfg(test)]
pub mod samples;

use super::output::value::{Struct, Value};
use rswarm_control::model::Meta;

/// A structure that begins as every object's does.
fn object(kind: &str, id: impl std::fmt::Display, meta: &Meta) -> Struct {
    Struct::new(kind)
        .with("ID", id.to_string())
        .with("Version", Struct::new("Version").with("Index", meta.version))
        .with("CreatedAt", Value::time_ms(meta.created_at.0))
        .with("UpdatedAt", Value::time_ms(meta.updated_at.0))
}
