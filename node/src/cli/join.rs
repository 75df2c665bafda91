//! `rswarm join --token TOKEN ADDR:2377`

use super::context::Context;
use super::failure::{Failure, refused};
use super::node::AvailabilityArg;
use super::start::ensure_daemon;
use anyhow::{Context as _, Result};
use rswarm_proto::v1 as pb;
use std::path::PathBuf;

/// Make this machine part of a cluster
#[derive(Debug, clap::Args)]
pub struct Join {
    /// Managers' addresses; the first that answers is asked
    #[arg(required = true, value_name = "HOST:PORT")]
    addrs: Vec<String>,
    /// What `rswarm join-token` prints on a manager
    #[arg(long, env = "RSWARM_TOKEN", hide_env_values = true)]
    token: String,
    /// Address or interface other nodes reach this one at
    #[arg(long, value_name = "IP|INTERFACE[:PORT]")]
    advertise_addr: Option<String>,
    /// Address or interface to listen on
    #[arg(long, value_name = "IP|INTERFACE[:PORT]", default_value = "")]
    listen_addr: String,
    /// Whether this node may be given tasks
    #[arg(long, value_enum, default_value_t)]
    availability: AvailabilityArg,
    /// Where the daemon keeps its state, if this starts it
    #[arg(long, env = "RSWARM_STATE_DIR", value_name = "PATH")]
    state_dir: Option<PathBuf>,
}

impl Join {
    /// Carries the command out.
    ///
    /// # Errors
    /// If the token is malformed, the daemon cannot be started, or it is refused.
    pub async fn run(self, cx: &mut Context) -> Result<()> {
        check_token(&self.token)?;
        let started = ensure_daemon(&cx.socket, self.state_dir.as_deref(), &mut cx.err)?;
        let request = pb::JoinRequest {
            token: self.token,
            addrs: self.addrs.iter().map(|addr| with_port(addr)).collect(),
            advertise_addr: self.advertise_addr.unwrap_or_default(),
            listen_addr: self.listen_addr,
            availability: pb::Availability::from(self.availability).into(),
        };
        let mut client = cx.client().await?;
        let answer = client.local.join(request).await;
        if answer.is_err() {
            started.undo(&mut client).await;
        }
        let answer =
            answer.map_err(|status| refused(&status)).context("cannot join the cluster")?.into_inner();
        let role = if answer.role() == pb::Role::Manager { "manager" } else { "worker" };
        writeln!(cx.out, "This node joined a cluster as a {role}.")?;
        Ok(())
    }
}

/// Catches what was cut off while copying, before any daemon is started.
fn check_token(token: &str) -> Result<(), Failure> {
    let parts: Vec<&str> = token.split('-').collect();
    match parts.as_slice() {
        ["RSWTKN", "1", digest, secret] if !digest.is_empty() && !secret.is_empty() => Ok(()),
        ["RSWTKN", version, ..] if *version != "1" && parts.len() == 4 => {
            Err(Failure::failed(format!("the token is of version {version}, which is not known here"))
                .help("install the version of rswarm that the cluster runs"))
        }
        _ => Err(Failure::failed("this is not a whole join token; one looks like RSWTKN-1-DIGEST-SECRET")
            .help("print it on a manager with `rswarm join-token worker`")),
    }
}

/// The address with the usual port, where it names none.
fn with_port(addr: &str) -> String {
    let has_port = match addr.rsplit_once(':') {
        Some((host, port)) => port.parse::<u16>().is_ok() && (!host.contains(':') || host.ends_with(']')),
        None => false,
    };
    match (has_port, addr.parse::<std::net::Ipv6Addr>()) {
        (true, _) => addr.into(),
        (false, Ok(_)) => format!("[{addr}]:2377"),
        (false, Err(_)) => format!("{addr}:2377"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_that_were_cut_off_are_caught() {
        assert!(check_token("RSWTKN-1-abc-def").is_ok());
        for token in ["", "RSWTKN-1-abc", "RSWTKN-1-abc-", "SWMTKN-1-abc-def", "hello"] {
            let error = check_token(token).expect_err(token);
            assert!(error.to_string().contains("not a whole join token"), "{error}");
        }
        assert!(check_token("RSWTKN-2-abc-def").expect_err("2").to_string().contains("of version 2"));
    }

    #[test]
    fn the_usual_port_is_added() {
        for (addr, with) in [
            ("10.0.0.1", "10.0.0.1:2377"),
            ("10.0.0.1:99", "10.0.0.1:99"),
            ("n1.example", "n1.example:2377"),
            ("fd00::1", "[fd00::1]:2377"),
            ("[fd00::1]:99", "[fd00::1]:99"),
        ] {
            assert_eq!(with_port(addr), with);
        }
    }
}
