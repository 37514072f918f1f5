//! Sizes that no model has are refused, by key and value, before anything is made of them.

use serde_json::{Value, json};

use super::{Config, LlamaConfig};
use crate::error::{Code, Result};

fn refused<T>(result: Result<T>, words: &[&str]) {
    let error = result.map(drop).expect_err(&format!("{words:?}"));
    assert_eq!(error.code(), Code::CONFIG_VALUE, "{error}");
    assert!(words.iter().all(|word| error.message().contains(word)), "{words:?}: {error}");
    assert!(!error.message().contains('\n') && error.message().len() < 300, "{error}");
}

#[test]
fn our_own_sizes_are_bounded() {
    Config::from_text("{}").unwrap();
    for (json, words) in [
        (json!({"vision": {"layers": 1_000_000}}), ["vision.layers", "1000000"]),
        (json!({"vision": {"layers": 0}}), ["vision.layers", "0"]),
        (json!({"vision": {"heads": 2048, "hidden": 2048}}), ["vision.heads", "2048"]),
        (json!({"vision": {"hidden": 1 << 20}}), ["vision.hidden", "1048576"]),
        (json!({"vision": {"img": [1 << 20, 256, 256]}}), ["vision.img", "1048576"]),
        (json!({"vision": {"patch": [4, 16, 2048]}}), ["vision.patch", "2048"]),
        (json!({"text": {"max_tokens": 1 << 19}}), ["text.max_tokens", "524288"]),
        (json!({"text": {"hidden": u64::from(u32::MAX)}}), ["text.hidden", "4294967295"]),
        (json!({"projection": {"dim": 1 << 18}}), ["projection.dim", "262144"]),
        (json!({"adapter": {"width": 4096}}), ["adapter.width", "4096"]),
        // Each side is fine, and the patches together are a thousand times what attention can take.
        (json!({"vision": {"patch": [1, 1, 1]}}), ["patches", "4194304"]),
        (json!({"labels": vec!["a"; 2000]}), ["labels", "2000"]),
        (json!({"labels": ["a", "b".repeat(1000)]}), ["labels", "1000"]),
    ] {
        refused(Config::from_text(&json.to_string()), &words);
    }
    // No product of sizes overflows on the way to an answer.
    let all = json!({"volume": {"size": 1024}, "adapter": {"in": 1024, "out": 1024}, "vision": {"img": [1024, 1024, 1024],
        "patch": [1, 1, 1], "hidden": 65_536, "heads": 1024}});
    refused(Config::from_text(&all.to_string()), &["patches", "1073741824"]);
}

#[test]
fn the_language_models_sizes_are_bounded() {
    let good = json!({"vocab_size": 100, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
        "num_attention_heads": 4});
    LlamaConfig::from_hf(&good).unwrap();
    let with = |key: &str, value: Value| {
        let mut all = good.clone();
        all[key] = value;
        all
    };
    for (key, value) in [
        ("num_hidden_layers", json!(1_000_000)),
        ("num_attention_heads", json!(1 << 20)),
        ("num_key_value_heads", json!(1 << 30)),
        ("hidden_size", json!(1 << 24)),
        ("intermediate_size", json!(u64::MAX)),
        ("vocab_size", json!(-5)),
        ("head_dim", json!(1 << 16)),
        ("num_hidden_layers", json!(2.5)),
    ] {
        refused(LlamaConfig::from_hf(&with(key, value.clone())), &[key, &value.to_string()]);
    }
    let meta = json!({"dim": 64, "n_heads": 4, "n_layers": 5000});
    refused(LlamaConfig::from_meta(&meta, 128, 100), &["n_layers", "5000"]);
    // Those of a bundle come without either's keys.
    let mut bundled = LlamaConfig::from_hf(&good).unwrap();
    bundled.layers = usize::MAX;
    refused(bundled.validate(), &["number of layers", "18446744073709551615"]);
    bundled.layers = 2;
    bundled.kv_heads = 0;
    refused(bundled.validate(), &["key-value heads", "0"]);
}
