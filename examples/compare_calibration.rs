//! Compares the calibration statistics of two bundles: do two sets of inputs (two sites, two scanners, last year's and this
//! year's) drive the model alike?
//!
//! ```text
//! cargo run --release --example compare_calibration -- onnx-a/calibration.safetensors onnx-b/calibration.safetensors
//! ```
//!
//! A row an activation, the least alike first. *alike*: cosine of the two mean squares by column, 1 when the same columns are
//! large; *largest*: the largest magnitude of B over that of A; *zero*: the int8 zero point that each would choose.
#![allow(clippy::print_stdout)]

use std::path::PathBuf;

use anyhow::{Result, ensure};
use brain_adapter::calibrate::{ChannelStats, Statistics};
use brain_adapter::tensor::cosine;
use clap::Parser;

#[derive(Parser)]
#[command(about = "Compares the calibration statistics of two bundles")]
struct Args {
    /// `calibration.safetensors` of a bundle.
    a: PathBuf,
    /// Another one, of the same model.
    b: PathBuf,
    /// Number of rows; 0 prints all.
    #[arg(long, default_value_t = 20)]
    rows: usize,
}

fn main() -> Result<()> {
    let args = Args::parse();
    let (a, b) = (Statistics::load(&args.a)?, Statistics::load(&args.b)?);
    let mut rows = Vec::new();
    for (name, one) in &a.activations {
        let Some(two) = b.activations.get(name) else { continue };
        ensure!(one.max_abs.len() == two.max_abs.len(), "`{name}` differs in width: these are two models");
        rows.push((alike(one, two), name, one, two));
    }
    ensure!(!rows.is_empty(), "the files share no activation: these are two models");
    let only = a.activations.len().max(b.activations.len()) - rows.len();
    rows.sort_by(|x, y| x.0.total_cmp(&y.0));
    println!("A: {} scans, {} reports   B: {} scans, {} reports", a.scans, a.reports, b.scans, b.reports);
    println!("{:<44} {:>8} {:>8} {:>8} {:>9} {:>9}", "activation", "alike", "largest", "zero", "tokens A", "tokens B");
    let shown = if args.rows == 0 { rows.len() } else { args.rows.min(rows.len()) };
    for (alike, name, one, two) in &rows[..shown] {
        let zero = format!("{}/{}", one.zero_point(), two.zero_point());
        let largest = peak(two) / peak(one);
        println!("{name:<44} {alike:>8.4} {largest:>8.2} {zero:>8} {:>9} {:>9}", one.tokens, two.tokens);
    }
    println!("{shown} of {} activations; {only} are in one file alone", rows.len());
    Ok(())
}

fn alike(a: &ChannelStats, b: &ChannelStats) -> f64 {
    cosine(a.importance().into_iter(), b.importance().into_iter())
}

fn peak(stats: &ChannelStats) -> f32 {
    stats.max_abs.iter().copied().fold(f32::MIN_POSITIVE, f32::max)
}
