//! `rswarm join-token worker`

use super::context::Context;
use super::failure::refused;
use super::init::join_command;
use super::node::RoleArg;
use anyhow::{Context as _, Result};
use rswarm_proto::v1 as pb;

/// Print what another machine needs to join, or replace it
#[derive(Debug, clap::Args)]
pub struct JoinToken {
    /// What the other machine is to be
    #[arg(value_enum)]
    role: RoleArg,
    /// Make a new token; the old one lets nobody in any more
    #[arg(long)]
    rotate: bool,
    /// Print only the token
    #[arg(short, long)]
    quiet: bool,
}

impl JoinToken {
    /// Carries the command out.
    ///
    /// # Errors
    /// If the manager refuses.
    pub async fn run(self, cx: &mut Context) -> Result<()> {
        let mut client = cx.client().await?;
        let tokens = if self.rotate {
            let role = pb::Role::from(self.role).into();
            let rotated = client.control.rotate_join_token(pb::RotateJoinTokenRequest { role }).await;
            rotated.map_err(|status| refused(&status)).context("cannot rotate the join token")?
        } else {
            let tokens = client.control.get_join_tokens(pb::GetJoinTokensRequest {}).await;
            tokens.map_err(|status| refused(&status)).context("cannot read the join token")?
        };
        let tokens = tokens.into_inner();
        let token = match self.role {
            RoleArg::Worker => tokens.worker,
            RoleArg::Manager => tokens.manager,
        };
        if self.quiet {
            writeln!(cx.out, "{token}")?;
            return Ok(());
        }
        let addr = client.status().await?.addr;
        cx.out.write_all(render(self.role, self.rotate, &token, &addr).as_bytes())?;
        Ok(())
    }
}

fn render(role: RoleArg, rotated: bool, token: &str, addr: &str) -> String {
    let rotated =
        if rotated { format!("Successfully rotated the {role} join token.\n\n") } else { String::new() };
    let command = join_command(token, addr);
    format!("{rotated}To add a {role} to this cluster, run the following command:\n\n    {command}\n\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::expect;

    #[test]
    fn it_prints_the_command_to_type() {
        expect![[r"
            Successfully rotated the manager join token.

            To add a manager to this cluster, run the following command:

                rswarm join --token T 10.0.0.1:2377

        "]]
        .assert_eq(&render(RoleArg::Manager, true, "T", "10.0.0.1:2377"));
    }
}
