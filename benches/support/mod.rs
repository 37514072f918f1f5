//! What the benchmarks share: full-size models of seeded random weights, and measuring in processes of their own.

#![allow(dead_code)]

use std::path::Path;
use std::process::Command;
use std::time::Instant;

use brain_adapter::checkpoint::write_safetensors;
use brain_adapter::config::{Config, LlamaConfig};
use brain_adapter::model::keys::{self, Key};
use brain_adapter::runtime::{Runtime, Session, SessionOptions};
use brain_adapter::tensor::{LazyTensor, Tensor};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// A model folder of the paper's sizes, with a small language model.
pub fn checkpoint(folder: &Path) {
    let config =
        Config { text: brain_adapter::config::TextConfig { hidden: 64, ..Default::default() }, ..Config::default() };
    let (mlp, vocab) = (176, 512);
    let llama = LlamaConfig {
        vocab,
        hidden: 64,
        mlp,
        layers: 1,
        heads: 4,
        kv_heads: 4,
        head_dim: 16,
        rms_eps: 1e-5,
        rope_theta: 1e4,
    };
    for part in ["m3d", "llama"] {
        std::fs::create_dir_all(folder.join(part)).expect("a folder");
    }
    let json = serde_json::json!({"vocab_size": vocab, "hidden_size": 64, "intermediate_size": mlp, "num_hidden_layers": 1,
        "num_attention_heads": 4, "rms_norm_eps": 1e-5});
    std::fs::write(folder.join("llama/config.json"), json.to_string()).expect("written");
    std::fs::write(folder.join("config.json"), serde_json::to_string(&config).expect("JSON")).expect("written");
    let tokenizer = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/tokenizer/tokenizer.json");
    std::fs::copy(tokenizer, folder.join("llama/tokenizer.json")).expect("copied");
    let trained = [keys::adapter(&config), keys::heads(&config), keys::image_classifier(&config)].concat();
    random(&folder.join("adapter.safetensors"), trained, 1);
    random(&folder.join("m3d/model.safetensors"), keys::vision(&config), 2);
    random(&folder.join("llama/model.safetensors"), keys::text(&llama), 3);
}

/// Writes tensors with uniform values of a trained layer's scale; norms are about 1.
pub fn random(path: &Path, keys: Vec<Key>, seed: u64) {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let tensors = keys.into_iter().map(|(name, shape)| {
        let count = shape.iter().product::<usize>();
        let centre =
            if name.contains("norm") && !name.ends_with("bias") && !name.ends_with("running_mean") { 1.0 } else { 0.0 };
        let scale = if shape.len() > 1 { (3.0 * shape[0] as f32 / count as f32).sqrt() } else { 0.1 };
        let values: Vec<f32> = (0..count).map(|_| centre + scale * rng.random_range(-1.0..1.0)).collect();
        (name, LazyTensor::from_f32(&shape, &values))
    });
    write_safetensors(path, tensors, &Default::default()).expect("written");
}

/// Uniform values in 0..1; the same for the same shape.
pub fn noise(shape: &[usize]) -> Tensor {
    let mut rng = ChaCha8Rng::seed_from_u64(4);
    let values = (0..shape.iter().product::<usize>()).map(|_| rng.random_range(0.0..1.0)).collect();
    Tensor::f32(shape, values).expect("fills its shape")
}

/// Seconds of a graph on uniform noise: the best of several runs after the first, which makes the arena grow.
pub fn run(path: &Path, (input, shape): (&str, &[usize]), output: &str) -> f64 {
    let tensor = noise(shape);
    let runtime = Runtime::load(None).expect("ONNX Runtime");
    let mut session = Session::open(runtime, path, &SessionOptions::default()).expect("a session");
    let (begun, mut best) = (Instant::now(), f64::INFINITY);
    session.run(&[(input, &tensor)], &[output]).expect("runs");
    while best.is_infinite() || begun.elapsed().as_secs_f64() < 1.0 {
        let start = Instant::now();
        session.run(&[(input, &tensor)], &[output]).expect("runs");
        best = best.min(start.elapsed().as_secs_f64());
    }
    best
}

pub fn peak_kib() -> String {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let peak = status.lines().find_map(|l| l.strip_prefix("VmHWM:"));
    peak.map_or("0".into(), |l| l.trim().trim_end_matches(" kB").to_owned())
}

/// Seconds and peak KiB that a command prints on its last line.
pub fn measure(command: &mut Command) -> Option<(f64, f64)> {
    let output = command.output().ok()?;
    if !output.status.success() {
        eprintln!("{}", String::from_utf8_lossy(&output.stderr));
        return None;
    }
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let mut numbers = text.lines().last()?.split_whitespace().map(|n| n.parse::<f64>().ok());
    Some((numbers.next()??, numbers.next()??))
}

pub fn best(runs: &[(f64, f64)]) -> String {
    match runs.iter().copied().reduce(|a, b| (a.0.min(b.0), a.1.min(b.1))) {
        Some((seconds, kib)) => format!("{seconds:.3} s {:>5.0} MB", kib / 1024.0 * 1.048_576),
        None => "-".into(),
    }
}
