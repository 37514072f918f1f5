//! Running one graph, on made-up inputs of full size.

use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use brain_adapter::graph::Graph;
use brain_adapter::onnx;
use brain_adapter::runtime::{Runtime, Session, SessionOptions};
use brain_adapter::tensor::{Tensor, cosine};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde_json::json;

use super::process;

/// Tokens of a report.
pub const TOKENS: usize = 256;

/// Runs the graph at `path` and reports seconds. `unpacked`: weights stay in the mapped file. `once`: the seconds are
/// those from the process's start to the first result; else the best of several runs after it. `save:NAME`: that output
/// goes into a file beside the graph.
pub fn child(path: &Path, options: &[&str]) -> Result<()> {
    let start = Instant::now();
    let has = |option: &str| options.contains(&option);
    let runtime = Runtime::load(None)?;
    let session = SessionOptions { prepack: !has("unpacked"), ..Default::default() };
    let mut session = Session::open(runtime, path, &session)?;
    let load = start.elapsed().as_secs_f64();
    let (names, outputs) = (session.inputs(), session.outputs());
    let tensors = names.iter().map(|name| input(name)).collect::<Result<Vec<_>>>()?;
    let feed: Vec<(&str, &Tensor)> = names.iter().map(String::as_str).zip(&tensors).collect();
    let outputs: Vec<&str> = outputs.iter().map(String::as_str).collect();
    let made = session.run(&feed, &outputs)?;
    let first = start.elapsed().as_secs_f64();
    if let Some(name) = options.iter().find_map(|o| o.strip_prefix("save:")) {
        let at = outputs.iter().position(|o| *o == name).context("no such output")?;
        let bytes = made[at].as_f32().context("the output is no floats")?.iter().flat_map(|v| v.to_le_bytes());
        std::fs::write(path.with_extension("result"), bytes.collect::<Vec<u8>>())?;
    }
    drop(made);
    let (begun, mut best, mut runs) = (Instant::now(), f64::INFINITY, 0);
    while !has("once") && (runs < 2 || begun.elapsed().as_secs_f64() < 1.0) {
        let start = Instant::now();
        session.run(&feed, &outputs)?;
        (best, runs) = (best.min(start.elapsed().as_secs_f64()), runs + 1);
    }
    process::report(best.min(first), &json!({"load": load}));
    Ok(())
}

/// An input by the name that it has in our graphs; `x4096` and the like are rows of so many columns.
fn input(name: &str) -> Result<Tensor> {
    let ids = || (0..TOKENS as i64).map(|i| 3 + (i * 37) % 500).collect();
    Ok(match name {
        "input_ids" => Tensor::i64(&[1, TOKENS], ids()).context("ids")?,
        "attention_mask" => Tensor::i64(&[1, TOKENS], vec![1; TOKENS]).context("a mask")?,
        "volume" => noise(&[1, 256, 256, 256])?,
        "adapter" => noise(&[1, 64, 256, 256])?,
        _ => match name.strip_prefix('x').and_then(|columns| columns.parse().ok()) {
            Some(columns) => noise(&[TOKENS, columns])?,
            None => bail!("no input is known as `{name}`"),
        },
    })
}

/// Uniform values in 0..1; the same for the same shape.
fn noise(shape: &[usize]) -> Result<Tensor> {
    let mut rng = ChaCha8Rng::seed_from_u64(4);
    let values = (0..shape.iter().product::<usize>()).map(|_| rng.random_range(0.0..1.0)).collect();
    Tensor::f32(shape, values).context("fills its shape")
}

/// Writes `graph` as `name.onnx`.
pub fn write(graph: &Graph, folder: &Path, name: &str) -> Result<()> {
    onnx::write(graph, folder, name, &mut |_| {})?;
    Ok(())
}

/// The least cosine, over rows of `width` (all in one where it is `None`), of what two graphs saved.
pub fn least_cosine(found: &Path, expected: &Path, width: Option<usize>) -> Option<f64> {
    let read = |path: &Path| {
        let bytes = std::fs::read(path.with_extension("result")).ok()?;
        Some(bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect::<Vec<f32>>())
    };
    let (found, expected) = (read(found)?, read(expected)?);
    if found.len() != expected.len() || found.is_empty() {
        return None;
    }
    let width = width.unwrap_or(found.len());
    let rows = found.chunks(width).zip(expected.chunks(width));
    Some(rows.map(|(f, e)| cosine(f.iter().copied(), e.iter().copied())).fold(1.0, f64::min))
}
