//! `rswarm network create backend`

use crate::cli::context::Context;
use crate::cli::failure::{Failure, refused};
use crate::cli::service::flags::Label;
use anyhow::{Context as _, Result};
use rswarm_control::model::Subnet;
use rswarm_proto::v1 as pb;
use std::net::Ipv4Addr;

/// Create a network that spans the nodes
#[derive(Debug, clap::Args)]
pub struct Create {
    /// What it is called
    name: String,
    /// Only `overlay` there is
    #[arg(short, long, default_value = "overlay")]
    driver: String,
    /// Where its addresses are taken from; by default the next free block of the cluster's pool
    #[arg(long, value_name = "CIDR")]
    subnet: Option<Subnet>,
    /// The address containers use as their router; by default the first of the subnet
    #[arg(long, value_name = "IP", requires = "subnet")]
    gateway: Option<Ipv4Addr>,
    /// Let containers outside of services join; kept, as there are none yet
    #[arg(long)]
    attachable: bool,
    /// Cut containers off from the world outside
    #[arg(long)]
    internal: bool,
    /// Let containers connect only to services that allow theirs, with `service create --allow-from`
    #[arg(long)]
    isolated: bool,
    /// Largest packet a container may send, in bytes
    #[arg(long, value_name = "BYTES", value_parser = clap::value_parser!(u32).range(576..=65535))]
    mtu: Option<u32>,
    /// Set a label
    #[arg(long = "label", value_name = "KEY[=VALUE]")]
    labels: Vec<Label>,
}

impl Create {
    /// Carries the command out.
    ///
    /// # Errors
    /// If the manager refuses.
    pub async fn run(self, cx: &mut Context) -> Result<()> {
        if self.driver != "overlay" {
            let failure = Failure::usage(format!("there is no network driver `{}`", self.driver));
            return Err(failure.help("the one there is, overlay, is the default").into());
        }
        let request = pb::CreateNetworkRequest {
            name: self.name.clone(),
            labels: self.labels.into_iter().map(|label| (label.key, label.value)).collect(),
            subnet: self.subnet.map(|subnet| subnet.to_string()).unwrap_or_default(),
            gateway: self.gateway.map(|gateway| gateway.to_string()).unwrap_or_default(),
            attachable: self.attachable,
            internal: self.internal,
            isolated: self.isolated,
            mtu: self.mtu.unwrap_or(0),
        };
        let created = cx.client().await?.control.create_network(request).await;
        let created = created.map_err(|status| refused(&status));
        let created = created.with_context(|| format!("cannot create the network `{}`", self.name))?;
        writeln!(cx.out, "{}", created.into_inner().id)?;
        Ok(())
    }
}
