//! A [`Case`] as files in the layouts met in the wild.

use std::path::{Path, PathBuf};

use safetensors::tensor::Dtype;
use serde_json::{Map, Value, json};

use super::config::LlamaConfig;
use super::files::write_safetensors;
use super::weights::Random;
use super::{Array, Case, VitConfig};

/// Where [`write_case`] put things.
#[derive(Clone, Debug)]
pub struct Written {
    /// `config.json`.
    pub config: PathBuf,
    /// `adapter.safetensors`: everything trainable.
    pub adapter: PathBuf,
    /// The file in `m3d/`.
    pub vision: PathBuf,
    /// The folder `llama/`.
    pub llama: PathBuf,
    /// Names in the vision file that the model does not use, as they stand there.
    pub vision_unused: Vec<String>,
    /// Names in the LLaMA files that the model does not use, as they stand there.
    pub llama_unused: Vec<String>,
}

/// Tensors about to be written.
type Tensors = Vec<(String, Dtype, Array)>;

/// Writes into `folder`, which must exist: `config.json`, `adapter.safetensors`, `m3d/` and `llama/` (with
/// `config.json`, and a copy of `tokenizer` as `tokenizer.json` when one is given).
pub fn write_case(case: &Case, folder: &Path, tokenizer: Option<&Path>) -> Written {
    let (m3d, llama) = (folder.join("m3d"), folder.join("llama"));
    std::fs::create_dir_all(&m3d).unwrap();
    std::fs::create_dir_all(&llama).unwrap();
    write_json(&folder.join("config.json"), &case.config);
    write_json(&llama.join("config.json"), &case.llama_config);
    if let Some(t) = tokenizer {
        std::fs::copy(t, llama.join("tokenizer.json")).unwrap();
    }
    let adapter = folder.join("adapter.safetensors");
    let heads = case
        .heads
        .iter()
        .map(|(n, a)| (n.clone(), if n.ends_with("num_batches_tracked") { Dtype::I64 } else { Dtype::F32 }, a.clone()));
    save(&adapter, &heads.collect::<Tensors>());

    let rng = &mut Random::new(!case.seed);
    let (tensors, vision_unused) = vision_tensors(case, rng);
    let vision = m3d.join(
        if case.layout.vision_prefix.is_empty() { "pretrained_ViT" } else { "model" }.to_owned() + ".safetensors",
    );
    save(&vision, &tensors);

    let (tensors, llama_unused) = llama_tensors(case, rng);
    save_sharded(&llama, &tensors, case.layout.llama_shards);
    Written { config: folder.join("config.json"), adapter, vision, llama, vision_unused, llama_unused }
}

/// A value as indented JSON.
fn write_json(path: &Path, v: &Value) {
    std::fs::write(path, serde_json::to_vec_pretty(v).unwrap()).unwrap();
}

/// One file.
fn save(path: &Path, tensors: &[(String, Dtype, Array)]) {
    write_safetensors(path, tensors.iter().map(|(n, d, a)| (n.clone(), *d, a)));
}

/// `model.safetensors`, or HF's `model-0000i-of-0000n.safetensors` with their index.
fn save_sharded(folder: &Path, tensors: &[(String, Dtype, Array)], shards: usize) {
    if shards == 1 {
        return save(&folder.join("model.safetensors"), tensors);
    }
    let mut map = Map::new();
    let mut total = 0;
    for (i, part) in tensors.chunks(tensors.len().div_ceil(shards)).enumerate() {
        let name = format!("model-{:05}-of-{shards:05}.safetensors", i + 1);
        save(&folder.join(&name), part);
        for (n, d, a) in part {
            map.insert(n.clone(), json!(name));
            total += a.data.len() * d.bitsize() / 8;
        }
    }
    let index = json!({ "metadata": { "total_size": total }, "weight_map": map });
    write_json(&folder.join("model.safetensors.index.json"), &index);
}

