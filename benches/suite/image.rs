//! The adapter and the vision transformer, full size.

use std::path::Path;

use anyhow::{Context, Result};
use brain_adapter::bundle::Bundle;
use brain_adapter::config::Config;
use brain_adapter::model::{self, Attention, Stages};
use brain_adapter::passes::quantize::{Plan, quantize};
use brain_adapter::tensor::DType;

use super::floors;
use super::graphs::{least_cosine, write};
use super::process::Contender;
use super::report::Bound::{AtLeast, AtMost};
use super::report::Floor;
use super::suite::{Suite, bytes_in, compare, succeed, weights};

const VISION: &str = "vision pass, 4097 tokens";
const ADAPTER: &str = "adapter, 256³ voxels";
const OURS: &str = "ours int8";
const OURS_FP32: &str = "ours fp32";

/// The ViT on the adapter's map.
pub fn vision(suite: &mut Suite) -> Result<()> {
    let [int8, fp32] = [suite.bundle(None, "int8")?, suite.bundle(None, "fp32")?];
    let rounds = suite.options.rounds;
    let torch = |arguments: &[&str]| suite.peer("torch_image.py", arguments);
    let mut contenders = vec![
        Contender::new(OURS, rounds, || suite.graph(&int8.join("vision.onnx"), &[])),
        Contender::new(OURS_FP32, rounds, || suite.graph(&fp32.join("vision.onnx"), &[])),
        Contender::new("PyTorch sdpa fp32", rounds, || torch(&["vision", "sdpa", "fp32"])),
        Contender::new("PyTorch sdpa bf16", rounds, || torch(&["vision", "sdpa", "bf16"])),
        // Slow, and far from the others: once is enough.
        Contender::new("PyTorch fp32, attention as MONAI writes it", 1, || torch(&["vision", "eager", "fp32"])),
    ];
    contenders.extend(floors::again(suite));
    let mut rows = compare(VISION, contenders);
    floors::absorb(suite, &mut rows);
    suite.report.extend(rows);
    let cosine = worst_token(suite, &int8)?;
    let (tokens, hidden, mlp, blocks) = (4097.0, 768.0, 3072.0, 12.0);
    let linears = 2.0 * tokens * (blocks * (4.0 * hidden * hidden + 2.0 * hidden * mlp) + 1024.0 * hidden);
    let attention = 4.0 * blocks * tokens * tokens * hidden;
    let fp32_floor = Floor::Products([linears + attention, 0.0]);
    let int8_floor = Floor::Products([attention, linears]);
    let bytes = |bundle: &Path| Some(bytes_in(bundle, |name| name.starts_with("vision.onnx")));
    suite.amend(VISION, OURS, |f| (f.bytes, f.cosine, f.floor) = (bytes(&int8), Some(cosine), Some(int8_floor)));
    suite.amend(VISION, OURS_FP32, |f| (f.bytes, f.floor) = (bytes(&fp32), Some(fp32_floor)));
    suite.amend(VISION, "PyTorch sdpa fp32", |f| f.floor = Some(fp32_floor));
    let report = &mut suite.report;
    for (ours, theirs, target) in
        [(OURS_FP32, "PyTorch sdpa fp32", 1.2), (OURS, "PyTorch sdpa fp32", 1.8), (OURS, "PyTorch sdpa bf16", 1.4)]
    {
        let found = report.speedup(VISION, ours, theirs);
        report.target(format!("vision, {ours} against {theirs}"), found, AtLeast(target), "times as fast");
    }
    for (ours, target) in [(OURS_FP32, 800.0), (OURS, 600.0)] {
        let found = report.peak_mb(VISION, ours);
        report.target(format!("vision, {ours}: peak"), found, AtMost(target), "MB");
    }
    report.notes.push(
        "Vision and adapter: int8 is calibrated on the demo's scan. Vision's cosine is the worst token's.".into(),
    );
    Ok(())
}

/// Runs the ViT with all tokens as outputs, in float32 and as the bundle has it: the least cosine of a token.
fn worst_token(suite: &Suite, bundle: &Path) -> Result<f64> {
    let bundle = Bundle::open(bundle)?;
    let record = bundle.manifest.quantization.as_ref().context("no reduced bundle")?;
    let layers = || record.layers.iter().filter(|l| l.part == "vision");
    anyhow::ensure!(layers().all(|l| !l.smoothed), "a smoothed layer can't be rebuilt from its record");
    let checkpoint = suite.checkpoint(None)?;
    let (weights, config) = (weights(&checkpoint.join("m3d"), "")?, Config::load(&checkpoint.join("config.json"))?);
    let fp32 = model::vit::build(&config, &weights, Attention::Fused, Stages::All)?;
    let schemes = layers().map(|l| (l.layer.clone(), l.scheme)).collect();
    let int8 = quantize(&fp32, &Plan { schemes, tables: Some(DType::F16), ..Plan::default() })?;
    let paths = ["tokens-int8", "tokens-fp32"].map(|name| suite.path(&format!("{name}.onnx")));
    for (graph, name) in [(&int8, "tokens-int8"), (&fp32, "tokens-fp32")] {
        write(graph, &suite.path(""), name)?;
        let path = suite.path(&format!("{name}.onnx"));
        succeed(&mut suite.graph(&path, &["once", "save:vision_tokens"]).map_err(anyhow::Error::msg)?)?;
    }
    least_cosine(&paths[0], &paths[1], Some(768)).context("no tokens were saved")
}

/// The adapter on a volume.
pub fn adapter(suite: &mut Suite) -> Result<()> {
    let [int8, fp32] = [suite.bundle(None, "int8")?, suite.bundle(None, "fp32")?];
    let rounds = suite.options.rounds;
    let torch = |dtype: &str| suite.peer("torch_image.py", &["adapter", "sdpa", dtype]);
    let contenders = vec![
        Contender::new(OURS, rounds, || suite.graph(&int8.join("adapter.onnx"), &["save:adapter"])),
        Contender::new(OURS_FP32, rounds, || suite.graph(&fp32.join("adapter.onnx"), &["save:adapter"])),
        Contender::new("PyTorch fp32", rounds, || torch("fp32")),
        Contender::new("PyTorch bf16", rounds, || torch("bf16")),
    ];
    let rows = compare(ADAPTER, contenders);
    suite.report.extend(rows);
    let operations = 2.0 * 65536.0 * (256.0 * 64.0 + 2.0 * 9.0 * 64.0 * 64.0);
    let floors = [Floor::Products([0.0, operations]), Floor::Products([operations, 0.0])];
    let cosine = least_cosine(&int8.join("adapter.onnx"), &fp32.join("adapter.onnx"), None);
    suite.amend(ADAPTER, OURS, |f| (f.cosine, f.floor) = (cosine, Some(floors[0])));
    for with in [OURS_FP32, "PyTorch fp32"] {
        suite.amend(ADAPTER, with, |f| f.floor = Some(floors[1]));
    }
    Ok(())
}
