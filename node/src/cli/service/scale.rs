//! `rswarm service scale web=5 db=2`

use super::dry_run::DryRun;
use super::update::{asked, find, send};
use super::wait;
use crate::cli::context::Context;
use crate::cli::failure::Failure;
use anyhow::{Context as _, Result};
use rswarm_proto::v1::planned_request::What;
use std::str::FromStr;

/// Change how many tasks services run
#[derive(Debug, clap::Args)]
pub struct Scale {
    /// Services and their new sizes
    #[arg(required = true, value_name = "SERVICE=REPLICAS")]
    targets: Vec<Target>,
    #[command(flatten)]
    dry: DryRun,
    #[command(flatten)]
    wait: wait::Options,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Target {
    service: String,
    replicas: u32,
}

impl FromStr for Target {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, &'static str> {
        const WRONG: &str = "expected SERVICE=REPLICAS, for example web=5";
        let (service, replicas) = text.split_once('=').ok_or(WRONG)?;
        let replicas = replicas.parse().map_err(|_| WRONG)?;
        if service.is_empty() { Err(WRONG) } else { Ok(Self { service: service.into(), replicas }) }
    }
}

impl Scale {
    /// Carries the command out: all services are changed first, then waited for.
    ///
    /// # Errors
    /// If there is no such service, the manager refuses, or a service does not come to run.
    pub async fn run(self, cx: &mut Context) -> Result<()> {
        if self.dry.writes() && self.targets.len() > 1 {
            return Err(Failure::usage("a plan file holds one service; scale one at a time").into());
        }
        let mut client = cx.client().await?;
        let mut scaled = Vec::new();
        for Target { service: name, replicas } in self.targets {
            let what = || format!("cannot scale `{name}`");
            let service = find(&mut client, &name).await.with_context(what)?;
            let mut spec = service.spec.clone();
            if !spec.mode.resize(replicas) {
                let why =
                    format!("it is {}: it has one task on each node that may have one", spec.mode.name());
                let refused = Failure::failed(format!("cannot scale `{name}`: {why}"));
                return Err(refused.help("choose its nodes with --constraint-add").into());
            }
            if self.dry.is_asked() {
                let request = asked(&service, &spec, Vec::new());
                self.dry.rehearse(cx, &mut client, What::UpdateService(request)).await.with_context(what)?;
                continue;
            }
            let updated = send(&mut client, &service, &spec, Vec::new()).await.with_context(what)?;
            cx.warn(&updated.warnings)?;
            writeln!(cx.out, "{name} scaled to {replicas}")?;
            scaled.push((name, updated));
        }
        cx.out.flush()?;
        for (name, updated) in scaled {
            wait::revised(cx, &mut client, &name, &updated, &self.wait).await?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read() {
        assert_eq!("web=5".parse(), Ok(Target { service: "web".into(), replicas: 5 }));
        for text in ["web", "web=", "=5", "web=-1", "web=x"] {
            assert!(text.parse::<Target>().is_err(), "{text}");
        }
    }
}
