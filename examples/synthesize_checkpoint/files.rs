//! What lies beside the weights: configurations, the tokenizer, the shards' index; and the check for free space.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result};
use brain_adapter::checkpoint::write_safetensors;
use brain_adapter::tensor::{DType, LazyTensor};
use serde_json::{Map, Value, json};

use super::plans::{LABELS, Llama, Plan, Sizes};

/// Fails when the file system at `folder` has less than `bytes` and a little more to give.
pub fn enough_space(folder: &Path, bytes: u64) -> Result<()> {
    let need = bytes + (64 << 20);
    #[cfg(unix)]
    {
        let about = rustix::fs::statvfs(folder).context("cannot ask for the free space")?;
        let free = about.f_bavail.saturating_mul(about.f_frsize);
        let gb = |n: u64| n as f64 / 1e9;
        anyhow::ensure!(
            free >= need,
            "{}: {:.2} GB are free, {:.2} GB are needed: free some, or use fewer --text-layers",
            folder.display(),
            gb(free),
            gb(need)
        );
    }
    let _ = (folder, need);
    Ok(())
}

/// Writes `value` as indented JSON.
pub fn json_file(path: &Path, value: &Value) -> Result<()> {
    let text = serde_json::to_string_pretty(value)?;
    std::fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
}

/// The model's `config.json`.
pub fn config(s: &Sizes) -> Value {
    let [hidden, mlp, layers, heads] = s.vit;
    json!({
        "volume": {"size": s.size, "voxel_mm": 256.0 / s.size as f64, "clip": null},
        "adapter": {"kind": "bottleneck2d", "norm": "batch", "in": s.size, "out": s.depth, "width": 8},
        "vision": {
            "img": s.img, "patch": s.patch, "hidden": hidden, "mlp": mlp, "layers": layers, "heads": heads, "pool": "cls"
        },
        "text": {"hidden": s.llama.hidden, "pool": "mean", "max_tokens": 512},
        "projection": {"dim": s.projection},
        "labels": LABELS,
        "train": {"contrastive_weight": 1.0},
    })
}

/// Writes the folder `llama`: configuration, tokenizer, shards of about equal size, and their index.
pub fn write_llama(
    folder: &Path,
    l: &Llama,
    plans: &[Plan],
    dtype: DType,
    metadata: &BTreeMap<String, String>,
    make: &dyn Fn(&Plan, DType) -> (String, LazyTensor),
) -> Result<()> {
    json_file(&folder.join("config.json"), &llama_config(l, dtype))?;
    json_file(&folder.join("tokenizer.json"), &tokenizer(l.vocab))?;
    let total: u64 = plans.iter().map(|p| p.bytes(dtype)).sum();
    let mut shards: Vec<Vec<&Plan>> = vec![Vec::new(); l.shards];
    let mut before = 0;
    for plan in plans {
        let shard = (before * l.shards as u64 / total) as usize;
        shards[shard].push(plan);
        before += plan.bytes(dtype);
    }
    let mut weight_map = BTreeMap::new();
    for (i, plans) in shards.iter().enumerate() {
        let name = format!("model-{:05}-of-{:05}.safetensors", i + 1, l.shards);
        write_safetensors(folder.join(&name), plans.iter().map(|p| make(p, dtype)), metadata)?;
        weight_map.extend(plans.iter().map(|p| (p.name.clone(), name.clone())));
    }
    let index = json!({"metadata": {"total_size": total}, "weight_map": weight_map});
    json_file(&folder.join("model.safetensors.index.json"), &index)
}

fn llama_config(l: &Llama, dtype: DType) -> Value {
    json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu", "attention_bias": false,
        "hidden_size": l.hidden, "intermediate_size": l.mlp, "num_hidden_layers": l.layers,
        "num_attention_heads": l.heads, "num_key_value_heads": l.heads, "vocab_size": l.vocab,
        "max_position_embeddings": 4096, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "rope_scaling": null,
        "bos_token_id": 1, "eos_token_id": 2, "tie_word_embeddings": false, "use_cache": true,
        "torch_dtype": dtype.name(), "transformers_version": "4.31.0",
    })
}

/// Words whose beginnings become tokens.
const WORDS: &str = "the of and in is no with for normal mild moderate severe atrophy hippocampus hippocampal volume \
    ventricles sulci cortical temporal lobe bilateral left right white matter disease cognitive impairment memory age \
    patient brain mri without contrast infarct hemorrhage mass shift impression findings suggest alzheimer reduced";

/// A LLaMA-style tokenizer: BPE over `▁`-marked words with byte fallback, `<s>` put first; at most `vocab` tokens.
fn tokenizer(vocab: usize) -> Value {
    let mut tokens: Vec<String> = ["<unk>", "<s>", "</s>"].map(str::to_owned).to_vec();
    tokens.extend((0..256).map(|byte| format!("<0x{byte:02X}>")));
    tokens.push("▁".into());
    tokens.extend((' '..='~').filter(|c| *c != ' ').map(String::from));
    let mut merges = Vec::new();
    // Every beginning of a word is a token, made of the one before and a letter.
    for word in WORDS.split_whitespace() {
        let mut start = String::from("▁");
        for letter in word.chars() {
            let longer = format!("{start}{letter}");
            if !tokens.contains(&longer) && tokens.len() < vocab {
                merges.push(format!("{start} {letter}"));
                tokens.push(longer.clone());
            }
            start = longer;
        }
    }
    // A merge whose parts were cut off would be refused.
    merges.retain(|m| m.split(' ').all(|part| tokens.iter().any(|t| t == part)));
    let vocab: Map<String, Value> = tokens.into_iter().enumerate().map(|(id, t)| (t, json!(id))).collect();
    let special = |id: usize, content: &str| {
        json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false, "special": true})
    };
    let bos = json!({"SpecialToken": {"id": "<s>", "type_id": 0}});
    let text = |id: &str| json!({"Sequence": {"id": id, "type_id": 0}});
    json!({
        "version": "1.0", "truncation": null, "padding": null,
        "added_tokens": [special(0, "<unk>"), special(1, "<s>"), special(2, "</s>")],
        "normalizer": {"type": "Sequence", "normalizers": [
            {"type": "Prepend", "prepend": "▁"}, {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]},
        "pre_tokenizer": null,
        "post_processor": {"type": "TemplateProcessing", "single": [bos, text("A")],
            "pair": [bos, text("A"), bos, text("B")],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}}},
        "decoder": {"type": "Sequence", "decoders": [
            {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}, {"type": "ByteFallback"}, {"type": "Fuse"},
            {"type": "Strip", "content": " ", "start": 1, "stop": 0}]},
        "model": {"type": "BPE", "dropout": null, "unk_token": "<unk>", "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": true, "byte_fallback": true, "vocab": vocab, "merges": merges},
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tokenizer_loads_and_covers_any_text() {
        for vocab in [512, 32000] {
            let json = tokenizer(vocab).to_string();
            let tokenizer = tokenizers::Tokenizer::from_bytes(json.as_bytes()).unwrap();
            assert!(tokenizer.get_vocab_size(true) <= vocab);
            let text = "Normal ventricles; atrophy of the hippocampus é 脳\n";
            let ids = tokenizer.encode(text, true).unwrap();
            assert_eq!(ids.get_ids()[0], 1);
            assert!(ids.get_tokens().iter().any(|t| t == "▁atrophy"), "{:?}", ids.get_tokens());
            assert!(!ids.get_ids().contains(&0) && ids.get_ids().iter().all(|&id| (id as usize) < vocab));
            assert_eq!(tokenizer.decode(ids.get_ids(), true).unwrap(), text);
        }
    }
}
