//! Training beside PyTorch: a step of the whole model, and epochs of the heads alone.

pub mod epoch;
mod operations;
mod step;
pub mod steps;

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};
use brain_adapter::config::AdapterKind;
use brain_adapter::tensor::LazyTensor;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::suite::{Suite, root, succeed};

/// The learning rate of all.
const RATE: f64 = 1e-4;

/// Both tables.
pub fn run(suite: &mut Suite) -> Result<()> {
    for kind in suite.options.adapters.clone() {
        step::run(suite, kind)?;
    }
    epoch::run(suite)
}

/// What `--adapter` names.
pub fn adapters(name: &str) -> Result<Vec<AdapterKind>> {
    Ok(match name {
        "2d" => vec![AdapterKind::Bottleneck2d],
        "3d" => vec![AdapterKind::Bottleneck3d],
        "none" => Vec::new(),
        "both" => vec![AdapterKind::Bottleneck2d, AdapterKind::Bottleneck3d],
        _ => anyhow::bail!("--adapter is 2d, 3d, both or none"),
    })
}

/// Threads that all compute with.
fn threads() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// `ba-train` with these arguments.
fn ba_train(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ba-train"));
    command.current_dir(root()).args(arguments).arg("--quiet");
    command
}

/// Training artifacts from a configuration, an adapter and a transformer.
fn prepare(config: &Path, adapter: &Path, vision: &Path, output: &Path) -> Result<()> {
    let mut command = ba_train(&["prepare", "--mode", "tlp"]);
    for (flag, path) in [("--config", config), ("--adapter", adapter), ("--vision", vision), ("--output", output)] {
        command.arg(flag).arg(path);
    }
    succeed(&mut command).map(drop)
}

/// Uniform values in ±`scale`.
fn noise(shape: &[usize], scale: f32, rng: &mut ChaCha8Rng) -> LazyTensor {
    let values: Vec<f32> = (0..shape.iter().product::<usize>()).map(|_| rng.random_range(-scale..scale)).collect();
    LazyTensor::from_f32(shape, &values)
}

fn rng(seed: u64) -> ChaCha8Rng {
    ChaCha8Rng::seed_from_u64(seed)
}

/// Writes tensors that both sides read.
fn save(path: &Path, tensors: impl IntoIterator<Item = (String, LazyTensor)>) -> Result<()> {
    brain_adapter::checkpoint::write_safetensors(path, tensors, &BTreeMap::new())?;
    Ok(())
}

fn median(values: &[f64]) -> Result<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let upper = sorted.get(sorted.len() / 2).context("nothing was measured")?;
    Ok(if sorted.len().is_multiple_of(2) { (sorted[sorted.len() / 2 - 1] + upper) / 2.0 } else { *upper })
}
