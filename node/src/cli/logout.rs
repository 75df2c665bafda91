//! `rswarm logout lan:5000`

use super::context::Context;
use super::failure::refused;
use anyhow::{Context as _, Result};
use rswarm_proto::v1 as pb;

/// Forget the credentials for a registry on this node
#[derive(Debug, clap::Args)]
pub struct Logout {
    /// Host of the registry, with its port if it has one; Docker's if left out
    #[arg(value_name = "SERVER", default_value = "docker.io", hide_default_value = true)]
    registry: String,
}

impl Logout {
    /// Carries the command out.
    ///
    /// # Errors
    /// If the daemon refuses.
    pub async fn run(self, cx: &mut Context) -> Result<()> {
        let request = pb::LogoutRequest { registry: self.registry.clone() };
        let answer = cx.client().await?.local.logout(request).await.map_err(|status| refused(&status));
        let pb::LogoutResponse { registry, known } =
            answer.with_context(|| format!("cannot log out of `{}`", self.registry))?.into_inner();
        match known {
            true => writeln!(cx.out, "Removing login credentials for {registry}")?,
            false => writeln!(cx.out, "Not logged in to {registry}")?,
        }
        Ok(())
    }
}
