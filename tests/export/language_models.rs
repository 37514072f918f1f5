//! Every kind of language model in int8: what the gate lets through answers as the float32 bundle does.

use std::fs;
use std::path::Path;

use brain_adapter::bundle::Bundle;
use brain_adapter::config::LlamaConfig;
use brain_adapter::model::keys;
use brain_adapter::runtime::{Session, SessionOptions};
use brain_adapter::tensor::Tensor;
use serde_json::{Value, json};
use support::commands::{ba_export, save, scan, write_model};
use support::common;
use support::formula::formula_weight;

/// Least cosine between the text vectors of both bundles.
const COSINE: f64 = 0.99;

/// A row for each kind, and for bidirectional attention: what its configuration has besides the tiny model's sizes.
fn kinds() -> Vec<Value> {
    let llama3 = json!({"rope_type": "llama3", "rope_theta": 1e4, "factor": 8.0, "low_freq_factor": 1.0,
        "high_freq_factor": 4.0, "original_max_position_embeddings": 64});
    vec![
        json!({"model_type": "llama", "rope_parameters": llama3, "mlp_bias": true}),
        json!({"model_type": "mistral", "sliding_window": 5}),
        json!({"model_type": "ministral", "sliding_window": 5,
            "layer_types": ["full_attention", "sliding_attention"]}),
        json!({"model_type": "qwen2"}),
        json!({"model_type": "qwen3", "head_dim": 24}),
        json!({"model_type": "granite", "embedding_multiplier": 6.0, "attention_multiplier": 0.1,
            "residual_multiplier": 0.4, "logits_scaling": 8.0}),
        json!({"model_type": "minicpm", "scale_emb": 4.0, "scale_depth": 1.4, "dim_model_base": 256}),
        json!({"model_type": "smollm3", "no_rope_layers": [1, 0]}),
        json!({"model_type": "ernie4_5", "use_bias": true, "head_dim": 16}),
        json!({"model_type": "helium", "head_dim": 16}),
        json!({"model_type": "seed_oss", "head_dim": 16}),
        json!({"model_type": "arcee", "hidden_act": "relu2"}),
        json!({"model_type": "cwm", "rope_parameters": llama3, "head_dim": 16, "sliding_window": 6}),
        json!({"model_type": "llama_bidirec"}),
    ]
}

/// Replaces the language model of a tiny model folder.
fn write_language_model(folder: &Path, more: &Value) {
    let mut config = json!({"hidden_size": 64, "intermediate_size": 176, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 512, "rms_norm_eps": 1e-5,
        "max_position_embeddings": 4096, "bos_token_id": 1});
    config.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    let llama = LlamaConfig::from_hf(&config).unwrap();
    let tensors = keys::text(&llama).into_iter();
    let tensors = tensors.map(|(key, shape)| (format!("model.{key}"), formula_weight(&key, &shape, 7))).collect();
    save(&folder.join("llama/model.safetensors"), tensors);
    fs::write(folder.join("llama/config.json"), config.to_string()).unwrap();
}

/// The text vectors that a bundle gives for two reports of different lengths.
fn text(bundle: &Path) -> Vec<f32> {
    let bundle = Bundle::open(bundle).unwrap();
    let file = bundle.file(&bundle.manifest.parts["text"].file).unwrap();
    let options = SessionOptions { threads: Some(1), ..SessionOptions::default() };
    let mut session = Session::open(common::runtime(), &file, &options).unwrap();
    let (ids, mask): (Vec<i64>, Vec<i64>) =
        (0..24).map(|i| if i < 20 { (1 + i * 37 % 500, 1) } else { (0, 0) }).unzip();
    let [ids, mask] = [ids, mask].map(|row| Tensor::i64(&[2, 12], row).unwrap());
    let found = session.run(&[("input_ids", &ids), ("attention_mask", &mask)], &["text"]).unwrap();
    found[0].as_f32().unwrap().to_vec()
}

fn cosine(a: &[f32], b: &[f32]) -> f64 {
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(x, y)| f64::from(*x) * f64::from(*y)).sum::<f64>();
    dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
}

#[test]
fn every_kind_passes_the_gate_in_int8() {
    let folder = tempfile::tempdir().unwrap();
    let calibration = folder.path().join("calibration");
    fs::create_dir(&calibration).unwrap();
    fs::copy(scan(), calibration.join("a.nii.gz")).unwrap();
    for (name, report) in
        ["Mild atrophy of both hippocampi. MMSE 24/30.", "No acute infarct. Normal for age.", "MTA 3."]
            .iter()
            .enumerate()
    {
        fs::write(calibration.join(format!("{name}.txt")), report).unwrap();
    }
    for more in kinds() {
        let kind = more["model_type"].as_str().unwrap();
        let (model, plain, int8) = (folder.path().join(kind), folder.path().join("fp32"), folder.path().join("int8"));
        write_model(&model, "tiny", "tiny");
        write_language_model(&model, &more);
        ba_export(&[&"--model", &model, &"-o", &plain, &"--calibration", &calibration]).ok();
        let summary = ba_export(&[
            &"--model",
            &model,
            &"-o",
            &int8,
            &"--calibration",
            &calibration,
            &"--quantize",
            &"int8",
            &"--json",
        ]);
        let summary = summary.ok().json();
        let part = summary["parts"].as_array().unwrap().iter().find(|p| p["part"] == "text").unwrap();
        assert_eq!(part["precision"], "int8", "{kind}: {part}");
        let (a, b) = (text(&plain), text(&int8));
        let close = cosine(&a, &b);
        assert!(close >= COSINE && a != b, "{kind}: cosine {close}");
    }
}
