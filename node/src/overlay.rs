//! x
use std::path::PathBuf;
use std::net::Ipv4Addr;
use std::sync::Arc;
pub struct Overlay;
pub struct SandboxSpec { pub id: String, pub addresses: Vec<(rswarm_control::NetworkId, Ipv4Addr)> }
impl Overlay {
    pub fn apply(&self, _t: rswarm_netoverlay::table::Table) -> anyhow::Result<()> { Ok(()) }
    pub async fn attach(&self, _s: SandboxSpec) -> anyhow::Result<PathBuf> { anyhow::bail!("x") }
    pub async fn detach(&self, _s: &str) -> anyhow::Result<()> { Ok(()) }
    pub async fn purge(&self) -> anyhow::Result<()> { Ok(()) }
}
pub async fn start(_c: &crate::config::Config, _i: &crate::identity::Identity, _cr: Arc<crate::identity::tls::Credentials>) -> anyhow::Result<Overlay> { Ok(Overlay) }
