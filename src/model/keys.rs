//! Which tensors each model needs, by PyTorch state-dict key, with their shapes.
//!
//! These lists are what a checkpoint is held against before anything is built: missing, unexpected and
//! wrong-shaped tensors are then reported together.

use crate::config::{AdapterKind, Config, LlamaConfig, Norm};

/// A state-dict key and the shape it must have.
pub type Key = (String, Vec<usize>);

/// Prefixes under which M3D's vision transformer is saved: `pretrained_ViT.bin`, M3D-CLIP, M3D-LaMed.
pub const VISION_PREFIXES: [&str; 3] = ["", "vision_encoder.", "model.vision_tower.vision_tower."];

/// Prefixes under which a LLaMA is saved: `LlamaForCausalLM` and a bare `LlamaModel`.
pub const TEXT_PREFIXES: [&str; 2] = ["model.", ""];

/// The adapter's tensors.
pub fn adapter(config: &Config) -> Vec<Key> {
    let a = &config.adapter;
    let (channels, reduce, residual) = match a.kind {
        AdapterKind::Bottleneck2d => {
            let c = a.slices_out;
            (c, vec![c, a.slices_in, 1, 1], vec![c, c, 3, 3])
        }
        AdapterKind::Bottleneck3d => (a.width, vec![a.width, 1, 3, 3, 3], vec![a.width, a.width, 3, 3, 3]),
    };
    let mut keys = Vec::new();
    let layers = [("reduce.conv", "reduce.norm", reduce), ("residual.conv1", "residual.norm1", residual.clone())];
    for (conv, norm, shape) in layers.into_iter().chain([("residual.conv2", "residual.norm2", residual)]) {
        keys.push((format!("adapter.{conv}.weight"), shape));
        let vectors: &[&str] = match a.norm {
            Norm::None => &[],
            Norm::Group => &["weight", "bias"],
            Norm::Batch => &["weight", "bias", "running_mean", "running_var"],
        };
        if a.norm == Norm::None {
            keys.push((format!("adapter.{conv}.bias"), vec![channels]));
        }
        keys.extend(vectors.iter().map(|v| (format!("adapter.{norm}.{v}"), vec![channels])));
    }
    if a.kind == AdapterKind::Bottleneck3d {
        keys.push(("adapter.out.weight".into(), vec![1, channels, 1, 1, 1]));
        keys.push(("adapter.out.bias".into(), vec![1]));
    }
    keys
}

/// The trained heads' tensors, without the image-only classifier.
pub fn heads(config: &Config) -> Vec<Key> {
    let (d, classes) = (config.projection.dim, config.labels.0.len());
    vec![
        ("vision_projection.weight".into(), vec![d, config.vision.hidden]),
        ("vision_projection.bias".into(), vec![d]),
        ("text_projection.weight".into(), vec![d, config.text.hidden]),
        ("text_projection.bias".into(), vec![d]),
        ("classifier.weight".into(), vec![classes, 2 * d]),
        ("classifier.bias".into(), vec![classes]),
    ]
}

/// The image-only classifier's tensors, which a checkpoint may lack.
pub fn image_classifier(config: &Config) -> Vec<Key> {
    let (d, classes) = (config.projection.dim, config.labels.0.len());
    vec![("image_classifier.weight".into(), vec![classes, d]), ("image_classifier.bias".into(), vec![classes])]
}

/// The vision transformer's tensors. The position embeddings have the size of pre-training.
pub fn vision(config: &Config) -> Vec<Key> {
    let v = &config.vision;
    let (h, patch, grid) = (v.hidden, v.patch.iter().product(), config.trained_grid().iter().product());
    let mut keys: Vec<Key> = vec![
        ("cls_token".into(), vec![1, 1, h]),
        ("patch_embedding.position_embeddings".into(), vec![1, grid, h]),
        ("patch_embedding.patch_embeddings.1.weight".into(), vec![h, patch]),
        ("patch_embedding.patch_embeddings.1.bias".into(), vec![h]),
        ("norm.weight".into(), vec![h]),
        ("norm.bias".into(), vec![h]),
    ];
    let block: [(&str, Vec<usize>); 11] = [
        ("norm1.weight", vec![h]),
        ("norm1.bias", vec![h]),
        ("norm2.weight", vec![h]),
        ("norm2.bias", vec![h]),
        ("attn.qkv.weight", vec![3 * h, h]),
        ("attn.out_proj.weight", vec![h, h]),
        ("attn.out_proj.bias", vec![h]),
        ("mlp.linear1.weight", vec![v.mlp, h]),
        ("mlp.linear1.bias", vec![v.mlp]),
        ("mlp.linear2.weight", vec![h, v.mlp]),
        ("mlp.linear2.bias", vec![h]),
    ];
    for n in 0..v.layers {
        keys.extend(block.iter().map(|(name, shape)| (format!("blocks.{n}.{name}"), shape.clone())));
    }
    keys
}

/// The language model's tensors, without the `model.` prefix.
pub fn text(config: &LlamaConfig) -> Vec<Key> {
    let (h, q, kv) = (config.hidden, config.heads * config.head_dim, config.kv_heads * config.head_dim);
    let mut keys: Vec<Key> =
        vec![("embed_tokens.weight".into(), vec![config.vocab, h]), ("norm.weight".into(), vec![h])];
    let v = &config.variant;
    let mut layer: Vec<(&str, Vec<usize>)> = vec![
        ("input_layernorm.weight", vec![h]),
        ("post_attention_layernorm.weight", vec![h]),
        ("self_attn.q_proj.weight", vec![q, h]),
        ("self_attn.k_proj.weight", vec![kv, h]),
        ("self_attn.v_proj.weight", vec![kv, h]),
        ("self_attn.o_proj.weight", vec![h, q]),
        ("mlp.gate_proj.weight", vec![config.mlp, h]),
        ("mlp.up_proj.weight", vec![config.mlp, h]),
        ("mlp.down_proj.weight", vec![h, config.mlp]),
    ];
    let qkv = [("self_attn.q_proj.bias", q), ("self_attn.k_proj.bias", kv), ("self_attn.v_proj.bias", kv)];
    let mlp = [("mlp.gate_proj.bias", config.mlp), ("mlp.up_proj.bias", config.mlp), ("mlp.down_proj.bias", h)];
    let norms = [("self_attn.q_norm.weight", config.head_dim), ("self_attn.k_norm.weight", config.head_dim)];
    let mut vectors: Vec<(&str, usize)> = Vec::new();
    vectors.extend(qkv.into_iter().filter(|_| v.qkv_bias));
    vectors.extend(v.out_bias.then_some(("self_attn.o_proj.bias", h)));
    vectors.extend(mlp.into_iter().filter(|_| v.mlp_bias));
    vectors.extend(norms.into_iter().filter(|_| v.qk_norm));
    layer.extend(vectors.into_iter().map(|(name, size)| (name, vec![size])));
    if v.ungated {
        layer.retain(|(name, _)| !name.starts_with("mlp.gate_proj"));
    }
    for n in 0..config.layers {
        keys.extend(layer.iter().map(|(name, shape)| (format!("layers.{n}.{name}"), shape.clone())));
    }
    keys
}
