//! Container images on this machine: named, fetched, verified, unpacked and collected.
//!
//! A [`Store`] is a directory. Whatever enters it is checked against its digest first and appears by a
//! rename, so a crash leaves either the whole thing or nothing. See [`Store`] for the layout.

mod builtin;
mod collect;
mod config;
mod credentials;
mod digest;
mod index;
mod load;
mod neighbours;
mod platform;
mod pull;
mod push;
mod reference;
mod registries;
mod registry;
mod save;
mod scratch;
mod store;
pub(crate) mod tarball;
mod unpack;

pub use builtin::{BUILTIN, is_builtin};
pub use collect::{Pruned, Swept};
pub use config::{Healthcheck, ImageConfig};
pub use digest::Digest;
pub use load::Loaded;
pub use neighbours::{Neighbours, Pieces, Place, Turn};
pub use platform::{NotAPlatform, Platform};
pub use pull::Progress;
pub use push::Pushed;
pub use reference::{Reference, ReferenceError};
pub use registries::Registries;
pub use save::{Details, LayerDetails};
pub use store::{Image, Known, Limits, Store};
pub use unpack::plain;

use std::io;

/// Why an image operation did not succeed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The words given do not name an image.
    #[error(transparent)]
    Reference(#[from] ReferenceError),
    /// The store has no such image.
    #[error("no image `{0}` on this machine: fetch it with `rswarm image pull` or `rswarm image load`")]
    NotFound(String),
    /// A short id fits several images.
    #[error("`{0}` is the beginning of several image ids: give more of it")]
    Ambiguous(String),
    /// Containers still use the image.
    #[error("image `{image}` is used by {holders}: remove them first, or force the removal")]
    InUse {
        /// The image, as the caller named it.
        image: String,
        /// Who holds it, comma separated.
        holders: String,
    },
    /// Bytes that are damaged, hostile or not what their digest promised.
    #[error("{what}: {why}")]
    Refused {
        /// The archive, layer or blob.
        what: String,
        /// What is wrong with it.
        why: String,
    },
    /// The registry could not be reached or said no.
    #[error("cannot {act} {registry}: {why}")]
    Registry {
        /// What was to be done: pull `nginx` from.
        act: String,
        /// Who was asked.
        registry: String,
        /// The answer, or why there was none.
        why: String,
    },
    /// A registry did not let us in.
    #[error("cannot log in to {registry}: {why}")]
    Login {
        /// Who was asked.
        registry: String,
        /// The answer, or why there was none.
        why: String,
    },
    /// The store's own disk.
    #[error("image store: cannot {what}: {source}")]
    Io {
        /// What was being done, with its path.
        what: String,
        /// The operating system's answer.
        source: io::Error,
    },
}

/// A result of this module.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Says what was being done when the operating system refused.
trait Doing<T> {
    fn doing(self, what: impl FnOnce() -> String) -> Result<T>;
}

impl<T, E: Into<io::Error>> Doing<T> for std::result::Result<T, E> {
    fn doing(self, what: impl FnOnce() -> String) -> Result<T> {
        self.map_err(|error| Error::Io { what: what(), source: error.into() })
    }
}

fn refused<T>(what: impl Into<String>, why: impl Into<String>) -> Result<T> {
    Err(Error::Refused { what: what.into(), why: why.into() })
}
