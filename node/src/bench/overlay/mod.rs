//! The overlay, measured in network namespaces of its own, without a cluster: throughput and its price beside the
//! kernel's VXLAN, what a lost node costs those who connect, and memory.

mod flow;
mod loss;
mod memory;
mod place;
mod speed;
mod wire;

use super::figure::Figure;
use super::note;
use anyhow::{Context, Result};
use std::sync::atomic::AtomicBool;

/// How often each way is measured unless told otherwise.
const ROUNDS: usize = 7;
/// How often a node is lost for each way of connecting.
const LOSSES: usize = 3;

/// Measures everything. Blocks; gives up soon after `interrupted`, with nothing left behind.
pub fn run(trials: Option<usize>, interrupted: &AtomicBool, figures: &mut Vec<Figure>) -> Result<()> {
    figures.extend(memory::run().context("memory")?);
    note(
        "overlay: both ends of all traffic run on this machine too; wires carry 1500 bytes and segment nothing",
    );
    let path = std::env::var_os("PATH").unwrap_or_default();
    let installed = std::env::split_paths(&path).any(|at| at.join("wireguard-go").is_file());
    let why = if installed { "by this command" } else { "(not installed)" };
    note(&format!("wireguard-go: not measured {why}"));
    figures.extend(speed::run(trials.unwrap_or(ROUNDS), interrupted).context("speed")?);
    figures.extend(loss::run(trials.unwrap_or(LOSSES).min(LOSSES), interrupted).context("loss")?);
    Ok(())
}
