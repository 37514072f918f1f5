//! Proves the tests' own reference: against outputs recorded from PyTorch, and its parts against known values.
//!
//! The recorded outputs and the weights behind them are copies in `tests/data/fixtures` (`make_weights.py` makes
//! them). One fixture, `outliers`, is too big to copy and is read from `../shared/fixtures` where that exists.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::Value;
use support::oracle;
use support::reference::{self, Array, Inputs, LlamaConfig, Weights, files::read_safetensors, llama, math, meta};

/// Fair limits between this and PyTorch in float32, by the fixtures' own README.
const TOKENS: f64 = 1e-4;
const POOLED: f64 = 2e-5;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The committed copy of a fixture's file.
fn copy(fixture: &str, file: &str) -> PathBuf {
    root().join("tests/data/fixtures").join(fixture).join(file)
}

fn json(path: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

/// The tensors below a prefix, without it.
fn below(w: &Weights, prefix: &str) -> Weights {
    w.iter().filter_map(|(n, a)| Some((n.strip_prefix(prefix)?.to_owned(), a.clone()))).collect()
}

/// `[B, T]` whole numbers.
fn whole(a: &Array) -> Vec<Vec<i64>> {
    (0..a.shape[0]).map(|b| a.row(b).iter().map(|&x| x as i64).collect()).collect()
}

/// Every stage in common; each within its limit. Prints the errors.
fn compare(name: &str, got: &BTreeMap<String, Array>, want: &Weights) {
    for (stage, g) in got {
        let error = g.max_abs_diff(want.get(stage).unwrap_or_else(|| panic!("{name}: no {stage} recorded")));
        let tokens = stage == "adapter" || stage == "text_hidden" || stage.starts_with("vision_");
        let limit = if tokens { TOKENS } else { POOLED };
        println!("{name:24} {stage:20} {error:.1e}");
        assert!(error <= limit, "{name} {stage}: {error:e}");
    }
    let inputs = ["volume", "input_ids", "attention_mask"];
    assert!(want.keys().all(|k| got.contains_key(k) || inputs.contains(&k.as_str())), "{name}: a stage is missing");
}

/// Runs a fixture whose ViT and LLaMA are those of `towers`.
fn check(name: &str, towers: &str) {
    let own = read_safetensors(&copy(name, "weights.safetensors"));
    let frozen = read_safetensors(&copy(towers, "weights.safetensors"));
    let want = read_safetensors(&copy(name, "expected.safetensors"));
    let inputs = Inputs {
        volume: want["volume"].clone(),
        input_ids: whole(&want["input_ids"]),
        attention_mask: whole(&want["attention_mask"]),
    };
    let got = reference::forward_all(
        &json(&copy(name, "config.json")),
        &json(&copy(towers, "llama/config.json")),
        &below(&own, "heads/"),
        &below(&frozen, "vit/"),
        &below(&frozen, "llama/"),
        &inputs,
    );
    assert!(got.contains_key("image_logits"));
    compare(name, &got, &want);
}

#[test]
fn tiny() {
    check("tiny", "tiny");
}

#[test]
fn grouped_heads_bf16_and_group_norm() {
    check("tiny-gqa-bf16-sharded", "tiny-gqa-bf16-sharded");
}

#[test]
fn bottleneck3d() {
    check("tiny-bottleneck3d", "tiny");
}

/// Massive activations, as LLaMA 2 has; both text pools.
#[test]
fn outliers() {
    let Some(folder) = oracle::shared("fixtures/outliers") else { return };
    let cfg = LlamaConfig::from_json(&json(&folder.join("config.json")));
    let w = read_safetensors(&folder.join("model.safetensors"));
    let want = read_safetensors(&folder.join("expected.safetensors"));
    let mask = whole(&want["attention_mask"]);
    let hidden = llama::forward(&cfg, &w, &whole(&want["input_ids"]), &mask);
    let pooled = |kind| llama::pool(kind, &hidden, &mask);
    compare("outliers", &[("text".into(), pooled("mean")), ("text_last".into(), pooled("last"))].into(), &want);
}

/// The committed copies are what the shared fixtures hold.
#[test]
fn copies_are_current() {
    let Some(shared) = oracle::shared("fixtures") else { return };
    for name in ["tiny", "tiny-gqa-bf16-sharded", "tiny-bottleneck3d"] {
        for file in ["expected.safetensors", "config.json", "llama/config.json", "reports.json", "scan.nii.gz"] {
            if copy(name, file).exists() {
                let theirs = std::fs::read(shared.join(name).join(file)).unwrap();
                assert!(std::fs::read(copy(name, file)).unwrap() == theirs, "{name}/{file} differs");
            }
        }
    }
}

/// Meta's rows, as recorded, from HF's, and back.
#[test]
fn meta_rows() {
    let hf = read_safetensors(&copy("tiny", "weights.safetensors"));
    let recorded = read_safetensors(&copy("tiny-meta-layout", "weights.safetensors"));
    for (theirs, ours) in [("wq", "q_proj"), ("wk", "k_proj")] {
        let (theirs, ours) = (
            &recorded[&format!("layers.0.attention.{theirs}.weight")],
            &hf[&format!("llama/model.layers.0.self_attn.{ours}.weight")],
        );
        assert_ne!(theirs, ours);
        assert_eq!(&meta::interleave(ours, 4), theirs);
        assert_eq!(&meta::split_halves(theirs, 4), ours);
    }
}

/// Against arbitrary-precision arithmetic.
#[test]
fn error_function() {
    let known = [
        (0.1, 0.112_462_916_018_284_9),
        (0.5, 0.520_499_877_813_046_5),
        (1.0, 0.842_700_792_949_714_9),
        (1.5, 0.966_105_146_475_310_7),
        (1.999, 0.995_301_556_651_370_5),
        (2.0, 0.995_322_265_018_952_7),
        (3.0, 0.999_977_909_503_001_4),
    ];
    for (x, want) in known {
        assert!((math::erf(x) - want).abs() < 1e-15, "erf {x}: {}", math::erf(x));
        assert!((math::erf(-x) + want).abs() < 1e-15);
    }
    // the tail, relatively: erfc 5, and GELU where x Φ(x) is tiny
    assert!((math::erfc(5.0) / 1.537_459_794_428_035e-12 - 1.0).abs() < 1e-13);
    assert!((math::gelu(-8.0) / -4.976_768_459_417_427e-15 - 1.0).abs() < 1e-12, "{:e}", math::gelu(-8.0));
    assert_eq!((math::erf(0.0), math::gelu(0.0)), (0.0, 0.0));
    assert!(math::erf(40.0) == 1.0);
}
