//! Writes a model of seeded random weights in the layout of a real one, for trying things out at full size without
//! anybody's weights: `cargo run --release --example synthesize_checkpoint -- --preset full -o DIR`.
//!
//! `DIR` gets `config.json`, `adapter.safetensors`, `m3d/model.safetensors` and `llama/` (`config.json`,
//! `tokenizer.json`, shards and their index). The bytes depend on preset, layers, dtype and seed alone, not on the
//! number of threads; memory stays below 100 MB, for everything is streamed.
#![allow(clippy::print_stderr)]

mod files;
mod plans;
mod random;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use anyhow::{Context, Result, ensure};
use brain_adapter::checkpoint::write_safetensors;
use brain_adapter::tensor::{DType, LazyTensor};
use clap::{Parser, ValueEnum};

use files::{config, enough_space, json_file, write_llama};
use plans::{Plan, adapter, llama, vision};
use random::{Progress, synthetic};

#[derive(Parser)]
#[command(about = "Writes a model of seeded random weights in the layout of a real one")]
struct Args {
    /// Sizes: everything tiny; tiny but for the widths of both features; full-size adapter and ViT with a small LLaMA;
    /// everything full-size (13.5 GB in fp16).
    #[arg(long, value_enum)]
    preset: Preset,
    /// Transformer blocks of the LLaMA, instead of the preset's.
    #[arg(long)]
    text_layers: Option<usize>,
    /// Element type of the LLaMA; the rest is fp32.
    #[arg(long, value_enum, default_value = "fp16")]
    dtype: Precision,
    /// Seed of all random numbers.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Folder to write: new, or empty.
    #[arg(short, long)]
    output: PathBuf,
}

#[derive(Clone, Copy, PartialEq, ValueEnum)]
enum Preset {
    Tiny,
    Heads,
    Vit,
    Full,
}

#[derive(Clone, Copy, ValueEnum)]
enum Precision {
    Fp16,
    Bf16,
    Fp32,
}

fn main() -> Result<()> {
    let args = Args::parse();
    let mut sizes = args.preset.sizes();
    sizes.llama.layers = args.text_layers.unwrap_or(sizes.llama.layers);
    ensure!(sizes.llama.layers > 0, "--text-layers must be at least 1");
    let out = args.output.as_path();
    let empty = std::fs::read_dir(out).map_or(true, |mut entries| entries.next().is_none());
    ensure!(empty, "{} is not empty: give a new folder", out.display());
    for folder in ["m3d", "llama"] {
        std::fs::create_dir_all(out.join(folder)).with_context(|| format!("cannot make {}", out.display()))?;
    }
    let dtype = match args.dtype {
        Precision::Fp16 => DType::F16,
        Precision::Bf16 => DType::BF16,
        Precision::Fp32 => DType::F32,
    };
    let parts = [(adapter(&sizes), DType::F32), (vision(&sizes), DType::F32), (llama(&sizes.llama), dtype)];
    let bytes = |(plans, dtype): &(Vec<Plan>, DType)| plans.iter().map(|p| p.bytes(*dtype)).sum::<u64>();
    let total = parts.iter().map(bytes).sum();
    enough_space(out, total)?;
    let written = Arc::new(Progress { total, done: AtomicU64::new(0) });
    let make = |plan: &Plan, dtype| (plan.name.clone(), synthetic(plan, dtype, args.seed, &written));

    json_file(&out.join("config.json"), &config(&sizes))?;
    let tracked = ["reduce.norm", "residual.norm1", "residual.norm2"]
        .map(|norm| (format!("adapter.{norm}.num_batches_tracked"), LazyTensor::from_i64(&[], &[1000])));
    let metadata = BTreeMap::from([("format".to_owned(), "pt".to_owned())]);
    let [(heads, _), (vit, _), (text, _)] = &parts;
    let heads = heads.iter().map(|p| make(p, DType::F32)).chain(tracked);
    write_safetensors(out.join("adapter.safetensors"), heads, &metadata)?;
    write_safetensors(out.join("m3d/model.safetensors"), vit.iter().map(|p| make(p, DType::F32)), &metadata)?;
    write_llama(&out.join("llama"), &sizes.llama, text, dtype, &metadata, &make)?;
    eprintln!("wrote {} ({:.2} GB)", out.display(), total as f64 / 1e9);
    Ok(())
}