/// A tensor the model must not use.
fn noise(rng: &mut Random, shape: &[usize]) -> Array {
    Array::new(shape, (0..shape.iter().product()).map(|_| rng.normal()).collect())
}

/// The ViT under its prefix, and the names that are not its own.
fn vision_tensors(case: &Case, rng: &mut Random) -> (Tensors, Vec<String>) {
    let (prefix, cfg) = (case.layout.vision_prefix, VitConfig::from_json(&case.config));
    let mut out: Tensors = case.vit.iter().map(|(n, a)| (format!("{prefix}{n}"), Dtype::F32, a.clone())).collect();
    let own = out.len();
    let mut put = |name: &str, dtype, a: Array| out.push((name.to_owned(), dtype, a));
    if case.layout.vision_norm_cross_attn {
        for n in 0..cfg.layers {
            for leaf in ["weight", "bias"] {
                put(&format!("{prefix}blocks.{n}.norm_cross_attn.{leaf}"), Dtype::F32, noise(rng, &[cfg.hidden]));
            }
        }
    }
    if case.layout.vision_foreign {
        let positions = Array::new(&[1, 4], (0..4).map(f64::from).collect());
        if prefix == "vision_encoder." {
            put("language_encoder.embeddings.word_embeddings.weight", Dtype::F32, noise(rng, &[9, 6]));
            put("language_encoder.embeddings.position_ids", Dtype::I64, positions);
            put("mm_vision_proj.weight", Dtype::F32, noise(rng, &[7, cfg.hidden]));
            put("mm_vision_proj.bias", Dtype::F32, noise(rng, &[7]));
            put("mm_language_proj.weight", Dtype::F32, noise(rng, &[7, 6]));
            put("logit_scale", Dtype::F32, noise(rng, &[]));
        } else {
            put("lm_head.weight", Dtype::F32, noise(rng, &[9, 6]));
            put("model.embed_tokens.weight", Dtype::F32, noise(rng, &[9, 6]));
            put("model.layers.0.self_attn.q_proj.weight", Dtype::BF16, noise(rng, &[6, 6]));
            put("model.mm_projector.projector.0.weight", Dtype::F32, noise(rng, &[6, cfg.hidden]));
            put("model.seg_projector.0.weight", Dtype::F32, noise(rng, &[6, 6]));
            put("model.norm.weight", Dtype::F32, noise(rng, &[6]));
        }
    }
    let unused = out[own..].iter().map(|(n, ..)| n.clone()).collect();
    (out, unused)
}

/// LLaMA in its layout, and the names that are not needed; all in the order of the names, as HF shards them roughly.
fn llama_tensors(case: &Case, rng: &mut Random) -> (Tensors, Vec<String>) {
    let (layout, cfg) = (&case.layout, LlamaConfig::from_json(&case.llama_config));
    let mut out: Tensors = case.llama.iter().map(|(n, a)| (n.clone(), layout.llama_dtype, a.clone())).collect();
    let own = out.len();
    if layout.llama_lm_head {
        out.push(("lm_head.weight".into(), layout.llama_dtype, noise(rng, &[cfg.vocab, cfg.hidden])));
    }
    if layout.llama_inv_freq {
        let d = cfg.head_dim;
        let freqs = Array::new(&[d / 2], (0..d / 2).map(|i| cfg.theta.powf(-2.0 * i as f64 / d as f64)).collect());
        for n in 0..cfg.layers {
            out.push((format!("model.layers.{n}.self_attn.rotary_emb.inv_freq"), Dtype::F32, freqs.clone()));
        }
    }
    if !layout.llama_prefix {
        out.iter_mut().for_each(|(n, ..)| *n = n.strip_prefix("model.").unwrap().to_owned());
    }
    let unused = out[own..].iter().map(|(n, ..)| n.clone()).collect();
    out.sort_by(|a, b| a.0.cmp(&b.0));
    (out, unused)
}
